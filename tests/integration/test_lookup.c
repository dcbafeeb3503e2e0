/*
 * test_lookup.c - prompt lookup changes nothing but the number of runs: the same ids for greedy picks, seeds, penalties and logprobs, the same
 * context and logits afterwards; and where a text repeats itself, guesses are right.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "setun/setun.h"

static setun_context *context;
static setun_model *model;

typedef struct answer { int32_t ids[200]; float logprobs[200]; int count; setun_generate_result result; int position; float *logits; } answer;

static bool on_token(void *user, const setun_token_event *event) {
    answer *a = user;
    a->ids[a->count] = event->id;
    a->logprobs[a->count++] = event->logprob;
    return true;
}

static void answer_to(const char *text, const setun_sampler_options *sampling, int lookup, int tokens, int logprobs, int room, answer *a) {
    memset(a, 0, sizeof *a);
    int32_t *ids;
    size_t count;
    setun_session *session;
    setun_sampler *sampler;
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    assert_int_equal(setun_tokenizer_encode(setun_model_tokenizer(model), text, strlen(text), SETUN_TOKENIZE_ADD_SPECIAL, &ids, &count), SETUN_OK);
    setun_session_options options = {.size = sizeof options, .context = room ? room : 512, .batch = 64};
    if (setun_session_create(model, &options, &session) != SETUN_OK) fail_msg("%s", setun_error());
    assert_int_equal(setun_sampler_create(sampling, info.vocabulary, &sampler), SETUN_OK);
    setun_generate_options o = {.size = sizeof o, .tokens = tokens, .logprobs = logprobs, .ignore_end = true, .token = on_token, .token_user = a, .lookup = lookup};
    a->result.size = sizeof a->result;
    if (setun_generate(session, sampler, ids, count, &o, &a->result) != SETUN_OK) fail_msg("%s", setun_error());
    a->position = setun_session_position(session);
    a->logits = malloc((size_t)info.vocabulary * sizeof *a->logits);
    assert_non_null(a->logits);
    const float *logits = setun_session_logits(session, NULL);
    assert_non_null(logits);
    memcpy(a->logits, logits, (size_t)info.vocabulary * sizeof *logits);
    setun_free(ids);
    setun_sampler_destroy(sampler);
    setun_session_destroy(session);
}

static void same(const char *text, const setun_sampler_options *sampling, int tokens, int logprobs, int room, int *drafted, int *accepted) {
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    answer one, many;
    answer_to(text, sampling, 0, tokens, logprobs, room, &one);
    assert_int_equal(one.result.drafted_tokens, 0);
    for (int lookup = 1; lookup <= 31; lookup += 15) {
        answer_to(text, sampling, lookup, tokens, logprobs, room, &many);
        assert_int_equal(many.count, one.count);
        assert_memory_equal(many.ids, one.ids, (size_t)one.count * sizeof one.ids[0]);
        assert_memory_equal(many.logprobs, one.logprobs, (size_t)one.count * sizeof one.logprobs[0]);
        assert_int_equal(many.result.finish, one.result.finish);
        assert_int_equal(many.position, one.position);
        assert_memory_equal(many.logits, one.logits, (size_t)info.vocabulary * sizeof *one.logits);
        assert_true(many.result.accepted_tokens <= many.result.drafted_tokens && many.result.accepted_tokens < one.count);
        *drafted = many.result.drafted_tokens;
        *accepted = many.result.accepted_tokens;
        free(many.logits);
    }
    free(one.logits);
}

static const char repeats[] = "one two three four five six seven eight nine ten. one two three four five six seven eight nine ten. one two three four five six";
static const char tells[] = "The ship left the harbour at dawn, and nobody on board knew";

static void texts_are_the_same(void **state) {
    (void)state;
    int drafted, accepted;
    setun_sampler_options greedy = {.size = sizeof greedy};
    same(repeats, &greedy, 40, 0, 0, &drafted, &accepted);
    print_message("a text that repeats: %d drafted, %d accepted of 40\n", drafted, accepted);
    assert_true(accepted >= 15);
    same(tells, &greedy, 40, 0, 0, &drafted, &accepted);
    print_message("a text that does not: %d drafted, %d accepted of 40\n", drafted, accepted);
    setun_sampler_options seeded = {.size = sizeof seeded, .temperature = 0.8f, .top_k = 40, .seed = 7};
    same(repeats, &seeded, 30, 0, 0, &drafted, &accepted);
    setun_sampler_options penalised = {.size = sizeof penalised, .repetition_penalty = 1.1f};
    same(repeats, &penalised, 30, 0, 0, &drafted, &accepted);
    same(repeats, &greedy, 20, 3, 0, &drafted, &accepted);
}

static void a_full_context_ends_alike(void **state) {
    (void)state;
    int drafted, accepted;
    setun_sampler_options greedy = {.size = sizeof greedy};
    same(repeats, &greedy, 0, 0, 64, &drafted, &accepted);
}

static void impossible_numbers(void **state) {
    (void)state;
    setun_session *session;
    setun_sampler *sampler;
    setun_sampler_options greedy = {.size = sizeof greedy};
    setun_session_options options = {.size = sizeof options, .context = 64};
    assert_int_equal(setun_session_create(model, &options, &session), SETUN_OK);
    assert_int_equal(setun_sampler_create(&greedy, 1000, &sampler), SETUN_OK);
    int32_t id = 1;
    setun_generate_options o = {.size = sizeof o, .tokens = 1, .lookup = 32};
    assert_int_equal(setun_generate(session, sampler, &id, 1, &o, NULL), SETUN_ERROR_ARGUMENT);
    o.lookup = -1;
    assert_int_equal(setun_generate(session, sampler, &id, 1, &o, NULL), SETUN_ERROR_ARGUMENT);
    setun_sampler_destroy(sampler);
    setun_session_destroy(session);
}

int main(void) {
    if (setun_context_create(NULL, &context) != SETUN_OK || setun_model_open(context, SETUN_TEST_MODEL, NULL, &model) != SETUN_OK) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(texts_are_the_same), cmocka_unit_test(a_full_context_ends_alike), cmocka_unit_test(impossible_numbers)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setun_model_close(model);
    setun_context_destroy(context);
    return failed;
}
