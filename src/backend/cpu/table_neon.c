/*
 * table_neon.c - what the neon overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__aarch64__)
const setun_kernels setun_kernels_neon = {
    .isa = "neon",
    .ternary_i8 = setun_neon_ternary_i8,
    .trits_i8 = setun_neon_trits_i8,
    .ternary_f32 = setun_neon_ternary_f32,
    .scale_sums = setun_neon_scale_sums,
    .quantize_i8 = setun_neon_quantize_i8,
    .rms_norm = setun_neon_rms_norm,
    .l2_normalize = setun_neon_l2_normalize,
    .dense_f32 = setun_neon_dense_f32,
    .dense_f16 = setun_neon_dense_f16,
    .dense_bf16 = setun_neon_dense_bf16,
    .dense_q8_0 = setun_neon_dense_q8_0,
    .dense_q6_k = setun_neon_dense_q6_k,
    .rope = setun_neon_rope,
    .silu = setun_neon_silu,
    .relu2 = setun_neon_relu2,
    .gelu = setun_neon_gelu,
    .silu_mul = setun_neon_silu_mul,
    .relu2_mul = setun_neon_relu2_mul,
    .gelu_mul = setun_neon_gelu_mul,
    .add = setun_neon_add,
    .multiply = setun_neon_multiply,
    .scale = setun_neon_scale,
    .softmax = setun_neon_softmax,
    .hadamard = setun_neon_hadamard,
    .f32_to_f16 = setun_neon_f32_to_f16,
    .f16_to_f32 = setun_neon_f16_to_f32,
    .attention = setun_neon_attention,
    .attention_combine = setun_neon_attention_combine,
    .shortlist_two = setun_neon_shortlist_two,
    .shortlist_high = setun_neon_shortlist_high,
    .shortlist_bit = setun_neon_shortlist_bit,
    .shortlist_pack = setun_neon_shortlist_pack,
};
#endif
