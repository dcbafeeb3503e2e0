/* test_convert.c - the same model in another file: every value, every hyper-parameter, and what is refused or reported. */
#include "tiny.h"

static char out_path[160];

static setun_status convert_to(const tiny *t, const char *out, setun_convert_options o, json_t **report) {
    char *text = NULL;
    snprintf(out_path, sizeof out_path, "%s/%s", t->folder, out);
    o.size = sizeof o;
    setun_status status = setun_model_convert(&tiny_context, t->path, out_path, &o, NULL, report ? &text : NULL);
    if (report) *report = NULL;
    if (status == SETUN_OK && report) {
        json_error_t where;
        *report = json_loads(text, 0, &where);
        if (!*report) fail_msg("the report is not JSON: %s in %s", where.text, text);
    }
    if (status != SETUN_OK) assert_null(text);
    setun_free(text);
    return status;
}

static setun_model *converted(const tiny *t, const char *out, setun_convert_options o, json_t **report) {
    if (convert_to(t, out, o, report) != SETUN_OK) fail_msg("%s", setun_error());
    setun_model *m;
    if (setun_model_load(&tiny_context, out_path, NULL, &m) != SETUN_OK) fail_msg("%s", setun_error());
    return m;
}

static void remove_output(void) {
    static const char *const files[] = {"model.safetensors", "config.json", "chat_template.jinja"};
    char path[200];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", out_path, files[i]);
        unlink(path);
    }
    unlink(out_path);
    rmdir(out_path);
}

/* The values that the model computes with. */
static float *values_of(const setun_weight *w) {
    float *v = malloc((size_t)(w->rows * w->columns) * sizeof *v);
    assert_non_null(v);
    if (!w->absmean) {
        assert_int_equal(setun_weight_to_f32(w, 0, w->rows, v), SETUN_OK);
        return v;
    }
    uint8_t *codes = malloc((size_t)(w->rows * w->columns));
    assert_int_equal(setun_ternary_decode(w, &w->info, 0, w->rows, codes, NULL), SETUN_OK);
    for (int64_t i = 0; i < w->rows * w->columns; i++) v[i] = w->info.tensor_scale * (float)(codes[i] - 1);
    free(codes);
    return v;
}

/* By the definition of the published converter: rows of a head as [2, d/2] -> transposed. */
static int64_t halves_row_of_pairs_row(int64_t row) {
    const int64_t head = row / TINY_HEAD, j = row % TINY_HEAD;
    return head * TINY_HEAD + j % 2 * (TINY_HEAD / 2) + j / 2;
}

/* turned: `pairs` has q and k rows in pairs, `halves` in halves; otherwise the same order. plus: norms of `pairs` are 1 + those of `halves`. */
static void same_weights(const setun_model *pairs, const setun_model *halves, bool turned, float plus) {
    const setun_description *a = &pairs->description, *b = &halves->description;
    assert_int_equal(a->h.layers, b->h.layers);
    for (int layer = -1; layer < a->h.layers; layer++)
        for (int r = 0; r < SETUN_ROLE_COUNT; r++)
            for (int kind = 0; kind < 2; kind++) {
                const setun_layer *x = layer < 0 ? &a->global : &a->layers[layer], *y = layer < 0 ? &b->global : &b->layers[layer];
                const setun_weight *v = kind ? x->bias[r] : x->weight[r], *w = kind ? y->bias[r] : y->weight[r];
                assert_int_equal(v != NULL, w != NULL);
                if (!v) continue;
                const bool matrix = setun_role_is_matrix((setun_role)r) && !kind, rope = r == SETUN_ROLE_Q || r == SETUN_ROLE_K || r == SETUN_ROLE_Q_NORM || r == SETUN_ROLE_K_NORM;
                float *p = values_of(v), *q = values_of(w);
                const int64_t rows = matrix ? v->rows : v->columns, columns = matrix ? v->columns : 1;
                assert_int_equal(v->rows * v->columns, w->rows * w->columns);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t c = 0; c < columns; c++) {
                        const int64_t other = turned && rope ? halves_row_of_pairs_row(i) : i;
                        const float expected = q[other * columns + c] + (!matrix && !kind ? plus : 0);
                        if (p[i * columns + c] != expected) fail_msg("%s [%lld, %lld]: %g, not %g", v->name, (long long)i, (long long)c, p[i * columns + c], expected);
                    }
                free(p);
                free(q);
            }
}

static void same_hparams(const setun_model *a, const setun_model *b) {
    const setun_hparams *x = &a->description.h, *y = &b->description.h;
    assert_int_equal(x->family, y->family);
    assert_int_equal(x->width, y->width);
    assert_int_equal(x->head_size, y->head_size);
    assert_int_equal(x->context, y->context);
    assert_int_equal(x->vocabulary, y->vocabulary);
    assert_int_equal(x->activation, y->activation);
    assert_int_equal(x->activation_int8, y->activation_int8);
    assert_int_equal(x->sliding_window, y->sliding_window);
    if (x->sliding_window) assert_int_equal(x->sliding_pattern, y->sliding_pattern);
    assert_true(x->epsilon == y->epsilon && x->rope_theta == y->rope_theta && x->rope_local_theta == y->rope_local_theta && x->embedding_scale == y->embedding_scale);
    const double own = 1 / sqrt((double)x->head_size), p = x->attention_scale != 0 ? (double)x->attention_scale : own, q = y->attention_scale != 0 ? (double)y->attention_scale : own;
    assert_true(fabs(p / q - 1) < 1e-6);
}

static uint64_t linear_bytes(const setun_model *m, setun_format expected) {
    uint64_t sum = 0;
    for (int i = 0; i < m->weight_count; i++) {
        setun_role role;
        int layer;
        const char *suffix;
        if (!setun_role_of(m->weights[i].name, &role, &layer, &suffix) || !setun_role_is_linear(role)) continue;
        if (expected != SETUN_FORMAT_UNKNOWN) assert_int_equal(m->weights[i].format, expected);
        sum += m->weights[i].bytes;
    }
    return sum;
}

/* ---- GGUF to GGUF ---- */

static void every_ternary_format(void **state) {
    (void)state;
    static const setun_format formats[] = {SETUN_FORMAT_I2_S, SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_IQ2_BN, SETUN_FORMAT_Q2_0, SETUN_FORMAT_PQ2_0, SETUN_FORMAT_PTQ1_0, SETUN_FORMAT_TRITS};
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_Q2_0);
    tiny_text(&t, "general.license", "none");
    tiny_u32(&t, "general.file_type", 7);
    tiny_write_gguf(&t);
    setun_model *before = tiny_load(&t);
    uint64_t least = UINT64_MAX;
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        json_t *report;
        setun_model *m = converted(&t, "out.gguf", (setun_convert_options){.ternary = setun_format_name(formats[f]), .force = true}, &report);
        same_weights(m, before, false, 0);
        same_hparams(m, before);
        const uint64_t bytes = linear_bytes(m, formats[f]);
        least = bytes < least ? bytes : least;
        assert_true(json_is_true(json_object_get(report, "exact")));
        assert_int_equal(json_integer_value(json_object_get(report, "output_bytes")), setun_file_bytes(m->file));
        assert_int_equal(json_integer_value(json_object_get(report, "input_bytes")), setun_file_bytes(before->file));
        assert_int_equal(json_array_size(json_object_get(report, "tensors")), setun_file_tensor_count(m->file));
        assert_non_null(setun_file_find_value(m->file, "general.license"));
        int64_t type = -1;
        const setun_value *v = setun_file_find_value(m->file, "general.file_type");
        if (v) assert_true(setun_value_i64(v, &type));
        assert_int_equal(type, formats[f] == SETUN_FORMAT_I2_S ? 40 : formats[f] == SETUN_FORMAT_IQ1_BN ? 136 : formats[f] == SETUN_FORMAT_IQ2_BN ? 137 : -1);
        json_decref(report);
        setun_model_destroy(m);
    }
    setun_model *m = converted(&t, "out.gguf", (setun_convert_options){.ternary = "smallest", .force = true}, NULL);
    same_weights(m, before, false, 0);
    assert_true(linear_bytes(m, SETUN_FORMAT_UNKNOWN) <= least);
    setun_model_destroy(m);
    m = converted(&t, "out.gguf", (setun_convert_options){.force = true}, NULL); /* the default */
    linear_bytes(m, SETUN_FORMAT_I2_S);
    setun_model_destroy(m);
    /* rows of 128 do not fit blocks of 256 */
    assert_int_equal(convert_to(&t, "out.gguf", (setun_convert_options){.ternary = "tq1_0", .force = true}, NULL), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "iq1_bn"));
    setun_model_destroy(before);
    remove_output();
    tiny_end(&t);
}

/* The format must not decide about int8 activations after it has been changed. */
static void int8_survives(void **state) {
    (void)state;
    static const struct { setun_format from; const char *to; bool int8; } rows[] = {{SETUN_FORMAT_I2_S, "q2_0", true}, {SETUN_FORMAT_Q2_0, "i2_s", false}, {SETUN_FORMAT_Q2_0, "iq1_bn", false}};
    for (size_t i = 0; i < 3; i++) {
        tiny t;
        tiny_gguf(&t, "llama", SETUN_FAMILY_LLAMA, rows[i].from);
        tiny_write_gguf(&t);
        setun_model *before = tiny_load(&t), *after = converted(&t, "out.gguf", (setun_convert_options){.ternary = rows[i].to}, NULL);
        assert_int_equal(before->description.h.activation_int8, rows[i].int8);
        same_hparams(after, before);
        same_weights(after, before, false, 0);
        setun_model_destroy(before);
        setun_model_destroy(after);
        remove_output();
        tiny_end(&t);
    }
}

static void embeddings_and_masters(void **state) {
    (void)state;
    tiny t;
    json_t *report;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_floats(&t, "blk.1.ffn_up.weight", 2, TINY_FF, TINY_WIDTH); /* one linear is dense */
    tiny_write_gguf(&t);
    setun_model *m = converted(&t, "out.gguf", (setun_convert_options){.embedding = "q8_0", .dense = "bf16"}, &report);
    assert_int_equal(setun_model_find(m, "token_embd.weight")->format, SETUN_FORMAT_Q8_0);
    assert_int_equal(setun_model_find(m, "blk.1.ffn_up.weight")->format, SETUN_FORMAT_BF16);
    assert_int_equal(setun_model_find(m, "blk.1.attn_q.weight")->format, SETUN_FORMAT_I2_S);
    assert_true(json_is_false(json_object_get(report, "exact")));
    size_t i;
    json_t *x;
    json_array_foreach(json_object_get(report, "tensors"), i, x) {
        const char *name = json_string_value(json_object_get(x, "name"));
        const bool lossy = strcmp(name, "token_embd.weight") == 0 || strcmp(name, "blk.1.ffn_up.weight") == 0;
        assert_int_equal(json_is_false(json_object_get(x, "exact")), lossy);
        assert_int_equal(json_number_value(json_object_get(x, "max_error")) > 0, lossy);
        if (lossy) assert_true(json_number_value(json_object_get(x, "max_error")) < 0.01);
    }
    json_decref(report);
    setun_model_destroy(m);
    m = converted(&t, "out.gguf", (setun_convert_options){.quantise = true, .force = true}, &report);
    const setun_weight *w = setun_model_find(m, "blk.1.ffn_up.weight");
    assert_int_equal(w->format, SETUN_FORMAT_I2_S);
    setun_model *before = tiny_load(&t);
    float *v = values_of(setun_model_find(before, "blk.1.ffn_up.weight")), *q = values_of(w), scale;
    double largest = 0;
    setun_absmean(v, w->rows * w->columns, &scale, NULL);
    assert_true(w->info.tensor_scale == scale);
    for (int64_t k = 0; k < w->rows * w->columns; k++) largest = fmax(largest, fabs((double)v[k] - (double)q[k]));
    json_array_foreach(json_object_get(report, "tensors"), i, x) if (strcmp(json_string_value(json_object_get(x, "name")), w->name) == 0) {
        assert_true(json_is_false(json_object_get(x, "exact")));
        assert_true(fabs(json_number_value(json_object_get(x, "max_error")) - largest) < 1e-7);
    }
    free(v);
    free(q);
    json_decref(report);
    setun_model_destroy(before);
    setun_model_destroy(m);
    remove_output();
    tiny_end(&t);
}

/* ---- between the worlds ---- */

static void there_and_back(void **state) {
    (void)state;
    static const struct { const char *architecture; setun_family family; setun_format format; bool turned; } rows[] = {{"bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S, false},
        {"bitnet-b1.58", SETUN_FAMILY_BITNET, SETUN_FORMAT_IQ1_BN, false}, {"llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_I2_S, true}, {"llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_Q2_0, true},
        {"qwen2", SETUN_FAMILY_QWEN2, SETUN_FORMAT_I2_S, false}, {"qwen3", SETUN_FAMILY_QWEN3, SETUN_FORMAT_PQ2_0, false}, {"gemma3", SETUN_FAMILY_GEMMA3, SETUN_FORMAT_I2_S, false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t, back;
        char key[96];
        json_t *report;
        tiny_gguf(&t, rows[i].architecture, rows[i].family, rows[i].format);
        if (rows[i].family == SETUN_FAMILY_GEMMA3) {
            snprintf(key, sizeof key, "%s.attention.key_length", rows[i].architecture);
            tiny_u32(&t, key, TINY_HEAD);
            snprintf(key, sizeof key, "%s.attention.value_length", rows[i].architecture);
            tiny_u32(&t, key, TINY_HEAD);
        }
        tiny_write_gguf(&t);
        setun_model *gguf = tiny_load(&t);
        setun_model *folder = converted(&t, "folder", (setun_convert_options){.container = "safetensors"}, &report);
        assert_true(json_is_true(json_object_get(report, "exact")));
        assert_string_equal(json_string_value(json_array_get(json_object_get(report, "missing"), 0)), "tokenizer.json");
        json_decref(report);
        assert_false(folder->description.h.rope_interleaved);
        assert_int_equal(folder->description.h.norm_one_plus, rows[i].family == SETUN_FAMILY_GEMMA3);
        const bool packed = gguf->description.h.activation_int8;
        assert_int_equal(folder->description.layers[0].weight[SETUN_ROLE_UP]->format, packed ? SETUN_FORMAT_HF_2BIT : SETUN_FORMAT_BF16);
        same_weights(gguf, folder, rows[i].turned, rows[i].family == SETUN_FAMILY_GEMMA3 ? 1.0f : 0);
        same_hparams(folder, gguf);
        back = t;
        snprintf(back.path, sizeof back.path, "%.100s", out_path);
        setun_model *again = converted(&back, "again.gguf", (setun_convert_options){.ternary = "smallest"}, NULL);
        same_weights(again, gguf, false, 0);
        same_hparams(again, gguf);
        assert_int_equal(again->description.h.rope_interleaved, gguf->description.h.rope_interleaved);
        assert_string_equal(again->description.h.architecture, rows[i].architecture);
        setun_model_destroy(again);
        remove_output();
        setun_model_destroy(folder);
        setun_model_destroy(gguf);
        snprintf(out_path, sizeof out_path, "%s/folder", t.folder);
        remove_output();
        tiny_end(&t);
    }
}

static void from_huggingface(void **state) {
    (void)state;
    static const struct { const char *architecture; setun_family family; bool packed; setun_format to; const char *gguf; bool turned; float plus; } rows[] = {
        {"BitNetForCausalLM", SETUN_FAMILY_BITNET, true, SETUN_FORMAT_I2_S, "bitnet", false, 0}, {"LlamaForCausalLM", SETUN_FAMILY_LLAMA, true, SETUN_FORMAT_I2_S, "llama", true, 0},
        {"BitnetForCausalLM", SETUN_FAMILY_BITNET, false, SETUN_FORMAT_I2_S, "bitnet", false, 0}, /* masters: ternary at load */
        {"LlamaForCausalLM", SETUN_FAMILY_LLAMA, false, SETUN_FORMAT_F32, "llama", true, 0}, {"Gemma3ForCausalLM", SETUN_FAMILY_GEMMA3, true, SETUN_FORMAT_I2_S, "gemma3", false, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        json_t *report;
        tiny_huggingface(&t, rows[i].architecture, rows[i].family, rows[i].packed);
        tiny_write_huggingface(&t);
        setun_model *before = tiny_load(&t), *m = converted(&t, "out.gguf", (setun_convert_options){0}, &report);
        linear_bytes(m, rows[i].to);
        assert_true(json_is_true(json_object_get(report, "exact")));
        json_decref(report);
        assert_string_equal(m->description.h.architecture, rows[i].gguf);
        same_weights(m, before, rows[i].turned, rows[i].plus);
        same_hparams(m, before);
        assert_int_equal(m->description.h.rope_interleaved, rows[i].turned);
        setun_model_destroy(m);
        remove_output();
        /* and as a folder again: the scale that divided or was computed at load now multiplies */
        m = converted(&t, "folder", (setun_convert_options){.container = "safetensors"}, NULL);
        same_weights(m, before, false, 0);
        same_hparams(m, before);
        setun_model_destroy(m);
        remove_output();
        setun_model_destroy(before);
        tiny_end(&t);
    }
}

/* Quantised where no packed form exists: the folder's floats are then ternary themselves. */
static void quantised_floats(void **state) {
    (void)state;
    tiny t;
    json_t *report;
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, false);
    tiny_write_huggingface(&t);
    setun_model *before = tiny_load(&t), *m = converted(&t, "folder", (setun_convert_options){.container = "safetensors", .quantise = true}, &report);
    assert_true(json_is_false(json_object_get(report, "exact")));
    json_decref(report);
    assert_false(m->description.h.activation_int8);
    const setun_weight *masters = before->description.layers[1].weight[SETUN_ROLE_DOWN], *w = m->description.layers[1].weight[SETUN_ROLE_DOWN];
    float *v = values_of(masters), *q = values_of(w), scale;
    uint8_t *codes = malloc((size_t)(w->rows * w->columns));
    setun_absmean(v, w->rows * w->columns, &scale, codes);
    assert_true(w->info.ternary && setun_format_get_kind(w->format) == SETUN_KIND_DENSE);
    for (int64_t i = 0; i < w->rows * w->columns; i++) assert_true(q[i] == scale * (float)(codes[i] - 1));
    free(v);
    free(q);
    free(codes);
    setun_model_destroy(m);
    remove_output();
    setun_model_destroy(before);
    tiny_end(&t);
}

/* ---- refusals ---- */

static bool stop(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)total;
    return strcmp(what, "bytes") != 0 || done < *(uint64_t *)user;
}

static void refusals(void **state) {
    (void)state;
    static const struct { setun_convert_options o; setun_status status; const char *word; } rows[] = {
        {{.ternary = "q4_0"}, SETUN_ERROR_ARGUMENT, "q4_0"}, {{.ternary = "nonsense"}, SETUN_ERROR_ARGUMENT, "smallest"}, {{.ternary = "hf"}, SETUN_ERROR_ARGUMENT, "GGUF"},
        {{.ternary = "tq2_0", .container = "safetensors"}, SETUN_ERROR_ARGUMENT, "hf"}, {{.container = "zip"}, SETUN_ERROR_ARGUMENT, "zip"}, {{.embedding = "i2_s"}, SETUN_ERROR_ARGUMENT, "embedding"},
        {{.dense = "tl1"}, SETUN_ERROR_ARGUMENT, "dense"}, {{.embedding = "q8_0", .container = "safetensors"}, SETUN_ERROR_ARGUMENT, "bf16"}, {{.ternary = "mlx-2bit"}, SETUN_ERROR_ARGUMENT, "mlx"},
        {{.embedding = "q6_k"}, SETUN_ERROR_FORMAT, "token_embd.weight"}};
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_IQ2_BN);
    tiny_write_gguf(&t);
    const int64_t live = setun_alloc_live();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(convert_to(&t, "no.gguf", rows[i].o, NULL), rows[i].status);
        if (!strstr(setun_error(), rows[i].word)) fail_msg("'%s' is not in: %s", rows[i].word, setun_error());
        assert_int_equal(access(out_path, F_OK), -1);
    }
    assert_int_equal(convert_to(&t, "model.gguf", (setun_convert_options){.force = true}, NULL), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "same"));
    assert_int_equal(convert_to(&t, "out.gguf", (setun_convert_options){0}, NULL), SETUN_OK);
    assert_int_not_equal(convert_to(&t, "out.gguf", (setun_convert_options){0}, NULL), SETUN_OK); /* exists */
    assert_int_equal(convert_to(&t, "out.gguf", (setun_convert_options){.force = true}, NULL), SETUN_OK);
    remove_output();
    uint64_t limit = 20000;
    assert_int_equal(convert_to(&t, "stopped.gguf", (setun_convert_options){.progress = stop, .progress_user = &limit}, NULL), SETUN_ERROR_CANCELLED);
    assert_int_equal(access(out_path, F_OK), -1);
    assert_int_equal(convert_to(&t, "stopped", (setun_convert_options){.container = "safetensors", .progress = stop, .progress_user = &limit}, NULL), SETUN_ERROR_CANCELLED);
    assert_int_equal(access(out_path, F_OK), -1);
    assert_int_equal(setun_model_convert(NULL, "a", "b", NULL, NULL, NULL), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_model_convert(&tiny_context, "/no/such/file.gguf", "b", NULL, NULL, NULL), SETUN_ERROR_IO);
    assert_int_equal(setun_alloc_live(), live);
    tiny_end(&t);
}

/* A scale a row: packed Hugging Face files have no place for it, IQ2_BN has. */
static void row_scales(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_IQ2_BN);
    tiny_tensor *x = tiny_find(&t, "blk.0.attn_k.weight");
    const float other = 0.3f; /* no f16 */
    memcpy(x->data + 5 * (4 + TINY_WIDTH / 4), &other, 4);
    tiny_write_gguf(&t);
    setun_model *before = tiny_load(&t), *m = converted(&t, "out.gguf", (setun_convert_options){.ternary = "smallest"}, NULL);
    same_weights(m, before, false, 0);
    assert_int_equal(setun_model_find(m, x->name)->format, SETUN_FORMAT_IQ2_BN);
    setun_model_destroy(m);
    remove_output();
    assert_int_equal(convert_to(&t, "out.gguf", (setun_convert_options){.ternary = "i2_s"}, NULL), SETUN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(setun_error(), "blk.0.attn_k.weight"));
    assert_int_equal(access(out_path, F_OK), -1);
    assert_int_equal(convert_to(&t, "folder", (setun_convert_options){.container = "safetensors"}, NULL), SETUN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(setun_error(), "more than one scale"));
    assert_int_equal(access(out_path, F_OK), -1);
    json_t *report;
    m = converted(&t, "out.gguf", (setun_convert_options){.ternary = "iq1_bn"}, &report); /* asked for by name: rounded, and said */
    assert_true(json_is_false(json_object_get(report, "exact")));
    json_decref(report);
    setun_model_destroy(m);
    setun_model_destroy(before);
    remove_output();
    tiny_end(&t);
}

static void failing_allocations(void **state) {
    (void)state;
    static const char *const containers[2] = {"gguf", "safetensors"};
    for (int c = 0; c < 2; c++) {
        tiny t;
        tiny_gguf(&t, "llama", SETUN_FAMILY_LLAMA, SETUN_FORMAT_I2_S);
        tiny_write_gguf(&t);
        const int64_t live = setun_alloc_live();
        bool done = false;
        for (uint64_t n = 1; !done; n += n < 400 ? 1 : 17) {
            char *text = NULL;
            setun_convert_options o = {.size = sizeof o, .container = containers[c], .force = true, .embedding = "bf16"};
            snprintf(out_path, sizeof out_path, "%s/out", t.folder);
            setun_alloc_fail_at(n);
            setun_status status = setun_model_convert(&tiny_context, t.path, out_path, &o, NULL, &text);
            setun_alloc_fail_at(0);
            done = status == SETUN_OK;
            if (!done && status != SETUN_ERROR_MEMORY) fail_msg("allocation %llu: %s: %s", (unsigned long long)n, setun_status_name(status), setun_error());
            setun_free(text);
            assert_int_equal(setun_alloc_live(), live);
            assert_true(n < 20000);
        }
        remove_output();
        tiny_end(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_ternary_format), cmocka_unit_test(int8_survives), cmocka_unit_test(embeddings_and_masters), cmocka_unit_test(there_and_back),
        cmocka_unit_test(from_huggingface), cmocka_unit_test(quantised_floats), cmocka_unit_test(refusals), cmocka_unit_test(row_scales), cmocka_unit_test(failing_allocations)};
    return cmocka_run_group_tests(tests, tiny_context_make, tiny_context_end);
}
