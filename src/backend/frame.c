/*
 * frame.c - what changes during a run: the arena with every intermediate and the backend's scratch, and the chunk counters.
 * Callers: run/session.c, run/plan_api.c, run/explain.c. Knows sizes only; what lies where is the plan's business.
 */
#include "backend/backend.h"

setun_status setun_frame_create(const setun_plan *plan, setun_frame *out)
{
    memset(out, 0, sizeof *out);
    uint64_t bytes;
    if (!setun_add_ok(plan->arena_bytes, 63, &bytes) || !setun_add_ok(bytes / 64 * 64, plan->scratch_bytes, &bytes) ||
        !setun_add_ok(bytes, 64, &bytes) || bytes > SIZE_MAX / 2)
        return setun_fail(SETUN_ERROR_ARGUMENT, "the plan's arena of %llu bytes does not fit the address space; use a smaller batch",
                          (unsigned long long)plan->arena_bytes);
    size_t counters = (size_t)(plan->step_count > 0 ? plan->step_count : 1);
    /* Zeros, as inputs that nobody binds must not hold ids or rows from freed memory: of the system, which gives pages when they are touched. A run of one
     * token touches few of an arena made for hundreds. */
    out->memory = setun_calloc(1, (size_t)bytes + 64);
    out->counters = setun_calloc(counters, sizeof *out->counters);
    if (!out->memory || !out->counters) {
        setun_frame_destroy(out);
        return setun_fail_memory((size_t)bytes);
    }
    out->arena = (uint8_t *)out->memory + (64 - (uintptr_t)out->memory % 64) % 64;
    for (size_t i = 0; i < counters; i++) atomic_init(&out->counters[i], 0);
    out->plan = plan;
    return SETUN_OK;
}

void setun_frame_destroy(setun_frame *frame)
{
    if (!frame) return;
    setun_free(frame->memory);
    setun_free(frame->counters);
    memset(frame, 0, sizeof *frame);
}
