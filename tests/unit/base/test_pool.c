/* test_pool.c - the worker pool: every index once, barriers that hold, runs from several threads. */
#include "base/thread.h"
#include <pthread.h>
#include <setjmp.h>
#include <cmocka.h>

#define ITEMS 10007
typedef struct job { setun_pool *pool; atomic_int seen[ITEMS]; atomic_int stage[64]; atomic_int wrong; } job;

static void count_range(void *argument, int64_t first, int64_t last, int worker) {
    job *j = argument;
    if (worker < 0 || worker >= setun_pool_size(j->pool)) atomic_fetch_add(&j->wrong, 1);
    for (int64_t i = first; i < last; i++) atomic_fetch_add(&j->seen[i], 1);
}

static void staged(void *argument, int worker, int workers) {
    job *j = argument;
    (void)worker;
    for (int s = 0; s < 64; s++) {
        atomic_fetch_add(&j->stage[s], 1);
        setun_pool_barrier(j->pool);
        if (atomic_load(&j->stage[s]) != workers) atomic_fetch_add(&j->wrong, 1); /* all are here before any goes on */
    }
}

static void every_index_once(void **state) {
    (void)state;
    static job j;
    for (int threads = 1; threads <= 7; threads++) {
        assert_int_equal(setun_pool_create(threads, threads == 2, &j.pool), SETUN_OK);
        assert_int_equal(setun_pool_size(j.pool), threads);
        for (int grain = 1; grain < 3000; grain = grain * 3 + 1) {
            for (int i = 0; i < ITEMS; i++) atomic_store(&j.seen[i], 0);
            setun_pool_for(j.pool, ITEMS, grain, count_range, &j);
            for (int i = 0; i < ITEMS; i++) assert_int_equal(atomic_load(&j.seen[i]), 1);
        }
        setun_pool_for(j.pool, 0, 1, count_range, &j);
        setun_pool_destroy(j.pool);
    }
    assert_int_equal(atomic_load(&j.wrong), 0);
}

static void barriers_hold(void **state) {
    (void)state;
    static job j;
    for (int threads = 1; threads <= 5; threads++) {
        assert_int_equal(setun_pool_create(threads, false, &j.pool), SETUN_OK);
        for (int repeat = 0; repeat < 20; repeat++) {
            for (int s = 0; s < 64; s++) atomic_store(&j.stage[s], 0);
            setun_pool_run(j.pool, staged, &j);
        }
        setun_pool_destroy(j.pool);
    }
    assert_int_equal(atomic_load(&j.wrong), 0);
}

static void *caller(void *argument) {
    job *j = argument;
    for (int i = 0; i < 50; i++) setun_pool_for(j->pool, ITEMS, 1000, count_range, j);
    return NULL;
}

static void several_callers(void **state) {
    (void)state;
    static job j;
    pthread_t threads[4];
    assert_int_equal(setun_pool_create(3, false, &j.pool), SETUN_OK);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, caller, &j), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < ITEMS; i++) assert_int_equal(atomic_load(&j.seen[i]), 200);
    setun_pool_destroy(j.pool);
}

static void absurd_sizes_are_refused(void **state) {
    (void)state;
    setun_pool *pool;
    assert_int_equal(setun_pool_create(0, false, &pool), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_pool_create(1 << 20, false, &pool), SETUN_ERROR_ARGUMENT);
    for (uint64_t n = 1; n <= 2; n++) {
        setun_alloc_fail_at(n);
        assert_int_equal(setun_pool_create(2, false, &pool), SETUN_ERROR_MEMORY);
        setun_alloc_fail_at(0);
    }
    assert_true(setun_cpu_count() >= 1);
    setun_pool_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_index_once), cmocka_unit_test(barriers_hold), cmocka_unit_test(several_callers), cmocka_unit_test(absurd_sizes_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
