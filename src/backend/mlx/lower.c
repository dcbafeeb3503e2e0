/*
 * lower.c - the MLX backend: a plan's tape becomes a graph of MLX arrays, one or two kernels a step, evaluated once a run.
 * prepare makes arrays of the weights and picks kernels; run binds the inputs, builds the steps lazily (lower_steps.c), reads the outputs, which
 * is the run's one wait for the device. Callers: session, plan API, through the vtable.
 * Knows steps, slots and arrays; refuses to know models, files and what a kernel computes.
 */
#include "backend/mlx/lower.h"
#include "backend/mlx/cases.h"
#include "backend/mlx/cuda/engine.h"
#include "backend/mlx/tune.h"

setun_status mlx_run_check(const mlx_run *run, setun_status status, const char *what)
{
    if (status == SETUN_OK) return SETUN_OK;
    const char *name = run->index >= 0 && run->index < run->plan->step_count ? run->plan->steps[run->index].fused : "run";
    char text[160];
    snprintf(text, sizeof text, "%s, step %d (%s): %s", run->executor->mlx->id, run->index, name, what);
    return setun_mlx_check(run->table, status, text);
}

static setun_status constant_array(mlx_run *run, setun_dtype dtype, const void *values, int count, setun_mlx_array **out)
{
    mlx_constant *c = &run->tape->step[run->index].constant[run->constant % MLX_CONSTANTS];
    run->constant++;
    uint32_t words[20] = {0};
    if (count > 20) return setun_fail(SETUN_ERROR_STATE, "step %d: %d numbers for a kernel", run->index, count);
    memcpy(words, values, (size_t)count * 4);
    if (!c->array || c->count != count || memcmp(c->words, words, sizeof words) != 0) {
        run->table->array_release(c->array);
        c->array = NULL;
        setun_mlx_spec spec = mlx_spec1(dtype, 20);
        SETUN_TRY(mlx_run_check(run, run->table->array_from_host(run->stream, &spec, words, &c->array), "numbers of the kernel"));
        memcpy(c->words, words, sizeof words);
        c->count = count;
    }
    *out = c->array;
    return SETUN_OK;
}

setun_status mlx_integers(mlx_run *run, const int32_t *values, int count, setun_mlx_array **out) { return constant_array(run, SETUN_I32, values, count, out); }
setun_status mlx_reals(mlx_run *run, const float *values, int count, setun_mlx_array **out) { return constant_array(run, SETUN_F32, values, count, out); }

/* The kernel's handle for this device; made when first used. */
static setun_status kernel_of(mlx_run *run, const setun_gpu_kernel *k, setun_mlx_kernel **out)
{
    mlx_executor *e = run->executor;
    pthread_mutex_lock(&e->lock);
    setun_status status = e->kernel[k->id] ? SETUN_OK : mlx_run_check(run, setun_gpu_kernel_open(e->table, e->mlx->device.backend, k, &e->kernel[k->id]), k->name);
    *out = e->kernel[k->id];
    pthread_mutex_unlock(&e->lock);
    return status;
}

setun_status mlx_kernel(mlx_run *run, setun_gpu_kernel_id id, const int32_t *templates, setun_mlx_array *const *inputs, const setun_mlx_spec *outputs, const int64_t extent[4], int threads,
                        setun_mlx_array **out)
{
    const setun_gpu_kernel *k = setun_gpu_kernel_get(id);
    setun_mlx_kernel *handle;
    SETUN_TRY(kernel_of(run, k, &handle));
    setun_mlx_argument arguments[SETUN_GPU_PARAMETERS_MAX];
    SETUN_TRY(setun_gpu_templates(k, templates, arguments));
    setun_mlx_call call = {.inputs = inputs, .input_count = k->input_count, .outputs = outputs, .output_count = k->output_count, .templates = arguments, .template_count = k->parameter_count,
                           .parameters = templates, .parameter_bytes = (size_t)k->parameter_count * sizeof(int32_t)};
    SETUN_TRY(setun_gpu_grid(k, templates, extent, threads, call.grid, call.group));
    run->tape->kernel_calls++;
    return mlx_run_check(run, run->table->kernel_call(run->stream, handle, &call, out), k->name);
}

setun_status mlx_op(mlx_run *run, setun_mlx_op op, setun_mlx_array *const *inputs, int input_count, const int64_t *integers, int integer_count, setun_dtype dtype, setun_mlx_array **out)
{
    setun_mlx_op_request request = {.op = (int)op, .inputs = inputs, .input_count = input_count, .integers = integers, .integer_count = integer_count, .dtype = dtype};
    mlx_count_operation(run->tape, op);
    return mlx_run_check(run, run->table->op(run->stream, &request, out, 1), run->table->op_name((int)op));
}

/* ---- values ---- */

void mlx_value_clear(const setun_mlx_table *table, mlx_value *value)
{
    table->array_release(value->values);
    table->array_release(value->scale);
    table->array_release(value->sum);
    table->array_release(value->row_scale);
    memset(value, 0, sizeof *value);
}

mlx_value *mlx_value_of(mlx_run *run, int slot) { return &run->tape->value[run->tape->source[slot]]; }

setun_status mlx_dense_value(mlx_run *run, int slot, mlx_value **out)
{
    mlx_value *v = mlx_value_of(run, slot);
    *out = v;
    if (!v->values) return setun_fail(SETUN_ERROR_STATE, "%s, step %d: slot %d has no value yet", run->executor->mlx->id, run->index, slot);
    if (!v->stride) return SETUN_OK;
    const setun_slot *s = &run->plan->slots[run->tape->source[slot]];
    int64_t width = setun_slot_width(s), rows = setun_slot_rows(s, run->frame->tokens, run->frame->outputs);
    int64_t bounds[4] = {0, v->offset, rows, v->offset + width};
    setun_mlx_array *part = NULL, *dense = NULL;
    SETUN_TRY(mlx_op(run, SETUN_MLX_OP_SLICE, &v->values, 1, bounds, 4, 0, &part));
    setun_status status = mlx_op(run, SETUN_MLX_OP_CONTIGUOUS, &part, 1, NULL, 0, 0, &dense);
    run->table->array_release(part);
    if (status != SETUN_OK) return status;
    run->table->array_release(v->values);
    v->values = dense;
    v->offset = v->stride = 0;
    return SETUN_OK;
}

/* ---- rotations ---- */

setun_status mlx_rope_table(mlx_run *run, mlx_rope *rope, int rows)
{
    if (rows <= rope->rows) return SETUN_OK;
    int wanted = rope->rows ? rope->rows : 256;
    while (wanted < rows) {
        if (wanted > INT32_MAX / 2) return setun_fail(SETUN_ERROR_ARGUMENT, "position %d is too large", rows - 1);
        wanted *= 2;
    }
    size_t count = (size_t)wanted * (size_t)rope->half;
    float *table = setun_alloc(2 * count * sizeof *table);
    if (!table) return setun_fail_memory(2 * count * sizeof *table);
    float magnitude = rope->spec.magnitude != 0.0f ? rope->spec.magnitude : 1.0f;
    for (int t = 0; t < wanted; t++)
        for (int i = 0; i < rope->half; i++) {
            double s, c;
            setun_sincos((double)t * rope->frequencies[i], &s, &c);
            table[(size_t)t * (size_t)rope->half + (size_t)i] = (float)c * magnitude;
            table[count + (size_t)t * (size_t)rope->half + (size_t)i] = (float)s * magnitude;
        }
    setun_mlx_array *cosines = NULL, *sines = NULL;
    setun_mlx_spec spec = mlx_spec2(SETUN_F32, wanted, rope->half);
    setun_status status = mlx_run_check(run, run->table->array_from_host(run->stream, &spec, table, &cosines), "table of cosines");
    if (status == SETUN_OK) status = mlx_run_check(run, run->table->array_from_host(run->stream, &spec, table + count, &sines), "table of sines");
    setun_free(table);
    if (status != SETUN_OK) {
        run->table->array_release(cosines);
        return status;
    }
    run->table->array_release(rope->cosines);
    run->table->array_release(rope->sines);
    rope->cosines = cosines;
    rope->sines = sines;
    rope->rows = wanted;
    return SETUN_OK;
}

static setun_status add_rope(mlx_tape *tape, const setun_step *step, int index, int most)
{
    setun_rope_spec spec = step->rope;
    if (!spec.rotary) spec.rotary = step->head_size;
    int half = spec.rotary / 2;
    if (spec.rotary < 2 || spec.rotary % 2 || spec.rotary > step->head_size)
        return setun_fail(SETUN_ERROR_ARGUMENT, "rope: %d rotated dimensions of %d; it must be an even number from 2 to the head's size", spec.rotary, step->head_size);
    for (int i = 0; i < tape->rope_count; i++)
        if (setun_rope_same(&tape->ropes[i].spec, &spec)) {
            tape->step[index].rope = i;
            return SETUN_OK;
        }
    if (tape->rope_count == most) return setun_fail(SETUN_ERROR_STATE, "more rotations than steps");
    mlx_rope *rope = &tape->ropes[tape->rope_count];
    *rope = (mlx_rope){.spec = spec, .half = half};
    SETUN_TRY(setun_rope_frequencies(&rope->spec, &rope->frequencies));
    tape->step[index].rope = tape->rope_count++;
    return SETUN_OK;
}

/* ---- prepare ---- */

static void free_tape(mlx_tape *tape)
{
    if (!tape) return;
    const setun_mlx_table *table = tape->executor->table;
    setun_cuda_engine_unbind(tape->cuda);
    for (int i = 0; i < tape->rope_count; i++) {
        table->array_release(tape->ropes[i].cosines);
        table->array_release(tape->ropes[i].sines);
        setun_free(tape->ropes[i].frequencies);
    }
    for (int i = 0; i < tape->step_count; i++)
        for (int c = 0; c < MLX_CONSTANTS; c++) table->array_release(tape->step[i].constant[c].array);
    mlx_compiled_free(tape->compiled);
    pthread_mutex_destroy(&tape->lock);
    setun_free(tape->ropes);
    setun_free(tape->source);
    setun_free(tape->uses);
    setun_free(tape->value);
    setun_free(tape);
}

static void mlx_release(const setun_backend *backend, setun_plan *plan)
{
    (void)backend;
    mlx_tape *tape = mlx_tape_of(plan);
    if (!tape) return;
    plan->steps[0].backend_data = NULL;
    free_tape(tape);
}

/* Which step makes a slot; a slot that none makes is a reshape of another. */
static setun_status trace_slots(const setun_plan *plan, mlx_tape *tape)
{
    for (int s = 0; s < plan->slot_count; s++) tape->source[s] = -1;
    for (int i = 0; i < plan->step_count; i++)
        for (int o = 0; o < SETUN_STEP_WEIGHTS; o++)
            if (plan->steps[i].output[o] >= 0) tape->source[plan->steps[i].output[o]] = plan->steps[i].output[o];
    for (int s = 0; s < plan->slot_count; s++) {
        int at = s;
        for (int hops = 0; tape->source[at] < 0 && plan->slots[at].place != SETUN_PLACE_INPUT; hops++) {
            if (plan->slots[at].alias_of < 0 || hops > plan->slot_count) return setun_fail(SETUN_ERROR_STATE, "slot %d is made by no step", s);
            at = plan->slots[at].alias_of;
        }
        if (tape->source[s] < 0) tape->source[s] = at;
    }
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        for (int j = 0; j < 4; j++)
            if (step->input[j] >= 0) tape->uses[tape->source[step->input[j]]]++;
        if (step->residual >= 0) tape->uses[tape->source[step->residual]]++;
    }
    for (int s = 0; s < plan->slot_count; s++)
        if (plan->slots[s].place == SETUN_PLACE_OUTPUT) tape->uses[tape->source[s]]++;
    return SETUN_OK;
}

/* In f16 a gated product may pass 65504 (the square in relu2 does): where all that follows is a norm or a rounding, the row gets a power
 * of two that those undo. */
static void plan_scaling(const setun_plan *plan, mlx_tape *tape)
{
    if (tape->type != SETUN_F16) return;
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        bool grows = (step->kind == SETUN_STEP_LINEAR && step->gated && step->residual < 0 && step->factor == 1.0f) ||
                     (step->kind == SETUN_STEP_UNARY && step->activation == SETUN_OP_RELU2);
        if (!grows || plan->slots[tape->source[step->output[0]]].place == SETUN_PLACE_OUTPUT) continue;
        bool undone = true;
        for (int j = i + 1; j < plan->step_count && undone; j++)
            for (int k = 0; k < 4; k++)
                if (plan->steps[j].input[k] >= 0 && tape->source[plan->steps[j].input[k]] == step->output[0])
                    undone = undone && (plan->steps[j].kind == SETUN_STEP_NORM || plan->steps[j].kind == SETUN_STEP_QUANTIZE);
        for (int j = i + 1; j < plan->step_count && undone; j++)
            if (plan->steps[j].residual >= 0 && tape->source[plan->steps[j].residual] == step->output[0]) undone = false;
        tape->step[i].scaled_gate = undone;
        if (!undone) setun_log(plan->context, SETUN_LOG_WARNING, "step %d (%s): its f16 output is not scaled, because other than a norm reads it: large values overflow", i, step->fused);
    }
}

/* The kernels that take a whole tape, on CUDA devices. Without them every step is MLX's: said once, counted after. */
static void bind_cuda(mlx_executor *e, const setun_plan *plan, mlx_tape *tape)
{
    const setun_environment *environment = &e->mlx->context->environment;
    char folder[1100]; /* of the kernels: named, or the bridge's own */
    const char *path = environment->cuda_kernels[0] ? environment->cuda_kernels : setun_mlx_path(), *slash = strrchr(path, '/');
    if (!strcmp(path, "off")) return;
    if (environment->cuda_kernels[0]) snprintf(folder, sizeof folder, "%s", path);
    else snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if ((e->mlx->device.backend != SETUN_MLX_CUDA && !environment->cuda_driver[0]) || tape->type != SETUN_F32 || plan->cache_layers == 0) return;
    pthread_mutex_lock(&e->lock);
    bool first = !e->cuda_tried;
    setun_status status = SETUN_OK;
    if (first) {
        e->cuda_tried = true;
        status = setun_cuda_engine_open(e->mlx->context, environment->cuda_driver[0] ? environment->cuda_driver : NULL, folder, e->mlx->device.index, &e->cuda);
        if (status != SETUN_OK) setun_log(e->mlx->context, SETUN_LOG_WARNING, "%s: plans run step by step, many times slower: %s", e->mlx->id, setun_error());
    }
    if (e->cuda) {
        status = setun_cuda_engine_bind(e->cuda, plan, &tape->cuda);
        if (status != SETUN_OK && e->cuda_refused++ == 0) setun_log(e->mlx->context, SETUN_LOG_WARNING, "%s: this plan runs step by step: %s", e->mlx->id, setun_error());
    }
    pthread_mutex_unlock(&e->lock);
}

/* Plans take streams in turn, so that sessions on several threads overlap on the device. */
static setun_status take_stream(mlx_executor *e, setun_mlx_stream **out)
{
    pthread_mutex_lock(&e->lock);
    setun_mlx_stream **stream = &e->streams[e->next_stream];
    setun_status status = *stream ? SETUN_OK : setun_mlx_check(e->table, e->table->stream_open(e->mlx->gpu, e->mlx->device.index, stream), e->mlx->id);
    *out = *stream;
    e->next_stream = (e->next_stream + 1) % MLX_STREAMS;
    pthread_mutex_unlock(&e->lock);
    return status;
}

static setun_status mlx_prepare(const setun_backend *backend, setun_plan *plan)
{
    mlx_executor *e = (mlx_executor *)(uintptr_t)backend; /* handed out as const to keep others from changing it */
    plan->release = mlx_release;
    if (plan->step_count == 0) return SETUN_OK;
    mlx_release(backend, plan);
    mlx_tape *tape = setun_calloc(1, sizeof *tape + (size_t)plan->step_count * sizeof tape->step[0]);
    if (!tape) return setun_fail_memory(sizeof *tape);
    tape->executor = e;
    tape->step_count = plan->step_count;
    pthread_mutex_init(&tape->lock, NULL);
    for (int i = 0; i < plan->step_count; i++) tape->caches = tape->caches || (plan->steps[i].kind == SETUN_STEP_ATTENTION && plan->steps[i].attention.cache_layer);
    tape->type = plan->precision ? plan->precision : SETUN_F32;
    plan->steps[0].backend_data = tape;
    tape->ropes = setun_calloc((size_t)plan->step_count, sizeof *tape->ropes);
    tape->source = setun_calloc((size_t)plan->slot_count, sizeof *tape->source);
    tape->uses = setun_calloc((size_t)plan->slot_count, sizeof *tape->uses);
    tape->value = setun_calloc((size_t)plan->slot_count, sizeof *tape->value);
    setun_status status = tape->ropes && tape->source && tape->uses && tape->value ? SETUN_OK : setun_fail_memory((size_t)plan->slot_count * sizeof *tape->value);
    if (status == SETUN_OK) status = take_stream(e, &tape->stream);
    if (status == SETUN_OK) status = trace_slots(plan, tape);
    for (int i = 0; i < plan->step_count && status == SETUN_OK; i++) {
        tape->step[i].rope = -1;
        const setun_step *step = &plan->steps[i];
        if (step->kind == SETUN_STEP_ROPE || (step->kind == SETUN_STEP_ATTENTION && step->has_rope)) status = add_rope(tape, step, i, plan->step_count);
    }
    if (status == SETUN_OK) status = mlx_prepare_weights(e, plan);
    if (status == SETUN_OK) mlx_say_fallbacks(e, plan);
    if (status == SETUN_OK) plan_scaling(plan, tape);
    if (status == SETUN_OK) bind_cuda(e, plan, tape);
    for (int i = 0; i < plan->step_count && status == SETUN_OK; i++) {
        mlx_name_step(tape, &plan->steps[i], &tape->step[i]);
        plan->steps[i].kernel = tape->step[i].kernel;
    }
    if (status != SETUN_OK) mlx_release(backend, plan);
    return status;
}

/* ---- run ---- */

static setun_status check_frame(const setun_frame *frame)
{
    const setun_plan *plan = frame->plan;
    if (frame->tokens < 0 || frame->tokens > plan->tokens_max) return setun_fail(SETUN_ERROR_ARGUMENT, "%d tokens; the plan takes at most %d", frame->tokens, plan->tokens_max);
    if (frame->outputs < 0 || frame->outputs > plan->outputs_max) return setun_fail(SETUN_ERROR_ARGUMENT, "%d outputs; the plan gives at most %d", frame->outputs, plan->outputs_max);
    if (plan->cache_layers == 0) return SETUN_OK;
    int rows = 0;
    for (int i = 0; i < (frame->sequence_count ? frame->sequence_count : 1); i++) {
        const setun_kv_cache *cache = frame->sequence_count ? frame->sequences[i].cache : frame->cache;
        int more = frame->sequence_count ? frame->sequences[i].rows : frame->tokens;
        if (frame->sequence_count && frame->sequences[i].first_row != rows) return setun_fail(SETUN_ERROR_ARGUMENT, "sequence %d begins at row %d, not %d", i, frame->sequences[i].first_row, rows);
        rows += more;
        if (!cache) return setun_fail(SETUN_ERROR_STATE, "the plan has %d layers of cached attention, but the run has no KV cache", plan->cache_layers);
        if (cache->layers < plan->cache_layers || cache->kv_heads != plan->cache_kv_heads || cache->head_size != plan->cache_head_size)
            return setun_fail(SETUN_ERROR_ARGUMENT, "the KV cache is [%d layers, %d heads, %d]; the plan needs [%d, %d, %d]", cache->layers, cache->kv_heads, cache->head_size, plan->cache_layers,
                              plan->cache_kv_heads, plan->cache_head_size);
        if (cache->dtype != SETUN_F16 && cache->dtype != SETUN_F32)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "a KV cache of %s on MLX; choose f16 or f32", setun_dtype_name(cache->dtype));
        if (cache->length < 0 || more > cache->capacity - cache->length)
            return setun_fail(SETUN_ERROR_CONTEXT, "%d more tokens do not fit: %d of %d are used, %d are free", more, cache->length, cache->capacity, cache->capacity - cache->length);
    }
    if (rows != frame->tokens) return setun_fail(SETUN_ERROR_ARGUMENT, "the sequences have %d rows, the run %d tokens", rows, frame->tokens);
    return SETUN_OK;
}

/* Small integers as an array of at least MLX_SMALLEST. */
static setun_status integers_from_host(mlx_run *run, const int32_t *values, int count, setun_mlx_array **out)
{
    int32_t few[MLX_SMALLEST] = {0};
    setun_mlx_spec spec = mlx_spec1(SETUN_I32, mlx_at_least(count));
    if (count < MLX_SMALLEST) {
        memcpy(few, values, (size_t)count * sizeof *values);
        values = few;
    }
    return mlx_run_check(run, run->table->array_from_host(run->stream, &spec, values, out), "inputs");
}

setun_status mlx_bind_inputs(mlx_run *run)
{
    for (int s = 0; s < run->plan->slot_count; s++) {
        const setun_slot *slot = &run->plan->slots[s];
        if (slot->place != SETUN_PLACE_INPUT || run->tape->uses[s] == 0) continue;
        int64_t rows = setun_slot_rows(slot, run->frame->tokens, run->frame->outputs), width = setun_slot_width(slot), count = 1;
        for (int i = 0; i < slot->shape.rank; i++) count *= setun_dim_value(slot->shape.dim[i], run->frame->tokens, run->frame->outputs);
        const void *values = setun_frame_slot(run->frame, s);
        mlx_value *v = &run->tape->value[s];
        v->uses = run->tape->uses[s];
        if (count == 0) continue;
        if (slot->dtype == SETUN_I32) {
            SETUN_TRY(integers_from_host(run, values, (int)count, &v->values));
            continue;
        }
        setun_mlx_spec spec = mlx_spec2(SETUN_F32, rows, width);
        SETUN_TRY(mlx_run_check(run, run->table->array_from_host(run->stream, &spec, values, &v->values), slot->name));
        if (run->tape->type != SETUN_F32) {
            setun_mlx_array *narrow = NULL;
            SETUN_TRY(mlx_op(run, SETUN_MLX_OP_ASTYPE, &v->values, 1, NULL, 0, run->tape->type, &narrow));
            run->table->array_release(v->values);
            v->values = narrow;
        }
    }
    return SETUN_OK;
}

/* Where each row goes in its sequence's cache, and its position for rotations. */
static setun_status bind_sequences(mlx_run *run)
{
    const setun_step *attention = NULL;
    for (int i = 0; i < run->plan->step_count && !attention; i++)
        if (run->plan->steps[i].kind == SETUN_STEP_ATTENTION) attention = &run->plan->steps[i];
    if (!attention) return SETUN_OK;
    int tokens = run->frame->tokens;
    int32_t *numbers = setun_alloc((size_t)tokens * sizeof *numbers);
    if (!numbers) return setun_fail_memory((size_t)tokens * sizeof *numbers);
    run->positions_slot = attention->input[3];
    const int32_t *positions = run->positions_slot >= 0 ? setun_frame_slot(run->frame, run->positions_slot) : NULL;
    setun_status status = SETUN_OK;
    for (int i = 0; i < run->sequence_count && status == SETUN_OK; i++) {
        const setun_sequence *q = &run->sequences[i];
        if (q->rows == 0) continue;
        int first = attention->attention.cache_layer && q->cache ? q->cache->length : 0;
        for (int t = 0; t < q->rows; t++) numbers[t] = first + t;
        status = integers_from_host(run, numbers, q->rows, &run->places[i]);
        memset(numbers, 0, (size_t)q->rows * sizeof *numbers);
        if (status == SETUN_OK) status = integers_from_host(run, numbers, q->rows, &run->slots[i]);
        if (status == SETUN_OK && positions) status = integers_from_host(run, positions + q->first_row, q->rows, &run->positions[i]);
    }
    setun_free(numbers);
    return status;
}

static setun_status read_outputs(mlx_run *run)
{
    bool read = false;
    for (int s = 0; s < run->plan->slot_count; s++) {
        const setun_slot *slot = &run->plan->slots[s];
        if (slot->place != SETUN_PLACE_OUTPUT) continue;
        int64_t rows = setun_slot_rows(slot, run->frame->tokens, run->frame->outputs), width = setun_slot_width(slot);
        if (rows * width == 0) continue;
        mlx_value *v;
        SETUN_TRY(mlx_dense_value(run, s, &v));
        if (slot->dtype == SETUN_Q8) return setun_fail(SETUN_ERROR_UNSUPPORTED, "output '%s' is rounded to int8, which MLX does not give back; give the floats", slot->name);
        setun_mlx_array *array = v->values, *wide = NULL;
        setun_mlx_array_info info;
        SETUN_TRY(mlx_run_check(run, run->table->array_get(array, &info), slot->name));
        if (slot->dtype == SETUN_F32 && info.spec.dtype != SETUN_F32) {
            SETUN_TRY(mlx_op(run, SETUN_MLX_OP_ASTYPE, &array, 1, NULL, 0, SETUN_F32, &wide));
            array = wide;
            info.bytes = (uint64_t)(rows * width) * 4;
        }
        setun_status status;
        if (run->dry) status = SETUN_OK;
        else if (info.bytes == (uint64_t)(rows * width) * 4) status = run->table->read(run->stream, array, setun_frame_slot(run->frame, s), (size_t)info.bytes);
        else {
            /* small integers are padded */
            void *padded = setun_alloc((size_t)info.bytes);
            status = padded ? run->table->read(run->stream, array, padded, (size_t)info.bytes) : setun_fail_memory((size_t)info.bytes);
            if (status == SETUN_OK) memcpy(setun_frame_slot(run->frame, s), padded, (size_t)(rows * width) * 4);
            setun_free(padded);
        }
        run->table->array_release(wide);
        SETUN_TRY(mlx_run_check(run, status, slot->name));
        if (!read) run->tape->synchronisations++;
        read = true;
    }
    if (!read && run->last_done) {
        /* nothing is wanted but the caches */
        run->tape->synchronisations++;
        if (!run->dry) SETUN_TRY(mlx_run_check(run, run->table->eval(run->stream, &run->last_done, 1, true), "caches"));
    }
    return SETUN_OK;
}

static void drop_uses(mlx_run *run, const setun_step *step)
{
    int read[6], count = 0;
    for (int j = 0; j < 4; j++)
        if (step->input[j] >= 0) read[count++] = run->tape->source[step->input[j]];
    if (step->residual >= 0) read[count++] = run->tape->source[step->residual];
    for (int j = 0; j < count; j++)
        if (--run->tape->value[read[j]].uses <= 0) mlx_value_clear(run->table, &run->tape->value[read[j]]);
}

setun_status mlx_build_steps(mlx_run *run)
{
    for (int i = 0; i < run->plan->step_count; i++) {
        const setun_step *step = &run->plan->steps[i];
        if (run->frame->cancel && atomic_load_explicit(run->frame->cancel, memory_order_relaxed)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
        run->index = i;
        run->constant = 0;
        double start = run->frame->step_seconds ? setun_seconds() : 0.0;
        for (int o = 0; o < SETUN_STEP_WEIGHTS; o++)
            if (step->output[o] >= 0) run->tape->value[step->output[o]].uses = run->tape->uses[step->output[o]];
        int rows_slot = step->output[0];
        /* steps over no rows (a prompt's part without outputs) have nothing to do */
        if (setun_slot_rows(&run->plan->slots[rows_slot], run->frame->tokens, run->frame->outputs) > 0) SETUN_TRY(mlx_lower_step(run, step, &run->tape->step[i]));
        if (run->frame->step_seconds) {
            /* Measured steps are evaluated one by one: what the device needs, and a wait that a usual run has not. */
            setun_mlx_array *array = run->tape->value[step->output[0]].values;
            if (array) SETUN_TRY(mlx_run_check(run, run->table->eval(run->stream, &array, 1, true), "measured step"));
            run->frame->step_seconds[i] += setun_seconds() - start;
        }
        drop_uses(run, step);
    }
    return SETUN_OK;
}

static setun_status run_steps(mlx_run *run)
{
    bool done = false;
    SETUN_TRY(mlx_bind_inputs(run));
    SETUN_TRY(bind_sequences(run));
    if (mlx_may_compile(run)) SETUN_TRY(mlx_run_compiled(run, &done));
    if (!done) SETUN_TRY(mlx_build_steps(run));
    run->index = run->plan->step_count;
    return read_outputs(run);
}

/* The whole run by the CUDA kernels. A dry one is only counted: a token's launch and its wait. */
static setun_status run_cuda(mlx_tape *tape, setun_frame *frame, bool dry)
{
    pthread_mutex_lock(&tape->lock);
    setun_cuda_counters before, after;
    setun_cuda_engine_count(tape->cuda, &before);
    setun_status status = dry ? SETUN_OK : setun_cuda_engine_run(tape->cuda, frame);
    setun_cuda_engine_count(tape->cuda, &after);
    tape->operations = tape->without_kernel = tape->copies = 0;
    tape->kernel_calls = dry ? 1 : after.decode_launches - before.decode_launches + after.prompt_launches - before.prompt_launches;
    tape->synchronisations = dry ? 1 : after.synchronisations - before.synchronisations;
    if (!dry && status == SETUN_OK) {
        frame->device_runs++;
        frame->device_kernels += tape->kernel_calls;
        frame->device_synchronisations += tape->synchronisations;
    }
    pthread_mutex_unlock(&tape->lock);
    return status;
}

setun_status mlx_run_frame(mlx_executor *e, setun_frame *frame, bool dry)
{
    const setun_plan *plan = frame->plan;
    SETUN_TRY(check_frame(frame));
    if (plan->step_count == 0 || frame->tokens == 0) return SETUN_OK;
    mlx_tape *tape = mlx_tape_of(plan);
    if (!tape) return setun_fail(SETUN_ERROR_STATE, "the plan was not prepared for %s", e->mlx->id);
    if (tape->cuda && setun_cuda_engine_takes(tape->cuda, frame)) return run_cuda(tape, frame, dry);
    setun_sequence whole = {.cache = frame->cache, .first_row = 0, .rows = frame->tokens};
    mlx_run run = {.executor = e, .table = e->table, .stream = tape->stream, .frame = frame, .plan = plan, .tape = tape, .index = -1, .positions_slot = -1, .dry = dry};
    run.sequence_count = frame->sequence_count ? frame->sequence_count : 1;
    run.sequences = frame->sequence_count ? (setun_sequence *)(uintptr_t)frame->sequences : &whole;
    setun_mlx_array **arrays = setun_calloc((size_t)run.sequence_count * 3, sizeof *arrays);
    if (!arrays) return setun_fail_memory((size_t)run.sequence_count * 3 * sizeof *arrays);
    run.places = arrays;
    run.slots = arrays + run.sequence_count;
    run.positions = arrays + 2 * run.sequence_count;
    pthread_mutex_lock(&tape->lock);
    tape->kernel_calls = tape->operations = tape->synchronisations = tape->without_kernel = tape->copies = 0;
    setun_status status = run_steps(&run);
    if (!dry && status == SETUN_OK) {
        frame->device_runs++;
        frame->device_kernels += tape->kernel_calls;
        frame->device_operations += tape->operations;
        frame->device_synchronisations += tape->synchronisations;
    }
    for (int s = 0; s < plan->slot_count; s++) mlx_value_clear(e->table, &tape->value[s]);
    for (int i = 0; i < 3 * run.sequence_count; i++) e->table->array_release(arrays[i]);
    e->table->array_release(run.last_done);
    pthread_mutex_unlock(&tape->lock);
    setun_free(arrays);
    return status;
}

static setun_status mlx_run_tape(const setun_backend *backend, setun_frame *frame) { return mlx_run_frame((mlx_executor *)(uintptr_t)backend, frame, false); }

static setun_status mlx_sync(const setun_backend *backend, setun_frame *frame)
{
    (void)backend, (void)frame; /* run returns with its outputs read */
    return SETUN_OK;
}

/* ---- the device's backend ---- */

setun_status setun_mlx_backend(setun_mlx *mlx, const setun_backend **out)
{
    mlx_executor *e = setun_calloc(1, sizeof *e);
    if (!e) return setun_fail_memory(sizeof *e);
    e->backend = (setun_backend){.name = mlx->id, .supports = mlx_supports, .prepare = mlx_prepare, .run = mlx_run_tape, .sync = mlx_sync, .release = mlx_release, .release_weight = mlx_release_weight, .report = mlx_report};
    e->mlx = mlx;
    e->table = mlx->table;
    e->stream = e->streams[0] = mlx->stream;
    atomic_flag_clear(&e->said);
    setun_tuned tuned;
    setun_mlx_tuned(mlx->context, &mlx->device, &tuned);
    e->tuning = tuned.values;
    snprintf(e->tuning_note, sizeof e->tuning_note, "%s", tuned.note);
    pthread_mutex_init(&e->lock, NULL);
    static const uint32_t zeros[MLX_SMALLEST];
    static const setun_dtype types[3] = {SETUN_F32, SETUN_I32, SETUN_U8};
    setun_status status = SETUN_OK;
    for (int i = 0; i < 3 && status == SETUN_OK; i++) {
        setun_mlx_spec spec = mlx_spec1(types[i], MLX_SMALLEST);
        status = setun_mlx_check(e->table, e->table->array_from_host(e->stream, &spec, zeros, &e->nothing[i]), mlx->id);
    }
    if (status != SETUN_OK) {
        setun_mlx_backend_close(&e->backend);
        return status;
    }
    *out = &e->backend;
    return SETUN_OK;
}

void setun_mlx_backend_close(const setun_backend *backend)
{
    if (!backend) return;
    mlx_executor *e = (mlx_executor *)(uintptr_t)backend;
    setun_cuda_engine_close(e->cuda);
    for (int i = 1; i < MLX_STREAMS; i++)
        if (e->streams[i]) e->table->stream_close(e->streams[i]);
    for (int i = 0; i < 3; i++) e->table->array_release(e->nothing[i]);
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++) e->table->kernel_release(e->kernel[i]);
    pthread_mutex_destroy(&e->lock);
    setun_free(e);
}
