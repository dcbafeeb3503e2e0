/*
 * avx2_shortlist.c - the kernels of the head's small copy for AVX2. Called through table_avx2.c; ref_shortlist.c says what they compute, bit for bit.
 *
 * 32 columns have eight of the segment's 16 blocks in their lanes: the halves of a segment are summed one after the other. maddubs
 * multiplies u8 codes by i8 limbs and adds pairs: a 16-bit lane takes two columns of each of 8 vectors, at most
 * 8 * 2 * 15 * 128 = 30720 < 32768, before pmaddwd widens it (times 128 for the high limbs).
 */
#if defined(__x86_64__)
#define SIMD16_ISA avx2
#define SIMD16_AVX2 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/shortlist_pack.inc"

enum { AHEAD = 8192 }; /* into L2, see avx512_shortlist.c */

INLINE float add_lanes(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

#define ADD(r, codes, at) { \
        __m256i code = (codes); \
        sum_high[r] = _mm256_add_epi16(sum_high[r], _mm256_maddubs_epi16(code, _mm256_loadu_si256((const __m256i *)(x + (at))))); \
        if (bits == 4) sum_low[r] = _mm256_add_epi16(sum_low[r], _mm256_maddubs_epi16(code, _mm256_loadu_si256((const __m256i *)(x + (at) + 64)))); \
    }
/* Fields `shift` bits up in the bytes of both rows, times the limbs at `at`. */
#define FIELDS(from, shift, at) \
    ADD(0, _mm256_and_si256((shift) > 0 ? _mm256_srli_epi16(from[0], shift) : from[0], mask), at) \
    ADD(1, _mm256_and_si256((shift) > 0 ? _mm256_srli_epi16(from[1], shift) : from[1], mask), at)

/* Two rows (maybe the same one) of the planes, one token: bits 4 (row has the upper two, second the others), 2 or 1. total[row][half] */
INLINE void two_rows(const int bits, const uint8_t *const row[2], const uint8_t *const second[2], const uint8_t *const scales[2], bool prefetch, const int8_t *x, const float *x_sums, int64_t k, __m256 total[2][2]) {
    const __m256i mask = _mm256_set1_epi8((1 << bits) - 1), odd = _mm256_set1_epi8((char)0xcc), high_limb = _mm256_set1_epi16(128), low_limb = _mm256_set1_epi16(1);
    const __m256 middle = _mm256_set1_ps(bits == 4 ? 7.5f : bits == 2 ? 1.5f : 0.5f);
    total[0][0] = total[0][1] = total[1][0] = total[1][1] = _mm256_setzero_ps();
    for (int64_t first = 0, block = 0; first < k; first += 512, block += 16)
        for (int half = 0; half < 2; half++) {
            __m256i sum_high[2], sum_low[2];
            sum_high[0] = sum_high[1] = sum_low[0] = sum_low[1] = _mm256_setzero_si256();
            for (int64_t c = first; c < k && c < first + 512; c += bits == 1 ? 512 : 256) {
                const size_t byte = (size_t)(bits == 1 ? c / 8 : c / 4) + 32 * (size_t)half;
                const int64_t at = 2 * c + 32 * half;
                __m256i packed[2], lower[2];
                for (int r = 0; r < 2; r++) {
                    packed[r] = _mm256_loadu_si256((const __m256i *)(row[r] + byte));
                    if (prefetch && half == 0) _mm_prefetch((const char *)((uintptr_t)row[r] + byte + AHEAD), _MM_HINT_T1);
                    if (bits != 4) continue;
                    lower[r] = _mm256_loadu_si256((const __m256i *)(second[r] + byte));
                    if (prefetch && half == 0) _mm_prefetch((const char *)((uintptr_t)second[r] + byte + AHEAD), _MM_HINT_T1);
                }
                if (bits == 4) { /* codes at even places, and those at odd ones */
                    for (int r = 0; r < 2; r++) {
                        const __m256i even = _mm256_or_si256(_mm256_and_si256(odd, _mm256_slli_epi16(packed[r], 2)), _mm256_andnot_si256(odd, lower[r]));
                        lower[r] = _mm256_or_si256(_mm256_and_si256(odd, packed[r]), _mm256_andnot_si256(odd, _mm256_srli_epi16(lower[r], 2)));
                        packed[r] = even;
                    }
                    FIELDS(packed, 0, at)
                    FIELDS(lower, 0, at + 128)
                    FIELDS(packed, 4, at + 256)
                    FIELDS(lower, 4, at + 384)
                    continue;
                }
                FIELDS(packed, 0, at)
                FIELDS(packed, bits, at + 128)
                FIELDS(packed, 2 * bits, at + 256)
                FIELDS(packed, 3 * bits, at + 384)
                if (bits == 2 || c + 256 >= k) continue;
                FIELDS(packed, 4, at + 512)
                FIELDS(packed, 5, at + 640)
                FIELDS(packed, 6, at + 768)
                FIELDS(packed, 7, at + 896)
            }
            __m256 less = _mm256_mul_ps(middle, _mm256_loadu_ps(x_sums + block + 8 * half));
            for (int r = 0; r < 2; r++) {
                __m256 scale = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(scales[r] + block + 8 * half))));
                __m256i sum = _mm256_madd_epi16(sum_high[r], high_limb);
                if (bits == 4) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(sum_low[r], low_limb));
                total[r][half] = _mm256_fmadd_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(sum), less), total[r][half]);
            }
        }
}

/* A list of rows says which lines come next, so they are asked for while the rows before them are computed. */
INLINE void ask_for(const uint8_t *plane, size_t row_bytes, int32_t row) {
    const uintptr_t at = (uintptr_t)plane + (size_t)row * row_bytes;
    for (size_t b = 0; b < row_bytes; b += 64) _mm_prefetch((const char *)(at + b), _MM_HINT_T1);
}

/* What the kernels below share: rows of a list or one after another. factor 1 changes no bit of x_scale. */
INLINE void scores(const int bits, const uint8_t *plane, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x,
                   const float *x_sums, const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    enum { NEXT = 12 };
    const size_t row_bytes = bits == 1 ? 4 * scale_stride : (size_t)(k / 4);
    for (int i = rows ? -NEXT : 0; i < count; i += 2) {
        for (int n = i + NEXT; n < i + NEXT + 2 && n < count && rows; n++) {
            ask_for(plane, row_bytes, rows[n]);
            ask_for(scales, scale_stride, rows[n]);
        }
        if (i < 0) continue;
        const int last = i + 1 < count ? i + 1 : i;
        const size_t at[2] = {(size_t)(rows ? rows[i] : i), (size_t)(rows ? rows[last] : last)};
        const uint8_t *const row[2] = {plane + at[0] * row_bytes, plane + at[1] * row_bytes};
        const uint8_t *const below[2] = {bits == 4 ? second + at[0] * row_bytes : NULL, bits == 4 ? second + at[1] * row_bytes : NULL};
        const uint8_t *const scale[2] = {scales + at[0] * scale_stride, scales + at[1] * scale_stride};
        for (int t = 0; t < tokens; t++) {
            __m256 total[2][2];
            two_rows(bits, row, below, scale, !rows && t == 0, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, k, total);
            out[(size_t)t * out_stride + (size_t)i] = add_lanes(total[0][0], total[0][1]) * (factor * x_scale[t]) * row_scale[at[0]];
            if (last > i) out[(size_t)t * out_stride + (size_t)last] = add_lanes(total[1][0], total[1][1]) * (factor * x_scale[t]) * row_scale[at[1]];
        }
    }
}

void setun_avx2_shortlist_two(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                              const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(2, plane, NULL, scales, scale_stride, row_scale, rows, count, x, x_sums, x_scale, 1.0f, tokens, k, out, out_stride);
}

void setun_avx2_shortlist_high(const uint8_t *first, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums,
                               const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(4, first, second, scales, scale_stride, row_scale, NULL, rows, x, x_sums, x_scale, 1.0f, tokens, k, out, out_stride);
}

void setun_avx2_shortlist_bit(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                              const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    scores(1, plane, NULL, scales, scale_stride, row_scale, rows, count, x, x_sums, x_scale, factor, tokens, k, out, out_stride);
}

int setun_avx2_shortlist_select(const float *scores, const float *errors, const float *norms, int n, float a, float b, float threshold, int32_t *list) {
    const __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b), least = _mm256_set1_ps(threshold);
    int count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 most = _mm256_loadu_ps(scores + i);
        if (errors) most = _mm256_fmadd_ps(vb, _mm256_loadu_ps(norms + i), _mm256_fmadd_ps(va, _mm256_loadu_ps(errors + i), most));
        for (unsigned found = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(most, least, _CMP_NLT_UQ)); found; found &= found - 1) list[count++] = i + __builtin_ctz(found);
    }
    for (; i < n; i++) {
        float most = errors ? fmaf(b, norms[i], fmaf(a, errors[i], scores[i])) : scores[i];
        if (!(most < threshold)) list[count++] = i;
    }
    return count;
}
#else
typedef int setun_avx2_shortlist_is_empty; /* C wants a declaration */
#endif
