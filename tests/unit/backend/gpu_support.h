/*
 * gpu_support.h - what the tests of the GPU kernels share: random numbers, arrays between pages that fault when touched, calls of the host form.
 * Every array lies against a guard page, at its end or its beginning, aligned to its element only (codes and int8 rows: to 16 and 4
 * bytes, as the kernels ask). Every call is run with threads in order and with several shuffles. SETUN_TEST_SEED=n repeats a run.
 */
#ifndef SETUN_TEST_GPU_SUPPORT_H
#define SETUN_TEST_GPU_SUPPORT_H

#include "backend/cpu/kernels.h"
#include "backend/mlx/kernels.h"
#include "ternary/ternary.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#pragma GCC diagnostic ignored "-Wunused-function"

static uint64_t seed, state;

static uint32_t next_random(void) /* xorshift64*, Vigna 2014 */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}
static int random_between(int low, int high) { return low + (int)(next_random() % (uint32_t)(high - low + 1)); }
/* Magnitudes from 2^-8 to 2^8; or, in half of the arrays, all about 1, where the order of additions shows in the sum's last bits. */
static bool even_magnitudes;
static float random_float(void)
{
    float f = (float)(int32_t)next_random() / 2147483648.0f;
    return even_magnitudes ? f : ldexpf(f, (int)(next_random() % 17) - 8);
}

static int seed_tests(void **unused)
{
    (void)unused;
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    printf("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    return 0;
}

/* ---- arrays against guard pages; all are freed by free_arrays ---- */

typedef struct array { uint8_t *base; size_t mapped; } array;
static array arrays[64];
static int array_count;

static void *array_of(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    if (!room) room = page;
    assert_true(array_count < 64);
    uint8_t *base = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    assert_int_equal(mprotect(base + page, room, PROT_READ | PROT_WRITE), 0);
    memset(base + page, 0x5b, room);
    arrays[array_count++] = (array){base, room + 2 * page};
    return next_random() % 3 ? base + page + room - bytes : base + page; /* most overruns are at the end */
}
static void free_arrays(void)
{
    while (array_count > 0) {
        array_count--;
        munmap(arrays[array_count].base, arrays[array_count].mapped);
    }
}

/* ---- values of a dtype ---- */

static const int dtypes[3] = {SETUN_F32, SETUN_F16, SETUN_BF16};
static size_t bytes_of(int dtype) { return dtype == SETUN_F32 ? 4 : 2; }
static float load_value(const void *values, int dtype, size_t i)
{
    if (dtype == SETUN_F32) return ((const float *)values)[i];
    uint16_t h = ((const uint16_t *)values)[i];
    return dtype == SETUN_F16 ? setun_f16_to_f32(h) : setun_bf16_to_f32(h);
}
static void store_value(void *values, int dtype, size_t i, float v)
{
    if (dtype == SETUN_F32) ((float *)values)[i] = v;
    else ((uint16_t *)values)[i] = dtype == SETUN_F16 ? setun_f32_to_f16(v) : setun_f32_to_bf16(v);
}
/* Random values of a dtype and the same as f32, which every dtype holds exactly. */
static void *random_values(int dtype, size_t n, float **out_f32)
{
    void *values = array_of(n * bytes_of(dtype));
    even_magnitudes = next_random() % 2;
    for (size_t i = 0; i < n; i++) store_value(values, dtype, i, random_float());
    if (out_f32) {
        *out_f32 = array_of(n * 4);
        for (size_t i = 0; i < n; i++) (*out_f32)[i] = load_value(values, dtype, i);
    }
    return values;
}
static float *random_floats(size_t n)
{
    return random_values(SETUN_F32, n, NULL);
}
static void *stored_as(int dtype, const float *v, size_t n) /* v as a kernel should have written it */
{
    void *values = array_of(n * bytes_of(dtype));
    for (size_t i = 0; i < n; i++) store_value(values, dtype, i, v[i]);
    return values;
}
static int32_t *ints(int n, const int32_t *values)
{
    int32_t *a = array_of((size_t)n * 4);
    memcpy(a, values, (size_t)n * 4);
    return a;
}
#define INTS(...) ints((int)(sizeof (int32_t[]){__VA_ARGS__} / 4), (int32_t[]){__VA_ARGS__})
static float *floats(int n, const float *values)
{
    float *a = array_of((size_t)n * 4);
    memcpy(a, values, (size_t)n * 4);
    return a;
}
#define FLOATS(...) floats((int)(sizeof (float[]){__VA_ARGS__} / 4), (float[]){__VA_ARGS__})

/* ---- packed codes ---- */

static uint8_t *random_codes(int rows, int columns)
{
    size_t row_bytes = (size_t)setun_packed_row_bytes(columns);
    uint8_t *codes = array_of((size_t)rows * row_bytes), *unpacked = setun_alloc((size_t)columns);
    int constant = next_random() % 8 ? -1 : random_between(0, 2);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) unpacked[c] = (uint8_t)(constant >= 0 ? constant : random_between(0, 2));
        setun_pack_row(unpacked, columns, codes + (size_t)r * row_bytes);
    }
    setun_free(unpacked);
    return codes;
}

/* ---- calls ---- */

typedef struct call {
    const setun_gpu_kernel *kernel;
    const int32_t *values;      /* template arguments, in order */
    const void *const *inputs;
    void *const *outputs;
    int64_t extent[4];
    int threads;
} call;

static void run_call(const call *c, uint64_t order, bool float_dot)
{
    setun_mlx_host_call h = {.inputs = c->inputs, .outputs = c->outputs, .input_count = c->kernel->input_count, .output_count = c->kernel->output_count,
                             .parameters = c->values, .parameter_bytes = (size_t)c->kernel->parameter_count * 4, .user = (void *)(uintptr_t)c->kernel};
    if (setun_gpu_grid(c->kernel, c->values, c->extent, c->threads, h.grid, h.group) != SETUN_OK) fail_msg("%s: %s; SETUN_TEST_SEED=%llu", c->kernel->name, setun_error(), (unsigned long long)seed);
    const setun_gpu_host_options options = {.seed = order, .float_dot = float_dot};
    if (setun_gpu_host_run_with(&h, &options) != 0) fail_msg("%s: %s; SETUN_TEST_SEED=%llu", c->kernel->name, setun_error(), (unsigned long long)seed);
}

static void same(const char *kernel, const char *what, const void *expected, const void *got, size_t count, size_t size)
{
    if (!memcmp(expected, got, count * size)) return;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *e = (const uint8_t *)expected + i * size, *g = (const uint8_t *)got + i * size;
        if (memcmp(e, g, size)) {
            uint32_t ev = 0, gv = 0;
            memcpy(&ev, e, size);
            memcpy(&gv, g, size);
            fail_msg("%s (%s): element %zu of %zu is %08x, ref has %08x; SETUN_TEST_SEED=%llu", kernel, what, i, count, gv, ev, (unsigned long long)seed);
        }
    }
}

/* Runs in order and with three shuffles; after each, every output must be the expected bytes. */
typedef struct expected { const void *values; size_t count, size; } expected;
static void check_call(const call *c, const char *what, const expected *e)
{
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < c->kernel->output_count; i++) memset(c->outputs[i], 0x77, e[i].count * e[i].size);
        run_call(c, turn == 0 ? 0 : (uint64_t)next_random() | 1, turn & 1);
        for (int i = 0; i < c->kernel->output_count; i++)
            if (e[i].values) same(c->kernel->name, what, e[i].values, c->outputs[i], e[i].count, e[i].size);
    }
}

#define KERNEL(name) setun_gpu_kernel_get(SETUN_GPU_##name)
#define CALL(kernel_, values_, inputs_, outputs_, threads_, ...) \
    (call){.kernel = KERNEL(kernel_), .values = (values_), .inputs = (inputs_), .outputs = (outputs_), .extent = {__VA_ARGS__}, .threads = (threads_)}

#endif
