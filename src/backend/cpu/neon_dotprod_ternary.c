/*
 * neon_dotprod_ternary.c - ternary_i8 with SDOT (ARMv8.2 dotprod). Called through table_neon_dotprod.c; ref_ternary.c says what it
 * computes, bit for bit.
 */
#include "backend/cpu/isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

/* SDOT adds four products of a code and an x to an int32 lane, at most 4*2*128 = 2^10 a step, one step per 16 columns: below 2^28 for k <= 2^22. */
enum {
    TILE_ROWS = 4,
    TILE_TOKENS = 4,         /* 16 accumulators + 4 of packed codes + 4 of codes + x + mask fit 32 registers */
    BLOCK_BYTES = 192 << 10, /* of x: what stays in the L2 cache while the rows pass by */
    AHEAD = 4096             /* bytes that prefetches run before the weight stream */
};

/* Four rows x T tokens over the whole of k. valid: rows that are there (row[] repeats the last one). */
INLINE void tile(int T, const uint8_t *const *row, bool prefetch, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride, int valid) {
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t acc[TILE_TOKENS][TILE_ROWS];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < TILE_ROWS; r++) acc[t][r] = vdupq_n_s32(0);
    for (size_t b = 0; b < blocks; b++) {
        if (prefetch) /* the tile's rows are one piece of memory: run through it in order, each line once */
            for (int i = 0; i < 2; i++) __builtin_prefetch((const void *)((uintptr_t)row[0] + 128 * b + AHEAD + 64 * (size_t)i));
        for (int h = 0; h < 2; h++) {
            uint8x16_t packed[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++) packed[r] = vld1q_u8(row[r] + 32 * b + 16 * (size_t)h);
#define FIELD(j, codes_of) { \
                int8x16_t code[TILE_ROWS]; \
                for (int r = 0; r < TILE_ROWS; r++) code[r] = vreinterpretq_s8_u8(codes_of); \
                for (int t = 0; t < T; t++) { \
                    int8x16_t xt = vld1q_s8(x + (size_t)t * x_stride + 128 * b + 32 * (j) + 16 * (size_t)h); \
                    for (int r = 0; r < TILE_ROWS; r++) acc[t][r] = vdotq_s32(acc[t][r], code[r], xt); \
                } \
            }
            FIELD(0, vshrq_n_u8(packed[r], 6))
            FIELD(1, vandq_u8(vshrq_n_u8(packed[r], 4), three))
            FIELD(2, vandq_u8(vshrq_n_u8(packed[r], 2), three))
            FIELD(3, vandq_u8(packed[r], three))
#undef FIELD
        }
    }
    for (int t = 0; t < T; t++) {
        int32x4_t s = vpaddq_s32(vpaddq_s32(acc[t][0], acc[t][1]), vpaddq_s32(acc[t][2], acc[t][3]));
        int32_t *out = sums + (size_t)t * out_stride;
        if (valid == TILE_ROWS) {
            vst1q_s32(out, s);
        } else {
            int32_t lane[TILE_ROWS];
            vst1q_s32(lane, s);
            for (int i = 0; i < valid; i++) out[i] = lane[i];
        }
    }
}

void setun_neon_dotprod_ternary_i8(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    size_t blocks = (size_t)((k + 127) / 128);
    int64_t fits = BLOCK_BYTES / (k + 1) / TILE_TOKENS * TILE_TOKENS;
    int step = fits < TILE_TOKENS ? TILE_TOKENS : fits < 512 ? (int)fits : 512; /* tokens of a pass over the rows */
    for (int t0 = 0; t0 < tokens; t0 += step) {
        int count = tokens - t0 < step ? tokens - t0 : step;
        for (int r = 0; r < rows; r += TILE_ROWS) {
            int valid = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            const uint8_t *row[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++) row[i] = codes + (size_t)(r + (i < valid ? i : valid - 1)) * row_bytes;
            for (int t = 0; t < count; t += TILE_TOKENS) {
                const int8_t *xt = x + (size_t)(t0 + t) * x_stride;
                int32_t *out = sums + (size_t)(t0 + t) * out_stride + r;
                bool prefetch = t == 0; /* later tiles find the rows in the cache */
                switch (count - t) {
#define CASE(label, T) label: tile(T, row, prefetch, xt, x_stride, blocks, out, out_stride, valid); break;
                CASE(case 1, 1) CASE(case 2, 2) CASE(case 3, 3) CASE(default, TILE_TOKENS)
#undef CASE
                }
            }
        }
    }
}
#endif
