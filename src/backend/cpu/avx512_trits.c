/*
 * avx512_trits.c - trits_i8 of one token, and trits_rows, for AVX-512 with VBMI and VBMI2; several tokens are avx512_trits_tokens.c's. Called
 * through table_avx512.c; ref_ternary.c says what they compute.
 *
 * One table serves a product: its entry c0 + 4 c1 + 16 c2 is multiplied whole, and masked for c0 and for 16 c2; the three sums give that of c1. So
 * one instruction of three is spared on the ports that vpermb, vpmultishiftqb and vpdpbusd share.
 * Sums may pass 2^31 on the way, which subtractions undo; what is left is 4 or 16 times a row's sum, at most 16 * 2 * 128 * k: it fits for k < ONE_TOKEN_COLUMNS.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

#if defined(__x86_64__)
#include "backend/cpu/avx512_trits.h"

enum {
    ONE_TOKEN_COLUMNS = 1 << 19, /* of shorter rows sums fit */
    AHEAD = 4096                 /* bytes that prefetches run before the weight stream */
};

static const uint8_t low[64] = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0,
                                0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0};
static const uint8_t middle[64] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0,
                                   0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0};
static const uint8_t high[64] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0,
                                 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0};

INLINE __m128i fold_rest(__m512i c) {
    const __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

/* One token, the weights read in the order they lie in. Two sets of accumulators take turns: three chains would wait on themselves. */
INLINE void one_token(const uint8_t *codes, const int8_t *x, size_t blocks, int32_t *sums, int valid) {
    sums3 acc, other;
    acc.low = acc.all = acc.high = other.low = other.all = other.high = _mm512_setzero_si512();
    const __m512i at0 = CONTROL(0), at8 = CONTROL(8), at16 = CONTROL(16), at24 = CONTROL(24);
    for (size_t g = blocks / 8; g; g--, codes += 320, x += 512) {
        for (int i = 0; i < 5; i++) _mm_prefetch((const char *)((uintptr_t)codes + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
#define STEP(i, field) step(1, (i) % 2 ? &other : &acc, field, x + 64 * (i), 0);
        EACH_BLOCK(codes, STEP)
#undef STEP
    }
    for (size_t b = blocks % 8; b; b--, codes += 40, x += 64) step(1, &acc, single(codes), x, 0);
    __m128i sum = fold_rest(fold(_mm512_add_epi32(acc.low, other.low), _mm512_add_epi32(acc.all, other.all), _mm512_add_epi32(acc.high, other.high), _mm512_setzero_si512()));
    const __m128i less = _mm_add_epi32(_mm_shuffle_epi32(sum, 0x00), _mm_shuffle_epi32(sum, 0xaa));
    sum = _mm_srav_epi32(_mm_mask_sub_epi32(sum, 2, sum, less), _mm_setr_epi32(0, 2, 4, 0));
    _mm_mask_storeu_epi32(sums, (__mmask8)((1u << (valid < 3 ? valid : 3)) - 1), sum);
}

void setun_avx512_trits_i8(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    if (tokens > 1 || k >= ONE_TOKEN_COLUMNS) {
        setun_avx512_trits_tokens(codes, triple_bytes, rows, x, x_stride, tokens, k, sums, out_stride);
        return;
    }
    for (int r = 0; r < rows; r += 3, codes += triple_bytes) one_token(codes, x, (size_t)((k + 63) / 64), sums + r, rows - r);
}

/* Groups of eight blocks; what is left of a row, fewer than 512 columns, goes the general way. */
void setun_avx512_trits_rows(const uint8_t *codes, size_t triple_bytes, int rows, int64_t k, uint8_t *out, size_t row_bytes) {
    const __m512i at0 = CONTROL(0), at8 = CONTROL(8), at16 = CONTROL(16), at24 = CONTROL(24);
    const __m512i table[3] = {_mm512_loadu_si512(low), _mm512_loadu_si512(middle), _mm512_loadu_si512(high)};
    const int64_t blocks = setun_trits_blocks(k), grouped = blocks / 8 * 8;
    for (int r = 0; r < rows; r += 3, codes += triple_bytes, out += 3 * row_bytes) {
        const int count = rows - r < 3 ? rows - r : 3;
        for (int64_t b = 0; b < grouped; b += 8) {
            const uint8_t *from = codes + b * 40;
            __m512i fields[8];
#define KEEP_FIELD(i, field) fields[i] = field;
            EACH_BLOCK(from, KEEP_FIELD)
#undef KEEP_FIELD
            for (int d = 0; d < count; d++)
                for (int i = 0; i < 4; i++) { /* two blocks of 64: columns 0..63 of a packed block in the low and high half of a, 64..127 in those of c */
                    const __m512i a = _mm512_permutexvar_epi8(fields[2 * i], table[d]), c = _mm512_permutexvar_epi8(fields[2 * i + 1], table[d]);
                    const __m512i both = _mm512_or_si512(_mm512_slli_epi16(a, 4), c); /* codes are at most 2: no bit leaves its byte */
                    const __m256i bytes = _mm256_or_si256(_mm256_slli_epi16(_mm512_castsi512_si256(both), 2), _mm512_extracti64x4_epi64(both, 1));
                    _mm256_storeu_si256((__m256i *)(void *)(out + (size_t)d * row_bytes + (size_t)(b / 2 + i) * 32), bytes);
                }
        }
        if (grouped < blocks) {
            uint8_t *rest = out + grouped / 2 * 32;
            (void)setun_unpack_trits(codes, k, grouped, blocks - grouped, rest, count > 1 ? rest + row_bytes : NULL, count > 2 ? rest + 2 * row_bytes : NULL);
        }
    }
}
#endif
