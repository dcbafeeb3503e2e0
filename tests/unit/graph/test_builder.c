/* test_builder.c - every operation's shape, every refusal with its message, verify against broken nodes, storage, allocation failures. */
#include "unit/graph/model_test.h"
#include <math.h>
#include <setjmp.h>
#include <cmocka.h>

static struct setun_context context;
static const int64_t T = SETUN_DIM_TOKENS, O = SETUN_DIM_OUTPUTS;
#define S(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}
#define NONE SETUN_NODE_NONE

typedef struct world { /* a graph with one of each thing */
    setun_graph *g;
    setun_node ids, rows, x, y, heads, kv, q8, matrix, ternary, vector, odd;
} world;

static float values[64 * 128];
static int8_t codes[64 * 128];

static world world_create(void) {
    world w;
    for (int i = 0; i < 64 * 128; i++) {
        values[i] = (float)(i % 7) - 2.5f;
        codes[i] = (int8_t)(i % 3 - 1);
    }
    assert_int_equal(setun_graph_create(&context, &w.g), SETUN_OK);
    w.ids = setun_graph_input(w.g, "ids", SETUN_I32, S(T));
    w.rows = setun_graph_input(w.g, "rows", SETUN_I32, S(O));
    w.x = setun_graph_input(w.g, "x", SETUN_F32, S(T, 128));
    w.y = setun_graph_input(w.g, "y", SETUN_F32, S(T, 64));
    w.heads = setun_graph_reshape(w.g, w.x, S(T, 4, 32));
    w.kv = setun_graph_reshape(w.g, w.y, S(T, 2, 32));
    w.q8 = setun_graph_quantize(w.g, w.x);
    w.matrix = setun_graph_weight(w.g, "matrix", S(64, 128), values);
    float scale = 0.5f;
    w.ternary = setun_graph_ternary_weight(w.g, "ternary", 64, 128, codes, &scale, -1);
    w.vector = setun_graph_weight(w.g, "vector", S(128), values);
    w.odd = setun_graph_weight(w.g, "odd", S(64), values);
    assert_string_equal(w.g->error_message, "");
    return w;
}

static void expect(const world *w, setun_node node, setun_dtype dtype, int rank, const int64_t *shape) {
    if (node == NONE) fail_msg("%s", w->g->error_message);
    const setun_graph_node *n = &w->g->nodes[node];
    assert_int_equal(n->dtype, dtype);
    assert_int_equal(n->shape.rank, rank);
    for (int i = 0; i < rank; i++) assert_int_equal(n->shape.dim[i], shape[i]);
}

static void shapes_are_inferred(void **state) {
    (void)state;
    world w = world_create();
    expect(&w, w.q8, SETUN_Q8, S(T, 128));
    expect(&w, w.matrix, SETUN_F32, S(64, 128));
    expect(&w, setun_graph_embedding(w.g, w.matrix, w.ids), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_embedding(w.g, w.ternary, w.rows), SETUN_F32, S(O, 128));
    expect(&w, setun_graph_rms_norm(w.g, w.x, w.vector, 1e-5f, false), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_rms_norm(w.g, w.heads, NONE, 0, true), SETUN_F32, S(T, 4, 32));
    expect(&w, setun_graph_linear(w.g, w.matrix, w.x, NONE), SETUN_F32, S(T, 64));
    expect(&w, setun_graph_linear(w.g, w.ternary, w.q8, w.odd), SETUN_F32, S(T, 64));
    expect(&w, setun_graph_linear(w.g, w.ternary, w.x, w.odd), SETUN_F32, S(T, 64));
    expect(&w, setun_graph_add(w.g, w.x, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_multiply(w.g, w.heads, w.heads), SETUN_F32, S(T, 4, 32));
    expect(&w, setun_graph_scale(w.g, w.x, -2), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_silu(w.g, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_relu2(w.g, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_gelu(w.g, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_softmax(w.g, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_l2_normalize(w.g, w.x), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_select_rows(w.g, w.x, w.rows), SETUN_F32, S(O, 128));
    expect(&w, setun_graph_select_rows(w.g, w.heads, w.rows), SETUN_F32, S(O, 4, 32));
    expect(&w, setun_graph_hadamard(w.g, w.x, 32, values + 1, 0, true), SETUN_F32, S(T, 128));
    expect(&w, setun_graph_rope(w.g, w.heads, w.ids, NULL), SETUN_F32, S(T, 4, 32));
    expect(&w, setun_graph_attention(w.g, w.heads, w.kv, w.kv, NULL), SETUN_F32, S(T, 128));
    const setun_graph_node *rope = &w.g->nodes[w.g->node_count - 2], *attention = rope + 1;
    assert_int_equal(rope->rope.rotary, 32); /* defaults are resolved */
    assert_true(rope->rope.theta == 10000 && rope->rope.scale == 1 && rope->rope.magnitude == 1);
    assert_true(attention->attention.scale == (float)(1 / sqrt(32.0)));
    assert_int_equal(setun_graph_output(w.g, w.g->node_count - 1, "out"), SETUN_OK);
    assert_int_equal(setun_graph_verify(w.g), SETUN_OK);
    setun_graph_destroy(w.g);
}

/* Each refusal: what is called, and words of the message: the operation and the shapes or values. */
typedef struct refusal { setun_node (*call)(world *w); const char *words[3]; } refusal;
#define R(name, expression) static setun_node name(world *w) { setun_graph *g = w->g; (void)g; return expression; }
R(add_shapes, setun_graph_add(g, w->x, w->y))
R(add_weight, setun_graph_add(g, w->x, w->vector))
R(add_q8, setun_graph_add(g, w->q8, w->q8))
R(add_ids, setun_graph_add(g, w->ids, w->ids))
R(add_none, setun_graph_add(g, w->x, NONE))
R(add_far, setun_graph_add(g, 12345, w->x))
R(norm_width, setun_graph_rms_norm(g, w->x, w->odd, 1e-5f, false))
R(norm_nan, setun_graph_rms_norm(g, w->x, NONE, NAN, false))
R(norm_negative, setun_graph_rms_norm(g, w->x, NONE, -1e-5f, false))
R(norm_value, setun_graph_rms_norm(g, w->x, w->x, 1e-5f, false))
R(norm_matrix, setun_graph_rms_norm(g, w->x, w->matrix, 1e-5f, false))
R(quantize_twice, setun_graph_quantize(g, w->q8))
R(linear_width, setun_graph_linear(g, w->matrix, w->y, NONE))
R(linear_dense_q8, setun_graph_linear(g, w->matrix, w->q8, NONE))
R(linear_value, setun_graph_linear(g, w->x, w->x, NONE))
R(linear_bias, setun_graph_linear(g, w->matrix, w->x, w->vector))
R(linear_ids, setun_graph_linear(g, w->matrix, w->ids, NONE))
R(embedding_ids, setun_graph_embedding(g, w->matrix, w->x))
R(embedding_value, setun_graph_embedding(g, w->x, w->ids))
R(scale_nan, setun_graph_scale(g, w->x, NAN))
R(scale_infinite, setun_graph_scale(g, w->x, INFINITY))
R(reshape_count, setun_graph_reshape(g, w->x, S(T, 4, 31)))
R(reshape_symbol, setun_graph_reshape(g, w->x, S(O, 128)))
R(reshape_late_symbol, setun_graph_reshape(g, w->x, S(128, T)))
R(reshape_zero, setun_graph_reshape(g, w->x, S(T, 0)))
R(reshape_rank, setun_graph_reshape(g, w->x, 5, (int64_t[5]){T, 2, 2, 2, 16}))
R(reshape_null, setun_graph_reshape(g, w->x, 2, NULL))
R(reshape_q8, setun_graph_reshape(g, w->q8, S(T, 4, 32)))
R(select_rank, setun_graph_select_rows(g, w->x, w->x))
R(select_vector, setun_graph_select_rows(g, setun_graph_input(g, "flat", SETUN_F32, S(9)), w->rows))
R(hadamard_block, setun_graph_hadamard(g, w->x, 48, NULL, 0, false))
R(hadamard_width, setun_graph_hadamard(g, w->x, 256, NULL, 0, false))
R(hadamard_signs, setun_graph_hadamard(g, w->x, 64, values, 64, false))
R(hadamard_value, setun_graph_hadamard(g, w->x, 64, values, 128, false))
R(hadamard_null, setun_graph_hadamard(g, w->x, 64, NULL, 128, false))
R(rope_rank, setun_graph_rope(g, w->x, w->ids, NULL))
R(rope_positions, setun_graph_rope(g, w->heads, w->rows, NULL))
R(rope_rotary, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .rotary = 34})))
R(rope_odd, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .rotary = 15})))
R(rope_theta, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .theta = -1})))
R(rope_nan, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .scale = NAN})))
R(rope_factors, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .frequency_factors = values})))
R(rope_factors_far, setun_graph_rope(g, w->heads, w->ids, (&(setun_rope_options){.size = sizeof(setun_rope_options), .frequency_factors = values, .rotary = 1 << 30})))
R(attention_rank, setun_graph_attention(g, w->x, w->kv, w->kv, NULL))
R(attention_heads, setun_graph_attention(g, w->kv, w->heads, w->heads, NULL))
R(attention_kv, setun_graph_attention(g, w->heads, w->kv, w->heads, NULL))
R(attention_scale, setun_graph_attention(g, w->heads, w->kv, w->kv, (&(setun_attention_options){.size = sizeof(setun_attention_options), .scale = NAN})))
R(attention_window, setun_graph_attention(g, w->heads, w->kv, w->kv, (&(setun_attention_options){.size = sizeof(setun_attention_options), .window = -1})))
R(attention_layer, setun_graph_attention(g, w->heads, w->kv, w->kv, (&(setun_attention_options){.size = sizeof(setun_attention_options), .cache_layer = 1 << 20})))
static setun_node attention_fixed(world *w) {
    setun_node x = setun_graph_input(w->g, "fixed", SETUN_F32, S(8, 2, 32));
    return setun_graph_attention(w->g, x, x, x, NULL);
}
R(input_name, setun_graph_input(g, "", SETUN_F32, S(T, 4)))
R(input_null, setun_graph_input(g, NULL, SETUN_F32, S(T, 4)))
R(input_twice, setun_graph_input(g, "x", SETUN_F32, S(T, 4)))
R(input_long, setun_graph_input(g, "a name of sixty-four bytes, which is one more than a node can keep.", SETUN_F32, S(T, 4)))
R(input_dtype, setun_graph_input(g, "f16", SETUN_F16, S(T, 4)))
R(input_flat, setun_graph_input(g, "flat", SETUN_F32, S(T)))
R(input_negative, setun_graph_input(g, "negative", SETUN_F32, S(T, -3)))
R(input_huge, setun_graph_input(g, "huge", SETUN_F32, S(INT64_MAX, INT64_MAX)))
R(weight_null, setun_graph_weight(g, "w", S(4), NULL))
R(weight_symbol, setun_graph_weight(g, "w", S(T, 4), values))
R(weight_rank, setun_graph_weight(g, "w", 0, NULL, values))
R(weight_nan, setun_graph_weight(g, "w", S(2, 2), ((float[4]){0, 1, NAN, 2})))
R(weight_infinite, setun_graph_weight(g, "w", S(2), ((float[2]){0, -INFINITY})))
R(ternary_code, setun_graph_ternary_weight(g, "w", 2, 2, ((int8_t[4]){0, 1, 2, 1}), values, -1))
R(ternary_scale, setun_graph_ternary_weight(g, "w", 2, 2, codes, ((float[2]){1, NAN}), 0))
R(ternary_group, setun_graph_ternary_weight(g, "w", 2, 64, codes, values, 16))
R(ternary_group_negative, setun_graph_ternary_weight(g, "w", 2, 64, codes, values, -2))
R(ternary_group_odd, setun_graph_ternary_weight(g, "w", 2, 65, codes, values, 64))
R(ternary_rows, setun_graph_ternary_weight(g, "w", 0, 64, codes, values, -1))
R(ternary_huge, setun_graph_ternary_weight(g, "w", INT64_MAX, 64, codes, values, -1))
R(ternary_null, setun_graph_ternary_weight(g, "w", 2, 64, codes, NULL, -1))
R(model_null, setun_graph_model_weight(g, NULL, "w"))
R(add_weight_null, setun_graph_add_weight(g, NULL, NULL))

static const refusal refusals[] = {
    {add_shapes, {"add: ", "[T, 128]", "[T, 64]"}}, {add_weight, {"add: ", "'vector'", "[128]"}}, {add_q8, {"add: ", "q8", "f32"}}, {add_ids, {"add: ", "i32", "[T]"}},
    {add_none, {"add: ", "node -1"}}, {add_far, {"add: ", "node 12345"}}, {norm_width, {"rms_norm: ", "'odd'", "[128]"}}, {norm_nan, {"rms_norm: ", "epsilon"}},
    {norm_negative, {"rms_norm: ", "epsilon -1e-05"}}, {norm_value, {"rms_norm: ", "must be a weight"}}, {norm_matrix, {"rms_norm: ", "[64, 128]", "[128]"}}, {quantize_twice, {"quantize: ", "q8"}},
    {linear_width, {"linear: ", "[64, 128]", "[T, 64]"}}, {linear_dense_q8, {"linear: ", "'matrix'", "not ternary"}}, {linear_value, {"linear: ", "must be a weight"}},
    {linear_bias, {"linear: ", "bias 'vector'", "[64]"}}, {linear_ids, {"linear: ", "i32"}}, {embedding_ids, {"embedding: ", "[T, 128]", "i32"}}, {embedding_value, {"embedding: ", "weight"}},
    {scale_nan, {"scale: ", "finite"}}, {scale_infinite, {"scale: ", "finite"}}, {reshape_count, {"reshape: ", "[T, 128]", "[T, 4, 31]"}}, {reshape_symbol, {"reshape: ", "[O, 128]"}},
    {reshape_late_symbol, {"reshape: ", "[128, T]"}}, {reshape_zero, {"reshape: ", "[T, 0]"}}, {reshape_rank, {"reshape: ", "rank 5"}}, {reshape_null, {"reshape: ", "no shape"}}, {reshape_q8, {"reshape: ", "q8"}},
    {select_rank, {"select_rows: ", "i32"}}, {select_vector, {"select_rows: ", "[9]", "[O]"}}, {hadamard_block, {"hadamard: ", "48"}}, {hadamard_width, {"hadamard: ", "256", "[T, 128]"}},
    {hadamard_signs, {"hadamard: ", "64 signs"}}, {hadamard_value, {"hadamard: ", "sign 0 is -2.5"}}, {hadamard_null, {"hadamard: ", "128 signs"}}, {rope_rank, {"rope: ", "[T, 128]"}}, {rope_positions, {"rope: ", "[O]"}},
    {rope_rotary, {"rope: ", "34"}}, {rope_odd, {"rope: ", "15"}}, {rope_theta, {"rope: ", "theta -1"}}, {rope_nan, {"rope: ", "nan"}}, {rope_factors, {"rope: ", "factor 0 is -2.5"}}, {rope_factors_far, {"rope: ", "1073741824"}},
    {attention_rank, {"attention: ", "[T, 128]"}}, {attention_heads, {"attention: ", "[T, 2, 32]", "[T, 4, 32]"}}, {attention_kv, {"attention: "}}, {attention_scale, {"attention: ", "scale"}},
    {attention_window, {"attention: ", "window -1"}}, {attention_layer, {"attention: ", "1048576"}}, {attention_fixed, {"attention: ", "[8, 2, 32]", "SETUN_DIM_TOKENS"}}, {input_name, {"input: ", "name"}}, {input_null, {"input: ", "name"}},
    {input_twice, {"'x'"}}, {input_long, {"63 bytes"}}, {input_dtype, {"'f16'", "f32 or i32"}}, {input_flat, {"flat", "[T]", "last dimension"}}, {input_negative, {"'negative'", "-3"}}, {input_huge, {"'huge'", "2^40"}},
    {weight_null, {"'w'", "NULL"}}, {weight_symbol, {"'w'", "[T, 4]"}}, {weight_rank, {"weight", "rank 0"}}, {weight_nan, {"'w' [2, 2]", "value 2 is"}}, {weight_infinite, {"value 1 is -inf"}},
    {ternary_code, {"'w'", "row 1, column 0 is 2"}}, {ternary_scale, {"'w'", "scale 1"}}, {ternary_group, {"group size 16"}}, {ternary_group_negative, {"group size -2"}}, {ternary_group_odd, {"[2, 65]", "64"}},
    {ternary_rows, {"[0, 64]"}}, {ternary_huge, {"'w'"}}, {ternary_null, {"scales is NULL"}}, {model_null, {"model is NULL"}}, {add_weight_null, {"NULL"}},
};

static void misuse_is_refused_with_reasons(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        world w = world_create();
        setun_node node = refusals[i].call(&w);
        if (node != NONE) fail_msg("refusal %zu (%s) was accepted", i, refusals[i].words[0]);
        assert_int_equal(w.g->error, SETUN_ERROR_ARGUMENT);
        for (int j = 0; j < 3 && refusals[i].words[j]; j++)
            if (!strstr(w.g->error_message, refusals[i].words[j])) fail_msg("refusal %zu: '%s' is not in: %s", i, refusals[i].words[j], w.g->error_message);
        assert_string_equal(setun_error(), w.g->error_message);
        /* the first error stays; everything later passes NONE on, and verify reports it */
        char first[512];
        snprintf(first, sizeof first, "%s", w.g->error_message);
        int count = w.g->node_count;
        assert_int_equal(setun_graph_silu(w.g, w.x), NONE);
        assert_int_equal(setun_graph_add(w.g, node, w.x), NONE);
        assert_int_equal(setun_graph_input(w.g, "", SETUN_F32, 0, NULL), NONE);
        assert_int_equal(setun_graph_output(w.g, w.x, "x"), SETUN_ERROR_ARGUMENT);
        assert_int_equal(w.g->node_count, count);
        assert_int_equal(setun_graph_verify(w.g), SETUN_ERROR_ARGUMENT);
        assert_string_equal(setun_error(), first);
        setun_graph_destroy(w.g);
    }
}

static void no_graph_is_refused(void **state) {
    (void)state;
    setun_graph *g = (setun_graph *)1;
    assert_int_equal(setun_graph_create(NULL, &g), SETUN_ERROR_ARGUMENT);
    assert_null(g);
    assert_int_equal(setun_graph_create(&context, NULL), SETUN_ERROR_ARGUMENT);
    world w = {0};
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) assert_int_equal(refusals[i].call(&w), NONE);
    assert_int_equal(setun_graph_silu(NULL, 0), NONE);
    assert_non_null(strstr(setun_error(), "graph is NULL"));
    assert_int_equal(setun_graph_output(NULL, 0, "x"), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_graph_verify(NULL), SETUN_ERROR_ARGUMENT);
    char *text;
    assert_int_equal(setun_graph_dump(NULL, false, &text), SETUN_ERROR_ARGUMENT);
    setun_graph_destroy(NULL);
}

static void outputs_are_checked(void **state) {
    (void)state;
    const struct { int what; const char *words; } bad[] = {{0, "node -1"}, {1, "a weight"}, {2, "quantised"}, {3, "of this name"}, {4, "1 to 63"}, {5, "at most 16"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        world w = world_create();
        assert_int_equal(setun_graph_output(w.g, w.x, "a"), SETUN_OK);
        setun_status status = SETUN_OK;
        char name[8];
        switch (bad[i].what) {
        case 0: status = setun_graph_output(w.g, NONE, "b"); break;
        case 1: status = setun_graph_output(w.g, w.matrix, "b"); break;
        case 2: status = setun_graph_output(w.g, w.q8, "b"); break;
        case 3: status = setun_graph_output(w.g, w.y, "a"); break;
        case 4: status = setun_graph_output(w.g, w.y, ""); break;
        case 5:
            for (int n = 0; n < 16; n++) {
                snprintf(name, sizeof name, "o%d", n);
                assert_int_equal(status, SETUN_OK);
                status = setun_graph_output(w.g, w.y, name);
            }
        }
        assert_int_equal(status, SETUN_ERROR_ARGUMENT);
        if (!strstr(setun_error(), bad[i].words)) fail_msg("'%s' is not in: %s", bad[i].words, setun_error());
        setun_graph_destroy(w.g);
    }
}

/* Breaks one thing in a good graph; verify must find it. */
static void verify_finds_broken_nodes(void **state) {
    (void)state;
    for (int what = 0;; what++) {
        world w = world_create();
        setun_graph *g = w.g;
        setun_node sum = setun_graph_add(g, w.x, w.x);
        setun_attention_options one = {.size = sizeof one, .cache_layer = 1}, two = {.size = sizeof two, .cache_layer = 2};
        setun_node wide = setun_graph_reshape(g, w.x, S(T, 2, 64));
        setun_node a = setun_graph_attention(g, w.heads, w.kv, w.kv, &one), b = setun_graph_attention(g, w.heads, w.kv, w.kv, &two);
        setun_node soft = setun_graph_softmax(g, setun_graph_add(g, a, b));
        setun_graph_output(g, soft, "out");
        setun_graph_output(g, sum, "sum");
        setun_graph_weight(g, "late", S(128), values);
        assert_int_equal(setun_graph_verify(g), SETUN_OK);
        bool more = true;
        switch (what) {
        case 0: g->nodes[sum].op = SETUN_OP_COUNT; break;
        case 1: g->nodes[sum].op = (setun_op)-1; break;
        case 2: g->nodes[sum].input_count = 1; break;
        case 3: g->nodes[sum].input_count = 3; break;
        case 4: g->nodes[sum].input[0] = sum; break;
        case 5: g->nodes[sum].input[1] = soft; break;
        case 6: g->nodes[sum].input[1] = -7; break;
        case 7: g->nodes[sum].dtype = SETUN_Q8; break;
        case 8: g->nodes[sum].shape.dim[1] = 127; break;
        case 9: g->nodes[sum].shape.rank = 3; break;
        case 10: g->nodes[w.x].name[0] = 0; break;
        case 11: strcpy(g->nodes[w.x].name, "y"); break;
        case 12: g->nodes[w.x].shape.rank = 7; break;
        case 13: g->nodes[w.matrix].weight = NULL; break;
        case 14: g->nodes[w.matrix].shape.dim[0] = 63; break;
        case 15: g->nodes[b].attention.cache_layer = 1; break; /* one layer twice */
        case 16: g->nodes[b].attention.scale = NAN; break;
        case 17: g->outputs[0].node = 9999; break;
        case 18: g->outputs[0].node = w.matrix; break;
        case 19: g->outputs[0].node = w.q8; break;
        case 20: strcpy(g->outputs[1].name, "out"); break;
        case 21: g->output_count = 0; break;
        case 22: g->output_count = 17; break;
        case 23: /* layers of two shapes in one cache */
            g->nodes[b].input[0] = g->nodes[b].input[1] = g->nodes[b].input[2] = wide;
            break;
        default: more = false;
        }
        setun_status status = setun_graph_verify(g);
        setun_graph_destroy(g);
        if (!more) {
            assert_int_equal(status, SETUN_OK);
            break;
        }
        if (status != SETUN_ERROR_ARGUMENT) fail_msg("broken rule %d was not found", what);
        assert_true(strlen(setun_error()) > 10);
    }
}

static int freed;
static void count_free(void *prepared) { freed += prepared != NULL; }

static void user_weights_are_copied_and_shared(void **state) {
    (void)state;
    world w = world_create();
    float own[2] = {1, -1}, scales[4] = {0.25f, -3, 0.5f, 0};
    setun_node v = setun_graph_weight(w.g, "v", S(2), own);
    own[0] = 9;
    assert_true(setun_load_f32(w.g->nodes[v].weight->data) == 1);
    int8_t c[4 * 64];
    for (int i = 0; i < 4 * 64; i++) c[i] = (int8_t)(i % 3 - 1);
    /* per tensor, per row (one scale negative, one 0), per group */
    const int groups[3] = {-1, 0, 32};
    for (int g = 0; g < 3; g++) {
        float s[8] = {scales[0], scales[1], scales[2], scales[3], 4, 5, 6, 7};
        setun_node t = setun_graph_ternary_weight(w.g, "t", 4, 64, c, s, groups[g]);
        assert_int_not_equal(t, NONE);
        const setun_weight *weight = w.g->nodes[t].weight;
        assert_true(weight->probed && weight->info.ternary);
        assert_int_equal(weight->info.scale, g == 0 ? SETUN_SCALE_TENSOR : g == 1 ? SETUN_SCALE_ROW : SETUN_SCALE_GROUP);
        float out[4 * 64];
        assert_int_equal(setun_weight_to_f32(weight, 0, 4, out), SETUN_OK);
        for (int i = 0; i < 4 * 64; i++) assert_true(out[i] == (float)c[i] * s[g == 0 ? 0 : g == 1 ? i / 64 : i / 32]);
    }
    /* equal arrays are kept once, so that equal nodes are equal */
    float signs[128], factors[16];
    for (int i = 0; i < 128; i++) signs[i] = i & 1 ? 1.0f : -1.0f;
    for (int i = 0; i < 16; i++) factors[i] = 1.0f + (float)i;
    setun_node h1 = setun_graph_hadamard(w.g, w.x, 64, signs, 128, false), h2 = setun_graph_hadamard(w.g, w.x, 64, signs, 128, false);
    assert_ptr_equal(w.g->nodes[h1].signs, w.g->nodes[h2].signs);
    assert_ptr_not_equal(w.g->nodes[h1].signs, signs);
    setun_rope_options rope = {.size = sizeof rope, .frequency_factors = factors};
    setun_node r1 = setun_graph_rope(w.g, w.heads, w.ids, &rope), r2 = setun_graph_rope(w.g, w.heads, w.ids, &rope);
    assert_ptr_equal(w.g->nodes[r1].rope.factors, w.g->nodes[r2].rope.factors);
    /* the storage outlives the graph, and frees what a backend prepared */
    setun_graph_storage *storage = setun_graph_storage_retain(w.g->storage);
    ((setun_weight *)w.g->nodes[v].weight)->prepared = &freed;
    setun_graph_storage_set_free(storage, count_free);
    setun_graph_destroy(w.g);
    assert_int_equal(freed, 0);
    setun_graph_storage_release(storage);
    assert_int_equal(freed, 1);
    setun_graph_storage_release(NULL);
}

static setun_status build_everything(setun_graph **out) {
    *out = NULL;
    setun_graph *g;
    setun_status status = setun_graph_create(&context, &g);
    if (status != SETUN_OK) return status;
    float scale = 1;
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 128));
    setun_node positions = setun_graph_input(g, "positions", SETUN_I32, S(T));
    float signs[128], factors[16];
    for (int i = 0; i < 128; i++) signs[i] = 1;
    for (int i = 0; i < 16; i++) factors[i] = 2;
    setun_rope_options rope = {.size = sizeof rope, .frequency_factors = factors};
    setun_node t = setun_graph_ternary_weight(g, "t", 64, 128, codes, &scale, -1), v = setun_graph_weight(g, "v", S(128), values), m = setun_graph_weight(g, "m", S(64, 128), values);
    x = setun_graph_hadamard(g, setun_graph_rms_norm(g, x, v, 1e-5f, false), 64, signs, 128, false);
    setun_node y = setun_graph_add(g, setun_graph_linear(g, t, setun_graph_quantize(g, x), NONE), setun_graph_linear(g, m, x, NONE));
    for (int i = 0; i < 80; i++) y = setun_graph_scale(g, y, 1.0f + (float)i); /* the node list grows */
    y = setun_graph_rope(g, setun_graph_reshape(g, y, S(T, 2, 32)), positions, &rope);
    setun_graph_output(g, y, "y");
    status = setun_graph_verify(g);
    *out = g;
    return status;
}

static void allocation_failures_are_survived(void **state) {
    (void)state;
    int failures = 0;
    for (uint64_t n = 1;; n++) {
        int64_t live = setun_alloc_live();
        setun_alloc_fail_at(n);
        setun_graph *g;
        setun_status status = build_everything(&g);
        char *text = NULL;
        setun_status dumped = status == SETUN_OK ? setun_graph_dump(g, true, &text) : SETUN_ERROR_MEMORY;
        setun_alloc_fail_at(0);
        setun_free(text);
        setun_graph_destroy(g);
        assert_int_equal(setun_alloc_live(), live);
        if (status == SETUN_OK && dumped == SETUN_OK) break;
        assert_int_equal(status == SETUN_OK ? dumped : status, SETUN_ERROR_MEMORY);
        failures++;
    }
    assert_true(failures > 15);
}

static void dump_shows_all(void **state) {
    (void)state;
    setun_graph *g;
    assert_int_equal(build_everything(&g), SETUN_OK);
    char *text;
    assert_int_equal(setun_graph_dump(g, false, &text), SETUN_OK);
    assert_non_null(strstr(text, "rms_norm"));
    assert_non_null(strstr(text, "[T, 2, 32]"));
    assert_non_null(strstr(text, "f32 (ternary)"));
    assert_non_null(strstr(text, "output 'y'"));
    setun_free(text);
    assert_int_equal(setun_graph_dump(g, true, &text), SETUN_OK);
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    if (!root) fail_msg("line %d: %s\n%s", error.line, error.text, text);
    assert_int_equal(json_array_size(json_object_get(root, "nodes")), g->node_count);
    assert_true(json_is_null(json_object_get(root, "error")));
    json_decref(root);
    setun_free(text);
    setun_graph_add(g, 0, 1);
    assert_int_equal(setun_graph_dump(g, true, &text), SETUN_OK);
    assert_non_null(strstr(text, "\"error\": \"add: "));
    setun_free(text);
    setun_graph_destroy(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_inferred), cmocka_unit_test(misuse_is_refused_with_reasons), cmocka_unit_test(no_graph_is_refused),
        cmocka_unit_test(outputs_are_checked), cmocka_unit_test(verify_finds_broken_nodes), cmocka_unit_test(user_weights_are_copied_and_shared),
        cmocka_unit_test(allocation_failures_are_survived), cmocka_unit_test(dump_shows_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
