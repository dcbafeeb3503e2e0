/*
 * kernel_table.c - the table of GPU kernels made from kernels.def, their texts and launch shapes, and the way from a call to the host
 * form. See kernels.h.
 */
#include "backend/mlx/kernels.h"
#include "backend/mlx/kernels/host_engine.h"
#include "backend/mlx/kernels/kernel_text.h"

#include <pthread.h>

static setun_gpu_kernel table[SETUN_GPU_KERNEL_COUNT];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void add_parameter(setun_gpu_kernel *k, setun_gpu_parameter_kind kind, const char *name)
{
    k->parameters[k->parameter_count++] = (setun_gpu_parameter){kind, name};
}

static void add_input(setun_gpu_kernel *k, const char *type, const char *name)
{
    k->input_names[k->input_count] = name;
    k->inputs[k->input_count++] = (setun_gpu_array){type, name};
}

static void add_output(setun_gpu_kernel *k, const char *type, const char *name)
{
    k->output_names[k->output_count] = name;
    k->outputs[k->output_count++] = (setun_gpu_array){type, name};
}

/* tests/unit/backend/test_gpu_kernels.c counts them against the arrays' sizes */
static void fill(void)
{
    setun_gpu_kernel *k;
#define TYPE(n) add_parameter(k, SETUN_GPU_TYPE, #n);
#define NUMBER(n) add_parameter(k, SETUN_GPU_NUMBER, #n);
#define FLAG(n) add_parameter(k, SETUN_GPU_FLAG, #n);
#define INPUT(type, n) add_input(k, #type, #n);
#define OUTPUT(type, n) add_output(k, #type, #n);
#define SETUN_GPU_KERNEL(kernel_name, grid_kind) \
    k = &table[SETUN_GPU_##kernel_name]; \
    k->id = SETUN_GPU_##kernel_name; \
    k->name = #kernel_name; \
    k->grid = SETUN_GPU_GRID_##grid_kind; \
    k->source = setun_text_##kernel_name##_kernel; \
    SETUN_GPU_SIGNATURE_##kernel_name(TYPE, NUMBER, FLAG, INPUT, OUTPUT)
#include "backend/mlx/kernels/kernels.def"
#undef SETUN_GPU_KERNEL
}

const setun_gpu_kernel *setun_gpu_kernel_get(setun_gpu_kernel_id id)
{
    if ((int)id < 0 || id >= SETUN_GPU_KERNEL_COUNT) return NULL;
    pthread_once(&once, fill);
    return &table[id];
}

const setun_gpu_kernel *setun_gpu_kernel_find(const char *name)
{
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++) {
        const setun_gpu_kernel *k = setun_gpu_kernel_get((setun_gpu_kernel_id)i);
        if (!strcmp(k->name, name)) return k;
    }
    return NULL;
}

const char *setun_gpu_metal_header(void) { return setun_text_metal_header; }
const char *setun_gpu_cuda_header(void) { return setun_text_cuda_header; }

setun_status setun_gpu_templates(const setun_gpu_kernel *kernel, const int32_t *values, setun_mlx_argument out[SETUN_GPU_PARAMETERS_MAX])
{
    for (int i = 0; i < kernel->parameter_count; i++) {
        const setun_gpu_parameter *p = &kernel->parameters[i];
        if (p->kind == SETUN_GPU_TYPE && values[i] != SETUN_F32 && values[i] != SETUN_F16 && values[i] != SETUN_BF16)
            return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: %s is dtype %d; f32, f16 or bf16", kernel->name, p->name, (int)values[i]);
        if (p->kind == SETUN_GPU_FLAG && values[i] != 0 && values[i] != 1)
            return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: %s is %d; 0 or 1", kernel->name, p->name, (int)values[i]);
        memset(&out[i], 0, sizeof out[i]);
        out[i].kind = p->kind == SETUN_GPU_TYPE ? SETUN_MLX_ARGUMENT_DTYPE : p->kind == SETUN_GPU_FLAG ? SETUN_MLX_ARGUMENT_BOOL : SETUN_MLX_ARGUMENT_INTEGER;
        out[i].name = p->name;
        out[i].integer = values[i];
    }
    return SETUN_OK;
}

static int32_t value_of(const setun_gpu_kernel *kernel, const int32_t *values, const char *name, int32_t otherwise)
{
    for (int i = 0; i < kernel->parameter_count; i++)
        if (!strcmp(kernel->parameters[i].name, name)) return values[i];
    return otherwise;
}

setun_status setun_gpu_grid(const setun_gpu_kernel *kernel, const int32_t *values, const int64_t extent[4], int threads, int grid[3], int group[3])
{
    int64_t x = 0, y = 1, z = 1; /* groups */
    for (int i = 0; i < 4; i++)
        if (extent[i] < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: an extent of %lld", kernel->name, (long long)extent[i]);
    int32_t rows = value_of(kernel, values, "ROWS", value_of(kernel, values, "TILE_ROWS", 1)), tokens = value_of(kernel, values, "TOKENS", value_of(kernel, values, "TILE_TOKENS", 1));
    if (rows < 1 || tokens < 1) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a tile of %d rows x %d tokens", kernel->name, (int)rows, (int)tokens);
    bool gated = value_of(kernel, values, "ACTIVATION", 0) != 0;
    int64_t tiles = (extent[0] + rows - 1) / rows;
    if (!gated) tiles += (extent[1] + rows - 1) / rows + (extent[2] + rows - 1) / rows;
    switch (kernel->grid) {
    case SETUN_GPU_GRID_ROWS: x = extent[0]; break;
    case SETUN_GPU_GRID_ELEMENTS: x = (extent[0] + threads - 1) / (threads > 0 ? threads : 1); break;
    case SETUN_GPU_GRID_SIMD_TILES:
        if (rows * tokens > 32) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a tile of %d rows x %d tokens is more than 32", kernel->name, (int)rows, (int)tokens);
        x = threads < 32 ? 0 : (tiles + threads / 32 - 1) / (threads / 32);
        y = (extent[3] + tokens - 1) / tokens;
        break;
    case SETUN_GPU_GRID_TEAM_TILES:
        x = threads < 32 ? 0 : (tiles + threads / 16 - 1) / (threads / 16);
        y = (extent[3] + tokens - 1) / tokens;
        break;
    case SETUN_GPU_GRID_GROUP_TILES:
        if (rows % 4 || tokens % 2) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a tile of %d rows x %d tokens; multiples of 4 and 2", kernel->name, (int)rows, (int)tokens);
        if (kernel->id == SETUN_GPU_ternary_matmul_matrix && !setun_gpu_matrix_fits(rows, tokens, gated))
            return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a tile of %d rows x %d tokens; multiples of 16 that fit 32 KiB", kernel->name, (int)rows, (int)tokens);
        threads = rows / 4 * (tokens / 2);
        x = tiles;
        y = (extent[3] + tokens - 1) / tokens;
        break;
    case SETUN_GPU_GRID_HEADS:
        x = extent[0];
        y = extent[1];
        break;
    case SETUN_GPU_GRID_ATTENTION: {
        int32_t heads = value_of(kernel, values, "HEADS", 1);
        if (heads < 1 || extent[0] % heads) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: %lld heads are not whole groups of %d", kernel->name, (long long)extent[0], (int)heads);
        x = extent[0] / heads;
        y = extent[1];
        z = extent[2] > 0 ? extent[2] : 1;
        break;
    }
    }
    if (kernel->id == SETUN_GPU_attention && threads < 64) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a group of %d threads; at least 64", kernel->name, threads);
    if (threads < 32 || threads > 1024 || threads % 32) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a group of %d threads; a multiple of 32 up to 1024", kernel->name, threads);
    if (x * threads > INT32_MAX || y > 65535 || z > 65535)
        return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a grid of %lld x %lld x %lld groups is too large", kernel->name, (long long)x, (long long)y, (long long)z);
    grid[0] = (int)x * threads;
    grid[1] = (int)y;
    grid[2] = (int)z;
    group[0] = threads;
    group[1] = group[2] = 1;
    return SETUN_OK;
}

int setun_gpu_host_run_with(const setun_mlx_host_call *call, const setun_gpu_host_options *options)
{
    const setun_gpu_kernel *kernel = call->user;
    if (!kernel || call->input_count != kernel->input_count || call->output_count != kernel->output_count || call->parameter_bytes != (size_t)kernel->parameter_count * sizeof(int32_t))
        return (int)setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: %d inputs, %d outputs, %zu bytes of template values do not fit its signature", kernel ? kernel->name : "?", call->input_count,
                               call->output_count, call->parameter_bytes);
    const int32_t *values = call->parameters;
    int types[2] = {0, 0}, count = 0;
    for (int i = 0; i < kernel->parameter_count; i++) {
        if (kernel->parameters[i].kind != SETUN_GPU_TYPE) continue;
        if (values[i] < SETUN_F32 || values[i] > SETUN_BF16) return (int)setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: %s is dtype %d; f32, f16 or bf16", kernel->name, kernel->parameters[i].name, (int)values[i]);
        if (count < 2) types[count++] = values[i] - SETUN_F32;
    }
    setun_host_body body = options->float_dot ? setun_host_body_float_dot((int)kernel->id, types[0]) : NULL;
    if (!body) body = setun_host_body_of((int)kernel->id, types[0], types[1]);
    if (!body) return (int)setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s has no such form", kernel->name);
    return (int)setun_host_run(kernel->name, body, call->inputs, call->outputs, values, call->grid, call->group, options->seed);
}

int setun_gpu_host_run(const setun_mlx_host_call *call)
{
    const setun_gpu_host_options options = {0};
    return setun_gpu_host_run_with(call, &options);
}
