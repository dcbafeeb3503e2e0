/*
 * avx2_many.c - ternary_i8_many for AVX2: a prompt's tokens over the same rows. Called through table_avx2.c; ref_many.c says what
 * it computes. Knows 2-bit rows only.
 *
 * Lanes are tokens: 32 of them, int16, in two vectors. For three columns there are 27 possible sums of -x, 0 or x; a table holds them
 * for all 32 tokens, and three codes of a row are the index of the entry to add: two loads with addition do 96 multiply-adds, where
 * vpmaddubsw with vpaddw does 32. Tables of 48 columns (27 KiB) stay in L1 while the rows pass by; the rows' codes are made indices once
 * for all tokens.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined")))

enum {
    LANES = 32,                 /* tokens of a group */
    ENTRIES = 27,
    ENTRY_BYTES = LANES * 2,
    SCALE = ENTRY_BYTES / 8,    /* an index is stored times this, a byte: the processor multiplies by the other 8 */
    LOOKUPS = 16,               /* tables at a time */
    UNIT = 32                   /* columns in one field of a packed block */
};

/*
 * The units of a row are cut into three equal parts (the last one padded with x = 0): position p stands for columns p, third + p and
 * 2 third + p. Its index is 9 c + 3 c' + c''. scratch, each part a multiple of 64 bytes:
 *     table    int16 [LOOKUPS][ENTRIES][LANES]
 *     sums     int16 [SETUN_MANY_ROWS][LANES]         of code - 1 times x, for the columns since they were last widened
 *     columns  int8 [3][third][LANES]                 x of the group
 *     indices  u8 [third / LOOKUPS][rows][LOOKUPS]
 * third <= k/3 + 64: the last two are at most (96 + SETUN_MANY_ROWS) (k/3 + 64) bytes, and all four less than setun_many_scratch(k).
 */
typedef struct layout {
    int16_t *table, *sums;
    int8_t *columns;
    uint8_t *indices;
    size_t third;
} layout;

enum { TABLE_BYTES = LOOKUPS * ENTRIES * ENTRY_BYTES, SUM_BYTES = SETUN_MANY_ROWS * ENTRY_BYTES };
_Static_assert(TABLE_BYTES % 64 == 0 && TABLE_BYTES + SUM_BYTES + (96 + SETUN_MANY_ROWS) * 64 <= SETUN_MANY_FIXED && (96 + SETUN_MANY_ROWS) / 3 + 1 <= SETUN_MANY_COLUMN,
               "kernels.h sizes the scratch");

INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m256i field(__m256i packed, size_t j) { return _mm256_and_si256(_mm256_srl_epi16(packed, _mm_cvtsi32_si128(6 - 2 * (int)j)), _mm256_set1_epi8(3)); }

/* 32 codes of a row; past its end: 0, they meet an x of 0. */
INLINE __m256i unit_codes(const uint8_t *row, size_t unit, size_t units) { return unit < units ? field(load(row + unit / 4 * 32), unit % 4) : _mm256_setzero_si256(); }

/* Indices of all rows, a chunk of 16 positions after the other. */
static __attribute__((noinline, no_sanitize("undefined"))) void make_indices(const uint8_t *codes, size_t row_bytes, size_t units, int rows, const layout *l) {
    size_t third = l->third / UNIT;
    for (int r = 0; r < rows; r++) {
        const uint8_t *row = codes + (size_t)r * row_bytes;
        for (size_t u = 0; u < third; u++) {
            __m256i a = unit_codes(row, u, units), b = unit_codes(row, third + u, units), c = unit_codes(row, 2 * third + u, units);
            __m256i b3 = _mm256_add_epi8(b, _mm256_add_epi8(b, b)), a9 = _mm256_add_epi8(a, _mm256_slli_epi16(a, 3)); /* at most 18: no bit leaves its byte */
            __m256i index = _mm256_slli_epi16(_mm256_add_epi8(a9, _mm256_add_epi8(b3, c)), 3);                          /* at most 208 */
            uint8_t *out = l->indices + (2 * u * (size_t)rows + (size_t)r) * LOOKUPS;
            _mm_store_si128((__m128i *)(void *)out, _mm256_castsi256_si128(index));
            _mm_store_si128((__m128i *)(void *)(out + (size_t)rows * LOOKUPS), _mm256_extracti128_si256(index, 1));
        }
    }
}
_Static_assert(SCALE == 8 && UNIT == 2 * LOOKUPS, "make_indices shifts by 3 and stores halves");

/* 16 rows of 16 bytes, transposed. */
INLINE void transpose16(__m128i *r) {
    __m128i t[16];
    for (int step = 0; step < 4; step++) { /* four times: element i of the first half beside element i of the second */
        for (int i = 0; i < 8; i++) {
            t[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]);
            t[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
        }
        for (int i = 0; i < 16; i++) r[i] = t[i];
    }
}

/* 16 columns from c on of 16 tokens; `missing` of them, the last ones, are not there. */
INLINE void columns16(const int8_t *x, size_t x_stride, int missing, int8_t *out) {
    __m128i r[16];
    for (int i = 0; i < 16; i++) r[i] = i < 16 - missing ? _mm_loadu_si128((const __m128i *)(const void *)(x + (size_t)i * x_stride)) : _mm_setzero_si128();
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm_store_si128((__m128i *)(void *)(out + i * LANES), r[i]);
}

/* x of up to 32 tokens -> columns; total[t]: the sum of x. */
static __attribute__((noinline, no_sanitize("undefined"))) void make_columns(const int8_t *x, size_t x_stride, int tokens, size_t width, const layout *l, int32_t *total) {
    size_t end = width < 3 * l->third ? width : 3 * l->third; /* k is padded to 128 in x, to 32 here */
    for (int h = 0; h < 2; h++) {
        int missing = tokens >= 16 * (h + 1) ? 0 : tokens <= 16 * h ? 16 : 16 * (h + 1) - tokens;
        const int8_t *from = missing < 16 ? x + 16 * (size_t)h * x_stride : x;
        int8_t *out = l->columns + 16 * h;
        size_t c = 0;
        if (missing == 0)
            for (; c < end; c += 16) columns16(from + c, x_stride, 0, out + c * LANES);
        else
            for (; c < end; c += 16) columns16(from + c, x_stride, missing, out + c * LANES);
        for (; c < 3 * l->third; c++) _mm_store_si128((__m128i *)(void *)(out + c * LANES), _mm_setzero_si128());
    }
    for (int t = 0; t < LANES; t++) {
        const __m256i sign = _mm256_set1_epi8((char)0x80); /* x + 128 as u8, which vpsadbw adds up */
        __m256i sum = _mm256_setzero_si256();
        for (size_t c = 0; t < tokens && c < width; c += 32) sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_xor_si256(load(x + (size_t)t * x_stride + c), sign), _mm256_setzero_si256()));
        __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        total[t] = t < tokens ? (int32_t)(_mm_extract_epi64(half, 0) + _mm_extract_epi64(half, 1) - 128 * (int64_t)width) : 0;
    }
}

/* How much the sums of each token may grow by the tables made from this chunk on: |x| summed over its 48 columns, at most 6144. */
static __attribute__((noinline)) void chunk_bound(const layout *l, size_t first, __m256i bound[2]) {
    bound[0] = bound[1] = _mm256_setzero_si256();
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < LOOKUPS; i++) {
            __m256i magnitude = _mm256_abs_epi8(load(l->columns + ((size_t)part * l->third + first + (size_t)i) * LANES)); /* 128 as u8 for -128 */
            bound[0] = _mm256_add_epi16(bound[0], _mm256_cvtepu8_epi16(_mm256_castsi256_si128(magnitude)));
            bound[1] = _mm256_add_epi16(bound[1], _mm256_cvtepu8_epi16(_mm256_extracti128_si256(magnitude, 1)));
        }
}

/* Entry 9i + 3j + k: (i-1) x0 + (j-1) x1 + (k-1) x2, at most 384. */
static __attribute__((noinline, no_sanitize("undefined"))) void make_tables(const layout *l, size_t first) {
    for (int i = 0; i < LOOKUPS; i++)
        for (int h = 0; h < 2; h++) {
            __m256i x[3];
            for (int part = 0; part < 3; part++)
                x[part] = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(const void *)(l->columns + ((size_t)part * l->third + first + (size_t)i) * LANES + 16 * h)));
            __m256i *out = (__m256i *)(void *)(l->table + i * ENTRIES * LANES) + h;
            __m256i least = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_add_epi16(x[0], _mm256_add_epi16(x[1], x[2])));
            for (int a = 0; a < 3; a++, least = _mm256_add_epi16(least, x[0])) {
                __m256i middle = least;
                for (int b = 0; b < 3; b++, out += 6, middle = _mm256_add_epi16(middle, x[1])) {
                    __m256i one = _mm256_add_epi16(middle, x[2]);
                    _mm256_store_si256(out, middle);
                    _mm256_store_si256(out + 2, one);
                    _mm256_store_si256(out + 4, _mm256_add_epi16(one, x[2]));
                }
            }
        }
}

/* Adds a chunk to the sums of all rows. The caller saw to it that no lane can leave int16. */
static __attribute__((noinline, no_sanitize("undefined"))) void add_chunk(const uint8_t *indices, int rows, const int16_t *tables, int16_t *sums) {
    const char *table = (const char *)tables;
    for (int r = 0; r < rows; r++, indices += LOOKUPS, sums += LANES) {
        uint64_t low, high;
        memcpy(&low, indices, 8);
        memcpy(&high, indices + 8, 8);
        __m256i a = _mm256_load_si256((const __m256i *)(const void *)sums), b = _mm256_load_si256((const __m256i *)(const void *)sums + 1);
/* As text: compilers put each address into a register first, one instruction more for every entry, and these are as many as the loads. */
#define LOOK(i, index) \
        __asm__("vpaddw %c[at](%[table],%[entry],8), %[a], %[a]\n\tvpaddw %c[at]+32(%[table],%[entry],8), %[b], %[b]" \
                : [a] "+x"(a), [b] "+x"(b) : [table] "r"(table), [entry] "r"((uint64_t)(uint8_t)(index)), [at] "i"((i) * ENTRIES * ENTRY_BYTES), "m"(*(const char (*)[LOOKUPS * ENTRIES * ENTRY_BYTES])table));
        LOOK(0, low) LOOK(1, low >> 8) LOOK(2, low >> 16) LOOK(3, low >> 24) LOOK(4, low >> 32) LOOK(5, low >> 40) LOOK(6, low >> 48) LOOK(7, low >> 56)
        LOOK(8, high) LOOK(9, high >> 8) LOOK(10, high >> 16) LOOK(11, high >> 24) LOOK(12, high >> 32) LOOK(13, high >> 40) LOOK(14, high >> 48) LOOK(15, high >> 56)
#undef LOOK
        _mm256_store_si256((__m256i *)(void *)sums, a);
        _mm256_store_si256((__m256i *)(void *)sums + 1, b);
    }
}
_Static_assert(LOOKUPS == 16 && LANES == 32, "add_chunk is written for these");

/* Adds the int16 sums to out[t][r] (or starts them with total, the sum of x, as codes count from 0), and clears them. */
static __attribute__((no_sanitize("undefined"))) void widen(int16_t *sums, int rows, int tokens, const int32_t *total, bool start, int32_t *out, size_t stride) {
    for (int r = 0; r < rows; r += 16) {
        int valid = rows - r < 16 ? rows - r : 16;
        for (int o = 0; o < tokens; o += 8) {
            __m128i v[2][8], t[8];
            for (int h = 0; h < 2; h++) {
                for (int i = 0; i < 8; i++) v[h][i] = 8 * h + i < valid ? _mm_load_si128((const __m128i *)(const void *)(sums + (size_t)(r + 8 * h + i) * LANES + o)) : _mm_setzero_si128();
                for (int step = 0; step < 3; step++) {
                    for (int i = 0; i < 4; i++) {
                        t[2 * i] = _mm_unpacklo_epi16(v[h][i], v[h][i + 4]);
                        t[2 * i + 1] = _mm_unpackhi_epi16(v[h][i], v[h][i + 4]);
                    }
                    for (int i = 0; i < 8; i++) v[h][i] = t[i];
                }
            }
            for (int i = 0; i < 8 && o + i < tokens; i++) {
                int32_t *to = out + (size_t)(o + i) * stride + r;
                __m256i low = _mm256_cvtepi16_epi32(v[0][i]), high = _mm256_cvtepi16_epi32(v[1][i]), more = _mm256_set1_epi32(total[o + i]);
                if (valid == 16) {
                    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_add_epi32(low, start ? more : load(to)));
                    _mm256_storeu_si256((__m256i *)(void *)(to + 8), _mm256_add_epi32(high, start ? more : load(to + 8)));
                    continue;
                }
                int32_t lane[16];
                _mm256_storeu_si256((__m256i *)(void *)lane, low);
                _mm256_storeu_si256((__m256i *)(void *)(lane + 8), high);
                for (int j = 0; j < valid; j++) to[j] = (start ? total[o + i] : to[j]) + lane[j];
            }
        }
    }
    memset(sums, 0, (size_t)rows * ENTRY_BYTES);
}

void setun_avx2_ternary_i8_many(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride, void *scratch) {
    size_t units = (size_t)((k + UNIT - 1) / UNIT), width = (size_t)((k + 127) / 128 * 128);
    layout l = {.third = (units + 2) / 3 * UNIT};
    l.table = scratch;
    l.sums = l.table + TABLE_BYTES / 2;
    l.columns = (int8_t *)(l.sums + SUM_BYTES / 2);
    l.indices = (uint8_t *)(l.columns + 3 * l.third * LANES);
    const __m256i most = _mm256_set1_epi16(INT16_MAX);
    for (int r0 = 0; r0 < rows; r0 += SETUN_MANY_ROWS) {
        int part = rows - r0 < SETUN_MANY_ROWS ? rows - r0 : SETUN_MANY_ROWS;
        make_indices(codes + (size_t)r0 * row_bytes, row_bytes, units, part, &l);
        memset(l.sums, 0, (size_t)part * ENTRY_BYTES);
        for (int t0 = 0; t0 < tokens; t0 += LANES) {
            int count = tokens - t0 < LANES ? tokens - t0 : LANES;
            int32_t total[LANES], *out = sums + (size_t)t0 * out_stride + r0;
            make_columns(x + (size_t)t0 * x_stride, x_stride, count, width, &l, total);
            bool start = true;
            __m256i bound[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (size_t c = 0; c < l.third; c += LOOKUPS) {
                /* Widen only when some token's |x|, summed since the last time, could pass what int16 holds: with real activations after a
                 * thousand columns or more, with the worst after 255. Both terms are at most 32767, so the u16 sum is exact. */
                __m256i grow[2];
                chunk_bound(&l, c, grow);
                __m256i next[2] = {_mm256_add_epi16(bound[0], grow[0]), _mm256_add_epi16(bound[1], grow[1])};
                __m256i fits = _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_min_epu16(next[0], most), next[0]), _mm256_cmpeq_epi16(_mm256_min_epu16(next[1], most), next[1]));
                if (_mm256_movemask_epi8(fits) != -1) {
                    widen(l.sums, part, count, total, start, out, out_stride);
                    start = false;
                    next[0] = grow[0];
                    next[1] = grow[1];
                }
                bound[0] = next[0];
                bound[1] = next[1];
                make_tables(&l, c);
                add_chunk(l.indices + c * (size_t)part, part, l.table, l.sums);
            }
            widen(l.sums, part, count, total, start, out, out_stride);
        }
    }
}
#endif
