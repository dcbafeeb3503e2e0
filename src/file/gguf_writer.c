/*
 * gguf_writer.c - writes GGUF version 3: values first into memory, then the header, then tensors in the order in which they
 * were declared. Caller: convert, tests. Refuses to know what a key means, general.alignment apart.
 */
#include "file/file_internal.h"
#include <inttypes.h>
#include <limits.h>

#define ALIGNMENT_DEFAULT 32u
#define ALIGNMENT_MIN 8u
#define ALIGNMENT_MAX (1u << 20)
static const char alignment_key[] = "general.alignment";

struct setun_gguf_writer {
    setun_writer *out;
    uint32_t alignment;
    setun_string values;  /* keys and values as they will be in the file */
    char **keys;
    uint32_t key_count, key_capacity;
    setun_names key_names;
    setun_declarations tensors;
};

static void writer_free(setun_gguf_writer *w) {
    for (uint32_t i = 0; i < w->key_count; i++) setun_free(w->keys[i]);
    setun_free(w->keys);
    setun_names_clear(&w->key_names);
    setun_string_clear(&w->values);
    setun_declarations_clear(&w->tensors);
    setun_free(w);
}

static void put_u32(setun_string *s, uint32_t v) { setun_string_append(s, (const char *)&v, sizeof v); }
static void put_u64(setun_string *s, uint64_t v) { setun_string_append(s, (const char *)&v, sizeof v); }
static void put_string(setun_string *s, const char *text, size_t length) {
    put_u64(s, length);
    setun_string_append(s, text, length);
}

setun_status setun_gguf_writer_create(const char *path, bool overwrite, uint32_t alignment, setun_gguf_writer **out) {
    *out = NULL;
    if (!alignment) alignment = ALIGNMENT_DEFAULT;
    if (alignment < ALIGNMENT_MIN || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: alignment %u is not a power of two from %u to %u", path, alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    setun_gguf_writer *w = setun_calloc(1, sizeof *w);
    if (!w) return SETUN_ERROR_MEMORY;
    w->alignment = alignment;
    w->tensors.path = setun_strdup(path);
    setun_status status = w->tensors.path ? setun_writer_open(path, overwrite, &w->out) : SETUN_ERROR_MEMORY;
    if (status != SETUN_OK) {
        writer_free(w);
        return status;
    }
    *out = w;
    return SETUN_OK;
}

static setun_status remember_key(setun_gguf_writer *w, const char *key) {
    if (w->key_count == w->key_capacity) {
        uint32_t capacity = w->key_capacity ? w->key_capacity * 2 : 32;
        char **keys = setun_realloc(w->keys, capacity * sizeof *keys);
        if (!keys) return SETUN_ERROR_MEMORY;
        w->keys = keys;
        w->key_capacity = capacity;
    }
    char *copy = setun_strdup(key);
    if (!copy) return SETUN_ERROR_MEMORY;
    w->keys[w->key_count] = copy;
    int64_t existing;
    setun_status status = setun_names_add(&w->key_names, w->keys, sizeof *w->keys, w->key_count, &existing);
    if (status == SETUN_OK && existing >= 0) status = setun_fail(SETUN_ERROR_ARGUMENT, "%s: key '%.150s' is added twice", w->tensors.path, key);
    if (status != SETUN_OK) setun_free(copy);
    else w->key_count++;
    return status;
}

static setun_status begin_value(setun_gguf_writer *w, const char *key, setun_value_type type) {
    if (w->tensors.writing) return setun_fail(SETUN_ERROR_STATE, "%s: key '%.150s' is added after the header was written", w->tensors.path, key);
    const char *problem = setun_name_problem((const uint8_t *)key, strlen(key));
    if (problem) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: key %u %s", w->tensors.path, w->key_count, problem);
    if (!strcmp(key, alignment_key)) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is written by the writer itself; give it to setun_gguf_writer_create", w->tensors.path, key);
    SETUN_TRY(remember_key(w, key));
    put_string(&w->values, key, strlen(key));
    put_u32(&w->values, (uint32_t)type);
    return SETUN_OK;
}

static setun_status end_value(setun_gguf_writer *w) { return w->values.failed ? setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for the metadata", w->tensors.path) : SETUN_OK; }

setun_status setun_gguf_add_string(setun_gguf_writer *w, const char *key, const char *text, size_t length) {
    SETUN_TRY(begin_value(w, key, SETUN_VALUE_STRING));
    put_string(&w->values, text, length);
    return end_value(w);
}

setun_status setun_gguf_add_u32(setun_gguf_writer *w, const char *key, uint32_t v) {
    SETUN_TRY(begin_value(w, key, SETUN_VALUE_U32));
    put_u32(&w->values, v);
    return end_value(w);
}

setun_status setun_gguf_add_f32(setun_gguf_writer *w, const char *key, float v) {
    SETUN_TRY(begin_value(w, key, SETUN_VALUE_F32));
    setun_string_append(&w->values, (const char *)&v, sizeof v);
    return end_value(w);
}

setun_status setun_gguf_add_bool(setun_gguf_writer *w, const char *key, bool v) {
    SETUN_TRY(begin_value(w, key, SETUN_VALUE_BOOL));
    setun_string_append(&w->values, v ? "\1" : "\0", 1);
    return end_value(w);
}

static setun_status begin_array(setun_gguf_writer *w, const char *key, setun_value_type element, uint64_t count) {
    SETUN_TRY(begin_value(w, key, SETUN_VALUE_ARRAY));
    put_u32(&w->values, (uint32_t)element);
    put_u64(&w->values, count);
    return SETUN_OK;
}

setun_status setun_gguf_add_strings(setun_gguf_writer *w, const char *key, const char *const *texts, const size_t *lengths, uint64_t count) {
    SETUN_TRY(begin_array(w, key, SETUN_VALUE_STRING, count));
    for (uint64_t i = 0; i < count; i++) put_string(&w->values, texts[i], lengths[i]);
    return end_value(w);
}

setun_status setun_gguf_add_i32s(setun_gguf_writer *w, const char *key, const int32_t *values, uint64_t count) {
    SETUN_TRY(begin_array(w, key, SETUN_VALUE_I32, count));
    setun_string_append(&w->values, (const char *)values, (size_t)count * sizeof *values);
    return end_value(w);
}

setun_status setun_gguf_add_f32s(setun_gguf_writer *w, const char *key, const float *values, uint64_t count) {
    SETUN_TRY(begin_array(w, key, SETUN_VALUE_F32, count));
    setun_string_append(&w->values, (const char *)values, (size_t)count * sizeof *values);
    return end_value(w);
}

setun_status setun_gguf_copy_value(setun_gguf_writer *w, const setun_value *v) {
    if (!strcmp(v->key, alignment_key)) return SETUN_OK;
    if (v->type == SETUN_VALUE_STRING) return setun_gguf_add_string(w, v->key, (const char *)v->data, (size_t)v->count);
    if (v->type != SETUN_VALUE_ARRAY) {
        SETUN_TRY(begin_value(w, v->key, v->type));
        setun_string_append(&w->values, (const char *)v->data, setun_value_bytes(v->type));
        return end_value(w);
    }
    SETUN_TRY(begin_array(w, v->key, v->element, v->count));
    uint64_t bytes = v->count * setun_value_bytes(v->element);
    if (v->element == SETUN_VALUE_STRING && v->count) {
        uint64_t last = v->string_offsets[v->count - 1];
        bytes = last + 8 + setun_load_u64(v->data + last);
    }
    setun_string_append(&w->values, (const char *)v->data, (size_t)bytes);
    return end_value(w);
}

setun_status setun_gguf_add_tensor(setun_gguf_writer *w, const char *name, setun_format format, int rank, const int64_t *shape, uint64_t bytes) {
    int id = setun_format_gguf_id(format);
    if (id < 0 || setun_format_get_kind(format) == SETUN_KIND_REFUSED)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s': GGUF has no type for format %s", w->tensors.path, name, setun_format_name(format));
    SETUN_TRY(setun_declare_check(&w->tensors, name, rank, shape, false));
    int64_t rows = 1;
    uint64_t need;
    for (int i = 0; i + 1 < rank; i++) rows *= shape[i];
    setun_status status = setun_format_size(format, rows, rank ? shape[rank - 1] : 1, &need);
    if (status != SETUN_OK) return setun_fail_prefix(status, "%s: tensor '%.150s'", w->tensors.path, name);
    if (need != bytes)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' is declared with %" PRIu64 " bytes, its shape and format %s need %" PRIu64, w->tensors.path, name, bytes, setun_format_name(format), need);
    setun_declared *t;
    SETUN_TRY(setun_declare(&w->tensors, name, rank, shape, bytes, &t));
    t->type_id = (uint32_t)id;
    return SETUN_OK;
}

static void put_tensors(setun_gguf_writer *w, setun_string *header) {
    uint64_t offset = 0;
    for (uint32_t i = 0; i < w->tensors.count; i++) {
        const setun_declared *t = &w->tensors.items[i];
        put_string(header, t->name, strlen(t->name));
        put_u32(header, (uint32_t)t->rank);
        for (int k = t->rank; k-- > 0;) put_u64(header, (uint64_t)t->shape[k]);
        put_u32(header, t->type_id);
        put_u64(header, offset);
        offset = (offset + t->bytes + w->alignment - 1) & ~(uint64_t)(w->alignment - 1);
    }
}

setun_status setun_gguf_begin_data(setun_gguf_writer *w) {
    if (w->tensors.writing) return setun_fail(SETUN_ERROR_STATE, "%s: the header is written already", w->tensors.path);
    SETUN_TRY(end_value(w));
    bool says_alignment = w->alignment != ALIGNMENT_DEFAULT;
    setun_string head = {0}, tensors = {0};
    setun_string_append(&head, "GGUF", 4);
    put_u32(&head, 3);
    put_u64(&head, w->tensors.count);
    put_u64(&head, (uint64_t)w->key_count + says_alignment);
    if (says_alignment) {
        put_string(&head, alignment_key, sizeof alignment_key - 1);
        put_u32(&head, SETUN_VALUE_U32);
        put_u32(&head, w->alignment);
    }
    put_tensors(w, &tensors);
    setun_status status = head.failed || tensors.failed ? setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for the header", w->tensors.path) : SETUN_OK;
    if (status == SETUN_OK) status = setun_writer_write(w->out, head.data, head.length);
    if (status == SETUN_OK) status = setun_writer_write(w->out, w->values.data, w->values.length);
    if (status == SETUN_OK) status = setun_writer_write(w->out, tensors.data, tensors.length);
    if (status == SETUN_OK) status = setun_writer_pad(w->out, w->alignment);
    setun_string_clear(&head);
    setun_string_clear(&tensors);
    if (status == SETUN_OK) w->tensors.writing = true;
    return status;
}

setun_status setun_gguf_write_tensor(setun_gguf_writer *w, const void *data, uint64_t bytes) {
    return setun_declared_write(&w->tensors, w->out, data, bytes, w->alignment);
}

setun_status setun_gguf_commit(setun_gguf_writer *w) {
    setun_status status = setun_declared_check_done(&w->tensors);
    if (status == SETUN_OK) status = setun_writer_commit(w->out);
    else setun_writer_abort(w->out);
    writer_free(w);
    return status;
}

void setun_gguf_abort(setun_gguf_writer *w) {
    if (!w) return;
    setun_writer_abort(w->out);
    writer_free(w);
}
