/*
 * pack.c - SETUN_PACKED_2BIT, the layout in memory that CPU kernels read (drawn in ternary.h). Caller: the backend's prepare.
 */
#include "ternary/ternary.h"

static inline void pack_block(const uint8_t *restrict codes, uint8_t *restrict packed) {
    for (int p = 0; p < 32; p++) packed[p] = (uint8_t)(codes[p] << 6 | codes[32 + p] << 4 | codes[64 + p] << 2 | codes[96 + p]);
}

void setun_pack_row(const uint8_t *codes, int64_t columns, uint8_t *packed) {
    int64_t c = 0;
    for (; c + 128 <= columns; c += 128, packed += 32) pack_block(codes + c, packed);
    if (c < columns) {
        uint8_t tail[128];
        memset(tail, 1, sizeof tail); /* value 0: kernels may read past the last column */
        memcpy(tail, codes + c, (size_t)(columns - c));
        pack_block(tail, packed);
    }
}

void setun_unpack_row(const uint8_t *packed, int64_t columns, uint8_t *codes) {
    for (int64_t c = 0; c < columns; c += 128, packed += 32) {
        const int count = columns - c < 128 ? (int)(columns - c) : 128;
        for (int i = 0; i < count; i++) codes[c + i] = (uint8_t)(packed[i & 31] >> (6 - 2 * (i >> 5))) & 3;
    }
}
