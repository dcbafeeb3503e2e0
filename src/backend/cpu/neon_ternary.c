/*
 * neon_ternary.c - ternary kernels for every aarch64 CPU. Called through table_neon.c; ref_ternary.c says what they
 * compute, bit for bit. neon_dotprod_ternary.c replaces ternary_i8 where the CPU has SDOT.
 */
#include "backend/cpu/float_ref.h"
#include "backend/cpu/isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- ternary_i8 ----
 * SMLAL adds code * x, |product| <= 2 * 128 = 256, to an int16 lane: 127 of them fit (127 * 256 = 32512 < 32768). A block of 128 columns puts
 * eight on each of a row's two accumulators, so FLUSH_BLOCKS = 15 blocks are 120. SADALP then adds pairs of lanes into int32.
 */
enum { FLUSH_BLOCKS = 15, TILE_ROWS = 4, TILE_TOKENS = 2 };

INLINE int8x16_t field(uint8x16_t packed, int j) { /* codes of bits 7-6 (j = 0), 5-4, 3-2, 1-0 */
    const uint8x16_t three = vdupq_n_u8(3);
    switch (j) {
    case 0: return vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
    case 1: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 4), three));
    case 2: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 2), three));
    default: return vreinterpretq_s8_u8(vandq_u8(packed, three));
    }
}

/* Four rows x T tokens over the whole of k. valid: rows that are there (row[] repeats the last one). */
INLINE void tile(int T, const uint8_t *const *row, const int8_t *x, size_t x_stride, int blocks, int32_t *sums, size_t out_stride, int valid) {
    int32x4_t wide[TILE_ROWS][TILE_TOKENS];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int t = 0; t < T; t++) wide[r][t] = vdupq_n_s32(0);
    for (int b = 0; b < blocks;) {
        int last = blocks - b < FLUSH_BLOCKS ? blocks : b + FLUSH_BLOCKS;
        int16x8_t narrow[TILE_ROWS][TILE_TOKENS][2];
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < T; t++) narrow[r][t][0] = narrow[r][t][1] = vdupq_n_s16(0);
        for (; b < last; b++) {
            for (int h = 0; h < 2; h++) {
                uint8x16_t packed[TILE_ROWS];
                for (int r = 0; r < TILE_ROWS; r++) packed[r] = vld1q_u8(row[r] + 32 * (size_t)b + 16 * h);
#define FIELD(j) \
                for (int t = 0; t < T; t++) { \
                    int8x16_t xt = vld1q_s8(x + (size_t)t * x_stride + 128 * (size_t)b + 32 * (j) + 16 * h); \
                    for (int r = 0; r < TILE_ROWS; r++) { \
                        int8x16_t code = field(packed[r], j); \
                        narrow[r][t][0] = vmlal_s8(narrow[r][t][0], vget_low_s8(code), vget_low_s8(xt)); \
                        narrow[r][t][1] = vmlal_high_s8(narrow[r][t][1], code, xt); \
                    } \
                }
                FIELD(0) FIELD(1) FIELD(2) FIELD(3)
#undef FIELD
            }
        }
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < T; t++) wide[r][t] = vpadalq_s16(vpadalq_s16(wide[r][t], narrow[r][t][0]), narrow[r][t][1]);
    }
    for (int t = 0; t < T; t++) {
        int32_t lane[4];
        vst1q_s32(lane, vpaddq_s32(vpaddq_s32(wide[0][t], wide[1][t]), vpaddq_s32(wide[2][t], wide[3][t])));
        for (int i = 0; i < valid; i++) sums[(size_t)t * out_stride + (size_t)i] = lane[i];
    }
}

void setun_neon_ternary_i8(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    int blocks = (int)((k + 127) / 128);
    for (int r = 0; r < rows; r += TILE_ROWS) {
        int valid = rows - r < TILE_ROWS ? rows - r : TILE_ROWS, t = 0;
        const uint8_t *row[TILE_ROWS];
        for (int i = 0; i < TILE_ROWS; i++) row[i] = codes + (size_t)(r + (i < valid ? i : valid - 1)) * row_bytes;
        for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS) tile(TILE_TOKENS, row, x + (size_t)t * x_stride, x_stride, blocks, sums + (size_t)t * out_stride + r, out_stride, valid);
        if (t < tokens) tile(1, row, x + (size_t)t * x_stride, x_stride, blocks, sums + (size_t)t * out_stride + r, out_stride, valid);
    }
}

/* ---- ternary_f32 ----
 * The 16 lanes of kernels.h are four vectors. -1, 0, 1 as f32 have their bits in the upper half only, so two byte tables
 * (sign and exponent; the exponent's last bit) make bf16 values, which a shift by 16 widens.
 */
enum { F32_ROWS = 2, F32_TOKENS = 2 };

typedef struct lanes16 { float32x4_t v[4]; } lanes16;
typedef struct f32_tile { lanes16 sum[F32_ROWS][F32_TOKENS], total[F32_ROWS][F32_TOKENS]; } f32_tile; /* the running group, the groups before */

INLINE lanes16 zero16(void) {
    lanes16 z;
    for (int i = 0; i < 4; i++) z.v[i] = vdupq_n_f32(0);
    return z;
}

INLINE lanes16 values16(int8x16_t code) {
    const uint8x16_t upper = {0xbf, 0, 0x3f}, lower = {0x80, 0, 0x80};
    uint8x16_t high = vqtbl1q_u8(upper, vreinterpretq_u8_s8(code)), low = vqtbl1q_u8(lower, vreinterpretq_u8_s8(code));
    uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(low, high)), b = vreinterpretq_u16_u8(vzip2q_u8(low, high));
    lanes16 w;
    w.v[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(a), 16));
    w.v[1] = vreinterpretq_f32_u32(vshll_high_n_u16(a, 16));
    w.v[2] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16));
    w.v[3] = vreinterpretq_f32_u32(vshll_high_n_u16(b, 16));
    return w;
}

/* Ends a group: total += scale * sum. */
INLINE void f32_end_group(int T, f32_tile *tile, const float *const *scales, int64_t index) {
    for (int r = 0; r < F32_ROWS; r++) {
        float32x4_t scale = vdupq_n_f32(scales[r][index]);
        for (int t = 0; t < T; t++) {
            for (int i = 0; i < 4; i++) tile->total[r][t].v[i] = vfmaq_f32(tile->total[r][t].v[i], scale, tile->sum[r][t].v[i]);
            tile->sum[r][t] = zero16();
        }
    }
}

/* 128 columns from `first` on, of which `columns` are there; x holds all 128 (zeros where there is no column: adding 0 * 0 leaves any sum as it is). */
INLINE void f32_block(int T, int group, f32_tile *tile, const uint8_t *const *row, const float *x, size_t x_stride, int64_t first, int columns, const float *const *scales) {
    uint8x16_t packed[F32_ROWS][2];
    for (int r = 0; r < F32_ROWS; r++)
        for (int h = 0; h < 2; h++) packed[r][h] = vld1q_u8(row[r] + first / 4 + 16 * h);
    for (int j = 0; j < 4 && 32 * j < columns; j++) {
        for (int h = 0; h < 2; h++) {
            lanes16 w[F32_ROWS];
            for (int r = 0; r < F32_ROWS; r++) w[r] = values16(field(packed[r][h], j));
            for (int t = 0; t < T; t++)
                for (int i = 0; i < 4; i++) {
                    float32x4_t xt = vld1q_f32(x + (size_t)t * x_stride + 32 * j + 16 * h + 4 * i);
                    for (int r = 0; r < F32_ROWS; r++) tile->sum[r][t].v[i] = vfmaq_f32(tile->sum[r][t].v[i], w[r].v[i], xt);
                }
        }
        int64_t end = first + 32 * j + 32; /* of these 32 columns; a group ends with its last column or with the row's */
        if (group && (end % group == 0 || (columns < 128 && 32 * j + 32 >= columns))) f32_end_group(T, tile, scales, (end - 1) / group);
    }
}

INLINE float add_lanes(const lanes16 *s) {
    float32x4_t a = vaddq_f32(vaddq_f32(s->v[0], s->v[2]), vaddq_f32(s->v[1], s->v[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return setun_scalar_canonical(vget_lane_f32(b, 0) + vget_lane_f32(b, 1));
}

INLINE void f32_run(int T, int group, const uint8_t *const *row, const float *x, size_t x_stride, int64_t k, const float *const *scales, float *out, size_t out_stride, int valid) {
    f32_tile tile;
    for (int r = 0; r < F32_ROWS; r++)
        for (int t = 0; t < T; t++) tile.sum[r][t] = tile.total[r][t] = zero16();
    int64_t first = 0;
    for (; first + 128 <= k; first += 128) f32_block(T, group, &tile, row, x + first, x_stride, first, 128, scales);
    if (first < k) {
        float rest[F32_TOKENS][128];
        memset(rest, 0, sizeof rest);
        for (int t = 0; t < T; t++) memcpy(rest[t], x + (size_t)t * x_stride + first, (size_t)(k - first) * sizeof(float));
        f32_block(T, group, &tile, row, rest[0], 128, first, (int)(k - first), scales);
    } else if (group == 256 && k % 256) {
        f32_end_group(T, &tile, scales, k / 256);
    }
    for (int r = 0; r < valid; r++)
        for (int t = 0; t < T; t++) out[(size_t)t * out_stride + (size_t)r] = add_lanes(group ? &tile.total[r][t] : &tile.sum[r][t]);
}

INLINE void f32_rows(int group, const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, float *out, size_t out_stride) {
    for (int r = 0; r < rows; r += F32_ROWS) {
        int valid = rows - r < F32_ROWS ? rows - r : F32_ROWS, t = 0;
        const uint8_t *row[F32_ROWS];
        const float *scale[F32_ROWS];
        for (int i = 0; i < F32_ROWS; i++) {
            size_t at = (size_t)(r + (i < valid ? i : valid - 1));
            row[i] = codes + at * row_bytes;
            scale[i] = group ? scales + at * scales_stride : NULL;
        }
        for (; t + F32_TOKENS <= tokens; t += F32_TOKENS) f32_run(F32_TOKENS, group, row, x + (size_t)t * x_stride, x_stride, k, scale, out + (size_t)t * out_stride + r, out_stride, valid);
        if (t < tokens) f32_run(1, group, row, x + (size_t)t * x_stride, x_stride, k, scale, out + (size_t)t * out_stride + r, out_stride, valid);
    }
}

void setun_neon_ternary_f32(const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, int group, float *out, size_t out_stride) {
    switch (group) {
#define CASE(label, group) label: f32_rows(group, codes, row_bytes, rows, x, x_stride, tokens, k, scales, scales_stride, out, out_stride); break;
    CASE(default, 0) CASE(case 32, 32) CASE(case 64, 64) CASE(case 128, 128) CASE(case 256, 256)
#undef CASE
    }
}

/* ---- scale_sums, quantize_i8 ---- */

void setun_neon_scale_sums(const int32_t *sums, int n, int32_t x_sum, float x_scale, const float *scales, float tensor_scale, float *out) {
    int32x4_t less = vdupq_n_s32(x_sum);
    float32x4_t factor = vdupq_n_f32(x_scale * tensor_scale), nan = vdupq_n_f32(setun_bits_float(SETUN_NAN_BITS));
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        if (scales) factor = vmulq_f32(vdupq_n_f32(x_scale), vld1q_f32(scales + i));
        float32x4_t y = vmulq_f32(vcvtq_f32_s32(vsubq_s32(vld1q_s32(sums + i), less)), factor);
        vst1q_f32(out + i, vbslq_f32(vceqq_f32(y, y), y, nan));
    }
    for (; i < n; i++) {
        float scale = x_scale * (scales ? scales[i] : tensor_scale);
        out[i] = setun_scalar_canonical((float)(int32_t)((uint32_t)sums[i] - (uint32_t)x_sum) * scale);
    }
}

/* FMAXNM and FMINNM give the number when the other operand is a NaN, as ref does. */
INLINE int32x4_t quantize4(float32x4_t x, float32x4_t factor) {
    float32x4_t v = vmaxnmq_f32(vmulq_f32(x, factor), vdupq_n_f32(-128.0f));
    return vcvtnq_s32_f32(vminnmq_f32(v, vdupq_n_f32(127.0f)));
}

void setun_neon_quantize_i8(const float *x, int64_t k, int64_t k_padded, int8_t *q, float *scale, int32_t *sum) {
    float32x4_t most4 = vdupq_n_f32(0);
    int64_t i = 0, whole = k - k % 4;
    float rest[4] = {0};
    if (k % 4) memcpy(rest, x + whole, (size_t)(k % 4) * sizeof(float));
    for (; i < whole; i += 4) most4 = vmaxnmq_f32(most4, vabsq_f32(vld1q_f32(x + i)));
    most4 = vmaxnmq_f32(most4, vabsq_f32(vld1q_f32(rest)));
    float most = vmaxnmvq_f32(most4);
    most = most > 1e-5f ? most : 1e-5f;
    float32x4_t factor = vdupq_n_f32(127.0f / most);
    int32x4_t total = vdupq_n_s32(0);
    for (i = 0; i + 16 <= k; i += 16) {
        int32x4_t a = quantize4(vld1q_f32(x + i), factor), b = quantize4(vld1q_f32(x + i + 4), factor);
        int32x4_t c = quantize4(vld1q_f32(x + i + 8), factor), d = quantize4(vld1q_f32(x + i + 12), factor);
        total = vaddq_s32(total, vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
        int16x8_t ab = vcombine_s16(vmovn_s32(a), vmovn_s32(b)), cd = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
        vst1q_s8(q + i, vcombine_s8(vmovn_s16(ab), vmovn_s16(cd)));
    }
    for (; i < k; i += 4) {
        int n = k - i < 4 ? (int)(k - i) : 4;
        int32x4_t v = quantize4(n < 4 ? vld1q_f32(rest) : vld1q_f32(x + i), factor);
        int32_t lane[4];
        vst1q_s32(lane, v);
        for (int l = 0; l < n; l++) q[i + l] = (int8_t)lane[l];
        total = vaddq_s32(total, v); /* lanes past k are 0 */
    }
    if (k_padded > k) memset(q + k, 0, (size_t)(k_padded - k));
    *scale = most / 127.0f;
    *sum = vaddvq_s32(total);
}
#endif
