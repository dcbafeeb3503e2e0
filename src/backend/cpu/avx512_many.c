/*
 * avx512_many.c - ternary_i8_many for AVX-512 with VNNI and VBMI: a prompt's tokens over the same rows. Called through
 * table_avx512.c; ref_many.c says what it computes. Knows 2-bit rows only.
 *
 * Lanes are rows: 32 rows are a block, 8 tokens a tile. Of 7 columns vpdpbusd multiplies 4 (two vectors of 16 rows, four codes a
 * lane); for the other 3 each token has a table of its 27 possible sums, and one vpermw looks up 32 rows in it. vpdpbusd keeps two
 * of the four pipes of Zen 4 busy, vpermw and its addition the other two: 224 multiply-adds in 2 cycles instead of 3.5.
 * The rows' codes are put into that order once for all tokens. A chunk of columns is small enough that its tables stay in L1.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined")))

enum {
    GROUP_BYTES = 7,                /* of packed codes: 28 columns */
    GROUPS = 8,                     /* in a chunk: tables of 16 KiB and 6 KiB of codes a block of rows; with 9 the L1 cache is too small */
    CHUNK_BYTES = GROUPS * GROUP_BYTES,
    STEPS = 4 * GROUPS,
    TILE_TOKENS = SETUN_MANY_TILE,                /* 3 x 8 accumulators, codes, indices, a broadcast and four products fill 32 registers */
    BLOCK_ROWS = 32,
    FETCH_ROWS = 2 * BLOCK_ROWS     /* how far ahead codes are fetched: long enough for memory, short enough to still be there */
};
_Static_assert(CHUNK_BYTES <= 64 && TILE_TOKENS == 8 && GROUPS <= TILE_TOKENS, "one load a row and chunk; eight tokens are written out below");

/* Codes of 32 rows x 28 columns. Packed bytes 0..3 of the group go to vpdpbusd: lane r of step[j].a holds the four codes of byte j of row r,
 * b those of row 16 + r. Bytes 4..6 give indices 9 c4 + 3 c5 + c6, step[j] has those of field j: word 2r of row r, word 2r+1 of row 16 + r.
 * vpermw looks at the low five bits. The indices of two steps would fit one vector, but shifting it costs the pipe that vpermw needs. */
typedef struct row_group {
    struct { __m512i index, a, b; } step[4];
} row_group;

typedef struct many_scratch {
    __m512i table[STEPS * TILE_TOKENS];     /* [step][token]: 32 words, the last 5 unused */
    int32_t x[STEPS * TILE_TOKENS];         /* four values of x each */
    int32_t edge[TILE_TOKENS * BLOCK_ROWS]; /* sums of a block that is not whole */
    row_group rows[SETUN_MANY_ROWS / BLOCK_ROWS * GROUPS];
    int8_t ordered[];                       /* [tokens][stride]: x in the order of packed bytes and their fields */
} many_scratch;
_Static_assert(sizeof(many_scratch) <= SETUN_MANY_FIXED, "kernels.h sizes the scratch");

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

/* Byte j of every lane of 32 bits -> its four codes, bits 7-6 first. */
INLINE __m512i spread(__m512i bytes, int j) {
    const __m512i lane = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    __m512i same = _mm512_shuffle_epi8(bytes, _mm512_add_epi8(lane, _mm512_set1_epi8((char)j)));
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2022242600020406), same), _mm512_set1_epi8(3));
}

/* A chunk of a block of rows. bytes: that are left of a row, fewer than CHUNK_BYTES in its last chunk; what lies past them counts as
 * code 0 and meets an x of 0. valid: rows that are there; the last one stands for the others. */
static __attribute__((noinline, no_sanitize("undefined"))) void order_codes(const uint8_t *codes, size_t row_bytes, size_t bytes, int valid, row_group *out) {
    __mmask64 mask = bytes >= CHUNK_BYTES ? ((__mmask64)1 << CHUNK_BYTES) - 1 : ((__mmask64)1 << bytes) - 1;
    __m512i r[2][16];
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 16; i++) r[h][i] = _mm512_maskz_loadu_epi8(mask, codes + (size_t)(16 * h + i < valid ? 16 * h + i : valid - 1) * row_bytes);
        transpose(r[h]);
    }
    for (int g = 0; g < GROUPS; g++) {
        __m512i index[2];
        for (int h = 0; h < 2; h++) {
            __m512i code[GROUP_BYTES];
            for (int p = 0; p < GROUP_BYTES; p++) code[p] = spread(r[h][(GROUP_BYTES * g + p) / 4], (GROUP_BYTES * g + p) % 4);
            for (int p = 0; p < 4; p++) *(h ? &out[g].step[p].b : &out[g].step[p].a) = code[p];
            __m512i nine = _mm512_add_epi8(code[4], _mm512_slli_epi32(code[4], 3)), three = _mm512_add_epi8(code[5], _mm512_slli_epi32(code[5], 1));
            index[h] = _mm512_add_epi8(_mm512_add_epi8(nine, three), code[6]); /* byte f of a lane: field f */
        }
        const __mmask32 odd = 0xaaaaaaaa;
        out[g].step[0].index = _mm512_mask_blend_epi16(odd, index[0], _mm512_slli_epi32(index[1], 16));
        out[g].step[1].index = _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(index[0], 8), _mm512_slli_epi32(index[1], 8));
        out[g].step[2].index = _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(index[0], 16), index[1]);
        out[g].step[3].index = _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(index[0], 24), _mm512_srli_epi32(index[1], 8));
    }
}

/* x of one token, 128 columns a block -> four columns of each packed byte side by side. */
static void order_x(const int8_t *x, size_t blocks, size_t stride, int8_t *out) {
    for (size_t b = 0; b < blocks; b++)
        for (int h = 0; h < 2; h++) {
            __m128i f[4];
            for (int j = 0; j < 4; j++) f[j] = _mm_loadu_si128((const __m128i *)(const void *)(x + 128 * b + 32 * (size_t)j + 16 * (size_t)h));
            __m128i lo01 = _mm_unpacklo_epi8(f[0], f[1]), lo23 = _mm_unpacklo_epi8(f[2], f[3]), hi01 = _mm_unpackhi_epi8(f[0], f[1]), hi23 = _mm_unpackhi_epi8(f[2], f[3]);
            __m128i *to = (__m128i *)(void *)(out + 128 * b + 64 * (size_t)h);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(lo01, lo23));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(lo01, lo23));
            _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(hi01, hi23));
            _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(hi01, hi23));
        }
    if (stride > 128 * blocks) memset(out + 128 * blocks, 0, stride - 128 * blocks);
}

/* The tables of a chunk for a tile of tokens. Entry 9i + 3j + k is i x0 + j x1 + k x2: at most 6 * 128 = 768. vpdpbusd makes sixteen
 * of them in 32 bits, entries 8n .. 8n+3 and 8n+4 .. 8n+7 of each 128 bits apart; vpackssdw brings them together. */
static __attribute__((noinline, no_sanitize("undefined"))) void make_tables(const int8_t *ordered, size_t stride, int groups, many_scratch *s) {
    __m512i entry = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0), weight[2];
    for (int h = 0; h < 2; h++, entry = _mm512_add_epi32(entry, _mm512_set1_epi32(4))) {
        /* i = entry / 9 and entry / 3 by multiplying, exact below 32; entries past 26 are not looked at */
        const __m512i i = _mm512_srli_epi32(_mm512_mullo_epi32(entry, _mm512_set1_epi32(57)), 9), thirds = _mm512_srli_epi32(_mm512_mullo_epi32(entry, _mm512_set1_epi32(43)), 7);
        const __m512i j = _mm512_sub_epi32(thirds, _mm512_mullo_epi32(i, _mm512_set1_epi32(3))), k = _mm512_sub_epi32(entry, _mm512_mullo_epi32(thirds, _mm512_set1_epi32(3)));
        weight[h] = _mm512_or_si512(i, _mm512_or_si512(_mm512_slli_epi32(j, 8), _mm512_slli_epi32(k, 16)));
    }
    const __m512i gather = _mm512_broadcast_i32x4(_mm_setr_epi8(4, 8, 12, -1, 5, 9, 13, -1, 6, 10, 14, -1, 7, 11, 15, -1));
    for (int t = 0; t < TILE_TOKENS; t++) {
        __m512i *table = s->table + t;
        int32_t *x = s->x + t;
        const int8_t *at = ordered + (size_t)t * stride;
        for (int g = 0; g < groups; g++, at += 4 * GROUP_BYTES) {
            __m512i three = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(at + 12))), gather); /* bytes 4, 5 and 6, field by field */
#define STEP(j) { \
                __m512i field = _mm512_shuffle_epi32(three, 0x55 * (j)); \
                __m512i low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weight[0], field), high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weight[1], field); \
                _mm512_store_si512(table, _mm512_packs_epi32(low, high)); \
                memcpy(x, at + 4 * (j), 4); \
                table += TILE_TOKENS; \
                x += TILE_TOKENS; \
            }
            STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
        }
    }
}

/*
 * Blocks of rows x one tile of tokens x one chunk. Looked-up sums: STEPS * 768 = 24576 fits int16. In an int32 lane the whole row stays
 * below 2 * 128 * k.
 * The asm fixes the order. In any order the pipes could take one token each 2 cycles, but Zen 4 falls into a rhythm in which vpermw takes
 * turns with vpdpbusd on one pipe, 2.5 cycles, where each lookup is followed by its own addition and the next token; four lookups, then their
 * additions, take 2.3.
 */
#define EACH_TOKEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static __attribute__((noinline, no_sanitize("undefined"))) void blocks_of_rows(const row_group *rows, int blocks, int groups, const many_scratch *s, int32_t *sums, size_t stride, bool first) {
#define POINT(t) int32_t *to##t = sums + (t) * stride;
    EACH_TOKEN(POINT)
#undef POINT
    for (int n = 0; n < blocks; n++, rows += GROUPS) {
        const __m512i *table = s->table;
        const int32_t *x = s->x;
#define DECLARE(t) __m512i p##t = _mm512_setzero_si512(), a##t = p##t, b##t = p##t;
        EACH_TOKEN(DECLARE)
#undef DECLARE
        if (!first) { /* and the next block's sums are fetched; an address that is not there does no harm */
#define LOAD(t) a##t = _mm512_loadu_si512(to##t), b##t = _mm512_loadu_si512(to##t + 16); \
            _mm_prefetch((const char *)((uintptr_t)to##t + 4 * BLOCK_ROWS), _MM_HINT_T0); \
            _mm_prefetch((const char *)((uintptr_t)to##t + 4 * BLOCK_ROWS + 64), _MM_HINT_T0);
            EACH_TOKEN(LOAD)
#undef LOAD
        }
        for (const row_group *group = rows; group < rows + groups; group++) {
#define LOOK_UP(t0, t1, t2, t3) \
            __m512i found##t0, found##t1, found##t2, found##t3; \
            __asm__ volatile("vpermw %[m0], %[i], %[f0]\n\tvpermw %[m1], %[i], %[f1]\n\tvpermw %[m2], %[i], %[f2]\n\tvpermw %[m3], %[i], %[f3]" \
                : [f0] "=&v"(found##t0), [f1] "=&v"(found##t1), [f2] "=&v"(found##t2), [f3] "=&v"(found##t3) \
                : [i] "v"(index), [m0] "m"(table[t0]), [m1] "m"(table[t1]), [m2] "m"(table[t2]), [m3] "m"(table[t3]));
#define MULTIPLY(t) { \
                __m512i four; \
                __asm__ volatile("vpbroadcastd %[x], %[f]\n\tvpdpbusd %[f], %[ca], %[a]\n\tvpdpbusd %[f], %[cb], %[b]" \
                    : [f] "=&v"(four), [a] "+v"(a##t), [b] "+v"(b##t) : [x] "m"(x[t]), [ca] "v"(codes_a), [cb] "v"(codes_b)); \
            }
#define ADD(t) __asm__ volatile("vpaddw %[f], %[p], %[p]" : [p] "+v"(p##t) : [f] "v"(found##t));
#define STEP(j) { \
                const __m512i index = group->step[j].index, codes_a = group->step[j].a, codes_b = group->step[j].b; \
                MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) LOOK_UP(0, 1, 2, 3) ADD(0) ADD(1) ADD(2) ADD(3) \
                MULTIPLY(4) MULTIPLY(5) MULTIPLY(6) MULTIPLY(7) LOOK_UP(4, 5, 6, 7) ADD(4) ADD(5) ADD(6) ADD(7) \
                table += TILE_TOKENS; \
                x += TILE_TOKENS; \
            }
            STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
#undef ADD
#undef MULTIPLY
#undef LOOK_UP
        }
        const __m512i even = _mm512_set1_epi32(1); /* words 2r, in 32 bits; the odd ones by shifting */
#define STORE(t) \
        _mm512_storeu_si512(to##t, _mm512_dpwssd_epi32(a##t, p##t, even)); \
        _mm512_storeu_si512(to##t + 16, _mm512_add_epi32(b##t, _mm512_srai_epi32(p##t, 16))); \
        to##t += BLOCK_ROWS;
        EACH_TOKEN(STORE)
#undef STORE
    }
}

/* A block at the edge: fewer than 32 rows or 8 tokens. Its sums go by way of a whole one. */
static void block_edge(const row_group *rows, int groups, many_scratch *s, int32_t *sums, size_t stride, bool first, int valid_rows, int valid_tokens) {
    for (int t = 0; t < valid_tokens && !first; t++) memcpy(s->edge + t * BLOCK_ROWS, sums + (size_t)t * stride, (size_t)valid_rows * 4);
    blocks_of_rows(rows, 1, groups, s, s->edge, BLOCK_ROWS, first);
    for (int t = 0; t < valid_tokens; t++) memcpy(sums + (size_t)t * stride, s->edge + t * BLOCK_ROWS, (size_t)valid_rows * 4);
}

/* Pieces of lines far apart, which no stream prefetcher finds: the next tile's x, and rows' codes a little ahead of being put in order. */
INLINE void fetch_x(const int8_t *at, size_t stride) {
    for (int t = 0; t < TILE_TOKENS; t++)
        for (size_t i = 0; i < 4 * CHUNK_BYTES + 63; i += 64) _mm_prefetch((const char *)((uintptr_t)at + (size_t)t * stride + i), _MM_HINT_T0);
}

INLINE void fetch_codes(const uint8_t *at, size_t row_bytes, int rows) {
    for (int r = 0; r < rows; r++) {
        _mm_prefetch((const char *)((uintptr_t)at + (size_t)r * row_bytes), _MM_HINT_T0);
        _mm_prefetch((const char *)((uintptr_t)at + (size_t)r * row_bytes + CHUNK_BYTES - 1), _MM_HINT_T0);
    }
}

void setun_avx512_ternary_i8_many(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride, void *scratch) {
    many_scratch *s = scratch;
    size_t blocks = (size_t)((k + 127) / 128), bytes = 32 * blocks, stride = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES * 4;
    for (int t0 = 0; t0 < tokens; t0 += SETUN_MANY_TOKENS) {
        int count = tokens - t0 < SETUN_MANY_TOKENS ? tokens - t0 : SETUN_MANY_TOKENS;
        for (int t = 0; t < count; t++) order_x(x + (size_t)(t0 + t) * x_stride, blocks, stride, s->ordered + (size_t)t * stride);
        int padded = (count + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
        memset(s->ordered + (size_t)count * stride, 0, (size_t)(padded - count) * stride);
        for (int r0 = 0; r0 < rows; r0 += SETUN_MANY_ROWS) {
            int part = rows - r0 < SETUN_MANY_ROWS ? rows - r0 : SETUN_MANY_ROWS;
            for (size_t c = 0; c < bytes; c += CHUNK_BYTES) {
                int groups = bytes - c < CHUNK_BYTES ? (int)((bytes - c + GROUP_BYTES - 1) / GROUP_BYTES) : GROUPS;
                for (int r = 0; r < part; r += BLOCK_ROWS) {
                    const int next = r + FETCH_ROWS;
                    if (next < part) fetch_codes(codes + (size_t)(r0 + next) * row_bytes + c, row_bytes, part - next < BLOCK_ROWS ? part - next : BLOCK_ROWS);
                    order_codes(codes + (size_t)(r0 + r) * row_bytes + c, row_bytes, bytes - c, part - r < BLOCK_ROWS ? part - r : BLOCK_ROWS, s->rows + r / BLOCK_ROWS * GROUPS);
                }
                for (int t = 0; t < count; t += TILE_TOKENS) {
                    make_tables(s->ordered + (size_t)t * stride + 4 * c, stride, groups, s);
                    const bool more = t + TILE_TOKENS < padded;
                    fetch_x(more ? s->ordered + (size_t)(t + TILE_TOKENS) * stride + 4 * c : s->ordered + 4 * (c + CHUNK_BYTES), stride);
                    int32_t *out = sums + (size_t)(t0 + t) * out_stride + r0;
                    const int valid = count - t < TILE_TOKENS ? count - t : TILE_TOKENS, whole = valid == TILE_TOKENS ? part / BLOCK_ROWS : 0;
                    blocks_of_rows(s->rows, whole, groups, s, out, out_stride, c == 0);
                    for (int r = whole * BLOCK_ROWS; r < part; r += BLOCK_ROWS)
                        block_edge(s->rows + r / BLOCK_ROWS * GROUPS, groups, s, out + r, out_stride, c == 0, part - r < BLOCK_ROWS ? part - r : BLOCK_ROWS, valid);
                }
            }
        }
    }
}
#endif
