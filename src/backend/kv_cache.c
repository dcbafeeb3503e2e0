/*
 * kv_cache.c - memory for the keys and values of one sequence.
 * Callers: run/session.c and run/plan_api.c make one beside each frame; the backends write and read it.
 * Knows the layout and its size, and nothing of who attends to what.
 */
#include "backend/backend.h"

setun_status setun_kv_cache_create(int layers, int kv_heads, int head_size, int capacity, setun_dtype dtype, setun_kv_cache *out)
{
    memset(out, 0, sizeof *out);
    uint64_t element = dtype == SETUN_F16 ? 2 : dtype == SETUN_F32 ? 4 : dtype == SETUN_I8 ? 1 : 0;
    if (!element) return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: element type %s; choose f16, f32 or i8", setun_dtype_name(dtype));
    if (layers < 1 || kv_heads < 1 || head_size < 1 || capacity < 1)
        return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: %d layers, %d heads of %d, %d tokens; each must be at least 1", layers, kv_heads, head_size, capacity);
    uint64_t places = capacity < SETUN_KV_RANGE ? ((uint64_t)capacity + SETUN_KV_BLOCK - 1) / SETUN_KV_BLOCK * SETUN_KV_BLOCK : SETUN_KV_RANGE;
    uint64_t ranges = ((uint64_t)capacity + SETUN_KV_RANGE - 1) / SETUN_KV_RANGE;
    /* places is a multiple of 64, so every part of it is one of 64 bytes */
    uint64_t head_bytes = places * (2 * (uint64_t)head_size * element + (dtype == SETUN_I8 ? 2 * sizeof(float) : 0)), range_bytes, bytes;
    if (!setun_mul_ok(head_bytes, (uint64_t)layers, &range_bytes) || !setun_mul_ok(range_bytes, (uint64_t)kv_heads, &range_bytes) ||
        !setun_mul_ok(range_bytes, ranges, &bytes) || bytes > SIZE_MAX / 4)
        return setun_fail(SETUN_ERROR_ARGUMENT, "KV cache: %d layers, %d heads of %d, %d tokens do not fit the address space; use a shorter context",
                          layers, kv_heads, head_size, capacity);
    /* It is left as it comes: memory is then taken as the context fills up. */
    bool huge = bytes >= 2 * SETUN_HUGE_PAGE;
    uint8_t *memory = huge ? setun_alloc_huge((size_t)bytes) : setun_alloc_aligned((size_t)bytes, 64);
    if (!memory) {
        setun_fail_memory((size_t)bytes);
        return setun_fail_prefix(SETUN_ERROR_MEMORY, "KV cache for %d tokens (a shorter context or a smaller kv_type needs less)", capacity);
    }
    *out = (setun_kv_cache){.layers = layers, .kv_heads = kv_heads, .head_size = head_size, .capacity = capacity, .dtype = dtype, .places = (int)places,
                            .element = element, .head_bytes = head_bytes, .range_bytes = range_bytes, .data = memory, .bytes = bytes, .huge = huge};
    return SETUN_OK;
}

void setun_kv_cache_destroy(setun_kv_cache *cache)
{
    if (!cache) return;
    if (cache->device) cache->device_free(cache->device);
    if (cache->huge) setun_free_huge(cache->data, (size_t)cache->bytes);
    else setun_free_aligned(cache->data);
    memset(cache, 0, sizeof *cache);
}
