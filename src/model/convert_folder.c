/*
 * convert_folder.c - what lies beside the weights of a Hugging Face folder: config.json, and the tokenizer's files where the
 * input has them. Caller: convert.c. From a GGUF file they are written anew; where tokenizer.json has no word for the
 * vocabulary the report says so, since Setun and transformers need one: it is the one of the model that the GGUF was made from.
 */
#include "model/convert.h"
#include <errno.h>
#include <math.h>
#include <sys/stat.h>

static setun_status path_in(const char *folder, const char *name, char *out, size_t size) {
    const int n = snprintf(out, size, "%s/%s", folder, name);
    return n > 0 && (size_t)n < size ? SETUN_OK : setun_fail(SETUN_ERROR_ARGUMENT, "%s/%s: the path is too long", folder, name);
}

static setun_status write_bytes(const char *folder, const char *name, bool overwrite, const char *bytes, size_t count) {
    char path[4096];
    setun_writer *writer;
    SETUN_TRY(path_in(folder, name, path, sizeof path));
    SETUN_TRY(setun_writer_open(path, overwrite, &writer));
    setun_status status = setun_writer_write(writer, bytes, count);
    if (status == SETUN_OK) return setun_writer_commit(writer);
    setun_writer_abort(writer);
    return status;
}

static void add_missing(const setun_convert_folder *f, const char *name) {
    setun_string_printf(f->missing, "%s\"%s\"", f->missing->length ? "," : "", name);
}

/* ---- files that are taken as they are ---- */

static setun_status copy_file(const char *from, const char *to_folder, const char *name, bool overwrite, bool *found) {
    char path[4096], buffer[1 << 14];
    setun_writer *writer;
    SETUN_TRY(path_in(from, name, path, sizeof path));
    FILE *in = fopen(path, "rb");
    *found = in != NULL;
    if (!in) return errno == ENOENT ? SETUN_OK : setun_fail(SETUN_ERROR_IO, "%s: cannot be read: %s", path, strerror(errno));
    setun_status status = path_in(to_folder, name, path, sizeof path);
    if (status == SETUN_OK) status = setun_writer_open(path, overwrite, &writer);
    if (status != SETUN_OK) {
        fclose(in);
        return status;
    }
    size_t n;
    while (status == SETUN_OK && (n = fread(buffer, 1, sizeof buffer, in)) > 0) status = setun_writer_write(writer, buffer, n);
    if (status == SETUN_OK && ferror(in)) status = setun_fail(SETUN_ERROR_IO, "%s/%s: reading failed", from, name);
    fclose(in);
    if (status == SETUN_OK) return setun_writer_commit(writer);
    setun_writer_abort(writer);
    return status;
}

/* The folder that the input lies in, or is. */
static setun_status input_folder(const char *path, char *out, size_t size) {
    struct stat s;
    const char *slash = strrchr(path, '/');
    int n;
    if (stat(path, &s) == 0 && S_ISDIR(s.st_mode)) n = snprintf(out, size, "%s", path);
    else n = slash ? snprintf(out, size, "%.*s", slash == path ? 1 : (int)(slash - path), path) : snprintf(out, size, ".");
    return n > 0 && (size_t)n < size ? SETUN_OK : setun_fail(SETUN_ERROR_ARGUMENT, "%s: the path is too long", path);
}

static setun_status copy_tokenizer(const setun_convert_folder *f, const char *folder, bool overwrite) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
        "chat_template.jinja", "generation_config.json"};
    char from[4096];
    SETUN_TRY(input_folder(f->model->path, from, sizeof from));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bool found;
        SETUN_TRY(copy_file(from, folder, names[i], overwrite, &found));
        if (!found && i == 0) add_missing(f, names[i]);
    }
    return SETUN_OK;
}

/* The tokens that end an answer, which tokenizer.json does not say. */
static setun_status write_generation(const setun_convert_folder *f, const char *folder, bool overwrite) {
    const setun_tokenizer *t = f->model->tokenizer;
    setun_string ids = {0}, text = {0};
    for (int32_t id = 0; id < setun_tokenizer_vocabulary(t); id++)
        if (setun_tokenizer_is_end(t, id)) setun_string_printf(&ids, "%s%d", ids.length ? ", " : "", id);
    if (ids.length) setun_string_printf(&text, "{\n  \"eos_token_id\": [%s]\n}\n", ids.data);
    setun_status status = ids.failed || text.failed ? setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for generation_config.json", folder) : SETUN_OK;
    if (status == SETUN_OK && text.length) status = write_bytes(folder, "generation_config.json", overwrite, text.data, text.length);
    setun_string_clear(&ids);
    setun_string_clear(&text);
    return status;
}

static setun_status write_tokenizer(const setun_convert_folder *f, const char *folder, bool overwrite) {
    char *tokenizer, *config;
    SETUN_TRY(setun_tokenizer_to_json(f->model->tokenizer, &tokenizer, &config));
    setun_status status = write_bytes(folder, "tokenizer.json", overwrite, tokenizer, strlen(tokenizer));
    if (status == SETUN_OK) status = write_bytes(folder, "tokenizer_config.json", overwrite, config, strlen(config));
    setun_free(tokenizer);
    setun_free(config);
    return status == SETUN_OK ? write_generation(f, folder, overwrite) : status;
}

/* A GGUF's tokenizer, where tokenizer.json can say it, else a warning. The chat template also lies beside: there it counts
 * before the one in tokenizer_config.json, so none may stay from before. */
static setun_status leave_tokenizer(const setun_convert_folder *f, const char *folder, bool overwrite) {
    const setun_value *v = setun_file_find_value(f->model->file, "tokenizer.chat_template");
    const char *template, *why = "the GGUF file has no tokenizer; copy those of the model it was made from";
    size_t length;
    if (v && setun_value_string(v, &template, &length) && length) SETUN_TRY(write_bytes(folder, "chat_template.jinja", overwrite, template, length));
    if (f->model->tokenizer) {
        const setun_status status = write_tokenizer(f, folder, overwrite);
        if (status != SETUN_ERROR_UNSUPPORTED) return status;
        why = setun_error();
    }
    setun_log(f->model->context, SETUN_LOG_WARNING, "%s: tokenizer.json and tokenizer_config.json are missing there: %s", folder, why);
    add_missing(f, "tokenizer.json");
    add_missing(f, "tokenizer_config.json");
    return SETUN_OK;
}

/* ---- config.json ---- */

/* The shortest decimal that is the same float. */
static json_t *number(float v) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    return json_real(strtod(text, NULL));
}

/* Failures add up: jansson returns -1 for a NULL value too. */
static void put(json_t *o, const char *key, json_t *value, int *failed) { *failed |= json_object_set_new(o, key, value); }

static const struct { setun_family family; const char *architecture, *bare, *type; } words[] = {
    {SETUN_FAMILY_BITNET, "BitNetForCausalLM", "BitNetForCausalLM", "bitnet"}, {SETUN_FAMILY_LLAMA, "LlamaForCausalLM", "LlamaForCausalLM", "llama"},
    {SETUN_FAMILY_QWEN2, "Qwen2ForCausalLM", "Qwen2ForCausalLM", "qwen2"}, {SETUN_FAMILY_QWEN3, "Qwen3ForCausalLM", "Qwen3Model", "qwen3"},
    {SETUN_FAMILY_GEMMA3, "Gemma3ForCausalLM", "Gemma3TextModel", "gemma3_text"}, {SETUN_FAMILY_MINICPM, "MiniCPMForCausalLM", "MiniCPMForCausalLM", "minicpm"},
};

static setun_status put_rope(json_t *c, const setun_hparams *h, const char *path, int *failed) {
    if (h->rope_factors || (h->rope_magnitude != 0 && h->rope_magnitude != 1))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: a GGUF file holds the results of its rope scaling, not the rule that config.json wants; convert the model's Hugging Face files instead", path);
    json_t *rope = json_object();
    const bool scaled = h->rope_scale != 0 && h->rope_scale != 1;
    put(rope, "rope_type", json_string(scaled ? "linear" : "default"), failed);
    put(rope, "rope_theta", number(h->rope_theta), failed);
    if (scaled) put(rope, "factor", number(1 / h->rope_scale), failed);
    if (h->rotary && h->rotary != h->head_size) put(rope, "partial_rotary_factor", json_real((double)h->rotary / h->head_size), failed);
    put(c, "rope_theta", number(h->rope_theta), failed);
    if (h->rope_local_theta == 0) {
        put(c, "rope_parameters", rope, failed);
        return SETUN_OK;
    }
    json_t *both = json_object(), *local = json_object();
    put(local, "rope_type", json_string("default"), failed);
    put(local, "rope_theta", number(h->rope_local_theta), failed);
    put(both, "full_attention", rope, failed);
    put(both, "sliding_attention", local, failed);
    put(c, "rope_parameters", both, failed);
    put(c, "rope_local_base_freq", number(h->rope_local_theta), failed);
    return SETUN_OK;
}

static void put_layer_types(json_t *c, const setun_hparams *h, int *failed) {
    json_t *types = json_array();
    for (int i = 1; i <= h->layers; i++) {
        const bool slides = h->sliding_window && (h->sliding_pattern == 0 || i % h->sliding_pattern != 0);
        *failed |= json_array_append_new(types, json_string(slides ? "sliding_attention" : "full_attention"));
    }
    put(c, "layer_types", types, failed);
    if (h->sliding_window) put(c, "sliding_window", json_integer(h->sliding_window), failed);
}

static setun_status make_config(const setun_model *m, json_t *c, int *failed) {
    const setun_description *d = &m->description;
    const setun_hparams *h = &d->h;
    size_t word = 0;
    while (words[word].family != h->family) word++;
    json_t *list = json_array();
    *failed |= json_array_append_new(list, json_string(h->embedding_model ? words[word].bare : words[word].architecture));
    put(c, "architectures", list, failed);
    put(c, "model_type", json_string(words[word].type), failed);
    put(c, "num_hidden_layers", json_integer(h->layers), failed);
    put(c, "hidden_size", json_integer(h->width), failed);
    put(c, "intermediate_size", json_integer(h->feed_forward), failed);
    put(c, "num_attention_heads", json_integer(h->heads), failed);
    put(c, "num_key_value_heads", json_integer(h->kv_heads), failed);
    put(c, "head_dim", json_integer(h->head_size), failed);
    put(c, "vocab_size", json_integer(h->vocabulary), failed);
    put(c, "max_position_embeddings", json_integer(h->context), failed);
    put(c, "rms_norm_eps", number(h->epsilon), failed);
    put(c, h->family == SETUN_FAMILY_GEMMA3 ? "hidden_activation" : "hidden_act", json_string(setun_activation_name(h->activation)), failed);
    put(c, "tie_word_embeddings", json_boolean(!d->global.weight[SETUN_ROLE_OUTPUT]), failed);
    put(c, "attention_bias", json_boolean(d->layers[0].bias[SETUN_ROLE_Q] != NULL), failed);
    if (d->layers[0].bias[SETUN_ROLE_GATE]) put(c, "mlp_bias", json_true(), failed);
    if (m->tokenizer && setun_tokenizer_bos(m->tokenizer) >= 0) put(c, "bos_token_id", json_integer(setun_tokenizer_bos(m->tokenizer)), failed);
    if (m->tokenizer && setun_tokenizer_eos(m->tokenizer) >= 0) put(c, "eos_token_id", json_integer(setun_tokenizer_eos(m->tokenizer)), failed);
    if (h->family == SETUN_FAMILY_GEMMA3) {
        const double scale = h->attention_scale != 0 ? (double)h->attention_scale : 1 / sqrt((double)h->head_size);
        put(c, "query_pre_attn_scalar", json_real(round(1e6 / (scale * scale)) / 1e6), failed);
        put_layer_types(c, h, failed);
    }
    if (h->family == SETUN_FAMILY_MINICPM) {
        put(c, "scale_emb", number(h->embedding_scale != 0 ? h->embedding_scale : 1), failed);
        put(c, "scale_depth", json_real((h->residual_scale != 0 ? (double)h->residual_scale : 1) * sqrt((double)h->layers)), failed);
        if (h->logit_scale != 0) put(c, "dim_model_base", json_real(round((double)h->logit_scale * h->width)), failed);
    }
    return put_rope(c, h, m->path, failed);
}

static void put_quantisation(const setun_convert_folder *f, json_t *c, int *failed) {
    const setun_hparams *h = &f->model->description.h;
    json_object_del(c, "quantization");
    json_object_del(c, "quantization_config");
    if (!f->packed) return;
    json_t *q = json_object();
    put(q, "quant_method", json_string("bitnet"), failed);
    put(q, "linear_class", json_string("autobitlinear"), failed);
    put(q, "quantization_mode", json_string("offline"), failed);
    if (h->projection_norm) {
        put(q, "use_rms_norm", json_true(), failed);
        put(q, "rms_norm_eps", number(h->projection_norm_epsilon), failed);
    }
    if (json_array_size(f->not_converted)) *failed |= json_object_set(q, "modules_to_not_convert", f->not_converted);
    put(c, "quantization_config", q, failed);
}

static int append_text(const char *text, size_t length, void *user) {
    setun_string_append(user, text, length);
    return ((setun_string *)user)->failed ? -1 : 0;
}

setun_status setun_convert_folder_files(const setun_convert_folder *f, const char *folder, bool overwrite) {
    setun_model *m = (setun_model *)f->model; /* setun_file_json reads lazily */
    const bool from_gguf = setun_file_container(m->file) == SETUN_GGUF;
    const json_t *given = NULL;
    if (!from_gguf) SETUN_TRY(setun_file_json(m->file, "config.json", &given));
    /* 1bitLLM's architecture is code of its own; packed, it is transformers' BitNet */
    const bool rename = f->packed && strcmp(m->description.h.architecture, "BitnetForCausalLM") == 0;
    json_t *c = given && !rename ? json_deep_copy(given) : json_object();
    int failed = c == NULL;
    setun_status status = SETUN_OK;
    setun_string text = {0};
    if (c && (!given || rename)) status = make_config(m, c, &failed);
    if (c && status == SETUN_OK) {
        if (json_object_get(c, "dtype")) put(c, "dtype", json_string(f->dtype), &failed);
        put(c, "torch_dtype", json_string(f->dtype), &failed);
        put_quantisation(f, c, &failed);
        if (!failed) failed = json_dump_callback(c, append_text, &text, JSON_INDENT(2) | JSON_REAL_PRECISION(given && !rename ? 17 : 15));
        setun_string_puts(&text, "\n");
        if (failed || text.failed) status = setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for config.json", folder);
    }
    if (status == SETUN_OK) status = from_gguf ? leave_tokenizer(f, folder, overwrite) : copy_tokenizer(f, folder, overwrite);
    if (status == SETUN_OK) status = write_bytes(folder, "config.json", overwrite, text.data, text.length);
    setun_string_clear(&text);
    json_decref(c);
    return status;
}
