/*
 * encode_dense.c - f32 values into the dense formats. Caller: convert (embeddings, heads, norms).
 * Q8_0, Q4_0 and Q4_1 round as GGUF's published writers do, so files agree to the bit; but where a block would lose and
 * another scale holds it exactly (re-encoded or ternary data), that scale is taken. The K quants use searches of their own:
 * least squares over a few starting scales. What was lost is measured by decoding again.
 */
#include "ternary/decode.h"
#include <math.h>

static inline void put_u16(uint8_t *out, uint16_t v) { memcpy(out, &v, 2); }
static inline float half(float v) { return setun_f16_to_f32(setun_f32_to_f16(v)); }
static inline int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }
static inline int nearest(float v) { return v >= 2147483000.0f ? 2147483000 : v <= -2147483000.0f ? -2147483000 : (int)rintf(v); }

/* 1/d for rounding; 0 where d is so small that its f16 is 0 anyway. */
static inline float inverse_of(float d) {
    const float inverse = 1.0f / d;
    return d != 0 && isfinite(inverse) ? inverse : 0;
}

static float largest_magnitude(const float *x, int n, int *at) {
    float best = 0;
    *at = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > best) best = fabsf(x[i]), *at = i;
    return best;
}

/* ---- one signed scale: w = d (q), q in low .. high ---- */

/* Is there an f16 d with x[i] = d * q exactly, q in low .. high? The largest value is d*k for some k: try all k. */
static bool exact_scale(const float *x, int n, int low, int high, float *out_d) {
    int at;
    const float top = largest_magnitude(x, n, &at);
    if (top == 0) {
        *out_d = 0;
        return true;
    }
    for (int sign = 1; sign >= -1; sign -= 2)
        for (int k = sign > 0 ? high : -low; k >= 1; k--) {
            /* sign > 0: x[at] = d * k, d takes x[at]'s sign; otherwise x[at] = d * -k */
            const float d = x[at] / (float)(sign * k);
            if (half(d) != d || d * (float)(sign * k) != x[at]) continue;
            bool exact = true;
            for (int i = 0; i < n && exact; i++) {
                const int q = clamp(nearest(x[i] / d), low, high);
                exact = d * (float)q == x[i];
            }
            if (exact) {
                *out_d = d;
                return true;
            }
        }
    return false;
}

static bool block_is_exact(const float *x, const int *q, int n, float d) {
    for (int i = 0; i < n; i++)
        if (d * (float)q[i] != x[i]) return false;
    return true;
}

static void encode_q8_0(const float *x, uint8_t *out) {
    int q[32], at;
    float d = largest_magnitude(x, 32, &at) / 127.0f, inverse = inverse_of(d);
    for (int i = 0; i < 32; i++) q[i] = clamp((int)roundf(x[i] * inverse), -127, 127);
    d = half(d);
    float exact;
    if (!block_is_exact(x, q, 32, d) && exact_scale(x, 32, -128, 127, &exact)) {
        d = exact;
        for (int i = 0; i < 32; i++) q[i] = d != 0 ? nearest(x[i] / d) : 0;
    }
    put_u16(out, setun_f32_to_f16(d));
    for (int i = 0; i < 32; i++) out[2 + i] = (uint8_t)(int8_t)q[i];
}

static void put_nibbles(const int *q, uint8_t *out) {
    for (int p = 0; p < 16; p++) out[p] = (uint8_t)(q[p] | q[16 + p] << 4);
}

static void encode_q4_0(const float *x, uint8_t *out) {
    int q[32], at;
    largest_magnitude(x, 32, &at);
    float d = x[at] / -8.0f, exact;
    const float inverse = inverse_of(d);
    for (int i = 0; i < 32; i++) q[i] = clamp((int)(x[i] * inverse + 8.5f), 0, 15) - 8;
    d = half(d);
    if (!block_is_exact(x, q, 32, d) && exact_scale(x, 32, -8, 7, &exact)) {
        d = exact;
        for (int i = 0; i < 32; i++) q[i] = d != 0 ? nearest(x[i] / d) : 0;
    }
    for (int i = 0; i < 32; i++) q[i] += 8;
    put_u16(out, setun_f32_to_f16(d));
    put_nibbles(q, out + 2);
}

static void encode_q4_1(const float *x, uint8_t *out) {
    int q[32];
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float d = (high - low) / 15.0f;
    const float inverse = inverse_of(d);
    for (int i = 0; i < 32; i++) q[i] = clamp((int)((x[i] - low) * inverse + 0.5f), 0, 15);
    const float m = half(low);
    /* Values m + d*q with a smaller top code hold some blocks exactly, ternary ones among them. */
    if (m == low)
        for (int k = 15; k >= 1; k--) {
            const float trial = (high - low) / (float)k;
            if (half(trial) != trial || trial == 0) continue;
            bool exact = true;
            for (int i = 0; i < 32 && exact; i++) exact = trial * (float)clamp(nearest((x[i] - low) / trial), 0, 15) + m == x[i];
            if (!exact) continue;
            d = trial;
            for (int i = 0; i < 32; i++) q[i] = clamp(nearest((x[i] - low) / d), 0, 15);
            break;
        }
    put_u16(out, setun_f32_to_f16(d));
    put_u16(out + 2, setun_f32_to_f16(low));
    put_nibbles(q, out + 4);
}

/* ---- Q6_K: sixteen groups of 16, w = d scale q, scale int8, q in -32 .. 31 ---- */

/* The scale that fits x = a q best: a few starts, each followed by the least squares a of its q. */
static float fit_scale(const float *x, int n, int low, int high) {
    int at;
    if (largest_magnitude(x, n, &at) == 0) return 0;
    float best_a = 0;
    double best_gain = -1;
    for (int start = -6; start <= 6; start++) {
        /* The largest value goes to the end of the longer side, or near it. */
        float a = x[at] / ((float)low - 0.25f * (float)start);
        for (int round = 0; round < 2; round++) {
            double xq = 0, qq = 0;
            if (a == 0) break; /* x is below every f16 */
            for (int i = 0; i < n; i++) {
                const int q = clamp(nearest(x[i] / a), low, high);
                xq += (double)x[i] * q;
                qq += (double)q * q;
            }
            if (qq == 0 || xq == 0) break;
            const double gain = xq * xq / qq; /* |x|^2 minus this is the error */
            a = (float)(xq / qq);
            if (gain > best_gain) best_gain = gain, best_a = a;
        }
    }
    return best_a;
}

static double squared_error(const float *x, int n, float a, float b, int low, int high) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const int q = a != 0 ? clamp(nearest((x[i] + b) / a), low, high) : 0;
        const double e = (double)x[i] - ((double)a * q - b);
        sum += e * e;
    }
    return sum;
}

static void encode_q6_k(const float *x, uint8_t *out) {
    float fitted[16];
    int scale[16], top;
    uint8_t q[256];
    for (int g = 0; g < 16; g++) fitted[g] = fit_scale(x + 16 * g, 16, -32, 31);
    largest_magnitude(fitted, 16, &top);
    /* The largest scale becomes -128, so d takes the opposite sign. */
    const float d = half(fitted[top] / -128.0f);
    for (int g = 0; g < 16; g++) {
        scale[g] = d != 0 ? clamp(nearest(fitted[g] / d), -128, 127) : 0;
        double best = -1;
        const int middle = scale[g];
        for (int s = clamp(middle - 1, -128, 127); d != 0 && s <= clamp(middle + 1, -128, 127); s++) {
            const double e = squared_error(x + 16 * g, 16, d * (float)s, 0, -32, 31);
            if (best < 0 || e < best) best = e, scale[g] = s;
        }
        const float a = d * (float)scale[g];
        for (int i = 0; i < 16; i++) q[16 * g + i] = (uint8_t)((a != 0 ? clamp(nearest(x[16 * g + i] / a), -32, 31) : 0) + 32);
    }
    memset(out, 0, 192);
    for (int half_block = 0; half_block < 2; half_block++)
        for (int quarter = 0; quarter < 4; quarter++)
            for (int p = 0; p < 32; p++) {
                const unsigned v = q[128 * half_block + 32 * quarter + p];
                out[64 * half_block + 32 * (quarter % 2) + p] |= (uint8_t)((v & 15) << quarter / 2 * 4);
                out[128 + 32 * half_block + p] |= (uint8_t)((v >> 4) << 2 * quarter);
            }
    for (int g = 0; g < 16; g++) out[192 + g] = (uint8_t)(int8_t)scale[g];
    put_u16(out + 208, setun_f32_to_f16(d));
}

/* ---- Q4_K: eight groups of 32, w = d scale q - dmin min, scale and min 6 bits, q in 0 .. 15 ---- */

/* x = a q - b, a > 0, b >= 0, least squares from a few starts. */
static void fit_affine(const float *x, float *out_a, float *out_b) {
    float low = 0, high = x[0];
    for (int i = 0; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    *out_a = 0;
    *out_b = -low;
    if (high <= low) return; /* all the same and not above 0: a = 0, b = -x */
    double best = -1;
    for (int start = -4; start <= 6; start++) {
        float a = (high - low) / (15.0f + 0.3f * (float)start), b = -low;
        for (int round = 0; round < 3 && a > 0; round++) {
            const double e = squared_error(x, 32, a, b, 0, 15);
            if (best < 0 || e < best) best = e, *out_a = a, *out_b = b;
            double sq = 0, sqq = 0, sx = 0, sxq = 0;
            for (int i = 0; i < 32; i++) {
                const int q = clamp(nearest((x[i] + b) / a), 0, 15);
                sq += q;
                sqq += (double)q * q;
                sx += x[i];
                sxq += (double)x[i] * q;
            }
            const double determinant = 32 * sqq - sq * sq;
            if (determinant <= 0) break;
            double na = (32 * sxq - sq * sx) / determinant, nb = (na * sq - sx) / 32;
            if (nb < 0) nb = 0, na = sqq > 0 ? sxq / sqq : 0; /* b may not be negative: the best a without it */
            if (!(na > 0)) break;
            a = (float)na;
            b = (float)nb;
        }
    }
}

static void encode_q4_k(const float *x, uint8_t *out) {
    float a[8], b[8], top_a = 0, top_b = 0;
    for (int g = 0; g < 8; g++) {
        fit_affine(x + 32 * g, &a[g], &b[g]);
        top_a = a[g] > top_a ? a[g] : top_a;
        top_b = b[g] > top_b ? b[g] : top_b;
    }
    const float d = half(top_a / 63.0f), dmin = half(top_b / 63.0f);
    int scale[8], min[8], q[256];
    for (int g = 0; g < 8; g++) {
        const int s0 = d != 0 ? clamp(nearest(a[g] / d), 0, 63) : 0, m0 = dmin != 0 ? clamp(nearest(b[g] / dmin), 0, 63) : 0;
        double best = -1;
        scale[g] = s0;
        min[g] = m0;
        for (int s = clamp(s0 - 1, 0, 63); s <= clamp(s0 + 1, 0, 63); s++)
            for (int m = clamp(m0 - 1, 0, 63); m <= clamp(m0 + 1, 0, 63); m++) {
                const double e = squared_error(x + 32 * g, 32, d * (float)s, dmin * (float)m, 0, 15);
                if (best < 0 || e < best) best = e, scale[g] = s, min[g] = m;
            }
        const float step = d * (float)scale[g], offset = dmin * (float)min[g];
        for (int i = 0; i < 32; i++) q[32 * g + i] = step != 0 ? clamp(nearest((x[32 * g + i] + offset) / step), 0, 15) : 0;
    }
    put_u16(out, setun_f32_to_f16(d));
    put_u16(out + 2, setun_f32_to_f16(dmin));
    uint8_t *s = out + 4;
    for (int g = 0; g < 4; g++) {
        s[g] = (uint8_t)(scale[g] | scale[4 + g] >> 4 << 6);
        s[4 + g] = (uint8_t)(min[g] | min[4 + g] >> 4 << 6);
        s[8 + g] = (uint8_t)((scale[4 + g] & 15) | (min[4 + g] & 15) << 4);
    }
    for (int pair = 0; pair < 4; pair++)
        for (int p = 0; p < 32; p++) out[16 + 32 * pair + p] = (uint8_t)(q[64 * pair + p] | q[64 * pair + 32 + p] << 4);
}

/* ---- all of them ---- */

/* The largest magnitude that the format's own f16 scale can reach. */
static float limit_of(setun_format format) {
    switch (format) {
    case SETUN_FORMAT_F16: return 65504.0f;
    case SETUN_FORMAT_BF16: return 3.3895313892515355e38f;
    case SETUN_FORMAT_Q8_0: return 65504.0f * 127;
    case SETUN_FORMAT_Q4_0: return 65504.0f * 8;
    case SETUN_FORMAT_Q4_1: return 65504.0f;
    case SETUN_FORMAT_Q4_K:
    case SETUN_FORMAT_Q6_K: return 65504.0f * 60;
    default: return 3.4028235e38f;
    }
}

setun_status setun_format_encode_dense(setun_format format, const char *name, int64_t rows, int64_t columns, const float *values, uint8_t *out, bool *out_exact, double *out_max_error) {
    name = name ? name : "(unnamed)";
    *out_exact = false;
    *out_max_error = 0;
    if (setun_format_get_kind(format) != SETUN_KIND_DENSE)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': %s is not a dense format; choose f32, f16, bf16, q8_0, q4_0, q4_1, q4_k or q6_k", name, setun_format_name(format));
    uint64_t bytes;
    setun_status status = setun_format_size(format, rows, columns, &bytes);
    if (status) return setun_fail_prefix(status, "tensor '%s'", name);
    const float limit = limit_of(format);
    for (int64_t i = 0; i < rows * columns; i++)
        if (!(fabsf(values[i]) <= limit))
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s', row %lld, column %lld: the value %g cannot be written as %s; f32 holds every finite value",
                name, (long long)(i / columns), (long long)(i % columns), (double)values[i], setun_format_name(format));
    uint8_t *p = out;
    for (int64_t i = 0; i < rows * columns;) {
        const float *x = values + i;
        switch (format) {
        case SETUN_FORMAT_F32: memcpy(p, x, 4), p += 4, i += 1; break;
        case SETUN_FORMAT_F16: put_u16(p, setun_f32_to_f16(*x)), p += 2, i += 1; break;
        case SETUN_FORMAT_BF16: put_u16(p, setun_f32_to_bf16(*x)), p += 2, i += 1; break;
        case SETUN_FORMAT_Q8_0: encode_q8_0(x, p), p += 34, i += 32; break;
        case SETUN_FORMAT_Q4_0: encode_q4_0(x, p), p += 18, i += 32; break;
        case SETUN_FORMAT_Q4_1: encode_q4_1(x, p), p += 20, i += 32; break;
        case SETUN_FORMAT_Q4_K: encode_q4_k(x, p), p += 144, i += 256; break;
        default: encode_q6_k(x, p), p += 210, i += 256; break;
        }
    }
    const setun_weight written = {.name = name, .format = format, .rows = rows, .columns = columns, .data = out, .bytes = bytes};
    float back[SETUN_DECODE_CHUNK];
    double largest = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < columns; first += SETUN_DECODE_CHUNK) {
            const int64_t count = columns - first < SETUN_DECODE_CHUNK ? columns - first : SETUN_DECODE_CHUNK;
            const float *x = values + row * columns + first;
            setun_decode_dense(&written, row, first, count, back);
            for (int64_t i = 0; i < count; i++) {
                const double error = fabs((double)back[i] - (double)x[i]);
                largest = error > largest ? error : largest;
            }
        }
    *out_exact = largest == 0;
    *out_max_error = largest;
    return SETUN_OK;
}
