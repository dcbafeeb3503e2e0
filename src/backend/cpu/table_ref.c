/*
 * table_ref.c - the table of the reference kernels: it has every kernel of kernels.def, so every selection is complete.
 * Read by select.c only.
 */
#include "backend/cpu/isa.h"

const setun_kernels setun_kernels_ref = {
    .isa = "ref",
#define SETUN_KERNEL(name, ret, params, exactness) .name = setun_ref_##name,
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
};
