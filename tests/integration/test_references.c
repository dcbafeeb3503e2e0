/*
 * test_references.c - the model in the repository against references computed elsewhere in float32 (tools/make_reference_goldens.py):
 * token ids of the prompts, the 20 best log-probabilities of each position, the last logits, 48 greedy tokens.
 *
 * Rounding activations to int8 makes the model sensitive: a value on a tie rounds up here and down there, and 30 layers amplify it.
 * The references' own answer moves by about 1 % of the logits' size when the embedding is changed by 1e-6, and their own program repeats its
 * 48 greedy tokens for four of the six prompts when the same sums are done in another order, for two or three after that change;
 * where it parts, the two best logits lie within 0.12 of each other. So free-running text can only be equal by luck beyond
 * that. What is asked for: along the reference's own text the first choice is the reference's, or within that distance.
 */
#include "integration/support.h"

typedef struct fixture { setun_context *context; setun_model *model; setun_session *session; json_t *references; } fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->context = test_context(1, NULL); /* no barriers: steady on a busy machine */
    EXPECT_OK(setun_model_open(f->context, SETUN_TEST_MODEL, NULL, &f->model));
    setun_session_options options = {.size = sizeof options, .context = 256};
    EXPECT_OK(setun_session_create(f->model, &options, &f->session));
    f->references = test_references();
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    setun_session_destroy(f->session);
    setun_model_close(f->model);
    setun_context_destroy(f->context);
    json_decref(f->references);
    free(f);
    return 0;
}

static void prompts_have_the_ids(void **state)
{
    fixture *f = *state;
    const setun_tokenizer *tokenizer = setun_model_tokenizer(f->model);
    assert_non_null(tokenizer);
    for (size_t r = 0; r < json_array_size(f->references); r++) {
        const json_t *entry = json_array_get(f->references, r), *prompt = json_object_get(entry, "prompt");
        size_t count, got_count;
        int32_t *ids = test_ids(json_object_get(entry, "ids"), &count), *got;
        EXPECT_OK(setun_tokenizer_encode(tokenizer, json_string_value(prompt), json_string_length(prompt), SETUN_TOKENIZE_PARSE_SPECIAL, &got, &got_count));
        assert_int_equal(got_count, count);
        assert_memory_equal(got, ids, count * sizeof *ids);
        setun_free(got);
        free(ids);
    }
}

typedef struct comparison { const json_t *top; double sum, worst; size_t values, same_first, rows; } comparison;

static bool compare_row(void *user, size_t index, const float *logits, int vocabulary)
{
    comparison *c = user;
    const json_t *row = json_array_get(c->top, index), *ids = json_object_get(row, "ids"), *logprobs = json_object_get(row, "logprobs");
    double total = setun_log_sum_exp(logits, vocabulary);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        double ours = (double)logits[json_integer_value(json_array_get(ids, i))] - total, difference = fabs(ours - json_number_value(json_array_get(logprobs, i)));
        c->sum += difference;
        if (difference > c->worst) c->worst = difference;
        c->values++;
    }
    setun_logprob best;
    EXPECT_OK(setun_logprobs(logits, vocabulary, 1, &best));
    c->same_first += best.id == json_integer_value(json_array_get(ids, 0));
    c->rows++;
    return true;
}

static void logits_of_every_position(void **state)
{
    fixture *f = *state;
    comparison all = {0};
    for (size_t r = 0; r < json_array_size(f->references); r++) {
        const json_t *entry = json_array_get(f->references, r);
        size_t count;
        int32_t *ids = test_ids(json_object_get(entry, "ids"), &count);
        EXPECT_OK(setun_session_truncate(f->session, 0));
        comparison c = {.top = json_object_get(entry, "top")};
        EXPECT_OK(setun_session_feed_all(f->session, ids, count, compare_row, &c));
        assert_int_equal(c.rows, count);
        /* last logits, relative to their own size */
        const json_t *last = json_object_get(entry, "last_logits");
        size_t stride = (size_t)json_integer_value(json_object_get(entry, "logit_stride"));
        const float *logits = setun_session_logits(f->session, NULL);
        double difference = 0, size = 0;
        for (size_t i = 0; i < json_array_size(last); i++) {
            double wanted = json_number_value(json_array_get(last, i)), d = (double)logits[i * stride] - wanted;
            difference += d * d;
            size += wanted * wanted;
        }
        double relative = sqrt(difference / size);
        print_message("reference %zu: %zu tokens, log-probabilities differ by %.4f on average, %.4f at most; first choice equal %zu/%zu; last logits differ by %.3f %%\n", r, count,
                      c.sum / (double)c.values, c.worst, c.same_first, c.rows, 100 * relative);
        assert_true(relative < 0.05);
        all.sum += c.sum;
        all.values += c.values;
        all.same_first += c.same_first;
        all.rows += c.rows;
        free(ids);
    }
    print_message("all: %.4f on average; first choice equal %zu/%zu\n", all.sum / (double)all.values, all.same_first, all.rows);
    assert_true(all.sum / (double)all.values < 0.1);
    assert_true(all.same_first * 100 >= all.rows * 95);
}

/* Without rounding the arithmetic is the same up to the order of float sums: float64 computed from the model's values. */
static void logits_without_rounding(void **state)
{
    fixture *f = *state;
    setun_session_options options = {.size = sizeof options, .context = 64, .kv_type = "f32", .no_activation_quantisation = true};
    setun_session *session;
    EXPECT_OK(setun_session_create(f->model, &options, &session));
    for (size_t r = 0; r < json_array_size(f->references); r++) {
        const json_t *entry = json_array_get(f->references, r), *last = json_object_get(entry, "last_logits_without_rounding");
        size_t count, stride = (size_t)json_integer_value(json_object_get(entry, "logit_stride"));
        int32_t *ids = test_ids(json_object_get(entry, "ids"), &count);
        EXPECT_OK(setun_session_truncate(session, 0));
        EXPECT_OK(setun_session_feed(session, ids, count));
        const float *logits = setun_session_logits(session, NULL);
        double difference = 0, size = 0;
        for (size_t i = 0; i < json_array_size(last); i++) {
            double wanted = json_number_value(json_array_get(last, i)), d = (double)logits[i * stride] - wanted;
            difference += d * d;
            size += wanted * wanted;
        }
        print_message("reference %zu without rounding: relative error %.2e\n", r, sqrt(difference / size));
        assert_true(sqrt(difference / size) <= 1e-5);
        free(ids);
    }
    setun_session_destroy(session);
}

static bool collect(void *user, const setun_token_event *event)
{
    int32_t *ids = user;
    ids[++ids[0]] = event->id;
    return true;
}

enum { GREEDY = 48 };
/* Two logits nearer than this are a tie between rounding errors: activations rounded to int8 turn a difference in the last bit of a sum into one of
 * up to this size (logits_of_every_position prints the largest; without rounding, logits agree to 3e-7). */
static const float NEAR_TIE = 0.3f;

typedef struct along { const int32_t *wanted; size_t first; size_t same, near; float widest; } along;

static bool compare_choice(void *user, size_t index, const float *logits, int vocabulary)
{
    along *a = user;
    if (index < a->first) return true;
    int32_t wanted = a->wanted[index - a->first];
    setun_logprob best;
    EXPECT_OK(setun_logprobs(logits, vocabulary, 1, &best));
    float gap = logits[best.id] - logits[wanted];
    if (gap > a->widest) a->widest = gap;
    if (best.id == wanted) a->same++;
    else if (gap < NEAR_TIE) a->near++;
    return true;
}

/* The first choice after every token of the reference's own text. */
static void greedy_choices_along_the_reference(void **state)
{
    fixture *f = *state;
    size_t same = 0, all = 0;
    for (size_t r = 0; r < json_array_size(f->references); r++) {
        const json_t *entry = json_array_get(f->references, r);
        size_t count, wanted_count;
        int32_t *ids = test_ids(json_object_get(entry, "ids"), &count), *wanted = test_ids(json_object_get(entry, "greedy"), &wanted_count);
        assert_int_equal(wanted_count, GREEDY);
        int32_t text[256];
        memcpy(text, ids, count * sizeof *ids);
        memcpy(text + count, wanted, (GREEDY - 1) * sizeof *ids);
        EXPECT_OK(setun_session_truncate(f->session, 0));
        along a = {.wanted = wanted, .first = count - 1};
        EXPECT_OK(setun_session_feed_all(f->session, text, count + GREEDY - 1, compare_choice, &a));
        print_message("reference %zu: %zu of %d choices equal, %zu more within a near tie, widest gap %.4f\n", r, a.same, GREEDY, a.near, (double)a.widest);
        assert_int_equal(a.same + a.near, GREEDY);
        same += a.same;
        all += GREEDY;
        free(ids);
        free(wanted);
    }
    print_message("choices equal: %zu of %zu\n", same, all);
    assert_true(same * 100 >= all * 96);
}

/* Free-running text: equal as long as no near tie parts it. */
static void greedy_text(void **state)
{
    fixture *f = *state;
    size_t equal = 0;
    for (size_t r = 0; r < json_array_size(f->references); r++) {
        const json_t *entry = json_array_get(f->references, r);
        size_t count, wanted_count;
        int32_t *ids = test_ids(json_object_get(entry, "ids"), &count), *wanted = test_ids(json_object_get(entry, "greedy"), &wanted_count);
        EXPECT_OK(setun_session_truncate(f->session, 0));
        setun_sampler *sampler;
        EXPECT_OK(setun_sampler_create(NULL, f->session->vocabulary, &sampler));
        int32_t got[GREEDY + 1] = {0};
        setun_generate_options options = {.size = sizeof options, .tokens = GREEDY, .ignore_end = true, .token = collect, .token_user = got};
        EXPECT_OK(setun_generate(f->session, sampler, ids, count, &options, NULL));
        assert_int_equal(got[0], GREEDY);
        size_t same = 0;
        while (same < GREEDY && got[1 + same] == wanted[same]) same++;
        if (same == GREEDY) equal++;
        else { /* explained by a near tie, or wrong */
            EXPECT_OK(setun_session_truncate(f->session, 0));
            EXPECT_OK(setun_session_feed(f->session, ids, count));
            if (same > 0) EXPECT_OK(setun_session_feed(f->session, wanted, same));
            const float *logits = setun_session_logits(f->session, NULL);
            float gap = logits[got[1 + same]] - logits[wanted[same]];
            print_message("reference %zu parts at token %zu: ours %d, theirs %d; the logits differ by %.4f\n", r, same, (int)got[1 + same], (int)wanted[same], (double)gap);
            assert_true(gap < NEAR_TIE);
        }
        setun_sampler_destroy(sampler);
        free(ids);
        free(wanted);
    }
    print_message("greedy text equal: %zu of %zu\n", equal, json_array_size(f->references));
    assert_true(equal >= 2);
}

static void it_answers(void **state)
{
    fixture *f = *state;
    setun_message messages[] = {{"user", "What is the capital of France?"}};
    int32_t *ids;
    size_t count;
    EXPECT_OK(setun_chat_encode(setun_model_tokenizer(f->model), messages, 1, true, &ids, &count));
    EXPECT_OK(setun_session_truncate(f->session, 0));
    setun_sampler *sampler;
    EXPECT_OK(setun_sampler_create(NULL, f->session->vocabulary, &sampler));
    int32_t got[64] = {0};
    setun_generate_options options = {.size = sizeof options, .tokens = 32, .token = collect, .token_user = got};
    setun_generate_result result = {.size = sizeof result};
    EXPECT_OK(setun_generate(f->session, sampler, ids, count, &options, &result));
    char *text;
    size_t length;
    EXPECT_OK(setun_tokenizer_decode(setun_model_tokenizer(f->model), got + 1, (size_t)got[0], false, &text, &length));
    print_message("answer: %s (prompt %.1f tokens/s, answer %.1f tokens/s)\n", text, result.prompt_tokens / result.prompt_seconds, result.generated_tokens / result.generate_seconds);
    assert_string_equal(text, "The capital of France is Paris.");
    assert_int_equal(result.finish, SETUN_FINISH_END);
    setun_free(text);
    setun_free(ids);
    setun_sampler_destroy(sampler);
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts_have_the_ids), cmocka_unit_test(logits_of_every_position), cmocka_unit_test(logits_without_rounding), cmocka_unit_test(greedy_choices_along_the_reference), cmocka_unit_test(greedy_text), cmocka_unit_test(it_answers)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
