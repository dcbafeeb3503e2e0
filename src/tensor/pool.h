/*
 * pool.h - a pool of host buffers: what is given back is kept and given out again, in size classes, up to a limit. Made by a
 * context; used for tensors on streams and the arenas of sessions. Counts what it reused. Any thread may call.
 */
#ifndef SETUN_TENSOR_POOL_H
#define SETUN_TENSOR_POOL_H

#include "base/base.h"

typedef struct setun_buffers setun_buffers;
typedef struct setun_buffers_stats { uint64_t made, reused, used_bytes, peak_bytes, idle_bytes, limit_bytes; } setun_buffers_stats;

setun_status setun_buffers_create(uint64_t idle_limit, setun_buffers **out);
void setun_buffers_destroy(setun_buffers *buffers); /* frees what is idle; what is in use must be back */
/* Aligned to 64 bytes; from 16 KiB on to 16 KiB, and whole pages of that size (Metal can share such memory). Not zeroed. */
setun_status setun_buffers_take(setun_buffers *buffers, size_t bytes, void **out);
void setun_buffers_give(setun_buffers *buffers, void *memory, size_t bytes); /* bytes as taken; NULL memory is fine */
void setun_buffers_clear(setun_buffers *buffers);   /* frees what is idle */
uint64_t setun_buffers_limit(setun_buffers *buffers, uint64_t idle_limit); /* the previous one */
void setun_buffers_get(setun_buffers *buffers, setun_buffers_stats *out);
size_t setun_buffers_rounded(size_t bytes);         /* what a request of this size takes; 0: too large */

#endif
