/*
 * table_avx512.c - what the avx512 overlay has; what it leaves out is inherited. Read by select.c only.
 */
#include "backend/cpu/isa.h"

#if defined(__x86_64__)
const setun_kernels setun_kernels_avx512 = {
    .isa = "avx512",
    .ternary_i8 = setun_avx512_ternary_i8,
    .ternary_i8_many = setun_avx512_ternary_i8_many,
    .trits_rows = setun_avx512_trits_rows,
    .trits_pack = setun_avx512_trits_pack,
    .trits_valid = setun_avx512_trits_valid,
    .trits_i8 = setun_avx512_trits_i8,
    .ternary_f32 = setun_avx512_ternary_f32,
    .scale_sums = setun_avx512_scale_sums,
    .quantize_i8 = setun_avx512_quantize_i8,
    .rms_norm = setun_avx512_rms_norm,
    .l2_normalize = setun_avx512_l2_normalize,
    .dense_f32 = setun_avx512_dense_f32,
    .dense_f16 = setun_avx512_dense_f16,
    .dense_bf16 = setun_avx512_dense_bf16,
    .dense_q8_0 = setun_avx512_dense_q8_0,
    .dense_q6_k = setun_avx512_dense_q6_k,
    .rope = setun_avx512_rope,
    .silu = setun_avx512_silu,
    .relu2 = setun_avx512_relu2,
    .gelu = setun_avx512_gelu,
    .silu_mul = setun_avx512_silu_mul,
    .relu2_mul = setun_avx512_relu2_mul,
    .gelu_mul = setun_avx512_gelu_mul,
    .add = setun_avx512_add,
    .multiply = setun_avx512_multiply,
    .scale = setun_avx512_scale,
    .softmax = setun_avx512_softmax,
    .hadamard = setun_avx512_hadamard,
    .f32_to_f16 = setun_avx512_f32_to_f16,
    .f16_to_f32 = setun_avx512_f16_to_f32,
    .attention = setun_avx512_attention,
    .attention_combine = setun_avx512_attention_combine,
    .shortlist_two = setun_avx512_shortlist_two,
    .shortlist_high = setun_avx512_shortlist_high,
    .shortlist_bit = setun_avx512_shortlist_bit,
    .shortlist_select = setun_avx512_shortlist_select,
    .shortlist_pack = setun_avx512_shortlist_pack,
};
#endif
