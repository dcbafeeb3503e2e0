/*
 * Host memory as arrays: the same pointer, nothing copied (pointer identity, and the memory that is resident), never written to,
 * kept while any view lives, released once. Strides, offsets, what is refused.
 */
#define _GNU_SOURCE
#include "mlx_test.h"
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static atomic_int ended;
static void end(void *user) { atomic_fetch_add((atomic_int *)user, 1); }

static setun_mlx_region *region(void *base, size_t bytes) {
    setun_mlx_region *r;
    atomic_store(&ended, 0);
    ok(t->region_create(stream, base, bytes, end, &ended, &r));
    return r;
}

/* One page of floats between two that may not be touched. */
static float *guarded(size_t *out_bytes, char **out_whole) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *whole = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(whole != MAP_FAILED);
    float *x = (float *)(whole + page);
    for (size_t i = 0; i < page / 4; i++) x[i] = (float)i;
    assert_int_equal(mprotect(whole, page, PROT_NONE), 0);
    assert_int_equal(mprotect(whole + page, page, PROT_READ), 0);
    assert_int_equal(mprotect(whole + 2 * page, page, PROT_NONE), 0);
    *out_bytes = page;
    *out_whole = whole;
    return x;
}

static void the_same_memory_never_written(void **state) {
    (void)state;
    size_t bytes;
    char *whole;
    float *x = guarded(&bytes, &whole);
    int n = (int)(bytes / 4);
    setun_mlx_region *r = region(x, bytes);
    setun_mlx_counters before, after;
    t->counters(&before);
    const int offsets[] = {0, 4, 8, 12, 64, (int)bytes - 4, (int)bytes}; /* to the last byte; nothing at the end */
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        int count = (int)(bytes - (size_t)offsets[i]) / 4;
        setun_mlx_spec spec = spec_of(SETUN_F32, 1, count);
        setun_mlx_array *a, *sum, *view, *minus;
        bool shared = false;
        ok(t->array_wrap(r, (uint64_t)offsets[i], &spec, NULL, &a, &shared));
        assert_true(shared);
        const void *data;
        ok(t->array_data(a, &data));
        assert_ptr_equal(data, (char *)x + offsets[i]);
        if (!count) {
            t->array_release(a);
            continue;
        }
        ok(op_on(stream, SETUN_MLX_OP_SUM, ARRAYS(a), (asked){INTEGERS(0)}, &sum));
        float total, want = 0;
        ok(t->read(stream, sum, &total, 4));
        for (int j = n - count; j < n; j++) want += (float)j; /* exact in f32: below 2^24 */
        assert_true(total == want);
        ok(op_on(stream, SETUN_MLX_OP_SLICE, ARRAYS(a), (asked){INTEGERS(count / 2, count)}, &view));
        ok(t->eval(stream, &view, 1, true));
        ok(t->array_data(view, &data));
        assert_ptr_equal(data, (char *)x + offsets[i] + count / 2 * 4); /* a view of the view is still the map */
        /* the graph holds the last reference: where MLX reuses an input's memory for the output. The page is read-only */
        ok(op_on(stream, SETUN_MLX_OP_NEGATIVE, ARRAYS(a), (asked){0}, &minus));
        t->array_release(a);
        t->array_release(view);
        t->array_release(sum);
        ok(t->eval(stream, &minus, 1, true));
        ok(t->array_data(minus, &data));
        assert_ptr_not_equal(data, (char *)x + offsets[i]);
        assert_true(((const float *)data)[0] == -(float)(n - count));
        t->array_release(minus);
    }
    t->counters(&after);
    assert_true(after.bytes_shared > before.bytes_shared && after.bytes_copied == before.bytes_copied);
    t->region_release(r);
    ok(t->stream_synchronize(stream));
    assert_int_equal(ended, 1);
    munmap(whole, 3 * bytes);
}

static void views_keep_the_region(void **state) {
    (void)state;
    static float x[64];
    for (int i = 0; i < 64; i++) x[i] = (float)i;
    setun_mlx_region *r = region(x, sizeof x);
    setun_mlx_spec spec = spec_of(SETUN_F32, 2, 4, 4);
    setun_mlx_array *a, *b, *two;
    bool shared;
    ok(t->array_wrap(r, 64, &spec, NULL, &a, &shared));
    ok(t->array_wrap(r, 128, &spec, NULL, &b, &shared));
    t->region_release(r);
    assert_int_equal(ended, 0);
    ok(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(a, b), (asked){0}, &two));
    t->array_release(a);
    t->array_release(b);
    assert_int_equal(ended, 0); /* the graph holds it */
    float back[16];
    ok(t->read(stream, two, back, sizeof back));
    for (int i = 0; i < 16; i++) assert_true(back[i] == (float)(16 + i + 32 + i));
    t->array_release(two);
    ok(t->stream_synchronize(stream));
    assert_int_equal(ended, 1);
    setun_mlx_region *unused = region(x, sizeof x);
    t->region_release(unused);
    assert_int_equal(ended, 1);
    ok(t->region_create(stream, x, sizeof x, NULL, NULL, &unused)); /* nothing to call */
    t->region_release(unused);
}

static void strides(void **state) {
    (void)state;
    static float x[40];
    for (int i = 0; i < 40; i++) x[i] = (float)i;
    setun_mlx_region *r = region(x, sizeof x);
    const struct { int rank, dim[3]; int64_t step[3]; int from; } cases[] = {
        {2, {5, 4, 0}, {8, 1, 0}, 0},  /* rows with a gap */
        {2, {4, 5, 0}, {1, 8, 0}, 3},  /* turned */
        {1, {10, 0, 0}, {4, 0, 0}, 3}, /* every fourth, to the last */
        {2, {3, 4, 0}, {0, 1, 0}, 8},  /* one row three times */
        {3, {2, 1, 4}, {20, 7, 5}, 0}, /* an axis of 1 may have any stride */
        {2, {5, 8, 0}, {8, 1, 0}, 0},  /* dense after all */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setun_mlx_spec spec = {.dtype = SETUN_F32, .rank = cases[i].rank};
        for (int k = 0; k < 3; k++) spec.dim[k] = cases[i].dim[k] ? cases[i].dim[k] : 1;
        setun_mlx_array *a, *twice, *sum;
        bool shared;
        ok(t->array_wrap(r, (uint64_t)cases[i].from * 4, &spec, cases[i].step, &a, &shared));
        ok(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(a, a), (asked){0}, &twice));
        ok(op_on(stream, SETUN_MLX_OP_SUM, ARRAYS(a), (asked){INTEGERS(0)}, &sum));
        int count = (int)(spec.dim[0] * (spec.rank > 1 ? spec.dim[1] : 1) * (spec.rank > 2 ? spec.dim[2] : 1));
        float back[40], once[40], total, want = 0;
        ok(t->read(stream, a, once, (size_t)count * 4));
        ok(t->read(stream, twice, back, (size_t)count * 4));
        ok(t->read(stream, sum, &total, 4));
        int at = 0;
        for (int u = 0; u < spec.dim[0]; u++)
            for (int v = 0; v < (spec.rank > 1 ? spec.dim[1] : 1); v++)
                for (int w = 0; w < (spec.rank > 2 ? spec.dim[2] : 1); w++, at++) {
                    float value = x[cases[i].from + u * cases[i].step[0] + v * cases[i].step[1] + w * cases[i].step[2]];
                    if (once[at] != value || back[at] != 2 * value) fail_msg("case %zu, element %d: %g and %g, not %g and its double", i, at, once[at], back[at], value);
                    want += value;
                }
        assert_true(total == want);
        t->array_release(a);
        t->array_release(twice);
        t->array_release(sum);
    }
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, 4);
    setun_mlx_array *a;
    bool shared;
    fails(t->array_wrap(r, 64, &spec, (int64_t[]){-1}, &a, &shared), SETUN_ERROR_UNSUPPORTED, "backwards");
    fails(t->array_wrap(r, 0, &spec, (int64_t[]){14}, &a, &shared), SETUN_ERROR_ARGUMENT, "of a region of 160");
    fails(t->array_wrap(r, 0, &spec, (int64_t[]){INT64_MAX}, &a, &shared), SETUN_ERROR_ARGUMENT, "overflow");
    fails(t->array_wrap(r, 148, &spec, NULL, &a, &shared), SETUN_ERROR_ARGUMENT, "bytes 148 to 164");
    fails(t->array_wrap(r, UINT64_MAX - 3, &spec, NULL, &a, &shared), SETUN_ERROR_ARGUMENT, "of a region");
    fails(t->array_wrap(r, 2, &spec, NULL, &a, &shared), SETUN_ERROR_ARGUMENT, "multiple");
    fails(t->array_wrap(NULL, 0, &spec, NULL, &a, &shared), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->array_wrap(r, 0, NULL, NULL, &a, &shared), SETUN_ERROR_ARGUMENT, "NULL");
    assert_null(a);
    t->region_release(r);
    fails(t->region_create(stream, NULL, 4, end, &ended, &r), SETUN_ERROR_ARGUMENT, "no memory");
    fails(t->region_create(stream, x, 0, end, &ended, &r), SETUN_ERROR_ARGUMENT, "no memory");
    fails(t->region_create(NULL, x, 4, end, &ended, &r), SETUN_ERROR_ARGUMENT, "stream");
    assert_int_equal(ended, 1); /* a region that never was ends nothing */
}

static long resident(const char *what) { /* kB; -1 where the system does not say */
    char line[256];
    long kilobytes = -1;
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return -1;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, what, strlen(what))) kilobytes = strtol(line + strlen(what), NULL, 10);
    fclose(f);
    return kilobytes;
}

/* A mapped file of 96 MiB as 24 weights: after a product with every one of them the process owns no more memory than before. */
static void a_mapped_file_stays_where_it_is(void **state) {
    (void)state;
    enum { WEIGHTS = 24, ROWS = 1024, COLUMNS = 1024 };
    char path[] = "/tmp/setun-mlx-test-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    unlink(path);
    size_t bytes = (size_t)WEIGHTS * ROWS * COLUMNS * 4;
    static float row[COLUMNS];
    for (int i = 0; i < WEIGHTS * ROWS; i++) {
        for (int j = 0; j < COLUMNS; j += 64) row[j] = (float)((i + j) % 7);
        assert_int_equal(write(file, row, sizeof row), sizeof row);
    }
    char *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    assert_true(map != MAP_FAILED);
    setun_mlx_region *r = region(map, bytes);
    setun_mlx_memory memory;
    t->memory_get(&memory);
    uint64_t active = memory.active_bytes;
    t->peak_reset();
    long own = resident("RssAnon:");
    setun_mlx_array *weights[WEIGHTS], *sums[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++) {
        setun_mlx_spec spec = spec_of(SETUN_F32, 2, ROWS, COLUMNS);
        bool shared;
        ok(t->array_wrap(r, (uint64_t)i * ROWS * COLUMNS * 4, &spec, NULL, &weights[i], &shared));
        assert_true(shared);
        const void *data;
        ok(t->array_data(weights[i], &data));
        assert_ptr_equal(data, map + (size_t)i * ROWS * COLUMNS * 4);
        ok(op_on(stream, SETUN_MLX_OP_SUM, ARRAYS(weights[i]), (asked){INTEGERS(0)}, &sums[i]));
    }
    ok(t->eval(stream, sums, WEIGHTS, true));
    t->memory_get(&memory);
    assert_true(memory.peak_bytes < active + (8u << 20)); /* of 96 MiB */
    long now = resident("RssAnon:");
    if (own >= 0) {
        if (now - own >= 8 << 10) fail_msg("%ld kB more of the process's own memory after reading %zu MiB of weights", now - own, bytes >> 20);
        print_message("96 MiB of mapped weights read: %ld kB more of the process's own memory, MLX's peak %.1f MiB\n", now - own, (double)(memory.peak_bytes - active) / 1048576.0);
    }
    for (int i = 0; i < WEIGHTS; i++) {
        t->array_release(weights[i]);
        t->array_release(sums[i]);
    }
    t->region_release(r);
    ok(t->stream_synchronize(stream));
    assert_int_equal(ended, 1);
    munmap(map, bytes);
    close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_memory_never_written), cmocka_unit_test(views_keep_the_region), cmocka_unit_test(strides), cmocka_unit_test(a_mapped_file_stays_where_it_is)};
    int status = open_mlx();
    if (status) return status;
    status = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return status;
}
