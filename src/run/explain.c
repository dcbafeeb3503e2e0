/*
 * explain.c - setun_model_explain: model, graph, plan, weights, device, memory, and what fusion is worth, as text or JSON.
 * Caller: `setun explain`. Builds the same plans as a session does; shows, decides nothing.
 */
#include "run/run.h"

typedef struct explained {
    setun_plan *plan;
    int graph_nodes;
    double *step_seconds;       /* per run; NULL: not measured */
    double seconds;             /* one run */
    setun_weight_totals weights;
    bool on_device;
    setun_device_report device; /* of a run of the tokens asked for */
} explained;

static void free_explained(explained *e)
{
    setun_plan_free(e->plan);
    setun_free(e->step_seconds);
}

/* A run of the plan: a frame with a cache of its own, bound to `tokens` tokens. */
typedef struct bench { setun_frame frame; setun_kv_cache cache; int32_t *ids; int slots[3]; } bench;

static void free_bench(bench *b)
{
    setun_frame_destroy(&b->frame);
    setun_kv_cache_destroy(&b->cache);
    setun_free(b->ids);
}

static setun_status make_bench(const setun_plan *plan, const setun_session_options *o, int context, int tokens, bench *b)
{
    const char *names[3] = {"tokens", "positions", "outputs"};
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 3; i++) {
        b->slots[i] = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, names[i]);
        if (b->slots[i] < 0) return setun_fail(SETUN_ERROR_STATE, "the transformer's plan has no input '%s'", names[i]);
    }
    setun_dtype dtype;
    SETUN_TRY(setun_kv_type(o->kv_type, &dtype));
    b->ids = setun_calloc((size_t)tokens, sizeof *b->ids);
    setun_status status = b->ids ? setun_frame_create(plan, &b->frame) : setun_fail_memory((size_t)tokens * sizeof *b->ids);
    if (status != SETUN_OK) {
        setun_free(b->ids);
        return status;
    }
    if (plan->cache_layers > 0) status = setun_kv_cache_create(plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size, context, dtype, &b->cache);
    b->frame.cache = &b->cache;
    if (status != SETUN_OK) free_bench(b);
    return status;
}

static void bind(bench *b, const setun_plan *plan, int tokens)
{
    if (plan->head.bits) b->frame.head.top = 1; /* what picking the likeliest token costs */
    setun_session_bind(&b->frame, b->slots[0], b->slots[1], b->slots[2], b->ids, tokens, 0, 1);
}

/* Runs the plan over `tokens` tokens until a few runs or half a second are over, and averages. */
static setun_status measure(explained *e, const setun_session_options *o, int tokens)
{
    enum { RUNS = 10 };
    const setun_plan *plan = e->plan;
    bench b;
    e->step_seconds = setun_calloc((size_t)plan->step_count + 1, sizeof(double));
    if (!e->step_seconds) return setun_fail_memory((size_t)plan->step_count * sizeof(double));
    SETUN_TRY(make_bench(plan, o, o->context, tokens, &b));
    setun_status status = SETUN_OK;
    if (status == SETUN_OK) status = setun_head_finish(plan);
    int runs = 0;
    double start = 0.0;
    for (int run = -1; run < RUNS && status == SETUN_OK; run++) { /* the first warms caches and is not counted */
        if (run == 0) {
            b.frame.step_seconds = e->step_seconds;
            start = setun_seconds();
        }
        bind(&b, plan, tokens);
        status = plan->backend->run(plan->backend, &b.frame);
        if (run >= 0) {
            runs++;
            e->seconds = (setun_seconds() - start) / runs;
            if (setun_seconds() - start > 0.5) break;
        }
    }
    for (int i = 0; i < plan->step_count && runs > 0; i++) e->step_seconds[i] /= runs;
    b.frame.step_seconds = NULL;
    free_bench(&b);
    return status;
}

/* What a run on the plan's device is made of. */
static setun_status look(explained *e, const setun_session_options *o, int tokens)
{
    SETUN_TRY(setun_weights_finish(e->plan));
    setun_weights_report(e->plan);
    SETUN_TRY(setun_plan_weights(e->plan, &e->weights));
    if (!e->plan->backend->report) return SETUN_OK;
    bench b;
    SETUN_TRY(make_bench(e->plan, o, tokens, tokens, &b));
    bind(&b, e->plan, tokens);
    setun_status status = e->plan->backend->report(e->plan->backend, &b.frame, &e->device);
    free_bench(&b);
    e->on_device = status == SETUN_OK;
    return status;
}

static uint64_t weight_bytes(const explained *e)
{
    uint64_t sum = 0;
    for (int i = 0; i < SETUN_WEIGHT_ORIGINS; i++) sum += e->weights.bytes[i];
    return sum;
}
static double mapped_share(const explained *e)
{
    uint64_t all = weight_bytes(e);
    return all ? (double)e->weights.bytes[SETUN_WEIGHT_MAPPED] / (double)all : 1.0;
}

static void device_text(setun_string *s, const explained *e, const setun_explain_options *o)
{
    const setun_device_report *d = &e->device;
    const int *n = e->weights.count;
    setun_string_printf(s, "device %s\n", e->on_device ? d->device : e->plan->backend->name);
    setun_string_printf(s, "  weights in place      %10.2f %% of %.2f MiB: %d in place, %d packed, %d copied\n", 100 * mapped_share(e), (double)weight_bytes(e) / (1024.0 * 1024.0), n[SETUN_WEIGHT_MAPPED],
                        n[SETUN_WEIGHT_PACKED], n[SETUN_WEIGHT_COPIED]);
    if (!e->on_device) return;
    setun_string_printf(s, "  name                  %s\n  group sizes           %s\n", d->name, d->tuning);
    setun_string_printf(s, "  a run of %d token%-2s    %llu kernels, %llu operations of MLX, %llu wait%s of the host\n", o->tokens, o->tokens == 1 ? "" : "s", (unsigned long long)d->kernels,
                        (unsigned long long)d->operations, (unsigned long long)d->synchronisations, d->synchronisations == 1 ? "" : "s");
    setun_string_printf(s, "  fallbacks             %llu operations without a kernel, %llu copies, %d steps not compiled by MLX%s\n", (unsigned long long)d->without_kernel, (unsigned long long)d->copies,
                        d->uncompiled_steps, d->compiles ? "" : " (it compiles nothing here)");
}

static void device_json(setun_string *s, const explained *e, const setun_explain_options *o)
{
    const setun_device_report *d = &e->device;
    setun_string_puts(s, ", \"device\": {\"id\": ");
    const char *id = e->on_device ? d->device : e->plan->backend->name;
    setun_string_json(s, id, strlen(id));
    setun_string_printf(s, ", \"weights\": {\"bytes\": %llu, \"mapped_bytes\": %llu, \"mapped_share\": %.6f}", (unsigned long long)weight_bytes(e), (unsigned long long)e->weights.bytes[SETUN_WEIGHT_MAPPED], mapped_share(e));
    if (e->on_device) {
        setun_string_puts(s, ", \"name\": ");
        setun_string_json(s, d->name, strlen(d->name));
        setun_string_puts(s, ", \"tuning\": ");
        setun_string_json(s, d->tuning, strlen(d->tuning));
        setun_string_printf(s, ", \"run\": {\"tokens\": %d, \"kernels\": %llu, \"operations\": %llu, \"synchronisations\": %llu}", o->tokens, (unsigned long long)d->kernels, (unsigned long long)d->operations,
                            (unsigned long long)d->synchronisations);
        setun_string_printf(s, ", \"compiles\": %s, \"fallbacks\": {\"operations_without_kernel\": %llu, \"copies\": %llu, \"uncompiled_steps\": %d, \"weights_packed\": %d, \"weights_copied\": %d}",
                            d->compiles ? "true" : "false", (unsigned long long)d->without_kernel, (unsigned long long)d->copies, d->uncompiled_steps, e->weights.count[SETUN_WEIGHT_PACKED],
                            e->weights.count[SETUN_WEIGHT_COPIED]);
    }
    setun_string_puts(s, "}");
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
    setun_string_puts(s, "\n");
    device_text(s, shown, o);
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
    device_json(s, shown, o);
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
    if (status == SETUN_OK) status = look(&shown, &o.session, o.tokens);
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
