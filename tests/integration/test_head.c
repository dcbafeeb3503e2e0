/*
 * test_head.c - how sessions use the small copy of the vocabulary projection, on the model in the repository: the same texts with and without it
 * for every kind of sampling, all logits for who looks at them, whatever came before.
 */
#include "integration/support.h"
#include "backend/cpu/shortlist.h"

static setun_context *context;
static setun_model *model;
static int32_t *prompt;
static size_t prompt_count;

static int setup(void **state)
{
    (void)state;
    context = test_context(1, NULL);
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    json_t *references = test_references();
    prompt = test_ids(json_object_get(json_array_get(references, 1), "ids"), &prompt_count);
    json_decref(references);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(prompt);
    setun_model_close(model);
    setun_context_destroy(context);
    return 0;
}

static setun_session *session_of(setun_model *of, const char *head)
{
    setun_session_options options = {.size = sizeof options, .context = 128, .head = head};
    setun_session *s;
    EXPECT_OK(setun_session_create(of, &options, &s));
    return s;
}

typedef struct heard { int32_t ids[128]; int count; } heard;
static bool listen(void *user, const setun_token_event *event)
{
    heard *h = user;
    h->ids[h->count++] = event->id;
    return true;
}

static void answer(setun_session *s, const setun_sampler_options *how, int logprobs, heard *h)
{
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(how, s->vocabulary, &sampler));
    EXPECT_OK(setun_session_truncate(s, 0));
    h->count = 0;
    setun_generate_options options = {.size = sizeof options, .tokens = 24, .ignore_end = true, .logprobs = logprobs, .token = listen, .token_user = h};
    EXPECT_OK(setun_generate(s, sampler, prompt, prompt_count, &options, NULL));
    setun_sampler_destroy(sampler);
}

static const setun_logit_bias bias[] = {{28, -4.0f}, {42, 3.0f}, {28, 1.0f}, {1000, -INFINITY}, {49151, 9.0f}};
static const setun_sampler_options ways[] = {
    {.size = sizeof(setun_sampler_options)},
    {.size = sizeof(setun_sampler_options), .repetition_penalty = 1.3f, .presence_penalty = 0.4f, .frequency_penalty = 0.2f, .bias = bias, .bias_count = 5},
    {.size = sizeof(setun_sampler_options), .repetition_penalty = 0.7f, .penalty_window = -1},
    {.size = sizeof(setun_sampler_options), .temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .seed = 7},
    {.size = sizeof(setun_sampler_options), .temperature = 1.2f, .top_k = 5, .presence_penalty = -1.0f, .bias = bias, .bias_count = 5, .seed = 8},
    {.size = sizeof(setun_sampler_options), .temperature = 0.8f, .min_p = 0.05f, .seed = 9},
    {.size = sizeof(setun_sampler_options), .temperature = 1.5f, .min_p = 0.02f, .repetition_penalty = 1.1f, .seed = 10},
};

static void the_same_texts(void **state)
{
    (void)state;
    setun_session *full = session_of(model, "full"), *proved = session_of(model, NULL), *shortlist = session_of(model, "shortlist");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        heard a, b, c;
        answer(full, &ways[i], 0, &a);
        answer(proved, &ways[i], 0, &b);
        answer(shortlist, &ways[i], 0, &c);
        assert_int_equal(a.count, 24);
        assert_memory_equal(a.ids, b.ids, sizeof a.ids[0] * 24);
        assert_memory_equal(a.ids, c.ids, sizeof a.ids[0] * 24); /* not promised, but overwhelmingly likely */
    }
    setun_session_stats stats = {.size = sizeof stats};
    EXPECT_OK(setun_session_get_stats(full, &stats));
    assert_true(stats.head_scored == 0 && stats.head_bits == 0 && stats.head_bytes == 0 && stats.picks > 0);
    EXPECT_OK(setun_session_get_stats(proved, &stats));
    /* every one of these ways needs few logits */
    assert_true(stats.head_bits == 6 && stats.head_bytes > 0 && stats.head_scored == stats.picks * (uint64_t)proved->vocabulary && stats.head_rescored < stats.head_scored / 20);
    assert_int_equal(stats.allocations_in_run, 0);
    EXPECT_OK(setun_session_get_stats(shortlist, &stats));
    assert_int_equal(stats.head_bits, 4);
    uint64_t scored = stats.head_scored;
    /* sums over all tokens, and logprobs, take all logits */
    const setun_sampler_options nucleus = {.size = sizeof nucleus, .temperature = 1.0f, .top_p = 0.9f, .seed = 3};
    heard a, b;
    answer(full, &nucleus, 0, &a);
    answer(shortlist, &nucleus, 0, &b);
    assert_memory_equal(a.ids, b.ids, sizeof a.ids[0] * 24);
    answer(shortlist, NULL, 3, &b);
    answer(full, NULL, 0, &a);
    assert_memory_equal(a.ids, b.ids, sizeof a.ids[0] * 24);
    EXPECT_OK(setun_session_get_stats(shortlist, &stats));
    assert_int_equal(stats.head_scored, scored);
    setun_session_destroy(full);
    setun_session_destroy(proved);
    setun_session_destroy(shortlist);
}

/* On three threads, too. */
static void the_same_texts_on_threads(void **state)
{
    (void)state;
    setun_context *threads = test_context(3, NULL);
    setun_model *other;
    EXPECT_OK(setun_model_open(threads, SETUN_TEST_MODEL, NULL, &other));
    setun_session *full = session_of(model, "full"), *proved = session_of(other, "proved");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i += 3) {
        heard a, b;
        answer(full, &ways[i], 0, &a);
        answer(proved, &ways[i], 0, &b);
        assert_memory_equal(a.ids, b.ids, sizeof a.ids[0] * 24);
    }
    setun_session_destroy(full);
    setun_session_destroy(proved);
    setun_model_close(other);
    setun_context_destroy(threads);
}

typedef struct reader { pthread_t thread; setun_session *session; const setun_sampler_options *how; heard heard; } reader;
static void *read_along(void *argument)
{
    reader *r = argument;
    answer(r->session, r->how, 0, &r->heard);
    return NULL;
}

/* While the copy is made, in parts so small that the text ends before it is whole: by one session, and by four at once, each in a thread of its own. The rows come
 * from the file. */
static void the_same_texts_meanwhile(void **state)
{
    (void)state;
    setun_session *full = session_of(model, "full");
    heard wanted[4];
    for (int i = 0; i < 4; i++) answer(full, &ways[i], 0, &wanted[i]);
    setun_session_destroy(full);
    cpu_force_head_parts(90);
    setun_context *own = test_context(2, NULL);
    setun_model *other;
    EXPECT_OK(setun_model_open(own, SETUN_TEST_MODEL, NULL, &other));
    setun_session *alone = session_of(other, "proved");
    setun_session_stats stats = {.size = sizeof stats};
    uint64_t copied = 0;
    for (int i = 0; i < 4; i += 3) {
        heard h;
        answer(alone, &ways[i], 0, &h);
        assert_memory_equal(wanted[i].ids, h.ids, sizeof h.ids[0] * 24);
        EXPECT_OK(setun_session_get_stats(alone, &stats));
        assert_true(stats.head_copied > copied && stats.head_copied < (uint64_t)alone->vocabulary && stats.allocations_in_run == 0);
        copied = stats.head_copied;
    }
    setun_session_destroy(alone);
    reader readers[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (reader){.session = session_of(other, i % 2 ? "shortlist" : "proved"), .how = &ways[i]};
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_along, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(readers[i].thread, NULL);
    for (int i = 0; i < 4; i++) {
        assert_memory_equal(wanted[i].ids, readers[i].heard.ids, sizeof wanted[i].ids[0] * 24);
        EXPECT_OK(setun_session_get_stats(readers[i].session, &stats));
        assert_true(stats.head_copied > copied);
        setun_session_destroy(readers[i].session);
    }
    setun_model_close(other);
    setun_context_destroy(own);
    cpu_force_head_parts(0);
}

static void expect_logits(setun_session *s, const float *wanted)
{
    int vocabulary;
    const float *logits = setun_session_logits(s, &vocabulary);
    assert_non_null(logits);
    assert_memory_equal(logits, wanted, (size_t)vocabulary * sizeof *logits);
}

static bool never(void *user, size_t index, const float *logits, int vocabulary)
{
    (void)user, (void)logits, (void)vocabulary;
    return index < 2;
}

/* Who looks at the logits gets all of them: at once, after a pick, after a run that failed, with a full context. */
static void all_logits_for_who_looks(void **state)
{
    (void)state;
    setun_session *full = session_of(model, "full"), *s = session_of(model, NULL);
    assert_null(setun_session_logits(s, NULL));
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, s->vocabulary, &sampler));
    int32_t id, wanted_id;
    assert_int_equal(setun_session_pick(s, sampler, &id), SETUN_ERROR_STATE);
    EXPECT_OK(setun_session_feed(full, prompt, prompt_count));
    float *wanted = malloc((size_t)full->vocabulary * sizeof *wanted);
    memcpy(wanted, setun_session_logits(full, NULL), (size_t)full->vocabulary * sizeof *wanted);
    EXPECT_OK(setun_sampler_pick(sampler, wanted, &wanted_id));

    EXPECT_OK(setun_session_feed(s, prompt, prompt_count));
    expect_logits(s, wanted);
    EXPECT_OK(setun_session_pick(s, sampler, &id)); /* from what is there */
    assert_int_equal(id, wanted_id);
    expect_logits(s, wanted);

    EXPECT_OK(setun_session_truncate(s, (int)prompt_count - 1));
    assert_null(setun_session_logits(s, NULL));
    EXPECT_OK(setun_session_feed(s, prompt + prompt_count - 1, 1));
    for (int i = 0; i < 2; i++) {
        EXPECT_OK(setun_session_pick(s, sampler, &id));
        assert_int_equal(id, wanted_id);
    }
    expect_logits(s, wanted);

    /* a feed that is stopped before it runs, and one whose run fails: the head's input is overwritten, the last token runs again */
    for (int way = 0; way < 2; way++) {
        EXPECT_OK(setun_session_truncate(s, 0));
        EXPECT_OK(setun_session_feed(s, prompt, prompt_count));
        if (way == 0) {
            setun_session_cancel(s);
            assert_int_equal(setun_session_feed(s, prompt, 3), SETUN_ERROR_CANCELLED);
        } else {
            /* what a run leaves that was cancelled half-way */
            memset(setun_frame_slot(&s->frame, s->plan->steps[s->plan->head.step].input[0]), 0x11, (size_t)s->model->description.h.width * sizeof(float));
            s->logits_state = SETUN_LOGITS_LOST;
            EXPECT_OK(setun_session_pick(s, sampler, &id));
            assert_int_equal(id, wanted_id);
            memset(setun_frame_slot(&s->frame, s->plan->steps[s->plan->head.step].input[0]), 0x11, (size_t)s->model->description.h.width * sizeof(float));
            s->logits_state = SETUN_LOGITS_LOST;
        }
        assert_int_equal(setun_session_position(s), prompt_count);
        expect_logits(s, wanted);
        assert_int_equal(setun_session_position(s), prompt_count);
    }

    /* all rows of a run, then one that the callback stops */
    EXPECT_OK(setun_session_truncate(s, 0));
    assert_int_equal(setun_session_feed_all(s, prompt, prompt_count, never, NULL), SETUN_ERROR_CANCELLED);
    assert_null(setun_session_logits(s, NULL));

    /* the last place of the context */
    while (setun_session_position(s) < setun_session_context(s)) EXPECT_OK(setun_session_feed(s, prompt, 1));
    EXPECT_OK(setun_session_truncate(full, 0));
    for (int i = 0; i < setun_session_context(full); i++) EXPECT_OK(setun_session_feed(full, prompt, 1));
    memcpy(wanted, setun_session_logits(full, NULL), (size_t)full->vocabulary * sizeof *wanted);
    EXPECT_OK(setun_sampler_pick(sampler, wanted, &wanted_id));
    EXPECT_OK(setun_session_pick(s, sampler, &id));
    assert_int_equal(id, wanted_id);
    expect_logits(s, wanted);

    /* a sampler of fewer tokens picks among those; one of more is refused */
    setun_sampler *small, *large;
    EXPECT_OK(setun_sampler_create(NULL, 50, &small));
    EXPECT_OK(setun_sampler_create(NULL, s->vocabulary + 1, &large));
    EXPECT_OK(setun_session_feed_all(full, prompt, 0, never, NULL));
    EXPECT_OK(setun_session_truncate(s, 4));
    EXPECT_OK(setun_session_feed(s, prompt, 1));
    EXPECT_OK(setun_session_pick(s, small, &id));
    EXPECT_OK(setun_sampler_pick(small, setun_session_logits(s, NULL), &wanted_id));
    assert_int_equal(id, wanted_id);
    assert_int_equal(setun_session_pick(s, large, &id), SETUN_ERROR_ARGUMENT);
    assert_int_equal(id, -1);
    setun_sampler_destroy(small);
    setun_sampler_destroy(large);

    free(wanted);
    setun_sampler_destroy(sampler);
    setun_session_destroy(full);
    setun_session_destroy(s);
}

static void refusals(void **state)
{
    (void)state;
    setun_session_options options = {.size = sizeof options, .head = "quick"};
    setun_session *s;
    assert_int_equal(setun_session_create(model, &options, &s), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "quick"));
    assert_int_equal(setun_session_pick(NULL, NULL, NULL), SETUN_ERROR_ARGUMENT);
    char *json;
    setun_explain_options explain = {.size = sizeof explain, .json = true, .session = {.size = sizeof explain.session, .head = "shortlist"}};
    EXPECT_OK(setun_model_explain(model, &explain, &json));
    json_t *root = json_loads(json, 0, NULL), *head = json_object_get(root, "head");
    assert_string_equal(json_string_value(json_object_get(head, "mode")), "shortlist");
    assert_int_equal(json_integer_value(json_object_get(head, "bits")), 4);
    json_decref(root);
    setun_free(json);
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_texts), cmocka_unit_test(the_same_texts_on_threads), cmocka_unit_test(the_same_texts_meanwhile), cmocka_unit_test(all_logits_for_who_looks), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
