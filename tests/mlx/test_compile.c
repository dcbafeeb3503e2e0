/*
 * test_compile.c - decoding through mx::compile (on MLX's CPU, where it is switched on for this): the same bits token by token, over families, over
 * caches that come and go, over the border at which attention is split; traced once for each shape of run, replayed for every token;
 * counted as before. Off again, nothing is traced.
 */
#include "mlx_test.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "backend/mlx/lower.h"
#include "run/run.h"

static const char *const families[] = {"bitnet_packed", "falcon3", "qwen2_bitnet", "minicpm4", "rotated", "bonsai_mlx"};
enum { FAMILIES = sizeof families / sizeof families[0], TOKENS = 9 };

static setun_model *open_on(setun_context *c, const char *family, const char *device) {
    char path[1024];
    struct stat about;
    snprintf(path, sizeof path, "%s/families/%s/model.gguf", SETUN_TEST_GOLDEN, family);
    if (stat(path, &about) != 0) snprintf(path, sizeof path, "%s/families/%s", SETUN_TEST_GOLDEN, family);
    setun_model_options o = {.size = sizeof o, .device = device};
    setun_model *model;
    if (setun_model_open(c, path, &o, &model) != SETUN_OK) fail_msg("%s on %s: %s", family, device, setun_error());
    return model;
}

static int vocabulary_of(const setun_model *model) {
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    return info.vocabulary;
}

/* A prompt of `prompt` tokens at once, then `count` tokens one by one; logits after each of these. */
static void decode(setun_model *model, const char *precision, int prompt, int count, float *out, setun_session_stats *stats) {
    setun_session_options o = {.size = sizeof o, .context = prompt + count + 8, .precision = precision};
    setun_session *session;
    int vocabulary = vocabulary_of(model);
    if (setun_session_create(model, &o, &session) != SETUN_OK) fail_msg("%s", setun_error());
    int32_t *ids = malloc((size_t)(prompt + count) * sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < prompt + count; i++) ids[i] = (i * 37 + 11) % vocabulary;
    assert_int_equal(setun_session_feed(session, ids, (size_t)prompt), SETUN_OK);
    for (int i = 0; i < count; i++) {
        if (setun_session_feed(session, ids + prompt + i, 1) != SETUN_OK) fail_msg("%s", setun_error());
        memcpy(out + (size_t)i * (size_t)vocabulary, setun_session_logits(session, NULL), (size_t)vocabulary * sizeof *out);
    }
    if (stats) {
        stats->size = sizeof *stats;
        assert_int_equal(setun_session_get_stats(session, stats), SETUN_OK);
    }
    free(ids);
    setun_session_destroy(session);
}

static void set_compile(setun_context *c, bool on) { assert_int_equal(setun_device_set_compile(c, "mlx:cpu", on), SETUN_OK); }

static void the_same_bits(void **state) {
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (int p = 0; p < (f ? 1 : 3); p++) {
            const char *precision = (const char *const[]){"f32", "bf16", "f16"}[p];
            setun_model *model = open_on(context, families[f], "mlx:cpu");
            size_t count = TOKENS * (size_t)vocabulary_of(model);
            float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
            assert_true(want && got);
            setun_session_stats plain, traced;
            setun_mlx_counters before, middle, after;
            t->counters(&before);
            decode(model, precision, 3, TOKENS, want, &plain);
            t->counters(&middle);
            assert_true(middle.traces == before.traces && middle.function_calls == before.function_calls); /* off */
            set_compile(context, true);
            for (int round = 0; round < 2; round++) { /* another session, another cache */
                memset(got, 0xff, count * sizeof *got);
                t->counters(&middle);
                decode(model, precision, 3, TOKENS, got, &traced);
                t->counters(&after);
                if (memcmp(got, want, count * sizeof *got)) fail_msg("%s, %s: other bits", families[f], precision);
                assert_true(after.function_calls - middle.function_calls == TOKENS - 1); /* the first is built */
                assert_true(after.traces - middle.traces == 1);
                assert_true(traced.device_kernels == plain.device_kernels && traced.device_operations == plain.device_operations && traced.device_runs == plain.device_runs);
                assert_true(traced.device_synchronisations == traced.device_runs);
            }
            setun_explain_options e = {.size = sizeof e};
            char *text;
            assert_int_equal(setun_model_explain(model, &e, &text), SETUN_OK);
            if (!strstr(text, "copies, 0 steps not compiled by MLX")) fail_msg("%s", strstr(text, "fallbacks"));
            setun_free(text);
            set_compile(context, false);
            free(want);
            free(got);
            setun_model_close(model);
        }
    setun_mlx_counters c;
    t->counters(&c);
    assert_true(c.functions == 0);
}

/* Two sessions whose tokens come in turns: each has its own trace and cache. And one that is rewound. */
static void sessions_in_turns(void **state) {
    (void)state;
    setun_model *model = open_on(context, "bitnet_packed", "mlx:cpu");
    int vocabulary = vocabulary_of(model);
    size_t count = TOKENS * (size_t)vocabulary;
    float *want[2] = {malloc(count * sizeof(float)), malloc(count * sizeof(float))};
    assert_true(want[0] && want[1]);
    for (int compiled = 0; compiled < 2; compiled++) {
        setun_session *session[2];
        setun_session_options o = {.size = sizeof o, .context = 40};
        set_compile(context, compiled);
        for (int i = 0; i < 2; i++) {
            o.context += 7 * i;
            assert_int_equal(setun_session_create(model, &o, &session[i]), SETUN_OK);
        }
        for (int step = 0; step < TOKENS; step++)
            for (int i = 0; i < 2; i++) {
                int32_t id = (step * 31 + i * 5) % vocabulary;
                assert_int_equal(setun_session_feed(session[i], &id, 1), SETUN_OK);
                const float *logits = setun_session_logits(session[i], NULL);
                float *at = want[i] + (size_t)step * (size_t)vocabulary;
                if (!compiled) memcpy(at, logits, (size_t)vocabulary * sizeof *at);
                else assert_memory_equal(logits, at, (size_t)vocabulary * sizeof *at);
            }
        for (int step = TOKENS / 2; step < TOKENS; step++) {
            int32_t id = (step * 31) % vocabulary;
            if (step == TOKENS / 2) assert_int_equal(setun_session_truncate(session[0], step), SETUN_OK);
            assert_int_equal(setun_session_feed(session[0], &id, 1), SETUN_OK);
            assert_memory_equal(setun_session_logits(session[0], NULL), want[0] + (size_t)step * (size_t)vocabulary, (size_t)vocabulary * sizeof(float));
        }
        for (int i = 0; i < 2; i++) setun_session_destroy(session[i]);
    }
    set_compile(context, false);
    free(want[0]);
    free(want[1]);
    setun_model_close(model);
}

/* 250 tokens, then past 256, where attention becomes two ranges: another graph. */
static void over_the_border(void **state) {
    (void)state;
    enum { PROMPT = 250, MORE = 14 };
    char path[600], text[512];
    const char *temporary = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/setun_compile_XXXXXX", temporary && *temporary ? temporary : "/tmp");
    int file = mkstemp(path);
    assert_true(file >= 0);
    setun_mlx_device d;
    ok(t->device_get(false, 0, &d));
    int n = snprintf(text, sizeof text, "{\"setun_tuning\": 1, \"devices\": [{\"device\": \"%s (host form)\", \"family\": \"generic\", \"values\": {\"attention_split\": 64}}]}", d.name);
    assert_int_equal(write(file, text, (size_t)n), n);
    close(file);
    setenv("SETUN_TUNING", path, 1);
    setun_context *c;
    assert_int_equal(setun_context_create(NULL, &c), SETUN_OK);
    unsetenv("SETUN_TUNING");
    setun_model *model = open_on(c, "bitnet_packed", "mlx:cpu"), *cpu = open_on(context, "bitnet_packed", "cpu");
    size_t count = MORE * (size_t)vocabulary_of(model);
    float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
    assert_true(want && got);
    setun_mlx_counters before, after;
    decode(cpu, NULL, PROMPT, MORE, want, NULL);
    set_compile(c, true);
    t->counters(&before);
    decode(model, NULL, PROMPT, MORE, got, NULL);
    t->counters(&after);
    set_compile(c, false);
    assert_memory_equal(got, want, count * sizeof *got);
    assert_true(after.traces - before.traces == 2);
    free(want);
    free(got);
    setun_model_close(model);
    setun_model_close(cpu);
    setun_context_destroy(c);
    unlink(path);
}

/* A bridge whose functions fail: said once, built instead, the same bits. */
static int failures, warnings;
static setun_status fails_always(setun_mlx_function *f, setun_mlx_array *const *inputs, int input_count, setun_mlx_array **outputs, int output_count) {
    (void)f, (void)inputs, (void)input_count, (void)outputs, (void)output_count;
    failures++;
    return SETUN_ERROR_DEVICE;
}
static void keep(void *user, setun_log_level level, const char *message) {
    (void)user;
    warnings += level == SETUN_LOG_WARNING && strstr(message, "this plan's runs are not compiled");
}

static void what_cannot_be_traced(void **state) {
    (void)state;
    setun_context *c;
    setun_context_options co = {.size = sizeof co, .log = keep, .log_level = SETUN_LOG_WARNING};
    assert_int_equal(setun_context_create(&co, &c), SETUN_OK);
    setun_model *model = open_on(c, "bitnet_packed", "mlx:cpu");
    int vocabulary = vocabulary_of(model);
    float *want = malloc(TOKENS * (size_t)vocabulary * sizeof *want);
    setun_session_options o = {.size = sizeof o, .context = 32};
    setun_session *session;
    assert_non_null(want);
    for (int broken = 0; broken < 2; broken++) {
        assert_int_equal(setun_session_create(model, &o, &session), SETUN_OK);
        mlx_executor *e = mlx_tape_of(session->plan)->executor;
        const setun_mlx_table *whole = e->table;
        setun_mlx_table table = *whole;
        table.function_call = fails_always;
        if (broken) {
            e->table = &table;
            set_compile(c, true);
        }
        for (int i = 0; i < TOKENS; i++) {
            int32_t id = i * 13 % vocabulary;
            if (setun_session_feed(session, &id, 1) != SETUN_OK) fail_msg("%s", setun_error());
            const float *logits = setun_session_logits(session, NULL);
            if (!broken) memcpy(want + (size_t)i * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *want);
            else assert_memory_equal(logits, want + (size_t)i * (size_t)vocabulary, (size_t)vocabulary * sizeof *want);
        }
        e->table = whole;
        set_compile(c, false);
        setun_session_destroy(session);
    }
    assert_int_equal(failures, 1);
    assert_int_equal(warnings, 1);
    free(want);
    setun_model_close(model);
    setun_context_destroy(c);
}

/* What building a token's graph costs the host, and replaying it; for docs/mlx.md. Kernels of a tiny model, so the rest is small. */
static void what_it_costs(void **state) {
    (void)state;
    setun_model *model = open_on(context, "bitnet_packed", "mlx:cpu");
    float *out = malloc(40 * (size_t)vocabulary_of(model) * sizeof *out);
    assert_non_null(out);
    double seconds[2] = {1e9, 1e9};
    for (int round = 0; round < 4; round++) {
        set_compile(context, round % 2);
        double start = setun_seconds();
        decode(model, NULL, 3, 40, out, NULL);
        double s = setun_seconds() - start;
        if (s < seconds[round % 2]) seconds[round % 2] = s;
    }
    set_compile(context, false);
    print_message("a token of a tiny model: built %.1f us, replayed %.1f us\n", seconds[0] * 1e6 / 40, seconds[1] * 1e6 / 40);
    assert_true(seconds[1] < seconds[0] * 2); /* harmless, and the machine may be busy */
    free(out);
    setun_model_close(model);
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_bits), cmocka_unit_test(sessions_in_turns), cmocka_unit_test(over_the_border), cmocka_unit_test(what_cannot_be_traced), cmocka_unit_test(what_it_costs)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return failed;
}
