/*
 * avx512_ternary.c - ternary kernels for AVX-512 with VNNI, VBMI and GFNI. Called through table_avx512.c; ref_ternary.c says
 * what they compute, bit for bit.
 */
#include "backend/cpu/float_ref.h"
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Arithmetic checks (UBSan) would multiply these unrolled bodies and find nothing that the comparison with ref does not; the address
 * sanitizer still sees every access. */
#define INLINE static inline __attribute__((always_inline, no_sanitize("undefined")))

/* ---- ternary_i8 ----
 * A tile is eight rows: four vectors with row i in the low half and row i+4 in the high half, so x comes as broadcasts of 32
 * bytes in its natural order. vpdpbusd adds four products of u8 code and i8 x to an int32 lane: at most 4*2*128 = 2^10 a step. A lane takes
 * one step per 32 columns, so k <= 2^22 keeps it below 2^27.
 */
enum {
    TILE_ROWS = 8,
    TILE_TOKENS = 5,        /* 4 x 5 accumulators + 4 of packed codes + 4 of codes + x + mask fit 32 registers */
    BLOCK_BYTES = 384 << 10, /* of x: what stays in the L2 cache while the rows pass by */
    AHEAD = 8192,           /* bytes that prefetches run before the weight stream */
    ONE_TOKEN_AHEAD = 2048,
    ONE_TOKEN_COLUMNS = 1 << 20
};

INLINE __m512i load_pair(const uint8_t *low, const uint8_t *high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)), _mm256_loadu_si256((const __m256i *)high), 1);
}

/* Sums of four accumulators (rows 0|4, 1|5, 2|6, 3|7): one vector of the eight rows' sums. */
INLINE __m256i add_tree(__m512i a0, __m512i a1, __m512i a2, __m512i a3) {
    __m512i b0 = _mm512_add_epi32(_mm512_unpacklo_epi32(a0, a1), _mm512_unpackhi_epi32(a0, a1));
    __m512i b1 = _mm512_add_epi32(_mm512_unpacklo_epi32(a2, a3), _mm512_unpackhi_epi32(a2, a3));
    __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(b0, b1), _mm512_unpackhi_epi64(b0, b1)); /* each 128 bits: rows 0..3 or 4..7 */
    c = _mm512_add_epi32(c, _mm512_shuffle_i64x2(c, c, 0xb1));
    return _mm512_castsi512_si256(_mm512_shuffle_i64x2(c, c, 0x08));
}

/* Eight rows x T tokens over the whole of k. Shift and mask, not vgf2p8affineqb: on Zen 4 that one competes with vpdpbusd for its ports.
 * valid: rows that are there (row[] repeats the last one). */
INLINE void tile(int T, const uint8_t *const *row, bool prefetch, const int8_t *x, size_t x_stride, size_t blocks, int32_t *sums, size_t out_stride, int valid) {
    const __m512i three = _mm512_set1_epi8(3);
    __m512i acc[TILE_TOKENS][4];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < 4; i++) acc[t][i] = _mm512_setzero_si512();
    for (size_t b = 0; b < blocks; b++) {
        __m512i packed[4];
        for (int i = 0; i < 4; i++) packed[i] = load_pair(row[i] + 32 * b, row[i + 4] + 32 * b);
        if (prefetch) /* the tile's rows are one piece of memory: run through it in order, each line once */
            for (int i = 0; i < 4; i++) _mm_prefetch((const char *)((uintptr_t)row[0] + 256 * b + AHEAD + 64 * (size_t)i), _MM_HINT_T0);
#define FIELD(j) { \
            __m512i code[4]; \
            for (int i = 0; i < 4; i++) code[i] = _mm512_and_si512((j) < 3 ? _mm512_srli_epi16(packed[i], 6 - 2 * (j)) : packed[i], three); \
            for (int t = 0; t < T; t++) { \
                __m512i xt = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(x + (size_t)t * x_stride + 128 * b + 32 * (j)))); \
                for (int i = 0; i < 4; i++) acc[t][i] = _mm512_dpbusd_epi32(acc[t][i], code[i], xt); \
            } \
        }
        FIELD(0) FIELD(1) FIELD(2) FIELD(3)
#undef FIELD
    }
    __mmask8 mask = (__mmask8)((1u << valid) - 1);
    for (int t = 0; t < T; t++) _mm256_mask_storeu_epi32(sums + (size_t)t * out_stride, mask, add_tree(acc[t][0], acc[t][1], acc[t][2], acc[t][3]));
}

/* One token: two rows at a time, so that the weights are read almost in the order they lie in. Memory is the limit here, and on Zen 4 this
 * reaches the speed of plain reads where eight rows at once reached three quarters of it. The fields stay where they lie in the byte: a
 * field shifted left by 2j gives sums that are multiples of 4^j, shifted back at the end, exactly. A lane takes k/32 steps of at most
 * 4 * 2*64 * 128 = 2^16, so k < ONE_TOKEN_COLUMNS keeps it below 2^31. */
static __attribute__((noinline, no_sanitize("undefined"))) void one_token(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t blocks, int32_t *sums) {
    const __m512i field0 = _mm512_set1_epi8((char)0xc0), field1 = _mm512_set1_epi8(0x30), field2 = _mm512_set1_epi8(0x0c), field3 = _mm512_set1_epi8(3);
    for (int r = 0; r < rows; r += 2) {
        const uint8_t *low = codes + (size_t)r * row_bytes, *high = r + 1 < rows ? low + row_bytes : low;
        __m512i acc0 = _mm512_setzero_si512(), acc1 = acc0, acc2 = acc0, acc3 = acc0;
        for (size_t b = 0; b < blocks; b++) {
            const int8_t *at = x + 128 * b;
            __m512i packed = load_pair(low + 32 * b, high + 32 * b);
            _mm_prefetch((const char *)((uintptr_t)low + 64 * b + ONE_TOKEN_AHEAD), _MM_HINT_T0);
#define X(j) _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(at + 32 * (j))))
            acc0 = _mm512_dpbusd_epi32(acc0, _mm512_and_si512(packed, field0), X(0));
            acc1 = _mm512_dpbusd_epi32(acc1, _mm512_and_si512(packed, field1), X(1));
            acc2 = _mm512_dpbusd_epi32(acc2, _mm512_and_si512(packed, field2), X(2));
            acc3 = _mm512_dpbusd_epi32(acc3, _mm512_and_si512(packed, field3), X(3));
#undef X
        }
        __m512i sum = _mm512_add_epi32(_mm512_add_epi32(_mm512_srai_epi32(acc0, 6), _mm512_srai_epi32(acc1, 4)), _mm512_add_epi32(_mm512_srai_epi32(acc2, 2), acc3));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0x4e));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0xb1));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2(sum, sum, 0xb1));
        sums[r] = _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
        if (r + 1 < rows) sums[r + 1] = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(sum, 2));
    }
}

void setun_avx512_ternary_i8(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    size_t blocks = (size_t)((k + 127) / 128);
    if (tokens == 1 && k < ONE_TOKEN_COLUMNS) {
        one_token(codes, row_bytes, rows, x, blocks, sums);
        return;
    }
    int64_t fits = BLOCK_BYTES / (k + 1) / TILE_TOKENS * TILE_TOKENS;
    int step = fits < TILE_TOKENS ? TILE_TOKENS : fits < 640 ? (int)fits : 640; /* tokens of a pass over the rows */
    for (int t0 = 0; t0 < tokens; t0 += step) {
        int count = tokens - t0 < step ? tokens - t0 : step;
        for (int r = 0; r < rows; r += TILE_ROWS) {
            int valid = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            const uint8_t *row[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++) row[i] = codes + (size_t)(r + (i < valid ? i : valid - 1)) * row_bytes;
            for (int t = 0; t < count; t += TILE_TOKENS) {
                const int8_t *xt = x + (size_t)(t0 + t) * x_stride;
                int32_t *out = sums + (size_t)(t0 + t) * out_stride + r;
                bool prefetch = t == 0; /* later tiles find the rows in the cache */
                switch (count - t) {
#define CASE(label, T) label: tile(T, row, prefetch, xt, x_stride, blocks, out, out_stride, valid); break;
                CASE(case 1, 1) CASE(case 2, 2) CASE(case 3, 3) CASE(case 4, 4) CASE(default, TILE_TOKENS)
#undef CASE
                }
            }
        }
    }
}

/* ---- ternary_f32 ----
 * 16 bytes of codes become 16 lanes of 32 bits; a shift brings a field to bits 1-0, which vpermilps takes as an index into -1, 0, 1:
 * three instructions for 16 weights, the multiply-add included.
 */
enum { F32_ROWS = 4, F32_TOKENS = 4 };

typedef struct f32_tile { /* [rows][tokens] of 16 lanes each: the running group and the total of the groups before */
    __m512 sum[F32_ROWS][F32_TOKENS], total[F32_ROWS][F32_TOKENS];
} f32_tile;

/* Ends a group: total += scale * sum. */
INLINE void f32_end_group(int R, int T, f32_tile *tile, const float *const *scales, int64_t index) {
    for (int r = 0; r < R; r++) {
        __m512 scale = _mm512_set1_ps(scales[r][index]);
        for (int t = 0; t < T; t++) {
            tile->total[r][t] = _mm512_fmadd_ps(scale, tile->sum[r][t], tile->total[r][t]);
            tile->sum[r][t] = _mm512_setzero_ps();
        }
    }
}

/* 16 columns of one field: R x T multiply-adds. */
INLINE void f32_step(int R, int T, f32_tile *tile, const __m512i *field, const __m512 *x) {
    const __m512 value = _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0);
    for (int r = 0; r < R; r++) {
        __m512 w = _mm512_permutevar_ps(value, field[r]);
        for (int t = 0; t < T; t++) tile->sum[r][t] = _mm512_fmadd_ps(w, x[t], tile->sum[r][t]);
    }
}

/* 128 columns from `first` on. group 128 stands for 256 too: ends says whether this block is the last of a group. */
INLINE void f32_block(int R, int T, int group, f32_tile *tile, const uint8_t *const *row, const float *x, size_t x_stride, int64_t first, const float *const *scales, bool ends, int64_t index) {
    __m512i packed[F32_ROWS][2];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) packed[r][h] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(row[r] + first / 4 + 16 * h)));
#define FIELD(j) { \
        for (int h = 0; h < 2; h++) { \
            __m512i field[F32_ROWS]; \
            __m512 xt[F32_TOKENS]; \
            for (int r = 0; r < R; r++) field[r] = _mm512_srli_epi32(packed[r][h], 6 - 2 * (j)); \
            for (int t = 0; t < T; t++) xt[t] = _mm512_loadu_ps(x + (size_t)t * x_stride + first + 32 * (j) + 16 * h); \
            f32_step(R, T, tile, field, xt); \
        } \
        if (group == 32 || (group == 64 && (j) % 2)) f32_end_group(R, T, tile, scales, (first + 32 * (j)) / (group ? group : 1)); \
    }
    FIELD(0) FIELD(1) FIELD(2) FIELD(3)
#undef FIELD
    if (group == 128 && ends) f32_end_group(R, T, tile, scales, index);
}

/* The last columns, fewer than 128; once a tile, so one function for all. A lane that is not there adds 0 * 0: that leaves any sum as it is. */
static __attribute__((noinline)) void f32_tail(int T, int group, f32_tile *tile, const uint8_t *const *row, const float *x, size_t x_stride, int64_t first, int columns, const float *const *scales) {
    for (int at = 0; at < columns; at += 16) {
        int left = columns - at;
        __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512i field[F32_ROWS];
        __m512 xt[F32_TOKENS];
        for (int r = 0; r < F32_ROWS; r++)
            field[r] = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(row[r] + first / 4 + at % 32))), _mm512_set1_epi32(6 - 2 * (at / 32)));
        for (int t = 0; t < T; t++) xt[t] = _mm512_maskz_loadu_ps(mask, x + (size_t)t * x_stride + first + at);
        f32_step(F32_ROWS, T, tile, field, xt);
        if (group && (left <= 16 || (first + at + 16) % group == 0)) f32_end_group(F32_ROWS, T, tile, scales, (first + at) / group);
    }
}

INLINE float add_lanes(__m512 s) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return setun_scalar_canonical(_mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b))));
}

INLINE void f32_run(int T, int kind, const uint8_t *const *row, const float *x, size_t x_stride, int64_t k, const float *const *scales, int group, float *out, size_t out_stride, int valid) {
    f32_tile tile;
    for (int r = 0; r < F32_ROWS; r++)
        for (int t = 0; t < T; t++) tile.sum[r][t] = tile.total[r][t] = _mm512_setzero_ps();
    int64_t first = 0;
    for (; first + 128 <= k; first += 128) f32_block(F32_ROWS, T, kind, &tile, row, x, x_stride, first, scales, group == 128 || first % 256, group == 128 ? first / 128 : first / 256);
    f32_tile end = tile; /* a copy: the tile itself stays in registers, as its address is never taken */
    if (first < k) f32_tail(T, group, &end, row, x, x_stride, first, (int)(k - first), scales);
    else if (group == 256 && k % 256) f32_end_group(F32_ROWS, T, &end, scales, k / 256);
    for (int r = 0; r < valid; r++)
        for (int t = 0; t < T; t++) out[(size_t)t * out_stride + (size_t)r] = add_lanes(kind ? end.total[r][t] : end.sum[r][t]);
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
        for (; t < tokens; t++) f32_run(1, kind, row, x + (size_t)t * x_stride, x_stride, k, scale, group, out + (size_t)t * out_stride + r, out_stride, valid);
    }
}

void setun_avx512_ternary_f32(const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, int group, float *out, size_t out_stride) {
    switch (group) {
#define CASE(label, kind) label: f32_rows(kind, codes, row_bytes, rows, x, x_stride, tokens, k, scales, scales_stride, group, out, out_stride); break;
    CASE(case 0, 0) CASE(case 32, 32) CASE(case 64, 64) CASE(default, 128)
#undef CASE
    }
}

/* ---- scale_sums, quantize_i8 ---- */

/* Masked stores are slow on Zen 4, so whole vectors go without. */
INLINE __m512 scaled(__m512i sums, __m512i less, __m512 factor) {
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, less)), factor);
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_ps(setun_bits_float(SETUN_NAN_BITS)));
}

void setun_avx512_scale_sums(const int32_t *sums, int n, int32_t x_sum, float x_scale, const float *scales, float tensor_scale, float *out) {
    __m512i less = _mm512_set1_epi32(x_sum);
    __m512 xs = _mm512_set1_ps(x_scale), factor = _mm512_set1_ps(x_scale * tensor_scale);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        if (scales) factor = _mm512_mul_ps(xs, _mm512_loadu_ps(scales + i));
        _mm512_storeu_ps(out + i, scaled(_mm512_loadu_si512(sums + i), less, factor));
    }
    if (i == n) return;
    __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);
    if (scales) factor = _mm512_mul_ps(xs, _mm512_maskz_loadu_ps(mask, scales + i));
    _mm512_mask_storeu_ps(out + i, mask, scaled(_mm512_maskz_loadu_epi32(mask, sums + i), less, factor));
}

/* |x * factor| is at most 127 and a little, which rounds to 127; NaN becomes -128, as in ref. */
INLINE __m512i quantized(__m512 x, __m512 factor) {
    return _mm512_cvt_roundps_epi32(_mm512_max_ps(_mm512_mul_ps(x, factor), _mm512_set1_ps(-128.0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void setun_avx512_quantize_i8(const float *x, int64_t k, int64_t k_padded, int8_t *q, float *scale, int32_t *sum) {
    __m512 most4[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()}; /* vmaxps gives its second operand when the first is a NaN, as ref does */
    int64_t i = 0;
    for (; i + 64 <= k; i += 64)
        for (int j = 0; j < 4; j++) most4[j] = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i + 16 * j)), most4[j]);
    for (; i < k; i += 16) {
        __mmask16 mask = k - i >= 16 ? 0xffff : (__mmask16)((1u << (k - i)) - 1);
        most4[0] = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(mask, x + i)), most4[0]);
    }
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most4[0], most4[1]), _mm512_max_ps(most4[2], most4[3])));
    most = most > 1e-5f ? most : 1e-5f;
    __m512 factor = _mm512_set1_ps(127.0f / most);
    __m512i total = _mm512_setzero_si512();
    const __m512i pieces = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (i = 0; i + 64 <= k; i += 64) {
        __m512i n[4];
        for (int j = 0; j < 4; j++) n[j] = quantized(_mm512_loadu_ps(x + i + 16 * j), factor);
        __m512i bytes = _mm512_permutexvar_epi32(pieces, _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3])));
        total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), bytes);
        _mm512_storeu_si512(q + i, bytes);
    }
    for (; i < k_padded; i += 16) {
        int64_t here = k - i, room = k_padded - i;
        __mmask16 mask = here >= 16 ? 0xffff : here <= 0 ? 0 : (__mmask16)((1u << here) - 1);
        __mmask16 store = room >= 16 ? 0xffff : (__mmask16)((1u << room) - 1);
        __m512i n = _mm512_maskz_mov_epi32(mask, quantized(_mm512_maskz_loadu_ps(mask, x + i), factor));
        total = _mm512_add_epi32(total, n);
        _mm512_mask_cvtepi32_storeu_epi8(q + i, store, n);
    }
    *scale = most / 127.0f;
    *sum = _mm512_reduce_add_epi32(total);
}
#endif
