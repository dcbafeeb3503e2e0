/*
 * tensor.h - floor 1: dtypes, shapes, dense host tensors, buffers from a pool. Used by graph, plan, backends, run and the API.
 */
#ifndef SETUN_TENSOR_H
#define SETUN_TENSOR_H

#include "base/base.h"
#include <stdatomic.h>

typedef struct setun_shape { int rank; int64_t dim[SETUN_MAX_RANK]; } setun_shape; /* outermost first */

size_t setun_dtype_bytes(setun_dtype dtype); /* 0 for an unknown one */
const char *setun_dtype_name(setun_dtype dtype);
/* Checked product of the dimensions; SETUN_ERROR_ARGUMENT on a negative one or overflow. */
setun_status setun_shape_count(const setun_shape *shape, int64_t *out);

struct setun_tensor {
    setun_dtype dtype;
    setun_shape shape;
    void *data;                 /* on the host; NULL on a device */
    size_t bytes;
    bool owned;                 /* data is freed with the tensor */
    atomic_int references;      /* the caller's, and those of what was exported */
    setun_stream *stream;       /* NULL: made without one */
    void *array;                /* on an MLX device: setun_mlx_array */
    void *(*reach)(const setun_tensor *tensor); /* host address of an array's values, NULL where there is none (now) */
    void *owner;                /* what release needs */
    void (*release)(setun_tensor *tensor); /* ends array, owner or data that is not `owned`; NULL: nothing to end */
};
setun_status setun_tensor_make(setun_dtype dtype, int rank, const int64_t *shape, setun_tensor **out); /* checked, without data */
setun_tensor *setun_tensor_hold(setun_tensor *tensor); /* one more reference; setun_tensor_destroy takes one back */

#endif
