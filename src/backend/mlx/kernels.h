/*
 * kernels.h - the GPU kernels: text written once (kernels/NAME.kernel) and its three forms, for Metal, for CUDA and as a C function that runs
 * it on the host, thread by thread. kernels/kernels.def lists them. Callers: the lowering of plans, through bridge.h; tests.
 * Knows texts and launch shapes, and nothing of MLX's arrays or of plans.
 */
#ifndef SETUN_MLX_KERNELS_H
#define SETUN_MLX_KERNELS_H

#include "base/base.h"
#include "backend/mlx/bridge.h"
#include "backend/mlx/tuning.h"

typedef enum setun_gpu_kernel_id {
#define SETUN_GPU_KERNEL(name, grid) SETUN_GPU_##name,
#include "backend/mlx/kernels/kernels.def"
#undef SETUN_GPU_KERNEL
    SETUN_GPU_KERNEL_COUNT
} setun_gpu_kernel_id;

/* How a kernel's threads are laid out; `extent` of setun_gpu_grid means: */
typedef enum setun_gpu_grid_kind {
    SETUN_GPU_GRID_ROWS,        /* a group per row: {rows} (hadamard: rows * whole blocks; attention_combine: tokens * heads) */
    SETUN_GPU_GRID_ELEMENTS,    /* a thread per element: {count} */
    SETUN_GPU_GRID_SIMD_TILES,  /* a simdgroup per tile of ROWS rows x TOKENS tokens: {rows0, rows1, rows2, tokens}, 0 where absent */
    SETUN_GPU_GRID_TEAM_TILES,  /* 16 threads per such tile: the same (dense_matvec: rows1 = rows2 = 0) */
    SETUN_GPU_GRID_GROUP_TILES, /* a group per tile of TILE_ROWS x TILE_TOKENS: the same; the number of threads follows from the tile */
    SETUN_GPU_GRID_HEADS,       /* a group per kv head and token: {kv_heads, tokens} */
    SETUN_GPU_GRID_ATTENTION    /* {heads, tokens, parts} */
} setun_gpu_grid_kind;

typedef enum setun_gpu_parameter_kind { SETUN_GPU_TYPE, SETUN_GPU_NUMBER, SETUN_GPU_FLAG } setun_gpu_parameter_kind;
typedef struct setun_gpu_parameter { setun_gpu_parameter_kind kind; const char *name; } setun_gpu_parameter;
/* type: "float", "int32_t", "int8_t", "uint8_t", or the name of a template argument */
typedef struct setun_gpu_array { const char *type, *name; } setun_gpu_array;

#define SETUN_GPU_PARAMETERS_MAX 12
#define SETUN_GPU_INPUTS_MAX 16
#define SETUN_GPU_OUTPUTS_MAX 3
typedef struct setun_gpu_kernel {
    setun_gpu_kernel_id id;
    const char *name;
    setun_gpu_grid_kind grid;
    setun_gpu_parameter parameters[SETUN_GPU_PARAMETERS_MAX]; int parameter_count;
    setun_gpu_array inputs[SETUN_GPU_INPUTS_MAX]; int input_count;
    setun_gpu_array outputs[SETUN_GPU_OUTPUTS_MAX]; int output_count;
    /* For setun_mlx_kernel_options: */
    const char *input_names[SETUN_GPU_INPUTS_MAX], *output_names[SETUN_GPU_OUTPUTS_MAX];
    const char *source;         /* the body, the same for Metal and CUDA */
} setun_gpu_kernel;

/* NULL out of range. The tables are made once; any thread. */
const setun_gpu_kernel *setun_gpu_kernel_get(setun_gpu_kernel_id id);
const setun_gpu_kernel *setun_gpu_kernel_find(const char *name); /* NULL: there is none */
/* The header text of every kernel's Metal and CUDA form. */
const char *setun_gpu_metal_header(void);
const char *setun_gpu_cuda_header(void);

/*
 * A kernel's template arguments, in the order of `parameters`: a setun_dtype (F32, F16, BF16), a number, 0 or 1. The host form gets them as its
 * call's parameters: int32_t values[parameter_count].
 */
setun_status setun_gpu_templates(const setun_gpu_kernel *kernel, const int32_t *values, setun_mlx_argument out[SETUN_GPU_PARAMETERS_MAX]);

/* Threads of the grid and of a group, as bridge.h wants them: the grid is a whole number of groups. `threads` of a group; GROUP_TILES has its own. */
setun_status setun_gpu_grid(const setun_gpu_kernel *kernel, const int32_t *values, const int64_t extent[4], int threads, int grid[3], int group[3]);

/* Does a tile fit the threadgroup memory of ternary_matmul_matrix? */
static inline bool setun_gpu_matrix_fits(int rows, int tokens, bool gated) {
    int weights = gated ? 2 : 1; /* f16 tiles of 72 a row, f32 results */
    return rows % 16 == 0 && tokens % 16 == 0 && (int64_t)(weights * rows + tokens) * 144 + (int64_t)weights * rows * tokens * 4 <= 32768 - 64;
}

/*
 * The host form: a setun_mlx_host_fn whose user is the setun_gpu_kernel and whose parameters are the int32 template values. It
 * runs the kernel's text for every thread of every group, one at a time, switching at barriers. 0, or a SETUN_ERROR_* and the message below.
 * A kernel with atomic or in-place effects (kv_append, attention with APPEND) is not pure.
 */
int setun_gpu_host_run(const setun_mlx_host_call *call);
/* The same with what tests ask for. seed: 0 runs threads in order, others shuffle the order of threads, groups and simdgroups, again after
 * every barrier. float_dot: ternary products as Metal computes them (DOT_FLOAT) instead of CUDA's. */
typedef struct setun_gpu_host_options { uint64_t seed; bool float_dot; } setun_gpu_host_options;
int setun_gpu_host_run_with(const setun_mlx_host_call *call, const setun_gpu_host_options *options);
/* Frees the stacks that idle host runs keep. */
void setun_gpu_host_trim(void);

#endif
