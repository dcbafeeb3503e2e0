/*
 * avx512_many.c - ternary_i8_many for AVX-512 with VNNI and VBMI: a prompt's tokens over the same rows. Called through
 * table_avx512.c; ref_many.c says what it computes. Knows 2-bit rows only.
 *
 * Two rows share each byte that vpdpbusd multiplies, and a table look-up tells them apart. A byte is c1 + 64 c2, so that with
 * w = c - 1 in -1..1 and p = sum w1 x, q = sum w2 x over some columns, one chain of vpdpbusd makes T = p + 64 q. Bytes have room for q mod 256:
 * each token has a table of the 27 sums of three columns, mod 256, and one vpermb looks 32 rows up in it. Then
 *     p = T - 64 q mod 2^14,
 * which is p itself where -2^13 <= p < 2^13, as it is where sum |x| < 2^13; and q = (T - p) / 64. Where sum |x| of a token is larger,
 * fewer columns are taken before p and q are parted: SAFE_GROUPS always are few enough.
 *
 * Lanes are rows: 64 rows are a block, 8 tokens a tile. 12 columns of a block and a token are 6 vpdpbusd of 512 bits, which keep two of
 * the four pipes of Zen 4 busy for 6 cycles, and 4 vpermb and vpaddb of 256 bits, for which the other two have room: 128 multiply-adds a cycle.
 * (Bytes of one row each, and vpermw for 3 of 7 columns, need all four pipes all the time for 112, and got 80 where this gets 110.)
 * The rows' codes are put into that order once for all tokens. A chunk of columns is small enough that its tables stay in L1.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined")))

enum {
    GROUP_BYTES = 3,                /* of packed codes: 12 columns */
    GROUPS = 16,                    /* in a chunk: tables of 16 KiB, 8 KiB of codes a block of rows and 1.5 KiB of x; with more the L1 cache is too small */
    CHUNK_BYTES = GROUPS * GROUP_BYTES,
    CHUNK_COLUMNS = 4 * CHUNK_BYTES,
    TRIPLES = 4,                    /* tables in a group */
    SAFE_GROUPS = 5,                /* 60 columns: sum |x| is at most 7680 */
    SAFE_SUM = (1 << 13) - 1,
    LONGEST = 1 << 17,              /* columns: sums of T are at most 65 * 128 * k */
    TILE_TOKENS = SETUN_MANY_TILE,  /* 8 x (two chains of T and one of q), codes, indices, a broadcast and lookups fill 32 registers */
    BLOCK_ROWS = 64,
    FETCH_ROWS = BLOCK_ROWS         /* how far ahead codes are fetched: long enough for memory, short enough to still be there */
};
_Static_assert(CHUNK_BYTES <= 64 && CHUNK_BYTES % 16 == 0 && TILE_TOKENS == 8, "one load a row and chunk; x is turned 16 bytes of codes at a time; eight tokens are written out below");
_Static_assert(SAFE_GROUPS * 12 * 128 <= SAFE_SUM, "what always fits");
_Static_assert(SETUN_MANY_ROWS % BLOCK_ROWS == 0, "whole blocks");

/* Codes of 64 rows x 12 columns, 3 packed bytes. Lane r of pair[b][h] has the four codes of byte b of rows 16h + r and, times 64, 32 + 16h + r. index[f] has,
 * of row 32 + i in byte i, 9 c0 + 3 c1 + c2 of the three bytes' fields f; vpermb looks at its low five bits. */
typedef struct row_group {
    __m512i pair[GROUP_BYTES][2];
    __m256i index[TRIPLES];
} row_group;

/* How tables are made: indices into x and -x of 24 columns, 32 bytes each, and where there is something to take. Triple u: fields u % 4 of the bytes of group u / 4. */
typedef struct table_plan {
    _Alignas(64) uint8_t second[64], third[64]; /* for the 8 sums of x1 and x2 of triple i / 8 */
    uint8_t first[4][64], sum[4][64];           /* for the tables of two triples: x0, and the sum from those */
    __mmask64 has_second, has_third, has_first, has_sum;
} table_plan;

typedef struct many_scratch {
    table_plan plan;
    _Alignas(64) __m256i table[GROUPS * TRIPLES * TILE_TOKENS]; /* [two triples][token][triple]: 32 bytes, the last 5 unused */
    int32_t x[CHUNK_BYTES * TILE_TOKENS];           /* [packed byte][token]: the four columns of a byte */
    int32_t start[TILE_TOKENS];                     /* of T: -65 sum of x, since the codes are 1 larger than the weights */
    int32_t edge[TILE_TOKENS * BLOCK_ROWS];         /* sums of a block that is not whole */
    int32_t total[SETUN_MANY_TOKENS + TILE_TOKENS]; /* sum of a token's whole x */
    _Alignas(64) row_group rows[SETUN_MANY_ROWS / BLOCK_ROWS * GROUPS];
    int8_t ordered[];                               /* [tokens][stride]: x in the order of packed bytes and their fields */
} many_scratch;
_Static_assert(sizeof(many_scratch) <= SETUN_MANY_FIXED, "kernels.h sizes the scratch");

/* Of x in order: whole chunks, and an odd number of lines of the cache, so that tokens do not share sets. */
INLINE size_t stride_of(size_t bytes) { return ((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_COLUMNS + 63) / 64 * 64 | 64; }

/* r[i]: 64 bytes of row i -> r[d]: the d-th four bytes of each of 16 rows. */
INLINE void transpose(__m512i *r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            r[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + h + 2]);
            r[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + h + 2]);
        }
    for (int c = 0; c < 4; c++) { /* r[4q + c], 128 bits L: piece 4L + c of rows 4q .. 4q+3 */
        __m512i even0 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), odd0 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i even1 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88), odd1 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* Byte j of every lane of 32 bits -> its four fields, bits 7-6 first, each in the low two bits of a byte; above them lies what lies above the field. */
INLINE __m512i spread(__m512i bytes, int j) {
    static const uint32_t lane[4][4] = {{0, 0x04040404, 0x08080808, 0x0c0c0c0c}, {0x01010101, 0x05050505, 0x09090909, 0x0d0d0d0d}, {0x02020202, 0x06060606, 0x0a0a0a0a, 0x0e0e0e0e}, {0x03030303, 0x07070707, 0x0b0b0b0b, 0x0f0f0f0f}};
    __m512i same = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)lane[j])));
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2022242600020406), same);
}

/* A chunk of a block of rows. bytes: that are left of a row, fewer than CHUNK_BYTES in its last chunk; what lies past them counts as
 * code 0 and meets an x of 0. valid: rows that are there; the last one stands for the others. */
static __attribute__((noinline, no_sanitize("undefined"))) void order_codes(const uint8_t *codes, size_t row_bytes, size_t bytes, int groups, int valid, row_group *out) {
    const __mmask64 mask = bytes >= CHUNK_BYTES ? ((__mmask64)1 << CHUNK_BYTES) - 1 : ((__mmask64)1 << bytes) - 1;
    const __m512i three = _mm512_set1_epi8(3);
    /* fields 0 and 1, or 2 and 3, of 16 rows from each of two vectors */
    const __m512i one_two = _mm512_set_epi32(0x7d797571, 0x6d696561, 0x5d595551, 0x4d494541, 0x3d393531, 0x2d292521, 0x1d191511, 0x0d090501, 0x7c787470, 0x6c686460, 0x5c585450, 0x4c484440, 0x3c383430,
                                             0x2c282420, 0x1c181410, 0x0c080400);
    const __m512i three_four = _mm512_add_epi8(one_two, _mm512_set1_epi8(2));
    __m512i r[4][16];
    for (int h = 0; h < 4; h++) {
        for (int i = 0; i < 16; i++) r[h][i] = _mm512_maskz_loadu_epi8(mask, codes + (size_t)(16 * h + i < valid ? 16 * h + i : valid - 1) * row_bytes);
        transpose(r[h]);
    }
    for (int g = 0; g < groups; g++, out++) {
        __m512i code[GROUP_BYTES], index[2];
        for (int h = 0; h < 2; h++) {
            for (int b = 0; b < GROUP_BYTES; b++) {
                const int at = GROUP_BYTES * g + b;
                code[b] = _mm512_and_si512(spread(r[2 + h][at / 4], at % 4), three);
                /* (low & 3) | high << 6: 2 << 6 stays in its byte */
                out->pair[b][h] = _mm512_ternarylogic_epi64(spread(r[h][at / 4], at % 4), three, _mm512_slli_epi32(code[b], 6), 0xea);
            }
            __m512i nine = _mm512_add_epi8(code[0], _mm512_slli_epi32(code[0], 3)), thrice = _mm512_add_epi8(code[1], _mm512_slli_epi32(code[1], 1));
            index[h] = _mm512_add_epi8(_mm512_add_epi8(nine, thrice), code[2]); /* byte f of a lane: field f */
        }
        _mm512_store_si512(&out->index[0], _mm512_permutex2var_epi8(index[0], one_two, index[1]));
        _mm512_store_si512(&out->index[2], _mm512_permutex2var_epi8(index[0], three_four, index[1]));
    }
}

/* x of one token, 128 columns a block -> four columns of each packed byte side by side. Returns their sum. */
static int32_t order_x(const int8_t *x, size_t blocks, size_t stride, int8_t *out) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t b = 0; b < blocks; b++)
        for (int h = 0; h < 2; h++) {
            __m128i f[4];
            for (int j = 0; j < 4; j++) f[j] = _mm_loadu_si128((const __m128i *)(const void *)(x + 128 * b + 32 * (size_t)j + 16 * (size_t)h));
            __m128i lo01 = _mm_unpacklo_epi8(f[0], f[1]), lo23 = _mm_unpacklo_epi8(f[2], f[3]), hi01 = _mm_unpackhi_epi8(f[0], f[1]), hi23 = _mm_unpackhi_epi8(f[2], f[3]);
            __m512i all = _mm512_castsi128_si512(_mm_unpacklo_epi16(lo01, lo23));
            all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(lo01, lo23), 1);
            all = _mm512_inserti32x4(all, _mm_unpacklo_epi16(hi01, hi23), 2);
            all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(hi01, hi23), 3);
            _mm512_storeu_si512(out + 128 * b + 64 * (size_t)h, all);
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), all);
        }
    memset(out + 128 * blocks, 0, stride - 128 * blocks);
    return _mm512_reduce_add_epi32(sum);
}

static void plan_tables(table_plan *p) {
    p->has_second = p->has_third = p->has_first = p->has_sum = 0;
    for (int i = 0; i < 64; i++) {
        const int u = i / 8, jk = i % 8 + (i % 8 > 3), from = u / 4 * 12 + u % 4, j = jk / 3, k = jk % 3; /* jk of 4 is the sum of nothing */
        p->second[i] = (uint8_t)(from + 4 + 32 * (j == 0));
        p->third[i] = (uint8_t)(from + 8 + 32 * (k == 0));
        p->has_second |= (uint64_t)(j != 1) << i;
        p->has_third |= (uint64_t)(k != 1) << i;
        const int entry = i % 32 < 27 ? i % 32 : 13, rest = entry % 9;
        p->has_first |= (uint64_t)(entry / 9 != 1) << i;
        p->has_sum |= (uint64_t)(rest != 4) << i;
        for (int pair = 0; pair < 4; pair++) {
            const int triple = 2 * pair + i / 32;
            p->first[pair][i] = (uint8_t)(triple / 4 * 12 + triple % 4 + 32 * (entry / 9 == 0));
            p->sum[pair][i] = (uint8_t)(8 * triple + rest - (rest > 4));
        }
    }
}

/*
 * The tables of a chunk for a tile of tokens: entry 9i + 3j + k is (i - 1) x0 + (j - 1) x1 + (k - 1) x2 mod 256. Made for two groups at once, whose x is 24 bytes;
 * what is made for a group past the last is not looked at. First the 8 sums of x1 and x2 that are not 0, of 8 triples side by side; then two tables a vector.
 */
static __attribute__((noinline, no_sanitize("undefined"))) void make_tables(const int8_t *ordered, size_t stride, int groups, many_scratch *s) {
    const table_plan *p = &s->plan;
    const __mmask64 has_second = p->has_second, has_third = p->has_third, has_first = p->has_first, has_sum = p->has_sum;
    const __m512i at_second = _mm512_load_si512(p->second), at_third = _mm512_load_si512(p->third);
    __m512i at_first[4], at_sum[4];
    for (int pair = 0; pair < 4; pair++) at_first[pair] = _mm512_load_si512(p->first[pair]), at_sum[pair] = _mm512_load_si512(p->sum[pair]);
    for (int t = 0; t < TILE_TOKENS; t++) {
        __m512i *table = (__m512i *)s->table + t;
        const int8_t *at = ordered + (size_t)t * stride;
        for (int g = 0; g < groups; g += 2, at += 8 * GROUP_BYTES) {
            const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)at);
            const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_sub_epi8(_mm256_setzero_si256(), x), 1);
            const __m512i sums = _mm512_add_epi8(_mm512_maskz_permutexvar_epi8(has_second, at_second, both), _mm512_maskz_permutexvar_epi8(has_third, at_third, both));
            for (int pair = 0; pair < 4; pair++, table += TILE_TOKENS)
                _mm512_store_si512(table, _mm512_add_epi8(_mm512_maskz_permutexvar_epi8(has_first, at_first[pair], both), _mm512_maskz_permutexvar_epi8(has_sum, at_sum[pair], sums)));
        }
    }
}

/* x of a chunk and a tile, token by token -> four columns of each packed byte of all tokens side by side. */
static __attribute__((noinline, no_sanitize("undefined"))) void turn_x(const int8_t *ordered, size_t stride, int32_t *out) {
    for (int n = 0; n < CHUNK_BYTES / 16; n++, ordered += 64) {
        __m512i a[8], b[8];
        for (int t = 0; t < 8; t++) a[t] = _mm512_loadu_si512(ordered + (size_t)t * stride);
        for (int t = 0; t < 8; t += 2) {
            b[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]);
            b[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
        }
        for (int t = 0; t < 8; t += 4)
            for (int h = 0; h < 2; h++) { /* a[t + c], 128 bits L: byte 4L + c of tokens t .. t+3 */
                a[t + 2 * h] = _mm512_unpacklo_epi64(b[t + h], b[t + 2 + h]);
                a[t + 2 * h + 1] = _mm512_unpackhi_epi64(b[t + h], b[t + 2 + h]);
            }
        for (int c = 0; c < 4; c++) { /* 256 bits: byte 4L + c of all tokens */
            const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44), high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee);
            b[c] = _mm512_shuffle_i32x4(low, low, 0xd8);
            b[4 + c] = _mm512_shuffle_i32x4(high, high, 0xd8);
        }
        for (int l = 0; l < 2; l++) /* bytes 8l + c and 8l + 4 + c lie in b[4l + c] */
            for (int c = 0; c < 4; c++) {
                _mm256_store_si256((__m256i *)(void *)(out + (16 * n + 8 * l + c) * TILE_TOKENS), _mm512_castsi512_si256(b[4 * l + c]));
                _mm256_store_si256((__m256i *)(void *)(out + (16 * n + 8 * l + 4 + c) * TILE_TOKENS), _mm512_extracti64x4_epi64(b[4 * l + c], 1));
            }
    }
}

/* The groups that may be summed up before p and q are parted: all, unless some token's sum |x| is too large. Sets where T starts. */
static int take_span(const int8_t *ordered, size_t stride, int groups, int32_t *start) {
    for (int take = groups;; take = (take + 1) / 2) {
        int32_t most = 0;
        for (int t = 0; t < TILE_TOKENS; t++) {
            __m512i sum = _mm512_setzero_si512(), size = sum;
            for (int left = take * 4 * GROUP_BYTES, i = 0; left > 0; left -= 64, i += 64) {
                const __m512i x = _mm512_maskz_loadu_epi8(left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1, ordered + (size_t)t * stride + i);
                sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), x);
                size = _mm512_dpbusd_epi32(size, _mm512_abs_epi8(x), _mm512_set1_epi8(1));
            }
            const int32_t all = _mm512_reduce_add_epi32(size);
            if (all > most) most = all;
            start[t] = -65 * _mm512_reduce_add_epi32(sum);
        }
        if (most <= SAFE_SUM || take <= SAFE_GROUPS) return take;
    }
}

/*
 * Blocks of rows x one tile of tokens x the groups of a span, whose first table is given. first: the sums start instead of going on. What is summed up in their
 * place are T, of rows r and 32 + r in lane r of the first 32, and 4 p in the others: finish makes sums of them.
 * In asm, as compilers find no way to keep these 32 registers, and for the order: lookups and additions in fours among the multiplications. In other
 * orders Zen 4 lets vpermb take more turns with vpdpbusd on one pipe.
 * zmm 0-7 and 8-15: T of rows 0-15 and 32-47, 16-31 and 48-63, by token; 16-23 q; 24, 25 codes; 26 indices; 27 x; 28-31 what was looked up.
 */
#define EACH_TOKEN(DO) DO(0, 8, 16) DO(1, 9, 17) DO(2, 10, 18) DO(3, 11, 19) DO(4, 12, 20) DO(5, 13, 21) DO(6, 14, 22) DO(7, 15, 23)
#define START(a, b, q) "vpbroadcastd %c[start]+4*" #a "(%[s]), %%zmm" #a "\n\tvmovdqa64 %%zmm" #a ", %%zmm" #b "\n\tvpxord %%xmm" #q ", %%xmm" #q ", %%xmm" #q "\n\t"
#define CODES(byte) "vmovdqa64 128*" #byte "(%[group]), %%zmm24\n\tvmovdqa64 128*" #byte "+64(%[group]), %%zmm25\n\t"
#define INDEX(field) "vmovdqa64 384+32*" #field "(%[group]), %%ymm26\n\t"
#define MULTIPLY(a, b, byte) "vpbroadcastd 32*" #byte "+4*" #a "(%[x]), %%zmm27\n\tvpdpbusd %%zmm27, %%zmm24, %%zmm" #a "\n\tvpdpbusd %%zmm27, %%zmm25, %%zmm" #b "\n\t"
#define FOUND(table, to) "vpermb 32*" #table "(%[table]), %%ymm26, %%ymm" #to "\n\t"
#define ADD(q, from) "vpaddb %%ymm" #from ", %%ymm" #q ", %%ymm" #q "\n\t"
#define LOOK_UP_0(t0, t1, t2, t3) FOUND(t0, 28) FOUND(t1, 29) FOUND(t2, 30) FOUND(t3, 31) ADD(16, 28) ADD(17, 29) ADD(18, 30) ADD(19, 31)
#define LOOK_UP_4(t4, t5, t6, t7) FOUND(t4, 28) FOUND(t5, 29) FOUND(t6, 30) FOUND(t7, 31) ADD(20, 28) ADD(21, 29) ADD(22, 30) ADD(23, 31)
#define GROUP \
    CODES(0) INDEX(0) MULTIPLY(0, 8, 0) MULTIPLY(1, 9, 0) MULTIPLY(2, 10, 0) MULTIPLY(3, 11, 0) LOOK_UP_0(0, 2, 4, 6) \
    MULTIPLY(4, 12, 0) MULTIPLY(5, 13, 0) MULTIPLY(6, 14, 0) MULTIPLY(7, 15, 0) LOOK_UP_4(8, 10, 12, 14) \
    CODES(1) INDEX(1) MULTIPLY(0, 8, 1) MULTIPLY(1, 9, 1) MULTIPLY(2, 10, 1) MULTIPLY(3, 11, 1) LOOK_UP_0(1, 3, 5, 7) \
    MULTIPLY(4, 12, 1) MULTIPLY(5, 13, 1) MULTIPLY(6, 14, 1) MULTIPLY(7, 15, 1) LOOK_UP_4(9, 11, 13, 15) \
    CODES(2) INDEX(2) MULTIPLY(0, 8, 2) MULTIPLY(1, 9, 2) LOOK_UP_0(16, 18, 20, 22) MULTIPLY(2, 10, 2) MULTIPLY(3, 11, 2) LOOK_UP_4(24, 26, 28, 30) \
    INDEX(3) MULTIPLY(4, 12, 2) MULTIPLY(5, 13, 2) LOOK_UP_0(17, 19, 21, 23) MULTIPLY(6, 14, 2) MULTIPLY(7, 15, 2) LOOK_UP_4(25, 27, 29, 31)
/* 4 T - 256 q in words, mod 2^16, is 4 p. T goes to the sums of T, 4 p to those of 4 p; 28: words of T side by side, then 4 p. */
#define FOUR_P(a, b, q) \
    "vmovdqa64 %%zmm24, %%zmm28\n\tvpermi2w %%zmm" #b ", %%zmm" #a ", %%zmm28\n\tvpermb %%zmm" #q ", %%zmm25, %%zmm29%{%%k1%}%{z%}\n\tvpsllw $2, %%zmm28, %%zmm28\n\tvpsubw %%zmm29, %%zmm28, %%zmm28\n\t"
#define SUM_UP(a, b) \
    "vpdpwssd %%zmm26, %%zmm28, %%zmm30\n\tvpdpwssd %%zmm27, %%zmm28, %%zmm31\n\tvmovdqu64 %%zmm" #a ", (%[to])\n\tvmovdqu64 %%zmm" #b ", 64(%[to])\n\t" \
    "vmovdqu64 %%zmm30, 128(%[to])\n\tvmovdqu64 %%zmm31, 192(%[to])\n\tadd %[stride], %[to]\n\t"
#define GO_ON(a, b, q) \
    FOUR_P(a, b, q) "vmovdqu64 128(%[to]), %%zmm30\n\tvmovdqu64 192(%[to]), %%zmm31\n\tvpaddd (%[to]), %%zmm" #a ", %%zmm" #a "\n\tvpaddd 64(%[to]), %%zmm" #b ", %%zmm" #b "\n\t" SUM_UP(a, b)
#define BEGIN(a, b, q) FOUR_P(a, b, q) "vpxord %%xmm30, %%xmm30, %%xmm30\n\tvpxord %%xmm31, %%xmm31, %%xmm31\n\t" SUM_UP(a, b)
#define REGISTERS \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", \
    "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31", "k1", "cc", "memory"
/* What is needed once a block and has no register. words: the low words of T of rows r and 16 + r, side by side; bytes: their q to the top of them. */
typedef struct once {
    _Alignas(64) uint16_t words[32];
    uint8_t bytes[64];
    int16_t even[32], odd[32];
    int32_t start[TILE_TOKENS];
    uint64_t has_bytes, first;
} once;

static __attribute__((noinline, no_sanitize("undefined"))) void blocks_of_rows(const row_group *rows, int blocks, int groups, const __m256i *tables, const int32_t *x_tile, const int32_t *start, int32_t *sums,
                                                                              size_t stride, bool first) {
    once s = {.has_bytes = 0xaaaaaaaaaaaaaaaa, .first = first};
    for (int i = 0; i < 32; i++) {
        s.words[i] = (uint16_t)(i % 2 * 32 + i / 2 * 2);
        s.bytes[2 * i + 1] = (uint8_t)(i % 2 * 16 + i / 2);
        s.even[i] = (int16_t)(i % 2 == 0);
        s.odd[i] = (int16_t)(i % 2);
    }
    memcpy(s.start, start, sizeof s.start);
    for (int n = 0; n < blocks; n++, rows += GROUPS, sums += BLOCK_ROWS) {
        const row_group *group = rows;
        const __m256i *table = tables;
        const int32_t *x = x_tile;
        int32_t *to = sums;
        const char *fetch = (const char *)sums;
        size_t ahead = 128;
        __asm__ volatile(
            EACH_TOKEN(START)
            ".p2align 6\n1:\n\t"
            GROUP
            /* what is summed up at the end, by then: lines 0, 1 of a token, 2, 3, 0, 1 of the next .. */
            "prefetchw (%[fetch])\n\tprefetchw 64(%[fetch])\n\tadd %[ahead], %[fetch]\n\tneg %[ahead]\n\tadd %[stride], %[ahead]\n\t"
            "add %[table_bytes], %[table]\n\tadd %[x_bytes], %[x]\n\tadd %[group_bytes], %[group]\n\tcmp %[end], %[group]\n\tjne 1b\n\t"
            "kmovq %c[has_bytes](%[s]), %%k1\n\tvmovdqa64 (%[s]), %%zmm24\n\tvmovdqa64 64(%[s]), %%zmm25\n\tvmovdqa64 128(%[s]), %%zmm26\n\tvmovdqa64 192(%[s]), %%zmm27\n\t"
            "cmpq $0, %c[first](%[s])\n\tjne 2f\n\t"
            EACH_TOKEN(GO_ON) "jmp 3f\n2:\n\t"
            EACH_TOKEN(BEGIN) "3:\n\t"
            : [group] "+&r"(group), [table] "+&r"(table), [x] "+&r"(x), [to] "+&r"(to), [fetch] "+&r"(fetch), [ahead] "+&r"(ahead)
            : [end] "r"(rows + groups), [stride] "r"(4 * stride), [s] "r"(&s), [table_bytes] "i"(sizeof(__m256i) * TRIPLES * TILE_TOKENS), [x_bytes] "i"(4 * GROUP_BYTES * TILE_TOKENS),
              [group_bytes] "i"(sizeof(row_group)), [start] "i"(offsetof(once, start)), [has_bytes] "i"(offsetof(once, has_bytes)), [first] "i"(offsetof(once, first))
            : REGISTERS);
    }
}

/* Sums of T and of 4 p -> sums of code x: p and q, and what the codes are larger by. */
static __attribute__((no_sanitize("undefined"))) void finish(int32_t *sums, size_t stride, int blocks, const int32_t *total) {
    for (int t = 0; t < TILE_TOKENS; t++, sums += stride)
        for (int n = 0; n < 2 * blocks; n++) {
            int32_t *at = sums + n / 2 * BLOCK_ROWS + n % 2 * 16;
            const __m512i all = _mm512_set1_epi32(total[t]), p = _mm512_srai_epi32(_mm512_loadu_si512(at + 32), 2), q = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_loadu_si512(at), p), 6);
            _mm512_storeu_si512(at, _mm512_add_epi32(p, all));
            _mm512_storeu_si512(at + 32, _mm512_add_epi32(q, all));
        }
}

/* And back. */
static __attribute__((no_sanitize("undefined"))) void resume(int32_t *sums, size_t stride, const int32_t *total) {
    for (int t = 0; t < TILE_TOKENS; t++, sums += stride)
        for (int h = 0; h < 2; h++) {
            int32_t *at = sums + 16 * h;
            const __m512i all = _mm512_set1_epi32(total[t]), p = _mm512_sub_epi32(_mm512_loadu_si512(at), all), q = _mm512_sub_epi32(_mm512_loadu_si512(at + 32), all);
            _mm512_storeu_si512(at, _mm512_add_epi32(p, _mm512_slli_epi32(q, 6)));
            _mm512_storeu_si512(at + 32, _mm512_slli_epi32(p, 2));
        }
}

/* A block at the edge: fewer than 64 rows or 8 tokens. Its sums go by way of a whole one, finished each time. */
static void block_edge(const row_group *rows, int groups, const __m256i *tables, const int32_t *x_tile, many_scratch *s, const int32_t *total, int32_t *sums, size_t stride, bool first, int valid_rows,
                       int valid_tokens) {
    if (!first) {
        memset(s->edge, 0, sizeof s->edge);
        for (int t = 0; t < valid_tokens; t++) memcpy(s->edge + t * BLOCK_ROWS, sums + (size_t)t * stride, (size_t)valid_rows * 4);
        resume(s->edge, BLOCK_ROWS, total);
    }
    blocks_of_rows(rows, 1, groups, tables, x_tile, s->start, s->edge, BLOCK_ROWS, first);
    finish(s->edge, BLOCK_ROWS, 1, total);
    for (int t = 0; t < valid_tokens; t++) memcpy(sums + (size_t)t * stride, s->edge + t * BLOCK_ROWS, (size_t)valid_rows * 4);
}

/* Pieces of lines far apart, which no stream prefetcher finds: the next tile's x, and rows' codes a little ahead of being put in order. */
INLINE void fetch_x(const int8_t *at, size_t stride) {
    for (int t = 0; t < TILE_TOKENS; t++)
        for (size_t i = 0; i < CHUNK_COLUMNS + 63; i += 64) _mm_prefetch((const char *)((uintptr_t)at + (size_t)t * stride + i), _MM_HINT_T0);
}

INLINE void fetch_codes(const uint8_t *at, size_t row_bytes, int rows) {
    for (int r = 0; r < rows; r++) {
        _mm_prefetch((const char *)((uintptr_t)at + (size_t)r * row_bytes), _MM_HINT_T0);
        _mm_prefetch((const char *)((uintptr_t)at + (size_t)r * row_bytes + CHUNK_BYTES - 1), _MM_HINT_T0);
    }
}

void setun_avx512_ternary_i8_many(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride, void *scratch) {
    if (k > LONGEST) {
        setun_avx512_ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, sums, out_stride);
        return;
    }
    many_scratch *s = scratch;
    plan_tables(&s->plan);
    const size_t blocks = (size_t)((k + 127) / 128), bytes = 32 * blocks, stride = stride_of(bytes);
    for (int t0 = 0; t0 < tokens; t0 += SETUN_MANY_TOKENS) {
        const int count = tokens - t0 < SETUN_MANY_TOKENS ? tokens - t0 : SETUN_MANY_TOKENS, padded = (count + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
        for (int t = 0; t < count; t++) s->total[t] = order_x(x + (size_t)(t0 + t) * x_stride, blocks, stride, s->ordered + (size_t)t * stride);
        memset(s->total + count, 0, (size_t)(padded - count) * 4);
        memset(s->ordered + (size_t)count * stride, 0, (size_t)(padded - count) * stride);
        for (int r0 = 0; r0 < rows; r0 += SETUN_MANY_ROWS) {
            const int part = rows - r0 < SETUN_MANY_ROWS ? rows - r0 : SETUN_MANY_ROWS;
            for (size_t c = 0; c < bytes; c += CHUNK_BYTES) {
                const int groups = bytes - c < CHUNK_BYTES ? (int)((bytes - c + GROUP_BYTES - 1) / GROUP_BYTES) : GROUPS;
                for (int r = 0; r < part; r += BLOCK_ROWS) {
                    const int next = r + FETCH_ROWS;
                    if (next < part) fetch_codes(codes + (size_t)(r0 + next) * row_bytes + c, row_bytes, part - next < BLOCK_ROWS ? part - next : BLOCK_ROWS);
                    order_codes(codes + (size_t)(r0 + r) * row_bytes + c, row_bytes, bytes - c, groups, part - r < BLOCK_ROWS ? part - r : BLOCK_ROWS, s->rows + r / BLOCK_ROWS * GROUPS);
                }
                for (int t = 0; t < count; t += TILE_TOKENS) {
                    const int8_t *at = s->ordered + (size_t)t * stride + 4 * c;
                    make_tables(at, stride, groups, s);
                    turn_x(at, stride, s->x);
                    fetch_x(t + TILE_TOKENS < padded ? at + TILE_TOKENS * stride : s->ordered + 4 * (c + CHUNK_BYTES), stride);
                    int32_t *out = sums + (size_t)(t0 + t) * out_stride + r0;
                    const int valid = count - t < TILE_TOKENS ? count - t : TILE_TOKENS, whole = valid == TILE_TOKENS ? part / BLOCK_ROWS : 0;
                    for (int g = 0, span; g < groups; g += span) {
                        const bool first = c == 0 && g == 0;
                        const __m256i *tables = s->table + g * TRIPLES * TILE_TOKENS;
                        const int32_t *x_at = s->x + GROUP_BYTES * TILE_TOKENS * g;
                        span = take_span(at + 4 * GROUP_BYTES * g, stride, groups - g, s->start);
                        blocks_of_rows(s->rows + g, whole, span, tables, x_at, s->start, out, out_stride, first);
                        if (c + CHUNK_BYTES >= bytes && g + span == groups) finish(out, out_stride, whole, s->total + t);
                        for (int r = whole * BLOCK_ROWS; r < part; r += BLOCK_ROWS)
                            block_edge(s->rows + r / BLOCK_ROWS * GROUPS + g, span, tables, x_at, s, s->total + t, out + r, out_stride, first, part - r < BLOCK_ROWS ? part - r : BLOCK_ROWS, valid);
                    }
                }
            }
        }
    }
}
#endif
