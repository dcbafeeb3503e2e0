/*
 * rope.c - the angles of a rotation, for every backend: the same bits on every machine. Callers: the backends when they prepare and run.
 * Knows what a rotation is, and nothing of steps.
 */
#include "backend/backend.h"
#include <math.h>

/* ---- sin and cos ----
 * Libraries differ in the last bit, and a text generated with one seed should be the same on every machine. Reduction by pi/2 in three
 * parts of 33 bits (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980): n * part is exact while n < 2^20;
 * then Taylor polynomials on [-pi/4, pi/4], whose first omitted terms are below 5e-17. */
void setun_sincos(double angle, double *sine, double *cosine)
{
    if (!(fabs(angle) < 1e6)) { /* positions no model has; also infinity and NaN */
        *sine = sin(angle);
        *cosine = cos(angle);
        return;
    }
    static const double two_over_pi = 0.63661977236758134308;
    static const double part1 = 1.57079632673412561417e+00, part2 = 6.07710050630396597660e-11, part3 = 2.02226624879595063154e-21;
    double n = rint(angle * two_over_pi);
    double r = ((angle - n * part1) - n * part2) - n * part3;
    double z = r * r;
    double s = r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800 + z * (1.0 / 6227020800.0 + z * (-1.0 / 1307674368000.0))))))));
    double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 + z * (1.0 / 479001600.0 + z * (-1.0 / 87178291200.0 + z * (1.0 / 20922789888000.0))))))));
    switch ((int)((long long)n & 3)) {
    case 0: *sine = s; *cosine = c; break;
    case 1: *sine = c; *cosine = -s; break;
    case 2: *sine = -s; *cosine = -c; break;
    default: *sine = -c; *cosine = s; break;
    }
}

bool setun_rope_same(const setun_rope_spec *a, const setun_rope_spec *b)
{
    if (a->theta != b->theta || a->rotary != b->rotary || a->scale != b->scale || a->magnitude != b->magnitude) return false;
    if (!a->factors != !b->factors) return false;
    return !a->factors || memcmp(a->factors, b->factors, (size_t)(a->rotary / 2) * sizeof(float)) == 0;
}

/* RoFormer (arXiv 2104.09864) eq. 15: angle = position * theta^(-2i/rotary). Linear scaling multiplies the position; factors (llama3,
 * longrope) divide the frequency. */
setun_status setun_rope_frequencies(const setun_rope_spec *spec, double **out)
{
    int half = spec->rotary / 2;
    double *frequencies = setun_alloc((size_t)half * sizeof *frequencies), scale = spec->scale != 0.0f ? spec->scale : 1.0;
    *out = frequencies;
    if (!frequencies) return setun_fail_memory((size_t)half * sizeof *frequencies);
    for (int i = 0; i < half; i++) {
        double f = pow((double)spec->theta, -2.0 * i / spec->rotary) * scale;
        frequencies[i] = spec->factors ? f / (double)spec->factors[i] : f;
    }
    return SETUN_OK;
}
