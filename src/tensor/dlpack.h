/*
 * dlpack.h - the structures of DLPack 0.8 (dmlc/dlpack, the unversioned form that every library reads), and host tensors in it.
 * Callers: the tensor API, tensors on devices. The layout is an ABI between programs: it must not change.
 */
#ifndef SETUN_TENSOR_DLPACK_H
#define SETUN_TENSOR_DLPACK_H

#include "tensor/tensor.h"

typedef struct dlpack_device { int32_t type; int32_t index; } dlpack_device;
enum { DLPACK_HOST = 1, DLPACK_CUDA = 2, DLPACK_CUDA_HOST = 3, DLPACK_METAL = 8, DLPACK_CUDA_MANAGED = 13 };
typedef struct dlpack_dtype { uint8_t code, bits; uint16_t lanes; } dlpack_dtype; /* code: 0 signed, 1 unsigned, 2 float, 4 bfloat, 6 bool */
typedef struct dlpack_tensor {
    void *data;
    dlpack_device device;
    int32_t rank;
    dlpack_dtype dtype;
    int64_t *shape;
    int64_t *strides;           /* in elements; NULL: row-major */
    uint64_t byte_offset;
} dlpack_tensor;
struct DLManagedTensor {
    dlpack_tensor tensor;
    void *manager;
    void (*deleter)(struct DLManagedTensor *self);
};

/* What a DLManagedTensor says, checked: dtype one of ours, rank at most SETUN_MAX_RANK, sizes that do not overflow. */
typedef struct dlpack_view {
    setun_dtype dtype;
    setun_shape shape;
    int64_t strides[SETUN_MAX_RANK];
    bool row_major;             /* without gaps */
    bool backwards;             /* some stride is negative */
    char *data;                 /* of element 0 */
    uint64_t bytes;             /* of the values */
    uint64_t extent;            /* bytes from the first to behind the last element; not backwards */
} dlpack_view;
setun_status dlpack_look(const struct DLManagedTensor *managed, dlpack_view *out);
void dlpack_end(struct DLManagedTensor *managed); /* calls the deleter, if there is one */
/* Copies the values row-major. */
void dlpack_gather(const dlpack_view *view, void *out);
/* A managed tensor that holds a reference to `tensor`; data lies on this device at this pointer. */
setun_status dlpack_make(setun_tensor *tensor, dlpack_device device, void *data, uint64_t byte_offset, struct DLManagedTensor **out);

#endif
