/* dlpack.c - host tensors to and from DLPack. Callers: setun_tensor_to_dlpack and _from_dlpack (backend/mlx/tensors.c). */
#include "tensor/dlpack.h"

static const struct { setun_dtype dtype; uint8_t code, bits; } dtypes[] = {
    {SETUN_F32, 2, 32}, {SETUN_F16, 2, 16}, {SETUN_BF16, 4, 16}, {SETUN_F64, 2, 64}, {SETUN_I8, 0, 8}, {SETUN_I16, 0, 16}, {SETUN_I32, 0, 32},
    {SETUN_I64, 0, 64}, {SETUN_U8, 1, 8}, {SETUN_U16, 1, 16}, {SETUN_U32, 1, 32}, {SETUN_U64, 1, 64}, {SETUN_BOOL, 6, 8},
};

void dlpack_end(struct DLManagedTensor *managed) {
    if (managed && managed->deleter) managed->deleter(managed);
}

setun_status dlpack_look(const struct DLManagedTensor *managed, dlpack_view *out) {
    const dlpack_tensor *t = &managed->tensor;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].code == t->dtype.code && dtypes[i].bits == t->dtype.bits && t->dtype.lanes == 1) out->dtype = dtypes[i].dtype;
    if (!out->dtype) return setun_fail(SETUN_ERROR_UNSUPPORTED, "DLPack: elements of kind %d, %d bits, %d lanes; numbers of 8 to 64 bits, bfloat16 and bool are known", t->dtype.code, t->dtype.bits, t->dtype.lanes);
    if (t->rank < 0 || t->rank > SETUN_MAX_RANK) return setun_fail(SETUN_ERROR_UNSUPPORTED, "DLPack: rank %d; at most %d: reshape it first", t->rank, SETUN_MAX_RANK);
    if (t->rank && !t->shape) return setun_fail(SETUN_ERROR_ARGUMENT, "DLPack: rank %d without a shape", t->rank);
    out->shape.rank = t->rank;
    int64_t count = 1, dense = 1, last = 0;
    for (int i = 0; i < t->rank; i++) out->shape.dim[i] = t->shape[i];
    SETUN_TRY(setun_shape_count(&out->shape, &count));
    out->row_major = true;
    for (int i = t->rank - 1; i >= 0; i--) {
        int64_t dim = out->shape.dim[i], reach;
        int64_t stride = out->strides[i] = t->strides ? t->strides[i] : dense;
        if (dim > 1 && stride != dense) out->row_major = false;
        if (dim > 1 && stride < 0) out->backwards = true;
        if (count && (__builtin_mul_overflow(dim - 1, stride < 0 ? -stride : stride, &reach) || __builtin_add_overflow(last, reach, &last)))
            return setun_fail(SETUN_ERROR_ARGUMENT, "DLPack: stride %lld of axis %d overflows", (long long)stride, i);
        dense *= dim;
    }
    size_t element = setun_dtype_bytes(out->dtype);
    if (!setun_mul_ok((uint64_t)count, element, &out->bytes) || !setun_mul_ok((uint64_t)last + 1, element, &out->extent) || out->bytes > SIZE_MAX / 2)
        return setun_fail(SETUN_ERROR_ARGUMENT, "DLPack: %lld elements are too many", (long long)count);
    if (!count) out->row_major = true;
    if (count && !t->data) return setun_fail(SETUN_ERROR_ARGUMENT, "DLPack: no data");
    out->data = (char *)t->data + t->byte_offset;
    return SETUN_OK;
}

void dlpack_gather(const dlpack_view *v, void *out) {
    size_t element = setun_dtype_bytes(v->dtype);
    int rank = v->shape.rank;
    if (!v->bytes) return;
    if (v->row_major) {
        memcpy(out, v->data, (size_t)v->bytes);
        return;
    }
    int64_t at[SETUN_MAX_RANK] = {0};
    char *to = out;
    for (uint64_t done = 0; done < v->bytes; done += element) {
        int64_t offset = 0;
        for (int i = 0; i < rank; i++) offset += at[i] * v->strides[i];
        memcpy(to, v->data + offset * (int64_t)element, element);
        to += element;
        for (int i = rank - 1; i >= 0 && ++at[i] == v->shape.dim[i]; i--) at[i] = 0;
    }
}

typedef struct exported { struct DLManagedTensor managed; setun_tensor *tensor; int64_t shape[SETUN_MAX_RANK], strides[SETUN_MAX_RANK]; } exported;

static void end_export(struct DLManagedTensor *managed) {
    exported *e = managed->manager;
    setun_tensor_destroy(e->tensor);
    setun_free(e);
}

setun_status dlpack_make(setun_tensor *tensor, dlpack_device device, void *data, uint64_t byte_offset, struct DLManagedTensor **out) {
    *out = NULL;
    exported *e = setun_calloc(1, sizeof *e);
    if (!e) return SETUN_ERROR_MEMORY;
    int64_t dense = 1;
    for (int i = tensor->shape.rank - 1; i >= 0; i--) {
        e->shape[i] = tensor->shape.dim[i];
        e->strides[i] = dense;
        dense *= tensor->shape.dim[i];
    }
    e->tensor = setun_tensor_hold(tensor);
    e->managed = (struct DLManagedTensor){.tensor = {.data = data, .device = device, .rank = tensor->shape.rank, .shape = e->shape, .strides = e->strides, .byte_offset = byte_offset}, .manager = e, .deleter = end_export};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].dtype == tensor->dtype) e->managed.tensor.dtype = (dlpack_dtype){dtypes[i].code, dtypes[i].bits, 1};
    *out = &e->managed;
    return SETUN_OK;
}
