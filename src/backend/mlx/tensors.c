/*
 * tensors.c - tensors on streams: made from host memory, shared, copied, read; DLPack and MLX arrays in and out. The public
 * functions for tensors that tensor/tensor.c does not have. A tensor of an MLX device holds one array of the bridge.
 */
#include "backend/mlx/mlx.h"
#include "tensor/dlpack.h"
#include "tensor/pool.h"

static setun_status need(const void *pointer, const char *function, const char *what) { return pointer ? SETUN_OK : setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is NULL", function, what); }
#define NEED(pointer) SETUN_TRY(need(pointer, __func__, #pointer))

static const setun_mlx_table *table_of(const setun_tensor *t) { return t->stream->mlx->table; }
static setun_status check(const setun_stream *stream, setun_status status) { return setun_mlx_check(stream->mlx->table, status, stream->mlx->id); }

static void *reach(const setun_tensor *t) {
    setun_mlx_array_info info;
    const void *data;
    if (table_of(t)->array_get(t->array, &info) != SETUN_OK || !info.available || table_of(t)->array_data(t->array, &data) != SETUN_OK) return NULL;
    return (void *)(uintptr_t)data;
}
static void release_array(setun_tensor *t) { table_of(t)->array_release(t->array); }
static void release_pooled(setun_tensor *t) { setun_buffers_give(t->stream->context->buffers, t->data, t->bytes); }
static void release_managed(setun_tensor *t) { dlpack_end(t->owner); }

static setun_mlx_spec spec_of(const setun_tensor *t) {
    setun_mlx_spec spec = {.dtype = t->dtype, .rank = t->shape.rank};
    for (int i = 0; i < spec.rank; i++) spec.dim[i] = t->shape.dim[i];
    return spec;
}

static void put_array(setun_tensor *t, setun_stream *stream, setun_mlx_array *array) {
    t->stream = stream;
    t->array = array;
    t->release = release_array;
    t->reach = reach;
}

/* A tensor around an array (taken over, also on failure) of this dtype and shape. */
static setun_status around(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, setun_mlx_array *array, setun_tensor **out) {
    setun_status status = setun_tensor_make(dtype, rank, shape, out);
    if (status != SETUN_OK) {
        stream->mlx->table->array_release(array);
        return status;
    }
    put_array(*out, stream, array);
    return SETUN_OK;
}

setun_status setun_tensor_create_on(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, const void *values, setun_tensor **out) {
    NEED(out);
    *out = NULL;
    NEED(stream);
    setun_tensor *t;
    SETUN_TRY(setun_tensor_make(dtype, rank, shape, &t));
    t->stream = stream;
    setun_status status;
    if (!stream->mlx) {
        status = setun_buffers_take(stream->context->buffers, t->bytes, &t->data);
        if (status == SETUN_OK) {
            t->release = release_pooled;
            if (!values) memset(t->data, 0, t->bytes);
            else if (t->bytes) memcpy(t->data, values, t->bytes);
        }
    } else {
        setun_mlx_spec spec = spec_of(t);
        setun_mlx_array *array = NULL;
        if (values) status = stream->mlx->table->array_from_host(stream->stream, &spec, values, &array);
        else {
            setun_mlx_op_request zeros = {.op = SETUN_MLX_OP_FULL, .integers = spec.dim, .integer_count = spec.rank, .reals = (double[]){0.0}, .real_count = 1, .dtype = dtype};
            status = stream->mlx->table->op(stream->stream, &zeros, &array, 1);
        }
        status = check(stream, status);
        if (status == SETUN_OK) put_array(t, stream, array);
    }
    if (status != SETUN_OK) setun_tensor_destroy(t);
    else *out = t;
    return status;
}

/* Host memory on a stream: in place where that is possible. `done` is called in every case of success, later or now. */
static setun_status share(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, const int64_t *strides, void *data, uint64_t extent, void (*done)(void *), void *user, setun_tensor **out, bool *out_shared) {
    const setun_mlx_table *table = stream->mlx->table;
    setun_mlx_region *region;
    setun_mlx_array *array = NULL;
    setun_mlx_spec spec = {.dtype = dtype, .rank = rank};
    for (int i = 0; i < rank; i++) spec.dim[i] = shape[i];
    /* `done` must not be called where this fails: the region gets it only once everything else is made */
    setun_tensor *t;
    SETUN_TRY(setun_tensor_make(dtype, rank, shape, &t));
    setun_status status = check(stream, table->region_create(stream->stream, data, (size_t)extent, NULL, NULL, &region));
    if (status == SETUN_OK) { /* a trial: all that can be wrong with strides, sizes and memory shows here */
        status = check(stream, table->array_wrap(region, 0, &spec, strides, &array, out_shared));
        table->region_release(region);
    }
    if (status == SETUN_OK && *out_shared) {
        table->array_release(array);
        array = NULL;
        status = check(stream, table->region_create(stream->stream, data, (size_t)extent, done, user, &region));
        if (status == SETUN_OK) {
            status = check(stream, table->array_wrap(region, 0, &spec, strides, &array, out_shared));
            if (status != SETUN_OK) { /* only memory can be short now; `done` will have been called, so the data is gone for the caller */
                table->region_release(region);
                setun_tensor_destroy(t);
                return setun_fail_prefix(status, "the memory was let go");
            }
            table->region_release(region);
        }
    } else if (status == SETUN_OK && done) done(user); /* it was copied */
    if (status != SETUN_OK) {
        setun_tensor_destroy(t);
        return status;
    }
    put_array(t, stream, array);
    *out = t;
    return SETUN_OK;
}

typedef struct ending { void (*done)(void *user); void *user; } ending;
static void release_ending(setun_tensor *t) {
    ending *e = t->owner;
    if (e->done) e->done(e->user);
    setun_free(e);
}

setun_status setun_tensor_share_on(setun_stream *stream, setun_dtype dtype, int rank, const int64_t *shape, void *data, void (*done)(void *user), void *user, setun_tensor **out, bool *out_shared) {
    NEED(out);
    *out = NULL;
    bool shared;
    if (!out_shared) out_shared = &shared;
    *out_shared = false;
    NEED(stream);
    setun_tensor *t;
    SETUN_TRY(setun_tensor_wrap(dtype, rank, shape, data, &t)); /* checks everything */
    t->stream = stream;
    if (!stream->mlx) {
        ending *e = setun_calloc(1, sizeof *e);
        if (!e) {
            setun_tensor_destroy(t);
            return SETUN_ERROR_MEMORY;
        }
        *e = (ending){done, user};
        t->owner = e;
        t->release = release_ending;
        *out = t;
        *out_shared = true;
        return SETUN_OK;
    }
    size_t bytes = t->bytes;
    setun_tensor_destroy(t);
    if (!bytes) { /* nothing to share */
        SETUN_TRY(setun_tensor_create_on(stream, dtype, rank, shape, NULL, out));
        if (done) done(user);
        return SETUN_OK;
    }
    return share(stream, dtype, rank, shape, NULL, data, bytes, done, user, out, out_shared);
}

/* ---- values out ---- */
setun_status setun_tensor_evaluate(setun_tensor *const *tensors, int count, bool wait) {
    if (count < 0 || (count && !tensors)) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_evaluate: no tensors");
    for (int i = 0; i < count; i++)
        if (!tensors[i]) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_evaluate: tensor %d is NULL", i);
    for (int i = 0; i < count; i++) { /* all begin before any is waited for */
        setun_mlx_array *array = tensors[i]->array;
        if (array) SETUN_TRY(check(tensors[i]->stream, table_of(tensors[i])->eval(tensors[i]->stream->stream, &array, 1, false)));
    }
    for (int i = 0; wait && i < count; i++)
        if (tensors[i]->array) SETUN_TRY(check(tensors[i]->stream, table_of(tensors[i])->wait(tensors[i]->array)));
    return SETUN_OK;
}

setun_status setun_tensor_read(setun_tensor *tensor, void *out, size_t bytes) {
    NEED(tensor);
    if (bytes != tensor->bytes) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_read: the tensor has %zu bytes, the memory %zu", tensor->bytes, bytes);
    if (bytes) NEED(out);
    if (tensor->array) return check(tensor->stream, table_of(tensor)->read(tensor->stream->stream, tensor->array, out, bytes));
    if (bytes) memcpy(out, tensor->data, bytes);
    return SETUN_OK;
}

const char *setun_tensor_device(const setun_tensor *tensor) { return tensor && tensor->stream ? setun_mlx_id(tensor->stream->mlx) : tensor ? "cpu" : ""; }
setun_stream *setun_tensor_stream(const setun_tensor *tensor) { return tensor ? tensor->stream : NULL; }

static bool is_float(setun_dtype d) { return d == SETUN_F32 || d == SETUN_F16 || d == SETUN_BF16; }

static void convert(setun_dtype from, const void *in, setun_dtype to, void *out, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float x = from == SETUN_F32 ? ((const float *)in)[i] : from == SETUN_F16 ? setun_f16_to_f32(((const uint16_t *)in)[i]) : setun_bf16_to_f32(((const uint16_t *)in)[i]);
        if (to == SETUN_F32) ((float *)out)[i] = x;
        else ((uint16_t *)out)[i] = to == SETUN_F16 ? setun_f32_to_f16(x) : setun_f32_to_bf16(x);
    }
}

static setun_status cast_array(setun_stream *stream, setun_mlx_array *array, setun_mlx_op op, setun_dtype dtype, setun_mlx_array **out) {
    setun_mlx_op_request r = {.op = op, .inputs = &array, .input_count = 1, .dtype = dtype};
    return check(stream, stream->mlx->table->op(stream->stream, &r, out, 1));
}

setun_status setun_tensor_copy_to(setun_tensor *tensor, setun_stream *stream, setun_dtype dtype, setun_tensor **out) {
    NEED(out);
    *out = NULL;
    NEED(tensor);
    NEED(stream);
    if (!dtype) dtype = tensor->dtype;
    if (!setun_dtype_bytes(dtype)) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_copy_to: unknown dtype %d", (int)dtype);
    const int64_t *shape = tensor->shape.dim;
    int rank = tensor->shape.rank;
    if (tensor->array && stream->mlx == tensor->stream->mlx) { /* stays on the device, and lazy */
        setun_mlx_array *array;
        SETUN_TRY(cast_array(stream, tensor->array, dtype == tensor->dtype ? SETUN_MLX_OP_COPY : SETUN_MLX_OP_ASTYPE, dtype, &array));
        return around(stream, dtype, rank, shape, array, out);
    }
    if (!stream->mlx && dtype != tensor->dtype && !(is_float(dtype) && is_float(tensor->dtype)))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "setun_tensor_copy_to: %s to %s on the CPU; f32, f16 and bf16 are converted, MLX converts all", setun_dtype_name(tensor->dtype), setun_dtype_name(dtype));
    /* by way of the host: the values of a device come into a block of the pool */
    setun_buffers *pool = stream->context->buffers;
    void *staged = NULL;
    const void *values = tensor->data;
    if (tensor->array) {
        SETUN_TRY(setun_buffers_take(pool, tensor->bytes, &staged));
        setun_status status = setun_tensor_read(tensor, staged, tensor->bytes);
        if (status != SETUN_OK) {
            setun_buffers_give(pool, staged, tensor->bytes);
            return status;
        }
        values = staged;
    }
    setun_status status;
    if (dtype == tensor->dtype) status = setun_tensor_create_on(stream, dtype, rank, shape, tensor->bytes ? values : NULL, out);
    else if (!stream->mlx) {
        status = setun_tensor_create_on(stream, dtype, rank, shape, NULL, out);
        if (status == SETUN_OK) convert(tensor->dtype, values, dtype, (*out)->data, (*out)->bytes / setun_dtype_bytes(dtype));
    } else {
        setun_tensor *same;
        status = setun_tensor_create_on(stream, tensor->dtype, rank, shape, tensor->bytes ? values : NULL, &same);
        if (status == SETUN_OK) {
            setun_mlx_array *array;
            status = cast_array(stream, same->array, SETUN_MLX_OP_ASTYPE, dtype, &array);
            if (status == SETUN_OK) status = around(stream, dtype, rank, shape, array, out);
            setun_tensor_destroy(same);
        }
    }
    setun_buffers_give(pool, staged, tensor->bytes);
    return status;
}

/* ---- DLPack ---- */
/* Computed and row-major, so that it can be looked at from outside; the tensor keeps that form. */
static setun_status settle(setun_tensor *tensor) {
    const setun_mlx_table *table = table_of(tensor);
    setun_mlx_array_info info;
    SETUN_TRY(setun_tensor_evaluate(&tensor, 1, true));
    SETUN_TRY(check(tensor->stream, table->array_get(tensor->array, &info)));
    if (info.contiguous) return SETUN_OK;
    setun_mlx_array *dense;
    SETUN_TRY(cast_array(tensor->stream, tensor->array, SETUN_MLX_OP_CONTIGUOUS, 0, &dense));
    table->array_release(tensor->array);
    tensor->array = dense;
    return setun_tensor_evaluate(&tensor, 1, true);
}

setun_status setun_tensor_to_dlpack(setun_tensor *tensor, struct DLManagedTensor **out) {
    NEED(out);
    *out = NULL;
    NEED(tensor);
    if (!tensor->array) return dlpack_make(tensor, (dlpack_device){DLPACK_HOST, 0}, tensor->data, 0, out);
    SETUN_TRY(settle(tensor));
    int type, index;
    void *pointer;
    uint64_t offset;
    SETUN_TRY(check(tensor->stream, table_of(tensor)->array_device_pointer(tensor->array, &type, &index, &pointer, &offset)));
    return dlpack_make(tensor, (dlpack_device){type, index}, pointer, offset, out);
}

static void end_managed(void *managed) { dlpack_end(managed); }

setun_status setun_tensor_from_dlpack(setun_stream *stream, struct DLManagedTensor *managed, setun_tensor **out) {
    NEED(out);
    *out = NULL;
    NEED(managed);
    dlpack_view v;
    SETUN_TRY(dlpack_look(managed, &v));
    int device = managed->tensor.device.type;
    if (device != DLPACK_HOST && device != DLPACK_CUDA_HOST && device != DLPACK_CUDA_MANAGED)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "DLPack: memory of device type %d: bring it to the host first (tensor.cpu() in PyTorch)", device);
    int rank = v.shape.rank;
    const int64_t *shape = v.shape.dim;
    bool aligned = (uintptr_t)v.data % setun_dtype_bytes(v.dtype) == 0;
    for (int i = 0; i < rank; i++)
        if (v.shape.dim[i] < 2 && v.strides[i] < 0) v.strides[i] = 0; /* an axis of one has no direction */
    if (stream && stream->mlx && v.bytes && aligned && !v.backwards) {
        bool shared;
        return share(stream, v.dtype, rank, shape, v.strides, v.data, v.extent, end_managed, managed, out, &shared);
    }
    if (!(stream && stream->mlx) && v.row_major && aligned) { /* in place */
        setun_tensor *t;
        SETUN_TRY(setun_tensor_make(v.dtype, rank, shape, &t));
        t->stream = stream;
        t->data = v.data;
        t->owner = managed;
        t->release = release_managed;
        *out = t;
        return SETUN_OK;
    }
    /* strides, odd addresses: a copy */
    setun_tensor *host;
    SETUN_TRY(setun_tensor_create(v.dtype, rank, shape, &host));
    dlpack_gather(&v, host->data);
    if (stream) {
        setun_status status = setun_tensor_create_on(stream, v.dtype, rank, shape, host->bytes ? host->data : NULL, out);
        setun_tensor_destroy(host);
        if (status != SETUN_OK) return status;
    } else *out = host;
    dlpack_end(managed);
    return SETUN_OK;
}

/* ---- MLX's own arrays ---- */
setun_status setun_tensor_from_mlx(setun_stream *stream, const void *mlx_array, setun_tensor **out) {
    NEED(out);
    *out = NULL;
    NEED(stream);
    NEED(mlx_array);
    if (!stream->mlx) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_from_mlx: the stream is of \"cpu\"; make one of an MLX device");
    const setun_mlx_table *table = stream->mlx->table;
    setun_mlx_array *theirs, *dense;
    setun_mlx_array_info info;
    SETUN_TRY(check(stream, table->array_from_mlx(mlx_array, &theirs)));
    setun_status status = check(stream, table->array_get(theirs, &info));
    if (status == SETUN_OK && info.spec.rank > SETUN_MAX_RANK) status = setun_fail(SETUN_ERROR_UNSUPPORTED, "setun_tensor_from_mlx: rank %d; at most %d", info.spec.rank, SETUN_MAX_RANK);
    if (status == SETUN_OK) status = cast_array(stream, theirs, SETUN_MLX_OP_CONTIGUOUS, 0, &dense);
    table->array_release(theirs);
    SETUN_TRY(status);
    return around(stream, info.spec.dtype, info.spec.rank, info.spec.dim, dense, out);
}

setun_status setun_tensor_to_mlx(setun_tensor *tensor, void **out_mlx_array) {
    NEED(out_mlx_array);
    *out_mlx_array = NULL;
    NEED(tensor);
    if (!tensor->array) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tensor_to_mlx: the tensor is on \"cpu\"; setun_tensor_copy_to brings it to MLX");
    return check(tensor->stream, table_of(tensor)->array_to_mlx(tensor->array, out_mlx_array));
}
