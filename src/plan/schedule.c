/*
 * schedule.c - the order of the steps. The order in which the graph was built is kept unless a greedy one, which takes of all
 * ready steps the one that leaves fewest bytes alive, needs less memory at its worst moment. Called by setun_plan_build after
 * fuse, before memory; knows bytes and readers only.
 */
#include "plan/passes.h"

typedef struct scheduler {
    const setun_plan *plan;
    uint64_t *bytes;  /* [slot] of a root's value; 0 for views, inputs and outputs, which no order changes */
    int *readers;     /* [slot] of a root: reading steps that have not run */
    int *reads_total; /* [slot] the same before the first step */
    int *producer;    /* [slot] of a root: step, or -1 */
    bool *done;       /* [step] */
} scheduler;

/* The distinct roots that a step reads. */
static int read_roots(const setun_plan *plan, const setun_step *step, int roots[SETUN_STEP_READS]) {
    int reads[SETUN_STEP_READS], count = 0;
    setun_step_reads(step, reads);
    for (int i = 0; i < SETUN_STEP_READS; i++) {
        if (reads[i] < 0) continue;
        int root = setun_slot_root(plan, reads[i]);
        bool known = false;
        for (int j = 0; j < count; j++) known |= roots[j] == root;
        if (!known) roots[count++] = root;
    }
    return count;
}

static uint64_t written_bytes(const scheduler *s, const setun_step *step) {
    uint64_t bytes = 0;
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++)
        if (step->output[i] >= 0) bytes += s->bytes[setun_slot_root(s->plan, step->output[i])];
    return bytes;
}

/* Bytes that die with this step if it runs now. */
static uint64_t freed_bytes(const scheduler *s, const setun_step *step) {
    int roots[SETUN_STEP_READS], count = read_roots(s->plan, step, roots);
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++)
        if (s->readers[roots[i]] == 1) bytes += s->bytes[roots[i]];
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) /* nobody reads it */
        if (step->output[i] >= 0 && s->readers[setun_slot_root(s->plan, step->output[i])] == 0) bytes += s->bytes[setun_slot_root(s->plan, step->output[i])];
    return bytes;
}

static bool ready(const scheduler *s, const setun_step *step) {
    int roots[SETUN_STEP_READS], count = read_roots(s->plan, step, roots);
    for (int i = 0; i < count; i++)
        if (s->producer[roots[i]] >= 0 && !s->done[s->producer[roots[i]]]) return false;
    return true;
}

static void run_step(scheduler *s, int step, uint64_t *alive, uint64_t *peak) {
    const setun_step *st = &s->plan->steps[step];
    *alive += written_bytes(s, st);
    if (*alive > *peak) *peak = *alive;
    *alive -= freed_bytes(s, st);
    int roots[SETUN_STEP_READS], count = read_roots(s->plan, st, roots);
    for (int i = 0; i < count; i++) s->readers[roots[i]]--;
    s->done[step] = true;
}

static void restart(scheduler *s) {
    memcpy(s->readers, s->reads_total, (size_t)s->plan->slot_count * sizeof *s->readers);
    memset(s->done, 0, (size_t)s->plan->step_count * sizeof *s->done);
}

static uint64_t peak_as_built(scheduler *s) {
    uint64_t alive = 0, peak = 0;
    restart(s);
    for (int i = 0; i < s->plan->step_count; i++) run_step(s, i, &alive, &peak);
    return peak;
}

static uint64_t peak_greedy(scheduler *s, int *order) {
    uint64_t alive = 0, peak = 0;
    int first = 0; /* all before it are done */
    restart(s);
    for (int n = 0; n < s->plan->step_count; n++) {
        int best = -1;
        int64_t best_growth = 0;
        while (s->done[first]) first++;
        for (int i = first; i < s->plan->step_count; i++) {
            if (s->done[i] || !ready(s, &s->plan->steps[i])) continue;
            int64_t growth = (int64_t)(written_bytes(s, &s->plan->steps[i]) - freed_bytes(s, &s->plan->steps[i]));
            if (best >= 0 && growth >= best_growth) continue; /* ties keep the builder's order */
            best = i;
            best_growth = growth;
        }
        order[n] = best;
        run_step(s, best, &alive, &peak);
    }
    return peak;
}

/* Each choice looks at every step: beyond this the builder's order is kept. */
#define SCHEDULE_MOST_STEPS 4096

setun_status setun_plan_schedule(setun_plan *plan) {
    if (plan->step_count < 3 || plan->step_count > SCHEDULE_MOST_STEPS) return SETUN_OK;
    size_t slots = (size_t)plan->slot_count, steps = (size_t)plan->step_count;
    size_t total = slots * (sizeof(uint64_t) + 3 * sizeof(int)) + steps * (sizeof(setun_step) + sizeof(int) + sizeof(bool));
    uint8_t *memory = setun_calloc(1, total);
    if (!memory) return setun_fail_memory(total);
    setun_step *ordered = (setun_step *)memory; /* the strictest alignment first */
    scheduler s = {.plan = plan, .bytes = (uint64_t *)(ordered + steps)};
    s.readers = (int *)(s.bytes + slots);
    s.reads_total = s.readers + slots;
    s.producer = s.reads_total + slots;
    int *order = s.producer + slots;
    s.done = (bool *)(order + steps);

    setun_status status = SETUN_OK;
    for (int i = 0; i < plan->slot_count; i++) s.producer[i] = -1;
    for (int i = 0; i < plan->slot_count && status == SETUN_OK; i++) {
        uint64_t bytes;
        status = setun_slot_bytes(&plan->slots[i], plan->tokens_max, plan->outputs_max, &bytes);
        if (status == SETUN_OK && plan->slots[i].alias_of < 0 && plan->slots[i].place == SETUN_PLACE_ARENA) s.bytes[i] = bytes;
    }
    for (int i = 0; i < plan->slot_count; i++) /* a named view keeps its root alive whatever the order */
        if (plan->slots[i].place != SETUN_PLACE_ARENA) s.bytes[setun_slot_root(plan, i)] = 0;
    for (int i = 0; i < plan->step_count; i++) {
        int roots[SETUN_STEP_READS], count = read_roots(plan, &plan->steps[i], roots);
        for (int j = 0; j < count; j++) s.reads_total[roots[j]]++;
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
            if (plan->steps[i].output[j] >= 0) s.producer[setun_slot_root(plan, plan->steps[i].output[j])] = i;
    }
    if (status == SETUN_OK) {
        uint64_t built = peak_as_built(&s);
        if (peak_greedy(&s, order) < built) {
            for (int i = 0; i < plan->step_count; i++) ordered[i] = plan->steps[order[i]];
            memcpy(plan->steps, ordered, steps * sizeof *ordered);
        }
    }
    setun_free(memory);
    return status;
}
