/*
 * probe.c - what a weight is: reads it all once, validates it, and finds the coarsest scale that is exact.
 * Callers: model (every candidate at load), inspect, convert. Refuses to know what the weight is for.
 *
 * Ternary formats are read at memory speed: codes as words, scales compared as they stand; only where two scales differ is
 * a second pass over the scales needed. Dense formats are read until the first group that is not ternary.
 */
#include "ternary/decode.h"
#include <math.h>

/* ---- codes as words: code 3 is a pair of set bits, code 1 (value 0) a low bit without its high bit ---- */

typedef uint64_t word2 __attribute__((vector_size(16)));
#define WORD2(v) ((word2){(v), (v)})

typedef struct tally {
    word2 bad;      /* bits 0 of code 3; odd bits are noise */
    word2 lanes;    /* zeros, a byte lane each: at most 252 before a flush */
    int pending;
    uint64_t zeros;
} tally;

static inline word2 load_word2(const uint8_t *p) {
    word2 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void tally_flush(tally *t) {
    uint8_t bytes[16];
    memcpy(bytes, &t->lanes, sizeof bytes);
    for (int i = 0; i < 16; i++) t->zeros += bytes[i];
    t->lanes = WORD2(0);
    t->pending = 0;
}

/* 2-bit fields of at most 3 -> bytes of at most 12. */
static inline word2 fold(word2 z) {
    const word2 m4 = WORD2(0x3333333333333333u), m8 = WORD2(0x0f0f0f0f0f0f0f0fu);
    z = (z & m4) + ((z >> 2) & m4);
    return (z & m8) + ((z >> 4) & m8);
}

static inline void tally16(tally *t, const uint8_t *p) {
    const word2 x = load_word2(p), shifted = x >> 1;
    t->bad |= x & shifted;
    t->lanes += fold(x & ~shifted & WORD2(0x5555555555555555u));
    if (++t->pending == 63) tally_flush(t); /* 63 * 4 = 252 */
}

static void tally_bytes(tally *t, const uint8_t *p, int64_t bytes) {
    const word2 low = WORD2(0x5555555555555555u);
    if (bytes >= 48) tally_flush(t);
    while (bytes >= 48) {
        int64_t triples = bytes / 48 < 21 ? bytes / 48 : 21; /* 21 * 12 = 252 */
        bytes -= triples * 48;
        word2 bad = t->bad, lanes = WORD2(0);
        for (; triples > 0; triples--, p += 48) {
            const word2 a = load_word2(p), b = load_word2(p + 16), c = load_word2(p + 32);
            const word2 a1 = a >> 1, b1 = b >> 1, c1 = c >> 1;
            bad |= (a & a1) | (b & b1) | (c & c1);
            lanes += fold((a & ~a1 & low) + (b & ~b1 & low) + (c & ~c1 & low));
        }
        t->bad = bad;
        t->lanes = lanes;
        tally_flush(t);
    }
    for (; bytes >= 16; bytes -= 16, p += 16) tally16(t, p);
    if (bytes > 0) {
        uint8_t tail[16];
        memset(tail, 0, sizeof tail); /* code 0: counts nothing */
        memcpy(tail, p, (size_t)bytes);
        tally16(t, tail);
    }
}

static inline bool tally_bad(const tally *t) {
    const word2 b = t->bad & WORD2(0x5555555555555555u);
    return (b[0] | b[1]) != 0;
}

/* ---- zeros among the trits of a byte: digits that are 1 ---- */

#define DIGIT(b, power) (((((b) * (power)) & 255) * 3) >> 8 == 1)
#define ALL5(b) (DIGIT(b, 1) + DIGIT(b, 3) + DIGIT(b, 9) + DIGIT(b, 27) + DIGIT(b, 81))
#define HIGH4(b) (DIGIT(b, 1) + DIGIT(b, 3) + DIGIT(b, 9) + DIGIT(b, 27)) /* TQ1_0 and PTQ1_0: the last digit is unused */
#define LOW4(b) (DIGIT(b, 81) + DIGIT(b, 27) + DIGIT(b, 9) + DIGIT(b, 3)) /* IQ1_BN's extra byte */
#define ROW4(f, b) f(b), f((b) + 1), f((b) + 2), f((b) + 3)
#define ROW16(f, b) ROW4(f, b), ROW4(f, (b) + 4), ROW4(f, (b) + 8), ROW4(f, (b) + 12)
#define ROW64(f, b) ROW16(f, b), ROW16(f, (b) + 16), ROW16(f, (b) + 32), ROW16(f, (b) + 48)
#define ROW256(f) ROW64(f, 0), ROW64(f, 64), ROW64(f, 128), ROW64(f, 192)
static const uint8_t zeros_all5[256] = {ROW256(ALL5)}, zeros_high4[256] = {ROW256(HIGH4)}, zeros_low4[256] = {ROW256(LOW4)};

static inline unsigned trit_zeros(const uint8_t *p, int five, int four, const uint8_t *table4) {
    unsigned n = 0;
    for (int i = 0; i < five; i++) n += zeros_all5[p[i]];
    for (int i = 0; i < four; i++) n += table4[p[five + i]];
    return n;
}

/* ---- which scales are alike ---- */

static const int group_sizes[4] = {256, 128, 64, 32};

/* Fed the scale of every stored group in order; knows which coarser scales still fit. 0 fits any scale. */
typedef struct tracker {
    bool tensor, row, group[4];
    float tensor_scale, row_scale, group_scale[4];
} tracker;

static void tracker_start(tracker *t, int64_t columns, int base) {
    memset(t, 0, sizeof *t);
    t->tensor = t->row = true;
    for (int i = 0; i < 4; i++) t->group[i] = base > 0 && group_sizes[i] > base && columns % group_sizes[i] == 0;
}

static void tracker_reach(tracker *t, int64_t column) {
    if (column == 0) t->row_scale = 0;
    for (int i = 0; i < 4; i++)
        if (column % group_sizes[i] == 0) t->group_scale[i] = 0;
}

static bool tracker_agrees(const tracker *t, float scale) {
    bool agrees = (!t->tensor || t->tensor_scale == scale) && (!t->row || t->row_scale == scale);
    for (int i = 0; i < 4; i++) agrees = agrees && (!t->group[i] || t->group_scale[i] == scale);
    return agrees;
}

static void merge(bool *alive, float *current, float scale) {
    if (*current == 0) *current = scale;
    else if (*current != scale) *alive = false;
}

static void tracker_add(tracker *t, float scale) {
    if (scale == 0) return;
    merge(&t->tensor, &t->tensor_scale, scale);
    merge(&t->row, &t->row_scale, scale);
    for (int i = 0; i < 4; i++) merge(&t->group[i], &t->group_scale[i], scale);
}

static bool tracker_alive(const tracker *t) { return t->tensor || t->row || t->group[0] || t->group[1] || t->group[2] || t->group[3]; }

static void tracker_result(const tracker *t, int base, setun_ternary_info *out) {
    out->ternary = true;
    if (t->tensor) {
        out->scale = SETUN_SCALE_TENSOR;
        out->tensor_scale = t->tensor_scale;
        return;
    }
    out->scale = t->row ? SETUN_SCALE_ROW : SETUN_SCALE_GROUP;
    if (t->row) return;
    out->group_size = base;
    for (int i = 3; i >= 0; i--)
        if (t->group[i]) out->group_size = group_sizes[i];
}

/* ---- ternary formats ---- */

/* Stored codes of value 0 among `count` columns. */
static int64_t count_zeros(const setun_weight *w, int64_t row, int64_t first, int64_t count) {
    uint8_t codes[SETUN_DECODE_CHUNK];
    int64_t zeros = 0;
    /* A group may start inside a chunk: decode from the chunk's start. */
    for (int64_t at = first / SETUN_DECODE_CHUNK * SETUN_DECODE_CHUNK; at < first + count; at += SETUN_DECODE_CHUNK) {
        const int64_t end = first + count < at + SETUN_DECODE_CHUNK ? first + count : at + SETUN_DECODE_CHUNK;
        setun_decode_codes(w, row, at, end - at, codes);
        for (int64_t i = first > at ? first - at : 0; i < end - at; i++) zeros += codes[i] == 1;
    }
    return zeros;
}

static setun_status find_code3(const setun_weight *w) {
    uint8_t codes[SETUN_DECODE_CHUNK];
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t first = 0; first < w->columns; first += SETUN_DECODE_CHUNK) {
            const int64_t count = w->columns - first < SETUN_DECODE_CHUNK ? w->columns - first : SETUN_DECODE_CHUNK;
            setun_decode_codes(w, row, first, count, codes);
            for (int64_t i = 0; i < count; i++)
                if (codes[i] == 3) return setun_decode_code3(w, row, first + i);
        }
    return setun_decode_code3(w, 0, 0); /* only if the bytes changed meanwhile */
}

typedef struct scales_seen {
    bool any, uniform;
    float first;        /* the one scale, while uniform */
    uint64_t extra;     /* weights under a zero scale whose code is not 0's */
} scales_seen;

/* A scale that is not, bit for bit, the one before. */
static setun_status see_scale(const setun_weight *w, scales_seen *seen, int64_t row, int64_t column, int64_t count, float scale) {
    SETUN_TRY(setun_decode_check_scale(w, row, column, scale));
    if (scale == 0) {
        seen->extra += (uint64_t)(count - count_zeros(w, row, column, count));
        return SETUN_OK;
    }
    const float positive = fabsf(scale);
    if (!seen->uniform || (seen->any && positive == seen->first)) return SETUN_OK;
    if (count_zeros(w, row, column, count) == count) return SETUN_OK; /* all zeros: any scale fits */
    if (seen->any) seen->uniform = false;
    seen->first = positive;
    seen->any = true;
    return SETUN_OK;
}

/* Every block: stride bytes, an f16 scale, and either two-bit codes or trits (five + four bytes). Always inlined with constants. */
static inline __attribute__((always_inline)) setun_status scan_blocks(const setun_weight *w, scales_seen *seen, tally *t,
    int group, int stride, int scale_at, int codes_at, int code_bytes, int five, int four) {
    const int64_t per_row = w->columns / group;
    const uint8_t *p = w->data;
    uint32_t last = 0x10000; /* no f16 */
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t g = 0; g < per_row; g++, p += stride) {
            const uint32_t bits = setun_load_u16(p + scale_at);
            if (bits != last || bits << 17 >> 17 == 0) {
                const float scale = setun_f16_to_f32((uint16_t)bits);
                SETUN_TRY(see_scale(w, seen, row, g * group, group, scale));
                /* Not a scale that stood over zeros alone: it must be looked at again where it matters. */
                if (!seen->uniform || (seen->any && fabsf(scale) == seen->first)) last = bits;
            }
            for (int i = 0; i < code_bytes; i += 16) tally16(t, p + codes_at + i);
            t->zeros += trit_zeros(p + codes_at, five, four, zeros_high4);
        }
    return SETUN_OK;
}

static setun_status scan_rows(const setun_weight *w, scales_seen *seen, tally *t) {
    const bool one = w->format == SETUN_FORMAT_IQ1_BN;
    const int64_t blocks = w->columns / 64, stride = one ? blocks * 13 + 2 : w->columns / 4 + 4;
    for (int64_t row = 0; row < w->rows; row++) {
        const uint8_t *p = w->data + row * stride;
        SETUN_TRY(see_scale(w, seen, row, 0, w->columns, setun_decode_scale(w, row, 0)));
        if (!one) tally_bytes(t, p + 4, w->columns / 4);
        else
            for (int64_t b = 0; b < blocks; b++) t->zeros += trit_zeros(p + 2 + 13 * b, 12, 1, zeros_low4);
    }
    return SETUN_OK;
}

/* Group scales differ somewhere: which coarser ones are exact? Reads scales, and codes only where an all-zero group matters. */
static void track_scales(const setun_weight *w, int base, setun_ternary_info *out) {
    tracker t;
    tracker_start(&t, w->columns, base);
    const int64_t step = base ? base : w->columns;
    for (int64_t row = 0; row < w->rows && tracker_alive(&t); row++)
        for (int64_t column = 0; column < w->columns && tracker_alive(&t); column += step) {
            const float scale = fabsf(setun_decode_scale(w, row, column / step));
            tracker_reach(&t, column);
            if (scale == 0 || tracker_agrees(&t, scale) || count_zeros(w, row, column, step) == step) continue;
            tracker_add(&t, scale);
        }
    tracker_result(&t, base, out);
}

/* MLX groups whose bias is not -scale, or with code 3, may still hold three values: look at the values. */
static setun_status probe_mlx_values(const setun_weight *w, setun_ternary_info *out) {
    tracker t;
    uint8_t codes[SETUN_DECODE_CHUNK];
    const int base = w->group_size;
    tracker_start(&t, w->columns, base);
    out->zeros = 0;
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t column = 0; column < w->columns; column += base) {
            float scale;
            bool ternary;
            setun_decode_codes(w, row, column, base, codes);
            SETUN_TRY(setun_decode_settle(w, row, column, base, codes, &scale, &ternary));
            if (!ternary) {
                out->zeros = 0;
                return SETUN_OK;
            }
            for (int i = 0; i < base; i++) out->zeros += codes[i] == 1;
            tracker_reach(&t, column);
            tracker_add(&t, scale);
        }
    tracker_result(&t, base, out);
    return SETUN_OK;
}

/* Trits: triples are checked word by word; only counting zeros needs the codes. */
static setun_status scan_trits(const setun_weight *w, scales_seen *seen, bool zeros, tally *t) {
    const int64_t triple_bytes = setun_trits_triple_bytes(w->columns);
    for (int64_t row = 0; row < w->rows; row += 3)
        if (!setun_trits_valid(w->data + row / 3 * triple_bytes, w->columns)) return find_code3(w);
    for (int64_t row = 0; row < w->rows; row++) {
        SETUN_TRY(see_scale(w, seen, row, 0, w->columns, setun_decode_scale(w, row, 0)));
        if (zeros) t->zeros += (uint64_t)count_zeros(w, row, 0, w->columns);
    }
    return SETUN_OK;
}

/* The coarsest scale that is exact, from what was seen of them all. */
static void settle(const setun_weight *w, const scales_seen *seen, int base, setun_ternary_info *out) {
    out->ternary = true;
    out->scale = SETUN_SCALE_TENSOR;
    out->tensor_scale = seen->first;
    if (!seen->uniform) {
        out->tensor_scale = 0;
        track_scales(w, base, out);
    }
}

static setun_status probe_ternary(const setun_weight *w, bool zeros, setun_ternary_info *out) {
    tally t = {WORD2(0), WORD2(0), 0, 0};
    scales_seen seen = {false, true, 0, 0};
    const int64_t weights = w->rows * w->columns;
    int base = setun_decode_group(w);
    switch (w->format) {
    case SETUN_FORMAT_TQ2_0: SETUN_TRY(scan_blocks(w, &seen, &t, 256, 66, 64, 0, 64, 0, 0)); break;
    case SETUN_FORMAT_TQ1_0: SETUN_TRY(scan_blocks(w, &seen, &t, 256, 54, 52, 0, 0, 48, 4)); break;
    case SETUN_FORMAT_Q2_0: SETUN_TRY(scan_blocks(w, &seen, &t, 64, 18, 0, 2, 16, 0, 0)); break;
    case SETUN_FORMAT_PQ2_0: SETUN_TRY(scan_blocks(w, &seen, &t, 128, 34, 0, 2, 32, 0, 0)); break;
    case SETUN_FORMAT_PTQ1_0: SETUN_TRY(scan_blocks(w, &seen, &t, 128, 28, 26, 0, 0, 24, 2)); break;
    case SETUN_FORMAT_IQ1_BN:
    case SETUN_FORMAT_IQ2_BN: SETUN_TRY(scan_rows(w, &seen, &t)); break;
    case SETUN_FORMAT_TRITS: SETUN_TRY(scan_trits(w, &seen, zeros, &t)); break;
    case SETUN_FORMAT_MLX_2BIT:
        tally_bytes(&t, w->data, weights / 4);
        if (tally_bad(&t)) return probe_mlx_values(w, out);
        for (int64_t row = 0; row < w->rows; row++)
            for (int64_t g = 0; g < w->columns / base; g++) {
                const float scale = setun_decode_scale(w, row, g);
                if (!(setun_decode_bias(w, row, g) == -scale)) return probe_mlx_values(w, out);
                SETUN_TRY(see_scale(w, &seen, row, g * base, base, scale));
            }
        break;
    default: { /* one scale a tensor: I2_S in its layouts, HF */
        const float scale = setun_decode_scale(w, 0, 0);
        SETUN_TRY(setun_decode_check_scale(w, 0, 0, scale));
        tally_bytes(&t, w->data, weights / 4);
        seen.first = scale;
    }
    }
    tally_flush(&t);
    if (tally_bad(&t)) return find_code3(w);
    out->zeros = t.zeros + seen.extra;
    if (w->format != SETUN_FORMAT_MLX_2BIT && base == 0 && seen.first == 0) out->zeros = (uint64_t)weights;
    settle(w, &seen, base, out);
    return SETUN_OK;
}

/* ---- dense formats: a span of at most 32 values that shares a scale ---- */

typedef struct span {
    bool ternary, finite;
    float scale;
    int zeros;
} span;

static inline span span_u32(const uint8_t *p, int n) {
    uint32_t a[32], largest = 0, odd = 0;
    int zeros = 0;
    for (int i = 0; i < n; i++) {
        a[i] = setun_load_u32(p + 4 * i) & 0x7fffffffu;
        largest = a[i] > largest ? a[i] : largest;
    }
    for (int i = 0; i < n; i++) {
        odd |= (uint32_t)((a[i] != 0) & (a[i] != largest));
        zeros += a[i] == 0;
    }
    float scale;
    memcpy(&scale, &largest, sizeof scale);
    return (span){!odd, largest < 0x7f800000u, scale, zeros};
}

static inline span span_u16(const uint8_t *p, int n, bool half) {
    uint16_t a[32], largest = 0, odd = 0;
    int zeros = 0;
    for (int i = 0; i < n; i++) {
        a[i] = setun_load_u16(p + 2 * i) & 0x7fff;
        largest = a[i] > largest ? a[i] : largest;
    }
    for (int i = 0; i < n; i++) {
        odd |= (uint16_t)((a[i] != 0) & (a[i] != largest));
        zeros += a[i] == 0;
    }
    return half ? (span){!odd, largest < 0x7c00, setun_f16_to_f32(largest), zeros} : (span){!odd, largest < 0x7f80, setun_bf16_to_f32(largest), zeros};
}

/* Magnitudes |q| of a block whose scale is d. */
static inline span span_magnitudes(const uint8_t a[32], float d) {
    uint8_t largest = 0, odd = 0;
    int zeros = 0;
    for (int i = 0; i < 32; i++) largest = a[i] > largest ? a[i] : largest;
    for (int i = 0; i < 32; i++) {
        odd |= (uint8_t)((a[i] != 0) & (a[i] != largest));
        zeros += a[i] == 0;
    }
    const float scale = fabsf(d) * (float)largest;
    if (scale == 0) return (span){true, true, 0, 32};
    return (span){!odd, isfinite(d), scale, zeros};
}

static span span_q8_0(const uint8_t *p) {
    uint8_t a[32];
    for (int i = 0; i < 32; i++) {
        const int q = (int8_t)p[2 + i];
        a[i] = (uint8_t)(q < 0 ? -q : q);
    }
    return span_magnitudes(a, setun_f16_to_f32(setun_load_u16(p)));
}

static span span_q4_0(const uint8_t *p) {
    uint8_t a[32];
    for (int i = 0; i < 16; i++) {
        const int low = (p[2 + i] & 15) - 8, high = (p[2 + i] >> 4) - 8;
        a[i] = (uint8_t)(low < 0 ? -low : low);
        a[16 + i] = (uint8_t)(high < 0 ? -high : high);
    }
    return span_magnitudes(a, setun_f16_to_f32(setun_load_u16(p)));
}

static span dense_span(const setun_weight *w, int64_t row, int64_t column, int n, const float *values) {
    const int64_t at = row * w->columns + column;
    switch (w->format) {
    case SETUN_FORMAT_F32: return n == 32 ? span_u32(w->data + 4 * at, 32) : span_u32(w->data + 4 * at, n);
    case SETUN_FORMAT_F16: return n == 32 ? span_u16(w->data + 2 * at, 32, true) : span_u16(w->data + 2 * at, n, true);
    case SETUN_FORMAT_BF16: return n == 32 ? span_u16(w->data + 2 * at, 32, false) : span_u16(w->data + 2 * at, n, false);
    case SETUN_FORMAT_Q8_0: return span_q8_0(w->data + at / 32 * 34);
    case SETUN_FORMAT_Q4_0: return span_q4_0(w->data + at / 32 * 18);
    default: return span_u32((const uint8_t *)(values + column % SETUN_DECODE_CHUNK), n);
    }
}

static setun_status not_finite(const setun_weight *w, int64_t row, int64_t first, int64_t count) {
    float values[SETUN_DECODE_CHUNK];
    const int64_t chunk = first / SETUN_DECODE_CHUNK * SETUN_DECODE_CHUNK;
    setun_decode_dense(w, row, chunk, first + count - chunk, values);
    int64_t i = first - chunk;
    while (i + 1 < first + count - chunk && isfinite(values[i])) i++;
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: the value of this %s weight is %g: the file is corrupt",
        setun_weight_label(w), (long long)row, (long long)(chunk + i), setun_format_name(w->format), (double)values[i]);
}

static setun_status probe_dense(const setun_weight *w, setun_ternary_info *out) {
    const bool by_value = w->format == SETUN_FORMAT_Q4_1 || w->format == SETUN_FORMAT_Q4_K || w->format == SETUN_FORMAT_Q6_K;
    const int base = w->columns % 32 == 0 ? 32 : 0;
    float values[SETUN_DECODE_CHUNK];
    uint64_t zeros = 0;
    tracker t;
    tracker_start(&t, w->columns, base);
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t column = 0; column < w->columns; column += 32) {
            const int n = w->columns - column < 32 ? (int)(w->columns - column) : 32;
            if (by_value && column % SETUN_DECODE_CHUNK == 0)
                setun_decode_dense(w, row, column, w->columns - column < SETUN_DECODE_CHUNK ? w->columns - column : SETUN_DECODE_CHUNK, values);
            const span s = dense_span(w, row, column, n, values);
            if (!s.finite) return not_finite(w, row, column, n);
            if (!s.ternary) return SETUN_OK;
            zeros += (uint64_t)s.zeros;
            tracker_reach(&t, column);
            if (s.scale != 0 && !tracker_agrees(&t, s.scale)) tracker_add(&t, s.scale);
            if (base == 0 && !t.tensor && !t.row) return SETUN_OK;
        }
    tracker_result(&t, base, out);
    out->zeros = zeros;
    return SETUN_OK;
}

static setun_status probe_absmean(const setun_weight *w, setun_ternary_info *out) {
    float values[SETUN_DECODE_CHUNK];
    uint8_t codes[SETUN_DECODE_CHUNK];
    setun_absmean_sum sum = {{0}, 0};
    float scale = 1;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t row = 0; row < w->rows; row++)
            for (int64_t column = 0; column < w->columns; column += SETUN_DECODE_CHUNK) {
                const int64_t count = w->columns - column < SETUN_DECODE_CHUNK ? w->columns - column : SETUN_DECODE_CHUNK;
                setun_decode_dense(w, row, column, count, values);
                if (pass == 0) {
                    for (int64_t i = 0; i < count; i++)
                        if (!isfinite(values[i])) return not_finite(w, row, column, count);
                    setun_absmean_add(&sum, values, count);
                    continue;
                }
                setun_absmean_codes(values, count, scale, codes);
                for (int64_t i = 0; i < count; i++) out->zeros += codes[i] == 1;
            }
        scale = setun_absmean_scale(&sum);
    }
    out->ternary = true;
    out->scale = SETUN_SCALE_TENSOR;
    out->tensor_scale = scale;
    return SETUN_OK;
}

static setun_status probe(const setun_weight *w, bool zeros, setun_ternary_info *out) {
    memset(out, 0, sizeof *out);
    SETUN_TRY(setun_weight_check(w));
    setun_ternary_info info;
    memset(&info, 0, sizeof info);
    const bool dense = setun_format_get_kind(w->format) == SETUN_KIND_DENSE;
    SETUN_TRY(!dense ? probe_ternary(w, zeros, &info) : w->absmean ? probe_absmean(w, &info) : probe_dense(w, &info));
    *out = info;
    return SETUN_OK;
}

setun_status setun_ternary_probe(const setun_weight *w, setun_ternary_info *out) { return probe(w, true, out); }
setun_status setun_ternary_probe_quick(const setun_weight *w, setun_ternary_info *out) { return probe(w, false, out); }

setun_status setun_ternary_probe_late(const setun_weight *w, setun_ternary_info *out) {
    memset(out, 0, sizeof *out);
    if ((w->format != SETUN_FORMAT_I2_S && w->format != SETUN_FORMAT_TRITS) || w->absmean) return SETUN_ERROR_UNSUPPORTED;
    SETUN_TRY(setun_weight_check(w));
    scales_seen seen = {false, true, 0, 0};
    if (w->format == SETUN_FORMAT_I2_S) {
        seen.first = setun_decode_scale(w, 0, 0);
        SETUN_TRY(setun_decode_check_scale(w, 0, 0, seen.first));
    }
    for (int64_t row = 0; row < w->rows && w->format == SETUN_FORMAT_TRITS; row++) SETUN_TRY(see_scale(w, &seen, row, 0, w->columns, setun_decode_scale(w, row, 0)));
    settle(w, &seen, setun_decode_group(w), out);
    return SETUN_OK;
}

bool setun_has_code3(const uint8_t *codes, size_t bytes) {
    word2 bad[4] = {WORD2(0), WORD2(0), WORD2(0), WORD2(0)};
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64)
        for (int j = 0; j < 4; j++) {
            const word2 x = load_word2(codes + i + 16 * j);
            bad[j] |= x & (x >> 1);
        }
    const word2 all = ((bad[0] | bad[1]) | (bad[2] | bad[3])) & WORD2(0x5555555555555555u);
    uint8_t last = 0;
    for (; i < bytes; i++) last |= codes[i] & codes[i] >> 1 & 0x55;
    return (all[0] | all[1] | last) != 0;
}
