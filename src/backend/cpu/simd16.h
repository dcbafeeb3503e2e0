/*
 * simd16.h - 16 float lanes as one AVX-512, two AVX2 or four NEON registers ("parts"), with the few operations the float
 * kernels need. Included by <isa>_float.c, which defines SIMD16_ISA (the prefix) and one of SIMD16_AVX512, SIMD16_AVX2,
 * SIMD16_NEON. It knows nothing of kernels. Every operation gives the same bits on all three: fma rounds once, division
 * is division, max and exp are those of float_ref.h. Loads and stores need no alignment.
 */
#ifndef SETUN_SIMD16_H
#define SETUN_SIMD16_H

#include "backend/cpu/float_ref.h"

#define INLINE static inline __attribute__((always_inline, unused))

/* ---- one register ---- */

#if defined(SIMD16_AVX512)

#include <immintrin.h>
#define PARTS 1
#define PART_FLOATS 16
typedef __m512 part;
INLINE part part_zero(void) { return _mm512_setzero_ps(); }
INLINE part part_set1(float v) { return _mm512_set1_ps(v); }
INLINE part part_load(const void *p) { return _mm512_loadu_ps(p); }
INLINE void part_store(void *p, part v) { _mm512_storeu_ps(p, v); }
INLINE part part_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE part part_load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE part part_set1_f16(const void *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)setun_load_u16(p))); }
INLINE void part_store_f16(void *p, part v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
INLINE part part_add(part a, part b) { return _mm512_add_ps(a, b); }
INLINE part part_sub(part a, part b) { return _mm512_sub_ps(a, b); }
INLINE part part_mul(part a, part b) { return _mm512_mul_ps(a, b); }
INLINE part part_div(part a, part b) { return _mm512_div_ps(a, b); }
INLINE part part_fma(part a, part b, part c) { return _mm512_fmadd_ps(a, b, c); }
INLINE part part_max(part a, part b) { return _mm512_max_ps(a, b); } /* a > b ? a : b */
INLINE part part_xor(part a, part b) { return _mm512_xor_ps(a, b); }
INLINE part part_canonical(part a) {
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_castsi512_ps(_mm512_set1_epi32(SETUN_NAN_BITS)));
}
/* p * 2^n for the n in the low bits of t, by adding to the exponent */
INLINE part part_add_exponent(part p, part t) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
/* a >= b ? v : 0 */
INLINE part part_zero_unless_ge(part a, part b, part v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), v); }
/* a <= b ? yes : no */
INLINE part part_select_le(part a, part b, part yes, part no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), yes);
}

#elif defined(SIMD16_AVX2)

#include <immintrin.h>
#define PARTS 2
#define PART_FLOATS 8
typedef __m256 part;
INLINE part part_zero(void) { return _mm256_setzero_ps(); }
INLINE part part_set1(float v) { return _mm256_set1_ps(v); }
INLINE part part_load(const void *p) { return _mm256_loadu_ps(p); }
INLINE void part_store(void *p, part v) { _mm256_storeu_ps(p, v); }
INLINE part part_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE part part_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE part part_set1_f16(const void *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)setun_load_u16(p))); }
INLINE void part_store_f16(void *p, part v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
INLINE part part_add(part a, part b) { return _mm256_add_ps(a, b); }
INLINE part part_sub(part a, part b) { return _mm256_sub_ps(a, b); }
INLINE part part_mul(part a, part b) { return _mm256_mul_ps(a, b); }
INLINE part part_div(part a, part b) { return _mm256_div_ps(a, b); }
INLINE part part_fma(part a, part b, part c) { return _mm256_fmadd_ps(a, b, c); }
INLINE part part_max(part a, part b) { return _mm256_max_ps(a, b); } /* a > b ? a : b */
INLINE part part_xor(part a, part b) { return _mm256_xor_ps(a, b); }
INLINE part part_canonical(part a) {
    return _mm256_blendv_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(SETUN_NAN_BITS)), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
INLINE part part_add_exponent(part p, part t) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
INLINE part part_zero_unless_ge(part a, part b, part v) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), v); }
INLINE part part_select_le(part a, part b, part yes, part no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LE_OQ)); }

#elif defined(SIMD16_NEON)

#include <arm_neon.h>
#define PARTS 4
#define PART_FLOATS 4
typedef float32x4_t part;
INLINE part part_zero(void) { return vdupq_n_f32(0.0f); }
INLINE part part_set1(float v) { return vdupq_n_f32(v); }
INLINE part part_load(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
INLINE void part_store(void *p, part v) { vst1q_u8(p, vreinterpretq_u8_f32(v)); }
INLINE part part_load_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
INLINE part part_load_bf16(const void *p) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)); }
INLINE part part_set1_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(setun_load_u16(p)))); }
INLINE void part_store_f16(void *p, part v) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(v))); }
INLINE part part_add(part a, part b) { return vaddq_f32(a, b); }
INLINE part part_sub(part a, part b) { return vsubq_f32(a, b); }
INLINE part part_mul(part a, part b) { return vmulq_f32(a, b); }
INLINE part part_div(part a, part b) { return vdivq_f32(a, b); }
INLINE part part_fma(part a, part b, part c) { return vfmaq_f32(c, a, b); }
INLINE part part_max(part a, part b) { return vbslq_f32(vcgtq_f32(a, b), a, b); } /* vmaxq would let NaN through */
INLINE part part_xor(part a, part b) { return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b))); }
INLINE part part_canonical(part a) { return vbslq_f32(vceqq_f32(a, a), a, vreinterpretq_f32_u32(vdupq_n_u32(SETUN_NAN_BITS))); }
INLINE part part_add_exponent(part p, part t) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p), vshlq_n_u32(vreinterpretq_u32_f32(t), 23)));
}
INLINE part part_zero_unless_ge(part a, part b, part v) {
    return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(a, b), vreinterpretq_u32_f32(v)));
}
INLINE part part_select_le(part a, part b, part yes, part no) { return vbslq_f32(vcleq_f32(a, b), yes, no); }

#else
#error "define SIMD16_AVX512, SIMD16_AVX2 or SIMD16_NEON"
#endif

/* The steps of setun_scalar_exp. */
INLINE part part_exp(part x) {
    part magic = part_set1(SETUN_EXP_MAGIC);
    part t = part_fma(x, part_set1(SETUN_EXP_LOG2E), magic);
    part n = part_sub(t, magic);
    part r = part_fma(n, part_set1(-SETUN_EXP_LN2_HIGH), x);
    r = part_fma(n, part_set1(-(SETUN_EXP_LN2_LOW)), r);
    part p = part_fma(part_set1(SETUN_EXP_C6), r, part_set1(SETUN_EXP_C5));
    p = part_fma(p, r, part_set1(SETUN_EXP_C4));
    p = part_fma(p, r, part_set1(SETUN_EXP_C3));
    p = part_fma(p, r, part_set1(SETUN_EXP_C2));
    p = part_fma(p, r, part_set1(1.0f));
    p = part_fma(p, r, part_set1(1.0f));
    part y = part_zero_unless_ge(x, part_set1(SETUN_EXP_LOWEST), part_add_exponent(p, t));
    return part_select_le(x, part_set1(SETUN_EXP_HIGHEST), y, part_mul(x, part_set1(INFINITY)));
}

/* ---- 16 lanes ---- */

typedef struct lanes { part p[PARTS]; } lanes;

/* Written out, not looped, so that the parts live in registers at once. */
#if PARTS == 1
#define EACH_PART(do_part) do_part(0)
#elif PARTS == 2
#define EACH_PART(do_part) do_part(0) do_part(1)
#else
#define EACH_PART(do_part) do_part(0) do_part(1) do_part(2) do_part(3)
#endif

#define LANES_UNARY(name) \
    INLINE lanes lanes_##name(lanes a) { EACH_PART(LANES_UNARY_##name) return a; }
#define LANES_UNARY_exp(i) a.p[i] = part_exp(a.p[i]);
#define LANES_UNARY_canonical(i) a.p[i] = part_canonical(a.p[i]);
LANES_UNARY(exp)
LANES_UNARY(canonical)

#define LANES_BINARY(name) \
    INLINE lanes lanes_##name(lanes a, lanes b) { EACH_PART(LANES_BINARY_##name) return a; }
#define LANES_BINARY_add(i) a.p[i] = part_add(a.p[i], b.p[i]);
#define LANES_BINARY_sub(i) a.p[i] = part_sub(a.p[i], b.p[i]);
#define LANES_BINARY_mul(i) a.p[i] = part_mul(a.p[i], b.p[i]);
#define LANES_BINARY_div(i) a.p[i] = part_div(a.p[i], b.p[i]);
#define LANES_BINARY_max(i) a.p[i] = part_max(a.p[i], b.p[i]);
#define LANES_BINARY_xor(i) a.p[i] = part_xor(a.p[i], b.p[i]);
LANES_BINARY(add)
LANES_BINARY(sub)
LANES_BINARY(mul)
LANES_BINARY(div)
LANES_BINARY(max)
LANES_BINARY(xor)

/* a <= b ? yes : no */
#define LANES_SELECT_LE(i) a.p[i] = part_select_le(a.p[i], b.p[i], yes.p[i], no.p[i]);
INLINE lanes lanes_select_le(lanes a, lanes b, lanes yes, lanes no) { EACH_PART(LANES_SELECT_LE) return a; }

#define LANES_FMA(i) c.p[i] = part_fma(a.p[i], b.p[i], c.p[i]);
INLINE lanes lanes_fma(lanes a, lanes b, lanes c) { EACH_PART(LANES_FMA) return c; }

#define LANES_SET1(i) r.p[i] = v;
INLINE lanes lanes_set1_part(part v) { lanes r; EACH_PART(LANES_SET1) return r; }
INLINE lanes lanes_set1(float v) { return lanes_set1_part(part_set1(v)); }
INLINE lanes lanes_zero(void) { return lanes_set1_part(part_zero()); }
INLINE lanes lanes_set1_f16(const void *p) { return lanes_set1_part(part_set1_f16(p)); }

#define LANES_LOAD(i) r.p[i] = part_load((const uint8_t *)p + (i) * PART_FLOATS * 4);
#define LANES_LOAD_F16(i) r.p[i] = part_load_f16((const uint8_t *)p + (i) * PART_FLOATS * 2);
#define LANES_LOAD_BF16(i) r.p[i] = part_load_bf16((const uint8_t *)p + (i) * PART_FLOATS * 2);
#define LANES_STORE(i) part_store((uint8_t *)p + (i) * PART_FLOATS * 4, v.p[i]);
#define LANES_STORE_F16(i) part_store_f16((uint8_t *)p + (i) * PART_FLOATS * 2, v.p[i]);
INLINE lanes lanes_load(const void *p) { lanes r; EACH_PART(LANES_LOAD) return r; }
INLINE lanes lanes_load_f16(const void *p) { lanes r; EACH_PART(LANES_LOAD_F16) return r; }
INLINE lanes lanes_load_bf16(const void *p) { lanes r; EACH_PART(LANES_LOAD_BF16) return r; }
INLINE void lanes_store(void *p, lanes v) { EACH_PART(LANES_STORE) }
INLINE void lanes_store_f16(void *p, lanes v) { EACH_PART(LANES_STORE_F16) }

/* Tails, 0 <= n < 16: the lanes from n on are zero, and memory past element n is not touched. */
#define LANES_LOAD_N(name, bytes) \
    INLINE lanes lanes_##name##_n(const void *p, int n) { \
        uint8_t buffer[16 * (bytes)] = {0}; \
        memcpy(buffer, p, (size_t)n * (bytes)); \
        return lanes_##name(buffer); \
    }
#define LANES_STORE_N(name, bytes) \
    INLINE void lanes_##name##_n(void *p, lanes v, int n) { \
        uint8_t buffer[16 * (bytes)]; \
        lanes_##name(buffer, v); \
        memcpy(p, buffer, (size_t)n * (bytes)); \
    }
LANES_LOAD_N(load, 4)
LANES_LOAD_N(load_f16, 2)
LANES_LOAD_N(load_bf16, 2)
LANES_STORE_N(store, 4)
LANES_STORE_N(store_f16, 2)

/* Zero from lane n on. */
INLINE lanes lanes_keep(lanes v, int n) {
    float buffer[16];
    lanes_store(buffer, v);
    return lanes_load_n(buffer, n);
}

/* The maximum of lanes without NaN: its order can't be seen, but for which of two zeros it is. */
INLINE float lanes_maximum(lanes v) {
#if defined(SIMD16_NEON)
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.p[0], v.p[1]), vmaxq_f32(v.p[2], v.p[3])));
#else
#if defined(SIMD16_AVX512)
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v.p[0]), _mm512_extractf32x8_ps(v.p[0], 1));
#else
    __m256 eight = _mm256_max_ps(v.p[0], v.p[1]);
#endif
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#endif
}

/* The tree of the 16-lane rule. */
INLINE float lanes_sum(lanes v) {
    float lane[16];
    lanes_store(lane, v);
    return setun_scalar_tree16(lane);
}

#if defined(SIMD16_NEON)

/* 16 int8 as floats */
INLINE lanes lanes_load_i8(const void *p) {
    int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (lanes){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}

/* 8 floats, each twice */
INLINE lanes lanes_load_twice(const float *p) {
    part a = part_load(p), b = part_load(p + 4);
    return (lanes){{vzip1q_f32(a, a), vzip2q_f32(a, a), vzip1q_f32(b, b), vzip2q_f32(b, b)}};
}

/* Lane l gets lane l ^ distance. */
INLINE lanes lanes_exchange(lanes v, const int distance) {
    if (distance == 1) return (lanes){{vrev64q_f32(v.p[0]), vrev64q_f32(v.p[1]), vrev64q_f32(v.p[2]), vrev64q_f32(v.p[3])}};
    if (distance == 2) return (lanes){{vextq_f32(v.p[0], v.p[0], 2), vextq_f32(v.p[1], v.p[1], 2),
                                       vextq_f32(v.p[2], v.p[2], 2), vextq_f32(v.p[3], v.p[3], 2)}};
    if (distance == 4) return (lanes){{v.p[1], v.p[0], v.p[3], v.p[2]}};
    return (lanes){{v.p[2], v.p[3], v.p[0], v.p[1]}};
}

/* Lane r of the result is the tree over rows[r][0..15]. */
INLINE lanes lanes_sum_rows(const float *rows) {
    lanes sums;
    for (int i = 0; i < 4; i++) {
        part row[4];
        for (int j = 0; j < 4; j++) {
            lanes v = lanes_load(rows + (i * 4 + j) * 16);
            row[j] = vaddq_f32(vaddq_f32(v.p[0], v.p[2]), vaddq_f32(v.p[1], v.p[3]));
        }
        part ab = vaddq_f32(vcombine_f32(vget_low_f32(row[0]), vget_low_f32(row[1])), vcombine_f32(vget_high_f32(row[0]), vget_high_f32(row[1])));
        part cd = vaddq_f32(vcombine_f32(vget_low_f32(row[2]), vget_low_f32(row[3])), vcombine_f32(vget_high_f32(row[2]), vget_high_f32(row[3])));
        sums.p[i] = vpaddq_f32(ab, cd);
    }
    return sums;
}

#else

/* Eight rows at once: [0 1 2 3 | 4 5 6 7]. Halves of rows r and r + 4 share a register so that the order comes out right. */
INLINE __m256 sum_eight_rows(const float *rows) {
    __m256 four[4], two[2];
    for (int r = 0; r < 4; r++) {
        __m256 a = _mm256_add_ps(_mm256_loadu_ps(rows + r * 16), _mm256_loadu_ps(rows + r * 16 + 8));
        __m256 b = _mm256_add_ps(_mm256_loadu_ps(rows + r * 16 + 64), _mm256_loadu_ps(rows + r * 16 + 72));
        four[r] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    for (int r = 0; r < 2; r++)
        two[r] = _mm256_add_ps(_mm256_shuffle_ps(four[r * 2], four[r * 2 + 1], 0x44), _mm256_shuffle_ps(four[r * 2], four[r * 2 + 1], 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
}

#if defined(SIMD16_AVX512)

INLINE lanes lanes_load_i8(const void *p) {
    return (lanes){{_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)))}};
}
INLINE lanes lanes_load_twice(const float *p) {
    __m512i index = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return (lanes){{_mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)))}};
}
INLINE lanes lanes_exchange(lanes v, const int distance) {
    if (distance == 1) return (lanes){{_mm512_permute_ps(v.p[0], 0xb1)}};
    if (distance == 2) return (lanes){{_mm512_permute_ps(v.p[0], 0x4e)}};
    if (distance == 4) return (lanes){{_mm512_shuffle_f32x4(v.p[0], v.p[0], 0xb1)}};
    return (lanes){{_mm512_shuffle_f32x4(v.p[0], v.p[0], 0x4e)}};
}
INLINE lanes lanes_sum_rows(const float *rows) {
    return (lanes){{_mm512_insertf32x8(_mm512_castps256_ps512(sum_eight_rows(rows)), sum_eight_rows(rows + 128), 1)}};
}

#else

INLINE lanes lanes_load_i8(const void *p) {
    const uint8_t *bytes = p;
    return (lanes){{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes))),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + 8))))}};
}
INLINE lanes lanes_load_twice(const float *p) {
    __m256i index = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
    return (lanes){{_mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), index),
                    _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4)), index)}};
}
INLINE lanes lanes_exchange(lanes v, const int distance) {
    if (distance == 1) return (lanes){{_mm256_permute_ps(v.p[0], 0xb1), _mm256_permute_ps(v.p[1], 0xb1)}};
    if (distance == 2) return (lanes){{_mm256_permute_ps(v.p[0], 0x4e), _mm256_permute_ps(v.p[1], 0x4e)}};
    if (distance == 4) return (lanes){{_mm256_permute2f128_ps(v.p[0], v.p[0], 1), _mm256_permute2f128_ps(v.p[1], v.p[1], 1)}};
    return (lanes){{v.p[1], v.p[0]}};
}
INLINE lanes lanes_sum_rows(const float *rows) { return (lanes){{sum_eight_rows(rows), sum_eight_rows(rows + 128)}}; }

#endif
#endif

#endif
