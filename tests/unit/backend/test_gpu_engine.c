/*
 * test_gpu_engine.c - the host engine that runs kernels' text: what it computes at barriers and simdgroup operations in any order, and that it
 * says so when a kernel breaks their rules. The bodies here are small kernels written against the engine itself.
 */
#include "backend/mlx/kernels.h"
#include "backend/mlx/kernels/host_engine.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

#define THREAD (setun_host_here->thread)
#define GROUP (setun_host_here->group.x)

static setun_status run(setun_host_body body, void *out, int groups, int threads, uint64_t seed)
{
    void *outputs[] = {out};
    const int grid[3] = {groups * threads, 2, 1}, group[3] = {threads, 1, 1};
    return setun_host_run("test", body, NULL, outputs, NULL, grid, group, seed);
}

/* Each thread hands its number to the neighbour through threadgroup memory, twice. */
static void neighbours(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)values;
    int *shared = setun_host_shared(GROUP * sizeof(int), 4);
    uint32_t t = THREAD;
    shared[t] = (int)t;
    setun_host_barrier(1);
    int left = shared[(t + 1) % GROUP];
    setun_host_barrier(2);
    shared[t] = left;
    setun_host_barrier(3);
    int *out = outputs[0];
    out[(setun_host_here->position.y * 3 + setun_host_here->position.x) * GROUP + t] = shared[(t + 1) % GROUP];
}

static void barriers(void **unused)
{
    (void)unused;
    for (uint64_t seed = 0; seed < 20; seed++)
        for (int threads = 32; threads <= 1024; threads *= 2) {
            int *out = calloc((size_t)threads * 6, sizeof *out);
            assert_int_equal(run(neighbours, out, 3, threads, seed), SETUN_OK);
            for (int i = 0; i < threads * 6; i++) assert_int_equal(out[i], (i % threads + 2) % threads);
            free(out);
        }
}

static void lanes(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)values;
    uint32_t t = THREAD, lane = t % 32;
    int *out = outputs[0];
    if (setun_host_here->position.y) return; /* a whole group may leave */
    int sum = setun_host_simd_sum_int((int)t, 1);
    float floats = setun_host_simd_sum_float((float)t, 2), most = setun_host_simd_max(-(float)t, 3), other = setun_host_simd_xor((float)lane, 5, 4);
    setun_host_simd_barrier(5);
    out[t] = sum == (int)(t / 32 * 32 * 32 + 496) && floats == (float)sum && most == -(float)(t / 32 * 32) && other == (float)(lane ^ 5);
}

static void simdgroups(void **unused)
{
    (void)unused;
    for (uint64_t seed = 0; seed < 20; seed++) {
        int out[128] = {0};
        assert_int_equal(run(lanes, out, 1, 128, seed), SETUN_OK);
        for (int i = 0; i < 128; i++) assert_int_equal(out[i], 1);
    }
}

/* Without a barrier what a thread sees depends on the order: some shuffle must show it. */
static void no_barrier(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)values;
    int *shared = setun_host_shared(GROUP * sizeof(int), 4), *out = outputs[0];
    shared[THREAD] = (int)THREAD;
    if (!setun_host_here->position.y) out[THREAD] = shared[(THREAD + 1) % GROUP] == (int)((THREAD + 1) % GROUP);
}
static void shuffles_show_races(void **unused)
{
    (void)unused;
    int different = 0, first[64] = {0};
    for (uint64_t seed = 0; seed < 4; seed++) {
        int out[64] = {0};
        assert_int_equal(run(no_barrier, out, 1, 64, seed), SETUN_OK);
        int wrong = 0;
        for (int i = 0; i < 64; i++) wrong += !out[i];
        assert_true(wrong > 0);
        if (seed && memcmp(out, first, sizeof out)) different++;
        memcpy(first, out, sizeof out);
    }
    assert_true(different > 0);
}

/* Barriers at every turn but the one that keeps a quick simdgroup from writing what slow ones still read. */
static void overtaken(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)values;
    int *shared = setun_host_shared(32 * sizeof(int), 4), *out = outputs[0], wrong = 0;
    for (int turn = 0; turn < 8; turn++) {
        int sum = setun_host_simd_sum_int(turn, 1);
        if (THREAD % 32 == 0) shared[THREAD / 32] = sum;
        setun_host_barrier(2);
        for (uint32_t s = 0; s < GROUP / 32; s++) wrong += shared[s] != turn * 32;
    }
    if (wrong) out[0] = 1;
}
static void shuffles_show_overtaking(void **unused)
{
    (void)unused;
    int shown = 0;
    for (uint64_t seed = 1; seed < 33; seed++) {
        int out = 0;
        assert_int_equal(run(overtaken, &out, 1, 128, seed), SETUN_OK);
        shown += out;
    }
    assert_true(shown >= 8);
}

static void one_stays_away(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    if (THREAD != 7) setun_host_barrier(41);
}
static void two_places(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    if (THREAD < 32) setun_host_barrier(51);
    else setun_host_barrier(52);
}
static void a_lane_away(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    if (THREAD % 32 != 3) setun_host_simd_sum_int(1, 61);
}
static void too_much(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    setun_host_shared(20000, 4);
    setun_host_shared(12769, 4);
}
static void unequal(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    setun_host_shared(THREAD == 5 ? 64 : 32, 4);
}
static void past_the_end(const void *const *inputs, void *const *outputs, const int32_t *values)
{
    (void)inputs;
    (void)outputs;
    (void)values;
    volatile uint8_t *shared = setun_host_shared(40, 4);
    if (THREAD == 0) shared[40] = 1;
}

static void rules(void **unused)
{
    (void)unused;
    static const struct { setun_host_body body; const char *says; } broken[] = {
        {one_stays_away, "line 41"}, {two_places, "51 and 52"}, {two_places, "barriers"}, {a_lane_away, "line 61"}, {too_much, "32 KiB"}, {unequal, "different threadgroup memory"},
#if !defined(__SANITIZE_ADDRESS__)
        {past_the_end, "outside its threadgroup memory"},
#endif
    };
    (void)past_the_end;
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++)
        for (uint64_t seed = 0; seed < 3; seed++) {
            setun_status status = run(broken[i].body, NULL, 1, 64, seed);
            assert_int_equal(status, SETUN_ERROR_STATE);
            if (!(i == 1 && seed) && !strstr(setun_error(), broken[i].says)) fail_msg("\"%s\" has no \"%s\"", setun_error(), broken[i].says);
            int out[128] = {0};
            assert_int_equal(run(lanes, out, 1, 128, seed), SETUN_OK); /* and the engine works on */
        }
    const int grids[][6] = {{64, 1, 1, 48, 1, 1}, {65, 1, 1, 64, 1, 1}, {64, 1, 1, 0, 1, 1}, {2048, 1, 1, 2048, 1, 1}, {64, 2, 1, 32, 2, 1}, {-64, 1, 1, 64, 1, 1}};
    for (int i = 0; i < 6; i++) assert_int_equal(setun_host_run("test", lanes, NULL, NULL, NULL, &grids[i][0], &grids[i][3], 0), SETUN_ERROR_ARGUMENT);
}

static void *in_a_thread(void *argument)
{
    int *failures = argument;
    for (int i = 0; i < 50; i++) {
        int out[128] = {0};
        if (run(lanes, out, 1, 128, (uint64_t)i) != SETUN_OK) ++*failures;
        for (int j = 0; j < 128; j++) *failures += !out[j];
    }
    return NULL;
}
static void threads(void **unused)
{
    (void)unused;
    pthread_t thread[4];
    int failures[4] = {0};
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&thread[i], NULL, in_a_thread, &failures[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(failures[i], 0);
    }
}

static void memory(void **unused)
{
    (void)unused;
    setun_gpu_host_trim();
    int64_t before = setun_alloc_live();
    int out[128] = {0};
    for (uint64_t n = 1; n <= 4; n++) {
        setun_alloc_fail_at(n);
        assert_int_equal(run(lanes, out, 1, 128, 0), SETUN_ERROR_MEMORY);
        setun_alloc_fail_at(0);
        assert_int_equal(setun_alloc_live(), before);
    }
    assert_int_equal(run(lanes, out, 1, 128, 0), SETUN_OK);
    uint64_t made = setun_alloc_count();
    assert_int_equal(run(lanes, out, 1, 128, 0), SETUN_OK); /* idle stacks are used again */
    assert_int_equal(setun_alloc_count(), made);
    setun_gpu_host_trim();
    assert_int_equal(setun_alloc_live(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(barriers), cmocka_unit_test(simdgroups), cmocka_unit_test(shuffles_show_races), cmocka_unit_test(shuffles_show_overtaking), cmocka_unit_test(rules), cmocka_unit_test(threads), cmocka_unit_test(memory)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setun_gpu_host_trim();
    return failed;
}
