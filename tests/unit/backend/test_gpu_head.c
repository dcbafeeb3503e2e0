/*
 * test_gpu_head.c - the vocabulary projection by its small copy on the GPU kernels' host form: limbs and scores with the CPU's bits, and of the
 * four kernels together that every wanted logit is there with the full product's bits, and that few others are computed.
 */
#include "gpu_support.h"
#include "backend/cpu/shortlist.h"

static const setun_kernels *ref;

typedef struct head {
    int dtype, weight_type, rows, columns, padded, stride, tokens;
    void *w, *x;
    float *w_f32, *x_f32;
    uint8_t *high, *scales;
    float *unit, *errors, *norms;
} head;

static head random_head(bool sharp)
{
    head h = {.dtype = dtypes[next_random() % 3], .weight_type = dtypes[next_random() % 3], .rows = random_between(20, 300), .columns = random_between(1, 700), .tokens = random_between(1, 3)};
    h.padded = (h.columns + 255) / 256 * 256;
    h.stride = (h.padded + 511) / 512 * 16;
    h.w = random_values(h.weight_type, (size_t)(h.rows * h.columns), &h.w_f32);
    h.x = random_values(h.dtype, (size_t)(h.tokens * h.columns), &h.x_f32);
    for (int t = 0; sharp && t < h.tokens; t++) { /* like one of the rows, as a trained model's is */
        int r = random_between(0, h.rows - 1);
        for (int i = 0; i < h.columns; i++) {
            store_value(h.x, h.dtype, (size_t)(t * h.columns + i), h.w_f32[r * h.columns + i] + 0.01f * random_float());
            h.x_f32[t * h.columns + i] = load_value(h.x, h.dtype, (size_t)(t * h.columns + i));
        }
    }
    h.high = array_of((size_t)(h.rows * h.padded / 2));
    h.scales = array_of((size_t)(h.rows * h.stride));
    h.unit = array_of((size_t)h.rows * 4);
    h.errors = array_of((size_t)h.rows * 4);
    h.norms = array_of((size_t)h.rows * 4);
    uint8_t *bits = array_of((size_t)h.stride * 8);
    float *row = array_of((size_t)h.padded * 4), numbers[7];
    for (int r = 0; r < h.rows; r++) {
        memset(row, 0, (size_t)h.padded * 4);
        memcpy(row, h.w_f32 + r * h.columns, (size_t)h.columns * 4);
        ref->shortlist_pack(row, h.columns, h.padded, h.high + (size_t)r * (size_t)(h.padded / 4), h.high + (size_t)(h.rows + r) * (size_t)(h.padded / 4), bits, bits + h.stride * 4, h.scales + r * h.stride, numbers);
        h.unit[r] = numbers[0];
        h.errors[r] = numbers[1];
        h.norms[r] = numbers[4];
    }
    return h;
}

static void limbs_of(const head *h, int token, int8_t *limbs, float *sums, float *scale)
{
    const float *x = h->x_f32 + token * h->columns;
    float most = 0;
    for (int i = 0; i < h->columns; i++) most = fmaxf(most, fabsf(x[i]));
    float inverse = 16256.0f / most;
    *scale = most * (1.0f / 16256.0f);
    for (int i = 0; i < h->stride; i++) sums[i] = 0;
    for (int i = 0; i < h->padded; i++) {
        int v = i < h->columns ? (int)rintf(x[i] * inverse) : 0, high = (v + 64) >> 7;
        limbs[i / 64 * 128 + i % 64] = (int8_t)high;
        limbs[i / 64 * 128 + 64 + i % 64] = (int8_t)(v - 128 * high);
        sums[i / 512 * 16 + i % 64 / 4] += (float)v;
    }
}

static void whole(void **unused)
{
    (void)unused;
    int64_t computed_all = 0, rows_all = 0;
    for (int turn = 0; turn < 24; turn++) {
        bool sharp = turn % 4;
        head h = random_head(sharp);
        int n = random_between(1, 5), wanted_count = random_between(0, 4), tile_rows = random_between(1, 4), tile_tokens = random_between(1, 3), tiles = (h.rows + tile_rows - 1) / tile_rows;
        float margin = turn % 2 ? 0.0f : 0.5f, factor = turn % 3 ? 1.0f : 0.25f;
        size_t limb_bytes = (size_t)(h.tokens * 2 * h.padded), all = (size_t)(h.tokens * h.rows);
        int8_t *limbs = array_of(limb_bytes), *got_limbs = array_of(limb_bytes);
        float *sums = array_of((size_t)(h.tokens * h.stride) * 4), *got_sums = array_of((size_t)(h.tokens * h.stride) * 4), *bounds = array_of((size_t)h.tokens * 16), *scale = array_of((size_t)h.tokens * 4);
        float *scores = array_of(all * 4), *got_scores = array_of(all * 4), *best = array_of((size_t)(h.tokens * tiles) * 4), *threshold = array_of((size_t)h.tokens * 4), *out = array_of(all * 4), *full = array_of(all * 4);
        for (int t = 0; t < h.tokens; t++) limbs_of(&h, t, limbs + (size_t)t * 2 * (size_t)h.padded, sums + t * h.stride, &scale[t]);
        {
            int32_t values[] = {h.dtype};
            const void *inputs[] = {h.x, INTS(h.columns, h.padded, h.stride)};
            void *outputs[] = {got_limbs, got_sums, bounds};
            call c = CALL(head_limbs, values, inputs, outputs, 32 * random_between(1, 8), h.tokens);
            check_call(&c, "limbs", (expected[]){{limbs, limb_bytes, 1}, {sums, (size_t)(h.tokens * h.stride), 4}, {NULL, (size_t)h.tokens * 4, 4}});
            for (int t = 0; t < h.tokens; t++) {
                double norm = 0, error = 0;
                for (int i = 0; i < h.columns; i++) {
                    double v = 128.0 * limbs[(size_t)t * 2 * (size_t)h.padded + (size_t)(i / 64 * 128 + i % 64)] + limbs[(size_t)t * 2 * (size_t)h.padded + (size_t)(i / 64 * 128 + 64 + i % 64)], e = h.x_f32[t * h.columns + i] - (double)scale[t] * v;
                    norm += (double)h.x_f32[t * h.columns + i] * h.x_f32[t * h.columns + i];
                    error += e * e;
                }
                assert_memory_equal(&bounds[t * 4], &scale[t], 4);
                assert_true(bounds[t * 4 + 1] >= sqrt(norm) && bounds[t * 4 + 1] < sqrt(norm) * 1.01);
                assert_true(bounds[t * 4 + 2] >= sqrt(error) && bounds[t * 4 + 2] < sqrt(norm) * 0.01);
            }
        }
        {
            ref->shortlist_high(h.high, h.high + (size_t)h.rows * (size_t)(h.padded / 4), h.scales, (size_t)h.stride, h.unit, h.rows, limbs, sums, scale, h.tokens, h.padded, scores, (size_t)h.rows);
            int32_t values[] = {tile_rows, tile_tokens};
            const void *inputs[] = {h.high, h.scales, h.unit, h.errors, h.norms, got_limbs, got_sums, bounds, INTS(h.padded, h.tokens, h.rows, h.stride)};
            void *outputs[] = {got_scores, best};
            call c = CALL(head_scores, values, inputs, outputs, 32 * random_between(1, 4), h.rows, 0, 0, h.tokens);
            check_call(&c, "scores", (expected[]){{scores, all, 4}, {NULL, (size_t)(h.tokens * tiles), 4}});
        }
        {
            int32_t values[] = {margin > 0};
            const void *inputs[] = {best, INTS(tiles, n), FLOATS(margin)};
            void *outputs[] = {threshold};
            call c = CALL(head_threshold, values, inputs, outputs, 32 * random_between(1, 6), h.tokens);
            check_call(&c, "threshold", (expected[]){{NULL, (size_t)h.tokens, 4}});
            for (int t = 0; t < h.tokens; t++) { /* n tiles reach it, and no more than n are above it */
                int reach = 0, above = 0;
                for (int i = 0; i < tiles; i++) {
                    reach += best[t * tiles + i] - margin >= threshold[t];
                    above += best[t * tiles + i] - margin * 1.0001f > threshold[t] + fabsf(threshold[t]) * 1e-5f;
                }
                assert_true(tiles < n ? threshold[t] == -INFINITY : reach >= n && above < n);
            }
        }
        (h.weight_type == SETUN_F32 ? ref->dense_f32 : h.weight_type == SETUN_F16 ? ref->dense_f16 : ref->dense_bf16)(h.w, (size_t)h.columns * bytes_of(h.weight_type), h.rows, h.x_f32, (size_t)h.columns, h.tokens,
                                                                                                                    h.columns, full, (size_t)h.rows);
        int32_t *wanted = array_of(8 * 4);
        for (int i = 0; i < wanted_count; i++) wanted[i] = i * (h.rows / 4) + (int)(next_random() % (uint32_t)(h.rows / 4)); /* rising */
        int32_t values[] = {h.dtype, h.weight_type};
        const void *inputs[] = {h.w, h.x, got_scores, h.errors, h.norms, bounds, threshold, wanted, INTS(h.columns, h.tokens, h.rows, wanted_count), FLOATS(factor)};
        void *outputs[] = {out};
        call c = CALL(head_rescore, values, inputs, outputs, 32 * random_between(1, 4), h.rows, 0, 0, h.tokens);
        check_call(&c, "rescore", (expected[]){{NULL, all, 4}});
        for (int t = 0; t < h.tokens; t++) {
            for (int tile = 0; tile < tiles; tile++) { /* a value that the tile's best row reaches */
                float most = -INFINITY, bound = -INFINITY;
                for (int r = tile * tile_rows; r < (tile + 1) * tile_rows && r < h.rows; r++) {
                    most = fmaxf(most, full[t * h.rows + r]);
                    bound = fmaxf(bound, fmaf(-bounds[t * 4 + 2], h.norms[r], fmaf(-bounds[t * 4 + 1], h.errors[r], scores[t * h.rows + r])));
                }
                assert_true(best[t * tiles + tile] <= most);
                same("head_scores", "the tile's bound", &bound, &best[t * tiles + tile], 1, 4);
            }
            float nth = INFINITY; /* the n-th highest */
            for (int r = 0; r < h.rows; r++) {
                int higher = 0;
                for (int other = 0; other < h.rows; other++) higher += full[t * h.rows + other] > full[t * h.rows + r];
                if (higher < n && full[t * h.rows + r] < nth) nth = full[t * h.rows + r];
            }
            for (int r = 0; r < h.rows; r++) {
                float logit = full[t * h.rows + r], got = out[t * h.rows + r], exact;
                ref->scale(&logit, factor, 1, &exact);
                bool named = false;
                for (int i = 0; i < wanted_count; i++) named = named || wanted[i] == r;
                float upper = fmaf(bounds[t * 4 + 2], h.norms[r], fmaf(bounds[t * 4 + 1], h.errors[r], scores[t * h.rows + r]));
                assert_true(logit <= upper);
                assert_int_equal(got != -INFINITY, named || upper >= threshold[t]);
                if (got != -INFINITY) same("head_rescore", "a computed logit", &exact, &got, 1, 4);
                else if (logit >= nth - margin || named) fail_msg("row %d of token %d (logit %g, %d-th is %g) was not computed; SETUN_TEST_SEED=%llu", r, t, (double)logit, n, (double)nth, (unsigned long long)seed);
                if (sharp && wanted_count == 0 && margin == 0.0f && n == 1) {
                    computed_all += got != -INFINITY;
                    rows_all++;
                }
            }
        }
        free_arrays();
    }
    if (rows_all > 200) assert_true(computed_all * 4 < rows_all);
}

/* Where the bounds do not hold all rows are computed. */
static void unusable(void **unused)
{
    (void)unused;
    static const float odd[] = {0.0f, 1e-30f, 1e30f, NAN, INFINITY};
    for (int turn = 0; turn < 5; turn++) {
        float *x = array_of(256 * 4), *bounds = array_of(16);
        for (int i = 0; i < 256; i++) x[i] = turn < 3 || i == 7 ? odd[turn] : 1.0f;
        int32_t values[] = {SETUN_F32};
        const void *inputs[] = {x, INTS(256, 256, 16)};
        void *outputs[] = {array_of(512), array_of(64), bounds};
        call c = CALL(head_limbs, values, inputs, outputs, 64, 1);
        run_call(&c, 1, false);
        assert_true(isinf(bounds[1]) && isinf(bounds[2]));
        free_arrays();
    }
}

int main(void)
{
    ref = setun_isa_table(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole), cmocka_unit_test(unusable)};
    int failed = cmocka_run_group_tests(tests, seed_tests, NULL);
    setun_gpu_host_trim();
    return failed;
}
