/*
 * lower.h - inside the MLX backend: what prepare leaves for run, shared by lower.c (the vtable and a run's values), lower_weights.c
 * (weights as arrays) and lower_steps.c (one function a kind of step). Nobody outside src/backend/mlx includes this.
 */
#ifndef SETUN_MLX_LOWER_H
#define SETUN_MLX_LOWER_H

#include "backend/mlx/kernels.h"
#include "backend/mlx/mlx.h"

/* Arrays that a kernel takes in Metal's device address space: never fewer elements than this. */
enum { MLX_SMALLEST = 8 };

/* A weight on a device (setun_weight.prepared). `host` is first: code that only asks how much memory weights own reads it. */
typedef struct mlx_weight {
    setun_prepared host;        /* ternary: 2-bit rows and scales; dense: rows; what it owns, the arrays are views of */
    const setun_mlx_table *table;
    const setun_mlx *mlx;       /* the device that the arrays are on */
    setun_dtype dtype;          /* dense: F32, F16, BF16 */
    setun_mlx_array *values;    /* ternary: u8 [rows, row bytes]; dense: [rows, columns] of dtype */
    setun_mlx_array *scales;    /* f32: [MLX_SMALLEST] (the tensor's), [rows], or [rows * groups]; NULL: dense */
    const char *layout;
    bool shared;                /* the array's memory is the host's */
} mlx_weight;

/* A small array of numbers that a step gives its kernels again and again, kept while the numbers stay the same. */
typedef struct mlx_constant { int count; uint32_t words[20]; setun_mlx_array *array; } mlx_constant;
enum { MLX_CONSTANTS = 10 };

/* The value of a slot in a run. Q8: values, scale, sum. Else values alone; it may be a part of wider rows. */
typedef struct mlx_value {
    setun_mlx_array *values, *scale, *sum;
    setun_mlx_array *row_scale; /* f32 per row: the values stand for values * row_scale, a power of two; NULL: 1 */
    int64_t offset, stride;     /* elements; stride 0: dense */
    int uses;                   /* left in this run */
} mlx_value;

typedef struct mlx_step {
    mlx_constant constant[MLX_CONSTANTS];
    int rope;                   /* index in the tape's tables; -1: none */
    bool scaled_gate;           /* LINEAR, UNARY in f16: what follows undoes a row's power of two */
    char kernel[96];
} mlx_step;

/* cos and sin of one rotation for positions 0 .. rows-1, made on the host as the CPU backend makes them. */
typedef struct mlx_rope {
    setun_rope_spec spec;
    int half, rows;
    double *frequencies;
    setun_mlx_array *cosines, *sines;
} mlx_rope;

typedef struct mlx_tape {
    struct mlx_executor *executor;
    setun_dtype type;           /* of activations: F32, BF16, F16 */
    int rope_count; mlx_rope *ropes;
    int *source;                /* [slots] the slot whose value this one has: itself, or what it reshapes */
    int *uses;                  /* [slots] steps that read it, outputs once more */
    mlx_value *value;           /* [slots] of the run; all empty between runs */
    struct setun_cuda_binding *cuda; /* runs by kernels that take the whole tape; NULL: none */
    setun_mlx_stream *stream;   /* one of the executor's */
    pthread_mutex_t lock;       /* one run at a time */
    bool caches;                /* an attention keeps keys and values */
    struct mlx_compiled *compiled; /* lower_compile.c; NULL: nothing yet */
    uint64_t kernel_calls, operations, synchronisations; /* of the run: setun_device_report */
    uint64_t without_kernel, copies;
    int step_count;
    mlx_step step[];
} mlx_tape;

enum { MLX_STREAMS = 4, MLX_OUTPUTS_MAX = 8 };

/* One device's backend. */
typedef struct mlx_executor {
    setun_backend backend;      /* first: what the plan holds is this */
    setun_mlx *mlx;
    const setun_mlx_table *table;
    setun_mlx_stream *stream;
    setun_mlx_kernel *kernel[SETUN_GPU_KERNEL_COUNT];
    setun_tuning tuning;
    struct setun_cuda_engine *cuda; /* NULL: none, or not tried */
    bool cuda_tried;
    int cuda_refused;           /* plans that its kernels do not take; the first was told */
    char tuning_note[256];      /* where they come from: the family's table, or measured ones */
    atomic_flag said;           /* mlx_say_fallbacks */
    _Atomic uint64_t own_bytes; /* of weights that were packed or copied, ever */
    setun_mlx_stream *streams[MLX_STREAMS]; /* of the tapes, in turn: runs of several sessions overlap. [0] is `stream`; NULL: not opened yet */
    int next_stream;
    pthread_mutex_t lock;       /* kernels made, streams opened */
    setun_mlx_array *nothing[3]; /* f32, i32, u8 of MLX_SMALLEST: inputs that a call has no use for */
} mlx_executor;

/* One run while it is built. */
typedef struct mlx_run {
    mlx_executor *executor;
    const setun_mlx_table *table;
    setun_mlx_stream *stream;
    setun_frame *frame;
    const setun_plan *plan;
    mlx_tape *tape;
    int index;                  /* the step */
    int constant;               /* next constant of the step */
    int sequence_count;
    setun_sequence *sequences;  /* those of the frame, or one over all rows */
    setun_mlx_array **places, **slots, **positions; /* [sequence_count] i32, of its rows; positions by the attention's input */
    int positions_slot;
    bool dry;                   /* built, not computed */
    setun_mlx_array *const *traced_caches; int traced_count; /* while a run is traced: keys and values by layer in the steps' order; NULL: none */
    setun_mlx_array *last_done; /* what proves that the caches were written, when nothing is read */
} mlx_run;

static inline mlx_tape *mlx_tape_of(const setun_plan *plan) { return plan->step_count > 0 ? plan->steps[0].backend_data : NULL; }

/* lower.c */
setun_status mlx_run_frame(mlx_executor *e, setun_frame *frame, bool dry);
setun_status mlx_bind_inputs(mlx_run *run);
setun_status mlx_build_steps(mlx_run *run); /* lazily, from inputs to outputs */
setun_status mlx_run_check(const mlx_run *run, setun_status status, const char *what);
/* Numbers as an array; the same array as long as the numbers are. Borrowed from the step. */
setun_status mlx_integers(mlx_run *run, const int32_t *values, int count, setun_mlx_array **out);
setun_status mlx_reals(mlx_run *run, const float *values, int count, setun_mlx_array **out);
setun_status mlx_kernel(mlx_run *run, setun_gpu_kernel_id id, const int32_t *templates, setun_mlx_array *const *inputs, const setun_mlx_spec *outputs, const int64_t extent[4], int threads,
                        setun_mlx_array **out);
setun_status mlx_op(mlx_run *run, setun_mlx_op op, setun_mlx_array *const *inputs, int input_count, const int64_t *integers, int integer_count, setun_dtype dtype, setun_mlx_array **out);
/* The value of a slot that step `index` reads, dense in memory. */
setun_status mlx_dense_value(mlx_run *run, int slot, mlx_value **out);
mlx_value *mlx_value_of(mlx_run *run, int slot); /* as it is: it may be a part of wider rows */
void mlx_value_clear(const setun_mlx_table *table, mlx_value *value);
/* Rope table of at least `rows` positions. */
setun_status mlx_rope_table(mlx_run *run, mlx_rope *rope, int rows);

/* lower_compile.c */
bool mlx_may_compile(const mlx_run *run);
setun_status mlx_run_compiled(mlx_run *run, bool *out_done); /* done false: build the steps */
void mlx_compiled_free(struct mlx_compiled *all);

/* lower_report.c */
void mlx_say_fallbacks(mlx_executor *e, const setun_plan *plan); /* once a device */
void mlx_count_operation(mlx_tape *tape, setun_mlx_op op);
setun_status mlx_report(const setun_backend *backend, setun_frame *frame, setun_device_report *out);

/* lower_weights.c */
setun_status mlx_prepare_weights(mlx_executor *executor, setun_plan *plan);
void mlx_release_weight(void *prepared);
/* [rows, columns] of the weight as the device has it, with a cache's layers. */
setun_status mlx_cache_arrays(mlx_run *run, setun_kv_cache *cache, int layer, setun_mlx_array **out_k, setun_mlx_array **out_v);

/* lower_steps.c */
bool mlx_supports(const setun_backend *backend, const setun_step *step);
setun_status mlx_lower_step(mlx_run *run, const setun_step *step, mlx_step *lowered);
void mlx_name_step(const mlx_tape *tape, const setun_step *step, mlx_step *lowered);

/* backend of a device; made once, the device's own */
setun_status setun_mlx_backend(setun_mlx *mlx, const setun_backend **out);
void setun_mlx_backend_close(const setun_backend *backend);

static inline setun_mlx_spec mlx_spec2(setun_dtype dtype, int64_t rows, int64_t columns) { return (setun_mlx_spec){dtype, 2, {rows, columns}}; }
static inline setun_mlx_spec mlx_spec1(setun_dtype dtype, int64_t count) { return (setun_mlx_spec){dtype, 1, {count}}; }
static inline int64_t mlx_at_least(int64_t count) { return count < MLX_SMALLEST ? MLX_SMALLEST : count; }

#endif
