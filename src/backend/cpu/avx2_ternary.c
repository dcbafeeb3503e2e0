/*
 * avx2_ternary.c - ternary kernels for AVX2 with FMA. Called through table_avx2.c; ref_ternary.c says what they compute,
 * bit for bit.
 */
#include "backend/cpu/float_ref.h"
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Arithmetic checks (UBSan) would multiply these unrolled bodies and find nothing that the comparison with ref does not; the address
 * sanitizer still sees every access. */
#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined")))

/* ---- ternary_i8 ----
 * vpmaddubsw makes u8 code * i8 x + u8 code * i8 x in int16: |pair| <= 2 * (2 * 128) = 512. A lane may take 63 of them before it must be
 * widened: 63 * 512 = 32256 < 32768. A block of 128 columns is four steps, so FLUSH_BLOCKS = 15 blocks are 60 steps.
 * Widening by vpmaddwd with ones adds two lanes into int32.
 */
enum {
    FLUSH_BLOCKS = 15,
    TILE_TOKENS = 5,        /* with 2 rows: 10 accumulators, 2 of codes, x, mask and two products are the 16 registers */
    CODE_BYTES = 192 << 10, /* of packed rows: what stays in the L2 cache while the tokens pass by */
    AHEAD = 8192            /* bytes that prefetches run before the weight stream */
};

/* The compiler may not look through this. Without it gcc reorders the sums of four fields into trees whose leaves do not fit the
 * registers, and loads x again for every row. */
#define KEEP(vector) __asm__("" : "+x"(vector))

INLINE __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m256i field(__m256i packed, int j) { /* codes j*32 .. j*32+31 of a block */
    return _mm256_and_si256(j < 3 ? _mm256_srli_epi16(packed, 6 - 2 * j) : packed, _mm256_set1_epi8(3));
}

/* Sums of four int32 accumulators in the four lanes of the result. */
INLINE __m128i add_tree(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

/* R <= 4 rows x T tokens over the whole of k. valid: rows that are there (row[] repeats the last one). */
INLINE void tile(int R, int T, const uint8_t *const *row, bool prefetch, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride, int valid) {
    __m256i wide[4][TILE_TOKENS]; /* int32 */
    for (int r = 0; r < 4; r++)
        for (int t = 0; t < T; t++) wide[r][t] = _mm256_setzero_si256();
    for (size_t b = 0; b < blocks;) {
        size_t last = blocks - b < FLUSH_BLOCKS ? blocks : b + FLUSH_BLOCKS;
        __m256i narrow[4][TILE_TOKENS]; /* int16 */
        for (int r = 0; r < R; r++)
            for (int t = 0; t < T; t++) narrow[r][t] = _mm256_setzero_si256();
        for (; b < last; b++) {
            if (prefetch) /* the tile's rows are one piece of memory: run through it in order */
                for (int i = 0; i < (R + 1) / 2; i++) _mm_prefetch((const char *)((uintptr_t)row[0] + (size_t)(32 * R) * b + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
#define FIELD(j) { \
                __m256i code[4]; \
                for (int r = 0; r < R; r++) code[r] = field(load32(row[r] + 32 * b), j); \
                for (int t = 0; t < T; t++) { \
                    __m256i xt = load32(x + (size_t)t * x_stride + 128 * b + 32 * (j)); \
                    if (R > 1) KEEP(xt); \
                    for (int r = 0; r < R; r++) { \
                        narrow[r][t] = _mm256_add_epi16(narrow[r][t], _mm256_maddubs_epi16(code[r], xt)); \
                        KEEP(narrow[r][t]); \
                    } \
                } \
            }
            FIELD(0) FIELD(1) FIELD(2) FIELD(3)
#undef FIELD
        }
        for (int r = 0; r < R; r++)
            for (int t = 0; t < T; t++) wide[r][t] = _mm256_add_epi32(wide[r][t], _mm256_madd_epi16(narrow[r][t], _mm256_set1_epi16(1)));
    }
    for (int t = 0; t < T; t++) {
        int32_t lane[4];
        _mm_storeu_si128((__m128i *)lane, add_tree(wide[0][t], wide[1][t], wide[2][t], wide[3][t]));
        for (int r = 0; r < valid; r++) sums[(size_t)t * out_stride + (size_t)r] = lane[r];
    }
}

INLINE void tiles(int R, int T, bool prefetch, const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride) {
    for (int r = 0; r < rows; r += R) {
        int valid = rows - r < R ? rows - r : R;
        const uint8_t *row[4];
        for (int i = 0; i < R; i++) row[i] = codes + (size_t)(r + (i < valid ? i : valid - 1)) * row_bytes;
        tile(R, T, row, prefetch, x, x_stride, blocks, sums + r, out_stride, valid);
    }
}

/* A group of rows stays in the L2 cache while the tokens pass by; x of TILE_TOKENS tokens stays in L1 while the group does. */
void setun_avx2_ternary_i8(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    size_t blocks = (size_t)((k + 127) / 128);
    int64_t fits = CODE_BYTES / (k / 4 + 1) / 12 * 12; /* 12: whole tiles of 2, 3 and 4 rows */
    int step = tokens <= TILE_TOKENS ? rows : fits < 12 ? 12 : fits < 1020 ? (int)fits : 1020;
    for (int r = 0; r < rows; r += step) {
        int count = rows - r < step ? rows - r : step;
        const uint8_t *part = codes + (size_t)r * row_bytes;
        for (int t = 0; t < tokens; t += TILE_TOKENS) {
            const int8_t *xt = x + (size_t)t * x_stride;
            int32_t *out = sums + (size_t)t * out_stride + r;
            bool prefetch = t == 0; /* later passes find the rows in the cache */
            switch (tokens - t) {
#define CASE(label, R, T) label: tiles(R, T, prefetch, part, row_bytes, count, xt, x_stride, blocks, out, out_stride); break;
            CASE(case 1, 4, 1) CASE(case 2, 4, 2) CASE(case 3, 3, 3) CASE(case 4, 2, 4) CASE(default, 2, TILE_TOKENS)
#undef CASE
            }
        }
    }
}

/* ---- ternary_f32 ----
 * 8 bytes of codes become 8 lanes of 32 bits; a shift brings a field to bits 1-0, which vpermilps takes as an index into -1, 0, 1.
 * The 16 lanes of kernels.h are two vectors: side 0 (lanes 0-7) and side 1 (lanes 8-15), done one after the other within a block.
 */
enum { F32_ROWS = 4, F32_TOKENS = 2 };

typedef struct f32_tile { /* [rows][tokens][side] of 8 lanes each: the running group and the total of the groups before */
    __m256 sum[F32_ROWS][F32_TOKENS][2], total[F32_ROWS][F32_TOKENS][2];
} f32_tile;

/* Ends a group on one side: total += scale * sum. */
INLINE void f32_end_group(int R, int T, int side, f32_tile *tile, const float *const *scales, int64_t index) {
    for (int r = 0; r < R; r++) {
        __m256 scale = _mm256_broadcast_ss(scales[r] + index);
        for (int t = 0; t < T; t++) {
            tile->total[r][t][side] = _mm256_fmadd_ps(scale, tile->sum[r][t][side], tile->total[r][t][side]);
            tile->sum[r][t][side] = _mm256_setzero_ps();
        }
    }
}

/* 8 columns of one field on one side: R x T multiply-adds. */
INLINE void f32_step(int R, int T, int side, f32_tile *tile, const __m256i *field, const __m256 *x) {
    const __m256 value = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
    for (int r = 0; r < R; r++) {
        __m256 w = _mm256_permutevar_ps(value, field[r]);
        for (int t = 0; t < T; t++) tile->sum[r][t][side] = _mm256_fmadd_ps(w, x[t], tile->sum[r][t][side]);
    }
}

/* 128 columns from `first` on. group 128 stands for 256 too: ends says whether this block is the last of a group. */
INLINE void f32_block(int R, int T, int group, f32_tile *tile, const uint8_t *const *row, const float *x, size_t x_stride, int64_t first, const float *const *scales, bool ends, int64_t index) {
    for (int side = 0; side < 2; side++) {
        __m256i packed[F32_ROWS][2]; /* bytes side*8.. and 16+side*8.. */
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++) packed[r][h] = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row[r] + first / 4 + 16 * h + 8 * side)));
#define FIELD(j) { \
            for (int h = 0; h < 2; h++) { \
                __m256i field[F32_ROWS]; \
                __m256 xt[F32_TOKENS]; \
                for (int r = 0; r < R; r++) field[r] = _mm256_srli_epi32(packed[r][h], 6 - 2 * (j)); \
                for (int t = 0; t < T; t++) xt[t] = _mm256_loadu_ps(x + (size_t)t * x_stride + first + 32 * (j) + 16 * h + 8 * side); \
                f32_step(R, T, side, tile, field, xt); \
            } \
            if (group == 32 || (group == 64 && (j) % 2)) f32_end_group(R, T, side, tile, scales, (first + 32 * (j)) / (group ? group : 1)); \
        }
        FIELD(0) FIELD(1) FIELD(2) FIELD(3)
#undef FIELD
        if (group == 128 && ends) f32_end_group(R, T, side, tile, scales, index);
    }
}

/* The last columns, fewer than 128; once a tile, so one function for all. A lane that is not there adds 0 * 0: that leaves any sum as it is. */
static __attribute__((noinline)) void f32_tail(int T, int group, f32_tile *tile, const uint8_t *const *row, const float *x, size_t x_stride, int64_t first, int columns, const float *const *scales) {
    float rest[F32_TOKENS][128];
    memset(rest, 0, sizeof rest);
    for (int t = 0; t < T; t++) memcpy(rest[t], x + (size_t)t * x_stride + first, (size_t)columns * sizeof(float));
    for (int at = 0; at < columns; at += 16) {
        for (int side = 0; side < 2; side++) {
            __m256i field[F32_ROWS];
            __m256 xt[F32_TOKENS];
            for (int r = 0; r < F32_ROWS; r++)
                field[r] = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row[r] + first / 4 + at % 32 + 8 * side))), _mm256_set1_epi32(6 - 2 * (at / 32)));
            for (int t = 0; t < T; t++) xt[t] = _mm256_loadu_ps(rest[t] + at + 8 * side);
            f32_step(F32_ROWS, T, side, tile, field, xt);
            if (group && (columns - at <= 16 || (first + at + 16) % group == 0)) f32_end_group(F32_ROWS, T, side, tile, scales, (first + at) / group);
        }
    }
}

INLINE float add_lanes(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return setun_scalar_canonical(_mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b))));
}

INLINE void f32_run(int T, int kind, const uint8_t *const *row, const float *x, size_t x_stride, int64_t k, const float *const *scales, int group, float *out, size_t out_stride, int valid) {
    f32_tile tile;
    for (int r = 0; r < F32_ROWS; r++)
        for (int t = 0; t < T; t++)
            for (int side = 0; side < 2; side++) tile.sum[r][t][side] = tile.total[r][t][side] = _mm256_setzero_ps();
    int64_t first = 0;
    for (; first + 128 <= k; first += 128) f32_block(F32_ROWS, T, kind, &tile, row, x, x_stride, first, scales, group == 128 || first % 256, group == 128 ? first / 128 : first / 256);
    f32_tile end = tile; /* a copy: the tile itself stays in registers, as its address is never taken */
    if (first < k) f32_tail(T, group, &end, row, x, x_stride, first, (int)(k - first), scales);
    else if (group == 256 && k % 256)
        for (int side = 0; side < 2; side++) f32_end_group(F32_ROWS, T, side, &end, scales, k / 256);
    for (int r = 0; r < valid; r++)
        for (int t = 0; t < T; t++) out[(size_t)t * out_stride + (size_t)r] = kind ? add_lanes(end.total[r][t][0], end.total[r][t][1]) : add_lanes(end.sum[r][t][0], end.sum[r][t][1]);
}

INLINE void f32_rows(int kind, const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, int group, float *out, size_t out_stride) {
    for (int r = 0; r < rows; r += F32_ROWS) {
        int valid = rows - r < F32_ROWS ? rows - r : F32_ROWS, t = 0;
        const uint8_t *row[F32_ROWS];
        const float *scale[F32_ROWS];
        for (int i = 0; i < F32_ROWS; i++) {
            size_t at = (size_t)(r + (i < valid ? i : valid - 1));
            row[i] = codes + at * row_bytes;
            scale[i] = kind ? scales + at * scales_stride : NULL;
        }
        for (; t + F32_TOKENS <= tokens; t += F32_TOKENS) f32_run(F32_TOKENS, kind, row, x + (size_t)t * x_stride, x_stride, k, scale, group, out + (size_t)t * out_stride + r, out_stride, valid);
        if (t < tokens) f32_run(1, kind, row, x + (size_t)t * x_stride, x_stride, k, scale, group, out + (size_t)t * out_stride + r, out_stride, valid);
    }
}

void setun_avx2_ternary_f32(const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, int group, float *out, size_t out_stride) {
    switch (group) {
#define CASE(label, kind) label: f32_rows(kind, codes, row_bytes, rows, x, x_stride, tokens, k, scales, scales_stride, group, out, out_stride); break;
    CASE(case 0, 0) CASE(case 32, 32) CASE(case 64, 64) CASE(default, 128)
#undef CASE
    }
}

/* ---- scale_sums, quantize_i8 ---- */

void setun_avx2_scale_sums(const int32_t *sums, int n, int32_t x_sum, float x_scale, const float *scales, float tensor_scale, float *out) {
    __m256i less = _mm256_set1_epi32(x_sum);
    const __m256 nan = _mm256_set1_ps(setun_bits_float(SETUN_NAN_BITS));
    __m256 xs = _mm256_set1_ps(x_scale), factor = _mm256_set1_ps(x_scale * tensor_scale);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        if (scales) factor = _mm256_mul_ps(xs, _mm256_loadu_ps(scales + i));
        __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(load32(sums + i), less)), factor);
        _mm256_storeu_ps(out + i, _mm256_blendv_ps(y, nan, _mm256_cmp_ps(y, y, _CMP_UNORD_Q)));
    }
    for (; i < n; i++) {
        float scale = x_scale * (scales ? scales[i] : tensor_scale);
        out[i] = setun_scalar_canonical((float)(int32_t)((uint32_t)sums[i] - (uint32_t)x_sum) * scale);
    }
}

/* The one rounding of both loops below; vmaxps gives its second operand when the first is a NaN, as ref does. */
INLINE __m256i quantize8(__m256 x, __m256 factor) {
    __m256 v = _mm256_max_ps(_mm256_mul_ps(x, factor), _mm256_set1_ps(-128.0f));
    v = _mm256_min_ps(v, _mm256_set1_ps(127.0f));
    return _mm256_cvtps_epi32(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

void setun_avx2_quantize_i8(const float *x, int64_t k, int64_t k_padded, int8_t *q, float *scale, int32_t *sum) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most8 = _mm256_setzero_ps(), more[3] = {most8, most8, most8}; /* one chain of maxima would wait on itself */
    int64_t i = 0, whole = k - k % 8;
    float rest[8] = {0};
    if (k % 8) memcpy(rest, x + whole, (size_t)(k % 8) * sizeof(float));
    for (; i + 32 <= whole; i += 32) {
        most8 = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude), most8);
        for (int j = 0; j < 3; j++) more[j] = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i + 8 + 8 * j), magnitude), more[j]);
    }
    for (; i < whole; i += 8) most8 = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude), most8);
    most8 = _mm256_max_ps(_mm256_max_ps(most8, more[0]), _mm256_max_ps(more[1], more[2]));
    most8 = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(rest), magnitude), most8);
    __m128 most4 = _mm_max_ps(_mm256_castps256_ps128(most8), _mm256_extractf128_ps(most8, 1));
    most4 = _mm_max_ps(most4, _mm_movehl_ps(most4, most4));
    float most = _mm_cvtss_f32(_mm_max_ss(most4, _mm_movehdup_ps(most4)));
    most = most > 1e-5f ? most : 1e-5f;
    __m256 factor = _mm256_set1_ps(127.0f / most);
    __m256i total = _mm256_setzero_si256();
    for (i = 0; i + 32 <= k; i += 32) {
        __m256i a = quantize8(_mm256_loadu_ps(x + i), factor), b = quantize8(_mm256_loadu_ps(x + i + 8), factor);
        __m256i c = quantize8(_mm256_loadu_ps(x + i + 16), factor), d = quantize8(_mm256_loadu_ps(x + i + 24), factor);
        total = _mm256_add_epi32(total, _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)));
        /* packing works in halves: a0 b0 c0 d0 | a1 b1 c1 d1, four bytes each; the permutation puts them in order */
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        _mm256_storeu_si256((__m256i *)(q + i), _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    }
    for (; i < k; i += 8) {
        int n = k - i < 8 ? (int)(k - i) : 8;
        __m256i v = quantize8(n < 8 ? _mm256_loadu_ps(rest) : _mm256_loadu_ps(x + i), factor);
        int32_t lane[8];
        _mm256_storeu_si256((__m256i *)lane, v);
        for (int l = 0; l < n; l++) q[i + l] = (int8_t)lane[l];
        total = _mm256_add_epi32(total, v); /* lanes past k are 0 */
    }
    if (k_padded > k) memset(q + k, 0, (size_t)(k_padded - k));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    s = _mm_hadd_epi32(s, s);
    s = _mm_hadd_epi32(s, s);
    *scale = most / 127.0f;
    *sum = _mm_cvtsi128_si32(s);
}
#endif
