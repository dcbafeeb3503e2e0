/*
 * cuda_engine.c - a model through the CUDA engine, without MLX: the same tokens as the CPU backend, many decode steps, then times as a user has
 * them: from the call to the logits in host memory. Build: target bench_cuda_engine. usage: bench_cuda_engine KERNELS MODEL [check|time|all|profile] [STEPS]
 * KERNELS: folder of the two fatbins. Prints lines for people and, last, one JSON object. Nothing here is part of the library.
 */
#include "backend/mlx/cuda/engine.h"
#include "run/run.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define TRY(call) do { setun_status s_ = (call); if (s_ != SETUN_OK) { printf("FAILED %s: %s: %s\n", #call, setun_status_name(s_), setun_error()); exit(1); } } while (0)
enum { CONTEXT = 2304, MOST = 64, PROMPT = 24 };

static setun_context *context;
static setun_model *model;
static setun_plan *plan;
static setun_frame frame;
static setun_cuda_engine *engine;
static setun_cuda_binding *binding;
static int slot_tokens, slot_positions, slot_outputs, slot_logits, vocabulary;
static char json[8192];

static void note(const char *key, double value)
{
    size_t used = strlen(json);
    snprintf(json + used, sizeof json - used, "%s\"%s\": %.6g", used ? ", " : "", key, value);
}

static void cache_for(setun_kv_cache *cache) { TRY(setun_kv_cache_create(plan->cache_layers, plan->cache_kv_heads, plan->cache_head_size, CONTEXT, SETUN_F16, cache)); }

/* Rows of one sequence; the logits of the last. */
static const float *feed(setun_kv_cache *cache, const int32_t *ids, int count)
{
    setun_session_bind(&frame, slot_tokens, slot_positions, slot_outputs, ids, count, cache->length, 1);
    frame.cache = cache;
    frame.sequence_count = 0;
    if (!setun_cuda_engine_takes(binding, &frame)) { printf("FAILED the engine does not take the run\n"); exit(1); }
    TRY(setun_cuda_engine_run(binding, &frame));
    cache->length += count;
    return setun_frame_slot(&frame, slot_logits);
}

/* One token for each of n sequences; the logits of the first `outputs`. */
static void step_all(setun_kv_cache *caches, const int32_t *ids, int n, int outputs)
{
    static setun_sequence sequences[MOST];
    int32_t *tokens = setun_frame_slot(&frame, slot_tokens), *positions = setun_frame_slot(&frame, slot_positions), *rows = setun_frame_slot(&frame, slot_outputs);
    for (int i = 0; i < n; i++) {
        sequences[i] = (setun_sequence){.cache = &caches[i], .first_row = i, .rows = 1};
        tokens[i] = ids[i], positions[i] = caches[i].length, rows[i] = i;
    }
    frame.tokens = n;
    frame.outputs = outputs;
    frame.sequences = sequences;
    frame.sequence_count = n;
    TRY(setun_cuda_engine_run(binding, &frame));
    frame.sequences = NULL;
    frame.sequence_count = 0;
    for (int i = 0; i < n; i++) caches[i].length++;
}

static int best_of(const float *logits)
{
    int best = 0;
    for (int i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static double error_of(const float *got, const float *want)
{
    double d = 0, size = 0;
    for (int i = 0; i < vocabulary; i++) d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]), size += (double)want[i] * want[i];
    return sqrt(d / size);
}

static int32_t some_id(int i) { return (int32_t)(((int64_t)i * 7919 + 13) % (vocabulary - 1)); }

/* A prompt and 48 tokens that the CPU chooses, fed to both. */
static bool check(int steps)
{
    setun_session_options o = {.size = sizeof o, .context = CONTEXT, .head = "full"};
    setun_session *cpu;
    TRY(setun_session_create(model, &o, &cpu));
    setun_kv_cache one, others[MOST];
    cache_for(&one);
    int32_t ids[PROMPT + 64];
    for (int i = 0; i < PROMPT; i++) ids[i] = some_id(i);
    double worst = 0;
    int same = 0, all = 0;
    const float *got = feed(&one, ids, PROMPT);
    TRY(setun_session_feed(cpu, ids, PROMPT));
    int32_t given[64], chosen[64];
    for (int i = 0; i < 48; i++) {
        int n;
        const float *want = setun_session_logits(cpu, &n);
        double e = error_of(got, want);
        if (!(e <= worst)) worst = e;
        given[i] = best_of(want), chosen[i] = best_of(got);
        same += given[i] == chosen[i], all++;
        got = feed(&one, &given[i], 1);
        TRY(setun_session_feed(cpu, &given[i], 1));
    }
    bool ok = worst < 0.2 && same >= all - 3; /* sums in another order round a value now and then to another int8, which layers carry on */
    printf("check tokens: prompt of %d and 48 steps: %d of %d tokens the CPU's, logits differ by at most %.2e  %s\n", PROMPT, same, all, worst, ok ? "ok" : "FAILED");
    note("tokens_same", same), note("tokens_all", all), note("logits_worst", worst);
    /* prompts of a few tokens and of odd lengths, each followed by a token */
    static const int lengths[] = {1, 2, 3, 7, 17, 33, 130};
    double shorter = 0;
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        int32_t text[160];
        for (int i = 0; i < lengths[l] + 1; i++) text[i] = some_id(300 * (int)l + i);
        TRY(setun_session_truncate(cpu, 0));
        one.length = 0;
        for (int part = 0; part < 2; part++) {
            int n, count = part ? 1 : lengths[l];
            const int32_t *from = text + (part ? lengths[l] : 0);
            TRY(setun_session_feed(cpu, from, (size_t)count));
            double e = error_of(feed(&one, from, count), setun_session_logits(cpu, &n));
            if (!(e <= shorter)) shorter = e;
        }
    }
    ok = ok && shorter < 0.2;
    printf("check lengths: prompts of 1 to 130 tokens and one after each: logits differ by at most %.2e  %s\n", shorter, shorter < 0.2 ? "ok" : "FAILED");
    note("lengths_worst", shorter);
    /* several sequences, each a prompt of another length, then steps together: as each alone */
    int counts[3] = {5, 3, 20};
    double apart = 0;
    for (int n = 2; n <= 20; n += 18) {
        for (int i = 0; i < n; i++) {
            cache_for(&others[i]);
            int32_t text[32];
            for (int j = 0; j < counts[i % 3]; j++) text[j] = some_id(100 * i + j);
            feed(&others[i], text, counts[i % 3]);
        }
        int32_t next[MOST];
        float *together = malloc((size_t)n * (size_t)vocabulary * sizeof(float));
        for (int i = 0; i < n; i++) next[i] = some_id(5000 + i);
        step_all(others, next, n, n);
        memcpy(together, setun_frame_slot(&frame, slot_logits), (size_t)n * (size_t)vocabulary * sizeof(float));
        for (int i = 0; i < n; i++) {
            others[i].length--;
            double e = error_of(together + (size_t)i * (size_t)vocabulary, feed(&others[i], &next[i], 1));
            if (!(e <= apart)) apart = e;
        }
        for (int i = 0; i < n; i++) setun_kv_cache_destroy(&others[i]);
        free(together);
    }
    ok = ok && apart < 0.2;
    printf("check batches: 2 and 20 sequences, each against itself alone: logits differ by at most %.2e  %s\n", apart, apart < 0.2 ? "ok" : "FAILED");
    note("batch_worst", apart);
    /* the same step again and again: the same bits, no wait without end */
    one.length = PROMPT;
    float *first = malloc((size_t)vocabulary * sizeof(float));
    memcpy(first, feed(&one, &given[0], 1), (size_t)vocabulary * sizeof(float));
    int changed = 0;
    double start = setun_seconds();
    for (int i = 0; i < steps; i++) {
        one.length = PROMPT;
        changed += memcmp(first, feed(&one, &given[0], 1), (size_t)vocabulary * sizeof(float)) != 0;
    }
    printf("check repeats: %d steps in %.2f s, %d with other bits  %s\n", steps, setun_seconds() - start, changed, changed ? "FAILED" : "ok");
    note("repeats", steps), note("repeats_changed", changed);
    free(first);
    setun_kv_cache_destroy(&one);
    setun_session_destroy(cpu);
    return ok && !changed;
}

/* A long prompt at once, in pieces of several kernels' shapes, and its last token alone: the same logits? */
static bool check_pieces(void)
{
    static int32_t ids[2048];
    static const int pieces[4][5] = {{2048}, {1000, 1048}, {1500, 37, 3, 507, 1}, {700, 1, 1, 1345, 1}};
    for (int i = 0; i < 2048; i++) ids[i] = some_id(3 * i);
    float *whole = malloc((size_t)vocabulary * sizeof(float));
    double worst = 0;
    for (int p = 0; p < 4; p++) {
        setun_kv_cache cache;
        cache_for(&cache);
        const float *got = NULL;
        for (int i = 0, at = 0; i < 5 && pieces[p][i]; at += pieces[p][i++]) got = feed(&cache, ids + at, pieces[p][i]);
        if (p == 0) memcpy(whole, got, (size_t)vocabulary * sizeof(float));
        double e = error_of(got, whole);
        if (!(e <= worst)) worst = e;
        setun_kv_cache_destroy(&cache);
    }
    /* the same again with others beside it: a prompt of 300 behind 1748, one of 40, and single rows */
    setun_kv_cache several[4];
    setun_sequence sequences[4];
    const int lengths[4] = {1748, 0, 500, 11}, rows[4] = {300, 40, 1, 1};
    int n = 0;
    for (int i = 0; i < 4; i++) {
        cache_for(&several[i]);
        if (lengths[i]) feed(&several[i], ids, lengths[i]);
    }
    int32_t *tokens = setun_frame_slot(&frame, slot_tokens), *positions = setun_frame_slot(&frame, slot_positions), *wanted = setun_frame_slot(&frame, slot_outputs);
    for (int i = 0; i < 4; i++) {
        sequences[i] = (setun_sequence){.cache = &several[i], .first_row = n, .rows = rows[i]};
        for (int t = 0; t < rows[i]; t++, n++) tokens[n] = ids[lengths[i] + t], positions[n] = lengths[i] + t;
        wanted[i] = n - 1;
    }
    frame.tokens = n, frame.outputs = 4, frame.sequences = sequences, frame.sequence_count = 4;
    TRY(setun_cuda_engine_run(binding, &frame));
    frame.sequences = NULL, frame.sequence_count = 0;
    float *together = malloc(4 * (size_t)vocabulary * sizeof(float));
    memcpy(together, setun_frame_slot(&frame, slot_logits), 4 * (size_t)vocabulary * sizeof(float));
    double beside = error_of(together, whole);
    for (int i = 1; i < 4; i++) {
        several[i].length = lengths[i];
        double e = error_of(together + (size_t)i * (size_t)vocabulary, feed(&several[i], ids + lengths[i], rows[i]));
        if (!(e <= beside)) beside = e;
    }
    for (int i = 0; i < 4; i++) setun_kv_cache_destroy(&several[i]);
    free(whole), free(together);
    bool ok = worst < 0.2 && beside < 0.2;
    printf("check pieces: a prompt of 2048 whole and in pieces: logits differ by at most %.2e; with others beside it by %.2e  %s\n", worst, beside, ok ? "ok" : "FAILED");
    note("pieces_worst", worst), note("beside_worst", beside);
    return ok;
}

static int by_value(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }

static void times(void)
{
    static setun_kv_cache caches[MOST];
    static int32_t ids[2048];
    static double t[200];
    for (int i = 0; i < 2048; i++) ids[i] = some_id(i);
    for (int i = 0; i < MOST; i++) cache_for(&caches[i]);
    for (int n = 512; n <= 2048; n *= 4) {
        int reps = 7;
        for (int r = 0; r < reps; r++) {
            caches[0].length = 0;
            double start = setun_seconds();
            feed(&caches[0], ids, n);
            t[r] = setun_seconds() - start;
        }
        qsort(t, (size_t)reps, sizeof *t, by_value);
        printf("time  prompt of %d: %.3f ms, %.0f tokens/s\n", n, t[reps / 2] * 1e3, n / t[reps / 2]);
        char key[32];
        snprintf(key, sizeof key, "prompt_%d_ms", n);
        note(key, t[reps / 2] * 1e3);
    }
    const int depths[2] = {16, 2048};
    for (int d = 0; d < 2; d++) {
        caches[0].length = depths[d];
        for (int i = 0; i < 5; i++) feed(&caches[0], &ids[i], 1);
        for (int i = 0; i < 64; i++) {
            double start = setun_seconds();
            feed(&caches[0], &ids[i], 1);
            t[i] = setun_seconds() - start;
        }
        double sum = 0;
        for (int i = 0; i < 64; i++) sum += t[i];
        qsort(t, 64, sizeof *t, by_value);
        printf("time  one sequence at %d: %.4f ms a token (median of 64, logits home), %.0f tokens/s over 64\n", depths[d], t[32] * 1e3, 64 / sum);
        char key[32];
        snprintf(key, sizeof key, "decode_at_%d_ms", depths[d]);
        note(key, t[32] * 1e3);
    }
    /* batches: as the engine chooses, all as rows, all by the decode kernel; then at depth; then with the logits of one alone */
    for (int n = 2; n <= MOST; n *= 2) {
        printf("time  %d sequences:", n);
        for (int way = 0; way < 5; way++) {
            if (way == 2 && n > 8) continue; /* seconds, and known to be slower */
            setun_cuda_engine_rows_from(engine, way == 1 ? 2 : way == 2 ? MOST + 1 : 0);
            int depth = way == 3 ? 1024 : 16;
            for (int i = 0; i < n; i++) caches[i].length = depth;
            for (int i = 0; i < 23; i++) {
                double start = setun_seconds();
                step_all(caches, ids, n, way == 4 ? 1 : n);
                if (i >= 3) t[i - 3] = setun_seconds() - start;
            }
            qsort(t, 20, sizeof *t, by_value);
            static const char *const names[5] = {"", " as rows", " by decode", " at 1024", " one's logits"};
            printf("%s %.4f ms%s", names[way], t[10] * 1e3, way == 0 ? " a step," : ",");
            static const char *const keys[5] = {"batch_%d_ms", "batch_%d_rows_ms", "batch_%d_decode_ms", "batch_%d_at_1024_ms", "batch_%d_one_ms"};
            char key[40];
            snprintf(key, sizeof key, keys[way], n);
            note(key, t[10] * 1e3);
        }
        printf("\n");
    }
    setun_cuda_engine_rows_from(engine, 0);
    for (int i = 0; i < MOST; i++) setun_kv_cache_destroy(&caches[i]);
}

/* Each kind of run once, for ncu: best over a model of few layers. */
static void profile(void)
{
    static setun_kv_cache caches[32];
    static int32_t ids[2048];
    for (int i = 0; i < 2048; i++) ids[i] = some_id(i);
    for (int i = 0; i < 32; i++) cache_for(&caches[i]);
    feed(&caches[0], ids, 512);
    caches[0].length = 0;
    feed(&caches[0], ids, 2048);
    for (int depth = 16; depth <= 1040; depth += 1024) {
        for (int i = 0; i < 32; i++) caches[i].length = depth;
        step_all(caches, ids, 8, 8);
        step_all(caches, ids, 32, 32);
    }
    for (int i = 0; i < 32; i++) setun_kv_cache_destroy(&caches[i]);
}

static int slot(setun_slot_place place, const char *name) { return setun_plan_find_slot(plan, place, name); }

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 3) {
        printf("usage: %s KERNELS MODEL [check|time|all|profile] [STEPS]\n", argv[0]);
        return 2;
    }
    const char *what = argc > 3 ? argv[3] : "all";
    TRY(setun_context_create(NULL, &context));
    TRY(setun_model_open(context, argv[2], NULL, &model));
    setun_session_options given = {.size = sizeof given, .context = CONTEXT, .batch = 2048, .head = "full"}, o;
    TRY(setun_session_resolve(model, &given, &o));
    double start = setun_seconds();
    TRY(setun_session_plan(model, &o, false, &plan, NULL));
    TRY(setun_frame_create(plan, &frame));
    double planned = setun_seconds();
    const char *driver = getenv("SETUN_CUDA_DRIVER");
    TRY(setun_cuda_engine_open(context, driver, argv[1], 0, &engine));
    double opened = setun_seconds();
    TRY(setun_cuda_engine_bind(engine, plan, &binding));
    printf("model %s: plan %.2f s, driver and kernels %.2f s, weights on the device %.2f s\n", argv[2], planned - start, opened - planned, setun_seconds() - opened);
    note("open_s", opened - planned), note("bind_s", setun_seconds() - opened);
    slot_tokens = slot(SETUN_PLACE_INPUT, "tokens"), slot_positions = slot(SETUN_PLACE_INPUT, "positions"), slot_outputs = slot(SETUN_PLACE_INPUT, "outputs"), slot_logits = slot(SETUN_PLACE_OUTPUT, "logits");
    vocabulary = (int)setun_slot_width(&plan->slots[slot_logits]);
    bool ok = true;
    if (!strcmp(what, "profile")) {
        profile();
        return 0;
    }
    if (strcmp(what, "time")) {
        ok = check(argc > 4 ? atoi(argv[4]) : 1000);
        ok = check_pieces() && ok;
    }
    if (strcmp(what, "check")) times();
    setun_cuda_counters c;
    setun_cuda_engine_count(binding, &c);
    printf("counted: %llu runs, %llu decode launches, %llu launches of rows, %llu graphs, %llu waits\n", (unsigned long long)c.runs, (unsigned long long)c.decode_launches, (unsigned long long)c.prompt_launches, (unsigned long long)c.graph_launches, (unsigned long long)c.synchronisations);
    printf("{\"model\": \"%s\", \"ok\": %s, %s}\n", argv[2], ok ? "true" : "false", json);
    setun_cuda_engine_unbind(binding);
    setun_frame_destroy(&frame);
    setun_plan_free(plan);
    setun_cuda_engine_close(engine);
    setun_model_close(model);
    setun_context_destroy(context);
    return ok ? 0 : 1;
}
