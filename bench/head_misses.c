/*
 * head_misses.c - how far the scores of the head's small copy without a proof (--head shortlist), of 2 bits and of 4, are from the logits, counted over
 * hidden states. The margin is a number of standard deviations of a score's error, |x| |w - w'| / sqrt(columns); a token is missed where the row that should
 * have been picked is scored lower than its logit by more than the margin. Prints how often an error exceeds z deviations, over all
 * rows, over the best and over the row that greedy picking takes, and how many rows come within some margins.
 *
 *     bench_head_misses MODEL TOKENS [TEXT]     TEXT: a file whose tokens are fed; without it pseudo-random tokens
 */
#include "backend/cpu/kernels.h"
#include "backend/cpu/shortlist.h"
#include "run/run.h"
#include <stdlib.h>

enum { DEVIATIONS = 16, TOP = 40, MARGINS = 4 };

/* Of the scores of some bits. */
typedef struct errors {
    int64_t rows_over[DEVIATIONS + 1], top_over[DEVIATIONS + 1], best_over[DEVIATIONS + 1];
    double worst, worst_top, worst_best, squares;
    int64_t inside[MARGINS];    /* rows within so many deviations of the best */
} errors;

typedef struct count {
    setun_session *session;
    const cpu_shortlist *s;
    int64_t rows, states;
    errors two, four;
    float *scores;
    int8_t *limbs;
    float *sums, *high_sums;
} count;

static const int margins[MARGINS] = {6, 7, 8, 10};

static void tally(int64_t *over, double z)
{
    for (int i = 0; i <= DEVIATIONS && z > i; i++) over[i]++;
}

static void add(const count *c, errors *e, const float *logits, const setun_logprob *top, int vocabulary, double deviation, const float *unit_errors, double factor)
{
    const double best = logits[top[0].id] / factor;
    for (int r = 0; r < vocabulary; r++) {
        const double z = (logits[r] / factor - c->scores[r]) / (deviation * unit_errors[r]);
        tally(e->rows_over, z);
        e->squares += z * z;
        if (z > e->worst) e->worst = z;
        for (int m = 0; m < MARGINS; m++) e->inside[m] += c->scores[r] + margins[m] * deviation * unit_errors[r] >= best;
    }
    for (int i = 0; i < TOP; i++) {
        const double z = (logits[top[i].id] / factor - c->scores[top[i].id]) / (deviation * unit_errors[top[i].id]);
        tally(e->top_over, z);
        if (i == 0) tally(e->best_over, z);
        if (z > e->worst_top) e->worst_top = z;
        if (i == 0 && z > e->worst_best) e->worst_best = z;
    }
}

static bool look(void *user, size_t index, const float *logits, int vocabulary)
{
    count *c = user;
    const setun_plan *plan = c->session->plan;
    const setun_step *step = &plan->steps[plan->head.step];
    const cpu_shortlist *s = c->s;
    const setun_kernels *kernels = plan->context->kernels;
    int most = c->session->options.batch < SETUN_SESSION_OUTPUTS ? c->session->options.batch : SETUN_SESSION_OUTPUTS;
    const float *x = (const float *)setun_frame_slot(&c->session->frame, step->input[0]) + (int64_t)(index % (size_t)most) * s->columns;
    memset(c->sums, 0, s->scale_stride * sizeof *c->sums);
    memset(c->high_sums, 0, s->scale_stride * sizeof *c->high_sums);
    memset(c->limbs, 0, 2 * (size_t)s->padded);
    float largest = 0.0f;
    double norm = 0.0;
    for (int64_t i = 0; i < s->columns; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        norm += (double)x[i] * x[i];
    }
    float scale = largest / 16256.0f;
    for (int64_t i = 0; i < s->columns; i++) {
        int v = (int)lrintf(x[i] / largest * 16256.0f), high = (v + 64) >> 7;
        c->limbs[i / 64 * 128 + i % 64] = (int8_t)high;
        c->limbs[i / 64 * 128 + 64 + i % 64] = (int8_t)(v - 128 * high);
        c->sums[i / 512 * 16 + i % 64 / 4] += (float)v;
        c->high_sums[i / 512 * 16 + i % 64 / 4] += (float)(128 * high);
    }
    setun_logprob top[TOP];
    if (setun_logprobs(logits, vocabulary, TOP, top) != SETUN_OK) return false;
    const double deviation = sqrt(norm) / sqrt((double)s->columns);
    kernels->shortlist_two(s->first, s->scales, s->scale_stride, s->unit2, NULL, vocabulary, c->limbs, c->high_sums, &scale, 1, s->padded, c->scores, (size_t)vocabulary);
    add(c, &c->two, logits, top, vocabulary, deviation, s->error2, step->factor);
    kernels->shortlist_high(s->first, s->second, s->scales, s->scale_stride, s->unit, vocabulary, c->limbs, c->sums, &scale, 1, s->padded, c->scores, (size_t)vocabulary);
    add(c, &c->four, logits, top, vocabulary, deviation, s->error4, step->factor);
    c->rows += vocabulary;
    c->states++;
    return true;
}

static void print(const count *c, const errors *e, int bits)
{
    printf("%d bits: errors have %.3f of the deviation that the margin is counted in\n", bits, sqrt(e->squares / (double)c->rows));
    printf("largest: %.2f over all rows, %.2f over the %d best, %.2f over the best\n", e->worst, e->worst_top, TOP, e->worst_best);
    printf("%4s %14s %14s %14s\n", "z", "all rows", "40 best", "best");
    for (int z = 1; z <= DEVIATIONS && e->rows_over[z]; z++)
        printf("%4d %14.3g %14.3g %14.3g\n", z, (double)e->rows_over[z] / (double)c->rows, (double)e->top_over[z] / (double)(c->states * TOP), (double)e->best_over[z] / (double)c->states);
    for (int m = 0; m < MARGINS; m++) printf("rows within a margin of %d: %.1f\n", margins[m], (double)e->inside[m] / (double)c->states);
}

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, setun_error());
    return 1;
}

static char *read_text(const char *path, size_t *length)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = malloc(1 << 22);
    *length = text ? fread(text, 1, 1 << 22, f) : 0;
    fclose(f);
    return text;
}

int main(int argc, char **argv)
{
    if (argc < 3) return fprintf(stderr, "usage: bench_head_misses MODEL TOKENS [TEXT]\n"), 2;
    setun_context *context;
    setun_model *model;
    count c = {0};
    if (setun_context_create(NULL, &context) != SETUN_OK) return fail("context");
    if (setun_model_open(context, argv[1], NULL, &model) != SETUN_OK) return fail(argv[1]);
    setun_session_options options = {.size = sizeof options, .context = 512, .head = "shortlist"};
    if (setun_session_create(model, &options, &c.session) != SETUN_OK) return fail("session");
    const setun_plan *plan = c.session->plan;
    if (!plan->head.bits) return fprintf(stderr, "this model's head has no small copy\n"), 1;
    c.s = ((const setun_prepared *)plan->steps[plan->head.step].prepared[0])->shortlist;
    if (setun_head_finish(plan) != SETUN_OK) return fail("the copy");
    int vocabulary = c.session->vocabulary;
    c.scores = malloc((size_t)vocabulary * sizeof *c.scores);
    c.limbs = malloc(2 * (size_t)c.s->padded);
    c.sums = malloc(c.s->scale_stride * sizeof *c.sums);
    c.high_sums = malloc(c.s->scale_stride * sizeof *c.high_sums);
    size_t wanted = (size_t)strtoull(argv[2], NULL, 10), have = wanted;
    int32_t *ids = calloc(wanted, sizeof *ids);
    uint64_t state = 88172645463325252ull; /* xorshift64 */
    for (size_t i = 0; i < wanted; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        ids[i] = (int32_t)(state % (uint64_t)vocabulary);
    }
    if (argc > 3) {
        size_t length;
        char *text = read_text(argv[3], &length);
        int32_t *read;
        if (!text || setun_tokenizer_encode(setun_model_tokenizer(model), text, length, 0, &read, &have) != SETUN_OK) return fail(argv[3]);
        if (have > wanted) have = wanted;
        memcpy(ids, read, have * sizeof *ids);
    }
    for (size_t at = 0; at < have; at += 512) {
        size_t n = have - at < 512 ? have - at : 512;
        if (setun_session_truncate(c.session, 0) != SETUN_OK || setun_session_feed_all(c.session, ids + at, n, look, &c) != SETUN_OK) return fail("feed");
    }
    printf("%s, %s: %lld hidden states, %lld scores\n", argv[1], argc > 3 ? argv[3] : "random tokens", (long long)c.states, (long long)c.rows);
    print(&c, &c.two, 2);
    print(&c, &c.four, 4);
    setun_session_destroy(c.session);
    setun_model_close(model);
    setun_context_destroy(context);
    return 0;
}
