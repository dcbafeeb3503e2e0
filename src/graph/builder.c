/*
 * builder.c - the public calls that append nodes to a graph. Each checks its arguments through setun_graph_infer and copies
 * what it is given. Errors stick: the first one is kept with its message, every later call gives SETUN_NODE_NONE, and
 * compiling reports it. Callers: users of the library, transformer.c. Computes nothing, knows no plan and no backend.
 */
#include "graph/internal.h"
#include <math.h>

/* ---- graphs and their errors ---- */

setun_status setun_graph_create(setun_context *context, setun_graph **out) {
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_create: out is NULL");
    *out = NULL;
    if (!context) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_create: context is NULL");
    setun_graph *graph = setun_calloc(1, sizeof *graph);
    if (!graph) return setun_fail_memory(sizeof *graph);
    graph->context = context;
    graph->storage = setun_graph_storage_create();
    if (!graph->storage) {
        setun_free(graph);
        return setun_fail(SETUN_ERROR_MEMORY, "out of memory: the storage of a graph");
    }
    *out = graph;
    return SETUN_OK;
}

void setun_graph_destroy(setun_graph *graph) {
    if (!graph) return;
    setun_graph_storage_release(graph->storage);
    setun_free(graph->nodes);
    setun_free(graph);
}

/* Keeps the thread's message as the graph's, unless the graph has failed before. */
static setun_node keep_error(setun_graph *graph, setun_status status) {
    if (graph->error == SETUN_OK) {
        graph->error = status;
        snprintf(graph->error_message, sizeof graph->error_message, "%s", setun_error());
    }
    return SETUN_NODE_NONE;
}

setun_node setun_graph_refuse(setun_graph *graph, setun_status status, const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    setun_fail(status, "%s", message);
    return graph ? keep_error(graph, status) : SETUN_NODE_NONE;
}

static setun_node refuse_memory(setun_graph *graph, const char *what) { return setun_graph_refuse(graph, SETUN_ERROR_MEMORY, "out of memory: %s", what); }

/* False where a call must do nothing: no graph, or one that has failed. */
static bool alive(setun_graph *graph, const char *call) {
    if (!graph) {
        setun_fail(SETUN_ERROR_ARGUMENT, "%s: graph is NULL", call);
        return false;
    }
    if (graph->error != SETUN_OK) setun_fail(graph->error, "%s", graph->error_message);
    return graph->error == SETUN_OK;
}

static bool name_fits(setun_graph *graph, const char *what, const char *name) {
    size_t most = sizeof graph->nodes[0].name - 1;
    if (name && name[0] && strlen(name) <= most) return true;
    setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "%s: the name must have 1 to %zu bytes", what, most);
    return false;
}

/* ---- appending ---- */

static setun_node append(setun_graph *graph, setun_graph_node *node) {
    setun_status status = setun_graph_infer(graph, node, &node->dtype, &node->shape);
    if (status != SETUN_OK) return keep_error(graph, status);
    if (graph->node_count == graph->node_capacity) {
        if (graph->node_count >= SETUN_GRAPH_MAX_NODES) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "%s: the graph has %d nodes already, which is the most", setun_op_name(node->op), graph->node_count);
        int capacity = graph->node_capacity ? graph->node_capacity * 2 : 64;
        setun_graph_node *nodes = setun_realloc(graph->nodes, (size_t)capacity * sizeof *nodes);
        if (!nodes) return refuse_memory(graph, "a graph's nodes");
        graph->nodes = nodes;
        graph->node_capacity = capacity;
    }
    graph->nodes[graph->node_count] = *node;
    return graph->node_count++;
}

/* An operation over computed inputs. A last input that is optional and NONE is left out. */
static setun_graph_node operation(setun_op op, int count, setun_node a, setun_node b, setun_node c) {
    setun_graph_node node;
    memset(&node, 0, sizeof node);
    node.op = op;
    node.input_count = count;
    node.input[0] = a;
    node.input[1] = b;
    node.input[2] = c;
    return node;
}

static setun_node append_unary(setun_graph *graph, setun_op op, setun_node x, float factor) {
    if (!alive(graph, setun_op_name(op))) return SETUN_NODE_NONE;
    setun_graph_node node = operation(op, 1, x, SETUN_NODE_NONE, SETUN_NODE_NONE);
    node.factor = factor;
    return append(graph, &node);
}

static setun_node append_binary(setun_graph *graph, setun_op op, setun_node a, setun_node b) {
    if (!alive(graph, setun_op_name(op))) return SETUN_NODE_NONE;
    setun_graph_node node = operation(op, 2, a, b, SETUN_NODE_NONE);
    return append(graph, &node);
}

static bool copy_shape(setun_graph *graph, const char *what, int rank, const int64_t *shape, setun_shape *out) {
    memset(out, 0, sizeof *out);
    if (rank < 1 || rank > SETUN_MAX_RANK || !shape) {
        setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "%s: rank %d%s; it must be 1 to %d", what, rank, shape ? "" : " and no shape", SETUN_MAX_RANK);
        return false;
    }
    out->rank = rank;
    memcpy(out->dim, shape, (size_t)rank * sizeof *shape);
    return true;
}

/* ---- leaves ---- */

setun_node setun_graph_input(setun_graph *graph, const char *name, setun_dtype dtype, int rank, const int64_t *shape) {
    if (!alive(graph, "input") || !name_fits(graph, "input", name)) return SETUN_NODE_NONE;
    for (int i = 0; i < graph->node_count; i++)
        if (graph->nodes[i].op == SETUN_OP_INPUT && !strcmp(graph->nodes[i].name, name)) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "input '%s': the graph has an input of this name", name);
    setun_graph_node node = operation(SETUN_OP_INPUT, 0, SETUN_NODE_NONE, SETUN_NODE_NONE, SETUN_NODE_NONE);
    if (!copy_shape(graph, "input", rank, shape, &node.shape)) return SETUN_NODE_NONE;
    node.dtype = dtype;
    snprintf(node.name, sizeof node.name, "%s", name);
    return append(graph, &node);
}

static setun_node append_weight(setun_graph *graph, setun_model *model, const setun_weight *weight, const setun_shape *shape) {
    setun_graph_node node = operation(SETUN_OP_WEIGHT, 0, SETUN_NODE_NONE, SETUN_NODE_NONE, SETUN_NODE_NONE);
    node.weight = weight;
    node.model = model;
    node.dtype = SETUN_F32;
    node.shape = *shape;
    /* the name is for people: a long one is cut, the weight keeps all of it */
    snprintf(node.name, sizeof node.name, "%s", weight->name ? weight->name : "");
    return append(graph, &node);
}

setun_node setun_graph_add_weight(setun_graph *graph, setun_model *model, const setun_weight *weight) {
    if (!alive(graph, "weight")) return SETUN_NODE_NONE;
    if (!weight) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "weight: it is NULL");
    setun_shape shape = {2, {weight->rows, weight->columns}};
    if (weight->rows == 1) shape = (setun_shape){1, {weight->columns}};
    return append_weight(graph, model, weight, &shape);
}

setun_node setun_graph_model_weight(setun_graph *graph, setun_model *model, const char *tensor_name) {
    if (!alive(graph, "model_weight")) return SETUN_NODE_NONE;
    if (!model || !tensor_name) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "model_weight: %s is NULL", model ? "tensor_name" : "model");
    const setun_weight *weight = setun_model_find(model, tensor_name);
    if (!weight) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "model_weight: %s has no tensor '%s'; `setun inspect` lists them", model->path ? model->path : "the model", tensor_name);
    return setun_graph_add_weight(graph, model, weight);
}

/* A weight of f32 values in the storage; *out_values is to be filled by the caller. */
static setun_weight *new_weight(setun_graph *graph, const char *name, int64_t rows, int64_t columns, float **out_values) {
    uint64_t bytes = (uint64_t)rows * (uint64_t)columns * sizeof(float); /* rows * columns <= 2^40 was checked */
    setun_weight *weight = setun_graph_storage_weight(graph->storage, name);
    float *values = weight ? setun_graph_storage_bytes(graph->storage, bytes) : NULL;
    if (!values) {
        refuse_memory(graph, "a weight's values");
        return NULL;
    }
    weight->format = SETUN_FORMAT_F32;
    weight->rows = rows;
    weight->columns = columns;
    weight->data = (const uint8_t *)values;
    weight->bytes = bytes;
    *out_values = values;
    return weight;
}

setun_node setun_graph_weight(setun_graph *graph, const char *name, int rank, const int64_t *shape, const float *values) {
    setun_shape copy;
    if (!alive(graph, "weight") || !name_fits(graph, "weight", name) || !copy_shape(graph, "weight", rank, shape, &copy)) return SETUN_NODE_NONE;
    if (!values) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "weight '%s': values is NULL", name);
    int64_t count = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 1 || shape[i] > SETUN_GRAPH_MAX_ELEMENTS / count) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "weight '%s': shape %s; dimensions must be positive, 2^40 values in all", name, setun_shape_describe(&copy).text);
        count *= shape[i];
    }
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i])) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "weight '%s' %s: value %lld is %g; values must be finite", name, setun_shape_describe(&copy).text, (long long)i, (double)values[i]);
    float *own;
    setun_weight *weight = new_weight(graph, name, count / shape[rank - 1], shape[rank - 1], &own);
    if (!weight) return SETUN_NODE_NONE;
    memcpy(own, values, (size_t)weight->bytes);
    /* A matrix may hold ternary values; it then serves as a ternary one. Vectors (norms, biases) are read as floats only. */
    if (weight->rows > 1) {
        setun_status status = setun_ternary_probe(weight, &weight->info);
        if (status != SETUN_OK) return keep_error(graph, status);
        weight->probed = true;
    }
    return append_weight(graph, NULL, weight, &copy);
}

setun_node setun_graph_ternary_weight(setun_graph *graph, const char *name, int64_t rows, int64_t columns, const int8_t *codes, const float *scales, int group_size) {
    if (!alive(graph, "ternary_weight") || !name_fits(graph, "ternary_weight", name)) return SETUN_NODE_NONE;
    if (rows < 1 || columns < 1 || columns > SETUN_GRAPH_MAX_ELEMENTS / rows)
        return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': [%lld, %lld]; rows and columns must be positive, 2^40 codes in all", name, (long long)rows, (long long)columns);
    if (!codes || !scales) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': %s is NULL", name, codes ? "scales" : "codes");
    if (group_size != -1 && group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128 && group_size != 256)
        return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': group size %d; it is -1 (one scale), 0 (one a row), 32, 64, 128 or 256", name, group_size);
    if (group_size > 0 && columns % group_size)
        return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': [%lld, %lld]; groups of %d do not divide the columns", name, (long long)rows, (long long)columns, group_size);
    int64_t scale_count = group_size < 0 ? 1 : group_size == 0 ? rows : rows * (columns / group_size);
    for (int64_t i = 0; i < scale_count; i++)
        if (!isfinite(scales[i])) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': scale %lld is %g; scales must be finite", name, (long long)i, (double)scales[i]);
    for (int64_t i = 0; i < rows * columns; i++)
        if (codes[i] < -1 || codes[i] > 1) return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "ternary_weight '%s': the code at row %lld, column %lld is %d; codes are -1, 0, 1", name, (long long)(i / columns), (long long)(i % columns), codes[i]);
    /* Kept as floats: the one form that holds every row length and group size exactly, and which the ternary room reads. */
    float *values;
    setun_weight *weight = new_weight(graph, name, rows, columns, &values);
    if (!weight) return SETUN_NODE_NONE;
    int64_t group = group_size > 0 ? group_size : columns;
    for (int64_t i = 0; i < rows * columns; i++) {
        float scale = group_size < 0 ? scales[0] : scales[i / group];
        values[i] = codes[i] == 0 ? 0.0f : codes[i] > 0 ? scale : -scale;
    }
    setun_status status = setun_ternary_probe(weight, &weight->info);
    if (status != SETUN_OK) return keep_error(graph, status);
    weight->probed = true;
    setun_shape shape = {2, {rows, columns}};
    return append_weight(graph, NULL, weight, &shape);
}

/* ---- operations ---- */

setun_node setun_graph_embedding(setun_graph *graph, setun_node weight, setun_node ids) { return append_binary(graph, SETUN_OP_EMBEDDING, weight, ids); }

setun_node setun_graph_rms_norm(setun_graph *graph, setun_node x, setun_node weight, float epsilon, bool one_plus) {
    if (!alive(graph, "rms_norm")) return SETUN_NODE_NONE;
    setun_graph_node node = operation(SETUN_OP_RMS_NORM, weight == SETUN_NODE_NONE ? 1 : 2, x, weight, SETUN_NODE_NONE);
    node.epsilon = epsilon;
    node.one_plus = weight != SETUN_NODE_NONE && one_plus; /* without a weight there is nothing to add 1 to */
    return append(graph, &node);
}

setun_node setun_graph_quantize(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_QUANTIZE, x, 0); }

setun_node setun_graph_linear(setun_graph *graph, setun_node weight, setun_node x, setun_node bias) {
    if (!alive(graph, "linear")) return SETUN_NODE_NONE;
    setun_graph_node node = operation(SETUN_OP_LINEAR, bias == SETUN_NODE_NONE ? 2 : 3, weight, x, bias);
    return append(graph, &node);
}

setun_node setun_graph_add(setun_graph *graph, setun_node a, setun_node b) { return append_binary(graph, SETUN_OP_ADD, a, b); }
setun_node setun_graph_multiply(setun_graph *graph, setun_node a, setun_node b) { return append_binary(graph, SETUN_OP_MULTIPLY, a, b); }
setun_node setun_graph_scale(setun_graph *graph, setun_node x, float factor) { return append_unary(graph, SETUN_OP_SCALE, x, factor); }
setun_node setun_graph_silu(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_SILU, x, 0); }
setun_node setun_graph_relu2(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_RELU2, x, 0); }
setun_node setun_graph_gelu(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_GELU, x, 0); }
setun_node setun_graph_softmax(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_SOFTMAX, x, 0); }
setun_node setun_graph_l2_normalize(setun_graph *graph, setun_node x) { return append_unary(graph, SETUN_OP_L2_NORMALIZE, x, 0); }
setun_node setun_graph_select_rows(setun_graph *graph, setun_node x, setun_node rows) { return append_binary(graph, SETUN_OP_SELECT_ROWS, x, rows); }

setun_node setun_graph_reshape(setun_graph *graph, setun_node x, int rank, const int64_t *shape) {
    if (!alive(graph, "reshape")) return SETUN_NODE_NONE;
    setun_graph_node node = operation(SETUN_OP_RESHAPE, 1, x, SETUN_NODE_NONE, SETUN_NODE_NONE);
    if (!copy_shape(graph, "reshape", rank, shape, &node.shape)) return SETUN_NODE_NONE;
    return append(graph, &node);
}

setun_node setun_graph_hadamard(setun_graph *graph, setun_node x, int block, const float *signs, int64_t sign_count, bool inverse) {
    if (!alive(graph, "hadamard")) return SETUN_NODE_NONE;
    if (sign_count < 0 || sign_count > SETUN_GRAPH_MAX_ELEMENTS || (sign_count > 0 && !signs))
        return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "hadamard: %lld signs%s; there must be one a column, or none", (long long)sign_count, signs ? "" : " at NULL");
    setun_graph_node node = operation(SETUN_OP_HADAMARD, 1, x, SETUN_NODE_NONE, SETUN_NODE_NONE);
    node.block = block;
    node.inverse = inverse;
    if (sign_count) {
        /* checked before they are copied: infer compares their number with the width of x */
        setun_graph_node probe = node;
        probe.signs = signs;
        probe.sign_count = sign_count;
        setun_status status = setun_graph_infer(graph, &probe, &probe.dtype, &probe.shape);
        if (status != SETUN_OK) return keep_error(graph, status);
        node.signs = setun_graph_storage_floats(graph->storage, signs, sign_count);
        node.sign_count = sign_count;
        if (!node.signs) return refuse_memory(graph, "the signs of a hadamard");
    }
    return append(graph, &node);
}

setun_node setun_graph_rope(setun_graph *graph, setun_node x, setun_node positions, const setun_rope_options *options) {
    if (!alive(graph, "rope")) return SETUN_NODE_NONE;
    SETUN_OPTIONS(setun_rope_options, o, options);
    setun_graph_node node = operation(SETUN_OP_ROPE, 2, x, positions, SETUN_NODE_NONE);
    const setun_shape *shape = x >= 0 && x < graph->node_count ? &graph->nodes[x].shape : NULL;
    int64_t head = shape ? shape->dim[shape->rank - 1] : 0;
    node.rope.theta = o.theta == 0 ? 10000.0f : o.theta;
    node.rope.rotary = o.rotary == 0 && head <= INT32_MAX ? (int)head : o.rotary;
    node.rope.interleaved = o.interleaved;
    node.rope.scale = o.scale == 0 ? 1.0f : o.scale;
    node.rope.magnitude = o.magnitude == 0 ? 1.0f : o.magnitude;
    if (o.frequency_factors) {
        if (node.rope.rotary < 2 || node.rope.rotary > head) /* their number is not to be trusted then */
            return setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "rope: %d of the %lld values of a head are to be rotated; it must be an even number of them", node.rope.rotary, (long long)head);
        node.rope.factors = setun_graph_storage_floats(graph->storage, o.frequency_factors, node.rope.rotary / 2);
        if (!node.rope.factors) return refuse_memory(graph, "the frequency factors of a rope");
    }
    return append(graph, &node);
}

setun_node setun_graph_attention(setun_graph *graph, setun_node q, setun_node k, setun_node v, const setun_attention_options *options) {
    if (!alive(graph, "attention")) return SETUN_NODE_NONE;
    SETUN_OPTIONS(setun_attention_options, o, options);
    setun_graph_node node = operation(SETUN_OP_ATTENTION, 3, q, k, v);
    const setun_shape *shape = q >= 0 && q < graph->node_count ? &graph->nodes[q].shape : NULL;
    double head = shape ? (double)shape->dim[shape->rank - 1] : 1;
    node.attention.scale = o.scale == 0 ? (float)(1.0 / sqrt(head)) : o.scale;
    node.attention.window = o.window;
    node.attention.cache_layer = o.cache_layer;
    return append(graph, &node);
}

setun_status setun_graph_output(setun_graph *graph, setun_node node, const char *name) {
    if (!alive(graph, "output")) return graph ? graph->error : SETUN_ERROR_ARGUMENT;
    int most = (int)(sizeof graph->outputs / sizeof graph->outputs[0]);
    if (!name_fits(graph, "output", name)) return graph->error;
    if (node < 0 || node >= graph->node_count) {
        setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "output '%s': node %d; the graph has nodes 0 to %d", name, node, graph->node_count - 1);
    } else if (graph->nodes[node].op == SETUN_OP_WEIGHT || graph->nodes[node].dtype == SETUN_Q8) {
        setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "output '%s': node %d is %s; only f32 and i32 values can be read back", name, node, graph->nodes[node].op == SETUN_OP_WEIGHT ? "a weight" : "quantised");
    } else if (graph->output_count >= most) {
        setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "output '%s': a graph has at most %d outputs", name, most);
    } else {
        for (int i = 0; i < graph->output_count; i++)
            if (!strcmp(graph->outputs[i].name, name)) setun_graph_refuse(graph, SETUN_ERROR_ARGUMENT, "output '%s': the graph has an output of this name", name);
    }
    if (graph->error != SETUN_OK) return graph->error;
    graph->outputs[graph->output_count].node = node;
    snprintf(graph->outputs[graph->output_count].name, sizeof graph->outputs[0].name, "%s", name);
    graph->output_count++;
    return SETUN_OK;
}
