/*
 * steps_attention.c - rotations, keys and values into the cache, and attention over them.
 * An attention step has two phases: first k (normalised, rotated) and v of every token are stored, split over the workers by tokens; then
 * queries attend, taken from a counter as (kv head, query heads, tile of tokens). A query tile is normalised and rotated in the
 * worker's scratch by who attends with it, so q itself is never written.
 * Caller: execute.c. The order of the sums inside is the attention kernel's; nothing here depends on the workers.
 */
#include "backend/cpu/cpu.h"
#include <math.h>

/* ---- sin and cos ----
 * Libraries differ in the last bit, and a text generated with one seed should be the same on every machine. Reduction by pi/2 in three
 * parts of 33 bits (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980): n * part is exact while n < 2^20;
 * then Taylor polynomials on [-pi/4, pi/4], whose first omitted terms are below 5e-17. */
void cpu_sincos(double angle, double *sine, double *cosine)
{
    if (!(fabs(angle) < 1e6)) { /* positions no model has; also infinity and NaN */
        *sine = sin(angle);
        *cosine = cos(angle);
        return;
    }
    static const double two_over_pi = 0.63661977236758134308;
    static const double part1 = 1.57079632673412561417e+00, part2 = 6.07710050630396597660e-11, part3 = 2.02226624879595063154e-21;
    double n = rint(angle * two_over_pi);
    double r = ((angle - n * part1) - n * part2) - n * part3;
    double z = r * r;
    double s = r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800 + z * (1.0 / 6227020800.0 + z * (-1.0 / 1307674368000.0))))))));
    double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 + z * (1.0 / 479001600.0 + z * (-1.0 / 87178291200.0 + z * (1.0 / 20922789888000.0))))))));
    switch ((int)((long long)n & 3)) {
    case 0: *sine = s; *cosine = c; break;
    case 1: *sine = c; *cosine = -s; break;
    case 2: *sine = -s; *cosine = -c; break;
    default: *sine = -c; *cosine = s; break;
    }
}

static const float *rope_row(const cpu_run *run, const cpu_rope *rope, uint64_t offset, int64_t token) { return (const float *)(run->scratch + offset) + token * rope->half; }

/* Fills the tables of this run, if this is the first step that needs them. `alone`: only one worker is in the step. */
static void rope_tables(cpu_run *run, int index, int worker, bool alone)
{
    int which = run->tape->step[index].rope;
    if (which < 0) return;
    const cpu_rope *rope = &run->tape->ropes[which];
    if (rope->first_step != index) return;
    int64_t count = cpu_elements(&run->plan->slots[rope->positions], run->tokens, run->outputs);
    const int32_t *positions = setun_frame_slot(run->frame, rope->positions);
    float *cosines = (float *)(run->scratch + rope->cos_offset), *sines = (float *)(run->scratch + rope->sin_offset);
    double magnitude = rope->spec.magnitude != 0.0f ? rope->spec.magnitude : 1.0;
    int64_t first = alone ? 0 : count * worker / run->workers, last = alone ? count : count * (worker + 1) / run->workers;
    for (int64_t t = first; t < last; t++)
        for (int i = 0; i < rope->half; i++) {
            double s, c;
            cpu_sincos((double)positions[t] * rope->frequencies[i], &s, &c);
            cosines[t * rope->half + i] = (float)(c * magnitude);
            sines[t * rope->half + i] = (float)(s * magnitude);
        }
    if (!alone) setun_pool_barrier(run->pool);
}

/* x [T, heads, d] -> out, rotated */
void cpu_step_rope(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    bool alone = cpu_step_workers(run, index) == 1;
    rope_tables(run, index, worker, alone);
    const cpu_rope *rope = &run->tape->ropes[run->tape->step[index].rope];
    int64_t width = (int64_t)step->heads * step->head_size;
    int64_t tokens = cpu_elements(&run->plan->slots[step->input[0]], run->tokens, run->outputs) / width;
    const float *x = setun_frame_slot(run->frame, step->input[0]);
    float *out = setun_frame_slot(run->frame, step->output[0]);
    enum { CHUNK = 8 };
    for (int64_t chunk; (chunk = (int64_t)cpu_take(run, index) * CHUNK) < tokens;)
        for (int64_t t = chunk; t < tokens && t < chunk + CHUNK; t++) {
            if (out != x) memcpy(out + t * width, x + t * width, (size_t)width * sizeof(float));
            run->kernels->rope(out + t * width, step->heads, step->head_size, rope->spec.rotary, rope_row(run, rope, rope->cos_offset, t), rope_row(run, rope, rope->sin_offset, t),
                               rope->spec.interleaved);
        }
}

/* ---- attention ---- */

typedef struct attend {
    const setun_step *step;
    const cpu_rope *rope;       /* NULL: none */
    const float *q, *k, *v;     /* slots */
    const float *q_norm, *k_norm; /* NULL: weights are 1 */
    int tokens, heads, kv_heads, group, d;
    int length;                 /* tokens in the cache before this run */
    bool f16;
    uint8_t *keys, *values;     /* of kv head 0 */
    size_t element, head_stride; /* bytes of an element; of one kv head */
    float *out;
    float *vector;              /* worker scratch [head_size] */
    float *queries;             /* worker scratch [CPU_ATTENTION_TILE, group, head_size] */
    float *kernel_scratch;
} attend;

static uint64_t vector_bytes(int head_size) { return cpu_align((uint64_t)head_size * sizeof(float)); }
static uint64_t query_bytes(int group, int head_size) { return cpu_align((uint64_t)CPU_ATTENTION_TILE * (uint64_t)group * (uint64_t)head_size * sizeof(float)); }

uint64_t cpu_attention_scratch(const setun_plan *plan, const setun_step *step)
{
    (void)plan;
    int group = step->heads / step->kv_heads;
    return vector_bytes(step->head_size) + query_bytes(group, step->head_size) + cpu_align(setun_attention_scratch_floats(group, step->head_size) * sizeof(float));
}

/* Heads of one token: norm each, rotate all; x [count, d] in place. */
static void norm_and_rotate(const cpu_run *run, const attend *a, float *x, int count, int64_t token, bool norm, const float *weight, bool one_plus, float epsilon)
{
    if (norm)
        for (int h = 0; h < count; h++) run->kernels->rms_norm(x + (size_t)h * (size_t)a->d, weight, one_plus ? 1.0f : 0.0f, a->d, epsilon, x + (size_t)h * (size_t)a->d);
    if (a->rope)
        run->kernels->rope(x, count, a->d, a->rope->spec.rotary, rope_row(run, a->rope, a->rope->cos_offset, token), rope_row(run, a->rope, a->rope->sin_offset, token), a->rope->spec.interleaved);
}

/* Keys and values of one kv head for tokens first .. last-1 */
static void store(const cpu_run *run, const attend *a, int kv_head, int first, int last)
{
    const setun_step *s = a->step;
    for (int t = first; t < last; t++) {
        size_t from = ((size_t)t * (size_t)a->kv_heads + (size_t)kv_head) * (size_t)a->d;
        size_t to = (size_t)kv_head * a->head_stride + (size_t)(a->length + t) * (size_t)a->d * a->element;
        memcpy(a->vector, a->k + from, (size_t)a->d * sizeof(float));
        norm_and_rotate(run, a, a->vector, 1, t, s->norm_k, a->k_norm, s->one_plus_k, s->epsilon_k);
        if (a->f16) {
            run->kernels->f32_to_f16(a->vector, a->d, (uint16_t *)(void *)(a->keys + to));
            run->kernels->f32_to_f16(a->v + from, a->d, (uint16_t *)(void *)(a->values + to));
        } else {
            memcpy(a->keys + to, a->vector, (size_t)a->d * sizeof(float));
            memcpy(a->values + to, a->v + from, (size_t)a->d * sizeof(float));
        }
    }
}

/* Query heads head .. head+count-1 (of one kv head) for tokens first .. last-1, at most CPU_ATTENTION_TILE */
static void attend_tile(const cpu_run *run, const attend *a, int kv_head, int head, int count, int first, int last)
{
    const setun_step *s = a->step;
    size_t width = (size_t)a->heads * (size_t)a->d, tile = (size_t)count * (size_t)a->d;
    for (int t = first; t < last; t++) {
        float *q = a->queries + (size_t)(t - first) * tile;
        memcpy(q, a->q + (size_t)t * width + (size_t)head * (size_t)a->d, tile * sizeof(float));
        norm_and_rotate(run, a, q, count, t, s->norm_q, a->q_norm, s->one_plus, s->epsilon);
    }
    setun_attention_args args = {
        .q = a->queries, .q_stride = tile, .queries = last - first, .group = count, .head_size = a->d,
        .k = a->keys + (size_t)kv_head * a->head_stride, .v = a->values + (size_t)kv_head * a->head_stride, .f16 = a->f16,
        .first = a->length + first, .window = s->attention.window, .scale = s->attention.scale,
        .out = a->out + (size_t)first * width + (size_t)head * (size_t)a->d, .out_stride = width, .scratch = a->kernel_scratch,
    };
    if (args.scale == 0.0f) args.scale = 1.0f / sqrtf((float)a->d);
    run->kernels->attention(&args);
}

static attend attend_of(const cpu_run *run, int index, int worker)
{
    const setun_step *s = &run->plan->steps[index];
    const cpu_step *cpu = &run->tape->step[index];
    const setun_kv_cache *cache = run->frame->cache;
    attend a = {
        .step = s, .rope = s->has_rope ? &run->tape->ropes[cpu->rope] : NULL,
        .q = setun_frame_slot(run->frame, s->input[0]), .k = setun_frame_slot(run->frame, s->input[1]), .v = setun_frame_slot(run->frame, s->input[2]),
        .tokens = run->tokens, .heads = s->heads, .kv_heads = s->kv_heads, .group = s->heads / s->kv_heads, .d = s->head_size,
        .out = setun_frame_slot(run->frame, s->output[0]),
    };
    if (s->prepared[0]) a.q_norm = (const float *)(const void *)((const setun_prepared *)s->prepared[0])->data;
    if (s->prepared[1]) a.k_norm = (const float *)(const void *)((const setun_prepared *)s->prepared[1])->data;
    if (s->attention.cache_layer > 0) {
        a.length = cache->length;
        a.f16 = cache->dtype == SETUN_F16;
        a.element = a.f16 ? 2 : 4;
        a.head_stride = (size_t)cache->capacity * (size_t)cache->head_size * a.element;
        size_t layer = (size_t)(s->attention.cache_layer - 1) * (size_t)cache->kv_heads * a.head_stride;
        a.keys = cache->k + layer;
        a.values = cache->v + layer;
    } else {
        a.element = sizeof(float);
        a.head_stride = (size_t)run->plan->tokens_max * (size_t)a.d * sizeof(float);
        a.keys = run->scratch + cpu->kv_offset;
        a.values = a.keys + cpu->kv_half;
    }
    uint8_t *scratch = cpu_worker_scratch(run, worker);
    a.vector = (float *)(void *)scratch;
    a.queries = (float *)(void *)(scratch + vector_bytes(a.d));
    a.kernel_scratch = (float *)(void *)(scratch + vector_bytes(a.d) + query_bytes(a.group, a.d));
    return a;
}

void cpu_step_attention(cpu_run *run, int index, int worker)
{
    int inside = cpu_step_workers(run, index);
    rope_tables(run, index, worker, inside == 1);
    attend a = attend_of(run, index, worker);
    int tiles = (a.tokens + CPU_ATTENTION_TILE - 1) / CPU_ATTENTION_TILE;
    /* Few kv heads for the workers: cut each head's group of query heads too. They then read the same keys, from a shared cache. */
    int parts = 1;
    while (parts < a.group && a.kv_heads * parts * tiles < 4 * inside) parts++;
    while (a.group % parts) parts++;
    int heads = a.group / parts;
    int total = tiles * a.kv_heads * parts;

    /* One new token over a short context: who attends with a kv head also stores its key, and the barrier between is saved. */
    bool merged = inside == 1 || (a.tokens == 1 && (a.length < 256 || a.kv_heads % inside == 0));
    if (merged) {
        parts = 1;
        heads = a.group;
        total = tiles * a.kv_heads;
        if (inside == 1)
            for (int h = 0; h < a.kv_heads; h++) store(run, &a, h, 0, a.tokens);
    } else {
        int first = (int)((int64_t)a.tokens * worker / inside), last = (int)((int64_t)a.tokens * (worker + 1) / inside);
        for (int h = 0; h < a.kv_heads; h++) store(run, &a, h, first, last);
        setun_pool_barrier(run->pool);
    }
    for (int item; (item = cpu_take(run, index)) < total;) {
        /* The last tile sees the most keys: it comes first, so that nobody starts it late. */
        int tile = tiles - 1 - item / (a.kv_heads * parts), rest = item % (a.kv_heads * parts);
        int kv_head = rest / parts, part = rest % parts;
        int first = tile * CPU_ATTENTION_TILE, last = first + CPU_ATTENTION_TILE < a.tokens ? first + CPU_ATTENTION_TILE : a.tokens;
        if (merged && inside > 1) store(run, &a, kv_head, first, last);
        attend_tile(run, &a, kv_head, kv_head * a.group + part * heads, heads, first, last);
    }
}
