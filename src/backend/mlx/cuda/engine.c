/*
 * engine.c - runs of plans by the CUDA kernels: opening the device, binding plans, which kernels a run takes, decode steps, logits to the host.
 * Caller: the MLX lowering. Runs over rows are engine_rows.c's; what lies where on the device is engine_model.c's.
 */
#include "backend/mlx/cuda/engine_parts.h"
#include <errno.h>
#include <stdio.h>

/* Batches of so many sequences are faster as rows, by measurement on an H200 (docs/mlx.md). */
enum { ROWS_FROM = 2 };

/* ---- the device ---- */

static setun_status read_binary(const char *folder, const char *name, void **out)
{
    char path[1200];
    *out = NULL;
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "rb") : NULL;
    if (!f) return setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: %s: %s (built where nvcc is found; -DSETUN_NVCC=FILE names another)", path, strerror(errno));
    long bytes = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    setun_status status = SETUN_OK;
    if (bytes <= 0 || fseek(f, 0, SEEK_SET) != 0) status = setun_fail(SETUN_ERROR_IO, "CUDA kernels: %s is empty or cannot be read", path);
    if (status == SETUN_OK) {
        *out = setun_calloc((size_t)bytes + 1, 1);
        if (!*out) status = setun_fail_memory((size_t)bytes);
        else if (fread(*out, 1, (size_t)bytes, f) != (size_t)bytes) status = setun_fail(SETUN_ERROR_IO, "CUDA kernels: %s cannot be read", path);
    }
    fclose(f);
    return status;
}

static setun_status find_functions(setun_cuda_engine *e)
{
    const struct { const char *name; setun_cuda_function *to; } wanted[] = {{"setun_cuda_decode_one", &e->decode[0]}, {"setun_cuda_decode_many", &e->decode[1]}, {"setun_forward_embed", &e->embed},
        {"setun_forward_norm", &e->norm}, {"setun_forward_rope", &e->rope}, {"setun_prompt_quantize", &e->quantize}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        SETUN_TRY(setun_cuda_function_get(e->driver, wanted[i].name, 0, wanted[i].to));
        if (!*wanted[i].to) return setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: the binaries have no %s: build them and the program from one tree", wanted[i].name);
    }
    int most = setun_prompt_quantize_shared(SETUN_PROMPT_QUANTIZE_COLUMNS_MAX);
    return setun_cuda_function_get(e->driver, "setun_prompt_quantize", most, &e->quantize);
}

setun_status setun_cuda_engine_open(setun_context *context, const char *driver, const char *folder, int device, setun_cuda_engine **out)
{
    *out = NULL;
    setun_cuda_engine *e = setun_calloc(1, sizeof *e);
    if (!e) return setun_fail_memory(sizeof *e);
    e->context = context;
    e->rows_from = ROWS_FROM;
    pthread_mutex_init(&e->lock, NULL);
    static const char *const names[2] = {"setun_cuda_decode.fatbin", "setun_cuda_prompt.fatbin"};
    setun_status status = SETUN_OK;
    for (int i = 0; i < 2 && status == SETUN_OK; i++) status = read_binary(folder, names[i], &e->binaries[i]);
    if (status == SETUN_OK) status = setun_cuda_driver_open(driver, device, &e->driver);
    if (status == SETUN_OK && setun_cuda_driver_properties(e->driver)->major < 8)
        status = setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: the GPU has compute capability %d.%d; they need 8.0", setun_cuda_driver_properties(e->driver)->major, setun_cuda_driver_properties(e->driver)->minor);
    if (status == SETUN_OK) status = setun_cuda_enter(e->driver);
    if (status == SETUN_OK) {
        for (int i = 0; i < 2 && status == SETUN_OK; i++) status = setun_cuda_load(e->driver, e->binaries[i], names[i]);
        if (status == SETUN_OK) status = find_functions(e);
        setun_cuda_leave(e->driver);
    }
    for (int i = 0; i < 2; i++) { /* the driver has its own copy */
        setun_free(e->binaries[i]);
        e->binaries[i] = NULL;
    }
    if (status != SETUN_OK) {
        setun_cuda_engine_close(e);
        return status;
    }
    *out = e;
    return SETUN_OK;
}

void setun_cuda_engine_close(setun_cuda_engine *e)
{
    if (!e) return;
    setun_cuda_driver_close(e->driver);
    pthread_mutex_destroy(&e->lock);
    setun_free(e);
}

void setun_cuda_engine_rows_from(setun_cuda_engine *e, int sequences) { e->rows_from = sequences > 0 ? sequences : ROWS_FROM; }

/* ---- plans ---- */

/* What the kernels for rows cannot do; NULL: nothing. */
static const char *refusal(const setun_cuda_model *m)
{
    const setun_cuda_op *first = NULL;
    for (int i = 0; i < m->op_count; i++) {
        const setun_cuda_op *op = &m->ops[i];
        if (op->kind == SETUN_CUDA_LINEAR && op->matrix[0].columns > SETUN_PROMPT_QUANTIZE_COLUMNS_MAX) return "rows of more than 24576 columns"; /* they are rounded in shared memory */
        if (op->kind != SETUN_CUDA_ATTENTION) continue;
        if (!first) first = op;
        if (op->heads != first->heads || op->kv_heads != first->kv_heads) return "layers with different numbers of heads";
    }
    if (m->head_size != 64 && m->head_size != 128) return "heads of another size than 64 and 128";
    return m->width % (m->head_format == SETUN_CUDA_Q8 ? 32 : 8) ? "a vocabulary whose rows do not end with a vector" : NULL;
}

setun_status setun_cuda_engine_bind(setun_cuda_engine *e, const setun_plan *plan, setun_cuda_binding **out)
{
    *out = NULL;
    setun_cuda_plan *described;
    SETUN_TRY(setun_cuda_plan_describe(plan, &described));
    const char *why = refusal(&described->model);
    if (why) {
        setun_cuda_plan_free(described);
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "prompt kernels: the model has %s", why);
    }
    setun_cuda_binding *b = setun_calloc(1, sizeof *b);
    if (!b) {
        setun_cuda_plan_free(described);
        return setun_fail_memory(sizeof *b);
    }
    *b = (setun_cuda_binding){.engine = e, .ids = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, described->ids), .logits = setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, described->logits), .positions = -1, .rows = -1};
    for (int i = 0; i < plan->step_count; i++) {
        if (plan->steps[i].kind == SETUN_STEP_ATTENTION) b->positions = plan->steps[i].input[3];
        if (plan->steps[i].kind == SETUN_STEP_SELECT) b->rows = plan->steps[i].input[1];
    }
    pthread_mutex_lock(&e->lock);
    setun_status status = setun_cuda_enter(e->driver);
    if (status == SETUN_OK) {
        status = engine_model_get(e, described, &b->model);
        setun_cuda_leave(e->driver);
    } else setun_cuda_plan_free(described);
    pthread_mutex_unlock(&e->lock);
    if (status != SETUN_OK) {
        setun_free(b);
        return status;
    }
    *out = b;
    return SETUN_OK;
}

void setun_cuda_engine_unbind(setun_cuda_binding *b)
{
    if (!b) return;
    pthread_mutex_lock(&b->engine->lock);
    bool entered = setun_cuda_enter(b->engine->driver) == SETUN_OK;
    engine_model_drop(b->engine, b->model);
    if (entered) setun_cuda_leave(b->engine->driver);
    pthread_mutex_unlock(&b->engine->lock);
    setun_free(b);
}

void setun_cuda_engine_count(const setun_cuda_binding *b, setun_cuda_counters *out) { *out = b->counters; }

/* ---- caches ---- */

static void free_cache(void *device)
{
    device_cache *c = device;
    if (setun_cuda_enter(c->engine->driver) == SETUN_OK) {
        setun_cuda_release(c->engine->driver, c->memory);
        setun_cuda_leave(c->engine->driver);
    }
    setun_free(c);
}

bool setun_cuda_engine_owns(const setun_kv_cache *cache) { return cache->device && cache->device_free == free_cache; }

setun_status engine_cache(setun_cuda_engine *e, setun_kv_cache *cache, device_cache **out)
{
    if (cache->device) {
        *out = cache->device;
        return (*out)->engine == e ? SETUN_OK : setun_fail(SETUN_ERROR_STATE, "the KV cache is on another device");
    }
    device_cache *c = setun_calloc(1, sizeof *c);
    if (!c) return setun_fail_memory(sizeof *c);
    c->engine = e;
    c->half = (size_t)cache->layers * (size_t)cache->kv_heads * (size_t)cache->capacity * (size_t)cache->head_size * 2;
    setun_status status = setun_cuda_allocate(e->driver, 2 * c->half, &c->memory);
    if (status == SETUN_OK) status = setun_cuda_zero(e->driver, c->memory, 2 * c->half); /* whole tiles of keys are multiplied, also those not there yet */
    if (status != SETUN_OK) {
        setun_cuda_release(e->driver, c->memory);
        setun_free(c);
        return setun_fail_prefix(status, "KV cache for %d tokens", cache->capacity);
    }
    cache->device = c;
    cache->device_free = free_cache;
    *out = c;
    return SETUN_OK;
}

/* ---- runs ---- */

static int sequences_of(const setun_frame *frame, setun_sequence *whole, const setun_sequence **out)
{
    *whole = (setun_sequence){.cache = frame->cache, .first_row = 0, .rows = frame->tokens};
    *out = frame->sequence_count ? frame->sequences : whole;
    return frame->sequence_count ? frame->sequence_count : 1;
}

bool setun_cuda_engine_takes(const setun_cuda_binding *b, const setun_frame *frame)
{
    if (frame->step_checksums || frame->first_step > 0) return false;
    setun_sequence whole;
    const setun_sequence *sequences;
    int count = sequences_of(frame, &whole, &sequences);
    bool owned = false;
    for (int i = 0; i < count; i++) {
        const setun_kv_cache *cache = sequences[i].cache;
        if (cache->dtype != SETUN_F16 || (cache->device && !setun_cuda_engine_owns(cache))) return false;
        owned = owned || setun_cuda_engine_owns(cache);
        const int32_t *positions = b->positions >= 0 ? (const int32_t *)setun_frame_slot(frame, b->positions) + sequences[i].first_row : NULL;
        for (int t = 0; positions && t < sequences[i].rows; t++)
            if (positions[t] != cache->length + t) return false;
    }
    return !frame->step_seconds || owned;
}

/* One new token for each of `count` sequences; logits rows of the launch begin at `at`. */
static setun_status run_decode(setun_cuda_binding *b, setun_frame *frame, const setun_sequence *q, int count, int at)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    int which = count > 1, *run = m->run_host, *ids = run + SETUN_CUDA_RUN_INTS, *positions = ids + count, *capacities = positions + count, *caches = capacities + count;
    const int32_t *given = setun_frame_slot(frame, b->ids);
    *(setun_cuda_run *)(void *)run = (setun_cuda_run){count, 1, SETUN_CUDA_WANT_LOGITS, 0};
    for (int i = 0; i < count; i++) {
        device_cache *c;
        SETUN_TRY(engine_cache(e, q[i].cache, &c));
        ids[i] = given[q[i].first_row];
        positions[i] = q[i].cache->length;
        capacities[i] = q[i].cache->capacity;
        setun_cuda_pointer keys = c->memory, values = c->memory + c->half;
        memcpy(caches + 4 * i, &keys, 8);
        memcpy(caches + 4 * i + 2, &values, 8);
    }
    SETUN_TRY(setun_cuda_to_device(e->driver, m->run, run, setun_cuda_run_ints(count, 1) * sizeof(int)));
    const setun_cuda_header *h = m->table[which];
    setun_cuda_function function;
    SETUN_TRY(setun_cuda_function_get(e->driver, h->many ? "setun_cuda_decode_many" : "setun_cuda_decode_one", h->shared_bytes, &function));
    setun_cuda_pointer base = 0, logits = m->logits + (setun_cuda_pointer)at * (setun_cuda_pointer)m->described->model.vocabulary * 4; /* caches are given as addresses */
    void *arguments[] = {&m->weights, &m->head, &m->embedding, &m->device_table[which], &base, &m->state[which], &m->run, &m->chosen, &logits};
    b->counters.decode_launches++;
    return setun_cuda_launch(e->driver, function, h->grid, h->threads, h->shared_bytes, arguments);
}

/* After the wait: did a decode launch give up? Its state is then begun again. */
static setun_status check_decode(setun_cuda_binding *b, int which, unsigned status)
{
    if (status == 0) return SETUN_OK;
    SETUN_TRY(setun_cuda_zero(b->engine->driver, b->model->state[which], (size_t)b->model->table[which]->state_bytes));
    return setun_fail(SETUN_ERROR_STATE, status == 1 ? "decode kernel: a block waited too long for another one (is another program on the GPU?)" : "decode kernel: a token id that is not in the vocabulary");
}

/* Logits from pinned memory into the frame: megabytes for a batch, so by all threads. */
typedef struct copy_job { uint8_t *to; const uint8_t *from; size_t bytes; } copy_job;
enum { COPY_BYTES = 1 << 18 };
static void copy_range(void *argument, int64_t first, int64_t last, int worker)
{
    (void)worker;
    const copy_job *job = argument;
    size_t from = (size_t)first * COPY_BYTES, to = (size_t)last * COPY_BYTES < job->bytes ? (size_t)last * COPY_BYTES : job->bytes;
    memcpy(job->to + from, job->from + from, to - from);
}
static void copy_home(setun_cuda_engine *e, void *to, const void *from, size_t bytes)
{
    copy_job job = {to, from, bytes};
    if (bytes < 8 * COPY_BYTES) memcpy(to, from, bytes);
    else setun_pool_for(e->context->pool, (int64_t)((bytes + COPY_BYTES - 1) / COPY_BYTES), 1, copy_range, &job);
}

static setun_status run_all(setun_cuda_binding *b, setun_frame *frame, const setun_sequence *sequences, int count)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const int32_t *rows = b->rows >= 0 ? setun_frame_slot(frame, b->rows) : NULL;
    int outputs = b->rows >= 0 ? frame->outputs : frame->tokens, vocabulary = m->described->model.vocabulary, decode = -1;
    size_t row_bytes = (size_t)vocabulary * sizeof(float);
    uint8_t *slot = setun_frame_slot(frame, b->logits);
    bool single = count < e->rows_from;
    for (int i = 0; i < count; i++) single = single && sequences[i].rows == 1;
    for (int o = 0; o < outputs; o++)
        if (rows && (rows[o] < 0 || rows[o] >= frame->tokens)) return setun_fail(SETUN_ERROR_ARGUMENT, "output row %d of %d tokens", rows[o], frame->tokens);
    int copied = single ? (outputs ? frame->tokens : 0) : outputs; /* a decode launch gives every token's */
    SETUN_TRY(engine_model_logits(e, m, copied ? copied : 1));
    setun_status status = SETUN_OK;
    if (single) {
        /* row t of the launch is token t; more sequences than the kernel takes go one launch after another, whose numbers are read before the next are written */
        for (int done = 0; done < count && status == SETUN_OK; done += SETUN_CUDA_TOKENS) {
            int now = count - done < SETUN_CUDA_TOKENS ? count - done : SETUN_CUDA_TOKENS;
            decode = now > 1;
            if (done) status = setun_cuda_wait(e->driver), b->counters.synchronisations++;
            if (status == SETUN_OK) status = run_decode(b, frame, sequences + done, now, done);
        }
    } else status = engine_run_rows(b, frame, sequences, count, rows, outputs);
    if (status == SETUN_OK) status = setun_cuda_to_host(e->driver, m->logits_host, m->logits, (size_t)copied * row_bytes);
    unsigned *seen = (unsigned *)(void *)(m->logits_host + (size_t)m->logit_rows * (size_t)vocabulary); /* pinned, after the logits */
    if (status == SETUN_OK && decode >= 0) status = setun_cuda_to_host(e->driver, seen, m->state[decode], sizeof *seen);
    setun_status waited = setun_cuda_wait(e->driver); /* also after a failure: what was launched still reads the buffers */
    b->counters.synchronisations++;
    if (status == SETUN_OK) status = waited;
    if (status == SETUN_OK && decode >= 0) status = check_decode(b, decode, *seen);
    if (status != SETUN_OK) return status;
    if (!single || !rows) copy_home(e, slot, m->logits_host, (size_t)outputs * row_bytes);
    else
        for (int o = 0; o < outputs; o++) memcpy(slot + (size_t)o * row_bytes, (const uint8_t *)m->logits_host + (size_t)rows[o] * row_bytes, row_bytes);
    return SETUN_OK;
}

setun_status setun_cuda_engine_run(setun_cuda_binding *b, setun_frame *frame)
{
    setun_sequence whole;
    const setun_sequence *sequences;
    int count = sequences_of(frame, &whole, &sequences);
    double start = frame->step_seconds ? setun_seconds() : 0.0;
    pthread_mutex_lock(&b->engine->lock);
    setun_status status = setun_cuda_enter(b->engine->driver);
    if (status == SETUN_OK) {
        b->counters.runs++;
        b->counters.tokens += (uint64_t)frame->tokens;
        status = run_all(b, frame, sequences, count);
        setun_cuda_leave(b->engine->driver);
    }
    pthread_mutex_unlock(&b->engine->lock);
    if (frame->step_seconds) frame->step_seconds[0] += setun_seconds() - start;
    return status;
}
