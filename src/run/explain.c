/*
 * explain.c - setun_model_explain: model, graph, plan, weights, memory, and what fusion is worth, as text or JSON.
 * Caller: `setun explain`. Builds the same plans as a session does; shows, decides nothing.
 */
#include "run/run.h"

typedef struct explained {
    setun_plan *plan;
    int graph_nodes;
    double *step_seconds;       /* per run; NULL: not measured */
    double seconds;             /* one run */
} explained;

static void free_explained(explained *e)
{
    setun_plan_free(e->plan);
    setun_free(e->step_seconds);
}

/* Runs the plan over `tokens` tokens until a few runs or half a second are over, and averages. */
static setun_status measure(explained *e, const setun_session_options *o, int tokens)
{
    enum { RUNS = 10 };
    const setun_plan *plan = e->plan;
    int slots[3];
    const char *names[3] = {"tokens", "positions", "outputs"};
    for (int i = 0; i < 3; i++) {
        slots[i] = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, names[i]);
        if (slots[i] < 0) return setun_fail(SETUN_ERROR_STATE, "the transformer's plan has no input '%s'", names[i]);
    }
    setun_frame frame;
    setun_kv_cache cache = {0};
    setun_dtype dtype;
    SETUN_TRY(setun_kv_type(o->kv_type, &dtype));
    e->step_seconds = setun_calloc((size_t)plan->step_count + 1, sizeof(double));
    int32_t *ids = setun_calloc((size_t)tokens, sizeof *ids);
    setun_status status = e->step_seconds && ids ? setun_frame_create(plan, &frame) : setun_fail_memory((size_t)tokens * sizeof *ids);
    if (status != SETUN_OK) {
        setun_free(ids);
        return status;
    }
    if (plan->cache_layers > 0) status = setun_kv_cache_create(plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size, o->context, dtype, &cache);
    frame.cache = &cache;
    if (status == SETUN_OK) status = setun_head_finish(plan);
    int runs = 0;
    double start = 0.0;
    for (int run = -1; run < RUNS && status == SETUN_OK; run++) { /* the first warms caches and is not counted */
        if (run == 0) {
            frame.step_seconds = e->step_seconds;
            start = setun_seconds();
        }
        if (plan->head.bits) frame.head.top = 1; /* what picking the likeliest token costs */
        setun_session_bind(&frame, slots[0], slots[1], slots[2], ids, tokens, 0, 1);
        status = plan->backend->run(plan->backend, &frame);
        if (run >= 0) {
            runs++;
            e->seconds = (setun_seconds() - start) / runs;
            if (setun_seconds() - start > 0.5) break;
        }
    }
    for (int i = 0; i < plan->step_count && runs > 0; i++) e->step_seconds[i] /= runs;
    frame.step_seconds = NULL;
    setun_frame_destroy(&frame);
    setun_kv_cache_destroy(&cache);
    setun_free(ids);
    return status;
}

static uint64_t kv_bytes(const setun_plan *plan, const setun_session_options *o)
{
    uint64_t vectors = 2 * (uint64_t)plan->cache_layers * (uint64_t)plan->cache_kv_heads * (uint64_t)o->context, width = (uint64_t)plan->cache_head_size;
    return vectors * (!strcmp(o->kv_type, "f32") ? 4 * width : !strcmp(o->kv_type, "i8") ? width + sizeof(float) : 2 * width);
}

static void megabytes(setun_string *s, const char *what, uint64_t bytes) { setun_string_printf(s, "  %-28s %10.2f MiB\n", what, (double)bytes / (1024.0 * 1024.0)); }

static void as_text(setun_string *s, setun_model *model, const setun_explain_options *o, const explained *shown, const explained *other, const char *dump)
{
    setun_model_info info = {.size = sizeof info};
    (void)setun_model_get_info(model, &info);
    setun_string_printf(s, "model %s (%s)\n", info.name, info.architecture);
    setun_string_printf(s, "  %d layers, width %d, feed-forward %d, %d heads of %d, %d kv heads, vocabulary %d, trained context %d\n", info.layers, info.width, info.feed_forward, info.heads, info.head_size,
                        info.kv_heads, info.vocabulary, info.context);
    setun_string_printf(s, "  %.1f M parameters, %.1f MiB of weights on disk, %.2f bits a weight\n", (double)info.parameters / 1e6, (double)info.weight_bytes / (1024.0 * 1024.0), info.bits_per_weight);
    setun_string_printf(s, "graph: %d nodes\n", shown->graph_nodes);
    setun_string_printf(s, "session: context %d, batch %d, kv %s, fusion %s\n\n", o->session.context, o->session.batch, o->session.kv_type, o->session.no_fusion ? "off" : "on");
    setun_string_puts(s, dump);
    if (shown->plan->head.bits)
        setun_string_printf(s, "\nhead: %s, a copy of %d bits a weight and %s\n", o->session.head, shown->plan->head.bits,
                            shown->plan->head.mode == SETUN_HEAD_PROVED ? "the bounds it gives of every logit" : "a margin (not a proof)");
    else setun_string_printf(s, "\nhead: all logits%s\n", strcmp(o->session.head, "full") ? " (the vocabulary is too small or not a dense matrix)" : "");
    setun_string_puts(s, "\nmemory of a session\n");
    megabytes(s, "weights packed or copied", setun_model_packed_bytes(model));
    if (shown->plan->head.bits) megabytes(s, "  of them the head's copy", shown->plan->head.bytes);
    megabytes(s, "arena", shown->plan->arena_bytes);
    megabytes(s, "arena without reuse", shown->plan->stats.arena_bytes_without_reuse);
    megabytes(s, "scratch of the backend", shown->plan->scratch_bytes);
    megabytes(s, "kv cache", kv_bytes(shown->plan, &o->session));
    const explained *with = o->session.no_fusion ? other : shown, *without = o->session.no_fusion ? shown : other;
    setun_string_puts(s, "fusion                  on          off\n");
    setun_string_printf(s, "  steps        %12d %12d\n", with->plan->step_count, without->plan->step_count);
    setun_string_printf(s, "  arena MiB    %12.2f %12.2f\n", (double)with->plan->arena_bytes / (1024.0 * 1024.0), (double)without->plan->arena_bytes / (1024.0 * 1024.0));
    if (o->measure) setun_string_printf(s, "  ms a run     %12.3f %12.3f   (%d token%s)\n", with->seconds * 1e3, without->seconds * 1e3, o->tokens, o->tokens == 1 ? "" : "s");
}

static void fusion_json(setun_string *s, const char *name, const explained *e, bool measured)
{
    setun_string_printf(s, "\"%s\": {\"steps\": %d, \"arena_bytes\": %llu, \"scratch_bytes\": %llu", name, e->plan->step_count, (unsigned long long)e->plan->arena_bytes, (unsigned long long)e->plan->scratch_bytes);
    if (measured) setun_string_printf(s, ", \"seconds\": %.9f", e->seconds);
    setun_string_puts(s, "}");
}

static void as_json(setun_string *s, setun_model *model, const setun_explain_options *o, const explained *shown, const explained *other, const char *dump)
{
    setun_model_info info = {.size = sizeof info};
    (void)setun_model_get_info(model, &info);
    setun_string_puts(s, "{\"model\": {\"name\": ");
    setun_string_json(s, info.name, strlen(info.name));
    setun_string_puts(s, ", \"architecture\": ");
    setun_string_json(s, info.architecture, strlen(info.architecture));
    setun_string_printf(s, ", \"layers\": %d, \"width\": %d, \"feed_forward\": %d, \"heads\": %d, \"kv_heads\": %d, \"head_size\": %d, \"vocabulary\": %d, \"context\": %d", info.layers, info.width,
                        info.feed_forward, info.heads, info.kv_heads, info.head_size, info.vocabulary, info.context);
    setun_string_printf(s, ", \"parameters\": %llu, \"weight_bytes\": %llu, \"bits_per_weight\": %.4f}", (unsigned long long)info.parameters, (unsigned long long)info.weight_bytes, info.bits_per_weight);
    setun_string_printf(s, ", \"graph\": {\"nodes\": %d}", shown->graph_nodes);
    setun_string_printf(s, ", \"session\": {\"context\": %d, \"batch\": %d, \"kv_type\": \"%s\", \"fusion\": %s}", o->session.context, o->session.batch, o->session.kv_type, o->session.no_fusion ? "false" : "true");
    setun_string_printf(s, ", \"head\": {\"mode\": \"%s\", \"bits\": %d, \"bytes\": %llu}", o->session.head, shown->plan->head.bits, (unsigned long long)(shown->plan->head.bits ? shown->plan->head.bytes : 0));
    setun_string_printf(s, ", \"plan\": %s", dump);
    setun_string_printf(s, ", \"memory\": {\"packed_bytes\": %llu, \"arena_bytes\": %llu, \"arena_bytes_without_reuse\": %llu, \"scratch_bytes\": %llu, \"kv_bytes\": %llu}",
                        (unsigned long long)setun_model_packed_bytes(model), (unsigned long long)shown->plan->arena_bytes, (unsigned long long)shown->plan->stats.arena_bytes_without_reuse,
                        (unsigned long long)shown->plan->scratch_bytes, (unsigned long long)kv_bytes(shown->plan, &o->session));
    setun_string_puts(s, ", \"fusion\": {");
    fusion_json(s, "on", o->session.no_fusion ? other : shown, o->measure);
    setun_string_puts(s, ", ");
    fusion_json(s, "off", o->session.no_fusion ? shown : other, o->measure);
    if (o->measure) setun_string_printf(s, ", \"tokens\": %d", o->tokens);
    setun_string_puts(s, "}}\n");
}

setun_status setun_model_explain(setun_model *model, const setun_explain_options *options, char **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_explain: out is NULL");
    *out = NULL;
    if (!model) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_explain: model is NULL");
    SETUN_OPTIONS(setun_explain_options, o, options);
    setun_session_options resolved;
    SETUN_TRY(setun_session_resolve(model, &o.session, &resolved));
    o.session = resolved;
    if (o.tokens == 0) o.tokens = 1;
    if (o.tokens < 1 || o.tokens > o.session.batch) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_explain: %d tokens; the batch is %d", o.tokens, o.session.batch);
    explained shown = {0}, other = {0};
    setun_session_options opposite = o.session;
    opposite.no_fusion = !opposite.no_fusion;
    char *dump = NULL;
    setun_status status = setun_session_plan(model, &o.session, false, &shown.plan, &shown.graph_nodes);
    if (status == SETUN_OK) status = setun_session_plan(model, &opposite, false, &other.plan, &other.graph_nodes);
    if (status == SETUN_OK && o.measure) status = measure(&shown, &o.session, o.tokens);
    if (status == SETUN_OK && o.measure) status = measure(&other, &opposite, o.tokens);
    if (status == SETUN_OK) status = setun_plan_dump(shown.plan, o.json, shown.step_seconds, &dump);
    if (status == SETUN_OK) {
        setun_string s = {0};
        if (o.json) as_json(&s, model, &o, &shown, &other, dump);
        else as_text(&s, model, &o, &shown, &other, dump);
        status = setun_string_take(&s, out, NULL);
    }
    setun_free(dump);
    free_explained(&shown);
    free_explained(&other);
    return status;
}
