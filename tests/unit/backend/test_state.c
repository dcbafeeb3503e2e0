/*
 * test_state.c - what a run needs besides its plan: the KV cache's sizes and refusals; and the sin and cos of the rotations.
 */
#include "backend/cpu/cpu.h"
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <cmocka.h>

static void sincos_is_close(void **state)
{
    (void)state;
    double worst = 0;
    uint32_t seed = 99;
    for (int i = 0; i < 300000; i++) {
        seed = seed * 1664525u + 1013904223u;
        double angle = ((double)seed / 4294967296.0 - 0.5) * (i % 3 == 0 ? 2e6 : i % 3 == 1 ? 8.0 : 5000.0), s, c;
        cpu_sincos(angle, &s, &c);
        worst = fmax(worst, fmax(fabs(s - sin(angle)), fabs(c - cos(angle))));
    }
    print_message("sin and cos differ from the C library's by %.2e at most\n", worst);
    assert_true(worst < 3e-16);
    double s, c;
    cpu_sincos(0.0, &s, &c);
    assert_true(s == 0.0 && c == 1.0);
    cpu_sincos(3e7, &s, &c); /* beyond the reduction: the library's */
    assert_true(s == sin(3e7) && c == cos(3e7));
    cpu_sincos(NAN, &s, &c);
    assert_true(isnan(s) && isnan(c));
    cpu_sincos(INFINITY, &s, &c);
    assert_true(isnan(s));
}

static void cache_sizes(void **state)
{
    (void)state;
    setun_kv_cache cache;
    int64_t live = setun_alloc_live();
    assert_int_equal(setun_kv_cache_create(3, 2, 5, 7, SETUN_F16, &cache), SETUN_OK);
    assert_int_equal(cache.bytes % 64, 0);
    assert_true(cache.bytes >= 2 * 3 * 2 * 5 * 7 * 2);
    assert_int_equal((uintptr_t)cache.k % 64, 0);
    assert_int_equal((uintptr_t)cache.v % 64, 0);
    assert_true(cache.v >= cache.k + 3 * 2 * 5 * 7 * 2);
    memset(cache.k, 1, 3 * 2 * 5 * 7 * 2); /* a sanitizer would object if it were smaller */
    memset(cache.v, 1, 3 * 2 * 5 * 7 * 2);
    setun_kv_cache_destroy(&cache);
    setun_kv_cache_destroy(&cache);
    setun_kv_cache_destroy(NULL);
    assert_int_equal(setun_kv_cache_create(0, 2, 5, 7, SETUN_F16, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(1, 2, 5, -1, SETUN_F16, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(1, 2, 5, 7, SETUN_I8, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(INT_MAX, INT_MAX, INT_MAX, INT_MAX, SETUN_F32, &cache), SETUN_ERROR_ARGUMENT);
    setun_alloc_fail_at(1);
    setun_status status = setun_kv_cache_create(3, 2, 5, 7, SETUN_F32, &cache);
    setun_alloc_fail_at(0);
    assert_int_equal(status, SETUN_ERROR_MEMORY);
    assert_null(cache.k);
    assert_int_equal(setun_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sincos_is_close), cmocka_unit_test(cache_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
