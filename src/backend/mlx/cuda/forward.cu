/*
 * forward.cu - what a run over many rows needs beside prompt.cu's products: rows of the embedding, rotation and the cache's append, attention, the norm
 * before the head and the head. Keys and values lie as decode.cu has them: f16 [layers][kv_heads][capacity][head_size]. Numbers of a run: forward.h.
 * Caller: engine_rows.c, through the driver. Knows no model. Compiled by nvcc, decode.cu with it, into one binary; runs on the host in tests/cuda.
 */
#include "decode.cu"
#include "forward.h"
#ifndef SETUN_CUDA_EMULATED /* on the host: tests/cuda/emulated_forward.hh */
#include "forward_device.h"
#endif

/* Row ids[t] of the table as floats; grid: rows. The first launch of a run. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_embed(const u8 *table, const int *ids, float *x, int width, int row_bytes, int format, float factor)
{
    after_previous();
    next_may_begin();
    const u8 *row = table + (size_t)ids[blockIdx.x] * (size_t)row_bytes;
    float *y = x + (size_t)blockIdx.x * (size_t)width;
    for (int i = TID; i < width / 4; i += 256) {
        float4 v = dense_quad(row, format, width, i);
        *(float4 *)(y + 4 * i) = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
    }
}

typedef struct float8_shared { float value[8]; } float8_shared;

/* rms_norm(x[rows[r]]) * weight in two halves for the head: y [r][high, low][SETUN_FORWARD_PADDED(width)], zeros past width. epsilon below 0: no norm.
 * grid: rows. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_norm(const float *x, const int *rows, const float *weight, unsigned short *y, int width, int weighted, int f16, float epsilon)
{
    SETUN_CUDA_SHARED(float8_shared, parts);
    after_previous();
    next_may_begin();
    const int padded = SETUN_FORWARD_PADDED(width);
    const float *from = x + (size_t)rows[blockIdx.x] * (size_t)width;
    unsigned short *to = y + (size_t)blockIdx.x * 2 * (size_t)padded;
    float sum = 0.0f;
    for (int i = TID; i < width / 4; i += 256) {
        const float4 v = *(const float4 *)(from + 4 * i);
        sum = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
    }
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (LANE == 0) parts.value[WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += parts.value[i];
    const float inverse = epsilon >= 0.0f ? 1.0f / sqrtf(sum / (float)width + epsilon) : 1.0f;
    for (int i = TID; i < padded / 2; i += 256) {
        float a = 0.0f, b = 0.0f;
        if (2 * i < width) a = from[2 * i] * inverse * (weighted ? weight[2 * i] : 1.0f), b = from[2 * i + 1] * inverse * (weighted ? weight[2 * i + 1] : 1.0f);
        const u32 high = f16 ? halves(a, b) : bf16_halves(a, b);
        const float2 seen = floats_of(high);
        const float a_high = f16 ? seen.x : __uint_as_float(high << 16), b_high = f16 ? seen.y : __uint_as_float(high & 0xffff0000u);
        *(u32 *)(to + 2 * i) = high;
        *(u32 *)(to + padded + 2 * i) = f16 ? halves(a - a_high, b - b_high) : bf16_halves(a - a_high, b - b_high);
    }
}

/* Rotates and stores what a product left: q as f16 [rows][heads * D] times factor, keys and values into the caches. grid: rows. qkv f32
 * [rows][(heads + 2 kv_heads) * D]; cosines, sines [places][D / 2]; row_sequence: of each row. */
extern "C" __global__ void __launch_bounds__(256) setun_forward_rope(const float *qkv, const float *cosines, const float *sines, const setun_forward_sequence *sequences, const int *row_sequence, unsigned short *q,
                                                                     int heads, int kv_heads, int size, int layer, int interleaved, float factor)
{
    after_previous();
    next_may_begin();
    const int row = blockIdx.x, half = size / 2, units = half / 4;
    const setun_forward_sequence s = sequences[row_sequence[row]];
    const int place = s.position + row - s.first_row;
    const float *cosine = cosines + (size_t)place * half, *sine = sines + (size_t)place * half;
    for (int e = TID; e < (heads + 2 * kv_heads) * units; e += 256) {
        const int head = e / units, i = e % units * 4;
        const float *from = qkv + ((size_t)row * (heads + 2 * kv_heads) + head) * size;
        const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 4 : i + half;
        const float4 a = *(const float4 *)(from + first), b = *(const float4 *)(from + second);
        float4 y = a, z = b;
        if (head < heads + kv_heads) {
            const float4 c = *(const float4 *)(cosine + i), d = *(const float4 *)(sine + i);
            if (interleaved) {
                y = make_float4(fmaf(a.x, c.x, -(a.y * d.x)), fmaf(a.y, c.x, a.x * d.x), fmaf(a.z, c.y, -(a.w * d.y)), fmaf(a.w, c.y, a.z * d.y));
                z = make_float4(fmaf(b.x, c.z, -(b.y * d.z)), fmaf(b.y, c.z, b.x * d.z), fmaf(b.z, c.w, -(b.w * d.w)), fmaf(b.w, c.w, b.z * d.w));
            } else {
                y = make_float4(fmaf(a.x, c.x, -(b.x * d.x)), fmaf(a.y, c.y, -(b.y * d.y)), fmaf(a.z, c.z, -(b.z * d.z)), fmaf(a.w, c.w, -(b.w * d.w)));
                z = make_float4(fmaf(b.x, c.x, a.x * d.x), fmaf(b.y, c.y, a.y * d.y), fmaf(b.z, c.z, a.z * d.z), fmaf(b.w, c.w, a.w * d.w));
            }
        }
        unsigned short *to = q + ((size_t)row * heads + head) * size;
        float by = factor;
        if (head >= heads) {
            const bool is_key = head < heads + kv_heads;
            to = (unsigned short *)(is_key ? s.keys : s.values) + (((size_t)layer * kv_heads + (head - heads - (is_key ? 0 : kv_heads))) * (size_t)s.capacity + place) * size;
            by = 1.0f;
        }
        *(uint2 *)(to + first) = make_uint2(halves(y.x * by, y.y * by), halves(y.z * by, y.w * by));
        *(uint2 *)(to + second) = make_uint2(halves(z.x * by, z.y * by), halves(z.z * by, z.w * by));
    }
}

#include "forward_attention.inc"
#include "forward_head.inc"
