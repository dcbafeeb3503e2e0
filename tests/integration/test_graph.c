/*
 * test_graph.c - graphs of one's own through the public API, against the same arithmetic done by hand in double here.
 * Every kind of weight scale over int8 and f32 inputs, every operation, cached attention token by token, and the refusals.
 */
#include "integration/support.h"

static setun_context *context;

static int setup(void **state)
{
    (void)state;
    context = test_context(3, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    setun_context_destroy(context);
    return 0;
}

static uint32_t seed = 20240229;
static float uniform(void) /* [-1, 1) */
{
    seed = seed * 1664525u + 1013904223u;
    return (float)((double)(seed >> 8) / 8388608.0 - 1.0);
}

static setun_tensor *tensor(setun_dtype dtype, int rank, int64_t a, int64_t b, int64_t c)
{
    int64_t shape[3] = {a, b, c};
    setun_tensor *t;
    EXPECT_OK(setun_tensor_create(dtype, rank, shape, &t));
    if (dtype == SETUN_F32)
        for (size_t i = 0; i < setun_tensor_bytes(t) / 4; i++) ((float *)setun_tensor_data(t))[i] = uniform();
    return t;
}

static setun_plan *compile(setun_graph *graph, int tokens_max, int outputs_max, bool no_fusion)
{
    setun_compile_options o = {.size = sizeof o, .tokens_max = tokens_max, .outputs_max = outputs_max, .no_fusion = no_fusion, .kv_type = "f32"};
    setun_plan *plan;
    EXPECT_OK(setun_graph_compile(graph, &o, &plan));
    return plan;
}

static void expect_near(const float *got, const double *wanted, size_t count, double tolerance, const char *what)
{
    double size = 1e-30;
    for (size_t i = 0; i < count; i++) size = fmax(size, fabs(wanted[i]));
    for (size_t i = 0; i < count; i++)
        if (!(fabs(got[i] - wanted[i]) <= tolerance * size)) fail_msg("%s: element %zu is %.9g, expected %.9g", what, i, (double)got[i], wanted[i]);
}

/* y = W x (+ bias) for ternary weights of one scale kind over f32 or rounded x, tokens 1 .. 70. */
static void ternary_linear(int64_t rows, int64_t columns, int group, bool quantize, bool with_bias)
{
    enum { TOKENS = 70 };
    int64_t groups = group > 0 ? columns / group : 1, scale_count = group < 0 ? 1 : group == 0 ? rows : rows * groups;
    int8_t *codes = malloc((size_t)(rows * columns));
    float *scales = malloc((size_t)scale_count * sizeof *scales), *bias = malloc((size_t)rows * sizeof *bias);
    for (int64_t i = 0; i < rows * columns; i++) codes[i] = (int8_t)(uniform() * 1.5f);
    for (int64_t i = 0; i < scale_count; i++) scales[i] = 0.01f + fabsf(uniform());
    for (int64_t i = 0; i < rows; i++) bias[i] = uniform();

    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, columns});
    setun_node w = setun_graph_ternary_weight(g, "w", rows, columns, codes, scales, group);
    setun_node b = with_bias ? setun_graph_weight(g, "b", 1, &rows, bias) : SETUN_NODE_NONE;
    EXPECT_OK(setun_graph_output(g, setun_graph_linear(g, w, quantize ? setun_graph_quantize(g, x) : x, b), "y"));
    setun_plan *plan = compile(g, TOKENS, 1, false);
    setun_graph_destroy(g); /* plans live on */

    setun_tensor *input = tensor(SETUN_F32, 2, TOKENS, columns, 1);
    const float *values = setun_tensor_data(input);
    double *wanted = malloc((size_t)(TOKENS * rows) * sizeof *wanted);
    for (int t = 0; t < TOKENS; t++) {
        double most = 1e-5;
        for (int64_t k = 0; k < columns; k++) most = fmax(most, fabs((double)values[t * columns + k]));
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t k = 0; k < columns; k++) {
                double v = values[t * columns + k];
                if (quantize) v = rintf(values[t * columns + k] * (127.0f / (float)most)) * (most / 127.0);
                double s = group < 0 ? scales[0] : group == 0 ? scales[r] : scales[r * groups + k / group];
                sum += s * codes[r * columns + k] * v;
            }
            wanted[t * rows + r] = sum + (with_bias ? bias[r] : 0.0f);
        }
    }
    EXPECT_OK(setun_plan_set_input(plan, "x", input));
    const int runs[] = {1, 2, 17, TOKENS};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        uint64_t before = setun_alloc_count();
        EXPECT_OK(setun_plan_run(plan, runs[i], 1));
        assert_int_equal(setun_alloc_count(), before);
        setun_tensor *y;
        EXPECT_OK(setun_plan_get_output(plan, "y", &y));
        assert_int_equal(setun_tensor_dim(y, 0), runs[i]);
        char what[128];
        snprintf(what, sizeof what, "[%lld, %lld] group %d %s %d tokens", (long long)rows, (long long)columns, group, quantize ? "int8" : "f32", runs[i]);
        expect_near(setun_tensor_data(y), wanted, (size_t)(runs[i] * rows), 2e-6, what);
        setun_tensor_destroy(y);
    }
    setun_tensor_destroy(input);
    setun_plan_destroy(plan);
    free(codes);
    free(scales);
    free(bias);
    free(wanted);
}

static void ternary_linears(void **state)
{
    (void)state;
    const int64_t shapes[][2] = {{1, 1}, {5, 40}, {48, 128}, {130, 576}, {33, 8640}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int q = 0; q < 2; q++) {
            ternary_linear(shapes[i][0], shapes[i][1], -1, q, true);
            ternary_linear(shapes[i][0], shapes[i][1], 0, q, false);
        }
    const int groups[] = {32, 64, 128, 256};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
        for (int q = 0; q < 2; q++) {
            ternary_linear(70, 3 * groups[i], groups[i], q, false);
            ternary_linear(9, 1024, groups[i], q, true);
        }
}

/* Everything elementwise and rowwise in one graph, fused and not. */
static void operations(void **state)
{
    (void)state;
    enum { T = 5, WIDTH = 64, OUTPUTS = 3 };
    float norm[WIDTH];
    for (int i = 0; i < WIDTH; i++) norm[i] = 1.0f + 0.1f * uniform();
    setun_tensor *input = tensor(SETUN_F32, 2, T, WIDTH, 1), *rows = tensor(SETUN_I32, 1, OUTPUTS, 1, 1);
    int32_t *row = setun_tensor_data(rows);
    row[0] = 4, row[1] = 0, row[2] = 4;
    const float *x = setun_tensor_data(input);
    double wanted[OUTPUTS * WIDTH], soft[T * WIDTH];
    for (int t = 0; t < T; t++) {
        double square = 0, v[WIDTH], top = -1e9, sum = 0;
        for (int i = 0; i < WIDTH; i++) square += (double)x[t * WIDTH + i] * x[t * WIDTH + i];
        double r = 1 / sqrt(square / WIDTH + 1e-5);
        for (int i = 0; i < WIDTH; i++) {
            double n = x[t * WIDTH + i] * r * norm[i];
            double silu = n / (1 + exp(-n)), relu2 = n > 0 ? n * n : 0, gelu = 0.5 * n * (1 + tanh(sqrt(2 / M_PI) * (n + 0.044715 * n * n * n)));
            v[i] = (silu * relu2 + gelu) * 0.75 + x[t * WIDTH + i];
            top = fmax(top, v[i]);
        }
        for (int i = 0; i < WIDTH; i++) sum += exp(v[i] - top);
        for (int i = 0; i < WIDTH; i++) soft[t * WIDTH + i] = exp(v[i] - top) / sum;
    }
    for (int o = 0; o < OUTPUTS; o++) {
        double square = 0;
        for (int i = 0; i < WIDTH; i++) square += soft[row[o] * WIDTH + i] * soft[row[o] * WIDTH + i];
        for (int i = 0; i < WIDTH; i++) wanted[o * WIDTH + i] = soft[row[o] * WIDTH + i] / sqrt(square);
    }
    for (int fusion = 0; fusion < 2; fusion++) {
        setun_graph *g;
        EXPECT_OK(setun_graph_create(context, &g));
        setun_node in = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, WIDTH});
        setun_node outputs = setun_graph_input(g, "rows", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_OUTPUTS});
        setun_node n = setun_graph_rms_norm(g, in, setun_graph_weight(g, "norm", 1, (const int64_t[]){WIDTH}, norm), 1e-5f, false);
        setun_node v = setun_graph_add(g, setun_graph_multiply(g, setun_graph_silu(g, n), setun_graph_relu2(g, n)), setun_graph_gelu(g, n));
        v = setun_graph_add(g, setun_graph_scale(g, v, 0.75f), in);
        setun_node y = setun_graph_l2_normalize(g, setun_graph_select_rows(g, setun_graph_softmax(g, v), outputs));
        EXPECT_OK(setun_graph_output(g, y, "y"));
        setun_plan *plan = compile(g, T, OUTPUTS, !fusion);
        setun_graph_destroy(g);
        EXPECT_OK(setun_plan_set_input(plan, "x", input));
        EXPECT_OK(setun_plan_set_input(plan, "rows", rows));
        EXPECT_OK(setun_plan_run(plan, T, OUTPUTS));
        setun_tensor *out;
        EXPECT_OK(setun_plan_get_output(plan, "y", &out));
        expect_near(setun_tensor_data(out), wanted, OUTPUTS * WIDTH, 2e-6, "operations");
        setun_tensor_destroy(out);
        char *text;
        EXPECT_OK(setun_plan_explain(plan, false, &text));
        assert_non_null(strstr(text, "softmax"));
        setun_free(text);
        setun_plan_destroy(plan);
    }
    setun_tensor_destroy(input);
    setun_tensor_destroy(rows);
}

static void hadamard(void **state)
{
    (void)state;
    enum { WIDTH = 96, BLOCK = 32 };
    float signs[WIDTH];
    for (int i = 0; i < WIDTH; i++) signs[i] = uniform() < 0 ? -1.0f : 1.0f;
    setun_tensor *input = tensor(SETUN_F32, 2, 3, WIDTH, 1);
    const float *x = setun_tensor_data(input);
    double wanted[3 * WIDTH], same[3 * WIDTH];
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < WIDTH; i++) {
            double sum = 0;
            for (int j = 0; j < BLOCK; j++) {
                int k = i / BLOCK * BLOCK + j;
                sum += (__builtin_popcount((unsigned)(i % BLOCK & j)) & 1 ? -1.0 : 1.0) * signs[k] * x[t * WIDTH + k];
            }
            wanted[t * WIDTH + i] = sum / sqrt(BLOCK);
            same[t * WIDTH + i] = x[t * WIDTH + i];
        }
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node in = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, WIDTH});
    setun_node y = setun_graph_hadamard(g, in, BLOCK, signs, WIDTH, false);
    EXPECT_OK(setun_graph_output(g, y, "y"));
    EXPECT_OK(setun_graph_output(g, setun_graph_hadamard(g, y, BLOCK, signs, WIDTH, true), "back"));
    setun_plan *plan = compile(g, 3, 1, false);
    setun_graph_destroy(g);
    EXPECT_OK(setun_plan_set_input(plan, "x", input));
    EXPECT_OK(setun_plan_run(plan, 3, 1));
    setun_tensor *out;
    EXPECT_OK(setun_plan_get_output(plan, "y", &out));
    expect_near(setun_tensor_data(out), wanted, 3 * WIDTH, 1e-6, "hadamard");
    setun_tensor_destroy(out);
    EXPECT_OK(setun_plan_get_output(plan, "back", &out));
    expect_near(setun_tensor_data(out), same, 3 * WIDTH, 1e-6, "hadamard back");
    setun_tensor_destroy(out);
    setun_plan_destroy(plan);
    setun_tensor_destroy(input);
}

/* ---- attention ---- */

enum { HEADS = 6, KV = 2, D = 20, ROTARY = 12, LENGTH = 150, WINDOW = 70 };

static void rotate(double *v, int position, bool interleaved, double theta, const float *factors, double scale, double magnitude)
{
    for (int i = 0; i < ROTARY / 2; i++) {
        double angle = position * scale * pow(theta, -2.0 * i / ROTARY) / factors[i];
        int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + ROTARY / 2;
        double x = v[a], y = v[b], c = cos(angle) * magnitude, s = sin(angle) * magnitude;
        v[a] = x * c - y * s;
        v[b] = y * c + x * s;
    }
}

static void attention(bool cached, bool interleaved, int window, bool no_fusion)
{
    float factors[ROTARY / 2], q_norm[D];
    for (int i = 0; i < ROTARY / 2; i++) factors[i] = 1.0f + 0.3f * (float)i;
    for (int i = 0; i < D; i++) q_norm[i] = 1.0f + 0.2f * uniform();
    setun_tensor *q = tensor(SETUN_F32, 3, LENGTH, HEADS, D), *k = tensor(SETUN_F32, 3, LENGTH, KV, D), *v = tensor(SETUN_F32, 3, LENGTH, KV, D), *positions = tensor(SETUN_I32, 1, LENGTH, 1, 1);
    for (int i = 0; i < LENGTH; i++) ((int32_t *)setun_tensor_data(positions))[i] = i;
    double (*queries)[HEADS][D] = malloc(LENGTH * sizeof *queries), (*keys)[KV][D] = malloc(LENGTH * sizeof *keys), *wanted = calloc((size_t)LENGTH * HEADS * D, sizeof *wanted);
    for (int t = 0; t < LENGTH; t++) {
        for (int h = 0; h < HEADS; h++) {
            const float *from = (const float *)setun_tensor_data(q) + ((size_t)t * HEADS + (size_t)h) * D;
            double square = 0;
            for (int i = 0; i < D; i++) square += (double)from[i] * from[i];
            for (int i = 0; i < D; i++) queries[t][h][i] = from[i] / sqrt(square / D + 1e-6) * q_norm[i];
            rotate(queries[t][h], t, interleaved, 1000.0, factors, 0.5, 1.1);
        }
        for (int h = 0; h < KV; h++) {
            for (int i = 0; i < D; i++) keys[t][h][i] = ((const float *)setun_tensor_data(k))[((size_t)t * KV + (size_t)h) * D + (size_t)i];
            rotate(keys[t][h], t, interleaved, 1000.0, factors, 0.5, 1.1);
        }
    }
    for (int t = 0; t < LENGTH; t++)
        for (int h = 0; h < HEADS; h++) {
            int kv = h / (HEADS / KV), low = window && t - window + 1 > 0 ? t - window + 1 : 0;
            double p[LENGTH], sum = 0;
            for (int j = low; j <= t; j++) {
                double dot = 0;
                for (int i = 0; i < D; i++) dot += queries[t][h][i] * keys[j][kv][i];
                sum += p[j] = exp(dot * 0.3);
            }
            for (int j = low; j <= t; j++)
                for (int i = 0; i < D; i++) wanted[((size_t)t * HEADS + (size_t)h) * D + (size_t)i] += p[j] / sum * ((const float *)setun_tensor_data(v))[((size_t)j * KV + (size_t)kv) * D + (size_t)i];
        }
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node qi = setun_graph_input(g, "q", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, HEADS, D}), ki = setun_graph_input(g, "k", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, KV, D});
    setun_node vi = setun_graph_input(g, "v", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, KV, D}), pi = setun_graph_input(g, "positions", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_TOKENS});
    setun_rope_options rope = {.size = sizeof rope, .theta = 1000.0f, .rotary = ROTARY, .interleaved = interleaved, .frequency_factors = factors, .scale = 0.5f, .magnitude = 1.1f};
    setun_attention_options how = {.size = sizeof how, .scale = 0.3f, .window = window, .cache_layer = cached ? 1 : 0};
    setun_node normed = setun_graph_rms_norm(g, qi, setun_graph_weight(g, "q_norm", 1, (const int64_t[]){D}, q_norm), 1e-6f, false);
    setun_node y = setun_graph_attention(g, setun_graph_rope(g, normed, pi, &rope), setun_graph_rope(g, ki, pi, &rope), vi, &how);
    EXPECT_OK(setun_graph_output(g, y, "y"));
    setun_compile_options o = {.size = sizeof o, .tokens_max = LENGTH, .no_fusion = no_fusion, .kv_type = "f32"};
    setun_plan *plan;
    EXPECT_OK(setun_graph_compile(g, &o, &plan));
    setun_graph_destroy(g);
    /* whole, or in pieces through the cache */
    const int whole[] = {LENGTH, 0}, pieces[] = {1, 40, 1, 1, 2, 63, 42, 0};
    const int *run = cached ? pieces : whole;
    for (int done = 0; *run; done += *run++) {
        setun_tensor *part;
        setun_tensor *const all[] = {q, k, v};
        const char *const names[] = {"q", "k", "v"};
        for (int i = 0; i < 3; i++) {
            int64_t heads = setun_tensor_dim(all[i], 1);
            EXPECT_OK(setun_tensor_wrap(SETUN_F32, 3, (const int64_t[]){*run, heads, D}, (float *)setun_tensor_data(all[i]) + (size_t)done * (size_t)heads * D, &part));
            EXPECT_OK(setun_plan_set_input(plan, names[i], part));
            setun_tensor_destroy(part);
        }
        EXPECT_OK(setun_tensor_wrap(SETUN_I32, 1, (const int64_t[]){*run}, (int32_t *)setun_tensor_data(positions) + done, &part));
        EXPECT_OK(setun_plan_set_input(plan, "positions", part));
        setun_tensor_destroy(part);
        EXPECT_OK(setun_plan_run(plan, *run, 1));
        setun_tensor *out;
        EXPECT_OK(setun_plan_get_output(plan, "y", &out));
        expect_near(setun_tensor_data(out), wanted + (size_t)done * HEADS * D, (size_t)*run * HEADS * D, 3e-6, cached ? "cached attention" : "attention");
        setun_tensor_destroy(out);
    }
    if (cached) {
        assert_int_equal(setun_plan_run(plan, 1, 1), SETUN_ERROR_CONTEXT);
        EXPECT_OK(setun_plan_rewind(plan, LENGTH - 1));
        EXPECT_OK(setun_plan_run(plan, 1, 1));
        assert_int_equal(setun_plan_rewind(plan, LENGTH + 1), SETUN_ERROR_ARGUMENT);
    } else assert_int_equal(setun_plan_rewind(plan, 0), SETUN_ERROR_STATE);
    setun_plan_destroy(plan);
    setun_tensor_destroy(q);
    setun_tensor_destroy(k);
    setun_tensor_destroy(v);
    setun_tensor_destroy(positions);
    free(queries);
    free(keys);
    free(wanted);
}

static void attentions(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) attention(i & 1, i & 2, i & 4 ? WINDOW : 0, i & 8);
}

/* ---- refusals ---- */

static void refusals(void **state)
{
    (void)state;
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    float table[4 * 8];
    for (int i = 0; i < 32; i++) table[i] = (float)i;
    setun_node ids = setun_graph_input(g, "ids", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_TOKENS});
    EXPECT_OK(setun_graph_output(g, setun_graph_embedding(g, setun_graph_weight(g, "table", 2, (const int64_t[]){4, 8}, table), ids), "y"));
    setun_plan *plan = compile(g, 6, 1, false);
    setun_graph_destroy(g);
    setun_tensor *input = tensor(SETUN_I32, 1, 6, 1, 1), *large = tensor(SETUN_I32, 1, 7, 1, 1), *wrong = tensor(SETUN_F32, 1, 6, 1, 1), *short_one = tensor(SETUN_I32, 1, 2, 1, 1), *out;
    int32_t *values = setun_tensor_data(input);
    for (int i = 0; i < 6; i++) values[i] = i % 4;
    assert_int_equal(setun_plan_run(plan, 1, 1), SETUN_ERROR_STATE); /* nothing bound */
    assert_int_equal(setun_plan_get_output(plan, "y", &out), SETUN_ERROR_STATE);
    assert_int_equal(setun_plan_set_input(plan, "nothing", input), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_set_input(plan, "ids", large), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_set_input(plan, "ids", wrong), SETUN_ERROR_ARGUMENT);
    EXPECT_OK(setun_plan_set_input(plan, "ids", short_one));
    assert_int_equal(setun_plan_run(plan, 3, 1), SETUN_ERROR_STATE); /* two rows bound */
    EXPECT_OK(setun_plan_set_input(plan, "ids", input));
    assert_int_equal(setun_plan_run(plan, 0, 1), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_run(plan, 7, 1), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_run(plan, 1, 2), SETUN_ERROR_ARGUMENT);
    EXPECT_OK(setun_plan_run(plan, 6, 1));
    EXPECT_OK(setun_plan_get_output(plan, "y", &out));
    for (int i = 0; i < 6 * 8; i++) assert_true(((const float *)setun_tensor_data(out))[i] == table[values[i / 8] * 8 + i % 8]);
    setun_tensor_destroy(out);
    values[5] = 4; /* one past the table */
    EXPECT_OK(setun_plan_set_input(plan, "ids", input));
    assert_int_equal(setun_plan_run(plan, 6, 1), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "token id 4 at index 5"));
    values[5] = INT32_MIN;
    EXPECT_OK(setun_plan_set_input(plan, "ids", input));
    assert_int_equal(setun_plan_run(plan, 6, 1), SETUN_ERROR_ARGUMENT);
    EXPECT_OK(setun_plan_run(plan, 5, 1)); /* the bad one is beyond */
    setun_plan_destroy(plan);
    setun_plan_destroy(NULL);
    setun_tensor_destroy(input);
    setun_tensor_destroy(large);
    setun_tensor_destroy(wrong);
    setun_tensor_destroy(short_one);

    /* int8 activations over dense weights have no kernel: said when compiling */
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, 8});
    setun_node y = setun_graph_linear(g, setun_graph_weight(g, "dense", 2, (const int64_t[]){4, 8}, table), setun_graph_quantize(g, x), SETUN_NODE_NONE);
    (void)setun_graph_output(g, y, "y");
    setun_status status = setun_graph_compile(g, NULL, &plan);
    assert_true(status != SETUN_OK);
    assert_null(plan);
    setun_graph_destroy(g);
    setun_compile_options o = {.size = sizeof o, .device = "abacus"};
    EXPECT_OK(setun_graph_create(context, &g));
    x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, 8});
    EXPECT_OK(setun_graph_output(g, setun_graph_silu(g, x), "y"));
    assert_int_equal(setun_graph_compile(g, &o, &plan), SETUN_ERROR_UNSUPPORTED);
    setun_graph_destroy(g);
}

/* NaN and infinity in the inputs: results are what they are, and nothing breaks. */
static void not_numbers(void **state)
{
    (void)state;
    enum { WIDTH = 256 };
    int8_t codes[16 * WIDTH];
    for (int i = 0; i < 16 * WIDTH; i++) codes[i] = (int8_t)(i % 3 - 1);
    float scale = 0.5f;
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, WIDTH});
    setun_node w = setun_graph_ternary_weight(g, "w", 16, WIDTH, codes, &scale, -1);
    setun_node y = setun_graph_linear(g, w, setun_graph_quantize(g, setun_graph_rms_norm(g, x, SETUN_NODE_NONE, 1e-5f, false)), SETUN_NODE_NONE);
    setun_node heads = setun_graph_reshape(g, y, 3, (const int64_t[]){SETUN_DIM_TOKENS, 2, 8});
    setun_attention_options how = {.size = sizeof how, .cache_layer = 1};
    EXPECT_OK(setun_graph_output(g, setun_graph_softmax(g, setun_graph_attention(g, heads, heads, heads, &how)), "y"));
    setun_plan *plan = compile(g, 4, 1, false);
    setun_graph_destroy(g);
    setun_tensor *input = tensor(SETUN_F32, 2, 4, WIDTH, 1), *out;
    float *values = setun_tensor_data(input);
    values[3] = NAN;
    values[WIDTH + 7] = INFINITY;
    values[2 * WIDTH] = -INFINITY;
    for (int i = 0; i < WIDTH; i++) values[3 * WIDTH + i] = 0.0f;
    EXPECT_OK(setun_plan_set_input(plan, "x", input));
    EXPECT_OK(setun_plan_run(plan, 4, 1));
    EXPECT_OK(setun_plan_get_output(plan, "y", &out));
    setun_tensor_destroy(out);
    setun_tensor_destroy(input);
    setun_plan_destroy(plan);
}

int main(void)
{
    print_message("seed %u\n", seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(ternary_linears), cmocka_unit_test(operations), cmocka_unit_test(hadamard), cmocka_unit_test(attentions), cmocka_unit_test(refusals), cmocka_unit_test(not_numbers)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
