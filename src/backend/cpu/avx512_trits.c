/*
 * avx512_trits.c - trits_i8 for AVX-512 with VBMI and VBMI2. Called through table_avx512.c; ref_ternary.c says what it computes.
 *
 * vpmultishiftqb takes eight fields of 5 bits out of a lane's word, three foreign bits above each; vpshrdq first joins the words that a
 * block straddles. vpermb looks a field up in the 32 entries of c1 and of c2, written twice, so that the sixth bit does not matter. Row 0
 * needs no table: sum(field x) = sum((c0 + 3 c1 + 9 c2) x), and the other two sums are known.
 * vpdpbusd adds at most 4 * 26 * 128 < 2^14 to a lane, once every 64 columns: below 2^30 for k <= 2^22. The subtractions are exact: what
 * is left is the sum itself, which fits.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined"))) /* as in avx512_ternary.c */

enum {
    TILE_TOKENS = 8,         /* 3 x 8 accumulators */
    BLOCK_BYTES = 384 << 10, /* of x: what stays in the L2 cache while the rows pass by */
    AHEAD = 4096             /* bytes that prefetches run before the weight stream */
};

/* Control bytes 0, 5, .. 35, each plus the bit at which the fields start. */
#define CONTROL(bit) _mm512_set1_epi64((long long)(0x231e19140f0a0500ull + 0x0101010101010101ull * (bit)))

static const uint8_t middle[64] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0,
                                   0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0};
static const uint8_t high[64] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0,
                                 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0};
/* A block's lanes of 5 bytes to the low ends of eight words. */
static const uint8_t words[64] = {0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 9, 0, 0, 0, 10, 11, 12, 13, 14, 0, 0, 0, 15, 16, 17, 18, 19, 0, 0, 0,
                                  20, 21, 22, 23, 24, 0, 0, 0, 25, 26, 27, 28, 29, 0, 0, 0, 30, 31, 32, 33, 34, 0, 0, 0, 35, 36, 37, 38, 39, 0, 0, 0};

typedef struct sums3 { __m512i field, middle, high; } sums3;

/* One block of 64 columns: three products a token. */
INLINE void step(int T, sums3 *acc, __m512i field, const int8_t *x, size_t x_stride) {
    const __m512i c1 = _mm512_permutexvar_epi8(field, _mm512_loadu_si512(middle)), c2 = _mm512_permutexvar_epi8(field, _mm512_loadu_si512(high));
    field = _mm512_and_si512(field, _mm512_set1_epi8(31));
    for (int t = 0; t < T; t++) {
        const __m512i xt = _mm512_loadu_si512(x + (size_t)t * x_stride);
        acc[t].field = _mm512_dpbusd_epi32(acc[t].field, field, xt);
        acc[t].middle = _mm512_dpbusd_epi32(acc[t].middle, c1, xt);
        acc[t].high = _mm512_dpbusd_epi32(acc[t].high, c2, xt);
    }
}

/* One triple x T tokens. With one token, two sets of accumulators take turns: three chains would wait on themselves. */
INLINE void triple_tile(int T, const uint8_t *codes, bool prefetch, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride, int valid) {
    enum { MOST = TILE_TOKENS > 2 ? TILE_TOKENS : 2 };
    sums3 acc[MOST], other[1];
    for (int t = 0; t < T; t++) acc[t].field = acc[t].middle = acc[t].high = _mm512_setzero_si512();
    other[0].field = other[0].middle = other[0].high = _mm512_setzero_si512();
    const __m512i at0 = CONTROL(0), at8 = CONTROL(8), at16 = CONTROL(16), at24 = CONTROL(24);
    for (size_t g = blocks / 8; g; g--, codes += 320, x += 512) {
        const __m512i w0 = _mm512_loadu_si512(codes), w1 = _mm512_loadu_si512(codes + 64), w2 = _mm512_loadu_si512(codes + 128), w3 = _mm512_loadu_si512(codes + 192), w4 = _mm512_loadu_si512(codes + 256);
        if (prefetch)
            for (int i = 0; i < 5; i++) _mm_prefetch((const char *)((uintptr_t)codes + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
#define ODD (T == 1 ? other : acc)
        step(T, acc, _mm512_multishift_epi64_epi8(at0, w0), x, x_stride);
        step(T, ODD, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w0, w1, 40)), x + 64, x_stride);
        step(T, acc, _mm512_multishift_epi64_epi8(at16, w1), x + 128, x_stride);
        step(T, ODD, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w1, w2, 56)), x + 192, x_stride);
        step(T, acc, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w2, w3, 32)), x + 256, x_stride);
        step(T, ODD, _mm512_multishift_epi64_epi8(at8, w3), x + 320, x_stride);
        step(T, acc, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w3, w4, 48)), x + 384, x_stride);
        step(T, ODD, _mm512_multishift_epi64_epi8(at24, w4), x + 448, x_stride);
#undef ODD
    }
    for (size_t b = blocks % 8; b; b--, codes += 40, x += 64) {
        const __m512i word = _mm512_permutexvar_epi8(_mm512_loadu_si512(words), _mm512_maskz_loadu_epi8(0xffffffffffull, codes));
        step(T, acc, _mm512_multishift_epi64_epi8(at0, word), x, x_stride);
    }
    if (T == 1) {
        acc[0].field = _mm512_add_epi32(acc[0].field, other[0].field);
        acc[0].middle = _mm512_add_epi32(acc[0].middle, other[0].middle);
        acc[0].high = _mm512_add_epi32(acc[0].high, other[0].high);
    }
    for (int t = 0; t < T; t++) {
        const int32_t c1 = _mm512_reduce_add_epi32(acc[t].middle), c2 = _mm512_reduce_add_epi32(acc[t].high), c0 = _mm512_reduce_add_epi32(acc[t].field) - 3 * c1 - 9 * c2;
        int32_t *out = sums + (size_t)t * out_stride;
        out[0] = c0;
        if (valid > 1) out[1] = c1;
        if (valid > 2) out[2] = c2;
    }
}

void setun_avx512_trits_i8(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    const size_t blocks = (size_t)((k + 63) / 64);
    const int64_t fits = BLOCK_BYTES / (k + 1) / TILE_TOKENS * TILE_TOKENS;
    const int pass = fits < TILE_TOKENS ? TILE_TOKENS : fits < 640 ? (int)fits : 640; /* tokens of a pass over the rows */
    for (int t0 = 0; t0 < tokens; t0 += pass) {
        const int count = tokens - t0 < pass ? tokens - t0 : pass;
        const uint8_t *triple = codes;
        for (int r = 0; r < rows; r += 3, triple += triple_bytes) {
            const int valid = rows - r;
            for (int t = 0; t < count; t += TILE_TOKENS) {
                const int8_t *xt = x + (size_t)(t0 + t) * x_stride;
                int32_t *out = sums + (size_t)(t0 + t) * out_stride + r;
                switch (count - t) {
#define CASE(label, T) label: triple_tile(T, triple, t == 0, xt, x_stride, blocks, out, out_stride, valid); break;
                CASE(case 1, 1) CASE(case 2, 2) CASE(case 3, 3) CASE(case 4, 4) CASE(case 5, 5) CASE(case 6, 6) CASE(case 7, 7) CASE(default, TILE_TOKENS)
#undef CASE
                }
            }
        }
    }
}
#endif
