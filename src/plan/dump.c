/*
 * dump.c - a plan as text for people and JSON for programs: `setun explain`. Shows what the passes decided and what the
 * backend said in prepare; decides nothing.
 */
#include "plan/passes.h"
#include <stdlib.h>

static const char *const origins[] = {"unprepared", "mapped", "packed", "copied"};
#define ORIGIN_COUNT (int)(sizeof origins / sizeof origins[0])
static const char *const places[] = {"arena", "input", "output"};

static const char *origin_name(setun_weight_origin origin) { return (int)origin >= 0 && (int)origin < ORIGIN_COUNT ? origins[origin] : "unknown"; }

static const char *dtype_name(setun_dtype dtype) { return dtype == SETUN_Q8 ? "q8" : setun_dtype_name(dtype); }

static void shape_text(setun_string *s, const setun_shape *shape, bool json) {
    const char *quote = json ? "\"" : "";
    setun_string_puts(s, "[");
    for (int i = 0; i < shape->rank; i++) {
        if (i) setun_string_puts(s, ", ");
        if (shape->dim[i] == SETUN_DIM_TOKENS) setun_string_printf(s, "%sT%s", quote, quote);
        else if (shape->dim[i] == SETUN_DIM_OUTPUTS) setun_string_printf(s, "%sO%s", quote, quote);
        else setun_string_printf(s, "%lld", (long long)shape->dim[i]);
    }
    setun_string_puts(s, "]");
}

static void bytes_text(setun_string *s, uint64_t bytes) {
    if (bytes < 10000) setun_string_printf(s, "%llu B", (unsigned long long)bytes);
    else if (bytes < 10000 * 1024ull) setun_string_printf(s, "%.1f KiB", (double)bytes / 1024);
    else setun_string_printf(s, "%.1f MiB", (double)bytes / (1024 * 1024));
}

/* ---- totals: a weight that several steps read (a tied head) counts once ---- */

typedef struct totals {
    uint64_t bytes[SETUN_WEIGHT_ORIGINS];
    int count[SETUN_WEIGHT_ORIGINS];
    double seconds;
} totals;

typedef struct counted { const setun_weight *weight; setun_weight_report report; } counted;

static int by_weight(const void *a, const void *b) {
    const counted *x = a, *y = b;
    if (x->weight != y->weight) return (uintptr_t)x->weight < (uintptr_t)y->weight ? -1 : 1;
    if (x->report.origin != y->report.origin) return (int)x->report.origin - (int)y->report.origin;
    return x->report.bytes < y->report.bytes ? -1 : x->report.bytes > y->report.bytes;
}

static setun_status add_up(const setun_plan *plan, const double *step_seconds, totals *out) {
    memset(out, 0, sizeof *out);
    counted *list = setun_calloc((size_t)plan->step_count * 2 * SETUN_STEP_WEIGHTS + 1, sizeof *list);
    if (!list) return setun_fail(SETUN_ERROR_MEMORY, "out of memory: a list of weights");
    size_t count = 0;
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        if (step_seconds) out->seconds += step_seconds[i];
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            if (step->weight[j]) list[count++] = (counted){step->weight[j], step->report[j]};
            if (step->bias[j]) list[count++] = (counted){step->bias[j], step->bias_report[j]};
        }
    }
    if (count) qsort(list, count, sizeof *list, by_weight);
    for (size_t i = 0; i < count; i++) {
        /* one weight in two forms, say mapped for the embedding and packed for the head, is two costs */
        if (i && list[i].weight == list[i - 1].weight && list[i].report.origin == list[i - 1].report.origin) continue;
        int origin = (int)list[i].report.origin;
        if (origin < 0 || origin >= ORIGIN_COUNT) origin = 0;
        out->bytes[origin] += list[i].report.bytes;
        out->count[origin]++;
    }
    setun_free(list);
    return SETUN_OK;
}

setun_status setun_plan_weights(const setun_plan *plan, setun_weight_totals *out) {
    totals t;
    SETUN_TRY(add_up(plan, NULL, &t));
    memcpy(out->bytes, t.bytes, sizeof out->bytes);
    memcpy(out->count, t.count, sizeof out->count);
    return SETUN_OK;
}

/* ---- JSON ---- */

static void weight_json(setun_string *s, const char *use, const setun_weight *w, const setun_weight_report *report, bool first) {
    setun_string_printf(s, "%s{\"use\": \"%s\", \"name\": ", first ? "" : ", ", use);
    setun_string_json(s, w->name ? w->name : "", w->name ? strlen(w->name) : 0);
    setun_string_printf(s, ", \"format\": \"%s\", \"shape\": [%lld, %lld], \"ternary\": %s, \"origin\": \"%s\", \"bytes\": %llu, \"layout\": ", setun_format_name(w->format), (long long)w->rows, (long long)w->columns,
                        w->probed && w->info.ternary ? "true" : "false", origin_name(report->origin), (unsigned long long)report->bytes);
    if (report->layout) setun_string_json(s, report->layout, strlen(report->layout));
    else setun_string_puts(s, "null");
    if (report->reason) {
        setun_string_puts(s, ", \"reason\": ");
        setun_string_json(s, report->reason, strlen(report->reason));
    }
    setun_string_puts(s, "}");
}

static void slots_json(setun_string *s, const char *name, const int *slots, int count) {
    setun_string_printf(s, ", \"%s\": [", name);
    for (int i = 0, written = 0; i < count; i++)
        if (slots[i] >= 0) setun_string_printf(s, "%s%d", written++ ? ", " : "", slots[i]);
    setun_string_puts(s, "]");
}

static void step_json(setun_string *s, const setun_plan *plan, int index, const double *step_seconds) {
    const setun_step *step = &plan->steps[index];
    setun_string_printf(s, "%s\n  {\"index\": %d, \"kind\": \"%s\", \"operations\": [", index ? "," : "", index, setun_step_name(step->kind));
    for (const char *at = step->fused, *next; *at; at = next) {
        size_t length = strcspn(at, "+");
        next = at + length + (at[length] == '+');
        setun_string_printf(s, "%s\"%.*s\"", at == step->fused ? "" : ", ", (int)length, at);
    }
    setun_string_puts(s, "], \"kernel\": ");
    if (step->kernel) setun_string_json(s, step->kernel, strlen(step->kernel));
    else setun_string_puts(s, "null");
    slots_json(s, "inputs", step->input, 4);
    if (step->residual >= 0) setun_string_printf(s, ", \"residual\": %d", step->residual);
    slots_json(s, "outputs", step->output, SETUN_STEP_WEIGHTS);
    if (step->factor != 1) setun_string_printf(s, ", \"factor\": %.9g", (double)step->factor);
    if (step->kind == SETUN_STEP_NORM || step->norm_q) setun_string_printf(s, ", \"epsilon\": %.9g", (double)step->epsilon);
    if (step->has_rope) setun_string_printf(s, ", \"rope\": {\"theta\": %.9g, \"rotary\": %d, \"interleaved\": %s}", (double)step->rope.theta, step->rope.rotary, step->rope.interleaved ? "true" : "false");
    if (step->kind == SETUN_STEP_ATTENTION)
        setun_string_printf(s, ", \"heads\": %d, \"kv_heads\": %d, \"head_size\": %d, \"scale\": %.9g, \"window\": %d, \"cache_layer\": %d", step->heads, step->kv_heads, step->head_size, (double)step->attention.scale, step->attention.window, step->attention.cache_layer);
    setun_string_puts(s, ", \"weights\": [");
    bool first = true;
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        if (step->weight[i]) weight_json(s, step->kind == SETUN_STEP_LINEAR || step->kind == SETUN_STEP_EMBEDDING ? "weight" : "norm", step->weight[i], &step->report[i], first);
        first = first && !step->weight[i];
        if (step->bias[i]) weight_json(s, "bias", step->bias[i], &step->bias_report[i], first);
        first = first && !step->bias[i];
    }
    setun_string_puts(s, "]");
    if (step_seconds) setun_string_printf(s, ", \"seconds\": %.9g", step_seconds[index]);
    setun_string_puts(s, "}");
}

static void slot_json(setun_string *s, const setun_slot *slot, int index) {
    setun_string_printf(s, "%s\n  {\"index\": %d, \"dtype\": \"%s\", \"shape\": ", index ? "," : "", index, dtype_name(slot->dtype));
    shape_text(s, &slot->shape, true);
    setun_string_printf(s, ", \"place\": \"%s\", \"offset\": %llu, \"bytes\": %llu, \"first_step\": %d, \"last_step\": %d, \"shares\": ", places[slot->place], (unsigned long long)slot->offset, (unsigned long long)slot->bytes, slot->first_step,
                        slot->last_step);
    if (slot->alias_of >= 0) setun_string_printf(s, "%d", slot->alias_of);
    else setun_string_puts(s, "null");
    if (slot->name[0]) {
        setun_string_puts(s, ", \"name\": ");
        setun_string_json(s, slot->name, strlen(slot->name));
    }
    setun_string_puts(s, "}");
}

static void plan_json(setun_string *s, const setun_plan *plan, const double *step_seconds, const totals *t) {
    setun_string_printf(s, "{\"tokens_max\": %d, \"outputs_max\": %d,\n \"steps\": [", plan->tokens_max, plan->outputs_max);
    for (int i = 0; i < plan->step_count; i++) step_json(s, plan, i, step_seconds);
    setun_string_puts(s, "\n ],\n \"slots\": [");
    for (int i = 0; i < plan->slot_count; i++) slot_json(s, &plan->slots[i], i);
    setun_string_printf(s, "\n ],\n \"cache\": {\"layers\": %d, \"kv_heads\": %d, \"head_size\": %d},\n", plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size);
    setun_string_printf(s, " \"totals\": {\"steps\": %d, \"graph_nodes\": %d, \"dead_nodes\": %d, \"common_nodes\": %d, \"fused_nodes\": %d, \"arena_bytes\": %llu, \"arena_bytes_without_reuse\": %llu, \"scratch_bytes\": %llu, \"weights\": {", plan->step_count,
                        plan->stats.graph_nodes, plan->stats.dead_nodes, plan->stats.common_nodes, plan->stats.fused_nodes, (unsigned long long)plan->arena_bytes, (unsigned long long)plan->stats.arena_bytes_without_reuse,
                        (unsigned long long)plan->scratch_bytes);
    for (int i = 0; i < ORIGIN_COUNT; i++) setun_string_printf(s, "%s\"%s\": {\"count\": %d, \"bytes\": %llu}", i ? ", " : "", origins[i], t->count[i], (unsigned long long)t->bytes[i]);
    setun_string_puts(s, "}");
    if (step_seconds) setun_string_printf(s, ", \"seconds\": %.9g", t->seconds);
    setun_string_puts(s, "}}\n");
}

/* ---- text ---- */

static void slot_text(setun_string *s, const setun_plan *plan, int index) {
    const setun_slot *slot = &plan->slots[index];
    setun_string_printf(s, "%%%d %s ", index, dtype_name(slot->dtype));
    shape_text(s, &slot->shape, false);
    if (slot->name[0]) setun_string_printf(s, " '%s'", slot->name);
    setun_string_printf(s, " @%llu+%llu", (unsigned long long)slot->offset, (unsigned long long)slot->bytes);
}

static void weight_text(setun_string *s, const char *use, const setun_weight *w, const setun_weight_report *report) {
    setun_string_printf(s, "\n        %s %s [%lld, %lld] %s%s", use, w->name ? w->name : "", (long long)w->rows, (long long)w->columns, setun_format_name(w->format), w->probed && w->info.ternary ? ", ternary" : "");
    if (report->origin == SETUN_WEIGHT_UNPREPARED) return;
    setun_string_printf(s, " -> %s %s, ", origin_name(report->origin), report->layout ? report->layout : "");
    bytes_text(s, report->bytes);
    if (report->reason) setun_string_printf(s, " (%s)", report->reason);
}

static void step_text(setun_string *s, const setun_plan *plan, int index, const double *step_seconds, double total_seconds) {
    const setun_step *step = &plan->steps[index];
    setun_string_printf(s, "%5d  %-34s %-26s", index, step->fused, step->kernel ? step->kernel : "");
    if (step_seconds) setun_string_printf(s, " %10.1f us %5.1f%%", step_seconds[index] * 1e6, total_seconds > 0 ? step_seconds[index] / total_seconds * 100 : 0.0);
    setun_string_puts(s, "\n        ");
    bool first = true;
    for (int i = 0; i < 4; i++) {
        if (step->input[i] < 0) continue;
        if (!first) setun_string_puts(s, ", ");
        slot_text(s, plan, step->input[i]);
        first = false;
    }
    if (step->residual >= 0) {
        setun_string_puts(s, ", residual ");
        slot_text(s, plan, step->residual);
    }
    setun_string_puts(s, "\n        -> ");
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        if (step->output[i] < 0) continue;
        if (i) setun_string_puts(s, ", ");
        slot_text(s, plan, step->output[i]);
        if (plan->slots[step->output[i]].alias_of >= 0) setun_string_printf(s, " in place of %%%d", plan->slots[step->output[i]].alias_of);
    }
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        if (step->weight[i]) weight_text(s, step->kind == SETUN_STEP_LINEAR || step->kind == SETUN_STEP_EMBEDDING ? "weight" : "norm", step->weight[i], &step->report[i]);
        if (step->bias[i]) weight_text(s, "bias", step->bias[i], &step->bias_report[i]);
    }
    setun_string_puts(s, "\n");
}

static void plan_text(setun_string *s, const setun_plan *plan, const double *step_seconds, const totals *t) {
    const setun_plan_stats *stats = &plan->stats;
    setun_string_printf(s, "plan for at most %d tokens, %d outputs: %d graph nodes, %d dead, %d common, %d fused away -> %d steps\n", plan->tokens_max, plan->outputs_max, stats->graph_nodes, stats->dead_nodes, stats->common_nodes, stats->fused_nodes,
                        plan->step_count);
    for (int i = 0; i < plan->step_count; i++) step_text(s, plan, i, step_seconds, t->seconds);
    setun_string_puts(s, "arena ");
    bytes_text(s, plan->arena_bytes);
    setun_string_puts(s, " (without reuse ");
    bytes_text(s, stats->arena_bytes_without_reuse);
    setun_string_puts(s, "), scratch ");
    bytes_text(s, plan->scratch_bytes);
    setun_string_puts(s, "\n");
    if (plan->cache_layers) setun_string_printf(s, "cache: %d layers of %d x %d\n", plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size);
    setun_string_puts(s, "weights:");
    for (int i = 0; i < ORIGIN_COUNT; i++) {
        if (!t->count[i]) continue;
        setun_string_printf(s, " %s %d, ", origins[i], t->count[i]);
        bytes_text(s, t->bytes[i]);
        setun_string_puts(s, ";");
    }
    setun_string_puts(s, "\n");
    if (step_seconds) setun_string_printf(s, "time %.3f ms\n", t->seconds * 1e3);
}

setun_status setun_plan_dump(const setun_plan *plan, bool json, const double *step_seconds, char **out) {
    if (!plan || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_plan_dump: %s is NULL", plan ? "out" : "plan");
    *out = NULL;
    totals t;
    SETUN_TRY(add_up(plan, step_seconds, &t));
    setun_string s = {0};
    if (json) plan_json(&s, plan, step_seconds, &t);
    else plan_text(&s, plan, step_seconds, &t);
    return setun_string_take(&s, out, NULL);
}
