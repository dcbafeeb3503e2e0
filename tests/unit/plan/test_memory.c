/* test_memory.c - the arena, proven by playing random tapes byte by byte; verify against broken plans; dump; allocation failures. */
#include "plan/passes.h"
#include "unit/plan/random_graph.h"
#include <time.h>

static struct setun_context context;

/* ---- the proof: play the tape on real memory ---- */

static bool elementwise_in_place(const setun_step *step, int read_index) { /* plan.h's list, written again */
    if (step->kind == SETUN_STEP_UNARY) return read_index == 0;
    if (step->kind == SETUN_STEP_BINARY) return read_index == 0 || read_index == 1;
    if (step->kind == SETUN_STEP_NORM) return read_index == 0 && !step->quantize;
    return step->kind == SETUN_STEP_LINEAR && read_index == 4;
}

/* Every value fills its bytes with its number; every read must find the number of the value it means. */
static void play(const setun_plan *plan, uint64_t *lower_bound) {
    uint32_t *arena = calloc(1, (size_t)plan->arena_bytes + 64);
    int *value = calloc((size_t)plan->slot_count + 1, sizeof *value); /* which value a slot shows */
    bool *produced = calloc((size_t)plan->slot_count + 1, sizeof *produced);
    for (int i = 0; i < plan->step_count; i++)
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++)
            if (plan->steps[i].output[j] >= 0) produced[plan->steps[i].output[j]] = true;
    for (int s = 0; s < plan->slot_count; s++) {
        const setun_slot *slot = &plan->slots[s];
        assert_true(slot->offset % 64 == 0 && slot->offset + slot->bytes <= plan->arena_bytes);
        value[s] = produced[s] || slot->alias_of < 0 ? s : value[slot->alias_of];
        if (value[s] == s && !produced[s]) {
            assert_int_equal(slot->place, SETUN_PLACE_INPUT);
            for (uint64_t b = 0; b < slot->bytes / 4; b++) arena[slot->offset / 4 + b] = (uint32_t)s + 1;
        }
    }
    int *last = calloc((size_t)plan->slot_count + 1, sizeof *last), *first = calloc((size_t)plan->slot_count + 1, sizeof *first);
    for (int s = 0; s < plan->slot_count; s++) last[s] = -1;
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *step = &plan->steps[i];
        int reads[SETUN_STEP_READS];
        setun_step_reads(step, reads);
        for (int j = 0; j < SETUN_STEP_READS; j++) {
            if (reads[j] < 0) continue;
            const setun_slot *in = &plan->slots[reads[j]];
            assert_true(in->first_step <= i && i <= in->last_step);
            last[value[reads[j]]] = i;
            for (uint64_t b = 0; b < in->bytes / 4; b++)
                if (arena[in->offset / 4 + b] != (uint32_t)value[reads[j]] + 1) fail_msg("step %d (%s) reads slot %d and finds value %d", i, step->fused, reads[j], (int)arena[in->offset / 4 + b] - 1);
            for (int k = 0; k < SETUN_STEP_WEIGHTS; k++) { /* what it reads may lie under what it writes only by the list */
                if (step->output[k] < 0) continue;
                const setun_slot *out = &plan->slots[step->output[k]];
                if (in->offset < out->offset + out->bytes && out->offset < in->offset + in->bytes && !(k == 0 && in->offset == out->offset && in->bytes == out->bytes && elementwise_in_place(step, j)))
                    fail_msg("step %d (%s) writes over what it reads", i, step->fused);
            }
        }
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            if (step->output[j] < 0) continue;
            const setun_slot *out = &plan->slots[step->output[j]];
            first[step->output[j]] = i;
            if (last[step->output[j]] < i) last[step->output[j]] = i;
            for (uint64_t b = 0; b < (out->bytes + 3) / 4; b++) arena[out->offset / 4 + b] = (uint32_t)step->output[j] + 1;
        }
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) /* outputs of one step do not hit each other */
            if (step->output[j] >= 0) assert_int_equal(arena[plan->slots[step->output[j]].offset / 4], step->output[j] + 1);
    }
    for (int s = 0; s < plan->slot_count; s++) { /* inputs are untouched (a second run needs them), outputs are there */
        const setun_slot *slot = &plan->slots[s];
        if (slot->place == SETUN_PLACE_ARENA) continue;
        assert_int_equal(slot->first_step, 0);
        assert_int_equal(slot->last_step, plan->step_count ? plan->step_count - 1 : 0);
        if (slot->place == SETUN_PLACE_INPUT) first[s] = -1;
        last[value[s]] = plan->step_count;
        for (uint64_t b = 0; b < slot->bytes / 4; b++) assert_int_equal(arena[slot->offset / 4 + b], value[s] + 1);
    }
    /* No arena can be smaller than the values that are alive together; an output over a dying input counts once. */
    *lower_bound = 0;
    for (int i = 0; i < plan->step_count; i++) {
        uint64_t alive = 0;
        for (int s = 0; s < plan->slot_count; s++)
            if (value[s] == s && first[s] < i && last[s] >= i) alive += plan->slots[s].bytes;
        if (alive > *lower_bound) *lower_bound = alive;
    }
    free(arena), free(value), free(produced), free(last), free(first);
}

static bool everything(const setun_backend *backend, const setun_step *step) {
    (void)backend, (void)step;
    return true;
}

static void random_tapes_keep_every_value(void **state) {
    (void)state;
    uint64_t seed = (uint64_t)time(NULL) * 2654435761u + 1;
    const char *given = getenv("SETUN_TEST_SEED");
    if (given) seed = strtoull(given, NULL, 0);
    print_message("seed %llu\n", (unsigned long long)seed);
    double worst = 0, sum = 0, reuse = 0;
    int plans = 0, shared = 0;
    for (int n = 0; n < 150; n++) {
        uint64_t own = seed + (uint64_t)n * 7919;
        setun_graph *g = random_graph(&context, &own, 5 + (int)(test_random(&own) % 90), n % 2);
        for (int fused = 0; fused < 2; fused++) {
            setun_plan_options options = {.tokens_max = 1 + (int)(test_random(&own) % 9), .no_fusion = !fused, .supports = everything};
            setun_plan *plan;
            if (setun_plan_build(g, NULL, &options, &plan) != SETUN_OK) fail_msg("graph %d: %s", n, setun_error());
            uint64_t bound;
            play(plan, &bound);
            assert_true(plan->arena_bytes <= plan->stats.arena_bytes_without_reuse);
            assert_true(plan->arena_bytes >= bound);
            for (int s = 0; s < plan->slot_count; s++) shared += plan->slots[s].alias_of >= 0 && plan->slots[s].place == SETUN_PLACE_ARENA && plan->slots[s].first_step > plan->slots[plan->slots[s].alias_of].first_step;
            double ratio = bound ? (double)plan->arena_bytes / (double)bound : 1;
            if (ratio > worst) worst = ratio;
            sum += ratio;
            reuse += (double)plan->arena_bytes / (double)plan->stats.arena_bytes_without_reuse;
            plans++;
            setun_plan_free(plan);
        }
        setun_graph_destroy(g);
    }
    print_message("%d plans: arena / lower bound %.3f on average, %.3f at worst; arena / without reuse %.3f; %d values in place of another\n", plans, sum / plans, worst, reuse / plans, shared);
    assert_true(shared > 100); /* in-place reuse is exercised */
}

static void a_chain_of_values_lies_in_one_place(void **state) {
    (void)state;
    setun_graph *g;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 64)), y = setun_graph_softmax(g, x); /* softmax may not lie on x */
    for (int i = 0; i < 3; i++) {
        y = setun_graph_scale(g, setun_graph_silu(g, y), 2);
        y = setun_graph_rms_norm(g, setun_graph_reshape(g, y, S(T, 8, 8)), NONE, 1e-5f, false);
        y = setun_graph_multiply(g, x, setun_graph_add(g, setun_graph_reshape(g, y, S(T, 64)), x));
    }
    setun_graph_output(g, y, "out");
    setun_plan *plan;
    setun_plan_options options = {.tokens_max = 3};
    if (setun_plan_build(g, NULL, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
    uint64_t bound;
    play(plan, &bound);
    assert_int_equal(plan->arena_bytes, 2 * 3 * 64 * 4); /* the input, and one place for the sixteen others */
    setun_plan_free(plan);
    setun_graph_destroy(g);
}

/* ---- verify: break one thing of a good plan ---- */

static setun_plan *gated_plan(setun_graph **out_graph) {
    setun_graph *g;
    static float values[160 * 160];
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    for (int i = 0; i < 160 * 160; i++) values[i] = (float)(i % 9) - 4.5f;
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 64)), ids = setun_graph_input(g, "ids", SETUN_I32, S(T));
    setun_node w = setun_graph_weight(g, "w", S(64, 64), values), v = setun_graph_weight(g, "v", S(64), values);
    setun_node e = setun_graph_embedding(g, w, ids);
    setun_node n = setun_graph_rms_norm(g, setun_graph_add(g, e, x), v, 1e-5f, false);
    setun_node a = setun_graph_linear(g, w, n, NONE), b = setun_graph_scale(g, a, 3);
    setun_node h = setun_graph_reshape(g, setun_graph_add(g, n, a), S(T, 2, 32));
    setun_attention_options cached = {.size = sizeof cached, .cache_layer = 1};
    setun_node att = setun_graph_attention(g, setun_graph_rope(g, h, ids, NULL), h, h, &cached);
    setun_node s = setun_graph_select_rows(g, setun_graph_add(g, b, att), ids);
    setun_graph_output(g, setun_graph_l2_normalize(g, setun_graph_hadamard(g, setun_graph_softmax(g, s), 32, NULL, 0, false)), "out");
    setun_plan *plan;
    setun_plan_options options = {.tokens_max = 4, .no_fusion = true};
    if (setun_plan_build(g, NULL, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
    *out_graph = g;
    return plan;
}

static setun_step *step_of(setun_plan *plan, setun_step_kind kind) {
    for (int i = 0; i < plan->step_count; i++)
        if (plan->steps[i].kind == kind) return &plan->steps[i];
    fail_msg("no %s", setun_step_name(kind));
    return NULL;
}

static void verify_finds_broken_tapes(void **state) {
    (void)state;
    static const setun_weight other = {.rows = 1, .columns = 7};
    for (int what = 0;; what++) {
        setun_graph *g;
        setun_plan *plan = gated_plan(&g);
        assert_int_equal(setun_plan_verify(plan), SETUN_OK);
        setun_slot *slots = plan->slots;
        int x = setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "x"), out = setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "out");
        setun_step *linear = step_of(plan, SETUN_STEP_LINEAR), *norm = step_of(plan, SETUN_STEP_NORM), *attention = step_of(plan, SETUN_STEP_ATTENTION), *last = &plan->steps[plan->step_count - 1];
        setun_step *soft = step_of(plan, SETUN_STEP_SOFTMAX), *hadamard = step_of(plan, SETUN_STEP_HADAMARD), *rope = step_of(plan, SETUN_STEP_ROPE), *select = step_of(plan, SETUN_STEP_SELECT);
        bool more = true;
        switch (what) {
        case 0: last->kind = SETUN_STEP_COUNT; break;
        case 1: last->input[0] = -1; break;
        case 2: last->input[0] = plan->slot_count; break;
        case 3: last->input[0] = last->output[0]; break;                 /* reads what it writes itself */
        case 4: plan->steps[0].input[0] = soft->output[0]; break;        /* reads what comes later */
        case 5: last->output[0] = plan->slot_count; break;
        case 6: last->output[0] = x; break;                              /* writes an input */
        case 7: last->output[0] = soft->output[0]; break;                /* writes a value again; the output never */
        case 8: slots[out].dtype = SETUN_I32; break;
        case 9: slots[norm->output[0]].shape.dim[1] = 32; break;
        case 10: linear->weight_count = 0; break;
        case 11: linear->weight_count = 2; break;
        case 12: linear->gated = true; break;
        case 13: linear->quantized_input = true; break;
        case 14: linear->residual = step_of(plan, SETUN_STEP_ROPE)->input[1]; break;
        case 15: linear->bias[0] = &other; break;
        case 16: linear->weight[0] = &other; break;
        case 17: norm->quantize = true; break;
        case 18: norm->weight[0] = &other; break;
        case 19: attention->heads = 3; break;
        case 20: attention->kv_heads = 1; break;
        case 21: attention->has_rope = true; break;
        case 22: attention->input[3] = rope->input[1]; break;
        case 23: attention->attention.cache_layer = 2; break;
        case 24: plan->cache_head_size = 16; break;
        case 25: attention->weight[0] = &other; break;
        case 26: hadamard->block = 48; break;
        case 27: rope->heads = 1; break;
        case 28: select->input[1] = select->input[0]; break;
        case 29: soft->residual = soft->input[0]; break;
        case 30: step_of(plan, SETUN_STEP_UNARY)->activation = SETUN_OP_ADD; break;
        case 31: step_of(plan, SETUN_STEP_BINARY)->activation = SETUN_OP_SCALE; break;
        case 32: step_of(plan, SETUN_STEP_EMBEDDING)->weight_count = 0; break;
        /* memory */
        case 33: slots[out].offset += 32; break;                         /* not aligned */
        case 34: slots[out].offset = plan->arena_bytes; break;           /* outside */
        case 35: slots[out].bytes -= 4; break;
        case 36: plan->arena_bytes -= 64; break;
        case 37: slots[out].offset = slots[x].offset; break;             /* over an input */
        case 38: slots[linear->output[0]].offset = slots[linear->input[0]].offset; break; /* a linear over its x */
        case 39: slots[attention->output[0]].offset = slots[attention->input[0]].offset; break;
        case 40: slots[soft->output[0]].offset = slots[soft->input[0]].offset; break; /* softmax is not on the list */
        case 41: slots[x].alias_of = out; break;
        case 42: slots[out].alias_of = x; break;                         /* says it shares, lies elsewhere */
        case 43: { /* swaps two steps */
            setun_step t = plan->steps[2];
            plan->steps[2] = plan->steps[3];
            plan->steps[3] = t;
            break;
        }
        case 44: slots[rope->input[1]].dtype = SETUN_F32; break;
        case 45: slots[attention->input[1]].shape.dim[0] = 4; break;
        default: more = false;
        }
        setun_status status = setun_plan_verify(plan);
        setun_plan_free(plan);
        setun_graph_destroy(g);
        if (!more) {
            assert_int_equal(status, SETUN_OK);
            break;
        }
        if (status != SETUN_ERROR_STATE) fail_msg("broken rule %d was not found", what);
        assert_non_null(strstr(setun_error(), "plan: "));
    }
    assert_int_equal(setun_plan_verify(NULL), SETUN_ERROR_ARGUMENT);
}

/* ---- sizes ---- */

static void absurd_sizes_are_refused(void **state) {
    (void)state;
    setun_graph *g;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, (int64_t)1 << 39));
    for (int i = 0; i < 3; i++) x = setun_graph_softmax(g, x);
    setun_graph_output(g, x, "out");
    setun_plan *plan;
    setun_plan_options huge = {.tokens_max = INT32_MAX}, negative = {.tokens_max = -1}, fine = {.tokens_max = 1};
    assert_int_equal(setun_plan_build(g, NULL, &huge, &plan), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "tokens_max"));
    assert_int_equal(setun_plan_build(g, NULL, &negative, &plan), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_build(g, NULL, &fine, NULL), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_build(NULL, NULL, &fine, &plan), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_build(g, NULL, &fine, &plan), SETUN_OK);
    assert_true(plan->arena_bytes >= (uint64_t)3 << 41); /* nothing is allocated here */
    setun_plan_free(plan);
    setun_graph_destroy(g);
    /* an error of the builder comes out of compiling */
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    setun_graph_output(g, setun_graph_silu(g, setun_graph_scale(g, 77, 2)), "out");
    assert_int_equal(setun_plan_build(g, NULL, &fine, &plan), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "scale: input 0 is node 77"));
    assert_null(plan);
    setun_graph_destroy(g);
    setun_plan_free(NULL);
}

static void q8_slots_have_room(void **state) {
    (void)state;
    const int64_t cases[][2] = {{1, 1}, {3, 127}, {3, 128}, {7, 129}, {512, 5460}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        setun_slot slot = {.dtype = SETUN_Q8, .shape = {2, {T, cases[i][1]}}};
        uint64_t bytes;
        assert_int_equal(setun_slot_bytes(&slot, (int)cases[i][0], 1, &bytes), SETUN_OK);
        uint64_t rows = (uint64_t)cases[i][0], stride = (uint64_t)(cases[i][1] + 127) / 128 * 128;
        assert_true(bytes >= rows * stride + rows * 4 + rows * 4 && bytes <= rows * stride + rows * 8 + 64);
    }
    setun_slot heads = {.dtype = SETUN_F32, .shape = {3, {T, 4, 32}}}, outputs = {.dtype = SETUN_I32, .shape = {1, {SETUN_DIM_OUTPUTS}}};
    uint64_t bytes;
    assert_int_equal(setun_slot_bytes(&heads, 5, 1, &bytes), SETUN_OK);
    assert_int_equal(bytes, 5 * 4 * 32 * 4);
    assert_int_equal(setun_slot_bytes(&outputs, 5, 3, &bytes), SETUN_OK);
    assert_int_equal(bytes, 12);
}

/* ---- schedule ---- */

static void the_schedule_saves_memory_where_it_can(void **state) {
    (void)state;
    /* eight wide values are all made first, then each is shrunk: taking them one by one needs one wide value at a time */
    setun_graph *g;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    static float values[1024 * 16];
    for (int i = 0; i < 1024 * 16; i++) values[i] = (float)(i % 9) - 4.5f;
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 16)), wide[8];
    setun_node up = setun_graph_weight(g, "up", S(1024, 16), values), down = setun_graph_weight(g, "down", S(16, 1024), values), sum = x;
    for (int i = 0; i < 8; i++) wide[i] = setun_graph_linear(g, up, setun_graph_scale(g, x, 1.0f + (float)i), NONE);
    for (int i = 0; i < 8; i++) sum = setun_graph_add(g, sum, setun_graph_linear(g, down, wide[i], NONE));
    setun_graph_output(g, sum, "sum");
    for (int fused = 0; fused < 2; fused++) {
        setun_plan *plan;
        setun_plan_options options = {.tokens_max = 4, .no_fusion = !fused};
        if (setun_plan_build(g, NULL, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
        uint64_t bound;
        play(plan, &bound);
        assert_true(plan->arena_bytes < 2 * 4 * 1024 * 4);
        setun_plan_free(plan);
    }
    setun_graph_destroy(g);
}

/* Twenty times the nodes of a model: planning must not take minutes. */
static void large_graphs_are_planned_in_time(void **state) {
    (void)state;
    setun_graph *g;
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    static float values[32 * 32];
    for (int i = 0; i < 32 * 32; i++) values[i] = (float)(i % 9) - 4.5f;
    setun_node x = setun_graph_input(g, "x", SETUN_F32, S(T, 32)), w = setun_graph_weight(g, "w", S(32, 32), values), old[16], sum = x;
    for (int i = 0; i < 16; i++) old[i] = x;
    int n = 0;
    for (; g->node_count < 12000; n++) { /* fusible pairs, several linears an input, values that live for long */
        old[n % 16] = sum = setun_graph_add(g, setun_graph_linear(g, w, sum, NONE), setun_graph_scale(g, old[n % 16], 1.0f + (float)n));
        if (n % 5 == 0) sum = setun_graph_add(g, setun_graph_linear(g, w, sum, NONE), old[(n + 3) % 16]);
    }
    setun_graph_output(g, sum, "out");
    for (int fused = 0; fused < 2; fused++) {
        setun_plan *plan;
        setun_plan_options options = {.tokens_max = 2, .no_fusion = !fused};
        double before = setun_seconds();
        if (setun_plan_build(g, NULL, &options, &plan) != SETUN_OK) fail_msg("%s", setun_error());
        print_message("%d nodes, %d steps: %.2f s\n", plan->stats.graph_nodes, plan->step_count, setun_seconds() - before);
        assert_true(setun_seconds() - before < 60); /* takes a fraction of a second; slow machines, sanitizers, emulators */
        assert_true(fused ? plan->stats.fused_nodes > 4000 : plan->stats.fused_nodes == 0);
        setun_plan_free(plan);
    }
    while (setun_graph_silu(g, x) != NONE) {}
    assert_non_null(strstr(g->error_message, "32768 nodes"));
    setun_graph_destroy(g);
}

/* ---- dump ---- */

static void dump_says_all(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    test_model m;
    setun_graph *g;
    test_model_create(&m, &h, TEST_SUB_NORMS | TEST_BIASES);
    assert_int_equal(setun_graph_create(&context, &g), SETUN_OK);
    assert_int_equal(setun_transformer_build(g, &m.model, NULL), SETUN_OK);
    setun_plan_options options = {.tokens_max = 8};
    setun_plan *plan;
    assert_int_equal(setun_plan_build(g, NULL, &options, &plan), SETUN_OK);
    setun_graph_destroy(g);
    /* what a backend would say */
    double seconds[16];
    for (int i = 0; i < plan->step_count; i++) {
        setun_step *s = &plan->steps[i];
        seconds[i] = 0.001 * (i + 1);
        s->kernel = "kernel[test]";
        for (int j = 0; j < s->weight_count; j++) {
            bool dense = s->kind == SETUN_STEP_EMBEDDING || !s->quantized_input;
            s->report[j] = (setun_weight_report){dense ? SETUN_WEIGHT_MAPPED : SETUN_WEIGHT_PACKED, 1000, dense ? "f32" : "packed-2bit", dense ? NULL : "fewest bytes"};
            s->bias_report[j] = (setun_weight_report){SETUN_WEIGHT_COPIED, 10, "f32", NULL};
        }
    }
    char *text;
    assert_int_equal(setun_plan_dump(plan, true, seconds, &text), SETUN_OK);
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    if (!root) fail_msg("line %d: %s\n%s", error.line, error.text, text);
    json_t *steps = json_object_get(root, "steps"), *step = json_array_get(steps, 3), *totals = json_object_get(root, "totals");
    assert_int_equal(json_array_size(steps), 14);
    assert_int_equal(json_array_size(json_object_get(root, "slots")), plan->slot_count);
    assert_string_equal(json_string_value(json_object_get(step, "kind")), "linear");
    assert_int_equal(json_array_size(json_object_get(step, "operations")), 3);
    assert_int_equal(json_array_size(json_object_get(step, "outputs")), 3);
    assert_int_equal(json_array_size(json_object_get(step, "weights")), 6);
    json_t *weight = json_array_get(json_object_get(step, "weights"), 0);
    assert_string_equal(json_string_value(json_object_get(weight, "origin")), "packed");
    assert_string_equal(json_string_value(json_object_get(weight, "layout")), "packed-2bit");
    assert_string_equal(json_string_value(json_object_get(weight, "name")), "blk.0.attn_q");
    assert_true(json_real_value(json_object_get(step, "seconds")) == 0.004);
    assert_int_equal(json_integer_value(json_object_get(totals, "arena_bytes")), (json_int_t)plan->arena_bytes);
    assert_int_equal(json_integer_value(json_object_get(totals, "fused_nodes")), 13);
    json_t *weights = json_object_get(totals, "weights");
    /* 7 ternary linears; 4 norms, the output norm and the embedding, which the head uses again, are mapped; 7 biases */
    assert_int_equal(json_integer_value(json_object_get(json_object_get(weights, "packed"), "count")), 7);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(weights, "packed"), "bytes")), 7000);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(weights, "mapped"), "count")), 6);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(weights, "copied"), "bytes")), 70);
    json_decref(root);
    setun_free(text);
    assert_int_equal(setun_plan_dump(plan, false, seconds, &text), SETUN_OK);
    const char *words[] = {"linear+linear+silu+multiply", "kernel[test]", "packed-2bit", "(fewest bytes)", "[T, 128]", "'logits'", "mapped 6", "in place of", "14 steps", "cache: 1 layers of 2 x 32", "blk.0.ffn_up"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strstr(text, words[i])) fail_msg("'%s' is not in:\n%s", words[i], text);
    setun_free(text);
    assert_int_equal(setun_plan_dump(plan, false, NULL, &text), SETUN_OK);
    assert_null(strstr(text, " us "));
    setun_free(text);
    assert_int_equal(setun_plan_dump(NULL, false, NULL, &text), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_plan_dump(plan, false, NULL, NULL), SETUN_ERROR_ARGUMENT);
    setun_plan_free(plan);
    test_model_destroy(&m);
}

/* ---- allocation failures, release ---- */

static int released;
static void count_release(const setun_backend *backend, setun_plan *plan) {
    (void)backend, (void)plan;
    released++;
}

static void allocation_failures_are_survived(void **state) {
    (void)state;
    setun_hparams h = test_hparams(1);
    test_model m;
    test_model_create(&m, &h, TEST_SUB_NORMS | TEST_QK_NORM);
    int failures = 0;
    for (uint64_t n = 1;; n++) {
        int64_t live = setun_alloc_live();
        setun_graph *g = NULL;
        setun_plan *plan = NULL;
        char *text = NULL;
        setun_alloc_fail_at(n);
        setun_status status = setun_graph_create(&context, &g);
        if (status == SETUN_OK) status = setun_transformer_build(g, &m.model, NULL);
        setun_plan_options options = {.tokens_max = 8};
        if (status == SETUN_OK) status = setun_plan_build(g, NULL, &options, &plan);
        if (status == SETUN_OK) status = setun_plan_dump(plan, true, NULL, &text);
        setun_alloc_fail_at(0);
        setun_free(text);
        setun_plan_free(plan);
        setun_graph_destroy(g);
        assert_int_equal(setun_alloc_live(), live);
        if (status == SETUN_OK) break;
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        failures++;
    }
    assert_true(failures > 10);
    print_message("%d failing allocations survived\n", failures);
    /* the backend's release is called once */
    setun_graph *g;
    setun_plan *plan = gated_plan(&g);
    plan->release = count_release;
    setun_graph_destroy(g);
    setun_plan_free(plan);
    assert_int_equal(released, 1);
    test_model_destroy(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_tapes_keep_every_value), cmocka_unit_test(a_chain_of_values_lies_in_one_place), cmocka_unit_test(verify_finds_broken_tapes), cmocka_unit_test(absurd_sizes_are_refused), cmocka_unit_test(q8_slots_have_room),
        cmocka_unit_test(the_schedule_saves_memory_where_it_can), cmocka_unit_test(large_graphs_are_planned_in_time), cmocka_unit_test(dump_says_all), cmocka_unit_test(allocation_failures_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
