/*
 * neon_shortlist.c - the kernels of the head's small copy for NEON. Called through table_neon.c; ref_shortlist.c says what they compute, bit for
 * bit.
 *
 * 16 columns have four of the segment's 16 blocks: the quarters of a segment are summed one after the other. smull and addp leave
 * the sums of two columns in 16-bit lanes, at most 8 * 2 * 15 * 128 = 30720 < 32768 over a segment, before saddlp widens them.
 */
#if defined(__aarch64__)
#define SIMD16_ISA neon
#define SIMD16_NEON 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/shortlist_pack.inc"

INLINE int16x8_t add_products(int16x8_t sum, int8x16_t codes, const int8_t *x) {
    int8x16_t v = vld1q_s8(x);
    return vaddq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(v)), vmull_high_s8(codes, v)));
}

/* One row of the planes, one token: bits 4 (row has the upper two, second the others), 2 or 1. */
INLINE float one_row(const int bits, const uint8_t *row, const uint8_t *second, const uint8_t *scales, const int8_t *x, const float *x_sums, int64_t k) {
    const uint8x16_t mask = vdupq_n_u8(bits == 1 ? 1 : 3);
    const int field_bits = bits == 1 ? 1 : 2;
    lanes total = lanes_zero();
    for (int64_t first = 0, block = 0; first < k; first += 512, block += 16)
        for (int quarter = 0; quarter < 4; quarter++) {
            int16x8_t high = vdupq_n_s16(0), low = high;
            for (int64_t c = first; c < k && c < first + 512; c += bits == 1 ? 512 : 256) {
                const int64_t byte = (bits == 1 ? c / 8 : c / 4) + 16 * quarter;
                uint8x16_t packed = vld1q_u8(row + byte), lower = bits == 4 ? vld1q_u8(second + byte) : packed;
                const int8_t *at = x + 2 * c + 16 * quarter;
                for (int field = 0; field < 8 / field_bits && c + 64 * field < k; field++, at += 128) {
                    uint8x16_t code = vandq_u8(packed, mask);
                    if (bits == 4) {
                        code = vorrq_u8(vshlq_n_u8(code, 2), vandq_u8(lower, mask));
                        lower = vshrq_n_u8(lower, 2);
                    }
                    high = add_products(high, vreinterpretq_s8_u8(code), at);
                    if (bits == 4) low = add_products(low, vreinterpretq_s8_u8(code), at + 64);
                    packed = vshlq_u8(packed, vdupq_n_s8((int8_t)-field_bits));
                }
            }
            int32x4_t sum = vaddq_s32(vshlq_n_s32(vpaddlq_s16(high), 7), vpaddlq_s16(low));
            float32x4_t value = vsubq_f32(vcvtq_f32_s32(sum), vmulq_n_f32(vld1q_f32(x_sums + block + 4 * quarter), bits == 4 ? 7.5f : bits == 2 ? 1.5f : 0.5f));
            const uint8_t *s = scales + block + 4 * quarter;
            float four[4] = {(float)s[0], (float)s[1], (float)s[2], (float)s[3]};
            total.p[quarter] = vfmaq_f32(total.p[quarter], vld1q_f32(four), value);
        }
    return lanes_sum(total);
}

/* Rows of a list or one after another. factor 1 changes no bit of x_scale. */
INLINE void scores(const int bits, const uint8_t *plane, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x,
                   const float *x_sums, const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    const size_t row_bytes = bits == 1 ? 4 * scale_stride : (size_t)(k / 4);
    for (int i = 0; i < count; i++) {
        const size_t r = (size_t)(rows ? rows[i] : i);
        for (int t = 0; t < tokens; t++)
            out[(size_t)t * out_stride + (size_t)i] = one_row(bits, plane + r * row_bytes, bits == 4 ? second + r * row_bytes : NULL, scales + r * scale_stride, x + (size_t)t * 2 * (size_t)k,
                                                              x_sums + (size_t)t * scale_stride, k) * (factor * x_scale[t]) * row_scale[r];
    }
}

void setun_neon_shortlist_two(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                              const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(2, plane, NULL, scales, scale_stride, row_scale, rows, count, x, x_sums, x_scale, 1.0f, tokens, k, out, out_stride);
}

void setun_neon_shortlist_high(const uint8_t *first, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums,
                               const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(4, first, second, scales, scale_stride, row_scale, NULL, rows, x, x_sums, x_scale, 1.0f, tokens, k, out, out_stride);
}

void setun_neon_shortlist_bit(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                              const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(1, plane, NULL, scales, scale_stride, row_scale, rows, count, x, x_sums, x_scale, factor, tokens, k, out, out_stride);
}
#else
typedef int setun_neon_shortlist_is_empty; /* C wants a declaration */
#endif
