/*
 * pack_trits.c - SETUN_PACKED_TRITS (drawn in ternary.h), from and to the 2-bit rows. Callers: the backend's prepare, convert, and kernels
 * of machines whose instructions do not unpack trits fast. Vectors of the compiler's: the same source is SSE2, NEON or plain C.
 */
#include "ternary/ternary.h"

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

static inline u8x16 load16(const uint8_t *p) {
    u8x16 v;
    memcpy(&v, p, 16);
    return v;
}

/* Eight fields of 5 bits in the bytes of a word become its low 40 bits, and back. */
static inline u64x2 squeeze(u64x2 x) {
    x = (x & 0x001f001f001f001fu) | (x >> 3 & 0x03e003e003e003e0u);
    x = (x & 0x000003ff000003ffu) | (x >> 6 & 0x000ffc00000ffc00u);
    return (x & 0xfffffu) | (x >> 12 & 0xfffff00000u);
}

static inline u64x2 spread(u64x2 x) {
    x = (x & 0xfffffu) | (x & 0xfffff00000u) << 12;
    x = (x & 0x000003ff000003ffu) | (x & 0x000ffc00000ffc00u) << 6;
    return (x & 0x001f001f001f001fu) | (x & 0x03e003e003e003e0u) << 3;
}

/* The columns of a 128-block: byte offset 16 * (v % 2) and this shift hold the 16 columns of vector v of its half h. */
static inline int shift_of(int half, int v) { return 6 - 4 * half - 2 * (v / 2); }

/* Fields of 16 columns of a 128-block. */
static inline u64x2 fields(u8x16 a, u8x16 b, u8x16 c, int shift) {
    u8x16 c0 = a >> shift & 3, c1 = b >> shift & 3, c2 = c >> shift & 3;
    return (u64x2)(c0 + c1 + (c1 << 1) + c2 + (c2 << 3));
}

/* The rows' 32 bytes of a 128-block: squeezed[half][v] are the words of columns 64*half + 16*v .. +15. */
static inline void squeeze_block(const uint8_t *r0, const uint8_t *r1, const uint8_t *r2, u64x2 squeezed[2][4], u8x16 *bad) {
    for (int side = 0; side < 2; side++) {
        const u8x16 a = load16(r0 + 16 * side), b = load16(r1 + 16 * side), c = load16(r2 + 16 * side);
        *bad |= (a & a >> 1) | (b & b >> 1) | (c & c >> 1);
        for (int half = 0; half < 2; half++)
            for (int v = side; v < 4; v += 2) squeezed[half][v] = squeeze(fields(a, b, c, shift_of(half, v)));
    }
}

bool setun_pack_trits(const uint8_t *row0, const uint8_t *row1, const uint8_t *row2, int64_t columns, uint8_t *triple) {
    u8x16 bad = {0};
    const int64_t blocks = setun_trits_blocks(columns);
    const uint8_t ones[32] = {[0 ... 31] = 0x55};
    int64_t b = 0;
    uint8_t *out = triple;
    for (; b + 8 <= blocks; b += 8, out += 320) {
        u64x2 s[8][4];
        for (int i = 0; i < 4; i++) {
            const int64_t at = (b / 2 + i) * 32;
            squeeze_block(row0 + at, row1 ? row1 + at : ones, row2 ? row2 + at : ones, s + 2 * i, &bad);
        }
        for (int v = 0; v < 4; v++) { /* lanes 2v and 2v+1: 8 x 40 bits in 5 words */
            const u64x2 word[5] = {s[0][v] | s[1][v] << 40, s[1][v] >> 24 | s[2][v] << 16 | s[3][v] << 56, s[3][v] >> 8 | s[4][v] << 32,
                s[4][v] >> 32 | s[5][v] << 8 | s[6][v] << 48, s[6][v] >> 16 | s[7][v] << 24};
            for (int i = 0; i < 5; i++) memcpy(out + 64 * i + 16 * v, &word[i], 16);
        }
    }
    for (; b < blocks; b += 2) { /* the last blocks lie one after another, a lane's 40 bits in 5 bytes */
        u64x2 s[2][4];
        const int64_t at = b / 2 * 32;
        squeeze_block(row0 + at, row1 ? row1 + at : ones, row2 ? row2 + at : ones, s, &bad);
        for (int half = 0; half < 2 && b + half < blocks; half++)
            for (int lane = 0; lane < 8; lane++, out += 5) {
                const uint64_t word = s[half][lane / 2][lane % 2];
                memcpy(out, &word, 5);
            }
    }
    memset(out, 0, (size_t)(setun_trits_triple_bytes(columns) - (out - triple)));
    const u64x2 any = (u64x2)(bad & 0x55);
    return !(any[0] | any[1]);
}

/* The digits of 16 fields; wrong fields (27..31) give digits 0 and are noted. */
static inline void digits(u64x2 field, i8x16 digit[3], i8x16 *bad) {
    const i8x16 f = (i8x16)field;
    const i8x16 wrong = f > 26;
    *bad |= wrong;
    const i8x16 c2 = -(f > 8) - (f > 17), m = f - c2 - (c2 << 3), c1 = -(m > 2) - (m > 5), c0 = m - c1 - (c1 << 1);
    digit[0] = c0 & ~wrong;
    digit[1] = c1 & ~wrong;
    digit[2] = c2 & ~wrong;
}

/* Blocks b .. b+1 as words of 8 bytes of fields, [half][v]. */
static inline void spread_group(const uint8_t *in, u64x2 s[8][4]) {
    for (int v = 0; v < 4; v++) {
        u64x2 w[5];
        for (int i = 0; i < 5; i++) memcpy(&w[i], in + 64 * i + 16 * v, 16);
        const u64x2 word[8] = {w[0], w[0] >> 40 | w[1] << 24, w[1] >> 16, w[1] >> 56 | w[2] << 8, w[2] >> 32 | w[3] << 32, w[3] >> 8, w[3] >> 48 | w[4] << 16, w[4] >> 24};
        for (int i = 0; i < 8; i++) s[i][v] = spread(word[i] & 0xffffffffffu);
    }
}

static inline void unpack_block(const u64x2 s[2][4], bool second, uint8_t *const row[3], int64_t at, i8x16 *bad) {
    for (int side = 0; side < 2; side++) {
        u8x16 packed[3] = {{0}, {0}, {0}};
        for (int half = 0; half < 2; half++)
            for (int v = side; v < 4; v += 2) {
                i8x16 digit[3];
                digits(s[half][v], digit, bad);
                for (int r = 0; r < 3; r++) packed[r] |= (half == 1 && !second ? (u8x16){0} + 1 : (u8x16)digit[r]) << shift_of(half, v);
            }
        for (int r = 0; r < 3; r++)
            if (row[r]) memcpy(row[r] + at + 16 * side, &packed[r], 16);
    }
}

bool setun_unpack_trits(const uint8_t *triple, int64_t columns, int64_t block, int64_t count, uint8_t *row0, uint8_t *row1, uint8_t *row2) {
    uint8_t *const row[3] = {row0, row1, row2};
    i8x16 bad = {0};
    const int64_t blocks = setun_trits_blocks(columns), whole = blocks / 8 * 8, end = block + count < blocks ? block + count : blocks;
    int64_t b = block;
    for (; b < end && b < whole; b += 8) {
        u64x2 s[8][4];
        spread_group(triple + b * 40, s);
        for (int i = 0; i < 4 && b + 2 * i < end; i++) unpack_block((const u64x2(*)[4])s + 2 * i, true, row, ((b - block) / 2 + i) * 32, &bad);
    }
    for (; b < end; b += 2) {
        u64x2 s[2][4] = {{{0}}};
        for (int half = 0; half < 2 && b + half < blocks; half++)
            for (int lane = 0; lane < 8; lane++) {
                uint64_t word = 0;
                memcpy(&word, triple + (b + half) * 40 + lane * 5, 5);
                s[half][lane / 2][lane % 2] = word;
            }
        for (int half = 0; half < 2; half++)
            for (int v = 0; v < 4; v++) s[half][v] = spread(s[half][v]);
        unpack_block((const u64x2(*)[4])s, b + 1 < blocks, row, (b - block) / 2 * 32, &bad);
    }
    const u64x2 any = (u64x2)bad;
    return !(any[0] | any[1]);
}

/* Bits of fields of 27..31: bit 4, 3, and 2 or both of 1 and 0. x: bit n of a field stands at its start in x >> n. */
static inline u64x2 wrong_starts(u64x2 x0, u64x2 x1, u64x2 x2, u64x2 x3, u64x2 x4) { return x4 & x3 & (x2 | (x1 & x0)); }

bool setun_trits_valid(const uint8_t *triple, int64_t columns) {
    /* word i of a lane: fields start at its bits b with (64 i + b) % 5 == 0 */
    static const uint64_t starts[5] = {0x1084210842108421u, 0x2108421084210842u, 0x4210842108421084u, 0x8421084210842108u, 0x0842108421084210u};
    u64x2 bad = {0};
    const int64_t blocks = setun_trits_blocks(columns);
    int64_t b = 0;
    for (; b + 8 <= blocks; b += 8)
        for (int v = 0; v < 4; v++) {
            u64x2 w[6];
            for (int i = 0; i < 5; i++) memcpy(&w[i], triple + b * 40 + 64 * i + 16 * v, 16);
            w[5] = (u64x2){0};
            for (int i = 0; i < 5; i++) {
                const u64x2 x = w[i], next = w[i + 1];
                bad |= wrong_starts(x, x >> 1 | next << 63, x >> 2 | next << 62, x >> 3 | next << 61, x >> 4 | next << 60) & starts[i];
            }
        }
    for (const uint8_t *p = triple + b * 40; b < blocks; b++)
        for (int lane = 0; lane < 8; lane++, p += 5) {
            uint64_t word = 0;
            memcpy(&word, p, 5);
            const u64x2 x = {word, 0};
            bad |= wrong_starts(x, x >> 1, x >> 2, x >> 3, x >> 4) & starts[0];
        }
    return !(bad[0] | bad[1]);
}

void setun_trits_codes(const uint8_t *triple, int64_t columns, int digit, int64_t first, int64_t count, uint8_t *codes) {
    static const uint8_t power[3] = {1, 3, 9};
    const int64_t whole = setun_trits_blocks(columns) / 8 * 8;
    for (int64_t i = first; i < first + count; i += 8) { /* first is a multiple of 8 */
        const int64_t block = i / 64, lane = i % 64 / 8;
        uint64_t word = 0;
        if (block < whole) {
            const uint8_t *at = triple + block / 8 * 320 + lane * 8;
            const int bit = (int)(block % 8) * 40;
            const uint64_t low = setun_load_u64(at + bit / 64 * 64), high = bit % 64 > 24 ? setun_load_u64(at + bit / 64 * 64 + 64) : 0;
            word = low >> bit % 64 | (bit % 64 > 24 ? high << (64 - bit % 64) : 0);
        } else
            memcpy(&word, triple + block * 40 + lane * 5, 5);
        for (int64_t q = 0; q < 8 && i + q < first + count; q++) {
            const unsigned field = word >> (5 * q) & 31;
            codes[i - first + q] = field > 26 ? 3 : (uint8_t)(field / power[digit] % 3);
        }
    }
}
