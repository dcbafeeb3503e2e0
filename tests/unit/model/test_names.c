/* test_names.c - names of tensors in both worlds, to roles and back. */
#include "tiny.h"

static void every_role_has_names_that_mean_it(void **state) {
    (void)state;
    static const char *const suffixes[] = {"weight", "bias", "weight_scale", "input_norm", "scales", "biases"};
    int tried = 0;
    for (int gemma = 0; gemma < 2; gemma++)
        for (int gguf = 0; gguf < 2; gguf++)
            for (int r = 0; r < SETUN_ROLE_COUNT; r++)
                for (size_t s = 0; s < sizeof suffixes / sizeof suffixes[0]; s++)
                    for (int layer = 0; layer < 1200; layer += 119) {
                        setun_family family = gemma ? SETUN_FAMILY_GEMMA3 : SETUN_FAMILY_LLAMA;
                        char name[160];
                        setun_role role;
                        int found;
                        const char *suffix;
                        setun_status status = setun_role_name_family((setun_role)r, family, layer, gguf, suffixes[s], name, sizeof name);
                        if (r == SETUN_ROLE_POST_ATTN_NORM && !gguf && !gemma) { /* no such thing there */
                            assert_int_equal(status, SETUN_ERROR_UNSUPPORTED);
                            continue;
                        }
                        assert_int_equal(status, SETUN_OK);
                        if (!setun_role_of_family(name, family, &role, &found, &suffix)) fail_msg("%s", name);
                        if (role != (setun_role)r) fail_msg("%s: %s instead of %s", name, setun_role_title(role), setun_role_title((setun_role)r));
                        assert_int_equal(found, setun_role_is_per_layer(role) ? layer : -1);
                        assert_string_equal(suffix, suffixes[s]);
                        tried++;
                    }
    assert_true(tried > 4000);
}

static void known_spellings(void **state) {
    (void)state;
    static const struct { const char *name; setun_role role; int layer; const char *suffix; } rows[] = {
        {"token_embd.weight", SETUN_ROLE_EMBEDDING, -1, "weight"},
        {"output.weight", SETUN_ROLE_OUTPUT, -1, "weight"},
        {"blk.29.attn_sub_norm.weight", SETUN_ROLE_ATTN_SUB_NORM, 29, "weight"},
        {"blk.0.attn_q_norm.weight", SETUN_ROLE_Q_NORM, 0, "weight"},
        {"blk.3.attn_q_norm_in.weight", SETUN_ROLE_Q, 3, "input_norm"},
        {"blk.3.attn_output_norm_in.weight", SETUN_ROLE_O, 3, "input_norm"},
        {"blk.3.ffn_down_norm_in.weight", SETUN_ROLE_DOWN, 3, "input_norm"},
        {"blk.7.ffn_gate.scale", SETUN_ROLE_GATE, 7, "scale"},
        {"blk.7.post_attention_norm.weight", SETUN_ROLE_POST_ATTN_NORM, 7, "weight"},
        {"blk.7.attn_k.bias", SETUN_ROLE_K, 7, "bias"},
        {"model.layers.11.mlp.down_proj.weight_scale", SETUN_ROLE_DOWN, 11, "weight_scale"},
        {"model.layers.11.self_attn.inner_attn_ln.weight", SETUN_ROLE_ATTN_SUB_NORM, 11, "weight"},
        {"model.layers.11.mlp.ffn_layernorm.weight", SETUN_ROLE_FFN_SUB_NORM, 11, "weight"},
        {"layers.2.self_attn.q_proj.norm.weight", SETUN_ROLE_Q, 2, "input_norm"},
        {"model.layers.2.self_attn.o_proj.rms_norm.weight", SETUN_ROLE_O, 2, "input_norm"},
        {"embed_tokens.weight", SETUN_ROLE_EMBEDDING, -1, "weight"},
        {"norm.weight", SETUN_ROLE_OUTPUT_NORM, -1, "weight"},
        {"lm_head.biases", SETUN_ROLE_OUTPUT, -1, "biases"},
        {"model.layers.0.post_attention_layernorm.weight", SETUN_ROLE_FFN_NORM, 0, "weight"},
        {"model.layers.0.pre_feedforward_layernorm.weight", SETUN_ROLE_FFN_NORM, 0, "weight"},
    };
    setun_role role;
    int layer;
    const char *suffix;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!setun_role_of(rows[i].name, &role, &layer, &suffix)) fail_msg("%s", rows[i].name);
        if (role != rows[i].role) fail_msg("%s: %s", rows[i].name, setun_role_title(role));
        assert_int_equal(layer, rows[i].layer);
        assert_string_equal(suffix, rows[i].suffix);
    }
    assert_true(setun_role_of_family("model.layers.0.post_attention_layernorm.weight", SETUN_FAMILY_GEMMA3, &role, &layer, &suffix));
    assert_int_equal(role, SETUN_ROLE_POST_ATTN_NORM);
    static const char *const unknown[] = {"", "blk", "blk.0", "blk.0.attn_q", "blk..attn_q.weight", "blk.00.attn_q.weight", "blk.-1.attn_q.weight", "blk.99999999.attn_q.weight", "blk.0.attn_qq.weight",
        "blk.0.attn_q.weights", "model.layers.0.mlp.experts.0.up_proj.weight", "output_norm", "token_embd.weight.weight", "xblk.0.attn_q.weight", "model.model.norm.weight"};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        if (setun_role_of(unknown[i], &role, &layer, &suffix)) fail_msg("'%s' is %s", unknown[i], setun_role_title(role));
    char small[8];
    assert_int_equal(setun_role_name(SETUN_ROLE_Q, 0, true, "weight", small, sizeof small), SETUN_ERROR_ARGUMENT);
    char name[96];
    assert_int_equal(setun_role_name(SETUN_ROLE_Q, 0, true, "nonsense", name, sizeof name), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_role_name(SETUN_ROLE_Q, -1, true, "weight", name, sizeof name), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_role_name(SETUN_ROLE_COUNT, 0, true, "weight", name, sizeof name), SETUN_ERROR_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_role_has_names_that_mean_it), cmocka_unit_test(known_spellings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
