/*
 * Probing: every carrier against a naive oracle on random weights (scales per tensor, row, group; all-zero groups; negative and
 * zero scales), plainly dense data, code 3, NaN and infinite scales.
 */
#include "unit/ternary/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <cmocka.h>

static uint64_t seed;
static uint64_t next_random(void) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545f4914f6cdd1du;
}
static int below(int n) { return (int)(next_random() >> 33) % n; }

/* Is every span of `size` columns (0: a row, -1: all) a scale times -1, 0, +1? */
static bool fits(const float *v, int64_t rows, int64_t columns, int64_t size) {
    if (size > 0 && columns % size) return false;
    const int64_t span = size > 0 ? size : size == 0 ? columns : rows * columns;
    for (int64_t i = 0; i < rows * columns; i += span) {
        float s = 0;
        for (int64_t k = i; k < i + span; k++) {
            if (v[k] == 0) continue;
            if (s == 0) s = fabsf(v[k]);
            if (fabsf(v[k]) != s) return false;
        }
    }
    return true;
}

static void check_against_oracle(const setun_weight *w) {
    const int64_t n = w->rows * w->columns;
    float *v = malloc((size_t)n * 4), *scales = malloc((size_t)n * 4);
    uint8_t *codes = malloc((size_t)n);
    setun_ternary_info info;
    assert_int_equal(setun_weight_to_f32(w, 0, w->rows, v), SETUN_OK);
    setun_status status = setun_ternary_probe(w, &info);
    if (status) fail_msg("%s", setun_error());
    static const int64_t sizes[6] = {-1, 0, 256, 128, 64, 32};
    int coarsest = 0;
    while (coarsest < 6 && !fits(v, w->rows, w->columns, sizes[coarsest])) coarsest++;
    assert_int_equal(info.ternary, coarsest < 6);
    if (info.ternary) {
        assert_int_equal(info.scale, coarsest == 0 ? SETUN_SCALE_TENSOR : coarsest == 1 ? SETUN_SCALE_ROW : SETUN_SCALE_GROUP);
        if (coarsest >= 2) assert_int_equal(info.group_size, sizes[coarsest]);
        uint64_t zeros = 0;
        for (int64_t i = 0; i < n; i++) zeros += v[i] == 0;
        assert_int_equal(info.zeros, zeros);
        const int64_t per_row = coarsest >= 2 ? w->columns / sizes[coarsest] : 1;
        memset(scales, 0xff, (size_t)n * 4);
        assert_int_equal(setun_ternary_decode(w, &info, 0, w->rows, codes, scales), SETUN_OK);
        for (int64_t i = 0; i < n; i++) {
            const int64_t r = i / w->columns, c = i % w->columns;
            const float s = coarsest == 0 ? info.tensor_scale : coarsest == 1 ? scales[r] : scales[r * per_row + c / sizes[coarsest]];
            if (codes[i] > 2 || !(s >= 0) || s * (float)(codes[i] - 1) != v[i]) fail_msg("%s: weight %lld is %g, not %g", w->name, (long long)i, s * (codes[i] - 1), v[i]);
        }
    }
    free(v);
    free(scales);
    free(codes);
}

static void random_carriers(void **state) {
    (void)state;
    static const setun_format formats[] = {SETUN_FORMAT_F32, SETUN_FORMAT_F16, SETUN_FORMAT_BF16, SETUN_FORMAT_Q8_0, SETUN_FORMAT_Q4_0, SETUN_FORMAT_Q4_1, SETUN_FORMAT_TQ1_0,
        SETUN_FORMAT_TQ2_0, SETUN_FORMAT_I2_S, SETUN_FORMAT_I2_S_64, SETUN_FORMAT_I2_S_ROW4, SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_IQ2_BN, SETUN_FORMAT_Q2_0, SETUN_FORMAT_PQ2_0,
        SETUN_FORMAT_PTQ1_0, SETUN_FORMAT_HF_2BIT, SETUN_FORMAT_TRITS};
    static const int64_t widths[] = {256, 512, 768, 64, 192, 576, 128, 384, 32, 96, 100, 7};
    for (int trial = 0; trial < 1500; trial++) {
        const int64_t rows = 4 * (1 + below(3)), columns = widths[below(12)], n = rows * columns;
        const setun_format format = formats[below(18)];
        if (!setun_format_fits(format, rows, columns)) continue;
        const bool ternary_format = setun_format_get_kind(format) == SETUN_KIND_TERNARY;
        static const int spans[] = {-1, 0, 256, 128, 64, 32};
        int span = spans[below(6)];
        if (span > 0 && columns % span) span = 0;
        float *v = malloc((size_t)n * 4), *scales = calloc((size_t)n, 4);
        uint8_t *codes = malloc((size_t)n);
        const int zero_share = below(4) == 0 ? 100 : below(100), zero_span = below(3) == 0 ? 3 : 1000;
        const int64_t step = span > 0 ? span : span == 0 ? columns : n;
        float all = (float)(1 + below(7)) / 8, s = all;
        bool empty = false;
        for (int64_t i = 0; i < n; i++) {
            if (i % step == 0) s = below(3) ? all : (float)(1 + below(7)) / 8;
            if (i % 32 == 0) empty = below(zero_span) == 0;
            codes[i] = (uint8_t)(empty || below(100) < zero_share ? 1 : below(2) * 2);
            v[i] = s * (float)(codes[i] - 1);
            if (i % step == 0) scales[i / step] = s;
        }
        if (!ternary_format && below(4) == 0) v[below((int)n)] *= 1.5f; /* almost ternary */
        uint64_t bytes;
        assert_int_equal(setun_format_size(format, rows, columns, &bytes), SETUN_OK);
        uint8_t *data = malloc(bytes + 1);
        bool exact;
        double error;
        setun_ternary_info given = {.ternary = true, .scale = span < 0 ? SETUN_SCALE_TENSOR : span == 0 ? SETUN_SCALE_ROW : SETUN_SCALE_GROUP, .group_size = span, .tensor_scale = s};
        setun_status status = ternary_format ? setun_format_encode_ternary(format, "w", &given, rows, columns, codes, scales, data + 1, &exact, &error)
                                             : setun_format_encode_dense(format, "w", rows, columns, v, data + 1, &exact, &error);
        if (!status) {
            if (ternary_format) assert_true(exact && error == 0);
            setun_weight w = {.name = setun_format_name(format), .format = format, .rows = rows, .columns = columns, .data = data + 1, .bytes = bytes, .tensor_scale = s};
            check_against_oracle(&w);
            /* mirror or clear some scales where they are f16 beside the codes */
            int stride = 0, at = 0;
            if (format == SETUN_FORMAT_TQ1_0) stride = 54, at = 52;
            if (format == SETUN_FORMAT_TQ2_0) stride = 66, at = 64;
            if (format == SETUN_FORMAT_Q2_0 || format == SETUN_FORMAT_Q4_0) stride = 18;
            if (format == SETUN_FORMAT_PQ2_0 || format == SETUN_FORMAT_Q8_0) stride = 34;
            if (format == SETUN_FORMAT_PTQ1_0) stride = 28, at = 26;
            if (format == SETUN_FORMAT_IQ1_BN) stride = (int)(columns / 64 * 13 + 2);
            if (stride) {
                for (uint64_t b = 0; b < bytes; b += (uint64_t)stride) {
                    uint8_t *scale = data + 1 + b + at;
                    if (below(3) == 0) scale[1] ^= 0x80;
                    if (below(9) == 0) scale[0] = scale[1] = 0;
                }
                check_against_oracle(&w);
            }
        } else
            assert_int_equal(status, SETUN_ERROR_UNSUPPORTED); /* scales finer than the format's */
        free(v);
        free(scales);
        free(codes);
        free(data);
    }
}

/* K quants hold ternary values where the scales do; MLX in three dtypes, with and without bias = -scale. */
static void random_blocks(void **state) {
    (void)state;
    for (int trial = 0; trial < 300; trial++) {
        uint8_t data[2 * 2 * 210];
        setun_weight w = {.rows = 2, .columns = 512, .data = data};
        memset(data, 0, sizeof data);
        const bool q4 = trial % 2;
        w.format = q4 ? SETUN_FORMAT_Q4_K : SETUN_FORMAT_Q6_K;
        w.name = setun_format_name(w.format);
        assert_int_equal(setun_format_size(w.format, 2, 512, &w.bytes), SETUN_OK);
        const uint16_t d = setun_f32_to_f16(0.25f);
        const int mode = below(3);
        for (int b = 0; b < 4; b++) {
            uint8_t *p = data + b * (q4 ? 144 : 210);
            if (q4) { /* w = d s q - dmin m: with s = m and q in 0, 1, 2 ternary */
                memcpy(p, &d, 2);
                memcpy(p + 2, &d, 2);
                for (int g = 0; g < 4; g++) {
                    const uint8_t s = (uint8_t)(mode == 0 ? 9 : 1 + below(15));
                    p[4 + g] = p[8 + g] = s;
                    p[12 + g] = (uint8_t)(s * 0x11);
                }
                for (int i = 16; i < 144; i++) p[i] = (uint8_t)(below(3) | below(3) << 4);
                if (mode == 2 && below(3) == 0) p[16 + below(128)] = 0x03;
            } else { /* q - 32 in -1, 0, 1: low nibble 15, 0, 1 with high pair 1, 2, 2 */
                for (int half = 0; half < 2; half++)
                    for (int quarter = 0; quarter < 4; quarter++)
                        for (int i = 0; i < 32; i++) {
                            const int v = 31 + below(3);
                            p[64 * half + quarter % 2 * 32 + i] |= (uint8_t)((v & 15) << quarter / 2 * 4);
                            p[128 + 32 * half + i] |= (uint8_t)((v >> 4) << 2 * quarter);
                        }
                for (int g = 0; g < 16; g++) p[192 + g] = (uint8_t)(mode == 0 ? 5 : mode == 1 ? 1 + b : 1 + below(3));
                memcpy(p + 208, &d, 2);
            }
        }
        check_against_oracle(&w);
    }
    for (int trial = 0; trial < 300; trial++) {
        enum { ROWS = 3, COLUMNS = 384 };
        uint8_t data[ROWS * COLUMNS / 4], side[2][ROWS * COLUMNS / 32 * 4];
        const int group = 32 << below(3), mode = below(4);
        static const setun_format dtypes[3] = {SETUN_FORMAT_F32, SETUN_FORMAT_F16, SETUN_FORMAT_BF16};
        const setun_format dtype = dtypes[below(3)];
        memset(data, 0, sizeof data);
        for (int i = 0; i < ROWS * COLUMNS; i++) data[i / 4] |= (uint8_t)(below(mode == 3 && below(20) == 0 ? 4 : 3) << (2 * (i % 4)));
        for (int g = 0; g < ROWS * COLUMNS / group; g++) {
            float scale = mode == 0 ? 0.5f : (float)(below(9) - 4) / 4, bias = -scale;
            if (mode == 2 && below(3) == 0) { /* two values, 0 and +-s, by another rule */
                bias = below(2) ? 0 : -scale;
                for (int i = g * group; i < (g + 1) * group; i++) data[i / 4] &= (uint8_t) ~(2 << (2 * (i % 4)));
            }
            const uint16_t s16 = dtype == SETUN_FORMAT_F16 ? setun_f32_to_f16(scale) : setun_f32_to_bf16(scale), b16 = dtype == SETUN_FORMAT_F16 ? setun_f32_to_f16(bias) : setun_f32_to_bf16(bias);
            if (dtype == SETUN_FORMAT_F32) {
                memcpy(side[0] + 4 * g, &scale, 4);
                memcpy(side[1] + 4 * g, &bias, 4);
            } else {
                memcpy(side[0] + 2 * g, &s16, 2);
                memcpy(side[1] + 2 * g, &b16, 2);
            }
        }
        /* what the values say at the groups' grain is the oracle, but groups of 32 are only seen if they are stored */
        setun_weight w = {.name = "mlx", .format = SETUN_FORMAT_MLX_2BIT, .rows = ROWS, .columns = COLUMNS, .data = data, .bytes = sizeof data, .scales = side[0], .biases = side[1],
            .scales_format = dtype, .group_size = group};
        float v[ROWS * COLUMNS];
        assert_int_equal(setun_weight_to_f32(&w, 0, ROWS, v), SETUN_OK);
        bool at_grain = fits(v, ROWS, COLUMNS, group);
        if (at_grain) check_against_oracle(&w);
        else {
            setun_ternary_info info;
            assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
            assert_false(info.ternary);
        }
    }
}

static void dense_data(void **state) {
    (void)state;
    enum { N = 512 };
    float v[N];
    for (int i = 0; i < N; i++) v[i] = (float)(below(2001) - 1000) / 1000;
    static const setun_format formats[] = {SETUN_FORMAT_F32, SETUN_FORMAT_F16, SETUN_FORMAT_BF16, SETUN_FORMAT_Q8_0, SETUN_FORMAT_Q4_0, SETUN_FORMAT_Q4_1, SETUN_FORMAT_Q4_K, SETUN_FORMAT_Q6_K};
    for (size_t f = 0; f < 8; f++) {
        uint8_t data[N * 4];
        bool exact;
        double error;
        setun_weight w = {.name = "dense", .format = formats[f], .rows = 1, .columns = N, .data = data};
        assert_int_equal(setun_format_size(w.format, 1, N, &w.bytes), SETUN_OK);
        assert_int_equal(setun_format_encode_dense(w.format, "dense", 1, N, v, data, &exact, &error), SETUN_OK);
        setun_ternary_info info;
        memset(&info, 0xff, sizeof info);
        assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
        assert_false(info.ternary);
        assert_int_equal(info.zeros, 0);
    }
}

static void absmean_masters(void **state) {
    (void)state;
    enum { ROWS = 3, COLUMNS = 300 };
    float v[ROWS * COLUMNS], scale;
    uint8_t expected[ROWS * COLUMNS], codes[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) v[i] = (float)(below(2001) - 1000) / 1000;
    setun_weight w = {.name = "master", .format = SETUN_FORMAT_F32, .rows = ROWS, .columns = COLUMNS, .data = (const uint8_t *)v, .bytes = sizeof v, .absmean = true};
    setun_ternary_info info;
    assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
    setun_absmean(v, ROWS * COLUMNS, &scale, expected);
    assert_true(info.ternary && info.scale == SETUN_SCALE_TENSOR && info.tensor_scale == scale);
    assert_int_equal(setun_ternary_decode(&w, &info, 0, 1, codes, NULL), SETUN_OK);
    assert_int_equal(setun_ternary_decode(&w, &info, 1, 2, codes + COLUMNS, NULL), SETUN_OK);
    assert_memory_equal(codes, expected, sizeof codes);
    uint64_t zeros = 0;
    for (int i = 0; i < ROWS * COLUMNS; i++) zeros += codes[i] == 1;
    assert_int_equal(info.zeros, zeros);
    v[COLUMNS + 299] = NAN;
    assert_int_equal(setun_ternary_probe(&w, &info), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "row 1, column 299"));
}

static void expect_error(const setun_weight *w, const char *words) {
    setun_ternary_info info;
    uint8_t codes[4 * 512];
    float scales[4 * 512];
    assert_int_equal(setun_ternary_probe(w, &info), SETUN_ERROR_FORMAT);
    if (!strstr(setun_error(), words) || !strstr(setun_error(), w->name)) fail_msg("'%s' does not say '%s'", setun_error(), words);
    assert_false(info.ternary);
    if (setun_format_get_kind(w->format) == SETUN_KIND_TERNARY) { /* decoding finds it too, should the file change after the probe */
        setun_ternary_info stale = {.ternary = true, .scale = SETUN_SCALE_ROW};
        assert_int_equal(setun_ternary_decode(w, &stale, 0, w->rows, codes, scales), SETUN_ERROR_FORMAT);
    }
}

/* Code 3 anywhere is found and named by row and column. */
static void code_three(void **state) {
    (void)state;
    static const struct { setun_format format; int codes_at, stride, code_bytes; } cases[] = {{SETUN_FORMAT_TQ2_0, 0, 66, 64}, {SETUN_FORMAT_I2_S, 0, 0, 0}, {SETUN_FORMAT_I2_S_64, 0, 0, 0},
        {SETUN_FORMAT_I2_S_ROW4, 0, 0, 0}, {SETUN_FORMAT_HF_2BIT, 0, 0, 0}, {SETUN_FORMAT_Q2_0, 2, 18, 16}, {SETUN_FORMAT_PQ2_0, 2, 34, 32}, {SETUN_FORMAT_IQ2_BN, 4, 132, 128}};
    enum { ROWS = 4, COLUMNS = 512 };
    uint8_t codes[ROWS * COLUMNS];
    float v[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) codes[i] = (uint8_t)below(3);
    setun_ternary_info given = {.ternary = true, .scale = SETUN_SCALE_TENSOR, .tensor_scale = 0.5f};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int trial = 0; trial < 60; trial++) {
            uint8_t data[1024];
            bool exact;
            double error;
            setun_weight w = {.name = "blk.3.attn_q", .format = cases[c].format, .rows = ROWS, .columns = COLUMNS, .data = data, .tensor_scale = 0.5f};
            assert_int_equal(setun_format_size(w.format, ROWS, COLUMNS, &w.bytes), SETUN_OK);
            assert_int_equal(setun_format_encode_ternary(w.format, w.name, &given, ROWS, COLUMNS, codes, NULL, data, &exact, &error), SETUN_OK);
            const int byte = below(ROWS * COLUMNS / 4), shift = 2 * below(4);
            const int at = cases[c].stride ? byte / cases[c].code_bytes * cases[c].stride + cases[c].codes_at + byte % cases[c].code_bytes : byte;
            data[at] |= (uint8_t)(3 << shift);
            assert_int_equal(setun_weight_to_f32(&w, 0, ROWS, v), SETUN_OK);
            int where = 0;
            while (v[where] != 1.0f) where++; /* scale * (3 - 1) */
            char words[64];
            snprintf(words, sizeof words, "row %d, column %d:", where / COLUMNS, where % COLUMNS);
            expect_error(&w, words);
            expect_error(&w, "code 3");
        }
}

static void broken_scales(void **state) {
    (void)state;
    static const struct { setun_format format; int at, bytes; const char *where; } cases[] = {{SETUN_FORMAT_TQ1_0, 3 * 54 + 52, 2, "row 1, column 256"}, {SETUN_FORMAT_TQ2_0, 2 * 66 + 64, 2, "row 1, column 0"},
        {SETUN_FORMAT_Q2_0, 9 * 18, 2, "row 1, column 64"}, {SETUN_FORMAT_PQ2_0, 34, 2, "row 0, column 128"}, {SETUN_FORMAT_PTQ1_0, 28 * 5 + 26, 2, "row 1, column 128"},
        {SETUN_FORMAT_IQ1_BN, 2 * 106, 2, "row 2"}, {SETUN_FORMAT_IQ2_BN, 3 * 132, 4, "row 3"}, {SETUN_FORMAT_I2_S, 512, 4, "scale"}, {SETUN_FORMAT_I2_S_64, 512, 4, "scale"}, {SETUN_FORMAT_I2_S_ROW4, 512, 4, "scale"},
        {SETUN_FORMAT_HF_2BIT, -1, 4, "scale"}, {SETUN_FORMAT_Q8_0, 34 * 17, 2, "row 1, column 32"}, {SETUN_FORMAT_Q4_0, 18, 2, "row 0, column 32"}, {SETUN_FORMAT_F32, 4 * 513, 4, "row 1, column 1"},
        {SETUN_FORMAT_F16, 2 * 1100, 2, "row 2, column 76"}, {SETUN_FORMAT_BF16, 2 * 2047, 2, "row 3, column 511"}, {SETUN_FORMAT_Q4_1, 20 * 3, 2, "row 0, column 96"}};
    enum { ROWS = 4, COLUMNS = 512 };
    uint8_t codes[ROWS * COLUMNS], data[ROWS * COLUMNS * 4];
    float v[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        codes[i] = (uint8_t)(i % 3);
        v[i] = 0.5f * (float)(codes[i] - 1);
    }
    setun_ternary_info given = {.ternary = true, .scale = SETUN_SCALE_TENSOR, .tensor_scale = 0.5f};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int kind = 0; kind < 3; kind++) {
            const float value = kind == 0 ? NAN : kind == 1 ? INFINITY : -INFINITY;
            bool exact;
            double error;
            setun_weight w = {.name = "blk.3.attn_q", .format = cases[c].format, .rows = ROWS, .columns = COLUMNS, .data = data, .tensor_scale = 0.5f};
            assert_int_equal(setun_format_size(w.format, ROWS, COLUMNS, &w.bytes), SETUN_OK);
            assert_int_equal(setun_format_get_kind(w.format) == SETUN_KIND_TERNARY ? setun_format_encode_ternary(w.format, w.name, &given, ROWS, COLUMNS, codes, NULL, data, &exact, &error)
                                                                                   : setun_format_encode_dense(w.format, w.name, ROWS, COLUMNS, v, data, &exact, &error), SETUN_OK);
            const uint16_t half = w.format == SETUN_FORMAT_BF16 ? setun_f32_to_bf16(value) : setun_f32_to_f16(value);
            if (cases[c].at < 0) w.tensor_scale = value;
            else if (cases[c].bytes == 2) memcpy(data + cases[c].at, &half, 2);
            else memcpy(data + cases[c].at, &value, 4);
            expect_error(&w, cases[c].where);
        }
    /* negative: refused where codes are used in place, mirrored elsewhere (random_carriers) */
    setun_weight w = {.name = "neg", .format = SETUN_FORMAT_HF_2BIT, .rows = ROWS, .columns = COLUMNS, .data = data, .bytes = 512, .tensor_scale = -0.5f};
    memset(data, 0x55, sizeof data);
    expect_error(&w, "-0.5");
    w.format = SETUN_FORMAT_I2_S;
    w.bytes = 544;
    memcpy(data + 512, &w.tensor_scale, 4);
    expect_error(&w, "-0.5");
    /* a scale of 0 makes zeros of everything */
    memset(data, 0, sizeof data);
    setun_ternary_info info;
    assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
    assert_true(info.ternary && info.scale == SETUN_SCALE_TENSOR && info.tensor_scale == 0 && info.zeros == ROWS * COLUMNS);
}

/* A scale seen over zeros only proves nothing; the same scale over other codes does. */
static void scale_over_zeros(void **state) {
    (void)state;
    uint8_t data[3 * 66];
    const float scales[3] = {0.5f, 0.25f, 0.25f};
    for (int b = 0; b < 3; b++) {
        const uint16_t half = setun_f32_to_f16(scales[b]);
        memset(data + 66 * b, b == 1 ? 0x55 : 0x59, 64);
        memcpy(data + 66 * b + 64, &half, 2);
    }
    setun_weight w = {.name = "x", .format = SETUN_FORMAT_TQ2_0, .rows = 3, .columns = 256, .data = data, .bytes = sizeof data};
    check_against_oracle(&w);
    w.rows = 1;
    w.columns = 768;
    check_against_oracle(&w);
    setun_ternary_info info;
    w.columns = 512; /* without the third block: one scale */
    assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
    assert_true(info.scale == SETUN_SCALE_TENSOR && info.tensor_scale == 0.5f);
}

/* Random bytes in every format: an answer or an error, and a ternary answer agrees with the values. */
static void noise(void **state) {
    (void)state;
    uint8_t data[4 * 512 * 4], side[4 * 512 * 4];
    for (int trial = 0; trial < 2000; trial++) {
        const setun_format format = (setun_format)below(SETUN_FORMAT_COUNT);
        const int64_t rows = 4, columns = 128 << below(3);
        setun_weight w = {.name = "noise", .format = format, .rows = rows, .columns = columns, .data = data, .scales = side, .biases = side, .scales_format = SETUN_FORMAT_F16, .group_size = 64, .tensor_scale = 1};
        if (setun_format_size(format, rows, columns, &w.bytes)) continue;
        for (uint64_t i = 0; i < w.bytes && i < sizeof data; i++) data[i] = (uint8_t)next_random();
        for (size_t i = 0; i < sizeof side; i++) side[i] = (uint8_t)next_random();
        if (w.bytes > sizeof data) continue;
        setun_ternary_info info;
        if (setun_ternary_probe(&w, &info) == SETUN_OK && info.ternary) check_against_oracle(&w);
        else assert_false(info.ternary);
    }
}

int main(void) {
    seed = (uint64_t)time(NULL) * 2654435761u + 1;
    if (getenv("SETUN_TEST_SEED")) seed = strtoull(getenv("SETUN_TEST_SEED"), NULL, 10);
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_carriers), cmocka_unit_test(random_blocks), cmocka_unit_test(dense_data), cmocka_unit_test(absmean_masters), cmocka_unit_test(code_three),
        cmocka_unit_test(broken_scales), cmocka_unit_test(scale_over_zeros), cmocka_unit_test(noise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
