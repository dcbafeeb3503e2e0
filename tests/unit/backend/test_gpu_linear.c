/*
 * test_gpu_linear.c - the GPU kernels' products in their host form against the CPU's ref kernels bit for bit: 1 to 3 weights, gated pairs, every
 * epilogue, odd shapes, both forms of the ternary dot product, threads in any order, arrays against guard pages.
 */
#include "gpu_support.h"

static const setun_kernels *ref;

/* What the CPU's LINEAR step computes (steps_linear.c). y: [tokens, rows] of one weight before the epilogue. */
typedef struct weights {
    int count, rows[3], columns, activation;
    bool row_scales, bias, residual;
    uint8_t *codes[3];
    float *scales[3], *biases[3], factor;
} weights;

static weights random_weights(int columns, int group, bool gated)
{
    weights w = {.count = gated ? 2 : random_between(1, 3), .columns = columns, .row_scales = next_random() % 2, .bias = next_random() % 2, .residual = next_random() % 2};
    if (gated || (w.count == 2 && next_random() % 2)) w.activation = random_between(1, 3);
    w.factor = next_random() % 2 ? 1.0f : 0.75f;
    for (int i = 0; i < 3; i++) {
        w.rows[i] = i < w.count ? random_between(1, 70) : 0;
        if (w.activation && i == 1) w.rows[1] = w.rows[0];
        size_t groups = group ? (size_t)((columns + group - 1) / group) : 1, scales = group || w.row_scales ? (size_t)w.rows[i] * groups : 1;
        w.codes[i] = i < w.count ? random_codes(w.rows[i], columns) : w.codes[0];
        w.scales[i] = random_floats(i < w.count ? scales : 8);
        w.biases[i] = random_floats((size_t)(w.rows[i] < 8 ? 8 : w.rows[i]));
    }
    return w;
}
static int out_width(const weights *w) { return w->activation ? w->rows[0] : w->rows[0] + w->rows[1] + w->rows[2]; }

/* From the products of each weight to what is stored. */
static float *epilogue(const weights *w, float *const y[3], int tokens, int dtype, const void *residual)
{
    int width = out_width(w);
    float *out = array_of((size_t)tokens * (size_t)width * 4);
    for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < w->count; i++)
            if (w->bias) ref->add(y[i] + t * w->rows[i], w->biases[i], w->rows[i], y[i] + t * w->rows[i]);
        float *row = out + t * width;
        if (w->activation == 1) ref->silu_mul(y[0] + t * w->rows[0], y[1] + t * w->rows[0], width, row);
        else if (w->activation == 2) ref->relu2_mul(y[0] + t * w->rows[0], y[1] + t * w->rows[0], width, row);
        else if (w->activation == 3) ref->gelu_mul(y[0] + t * w->rows[0], y[1] + t * w->rows[0], width, row);
        else
            for (int i = 0, at = 0; i < w->count; at += w->rows[i++]) memcpy(row + at, y[i] + t * w->rows[i], (size_t)w->rows[i] * 4);
        if (w->factor != 1.0f) ref->scale(row, w->factor, width, row);
        if (w->residual)
            for (int r = 0; r < width; r++) {
                float other = load_value(residual, dtype, (size_t)(t * width + r));
                ref->add(&row[r], &other, 1, &row[r]);
            }
    }
    return out;
}

static const int columns_of[] = {1, 31, 64, 127, 128, 129, 255, 256, 500, 1024, 2560};

static void ternary_int8(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 44; turn++) {
        int columns = columns_of[turn % 11], tokens = random_between(1, turn % 4 == 3 ? 40 : 9), dtype = dtypes[turn % 3];
        weights w = random_weights(columns, 0, turn % 8 == 5);
        size_t stride = ((size_t)columns + 127) / 128 * 128;
        int8_t *x = array_of((size_t)tokens * stride);
        float *x_scale = random_floats((size_t)tokens);
        int32_t *x_sum = array_of((size_t)tokens * 4);
        int extreme = next_random() % 6 ? 0 : next_random() % 2 ? 127 : -128;
        for (int t = 0; t < tokens; t++) {
            x_sum[t] = 0;
            for (size_t i = 0; i < stride; i++) {
                int8_t v = (int8_t)(i >= (size_t)columns ? 0 : extreme ? extreme : (int)(next_random() >> 24) - 128);
                x[(size_t)t * stride + i] = v;
                x_sum[t] += v;
            }
        }
        float *y[3];
        for (int i = 0; i < w.count; i++) {
            size_t n = (size_t)tokens * (size_t)w.rows[i];
            int32_t *sums = array_of(n * 4);
            y[i] = array_of(n * 4);
            ref->ternary_i8(w.codes[i], (size_t)setun_packed_row_bytes(columns), w.rows[i], x, stride, tokens, columns, sums, (size_t)w.rows[i]);
            for (int t = 0; t < tokens; t++)
                ref->scale_sums(sums + t * w.rows[i], w.rows[i], x_sum[t], x_scale[t], w.row_scales ? w.scales[i] : NULL, w.scales[i][0], y[i] + t * w.rows[i]);
        }
        size_t n = (size_t)tokens * (size_t)out_width(&w);
        void *residual = random_values(dtype, n < 8 ? 8 : n, NULL);
        const void *wanted = stored_as(dtype, epilogue(&w, y, tokens, dtype, residual), n);
        const void *inputs[] = {w.codes[0], w.codes[1], w.codes[2], x, x_scale, x_sum, w.scales[0], w.scales[1], w.scales[2], w.biases[0], w.biases[1], w.biases[2],
                                residual, INTS(columns, tokens, w.rows[0], w.rows[1], w.rows[2]), FLOATS(w.factor)};
        void *outputs[] = {array_of(n * bytes_of(dtype))};
        expected e = {wanted, n, bytes_of(dtype)};
        {
            int rows = random_between(1, 5), tile = random_between(1, 6);
            int32_t values[] = {dtype, w.count, rows, tile, w.activation, w.row_scales, w.bias, w.residual};
            call c = CALL(ternary_matvec, values, inputs, outputs, 32 * random_between(1, 4), w.rows[0], w.rows[1], w.rows[2], tokens);
            check_call(&c, "ternary_matvec", &e);
        }
        {
            int32_t values[] = {dtype, w.count, 16 * random_between(1, 3), 16 * random_between(1, 2), w.activation, w.row_scales, w.bias, w.residual};
            call c = CALL(ternary_matmul, values, inputs, outputs, 0, w.rows[0], w.rows[1], w.rows[2], tokens);
            check_call(&c, "ternary_matmul", &e);
            if (columns <= 256 && turn % 4 == 1) { /* every lane computes whole matrices here: slow */
                values[2] = 16 * random_between(1, 2);
                c = CALL(ternary_matmul_matrix, values, inputs, outputs, 0, w.rows[0], w.rows[1], w.rows[2], tokens);
                check_call(&c, "ternary_matmul_matrix", &e);
            }
        }
        free_arrays();
    }
}

/* The largest sums: 65536 columns of 2 * -128 are -2^24, which a float still holds. */
static void largest_sums(void **unused)
{
    (void)unused;
    enum { COLUMNS = 65536 };
    uint8_t *codes = array_of(COLUMNS / 4);
    int8_t *x = array_of(COLUMNS);
    memset(codes, 0xaa, COLUMNS / 4);
    memset(x, -128, COLUMNS);
    x[5] = -127; /* an odd sum, one below in magnitude: a rounded path would lose it */
    const float *ones = FLOATS(1, 1, 1, 1, 1, 1, 1, 1);
    const void *inputs[] = {codes, codes, codes, x, FLOATS(1), INTS(0), ones, ones, ones, ones, ones, ones, ones, INTS(COLUMNS, 1, 1, 0, 0), FLOATS(1)};
    void *outputs[] = {array_of(4)};
    float wanted = -16777216.0f + 2.0f;
    int32_t values[] = {SETUN_F32, 1, 1, 1, 0, 0, 0, 0};
    call c = CALL(ternary_matvec, values, inputs, outputs, 32, 1, 0, 0, 1);
    check_call(&c, "largest sums", (expected[]){{&wanted, 1, 4}});
    int32_t tile[] = {SETUN_F32, 1, 16, 16, 0, 0, 0, 0};
    c = CALL(ternary_matmul, tile, inputs, outputs, 0, 1, 0, 0, 1);
    check_call(&c, "largest sums, tiled", (expected[]){{&wanted, 1, 4}});
    free_arrays();
}

static void ternary_floats(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 33; turn++) {
        int columns = columns_of[turn % 10], tokens = random_between(1, 5), dtype = dtypes[turn % 3];
        int group = next_random() % 2 ? 0 : 32 << random_between(0, 3);
        weights w = random_weights(columns, group, turn % 8 == 5);
        float *xf, *y[3];
        void *x = random_values(dtype, (size_t)tokens * (size_t)columns, &xf);
        for (int i = 0; i < w.count; i++) {
            size_t n = (size_t)tokens * (size_t)w.rows[i], groups = group ? (size_t)((columns + group - 1) / group) : 0;
            y[i] = array_of(n * 4);
            ref->ternary_f32(w.codes[i], (size_t)setun_packed_row_bytes(columns), w.rows[i], xf, (size_t)columns, tokens, columns, group ? w.scales[i] : NULL, groups, group, y[i], (size_t)w.rows[i]);
            for (int t = 0; t < tokens && !group; t++) {
                if (w.row_scales) ref->multiply(y[i] + t * w.rows[i], w.scales[i], w.rows[i], y[i] + t * w.rows[i]);
                else ref->scale(y[i] + t * w.rows[i], w.scales[i][0], w.rows[i], y[i] + t * w.rows[i]);
            }
        }
        size_t n = (size_t)tokens * (size_t)out_width(&w);
        void *residual = random_values(dtype, n < 8 ? 8 : n, NULL);
        const void *inputs[] = {w.codes[0], w.codes[1], w.codes[2], x, w.scales[0], w.scales[1], w.scales[2], w.biases[0], w.biases[1], w.biases[2],
                                residual, INTS(columns, tokens, w.rows[0], w.rows[1], w.rows[2], group), FLOATS(w.factor)};
        void *outputs[] = {array_of(n * bytes_of(dtype))};
        int32_t values[] = {dtype, w.count, random_between(1, 5), random_between(1, 3), w.activation, w.row_scales, w.bias, w.residual};
        call c = CALL(ternary_float, values, inputs, outputs, 32 * random_between(1, 4), w.rows[0], w.rows[1], w.rows[2], tokens);
        check_call(&c, "ternary_float", (expected[]){{stored_as(dtype, epilogue(&w, y, tokens, dtype, residual), n), n, bytes_of(dtype)}});
        free_arrays();
    }
}

static void dense(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 36; turn++) {
        int columns = columns_of[turn % 10], tokens = random_between(1, 5), rows = random_between(1, 70), dtype = dtypes[turn % 3], weight_type = dtypes[turn / 3 % 3];
        bool bias = next_random() % 2, residual = next_random() % 2;
        float *xf, factor = next_random() % 2 ? 1.0f : 0.5f, *y = array_of((size_t)(tokens * rows) * 4), *b = random_floats((size_t)(rows < 8 ? 8 : rows)), *before = random_floats((size_t)(tokens * rows + 8));
        void *x = random_values(dtype, (size_t)tokens * (size_t)columns, &xf), *w = random_values(weight_type, (size_t)rows * (size_t)columns, NULL);
        size_t row_bytes = (size_t)columns * bytes_of(weight_type), n = (size_t)(tokens * rows);
        (weight_type == SETUN_F32 ? ref->dense_f32 : weight_type == SETUN_F16 ? ref->dense_f16 : ref->dense_bf16)(w, row_bytes, rows, xf, (size_t)columns, tokens, columns, y, (size_t)rows);
        for (int t = 0; t < tokens; t++) {
            if (bias) ref->add(y + t * rows, b, rows, y + t * rows);
            if (factor != 1.0f) ref->scale(y + t * rows, factor, rows, y + t * rows);
            if (residual) ref->add(y + t * rows, before + t * rows, rows, y + t * rows);
        }
        int32_t values[] = {dtype, weight_type, random_between(1, 5), random_between(1, 3), bias, residual};
        const void *inputs[] = {w, x, b, before, INTS(columns, tokens, rows), FLOATS(factor)};
        void *outputs[] = {array_of(n * 4)};
        call c = CALL(dense_matvec, values, inputs, outputs, 32 * random_between(1, 4), rows, 0, 0, tokens);
        check_call(&c, "dense_matvec", (expected[]){{y, n, 4}});
        free_arrays();
    }
}

int main(void)
{
    ref = setun_isa_table(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(ternary_int8), cmocka_unit_test(largest_sums), cmocka_unit_test(ternary_floats), cmocka_unit_test(dense)};
    int failed = cmocka_run_group_tests(tests, seed_tests, NULL);
    setun_gpu_host_trim();
    return failed;
}
