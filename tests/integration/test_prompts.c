/*
 * test_prompts.c - the large tiles of a prompt's linear steps give the bits of the small ones: plain, with bias and residual, gated, several
 * weights in one step; more rows and tokens than a tile holds, odd numbers of both; any number of threads; every instruction set.
 */
#include "backend/cpu/cpu.h"
#include "integration/support.h"

static uint32_t seed;
static float uniform(void) /* [-1, 1) */
{
    seed = seed * 1664525u + 1013904223u;
    return (float)((double)(seed >> 8) / 8388608.0 - 1.0);
}

typedef struct shape { int64_t width, hidden, wide; int tokens; } shape; /* wide: rows of the gated pair */
enum { WEIGHTS = 6 };

/* x -> two linears side by side (one with a bias) -> a gated pair -> a linear with a residual. The same numbers each time. */
static setun_plan *build(setun_context *context, const shape *s, setun_op activation)
{
    const int64_t rows[WEIGHTS] = {s->hidden, s->hidden + 5, s->wide, s->wide, s->hidden, 0}, columns[WEIGHTS] = {s->width, s->width, s->hidden, s->hidden, s->wide, 0};
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node w[WEIGHTS];
    seed = 4711;
    for (int i = 0; i < WEIGHTS - 1; i++) {
        int8_t *codes = malloc((size_t)(rows[i] * columns[i]));
        float *scales = malloc((size_t)rows[i] * sizeof *scales);
        for (int64_t n = 0; n < rows[i] * columns[i]; n++) codes[n] = (int8_t)(uniform() * 1.5f);
        for (int64_t n = 0; n < rows[i]; n++) scales[n] = 0.01f + fabsf(uniform());
        w[i] = setun_graph_ternary_weight(g, (const char *const[]){"q", "k", "gate", "up", "down"}[i], rows[i], columns[i], codes, scales, i % 2 ? 0 : -1);
        free(codes);
        free(scales);
    }
    float *bias = malloc((size_t)s->hidden * sizeof *bias);
    for (int64_t n = 0; n < s->hidden; n++) bias[n] = uniform();
    setun_node b = setun_graph_weight(g, "bias", 1, &s->hidden, bias);
    free(bias);
    setun_node x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, s->width});
    setun_node q = setun_graph_quantize(g, x), h = setun_graph_linear(g, w[0], q, b);
    EXPECT_OK(setun_graph_output(g, setun_graph_linear(g, w[1], q, SETUN_NODE_NONE), "k"));
    setun_node hq = setun_graph_quantize(g, h), gate = setun_graph_linear(g, w[2], hq, SETUN_NODE_NONE), up = setun_graph_linear(g, w[3], hq, SETUN_NODE_NONE);
    gate = activation == SETUN_OP_SILU ? setun_graph_silu(g, gate) : activation == SETUN_OP_RELU2 ? setun_graph_relu2(g, gate) : setun_graph_gelu(g, gate);
    setun_node m = setun_graph_quantize(g, setun_graph_multiply(g, gate, up));
    EXPECT_OK(setun_graph_output(g, setun_graph_add(g, setun_graph_scale(g, setun_graph_linear(g, w[4], m, SETUN_NODE_NONE), 0.5f), h), "y"));
    setun_compile_options o = {.size = sizeof o, .tokens_max = s->tokens, .outputs_max = 1};
    setun_plan *plan;
    EXPECT_OK(setun_graph_compile(g, &o, &plan));
    setun_graph_destroy(g);
    return plan;
}

/* Runs all tokens, `piece` at a time; k and y: [tokens, rows]. */
static void run(setun_plan *plan, const shape *s, int piece, const float *x, float *k, float *y)
{
    int64_t dims[2] = {s->tokens, s->width};
    setun_tensor *input;
    EXPECT_OK(setun_tensor_create(SETUN_F32, 2, dims, &input));
    EXPECT_OK(setun_plan_set_input(plan, "x", input));
    for (int first = 0; first < s->tokens; first += piece) {
        int count = s->tokens - first < piece ? s->tokens - first : piece;
        memcpy(setun_tensor_data(input), x + (size_t)first * (size_t)s->width, (size_t)count * (size_t)s->width * sizeof *x);
        EXPECT_OK(setun_plan_set_input(plan, "x", input));
        EXPECT_OK(setun_plan_run(plan, count, 1));
        setun_tensor *out;
        EXPECT_OK(setun_plan_get_output(plan, "k", &out));
        memcpy(k + (size_t)first * (size_t)(s->hidden + 5), setun_tensor_data(out), (size_t)count * (size_t)(s->hidden + 5) * sizeof *k);
        setun_tensor_destroy(out);
        EXPECT_OK(setun_plan_get_output(plan, "y", &out));
        memcpy(y + (size_t)first * (size_t)s->hidden, setun_tensor_data(out), (size_t)count * (size_t)s->hidden * sizeof *y);
        setun_tensor_destroy(out);
    }
    setun_tensor_destroy(input);
}

static void check(const shape *s, setun_op activation, const char *isa, int threads)
{
    setun_context *context = test_context(threads, isa);
    size_t ks = (size_t)s->tokens * (size_t)(s->hidden + 5), ys = (size_t)s->tokens * (size_t)s->hidden;
    float *x = malloc((size_t)s->tokens * (size_t)s->width * sizeof *x), *k[2] = {malloc(ks * 4), malloc(ks * 4)}, *y[2] = {malloc(ys * 4), malloc(ys * 4)};
    for (int way = 0; way < 2; way++) { /* small tiles: no plan of 8 tokens has large ones */
        shape part = *s;
        if (way == 0) part.tokens = 8;
        cpu_force_many(way == 0 ? 0 : CPU_MANY_LEAST);
        setun_plan *plan = build(context, &part, activation);
        cpu_force_many(0);
        char *text;
        EXPECT_OK(setun_plan_explain(plan, false, &text));
        assert_int_equal(strstr(text, "ternary_i8_many") != NULL, way);
        setun_free(text);
        seed = 99;
        for (size_t i = 0; i < (size_t)s->tokens * (size_t)s->width; i++) x[i] = uniform();
        shape whole = *s;
        if (way == 0) {
            for (int first = 0; first < s->tokens; first += 8) { /* a plan's input is as long as its longest run */
                whole.tokens = s->tokens - first < 8 ? s->tokens - first : 8;
                run(plan, &whole, 8, x + (size_t)first * (size_t)s->width, k[0] + (size_t)first * (size_t)(s->hidden + 5), y[0] + (size_t)first * (size_t)s->hidden);
            }
        } else {
            uint64_t before = setun_alloc_count();
            run(plan, &whole, s->tokens, x, k[1], y[1]);
            assert_true(setun_alloc_count() - before < 32); /* tensors of the test; none by tile */
        }
        setun_plan_destroy(plan);
    }
    for (size_t i = 0; i < ks; i++)
        if (memcmp(k[0] + i, k[1] + i, 4)) fail_msg("%s, %d threads: k[%zu][%zu] is %.9g in large tiles, %.9g in small ones", isa, threads, i / (size_t)(s->hidden + 5), i % (size_t)(s->hidden + 5), (double)k[1][i], (double)k[0][i]);
    for (size_t i = 0; i < ys; i++)
        if (memcmp(y[0] + i, y[1] + i, 4)) fail_msg("%s, %d threads: y[%zu][%zu] is %.9g in large tiles, %.9g in small ones", isa, threads, i / (size_t)s->hidden, i % (size_t)s->hidden, (double)y[1][i], (double)y[0][i]);
    free(x);
    for (int i = 0; i < 2; i++) {
        free(k[i]);
        free(y[i]);
    }
    setun_context_destroy(context);
}

static void large_tiles(void **state)
{
    (void)state;
    static const shape shapes[] = {{128, 96, 160, 16}, {131, 900, 257, 37}, {64, 1100, 200, 70}, {96, 64, 130, 1030}, {64, 64, 1024, 33}};
    static const setun_op activations[] = {SETUN_OP_SILU, SETUN_OP_RELU2, SETUN_OP_GELU};
    for (int i = 0; i < setun_isa_count(); i++) {
        if (!setun_isa_available(i)) continue;
        for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++) {
            if (i == 0 && n > 1) continue; /* ref is slow, and has no tiles of its own to get wrong */
            check(&shapes[n], activations[n % 3], setun_isa_name(i), n % 2 ? 3 : 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(large_tiles)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
