/*
 * session.c - a model with a context of tokens: feeds ids through the plan in batches and keeps the logits after the last one.
 * Callers: the program, generate.c. Knows plans, frames and the cache; knows no kernel and no tokenizer.
 *
 * All or nothing: the cache's length moves only when everything succeeded. What was written beyond it is overwritten
 * by the next run. The logits' slot is written by the last step of the last batch, so logits too survive a failed feed.
 */
#include "run/run.h"
#include <limits.h>

setun_status setun_kv_type(const char *name, setun_dtype *out)
{
    if (!name || !strcmp(name, "f16")) *out = SETUN_F16;
    else if (!strcmp(name, "f32")) *out = SETUN_F32;
    else if (!strcmp(name, "i8")) *out = SETUN_I8;
    else return setun_fail(SETUN_ERROR_ARGUMENT, "kv_type '%s' is unknown; choose f16, f32 or i8", name);
    return SETUN_OK;
}

setun_status setun_precision_of(const char *name, const setun_backend *backend, setun_dtype *out)
{
    static const struct { const char *name; setun_dtype dtype; } known[] = {{"f32", SETUN_F32}, {"bf16", SETUN_BF16}, {"f16", SETUN_F16}};
    *out = SETUN_F32;
    for (size_t i = 0; name && i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].dtype;
            if (*out != SETUN_F32 && (!backend || backend == setun_backend_cpu())) return setun_fail(SETUN_ERROR_UNSUPPORTED, "precision %s: the CPU backend computes in f32; choose f32, or a device of MLX", name);
            return SETUN_OK;
        }
    return name ? setun_fail(SETUN_ERROR_ARGUMENT, "precision '%s' is unknown; choose f32, bf16 or f16", name) : SETUN_OK;
}

setun_status setun_session_resolve(const setun_model *model, const setun_session_options *given, setun_session_options *out)
{
    SETUN_OPTIONS(setun_session_options, o, given);
    int trained = model->description.h.context;
    if (o.context < 0 || o.batch < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "session: context %d and batch %d must not be negative", o.context, o.batch);
    if (o.context == 0) o.context = trained > 0 && trained < 4096 ? trained : 4096;
    if (o.batch == 0) o.batch = 512;
    if (o.batch > o.context) o.batch = o.context;
    if (o.batch > 65536) return setun_fail(SETUN_ERROR_ARGUMENT, "session: batch %d; at most 65536", o.batch);
    setun_dtype dtype;
    SETUN_TRY(setun_kv_type(o.kv_type, &dtype));
    o.kv_type = dtype == SETUN_F16 ? "f16" : dtype == SETUN_I8 ? "i8" : "f32"; /* static text: the caller's need not live */
    setun_head_mode head;
    SETUN_TRY(setun_head_mode_of(o.head, &head));
    o.head = setun_head_mode_name(head);
    setun_dtype precision;
    SETUN_TRY(setun_precision_of(o.precision, model->backend, &precision));
    o.precision = precision == SETUN_BF16 ? "bf16" : precision == SETUN_F16 ? "f16" : "f32";
    *out = o;
    return SETUN_OK;
}

setun_status setun_session_plan(setun_model *model, const setun_session_options *options, bool embedding, setun_plan **out, int *out_graph_nodes)
{
    *out = NULL;
    const setun_backend *backend = model->backend ? model->backend : setun_backend_cpu();
    setun_graph *graph;
    SETUN_TRY(setun_graph_create(model->context, &graph));
    setun_transformer_options transformer = {.no_activation_quantisation = options->no_activation_quantisation, .embedding = embedding};
    setun_status status = setun_transformer_build(graph, model, &transformer);
    setun_plan *plan = NULL;
    if (status == SETUN_OK) {
        if (out_graph_nodes) *out_graph_nodes = graph->node_count;
        setun_head_mode head = SETUN_HEAD_FULL;
        if (!embedding && !model->description.h.embedding_model) status = setun_head_mode_of(options->head, &head);
        setun_plan_options plan_options = {.tokens_max = options->batch, .outputs_max = embedding ? 1 : options->batch < SETUN_SESSION_OUTPUTS ? options->batch : SETUN_SESSION_OUTPUTS, .no_fusion = options->no_fusion, .head = head, .supports = backend->supports};
        if (status == SETUN_OK) status = setun_precision_of(options->precision, model->backend, &plan_options.precision);
        if (status == SETUN_OK) status = setun_plan_build(graph, backend, &plan_options, &plan);
    }
    setun_graph_destroy(graph);
    if (status == SETUN_OK) status = backend->prepare(backend, plan);
    if (status != SETUN_OK) {
        setun_plan_free(plan);
        return status;
    }
    *out = plan;
    return SETUN_OK;
}

static setun_status find(const setun_plan *plan, setun_slot_place place, const char *name, int *out)
{
    *out = setun_plan_find_slot(plan, place, name);
    return *out >= 0 ? SETUN_OK : setun_fail(SETUN_ERROR_STATE, "the transformer's plan has no %s '%s'", place == SETUN_PLACE_INPUT ? "input" : "output", name);
}

static void log_plan(setun_session *s)
{
    const setun_context *context = s->model->context;
    int debug = context->environment.debug;
    if (debug >= 1)
        setun_log(context, SETUN_LOG_INFO, "session: cpu[%s], %d threads, %d steps, arena %llu bytes, scratch %llu, kv cache %llu (%s, %d tokens)", setun_context_isa(context),
                  setun_context_threads(context), s->plan->step_count, (unsigned long long)s->plan->arena_bytes, (unsigned long long)s->plan->scratch_bytes,
                  (unsigned long long)s->cache.bytes, s->options.kv_type, s->options.context);
    if (debug >= 3)
        for (int i = 0; i < s->plan->step_count; i++)
            setun_log(context, SETUN_LOG_INFO, "step %d: %s (%s) %s", i, setun_step_name(s->plan->steps[i].kind), s->plan->steps[i].fused, s->plan->steps[i].kernel ? s->plan->steps[i].kernel : "");
}

static setun_status open_session(setun_session *s)
{
    SETUN_TRY(setun_session_plan(s->model, &s->options, false, &s->plan, &s->graph_nodes));
    SETUN_TRY(find(s->plan, SETUN_PLACE_INPUT, "tokens", &s->slot_tokens));
    SETUN_TRY(find(s->plan, SETUN_PLACE_INPUT, "positions", &s->slot_positions));
    SETUN_TRY(find(s->plan, SETUN_PLACE_INPUT, "outputs", &s->slot_outputs));
    SETUN_TRY(find(s->plan, SETUN_PLACE_OUTPUT, "logits", &s->slot_logits));
    s->vocabulary = (int)setun_slot_width(&s->plan->slots[s->slot_logits]);
    SETUN_TRY(setun_frame_create(s->plan, &s->frame));
    setun_dtype dtype;
    SETUN_TRY(setun_kv_type(s->options.kv_type, &dtype));
    if (s->plan->cache_layers > 0) SETUN_TRY(setun_kv_cache_create(s->plan->cache_layers, s->plan->cache_kv_heads, s->plan->cache_head_size, s->options.context, dtype, &s->cache));
    s->frame.cache = &s->cache;
    s->frame.cancel = &s->cancel;
    int debug = s->model->context->environment.debug;
    if (debug >= 2) {
        s->frame.step_seconds = setun_calloc((size_t)s->plan->step_count + 1, sizeof(double));
        if (!s->frame.step_seconds) return SETUN_ERROR_MEMORY;
    }
    if (debug >= 4) {
        s->frame.step_checksums = setun_calloc((size_t)s->plan->step_count + 1, sizeof(uint64_t));
        if (!s->frame.step_checksums) return SETUN_ERROR_MEMORY;
    }
    log_plan(s);
    return SETUN_OK;
}

setun_status setun_session_create(setun_model *model, const setun_session_options *options, setun_session **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_create: out is NULL");
    *out = NULL;
    if (!model) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_create: model is NULL");
    setun_session_options resolved;
    SETUN_TRY(setun_session_resolve(model, options, &resolved));
    setun_session *s = setun_calloc(1, sizeof *s);
    if (!s) return setun_fail_memory(sizeof *s);
    s->model = model;
    s->options = resolved;
    atomic_init(&s->cancel, false);
    setun_status status = open_session(s);
    if (status != SETUN_OK) {
        setun_session_destroy(s);
        return status;
    }
    *out = s;
    return SETUN_OK;
}

void setun_session_destroy(setun_session *session)
{
    if (!session) return;
    if (session->frame.step_seconds && session->plan)
        for (int i = 0; i < session->plan->step_count; i++)
            setun_log(session->model->context, SETUN_LOG_INFO, "step %d: %s (%s) %.3f ms in all", i, setun_step_name(session->plan->steps[i].kind), session->plan->steps[i].fused,
                      session->frame.step_seconds[i] * 1e3);
    setun_free(session->frame.step_seconds);
    setun_free(session->frame.step_checksums);
    setun_frame_destroy(&session->frame);
    setun_frame_destroy(&session->embedding_frame);
    setun_kv_cache_destroy(&session->cache);
    setun_plan_free(session->plan);
    setun_plan_free(session->embedding_plan);
    setun_free(session);
}

void setun_session_bind(setun_frame *frame, int slot_tokens, int slot_positions, int slot_outputs, const int32_t *ids, int count, int first_position, int outputs)
{
    int32_t *tokens = setun_frame_slot(frame, slot_tokens), *positions = setun_frame_slot(frame, slot_positions), *rows = setun_frame_slot(frame, slot_outputs);
    memcpy(tokens, ids, (size_t)count * sizeof *ids);
    for (int i = 0; i < count; i++) positions[i] = first_position + i;
    for (int i = 0; i < outputs; i++) rows[i] = count - outputs + i;
    frame->tokens = count;
    frame->outputs = outputs;
}

static void log_checksums(setun_session *s)
{
    for (int i = 0; i < s->plan->step_count; i++)
        setun_log(s->model->context, SETUN_LOG_INFO, "position %d step %d %s: %016llx", s->cache.length, i, s->plan->steps[i].fused, (unsigned long long)s->frame.step_checksums[i]);
}

setun_status setun_session_run(setun_session *s, setun_frame *frame)
{
    const setun_backend *backend = frame->plan->backend;
    uint64_t before = setun_alloc_count();
    setun_status status = backend->run(backend, frame);
    if (status == SETUN_OK) status = backend->sync(backend, frame);
    s->allocations_in_run += setun_alloc_count() - before;
    if (status == SETUN_OK && frame->step_checksums) log_checksums(s);
    return status;
}

static setun_status check_ids(const setun_session *s, const int32_t *ids, size_t count)
{
    if (!ids && count > 0) return setun_fail(SETUN_ERROR_ARGUMENT, "ids is NULL");
    size_t free_tokens = (size_t)(s->options.context - s->cache.length);
    if (count > free_tokens)
        return setun_fail(SETUN_ERROR_CONTEXT, "%zu tokens do not fit: the context holds %d, %d are used and %zu are free; shorten the text or make the session with a larger context",
                          count, s->options.context, s->cache.length, free_tokens);
    int vocabulary = s->model->description.h.vocabulary;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return setun_fail(SETUN_ERROR_ARGUMENT, "token id %d at index %zu is out of range: the vocabulary has %d tokens", (int)ids[i], i, vocabulary);
    return SETUN_OK;
}

static setun_status feed(setun_session *s, const int32_t *ids, size_t count, setun_logits_fn fn, void *user)
{
    SETUN_TRY(check_ids(s, ids, count));
    if (atomic_exchange(&s->cancel, false)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    int start = s->cache.length;
    bool later = !fn && s->plan->head.bits > 0; /* the head waits until somebody asks, see head.c */
    int most = s->options.batch;
    if (fn && most > SETUN_SESSION_OUTPUTS) most = SETUN_SESSION_OUTPUTS;
    float *logits = setun_frame_slot(&s->frame, s->slot_logits);
    for (size_t done = 0; done < count;) {
        int tokens = count - done < (size_t)most ? (int)(count - done) : most;
        bool last = done + (size_t)tokens == count;
        int outputs = fn ? tokens : last ? 1 : 0;
        setun_session_bind(&s->frame, s->slot_tokens, s->slot_positions, s->slot_outputs, ids + done, tokens, s->cache.length, outputs);
        s->frame.head.top = later ? -1 : 0;
        setun_status status = setun_session_run(s, &s->frame);
        s->frame.head.top = 0;
        if (status == SETUN_OK) {
            s->cache.length += tokens;
            for (int i = 0; fn && i < tokens && status == SETUN_OK; i++)
                if (!fn(user, done + (size_t)i, logits + (size_t)i * (size_t)s->vocabulary, s->vocabulary)) status = setun_fail(SETUN_ERROR_CANCELLED, "the callback asked to stop");
        }
        if (status != SETUN_OK) {
            s->cache.length = start;
            if (fn) s->has_logits = false; /* rows of earlier runs overwrote them */
            if (s->logits_state != SETUN_LOGITS_ALL) s->logits_state = SETUN_LOGITS_LOST;
            if (status == SETUN_ERROR_CANCELLED) atomic_store(&s->cancel, false);
            return status;
        }
        done += (size_t)tokens;
        if (last) {
            s->logits = logits + (size_t)(outputs - 1) * (size_t)s->vocabulary;
            s->logits_state = later ? SETUN_LOGITS_HIDDEN : SETUN_LOGITS_ALL;
            s->last_id = ids[count - 1];
            s->has_logits = true;
        }
    }
    return SETUN_OK;
}

setun_status setun_session_feed(setun_session *session, const int32_t *ids, size_t count)
{
    if (!session) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed: session is NULL");
    return feed(session, ids, count, NULL, NULL);
}

setun_status setun_session_feed_all(setun_session *session, const int32_t *ids, size_t count, setun_logits_fn fn, void *user)
{
    if (!session || !fn) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_all: %s is NULL", session ? "fn" : "session");
    return feed(session, ids, count, fn, user);
}

setun_status setun_session_check_ids(const setun_session *s, const int32_t *ids, size_t count) { return check_ids(s, ids, count); }
int setun_session_position(const setun_session *session) { return session ? session->cache.length : 0; }
int setun_session_context(const setun_session *session) { return session ? session->options.context : 0; }

setun_status setun_session_truncate(setun_session *session, int position)
{
    if (!session) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_truncate: session is NULL");
    if (position < 0 || position > session->cache.length)
        return setun_fail(SETUN_ERROR_ARGUMENT, "truncate to %d: the context has %d tokens", position, session->cache.length);
    if (position < session->cache.length) session->has_logits = false; /* they belonged to a token that is gone */
    session->cache.length = position;
    return SETUN_OK;
}

void setun_session_cancel(setun_session *session)
{
    if (session) atomic_store(&session->cancel, true);
}

uint64_t setun_model_packed_bytes(setun_model *model)
{
    uint64_t bytes = 0;
    pthread_mutex_lock(&model->lock);
    for (int i = 0; i < model->weight_count; i++)
        if (model->weights[i].prepared) bytes += ((const setun_prepared *)model->weights[i].prepared)->bytes;
    pthread_mutex_unlock(&model->lock);
    return bytes;
}

setun_status setun_session_get_stats(const setun_session *session, setun_session_stats *out)
{
    if (!session || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_get_stats: %s is NULL", session ? "out" : "session");
    setun_session_stats stats = {.kv_bytes = session->cache.bytes, .arena_bytes = session->plan->arena_bytes + session->plan->scratch_bytes,
                                 .packed_bytes = setun_model_packed_bytes(session->model), .allocations_in_run = session->allocations_in_run,
                                 .picks = (uint64_t)session->picks, .head_scored = (uint64_t)session->frame.head_scored, .head_rescored = (uint64_t)session->frame.head_rescored,
                                 .head_bytes = session->plan->head.bits ? session->plan->head.bytes : 0, .head_bits = session->plan->head.bits,
                                 .head_copied = (uint64_t)setun_head_rows_copied(session->plan)};
    setun_weights_report(session->plan);
    setun_weight_totals weights;
    SETUN_TRY(setun_plan_weights(session->plan, &weights));
    for (int i = 0; i < SETUN_WEIGHT_ORIGINS; i++) stats.weight_bytes += weights.bytes[i];
    stats.weight_bytes_mapped = weights.bytes[SETUN_WEIGHT_MAPPED];
    const setun_frame *f = &session->frame;
    stats.device_runs = f->device_runs;
    stats.device_kernels = f->device_kernels;
    stats.device_operations = f->device_operations;
    stats.device_synchronisations = f->device_synchronisations;
    if (session->embedding_plan) stats.arena_bytes += session->embedding_plan->arena_bytes + session->embedding_plan->scratch_bytes;
    stats.size = out->size && out->size < sizeof stats ? out->size : sizeof stats;
    memcpy(out, &stats, stats.size);
    return SETUN_OK;
}

static setun_status embedding_plan(setun_session *s)
{
    if (s->embedding_plan) return SETUN_OK;
    setun_plan *plan;
    SETUN_TRY(setun_session_plan(s->model, &s->options, true, &plan, NULL));
    setun_status status = setun_frame_create(plan, &s->embedding_frame);
    if (status != SETUN_OK) {
        setun_plan_free(plan);
        return status;
    }
    s->embedding_plan = plan;
    s->embedding_frame.cache = &s->cache;
    s->embedding_frame.cancel = &s->cancel;
    return SETUN_OK;
}

setun_status setun_session_embed(setun_session *session, const int32_t *ids, size_t count, float *out)
{
    if (!session || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_embed: %s is NULL", session ? "out" : "session");
    if (count == 0) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_embed: no tokens to embed");
    session->cache.length = 0;
    session->has_logits = false;
    SETUN_TRY(check_ids(session, ids, count));
    if (atomic_exchange(&session->cancel, false)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    SETUN_TRY(embedding_plan(session));
    const setun_plan *plan = session->embedding_plan;
    int slot_tokens, slot_positions, slot_outputs, slot_embedding;
    SETUN_TRY(find(plan, SETUN_PLACE_INPUT, "tokens", &slot_tokens));
    SETUN_TRY(find(plan, SETUN_PLACE_INPUT, "positions", &slot_positions));
    SETUN_TRY(find(plan, SETUN_PLACE_INPUT, "outputs", &slot_outputs));
    SETUN_TRY(find(plan, SETUN_PLACE_OUTPUT, "embedding", &slot_embedding));
    setun_status status = SETUN_OK;
    for (size_t done = 0; done < count && status == SETUN_OK;) {
        int tokens = count - done < (size_t)session->options.batch ? (int)(count - done) : session->options.batch;
        bool last = done + (size_t)tokens == count;
        setun_session_bind(&session->embedding_frame, slot_tokens, slot_positions, slot_outputs, ids + done, tokens, session->cache.length, last ? 1 : 0);
        status = setun_session_run(session, &session->embedding_frame);
        session->cache.length += tokens;
        done += (size_t)tokens;
    }
    session->cache.length = 0;
    if (status == SETUN_ERROR_CANCELLED) atomic_store(&session->cancel, false);
    if (status != SETUN_OK) return status;
    memcpy(out, setun_frame_slot(&session->embedding_frame, slot_embedding), (size_t)setun_slot_width(&plan->slots[slot_embedding]) * sizeof(float));
    return SETUN_OK;
}
