/*
 * execute.c - runs a tape on the context's workers, and the CPU's vtable.
 * Every worker walks the same tape. Between steps there is a barrier, except between steps that worker 0 does alone and after one that each does for itself.
 * Caller: run/. Allocates nothing, parses nothing, reads no environment; cannot fail except by what the inputs hold.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"
#include <limits.h>

typedef void (*step_fn)(cpu_run *run, int index, int worker);

static step_fn function_of(setun_step_kind kind)
{
    switch (kind) {
    case SETUN_STEP_EMBEDDING: return cpu_step_embedding;
    case SETUN_STEP_NORM: return cpu_step_norm;
    case SETUN_STEP_QUANTIZE: return cpu_step_quantize;
    case SETUN_STEP_LINEAR: return cpu_step_product;
    case SETUN_STEP_UNARY: return cpu_step_unary;
    case SETUN_STEP_BINARY: return cpu_step_binary;
    case SETUN_STEP_SOFTMAX: return cpu_step_softmax;
    case SETUN_STEP_L2: return cpu_step_l2;
    case SETUN_STEP_SELECT: return cpu_step_select;
    case SETUN_STEP_HADAMARD: return cpu_step_hadamard;
    case SETUN_STEP_ROPE: return cpu_step_rope;
    case SETUN_STEP_ATTENTION: return cpu_step_attention;
    case SETUN_STEP_COUNT: break;
    }
    return NULL;
}

static bool is_small(const cpu_run *run, int index)
{
    if (run->workers == 1) return true;
    const setun_step *step = &run->plan->steps[index];
    if (step->kind == SETUN_STEP_ATTENTION) return false;
    if (step->kind == SETUN_STEP_LINEAR) {
        int64_t rows = 0, columns = setun_slot_width(&run->plan->slots[step->input[0]]);
        for (int i = 0; i < step->weight_count; i++) rows += step->weight[i]->rows;
        return setun_slot_rows(&run->plan->slots[step->input[0]], run->tokens, run->outputs) * rows * columns < 4 * CPU_SOLO_ELEMENTS;
    }
    return cpu_elements(&run->plan->slots[step->output[0]], run->tokens, run->outputs) < CPU_SOLO_ELEMENTS;
}

static void choose_how(const cpu_run *run)
{
    for (int i = 0; i < run->plan->step_count; i++) {
        run->how[i] = is_small(run, i) ? CPU_SOLO : CPU_TOGETHER;
        if (i > 0 && run->how[i] == CPU_TOGETHER && run->how[i - 1] == CPU_SOLO && run->tape->step[i - 1].apart) run->how[i - 1] = CPU_APART;
    }
}

static bool cancelled(const cpu_run *run) { return run->frame->cancel && atomic_load_explicit(run->frame->cancel, memory_order_relaxed); }

/* FNV-1a over what a step gave: for telling where two runs part (SETUN_DEBUG=4). */
static uint64_t checksum_outputs(const cpu_run *run, int index)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        int slot = run->plan->steps[index].output[i];
        if (slot < 0) continue;
        const setun_slot *s = &run->plan->slots[slot];
        const uint8_t *bytes = setun_frame_slot(run->frame, slot);
        int64_t elements = cpu_elements(s, run->tokens, run->outputs), width = setun_slot_width(s);
        int64_t count = s->dtype == SETUN_Q8 ? elements / (width > 0 ? width : 1) * setun_q8_stride(width) : elements * (int64_t)setun_dtype_bytes(s->dtype);
        for (int64_t b = 0; b < count; b++) hash = (hash ^ bytes[b]) * 0x100000001b3u;
    }
    return hash;
}

static void worker_run(void *argument, int worker, int workers)
{
    cpu_run *run = argument;
    double *seconds = worker == 0 ? run->frame->step_seconds : NULL;
    double last = seconds ? setun_seconds() : 0.0;
    int before = CPU_SOLO;
    (void)workers;
    int first = run->frame->first_step;
    for (int i = first; i < run->plan->step_count; i++) {
        int how = run->how[i];
        bool meet = i > first && before != CPU_APART && !(how == CPU_SOLO && before == CPU_SOLO);
        /* Only worker 0 decides to stop, and says before which step, ahead of the barrier that all pass before it: so all
         * stop at the same place, even one that reads it late. */
        if (worker == 0 && (meet || run->workers == 1) && cancelled(run) && atomic_load(&run->stop_at) > i) {
            run->status = SETUN_ERROR_CANCELLED;
            atomic_store(&run->stop_at, i);
        }
        if (meet) setun_pool_barrier(run->pool);
        if ((meet || run->workers == 1) && atomic_load(&run->stop_at) <= i) return;
        if (seconds) {
            double now = setun_seconds();
            if (i > first) seconds[i - 1] += now - last;
            last = now;
        }
        if (how != CPU_SOLO || worker == 0) function_of(run->plan->steps[i].kind)(run, i, worker);
        before = how;
        if (run->frame->step_checksums) { /* before the next step reuses the memory */
            setun_pool_barrier(run->pool);
            if (worker == 0) run->frame->step_checksums[i] = checksum_outputs(run, i);
            setun_pool_barrier(run->pool);
        }
    }
    if (seconds && run->plan->step_count > 0) {
        if (before != CPU_SOLO) setun_pool_barrier(run->pool);
        seconds[run->plan->step_count - 1] += setun_seconds() - last;
    } else if (run->frame->step_seconds && before != CPU_SOLO) setun_pool_barrier(run->pool);
}

static setun_status check_cache(const setun_plan *plan, const setun_kv_cache *cache, int tokens)
{
    if (!cache) return setun_fail(SETUN_ERROR_STATE, "the plan attends over a KV cache and the run has none");
    if (cache->layers < plan->cache_layers || cache->kv_heads != plan->cache_kv_heads || cache->head_size != plan->cache_head_size)
        return setun_fail(SETUN_ERROR_STATE, "the KV cache has %d layers, %d heads of %d; the plan needs %d, %d of %d", cache->layers, cache->kv_heads, cache->head_size,
                          plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size);
    if (cache->length < 0 || tokens > cache->capacity - cache->length)
        return setun_fail(SETUN_ERROR_CONTEXT, "%d more tokens do not fit: %d of %d are used, %d are free", tokens, cache->length, cache->capacity, cache->capacity - cache->length);
    return SETUN_OK;
}

/* Several sequences in one run: each with a cache of its own, one after another, covering all tokens. */
static setun_status check_sequences(const setun_frame *frame)
{
    const setun_plan *plan = frame->plan;
    int next = 0;
    for (int i = 0; i < plan->step_count; i++)
        if (plan->steps[i].kind == SETUN_STEP_ATTENTION && plan->steps[i].attention.cache_layer == 0)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "step %d attends without a cache: it cannot tell the sequences of a run apart; run them one by one", i);
    for (int i = 0; i < frame->sequence_count; i++) {
        const setun_sequence *s = &frame->sequences[i];
        if (s->first_row != next || s->rows < 1 || s->rows > frame->tokens - next)
            return setun_fail(SETUN_ERROR_ARGUMENT, "sequence %d has rows %d to %d; rows from %d on are free, of %d", i, s->first_row, s->first_row + s->rows - 1, next, frame->tokens);
        for (int j = 0; j < i; j++)
            if (plan->cache_layers > 0 && frame->sequences[j].cache == s->cache) return setun_fail(SETUN_ERROR_ARGUMENT, "sequences %d and %d have the same KV cache", j, i);
        if (plan->cache_layers > 0) SETUN_TRY(check_cache(plan, s->cache, s->rows));
        next += s->rows;
    }
    if (next != frame->tokens) return setun_fail(SETUN_ERROR_ARGUMENT, "the sequences cover %d of %d tokens", next, frame->tokens);
    return SETUN_OK;
}

static setun_status check_frame(const setun_frame *frame)
{
    const setun_plan *plan = frame->plan;
    if (frame->tokens < 0 || frame->tokens > plan->tokens_max || frame->outputs < 0 || frame->outputs > plan->outputs_max)
        return setun_fail(SETUN_ERROR_ARGUMENT, "run of %d tokens and %d outputs: the plan was made for at most %d and %d", frame->tokens, frame->outputs, plan->tokens_max, plan->outputs_max);
    if (frame->first_step < 0 || frame->first_step >= (plan->step_count > 0 ? plan->step_count : 1))
        return setun_fail(SETUN_ERROR_ARGUMENT, "run from step %d: the plan has %d steps", frame->first_step, plan->step_count);
    if (frame->first_step > 0 && frame->first_step == plan->step_count - 1 && plan->steps[frame->first_step].kind == SETUN_STEP_LINEAR) return SETUN_OK; /* the head alone: no cache is touched */
    if (frame->sequence_count > 0) return check_sequences(frame);
    return plan->cache_layers > 0 ? check_cache(plan, frame->cache, frame->tokens) : SETUN_OK;
}

static setun_status cpu_run_tape(const setun_backend *backend, setun_frame *frame)
{
    (void)backend;
    const setun_plan *plan = frame->plan;
    SETUN_TRY(check_frame(frame));
    if (plan->step_count == 0 || frame->tokens == 0) return SETUN_OK;
    cpu_run run = {
        .frame = frame, .plan = plan, .kernels = plan->context->kernels, .pool = plan->context->pool, .tape = cpu_tape_of(plan),
        .scratch = frame->arena + cpu_align(plan->arena_bytes), .workers = setun_pool_size(plan->context->pool), .tokens = frame->tokens, .outputs = frame->outputs,
        .status = SETUN_OK,
    };
    if (!run.tape) return setun_fail(SETUN_ERROR_STATE, "the plan was not prepared for the cpu");
    if (run.tape->later && frame->first_step == 0 && atomic_load(&run.tape->ran) && !atomic_load(&run.tape->packed)) {
        SETUN_TRY(cpu_pack_waiting(plan));
        atomic_store(&run.tape->packed, true);
    }
    for (int i = 0; i < plan->step_count; i++) atomic_store_explicit(&frame->counters[i], 0, memory_order_relaxed);
    run.how = run.scratch + run.tape->how_offset;
    choose_how(&run);
    memset(run.scratch + run.tape->attention_offset, 0, (size_t)run.tape->attention_counters);
    for (int w = 0; w < run.workers; w++) memset(cpu_worker_scratch(&run, w) + run.tape->worker_bytes - run.tape->cursor_bytes, 0, (size_t)run.tape->cursor_bytes);
    atomic_init(&run.stop_at, INT_MAX);
    atomic_init(&run.broken, NULL);
    if (cancelled(&run)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    cpu_head_begin(&run);
    setun_pool_run(run.pool, worker_run, &run);
    cpu_head_end(&run);
    if (run.status == SETUN_ERROR_CANCELLED) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    if (atomic_load(&run.broken)) return cpu_say_broken(&run);
    if (run.status == SETUN_OK && run.tape->checks) cpu_note_read(&run);
    return run.status;
}

static setun_status cpu_sync(const setun_backend *backend, setun_frame *frame)
{
    (void)backend, (void)frame; /* run returns when everything is computed */
    return SETUN_OK;
}

const setun_backend *setun_backend_cpu(void)
{
    static const setun_backend cpu = {.name = "cpu", .supports = cpu_supports, .prepare = cpu_prepare, .run = cpu_run_tape, .sync = cpu_sync, .release = cpu_release,
                                      .release_weight = cpu_release_weight};
    return &cpu;
}
