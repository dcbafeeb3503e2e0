/*
 * test_tune.c - `setun tune` on MLX's CPU, whose kernels are the host form: the file appears whole in a folder made for it, keeps other devices'
 * values, is what the next context runs with and says so; odd values give the CPU's bits; a bad file is a warning; nothing is left
 * of a run that was stopped.
 */
#include "mlx_test.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "backend/mlx/tune.h"

static char folder[512], path[600];
static char warning[1024];
static void keep(void *user, setun_log_level level, const char *message) {
    (void)user;
    if (level == SETUN_LOG_WARNING) snprintf(warning, sizeof warning, "%s", message);
}

static setun_context *context_with(const char *file) {
    setun_context *c;
    setun_context_options o = {.size = sizeof o, .log = keep, .log_level = SETUN_LOG_WARNING};
    setenv("SETUN_TUNING", file, 1);
    assert_int_equal(setun_context_create(&o, &c), SETUN_OK);
    *warning = 0;
    return c;
}

static int files_in(const char *name) {
    DIR *d = opendir(name);
    int n = 0;
    if (!d) return -1;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void write_file(const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static bool stop(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)what, (void)total;
    return done < *(uint64_t *)user;
}

static void what_cannot_be_tuned(void **state) {
    (void)state;
    char *json = (char *)1;
    setun_tune_options o = {.size = sizeof o, .device = "cpu", .path = path};
    assert_int_equal(setun_device_tune(context, &o, &json), SETUN_ERROR_UNSUPPORTED);
    assert_null(json);
    o.device = "gpu";
    assert_int_equal(setun_device_tune(context, &o, &json), SETUN_ERROR_UNSUPPORTED);
    if (t->device_count(true) == 0) {
        o.device = NULL;
        assert_true(setun_device_tune(context, &o, &json) != SETUN_OK);
        assert_non_null(strstr(setun_error(), "nothing was measured on mlx:gpu"));
    }
    o.device = "mlx:cpu";
    o.repeats = -1;
    assert_int_equal(setun_device_tune(context, &o, &json), SETUN_ERROR_ARGUMENT);
    uint64_t steps = 3;
    o = (setun_tune_options){.size = sizeof o, .device = "mlx:cpu", .path = path, .repeats = 1, .progress = stop, .progress_user = &steps};
    assert_int_equal(setun_device_tune(context, &o, &json), SETUN_ERROR_CANCELLED);
    assert_int_equal(files_in(folder), 0);
    setun_mlx_counters c;
    t->counters(&c);
    assert_true(c.kernels == 0);
}

static void measured_stored_and_used(void **state) {
    (void)state;
    setun_tuning other;
    setun_tuning_store *store;
    char *json, inner[700];
    snprintf(inner, sizeof inner, "%s/made/for/it", folder);
    char deep[800];
    snprintf(deep, sizeof deep, "%s/tuning.json", inner);
    setun_context *c = context_with(deep);
    setun_tune_options o = {.size = sizeof o, .device = "mlx:cpu", .repeats = 1, .measure_only = true};
    assert_int_equal(setun_device_tune(c, &o, &json), SETUN_OK);
    assert_non_null(strstr(json, "\"path\": null"));
    setun_free(json);
    assert_int_equal(files_in(folder), 0);
    o.measure_only = false;
    if (setun_device_tune(c, &o, &json) != SETUN_OK) fail_msg("%s", setun_error());
    assert_non_null(strstr(json, "\"norm_threads\": {\"before\": 256, \"after\": "));
    assert_non_null(strstr(json, deep));
    setun_free(json);
    assert_int_equal(files_in(inner), 1); /* no temporary beside it */
    /* other devices' values stay */
    assert_int_equal(setun_tuning_load(deep, &store), SETUN_OK);
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_M2, &other);
    other.matvec_rows = 8;
    assert_int_equal(setun_tuning_put(store, "Apple M2", SETUN_GPU_M2, "by hand", &other), SETUN_OK);
    assert_int_equal(setun_tuning_save(store, deep), SETUN_OK);
    setun_tuning_destroy(store);
    assert_int_equal(setun_device_tune(c, &o, &json), SETUN_OK);
    assert_non_null(strstr(json, "\"before\": \"measured 2")); /* the second run starts from the first one's values */
    setun_free(json);
    setun_tuning got;
    assert_int_equal(setun_tuning_load(deep, &store), SETUN_OK);
    assert_true(setun_tuning_lookup(store, "Apple M2", SETUN_GPU_M2, &got));
    assert_memory_equal(&got, &other, sizeof got);
    setun_tuning_destroy(store);
    setun_context_destroy(c);
    /* the next context has them */
    c = context_with(deep);
    assert_int_equal(setun_context_describe(c, &json), SETUN_OK);
    assert_non_null(strstr(json, "\"tuned\": true, \"tuning\": \"measured 2"));
    setun_free(json);
    assert_string_equal(warning, "");
    setun_context_destroy(c);
    unlink(deep);
    for (int i = 0; i < 3; i++) {
        rmdir(inner);
        *strrchr(inner, '/') = 0;
    }
    assert_int_equal(files_in(folder), 0);
}

enum { TOKENS = 11 };
typedef struct gathered { float *logits; int vocabulary; } gathered;
static bool gather(void *user, size_t index, const float *logits, int vocabulary) {
    gathered *g = user;
    memcpy(g->logits + index * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *logits);
    return true;
}

static float *compute(setun_context *c, const char *device, bool one_by_one, size_t *out_count, char **explained) {
    char name[1024];
    snprintf(name, sizeof name, "%s/families/bitnet_packed/model.gguf", SETUN_TEST_GOLDEN);
    struct stat about;
    if (stat(name, &about)) snprintf(name, sizeof name, "%s/families/bitnet_packed", SETUN_TEST_GOLDEN);
    setun_model_options o = {.size = sizeof o, .device = device};
    setun_session_options so = {.size = sizeof so, .context = 32};
    setun_model *model;
    setun_session *session;
    if (setun_model_open(c, name, &o, &model) != SETUN_OK) fail_msg("%s", setun_error());
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    assert_int_equal(setun_session_create(model, &so, &session), SETUN_OK);
    *out_count = TOKENS * (size_t)info.vocabulary;
    float *logits = malloc(*out_count * sizeof *logits);
    assert_non_null(logits);
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 37 % info.vocabulary;
    for (int i = 0; i < TOKENS; i += one_by_one ? 1 : TOKENS) {
        gathered g = {logits + (size_t)i * (size_t)info.vocabulary, info.vocabulary};
        if (setun_session_feed_all(session, ids + i, one_by_one ? 1 : TOKENS, gather, &g) != SETUN_OK) fail_msg("%s", setun_error());
    }
    setun_explain_options e = {.size = sizeof e, .session = so};
    if (setun_model_explain(model, &e, explained) != SETUN_OK) fail_msg("%s", setun_error());
    setun_session_destroy(session);
    setun_model_close(model);
    return logits;
}

static void odd_values_give_the_same_bits(void **state) {
    (void)state;
    setun_mlx_device d;
    ok(t->device_get(false, 0, &d));
    char text[2048], *explained;
    snprintf(text, sizeof text, "{\"setun_tuning\": 1, \"devices\": [{\"device\": \"%s (host form)\", \"family\": \"generic\", \"measured\": \"by hand\", \"values\": {\"norm_threads\": 96, \"row_threads\": 32, "
             "\"element_threads\": 64, \"matvec_threads\": 96, \"matvec_rows\": 3, \"matvec_token_rows\": 5, \"matvec_tokens\": 3, \"matmul_from\": 2, \"matmul_rows\": 48, \"matmul_tokens\": 16, \"matmul_way\": 2, "
             "\"team_threads\": 96, \"team_rows\": 3, \"team_tokens\": 3, \"attention_threads\": 96, \"attention_heads\": 1, \"attention_split\": 1}}]}", d.name);
    write_file(text);
    size_t count;
    float *want = compute(context, "cpu", false, &count, &explained);
    assert_non_null(strstr(explained, "device cpu"));
    setun_free(explained);
    setun_context *c = context_with(path);
    for (int way = 0; way < 2; way++) {
        float *got = compute(c, "mlx:cpu", way, &count, &explained);
        assert_string_equal(warning, "");
        assert_memory_equal(got, want, count * sizeof *got);
        assert_non_null(strstr(explained, "ternary_matmul_matrix[mlx:cpu]"));
        if (!strstr(explained, "measured by hand, ") || !strstr(explained, path)) fail_msg("%s", explained);
        setun_free(explained);
        free(got);
    }
    setun_context_destroy(c);
    /* a file that is none: a warning, the family's table, the same results */
    write_file("{\"setun_tuning\": 1, \"devices\": 7}");
    c = context_with(path);
    float *got = compute(c, "mlx:cpu", false, &count, &explained);
    assert_non_null(strstr(warning, "measured group sizes are not used"));
    assert_non_null(strstr(warning, path));
    assert_non_null(strstr(explained, "table of family generic"));
    assert_memory_equal(got, want, count * sizeof *got);
    setun_free(explained);
    free(got);
    setun_tune_options o = {.size = sizeof o, .device = "mlx:cpu", .repeats = 1}; /* and it is not written over */
    char *json;
    assert_int_equal(setun_device_tune(c, &o, &json), SETUN_ERROR_FORMAT);
    setun_context_destroy(c);
    free(want);
    unlink(path);
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/setun_tune_XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof path, "%s/tuning.json", folder);
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_cannot_be_tuned), cmocka_unit_test(measured_stored_and_used), cmocka_unit_test(odd_values_give_the_same_bits)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    close_mlx();
    return failed;
}
