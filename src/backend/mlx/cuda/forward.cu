/*
 * forward.cu - what a run over many tokens needs beside prompt.cu's products: rows of the embedding, attention over the cache, the norm
 * before the head and the head. Keys and values lie as decode.cu has them: f16 [layers][kv_heads][capacity][head_size].
 * Caller: engine.c, through the driver. Knows no model. Compiled by nvcc, decode.cu with it, into one binary; runs on the host in tests/cuda.
 *
 * Attention multiplies f16 halves on the tensor cores: q and the weights of the keys are each split into two f16 numbers, which together have 22
 * significant bits, so the scores are those of f32 numbers to a few units of the last place of such words.
 */
#include "decode.cu"

typedef struct float8_shared { float value[8]; } float8_shared;

/* Row ids[t] of the table as floats; grid: tokens. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_embed(const u8 *table, const int *ids, float *x, int width, int row_bytes, int format, float factor)
{
    const u8 *row = table + (size_t)ids[blockIdx.x] * (size_t)row_bytes;
    float *y = x + (size_t)blockIdx.x * (size_t)width;
    for (int i = TID; i < width / 4; i += 256) {
        float4 v = dense_quad(row, format, width, i);
        *(float4 *)(y + 4 * i) = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
    }
}

/* y[r] = rms_norm(x[rows[r]]) * weight; epsilon below 0: a copy. grid: rows. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_norm(const float *x, const int *rows, const float *weight, float *y, int width, int weighted, float epsilon)
{
    SETUN_CUDA_SHARED(float8_shared, parts);
    const float *from = x + (size_t)rows[blockIdx.x] * (size_t)width;
    float *to = y + (size_t)blockIdx.x * (size_t)width, sum = 0.0f;
    for (int i = TID; i < width; i += 256) sum = fmaf(from[i], from[i], sum);
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (LANE == 0) parts.value[WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += parts.value[i];
    const float inverse = epsilon >= 0.0f ? 1.0f / sqrtf(sum / (float)width + epsilon) : 1.0f;
    for (int i = TID; i < width; i += 256) to[i] = from[i] * inverse * (weighted ? weight[i] : 1.0f);
}

/* logits[t][row] of up to 8 tokens: a warp takes a row of the head at a time. grid: any; blocks of 256. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_head(const u8 *head, const float *x, float *logits, int width, int vocabulary, int row_bytes, int format, int tokens, float factor)
{
    for (int row = blockIdx.x * 8 + WARP; row < vocabulary; row += gridDim.x * 8) {
        const u8 *w = head + (size_t)row * (size_t)row_bytes;
        float acc[8];
        for (int t = 0; t < 8; t++) acc[t] = 0.0f;
        for (int i = LANE; i < width / 4; i += 32) {
            const float4 v = dense_quad(w, format, width, i);
#pragma unroll
            for (int t = 0; t < 8; t++)
                if (t < tokens) {
                    const float4 u = *(const float4 *)(x + (size_t)t * (size_t)width + 4 * i);
                    acc[t] = fmaf(v.x, u.x, fmaf(v.y, u.y, fmaf(v.z, u.z, fmaf(v.w, u.w, acc[t]))));
                }
        }
#pragma unroll
        for (int t = 0; t < 8; t++) {
            float y = acc[t];
            for (int o = 16; o > 0; o /= 2) y += __shfl_xor_sync(~0u, y, o);
            if (LANE == 0 && t < tokens) logits[(size_t)t * (size_t)vocabulary + row] = y * factor;
        }
    }
}

/* ---- attention: 64 queries of one head a block, keys in tiles of 64 ---- */

enum { FORWARD_QUERIES = 64, FORWARD_KEYS = 64 };
/* Shared memory: keys [64][D + 8], values transposed [D][72], f16. */
template <int D> struct __align__(16) forward_tile { unsigned short keys[FORWARD_KEYS * (D + 8)], values[D * (FORWARD_KEYS + 8)]; };

/* Two floats as f16, and what that left of them as f16. */
static __device__ __forceinline__ void split_pair(float x, float y, u32 *high, u32 *low)
{
    *high = f16_pair(x, y);
    *low = f16_pair(x - f16_float(*high), y - f16_float(*high >> 16));
}

/* A pair of q's dimensions d, d + 1, rotated and scaled. */
static __device__ __forceinline__ float2 rotated(const float *q, int d, int half, const float *cosine, const float *sine, bool interleaved, float scale)
{
    float2 y;
    if (interleaved) {
        const float c = cosine[d / 2], s = sine[d / 2];
        y.x = (q[d] * c - q[d + 1] * s) * scale, y.y = (q[d + 1] * c + q[d] * s) * scale;
        return y;
    }
    const int i = d < half ? d : d - half, other = d < half ? d + half : d - half;
    const float sign = d < half ? -1.0f : 1.0f;
    y.x = (q[d] * cosine[i] + sign * (q[other] * sine[i])) * scale;
    y.y = (q[d + 1] * cosine[i + 1] + sign * (q[other + 1] * sine[i + 1])) * scale;
    return y;
}

template <int D>
static __device__ __forceinline__ void forward_attention(const float *qkv, const float *cosines, const float *sines, const u8 *keys, const u8 *values, float *out, int tokens, int heads, int kv_heads,
                                                         int capacity, int first, int window, int interleaved, float scale)
{
    SETUN_CUDA_SHARED(forward_tile<D>, tile);
    const int blocks = (tokens + FORWARD_QUERIES - 1) / FORWARD_QUERIES, head = blockIdx.x / blocks, base = (blocks - 1 - blockIdx.x % blocks) * FORWARD_QUERIES; /* the longest first */
    const int kv = head / (heads / kv_heads), g = LANE / 4, t = LANE % 4, row0 = base + WARP * 16 + g, row1 = row0 + 8;
    const u8 *k_rows = keys + (size_t)kv * (size_t)capacity * D * 2, *v_rows = values + (size_t)kv * (size_t)capacity * D * 2;
    const int stride = (heads + 2 * kv_heads) * D;
    u32 q_high[D / 16][4], q_low[D / 16][4];
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = i & 1 ? row1 : row0, d = c * 16 + 2 * t + (i & 2 ? 8 : 0);
            float2 y;
            y.x = y.y = 0.0f;
            if (row < tokens) y = rotated(qkv + (size_t)row * (size_t)stride + head * D, d, D / 2, cosines + (size_t)(first + row) * (D / 2), sines + (size_t)(first + row) * (D / 2), interleaved, scale);
            split_pair(y.x, y.y, &q_high[c][i], &q_low[c][i]);
        }
    float acc[D / 8][4], most0 = -INFINITY, most1 = -INFINITY, total0 = 0.0f, total1 = 0.0f;
#pragma unroll
    for (int c = 0; c < D / 8; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[c][i] = 0.0f;
    int last = first + base + FORWARD_QUERIES < first + tokens ? first + base + FORWARD_QUERIES : first + tokens; /* keys end here */
    int begin = window > 0 && first + base - window + 1 > 0 ? (first + base - window + 1) / FORWARD_KEYS * FORWARD_KEYS : 0;
#pragma unroll 1
    for (int from = begin; from < last; from += FORWARD_KEYS) {
        __syncthreads();
#pragma unroll 1
        for (int e = TID; e < FORWARD_KEYS * D / 8; e += 128) {
            const int key = e / (D / 8), part = e % (D / 8);
            uint4 k = make_uint4(0, 0, 0, 0);
            if (from + key < last) k = *(const uint4 *)(k_rows + ((size_t)(from + key) * D + part * 8) * 2);
            *(uint4 *)(tile.keys + key * (D + 8) + part * 8) = k;
        }
        /* neighbouring lanes take neighbouring keys, so that what they store lies in different banks */
#pragma unroll 1
        for (int e = TID; e < FORWARD_KEYS * D / 8; e += 128) {
            const int key = e % FORWARD_KEYS, part = e / FORWARD_KEYS;
            uint4 v = make_uint4(0, 0, 0, 0);
            if (from + key < last) v = *(const uint4 *)(v_rows + ((size_t)(from + key) * D + part * 8) * 2);
            const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 8; i++) tile.values[(part * 8 + i) * (FORWARD_KEYS + 8) + key] = (unsigned short)(word[i / 2] >> (i % 2 * 16));
        }
        __syncthreads();
        float score[FORWARD_KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < FORWARD_KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[n][i] = 0.0f;
            const unsigned short *row = tile.keys + (n * 8 + g) * (D + 8) + 2 * t;
#pragma unroll
            for (int c = 0; c < D / 16; c++) {
                const u32 b0 = *(const u32 *)(row + c * 16), b1 = *(const u32 *)(row + c * 16 + 8);
                multiply_f16(score[n], q_low[c][0], q_low[c][1], q_low[c][2], q_low[c][3], b0, b1);
                multiply_f16(score[n], q_high[c][0], q_high[c][1], q_high[c][2], q_high[c][3], b0, b1);
            }
        }
        float top0 = most0, top1 = most1;
#pragma unroll
        for (int n = 0; n < FORWARD_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = from + n * 8 + 2 * t + (i & 1), at = first + (i & 2 ? row1 : row0);
                if (key > at || (window > 0 && key <= at - window)) score[n][i] = -INFINITY;
                if (i & 2) top1 = fmaxf(top1, score[n][i]);
                else top0 = fmaxf(top0, score[n][i]);
            }
        top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 1)), top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 1));
        top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 2)), top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 2));
        const float correct0 = most0 == -INFINITY ? 0.0f : exponential(most0 - top0), correct1 = most1 == -INFINITY ? 0.0f : exponential(most1 - top1);
        most0 = top0, most1 = top1;
        float sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
        for (int n = 0; n < FORWARD_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float top = i & 2 ? top1 : top0;
                score[n][i] = score[n][i] == -INFINITY ? 0.0f : exponential(score[n][i] - top);
                if (i & 2) sum1 += score[n][i];
                else sum0 += score[n][i];
            }
        total0 = total0 * correct0 + sum0, total1 = total1 * correct1 + sum1;
#pragma unroll
        for (int c = 0; c < D / 8; c++) acc[c][0] *= correct0, acc[c][1] *= correct0, acc[c][2] *= correct1, acc[c][3] *= correct1;
#pragma unroll
        for (int k = 0; k < FORWARD_KEYS / 16; k++) {
            u32 high[4], low[4];
            split_pair(score[2 * k][0], score[2 * k][1], &high[0], &low[0]);
            split_pair(score[2 * k][2], score[2 * k][3], &high[1], &low[1]);
            split_pair(score[2 * k + 1][0], score[2 * k + 1][1], &high[2], &low[2]);
            split_pair(score[2 * k + 1][2], score[2 * k + 1][3], &high[3], &low[3]);
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                const unsigned short *row = tile.values + (c * 8 + g) * (FORWARD_KEYS + 8) + k * 16 + 2 * t;
                const u32 b0 = *(const u32 *)row, b1 = *(const u32 *)(row + 8);
                multiply_f16(acc[c], low[0], low[1], low[2], low[3], b0, b1);
                multiply_f16(acc[c], high[0], high[1], high[2], high[3], b0, b1);
            }
        }
    }
    total0 += __shfl_xor_sync(~0u, total0, 1), total1 += __shfl_xor_sync(~0u, total1, 1);
    total0 += __shfl_xor_sync(~0u, total0, 2), total1 += __shfl_xor_sync(~0u, total1, 2);
    const float by0 = 1.0f / total0, by1 = 1.0f / total1;
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        float *to = out + head * D + c * 8 + 2 * t;
        const size_t wide = (size_t)heads * D;
        if (row0 < tokens) to[(size_t)row0 * wide] = acc[c][0] * by0, to[(size_t)row0 * wide + 1] = acc[c][1] * by0;
        if (row1 < tokens) to[(size_t)row1 * wide] = acc[c][2] * by1, to[(size_t)row1 * wide + 1] = acc[c][3] * by1;
    }
}

/* qkv: f32 [tokens][(heads + 2 kv_heads) * D], q of it is rotated here; keys and values of one layer, the new ones in place; cosines, sines
 * [positions][D / 2]; out f32 [tokens][heads * D]. grid: heads * ceil(tokens / 64); blocks of 128. */
#define SETUN_FORWARD_ATTENTION(D) \
    extern "C" __global__ void __launch_bounds__(128) setun_forward_attention_##D(const float *qkv, const float *cosines, const float *sines, const u8 *keys, const u8 *values, float *out, int tokens, \
                                                                                   int heads, int kv_heads, int capacity, int first, int window, int interleaved, float scale) \
    { \
        forward_attention<D>(qkv, cosines, sines, keys, values, out, tokens, heads, kv_heads, capacity, first, window, interleaved, scale); \
    }
SETUN_FORWARD_ATTENTION(64)
SETUN_FORWARD_ATTENTION(128)
