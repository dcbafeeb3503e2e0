/* test_load.c - loading: what a good file becomes, and that every kind of bad one is refused by name. */
#include "tiny.h"

/* ---- good files ---- */

static void a_bitnet_file_becomes_a_description(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet-b1.58", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_write_gguf(&t);
    setun_model *m = tiny_load(&t);
    const setun_description *d = &m->description;
    assert_int_equal(d->h.layers, TINY_LAYERS);
    assert_int_equal(d->h.head_size, TINY_HEAD);
    assert_int_equal(d->h.rotary, TINY_HEAD);
    assert_int_equal(d->h.activation, SETUN_ACT_RELU2);
    assert_true(d->h.activation_int8);
    assert_false(d->h.rope_interleaved);
    assert_false(d->rotated);
    assert_null(d->global.weight[SETUN_ROLE_OUTPUT]);
    assert_ptr_equal(d->global.weight[SETUN_ROLE_EMBEDDING], setun_model_find(m, "token_embd.weight"));
    assert_null(setun_model_find(m, "output.weight"));
    for (int i = 0; i < TINY_LAYERS; i++)
        for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
            const setun_weight *w = d->layers[i].weight[r];
            if (!setun_role_is_linear((setun_role)r)) continue;
            assert_non_null(w);
            assert_true(w->probed && w->info.ternary && w->mapped);
            assert_int_equal(w->info.scale, SETUN_SCALE_TENSOR);
            assert_true(w->info.tensor_scale == 0.0625f);
        }
    assert_false(d->global.weight[SETUN_ROLE_EMBEDDING]->info.ternary);
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(m, &info), SETUN_OK);
    assert_string_equal(info.architecture, "bitnet-b1.58");
    assert_string_equal(info.name, "tiny");
    assert_int_equal(info.vocabulary, TINY_VOCABULARY);
    assert_int_equal(info.context, 64);
    uint64_t linear = TINY_LAYERS * (2 * TINY_WIDTH * TINY_WIDTH + 2 * TINY_WIDTH * TINY_WIDTH / 2 + 3 * TINY_WIDTH * TINY_FF);
    uint64_t others = TINY_VOCABULARY * TINY_WIDTH + TINY_WIDTH + TINY_LAYERS * (3 * TINY_WIDTH + TINY_FF);
    assert_int_equal(info.parameters, linear + others);
    assert_int_equal(info.weight_bytes, linear / 4 + 32 * 7 * TINY_LAYERS + others * 4);
    setun_model_info small = {.size = offsetof(setun_model_info, layers)}; /* an older caller's struct is not written beyond its end */
    small.layers = -7;
    assert_int_equal(setun_model_get_info(m, &small), SETUN_OK);
    assert_int_equal(small.layers, -7);
    setun_model_destroy(m);
    tiny_end(&t);
}

static void formats_decide_about_int8_where_no_key_does(void **state) {
    (void)state;
    static const struct { const char *architecture; setun_family family; setun_format format; bool int8, interleaved; } rows[] = {
        {"llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_I2_S, true, true},      /* Falcon3, Llama3-8B-1.58 by bitnet.cpp */
        {"llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_IQ2_BN, true, true},
        {"llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_Q2_0, false, true},
        {"qwen3", SETUN_FAMILY_QWEN3, SETUN_FORMAT_PQ2_0, false, false},   /* Bonsai */
        {"qwen3", SETUN_FAMILY_QWEN3, SETUN_FORMAT_PTQ1_0, false, false},
        {"qwen2", SETUN_FAMILY_QWEN2, SETUN_FORMAT_Q2_0, false, false},
        {"bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_Q2_0, true, false},
        {"bitnet-25", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S, true, false},
        {"gemma3", SETUN_FAMILY_GEMMA3, SETUN_FORMAT_Q2_0, false, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        tiny_gguf(&t, rows[i].architecture, rows[i].family, rows[i].format);
        tiny_write_gguf(&t);
        setun_model *m = tiny_load(&t);
        assert_int_equal(m->description.h.activation_int8, rows[i].int8);
        assert_int_equal(m->description.h.rope_interleaved, rows[i].interleaved);
        setun_model_destroy(m);
        tiny_bool(&t, "setun.activation_int8", !rows[i].int8); /* Setun's own key says it */
        tiny_write_gguf(&t);
        m = tiny_load(&t);
        assert_int_equal(m->description.h.activation_int8, !rows[i].int8);
        setun_model_destroy(m);
        tiny_end(&t);
    }
}

static void scales_of_packed_files_multiply_or_divide(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    tiny_write_huggingface(&t);
    setun_model *m = tiny_load(&t);
    assert_true(m->description.layers[1].weight[SETUN_ROLE_UP]->info.tensor_scale == 0.25f);
    assert_true(m->description.h.activation_int8);
    setun_model_destroy(m);
    json_object_del(json_object_get(t.config, "quantization_config"), "linear_class");
    tiny_write_config(&t);
    m = tiny_load(&t);
    assert_true(m->description.layers[1].weight[SETUN_ROLE_UP]->info.tensor_scale == 4.0f);
    setun_model_destroy(m);
    /* without a rule the direction is unknown */
    json_object_del(t.config, "quantization_config");
    tiny_write_config(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "q_proj.weight", "quantization_config", NULL);
    tiny_end(&t);
}

static void masters_become_ternary_where_the_rule_says_so(void **state) {
    (void)state;
    static const struct { const char *architecture, *mode; setun_family family; bool absmean; } rows[] = {
        {"BitNetForCausalLM", "online", SETUN_FAMILY_BITNET, true}, {"BitNetForCausalLM", NULL, SETUN_FAMILY_BITNET, false},
        {"BitnetForCausalLM", NULL, SETUN_FAMILY_BITNET, true},     {"LlamaForCausalLM", NULL, SETUN_FAMILY_LLAMA, false},
        {"LlamaForCausalLM", "online", SETUN_FAMILY_LLAMA, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        tiny_huggingface(&t, rows[i].architecture, rows[i].family, false);
        if (rows[i].mode)
            json_object_set_new(t.config, "quantization_config", json_pack("{s:s, s:s, s:s, s:[s]}", "quant_method", "bitnet", "linear_class", "autobitlinear", "quantization_mode", rows[i].mode,
                "modules_to_not_convert", "layers.1.mlp.up_proj"));
        tiny_write_huggingface(&t);
        setun_model *m = tiny_load(&t);
        const setun_layer *layers = m->description.layers;
        assert_int_equal(layers[0].weight[SETUN_ROLE_UP]->absmean, rows[i].absmean);
        assert_int_equal(layers[0].weight[SETUN_ROLE_UP]->info.ternary, rows[i].absmean);
        assert_int_equal(layers[1].weight[SETUN_ROLE_UP]->absmean, rows[i].absmean && !rows[i].mode);
        assert_int_equal(layers[1].weight[SETUN_ROLE_DOWN]->absmean, rows[i].absmean);
        assert_false(m->description.global.weight[SETUN_ROLE_EMBEDDING]->absmean);
        setun_model_destroy(m);
        tiny_end(&t);
    }
}

static void heads_are_tied_as_the_config_says(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    json_object_set_new(t.config, "tie_word_embeddings", json_false());
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "lm_head.weight", "missing", NULL);
    tiny_floats(&t, "lm_head.weight", 2, TINY_VOCABULARY, TINY_WIDTH);
    tiny_write_huggingface(&t);
    setun_model *m = tiny_load(&t);
    assert_non_null(m->description.global.weight[SETUN_ROLE_OUTPUT]);
    setun_model_destroy(m);
    json_object_set_new(t.config, "tie_word_embeddings", json_true()); /* the copy in the file counts for nothing */
    tiny_write_config(&t);
    m = tiny_load(&t);
    assert_null(m->description.global.weight[SETUN_ROLE_OUTPUT]);
    setun_model_destroy(m);
    json_object_del(t.config, "tie_word_embeddings");
    tiny_write_config(&t);
    m = tiny_load(&t);
    assert_non_null(m->description.global.weight[SETUN_ROLE_OUTPUT]);
    setun_model_destroy(m);
    tiny_end(&t);
}

/* ---- tensors ---- */

static void every_missing_tensor_is_named(void **state) {
    (void)state;
    static const struct { const char *architecture; setun_family family; } rows[] = {{"bitnet", SETUN_FAMILY_BITNET}, {"qwen3", SETUN_FAMILY_QWEN3}, {"gemma3", SETUN_FAMILY_GEMMA3}, {"qwen2", SETUN_FAMILY_QWEN2},
        {"llama", SETUN_FAMILY_LLAMA}};
    int tried = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        tiny_gguf(&t, rows[i].architecture, rows[i].family, SETUN_FORMAT_I2_S);
        for (int k = 0; k < t.tensor_count; k++, tried++) {
            t.tensors[k].left_out = true;
            tiny_write_gguf(&t);
            tiny_refuse(&t, SETUN_ERROR_FORMAT, t.tensors[k].name, "missing", t.path);
            t.tensors[k].left_out = false;
        }
        tiny_end(&t);
    }
    assert_true(tried > 100);
    tiny t;
    tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
    for (int k = 0; k < t.tensor_count; k++) {
        t.tensors[k].left_out = true;
        tiny_write_huggingface(&t);
        tiny_refuse(&t, SETUN_ERROR_FORMAT, t.tensors[k].name, "missing", t.path);
        t.tensors[k].left_out = false;
    }
    tiny_end(&t);
}

static void every_wrong_shape_is_named(void **state) {
    (void)state;
    for (int way = 0; way < 3; way++) {
        tiny t;
        tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
        for (int k = 0; k < t.tensor_count; k++) {
            tiny_tensor saved = t.tensors[k];
            t.tensors[k].data = NULL;
            int64_t rows = saved.rank == 1 ? 1 : saved.shape[0], columns = saved.rank == 1 ? saved.shape[0] : saved.shape[1];
            if (way == 0) tiny_floats(&t, saved.name, saved.rank, rows, columns + 128);
            else if (way == 1) tiny_floats(&t, saved.name, 2, rows + 1, columns);
            else tiny_floats(&t, saved.name, saved.rank, rows, columns - 64);
            tiny_write_gguf(&t);
            tiny_refuse(&t, SETUN_ERROR_FORMAT, saved.name, NULL, NULL);
            free(t.tensors[k].data);
            t.tensors[k] = saved;
        }
        tiny_end(&t);
    }
}

static void bad_numbers_are_refused(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_tensor *x = tiny_find(&t, "blk.1.ffn_up.weight");
    float scales[] = {NAN, INFINITY, -INFINITY};
    uint8_t *scale = x->data + TINY_FF * TINY_WIDTH / 4, good[4];
    memcpy(good, scale, 4);
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        memcpy(scale, &scales[i], 4);
        tiny_write_gguf(&t);
        tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_up.weight", "scale", t.path);
    }
    memcpy(scale, good, 4);
    x->data[100] |= 3 << 4; /* code 3 */
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_up.weight", "3", t.path);
    tiny_ternary(&t, x->name, SETUN_FORMAT_I2_S, TINY_FF, TINY_WIDTH);
    float bad = NAN;
    x = tiny_find(&t, "blk.0.attn_sub_norm.weight");
    memcpy(x->data + 4 * 17, &bad, 4);
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.0.attn_sub_norm.weight", "17", "nan");
    tiny_end(&t);
}

static void no_tensor_goes_unused(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_I2_S);
    tiny_tensor *x = tiny_floats(&t, "blk.0.ffn_gate_inp.weight", 2, 4, TINY_WIDTH);
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "blk.0.ffn_gate_inp.weight", "llama", NULL);
    snprintf(x->name, sizeof x->name, "blk.2.attn_norm.weight");
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.2.attn_norm.weight", "2 layers", NULL);
    snprintf(x->name, sizeof x->name, "output_norm.bias");
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "output_norm.bias", NULL, NULL);
    snprintf(x->name, sizeof x->name, "rope_freqs.weight"); /* read as rope factors: it must be one */
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "rope_freqs.weight", NULL, NULL);
    x->left_out = true;
    tiny_floats(&t, "blk.1.attn_q.bias", 1, 1, TINY_WIDTH); /* layers must be alike */
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.1.attn_q.bias", "layer 0", NULL);
    tiny_floats(&t, "blk.0.attn_q.bias", 1, 1, TINY_WIDTH);
    tiny_write_gguf(&t);
    setun_model *m = tiny_load(&t);
    assert_non_null(m->description.layers[1].bias[SETUN_ROLE_Q]);
    setun_model_destroy(m);
    tiny_find(&t, "blk.1.attn_q.bias")->left_out = true;
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.1.attn_q.bias", "missing", NULL);
    tiny_end(&t);

    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    tiny_floats(&t, "norm.weight", 1, 1, TINY_WIDTH); /* the same as model.norm.weight */
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "model.norm.weight", "two names", NULL);
    tiny_end(&t);
}

/* Writes a type id into the tensor table of the file, where no writer would. */
static void patch_type(const tiny *t, const char *name, uint32_t id) {
    FILE *f = fopen(t->path, "r+b");
    assert_non_null(f);
    char head[16384];
    size_t count = fread(head, 1, sizeof head, f), length = strlen(name);
    for (size_t i = 0; i + length + 32 < count; i++)
        if (memcmp(head + i, name, length) == 0) {
            assert_int_equal(fseek(f, (long)(i + length + 4 + 8 * 2), SEEK_SET), 0);
            assert_int_equal(fwrite(&id, 4, 1, f), 1);
            fclose(f);
            return;
        }
    fail_msg("%s is not in the header", name);
}

static void refused_formats_say_the_way_out(void **state) {
    (void)state;
    static const uint32_t ids[] = {38, 39, 335, 12345};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        tiny t;
        tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
        tiny_write_gguf(&t);
        patch_type(&t, "blk.0.attn_q.weight", ids[i]);
        tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "blk.0.attn_q.weight", "I2_S", t.path);
        tiny_end(&t);
    }
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_add(&t, "blk.0.attn_q.weight", SETUN_FORMAT_I32, "I32", 2, TINY_WIDTH, TINY_WIDTH, TINY_WIDTH * TINY_WIDTH * 4);
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "blk.0.attn_q.weight", "integers", NULL);
    tiny_ternary(&t, "blk.0.attn_q.weight", SETUN_FORMAT_I2_S, TINY_WIDTH, TINY_WIDTH);
    tiny_ternary(&t, "blk.0.attn_norm.weight", SETUN_FORMAT_I2_S, 1, TINY_WIDTH);
    tiny_write_gguf(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "blk.0.attn_norm.weight", "norms", NULL);
    tiny_end(&t);
}

static void scales_beside_tensors_are_checked(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    const char *name = "model.layers.1.mlp.gate_proj.weight_scale";
    float bad[] = {NAN, INFINITY, 0, -0.25f};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy(tiny_find(&t, name)->data, &bad[i], 4);
        tiny_write_huggingface(&t);
        tiny_refuse(&t, SETUN_ERROR_FORMAT, name, "scale", t.path);
    }
    tiny_floats(&t, name, 1, 1, 2);
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, name, NULL, NULL);
    tiny_tensor *x = tiny_floats(&t, name, 1, 1, 1);
    float tiny_scale = 1e-39f; /* its inverse is no float */
    memcpy(x->data, &tiny_scale, 4);
    json_object_del(json_object_get(t.config, "quantization_config"), "linear_class");
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, name, NULL, NULL);
    tiny_end(&t);

    /* codes with a scale outside, unpacked: only 1 can be left out */
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, false);
    x = tiny_floats(&t, "model.layers.0.mlp.up_proj.weight_scale", 1, 1, 1);
    float one = 1, two = 2;
    memcpy(x->data, &one, 4);
    tiny_write_huggingface(&t);
    setun_model_destroy(tiny_load(&t));
    memcpy(x->data, &two, 4);
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "model.layers.0.mlp.up_proj.weight", "scale", NULL);
    tiny_end(&t);
}

static void mlx_tensors_are_checked(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, false);
    json_object_set_new(t.config, "quantization", json_pack("{s:i, s:i}", "group_size", 64, "bits", 2));
    const char *base = "model.layers.0.mlp.up_proj";
    char weight[96], scales[96], biases[96];
    snprintf(weight, sizeof weight, "%s.weight", base);
    snprintf(scales, sizeof scales, "%s.scales", base);
    snprintf(biases, sizeof biases, "%s.biases", base);
    tiny_add(&t, weight, SETUN_FORMAT_U32, "U32", 2, TINY_FF, TINY_WIDTH / 16, TINY_FF * TINY_WIDTH / 4); /* all codes 0: -1 */
    tiny_tensor *s = tiny_floats(&t, scales, 2, TINY_FF, 2);
    tiny_tensor *b = tiny_floats(&t, biases, 2, TINY_FF, 2);
    for (int i = 0; i < TINY_FF * 2; i++) {
        float v;
        memcpy(&v, s->data + 4 * i, 4);
        v = -v;
        memcpy(b->data + 4 * i, &v, 4);
    }
    tiny_write_huggingface(&t);
    setun_model *m = tiny_load(&t);
    const setun_weight *w = setun_model_find(m, weight);
    assert_int_equal(w->format, SETUN_FORMAT_MLX_2BIT);
    assert_int_equal(w->rows, TINY_FF);
    assert_int_equal(w->columns, TINY_WIDTH);
    assert_true(w->info.ternary);
    assert_false(m->description.h.activation_int8);
    setun_model_destroy(m);

    tiny_find(&t, biases)->left_out = true;
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, biases, "missing", NULL);
    tiny_find(&t, biases)->left_out = false;
    tiny_tensor saved = *s;
    s->data = NULL;
    tiny_floats(&t, scales, 2, TINY_FF, 1);
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, weight, "groups of 64", NULL);
    free(s->data);
    *s = saved;
    json_object_set_new(t.config, "quantization", json_pack("{s:i, s:i, s:{s:i}}", "group_size", 64, "bits", 2, base, "bits", 4));
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, weight, "4 bits", NULL);
    json_object_set_new(t.config, "quantization", json_pack("{s:i, s:i}", "group_size", 48, "bits", 2));
    tiny_write_config(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, weight, "48", NULL);
    json_object_set_new(t.config, "quantization", json_pack("{s:i, s:i}", "group_size", 64, "bits", 4));
    tiny_write_config(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, "4 bits", NULL, NULL);
    json_object_del(t.config, "quantization");
    tiny_write_config(&t);
    tiny_refuse(&t, SETUN_ERROR_UNSUPPORTED, weight, "MLX", NULL);
    tiny_end(&t);
}

static void norms_before_projections_follow_the_config(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "Qwen3Model", SETUN_FAMILY_QWEN3, false);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.o_proj.norm.weight", layer);
        tiny_floats(&t, name, 1, 1, TINY_WIDTH);
    }
    tiny_write_huggingface(&t); /* nothing in the config: BitNet's embedding models */
    setun_model *m = tiny_load(&t);
    assert_true(m->description.h.projection_norm && m->description.h.activation_int8 && m->description.h.embedding_model);
    assert_non_null(m->description.layers[1].input_norm[SETUN_ROLE_O]);
    assert_null(m->description.layers[1].input_norm[SETUN_ROLE_Q]);
    assert_true(m->description.layers[0].weight[SETUN_ROLE_DOWN]->absmean);
    setun_model_destroy(m);
    json_object_set_new(t.config, "quantization_config", json_pack("{s:s}", "quant_method", "bitnet")); /* it speaks, and not of norms */
    tiny_write_config(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "use_rms_norm", NULL, NULL);
    tiny_find(&t, "model.layers.1.self_attn.o_proj.norm.weight")->left_out = true;
    json_object_set_new(t.config, "quantization_config", json_pack("{s:s, s:b}", "quant_method", "bitnet", "use_rms_norm", 1));
    tiny_write_huggingface(&t);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "model.layers.1.self_attn.o_proj", "missing", NULL);
    tiny_end(&t);
}

static void a_folder_needs_its_config(void **state) {
    (void)state;
    tiny t;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    tiny_write_huggingface(&t);
    char path[160];
    snprintf(path, sizeof path, "%s/config.json", t.folder);
    unlink(path);
    setun_model *m;
    assert_int_not_equal(setun_model_load(&tiny_context, t.folder, NULL, &m), SETUN_OK);
    assert_null(m);
    snprintf(t.path, sizeof t.path, "%s/model.safetensors", t.folder);
    tiny_refuse(&t, SETUN_ERROR_FORMAT, "config.json", NULL, NULL);
    tiny_end(&t);
    assert_int_equal(setun_model_load(&tiny_context, "/nonexistent/model.gguf", NULL, &m), SETUN_ERROR_IO);
    assert_int_equal(setun_model_load(NULL, "x", NULL, &m), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_model_load(&tiny_context, NULL, NULL, &m), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_model_load(&tiny_context, "x", NULL, NULL), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_model_get_info(NULL, &(setun_model_info){0}), SETUN_ERROR_ARGUMENT);
    setun_model_destroy(NULL);
}

/* ---- reading in parallel, stopping, running out of memory ---- */

static void the_first_bad_tensor_is_named_whatever_the_threads_do(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    for (int i = 0; i < t.tensor_count; i++)
        if (t.tensors[i].format == SETUN_FORMAT_I2_S && strcmp(t.tensors[i].name, "blk.0.attn_q.weight") != 0) t.tensors[i].data[5] = 0xff;
    tiny_write_gguf(&t);
    for (int i = 0; i < 50; i++) tiny_refuse(&t, SETUN_ERROR_FORMAT, "blk.1.attn_q.weight", NULL, NULL); /* first in the file: roles go before layers */
    tiny_end(&t);
}

typedef struct steps { uint64_t last, total, stop_at; bool ordered; } steps;

static bool count_steps(void *user, const char *what, uint64_t done, uint64_t total) {
    steps *s = user;
    if (strcmp(what, "tensors") != 0) return true;
    s->ordered = s->ordered && done >= s->last;
    s->last = done;
    s->total = total;
    return done < s->stop_at;
}

static void progress_is_told_and_can_stop(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_write_gguf(&t);
    steps s = {.stop_at = UINT64_MAX, .ordered = true};
    setun_model_options options = {.size = sizeof options, .progress = count_steps, .progress_user = &s};
    setun_model *m;
    assert_int_equal(setun_model_load(&tiny_context, t.path, &options, &m), SETUN_OK);
    assert_true(s.ordered);
    assert_int_equal(s.total, 15); /* seven a layer and the embedding */
    assert_int_equal(s.last, s.total);
    setun_model_destroy(m);
    for (uint64_t stop = 0; stop <= 15; stop += 15) {
        s.stop_at = stop;
        assert_int_equal(setun_model_load(&tiny_context, t.path, &options, &m), SETUN_ERROR_CANCELLED);
        assert_null(m);
    }
    tiny_end(&t);
}

static void sweep(const tiny *t) {
    int64_t live = setun_alloc_live();
    uint64_t n = 1;
    for (;; n++) {
        setun_model *m;
        setun_alloc_fail_at(n);
        setun_status status = setun_model_load(&tiny_context, t->path, NULL, &m);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            setun_model_destroy(m);
            break;
        }
        if (status != SETUN_ERROR_MEMORY) fail_msg("allocation %llu: %s: %s", (unsigned long long)n, setun_status_name(status), setun_error());
        assert_null(m);
        if (setun_alloc_live() != live) fail_msg("allocation %llu: %lld allocations are left", (unsigned long long)n, (long long)(setun_alloc_live() - live));
    }
    assert_int_equal(setun_alloc_live(), live);
    assert_true(n > 20);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "qwen3", SETUN_FAMILY_QWEN3, SETUN_FORMAT_PQ2_0);
    tiny_u32(&t, "prism.hadamard.version", 1);
    tiny_u32(&t, "prism.hadamard.block_size", 32);
    tiny_text(&t, "prism.hadamard.transform", "normalized-sylvester-walsh-hadamard");
    tiny_text(&t, "prism.hadamard.axis", "input-last-dimension");
    tiny_text(&t, "prism.hadamard.sign_mode", "identity");
    const char *downs[] = {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"};
    tiny_strings(&t, "prism.hadamard.weight_names", 2, downs);
    tiny_floats(&t, "rope_freqs.weight", 1, 1, TINY_HEAD / 2);
    tiny_write_gguf(&t);
    sweep(&t);
    tiny_end(&t);
    tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
    json_object_set_new(t.config, "rope_scaling", json_pack("{s:s, s:f, s:i}", "rope_type", "yarn", "factor", 4.0, "original_max_position_embeddings", 16));
    tiny_write_huggingface(&t);
    sweep(&t);
    tiny_end(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bitnet_file_becomes_a_description), cmocka_unit_test(formats_decide_about_int8_where_no_key_does), cmocka_unit_test(scales_of_packed_files_multiply_or_divide),
        cmocka_unit_test(masters_become_ternary_where_the_rule_says_so), cmocka_unit_test(heads_are_tied_as_the_config_says), cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(every_wrong_shape_is_named), cmocka_unit_test(bad_numbers_are_refused), cmocka_unit_test(no_tensor_goes_unused), cmocka_unit_test(refused_formats_say_the_way_out),
        cmocka_unit_test(scales_beside_tensors_are_checked), cmocka_unit_test(mlx_tensors_are_checked), cmocka_unit_test(norms_before_projections_follow_the_config),
        cmocka_unit_test(a_folder_needs_its_config), cmocka_unit_test(the_first_bad_tensor_is_named_whatever_the_threads_do), cmocka_unit_test(progress_is_told_and_can_stop),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, tiny_context_make, tiny_context_end);
}
