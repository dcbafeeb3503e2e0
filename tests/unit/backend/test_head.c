/*
 * test_head.c - the vocabulary projection by its small copy against the full product: what is given is given with the same bits, and
 * what was asked for is there, whatever the rows are: duplicates, huge, zero, not numbers, and inputs made so that the copy misleads.
 * SETUN_TEST_SEED=n repeats a run.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"

#include <setjmp.h>
#include <stdlib.h>
#include <time.h>
#include <cmocka.h>

static uint64_t seed, state;
static uint32_t next_random(void) { /* xorshift64*, Vigna 2014 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}
static float uniform(void) { return (float)(int32_t)next_random() / 2147483648.0f; }
static float gaussian(void) { return (uniform() + uniform() + uniform() + uniform()) * 0.866f; }

#define OK(call) do { if ((call) != SETUN_OK) fail_msg("%s: %s", #call, setun_error()); } while (0)

typedef struct head {
    setun_context *context;
    setun_weight weight;
    uint8_t *data;
    setun_plan *plan;
    setun_frame frame;
    float *x, *logits;
    int outputs;
} head;

static setun_status make_plan(head *h, int outputs_max, setun_head_mode mode, float factor) {
    setun_graph *graph;
    SETUN_TRY(setun_graph_create(h->context, &graph));
    setun_node x = setun_graph_input(graph, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_OUTPUTS, h->weight.columns});
    setun_node y = setun_graph_linear(graph, setun_graph_add_weight(graph, NULL, &h->weight), x, SETUN_NODE_NONE);
    if (factor != 1.0f) y = setun_graph_scale(graph, y, factor);
    setun_status status = setun_graph_output(graph, y, "logits");
    const setun_backend *backend = setun_backend_cpu();
    setun_plan_options options = {.tokens_max = outputs_max, .outputs_max = outputs_max, .supports = backend->supports, .head = mode};
    if (status == SETUN_OK) status = setun_plan_build(graph, backend, &options, &h->plan);
    setun_graph_destroy(graph);
    if (status == SETUN_OK) status = backend->prepare(backend, h->plan);
    if (status == SETUN_OK) status = setun_frame_create(h->plan, &h->frame);
    return status;
}

static void end_plan(head *h) {
    setun_frame_destroy(&h->frame);
    setun_plan_free(h->plan);
    cpu_release_weight(h->weight.prepared); /* no model and no graph storage owns it */
    h->weight.prepared = NULL;
    h->plan = NULL;
}

/* A projection in this format, from f32 rows. */
static void make_weight(head *h, setun_format format, int64_t rows, int64_t columns, const float *values) {
    uint64_t bytes;
    OK(setun_format_size(format, rows, columns, &bytes));
    h->data = malloc((size_t)bytes);
    if (format == SETUN_FORMAT_F32) memcpy(h->data, values, (size_t)bytes);
    else {
        bool exact;
        double error;
        OK(setun_format_encode_dense(format, "head", rows, columns, values, h->data, &exact, &error));
    }
    h->weight = (setun_weight){.name = "head", .format = format, .rows = rows, .columns = columns, .data = h->data, .bytes = bytes};
}

static void bind(head *h, const float *x, int outputs) {
    memcpy(setun_frame_slot(&h->frame, setun_plan_find_slot(h->plan, SETUN_PLACE_INPUT, "x")), x, (size_t)outputs * (size_t)h->weight.columns * sizeof *x);
    h->frame.tokens = h->frame.outputs = outputs;
    h->outputs = outputs;
    h->logits = setun_frame_slot(&h->frame, setun_plan_find_slot(h->plan, SETUN_PLACE_OUTPUT, "logits"));
}

static void run(head *h, setun_head_request request) {
    h->frame.head = request;
    OK(h->plan->backend->run(h->plan->backend, &h->frame));
}

static int compare_descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x > y ? -1 : x < y;
}

/* Every logit that the request asks for is there, and every one that is there is the full product's. */
static int64_t check(const head *h, const float *full, setun_head_request request, bool proved, const char *what) {
    int64_t rows = h->weight.rows, given = 0;
    float *others = malloc((size_t)rows * sizeof *others);
    for (int t = 0; t < h->outputs; t++) {
        const float *all = full + t * rows, *some = h->logits + t * rows;
        int count = 0, at = 0;
        for (int64_t r = 0; r < rows; r++) {
            bool named = at < request.row_count && request.rows[at] == r;
            at += named;
            if (!named && all[r] == all[r]) others[count++] = all[r];
            bool there = memcmp(&some[r], &all[r], sizeof(float)) == 0;
            if (!there && some[r] != -INFINITY) fail_msg("%s: row %lld of output %d is %g, the full product has %g; SETUN_TEST_SEED=%llu", what, (long long)r, t, (double)some[r], (double)all[r], (unsigned long long)seed);
            if (named || all[r] != all[r] || all[r] == INFINITY)
                if (!there) fail_msg("%s: row %lld of output %d is not there; SETUN_TEST_SEED=%llu", what, (long long)r, t, (unsigned long long)seed);
            given += some[r] > -INFINITY;
        }
        qsort(others, (size_t)count, sizeof *others, compare_descending);
        float lowest = others[request.top - 1] - request.margin;
        for (int64_t r = 0; proved && r < rows; r++)
            if (all[r] >= lowest && memcmp(&some[r], &all[r], sizeof(float)) != 0)
                fail_msg("%s: row %lld of output %d has %g, at least the %d-th highest, %g, and is not there; SETUN_TEST_SEED=%llu", what, (long long)r, t, (double)all[r], request.top, (double)lowest, (unsigned long long)seed);
    }
    free(others);
    return given;
}

static float *copy_of(const head *h) {
    size_t bytes = (size_t)h->outputs * (size_t)h->weight.rows * sizeof(float);
    float *copy = malloc(bytes);
    memcpy(copy, h->logits, bytes);
    return copy;
}

/* Rows: gaussian, with some that are made to be awkward. */
static float *make_rows(int64_t rows, int64_t columns, bool awkward) {
    float *w = malloc((size_t)(rows * columns) * sizeof *w);
    for (int64_t i = 0; i < rows * columns; i++) w[i] = gaussian() * 0.05f;
    for (int64_t r = 1; awkward && r < rows; r += 1 + next_random() % 97) {
        float *row = w + r * columns;
        int kind = (int)(next_random() % 7);
        if (kind <= 1) memcpy(row, w + (int64_t)(next_random() % (uint64_t)r) * columns, (size_t)columns * sizeof *row); /* as another: ties */
        for (int64_t i = 0; i < columns; i++) {
            if (kind == 2) row[i] = 0.0f;
            if (kind == 3) row[i] *= 30.0f;
            if (kind == 4) row[i] *= 0x1p-20f;
            if (kind == 5 && i % 37) row[i] *= 0.01f; /* a few large ones */
            if (kind == 6) row[i] = i % 2 ? 0.05f : -0.05f;
        }
    }
    return w;
}

/* An input that misleads the copy: much of it points where some row and its coarse form differ. */
static void mislead(const head *h, const float *w, float *x) {
    const setun_prepared *p = h->plan->steps[h->plan->step_count - 1].prepared[0];
    const cpu_shortlist *s = p->shortlist;
    int64_t row = (int64_t)(next_random() % (uint64_t)h->weight.rows), columns = h->weight.columns;
    float amount = next_random() % 2 ? 3.0f : 0.3f;
    for (int64_t i = 0; i < columns; i++) {
        int64_t at = row * (s->padded / 4) + i / 256 * 64 + i % 64;
        int shift = (int)(i % 256 / 64 * 2), high = (s->first[at] >> shift & 3) * 4 + (s->second[at] >> shift & 3);
        float coarse = s->unit[row] * (float)s->scales[(size_t)row * s->scale_stride + (size_t)(i / 512 * 16 + i % 64 / 4)] * ((float)high - 7.5f);
        x[i] = gaussian() + amount * (w[row * columns + i] - coarse) * 100.0f + 2.0f * w[row * columns + i];
    }
}

static void try_requests(head *h, const float *w, int outputs, const char *what, bool proved) {
    int64_t rows = h->weight.rows, columns = h->weight.columns;
    float *x = malloc((size_t)(outputs * columns) * sizeof *x);
    for (int turn = 0; turn < 3; turn++) {
        for (int t = 0; t < outputs; t++) {
            float scale = ldexpf(1.0f, (int)(next_random() % 20) - 10);
            for (int64_t i = 0; i < columns; i++) x[t * columns + i] = gaussian() * scale * (turn == 2 && i % 50 == 0 ? 40.0f : 1.0f);
            if (turn == 1) mislead(h, w, x + t * columns);
        }
        bind(h, x, outputs);
        run(h, (setun_head_request){.top = 0});
        float *full = copy_of(h);
        int32_t named[5] = {0, 3, 700, (int32_t)rows - 2, (int32_t)rows - 1};
        const setun_head_request requests[] = {{.top = 1}, {.top = 7}, {.top = 40, .rows = named, .row_count = 5}, {.top = 1, .rows = named + 1, .row_count = 2, .margin = 0.5f}, {.top = CPU_HEAD_TOP_MAX}};
        for (size_t r = 0; r < sizeof requests / sizeof *requests; r++) {
            char text[160];
            snprintf(text, sizeof text, "%s, outputs %d, turn %d, request %zu", what, outputs, turn, r);
            memset(h->logits, 0x7f, (size_t)outputs * (size_t)rows * sizeof(float));
            run(h, requests[r]);
            check(h, full, requests[r], proved || turn == 0, text); /* a margin of many deviations is as good as a proof where x is a stranger to every row */
        }
        /* no rows: the output stays */
        memset(h->logits, 0x5a, (size_t)outputs * (size_t)rows * sizeof(float));
        run(h, (setun_head_request){.top = -1});
        assert_true(((const uint8_t *)h->logits)[0] == 0x5a);
        /* more than the copy serves: all */
        run(h, (setun_head_request){.top = CPU_HEAD_TOP_MAX + 1});
        assert_memory_equal(h->logits, full, (size_t)outputs * (size_t)rows * sizeof(float));
        free(full);
    }
    free(x);
}

static setun_context *context_of(int threads, const char *isa) {
    setun_context *context = calloc(1, sizeof *context);
    OK(setun_pool_create(threads, false, &context->pool));
    context->kernels = setun_kernels_select(isa);
    assert_non_null(context->kernels);
    return context;
}
static void end_context(setun_context *context) {
    setun_pool_destroy(context->pool);
    free(context);
}

static void test_same_logits(void **unused) {
    (void)unused;
    static const struct { setun_format format; int64_t rows, columns; int threads, outputs_max, outputs; setun_head_mode mode; float factor; bool awkward; } cases[] = {
        {SETUN_FORMAT_F32, 4999, 100, 1, 1, 1, SETUN_HEAD_PROVED, 1.0f, true},   {SETUN_FORMAT_F16, 4096, 256, 2, 3, 3, SETUN_HEAD_PROVED, 1.0f, true},
        {SETUN_FORMAT_BF16, 5000, 320, 3, 18, 18, SETUN_HEAD_PROVED, 0.3f, true}, {SETUN_FORMAT_Q8_0, 4097, 576, 1, 2, 2, SETUN_HEAD_PROVED, 1.0f, true},
        {SETUN_FORMAT_Q6_K, 4200, 512, 2, 1, 1, SETUN_HEAD_PROVED, 7.0f, true},  {SETUN_FORMAT_Q4_0, 4200, 608, 2, 2, 2, SETUN_HEAD_PROVED, 1.0f, false},
        {SETUN_FORMAT_F16, 4096, 520, 3, 4, 4, SETUN_HEAD_SHORTLIST, 1.0f, true},
        {SETUN_FORMAT_F16, 4100, 1100, 2, 5, 4, SETUN_HEAD_SHORTLIST, 0.5f, true}, /* 2 bits first */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        head h = {.context = context_of(cases[i].threads, NULL)};
        float *w = make_rows(cases[i].rows, cases[i].columns, cases[i].awkward);
        make_weight(&h, cases[i].format, cases[i].rows, cases[i].columns, w);
        OK(make_plan(&h, cases[i].outputs_max, cases[i].mode, cases[i].factor));
        assert_int_equal(h.plan->head.bits, cases[i].mode == SETUN_HEAD_PROVED ? 6 : 4);
        char what[96];
        snprintf(what, sizeof what, "%s [%lld, %lld]", setun_format_name(cases[i].format), (long long)cases[i].rows, (long long)cases[i].columns);
        for (int outputs = 1; outputs <= cases[i].outputs; outputs += cases[i].outputs > 4 ? 17 : 1) try_requests(&h, w, outputs, what, cases[i].mode == SETUN_HEAD_PROVED);
        end_plan(&h);
        free(h.data);
        free(w);
        end_context(h.context);
    }
}

/* NaN and infinite rows, and inputs out of the bounds' range, are as in the full product. */
static void test_not_numbers(void **unused) {
    (void)unused;
    int64_t rows = 4100, columns = 288;
    head h = {.context = context_of(2, NULL)};
    float *w = make_rows(rows, columns, false), *x = malloc((size_t)columns * sizeof *x);
    w[5 * columns + 3] = NAN;
    w[900 * columns] = INFINITY;
    for (int64_t i = 0; i < columns; i++) w[2000 * columns + i] *= 0x1p+60f;
    for (int64_t i = 0; i < columns; i++) w[3000 * columns + i] *= 0x1p-70f;
    make_weight(&h, SETUN_FORMAT_F32, rows, columns, w);
    OK(make_plan(&h, 1, SETUN_HEAD_PROVED, 1.0f));
    for (int kind = 0; kind < 6; kind++) {
        for (int64_t i = 0; i < columns; i++) x[i] = kind == 1 ? 0.0f : gaussian() * (kind == 2 ? 0x1p+70f : kind == 3 ? 0x1p-60f : 1.0f);
        if (kind == 4) x[7] = NAN;
        if (kind == 5) x[8] = -INFINITY;
        bind(&h, x, 1);
        run(&h, (setun_head_request){.top = 0});
        float *full = copy_of(&h);
        setun_head_request request = {.top = 3};
        run(&h, request);
        char what[32];
        snprintf(what, sizeof what, "kind %d", kind);
        if (kind == 0) check(&h, full, request, true, what);
        else assert_memory_equal(h.logits, full, (size_t)rows * sizeof(float)); /* the full product, or all rows */
        free(full);
    }
    end_plan(&h);
    free(h.data);
    free(w);
    free(x);
    end_context(h.context);
}

/* The copy is worth something, what is given doesn't depend on threads or instruction set, and runs allocate nothing. */
static void test_few_rows_the_same_everywhere(void **unused) {
    (void)unused;
    int64_t rows = 6000, columns = 1536;
    float *w = make_rows(rows, columns, false), *x = malloc((size_t)columns * sizeof *x), *first = NULL;
    for (int64_t i = 0; i < columns; i++) x[i] = gaussian();
    for (int isa = 0; isa < setun_isa_count(); isa++) {
        if (!setun_isa_available(isa)) continue;
        for (int threads = 1; threads <= 3; threads += 2) {
            head h = {.context = context_of(threads, setun_isa_name(isa))};
            make_weight(&h, SETUN_FORMAT_F16, rows, columns, w);
            OK(make_plan(&h, 1, SETUN_HEAD_PROVED, 1.0f));
            bind(&h, x, 1);
            uint64_t before = setun_alloc_count();
            run(&h, (setun_head_request){.top = 5});
            assert_int_equal(setun_alloc_count() - before, 0);
            assert_int_equal(h.frame.head_scored, rows);
            assert_true(h.frame.head_rescored >= 5 && h.frame.head_rescored < rows / 10);
            if (!first) first = copy_of(&h);
            assert_memory_equal(h.logits, first, (size_t)rows * sizeof(float));
            end_plan(&h);
            free(h.data);
            end_context(h.context);
        }
    }
    free(first);
    free(w);
    free(x);
}

/* A plan with 4 bits, then one with 6 of the same weight: the low plane is added. Then each allocation fails once. */
static void test_both_copies_and_failures(void **unused) {
    (void)unused;
    int64_t rows = 4096, columns = 64;
    float *w = make_rows(rows, columns, false), *x = malloc((size_t)columns * sizeof *x);
    for (int64_t i = 0; i < columns; i++) x[i] = gaussian();
    head h = {.context = context_of(1, NULL)};
    make_weight(&h, SETUN_FORMAT_F32, rows, columns, w);
    OK(make_plan(&h, 1, SETUN_HEAD_SHORTLIST, 1.0f));
    uint64_t coarse = h.plan->head.bytes;
    setun_prepared *kept = h.weight.prepared;
    assert_non_null(kept->shortlist);
    assert_null(kept->shortlist->low);
    setun_frame_destroy(&h.frame);
    setun_plan_free(h.plan);
    OK(make_plan(&h, 1, SETUN_HEAD_PROVED, 1.0f));
    assert_ptr_equal(h.weight.prepared, kept);
    assert_true(h.plan->head.bytes > coarse && kept->bytes >= h.plan->head.bytes);
    bind(&h, x, 1);
    run(&h, (setun_head_request){.top = 0});
    float *full = copy_of(&h);
    setun_head_request request = {.top = 2};
    run(&h, request);
    check(&h, full, request, true, "low plane added");
    end_plan(&h);
    int failures = 0;
    for (uint64_t n = 1;; n++) {
        int64_t live = setun_alloc_live();
        memset(&h.frame, 0, sizeof h.frame);
        setun_alloc_fail_at(n);
        setun_status status = make_plan(&h, 1, SETUN_HEAD_PROVED, 1.0f);
        setun_alloc_fail_at(0);
        end_plan(&h);
        assert_int_equal(setun_alloc_live(), live);
        if (status == SETUN_OK) break;
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        failures++;
    }
    assert_true(failures > 8);
    free(full);
    free(h.data);
    free(w);
    free(x);
    end_context(h.context);
}

static const cpu_shortlist *shortlist_of(const head *h) { return ((const setun_prepared *)h->weight.prepared)->shortlist; }

static void assert_same_copy(const cpu_shortlist *a, const cpu_shortlist *b) {
    assert_memory_equal(a->first, b->first, (size_t)(a->rows * a->padded / 2));
    if (a->low && b->low) assert_memory_equal(a->low, b->low, 2 * (size_t)a->rows * a->bit_bytes);
    assert_memory_equal(a->scales, b->scales, (size_t)a->scale_bytes);
}

/* A copy that is made with the picks: at any state of it what is asked for is there, and in the end it is the copy that is made at once. Runs
 * that are stopped, want no rows or all, or whose input the bounds don't cover, add nothing. */
static void test_part_by_part(void **unused) {
    (void)unused;
    static const struct { setun_format format; int64_t rows, columns; int threads, outputs, parts; setun_head_mode mode; float factor; } cases[] = {
        {SETUN_FORMAT_F16, 5000, 100, 1, 1, 4, SETUN_HEAD_PROVED, 1.0f},  {SETUN_FORMAT_F32, 4100, 257, 3, 3, 7, SETUN_HEAD_PROVED, 0.3f},
        {SETUN_FORMAT_Q6_K, 4096, 256, 2, 18, 3, SETUN_HEAD_PROVED, 1.0f}, {SETUN_FORMAT_Q4_0, 4200, 96, 2, 1, 5, SETUN_HEAD_SHORTLIST, 7.0f},
        {SETUN_FORMAT_BF16, 4097, 64, 3, 2, 1, SETUN_HEAD_SHORTLIST, 1.0f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int outputs = cases[i].outputs;
        const bool proved = cases[i].mode == SETUN_HEAD_PROVED;
        const int64_t rows = cases[i].rows, columns = cases[i].columns;
        head h = {.context = context_of(cases[i].threads, NULL)}, at_once;
        float *w = make_rows(rows, columns, true), *x = malloc((size_t)(outputs * columns) * sizeof *x);
        make_weight(&h, cases[i].format, rows, columns, w);
        at_once = h;
        OK(make_plan(&at_once, outputs, cases[i].mode, cases[i].factor));
        assert_int_equal(setun_head_rows_copied(at_once.plan), rows);
        cpu_force_head_parts(cases[i].parts);
        OK(make_plan(&h, outputs, cases[i].mode, cases[i].factor));
        assert_int_equal(setun_head_rows_copied(h.plan), 0);
        for (int turn = 0, added = 0; turn < cases[i].parts + 4; turn++) {
            for (int64_t j = 0; j < outputs * columns; j++) x[j] = gaussian();
            bind(&h, x, outputs);
            int64_t before = setun_head_rows_copied(h.plan), scored = h.frame.head_scored;
            run(&h, (setun_head_request){.top = 0});
            float *full = copy_of(&h);
            run(&h, (setun_head_request){.top = -1});
            atomic_bool stop = true;
            h.frame.cancel = &stop;
            h.frame.head = (setun_head_request){.top = 1};
            assert_int_equal(h.plan->backend->run(h.plan->backend, &h.frame), SETUN_ERROR_CANCELLED);
            h.frame.cancel = NULL;
            if (turn % 2) {
                float kept = x[0];
                x[0] = NAN;
                bind(&h, x, outputs);
                run(&h, (setun_head_request){.top = 1});
                x[0] = kept;
                bind(&h, x, outputs);
            }
            assert_true(setun_head_rows_copied(h.plan) == before && h.frame.head_scored == scored);
            int32_t named[3] = {1, (int32_t)before, (int32_t)rows - 1};
            setun_head_request request = {.top = 1 + turn * 3, .margin = turn == 2 ? 0.5f : 0.0f};
            if (turn % 3 == 2 && before > 1 && before < rows - 1) request.rows = named, request.row_count = 3;
            uint64_t allocations = setun_alloc_count();
            memset(h.logits, 0x7f, (size_t)outputs * (size_t)rows * sizeof(float));
            run(&h, request);
            assert_int_equal(setun_alloc_count() - allocations, 0);
            check(&h, full, request, proved, "part by part");
            assert_int_equal(h.frame.head_scored - scored, before * outputs);
            int64_t after = setun_head_rows_copied(h.plan);
            if (turn == 0) assert_int_equal(after, 0); /* the first pick may be the only one */
            else assert_true(after > before || before == rows);
            added += after > before;
            free(full);
            if (turn == cases[i].parts) assert_true(after == rows && added <= cases[i].parts);
        }
        assert_same_copy(shortlist_of(&h), shortlist_of(&at_once));
        end_plan(&h);
        /* the rest at once, after a part */
        OK(make_plan(&h, outputs, cases[i].mode, cases[i].factor));
        bind(&h, x, outputs);
        for (int turn = 0; turn < 2; turn++) run(&h, (setun_head_request){.top = 1});
        OK(setun_head_finish(h.plan));
        assert_int_equal(setun_head_rows_copied(h.plan), rows);
        assert_same_copy(shortlist_of(&h), shortlist_of(&at_once));
        cpu_force_head_parts(0);
        end_plan(&h);
        end_plan(&at_once);
        free(h.data);
        free(w);
        free(x);
        end_context(h.context);
    }
}

/* Half of a copy of 4 bits, then a plan of 6: both go on, each with what it needs. */
static void test_both_copies_part_by_part(void **unused) {
    (void)unused;
    const int64_t rows = 6000, columns = 128;
    float *w = make_rows(rows, columns, true), *x = malloc((size_t)columns * sizeof *x);
    head coarse = {.context = context_of(2, NULL)}, fine, whole;
    make_weight(&coarse, SETUN_FORMAT_F16, rows, columns, w);
    whole = coarse;
    OK(make_plan(&whole, 1, SETUN_HEAD_PROVED, 1.0f));
    cpu_force_head_parts(6);
    OK(make_plan(&coarse, 1, SETUN_HEAD_SHORTLIST, 1.0f));
    for (int64_t i = 0; i < columns; i++) x[i] = gaussian();
    bind(&coarse, x, 1);
    run(&coarse, (setun_head_request){.top = 0});
    float *full = copy_of(&coarse);
    for (int turn = 0; turn < 4; turn++) run(&coarse, (setun_head_request){.top = 3});
    int64_t there = setun_head_rows_copied(coarse.plan);
    assert_true(there > 0 && there < rows);
    fine = coarse;
    fine.plan = NULL;
    memset(&fine.frame, 0, sizeof fine.frame);
    OK(make_plan(&fine, 1, SETUN_HEAD_PROVED, 1.0f));
    assert_ptr_equal(shortlist_of(&fine), shortlist_of(&coarse));
    assert_int_equal(setun_head_rows_copied(fine.plan), 0);
    bind(&fine, x, 1);
    setun_head_request request = {.top = 5};
    for (int turn = 0; turn < 10; turn++) {
        head *h = turn % 3 == 1 ? &coarse : &fine;
        run(h, request);
        check(h, full, request, true, turn % 3 == 1 ? "coarse" : "fine");
    }
    assert_int_equal(setun_head_rows_copied(fine.plan), rows);
    assert_int_equal(setun_head_rows_copied(coarse.plan), rows);
    assert_same_copy(shortlist_of(&fine), shortlist_of(&whole));
    cpu_force_head_parts(0);
    setun_frame_destroy(&coarse.frame);
    setun_plan_free(coarse.plan);
    end_plan(&fine);
    end_plan(&whole);
    free(full);
    free(fine.data);
    free(w);
    free(x);
    end_context(fine.context);
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    state = seed * 2654435769u + 88172645463325252ull;
    print_message("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_logits), cmocka_unit_test(test_not_numbers), cmocka_unit_test(test_few_rows_the_same_everywhere),
                                       cmocka_unit_test(test_both_copies_and_failures), cmocka_unit_test(test_part_by_part), cmocka_unit_test(test_both_copies_part_by_part)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
