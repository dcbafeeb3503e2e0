/*
 * trits_unpacked.h - trits_i8 by way of 2-bit rows: for ISAs that unpack trits no faster than this. A file of such an ISA defines
 * TRITS_NAME and TERNARY_I8 and includes this. Weights that the machine reads fast are packed otherwise (prepare.c), so this runs
 * where a file holds trits and was asked to stay as it is.
 */
#include "backend/cpu/isa.h"
#include "ternary/ternary.h"

void TRITS_NAME(const uint8_t *codes, size_t triple_bytes, int rows, const int8_t *x, size_t x_stride, int tokens, int64_t k, int32_t *sums, size_t out_stride) {
    enum { COLUMNS = 4096, BLOCKS = COLUMNS / 64, ROW_BYTES = COLUMNS / 4, TOKENS = 16 };
    uint8_t unpacked[3][ROW_BYTES];
    int32_t part[TOKENS][3];
    const int64_t blocks = (k + 63) / 64;
    for (int r = 0; r < rows; r += 3, codes += triple_bytes) {
        const int count = rows - r < 3 ? rows - r : 3;
        for (int64_t b = 0; b < blocks; b += BLOCKS) {
            const int64_t column = 64 * b, columns = k - column < COLUMNS ? k - column : COLUMNS;
            (void)setun_unpack_trits(codes, k, b, BLOCKS, unpacked[0], count > 1 ? unpacked[1] : NULL, count > 2 ? unpacked[2] : NULL);
            for (int t = 0; t < tokens; t += TOKENS) {
                const int some = tokens - t < TOKENS ? tokens - t : TOKENS;
                TERNARY_I8(unpacked[0], ROW_BYTES, count, x + (size_t)t * x_stride + column, x_stride, some, columns, part[0], 3);
                for (int i = 0; i < some; i++)
                    for (int j = 0; j < count; j++) {
                        int32_t *out = sums + (size_t)(t + i) * out_stride + (size_t)(r + j);
                        *out = b ? *out + part[i][j] : part[i][j];
                    }
            }
        }
    }
}
