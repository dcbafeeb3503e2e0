/*
 * test_check.c - setun_device_check on MLX's CPU: every kernel that plans use is there and gives its text's bits; and it can fail: over a bridge that gives a wrong
 * bit back, or whose kernel does not run, it says which calls differ, by how much, and which did not run.
 */
#include "mlx_test.h"

#include <jansson.h>
#include "backend/mlx/kernels.h"
#include <stdio.h>

static json_t *check(setun_context *c) {
    char *text = NULL;
    if (setun_device_check(c, "mlx:cpu", NULL, NULL, &text) != SETUN_OK) fail_msg("%s", setun_error());
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    if (!root) fail_msg("%s in %s", error.text, text);
    setun_free(text);
    return root;
}
static int number(const json_t *root, const char *key) { return (int)json_integer_value(json_object_get(root, key)); }

static void all_kernels(void **state) {
    (void)state;
    json_t *root = check(context), *one;
    size_t i;
    int seen[SETUN_GPU_KERNEL_COUNT] = {0};
    assert_int_equal(number(root, "checked"), json_array_size(json_object_get(root, "kernels")));
    assert_int_equal(number(root, "same_bits"), number(root, "checked"));
    assert_int_equal(number(root, "failed"), 0);
    json_array_foreach(json_object_get(root, "kernels"), i, one) {
        const setun_gpu_kernel *k = setun_gpu_kernel_find(json_string_value(json_object_get(one, "kernel")));
        assert_non_null(k);
        assert_true(json_is_true(json_object_get(one, "same_bits")));
        seen[k->id]++;
    }
    json_array_foreach(json_object_get(root, "not_checked"), i, one) {
        const setun_gpu_kernel *k = setun_gpu_kernel_find(json_string_value(one));
        assert_non_null(k);
        assert_int_equal(seen[k->id]++, 0);
    }
    for (int k = 0; k < SETUN_GPU_KERNEL_COUNT; k++)
        if (!seen[k]) fail_msg("%s is neither checked nor named as not checked", setun_gpu_kernel_get((setun_gpu_kernel_id)k)->name);
    assert_true(json_number_value(json_object_get(root, "read_bytes_per_second")) > 1e6);
    assert_true(json_number_value(json_object_get(root, "ternary_bytes_per_second")) > 1e3);
    assert_true(json_number_value(json_object_get(root, "call_seconds")) > 0);
    json_decref(root);
    char *text;
    assert_int_equal(setun_device_check(context, "cpu", NULL, NULL, &text), SETUN_ERROR_UNSUPPORTED);
    assert_int_equal(setun_device_check(context, NULL, NULL, NULL, &text), SETUN_ERROR_ARGUMENT);
    setun_mlx_counters c;
    t->counters(&c);
    assert_true(c.kernels == 0 && c.arrays == 0);
}

/* ---- a device that computes wrong ---- */

static const setun_mlx_table *whole;
static int reads, calls;
static setun_status wrong_read(setun_mlx_stream *s, setun_mlx_array *array, void *out, size_t bytes) {
    setun_status status = whole->read(s, array, out, bytes);
    if (status == SETUN_OK && ++reads == 1) ((uint8_t *)out)[0] ^= 1; /* the lowest bit of the first f32 */
    return status;
}
static setun_status wrong_call(setun_mlx_stream *s, setun_mlx_kernel *k, const setun_mlx_call *call, setun_mlx_array **outputs) {
    if (++calls == 3) return SETUN_ERROR_DEVICE;
    return whole->kernel_call(s, k, call, outputs);
}

static void it_can_fail(void **state) {
    (void)state;
    setun_mlx *mlx;
    assert_int_equal(setun_mlx_open(context, "mlx:cpu", &mlx), SETUN_OK);
    whole = mlx->table;
    setun_mlx_table broken = *whole;
    broken.read = wrong_read;
    broken.kernel_call = wrong_call;
    mlx->table = &broken;
    json_t *root = check(context), *one;
    mlx->table = whole;
    assert_int_equal(number(root, "checked") - number(root, "same_bits"), 2);
    assert_int_equal(number(root, "failed"), 1);
    one = json_array_get(json_object_get(root, "kernels"), 0);
    assert_true(json_is_false(json_object_get(one, "same_bits")));
    double error = json_number_value(json_object_get(one, "error"));
    assert_true(error > 0 && error < 1e-6);
    one = json_array_get(json_object_get(root, "kernels"), 2);
    assert_true(json_is_false(json_object_get(one, "same_bits")));
    assert_non_null(strstr(json_string_value(json_object_get(one, "problem")), json_string_value(json_object_get(one, "kernel"))));
    json_decref(root);
}

static bool stop(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)what, (void)total;
    return done < *(uint64_t *)user;
}

static void it_can_be_stopped(void **state) {
    (void)state;
    uint64_t at = 2;
    char *text = (char *)1;
    assert_int_equal(setun_device_check(context, "mlx:cpu", stop, &at, &text), SETUN_ERROR_CANCELLED);
    assert_null(text);
    int64_t live = setun_alloc_live();
    assert_int_equal(setun_device_check(context, "mlx:cpu", stop, &at, &text), SETUN_ERROR_CANCELLED);
    assert_int_equal(setun_alloc_live(), live);
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_kernels), cmocka_unit_test(it_can_fail), cmocka_unit_test(it_can_be_stopped)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return failed;
}
