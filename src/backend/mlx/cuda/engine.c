/*
 * engine.c - runs of plans by the CUDA kernels: opening the device, binding plans, prompts and decode steps.
 * Caller: the MLX lowering. Knows launches and their arguments; what lies where on the device is engine_model.c's.
 */
#include "backend/mlx/cuda/engine_parts.h"
#include <errno.h>
#include <stdio.h>

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
        {"setun_forward_norm", &e->norm}, {"setun_forward_head", &e->head}, {"setun_forward_attention_64", &e->attention[0]}, {"setun_forward_attention_128", &e->attention[1]},
        {"setun_prompt_quantize", &e->quantize}, {"setun_prompt_rope", &e->rope}};
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

/* ---- plans ---- */

setun_status setun_cuda_engine_bind(setun_cuda_engine *e, const setun_plan *plan, setun_cuda_binding **out)
{
    *out = NULL;
    setun_cuda_plan *described;
    SETUN_TRY(setun_cuda_plan_describe(plan, &described));
    for (int i = 0; i < described->model.op_count; i++) /* the prompt path rounds rows in shared memory */
        if (described->model.ops[i].kind == SETUN_CUDA_LINEAR && described->model.ops[i].matrix[0].columns > SETUN_PROMPT_QUANTIZE_COLUMNS_MAX) {
            setun_cuda_plan_free(described);
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "prompt kernels: rows of more than %d columns", SETUN_PROMPT_QUANTIZE_COLUMNS_MAX);
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

typedef struct device_cache { setun_cuda_engine *engine; setun_cuda_pointer memory; size_t half; } device_cache; /* half: bytes of the keys */

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

static setun_status cache_of(setun_cuda_engine *e, setun_kv_cache *cache, device_cache **out)
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

static setun_status launch(setun_cuda_binding *b, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments)
{
    b->counters.prompt_launches++;
    return setun_cuda_launch(b->engine->driver, function, blocks, threads, shared_bytes, arguments);
}

static setun_status linear(setun_cuda_binding *b, int index, setun_cuda_pointer in, setun_cuda_pointer residual, setun_cuda_pointer out, int tokens)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const setun_cuda_op *op = &m->described->model.ops[index];
    engine_op *o = &m->ops[index];
    int flags = (op->normed ? SETUN_PROMPT_NORM : 0) | (o->norm ? SETUN_PROMPT_WEIGHT : 0), columns = o->columns, blocks = (int)setun_prompt_blocks(columns);
    float epsilon = op->epsilon, factor = op->factor;
    setun_cuda_pointer norm = o->norm ? o->norm : o->scales, bias = o->bias ? o->bias : o->scales;
    void *rounding[] = {&in, &norm, &m->q8, &m->scale, &m->sum, &columns, &tokens, &flags, &epsilon};
    SETUN_TRY(launch(b, e->quantize, (int)setun_prompt_groups(tokens) * 8, SETUN_PROMPT_QUANTIZE_THREADS, setun_prompt_quantize_shared(columns), rounding));
    const setun_cuda_properties *p = setun_cuda_driver_properties(e->driver);
    setun_prompt_launch choice = setun_prompt_choose(o->rows, columns, tokens, p->multiprocessors, p->major == 9 && p->minor == 0);
    setun_cuda_function product;
    if (!choice.kernel) return setun_fail(SETUN_ERROR_UNSUPPORTED, "prompt kernels: %d rows of %d columns and %d tokens are too many", o->rows, columns, tokens);
    SETUN_TRY(setun_cuda_function_get(e->driver, choice.kernel, choice.shared_bytes, &product));
    if (!product) return setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: the binaries have no %s", choice.kernel);
    if (!residual) residual = out;
    void *arguments[] = {&o->words, &o->scales, &m->q8, &m->scale, &m->sum, &bias, &residual, &out, &o->rows, &blocks, &tokens, &o->flags, &factor};
    return launch(b, product, choice.blocks, choice.threads, choice.shared_bytes, arguments);
}

static setun_status attend(setun_cuda_binding *b, int index, const device_cache *c, const setun_kv_cache *cache, setun_cuda_pointer qkv, setun_cuda_pointer out, int tokens)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const setun_cuda_model *model = &m->described->model;
    const setun_cuda_op *op = &model->ops[index];
    int heads = op->heads, kv_heads = op->kv_heads, size = model->head_size, capacity = cache->capacity, first = cache->length, window = op->window, interleaved = model->rope_interleaved;
    int flags = SETUN_PROMPT_OUT_F16 | (interleaved ? SETUN_PROMPT_INTERLEAVED : 0);
    float scale = op->scale;
    setun_cuda_pointer keys = c->memory + (setun_cuda_pointer)op->layer * (setun_cuda_pointer)kv_heads * (setun_cuda_pointer)capacity * (setun_cuda_pointer)size * 2, values = keys + c->half;
    void *append[] = {&qkv, &m->cosines, &m->sines, &m->positions, &keys, &values, &m->query, &tokens, &heads, &kv_heads, &size, &size, &capacity, &first, &flags};
    SETUN_TRY(launch(b, e->rope, tokens * (heads + 2 * kv_heads), 128, 0, append));
    void *arguments[] = {&qkv, &m->cosines, &m->sines, &keys, &values, &out, &tokens, &heads, &kv_heads, &capacity, &first, &window, &interleaved, &scale};
    return launch(b, e->attention[size == 128], heads * ((tokens + 63) / 64), 128, 0, arguments);
}

/* Logits of `count` rows of x from row index `at` of the run's outputs on. */
static setun_status head(setun_cuda_binding *b, setun_cuda_pointer x, const int32_t *rows, int count, int at)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const setun_cuda_model *model = &m->described->model;
    int width = model->width, vocabulary = model->vocabulary, row_bytes = setun_cuda_dense_row_bytes(model->head_format, width), format = model->head_format, weighted = m->head_norm != 0;
    float epsilon = model->head_normed ? model->head_epsilon : -1.0f, factor = model->head_factor;
    setun_cuda_pointer norm = weighted ? m->head_norm : x;
    SETUN_TRY(setun_cuda_to_device(e->driver, m->rows, rows, (size_t)count * sizeof *rows));
    void *normed[] = {&x, &m->rows, &norm, &m->normed, &width, &weighted, &epsilon};
    SETUN_TRY(launch(b, e->norm, count, 256, 0, normed));
    for (int done = 0; done < count; done += 8) {
        int tokens = count - done < 8 ? count - done : 8;
        setun_cuda_pointer from = m->normed + (setun_cuda_pointer)done * (setun_cuda_pointer)width * 4, to = m->logits + (setun_cuda_pointer)(at + done) * (setun_cuda_pointer)vocabulary * 4;
        void *arguments[] = {&m->head, &from, &to, &width, &vocabulary, &row_bytes, &format, &tokens, &factor};
        SETUN_TRY(launch(b, e->head, setun_cuda_driver_properties(e->driver)->multiprocessors * 8, 256, 0, arguments));
    }
    return SETUN_OK;
}

/* The rows of one sequence through all layers; rows_wanted: of them, whose logits are output `at` and on. */
static setun_status run_prompt(setun_cuda_binding *b, setun_frame *frame, const setun_sequence *q, const int32_t *rows_wanted, int wanted, int at)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const setun_cuda_model *model = &m->described->model;
    int tokens = q->rows, width = model->width, row_bytes = setun_cuda_dense_row_bytes(model->embedding_format, width), format = model->embedding_format;
    float factor = model->embedding_factor;
    const int32_t *ids = (const int32_t *)setun_frame_slot(frame, b->ids) + q->first_row;
    device_cache *c;
    SETUN_TRY(cache_of(e, q->cache, &c));
    int32_t *positions = setun_alloc((size_t)tokens * sizeof *positions);
    if (!positions) return setun_fail_memory((size_t)tokens * sizeof *positions);
    for (int t = 0; t < tokens; t++) positions[t] = q->cache->length + t;
    setun_status status = setun_cuda_to_device(e->driver, m->positions, positions, (size_t)tokens * sizeof *positions);
    if (status == SETUN_OK) status = setun_cuda_to_device(e->driver, m->ids, ids, (size_t)tokens * sizeof *ids);
    setun_free(positions);
    SETUN_TRY(status);
    void *arguments[] = {&m->embedding, &m->ids, &m->x[0], &width, &row_bytes, &format, &factor};
    SETUN_TRY(launch(b, e->embed, tokens, 256, 0, arguments));
    setun_cuda_pointer stream = m->x[0], other = m->x[1], current = stream;
    for (int i = 0; i < model->op_count; i++) {
        if (frame->cancel && atomic_load_explicit(frame->cancel, memory_order_relaxed)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
        const setun_cuda_op *op = &model->ops[i];
        setun_cuda_pointer free_wide = current == m->wide[0] ? m->wide[1] : m->wide[0];
        if (op->kind == SETUN_CUDA_ATTENTION) {
            SETUN_TRY(attend(b, i, c, q->cache, current, free_wide, tokens));
            current = free_wide;
        } else if (op->residual) {
            SETUN_TRY(linear(b, i, current, stream, other, tokens));
            setun_cuda_pointer swap = stream;
            current = stream = other, other = swap;
        } else {
            SETUN_TRY(linear(b, i, current, 0, free_wide, tokens));
            current = free_wide;
        }
    }
    return wanted ? head(b, stream, rows_wanted, wanted, at) : SETUN_OK;
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
        SETUN_TRY(cache_of(e, q[i].cache, &c));
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

static setun_status run_all(setun_cuda_binding *b, setun_frame *frame, const setun_sequence *sequences, int count)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    const int32_t *rows = b->rows >= 0 ? setun_frame_slot(frame, b->rows) : NULL;
    int outputs = b->rows >= 0 ? frame->outputs : frame->tokens, vocabulary = m->described->model.vocabulary, decode = -1;
    size_t row_bytes = (size_t)vocabulary * sizeof(float);
    uint8_t *slot = setun_frame_slot(frame, b->logits);
    bool single = true;
    int most = 0, furthest = 0;
    for (int i = 0; i < count; i++) {
        const setun_sequence *q = &sequences[i];
        single = single && q->rows == 1;
        most = q->rows > most ? q->rows : most;
        furthest = q->cache->length + q->rows > furthest ? q->cache->length + q->rows : furthest;
    }
    if (!single) { /* before any launch: growing lets go of what launches would still read */
        SETUN_TRY(engine_model_tokens(e, m, most));
        SETUN_TRY(engine_model_rotations(e, m, furthest));
    }
    SETUN_TRY(engine_model_logits(e, m, single && frame->tokens > outputs ? frame->tokens : outputs ? outputs : 1));
    setun_status status = SETUN_OK;
    if (single) {
        /* row t of the launch is token t; more sequences than the kernel takes go one launch after another, whose numbers are read before the next are written */
        for (int done = 0; done < count && status == SETUN_OK; done += SETUN_CUDA_TOKENS) {
            int now = count - done < SETUN_CUDA_TOKENS ? count - done : SETUN_CUDA_TOKENS;
            decode = now > 1;
            if (done) status = setun_cuda_wait(e->driver), b->counters.synchronisations++;
            if (status == SETUN_OK) status = run_decode(b, frame, sequences + done, now, done);
        }
    } else {
        int32_t *wanted = setun_alloc((size_t)(outputs + 1) * sizeof *wanted);
        if (!wanted) status = setun_fail_memory((size_t)outputs * sizeof *wanted);
        for (int i = 0, at = 0; i < count && status == SETUN_OK; i++) {
            int n = 0;
            while (at + n < outputs) { /* outputs rise with the rows, as sequences do */
                int row = rows ? rows[at + n] : at + n;
                if (row < sequences[i].first_row || row >= sequences[i].first_row + sequences[i].rows) break;
                wanted[n++] = row - sequences[i].first_row;
            }
            if (sequences[i].rows > 0) status = run_prompt(b, frame, &sequences[i], wanted, n, at);
            at += n;
            if (i + 1 == count && at < outputs && status == SETUN_OK) status = setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: outputs that are not in the order of the rows");
        }
        setun_free(wanted);
    }
    int copied = single ? (outputs ? frame->tokens : 0) : outputs;
    if (status == SETUN_OK) status = setun_cuda_to_host(e->driver, m->logits_host, m->logits, (size_t)copied * row_bytes);
    unsigned *seen = (unsigned *)(void *)(m->logits_host + (size_t)m->logit_rows * (size_t)vocabulary); /* pinned, after the logits */
    if (status == SETUN_OK && decode >= 0) status = setun_cuda_to_host(e->driver, seen, m->state[decode], sizeof *seen);
    setun_status waited = setun_cuda_wait(e->driver); /* also after a failure: what was launched still reads the buffers */
    b->counters.synchronisations++;
    if (status == SETUN_OK) status = waited;
    if (status == SETUN_OK && decode >= 0) status = check_decode(b, decode, *seen);
    for (int o = 0; o < outputs && status == SETUN_OK; o++) {
        int row = single && rows ? rows[o] : o;
        if (single && (row < 0 || row >= frame->tokens)) status = setun_fail(SETUN_ERROR_ARGUMENT, "output row %d of %d tokens", row, frame->tokens);
        else memcpy(slot + (size_t)o * row_bytes, (const uint8_t *)m->logits_host + (size_t)row * row_bytes, row_bytes);
    }
    return status;
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
