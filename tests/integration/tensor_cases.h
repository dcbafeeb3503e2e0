/*
 * tensor_cases.h - the tests of tensors on streams, for any device: integration_tensors runs them on "cpu", mlx_tensors on MLX's.
 * All through the public header. DLPack's structures are written out here once more: they are an ABI, not Setun's.
 */
#ifndef SETUN_TENSOR_CASES_H
#define SETUN_TENSOR_CASES_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "setun/setun.h"

struct DLManagedTensor {
    void *data;
    int32_t device_type, device_index;
    int32_t rank;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
    void *manager;
    void (*deleter)(struct DLManagedTensor *self);
};

static const char *device; /* that the tests run on */
static setun_context *context;
static setun_stream *stream;

#define ok(call) do { setun_status status_ = (call); if (status_ != SETUN_OK) fail_msg("%s: %s: %s", #call, setun_status_name(status_), setun_error()); } while (0)
#define fails(call, wanted, text) do { setun_status status_ = (call); \
    if (status_ != (wanted) || !strstr(setun_error(), text)) fail_msg("%s: %s '%s' instead of %s with '%s'", #call, setun_status_name(status_), setun_error(), #wanted, text); } while (0)
#define SHAPE(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

static int ended;
static void end(void *user) { *(int *)user += 1; }
static void end_dlpack(struct DLManagedTensor *self) { *(int *)self->manager += 1; }

static void made_copied_read(void **state) {
    (void)state;
    static const setun_dtype dtypes[] = {SETUN_F32, SETUN_F16, SETUN_BF16, SETUN_I32, SETUN_I8, SETUN_U8, SETUN_I64, SETUN_U32, SETUN_BOOL, SETUN_I16, SETUN_U16, SETUN_U64, SETUN_F64};
    unsigned char bytes[48], back[48];
    setun_stream *other, *cpu;
    ok(setun_stream_create(context, device, &other));
    ok(setun_stream_create(context, "cpu", &cpu));
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        for (size_t k = 0; k < sizeof bytes; k++) bytes[k] = dtypes[i] == SETUN_BOOL ? k % 2 : (unsigned char)(k * 31 + i);
        setun_tensor *a, *b, *c, *zeros;
        ok(setun_tensor_create_on(stream, dtypes[i], SHAPE(2, 3), bytes, &a));
        size_t size = setun_tensor_bytes(a);
        assert_int_equal(setun_tensor_dtype(a), dtypes[i]);
        assert_true(setun_tensor_rank(a) == 2 && setun_tensor_dim(a, 0) == 2 && setun_tensor_dim(a, 1) == 3);
        assert_string_equal(setun_tensor_device(a), device);
        assert_ptr_equal(setun_tensor_stream(a), stream);
        ok(setun_tensor_copy_to(a, other, 0, &b)); /* device to device */
        ok(setun_tensor_copy_to(b, cpu, 0, &c));   /* and to the host */
        setun_tensor_destroy(a);
        assert_string_equal(setun_tensor_device(c), "cpu");
        assert_memory_equal(setun_tensor_data(c), bytes, size);
        ok(setun_tensor_read(b, back, size));
        assert_memory_equal(back, bytes, size);
        setun_tensor_destroy(b);
        ok(setun_tensor_copy_to(c, stream, 0, &b)); /* back again */
        memset(back, 0, sizeof back);
        ok(setun_tensor_read(b, back, size));
        assert_memory_equal(back, bytes, size);
        ok(setun_tensor_create_on(stream, dtypes[i], SHAPE(2, 3), NULL, &zeros));
        ok(setun_tensor_read(zeros, back, size));
        for (size_t k = 0; k < size; k++) assert_int_equal(back[k], 0);
        fails(setun_tensor_read(zeros, back, size - 1), SETUN_ERROR_ARGUMENT, "the tensor has");
        setun_tensor_destroy(zeros);
        setun_tensor_destroy(b);
        setun_tensor_destroy(c);
    }
    /* dtypes between floats: exact values */
    setun_tensor *f, *h, *g;
    const float values[4] = {1.5f, -2.0f, 0.0f, 65504.0f};
    ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(4), values, &f));
    for (int to = SETUN_F16; to <= SETUN_BF16; to++) {
        ok(setun_tensor_copy_to(f, other, (setun_dtype)to, &h));
        assert_int_equal(setun_tensor_bytes(h), 8);
        ok(setun_tensor_copy_to(h, cpu, SETUN_F32, &g));
        const float *x = setun_tensor_data(g);
        assert_true(x[0] == 1.5f && x[1] == -2.0f && x[2] == 0.0f && x[3] == (to == SETUN_F16 ? 65504.0f : 65536.0f));
        setun_tensor_destroy(h);
        setun_tensor_destroy(g);
    }
    setun_tensor *empty, *scalar;
    ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(0, 3), NULL, &empty));
    ok(setun_tensor_read(empty, NULL, 0));
    ok(setun_tensor_create_on(stream, SETUN_F32, 0, NULL, values, &scalar));
    float one;
    ok(setun_tensor_read(scalar, &one, 4));
    assert_true(one == 1.5f);
    ok(setun_tensor_evaluate((setun_tensor *[]){empty, scalar, f}, 3, true));
    setun_tensor_destroy(empty);
    setun_tensor_destroy(scalar);
    setun_tensor_destroy(f);
    setun_stream_destroy(other);
    setun_stream_destroy(cpu);
}

static void shared_memory(void **state) {
    (void)state;
    static float values[16384] __attribute__((aligned(16384)));
    for (int i = 0; i < 16384; i++) values[i] = (float)i;
    setun_tensor *a, *copy;
    bool shared = false;
    ended = 0;
    ok(setun_tensor_share_on(stream, SETUN_F32, SHAPE(128, 128), values, end, &ended, &a, &shared));
    setun_device_info info = {.size = sizeof info};
    ok(setun_device_get_info(context, device, &info));
    assert_int_equal(shared, info.shares_memory);
    if (shared) {
        assert_ptr_equal(setun_tensor_data(a), values); /* not a byte was copied */
        assert_int_equal(ended, 0);
    }
    ok(setun_tensor_copy_to(a, stream, 0, &copy));
    setun_tensor_destroy(a);
    float back[16384];
    ok(setun_tensor_read(copy, back, sizeof back));
    assert_memory_equal(back, values, sizeof back);
    setun_tensor_destroy(copy);
    ok(setun_stream_synchronize(stream));
    assert_int_equal(ended, 1);
    ok(setun_tensor_share_on(stream, SETUN_F32, SHAPE(0), values, end, &ended, &a, NULL));
    setun_tensor_destroy(a);
    assert_int_equal(ended, 2);
    ok(setun_tensor_share_on(stream, SETUN_U8, SHAPE(3), values, NULL, NULL, &a, &shared));
    setun_tensor_destroy(a);
    ended = 0; /* what fails lets nothing go */
    fails(setun_tensor_share_on(stream, SETUN_F32, SHAPE(3), (char *)values + 1, end, &ended, &a, &shared), SETUN_ERROR_ARGUMENT, "aligned");
    fails(setun_tensor_share_on(stream, SETUN_F32, SHAPE(3), NULL, end, &ended, &a, &shared), SETUN_ERROR_ARGUMENT, "NULL");
    fails(setun_tensor_share_on(NULL, SETUN_F32, SHAPE(3), values, end, &ended, &a, &shared), SETUN_ERROR_ARGUMENT, "stream is NULL");
    assert_null(a);
    assert_int_equal(ended, 0);
}

static void streams_and_events(void **state) {
    (void)state;
    setun_stream *a, *b;
    setun_event *event;
    setun_tensor *x, *y;
    bool reached;
    ok(setun_stream_create(context, device, &a));
    ok(setun_stream_create(context, device, &b));
    assert_string_equal(setun_stream_device(a), device);
    ok(setun_tensor_create_on(a, SETUN_F32, SHAPE(2), (float[]){3, 4}, &x));
    ok(setun_tensor_copy_to(x, a, SETUN_F16, &y));
    ok(setun_tensor_evaluate(&y, 1, false));
    ok(setun_stream_record(a, &event));
    ok(setun_stream_wait(b, event));
    ok(setun_stream_synchronize(b));
    ok(setun_event_reached(event, &reached)); /* b waited for it */
    assert_true(reached);
    ok(setun_event_wait(event));
    uint16_t halves[2];
    ok(setun_tensor_read(y, halves, sizeof halves));
    assert_true(halves[0] == 0x4200 && halves[1] == 0x4400);
    setun_event_destroy(event);
    setun_event_destroy(NULL);
    setun_tensor_destroy(x);
    setun_tensor_destroy(y);
    setun_stream_destroy(a);
    setun_stream_destroy(b);
    setun_stream_destroy(NULL);
    fails(setun_stream_create(context, device, NULL), SETUN_ERROR_ARGUMENT, "out is NULL");
    fails(setun_stream_create(NULL, device, &a), SETUN_ERROR_ARGUMENT, "context is NULL");
    assert_null(a);
    fails(setun_stream_create(context, "abacus", &a), SETUN_ERROR_UNSUPPORTED, "'abacus' is unknown");
    fails(setun_stream_synchronize(NULL), SETUN_ERROR_ARGUMENT, "stream is NULL");
    fails(setun_stream_record(NULL, &event), SETUN_ERROR_ARGUMENT, "stream is NULL");
    fails(setun_stream_wait(stream, NULL), SETUN_ERROR_ARGUMENT, "event is NULL");
    fails(setun_event_wait(NULL), SETUN_ERROR_ARGUMENT, "event is NULL");
    fails(setun_event_reached(NULL, &reached), SETUN_ERROR_ARGUMENT, "event is NULL");
    assert_string_equal(setun_stream_device(NULL), "");
}

static void refused(void **state) {
    (void)state;
    setun_tensor *a, *b;
    float x[4] = {0};
    fails(setun_tensor_create_on(NULL, SETUN_F32, SHAPE(4), x, &a), SETUN_ERROR_ARGUMENT, "stream is NULL");
    fails(setun_tensor_create_on(stream, SETUN_F32, SHAPE(4), x, NULL), SETUN_ERROR_ARGUMENT, "out is NULL");
    fails(setun_tensor_create_on(stream, (setun_dtype)99, SHAPE(4), x, &a), SETUN_ERROR_ARGUMENT, "dtype 99");
    fails(setun_tensor_create_on(stream, SETUN_F32, SHAPE(-4), x, &a), SETUN_ERROR_ARGUMENT, "-4");
    fails(setun_tensor_create_on(stream, SETUN_F32, 5, (int64_t[5]){1, 1, 1, 1, 1}, x, &a), SETUN_ERROR_ARGUMENT, "rank 5");
    fails(setun_tensor_create_on(stream, SETUN_F32, SHAPE(1 << 30, 1 << 15, 1 << 10), NULL, &a), SETUN_ERROR_MEMORY, ""); /* 128 PiB */
    assert_null(a);
    ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(4), x, &a));
    fails(setun_tensor_copy_to(a, stream, (setun_dtype)99, &b), SETUN_ERROR_ARGUMENT, "dtype 99");
    fails(setun_tensor_copy_to(NULL, stream, 0, &b), SETUN_ERROR_ARGUMENT, "tensor is NULL");
    fails(setun_tensor_copy_to(a, NULL, 0, &b), SETUN_ERROR_ARGUMENT, "stream is NULL");
    fails(setun_tensor_evaluate((setun_tensor *[]){a, NULL}, 2, true), SETUN_ERROR_ARGUMENT, "tensor 1 is NULL");
    fails(setun_tensor_evaluate(NULL, 1, true), SETUN_ERROR_ARGUMENT, "no tensors");
    fails(setun_tensor_read(NULL, x, 4), SETUN_ERROR_ARGUMENT, "tensor is NULL");
    fails(setun_tensor_read(a, NULL, 16), SETUN_ERROR_ARGUMENT, "out is NULL");
    setun_tensor_destroy(a);
    assert_string_equal(setun_tensor_device(NULL), "");
    assert_null(setun_tensor_stream(NULL));
    assert_null(setun_tensor_data(NULL));
}

static void dlpack_out(void **state) {
    (void)state;
    static const struct { setun_dtype dtype; int code, bits; } kinds[] = {{SETUN_F32, 2, 32}, {SETUN_BF16, 4, 16}, {SETUN_I8, 0, 8}, {SETUN_U32, 1, 32}, {SETUN_BOOL, 6, 8}, {SETUN_I64, 0, 64}};
    const uint64_t numbers[6] = {1, 2, 3, 4, 5, 6};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        setun_tensor *a;
        struct DLManagedTensor *m;
        ok(setun_tensor_create_on(stream, kinds[i].dtype, SHAPE(2, 3), numbers, &a));
        ok(setun_tensor_to_dlpack(a, &m));
        assert_true(m->rank == 2 && m->shape[0] == 2 && m->shape[1] == 3 && m->strides[0] == 3 && m->strides[1] == 1 && m->lanes == 1);
        assert_true(m->code == kinds[i].code && m->bits == kinds[i].bits);
        size_t size = setun_tensor_bytes(a);
        if (m->device_type == 1) {
            assert_ptr_equal((char *)m->data + m->byte_offset, setun_tensor_data(a));
            setun_tensor_destroy(a); /* the export lives on */
            assert_memory_equal((char *)m->data + m->byte_offset, numbers, kinds[i].dtype == SETUN_I64 ? size : 1);
        } else setun_tensor_destroy(a);
        m->deleter(m);
    }
    struct DLManagedTensor *m;
    fails(setun_tensor_to_dlpack(NULL, &m), SETUN_ERROR_ARGUMENT, "tensor is NULL");
    assert_null(m);
}

static void dlpack_in(void **state) {
    (void)state;
    static float values[64] __attribute__((aligned(64)));
    for (int i = 0; i < 64; i++) values[i] = (float)i;
    int gone = 0;
    const struct { int rank; int64_t shape[3], strides[3]; int from; bool strided; } cases[] = {
        {2, {4, 8, 0}, {0}, 0, false},        {2, {4, 8, 0}, {8, 1, 0}, 16, true},  {2, {8, 4, 0}, {1, 8, 0}, 0, true}, {1, {8, 0, 0}, {-1, 0, 0}, 20, true},
        {3, {2, 3, 2}, {32, 8, 3}, 1, true}, {2, {3, 4, 0}, {0, 1, 0}, 8, true},   {0, {0}, {0}, 7, false},           {2, {0, 8, 0}, {8, 1, 0}, 0, true},
        {2, {1, 4, 0}, {-99, 1, 0}, 4, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int offset = 0; offset < 2; offset++) {
            int64_t shape[3], strides[3];
            memcpy(shape, cases[i].shape, sizeof shape);
            memcpy(strides, cases[i].strides, sizeof strides);
            struct DLManagedTensor m = {.data = offset ? (void *)values : (void *)(values + cases[i].from), .device_type = 1, .rank = cases[i].rank, .code = 2, .bits = 32, .lanes = 1, .shape = shape,
                                        .strides = cases[i].strided ? strides : NULL, .byte_offset = offset ? (uint64_t)cases[i].from * 4 : 0, .manager = &gone, .deleter = end_dlpack};
            gone = 0;
            setun_tensor *a;
            ok(setun_tensor_from_dlpack(stream, &m, &a));
            float back[64], want[64];
            int count = 0;
            for (int u = 0; u < (cases[i].rank > 0 ? shape[0] : 1); u++)
                for (int v = 0; v < (cases[i].rank > 1 ? shape[1] : 1); v++)
                    for (int w = 0; w < (cases[i].rank > 2 ? shape[2] : 1); w++)
                        want[count++] = values[cases[i].from + (cases[i].strided ? u * strides[0] + v * strides[1] + w * strides[2] : u * shape[1] + v)];
            ok(setun_tensor_read(a, back, (size_t)count * 4));
            if (memcmp(back, want, (size_t)count * 4)) fail_msg("case %zu: the values differ", i);
            setun_tensor *again;
            ok(setun_tensor_copy_to(a, stream, 0, &again)); /* its values, wherever they lie */
            ok(setun_tensor_read(again, back, (size_t)count * 4));
            if (memcmp(back, want, (size_t)count * 4)) fail_msg("case %zu: the copy's values differ", i);
            setun_tensor_destroy(again);
            setun_tensor_destroy(a);
            ok(setun_stream_synchronize(stream));
            assert_int_equal(gone, 1);
        }
    /* what is refused stays the caller's */
    gone = 0;
    int64_t shape[5] = {2, 2, 2, 2, 2};
    struct DLManagedTensor good = {.data = values, .device_type = 1, .rank = 2, .code = 2, .bits = 32, .lanes = 1, .shape = shape, .manager = &gone, .deleter = end_dlpack}, m = good;
    setun_tensor *a;
    m.rank = 5;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_UNSUPPORTED, "rank 5");
    m = good;
    m.bits = 8;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_UNSUPPORTED, "kind 2, 8 bits");
    m = good;
    m.lanes = 4;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_UNSUPPORTED, "4 lanes");
    m = good;
    m.device_type = 2;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_UNSUPPORTED, "bring it to the host");
    m = good;
    m.data = NULL;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_ARGUMENT, "no data");
    m = good;
    shape[0] = -1;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_ARGUMENT, "-1");
    shape[0] = INT64_MAX;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_ARGUMENT, "overflow");
    shape[0] = 2;
    m.strides = (int64_t[]){INT64_MAX, INT64_MAX};
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_ARGUMENT, "overflows");
    m.strides = NULL;
    m.shape = NULL;
    fails(setun_tensor_from_dlpack(stream, &m, &a), SETUN_ERROR_ARGUMENT, "without a shape");
    fails(setun_tensor_from_dlpack(stream, NULL, &a), SETUN_ERROR_ARGUMENT, "managed is NULL");
    assert_null(a);
    assert_int_equal(gone, 0);
    /* an odd address is copied; no deleter is no error */
    m = good;
    m.data = (char *)values + 2;
    m.deleter = NULL;
    ok(setun_tensor_from_dlpack(stream, &m, &a));
    setun_tensor_destroy(a);
    /* there and back without a copy, where memory is shared */
    setun_tensor *x;
    struct DLManagedTensor *out;
    ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(2, 2), values, &x));
    ok(setun_tensor_to_dlpack(x, &out));
    setun_tensor_destroy(x);
    if (out->device_type == 1) {
        void *where = out->data;
        ok(setun_tensor_from_dlpack(stream, out, &a));
        assert_ptr_equal(setun_tensor_data(a), where);
        setun_tensor_destroy(a);
    } else out->deleter(out);
}

#define TENSOR_CASES cmocka_unit_test(made_copied_read), cmocka_unit_test(shared_memory), cmocka_unit_test(streams_and_events), cmocka_unit_test(refused), cmocka_unit_test(dlpack_out), cmocka_unit_test(dlpack_in)

#endif
