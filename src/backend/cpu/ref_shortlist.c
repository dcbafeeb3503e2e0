/*
 * ref_shortlist.c - the kernels of the head's small copy in plain C: what the fast ones must compute, bit for bit. kernels.def
 * gives the layout and the order of the arithmetic; docs/architecture.md ("The head") what the numbers are good for.
 * Called through the kernel table. It knows nothing of vocabularies or threads.
 */
#include "backend/cpu/isa.h"
#include "backend/cpu/float_ref.h"
#include "backend/cpu/shortlist.h"

enum { SEGMENT = 512, LANES = 16 };

/* Columns of the segment that begins at `first`: 512, or 256 for a last one. */
static int64_t segment_columns(int64_t k, int64_t first) { return k - first < SEGMENT ? k - first : SEGMENT; }
static int32_t x_at(const int8_t *x, int64_t column) { return 128 * x[column / 64 * 128 + column % 64]; } /* the high limb */
static int32_t x_low_at(const int8_t *x, int64_t column) { return x[column / 64 * 128 + 64 + column % 64]; }
static int pair_at(const uint8_t *row, int64_t column) { return row[column / 256 * 64 + column % 64] >> (column % 256 / 64 * 2) & 3; }
static int bit_at(const uint8_t *row, int64_t column) { return row[column / SEGMENT * 64 + column % 64] >> (column % SEGMENT / 64) & 1; }

/* sum over blocks of scale * (sum of code * x - middle * sum of x). bits: 4 (second: the lower two of them), 2 or 1 */
static float product(int bits, const uint8_t *row, const uint8_t *second, const uint8_t *scales, const int8_t *x, const float *x_sums, int64_t k) {
    float total[LANES] = {0};
    const float middle = bits == 4 ? 7.5f : bits == 2 ? 1.5f : 0.5f;
    for (int64_t first = 0; first < k; first += SEGMENT) {
        int32_t sum[LANES] = {0};
        for (int64_t c = 0; c < segment_columns(k, first); c++) {
            int64_t i = first + c;
            sum[c % 64 / 4] += bits == 4 ? (4 * pair_at(row, i) + pair_at(second, i)) * (x_at(x, i) + x_low_at(x, i)) : (bits == 2 ? pair_at(row, i) : bit_at(row, i)) * x_at(x, i);
        }
        for (int l = 0; l < LANES; l++) {
            int64_t block = first / SEGMENT * LANES + l;
            total[l] = fmaf((float)scales[block], (float)sum[l] - middle * x_sums[block], total[l]);
        }
    }
    return setun_scalar_tree16(total);
}

void setun_ref_shortlist_two(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                             const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < count; i++) {
            const size_t r = (size_t)(rows ? rows[i] : i);
            out[(size_t)t * out_stride + (size_t)i] =
                product(2, plane + r * (size_t)(k / 4), NULL, scales + r * scale_stride, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, k) * x_scale[t] * row_scale[r];
        }
}

void setun_ref_shortlist_high(const uint8_t *first, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums,
                              const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    for (int t = 0; t < tokens; t++)
        for (size_t r = 0; r < (size_t)rows; r++)
            out[(size_t)t * out_stride + r] = product(4, first + r * (size_t)(k / 4), second + r * (size_t)(k / 4), scales + r * scale_stride, x + (size_t)t * 2 * (size_t)k,
                                                      x_sums + (size_t)t * scale_stride, k) * x_scale[t] * row_scale[r];
}

void setun_ref_shortlist_bit(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                             const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < count; i++) {
            const size_t r = (size_t)(rows ? rows[i] : i);
            out[(size_t)t * out_stride + (size_t)i] =
                product(1, plane + r * 4 * scale_stride, NULL, scales + r * scale_stride, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, k) * (factor * x_scale[t]) * row_scale[r];
        }
}

int setun_ref_shortlist_select(const float *scores, const float *errors, const float *norms, int n, float a, float b, float threshold, int32_t *list) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        float most = errors ? fmaf(b, norms[i], fmaf(a, errors[i], scores[i])) : scores[i];
        if (!(most < threshold)) list[count++] = i;
    }
    return count;
}

/* ---- making the planes ---- */

static float round_even(float v) { return (v + 0x1.8p+23f) - 0x1.8p+23f; } /* |v| < 2^22 */

void setun_ref_shortlist_pack(const float *w, int64_t k, int64_t padded, uint8_t *top, uint8_t *second, uint8_t *fifth, uint8_t *sixth, uint8_t *scales, float *numbers) {
    const size_t blocks = (size_t)((padded + SEGMENT - 1) / SEGMENT * LANES);
    memset(top, 0, (size_t)(padded / 4));
    memset(second, 0, (size_t)(padded / 4));
    memset(fifth, 0, 4 * blocks);
    memset(sixth, 0, 4 * blocks);
    float squares[LANES] = {0}, largest = 0.0f;
    for (int64_t i = 0; i < padded; i++) {
        squares[i % LANES] = fmaf(w[i], w[i], squares[i % LANES]);
        largest = setun_scalar_max(fabsf(w[i]), largest);
    }
    float norm = setun_scalar_tree16(squares);
    bool usable = norm >= SETUN_SHORTLIST_LEAST && norm <= SETUN_SHORTLIST_MOST;
    numbers[0] = 0.0f;
    numbers[5] = 0.0f;
    numbers[1] = numbers[2] = numbers[3] = numbers[4] = numbers[6] = largest == 0.0f && norm == 0.0f ? 0.0f : INFINITY;
    if (!usable) {
        memset(scales, 0, blocks);
        return;
    }
    float unit = largest * SETUN_SHORTLIST_UNIT, inverse = SETUN_SHORTLIST_CEILING / unit, error4[LANES] = {0}, error5[LANES] = {0}, error6[LANES] = {0}, dot[LANES] = {0}, squares2[LANES] = {0};
    uint32_t weight = 0;
    for (int64_t first = 0; first < padded; first += SEGMENT) {
        int64_t columns = segment_columns(padded, first);
        for (int l = 0; l < LANES; l++) {
            float most = 0.0f;
            for (int64_t c = 0; c < columns; c++)
                if (c % 64 / 4 == l) most = setun_scalar_max(fabsf(w[first + c]), most);
            int scale = (int)ceilf(most * inverse);
            scales[first / SEGMENT * LANES + l] = (uint8_t)scale;
            weight += (uint32_t)(columns / LANES) * (uint32_t)(scale * scale);
        }
        for (int64_t n = 0; n < columns; n++) {
            /* 16 columns, then those 64 further, within 256: the order in which bytes of four columns are made */
            int64_t c = n / 256 * 256 + n % 64 / 16 * 64 + n % 256 / 64 * 16 + n % 16, i = first + c;
            float step = unit * (float)scales[first / SEGMENT * LANES + c % 64 / 4] * 0.25f, per_step = step > 0.0f ? 1.0f / step : 0.0f;
            float q = round_even(fmaf(w[i], per_step, 31.5f)), h = round_even(fmaf(q, 0.25f, -0.375f)), l = fmaf(h, -4.0f, q), m = round_even(fmaf(l, 0.5f, -0.25f));
            float t = round_even(fmaf(h, 0.25f, -0.375f)), coarse = (t - 1.5f) * (step * 16.0f);
            top[i / 256 * 64 + i % 64] |= (uint8_t)((int)t << (i % 256 / 64 * 2));
            second[i / 256 * 64 + i % 64] |= (uint8_t)((int)fmaf(t, -4.0f, h) << (i % 256 / 64 * 2));
            fifth[i / SEGMENT * 64 + i % 64] |= (uint8_t)((int)m << (i % SEGMENT / 64));
            sixth[i / SEGMENT * 64 + i % 64] |= (uint8_t)(((int)l & 1) << (i % SEGMENT / 64));
            if (i >= k) continue;
            float e4 = fmaf(7.5f - h, step * 4.0f, w[i]), e6 = fmaf(31.5f - q, step, w[i]), e5 = fmaf(l - fmaf(m, 2.0f, 0.5f), step, e6);
            error4[i % LANES] = fmaf(e4, e4, error4[i % LANES]);
            error5[i % LANES] = fmaf(e5, e5, error5[i % LANES]);
            error6[i % LANES] = fmaf(e6, e6, error6[i % LANES]);
            dot[i % LANES] = fmaf(w[i], coarse, dot[i % LANES]);
            squares2[i % LANES] = fmaf(coarse, coarse, squares2[i % LANES]);
        }
    }
    setun_shortlist_bounds(unit, weight, setun_scalar_tree16(error4), setun_scalar_tree16(error5), setun_scalar_tree16(error6), norm, setun_scalar_tree16(dot), setun_scalar_tree16(squares2), numbers);
}
