/*
 * test_kernels_many.c - ternary_i8_many and trits_rows of every ISA of this CPU against ref, bit for bit: edges of its tiles, misalignment, extreme values,
 * with every buffer between two pages that fault when touched. SETUN_TEST_SEED=n repeats a run.
 */
#include "backend/cpu/kernels.h"
#include "ternary/ternary.h"

#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static uint64_t seed, state;

static uint32_t next_random(void) { /* xorshift64*, Vigna 2014 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}

/* A buffer that ends where a page without access begins, or begins where one ends. */
typedef struct guarded { uint8_t *base; size_t room, page; } guarded;
static guarded code_room, x_room, out_room, expected_room, scratch_room;

static guarded guarded_create(size_t room) {
    guarded g = {.page = (size_t)sysconf(_SC_PAGESIZE)};
    g.room = (room + g.page - 1) / g.page * g.page;
    g.base = mmap(NULL, g.room + 2 * g.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.base != MAP_FAILED);
    assert_int_equal(mprotect(g.base + g.page, g.room, PROT_READ | PROT_WRITE), 0);
    return g;
}
static void *take(const guarded *g, size_t bytes, bool at_end) {
    assert_true(bytes <= g->room);
    return g->base + g->page + (at_end ? g->room - bytes : 0);
}
static int create_rooms(void **unused) {
    (void)unused;
    code_room = guarded_create(6 << 20);
    x_room = guarded_create(6 << 20);
    out_room = guarded_create(8 << 20);
    expected_room = guarded_create(8 << 20);
    scratch_room = guarded_create(setun_many_scratch(16384));
    return 0;
}
static int destroy_rooms(void **unused) {
    (void)unused;
    guarded *all[] = {&code_room, &x_room, &out_room, &expected_room, &scratch_room};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) munmap(all[i]->base, all[i]->room + 2 * all[i]->page);
    return 0;
}

enum { ANY = 1000, MIXED = 1001 }; /* values of x: any int8; mostly small with some of the largest, as activations are */
enum { OPPOSITE = 3 };             /* codes: 0 and 2, by turns from row to row, and the other way round 32 rows on */

static void fill(uint8_t *codes, size_t row_bytes, int rows, int8_t *x, size_t x_stride, int tokens, int64_t k, int code, int value) {
    for (int r = 0; r < rows; r++)
        for (size_t i = 0; i < row_bytes; i++) {
            int byte = 0;
            for (int j = 0; j < 4; j++) byte = byte << 2 | (code == OPPOSITE ? (r / 32 + r) % 2 * 2 : code >= 0 ? code : (int)(next_random() % 3));
            codes[(size_t)r * row_bytes + i] = (uint8_t)byte; /* codes past k meet an x of 0 */
        }
    for (int t = 0; t < tokens; t++)
        for (size_t i = 0; i < x_stride; i++) {
            uint32_t random = next_random();
            int any = (int8_t)(random >> 24), small = (int)(random >> 8 & 31) - 16;
            x[(size_t)t * x_stride + i] = (int8_t)((int64_t)i >= k ? 0 : value == ANY ? any : value == MIXED ? (random % 16 ? small : any < 0 ? -127 : 127) : value);
        }
}

static void check(int rows, int tokens, int64_t k, int row_gap, int x_gap, int out_gap, int code, int value, bool at_end) {
    const setun_kernels *ref = setun_isa_table(0);
    size_t row_bytes = (size_t)((k + 127) / 128 * 32 + row_gap), x_stride = (size_t)((k + 127) / 128 * 128 + x_gap), out_stride = (size_t)(rows + out_gap);
    uint8_t *codes = take(&code_room, row_bytes * (size_t)rows, at_end);
    int8_t *x = take(&x_room, x_stride * (size_t)tokens, at_end);
    size_t count = (size_t)(tokens - 1) * out_stride + (size_t)rows; /* nothing may be written past the last row's last sum */
    int32_t *expected = take(&expected_room, count * 4, at_end), *out = take(&out_room, count * 4, at_end);
    void *scratch = take(&scratch_room, (setun_many_scratch(k) + 63) / 64 * 64, at_end);
    fill(codes, row_bytes, rows, x, x_stride, tokens, k, code, value);
    memset(expected, 0xa5, count * 4);
    if (rows * (int64_t)tokens * k < 4000000) ref->ternary_i8_many(codes, row_bytes, rows, x, x_stride, tokens, k, expected, out_stride, NULL);
    else setun_kernels_select(NULL)->ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, expected, out_stride); /* itself checked against ref */
    for (int i = 1; i < setun_isa_count(); i++) {
        const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
        if (!table || !table->ternary_i8_many) continue;
        memset(out, 0xa5, count * 4);
        memset(scratch, 0x5a, setun_many_scratch(k)); /* what was there before may not be felt */
        table->ternary_i8_many(codes, row_bytes, rows, x, x_stride, tokens, k, out, out_stride, scratch);
        for (size_t e = 0; e < count; e++)
            if (out[e] != expected[e])
                fail_msg("%s: rows %d, tokens %d, k %lld, gaps %d %d %d, code %d, x %d, %s: sum of token %zu, row %zu is %d, not %d; SETUN_TEST_SEED=%llu", table->isa, rows, tokens,
                         (long long)k, row_gap, x_gap, out_gap, code, value, at_end ? "at end" : "at start", e / out_stride, e % out_stride, out[e], expected[e], (unsigned long long)seed);
    }
}

static void test_shapes(void **unused) {
    (void)unused;
    static const int row_counts[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65};
    static const int token_counts[] = {1, 7, 8, 9, 31, 32, 33, 40};
    static const int widths[] = {1, 31, 32, 33, 95, 96, 97, 128, 129, 192, 223, 224, 225, 288, 449, 512};
    int turn = 0;
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++, turn++) check(row_counts[r], token_counts[t], widths[w], turn % 3, turn % 5 * 3, turn % 4, -1, ANY, turn % 2);
}

static void test_long_rows(void **unused) {
    (void)unused;
    static const int widths[] = {1536, 2560, 2561, 3840, 5460, 6912, 8640, 16384};
    int turn = 0;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++, turn++) {
        check(35, 9, widths[w], 0, turn % 7, 0, -1, ANY, turn % 2);
        check(17, 37, widths[w], 0, turn % 7, 0, -1, MIXED, turn % 2);
    }
}

/* More rows and more tokens than are put in order at once. */
static void test_parts(void **unused) {
    (void)unused;
    check(SETUN_MANY_ROWS + 3, 33, 300, 0, 0, 1, -1, ANY, true);
    check(2 * SETUN_MANY_ROWS, 8, 257, 0, 0, 0, -1, MIXED, false);
    check(33, SETUN_MANY_TOKENS + 1, 384, 0, 0, 15, -1, ANY, true);
    check(5, 2 * SETUN_MANY_TOKENS + 9, 130, 0, 0, 0, -1, MIXED, true);
}

/* Where an accumulator that is too narrow overflows: every code the same, every x the same. */
static void test_extremes(void **unused) {
    (void)unused;
    static const int values[] = {-128, 127, -127, 1, 36, 37, 38, 39, -38, -42, 43, 75}; /* 216 columns of 37 stay below 2^13, of 38 don't: there avx512_many.c has to stop */
    static const int widths[] = {224, 256, 768, 771, 2560, 6912, 16384};
    for (int code = 0; code <= OPPOSITE; code++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
                check(65, 5, widths[w], 0, 0, 0, code, values[v], true);
                check(9, 33, widths[w], 0, 0, 0, code, values[v], false);
            }
}

static void test_random_shapes(void **unused) {
    (void)unused;
    for (int i = 0; i < 200; i++) {
        int rows = 1 + (int)(next_random() % 100), tokens = 1 + (int)(next_random() % 70), k = 1 + (int)(next_random() % 1500);
        check(rows, tokens, k, (int)(next_random() % 33), (int)(next_random() % 65), (int)(next_random() % 5), -1, next_random() % 2 ? ANY : MIXED, next_random() % 2);
    }
}

/* Triples of random codes as rows: every ISA writes what ref writes, which packs again to the same triples. */
static void test_trits_rows(void **unused) {
    (void)unused;
    for (int turn = 0; turn < 120; turn++) {
        int rows = 1 + (int)(next_random() % 10);
        int64_t k = 1 + (int64_t)(next_random() % 2100), packed = setun_packed_row_bytes(k);
        size_t triple_bytes = (size_t)setun_trits_triple_bytes(k) + next_random() % 3 * 64, row_bytes = (size_t)packed + next_random() % 2 * 32, count = (size_t)(rows - 1) * row_bytes + (size_t)packed;
        uint8_t *triples = take(&code_room, triple_bytes * (size_t)((rows + 2) / 3), true), *source = take(&x_room, 3 * (size_t)packed, true);
        uint8_t *expected = take(&expected_room, count, true), *out = take(&out_room, count, true);
        for (int r = 0; r < rows; r += 3) {
            for (int64_t i = 0; i < 3 * packed; i++) source[i] = (uint8_t)(next_random() % 3 << 6 | next_random() % 3 << 4 | next_random() % 3 << 2 | next_random() % 3);
            assert_true(setun_pack_trits(source, source + packed, source + 2 * packed, k, triples + (size_t)(r / 3) * triple_bytes));
        }
        memset(expected, 0xa5, count);
        setun_isa_table(0)->trits_rows(triples, triple_bytes, rows, k, expected, row_bytes);
        for (int i = 1; i < setun_isa_count(); i++) {
            const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
            if (!table || !table->trits_rows) continue;
            memset(out, 0xa5, count);
            table->trits_rows(triples, triple_bytes, rows, k, out, row_bytes);
            for (size_t e = 0; e < count; e++)
                if (out[e] != expected[e]) fail_msg("%s trits_rows: rows %d, k %lld: byte %zu of row %zu is %02x, not %02x; SETUN_TEST_SEED=%llu", table->isa, rows, (long long)k, e % row_bytes, e / row_bytes, out[e], expected[e], (unsigned long long)seed);
        }
        /* the last triple is still in `source` */
        int first = (rows - 1) / 3 * 3;
        for (int64_t c = 0; c < k; c++)
            for (int r = first; r < rows; r++) {
                size_t byte = (size_t)(c / 128 * 32 + c % 32);
                int shift = 6 - 2 * (int)(c % 128 / 32);
                assert_int_equal(expected[(size_t)r * row_bytes + byte] >> shift & 3, source[(r - first) * packed + (int64_t)byte] >> shift & 3);
            }
    }
}

/* Rows of random codes as triples: every ISA writes what ref writes, and nothing behind it; and says of a wrong code or field, wherever it is, what ref says. */
static void test_trits_pack(void **unused) {
    (void)unused;
    for (int turn = 0; turn < 200; turn++) {
        int rows = 1 + (int)(next_random() % 10), triples = (rows + 2) / 3;
        int64_t k = 1 + (int64_t)(next_random() % 2100), packed = setun_packed_row_bytes(k);
        size_t bytes = (size_t)setun_trits_triple_bytes(k), triple_bytes = bytes + next_random() % 3 * 64, row_bytes = (size_t)packed + next_random() % 2 * 32;
        size_t in = (size_t)(rows - 1) * row_bytes + (size_t)packed, count = (size_t)(triples - 1) * triple_bytes + bytes;
        uint8_t *codes = take(&x_room, in, true), *expected = take(&expected_room, count, true), *out = take(&out_room, count, true);
        for (size_t i = 0; i < in; i++) codes[i] = (uint8_t)(next_random() % 3 << 6 | next_random() % 3 << 4 | next_random() % 3 << 2 | next_random() % 3);
        const bool broken = turn % 4 == 3;
        if (broken) codes[(size_t)(next_random() % (uint64_t)rows) * row_bytes + next_random() % (uint64_t)packed] |= (uint8_t)(3 << 2 * (next_random() % 4));
        memset(expected, 0xa5, count);
        const bool right = setun_isa_table(0)->trits_pack(codes, row_bytes, rows, k, expected, triple_bytes);
        assert_true(right || broken); /* a code 3 past the last block of 64 columns is nobody's */
        for (int i = 1; i < setun_isa_count(); i++) {
            const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
            if (!table || !table->trits_pack) continue;
            memset(out, 0xa5, count);
            const bool got = table->trits_pack(codes, row_bytes, rows, k, out, triple_bytes);
            if (got != right) fail_msg("%s trits_pack: rows %d, k %lld: %d, not %d; SETUN_TEST_SEED=%llu", table->isa, rows, (long long)k, got, right, (unsigned long long)seed);
            if (right && memcmp(out, expected, count)) fail_msg("%s trits_pack: rows %d, k %lld: other triples; SETUN_TEST_SEED=%llu", table->isa, rows, (long long)k, (unsigned long long)seed);
        }
        if (!right) continue;
        for (int wrong = 0; wrong < 12; wrong++) {
            /* any bits of a triple's fields set: some make a field of 27..31, some don't */
            uint8_t *triple = expected + (size_t)(next_random() % (uint64_t)triples) * triple_bytes;
            size_t at = next_random() % ((size_t)setun_trits_blocks(k) * 40);
            uint8_t before = triple[at], after = wrong ? (uint8_t)(before | next_random()) : before;
            triple[at] = after;
            const bool valid = setun_isa_table(0)->trits_valid(expected, triple_bytes, rows, k);
            assert_true(valid || wrong);
            for (int i = 1; i < setun_isa_count(); i++) {
                const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
                if (!table || !table->trits_valid) continue;
                if (table->trits_valid(expected, triple_bytes, rows, k) != valid)
                    fail_msg("%s trits_valid: rows %d, k %lld, byte %zu %02x for %02x: not %d; SETUN_TEST_SEED=%llu", table->isa, rows, (long long)k, at, after, before, valid, (unsigned long long)seed);
            }
            triple[at] = before;
        }
    }
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    state = seed * 2 + 1;
    printf("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes), cmocka_unit_test(test_long_rows), cmocka_unit_test(test_parts), cmocka_unit_test(test_extremes), cmocka_unit_test(test_random_shapes), cmocka_unit_test(test_trits_rows), cmocka_unit_test(test_trits_pack),
    };
    return cmocka_run_group_tests(tests, create_rooms, destroy_rooms);
}
