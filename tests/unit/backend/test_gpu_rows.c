/*
 * test_gpu_rows.c - the GPU kernels that work on rows or elements, in their host form, against the CPU's ref kernels bit for bit: all dtypes,
 * odd sizes, NaN and infinity, threads in any order, arrays against guard pages.
 */
#include "gpu_support.h"

static const setun_kernels *ref;
static int random_threads(void) { return 32 * random_between(2, 12); }
static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-30f, 3e38f, -65504.0f};

/* Now and then a value that shows how NaN and infinities are treated. */
static void *rows_of(int dtype, int rows, int width, float **out)
{
    size_t n = (size_t)rows * (size_t)width;
    void *x = random_values(dtype, n, out);
    if (next_random() % 4 == 0 && n) {
        size_t at = next_random() % n;
        store_value(x, dtype, at, special[next_random() % 8]);
        (*out)[at] = load_value(x, dtype, at);
    }
    return x;
}

static const int widths[] = {1, 5, 16, 63, 64, 65, 127, 128, 129, 300, 576, 1000};

static void norms(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 36; turn++) {
        int dtype = dtypes[turn % 3], out_type = dtypes[turn / 3 % 3], width = widths[turn % 12], rows = random_between(1, 4);
        bool weighted = next_random() % 3, scaled = next_random() % 3 == 0, plus = next_random() % 2;
        size_t n = (size_t)rows * (size_t)width;
        float *xf, *weight = random_floats((size_t)width < 8 ? 8 : (size_t)width), *powers = array_of((size_t)rows * 4), epsilon = 1e-5f;
        void *x = rows_of(dtype, rows, width, &xf);
        for (int r = 0; r < rows; r++) {
            powers[r] = ldexpf(1.0f, random_between(0, 9));
            for (int i = 0; scaled && i < width; i++) xf[r * width + i] *= powers[r];
        }
        float *y = array_of(n * 4);
        for (int r = 0; r < rows; r++) ref->rms_norm(xf + r * width, weighted ? weight : NULL, plus ? 1.0f : 0.0f, width, epsilon, y + r * width);
        const void *inputs[] = {x, weight, powers, INTS(width), FLOATS(epsilon, plus ? 1.0f : 0.0f)};
        {
            int32_t values[] = {dtype, out_type, weighted, scaled};
            void *outputs[] = {array_of(n * bytes_of(out_type))};
            call c = CALL(rms_norm, values, inputs, outputs, random_threads(), rows);
            check_call(&c, "rms_norm", (expected[]){{stored_as(out_type, y, n), n, bytes_of(out_type)}});
        }
        size_t stride = ((size_t)width + 127) / 128 * 128;
        int8_t *q = array_of((size_t)rows * stride);
        float *scale = array_of((size_t)rows * 4);
        int32_t *sum = array_of((size_t)rows * 4);
        void *outputs[] = {array_of((size_t)rows * stride), array_of((size_t)rows * 4), array_of((size_t)rows * 4)};
        expected e[] = {{q, (size_t)rows * stride, 1}, {scale, (size_t)rows, 4}, {sum, (size_t)rows, 4}};
        {
            int32_t values[] = {dtype, weighted, scaled};
            for (int r = 0; r < rows; r++) ref->quantize_i8(y + r * width, width, (int64_t)stride, q + (size_t)r * stride, &scale[r], &sum[r]);
            call c = CALL(rms_norm_quantize, values, inputs, outputs, random_threads(), rows);
            check_call(&c, "rms_norm_quantize", e);
        }
        {
            int32_t values[] = {dtype, scaled};
            const void *in[] = {x, powers, INTS(width)};
            for (int r = 0; r < rows; r++) ref->quantize_i8(xf + r * width, width, (int64_t)stride, q + (size_t)r * stride, &scale[r], &sum[r]);
            call c = CALL(quantize, values, in, outputs, 32 * random_between(1, 12), rows);
            check_call(&c, "quantize", e);
        }
        free_arrays();
    }
}

static void normalised(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 24; turn++) {
        int dtype = dtypes[turn % 3], width = widths[turn % 12], rows = random_between(1, 4);
        size_t n = (size_t)rows * (size_t)width;
        float *xf, *y = array_of(n * 4);
        void *x = rows_of(dtype, rows, width, &xf);
        int32_t values[] = {dtype};
        const void *inputs[] = {x, INTS(width)};
        void *outputs[] = {array_of(n * bytes_of(dtype))};
        for (int r = 0; r < rows; r++) ref->softmax(xf + r * width, width, y + r * width);
        call c = CALL(softmax, values, inputs, outputs, random_threads(), rows);
        check_call(&c, "softmax", (expected[]){{stored_as(dtype, y, n), n, bytes_of(dtype)}});
        for (int r = 0; r < rows; r++) ref->l2_normalize(xf + r * width, width, y + r * width);
        c = CALL(l2_normalize, values, inputs, outputs, random_threads(), rows);
        check_call(&c, "l2_normalize", (expected[]){{stored_as(dtype, y, n), n, bytes_of(dtype)}});
        free_arrays();
    }
}

static void elements(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 36; turn++) {
        int dtype = dtypes[turn % 3], n = widths[turn % 12];
        float *af, *bf, *y = array_of((size_t)n * 4), factor = random_float();
        void *a = rows_of(dtype, 1, n, &af), *b = rows_of(dtype, 1, n, &bf);
        void *outputs[] = {array_of((size_t)n * bytes_of(dtype))};
        for (int kind = 1; kind <= 4; kind++) {
            int32_t values[] = {dtype, kind};
            const void *inputs[] = {a, INTS(n), FLOATS(factor)};
            if (kind == 1) ref->silu(af, n, y);
            else if (kind == 2) ref->relu2(af, n, y);
            else if (kind == 3) ref->gelu(af, n, y);
            else ref->scale(af, factor, n, y);
            call c = CALL(unary, values, inputs, outputs, 32 * random_between(1, 8), n);
            check_call(&c, "unary", (expected[]){{stored_as(dtype, y, (size_t)n), (size_t)n, bytes_of(dtype)}});
        }
        for (int operation = 0; operation <= 4; operation++) {
            int32_t values[] = {dtype, operation};
            const void *inputs[] = {a, b, INTS(n)};
            if (operation == 0) ref->add(af, bf, n, y);
            else if (operation == 1) ref->silu_mul(af, bf, n, y);
            else if (operation == 2) ref->relu2_mul(af, bf, n, y);
            else if (operation == 3) ref->gelu_mul(af, bf, n, y);
            else ref->multiply(af, bf, n, y);
            call c = CALL(binary, values, inputs, outputs, 32 * random_between(1, 8), n);
            check_call(&c, "binary", (expected[]){{stored_as(dtype, y, (size_t)n), (size_t)n, bytes_of(dtype)}});
        }
        free_arrays();
    }
}

/* exp and what is made of it, for random bits and densely where results are neither 0 nor infinite. */
static void activations_everywhere(void **unused)
{
    (void)unused;
    enum { N = 40000 };
    float *x = array_of(N * 4), *y = array_of(N * 4);
    for (int i = 0; i < N; i++) {
        uint32_t bits = next_random();
        if (i % 2) x[i] = ((float)(int32_t)bits / 2147483648.0f) * (i % 4 == 1 ? 90.0f : 5.0f);
        else memcpy(&x[i], &bits, 4);
    }
    for (int kind = 1; kind <= 3; kind++) {
        int32_t values[] = {SETUN_F32, kind};
        const void *inputs[] = {x, INTS(N), FLOATS(1)};
        void *outputs[] = {array_of(N * 4)};
        if (kind == 1) ref->silu(x, N, y);
        else if (kind == 2) ref->relu2(x, N, y);
        else ref->gelu(x, N, y);
        call c = CALL(unary, values, inputs, outputs, 256, N);
        check_call(&c, "unary", (expected[]){{y, N, 4}});
    }
    free_arrays();
}

static void lookups(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 27; turn++) {
        int dtype = dtypes[turn % 3], out_type = dtypes[turn / 3 % 3], columns = widths[turn % 12], count = random_between(1, 9), rows = random_between(1, 5);
        float *tf, factor = turn % 2 ? 1.0f : 12.5f, *y = array_of((size_t)rows * (size_t)columns * 4);
        void *table = random_values(dtype, (size_t)count * (size_t)columns, &tf);
        int32_t *ids = array_of((size_t)rows * 4);
        for (int r = 0; r < rows; r++) ids[r] = next_random() % 6 == 0 ? (next_random() % 2 ? -1 - (int)(next_random() % 5) : count) : random_between(0, count - 1);
        size_t n = (size_t)rows * (size_t)columns;
        for (int pass = 0; pass < 2; pass++) {
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < columns; i++)
                    y[r * columns + i] = ids[r] < 0 || ids[r] >= count ? 0.0f : pass == 0 ? tf[ids[r] * columns + i] * factor : tf[ids[r] * columns + i];
            if (pass == 0) {
                int32_t values[] = {dtype, out_type};
                const void *inputs[] = {table, ids, INTS(columns, count), FLOATS(factor)};
                void *outputs[] = {array_of(n * bytes_of(out_type))};
                call c = CALL(embedding, values, inputs, outputs, 32 * random_between(1, 6), rows);
                check_call(&c, "embedding", (expected[]){{stored_as(out_type, y, n), n, bytes_of(out_type)}});
            } else {
                int32_t values[] = {dtype};
                const void *inputs[] = {table, ids, INTS(columns, count)};
                void *outputs[] = {array_of(n * bytes_of(dtype))};
                call c = CALL(select_rows, values, inputs, outputs, 32 * random_between(1, 6), rows);
                check_call(&c, "select_rows", (expected[]){{stored_as(dtype, y, n), n, bytes_of(dtype)}});
            }
        }
        free_arrays();
    }
}

static void hadamards(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 24; turn++) {
        int dtype = dtypes[turn % 3], block = 1 << random_between(0, 9), blocks = random_between(1, 3), width = block * blocks + (next_random() % 3 ? 0 : (int)(next_random() % (uint32_t)block));
        int rows = random_between(1, 3);
        bool with_signs = next_random() % 3, inverse = next_random() % 2;
        size_t n = (size_t)rows * (size_t)width;
        float *xf, *signs = array_of((size_t)(width < 8 ? 8 : width) * 4), *y = array_of(n * 4);
        void *x = random_values(dtype, n, &xf);
        for (int i = 0; i < width; i++) signs[i] = next_random() % 2 ? 1.0f : -1.0f;
        for (int r = 0; r < rows; r++) { /* as steps_rows.c */
            float *out = y + r * width, *in = xf + r * width;
            if (with_signs && !inverse) ref->multiply(in, signs, width, out);
            else memcpy(out, in, (size_t)width * 4);
            for (int i = 0; i + block <= width; i += block) ref->hadamard(out + i, block);
            if (with_signs && inverse) ref->multiply(out, signs, width, out);
        }
        int32_t values[] = {dtype, block, with_signs, inverse};
        const void *inputs[] = {x, signs, INTS(width)};
        void *outputs[] = {array_of(n * bytes_of(dtype))};
        call c = CALL(hadamard, values, inputs, outputs, 32 * random_between(1, 6), (int64_t)rows * (width / block));
        check_call(&c, "hadamard", (expected[]){{stored_as(dtype, y, n), n, bytes_of(dtype)}});
        free_arrays();
    }
}

static void ropes(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 24; turn++) {
        int dtype = dtypes[turn % 3], heads = random_between(1, 4), half = random_between(1, 40), head_size = 2 * half + (next_random() % 2 ? 0 : random_between(1, 20)), tokens = random_between(1, 4), table_rows = random_between(2, 9);
        bool interleaved = next_random() % 2;
        size_t n = (size_t)(tokens * heads * head_size);
        float *xf, *cosines = random_floats((size_t)(table_rows * half)), *sines = random_floats((size_t)(table_rows * half));
        void *x = random_values(dtype, n, &xf);
        int32_t *positions = array_of((size_t)tokens * 4);
        for (int t = 0; t < tokens; t++) {
            positions[t] = random_between(-1, table_rows); /* those outside take the nearest row */
            int row = positions[t] < 0 ? 0 : positions[t] >= table_rows ? table_rows - 1 : positions[t];
            ref->rope(xf + t * heads * head_size, heads, head_size, 2 * half, cosines + row * half, sines + row * half, interleaved);
        }
        int32_t values[] = {dtype, interleaved};
        const void *inputs[] = {x, positions, cosines, sines, INTS(heads, head_size, half, table_rows)};
        void *outputs[] = {array_of(n * bytes_of(dtype))};
        call c = CALL(rope, values, inputs, outputs, 32 * random_between(1, 6), tokens);
        check_call(&c, "rope", (expected[]){{stored_as(dtype, xf, n), n, bytes_of(dtype)}});
        free_arrays();
    }
}

/* A row whose squares overflow f16: unscaled storing gives infinity, scaled storing keeps every value to f16's precision. */
static void scaled_rows(void **unused)
{
    (void)unused;
    for (int turn = 0; turn < 24; turn++) {
        int kind = 1 + turn % 3, width = widths[turn % 12], rows = random_between(1, 4), dtype = dtypes[turn % 2];
        bool gated = turn % 2;
        size_t n = (size_t)rows * (size_t)width;
        float *gf, *uf, *y = array_of(n * 4), *scales = array_of((size_t)rows * 4);
        void *gate = random_values(dtype, n, &gf), *up = random_values(dtype, n, &uf);
        for (int r = 0; r < rows; r++) { /* some rows large, some small */
            size_t at = (size_t)r * (size_t)width + next_random() % (uint32_t)width;
            store_value(gate, dtype, at, r % 2 ? 0.25f : 3000.0f);
            gf[at] = load_value(gate, dtype, at);
        }
        if (kind == 1) gated ? ref->silu_mul(gf, uf, (int64_t)n, y) : ref->silu(gf, (int64_t)n, y);
        if (kind == 2) gated ? ref->relu2_mul(gf, uf, (int64_t)n, y) : ref->relu2(gf, (int64_t)n, y);
        if (kind == 3) gated ? ref->gelu_mul(gf, uf, (int64_t)n, y) : ref->gelu(gf, (int64_t)n, y);
        int32_t values[] = {dtype, SETUN_F16, kind, gated};
        const void *inputs[] = {gate, up, INTS(width)};
        void *outputs[] = {array_of(n * 2), array_of((size_t)rows * 4)};
        uint16_t *wanted = array_of(n * 2);
        for (int r = 0; r < rows; r++) {
            float most = 0;
            for (int i = 0; i < width; i++) most = fmaxf(most, fabsf(y[r * width + i]));
            scales[r] = 1.0f;
            while (most / scales[r] > 32768.0f) scales[r] *= 2;
            for (int i = 0; i < width; i++) wanted[r * width + i] = setun_f32_to_f16(y[r * width + i] / scales[r]);
        }
        call c = CALL(gate_scaled, values, inputs, outputs, random_threads(), rows);
        check_call(&c, "gate_scaled", (expected[]){{wanted, n, 2}, {scales, (size_t)rows, 4}});
        if (kind == 2 && !gated) { /* the square of 3000 */
            assert_true(isinf(setun_f16_to_f32(setun_f32_to_f16(9e6f))));
            for (size_t i = 0; i < n; i++) {
                float back = load_value(outputs[0], SETUN_F16, i) * scales[i / (size_t)width];
                assert_true(isfinite(back));
                if (y[i] > scales[i / (size_t)width] * 6.2e-5f) assert_true(fabsf(back - y[i]) <= y[i] * 0x1p-11f);
            }
        }
        free_arrays();
    }
}

int main(void)
{
    ref = setun_isa_table(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(norms), cmocka_unit_test(normalised), cmocka_unit_test(elements), cmocka_unit_test(activations_everywhere), cmocka_unit_test(lookups),
                                       cmocka_unit_test(hadamards), cmocka_unit_test(ropes), cmocka_unit_test(scaled_rows)};
    int failed = cmocka_run_group_tests(tests, seed_tests, NULL);
    setun_gpu_host_trim();
    return failed;
}
