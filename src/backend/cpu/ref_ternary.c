/*
 * ref_ternary.c - what the ternary kernels compute, written to be read. The oracle of the tests and the kernels of
 * machines that have no faster ones. Called through table_ref.c.
 */
#include "backend/cpu/float_ref.h"
#include "backend/cpu/isa.h"

/* Byte p of each 32 holds weights p, 32+p, 64+p, 96+p of its 128 in bits 7-6, 5-4, 3-2, 1-0. */
static inline int code_at(const uint8_t *row, int64_t i) {
    int64_t within = i % 128;
    return row[i / 128 * 32 + within % 32] >> (6 - 2 * (within / 32)) & 3;
}

/* |sum| <= 2 * 128 * k: fits int32 for k <= 2^22. */
void setun_ref_ternary_i8(const uint8_t *codes, size_t row_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    for (int r = 0; r < rows; r++) {
        const uint8_t *row = codes + (size_t)r * row_bytes;
        for (int t = 0; t < tokens; t++) {
            const int8_t *xt = x + (size_t)t * x_stride;
            int32_t sum = 0;
            for (int64_t i = 0; i < k; i++) sum += code_at(row, i) * xt[i];
            sums[(size_t)t * out_stride + (size_t)r] = sum;
        }
    }
}

/* The field of a column; the drawing is in ternary.h. */
static inline int field_at(const uint8_t *triple, int64_t blocks, int64_t i) {
    int64_t block = i / 64, lane = i % 64 / 8, q = i % 8, bit = 5 * q;
    if (block >= blocks / 8 * 8) {
        const uint8_t *at = triple + 40 * block + 5 * lane + bit / 8; /* a field that ends with the lane's last byte does not reach the next */
        return (at[0] | (bit % 8 > 3 ? at[1] << 8 : 0)) >> bit % 8 & 31;
    }
    bit += 40 * (block % 8); /* of the lane's five words, 64 bytes apart */
    const uint8_t *word = triple + block / 8 * 320 + 8 * lane + bit / 64 * 64;
    uint64_t low = setun_load_u64(word) >> bit % 64;
    if (bit % 64 > 59) low |= setun_load_u64(word + 64) << (64 - bit % 64);
    return (int)(low & 31);
}

void setun_ref_trits_i8(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    int64_t blocks = (k + 63) / 64;
    for (int r = 0; r < rows; r++) {
        const uint8_t *triple = codes + (size_t)(r / 3) * triple_bytes;
        for (int t = 0; t < tokens; t++) {
            const int8_t *xt = x + (size_t)t * x_stride;
            int32_t sum = 0;
            for (int64_t i = 0; i < k; i++) {
                int field = field_at(triple, blocks, i);
                sum += (r % 3 == 0 ? field % 3 : r % 3 == 1 ? field / 3 % 3 : field / 9) * xt[i];
            }
            sums[(size_t)t * out_stride + (size_t)r] = sum;
        }
    }
}

void setun_ref_ternary_f32(const uint8_t *codes, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, const float *scales, size_t scales_stride, int group, float *out, size_t out_stride) {
    int64_t length = group ? group : k; /* of a group */
    for (int r = 0; r < rows; r++) {
        const uint8_t *row = codes + (size_t)r * row_bytes;
        for (int t = 0; t < tokens; t++) {
            const float *xt = x + (size_t)t * x_stride;
            float total[16] = {0};
            for (int64_t first = 0; first < k; first += length) {
                int64_t last = k - first < length ? k : first + length;
                float sum[16] = {0};
                for (int64_t i = first; i < last; i++) sum[i % 16] = fmaf((float)(code_at(row, i) - 1), xt[i], sum[i % 16]);
                if (!group) {
                    memcpy(total, sum, sizeof total);
                    continue;
                }
                float scale = scales[(size_t)r * scales_stride + (size_t)(first / length)];
                for (int l = 0; l < 16; l++) total[l] = fmaf(scale, sum[l], total[l]);
            }
            out[(size_t)t * out_stride + (size_t)r] = setun_scalar_canonical(setun_scalar_tree16(total));
        }
    }
}

void setun_ref_scale_sums(const int32_t *sums, int n, int32_t x_sum, float x_scale, const float *scales, float tensor_scale, float *out) {
    for (int i = 0; i < n; i++) {
        float scale = x_scale * (scales ? scales[i] : tensor_scale);
        out[i] = setun_scalar_canonical((float)(int32_t)((uint32_t)sums[i] - (uint32_t)x_sum) * scale); /* a NaN: 0 times an infinite scale */
    }
}

/* Comparisons are written so that a NaN has one outcome everywhere: it is ignored in the maximum and becomes -128. */
void setun_ref_quantize_i8(const float *x, int64_t k, int64_t k_padded, int8_t *q, float *scale, int32_t *sum) {
    float most = 0;
    for (int64_t i = 0; i < k; i++) {
        float a = fabsf(x[i]);
        most = a > most ? a : most;
    }
    most = most > 1e-5f ? most : 1e-5f;
    float factor = 127.0f / most;
    int32_t total = 0;
    for (int64_t i = 0; i < k; i++) {
        float v = x[i] * factor;
        v = v > -128.0f ? v : -128.0f;
        v = v < 127.0f ? v : 127.0f;
        q[i] = (int8_t)rintf(v); /* to nearest, ties to even */
        total += q[i];
    }
    for (int64_t i = k; i < k_padded; i++) q[i] = 0;
    *scale = most / 127.0f;
    *sum = total;
}
