/*
 * bench.c - `setun bench`: tokens a second of prefill and decode, at depths, thread counts and numbers of texts at once, with medians and spread.
 * Tokens are pseudo-random but the same in every run. After the prompt and after every token the likeliest next one is picked, as greedy
 * generation does, and then not used.
 */
#include "report.h"
#include <stdlib.h>
#include <string.h>

typedef struct samples { double *values; int count; } samples; /* tokens a second */

enum { MOST_SEQUENCES = 32 };
typedef struct texts { setun_session *session[MOST_SEQUENCES]; setun_sampler *sampler[MOST_SEQUENCES]; } texts;
typedef struct measurement { int threads, depth, sequences; samples prefill, decode; samples token_seconds; double rescored; int head_bits; } measurement;

static uint64_t state = 0x5e7u;
static int32_t random_token(int vocabulary) { /* SplitMix64 (Steele, Lea, Flood 2014) */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (int32_t)((z ^ z >> 31) % (uint64_t)vocabulary);
}

static setun_status feed_random(setun_session *session, int count, int vocabulary, int32_t *ids) {
    for (int i = 0; i < count; i++) ids[i] = random_token(vocabulary);
    return count ? setun_session_feed(session, ids, (size_t)count) : SETUN_OK;
}

static json_t *summary(int tokens, samples *s) {
    double *v = s->values;
    int n = s->count;
    json_t *raw = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(raw, json_real(v[i]));
    qsort(v, (size_t)n, sizeof *v, compare_doubles);
    double median = quantile(v, n, 0.5);
    /* p95 of speed: what 95 % of the runs reach */
    return json_pack("{s:i, s:f, s:f, s:f, s:f, s:f, s:o}", "tokens", tokens, "median", median, "p95", quantile(v, n, 0.05), "min", v[0], "max", v[n - 1],
        "spread", median > 0 ? (v[n - 1] - v[0]) / median : 0.0, "samples", raw);
}

static setun_status pick(texts *all) {
    int32_t unused;
    return setun_session_pick(all->session[0], all->sampler[0], &unused);
}

/* Feeds a token to each of n sessions and picks the next; one of them is fed as everybody feeds one. */
static setun_status step_each(texts *all, int n, int vocabulary) {
    int32_t ids[MOST_SEQUENCES], unused[MOST_SEQUENCES];
    const int32_t *from[MOST_SEQUENCES];
    size_t counts[MOST_SEQUENCES];
    for (int i = 0; i < n; i++) ids[i] = random_token(vocabulary), from[i] = ids + i, counts[i] = 1;
    setun_status code = n == 1 ? setun_session_feed(all->session[0], ids, 1) : setun_session_feed_batch(all->session, from, counts, (size_t)n);
    if (code != SETUN_OK) return code;
    return n == 1 ? pick(all) : setun_session_pick_batch(all->session, all->sampler, (size_t)n, unused);
}

static setun_status truncate_all(texts *all, int n, int position) {
    setun_status code = SETUN_OK;
    for (int i = 0; i < n && code == SETUN_OK; i++) code = setun_session_truncate(all->session[i], position);
    return code;
}

/* The second run packs weights that the first reads in the file: what is measured is what comes after. */
static setun_status warm_weights(setun_session *session, int vocabulary) {
    setun_status code = SETUN_OK;
    for (int turn = 0; turn < 2 && code == SETUN_OK; turn++) {
        int32_t id = random_token(vocabulary);
        code = setun_session_feed(session, &id, 1);
        if (code == SETUN_OK) code = setun_session_truncate(session, 0);
    }
    return code;
}

/* The first picks make the small copy of a large vocabulary projection, a part each: what is measured is what comes after. */
static setun_status warm_head(texts *all, int position, int vocabulary) {
    setun_session_stats stats = {.size = sizeof stats};
    uint64_t copied = 0;
    for (int turn = 0; turn < 64; turn++) {
        setun_status code = setun_session_get_stats(all->session[0], &stats);
        if (code != SETUN_OK || !stats.head_bits || stats.head_copied >= (uint64_t)vocabulary || (turn > 1 && stats.head_copied == copied)) return code;
        copied = stats.head_copied;
        int32_t id = random_token(vocabulary);
        code = setun_session_feed(all->session[0], &id, 1);
        if (code == SETUN_OK) code = pick(all);
        if (code == SETUN_OK) code = setun_session_truncate(all->session[0], position);
        if (code != SETUN_OK) return code;
    }
    return SETUN_OK;
}

/* Prefill of the first session, if asked for with one sequence; decode of all. */
static int measure(settings *s, texts *all, int vocabulary, measurement *m) {
    setun_session *first = all->session[0];
    int prompt = m->sequences == 1 ? s->bench_prompt : 0, generate = s->generate, most = m->depth > prompt ? m->depth : prompt;
    int32_t *ids = malloc((size_t)(most + 1) * sizeof *ids);
    setun_session_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    m->prefill.values = calloc((size_t)s->repeats, sizeof(double));
    m->decode.values = calloc((size_t)s->repeats, sizeof(double));
    m->token_seconds.values = calloc((size_t)s->repeats * (size_t)(generate + 1), sizeof(double));
    if (!ids || !m->prefill.values || !m->decode.values || !m->token_seconds.values) {
        free(ids);
        return fail("out of memory");
    }
    setun_status code = truncate_all(all, m->sequences, 0);
    if (code == SETUN_OK) code = warm_weights(first, vocabulary);
    if (code == SETUN_OK) code = setun_session_get_stats(first, &before);
    for (int i = 0; i < m->sequences && code == SETUN_OK; i++) {
        interrupt_session(all->session[i]);
        code = feed_random(all->session[i], m->depth, vocabulary, ids);
    }
    interrupt_session(first); /* stops the others' steps too */
    if (code == SETUN_OK) code = warm_head(all, m->depth, vocabulary);
    for (int repeat = -1; code == SETUN_OK && repeat < s->repeats; repeat++) { /* -1: warm-up */
        if (prompt) {
            double start = now_seconds();
            code = feed_random(first, prompt, vocabulary, ids);
            if (code == SETUN_OK) code = pick(all);
            double seconds = now_seconds() - start;
            if (code == SETUN_OK && repeat >= 0) m->prefill.values[m->prefill.count++] = prompt / seconds;
            if (code == SETUN_OK) code = setun_session_truncate(first, m->depth);
        }
        int steps = repeat < 0 && generate > 4 ? 4 : generate;
        double start = now_seconds(), last = start;
        for (int i = 0; code == SETUN_OK && i < steps; i++) {
            code = step_each(all, m->sequences, vocabulary);
            double now = now_seconds();
            if (repeat >= 0) m->token_seconds.values[m->token_seconds.count++] = now - last;
            last = now;
        }
        if (code == SETUN_OK && repeat >= 0 && generate) m->decode.values[m->decode.count++] = m->sequences * generate / (now_seconds() - start);
        if (code == SETUN_OK) code = truncate_all(all, m->sequences, m->depth);
        if (!s->quiet) progress_callback(NULL, "repeats", (uint64_t)(repeat + 1), (uint64_t)s->repeats);
    }
    if (code == SETUN_OK) code = setun_session_get_stats(first, &after);
    if (code == SETUN_OK && after.picks > before.picks) m->rescored = (double)(after.head_rescored - before.head_rescored) / ((double)(after.picks - before.picks) * m->sequences);
    m->head_bits = after.head_bits;
    progress_end();
    free(ids);
    return code == SETUN_OK ? EXIT_OK : code == SETUN_ERROR_CANCELLED ? EXIT_INTERRUPTED : fail_status(code);
}

static json_t *report(settings *s, measurement *m) {
    json_t *run = json_pack("{s:i, s:i, s:i}", "threads", m->threads, "depth", m->depth, "sequences", m->sequences);
    if (m->prefill.count) json_object_set_new(run, "prefill", summary(s->bench_prompt, &m->prefill));
    if (m->decode.count) {
        json_t *decode = summary(s->generate, &m->decode);
        double *v = m->token_seconds.values;
        int n = m->token_seconds.count;
        qsort(v, (size_t)n, sizeof *v, compare_doubles);
        json_object_set_new(decode, "token_ms", json_pack("{s:f, s:f, s:f}", "median", quantile(v, n, 0.5) * 1e3, "p95", quantile(v, n, 0.95) * 1e3, "max", v[n - 1] * 1e3));
        json_object_set_new(decode, "median_each", json_real(json_real_value(json_object_get(decode, "median")) / m->sequences));
        json_object_set_new(decode, "head", m->head_bits ? json_pack("{s:s, s:i, s:f}", "mode", m->head_bits == 6 ? "proved" : "shortlist", "bits", m->head_bits, "rows_rescored", m->rescored)
                                                          : json_pack("{s:s}", "mode", "full"));
        json_object_set_new(run, "decode", decode);
    }
    return run;
}

static void print_row(const char *what, const json_t *run, const json_t *part) {
    if (!part) return;
    printf("%-8s %7d %7d %7d %5d %10.2f %10.2f %10.2f %10.2f %7.1f %%\n", what, (int)json_integer_value(json_object_get(part, "tokens")), (int)json_integer_value(json_object_get(run, "threads")),
        (int)json_integer_value(json_object_get(run, "depth")), (int)json_integer_value(json_object_get(run, "sequences")), json_real_value(json_object_get(part, "median")), json_real_value(json_object_get(part, "p95")),
        json_real_value(json_object_get(part, "min")), json_real_value(json_object_get(part, "max")), 100 * json_real_value(json_object_get(part, "spread")));
}

/* All measurements with one number of threads. */
static int bench_threads(settings *s, int threads, json_t *runs, json_t *root) {
    setun_context *context = NULL;
    setun_model *model = NULL;
    texts all = {{NULL}, {NULL}};
    int widest = 1;
    setun_model_info info = {.size = sizeof info};
    double start = now_seconds();
    int status = open_context(s, threads, &context);
    if (status == EXIT_OK) status = open_model(s, context, &model);
    double opened = now_seconds() - start;
    int deepest = 0, need;
    for (int i = 0; i < s->sequences.count; i++) if (s->sequences.items[i] > widest) widest = s->sequences.items[i];
    for (int i = 0; i < s->depth.count; i++) if (s->depth.items[i] > deepest) deepest = s->depth.items[i];
    need = deepest + (s->bench_prompt > s->generate ? s->bench_prompt : s->generate) + 1;
    setun_session_options options = session_options(s);
    if (need < widest) need = widest; /* a run's tokens are at most the context */
    if (!options.context) options.context = need;
    setun_status code;
    if (status == EXIT_OK && (code = setun_model_get_info(model, &info)) != SETUN_OK) status = fail_status(code);
    if (status == EXIT_OK && (code = setun_session_create(model, &options, &all.session[0])) != SETUN_OK) status = fail_status(code);
    double ready = now_seconds() - start;
    if (status == EXIT_OK && setun_session_context(all.session[0]) < need) status = fail("the context of %d tokens is too short for this measurement; it needs %d (-c)", setun_session_context(all.session[0]), need);
    if (!options.batch || options.batch > 64) options.batch = 64; /* of the others, which only wait for the first one's runs */
    for (int i = 1; i < widest && status == EXIT_OK; i++)
        if ((code = setun_session_create(model, &options, &all.session[i])) != SETUN_OK) status = fail_status(code);
    for (int i = 0; i < widest && status == EXIT_OK; i++)
        if ((code = setun_sampler_create(NULL, info.vocabulary, &all.sampler[i])) != SETUN_OK) status = fail_status(code);
    if (status == EXIT_OK) {
        json_object_set_new(root, "model", json_string(model_path(s)));
        json_object_set_new(root, "architecture", json_string(info.architecture));
        json_object_set_new(root, "parameters", json_integer((json_int_t)info.parameters));
        json_object_set_new(root, "weight_bytes", json_integer((json_int_t)info.weight_bytes));
        json_object_set_new(root, "isa", json_string(setun_context_isa(context)));
        json_object_set_new(root, "open_seconds", json_real(opened));
        json_object_set_new(root, "ready_seconds", json_real(ready));
        interrupt_session(all.session[0]);
    }
    for (int i = 0; i < s->depth.count; i++)
        for (int j = 0; status == EXIT_OK && j < s->sequences.count; j++) {
            measurement m = {.threads = setun_context_threads(context), .depth = s->depth.items[i], .sequences = s->sequences.items[j]};
            status = measure(s, &all, info.vocabulary, &m);
            if (status == EXIT_OK) json_array_append_new(runs, report(s, &m));
            free(m.prefill.values);
            free(m.decode.values);
            free(m.token_seconds.values);
        }
    interrupt_session(NULL);
    setun_session_stats stats = {.size = sizeof stats};
    if (status == EXIT_OK && setun_session_get_stats(all.session[0], &stats) == SETUN_OK) {
        json_object_set_new(root, "memory", json_pack("{s:I, s:I, s:I}", "kv_bytes", (json_int_t)stats.kv_bytes, "arena_bytes", (json_int_t)stats.arena_bytes, "packed_bytes", (json_int_t)stats.packed_bytes));
        json_object_set_new(root, "weights", json_pack("{s:I, s:I, s:f}", "bytes", (json_int_t)stats.weight_bytes, "mapped_bytes", (json_int_t)stats.weight_bytes_mapped, "mapped_share",
            stats.weight_bytes ? (double)stats.weight_bytes_mapped / (double)stats.weight_bytes : 1.0));
        if (stats.device_runs)
            json_object_set_new(root, "device", json_pack("{s:I, s:f, s:f, s:f}", "runs", (json_int_t)stats.device_runs, "kernels_a_run", (double)stats.device_kernels / (double)stats.device_runs,
                "operations_a_run", (double)stats.device_operations / (double)stats.device_runs, "synchronisations_a_run", (double)stats.device_synchronisations / (double)stats.device_runs));
    }
    for (int i = 0; i < MOST_SEQUENCES; i++) {
        setun_sampler_destroy(all.sampler[i]);
        setun_session_destroy(all.session[i]);
    }
    setun_model_close(model);
    setun_context_destroy(context);
    return status;
}

int bench_runs(settings *s, json_t *root, json_t *runs) {
    int status = EXIT_OK;
    for (int i = 0; status == EXIT_OK && i < s->bench_threads.count; i++) status = bench_threads(s, s->bench_threads.items[i], runs, root);
    return status;
}

int command_bench(settings *s) {
    if (s->words.count == 1 && !s->given[OPTION_model]) {
        s->model = s->words.items[0];
        s->given[OPTION_model] = true;
    } else if (s->words.count) return usage_error("setun bench: give one model");
    if (!s->given[OPTION_bench_prompt]) s->bench_prompt = 512;
    if (!s->given[OPTION_generate]) s->generate = 64;
    if (!s->given[OPTION_repeats]) s->repeats = 5;
    if (!s->given[OPTION_depth]) s->depth = (numbers){{0}, 1};
    if (!s->given[OPTION_sequences]) s->sequences = (numbers){{1}, 1};
    for (int i = 0; i < s->sequences.count; i++)
        if (s->sequences.items[i] < 1 || s->sequences.items[i] > MOST_SEQUENCES) return usage_error("setun bench: --sequences %d: from 1 to %d", s->sequences.items[i], MOST_SEQUENCES);
    if (!s->given[OPTION_bench_threads]) s->bench_threads = (numbers){{0}, 1};
    if (s->repeats < 1) return usage_error("setun bench: --repeats must be 1 or more");
    if (!s->bench_prompt && !s->generate) return usage_error("setun bench: --prompt and --generate are both 0: nothing to measure");
    if (s->given[OPTION_report]) return bench_report(s);
    json_t *runs = json_array(), *root = json_object();
    int status = bench_runs(s, root, runs);
    if (status == EXIT_OK) {
        json_t *first = json_array_get(runs, 0), *run;
        json_object_set_new(root, "peak_memory_bytes", json_integer((json_int_t)peak_memory()));
        json_object_set_new(root, "repeats", json_integer(s->repeats));
        if (json_object_get(first, "prefill")) json_object_set(root, "prefill", json_object_get(first, "prefill"));
        if (json_object_get(first, "decode")) json_object_set(root, "decode", json_object_get(first, "decode"));
        json_object_set(root, "runs", runs);
        if (s->json) {
            json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(7));
            putchar('\n');
        } else {
            char a[32], b[32];
            printf("%s  (%s, %s of weights, isa %s)\n\n%-8s %7s %7s %7s %5s %10s %10s %10s %10s %9s\n", model_path(s), json_string_value(json_object_get(root, "architecture")),
                human_bytes((double)json_integer_value(json_object_get(root, "weight_bytes")), a), json_string_value(json_object_get(root, "isa")),
                "", "tokens", "threads", "depth", "texts", "tokens/s", "p95", "min", "max", "spread");
            size_t i;
            json_array_foreach(runs, i, run) {
                print_row("prefill", run, json_object_get(run, "prefill"));
                print_row("decode", run, json_object_get(run, "decode"));
            }
            printf("\nopened in %.3f s, ready in %.3f s; peak memory %s\n", json_real_value(json_object_get(root, "open_seconds")), json_real_value(json_object_get(root, "ready_seconds")), human_bytes((double)peak_memory(), b));
            const json_t *weights = json_object_get(root, "weights"), *device = json_object_get(root, "device");
            printf("weights: %.1f %% of %s are read where the file is mapped\n", 100 * json_real_value(json_object_get(weights, "mapped_share")),
                human_bytes((double)json_integer_value(json_object_get(weights, "bytes")), a));
            if (device)
                printf("a run: %.0f kernels, %.1f operations of MLX, %.1f waits of the host\n", json_real_value(json_object_get(device, "kernels_a_run")), json_real_value(json_object_get(device, "operations_a_run")),
                    json_real_value(json_object_get(device, "synchronisations_a_run")));
        }
    }
    json_decref(runs);
    json_decref(root);
    return status;
}
