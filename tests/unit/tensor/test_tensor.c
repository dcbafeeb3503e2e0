/* test_tensor.c - shapes and host tensors. */
#include "tensor/tensor.h"
#include <setjmp.h>
#include <cmocka.h>

static void shapes_are_checked(void **state) {
    (void)state;
    setun_tensor *t;
    assert_int_equal(setun_tensor_create(SETUN_F32, 2, (int64_t[]){3, 5}, &t), SETUN_OK);
    assert_int_equal(setun_tensor_bytes(t), 60);
    assert_int_equal(setun_tensor_rank(t), 2);
    assert_int_equal(setun_tensor_dim(t, 1), 5);
    assert_int_equal(setun_tensor_dim(t, 2), 0);
    assert_int_equal((uintptr_t)setun_tensor_data(t) % 64, 0);
    for (int i = 0; i < 15; i++) assert_true(((float *)setun_tensor_data(t))[i] == 0);
    setun_tensor_destroy(t);
    assert_int_equal(setun_tensor_create((setun_dtype)77, 1, (int64_t[]){3}, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tensor_create(SETUN_F32, 5, (int64_t[]){1, 1, 1, 1, 1}, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tensor_create(SETUN_F32, 1, (int64_t[]){-3}, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tensor_create(SETUN_F32, 2, (int64_t[]){INT64_MAX, 3}, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tensor_create(SETUN_F32, 1, (int64_t[]){INT64_MAX / 2}, &t), SETUN_ERROR_ARGUMENT);
    assert_null(t);
    assert_int_equal(setun_tensor_create(SETUN_F32, 0, NULL, &t), SETUN_OK); /* a scalar */
    assert_int_equal(setun_tensor_bytes(t), 4);
    setun_tensor_destroy(t);
}

static void wrapping_borrows(void **state) {
    (void)state;
    float values[6] = {1, 2, 3, 4, 5, 6};
    setun_tensor *t;
    assert_int_equal(setun_tensor_wrap(SETUN_F32, 1, (int64_t[]){6}, values, &t), SETUN_OK);
    assert_ptr_equal(setun_tensor_data(t), values);
    setun_tensor_destroy(t);
    assert_int_equal(setun_tensor_wrap(SETUN_F32, 1, (int64_t[]){1}, (char *)values + 1, &t), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tensor_wrap(SETUN_F32, 1, (int64_t[]){6}, NULL, &t), SETUN_ERROR_ARGUMENT);
    for (uint64_t n = 1; n <= 2; n++) {
        setun_alloc_fail_at(n);
        assert_int_equal(setun_tensor_create(SETUN_F32, 1, (int64_t[]){6}, &t), SETUN_ERROR_MEMORY);
        setun_alloc_fail_at(0);
        assert_null(t);
    }
    setun_tensor_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shapes_are_checked), cmocka_unit_test(wrapping_borrows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
