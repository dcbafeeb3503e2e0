/*
 * writer_common.c - what the GGUF and the safetensors writer share: tensors are declared, then their data comes in the same
 * order, in pieces of any size, each tensor exactly as long as it was declared. Knows no container.
 */
#include "file/file_internal.h"
#include <inttypes.h>

static setun_status grow(setun_declarations *d) {
    if (d->count < d->capacity) return SETUN_OK;
    uint32_t capacity = d->capacity ? d->capacity * 2 : 64;
    setun_declared *items = setun_realloc(d->items, capacity * sizeof *items);
    if (!items) return SETUN_ERROR_MEMORY;
    d->items = items;
    d->capacity = capacity;
    return SETUN_OK;
}

setun_status setun_declare_check(const setun_declarations *d, const char *name, int rank, const int64_t *shape, bool zeros_allowed) {
    if (d->writing) return setun_fail(SETUN_ERROR_STATE, "%s: tensor '%.150s' is declared after the header was written", d->path, name);
    const char *problem = setun_name_problem((const uint8_t *)name, strlen(name));
    if (problem) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: the name of tensor %u %s", d->path, d->count, problem);
    if (rank < 0 || rank > SETUN_MAX_RANK) return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' has %d dimensions, the most is %d", d->path, name, rank, SETUN_MAX_RANK);
    uint64_t count = 1;
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0 || (!zeros_allowed && !shape[i]) || !setun_mul_ok(count, shape[i] ? (uint64_t)shape[i] : 1, &count) || count > (uint64_t)1 << 56)
            return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' can't have %" PRId64 " as its dimension %d", d->path, name, shape[i], i);
    return SETUN_OK;
}

setun_status setun_declare(setun_declarations *d, const char *name, int rank, const int64_t *shape, uint64_t bytes, setun_declared **out) {
    SETUN_TRY(grow(d));
    setun_declared *t = &d->items[d->count];
    memset(t, 0, sizeof *t);
    t->name = setun_strdup(name);
    if (!t->name) return SETUN_ERROR_MEMORY;
    int64_t existing;
    setun_status status = setun_names_add(&d->names, d->items, sizeof *d->items, d->count, &existing);
    if (status == SETUN_OK && existing >= 0) status = setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' is declared twice", d->path, name);
    if (status != SETUN_OK) {
        setun_free(t->name);
        return status;
    }
    t->rank = rank;
    for (int i = 0; i < rank; i++) t->shape[i] = shape[i];
    t->bytes = bytes;
    d->count++;
    *out = t;
    return SETUN_OK;
}

/* Tensors without bytes have nothing to come. */
static void skip_empty(setun_declarations *d) {
    while (d->current < d->count && d->written == d->items[d->current].bytes) {
        d->current++;
        d->written = 0;
    }
}

setun_status setun_declared_write(setun_declarations *d, setun_writer *out, const void *data, uint64_t bytes, uint32_t alignment) {
    if (!d->writing) return setun_fail(SETUN_ERROR_STATE, "%s: data comes before the header was written", d->path);
    skip_empty(d);
    if (!bytes) return SETUN_OK;
    if (d->current == d->count) return setun_fail(SETUN_ERROR_STATE, "%s: %" PRIu64 " bytes of data come after the last declared tensor", d->path, bytes);
    const setun_declared *t = &d->items[d->current];
    if (bytes > t->bytes - d->written)
        return setun_fail(SETUN_ERROR_ARGUMENT, "%s: tensor '%.150s' was declared with %" PRIu64 " bytes, %" PRIu64 " come after the first %" PRIu64, d->path, t->name, t->bytes, bytes, d->written);
    SETUN_TRY(setun_writer_write(out, data, (size_t)bytes));
    d->written += bytes;
    if (d->written == t->bytes) {
        skip_empty(d);
        SETUN_TRY(setun_writer_pad(out, alignment));
    }
    return SETUN_OK;
}

setun_status setun_declared_check_done(const setun_declarations *d) {
    if (!d->writing) return setun_fail(SETUN_ERROR_STATE, "%s: the header was not written", d->path);
    uint64_t written = d->written;
    for (uint32_t i = d->current; i < d->count; i++, written = 0)
        if (written != d->items[i].bytes)
            return setun_fail(SETUN_ERROR_STATE, "%s: tensor '%.150s' has %" PRIu64 " of its %" PRIu64 " bytes", d->path, d->items[i].name, written, d->items[i].bytes);
    return SETUN_OK;
}

void setun_declarations_clear(setun_declarations *d) {
    for (uint32_t i = 0; i < d->count; i++) setun_free(d->items[i].name);
    setun_free(d->items);
    setun_free(d->path);
    setun_names_clear(&d->names);
    memset(d, 0, sizeof *d);
}
