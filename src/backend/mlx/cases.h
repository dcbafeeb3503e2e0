/*
 * cases.h - calls of the GPU kernels over random numbers: what `setun tune` times and what a check of a device compares with the kernels' host form.
 * Callers: tune.c, check.c, tests. Knows kernels and the shapes that plans give them; refuses to know plans, models and where results go.
 */
#ifndef SETUN_MLX_CASES_H
#define SETUN_MLX_CASES_H

#include "backend/mlx/kernels.h"

/* What a call is over. Members that a kernel has no use for are ignored. */
typedef struct setun_gpu_case_options {
    setun_gpu_kernel_id kernel;
    setun_dtype type;           /* of activations: F32, F16, BF16 */
    int columns, rows, tokens;
    int weights;                /* ternary products: 1 to 3; 2 with gated is a gated pair */
    bool gated, row_scales, residual;
    int heads, kv_heads, head_size, length; /* attention over `length` keys, the last of them the token's own */
    bool append, split;
    setun_tuning tuning;
    uint64_t seed;
} setun_gpu_case_options;

typedef struct setun_gpu_case {
    const setun_gpu_kernel *kernel;
    int32_t templates[SETUN_GPU_PARAMETERS_MAX];
    int64_t extent[4];
    int threads;
    setun_mlx_spec input_spec[SETUN_GPU_INPUTS_MAX], output_spec[SETUN_GPU_OUTPUTS_MAX];
    void *input[SETUN_GPU_INPUTS_MAX];
    int64_t defined[SETUN_GPU_OUTPUTS_MAX]; /* elements of the output that the kernel writes; 0: it has no use for it */
    int sizes;                  /* the input that every kernel has: its numbers */
    int streamed;               /* the input that a model has many of: measurements take turns among copies, so that no cache holds it. -1: none */
    bool written[SETUN_GPU_INPUTS_MAX]; /* caches, which the kernel writes in place */
} setun_gpu_case;

/* UNSUPPORTED: no case is made for this kernel (those of the head's shortlist, which plans do not use). */
setun_status setun_gpu_case_make(const setun_gpu_case_options *options, setun_gpu_case *out);
void setun_gpu_case_free(setun_gpu_case *c);
uint64_t setun_gpu_spec_bytes(const setun_mlx_spec *spec);

/* On a device: its inputs as arrays, the kernel's handle. */
typedef struct setun_gpu_runner {
    const setun_mlx_table *table;
    setun_mlx_stream *stream;
    setun_mlx_device_kind device;
    setun_mlx_kernel *kernel[SETUN_GPU_KERNEL_COUNT];
} setun_gpu_runner;
typedef struct setun_gpu_case_arrays { setun_mlx_array *input[SETUN_GPU_INPUTS_MAX]; } setun_gpu_case_arrays;
setun_status setun_gpu_kernel_open(const setun_mlx_table *table, setun_mlx_device_kind device, const setun_gpu_kernel *kernel, setun_mlx_kernel **out);
setun_status setun_gpu_case_upload(setun_gpu_runner *runner, const setun_gpu_case *c, setun_gpu_case_arrays *out);
void setun_gpu_case_release(setun_gpu_runner *runner, setun_gpu_case_arrays *arrays);
/* Lazy. after: an array whose computation comes first, or NULL. outputs: [output_count], the caller's. */
setun_status setun_gpu_case_call(setun_gpu_runner *runner, const setun_gpu_case *c, const setun_gpu_case_arrays *arrays, setun_mlx_array *after, setun_mlx_array **outputs);
/* The host form over copies of the inputs: outputs [output_count] and, where not NULL, inputs after the call (those that are written), to be freed. */
setun_status setun_gpu_case_expect(const setun_gpu_case *c, void *outputs[SETUN_GPU_OUTPUTS_MAX], void *written[SETUN_GPU_INPUTS_MAX]);
void setun_gpu_runner_close(setun_gpu_runner *runner);

#endif
