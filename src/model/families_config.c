/*
 * families_config.c - hyper-parameters and quantisation rules from a Hugging Face config.json.
 * Callers: load.c, inspect.c, convert.c. Knows transformers' words (both the older rope_theta/rope_scaling and
 * rope_parameters), no tensors.
 */
#include "model/family.h"
#include <math.h>

/* ---- members of an object; null is the same as absent ---- */

static const json_t *member(const json_t *object, const char *key) {
    const json_t *v = json_object_get(object, key);
    return v && !json_is_null(v) ? v : NULL;
}

static setun_status get_int(const json_t *o, const char *path, const char *key, bool required, int *out) {
    const json_t *v = member(o, key);
    if (!v) return required ? setun_fail(SETUN_ERROR_FORMAT, "%s: config.json lacks '%s'", path, key) : SETUN_OK;
    double real = json_is_real(v) ? json_real_value(v) : 0;
    if (!json_is_integer(v) && !(json_is_real(v) && real == floor(real) && fabs(real) <= INT32_MAX))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is not a whole number", path, key);
    json_int_t value = json_is_integer(v) ? json_integer_value(v) : (json_int_t)real;
    if (value < 0 || value > INT32_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is %lld", path, key, (long long)value);
    *out = (int)value;
    return SETUN_OK;
}

static setun_status get_double(const json_t *o, const char *path, const char *key, bool required, double *out) {
    const json_t *v = member(o, key);
    if (!v) return required ? setun_fail(SETUN_ERROR_FORMAT, "%s: config.json lacks '%s'", path, key) : SETUN_OK;
    if (!json_is_number(v)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is not a number", path, key);
    *out = json_number_value(v);
    return SETUN_OK;
}

static setun_status get_float(const json_t *o, const char *path, const char *key, bool required, float *out) {
    double value = *out;
    SETUN_TRY(get_double(o, path, key, required, &value));
    *out = (float)value;
    return SETUN_OK;
}

static setun_status get_bool(const json_t *o, const char *path, const char *key, bool *out) {
    const json_t *v = member(o, key);
    if (!v) return SETUN_OK;
    if (!json_is_boolean(v)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is not true or false", path, key);
    *out = json_is_true(v);
    return SETUN_OK;
}

static setun_status get_string(const json_t *o, const char *path, const char *key, const char **out) {
    const json_t *v = member(o, key);
    *out = NULL;
    if (!v) return SETUN_OK;
    if (!json_is_string(v)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is not text", path, key);
    *out = json_string_value(v);
    return SETUN_OK;
}

static setun_status get_object(const json_t *o, const char *path, const char *key, const json_t **out) {
    *out = member(o, key);
    if (*out && !json_is_object(*out)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: '%s' is not an object", path, key);
    return SETUN_OK;
}

/* ---- rope ---- */

static setun_status get_scaling(const json_t *o, const char *path, setun_rope_scaling *s, setun_hparams *h) {
    const char *type;
    SETUN_TRY(get_string(o, path, "rope_type", &type));
    if (!type) SETUN_TRY(get_string(o, path, "type", &type));
    if (type) snprintf(s->type, sizeof s->type, "%s", type);
    SETUN_TRY(get_double(o, path, "factor", false, &s->factor));
    SETUN_TRY(get_double(o, path, "low_freq_factor", false, &s->low_frequency));
    SETUN_TRY(get_double(o, path, "high_freq_factor", false, &s->high_frequency));
    SETUN_TRY(get_double(o, path, "beta_fast", false, &s->beta_fast));
    SETUN_TRY(get_double(o, path, "beta_slow", false, &s->beta_slow));
    SETUN_TRY(get_double(o, path, "attention_factor", false, &s->attention_factor));
    SETUN_TRY(get_double(o, path, "original_max_position_embeddings", false, &s->original_context));
    SETUN_TRY(get_float(o, path, "rope_theta", false, &h->rope_theta));
    bool truncate = true;
    SETUN_TRY(get_bool(o, path, "truncate", &truncate));
    s->no_truncate = !truncate;
    if (member(o, "mscale") || member(o, "mscale_all_dim"))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: rope scaling with 'mscale' is not supported", path);
    const json_t *factors = member(o, "short_factor");
    if (factors && strcmp(s->type, "longrope") == 0) {
        size_t count = json_array_size(factors);
        if (!json_is_array(factors) || count == 0 || count > 1 << 16) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'short_factor' is not a list of numbers", path);
        s->short_factors = setun_calloc(count, sizeof *s->short_factors);
        if (!s->short_factors) return setun_fail_memory(count * sizeof *s->short_factors);
        s->count = (int64_t)count;
        for (size_t i = 0; i < count; i++) s->short_factors[i] = json_number_value(json_array_get(factors, i)); /* 0 where it is no number: refused later */
    }
    return SETUN_OK;
}

/* transformers 5 writes rope_parameters, either one object or one for each kind of layer; before it was rope_theta,
 * rope_scaling and rope_local_base_freq. */
static setun_status read_rope(const json_t *c, const char *path, setun_hparams *h) {
    const json_t *parameters, *scaling, *local = NULL;
    SETUN_TRY(get_object(c, path, "rope_parameters", &parameters));
    SETUN_TRY(get_object(c, path, "rope_scaling", &scaling));
    h->rope_theta = h->family == SETUN_FAMILY_GEMMA3 ? 1000000 : 10000;
    if (h->family == SETUN_FAMILY_BITNET && strcmp(h->architecture, "BitNetForCausalLM") == 0) h->rope_theta = 500000; /* transformers' default */
    SETUN_TRY(get_float(c, path, "rope_theta", false, &h->rope_theta));
    if (parameters && member(parameters, "full_attention")) {
        SETUN_TRY(get_object(parameters, path, "sliding_attention", &local));
        SETUN_TRY(get_object(parameters, path, "full_attention", &parameters));
    }
    setun_rope_scaling s = {0};
    setun_status status = SETUN_OK;
    if (parameters) status = get_scaling(parameters, path, &s, h);
    else if (scaling) status = get_scaling(scaling, path, &s, h);
    double share = 1;
    if (status == SETUN_OK) status = get_double(c, path, "partial_rotary_factor", false, &share);
    if (status == SETUN_OK && parameters) status = get_double(parameters, path, "partial_rotary_factor", false, &share);
    if (status == SETUN_OK && !(share > 0 && share <= 1)) status = setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'partial_rotary_factor' is %g", path, share);
    if (status == SETUN_OK) {
        h->rotary = (int)(h->head_size * share);
        status = setun_hparams_check(h, path);
    }
    if (status == SETUN_OK) status = setun_rope_scaling_apply(h, &s, path);
    setun_free(s.short_factors);
    SETUN_TRY(status);
    if (h->family == SETUN_FAMILY_GEMMA3 && h->sliding_window) {
        h->rope_local_theta = 10000;
        SETUN_TRY(get_float(c, path, "rope_local_base_freq", false, &h->rope_local_theta));
        if (local) {
            setun_rope_scaling none = {0};
            setun_hparams layer = *h;
            layer.rope_factors = NULL;
            setun_status local_status = get_scaling(local, path, &none, &layer);
            setun_free(none.short_factors);
            SETUN_TRY(local_status);
            if (none.type[0] && strcmp(none.type, "default") != 0)
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: rope scaling '%s' in sliding layers is not supported", path, none.type);
            if (member(local, "rope_theta")) h->rope_local_theta = layer.rope_theta;
        }
    }
    return SETUN_OK;
}

/* ---- sliding windows ---- */

static setun_status read_window(const json_t *c, const char *path, setun_hparams *h) {
    const json_t *types = member(c, "layer_types");
    int first = 0; /* 1-based number of the first layer that sees everything */
    bool slides = false;
    if (types) {
        if (!json_is_array(types)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'layer_types' is not a list", path);
        if (json_array_size(types) != (size_t)h->layers)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'layer_types' has %zu entries for %d layers", path, json_array_size(types), h->layers);
        for (int i = 0; i < h->layers; i++) {
            const char *type = json_string_value(json_array_get(types, (size_t)i));
            bool full = type && strcmp(type, "full_attention") == 0;
            if (!full && !(type && strcmp(type, "sliding_attention") == 0))
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: layer %d is of type '%s'; Setun knows full_attention and sliding_attention", path, i, type ? type : "?");
            if (full && !first) first = i + 1;
            if (!full) slides = true;
            if (full != (first && (i + 1) % first == 0))
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: 'layer_types' is not of the form: every n-th layer is full_attention", path);
        }
    }
    if (h->family != SETUN_FAMILY_GEMMA3) {
        bool use = false;
        int window = 0;
        SETUN_TRY(get_bool(c, path, "use_sliding_window", &use));
        SETUN_TRY(get_int(c, path, "sliding_window", false, &window));
        if (slides || (use && window && window < h->context))
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json asks for sliding-window attention, which Setun only does in Gemma3 models", path);
        return SETUN_OK;
    }
    h->sliding_window = 4096;
    SETUN_TRY(get_int(c, path, "sliding_window", false, &h->sliding_window));
    if (types) {
        h->sliding_pattern = first;
        if (!slides) h->sliding_window = 0;
    } else {
        h->sliding_pattern = 6;
        SETUN_TRY(get_int(c, path, "sliding_window_pattern", false, &h->sliding_pattern));
        if (h->sliding_pattern == 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'sliding_window_pattern' is 0", path);
        if (h->sliding_pattern == 1) h->sliding_window = 0;
        if (h->sliding_pattern > h->layers) h->sliding_pattern = 0;
    }
    bool both_ways = false;
    SETUN_TRY(get_bool(c, path, "use_bidirectional_attention", &both_ways));
    if (both_ways) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: 'use_bidirectional_attention' is true; Setun's attention is causal", path);
    return SETUN_OK;
}

/* ---- quantisation ---- */

setun_status setun_quantization_from_config(const json_t *config, const char *path, setun_quantization *out) {
    setun_quantization q = {0};
    memset(out, 0, sizeof *out);
    const json_t *rules, *mlx;
    SETUN_TRY(get_object(config, path, "quantization", &mlx));
    SETUN_TRY(get_object(config, path, "quantization_config", &rules));
    if (rules && !member(rules, "quant_method") && member(rules, "bits") && !mlx) mlx = rules; /* mlx-lm writes it twice, under both names */
    const char *method = NULL;
    if (rules && rules != mlx) SETUN_TRY(get_string(rules, path, "quant_method", &method));
    if (mlx) {
        int bits = 0;
        const char *mode;
        SETUN_TRY(get_int(mlx, path, "bits", true, &bits));
        SETUN_TRY(get_string(mlx, path, "mode", &mode));
        if (mode && strcmp(mode, "affine") != 0) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: MLX quantisation mode '%s'; Setun reads affine", path, mode);
        if (bits != 2) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: MLX quantisation with %d bits is not ternary; use the 2-bit files", path, bits);
        q.mlx = mlx;
    }
    if (method) {
        if (strcmp(method, "bitnet") != 0)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: quant_method '%s' is not one that Setun reads (bitnet, MLX's 2-bit); use the unquantised or the GGUF files", path, method);
        const char *class_name, *mode;
        q.bitnet = true;
        SETUN_TRY(get_string(rules, path, "linear_class", &class_name));
        SETUN_TRY(get_string(rules, path, "quantization_mode", &mode));
        if (class_name && strcmp(class_name, "bitlinear") != 0 && strcmp(class_name, "autobitlinear") != 0)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: linear_class '%s' is unknown; Setun knows bitlinear and autobitlinear", path, class_name);
        if (mode && strcmp(mode, "offline") != 0 && strcmp(mode, "online") != 0)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: quantization_mode '%s' is unknown; Setun knows offline and online", path, mode);
        bool automatic = class_name && strcmp(class_name, "autobitlinear") == 0;
        q.online = automatic && mode && strcmp(mode, "online") == 0;
        q.multiply = automatic;
        q.skip = member(rules, "modules_to_not_convert");
        if (q.skip && !json_is_array(q.skip)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'modules_to_not_convert' is not a list", path);
    }
    *out = q;
    return SETUN_OK;
}

bool setun_quantization_skips(const setun_quantization *q, const char *weight_name) {
    if (!q->skip) return false;
    size_t length = strlen(weight_name);
    if (length > 7 && strcmp(weight_name + length - 7, ".weight") == 0) length -= 7;
    size_t index;
    json_t *item;
    json_array_foreach((json_t *)q->skip, index, item) {
        const char *module = json_string_value(item);
        size_t n = module ? strlen(module) : 0;
        if (n == 0 || n > length) continue;
        /* the module itself, one inside it, or its name's last parts */
        if (memcmp(weight_name, module, n) == 0 && (n == length || weight_name[n] == '.')) return true;
        if (memcmp(weight_name + length - n, module, n) == 0 && (n == length || weight_name[length - n - 1] == '.')) return true;
    }
    return false;
}

/* ---- the whole ---- */

static setun_status read_all(const json_t *c, const char *path, setun_hparams *h) {
    if (!json_is_object(c)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json is not an object", path);
    const json_t *list = member(c, "architectures");
    const char *word = list && json_array_size(list) > 0 ? json_string_value(json_array_get(list, 0)) : NULL;
    if (!word) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json lacks 'architectures'", path);
    const setun_architecture *a = setun_architecture_find(word, strlen(word), false);
    if (!a) return setun_architecture_unknown(path, word, strlen(word), false);
    snprintf(h->architecture, sizeof h->architecture, "%s", a->word);
    h->family = a->family;
    h->activation = a->activation;
    h->embedding_model = a->embedding_model;
    h->masters = a->masters;
    bool gemma = h->family == SETUN_FAMILY_GEMMA3;

    SETUN_TRY(get_int(c, path, "num_hidden_layers", true, &h->layers));
    SETUN_TRY(get_int(c, path, "hidden_size", true, &h->width));
    SETUN_TRY(get_int(c, path, "intermediate_size", true, &h->feed_forward));
    SETUN_TRY(get_int(c, path, "num_attention_heads", true, &h->heads));
    h->kv_heads = h->heads;
    SETUN_TRY(get_int(c, path, "num_key_value_heads", false, &h->kv_heads));
    if (h->kv_heads == 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'num_key_value_heads' is 0", path);
    if (gemma) h->head_size = 256; /* transformers' default */
    SETUN_TRY(get_int(c, path, "head_dim", false, &h->head_size));
    SETUN_TRY(get_int(c, path, "vocab_size", true, &h->vocabulary));
    SETUN_TRY(get_int(c, path, "max_position_embeddings", true, &h->context));
    h->epsilon = 1e-6f;
    SETUN_TRY(get_float(c, path, "rms_norm_eps", h->family == SETUN_FAMILY_BITNET, &h->epsilon));
    const char *activation;
    SETUN_TRY(get_string(c, path, gemma && member(c, "hidden_activation") ? "hidden_activation" : "hidden_act", &activation));
    if (activation) SETUN_TRY(setun_activation_from_name(path, activation, strlen(activation), &h->activation));
    h->rope_theta = 10000;
    SETUN_TRY(setun_hparams_check(h, path));

    if (gemma) {
        h->norm_one_plus = true;
        h->embedding_scale = (float)sqrt((double)h->width);
        double scalar = 256;
        SETUN_TRY(get_double(c, path, "query_pre_attn_scalar", false, &scalar));
        if (!(scalar > 0)) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'query_pre_attn_scalar' is %g", path, scalar);
        h->attention_scale = (float)(1 / sqrt(scalar));
        SETUN_TRY(get_float(c, path, "final_logit_softcapping", false, &h->logit_softcap));
        float cap = 0;
        SETUN_TRY(get_float(c, path, "attn_logit_softcapping", false, &cap));
        if (cap != 0) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: 'attn_logit_softcapping' is %g, which Setun does not do", path, (double)cap);
    }
    if (h->family == SETUN_FAMILY_MINICPM) {
        double scale_depth = 1, base = 0;
        h->embedding_scale = 1;
        SETUN_TRY(get_float(c, path, "scale_emb", false, &h->embedding_scale));
        SETUN_TRY(get_double(c, path, "scale_depth", false, &scale_depth));
        h->residual_scale = (float)(scale_depth / sqrt((double)h->layers));
        SETUN_TRY(get_double(c, path, "dim_model_base", false, &base));
        if (base < 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: config.json: 'dim_model_base' is %g", path, base);
        if (base > 0) h->logit_scale = (float)(base / h->width);
        const json_t *sparse;
        SETUN_TRY(get_object(c, path, "sparse_config", &sparse));
        if (sparse) { /* attention is dense up to this length; beyond it the model drops blocks, which Setun does not do */
            int dense = 8192;
            SETUN_TRY(get_int(sparse, path, "dense_len", false, &dense));
            if (dense < 1) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: sparse attention from the first token ('dense_len' is 0) is not supported", path);
            if (h->context > dense) h->context = dense;
        }
    }
    int experts = 0;
    SETUN_TRY(get_int(c, path, "num_local_experts", false, &experts));
    if (!experts) SETUN_TRY(get_int(c, path, "num_experts", false, &experts));
    if (experts > 1) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: config.json: a mixture of %d experts; Setun runs dense models", path, experts);

    setun_quantization q;
    SETUN_TRY(setun_quantization_from_config(c, path, &q));
    h->activation_int8 = a->int8 || q.bitnet;
    if (q.bitnet) {
        const json_t *rules = member(c, "quantization_config");
        SETUN_TRY(get_bool(rules, path, "use_rms_norm", &h->projection_norm));
        if (h->projection_norm) {
            h->projection_norm_epsilon = 1e-6f;
            SETUN_TRY(get_float(rules, path, "rms_norm_eps", false, &h->projection_norm_epsilon));
        }
        h->masters = q.online;
    }
    SETUN_TRY(read_window(c, path, h));
    SETUN_TRY(read_rope(c, path, h));
    return setun_hparams_check(h, path);
}

setun_status setun_hparams_from_config(const json_t *config, const char *path, setun_hparams *out) {
    setun_hparams h = {0};
    setun_status status = read_all(config, path, &h);
    if (status != SETUN_OK) {
        setun_hparams_free(&h);
        memset(out, 0, sizeof *out);
        return status;
    }
    *out = h;
    return SETUN_OK;
}
