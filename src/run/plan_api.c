/*
 * plan_api.c - plans of one's own: compile a graph, bind inputs, run, read outputs. The public setun_plan_* functions.
 * Caller: users of the graph API. The plan owns its frame and, where its graph attends over one, its KV cache (plan->owned).
 */
#include "run/run.h"
#include "backend/mlx/mlx.h"

typedef struct plan_state {
    setun_frame frame;
    setun_kv_cache cache;
    int64_t *bound;             /* [slot_count] rows of the first dimension that an input has; -1: nothing bound */
    bool ran;
    int tokens, outputs;        /* of the last run */
} plan_state;

static plan_state *state_of(const setun_plan *plan) { return plan->owned; }

static void free_state(plan_state *state)
{
    if (!state) return;
    setun_frame_destroy(&state->frame);
    setun_kv_cache_destroy(&state->cache);
    setun_free(state->bound);
    setun_free(state);
}

static setun_status make_state(setun_plan *plan, const setun_compile_options *o)
{
    plan_state *state = setun_calloc(1, sizeof *state);
    if (!state) return setun_fail_memory(sizeof *state);
    plan->owned = state; /* from here on setun_plan_destroy frees it */
    state->bound = setun_alloc(((size_t)plan->slot_count + 1) * sizeof *state->bound);
    if (!state->bound) return setun_fail_memory(((size_t)plan->slot_count + 1) * sizeof *state->bound);
    for (int i = 0; i < plan->slot_count; i++) state->bound[i] = -1;
    SETUN_TRY(setun_frame_create(plan, &state->frame));
    if (plan->cache_layers > 0) {
        setun_dtype dtype;
        SETUN_TRY(setun_kv_type(o->kv_type, &dtype));
        int capacity = o->cache_tokens ? o->cache_tokens : plan->tokens_max;
        SETUN_TRY(setun_kv_cache_create(plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size, capacity, dtype, &state->cache));
        state->frame.cache = &state->cache;
    }
    return SETUN_OK;
}

setun_status setun_graph_compile(setun_graph *graph, const setun_compile_options *options, setun_plan **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_compile: out is NULL");
    *out = NULL;
    if (!graph) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_compile: graph is NULL");
    if (graph->error != SETUN_OK) return setun_fail(graph->error, "%s", graph->error_message);
    SETUN_OPTIONS(setun_compile_options, o, options);
    const setun_backend *backend;
    setun_mlx *mlx;
    SETUN_TRY(setun_device_backend(graph->context, o.device, &backend, &mlx));
    if (o.tokens_max < 0 || o.outputs_max < 0 || o.cache_tokens < 0)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_graph_compile: tokens_max %d, outputs_max %d, cache_tokens %d must not be negative", o.tokens_max, o.outputs_max, o.cache_tokens);
    setun_dtype dtype;
    SETUN_TRY(setun_kv_type(o.kv_type, &dtype));
    setun_plan_options plan_options = {.tokens_max = o.tokens_max ? o.tokens_max : 1, .outputs_max = o.outputs_max ? o.outputs_max : 1, .no_fusion = o.no_fusion, .supports = backend->supports};
    SETUN_TRY(setun_precision_of(o.precision, backend, &plan_options.precision));
    setun_plan *plan;
    SETUN_TRY(setun_plan_build(graph, backend, &plan_options, &plan));
    setun_status status = backend->prepare(backend, plan);
    if (status == SETUN_OK) status = make_state(plan, &o);
    if (status != SETUN_OK) {
        setun_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return SETUN_OK;
}

void setun_plan_destroy(setun_plan *plan)
{
    if (!plan) return;
    free_state(plan->owned);
    plan->owned = NULL;
    setun_plan_free(plan);
}

static bool symbolic(int64_t dim) { return dim == SETUN_DIM_TOKENS || dim == SETUN_DIM_OUTPUTS; }

setun_status setun_plan_set_input(setun_plan *plan, const char *name, const setun_tensor *tensor)
{
    if (!plan || !name || !tensor) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_set_input: %s is NULL", !plan ? "plan" : !name ? "name" : "tensor");
    plan_state *state = state_of(plan);
    if (!state) return setun_fail(SETUN_ERROR_STATE, "setun_plan_set_input: this plan was not made by setun_graph_compile");
    int slot = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, name);
    if (slot < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "the plan has no input '%s' (inputs that no output depends on are dropped)", name);
    const setun_slot *s = &plan->slots[slot];
    if (tensor->dtype != s->dtype) return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s' is %s, the tensor is %s", name, setun_dtype_name(s->dtype), setun_dtype_name(tensor->dtype));
    if (tensor->shape.rank != s->shape.rank) return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s' has rank %d, the tensor %d", name, s->shape.rank, tensor->shape.rank);
    for (int i = 0; i < s->shape.rank; i++) {
        int64_t most = setun_dim_value(s->shape.dim[i], plan->tokens_max, plan->outputs_max), given = tensor->shape.dim[i];
        bool fits = symbolic(s->shape.dim[i]) ? given >= 1 && given <= most : given == most;
        if (!fits) return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s': dimension %d is %lld; it must be %s%lld", name, i, (long long)given, symbolic(s->shape.dim[i]) ? "from 1 to " : "", (long long)most);
    }
    if (tensor->bytes > s->bytes) return setun_fail(SETUN_ERROR_ARGUMENT, "input '%s': %zu bytes into a slot of %llu", name, tensor->bytes, (unsigned long long)s->bytes);
    SETUN_TRY(setun_tensor_read((setun_tensor *)tensor, setun_frame_slot(&state->frame, slot), tensor->bytes)); /* waits for one of a device */
    state->bound[slot] = s->shape.rank > 0 ? tensor->shape.dim[0] : 1;
    return SETUN_OK;
}

setun_status setun_plan_run(setun_plan *plan, int tokens, int outputs)
{
    if (!plan) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_run: plan is NULL");
    plan_state *state = state_of(plan);
    if (!state) return setun_fail(SETUN_ERROR_STATE, "setun_plan_run: this plan was not made by setun_graph_compile");
    if (tokens < 1 || tokens > plan->tokens_max) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_run: %d tokens; the plan was compiled for 1 to %d", tokens, plan->tokens_max);
    if (outputs < 0 || outputs > plan->outputs_max) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_run: %d outputs; the plan was compiled for at most %d", outputs, plan->outputs_max);
    for (int i = 0; i < plan->slot_count; i++) {
        const setun_slot *s = &plan->slots[i];
        if (s->place != SETUN_PLACE_INPUT) continue;
        if (state->bound[i] < 0) return setun_fail(SETUN_ERROR_STATE, "input '%s' was never set", s->name);
        int64_t wanted = s->shape.rank > 0 ? setun_dim_value(s->shape.dim[0], tokens, outputs) : 1;
        if (state->bound[i] < wanted) return setun_fail(SETUN_ERROR_STATE, "input '%s' holds %lld rows, the run needs %lld", s->name, (long long)state->bound[i], (long long)wanted);
    }
    state->frame.tokens = tokens;
    state->frame.outputs = outputs;
    state->ran = false;
    SETUN_TRY(plan->backend->run(plan->backend, &state->frame));
    SETUN_TRY(plan->backend->sync(plan->backend, &state->frame));
    if (plan->cache_layers > 0) state->cache.length += tokens;
    state->ran = true;
    state->tokens = tokens;
    state->outputs = outputs;
    return SETUN_OK;
}

setun_status setun_plan_get_output(setun_plan *plan, const char *name, setun_tensor **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_get_output: out is NULL");
    *out = NULL;
    if (!plan || !name) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_get_output: %s is NULL", plan ? "name" : "plan");
    plan_state *state = state_of(plan);
    if (!state || !state->ran) return setun_fail(SETUN_ERROR_STATE, "setun_plan_get_output: the plan has not been run");
    int slot = setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, name);
    if (slot < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "the plan has no output '%s'", name);
    const setun_slot *s = &plan->slots[slot];
    if (setun_dtype_bytes(s->dtype) == 0) return setun_fail(SETUN_ERROR_UNSUPPORTED, "output '%s' is quantised; make an f32 value the output", name);
    int64_t shape[SETUN_MAX_RANK];
    for (int i = 0; i < s->shape.rank; i++) shape[i] = setun_dim_value(s->shape.dim[i], state->tokens, state->outputs);
    SETUN_TRY(setun_tensor_create(s->dtype, s->shape.rank, shape, out));
    memcpy((*out)->data, setun_frame_slot(&state->frame, slot), (*out)->bytes);
    return SETUN_OK;
}

setun_status setun_plan_rewind(setun_plan *plan, int position)
{
    if (!plan) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_rewind: plan is NULL");
    plan_state *state = state_of(plan);
    if (!state || plan->cache_layers == 0) return setun_fail(SETUN_ERROR_STATE, "setun_plan_rewind: the plan has no KV cache");
    if (position < 0 || position > state->cache.length) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_rewind: to %d; the cache holds %d tokens", position, state->cache.length);
    state->cache.length = position;
    return SETUN_OK;
}

setun_status setun_plan_explain(setun_plan *plan, bool json, char **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_explain: out is NULL");
    *out = NULL;
    if (!plan) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_explain: plan is NULL");
    return setun_plan_dump(plan, json, NULL, out);
}
