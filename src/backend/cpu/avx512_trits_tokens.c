/*
 * avx512_trits_tokens.c - trits_i8 of several tokens for AVX-512 with VBMI and VBMI2: batches, and prompts too short for tables. Called by
 * avx512_trits.c; ref_ternary.c says what it computes. Knows nothing of steps.
 *
 * A triple of rows x up to eight tokens has 24 accumulators. Codes go from register to product in five instructions a block, so that reading them again for
 * the next eight tokens, out of L2, costs less than unpacking them into L1 once did. The three rows' products are avx512_trits.h's: of c0, of c0 + 4 c1 + 16 c2,
 * of 16 c2. The accumulators of four tokens each are added up in one tree.
 * Sums may pass 2^31 on the way, which subtractions undo; what is left is 4 or 16 times a row's sum over a part: below 2^31.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include "backend/cpu/avx512_trits.h"

enum {
    TOKENS = 8,
    X_BLOCKS = 1024,         /* of 64 columns, times tokens: what of x one part of the columns has. It comes from L2 as fast; parts that fit L1 were no faster */
    LEAD = 3000,             /* cycles that codes are fetched ahead of their use */
    PART_TRIPLES = 32,       /* whose sums are kept apart from the output until all columns are done */
    BLOCK_BYTES = 384 << 10  /* of x: what stays in the L2 cache while the rows pass by */
};

/* Pairs of lanes of 128 bits added: those of a in the lower half, those of b in the upper. */
INLINE __m512i add_lanes(__m512i a, __m512i b) { return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd)); }

/* Instructions in the order they are written in: Zen 4's queue is too short to reach the next block's codes past this block's products, so they are taken out
 * of their words among those (28 cycles a block of eight tokens, 37 in gcc's order; 24 are the products). Masks and the table come from memory: 30 registers are taken. */
#define LOAD(out, at) __asm__ volatile("vmovdqu64 %1, %0" : "=v"(out) : "m"(*(const vector *)(const void *)(at)));
#define JOIN(word, at, bits) __asm__ volatile("vpshrdq %3, %2, %1, %0" : "=v"(word) : "v"(word), "m"(*(const vector *)(const void *)(at)), "i"(bits));
#define SHIFT(out, at, bits) __asm__ volatile("vpsrlq %2, %1, %0" : "=v"(out) : "m"(*(const vector *)(const void *)(at)), "i"(bits));
#define FIELDS(word) __asm__ volatile("vpmultishiftqb %1, %2, %0" : "=v"(word) : "v"(word), "v"(control));
#define SPREAD(fields) __asm__ volatile("vpermb %2, %1, %0" : "=v"(fields) : "v"(fields), "m"(*(const vector *)(const void *)spread));
#define MASK(out, codes, mask) __asm__ volatile("vpandd %2%{1to16%}, %1, %0" : "=v"(out) : "v"(codes), "m"(mask));
typedef struct __attribute__((packed, may_alias)) vector { uint8_t bytes[64]; } vector;
static const uint32_t low_mask = 0x03030303, high_mask = 0x30303030;

/* Products of a block with tokens first .. last - 1. */
INLINE void products(int first, int last, sums3 *acc, __m512i c0, __m512i all, __m512i c2, const int8_t *x, size_t x_stride) {
    for (int t = first; t < last; t++) {
        __m512i xt;
        LOAD(xt, x + (size_t)t * x_stride)
        __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(acc[t].low) : "v"(xt), "v"(c0));
        __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(acc[t].all) : "v"(xt), "v"(all));
        __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(acc[t].high) : "v"(xt), "v"(c2));
    }
}

/* `count` blocks of a triple x T tokens. next: codes that come later, to be fetched; NULL: they are in the cache. sums: three rows of eight tokens. */
INLINE void tile(int T, const uint8_t *codes, const uint8_t *next, size_t count, const int8_t *x, size_t x_stride, int32_t *sums, bool add) {
    sums3 acc[TOKENS];
    for (int t = 0; t < T; t++) acc[t].low = acc[t].all = acc[t].high = _mm512_setzero_si512();
    if (count >= 8) {
        const __m512i control = CONTROL(0);
        __m512i all, word;
        LOAD(all, codes)
        FIELDS(all)
        SPREAD(all)
        for (size_t g = count / 8; g; g--, x += 512) {
            const uint8_t *following = g > 1 ? codes + 320 : codes; /* there are no more: any will do */
            if (next) {
                for (int i = 0; i < 5; i++) _mm_prefetch((const char *)((uintptr_t)next + 64 * (size_t)i), _MM_HINT_T1);
                next += 320;
            }
/* Block i, and among its products the next one's codes: by TAKE. */
#define BLOCK(i, TAKE) { \
                __m512i c0, c2; \
                const int8_t *at = x + 64 * (i); \
                MASK(c0, all, low_mask) \
                MASK(c2, all, high_mask) \
                products(0, T / 8, acc, c0, all, c2, at, x_stride); \
                TAKE \
                products(T / 8, 3 * T / 8, acc, c0, all, c2, at, x_stride); \
                FIELDS(word) \
                products(3 * T / 8, T / 2, acc, c0, all, c2, at, x_stride); \
                SPREAD(word) \
                products(T / 2, T, acc, c0, all, c2, at, x_stride); \
                all = word; \
            }
            BLOCK(0, LOAD(word, codes) JOIN(word, codes + 64, 40))
            BLOCK(1, SHIFT(word, codes + 64, 16))
            BLOCK(2, LOAD(word, codes + 64) JOIN(word, codes + 128, 56))
            BLOCK(3, LOAD(word, codes + 128) JOIN(word, codes + 192, 32))
            BLOCK(4, SHIFT(word, codes + 192, 8))
            BLOCK(5, LOAD(word, codes + 192) JOIN(word, codes + 256, 48))
            BLOCK(6, SHIFT(word, codes + 256, 24))
            BLOCK(7, LOAD(word, following))
#undef BLOCK
            codes += 320;
        }
    }
    for (size_t b = count % 8; b; b--, codes += 40, x += 64) step(T, acc, single(codes), x, x_stride);
    __m512i low[2], all[2], high[2];
    const __m512i none = _mm512_setzero_si512();
    for (int h = 0; h < 2; h++) {
#define OF(part, i) (4 * h + (i) < T ? acc[4 * h + (i)].part : none)
        low[h] = 4 * h < T ? fold(OF(low, 0), OF(low, 1), OF(low, 2), OF(low, 3)) : none;
        all[h] = 4 * h < T ? fold(OF(all, 0), OF(all, 1), OF(all, 2), OF(all, 3)) : none;
        high[h] = 4 * h < T ? fold(OF(high, 0), OF(high, 1), OF(high, 2), OF(high, 3)) : none;
#undef OF
    }
    const __m512i low_all = add_lanes(add_lanes(low[0], low[1]), add_lanes(all[0], all[1])), highs = add_lanes(high[0], high[1]);
    const __m256i r0 = _mm512_castsi512_si256(low_all), r2 = _mm512_castsi512_si256(add_lanes(highs, highs));
    const __m256i r[3] = {r0, _mm256_srai_epi32(_mm256_sub_epi32(_mm512_extracti64x4_epi64(low_all, 1), _mm256_add_epi32(r0, r2)), 2), _mm256_srai_epi32(r2, 4)};
    for (int i = 0; i < 3; i++) {
        __m256i *to = (__m256i *)(void *)(sums + TOKENS * i);
        _mm256_store_si256(to, add ? _mm256_add_epi32(r[i], _mm256_load_si256(to)) : r[i]);
    }
}

/* sums[row][token] -> out[token][row], for four tokens; rows lie `width` int32 apart. */
INLINE void turn(const int32_t *sums, size_t width, int rows, int tokens, int32_t *out, size_t out_stride) {
    for (int r = 0; r < rows; r += 16, sums += 16 * width, out += 16) {
        __m512i four[4];
        for (int i = 0; i < 4; i++) { /* lane L: row 4 L + i */
#define AT(L) _mm_loadu_si128((const __m128i *)(const void *)(sums + (size_t)(4 * (L) + i) * width))
            const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(AT(0)), AT(1), 1), high = _mm256_inserti128_si256(_mm256_castsi128_si256(AT(2)), AT(3), 1);
#undef AT
            four[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpacklo_epi32(four[2], four[3]), c = _mm512_unpackhi_epi32(four[0], four[1]), d = _mm512_unpackhi_epi32(four[2], four[3]);
        const __m512i turned[4] = {_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b), _mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d)};
        for (int t = 0; t < tokens && t < 4; t++) {
            if (rows - r >= 16) _mm512_storeu_si512(out + (size_t)t * out_stride, turned[t]);
            else _mm512_mask_storeu_epi32(out + (size_t)t * out_stride, (__mmask16)((1u << (rows - r)) - 1), turned[t]);
        }
    }
}

/* At most PART_TRIPLES triples x T tokens. fetch: these codes and the next part's, which lie behind them, are not in the cache. */
INLINE void part(int T, const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, size_t blocks, int32_t *out, size_t out_stride, bool fetch) {
    _Alignas(64) int32_t sums[PART_TRIPLES * 3 * TOKENS]; /* [row][token] */
    const int triples = (rows + 2) / 3;
    const size_t most = X_BLOCKS / (size_t)T / 8 * 8;
    for (size_t b = 0; b < blocks; b += most) {
        const size_t count = blocks - b < most ? blocks - b : most;
        for (int i = 0; i < triples; i++) {
            const uint8_t *at = codes + (size_t)i * triple_bytes + 40 * b;
            /* The same columns of later triples; at the end of the part, the first ones' next columns. A block takes about 3 T + 4 cycles. */
            const int later = i + 1 + (int)(LEAD / (count * (size_t)(3 * T + 4)));
            const uint8_t *next = !fetch ? NULL : later < triples || b + count == blocks || later - triples >= triples ? at + (size_t)(later - i) * triple_bytes : codes + (size_t)(later - triples) * triple_bytes + 40 * (b + count);
            tile(T, at, next, count, x + 64 * b, x_stride, sums + (size_t)i * (3 * TOKENS), b > 0);
        }
    }
    for (int t = 0; t < T; t += 4) turn(sums + t, TOKENS, rows, T - t, out + (size_t)t * out_stride, out_stride);
}

/* All rows x tokens whose x stays in the L2 cache. */
static __attribute__((noinline, no_sanitize("undefined"))) void pass(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, size_t blocks, int32_t *sums, size_t out_stride) {
    const int groups = (tokens + TOKENS - 1) / TOKENS;
    for (int r = 0; r < rows; r += 3 * PART_TRIPLES, codes += PART_TRIPLES * triple_bytes) {
        const int count = rows - r < 3 * PART_TRIPLES ? rows - r : 3 * PART_TRIPLES;
        for (int g = 0; g < groups; g++) { /* as even as may be */
            const int t = tokens * g / groups;
            const int8_t *xt = x + (size_t)t * x_stride;
            int32_t *out = sums + (size_t)t * out_stride + r;
            switch (tokens * (g + 1) / groups - t) {
#define CASE(T) case T: part(T, codes, triple_bytes, count, xt, x_stride, blocks, out, out_stride, g == 0); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
    }
}

void setun_avx512_trits_tokens(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    const int64_t fits = BLOCK_BYTES / (k + 1) / TOKENS * TOKENS;
    const int most = fits < TOKENS ? TOKENS : fits < 640 ? (int)fits : 640;
    for (int t = 0; t < tokens; t += most)
        pass(codes, triple_bytes, rows, x + (size_t)t * x_stride, x_stride, tokens - t < most ? tokens - t : most, (size_t)((k + 63) / 64), sums + (size_t)t * out_stride, out_stride);
}
#endif
