/*
 * isa.h - declares setun_<isa>_<kernel> for every ISA and every line of kernels.def, and the tables made of them.
 * Used by the kernel files, the table_*.c files and select.c. A declaration promises nothing: only what a table_<isa>.c
 * names exists; an entry a table leaves out is inherited from the ISA below it.
 */
#ifndef SETUN_CPU_ISA_H
#define SETUN_CPU_ISA_H

#include "backend/cpu/kernels.h"

#define SETUN_KERNEL(name, ret, params, exactness) \
    ret setun_ref_##name params; \
    ret setun_avx2_##name params; \
    ret setun_avx512_##name params; \
    ret setun_neon_##name params; \
    ret setun_neon_dotprod_##name params;
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL

extern const setun_kernels setun_kernels_ref;
#if defined(__x86_64__)
extern const setun_kernels setun_kernels_avx2;   /* AVX2, FMA, F16C */
extern const setun_kernels setun_kernels_avx512; /* F, BW, VL, DQ, VNNI, VBMI, VBMI2, GFNI: Ice Lake, Zen 4 and later */
#elif defined(__aarch64__)
extern const setun_kernels setun_kernels_neon;         /* every aarch64 CPU */
extern const setun_kernels setun_kernels_neon_dotprod; /* ARMv8.2 SDOT */
#endif

#endif
