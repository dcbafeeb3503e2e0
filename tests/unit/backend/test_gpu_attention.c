/*
 * test_gpu_attention.c - kv_append, attention (whole, appending, split) and attention_combine in their host form against the CPU's
 * kernels bit for bit: the cache, whole and split results; ragged sequences, windows, norms, rotations, all dtypes.
 */
#include "gpu_support.h"

static const setun_kernels *ref;

typedef struct setting {
    int dtype, cache_dtype, head_size, heads, kv_heads, capacity, slot_count, tokens, window, half, table_rows, norm_q, norm_k;
    bool rope, interleaved;
    float scale, epsilon_q, offset_q, epsilon_k, offset_k;
    int q_offset, k_offset, v_offset, stride; /* q, k and v lie in one array, as a fused product leaves them */
    void *qkv;
    float *qkv_f32, *q_weight, *k_weight, *cosines, *sines;
    int32_t *positions, *slots, *places;
    void *k_cache, *v_cache;    /* [slot_count, kv_heads, capacity, head_size] before the call */
    size_t cache_count;
} setting;

static setting random_setting(bool one_each)
{
    static const int sizes[] = {16, 24, 64, 80, 128, 33};
    setting s = {.dtype = dtypes[next_random() % 3], .cache_dtype = dtypes[next_random() % 3], .head_size = sizes[next_random() % 6], .kv_heads = random_between(1, 3), .slot_count = random_between(1, 3),
                 .capacity = random_between(70, 800), .norm_q = random_between(0, 2), .norm_k = random_between(0, 2), .rope = next_random() % 4, .interleaved = next_random() % 2,
                 .scale = 0.125f, .epsilon_q = 1e-5f, .epsilon_k = 1e-6f, .offset_q = (float)(next_random() % 2), .offset_k = (float)(next_random() % 2)};
    s.heads = s.kv_heads * random_between(1, 4);
    s.tokens = one_each ? random_between(1, s.slot_count) : random_between(1, 6);
    s.window = next_random() % 2 ? 0 : random_between(1, 400);
    s.half = s.head_size / 2 - (next_random() % 2 ? 0 : random_between(0, s.head_size / 4));
    s.table_rows = s.capacity;
    s.q_offset = random_between(0, 3);
    s.k_offset = s.q_offset + s.heads * s.head_size;
    s.v_offset = s.k_offset + s.kv_heads * s.head_size;
    s.stride = s.v_offset + s.kv_heads * s.head_size + random_between(0, 3);
    size_t n = (size_t)(s.tokens * s.stride);
    s.qkv = random_values(s.dtype, n, &s.qkv_f32);
    for (size_t i = 0; i < n; i++) { /* scores of sane size */
        s.qkv_f32[i] /= 64.0f;
        store_value(s.qkv, s.dtype, i, s.qkv_f32[i]);
        s.qkv_f32[i] = load_value(s.qkv, s.dtype, i);
    }
    s.q_weight = random_floats((size_t)s.head_size);
    s.k_weight = random_floats((size_t)s.head_size);
    for (int i = 0; i < s.head_size; i++) {
        s.q_weight[i] = s.q_weight[i] / 256.0f + 1.0f;
        s.k_weight[i] = s.k_weight[i] / 256.0f + 1.0f;
    }
    s.cosines = array_of((size_t)(s.table_rows * s.half) * 4);
    s.sines = array_of((size_t)(s.table_rows * s.half) * 4);
    for (int i = 0; i < s.table_rows * s.half; i++) {
        float angle = random_float();
        s.cosines[i] = cosf(angle);
        s.sines[i] = sinf(angle);
    }
    s.positions = array_of((size_t)s.tokens * 4);
    s.slots = array_of((size_t)s.tokens * 4);
    s.places = array_of((size_t)s.tokens * 4);
    int length[3];
    for (int i = 0; i < 3; i++) length[i] = random_between(0, s.capacity - 8);
    for (int t = 0; t < s.tokens; t++) { /* several tokens may follow one another in a slot */
        s.slots[t] = one_each ? t : random_between(0, s.slot_count - 1);
        s.places[t] = length[s.slots[t]]++;
        s.positions[t] = s.places[t];
    }
    s.cache_count = (size_t)(s.slot_count * s.kv_heads * s.capacity * s.head_size);
    s.k_cache = random_values(s.cache_dtype, s.cache_count, NULL);
    s.v_cache = random_values(s.cache_dtype, s.cache_count, NULL);
    for (size_t i = 0; i < s.cache_count; i++) {
        store_value(s.k_cache, s.cache_dtype, i, load_value(s.k_cache, s.cache_dtype, i) / 64.0f);
        store_value(s.v_cache, s.cache_dtype, i, load_value(s.v_cache, s.cache_dtype, i) / 64.0f);
    }
    return s;
}

/* A head normed and rotated as steps_attention.c does. */
static void prepare(const setting *s, const float *from, int norm, const float *weight, float offset, float epsilon, int token, float *out)
{
    memcpy(out, from, (size_t)s->head_size * 4);
    if (norm) ref->rms_norm(out, norm == 2 ? weight : NULL, offset, s->head_size, epsilon, out);
    if (s->rope) ref->rope(out, 1, s->head_size, 2 * s->half, s->cosines + s->positions[token] * s->half, s->sines + s->positions[token] * s->half, s->interleaved);
}

/* The cache after the tokens were stored */
static void *appended(const setting *s, bool keys)
{
    void *cache = array_of(s->cache_count * bytes_of(s->cache_dtype));
    memcpy(cache, keys ? s->k_cache : s->v_cache, s->cache_count * bytes_of(s->cache_dtype));
    float vector[256];
    for (int t = 0; t < s->tokens; t++)
        for (int h = 0; h < s->kv_heads; h++) {
            const float *from = s->qkv_f32 + t * s->stride + (keys ? s->k_offset : s->v_offset) + h * s->head_size;
            if (keys) prepare(s, from, s->norm_k, s->k_weight, s->offset_k, s->epsilon_k, t, vector);
            else memcpy(vector, from, (size_t)s->head_size * 4);
            for (int e = 0; e < s->head_size; e++)
                store_value(cache, s->cache_dtype, (size_t)(((s->slots[t] * s->kv_heads + h) * s->capacity + s->places[t]) * s->head_size + e), vector[e]);
        }
    return cache;
}

/* out [tokens, heads, head_size] by the CPU's kernel over f32 copies of the cache (values of every dtype are exact in f32) */
static float *attended(const setting *s, const void *k_cache, const void *v_cache)
{
    float *out = array_of((size_t)(s->tokens * s->heads * s->head_size) * 4), q[256];
    size_t row = (size_t)s->capacity * (size_t)s->head_size, ranges = ((size_t)s->capacity + SETUN_ATTENTION_RANGE - 1) / SETUN_ATTENTION_RANGE, range = (size_t)SETUN_ATTENTION_RANGE * (size_t)s->head_size;
    float *k = array_of(ranges * range * 4), *v = array_of(ranges * range * 4);
    float *scratch = setun_alloc_aligned(setun_attention_scratch_floats(1, s->head_size) * 4, 64);
    for (int t = 0; t < s->tokens; t++)
        for (int h = 0; h < s->heads; h++) {
            int kv_head = h / (s->heads / s->kv_heads);
            size_t base = (size_t)(s->slots[t] * s->kv_heads + kv_head) * row;
            for (size_t i = 0; i < row; i++) { /* the CPU keeps 64 keys side by side */
                size_t key = i / (size_t)s->head_size, d = i % (size_t)s->head_size, n = key % SETUN_ATTENTION_RANGE;
                k[key / SETUN_ATTENTION_RANGE * range + (n / 64 * (size_t)s->head_size + d) * 64 + n % 64] = load_value(k_cache, s->cache_dtype, base + i);
                v[i] = load_value(v_cache, s->cache_dtype, base + i);
            }
            prepare(s, s->qkv_f32 + t * s->stride + s->q_offset + h * s->head_size, s->norm_q, s->q_weight, s->offset_q, s->epsilon_q, t, q);
            setun_attention_args args = {.q = q, .q_stride = (size_t)s->head_size, .queries = 1, .group = 1, .head_size = s->head_size, .type = SETUN_F32, .k = k, .v = v, .range_stride = range * 4,
                                         .first = s->places[t], .window = s->window, .scale = s->scale, .out = out + (t * s->heads + h) * s->head_size,
                                         .out_stride = (size_t)s->head_size, .scratch = scratch};
            ref->attention(&args);
        }
    setun_free_aligned(scratch);
    return out;
}

static void *copy_of(const void *from, size_t bytes)
{
    void *copy = array_of(bytes);
    memcpy(copy, from, bytes);
    return copy;
}

static int some_heads(const setting *s) /* a divisor of the group */
{
    int group = s->heads / s->kv_heads, n = random_between(1, group);
    while (group % n) n--;
    return n;
}

/* parts 0: not split */
static void check_setting(setting *s, bool append, int parts)
{
    size_t n = (size_t)(s->tokens * s->heads * s->head_size), cache_bytes = s->cache_count * bytes_of(s->cache_dtype);
    void *k_after = appended(s, true), *v_after = appended(s, false);
    float *wanted = attended(s, k_after, v_after);
    const void *stored = stored_as(s->dtype, wanted, n);
    int threads = 32 * random_between(2, 6);
    for (int turn = 0; turn < 3; turn++) {
        uint64_t order = turn ? (uint64_t)next_random() | 1 : 0;
        void *k_cache = copy_of(s->k_cache, cache_bytes), *v_cache = copy_of(s->v_cache, cache_bytes);
        int32_t *done = array_of((size_t)s->tokens * 4);
        if (!append) {
            int32_t values[] = {s->dtype, s->cache_dtype, s->head_size, s->norm_k, s->rope, s->interleaved};
            const void *inputs[] = {s->qkv, s->qkv, s->k_weight, s->positions, s->cosines, s->sines, s->slots, s->places, k_cache, v_cache,
                                    INTS(s->kv_heads, s->capacity, s->k_offset, s->stride, s->v_offset, s->stride, s->half, s->table_rows, s->slot_count), FLOATS(s->epsilon_k, s->offset_k)};
            void *outputs[] = {done};
            call c = CALL(kv_append, values, inputs, outputs, threads, s->kv_heads, s->tokens);
            run_call(&c, order, false);
            same("kv_append", "done", s->places, done, (size_t)s->tokens, 4);
            same("kv_append", "keys", k_after, k_cache, s->cache_count, bytes_of(s->cache_dtype));
            same("kv_append", "values", v_after, v_cache, s->cache_count, bytes_of(s->cache_dtype));
        }
        int32_t values[] = {s->dtype, s->cache_dtype, s->head_size, some_heads(s), s->norm_q, s->norm_k, s->rope, s->interleaved, append, parts > 0};
        const void *inputs[] = {s->qkv, s->qkv, s->qkv, s->q_weight, s->k_weight, s->positions, s->cosines, s->sines, s->slots, s->places, k_cache, v_cache, done,
                                INTS(s->heads, s->kv_heads, s->capacity, s->window, s->q_offset, s->stride, s->k_offset, s->stride, s->v_offset, s->stride, s->half, s->table_rows, parts, s->slot_count),
                                FLOATS(s->scale, s->epsilon_q, s->offset_q, s->epsilon_k, s->offset_k)};
        void *out = array_of(n * bytes_of(s->dtype));
        float *partial = array_of(parts > 0 ? (size_t)(s->tokens * s->heads * parts * (s->head_size + 2)) * 4 : 4);
        void *outputs[] = {out, partial};
        call c = CALL(attention, values, inputs, outputs, threads, s->heads, s->tokens, parts);
        run_call(&c, order, false);
        same("attention", "keys", k_after, k_cache, s->cache_count, bytes_of(s->cache_dtype));
        same("attention", "values", v_after, v_cache, s->cache_count, bytes_of(s->cache_dtype));
        if (!parts) same("attention", "out", stored, out, n, bytes_of(s->dtype));
        else {
            int32_t combine_values[] = {s->dtype, s->head_size};
            const void *combine_inputs[] = {partial, INTS(parts)};
            void *combine_outputs[] = {out};
            call j = CALL(attention_combine, combine_values, combine_inputs, combine_outputs, 32 * random_between(1, 4), s->tokens * s->heads);
            run_call(&j, order, false);
            same("attention_combine", "out", stored, out, n, bytes_of(s->dtype));
        }
    }
    free_arrays();
}

static void appended_first(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 16; turn++) {
        setting s = random_setting(false);
        check_setting(&s, false, 0);
    }
}
static void appended_inside(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 16; turn++) {
        setting s = random_setting(true);
        check_setting(&s, true, 0);
    }
}
static void in_parts(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 16; turn++) {
        setting s = random_setting(turn % 2);
        check_setting(&s, turn % 2, (s.capacity + 255) / 256 + random_between(0, 2));
    }
}

/* A slot or place outside the cache: nothing is written, done says -1, out is zero. */
static void outside(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 8; turn++) {
        setting s = random_setting(true);
        if (turn & 1) s.slots[0] = turn & 2 ? -1 : s.slot_count;
        else s.places[0] = turn & 2 ? -1 : s.capacity;
        size_t cache_bytes = s.cache_count * bytes_of(s.cache_dtype);
        void *k_cache = copy_of(s.k_cache, cache_bytes), *v_cache = copy_of(s.v_cache, cache_bytes);
        int32_t done = 7, values[] = {s.dtype, s.cache_dtype, s.head_size, s.norm_k, s.rope, s.interleaved};
        s.tokens = 1;
        const void *inputs[] = {s.qkv, s.qkv, s.k_weight, s.positions, s.cosines, s.sines, s.slots, s.places, k_cache, v_cache,
                                INTS(s.kv_heads, s.capacity, s.k_offset, s.stride, s.v_offset, s.stride, s.half, s.table_rows, s.slot_count), FLOATS(s.epsilon_k, s.offset_k)};
        void *outputs[] = {&done};
        call c = CALL(kv_append, values, inputs, outputs, 64, s.kv_heads, 1);
        run_call(&c, 1, false);
        assert_int_equal(done, -1);
        int32_t attend_values[] = {s.dtype, s.cache_dtype, s.head_size, 1, s.norm_q, s.norm_k, s.rope, s.interleaved, 1, 0};
        const void *attend_inputs[] = {s.qkv, s.qkv, s.qkv, s.q_weight, s.k_weight, s.positions, s.cosines, s.sines, s.slots, s.places, k_cache, v_cache, &done,
                                       INTS(s.heads, s.kv_heads, s.capacity, s.window, s.q_offset, s.stride, s.k_offset, s.stride, s.v_offset, s.stride, s.half, s.table_rows, 1, s.slot_count),
                                       FLOATS(s.scale, s.epsilon_q, s.offset_q, s.epsilon_k, s.offset_k)};
        size_t n = (size_t)(s.heads * s.head_size);
        uint8_t *out = array_of(n * bytes_of(s.dtype));
        void *attend_outputs[] = {out, array_of(4)};
        call a = CALL(attention, attend_values, attend_inputs, attend_outputs, 128, s.heads, 1, 1);
        run_call(&a, 1, false);
        for (size_t i = 0; i < n * bytes_of(s.dtype); i++) assert_int_equal(out[i], 0);
        assert_memory_equal(k_cache, s.k_cache, cache_bytes);
        assert_memory_equal(v_cache, s.v_cache, cache_bytes);
        free_arrays();
    }
}

int main(void)
{
    ref = setun_isa_table(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(appended_first), cmocka_unit_test(appended_inside), cmocka_unit_test(in_parts), cmocka_unit_test(outside)};
    int failed = cmocka_run_group_tests(tests, seed_tests, NULL);
    setun_gpu_host_trim();
    return failed;
}
