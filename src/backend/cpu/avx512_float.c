/*
 * avx512_float.c - the float kernels of AVX512: float_kernels.inc compiled over the AVX512 lanes of simd16.h. Named by table_avx512.c.
 */
#if defined(__x86_64__)
#define SIMD16_ISA avx512
#define SIMD16_AVX512 1
#include "backend/cpu/simd16.h"
#include "backend/cpu/float_kernels.inc"
#else
typedef int setun_avx512_float_is_empty; /* C wants a declaration */
#endif
