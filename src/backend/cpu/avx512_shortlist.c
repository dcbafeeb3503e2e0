/*
 * avx512_shortlist.c - the kernels of the head's small copy for AVX-512 with VNNI. Called through table_avx512.c; ref_shortlist.c says what they
 * compute, bit for bit.
 *
 * A vector of 64 columns has one lane for each of the segment's 16 blocks, so the integer sums of a block stay in its lane until the
 * segment ends: vpdpbusd adds four products of u8 code and i8 limb, at most 8 * 4 * 15 * 128 < 2^16 a segment; 128 * high limb + low limb
 * is at most 32 * 15 * 16256 < 2^23, exact in a float. The planes of two bits are put together to codes of four in two steps for 64 bytes of each.
 */
#if defined(__x86_64__)
#define SIMD16_ISA avx512
#define SIMD16_AVX512 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/shortlist_pack.inc"

enum {
    TOKENS = 4,
    ROWS = 4,     /* at once, of 1 or 2 bits and with one token; else two, for want of registers */
    AHEAD = 8192  /* prefetches into L2: into L1 they take its few miss buffers, and Zen 4 then reads at less than half the speed */
};

INLINE float add_lanes(__m512 s) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE __m512 scales_of(const uint8_t *scales) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)scales))); }

/* Adds one vector of codes (64 columns) of R rows to the sums of T tokens. */
#define ADD(at) \
    for (int t = 0; t < T; t++) { \
        const int8_t *xt = x + (size_t)t * x_stride + (at); \
        __m512i x_high = _mm512_loadu_si512(xt); \
        for (int r = 0; r < R; r++) sum_high[t][r] = _mm512_dpbusd_epi32(sum_high[t][r], codes[r], x_high); \
        if (bits != 4) continue; \
        __m512i x_low = _mm512_loadu_si512(xt + 64); \
        for (int r = 0; r < R; r++) sum_low[t][r] = _mm512_dpbusd_epi32(sum_low[t][r], codes[r], x_low); \
    }
/* Codes that lie `shift` bits up in the bytes of `from`. */
#define FIELD(from, shift) \
    for (int r = 0; r < R; r++) codes[r] = _mm512_and_si512((shift) > 0 ? _mm512_srli_epi16(from[r], shift) : from[r], mask);

/* R rows (maybe the same ones) of the planes: bits 4 (row has the upper two, second the others), 2 or 1. */
INLINE void some_rows(const int bits, const int R, const int T, const uint8_t *const *row, const uint8_t *const *second, const uint8_t *const *scales, bool prefetch, const int8_t *x,
                      size_t x_stride, const float *x_sums, size_t sums_stride, int64_t k, __m512 total[TOKENS][ROWS]) {
    const __m512i mask = _mm512_set1_epi8((1 << bits) - 1), odd = _mm512_set1_epi8((char)0xcc);
    const __m512 middle = _mm512_set1_ps(bits == 4 ? 7.5f : bits == 2 ? 1.5f : 0.5f);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) total[t][r] = _mm512_setzero_ps();
    for (int64_t first = 0, block = 0; first < k; first += 512, block += 16) {
        __m512i sum_high[TOKENS][ROWS], sum_low[TOKENS][ROWS];
        for (int t = 0; t < T; t++)
            for (int r = 0; r < R; r++) sum_high[t][r] = sum_low[t][r] = _mm512_setzero_si512();
        for (int64_t c = first; c < k && c < first + 512; c += bits == 1 ? 512 : 256) {
            const size_t at = (size_t)(bits == 1 ? c / 8 : c / 4);
            __m512i packed[ROWS], lower[ROWS], codes[ROWS];
            for (int r = 0; r < R; r++) {
                packed[r] = _mm512_loadu_si512(row[r] + at);
                if (prefetch) _mm_prefetch((const char *)((uintptr_t)row[r] + at + AHEAD), _MM_HINT_T1);
                if (bits != 4) continue;
                lower[r] = _mm512_loadu_si512(second[r] + at);
                if (prefetch) _mm_prefetch((const char *)((uintptr_t)second[r] + at + AHEAD), _MM_HINT_T1);
            }
            if (bits == 4) { /* four fields of two bits and four more become two times two of four: those at even places, and those at odd ones */
                for (int r = 0; r < R; r++) {
                    const __m512i even = _mm512_ternarylogic_epi32(odd, _mm512_slli_epi16(packed[r], 2), lower[r], 0xca);
                    lower[r] = _mm512_ternarylogic_epi32(odd, packed[r], _mm512_srli_epi16(lower[r], 2), 0xca);
                    packed[r] = even;
                }
                FIELD(packed, 0) ADD(2 * c)
                FIELD(lower, 0) ADD(2 * c + 128)
                FIELD(packed, 4) ADD(2 * c + 256)
                FIELD(lower, 4) ADD(2 * c + 384)
                continue;
            }
            FIELD(packed, 0) ADD(2 * c)
            FIELD(packed, bits) ADD(2 * c + 128)
            FIELD(packed, 2 * bits) ADD(2 * c + 256)
            FIELD(packed, 3 * bits) ADD(2 * c + 384)
            if (bits == 2 || c + 256 >= k) continue;
            FIELD(packed, 4) ADD(2 * c + 512)
            FIELD(packed, 5) ADD(2 * c + 640)
            FIELD(packed, 6) ADD(2 * c + 768)
            FIELD(packed, 7) ADD(2 * c + 896)
        }
        for (int r = 0; r < R; r++) {
            __m512 scale = scales_of(scales[r] + block);
            for (int t = 0; t < T; t++) {
                const __m512 less = _mm512_mul_ps(middle, _mm512_loadu_ps(x_sums + (size_t)t * sums_stride + block));
                __m512 value; /* everything in it is exact */
                if (bits == 4) value = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum_high[t][r], 7), sum_low[t][r])), less);
                else value = _mm512_fmsub_ps(_mm512_cvtepi32_ps(sum_high[t][r]), _mm512_set1_ps(128.0f), less);
                total[t][r] = _mm512_fmadd_ps(scale, value, total[t][r]);
            }
        }
    }
}

/* A list of rows says which lines come next, so they are asked for while the rows before them are computed. */
INLINE void ask_for(const uint8_t *plane, size_t row_bytes, int32_t row) {
    const uintptr_t at = (uintptr_t)plane + (size_t)row * row_bytes;
    for (size_t b = 0; b < row_bytes; b += 64) _mm_prefetch((const char *)(at + b), _MM_HINT_T1);
}

/* What the kernels below share: rows of a list or one after another. factor 1 changes no bit of x_scale. */
INLINE void scores(const int bits, const int T, const uint8_t *plane, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count,
                   const int8_t *x, const float *x_sums, const float *x_scale, float factor, int64_t k, float *out, size_t out_stride, bool prefetch) {
    enum { NEXT = 12 };
    const int R = T == 1 && bits < 4 ? ROWS : 2;
    const size_t row_bytes = bits == 1 ? 4 * scale_stride : (size_t)(k / 4);
    for (int i = prefetch && rows ? -NEXT : 0; i < count; i += R) {
        for (int n = i + NEXT; n < i + NEXT + R && n < count && prefetch && rows; n++) {
            ask_for(plane, row_bytes, rows[n]);
            ask_for(scales, scale_stride, rows[n]);
        }
        if (i < 0) continue;
        const uint8_t *row[ROWS], *below[ROWS], *scale[ROWS];
        for (int j = 0; j < R; j++) {
            const int last = i + j < count ? i + j : count - 1;
            const size_t at = (size_t)(rows ? rows[last] : last);
            row[j] = plane + at * row_bytes;
            below[j] = bits == 4 ? second + at * row_bytes : NULL;
            scale[j] = scales + at * scale_stride;
        }
        __m512 total[TOKENS][ROWS];
        some_rows(bits, R, T, row, below, scale, prefetch && !rows, x, 2 * (size_t)k, x_sums, scale_stride, k, total);
        for (int t = 0; t < T; t++)
            for (int j = 0; j < R && i + j < count; j++)
                out[(size_t)t * out_stride + (size_t)(i + j)] = add_lanes(total[t][j]) * (factor * x_scale[t]) * row_scale[rows ? rows[i + j] : i + j];
    }
}

INLINE void all_tokens(const int bits, const uint8_t *plane, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x,
                       const float *x_sums, const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    int t = 0;
#define GROUP(T) scores(bits, T, plane, second, scales, scale_stride, row_scale, rows, count, x + (size_t)t * 2 * (size_t)k, x_sums + (size_t)t * scale_stride, x_scale + t, factor, k, out + (size_t)t * out_stride, out_stride, t == 0)
    for (; t + TOKENS <= tokens; t += TOKENS) GROUP(TOKENS);
    if (t + 2 <= tokens) {
        GROUP(2);
        t += 2;
    }
    if (t < tokens) GROUP(1);
#undef GROUP
}

enum { TILE = 16 }; /* rows that stay in L1 while more than one group of tokens passes by */

void setun_avx512_shortlist_two(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                                const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    const int tile = tokens == 1 ? count : TILE;
    for (int r = 0; r < count; r += tile) {
        const size_t skip = rows ? 0 : (size_t)r; /* a list says itself where its rows are */
        all_tokens(2, plane + skip * (size_t)(k / 4), NULL, scales + skip * scale_stride, scale_stride, row_scale + skip, rows ? rows + r : NULL, count - r < tile ? count - r : tile, x, x_sums, x_scale,
                   1.0f, tokens, k, out + r, out_stride);
    }
}

void setun_avx512_shortlist_high(const uint8_t *first, const uint8_t *second, const uint8_t *scales, size_t scale_stride, const float *row_scale, int rows, const int8_t *x, const float *x_sums,
                                 const float *x_scale, int tokens, int64_t k, float *out, size_t out_stride) {
    const int tile = tokens == 1 ? rows : TILE;
    for (int r = 0; r < rows; r += tile) {
        const size_t skip = (size_t)r * (size_t)(k / 4);
        all_tokens(4, first + skip, second + skip, scales + (size_t)r * scale_stride, scale_stride, row_scale + r, NULL, rows - r < tile ? rows - r : tile, x, x_sums, x_scale, 1.0f, tokens, k, out + r, out_stride);
    }
}

void setun_avx512_shortlist_bit(const uint8_t *plane, const uint8_t *scales, size_t scale_stride, const float *row_scale, const int32_t *rows, int count, const int8_t *x, const float *x_sums,
                                const float *x_scale, float factor, int tokens, int64_t k, float *out, size_t out_stride) {
    all_tokens(1, plane, NULL, scales, scale_stride, row_scale, rows, count, x, x_sums, x_scale, factor, tokens, k, out, out_stride);
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
