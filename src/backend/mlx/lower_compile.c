/*
 * lower_compile.c - a decoded token's run as one function that mx::compile has traced: from the second such run on, MLX replays the graph instead of
 * the lowering building it anew. What differs from token to token (ids, positions, places, the caches) are the function's inputs; the rest is captured.
 * Only runs of one token of one text: prompts have many shapes, and a trace stays for each. Caller: lower.c. Off where MLX does not compile
 * (its CPU, unless it is switched on); a run that cannot be traced is built as ever, and that is said once.
 */
#include "backend/mlx/lower.h"

enum { FUNCTIONS = 4 }; /* numbers of ranges that attention is split in, with and without outputs */

/* What is captured and differs between runs. */
typedef struct trace_key { int outputs, parts; int64_t rope_rows; } trace_key;
typedef struct compiled { setun_mlx_function *function; trace_key key; int seen; uint64_t last; uint64_t kernels, operations, copies, without_kernel; } compiled;
struct mlx_compiled { const setun_mlx_table *table; compiled entry[FUNCTIONS]; uint64_t clock; bool failed; mlx_run *building; };

void mlx_compiled_free(struct mlx_compiled *all)
{
    if (!all) return;
    for (int i = 0; i < FUNCTIONS; i++) all->table->function_release(all->entry[i].function);
    setun_free(all);
}

bool mlx_may_compile(const mlx_run *run)
{
    const setun_frame *f = run->frame;
    return !run->dry && f->tokens == 1 && f->sequence_count == 0 && !f->step_seconds && run->table->compile_get(run->stream) && !(run->tape->compiled && run->tape->compiled->failed);
}

/* Tables and caches are made before anything is traced. */
static setun_status make_ready(mlx_run *run, trace_key *key)
{
    const setun_plan *plan = run->plan;
    *key = (trace_key){run->frame->outputs, 1, 0};
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        run->index = i;
        bool attention = step->kind == SETUN_STEP_ATTENTION;
        int positions = attention ? step->input[3] : step->kind == SETUN_STEP_ROPE ? step->input[1] : -1;
        if (positions >= 0 && run->tape->step[i].rope >= 0) {
            mlx_rope *rope = &run->tape->ropes[run->tape->step[i].rope];
            int32_t position = *(const int32_t *)setun_frame_slot(run->frame, positions);
            if (position >= 0 && position < INT32_MAX) SETUN_TRY(mlx_rope_table(run, rope, position + 1));
            key->rope_rows += rope->rows;
        }
        if (!attention || !step->attention.cache_layer) continue;
        setun_mlx_array *k, *v;
        SETUN_TRY(mlx_cache_arrays(run, run->sequences[0].cache, step->attention.cache_layer, &k, &v));
        int longest = run->sequences[0].cache->length + 1;
        if (longest >= run->executor->tuning.attention_split) key->parts = (longest + 255) / 256;
    }
    run->index = -1;
    return SETUN_OK;
}

static compiled *find(struct mlx_compiled *all, const trace_key *key)
{
    compiled *oldest = &all->entry[0];
    for (int i = 0; i < FUNCTIONS; i++) {
        compiled *c = &all->entry[i];
        if (c->last && c->key.outputs == key->outputs && c->key.parts == key->parts && c->key.rope_rows == key->rope_rows) return c;
        if (c->last < oldest->last) oldest = c;
    }
    all->table->function_release(oldest->function);
    *oldest = (compiled){.key = *key};
    return oldest;
}

/* Inputs in one order: the plan's, places, slots and positions, caches. Arrays are the run's own; borrowed. */
static int list_inputs(mlx_run *run, setun_mlx_array **out)
{
    int n = 0;
    for (int s = 0; s < run->plan->slot_count; s++)
        if (run->plan->slots[s].place == SETUN_PLACE_INPUT && run->tape->value[s].values) out[n++] = run->tape->value[s].values;
    if (run->places[0]) out[n++] = run->places[0];
    if (run->slots[0]) out[n++] = run->slots[0];
    if (run->positions[0]) out[n++] = run->positions[0];
    for (int i = 0; i < run->plan->step_count; i++) {
        const setun_step *step = &run->plan->steps[i];
        if (step->kind != SETUN_STEP_ATTENTION || !step->attention.cache_layer) continue;
        if (mlx_cache_arrays(run, run->sequences[0].cache, step->attention.cache_layer, &out[n], &out[n + 1]) == SETUN_OK) n += 2; /* made before: no failure */
    }
    return n;
}

static int wanted_outputs(const mlx_run *run, int *slots)
{
    int n = 0;
    for (int s = 0; s < run->plan->slot_count; s++) {
        const setun_slot *slot = &run->plan->slots[s];
        if (slot->place == SETUN_PLACE_OUTPUT && slot->dtype != SETUN_Q8 && setun_slot_rows(slot, run->frame->tokens, run->frame->outputs) > 0) slots[n++] = s;
    }
    return n;
}

/* setun_mlx_build_fn: the steps over MLX's stand-ins for the inputs. */
static setun_status build(void *user, setun_mlx_array *const *inputs, int input_count, setun_mlx_array **outputs, int output_count)
{
    mlx_run *run = ((struct mlx_compiled *)user)->building, changed = *run;
    const setun_mlx_table *t = run->table;
    mlx_tape *tape = run->tape;
    int n = 0, slots[MLX_OUTPUTS_MAX];
    for (int s = 0; s < run->plan->slot_count; s++) {
        mlx_value *v = &tape->value[s];
        if (run->plan->slots[s].place != SETUN_PLACE_INPUT || !v->values) continue;
        t->array_release(v->values);
        t->array_retain(inputs[n++], &v->values);
    }
    setun_mlx_array *places = NULL, *cache_slots = NULL, *positions = NULL;
    if (run->places[0]) places = inputs[n++];
    if (run->slots[0]) cache_slots = inputs[n++];
    if (run->positions[0]) positions = inputs[n++];
    changed.places = &places;
    changed.slots = &cache_slots;
    changed.positions = &positions;
    changed.traced_caches = inputs + n;
    changed.traced_count = input_count - n;
    changed.last_done = NULL;
    setun_status status = mlx_build_steps(&changed);
    int count = wanted_outputs(run, slots);
    for (int i = 0; i < count && status == SETUN_OK; i++) {
        mlx_value *v;
        setun_mlx_array_info info;
        status = mlx_dense_value(&changed, slots[i], &v);
        if (status == SETUN_OK) status = t->array_get(v->values, &info);
        if (status != SETUN_OK) break;
        if (run->plan->slots[slots[i]].dtype == SETUN_F32 && info.spec.dtype != SETUN_F32) status = mlx_op(&changed, SETUN_MLX_OP_ASTYPE, &v->values, 1, NULL, 0, SETUN_F32, &outputs[i]);
        else t->array_retain(v->values, &outputs[i]);
    }
    if (status == SETUN_OK && count == 0 && output_count == 1) t->array_retain(changed.last_done, &outputs[0]);
    t->array_release(changed.last_done);
    for (int s = 0; s < run->plan->slot_count; s++) mlx_value_clear(t, &tape->value[s]);
    return status;
}

/* The compiled run: its outputs become the tape's values. */
static setun_status call(mlx_run *run, compiled *c)
{
    const setun_mlx_table *t = run->table;
    mlx_tape *tape = run->tape;
    int slots[MLX_OUTPUTS_MAX], count = wanted_outputs(run, slots), outputs = count ? count : 1;
    setun_mlx_array *made[MLX_OUTPUTS_MAX] = {NULL}, **inputs = setun_calloc((size_t)(run->plan->slot_count + 3 + 2 * run->plan->step_count), 2 * sizeof *inputs);
    if (!inputs) return setun_fail_memory((size_t)run->plan->step_count * sizeof *inputs);
    int n = list_inputs(run, inputs);
    setun_mlx_array **held = inputs + n;
    for (int i = 0; i < n; i++) t->array_retain(inputs[i], &held[i]); /* building lets go of the run's own */
    uint64_t before = tape->kernel_calls;
    tape->compiled->building = run;
    setun_status status = t->function_call(c->function, held, n, made, outputs);
    tape->compiled->building = NULL;
    for (int i = 0; i < n; i++) t->array_release(held[i]);
    setun_free(inputs);
    if (status != SETUN_OK) return mlx_run_check(run, status, "compiled run");
    if (tape->kernel_calls != before) { /* it was traced */
        c->kernels = tape->kernel_calls;
        c->operations = tape->operations;
        c->copies = tape->copies;
        c->without_kernel = tape->without_kernel;
    } else {
        tape->kernel_calls = c->kernels;
        tape->operations = c->operations;
        tape->copies = c->copies;
        tape->without_kernel = c->without_kernel;
    }
    if (count == 0) {
        t->array_release(run->last_done);
        run->last_done = made[0];
    }
    for (int i = 0; i < count; i++) {
        mlx_value *v = mlx_value_of(run, slots[i]);
        if (v->values) t->array_release(made[i]); /* two names of one value */
        else {
            mlx_value_clear(t, v);
            v->values = made[i];
        }
    }
    return SETUN_OK;
}

setun_status mlx_run_compiled(mlx_run *run, bool *out_done)
{
    mlx_tape *tape = run->tape;
    trace_key key;
    int slots[MLX_OUTPUTS_MAX], outputs = 0;
    *out_done = false;
    for (int s = 0; s < run->plan->slot_count; s++) outputs += run->plan->slots[s].place == SETUN_PLACE_OUTPUT;
    if (outputs > MLX_OUTPUTS_MAX) return SETUN_OK;
    if (!tape->compiled) {
        tape->compiled = setun_calloc(1, sizeof *tape->compiled);
        if (!tape->compiled) return setun_fail_memory(sizeof *tape->compiled);
        tape->compiled->table = run->table;
    }
    SETUN_TRY(make_ready(run, &key));
    if (wanted_outputs(run, slots) == 0 && !tape->caches) return SETUN_OK; /* nothing comes of it */
    compiled *c = find(tape->compiled, &key);
    c->last = ++tape->compiled->clock;
    if (c->seen++ == 0) return SETUN_OK; /* the first is built: it makes the numbers that the trace captures, and may be the only one */
    setun_status status = SETUN_OK;
    if (!c->function) status = mlx_run_check(run, run->table->function_create(run->stream, build, tape->compiled, false, &c->function), "mx::compile");
    if (status == SETUN_OK) status = call(run, c);
    if (status == SETUN_OK) {
        *out_done = true;
        return SETUN_OK;
    }
    if (status == SETUN_ERROR_CANCELLED || status == SETUN_ERROR_MEMORY) return status;
    tape->compiled->failed = true;
    setun_log(run->plan->context, SETUN_LOG_WARNING, "%s: this plan's runs are not compiled: %s", run->executor->mlx->id, setun_error());
    for (int s = 0; s < run->plan->slot_count; s++) mlx_value_clear(run->table, &tape->value[s]);
    return mlx_bind_inputs(run);
}
