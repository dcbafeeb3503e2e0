/* test_hparams.c - hyper-parameters from both worlds: what is refused, rope scaling, rotated weights, and the way into GGUF and back. */
#include "tiny.h"

/* ---- GGUF ---- */

static tiny base;

static void start(void) { tiny_gguf(&base, "llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_I2_S); }

static void refuse_u32(const char *key, uint32_t value, setun_status status, const char *word) {
    start();
    tiny_u32(&base, key, value);
    tiny_write_gguf(&base);
    tiny_refuse(&base, status, word, base.path, NULL);
    tiny_end(&base);
}

static void bad_gguf_numbers_are_refused(void **state) {
    (void)state;
    refuse_u32("llama.attention.head_count", 0, SETUN_ERROR_FORMAT, "head");
    refuse_u32("llama.attention.head_count", 3, SETUN_ERROR_FORMAT, "key-value heads");
    refuse_u32("llama.attention.head_count", 1000000, SETUN_ERROR_FORMAT, "attention heads");
    refuse_u32("llama.attention.head_count_kv", 0, SETUN_ERROR_FORMAT, "head_count_kv");
    refuse_u32("llama.attention.head_count_kv", 3, SETUN_ERROR_FORMAT, "key-value heads");
    refuse_u32("llama.attention.head_count_kv", 8, SETUN_ERROR_FORMAT, "key-value heads");
    refuse_u32("llama.attention.key_length", 33, SETUN_ERROR_FORMAT, "odd");
    refuse_u32("llama.attention.key_length", 1, SETUN_ERROR_FORMAT, "head size");
    refuse_u32("llama.attention.value_length", 16, SETUN_ERROR_UNSUPPORTED, "values 16");
    refuse_u32("llama.block_count", 0, SETUN_ERROR_FORMAT, "layers");
    refuse_u32("llama.block_count", 1, SETUN_ERROR_FORMAT, "blk.1.");
    refuse_u32("llama.block_count", 3, SETUN_ERROR_FORMAT, "blk.2.");
    refuse_u32("llama.block_count", 4097, SETUN_ERROR_FORMAT, "layers");
    refuse_u32("llama.block_count", UINT32_MAX, SETUN_ERROR_FORMAT, "block_count");
    refuse_u32("llama.embedding_length", 0, SETUN_ERROR_FORMAT, "width");
    refuse_u32("llama.embedding_length", UINT32_MAX, SETUN_ERROR_FORMAT, "embedding_length");
    refuse_u32("llama.embedding_length", 130, SETUN_ERROR_FORMAT, "130");
    refuse_u32("llama.feed_forward_length", 0, SETUN_ERROR_FORMAT, "feed-forward");
    refuse_u32("llama.feed_forward_length", 1 << 23, SETUN_ERROR_FORMAT, "feed-forward");
    refuse_u32("llama.context_length", 0, SETUN_ERROR_FORMAT, "context");
    refuse_u32("llama.vocab_size", 25, SETUN_ERROR_FORMAT, "token_embd.weight");
    refuse_u32("llama.vocab_size", 1 << 25, SETUN_ERROR_FORMAT, "vocabulary");
    refuse_u32("llama.rope.dimension_count", 7, SETUN_ERROR_FORMAT, "rope");
    refuse_u32("llama.rope.dimension_count", 34, SETUN_ERROR_FORMAT, "rope");
    refuse_u32("llama.expert_count", 8, SETUN_ERROR_UNSUPPORTED, "experts");
    refuse_u32("llama.attention.sliding_window", 16, SETUN_ERROR_UNSUPPORTED, "sliding_window");
    refuse_u32("llama.pooling_type", 1, SETUN_ERROR_UNSUPPORTED, "pooling_type");
    refuse_u32("llama.rope.scaling.type", 1, SETUN_ERROR_FORMAT, "rope.scaling.type"); /* not text */
    static const struct { const char *key; float value; setun_status status; const char *word; } floats[] = {
        {"llama.attention.layer_norm_rms_epsilon", NAN, SETUN_ERROR_FORMAT, "epsilon"}, {"llama.attention.layer_norm_rms_epsilon", -1e-5f, SETUN_ERROR_FORMAT, "epsilon"},
        {"llama.attention.layer_norm_rms_epsilon", 2, SETUN_ERROR_FORMAT, "epsilon"},   {"llama.rope.freq_base", 0, SETUN_ERROR_FORMAT, "theta"},
        {"llama.rope.freq_base", INFINITY, SETUN_ERROR_FORMAT, "theta"},                {"llama.final_logit_softcapping", 30, SETUN_ERROR_UNSUPPORTED, "soft-capped"},
        {"llama.block_count", 2.5f, SETUN_ERROR_FORMAT, "block_count"},                 {"llama.attention.scale", -1, SETUN_ERROR_FORMAT, "attention scale"},
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        start();
        tiny_f32(&base, floats[i].key, floats[i].value);
        tiny_write_gguf(&base);
        tiny_refuse(&base, floats[i].status, floats[i].word, base.path, NULL);
        tiny_end(&base);
    }
    static const char *const needed[] = {"general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        start();
        tiny_without_key(&base, needed[i]);
        tiny_write_gguf(&base);
        tiny_refuse(&base, SETUN_ERROR_FORMAT, needed[i], base.path, NULL);
        tiny_end(&base);
    }
    start();
    tiny_u32(&base, "llama.attention.key_length", 32);
    tiny_u32(&base, "llama.attention.value_length", 16);
    tiny_write_gguf(&base);
    tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "values 16", NULL, NULL);
    tiny_text(&base, "general.architecture", "mamba");
    tiny_write_gguf(&base);
    tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "'mamba'", "bitnet-b1.58", "qwen3");
    const int32_t ff[] = {TINY_FF, TINY_FF}, unequal[] = {TINY_FF, TINY_FF / 2};
    tiny_end(&base);
    start();
    tiny_integers(&base, "llama.feed_forward_length", 2, ff); /* a list of equal numbers is one number */
    tiny_write_gguf(&base);
    setun_model_destroy(tiny_load(&base));
    tiny_integers(&base, "llama.feed_forward_length", 2, unequal);
    tiny_write_gguf(&base);
    tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "feed_forward_length", "differs", NULL);
    tiny_end(&base);
}

static void vocabulary_comes_from_the_embedding_where_no_key_has_it(void **state) {
    (void)state;
    start();
    tiny_without_key(&base, "llama.vocab_size");
    tiny_write_gguf(&base);
    setun_model *m = tiny_load(&base);
    assert_int_equal(m->description.h.vocabulary, TINY_VOCABULARY);
    setun_model_destroy(m);
    tiny_end(&base);
}

/* ---- config.json ---- */

static json_t *good_config(void) {
    json_t *c = json_pack("{s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s}", "architectures", "LlamaForCausalLM", "hidden_size", 64, "intermediate_size", 96, "num_hidden_layers", 2, "num_attention_heads", 4,
        "num_key_value_heads", 2, "vocab_size", 32, "max_position_embeddings", 128, "rms_norm_eps", 1e-5, "hidden_act", "silu");
    assert_non_null(c);
    return c;
}

static void refuse_config(const char *key, json_t *value, setun_status status, const char *word) {
    json_t *c = good_config();
    if (value) json_object_set_new(c, key, value);
    else json_object_del(c, key);
    setun_hparams h;
    setun_status got = setun_hparams_from_config(c, "folder", &h);
    if (got != status || !strstr(setun_error(), word) || !strstr(setun_error(), "folder")) fail_msg("%s: %s: %s", key, setun_status_name(got), got ? setun_error() : "");
    json_decref(c);
}

static void bad_configs_are_refused(void **state) {
    (void)state;
    int64_t live = setun_alloc_live();
    refuse_config("architectures", NULL, SETUN_ERROR_FORMAT, "architectures");
    refuse_config("architectures", json_pack("[s]", "MambaForCausalLM"), SETUN_ERROR_UNSUPPORTED, "BitNetForCausalLM");
    refuse_config("architectures", json_pack("[i]", 3), SETUN_ERROR_FORMAT, "architectures");
    refuse_config("hidden_size", NULL, SETUN_ERROR_FORMAT, "hidden_size");
    refuse_config("hidden_size", json_string("64"), SETUN_ERROR_FORMAT, "hidden_size");
    refuse_config("hidden_size", json_real(64.5), SETUN_ERROR_FORMAT, "hidden_size");
    refuse_config("hidden_size", json_integer(-64), SETUN_ERROR_FORMAT, "hidden_size");
    refuse_config("hidden_size", json_integer(66), SETUN_ERROR_FORMAT, "66");
    refuse_config("num_attention_heads", json_integer(0), SETUN_ERROR_FORMAT, "heads");
    refuse_config("num_attention_heads", json_integer(64), SETUN_ERROR_FORMAT, "head size");
    refuse_config("num_key_value_heads", json_integer(0), SETUN_ERROR_FORMAT, "num_key_value_heads");
    refuse_config("num_key_value_heads", json_integer(3), SETUN_ERROR_FORMAT, "key-value");
    refuse_config("head_dim", json_integer(17), SETUN_ERROR_FORMAT, "odd");
    refuse_config("num_hidden_layers", json_integer(1LL << 40), SETUN_ERROR_FORMAT, "num_hidden_layers");
    refuse_config("num_hidden_layers", json_integer(1 << 20), SETUN_ERROR_FORMAT, "layers");
    refuse_config("hidden_act", json_string("gelu"), SETUN_ERROR_UNSUPPORTED, "gelu");
    refuse_config("rms_norm_eps", json_real(3), SETUN_ERROR_FORMAT, "epsilon");
    refuse_config("rope_theta", json_integer(-1), SETUN_ERROR_FORMAT, "theta");
    refuse_config("rope_scaling", json_string("linear"), SETUN_ERROR_FORMAT, "rope_scaling");
    refuse_config("rope_scaling", json_pack("{s:s, s:i}", "type", "dynamic", "factor", 2), SETUN_ERROR_UNSUPPORTED, "dynamic");
    refuse_config("rope_scaling", json_pack("{s:s}", "type", "linear"), SETUN_ERROR_FORMAT, "factor");
    refuse_config("rope_scaling", json_pack("{s:s, s:i}", "type", "llama3", "factor", 8), SETUN_ERROR_FORMAT, "low_freq_factor");
    refuse_config("rope_scaling", json_pack("{s:s, s:f, s:f}", "type", "yarn", "factor", 4.0, "mscale", 1.0), SETUN_ERROR_UNSUPPORTED, "mscale");
    refuse_config("rope_scaling", json_pack("{s:s, s:[f,f], s:i}", "type", "longrope", "short_factor", 1.0, 1.0, "original_max_position_embeddings", 64), SETUN_ERROR_FORMAT, "2 short factors");
    refuse_config("rope_scaling", json_pack("{s:s, s:[f,f,f,f,f,f,f,s], s:i}", "type", "longrope", "short_factor", 1., 1., 1., 1., 1., 1., 1., "x", "original_max_position_embeddings", 64), SETUN_ERROR_FORMAT,
        "short factor");
    refuse_config("partial_rotary_factor", json_real(1.5), SETUN_ERROR_FORMAT, "partial_rotary_factor");
    refuse_config("num_experts", json_integer(8), SETUN_ERROR_UNSUPPORTED, "experts");
    refuse_config("layer_types", json_pack("[s,s]", "full_attention", "sliding_attention"), SETUN_ERROR_UNSUPPORTED, "layer_types");
    refuse_config("layer_types", json_pack("[s]", "full_attention"), SETUN_ERROR_FORMAT, "layer_types");
    refuse_config("layer_types", json_pack("[s,s]", "full_attention", "linear_attention"), SETUN_ERROR_UNSUPPORTED, "linear_attention");
    refuse_config("quantization_config", json_pack("{s:s}", "quant_method", "gptq"), SETUN_ERROR_UNSUPPORTED, "gptq");
    refuse_config("quantization_config", json_pack("{s:s, s:s}", "quant_method", "bitnet", "linear_class", "other"), SETUN_ERROR_UNSUPPORTED, "linear_class");
    refuse_config("quantization_config", json_pack("{s:s, s:s}", "quant_method", "bitnet", "quantization_mode", "other"), SETUN_ERROR_UNSUPPORTED, "quantization_mode");
    refuse_config("quantization_config", json_pack("{s:s, s:s}", "quant_method", "bitnet", "modules_to_not_convert", "lm_head"), SETUN_ERROR_FORMAT, "modules_to_not_convert");
    refuse_config("quantization", json_pack("{s:i, s:i}", "bits", 4, "group_size", 64), SETUN_ERROR_UNSUPPORTED, "4 bits");
    refuse_config("quantization", json_pack("{s:i, s:s}", "bits", 2, "mode", "mxfp4"), SETUN_ERROR_UNSUPPORTED, "mxfp4");
    setun_hparams h;
    json_t *list = json_array();
    assert_int_equal(setun_hparams_from_config(list, "folder", &h), SETUN_ERROR_FORMAT);
    json_decref(list);
    assert_int_equal(setun_alloc_live(), live);
}

static void skipped_modules_match_whole_parts(void **state) {
    (void)state;
    json_t *skip = json_pack("[s,s,i]", "lm_head", "layers.1.mlp", 3);
    setun_quantization q = {.bitnet = true, .skip = skip};
    assert_true(setun_quantization_skips(&q, "lm_head.weight"));
    assert_false(setun_quantization_skips(&q, "model.xlm_head.weight"));
    assert_true(setun_quantization_skips(&q, "layers.1.mlp.up_proj.weight"));
    assert_false(setun_quantization_skips(&q, "layers.1.mlp2.up_proj.weight"));
    assert_false(setun_quantization_skips(&q, "layers.11.mlp.up_proj.weight"));
    assert_true(setun_quantization_skips(&q, "model.layers.1.mlp.weight"));
    json_decref(skip);
}

static json_t *with(json_t *config, const char *key, json_t *value) {
    json_object_set_new(config, key, value);
    return config;
}

static setun_hparams read_config(json_t *config) {
    setun_hparams h;
    if (setun_hparams_from_config(config, "folder", &h) != SETUN_OK) fail_msg("%s", setun_error());
    json_decref(config);
    return h;
}

static void rope_is_scaled(void **state) {
    (void)state;
    /* head size 16: 8 pairs, wavelengths 2 pi theta^(i/8) */
    setun_hparams h = read_config(with(good_config(), "rope_scaling", json_pack("{s:s, s:f}", "type", "linear", "factor", 4.0)));
    assert_true(h.rope_scale == 0.25f && !h.rope_factors);
    setun_hparams_free(&h);
    h = read_config(with(good_config(), "rope_scaling", json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", 8.0, "low_freq_factor", 1.0, "high_freq_factor", 4.0, "original_max_position_embeddings", 256)));
    assert_non_null(h.rope_factors);
    assert_true(h.rope_factors[0] == 1.0f); /* 6.3 < 256/4: kept */
    assert_true(h.rope_factors[7] == 8.0f); /* 19869 > 256: slowed by the factor */
    for (int i = 1; i < 8; i++) assert_true(h.rope_factors[i] >= h.rope_factors[i - 1]);
    double wavelength = 2 * 3.14159265358979 * pow(10000, 3 / 8.0), smooth = (256 / wavelength - 1) / 3; /* between: 198.7 */
    assert_float_equal(h.rope_factors[3], 1 / ((1 - smooth) / 8 + smooth), 1e-5);
    setun_hparams_free(&h);
    h = read_config(with(good_config(), "rope_scaling", json_pack("{s:s, s:f, s:i}", "rope_type", "yarn", "factor", 4.0, "original_max_position_embeddings", 32)));
    assert_float_equal(h.rope_magnitude, 0.1 * log(4) + 1, 1e-6);
    /* the ramp goes from 0 to 2: 16/(2 ln 10000) ln(32/2 pi) = 1.41, rounded up; half-way is 1/(0.5/4 + 0.5) */
    assert_true(h.rope_factors[0] == 1.0f && h.rope_factors[1] == 1.6f && h.rope_factors[2] == 4.0f && h.rope_factors[7] == 4.0f);
    setun_hparams_free(&h);
    h = read_config(with(good_config(), "rope_parameters", json_pack("{s:s, s:f, s:[f,f,f,f,f,f,f,f], s:i}", "rope_type", "longrope", "rope_theta", 500000.0, "short_factor", 1., 2., 3., 4., 5., 6., 7., 8.,
        "original_max_position_embeddings", 64)));
    assert_true(h.rope_theta == 500000.0f && h.rope_factors[6] == 7.0f);
    assert_int_equal(h.context, 64); /* where the short factors hold */
    assert_float_equal(h.rope_magnitude, sqrt(1 + log(2) / log(64)), 1e-6);
    setun_hparams_free(&h);
    h = read_config(with(good_config(), "partial_rotary_factor", json_real(0.5)));
    assert_int_equal(h.rotary, 8);
    h = read_config(with(good_config(), "rope_parameters", json_pack("{s:s, s:i}", "rope_type", "default", "rope_theta", 7777)));
    assert_true(h.rope_theta == 7777.0f && !h.rope_factors && h.rope_magnitude == 0);
}

static void families_have_their_scales(void **state) {
    (void)state;
    json_t *c = good_config();
    json_object_set_new(c, "architectures", json_pack("[s]", "MiniCPMForCausalLM"));
    json_object_update_new(c, json_pack("{s:i, s:f, s:i, s:{s:i}}", "scale_emb", 12, "scale_depth", 1.4, "dim_model_base", 16, "sparse_config", "dense_len", 100));
    setun_hparams h = read_config(c);
    assert_true(h.embedding_scale == 12 && h.logit_scale == 0.25f);
    assert_float_equal(h.residual_scale, 1.4 / sqrt(2), 1e-6);
    assert_int_equal(h.context, 100);
    c = good_config();
    json_object_set_new(c, "architectures", json_pack("[s]", "Gemma3TextModel"));
    json_object_update_new(c, json_pack("{s:s, s:i, s:i, s:i}", "hidden_act", "gelu_pytorch_tanh", "head_dim", 16, "sliding_window", 8, "num_hidden_layers", 12));
    h = read_config(c);
    assert_true(h.norm_one_plus && h.embedding_model && h.embedding_scale == 8.0f);
    assert_true(h.attention_scale == 0.0625f); /* query_pre_attn_scalar 256 is the default */
    assert_int_equal(h.sliding_window, 8);
    assert_int_equal(h.sliding_pattern, 6);
    assert_true(h.rope_theta == 1e6f && h.rope_local_theta == 1e4f);
}

/* ---- to GGUF and back ---- */

static void same(const setun_hparams *a, const setun_hparams *b) {
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->feed_forward, b->feed_forward);
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_size, b->head_size);
    assert_int_equal(a->vocabulary, b->vocabulary);
    assert_int_equal(a->context, b->context);
    assert_true(a->epsilon == b->epsilon);
    assert_int_equal(a->norm_one_plus, b->norm_one_plus);
    assert_int_equal(a->activation, b->activation);
    assert_int_equal(a->activation_int8, b->activation_int8);
    assert_int_equal(a->projection_norm, b->projection_norm);
    assert_true(a->projection_norm_epsilon == b->projection_norm_epsilon);
    assert_true(a->rope_theta == b->rope_theta);
    assert_int_equal(a->rope_interleaved, b->rope_interleaved);
    assert_int_equal(a->rotary, b->rotary);
    assert_true(a->rope_scale == b->rope_scale);
    assert_true(a->rope_magnitude == b->rope_magnitude);
    assert_int_equal(!a->rope_factors, !b->rope_factors);
    if (a->rope_factors) assert_memory_equal(a->rope_factors, b->rope_factors, (size_t)a->rotary / 2 * sizeof(float));
    assert_true(a->rope_local_theta == b->rope_local_theta);
    assert_int_equal(a->sliding_window, b->sliding_window);
    assert_int_equal(a->sliding_pattern, b->sliding_pattern);
    assert_true(a->attention_scale == b->attention_scale);
    assert_true(a->embedding_scale == b->embedding_scale);
    assert_true(a->residual_scale == b->residual_scale);
    assert_true(a->logit_scale == b->logit_scale);
    assert_int_equal(a->embedding_model, b->embedding_model);
    assert_int_equal(a->family, b->family);
}

static void through_gguf(const setun_hparams *h) {
    char folder[] = "/tmp/setun-model-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/h.gguf", folder);
    setun_gguf_writer *w;
    assert_int_equal(setun_gguf_writer_create(path, true, 0, &w), SETUN_OK);
    if (setun_hparams_to_gguf(h, w) != SETUN_OK) fail_msg("%s", setun_error());
    const int64_t shape[1] = {4};
    assert_int_equal(setun_gguf_add_tensor(w, "output_norm.weight", SETUN_FORMAT_F32, 1, shape, 16), SETUN_OK);
    assert_int_equal(setun_gguf_begin_data(w), SETUN_OK);
    assert_int_equal(setun_gguf_write_tensor(w, "0123456789abcdef", 16), SETUN_OK);
    assert_int_equal(setun_gguf_commit(w), SETUN_OK);
    setun_file *file;
    assert_int_equal(setun_file_open(path, NULL, &file), SETUN_OK);
    setun_hparams back;
    if (setun_hparams_from_gguf(file, &back) != SETUN_OK) fail_msg("%s", setun_error());
    same(h, &back);
    setun_hparams_free(&back);
    setun_file_close(file);
    unlink(path);
    rmdir(folder);
}

static void gguf_metadata_gives_back_what_went_in(void **state) {
    (void)state;
    static const char *const families[] = {"bitnet_packed", "bitnet_online", "bitnet_1bitllm", "llama_bitnet", "falcon3", "llama_sub_norm", "trilm", "bonsai_mlx", "qwen2_bitnet", "embedding_qwen3", "embedding_gemma3", "minicpm4"};
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/families/%s/config.json", SETUN_TEST_GOLDEN, families[i]);
        json_t *config;
        assert_int_equal(setun_json_load(path, &config), SETUN_OK);
        setun_hparams h;
        if (setun_hparams_from_config(config, path, &h) != SETUN_OK) fail_msg("%s", setun_error());
        json_decref(config);
        through_gguf(&h);
        h.rope_interleaved = setun_gguf_interleaved(setun_gguf_architecture(&h)); /* as convert leaves it */
        h.norm_one_plus = false;
        through_gguf(&h);
        h.activation_int8 = !h.activation_int8;
        through_gguf(&h);
        setun_hparams_free(&h);
    }
    setun_hparams h = {.family = SETUN_FAMILY_LLAMA, .layers = 1, .width = 64, .feed_forward = 64, .heads = 4, .kv_heads = 4, .head_size = 16, .rotary = 8, .vocabulary = 10, .context = 10, .epsilon = 1e-6f,
        .rope_theta = 10000, .rope_scale = 0.0058f /* 1/(1/x) is another float */, .activation = SETUN_ACT_RELU2, .projection_norm = true, .projection_norm_epsilon = 1e-5f, .activation_int8 = true, .embedding_scale = 3, .residual_scale = 0.5f,
        .logit_scale = 1 / 7.0f, .attention_scale = 0.1f};
    through_gguf(&h);
    assert_true(setun_gguf_interleaved("llama") && setun_gguf_interleaved("minicpm"));
    assert_false(setun_gguf_interleaved("bitnet") || setun_gguf_interleaved("qwen3") || setun_gguf_interleaved("nonsense"));
}

/* ---- rotated weights ---- */

static const char *rotated_names[2 * 7 + 1];
static char rotated_text[2 * 7][96];

static void start_rotated(void) {
    tiny_gguf(&base, "qwen3", SETUN_FAMILY_QWEN3, SETUN_FORMAT_PQ2_0);
    tiny_u32(&base, "prism.hadamard.version", 1);
    tiny_u32(&base, "prism.hadamard.block_size", 64);
    tiny_text(&base, "prism.hadamard.transform", "normalized-sylvester-walsh-hadamard");
    tiny_text(&base, "prism.hadamard.axis", "input-last-dimension");
    tiny_text(&base, "prism.hadamard.sign_mode", "identity");
    int n = 0;
    for (int r = 0; r < SETUN_ROLE_COUNT; r++)
        for (int layer = 0; layer < TINY_LAYERS && setun_role_is_linear((setun_role)r); layer++, n++) {
            assert_int_equal(setun_role_name((setun_role)r, layer, true, "weight", rotated_text[n], sizeof rotated_text[n]), SETUN_OK);
            rotated_names[n] = rotated_text[n];
        }
    assert_int_equal(n, 14);
    tiny_strings(&base, "prism.hadamard.weight_names", 14, rotated_names);
}

static void rotations_are_read(void **state) {
    (void)state;
    start_rotated();
    tiny_write_gguf(&base);
    setun_model *m = tiny_load(&base);
    assert_true(m->description.rotated && !m->description.embedding_rotated && !m->description.output_rotated);
    assert_int_equal(m->description.hadamard_width.block, 64);
    assert_int_equal(m->description.hadamard_feed_forward.block, 64);
    assert_int_equal(m->description.hadamard_attention.block, 64);
    assert_null(m->description.hadamard_width.signs);
    setun_model_destroy(m);
    const char *embedding[] = {"token_embd.weight"};
    tiny_strings(&base, "prism.hadamard.inverse_weight_names", 1, embedding);
    tiny_strings(&base, "prism.hadamard.weight_names", 14, rotated_names);
    tiny_write_gguf(&base);
    m = tiny_load(&base);
    assert_true(m->description.embedding_rotated && m->description.output_rotated); /* the head is tied to it */
    setun_model_destroy(m);
    /* o and down only */
    const char *some[] = {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"};
    tiny_without_key(&base, "prism.hadamard.inverse_weight_names");
    tiny_strings(&base, "prism.hadamard.weight_names", 2, some);
    tiny_write_gguf(&base);
    m = tiny_load(&base);
    assert_int_equal(m->description.hadamard_width.block, 0);
    assert_int_equal(m->description.hadamard_attention.block, 0);
    assert_int_equal(m->description.hadamard_feed_forward.block, 64);
    setun_model_destroy(m);
    tiny_end(&base);
}

static void unknown_rotations_are_refused(void **state) {
    (void)state;
    static const struct { const char *key, *text; uint32_t number; setun_status status; const char *word; } rows[] = {
        {"version", NULL, 2, SETUN_ERROR_UNSUPPORTED, "version"},
        {"version", "1", 0, SETUN_ERROR_UNSUPPORTED, "version"},
        {"block_size", NULL, 48, SETUN_ERROR_UNSUPPORTED, "block_size"},
        {"block_size", NULL, 0, SETUN_ERROR_UNSUPPORTED, "block_size"},
        {"block_size", NULL, 1, SETUN_ERROR_UNSUPPORTED, "block_size"},
        {"block_size", NULL, 256, SETUN_ERROR_FORMAT, "blocks of 256"},
        {"transform", "walsh", 0, SETUN_ERROR_UNSUPPORTED, "'walsh'"},
        {"transform", NULL, 3, SETUN_ERROR_FORMAT, "transform"},
        {"axis", "output", 0, SETUN_ERROR_UNSUPPORTED, "axis"},
        {"sign_mode", "random", 0, SETUN_ERROR_UNSUPPORTED, "identity, explicit"},
        {"sign_mode", "explicit", 0, SETUN_ERROR_FORMAT, "sign_widths"},
        {"permutation", NULL, 1, SETUN_ERROR_UNSUPPORTED, "permutation"},
        {"weight_names", "attn_q", 0, SETUN_ERROR_FORMAT, "weight_names"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char key[96];
        start_rotated();
        snprintf(key, sizeof key, "prism.hadamard.%s", rows[i].key);
        if (rows[i].text) tiny_text(&base, key, rows[i].text);
        else tiny_u32(&base, key, rows[i].number);
        tiny_write_gguf(&base);
        tiny_refuse(&base, rows[i].status, rows[i].word, base.path, NULL);
        tiny_end(&base);
    }
    static const char *const needed[] = {"version", "block_size", "transform", "axis", "sign_mode", "weight_names"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        char key[96];
        start_rotated();
        snprintf(key, sizeof key, "prism.hadamard.%s", needed[i]);
        tiny_without_key(&base, key);
        tiny_write_gguf(&base);
        tiny_refuse(&base, strcmp(needed[i], "weight_names") == 0 ? SETUN_ERROR_FORMAT : SETUN_ERROR_UNSUPPORTED, needed[i], NULL, NULL);
        tiny_end(&base);
    }
    start_rotated(); /* q of one layer is not rotated, or a norm is, or a tensor that is not there */
    tiny_strings(&base, "prism.hadamard.weight_names", 13, rotated_names + 1);
    tiny_write_gguf(&base);
    tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "only some", NULL, NULL);
    const char *queries[] = {"blk.0.attn_q.weight", "blk.1.attn_q.weight"}; /* k and v have the same input */
    tiny_strings(&base, "prism.hadamard.weight_names", 2, queries);
    tiny_write_gguf(&base);
    tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "only some", NULL, NULL);
    static const char *const odd[] = {"blk.0.attn_norm.weight", "blk.2.attn_q.weight", "output.weight", "token_embd.weight", ""};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        tiny_strings(&base, "prism.hadamard.weight_names", 1, &odd[i]);
        tiny_write_gguf(&base);
        tiny_refuse(&base, SETUN_ERROR_UNSUPPORTED, "weight_names", odd[i], NULL);
    }
    tiny_end(&base);
    /* explicit signs: a value that is no sign, widths that do not add up, a width that is missing */
    int32_t signs[64], widths[3] = {32, 16, 0};
    for (int i = 0; i < 64; i++) signs[i] = i % 3 ? 1 : -1;
    const char *downs[] = {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"};
    for (int way = 0; way < 3; way++) {
        start_rotated();
        tiny_text(&base, "prism.hadamard.sign_mode", "explicit");
        tiny_strings(&base, "prism.hadamard.weight_names", 2, downs);
        if (way == 0) signs[40] = 2;
        tiny_integers(&base, "prism.hadamard.sign_values", way == 1 ? 40 : way == 2 ? 50 : 48, signs);
        tiny_integers(&base, "prism.hadamard.sign_widths", 2, widths);
        tiny_write_gguf(&base);
        tiny_refuse(&base, SETUN_ERROR_FORMAT, way == 0 ? "[40] is 2" : way == 1 ? "does not go with" : "add up to 48", NULL, NULL);
        signs[40] = 1;
        tiny_integers(&base, "prism.hadamard.sign_values", 48, signs); /* no width is the feed-forward's */
        tiny_write_gguf(&base);
        tiny_refuse(&base, SETUN_ERROR_FORMAT, "lacks a width", NULL, NULL);
        tiny_end(&base);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_gguf_numbers_are_refused), cmocka_unit_test(vocabulary_comes_from_the_embedding_where_no_key_has_it), cmocka_unit_test(bad_configs_are_refused),
        cmocka_unit_test(skipped_modules_match_whole_parts), cmocka_unit_test(rope_is_scaled), cmocka_unit_test(families_have_their_scales), cmocka_unit_test(gguf_metadata_gives_back_what_went_in),
        cmocka_unit_test(rotations_are_read), cmocka_unit_test(unknown_rotations_are_refused),
    };
    return cmocka_run_group_tests(tests, tiny_context_make, tiny_context_end);
}
