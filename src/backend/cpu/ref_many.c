/*
 * ref_many.c - what ternary_i8_many computes: the sums of ternary_i8, whatever the number of tokens. Called through table_ref.c.
 */
#include "backend/cpu/isa.h"

void setun_ref_ternary_i8_many(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride, void *scratch) {
    (void)scratch; /* only for kernels that reorder */
    setun_ref_ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, sums, out_stride);
}
