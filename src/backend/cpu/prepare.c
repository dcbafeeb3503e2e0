/*
 * prepare.c - makes a plan ready for the CPU: packs weights (once per weight, shared by every plan of the model), chooses the kernel of
 * each step, lists the rotations, sizes the scratch. Called once per plan by who builds it; runs never come here.
 * Knows nothing of what the graph computes: it sees steps and weights.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"
#include <math.h>

/* ---- what can be run ---- */

bool cpu_supports(const setun_backend *backend, const setun_step *step)
{
    (void)backend;
    switch (step->kind) {
    case SETUN_STEP_LINEAR:
        if (step->weight_count < 1 || step->weight_count > SETUN_STEP_WEIGHTS) return false;
        if (step->gated && (step->weight_count != 2 || (step->activation != SETUN_OP_SILU && step->activation != SETUN_OP_RELU2 && step->activation != SETUN_OP_GELU)))
            return false;
        for (int i = 0; i < step->weight_count; i++) {
            setun_format_kind kind = setun_format_get_kind(step->weight[i]->format);
            if (kind != SETUN_KIND_DENSE && kind != SETUN_KIND_TERNARY) return false;
            /* Rounded activations belong to ternary weights: dense ones would need a kernel that nothing asks for. */
            if (step->quantized_input && !setun_weight_is_ternary(step->weight[i])) return false;
        }
        return true;
    case SETUN_STEP_UNARY:
        return step->activation == SETUN_OP_SILU || step->activation == SETUN_OP_RELU2 || step->activation == SETUN_OP_GELU || step->activation == SETUN_OP_SCALE;
    case SETUN_STEP_BINARY:
        return step->activation == SETUN_OP_ADD || step->activation == SETUN_OP_MULTIPLY;
    case SETUN_STEP_EMBEDDING: case SETUN_STEP_NORM: case SETUN_STEP_QUANTIZE: case SETUN_STEP_SOFTMAX: case SETUN_STEP_L2:
    case SETUN_STEP_SELECT: case SETUN_STEP_HADAMARD: case SETUN_STEP_ROPE: case SETUN_STEP_ATTENTION:
        return true;
    case SETUN_STEP_COUNT: break;
    }
    return false;
}

/* ---- weights ---- */

void cpu_release_weight(void *prepared)
{
    setun_prepared *p = prepared;
    if (!p) return;
    setun_free_aligned(p->owned);
    setun_free_aligned(p->owned_scales);
    cpu_slab_release(p->slab);
    cpu_shortlist_free(p->shortlist);
    setun_free(p);
}

static setun_status prepare_vector(const setun_weight *w, setun_prepared *p)
{
    uint64_t count;
    if (w->rows < 1 || w->columns < 1 || !setun_mul_ok((uint64_t)w->rows, (uint64_t)w->columns, &count) || count > SIZE_MAX / 8)
        return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': shape [%lld, %lld] is impossible", w->name, (long long)w->rows, (long long)w->columns);
    p->owned = setun_alloc_aligned((size_t)(count * sizeof(float)) + 64, 64);
    if (!p->owned) return setun_fail_memory((size_t)(count * sizeof(float)));
    SETUN_TRY(setun_weight_to_f32(w, 0, w->rows, p->owned));
    p->format = SETUN_FORMAT_F32;
    p->data = p->owned;
    p->rows = w->rows;
    p->columns = w->columns;
    p->row_bytes = w->columns * (int64_t)sizeof(float);
    p->origin = SETUN_ORIGIN_COPIED;
    p->reason = "kernels read vectors as aligned f32";
    p->bytes = count * sizeof(float);
    return SETUN_OK;
}

static setun_status prepare_dense(const setun_weight *w, setun_prepared *p)
{
    uint64_t row_bytes = 0, bytes;
    /* MLX weights are three tensors; only setun_weight_to_f32 reads them. */
    bool plain = w->format != SETUN_FORMAT_MLX_2BIT;
    if (plain) SETUN_TRY(setun_format_size(w->format, 1, w->columns, &row_bytes));
    if (plain && (!setun_mul_ok(row_bytes, (uint64_t)w->rows, &bytes) || bytes > w->bytes))
        return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': %lld rows of %llu bytes do not fit its %llu bytes", w->name, (long long)w->rows,
                          (unsigned long long)row_bytes, (unsigned long long)w->bytes);
    p->format = w->format;
    p->data = w->data;
    p->rows = w->rows;
    p->columns = w->columns;
    p->row_bytes = (int64_t)row_bytes;
    p->origin = SETUN_ORIGIN_MAPPED;
    p->reason = "kernels read the file's format";
    return SETUN_OK;
}

static setun_status prepare_weight(setun_plan *plan, cpu_tape *tape, setun_model *model, const setun_weight *w, bool vector, bool quantized, setun_prepared **out)
{
    *out = NULL;
    setun_prepared *p = setun_calloc(1, sizeof *p);
    if (!p) return setun_fail_memory(sizeof *p);
    setun_status status = vector ? prepare_vector(w, p) : setun_weight_is_ternary(w) ? cpu_prepare_ternary(plan, tape, model, w, quantized, p) : prepare_dense(w, p);
    if (status != SETUN_OK) {
        cpu_release_weight(p);
        return status;
    }
    *out = p;
    return SETUN_OK;
}

/* Does a form that another step asked for serve this one? A vector is f32 in aligned memory; a matrix may be any form,
 * but trits are multiplied by int8 inputs only. */
static bool serves(const setun_prepared *p, const setun_weight *w, bool vector, bool quantized)
{
    if (!vector) return p->ternary == setun_weight_is_ternary(w) && (quantized || (p->packing != SETUN_PACKING_TRITS && !p->later));
    return !p->ternary && p->format == SETUN_FORMAT_F32 && p->origin == SETUN_ORIGIN_COPIED;
}

static setun_status keep(cpu_tape *tape, setun_prepared *p)
{
    if (tape->own_count == tape->own_capacity) {
        int capacity = tape->own_capacity ? tape->own_capacity * 2 : 8;
        setun_prepared **grown = setun_realloc(tape->own, (size_t)capacity * sizeof *grown);
        if (!grown) return setun_fail_memory((size_t)capacity * sizeof *grown);
        tape->own = grown;
        tape->own_capacity = capacity;
    }
    tape->own[tape->own_count++] = p;
    return SETUN_OK;
}

/* The prepared form of a weight: the one that is there, or a new one that stays with the weight. */
static setun_status get_prepared(setun_plan *plan, cpu_tape *tape, setun_model *model, const setun_weight *weight, bool vector, bool quantized, void **out, setun_weight_report *report)
{
    setun_weight *w = (setun_weight *)weight; /* `prepared` is the one mutable member; the lock guards it */
    setun_prepared *p = NULL;
    setun_status status = SETUN_OK;
    if (model) pthread_mutex_lock(&model->lock);
    if (w->prepared && serves(w->prepared, w, vector, quantized)) p = w->prepared;
    else {
        status = prepare_weight(plan, tape, model, w, vector, quantized, &p);
        if (status == SETUN_OK && !w->prepared) {
            w->prepared = p;
            if (model) model->free_prepared = cpu_release_weight;
            if (plan->storage) setun_graph_storage_set_free(plan->storage, cpu_release_weight);
        } else if (status == SETUN_OK) {
            /* One weight used as a matrix and as a vector: the second form belongs to this plan. */
            status = keep(tape, p);
            if (status != SETUN_OK) {
                cpu_release_weight(p);
                p = NULL;
            }
        }
    }
    if (status == SETUN_OK) {
        cpu_report(p, w, report);
        if (p->later) tape->later = true;
        if (p->later || atomic_load(&p->unchecked)) tape->checks = true;
        *out = p;
    }
    if (model) pthread_mutex_unlock(&model->lock);
    return status;
}

void cpu_report(const setun_prepared *p, const setun_weight *w, setun_weight_report *report)
{
    uint64_t scales = p->scale_kind == SETUN_SCALE_GROUP && p->ternary ? (uint64_t)p->rows * (uint64_t)((p->columns + p->group_size - 1) / p->group_size) * 4
                    : p->scale_kind == SETUN_SCALE_ROW && p->ternary ? (uint64_t)p->rows * 4 : 0;
    report->origin = p->origin == SETUN_ORIGIN_MAPPED ? SETUN_WEIGHT_MAPPED : p->origin == SETUN_ORIGIN_PACKED ? SETUN_WEIGHT_PACKED : SETUN_WEIGHT_COPIED;
    bool trits = p->ternary && p->packing == SETUN_PACKING_TRITS;
    uint64_t units = (uint64_t)(trits ? setun_trits_triples(p->rows) : p->rows);
    report->bytes = p->format == SETUN_FORMAT_MLX_2BIT && !p->ternary ? w->bytes : units * (uint64_t)p->row_bytes + scales;
    report->layout = trits ? "packed-trits" : p->ternary ? "packed-2bit" : setun_format_name(p->format);
    report->reason = p->reason;
}

/* ---- rotations ---- */

static setun_status add_rope(setun_plan *plan, cpu_tape *tape, int index, int max_ropes)
{
    setun_step *step = &plan->steps[index];
    int positions = step->input[step->kind == SETUN_STEP_ROPE ? 1 : 3];
    if (positions < 0) return setun_fail(SETUN_ERROR_STATE, "step %d (%s) rotates without positions", index, step->fused);
    int rotary = step->rope.rotary ? step->rope.rotary : step->head_size, half = rotary / 2;
    if (rotary < 2 || rotary % 2 || rotary > step->head_size)
        return setun_fail(SETUN_ERROR_ARGUMENT, "rope: %d rotated dimensions of %d; it must be an even number from 2 to the head's size", rotary, step->head_size);
    setun_rope_spec spec = step->rope;
    spec.rotary = rotary;
    while (plan->slots[positions].alias_of >= 0) positions = plan->slots[positions].alias_of;
    for (int i = 0; i < tape->rope_count; i++)
        if (tape->ropes[i].positions == positions && setun_rope_same(&tape->ropes[i].spec, &spec)) {
            tape->step[index].rope = i;
            return SETUN_OK;
        }
    if (tape->rope_count == max_ropes) return setun_fail(SETUN_ERROR_STATE, "more rotations than steps");
    cpu_rope *rope = &tape->ropes[tape->rope_count];
    *rope = (cpu_rope){.spec = spec, .positions = positions, .half = half, .first_step = index};
    SETUN_TRY(setun_rope_frequencies(&rope->spec, &rope->frequencies));
    tape->step[index].rope = tape->rope_count++;
    uint64_t rows = (uint64_t)cpu_elements(&plan->slots[positions], plan->tokens_max, plan->outputs_max);
    uint64_t bytes;
    if (!setun_mul_ok(rows, (uint64_t)half * sizeof(float), &bytes) || bytes > SIZE_MAX / 8) return setun_fail(SETUN_ERROR_ARGUMENT, "rope: %llu positions are too many", (unsigned long long)rows);
    rope->cos_offset = tape->shared_bytes;
    rope->sin_offset = rope->cos_offset + cpu_align(bytes);
    tape->shared_bytes = rope->sin_offset + cpu_align(bytes);
    return SETUN_OK;
}

/* ---- kernels of the steps ---- */

static setun_status plan_linear(const setun_plan *plan, const setun_kernels *kernels, const setun_step *step, cpu_step *cpu)
{
    const char *name = "", *isa = kernels->isa;
    bool quantized = plan->slots[step->input[0]].dtype == SETUN_Q8;
    int64_t width = setun_slot_width(&plan->slots[step->input[0]]);
    for (int i = 0; i < step->weight_count; i++) {
        const setun_prepared *p = step->prepared[i];
        const setun_weight *w = step->weight[i];
        if (p->columns != width)
            return setun_fail(SETUN_ERROR_STATE, "tensor '%s': %lld columns over an input of width %lld", w->name, (long long)p->columns, (long long)width);
        if (p->ternary && quantized) {
            /* |sum| <= 2 * 128 * k must fit int32 */
            if (p->columns > (1 << 22)) return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': %lld columns; at most %d can be summed in 32 bits", w->name, (long long)p->columns, 1 << 22);
            bool trits = !p->later && p->packing == SETUN_PACKING_TRITS;
            cpu->product[i] = trits ? CPU_TRITS_I8 : p->scale_kind != SETUN_SCALE_GROUP ? CPU_TERNARY_I8 : p->group_size % 128 == 0 ? CPU_TERNARY_I8_GROUP : CPU_TERNARY_I8_AS_F32;
            bool as_f32 = cpu->product[i] == CPU_TERNARY_I8_AS_F32;
            name = trits ? "trits_i8" : as_f32 ? "ternary_f32" : "ternary_i8";
            isa = trits ? kernels->trits_i8_isa : as_f32 ? kernels->ternary_f32_isa : kernels->ternary_i8_isa;
            if (p->later) { /* which it is may change, now even */
                cpu->product[i] = CPU_TERNARY_I8;
                snprintf(cpu->kernel, sizeof cpu->kernel, "ternary_i8[%s]" CPU_AS_PACKED, kernels->ternary_i8_isa);
                continue;
            }
        } else if (p->ternary) {
            cpu->product[i] = CPU_TERNARY_F32;
            name = "ternary_f32";
            isa = kernels->ternary_f32_isa;
        } else {
            if (quantized)
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s' (%s) is dense and its input is rounded to int8; give a linear layer over dense weights the f32 input", w->name, setun_format_name(w->format));
            cpu->product[i] = CPU_DENSE;
            switch (p->format) {
            case SETUN_FORMAT_F32: cpu->dense[i] = kernels->dense_f32; name = "dense_f32"; isa = kernels->dense_f32_isa; break;
            case SETUN_FORMAT_F16: cpu->dense[i] = kernels->dense_f16; name = "dense_f16"; isa = kernels->dense_f16_isa; break;
            case SETUN_FORMAT_BF16: cpu->dense[i] = kernels->dense_bf16; name = "dense_bf16"; isa = kernels->dense_bf16_isa; break;
            case SETUN_FORMAT_Q8_0: cpu->dense[i] = kernels->dense_q8_0; name = "dense_q8_0"; isa = kernels->dense_q8_0_isa; break;
            case SETUN_FORMAT_Q6_K: cpu->dense[i] = kernels->dense_q6_k; name = "dense_q6_k"; isa = kernels->dense_q6_k_isa; break;
            default:
                cpu->product[i] = CPU_DENSE_DEQUANTISED;
                cpu->dense[i] = kernels->dense_f32;
                cpu->whole_tokens = true;
                snprintf(cpu->kernel, sizeof cpu->kernel, "%s to dense_f32[%s]", setun_format_name(p->format), kernels->dense_f32_isa);
                continue;
            }
        }
        snprintf(cpu->kernel, sizeof cpu->kernel, "%s[%s]", name, isa);
    }
    return SETUN_OK;
}

static void name_kernel(cpu_step *cpu, const char *first, const char *first_isa, const char *second, const char *second_isa)
{
    if (second) snprintf(cpu->kernel, sizeof cpu->kernel, "%s[%s]+%s[%s]", first, first_isa, second, second_isa);
    else snprintf(cpu->kernel, sizeof cpu->kernel, "%s[%s]", first, first_isa);
}

static void plan_name(const setun_kernels *k, const setun_step *step, cpu_step *cpu)
{
#define NAME(entry) name_kernel(cpu, #entry, k->entry##_isa, NULL, NULL)
    switch (step->kind) {
    case SETUN_STEP_EMBEDDING: snprintf(cpu->kernel, sizeof cpu->kernel, "rows of %s", setun_format_name(step->weight[0]->format)); break;
    case SETUN_STEP_NORM:
        if (step->quantize) name_kernel(cpu, "rms_norm", k->rms_norm_isa, "quantize_i8", k->quantize_i8_isa);
        else NAME(rms_norm);
        break;
    case SETUN_STEP_QUANTIZE: NAME(quantize_i8); break;
    case SETUN_STEP_UNARY:
        if (step->activation == SETUN_OP_SILU) NAME(silu);
        else if (step->activation == SETUN_OP_RELU2) NAME(relu2);
        else if (step->activation == SETUN_OP_GELU) NAME(gelu);
        else NAME(scale);
        break;
    case SETUN_STEP_BINARY:
        if (step->activation == SETUN_OP_ADD) NAME(add);
        else NAME(multiply);
        break;
    case SETUN_STEP_SOFTMAX: NAME(softmax); break;
    case SETUN_STEP_L2: NAME(l2_normalize); break;
    case SETUN_STEP_SELECT: snprintf(cpu->kernel, sizeof cpu->kernel, "copy"); break;
    case SETUN_STEP_HADAMARD: NAME(hadamard); break;
    case SETUN_STEP_ROPE: NAME(rope); break;
    case SETUN_STEP_ATTENTION:
        if (step->has_rope) name_kernel(cpu, "attention", k->attention_isa, "rope", k->rope_isa);
        else NAME(attention);
        break;
    case SETUN_STEP_LINEAR: case SETUN_STEP_COUNT: break;
    }
#undef NAME
}

/* The small copy of the last step's weight, where the plan wants one and the weight suits it. */
static setun_status prepare_head(setun_plan *plan, int index, cpu_step *cpu, uint64_t *need)
{
    setun_step *step = &plan->steps[index];
    setun_prepared *p = step->prepared[0];
    if (!cpu_shortlist_fits(plan, index)) return SETUN_OK;
    bool coarse = plan->head.mode == SETUN_HEAD_SHORTLIST;
    if (step->model) pthread_mutex_lock(&step->model->lock);
    uint64_t before = p->shortlist ? cpu_shortlist_bytes(p->shortlist) : 0;
    setun_status status = cpu_shortlist_build(plan->context, step->model, step->weight[0], coarse, &p->shortlist);
    if (status == SETUN_OK && !p->shortlist->in_file) p->bytes += cpu_shortlist_bytes(p->shortlist) - before;
    if (step->model) pthread_mutex_unlock(&step->model->lock);
    SETUN_TRY(status);
    plan->head.step = index;
    plan->head.bits = coarse ? 4 : 6;
    plan->head.bytes = cpu_shortlist_bytes(p->shortlist) - (coarse ? p->shortlist->low_bytes : 0);
    uint64_t scratch = cpu_head_scratch(plan, step);
    if (scratch > *need) *need = scratch;
    size_t end = strlen(cpu->kernel);
    snprintf(cpu->kernel + end, sizeof cpu->kernel - end, " after shortlist_%d[%s]", plan->head.bits, plan->context->kernels->shortlist_high_isa);
    return SETUN_OK;
}

static bool takes_matrix(setun_step_kind kind) { return kind == SETUN_STEP_LINEAR; }

/* Attention steps share one piece of scratch for what the workers tell each other; the counters of all of them lie at its front. */
static void plan_partials(cpu_tape *tape, const setun_step *step)
{
    uint64_t counters, bytes = cpu_attention_shared(step, &counters);
    if (counters > tape->attention_counters) tape->attention_counters = counters;
    if (bytes > tape->attention_bytes) tape->attention_bytes = bytes;
}

static setun_status prepare_step(const setun_backend *backend, setun_plan *plan, cpu_tape *tape, int index)
{
    setun_step *step = &plan->steps[index];
    cpu_step *cpu = &tape->step[index];
    const setun_kernels *kernels = plan->context->kernels;
    if (!cpu_supports(backend, step)) return setun_fail(SETUN_ERROR_UNSUPPORTED, "step %d (%s) cannot be run on the cpu", index, step->fused);
    /* The rows of an embedding are read where they lie; norms and biases become f32 vectors. */
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        if (step->weight[i] && step->kind == SETUN_STEP_EMBEDDING) {
            if (step->weight[i]->unchecked) SETUN_TRY(cpu_check_codes(plan->context, step->weight[i]));
            step->report[i] = (setun_weight_report){SETUN_WEIGHT_MAPPED, step->weight[i]->bytes, setun_format_name(step->weight[i]->format), "single rows are read where they lie"};
        } else if (step->weight[i])
            SETUN_TRY(get_prepared(plan, tape, step->model, step->weight[i], !takes_matrix(step->kind), step->quantized_input, &step->prepared[i], &step->report[i]));
        if (step->bias[i])
            SETUN_TRY(get_prepared(plan, tape, step->model, step->bias[i], true, false, &step->prepared_bias[i], &step->bias_report[i]));
    }
    cpu->rope = -1;
    if (step->kind == SETUN_STEP_ROPE || (step->kind == SETUN_STEP_ATTENTION && step->has_rope)) SETUN_TRY(add_rope(plan, tape, index, plan->step_count));
    uint64_t need = 0;
    switch (step->kind) {
    case SETUN_STEP_LINEAR:
        SETUN_TRY(plan_linear(plan, kernels, step, cpu));
        SETUN_TRY(cpu_plan_many(plan, step, cpu));
        need = cpu_linear_scratch(plan, step, cpu);
        if (cpu_many_scratch(plan, step, cpu) > need) need = cpu_many_scratch(plan, step, cpu);
        break;
    case SETUN_STEP_NORM:
        if (step->quantize) need = cpu_align((uint64_t)setun_slot_width(&plan->slots[step->input[0]]) * sizeof(float));
        break;
    case SETUN_STEP_ATTENTION:
        need = cpu_attention_scratch(plan, step);
        if (step->attention.cache_layer == 0) {
            cpu->kv_half = cpu_align(((uint64_t)plan->tokens_max + SETUN_KV_RANGE - 1) / SETUN_KV_RANGE * SETUN_KV_RANGE * (uint64_t)step->kv_heads * (uint64_t)step->head_size * sizeof(float));
            cpu->kv_offset = tape->shared_bytes;
            tape->shared_bytes += 2 * cpu->kv_half;
        }
        plan_partials(tape, step);
        break;
    default: break;
    }
    SETUN_TRY(prepare_head(plan, index, cpu, &need));
    if (step->kind != SETUN_STEP_LINEAR) plan_name(kernels, step, cpu);
    step->kernel = cpu->kernel;
    if (need > tape->worker_bytes) tape->worker_bytes = cpu_align(need);
    return SETUN_OK;
}

static bool share_bytes(const setun_slot *a, const setun_slot *b) { return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes; }

/* Which steps each worker may do for itself. One that is late must still find the input when another has begun with the product. */
static void plan_apart(const setun_plan *plan, cpu_tape *tape)
{
    uint64_t bytes = 0;
    for (int i = 0; i + 1 < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i], *next = step + 1;
        bool rounds = step->kind == SETUN_STEP_QUANTIZE || (step->kind == SETUN_STEP_NORM && step->quantize);
        if (!rounds || next->kind != SETUN_STEP_LINEAR || next->input[0] != step->output[0] || cpu_own_rows(plan, step->output[0]) < 1) continue;
        bool apart = true;
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
            if (next->output[j] >= 0 && share_bytes(&plan->slots[step->input[0]], &plan->slots[next->output[j]])) apart = false;
        if (!apart) continue;
        tape->step[i].apart = true;
        uint64_t own = setun_q8_bytes(cpu_own_rows(plan, step->output[0]), setun_slot_width(&plan->slots[step->output[0]]));
        if (own > bytes) bytes = own;
    }
    tape->own_q8_offset = tape->worker_bytes;
    tape->worker_bytes += cpu_align(bytes);
}

static void free_tape(cpu_tape *tape)
{
    if (!tape) return;
    for (int i = 0; i < tape->own_count; i++) cpu_release_weight(tape->own[i]);
    setun_free(tape->own);
    for (int i = 0; i < tape->rope_count; i++) setun_free(tape->ropes[i].frequencies);
    setun_free(tape->ropes);
    cpu_slab_release(tape->slab);
    cpu_slab_release(tape->later_slab);
    setun_free(tape);
}

/* How much the plan's ternary weights are at two bits, and so in blocks of which size they will lie. */
static void size_up(const setun_plan *plan, cpu_tape *tape)
{
    enum { BLOCK_LEAST = 4 << 20, BLOCK_MOST = 256 << 20 };
    for (int i = 0; i < plan->step_count; i++)
        for (int j = 0; j < SETUN_STEP_WEIGHTS && plan->steps[i].kind == SETUN_STEP_LINEAR; j++) {
            const setun_weight *w = plan->steps[i].weight[j];
            if (w && setun_weight_is_ternary(w)) tape->ternary_bytes += (uint64_t)w->rows * (uint64_t)setun_packed_row_bytes(w->columns);
        }
    if (tape->ternary_bytes < BLOCK_LEAST) return;
    tape->slab_bytes = tape->ternary_bytes < BLOCK_MOST ? tape->ternary_bytes + tape->ternary_bytes / 8 : BLOCK_MOST;
}

/* Reading a tensor of the file brings pages of its neighbours in. Those of tensors that are copied or packed by now are nobody's: given back. */
static void drop_neighbours(const setun_plan *plan)
{
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        for (int j = 0; j < SETUN_STEP_WEIGHTS && step->model; j++) {
            const setun_weight *const w[2] = {step->weight[j], step->bias[j]};
            const setun_prepared *const p[2] = {step->prepared[j], step->prepared_bias[j]};
            for (int k = 0; k < 2; k++)
                if (w[k] && p[k] && w[k]->mapped && !p[k]->later && p[k]->origin != SETUN_ORIGIN_MAPPED) setun_file_drop(step->model->file, w[k]->data, w[k]->bytes);
        }
    }
}

setun_status cpu_prepare(const setun_backend *backend, setun_plan *plan)
{
    plan->release = cpu_release;
    plan->scratch_bytes = 0;
    plan->head.bits = 0;
    if (plan->step_count < 1) return SETUN_OK;
    cpu_release(backend, plan); /* a second prepare starts afresh */
    plan->release = cpu_release;
    cpu_tape *tape = setun_calloc(1, sizeof *tape + (size_t)plan->step_count * sizeof tape->step[0]);
    if (!tape) return setun_fail_memory(sizeof *tape);
    tape->step_count = plan->step_count;
    tape->ropes = setun_calloc((size_t)plan->step_count, sizeof *tape->ropes);
    setun_status status = tape->ropes ? SETUN_OK : setun_fail_memory((size_t)plan->step_count * sizeof *tape->ropes);
    size_up(plan, tape);
    for (int i = 0; i < plan->step_count && status == SETUN_OK; i++) status = prepare_step(backend, plan, tape, i);
    cpu_slab_release(tape->slab); /* the weights in it keep it */
    cpu_slab_release(tape->later_slab);
    tape->slab = tape->later_slab = NULL;
    if (status != SETUN_OK) {
        free_tape(tape);
        for (int i = 0; i < plan->step_count; i++) plan->steps[i].kernel = NULL;
        return status;
    }
    drop_neighbours(plan);
    tape->attention_offset = tape->shared_bytes;
    tape->shared_bytes += tape->attention_counters + tape->attention_bytes;
    tape->how_offset = tape->shared_bytes;
    tape->shared_bytes += cpu_align((uint64_t)plan->step_count);
    plan_apart(plan, tape);
    tape->cursor_bytes = cpu_align((uint64_t)plan->step_count * sizeof(atomic_int));
    tape->worker_bytes += tape->cursor_bytes;
    plan->steps[0].backend_data = tape;
    plan->scratch_bytes = tape->shared_bytes + tape->worker_bytes * (uint64_t)setun_pool_size(plan->context->pool);
    return SETUN_OK;
}

void cpu_release(const setun_backend *backend, setun_plan *plan)
{
    (void)backend;
    if (plan->step_count < 1) return;
    free_tape(plan->steps[0].backend_data);
    plan->steps[0].backend_data = NULL;
    for (int i = 0; i < plan->step_count; i++) plan->steps[i].kernel = NULL;
}
