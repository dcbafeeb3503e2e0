/*
 * families_gguf.c - hyper-parameters from GGUF metadata. Caller: load.c, inspect.c, convert.c.
 * Knows keys; looks at tensors only for what the keys leave out (vocabulary, formats that imply int8 activations).
 */
#include "model/family.h"
#include <math.h>

typedef struct reader {
    setun_file *file;
    const char *path;
    char architecture[64];
} reader;

static const setun_value *find(const reader *r, const char *key, char *full, size_t size) {
    if (strncmp(key, "setun.", 6) == 0) snprintf(full, size, "%s", key);
    else snprintf(full, size, "%s.%s", r->architecture, key);
    return setun_file_find_value(r->file, full);
}

static setun_status missing(const reader *r, const char *full) {
    return setun_fail(SETUN_ERROR_FORMAT, "%s: the metadata lacks '%s'; convert the model again", r->path, full);
}

static setun_status read_int(const reader *r, const char *key, bool required, int *out) {
    char full[128];
    const setun_value *v = find(r, key, full, sizeof full);
    if (!v) return required ? missing(r, full) : SETUN_OK;
    int64_t value = 0;
    bool ok = setun_value_i64(v, &value);
    if (!ok && v->type == SETUN_VALUE_ARRAY && v->count > 0) { /* one number a layer: fine where all are the same */
        ok = setun_value_i64_at(v, 0, &value);
        for (uint64_t i = 1; ok && i < v->count; i++) {
            int64_t other;
            ok = setun_value_i64_at(v, i, &other);
            if (ok && other != value)
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: '%s' differs between layers (%lld, %lld); Setun runs models whose layers are alike", r->path, full,
                    (long long)value, (long long)other);
        }
    }
    if (!ok) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' is not a whole number", r->path, full);
    if (value < 0 || value > INT32_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' is %lld", r->path, full, (long long)value);
    *out = (int)value;
    return SETUN_OK;
}

static setun_status read_double(const reader *r, const char *key, bool required, double *out) {
    char full[128];
    const setun_value *v = find(r, key, full, sizeof full);
    if (!v) return required ? missing(r, full) : SETUN_OK;
    if (!setun_value_f64(v, out)) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' is not a number", r->path, full);
    return SETUN_OK;
}

static setun_status read_float(const reader *r, const char *key, bool required, float *out) {
    double value = *out;
    SETUN_TRY(read_double(r, key, required, &value));
    *out = (float)value;
    return SETUN_OK;
}

static setun_status read_bool(const reader *r, const char *key, bool *out) {
    char full[128];
    const setun_value *v = find(r, key, full, sizeof full);
    if (v && !setun_value_bool(v, out)) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' is not true or false", r->path, full);
    return SETUN_OK;
}

static setun_status read_string(const reader *r, const char *key, const char **out, size_t *length) {
    char full[128];
    const setun_value *v = find(r, key, full, sizeof full);
    *out = NULL;
    *length = 0;
    if (v && !setun_value_string(v, out, length)) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' is not text", r->path, full);
    return SETUN_OK;
}

/* ---- what the tensors say ---- */

/*
 * BitNet models that were converted under another architecture's name (Falcon3, Llama3-8B-1.58, the embedding models)
 * carry no mark but their format: I2_S and the two BN formats exist for BitNet only, whose activations are int8. The
 * other ternary formats hold float-activation models too (TriLM, Bonsai).
 */
static bool format_implies_int8(setun_format format) {
    return format == SETUN_FORMAT_I2_S || format == SETUN_FORMAT_I2_S_64 || format == SETUN_FORMAT_I2_S_ROW4 || format == SETUN_FORMAT_IQ1_BN || format == SETUN_FORMAT_IQ2_BN;
}

static void look_at_tensors(const reader *r, setun_hparams *h, bool *bitnet_format) {
    for (int i = 0; i < setun_file_tensor_count(r->file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(r->file, i);
        setun_role role;
        int layer;
        const char *suffix;
        if (!setun_role_of(t->name, &role, &layer, &suffix)) continue;
        if (strcmp(suffix, "input_norm") == 0) h->projection_norm = true;
        if (setun_role_is_linear(role) && format_implies_int8(t->format)) *bitnet_format = true;
    }
}

/* rope_freqs.weight and the like: one factor a frequency, as a tensor. *out is allocated, NULL where there is none. */
static setun_status read_factor_tensor(const reader *r, const char *name, double **out, int64_t *count) {
    *out = NULL;
    const setun_file_tensor *t = setun_file_find_tensor(r->file, name);
    if (!t) return SETUN_OK;
    if (t->format != SETUN_FORMAT_F32 || t->rank != 1 || t->shape[0] < 1 || t->shape[0] > 1 << 16 || t->bytes < (uint64_t)t->shape[0] * 4)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' must be a vector of f32", r->path, name);
    double *values = setun_calloc((size_t)t->shape[0], sizeof *values);
    if (!values) return setun_fail_memory((size_t)t->shape[0] * sizeof *values);
    for (int64_t i = 0; i < t->shape[0]; i++) {
        values[i] = setun_load_f32(t->data + 4 * i);
        if (!(values[i] > 0) || !isfinite(values[i])) {
            double value = values[i];
            setun_free(values);
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s': factor %lld is %g", r->path, name, (long long)i, value);
        }
    }
    *out = values;
    *count = t->shape[0];
    return SETUN_OK;
}

static setun_status take_factors(const reader *r, setun_hparams *h, const double *values, int64_t count, const char *what) {
    if (count != h->rotary / 2)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' has %lld rope factors for %d pairs of dimensions", r->path, what, (long long)count, h->rotary / 2);
    setun_free(h->rope_factors);
    h->rope_factors = setun_calloc((size_t)count, sizeof *h->rope_factors);
    if (!h->rope_factors) return setun_fail_memory((size_t)count * sizeof *h->rope_factors);
    for (int64_t i = 0; i < count; i++) h->rope_factors[i] = (float)values[i];
    return SETUN_OK;
}

static setun_status read_rope(const reader *r, setun_hparams *h) {
    setun_rope_scaling s = {0};
    const char *type;
    size_t length;
    SETUN_TRY(read_string(r, "rope.scaling.type", &type, &length));
    if (type) snprintf(s.type, sizeof s.type, "%.*s", (int)length, type);
    SETUN_TRY(read_double(r, "rope.scaling.factor", false, &s.factor));
    SETUN_TRY(read_double(r, "rope.scaling.attn_factor", false, &s.attention_factor));
    SETUN_TRY(read_double(r, "rope.scaling.original_context_length", false, &s.original_context));
    SETUN_TRY(read_double(r, "rope.scaling.yarn_beta_fast", false, &s.beta_fast));
    SETUN_TRY(read_double(r, "rope.scaling.yarn_beta_slow", false, &s.beta_slow));
    double *values;
    int64_t count = 0;
    if (strcmp(s.type, "longrope") == 0) {
        SETUN_TRY(read_factor_tensor(r, "rope_factors_short.weight", &s.short_factors, &s.count));
        setun_status status = s.short_factors ? setun_rope_scaling_apply(h, &s, r->path)
            : setun_fail(SETUN_ERROR_FORMAT, "%s: rope scaling is longrope, but tensor 'rope_factors_short.weight' is missing", r->path);
        setun_free(s.short_factors);
        SETUN_TRY(status);
    } else {
        /* llama.cpp's yarn magnitude is attn_factor times the formula's */
        if (strcmp(s.type, "yarn") == 0 && s.attention_factor > 0 && s.factor > 1) s.attention_factor *= 0.1 * log(s.factor) + 1;
        SETUN_TRY(setun_rope_scaling_apply(h, &s, r->path));
    }
    SETUN_TRY(read_factor_tensor(r, "rope_freqs.weight", &values, &count));
    if (values) {
        setun_status status = take_factors(r, h, values, count, "rope_freqs.weight");
        setun_free(values);
        SETUN_TRY(status);
    }
    /* Setun's own, exact. */
    SETUN_TRY(read_float(r, "setun.rope_scale", false, &h->rope_scale));
    SETUN_TRY(read_float(r, "setun.rope_magnitude", false, &h->rope_magnitude));
    const setun_value *own = setun_file_find_value(r->file, "setun.rope_factors");
    if (own) {
        if (own->type != SETUN_VALUE_ARRAY || own->count != (uint64_t)h->rotary / 2)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: 'setun.rope_factors' must be %d numbers", r->path, h->rotary / 2);
        double *numbers = setun_calloc((size_t)own->count, sizeof *numbers);
        if (!numbers) return setun_fail_memory((size_t)own->count * sizeof *numbers);
        setun_status status = SETUN_OK;
        for (uint64_t i = 0; i < own->count && status == SETUN_OK; i++)
            if (!setun_value_f64_at(own, i, &numbers[i]) || !(numbers[i] > 0) || !isfinite(numbers[i]))
                status = setun_fail(SETUN_ERROR_FORMAT, "%s: 'setun.rope_factors' [%llu] is not a positive number", r->path, (unsigned long long)i);
        if (status == SETUN_OK) status = take_factors(r, h, numbers, (int64_t)own->count, "setun.rope_factors");
        setun_free(numbers);
        SETUN_TRY(status);
    }
    return SETUN_OK;
}

static setun_status read_window(const reader *r, setun_hparams *h) {
    SETUN_TRY(read_int(r, "attention.sliding_window", false, &h->sliding_window));
    if (h->family != SETUN_FAMILY_GEMMA3) { /* others write the key of a window that they do not use */
        char full[128];
        if (h->sliding_window && h->sliding_window < h->context)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: '%s' is %d: sliding windows are only supported in Gemma3 models", r->path,
                (find(r, "attention.sliding_window", full, sizeof full), full), h->sliding_window);
        h->sliding_window = 0;
        return SETUN_OK;
    }
    if (!h->sliding_window) return SETUN_OK;
    h->sliding_pattern = 6; /* Gemma3: every sixth layer sees everything */
    h->rope_local_theta = 10000;
    char full[128];
    const setun_value *v = find(r, "attention.sliding_window_pattern", full, sizeof full);
    if (v && v->type == SETUN_VALUE_ARRAY) { /* one bool a layer: does it slide */
        int first = 0;
        for (uint64_t i = 0; i < v->count; i++) {
            int64_t slides;
            if (!setun_value_i64_at(v, i, &slides)) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s' must be a list of bools", r->path, full);
            if (!slides && !first) first = (int)i + 1;
            if ((slides != 0) != !(first && (i + 1) % (uint64_t)first == 0))
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: '%s' is not of the form: every n-th layer sees everything", r->path, full);
        }
        h->sliding_pattern = first;
    } else {
        SETUN_TRY(read_int(r, "attention.sliding_window_pattern", false, &h->sliding_pattern));
    }
    if (h->sliding_pattern > h->layers) h->sliding_pattern = 0;
    return read_float(r, "rope.freq_base_swa", false, &h->rope_local_theta);
}

static setun_status read_vocabulary(const reader *r, setun_hparams *h) {
    SETUN_TRY(read_int(r, "vocab_size", false, &h->vocabulary));
    if (h->vocabulary) return SETUN_OK;
    const setun_file_tensor *t = setun_file_find_tensor(r->file, "token_embd.weight");
    if (!t || t->rank != 2) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor 'token_embd.weight' is missing or not a matrix", r->path);
    if (t->shape[0] > INT32_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor 'token_embd.weight' has %lld rows", r->path, (long long)t->shape[0]);
    h->vocabulary = (int)t->shape[0];
    return SETUN_OK;
}

static setun_status read_all(reader *r, setun_hparams *h) {
    const setun_value *word = setun_file_find_value(r->file, "general.architecture");
    const char *text;
    size_t length;
    if (!word) return setun_fail(SETUN_ERROR_FORMAT, "%s: the metadata lacks 'general.architecture': this GGUF file is not a model", r->path);
    if (!setun_value_string(word, &text, &length)) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'general.architecture' is not text", r->path);
    const setun_architecture *a = setun_architecture_find(text, length, true);
    if (!a) return setun_architecture_unknown(r->path, text, length, true);
    snprintf(r->architecture, sizeof r->architecture, "%s", a->word);
    snprintf(h->architecture, sizeof h->architecture, "%s", a->word);
    h->family = a->family;
    h->activation = a->activation;
    h->rope_interleaved = a->interleaved;

    SETUN_TRY(read_int(r, "block_count", true, &h->layers));
    SETUN_TRY(read_int(r, "context_length", true, &h->context));
    SETUN_TRY(read_int(r, "embedding_length", true, &h->width));
    SETUN_TRY(read_int(r, "feed_forward_length", true, &h->feed_forward));
    SETUN_TRY(read_int(r, "attention.head_count", true, &h->heads));
    h->kv_heads = h->heads;
    SETUN_TRY(read_int(r, "attention.head_count_kv", false, &h->kv_heads));
    if (h->kv_heads == 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: '%s.attention.head_count_kv' is 0", r->path, r->architecture);
    SETUN_TRY(read_int(r, "attention.key_length", false, &h->head_size));
    int value_length = 0;
    SETUN_TRY(read_int(r, "attention.value_length", false, &value_length));
    if (!h->head_size && h->heads > 0 && h->width % h->heads == 0) h->head_size = h->width / h->heads;
    if (h->head_size && value_length && value_length != h->head_size)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: keys have %d dimensions and values %d; Setun runs models where they are equal", r->path, h->head_size, value_length);
    SETUN_TRY(read_float(r, "attention.layer_norm_rms_epsilon", true, &h->epsilon));
    h->rope_theta = 10000; /* llama.cpp's default for files without the key */
    SETUN_TRY(read_float(r, "rope.freq_base", false, &h->rope_theta));
    SETUN_TRY(read_int(r, "rope.dimension_count", false, &h->rotary));
    SETUN_TRY(read_float(r, "attention.scale", false, &h->attention_scale));
    SETUN_TRY(read_float(r, "final_logit_softcapping", false, &h->logit_softcap));
    SETUN_TRY(read_vocabulary(r, h));
    int experts = 0, pooling = 0;
    SETUN_TRY(read_int(r, "expert_count", false, &experts));
    if (experts) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: a mixture of %d experts; Setun runs dense models", r->path, experts);
    SETUN_TRY(read_int(r, "pooling_type", false, &pooling));
    if (pooling != 0 && pooling != 3)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: '%s.pooling_type' is %d; Setun pools the last token (3)", r->path, r->architecture, pooling);
    h->embedding_model = pooling == 3;

    if (h->family == SETUN_FAMILY_GEMMA3) h->embedding_scale = (float)sqrt((double)h->width);
    if (h->family == SETUN_FAMILY_MINICPM) {
        float divisor = 0;
        SETUN_TRY(read_float(r, "embedding_scale", true, &h->embedding_scale));
        SETUN_TRY(read_float(r, "residual_scale", true, &h->residual_scale));
        SETUN_TRY(read_float(r, "logit_scale", true, &divisor));
        if (!(divisor >= 1)) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'minicpm.logit_scale' is %g; it divides the logits and is at least 1 in files that Setun knows", r->path, (double)divisor);
        h->logit_scale = 1 / divisor;
    }
    SETUN_TRY(read_float(r, "setun.embedding_scale", false, &h->embedding_scale));
    SETUN_TRY(read_float(r, "setun.residual_scale", false, &h->residual_scale));
    SETUN_TRY(read_float(r, "setun.logit_scale", false, &h->logit_scale));

    bool bitnet_format = false;
    look_at_tensors(r, h, &bitnet_format);
    SETUN_TRY(read_bool(r, "setun.projection_norm", &h->projection_norm));
    if (h->projection_norm) h->projection_norm_epsilon = h->epsilon; /* as bitnet.cpp, which knows one epsilon */
    SETUN_TRY(read_float(r, "setun.projection_norm_epsilon", false, &h->projection_norm_epsilon));
    h->activation_int8 = a->int8 || bitnet_format || h->projection_norm;
    SETUN_TRY(read_bool(r, "setun.activation_int8", &h->activation_int8));
    SETUN_TRY(read_bool(r, "setun.rope_interleaved", &h->rope_interleaved));
    SETUN_TRY(read_bool(r, "setun.norm_one_plus", &h->norm_one_plus));
    SETUN_TRY(read_string(r, "setun.hidden_act", &text, &length));
    if (text) SETUN_TRY(setun_activation_from_name(r->path, text, length, &h->activation));
    SETUN_TRY(setun_hparams_check(h, r->path));
    SETUN_TRY(read_window(r, h));
    SETUN_TRY(read_rope(r, h));
    return setun_hparams_check(h, r->path);
}

setun_status setun_hparams_from_gguf(setun_file *file, setun_hparams *out) {
    setun_hparams h = {0};
    reader r = {file, setun_file_path(file), {0}};
    setun_status status = read_all(&r, &h);
    if (status != SETUN_OK) {
        setun_hparams_free(&h);
        memset(out, 0, sizeof *out);
        return status;
    }
    *out = h;
    return SETUN_OK;
}
