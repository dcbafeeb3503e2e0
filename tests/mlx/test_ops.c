/*
 * Every operation of bridge_ops.def: its values where they are known, and what it refuses (too few or too many inputs, integers,
 * reals, a missing input, a wrong number of outputs). The last test checks that none was forgotten.
 */
#include "mlx_test.h"

static bool tried[SETUN_MLX_OP_COUNT];

/* One row: operation, inputs, request, and the wanted values (as f32) with a tolerance. */
static void expect_within(int line, int op, setun_mlx_array *const *inputs, int n, asked o, const float *wanted, int count, float tolerance) {
    setun_mlx_array *out, *f32;
    tried[op] = true;
    setun_status status = op_on(stream, op, inputs, n, o, &out);
    if (status != SETUN_OK) fail_msg("line %d, %s: %s", line, t->op_name(op), t->error());
    ok(op_on(stream, SETUN_MLX_OP_ASTYPE, ARRAYS(out), (asked){.dtype = SETUN_F32}, &f32));
    setun_mlx_array_info info;
    ok(t->array_get(f32, &info));
    if (info.bytes != (size_t)count * 4) fail_msg("line %d, %s: %llu bytes, not %d", line, t->op_name(op), (unsigned long long)info.bytes, count * 4);
    float *got = calloc((size_t)count + 1, sizeof *got);
    assert_non_null(got);
    status = t->read(stream, f32, got, (size_t)count * 4);
    if (status != SETUN_OK) fail_msg("line %d, %s: %s", line, t->op_name(op), t->error());
    for (int i = 0; i < count; i++)
        if (!(fabsf(got[i] - wanted[i]) <= tolerance * fmaxf(1.0f, fabsf(wanted[i])))) fail_msg("line %d, %s: value %d is %.9g, not %.9g", line, t->op_name(op), i, got[i], wanted[i]);
    free(got);
    t->array_release(out);
    t->array_release(f32);
}
#define WANT(...) FLOATS(__VA_ARGS__), (int)(sizeof(FLOATS(__VA_ARGS__)) / sizeof(float))
#define exactly(op, inputs, request, ...) expect_within(__LINE__, SETUN_MLX_OP_##op, inputs, (asked)request, WANT(__VA_ARGS__), 0)
#define about(op, inputs, request, ...) expect_within(__LINE__, SETUN_MLX_OP_##op, inputs, (asked)request, WANT(__VA_ARGS__), 2e-6f)
#define NO_INPUT (setun_mlx_array *const *)NULL, 0

static void one_input(void **state) {
    (void)state;
    setun_mlx_array *x = vector(4, -1, 0, 0.5f, 2), *p = vector(3, 0.25f, 1, 4);
    about(EXP, ARRAYS(x), {0}, 0.36787944f, 1, 1.6487213f, 7.3890561f);
    about(LOG, ARRAYS(p), {0}, -1.3862944f, 0, 1.3862944f);
    exactly(SQRT, ARRAYS(p), {0}, 0.5f, 1, 2);
    about(RSQRT, ARRAYS(p), {0}, 2, 1, 0.5f);
    exactly(SQUARE, ARRAYS(x), {0}, 1, 0, 0.25f, 4);
    exactly(ABS, ARRAYS(x), {0}, 1, 0, 0.5f, 2);
    exactly(NEGATIVE, ARRAYS(x), {0}, 1, 0, -0.5f, -2);
    about(SIGMOID, ARRAYS(x), {0}, 0.26894142f, 0.5f, 0.62245933f, 0.88079708f);
    about(TANH, ARRAYS(x), {0}, -0.76159416f, 0, 0.46211716f, 0.96402758f);
    about(ERF, ARRAYS(x), {0}, -0.84270079f, 0, 0.52049988f, 0.99532227f);
    about(SIN, ARRAYS(x), {0}, -0.84147098f, 0, 0.47942554f, 0.90929743f);
    about(COS, ARRAYS(x), {0}, 0.54030231f, 1, 0.87758256f, -0.41614684f);
    exactly(FLOOR, ARRAYS(x), {0}, -1, 0, 0, 2);
    exactly(STOP_GRADIENT, ARRAYS(x), {0}, -1, 0, 0.5f, 2);
    exactly(CONTIGUOUS, ARRAYS(x), {0}, -1, 0, 0.5f, 2);
    exactly(COPY, ARRAYS(x), {0}, -1, 0, 0.5f, 2);
    setun_mlx_array *ties = vector(6, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f);
    exactly(ROUND, ARRAYS(ties), {0}, 0, 2, 2, -0.0f, -2, 126); /* half to even, as our own rounding */
    t->array_release(x);
    t->array_release(p);
    t->array_release(ties);
}

static void two_inputs(void **state) {
    (void)state;
    setun_mlx_array *a = vector(3, 1, 5, -2), *b = vector(3, 4, 5, 3), *column = make(spec_of(SETUN_F32, 2, 2, 1), FLOATS(10, 20));
    setun_mlx_array *i = make(spec_of(SETUN_I32, 1, 3), (int32_t[]){12, 5, 255}), *j = make(spec_of(SETUN_I32, 1, 3), (int32_t[]){10, 3, 1});
    exactly(ADD, ARRAYS(a, b), {0}, 5, 10, 1);
    exactly(ADD, ARRAYS(a, column), {0}, 11, 15, 8, 21, 25, 18); /* broadcast */
    exactly(SUBTRACT, ARRAYS(a, b), {0}, -3, 0, -5);
    exactly(MULTIPLY, ARRAYS(a, b), {0}, 4, 25, -6);
    exactly(DIVIDE, ARRAYS(a, b), {0}, 0.25f, 1, -2.0f / 3.0f);
    exactly(MAXIMUM, ARRAYS(a, b), {0}, 4, 5, 3);
    exactly(MINIMUM, ARRAYS(a, b), {0}, 1, 5, -2);
    about(POWER, ARRAYS(b, b), {0}, 256, 3125, 27);
    exactly(EQUAL, ARRAYS(a, b), {0}, 0, 1, 0);
    exactly(LESS, ARRAYS(a, b), {0}, 1, 0, 1);
    exactly(GREATER, ARRAYS(a, b), {0}, 0, 0, 0);
    exactly(BITWISE_AND, ARRAYS(i, j), {0}, 8, 1, 1);
    exactly(BITWISE_OR, ARRAYS(i, j), {0}, 14, 7, 255);
    exactly(LEFT_SHIFT, ARRAYS(i, j), {0}, 12288, 40, 510);
    exactly(RIGHT_SHIFT, ARRAYS(i, j), {0}, 0, 0, 127);
    setun_mlx_array *m = make(spec_of(SETUN_F32, 2, 2, 3), FLOATS(1, 2, 3, 4, 5, 6)), *n = make(spec_of(SETUN_F32, 2, 3, 2), FLOATS(1, 0, 0, 1, 2, 2)), *c = make(spec_of(SETUN_F32, 2, 2, 2), FLOATS(1, 1, 1, 1)), *yes;
    exactly(MATMUL, ARRAYS(m, n), {0}, 7, 8, 16, 17);
    exactly(ADDMM, ARRAYS(c, m, n), {0}, 8, 9, 17, 18);
    exactly(ADDMM, ARRAYS(c, m, n), {REALS(2, 10)}, 24, 26, 42, 44);
    ok(op_on(stream, SETUN_MLX_OP_LESS, ARRAYS(a, b), (asked){0}, &yes));
    exactly(WHERE, ARRAYS(yes, a, b), {0}, 1, 5, -2);
    setun_mlx_array *all[] = {a, b, column, i, j, m, n, c, yes};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) t->array_release(all[k]);
}

static void shapes(void **state) {
    (void)state;
    setun_mlx_array *x = make(spec_of(SETUN_F32, 2, 2, 3), FLOATS(1, 2, 3, 4, 5, 6)), *row = make(spec_of(SETUN_F32, 2, 1, 3), FLOATS(7, 8, 9)), *ids = make(spec_of(SETUN_I32, 1, 2), (int32_t[]){1, 0}), *at = make(spec_of(SETUN_I32, 1, 1), (int32_t[]){1});
    exactly(RESHAPE, ARRAYS(x), {INTEGERS(3, -1)}, 1, 2, 3, 4, 5, 6);
    exactly(TRANSPOSE, ARRAYS(x), {0}, 1, 4, 2, 5, 3, 6);
    exactly(TRANSPOSE, ARRAYS(x), {INTEGERS(0, 1)}, 1, 2, 3, 4, 5, 6);
    exactly(EXPAND_DIMS, ARRAYS(x), {INTEGERS(0, -1)}, 1, 2, 3, 4, 5, 6);
    exactly(SQUEEZE, ARRAYS(row), {0}, 7, 8, 9);
    exactly(SQUEEZE, ARRAYS(row), {INTEGERS(0)}, 7, 8, 9);
    exactly(BROADCAST_TO, ARRAYS(row), {INTEGERS(2, 3)}, 7, 8, 9, 7, 8, 9);
    exactly(SLICE, ARRAYS(x), {INTEGERS(0, 1, 2, 3)}, 2, 3, 5, 6);
    exactly(SLICE, ARRAYS(x), {INTEGERS(0, 0, 2, 3, 1, 2)}, 1, 3, 4, 6);
    exactly(SLICE_UPDATE, ARRAYS(x, row), {INTEGERS(1, 0, 2, 3)}, 1, 2, 3, 7, 8, 9);
    exactly(SLICE_AT, ARRAYS(x, at), {INTEGERS(1, 3, 0)}, 4, 5, 6);
    exactly(SLICE_UPDATE_AT, ARRAYS(x, row, at), {INTEGERS(0)}, 1, 2, 3, 7, 8, 9);
    exactly(CONCATENATE, ARRAYS(x, row, row), {INTEGERS(0)}, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9);
    exactly(REPEAT, ARRAYS(row), {INTEGERS(2, 1)}, 7, 7, 8, 8, 9, 9);
    exactly(ASTYPE, ARRAYS(row), {.dtype = SETUN_BF16}, 7, 8, 9);
    exactly(VIEW, ARRAYS(row), {.dtype = SETUN_I32}, (float)0x40e00000, (float)0x41000000, (float)0x41100000);
    exactly(TAKE, ARRAYS(x, ids), {INTEGERS(0)}, 4, 5, 6, 1, 2, 3);
    setun_mlx_array *along = make(spec_of(SETUN_I32, 2, 2, 1), (int32_t[]){2, 0});
    exactly(TAKE_ALONG_AXIS, ARRAYS(x, along), {INTEGERS(1)}, 3, 4);
    exactly(FULL, NO_INPUT, {INTEGERS(2, 2) COMMA REALS(-1.5) COMMA .dtype = SETUN_F16}, -1.5f, -1.5f, -1.5f, -1.5f);
    exactly(ARANGE, NO_INPUT, {REALS(1, 8, 3) COMMA .dtype = SETUN_I32}, 1, 4, 7);
    exactly(DEPENDS, ARRAYS(row, x), {0}, 7, 8, 9);
    setun_mlx_array *all[] = {x, row, ids, at, along};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) t->array_release(all[k]);
}

static void along_axes(void **state) {
    (void)state;
    setun_mlx_array *x = make(spec_of(SETUN_F32, 2, 2, 3), FLOATS(1, 5, 3, 4, 2, 6));
    exactly(SUM, ARRAYS(x), {INTEGERS(0)}, 21);
    exactly(SUM, ARRAYS(x), {INTEGERS(1, 1)}, 9, 12);
    exactly(MEAN, ARRAYS(x), {INTEGERS(0, 0)}, 2.5f, 3.5f, 4.5f);
    exactly(MAX, ARRAYS(x), {INTEGERS(0, -1)}, 5, 6);
    exactly(MIN, ARRAYS(x), {INTEGERS(0, 0, 1)}, 1);
    about(LOGSUMEXP, ARRAYS(x), {INTEGERS(0, 1)}, 5.1429317f, 6.1429317f);
    about(SOFTMAX, ARRAYS(x), {INTEGERS(1, 1)}, 0.015876240f, 0.86681333f, 0.11731043f, 0.11731043f, 0.015876240f, 0.86681333f);
    exactly(ARGMAX, ARRAYS(x), {INTEGERS(0, 1)}, 1, 2);
    exactly(ARGMAX, ARRAYS(x), {INTEGERS(1, 0)}, 1, 0, 1);
    exactly(ARGSORT, ARRAYS(x), {INTEGERS(1)}, 0, 2, 1, 1, 0, 2);
    exactly(TOPK, ARRAYS(x), {INTEGERS(1, 1)}, 5, 6); /* more come in no order */
    tried[SETUN_MLX_OP_ARGPARTITION] = true;
    setun_mlx_array *part;
    uint32_t where[6];
    ok(op_on(stream, SETUN_MLX_OP_ARGPARTITION, ARRAYS(x), (asked){INTEGERS(1, 1)}, &part));
    ok(t->read(stream, part, where, sizeof where));
    assert_true(where[1] == 2 && where[4] == 0); /* the second smallest is in its place */
    t->array_release(part);
    t->array_release(x);
}

static void quantised(void **state) {
    (void)state;
    enum { ROWS = 3, COLUMNS = 64 };
    float w[ROWS * COLUMNS], x[COLUMNS], want[ROWS];
    for (int i = 0; i < COLUMNS; i++) x[i] = (float)(i % 5) - 1;
    for (int r = 0; r < ROWS; r++) {
        want[r] = 0;
        for (int c = 0; c < COLUMNS; c++) {
            w[r * COLUMNS + c] = 0.5f * (float)((r * 5 + c * 7) % 3 - 1); /* ternary: 2 bits hold it exactly */
            want[r] += w[r * COLUMNS + c] * x[c];
        }
    }
    /* the codes of -1, 0, 1 as bits 0, 1, 2 with scale s and bias -s, lowest column first */
    uint32_t codes[ROWS * COLUMNS / 16] = {0};
    for (int i = 0; i < ROWS * COLUMNS; i++) codes[i / 16] |= (uint32_t)(w[i] * 2 + 1) << (i % 16 * 2);
    setun_mlx_array *q = make(spec_of(SETUN_U32, 2, ROWS, COLUMNS / 16), codes), *s = make(spec_of(SETUN_F32, 2, ROWS, 1), FLOATS(0.5f, 0.5f, 0.5f)), *b = make(spec_of(SETUN_F32, 2, ROWS, 1), FLOATS(-0.5f, -0.5f, -0.5f)), *xs = make(spec_of(SETUN_F32, 2, 1, COLUMNS), x);
    expect_within(__LINE__, SETUN_MLX_OP_DEQUANTIZE, ARRAYS(q, s, b), (asked){INTEGERS(64, 2)}, w, ROWS * COLUMNS, 0);
    expect_within(__LINE__, SETUN_MLX_OP_QUANTIZED_MATMUL, ARRAYS(xs, q, s, b), (asked){INTEGERS(1, 64, 2)}, want, ROWS, 1e-6f);
    tried[SETUN_MLX_OP_QUANTIZE] = true;
    setun_mlx_array *wa = make(spec_of(SETUN_F32, 2, ROWS, COLUMNS), w), *out[3], *back;
    setun_mlx_op_request r = {.op = SETUN_MLX_OP_QUANTIZE, .inputs = &wa, .input_count = 1, .integers = (int64_t[]){64, 4}, .integer_count = 2};
    ok(t->op(stream, &r, out, 3));
    ok(op_on(stream, SETUN_MLX_OP_DEQUANTIZE, out, 3, (asked){INTEGERS(64, 4)}, &back));
    float values[ROWS * COLUMNS];
    ok(t->read(stream, back, values, sizeof values));
    for (int i = 0; i < ROWS * COLUMNS; i++) assert_true(fabsf(values[i] - w[i]) < 0.04f);
    for (int i = 0; i < 3; i++) t->array_release(out[i]);
    setun_mlx_array *all[] = {q, s, b, xs, wa, back};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) t->array_release(all[k]);
}

static void fast(void **state) {
    (void)state;
    setun_mlx_array *x = make(spec_of(SETUN_F32, 2, 1, 4), FLOATS(1, -2, 2, 4)), *w = vector(4, 1, 2, 3, 4);
    about(RMS_NORM, ARRAYS(x), {REALS(0)}, 0.4f, -0.8f, 0.8f, 1.6f); /* rms 2.5 */
    about(RMS_NORM, ARRAYS(x, w), {REALS(0)}, 0.4f, -1.6f, 2.4f, 6.4f);
    about(RMS_NORM, ARRAYS(x, NULL), {REALS(0)}, 0.4f, -0.8f, 0.8f, 1.6f);
    /* position 1 turns (1, 0 | 0, 1) by 1 and by 0.01 radians */
    setun_mlx_array *h = make(spec_of(SETUN_F32, 4, 1, 1, 1, 4), FLOATS(1, 0, 0, 1)), *one = make(spec_of(SETUN_I32, 0), &(int32_t){1}), *periods = vector(2, 1, 100);
    about(ROPE, ARRAYS(h), {INTEGERS(4, 0, 1) COMMA REALS(10000, 1)}, 0.54030231f, -0.0099998333f, 0.84147098f, 0.99995f);
    about(ROPE, ARRAYS(h, one), {INTEGERS(4, 0) COMMA REALS(10000, 1)}, 0.54030231f, -0.0099998333f, 0.84147098f, 0.99995f);
    about(ROPE, ARRAYS(h, NULL, periods), {INTEGERS(4, 0, 1) COMMA REALS(0, 1)}, 0.54030231f, -0.0099998333f, 0.84147098f, 0.99995f);
    about(ROPE, ARRAYS(h), {INTEGERS(4, 1, 1) COMMA REALS(10000, 1)}, 0.54030231f, 0.84147098f, -0.0099998333f, 0.99995f); /* neighbours are pairs */
    /* two tokens, one head of 2: the second token weighs its own value by e / (1 + e) */
    setun_mlx_array *q = make(spec_of(SETUN_F32, 4, 1, 1, 2, 2), FLOATS(0, 0, 1, 0)), *k = make(spec_of(SETUN_F32, 4, 1, 1, 2, 2), FLOATS(0, 0, 2, 0)), *v = make(spec_of(SETUN_F32, 4, 1, 1, 2, 2), FLOATS(1, 10, 3, 30));
    setun_mlx_array *mask = make(spec_of(SETUN_BOOL, 4, 1, 1, 2, 2), (uint8_t[]){1, 0, 1, 1});
    float p = 0.73105858f;
    about(ATTENTION, ARRAYS(q, k, v), {INTEGERS(1) COMMA REALS(0.5)}, 1, 10, 1 + 2 * p, 10 + 20 * p);
    about(ATTENTION, ARRAYS(q, k, v, mask), {INTEGERS(0) COMMA REALS(0.5)}, 1, 10, 1 + 2 * p, 10 + 20 * p);
    about(ATTENTION, ARRAYS(q, k, v), {INTEGERS(0) COMMA REALS(0.5)}, 2, 20, 1 + 2 * p, 10 + 20 * p);
    setun_mlx_array *out;
    fails(op_on(stream, SETUN_MLX_OP_ATTENTION, ARRAYS(q, k, v, mask), (asked){INTEGERS(1), REALS(0.5)}, &out), SETUN_ERROR_ARGUMENT, "causal and a mask");
    setun_mlx_array *all[] = {x, w, h, one, periods, q, k, v, mask};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) t->array_release(all[i]);
}

/* Each row of the list with one thing too few or too many. */
static void refusals(void **state) {
    (void)state;
    static const struct { int i0, i1, n0, n1, r0, r1, outputs; } rows[] = {
#define SETUN_MLX_OP(e, name, i0, i1, n0, n1, r0, r1, o) {i0, i1, n0, n1, r0, r1, o},
#include "backend/mlx/bridge_ops.def"
#undef SETUN_MLX_OP
    };
    setun_mlx_array *x = make(spec_of(SETUN_F32, 2, 2, 2), FLOATS(1, 2, 3, 4)), *many[100], *out[4];
    int64_t integers[32] = {0};
    double reals[8] = {1, 1, 1};
    for (int i = 0; i < 100; i++) many[i] = x;
    for (int op = 0; op < SETUN_MLX_OP_COUNT; op++) {
        setun_mlx_op_request good = {.op = op, .inputs = many, .input_count = rows[op].i0, .integers = integers, .integer_count = rows[op].n0, .reals = reals, .real_count = rows[op].r0, .dtype = SETUN_F32}, r;
        const char *name = t->op_name(op);
        char text[64];
        int n = rows[op].outputs;
        if (rows[op].i0 > 0) {
            r = good;
            r.input_count = rows[op].i0 - 1;
            snprintf(text, sizeof text, "%s: %d inputs", name, r.input_count);
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, text);
            r = good;
            many[0] = NULL;
            snprintf(text, sizeof text, "%s: input 0 is NULL", name);
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, text);
            many[0] = x;
            r.inputs = NULL;
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, name);
        }
        if (rows[op].i1 < 99) {
            r = good;
            r.input_count = rows[op].i1 + 1;
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, "inputs; it takes");
        }
        if (rows[op].n0 > 0) {
            r = good;
            r.integer_count--;
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, "integers; it takes");
        }
        r = good;
        r.integer_count = rows[op].n1 + 1;
        fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, "integers; it takes");
        r = good;
        r.real_count = rows[op].r1 + 1;
        fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, "reals; it takes");
        r = good;
        snprintf(text, sizeof text, "%s: it has %d outputs, not %d", name, n, n + 1);
        fails(t->op(stream, &r, out, n + 1), SETUN_ERROR_ARGUMENT, text);
        for (int i = 0; i <= n; i++) assert_null(out[i]);
        if (rows[op].n1 > 0) {
            r = good;
            r.integer_count = rows[op].n0 > 0 ? rows[op].n0 : 1;
            integers[0] = (int64_t)1 << 40;
            fails(t->op(stream, &r, out, n), SETUN_ERROR_ARGUMENT, "does not fit in 32 bits");
            integers[0] = 0;
        }
    }
    setun_mlx_op_request r = {.op = SETUN_MLX_OP_COUNT};
    fails(t->op(stream, &r, out, 1), SETUN_ERROR_ARGUMENT, "is unknown");
    r.op = -1;
    fails(t->op(stream, &r, out, 1), SETUN_ERROR_ARGUMENT, "operation -1");
    fails(t->op(stream, NULL, out, 1), SETUN_ERROR_ARGUMENT, "NULL");
    r.op = SETUN_MLX_OP_ADD;
    fails(t->op(NULL, &r, out, 1), SETUN_ERROR_ARGUMENT, "stream");
    /* MLX's own refusals come through with its words */
    setun_mlx_array *three = vector(3, 1, 2, 3), *ids = make(spec_of(SETUN_F32, 1, 1), FLOATS(0));
    fails(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(x, three), (asked){0}, out), SETUN_ERROR_ARGUMENT, "broadcast");
    fails(op_on(stream, SETUN_MLX_OP_MATMUL, ARRAYS(x, three), (asked){0}, out), SETUN_ERROR_ARGUMENT, "matmul");
    fails(op_on(stream, SETUN_MLX_OP_RESHAPE, ARRAYS(x), (asked){INTEGERS(3, 3)}, out), SETUN_ERROR_ARGUMENT, "reshape");
    fails(op_on(stream, SETUN_MLX_OP_SUM, ARRAYS(x), (asked){INTEGERS(0, 5)}, out), SETUN_ERROR_ARGUMENT, "axis");
    fails(op_on(stream, SETUN_MLX_OP_TAKE, ARRAYS(x, ids), (asked){INTEGERS(0)}, out), SETUN_ERROR_ARGUMENT, "ndices");
    fails(op_on(stream, SETUN_MLX_OP_BITWISE_AND, ARRAYS(x, x), (asked){0}, out), SETUN_ERROR_DEVICE, "bitwise"); /* floats: MLX throws a runtime_error */
    fails(op_on(stream, SETUN_MLX_OP_ASTYPE, ARRAYS(x), (asked){.dtype = (setun_dtype)50}, out), SETUN_ERROR_ARGUMENT, "dtype 50");
    fails(op_on(stream, SETUN_MLX_OP_SLICE, ARRAYS(x), (asked){INTEGERS(0, 1, 2)}, out), SETUN_ERROR_ARGUMENT, "slice: 3 integers for rank 2");
    fails(op_on(stream, SETUN_MLX_OP_FULL, NO_INPUT, (asked){INTEGERS(INT32_MAX, 1 << 20), REALS(0), .dtype = SETUN_F32}, out), SETUN_ERROR_MEMORY, "this machine has");
    assert_null(out[0]);
    t->array_release(three);
    t->array_release(ids);
    t->array_release(x);
}

static void none_was_forgotten(void **state) {
    (void)state;
    for (int op = 0; op < SETUN_MLX_OP_COUNT; op++)
        if (!tried[op]) fail_msg("%s has no test of its values", t->op_name(op));
    setun_mlx_counters c;
    t->counters(&c);
    assert_int_equal(c.arrays, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_input), cmocka_unit_test(two_inputs), cmocka_unit_test(shapes), cmocka_unit_test(along_axes), cmocka_unit_test(quantised),
                                       cmocka_unit_test(fast), cmocka_unit_test(refusals), cmocka_unit_test(none_was_forgotten)};
    int status = open_mlx();
    if (status) return status;
    status = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return status;
}
