/*
 * dump.c - a graph as text or JSON, for people, tests and `explain`. Changes nothing; shows graphs that do not verify, too.
 */
#include "graph/internal.h"

/* The attributes that this operation has: name, value pairs. */
static void attributes(setun_string *s, const setun_graph_node *n, bool json) {
    const char *form_f = json ? ", \"%s\": %.9g" : " %s=%.9g", *form_i = json ? ", \"%s\": %d" : " %s=%d";
    switch (n->op) {
    case SETUN_OP_RMS_NORM:
        setun_string_printf(s, form_f, "epsilon", (double)n->epsilon);
        if (n->one_plus) setun_string_printf(s, form_i, "one_plus", 1);
        break;
    case SETUN_OP_SCALE: setun_string_printf(s, form_f, "factor", (double)n->factor); break;
    case SETUN_OP_HADAMARD:
        setun_string_printf(s, form_i, "block", n->block);
        setun_string_printf(s, form_i, "signs", n->signs ? 1 : 0);
        setun_string_printf(s, form_i, "inverse", n->inverse);
        break;
    case SETUN_OP_ROPE:
        setun_string_printf(s, form_f, "theta", (double)n->rope.theta);
        setun_string_printf(s, form_i, "rotary", n->rope.rotary);
        setun_string_printf(s, form_i, "interleaved", n->rope.interleaved);
        setun_string_printf(s, form_f, "position_scale", (double)n->rope.scale);
        setun_string_printf(s, form_f, "magnitude", (double)n->rope.magnitude);
        setun_string_printf(s, form_i, "frequency_factors", n->rope.factors ? n->rope.rotary / 2 : 0);
        break;
    case SETUN_OP_ATTENTION:
        setun_string_printf(s, form_f, "softmax_scale", (double)n->attention.scale);
        setun_string_printf(s, form_i, "window", n->attention.window);
        setun_string_printf(s, form_i, "cache_layer", n->attention.cache_layer);
        break;
    default: break;
    }
}

static void shape_json(setun_string *s, const setun_shape *shape) {
    setun_string_puts(s, "[");
    for (int i = 0; i < shape->rank; i++) {
        if (i) setun_string_puts(s, ", ");
        if (shape->dim[i] == SETUN_DIM_TOKENS) setun_string_puts(s, "\"T\"");
        else if (shape->dim[i] == SETUN_DIM_OUTPUTS) setun_string_puts(s, "\"O\"");
        else setun_string_printf(s, "%lld", (long long)shape->dim[i]);
    }
    setun_string_puts(s, "]");
}

static void node_json(setun_string *s, const setun_graph *graph, int index) {
    const setun_graph_node *n = &graph->nodes[index];
    setun_string_printf(s, "%s\n  {\"node\": %d, \"op\": \"%s\", \"dtype\": \"%s\", \"shape\": ", index ? "," : "", index, setun_op_name(n->op), setun_node_dtype_name(n->dtype));
    shape_json(s, &n->shape);
    setun_string_puts(s, ", \"inputs\": [");
    for (int i = 0; i < n->input_count; i++) setun_string_printf(s, "%s%d", i ? ", " : "", n->input[i]);
    setun_string_puts(s, "]");
    if (n->name[0]) {
        setun_string_puts(s, ", \"name\": ");
        setun_string_json(s, n->name, strlen(n->name));
    }
    if (n->op == SETUN_OP_WEIGHT && n->weight) setun_string_printf(s, ", \"format\": \"%s\", \"ternary\": %s, \"bytes\": %llu", setun_format_name(n->weight->format), n->weight->probed && n->weight->info.ternary ? "true" : "false", (unsigned long long)n->weight->bytes);
    attributes(s, n, true);
    setun_string_puts(s, "}");
}

static void node_text(setun_string *s, const setun_graph *graph, int index) {
    const setun_graph_node *n = &graph->nodes[index];
    setun_string_printf(s, "%5d  %-12s %-4s %-18s", index, setun_op_name(n->op), setun_node_dtype_name(n->dtype), setun_shape_describe(&n->shape).text);
    for (int i = 0; i < n->input_count; i++) setun_string_printf(s, " %%%d", n->input[i]);
    if (n->name[0]) setun_string_printf(s, " '%s'", n->name);
    if (n->op == SETUN_OP_WEIGHT && n->weight) setun_string_printf(s, " %s%s", setun_format_name(n->weight->format), n->weight->probed && n->weight->info.ternary ? " (ternary)" : "");
    attributes(s, n, false);
    setun_string_puts(s, "\n");
}

setun_status setun_graph_dump(const setun_graph *graph, bool json, char **out) {
    if (!graph || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_dump: %s is NULL", graph ? "out" : "graph");
    *out = NULL;
    setun_string s = {0};
    if (json) setun_string_puts(&s, "{\"nodes\": [");
    for (int i = 0; i < graph->node_count; i++) json ? node_json(&s, graph, i) : node_text(&s, graph, i);
    if (json) setun_string_puts(&s, "\n ], \"outputs\": [");
    for (int i = 0; i < graph->output_count; i++) {
        if (json) {
            setun_string_printf(&s, "%s{\"node\": %d, \"name\": ", i ? ", " : "", graph->outputs[i].node);
            setun_string_json(&s, graph->outputs[i].name, strlen(graph->outputs[i].name));
            setun_string_puts(&s, "}");
        } else {
            setun_string_printf(&s, "output '%s' = %%%d\n", graph->outputs[i].name, graph->outputs[i].node);
        }
    }
    if (json) {
        setun_string_puts(&s, "], \"error\": ");
        if (graph->error == SETUN_OK) setun_string_puts(&s, "null");
        else setun_string_json(&s, graph->error_message, strlen(graph->error_message));
        setun_string_puts(&s, "}\n");
    } else if (graph->error != SETUN_OK) {
        setun_string_printf(&s, "error: %s\n", graph->error_message);
    }
    return setun_string_take(&s, out, NULL);
}
