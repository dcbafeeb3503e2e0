/*
 * inspect.c - setun_file_inspect: what is in a file, as JSON, also when Setun would not load it. Caller: the program.
 * Reads the header; with `deep` every weight. Refuses nothing but a file that cannot be opened: what is wrong goes into
 * "problems" and into each tensor's "reason".
 */
#include "model/family.h"
#include "base/thread.h"
#include <inttypes.h>
#include <math.h>

#define ARRAY_SHOWN_WHOLE 64
#define ARRAY_SHOWN_FIRST 8
#define PROBLEMS_SHOWN 8 /* of tensors; each tensor has its own reason anyway */

typedef struct entry {
    const setun_file_tensor *tensor;
    setun_weight weight;   /* described is true */
    bool described, part;  /* part: scales and the like, belonging to another tensor */
    bool supported;
    bool probed;
    bool starved;          /* memory ran out over it */
    setun_ternary_info info;
    uint64_t parameters;   /* 0 for a part */
    char *reason;          /* NULL: none */
} entry;

typedef struct inspection {
    setun_loader loader;
    entry *entries;
    int count;
    bool built;
    char *problem;         /* why the model cannot be described */
    char *tokenizer_problem;
} inspection;

/* ---- metadata ---- */

static void put_number(setun_string *s, double value) {
    if (isfinite(value)) setun_string_printf(s, "%.9g", value);
    else setun_string_puts(s, "null"); /* JSON has no word for it */
}

static void put_element(setun_string *s, const setun_value *v, uint64_t i) {
    int64_t whole;
    double real;
    const char *text;
    size_t length;
    if (v->element == SETUN_VALUE_STRING && setun_value_string_at(v, i, &text, &length)) setun_string_json(s, text, length);
    else if (v->element == SETUN_VALUE_BOOL && setun_value_i64_at(v, i, &whole)) setun_string_puts(s, whole ? "true" : "false");
    else if (v->element != SETUN_VALUE_F32 && v->element != SETUN_VALUE_F64 && setun_value_i64_at(v, i, &whole)) setun_string_printf(s, "%" PRId64, whole);
    else if (setun_value_f64_at(v, i, &real)) put_number(s, real);
    else setun_string_puts(s, "null");
}

static const char *type_name(setun_value_type type) {
    static const char *const names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return (unsigned)type < sizeof names / sizeof names[0] ? names[type] : "unknown";
}

static void put_value(setun_string *s, const setun_value *v) {
    int64_t whole;
    double real;
    bool truth;
    const char *text;
    size_t length;
    if (v->type == SETUN_VALUE_STRING && setun_value_string(v, &text, &length)) {
        setun_string_json(s, text, length);
    } else if (v->type == SETUN_VALUE_ARRAY) {
        bool whole_list = v->count <= ARRAY_SHOWN_WHOLE; /* vocabularies are not worth megabytes of JSON */
        if (!whole_list) setun_string_printf(s, "{\"array\":\"%s\",\"count\":%" PRIu64 ",\"first\":", type_name(v->element), v->count);
        setun_string_puts(s, "[");
        for (uint64_t i = 0; i < (whole_list ? v->count : ARRAY_SHOWN_FIRST); i++) {
            if (i) setun_string_puts(s, ",");
            put_element(s, v, i);
        }
        setun_string_puts(s, whole_list ? "]" : "]}");
    } else if (v->type == SETUN_VALUE_BOOL && setun_value_bool(v, &truth)) {
        setun_string_puts(s, truth ? "true" : "false");
    } else if (v->type != SETUN_VALUE_F32 && v->type != SETUN_VALUE_F64 && setun_value_i64(v, &whole)) {
        setun_string_printf(s, "%" PRId64, whole);
    } else if (setun_value_f64(v, &real)) {
        put_number(s, real);
    } else {
        setun_string_puts(s, "null");
    }
}

static int append_text(const char *bytes, size_t count, void *user) {
    setun_string *s = user;
    setun_string_append(s, bytes, count);
    return s->failed ? -1 : 0;
}

static void put_metadata(setun_string *s, setun_file *file) {
    setun_string_puts(s, "{");
    if (setun_file_container(file) == SETUN_GGUF) {
        for (int i = 0; i < setun_file_value_count(file); i++) {
            const setun_value *v = setun_file_value_at(file, i);
            if (i) setun_string_puts(s, ",");
            setun_string_json(s, v->key, strlen(v->key));
            setun_string_puts(s, ":");
            put_value(s, v);
        }
    } else {
        const json_t *config;
        const char *key;
        json_t *value;
        bool first = true;
        if (setun_file_json(file, "config.json", &config) == SETUN_OK && json_is_object(config)) {
            json_object_foreach((json_t *)config, key, value) {
                if (!first) setun_string_puts(s, ",");
                first = false;
                setun_string_json(s, key, strlen(key));
                setun_string_puts(s, ":");
                if (json_dump_callback(value, append_text, s, JSON_ENCODE_ANY | JSON_COMPACT) != 0) s->failed = true;
            }
        }
    }
    setun_string_puts(s, "}");
}

/* ---- tensors ---- */

/* The thread's message, as the reason. A tensor that only lacks memory is not refused: the inspection itself fails. */
static void keep_reason(entry *e, setun_status status) {
    e->supported = false;
    e->starved = e->starved || status == SETUN_ERROR_MEMORY;
    setun_free(e->reason);
    e->reason = e->starved ? NULL : setun_strdup(setun_error());
    if (!e->reason) e->starved = true;
}

/* Without the path in front: the report has it once. */
static const char *shorten(const char *message, const char *path) {
    size_t n = strlen(path);
    return strncmp(message, path, n) == 0 && message[n] == ':' && message[n + 1] == ' ' ? message + n + 2 : message;
}

static void look_at(inspection *p, entry *e) {
    const setun_file_tensor *t = e->tensor;
    setun_role role;
    int layer;
    const char *suffix;
    e->supported = true;
    uint64_t count = 1;
    for (int i = 0; i < t->rank; i++)
        if (!setun_mul_ok(count, (uint64_t)t->shape[i], &count)) count = 0;
    e->parameters = count;
    if (setun_role_of_family(t->name, p->loader.h->family, &role, &layer, &suffix)) {
        if (strcmp(suffix, "weight") != 0 && strcmp(suffix, "bias") != 0 && strcmp(suffix, "input_norm") != 0) {
            e->part = true;
            e->parameters = 0;
            return;
        }
        setun_status status = setun_loader_describe(&p->loader, t, role, suffix, &e->weight);
        if (status != SETUN_OK) {
            keep_reason(e, status);
            return;
        }
        e->described = true;
        e->parameters = (uint64_t)e->weight.rows * (uint64_t)e->weight.columns;
        return;
    }
    const char *refusal = setun_format_refusal(t->format);
    if (refusal) {
        e->supported = false;
        e->reason = setun_strdup(refusal);
        e->starved = !e->reason;
    }
}

static void probe_range(void *argument, int64_t first, int64_t last, int worker) {
    inspection *p = argument;
    (void)worker;
    for (int64_t i = first; i < last; i++) {
        entry *e = &p->entries[i];
        if (!e->described || e->weight.rows < 2) continue;
        uint64_t need;
        setun_status status = setun_format_size(e->weight.format, e->weight.rows, e->weight.columns, &need);
        if (status == SETUN_OK && need > e->weight.bytes) status = setun_fail(SETUN_ERROR_FORMAT, "needs %" PRIu64 " bytes, the file has %" PRIu64, need, e->weight.bytes);
        if (status == SETUN_OK) status = setun_ternary_probe(&e->weight, &e->info);
        e->probed = status == SETUN_OK;
        if (!e->probed) keep_reason(e, status);
    }
}

static bool counts_as_ternary(const entry *e) {
    if (e->probed) return e->info.ternary;
    return e->described && (e->weight.absmean || setun_format_get_kind(e->weight.format) == SETUN_KIND_TERNARY);
}

static void put_tensor(setun_string *s, const inspection *p, const entry *e) {
    const setun_file_tensor *t = e->tensor;
    setun_string_puts(s, "{\"name\":");
    setun_string_json(s, t->name, strlen(t->name));
    setun_format format = e->described ? e->weight.format : t->format;
    setun_string_printf(s, ",\"format\":\"%s\"", setun_format_name(format));
    if (format == SETUN_FORMAT_UNKNOWN) setun_string_printf(s, ",\"type_id\":%" PRIu32, t->type_id);
    setun_string_puts(s, ",\"shape\":[");
    if (e->described && e->weight.rows > 1) setun_string_printf(s, "%" PRId64 ",%" PRId64, e->weight.rows, e->weight.columns); /* of the weights, not of the words that hold them */
    else
        for (int i = 0; i < t->rank; i++) setun_string_printf(s, "%s%" PRId64, i ? "," : "", t->shape[i]);
    setun_string_printf(s, "],\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"bits_per_weight\":", t->offset, t->bytes);
    if (e->parameters) put_number(s, (double)t->bytes * 8 / (double)e->parameters);
    else setun_string_puts(s, "null");
    if (e->probed) {
        setun_string_printf(s, ",\"ternary\":%s", e->info.ternary ? "true" : "false");
        if (e->info.ternary) {
            setun_string_puts(s, ",\"zero_share\":");
            put_number(s, (double)e->info.zeros / (double)e->parameters);
            if (e->info.scale == SETUN_SCALE_TENSOR) {
                setun_string_puts(s, ",\"scales\":\"tensor\",\"scale\":");
                put_number(s, (double)e->info.tensor_scale);
            } else if (e->info.scale == SETUN_SCALE_ROW) {
                setun_string_puts(s, ",\"scales\":\"row\"");
            } else {
                setun_string_printf(s, ",\"scales\":\"group\",\"group_size\":%d", e->info.group_size);
            }
        }
    }
    if (e->described && e->weight.absmean) setun_string_puts(s, ",\"absmean\":true");
    setun_string_printf(s, ",\"supported\":%s", e->supported ? "true" : "false");
    if (!e->supported) {
        const char *reason = shorten(e->reason, p->loader.path);
        setun_string_puts(s, ",\"reason\":");
        setun_string_json(s, reason, strlen(reason));
    }
    setun_string_puts(s, "}");
}

/* ---- the model ---- */

static void put_model(setun_string *s, const inspection *p) {
    const setun_model *m = p->loader.model;
    const setun_hparams *h = &m->description.h;
    if (!p->built) {
        setun_string_puts(s, "null");
        return;
    }
    setun_string_puts(s, "{\"architecture\":");
    setun_string_json(s, h->architecture, strlen(h->architecture));
    setun_string_puts(s, ",\"name\":");
    setun_string_json(s, m->name, strlen(m->name));
    setun_string_printf(s, ",\"layers\":%d,\"width\":%d,\"feed_forward\":%d,\"heads\":%d,\"kv_heads\":%d,\"head_size\":%d,\"vocabulary\":%d,\"context\":%d", h->layers, h->width, h->feed_forward,
        h->heads, h->kv_heads, h->head_size, h->vocabulary, h->context);
    setun_string_printf(s, ",\"activation\":\"%s\",\"activation_int8\":%s,\"epsilon\":", setun_activation_name(h->activation), h->activation_int8 ? "true" : "false");
    put_number(s, (double)h->epsilon);
    setun_string_puts(s, ",\"rope_theta\":");
    put_number(s, (double)h->rope_theta);
    setun_string_printf(s, ",\"rope_pairs\":\"%s\",\"tied_head\":%s,\"sub_norms\":%s,\"qk_norm\":%s,\"projection_norm\":%s,\"rotated\":%s,\"sliding_window\":%d,\"embedding_model\":%s}",
        h->rope_interleaved ? "interleaved" : "halves", m->description.global.weight[SETUN_ROLE_OUTPUT] ? "false" : "true", m->description.layers[0].weight[SETUN_ROLE_ATTN_SUB_NORM] ? "true" : "false",
        m->description.layers[0].weight[SETUN_ROLE_Q_NORM] ? "true" : "false", h->projection_norm ? "true" : "false", m->description.rotated ? "true" : "false", h->sliding_window,
        h->embedding_model ? "true" : "false");
}

static void put_problem(setun_string *s, bool *first, const char *text, const char *path) {
    if (!text) return;
    if (!*first) setun_string_puts(s, ",");
    *first = false;
    text = shorten(text, path);
    setun_string_json(s, text, strlen(text));
}

static void put_architecture(setun_string *s, const inspection *p) {
    setun_file *file = p->loader.model->file;
    const char *text = NULL;
    size_t length = 0;
    if (p->loader.gguf) {
        const setun_value *v = setun_file_find_value(file, "general.architecture");
        if (v && !setun_value_string(v, &text, &length)) text = NULL;
    } else {
        const json_t *config;
        if (setun_file_json(file, "config.json", &config) == SETUN_OK && config) text = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
        length = text ? strlen(text) : 0;
    }
    if (text) setun_string_json(s, text, length);
    else setun_string_puts(s, "null");
}

static void put_all(setun_string *s, const inspection *p) {
    setun_file *file = p->loader.model->file;
    uint64_t parameters = 0, bytes = 0, ternary = 0;
    setun_string_puts(s, "{\"path\":");
    setun_string_json(s, p->loader.path, strlen(p->loader.path));
    setun_string_printf(s, ",\"container\":\"%s\",\"file_bytes\":%" PRIu64 ",\"architecture\":", p->loader.gguf ? "gguf" : "safetensors", setun_file_bytes(file));
    put_architecture(s, p);
    setun_string_puts(s, ",\"metadata\":");
    put_metadata(s, file);
    setun_string_puts(s, ",\"tensors\":[");
    for (int i = 0; i < p->count; i++) {
        const entry *e = &p->entries[i];
        if (i) setun_string_puts(s, ",");
        put_tensor(s, p, e);
        parameters += e->parameters;
        bytes += e->tensor->bytes;
        if (counts_as_ternary(e)) ternary += e->parameters;
    }
    setun_string_printf(s, "],\"totals\":{\"parameters\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"bits_per_weight\":", parameters, bytes);
    put_number(s, parameters ? (double)bytes * 8 / (double)parameters : 0);
    setun_string_puts(s, ",\"ternary_share\":");
    put_number(s, parameters ? (double)ternary / (double)parameters : 0);
    setun_string_puts(s, "},\"model\":");
    put_model(s, p);
    setun_string_puts(s, ",\"problems\":[");
    bool first = true;
    put_problem(s, &first, p->problem, p->loader.path);
    put_problem(s, &first, p->tokenizer_problem, p->loader.path);
    int refused = 0;
    for (int i = 0; i < p->count; i++) {
        const entry *e = &p->entries[i];
        if (e->supported || (p->problem && strcmp(p->problem, e->reason) == 0) || refused++ >= PROBLEMS_SHOWN) continue;
        setun_string text = {0};
        setun_string_printf(&text, "tensor '%s': %s", e->tensor->name, shorten(e->reason, p->loader.path));
        if (text.failed) s->failed = true;
        /* a message that names the tensor already is enough */
        else put_problem(s, &first, strstr(e->reason, e->tensor->name) ? e->reason : text.data, p->loader.path);
        setun_string_clear(&text);
    }
    if (refused > PROBLEMS_SHOWN) {
        char more[64];
        snprintf(more, sizeof more, "%d more tensors are refused", refused - PROBLEMS_SHOWN);
        put_problem(s, &first, more, p->loader.path);
    }
    setun_string_puts(s, "]}");
}

static setun_status inspect(inspection *p, setun_context *context, const setun_model_options *options, bool deep) {
    setun_model *m = p->loader.model;
    setun_status status = setun_loader_build(&p->loader);
    p->built = status == SETUN_OK;
    if (status == SETUN_ERROR_MEMORY) return status;
    if (!p->built && !(p->problem = setun_strdup(setun_error()))) return setun_fail_memory(strlen(setun_error()));
    p->count = setun_file_tensor_count(m->file);
    p->entries = setun_calloc((size_t)p->count + 1, sizeof *p->entries);
    if (!p->entries) return setun_fail_memory(((size_t)p->count + 1) * sizeof *p->entries);
    for (int i = 0; i < p->count; i++) {
        p->entries[i].tensor = setun_file_tensor_at(m->file, i);
        look_at(p, &p->entries[i]);
    }
    if (deep) {
        int step = options->progress ? 32 : p->count;
        for (int i = 0; i < p->count; i += step) {
            if (options->progress && !options->progress(options->progress_user, "tensors", (uint64_t)i, (uint64_t)p->count))
                return setun_fail(SETUN_ERROR_CANCELLED, "%s: inspecting was stopped", m->path);
            inspection part = *p;
            part.entries = p->entries + i;
            setun_pool_for(context->pool, p->count - i < step ? p->count - i : step, 1, probe_range, &part);
        }
    }
    for (int i = 0; i < p->count; i++)
        if (p->entries[i].starved) return setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for tensor '%s'", m->path, p->entries[i].tensor->name);
    status = setun_tokenizer_from_file(m->file, &m->tokenizer);
    if (status == SETUN_ERROR_MEMORY) return status;
    if (status != SETUN_OK) {
        m->tokenizer = NULL;
        p->tokenizer_problem = setun_strdup(setun_error());
        if (!p->tokenizer_problem) return setun_fail_memory(strlen(setun_error()) + 1);
    }
    return SETUN_OK;
}

SETUN_API setun_status setun_file_inspect(setun_context *context, const char *path, const setun_model_options *given, bool deep, char **out_json) {
    if (!out_json) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_file_inspect: out_json is NULL");
    *out_json = NULL;
    if (!context || !path) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_file_inspect: %s is NULL", context ? "path" : "context");
    SETUN_OPTIONS(setun_model_options, options, given);
    inspection p = {0};
    setun_model *model;
    SETUN_TRY(setun_model_make(context, path, &model));
    setun_status status = setun_loader_open(&p.loader, model, &options);
    if (status == SETUN_OK) status = inspect(&p, context, &options, deep);
    setun_string s = {0};
    if (status == SETUN_OK) {
        put_all(&s, &p);
        status = setun_string_take(&s, out_json, NULL);
    }
    setun_string_clear(&s);
    for (int i = 0; p.entries && i < p.count; i++) setun_free(p.entries[i].reason);
    setun_free(p.entries);
    setun_free(p.problem);
    setun_free(p.tokenizer_problem);
    setun_model_destroy(model);
    return status;
}
