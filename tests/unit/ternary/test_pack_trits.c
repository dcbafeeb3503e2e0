/* Trits: the bits where the drawing in ternary.h has them, there and back for odd shapes, wrong codes and fields noticed. */
#include "ternary/ternary.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static uint64_t seed = 1958;
static int below(int n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)(seed >> 33) % n;
}

/* The field of a column, bit by bit as the drawing says. */
static unsigned field_at(const uint8_t *triple, int64_t columns, int64_t column) {
    const int64_t blocks = (columns + 63) / 64, block = column / 64, lane = column % 64 / 8, q = column % 8;
    unsigned field = 0;
    for (int t = 0; t < 5; t++) {
        int64_t byte, bit;
        if (block < blocks / 8 * 8) {
            const int64_t at = 40 * (block % 8) + 5 * q + t; /* of the lane's 320 bits */
            byte = block / 8 * 320 + 64 * (at / 64) + 8 * lane + at % 64 / 8;
            bit = at % 8;
        } else {
            byte = block * 40 + 5 * lane + (5 * q + t) / 8;
            bit = (5 * q + t) % 8;
        }
        field |= (unsigned)(triple[byte] >> bit & 1) << t;
    }
    return field;
}

static void round_trips(void **state) {
    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int turn = 0; turn < 120; turn++) {
        const int64_t columns = turn < 70 ? 1 + below(700) : turn < 100 ? 64 * (1 + below(60)) : 512 * (1 + below(8)) + below(600);
        const int rows = turn % 4 == 3 ? 1 + below(2) : 3;
        const int64_t row_bytes = setun_packed_row_bytes(columns), bytes = setun_trits_triple_bytes(columns);
        assert_true(bytes % 64 == 0 && bytes >= setun_trits_blocks(columns) * 40 && bytes < setun_trits_blocks(columns) * 40 + 64);
        uint8_t *codes = malloc((size_t)(3 * columns)), *packed = malloc((size_t)(3 * row_bytes)), *back = malloc((size_t)(3 * row_bytes)), *triple = malloc((size_t)bytes), *row = malloc((size_t)columns);
        for (int64_t i = 0; i < 3 * columns; i++) codes[i] = i < rows * columns ? (uint8_t)below(3) : 1;
        for (int r = 0; r < 3; r++) setun_pack_row(codes + r * columns, columns, packed + r * row_bytes);
        memset(triple, 0xee, (size_t)bytes);
        assert_true(setun_pack_trits(packed, rows > 1 ? packed + row_bytes : NULL, rows > 2 ? packed + 2 * row_bytes : NULL, columns, triple));
        for (int64_t c = 0; c < (columns + 63) / 64 * 64; c++) {
            const unsigned expected = c < columns ? codes[c] + 3u * codes[columns + c] + 9u * codes[2 * columns + c] : 13;
            if (field_at(triple, columns, c) != expected) fail_msg("columns %lld, column %lld: field %u, not %u", (long long)columns, (long long)c, field_at(triple, columns, c), expected);
        }
        for (int64_t i = setun_trits_blocks(columns) * 40; i < bytes; i++) assert_int_equal(triple[i], 0);
        assert_true(setun_trits_valid(triple, columns));
        memset(back, 0xee, (size_t)(3 * row_bytes));
        assert_true(setun_unpack_trits(triple, columns, 0, setun_trits_blocks(columns), back, back + row_bytes, back + 2 * row_bytes));
        if (memcmp(back, packed, (size_t)(3 * row_bytes))) fail_msg("columns %lld: not the rows that were packed", (long long)columns);
        memset(back, 0xee, (size_t)row_bytes); /* a part of the blocks, one row */
        const int64_t block = setun_trits_blocks(columns) / 2 / 8 * 8, count = 1 + below(9);
        assert_true(setun_unpack_trits(triple, columns, block, count, NULL, back, NULL));
        const int64_t last = block + count < setun_trits_blocks(columns) ? block + count : setun_trits_blocks(columns);
        assert_memory_equal(back, packed + row_bytes + block / 2 * 32, (size_t)((last - block) / 2 * 32));
        for (int r = 0; r < 3; r++) {
            const int64_t first = columns > 8 ? below((int)columns / 8) * 8 : 0;
            setun_trits_codes(triple, columns, r, first, columns - first, row);
            assert_memory_equal(row, codes + r * columns + first, (size_t)(columns - first));
        }
        free(codes);
        free(packed);
        free(back);
        free(triple);
        free(row);
    }
}

static void wrong_codes_and_fields_are_noticed(void **state) {
    (void)state;
    for (int turn = 0; turn < 300; turn++) {
        const int64_t columns = 1 + below(1500), row_bytes = setun_packed_row_bytes(columns), bytes = setun_trits_triple_bytes(columns);
        uint8_t *packed = malloc((size_t)(3 * row_bytes)), *triple = malloc((size_t)bytes), *codes = malloc((size_t)columns);
        memset(packed, 0x55, (size_t)(3 * row_bytes));
        assert_true(setun_pack_trits(packed, packed + row_bytes, packed + 2 * row_bytes, columns, triple));
        const int64_t column = below((int)columns);
        const int r = below(3), shift = 6 - 2 * (int)(column % 128 / 32);
        packed[r * row_bytes + column / 128 * 32 + column % 32] |= (uint8_t)(3 << shift);
        assert_false(setun_pack_trits(packed, packed + row_bytes, packed + 2 * row_bytes, columns, triple));
        packed[r * row_bytes + column / 128 * 32 + column % 32] = 0x55;
        assert_true(setun_pack_trits(packed, packed + row_bytes, packed + 2 * row_bytes, columns, triple));
        /* the field of a column becomes 27..31 */
        const unsigned wrong = 27 + (unsigned)below(5);
        const int64_t block = column / 64, lane = column % 64 / 8, q = column % 8;
        for (int t = 0; t < 5; t++) {
            const bool group = block < setun_trits_blocks(columns) / 8 * 8;
            const int64_t at = group ? 40 * (block % 8) + 5 * q + t : 5 * q + t, byte = group ? block / 8 * 320 + 64 * (at / 64) + 8 * lane + at % 64 / 8 : block * 40 + 5 * lane + at / 8;
            triple[byte] = (uint8_t)((triple[byte] & ~(1 << at % 8)) | (int)(wrong >> t & 1) << at % 8);
        }
        assert_false(setun_trits_valid(triple, columns));
        assert_false(setun_unpack_trits(triple, columns, 0, setun_trits_blocks(columns), packed, packed + row_bytes, packed + 2 * row_bytes));
        setun_trits_codes(triple, columns, r, 0, columns, codes);
        for (int64_t c = 0; c < columns; c++) assert_int_equal(codes[c], c == column ? 3 : 1);
        free(packed);
        free(triple);
        free(codes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trips), cmocka_unit_test(wrong_codes_and_fields_are_noticed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
