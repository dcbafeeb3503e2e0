/*
 * test_kernels_ternary.c - the ternary kernels of every ISA of this CPU against ref, bit for bit: odd shapes, misalignment,
 * extreme values, with every buffer between two pages that fault when touched. SETUN_TEST_SEED=n repeats a run.
 */
#include "backend/cpu/kernels.h"
#include "ternary/ternary.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- random numbers ---- */

static uint64_t seed, state;

static uint32_t next_random(void) { /* xorshift64*, Vigna 2014 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}

/* ---- buffers between guard pages ---- */

typedef struct guarded { uint8_t *base, *first; size_t room, page; } guarded;

static guarded guarded_create(size_t room) {
    guarded g = {.page = (size_t)sysconf(_SC_PAGESIZE)};
    g.room = (room + g.page - 1) / g.page * g.page;
    g.base = mmap(NULL, g.room + 2 * g.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.base != MAP_FAILED);
    g.first = g.base + g.page;
    assert_int_equal(mprotect(g.first, g.room, PROT_READ | PROT_WRITE), 0);
    return g;
}
static void guarded_destroy(guarded *g) { munmap(g->base, g->room + 2 * g->page); }
/* `bytes` that end where the guard page begins, or that begin where it ends. */
static void *guarded_take(const guarded *g, size_t bytes, bool at_end) {
    assert_true(bytes <= g->room);
    return at_end ? g->first + g->room - bytes : g->first;
}

static guarded code_room, x_room, scale_room, out_room, expected_room;

static int create_rooms(void **unused) {
    (void)unused;
    code_room = guarded_create(2 << 20);
    x_room = guarded_create(4 << 20);
    scale_room = guarded_create(1 << 20);
    out_room = guarded_create(1 << 20);
    expected_room = guarded_create(1 << 20);
    return 0;
}
static int destroy_rooms(void **unused) {
    (void)unused;
    guarded_destroy(&code_room);
    guarded_destroy(&x_room);
    guarded_destroy(&scale_room);
    guarded_destroy(&out_room);
    guarded_destroy(&expected_room);
    return 0;
}

/* ---- filling ---- */

static uint8_t packed_byte(const uint8_t code[4]) { return (uint8_t)(code[0] << 6 | code[1] << 4 | code[2] << 2 | code[3]); }

/* Rows of k codes: random, or all `constant` (0..2); code 1 past k, as the layout says. Bytes between rows are random. */
static void fill_codes(uint8_t *codes, size_t row_bytes, int rows, int64_t k, int constant) {
    for (int r = 0; r < rows; r++) {
        uint8_t *row = codes + (size_t)r * row_bytes;
        for (size_t i = 0; i < row_bytes; i++) {
            uint8_t code[4];
            for (int j = 0; j < 4; j++) {
                int64_t column = (int64_t)(i / 32) * 128 + 32 * j + (int64_t)(i % 32);
                code[j] = column >= k ? 1 : constant >= 0 ? (uint8_t)constant : (uint8_t)(next_random() % 3);
            }
            row[i] = packed_byte(code);
        }
    }
}

/* Rows of k values and zeros up to the stride: random, or all `constant`. */
static void fill_x_i8(int8_t *x, size_t stride, int tokens, int64_t k, int constant) {
    for (int t = 0; t < tokens; t++)
        for (size_t i = 0; i < stride; i++) x[(size_t)t * stride + i] = (int64_t)i >= k ? 0 : constant != 1000 ? (int8_t)constant : (int8_t)(next_random() >> 24);
}

static float random_float(void) { /* magnitudes from 2^-12 to 2^12, so that another order of additions gives other bits */
    float f = (float)((int32_t)next_random()) / 2147483648.0f;
    return ldexpf(f, (int)(next_random() % 25) - 12);
}

/* ---- comparing ---- */

static void compare(const char *isa, const char *kernel, const char *what, const void *expected, const void *got, size_t count, size_t size) {
    if (!memcmp(expected, got, count * size)) return;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *e = (const uint8_t *)expected + i * size, *g = (const uint8_t *)got + i * size;
        if (memcmp(e, g, size)) {
            uint32_t ev = 0, gv = 0;
            memcpy(&ev, e, size);
            memcpy(&gv, g, size);
            fail_msg("%s %s (%s): element %zu of %zu is %08x, ref has %08x; SETUN_TEST_SEED=%llu", isa, kernel, what, i, count, gv, ev, (unsigned long long)seed);
        }
    }
}

/* Every ISA of this CPU above ref. */
#define EACH_ISA(index, table, name) \
    for (int index = 1; index < setun_isa_count(); index++) \
        for (const setun_kernels *table = setun_isa_available(index) ? setun_isa_table(index) : NULL; table && table->name; table = NULL)

/* ---- ternary_i8 ---- */

static void check_i8(int rows, int tokens, int64_t k, int row_gap, int x_gap, int out_gap, int code, int value, bool at_end) {
    const setun_kernels *ref = setun_isa_table(0);
    size_t row_bytes = (size_t)((k + 127) / 128 * 32 + row_gap), x_stride = (size_t)((k + 127) / 128 * 128 + x_gap), out_stride = (size_t)(rows + out_gap);
    uint8_t *codes = guarded_take(&code_room, row_bytes * (size_t)rows, at_end);
    int8_t *x = guarded_take(&x_room, x_stride * (size_t)tokens, at_end);
    size_t count = (size_t)(tokens - 1) * out_stride + (size_t)rows; /* nothing may be written past the last row's last sum */
    int32_t *expected = guarded_take(&expected_room, count * 4, at_end), *out = guarded_take(&out_room, count * 4, at_end);
    fill_codes(codes, row_bytes, rows, k, code);
    fill_x_i8(x, x_stride, tokens, k, value);
    memset(expected, 0xa5, count * 4);
    ref->ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, expected, out_stride);
    EACH_ISA(i, table, ternary_i8) {
        char what[160];
        snprintf(what, sizeof what, "rows %d, tokens %d, k %lld, gaps %d %d %d, code %d, x %d, %s", rows, tokens, (long long)k, row_gap, x_gap, out_gap, code, value, at_end ? "at end" : "at start");
        memset(out, 0xa5, count * 4);
        table->ternary_i8(codes, row_bytes, rows, x, x_stride, tokens, k, out, out_stride);
        compare(table->isa, "ternary_i8", what, expected, out, count, 4);
    }
}

static void test_ternary_i8_shapes(void **unused) {
    (void)unused;
    static const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 33};
    static const int token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33};
    static const int widths[] = {1, 5, 64, 127, 128, 129, 255, 256, 384, 576, 640, 1536};
    int turn = 0;
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++, turn++)
                check_i8(row_counts[r], token_counts[t], widths[w], turn % 3, turn % 5 * 3, turn % 4, -1, 1000, turn % 2);
}

/* Row lengths where the blocks of the kernels end (15, 16, 20, 21, 30 .. times 128) and the long rows of real models. */
static void test_ternary_i8_long_rows(void **unused) {
    (void)unused;
    static const int widths[] = {1919, 1920, 1921, 2048, 2560, 2561, 2688, 3840, 3841, 3968, 5460, 6912, 8640, 16384};
    static const int token_counts[] = {1, 2, 3, 5, 6, 11};
    int turn = 0;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++, turn++) check_i8(1 + turn % 11, token_counts[t], widths[w], 0, turn % 7, 0, -1, 1000, turn % 2);
}

/* More tokens than any kernel keeps in a cache at once. */
static void test_ternary_i8_many_tokens(void **unused) {
    (void)unused;
    check_i8(7, 81, 2560, 0, 0, 0, -1, 1000, true);
    check_i8(9, 197, 256, 0, 0, 1, -1, 1000, true);
    check_i8(2, 700, 129, 0, 0, 0, -1, 1000, false);
    check_i8(3, 170, 6912, 0, 0, 0, -1, 1000, true);
}

/* Where an accumulator that is too narrow overflows: every code the same, every x the same. */
static void test_ternary_i8_extremes(void **unused) {
    (void)unused;
    static const int values[] = {-128, 127, -127, 1, 0};
    static const int widths[] = {128, 1920, 2048, 2176, 2304, 3840, 6912, 16384};
    static const int token_counts[] = {1, 2, 3, 4, 5, 6, 17};
    for (int code = 0; code < 3; code++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++) check_i8(5, token_counts[t], widths[w], 0, 0, 0, code, values[v], true);
    /* the oracle itself, against a sum known by other means */
    uint8_t *codes = guarded_take(&code_room, 16384 / 4, true);
    int8_t *x = guarded_take(&x_room, 16384, true);
    fill_codes(codes, 16384 / 4, 1, 16384, 2);
    fill_x_i8(x, 16384, 1, 16384, -128);
    for (int i = 0; i < setun_isa_count(); i++) {
        const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
        int32_t sum = 0;
        if (!table || !table->ternary_i8) continue;
        table->ternary_i8(codes, 16384 / 4, 1, x, 16384, 1, 16384, &sum, 1);
        assert_int_equal(sum, -128 * 2 * 16384);
    }
}

static void test_ternary_i8_random_shapes(void **unused) {
    (void)unused;
    for (int i = 0; i < 300; i++) {
        int rows = 1 + (int)(next_random() % 40), tokens = 1 + (int)(next_random() % 24), k = 1 + (int)(next_random() % 3000);
        check_i8(rows, tokens, k, (int)(next_random() % 33), (int)(next_random() % 65), (int)(next_random() % 5), -1, 1000, next_random() % 2);
    }
}

/* ---- trits_i8 ---- */

/* Triples of random codes (or all `constant`): every ISA, ref too, gives what ternary_i8 gives for the same rows at 2 bits. */
static void check_trits(int rows, int tokens, int64_t k, int triple_gap, int x_gap, int out_gap, int code, int value, bool at_end) {
    size_t row_bytes = (size_t)setun_packed_row_bytes(k), triple_bytes = (size_t)(setun_trits_triple_bytes(k) + triple_gap), x_stride = (size_t)((k + 127) / 128 * 128 + x_gap), out_stride = (size_t)(rows + out_gap);
    int triples = (rows + 2) / 3;
    uint8_t *packed = malloc((size_t)(3 * triples) * row_bytes);
    /* nothing may be read past the last triple's last block */
    size_t bytes = triple_bytes * (size_t)(triples - 1) + (size_t)setun_trits_triple_bytes(k);
    uint8_t *codes = guarded_take(&code_room, bytes, at_end);
    int8_t *x = guarded_take(&x_room, x_stride * (size_t)tokens, at_end);
    size_t count = (size_t)(tokens - 1) * out_stride + (size_t)rows;
    int32_t *expected = guarded_take(&expected_room, count * 4, at_end), *out = guarded_take(&out_room, count * 4, at_end);
    fill_codes(packed, row_bytes, 3 * triples, k, code);
    for (size_t i = 0; i < bytes; i++) codes[i] = (uint8_t)next_random();
    for (int t = 0; t < triples; t++) {
        const uint8_t *row = packed + (size_t)(3 * t) * row_bytes;
        assert_true(setun_pack_trits(row, row + row_bytes, row + 2 * row_bytes, k, codes + (size_t)t * triple_bytes));
    }
    fill_x_i8(x, x_stride, tokens, k, value);
    memset(expected, 0xa5, count * 4);
    setun_isa_table(0)->ternary_i8(packed, row_bytes, rows, x, x_stride, tokens, k, expected, out_stride);
    for (int i = 0; i < setun_isa_count(); i++) {
        const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
        if (!table || !table->trits_i8) continue;
        char what[160];
        snprintf(what, sizeof what, "rows %d, tokens %d, k %lld, gaps %d %d %d, code %d, x %d, %s", rows, tokens, (long long)k, triple_gap, x_gap, out_gap, code, value, at_end ? "at end" : "at start");
        memset(out, 0xa5, count * 4);
        table->trits_i8(codes, triple_bytes, rows, x, x_stride, tokens, k, out, out_stride);
        compare(table->isa, "trits_i8", what, expected, out, count, 4);
    }
    free(packed);
}

static void test_trits_i8(void **unused) {
    (void)unused;
    static const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 33};
    static const int token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17};
    static const int widths[] = {1, 63, 64, 65, 128, 192, 448, 511, 512, 513, 576, 1024, 1536};
    int turn = 0;
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++, turn++)
                check_trits(row_counts[r], token_counts[t], widths[w], turn % 3, turn % 5 * 3, turn % 4, -1, 1000, turn % 2);
    for (int i = 0; i < 150; i++) {
        int rows = 1 + (int)(next_random() % 40), tokens = 1 + (int)(next_random() % 24), k = 1 + (int)(next_random() % 3000);
        check_trits(rows, tokens, k, (int)(next_random() % 33), (int)(next_random() % 65), (int)(next_random() % 5), -1, 1000, next_random() % 2);
    }
    check_trits(4, 197, 256, 0, 0, 1, -1, 1000, true); /* more tokens than a pass holds, and long rows */
    check_trits(5, 3, 2560, 0, 0, 0, -1, 1000, true);
    check_trits(5, 81, 6912, 0, 0, 0, -1, 1000, true);
    check_trits(2, 2, 16384, 0, 0, 0, -1, 1000, false);
    /* Batches: every number of tokens, over rows and columns that come in one part and in several. */
    for (int tokens = 2; tokens <= 17; tokens++) {
        check_trits(5 + tokens, tokens, 512 * (1 + tokens % 3) + (tokens % 2 ? 0 : 200), 0, 0, tokens % 3, -1, 1000, tokens % 2);
        if (tokens % 3 == 2) check_trits(97 + tokens % 7, tokens, 576, 0, 0, 0, -1, 1000, tokens % 2);
        if (tokens % 4 == 0) check_trits(7, tokens, 10000 + 40 * tokens, 0, 0, 1, -1, 1000, true);
    }
}

/* The largest sums: every code the same, every x the same. */
static void test_trits_i8_extremes(void **unused) {
    (void)unused;
    static const int values[] = {-128, 127, -1};
    static const int widths[] = {64, 512, 2560, 4096, 4160, 16384};
    for (int code = 0; code < 3; code++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                for (int tokens = 1; tokens < 10; tokens += 4) check_trits(4, tokens, widths[w], 0, 0, 0, code, values[v], true);
    /* Rows so long that intermediate sums pass 32 bits, on both sides of where AVX-512 changes its way. */
    for (int k = (1 << 19) - 64; k <= (1 << 19) + 64; k += 64)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) check_trits(3, 2, k, 0, 0, 0, 2, values[v], true);
}

/* ---- ternary_f32 ---- */

static void check_f32(int rows, int tokens, int64_t k, int group, int gap, bool at_end, bool wild) {
    const setun_kernels *ref = setun_isa_table(0);
    size_t row_bytes = (size_t)((k + 127) / 128 * 32 + gap), x_stride = (size_t)(k + gap), out_stride = (size_t)(rows + gap);
    size_t groups = group ? (size_t)((k + group - 1) / group) : 0, scales_stride = groups + (size_t)(group ? gap : 0);
    uint8_t *codes = guarded_take(&code_room, row_bytes * (size_t)rows, at_end);
    size_t x_count = (size_t)(tokens - 1) * x_stride + (size_t)k, scale_count = group ? (size_t)(rows - 1) * scales_stride + groups : 0;
    float *x = guarded_take(&x_room, x_count * 4, at_end), *scales = group ? guarded_take(&scale_room, scale_count * 4, at_end) : NULL;
    size_t count = (size_t)(tokens - 1) * out_stride + (size_t)rows;
    float *expected = guarded_take(&expected_room, count * 4, at_end), *out = guarded_take(&out_room, count * 4, at_end);
    fill_codes(codes, row_bytes, rows, k, -1);
    for (size_t i = 0; i < x_count; i++) x[i] = random_float();
    for (size_t i = 0; i < scale_count; i++) scales[i] = fabsf(random_float()) + 1e-3f;
    if (wild && x_count) x[next_random() % x_count] = next_random() % 2 ? NAN : INFINITY; /* one NaN is written for all of them */
    memset(expected, 0xa5, count * 4);
    ref->ternary_f32(codes, row_bytes, rows, x, x_stride, tokens, k, scales, scales_stride, group, expected, out_stride);
    EACH_ISA(i, table, ternary_f32) {
        char what[160];
        snprintf(what, sizeof what, "rows %d, tokens %d, k %lld, group %d, gap %d, %s%s", rows, tokens, (long long)k, group, gap, at_end ? "at end" : "at start", wild ? ", with a NaN or infinity" : "");
        memset(out, 0xa5, count * 4);
        table->ternary_f32(codes, row_bytes, rows, x, x_stride, tokens, k, scales, scales_stride, group, out, out_stride);
        compare(table->isa, "ternary_f32", what, expected, out, count, 4);
    }
}

static void test_ternary_f32(void **unused) {
    (void)unused;
    static const int groups[] = {0, 32, 64, 128, 256};
    static const int widths[] = {1, 5, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 160, 192, 255, 256, 257, 320, 384, 511, 512, 576, 640, 1536, 2560};
    int turn = 0;
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (int rows = 1; rows <= 9; rows += 1 + rows / 5)
                for (int tokens = 1; tokens <= 9; tokens += 1 + tokens / 5, turn++) check_f32(rows, tokens, widths[w], groups[g], turn % 3, turn % 2, turn % 7 == 3);
}

/* The sum that ref's order gives is close to the exact one: bounds the order itself, which memcmp cannot. */
static void test_ternary_f32_value(void **unused) {
    (void)unused;
    enum { K = 2560 };
    uint8_t *codes = guarded_take(&code_room, K / 4, true);
    float *x = guarded_take(&x_room, K * 4, true), scales[K / 32];
    static const int groups[] = {0, 32, 64, 128, 256};
    fill_codes(codes, K / 4, 1, K, -1);
    for (int i = 0; i < K; i++) x[i] = (float)((int32_t)next_random()) / 2147483648.0f;
    for (int i = 0; i < K / 32; i++) scales[i] = 0.5f + (float)(next_random() % 1000) / 1000.0f;
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        double sum = 0, size = 0;
        for (int i = 0; i < K; i++) {
            int code = codes[i / 128 * 32 + i % 32] >> (6 - 2 * (i % 128 / 32)) & 3;
            double term = (code - 1) * (double)x[i] * (groups[g] ? scales[i / groups[g]] : 1.0);
            sum += term;
            size += fabs(term);
        }
        for (int i = 0; i < setun_isa_count(); i++) {
            const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
            float out = 0;
            if (!table || !table->ternary_f32) continue;
            table->ternary_f32(codes, K / 4, 1, x, K, 1, K, groups[g] ? scales : NULL, K / 32, groups[g], &out, 1);
            assert_true(fabs(out - sum) <= 1e-6 * size);
        }
    }
}

/* ---- scale_sums ---- */

static void test_scale_sums(void **unused) {
    (void)unused;
    const setun_kernels *ref = setun_isa_table(0);
    for (int n = 0; n <= 300; n += n < 40 ? 1 : 37)
        for (int each = 0; each < 2; each++)
            for (int at_end = 0; at_end < 2; at_end++) {
                int32_t *sums = guarded_take(&x_room, (size_t)n * 4, at_end);
                float *scales = each ? guarded_take(&scale_room, (size_t)n * 4, at_end) : NULL;
                float *expected = guarded_take(&expected_room, (size_t)n * 4, at_end), *out = guarded_take(&out_room, (size_t)n * 4, at_end);
                for (int i = 0; i < n; i++) sums[i] = (int32_t)next_random() >> (next_random() % 24 + 2);
                for (int i = 0; scales && i < n; i++) scales[i] = random_float();
                int32_t x_sum = (int32_t)next_random() >> 3;
                float x_scale = n % 11 == 3 ? INFINITY : fabsf(random_float()), tensor_scale = n % 13 == 4 ? NAN : random_float();
                if (n > 5) sums[n / 2] = x_sum; /* 0 times an infinite scale */
                ref->scale_sums(sums, n, x_sum, x_scale, scales, tensor_scale, expected);
                EACH_ISA(i, table, scale_sums) {
                    char what[64];
                    snprintf(what, sizeof what, "n %d, %s", n, each ? "a scale each" : "one scale");
                    memset(out, 0xa5, (size_t)n * 4);
                    table->scale_sums(sums, n, x_sum, x_scale, scales, tensor_scale, out);
                    compare(table->isa, "scale_sums", what, expected, out, (size_t)n, 4);
                }
            }
    int32_t one = 1000;
    float y = 0;
    ref->scale_sums(&one, 1, 900, 0.5f, NULL, 0.25f, &y);
    assert_true(y == 12.5f);
}

/* ---- quantize_i8 ---- */

static void check_quantize(const char *what, const float *x, int64_t k, int64_t k_padded, bool at_end) {
    const setun_kernels *ref = setun_isa_table(0);
    int8_t *expected = guarded_take(&expected_room, (size_t)k_padded, at_end), *out = guarded_take(&out_room, (size_t)k_padded, at_end);
    float expected_scale = 0;
    int32_t expected_sum = 0, plain = 0;
    memset(expected, 0xa5, (size_t)k_padded);
    ref->quantize_i8(x, k, k_padded, expected, &expected_scale, &expected_sum);
    for (int64_t i = 0; i < k_padded; i++) plain += expected[i];
    assert_int_equal(plain, expected_sum);
    EACH_ISA(i, table, quantize_i8) {
        char text[96];
        float scale = 0;
        int32_t sum = 0;
        snprintf(text, sizeof text, "%s, k %lld, padded %lld", what, (long long)k, (long long)k_padded);
        memset(out, 0xa5, (size_t)k_padded);
        table->quantize_i8(x, k, k_padded, out, &scale, &sum);
        compare(table->isa, "quantize_i8", text, expected, out, (size_t)k_padded, 1);
        compare(table->isa, "quantize_i8 scale", text, &expected_scale, &scale, 1, 4);
        compare(table->isa, "quantize_i8 sum", text, &expected_sum, &sum, 1, 4);
    }
}

static void test_quantize_i8(void **unused) {
    (void)unused;
    static const int widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 47, 63, 64, 65, 127, 128, 129, 576, 2560, 6912, 6917};
    int turn = 0;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int kind = 0; kind < 10; kind++, turn++) {
            int k = widths[w], padded = turn % 3 ? (k + 127) / 128 * 128 : k;
            float *x = guarded_take(&x_room, (size_t)k * 4, turn % 2);
            static const char *const names[] = {"random", "one sign", "ties", "zeros", "tiny", "infinite", "NaN", "subnormal", "alternating", "largest last"};
            for (int i = 0; i < k; i++) {
                float f = random_float();
                switch (kind) {
                case 1: f = -fabsf(f); break;
                case 2: f = i ? (float)((int)(next_random() % 254) - 127) + 0.5f : 127.0f; break; /* factor 1: everything is a tie */
                case 3: f = i % 2 ? -0.0f : 0.0f; break;
                case 4: f *= 1e-12f; break;
                case 5: f = i == k / 2 ? INFINITY : f; break;
                case 6: f = i == k / 2 ? NAN : f; break;
                case 7: f = ldexpf(f, -140); break;
                case 8: f = i % 2 ? -3.0f : 3.0f; break;
                case 9: f = i == k - 1 ? -1e6f : f; break;
                default: break;
                }
                x[i] = f;
            }
            check_quantize(names[kind], x, k, padded, turn % 2);
        }
    /* known values: factor 1, ties to even, the clamp */
    float known[6] = {127.0f, 0.5f, 1.5f, -0.5f, -2.5f, -126.5f}, scale = 0;
    static const int8_t wanted[8] = {127, 0, 2, 0, -2, -126, 0, 0};
    int8_t q[8];
    int32_t sum = 0;
    for (int i = 0; i < setun_isa_count(); i++) {
        const setun_kernels *table = setun_isa_available(i) ? setun_isa_table(i) : NULL;
        if (!table || !table->quantize_i8) continue;
        table->quantize_i8(known, 6, 8, q, &scale, &sum);
        assert_memory_equal(q, wanted, 8);
        assert_true(scale == 1.0f);
        assert_int_equal(sum, 1);
    }
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    printf("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; i < setun_isa_count(); i++) printf("%s: %s\n", setun_isa_name(i), setun_isa_available(i) ? "tested" : "not on this CPU");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ternary_i8_shapes), cmocka_unit_test(test_ternary_i8_long_rows), cmocka_unit_test(test_ternary_i8_many_tokens),
        cmocka_unit_test(test_ternary_i8_extremes), cmocka_unit_test(test_ternary_i8_random_shapes), cmocka_unit_test(test_trits_i8), cmocka_unit_test(test_trits_i8_extremes),
        cmocka_unit_test(test_ternary_f32),
        cmocka_unit_test(test_ternary_f32_value), cmocka_unit_test(test_scale_sums), cmocka_unit_test(test_quantize_i8),
    };
    return cmocka_run_group_tests_name("kernels_ternary", tests, create_rooms, destroy_rooms);
}
