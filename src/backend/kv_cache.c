/*
 * kv_cache.c - memory for the keys and values of one sequence.
 * Callers: run/session.c and run/plan_api.c make one beside each frame; the backends write and read it.
 * Knows the layout and its size, and nothing of who attends to what.
 */
#include "backend/backend.h"

setun_status setun_kv_cache_create(int layers, int kv_heads, int head_size, int capacity, setun_dtype dtype, setun_kv_cache *out)
{
    memset(out, 0, sizeof *out);
    if (dtype != SETUN_F16 && dtype != SETUN_F32)
        return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: element type %s; choose f16 or f32", setun_dtype_name(dtype));
    if (layers < 1 || kv_heads < 1 || head_size < 1 || capacity < 1)
        return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: %d layers, %d heads of %d, %d tokens; each must be at least 1", layers, kv_heads, head_size, capacity);
    uint64_t bytes = setun_dtype_bytes(dtype);
    if (!setun_mul_ok(bytes, (uint64_t)layers, &bytes) || !setun_mul_ok(bytes, (uint64_t)kv_heads, &bytes) ||
        !setun_mul_ok(bytes, (uint64_t)head_size, &bytes) || !setun_mul_ok(bytes, (uint64_t)capacity, &bytes) || bytes > SIZE_MAX / 4)
        return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: %d layers, %d heads of %d, %d tokens do not fit the address space; use a shorter context",
                          layers, kv_heads, head_size, capacity);
    /* One allocation, values after keys. It is left as it comes: large blocks then cost memory only as the context fills up. */
    uint64_t half = (bytes + 63) / 64 * 64;
    uint8_t *memory = setun_alloc_aligned((size_t)(2 * half), 64);
    if (!memory) {
        setun_fail_memory((size_t)(2 * half));
        return setun_fail_prefix(SETUN_ERROR_MEMORY, "KV cache for %d tokens (a shorter context or kv_type f16 needs less)", capacity);
    }
    out->layers = layers;
    out->kv_heads = kv_heads;
    out->head_size = head_size;
    out->capacity = capacity;
    out->dtype = dtype;
    out->k = memory;
    out->v = memory + half;
    out->bytes = 2 * half;
    return SETUN_OK;
}

void setun_kv_cache_destroy(setun_kv_cache *cache)
{
    if (!cache) return;
    setun_free_aligned(cache->k); /* v lies in the same block */
    memset(cache, 0, sizeof *cache);
}
