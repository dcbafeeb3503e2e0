/*
 * verify.c - checks a tape from scratch, after every pass and in tests: every step's dtypes and shapes, values written once and
 * before they are read, and that no write in the arena hits a value that is still needed. It shares no code with the
 * passes that decide these things, except the rule of what may be done in place. Finding an error here is finding a bug of
 * Setun, but wrong numbers would be worse.
 */
#include "plan/passes.h"

static setun_status broken(int index, const setun_step *step, const char *what) { return setun_fail(SETUN_ERROR_STATE, "plan: step %d (%s: %s): %s; please report this", index, setun_step_name(step->kind), step->fused, what); }

static bool shape_same(const setun_shape *a, const setun_shape *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static bool is(const setun_plan *plan, int slot, setun_dtype dtype) { return slot >= 0 && plan->slots[slot].dtype == dtype; }

static bool same(const setun_plan *plan, int a, int b) { return shape_same(&plan->slots[a].shape, &plan->slots[b].shape); }

static bool is_vector(const setun_weight *w, int64_t width) { return w && w->rows == 1 && w->columns == width; }

/* a is b with the last dimension replaced */
static bool same_but_width(const setun_shape *a, const setun_shape *b, int64_t width) {
    setun_shape want = *b;
    want.dim[want.rank - 1] = width;
    return shape_same(a, &want);
}

static bool activation_ok(setun_op op) { return op == SETUN_OP_SILU || op == SETUN_OP_RELU2 || op == SETUN_OP_GELU; }

static const char *check_linear(const setun_plan *plan, const setun_step *step) {
    const int x = step->input[0];
    if (step->weight_count < 1 || step->weight_count > SETUN_STEP_WEIGHTS) return "it has no weights, or too many";
    if (step->quantized_input ? !is(plan, x, SETUN_Q8) : !is(plan, x, SETUN_F32)) return "x is neither f32 nor q8, or not what the step says";
    if (step->gated && (step->weight_count != 2 || !activation_ok(step->activation))) return "a gated linear has two weights and an activation";
    const int outputs = step->gated ? 1 : step->weight_count;
    for (int i = 0; i < SETUN_STEP_WEIGHTS; i++) {
        if (i >= step->weight_count) {
            if (step->weight[i] || step->bias[i] || step->output[i] >= 0) return "it has more weights or outputs than it says";
            continue;
        }
        const setun_weight *w = step->weight[i];
        if (!w || w->columns != setun_slot_width(&plan->slots[x])) return "x is not as wide as the weight";
        if (step->quantized_input && !w->info.ternary) return "a dense weight meets quantised activations";
        if (step->bias[i] && !is_vector(step->bias[i], w->rows)) return "the bias is not one value a row";
        if (i >= outputs ? step->output[i] >= 0 : !is(plan, step->output[i], SETUN_F32)) return "the outputs are not one f32 value a weight";
        if (i < outputs && !same_but_width(&plan->slots[step->output[i]].shape, &plan->slots[x].shape, w->rows)) return "the output's shape is wrong";
    }
    if (step->gated && step->weight[0]->rows != step->weight[1]->rows) return "gate and up differ in rows";
    if (outputs > 1 && (step->residual >= 0 || step->factor != 1)) return "several outputs and an epilogue";
    if (step->residual >= 0 && (!is(plan, step->residual, SETUN_F32) || !same(plan, step->residual, step->output[0]))) return "the residual's shape is not the output's";
    return NULL;
}

static const char *check_attention(const setun_plan *plan, const setun_step *step) {
    const int q = step->input[0], k = step->input[1], v = step->input[2], positions = step->input[3];
    if (!is(plan, q, SETUN_F32) || !is(plan, k, SETUN_F32) || !is(plan, v, SETUN_F32) || !is(plan, step->output[0], SETUN_F32)) return "q, k, v and the output must be f32";
    const setun_shape want_q = {3, {SETUN_DIM_TOKENS, step->heads, step->head_size}}, want_k = {3, {SETUN_DIM_TOKENS, step->kv_heads, step->head_size}};
    const setun_shape want_out = {2, {SETUN_DIM_TOKENS, (int64_t)step->heads * step->head_size}};
    if (!shape_same(&plan->slots[q].shape, &want_q) || !shape_same(&plan->slots[k].shape, &want_k) || !shape_same(&plan->slots[v].shape, &want_k) || !shape_same(&plan->slots[step->output[0]].shape, &want_out))
        return "the shapes are not [T, heads, d]";
    if (step->kv_heads < 1 || step->heads % step->kv_heads) return "heads is no multiple of kv_heads";
    if (step->has_rope != (positions >= 0)) return "a rotation needs positions";
    if (step->has_rope && (!is(plan, positions, SETUN_I32) || plan->slots[positions].shape.rank != 1 || step->rope.rotary < 2 || step->rope.rotary > step->head_size)) return "the rotation is wrong";
    for (int i = 0; i < 2; i++)
        if (step->weight[i] && (!is_vector(step->weight[i], step->head_size) || !(i ? step->norm_k : step->norm_q))) return "a norm's weight is not one value a column of a head";
    if (step->attention.cache_layer > plan->cache_layers) return "the cache layer is not the plan's";
    if (step->attention.cache_layer && (step->kv_heads != plan->cache_kv_heads || step->head_size != plan->cache_head_size)) return "the cache's shape is not the plan's";
    return NULL;
}

/* NULL, or what is wrong. */
static const char *check_step(const setun_plan *plan, const setun_step *step) {
    const int x = step->input[0], y = step->output[0];
    if (y < 0 || x < 0) return "it has no input or no output";
    if (step->kind != SETUN_STEP_LINEAR && (step->output[1] >= 0 || step->output[2] >= 0 || step->residual >= 0 || step->gated)) return "it has what only a linear has";
    switch (step->kind) {
    case SETUN_STEP_EMBEDDING: {
        if (step->weight_count != 1 || !step->weight[0] || !is(plan, x, SETUN_I32) || !is(plan, y, SETUN_F32) || plan->slots[x].shape.rank != 1) return "it must map i32 ids to f32 rows";
        const setun_shape want = {2, {plan->slots[x].shape.dim[0], step->weight[0]->columns}};
        return shape_same(&plan->slots[y].shape, &want) ? NULL : "the output's shape is wrong";
    }
    case SETUN_STEP_NORM:
        if (step->weight_count > 1 || (step->weight_count == 1 && !is_vector(step->weight[0], setun_slot_width(&plan->slots[x])))) return "the weight is not one value a column";
        return is(plan, x, SETUN_F32) && is(plan, y, step->quantize ? SETUN_Q8 : SETUN_F32) && same(plan, x, y) ? NULL : "x and the output do not fit";
    case SETUN_STEP_QUANTIZE: return is(plan, x, SETUN_F32) && is(plan, y, SETUN_Q8) && same(plan, x, y) ? NULL : "x and the output do not fit";
    case SETUN_STEP_LINEAR: return check_linear(plan, step);
    case SETUN_STEP_UNARY:
        if (!activation_ok(step->activation) && step->activation != SETUN_OP_SCALE) return "the operation is not an unary one";
        return is(plan, x, SETUN_F32) && is(plan, y, SETUN_F32) && same(plan, x, y) ? NULL : "x and the output do not fit";
    case SETUN_STEP_BINARY:
        if (step->activation != SETUN_OP_ADD && step->activation != SETUN_OP_MULTIPLY) return "the operation is not a binary one";
        return is(plan, x, SETUN_F32) && is(plan, step->input[1], SETUN_F32) && is(plan, y, SETUN_F32) && same(plan, x, y) && same(plan, step->input[1], y) ? NULL : "a, b and the output do not fit";
    case SETUN_STEP_HADAMARD:
        if (step->block < 1 || (step->block & (step->block - 1)) || setun_slot_width(&plan->slots[x]) % step->block || (step->signs && step->sign_count != setun_slot_width(&plan->slots[x]))) return "the block or the signs do not fit";
        return is(plan, x, SETUN_F32) && is(plan, y, SETUN_F32) && same(plan, x, y) ? NULL : "x and the output do not fit";
    case SETUN_STEP_SOFTMAX:
    case SETUN_STEP_L2: return is(plan, x, SETUN_F32) && is(plan, y, SETUN_F32) && same(plan, x, y) ? NULL : "x and the output do not fit";
    case SETUN_STEP_SELECT: {
        const int rows = step->input[1];
        if (!is(plan, x, SETUN_F32) || !is(plan, rows, SETUN_I32) || !is(plan, y, SETUN_F32) || plan->slots[rows].shape.rank != 1) return "it must pick f32 rows by i32 numbers";
        setun_shape want = plan->slots[x].shape;
        want.dim[0] = plan->slots[rows].shape.dim[0];
        return shape_same(&plan->slots[y].shape, &want) ? NULL : "the output's shape is wrong";
    }
    case SETUN_STEP_ROPE: {
        const setun_shape *shape = &plan->slots[x].shape;
        if (!is(plan, x, SETUN_F32) || !is(plan, step->input[1], SETUN_I32) || !is(plan, y, SETUN_F32) || !same(plan, x, y)) return "x, positions and the output do not fit";
        return shape->rank == 3 && shape->dim[1] == step->heads && shape->dim[2] == step->head_size && step->rope.rotary >= 2 && step->rope.rotary <= step->head_size ? NULL : "the heads do not fit";
    }
    case SETUN_STEP_ATTENTION: return check_attention(plan, step);
    case SETUN_STEP_COUNT: break;
    }
    return "its kind is unknown";
}

/* ---- written once, before it is read ---- */

typedef struct values {
    int *producer;   /* [slot] step that writes it; -1 */
    int *value;      /* [slot] the slot that stands for the value it shows: itself, or what it is a view of */
    int *needed;     /* [slot] of a value: last step that reads it; INT32_MAX when a name keeps it */
} values;

static setun_status check_order(const setun_plan *plan, values *v) {
    for (int s = 0; s < plan->slot_count; s++) {
        const setun_slot *slot = &plan->slots[s];
        v->producer[s] = v->needed[s] = -1;
        if (slot->alias_of >= s || slot->alias_of < -1) return setun_fail(SETUN_ERROR_STATE, "plan: slot %d is a view of slot %d; please report this", s, slot->alias_of);
    }
    for (int i = 0; i < plan->step_count; i++)
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            int out = plan->steps[i].output[j];
            if (out < -1 || out >= plan->slot_count) return broken(i, &plan->steps[i], "an output is no slot");
            if (out < 0) continue;
            if (v->producer[out] >= 0 || plan->slots[out].place == SETUN_PLACE_INPUT) return broken(i, &plan->steps[i], "it writes what another step or the caller has written");
            v->producer[out] = i;
        }
    for (int s = 0; s < plan->slot_count; s++) {
        const setun_slot *slot = &plan->slots[s];
        bool view = v->producer[s] < 0 && slot->alias_of >= 0;
        v->value[s] = view ? v->value[slot->alias_of] : s;
        if (view && slot->dtype != plan->slots[slot->alias_of].dtype) return setun_fail(SETUN_ERROR_STATE, "plan: slot %d is a view of another dtype; please report this", s);
        if (slot->place == SETUN_PLACE_OUTPUT && v->producer[v->value[s]] < 0 && plan->slots[v->value[s]].place != SETUN_PLACE_INPUT) return setun_fail(SETUN_ERROR_STATE, "plan: output '%s' is never written; please report this", slot->name);
        if (slot->place != SETUN_PLACE_ARENA) v->needed[v->value[s]] = INT32_MAX;
    }
    for (int i = 0; i < plan->step_count; i++) {
        int reads[SETUN_STEP_READS];
        setun_step_reads(&plan->steps[i], reads);
        for (int j = 0; j < SETUN_STEP_READS; j++) {
            if (reads[j] < -1 || reads[j] >= plan->slot_count) return broken(i, &plan->steps[i], "an input is no slot");
            if (reads[j] < 0) continue;
            int value = v->value[reads[j]];
            if (plan->slots[value].place != SETUN_PLACE_INPUT && (v->producer[value] < 0 || v->producer[value] >= i)) return broken(i, &plan->steps[i], "it reads what is written later, or never");
            if (v->needed[value] < i) v->needed[value] = i;
        }
        const char *wrong = check_step(plan, &plan->steps[i]);
        if (wrong) return broken(i, &plan->steps[i], wrong);
    }
    return SETUN_OK;
}

/* ---- the arena ---- */

static bool overlap(const setun_slot *a, const setun_slot *b) { return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes; }

/* May the step write `out` over the value, which it reads for the last time? */
static bool may_overwrite(const setun_plan *plan, const values *v, int index, int out, int value) {
    const setun_step *step = &plan->steps[index];
    if (v->needed[value] != index || out != step->output[0] || plan->slots[out].offset != plan->slots[value].offset) return false;
    int reads[SETUN_STEP_READS];
    setun_step_reads(step, reads);
    for (int j = 0; j < SETUN_STEP_READS; j++)
        if (reads[j] >= 0 && v->value[reads[j]] == value && setun_step_in_place(plan, step, reads[j])) return true;
    return false;
}

/* Plays the run: the values alive are kept in a list, and every write is compared with all of them. */
static setun_status check_memory(const setun_plan *plan, const values *v, int *alive) {
    int count = 0;
    for (int s = 0; s < plan->slot_count; s++) {
        const setun_slot *slot = &plan->slots[s];
        uint64_t bytes;
        SETUN_TRY(setun_slot_bytes(slot, plan->tokens_max, plan->outputs_max, &bytes));
        if (slot->bytes != bytes || slot->offset % 64 || slot->offset > plan->arena_bytes || bytes > plan->arena_bytes - slot->offset) return setun_fail(SETUN_ERROR_STATE, "plan: slot %d lies outside the arena; please report this", s);
        if (slot->alias_of >= 0 && slot->offset != plan->slots[slot->alias_of].offset) return setun_fail(SETUN_ERROR_STATE, "plan: slot %d does not lie where the slot it shares memory with lies; please report this", s);
        if (slot->place == SETUN_PLACE_ARENA || slot->alias_of >= 0) continue;
        /* bytes with a name are the caller's for the whole run: they are alive before the first step */
        for (int i = 0; i < count; i++)
            if (overlap(&plan->slots[alive[i]], slot)) return setun_fail(SETUN_ERROR_STATE, "plan: '%s' and '%s' share memory; please report this", slot->name, plan->slots[alive[i]].name);
        alive[count++] = s;
    }
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            int out = step->output[j];
            if (out < 0) continue;
            int kept = 0;
            bool listed = false;
            for (int n = 0; n < count; n++) {
                int other = alive[n];
                if (v->needed[other] < i) continue; /* dead: drops out of the list */
                alive[kept++] = other;
                if (other == out) {
                    listed = true; /* an output with a name */
                    continue;
                }
                if (overlap(&plan->slots[other], &plan->slots[out]) && !may_overwrite(plan, v, i, out, other)) {
                    char what[128];
                    snprintf(what, sizeof what, "it writes slot %d over slot %d, which is still needed", out, other);
                    return broken(i, step, what);
                }
            }
            count = kept;
            if (!listed) {
                alive[count++] = out;
                if (v->needed[out] < i) v->needed[out] = i; /* nobody reads it: it needs its bytes in its own step */
            }
        }
    }
    return SETUN_OK;
}

setun_status setun_plan_verify(const setun_plan *plan) {
    if (!plan) return setun_fail(SETUN_ERROR_ARGUMENT, "plan is NULL");
    size_t slots = (size_t)plan->slot_count + 1;
    int *memory = setun_alloc(slots * 4 * sizeof *memory);
    if (!memory) return setun_fail_memory(slots * 4 * sizeof *memory);
    values v = {memory, memory + slots, memory + 2 * slots};
    setun_status status = check_order(plan, &v);
    if (status == SETUN_OK && plan->arena_bytes) status = check_memory(plan, &v, memory + 3 * slots);
    setun_free(memory);
    return status;
}
