/*
 * ref_many.c - what the kernels of prompts compute: ternary_i8_many the sums of ternary_i8, whatever the number of tokens; trits_rows the
 * rows that it can take. Called through table_ref.c.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

void setun_ref_trits_rows(const uint8_t *codes, size_t triple_bytes, int rows, int64_t k, uint8_t *out, size_t row_bytes) {
    for (int r = 0; r < rows; r += 3, codes += triple_bytes, out += 3 * row_bytes)
        (void)setun_unpack_trits(codes, k, 0, setun_trits_blocks(k), out, r + 1 < rows ? out + row_bytes : NULL, r + 2 < rows ? out + 2 * row_bytes : NULL);
}

bool setun_ref_trits_pack(const uint8_t *codes, size_t row_bytes, int rows, int64_t k, uint8_t *out, size_t triple_bytes) {
    bool right = true;
    for (int r = 0; r < rows; r += 3, codes += 3 * row_bytes, out += triple_bytes)
        right &= setun_pack_trits(codes, r + 1 < rows ? codes + row_bytes : NULL, r + 2 < rows ? codes + 2 * row_bytes : NULL, k, out);
    return right;
}

bool setun_ref_trits_valid(const uint8_t *codes, size_t triple_bytes, int rows, int64_t k) {
    for (int r = 0; r < rows; r += 3, codes += triple_bytes)
        if (!setun_trits_valid(codes, k)) return false;
    return true;
}

void setun_ref_ternary_i8_many(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride, void *scratch) {
    (void)scratch; /* only for kernels that reorder */
    setun_ref_ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, sums, out_stride);
}
