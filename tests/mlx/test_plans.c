/*
 * test_plans.c - plans on MLX against the same plans on the CPU backend: small models of every family, fused and not, a prompt at once and
 * token by token. The kernels' order of sums is the CPU's, so the logits are compared with memcmp where every step has such a kernel, and
 * else within a stated bound. Several sequences in one step, 16-bit activations and what happens where f16 overflows come after.
 */
#include "mlx_test.h"

#include <stdio.h>
#include <sys/stat.h>

static const char *const families[] = {"bitnet_packed", "bitnet_online", "bitnet_1bitllm", "llama_bitnet", "falcon3", "llama_sub_norm", "trilm", "bonsai_mlx", "qwen2_bitnet", "minicpm4", "rotated"};

/* Which device is compared with the CPU: SETUN_TEST_DEVICE, as on a machine with a GPU; else MLX's CPU, where equal bits are asked for. */
static const char *device(void) {
    const char *name = getenv("SETUN_TEST_DEVICE");
    return name && *name ? name : "mlx:cpu";
}
static bool on_the_cpu(void) { return !strcmp(device(), "mlx:cpu"); }
/* On a GPU: the first N families only, since every set of template arguments is compiled there. */
static size_t family_count(void) {
    const char *most = getenv("SETUN_TEST_FAMILIES");
    size_t all = sizeof families / sizeof families[0], wanted = most ? (size_t)atoi(most) : all;
    return wanted > 0 && wanted < all ? wanted : all;
}

static setun_model *open_on(const char *family, const char *device) {
    char path[1024];
    struct stat about;
    snprintf(path, sizeof path, "%s/families/%s/model.gguf", SETUN_TEST_GOLDEN, family);
    if (stat(path, &about) != 0) snprintf(path, sizeof path, "%s/families/%s", SETUN_TEST_GOLDEN, family);
    setun_model_options o = {.size = sizeof o, .device = device};
    setun_model *model;
    if (setun_model_open(context, path, &o, &model) != SETUN_OK) fail_msg("%s on %s: %s", family, device, setun_error());
    return model;
}

static int vocabulary_of(const setun_model *model) {
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    return info.vocabulary;
}

typedef struct gathered { float *logits; int vocabulary; } gathered;
static bool gather(void *user, size_t index, const float *logits, int vocabulary) {
    gathered *g = user;
    memcpy(g->logits + index * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *logits);
    return true;
}

enum { TOKENS = 11 };
static void compute(setun_model *model, const char *what, bool fusion, bool one_by_one, const char *precision, float *out) {
    setun_session_options o = {.size = sizeof o, .context = 32, .no_fusion = !fusion, .precision = precision};
    setun_session *session;
    if (setun_session_create(model, &o, &session) != SETUN_OK) fail_msg("%s: %s", what, setun_error());
    int vocabulary = vocabulary_of(model);
    for (int i = 0; i < TOKENS; i += one_by_one ? 1 : TOKENS) {
        int32_t ids[TOKENS];
        for (int j = 0; j < TOKENS; j++) ids[j] = (i + j) * 37 % vocabulary;
        gathered g = {out + (size_t)i * (size_t)vocabulary, vocabulary};
        if (setun_session_feed_all(session, ids, one_by_one ? 1 : TOKENS, gather, &g) != SETUN_OK) fail_msg("%s: %s", what, setun_error());
    }
    setun_session_destroy(session);
}

static double relative_error(const float *got, const float *want, size_t count) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    return sqrt(difference / size);
}

static void families_equal_the_cpu(void **state) {
    (void)state;
    int exact = 0;
    for (size_t f = 0; f < family_count(); f++) {
        setun_model *cpu = open_on(families[f], "cpu"), *mlx = open_on(families[f], device());
        size_t count = TOKENS * (size_t)vocabulary_of(cpu);
        float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
        assert_true(want && got);
        compute(cpu, families[f], true, false, NULL, want);
        for (int way = 0; way < 4; way++) {
            memset(got, 0xff, count * sizeof *got);
            compute(mlx, families[f], !(way & 1), way & 2, NULL, got);
            bool same = memcmp(got, want, count * sizeof *got) == 0;
            double error = relative_error(got, want, count);
            print_message("%-16s fusion %s, %s: %s %.2e\n", families[f], way & 1 ? "off" : "on ", way & 2 ? "one by one" : "at once   ", same ? "the same bits" : "error", error);
            /* bonsai_mlx: groups of scales under floats; the others have a kernel in the CPU's order for every step */
            if (!(error <= 2e-6)) fail_msg("%s: relative error %.3e", families[f], error);
            exact += same;
        }
        free(want);
        free(got);
        setun_model_close(cpu);
        setun_model_close(mlx);
    }
    if (on_the_cpu()) assert_true(exact >= 4 * 9);
}

/* Rounding an activation to bf16 or f16 moves the logits by about what its last bit is worth, and here and there an int8 value by one. */
static void short_activations_stay_near(void **state) {
    (void)state;
    static const struct { const char *precision; double bound; } cases[] = {{"bf16", 6e-2}, {"f16", 2e-2}};
    setun_model *cpu = open_on("bitnet_packed", "cpu"), *mlx = open_on("bitnet_packed", device());
    size_t count = TOKENS * (size_t)vocabulary_of(cpu);
    float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
    assert_true(want && got);
    compute(cpu, "bitnet_packed", true, false, NULL, want);
    for (size_t i = 0; i < 2; i++) {
        compute(mlx, "bitnet_packed", true, false, cases[i].precision, got);
        double error = relative_error(got, want, count);
        print_message("%s: relative error %.2e\n", cases[i].precision, error);
        assert_true(error <= cases[i].bound && error > 0); /* not 0: it was rounded */
    }
    setun_session_options o = {.size = sizeof o, .precision = "f16"};
    setun_session *session;
    assert_int_equal(setun_session_create(cpu, &o, &session), SETUN_ERROR_UNSUPPORTED);
    o.precision = "f8";
    assert_int_equal(setun_session_create(mlx, &o, &session), SETUN_ERROR_ARGUMENT);
    free(want);
    free(got);
    setun_model_close(cpu);
    setun_model_close(mlx);
}

/* relu2(gate) * up of a row that passes 65504, then a norm: with the row's power of two f16 gives what f32 does; read by an addition
 * instead, where no norm undoes it, the same row is infinite. */
static void f16_scales_itself(void **state) {
    (void)state;
    enum { WIDTH = 128, TALL = 128 };
    int8_t *codes = malloc(WIDTH * TALL);
    assert_non_null(codes);
    for (int i = 0; i < WIDTH * TALL; i++) codes[i] = (int8_t)(i * 7 % 3 - 1);
    float scale = 40.0f, x[WIDTH], want[TALL], got[TALL];
    for (int i = 0; i < WIDTH; i++) x[i] = (float)(i % 13 - 6);
    for (int way = 0; way < 3; way++) { /* f32; f16 with a norm after it; f16 without */
        setun_graph *g;
        setun_plan *plan;
        setun_tensor *in, *out;
        int64_t shape[2] = {SETUN_DIM_TOKENS, WIDTH}, one[2] = {1, WIDTH};
        assert_int_equal(setun_graph_create(context, &g), SETUN_OK);
        setun_node n = setun_graph_quantize(g, setun_graph_input(g, "x", SETUN_F32, 2, shape));
        setun_node gate = setun_graph_ternary_weight(g, "gate", TALL, WIDTH, codes, &scale, -1), up = setun_graph_ternary_weight(g, "up", TALL, WIDTH, codes, &scale, -1);
        n = setun_graph_multiply(g, setun_graph_relu2(g, setun_graph_linear(g, gate, n, SETUN_NODE_NONE)), setun_graph_linear(g, up, n, SETUN_NODE_NONE));
        n = way < 2 ? setun_graph_rms_norm(g, n, SETUN_NODE_NONE, 1e-5f, false) : setun_graph_add(g, n, n);
        assert_int_equal(setun_graph_output(g, n, "y"), SETUN_OK);
        setun_compile_options o = {.size = sizeof o, .device = device(), .precision = way ? "f16" : "f32"};
        if (setun_graph_compile(g, &o, &plan) != SETUN_OK) fail_msg("%s", setun_error());
        setun_graph_destroy(g);
        assert_int_equal(setun_tensor_wrap(SETUN_F32, 2, one, x, &in), SETUN_OK);
        assert_int_equal(setun_plan_set_input(plan, "x", in), SETUN_OK);
        if (setun_plan_run(plan, 1, 1) != SETUN_OK) fail_msg("%s", setun_error());
        assert_int_equal(setun_plan_get_output(plan, "y", &out), SETUN_OK);
        memcpy(way ? got : want, setun_tensor_data(out), sizeof got);
        int infinite = 0;
        for (int i = 0; i < TALL; i++) infinite += !isfinite((way ? got : want)[i]);
        if (way < 2) assert_int_equal(infinite, 0);
        else assert_true(infinite > 0); /* what scaling is for */
        if (way == 1) {
            double error = relative_error(got, want, TALL);
            print_message("f16 past its range, scaled: relative error %.2e\n", error);
            assert_true(error < 2e-3);
        }
        setun_tensor_destroy(in);
        setun_tensor_destroy(out);
        setun_plan_destroy(plan);
    }
    free(codes);
}

/* Three texts of different lengths in one step give the logits of each alone. */
static void several_sequences_in_a_step(void **state) {
    (void)state;
    setun_model *mlx = open_on("bitnet_packed", device());
    int vocabulary = vocabulary_of(mlx);
    int32_t ids[3][8];
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 8; j++) ids[i][j] = (i * 31 + j * 17) % vocabulary;
    const size_t first[3] = {5, 1, 3}, then[3] = {1, 2, 1};
    float *want = malloc(3 * (size_t)vocabulary * sizeof *want);
    assert_non_null(want);
    setun_session_options o = {.size = sizeof o, .context = 32};
    setun_session *sessions[3];
    for (int together = 0; together < 2; together++) {
        for (int i = 0; i < 3; i++) assert_int_equal(setun_session_create(mlx, &o, &sessions[i]), SETUN_OK);
        for (int turn = 0; turn < 2; turn++) {
            const size_t *counts = turn ? then : first;
            const int32_t *parts[3];
            for (int i = 0; i < 3; i++) parts[i] = ids[i] + (turn ? first[i] : 0);
            if (together) {
                if (setun_session_feed_batch(sessions, parts, counts, 3) != SETUN_OK) fail_msg("%s", setun_error());
            } else
                for (int i = 0; i < 3; i++) assert_int_equal(setun_session_feed(sessions[i], parts[i], counts[i]), SETUN_OK);
        }
        for (int i = 0; i < 3; i++) {
            const float *logits = setun_session_logits(sessions[i], NULL);
            assert_non_null(logits);
            if (!together) memcpy(want + i * vocabulary, logits, (size_t)vocabulary * sizeof *want);
            else assert_true(relative_error(logits, want + i * vocabulary, (size_t)vocabulary) <= (on_the_cpu() ? 0.0 : 1e-5));
        }
        for (int i = 0; i < 3; i++) setun_session_destroy(sessions[i]);
    }
    free(want);
    setun_model_close(mlx);
}

/* A fallback is said once a device, and counted by explain. */
static int warnings;
static void keep(void *user, setun_log_level level, const char *message) {
    (void)user;
    warnings += level == SETUN_LOG_WARNING && strstr(message, "have no kernel of their own") != NULL;
}

static void fallbacks_are_said_and_counted(void **state) {
    (void)state;
    enum { WIDTH = 128, TALL = 24, GROUPS = 2 };
    setun_context *usual = context;
    setun_context_options co = {.size = sizeof co, .log = keep, .log_level = SETUN_LOG_WARNING};
    assert_int_equal(setun_context_create(&co, &context), SETUN_OK);
    setun_model *model = open_on("bitnet_packed", device());
    setun_explain_options e = {.size = sizeof e};
    char *text;
    assert_int_equal(setun_model_explain(model, &e, &text), SETUN_OK);
    if (!strstr(text, "fallbacks             0 operations without a kernel, 0 copies,")) fail_msg("%s", strstr(text, "fallbacks"));
    setun_free(text);
    setun_model_close(model);
    assert_int_equal(warnings, 0);
    int8_t codes[WIDTH * TALL];
    float scales[TALL * GROUPS], x[WIDTH], want[TALL];
    for (int i = 0; i < WIDTH * TALL; i++) codes[i] = (int8_t)(i * 7 % 3 - 1);
    for (int i = 0; i < TALL * GROUPS; i++) scales[i] = 0.25f + (float)i / 64.0f;
    for (int i = 0; i < WIDTH; i++) x[i] = (float)(i % 13 - 6);
    for (int turn = 0; turn < 3; turn++) { /* the CPU; the device, twice */
        setun_graph *g;
        setun_plan *plan;
        setun_tensor *in, *out;
        int64_t shape[2] = {SETUN_DIM_TOKENS, WIDTH}, one[2] = {1, WIDTH};
        assert_int_equal(setun_graph_create(context, &g), SETUN_OK);
        setun_node n = setun_graph_quantize(g, setun_graph_input(g, "x", SETUN_F32, 2, shape));
        n = setun_graph_linear(g, setun_graph_ternary_weight(g, "w", TALL, WIDTH, codes, scales, WIDTH / GROUPS), n, SETUN_NODE_NONE);
        if (setun_graph_output(g, n, "y") != SETUN_OK) fail_msg("%s", setun_error());
        setun_compile_options o = {.size = sizeof o, .device = turn ? device() : "cpu"};
        if (setun_graph_compile(g, &o, &plan) != SETUN_OK) fail_msg("%s", setun_error());
        setun_graph_destroy(g);
        assert_int_equal(setun_tensor_wrap(SETUN_F32, 2, one, x, &in), SETUN_OK);
        assert_int_equal(setun_plan_set_input(plan, "x", in), SETUN_OK);
        if (setun_plan_run(plan, 1, 1) != SETUN_OK) fail_msg("%s", setun_error());
        assert_int_equal(setun_plan_get_output(plan, "y", &out), SETUN_OK);
        if (!turn) memcpy(want, setun_tensor_data(out), sizeof want);
        else assert_true(relative_error(setun_tensor_data(out), want, TALL) < 1e-6);
        assert_int_equal(warnings, turn > 0); /* with the first such plan, and never again */
        setun_tensor_destroy(in);
        setun_tensor_destroy(out);
        setun_plan_destroy(plan);
    }
    setun_context_destroy(context);
    context = usual;
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(families_equal_the_cpu), cmocka_unit_test(short_activations_stay_near), cmocka_unit_test(f16_scales_itself), cmocka_unit_test(several_sequences_in_a_step), cmocka_unit_test(fallbacks_are_said_and_counted)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return failed;
}
