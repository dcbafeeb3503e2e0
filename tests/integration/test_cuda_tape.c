/*
 * The table and the packed weights that the CUDA decode kernel walks, walked here in plain C: the same logits as the CPU backend's.
 * The kernel itself is checked on a GPU by bench/cuda_decode.cu; this is about what it is given.
 */
#include "backend/mlx/cuda/decode_plan.h"
#include "integration/support.h"

typedef struct walk {
    const setun_cuda_header *h;
    const setun_cuda_step *steps;
    const setun_cuda_stream *streams;
    const setun_cuda_work *works;
    const uint8_t *weights, *dense;
    const float *floats;
    float *in, *out, *x, *keys, *values; /* x: the residual stream */
    int capacity;
} walk;

static float dense_value(const walk *w, int format, int row_bytes, int row, int column)
{
    const uint8_t *p = w->dense + (size_t)row * (size_t)row_bytes;
    if (format == SETUN_CUDA_Q8) return setun_f16_to_f32(setun_load_u16(p + w->h->width + column / 32 * 2)) * (float)(int8_t)p[column];
    uint16_t bits = setun_load_u16(p + 2 * column);
    return format == SETUN_CUDA_F16 ? setun_f16_to_f32(bits) : setun_bf16_to_f32(bits);
}

/* Code of row r, column c of a tile, as the kernel's lanes find it. */
static int code_of(const uint8_t *tile, int r, int c)
{
    const uint8_t *unit = tile + c / 128 * SETUN_CUDA_UNIT_BYTES;
    int p = c % 32, field = c % 128 / 32, lane = r % 8 * 4 + p / 8, word = r / 8 + p % 8 / 4 * 2;
    return unit[lane * 16 + word * 4 + p % 4] >> (6 - 2 * field) & 3;
}

static float norm_of(const walk *w, const float *x, int n, int norm, float epsilon, float *y)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float inverse = epsilon >= 0 ? (float)(1 / sqrt(sum / n + (double)epsilon)) : 1, most = 1e-5f;
    for (int i = 0; i < n; i++) {
        y[i] = x[i] * inverse * (norm >= 0 ? w->floats[norm + i] : 1);
        if (fabsf(y[i]) > most) most = fabsf(y[i]);
    }
    return most;
}

static float activate(int activation, float x)
{
    if (activation == SETUN_CUDA_ACT_RELU2) return x > 0 ? x * x : 0;
    assert_int_equal(activation, SETUN_CUDA_ACT_SILU);
    return x / (1 + expf(-x));
}

static void linear(walk *w, int index)
{
    const setun_cuda_step *s = &w->steps[index];
    float *y = malloc((size_t)s->columns * sizeof *y);
    int *q = malloc((size_t)s->columns * sizeof *q);
    float most = norm_of(w, w->in, s->columns, s->norm, s->epsilon, y);
    for (int i = 0; i < s->columns; i++) q[i] = (int)rintf(y[i] * (127 / most));
    int next_tile = 0, rows = s->gated ? 8 : 16;
    for (int b = 0; b < w->h->grid; b++) {
        const setun_cuda_work *work = &w->works[b * w->h->steps + index];
        assert_int_equal(work->tile, next_tile);
        next_tile += work->tiles;
        for (int t = 0; t < work->tiles; t++) {
            const uint8_t *tile = w->weights + ((size_t)(w->streams[b].unit + work->unit) + (size_t)t * (size_t)s->blocks) * SETUN_CUDA_UNIT_BYTES;
            float sums[16];
            for (int r = 0; r < 16; r++) {
                int sum = 0, at = (work->tile + t) * 16 + r;
                for (int c = 0; c < s->columns; c++) sum += (code_of(tile, r, c) - 1) * q[c];
                for (int c = s->columns; c < s->blocks * 128; c++) assert_int_equal(code_of(tile, r, c), 1);
                sums[r] = (float)sum * (most / 127 * w->floats[s->scales + at]) + (s->bias >= 0 ? w->floats[s->bias + at] : 0);
            }
            for (int r = 0; r < rows; r++) {
                int at = (work->tile + t) * rows + r;
                if (at >= s->rows) continue;
                float v = (s->gated ? activate(s->activation, sums[r]) * sums[r + 8] : sums[r]) * s->factor;
                if (s->residual) v = w->x[at] += v;
                w->out[at] = v;
            }
        }
    }
    free(y);
    free(q);
}

static void rotate(const walk *w, float *v, int position)
{
    const double *frequencies = (const double *)(const void *)(w->floats + w->h->rope_frequencies);
    int half = w->h->head_size / 2;
    for (int i = 0; i < half; i++) {
        int first = w->h->rope_interleaved ? 2 * i : i, second = w->h->rope_interleaved ? 2 * i + 1 : i + half;
        float c = (float)cos(position * frequencies[i]) * w->h->rope_magnitude, s = (float)sin(position * frequencies[i]) * w->h->rope_magnitude, a = v[first], b = v[second];
        v[first] = a * c - b * s;
        v[second] = b * c + a * s;
    }
}

static void attention(walk *w, const setun_cuda_step *s, int position)
{
    int d = w->h->head_size;
    for (int g = 0; g < s->kv_heads; g++) {
        float *k = w->in + s->k + g * d, *v = w->in + s->v + g * d;
        rotate(w, k, position);
        size_t at = (((size_t)s->layer * (size_t)s->kv_heads + (size_t)g) * (size_t)w->capacity + (size_t)position) * (size_t)d;
        for (int i = 0; i < d; i++) w->keys[at + (size_t)i] = setun_f16_to_f32(setun_f32_to_f16(k[i])), w->values[at + (size_t)i] = setun_f16_to_f32(setun_f32_to_f16(v[i]));
    }
    for (int head = 0; head < s->heads; head++) {
        float *q = w->in + s->q + head * d, p[64], top = -INFINITY, sum = 0;
        rotate(w, q, position);
        size_t base = ((size_t)s->layer * (size_t)s->kv_heads + (size_t)(head / (s->heads / s->kv_heads))) * (size_t)w->capacity * (size_t)d;
        for (int k = 0; k <= position; k++) {
            p[k] = 0;
            for (int i = 0; i < d; i++) p[k] += q[i] * w->keys[base + (size_t)(k * d + i)];
            p[k] *= s->scale;
            if (p[k] > top) top = p[k];
        }
        for (int k = 0; k <= position; k++) sum += p[k] = expf(p[k] - top);
        for (int i = 0; i < d; i++) {
            float y = 0;
            for (int k = 0; k <= position; k++) y += p[k] / sum * w->values[base + (size_t)(k * d + i)];
            w->out[head * d + i] = y;
        }
    }
}

static void run_token(walk *w, int id, int position, float *logits)
{
    const setun_cuda_header *h = w->h;
    for (int i = 0; i < h->width; i++) w->x[i] = w->in[i] = dense_value(w, h->embedding_format, h->embedding_row_bytes, id, i) * h->embedding_factor;
    for (int i = 0; i < h->steps; i++) {
        if (i > 0) { /* every step reads the vector that the one before wrote */
            assert_int_equal(w->steps[i].in, w->steps[i - 1].out);
            assert_int_equal(w->steps[i].in_use, w->steps[i - 1].out_use);
            assert_int_equal(w->steps[i].in_uses, w->steps[i - 1].out_uses);
        }
        if (w->steps[i].kind == SETUN_CUDA_LINEAR) linear(w, i);
        else attention(w, &w->steps[i], position);
        float *swap = w->in;
        w->in = w->out, w->out = swap;
    }
    norm_of(w, w->in, h->width, h->head_norm, h->head_epsilon, w->out);
    int covered = 0;
    for (int b = 0; b < h->grid; b++) {
        if (w->streams[b].head_rows) assert_int_equal(w->streams[b].head_row, covered);
        covered += w->streams[b].head_rows;
    }
    assert_int_equal(covered, h->vocabulary);
    for (int r = 0; r < h->vocabulary; r++) {
        double sum = 0;
        for (int i = 0; i < h->width; i++) sum += (double)w->out[i] * dense_value(w, h->head_format, h->head_row_bytes, r, i);
        logits[r] = (float)sum * h->head_factor;
    }
}

static void walks_to_the_same_logits(void **state)
{
    (void)state;
    setun_context *context = test_context(1, NULL);
    setun_model *model;
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    setun_session_options options = {.size = sizeof options, .context = 64, .batch = 8}, resolved;
    setun_session *session;
    EXPECT_OK(setun_session_create(model, &options, &session));
    EXPECT_OK(setun_session_resolve(model, &options, &resolved));
    setun_plan *plan;
    EXPECT_OK(setun_session_plan(model, &resolved, false, &plan, NULL));
    setun_cuda_plan *described;
    EXPECT_OK(setun_cuda_plan_describe(plan, &described));
    assert_ptr_equal(described->embedding, described->head);

    setun_cuda_limits limits = {.multiprocessors = 132, .shared_bytes = 232448};
    for (int tokens_max = 32; tokens_max >= 1; tokens_max -= 31) { /* both tables serve the same weights */
        setun_cuda_header *h;
        size_t bytes;
        const char *why;
        if (!setun_cuda_layout(&described->model, &limits, tokens_max, &h, &bytes, &why)) fail_msg("the kernel wants %s", why);
        assert_true(h->shared_bytes <= limits.shared_bytes);
        uint8_t *weights = malloc(bytes), *dense = malloc(setun_cuda_plan_dense_bytes(described->head));
        assert_true(setun_cuda_pack(&described->model, h, weights));
        setun_cuda_plan_dense_pack(described->head, dense);
        const int *ints = (const int *)h;
        walk w = {.h = h, .steps = (const setun_cuda_step *)(ints + h->first_step), .streams = (const setun_cuda_stream *)(ints + h->first_streams),
                  .works = (const setun_cuda_work *)(ints + h->first_work), .weights = weights, .dense = dense, .floats = (const float *)(const void *)(weights + (size_t)h->floats * 16), .capacity = 4};
        float *buffers = calloc(3 * 8192, sizeof(float)), *logits = malloc((size_t)h->vocabulary * sizeof(float));
        size_t cache = (size_t)h->cache_layers * (size_t)h->kv_heads * 4 * (size_t)h->head_size;
        w.in = buffers, w.out = buffers + 8192, w.x = buffers + 16384;
        w.keys = calloc(cache, sizeof(float)), w.values = calloc(cache, sizeof(float));
        const int32_t ids[2] = {504, 1732};
        EXPECT_OK(setun_session_truncate(session, 0));
        for (int t = 0; t < (tokens_max == 1 ? 2 : 1); t++) {
            run_token(&w, ids[t], t, logits);
            EXPECT_OK(setun_session_feed(session, &ids[t], 1));
            int vocabulary;
            const float *want = setun_session_logits(session, &vocabulary);
            assert_int_equal(vocabulary, h->vocabulary);
            double difference = 0, size = 0;
            for (int i = 0; i < vocabulary; i++) difference += (double)(logits[i] - want[i]) * (logits[i] - want[i]), size += (double)want[i] * want[i];
            double relative = sqrt(difference / size);
            if (!(relative < 1e-2)) fail_msg("token %d, tables for %d: logits differ by %g", t, tokens_max, relative);
        }
        free(weights), free(dense), free(buffers), free(logits), free(w.keys), free(w.values);
        setun_cuda_table_free(h);
    }
    setun_cuda_plan_free(described);
    setun_plan_free(plan);
    setun_session_destroy(session);
    setun_model_close(model);
    setun_context_destroy(context);
}

static void refusals_say_why(void **state)
{
    (void)state;
    setun_context *context = test_context(1, NULL);
    setun_model *model;
    EXPECT_OK(setun_model_open(context, SETUN_TEST_MODEL, NULL, &model));
    setun_session_options options = {.size = sizeof options, .context = 64, .batch = 8, .no_fusion = true}, resolved;
    EXPECT_OK(setun_session_resolve(model, &options, &resolved));
    setun_plan *plan;
    EXPECT_OK(setun_session_plan(model, &resolved, false, &plan, NULL));
    setun_cuda_plan *described;
    assert_int_equal(setun_cuda_plan_describe(plan, &described), SETUN_ERROR_UNSUPPORTED);
    assert_null(described);
    assert_non_null(strstr(setun_error(), "decode kernel: step"));
    setun_plan_free(plan);
    options.no_fusion = false;
    EXPECT_OK(setun_session_resolve(model, &options, &resolved));
    EXPECT_OK(setun_session_plan(model, &resolved, false, &plan, NULL));
    EXPECT_OK(setun_cuda_plan_describe(plan, &described));
    setun_cuda_header *h;
    size_t bytes;
    const char *why;
    setun_cuda_limits small = {.multiprocessors = 132, .shared_bytes = 40000}, large = {.multiprocessors = 132, .shared_bytes = 232448};
    assert_false(setun_cuda_layout(&described->model, &small, 1, &h, &bytes, &why));
    assert_string_equal(why, "so little shared memory");
    assert_false(setun_cuda_layout(&described->model, &large, 33, &h, &bytes, &why));
    assert_null(h);
    /* every allocation may fail: a message, nothing lost */
    int64_t live = setun_alloc_live();
    for (uint64_t n = 1; n < 400; n += 7) {
        setun_alloc_fail_at(n);
        setun_cuda_plan *d;
        setun_status status = setun_cuda_plan_describe(plan, &d);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            setun_cuda_plan_free(d);
            break;
        }
        assert_int_equal(status, SETUN_ERROR_MEMORY);
    }
    assert_int_equal(setun_alloc_live(), live);
    setun_cuda_plan_free(described);
    setun_plan_free(plan);
    setun_model_close(model);
    setun_context_destroy(context);
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(walks_to_the_same_logits), cmocka_unit_test(refusals_say_why)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
