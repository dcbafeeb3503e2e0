/*
 * table_avx2.c - what the avx2 overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
const setun_kernels setun_kernels_avx2 = {
    .isa = "avx2",
    .ternary_i8 = setun_avx2_ternary_i8,
    .ternary_f32 = setun_avx2_ternary_f32,
    .scale_sums = setun_avx2_scale_sums,
    .quantize_i8 = setun_avx2_quantize_i8,
};
#endif
