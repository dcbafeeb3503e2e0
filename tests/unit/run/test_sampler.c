/*
 * test_sampler.c - the order of the filters, exact probabilities by counting many draws, penalties, seeds, bad logits.
 */
#include "run/run.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { SMALL = 8 };
static const float logits[SMALL] = {1.0f, 3.0f, -2.0f, 0.5f, 2.5f, 3.0f, -1.0f, 0.0f};

static setun_sampler *make(const setun_sampler_options *options, int vocabulary)
{
    setun_sampler *s;
    if (setun_sampler_create(options, vocabulary, &s) != SETUN_OK) fail_msg("%s", setun_error());
    return s;
}

static int32_t pick(setun_sampler *s, const float *l)
{
    int32_t id;
    if (setun_sampler_pick(s, l, &id) != SETUN_OK) fail_msg("%s", setun_error());
    return id;
}

/* Counts of many draws against expected probabilities: within 5 standard deviations, and never where p is 0. */
static void expect_distribution(const setun_sampler_options *options, const float *l, const double *p, int vocabulary)
{
    enum { DRAWS = 40000 };
    setun_sampler *s = make(options, vocabulary);
    int counts[64] = {0};
    for (int i = 0; i < DRAWS; i++) counts[pick(s, l)]++;
    for (int i = 0; i < vocabulary; i++) {
        double expected = p[i] * DRAWS, deviation = sqrt(DRAWS * p[i] * (1 - p[i]));
        if (p[i] == 0.0) assert_int_equal(counts[i], 0);
        else if (fabs(counts[i] - expected) > 5 * deviation + 1) fail_msg("token %d: %d draws, expected %.0f (seed %llu)", i, counts[i], expected, (unsigned long long)options->seed);
    }
    setun_sampler_destroy(s);
}

static void softmax_of(const float *l, const int *keep, int count, double temperature, double *p)
{
    double sum = 0, top = -INFINITY;
    for (int i = 0; i < count; i++)
        if (keep[i] && l[i] > top) top = l[i];
    for (int i = 0; i < count; i++) sum += p[i] = keep[i] ? exp((l[i] - top) / temperature) : 0.0;
    for (int i = 0; i < count; i++) p[i] /= sum;
}

static void exp_is_exp(void **state)
{
    (void)state;
    for (double x = 0.0; x > -760.0; x -= 0.013) {
        double wanted = exp(x), got = setun_exp_nonpositive(x);
        if (wanted > 1e-300) assert_true(fabs(got - wanted) <= 4e-16 * wanted);
        else assert_true(got >= 0.0 && got <= 1e-300);
    }
    assert_true(setun_exp_nonpositive(0.0) == 1.0);
    assert_true(setun_exp_nonpositive(-INFINITY) == 0.0);
    assert_true(isnan(setun_exp_nonpositive(NAN)));
}

static void greedy_takes_the_lower_id(void **state)
{
    (void)state;
    setun_sampler *s = make(NULL, SMALL);
    assert_int_equal(pick(s, logits), 1); /* 1 and 5 tie */
    setun_sampler_destroy(s);
}

static void temperature(void **state)
{
    (void)state;
    const int all[SMALL] = {1, 1, 1, 1, 1, 1, 1, 1};
    double p[SMALL];
    setun_sampler_options o = {.size = sizeof o, .temperature = 0.7f, .seed = 11};
    softmax_of(logits, all, SMALL, 0.7f, p);
    expect_distribution(&o, logits, p, SMALL);
    o.temperature = 2.0f;
    softmax_of(logits, all, SMALL, 2.0, p);
    expect_distribution(&o, logits, p, SMALL);
}

static void top_k(void **state)
{
    (void)state;
    const int kept[SMALL] = {0, 1, 0, 0, 1, 1, 0, 0};
    double p[SMALL];
    setun_sampler_options o = {.size = sizeof o, .temperature = 1.0f, .top_k = 3, .seed = 12};
    softmax_of(logits, kept, SMALL, 1.0, p);
    expect_distribution(&o, logits, p, SMALL);
    const int one[SMALL] = {0, 1, 0, 0, 0, 0, 0, 0}; /* of a tie the lower id stays */
    o.top_k = 1;
    softmax_of(logits, one, SMALL, 1.0, p);
    expect_distribution(&o, logits, p, SMALL);
}

/* The nucleus is taken before temperature: with temperature 5 first, more tokens would be in it. */
static void top_p(void **state)
{
    (void)state;
    const int all[SMALL] = {1, 1, 1, 1, 1, 1, 1, 1};
    double p[SMALL];
    softmax_of(logits, all, SMALL, 1.0, p);
    assert_true(p[1] + p[5] < 0.75 && p[1] + p[5] + p[4] > 0.75);
    const int kept[SMALL] = {0, 1, 0, 0, 1, 1, 0, 0};
    setun_sampler_options o = {.size = sizeof o, .temperature = 5.0f, .top_p = 0.75f, .seed = 13};
    softmax_of(logits, kept, SMALL, 5.0, p);
    expect_distribution(&o, logits, p, SMALL);
    o.top_k = 6; /* the same through the sorted path */
    expect_distribution(&o, logits, p, SMALL);
}

static void min_p(void **state)
{
    (void)state;
    /* p / p_max: 0.135 for id 0, 0.082 for id 3, 0.607 for id 4 */
    const int kept[SMALL] = {1, 1, 0, 0, 1, 1, 0, 0};
    double p[SMALL];
    setun_sampler_options o = {.size = sizeof o, .temperature = 1.5f, .min_p = 0.1f, .seed = 14};
    softmax_of(logits, kept, SMALL, 1.5, p);
    expect_distribution(&o, logits, p, SMALL);
}

static void bias(void **state)
{
    (void)state;
    setun_logit_bias list[] = {{1, -INFINITY}, {5, -INFINITY}, {2, 10.0f}};
    setun_sampler_options o = {.size = sizeof o, .bias = list, .bias_count = 3};
    setun_sampler *s = make(&o, SMALL);
    list[2].bias = -10.0f; /* the sampler has its own copy */
    assert_int_equal(pick(s, logits), 2);
    setun_sampler_destroy(s);
    float biased[SMALL];
    const int kept[SMALL] = {1, 0, 1, 1, 1, 0, 1, 1};
    memcpy(biased, logits, sizeof biased);
    biased[2] += -10.0f;
    double p[SMALL];
    softmax_of(biased, kept, SMALL, 1.0, p);
    o.temperature = 1.0f;
    o.seed = 15;
    expect_distribution(&o, logits, p, SMALL);
    setun_logit_bias none[SMALL];
    for (int i = 0; i < SMALL; i++) none[i] = (setun_logit_bias){i, -INFINITY};
    o.bias = none;
    o.bias_count = SMALL;
    s = make(&o, SMALL);
    int32_t id;
    assert_int_equal(setun_sampler_pick(s, logits, &id), SETUN_ERROR_ARGUMENT);
    setun_sampler_destroy(s);
}

static void penalties(void **state)
{
    (void)state;
    /* repetition: 3/2 = 1.5 and (negative) -1*2 = -2 */
    setun_sampler_options o = {.size = sizeof o, .repetition_penalty = 2.0f};
    setun_sampler *s = make(&o, SMALL);
    assert_int_equal(setun_sampler_accept(s, 1), SETUN_OK);
    assert_int_equal(pick(s, logits), 5);
    assert_int_equal(setun_sampler_accept(s, 5), SETUN_OK);
    assert_int_equal(pick(s, logits), 4);
    const float negative[3] = {-1.0f, -1.5f, -9.0f};
    setun_sampler_destroy(s);
    s = make(&o, 3);
    assert_int_equal(setun_sampler_accept(s, 0), SETUN_OK);
    assert_int_equal(pick(s, negative), 1);
    setun_sampler_reset(s);
    assert_int_equal(pick(s, negative), 0);
    setun_sampler_destroy(s);

    /* frequency counts every time, presence once: 3 - 0.2*2 = 2.6 > 2.5; 3 - 0.2*3 = 2.4 < 2.5 */
    o = (setun_sampler_options){.size = sizeof o, .frequency_penalty = 0.2f};
    s = make(&o, SMALL);
    for (int i = 0; i < 2; i++) assert_int_equal(setun_sampler_accept(s, 1), SETUN_OK);
    for (int i = 0; i < 2; i++) assert_int_equal(setun_sampler_accept(s, 5), SETUN_OK);
    assert_int_equal(pick(s, logits), 1);
    assert_int_equal(setun_sampler_accept(s, 1), SETUN_OK);
    assert_int_equal(setun_sampler_accept(s, 5), SETUN_OK);
    assert_int_equal(pick(s, logits), 4);
    setun_sampler_destroy(s);
    o = (setun_sampler_options){.size = sizeof o, .presence_penalty = 0.4f};
    s = make(&o, SMALL);
    for (int i = 0; i < 9; i++) assert_int_equal(setun_sampler_accept(s, 1), SETUN_OK);
    for (int i = 0; i < 9; i++) assert_int_equal(setun_sampler_accept(s, 5), SETUN_OK);
    assert_int_equal(pick(s, logits), 1);
    setun_sampler_destroy(s);
}

static void the_window_forgets(void **state)
{
    (void)state;
    setun_sampler_options o = {.size = sizeof o, .presence_penalty = 1.0f, .penalty_window = 2};
    setun_sampler *s = make(&o, SMALL);
    setun_sampler_accept(s, 1);
    setun_sampler_accept(s, 5);
    assert_int_equal(pick(s, logits), 4);
    setun_sampler_accept(s, 7); /* 1 leaves the window */
    assert_int_equal(pick(s, logits), 1);
    setun_sampler_destroy(s);
    o.penalty_window = -1;
    s = make(&o, SMALL);
    setun_sampler_accept(s, 1);
    for (int i = 0; i < 1000; i++) setun_sampler_accept(s, 5);
    assert_int_equal(pick(s, logits), 4);
    setun_sampler_destroy(s);
}

static void seeds(void **state)
{
    (void)state;
    setun_sampler_options o = {.size = sizeof o, .temperature = 1.0f, .seed = 42};
    setun_sampler *a = make(&o, SMALL), *b = make(&o, SMALL);
    o.seed = 43;
    setun_sampler *c = make(&o, SMALL);
    int32_t first[64];
    int different = 0;
    for (int i = 0; i < 64; i++) {
        first[i] = pick(a, logits);
        assert_int_equal(first[i], pick(b, logits));
        different += first[i] != pick(c, logits);
    }
    assert_true(different > 10);
    setun_sampler_reset(a);
    for (int i = 0; i < 64; i++) assert_int_equal(pick(a, logits), first[i]);
    /* The same on every machine: pinned. */
    static const int32_t pinned[8] = {1, 1, 5, 5, 7, 5, 5, 5};
    for (int i = 0; i < 8; i++) assert_int_equal(first[i], pinned[i]);
    setun_sampler_destroy(a);
    setun_sampler_destroy(b);
    setun_sampler_destroy(c);
}

/* top_p over a large vocabulary leaves out most before sorting: the same tokens as sorting everything. */
static void large_vocabulary(void **state)
{
    (void)state;
    enum { LARGE = 20000 };
    float *l = malloc(LARGE * sizeof *l);
    uint32_t x = 7;
    for (int spread = 1; spread <= 12; spread += 11) { /* nearly flat: half of the tokens below the average; and steep */
        for (int i = 0; i < LARGE; i++) {
            x = x * 1664525u + 1013904223u;
            l[i] = (float)(x >> 8) / 16777216.0f * (float)spread;
        }
        setun_sampler_options o = {.size = sizeof o, .temperature = 1.0f, .top_p = 0.9f, .seed = 5};
        setun_sampler *filtered = make(&o, LARGE);
        o.top_k = LARGE; /* sorts everything first */
        setun_sampler *sorted = make(&o, LARGE);
        for (int i = 0; i < 20; i++) assert_int_equal(pick(filtered, l), pick(sorted, l));
        setun_sampler_destroy(filtered);
        setun_sampler_destroy(sorted);
    }
    free(l);
}

static void bad_logits_and_options(void **state)
{
    (void)state;
    setun_sampler_options o = {.size = sizeof o, .temperature = 1.0f};
    setun_sampler *s = make(&o, 3);
    int32_t id;
    const float nan_logits[3] = {0.0f, NAN, 1.0f}, infinite[3] = {0.0f, INFINITY, 1.0f}, banned[3] = {-INFINITY, -INFINITY, -INFINITY}, one[3] = {-INFINITY, -INFINITY, 1.0f};
    assert_int_equal(setun_sampler_pick(s, nan_logits, &id), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "logit 1 is NaN"));
    assert_int_equal(setun_sampler_pick(s, infinite, &id), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_sampler_pick(s, banned, &id), SETUN_ERROR_ARGUMENT);
    for (int i = 0; i < 50; i++) assert_int_equal(pick(s, one), 2);
    assert_int_equal(setun_sampler_accept(s, 3), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_sampler_accept(s, -1), SETUN_ERROR_ARGUMENT);
    setun_sampler_destroy(s);
    setun_sampler_destroy(NULL);
    o.temperature = 1e-30f; /* 1 / temperature is large: only the best is left */
    s = make(&o, SMALL);
    for (int i = 0; i < 20; i++) {
        id = pick(s, logits);
        assert_true(id == 1 || id == 5);
    }
    setun_sampler_destroy(s);
    const setun_sampler_options bad[] = {
        {.size = sizeof o, .temperature = -1.0f}, {.size = sizeof o, .temperature = NAN}, {.size = sizeof o, .top_k = -1}, {.size = sizeof o, .top_p = 1.5f}, {.size = sizeof o, .min_p = -0.1f},
        {.size = sizeof o, .repetition_penalty = -1.0f}, {.size = sizeof o, .presence_penalty = NAN}, {.size = sizeof o, .penalty_window = -2}, {.size = sizeof o, .bias_count = 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_int_equal(setun_sampler_create(&bad[i], SMALL, &s), SETUN_ERROR_ARGUMENT);
    setun_logit_bias outside = {SMALL, 1.0f};
    o = (setun_sampler_options){.size = sizeof o, .bias = &outside, .bias_count = 1};
    assert_int_equal(setun_sampler_create(&o, SMALL, &s), SETUN_ERROR_ARGUMENT);
    assert_null(s);
}

static void log_probabilities(void **state)
{
    (void)state;
    double sum = 0;
    for (int i = 0; i < SMALL; i++) sum += exp(logits[i]);
    setun_logprob top[SMALL];
    assert_int_equal(setun_logprobs(logits, SMALL, SMALL, top), SETUN_OK);
    const int32_t order[SMALL] = {1, 5, 4, 0, 3, 7, 6, 2};
    for (int i = 0; i < SMALL; i++) {
        assert_int_equal(top[i].id, order[i]);
        assert_true(fabs(top[i].logprob - (logits[order[i]] - log(sum))) < 1e-6);
        assert_true(setun_logprob_of(logits, SMALL, order[i]) == top[i].logprob);
    }
    assert_int_equal(setun_logprobs(logits, SMALL, 3, top), SETUN_OK);
    assert_int_equal(top[2].id, 4);
    assert_int_equal(setun_logprobs(logits, SMALL, 0, top), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_logprobs(logits, SMALL, SMALL + 1, top), SETUN_ERROR_ARGUMENT);
    assert_true(isnan(setun_logprob_of(logits, SMALL, SMALL)));
    const float broken[2] = {NAN, 0};
    assert_int_equal(setun_logprobs(broken, 2, 1, top), SETUN_ERROR_ARGUMENT);
}

static void allocation_failures(void **state)
{
    (void)state;
    setun_logit_bias one = {1, 1.0f};
    setun_sampler_options o = {.size = sizeof o, .repetition_penalty = 1.1f, .bias = &one, .bias_count = 1};
    int64_t live = setun_alloc_live();
    for (uint64_t n = 1;; n++) {
        setun_sampler *s;
        setun_alloc_fail_at(n);
        setun_status status = setun_sampler_create(&o, SMALL, &s);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            setun_sampler_destroy(s);
            assert_true(n > 4);
            break;
        }
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_null(s);
        assert_int_equal(setun_alloc_live(), live);
    }
    assert_int_equal(setun_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_exp), cmocka_unit_test(greedy_takes_the_lower_id), cmocka_unit_test(temperature), cmocka_unit_test(top_k), cmocka_unit_test(top_p), cmocka_unit_test(min_p),
        cmocka_unit_test(bias), cmocka_unit_test(penalties), cmocka_unit_test(the_window_forgets), cmocka_unit_test(seeds), cmocka_unit_test(large_vocabulary), cmocka_unit_test(bad_logits_and_options),
        cmocka_unit_test(log_probabilities), cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
