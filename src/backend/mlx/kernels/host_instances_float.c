/*
 * host_instances_float.c - the kernels with dot products of packed codes once more, as Metal computes them: sums in floats.
 * Callers: host_dispatch.c, when a test asks for it.
 */
#define DOT_FLOAT 1
#include "backend/mlx/kernels/host_instances.h"

#define HOST_KERNEL ternary_matvec
#define HOST_TEXT "backend/mlx/kernels/ternary_matvec.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL ternary_matmul
#define HOST_TEXT "backend/mlx/kernels/ternary_matmul.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"

setun_host_body setun_host_body_float_dot(int kernel, int first)
{
    if (kernel == SETUN_GPU_ternary_matvec) return ternary_matvec_table[first][0];
    if (kernel == SETUN_GPU_ternary_matmul) return ternary_matmul_table[first][0];
    return NULL;
}
