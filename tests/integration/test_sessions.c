/*
 * test_sessions.c - promises of a session, on the model in the repository: the same bits for every number of threads, instruction set,
 * batch and with or without fusion; nothing allocated in a run; all or nothing on errors; cancel; truncation; context.
 */
#include "integration/support.h"
#include "backend/cpu/kernels.h"
#include <pthread.h>
#include <time.h>

/* Sanitizers make everything many times slower; what they look for is in the best kernels on several threads. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

enum { TOKENS = 75 };
static int32_t ids[TOKENS];
static setun_context *context;
static setun_model *model;
static float *expected;         /* logits of every position */
static int vocabulary;

static bool gather(void *user, size_t index, const float *logits, int width)
{
    memcpy((float *)user + index * (size_t)width, logits, (size_t)width * sizeof *logits);
    return true;
}

static setun_session *session_of(setun_model *of, int batch, const char *kv, bool no_fusion)
{
    setun_session_options options = {.size = sizeof options, .context = 128, .batch = batch, .kv_type = kv, .no_fusion = no_fusion};
    setun_session *session;
    EXPECT_OK(setun_session_create(of, &options, &session));
    return session;
}

static int setup(void **state)
{
    (void)state;
    json_t *references = test_references();
    size_t count, more;
    int32_t *a = test_ids(json_object_get(json_array_get(references, 0), "ids"), &count), *b = test_ids(json_object_get(json_array_get(references, 1), "ids"), &more);
    assert_true(count + more >= TOKENS);
    for (size_t i = 0; i < TOKENS; i++) ids[i] = i < count ? a[i] : b[i - count];
    free(a);
    free(b);
    json_decref(references);
    context = test_context(2, NULL);
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    setun_session *s = session_of(model, 0, NULL, false);
    vocabulary = s->vocabulary;
    expected = malloc((size_t)TOKENS * (size_t)vocabulary * sizeof *expected);
    EXPECT_OK(setun_session_feed_all(s, ids, TOKENS, gather, expected));
    setun_session_destroy(s);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    setun_model_close(model);
    setun_context_destroy(context);
    free(expected);
    return 0;
}

static void expect_last(setun_session *s, int position)
{
    const float *logits = setun_session_logits(s, NULL);
    assert_non_null(logits);
    assert_memory_equal(logits, expected + (size_t)(position - 1) * (size_t)vocabulary, (size_t)vocabulary * sizeof *logits);
}

static void batches_do_not_matter(void **state)
{
    (void)state;
    const int batches[] = {1, 7, 33, 64};
    for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++) {
        setun_session *s = session_of(model, batches[b], NULL, false);
        EXPECT_OK(setun_session_feed(s, ids, TOKENS));
        expect_last(s, TOKENS);
        assert_int_equal(setun_session_position(s), TOKENS);
        setun_session_destroy(s);
    }
    /* and any mixture of feeds */
    setun_session *s = session_of(model, 0, NULL, false);
    for (int at = 0, step = 1; at < TOKENS; at += step, step = step * 2 + 1) {
        int n = step < TOKENS - at ? step : TOKENS - at;
        EXPECT_OK(setun_session_feed(s, ids + at, (size_t)n));
        expect_last(s, at + n);
    }
    setun_session_destroy(s);
}

static void fusion_does_not_matter(void **state)
{
    (void)state;
    setun_session *fused = session_of(model, 0, NULL, false), *s = session_of(model, 0, NULL, true);
    assert_true(s->plan->step_count > fused->plan->step_count);
    EXPECT_OK(setun_session_feed(s, ids, TOKENS));
    expect_last(s, TOKENS);
    setun_session_destroy(s);
    setun_session_destroy(fused);
}

static void threads_and_isas_do_not_matter(void **state)
{
    (void)state;
    for (int isa = 0; isa < setun_isa_count(); isa++) {
        if (!setun_isa_available(isa)) {
            print_message("%s is not available on this machine\n", setun_isa_name(isa));
            continue;
        }
        for (int threads = 1; threads <= 3; threads++) {
            if (isa == 0 && threads > 1) continue; /* plain C is slow; once is enough */
            if (SANITIZED && (threads < 3 || isa + 1 < setun_isa_count())) continue;
            setun_context *c = test_context(threads, setun_isa_name(isa));
            setun_model *m;
            EXPECT_OK(setun_model_open(c, SETUN_TEST_MODEL, NULL, &m));
            setun_session *s = session_of(m, 0, NULL, false);
            int count = isa == 0 ? 8 : TOKENS - 4;
            EXPECT_OK(setun_session_feed(s, ids, (size_t)count));
            expect_last(s, count);
            for (int i = 0; i < (isa == 0 ? 1 : 4); i++) {
                EXPECT_OK(setun_session_feed(s, ids + count + i, 1));
                expect_last(s, count + i + 1);
            }
            setun_session_destroy(s);
            setun_model_close(m);
            setun_context_destroy(c);
        }
    }
}

/* f32 keys and values: other bits, nearly the same logits. */
static void kv_f32(void **state)
{
    (void)state;
    setun_session *half = session_of(model, 0, "f16", false), *full = session_of(model, 0, "f32", false);
    setun_session_stats a = {.size = sizeof a}, b = {.size = sizeof b};
    EXPECT_OK(setun_session_get_stats(half, &a));
    EXPECT_OK(setun_session_get_stats(full, &b));
    assert_int_equal(b.kv_bytes, 2 * a.kv_bytes);
    EXPECT_OK(setun_session_feed(full, ids, TOKENS));
    const float *logits = setun_session_logits(full, NULL), *wanted = expected + (size_t)(TOKENS - 1) * (size_t)vocabulary;
    double difference = 0, size = 0;
    for (int i = 0; i < vocabulary; i++) {
        difference += ((double)logits[i] - wanted[i]) * ((double)logits[i] - wanted[i]);
        size += (double)wanted[i] * wanted[i];
    }
    assert_true(difference > 0 && sqrt(difference / size) < 0.03);
    setun_session_destroy(half);
    setun_session_destroy(full);
}

static void a_run_allocates_nothing(void **state)
{
    (void)state;
    setun_session *s = session_of(model, 16, NULL, false);
    EXPECT_OK(setun_session_feed(s, ids, 40));
    uint64_t before = setun_alloc_count();
    for (int i = 40; i < 60; i++) EXPECT_OK(setun_session_feed(s, ids + i, 1));
    assert_int_equal(setun_alloc_count() - before, 0);
    setun_session_stats stats = {.size = sizeof stats};
    EXPECT_OK(setun_session_get_stats(s, &stats));
    assert_int_equal(stats.allocations_in_run, 0);
    assert_true(stats.packed_bytes > 1000000 && stats.arena_bytes > 0);
    setun_session_destroy(s);
}

static void truncation(void **state)
{
    (void)state;
    setun_session *s = session_of(model, 0, NULL, false);
    assert_null(setun_session_logits(s, NULL));
    EXPECT_OK(setun_session_feed(s, ids, 30));
    EXPECT_OK(setun_session_feed(s, ids + 50, 10)); /* another branch */
    EXPECT_OK(setun_session_truncate(s, 30));
    assert_null(setun_session_logits(s, NULL));
    EXPECT_OK(setun_session_feed(s, ids + 30, TOKENS - 30));
    expect_last(s, TOKENS);
    assert_int_equal(setun_session_truncate(s, TOKENS + 1), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_session_truncate(s, -1), SETUN_ERROR_ARGUMENT);
    EXPECT_OK(setun_session_truncate(s, TOKENS)); /* nothing to forget: the logits stay */
    expect_last(s, TOKENS);
    setun_session_destroy(s);
}

static bool stop_at_three(void *user, size_t index, const float *logits, int width)
{
    (void)user, (void)logits, (void)width;
    return index < 3;
}

static void errors_change_nothing(void **state)
{
    (void)state;
    setun_session *s = session_of(model, 16, NULL, false);
    EXPECT_OK(setun_session_feed(s, ids, 20));
    int32_t bad[3] = {ids[0], vocabulary, ids[1]};
    assert_int_equal(setun_session_feed(s, bad, 3), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "49152"));
    bad[1] = -1;
    assert_int_equal(setun_session_feed(s, bad, 3), SETUN_ERROR_ARGUMENT);
    int32_t many[200];
    for (int i = 0; i < 200; i++) many[i] = ids[i % TOKENS];
    assert_int_equal(setun_session_feed(s, many, 109), SETUN_ERROR_CONTEXT);
    assert_non_null(strstr(setun_error(), "109 tokens do not fit: the context holds 128, 20 are used and 108 are free"));
    assert_int_equal(setun_session_position(s), 20);
    expect_last(s, 20);
    assert_int_equal(setun_session_feed_all(s, ids + 20, 10, stop_at_three, NULL), SETUN_ERROR_CANCELLED);
    assert_int_equal(setun_session_position(s), 20);
    EXPECT_OK(setun_session_feed(s, ids + 20, TOKENS - 20));
    expect_last(s, TOKENS);
    EXPECT_OK(setun_session_feed(s, many, 0));
    expect_last(s, TOKENS);
    EXPECT_OK(setun_session_feed(s, many, 128 - TOKENS)); /* to the last place */
    assert_int_equal(setun_session_feed(s, many, 1), SETUN_ERROR_CONTEXT);
    setun_session_destroy(s);
    assert_int_equal(setun_session_feed(NULL, ids, 1), SETUN_ERROR_ARGUMENT);
    setun_session_destroy(NULL);
}

static void *cancel_soon(void *argument)
{
    nanosleep(&(struct timespec){0, 30000000}, NULL);
    setun_session_cancel(argument);
    return NULL;
}

static void cancel(void **state)
{
    (void)state;
    setun_session_options options = {.size = sizeof options, .context = 2048, .batch = 64};
    setun_session *s;
    EXPECT_OK(setun_session_create(model, &options, &s));
    EXPECT_OK(setun_session_feed(s, ids, 20));
    /* before: the next feed stops, the one after does not */
    setun_session_cancel(s);
    assert_int_equal(setun_session_feed(s, ids + 20, 1), SETUN_ERROR_CANCELLED);
    expect_last(s, 20);
    /* during: a prompt that takes far longer than the other thread sleeps */
    enum { LONG = 2000 };
    int32_t *text = malloc(LONG * sizeof *text);
    for (int i = 0; i < LONG; i++) text[i] = ids[i % TOKENS];
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, s), 0);
    assert_int_equal(setun_session_feed(s, text, LONG), SETUN_ERROR_CANCELLED);
    pthread_join(thread, NULL);
    assert_int_equal(setun_session_position(s), 20);
    expect_last(s, 20);
    EXPECT_OK(setun_session_feed(s, ids + 20, TOKENS - 20));
    expect_last(s, TOKENS);
    free(text);
    setun_session_destroy(s);
}

/* Two threads, two sessions, one model: the context's pool serves both in turn. */
typedef struct shared { setun_session *session; setun_status status; } shared;
static void *feed_in_thread(void *argument)
{
    shared *work = argument;
    work->status = SETUN_OK;
    for (int i = 0; i < TOKENS && work->status == SETUN_OK; i += 15) work->status = setun_session_feed(work->session, ids + i, 15);
    return NULL;
}

static void two_sessions_at_once(void **state)
{
    (void)state;
    shared work[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        work[i].session = session_of(model, 0, NULL, false);
        assert_int_equal(pthread_create(&threads[i], NULL, feed_in_thread, &work[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(work[i].status, SETUN_OK);
        expect_last(work[i].session, TOKENS);
        setun_session_destroy(work[i].session);
    }
}

static void embedding(void **state)
{
    (void)state;
    setun_session *s = session_of(model, 16, NULL, false);
    setun_model_info info = {.size = sizeof info};
    EXPECT_OK(setun_model_get_info(model, &info));
    float *a = malloc((size_t)info.width * sizeof *a), *b = malloc((size_t)info.width * sizeof *b);
    EXPECT_OK(setun_session_feed(s, ids, 5));
    EXPECT_OK(setun_session_embed(s, ids, 40, a));
    assert_int_equal(setun_session_position(s), 0);
    EXPECT_OK(setun_session_embed(s, ids, 40, b));
    assert_memory_equal(a, b, (size_t)info.width * sizeof *a);
    double square = 0;
    for (int i = 0; i < info.width; i++) square += (double)a[i] * a[i];
    assert_true(fabs(square - 1) < 1e-5);
    EXPECT_OK(setun_session_feed(s, ids, TOKENS)); /* the session is as good as new */
    expect_last(s, TOKENS);
    assert_int_equal(setun_session_embed(s, ids, 0, a), SETUN_ERROR_ARGUMENT);
    setun_session_destroy(s);
    free(a);
    free(b);
}

static void options(void **state)
{
    (void)state;
    const setun_session_options bad[] = {{.size = sizeof bad[0], .context = -1}, {.size = sizeof bad[0], .batch = -5}, {.size = sizeof bad[0], .kv_type = "q4"}, {.size = sizeof bad[0], .batch = 1000000, .context = 2000000}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        setun_session *s = (setun_session *)1;
        assert_int_equal(setun_session_create(model, &bad[i], &s), SETUN_ERROR_ARGUMENT);
        assert_null(s);
    }
    setun_session *s;
    EXPECT_OK(setun_session_create(model, NULL, &s));
    assert_int_equal(setun_session_context(s), 2048);
    setun_session_destroy(s);
}

static void explain(void **state)
{
    (void)state;
    setun_explain_options o = {.size = sizeof o, .session = {.size = sizeof o.session, .context = 64, .batch = 8}, .json = true, .measure = true};
    char *text;
    EXPECT_OK(setun_model_explain(model, &o, &text));
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    if (!root) fail_msg("explain's JSON: %s at %d", error.text, error.position);
    json_t *fusion = json_object_get(root, "fusion");
    assert_true(json_integer_value(json_object_get(json_object_get(fusion, "on"), "steps")) < json_integer_value(json_object_get(json_object_get(fusion, "off"), "steps")));
    assert_true(json_real_value(json_object_get(json_object_get(fusion, "on"), "seconds")) > 0);
    assert_non_null(json_object_get(root, "plan"));
    json_decref(root);
    setun_free(text);
    o.json = false;
    EXPECT_OK(setun_model_explain(model, &o, &text));
    assert_true(strstr(text, "ternary_i8[") || strstr(text, "trits_i8[")); /* whichever this machine reads faster */
    assert_non_null(strstr(text, "graph: "));
    setun_free(text);
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_do_not_matter), cmocka_unit_test(fusion_does_not_matter), cmocka_unit_test(threads_and_isas_do_not_matter), cmocka_unit_test(kv_f32), cmocka_unit_test(a_run_allocates_nothing),
        cmocka_unit_test(truncation), cmocka_unit_test(errors_change_nothing), cmocka_unit_test(cancel), cmocka_unit_test(two_sessions_at_once), cmocka_unit_test(embedding), cmocka_unit_test(options),
        cmocka_unit_test(explain),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
