/*
 * graph.h - floor 3: a lazy description of a computation; nodes appended by a builder, shapes inferred, nothing computed.
 * Callers: transformer.c, the API (public setun_graph_* functions live in this room), train later. Knows no backend.
 */
#ifndef SETUN_GRAPH_H
#define SETUN_GRAPH_H

#include "model/model.h"
#include "tensor/tensor.h"

typedef enum setun_op {
#define SETUN_OP(e, name, lo, hi) SETUN_OP_##e,
#include "graph/ops.def"
#undef SETUN_OP
    SETUN_OP_COUNT
} setun_op;

/* dtype of a node: a setun_dtype, or rows of int8 with a scale and a sum per row (what QUANTIZE gives). */
#define SETUN_Q8 ((setun_dtype)100)

typedef struct setun_rope_spec { float theta; int rotary; bool interleaved; float scale, magnitude; const float *factors; /* owned by the graph */ } setun_rope_spec;
typedef struct setun_attention_spec { float scale; int window; int cache_layer; } setun_attention_spec;

typedef struct setun_graph_node {
    setun_op op;
    setun_dtype dtype;
    setun_shape shape;          /* dims may be SETUN_DIM_TOKENS / SETUN_DIM_OUTPUTS, only as the first */
    int input_count;
    setun_node input[3];
    char name[64];              /* INPUT, WEIGHT, outputs; else "" */
    const setun_weight *weight; /* WEIGHT */
    setun_model *model;         /* WEIGHT of a model: whose lock guards weight->prepared; NULL: the graph owns the weight */
    float epsilon, factor;      /* RMS_NORM; SCALE */
    bool one_plus;              /* RMS_NORM */
    bool inverse;               /* HADAMARD */
    int block;                  /* HADAMARD */
    const float *signs; int64_t sign_count; /* HADAMARD, owned by the graph */
    setun_rope_spec rope;
    setun_attention_spec attention;
} setun_graph_node;

/* Weights made by the user live here; shared by the graph and the plans compiled from it (counted). */
typedef struct setun_graph_storage setun_graph_storage;
setun_graph_storage *setun_graph_storage_retain(setun_graph_storage *storage);
void setun_graph_storage_release(setun_graph_storage *storage); /* NULL is fine */
/* How the storage's weights' `prepared` are freed when the last holder lets go; set by the backend that prepares them. */
void setun_graph_storage_set_free(setun_graph_storage *storage, void (*free_prepared)(void *prepared));

struct setun_graph {
    setun_context *context;
    setun_graph_node *nodes;
    int node_count, node_capacity;
    struct { setun_node node; char name[64]; } outputs[16];
    int output_count;
    setun_graph_storage *storage;
    setun_status error;         /* first error of the builder, and its message */
    char error_message[512];
};

const char *setun_op_name(setun_op op);
/* Checks every rule of ops.def and of shapes again, from scratch: run after every rewrite of the plan. */
setun_status setun_graph_verify(const setun_graph *graph);
/* WEIGHT leaf over a model's weight. */
setun_node setun_graph_add_weight(setun_graph *graph, setun_model *model, const setun_weight *weight);
/* Text or JSON: every node with its operation, shape, inputs and attributes. */
setun_status setun_graph_dump(const setun_graph *graph, bool json, char **out);

/* transformer.c: the one description of the transformer as a graph. Inputs "tokens" i32 [T], "positions" i32 [T],
 * "outputs" i32 [O]; output "logits" f32 [O, vocabulary], or "embedding" f32 [O, width] (L2-normalised). */
typedef struct setun_transformer_options { bool no_activation_quantisation; bool embedding; } setun_transformer_options;
setun_status setun_transformer_build(setun_graph *graph, setun_model *model, const setun_transformer_options *options);

#endif
