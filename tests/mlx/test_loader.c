/*
 * What the loader says where there is no MLX, or the wrong one, and that everything else works without: needs no MLX itself.
 * The fake bridges are made by CMake beside this program.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "backend/mlx/mlx.h"

static setun_context *with_bridge(const char *path) {
    setun_context *context;
    assert_int_equal(setenv("SETUN_MLX_BRIDGE", path, 1), 0);
    assert_int_equal(setun_context_create(NULL, &context), SETUN_OK);
    unsetenv("SETUN_MLX_BRIDGE");
    return context;
}

static void problem(const char *path, const char *text, const char *more) {
    setun_context *context = with_bridge(path);
    const setun_mlx_table *table;
    setun_mlx *mlx;
    assert_int_equal(setun_mlx_library(context, &table), SETUN_ERROR_UNSUPPORTED);
    assert_null(table);
    if (!strstr(setun_error(), text) || !strstr(setun_error(), more)) fail_msg("'%s' has not both '%s' and '%s'", setun_error(), text, more);
    assert_int_equal(setun_mlx_open(context, "mlx", &mlx), SETUN_ERROR_UNSUPPORTED);
    assert_null(mlx);
    /* auto and cpu need none */
    assert_int_equal(setun_device_choose(context, "auto", &mlx), SETUN_OK);
    assert_null(mlx);
    assert_int_equal(setun_device_choose(context, "cpu", &mlx), SETUN_OK);
    assert_null(mlx);
    assert_int_equal(setun_device_choose(context, NULL, &mlx), SETUN_OK);
    assert_null(mlx);
    char *json;
    assert_int_equal(setun_context_describe(context, &json), SETUN_OK);
    assert_non_null(strstr(json, "\"mlx\": {\"found\": false, \"problem\": \"MLX: "));
    setun_free(json);
    setun_context_destroy(context);
}

static void what_is_wrong_is_said(void **state) {
    (void)state;
    problem("/no/such/bridge.so", "SETUN_MLX_BRIDGE=/no/such/bridge.so", "No such file");
    problem(SETUN_TEST_SOURCE "/README.md", "does not load", "./demo --mlx");
    problem(FAKE_FOLDER "/libfake_abi.so", "is not a bridge of this Setun", "build both from one tree");
    problem(FAKE_FOLDER "/libfake_other.so", "was built for MLX 0.32.4, but 0.33.0 is installed", "build the bridge again");
    problem(FAKE_FOLDER "/libfake_old.so", "version 0.32.3 is installed", "0.32.4 or later");
    problem("", "libsetun_mlx", "-DSETUN_MLX_ROOT"); /* looked for beside the program */
}

static void device_names(void **state) {
    (void)state;
    setun_context *context = with_bridge("/no/such/bridge.so");
    static const char *const wrong[] = {"gpu", "CPU", "mlx:", "mlx:gpu:", "mlx:gpu:x", "mlx:gpu:1x", "mlx:gpu:-1", "mlx:gpu:99999", "mlx:cpu:0", "mlxx", "cuda"};
    setun_mlx *mlx;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(setun_mlx_open(context, wrong[i], &mlx), SETUN_ERROR_UNSUPPORTED);
        assert_non_null(strstr(setun_error(), "is unknown; choose auto, cpu, mlx"));
        assert_int_equal(setun_device_choose(context, wrong[i], &mlx), SETUN_ERROR_UNSUPPORTED);
    }
    assert_int_equal(setun_device_choose(context, "mlx:gpu:00000000000000000001", &mlx), SETUN_ERROR_UNSUPPORTED); /* not cut to GPU 0 */
    assert_non_null(strstr(setun_error(), "is unknown"));
    static const char *const right[] = {"mlx", "mlx:gpu", "mlx:gpu:0", "mlx:gpu:17", "mlx:cpu"};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) assert_int_equal(setun_device_choose(context, right[i], &mlx), SETUN_ERROR_UNSUPPORTED);
    setun_context_destroy(context);
}

static void optimal_limits(void **state) {
    (void)state;
    const uint64_t gigabyte = 1u << 30;
    assert_int_equal(setun_mlx_optimal_limit(&(setun_mlx_device){.backend = SETUN_MLX_METAL, .memory_bytes = 64 * gigabyte, .working_set_bytes = 48 * gigabyte}), 48 * gigabyte);
    assert_int_equal(setun_mlx_optimal_limit(&(setun_mlx_device){.backend = SETUN_MLX_METAL, .memory_bytes = 64 * gigabyte}), 48 * gigabyte);
    assert_int_equal(setun_mlx_optimal_limit(&(setun_mlx_device){.backend = SETUN_MLX_CUDA, .memory_bytes = 140 * gigabyte, .free_bytes = 100 * gigabyte}), 95 * gigabyte);
    assert_int_equal(setun_mlx_optimal_limit(&(setun_mlx_device){.backend = SETUN_MLX_CUDA, .memory_bytes = 80 * gigabyte}), 76 * gigabyte);
    assert_int_equal(setun_mlx_optimal_limit(&(setun_mlx_device){.backend = SETUN_MLX_CPU, .memory_bytes = 20 * gigabyte}), 16 * gigabyte);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_wrong_is_said), cmocka_unit_test(device_names), cmocka_unit_test(optimal_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
