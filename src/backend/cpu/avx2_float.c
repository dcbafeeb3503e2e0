/*
 * avx2_float.c - the float kernels of AVX2: float_kernels.inc compiled over the AVX2 lanes of simd16.h. Named by table_avx2.c.
 */
#if defined(__x86_64__)
#define SIMD16_ISA avx2
#define SIMD16_AVX2 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/float_kernels.inc"
#else
typedef int setun_avx2_float_is_empty; /* C wants a declaration */
#endif
