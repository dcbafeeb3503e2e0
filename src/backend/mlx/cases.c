/*
 * cases.c - see backend/mlx/cases.h. One function a group of kernels writes what lower_steps.c would give them; numbers come from a seed.
 */
#include "backend/mlx/cases.h"
#include "backend/mlx/mlx.h"
#include "ternary/ternary.h"

enum { SMALLEST = 8, NUMBERS = 20 }; /* Metal passes smaller arrays in another address space */

typedef struct maker { const setun_gpu_case_options *o; setun_gpu_case *c; uint64_t state; int inputs, outputs, parameters; bool failed; } maker;

static uint32_t next_random(maker *m) /* xorshift64*, Vigna 2014 */
{
    m->state ^= m->state >> 12;
    m->state ^= m->state << 25;
    m->state ^= m->state >> 27;
    return (uint32_t)((m->state * 2685821657736338717ull) >> 32);
}

uint64_t setun_gpu_spec_bytes(const setun_mlx_spec *spec)
{
    uint64_t bytes = setun_dtype_bytes(spec->dtype);
    for (int i = 0; i < spec->rank; i++)
        if (!setun_mul_ok(bytes, (uint64_t)spec->dim[i], &bytes)) return UINT64_MAX;
    return bytes;
}

static int64_t at_least(int64_t n) { return n < SMALLEST ? SMALLEST : n; }

static void *input(maker *m, setun_mlx_spec spec)
{
    if (m->failed) return NULL;
    uint64_t bytes = setun_gpu_spec_bytes(&spec);
    void *memory = bytes < SIZE_MAX / 2 ? setun_calloc(1, (size_t)bytes) : NULL;
    if (!memory) m->failed = true;
    m->c->input_spec[m->inputs] = spec;
    m->c->input[m->inputs++] = memory;
    return memory;
}
static setun_mlx_spec vector_of(setun_dtype dtype, int64_t n) { return (setun_mlx_spec){dtype, 1, {at_least(n)}}; }
static setun_mlx_spec matrix_of(setun_dtype dtype, int64_t rows, int64_t columns) { return (setun_mlx_spec){dtype, 2, {rows, columns}}; }

static void fill_reals(maker *m, void *memory, setun_dtype type, uint64_t count, float low, float high)
{
    for (uint64_t i = 0; memory && i < count; i++) {
        float v = low + (high - low) * ((float)(next_random(m) >> 8) * (1.0f / 16777216.0f));
        if (type == SETUN_F32) ((float *)memory)[i] = v;
        else ((uint16_t *)memory)[i] = type == SETUN_F16 ? setun_f32_to_f16(v) : setun_f32_to_bf16(v);
    }
}
static void *reals(maker *m, setun_mlx_spec spec, float low, float high)
{
    void *memory = input(m, spec);
    fill_reals(m, memory, spec.dtype, setun_gpu_spec_bytes(&spec) / setun_dtype_bytes(spec.dtype), low, high);
    return memory;
}
static void unused(maker *m, setun_dtype dtype) { input(m, vector_of(dtype, SMALLEST)); }

static void integers(maker *m, int count, const int32_t *values)
{
    int32_t *memory = input(m, vector_of(SETUN_I32, count > NUMBERS ? count : NUMBERS));
    if (memory) memcpy(memory, values, (size_t)count * sizeof *values);
}
static void sizes(maker *m, int count, const int32_t *values)
{
    m->c->sizes = m->inputs;
    integers(m, count, values);
}
static void factors(maker *m, int count, const float *values)
{
    float *memory = input(m, vector_of(SETUN_F32, NUMBERS));
    if (memory) memcpy(memory, values, (size_t)count * sizeof *values);
}
#define SIZES(...) sizes(m, (int)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)), (const int32_t[]){__VA_ARGS__})
#define FACTORS(...) factors(m, (int)(sizeof(float[]){__VA_ARGS__} / sizeof(float)), (const float[]){__VA_ARGS__})
#define TEMPLATES(...) templates(m, (int)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)), (const int32_t[]){__VA_ARGS__})
static void templates(maker *m, int count, const int32_t *values) { memcpy(m->c->templates, values, (size_t)count * sizeof *values); }

/* defined -1: all of it */
static void output_of(maker *m, setun_mlx_spec spec, int64_t defined)
{
    m->c->defined[m->outputs] = defined >= 0 ? defined : (int64_t)(setun_gpu_spec_bytes(&spec) / setun_dtype_bytes(spec.dtype));
    m->c->output_spec[m->outputs++] = spec;
}
static void output(maker *m, setun_mlx_spec spec) { output_of(m, spec, -1); }
static void extent(maker *m, int64_t a, int64_t b, int64_t c, int64_t d) { memcpy(m->c->extent, (const int64_t[4]){a, b, c, d}, sizeof m->c->extent); }

static void codes(maker *m, int rows, int columns)
{
    int64_t row_bytes = setun_packed_row_bytes(columns);
    uint8_t *packed = input(m, matrix_of(SETUN_U8, rows, row_bytes)), *row = setun_alloc((size_t)columns);
    if (!row) m->failed = true;
    for (int r = 0; packed && row && r < rows; r++) {
        for (int i = 0; i < columns; i++) row[i] = (uint8_t)(next_random(m) % 3);
        setun_pack_row(row, columns, packed + r * row_bytes);
    }
    setun_free(row);
}

/* int8 rows, their scales and sums */
static void rounded(maker *m, int rows, int columns)
{
    int64_t stride = (columns + 127) / 128 * 128;
    int8_t *values = input(m, matrix_of(SETUN_I8, rows, stride));
    float *scale = reals(m, vector_of(SETUN_F32, rows), 0.001f, 0.01f);
    int32_t *sum = input(m, vector_of(SETUN_I32, rows));
    (void)scale;
    for (int r = 0; !m->failed && r < rows; r++)
        for (int i = 0; i < columns; i++) {
            values[r * stride + i] = (int8_t)((int)(next_random(m) % 255) - 127);
            sum[r] += values[r * stride + i];
        }
}

static void make_rows(maker *m)
{
    const setun_gpu_case_options *o = m->o;
    int64_t rows = o->tokens, width = o->columns;
    m->c->threads = o->tuning.norm_threads;
    extent(m, rows, 0, 0, 0);
    setun_mlx_spec x = matrix_of(o->type, rows, width);
    switch (o->kernel) {
    case SETUN_GPU_rms_norm:
    case SETUN_GPU_rms_norm_quantize:
        if (o->kernel == SETUN_GPU_rms_norm) TEMPLATES(o->type, o->type, 1, 0);
        else TEMPLATES(o->type, 1, 0);
        reals(m, x, -1, 1);
        reals(m, vector_of(SETUN_F32, width), 0.5f, 1.5f);
        unused(m, SETUN_F32);
        SIZES(o->columns);
        FACTORS(1e-5f, 0);
        break;
    case SETUN_GPU_quantize:
        TEMPLATES(o->type, 0);
        reals(m, x, -1, 1);
        unused(m, SETUN_F32);
        SIZES(o->columns);
        break;
    case SETUN_GPU_gate_scaled:
        TEMPLATES(o->type, o->type, 2, 1);
        reals(m, x, -300, 300);
        reals(m, x, -300, 300);
        SIZES(o->columns);
        output(m, x);
        output_of(m, vector_of(SETUN_F32, rows), rows);
        return;
    default: /* softmax, l2_normalize */
        if (o->kernel == SETUN_GPU_softmax) m->c->threads = o->tuning.row_threads;
        TEMPLATES(o->type);
        reals(m, x, -4, 4);
        SIZES(o->columns);
        break;
    }
    if (o->kernel == SETUN_GPU_rms_norm_quantize || o->kernel == SETUN_GPU_quantize) {
        output(m, matrix_of(SETUN_I8, rows, (width + 127) / 128 * 128));
        output_of(m, vector_of(SETUN_F32, rows), rows);
        output_of(m, vector_of(SETUN_I32, rows), rows);
    } else output(m, x);
}

static void make_elements(maker *m)
{
    const setun_gpu_case_options *o = m->o;
    setun_mlx_spec x = matrix_of(o->type, o->tokens, o->columns);
    int32_t count = o->tokens * o->columns;
    m->c->threads = o->tuning.element_threads;
    extent(m, count, 0, 0, 0);
    reals(m, x, -4, 4);
    if (o->kernel == SETUN_GPU_binary) {
        TEMPLATES(o->type, 1);
        reals(m, x, -4, 4);
        SIZES(count);
    } else {
        TEMPLATES(o->type, 3);
        SIZES(count);
        FACTORS(1);
    }
    output(m, x);
}

static void make_lookup(maker *m)
{
    const setun_gpu_case_options *o = m->o;
    m->c->threads = o->tuning.row_threads;
    extent(m, o->tokens, 0, 0, 0);
    if (o->kernel == SETUN_GPU_hadamard) {
        int block = 1;
        while (block < 128 && o->columns % (2 * block) == 0) block *= 2;
        TEMPLATES(o->type, block, 1, 0);
        extent(m, (int64_t)o->tokens * (o->columns / block), 0, 0, 0);
        reals(m, matrix_of(o->type, o->tokens, o->columns), -1, 1);
        float *signs = input(m, vector_of(SETUN_F32, o->columns));
        for (int i = 0; signs && i < o->columns; i++) signs[i] = next_random(m) % 2 ? 1.0f : -1.0f;
        SIZES(o->columns);
        output(m, matrix_of(o->type, o->tokens, o->columns));
        return;
    }
    if (o->kernel == SETUN_GPU_rope) {
        int half = o->head_size / 2, positions = o->length > 0 ? o->length : 64;
        TEMPLATES(o->type, 0);
        reals(m, matrix_of(o->type, o->tokens, (int64_t)o->heads * o->head_size), -1, 1);
        int32_t *position = input(m, vector_of(SETUN_I32, o->tokens));
        for (int t = 0; position && t < o->tokens; t++) position[t] = (int32_t)(next_random(m) % (uint32_t)positions);
        reals(m, matrix_of(SETUN_F32, positions, half), -1, 1);
        reals(m, matrix_of(SETUN_F32, positions, half), -1, 1);
        SIZES(o->heads, o->head_size, half, positions);
        output(m, matrix_of(o->type, o->tokens, (int64_t)o->heads * o->head_size));
        return;
    }
    reals(m, matrix_of(o->type, o->rows, o->columns), -1, 1);
    int32_t *row = input(m, vector_of(SETUN_I32, o->tokens));
    for (int t = 0; row && t < o->tokens; t++) row[t] = (int32_t)(next_random(m) % (uint32_t)o->rows);
    SIZES(o->columns, o->rows);
    if (o->kernel == SETUN_GPU_embedding) {
        TEMPLATES(o->type, o->type);
        FACTORS(1.5f);
    } else TEMPLATES(o->type);
    output(m, matrix_of(o->type, o->tokens, o->columns));
}

static void make_product(maker *m)
{
    const setun_gpu_case_options *o = m->o;
    const setun_tuning *t = &o->tuning;
    bool floats = o->kernel == SETUN_GPU_ternary_float, dense = o->kernel == SETUN_GPU_dense_matvec, tiles = o->kernel == SETUN_GPU_ternary_matmul || o->kernel == SETUN_GPU_ternary_matmul_matrix;
    int weights = dense ? 1 : o->weights, act = o->gated ? 2 : 0, rows = o->rows;
    int64_t width = o->gated ? rows : (int64_t)weights * rows;
    extent(m, rows, weights > 1 ? rows : 0, weights > 2 ? rows : 0, o->tokens);
    m->c->threads = dense || floats ? t->team_threads : t->matvec_threads;
    m->c->streamed = 0;
    int team_tokens = o->tokens < t->team_tokens ? o->tokens : t->team_tokens;
    if (dense) {
        TEMPLATES(o->type, SETUN_F16, t->team_rows, team_tokens, 0, o->residual);
        reals(m, matrix_of(SETUN_F16, rows, o->columns), -1, 1);
        reals(m, matrix_of(o->type, o->tokens, o->columns), -1, 1);
        unused(m, SETUN_F32);
        if (o->residual) reals(m, matrix_of(SETUN_F32, o->tokens, rows), -1, 1);
        else unused(m, SETUN_F32);
        SIZES(o->columns, o->tokens, rows);
        FACTORS(1);
        output(m, matrix_of(SETUN_F32, o->tokens, rows));
        return;
    }
    if (floats) TEMPLATES(o->type, weights, t->team_rows, team_tokens, act, o->row_scales, 0, o->residual);
    else if (tiles) TEMPLATES(o->type, weights, t->matmul_rows, t->matmul_tokens, act, o->row_scales, 0, o->residual);
    else {
        int most = o->tokens < t->matvec_tokens ? o->tokens : t->matvec_tokens;
        TEMPLATES(o->type, weights, most > 1 ? t->matvec_token_rows : t->matvec_rows, most, act, o->row_scales, 0, o->residual);
    }
    for (int i = 0; i < 3; i++) {
        if (i < weights) codes(m, rows, o->columns);
        else input(m, matrix_of(SETUN_U8, 1, 32));
    }
    if (floats) reals(m, matrix_of(o->type, o->tokens, o->columns), -1, 1);
    else rounded(m, o->tokens, o->columns);
    for (int i = 0; i < 3; i++) reals(m, vector_of(SETUN_F32, o->row_scales ? rows : SMALLEST), 0.5f, 1.5f);
    for (int i = 0; i < 3; i++) unused(m, SETUN_F32);
    if (o->residual) reals(m, matrix_of(o->type, o->tokens, width), -1, 1);
    else unused(m, o->type);
    SIZES(o->columns, o->tokens, rows, weights > 1 ? rows : 0, weights > 2 ? rows : 0, 0);
    FACTORS(1);
    output(m, matrix_of(o->type, o->tokens, width));
}

/* Positions length - tokens .. length - 1 of one sequence. */
static void places(maker *m)
{
    int32_t *place = input(m, vector_of(SETUN_I32, m->o->tokens));
    for (int t = 0; place && t < m->o->tokens; t++) place[t] = m->o->length - m->o->tokens + t;
}

static void caches(maker *m, int capacity, bool written)
{
    setun_mlx_spec cache = {SETUN_F16, 4, {1, m->o->kv_heads, capacity, m->o->head_size}};
    for (int i = 0; i < 2; i++) {
        m->c->written[m->inputs] = written;
        reals(m, cache, -1, 1);
    }
}

static void make_attention(maker *m)
{
    const setun_gpu_case_options *o = m->o;
    int capacity = (o->length + 63) / 64 * 64, half = o->head_size / 2, kv = o->kv_heads * o->head_size, width = o->heads * o->head_size, parts = o->split ? (o->length + 255) / 256 : 1;
    m->c->threads = o->tuning.attention_threads;
    if (o->kernel == SETUN_GPU_attention_combine) {
        m->c->threads = o->tuning.row_threads;
        TEMPLATES(o->type, o->head_size);
        extent(m, (int64_t)o->tokens * o->heads, 0, 0, 0);
        reals(m, (setun_mlx_spec){SETUN_F32, 3, {(int64_t)o->tokens * o->heads, parts, o->head_size + 2}}, 0.1f, 1);
        SIZES(parts);
        output(m, matrix_of(o->type, o->tokens, width));
        return;
    }
    if (o->kernel == SETUN_GPU_kv_append) {
        TEMPLATES(o->type, SETUN_F16, o->head_size, 0, 1, 0);
        extent(m, o->kv_heads, o->tokens, 0, 0);
    } else {
        int group = o->heads / o->kv_heads, heads = group < o->tuning.attention_heads ? group : o->tuning.attention_heads;
        while (group % heads) heads--;
        TEMPLATES(o->type, SETUN_F16, o->head_size, heads, 0, 0, 1, 0, o->append, o->split);
        extent(m, o->heads, o->tokens, parts, 0);
        reals(m, matrix_of(o->type, o->tokens, width), -1, 1);
    }
    reals(m, matrix_of(o->type, o->tokens, kv), -1, 1);
    reals(m, matrix_of(o->type, o->tokens, kv), -1, 1);
    if (o->kernel == SETUN_GPU_attention) unused(m, SETUN_F32);
    unused(m, SETUN_F32);
    places(m); /* as positions */
    reals(m, matrix_of(SETUN_F32, o->length, half), -1, 1);
    reals(m, matrix_of(SETUN_F32, o->length, half), -1, 1);
    input(m, vector_of(SETUN_I32, o->tokens)); /* slots: all 0 */
    places(m);
    caches(m, capacity, o->kernel == SETUN_GPU_kv_append || o->append);
    if (o->kernel == SETUN_GPU_kv_append) {
        SIZES(o->kv_heads, capacity, 0, kv, 0, kv, half, o->length, 1);
        FACTORS(1e-5f, 0);
        output_of(m, vector_of(SETUN_I32, o->tokens), o->tokens);
        return;
    }
    unused(m, SETUN_I32);
    SIZES(o->heads, o->kv_heads, capacity, 0, 0, width, 0, kv, 0, kv, half, o->length, parts, 1);
    FACTORS(0.125f, 1e-5f, 0, 1e-5f, 0);
    output_of(m, matrix_of(o->type, o->split ? 1 : o->tokens, o->split ? SMALLEST : width), o->split ? 0 : -1);
    output_of(m, vector_of(SETUN_F32, o->split ? (int64_t)o->tokens * o->heads * parts * (o->head_size + 2) : SMALLEST), o->split ? -1 : 0);
}

setun_status setun_gpu_case_make(const setun_gpu_case_options *options, setun_gpu_case *out)
{
    memset(out, 0, sizeof *out);
    const setun_gpu_kernel *kernel = setun_gpu_kernel_get(options->kernel);
    if (!kernel) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %d; there are %d", (int)options->kernel, (int)SETUN_GPU_KERNEL_COUNT);
    out->kernel = kernel;
    out->streamed = -1;
    maker m = {.o = options, .c = out, .state = options->seed * 0x9e3779b97f4a7c15ull | 1};
    switch (options->kernel) {
    case SETUN_GPU_rms_norm: case SETUN_GPU_rms_norm_quantize: case SETUN_GPU_quantize: case SETUN_GPU_gate_scaled: case SETUN_GPU_softmax: case SETUN_GPU_l2_normalize: make_rows(&m); break;
    case SETUN_GPU_unary: case SETUN_GPU_binary: make_elements(&m); break;
    case SETUN_GPU_embedding: case SETUN_GPU_select_rows: case SETUN_GPU_hadamard: case SETUN_GPU_rope: make_lookup(&m); break;
    case SETUN_GPU_ternary_matvec: case SETUN_GPU_ternary_matmul: case SETUN_GPU_ternary_matmul_matrix: case SETUN_GPU_ternary_float: case SETUN_GPU_dense_matvec: make_product(&m); break;
    case SETUN_GPU_kv_append: case SETUN_GPU_attention: case SETUN_GPU_attention_combine: make_attention(&m); break;
    default: return setun_fail(SETUN_ERROR_UNSUPPORTED, "kernel %s: no plan uses it yet, and no case is made for it", kernel->name);
    }
    if (!m.failed && m.inputs == kernel->input_count && m.outputs == kernel->output_count) return SETUN_OK;
    setun_gpu_case_free(out);
    return m.failed ? setun_fail(SETUN_ERROR_MEMORY, "out of memory: inputs of kernel %s", kernel->name)
                    : setun_fail(SETUN_ERROR_STATE, "kernel %s: a case of %d inputs and %d outputs; it has %d and %d", kernel->name, m.inputs, m.outputs, kernel->input_count, kernel->output_count);
}

void setun_gpu_case_free(setun_gpu_case *c)
{
    for (int i = 0; i < SETUN_GPU_INPUTS_MAX; i++) {
        setun_free(c->input[i]);
        c->input[i] = NULL;
    }
}

/* ---- on a device ---- */

setun_status setun_gpu_kernel_open(const setun_mlx_table *table, setun_mlx_device_kind device, const setun_gpu_kernel *k, setun_mlx_kernel **out)
{
    setun_mlx_kernel_options o = {.input_names = k->input_names, .input_count = k->input_count, .output_names = k->output_names, .output_count = k->output_count};
    char name[64];
    switch (device) {
    case SETUN_MLX_CPU:
        o.kind = SETUN_MLX_KERNEL_HOST;
        o.host = setun_gpu_host_run;
        o.user = (void *)(uintptr_t)k; /* read only */
        break;
    case SETUN_MLX_METAL:
        o.kind = SETUN_MLX_KERNEL_METAL;
        o.source = k->source;
        o.header = setun_gpu_metal_header();
        break;
    case SETUN_MLX_CUDA:
        o.kind = SETUN_MLX_KERNEL_CUDA;
        o.source = k->source;
        o.header = setun_gpu_cuda_header();
        break;
    }
    snprintf(name, sizeof name, "setun_%s", k->name);
    o.name = name;
    return table->kernel_create(&o, out);
}

setun_status setun_gpu_case_upload(setun_gpu_runner *r, const setun_gpu_case *c, setun_gpu_case_arrays *out)
{
    memset(out, 0, sizeof *out);
    for (int i = 0; i < c->kernel->input_count; i++) {
        setun_status status = setun_mlx_check(r->table, r->table->array_from_host(r->stream, &c->input_spec[i], c->input[i], &out->input[i]), c->kernel->name);
        if (status != SETUN_OK) {
            setun_gpu_case_release(r, out);
            return status;
        }
    }
    return SETUN_OK;
}

void setun_gpu_case_release(setun_gpu_runner *r, setun_gpu_case_arrays *arrays)
{
    for (int i = 0; i < SETUN_GPU_INPUTS_MAX; i++) r->table->array_release(arrays->input[i]);
    memset(arrays, 0, sizeof *arrays);
}

setun_status setun_gpu_case_call(setun_gpu_runner *r, const setun_gpu_case *c, const setun_gpu_case_arrays *arrays, setun_mlx_array *after, setun_mlx_array **outputs)
{
    const setun_gpu_kernel *k = c->kernel;
    setun_mlx_array *inputs[SETUN_GPU_INPUTS_MAX], *ordered = NULL;
    memcpy(inputs, arrays->input, sizeof inputs);
    memset(outputs, 0, (size_t)k->output_count * sizeof *outputs);
    if (!r->kernel[k->id]) SETUN_TRY(setun_mlx_check(r->table, setun_gpu_kernel_open(r->table, r->device, k, &r->kernel[k->id]), k->name));
    setun_mlx_argument arguments[SETUN_GPU_PARAMETERS_MAX];
    SETUN_TRY(setun_gpu_templates(k, c->templates, arguments));
    setun_mlx_call call = {.inputs = inputs, .input_count = k->input_count, .outputs = c->output_spec, .output_count = k->output_count, .templates = arguments, .template_count = k->parameter_count,
                           .parameters = c->templates, .parameter_bytes = (size_t)k->parameter_count * sizeof(int32_t)};
    SETUN_TRY(setun_gpu_grid(k, c->templates, c->extent, c->threads, call.grid, call.group));
    if (after) {
        setun_mlx_op_request request = {.op = SETUN_MLX_OP_DEPENDS, .inputs = (setun_mlx_array *[]){inputs[c->sizes], after}, .input_count = 2};
        SETUN_TRY(setun_mlx_check(r->table, r->table->op(r->stream, &request, &ordered, 1), k->name));
        inputs[c->sizes] = ordered;
    }
    setun_status status = setun_mlx_check(r->table, r->table->kernel_call(r->stream, r->kernel[k->id], &call, outputs), k->name);
    r->table->array_release(ordered);
    return status;
}

setun_status setun_gpu_case_expect(const setun_gpu_case *c, void *outputs[SETUN_GPU_OUTPUTS_MAX], void *written[SETUN_GPU_INPUTS_MAX])
{
    const setun_gpu_kernel *k = c->kernel;
    const void *inputs[SETUN_GPU_INPUTS_MAX];
    memset(outputs, 0, SETUN_GPU_OUTPUTS_MAX * sizeof *outputs);
    memset(written, 0, SETUN_GPU_INPUTS_MAX * sizeof *written);
    setun_status status = SETUN_OK;
    for (int i = 0; i < k->input_count; i++) {
        inputs[i] = c->input[i];
        if (!c->written[i]) continue;
        uint64_t bytes = setun_gpu_spec_bytes(&c->input_spec[i]);
        inputs[i] = written[i] = setun_alloc((size_t)bytes);
        if (written[i]) memcpy(written[i], c->input[i], (size_t)bytes);
        else status = setun_fail_memory((size_t)bytes);
    }
    for (int i = 0; i < k->output_count && status == SETUN_OK; i++) {
        uint64_t bytes = setun_gpu_spec_bytes(&c->output_spec[i]);
        outputs[i] = setun_calloc(1, (size_t)bytes);
        if (!outputs[i]) status = setun_fail_memory((size_t)bytes);
    }
    if (status == SETUN_OK) {
        setun_mlx_host_call call = {.inputs = inputs, .outputs = outputs, .input_specs = c->input_spec, .output_specs = c->output_spec, .input_count = k->input_count, .output_count = k->output_count,
                                    .parameters = c->templates, .parameter_bytes = (size_t)k->parameter_count * sizeof(int32_t), .user = (void *)(uintptr_t)k};
        status = setun_gpu_grid(k, c->templates, c->extent, c->threads, call.grid, call.group);
        if (status == SETUN_OK) status = (setun_status)setun_gpu_host_run_with(&call, &(setun_gpu_host_options){.seed = 0x5e7u});
    }
    if (status == SETUN_OK) return SETUN_OK;
    for (int i = 0; i < SETUN_GPU_OUTPUTS_MAX; i++) setun_free(outputs[i]), outputs[i] = NULL;
    for (int i = 0; i < SETUN_GPU_INPUTS_MAX; i++) setun_free(written[i]), written[i] = NULL;
    return status;
}

void setun_gpu_runner_close(setun_gpu_runner *r)
{
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++) {
        r->table->kernel_release(r->kernel[i]);
        r->kernel[i] = NULL;
    }
}
