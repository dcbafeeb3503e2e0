/*
 * decode_ternary.c - codes and scales as the ternary formats store them, a chunk of a row at a time.
 * Callers: decode.c and probe.c. Checks nothing and interprets nothing: code 3 and odd scales are the callers' business.
 *
 * code = value + 1. Bit layouts, one byte each, p the byte's place in its block:
 *   I2_S          bits 7-6 w[p]  5-4 w[32+p]  3-2 w[64+p]  1-0 w[96+p]       128 weights, 32 bytes
 *   I2_S 64x16    bits 7-6 w[p]  5-4 w[16+p]  3-2 w[32+p]  1-0 w[48+p]        64 weights, 16 bytes
 *   I2_S row4     byte (r/4)K+c: rows r..r+3 of column c, the first row in bits 7-6
 *   HF            byte rK+c: bits 2i+1..2i hold row i*(rows/4)+r of column c
 *   TQ2_0         bits 1-0 w[p]  3-2 w[32+p]  5-4 w[64+p]  7-6 w[96+p]       per half of 256; then f16 scale
 *   IQ2_BN        bits 1-0 w[p]  3-2 w[16+p]  5-4 w[32+p]  7-6 w[48+p]        64 weights; f32 scale before the row
 *   Q2_0, PQ2_0   f16 scale, then bits 2(j%4) of byte j/4 hold w[j]           64 or 128 weights
 *   MLX           32-bit words, little-endian: 16 codes, least significant first, so byte j/4 bits 2(j%4) again
 *   TRITS         three rows a field of 5 bits, drawn in ternary.h; f32 scales of the rows at the end
 *   TQ1_0, PTQ1_0, IQ1_BN  five trits a byte, see setun_trit
 */
#include "ternary/decode.h"

static const uint8_t power3[5] = {1, 3, 9, 27, 81};

int setun_decode_group(const setun_weight *w) {
    switch (w->format) {
    case SETUN_FORMAT_TQ1_0:
    case SETUN_FORMAT_TQ2_0: return 256;
    case SETUN_FORMAT_PQ2_0:
    case SETUN_FORMAT_PTQ1_0: return 128;
    case SETUN_FORMAT_Q2_0: return 64;
    case SETUN_FORMAT_MLX_2BIT: return w->group_size;
    default: return 0;
    }
}

/* `lanes` bytes hold 4*lanes weights, the first quarter in the highest bits (I2_S) or in the lowest. */
static inline void planes_high_first(const uint8_t *restrict in, int lanes, uint8_t *restrict codes) {
    for (int quarter = 0; quarter < 4; quarter++)
        for (int p = 0; p < lanes; p++) codes[quarter * lanes + p] = (uint8_t)(in[p] >> (6 - 2 * quarter)) & 3;
}

static inline void planes_low_first(const uint8_t *restrict in, int lanes, uint8_t *restrict codes) {
    for (int quarter = 0; quarter < 4; quarter++)
        for (int p = 0; p < lanes; p++) codes[quarter * lanes + p] = (uint8_t)(in[p] >> (2 * quarter)) & 3;
}

/* Four codes a byte, in order. */
static inline void bytes_in_order(const uint8_t *restrict in, int64_t count, uint8_t *restrict codes) {
    for (int64_t j = 0; j < count / 4; j++) {
        uint32_t x = in[j]; /* spread the four pairs over four bytes */
        x = (x | x << 12) & 0x000f000fu;
        x = (x | x << 6) & 0x03030303u;
        memcpy(codes + 4 * j, &x, 4);
    }
}

/* `lanes` bytes hold digits*lanes weights: digit n of byte p is weight n*lanes + p. */
static inline void trit_planes(const uint8_t *restrict in, int lanes, int digits, uint8_t *restrict codes) {
    for (int n = 0; n < digits; n++)
        for (int p = 0; p < lanes; p++) codes[n * lanes + p] = setun_trit(in[p], power3[n]);
}

static void iq1_bn_block(const uint8_t *restrict in, uint8_t *restrict codes) {
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 3; k++)
            for (int j = 0; j < 5; j++) codes[16 * i + 5 * k + j] = setun_trit(in[3 * i + k], power3[4 - j]);
        codes[16 * i + 15] = setun_trit(in[12], power3[4 - i]);
    }
}

void setun_decode_codes(const setun_weight *w, int64_t row, int64_t first, int64_t count, uint8_t *codes) {
    const int64_t columns = w->columns;
    const uint8_t *in;
    switch (w->format) {
    case SETUN_FORMAT_I2_S: /* rows are whole blocks: columns % 128 == 0 */
        in = w->data + (row * columns + first) / 4;
        for (int64_t i = 0; i < count; i += 128) planes_high_first(in + i / 4, 32, codes + i);
        return;
    case SETUN_FORMAT_I2_S_64:
        in = w->data + (row * columns + first) / 4;
        for (int64_t i = 0; i < count; i += 64) planes_high_first(in + i / 4, 16, codes + i);
        return;
    case SETUN_FORMAT_I2_S_ROW4: {
        in = w->data + (row / 4) * columns + first;
        const int shift = 6 - 2 * (int)(row % 4);
        for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)(in[i] >> shift) & 3;
        return;
    }
    case SETUN_FORMAT_HF_2BIT: {
        const int64_t quarter = w->rows / 4;
        in = w->data + (row % quarter) * columns + first;
        const int shift = 2 * (int)(row / quarter);
        for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)(in[i] >> shift) & 3;
        return;
    }
    case SETUN_FORMAT_TQ2_0:
        in = w->data + (row * columns + first) / 256 * 66;
        for (int64_t i = 0; i < count; i += 256, in += 66) {
            planes_low_first(in, 32, codes + i);
            planes_low_first(in + 32, 32, codes + i + 128);
        }
        return;
    case SETUN_FORMAT_TQ1_0:
        in = w->data + (row * columns + first) / 256 * 54;
        for (int64_t i = 0; i < count; i += 256, in += 54) {
            trit_planes(in, 32, 5, codes + i);
            trit_planes(in + 32, 16, 5, codes + i + 160);
            trit_planes(in + 48, 4, 4, codes + i + 240);
        }
        return;
    case SETUN_FORMAT_PTQ1_0:
        in = w->data + (row * columns + first) / 128 * 28;
        for (int64_t i = 0; i < count; i += 128, in += 28) {
            trit_planes(in, 16, 5, codes + i);
            trit_planes(in + 16, 8, 5, codes + i + 80);
            trit_planes(in + 24, 2, 4, codes + i + 120);
        }
        return;
    case SETUN_FORMAT_IQ2_BN:
        in = w->data + row * (columns / 4 + 4) + 4 + first / 4;
        for (int64_t i = 0; i < count; i += 64) planes_low_first(in + i / 4, 16, codes + i);
        return;
    case SETUN_FORMAT_IQ1_BN:
        in = w->data + row * (columns / 64 * 13 + 2) + 2 + first / 64 * 13;
        for (int64_t i = 0; i < count; i += 64) iq1_bn_block(in + i / 64 * 13, codes + i);
        return;
    case SETUN_FORMAT_Q2_0:
        in = w->data + (row * columns + first) / 64 * 18;
        for (int64_t i = 0; i < count; i += 64, in += 18) bytes_in_order(in + 2, 64, codes + i);
        return;
    case SETUN_FORMAT_PQ2_0:
        in = w->data + (row * columns + first) / 128 * 34;
        for (int64_t i = 0; i < count; i += 128, in += 34) bytes_in_order(in + 2, 128, codes + i);
        return;
    case SETUN_FORMAT_TRITS:
        setun_trits_codes(w->data + row / 3 * setun_trits_triple_bytes(columns), columns, (int)(row % 3), first, count, codes);
        return;
    case SETUN_FORMAT_MLX_2BIT:
        bytes_in_order(w->data + (row * columns + first) / 4, count, codes);
        return;
    default: memset(codes, 1, (size_t)count); return; /* not reached: setun_weight_check */
    }
}

static float side_value(const setun_weight *w, const uint8_t *values, int64_t index) {
    switch (w->scales_format) {
    case SETUN_FORMAT_F32: return setun_load_f32(values + 4 * index);
    case SETUN_FORMAT_F16: return setun_f16_to_f32(setun_load_u16(values + 2 * index));
    default: return setun_bf16_to_f32(setun_load_u16(values + 2 * index));
    }
}

float setun_decode_scale(const setun_weight *w, int64_t row, int64_t group) {
    const int64_t columns = w->columns;
    switch (w->format) {
    case SETUN_FORMAT_I2_S:
    case SETUN_FORMAT_I2_S_64:
    case SETUN_FORMAT_I2_S_ROW4: return setun_load_f32(w->data + w->rows * columns / 4);
    case SETUN_FORMAT_TRITS: return setun_load_f32(w->data + setun_trits_triples(w->rows) * setun_trits_triple_bytes(columns) + 4 * row);
    case SETUN_FORMAT_HF_2BIT: return w->tensor_scale;
    case SETUN_FORMAT_TQ2_0: return setun_f16_to_f32(setun_load_u16(w->data + (row * (columns / 256) + group) * 66 + 64));
    case SETUN_FORMAT_TQ1_0: return setun_f16_to_f32(setun_load_u16(w->data + (row * (columns / 256) + group) * 54 + 52));
    case SETUN_FORMAT_PTQ1_0: return setun_f16_to_f32(setun_load_u16(w->data + (row * (columns / 128) + group) * 28 + 26));
    case SETUN_FORMAT_PQ2_0: return setun_f16_to_f32(setun_load_u16(w->data + (row * (columns / 128) + group) * 34));
    case SETUN_FORMAT_Q2_0: return setun_f16_to_f32(setun_load_u16(w->data + (row * (columns / 64) + group) * 18));
    case SETUN_FORMAT_IQ2_BN: return setun_load_f32(w->data + row * (columns / 4 + 4));
    case SETUN_FORMAT_IQ1_BN: return setun_f16_to_f32(setun_load_u16(w->data + row * (columns / 64 * 13 + 2)));
    case SETUN_FORMAT_MLX_2BIT: return side_value(w, w->scales, row * (columns / w->group_size) + group);
    default: return 0;
    }
}

float setun_decode_bias(const setun_weight *w, int64_t row, int64_t group) {
    return side_value(w, w->biases, row * (w->columns / w->group_size) + group);
}
