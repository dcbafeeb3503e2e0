/* tensor.c - dtypes, shapes, dense host tensors. Callers: graph (shapes), run (inputs and outputs of plans), users. */
#include "tensor/tensor.h"

size_t setun_dtype_bytes(setun_dtype dtype) {
    switch (dtype) {
    case SETUN_F32: case SETUN_I32: case SETUN_U32: return 4;
    case SETUN_F16: case SETUN_BF16: case SETUN_I16: case SETUN_U16: return 2;
    case SETUN_I8: case SETUN_U8: case SETUN_BOOL: return 1;
    case SETUN_I64: case SETUN_U64: case SETUN_F64: return 8;
    }
    return 0;
}

const char *setun_dtype_name(setun_dtype dtype) {
    switch (dtype) {
    case SETUN_F32: return "f32";
    case SETUN_F16: return "f16";
    case SETUN_BF16: return "bf16";
    case SETUN_I32: return "i32";
    case SETUN_I8: return "i8";
    case SETUN_U8: return "u8";
    case SETUN_I64: return "i64";
    case SETUN_U32: return "u32";
    case SETUN_BOOL: return "bool";
    case SETUN_I16: return "i16";
    case SETUN_U16: return "u16";
    case SETUN_U64: return "u64";
    case SETUN_F64: return "f64";
    }
    return "?";
}

setun_status setun_shape_count(const setun_shape *shape, int64_t *out) {
    *out = 0;
    if (shape->rank < 0 || shape->rank > SETUN_MAX_RANK)
        return setun_fail(SETUN_ERROR_ARGUMENT, "shape: rank %d is not between 0 and %d", shape->rank, SETUN_MAX_RANK);
    int64_t count = 1;
    for (int i = 0; i < shape->rank; i++) {
        if (shape->dim[i] < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "shape: dimension %d is %lld", i, (long long)shape->dim[i]);
        if (__builtin_mul_overflow(count, shape->dim[i], &count))
            return setun_fail(SETUN_ERROR_ARGUMENT, "shape: the number of elements overflows at dimension %d", i);
    }
    *out = count;
    return SETUN_OK;
}

setun_status setun_tensor_make(setun_dtype dtype, int rank, const int64_t *shape, setun_tensor **out) {
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "tensor: out is NULL");
    *out = NULL;
    size_t element = setun_dtype_bytes(dtype);
    if (!element) return setun_fail(SETUN_ERROR_ARGUMENT, "tensor: unknown dtype %d", (int)dtype);
    if (rank < 0 || rank > SETUN_MAX_RANK || (rank && !shape))
        return setun_fail(SETUN_ERROR_ARGUMENT, "tensor: rank %d is not between 0 and %d, or shape is NULL", rank, SETUN_MAX_RANK);
    setun_shape s = {.rank = rank};
    for (int i = 0; i < rank; i++) s.dim[i] = shape[i];
    int64_t count;
    uint64_t bytes;
    SETUN_TRY(setun_shape_count(&s, &count));
    if (!setun_mul_ok((uint64_t)count, element, &bytes) || bytes > SIZE_MAX / 2)
        return setun_fail(SETUN_ERROR_ARGUMENT, "tensor: %lld elements are too many", (long long)count);
    setun_tensor *t = setun_calloc(1, sizeof *t);
    if (!t) return SETUN_ERROR_MEMORY;
    t->dtype = dtype;
    t->shape = s;
    t->bytes = (size_t)bytes;
    atomic_init(&t->references, 1);
    *out = t;
    return SETUN_OK;
}

setun_status setun_tensor_create(setun_dtype dtype, int rank, const int64_t *shape, setun_tensor **out) {
    SETUN_TRY(setun_tensor_make(dtype, rank, shape, out));
    (*out)->data = setun_alloc_aligned((*out)->bytes, 64);
    if (!(*out)->data) {
        setun_free(*out);
        *out = NULL;
        return SETUN_ERROR_MEMORY;
    }
    memset((*out)->data, 0, (*out)->bytes);
    (*out)->owned = true;
    return SETUN_OK;
}

setun_status setun_tensor_wrap(setun_dtype dtype, int rank, const int64_t *shape, void *data, setun_tensor **out) {
    SETUN_TRY(setun_tensor_make(dtype, rank, shape, out));
    const char *wrong = !data && (*out)->bytes ? "data is NULL" : (uintptr_t)data % setun_dtype_bytes(dtype) ? "data is not aligned for its dtype" : NULL;
    if (wrong) {
        setun_free(*out);
        *out = NULL;
        return setun_fail(SETUN_ERROR_ARGUMENT, "tensor: %s", wrong);
    }
    (*out)->data = data;
    return SETUN_OK;
}

setun_tensor *setun_tensor_hold(setun_tensor *tensor) {
    atomic_fetch_add(&tensor->references, 1);
    return tensor;
}

void setun_tensor_destroy(setun_tensor *tensor) {
    if (!tensor || atomic_fetch_sub(&tensor->references, 1) > 1) return;
    if (tensor->release) tensor->release(tensor);
    if (tensor->owned) setun_free_aligned(tensor->data);
    setun_free(tensor);
}

void *setun_tensor_data(const setun_tensor *tensor) { return !tensor ? NULL : tensor->reach ? tensor->reach(tensor) : tensor->data; }
setun_dtype setun_tensor_dtype(const setun_tensor *tensor) { return tensor ? tensor->dtype : (setun_dtype)0; }
int setun_tensor_rank(const setun_tensor *tensor) { return tensor ? tensor->shape.rank : 0; }
int64_t setun_tensor_dim(const setun_tensor *tensor, int axis) { return tensor && axis >= 0 && axis < tensor->shape.rank ? tensor->shape.dim[axis] : 0; }
size_t setun_tensor_bytes(const setun_tensor *tensor) { return tensor ? tensor->bytes : 0; }
