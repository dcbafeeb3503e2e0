/*
 * avx512_pack.c - trits_pack and trits_valid for AVX-512 with VBMI2. Called through table_avx512.c; pack_trits.c in the ternary room says what they do, and does
 * what is left of a row behind its groups of eight blocks. Both keep up with memory: weights are packed and checked while somebody waits for the first tokens.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i load_twice(const uint8_t *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* Eight fields of 5 bits in the bytes of a word become its low 40 bits. */
INLINE __m512i squeeze(__m512i fields) {
    const __m512i tens = _mm512_maddubs_epi16(fields, _mm512_set1_epi16(0x2001)), twenties = _mm512_madd_epi16(tens, _mm512_set1_epi32(0x04000001));
    /* bits 0-19 as they are, the others from 12 bits above */
    return _mm512_ternarylogic_epi64(_mm512_set1_epi64(0xfffff), twenties, _mm512_srli_epi64(twenties, 12), 0xca);
}

/* Columns of half `half` (0: 0..63, 1: 64..127) of a 128-block, whose bytes lie twice in a, b, c: columns 16 v .. 16 v + 15 in lane v. */
INLINE __m512i half_block(__m512i a, __m512i b, __m512i c, __m512i shifts) {
    const __m512i three = _mm512_set1_epi8(3);
    const __m512i c0 = _mm512_and_si512(_mm512_srlv_epi16(a, shifts), three), c1 = _mm512_and_si512(_mm512_srlv_epi16(b, shifts), three), c2 = _mm512_and_si512(_mm512_srlv_epi16(c, shifts), three);
    const __m512i upper = _mm512_add_epi8(c1, _mm512_add_epi8(c2, _mm512_add_epi8(c2, c2)));
    return squeeze(_mm512_add_epi8(c0, _mm512_add_epi8(upper, _mm512_add_epi8(upper, upper))));
}

#define OR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xfe)

INLINE void put_words(uint8_t *out, const __m512i s[8]) {
    _mm512_storeu_si512(out, _mm512_or_si512(s[0], _mm512_slli_epi64(s[1], 40)));
    _mm512_storeu_si512(out + 64, OR3(_mm512_srli_epi64(s[1], 24), _mm512_slli_epi64(s[2], 16), _mm512_slli_epi64(s[3], 56)));
    _mm512_storeu_si512(out + 128, _mm512_or_si512(_mm512_srli_epi64(s[3], 8), _mm512_slli_epi64(s[4], 32)));
    _mm512_storeu_si512(out + 192, OR3(_mm512_srli_epi64(s[4], 32), _mm512_slli_epi64(s[5], 8), _mm512_slli_epi64(s[6], 48)));
    _mm512_storeu_si512(out + 256, _mm512_or_si512(_mm512_srli_epi64(s[6], 16), _mm512_slli_epi64(s[7], 24)));
}

bool setun_avx512_trits_pack(const uint8_t *codes, size_t row_bytes, int rows, int64_t k, uint8_t *out, size_t triple_bytes) {
    static const uint8_t ones[128] = {[0 ... 127] = 0x55};
    const int64_t blocks = setun_trits_blocks(k), grouped = blocks / 8 * 8;
    const __m512i shifts[2] = {_mm512_inserti64x4(_mm512_set1_epi16(6), _mm256_set1_epi16(4), 1), _mm512_inserti64x4(_mm512_set1_epi16(2), _mm256_setzero_si256(), 1)};
    __m512i bad = _mm512_setzero_si512();
    bool right = true;
    for (int r = 0; r < rows; r += 3, codes += 3 * row_bytes, out += triple_bytes) {
        const uint8_t *row[3] = {codes, r + 1 < rows ? codes + row_bytes : NULL, r + 2 < rows ? codes + 2 * row_bytes : NULL};
        for (int64_t b = 0; b < grouped; b += 8) {
            __m512i s[8];
            const int64_t at = b / 2 * 32;
            const uint8_t *const p0 = row[0] + at, *const p1 = row[1] ? row[1] + at : ones, *const p2 = row[2] ? row[2] + at : ones;
            for (int i = 0; i < 4; i++) {
                const __m512i x0 = load_twice(p0 + 32 * i), x1 = load_twice(p1 + 32 * i), x2 = load_twice(p2 + 32 * i);
                bad = _mm512_ternarylogic_epi64(bad, x0, _mm512_srli_epi16(x0, 1), 0xf8);
                bad = _mm512_ternarylogic_epi64(bad, x1, _mm512_srli_epi16(x1, 1), 0xf8);
                bad = _mm512_ternarylogic_epi64(bad, x2, _mm512_srli_epi16(x2, 1), 0xf8);
                s[2 * i] = half_block(x0, x1, x2, shifts[0]);
                s[2 * i + 1] = half_block(x0, x1, x2, shifts[1]);
            }
            put_words(out + b * 40, s);
        }
        if (grouped < blocks) {
            const int64_t at = grouped / 2 * 32;
            right &= setun_pack_trits(row[0] + at, row[1] ? row[1] + at : NULL, row[2] ? row[2] + at : NULL, k - grouped * 64, out + grouped * 40);
        }
    }
    return right && _mm512_test_epi8_mask(bad, _mm512_set1_epi8(0x55)) == 0;
}

/* Fields that start in word x of a lane, at the bits of `starts`, and may end in the next: 27..31 have bits 4 and 3, and 2 or both 1 and 0. */
#define FIND_WRONG(x, next, starts) { \
        const __m512i x1 = _mm512_shrdi_epi64(x, next, 1), x2 = _mm512_shrdi_epi64(x, next, 2), x3 = _mm512_shrdi_epi64(x, next, 3), x4 = _mm512_shrdi_epi64(x, next, 4); \
        const __m512i low = _mm512_ternarylogic_epi64(x2, x1, x, 0xf8), wrong = _mm512_ternarylogic_epi64(low, x3, x4, 0x80); \
        bad = _mm512_ternarylogic_epi64(bad, wrong, _mm512_set1_epi64((long long)(starts)), 0xf8); \
    }

bool setun_avx512_trits_valid(const uint8_t *codes, size_t triple_bytes, int rows, int64_t k) {
    const int64_t blocks = setun_trits_blocks(k), grouped = blocks / 8 * 8;
    __m512i bad = _mm512_setzero_si512();
    bool right = true;
    for (int r = 0; r < rows; r += 3, codes += triple_bytes) {
        for (const uint8_t *p = codes, *end = codes + grouped * 40; p < end; p += 320) {
            const __m512i w0 = _mm512_loadu_si512(p), w1 = _mm512_loadu_si512(p + 64), w2 = _mm512_loadu_si512(p + 128), w3 = _mm512_loadu_si512(p + 192), w4 = _mm512_loadu_si512(p + 256);
            FIND_WRONG(w0, w1, 0x1084210842108421u)
            FIND_WRONG(w1, w2, 0x2108421084210842u)
            FIND_WRONG(w2, w3, 0x4210842108421084u)
            FIND_WRONG(w3, w4, 0x8421084210842108u)
            FIND_WRONG(w4, _mm512_setzero_si512(), 0x0842108421084210u)
        }
        if (grouped < blocks) right &= setun_trits_valid(codes + grouped * 40, k - grouped * 64);
    }
    return right && _mm512_test_epi64_mask(bad, bad) == 0;
}
#endif
