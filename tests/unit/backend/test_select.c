/*
 * test_select.c - the choice of kernels: complete at every cap, from the best available overlay, refused with the way out.
 */
#include "backend/cpu/kernels.h"

#include <pthread.h>
#include <setjmp.h>
#include <cmocka.h>

enum { KERNEL_COUNT = 0
#define SETUN_KERNEL(name, ret, params, exactness) + 1
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
};

static int index_of(const char *isa) {
    for (int i = 0; i < setun_isa_count(); i++)
        if (!strcmp(setun_isa_name(i), isa)) return i;
    fail_msg("%s is no ISA of this build", isa);
    return -1;
}

/* Every entry is there and comes from the last available table at or below `cap` that has one. */
static void check_table(const setun_kernels *table, int cap) {
    int seen = 0;
#define SETUN_KERNEL(name, ret, params, exactness) { \
        int from = -1; \
        for (int i = 0; i <= cap; i++) \
            if (setun_isa_available(i) && setun_isa_table(i)->name) from = i; \
        assert_true(from >= 0); \
        assert_true(table->name == setun_isa_table(from)->name); \
        assert_string_equal(table->name##_isa, setun_isa_name(from)); \
        seen++; \
    }
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
    assert_int_equal(seen, KERNEL_COUNT);
}

static void test_every_cap(void **unused) {
    (void)unused;
    assert_string_equal(setun_isa_name(0), "ref");
    assert_true(setun_isa_available(0));
    int best = 0;
    for (int i = 0; i < setun_isa_count(); i++) {
        assert_string_equal(setun_isa_table(i)->isa, setun_isa_name(i));
        const setun_kernels *table = setun_kernels_select(setun_isa_name(i));
        if (setun_isa_available(i)) {
            best = i;
            assert_non_null(table);
            assert_string_equal(table->isa, setun_isa_name(i));
            check_table(table, i);
        } else {
            assert_null(table);
            assert_non_null(strstr(setun_error(), setun_isa_name(i)));
        }
    }
    const setun_kernels *table = setun_kernels_select(NULL);
    assert_non_null(table);
    assert_string_equal(table->isa, setun_isa_name(best));
    check_table(table, setun_isa_count() - 1);
    assert_ptr_equal(setun_kernels_select(""), table); /* an empty SETUN_ISA is none */
}

static void test_unknown_cap(void **unused) {
    (void)unused;
    assert_null(setun_kernels_select("sse9"));
    assert_non_null(strstr(setun_error(), "sse9"));
    for (int i = 0; i < setun_isa_count(); i++) assert_non_null(strstr(setun_error(), setun_isa_name(i)));
    assert_null(setun_kernels_select("AVX2")); /* names are as written */
    assert_null(setun_isa_name(-1));
    assert_null(setun_isa_name(setun_isa_count()));
    assert_false(setun_isa_available(setun_isa_count()));
    assert_null(setun_isa_table(-1));
}

static void test_features(void **unused) {
    (void)unused;
    setun_cpu_features f;
    memset(&f, 0x55, sizeof f); /* whatever was there is gone */
    setun_cpu_detect(&f);
    assert_true(f.name[0] != 0);
    assert_true(strlen(f.name) < sizeof f.name);
#if defined(__x86_64__)
    assert_int_equal(setun_isa_available(index_of("avx2")), f.avx2 && f.fma && f.f16c);
    assert_false(f.neon || f.dotprod);
    assert_true(!f.avx512f || f.avx2);
#if defined(__GNUC__)
    assert_int_equal(f.avx2, __builtin_cpu_supports("avx2") != 0);
    assert_int_equal(f.fma, __builtin_cpu_supports("fma") != 0);
    assert_int_equal(f.avx512f, __builtin_cpu_supports("avx512f") != 0);
    assert_int_equal(f.avx512bw, __builtin_cpu_supports("avx512bw") != 0);
    assert_int_equal(f.avx512vl, __builtin_cpu_supports("avx512vl") != 0);
    assert_int_equal(f.avx512dq, __builtin_cpu_supports("avx512dq") != 0);
    assert_int_equal(f.avx512vnni, __builtin_cpu_supports("avx512vnni") != 0);
    assert_int_equal(f.avx512vbmi, __builtin_cpu_supports("avx512vbmi") != 0);
    assert_int_equal(f.gfni, __builtin_cpu_supports("gfni") != 0);
#endif
#elif defined(__aarch64__)
    assert_true(f.neon);
    assert_int_equal(setun_isa_available(index_of("neon_dotprod")), f.dotprod);
    assert_false(f.avx2 || f.avx512f);
#else
    (void)index_of;
#endif
}

static void *select_best(void *out) {
    *(const setun_kernels **)out = setun_kernels_select(NULL);
    return NULL;
}

/* The tables are built once, whoever comes first; for the thread sanitizer. */
static void test_threads(void **unused) {
    (void)unused;
    pthread_t threads[8];
    const setun_kernels *got[8];
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&threads[i], NULL, select_best, &got[i]), 0);
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 1; i < 8; i++) assert_ptr_equal(got[i], got[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads), cmocka_unit_test(test_every_cap), cmocka_unit_test(test_unknown_cap), cmocka_unit_test(test_features),
    };
    return cmocka_run_group_tests_name("select", tests, NULL, NULL);
}
