/*
 * table_avx512.c - what the avx512 overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
const setun_kernels setun_kernels_avx512 = {
    .isa = "avx512",
    .ternary_i8 = setun_avx512_ternary_i8,
    .ternary_f32 = setun_avx512_ternary_f32,
    .scale_sums = setun_avx512_scale_sums,
    .quantize_i8 = setun_avx512_quantize_i8,
};
#endif
