/*
 * lower.c - a clean graph becomes a tape: one step an operation, in the builder's order, one slot a value. A reshape is no
 * step but a second view of the slot. Called by setun_plan_build after clean; knows no fusion and no memory.
 */
#include "plan/passes.h"

static const char *const step_names[SETUN_STEP_COUNT] = {
#define SETUN_STEP(e, name) name,
#include "plan/steps.def"
#undef SETUN_STEP
};

const char *setun_step_name(setun_step_kind kind) { return (int)kind >= 0 && kind < SETUN_STEP_COUNT ? step_names[kind] : "unknown"; }

static const setun_step_kind kinds[SETUN_OP_COUNT] = {
    [SETUN_OP_INPUT] = SETUN_STEP_COUNT, /* no step */
    [SETUN_OP_WEIGHT] = SETUN_STEP_COUNT,
    [SETUN_OP_RESHAPE] = SETUN_STEP_COUNT,
    [SETUN_OP_EMBEDDING] = SETUN_STEP_EMBEDDING,
    [SETUN_OP_RMS_NORM] = SETUN_STEP_NORM,
    [SETUN_OP_QUANTIZE] = SETUN_STEP_QUANTIZE,
    [SETUN_OP_LINEAR] = SETUN_STEP_LINEAR,
    [SETUN_OP_ADD] = SETUN_STEP_BINARY,
    [SETUN_OP_MULTIPLY] = SETUN_STEP_BINARY,
    [SETUN_OP_SCALE] = SETUN_STEP_UNARY,
    [SETUN_OP_SILU] = SETUN_STEP_UNARY,
    [SETUN_OP_RELU2] = SETUN_STEP_UNARY,
    [SETUN_OP_GELU] = SETUN_STEP_UNARY,
    [SETUN_OP_SOFTMAX] = SETUN_STEP_SOFTMAX,
    [SETUN_OP_L2_NORMALIZE] = SETUN_STEP_L2,
    [SETUN_OP_SELECT_ROWS] = SETUN_STEP_SELECT,
    [SETUN_OP_HADAMARD] = SETUN_STEP_HADAMARD,
    [SETUN_OP_ROPE] = SETUN_STEP_ROPE,
    [SETUN_OP_ATTENTION] = SETUN_STEP_ATTENTION,
};

static int add_slot(setun_plan *plan, setun_dtype dtype, const setun_shape *shape, int alias_of) {
    setun_slot *slot = &plan->slots[plan->slot_count];
    memset(slot, 0, sizeof *slot);
    slot->dtype = dtype;
    slot->shape = *shape;
    slot->place = SETUN_PLACE_ARENA;
    slot->alias_of = alias_of;
    return plan->slot_count++;
}

static void name_slot(setun_slot *slot, setun_slot_place place, const char *name) {
    slot->place = place;
    snprintf(slot->name, sizeof slot->name, "%s", name);
}

static void clear_step(setun_step *step, setun_step_kind kind, setun_op op) {
    memset(step, 0, sizeof *step);
    step->kind = kind;
    for (int i = 0; i < 4; i++) step->input[i] = -1;
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) step->output[i] = -1;
    step->residual = -1;
    step->factor = 1;
    step->activation = op;
    snprintf(step->fused, sizeof step->fused, "%s", setun_op_name(op));
}

/* Weight or bias of a step; the model whose lock will be taken. Two models in one node were refused by the graph. */
static const setun_weight *take_weight(setun_step *step, const setun_graph *graph, setun_node node) {
    const setun_graph_node *leaf = &graph->nodes[node];
    if (leaf->model) step->model = leaf->model;
    return leaf->weight;
}

static void lower_node(const setun_graph *graph, const setun_graph_node *n, const int *slot_of, setun_step *step) {
    int values = 0;
    for (int i = 0; i < n->input_count; i++)
        if (graph->nodes[n->input[i]].op != SETUN_OP_WEIGHT) step->input[values++] = slot_of[n->input[i]];
    switch (n->op) {
    case SETUN_OP_EMBEDDING:
        step->weight_count = 1;
        step->weight[0] = take_weight(step, graph, n->input[0]);
        break;
    case SETUN_OP_RMS_NORM:
        step->epsilon = n->epsilon;
        step->one_plus = n->one_plus;
        if (n->input_count > 1) {
            step->weight_count = 1;
            step->weight[0] = take_weight(step, graph, n->input[1]);
        }
        break;
    case SETUN_OP_QUANTIZE: step->quantize = true; break;
    case SETUN_OP_LINEAR:
        step->weight_count = 1;
        step->weight[0] = take_weight(step, graph, n->input[0]);
        if (n->input_count > 2) step->bias[0] = take_weight(step, graph, n->input[2]);
        step->quantized_input = graph->nodes[n->input[1]].dtype == SETUN_Q8;
        break;
    case SETUN_OP_SCALE: step->factor = n->factor; break;
    case SETUN_OP_HADAMARD:
        step->block = n->block;
        step->inverse = n->inverse;
        step->signs = n->signs;
        step->sign_count = n->sign_count;
        break;
    case SETUN_OP_ROPE:
        step->has_rope = true;
        step->rope = n->rope;
        step->heads = (int)n->shape.dim[1];
        step->head_size = (int)n->shape.dim[2];
        break;
    case SETUN_OP_ATTENTION: {
        const setun_shape *q = &graph->nodes[n->input[0]].shape, *k = &graph->nodes[n->input[1]].shape;
        step->attention = n->attention;
        step->heads = (int)q->dim[1];
        step->kv_heads = (int)k->dim[1];
        step->head_size = (int)q->dim[2];
        break;
    }
    default: break;
    }
}

setun_status setun_plan_lower(const setun_graph *graph, setun_plan *plan) {
    int most_slots = graph->node_count + graph->output_count;
    plan->steps = setun_calloc((size_t)graph->node_count + 1, sizeof *plan->steps);
    plan->slots = setun_calloc((size_t)most_slots + 1, sizeof *plan->slots);
    int *slot_of = setun_calloc((size_t)graph->node_count + 1, sizeof *slot_of);
    if (!plan->steps || !plan->slots || !slot_of) {
        setun_free(slot_of);
        return setun_fail(SETUN_ERROR_MEMORY, "out of memory: the tape of %d nodes", graph->node_count);
    }
    for (int i = 0; i < graph->node_count; i++) {
        const setun_graph_node *n = &graph->nodes[i];
        slot_of[i] = -1;
        if (n->op == SETUN_OP_WEIGHT) continue;
        slot_of[i] = add_slot(plan, n->dtype, &n->shape, n->op == SETUN_OP_RESHAPE ? slot_of[n->input[0]] : -1);
        if (n->op == SETUN_OP_INPUT) name_slot(&plan->slots[slot_of[i]], SETUN_PLACE_INPUT, n->name);
        if (kinds[n->op] == SETUN_STEP_COUNT) continue;
        setun_step *step = &plan->steps[plan->step_count++];
        clear_step(step, kinds[n->op], n->op);
        lower_node(graph, n, slot_of, step);
        step->output[0] = slot_of[i];
        if (n->op == SETUN_OP_ATTENTION && n->attention.cache_layer) {
            if (n->attention.cache_layer > plan->cache_layers) plan->cache_layers = n->attention.cache_layer;
            plan->cache_kv_heads = step->kv_heads;
            plan->cache_head_size = step->head_size;
        }
    }
    for (int i = 0; i < graph->output_count; i++) {
        int slot = slot_of[graph->outputs[i].node];
        /* An input that is an output, or one value with two names: a second view carries the name. */
        if (plan->slots[slot].place != SETUN_PLACE_ARENA) slot = add_slot(plan, plan->slots[slot].dtype, &plan->slots[slot].shape, slot);
        name_slot(&plan->slots[slot], SETUN_PLACE_OUTPUT, graph->outputs[i].name);
    }
    setun_free(slot_of);
    return SETUN_OK;
}

setun_status setun_plan_compact(setun_plan *plan) {
    int *map = setun_calloc((size_t)plan->slot_count + 1, sizeof *map);
    if (!map) return setun_fail(SETUN_ERROR_MEMORY, "out of memory: %d slots", plan->slot_count);
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        int reads[SETUN_STEP_READS];
        setun_step_reads(step, reads);
        for (int j = 0; j < SETUN_STEP_READS; j++)
            if (reads[j] >= 0) map[reads[j]] = 1;
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
            if (step->output[j] >= 0) map[step->output[j]] = 1;
    }
    /* what is named is needed, and what a needed view is a view of; views come after what they look at */
    for (int i = plan->slot_count - 1; i >= 0; i--) {
        if (plan->slots[i].place != SETUN_PLACE_ARENA) map[i] = 1;
        if (map[i] && plan->slots[i].alias_of >= 0) map[plan->slots[i].alias_of] = 1;
    }
    int kept = 0;
    for (int i = 0; i < plan->slot_count; i++) {
        if (!map[i]) continue;
        setun_slot slot = plan->slots[i];
        if (slot.alias_of >= 0) slot.alias_of = map[slot.alias_of];
        plan->slots[kept] = slot;
        map[i] = kept++;
    }
    plan->slot_count = kept;
    for (int i = 0; i < plan->step_count; i++) {
        setun_step *step = &plan->steps[i];
        for (int j = 0; j < 4; j++)
            if (step->input[j] >= 0) step->input[j] = map[step->input[j]];
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
            if (step->output[j] >= 0) step->output[j] = map[step->output[j]];
        if (step->residual >= 0) step->residual = map[step->residual];
    }
    setun_free(map);
    return SETUN_OK;
}
