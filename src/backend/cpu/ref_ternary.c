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
