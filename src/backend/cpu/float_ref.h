/*
 * float_ref.h - the scalar definitions every float kernel shares: the constants of exp, what a maximum is when NaN takes part,
 * the one NaN that kernels write. ref_float.c computes with them; simd16.h repeats the same steps 16 lanes wide with the same
 * constants. It knows nothing of vectors, formats or models.
 */
#ifndef SETUN_FLOAT_REF_H
#define SETUN_FLOAT_REF_H

#include "base/base.h"
#include <math.h>

/*
 * exp(x): t = fma(x, log2 e, 3 * 2^22) leaves n = rint(x log2 e) in the low bits of t; r = x - n ln 2 in two fma (the first is exact);
 * 1 + r + r^2 q(r) with a minimax q of degree 4 (relative error 2^-27.8 before rounding), by Horner's rule in fma; n is added
 * to the exponent bits. Results below 2^-126 are 0, above the largest float +inf; NaN stays NaN. Under 1 ulp off otherwise.
 * The limits: at EXP_LOWEST n = -126 and the polynomial is >= 1, at EXP_HIGHEST n = 128 and it is < 1, so the exponent field
 * always holds the sum.
 */
#define SETUN_EXP_LOG2E 0x1.715476p+0f
#define SETUN_EXP_MAGIC 0x1.8p+23f
#define SETUN_EXP_LN2_HIGH 0x1.62e430p-1f
#define SETUN_EXP_LN2_LOW -0x1.05c610p-29f
#define SETUN_EXP_C2 0x1.fffffcp-2f
#define SETUN_EXP_C3 0x1.555490p-3f
#define SETUN_EXP_C4 0x1.5558f8p-5f
#define SETUN_EXP_C5 0x1.123b02p-7f
#define SETUN_EXP_C6 0x1.6a2256p-10f
#define SETUN_EXP_LOWEST -0x1.5d589ep+6f  /* -87.336540 */
#define SETUN_EXP_HIGHEST 0x1.62e42ep+6f  /* 88.722832 */

/* gelu(x) = x / (1 + exp(x (A + B x^2))): the tanh form, as 1 + tanh(u) = 2 / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3) */
#define SETUN_GELU_A -1.5957691216057308f
#define SETUN_GELU_B -0.07135481627159825f

#define SETUN_NAN_BITS 0x7fc00000u

static inline uint32_t setun_float_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float setun_bits_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

/* Which operand's payload an FPU keeps, and the sign of a fresh NaN, differ between CPUs: kernels write one NaN only. */
static inline float setun_scalar_canonical(float x) { return x != x ? setun_bits_float(SETUN_NAN_BITS) : x; }

/* The second operand unless the first is greater: with the running maximum second, NaN elements are passed over (they come
 * back in through exp(x - max)). */
static inline float setun_scalar_max(float x, float running) { return x > running ? x : running; }

static inline float setun_scalar_exp(float x) {
    float t = fmaf(x, SETUN_EXP_LOG2E, SETUN_EXP_MAGIC);
    float n = t - SETUN_EXP_MAGIC;
    float r = fmaf(n, -SETUN_EXP_LN2_HIGH, x);
    r = fmaf(n, -(SETUN_EXP_LN2_LOW), r);
    float p = fmaf(SETUN_EXP_C6, r, SETUN_EXP_C5);
    p = fmaf(p, r, SETUN_EXP_C4);
    p = fmaf(p, r, SETUN_EXP_C3);
    p = fmaf(p, r, SETUN_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    float y = setun_bits_float(setun_float_bits(p) + (setun_float_bits(t) << 23));
    if (!(x >= SETUN_EXP_LOWEST)) y = 0.0f;
    return x <= SETUN_EXP_HIGHEST ? y : x * INFINITY; /* +inf for large x, NaN for NaN */
}

static inline float setun_scalar_silu(float x) { return x / (1.0f + setun_scalar_exp(-x)); }
static inline float setun_scalar_gelu(float x) {
    return x / (1.0f + setun_scalar_exp(fmaf(x * x, SETUN_GELU_B, SETUN_GELU_A) * x));
}
static inline float setun_scalar_relu2(float x) { float r = x < 0.0f ? 0.0f : x; return r * r; }

/* The tree that ends the 16-lane rule. */
static inline float setun_scalar_tree16(const float lane[16]) {
    float a[8], b[4], c[2];
    for (int l = 0; l < 8; l++) a[l] = lane[l] + lane[l + 8];
    for (int l = 0; l < 4; l++) b[l] = a[l] + a[l + 4];
    for (int l = 0; l < 2; l++) c[l] = b[l] + b[l + 2];
    return c[0] + c[1];
}

#endif
