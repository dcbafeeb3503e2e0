/*
 * neon_float.c - the float kernels of NEON: float_kernels.inc compiled over the NEON lanes of simd16.h. Named by table_neon.c.
 */
#if defined(__aarch64__)
#define SIMD16_ISA neon
#define SIMD16_NEON 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/float_kernels.inc"
#else
typedef int setun_neon_float_is_empty; /* C wants a declaration */
#endif
