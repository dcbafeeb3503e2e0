/*
 * check.c - does a device compute what the kernels' host form computes? Every kernel that plans use, over small random numbers, compared bit for bit;
 * and what the device reaches: bytes it reads a second, the time of a call. Caller: `setun bench --report`, through setun_device_check.
 */
#include "backend/mlx/cases.h"
#include "backend/mlx/tune.h"

#include <math.h>

/* What is asked of a kernel beside its plain form. */
typedef struct variant { setun_gpu_kernel_id kernel; const char *name; int tokens, weights; bool gated, row_scales, residual, append, split; } variant;
static const variant variants[] = {
    {SETUN_GPU_rms_norm, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_rms_norm_quantize, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_quantize, "", 5, 1, 0, 0, 0, 0, 0},
    {SETUN_GPU_ternary_matvec, "one token", 1, 1, 0, 0, 1, 0, 0}, {SETUN_GPU_ternary_matvec, "q, k, v", 3, 3, 0, 1, 0, 0, 0}, {SETUN_GPU_ternary_matvec, "gated", 1, 2, 1, 0, 0, 0, 0},
    {SETUN_GPU_ternary_matmul, "", 37, 1, 0, 1, 1, 0, 0}, {SETUN_GPU_ternary_matmul, "gated", 37, 2, 1, 0, 0, 0, 0}, {SETUN_GPU_ternary_matmul_matrix, "", 37, 1, 0, 1, 1, 0, 0},
    {SETUN_GPU_ternary_float, "", 3, 1, 0, 1, 1, 0, 0}, {SETUN_GPU_dense_matvec, "", 3, 1, 0, 0, 1, 0, 0}, {SETUN_GPU_embedding, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_select_rows, "", 5, 1, 0, 0, 0, 0, 0},
    {SETUN_GPU_unary, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_binary, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_gate_scaled, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_softmax, "", 5, 1, 0, 0, 0, 0, 0},
    {SETUN_GPU_l2_normalize, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_hadamard, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_rope, "", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_kv_append, "", 5, 1, 0, 0, 0, 0, 0},
    {SETUN_GPU_attention, "several tokens", 5, 1, 0, 0, 0, 0, 0}, {SETUN_GPU_attention, "with its own keys", 1, 1, 0, 0, 0, 1, 0}, {SETUN_GPU_attention, "split", 2, 1, 0, 0, 0, 0, 1},
    {SETUN_GPU_attention_combine, "", 2, 1, 0, 0, 0, 0, 1},
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

typedef struct outcome { bool same; double error; } outcome; /* error: the largest difference over the largest value */

static double value_at(const void *values, setun_dtype dtype, int64_t i)
{
    switch (dtype) {
    case SETUN_F32: return ((const float *)values)[i];
    case SETUN_F16: return setun_f16_to_f32(((const uint16_t *)values)[i]);
    case SETUN_BF16: return setun_bf16_to_f32(((const uint16_t *)values)[i]);
    case SETUN_I32: return ((const int32_t *)values)[i];
    case SETUN_I8: return ((const int8_t *)values)[i];
    default: return ((const uint8_t *)values)[i];
    }
}

static void compare(const void *want, const void *got, setun_dtype dtype, int64_t count, outcome *out)
{
    if (count == 0 || !memcmp(want, got, (size_t)count * setun_dtype_bytes(dtype))) return;
    double largest = 0, difference = 0;
    out->same = false;
    for (int64_t i = 0; i < count; i++) {
        double a = value_at(want, dtype, i), d = fabs(value_at(got, dtype, i) - a);
        if (fabs(a) > largest) largest = fabs(a);
        if (!(d <= difference)) difference = isnan(d) ? INFINITY : d;
    }
    double error = largest > 0 ? difference / largest : difference;
    if (!(error <= out->error)) out->error = error;
}

/* An array of the device against what the host form left; `want` of `count` elements. */
static setun_status compare_array(setun_gpu_runner *r, setun_mlx_array *array, const setun_mlx_spec *spec, const void *want, int64_t count, const char *name, outcome *out)
{
    uint64_t bytes = setun_gpu_spec_bytes(spec);
    void *got = setun_alloc((size_t)bytes);
    if (!got) return setun_fail_memory((size_t)bytes);
    setun_status status = setun_mlx_check(r->table, r->table->read(r->stream, array, got, (size_t)bytes), name);
    if (status == SETUN_OK) compare(want, got, spec->dtype, count, out);
    setun_free(got);
    return status;
}

static setun_status check_case(setun_gpu_runner *r, const setun_gpu_case *c, outcome *out)
{
    void *want[SETUN_GPU_OUTPUTS_MAX], *written[SETUN_GPU_INPUTS_MAX];
    setun_mlx_array *outputs[SETUN_GPU_OUTPUTS_MAX] = {NULL};
    setun_gpu_case_arrays arrays;
    *out = (outcome){.same = true};
    SETUN_TRY(setun_gpu_case_expect(c, want, written));
    setun_status status = setun_gpu_case_upload(r, c, &arrays);
    if (status == SETUN_OK) {
        status = setun_gpu_case_call(r, c, &arrays, NULL, outputs);
        if (status == SETUN_OK) status = setun_mlx_check(r->table, r->table->eval(r->stream, outputs, c->kernel->output_count, true), c->kernel->name);
        for (int i = 0; i < c->kernel->output_count && status == SETUN_OK; i++)
            if (c->defined[i]) status = compare_array(r, outputs[i], &c->output_spec[i], want[i], c->defined[i], c->kernel->name, out);
        for (int i = 0; i < c->kernel->input_count && status == SETUN_OK; i++)
            if (written[i]) status = compare_array(r, arrays.input[i], &c->input_spec[i], written[i], (int64_t)(setun_gpu_spec_bytes(&c->input_spec[i]) / setun_dtype_bytes(c->input_spec[i].dtype)), c->kernel->name, out);
        for (int i = 0; i < c->kernel->output_count; i++) r->table->array_release(outputs[i]);
        setun_gpu_case_release(r, &arrays);
    }
    for (int i = 0; i < SETUN_GPU_OUTPUTS_MAX; i++) setun_free(want[i]);
    for (int i = 0; i < SETUN_GPU_INPUTS_MAX; i++) setun_free(written[i]);
    return status;
}

/* A sum over an array that no cache holds: what the device reads at, by MLX's own kernel. */
static setun_status measure_read(const setun_mlx *mlx, double *out_bytes_per_second)
{
    const setun_mlx_table *t = mlx->table;
    bool host = mlx->device.backend == SETUN_MLX_CPU;
    uint64_t bytes = host ? (uint64_t)64 << 20 : (uint64_t)1 << 30, most = mlx->device.free_bytes ? mlx->device.free_bytes : mlx->device.memory_bytes;
    while (bytes > ((uint64_t)1 << 20) && bytes > most / 8) bytes /= 2;
    setun_mlx_array *full = NULL, *values = NULL;
    setun_mlx_op_request fill = {.op = SETUN_MLX_OP_FULL, .integers = (const int64_t[]){(int64_t)(bytes / 4)}, .integer_count = 1, .reals = (const double[]){1.0}, .real_count = 1, .dtype = SETUN_F32};
    setun_status status = t->op(mlx->stream, &fill, &full, 1);
    if (status == SETUN_OK) status = t->op(mlx->stream, &(setun_mlx_op_request){.op = SETUN_MLX_OP_COPY, .inputs = &full, .input_count = 1}, &values, 1);
    if (status == SETUN_OK) status = t->eval(mlx->stream, &values, 1, true);
    double best = 1e30;
    for (int i = 0; i < 6 && status == SETUN_OK; i++) {
        setun_mlx_array *sum = NULL;
        double start = setun_seconds();
        status = t->op(mlx->stream, &(setun_mlx_op_request){.op = SETUN_MLX_OP_SUM, .inputs = &values, .input_count = 1, .integers = (const int64_t[]){0}, .integer_count = 1}, &sum, 1);
        if (status == SETUN_OK) status = t->eval(mlx->stream, &sum, 1, true);
        double seconds = setun_seconds() - start;
        if (i > 0 && seconds < best) best = seconds; /* the first compiles */
        t->array_release(sum);
    }
    t->array_release(full);
    t->array_release(values);
    SETUN_TRY(setun_mlx_check(t, status, "reading memory"));
    *out_bytes_per_second = (double)bytes / best;
    return SETUN_OK;
}

static void outcome_json(setun_string *s, bool first, const setun_gpu_kernel *k, const variant *v, setun_dtype type, setun_status status, const outcome *o)
{
    setun_string_printf(s, "%s\n  {\"kernel\": \"%s\", \"form\": \"%s\", \"type\": \"%s\", ", first ? "" : ",", k->name, v->name, setun_dtype_name(type));
    if (status == SETUN_OK) setun_string_printf(s, "\"same_bits\": %s, \"error\": %.3g}", o->same ? "true" : "false", isfinite(o->error) ? o->error : 1e300);
    else {
        setun_string_puts(s, "\"same_bits\": false, \"problem\": ");
        setun_string_json(s, setun_error(), strlen(setun_error()));
        setun_string_puts(s, "}");
    }
}

setun_status setun_device_check(setun_context *context, const char *device, setun_progress_fn progress, void *user, char **out_json)
{
    if (!context || !device || !out_json) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_check: %s is NULL", !context ? "context" : device ? "out_json" : "device");
    *out_json = NULL;
    if (!strcmp(device, "cpu")) return setun_fail(SETUN_ERROR_UNSUPPORTED, "the CPU backend's kernels are compared with the reference ones by another context's isa");
    setun_mlx *mlx;
    SETUN_TRY(setun_mlx_open(context, device, &mlx));
    setun_tuned tuned;
    setun_mlx_tuned(context, &mlx->device, &tuned);
    setun_gpu_runner runner = {.table = mlx->table, .stream = mlx->stream, .device = mlx->device.backend};
    static const setun_dtype types[] = {SETUN_F32, SETUN_BF16};
    int same = 0, checked = 0, failed = 0;
    setun_string s = {0};
    setun_string_printf(&s, "{\"device\": \"%s\", \"kernels\": [", mlx->id);
    setun_status status = SETUN_OK;
    for (int i = 0; i < VARIANTS && status == SETUN_OK; i++)
        for (int k = 0; k < 2 && status == SETUN_OK; k++) {
            const variant *v = &variants[i];
            setun_gpu_case_options o = {.kernel = v->kernel, .type = types[k], .columns = 1160, .rows = 77, .tokens = v->tokens, .weights = v->weights, .gated = v->gated, .row_scales = v->row_scales,
                                        .residual = v->residual, .heads = 6, .kv_heads = 2, .head_size = 64, .length = 600, .append = v->append, .split = v->split, .tuning = tuned.values, .seed = (uint64_t)(i * 2 + k + 1)};
            if (v->kernel == SETUN_GPU_ternary_matmul_matrix) { /* the host multiplies its matrices element by element */
                o.columns = 200;
                o.rows = 40;
                o.tokens = 19;
            }
            setun_gpu_case c;
            outcome result = {false, 0};
            status = setun_gpu_case_make(&o, &c);
            if (status != SETUN_OK) break;
            setun_status one = check_case(&runner, &c, &result); /* a kernel that does not compile is a finding, not the end */
            setun_gpu_case_free(&c);
            outcome_json(&s, checked == 0, setun_gpu_kernel_get(v->kernel), v, types[k], one, &result);
            checked++;
            same += one == SETUN_OK && result.same;
            failed += one != SETUN_OK;
            if (progress && !progress(user, "kernels", (uint64_t)checked, 2 * VARIANTS)) status = setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
        }
    setun_gpu_runner_close(&runner);
    double read = 0;
    setun_tune_rates rates = {0};
    if (status == SETUN_OK) status = measure_read(mlx, &read);
    if (status == SETUN_OK) status = setun_tune_rates_of(mlx, &tuned.values, &rates);
    if (status != SETUN_OK) {
        setun_string_clear(&s);
        return status;
    }
    setun_string_printf(&s, "\n ], \"checked\": %d, \"same_bits\": %d, \"failed\": %d, \"not_checked\": [\"head_limbs\", \"head_scores\", \"head_threshold\", \"head_rescore\"]", checked, same, failed);
    setun_string_printf(&s, ", \"read_bytes_per_second\": %.6g, \"ternary_bytes_per_second\": %.6g, \"ternary_prompt_operations_per_second\": %.6g, \"call_seconds\": %.6g}", read, rates.ternary_bytes_per_second,
                        rates.prompt_operations_per_second, rates.call_seconds);
    return setun_string_take(&s, out_json, NULL);
}
