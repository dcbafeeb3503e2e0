/*
 * steps_head.c - the vocabulary projection where only the highest logits are wanted: every row is scored by the small copy (shortlist.h), and the
 * rows that may reach the wanted set are computed exactly, by the kernels and with the bits of the full product.
 * Caller: execute.c. Knows frames' requests and bounds; knows no sampler and no model.
 *
 * Two passes. First every row's score. Where a proof is wanted it is of 5 bits: half the rows would want the fifth after 4, and read in passing it costs
 * less than by a list. Else it is of 2 bits if rows are wide, or of 4. Each worker keeps its best and computes those exactly. After the one barrier the exact
 * values of the best scores of all are at hand: the n-th of them is a value that n rows reach, so it is a threshold. Second, rows whose upper bound reaches
 * the threshold get a finer score (all 6 bits; or 4), and those whose bound still does are computed. Everything that decides is the same however many
 * workers there are: scores, the best of all, the threshold, the bounds.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"

typedef struct best { float score, exact; int32_t row; } best;

enum { TOP_MOST = CPU_HEAD_TOP_MAX + CPU_HEAD_TWO_MORE };

typedef struct scratch {
    int8_t *x;                  /* [tokens, 2 padded] limbs */
    float *sums, *high_sums;    /* [tokens, scale_stride] sums over blocks: of the values, and of 128 * high limb */
    float *scale;               /* [tokens] a step of the limbs; the next four too */
    float *x_norm, *x_error, *x_high_error; /* |x|; what the scores' rounding and x's cost, per norm of a row; |x - x of the high limbs| */
    float *threshold;
    best *top;                  /* [tokens, TOP_MOST], best first */
    int *top_count;             /* [tokens] */
    float *low, *values;        /* [tokens, CPU_HEAD_CHUNK] */
    int32_t *list, *found;      /* [CPU_HEAD_CHUNK] */
    uint32_t *wanted;           /* [CPU_HEAD_CHUNK] a bit for each token */
    float *row;                 /* [padded] a row that is made f32 first, or copied from the file */
    uint8_t *rows;              /* [CPU_HEAD_READ_ROWS] rows copied from the file, no copy of which is there yet */
    uint8_t *spare;             /* what of such a row's copy is not kept */
    uint64_t bytes;
} scratch;

static void *lay(uint8_t *base, uint64_t *at, uint64_t bytes)
{
    void *p = base ? base + *at : NULL;
    *at += cpu_align(bytes);
    return p;
}

static scratch lay_scratch(uint8_t *base, int64_t columns, int outputs_max)
{
    scratch s;
    uint64_t at = 0, tokens = (uint64_t)(outputs_max < CPU_HEAD_TOKENS ? outputs_max : CPU_HEAD_TOKENS), padded = (uint64_t)(columns + 255) / 256 * 256, blocks = (padded + 511) / 512 * 16;
    s.x = lay(base, &at, tokens * 2 * padded);
    s.sums = lay(base, &at, tokens * blocks * sizeof(float));
    s.high_sums = lay(base, &at, tokens * blocks * sizeof(float));
    s.scale = lay(base, &at, tokens * sizeof(float));
    s.x_norm = lay(base, &at, tokens * sizeof(float));
    s.x_error = lay(base, &at, tokens * sizeof(float));
    s.x_high_error = lay(base, &at, tokens * sizeof(float));
    s.threshold = lay(base, &at, tokens * sizeof(float));
    s.top = lay(base, &at, tokens * TOP_MOST * sizeof(best));
    s.top_count = lay(base, &at, tokens * sizeof(int));
    s.low = lay(base, &at, tokens * CPU_HEAD_CHUNK * sizeof(float));
    s.values = lay(base, &at, tokens * CPU_HEAD_CHUNK * sizeof(float));
    s.list = lay(base, &at, CPU_HEAD_CHUNK * sizeof(int32_t));
    s.found = lay(base, &at, CPU_HEAD_CHUNK * sizeof(int32_t));
    s.wanted = lay(base, &at, CPU_HEAD_CHUNK * sizeof(uint32_t));
    s.row = lay(base, &at, padded * sizeof(float)); /* no format takes more */
    s.rows = lay(base, &at, CPU_HEAD_READ_ROWS * padded * sizeof(float));
    s.spare = lay(base, &at, padded / 2 + 9 * blocks);
    s.bytes = at;
    return s;
}

uint64_t cpu_head_scratch(const setun_plan *plan, const setun_step *step) { return lay_scratch(NULL, setun_slot_width(&plan->slots[step->input[0]]), plan->outputs_max).bytes; }

/* One run of the step, as each worker sees it. */
typedef struct head {
    cpu_run *run;
    const setun_step *step;
    const cpu_step *cpu;
    const setun_prepared *weight;
    cpu_shortlist *s;
    const setun_head_request *wanted;
    const float *x;             /* [outputs, columns] */
    float *out;                 /* [outputs, rows]; between the passes: coarse scores */
    int64_t columns, rows;
    bool proved, two;           /* two: the first scores are of 2 bits; set for each group of tokens */
    int kept;                   /* best rows that are computed for the threshold */
    bool copy;                  /* exact rows come from the file, so that its pages stay out of memory */
    int worker, workers, outputs;
    int64_t high_rows;          /* rows below have the upper part of their copy, even where this run wants the lower too */
    int64_t computed;           /* logits, by this worker */
} head;

/* ---- x as limbs ---- */

/* Relative error of a sum of n roundings: n u / (1 - n u), u = 2^-24 (N. Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). */
static double gamma_of(double n) { return n * 0x1p-24 / (1.0 - n * 0x1p-24); }
static float up(double v) { return (float)(v * (1.0 + 0x1p-20)); } /* not below v, whatever the conversion rounds */

/* False where the bounds don't hold: |x|^2 is outside 2^-60 .. 2^80, or not a number. */
static bool in_range(const float *x, int64_t columns)
{
    double sum[4] = {0};
    for (int64_t i = 0; i < columns; i++) sum[i & 3] += (double)x[i] * (double)x[i];
    double norm = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    return norm >= 0x1p-60 && norm <= 0x1p+80;
}

static void make_limbs(const head *h, const scratch *s, int token, const float *x)
{
    int64_t padded = h->s->padded;
    size_t stride = h->s->scale_stride;
    int8_t *limbs = s->x + (size_t)token * 2 * (size_t)padded;
    float *sums = s->sums + (size_t)token * stride, *high_sums = s->high_sums + (size_t)token * stride, most = 0.0f;
    memset(sums, 0, stride * sizeof *sums);
    memset(high_sums, 0, stride * sizeof *high_sums);
    for (int64_t i = 0; i < h->columns; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float scale = most * (1.0f / 16256.0f), inverse = 16256.0f / most;
    double norm[2] = {0}, error[2] = {0}, high_error[2] = {0};
    for (int64_t i = 0; i < padded; i++) {
        /* |x * inverse| < 16256.01: rounded to nearest it is at most 16256, whose high limb is 127 */
        int v = i < h->columns ? (int)((x[i] * inverse + 0x1.8p+23f) - 0x1.8p+23f) : 0, high = (v + 64) >> 7;
        int64_t at = i / 64 * 128 + i % 64, block = i / 512 * 16 + i % 64 / 4;
        limbs[at] = (int8_t)high;
        limbs[at + 64] = (int8_t)(v - 128 * high);
        sums[block] += (float)v; /* whole numbers below 2^24: exact */
        high_sums[block] += (float)(128 * high);
        if (i >= h->columns) continue;
        double e = (double)x[i] - (double)scale * v, f = (double)x[i] - (double)scale * (128 * high);
        norm[i & 1] += (double)x[i] * (double)x[i];
        error[i & 1] += e * e;
        high_error[i & 1] += f * f;
    }
    /* docs/architecture.md, "The head": the exact kernel's sum is off by at most gamma |x| |w|, the scores by 5/4 gamma |x| norm with a chain of one
     * addition a segment, the tree and the products; 2^-20 is for the additions of the bound itself. */
    double length = sqrt(norm[0] + norm[1]), chain = (double)((h->columns + 15) / 16 + 4), segments = (double)((padded + 511) / 512 + 12);
    s->scale[token] = scale;
    s->x_norm[token] = up(length);
    s->x_error[token] = up(sqrt(error[0] + error[1]) + length * (gamma_of(chain) + 1.25 * gamma_of(segments) + 0x1p-20));
    s->x_high_error[token] = up(sqrt(high_error[0] + high_error[1]));
}

/* ---- exact rows ---- */

static const uint8_t *exact_row(const head *h, const scratch *s, int64_t row, size_t *row_bytes)
{
    *row_bytes = (size_t)h->weight->row_bytes;
    if (h->cpu->product[0] == CPU_DENSE) {
        const uint8_t *at = h->weight->data + row * h->weight->row_bytes;
        return h->copy && setun_file_copy(h->s->file, at, *row_bytes, s->row) ? (const uint8_t *)s->row : at;
    }
    /* The weight was read once while preparing, so this cannot fail; were it to, the row is what was there before. */
    (void)setun_weight_to_f32(h->step->weight[0], row, 1, s->row);
    *row_bytes = (size_t)h->columns * sizeof(float);
    return (const uint8_t *)s->row;
}

static float exact_value(const head *h, const uint8_t *row, size_t row_bytes, int token)
{
    float y;
    h->cpu->dense[0](row, row_bytes, 1, h->x + (int64_t)token * h->columns, (size_t)h->columns, 1, h->columns, &y, 1);
    return y;
}

/* The row that comes next is asked for while this one is computed: they lie anywhere. */
static void ask_for(const head *h, int64_t row)
{
    if (h->cpu->product[0] != CPU_DENSE || h->copy) return;
    const uint8_t *at = h->weight->data + row * h->weight->row_bytes;
    for (int64_t b = 0; b < h->weight->row_bytes; b += 64) __builtin_prefetch(at + b, 0, 2);
}

/* ---- first pass ---- */

/* Is this row computed anyway? The request's rows are in rising order. */
static bool requested(const setun_head_request *r, int32_t row)
{
    int low = 0, high = r->row_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (r->rows[middle] < row) low = middle + 1;
        else high = middle;
    }
    return low < r->row_count && r->rows[low] == row;
}

/* Into the worker's best of this token, best first; ties: the lower row. */
static void keep(best *top, int *count, int most, float score, int32_t row)
{
    int at = *count < most ? (*count)++ : most - 1;
    for (; at > 0 && (top[at - 1].score < score || (top[at - 1].score == score && top[at - 1].row > row)); at--) top[at] = top[at - 1];
    top[at] = (best){.score = score, .row = row};
}

/* Rows that have no copy yet are computed exactly, where their coarse scores would stand; those of this run's part are copied in passing. */
static void compute_uncopied(head *h, const scratch *s, int64_t first, int rows, int token, int tokens)
{
    const setun_kernels *kernels = h->run->kernels;
    const setun_weight *w = h->step->weight[0];
    const bool dense = h->cpu->product[0] == CPU_DENSE, makes = token == 0 && first < h->run->head_end;
    const float *x = h->x + (int64_t)token * h->columns;
    for (int64_t row = first; row < first + rows; row += CPU_HEAD_READ_ROWS) {
        const int count = first + rows - row < CPU_HEAD_READ_ROWS ? (int)(first + rows - row) : CPU_HEAD_READ_ROWS;
        const uint8_t *at = cpu_head_rows(h->s, w, row, count, (size_t)h->weight->row_bytes, h->copy, s->rows);
        float *out = h->out + (int64_t)token * h->rows + row;
        if (dense) h->cpu->dense[0](at, (size_t)h->weight->row_bytes, count, x, (size_t)h->columns, tokens, h->columns, out, (size_t)h->rows);
        for (int i = 0; i < count && (makes || !dense); i++) {
            /* A row was read when its format was checked, so this cannot fail; were it to, it is what was there before. */
            (void)cpu_head_row_f32(kernels, h->s, w, at, row, i, s->row);
            if (!dense) h->cpu->dense[0]((const uint8_t *)s->row, (size_t)h->columns * sizeof(float), 1, x, (size_t)h->columns, tokens, h->columns, out + i, (size_t)h->rows);
            if (makes) cpu_shortlist_put(kernels, h->s, row + i, s->row, row + i >= h->high_rows, h->proved, s->spare);
        }
    }
}

static void score_chunk(head *h, const scratch *s, int64_t first, int rows, int token, int tokens)
{
    const cpu_shortlist *l = h->s;
    const setun_kernels *kernels = h->run->kernels;
    float *out = h->out + (int64_t)token * h->rows + first;
    const bool exact = first >= h->run->head_rows;
    if (exact) compute_uncopied(h, s, first, rows, token, tokens);
    else {
        const int64_t plane = l->padded / 4;
        const uint8_t *scales = l->scales + (size_t)first * l->scale_stride;
        if (h->two) kernels->shortlist_two(l->first + first * plane, scales, l->scale_stride, l->unit2 + first, NULL, rows, s->x, s->high_sums, s->scale, tokens, l->padded, out, (size_t)h->rows);
        else kernels->shortlist_high(l->first + first * plane, l->second + first * plane, scales, l->scale_stride, l->unit + first, rows, s->x, s->sums, s->scale, tokens, l->padded, out, (size_t)h->rows);
        if (h->proved) {
            kernels->shortlist_bit(l->low + (size_t)first * l->bit_bytes, scales, l->scale_stride, l->unit + first, NULL, rows, s->x, s->high_sums, s->scale, 0.5f, tokens,
                                   l->padded, s->low, CPU_HEAD_CHUNK);
            for (int t = 0; t < tokens; t++) kernels->add(out + (int64_t)t * h->rows, s->low + t * CPU_HEAD_CHUNK, rows, out + (int64_t)t * h->rows);
        }
    }
    for (int t = 0; t < tokens; t++) {
        best *top = s->top + (size_t)t * TOP_MOST;
        int *count = &s->top_count[t], most = h->kept;
        float lowest = *count == most ? top[most - 1].score : -INFINITY;
        const float *scores = out + (int64_t)t * h->rows;
        int found = kernels->shortlist_select(scores, NULL, NULL, rows, 0.0f, 0.0f, lowest, s->found);
        for (int i = 0; i < found; i++) {
            int32_t row = (int32_t)(first + s->found[i]);
            float score = scores[s->found[i]];
            if (*count == most && (score < top[most - 1].score || (score == top[most - 1].score && row > top[most - 1].row))) continue;
            if (score != score || (h->wanted->row_count && requested(h->wanted, row))) continue; /* an exact one may be no number, and is there */
            keep(top, count, most, score, row);
        }
        if (exact && h->step->factor != 1.0f) kernels->scale(out + (int64_t)t * h->rows, h->step->factor, rows, out + (int64_t)t * h->rows);
    }
}

/* ---- the threshold ---- */

/* What n of the best rows by score reach. Every worker finds the same: the best of all are among the workers' own. */
static float find_threshold(const head *h, int token)
{
    const best *next[1024];
    const best *end[1024];
    float reached[CPU_HEAD_TOP_MAX]; /* the n highest, highest first */
    int count = 0;
    if (h->workers > 1024) return -INFINITY;
    for (int w = 0; w < h->workers; w++) {
        scratch other = lay_scratch(cpu_worker_scratch(h->run, w), h->columns, h->run->plan->outputs_max);
        next[w] = other.top + (size_t)token * TOP_MOST;
        end[w] = next[w] + other.top_count[token];
    }
    for (int n = 0; n < h->kept; n++) {
        int from = -1;
        for (int w = 0; w < h->workers; w++)
            if (next[w] < end[w] && (from < 0 || next[w]->score > next[from]->score || (next[w]->score == next[from]->score && next[w]->row < next[from]->row))) from = w;
        if (from < 0) break;
        const float exact = next[from]++->exact;
        if (exact != exact) return -INFINITY;
        if (count == h->wanted->top && exact <= reached[count - 1]) continue;
        int at = count < h->wanted->top ? count++ : count - 1;
        for (; at > 0 && reached[at - 1] < exact; at--) reached[at] = reached[at - 1];
        reached[at] = exact;
    }
    if (count < h->wanted->top) return -INFINITY; /* fewer rows than wanted */
    const float lowest = reached[count - 1];
    double least = (double)lowest;
    /* A factor's rounding may make two logits equal: the lower id then wins, so it must be there. */
    if (h->step->factor != 1.0f) least -= fabs(least) * 0x1p-20;
    least -= (double)h->wanted->margin / (double)h->step->factor * (1.0 + 0x1p-20);
    float threshold = (float)least;
    return (double)threshold > least ? nextafterf(threshold, -INFINITY) : threshold;
}

/* ---- second pass ---- */

/* Without a proof: a margin of so many standard deviations of a score's error, which is |x| |w - w'| / sqrt(columns) if the two are strangers.
 * docs/architecture.md has what bench/head_misses.c counted. */
static const float DEVIATIONS_2 = 6.5f, DEVIATIONS_4 = 8.0f;
static float deviations(const head *h, const scratch *s, int t, float count) { return s->x_norm[t] * (count / sqrtf((float)h->columns)); }
/* The same for x's own rounding to the high limbs, which is as much of a stranger to the row, per norm of it. */
static float rounding(const head *h, const scratch *s, int t, float count) { return s->x_error[t] + s->x_high_error[t] * (count / sqrtf((float)h->columns)); }

/* Lists the chunk's rows that may reach a threshold by their score, and which tokens' it is. */
static int list_rows(const head *h, const scratch *s, int64_t first, int rows, int token, int tokens)
{
    const cpu_shortlist *l = h->s;
    memset(s->wanted, 0, (size_t)rows * sizeof *s->wanted);
    for (int t = 0; t < tokens; t++) {
        const float *errors;
        float a, b;
        if (h->two) {
            a = deviations(h, s, t, DEVIATIONS_2);
            b = rounding(h, s, t, DEVIATIONS_2);
            errors = l->error2;
        } else if (h->proved) { /* the fifth bit's part is off by |x - x''| (e4 + e5) more, and e4 <= norm / 12 */
            a = up((double)s->x_norm[t] + s->x_high_error[t]);
            b = up((double)s->x_error[t] + s->x_high_error[t] / 12.0);
            errors = l->error5;
        } else {
            a = deviations(h, s, t, DEVIATIONS_4);
            b = s->x_error[t];
            errors = l->error4;
        }
        int found = h->run->kernels->shortlist_select(h->out + (int64_t)(token + t) * h->rows + first, errors + first, l->norm + first, rows, a, b, s->threshold[t], s->found);
        for (int i = 0; i < found; i++) s->wanted[s->found[i]] |= 1u << t;
    }
    const setun_head_request *r = h->wanted;
    for (int i = 0; i < r->row_count; i++)
        if (r->rows[i] >= first && r->rows[i] < first + rows) s->wanted[r->rows[i] - first] = UINT32_MAX;
    int count = 0;
    for (int i = 0; i < rows; i++)
        if (s->wanted[i]) s->list[count++] = i;
    return count;
}

/* Strikes the tokens whose threshold a row can't reach by its finer score: of the last bit too, or of 4 bits instead of 2. The rows that are left move up. */
static int strike_rows(const head *h, const scratch *s, int64_t first, int count, int token, int tokens)
{
    const cpu_shortlist *l = h->s;
    const uint8_t *scales = l->scales + (size_t)first * l->scale_stride;
    const int64_t plane = l->padded / 4;
    if (h->two)
        h->run->kernels->shortlist_two(l->second + first * plane, scales, l->scale_stride, l->unit + first, s->list, count, s->x, s->high_sums, s->scale, tokens, l->padded, s->low, CPU_HEAD_CHUNK);
    else
        h->run->kernels->shortlist_bit(l->low + (size_t)(l->rows + first) * l->bit_bytes, scales, l->scale_stride, l->unit + first, s->list, count, s->x, s->high_sums, s->scale, 0.25f, tokens, l->padded,
                                       s->low, CPU_HEAD_CHUNK);
    int left = 0;
    for (int i = 0; i < count; i++) {
        int row = s->list[i];
        uint32_t wanted = s->wanted[row];
        if (wanted == UINT32_MAX) { /* asked for by name */
            s->list[left++] = row;
            continue;
        }
        const float norm = l->norm[first + row], error4 = l->error4[first + row], error6 = l->error6[first + row];
        for (int t = 0; t < tokens; t++) {
            const float part = s->low[t * CPU_HEAD_CHUNK + i], before = h->out[(int64_t)(token + t) * h->rows + first + row];
            float most;
            if (h->two) /* the score of 4 bits is that of 2, of steps of 4 units, and the other two bits' */
                most = before * (4.0f * l->unit[first + row] / l->unit2[first + row]) + part + deviations(h, s, t, DEVIATIONS_4) * error4 + rounding(h, s, t, DEVIATIONS_4) * norm;
            else most = before + part + s->x_norm[t] * error6 + s->x_error[t] * norm + s->x_high_error[t] * (error4 + error6);
            if (most < s->threshold[t]) wanted &= ~(1u << t);
        }
        s->wanted[row] = wanted;
        if (wanted) s->list[left++] = row;
    }
    return left;
}

static void compute_chunk(head *h, const scratch *s, int64_t first, int rows, int token, int tokens)
{
    int count = list_rows(h, s, first, rows, token, tokens);
    if ((h->proved || h->two) && count > 0) count = strike_rows(h, s, first, count, token, tokens);
    if (count > 0) ask_for(h, first + s->list[0]);
    for (int i = 0; i < count; i++) {
        if (i + 1 < count) ask_for(h, first + s->list[i + 1]);
        size_t row_bytes;
        const uint8_t *row = exact_row(h, s, first + s->list[i], &row_bytes);
        for (int t = 0; t < tokens; t++) {
            if (!(s->wanted[s->list[i]] >> t & 1)) continue;
            float y = exact_value(h, row, row_bytes, token + t);
            if (h->step->factor != 1.0f) h->run->kernels->scale(&y, h->step->factor, 1, &y);
            s->values[t * CPU_HEAD_CHUNK + i] = y;
            h->computed++;
        }
    }
    for (int t = 0; t < tokens; t++) {
        float *out = h->out + (int64_t)(token + t) * h->rows + first;
        for (int i = 0; i < rows; i++) out[i] = -INFINITY;
        for (int i = 0; i < count; i++)
            if (s->wanted[s->list[i]] >> t & 1) out[s->list[i]] = s->values[t * CPU_HEAD_CHUNK + i];
    }
}

/* ---- the step ---- */

/* Output rows token .. token + tokens - 1. Chunks are numbered through: `taken` is the step's counter when the first begins. */
static void run_group(head *h, const scratch *s, int index, int token, int tokens, int64_t *taken)
{
    int64_t chunks = (h->rows + CPU_HEAD_CHUNK - 1) / CPU_HEAD_CHUNK;
    h->two = !h->proved && h->columns >= CPU_HEAD_TWO_COLUMNS && tokens <= CPU_HEAD_TWO_TOKENS;
    h->kept = h->wanted->top + (h->two ? CPU_HEAD_TWO_MORE : 0);
    for (int t = 0; t < tokens; t++) {
        make_limbs(h, s, t, h->x + (int64_t)(token + t) * h->columns);
        s->top_count[t] = 0;
    }
    for (int64_t chunk; (chunk = token == 0 ? cpu_take_near(h->run, index, h->worker, chunks) : cpu_take(h->run, index) - *taken) < chunks && chunk >= 0;) {
        int64_t first = chunk * CPU_HEAD_CHUNK, left = h->rows - first;
        score_chunk(h, s, first, left < CPU_HEAD_CHUNK ? (int)left : CPU_HEAD_CHUNK, token, tokens);
    }
    for (int t = 0; t < tokens; t++) {
        best *top = s->top + (size_t)t * TOP_MOST;
        for (int i = 0; i < s->top_count[t]; i++) {
            if (i + 1 < s->top_count[t]) ask_for(h, top[i + 1].row);
            size_t row_bytes;
            const uint8_t *row = exact_row(h, s, top[i].row, &row_bytes);
            top[i].exact = exact_value(h, row, row_bytes, token + t);
        }
    }
    if (token > 0) *taken += chunks + h->workers; /* every worker has taken one number too many */
    if (h->workers > 1) setun_pool_barrier(h->run->pool);
    for (int t = 0; t < tokens; t++) s->threshold[t] = find_threshold(h, t);
    for (int64_t chunk; (chunk = cpu_take(h->run, index) - *taken) < chunks;) {
        int64_t first = chunk * CPU_HEAD_CHUNK, left = h->rows - first;
        if (first < h->run->head_rows) compute_chunk(h, s, first, left < CPU_HEAD_CHUNK ? (int)left : CPU_HEAD_CHUNK, token, tokens);
    }
    *taken += chunks + h->workers;
}

static bool all_in_range(const head *h)
{
    for (int t = 0; t < h->outputs; t++)
        if (!in_range(h->x + (int64_t)t * h->columns, h->columns)) return false;
    return true;
}

static void step_head(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_slot *x = &run->plan->slots[step->input[0]];
    head h = {
        .run = run, .step = step, .cpu = &run->tape->step[index], .weight = step->prepared[0], .wanted = &run->frame->head, .x = setun_frame_slot(run->frame, step->input[0]),
        .out = setun_frame_slot(run->frame, step->output[0]), .columns = setun_slot_width(x), .proved = run->plan->head.bits == 6, .worker = worker,
        .workers = cpu_step_workers(run, index), .outputs = (int)setun_slot_rows(x, run->tokens, run->outputs),
    };
    h.s = h.weight->shortlist;
    h.rows = h.weight->rows;
    h.high_rows = run->head_high_rows;
    /* A page fault of a large map costs several times what copying a row does, and brings in sixteen pages. */
    h.copy = h.s->file && h.weight->row_bytes > 0 && cpu_head_is_large(step->weight[0]) && !atomic_load_explicit(&h.s->whole, memory_order_relaxed);
    if (!all_in_range(&h)) { /* the same answer in every worker */
        cpu_step_linear(run, index, worker);
        return;
    }
    scratch s = lay_scratch(cpu_worker_scratch(run, worker), h.columns, run->plan->outputs_max);
    int64_t taken = 0;
    for (int token = 0; token < h.outputs; token += CPU_HEAD_TOKENS) {
        if (token > 0 && h.workers > 1) setun_pool_barrier(run->pool); /* the others have read this worker's best */
        run_group(&h, &s, index, token, h.outputs - token < CPU_HEAD_TOKENS ? h.outputs - token : CPU_HEAD_TOKENS, &taken);
    }
    if (worker == 0) {
        atomic_store(&run->head_done, true);
        __atomic_fetch_add(&run->frame->head_scored, run->head_rows * h.outputs, __ATOMIC_RELAXED);
    }
    __atomic_fetch_add(&run->frame->head_rescored, h.computed, __ATOMIC_RELAXED);
}

void cpu_step_product(cpu_run *run, int index, int worker)
{
    const setun_plan *plan = run->plan;
    if (plan->head.bits == 0 || plan->head.step != index) {
        cpu_step_linear(run, index, worker);
        return;
    }
    const setun_head_request *r = &run->frame->head;
    if (r->top < 0 || run->outputs < 1) return;
    if (r->top > 0 && r->top <= CPU_HEAD_TOP_MAX && r->row_count <= CPU_HEAD_EXTRA_MAX) step_head(run, index, worker);
    else {
        cpu_shortlist *s = ((const setun_prepared *)plan->steps[index].prepared[0])->shortlist;
        atomic_store_explicit(&s->whole, true, memory_order_relaxed);
        cpu_step_linear(run, index, worker);
    }
}
