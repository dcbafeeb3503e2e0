/*
 * build.c - the driver: a graph becomes a tape by the passes in their order, with a check after each. Callers: session, explain,
 * setun_graph_compile. Knows the passes' order and nothing of what they do.
 */
#include "plan/passes.h"

/* The passes rewrite a copy: the graph stays the user's. Only the nodes are copied; what they point at is the storage's. */
static setun_status copy_graph(const setun_graph *graph, setun_graph *out) {
    *out = *graph;
    out->nodes = setun_alloc((size_t)graph->node_count * sizeof *out->nodes);
    if (!out->nodes) return setun_fail_memory((size_t)graph->node_count * sizeof *out->nodes);
    memcpy(out->nodes, graph->nodes, (size_t)graph->node_count * sizeof *out->nodes);
    out->node_capacity = graph->node_count;
    return SETUN_OK;
}

static setun_status check_supported(const setun_plan *plan, setun_supports_fn supports) {
    for (int i = 0; supports && i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        if (supports(plan->backend, step)) continue;
        const char *weight = step->weight_count && step->weight[0] ? step->weight[0]->name : NULL;
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "this device does not run %s%s%s%s; try the device \"cpu\"", step->fused, weight ? " with the weight '" : "", weight ? weight : "", weight ? "'" : "");
    }
    return SETUN_OK;
}

/* A pass's name goes before the message: an error here is Setun's own. */
static setun_status checked(const setun_plan *plan, const char *pass) {
    setun_status status = setun_plan_verify(plan);
    return status == SETUN_OK ? status : setun_fail_prefix(status, "after %s", pass);
}

static setun_status run_passes(setun_graph *copy, const setun_plan_options *options, setun_plan *plan) {
    SETUN_TRY(setun_plan_clean(copy, &plan->stats));
    setun_status status = setun_graph_verify(copy);
    if (status != SETUN_OK) return setun_fail_prefix(status, "after clean");
    SETUN_TRY(setun_plan_lower(copy, plan));
    SETUN_TRY(checked(plan, "lower"));
    SETUN_TRY(check_supported(plan, options->supports));
    if (!options->no_fusion) {
        SETUN_TRY(setun_plan_fuse(plan, options->supports));
        SETUN_TRY(checked(plan, "fuse"));
    }
    SETUN_TRY(setun_plan_schedule(plan));
    SETUN_TRY(checked(plan, "schedule"));
    SETUN_TRY(setun_plan_lay(plan));
    return checked(plan, "memory");
}

setun_status setun_plan_build(const setun_graph *graph, const setun_backend *backend, const setun_plan_options *options, setun_plan **out) {
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_build: out is NULL");
    *out = NULL;
    setun_plan_options o = {0};
    if (options) o = *options;
    if (o.tokens_max < 0 || o.outputs_max < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "tokens_max is %d and outputs_max %d; they must be positive, or 0 for 1", o.tokens_max, o.outputs_max);
    if (o.tokens_max == 0) o.tokens_max = 1;
    if (o.outputs_max == 0) o.outputs_max = 1;
    SETUN_TRY(setun_graph_verify(graph));
    setun_plan *plan = setun_calloc(1, sizeof *plan);
    if (!plan) return setun_fail_memory(sizeof *plan);
    plan->context = graph->context;
    plan->backend = backend;
    plan->tokens_max = o.tokens_max;
    plan->precision = o.precision;
    plan->outputs_max = o.outputs_max;
    plan->head.mode = o.head;
    plan->storage = setun_graph_storage_retain(graph->storage);
    setun_graph copy;
    setun_status status = copy_graph(graph, &copy);
    if (status == SETUN_OK) {
        status = run_passes(&copy, &o, plan);
        setun_free(copy.nodes);
    }
    if (status != SETUN_OK) {
        setun_plan_free(plan);
        return status;
    }
    *out = plan;
    return SETUN_OK;
}

void setun_plan_free(setun_plan *plan) {
    if (!plan) return;
    if (plan->release) plan->release(plan->backend, plan);
    setun_graph_storage_release(plan->storage);
    setun_free(plan->steps);
    setun_free(plan->slots);
    setun_free(plan);
}

int setun_plan_find_slot(const setun_plan *plan, setun_slot_place place, const char *name) {
    for (int i = 0; plan && name && i < plan->slot_count; i++)
        if (plan->slots[i].place == place && !strcmp(plan->slots[i].name, name)) return i;
    return -1;
}
