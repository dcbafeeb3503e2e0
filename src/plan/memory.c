/*
 * memory.c - lifetimes of the values, outputs that may lie on an input, and offsets in the arena. Called by setun_plan_build
 * as its last pass. Knows the order of the steps and the in-place rule of plan.h; knows no kernel.
 */
#include "plan/passes.h"
#include <stdlib.h>

#define ARENA_ALIGNMENT 64

setun_status setun_slot_bytes(const setun_slot *slot, int tokens_max, int outputs_max, uint64_t *out) {
    uint64_t rows = 1, width = (uint64_t)setun_dim_value(slot->shape.dim[slot->shape.rank - 1], tokens_max, outputs_max), bytes = 0;
    bool fits = true;
    for (int i = 0; i + 1 < slot->shape.rank; i++) fits = fits && setun_mul_ok(rows, (uint64_t)setun_dim_value(slot->shape.dim[i], tokens_max, outputs_max), &rows);
    /* a q8 row costs up to 128 bytes more than its width, and two numbers: bounded first, then computed by the header's rule */
    fits = fits && setun_mul_ok(rows, width + 128 + 8, &bytes) && bytes <= UINT64_MAX / 16;
    if (!fits) return setun_fail(SETUN_ERROR_ARGUMENT, "a value of %llu rows of %llu numbers is too large; use smaller tokens_max or outputs_max", (unsigned long long)rows, (unsigned long long)width);
    *out = slot->dtype == SETUN_Q8 ? setun_q8_bytes((int64_t)rows, (int64_t)width) : rows * width * setun_dtype_bytes(slot->dtype);
    return SETUN_OK;
}

bool setun_step_in_place(const setun_plan *plan, const setun_step *step, int slot) {
    if (slot < 0 || step->output[0] < 0 || plan->slots[slot].dtype != SETUN_F32 || plan->slots[step->output[0]].dtype != SETUN_F32) return false;
    switch (step->kind) {
    case SETUN_STEP_UNARY: return slot == step->input[0];
    case SETUN_STEP_BINARY: return slot == step->input[0] || slot == step->input[1];
    case SETUN_STEP_NORM: return slot == step->input[0] && !step->quantize;
    case SETUN_STEP_LINEAR: return slot == step->residual && step->output[1] < 0 && setun_slot_root(plan, step->input[0]) != setun_slot_root(plan, slot);
    default: return false;
    }
}

/* A chunk of the arena: a root with all its views, and what was laid over it in place. */
typedef struct layout {
    setun_plan *plan;
    int *last_read; /* [slot] of a root: last step that reads the value or a view of it */
    int *order;     /* roots, largest first */
    bool *named;    /* [slot] of a root: an input or output lies there */
} layout;

/* The slot that output 0 may be laid over, or -1: its value must end here, with all its views. */
static int in_place_slot(const layout *l, int index) {
    const setun_plan *plan = l->plan;
    const setun_step *step = &plan->steps[index];
    int reads[SETUN_STEP_READS];
    setun_step_reads(step, reads);
    for (int i = SETUN_STEP_READS - 1; i >= 0; i--) { /* the residual first */
        if (!setun_step_in_place(plan, step, reads[i])) continue;
        int root = setun_slot_root(plan, reads[i]);
        if (!l->named[root] && l->last_read[root] == index && setun_slot_root(plan, step->output[0]) != root) return reads[i];
    }
    return -1;
}

static void share_in_place(layout *l) {
    setun_plan *plan = l->plan;
    for (int i = 0; i < plan->step_count; i++) {
        int slot = in_place_slot(l, i);
        if (slot < 0) continue;
        int out = plan->steps[i].output[0]; /* a step's output is a root */
        int root = setun_slot_root(plan, slot);
        plan->slots[out].alias_of = slot;
        /* from here on the chunk holds the new value: it lives as long as that, and is as untouchable */
        l->last_read[root] = l->last_read[out];
        l->named[root] = l->named[out];
    }
}

/* Every slot's own lifetime, from the step that writes it to the last that reads it or a view of it. */
static void find_lifetimes(layout *l) {
    setun_plan *plan = l->plan;
    int end = plan->step_count ? plan->step_count - 1 : 0;
    for (int s = 0; s < plan->slot_count; s++) {
        plan->slots[s].first_step = plan->slots[s].place == SETUN_PLACE_INPUT ? 0 : -1;
        plan->slots[s].last_step = -1;
    }
    for (int i = 0; i < plan->step_count; i++) {
        int reads[SETUN_STEP_READS];
        setun_step_reads(&plan->steps[i], reads);
        for (int j = 0; j < SETUN_STEP_READS; j++)
            if (reads[j] >= 0) plan->slots[reads[j]].last_step = i;
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            int out = plan->steps[i].output[j];
            if (out < 0) continue;
            plan->slots[out].first_step = i;
            if (plan->slots[out].last_step < i) plan->slots[out].last_step = i;
        }
    }
    for (int s = 0; s < plan->slot_count; s++) { /* views come after what they look at */
        setun_slot *slot = &plan->slots[s];
        if (slot->alias_of >= 0) slot->first_step = plan->slots[slot->alias_of].first_step;
        if (slot->place != SETUN_PLACE_ARENA) slot->last_step = end;
    }
    for (int s = plan->slot_count - 1; s >= 0; s--) {
        setun_slot *slot = &plan->slots[s];
        if (slot->last_step < slot->first_step) slot->last_step = slot->first_step;
        if (slot->alias_of >= 0 && plan->slots[slot->alias_of].last_step < slot->last_step) plan->slots[slot->alias_of].last_step = slot->last_step;
    }
    for (int s = 0; s < plan->slot_count; s++) {
        int root = setun_slot_root(plan, s);
        l->last_read[s] = plan->slots[s].last_step;
        if (plan->slots[s].place != SETUN_PLACE_ARENA) l->named[root] = true;
    }
}

typedef struct chunk { uint64_t bytes; int root, first, last; uint64_t offset; } chunk;

static int larger_first(const void *a, const void *b) {
    const chunk *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return x->root - y->root;
}

/* Largest first, each at the lowest offset where no chunk alive at the same time lies. */
static setun_status place(chunk *chunks, int count, uint64_t *arena_bytes) {
    qsort(chunks, (size_t)count, sizeof *chunks, larger_first);
    int *by_offset = setun_alloc(((size_t)count + 1) * sizeof *by_offset); /* placed chunks, lowest offset first */
    if (!by_offset) return setun_fail(SETUN_ERROR_MEMORY, "out of memory: %d chunks of the arena", count);
    *arena_bytes = 0;
    for (int i = 0; i < count; i++) {
        uint64_t offset = 0, end;
        for (int j = 0; j < i; j++) {
            const chunk *other = &chunks[by_offset[j]];
            if (other->last < chunks[i].first || other->first > chunks[i].last) continue;
            if (other->offset >= offset + chunks[i].bytes) break; /* fits in the gap before it */
            if (other->offset + other->bytes > offset) offset = other->offset + other->bytes;
        }
        if (!setun_add_ok(offset, chunks[i].bytes, &end) || end > UINT64_MAX / 4) {
            setun_free(by_offset);
            return setun_fail(SETUN_ERROR_ARGUMENT, "the plan needs more than 2^62 bytes; use smaller tokens_max or outputs_max");
        }
        chunks[i].offset = offset;
        if (end > *arena_bytes) *arena_bytes = end;
        int at = i;
        while (at > 0 && chunks[by_offset[at - 1]].offset > offset) {
            by_offset[at] = by_offset[at - 1];
            at--;
        }
        by_offset[at] = i;
    }
    setun_free(by_offset);
    return SETUN_OK;
}

static setun_status lay(layout *l, chunk *chunks) {
    setun_plan *plan = l->plan;
    int end = plan->step_count ? plan->step_count - 1 : 0;
    uint64_t without_reuse = 0;
    find_lifetimes(l);
    for (int s = 0; s < plan->slot_count; s++) {
        setun_slot *slot = &plan->slots[s];
        SETUN_TRY(setun_slot_bytes(slot, plan->tokens_max, plan->outputs_max, &slot->bytes));
        if (slot->alias_of >= 0) continue;
        uint64_t rounded = (slot->bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
        if (!setun_add_ok(without_reuse, rounded, &without_reuse)) return setun_fail(SETUN_ERROR_ARGUMENT, "the plan needs more than 2^64 bytes; use smaller tokens_max or outputs_max");
    }
    share_in_place(l);
    int *chunk_of = l->last_read; /* done with it */
    int count = 0;
    for (int s = 0; s < plan->slot_count; s++)
        if (plan->slots[s].alias_of < 0) {
            chunk_of[s] = count;
            chunks[count++] = (chunk){.root = s, .first = plan->slots[s].first_step, .last = plan->slots[s].last_step};
        }
    for (int s = 0; s < plan->slot_count; s++) {
        chunk *c = &chunks[chunk_of[setun_slot_root(plan, s)]];
        setun_slot *slot = &plan->slots[s];
        if (slot->first_step < c->first) c->first = slot->first_step;
        if (slot->last_step > c->last) c->last = slot->last_step;
        if (slot->bytes > c->bytes) c->bytes = slot->bytes;
        if (slot->place != SETUN_PLACE_ARENA) { /* callers write inputs before the first step and read outputs after the last */
            c->first = slot->first_step = 0;
            c->last = slot->last_step = end;
        }
    }
    for (int i = 0; i < count; i++) chunks[i].bytes = (chunks[i].bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    SETUN_TRY(place(chunks, count, &plan->arena_bytes));
    for (int i = 0; i < count; i++) plan->slots[chunks[i].root].offset = chunks[i].offset;
    for (int s = 0; s < plan->slot_count; s++) plan->slots[s].offset = plan->slots[setun_slot_root(plan, s)].offset;
    plan->stats.arena_bytes = plan->arena_bytes;
    plan->stats.arena_bytes_without_reuse = without_reuse;
    return SETUN_OK;
}

setun_status setun_plan_lay(setun_plan *plan) {
    size_t slots = (size_t)plan->slot_count + 1, bytes = slots * (sizeof(chunk) + sizeof(int) + sizeof(bool));
    chunk *chunks = setun_calloc(1, bytes);
    if (!chunks) return setun_fail_memory(bytes);
    layout l = {.plan = plan, .last_read = (int *)(chunks + slots)};
    l.named = (bool *)(l.last_read + slots);
    setun_status status = lay(&l, chunks);
    setun_free(chunks);
    return status;
}
