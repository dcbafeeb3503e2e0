/* Tensors, streams and devices without MLX: the common cases on "cpu", the context's pool, devices by name, host tensors to DLPack. */
#include "tensor_cases.h"
#include "base/base.h"

static void the_pool(void **state) {
    (void)state;
    setun_device_memory m = {.size = sizeof m}, n = m;
    ok(setun_device_clear_cache(context, "cpu"));
    ok(setun_device_get_memory(context, "cpu", &m));
    for (int i = 0; i < 10; i++) {
        setun_tensor *a;
        ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(1000, 100 + i), NULL, &a));
        setun_tensor_destroy(a);
    }
    ok(setun_device_get_memory(context, "cpu", &n));
    assert_int_equal(n.buffers_made - m.buffers_made, 1); /* ten tensors, one block */
    assert_int_equal(n.buffers_reused - m.buffers_reused, 9);
    assert_true(n.cache_bytes >= 400000 && n.active_bytes == m.active_bytes);
    uint64_t before;
    ok(setun_device_set_limit(context, "cpu", SETUN_LIMIT_CACHE, 0, &before));
    assert_int_equal(before, n.limit_bytes);
    ok(setun_device_get_memory(context, "cpu", &n));
    assert_int_equal(n.cache_bytes, 0);
    ok(setun_device_set_limit(context, "cpu", SETUN_LIMIT_CACHE, before, NULL));
    fails(setun_device_set_limit(context, "cpu", SETUN_LIMIT_MEMORY, 1, &before), SETUN_ERROR_UNSUPPORTED, "cache only");
    fails(setun_device_set_limit(context, "cpu", (setun_limit)9, 1, &before), SETUN_ERROR_ARGUMENT, "limit 9");
    fails(setun_device_set_limit(context, "cpu", SETUN_LIMIT_CACHE, SETUN_LIMIT_OPTIMAL, &before), SETUN_ERROR_ARGUMENT, "no optimal limit");
    fails(setun_device_set_compile(context, "cpu", true), SETUN_ERROR_UNSUPPORTED, "nothing to compile");
}

static void devices(void **state) {
    (void)state;
    int count;
    const char *name;
    ok(setun_context_device_count(context, &count));
    assert_true(count >= 1);
    ok(setun_context_device_name(context, 0, &name));
    assert_string_equal(name, "cpu");
    fails(setun_context_device_name(context, count, &name), SETUN_ERROR_ARGUMENT, "there are");
    assert_null(name);
    fails(setun_context_device_name(context, -1, &name), SETUN_ERROR_ARGUMENT, "device -1");
    setun_device_info info = {.size = sizeof info};
    ok(setun_device_get_info(context, "cpu", &info));
    assert_string_equal(info.id, "cpu");
    assert_string_equal(info.architecture, setun_context_isa(context));
    assert_true(info.memory_bytes > 0 && info.optimal_limit_bytes < info.memory_bytes && info.cores > 0 && info.shares_memory && !info.compiles);
    struct { setun_device_info info; char after[8]; } smaller = {.after = "guard"}; /* an older caller's struct */
    smaller.info.size = offsetof(setun_device_info, memory_bytes);
    ok(setun_device_get_info(context, "cpu", &smaller.info));
    assert_true(smaller.info.memory_bytes == 0 && !strcmp(smaller.info.id, "cpu") && !strcmp(smaller.after, "guard"));
    ok(setun_context_set_device(context, "cpu"));
    ok(setun_context_get_device(context, &name));
    assert_string_equal(name, "cpu");
    fails(setun_context_set_device(context, "abacus"), SETUN_ERROR_UNSUPPORTED, "unknown");
    ok(setun_context_get_device(context, &name)); /* unchanged */
    assert_string_equal(name, "cpu");
    ok(setun_context_set_device(context, NULL));
    ok(setun_context_set_device(context, "auto"));
    ok(setun_context_get_device(context, &name));
    assert_non_null(name);
}

/* Plain tensors, without any stream: a reference more than the caller's, strides, borrowed memory. */
static void host_tensors(void **state) {
    (void)state;
    setun_tensor *a, *b;
    struct DLManagedTensor *m;
    ok(setun_tensor_create(SETUN_I32, SHAPE(2, 2), &a));
    ((int32_t *)setun_tensor_data(a))[3] = 42;
    assert_string_equal(setun_tensor_device(a), "cpu");
    assert_null(setun_tensor_stream(a));
    ok(setun_tensor_to_dlpack(a, &m));
    setun_tensor_destroy(a);
    ok(setun_tensor_from_dlpack(NULL, m, &b));
    assert_int_equal(((int32_t *)setun_tensor_data(b))[3], 42);
    int32_t back[4];
    ok(setun_tensor_read(b, back, sizeof back));
    assert_int_equal(back[3], 42);
    setun_tensor_destroy(b);
    int64_t shape[1] = {3}, strides[1] = {-2};
    int gone = 0;
    struct DLManagedTensor reversed = {.data = &back[3], .device_type = 1, .rank = 1, .code = 0, .bits = 32, .lanes = 1, .shape = shape, .strides = strides, .manager = &gone, .deleter = end_dlpack};
    int32_t six[6] = {10, 11, 12, 13, 14, 15};
    reversed.data = &six[5];
    ok(setun_tensor_from_dlpack(NULL, &reversed, &b));
    assert_int_equal(gone, 1); /* copied at once */
    const int32_t *x = setun_tensor_data(b);
    assert_true(x[0] == 15 && x[1] == 13 && x[2] == 11);
    void *array;
    fails(setun_tensor_to_mlx(b, &array), SETUN_ERROR_ARGUMENT, "on \"cpu\"");
    fails(setun_tensor_from_mlx(stream, &x, &a), SETUN_ERROR_ARGUMENT, "of \"cpu\"");
    setun_tensor *c;
    fails(setun_tensor_copy_to(b, stream, SETUN_F32, &c), SETUN_ERROR_UNSUPPORTED, "i32 to f32 on the CPU");
    setun_tensor_destroy(b);
}

static void allocations_fail(void **state) {
    (void)state;
    float x[8] = {0};
    int64_t live = setun_alloc_live();
    for (int n = 1; n < 8; n++) {
        setun_tensor *a = NULL, *b = NULL, *c = NULL;
        setun_stream *s = NULL;
        setun_event *e = NULL;
        struct DLManagedTensor *m = NULL;
        setun_alloc_fail_once((uint64_t)n);
        setun_status status = setun_stream_create(context, "cpu", &s);
        if (status == SETUN_OK) status = setun_stream_record(s, &e);
        if (status == SETUN_OK) status = setun_tensor_create_on(s, SETUN_F32, SHAPE(8), x, &a);
        if (status == SETUN_OK) status = setun_tensor_copy_to(a, s, SETUN_F16, &b);
        if (status == SETUN_OK) status = setun_tensor_to_dlpack(b, &m);
        if (status == SETUN_OK) status = setun_tensor_share_on(s, SETUN_F32, SHAPE(8), x, NULL, NULL, &c, NULL);
        setun_alloc_fail_once(0);
        assert_true(status == SETUN_OK || status == SETUN_ERROR_MEMORY);
        if (m) m->deleter(m);
        setun_tensor_destroy(a);
        setun_tensor_destroy(b);
        setun_tensor_destroy(c);
        setun_event_destroy(e);
        setun_stream_destroy(s);
        ok(setun_device_clear_cache(context, "cpu"));
        assert_int_equal(setun_alloc_live(), live);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {TENSOR_CASES, cmocka_unit_test(the_pool), cmocka_unit_test(devices), cmocka_unit_test(host_tensors), cmocka_unit_test(allocations_fail)};
    device = "cpu";
    if (setun_context_create(NULL, &context) != SETUN_OK || setun_stream_create(context, device, &stream) != SETUN_OK) return 1;
    setun_device_clear_cache(context, "cpu");
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    setun_stream_destroy(stream);
    setun_context_destroy(context);
    return status;
}
