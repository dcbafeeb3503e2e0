/*
 * test_attention.c - one step of cached attention, long enough for several ranges of keys: the same bits for every number of threads, every cut
 * of the tokens into runs, and for a sequence alone or with others in one run; with and without a sliding window, for every type of
 * cache; what is refused. The sums themselves are tested in test_graph.c and with the kernels.
 */
#include "integration/support.h"
#include <time.h>

enum { HEADS = 6, KV = 3, D = 24, LONGEST = 700, SEQUENCES = 5, WIDTH = HEADS * D, KV_WIDTH = KV * D };

static uint64_t rng;
static uint32_t next_random(void) { /* SplitMix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static int below(int n) { return (int)(next_random() % (uint32_t)n); }

static float q[SEQUENCES][LONGEST][WIDTH], k[SEQUENCES][LONGEST][KV_WIDTH], v[SEQUENCES][LONGEST][KV_WIDTH];
static float wanted[SEQUENCES][LONGEST][WIDTH];

static setun_plan *plan_of(setun_context *context, int window, bool cached)
{
    setun_graph *g;
    EXPECT_OK(setun_graph_create(context, &g));
    setun_node qi = setun_graph_input(g, "q", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, HEADS, D}), ki = setun_graph_input(g, "k", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, KV, D});
    setun_node vi = setun_graph_input(g, "v", SETUN_F32, 3, (const int64_t[]){SETUN_DIM_TOKENS, KV, D}), pi = setun_graph_input(g, "positions", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_TOKENS});
    setun_rope_options rope = {.size = sizeof rope, .theta = 1000.0f};
    setun_attention_options how = {.size = sizeof how, .window = window, .cache_layer = cached ? 2 : 0};
    EXPECT_OK(setun_graph_output(g, setun_graph_attention(g, setun_graph_rope(g, qi, pi, &rope), setun_graph_rope(g, ki, pi, &rope), vi, &how), "y"));
    setun_compile_options o = {.size = sizeof o, .tokens_max = 64 * SEQUENCES, .kv_type = "f32", .cache_tokens = 1};
    setun_plan *plan;
    EXPECT_OK(setun_graph_compile(g, &o, &plan));
    setun_graph_destroy(g);
    return plan;
}

/* Rows of one or more sequences into the frame's inputs */
static void put_rows(setun_frame *frame, int row, int sequence, int first, int count)
{
    const setun_plan *plan = frame->plan;
    memcpy((float *)setun_frame_slot(frame, setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "q")) + row * WIDTH, q[sequence][first], (size_t)count * sizeof q[0][0]);
    memcpy((float *)setun_frame_slot(frame, setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "k")) + row * KV_WIDTH, k[sequence][first], (size_t)count * sizeof k[0][0]);
    memcpy((float *)setun_frame_slot(frame, setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "v")) + row * KV_WIDTH, v[sequence][first], (size_t)count * sizeof v[0][0]);
    int32_t *positions = setun_frame_slot(frame, setun_plan_find_slot(plan, SETUN_PLACE_INPUT, "positions"));
    for (int i = 0; i < count; i++) positions[row + i] = first + i;
}

static void expect_rows(const setun_frame *frame, int row, int sequence, int first, int count, const char *what)
{
    const float *y = (const float *)setun_frame_slot(frame, setun_plan_find_slot(frame->plan, SETUN_PLACE_OUTPUT, "y")) + row * WIDTH;
    for (int i = 0; i < count; i++)
        if (memcmp(y + i * WIDTH, wanted[sequence][first + i], sizeof wanted[0][0])) fail_msg("%s: sequence %d, token %d differs", what, sequence, first + i);
}

static setun_kv_cache cache_of(setun_dtype type, int capacity)
{
    setun_kv_cache cache;
    EXPECT_OK(setun_kv_cache_create(2, KV, D, capacity, type, &cache));
    memset(cache.data, 0xff, (size_t)cache.bytes); /* NaN: places that hold no key must not be felt */
    return cache;
}

/* Every sequence alone, one thread, one token at a time: what all else must give. */
static void make_wanted(setun_context *one, const setun_dtype *types, int window)
{
    setun_plan *plan = plan_of(one, window, true);
    setun_frame frame;
    EXPECT_OK(setun_frame_create(plan, &frame));
    for (int s = 0; s < SEQUENCES; s++) {
        setun_kv_cache cache = cache_of(types[s], LONGEST);
        frame.cache = &cache;
        frame.tokens = 1;
        for (int t = 0; t < LONGEST; t++) {
            put_rows(&frame, 0, s, t, 1);
            EXPECT_OK(plan->backend->run(plan->backend, &frame));
            cache.length++;
            memcpy(wanted[s][t], setun_frame_slot(&frame, setun_plan_find_slot(plan, SETUN_PLACE_OUTPUT, "y")), sizeof wanted[0][0]);
        }
        setun_kv_cache_destroy(&cache);
    }
    setun_frame_destroy(&frame);
    setun_plan_destroy(plan);
}

static void fill(void)
{
    for (int s = 0; s < SEQUENCES; s++)
        for (int t = 0; t < LONGEST; t++) {
            for (int i = 0; i < WIDTH; i++) q[s][t][i] = (float)below(2001) * 2e-3f - 2.0f;
            for (int i = 0; i < KV_WIDTH; i++) k[s][t][i] = (float)below(2001) * 1e-3f - 1.0f, v[s][t][i] = (float)below(2001) * 1e-3f - 1.0f;
        }
}

/* All sequences to their ends by runs that take some rows of some of them */
static void feed_together(setun_plan *plan, const setun_dtype *types, int most_rows, const char *what)
{
    setun_frame frame;
    setun_kv_cache caches[SEQUENCES];
    int left = SEQUENCES;
    EXPECT_OK(setun_frame_create(plan, &frame));
    for (int s = 0; s < SEQUENCES; s++) caches[s] = cache_of(types[s], LONGEST);
    while (left > 0) {
        setun_sequence sequences[SEQUENCES];
        int used = 0, row = 0;
        bool alone = left == 1 || below(4) == 0;
        for (int i = 0, s = below(SEQUENCES); i < SEQUENCES && !(alone && used); i++, s = (s + 1) % SEQUENCES) {
            int rest = LONGEST - caches[s].length, rows = 1 + below(most_rows);
            if (rest == 0 || (below(3) == 0 && used)) continue;
            if (rows > rest) rows = rest;
            put_rows(&frame, row, s, caches[s].length, rows);
            sequences[used++] = (setun_sequence){.cache = &caches[s], .first_row = row, .rows = rows};
            row += rows;
        }
        frame.tokens = row;
        frame.sequences = sequences;
        frame.sequence_count = used;
        if (used == 1 && below(2)) {
            frame.sequence_count = 0;
            frame.cache = sequences[0].cache;
        }
        EXPECT_OK(plan->backend->run(plan->backend, &frame));
        for (int i = 0; i < used; i++) {
            int s = (int)(sequences[i].cache - caches);
            expect_rows(&frame, sequences[i].first_row, s, caches[s].length, sequences[i].rows, what);
            caches[s].length += sequences[i].rows;
            left -= caches[s].length == LONGEST;
        }
    }
    for (int s = 0; s < SEQUENCES; s++) setun_kv_cache_destroy(&caches[s]);
    setun_frame_destroy(&frame);
}

static void one_result(void **state)
{
    (void)state;
    static const int windows[] = {0, 300, 5};
    static const int threads[] = {1, 2, 3, 7};
    fill();
    setun_context *one = test_context(1, NULL);
    for (int w = 0; w < 3; w++) {
        const setun_dtype types[SEQUENCES] = {SETUN_F16, SETUN_F32, SETUN_I8, SETUN_F16, SETUN_I8};
        make_wanted(one, types, windows[w]);
        for (int t = 0; t < 4; t++) {
            setun_context *context = test_context(threads[t], NULL);
            setun_plan *plan = plan_of(context, windows[w], true);
            for (int most = 4; most <= 64; most *= 4) {
                char what[80];
                snprintf(what, sizeof what, "window %d, %d threads, up to %d rows", windows[w], threads[t], most);
                feed_together(plan, types, most, what);
            }
            setun_plan_destroy(plan);
            setun_context_destroy(context);
        }
    }
    setun_context_destroy(one);
}

/* Without a cache the keys of the run itself are attended to, by the same rule. */
static void uncached(void **state)
{
    (void)state;
    fill();
    const setun_dtype types[SEQUENCES] = {SETUN_F32, SETUN_F32, SETUN_F32, SETUN_F32, SETUN_F32};
    setun_context *context = test_context(3, NULL);
    make_wanted(context, types, 270);
    setun_plan *plan = plan_of(context, 270, false);
    setun_frame frame;
    EXPECT_OK(setun_frame_create(plan, &frame));
    for (int s = 0; s < SEQUENCES; s++) {
        frame.tokens = s == 0 ? 1 : 64 * SEQUENCES - 3 * s; /* more than a range */
        put_rows(&frame, 0, s, 0, frame.tokens);
        EXPECT_OK(plan->backend->run(plan->backend, &frame));
        expect_rows(&frame, 0, s, 0, frame.tokens, "without a cache");
    }
    setun_sequence sequence = {.first_row = 0, .rows = frame.tokens};
    frame.sequences = &sequence;
    frame.sequence_count = 1;
    assert_int_equal(plan->backend->run(plan->backend, &frame), SETUN_ERROR_UNSUPPORTED);
    setun_frame_destroy(&frame);
    setun_plan_destroy(plan);
    setun_context_destroy(context);
}

static void refusals(void **state)
{
    (void)state;
    setun_context *context = test_context(2, NULL);
    setun_plan *plan = plan_of(context, 0, true);
    setun_frame frame;
    EXPECT_OK(setun_frame_create(plan, &frame));
    setun_kv_cache a = cache_of(SETUN_F16, 20), b = cache_of(SETUN_F16, 20), other;
    EXPECT_OK(setun_kv_cache_create(2, KV, D + 1, 20, SETUN_F16, &other));
    b.length = 18;
    const struct { setun_sequence sequence[2]; int count, tokens; setun_status status; const char *message; } cases[] = {
        {{{&a, 0, 3}, {&b, 3, 2}}, 2, 5, SETUN_OK, NULL},
        {{{&a, 0, 3}, {&b, 3, 3}}, 2, 6, SETUN_ERROR_CONTEXT, "18 of 20"},
        {{{&a, 0, 3}, {&b, 4, 2}}, 2, 6, SETUN_ERROR_ARGUMENT, "rows from 3 on"},
        {{{&a, 0, 3}, {&b, 3, 2}}, 2, 6, SETUN_ERROR_ARGUMENT, "cover 5 of 6"},
        {{{&a, 0, 3}, {&b, 3, 2}}, 2, 4, SETUN_ERROR_ARGUMENT, "of 4"},
        {{{&a, 0, 3}, {&b, 3, 0}}, 2, 3, SETUN_ERROR_ARGUMENT, "sequence 1"},
        {{{&a, 0, 3}, {&a, 3, 2}}, 2, 5, SETUN_ERROR_ARGUMENT, "the same KV cache"},
        {{{&a, 0, 3}, {NULL, 3, 2}}, 2, 5, SETUN_ERROR_STATE, "has none"},
        {{{&a, 0, 3}, {&other, 3, 2}}, 2, 5, SETUN_ERROR_STATE, "3 heads of 25"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        frame.sequences = cases[i].sequence;
        frame.sequence_count = cases[i].count;
        frame.tokens = cases[i].tokens;
        assert_int_equal(plan->backend->run(plan->backend, &frame), cases[i].status);
        if (cases[i].message && !strstr(setun_error(), cases[i].message)) fail_msg("case %zu: %s", i, setun_error());
    }
    setun_kv_cache_destroy(&a);
    setun_kv_cache_destroy(&b);
    setun_kv_cache_destroy(&other);
    setun_frame_destroy(&frame);
    setun_plan_destroy(plan);
    setun_context_destroy(context);
}

int main(void)
{
    const char *given = getenv("SETUN_TEST_SEED");
    rng = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_result), cmocka_unit_test(uncached), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
