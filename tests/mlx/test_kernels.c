/*
 * Kernels of our own as MLX operations: C functions on the CPU, what they are given, how they fail; text and binaries for GPUs are
 * refused with their names where there is none. Functions: traced once, compiled or not, errors from inside.
 */
#include "mlx_test.h"
#include <stdatomic.h>

static atomic_int runs;

/* out0 = a * factor + row sum of b (int8), out1 = how often it ran; factor from the parameters */
typedef struct parameters { double unused; float factor; int32_t fail; } parameters;
static int blend(const setun_mlx_host_call *c) {
    const parameters *p = c->parameters;
    if (p->fail) return p->fail;
    if (c->parameter_bytes != sizeof *p || (uintptr_t)p % 16 || c->input_count != 2 || c->output_count != 2) return 90;
    if (c->input_specs[0].dtype != SETUN_F32 || c->input_specs[1].dtype != SETUN_I8 || c->output_specs[1].dtype != SETUN_I32) return 91;
    if (c->grid[0] != 7 || c->grid[2] != 3 || c->group[1] != 5 || c->user != &runs) return 92;
    int rows = (int)c->input_specs[1].dim[0], columns = (int)c->input_specs[1].dim[1];
    const float *a = c->inputs[0];
    const int8_t *b = c->inputs[1];
    float *out = c->outputs[0];
    for (int i = 0; i < rows; i++) {
        int sum = 0;
        for (int j = 0; j < columns; j++) sum += b[i * columns + j];
        out[i] = a[i] * p->factor + (float)sum;
    }
    *(int32_t *)c->outputs[1] = atomic_fetch_add((atomic_int *)c->user, 1) + 1;
    return 0;
}

static setun_mlx_kernel *kernel_of(setun_mlx_host_fn fn, int inputs, int outputs, void *user, bool pure, bool any_layout) {
    setun_mlx_kernel_options o = {.kind = SETUN_MLX_KERNEL_HOST, .name = "test_kernel", .input_count = inputs, .output_count = outputs, .host = fn, .user = user, .pure = pure, .any_layout = any_layout};
    setun_mlx_kernel *k;
    ok(t->kernel_create(&o, &k));
    return k;
}

static void a_c_function(void **state) {
    (void)state;
    setun_mlx_kernel *k = kernel_of(blend, 2, 2, &runs, false, false);
    setun_mlx_array *a = vector(3, 1, 2, 3), *b = make(spec_of(SETUN_I8, 2, 2, 3), (int8_t[]){1, 2, 3, 10, 20, 30}), *turned, *out[2];
    ok(op_on(stream, SETUN_MLX_OP_TRANSPOSE, ARRAYS(b), (asked){0}, &turned)); /* [3, 2] with strides: made row-major for the kernel */
    setun_mlx_spec specs[2] = {spec_of(SETUN_F32, 1, 3), spec_of(SETUN_I32, 0)};
    parameters p = {.factor = 100};
    setun_mlx_call call = {.inputs = (setun_mlx_array *[]){a, turned}, .input_count = 2, .outputs = specs, .output_count = 2, .grid = {7, 1, 3}, .group = {1, 5, 1}, .parameters = &p, .parameter_bytes = sizeof p};
    ok(t->kernel_call(stream, k, &call, out));
    p.factor = 5; /* the call has its own copy */
    float back[3];
    int32_t times;
    ok(t->read(stream, out[0], back, sizeof back));
    ok(t->read(stream, out[1], &times, sizeof times));
    assert_memory_equal(back, FLOATS(111, 222, 333), sizeof back);
    assert_int_equal(times, 1); /* two outputs, one run */
    t->array_release(out[0]);
    t->array_release(out[1]);
    /* a kernel that fails: at the evaluation, with its name; the stream goes on */
    p.fail = 7;
    setun_mlx_counters counters;
    for (int how = 0; how < 3; how++) {
        ok(t->kernel_call(stream, k, &call, out));
        if (how == 0) fails(t->eval(stream, out, 2, true), SETUN_ERROR_DEVICE, "test_kernel: returned 7");
        else if (how == 1) fails(t->read(stream, out[0], back, sizeof back), SETUN_ERROR_DEVICE, "returned 7");
        else {
            setun_status status = t->eval(stream, out, 2, false); /* says it at once where the kernel was quicker than the call */
            if (status == SETUN_OK) status = t->stream_synchronize(stream);
            fails(status, SETUN_ERROR_DEVICE, "returned 7");
        }
        t->array_release(out[0]);
        t->array_release(out[1]);
        setun_mlx_array *sum;
        ok(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(a, a), (asked){0}, &sum));
        ok(t->read(stream, sum, back, sizeof back));
        assert_memory_equal(back, FLOATS(2, 4, 6), sizeof back);
        t->array_release(sum);
    }
    t->counters(&counters);
    assert_true(counters.host_kernels_run >= 4);
    /* what a call refuses */
    setun_mlx_call bad = call;
    bad.input_count = 1;
    fails(t->kernel_call(stream, k, &bad, out), SETUN_ERROR_ARGUMENT, "1 inputs and 2 outputs; it has 2 and 2");
    assert_null(out[0]);
    bad = call;
    bad.parameters = NULL;
    fails(t->kernel_call(stream, k, &bad, out), SETUN_ERROR_ARGUMENT, "parameters are NULL");
    bad = call;
    bad.inputs = (setun_mlx_array *[]){a, NULL};
    fails(t->kernel_call(stream, k, &bad, out), SETUN_ERROR_ARGUMENT, "input 1 is NULL");
    specs[0].dim[0] = -3;
    fails(t->kernel_call(stream, k, &call, out), SETUN_ERROR_ARGUMENT, "dimension 0 is -3");
    specs[0] = spec_of(SETUN_F32, 2, INT32_MAX, 1 << 20);
    p.fail = 0;
    ok(t->kernel_call(stream, k, &call, out));
    fails(t->eval(stream, out, 2, true), SETUN_ERROR_MEMORY, "this machine has");
    t->array_release(out[0]);
    t->array_release(out[1]);
    fails(t->kernel_call(stream, NULL, &call, out), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->kernel_call(stream, k, NULL, out), SETUN_ERROR_ARGUMENT, "NULL");
    fails(t->kernel_call(NULL, k, &call, out), SETUN_ERROR_ARGUMENT, "stream");
    t->kernel_release(k);
    /* a kernel that takes any layout is given dense inputs only */
    k = kernel_of(blend, 2, 2, &runs, false, true);
    specs[0] = spec_of(SETUN_F32, 1, 3);
    ok(t->kernel_call(stream, k, &call, out));
    fails(t->eval(stream, out, 2, true), SETUN_ERROR_ARGUMENT, "not row-major");
    t->array_release(out[0]);
    t->array_release(out[1]);
    t->kernel_release(k);
    t->array_release(a);
    t->array_release(b);
    t->array_release(turned);
}

static int nothing(const setun_mlx_host_call *c) { return c->parameters || c->parameter_bytes ? 1 : 0; }

static void outputs_are_filled_first(void **state) {
    (void)state;
    static const setun_dtype dtypes[] = {SETUN_F32, SETUN_F16, SETUN_BF16, SETUN_I32, SETUN_I8, SETUN_U8, SETUN_I64, SETUN_U32, SETUN_BOOL, SETUN_I16, SETUN_U16, SETUN_U64, SETUN_F64};
    setun_mlx_kernel *k = kernel_of(nothing, 0, 1, NULL, false, false);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        setun_mlx_spec spec = spec_of(dtypes[i], 1, 5);
        setun_mlx_call call = {.outputs = &spec, .output_count = 1, .initialise = true, .initial = 3};
        setun_mlx_array *out, *as_float;
        ok(t->kernel_call(stream, k, &call, &out));
        ok(op_on(stream, SETUN_MLX_OP_ASTYPE, ARRAYS(out), (asked){.dtype = SETUN_F32}, &as_float));
        float back[5];
        ok(t->read(stream, as_float, back, sizeof back));
        float v = dtypes[i] == SETUN_BOOL ? 1 : 3;
        for (int j = 0; j < 5; j++) assert_true(back[j] == v);
        t->array_release(out);
        t->array_release(as_float);
    }
    t->kernel_release(k);
}

static void kernels_refused(void **state) {
    (void)state;
    setun_mlx_kernel *k;
    setun_mlx_kernel_options o = {.kind = SETUN_MLX_KERNEL_HOST, .name = "k", .output_count = 1};
    fails(t->kernel_create(&o, &k), SETUN_ERROR_ARGUMENT, "k has no function");
    assert_null(k);
    o.name = "";
    fails(t->kernel_create(&o, &k), SETUN_ERROR_ARGUMENT, "no name");
    fails(t->kernel_create(NULL, &k), SETUN_ERROR_ARGUMENT, "no name");
    o.name = "k";
    o.output_count = 0;
    fails(t->kernel_create(&o, &k), SETUN_ERROR_ARGUMENT, "at least one output");
    o.output_count = 1;
    o.kind = (setun_mlx_kernel_kind)9;
    fails(t->kernel_create(&o, &k), SETUN_ERROR_ARGUMENT, "kind 9");
    static const setun_mlx_kernel_kind kinds[] = {SETUN_MLX_KERNEL_METAL, SETUN_MLX_KERNEL_CUDA, SETUN_MLX_KERNEL_CUDA_BINARY};
    for (int i = 0; i < 3; i++) {
        o.kind = kinds[i];
        o.source = NULL;
        fails(t->kernel_create(&o, &k), SETUN_ERROR_ARGUMENT, "has no");
        if (t->device_count(true) > 0) continue;
        o.source = "out[0] = 1;";
        o.source_bytes = 11;
        o.output_names = (const char *[]){"out"};
        fails(t->kernel_create(&o, &k), SETUN_ERROR_UNSUPPORTED, "which this MLX does not have");
    }
}

/* ---- functions ---- */
static int square_runs;
static int square(const setun_mlx_host_call *c) {
    square_runs++; /* one stream, one thread */
    const float *x = c->inputs[0];
    float *y = c->outputs[0];
    for (int64_t i = 0; i < c->input_specs[0].dim[0]; i++) y[i] = x[i] * x[i];
    return 0;
}

typedef struct built { setun_mlx_kernel *kernel; int builds; enum { GOOD, SAYS, BREAKS, EMPTY, EVALUATES } how; } built;

/* two equal calls of a pure kernel and their concatenation */
static setun_status build(void *user, setun_mlx_array *const *inputs, int n, setun_mlx_array **outputs, int output_count) {
    built *b = user;
    b->builds++;
    assert_int_equal(n, 1);
    assert_int_equal(output_count, 1);
    if (b->how == SAYS) return SETUN_ERROR_CANCELLED;
    if (b->how == EMPTY) return SETUN_OK;
    if (b->how == EVALUATES) {
        setun_mlx_array *x;
        setun_status status = op_on(stream, SETUN_MLX_OP_EXP, ARRAYS(inputs[0]), (asked){0}, &x);
        if (status == SETUN_OK) status = t->eval(stream, &x, 1, true);
        t->array_release(x);
        return status;
    }
    if (b->how == BREAKS) return op_on(stream, SETUN_MLX_OP_RESHAPE, ARRAYS(inputs[0]), (asked){INTEGERS(1000)}, outputs);
    setun_mlx_array_info info;
    setun_status status = t->array_get(inputs[0], &info);
    setun_mlx_call call = {.inputs = inputs, .input_count = 1, .outputs = &info.spec, .output_count = 1};
    setun_mlx_array *x = NULL, *y = NULL;
    if (status == SETUN_OK) status = t->kernel_call(stream, b->kernel, &call, &x);
    if (status == SETUN_OK) status = t->kernel_call(stream, b->kernel, &call, &y);
    if (status == SETUN_OK) status = op_on(stream, SETUN_MLX_OP_CONCATENATE, ARRAYS(x, y), (asked){INTEGERS(0)}, outputs);
    t->array_release(x);
    t->array_release(y);
    return status;
}

static setun_status turn(void *user, setun_mlx_array *const *inputs, int n, setun_mlx_array **outputs, int output_count) {
    (void)n;
    (void)output_count;
    *(int *)user += 1;
    return op_on(stream, SETUN_MLX_OP_TRANSPOSE, ARRAYS(inputs[0]), (asked){0}, outputs);
}
static setun_status stretch(void *user, setun_mlx_array *const *inputs, int n, setun_mlx_array **outputs, int output_count) {
    (void)n;
    (void)output_count;
    *(int *)user += 1;
    return op_on(stream, SETUN_MLX_OP_RESHAPE, ARRAYS(inputs[0]), (asked){INTEGERS(4)}, outputs);
}

/* Compiled graphs of functions that are alive at once, and of one made when another is gone, are not each other's. */
static void functions_apart(void **state) {
    (void)state;
    ok(t->compile_set(true));
    setun_mlx_array *x = make(spec_of(SETUN_F32, 2, 2, 2), FLOATS(1, 2, 3, 4)), *y;
    float back[4];
    int turns = 0, stretches = 0;
    for (int round = 0; round < 4; round++) {
        setun_mlx_function *f, *g;
        ok(t->function_create(stream, turn, &turns, false, &f));
        ok(t->function_call(f, &x, 1, &y, 1));
        ok(t->read(stream, y, back, sizeof back));
        assert_memory_equal(back, FLOATS(1, 3, 2, 4), sizeof back);
        t->array_release(y);
        if (round % 2) t->function_release(f);
        ok(t->function_create(stream, stretch, &stretches, false, &g));
        ok(t->function_call(g, &x, 1, &y, 1));
        ok(t->read(stream, y, back, sizeof back));
        assert_memory_equal(back, FLOATS(1, 2, 3, 4), sizeof back);
        t->array_release(y);
        t->function_release(g);
        if (round % 2 == 0) t->function_release(f);
        assert_true(turns == round + 1 && stretches == round + 1); /* each was traced itself */
    }
    ok(t->compile_set(false));
    t->array_release(x);
}

static void functions(void **state) {
    (void)state;
    built b = {.kernel = kernel_of(square, 1, 1, NULL, true, false)};
    for (int compiled = 0; compiled < 2; compiled++) {
        setun_mlx_function *f;
        ok(t->function_create(stream, build, &b, false, &f));
        assert_false(t->compile_get(stream) != (compiled == 1));
        ok(t->compile_set(compiled));
        assert_int_equal(t->compile_get(stream), compiled);
        b.builds = square_runs = 0;
        const int sizes[] = {3, 3, 3, 2, 3};
        for (int i = 0; i < 5; i++) {
            setun_mlx_array *x = make(spec_of(SETUN_F32, 1, sizes[i]), FLOATS(1, 2 + (float)i, 3)), *y;
            ok(t->function_call(f, &x, 1, &y, 1));
            float back[6];
            ok(t->read(stream, y, back, (size_t)sizes[i] * 8));
            for (int j = 0; j < 2; j++) assert_true(back[j * sizes[i]] == 1 && back[j * sizes[i] + 1] == (2 + (float)i) * (2 + (float)i));
            t->array_release(x);
            t->array_release(y);
        }
        assert_int_equal(b.builds, compiled ? 2 : 5);       /* a graph for each shape, or one for each call */
        assert_int_equal(square_runs, compiled ? 5 : 10);   /* compiling merges equal pure calls */
        t->function_release(f);
        ok(t->compile_set(compiled == 0));
    }
    ok(t->compile_set(false));
    /* what goes wrong inside */
    setun_mlx_function *f;
    setun_mlx_array *x = vector(3, 1, 2, 3), *y, *many[2];
    for (int compiled = 0; compiled < 2; compiled++) {
        ok(t->compile_set(compiled));
        ok(t->function_create(stream, build, &b, false, &f));
        b.how = SAYS;
        fails(t->function_call(f, &x, 1, &y, 1), SETUN_ERROR_CANCELLED, "gave up");
        assert_null(y);
        b.how = BREAKS;
        fails(t->function_call(f, &x, 1, &y, 1), SETUN_ERROR_ARGUMENT, "building the function's graph: ");
        b.how = EMPTY;
        fails(t->function_call(f, &x, 1, &y, 1), SETUN_ERROR_STATE, "output 0 empty");
        if (compiled) {
            b.how = EVALUATES;
            fails(t->function_call(f, &x, 1, &y, 1), SETUN_ERROR_ARGUMENT, "eval");
        }
        b.how = GOOD;
        ok(t->function_call(f, &x, 1, &y, 1)); /* and is whole again */
        t->array_release(y);
        fails(t->function_call(f, (setun_mlx_array *[]){NULL}, 1, &y, 1), SETUN_ERROR_ARGUMENT, "input 0 is NULL");
        fails(t->function_call(f, &x, 1, NULL, 0), SETUN_ERROR_ARGUMENT, "no outputs");
        if (compiled) fails(t->function_call(f, &x, 1, many, 2), SETUN_ERROR_ARGUMENT, "1 outputs, not 2");
        t->function_release(f);
    }
    ok(t->compile_set(false));
    fails(t->function_call(NULL, &x, 1, &y, 1), SETUN_ERROR_ARGUMENT, "function is NULL");
    fails(t->function_create(stream, NULL, NULL, false, &f), SETUN_ERROR_ARGUMENT, "no function");
    fails(t->function_create(NULL, build, NULL, false, &f), SETUN_ERROR_ARGUMENT, "stream");
    assert_null(f);
    assert_false(t->compile_get(NULL));
    t->array_release(x);
    t->kernel_release(b.kernel);
    setun_mlx_counters c;
    t->counters(&c);
    assert_true(c.arrays == 0 && c.kernels == 0 && c.functions == 0 && c.traces > 0 && c.function_calls > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_c_function), cmocka_unit_test(outputs_are_filled_first), cmocka_unit_test(kernels_refused), cmocka_unit_test(functions_apart), cmocka_unit_test(functions)};
    int status = open_mlx();
    if (status) return status;
    status = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return status;
}
