/*
 * test_gpu_tuning.c - the table of group sizes and tiles: that every family's values obey the rules, and the file of measured values.
 */
#include "backend/mlx/kernels.h"

#include <setjmp.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "/tmp/setun-tuning-XXXXXX", path[64];
static int make_folder(void **unused)
{
    (void)unused;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/tuning.json", folder);
    return 0;
}
static int remove_folder(void **unused)
{
    (void)unused;
    unlink(path);
    return rmdir(folder);
}

static void families(void **unused)
{
    (void)unused;
    static const struct { const char *architecture, *name; setun_gpu_family family; } known[] = {
        {"applegpu_g13s", "Apple M1 Pro", SETUN_GPU_M1}, {"applegpu_g14g", NULL, SETUN_GPU_M2}, {"applegpu_g15s", "Apple M3 Max", SETUN_GPU_M3}, {NULL, "Apple M4", SETUN_GPU_M4},
        {"applegpu_g17s", "Apple M5", SETUN_GPU_GENERIC}, {"x", "Apple M10", SETUN_GPU_GENERIC}, {"sm_90", "NVIDIA H200", SETUN_GPU_HOPPER}, {"sm_90a", "NVIDIA H100", SETUN_GPU_HOPPER},
        {"sm_100", "NVIDIA B200", SETUN_GPU_GENERIC}, {"sm_900", "", SETUN_GPU_GENERIC}, {NULL, NULL, SETUN_GPU_GENERIC},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) assert_int_equal(setun_gpu_family_of(known[i].architecture, known[i].name), known[i].family);
    for (int f = 0; f < SETUN_GPU_FAMILY_COUNT; f++) {
        assert_non_null(setun_gpu_family_name((setun_gpu_family)f));
        setun_tuning t, again;
        assert_false(setun_tuning_lookup(NULL, "anything", (setun_gpu_family)f, &t));
        for (int i = 0; i < setun_tuning_field_count(); i++) {
            again = t;
            assert_int_equal(setun_tuning_set(&again, i, setun_tuning_get(&t, i)), SETUN_OK); /* in range, by the rules */
        }
        assert_memory_equal(&t, &again, sizeof t);
    }
    assert_null(setun_gpu_family_name(SETUN_GPU_FAMILY_COUNT));
}

static int field_of(const char *name)
{
    for (int i = 0; i < setun_tuning_field_count(); i++)
        if (!strcmp(setun_tuning_field_name(i), name)) return i;
    fail_msg("no field %s", name);
    return -1;
}

static void fields(void **unused)
{
    (void)unused;
    setun_tuning t, before;
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_M3, &t);
    before = t;
    for (int i = 0; i < setun_tuning_field_count(); i++) {
        int low, high;
        setun_tuning_field_range(i, &low, &high);
        assert_int_equal(setun_tuning_set(&t, i, low - 1), SETUN_ERROR_ARGUMENT);
        assert_int_equal(setun_tuning_set(&t, i, high + 1), SETUN_ERROR_ARGUMENT);
    }
    assert_int_equal(setun_tuning_set(&t, field_of("norm_threads"), 100), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tuning_set(&t, field_of("matvec_token_rows"), 16), SETUN_ERROR_ARGUMENT); /* times 4 tokens: 64 results */
    assert_int_equal(setun_tuning_set(&t, field_of("matmul_rows"), 24), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tuning_set(&t, field_of("attention_threads"), 96 + 1), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tuning_set(&t, setun_tuning_field_count(), 1), SETUN_ERROR_ARGUMENT);
    assert_memory_equal(&t, &before, sizeof t);
    assert_int_equal(setun_tuning_set(&t, field_of("norm_threads"), 128), SETUN_OK);
    assert_int_equal(t.norm_threads, 128);
}

static void stored(void **unused)
{
    (void)unused;
    setun_tuning_store *store = NULL, *back = NULL;
    assert_int_equal(setun_tuning_load(path, &store), SETUN_OK); /* no file: empty */
    setun_tuning t, got;
    assert_false(setun_tuning_lookup(store, "Apple M3 Max", SETUN_GPU_M3, &t));
    t.matvec_rows = 8;
    t.norm_threads = 512;
    assert_int_equal(setun_tuning_put(store, "Apple M3 Max", SETUN_GPU_M3, "with \"quotes\"", &t), SETUN_OK);
    t.matvec_rows = 2;
    assert_int_equal(setun_tuning_put(store, "Another", SETUN_GPU_GENERIC, NULL, &t), SETUN_OK);
    t.matvec_rows = 1;
    assert_int_equal(setun_tuning_put(store, "Another", SETUN_GPU_GENERIC, "again", &t), SETUN_OK);
    assert_int_equal(setun_tuning_save(store, path), SETUN_OK);
    assert_int_equal(setun_tuning_load(path, &back), SETUN_OK);
    assert_true(setun_tuning_lookup(back, "Apple M3 Max", SETUN_GPU_GENERIC, &got));
    assert_int_equal(got.matvec_rows, 8);
    assert_int_equal(got.norm_threads, 512);
    assert_true(setun_tuning_lookup(back, "Another", SETUN_GPU_GENERIC, &got));
    assert_memory_equal(&got, &t, sizeof t);
    assert_false(setun_tuning_lookup(back, "A third", SETUN_GPU_HOPPER, &got));
    setun_tuning hopper;
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_HOPPER, &hopper);
    assert_memory_equal(&got, &hopper, sizeof got);
    t.matvec_tokens = 8;
    t.matvec_token_rows = 16;
    assert_int_equal(setun_tuning_put(store, "Another", SETUN_GPU_GENERIC, NULL, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tuning_put(store, "", SETUN_GPU_GENERIC, NULL, &hopper), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tuning_save(store, "/nowhere/at/all.json"), SETUN_ERROR_IO);
    setun_tuning_destroy(store);
    setun_tuning_destroy(back);
    setun_tuning_destroy(NULL);
}

static setun_status load_text(const char *text)
{
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    setun_tuning_store *store = NULL;
    setun_status status = setun_tuning_load(path, &store);
    assert_true((status == SETUN_OK) == (store != NULL));
    setun_tuning_destroy(store);
    return status;
}

static void bad_files(void **unused)
{
    (void)unused;
#define DEVICE(values) "{\"setun_tuning\": 1, \"devices\": [{\"device\": \"d\", \"family\": \"m1\", \"values\": {" values "}}]}"
    assert_int_equal(load_text(DEVICE("")), SETUN_OK);
    assert_int_equal(load_text(DEVICE("\"matvec_rows\": 8, \"norm_threads\": 96")), SETUN_OK);
    static const struct { const char *text, *says; setun_status status; } bad[] = {
        {"", "line", SETUN_ERROR_FORMAT}, {"{", "line", SETUN_ERROR_FORMAT}, {"[]", "not a tuning file", SETUN_ERROR_FORMAT}, {"{\"setun_tuning\": 1}", "not a tuning file", SETUN_ERROR_FORMAT},
        {"{\"setun_tuning\": 2, \"devices\": []}", "version 2", SETUN_ERROR_UNSUPPORTED},
        {"{\"setun_tuning\": 1, \"devices\": [{\"device\": \"d\"}]}", "needs", SETUN_ERROR_FORMAT},
        {"{\"setun_tuning\": 1, \"devices\": [{\"device\": \"d\", \"family\": \"m9\", \"values\": {}}]}", "m9", SETUN_ERROR_FORMAT},
        {DEVICE("\"matvec_rows\": 99"), "matvec_rows", SETUN_ERROR_FORMAT}, {DEVICE("\"matvec_rows\": \"4\""), "matvec_rows", SETUN_ERROR_FORMAT}, {DEVICE("\"matvec_rows\": 4294967300"), "matvec_rows", SETUN_ERROR_FORMAT},
        {DEVICE("\"norm_threads\": 100"), "multiple of 32", SETUN_ERROR_FORMAT}, {DEVICE("\"color\": 1"), "color", SETUN_ERROR_FORMAT},
        {DEVICE("\"matvec_token_rows\": 16"), "over 32", SETUN_ERROR_FORMAT},
        {"{\"setun_tuning\": 1, \"devices\": [{\"device\": \"d\", \"family\": \"m1\", \"values\": {}}, {\"device\": \"d\", \"family\": \"m1\", \"values\": {}}]}", "twice", SETUN_ERROR_FORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        setun_status status = load_text(bad[i].text);
        if (status != bad[i].status || !strstr(setun_error(), bad[i].says) || !strstr(setun_error(), path)) fail_msg("%s: status %d, \"%s\"", bad[i].text, (int)status, setun_error());
    }
    assert_int_equal(setun_tuning_load(folder, &(setun_tuning_store *){NULL}), SETUN_ERROR_IO); /* a folder */
    unlink(path);
}

static void memory(void **unused)
{
    (void)unused;
    assert_int_equal(load_text(DEVICE("\"matvec_rows\": 8")), SETUN_OK);
    FILE *f = fopen(path, "w");
    fputs(DEVICE("\"matvec_rows\": 8"), f);
    fclose(f);
    int64_t before = setun_alloc_live();
    setun_status status = SETUN_ERROR_MEMORY;
    for (uint64_t n = 1; status != SETUN_OK && n < 20; n++) {
        setun_tuning_store *store = NULL;
        setun_alloc_fail_at(n);
        status = setun_tuning_load(path, &store);
        setun_alloc_fail_at(0);
        assert_true(status == SETUN_OK || status == SETUN_ERROR_MEMORY);
        setun_tuning_destroy(store);
        assert_int_equal(setun_alloc_live(), before);
    }
    assert_int_equal(status, SETUN_OK);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(families), cmocka_unit_test(fields), cmocka_unit_test(stored), cmocka_unit_test(bad_files), cmocka_unit_test(memory)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
