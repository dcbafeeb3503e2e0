/* The pool of host buffers: reuse and its counts, limits, alignment, sizes, failing allocations, several threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tensor/pool.h"

static void sizes(void **state) {
    (void)state;
    assert_int_equal(setun_buffers_rounded(0), 4096);
    assert_int_equal(setun_buffers_rounded(4096), 4096);
    assert_int_equal(setun_buffers_rounded(4097), 5120);
    assert_int_equal(setun_buffers_rounded(8192), 8192);
    assert_int_equal(setun_buffers_rounded(16385), 32768); /* whole pages of 16 KiB */
    assert_int_equal(setun_buffers_rounded(65537), 81920);
    assert_int_equal(setun_buffers_rounded(1000000), 1048576);
    assert_int_equal(setun_buffers_rounded(SIZE_MAX), 0);
    unsigned seed = 1;
    for (int i = 0; i < 20000; i++) { /* never smaller, never more than a quarter (and a page) larger, never decreasing */
        seed = seed * 1664525u + 1013904223u;
        size_t bytes = (size_t)(seed >> (seed % 20)) + 4096, block = setun_buffers_rounded(bytes);
        assert_true(block >= bytes && block <= bytes + bytes / 4 + 16384);
        assert_true(setun_buffers_rounded(block) == block && setun_buffers_rounded(bytes + 1) >= block);
    }
}

static void reuse_and_counts(void **state) {
    (void)state;
    setun_buffers *b;
    setun_buffers_stats s;
    assert_int_equal(setun_buffers_create(1 << 20, &b), SETUN_OK);
    void *x, *y, *z;
    assert_int_equal(setun_buffers_take(b, 100000, &x), SETUN_OK);
    assert_int_equal((uintptr_t)x % 16384, 0);
    memset(x, 1, setun_buffers_rounded(100000));
    setun_buffers_give(b, x, 100000);
    assert_int_equal(setun_buffers_take(b, 110000, &y), SETUN_OK); /* the same class */
    assert_ptr_equal(x, y);
    assert_int_equal(setun_buffers_take(b, 50, &z), SETUN_OK);
    assert_int_equal((uintptr_t)z % 64, 0);
    setun_buffers_get(b, &s);
    assert_int_equal(s.made, 2);
    assert_int_equal(s.reused, 1);
    assert_int_equal(s.used_bytes, 114688 + 4096);
    assert_int_equal(s.peak_bytes, 114688 + 4096);
    assert_int_equal(s.idle_bytes, 0);
    setun_buffers_give(b, z, 50);
    setun_buffers_give(b, y, 110000);
    setun_buffers_give(b, NULL, 5);
    setun_buffers_get(b, &s);
    assert_int_equal(s.used_bytes, 0);
    assert_int_equal(s.idle_bytes, 114688 + 4096);
    /* beyond the limit blocks go, the largest first; a block larger than the limit is not kept */
    assert_int_equal(setun_buffers_limit(b, 5000), 1 << 20);
    setun_buffers_get(b, &s);
    assert_int_equal(s.idle_bytes, 4096);
    int64_t live = setun_alloc_live();
    assert_int_equal(setun_buffers_take(b, 100000, &x), SETUN_OK);
    setun_buffers_give(b, x, 100000);
    assert_int_equal(setun_alloc_live(), live);
    assert_int_equal(setun_buffers_limit(b, 0), 5000);
    assert_int_equal(setun_alloc_live(), live - 1);
    assert_int_equal(setun_buffers_take(b, 10, &x), SETUN_OK);
    setun_buffers_give(b, x, 10);
    setun_buffers_get(b, &s);
    assert_int_equal(s.idle_bytes, 0);
    setun_buffers_clear(b);
    assert_int_equal(setun_buffers_take(b, SIZE_MAX - 5, &x), SETUN_ERROR_MEMORY);
    assert_null(x);
    setun_alloc_fail_once(1);
    assert_int_equal(setun_buffers_take(b, 10, &x), SETUN_ERROR_MEMORY);
    setun_alloc_fail_once(0);
    setun_buffers_get(b, &s);
    assert_int_equal(s.used_bytes, 0); /* what failed is not counted as given out */
    setun_buffers_destroy(b);
    setun_buffers_destroy(NULL);
    setun_alloc_fail_once(1);
    assert_int_equal(setun_buffers_create(0, &b), SETUN_ERROR_MEMORY);
    setun_alloc_fail_once(0);
    assert_null(b);
}

static void *hammer(void *argument) {
    setun_buffers *b = argument;
    unsigned seed = (unsigned)(uintptr_t)&seed | 1;
    for (int i = 0; i < 3000; i++) {
        void *x, *y;
        seed = seed * 1664525u + 1013904223u;
        size_t m = seed >> 14, n = seed >> 18;
        if (setun_buffers_take(b, m, &x) != SETUN_OK || setun_buffers_take(b, n, &y) != SETUN_OK) return "no memory";
        memset(x, i, m < 64 ? m : 64);
        memset(y, ~i, n < 64 ? n : 64); /* another block: x keeps its bytes */
        if (m && *(unsigned char *)x != (unsigned char)i) return "one block given out twice";
        setun_buffers_give(b, x, m);
        setun_buffers_give(b, y, n);
    }
    return NULL;
}

static void threads(void **state) {
    (void)state;
    setun_buffers *b;
    assert_int_equal(setun_buffers_create(1 << 20, &b), SETUN_OK);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&t[i], NULL, hammer, b), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong;
        assert_int_equal(pthread_join(t[i], &wrong), 0);
        if (wrong) fail_msg("%s", (char *)wrong);
    }
    setun_buffers_stats s;
    setun_buffers_get(b, &s);
    assert_int_equal(s.used_bytes, 0);
    assert_int_equal(s.made + s.reused, 4 * 6000);
    assert_true(s.reused > s.made && s.idle_bytes <= 1 << 20);
    setun_buffers_destroy(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes), cmocka_unit_test(reuse_and_counts), cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
