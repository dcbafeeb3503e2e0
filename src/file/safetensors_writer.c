/*
 * safetensors_writer.c - writes one safetensors file: the JSON header, then tensors without gaps in the order in which they
 * were declared (the reference reader refuses gaps). Caller: convert, tests. Knows no model.
 */
#include "file/file_internal.h"
#include <inttypes.h>

struct setun_safetensors_writer {
    setun_writer *out;
    setun_string metadata; /* ,"key":"text" ... */
    setun_declarations tensors;
};

static void writer_free(setun_safetensors_writer *w) {
    setun_string_clear(&w->metadata);
    setun_declarations_clear(&w->tensors);
    setun_free(w);
}

setun_status setun_safetensors_writer_create(const char *path, bool overwrite, setun_safetensors_writer **out) {
    *out = NULL;
    setun_safetensors_writer *w = setun_calloc(1, sizeof *w);
    if (!w) return SETUN_ERROR_MEMORY;
    w->tensors.path = setun_strdup(path);
    setun_status status = w->tensors.path ? setun_writer_open(path, overwrite, &w->out) : SETUN_ERROR_MEMORY;
    if (status != SETUN_OK) {
        writer_free(w);
        return status;
    }
    *out = w;
    return SETUN_OK;
}

setun_status setun_safetensors_add_metadata(setun_safetensors_writer *w, const char *key, const char *text) {
    if (w->tensors.writing) return setun_fail(SETUN_ERROR_STATE, "%s: metadata '%.150s' is added after the header was written", w->tensors.path, key);
    const char *problem = !strcmp(key, "format") ? "is written by the writer itself" : setun_name_problem((const uint8_t *)key, strlen(key));
    if (problem) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: metadata key '%.150s' %s", w->tensors.path, key, problem);
    setun_string_puts(&w->metadata, ",");
    setun_string_json(&w->metadata, key, strlen(key));
    setun_string_puts(&w->metadata, ":");
    setun_string_json(&w->metadata, text, strlen(text));
    return w->metadata.failed ? setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for the header", w->tensors.path) : SETUN_OK;
}

setun_status setun_safetensors_add_tensor(setun_safetensors_writer *w, const char *name, const char *dtype, int rank, const int64_t *shape, uint64_t bytes) {
    const char *dtype_name;
    unsigned width = setun_safetensors_dtype_bytes(dtype, &dtype_name);
    if (!width) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s': safetensors has no dtype '%s'", w->tensors.path, name, dtype);
    if (!strcmp(name, "__metadata__")) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: a tensor can't have the name __metadata__", w->tensors.path);
    SETUN_TRY(setun_declare_check(&w->tensors, name, rank, shape, true));
    uint64_t need = width;
    for (int i = 0; i < rank; i++) need *= (uint64_t)shape[i]; /* was checked: no overflow */
    if (need != bytes)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' is declared with %" PRIu64 " bytes, its shape and dtype %s need %" PRIu64, w->tensors.path, name, bytes, dtype_name, need);
    setun_declared *t;
    SETUN_TRY(setun_declare(&w->tensors, name, rank, shape, bytes, &t));
    t->dtype = dtype_name;
    return SETUN_OK;
}

static void put_header(const setun_safetensors_writer *w, setun_string *header) {
    uint64_t offset = 0;
    setun_string_puts(header, "{\"__metadata__\":{\"format\":\"pt\"");
    if (w->metadata.length) setun_string_append(header, w->metadata.data, w->metadata.length);
    setun_string_puts(header, "}");
    for (uint32_t i = 0; i < w->tensors.count; i++) {
        const setun_declared *t = &w->tensors.items[i];
        setun_string_puts(header, ",");
        setun_string_json(header, t->name, strlen(t->name));
        setun_string_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype);
        for (int k = 0; k < t->rank; k++) setun_string_printf(header, "%s%" PRId64, k ? "," : "", t->shape[k]);
        setun_string_printf(header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", offset, offset + t->bytes);
        offset += t->bytes;
    }
    setun_string_puts(header, "}");
    while (header->length % 8 && !header->failed) setun_string_puts(header, " "); /* the data starts aligned */
}

setun_status setun_safetensors_begin_data(setun_safetensors_writer *w) {
    if (w->tensors.writing) return setun_fail(SETUN_ERROR_STATE, "%s: the header is written already", w->tensors.path);
    setun_string header = {0};
    put_header(w, &header);
    uint64_t length = header.length;
    setun_status status = header.failed || w->metadata.failed ? setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory for the header", w->tensors.path) : SETUN_OK;
    if (status == SETUN_OK) status = setun_writer_write(w->out, &length, sizeof length);
    if (status == SETUN_OK) status = setun_writer_write(w->out, header.data, header.length);
    setun_string_clear(&header);
    if (status == SETUN_OK) w->tensors.writing = true;
    return status;
}

setun_status setun_safetensors_write_tensor(setun_safetensors_writer *w, const void *data, uint64_t bytes) {
    return setun_declared_write(&w->tensors, w->out, data, bytes, 1);
}

setun_status setun_safetensors_commit(setun_safetensors_writer *w) {
    setun_status status = setun_declared_check_done(&w->tensors);
    if (status == SETUN_OK) status = setun_writer_commit(w->out);
    else setun_writer_abort(w->out);
    writer_free(w);
    return status;
}

void setun_safetensors_abort(setun_safetensors_writer *w) {
    if (!w) return;
    setun_writer_abort(w->out);
    writer_free(w);
}
