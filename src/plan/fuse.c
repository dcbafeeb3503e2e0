/*
 * fuse.c - joins steps whose intermediate nobody else reads, one pattern a function. Each candidate is shown to the backend
 * before it replaces anything. Every fused step computes what its parts did, in the same arithmetic and order: fusing
 * changes what goes through memory, not the numbers. Called by setun_plan_build; knows no kernels.
 */
#include "plan/passes.h"

typedef struct fuser {
    setun_plan *plan;
    setun_supports_fn supports;
    int *producer; /* [slot] step that writes it; -1: none */
    int *uses;     /* [slot] readers: inputs, residuals, views, and 1 for a name */
} fuser;

static bool dead(const setun_step *step) { return step->kind == SETUN_STEP_COUNT; }

/* A view reads what it is a view of while anything reads the view. */
static void add_use(fuser *f, int slot) {
    while (slot >= 0 && f->uses[slot]++ == 0) slot = f->plan->slots[slot].alias_of;
}

static void drop_use(fuser *f, int slot) {
    while (slot >= 0 && --f->uses[slot] == 0) slot = f->plan->slots[slot].alias_of;
}

static void enter(fuser *f, int index) {
    const setun_step *step = &f->plan->steps[index];
    int reads[SETUN_STEP_READS];
    setun_step_reads(step, reads);
    for (int j = 0; j < SETUN_STEP_READS; j++) add_use(f, reads[j]);
    for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
        if (step->output[j] >= 0) f->producer[step->output[j]] = index;
}

static void leave(fuser *f, setun_step *step) {
    int reads[SETUN_STEP_READS];
    setun_step_reads(step, reads);
    for (int j = 0; j < SETUN_STEP_READS; j++) drop_use(f, reads[j]);
    for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
        if (step->output[j] >= 0) f->producer[step->output[j]] = -1;
    step->kind = SETUN_STEP_COUNT;
}

/* The step of this kind that writes the slot, when nobody but the caller reads it. */
static setun_step *sole_producer(fuser *f, int slot, setun_step_kind kind) {
    if (slot < 0 || f->uses[slot] != 1 || f->producer[slot] < 0) return NULL;
    setun_step *step = &f->plan->steps[f->producer[slot]];
    return step->kind == kind ? step : NULL;
}

/* One lock guards a step's weights: two models can't meet in it. */
static bool join_model(setun_step *into, const setun_step *from) {
    if (into->model && from->model && into->model != from->model) return false;
    if (from->model) into->model = from->model;
    return true;
}

/* Appends "+name"; what does not fit is cut. */
static void join_name(setun_step *into, const char *name) {
    size_t used = strlen(into->fused);
    snprintf(into->fused + used, sizeof into->fused - used, "+%s", name);
}

/* candidate takes the place of `at`; the other parts go. */
static bool commit(fuser *f, const setun_step *candidate, setun_step *at, setun_step *const *parts, int part_count) {
    if (f->supports && !f->supports(f->plan->backend, candidate)) return false;
    for (int i = 0; i < part_count; i++) leave(f, parts[i]);
    f->plan->stats.fused_nodes += part_count - 1;
    *at = *candidate;
    enter(f, (int)(at - f->plan->steps));
    return true;
}

static bool plain_linear(const setun_step *step) { return step && step->kind == SETUN_STEP_LINEAR && step->weight_count == 1 && !step->gated && step->factor == 1 && step->residual < 0; }

static void take_linear(setun_step *into, int index, const setun_step *from) {
    into->weight[index] = from->weight[0];
    into->bias[index] = from->bias[0];
    into->weight_count = index + 1;
}

/* ---- the patterns; each looks at the step that ends it and returns whether it fused ---- */

/* multiply(act(linear(x)), linear(x)) -> gated linear */
static bool fuse_gated(fuser *f, setun_step *multiply) {
    if (multiply->kind != SETUN_STEP_BINARY || multiply->activation != SETUN_OP_MULTIPLY) return false;
    for (int side = 0; side < 2; side++) {
        setun_step *act = sole_producer(f, multiply->input[side], SETUN_STEP_UNARY);
        setun_step *up = sole_producer(f, multiply->input[1 - side], SETUN_STEP_LINEAR);
        if (!act || act->activation == SETUN_OP_SCALE || !plain_linear(up)) continue;
        setun_step *gate = sole_producer(f, act->input[0], SETUN_STEP_LINEAR);
        if (!plain_linear(gate) || gate->input[0] != up->input[0] || gate->weight[0]->rows != up->weight[0]->rows) continue;
        setun_step joined = *gate;
        if (!join_model(&joined, up)) continue;
        take_linear(&joined, 1, up);
        joined.gated = true;
        joined.activation = act->activation;
        joined.output[0] = multiply->output[0];
        join_name(&joined, "linear");
        join_name(&joined, setun_op_name(act->activation));
        join_name(&joined, "multiply");
        setun_step *parts[4] = {gate, up, act, multiply};
        if (commit(f, &joined, multiply, parts, 4)) return true;
    }
    return false;
}

/* scale(linear) -> its factor; add(linear, r) or add(r, linear) -> its residual */
static bool fuse_epilogue(fuser *f, setun_step *last) {
    bool scale = last->kind == SETUN_STEP_UNARY && last->activation == SETUN_OP_SCALE;
    bool add = last->kind == SETUN_STEP_BINARY && last->activation == SETUN_OP_ADD;
    if (!scale && !add) return false;
    /* of two linears the second operand is taken: builders write x + block(x) */
    for (int side = add ? 1 : 0; side >= 0; side--) {
        setun_step *linear = sole_producer(f, last->input[side], SETUN_STEP_LINEAR);
        if (!linear || (linear->weight_count > 1 && !linear->gated) || linear->residual >= 0) continue;
        if (scale && linear->factor != 1) continue; /* two factors would round differently when multiplied first */
        setun_step joined = *linear;
        joined.output[0] = last->output[0];
        if (scale) joined.factor = last->factor;
        else joined.residual = last->input[1 - side];
        join_name(&joined, scale ? "scale" : "add");
        setun_step *parts[2] = {linear, last};
        if (commit(f, &joined, last, parts, 2)) return true;
    }
    return false;
}

static bool fuse_embedding_scale(fuser *f, setun_step *scale) {
    if (scale->kind != SETUN_STEP_UNARY || scale->activation != SETUN_OP_SCALE) return false;
    setun_step *embedding = sole_producer(f, scale->input[0], SETUN_STEP_EMBEDDING);
    if (!embedding || embedding->factor != 1) return false;
    setun_step joined = *embedding;
    joined.factor = scale->factor;
    joined.output[0] = scale->output[0];
    join_name(&joined, "scale");
    setun_step *parts[2] = {embedding, scale};
    return commit(f, &joined, scale, parts, 2);
}

static bool fuse_norm_quantize(fuser *f, setun_step *quantize) {
    if (quantize->kind != SETUN_STEP_QUANTIZE) return false;
    setun_step *norm = sole_producer(f, quantize->input[0], SETUN_STEP_NORM);
    if (!norm || norm->quantize) return false;
    setun_step joined = *norm;
    joined.quantize = true;
    joined.output[0] = quantize->output[0];
    join_name(&joined, "quantize");
    setun_step *parts[2] = {norm, quantize};
    return commit(f, &joined, quantize, parts, 2);
}

static bool same_rope(const setun_rope_spec *a, const setun_rope_spec *b) {
    return a->theta == b->theta && a->rotary == b->rotary && a->interleaved == b->interleaved && a->scale == b->scale && a->magnitude == b->magnitude && a->factors == b->factors;
}

/* A norm over each head just before the slot, or NULL. */
static setun_step *head_norm(fuser *f, int slot, int head_size) {
    setun_step *norm = sole_producer(f, slot, SETUN_STEP_NORM);
    return norm && !norm->quantize && setun_slot_width(&f->plan->slots[slot]) == head_size ? norm : NULL;
}

/* attention(rope(norm(q)), rope(norm(k)), v) -> one step. Rotations go in only together, as the step has one; norms only
 * beneath them. First all, then the rotations alone. */
static bool fuse_attention(fuser *f, setun_step *attention) {
    if (attention->kind != SETUN_STEP_ATTENTION || attention->has_rope || attention->norm_q || attention->norm_k) return false;
    setun_step *rope_q = sole_producer(f, attention->input[0], SETUN_STEP_ROPE), *rope_k = sole_producer(f, attention->input[1], SETUN_STEP_ROPE);
    bool roped = rope_q && rope_k;
    if (roped && (rope_q->input[1] != rope_k->input[1] || !same_rope(&rope_q->rope, &rope_k->rope))) return false;
    if (!roped && (rope_q || rope_k)) return false;
    int q = roped ? rope_q->input[0] : attention->input[0], k = roped ? rope_k->input[0] : attention->input[1];
    setun_step *norm_q = head_norm(f, q, attention->head_size), *norm_k = head_norm(f, k, attention->head_size);
    for (int norms = 1; norms >= 0; norms--) {
        if (!norms) norm_q = norm_k = NULL;
        if (!roped && !norm_q && !norm_k) return false;
        setun_step joined = *attention;
        setun_step *parts[5];
        int part_count = 0;
        joined.fused[0] = 0;
        joined.input[0] = q;
        joined.input[1] = k;
        bool one_model = true;
        for (int i = 0; i < 2; i++) {
            setun_step *norm = i ? norm_k : norm_q;
            if (!norm) continue;
            joined.input[i] = norm->input[0];
            joined.weight_count = 2;
            joined.weight[i] = norm->weight_count ? norm->weight[0] : NULL;
            *(i ? &joined.norm_k : &joined.norm_q) = true;
            *(i ? &joined.epsilon_k : &joined.epsilon) = norm->epsilon;
            *(i ? &joined.one_plus_k : &joined.one_plus) = norm->one_plus;
            one_model = one_model && join_model(&joined, norm);
            join_name(&joined, "rms_norm");
            parts[part_count++] = norm;
        }
        if (!one_model) continue;
        if (roped) {
            joined.input[3] = rope_q->input[1];
            joined.has_rope = true;
            joined.rope = rope_q->rope;
            join_name(&joined, "rope+rope");
            parts[part_count++] = rope_q;
            parts[part_count++] = rope_k;
        }
        join_name(&joined, "attention");
        memmove(joined.fused, joined.fused + 1, strlen(joined.fused)); /* the first '+' */
        parts[part_count++] = attention;
        if (commit(f, &joined, attention, parts, part_count)) return true;
    }
    return false;
}

/* How far the second may be: results that are made long before they are read only fill memory. */
#define LINEARS_WINDOW 64

/* linears over one x -> up to three in one step, at the place of the first */
static bool fuse_linears(fuser *f, setun_step *first) {
    if (!plain_linear(first) || f->uses[first->input[0]] < 2) return false;
    bool fused = false;
    setun_step *end = f->plan->steps + f->plan->step_count;
    if (end - first > LINEARS_WINDOW) end = first + LINEARS_WINDOW;
    for (setun_step *next = first + 1; next < end && first->weight_count < SETUN_STEP_WEIGHTS; next++) {
        if (!plain_linear(next) || next->input[0] != first->input[0]) continue;
        setun_step joined = *first;
        if (!join_model(&joined, next)) continue;
        joined.output[first->weight_count] = next->output[0];
        take_linear(&joined, first->weight_count, next);
        join_name(&joined, "linear");
        setun_step *parts[2] = {next, first};
        fused |= commit(f, &joined, first, parts, 2);
    }
    return fused;
}

/* The order matters: what ends in one output first, so that only linears that feed several readers are grouped. */
static bool (*const patterns[])(fuser *, setun_step *) = {fuse_embedding_scale, fuse_norm_quantize, fuse_gated, fuse_epilogue, fuse_attention, fuse_linears};

setun_status setun_plan_fuse(setun_plan *plan, setun_supports_fn supports) {
    int *memory = setun_calloc((size_t)plan->slot_count * 2 + 1, sizeof *memory);
    if (!memory) return setun_fail(SETUN_ERROR_MEMORY, "out of memory: the uses of %d slots", plan->slot_count);
    fuser f = {.plan = plan, .supports = supports, .producer = memory, .uses = memory + plan->slot_count};
    for (int i = 0; i < plan->slot_count; i++) f.producer[i] = -1;
    for (int i = 0; i < plan->slot_count; i++)
        if (plan->slots[i].place == SETUN_PLACE_OUTPUT) add_use(&f, i); /* the caller reads it */
    for (int i = 0; i < plan->step_count; i++) enter(&f, i);
    for (size_t p = 0; p < sizeof patterns / sizeof patterns[0]; p++)
        for (int i = 0; i < plan->step_count; i++)
            if (!dead(&plan->steps[i])) patterns[p](&f, &plan->steps[i]);
    setun_free(memory);
    int kept = 0;
    for (int i = 0; i < plan->step_count; i++)
        if (!dead(&plan->steps[i])) plan->steps[kept++] = plan->steps[i];
    plan->step_count = kept;
    return setun_plan_compact(plan);
}
