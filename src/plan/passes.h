/*
 * passes.h - the passes of a plan in their order, for the files of this room and its tests. setun_plan_build runs them.
 */
#ifndef SETUN_PLAN_PASSES_H
#define SETUN_PLAN_PASSES_H

#include "plan/plan.h"

/* clean.c: rewrites a graph whose nodes belong to the caller: drops what no output needs (inputs stay), merges nodes that
 * compute the same. */
setun_status setun_plan_clean(setun_graph *graph, setun_plan_stats *stats);
/* lower.c: one step an operation, one slot a value; reshapes become aliases. Fills steps, slots and the cache's shape. */
setun_status setun_plan_lower(const setun_graph *graph, setun_plan *plan);
/* fuse.c: joins steps where supports says yes. */
typedef bool (*setun_supports_fn)(const setun_backend *backend, const setun_step *step);
setun_status setun_plan_fuse(setun_plan *plan, setun_supports_fn supports);
/* schedule.c: an order of the steps that keeps few bytes alive. */
setun_status setun_plan_schedule(setun_plan *plan);
/* memory.c: lifetimes, in-place reuse, offsets. Before this pass arena_bytes is 0. */
setun_status setun_plan_lay(setun_plan *plan);

/* ---- shared by the passes ---- */
/* The slot whose memory this one is a view of (itself when it is none). */
static inline int setun_slot_root(const setun_plan *plan, int slot) {
    while (plan->slots[slot].alias_of >= 0) slot = plan->slots[slot].alias_of;
    return slot;
}
/* Bytes of the slot in the largest run; an error when they do not fit 64 bits. memory.c */
setun_status setun_slot_bytes(const setun_slot *slot, int tokens_max, int outputs_max, uint64_t *out);
/* Inputs of a step, residual included, as a list of 5 slots, -1 where there is none. */
#define SETUN_STEP_READS 5
static inline void setun_step_reads(const setun_step *step, int reads[SETUN_STEP_READS]) {
    for (int i = 0; i < 4; i++) reads[i] = step->input[i];
    reads[4] = step->residual;
}
/* May output 0 of the step lie on the bytes of `slot`, one of its inputs? The rule of plan.h, without lifetimes. memory.c */
bool setun_step_in_place(const setun_plan *plan, const setun_step *step, int slot);
/* Drops slots that no step and no name needs and renumbers the rest. lower.c */
setun_status setun_plan_compact(setun_plan *plan);

#endif
