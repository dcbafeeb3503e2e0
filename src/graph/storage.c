/*
 * storage.c - memory behind a graph that its plans need too: weights made by the user, signs, frequency factors.
 * Called by the builder; counted, so that a plan may outlive its graph. Refuses to know what the bytes mean, and what a
 * backend's `prepared` is: it only calls the function that the backend left.
 */
#include "graph/internal.h"
#include <stdatomic.h>

typedef struct storage_block {
    struct storage_block *next;
    void *bytes;
    const float *floats; /* bytes, when setun_graph_storage_floats made it */
    int64_t float_count;
} storage_block;

typedef struct storage_weight {
    struct storage_weight *next;
    setun_weight weight;
    char *name;
} storage_weight;

struct setun_graph_storage {
    atomic_int holders; /* a plan may be freed by another thread than its graph */
    storage_block *blocks;
    storage_weight *weights;
    void (*free_prepared)(void *prepared);
};

setun_graph_storage *setun_graph_storage_create(void) {
    setun_graph_storage *storage = setun_calloc(1, sizeof *storage);
    if (storage) atomic_init(&storage->holders, 1);
    return storage;
}

setun_graph_storage *setun_graph_storage_retain(setun_graph_storage *storage) {
    if (storage) atomic_fetch_add(&storage->holders, 1);
    return storage;
}

void setun_graph_storage_release(setun_graph_storage *storage) {
    if (!storage || atomic_fetch_sub(&storage->holders, 1) != 1) return;
    while (storage->weights) {
        storage_weight *w = storage->weights;
        storage->weights = w->next;
        if (w->weight.prepared && storage->free_prepared) storage->free_prepared(w->weight.prepared);
        setun_free(w->name);
        setun_free(w);
    }
    while (storage->blocks) {
        storage_block *b = storage->blocks;
        storage->blocks = b->next;
        setun_free_aligned(b->bytes);
        setun_free(b);
    }
    setun_free(storage);
}

void setun_graph_storage_set_free(setun_graph_storage *storage, void (*free_prepared)(void *prepared)) {
    if (storage) storage->free_prepared = free_prepared;
}

static storage_block *add_block(setun_graph_storage *storage, size_t bytes) {
    storage_block *block = setun_calloc(1, sizeof *block);
    if (!block) return NULL;
    block->bytes = setun_alloc_aligned(bytes ? bytes : 1, 64);
    if (!block->bytes) {
        setun_free(block);
        return NULL;
    }
    block->next = storage->blocks;
    storage->blocks = block;
    return block;
}

void *setun_graph_storage_bytes(setun_graph_storage *storage, size_t bytes) {
    storage_block *block = add_block(storage, bytes);
    return block ? block->bytes : NULL;
}

const float *setun_graph_storage_floats(setun_graph_storage *storage, const float *values, int64_t count) {
    for (storage_block *b = storage->blocks; b; b = b->next)
        if (b->floats && b->float_count == count && !memcmp(b->floats, values, (size_t)count * sizeof *values)) return b->floats;
    storage_block *block = add_block(storage, (size_t)count * sizeof *values);
    if (!block) return NULL;
    memcpy(block->bytes, values, (size_t)count * sizeof *values);
    block->floats = block->bytes;
    block->float_count = count;
    return block->floats;
}

setun_weight *setun_graph_storage_weight(setun_graph_storage *storage, const char *name) {
    storage_weight *w = setun_calloc(1, sizeof *w);
    if (!w) return NULL;
    w->name = setun_strdup(name);
    if (!w->name) {
        setun_free(w);
        return NULL;
    }
    w->weight.name = w->name;
    w->next = storage->weights;
    storage->weights = w;
    return &w->weight;
}
