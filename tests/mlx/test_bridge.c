/* The bridge's entries one by one, with what they refuse: table, devices, limits, streams and events, arrays, evaluation. */
#include "mlx_test.h"
#include <stdatomic.h>
#include <unistd.h>

static void the_table(void **state) {
    (void)state;
    assert_int_equal(t->size, sizeof *t);
    assert_int_equal(t->abi, SETUN_MLX_ABI);
    assert_string_equal(t->version(), t->built_for);
    for (int i = 0; i < SETUN_MLX_OP_COUNT; i++) {
        assert_non_null(t->op_name(i));
        for (int j = 0; j < i; j++) assert_string_not_equal(t->op_name(i), t->op_name(j));
    }
    assert_null(t->op_name(-1));
    assert_null(t->op_name(SETUN_MLX_OP_COUNT));
    assert_string_equal(t->op_name(SETUN_MLX_OP_ATTENTION), "scaled_dot_product_attention");
    size_t entries = (sizeof *t - offsetof(setun_mlx_table, version)) / sizeof(void (*)(void));
    assert_true(entries <= 45);
}

static void devices(void **state) {
    (void)state;
    assert_int_equal(t->device_count(false), 1);
    setun_mlx_device d;
    ok(t->device_get(false, 0, &d));
    assert_int_equal(d.backend, SETUN_MLX_CPU);
    assert_true(d.memory_bytes > (1u << 20) && d.cores > 0 && d.shares_memory && !d.compiles && *d.name);
    fails(t->device_get(false, 1, &d), SETUN_ERROR_ARGUMENT, "one CPU device");
    assert_int_equal(d.memory_bytes, 0);
    if (t->device_count(true) == 0) {
        fails(t->device_get(true, 0, &d), SETUN_ERROR_UNSUPPORTED, "without a GPU backend");
        setun_mlx_stream *s;
        fails(t->stream_open(true, 0, &s), SETUN_ERROR_UNSUPPORTED, "without a GPU backend");
        assert_null(s);
    } else fails(t->device_get(true, 999, &d), SETUN_ERROR_UNSUPPORTED, "GPU 999");
}

static void limits_and_memory(void **state) {
    (void)state;
    uint64_t before, again;
    ok(t->limit_set(SETUN_MLX_LIMIT_MEMORY, 123 << 20, &before));
    ok(t->limit_set(SETUN_MLX_LIMIT_MEMORY, before, &again));
    assert_int_equal(again, 123 << 20);
    setun_mlx_memory m;
    t->memory_get(&m);
    assert_int_equal(m.memory_limit_bytes, before);
    ok(t->limit_set(SETUN_MLX_LIMIT_CACHE, 1 << 20, &before));
    ok(t->limit_set(SETUN_MLX_LIMIT_CACHE, before, NULL));
    ok(t->limit_set(SETUN_MLX_LIMIT_WIRED, 1 << 20, &before));
    assert_int_equal(before, 0);
    fails(t->limit_set((setun_mlx_limit)7, 1, &before), SETUN_ERROR_ARGUMENT, "limit 7");
    /* what is alive is counted; a peak is forgotten */
    t->memory_get(&m);
    uint64_t active = m.active_bytes;
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, 1 << 20);
    void *zeros = calloc(1 << 20, 4);
    assert_non_null(zeros);
    setun_mlx_array *a = make(spec, zeros);
    free(zeros);
    t->memory_get(&m);
    assert_true(m.active_bytes >= active + (4u << 20) && m.peak_bytes >= m.active_bytes);
    t->array_release(a);
    t->memory_get(&m);
    assert_true(m.active_bytes < active + (4u << 20));
    t->peak_reset();
    t->memory_get(&m);
    assert_true(m.peak_bytes < (4u << 20));
    ok(t->cache_clear());
    t->memory_get(&m);
    assert_int_equal(m.cache_bytes, 0);
}

static const setun_dtype dtypes[] = {SETUN_F32, SETUN_F16, SETUN_BF16, SETUN_I32, SETUN_I8, SETUN_U8, SETUN_I64, SETUN_U32, SETUN_BOOL, SETUN_I16, SETUN_U16, SETUN_U64, SETUN_F64};

static void arrays_keep_every_bit(void **state) {
    (void)state;
    unsigned char bytes[6 * 8], back[6 * 8];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 37 + 11);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        setun_mlx_spec spec = spec_of(dtypes[i], 2, 2, 3);
        if (dtypes[i] == SETUN_BOOL) memset(bytes, 1, 3);
        setun_mlx_array *a = make(spec, bytes), *copy, *same;
        setun_mlx_array_info info;
        ok(t->array_get(a, &info));
        size_t size = info.bytes;
        assert_int_equal(info.spec.dtype, dtypes[i]);
        assert_int_equal(info.spec.rank, 2);
        assert_int_equal(info.spec.dim[1], 3);
        assert_true(info.evaluated && info.available && info.contiguous);
        assert_int_equal(size, 6 * (dtypes[i] == SETUN_BOOL ? 1 : setun_dtype_bytes(dtypes[i])));
        memset(back, 0, sizeof back);
        ok(t->read(stream, a, back, size));
        assert_memory_equal(back, bytes, size);
        ok(op_on(stream, SETUN_MLX_OP_COPY, ARRAYS(a), (asked){0}, &copy)); /* NaNs and all */
        memset(back, 0, sizeof back);
        ok(t->read(stream, copy, back, size));
        assert_memory_equal(back, bytes, size);
        const void *p, *q;
        ok(t->array_data(a, &p));
        ok(t->eval(stream, &copy, 1, true));
        ok(t->array_data(copy, &q));
        assert_ptr_not_equal(p, q);
        t->array_retain(a, &same);
        t->array_release(a);
        ok(t->array_data(same, &q));
        assert_ptr_equal(p, q);
        fails(t->read(stream, same, back, size + 1), SETUN_ERROR_ARGUMENT, "read: the array has");
        t->array_release(same);
        t->array_release(copy);
    }
    /* no elements, no dimensions, eight dimensions */
    setun_mlx_spec none = spec_of(SETUN_F32, 2, 0, 5), scalar = spec_of(SETUN_I32, 0), deep = spec_of(SETUN_U8, 8, 1, 2, 1, 1, 1, 3, 1, 1);
    setun_mlx_array *a = make(none, NULL);
    ok(t->read(stream, a, NULL, 0));
    t->array_release(a);
    a = make(scalar, &(int32_t){-7});
    int32_t seven = 0;
    ok(t->read(stream, a, &seven, sizeof seven));
    assert_int_equal(seven, -7);
    t->array_release(a);
    a = make(deep, bytes);
    ok(t->read(stream, a, back, 6));
    assert_memory_equal(back, bytes, 6);
    t->array_release(a);
}

static void arrays_refuse(void **state) {
    (void)state;
    setun_mlx_array *a = (setun_mlx_array *)1;
    float x = 0;
    setun_mlx_spec s = spec_of(SETUN_F32, 1, 1);
    s.rank = 9;
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_ARGUMENT, "rank 9");
    assert_null(a);
    s = spec_of(SETUN_F32, 1, -1);
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_ARGUMENT, "dimension 0 is -1");
    s.dim[0] = (int64_t)1 << 31;
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_ARGUMENT, "2^31");
    s = spec_of(SETUN_F32, 3, INT32_MAX, INT32_MAX, INT32_MAX);
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_ARGUMENT, "overflows");
    s = spec_of(SETUN_F32, 2, INT32_MAX, 1 << 20); /* 8 TiB: MLX's allocator would crash */
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_MEMORY, "this machine has");
    s = spec_of((setun_dtype)77, 1, 1);
    fails(t->array_from_host(stream, &s, &x, &a), SETUN_ERROR_ARGUMENT, "dtype 77");
    s = spec_of(SETUN_F32, 1, 1);
    fails(t->array_from_host(stream, &s, NULL, &a), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->array_from_host(stream, NULL, &x, &a), SETUN_ERROR_ARGUMENT, "spec");
    fails(t->array_from_host(NULL, &s, &x, &a), SETUN_ERROR_ARGUMENT, "stream");
    setun_mlx_array_info info;
    fails(t->array_get(NULL, &info), SETUN_ERROR_ARGUMENT, "NULL");
    const void *data;
    fails(t->array_data(NULL, &data), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->read(stream, NULL, &x, 4), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->wait(NULL), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->eval(stream, (setun_mlx_array *[]){NULL}, 1, true), SETUN_ERROR_ARGUMENT, "input 0 is NULL");
    fails(t->eval(NULL, &a, 1, true), SETUN_ERROR_ARGUMENT, "stream");
    ok(t->eval(stream, NULL, 0, true));
    t->array_retain(NULL, &a);
    assert_null(a);
    t->array_release(NULL);
    t->region_release(NULL);
    t->kernel_release(NULL);
    t->function_release(NULL);
    t->stream_close(NULL);
    /* states */
    setun_mlx_array *x1 = vector(4, 1, 2, 3, 4), *sum, *turned;
    ok(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(x1, x1), (asked){0}, &sum));
    ok(t->array_get(sum, &info));
    assert_true(!info.evaluated && !info.available && info.spec.dim[0] == 4);
    fails(t->wait(sum), SETUN_ERROR_STATE, "never given to eval");
    fails(t->array_data(sum, &data), SETUN_ERROR_STATE, "not computed");
    int device, index;
    void *pointer;
    uint64_t offset;
    fails(t->array_device_pointer(sum, &device, &index, &pointer, &offset), SETUN_ERROR_STATE, "not computed");
    ok(t->eval(stream, &sum, 1, false));
    ok(t->wait(sum));
    ok(t->array_data(sum, &data));
    assert_true(((const float *)data)[3] == 8);
    ok(t->array_device_pointer(sum, &device, &index, &pointer, &offset));
    assert_true(device == 1 && pointer == data && offset == 0);
    ok(op_on(stream, SETUN_MLX_OP_RESHAPE, ARRAYS(sum), (asked){INTEGERS(2, 2)}, &a));
    ok(op_on(stream, SETUN_MLX_OP_TRANSPOSE, ARRAYS(a), (asked){0}, &turned));
    t->array_release(a);
    ok(t->eval(stream, &turned, 1, true));
    fails(t->array_data(turned, &data), SETUN_ERROR_STATE, "contiguous");
    float back[4];
    ok(t->read(stream, turned, back, sizeof back)); /* read makes it row-major */
    assert_memory_equal(back, FLOATS(2, 6, 4, 8), sizeof back);
    /* another reference to an MLX array, as a C++ program or mlx-c would hold one */
    void *theirs;
    setun_mlx_array *ours;
    ok(t->array_to_mlx(sum, &theirs));
    ok(t->array_from_mlx(theirs, &ours));
    t->array_release(sum);
    ok(t->read(stream, ours, back, sizeof back));
    assert_memory_equal(back, FLOATS(2, 4, 6, 8), sizeof back);
    fails(t->array_from_mlx(NULL, &a), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->array_to_mlx(NULL, &theirs), SETUN_ERROR_ARGUMENT, "NULL");
    t->array_release(ours);
    t->array_release(x1);
    t->array_release(turned);
}

/* ---- streams and events ---- */
static atomic_int order, first_seen, second_seen;
static int slow(const setun_mlx_host_call *c) {
    (void)c;
    usleep(50000);
    atomic_store(&first_seen, atomic_fetch_add(&order, 1) + 1);
    return 0;
}
static int quick(const setun_mlx_host_call *c) {
    (void)c;
    atomic_store(&second_seen, atomic_fetch_add(&order, 1) + 1);
    return 0;
}

static setun_mlx_array *run_on(setun_mlx_stream *s, setun_mlx_host_fn fn) { /* given to the stream, not waited for */
    setun_mlx_kernel_options o = {.kind = SETUN_MLX_KERNEL_HOST, .name = "probe", .output_count = 1, .host = fn};
    setun_mlx_kernel *k;
    ok(t->kernel_create(&o, &k));
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, 1);
    setun_mlx_call call = {.outputs = &spec, .output_count = 1};
    setun_mlx_array *out;
    ok(t->kernel_call(s, k, &call, &out));
    ok(t->eval(s, &out, 1, false));
    t->kernel_release(k);
    return out;
}

static void streams_and_events(void **state) {
    (void)state;
    setun_mlx_stream *a, *b;
    ok(t->stream_open(false, 0, &a));
    ok(t->stream_open(false, 0, &b));
    setun_mlx_array *event, *x, *y;
    setun_mlx_array_info info;
    for (int linked = 0; linked < 2; linked++) {
        atomic_store(&order, 0);
        x = run_on(a, slow);
        ok(t->event_record(a, &event));
        if (linked) ok(t->event_wait(b, event));
        y = run_on(b, quick);
        ok(t->array_get(event, &info));
        assert_false(info.available); /* the host waited for nothing */
        ok(t->stream_synchronize(b));
        assert_int_equal(second_seen, linked ? 2 : 1);
        ok(t->wait(event));
        assert_int_equal(first_seen, linked ? 1 : 2);
        ok(t->array_get(event, &info));
        assert_true(info.available);
        ok(t->stream_synchronize(a));
        t->array_release(x);
        t->array_release(y);
        t->array_release(event);
    }
    fails(t->event_record(NULL, &event), SETUN_ERROR_ARGUMENT, "stream");
    fails(t->event_wait(a, NULL), SETUN_ERROR_ARGUMENT, "event");
    fails(t->stream_synchronize(NULL), SETUN_ERROR_ARGUMENT, "stream");
    /* a closed stream is used again: MLX would leak a thread for each */
    t->stream_close(a);
    t->stream_close(b);
    setun_mlx_counters before, after;
    t->counters(&before);
    for (int i = 0; i < 50; i++) {
        ok(t->stream_open(false, 0, &a));
        t->stream_close(a);
    }
    t->counters(&after);
    assert_int_equal(before.streams, after.streams);
}

static void nothing_is_left(void **state) {
    (void)state;
    setun_mlx_counters c;
    t->counters(&c);
    assert_int_equal(c.arrays, 0);
    assert_int_equal(c.regions, 0);
    assert_int_equal(c.kernels, 0);
    assert_int_equal(c.functions, 0);
    assert_true(c.operations > 0 && c.evaluations > 0 && c.synchronisations > 0 && c.kernel_calls > 0 && c.host_kernels_run > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table), cmocka_unit_test(devices), cmocka_unit_test(limits_and_memory), cmocka_unit_test(arrays_keep_every_bit),
        cmocka_unit_test(arrays_refuse), cmocka_unit_test(streams_and_events), cmocka_unit_test(nothing_is_left),
    };
    int status = open_mlx();
    if (status) return status;
    status = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return status;
}
