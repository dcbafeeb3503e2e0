/*
 * test_kernels_shortlist.c - the kernels of the head's small copy: every ISA of this CPU against ref, bit for bit, between guard pages; that the
 * planes say what they are said to say, and that the bounds hold. SETUN_TEST_SEED=n repeats a run.
 */
#include "backend/cpu/shortlist.h"
#include "backend/cpu/kernels.h"

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
static float uniform(void) { return (float)(int32_t)next_random() / 2147483648.0f; }
static float gaussian(void) { return uniform() + uniform() + uniform() + uniform(); }

/* Memory that ends (or begins) where a page faults. */
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
static void *take(const guarded *g, size_t bytes, bool at_end) {
    assert_true(bytes <= g->room);
    return at_end ? g->first + g->room - bytes : g->first;
}
enum { ROOMS = 11 };
static guarded rooms[ROOMS];
static int create_rooms(void **unused) {
    (void)unused;
    for (int i = 0; i < ROOMS; i++) rooms[i] = guarded_create(1 << 20);
    return 0;
}
static int destroy_rooms(void **unused) {
    (void)unused;
    for (int i = 0; i < ROOMS; i++) munmap(rooms[i].base, rooms[i].room + 2 * rooms[i].page);
    return 0;
}

static void same(const char *isa, const char *what, const void *expected, const void *got, size_t bytes) {
    if (memcmp(expected, got, bytes)) fail_msg("%s %s differs from ref; SETUN_TEST_SEED=%llu", isa, what, (unsigned long long)seed);
}

#define EACH_ISA(table, name) \
    for (int isa_ = 1; isa_ < setun_isa_count(); isa_++) \
        for (const setun_kernels *table = setun_isa_available(isa_) ? setun_isa_table(isa_) : NULL; table && table->name; table = NULL)

/* ---- the scores ---- */

static void check_scores(int rows, int tokens, int64_t k, int extreme, bool at_end) {
    const setun_kernels *ref = setun_isa_table(0);
    size_t stride = (size_t)((k + 511) / 512 * 16), out_stride = (size_t)rows + next_random() % 3;
    uint8_t *first = take(&rooms[0], (size_t)(rows * k / 4), at_end), *second = take(&rooms[10], (size_t)(rows * k / 4), at_end), *bits = take(&rooms[1], (size_t)rows * 4 * stride, at_end), *scales = take(&rooms[2], (size_t)rows * stride, at_end);
    float *row_scale = take(&rooms[3], (size_t)rows * 4, at_end), *x_sums = take(&rooms[5], (size_t)tokens * stride * 4, at_end), *x_scale = take(&rooms[6], (size_t)tokens * 4, at_end);
    int8_t *x = take(&rooms[4], (size_t)(tokens * 2 * k), at_end);
    int32_t *list = take(&rooms[7], (size_t)rows * 4, at_end);
    size_t count = (size_t)(tokens - 1) * out_stride + (size_t)rows;
    float *expected = take(&rooms[8], count * 4, at_end), *out = take(&rooms[9], count * 4, at_end);
    for (int64_t i = 0; i < rows * k / 4; i++) first[i] = extreme ? 0xff : (uint8_t)next_random();
    for (int64_t i = 0; i < rows * k / 4; i++) second[i] = extreme ? 0xff : (uint8_t)next_random();
    for (size_t i = 0; i < (size_t)rows * 4 * stride; i++) bits[i] = extreme ? 0xff : (uint8_t)next_random();
    for (size_t i = 0; i < (size_t)rows * stride; i++) scales[i] = extreme ? 255 : (uint8_t)next_random();
    for (int r = 0; r < rows; r++) row_scale[r] = uniform();
    for (int t = 0; t < tokens; t++) {
        float *sums = x_sums + (size_t)t * stride;
        x_scale[t] = uniform();
        for (size_t b = 0; b < stride; b++) sums[b] = 0.0f;
        for (int64_t c = 0; c < k; c++) {
            int v = extreme ? (extreme > 1 ? -16256 : 16256) : (int)(next_random() % 32513) - 16256, upper = (v + 64) >> 7;
            x[2 * t * k + c / 64 * 128 + c % 64] = (int8_t)upper;
            x[2 * t * k + c / 64 * 128 + 64 + c % 64] = (int8_t)(v - 128 * upper);
            sums[c / 512 * 16 + c % 64 / 4] += (float)v;
        }
    }
    int listed = 0;
    for (int r = 0; r < rows; r++)
        if (extreme || next_random() % 3) list[listed++] = rows - 1 - r; /* any order will do */
    char what[96];
    snprintf(what, sizeof what, "rows %d, tokens %d, k %lld, extreme %d", rows, tokens, (long long)k, extreme);
    memset(expected, 0xa5, count * 4);
    ref->shortlist_high(first, second, scales, stride, row_scale, rows, x, x_sums, x_scale, tokens, k, expected, out_stride);
    EACH_ISA(table, shortlist_high) {
        memset(out, 0xa5, count * 4);
        table->shortlist_high(first, second, scales, stride, row_scale, rows, x, x_sums, x_scale, tokens, k, out, out_stride);
        same(table->isa, what, expected, out, count * 4);
    }
    for (int way = 0; way < 2; way++) {
        memset(expected, 0xa5, count * 4);
        ref->shortlist_two(first, scales, stride, row_scale, way ? list : NULL, way ? listed : rows, x, x_sums, x_scale, tokens, k, expected, out_stride);
        EACH_ISA(table, shortlist_two) {
            memset(out, 0xa5, count * 4);
            table->shortlist_two(first, scales, stride, row_scale, way ? list : NULL, way ? listed : rows, x, x_sums, x_scale, tokens, k, out, out_stride);
            same(table->isa, what, expected, out, count * 4);
        }
    }
    memset(expected, 0xa5, count * 4);
    const float factor = next_random() % 2 ? 0.5f : 0.25f;
    ref->shortlist_bit(bits, scales, stride, row_scale, list, listed, x, x_sums, x_scale, factor, tokens, k, expected, out_stride);
    EACH_ISA(table, shortlist_bit) {
        memset(out, 0xa5, count * 4);
        table->shortlist_bit(bits, scales, stride, row_scale, list, listed, x, x_sums, x_scale, factor, tokens, k, out, out_stride);
        same(table->isa, what, expected, out, count * 4);
    }
    memset(expected, 0xa5, count * 4);
    ref->shortlist_bit(bits, scales, stride, row_scale, NULL, rows, x, x_sums, x_scale, factor, tokens, k, expected, out_stride);
    EACH_ISA(table, shortlist_bit) { /* all rows, without a list */
        memset(out, 0xa5, count * 4);
        table->shortlist_bit(bits, scales, stride, row_scale, NULL, rows, x, x_sums, x_scale, factor, tokens, k, out, out_stride);
        same(table->isa, what, expected, out, count * 4);
    }
}

static void test_scores(void **unused) {
    (void)unused;
    static const int64_t widths[] = {256, 512, 768, 1024, 1280, 2560, 4096};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int rows = 1; rows <= 19; rows += rows < 4 ? 1 : 5)
            for (int tokens = 1; tokens <= 7; tokens++) check_scores(rows, tokens, widths[w], 0, (rows + tokens) % 2);
    check_scores(20, 16, 768, 0, true);
    for (int extreme = 1; extreme <= 2; extreme++) check_scores(4, 5, 2560, extreme, true); /* the largest sums */
}

static void test_select(void **unused) {
    (void)unused;
    const setun_kernels *ref = setun_isa_table(0);
    for (int n = 0; n < 100; n++) {
        float *scores = take(&rooms[0], (size_t)n * 4, n % 2), *errors = take(&rooms[1], (size_t)n * 4, n % 2), *norms = take(&rooms[2], (size_t)n * 4, n % 2);
        int32_t *list = take(&rooms[3], (size_t)n * 4, true), expected[100];
        for (int i = 0; i < n; i++) {
            scores[i] = next_random() % 20 ? uniform() : NAN;
            errors[i] = next_random() % 20 ? fabsf(uniform()) : INFINITY;
            norms[i] = fabsf(uniform());
        }
        float a = uniform(), b = uniform(), threshold = n % 7 ? uniform() : n % 2 ? NAN : -INFINITY;
        int all = ref->shortlist_select(scores, errors, norms, n, a, b, threshold, expected);
        if (!(threshold > -2.0f)) assert_int_equal(all, n);
        EACH_ISA(table, shortlist_select) {
            assert_int_equal(table->shortlist_select(scores, errors, norms, n, a, b, threshold, list), all);
            same(table->isa, "select", expected, list, (size_t)all * 4);
            int alone = ref->shortlist_select(scores, NULL, NULL, n, 0.0f, 0.0f, threshold, expected);
            assert_int_equal(table->shortlist_select(scores, NULL, NULL, n, 0.0f, 0.0f, threshold, list), alone);
            same(table->isa, "select of scores", expected, list, (size_t)alone * 4);
            ref->shortlist_select(scores, errors, norms, n, a, b, threshold, expected);
        }
    }
}

/* ---- the planes ---- */

/* kind: 0 gaussian, 1 a few huge ones, 2 zero, 3 tiny, 4 NaN, 5 infinity, 6 too large, 7 too small, 8 one value all over */
static void check_pack(int64_t k, int kind, bool at_end) {
    const setun_kernels *ref = setun_isa_table(0);
    int64_t padded = (k + 255) / 256 * 256;
    size_t stride = (size_t)((padded + 511) / 512 * 16);
    float *w = take(&rooms[0], (size_t)padded * 4, at_end);
    for (int64_t i = 0; i < padded; i++) {
        float v = gaussian() * 0.02f;
        if (kind == 1 && next_random() % 50 == 0) v *= 1000.0f;
        if (kind == 2) v = 0.0f;
        if (kind == 3) v *= 0x1p-20f;
        if (kind == 6) v = (0.5f + fabsf(uniform())) * 0x1p+50f;
        if (kind == 7) v = (0.5f + fabsf(uniform())) * 0x1p-80f;
        if (kind == 8) v = -0.3f;
        w[i] = i < k ? v : 0.0f;
    }
    if (kind == 4 || kind == 5) w[next_random() % (uint64_t)k] = kind == 4 ? NAN : -INFINITY;
    uint8_t *first[2], *second[2], *fifth[2], *sixth[2], *scales[2];
    float numbers[2][7];
    for (int i = 0; i < 2; i++) {
        first[i] = take(&rooms[1 + i], (size_t)padded / 4, at_end);
        second[i] = take(&rooms[9 + i], (size_t)padded / 4, at_end);
        fifth[i] = take(&rooms[3 + i], 4 * stride, at_end);
        scales[i] = take(&rooms[5 + i], stride, at_end);
        sixth[i] = take(&rooms[7 + i], 4 * stride, at_end);
    }
    ref->shortlist_pack(w, k, padded, first[0], second[0], fifth[0], sixth[0], scales[0], numbers[0]);
    EACH_ISA(table, shortlist_pack) {
        memset(first[1], 0xa5, (size_t)padded / 4);
        memset(second[1], 0xa5, (size_t)padded / 4);
        memset(fifth[1], 0xa5, 4 * stride);
        memset(sixth[1], 0xa5, 4 * stride);
        memset(scales[1], 0xa5, stride);
        table->shortlist_pack(w, k, padded, first[1], second[1], fifth[1], sixth[1], scales[1], numbers[1]);
        same(table->isa, "first plane", first[0], first[1], (size_t)padded / 4);
        same(table->isa, "second plane", second[0], second[1], (size_t)padded / 4);
        same(table->isa, "fifth bits", fifth[0], fifth[1], 4 * stride);
        same(table->isa, "sixth bits", sixth[0], sixth[1], 4 * stride);
        same(table->isa, "scales", scales[0], scales[1], stride);
        same(table->isa, "numbers", numbers[0], numbers[1], sizeof numbers[0]);
    }
    double error2 = 0, across = 0, error4 = 0, error5 = 0, error6 = 0, norm = 0, norm6 = 0;
    for (int64_t i = 0; i < k; i++) {
        int place = (int)(i / 256 * 64 + i % 64), shift = (int)(i % 256 / 64 * 2), h2 = first[0][place] >> shift & 3, h = 4 * h2 + (second[0][place] >> shift & 3), m = fifth[0][i / 512 * 64 + i % 64] >> (i % 512 / 64) & 1, l = sixth[0][i / 512 * 64 + i % 64] >> (i % 512 / 64) & 1;
        double step = (double)numbers[0][0] * scales[0][i / 512 * 16 + i % 64 / 4], w4 = step * (h - 7.5), w5 = step * (4 * h + 2 * m - 31) / 4, w6 = step * (4 * h + 2 * m + l - 31.5) / 4;
        double w2 = (double)numbers[0][5] * scales[0][i / 512 * 16 + i % 64 / 4] * (h2 - 1.5);
        error2 += (w[i] - w2) * (w[i] - w2);
        across += (w[i] - w2) * w[i];
        error4 += (w[i] - w4) * (w[i] - w4);
        error5 += (w[i] - w5) * (w[i] - w5);
        error6 += (w[i] - w6) * (w[i] - w6);
        norm += (double)w[i] * w[i];
        norm6 += w6 * w6;
        /* No code stands further than half a step from what it means, but for the rounding of floats. */
        if (!isinf(numbers[0][1])) assert_true(fabs(w[i] - w6) <= step / 8 * 1.0001);
    }
    if (kind == 3 && norm < 0x1p-59) return; /* one or two tiny columns: left to the exact product, too */
    if (kind >= 4 && kind <= 7) {
        for (int i = 1; i < 5; i++) assert_true(isinf(numbers[0][i]));
        assert_true(numbers[0][0] == 0.0f && numbers[0][5] == 0.0f && isinf(numbers[0][6]));
        return;
    }
    assert_true(sqrt(error4) <= numbers[0][1] && sqrt(error5) <= numbers[0][2] && sqrt(error6) <= numbers[0][3] && sqrt(norm) <= numbers[0][4] && sqrt(norm6) <= numbers[0][4]);
    if (kind != 2) { /* of 2 bits: the error is what it is said to be, and across the row */
        assert_true(fabs(error2 - (double)numbers[0][6] * numbers[0][6]) <= norm * 1e-4);
        assert_true(fabs(across) <= norm * 1e-4);
    }
    if (kind == 0 && k > 200) assert_true(numbers[0][6] < sqrt(norm) * 0.6);
    if (kind == 0 && k > 200) assert_true(numbers[0][3] < sqrt(norm) * 0.03 && numbers[0][2] < sqrt(norm) * 0.06 && numbers[0][1] < sqrt(norm) * 0.12); /* useful, too */
    if (kind == 2) assert_true(numbers[0][1] == 0.0f && numbers[0][2] == 0.0f && numbers[0][3] == 0.0f);
}

static void test_pack(void **unused) {
    (void)unused;
    static const int64_t widths[] = {1, 15, 16, 17, 64, 250, 256, 257, 511, 512, 513, 576, 768, 1000, 1024, 2560, 6912};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int kind = 0; kind <= 8; kind++) check_pack(widths[w], kind, (w + (size_t)kind) % 2);
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    state = seed * 2654435769u + 88172645463325252ull;
    print_message("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scores), cmocka_unit_test(test_select), cmocka_unit_test(test_pack)};
    return cmocka_run_group_tests(tests, create_rooms, destroy_rooms);
}
