/*
 * avx512_shortlist.c - the kernels of the head's small copy for AVX-512 with VNNI. Called through table_avx512.c; ref_shortlist.c says what they
 * compute, bit for bit.
 *
 * A vector of 64 columns has one lane for each of the segment's 16 blocks, so the integer sums of a block stay in its lane until the
 * segment ends: vpdpbusd adds four products of u8 code and i8 limb, at most 8 * 4 * 15 * 128 < 2^16 a segment; 128 * high limb + low limb
 * is at most 32 * 15 * 16256 < 2^23, exact in a float.
 */
#if defined(__x86_64__)
#define SIMD16_ISA avx512
#define SIMD16_AVX512 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/shortlist_pack.inc"

enum { TOKENS = 4, ROWS = 4 /* of one bit, with one token; else two, for want of registers */, AHEAD = 8192 }; /* prefetches into L2: into L1 they take its few miss buffers, and Zen 4 then reads at less than half the speed */

INLINE float add_lanes(__m512 s) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE __m512 scales_of(const uint8_t *scales) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)scales))); }

/* Adds one vector of codes (64 columns) of R rows to the sums of T tokens. */
#define ADD(codes, at) \
    for (int t = 0; t < T; t++) { \
        const int8_t *xt = x + (size_t)t * x_stride + (at); \
        __m512i x_high = _mm512_loadu_si512(xt); \
        for (int r = 0; r < R; r++) sum_high[t][r] = _mm512_dpbusd_epi32(sum_high[t][r], codes[r], x_high); \
        if (bits == 1) continue; \
        __m512i x_low = _mm512_loadu_si512(xt + 64); \
        for (int r = 0; r < R; r++) sum_low[t][r] = _mm512_dpbusd_epi32(sum_low[t][r], codes[r], x_low); \
    }
/* The codes that lie `shift` bits up in their bytes. */
#define FIELD(shift) for (int r = 0; r < R; r++) codes[r] = _mm512_and_si512(_mm512_srli_epi16(packed[r], shift), mask);

/* R rows (maybe the same ones) of a plane; bits is 4 or 1. */
INLINE void some_rows(const int bits, const int R, const int T, const uint8_t *const *row, const uint8_t *const *scales, bool prefetch, const int8_t *x, size_t x_stride, const float *x_sums,
                      size_t sums_stride, int64_t k, __m512 total[TOKENS][ROWS]) {
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 1);
    const __m512 middle = _mm512_set1_ps(bits == 4 ? 7.5f : 0.5f);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) total[t][r] = _mm512_setzero_ps();
    for (int64_t first = 0, block = 0; first < k; first += 512, block += 16) {
        __m512i sum_high[TOKENS][ROWS], sum_low[TOKENS][ROWS];
        for (int t = 0; t < T; t++)
            for (int r = 0; r < R; r++) sum_high[t][r] = sum_low[t][r] = _mm512_setzero_si512();
        for (int64_t c = first; c < k && c < first + 512; c += bits == 4 ? 128 : 512) {
            __m512i packed[ROWS], codes[ROWS];
            for (int r = 0; r < R; r++) {
                packed[r] = _mm512_loadu_si512(row[r] + (bits == 4 ? c / 2 : c / 8));
                if (prefetch) _mm_prefetch((const char *)((uintptr_t)row[r] + (size_t)(bits == 4 ? c / 2 : c / 8) + AHEAD), _MM_HINT_T1);
            }
            for (int r = 0; r < R; r++) codes[r] = _mm512_and_si512(packed[r], mask);
            ADD(codes, 2 * c)
            FIELD(bits)
            ADD(codes, 2 * c + 128)
            if (bits == 4) continue;
#define BIT(j) \
            FIELD(j) \
            ADD(codes, 2 * c + 128 * (j))
            BIT(2) BIT(3)
            if (c + 256 >= k) continue;
            BIT(4) BIT(5) BIT(6) BIT(7)
#undef BIT
        }
        for (int r = 0; r < R; r++) {
            __m512 scale = scales_of(scales[r] + block);
            for (int t = 0; t < T; t++) {
                __m512i sum = _mm512_slli_epi32(sum_high[t][r], 7);
                if (bits == 4) sum = _mm512_add_epi32(sum, sum_low[t][r]);
                __m512 value = _mm512_sub_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(middle, _mm512_loadu_ps(x_sums + (size_t)t * sums_stride + block)));
                total[t][r] = _mm512_fmadd_ps(scale, value, total[t][r]);
            }
        }
    }
}

INLINE void high_rows(const int T, const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums, const float *x_scale, int64_t k,
                      float *out, size_t out_stride, bool prefetch) {
    enum { R = 2 };
    const size_t row_bytes = (size_t)(k / 2);
    for (int r = 0; r < rows; r += R) {
        const uint8_t *row[ROWS], *scale[ROWS];
        for (int i = 0; i < R; i++) {
            const size_t at = (size_t)(r + i < rows ? r + i : rows - 1);
            row[i] = plane + at * row_bytes;
            scale[i] = scales + at * scale_stride;
        }
        __m512 total[TOKENS][ROWS];
        some_rows(4, R, T, row, scale, prefetch, x, 2 * (size_t)k, x_sums, scale_stride, k, total);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < R && r + i < rows; i++) out[(size_t)t * out_stride + (size_t)(r + i)] = add_lanes(total[t][i]) * x_scale[t] * row_scale[r + i];
    }
}

void setun_avx512_shortlist_high(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums, const float *x_scale,
                                 int tokens, int64_t k, float *out, size_t out_stride) {
    enum { TILE = 16 }; /* rows that stay in L1 while the tokens pass by */
    if (tokens == 1) {
        high_rows(1, plane, scales, scale_stride, row_scale, rows, x, x_sums, x_scale, k, out, out_stride, true);
        return;
    }
    for (int r = 0; r < rows; r += TILE) {
        int count = rows - r < TILE ? rows - r : TILE, t = 0;
        const uint8_t *at = plane + (size_t)r * (size_t)(k / 2), *scale = scales + (size_t)r * scale_stride;
#define GROUP(T) high_rows(T, at, scale, scale_stride, row_scale + r, count, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, x_scale + t, k, out + (size_t)t * out_stride + r, out_stride, t == 0)
        for (; t + TOKENS <= tokens; t += TOKENS) GROUP(TOKENS);
        if (t + 2 <= tokens) {
            GROUP(2);
            t += 2;
        }
        if (t < tokens) GROUP(1);
#undef GROUP
    }
}

/* The list says which lines come next, so they are asked for while the rows before them are computed. */
INLINE void ask_for(const uint8_t *plane, size_t row_bytes, const uint8_t *scales, size_t scale_stride, int32_t row) {
    uintptr_t at = (uintptr_t)plane + (size_t)row * row_bytes, scale = (uintptr_t)scales + (size_t)row * scale_stride;
    for (size_t b = 0; b < row_bytes; b += 64) _mm_prefetch((const char *)(at + b), _MM_HINT_T1);
    for (size_t b = 0; b < scale_stride; b += 64) _mm_prefetch((const char *)(scale + b), _MM_HINT_T1);
}

INLINE void bit_rows(const int T, const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                     const float *x_scale, float factor, int64_t k, float *out, size_t out_stride, bool prefetch) {
    enum { NEXT = 12 };
    const int R = T == 1 ? ROWS : 2;
    const size_t row_bytes = 4 * scale_stride;
    for (int i = 0; i < NEXT && i < count && prefetch && rows; i++) ask_for(plane, row_bytes, scales, scale_stride, rows[i]);
    for (int i = 0; i < count; i += R) {
        for (int n = i + NEXT; n < i + NEXT + R && n < count && prefetch && rows; n++) ask_for(plane, row_bytes, scales, scale_stride, rows[n]);
        const uint8_t *row[ROWS], *scale[ROWS];
        for (int j = 0; j < R; j++) {
            const int last = i + j < count ? i + j : count - 1;
            const size_t at = (size_t)(rows ? rows[last] : last);
            row[j] = plane + at * row_bytes;
            scale[j] = scales + at * scale_stride;
        }
        __m512 total[TOKENS][ROWS];
        some_rows(1, R, T, row, scale, prefetch && !rows, x, 2 * (size_t)k, x_sums, scale_stride, k, total);
        for (int t = 0; t < T; t++)
            for (int j = 0; j < R && i + j < count; j++)
                out[(size_t)t * out_stride + (size_t)(i + j)] = add_lanes(total[t][j]) * (factor * x_scale[t]) * row_scale[rows ? rows[i + j] : i + j];
    }
}

void setun_avx512_shortlist_bit(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                                const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    int t = 0;
#define GROUP(T) bit_rows(T, plane, scales, scale_stride, row_scale, rows, count, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, x_scale + t, factor, k, out + (size_t)t * out_stride, out_stride, t == 0)
    for (; t + TOKENS <= tokens; t += TOKENS) GROUP(TOKENS);
    if (t + 2 <= tokens) {
        GROUP(2);
        t += 2;
    }
    if (t < tokens) GROUP(1);
#undef GROUP
}

int setun_avx512_shortlist_select(const float *scores, const float *errors, const float *norms, int n, float a, float b, float threshold, int32_t *list) {
    const __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b), least = _mm512_set1_ps(threshold);
    __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int count = 0;
    for (int i = 0; i < n; i += 16, index = _mm512_add_epi32(index, _mm512_set1_epi32(16))) {
        __mmask16 there = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 most = _mm512_maskz_loadu_ps(there, scores + i);
        if (errors) most = _mm512_fmadd_ps(vb, _mm512_maskz_loadu_ps(there, norms + i), _mm512_fmadd_ps(va, _mm512_maskz_loadu_ps(there, errors + i), most));
        __mmask16 found = _mm512_mask_cmp_ps_mask(there, most, least, _CMP_NLT_UQ);
        if (!found) continue;
        int more = __builtin_popcount(found);
        _mm512_mask_storeu_epi32(list + count, (__mmask16)((1u << more) - 1), _mm512_maskz_compress_epi32(found, index));
        count += more;
    }
    return count;
}
#else
typedef int setun_avx512_shortlist_is_empty; /* C wants a declaration */
#endif
