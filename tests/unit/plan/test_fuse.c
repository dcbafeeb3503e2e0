/* test_fuse.c - what becomes of a transformer with a backend that runs everything, and one that fuses nothing; each pattern and
 * each reason not to fuse. */
#include "base/thread.h"
#include "plan/passes.h"
#include "unit/graph/model_test.h"
#include <setjmp.h>
#include <unistd.h>
#include <cmocka.h>

static struct setun_context context;
static const int64_t T = SETUN_DIM_TOKENS, O = SETUN_DIM_OUTPUTS;
#define S(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}
#define NONE SETUN_NODE_NONE

/* ---- fake backends: what they say of a step ---- */
static const setun_backend *const fake = (const setun_backend *)&context; /* only passed along */
static bool everything(const setun_backend *backend, const setun_step *step) {
    assert_ptr_equal(backend, fake);
    assert_true(step->kind < SETUN_STEP_COUNT);
    return true;
}
static bool no_fused_step(const setun_backend *backend, const setun_step *step) {
    (void)backend;
    return !strchr(step->fused, '+');
}
static bool no_groups(const setun_backend *backend, const setun_step *step) {
    (void)backend;
    return step->kind != SETUN_STEP_LINEAR || step->weight_count < 3;
}
static bool no_norms_in_attention(const setun_backend *backend, const setun_step *step) {
    (void)backend;
    return step->kind != SETUN_STEP_ATTENTION || (!step->norm_q && !step->norm_k);
}
static bool no_gelu(const setun_backend *backend, const setun_step *step) {
    (void)backend;
    return !strstr(step->fused, "gelu");
}

/* One line a step: "kind(fused)". */
static void signature(const setun_plan *plan, int first, int count, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (int i = first; i < first + count && i < plan->step_count; i++) used += (size_t)snprintf(out + used, size - used, "%s%s", i > first ? "\n" : "", plan->steps[i].fused);
    assert_true(used < size);
}

static setun_plan *plan_of(setun_graph *g, setun_supports_fn supports, bool no_fusion) {
    setun_plan *plan;
    setun_plan_options options = {.tokens_max = 16, .outputs_max = 2, .no_fusion = no_fusion, .supports = supports};
    if (setun_plan_build(g, fake, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
    assert_int_equal(setun_plan_verify(plan), SETUN_OK);
    assert_ptr_equal(plan->backend, fake);
    return plan;
}

static setun_plan *transformer_plan(const setun_hparams *h, unsigned flags, setun_supports_fn supports, bool no_fusion, test_model *m) {
    setun_graph *g;
    test_model_create(m, h, flags);
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    if (setun_transformer_build(g, &m->model, NULL) != SETUN_OK) fail_msg("%s", setun_error());
    setun_plan *plan = plan_of(g, supports, no_fusion);
    setun_graph_destroy(g); /* plans live on */
    return plan;
}

/* The whole tape of a model with one layer. */
static void expect_layer(const setun_hparams *h, unsigned flags, setun_supports_fn supports, bool no_fusion, const char *want) {
    test_model m;
    char have[4096];
    setun_plan *plan = transformer_plan(h, flags, supports, no_fusion, &m);
    signature(plan, 0, plan->step_count, have, sizeof have);
    assert_string_equal(have, want);
    setun_plan_free(plan);
    test_model_destroy(&m);
}

static void bitnet_has_nine_steps_a_layer(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    expect_layer(&h, TEST_SUB_NORMS, everything, false,
                 "embedding\nselect_rows\n"
                 "rms_norm+quantize\nlinear+linear+linear\nrope+rope+attention\nselect_rows\n"
                 "rms_norm+quantize\nlinear+add\n"
                 "rms_norm+quantize\nlinear+linear+silu+multiply\n"
                 "rms_norm+quantize\nlinear+add\n"
                 "rms_norm\nlinear");
    const char *unfused = "embedding\nselect_rows\n"
                          "rms_norm\nquantize\nlinear\nrope\nlinear\nlinear\nrope\nattention\nselect_rows\nrms_norm\nquantize\nlinear\nadd\n"
                          "rms_norm\nquantize\nlinear\nsilu\nlinear\nmultiply\nrms_norm\nquantize\nlinear\nadd\n"
                          "rms_norm\nlinear";
    expect_layer(&h, TEST_SUB_NORMS, no_fused_step, false, unfused);
    expect_layer(&h, TEST_SUB_NORMS, everything, true, unfused);
    expect_layer(&h, TEST_SUB_NORMS, NULL, true, unfused);
    /* without sub-norms what goes into o and down is quantised alone */
    expect_layer(&h, TEST_UNTIED, NULL, false,
                 "embedding\nselect_rows\nrms_norm+quantize\nlinear+linear+linear\nrope+rope+attention\nselect_rows\nquantize\nlinear+add\n"
                 "rms_norm+quantize\nlinear+linear+silu+multiply\nquantize\nlinear+add\nrms_norm\nlinear");
}

static void bitnet_steps_in_detail(void **state) {
    (void)state;
    setun_hparams h = test_hparams(3);
    h.activation = SETUN_ACT_RELU2;
    test_model m;
    setun_plan *plan = transformer_plan(&h, TEST_SUB_NORMS | TEST_BIASES, everything, false, &m);
    assert_int_equal(plan->step_count, 3 * 9 + 5);
    assert_int_equal(plan->cache_layers, 3);
    assert_int_equal(plan->cache_kv_heads, 2);
    assert_int_equal(plan->cache_head_size, 32);
    const setun_layer *layer = &m.model.description.layers[1];
    const setun_step *s = &plan->steps[1 + 9];
    const setun_slot *slots = plan->slots;
    /* norm + quantize */
    assert_true(s[0].kind == SETUN_STEP_NORM && s[0].quantize && s[0].weight[0] == layer->weight[SETUN_ROLE_ATTN_NORM] && s[0].epsilon == 1e-5f);
    assert_int_equal(slots[s[0].output[0]].dtype, SETUN_Q8);
    /* q, k, v */
    assert_true(s[1].kind == SETUN_STEP_LINEAR && s[1].weight_count == 3 && !s[1].gated && s[1].quantized_input && s[1].residual == -1 && s[1].factor == 1);
    assert_int_equal(s[1].input[0], s[0].output[0]);
    assert_ptr_equal(s[1].model, &m.model);
    const setun_role qkv[3] = {SETUN_ROLE_Q, SETUN_ROLE_K, SETUN_ROLE_V};
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(s[1].weight[i], layer->weight[qkv[i]]);
        assert_ptr_equal(s[1].bias[i], layer->bias[qkv[i]]);
        assert_int_equal(setun_slot_width(&slots[s[1].output[i]]), i ? 64 : 128);
        /* attention reads them as heads, without a copy */
        assert_int_equal(setun_slot_root(plan, s[2].input[i]), setun_slot_root(plan, s[1].output[i]));
        assert_int_equal(slots[s[2].input[i]].shape.rank, 3);
        assert_true(slots[s[2].input[i]].offset == slots[s[1].output[i]].offset);
    }
    assert_true(s[2].kind == SETUN_STEP_ATTENTION && s[2].has_rope && !s[2].norm_q && s[2].weight_count == 0 && s[2].heads == 4 && s[2].kv_heads == 2 && s[2].head_size == 32);
    assert_int_equal(s[2].input[3], setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "positions"));
    assert_true(s[2].attention.cache_layer == 2 && s[2].rope.theta == 10000 && s[2].rope.rotary == 32);
    /* sub-norm, o with the residual, in its place */
    assert_true(s[3].weight[0] == layer->weight[SETUN_ROLE_ATTN_SUB_NORM] && s[4].weight[0] == layer->weight[SETUN_ROLE_O] && s[4].bias[0] == layer->bias[SETUN_ROLE_O]);
    assert_int_equal(s[4].residual, s[0].input[0]);
    assert_true(slots[s[4].output[0]].offset == slots[s[4].residual].offset);
    /* gate and up, down */
    assert_true(s[6].gated && s[6].activation == SETUN_OP_RELU2 && s[6].weight_count == 2 && s[6].output[1] == -1);
    assert_true(s[6].weight[0] == layer->weight[SETUN_ROLE_GATE] && s[6].weight[1] == layer->weight[SETUN_ROLE_UP] && s[6].bias[0] == layer->bias[SETUN_ROLE_GATE] && s[6].bias[1] == layer->bias[SETUN_ROLE_UP]);
    assert_true(s[8].weight[0] == layer->weight[SETUN_ROLE_DOWN] && s[8].residual == s[5].input[0]);
    /* 7 quantisations are 4, and 2 of the 3 roundings of one norm are common */
    assert_int_equal(plan->stats.common_nodes, 3 * 3);
    assert_int_equal(plan->stats.dead_nodes, 0);
    assert_int_equal(plan->stats.fused_nodes, 3 * (22 - 9));
    assert_true(plan->arena_bytes < plan->stats.arena_bytes_without_reuse);
    assert_int_equal(setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "logits"), plan->steps[plan->step_count - 1].output[0]);
    assert_int_equal(setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "logits"), -1);
    setun_plan_free(plan);
    test_model_destroy(&m);
}

static void other_families(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    h.activation_int8 = false;
    /* Qwen3: norms of q and k inside attention; f32 activations */
    const char *qwen = "embedding\nselect_rows\nrms_norm\nlinear+linear+linear\nrms_norm+rms_norm+rope+rope+attention\nselect_rows\nlinear+add\nrms_norm\nlinear+linear+silu+multiply\nlinear+add\nrms_norm\nlinear+scale";
    h.logit_scale = 0.5f;
    expect_layer(&h, TEST_QK_NORM, everything, false, qwen);
    expect_layer(&h, TEST_QK_NORM, no_norms_in_attention, false,
                 "embedding\nselect_rows\nrms_norm\nlinear+linear+linear\nrms_norm\nrms_norm\nrope+rope+attention\nselect_rows\nlinear+add\nrms_norm\nlinear+linear+silu+multiply\nlinear+add\nrms_norm\nlinear+scale");
    expect_layer(&h, TEST_QK_NORM, no_groups, false,
                 "embedding\nselect_rows\nrms_norm\nlinear\nlinear+linear\nrms_norm+rms_norm+rope+rope+attention\nselect_rows\nlinear+add\nrms_norm\nlinear+linear+silu+multiply\nlinear+add\nrms_norm\nlinear+scale");
    /* norms over all heads at once stay outside */
    expect_layer(&h, TEST_QK_NORM_WIDE, everything, false,
                 "embedding\nselect_rows\nrms_norm\nlinear+linear+linear\nrms_norm\nrms_norm\nrope+rope+attention\nselect_rows\nlinear+add\nrms_norm\nlinear+linear+silu+multiply\nlinear+add\nrms_norm\nlinear+scale");
    /* MiniCPM: residual scale in the epilogue; embedding scale in the embedding */
    h.logit_scale = 0;
    h.residual_scale = 0.25f;
    h.embedding_scale = 12;
    expect_layer(&h, 0, everything, false,
                 "embedding+scale\nselect_rows\nrms_norm\nlinear+linear+linear\nrope+rope+attention\nselect_rows\nlinear+scale+add\nrms_norm\nlinear+linear+silu+multiply\nlinear+scale+add\nrms_norm\nlinear");
    /* Gemma3: a norm stands between the linear and the residual */
    h.residual_scale = 0;
    h.activation = SETUN_ACT_GELU;
    expect_layer(&h, TEST_POST_NORMS | TEST_QK_NORM, everything, false,
                 "embedding+scale\nselect_rows\nrms_norm\nlinear+linear+linear\nrms_norm+rms_norm+rope+rope+attention\nselect_rows\nlinear\nrms_norm\nadd\nrms_norm\nlinear+linear+gelu+multiply\nlinear\nrms_norm\nadd\nrms_norm\nlinear");
    /* a backend without gelu in its epilogue: the linears still go together */
    setun_hparams plain = test_hparams(1);
    plain.activation_int8 = false;
    plain.activation = SETUN_ACT_GELU;
    test_model m;
    setun_graph *g;
    test_model_create(&m, &plain, 0);
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    assert_int_equal(setun_transformer_build(g, &m.model, NULL), SETUN_OK);
    setun_plan *plan;
    setun_plan_options options = {.supports = no_gelu};
    assert_int_equal(setun_plan_build(g, fake, &options, &plan), SETUN_ERROR_UNSUPPORTED); /* not even alone: refused by name */
    assert_non_null(strstr(setun_error(), "gelu"));
    assert_null(plan);
    setun_graph_destroy(g);
    test_model_destroy(&m);
    /* norms before every projection: their own weights, so one quantisation each */
    setun_hparams p = test_hparams(1);
    p.projection_norm = true;
    expect_layer(&p, TEST_INPUT_NORMS, everything, false,
                 "embedding\nselect_rows\nrms_norm\nrms_norm+quantize\nrms_norm+quantize\nrms_norm+quantize\nlinear\nlinear\nlinear\nrope+rope+attention\nselect_rows\nrms_norm+quantize\nlinear+add\n"
                 "rms_norm\nrms_norm+quantize\nrms_norm+quantize\nlinear\nsilu\nlinear\nmultiply\nrms_norm+quantize\nlinear+add\nrms_norm\nlinear");
    expect_layer(&p, 0, everything, false,
                 "embedding\nselect_rows\nrms_norm\nrms_norm+quantize\nlinear+linear+linear\nrope+rope+attention\nselect_rows\nrms_norm+quantize\nlinear+add\n"
                 "rms_norm\nrms_norm+quantize\nlinear+linear+silu+multiply\nrms_norm+quantize\nlinear+add\nrms_norm\nlinear");
    /* rotated: one rotation for q, k, v */
    setun_hparams r = test_hparams(1);
    r.activation_int8 = false;
    expect_layer(&r, TEST_ROTATED, everything, false,
                 "embedding\nhadamard\nselect_rows\nrms_norm\nhadamard\nlinear+linear+linear\nrope+rope+attention\nselect_rows\nhadamard\nlinear+add\nrms_norm\nhadamard\nlinear+linear+silu+multiply\nhadamard\nlinear+add\nrms_norm\nhadamard\nlinear");
}

/* ---- the patterns one by one, on small graphs ---- */

typedef struct small { setun_graph *g; setun_node x, y, ids, positions, w, w2, w3, w4, norm; float values[64 * 64]; } small;

static void small_create(small *s) {
    for (int i = 0; i < 64 * 64; i++) s->values[i] = (float)(i % 5) - 1.75f;
    assert_int_equal(setun_graph_create(&context, &s->g), SETUN_OK);
    s->x = setun_graph_input(s->g, "x", SETUN_F32, S(T, 64));
    s->y = setun_graph_input(s->g, "y", SETUN_F32, S(T, 64));
    s->ids = setun_graph_input(s->g, "ids", SETUN_I32, S(T));
    s->positions = setun_graph_input(s->g, "positions", SETUN_I32, S(T));
    s->w = setun_graph_weight(s->g, "w", S(64, 64), s->values);
    s->w2 = setun_graph_weight(s->g, "w2", S(64, 64), s->values);
    s->w3 = setun_graph_weight(s->g, "w3", S(64, 64), s->values);
    s->w4 = setun_graph_weight(s->g, "w4", S(64, 64), s->values);
    s->norm = setun_graph_weight(s->g, "norm", S(64), s->values);
}

static void expect_small(small *s, const char *want) {
    char have[2048];
    setun_plan *plan = plan_of(s->g, everything, false);
    signature(plan, 0, plan->step_count, have, sizeof have);
    assert_string_equal(have, want);
    setun_plan_free(plan);
    setun_graph_destroy(s->g);
}

static void other_readers_prevent_fusion(void **state) {
    (void)state;
    small s;
    setun_graph *g;
    /* the norm is an output, too */
    small_create(&s), g = s.g;
    setun_node n = setun_graph_rms_norm(g, s.x, s.norm, 1e-5f, false);
    float one = 1;
    int8_t codes[64 * 64] = {1, -1};
    setun_node t = setun_graph_ternary_weight(g, "t", 64, 64, codes, &one, -1);
    setun_graph_output(g, setun_graph_linear(g, t, setun_graph_quantize(g, n), NONE), "out");
    setun_graph_output(g, n, "n");
    expect_small(&s, "rms_norm\nquantize\nlinear");
    /* the linear is read twice: by the scale and the add */
    small_create(&s), g = s.g;
    setun_node l = setun_graph_linear(g, s.w, s.x, NONE);
    setun_graph_output(g, setun_graph_add(g, setun_graph_scale(g, l, 2), l), "out");
    expect_small(&s, "linear\nscale\nadd");
    /* twice by one step */
    small_create(&s), g = s.g;
    l = setun_graph_linear(g, s.w, s.x, NONE);
    setun_graph_output(g, setun_graph_add(g, l, l), "out");
    expect_small(&s, "linear\nadd");
    /* through a view */
    small_create(&s), g = s.g;
    l = setun_graph_linear(g, s.w, s.x, NONE);
    setun_graph_output(g, setun_graph_reshape(g, l, S(T, 2, 32)), "view");
    setun_graph_output(g, setun_graph_scale(g, l, 2), "out");
    expect_small(&s, "linear\nscale");
    /* the activation of the gate is read elsewhere */
    small_create(&s), g = s.g;
    setun_node a = setun_graph_silu(g, setun_graph_linear(g, s.w, s.x, NONE));
    setun_graph_output(g, setun_graph_add(g, setun_graph_multiply(g, a, setun_graph_linear(g, s.w2, s.x, NONE)), a), "out");
    expect_small(&s, "linear+linear\nsilu\nmultiply\nadd");
    /* gate and up read different values */
    small_create(&s), g = s.g;
    a = setun_graph_silu(g, setun_graph_linear(g, s.w, s.x, NONE));
    setun_graph_output(g, setun_graph_multiply(g, a, setun_graph_linear(g, s.w2, s.y, NONE)), "out");
    expect_small(&s, "linear\nsilu\nlinear\nmultiply");
    /* only q is rotated; or by other positions; or by another angle */
    for (int what = 0; what < 3; what++) {
        small_create(&s), g = s.g;
        setun_node q = setun_graph_reshape(g, s.x, S(T, 2, 32)), k = setun_graph_reshape(g, s.y, S(T, 2, 32));
        setun_rope_options rope = {.size = sizeof rope, .theta = 500};
        setun_node rq = setun_graph_rope(g, q, s.positions, NULL);
        setun_node rk = what == 0 ? k : what == 1 ? setun_graph_rope(g, k, s.ids, NULL) : setun_graph_rope(g, k, s.positions, &rope);
        setun_graph_output(g, setun_graph_attention(g, rq, rk, k, NULL), "out");
        expect_small(&s, what ? "rope\nrope\nattention" : "rope\nattention");
    }
    /* norms without rotations go in; a norm before and after a rotation: only the inner one is beneath */
    small_create(&s), g = s.g;
    setun_node q = setun_graph_rms_norm(g, setun_graph_reshape(g, s.x, S(T, 2, 32)), NONE, 1e-5f, false);
    setun_node k = setun_graph_rms_norm(g, setun_graph_reshape(g, s.y, S(T, 2, 32)), NONE, 1e-6f, false);
    setun_graph_output(g, setun_graph_attention(g, q, k, k, NULL), "out");
    expect_small(&s, "rms_norm\nrms_norm+attention"); /* k's norm is read as v, too */
}

static void order_and_sides_do_not_matter(void **state) {
    (void)state;
    small s;
    setun_graph *g;
    /* up * act(gate); residual first or second; four linears over one x: three and one */
    small_create(&s), g = s.g;
    setun_node up = setun_graph_linear(g, s.w, s.x, NONE), gate = setun_graph_gelu(g, setun_graph_linear(g, s.w2, s.x, NONE));
    setun_graph_output(g, setun_graph_add(g, setun_graph_multiply(g, up, gate), s.y), "out");
    setun_plan *plan = plan_of(g, everything, false);
    assert_int_equal(plan->step_count, 1);
    assert_string_equal(plan->steps[0].fused, "linear+linear+gelu+multiply+add");
    assert_string_equal(plan->steps[0].weight[0]->name, "w2"); /* the gate is first */
    assert_string_equal(plan->steps[0].weight[1]->name, "w");
    assert_int_equal(plan->steps[0].residual, setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "y"));
    setun_plan_free(plan);
    setun_graph_destroy(g);

    small_create(&s), g = s.g;
    setun_node l[4] = {setun_graph_linear(g, s.w, s.x, NONE), setun_graph_linear(g, s.w2, s.x, NONE), setun_graph_linear(g, s.w3, s.x, NONE), setun_graph_linear(g, s.w4, s.x, s.norm)};
    for (int i = 0; i < 4; i++) setun_graph_output(g, l[i], (const char *[]){"a", "b", "c", "d"}[i]);
    expect_small(&s, "linear+linear+linear\nlinear");

    /* two scales: only one is the factor, as their product would round otherwise */
    small_create(&s), g = s.g;
    setun_graph_output(g, setun_graph_scale(g, setun_graph_scale(g, setun_graph_linear(g, s.w, s.x, NONE), 3), 0.1f), "out");
    expect_small(&s, "linear+scale\nscale");
    small_create(&s), g = s.g;
    setun_graph_output(g, setun_graph_scale(g, setun_graph_scale(g, setun_graph_embedding(g, s.w, s.ids), 3), 0.1f), "out");
    expect_small(&s, "embedding+scale\nscale");
    /* scale after the residual is not the epilogue's order */
    small_create(&s), g = s.g;
    setun_graph_output(g, setun_graph_scale(g, setun_graph_add(g, setun_graph_linear(g, s.w, s.x, NONE), s.y), 3), "out");
    setun_plan_options options = {.supports = everything};
    assert_int_equal(setun_plan_build(g, fake, &options, &plan), SETUN_OK);
    assert_int_equal(plan->step_count, 2);
    setun_plan_free(plan);
    setun_graph_destroy(g);
    /* the sum of two linears over one x: one is the other's residual */
    small_create(&s), g = s.g;
    setun_graph_output(g, setun_graph_add(g, setun_graph_linear(g, s.w, s.x, NONE), setun_graph_linear(g, s.w2, s.x, NONE)), "out");
    expect_small(&s, "linear\nlinear+add");
}

static void two_models_do_not_meet_in_a_step(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    test_model a, b;
    test_model_create(&a, &h, 0);
    test_model_create(&b, &h, 0);
    setun_graph *g;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 128));
    float row[128] = {0};
    setun_node own = setun_graph_weight(g, "own", S(1, 128), row);
    setun_node q = setun_graph_linear(g, setun_graph_add_weight(g, &a.model, a.model.description.layers[0].weight[SETUN_ROLE_Q]), x, NONE);
    setun_node k = setun_graph_linear(g, setun_graph_add_weight(g, &b.model, b.model.description.layers[0].weight[SETUN_ROLE_K]), x, NONE);
    setun_node o = setun_graph_linear(g, own, x, NONE);
    setun_graph_output(g, q, "q");
    setun_graph_output(g, k, "k");
    setun_graph_output(g, o, "o");
    setun_plan *plan = plan_of(g, everything, false);
    assert_int_equal(plan->step_count, 2); /* q with the graph's own weight; k alone */
    assert_ptr_equal(plan->steps[0].model, &a.model);
    assert_string_equal(plan->steps[0].weight[1]->name, "own");
    assert_ptr_equal(plan->steps[1].model, &b.model);
    setun_plan_free(plan);
    setun_graph_destroy(g);
    test_model_destroy(&a);
    test_model_destroy(&b);
}

static void dead_and_common_nodes_go(void **state) {
    (void)state;
    small s;
    small_create(&s);
    setun_graph *g = s.g;
    setun_node a = setun_graph_silu(g, s.x), b = setun_graph_silu(g, s.x);
    setun_graph_gelu(g, a);                                                               /* dead */
    setun_graph_attention(g, setun_graph_reshape(g, a, S(T, 2, 32)), setun_graph_reshape(g, a, S(T, 2, 32)), setun_graph_reshape(g, a, S(T, 2, 32)), NULL); /* dead, with its views */
    setun_node c = setun_graph_scale(g, a, 2), d = setun_graph_scale(g, b, 2), e = setun_graph_scale(g, b, 3);
    setun_node f = setun_graph_rms_norm(g, d, NONE, 1e-5f, false), h = setun_graph_rms_norm(g, c, NONE, 1e-6f, false);
    setun_graph_output(g, setun_graph_add(g, setun_graph_add(g, f, h), e), "out");
    setun_plan *plan = plan_of(g, everything, true);
    char have[512];
    signature(plan, 0, plan->step_count, have, sizeof have);
    assert_string_equal(have, "silu\nscale\nscale\nrms_norm\nrms_norm\nadd\nadd");
    assert_int_equal(plan->stats.common_nodes, 4); /* silu, scale, two of the views */
    assert_int_equal(plan->stats.dead_nodes, 8);   /* gelu, a view, attention, five weights that nobody uses */
    for (int i = 0; i < 4; i++) assert_int_not_equal(setun_plan_find_slot(plan, SETUN_PLACE_INPUT, (const char *[]){"x", "y", "ids", "positions"}[i]), -1); /* inputs stay */
    setun_plan_free(plan);
    setun_graph_destroy(g);
}

/* Two nodes that differ in one attribute are two. */
static void nodes_that_differ_stay_apart(void **state) {
    (void)state;
    for (int what = 0; what < 17; what++) {
        small s;
        small_create(&s);
        setun_graph *g = s.g;
        setun_node q = setun_graph_reshape(g, s.x, S(T, 2, 32)), ends[2];
        float signs[64], factors[16];
        for (int i = 0; i < 2; i++) {
            setun_rope_options rope = {.size = sizeof rope};
            setun_attention_options attention = {.size = sizeof attention};
            for (int j = 0; j < 64; j++) signs[j] = i == 0 || j ? 1.0f : -1.0f;
            for (int j = 0; j < 16; j++) factors[j] = i == 0 || j ? 1.0f : 2.0f;
            setun_node n = NONE;
            switch (what) {
            case 0: n = setun_graph_rms_norm(g, s.x, s.norm, 1e-5f, i); break;
            case 1: n = setun_graph_rms_norm(g, s.x, s.norm, i ? 1e-5f : 1e-6f, false); break;
            case 2: n = setun_graph_rms_norm(g, s.x, i ? s.norm : NONE, 1e-5f, false); break;
            case 3: n = setun_graph_hadamard(g, s.x, 32, NULL, 0, i); break;
            case 4: n = setun_graph_hadamard(g, s.x, i ? 32 : 16, NULL, 0, false); break;
            case 5: n = setun_graph_hadamard(g, s.x, 32, signs, 64, false); break;
            case 6: rope.theta = i ? 500 : 0; break;
            case 7: rope.rotary = i ? 16 : 0; break;
            case 8: rope.interleaved = i; break;
            case 9: rope.scale = i ? 0.5f : 0; break;
            case 10: rope.magnitude = i ? 2 : 0; break;
            case 11: rope.frequency_factors = factors; break;
            case 12: attention.window = i ? 5 : 0; break;
            case 13: attention.scale = i ? 0.5f : 0; break;
            case 14: attention.cache_layer = 1 + i; break;
            case 15: n = setun_graph_reshape(g, s.x, i ? 3 : 2, i ? (int64_t[]){T, 4, 16} : (int64_t[]){T, 64}); break;
            case 16: n = setun_graph_scale(g, s.x, i ? 0.0f : -0.0f); break;
            }
            if (what >= 6 && what <= 11) n = setun_graph_rope(g, q, s.positions, &rope);
            if (what >= 12 && what <= 14) n = setun_graph_attention(g, q, q, q, &attention);
            ends[i] = n;
        }
        setun_graph_output(g, ends[0], "a");
        setun_graph_output(g, ends[1], "b");
        setun_plan *plan = plan_of(g, everything, true);
        if (plan->step_count != (what == 15 ? 0 : 2)) fail_msg("attribute %d is not compared", what);
        assert_int_equal(plan->stats.common_nodes, 0);
        setun_plan_free(plan);
        setun_graph_destroy(g);
    }
}

static void inputs_views_and_names_as_outputs(void **state) {
    (void)state;
    small s;
    small_create(&s);
    setun_graph *g = s.g;
    setun_node a = setun_graph_silu(g, s.x);
    setun_graph_output(g, s.x, "same");                                     /* an input */
    setun_graph_output(g, a, "a");
    setun_graph_output(g, a, "b");                                          /* one value, two names */
    setun_graph_output(g, setun_graph_reshape(g, s.y, S(T, 8, 8)), "view"); /* a view of an input */
    setun_graph_output(g, setun_graph_reshape(g, a, S(T, 4, 16)), "heads");
    setun_plan *plan = plan_of(g, everything, false);
    assert_int_equal(plan->step_count, 1);
    const setun_slot *slots = plan->slots;
    int x = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "x"), y = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "y"), out = setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "a");
    assert_true(slots[setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "same")].offset == slots[x].offset);
    assert_true(slots[setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "view")].offset == slots[y].offset);
    assert_true(slots[setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "b")].offset == slots[out].offset);
    assert_true(slots[setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "heads")].offset == slots[out].offset);
    assert_true(slots[out].offset != slots[x].offset); /* inputs are never written */
    setun_plan_free(plan);
    setun_graph_destroy(g);
    /* nothing to do at all */
    small_create(&s);
    setun_graph_output(s.g, s.x, "same");
    plan = plan_of(s.g, everything, false);
    assert_int_equal(plan->step_count, 0);
    assert_true(plan->arena_bytes >= 16 * 64 * 4);
    setun_plan_free(plan);
    setun_graph_destroy(s.g);
}

static void the_real_model(void **state) {
    (void)state;
    if (access(SETUN_TEST_MODEL, R_OK) != 0) skip();
    setun_pool *pool;
    assert_int_equal(setun_pool_create(2, false, &pool), SETUN_OK);
    struct setun_context own = {.pool = pool};
    setun_model *model;
    if (setun_model_load(&own, SETUN_TEST_MODEL, NULL, &model) != SETUN_OK) fail_msg("%s", setun_error());
    for (int fused = 0; fused < 2; fused++) {
        setun_graph *g;
        assert_int_equal(setun_graph_create(&own, &g), SETUN_OK);
        if (setun_transformer_build(g, model, NULL) != SETUN_OK) fail_msg("%s", setun_error());
        setun_plan_options options = {.tokens_max = 512, .outputs_max = 1, .no_fusion = !fused, .supports = everything};
        setun_plan *plan;
        double before = setun_seconds();
        if (setun_plan_build(g, fake, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
        double seconds = setun_seconds() - before;
        int layers = model->description.h.layers;
        assert_int_equal(plan->step_count, fused ? 9 * layers + 5 : 22 * layers + 5);
        print_message("%d steps in %.1f ms, arena %.2f MiB, without reuse %.2f MiB\n", plan->step_count, seconds * 1e3, (double)plan->arena_bytes / 1048576, (double)plan->stats.arena_bytes_without_reuse / 1048576);
        char have[512];
        if (fused) {
            signature(plan, 1 + 9 * 7, 9, have, sizeof have);
            assert_string_equal(have, "rms_norm+quantize\nlinear+linear+linear\nrope+rope+attention\nrms_norm+quantize\nlinear+add\nrms_norm+quantize\nlinear+linear+silu+multiply\nrms_norm+quantize\nlinear+add");
        }
        setun_plan_free(plan);
        setun_graph_destroy(g);
    }
    setun_model_destroy(model);
    setun_pool_destroy(pool);
}

int main(void) {
    (void)O;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bitnet_has_nine_steps_a_layer), cmocka_unit_test(bitnet_steps_in_detail), cmocka_unit_test(other_families), cmocka_unit_test(other_readers_prevent_fusion),
        cmocka_unit_test(order_and_sides_do_not_matter), cmocka_unit_test(two_models_do_not_meet_in_a_step), cmocka_unit_test(dead_and_common_nodes_go),
        cmocka_unit_test(nodes_that_differ_stay_apart), cmocka_unit_test(inputs_views_and_names_as_outputs), cmocka_unit_test(the_real_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
