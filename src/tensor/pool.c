/*
 * pool.c - host buffers kept for reuse. Callers: tensors on streams, frames. Knows sizes; not what lies in them.
 * Classes are powers of two in four steps (64 KiB, 80, 96, 112, 128 ..): at most a quarter of a block is wasted.
 */
#include "tensor/pool.h"
#include <pthread.h>

enum { PAGE = 16384, SMALLEST = 4096, CLASSES = 4 * 64 };

typedef struct idle { struct idle *next; } idle; /* at the start of an idle block */

struct setun_buffers {
    pthread_mutex_t lock;
    idle *first[CLASSES];
    setun_buffers_stats stats;
};

/* The class of a size and the bytes of its blocks. */
static int class_of(size_t bytes, size_t *out_bytes) {
    if (bytes <= SMALLEST) bytes = SMALLEST;
    if (bytes > (size_t)1 << 47) return -1; /* more than a process can map */
    int top = 63 - __builtin_clzll((unsigned long long)(bytes - 1)); /* bytes is in (2^top, 2^(top+1)] */
    size_t base = (size_t)1 << top, step = base / 4;
    size_t steps = (bytes - base + step - 1) / step;                 /* 1..4 */
    size_t block = base + steps * step;
    if (block >= PAGE) block = (block + PAGE - 1) / PAGE * PAGE;
    *out_bytes = block;
    return top * 4 + (int)steps - 1;
}

size_t setun_buffers_rounded(size_t bytes) {
    size_t block;
    return class_of(bytes, &block) < 0 ? 0 : block;
}

setun_status setun_buffers_create(uint64_t idle_limit, setun_buffers **out) {
    *out = NULL;
    setun_buffers *b = setun_calloc(1, sizeof *b);
    if (!b) return SETUN_ERROR_MEMORY;
    pthread_mutex_init(&b->lock, NULL);
    b->stats.limit_bytes = idle_limit;
    *out = b;
    return SETUN_OK;
}

/* Frees idle blocks, largest first, until at most `keep` bytes are idle. Under the lock. */
static void shrink(setun_buffers *b, uint64_t keep) {
    for (int c = CLASSES - 1; c >= 0 && b->stats.idle_bytes > keep; c--)
        while (b->first[c] && b->stats.idle_bytes > keep) {
            idle *block = b->first[c];
            size_t bytes;
            b->first[c] = block->next;
            (void)class_of(((size_t)1 << (c / 4)) + ((size_t)(c % 4) + 1) * ((size_t)1 << (c / 4)) / 4, &bytes);
            b->stats.idle_bytes -= bytes;
            setun_free_aligned(block);
        }
}

void setun_buffers_destroy(setun_buffers *b) {
    if (!b) return;
    shrink(b, 0);
    pthread_mutex_destroy(&b->lock);
    setun_free(b);
}

setun_status setun_buffers_take(setun_buffers *b, size_t bytes, void **out) {
    *out = NULL;
    size_t block;
    int c = class_of(bytes, &block);
    if (c < 0) return setun_fail_memory(bytes);
    pthread_mutex_lock(&b->lock);
    idle *found = b->first[c];
    if (found) {
        b->first[c] = found->next;
        b->stats.idle_bytes -= block;
        b->stats.reused++;
    }
    pthread_mutex_unlock(&b->lock);
    void *memory = found;
    if (!memory) {
        memory = setun_alloc_aligned(block, block >= PAGE ? PAGE : 64);
        if (!memory) return SETUN_ERROR_MEMORY;
    }
    pthread_mutex_lock(&b->lock);
    if (!found) b->stats.made++;
    b->stats.used_bytes += block;
    if (b->stats.used_bytes > b->stats.peak_bytes) b->stats.peak_bytes = b->stats.used_bytes;
    pthread_mutex_unlock(&b->lock);
    *out = memory;
    return SETUN_OK;
}

void setun_buffers_give(setun_buffers *b, void *memory, size_t bytes) {
    if (!memory) return;
    size_t block;
    int c = class_of(bytes, &block);
    pthread_mutex_lock(&b->lock);
    b->stats.used_bytes -= block;
    if (c >= 0 && block <= b->stats.limit_bytes) {
        if (b->stats.idle_bytes > b->stats.limit_bytes - block) shrink(b, b->stats.limit_bytes - block);
        idle *block_head = memory;
        block_head->next = b->first[c];
        b->first[c] = block_head;
        b->stats.idle_bytes += block;
        memory = NULL;
    }
    pthread_mutex_unlock(&b->lock);
    setun_free_aligned(memory);
}

void setun_buffers_clear(setun_buffers *b) {
    pthread_mutex_lock(&b->lock);
    shrink(b, 0);
    pthread_mutex_unlock(&b->lock);
}

uint64_t setun_buffers_limit(setun_buffers *b, uint64_t idle_limit) {
    pthread_mutex_lock(&b->lock);
    uint64_t before = b->stats.limit_bytes;
    b->stats.limit_bytes = idle_limit;
    shrink(b, idle_limit);
    pthread_mutex_unlock(&b->lock);
    return before;
}

void setun_buffers_get(setun_buffers *b, setun_buffers_stats *out) {
    pthread_mutex_lock(&b->lock);
    *out = b->stats;
    pthread_mutex_unlock(&b->lock);
}
