/*
 * table_neon_dotprod.c - what the neon_dotprod overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__aarch64__)
const setun_kernels setun_kernels_neon_dotprod = {
    .isa = "neon_dotprod",
    .ternary_i8 = setun_neon_dotprod_ternary_i8,
    .trits_i8 = setun_neon_dotprod_trits_i8,
};
#endif
