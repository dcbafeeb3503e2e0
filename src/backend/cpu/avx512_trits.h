/*
 * avx512_trits.h - how AVX-512 takes trits out of their words; shared by avx512_trits.c (one token; rows for prompts) and
 * avx512_trits_tokens.c (several). Knows the layout of SETUN_PACKED_TRITS, no products.
 *
 * vpmultishiftqb takes eight fields of 5 bits out of a lane's word, three foreign bits above each; vpshrdq first joins the words that a
 * block straddles. vpermb looks a field up in the 32 entries of a table, written twice, so that the sixth bit does not matter.
 */
#ifndef SETUN_AVX512_TRITS_H
#define SETUN_AVX512_TRITS_H

#include "backend/cpu/isa.h"
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined"))) /* as in avx512_ternary.c */

/* Control bytes 0, 5, .. 35, each plus the bit at which the fields start. */
#define CONTROL(bit) _mm512_set1_epi64((long long)(0x231e19140f0a0500ull + 0x0101010101010101ull * (bit)))

/* Field c0 + 3 c1 + 9 c2 -> c0 + 4 c1 + 16 c2, whose c0 and 16 c2 are there by a mask. */
static const uint8_t spread[64] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 16, 17, 18, 20, 21, 22, 24, 25, 26, 32, 33, 34, 36, 37, 38, 40, 41, 42, 0, 0, 0, 0, 0,
                                   0, 1, 2, 4, 5, 6, 8, 9, 10, 16, 17, 18, 20, 21, 22, 24, 25, 26, 32, 33, 34, 36, 37, 38, 40, 41, 42, 0, 0, 0, 0, 0};
/* A block's lanes of 5 bytes to the low ends of eight words. */
static const uint8_t words[64] = {0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 9, 0, 0, 0, 10, 11, 12, 13, 14, 0, 0, 0, 15, 16, 17, 18, 19, 0, 0, 0,
                                  20, 21, 22, 23, 24, 0, 0, 0, 25, 26, 27, 28, 29, 0, 0, 0, 30, 31, 32, 33, 34, 0, 0, 0, 35, 36, 37, 38, 39, 0, 0, 0};

/* The eight blocks of a group, each by STEP(number, fields). */
#define EACH_BLOCK(codes, STEP) { \
        const __m512i w0 = _mm512_loadu_si512(codes), w1 = _mm512_loadu_si512((codes) + 64), w2 = _mm512_loadu_si512((codes) + 128), w3 = _mm512_loadu_si512((codes) + 192), w4 = _mm512_loadu_si512((codes) + 256); \
        STEP(0, _mm512_multishift_epi64_epi8(at0, w0)) \
        STEP(1, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w0, w1, 40))) \
        STEP(2, _mm512_multishift_epi64_epi8(at16, w1)) \
        STEP(3, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w1, w2, 56))) \
        STEP(4, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w2, w3, 32))) \
        STEP(5, _mm512_multishift_epi64_epi8(at8, w3)) \
        STEP(6, _mm512_multishift_epi64_epi8(at0, _mm512_shrdi_epi64(w3, w4, 48))) \
        STEP(7, _mm512_multishift_epi64_epi8(at24, w4)) \
    }

/* A block that lies alone. */
INLINE __m512i single(const uint8_t *codes) {
    return _mm512_multishift_epi64_epi8(CONTROL(0), _mm512_permutexvar_epi8(_mm512_loadu_si512(words), _mm512_maskz_loadu_epi8(0xffffffffffull, codes)));
}

typedef struct sums3 { __m512i low, all, high; } sums3; /* of c0, of c0 + 4 c1 + 16 c2, of 16 c2 */

/* As text: with the intrinsic, gcc 12 moves accumulators from register to register, or loads x for each product; both halve the speed. */
#define PRODUCT(sum, code, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "v"(x));

/* One block of 64 columns: three products a token. */
INLINE void step(int T, sums3 *acc, __m512i field, const int8_t *x, size_t x_stride) {
    const __m512i all = _mm512_permutexvar_epi8(field, _mm512_loadu_si512(spread));
    const __m512i c0 = _mm512_and_si512(all, _mm512_set1_epi8(3)), c2 = _mm512_and_si512(all, _mm512_set1_epi8(48));
    for (int t = 0; t < T; t++) {
        const __m512i xt = _mm512_loadu_si512(x + (size_t)t * x_stride);
        PRODUCT(acc[t].low, c0, xt)
        PRODUCT(acc[t].all, all, xt)
        PRODUCT(acc[t].high, c2, xt)
    }
}

/* The sums of four accumulators, in the lanes of 128 bits: still to be added over the four of them. */
INLINE __m512i fold(__m512i a0, __m512i a1, __m512i a2, __m512i a3) {
    const __m512i b0 = _mm512_add_epi32(_mm512_unpacklo_epi32(a0, a1), _mm512_unpackhi_epi32(a0, a1));
    const __m512i b1 = _mm512_add_epi32(_mm512_unpacklo_epi32(a2, a3), _mm512_unpackhi_epi32(a2, a3));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(b0, b1), _mm512_unpackhi_epi64(b0, b1));
}

/* avx512_trits_tokens.c: trits_i8 for any number of tokens. */
void setun_avx512_trits_tokens(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride);

#endif
