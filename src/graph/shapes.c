/*
 * shapes.c - the rules of every operation: which inputs it takes and what dtype and shape comes out. The builder asks for
 * each new node, setun_graph_verify asks for all of them again. Computes no values and knows no backend.
 */
#include "graph/internal.h"
#include <math.h>

static const char *const op_names[SETUN_OP_COUNT] = {
#define SETUN_OP(e, name, lo, hi) name,
#include "graph/ops.def"
#undef SETUN_OP
};
static const struct { int least, most; } op_inputs[SETUN_OP_COUNT] = {
#define SETUN_OP(e, name, lo, hi) {lo, hi},
#include "graph/ops.def"
#undef SETUN_OP
};

const char *setun_op_name(setun_op op) { return (int)op >= 0 && op < SETUN_OP_COUNT ? op_names[op] : "unknown"; }

const char *setun_node_dtype_name(setun_dtype dtype) { return dtype == SETUN_Q8 ? "q8" : setun_dtype_name(dtype); }

setun_shape_text setun_shape_describe(const setun_shape *shape) {
    setun_shape_text out;
    size_t used = 0;
    out.text[used++] = '[';
    for (int i = 0; i < shape->rank && i < SETUN_MAX_RANK; i++) {
        const char *comma = i ? ", " : "";
        size_t left = sizeof out.text - used;
        int n = shape->dim[i] == SETUN_DIM_TOKENS    ? snprintf(out.text + used, left, "%sT", comma)
                : shape->dim[i] == SETUN_DIM_OUTPUTS ? snprintf(out.text + used, left, "%sO", comma)
                                                     : snprintf(out.text + used, left, "%s%lld", comma, (long long)shape->dim[i]);
        if (n > 0) used += (size_t)n; /* 4 x (2 + 20) characters always fit */
    }
    out.text[used++] = ']';
    out.text[used] = 0;
    return out;
}

bool setun_shape_equal(const setun_shape *a, const setun_shape *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static bool symbolic(int64_t dim) { return dim == SETUN_DIM_TOKENS || dim == SETUN_DIM_OUTPUTS; }

/* Rank, dimensions and their product, symbols counting as 1. */
static setun_status check_shape(const char *what, const setun_shape *shape, int64_t *out_count) {
    if (shape->rank < 1 || shape->rank > SETUN_MAX_RANK) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: rank %d; it must be 1 to %d", what, shape->rank, SETUN_MAX_RANK);
    int64_t count = 1;
    for (int i = 0; i < shape->rank; i++) {
        int64_t dim = shape->dim[i];
        if (symbolic(dim)) {
            if (i) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s: only the first dimension may be SETUN_DIM_TOKENS or SETUN_DIM_OUTPUTS", what, setun_shape_describe(shape).text);
            continue;
        }
        if (dim < 1) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s: dimension %d is %lld; it must be positive", what, setun_shape_describe(shape).text, i, (long long)dim);
        if (dim > SETUN_GRAPH_MAX_ELEMENTS / count) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s: more than 2^40 elements", what, setun_shape_describe(shape).text);
        count *= dim;
    }
    *out_count = count;
    return SETUN_OK;
}

/* ---- what an operation asks of its inputs ---- */

static const setun_graph_node *input_of(const setun_graph *graph, const setun_graph_node *node, int i) { return &graph->nodes[node->input[i]]; }

static setun_status want_value(const setun_graph *graph, const setun_graph_node *node, int i, const char *role, setun_dtype dtype) {
    const setun_graph_node *in = input_of(graph, node, i);
    if (in->op == SETUN_OP_WEIGHT)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is the weight '%s' %s; weights go only into embedding, rms_norm and linear", setun_op_name(node->op), role, in->name, setun_shape_describe(&in->shape).text);
    if (in->dtype != dtype)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is %s %s; it must be %s", setun_op_name(node->op), role, setun_node_dtype_name(in->dtype), setun_shape_describe(&in->shape).text, setun_node_dtype_name(dtype));
    return SETUN_OK;
}

static setun_status want_weight(const setun_graph *graph, const setun_graph_node *node, int i, const char *role) {
    const setun_graph_node *in = input_of(graph, node, i);
    if (in->op != SETUN_OP_WEIGHT) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is a computed value %s; it must be a weight", setun_op_name(node->op), role, setun_shape_describe(&in->shape).text);
    return SETUN_OK;
}

/* A vector of `width` values: a norm's weight, a bias. */
static setun_status want_vector(const setun_graph *graph, const setun_graph_node *node, int i, const char *role, int64_t width) {
    SETUN_TRY(want_weight(graph, node, i, role));
    const setun_graph_node *in = input_of(graph, node, i);
    if (in->weight->rows != 1 || in->weight->columns != width)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s '%s' is %s; it must be [%lld]", setun_op_name(node->op), role, in->name, setun_shape_describe(&in->shape).text, (long long)width);
    return SETUN_OK;
}

static int64_t last_dim(const setun_shape *shape) { return shape->dim[shape->rank - 1]; }

/* ---- the rules, one function an operation ---- */

typedef setun_status (*infer_fn)(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape);

static setun_status infer_input(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    (void)graph;
    if (!node->name[0]) return setun_fail(SETUN_ERROR_ARGUMENT, "input: it has no name");
    if (node->dtype != SETUN_F32 && node->dtype != SETUN_I32)
        return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s': dtype %s; inputs are f32 or i32", node->name, setun_node_dtype_name(node->dtype));
    int64_t count;
    char what[96];
    snprintf(what, sizeof what, "input '%s'", node->name);
    SETUN_TRY(check_shape(what, &node->shape, &count));
    *dtype = node->dtype;
    *shape = node->shape;
    return SETUN_OK;
}

static setun_status infer_weight(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    (void)graph;
    const setun_weight *w = node->weight;
    if (!w) return setun_fail(SETUN_ERROR_ARGUMENT, "weight '%s': it has no data", node->name);
    if (w->rows < 1 || w->columns < 1 || w->columns > SETUN_GRAPH_MAX_ELEMENTS / w->rows)
        return setun_fail(SETUN_ERROR_ARGUMENT, "weight '%s': shape [%lld, %lld]", node->name, (long long)w->rows, (long long)w->columns);
    int64_t count;
    char what[96];
    snprintf(what, sizeof what, "weight '%s'", node->name);
    SETUN_TRY(check_shape(what, &node->shape, &count));
    if (symbolic(node->shape.dim[0]) || count != w->rows * w->columns || last_dim(&node->shape) != w->columns)
        return setun_fail(SETUN_ERROR_ARGUMENT, "weight '%s': shape %s does not describe %lld rows of %lld", node->name, setun_shape_describe(&node->shape).text, (long long)w->rows, (long long)w->columns);
    *dtype = SETUN_F32;
    *shape = node->shape;
    return SETUN_OK;
}

static setun_status infer_embedding(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_weight(graph, node, 0, "weight"));
    SETUN_TRY(want_value(graph, node, 1, "ids", SETUN_I32));
    const setun_shape *ids = &input_of(graph, node, 1)->shape;
    if (ids->rank != 1) return setun_fail(SETUN_ERROR_ARGUMENT, "embedding: ids is %s; it must have one dimension", setun_shape_describe(ids).text);
    *dtype = SETUN_F32;
    *shape = (setun_shape){2, {ids->dim[0], input_of(graph, node, 0)->weight->columns}};
    return SETUN_OK;
}

static setun_status infer_rms_norm(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    const setun_shape *x = &input_of(graph, node, 0)->shape;
    if (node->input_count > 1) SETUN_TRY(want_vector(graph, node, 1, "weight", last_dim(x)));
    /* also catches NaN; 0 is legal, a row of zeros then gives NaN, as the formula says */
    if (!(node->epsilon >= 0 && node->epsilon < 1)) return setun_fail(SETUN_ERROR_ARGUMENT, "rms_norm: epsilon %g; it must be at least 0 and below 1", (double)node->epsilon);
    *dtype = SETUN_F32;
    *shape = *x;
    return SETUN_OK;
}

static setun_status infer_quantize(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    const setun_shape *x = &input_of(graph, node, 0)->shape;
    if (last_dim(x) > SETUN_GRAPH_MAX_Q8_WIDTH) return setun_fail(SETUN_ERROR_ARGUMENT, "quantize: x is %s; rows of int8 have at most 2^22 values", setun_shape_describe(x).text);
    *dtype = SETUN_Q8;
    *shape = *x;
    return SETUN_OK;
}

static setun_status infer_linear(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_weight(graph, node, 0, "weight"));
    const setun_graph_node *w = input_of(graph, node, 0), *x = input_of(graph, node, 1);
    if (x->dtype != SETUN_Q8) SETUN_TRY(want_value(graph, node, 1, "x", SETUN_F32));
    if (last_dim(&x->shape) != w->weight->columns)
        return setun_fail(SETUN_ERROR_ARGUMENT, "linear: weight '%s' is [%lld, %lld] and x is %s; x must end in %lld", w->name, (long long)w->weight->rows, (long long)w->weight->columns, setun_shape_describe(&x->shape).text, (long long)w->weight->columns);
    if (x->dtype == SETUN_Q8 && !(w->weight->probed && w->weight->info.ternary))
        return setun_fail(SETUN_ERROR_ARGUMENT, "linear: weight '%s' is not ternary; quantised activations need a ternary weight: give it the f32 x", w->name);
    if (node->input_count > 2) {
        SETUN_TRY(want_vector(graph, node, 2, "bias", w->weight->rows));
        const setun_graph_node *bias = input_of(graph, node, 2);
        if (bias->model && w->model && bias->model != w->model) return setun_fail(SETUN_ERROR_ARGUMENT, "linear: weight '%s' and bias '%s' come from two models", w->name, bias->name);
    }
    *dtype = SETUN_F32;
    *shape = x->shape;
    shape->dim[shape->rank - 1] = w->weight->rows;
    int64_t count;
    return check_shape("linear", shape, &count);
}

static setun_status infer_binary(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "a", SETUN_F32));
    SETUN_TRY(want_value(graph, node, 1, "b", SETUN_F32));
    const setun_shape *a = &input_of(graph, node, 0)->shape, *b = &input_of(graph, node, 1)->shape;
    if (!setun_shape_equal(a, b)) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: a is %s and b is %s; they must be equal", setun_op_name(node->op), setun_shape_describe(a).text, setun_shape_describe(b).text);
    *dtype = SETUN_F32;
    *shape = *a;
    return SETUN_OK;
}

static setun_status infer_unary(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    if (node->op == SETUN_OP_SCALE && !isfinite(node->factor)) return setun_fail(SETUN_ERROR_ARGUMENT, "scale: factor %g; it must be finite", (double)node->factor);
    *dtype = SETUN_F32;
    *shape = input_of(graph, node, 0)->shape;
    return SETUN_OK;
}

static setun_status infer_reshape(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    const setun_graph_node *x = input_of(graph, node, 0);
    if (x->dtype != SETUN_I32) SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32)); /* q8 rows carry padding: their bytes have one shape */
    int64_t from, to;
    SETUN_TRY(check_shape("reshape", &node->shape, &to));
    SETUN_TRY(check_shape("reshape", &x->shape, &from));
    int64_t a = symbolic(x->shape.dim[0]) ? x->shape.dim[0] : 0, b = symbolic(node->shape.dim[0]) ? node->shape.dim[0] : 0;
    if (from != to || a != b)
        return setun_fail(SETUN_ERROR_ARGUMENT, "reshape: %s has not as many elements as %s (a symbolic first dimension stays as it is)", setun_shape_describe(&x->shape).text, setun_shape_describe(&node->shape).text);
    *dtype = x->dtype;
    *shape = node->shape;
    return SETUN_OK;
}

static setun_status infer_select_rows(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    SETUN_TRY(want_value(graph, node, 1, "rows", SETUN_I32));
    const setun_shape *x = &input_of(graph, node, 0)->shape, *rows = &input_of(graph, node, 1)->shape;
    if (x->rank < 2 || rows->rank != 1)
        return setun_fail(SETUN_ERROR_ARGUMENT, "select_rows: x is %s and rows is %s; they must be [T, ..] with at least two dimensions and [O]", setun_shape_describe(x).text, setun_shape_describe(rows).text);
    *dtype = SETUN_F32;
    *shape = *x;
    shape->dim[0] = rows->dim[0];
    int64_t count;
    return check_shape("select_rows", shape, &count);
}

static setun_status infer_hadamard(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    const setun_shape *x = &input_of(graph, node, 0)->shape;
    if (node->block < 1 || (node->block & (node->block - 1))) return setun_fail(SETUN_ERROR_ARGUMENT, "hadamard: block %d; it must be a power of two", node->block);
    if (last_dim(x) % node->block) return setun_fail(SETUN_ERROR_ARGUMENT, "hadamard: x is %s; block %d does not divide its width", setun_shape_describe(x).text, node->block);
    if (node->signs ? node->sign_count != last_dim(x) : node->sign_count != 0)
        return setun_fail(SETUN_ERROR_ARGUMENT, "hadamard: x is %s and there are %lld signs; there must be one a column, or none", setun_shape_describe(x).text, (long long)node->sign_count);
    for (int64_t i = 0; i < node->sign_count; i++)
        if (node->signs[i] != 1 && node->signs[i] != -1) return setun_fail(SETUN_ERROR_ARGUMENT, "hadamard: sign %lld is %g; signs are 1 or -1", (long long)i, (double)node->signs[i]);
    *dtype = SETUN_F32;
    *shape = *x;
    return SETUN_OK;
}

static setun_status infer_rope(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    SETUN_TRY(want_value(graph, node, 0, "x", SETUN_F32));
    SETUN_TRY(want_value(graph, node, 1, "positions", SETUN_I32));
    const setun_shape *x = &input_of(graph, node, 0)->shape, *positions = &input_of(graph, node, 1)->shape;
    const setun_rope_spec *rope = &node->rope;
    if (x->rank != 3 || positions->rank != 1 || x->dim[0] != positions->dim[0])
        return setun_fail(SETUN_ERROR_ARGUMENT, "rope: x is %s and positions is %s; they must be [T, heads, d] and [T]", setun_shape_describe(x).text, setun_shape_describe(positions).text);
    if (x->dim[1] > INT32_MAX || x->dim[2] > INT32_MAX) return setun_fail(SETUN_ERROR_ARGUMENT, "rope: x is %s: too large", setun_shape_describe(x).text);
    if (rope->rotary < 2 || rope->rotary % 2 || rope->rotary > last_dim(x))
        return setun_fail(SETUN_ERROR_ARGUMENT, "rope: %d of the %lld values of a head are to be rotated; it must be an even number of them", rope->rotary, (long long)last_dim(x));
    if (!(rope->theta > 0) || !isfinite(rope->theta) || !(rope->scale > 0) || !isfinite(rope->scale) || !(rope->magnitude > 0) || !isfinite(rope->magnitude))
        return setun_fail(SETUN_ERROR_ARGUMENT, "rope: theta %g, scale %g, magnitude %g; they must be positive and finite", (double)rope->theta, (double)rope->scale, (double)rope->magnitude);
    for (int i = 0; rope->factors && i < rope->rotary / 2; i++)
        if (!(rope->factors[i] > 0) || !isfinite(rope->factors[i])) return setun_fail(SETUN_ERROR_ARGUMENT, "rope: frequency factor %d is %g; factors must be positive and finite", i, (double)rope->factors[i]);
    *dtype = SETUN_F32;
    *shape = *x;
    return SETUN_OK;
}

static setun_status infer_attention(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    static const char *const roles[3] = {"q", "k", "v"};
    for (int i = 0; i < 3; i++) SETUN_TRY(want_value(graph, node, i, roles[i], SETUN_F32));
    const setun_shape *q = &input_of(graph, node, 0)->shape, *k = &input_of(graph, node, 1)->shape, *v = &input_of(graph, node, 2)->shape;
    if (q->rank != 3 || k->rank != 3 || !setun_shape_equal(k, v) || q->dim[0] != k->dim[0] || q->dim[2] != k->dim[2] || q->dim[1] % k->dim[1])
        return setun_fail(SETUN_ERROR_ARGUMENT, "attention: q is %s, k %s, v %s; they must be [T, heads, d], [T, kv_heads, d], [T, kv_heads, d] with heads a multiple of kv_heads",
                          setun_shape_describe(q).text, setun_shape_describe(k).text, setun_shape_describe(v).text);
    if (q->dim[0] != SETUN_DIM_TOKENS) return setun_fail(SETUN_ERROR_ARGUMENT, "attention: q is %s; its first dimension must be SETUN_DIM_TOKENS", setun_shape_describe(q).text);
    if (q->dim[1] > INT32_MAX || q->dim[2] > INT32_MAX) return setun_fail(SETUN_ERROR_ARGUMENT, "attention: q is %s: too large", setun_shape_describe(q).text);
    const setun_attention_spec *a = &node->attention;
    if (!(a->scale > 0) || !isfinite(a->scale)) return setun_fail(SETUN_ERROR_ARGUMENT, "attention: scale %g; it must be positive and finite", (double)a->scale);
    if (a->window < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "attention: window %d; it must be a number of tokens, or 0", a->window);
    if (a->cache_layer < 0 || a->cache_layer > SETUN_GRAPH_MAX_CACHE_LAYERS)
        return setun_fail(SETUN_ERROR_ARGUMENT, "attention: cache layer %d; layers are 1 to %d, or 0 for no cache", a->cache_layer, SETUN_GRAPH_MAX_CACHE_LAYERS);
    *dtype = SETUN_F32;
    *shape = (setun_shape){2, {q->dim[0], q->dim[1] * q->dim[2]}};
    return SETUN_OK;
}

static const infer_fn rules[SETUN_OP_COUNT] = {
    [SETUN_OP_INPUT] = infer_input,
    [SETUN_OP_WEIGHT] = infer_weight,
    [SETUN_OP_EMBEDDING] = infer_embedding,
    [SETUN_OP_RMS_NORM] = infer_rms_norm,
    [SETUN_OP_QUANTIZE] = infer_quantize,
    [SETUN_OP_LINEAR] = infer_linear,
    [SETUN_OP_ADD] = infer_binary,
    [SETUN_OP_MULTIPLY] = infer_binary,
    [SETUN_OP_SCALE] = infer_unary,
    [SETUN_OP_SILU] = infer_unary,
    [SETUN_OP_RELU2] = infer_unary,
    [SETUN_OP_GELU] = infer_unary,
    [SETUN_OP_SOFTMAX] = infer_unary,
    [SETUN_OP_L2_NORMALIZE] = infer_unary,
    [SETUN_OP_RESHAPE] = infer_reshape,
    [SETUN_OP_SELECT_ROWS] = infer_select_rows,
    [SETUN_OP_HADAMARD] = infer_hadamard,
    [SETUN_OP_ROPE] = infer_rope,
    [SETUN_OP_ATTENTION] = infer_attention,
};

setun_status setun_graph_infer(const setun_graph *graph, const setun_graph_node *node, setun_dtype *dtype, setun_shape *shape) {
    if ((int)node->op < 0 || node->op >= SETUN_OP_COUNT || !rules[node->op]) return setun_fail(SETUN_ERROR_ARGUMENT, "operation %d is unknown", (int)node->op);
    if (node->input_count < op_inputs[node->op].least || node->input_count > op_inputs[node->op].most)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %d inputs; it takes %d to %d", setun_op_name(node->op), node->input_count, op_inputs[node->op].least, op_inputs[node->op].most);
    for (int i = 0; i < node->input_count; i++)
        if (node->input[i] < 0 || node->input[i] >= graph->node_count)
            return setun_fail(SETUN_ERROR_ARGUMENT, "%s: input %d is node %d; the graph has nodes 0 to %d", setun_op_name(node->op), i, node->input[i], graph->node_count - 1);
    SETUN_TRY(rules[node->op](graph, node, dtype, shape));
    /* rows of floats have a width that no run changes: kernels, memory and packing are chosen by it */
    if (*dtype != SETUN_I32 && symbolic(last_dim(shape)))
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s %s; the last dimension of %s values must be a number ([T] can be written [T, 1])", setun_op_name(node->op), node->name, setun_shape_describe(shape).text, setun_node_dtype_name(*dtype));
    return SETUN_OK;
}

/* ---- verify ---- */

/* The cache is one array for all layers, so its layers have one shape, and each is appended to once a run. */
static setun_status verify_cache(const setun_graph *graph) {
    uint64_t seen[SETUN_GRAPH_MAX_CACHE_LAYERS / 64 + 1] = {0};
    const setun_shape *first = NULL;
    for (int i = 0; i < graph->node_count; i++) {
        const setun_graph_node *node = &graph->nodes[i];
        if (node->op != SETUN_OP_ATTENTION || !node->attention.cache_layer) continue;
        int layer = node->attention.cache_layer;
        if (seen[layer / 64] >> (layer % 64) & 1) return setun_fail(SETUN_ERROR_ARGUMENT, "attention: node %d uses cache layer %d, as another attention does; give each its own", i, layer);
        seen[layer / 64] |= (uint64_t)1 << (layer % 64);
        const setun_shape *k = &input_of(graph, node, 1)->shape;
        if (!first) first = k;
        if (!setun_shape_equal(first, k))
            return setun_fail(SETUN_ERROR_ARGUMENT, "attention: node %d caches keys %s and another attention %s; all cached layers must have one shape", i, setun_shape_describe(k).text, setun_shape_describe(first).text);
    }
    return SETUN_OK;
}

setun_status setun_graph_verify(const setun_graph *graph) {
    if (!graph) return setun_fail(SETUN_ERROR_ARGUMENT, "graph is NULL");
    if (graph->error != SETUN_OK) return setun_fail(graph->error, "%s", graph->error_message);
    for (int i = 0; i < graph->node_count; i++) {
        const setun_graph_node *node = &graph->nodes[i];
        for (int j = 0; j < node->input_count && j < 3; j++)
            if (node->input[j] >= i) return setun_fail(SETUN_ERROR_ARGUMENT, "node %d (%s): input %d is node %d, which comes later", i, setun_op_name(node->op), j, node->input[j]);
        setun_dtype dtype;
        setun_shape shape;
        setun_status status = setun_graph_infer(graph, node, &dtype, &shape);
        if (status != SETUN_OK) return setun_fail_prefix(status, "node %d", i);
        if (dtype != node->dtype || !setun_shape_equal(&shape, &node->shape))
            return setun_fail(SETUN_ERROR_ARGUMENT, "node %d (%s): it says %s %s, its inputs give %s %s", i, setun_op_name(node->op), setun_node_dtype_name(node->dtype), setun_shape_describe(&node->shape).text,
                              setun_node_dtype_name(dtype), setun_shape_describe(&shape).text);
        if (node->op == SETUN_OP_INPUT)
            for (int j = 0; j < i; j++)
                if (graph->nodes[j].op == SETUN_OP_INPUT && !strcmp(graph->nodes[j].name, node->name)) return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s': nodes %d and %d have this name", node->name, j, i);
    }
    if (graph->output_count < 1 || graph->output_count > (int)(sizeof graph->outputs / sizeof graph->outputs[0]))
        return setun_fail(SETUN_ERROR_ARGUMENT, "the graph has %d outputs; mark at least one with setun_graph_output", graph->output_count);
    for (int i = 0; i < graph->output_count; i++) {
        setun_node id = graph->outputs[i].node;
        if (id < 0 || id >= graph->node_count) return setun_fail(SETUN_ERROR_ARGUMENT, "output '%s': node %d does not exist", graph->outputs[i].name, id);
        if (graph->nodes[id].op == SETUN_OP_WEIGHT || graph->nodes[id].dtype == SETUN_Q8)
            return setun_fail(SETUN_ERROR_ARGUMENT, "output '%s': node %d is %s; only f32 and i32 values can be read back", graph->outputs[i].name, id, graph->nodes[id].op == SETUN_OP_WEIGHT ? "a weight" : "quantised");
        for (int j = 0; j < i; j++)
            if (!strcmp(graph->outputs[i].name, graph->outputs[j].name)) return setun_fail(SETUN_ERROR_ARGUMENT, "output '%s': two outputs have this name", graph->outputs[i].name);
    }
    return verify_cache(graph);
}
