/*
 * steps_attention.c - rotations, keys and values into the cache, and attention over them.
 * An attention step stores k (normalised, rotated) and v of its tokens, then queries attend. Workers take items from a counter: with many tokens
 * (kv head, some of its query heads, tile of tokens), after all keys are stored; with few tokens (kv head, range of keys), whose results the last
 * worker of a head combines in the order of the ranges, so that all workers share a long context evenly. A query tile is normalised and
 * rotated in the worker's scratch by who attends with it, so q itself is never written. The run's tokens may belong to several sequences.
 * Caller: execute.c. The order of the sums inside is the attention kernel's; nothing here depends on the workers.
 */
#include "backend/cpu/cpu.h"
#include <math.h>

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
            setun_sincos((double)positions[t] * rope->frequencies[i], &s, &c);
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

_Static_assert((int)SETUN_KV_BLOCK == SETUN_ATTENTION_BLOCK && (int)SETUN_KV_RANGE == SETUN_ATTENTION_RANGE, "the cache lies as the kernel reads it");

typedef struct attend {
    const setun_step *step;
    const cpu_rope *rope;       /* NULL: none */
    const float *q, *k, *v;     /* slots */
    const float *q_norm, *k_norm; /* NULL: weights are 1 */
    int heads, kv_heads, group, d;
    float *out;
    float *vector;              /* worker scratch [head_size] */
    void *narrow;               /* worker scratch [head_size], of the cache's type */
    float *queries;             /* worker scratch [CPU_ATTENTION_TILE, group, head_size] */
    float *kernel_scratch;
    atomic_int *done;           /* shared: [sequence, kv_head] ranges computed; zero between steps */
    float *records;             /* shared */
    /* how the step is cut; the same in every worker */
    bool by_ranges;             /* items are ranges of keys, else tiles of tokens */
    int parts;                  /* by tiles: into how many the query heads of a kv head are cut */
    bool merged;                /* who attends to a token's own key stores it first; else all are stored before */
    /* the sequence at hand: enter() */
    int sequence, sequences;
    int row, rows;              /* of the run's tokens */
    int length;                 /* tokens stored before this run */
    setun_dtype type;
    uint8_t *keys;              /* of kv head 0 at position 0 */
    size_t element, values_offset, k_scales_offset, v_scales_offset; /* bytes; from a head's keys */
    size_t head_stride, range_stride;
    int first_range, ranges;    /* that any of the rows sees */
    int items, items_before;    /* of this sequence; of those before it */
    int records_before;         /* (token, range) pairs of the sequences before */
    const uint8_t *next;        /* keys that this worker will want next, or NULL */
} attend;

static uint64_t vector_bytes(int head_size) { return cpu_align((uint64_t)head_size * sizeof(float)); }
static uint64_t query_bytes(int group, int head_size) { return cpu_align((uint64_t)CPU_ATTENTION_TILE * (uint64_t)group * (uint64_t)head_size * sizeof(float)); }

uint64_t cpu_attention_scratch(const setun_plan *plan, const setun_step *step)
{
    (void)plan;
    int group = step->heads / step->kv_heads;
    return 2 * vector_bytes(step->head_size) + query_bytes(group, step->head_size) + cpu_align(setun_attention_scratch_floats(group, step->head_size) * sizeof(float));
}

uint64_t cpu_attention_shared(const setun_step *step, uint64_t *counters)
{
    *counters = cpu_align((uint64_t)CPU_ATTENTION_RECORDS * (uint64_t)step->kv_heads * sizeof(atomic_int)); /* a sequence has at least one record */
    return (uint64_t)CPU_ATTENTION_RECORDS * (uint64_t)step->heads * setun_attention_partial_floats(step->head_size) * sizeof(float);
}

/* Heads of one token: norm each, rotate all; x [count, d] in place. */
static void norm_and_rotate(const cpu_run *run, const attend *a, float *x, int count, int64_t token, bool norm, const float *weight, bool one_plus, float epsilon)
{
    if (norm)
        for (int h = 0; h < count; h++) run->kernels->rms_norm(x + (size_t)h * (size_t)a->d, weight, one_plus ? 1.0f : 0.0f, a->d, epsilon, x + (size_t)h * (size_t)a->d);
    if (a->rope)
        run->kernels->rope(x, count, a->d, a->rope->spec.rotary, rope_row(run, a->rope, a->rope->cos_offset, token), rope_row(run, a->rope, a->rope->sin_offset, token), a->rope->spec.interleaved);
}

/* The key of position n lies across its block: one element every 64. */
static void scatter(uint8_t *keys, size_t element, int d, int n, const void *x)
{
    size_t at = (size_t)(n / SETUN_KV_BLOCK) * (size_t)d * SETUN_KV_BLOCK + (size_t)(n % SETUN_KV_BLOCK);
    if (element == 1)
        for (int i = 0; i < d; i++) keys[at + (size_t)i * SETUN_KV_BLOCK] = ((const uint8_t *)x)[i];
    else if (element == 2)
        for (int i = 0; i < d; i++) ((uint16_t *)(void *)keys)[at + (size_t)i * SETUN_KV_BLOCK] = ((const uint16_t *)x)[i];
    else
        for (int i = 0; i < d; i++) ((float *)(void *)keys)[at + (size_t)i * SETUN_KV_BLOCK] = ((const float *)x)[i];
}

/* Keys and values of one kv head for rows first .. last-1 of the sequence at hand */
static void store(const cpu_run *run, const attend *a, int kv_head, int first, int last)
{
    const setun_step *s = a->step;
    for (int t = first; t < last; t++) {
        size_t from = ((size_t)(a->row + t) * (size_t)a->kv_heads + (size_t)kv_head) * (size_t)a->d;
        int position = a->length + t, n = position % SETUN_KV_RANGE;
        uint8_t *keys = a->keys + (size_t)kv_head * a->head_stride + (size_t)(position / SETUN_KV_RANGE) * a->range_stride;
        uint8_t *value = keys + a->values_offset + (size_t)n * (size_t)a->d * a->element;
        memcpy(a->vector, a->k + from, (size_t)a->d * sizeof(float));
        norm_and_rotate(run, a, a->vector, 1, a->row + t, s->norm_k, a->k_norm, s->one_plus_k, s->epsilon_k);
        if (a->type == SETUN_F16) {
            run->kernels->f32_to_f16(a->vector, a->d, a->narrow);
            scatter(keys, a->element, a->d, n, a->narrow);
            run->kernels->f32_to_f16(a->v + from, a->d, (uint16_t *)(void *)value);
        } else if (a->type == SETUN_I8) {
            int32_t sum;
            run->kernels->quantize_i8(a->vector, a->d, a->d, a->narrow, (float *)(void *)(keys + a->k_scales_offset) + n, &sum);
            scatter(keys, a->element, a->d, n, a->narrow);
            run->kernels->quantize_i8(a->v + from, a->d, a->d, (int8_t *)value, (float *)(void *)(keys + a->v_scales_offset) + n, &sum);
        } else {
            scatter(keys, a->element, a->d, n, a->vector);
            memcpy(value, a->v + from, (size_t)a->d * sizeof(float));
        }
    }
}

/* Query heads head .. head+count-1 (of one kv head) for rows first .. last-1 of the sequence, at most CPU_ATTENTION_TILE.
 * range < 0: over all keys, into out; else over that range, into records. */
static void attend_tile(const cpu_run *run, const attend *a, int kv_head, int head, int count, int first, int last, int range, float *records)
{
    const setun_step *s = a->step;
    size_t width = (size_t)a->heads * (size_t)a->d, tile = (size_t)count * (size_t)a->d;
    for (int t = first; t < last; t++) {
        float *q = a->queries + (size_t)(t - first) * tile;
        const float *from = a->q + (size_t)(a->row + t) * width + (size_t)head * (size_t)a->d;
        if (t + 1 < last) cpu_ask_for(from + width, tile * sizeof(float));
        memcpy(q, from, tile * sizeof(float));
        norm_and_rotate(run, a, q, count, a->row + t, s->norm_q, a->q_norm, s->one_plus, s->epsilon);
    }
    const uint8_t *keys = a->keys + (size_t)kv_head * a->head_stride;
    setun_attention_args args = {
        .q = a->queries, .q_stride = tile, .queries = last - first, .group = count, .head_size = a->d, .type = a->type,
        .k = keys, .v = keys + a->values_offset, .k_scales = (const float *)(const void *)(keys + a->k_scales_offset),
        .v_scales = (const float *)(const void *)(keys + a->v_scales_offset), .range_stride = a->range_stride,
        .first = a->length + first, .window = s->attention.window, .scale = s->attention.scale,
        .out = a->out + (size_t)(a->row + first) * width + (size_t)head * (size_t)a->d, .out_stride = width,
        .partials = range < 0 ? NULL : records, .range = range, .next = a->next, .scratch = a->kernel_scratch,
    };
    if (args.scale == 0.0f) args.scale = 1.0f / sqrtf((float)a->d);
    run->kernels->attention(&args);
}

static int lowest_key(const attend *a, int row)
{
    int seen = a->length + row + 1, window = a->step->attention.window;
    return window > 0 && seen > window ? seen - window : 0;
}

static int tiles_of(const attend *a) { return (a->rows + CPU_ATTENTION_TILE - 1) / CPU_ATTENTION_TILE; }

/* Makes sequence s the one at hand. */
static void enter(const cpu_run *run, attend *a, int s)
{
    const setun_frame *frame = run->frame;
    const setun_kv_cache *cache = frame->sequence_count > 0 ? frame->sequences[s].cache : frame->cache;
    a->sequence = s;
    a->row = frame->sequence_count > 0 ? frame->sequences[s].first_row : 0;
    a->rows = frame->sequence_count > 0 ? frame->sequences[s].rows : run->tokens;
    if (a->step->attention.cache_layer > 0) {
        a->length = cache->length;
        a->type = cache->dtype;
        a->element = cache->element;
        a->keys = setun_kv_keys(cache, a->step->attention.cache_layer - 1, 0);
        a->head_stride = cache->head_bytes;
        a->range_stride = cache->range_bytes;
        a->values_offset = setun_kv_values_offset(cache);
        a->k_scales_offset = setun_kv_scales_offset(cache, false);
        a->v_scales_offset = setun_kv_scales_offset(cache, true);
    }
    a->first_range = lowest_key(a, 0) / SETUN_KV_RANGE;
    a->ranges = a->rows > 0 ? (a->length + a->rows - 1) / SETUN_KV_RANGE + 1 - a->first_range : 0;
    a->items = a->kv_heads * (a->by_ranges ? a->ranges : tiles_of(a) * a->parts);
}

static void start(const cpu_run *run, attend *a)
{
    a->items_before = a->records_before = 0;
    enter(run, a, 0);
}

/* Goes on to the sequence that `item` belongs to; items come in rising order. False: there is none. */
static bool seek(const cpu_run *run, attend *a, int item)
{
    while (item >= a->items_before + a->items) {
        if (a->sequence + 1 >= a->sequences) return false;
        a->items_before += a->items;
        a->records_before += a->rows * a->ranges;
        enter(run, a, a->sequence + 1);
    }
    return true;
}

/* Where the keys of an item of the sequence at hand begin; NULL: it has no such item, or they are in the cache already. */
static const uint8_t *keys_of_item(const attend *a, int item)
{
    if (item >= a->items || a->rows > 1) return NULL;
    int kv_head = a->by_ranges ? item / a->ranges : item / a->parts % a->kv_heads, range = a->by_ranges ? item % a->ranges : 0;
    return a->keys + (size_t)kv_head * a->head_stride + (size_t)(a->first_range + range) * a->range_stride;
}

static attend attend_of(const cpu_run *run, int index, int worker)
{
    const setun_step *s = &run->plan->steps[index];
    const cpu_step *cpu = &run->tape->step[index];
    attend a = {
        .step = s, .rope = s->has_rope ? &run->tape->ropes[cpu->rope] : NULL,
        .q = setun_frame_slot(run->frame, s->input[0]), .k = setun_frame_slot(run->frame, s->input[1]), .v = setun_frame_slot(run->frame, s->input[2]),
        .heads = s->heads, .kv_heads = s->kv_heads, .group = s->heads / s->kv_heads, .d = s->head_size,
        .out = setun_frame_slot(run->frame, s->output[0]), .sequences = run->frame->sequence_count > 0 ? run->frame->sequence_count : 1, .parts = 1,
    };
    if (s->prepared[0]) a.q_norm = (const float *)(const void *)((const setun_prepared *)s->prepared[0])->data;
    if (s->prepared[1]) a.k_norm = (const float *)(const void *)((const setun_prepared *)s->prepared[1])->data;
    if (s->attention.cache_layer == 0) { /* as a cache that forgets */
        a.type = SETUN_F32;
        a.element = sizeof(float);
        a.keys = run->scratch + cpu->kv_offset;
        a.values_offset = cpu->kv_half;
        a.range_stride = (size_t)SETUN_KV_RANGE * (size_t)a.d * sizeof(float);
        a.head_stride = (size_t)(cpu->kv_half / (uint64_t)a.kv_heads);
    }
    uint8_t *scratch = cpu_worker_scratch(run, worker);
    a.vector = (float *)(void *)scratch;
    a.narrow = scratch + vector_bytes(a.d);
    a.queries = (float *)(void *)(scratch + 2 * vector_bytes(a.d));
    a.kernel_scratch = (float *)(void *)(scratch + 2 * vector_bytes(a.d) + query_bytes(a.group, a.d));
    a.done = (atomic_int *)(void *)(run->scratch + run->tape->attention_offset);
    a.records = (float *)(void *)(run->scratch + run->tape->attention_offset + run->tape->attention_counters);
    return a;
}

/* Decides how the step is cut. Results don't depend on it. */
static void cut(const cpu_run *run, attend *a, int inside)
{
    int64_t records = 0, tiles = 0;
    int most = 0;
    for (int s = 0; s < a->sequences; s++) {
        enter(run, a, s);
        records += (int64_t)a->rows * a->ranges;
        tiles += tiles_of(a);
        if (a->rows > most) most = a->rows;
    }
    a->by_ranges = inside > 1 && most <= CPU_ATTENTION_TILE && records <= CPU_ATTENTION_RECORDS;
    a->merged = inside == 1 || (a->by_ranges && most == 1);
    /* Few kv heads for the workers: cut each head's group of query heads too. They then read the same keys, from a shared cache. */
    if (inside > 1 && !a->by_ranges) {
        while (a->parts < a->group && a->kv_heads * a->parts * tiles < 4 * inside) a->parts++;
        while (a->group % a->parts) a->parts++;
    }
}

static void store_all(const cpu_run *run, attend *a, int64_t first_row, int64_t last_row)
{
    for (int s = 0; s < a->sequences; s++) {
        enter(run, a, s);
        int64_t first = first_row - a->row, last = last_row - a->row;
        for (int h = 0; h < a->kv_heads && last > 0; h++) store(run, a, h, first > 0 ? (int)first : 0, last < a->rows ? (int)last : a->rows);
    }
}

/* One range of the keys of a kv head. Who computes the last of them puts them together. */
static void attend_range(const cpu_run *run, attend *a, int kv_head, int range)
{
    bool newest = range == a->ranges - 1;
    if (a->merged && newest) store(run, a, kv_head, 0, a->rows);
    if (a->ranges == 1) {
        attend_tile(run, a, kv_head, kv_head * a->group, a->group, 0, a->rows, -1, NULL);
        return;
    }
    size_t record = setun_attention_partial_floats(a->d), pairs = (size_t)a->rows * (size_t)a->group;
    float *records = a->records + ((size_t)a->records_before * (size_t)a->heads + (size_t)kv_head * pairs * (size_t)a->ranges) * record;
    attend_tile(run, a, kv_head, kv_head * a->group, a->group, 0, a->rows, a->first_range + range, records + (size_t)range * pairs * record);
    atomic_int *done = a->done + (size_t)a->sequence * (size_t)a->kv_heads + kv_head;
    if (atomic_fetch_add_explicit(done, 1, memory_order_acq_rel) + 1 < a->ranges) return;
    atomic_store_explicit(done, 0, memory_order_relaxed);
    size_t width = (size_t)a->heads * (size_t)a->d;
    for (int t = 0; t < a->rows; t++) {
        int first = lowest_key(a, t) / SETUN_KV_RANGE - a->first_range, last = (a->length + t) / SETUN_KV_RANGE - a->first_range;
        for (int g = 0; g < a->group; g++)
            run->kernels->attention_combine(records + ((size_t)first * pairs + (size_t)(t * a->group + g)) * record, pairs * record, last - first + 1, a->d,
                                            a->out + (size_t)(a->row + t) * width + (size_t)(kv_head * a->group + g) * (size_t)a->d);
    }
}

void cpu_step_attention(cpu_run *run, int index, int worker)
{
    int inside = cpu_step_workers(run, index);
    rope_tables(run, index, worker, inside == 1);
    attend a = attend_of(run, index, worker);
    cut(run, &a, inside);
    if (inside == 1) store_all(run, &a, 0, run->tokens);
    else if (!a.merged) {
        store_all(run, &a, (int64_t)run->tokens * worker / inside, (int64_t)run->tokens * (worker + 1) / inside);
        setun_pool_barrier(run->pool);
    }
    start(run, &a);
    int item = cpu_take(run, index), next;
    for (; seek(run, &a, item); item = next) {
        /* The next item is taken before this one is done, so that its keys are on their way by then. */
        next = cpu_take(run, index);
        a.next = keys_of_item(&a, next - a.items_before);
        int at = item - a.items_before;
        if (a.by_ranges) {
            attend_range(run, &a, at / a.ranges, at % a.ranges);
            continue;
        }
        /* The last tile sees the most keys: it comes first, so that nobody starts it late. */
        int tile = tiles_of(&a) - 1 - at / (a.kv_heads * a.parts), rest = at % (a.kv_heads * a.parts), heads = a.group / a.parts;
        int kv_head = rest / a.parts, part = rest % a.parts;
        int first = tile * CPU_ATTENTION_TILE, last = first + CPU_ATTENTION_TILE < a.rows ? first + CPU_ATTENTION_TILE : a.rows;
        attend_tile(run, &a, kv_head, kv_head * a.group + part * heads, heads, first, last, -1, NULL);
    }
}
