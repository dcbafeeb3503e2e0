/* test_transformer.c - what graph each family's description becomes, operation by operation; and the real model's. */
#include "unit/graph/model_test.h"
#include "base/thread.h"
#include <math.h>
#include <setjmp.h>
#include <unistd.h>
#include <cmocka.h>

static struct setun_context context;

/* The operations in order, with the weights they name: "embedding(token_embd.weight) rms_norm(blk.0..) ..". Leaves are left out. */
static void signature(const setun_graph *g, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < g->node_count; i++) {
        const setun_graph_node *n = &g->nodes[i];
        if (n->op == SETUN_OP_INPUT || n->op == SETUN_OP_WEIGHT) continue;
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? " " : "", setun_op_name(n->op));
        const char *open = "(";
        for (int j = 0; j < n->input_count; j++)
            if (g->nodes[n->input[j]].op == SETUN_OP_WEIGHT) {
                const char *name = g->nodes[n->input[j]].name;
                if (!strncmp(name, "blk.0.", 6)) name += 6;
                used += (size_t)snprintf(out + used, size - used, "%s%.*s", open, (int)strcspn(name, "."), name);
                open = ",";
            }
        if (open[0] == ',') used += (size_t)snprintf(out + used, size - used, ")");
        assert_true(used < size);
    }
}

static void expect(const setun_hparams *h, unsigned flags, const setun_transformer_options *options, const char *want) {
    test_model m;
    setun_graph *g;
    char have[4096];
    test_model_create(&m, h, flags);
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    if (setun_transformer_build(g, &m.model, options) != SETUN_OK) fail_msg("%s", setun_error());
    if (setun_graph_verify(g) != SETUN_OK) fail_msg("%s", setun_error());
    signature(g, have, sizeof have);
    assert_string_equal(have, want);
    setun_graph_destroy(g);
    test_model_destroy(&m);
}

static const setun_graph_node *find_op(const setun_graph *g, setun_op op, int nth) {
    for (int i = 0; i < g->node_count; i++)
        if (g->nodes[i].op == op && nth-- == 0) return &g->nodes[i];
    return NULL;
}

static void bitnet(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    h.activation = SETUN_ACT_RELU2;
    expect(&h, TEST_SUB_NORMS, NULL,
           "embedding(token_embd) rms_norm(attn_norm) quantize linear(attn_q) reshape quantize linear(attn_k) reshape quantize linear(attn_v) reshape rope rope attention select_rows select_rows "
           "rms_norm(attn_sub_norm) quantize linear(attn_output) add "
           "rms_norm(ffn_norm) quantize linear(ffn_gate) relu2 quantize linear(ffn_up) multiply rms_norm(ffn_sub_norm) quantize linear(ffn_down) add "
           "rms_norm(output_norm) linear(token_embd)");
    setun_transformer_options exact = {.no_activation_quantisation = true};
    expect(&h, TEST_SUB_NORMS, &exact,
           "embedding(token_embd) rms_norm(attn_norm) linear(attn_q) reshape linear(attn_k) reshape linear(attn_v) reshape rope rope attention select_rows select_rows "
           "rms_norm(attn_sub_norm) linear(attn_output) add "
           "rms_norm(ffn_norm) linear(ffn_gate) relu2 linear(ffn_up) multiply rms_norm(ffn_sub_norm) linear(ffn_down) add "
           "rms_norm(output_norm) linear(token_embd)");
    /* dense weights never take int8 */
    h.activation = SETUN_ACT_SILU;
    expect(&h, TEST_DENSE | TEST_UNTIED, NULL,
           "embedding(token_embd) rms_norm(attn_norm) linear(attn_q) reshape linear(attn_k) reshape linear(attn_v) reshape rope rope attention select_rows select_rows linear(attn_output) add "
           "rms_norm(ffn_norm) linear(ffn_gate) silu linear(ffn_up) multiply linear(ffn_down) add rms_norm(output_norm) linear(output)");
}

static void qwen3_with_biases_and_embedding(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    h.activation_int8 = false;
    h.logit_scale = 0.5f;
    expect(&h, TEST_QK_NORM | TEST_BIASES, NULL,
           "embedding(token_embd) rms_norm(attn_norm) linear(attn_q,bias) reshape rms_norm(attn_q_norm) linear(attn_k,bias) reshape rms_norm(attn_k_norm) linear(attn_v,bias) reshape rope rope attention select_rows select_rows "
           "linear(attn_output,bias) add rms_norm(ffn_norm) linear(ffn_gate,bias) silu linear(ffn_up,bias) multiply linear(ffn_down,bias) add rms_norm(output_norm) linear(token_embd) scale");
    setun_transformer_options embedding = {.embedding = true};
    expect(&h, TEST_QK_NORM_WIDE | TEST_NO_GATE, &embedding,
           "embedding(token_embd) rms_norm(attn_norm) linear(attn_q) rms_norm(attn_q_norm) reshape linear(attn_k) rms_norm(attn_k_norm) reshape linear(attn_v) reshape rope rope attention select_rows select_rows "
           "linear(attn_output) add rms_norm(ffn_norm) linear(ffn_up) silu linear(ffn_down) add rms_norm(output_norm) l2_normalize");
}

static void gemma3_and_minicpm_scales(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    h.activation_int8 = false;
    h.activation = SETUN_ACT_GELU;
    h.embedding_scale = 25.3f;
    h.residual_scale = 0.25f;
    expect(&h, TEST_POST_NORMS, NULL,
           "embedding(token_embd) scale rms_norm(attn_norm) linear(attn_q) reshape linear(attn_k) reshape linear(attn_v) reshape rope rope attention select_rows select_rows linear(attn_output) rms_norm(post_attention_norm) scale add "
           "rms_norm(ffn_norm) linear(ffn_gate) gelu linear(ffn_up) multiply linear(ffn_down) rms_norm(post_ffw_norm) scale add rms_norm(output_norm) linear(token_embd)");
}

static void projection_norms_and_rotations(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    h.projection_norm = true;
    h.projection_norm_epsilon = 1e-6f;
    expect(&h, 0, NULL,
           "embedding(token_embd) rms_norm(attn_norm) rms_norm quantize linear(attn_q) reshape rms_norm quantize linear(attn_k) reshape rms_norm quantize linear(attn_v) reshape rope rope attention select_rows select_rows "
           "rms_norm quantize linear(attn_output) add rms_norm(ffn_norm) rms_norm quantize linear(ffn_gate) silu rms_norm quantize linear(ffn_up) multiply rms_norm quantize linear(ffn_down) add "
           "rms_norm(output_norm) linear(token_embd)");
    expect(&h, TEST_INPUT_NORMS | TEST_NO_GATE, NULL,
           "embedding(token_embd) rms_norm(attn_norm) rms_norm(input_norm) quantize linear(attn_q) reshape rms_norm(input_norm) quantize linear(attn_k) reshape rms_norm(input_norm) quantize linear(attn_v) reshape rope rope attention select_rows select_rows "
           "rms_norm(input_norm) quantize linear(attn_output) add rms_norm(ffn_norm) rms_norm(input_norm) quantize linear(ffn_up) silu rms_norm(input_norm) quantize linear(ffn_down) add "
           "rms_norm(output_norm) linear(token_embd)");
    h.projection_norm = false;
    h.activation_int8 = false;
    expect(&h, TEST_ROTATED, NULL,
           "embedding(token_embd) hadamard rms_norm(attn_norm) hadamard linear(attn_q) reshape hadamard linear(attn_k) reshape hadamard linear(attn_v) reshape rope rope attention select_rows select_rows "
           "hadamard linear(attn_output) add rms_norm(ffn_norm) hadamard linear(ffn_gate) silu hadamard linear(ffn_up) multiply hadamard linear(ffn_down) add "
           "rms_norm(output_norm) hadamard linear(token_embd)");
}

static void attributes_come_from_the_hyper_parameters(void **state) {
    (void)state;
    float factors[16];
    for (int i = 0; i < 16; i++) factors[i] = 1.0f + (float)i;
    setun_hparams h = test_hparams(6);
    h.norm_one_plus = true;
    h.epsilon = 1e-6f;
    h.rope_theta = 1e6f;
    h.rope_local_theta = 1e4f;
    h.rope_scale = 0.125f;
    h.rope_magnitude = 1.5f;
    h.rope_factors = factors;
    h.rope_interleaved = true;
    h.sliding_window = 64;
    h.sliding_pattern = 3; /* layers 3 and 6 are global */
    h.attention_scale = 0.0625f;
    test_model m;
    setun_graph *g;
    test_model_create(&m, &h, TEST_QK_NORM);
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    assert_int_equal(setun_transformer_build(g, &m.model, NULL), SETUN_OK);
    for (int i = 0; i < 6; i++) {
        const setun_graph_node *a = find_op(g, SETUN_OP_ATTENTION, i);
        bool global = i % 3 == 2;
        assert_int_equal(a->attention.cache_layer, i + 1);
        assert_int_equal(a->attention.window, global ? 0 : 64);
        assert_true(a->attention.scale == 0.0625f);
        for (int j = 0; j < 2; j++) {
            const setun_graph_node *r = find_op(g, SETUN_OP_ROPE, 2 * i + j);
            assert_true(r->rope.interleaved && r->rope.rotary == 32);
            assert_true(r->rope.theta == (global ? 1e6f : 1e4f) && r->rope.scale == (global ? 0.125f : 1) && r->rope.magnitude == (global ? 1.5f : 1));
            assert_int_equal(r->rope.factors != NULL, global);
            if (global) assert_memory_equal(r->rope.factors, factors, sizeof factors);
        }
    }
    const setun_graph_node *norm = find_op(g, SETUN_OP_RMS_NORM, 0);
    assert_true(norm->one_plus && norm->epsilon == 1e-6f);
    setun_graph_destroy(g);

    /* no pattern: all layers slide, and share the one theta when there is no local one */
    m.model.description.h.sliding_pattern = 0;
    m.model.description.h.rope_local_theta = 0;
    m.model.description.h.rotary = 16;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    assert_int_equal(setun_transformer_build(g, &m.model, NULL), SETUN_OK);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(find_op(g, SETUN_OP_ATTENTION, i)->attention.window, 64);
        assert_true(find_op(g, SETUN_OP_ROPE, 2 * i)->rope.theta == 1e6f);
        assert_int_equal(find_op(g, SETUN_OP_ROPE, 2 * i)->rope.rotary, 16);
    }
    setun_graph_destroy(g);
    test_model_destroy(&m);
}

static void incomplete_models_are_refused(void **state) {
    (void)state;
    for (int what = 0; what < 5; what++) {
        setun_hparams h = test_hparams(2);
        test_model m;
        setun_graph *g;
        test_model_create(&m, &h, 0);
        setun_description *d = &m.model.description;
        const char *words = NULL;
        switch (what) {
        case 0: d->layers[1].weight[SETUN_ROLE_K] = NULL, words = "blk.1.attn_k.weight"; break;
        case 1: d->global.weight[SETUN_ROLE_EMBEDDING] = NULL, words = "token_embd.weight"; break;
        case 2: d->global.weight[SETUN_ROLE_OUTPUT_NORM] = NULL, words = "output_norm.weight"; break;
        case 3: d->h.logit_softcap = 30, words = "soft-capped"; break;
        case 4: d->layers[0].weight[SETUN_ROLE_Q]->rows = 96, words = "reshape: [T, 96]"; break;
        }
        assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
        assert_int_not_equal(setun_transformer_build(g, &m.model, NULL), SETUN_OK);
        if (!strstr(setun_error(), words)) fail_msg("'%s' is not in: %s", words, setun_error());
        setun_graph_destroy(g);
        test_model_destroy(&m);
    }
    assert_int_equal(setun_transformer_build(NULL, NULL, NULL), SETUN_ERROR_ARGUMENT);
}

static void the_real_model_becomes_a_graph(void **state) {
    (void)state;
    if (access(SETUN_TEST_MODEL, R_OK) != 0) skip();
    setun_pool *pool;
    assert_int_equal(setun_pool_create(2, false, &pool), SETUN_OK);
    struct setun_context own = {.pool = pool};
    setun_model *model;
    if (setun_model_load(&own, SETUN_TEST_MODEL, NULL, &model) != SETUN_OK) fail_msg("%s", setun_error());
    setun_graph *g;
    assert_int_equal(setun_graph_create(&own, &g), SETUN_OK);
    if (setun_transformer_build(g, model, NULL) != SETUN_OK) fail_msg("%s", setun_error());
    assert_int_equal(setun_graph_verify(g), SETUN_OK);
    const setun_hparams *h = &model->description.h;
    int count[SETUN_OP_COUNT] = {0};
    for (int i = 0; i < g->node_count; i++) count[g->nodes[i].op]++;
    assert_int_equal(count[SETUN_OP_LINEAR], 7 * h->layers + 1);
    assert_int_equal(count[SETUN_OP_QUANTIZE], 7 * h->layers); /* every linear of a layer is ternary */
    assert_int_equal(count[SETUN_OP_RMS_NORM], 4 * h->layers + 1);
    assert_int_equal(count[SETUN_OP_ATTENTION], h->layers);
    setun_graph_destroy(g);
    setun_model_destroy(model);
    setun_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bitnet), cmocka_unit_test(qwen3_with_biases_and_embedding), cmocka_unit_test(gemma3_and_minicpm_scales),
        cmocka_unit_test(projection_norms_and_rotations), cmocka_unit_test(attributes_come_from_the_hyper_parameters),
        cmocka_unit_test(incomplete_models_are_refused), cmocka_unit_test(the_real_model_becomes_a_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
