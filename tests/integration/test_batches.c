/*
 * test_batches.c - promises of setun_session_feed_batch, on the model in the repository: every session gets the bits it gets alone, whatever else is
 * in the call, for every number of threads; all or nothing; nothing allocated. And the int8 KV cache: near f16, half the bytes.
 */
#include "integration/support.h"
#include <time.h>

enum { MOST = 16, LONGEST = 330 };
static uint64_t rng;
static int below(int n) { /* SplitMix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (int)((z ^ z >> 31) % (uint64_t)n);
}

static setun_session *session_of(setun_model *model, int context, int batch, const char *kv)
{
    setun_session_options options = {.size = sizeof options, .context = context, .batch = batch, .kv_type = kv};
    setun_session *session;
    EXPECT_OK(setun_session_create(model, &options, &session));
    return session;
}

static int vocabulary;
static int32_t ids[MOST][LONGEST];

static void fill_ids(void)
{
    for (int s = 0; s < MOST; s++)
        for (int i = 0; i < LONGEST; i++) ids[s][i] = below(vocabulary);
}

static void expect_same(const setun_session *a, const setun_session *b, const char *what, int s)
{
    if (setun_session_position(a) != setun_session_position(b)) fail_msg("%s: session %d is at %d, alone it is at %d", what, s, setun_session_position(a), setun_session_position(b));
    if (memcmp(setun_session_logits(a, NULL), setun_session_logits(b, NULL), (size_t)vocabulary * sizeof(float))) fail_msg("%s: the logits of session %d are not those it has alone", what, s);
}

/* Ragged prompts together, then tokens one by one, some sessions ahead of others: against each alone. */
static void together(setun_model *alone_model, int threads, int n, int longest, int batch)
{
    setun_context *context = test_context(threads, NULL);
    setun_model *model;
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    static const char *const kv[] = {"f16", "i8", "f32"};
    setun_session *sessions[MOST], *alone[MOST];
    int fed[MOST] = {0};
    setun_sampler *samplers[2][MOST]; /* of the batch, alone */
    for (int s = 0; s < n; s++) {
        setun_logit_bias bias = {.id = below(vocabulary), .bias = 3.0f};
        setun_sampler_options how = {.size = sizeof how, .seed = (uint64_t)s};
        if (s % 5 > 0) how.temperature = 0.8f;
        if (s % 5 == 1) how.top_k = 30;
        if (s % 5 == 2) how.min_p = 0.05f;
        if (s % 5 == 3) how.top_k = 5, how.repetition_penalty = 1.3f, how.bias = &bias, how.bias_count = 1;
        for (int i = 0; i < 2; i++) EXPECT_OK(setun_sampler_create(&how, vocabulary, &samplers[i][s])); /* s % 5 == 4 needs every logit */
        const char *type = kv[below(6) < 4 ? 0 : 1 + below(2)];
        sessions[s] = session_of(model, LONGEST, s == 0 ? batch : 4, type); /* the first one's batch counts */
        alone[s] = session_of(alone_model, LONGEST, 128, type);
    }
    char what[80];
    for (int round = 0; round < 4; round++) {
        setun_session *some[MOST];
        const int32_t *from[MOST];
        size_t counts[MOST];
        int used = 0, who[MOST];
        for (int s = 0; s < n; s++) {
            if (s > 0 && round > 1 && below(4) == 0) continue;
            counts[used] = round == 0 ? (size_t)(1 + below(s == n - 1 ? longest : 12)) : round == 2 ? (size_t)(1 + below(3)) : 1;
            from[used] = ids[s] + fed[s];
            some[used] = sessions[s];
            EXPECT_OK(setun_session_feed(alone[s], from[used], counts[used]));
            fed[s] += (int)counts[used];
            who[used++] = s;
        }
        EXPECT_OK(setun_session_feed_batch(some, from, counts, (size_t)used));
        snprintf(what, sizeof what, "%d threads, %d sessions, batch %d, round %d", threads, n, batch, round);
        if (round != 1) {
            setun_sampler *with[MOST];
            int32_t picked[MOST], expected;
            for (int i = 0; i < used; i++) with[i] = samplers[0][who[i]];
            EXPECT_OK(setun_session_pick_batch(some, with, (size_t)used, picked));
            for (int i = 0; i < used; i++) {
                EXPECT_OK(setun_session_pick(alone[who[i]], samplers[1][who[i]], &expected));
                if (picked[i] != expected) fail_msg("%s: session %d picks %d, alone %d", what, who[i], (int)picked[i], (int)expected);
                EXPECT_OK(setun_sampler_accept(with[i], expected));
                EXPECT_OK(setun_sampler_accept(samplers[1][who[i]], expected));
            }
        }
        for (int i = 0; i < used && round > 0; i++) expect_same(some[i], alone[who[i]], what, who[i]); /* after round 0 nobody looks: round 1 starts from hidden logits */
    }
    for (int s = 0; s < n; s++) { /* and alone again */
        EXPECT_OK(setun_session_feed(sessions[s], ids[s] + fed[s], 1));
        EXPECT_OK(setun_session_feed(alone[s], ids[s] + fed[s], 1));
        expect_same(sessions[s], alone[s], "alone after the batch", s);
        setun_session_destroy(sessions[s]);
        setun_session_destroy(alone[s]);
        setun_sampler_destroy(samplers[0][s]);
        setun_sampler_destroy(samplers[1][s]);
    }
    setun_model_close(model);
    setun_context_destroy(context);
}

typedef struct fixture { setun_context *context; setun_model *model; } fixture;

static void the_same_bits(void **state)
{
    fixture *f = *state;
    together(f->model, 2, 3, 300, 512);  /* one of them over several ranges of keys */
    together(f->model, 1, 1, 40, 64);
    together(f->model, 3, 16, 12, 512);
    together(f->model, 2, 5, 60, 7);     /* more tokens than a run takes */
    together(f->model, 1 + below(4), 2 + below(15), 20, 16 + below(30));
}

static void errors_change_nothing(void **state)
{
    fixture *f = *state;
    setun_session *a = session_of(f->model, 40, 16, NULL), *b = session_of(f->model, 30, 16, NULL), *other_plan;
    setun_session_options options = {.size = sizeof options, .context = 40, .no_fusion = true};
    EXPECT_OK(setun_session_create(f->model, &options, &other_plan));
    setun_model *second;
    EXPECT_OK(setun_model_open(f->context, SETUN_TEST_MODEL, NULL, &second));
    setun_session *foreign = session_of(second, 40, 16, NULL);
    EXPECT_OK(setun_session_feed(a, ids[0], 20));
    EXPECT_OK(setun_session_feed(b, ids[1], 20));
    float *before[2] = {malloc((size_t)vocabulary * sizeof(float)), malloc((size_t)vocabulary * sizeof(float))};
    memcpy(before[0], setun_session_logits(a, NULL), (size_t)vocabulary * sizeof(float));
    memcpy(before[1], setun_session_logits(b, NULL), (size_t)vocabulary * sizeof(float));
    int32_t bad[2] = {1, vocabulary};
    const struct { setun_session *second; const int32_t *ids; size_t counts[2]; setun_status status; const char *message; } cases[] = {
        {b, ids[2], {3, 11}, SETUN_ERROR_CONTEXT, "session 1: 11 tokens do not fit"},
        {b, bad, {3, 2}, SETUN_ERROR_ARGUMENT, "session 1: token id"},
        {b, NULL, {3, 2}, SETUN_ERROR_ARGUMENT, "session 1: ids is NULL"},
        {b, ids[2], {3, 0}, SETUN_ERROR_ARGUMENT, "session 1 has no tokens"},
        {a, ids[2], {3, 2}, SETUN_ERROR_ARGUMENT, "0 and 1 are the same"},
        {NULL, ids[2], {3, 2}, SETUN_ERROR_ARGUMENT, "session 1 is NULL"},
        {foreign, ids[2], {3, 2}, SETUN_ERROR_ARGUMENT, "different models"},
        {other_plan, ids[2], {3, 2}, SETUN_ERROR_ARGUMENT, "no_fusion"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setun_session *const sessions[] = {a, cases[i].second};
        const int32_t *const from[] = {ids[3], cases[i].ids};
        assert_int_equal(setun_session_feed_batch(sessions, from, cases[i].counts, 2), cases[i].status);
        if (!strstr(setun_error(), cases[i].message)) fail_msg("case %zu: %s", i, setun_error());
    }
    setun_session *both[] = {a, b}, *crowd[40];
    const int32_t *from[40];
    size_t counts[40];
    for (int i = 0; i < 40; i++) crowd[i] = a, from[i] = ids[0], counts[i] = 1;
    assert_int_equal(setun_session_feed_batch(crowd, from, counts, 40), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_session_feed_batch(NULL, from, counts, 1), SETUN_ERROR_ARGUMENT);
    EXPECT_OK(setun_session_feed_batch(both, from, counts, 0));
    setun_session_cancel(b);
    assert_int_equal(setun_session_feed_batch(both, from, counts, 2), SETUN_ERROR_CANCELLED);
    /* a backend that fails in the second of two runs: the first one's tokens are forgotten too */
    const size_t long_counts[] = {18, 9};
    setun_sampler *sampler, *another;
    int32_t picked[2];
    EXPECT_OK(setun_sampler_create(NULL, vocabulary, &sampler));
    EXPECT_OK(setun_sampler_create(NULL, vocabulary, &another));
    setun_sampler *const twice[] = {sampler, sampler}, *const two[] = {sampler, another};
    assert_int_equal(setun_session_pick_batch(both, twice, 2, picked), SETUN_ERROR_ARGUMENT);
    setun_session *const unfed[] = {a, foreign};
    assert_int_equal(setun_session_pick_batch(unfed, two, 2, picked), SETUN_ERROR_STATE);
    assert_non_null(strstr(setun_error(), "session 1 has no logits"));
    EXPECT_OK(setun_session_pick_batch(both, two, 2, picked));
    setun_sampler_destroy(sampler);
    setun_sampler_destroy(another);
    uint64_t runs = a->allocations_in_run;
    setun_kv_cache *cache = &b->cache;
    cache->head_size++; /* refused when b's tokens come */
    assert_int_equal(setun_session_feed_batch(both, from, long_counts, 2), SETUN_ERROR_STATE);
    cache->head_size--;
    assert_int_equal(a->allocations_in_run, runs);
    assert_int_equal(setun_session_position(a), 20);
    assert_int_equal(setun_session_position(b), 20);
    assert_memory_equal(setun_session_logits(a, NULL), before[0], (size_t)vocabulary * sizeof(float));
    assert_memory_equal(setun_session_logits(b, NULL), before[1], (size_t)vocabulary * sizeof(float));
    uint64_t allocations = setun_alloc_count();
    EXPECT_OK(setun_session_feed_batch(both, from, long_counts, 2));
    assert_int_equal(setun_alloc_count(), allocations);
    /* logits that nobody has looked at yet survive a failed call, though it overwrote what they are made from */
    setun_session *alone = session_of(f->model, 40, 16, NULL);
    EXPECT_OK(setun_session_feed(alone, ids[0], 20));
    EXPECT_OK(setun_session_feed(alone, from[0], 18));
    cache->head_size++;
    const size_t one_each[] = {1, 1};
    assert_int_equal(setun_session_feed_batch(both, from, one_each, 2), SETUN_ERROR_STATE);
    cache->head_size--;
    expect_same(a, alone, "after a failed call", 0);
    setun_session_destroy(alone);
    free(before[0]);
    free(before[1]);
    setun_session_destroy(a);
    setun_session_destroy(b);
    setun_session_destroy(foreign);
    setun_session_destroy(other_plan);
    setun_model_close(second);
}

/* Rounding keys and values to 8 bits moves logits about as much as rounding activations does. */
static void int8_cache(void **state)
{
    fixture *f = *state;
    setun_session *half = session_of(f->model, LONGEST, 64, "f16"), *small = session_of(f->model, LONGEST, 64, "i8");
    setun_session_stats a = {.size = sizeof a}, b = {.size = sizeof b};
    EXPECT_OK(setun_session_get_stats(half, &a));
    EXPECT_OK(setun_session_get_stats(small, &b));
    print_message("KV cache: f16 %llu bytes, i8 %llu\n", (unsigned long long)a.kv_bytes, (unsigned long long)b.kv_bytes);
    assert_true(b.kv_bytes * 100 <= a.kv_bytes * 54); /* head size 64: 68 bytes instead of 128 */
    size_t count;
    json_t *references = test_references();
    int32_t *text = test_ids(json_object_get(json_array_get(references, 0), "ids"), &count);
    int32_t all[LONGEST];
    for (int i = 0; i < 280; i++) all[i] = text[(size_t)i % count];
    EXPECT_OK(setun_session_feed(half, all, 280));
    EXPECT_OK(setun_session_feed(small, all, 280));
    double difference = 0, size = 0;
    const float *x = setun_session_logits(half, NULL), *y = setun_session_logits(small, NULL);
    for (int i = 0; i < vocabulary; i++) {
        difference += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        size += (double)x[i] * x[i];
    }
    print_message("i8 against f16: relative difference of the logits %.4f\n", sqrt(difference / size));
    assert_true(difference > 0 && sqrt(difference / size) < 0.05);
    free(text);
    json_decref(references);
    setun_session_destroy(half);
    setun_session_destroy(small);
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->context = test_context(1, NULL);
    EXPECT_OK(setun_model_open(f->context, SETUN_TEST_MODEL, NULL, &f->model));
    setun_session *s = session_of(f->model, 8, 8, NULL);
    vocabulary = s->vocabulary;
    setun_session_destroy(s);
    fill_ids();
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    setun_model_close(f->model);
    setun_context_destroy(f->context);
    free(f);
    return 0;
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const char *given = getenv("SETUN_TEST_SEED");
    rng = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_bits), cmocka_unit_test(errors_change_nothing), cmocka_unit_test(int8_cache)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
