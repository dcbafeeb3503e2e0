/*
 * test_generate.c - setun_generate on the model in the repository: how it ends, what it shows, what the context holds afterwards;
 * the same seed on any number of threads; and every allocation that can fail, on a small model.
 */
#include "integration/support.h"

static setun_context *context;
static setun_model *model;
static setun_session *session;
static int32_t *prompt; /* "What is the capital of France?" as a chat */
static size_t prompt_count;

static int setup(void **state)
{
    (void)state;
    context = test_context(1, NULL); /* no barriers: steady on a busy machine */
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    setun_session_options options = {.size = sizeof options, .context = 96};
    EXPECT_OK(setun_session_create(model, &options, &session));
    json_t *references = test_references();
    prompt = test_ids(json_object_get(json_array_get(references, 1), "ids"), &prompt_count);
    json_decref(references);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(prompt);
    setun_session_destroy(session);
    setun_model_close(model);
    setun_context_destroy(context);
    return 0;
}

typedef struct heard { char text[4096]; int32_t ids[512]; int count, stop_at; float worst; int logprobs; } heard;

static bool listen(void *user, const setun_token_event *event)
{
    heard *h = user;
    strncat(h->text, event->text, event->length);
    assert_int_equal(setun_utf8_complete(event->text, event->length), event->length);
    h->ids[h->count++] = event->id;
    if (event->top) {
        bool found = false;
        for (int i = 0; i < h->logprobs; i++) {
            if (i > 0) assert_true(event->top[i].logprob <= event->top[i - 1].logprob);
            if (event->top[i].id == event->id) {
                assert_true(fabsf(event->top[i].logprob - event->logprob) < 1e-5f);
                found = true;
            }
        }
        assert_true(found || event->logprob < event->top[h->logprobs - 1].logprob + 1e-5f);
    } else assert_int_equal(h->logprobs, 0);
    return h->stop_at == 0 || h->count < h->stop_at;
}

static setun_generate_result answer(const setun_sampler_options *how, setun_generate_options *o, heard *h)
{
    memset(h->text, 0, sizeof h->text);
    h->count = 0;
    h->logprobs = o->logprobs;
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(how, session->vocabulary, &sampler));
    EXPECT_OK(setun_session_truncate(session, 0));
    o->size = sizeof *o;
    o->token = listen;
    o->token_user = h;
    setun_generate_result result = {.size = sizeof result};
    EXPECT_OK(setun_generate(session, sampler, prompt, prompt_count, o, &result));
    setun_sampler_destroy(sampler);
    assert_int_equal(result.prompt_tokens, prompt_count);
    assert_true(result.prompt_seconds > 0 && result.generate_seconds > 0);
    return result;
}

static void ends_with_the_answer(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    setun_generate_result r = answer(NULL, &(setun_generate_options){.tokens = 0}, &h);
    assert_string_equal(h.text, "The capital of France is Paris.");
    assert_int_equal(r.finish, SETUN_FINISH_END);
    assert_int_equal(r.generated_tokens, h.count);
    /* the context holds prompt and answer, without the end token */
    assert_int_equal(setun_session_position(session), (int)prompt_count + h.count);
    setun_logprob next;
    EXPECT_OK(setun_logprobs(setun_session_logits(session, NULL), session->vocabulary, 1, &next));
    assert_true(setun_tokenizer_is_end(setun_model_tokenizer(model), next.id));
    /* going on without a prompt: the same end again */
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, session->vocabulary, &sampler));
    EXPECT_OK(setun_generate(session, sampler, NULL, 0, NULL, &r));
    assert_int_equal(r.finish, SETUN_FINISH_END);
    assert_int_equal(r.generated_tokens, 0);
    EXPECT_OK(setun_session_truncate(session, 3));
    assert_int_equal(setun_generate(session, sampler, NULL, 0, NULL, &r), SETUN_ERROR_STATE);
    setun_sampler_destroy(sampler);
}

static void ends_by_length(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    setun_generate_result r = answer(NULL, &(setun_generate_options){.tokens = 3}, &h);
    assert_string_equal(h.text, "The capital of");
    assert_int_equal(r.finish, SETUN_FINISH_LENGTH);
    assert_int_equal(r.generated_tokens, 3);
    assert_int_equal(setun_session_position(session), (int)prompt_count + 3);
    /* the last one not fed: the same text, also with guesses */
    for (int lookup = 0; lookup < 3; lookup++) {
        r = answer(NULL, &(setun_generate_options){.tokens = 3, .leave_last = true, .lookup = lookup}, &h);
        assert_string_equal(h.text, "The capital of");
        assert_int_equal(r.finish, SETUN_FINISH_LENGTH);
        assert_int_equal(r.generated_tokens, 3);
        assert_int_equal(setun_session_position(session), (int)prompt_count + 2);
    }
}

static void ends_by_stop_string(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    const char *stops[] = {"xyz", "ance is"};
    setun_generate_result r = answer(NULL, &(setun_generate_options){.stop = stops, .stop_count = 2}, &h);
    assert_string_equal(h.text, "The capital of Fr");
    assert_int_equal(r.finish, SETUN_FINISH_STOP);
    const char *never[] = {"Paris.!"}; /* held back, and given out at the end */
    r = answer(NULL, &(setun_generate_options){.stop = never, .stop_count = 1}, &h);
    assert_string_equal(h.text, "The capital of France is Paris.");
    assert_int_equal(r.finish, SETUN_FINISH_END);
    const char *empty[] = {""};
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, session->vocabulary, &sampler));
    assert_int_equal(setun_generate(session, sampler, prompt, 1, &(setun_generate_options){.size = sizeof(setun_generate_options), .stop = empty, .stop_count = 1}, NULL), SETUN_ERROR_ARGUMENT);
    setun_sampler_destroy(sampler);
}

static void ends_by_callback_and_cancel(void **state)
{
    (void)state;
    heard h = {.stop_at = 2};
    setun_generate_result r = answer(NULL, &(setun_generate_options){.tokens = 0}, &h);
    assert_string_equal(h.text, "The capital");
    assert_int_equal(r.finish, SETUN_FINISH_CANCELLED);
    setun_session_cancel(session);
    h.stop_at = 0;
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, session->vocabulary, &sampler));
    int before = setun_session_position(session);
    EXPECT_OK(setun_generate(session, sampler, prompt, prompt_count, NULL, &r));
    assert_int_equal(r.finish, SETUN_FINISH_CANCELLED);
    assert_int_equal(r.generated_tokens, 0);
    assert_int_equal(setun_session_position(session), before);
    setun_sampler_destroy(sampler);
}

static void ends_by_context(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    setun_generate_result r = answer(NULL, &(setun_generate_options){.ignore_end = true}, &h);
    assert_int_equal(r.finish, SETUN_FINISH_CONTEXT);
    assert_int_equal(setun_session_position(session), 96);
    assert_int_equal(r.generated_tokens, 96 - (int)prompt_count + 1);
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, session->vocabulary, &sampler));
    assert_int_equal(setun_generate(session, sampler, prompt, prompt_count, NULL, NULL), SETUN_ERROR_CONTEXT);
    setun_sampler_destroy(sampler);
}

static void special_tokens(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    (void)answer(NULL, &(setun_generate_options){.tokens = h.count + 12, .ignore_end = true}, &h);
    assert_null(strstr(h.text, "<|im_end|>"));
    (void)answer(NULL, &(setun_generate_options){.tokens = 12, .ignore_end = true, .keep_special = true}, &h);
    assert_non_null(strstr(h.text, "Paris.<|im_end|>"));
}

static void log_probabilities(void **state)
{
    (void)state;
    heard h = {.stop_at = 0};
    setun_sampler_options how = {.size = sizeof how, .temperature = 1.2f, .seed = 3};
    (void)answer(&how, &(setun_generate_options){.tokens = 20, .logprobs = 5}, &h);
    assert_true(h.count > 0);
}

static void the_same_seed_gives_the_same_text(void **state)
{
    (void)state;
    heard first = {.stop_at = 0}, again = {.stop_at = 0}, other = {.stop_at = 0};
    setun_sampler_options how = {.size = sizeof how, .temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repetition_penalty = 1.1f, .seed = 7};
    setun_generate_options o = {.tokens = 24, .ignore_end = true};
    (void)answer(&how, &o, &first);
    (void)answer(&how, &o, &again);
    assert_string_equal(first.text, again.text);
    how.seed = 8;
    (void)answer(&how, &o, &other);
    assert_string_not_equal(first.text, other.text);
    /* three threads */
    how.seed = 7;
    setun_context *c = test_context(3, NULL);
    setun_model *m;
    setun_session *mine = session, *s;
    EXPECT_OK(setun_model_open(c, SETUN_TEST_MODEL, NULL, &m));
    EXPECT_OK(setun_session_create(m, &(setun_session_options){.size = sizeof(setun_session_options), .context = 96}, &s));
    session = s;
    (void)answer(&how, &o, &again);
    session = mine;
    setun_session_destroy(s);
    setun_model_close(m);
    setun_context_destroy(c);
    assert_string_equal(first.text, again.text);
}

/* open, session, feed, generate, explain, embed, close: with the n-th allocation failing, for every n. */
static setun_status everything(setun_context *c, const char *path)
{
    setun_model *m = NULL;
    setun_session *s = NULL;
    setun_sampler *sampler = NULL;
    char *text = NULL;
    setun_session_options options = {.size = sizeof options, .context = 24, .batch = 4};
    setun_explain_options explain = {.size = sizeof explain, .session = options};
    setun_sampler_options how = {.size = sizeof how, .temperature = 1.0f, .presence_penalty = 0.1f};
    setun_generate_options generate = {.size = sizeof generate, .tokens = 3, .logprobs = 2, .ignore_end = true};
    const int32_t ids[5] = {1, 2, 3, 4, 5};
    float embedding[4096];
    setun_status status = setun_model_open(c, path, NULL, &m);
    if (status == SETUN_OK) status = setun_session_create(m, &options, &s);
    if (status == SETUN_OK) status = setun_session_feed(s, ids, 5);
    if (status == SETUN_OK) {
        setun_model_info info = {.size = sizeof info};
        EXPECT_OK(setun_model_get_info(m, &info));
        assert_true(info.width <= 4096);
        status = setun_sampler_create(&how, s->vocabulary, &sampler);
    }
    if (status == SETUN_OK) status = setun_generate(s, sampler, ids, 2, &generate, NULL);
    if (status == SETUN_OK) status = setun_model_explain(m, &explain, &text);
    if (status == SETUN_OK) status = setun_session_embed(s, ids, 5, embedding);
    setun_free(text);
    setun_sampler_destroy(sampler);
    setun_session_destroy(s);
    setun_model_close(m);
    return status;
}

static void allocation_failures(void **state)
{
    (void)state;
    const char *const families[] = {"llama_bitnet", "bonsai_mlx", "rotated"};
    setun_context *c = test_context(2, NULL);
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/families/%s/model.gguf", SETUN_TEST_GOLDEN, families[f]);
        if (access(path, R_OK)) snprintf(path, sizeof path, "%s/families/%s", SETUN_TEST_GOLDEN, families[f]);
        EXPECT_OK(everything(c, path)); /* also fills what is made once */
        int64_t live = setun_alloc_live();
        uint64_t start = setun_alloc_count();
        EXPECT_OK(everything(c, path));
        uint64_t all = setun_alloc_count() - start;
        assert_int_equal(setun_alloc_live(), live);
        uint64_t step = all > 1500 ? all / 1500 : 1; /* every n, or a spread of them */
        for (uint64_t n = 1; n <= all; n += n < 300 ? 1 : step) {
            setun_alloc_fail_at(n);
            setun_status status = everything(c, path);
            setun_alloc_fail_at(0);
            if (status != SETUN_ERROR_MEMORY) fail_msg("%s: allocation %llu of %llu failed, and the answer was %s: %s", families[f], (unsigned long long)n, (unsigned long long)all, setun_status_name(status), setun_error());
            if (setun_alloc_live() != live) fail_msg("%s: allocation %llu of %llu failed and %lld blocks leaked", families[f], (unsigned long long)n, (unsigned long long)all, (long long)(setun_alloc_live() - live));
        }
        print_message("%s: %llu allocations\n", families[f], (unsigned long long)all);
    }
    setun_context_destroy(c);
}

static void context_failures(void **state)
{
    (void)state;
    int64_t live = setun_alloc_live();
    for (uint64_t n = 1; n < 50; n++) {
        setun_alloc_fail_at(n);
        setun_context *c;
        setun_status status = setun_context_create(&(setun_context_options){.size = sizeof(setun_context_options), .threads = 3}, &c);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            setun_context_destroy(c);
            break;
        }
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_null(c);
    }
    assert_int_equal(setun_alloc_live(), live);
    setun_context *c;
    assert_int_equal(setun_context_create(&(setun_context_options){.size = sizeof(setun_context_options), .isa = "mmx"}, &c), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_context_create(&(setun_context_options){.size = sizeof(setun_context_options), .threads = -1}, &c), SETUN_ERROR_ARGUMENT);
    setenv("SETUN_THREADS", "many", 1);
    assert_int_equal(setun_context_create(NULL, &c), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "SETUN_THREADS"));
    setenv("SETUN_THREADS", "2", 1);
    setenv("SETUN_ISA", "ref", 1);
    EXPECT_OK(setun_context_create(NULL, &c));
    assert_int_equal(setun_context_threads(c), 2);
    assert_string_equal(setun_context_isa(c), "ref");
    char *json;
    EXPECT_OK(setun_context_describe(c, &json));
    json_error_t error;
    json_t *root = json_loads(json, 0, &error);
    if (!root) fail_msg("describe's JSON: %s", error.text);
    assert_string_equal(json_string_value(json_object_get(json_object_get(root, "kernels"), "ternary_i8")), "ref");
    json_decref(root);
    setun_free(json);
    setun_context_destroy(c);
    unsetenv("SETUN_THREADS");
    unsetenv("SETUN_ISA");
}

int main(void)
{
    const struct CMUnitTest small[] = {cmocka_unit_test(allocation_failures), cmocka_unit_test(context_failures)};
    int failed = cmocka_run_group_tests(small, NULL, NULL);
    if (!test_model_exists()) return failed ? failed : 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_with_the_answer), cmocka_unit_test(ends_by_length), cmocka_unit_test(ends_by_stop_string), cmocka_unit_test(ends_by_callback_and_cancel), cmocka_unit_test(ends_by_context),
        cmocka_unit_test(special_tokens), cmocka_unit_test(log_probabilities), cmocka_unit_test(the_same_seed_gives_the_same_text),
    };
    return failed + cmocka_run_group_tests(tests, setup, teardown);
}
