/*
 * table_avx2.c - what the avx2 overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
const setun_kernels setun_kernels_avx2 = {
    .isa = "avx2",
    .ternary_i8 = setun_avx2_ternary_i8,
    .ternary_i8_many = setun_avx2_ternary_i8_many,
    .trits_i8 = setun_avx2_trits_i8,
    .ternary_f32 = setun_avx2_ternary_f32,
    .scale_sums = setun_avx2_scale_sums,
    .quantize_i8 = setun_avx2_quantize_i8,
    .rms_norm = setun_avx2_rms_norm,
    .l2_normalize = setun_avx2_l2_normalize,
    .dense_f32 = setun_avx2_dense_f32,
    .dense_f16 = setun_avx2_dense_f16,
    .dense_bf16 = setun_avx2_dense_bf16,
    .dense_q8_0 = setun_avx2_dense_q8_0,
    .dense_q6_k = setun_avx2_dense_q6_k,
    .rope = setun_avx2_rope,
    .silu = setun_avx2_silu,
    .relu2 = setun_avx2_relu2,
    .gelu = setun_avx2_gelu,
    .silu_mul = setun_avx2_silu_mul,
    .relu2_mul = setun_avx2_relu2_mul,
    .gelu_mul = setun_avx2_gelu_mul,
    .add = setun_avx2_add,
    .multiply = setun_avx2_multiply,
    .scale = setun_avx2_scale,
    .softmax = setun_avx2_softmax,
    .hadamard = setun_avx2_hadamard,
    .f32_to_f16 = setun_avx2_f32_to_f16,
    .f16_to_f32 = setun_avx2_f16_to_f32,
    .attention = setun_avx2_attention,
    .attention_combine = setun_avx2_attention_combine,
    .shortlist_two = setun_avx2_shortlist_two,
    .shortlist_high = setun_avx2_shortlist_high,
    .shortlist_bit = setun_avx2_shortlist_bit,
    .shortlist_select = setun_avx2_shortlist_select,
    .shortlist_pack = setun_avx2_shortlist_pack,
};
#endif
