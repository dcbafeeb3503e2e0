/*
 * internal.h - what the files of the graph room share: the storage's insides, shape inference, sticky errors.
 * Included by no other room.
 */
#ifndef SETUN_GRAPH_INTERNAL_H
#define SETUN_GRAPH_INTERNAL_H

#include "graph/graph.h"

/* ---- storage.c ---- */
setun_graph_storage *setun_graph_storage_create(void);
/* Memory that lives as long as the storage, 64-byte aligned; NULL when out of memory. */
void *setun_graph_storage_bytes(setun_graph_storage *storage, size_t bytes);
/* A copy of these floats; equal arrays give the same pointer, so that equal nodes compare equal by it. */
const float *setun_graph_storage_floats(setun_graph_storage *storage, const float *values, int64_t count);
/* A weight with its name copied, the rest zero; freed, with its `prepared`, by the storage. */
setun_weight *setun_graph_storage_weight(setun_graph_storage *storage, const char *name);

/* ---- shapes.c ---- */
/* Dtype and shape of the node from its operation, inputs and attributes (INPUT, WEIGHT, RESHAPE: checks what it has). */
setun_status setun_graph_infer(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape);
/* "[T, 9, 64]" */
typedef struct setun_shape_text { char text[96]; } setun_shape_text;
setun_shape_text setun_shape_describe(const setun_shape *shape);
bool setun_shape_equal(const setun_shape *a, const setun_shape *b);
const char *setun_node_dtype_name(setun_dtype dtype); /* knows SETUN_Q8 */
/* Most elements a value may have per token; keeps every product of the plan far from overflow. */
#define SETUN_GRAPH_MAX_ELEMENTS ((int64_t)1 << 40)
/* Some passes compare every pair of nodes. */
#define SETUN_GRAPH_MAX_NODES (1 << 15)
#define SETUN_GRAPH_MAX_CACHE_LAYERS 4096
/* Widest row whose int8 x code sums fit int32 (see ternary_i8 in kernels.def). */
#define SETUN_GRAPH_MAX_Q8_WIDTH ((int64_t)1 << 22)

/* ---- builder.c ---- */
/* Makes the graph's first error this one and returns SETUN_NODE_NONE; later errors are dropped. graph may be NULL. */
setun_node setun_graph_refuse(setun_graph *graph, setun_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
