/*
 * tensor.h - floor 1: dtypes, shapes, dense host tensors, buffers from a pool. Used by graph, plan, backends, run and the API.
 */
#ifndef SETUN_TENSOR_H
#define SETUN_TENSOR_H

#include "base/base.h"

typedef struct setun_shape { int rank; int64_t dim[SETUN_MAX_RANK]; } setun_shape; /* outermost first */

size_t setun_dtype_bytes(setun_dtype dtype); /* 0 for an unknown one */
const char *setun_dtype_name(setun_dtype dtype);
/* Checked product of the dimensions; SETUN_ERROR_ARGUMENT on a negative one or overflow. */
setun_status setun_shape_count(const setun_shape *shape, int64_t *out);

struct setun_tensor { setun_dtype dtype; setun_shape shape; void *data; size_t bytes; bool owned; };

#endif
