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
        setun_sincos(angle, &s, &c);
        worst = fmax(worst, fmax(fabs(s - sin(angle)), fabs(c - cos(angle))));
    }
    print_message("sin and cos differ from the C library's by %.2e at most\n", worst);
    assert_true(worst < 3e-16);
    double s, c;
    setun_sincos(0.0, &s, &c);
    assert_true(s == 0.0 && c == 1.0);
    setun_sincos(3e7, &s, &c); /* beyond the reduction: the library's */
    assert_true(s == sin(3e7) && c == cos(3e7));
    setun_sincos(NAN, &s, &c);
    assert_true(isnan(s) && isnan(c));
    setun_sincos(INFINITY, &s, &c);
    assert_true(isnan(s));
}

static void cache_sizes(void **state)
{
    (void)state;
    setun_kv_cache cache;
    int64_t live = setun_alloc_live();
    static const struct { setun_dtype type; uint64_t element; int capacity; uint64_t places; } cases[] = {
        {SETUN_F16, 2, 7, 64}, {SETUN_F32, 4, 64, 64}, {SETUN_I8, 1, 65, 128}, {SETUN_F16, 2, 256, 256}, {SETUN_I8, 1, 257, 512}, {SETUN_F32, 4, 70000, 70144}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(setun_kv_cache_create(3, 2, 5, cases[i].capacity, cases[i].type, &cache), SETUN_OK);
        uint64_t factors = cases[i].type == SETUN_I8 ? 8 : 0;
        assert_int_equal(cache.bytes, 3 * 2 * cases[i].places * (2 * 5 * cases[i].element + factors));
        assert_int_equal((uintptr_t)cache.data % 64, 0);
        int ranges = (cases[i].capacity + SETUN_KV_RANGE - 1) / SETUN_KV_RANGE;
        assert_int_equal(cache.range_bytes * (uint64_t)ranges, cache.bytes);
        /* every part is where the one before it ends, and all of it may be written (a sanitizer would object) */
        for (int range = 0; range < ranges; range += ranges > 1 ? ranges - 1 : 1)
            for (int layer = 0; layer < 3; layer++)
                for (int head = 0; head < 2; head++) {
                    uint8_t *keys = setun_kv_keys(&cache, layer, head) + (uint64_t)range * cache.range_bytes;
                    assert_ptr_equal(keys, cache.data + (uint64_t)range * cache.range_bytes + (uint64_t)(layer * 2 + head) * cache.head_bytes);
                    uint64_t half = (uint64_t)cache.places * 5 * cases[i].element;
                    assert_int_equal(setun_kv_values_offset(&cache), half);
                    assert_int_equal(setun_kv_scales_offset(&cache, false), 2 * half);
                    assert_int_equal(cache.head_bytes, factors ? setun_kv_scales_offset(&cache, true) + (uint64_t)cache.places * 4 : 2 * half);
                    memset(keys, 1, (size_t)cache.head_bytes);
                }
        setun_kv_cache_destroy(&cache);
        assert_int_equal(setun_alloc_live(), live);
    }
    setun_kv_cache_destroy(&cache);
    setun_kv_cache_destroy(NULL);
    assert_int_equal(setun_kv_cache_create(0, 2, 5, 7, SETUN_F16, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(1, 2, 5, -1, SETUN_F16, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(1, 2, 5, 7, SETUN_BF16, &cache), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_kv_cache_create(INT_MAX, INT_MAX, INT_MAX, INT_MAX, SETUN_F32, &cache), SETUN_ERROR_ARGUMENT);
    for (int capacity = 7; capacity < 1000000; capacity += 999900) { /* a small block, then one of huge pages */
        setun_alloc_fail_at(1);
        setun_status status = setun_kv_cache_create(3, 2, 5, capacity, SETUN_F32, &cache);
        setun_alloc_fail_at(0);
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_null(cache.data);
    }
    assert_int_equal(setun_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sincos_is_close), cmocka_unit_test(cache_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
