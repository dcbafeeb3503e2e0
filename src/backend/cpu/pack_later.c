/*
 * pack_later.c - large 2-bit weights of a mapped file are not packed before they are wanted: the first run reads their rows in the file, so that a first answer waits
 * for no copy of them, and the second begins by packing all. Their codes are checked where they are first read; a run that meets others gives an error and no
 * result; trits of a packed file, which stay where they are, are checked in the same way. Sums of codes are whole numbers, so no bit depends on which of the two was read.
 * Callers: prepare_ternary.c, execute.c, the steps. Knows weights and their memory; knows no step but the linear ones.
 */
#include "backend/cpu/cpu.h"

static atomic_bool forced;
void cpu_force_later(bool on) { atomic_store(&forced, on); }

bool cpu_may_wait(const cpu_tape *tape, const setun_model *model, const setun_weight *w)
{
    if (!model || !w->mapped) return false;
    return atomic_load(&forced) || (cpu_is_streamed(tape->ternary_bytes) && setun_huge_pages_available());
}

/* ---- while a run reads them ---- */

bool cpu_rows_are_codes(cpu_run *run, const setun_prepared *p, const uint8_t *rows, int64_t bytes)
{
    if (!atomic_load_explicit(&p->unchecked, memory_order_relaxed) || !setun_has_code3(rows, (size_t)bytes)) return true;
    atomic_store_explicit(&run->broken, p->weight, memory_order_relaxed);
    return false;
}

bool cpu_triples_are_codes(cpu_run *run, const setun_prepared *p, const uint8_t *triples, int rows)
{
    if (!atomic_load_explicit(&p->unchecked, memory_order_relaxed) || run->kernels->trits_valid(triples, (size_t)p->row_bytes, rows, p->columns)) return true;
    atomic_store_explicit(&run->broken, p->weight, memory_order_relaxed);
    return false;
}

/* A whole run read every row of the steps that had input. */
void cpu_note_read(cpu_run *run)
{
    const setun_plan *plan = run->plan;
    for (int i = run->frame->first_step; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        if (step->kind != SETUN_STEP_LINEAR || setun_slot_rows(&plan->slots[step->input[0]], run->tokens, run->outputs) < 1) continue;
        for (int j = 0; j < step->weight_count; j++) {
            setun_prepared *p = step->prepared[j];
            atomic_store_explicit(&p->unchecked, false, memory_order_relaxed);
        }
    }
    if (run->frame->first_step == 0) atomic_store(&run->tape->ran, true);
}

/* The error that opening the model would have given. */
static setun_status say(const setun_model *model, const setun_weight *w)
{
    setun_ternary_info info;
    setun_status status = setun_ternary_probe_quick(w, &info);
    if (status == SETUN_OK) status = setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' (%s): its ternary codes could not be read; the file may have changed", w->name, setun_format_name(w->format));
    return setun_fail_prefix(status, "%s", model->path);
}

setun_status cpu_say_broken(const cpu_run *run)
{
    const setun_weight *w = atomic_load(&run->broken);
    /* Of several, the plan's first: which a worker met last is chance. */
    for (int i = 0; i < run->plan->step_count; i++)
        for (int j = 0; j < run->plan->steps[i].weight_count && run->plan->steps[i].kind == SETUN_STEP_LINEAR; j++) {
            const setun_step *step = &run->plan->steps[i];
            setun_ternary_info info;
            if (step->weight[j]->unchecked && (step->weight[j] == w || setun_ternary_probe_quick(step->weight[j], &info) != SETUN_OK)) return say(step->model, step->weight[j]);
        }
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': its ternary codes could not be read", w->name);
}

/* ---- before the next run ---- */

typedef struct pack_all {
    const setun_plan *plan;
    const setun_model *model;   /* whose weights, and whose lock is held */
    setun_packing packing;
    bool chosen;
} pack_all;

typedef setun_status (*weight_fn)(pack_all *all, setun_prepared *p);

static setun_status each_waiting(pack_all *all, weight_fn fn)
{
    for (int i = 0; i < all->plan->step_count; i++)
        for (int j = 0; j < all->plan->steps[i].weight_count && all->plan->steps[i].kind == SETUN_STEP_LINEAR; j++) {
            setun_prepared *p = all->plan->steps[i].prepared[j];
            if (all->plan->steps[i].model == all->model && p->later && p->waiting) SETUN_TRY(fn(all, p));
        }
    return SETUN_OK;
}

static uint64_t packed_bytes(const setun_weight *w, setun_packing packing)
{
    return packing == SETUN_PACKING_TRITS ? (uint64_t)setun_trits_triples(w->rows) * (uint64_t)setun_trits_triple_bytes(w->columns) : (uint64_t)w->rows * (uint64_t)setun_packed_row_bytes(w->columns);
}

static setun_status pack_one(pack_all *all, setun_prepared *p)
{
    if (p->bytes > 0) return SETUN_OK; /* in another step too */
    if (!all->chosen) {
        size_t bytes;
        uint8_t *memory = cpu_slab_untouched(p->slab, &bytes); /* about to be written: the measurement takes no other */
        SETUN_TRY(cpu_choose_packing(all->plan->context, cpu_tape_of(all->plan)->ternary_bytes, memory, bytes, &all->packing));
        all->chosen = true;
    }
    const uint64_t bytes = packed_bytes(p->weight, all->packing);
    cpu_later_place(p, bytes);
    if (cpu_pack_rows(all->plan->context, p->weight, all->packing, p->in_slab) != SETUN_OK) return say(all->model, p->weight);
    p->bytes = bytes;
    setun_file_drop(p->file, p->weight->data, p->weight->bytes); /* read for the last time */
    return SETUN_OK;
}

static setun_status change_one(pack_all *all, setun_prepared *p)
{
    if (p->bytes == 0) return SETUN_OK; /* packing stopped before it */
    p->packing = all->packing;
    p->row_bytes = all->packing == SETUN_PACKING_TRITS ? setun_trits_triple_bytes(p->columns) : setun_packed_row_bytes(p->columns);
    p->data = p->in_slab;
    p->origin = all->packing == SETUN_PACKING_TRITS ? SETUN_ORIGIN_PACKED : SETUN_ORIGIN_COPIED;
    p->reason = all->packing == SETUN_PACKING_TRITS ? "measured: trits are read faster here; the first run reads the file's rows" : "measured: two bits are read faster here; the first run reads the file's rows";
    p->waiting = false;
    atomic_store_explicit(&p->unchecked, false, memory_order_relaxed);
    return SETUN_OK;
}

/* Inside a run of the pool, as every run of a plan is: none goes on meanwhile. */
static void change_all(void *argument, int worker, int workers)
{
    (void)workers;
    if (worker == 0) (void)each_waiting(argument, change_one);
}

setun_status cpu_pack_waiting(const setun_plan *plan)
{
    for (int i = 0; i < plan->step_count; i++) {
        setun_model *model = plan->steps[i].model;
        if (!model || (i > 0 && model == plan->steps[i - 1].model)) continue;
        pack_all all = {.plan = plan, .model = model};
        pthread_mutex_lock(&model->lock);
        setun_status status = each_waiting(&all, pack_one);
        if (all.chosen) setun_pool_run(plan->context->pool, change_all, &all);
        pthread_mutex_unlock(&model->lock);
        SETUN_TRY(status);
    }
    return SETUN_OK;
}

setun_status setun_weights_finish(const setun_plan *plan) { return plan->backend == setun_backend_cpu() ? cpu_pack_waiting(plan) : SETUN_OK; }

/* A step whose weights are packed by now is multiplied by one kernel for good. */
static void name_kernel(const setun_plan *plan, int index)
{
    const setun_prepared *p = plan->steps[index].prepared[0];
    cpu_step *cpu = &cpu_tape_of(plan)->step[index];
    const char *mark = strstr(cpu->kernel, CPU_AS_PACKED);
    if (!mark || !p->later || p->waiting) return;
    const setun_kernels *k = plan->context->kernels;
    const bool trits = p->packing == SETUN_PACKING_TRITS;
    char rest[61];
    snprintf(rest, sizeof rest, "%s", mark + strlen(CPU_AS_PACKED));
    snprintf(cpu->kernel, sizeof cpu->kernel, "%s[%.20s]%.60s", trits ? "trits_i8" : "ternary_i8", trits ? k->trits_i8_isa : k->ternary_i8_isa, rest);
}

void setun_weights_report(setun_plan *plan)
{
    if (plan->backend != setun_backend_cpu() || !cpu_tape_of(plan) || !cpu_tape_of(plan)->later) return;
    for (int i = 0; i < plan->step_count; i++) {
        setun_step *step = &plan->steps[i];
        if (!step->model || step->kind != SETUN_STEP_LINEAR) continue;
        pthread_mutex_lock(&step->model->lock);
        for (int j = 0; j < step->weight_count; j++)
            if (((const setun_prepared *)step->prepared[j])->later) cpu_report(step->prepared[j], step->weight[j], &step->report[j]);
        name_kernel(plan, i);
        pthread_mutex_unlock(&step->model->lock);
    }
}
