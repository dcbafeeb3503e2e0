/*
 * table_neon.c - what the neon overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__aarch64__)
const setun_kernels setun_kernels_neon = {
    .isa = "neon",
    .ternary_i8 = setun_neon_ternary_i8,
    .ternary_f32 = setun_neon_ternary_f32,
    .scale_sums = setun_neon_scale_sums,
    .quantize_i8 = setun_neon_quantize_i8,
};
#endif
