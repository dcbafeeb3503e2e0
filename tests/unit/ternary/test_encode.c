/* Encoding: the same bytes as other writers, decode(encode(x)) == x, refusals, exactness told truly, quality of the K quants. */
#include "ternary/decode.h"
#include "unit/ternary/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static uint64_t seed = 1958;
static int below(int n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)(seed >> 33) % n;
}
static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += (float)below(10001) / 10000;
    return sum - 6;
}

static const setun_format ternary_formats[] = {SETUN_FORMAT_TQ1_0, SETUN_FORMAT_TQ2_0, SETUN_FORMAT_I2_S, SETUN_FORMAT_I2_S_64, SETUN_FORMAT_I2_S_ROW4, SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_IQ2_BN,
    SETUN_FORMAT_Q2_0, SETUN_FORMAT_PQ2_0, SETUN_FORMAT_PTQ1_0, SETUN_FORMAT_HF_2BIT, SETUN_FORMAT_TRITS};
static const setun_format dense_formats[] = {SETUN_FORMAT_F32, SETUN_FORMAT_F16, SETUN_FORMAT_BF16, SETUN_FORMAT_Q8_0, SETUN_FORMAT_Q4_0, SETUN_FORMAT_Q4_1, SETUN_FORMAT_Q4_K, SETUN_FORMAT_Q6_K};
#define TERNARY_FORMATS (sizeof ternary_formats / sizeof *ternary_formats)
#define DENSE_FORMATS (sizeof dense_formats / sizeof *dense_formats)

static void same_bytes_as_other_writers(void **state) {
    (void)state;
    for (size_t f = 0; f < GOLDEN_FORMATS; f++) {
        golden g;
        assert_true(golden_read(golden_formats[f].file, golden_formats[f].format, &g));
        const setun_weight *w = &g.weight;
        if (g.encoded) {
            const int64_t n = w->rows * w->columns;
            float *values = malloc((size_t)n * 4), *scales = malloc((size_t)n * 4);
            uint8_t *codes = malloc((size_t)n), *out = malloc(w->bytes);
            memcpy(values, g.values, (size_t)n * 4);
            bool exact;
            double error;
            memset(out, 0xee, w->bytes);
            if (setun_format_get_kind(w->format) == SETUN_KIND_DENSE) {
                assert_int_equal(setun_format_encode_dense(w->format, w->name, w->rows, w->columns, values, out, &exact, &error), SETUN_OK);
                assert_int_equal(exact, w->format == SETUN_FORMAT_F32);
                assert_int_equal(exact, error == 0);
            } else { /* by way of the f32 values: probe, codes, encode */
                setun_weight dense = {.name = "f32", .format = SETUN_FORMAT_F32, .rows = w->rows, .columns = w->columns, .data = (const uint8_t *)values, .bytes = (uint64_t)n * 4};
                setun_ternary_info info;
                assert_int_equal(setun_ternary_probe(&dense, &info), SETUN_OK);
                assert_true(info.ternary);
                assert_int_equal(setun_ternary_decode(&dense, &info, 0, w->rows, codes, scales), SETUN_OK);
                assert_int_equal(setun_format_encode_ternary(w->format, w->name, &info, w->rows, w->columns, codes, scales, out, &exact, &error), SETUN_OK);
                assert_true(exact && error == 0);
            }
            if (memcmp(out, g.encoded, w->bytes)) fail_msg("%s encodes differently", golden_formats[f].file);
            free(values);
            free(scales);
            free(codes);
            free(out);
        }
        free(g.file);
    }
}

static void ternary_identity(void **state) {
    (void)state;
    for (int trial = 0; trial < 400; trial++) {
        const setun_format format = ternary_formats[below(TERNARY_FORMATS)];
        const int64_t rows = 4 * (1 + below(2)), columns = 64 * (1 + below(12)), n = rows * columns;
        if (!setun_format_fits(format, rows, columns)) continue;
        setun_ternary_info info = {.ternary = true, .tensor_scale = 0.037f};
        info.tensor_scale = setun_f16_to_f32(setun_f32_to_f16(info.tensor_scale));
        uint8_t codes[8 * 768], back[8 * 768], out[8 * 768];
        for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)below(3);
        uint64_t bytes;
        bool exact;
        double error;
        assert_int_equal(setun_format_size(format, rows, columns, &bytes), SETUN_OK);
        memset(out, 0xee, sizeof out);
        assert_int_equal(setun_format_encode_ternary(format, "x", &info, rows, columns, codes, NULL, out, &exact, &error), SETUN_OK);
        assert_true(exact && error == 0);
        assert_int_equal(out[bytes], 0xee);
        setun_weight w = {.name = "x", .format = format, .rows = rows, .columns = columns, .data = out, .bytes = bytes, .tensor_scale = info.tensor_scale};
        setun_ternary_info found;
        assert_int_equal(setun_ternary_probe(&w, &found), SETUN_OK);
        assert_int_equal(setun_ternary_decode(&w, &found, 0, rows, back, NULL), SETUN_OK);
        assert_memory_equal(back, codes, (size_t)n);
        assert_true(found.tensor_scale == info.tensor_scale);
    }
}

static void coarser_and_finer_scales(void **state) {
    (void)state;
    enum { ROWS = 4, COLUMNS = 512 };
    uint8_t codes[ROWS * COLUMNS], out[ROWS * COLUMNS];
    float scales[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        codes[i] = (uint8_t)(i % 3);
        scales[i] = 0.25f * (float)(1 + i % 4);
    }
    static const struct { setun_scale_kind kind; int group; const char *holds; } cases[] = {
        {SETUN_SCALE_TENSOR, 0, "tq1_0 tq2_0 i2_s i2_s-64x16 i2_s-row4 iq1_bn iq2_bn q2_0 pq2_0 ptq1_0 hf trits "}, {SETUN_SCALE_ROW, 0, "tq1_0 tq2_0 iq1_bn iq2_bn q2_0 pq2_0 ptq1_0 trits "},
        {SETUN_SCALE_GROUP, 256, "tq1_0 tq2_0 q2_0 pq2_0 ptq1_0 "}, {SETUN_SCALE_GROUP, 128, "q2_0 pq2_0 ptq1_0 "}, {SETUN_SCALE_GROUP, 64, "q2_0 "}, {SETUN_SCALE_GROUP, 32, ""}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        setun_ternary_info info = {.ternary = true, .scale = cases[c].kind, .group_size = cases[c].group, .tensor_scale = 0.5f};
        char held[200] = "";
        for (size_t f = 0; f < TERNARY_FORMATS; f++) {
            bool exact;
            double error;
            setun_status status = setun_format_encode_ternary(ternary_formats[f], "x", &info, ROWS, COLUMNS, codes, scales, out, &exact, &error);
            if (status) {
                assert_int_equal(status, SETUN_ERROR_UNSUPPORTED);
                assert_non_null(strstr(setun_error(), cases[c].group == 32 ? "none" : "q2_0"));
                assert_false(exact);
                continue;
            }
            assert_true(exact);
            snprintf(held + strlen(held), sizeof held - strlen(held), "%s ", setun_format_name(ternary_formats[f]));
            assert_true(setun_format_holds_scales(ternary_formats[f], &info));
        }
        assert_string_equal(held, cases[c].holds);
    }
    /* finer scales that differ over zeros only are no obstacle */
    setun_ternary_info info = {.ternary = true, .scale = SETUN_SCALE_ROW};
    bool exact;
    double error;
    memset(codes, 1, COLUMNS);
    scales[0] = 9;
    scales[1] = scales[2] = scales[3] = 0.5f;
    assert_int_equal(setun_format_encode_ternary(SETUN_FORMAT_I2_S, "x", &info, ROWS, COLUMNS, codes, scales, out, &exact, &error), SETUN_OK);
    assert_true(setun_load_f32(out + ROWS * COLUMNS / 4) == 0.5f);
}

static void inexact_scales(void **state) {
    (void)state;
    uint8_t codes[256], out[256];
    bool exact;
    double error;
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)(i % 3);
    setun_ternary_info info = {.ternary = true, .tensor_scale = 1.0f / 3};
    const float rounded = setun_f16_to_f32(setun_f32_to_f16(1.0f / 3));
    static const setun_format halves[] = {SETUN_FORMAT_TQ1_0, SETUN_FORMAT_TQ2_0, SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_Q2_0, SETUN_FORMAT_PQ2_0, SETUN_FORMAT_PTQ1_0};
    for (size_t f = 0; f < 6; f++) {
        info.tensor_scale = 1.0f / 3;
        assert_int_equal(setun_format_encode_ternary(halves[f], "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_OK);
        assert_false(exact);
        assert_true(error == fabs((double)rounded - (double)(1.0f / 3)));
        info.tensor_scale = 1e6f;
        assert_int_equal(setun_format_encode_ternary(halves[f], "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_ERROR_UNSUPPORTED);
        assert_non_null(strstr(setun_error(), "beyond f16"));
    }
    assert_int_equal(setun_format_encode_ternary(SETUN_FORMAT_IQ2_BN, "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_OK);
    assert_true(exact);
}

/* On its own, by comparisons: gcc 12 for aarch64 breaks down over fmax in the loop below. */
static double largest_difference(const float *a, const float *b, int count) {
    double largest = 0;
    for (int i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - (double)b[i]);
        if (difference > largest) largest = difference;
    }
    return largest;
}

static void dense_identity(void **state) {
    (void)state;
    enum { ROWS = 2, COLUMNS = 512, N = ROWS * COLUMNS };
    for (size_t f = 0; f < DENSE_FORMATS; f++)
        for (int trial = 0; trial < 40; trial++) {
            float v[N], back[N];
            uint8_t out[N * 4];
            bool exact;
            double error, largest = 0;
            const float size = trial % 8 == 7 ? powf(10, (float)(-below(45))) : powf(10, (float)(below(9) - 6));
            for (int i = 0; i < N; i++) v[i] = trial == 0 ? 0 : trial == 1 ? 0.25f : normal() * size;
            setun_weight w = {.name = "x", .format = dense_formats[f], .rows = ROWS, .columns = COLUMNS, .data = out};
            assert_int_equal(setun_format_size(w.format, ROWS, COLUMNS, &w.bytes), SETUN_OK);
            assert_int_equal(setun_format_encode_dense(w.format, "x", ROWS, COLUMNS, v, out, &exact, &error), SETUN_OK);
            assert_int_equal(setun_weight_to_f32(&w, 0, ROWS, back), SETUN_OK);
            largest = largest_difference(back, v, N);
            assert_true(error == largest && exact == (largest == 0));
            if (w.format == SETUN_FORMAT_F32 || trial == 0) assert_true(exact);
            /* once more: what a format holds, it holds again. (K quants search anew and need not find the same.) */
            if (w.format != SETUN_FORMAT_Q4_K && w.format != SETUN_FORMAT_Q6_K) {
                uint8_t again[N * 4];
                assert_int_equal(setun_format_encode_dense(w.format, "x", ROWS, COLUMNS, back, again, &exact, &error), SETUN_OK);
                if (!exact && w.format != SETUN_FORMAT_Q4_1) fail_msg("%s: re-encoding loses %g", setun_format_name(w.format), error);
            }
        }
}

/* Ternary values, and blocks that do not reach the last code, are held exactly by the simple block formats. */
static void exact_where_possible(void **state) {
    (void)state;
    static const struct { setun_format format; int low, high; } cases[] = {{SETUN_FORMAT_Q8_0, -128, 127}, {SETUN_FORMAT_Q4_0, -8, 7}, {SETUN_FORMAT_Q4_1, 0, 15}, {SETUN_FORMAT_Q8_0, -1, 1}, {SETUN_FORMAT_Q4_0, -1, 1}, {SETUN_FORMAT_Q4_1, -1, 1}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int trial = 0; trial < 200; trial++) {
            float v[32];
            uint8_t out[128];
            bool exact;
            double error;
            float d = setun_f16_to_f32(setun_f32_to_f16(0.01f + normal() * normal() * 0.1f));
            if (cases[c].high == 15) d = 0.015625f * (float)(1 + below(60)); /* few bits: the lowest value must be an f16 too */
            const int low = -below(1 - cases[c].low), high = below(cases[c].high + 1);
            for (int i = 0; i < 32; i++) v[i] = d * (float)(low + below(high - low + 1));
            assert_int_equal(setun_format_encode_dense(cases[c].format, "x", 1, 32, v, out, &exact, &error), SETUN_OK);
            if (!exact) fail_msg("%s loses %g of values %d .. %d times %g", setun_format_name(cases[c].format), error, low, high, d);
        }
}

static void absmean_in_pieces(void **state) {
    (void)state;
    float v[1000];
    for (int i = 0; i < 1000; i++) v[i] = normal();
    setun_absmean_sum whole = {{0}, 0}, cut = {{0}, 0};
    setun_absmean_add(&whole, v, 1000);
    for (int i = 0; i < 1000;) {
        const int n = 1 + below(1000 - i < 37 ? 1000 - i : 37);
        setun_absmean_add(&cut, v + i, n);
        i += n;
    }
    assert_memory_equal(whole.lane, cut.lane, sizeof whole.lane);
    assert_true(setun_absmean_scale(&whole) == setun_absmean_scale(&cut));
}

/* Root of the mean squared error over that of the values. */
static double relative_error(setun_format format, const float *v, int n) {
    uint8_t *out = malloc((size_t)n * 4);
    float *back = malloc((size_t)n * 4);
    bool exact;
    double error, sum = 0, all = 0;
    setun_weight w = {.name = "x", .format = format, .rows = 1, .columns = n, .data = out};
    assert_int_equal(setun_format_size(format, 1, n, &w.bytes), SETUN_OK);
    assert_int_equal(setun_format_encode_dense(format, "x", 1, n, v, out, &exact, &error), SETUN_OK);
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, back), SETUN_OK);
    for (int i = 0; i < n; i++) {
        sum += ((double)back[i] - v[i]) * ((double)back[i] - v[i]);
        all += (double)v[i] * v[i];
    }
    free(out);
    free(back);
    return sqrt(sum / all);
}

static void k_quants_are_good(void **state) {
    (void)state;
    enum { N = 65536 };
    float *v = malloc(N * 4);
    for (int i = 0; i < N; i++) v[i] = normal() * 0.02f * (float)(1 + i / 16 % 7);
    const double q4 = relative_error(SETUN_FORMAT_Q4_0, v, N), q4k = relative_error(SETUN_FORMAT_Q4_K, v, N), q6k = relative_error(SETUN_FORMAT_Q6_K, v, N), q8 = relative_error(SETUN_FORMAT_Q8_0, v, N);
    printf("relative error: q4_0 %.4f, q4_k %.4f, q6_k %.4f, q8_0 %.4f\n", q4, q4k, q6k, q8);
    assert_true(q4k < 0.85 * q4);
    assert_true(q6k < 0.25 * q4k);
    assert_true(q8 < 0.6 * q6k);
    /* same sign everywhere, one odd value, tiny values */
    for (int i = 0; i < N; i++) v[i] = 1 + 0.1f * normal();
    assert_true(relative_error(SETUN_FORMAT_Q4_K, v, N) < 0.03);
    for (int i = 0; i < N; i++) v[i] = -v[i];
    assert_true(relative_error(SETUN_FORMAT_Q4_K, v, N) < 0.03);
    assert_true(relative_error(SETUN_FORMAT_Q6_K, v, N) < 0.02);
    free(v);
}

static void refusals(void **state) {
    (void)state;
    uint8_t codes[256], out[1024];
    float v[256];
    bool exact = true;
    double error;
    memset(codes, 1, sizeof codes);
    for (int i = 0; i < 256; i++) v[i] = 1;
    setun_ternary_info info = {.ternary = true, .tensor_scale = 1};
    assert_int_equal(setun_format_encode_ternary(SETUN_FORMAT_TQ1_0, "blk.0.attn_q.weight", &info, 2, 64, codes, NULL, out, &exact, &error), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "iq1_bn"));
    assert_non_null(strstr(setun_error(), "blk.0.attn_q.weight"));
    assert_false(exact);
    static const setun_format never[] = {SETUN_FORMAT_MLX_2BIT, SETUN_FORMAT_F32, SETUN_FORMAT_TL1, SETUN_FORMAT_UNKNOWN, SETUN_FORMAT_I8};
    for (size_t f = 0; f < 5; f++) assert_int_equal(setun_format_encode_ternary(never[f], "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_ERROR_UNSUPPORTED);
    for (size_t f = 0; f < TERNARY_FORMATS; f++) assert_int_equal(setun_format_encode_dense(ternary_formats[f], "x", 1, 256, v, out, &exact, &error), SETUN_ERROR_UNSUPPORTED);
    info.scale = SETUN_SCALE_ROW;
    assert_int_equal(setun_format_encode_ternary(SETUN_FORMAT_TQ2_0, "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_ERROR_ARGUMENT);
    info.scale = SETUN_SCALE_TENSOR;
    codes[77] = 3;
    assert_int_equal(setun_format_encode_ternary(SETUN_FORMAT_TQ2_0, "x", &info, 1, 256, codes, NULL, out, &exact, &error), SETUN_ERROR_ARGUMENT);
    v[130] = NAN;
    for (size_t f = 0; f < DENSE_FORMATS; f++) {
        assert_int_equal(setun_format_encode_dense(dense_formats[f], "x", 1, 256, v, out, &exact, &error), SETUN_ERROR_UNSUPPORTED);
        assert_non_null(strstr(setun_error(), "row 0, column 130"));
    }
    v[130] = 70000;
    assert_int_equal(setun_format_encode_dense(SETUN_FORMAT_F16, "x", 1, 256, v, out, &exact, &error), SETUN_ERROR_UNSUPPORTED);
    assert_int_equal(setun_format_encode_dense(SETUN_FORMAT_BF16, "x", 1, 256, v, out, &exact, &error), SETUN_OK);
    assert_int_equal(setun_format_encode_dense(SETUN_FORMAT_Q4_K, "x", 1, 200, v, out, &exact, &error), SETUN_ERROR_FORMAT);
}

static void quantisers(void **state) {
    (void)state;
    /* absmean: 5 values, mean |W| = 1 */
    const float w[5] = {0.5f, -0.51f, 1.99f, -2, 0};
    float scale;
    uint8_t codes[5];
    setun_absmean(w, 5, &scale, codes);
    assert_true(fabs((double)scale - 1) < 1e-6);
    static const uint8_t expected[5] = {1, 0, 2, 0, 1}; /* 0.5 rounds to even */
    assert_memory_equal(codes, expected, 5);
    const float zeros[3] = {0, 0, 0};
    setun_absmean(zeros, 3, &scale, NULL);
    assert_true(scale == 1e-5f);
    int8_t q[4];
    const float x[4] = {1.0f, -2.0f, 0.007f, 2.0f};
    assert_true(setun_absmax_i8(x, 4, q) == 2.0f / 127);
    assert_int_equal(q[0], 64); /* 63.5 to even */
    assert_int_equal(q[1], -127);
    assert_int_equal(q[2], 0);
    assert_int_equal(q[3], 127);
    assert_true(setun_absmax_i8(zeros, 3, q) == 1e-5f / 127);
    assert_int_equal(q[0], 0);
}

int main(void) {
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bytes_as_other_writers), cmocka_unit_test(ternary_identity), cmocka_unit_test(coarser_and_finer_scales), cmocka_unit_test(inexact_scales),
        cmocka_unit_test(dense_identity), cmocka_unit_test(exact_where_possible), cmocka_unit_test(absmean_in_pieces), cmocka_unit_test(k_quants_are_good), cmocka_unit_test(refusals), cmocka_unit_test(quantisers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
