/*
 * convert.c - setun_model_convert: the same model in another file. Decides for every tensor what it is called and in which format
 * it is written, and writes GGUF or a Hugging Face folder. Caller: run/convert.c, for the API (`setun convert`, `setun quantize`).
 * Values stay exactly the same wherever the chosen format can hold them; where not, the report says by how much. Knows no
 * bits (ternary room) and no bytes of containers (file room).
 */
#include "model/convert.h"
#include <errno.h>
#include <math.h>
#include <strings.h>
#include <sys/stat.h>

typedef struct converter {
    setun_context *context;
    setun_model *model;
    const setun_hparams *h;
    const char *in_path, *out_path;
    setun_convert_options o;
    const setun_convert_hook *hook;         /* NULL: nothing is added */
    bool hooked;
    bool from_gguf, to_gguf, smallest, packed;
    setun_format ternary, embedding, dense; /* UNKNOWN: default / keep */
    bool rope_interleaved, norm_one_plus;   /* of the output */
    setun_convert_item *items;
    int count, capacity;
    uint64_t done, total;
    setun_gguf_writer *gguf;
    setun_safetensors_writer *safetensors;
    setun_string missing;
    bool wrote_int8;                        /* output says explicitly whether activations are int8 */
} converter;

/* ---- options ---- */

static setun_status dense_option(const char *what, const char *text, bool to_gguf, setun_format *out) {
    *out = SETUN_FORMAT_UNKNOWN;
    if (!text || strcasecmp(text, "keep") == 0) return SETUN_OK;
    *out = setun_format_from_name(text);
    if (setun_format_get_kind(*out) != SETUN_KIND_DENSE)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s format '%s' is not one of keep, f32, f16, bf16, q8_0, q4_0, q4_1, q4_k, q6_k", what, text);
    if (!to_gguf && !setun_float_bytes(*out))
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s format '%s' does not exist in Hugging Face files: choose keep, f32, f16 or bf16, or write GGUF", what, text);
    return SETUN_OK;
}

static setun_status read_options(converter *c) {
    const char *container = c->o.container ? c->o.container : "gguf";
    c->to_gguf = strcasecmp(container, "gguf") == 0;
    if (!c->to_gguf && strcasecmp(container, "safetensors") != 0)
        return setun_fail(SETUN_ERROR_ARGUMENT, "container '%s' is neither gguf nor safetensors", container);
    c->ternary = SETUN_FORMAT_UNKNOWN;
    const char *name = c->o.ternary;
    c->smallest = name && strcasecmp(name, "smallest") == 0;
    c->packed = name && strcasecmp(name, "packed") == 0;
    if (c->packed && !c->to_gguf) return setun_fail(SETUN_ERROR_ARGUMENT, "packed weights are written as GGUF, not as safetensors");
    if (name && !c->smallest && !c->packed) {
        c->ternary = setun_format_from_name(name);
        const bool packed = setun_format_get_kind(c->ternary) == SETUN_KIND_TERNARY && c->ternary != SETUN_FORMAT_MLX_2BIT && c->ternary != SETUN_FORMAT_I2_S_64 && c->ternary != SETUN_FORMAT_I2_S_ROW4;
        if (!packed) return setun_fail(SETUN_ERROR_ARGUMENT, "ternary format '%s' is not one of packed, smallest, tq1_0, tq2_0, i2_s, iq1_bn, iq2_bn, q2_0, pq2_0, ptq1_0, trits, hf", name);
        if ((c->ternary == SETUN_FORMAT_HF_2BIT) == c->to_gguf)
            return setun_fail(SETUN_ERROR_ARGUMENT, "ternary format '%s' does not exist in %s files; %s", name, c->to_gguf ? "GGUF" : "safetensors",
                c->to_gguf ? "write safetensors, or choose another" : "there it is 'hf'");
    }
    SETUN_TRY(dense_option("embedding", c->o.embedding, c->to_gguf, &c->embedding));
    return dense_option("dense", c->o.dense, c->to_gguf, &c->dense);
}

/* ---- items ---- */

static setun_status new_item(converter *c, setun_convert_item **out) {
    if (c->count == c->capacity) {
        const int capacity = c->capacity ? 2 * c->capacity : 512;
        setun_convert_item *items = setun_realloc(c->items, (size_t)capacity * sizeof *items);
        if (!items) return setun_fail_memory((size_t)capacity * sizeof *items);
        c->items = items;
        c->capacity = capacity;
    }
    *out = &c->items[c->count++];
    memset(*out, 0, sizeof **out);
    return SETUN_OK;
}

static setun_status set_name(setun_convert_item *item, const char *name) {
    const size_t length = strlen(name);
    if (length >= sizeof item->name) return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': its name is too long to be written", name);
    memcpy(item->name, name, length + 1);
    return SETUN_OK;
}

static setun_status set_size(setun_convert_item *item) {
    setun_status status = setun_format_size(item->to, item->weight.rows, item->weight.columns, &item->bytes);
    return status == SETUN_OK ? SETUN_OK : setun_fail_prefix(status, "tensor '%s'", item->source);
}

/* Can this format hold the ternary weight without changing a value? */
static bool holds(setun_format f, const setun_convert_item *item, bool f16, bool bf16) {
    if (!setun_format_fits(f, item->weight.rows, item->weight.columns)) return false;
    switch (f) {
    case SETUN_FORMAT_F32: return true;
    case SETUN_FORMAT_BF16: return bf16;
    case SETUN_FORMAT_F16:
    case SETUN_FORMAT_Q4_0: return f16; /* groups are 32 weights or more */
    case SETUN_FORMAT_I2_S:
    case SETUN_FORMAT_TRITS:
    case SETUN_FORMAT_IQ2_BN: return setun_format_holds_scales(f, &item->info);
    default: return f16 && setun_format_holds_scales(f, &item->info);
    }
}

/* The format where the user left it open: the fastest that is exact, or the smallest. */
static setun_status choose_exact(const converter *c, setun_convert_item *item) {
    static const setun_format by_speed[] = {SETUN_FORMAT_I2_S, SETUN_FORMAT_IQ2_BN, SETUN_FORMAT_TQ2_0, SETUN_FORMAT_PQ2_0, SETUN_FORMAT_Q2_0, SETUN_FORMAT_PTQ1_0, SETUN_FORMAT_TQ1_0,
        SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_Q4_0, SETUN_FORMAT_F16, SETUN_FORMAT_BF16, SETUN_FORMAT_F32};
    bool f16, bf16;
    if (c->packed && holds(SETUN_FORMAT_TRITS, item, false, false)) { /* finer scales: the fastest format that has them */
        item->to = SETUN_FORMAT_TRITS;
        return SETUN_OK;
    }
    SETUN_TRY(setun_convert_scales_fit(&item->weight, &item->info, &f16, &bf16));
    item->to = SETUN_FORMAT_UNKNOWN;
    uint64_t best = 0;
    for (size_t i = 0; i < sizeof by_speed / sizeof *by_speed; i++) {
        const setun_format f = by_speed[i];
        uint64_t bytes;
        if (!holds(f, item, f16, bf16)) continue;
        SETUN_TRY(setun_format_size(f, item->weight.rows, item->weight.columns, &bytes));
        if (item->to != SETUN_FORMAT_UNKNOWN && !(c->smallest && bytes < best)) continue;
        item->to = f;
        best = bytes;
    }
    return SETUN_OK;
}

static bool to_be_packed(const converter *c, const setun_convert_item *item, setun_role role) {
    return setun_role_is_linear(role) && c->h->activation_int8 && item->info.scale == SETUN_SCALE_TENSOR && item->weight.rows % 4 == 0;
}

/* In Hugging Face form: packed, or the values as the shortest float that holds them. */
static setun_status choose_huggingface(const converter *c, setun_convert_item *item, setun_role role) {
    if (to_be_packed(c, item, role)) {
        item->to = SETUN_FORMAT_HF_2BIT;
        return SETUN_OK;
    }
    if (setun_role_is_linear(role) && c->h->activation_int8) /* left dense it would lose its int8 activations there */
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': %s; packed Hugging Face files cannot hold it: write GGUF", item->source,
            item->weight.rows % 4 ? "the number of its rows is no multiple of 4" : "it has more than one scale");
    bool f16, bf16;
    SETUN_TRY(setun_convert_scales_fit(&item->weight, &item->info, &f16, &bf16));
    item->to = bf16 ? SETUN_FORMAT_BF16 : f16 ? SETUN_FORMAT_F16 : SETUN_FORMAT_F32;
    return SETUN_OK;
}

static setun_format keep_format(const converter *c, setun_format f) {
    if (c->to_gguf) return setun_format_get_kind(f) == SETUN_KIND_DENSE ? f : SETUN_FORMAT_F32; /* MLX's plain 2 bits have no GGUF type */
    return setun_float_bytes(f) ? f : SETUN_FORMAT_F32;
}

/* q and k come in the order in which rope takes their dimensions: halves in Hugging Face files, pairs in some GGUF architectures. */
static void set_rope(const converter *c, setun_convert_item *item, setun_role role) {
    if (c->h->rope_interleaved == c->rope_interleaved) return;
    if (role != SETUN_ROLE_Q && role != SETUN_ROLE_K && role != SETUN_ROLE_Q_NORM && role != SETUN_ROLE_K_NORM) return;
    item->head_size = c->h->head_size;
    item->rotary = c->h->rotary ? c->h->rotary : c->h->head_size;
    item->interleave = c->rope_interleaved;
}

static setun_status plan_matrix(const converter *c, setun_convert_item *item, setun_role role) {
    setun_weight *w = &item->weight;
    const setun_format chosen = role == SETUN_ROLE_EMBEDDING ? c->embedding : setun_role_is_linear(role) || role == SETUN_ROLE_OUTPUT ? c->dense : SETUN_FORMAT_UNKNOWN;
    item->info = w->info;
    if (!w->probed) SETUN_TRY(setun_ternary_probe(w, &item->info));
    if (!item->info.ternary && c->o.quantise && setun_role_is_linear(role) && setun_format_get_kind(w->format) == SETUN_KIND_DENSE) {
        w->absmean = true;
        item->quantised = true;
        SETUN_TRY(setun_ternary_probe(w, &item->info));
    }
    set_rope(c, item, role);
    item->rank = 2;
    item->shape[0] = w->rows;
    item->shape[1] = w->columns;
    /* An embedding that is ternary stays so unless a format was asked for it by name. */
    if (item->info.ternary && !(role == SETUN_ROLE_EMBEDDING && chosen != SETUN_FORMAT_UNKNOWN)) {
        if (!c->to_gguf) SETUN_TRY(choose_huggingface(c, item, role));
        else if (c->ternary != SETUN_FORMAT_UNKNOWN) item->to = c->ternary;
        else SETUN_TRY(choose_exact(c, item));
        item->how = setun_format_get_kind(item->to) == SETUN_KIND_TERNARY ? SETUN_ITEM_CODES : SETUN_ITEM_VALUES;
    } else {
        item->to = chosen != SETUN_FORMAT_UNKNOWN ? chosen : keep_format(c, w->format);
        item->how = SETUN_ITEM_VALUES;
    }
    SETUN_TRY(set_size(item));
    /* The same format: the same bytes, if rows are whole in it. */
    const bool by_rows = w->format != SETUN_FORMAT_I2_S && w->format != SETUN_FORMAT_HF_2BIT && w->format != SETUN_FORMAT_TRITS;
    if (item->to == w->format && !w->absmean && (by_rows || !item->rotary) && w->bytes >= item->bytes) item->how = SETUN_ITEM_COPY;
    if (item->to == SETUN_FORMAT_HF_2BIT) item->shape[0] = w->rows / 4;
    return SETUN_OK;
}

/* Norms and biases: f32, brought into the output's form. */
static setun_status plan_vector(const converter *c, setun_convert_item *item, setun_role role, const char *suffix) {
    const bool norm = strcmp(suffix, "weight") == 0;
    item->to = c->to_gguf ? SETUN_FORMAT_F32 : keep_format(c, item->weight.format);
    item->how = SETUN_ITEM_VALUES;
    item->rank = 1;
    item->shape[0] = item->weight.columns;
    if (strcmp(suffix, "input_norm") != 0) set_rope(c, item, role);
    if ((norm || strcmp(suffix, "input_norm") == 0) && c->h->norm_one_plus != c->norm_one_plus) {
        item->add = c->norm_one_plus ? -1.0f : 1.0f;
        item->to = SETUN_FORMAT_F32;
    }
    SETUN_TRY(set_size(item));
    if (item->to == item->weight.format && item->add == 0 && !item->rotary) item->how = SETUN_ITEM_COPY;
    return SETUN_OK;
}

static setun_status name_for(const converter *c, const setun_weight *w, setun_role role, int layer, const char *suffix, setun_convert_item *item) {
    if (c->from_gguf == c->to_gguf) return set_name(item, w->name);
    char name[192];
    SETUN_TRY(setun_role_name_family(role, c->h->family, layer, c->to_gguf, suffix, name, sizeof name));
    /* transformers' bare models (embeddings) leave the prefix out */
    const bool bare = !c->to_gguf && c->h->embedding_model && strncmp(name, "model.", 6) == 0;
    return set_name(item, bare ? name + 6 : name);
}

/* weight_scale beside a packed weight: multiplies the codes. */
static setun_status add_scale(converter *c, const setun_convert_item *weight) {
    char name[sizeof weight->name];
    const float scale = weight->info.tensor_scale;
    const char *source = weight->source;
    const int length = snprintf(name, sizeof name, "%s_scale", weight->name);
    if (length < 0 || (size_t)length >= sizeof name) return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': its name has no room for '_scale'", weight->name);
    setun_convert_item *item;
    SETUN_TRY(new_item(c, &item));
    SETUN_TRY(set_name(item, name));
    item->own = setun_alloc(sizeof *item->own);
    if (!item->own) return setun_fail_memory(sizeof *item->own);
    item->own[0] = scale;
    item->source = source;
    item->weight = (setun_weight){.name = source, .format = SETUN_FORMAT_F32, .rows = 1, .columns = 1, .data = (const uint8_t *)item->own, .bytes = sizeof *item->own};
    item->to = SETUN_FORMAT_F32;
    item->how = SETUN_ITEM_COPY;
    item->rank = 1;
    item->shape[0] = 1;
    return set_size(item);
}

static setun_status add_weight(converter *c, setun_weight *w, setun_role role, int layer, const char *suffix) {
    if (!w) return SETUN_OK;
    setun_convert_item *item;
    SETUN_TRY(new_item(c, &item));
    item->weight = *w;
    item->source = w->name;
    SETUN_TRY(name_for(c, w, role, layer, suffix, item));
    if (strcmp(suffix, "weight") == 0 && setun_role_is_matrix(role)) {
        SETUN_TRY(plan_matrix(c, item, role));
        return item->to == SETUN_FORMAT_HF_2BIT ? add_scale(c, item) : SETUN_OK;
    }
    return plan_vector(c, item, role, suffix);
}

static setun_status add_owner(converter *c, setun_layer *owner, bool per_layer, int layer) {
    for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
        if (setun_role_is_per_layer((setun_role)r) != per_layer) continue;
        SETUN_TRY(add_weight(c, owner->input_norm[r], (setun_role)r, layer, "input_norm"));
        SETUN_TRY(add_weight(c, owner->weight[r], (setun_role)r, layer, "weight"));
        SETUN_TRY(add_weight(c, owner->bias[r], (setun_role)r, layer, "bias"));
    }
    return SETUN_OK;
}

/* llama3's rope factors, which other programs read as this tensor. */
static setun_status add_rope_factors(converter *c) {
    const int count = (c->h->rotary ? c->h->rotary : c->h->head_size) / 2;
    setun_convert_item *item;
    SETUN_TRY(new_item(c, &item));
    SETUN_TRY(set_name(item, "rope_freqs.weight"));
    item->source = "rope scaling";
    item->weight = (setun_weight){.name = item->source, .format = SETUN_FORMAT_F32, .rows = 1, .columns = count, .data = (const uint8_t *)c->h->rope_factors, .bytes = (uint64_t)count * 4};
    item->to = SETUN_FORMAT_F32;
    item->how = SETUN_ITEM_COPY;
    item->rank = 1;
    item->shape[0] = count;
    return set_size(item);
}

static setun_status plan_by_description(converter *c) {
    setun_description *d = &c->model->description;
    SETUN_TRY(add_owner(c, &d->global, false, -1));
    for (int i = 0; i < c->h->layers; i++) SETUN_TRY(add_owner(c, &d->layers[i], true, i));
    return c->to_gguf && c->h->rope_factors ? add_rope_factors(c) : SETUN_OK;
}

/* GGUF to GGUF: every tensor of the file, in its order, also those that are read elsewhere (rope_freqs.weight). */
static setun_status plan_by_file(converter *c) {
    for (int i = 0; i < setun_file_tensor_count(c->model->file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(c->model->file, i);
        setun_weight *w = setun_model_find(c->model, t->name);
        setun_role role;
        int layer;
        const char *suffix;
        if (setun_is_shortlist_name(t->name)) continue; /* belongs to the head's bytes in that file; made anew where it is wanted */
        if (w && setun_role_of_family(t->name, c->h->family, &role, &layer, &suffix) && strcmp(suffix, "weight") == 0 && setun_role_is_matrix(role)) {
            SETUN_TRY(add_weight(c, w, role, layer, suffix));
            continue;
        }
        setun_convert_item *item;
        SETUN_TRY(new_item(c, &item));
        SETUN_TRY(set_name(item, t->name));
        item->source = t->name;
        item->rank = t->rank;
        memcpy(item->shape, t->shape, sizeof item->shape);
        int64_t rows = 1;
        for (int k = 0; k + 1 < t->rank; k++) rows *= t->shape[k];
        item->weight = (setun_weight){.name = t->name, .format = t->format, .rows = rows, .columns = t->rank ? t->shape[t->rank - 1] : 1, .data = t->data, .bytes = t->bytes};
        item->to = t->format;
        item->how = SETUN_ITEM_COPY;
        SETUN_TRY(set_size(item));
        if (item->bytes > t->bytes) return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' is shorter than its shape", t->name);
    }
    return SETUN_OK;
}

/* What the hook adds to a packed file: bytes that go with the head, so only where that is written as it is. */
static setun_status add_extras(converter *c) {
    const setun_weight *head = setun_model_head(c->model);
    bool kept = false;
    for (int i = 0; i < c->count; i++) kept = kept || (head && c->items[i].source == head->name && c->items[i].how == SETUN_ITEM_COPY);
    if (!c->packed || !c->hook || !kept) return SETUN_OK;
    setun_convert_extra extras[SETUN_CONVERT_EXTRAS];
    int count = 0;
    c->hooked = true;
    SETUN_TRY(c->hook->add(c->hook->user, c->model, extras, &count));
    for (int i = 0; i < count; i++) {
        setun_convert_item *item;
        SETUN_TRY(new_item(c, &item));
        SETUN_TRY(set_name(item, extras[i].name));
        item->source = extras[i].name;
        item->weight = (setun_weight){.name = extras[i].name, .format = SETUN_FORMAT_I8, .rows = extras[i].rows, .columns = extras[i].columns, .data = extras[i].data,
            .bytes = (uint64_t)extras[i].rows * (uint64_t)extras[i].columns};
        item->to = SETUN_FORMAT_I8;
        item->how = SETUN_ITEM_COPY;
        item->rank = 2;
        item->shape[0] = extras[i].rows;
        item->shape[1] = extras[i].columns;
        SETUN_TRY(set_size(item));
    }
    return SETUN_OK;
}

/* ---- GGUF metadata ---- */

/* llama.cpp's, bitnet.cpp's and ik_llama.cpp's numbers for "mostly this"; -1: nobody has one. */
static int file_type(setun_format f) {
    switch (f) {
    case SETUN_FORMAT_F32: return 0;
    case SETUN_FORMAT_F16: return 1;
    case SETUN_FORMAT_Q4_0: return 2;
    case SETUN_FORMAT_Q4_1: return 3;
    case SETUN_FORMAT_Q8_0: return 7;
    case SETUN_FORMAT_Q4_K: return 15;
    case SETUN_FORMAT_Q6_K: return 18;
    case SETUN_FORMAT_BF16: return 32;
    case SETUN_FORMAT_TQ1_0: return 36;
    case SETUN_FORMAT_TQ2_0: return 37;
    case SETUN_FORMAT_I2_S: return 40;
    case SETUN_FORMAT_IQ1_BN: return 136;
    case SETUN_FORMAT_IQ2_BN: return 137;
    default: return -1;
    }
}

static setun_format most_common(const converter *c) {
    uint64_t weights[SETUN_FORMAT_COUNT] = {0};
    for (int i = 0; i < c->count; i++) {
        setun_role role;
        int layer;
        const char *suffix;
        if (!setun_role_of(c->items[i].name, &role, &layer, &suffix) || !setun_role_is_linear(role)) continue;
        weights[c->items[i].to] += (uint64_t)c->items[i].weight.rows * (uint64_t)c->items[i].weight.columns;
    }
    int best = 0;
    for (int i = 1; i < SETUN_FORMAT_COUNT; i++)
        if (weights[i] > weights[best]) best = i;
    return (setun_format)best;
}

static bool is_rewritten(const char *key) {
    return strcmp(key, SETUN_PACKED_KEY) == 0 || strcmp(key, "general.file_type") == 0 || strcmp(key, "general.quantization_version") == 0 || strncmp(key, "split.", 6) == 0;
}

static setun_status write_file_type(converter *c) {
    const setun_format common = most_common(c);
    const int type = file_type(common);
    if (type >= 0) SETUN_TRY(setun_gguf_add_u32(c->gguf, "general.file_type", (uint32_t)type));
    return setun_float_bytes(common) ? SETUN_OK : setun_gguf_add_u32(c->gguf, "general.quantization_version", 2);
}

static setun_status copy_metadata(converter *c) {
    setun_file *file = c->model->file;
    for (int i = 0; i < setun_file_value_count(file); i++) {
        const setun_value *v = setun_file_value_at(file, i);
        if (!is_rewritten(v->key)) SETUN_TRY(setun_gguf_copy_value(c->gguf, v));
    }
    SETUN_TRY(write_file_type(c));
    /* Files that do not say whether activations are int8 are judged by their formats, which may have changed just now. */
    const setun_architecture *a = setun_architecture_find(c->h->architecture, strlen(c->h->architecture), true);
    if (!setun_file_find_value(file, "setun.activation_int8") && !(a && a->int8))
        SETUN_TRY(setun_gguf_add_bool(c->gguf, "setun.activation_int8", c->h->activation_int8));
    return SETUN_OK;
}

static setun_status make_metadata(converter *c) {
    setun_hparams h = *c->h; /* rope_factors stay the model's */
    h.rope_interleaved = c->rope_interleaved;
    h.norm_one_plus = c->norm_one_plus;
    SETUN_TRY(setun_hparams_to_gguf(&h, c->gguf));
    const char *name = c->model->name && c->model->name[0] ? c->model->name : NULL;
    if (name) SETUN_TRY(setun_gguf_add_string(c->gguf, "general.name", name, strlen(name)));
    SETUN_TRY(write_file_type(c));
    if (c->model->tokenizer) return setun_tokenizer_to_gguf(c->model->tokenizer, c->gguf);
    setun_string_puts(&c->missing, c->missing.length ? ",\"tokenizer\"" : "\"tokenizer\"");
    setun_log(c->context, SETUN_LOG_WARNING, "%s: the input has no tokenizer, so the output has none", c->in_path);
    return SETUN_OK;
}

/* ---- writing ---- */

static setun_status sink(void *user, const void *data, uint64_t bytes) {
    converter *c = user;
    const uint8_t *p = data;
    while (bytes > 0) { /* in pieces, so that progress moves and can stop it */
        const uint64_t piece = bytes < (16u << 20) ? bytes : 16u << 20;
        SETUN_TRY(c->gguf ? setun_gguf_write_tensor(c->gguf, p, piece) : setun_safetensors_write_tensor(c->safetensors, p, piece));
        p += piece;
        bytes -= piece;
        c->done += piece;
        if (c->o.progress && !c->o.progress(c->o.progress_user, "bytes", c->done, c->total))
            return setun_fail(SETUN_ERROR_CANCELLED, "%s: converting was stopped; nothing was written", c->out_path);
    }
    return SETUN_OK;
}

static setun_status write_items(converter *c) {
    for (int i = 0; i < c->count; i++) c->total += c->items[i].bytes;
    for (int i = 0; i < c->count; i++) SETUN_TRY(setun_convert_item_write(c->context, &c->items[i], sink, c));
    return SETUN_OK;
}

static bool has_trits(const converter *c) {
    for (int i = 0; i < c->count; i++)
        if (c->items[i].to == SETUN_FORMAT_TRITS) return true;
    return false;
}

static setun_status fill_gguf(converter *c) {
    SETUN_TRY(c->from_gguf ? copy_metadata(c) : make_metadata(c));
    if (has_trits(c)) SETUN_TRY(setun_gguf_add_u32(c->gguf, SETUN_PACKED_KEY, SETUN_PACKED_VERSION));
    for (int i = 0; i < c->count; i++) {
        const setun_convert_item *item = &c->items[i];
        SETUN_TRY(setun_gguf_add_tensor(c->gguf, item->name, item->to, item->rank, item->shape, item->bytes));
    }
    SETUN_TRY(setun_gguf_begin_data(c->gguf));
    return write_items(c);
}

static setun_status write_gguf(converter *c) {
    int64_t alignment = 0;
    const setun_value *v = c->from_gguf ? setun_file_find_value(c->model->file, "general.alignment") : NULL;
    if (v && !setun_value_i64(v, &alignment)) return SETUN_ERROR_FORMAT;
    if (has_trits(c) && alignment < 64) alignment = 64; /* used where they lie, whole cache lines at a time */
    SETUN_TRY(setun_gguf_writer_create(c->out_path, c->o.force, (uint32_t)alignment, &c->gguf));
    setun_status status = fill_gguf(c);
    if (status == SETUN_OK) return setun_gguf_commit(c->gguf);
    setun_gguf_abort(c->gguf);
    return status;
}

static const char *dtype_of(setun_format f) {
    return f == SETUN_FORMAT_HF_2BIT ? "U8" : f == SETUN_FORMAT_F16 ? "F16" : f == SETUN_FORMAT_BF16 ? "BF16" : "F32";
}

static setun_status fill_safetensors(converter *c) {
    for (int i = 0; i < c->count; i++) {
        const setun_convert_item *item = &c->items[i];
        SETUN_TRY(setun_safetensors_add_tensor(c->safetensors, item->name, dtype_of(item->to), item->rank, item->shape, item->bytes));
    }
    SETUN_TRY(setun_safetensors_begin_data(c->safetensors));
    return write_items(c);
}

/* Modules among the linears that stay dense, and what the config must say besides. */
static setun_status describe_folder(converter *c, setun_convert_folder *f) {
    bool half = false, brain = false, full = false;
    f->model = c->model;
    f->missing = &c->missing;
    f->not_converted = json_array();
    if (!f->not_converted) return setun_fail_memory(64);
    for (int i = 0; i < c->count; i++) {
        const setun_convert_item *item = &c->items[i];
        setun_role role;
        int layer;
        const char *suffix;
        f->packed = f->packed || item->to == SETUN_FORMAT_HF_2BIT;
        if (!setun_role_of_family(item->name, c->h->family, &role, &layer, &suffix) || strcmp(suffix, "weight") != 0 || !setun_role_is_matrix(role)) continue;
        half = half || item->to == SETUN_FORMAT_F16;
        brain = brain || item->to == SETUN_FORMAT_BF16;
        full = full || item->to == SETUN_FORMAT_F32;
        if (item->to == SETUN_FORMAT_HF_2BIT || role == SETUN_ROLE_EMBEDDING) continue;
        char module[192];
        snprintf(module, sizeof module, "%.*s", (int)(strlen(item->name) - strlen(".weight")), item->name);
        if (json_array_append_new(f->not_converted, json_string(module))) return setun_fail_memory(strlen(module));
    }
    f->dtype = full || (half && brain) ? "float32" : half ? "float16" : brain ? "bfloat16" : "float32";
    return SETUN_OK;
}

static setun_status write_folder(converter *c) {
    char path[4096];
    if (c->model->description.rotated)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the weights are rotated (prism.hadamard), which Hugging Face files have no words for; write GGUF", c->in_path);
    const bool made = mkdir(c->out_path, 0777) == 0;
    if (!made && errno != EEXIST) return setun_fail(SETUN_ERROR_IO, "%s: the folder cannot be made: %s", c->out_path, strerror(errno));
    const int length = snprintf(path, sizeof path, "%s/model.safetensors", c->out_path);
    if (length < 0 || (size_t)length >= sizeof path) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: the path is too long", c->out_path);
    setun_convert_folder folder = {0};
    setun_status status = describe_folder(c, &folder);
    if (status == SETUN_OK) status = setun_safetensors_writer_create(path, c->o.force, &c->safetensors);
    if (status == SETUN_OK) {
        status = fill_safetensors(c);
        if (status == SETUN_OK) status = setun_convert_folder_files(&folder, c->out_path, c->o.force);
        if (status == SETUN_OK) status = setun_safetensors_commit(c->safetensors);
        else setun_safetensors_abort(c->safetensors);
    }
    json_decref(folder.not_converted);
    if (status != SETUN_OK && made) (void)remove(c->out_path); /* only if nothing is in it */
    return status;
}

/* ---- the whole ---- */

static uint64_t output_bytes(const converter *c) {
    struct stat s;
    char path[4096];
    if (c->to_gguf) return stat(c->out_path, &s) == 0 ? (uint64_t)s.st_size : 0;
    snprintf(path, sizeof path, "%s/model.safetensors", c->out_path);
    return stat(path, &s) == 0 ? (uint64_t)s.st_size : 0;
}

static setun_status report(const converter *c, char **out_json) {
    setun_string s = {0};
    bool exact = true, first = true;
    setun_string_printf(&s, "{\"input_bytes\":%llu,\"output_bytes\":%llu,\"tensors\":[", (unsigned long long)setun_file_bytes(c->model->file), (unsigned long long)output_bytes(c));
    for (int i = 0; i < c->count; i++) {
        const setun_convert_item *item = &c->items[i];
        exact = exact && item->exact;
        if (item->own) continue; /* a scale: part of its weight */
        setun_string_puts(&s, first ? "{\"name\":" : ",{\"name\":");
        first = false;
        setun_string_json(&s, item->name, strlen(item->name));
        setun_string_printf(&s, ",\"from\":\"%s\",\"to\":\"%s\",\"bytes\":%llu,\"exact\":%s,\"max_error\":%.9g}", setun_format_name(item->weight.format), setun_format_name(item->to),
            (unsigned long long)item->bytes, item->exact ? "true" : "false", item->max_error);
    }
    s.failed = s.failed || c->missing.failed;
    setun_string_printf(&s, "],\"exact\":%s,\"missing\":[%.*s]}", exact ? "true" : "false", (int)c->missing.length, c->missing.data ? c->missing.data : "");
    return setun_string_take(&s, out_json, NULL);
}

static setun_status convert(converter *c, char **out_json) {
    SETUN_TRY(read_options(c));
    struct stat in, out;
    if (stat(c->in_path, &in) == 0 && stat(c->out_path, &out) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: input and output are the same; give another name", c->out_path);
    setun_model_options options = {.size = sizeof options, .i2s_layout = c->o.i2s_layout, .progress = c->o.progress, .progress_user = c->o.progress_user};
    SETUN_TRY(setun_model_load(c->context, c->in_path, &options, &c->model));
    c->h = &c->model->description.h;
    c->from_gguf = setun_file_container(c->model->file) == SETUN_GGUF;
    /* Between the two worlds tensors take the form that other programs expect there; within one they stay. */
    c->rope_interleaved = c->h->rope_interleaved;
    c->norm_one_plus = c->h->norm_one_plus;
    if (c->from_gguf != c->to_gguf) {
        c->rope_interleaved = c->to_gguf && setun_gguf_interleaved(setun_gguf_architecture(c->h));
        c->norm_one_plus = !c->to_gguf && c->h->family == SETUN_FAMILY_GEMMA3;
    }
    setun_status planned = c->from_gguf && c->to_gguf ? plan_by_file(c) : plan_by_description(c);
    if (planned != SETUN_OK) return setun_fail_prefix(planned, "%s", c->in_path);
    SETUN_TRY(add_extras(c));
    SETUN_TRY(c->to_gguf ? write_gguf(c) : write_folder(c));
    return out_json ? report(c, out_json) : SETUN_OK;
}

setun_status setun_model_convert(setun_context *context, const char *in_path, const char *out_path, const setun_convert_options *given, const setun_convert_hook *hook, char **out_json) {
    if (out_json) *out_json = NULL;
    if (!context || !in_path || !out_path)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_convert: %s is NULL", !context ? "context" : !in_path ? "in_path" : "out_path");
    SETUN_OPTIONS(setun_convert_options, options, given);
    converter c = {.context = context, .in_path = in_path, .out_path = out_path, .o = options, .hook = hook};
    setun_status status = convert(&c, out_json);
    for (int i = 0; i < c.count; i++) setun_free(c.items[i].own);
    setun_free(c.items);
    setun_string_clear(&c.missing);
    if (c.hooked) hook->done(hook->user);
    setun_model_destroy(c.model);
    return status;
}
