/*
 * load.c - opens a file, turns its tensors into weights and one description, checks all of it. Caller: the API.
 * Knows names, shapes and quantisation rules; computes nothing, packs nothing. After it every weight has the shape that
 * the graph expects, every ternary one has been read once and validated, and nothing in the file went unused silently.
 */
#include "model/family.h"
#include "base/thread.h"
#include <math.h>
#include <stdatomic.h>

typedef setun_loader loader;

/* ---- which tensors there are ---- */

bool setun_is_shortlist_name(const char *name) {
    return strcmp(name, SETUN_SHORTLIST_HIGH) == 0 || strcmp(name, SETUN_SHORTLIST_LOW) == 0 || strcmp(name, SETUN_SHORTLIST_SCALES) == 0;
}

const setun_weight *setun_model_head(const setun_model *model) {
    const setun_layer *global = &model->description.global;
    return global->weight[SETUN_ROLE_OUTPUT] ? global->weight[SETUN_ROLE_OUTPUT] : global->weight[SETUN_ROLE_EMBEDDING];
}

/* Tensors that are read elsewhere or say nothing that the hyper-parameters don't. */
static bool is_ignorable(const char *name) {
    static const char *const exact[] = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
    for (size_t i = 0; i < sizeof exact / sizeof exact[0]; i++)
        if (strcmp(name, exact[i]) == 0) return true;
    if (setun_is_shortlist_name(name)) return true;
    size_t length = strlen(name);
    static const char *const tails[] = {".rotary_emb.inv_freq", ".attn_rot_embd.weight"};
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++)
        if (length > strlen(tails[i]) && strcmp(name + length - strlen(tails[i]), tails[i]) == 0) return true;
    return false;
}

/* The tensor "X<ending>" beside "X.weight"; *out is NULL where there is none. */
static setun_status find_beside(const loader *l, const char *weight_name, const char *ending, const setun_file_tensor **out) {
    size_t base = strlen(weight_name) - strlen(".weight"), tail = strlen(ending);
    char *name = setun_alloc(base + tail + 1);
    *out = NULL;
    if (!name) return setun_fail_memory(base + tail + 1);
    memcpy(name, weight_name, base);
    memcpy(name + base, ending, tail + 1);
    *out = setun_file_find_tensor(l->model->file, name);
    setun_free(name);
    return SETUN_OK;
}

static setun_status need_beside(const loader *l, const char *weight_name, const char *ending, const setun_file_tensor **out) {
    SETUN_TRY(find_beside(l, weight_name, ending, out));
    if (*out) return SETUN_OK;
    return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is packed, but '%.*s%s' is missing; the download may be incomplete", l->path, weight_name,
        (int)(strlen(weight_name) - strlen(".weight")), weight_name, ending);
}

static bool is_float(setun_format f) { return f == SETUN_FORMAT_F32 || f == SETUN_FORMAT_F16 || f == SETUN_FORMAT_BF16; }

static float float_at(setun_format format, const uint8_t *data, int64_t i) {
    return format == SETUN_FORMAT_F32 ? setun_load_f32(data + 4 * i)
        : format == SETUN_FORMAT_F16  ? setun_f16_to_f32(setun_load_u16(data + 2 * i))
                                      : setun_bf16_to_f32(setun_load_u16(data + 2 * i));
}

/* ---- one tensor as a weight ---- */

/* A single positive number: X.weight_scale. */
static setun_status read_scale(const loader *l, const setun_file_tensor *t, float *out) {
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++) count = t->shape[i] == 1 ? count : 0;
    if (!is_float(t->format) || count != 1 || t->bytes < setun_float_bytes(t->format))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' must be one f32, f16 or bf16 number; several scales a tensor are not written by this format", l->path, t->name);
    float scale = float_at(t->format, t->data, 0);
    if (!isfinite(scale) || !(scale > 0)) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s': the scale is %g; it must be a positive number", l->path, t->name, (double)scale);
    *out = scale;
    return SETUN_OK;
}

/* Hugging Face: uint8 [out/4, in] and a scale. */
static setun_status describe_packed(const loader *l, const setun_file_tensor *t, setun_weight *w) {
    const setun_file_tensor *scale;
    SETUN_TRY(need_beside(l, t->name, ".weight_scale", &scale));
    if (t->rank != 2) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is packed but has %d dimensions instead of 2", l->path, t->name, t->rank);
    if (!l->quantization.bitnet)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' is packed, but config.json's quantization_config does not say 'bitnet': whether its scale multiplies or divides is unknown",
            l->path, t->name);
    float value;
    SETUN_TRY(read_scale(l, scale, &value));
    if (!l->quantization.multiply) { /* linear_class bitlinear stores 1/mean|W| */
        value = 1 / value;
        if (!isfinite(value)) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s': the scale is too small to divide by", l->path, scale->name);
    }
    w->format = SETUN_FORMAT_HF_2BIT;
    w->rows = t->shape[0] * 4;
    w->columns = t->shape[1];
    w->tensor_scale = value;
    return SETUN_OK;
}

/* MLX affine, 2 bits: uint32 [out, in/16], scales and biases [out, in/group]. */
static setun_status describe_mlx(const loader *l, const setun_file_tensor *t, setun_weight *w) {
    const setun_file_tensor *scales, *biases;
    SETUN_TRY(need_beside(l, t->name, ".scales", &scales));
    SETUN_TRY(need_beside(l, t->name, ".biases", &biases));
    if (!l->quantization.mlx)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' is packed as MLX does, but config.json has no 'quantization' that says how", l->path, t->name);
    int64_t bits = 2, group = json_integer_value(json_object_get(l->quantization.mlx, "group_size"));
    char module[256];
    snprintf(module, sizeof module, "%.*s", (int)(strlen(t->name) - strlen(".weight")), t->name);
    const json_t *own = json_object_get(l->quantization.mlx, module); /* a module may have its own numbers */
    if (json_is_object(own)) {
        if (json_object_get(own, "bits")) bits = json_integer_value(json_object_get(own, "bits"));
        if (json_object_get(own, "group_size")) group = json_integer_value(json_object_get(own, "group_size"));
    }
    if (bits != 2) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' has %lld bits a weight; MLX tensors with 2 are read", l->path, t->name, (long long)bits);
    if (t->rank != 2 || scales->rank != 2 || biases->rank != 2)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s', its scales and its biases must be matrices", l->path, t->name);
    w->format = SETUN_FORMAT_MLX_2BIT;
    w->rows = t->shape[0];
    w->columns = t->shape[1] * 16;
    if (group != 32 && group != 64 && group != 128)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s': MLX groups of %lld weights; 32, 64 and 128 are read", l->path, t->name, (long long)group);
    if (w->columns % group || scales->shape[0] != w->rows || scales->shape[1] != w->columns / group || biases->shape[0] != w->rows || biases->shape[1] != w->columns / group)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' [%lld, %lld] in groups of %lld does not go with scales [%lld, %lld] and biases [%lld, %lld]", l->path, t->name, (long long)w->rows,
            (long long)w->columns, (long long)group, (long long)scales->shape[0], (long long)scales->shape[1], (long long)biases->shape[0], (long long)biases->shape[1]);
    uint64_t need = (uint64_t)w->rows * (uint64_t)(w->columns / group) * setun_float_bytes(scales->format);
    if (!is_float(scales->format) || biases->format != scales->format || scales->bytes < need || biases->bytes < need)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s': scales and biases must both be f32, f16 or bf16", l->path, t->name);
    w->group_size = (int)group;
    w->scales = scales->data;
    w->biases = biases->data;
    w->scales_format = scales->format;
    return SETUN_OK;
}

setun_status setun_loader_describe(const loader *l, const setun_file_tensor *t, setun_role role, const char *suffix, setun_weight *w) {
    memset(w, 0, sizeof *w);
    w->name = t->name;
    w->data = t->data;
    w->bytes = t->bytes;
    w->format = t->format;
    w->mapped = setun_file_is_mapped(l->model->file, t->data);
    bool is_weight = strcmp(suffix, "weight") == 0 && setun_role_is_matrix(role);
    if (!is_weight) { /* norms and biases */
        if (!is_float(t->format))
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' is %s; norms and biases must be f32, f16 or bf16", l->path, t->name, setun_format_name(t->format));
        if (t->rank != 1) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' has %d dimensions instead of 1", l->path, t->name, t->rank);
        w->rows = 1;
        w->columns = t->shape[0];
    } else if (!l->gguf && t->format == SETUN_FORMAT_U8) {
        SETUN_TRY(describe_packed(l, t, w));
    } else if (!l->gguf && t->format == SETUN_FORMAT_U32) {
        SETUN_TRY(describe_mlx(l, t, w));
    } else {
        setun_format_kind kind = setun_format_get_kind(t->format);
        const char *reason = setun_format_refusal(t->format);
        if (t->format == SETUN_FORMAT_UNKNOWN && l->gguf)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' has type id %u: %s", l->path, t->name, t->type_id, reason ? reason : "unknown");
        if (reason) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' is %s: %s", l->path, t->name, setun_format_name(t->format), reason);
        if (kind == SETUN_KIND_INTEGER)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' holds integers (%s), which is no format of weights that Setun knows", l->path, t->name, setun_format_name(t->format));
        if (t->rank != 2) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' has %d dimensions instead of 2", l->path, t->name, t->rank);
        w->rows = t->shape[0];
        w->columns = t->shape[1];
        const setun_file_tensor *scale = NULL;
        SETUN_TRY(find_beside(l, t->name, l->gguf ? ".scale" : ".weight_scale", &scale));
        if (scale) { /* unpacked codes with a scale outside: 1 changes nothing, anything else has no place in a dense weight */
            float value;
            SETUN_TRY(read_scale(l, scale, &value));
            if (value != 1.0f)
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' has its scale (%g) in '%s', which Setun reads for packed weights only; use the packed or the bf16 files", l->path, t->name,
                    (double)value, scale->name);
        }
        w->absmean = l->h->masters && !l->gguf && is_float(t->format) && setun_role_is_linear(role) && !setun_quantization_skips(&l->quantization, t->name);
    }
    return SETUN_OK;
}

/* ---- all tensors ---- */

/* Is this tensor a weight of its own, or part of another (scales), or nothing? */
static setun_status classify(const loader *l, const setun_file_tensor *t, bool *is_weight, setun_role *role, int *layer, const char **suffix) {
    *is_weight = false;
    if (is_ignorable(t->name)) return SETUN_OK;
    if (!setun_role_of_family(t->name, l->h->family, role, layer, suffix))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' has no place in a model of architecture '%s'; without it the results would be wrong", l->path, t->name, l->h->architecture);
    if (*layer >= l->h->layers)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' belongs to layer %d, but the model has %d layers (0 to %d)", l->path, t->name, *layer, l->h->layers, l->h->layers - 1);
    bool linear = setun_role_is_linear(*role) || *role == SETUN_ROLE_OUTPUT;
    if (strcmp(*suffix, "weight") == 0) *is_weight = true;
    else if (strcmp(*suffix, "bias") == 0 && linear) *is_weight = true;
    else if (strcmp(*suffix, "input_norm") == 0 && setun_role_is_linear(*role)) *is_weight = true;
    else if (setun_role_is_matrix(*role) && strcmp(*suffix, "bias") != 0 && strcmp(*suffix, "input_norm") != 0) *is_weight = false; /* scales: read with their weight */
    else return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tensor '%s' has no place in a model of architecture '%s'; without it the results would be wrong", l->path, t->name, l->h->architecture);
    return SETUN_OK;
}

static setun_weight **slot_of(setun_description *d, setun_role role, int layer, const char *suffix) {
    setun_layer *owner = setun_role_is_per_layer(role) ? &d->layers[layer] : &d->global;
    return strcmp(suffix, "bias") == 0 ? &owner->bias[role] : strcmp(suffix, "input_norm") == 0 ? &owner->input_norm[role] : &owner->weight[role];
}

static setun_status collect_weights(loader *l) {
    setun_model *m = l->model;
    int count = setun_file_tensor_count(m->file), weights = 0;
    setun_role role;
    int layer;
    const char *suffix;
    bool is_weight;
    for (int i = 0; i < count; i++) {
        SETUN_TRY(classify(l, setun_file_tensor_at(m->file, i), &is_weight, &role, &layer, &suffix));
        weights += is_weight;
    }
    if (weights == 0) return setun_fail(SETUN_ERROR_FORMAT, "%s: the file has no weights", l->path);
    m->weights = setun_calloc((size_t)weights, sizeof *m->weights);
    if (!m->weights) return setun_fail_memory((size_t)weights * sizeof *m->weights);
    m->description.layers = setun_calloc((size_t)l->h->layers, sizeof *m->description.layers);
    if (!m->description.layers) return setun_fail_memory((size_t)l->h->layers * sizeof *m->description.layers);
    for (int i = 0; i < count; i++) {
        const setun_file_tensor *t = setun_file_tensor_at(m->file, i);
        SETUN_TRY(classify(l, t, &is_weight, &role, &layer, &suffix));
        if (!is_weight) continue;
        setun_weight *w = &m->weights[m->weight_count];
        setun_status status = setun_loader_describe(l, t, role, suffix, w);
        if (status != SETUN_OK) return status;
        setun_weight **slot = slot_of(&m->description, role, layer, suffix);
        if (*slot) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensors '%s' and '%s' are the same weight under two names", l->path, (*slot)->name, t->name);
        *slot = w;
        m->weight_count++;
        if (strcmp(suffix, "input_norm") == 0) l->has_input_norms = true;
    }
    return SETUN_OK;
}

/* ---- what must be there, and its shape ---- */

static bool is_required(setun_role role, setun_family family) {
    switch (role) {
    case SETUN_ROLE_OUTPUT: case SETUN_ROLE_Q_NORM: case SETUN_ROLE_K_NORM:
        return role != SETUN_ROLE_OUTPUT && (family == SETUN_FAMILY_QWEN3 || family == SETUN_FAMILY_GEMMA3);
    case SETUN_ROLE_ATTN_SUB_NORM: case SETUN_ROLE_FFN_SUB_NORM: return family == SETUN_FAMILY_BITNET;
    case SETUN_ROLE_POST_ATTN_NORM: case SETUN_ROLE_POST_FFN_NORM: return family == SETUN_FAMILY_GEMMA3;
    default: return true;
    }
}

static setun_status missing_tensor(const loader *l, setun_role role, int layer, const char *suffix) {
    char name[160];
    SETUN_TRY(setun_role_name_family(role, l->h->family, layer, l->gguf, suffix, name, sizeof name));
    return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is missing; a model of architecture '%s' needs it (is the download complete, are all shards there?)", l->path, name, l->h->architecture);
}

/* Norms and biases are small, and a NaN in one ruins every token: read them. */
static setun_status check_vector(const loader *l, const setun_weight *w, int64_t columns) {
    if (w->columns != columns)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' has %lld elements, the hyper-parameters ask for %lld", l->path, w->name, (long long)w->columns, (long long)columns);
    uint64_t bytes;
    setun_status status = setun_format_size(w->format, 1, w->columns, &bytes);
    if (status != SETUN_OK) return setun_fail_prefix(status, "%s: tensor '%s'", l->path, w->name);
    if (bytes > w->bytes) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' needs %llu bytes, the file has %llu", l->path, w->name, (unsigned long long)bytes, (unsigned long long)w->bytes);
    for (int64_t i = 0; i < columns; i++) {
        float value = float_at(w->format, w->data, i);
        if (!isfinite(value)) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s': element %lld is %g", l->path, w->name, (long long)i, (double)value);
    }
    return SETUN_OK;
}

static setun_status check_matrix(const loader *l, const setun_weight *w, int64_t rows, int64_t columns) {
    if (w->rows != rows || w->columns != columns)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is [%lld, %lld], the hyper-parameters ask for [%lld, %lld]", l->path, w->name, (long long)w->rows, (long long)w->columns,
            (long long)rows, (long long)columns);
    uint64_t bytes;
    setun_status status = setun_format_size(w->format, w->rows, w->columns, &bytes);
    if (status != SETUN_OK) return setun_fail_prefix(status, "%s: tensor '%s'", l->path, w->name);
    if (bytes > w->bytes) return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' needs %llu bytes, the file has %llu", l->path, w->name, (unsigned long long)bytes, (unsigned long long)w->bytes);
    return SETUN_OK;
}

static setun_status check_owner(const loader *l, const setun_layer *owner, const setun_layer *first, bool per_layer, int layer) {
    for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
        setun_role role = (setun_role)r;
        if (setun_role_is_per_layer(role) != per_layer) continue;
        int64_t rows, columns;
        setun_role_shape(role, l->h, &rows, &columns);
        const setun_weight *w = owner->weight[role], *bias = owner->bias[role], *norm = owner->input_norm[role];
        /* layers are alike: what layer 0 has, all have */
        if (!w && (is_required(role, l->h->family) || first->weight[role])) return missing_tensor(l, role, layer, "weight");
        if (!bias && first->bias[role]) return missing_tensor(l, role, layer, "bias");
        if (!norm && first->input_norm[role]) return missing_tensor(l, role, layer, "input_norm");
        if (!bias && l->h->family == SETUN_FAMILY_QWEN2 && (role == SETUN_ROLE_Q || role == SETUN_ROLE_K || role == SETUN_ROLE_V)) return missing_tensor(l, role, layer, "bias");
        if (w && setun_role_is_matrix(role)) SETUN_TRY(check_matrix(l, w, rows, columns));
        if (w && !setun_role_is_matrix(role)) SETUN_TRY(check_vector(l, w, columns));
        if (bias) SETUN_TRY(check_vector(l, bias, rows));
        if (norm) SETUN_TRY(check_vector(l, norm, columns));
        if (!w && (bias || norm)) return missing_tensor(l, role, layer, "weight");
        if (w && layer > 0 && !first->weight[role])
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is in layer %d but not in layer 0; layers must be alike", l->path, w->name, layer);
        if ((bias && !first->bias[role]) || (norm && !first->input_norm[role]))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is in layer %d but not in layer 0; layers must be alike", l->path, (bias && !first->bias[role] ? bias : norm)->name, layer);
    }
    return SETUN_OK;
}

static setun_status check_description(loader *l) {
    setun_description *d = &l->model->description;
    SETUN_TRY(check_owner(l, &d->global, &d->global, false, -1));
    for (int i = 0; i < l->h->layers; i++) SETUN_TRY(check_owner(l, &d->layers[i], &d->layers[0], true, i));
    if (l->config) { /* GGUF: the head is tied where it is absent */
        const json_t *tied = json_object_get(l->config, "tie_word_embeddings");
        if (json_is_true(tied)) d->global.weight[SETUN_ROLE_OUTPUT] = NULL; /* a copy may lie in the file; transformers ignores it too */
        if (json_is_false(tied) && !d->global.weight[SETUN_ROLE_OUTPUT] && !l->h->embedding_model) return missing_tensor(l, SETUN_ROLE_OUTPUT, -1, "weight");
    }
    if (l->gguf || !l->has_input_norms || l->h->projection_norm) return SETUN_OK;
    /* Norms before the projections that config.json does not mention. */
    if (l->quantization.bitnet)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: the file has norms before its projections ('...norm.weight'), but config.json's quantization_config does not say use_rms_norm", l->path);
    /* BitNet's embedding models: BitLinear by their own code, which quantises weights and activations on the fly. */
    l->h->projection_norm = true;
    l->h->projection_norm_epsilon = l->h->epsilon;
    l->h->activation_int8 = true;
    l->h->masters = true;
    for (int i = 0; i < l->h->layers; i++)
        for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
            setun_weight *w = d->layers[i].weight[r];
            if (w && setun_role_is_linear((setun_role)r) && is_float(w->format)) w->absmean = true;
        }
    return SETUN_OK;
}

/* ---- reading every ternary weight once ---- */

typedef struct probe_work {
    setun_weight **weights;
    bool late;             /* codes that the first run reads anyway are checked there */
    const setun_model *model;
    const char *path;
    pthread_mutex_t lock;
    int64_t failed;        /* lowest index that failed; INT64_MAX: none */
    setun_status status;
    char message[512];
} probe_work;

static void probe_range(void *argument, int64_t first, int64_t last, int worker) {
    probe_work *work = argument;
    (void)worker;
    for (int64_t i = first; i < last; i++) {
        setun_weight *w = work->weights[i];
        if (work->late && w->mapped && setun_ternary_probe_late(w, &w->info) == SETUN_OK) {
            w->probed = w->unchecked = true;
            continue;
        }
        setun_status status = setun_ternary_probe_quick(w, &w->info);
        /* Unless they are to stay mapped, the pages were only passing through. */
        const setun_weights_policy policy = work->model->weights_policy;
        if (policy == SETUN_WEIGHTS_PACK || (policy == SETUN_WEIGHTS_AUTO && w->format != SETUN_FORMAT_TRITS)) setun_file_drop(work->model->file, w->data, w->bytes);
        if (status == SETUN_OK) {
            w->probed = true;
            continue;
        }
        pthread_mutex_lock(&work->lock); /* messages belong to threads; the caller needs this one */
        if (i < work->failed) {
            work->failed = i;
            work->status = status;
            snprintf(work->message, sizeof work->message, "%s", setun_error());
        }
        pthread_mutex_unlock(&work->lock);
    }
}

/* Models from here on are read by a first run faster than twice: the numbers of a first answer come sooner. */
static const uint64_t LATE_BYTES = (uint64_t)48 << 20;
static atomic_bool late_forced;

void setun_force_late_checks(bool on) { atomic_store(&late_forced, on); }

static setun_status probe_weights(loader *l, const setun_model_options *options, bool late) {
    setun_model *m = l->model;
    setun_weight **list = setun_calloc((size_t)m->weight_count, sizeof *list);
    if (!list) return setun_fail_memory((size_t)m->weight_count * sizeof *list);
    int64_t count = 0;
    for (int i = 0; i < m->weight_count; i++)
        if (m->weights[i].rows > 1 || setun_format_get_kind(m->weights[i].format) == SETUN_KIND_TERNARY) list[count++] = &m->weights[i];
    const bool large = m->weight_bytes >= LATE_BYTES || atomic_load(&late_forced);
    probe_work work = {.weights = list, .late = late && large && m->weights_policy == SETUN_WEIGHTS_AUTO, .model = m, .path = l->path, .failed = INT64_MAX, .status = SETUN_OK};
    setun_status status = SETUN_OK;
    if (pthread_mutex_init(&work.lock, NULL)) {
        setun_free(list);
        return setun_fail(SETUN_ERROR_MEMORY, "a lock could not be made");
    }
    int64_t step = options->progress ? 32 : count; /* progress is reported by this thread, between pieces */
    for (int64_t i = 0; i < count && status == SETUN_OK; i += step) {
        if (options->progress && !options->progress(options->progress_user, "tensors", (uint64_t)i, (uint64_t)count)) {
            status = setun_fail(SETUN_ERROR_CANCELLED, "%s: loading was stopped", l->path);
            break;
        }
        work.weights = list + i;
        setun_pool_for(m->context->pool, step < count - i ? step : count - i, 1, probe_range, &work);
        if (work.failed != INT64_MAX) status = setun_fail(work.status, "%s: %s", l->path, work.message);
    }
    if (status == SETUN_OK && options->progress && !options->progress(options->progress_user, "tensors", (uint64_t)count, (uint64_t)count))
        status = setun_fail(SETUN_ERROR_CANCELLED, "%s: loading was stopped", l->path);
    pthread_mutex_destroy(&work.lock);
    setun_free(list);
    return status;
}

/* ---- the whole ---- */

/* A part of a model that was split has only some tensors, and all but the first no hyper-parameters: say that instead. */
static setun_status refuse_split(const loader *l) {
    const setun_value *v = setun_file_find_value(l->model->file, "split.count");
    int64_t count;
    if (!v) return SETUN_OK;
    if (!setun_value_i64(v, &count)) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'split.count' is not a whole number", l->path);
    if (count <= 1) return SETUN_OK;
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: this is one of %lld parts of a model ('split.count'); join them first: llama-gguf-split --merge FIRST_PART OUTPUT", l->path, (long long)count);
}

/* Files that Setun packed say which version of the layouts they hold. */
static setun_status refuse_newer(const loader *l) {
    const setun_value *v = setun_file_find_value(l->model->file, SETUN_PACKED_KEY);
    int64_t version;
    if (!v) return SETUN_OK;
    if (!setun_value_i64(v, &version)) return setun_fail(SETUN_ERROR_FORMAT, "%s: '" SETUN_PACKED_KEY "' is not a whole number", l->path);
    if (version == SETUN_PACKED_VERSION) return SETUN_OK;
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: its weights are packed by version %lld of the layouts and this Setun reads version %d; convert the original file again, or use a newer Setun", l->path,
        (long long)version, SETUN_PACKED_VERSION);
}

static setun_status read_hyper_parameters(loader *l) {
    setun_model *m = l->model;
    if (l->gguf) {
        SETUN_TRY(refuse_split(l));
        SETUN_TRY(refuse_newer(l));
        return setun_hparams_from_gguf(m->file, l->h);
    }
    SETUN_TRY(setun_file_json(m->file, "config.json", &l->config));
    if (!l->config) return setun_fail(SETUN_ERROR_FORMAT, "%s: there is no config.json beside the weights; give the folder that has both", l->path);
    SETUN_TRY(setun_hparams_from_config(l->config, l->path, l->h));
    return setun_quantization_from_config(l->config, l->path, &l->quantization);
}

static setun_status read_name(loader *l) {
    const char *text = "";
    size_t length = 0;
    if (l->gguf) {
        const setun_value *v = setun_file_find_value(l->model->file, "general.name");
        if (v && !setun_value_string(v, &text, &length)) length = 0;
    } else if (json_is_string(json_object_get(l->config, "_name_or_path"))) {
        text = json_string_value(json_object_get(l->config, "_name_or_path"));
        length = strlen(text);
    }
    l->model->name = setun_strndup(text, length);
    return l->model->name ? SETUN_OK : setun_fail_memory(length + 1);
}

static void count_weights(setun_model *m) {
    for (int i = 0; i < m->weight_count; i++) {
        const setun_weight *w = &m->weights[i];
        m->parameters += (uint64_t)w->rows * (uint64_t)w->columns;
        m->weight_bytes += w->bytes;
        if (w->format == SETUN_FORMAT_MLX_2BIT) m->weight_bytes += 2 * (uint64_t)w->rows * (uint64_t)(w->columns / w->group_size) * setun_float_bytes(w->scales_format);
        if (w->format == SETUN_FORMAT_HF_2BIT) m->weight_bytes += 4;
    }
}

setun_status setun_loader_open(loader *l, setun_model *m, const setun_model_options *options) {
    setun_file_options file_options = {options->i2s_layout, options->no_map, options->progress, options->progress_user};
    memset(l, 0, sizeof *l);
    SETUN_TRY(setun_file_open(m->path, &file_options, &m->file));
    l->model = m;
    l->h = &m->description.h;
    l->path = m->path;
    l->gguf = setun_file_container(m->file) == SETUN_GGUF;
    return SETUN_OK;
}

setun_status setun_loader_build(loader *l) {
    setun_model *m = l->model;
    SETUN_TRY(read_hyper_parameters(l));
    SETUN_TRY(collect_weights(l));
    SETUN_TRY(check_description(l));
    SETUN_TRY(setun_description_read_hadamard(&m->description, m->file));
    SETUN_TRY(read_name(l));
    count_weights(m);
    return SETUN_OK;
}

static setun_status read_policy(setun_model *m, const char *weights) {
    static const char *const names[] = {"auto", "map", "pack"};
    for (int i = 0; weights && i < 3; i++)
        if (strcmp(weights, names[i]) == 0) {
            m->weights_policy = (setun_weights_policy)i;
            return SETUN_OK;
        }
    return weights ? setun_fail(SETUN_ERROR_ARGUMENT, "weights '%s': one of auto, map, pack", weights) : SETUN_OK;
}

/* The tokenizer is read beside the weights, by a thread of its own: it takes one as long as they take several. */
typedef struct tokenizer_work {
    pthread_t thread;
    bool started;
    setun_file *file;
    setun_tokenizer *tokenizer;
    setun_status status;
    char message[512];
} tokenizer_work;

static void *read_tokenizer(void *argument) {
    tokenizer_work *work = argument;
    work->status = setun_tokenizer_from_file(work->file, &work->tokenizer);
    if (work->status != SETUN_OK) snprintf(work->message, sizeof work->message, "%s", setun_error());
    return NULL;
}

static void start_tokenizer(tokenizer_work *work, const setun_model *m) {
    *work = (tokenizer_work){.file = m->file};
    /* a folder's other files are read and kept by the file itself, which isn't for two threads */
    work->started = setun_file_container(m->file) == SETUN_GGUF && setun_pool_size(m->context->pool) > 1 && pthread_create(&work->thread, NULL, read_tokenizer, work) == 0;
}

static setun_status end_tokenizer(tokenizer_work *work, setun_model *m) {
    if (work->started) pthread_join(work->thread, NULL);
    else read_tokenizer(work);
    m->tokenizer = work->tokenizer;
    if (work->status == SETUN_ERROR_UNSUPPORTED) { /* the model still runs on token ids */
        setun_log(m->context, SETUN_LOG_WARNING, "%s: the tokenizer is not usable: %s", m->path, work->message);
        m->tokenizer = NULL;
        return SETUN_OK;
    }
    return work->status == SETUN_OK ? SETUN_OK : setun_fail(work->status, "%s", work->message);
}

static setun_status load(setun_model *m, const setun_model_options *options, bool late) {
    loader l;
    tokenizer_work tokenizer;
    SETUN_TRY(read_policy(m, options->weights));
    SETUN_TRY(setun_loader_open(&l, m, options));
    SETUN_TRY(setun_loader_build(&l));
    start_tokenizer(&tokenizer, m);
    const setun_status weights = probe_weights(&l, options, late);
    char why[512];
    if (weights != SETUN_OK) snprintf(why, sizeof why, "%s", setun_error());
    const setun_status status = end_tokenizer(&tokenizer, m);
    if (weights != SETUN_OK) return setun_fail(weights, "%s", why); /* as if they had been read first */
    SETUN_TRY(status);
    setun_file_drop_header(m->file); /* megabytes of tokens and merges, which the tokenizer has now */
    int ternary = 0;
    for (int i = 0; i < m->weight_count; i++) ternary += m->weights[i].probed && m->weights[i].info.ternary;
    if (ternary == 0) setun_log(m->context, SETUN_LOG_WARNING, "%s: no weight of this model is ternary; it runs in floats, slowly", m->path);
    return SETUN_OK;
}

setun_status setun_model_make(setun_context *context, const char *path, setun_model **out) {
    *out = NULL;
    setun_model *m = setun_calloc(1, sizeof *m);
    if (!m) return setun_fail_memory(sizeof *m);
    m->context = context;
    m->path = setun_strdup(path);
    m->lock_made = pthread_mutex_init(&m->lock, NULL) == 0;
    if (!m->path || !m->lock_made) {
        setun_model_destroy(m);
        return setun_fail_memory(strlen(path) + 1);
    }
    *out = m;
    return SETUN_OK;
}

static setun_status load_model(setun_context *context, const char *path, const setun_model_options *given, bool late, setun_model **out) {
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_open: out is NULL");
    *out = NULL;
    if (!context || !path) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_open: %s is NULL", context ? "path" : "context");
    SETUN_OPTIONS(setun_model_options, options, given);
    setun_model *m;
    SETUN_TRY(setun_model_make(context, path, &m));
    setun_status status = load(m, &options, late);
    if (status != SETUN_OK) {
        setun_model_destroy(m);
        return status;
    }
    *out = m;
    return SETUN_OK;
}

setun_status setun_model_load(setun_context *context, const char *path, const setun_model_options *options, setun_model **out) { return load_model(context, path, options, false, out); }

setun_status setun_model_load_late(setun_context *context, const char *path, const setun_model_options *options, setun_model **out) { return load_model(context, path, options, true, out); }

void setun_model_destroy(setun_model *m) {
    if (!m) return;
    for (int i = 0; i < m->weight_count; i++)
        if (m->weights[i].prepared && m->free_prepared) m->free_prepared(m->weights[i].prepared);
    setun_tokenizer_destroy(m->tokenizer);
    setun_description_clear(&m->description);
    setun_free(m->weights);
    setun_file_close(m->file);
    if (m->lock_made) pthread_mutex_destroy(&m->lock);
    setun_free(m->path);
    setun_free(m->name);
    setun_free(m);
}

setun_weight *setun_model_find(setun_model *model, const char *name) {
    for (int i = 0; i < model->weight_count; i++)
        if (strcmp(model->weights[i].name, name) == 0) return &model->weights[i];
    return NULL;
}

setun_status setun_model_get_info(const setun_model *model, setun_model_info *out) {
    if (!model || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_get_info: %s is NULL", model ? "out" : "model");
    const setun_hparams *h = &model->description.h;
    setun_model_info info = {
        .size = out->size, .architecture = h->architecture, .name = model->name, .layers = h->layers, .width = h->width, .feed_forward = h->feed_forward, .heads = h->heads,
        .kv_heads = h->kv_heads, .head_size = h->head_size, .vocabulary = h->vocabulary, .context = h->context, .parameters = model->parameters,
        .file_bytes = setun_file_bytes(model->file), .weight_bytes = model->weight_bytes,
        .bits_per_weight = model->parameters ? (double)model->weight_bytes * 8 / (double)model->parameters : 0,
    };
    memcpy(out, &info, out->size && out->size < sizeof info ? out->size : sizeof info);
    return SETUN_OK;
}
