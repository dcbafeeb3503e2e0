/*
 * sampler.c - logits to a token: bias, penalties, top-k, top-p, min-p, temperature, in the order llama.cpp's default chain has
 * (so top-p and min-p look at the probabilities before temperature), and log-probabilities.
 * Caller: generate.c, the program. Knows no model: a vector of floats and the tokens accepted so far.
 *
 * The same seed gives the same tokens on every machine: the generator is integer arithmetic, exp is one polynomial in double
 * without fused multiply-adds, sums run in a fixed order, ties go to the lower id.
 */
#include "run/run.h"
#include <math.h>

/* ---- exp ---- */

double setun_exp_nonpositive(double x)
{
    if (!(x > -745.0)) return x != x ? x : 0.0;
    /* x = n ln2 + r, |r| <= ln2/2; ln2 in two parts (33 bits: n * high is exact). Adding 1.5 * 2^52 rounds to nearest. */
    static const double log2e = 1.44269504088896338700, ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10, shift = 6755399441055744.0;
    double n = x * log2e + shift - shift;
    double r = (x - n * ln2_high) - n * ln2_low;
    /* Taylor; the first omitted term is below 0.3466^14 / 14! = 4.2e-18 */
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    /* times 2^n in two steps, as n goes down to -1075 */
    int whole = (int)n, half = whole / 2;
    uint64_t a = (uint64_t)(1023 + half) << 52, b = (uint64_t)(1023 + whole - half) << 52;
    double scale_a, scale_b;
    memcpy(&scale_a, &a, 8);
    memcpy(&scale_b, &b, 8);
    return p * scale_a * scale_b;
}

/* ---- random numbers: xoshiro256** seeded by splitmix64 (D. Blackman, S. Vigna, "Scrambled linear pseudorandom number
 * generators", ACM TOMS 47(4), 2021; the reference code is in the public domain, this is written from the definition) ---- */

typedef struct generator { uint64_t s[4]; } generator;

static uint64_t rotate_left(uint64_t x, int k) { return x << k | x >> (64 - k); }

static void generator_seed(generator *g, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        g->s[i] = z ^ z >> 31;
    }
}

static double generator_unit(generator *g) /* [0, 1), 53 bits */
{
    uint64_t *s = g->s, result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return (double)(result >> 11) * 0x1.0p-53;
}

/* ---- the sampler ---- */

/* A request names at most so many rows; with more, all logits are computed. */
enum { REQUEST_ROWS = 1024 };

typedef struct candidate { double weight; float logit; int32_t id; } candidate;

struct setun_sampler {
    setun_sampler_options options; /* bias points to our copy */
    int vocabulary;
    generator random;
    candidate *candidates;      /* [vocabulary] */
    bool penalised;
    int32_t *counts;            /* [vocabulary] occurrences in the window; NULL without penalties */
    int32_t *rows;              /* [REQUEST_ROWS] tokens whose logits bias or penalties change, for setun_sampler_request */
    int32_t *seen;              /* [REQUEST_ROWS] without a window: the first tokens accepted */
    int seen_count;             /* how many different ones; may be more */
    int32_t *window;            /* ring of the last penalty_window ids; NULL: all tokens count */
    int window_size, window_used, window_next;
    setun_logit_bias *bias;
};

static setun_status check_options(const setun_sampler_options *o, int vocabulary)
{
    if (vocabulary < 1) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: vocabulary %d", vocabulary);
    if (!(o->temperature >= 0.0f)) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: temperature %g; it must be 0 (greedy) or more", (double)o->temperature);
    if (o->top_k < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: top_k %d; it must be 0 (off) or more", o->top_k);
    if (!(o->top_p >= 0.0f && o->top_p <= 1.0f)) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: top_p %g is not between 0 and 1", (double)o->top_p);
    if (!(o->min_p >= 0.0f && o->min_p <= 1.0f)) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: min_p %g is not between 0 and 1", (double)o->min_p);
    if (!(o->repetition_penalty >= 0.0f) || isinf(o->repetition_penalty)) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: repetition_penalty %g; it must be positive (1: off)", (double)o->repetition_penalty);
    if (!isfinite(o->presence_penalty) || !isfinite(o->frequency_penalty))
        return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: presence_penalty %g and frequency_penalty %g must be finite", (double)o->presence_penalty, (double)o->frequency_penalty);
    if (o->penalty_window < -1) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: penalty_window %d; -1 means all tokens", o->penalty_window);
    if (o->bias_count > 0 && !o->bias) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: bias is NULL and bias_count %zu", o->bias_count);
    for (size_t i = 0; i < o->bias_count; i++) {
        if (o->bias[i].id < 0 || o->bias[i].id >= vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: bias for token id %d, which is not in the vocabulary of %d", (int)o->bias[i].id, vocabulary);
        if (isnan(o->bias[i].bias) || o->bias[i].bias == INFINITY) return setun_fail(SETUN_ERROR_ARGUMENT, "sampler: the bias of token %d is %g; it must be finite or -infinity", (int)o->bias[i].id, (double)o->bias[i].bias);
    }
    return SETUN_OK;
}

setun_status setun_sampler_create(const setun_sampler_options *options, int vocabulary, setun_sampler **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_sampler_create: out is NULL");
    *out = NULL;
    SETUN_OPTIONS(setun_sampler_options, o, options);
    SETUN_TRY(check_options(&o, vocabulary));
    setun_sampler *s = setun_calloc(1, sizeof *s);
    if (!s) return setun_fail_memory(sizeof *s);
    s->options = o;
    s->vocabulary = vocabulary;
    s->penalised = (o.repetition_penalty != 0.0f && o.repetition_penalty != 1.0f) || o.presence_penalty != 0.0f || o.frequency_penalty != 0.0f;
    s->window_size = o.penalty_window == 0 ? 64 : o.penalty_window;
    s->candidates = setun_alloc((size_t)vocabulary * sizeof *s->candidates);
    s->rows = setun_alloc(REQUEST_ROWS * sizeof *s->rows);
    bool ok = s->candidates && s->rows;
    if (s->penalised) {
        s->counts = setun_calloc((size_t)vocabulary, sizeof *s->counts);
        ok = ok && s->counts;
        if (s->window_size > 0) {
            s->window = setun_calloc((size_t)s->window_size, sizeof *s->window);
            ok = ok && s->window;
        } else {
            s->seen = setun_calloc(REQUEST_ROWS, sizeof *s->seen);
            ok = ok && s->seen;
        }
    }
    if (o.bias_count > 0) {
        s->bias = setun_calloc(o.bias_count, sizeof *s->bias);
        ok = ok && s->bias;
        if (s->bias) memcpy(s->bias, o.bias, o.bias_count * sizeof *s->bias);
    }
    s->options.bias = s->bias;
    if (!ok) {
        setun_sampler_destroy(s);
        return setun_fail_memory((size_t)vocabulary * sizeof *s->candidates);
    }
    generator_seed(&s->random, o.seed);
    *out = s;
    return SETUN_OK;
}

void setun_sampler_destroy(setun_sampler *sampler)
{
    if (!sampler) return;
    setun_free(sampler->candidates);
    setun_free(sampler->counts);
    setun_free(sampler->window);
    setun_free(sampler->rows);
    setun_free(sampler->seen);
    setun_free(sampler->bias);
    setun_free(sampler);
}

void setun_sampler_reset(setun_sampler *sampler)
{
    if (!sampler) return;
    if (sampler->counts) memset(sampler->counts, 0, (size_t)sampler->vocabulary * sizeof *sampler->counts);
    sampler->window_used = sampler->window_next = sampler->seen_count = 0;
    generator_seed(&sampler->random, sampler->options.seed);
}

setun_status setun_sampler_accept(setun_sampler *sampler, int32_t id)
{
    if (!sampler) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_sampler_accept: sampler is NULL");
    if (id < 0 || id >= sampler->vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "token id %d is not in the vocabulary of %d", (int)id, sampler->vocabulary);
    if (!sampler->counts) return SETUN_OK;
    if (sampler->window) {
        if (sampler->window_used == sampler->window_size) sampler->counts[sampler->window[sampler->window_next]]--;
        else sampler->window_used++;
        sampler->window[sampler->window_next] = id;
        sampler->window_next = (sampler->window_next + 1) % sampler->window_size;
    }
    if (sampler->seen && sampler->counts[id] == 0) {
        if (sampler->seen_count < REQUEST_ROWS) sampler->seen[sampler->seen_count] = id;
        sampler->seen_count++;
    }
    if (sampler->counts[id] < INT32_MAX) sampler->counts[id]++;
    return SETUN_OK;
}

/* Better first: higher logit, then lower id. A total order, so every sort gives the same sequence. */
static bool better(const candidate *a, const candidate *b) { return a->logit != b->logit ? a->logit > b->logit : a->id < b->id; }

/* Heap whose root is the worst. */
static void sift_down(candidate *heap, int count, int i)
{
    candidate moved = heap[i];
    for (int child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && better(&heap[child], &heap[child + 1])) child++;
        if (better(&heap[child], &moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void sort_candidates(candidate *c, int count) /* best first; heapsort needs no memory */
{
    for (int i = count / 2 - 1; i >= 0; i--) sift_down(c, count, i);
    for (int end = count - 1; end > 0; end--) {
        candidate worst = c[0];
        c[0] = c[end];
        c[end] = worst;
        sift_down(c, end, 0);
    }
}

/* The k best, best first, at the front. */
static int keep_top_k(candidate *c, int count, int k)
{
    if (k < count) {
        for (int i = k / 2 - 1; i >= 0; i--) sift_down(c, k, i);
        for (int i = k; i < count; i++)
            if (better(&c[i], &c[0])) {
                c[0] = c[i];
                sift_down(c, k, 0);
            }
        count = k;
    }
    sort_candidates(c, count);
    return count;
}

static double weigh(candidate *c, int count, float best, double inverse_temperature)
{
    double sum = 0.0;
    for (int i = 0; i < count; i++) {
        c[i].weight = setun_exp_nonpositive(((double)c[i].logit - (double)best) * inverse_temperature);
        sum += c[i].weight;
    }
    return sum;
}

/* The fewest best candidates whose probabilities reach top_p; at least one. Not sorted yet unless `sorted`. */
static int keep_top_p(candidate *c, int count, float best, double top_p, bool sorted)
{
    double sum = weigh(c, count, best, 1.0);
    if (!sorted) {
        /* All candidates below (1 - top_p) / count together weigh less than 1 - top_p, so none of them is needed; few are left to sort. */
        double floor_weight = (1.0 - top_p) / count * sum * 0.999999;
        int kept = 0;
        for (int i = 0; i < count; i++)
            if (c[i].weight >= floor_weight) c[kept++] = c[i];
        count = kept;
        sort_candidates(c, count);
    }
    double reached = 0.0, wanted = top_p * sum;
    for (int i = 0; i < count; i++) {
        reached += c[i].weight;
        if (reached >= wanted) return i + 1;
    }
    return count;
}

static int keep_min_p(candidate *c, int count, float best, double min_p)
{
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (setun_exp_nonpositive((double)c[i].logit - (double)best) >= min_p) c[kept++] = c[i];
    return kept;
}

static float penalise(const setun_sampler_options *o, float logit, int32_t count)
{
    if (count <= 0) return logit;
    if (o->repetition_penalty != 0.0f && o->repetition_penalty != 1.0f) logit = logit > 0.0f ? logit / o->repetition_penalty : logit * o->repetition_penalty;
    return logit - (o->presence_penalty + o->frequency_penalty * (float)count);
}

/* The candidate of this token, among the first `count`, which are in the order of ids; NULL where there is none. */
static candidate *find_candidate(candidate *c, int count, int32_t id)
{
    if (count > id && c[id].id == id) return &c[id]; /* all are there */
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (c[middle].id < id) low = middle + 1;
        else high = middle;
    }
    return low < count && c[low].id == id ? &c[low] : NULL;
}

setun_status setun_sampler_pick(setun_sampler *sampler, const float *logits, int32_t *out_id)
{
    if (!sampler || !logits || !out_id) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_sampler_pick: %s is NULL", !sampler ? "sampler" : !logits ? "logits" : "out_id");
    *out_id = -1;
    const setun_sampler_options *o = &sampler->options;
    candidate *c = sampler->candidates;
    /* A token at -infinity stays there whatever is added to it, and has no probability: most of them, where only a few logits were computed. */
    int count = 0;
    for (int i = 0; i < sampler->vocabulary; i++) {
        float logit = logits[i];
        if (logit == -INFINITY) continue;
        if (!(logit < INFINITY)) return setun_fail(SETUN_ERROR_ARGUMENT, "logit %d is %s; the model's weights or the session are broken", i, isnan(logit) ? "NaN" : "+infinity");
        c[count].logit = logit;
        c[count++].id = i;
    }
    for (size_t i = 0; i < o->bias_count; i++) {
        candidate *biased = find_candidate(c, count, o->bias[i].id);
        if (biased) biased->logit += o->bias[i].bias;
    }
    if (sampler->penalised)
        for (int i = 0; i < count; i++) c[i].logit = penalise(o, c[i].logit, sampler->counts[c[i].id]);
    float top = -INFINITY;
    int32_t best = -1;
    for (int i = 0; i < count; i++)
        if (c[i].logit > top) {
            top = c[i].logit;
            best = c[i].id;
        }
    if (!(top > -INFINITY)) return setun_fail(SETUN_ERROR_ARGUMENT, "every token is banned: all logits are -infinity after bias and penalties");
    if (!(top < INFINITY)) return setun_fail(SETUN_ERROR_ARGUMENT, "the logit of token %d overflows after bias and penalties", (int)best);
    if (o->temperature == 0.0f) {
        *out_id = best;
        return SETUN_OK;
    }
    bool sorted = o->top_k > 0;
    if (sorted) count = keep_top_k(c, count, o->top_k);
    if (o->top_p > 0.0f && o->top_p < 1.0f) count = keep_top_p(c, count, top, (double)o->top_p, sorted);
    if (o->min_p > 0.0f) count = keep_min_p(c, count, top, (double)o->min_p);
    double sum = weigh(c, count, top, 1.0 / (double)o->temperature), wanted = generator_unit(&sampler->random) * sum, reached = 0.0;
    int chosen = -1;
    for (int i = 0; i < count; i++) {
        if (c[i].weight <= 0.0) continue; /* never a banned token */
        chosen = i;
        reached += c[i].weight;
        if (wanted < reached) break;
    }
    *out_id = chosen >= 0 ? c[chosen].id : best; /* 1 / temperature may overflow: then only the best is left */
    return SETUN_OK;
}

/* ---- which logits a pick depends on ---- */

int setun_sampler_vocabulary(const setun_sampler *sampler) { return sampler->vocabulary; }

/* Rising, each once. Shell's sort: no memory, and the lists are short. */
static int sort_rows(int32_t *rows, int count)
{
    for (int gap = count / 2; gap > 0; gap /= 2)
        for (int i = gap; i < count; i++)
            for (int at = i; at >= gap && rows[at - gap] > rows[at]; at -= gap) {
                int32_t larger = rows[at - gap];
                rows[at - gap] = rows[at];
                rows[at] = larger;
            }
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (kept == 0 || rows[kept - 1] != rows[i]) rows[kept++] = rows[i];
    return kept;
}

/*
 * Bias and penalties change the logits of some tokens; those are asked for by name. All others keep their order, so what is picked is among the
 * named ones and the best of the others: the best alone for temperature 0, top_k of them, or (min_p: exp(logit - top) >= p, top being no
 * lower than the best of the others) those at most -log(min_p) below the best. top_p by itself needs the sum over all.
 */
bool setun_sampler_request(setun_sampler *s, setun_head_request *out)
{
    const setun_sampler_options *o = &s->options;
    *out = (setun_head_request){.top = 1, .rows = s->rows};
    bool top_p = o->top_p > 0.0f && o->top_p < 1.0f;
    if (o->temperature > 0.0f && o->top_k > 0) out->top = o->top_k;
    else if (o->temperature > 0.0f && o->min_p > 0.0f && !top_p) out->margin = (float)-log((double)o->min_p) * 1.0001f + 0.0001f;
    else if (o->temperature > 0.0f) return false;
    size_t changed = o->bias_count + (size_t)(!s->penalised ? 0 : s->window ? s->window_used : s->seen_count);
    if (changed > REQUEST_ROWS) return false;
    int count = 0;
    for (size_t i = 0; i < o->bias_count; i++) s->rows[count++] = o->bias[i].id;
    for (int i = 0; s->penalised && i < (s->window ? s->window_used : s->seen_count); i++) s->rows[count++] = s->window ? s->window[i] : s->seen[i];
    out->row_count = sort_rows(s->rows, count);
    return true;
}

/* ---- log-probabilities ---- */

double setun_log_sum_exp(const float *logits, int vocabulary)
{
    float top = -INFINITY;
    for (int i = 0; i < vocabulary; i++) {
        if (!(logits[i] < INFINITY)) return NAN;
        if (logits[i] > top) top = logits[i];
    }
    if (!(top > -INFINITY)) return NAN;
    double sum[4] = {0.0, 0.0, 0.0, 0.0}; /* four chains: independent, so that they overlap */
    int i = 0;
    for (; i + 4 <= vocabulary; i += 4)
        for (int lane = 0; lane < 4; lane++) sum[lane] += setun_exp_nonpositive((double)logits[i + lane] - (double)top);
    for (; i < vocabulary; i++) sum[0] += setun_exp_nonpositive((double)logits[i] - (double)top);
    return (double)top + log((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

setun_status setun_logprobs(const float *logits, int vocabulary, int k, setun_logprob *out)
{
    if (!logits || !out || vocabulary < 1) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_logprobs: %s", !logits ? "logits is NULL" : !out ? "out is NULL" : "the vocabulary is empty");
    if (k < 1 || k > vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_logprobs: %d of a vocabulary of %d", k, vocabulary);
    double total = setun_log_sum_exp(logits, vocabulary);
    if (isnan(total)) return setun_fail(SETUN_ERROR_ARGUMENT, "a logit is NaN or infinite; the model's weights or the session are broken");
    int count = 0;
    for (int i = 0; i < vocabulary; i++) { /* out holds the best so far, best first; ties keep the lower id ahead */
        if (count == k && !(logits[i] > out[k - 1].logprob)) continue;
        int at = count < k ? count++ : k - 1;
        for (; at > 0 && logits[i] > out[at - 1].logprob; at--) out[at] = out[at - 1];
        out[at] = (setun_logprob){i, logits[i]};
    }
    for (int i = 0; i < k; i++) out[i].logprob = (float)((double)out[i].logprob - total);
    return SETUN_OK;
}

float setun_logprob_of(const float *logits, int vocabulary, int32_t id)
{
    if (!logits || id < 0 || id >= vocabulary) return NAN;
    return (float)((double)logits[id] - setun_log_sum_exp(logits, vocabulary));
}
