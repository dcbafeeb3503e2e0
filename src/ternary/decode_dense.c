/*
 * decode_dense.c - the dense formats as f32, a chunk of a row at a time; the same arithmetic in the same order as GGUF's
 * published readers, so values agree to the bit. Callers: decode.c, probe.c.
 *
 * Blocks:
 *   Q8_0  f16 d, int8 q[32]                       w = d q
 *   Q4_0  f16 d, 16 bytes: w[p] low, w[16+p] high nibble            w = d (q - 8)
 *   Q4_1  f16 d, f16 m, 16 bytes as Q4_0                            w = d q + m
 *   Q4_K  f16 d, f16 dmin, 12 bytes of eight 6-bit scales and mins, 128 bytes: per 64 weights 32 bytes, first 32 low nibbles
 *   Q6_K  128 bytes low nibbles, 64 bytes high bit pairs, int8 scale[16], f16 d     w = d scale (q - 32)
 */
#include "ternary/decode.h"

static void q4_k_block(const uint8_t *in, float *out) {
    const float d = setun_f16_to_f32(setun_load_u16(in)), dmin = setun_f16_to_f32(setun_load_u16(in + 2));
    const uint8_t *s = in + 4, *q = in + 16;
    for (int group = 0; group < 8; group++) {
        /* groups 0..3: six low bits of bytes j and 4+j; groups 4..7: nibbles of byte 8+j and the two spare bits of those bytes */
        unsigned scale, min;
        if (group < 4) {
            scale = s[group] & 63u;
            min = s[4 + group] & 63u;
        } else {
            scale = (s[4 + group] & 15u) | (unsigned)(s[group - 4] >> 6) << 4;
            min = (unsigned)(s[4 + group] >> 4) | (unsigned)(s[group] >> 6) << 4;
        }
        const float a = d * (float)scale, b = dmin * (float)min;
        const uint8_t *bytes = q + group / 2 * 32;
        const int shift = group % 2 * 4;
        for (int p = 0; p < 32; p++) out[32 * group + p] = a * (float)(bytes[p] >> shift & 15) - b;
    }
}

static void q6_k_block(const uint8_t *in, float *out) {
    const uint8_t *low = in, *high = in + 128;
    const int8_t *scale = (const int8_t *)(in + 192);
    const float d = setun_f16_to_f32(setun_load_u16(in + 208));
    for (int half = 0; half < 2; half++, low += 64, high += 32, out += 128, scale += 8)
        for (int group = 0; group < 8; group++) { /* of 16 under one scale */
            const int quarter = group / 2, shift = quarter / 2 * 4;
            const uint8_t *nibbles = low + quarter % 2 * 32 + group % 2 * 16, *upper = high + group % 2 * 16;
            const float a = d * (float)scale[group];
            for (int p = 0; p < 16; p++) {
                const int q = (nibbles[p] >> shift & 15) | (upper[p] >> 2 * quarter & 3) << 4;
                out[16 * group + p] = a * (float)(q - 32);
            }
        }
}

void setun_decode_dense(const setun_weight *w, int64_t row, int64_t first, int64_t count, float *out) {
    const int64_t columns = w->columns, start = row * columns + first;
    const uint8_t *in;
    switch (w->format) {
    case SETUN_FORMAT_F32: memcpy(out, w->data + 4 * start, (size_t)count * 4); return;
    case SETUN_FORMAT_F16:
        in = w->data + 2 * start;
        for (int64_t i = 0; i < count; i++) out[i] = setun_f16_to_f32(setun_load_u16(in + 2 * i));
        return;
    case SETUN_FORMAT_BF16:
        in = w->data + 2 * start;
        for (int64_t i = 0; i < count; i++) out[i] = setun_bf16_to_f32(setun_load_u16(in + 2 * i));
        return;
    case SETUN_FORMAT_Q8_0:
        in = w->data + start / 32 * 34;
        for (int64_t i = 0; i < count; i += 32, in += 34) {
            const float d = setun_f16_to_f32(setun_load_u16(in));
            for (int p = 0; p < 32; p++) out[i + p] = d * (float)(int8_t)in[2 + p];
        }
        return;
    case SETUN_FORMAT_Q4_0:
        in = w->data + start / 32 * 18;
        for (int64_t i = 0; i < count; i += 32, in += 18) {
            const float d = setun_f16_to_f32(setun_load_u16(in));
            for (int p = 0; p < 16; p++) {
                out[i + p] = d * (float)((in[2 + p] & 15) - 8);
                out[i + 16 + p] = d * (float)((in[2 + p] >> 4) - 8);
            }
        }
        return;
    case SETUN_FORMAT_Q4_1:
        in = w->data + start / 32 * 20;
        for (int64_t i = 0; i < count; i += 32, in += 20) {
            const float d = setun_f16_to_f32(setun_load_u16(in)), m = setun_f16_to_f32(setun_load_u16(in + 2));
            for (int p = 0; p < 16; p++) {
                out[i + p] = d * (float)(in[4 + p] & 15) + m;
                out[i + 16 + p] = d * (float)(in[4 + p] >> 4) + m;
            }
        }
        return;
    case SETUN_FORMAT_Q4_K:
        in = w->data + start / 256 * 144;
        for (int64_t i = 0; i < count; i += 256, in += 144) q4_k_block(in, out + i);
        return;
    case SETUN_FORMAT_Q6_K:
        in = w->data + start / 256 * 210;
        for (int64_t i = 0; i < count; i += 256, in += 210) q6_k_block(in, out + i);
        return;
    default: memset(out, 0, (size_t)count * sizeof *out); return; /* not reached: setun_weight_check */
    }
}
