/*
 * host_instances.c - every kernel as C functions, one for each choice of types; ternary products by bytes, as on CUDA.
 * Callers: host_dispatch.c.
 */
#define DOT_FLOAT 0
#include "backend/mlx/kernels/host_instances.h"

#define HOST_KERNEL rms_norm
#define HOST_TEXT "backend/mlx/kernels/rms_norm.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL rms_norm_quantize
#define HOST_TEXT "backend/mlx/kernels/rms_norm_quantize.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL quantize
#define HOST_TEXT "backend/mlx/kernels/quantize.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL ternary_matvec
#define HOST_TEXT "backend/mlx/kernels/ternary_matvec.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL ternary_matmul
#define HOST_TEXT "backend/mlx/kernels/ternary_matmul.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL ternary_float
#define HOST_TEXT "backend/mlx/kernels/ternary_float.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL dense_matvec
#define HOST_TEXT "backend/mlx/kernels/dense_matvec.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL embedding
#define HOST_TEXT "backend/mlx/kernels/embedding.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL select_rows
#define HOST_TEXT "backend/mlx/kernels/select_rows.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL unary
#define HOST_TEXT "backend/mlx/kernels/unary.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL binary
#define HOST_TEXT "backend/mlx/kernels/binary.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL gate_scaled
#define HOST_TEXT "backend/mlx/kernels/gate_scaled.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL softmax
#define HOST_TEXT "backend/mlx/kernels/softmax.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL l2_normalize
#define HOST_TEXT "backend/mlx/kernels/l2_normalize.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL hadamard
#define HOST_TEXT "backend/mlx/kernels/hadamard.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL rope
#define HOST_TEXT "backend/mlx/kernels/rope.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL kv_append
#define HOST_TEXT "backend/mlx/kernels/kv_append.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL attention
#define HOST_TEXT "backend/mlx/kernels/attention.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL attention_combine
#define HOST_TEXT "backend/mlx/kernels/attention_combine.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL head_limbs
#define HOST_TEXT "backend/mlx/kernels/head_limbs.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL head_scores
#define HOST_TEXT "backend/mlx/kernels/head_scores.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL head_threshold
#define HOST_TEXT "backend/mlx/kernels/head_threshold.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL head_rescore
#define HOST_TEXT "backend/mlx/kernels/head_rescore.kernel"
#define HOST_TYPES 2
#include "backend/mlx/kernels/host_kernel.inc"
#define HOST_KERNEL ternary_matmul_matrix
#define HOST_TEXT "backend/mlx/kernels/ternary_matmul_matrix.kernel"
#define HOST_TYPES 1
#include "backend/mlx/kernels/host_kernel.inc"

setun_host_body setun_host_body_of(int kernel, int first, int second)
{
    switch (kernel) {
#define SETUN_GPU_KERNEL(name, grid) case SETUN_GPU_##name: return name##_table[first][second];
#include "backend/mlx/kernels/kernels.def"
#undef SETUN_GPU_KERNEL
    default: return NULL;
    }
}
