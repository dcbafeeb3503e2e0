/*
 * quantise.c - the two quantisers of BitNet b1.58 (arXiv 2402.17764, eq. 1-3): absmean for weights, absmax for activations.
 * Callers: decode.c (masters made ternary at load), convert, the reference kernels. The results are the same on every CPU:
 * the order of the sums is fixed here.
 */
#include "ternary/decode.h"
#include <math.h>

void setun_absmean_codes(const float *values, int64_t count, float scale, uint8_t *codes) {
    for (int64_t i = 0; i < count; i++) {
        const float q = rintf(values[i] / scale);
        codes[i] = (uint8_t)(q > 0 ? 2 : q < 0 ? 0 : 1);
    }
}

void setun_absmean_add(setun_absmean_sum *sum, const float *values, int64_t count) {
    /* Value i of the whole goes to lane i % 8, wherever the pieces are cut. */
    for (int64_t i = 0; i < count; i++) sum->lane[(sum->count + i) & 7] += fabs((double)values[i]);
    sum->count += count;
}

float setun_absmean_scale(const setun_absmean_sum *sum) {
    const double *l = sum->lane;
    const double total = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    const double mean = sum->count ? total / (double)sum->count : 0;
    return mean < 1e-5 ? 1e-5f : (float)mean; /* a NaN stays one: the caller refuses it */
}

void setun_absmean(const float *values, int64_t count, float *out_scale, uint8_t *codes) {
    setun_absmean_sum sum = {{0}, 0};
    setun_absmean_add(&sum, values, count);
    *out_scale = setun_absmean_scale(&sum);
    if (codes) setun_absmean_codes(values, count, *out_scale, codes);
}

float setun_absmax_i8(const float *x, int64_t count, int8_t *out) {
    float largest = 1e-5f;
    for (int64_t i = 0; i < count; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    const float s = 127.0f / largest;
    for (int64_t i = 0; i < count; i++) {
        const float q = rintf(x[i] * s);
        out[i] = (int8_t)(q >= 127 ? 127 : q > -128 ? q : -128); /* a NaN lands on -128 */
    }
    return largest / 127.0f;
}
