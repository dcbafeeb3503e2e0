/*
 * avx512_trits.c - trits_i8 for AVX-512 with VBMI and VBMI2. Called through table_avx512.c; ref_ternary.c says what it computes.
 *
 * vpmultishiftqb takes eight fields of 5 bits out of a lane's word, three foreign bits above each; vpshrdq first joins the words that a
 * block straddles. vpermb looks a field up in the 32 entries of a table, written twice, so that the sixth bit does not matter. With few tokens
 * one table serves: its entry c0 + 4 c1 + 16 c2 is multiplied whole, and masked for c0 and for 16 c2; the three sums give that of c1. So
 * one instruction of three is spared on the ports that vpermb, vpmultishiftqb and vpdpbusd share.
 * Sums may pass 2^31 on the way, which subtractions undo; what is left is 4 or 16 times a row's sum, at most 16 * 2 * 128 * k: it fits for k < FEW_COLUMNS.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined"))) /* as in avx512_ternary.c */

enum {
    FEW_TOKENS = 8,          /* up to here codes go from register to product */
    FEW_COLUMNS = 1 << 19,   /* of shorter rows */
    TILE_TOKENS = 4,         /* 6 rows x 4 tokens: 24 accumulators */
    PART_BLOCKS = 40,        /* of 64 columns: 15 KiB of codes and 10 KiB of x in L1 */
    BLOCK_BYTES = 384 << 10, /* of x: what stays in the L2 cache while the rows pass by */
    AHEAD = 4096             /* bytes that prefetches run before the weight stream */
};

/* Control bytes 0, 5, .. 35, each plus the bit at which the fields start. */
#define CONTROL(bit) _mm512_set1_epi64((long long)(0x231e19140f0a0500ull + 0x0101010101010101ull * (bit)))

static const uint8_t low[64] = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0,
                                0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0};
static const uint8_t middle[64] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0,
                                   0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0};
static const uint8_t high[64] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0,
                                 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0};
/* A block's lanes of 5 bytes to the low ends of eight words. */
static const uint8_t words[64] = {0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 9, 0, 0, 0, 10, 11, 12, 13, 14, 0, 0, 0, 15, 16, 17, 18, 19, 0, 0, 0,
                                  20, 21, 22, 23, 24, 0, 0, 0, 25, 26, 27, 28, 29, 0, 0, 0, 30, 31, 32, 33, 34, 0, 0, 0, 35, 36, 37, 38, 39, 0, 0, 0};

static const uint8_t spread[64] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 16, 17, 18, 20, 21, 22, 24, 25, 26, 32, 33, 34, 36, 37, 38, 40, 41, 42, 0, 0, 0, 0, 0,
                                   0, 1, 2, 4, 5, 6, 8, 9, 10, 16, 17, 18, 20, 21, 22, 24, 25, 26, 32, 33, 34, 36, 37, 38, 40, 41, 42, 0, 0, 0, 0, 0};

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

INLINE __m128i fold_rest(__m512i c) {
    const __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

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

/* ---- few tokens: one triple x T tokens, the weights read in the order they lie in ---- */

/* With one token, two sets of accumulators take turns: three chains would wait on themselves. */
INLINE void triple_tile(int T, const uint8_t *codes, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride, int valid) {
    sums3 acc[FEW_TOKENS], other[1];
    for (int t = 0; t < T; t++) acc[t].low = acc[t].all = acc[t].high = _mm512_setzero_si512();
    other[0].low = other[0].all = other[0].high = _mm512_setzero_si512();
    const __m512i at0 = CONTROL(0), at8 = CONTROL(8), at16 = CONTROL(16), at24 = CONTROL(24);
    for (size_t g = blocks / 8; g; g--, codes += 320, x += 512) {
        for (int i = 0; i < 5; i++) _mm_prefetch((const char *)((uintptr_t)codes + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
#define STEP(i, field) step(T, T == 1 && (i) % 2 ? other : acc, field, x + 64 * (i), x_stride);
        EACH_BLOCK(codes, STEP)
#undef STEP
    }
    for (size_t b = blocks % 8; b; b--, codes += 40, x += 64) step(T, acc, single(codes), x, x_stride);
    if (T == 1) {
        acc[0].low = _mm512_add_epi32(acc[0].low, other[0].low);
        acc[0].all = _mm512_add_epi32(acc[0].all, other[0].all);
        acc[0].high = _mm512_add_epi32(acc[0].high, other[0].high);
    }
    const __mmask8 mask = (__mmask8)((1u << (valid < 3 ? valid : 3)) - 1);
    for (int t = 0; t < T; t++) {
        __m128i sum = fold_rest(fold(acc[t].low, acc[t].all, acc[t].high, _mm512_setzero_si512()));
        const __m128i less = _mm_add_epi32(_mm_shuffle_epi32(sum, 0x00), _mm_shuffle_epi32(sum, 0xaa));
        sum = _mm_srav_epi32(_mm_mask_sub_epi32(sum, 2, sum, less), _mm_setr_epi32(0, 2, 4, 0));
        _mm_mask_storeu_epi32(sums + (size_t)t * out_stride, mask, sum);
    }
}

/* ---- more tokens: the codes of two triples are unpacked once for all of them, into L1 ---- */

/* Blocks of one triple: [block][row of the triple][64] codes; the other triple's rows lie between. */
static __attribute__((noinline)) void unpack(const uint8_t *codes, size_t blocks, size_t count, uint8_t *out) {
    const __m512i at0 = CONTROL(0), at8 = CONTROL(8), at16 = CONTROL(16), at24 = CONTROL(24);
    const __m512i c1_table = _mm512_loadu_si512(middle), c2_table = _mm512_loadu_si512(high), c0_table = _mm512_loadu_si512(low);
    size_t b = 0;
#define STORE(i, field) { \
        const __m512i f = field; \
        _mm512_store_si512(out + 384 * (i), _mm512_permutexvar_epi8(f, c0_table)); \
        _mm512_store_si512(out + 384 * (i) + 64, _mm512_permutexvar_epi8(f, c1_table)); \
        _mm512_store_si512(out + 384 * (i) + 128, _mm512_permutexvar_epi8(f, c2_table)); \
    }
    for (; b + 8 <= count && b + 8 <= blocks; b += 8, codes += 320, out += 8 * 384) {
        for (int i = 0; i < 5; i++) _mm_prefetch((const char *)((uintptr_t)codes + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
        EACH_BLOCK(codes, STORE)
    }
    for (; b < count; b++, codes += 40, out += 384) STORE(0, single(codes))
#undef STORE
}

typedef struct six { __m512i r0, r1, r2, r3, r4, r5; } six;

/* Six rows x T tokens over `count` blocks. add: to the sums that are there. */
INLINE void tile(int T, const uint8_t *codes, size_t count, const int8_t *x, size_t x_stride, int32_t *sums, size_t out_stride, int valid, bool add) {
    six acc[TILE_TOKENS];
    for (int t = 0; t < T; t++) acc[t].r0 = acc[t].r1 = acc[t].r2 = acc[t].r3 = acc[t].r4 = acc[t].r5 = _mm512_setzero_si512();
    for (size_t b = 0; b < count; b++, codes += 384, x += 64) {
        const __m512i c0 = _mm512_load_si512(codes), c1 = _mm512_load_si512(codes + 64), c2 = _mm512_load_si512(codes + 128), c3 = _mm512_load_si512(codes + 192),
                      c4 = _mm512_load_si512(codes + 256), c5 = _mm512_load_si512(codes + 320);
        for (int t = 0; t < T; t++) {
            const __m512i xt = _mm512_loadu_si512(x + (size_t)t * x_stride);
            PRODUCT(acc[t].r0, c0, xt)
            PRODUCT(acc[t].r1, c1, xt)
            PRODUCT(acc[t].r2, c2, xt)
            PRODUCT(acc[t].r3, c3, xt)
            PRODUCT(acc[t].r4, c4, xt)
            PRODUCT(acc[t].r5, c5, xt)
        }
    }
    const __mmask8 mask = (__mmask8)((1u << (valid < 6 ? valid : 6)) - 1);
    for (int t = 0; t < T; t++) {
        const __m512i c = fold(acc[t].r0, acc[t].r1, acc[t].r2, acc[t].r3);
        __m512i d = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[t].r4, acc[t].r5), _mm512_unpackhi_epi32(acc[t].r4, acc[t].r5));
        d = _mm512_add_epi32(d, _mm512_shuffle_epi32(d, 0x4e));
        __m512i e = _mm512_add_epi32(_mm512_shuffle_i64x2(c, d, 0x44), _mm512_shuffle_i64x2(c, d, 0xee)); /* two lanes of c, two of d */
        e = _mm512_add_epi32(e, _mm512_shuffle_i64x2(e, e, 0xb1));
        __m256i sum = _mm512_castsi512_si256(_mm512_shuffle_i64x2(e, e, 0x08));
        int32_t *out = sums + (size_t)t * out_stride;
        if (add) sum = _mm256_add_epi32(sum, _mm256_maskz_loadu_epi32(mask, out));
        _mm256_mask_storeu_epi32(out, mask, sum);
    }
}

/* A pass: all rows x tokens whose x stays in the L2 cache. */
static __attribute__((noinline, no_sanitize("undefined"))) void pass(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, size_t blocks, int32_t *sums, size_t out_stride) {
    _Alignas(64) uint8_t unpacked[PART_BLOCKS * 384]; /* [block][six rows][64] */
    for (int r = 0; r < rows; r += 6, codes += 2 * triple_bytes) {
        const uint8_t *second = r + 3 < rows ? codes + triple_bytes : codes;
        for (size_t b = 0; b < blocks; b += PART_BLOCKS) {
            const size_t count = blocks - b < PART_BLOCKS ? blocks - b : PART_BLOCKS, grouped = blocks / 8 * 8 > b ? blocks / 8 * 8 - b : 0;
            unpack(codes + 40 * b, grouped, count, unpacked);
            unpack(second + 40 * b, grouped, count, unpacked + 192);
            for (int t = 0; t < tokens; t += TILE_TOKENS) {
                const int8_t *xt = x + (size_t)t * x_stride + 64 * b;
                int32_t *out = sums + (size_t)t * out_stride + r;
                switch (tokens - t) {
#define CASE(label, T) label: tile(T, unpacked, count, xt, x_stride, out, out_stride, rows - r, b > 0); break;
                CASE(case 1, 1) CASE(case 2, 2) CASE(case 3, 3) CASE(default, TILE_TOKENS)
#undef CASE
                }
            }
        }
    }
}

void setun_avx512_trits_i8(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    const size_t blocks = (size_t)((k + 63) / 64);
    if (tokens <= FEW_TOKENS && k < FEW_COLUMNS) {
        for (int r = 0; r < rows; r += 3, codes += triple_bytes) {
            switch (tokens) {
#define CASE(T) case T: triple_tile(T, codes, x, x_stride, blocks, sums + r, out_stride, rows - r); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
        return;
    }
    const int64_t fits = BLOCK_BYTES / (k + 1) / TILE_TOKENS * TILE_TOKENS;
    const int most = fits < TILE_TOKENS ? TILE_TOKENS : fits < 640 ? (int)fits : 640;
    for (int t = 0; t < tokens; t += most)
        pass(codes, triple_bytes, rows, x + (size_t)t * x_stride, x_stride, tokens - t < most ? tokens - t : most, blocks, sums + (size_t)t * out_stride, out_stride);
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
