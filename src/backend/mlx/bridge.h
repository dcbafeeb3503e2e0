/*
 * bridge.h - the C face of MLX. bridge.cc, the only C++ in Setun, implements it in a shared object of its own that mlx.c opens
 * at run time; the core links no C++. Callers: mlx.c (loading, devices), tensors on devices, the lowering of plans.
 * It knows MLX and nothing of plans, models or formats.
 *
 * Rules
 *  - One exported function, setun_mlx_bridge, gives one const table. Its ABI number changes whenever this file does.
 *  - Every entry that can fail returns setun_status and catches everything; error() then has MLX's own text, this thread's.
 *    On failure outputs are NULL/0.
 *  - Handles are owned by who got them: release each once; NULL is fine. An array handle is one reference to an immutable value.
 *  - Any thread may call any entry. One lock guards the building and scheduling of graphs; waiting (eval, wait, read,
 *    stream_synchronize) happens outside it. Streams are made so that every thread may use them; each entry that takes one makes
 *    it the thread's default, so that nothing is ever scheduled on a stream that belongs to a thread.
 *    A handle must not be used by two threads at the same instant, unless its array is already evaluated.
 *  - Arrays are lazy: op and kernel_call compute nothing before eval. Errors of kernels surface at eval, wait, read or
 *    stream_synchronize. Host kernels and callbacks run on MLX's threads and must call no entry of this table (except in
 *    function_create's build, which is there to).
 *  - A process that forks after it used MLX must not use it in the child.
 */
#ifndef SETUN_MLX_BRIDGE_H
#define SETUN_MLX_BRIDGE_H

#include "setun/setun.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SETUN_MLX_ABI 1
#define SETUN_MLX_MAX_RANK 8

typedef struct setun_mlx_stream setun_mlx_stream;     /* a queue of work on one device */
typedef struct setun_mlx_array setun_mlx_array;
typedef struct setun_mlx_region setun_mlx_region;     /* host memory, usually a mapped file, that arrays are views of */
typedef struct setun_mlx_kernel setun_mlx_kernel;
typedef struct setun_mlx_function setun_mlx_function; /* a traced and, where that is on, compiled graph */

/* ---- devices ---- */
typedef enum setun_mlx_device_kind { SETUN_MLX_CPU = 1, SETUN_MLX_METAL = 2, SETUN_MLX_CUDA = 3 } setun_mlx_device_kind;
typedef struct setun_mlx_device {
    setun_mlx_device_kind backend;
    int index;                  /* among the devices of its kind */
    char name[128], architecture[64]; /* "NVIDIA H200", "sm_90"; "Apple M3 Max", "applegpu_g15s" */
    uint64_t memory_bytes;      /* of the device, or of the machine where memory is shared */
    uint64_t free_bytes;        /* 0: unknown */
    uint64_t working_set_bytes; /* what the maker recommends to keep resident; 0: it says nothing */
    uint64_t buffer_bytes;      /* the largest single buffer; 0: unknown */
    int cores;                  /* CPU threads, CUDA multiprocessors; 0: unknown */
    int compute_major, compute_minor; /* CUDA */
    bool shares_memory;         /* regions become arrays without a copy */
    bool compiles;              /* mx::compile is worth using: not on the CPU, where it starts g++ */
} setun_mlx_device;

/* ---- memory ---- */
typedef enum setun_mlx_limit { SETUN_MLX_LIMIT_MEMORY = 0, SETUN_MLX_LIMIT_CACHE = 1, SETUN_MLX_LIMIT_WIRED = 2 } setun_mlx_limit;
typedef struct setun_mlx_memory { uint64_t active_bytes, peak_bytes, cache_bytes, memory_limit_bytes; } setun_mlx_memory;

/* ---- counters since the library was opened ---- */
typedef struct setun_mlx_counters {
    uint64_t operations;        /* built by op */
    uint64_t kernel_calls;      /* built by kernel_call */
    uint64_t evaluations;       /* eval calls */
    uint64_t synchronisations;  /* times that a host thread waited for a device */
    uint64_t bytes_shared, bytes_copied; /* of arrays made from regions */
    uint64_t traces;            /* times that a function's build ran */
    uint64_t function_calls;
    uint64_t host_kernels_run;
    int64_t arrays, regions, kernels, functions; /* alive */
    int64_t streams;            /* made, in use or waiting to be used again: MLX cannot destroy one */
} setun_mlx_counters;

/* ---- arrays ---- */
typedef struct setun_mlx_spec { setun_dtype dtype; int rank; int64_t dim[SETUN_MLX_MAX_RANK]; } setun_mlx_spec;
typedef struct setun_mlx_array_info {
    setun_mlx_spec spec;
    uint64_t bytes;             /* of the values; a view may lie in more */
    bool evaluated;             /* scheduled: reading waits for it, but does not build it */
    bool available;             /* computed */
    bool contiguous;            /* row-major without gaps; known once evaluated */
} setun_mlx_array_info;

typedef struct setun_mlx_op_request {
    int op;                     /* setun_mlx_op */
    setun_mlx_array *const *inputs; int input_count;
    const int64_t *integers; int integer_count;
    const double *reals; int real_count;
    setun_dtype dtype;          /* 0 where the operation has none */
} setun_mlx_op_request;

typedef enum setun_mlx_op {
#define SETUN_MLX_OP(e, name, i0, i1, n0, n1, r0, r1, o) SETUN_MLX_OP_##e,
#include "bridge_ops.def"
#undef SETUN_MLX_OP
    SETUN_MLX_OP_COUNT
} setun_mlx_op;

/* ---- kernels of our own ---- */
typedef enum setun_mlx_kernel_kind {
    SETUN_MLX_KERNEL_HOST = 1,  /* a C function; CPU streams */
    SETUN_MLX_KERNEL_METAL = 2, /* text of a body, compiled by Metal at the first call */
    SETUN_MLX_KERNEL_CUDA = 3,  /* text of a body, compiled by NVRTC (about 2 s for each set of template arguments) */
    SETUN_MLX_KERNEL_CUDA_BINARY = 4 /* cubin, fatbin or PTX; `name` is the extern "C" symbol, unique in the process */
} setun_mlx_kernel_kind;

typedef struct setun_mlx_host_call {
    const void *const *inputs;  /* row-major, in the order of the call */
    void *const *outputs;       /* memory of the call's specs, not initialised unless asked for */
    const setun_mlx_spec *input_specs, *output_specs;
    int input_count, output_count;
    const void *parameters;     /* a copy of the call's, 16-byte aligned */
    size_t parameter_bytes;
    int grid[3], group[3];      /* as given: the function makes of them what it likes */
    void *user;                 /* of the kernel */
} setun_mlx_host_call;
/* Runs on a thread of MLX. 0 is success; anything else fails the evaluation with "NAME: returned N". */
typedef int (*setun_mlx_host_fn)(const setun_mlx_host_call *call);

typedef struct setun_mlx_kernel_options {
    setun_mlx_kernel_kind kind;
    const char *name;           /* letters, digits, _ */
    const char *const *input_names; int input_count;   /* Metal and CUDA text: the parameters that the body sees */
    const char *const *output_names; int output_count; /* the counts hold for every kind */
    const char *source;         /* the body's text, or the binary */
    size_t source_bytes;        /* of a binary; text ends with 0 */
    const char *header;         /* text before the kernel; NULL: none */
    bool atomic_outputs;        /* Metal */
    int math_mode;              /* Metal: 0 safe, 1 relaxed, 2 fast */
    int shared_bytes;           /* CUDA text: dynamic shared memory of a block */
    bool any_layout;            /* inputs may have strides (the kernel looks at them, or is only given dense ones); default: made row-major first */
    setun_mlx_host_fn host;
    void *user;                 /* of a host kernel; must live as long as arrays made by it are not evaluated */
    bool pure;                  /* host: equal calls give equal results, so compile may merge them */
} setun_mlx_kernel_options;

typedef enum setun_mlx_argument_kind { SETUN_MLX_ARGUMENT_INTEGER = 1, SETUN_MLX_ARGUMENT_BOOL = 2, SETUN_MLX_ARGUMENT_DTYPE = 3, SETUN_MLX_ARGUMENT_REAL = 4 } setun_mlx_argument_kind;
typedef struct setun_mlx_argument {
    setun_mlx_argument_kind kind;
    const char *name;           /* of a template argument; NULL for a scalar */
    int64_t integer;            /* int32 range; BOOL: 0 or 1; DTYPE: a setun_dtype */
    float real;                 /* scalars of CUDA binaries only */
} setun_mlx_argument;

typedef struct setun_mlx_call {
    setun_mlx_array *const *inputs; int input_count;
    const setun_mlx_spec *outputs; int output_count;
    const setun_mlx_argument *templates; int template_count; /* Metal and CUDA text */
    const setun_mlx_argument *scalars; int scalar_count;     /* CUDA binaries: by value after inputs and outputs; bool, int or float */
    int grid[3];                /* in THREADS, not blocks; CUDA rounds up to whole blocks */
    int group[3];               /* threads of a group or block */
    int shared_bytes;           /* CUDA binaries: dynamic shared memory of a block */
    bool initialise; float initial; /* outputs are filled first */
    const void *parameters; size_t parameter_bytes; /* host kernels; copied */
} setun_mlx_call;

/* ---- compiled graphs ---- */
/* Builds outputs[output_count] from the inputs with op and kernel_call on the function's stream; must not evaluate. The inputs are
 * borrowed, the outputs given away. Called once for each set of shapes and dtypes when compiling is on, at every call when off. */
typedef setun_status (*setun_mlx_build_fn)(void *user, setun_mlx_array *const *inputs, int input_count, setun_mlx_array **outputs, int output_count);

typedef struct setun_mlx_table {
    size_t size;                /* of this struct */
    int abi;
    const char *built_for;      /* the MLX whose headers it was compiled with, "0.32.4" */

    /* what there is */
    const char *(*version)(void);                 /* of the MLX that was loaded */
    const char *(*error)(void);                   /* this thread's last message; "" if none */
    const char *(*op_name)(int op);               /* NULL out of range */
    int (*device_count)(bool gpu);
    setun_status (*device_get)(bool gpu, int index, setun_mlx_device *out); /* of a GPU, tries one small computation */
    void (*counters)(setun_mlx_counters *out);

    /* memory; process-wide, as in MLX */
    setun_status (*limit_set)(setun_mlx_limit limit, uint64_t bytes, uint64_t *out_previous); /* the wired limit is Metal's alone: elsewhere 0 before and after */
    void (*memory_get)(setun_mlx_memory *out);
    setun_status (*cache_clear)(void);
    void (*peak_reset)(void);

    /* streams */
    setun_status (*stream_open)(bool gpu, int index, setun_mlx_stream **out);
    void (*stream_close)(setun_mlx_stream *stream);           /* waits for its work */
    setun_status (*stream_synchronize)(setun_mlx_stream *stream);
    setun_status (*event_record)(setun_mlx_stream *stream, setun_mlx_array **out_event); /* available when all work given to the stream before is done */
    setun_status (*event_wait)(setun_mlx_stream *stream, setun_mlx_array *event);        /* work given to the stream from now on starts after it; the host does not wait */

    /* arrays. values: row-major */
    setun_status (*array_from_host)(setun_mlx_stream *stream, const setun_mlx_spec *spec, const void *values, setun_mlx_array **out); /* copies at once; to device memory on CUDA */
    void (*array_retain)(setun_mlx_array *array, setun_mlx_array **out); /* another handle of the same value */
    void (*array_release)(setun_mlx_array *array);
    setun_status (*array_get)(const setun_mlx_array *array, setun_mlx_array_info *out);
    /* Schedules all of them; wait: and returns when they are computed. */
    setun_status (*eval)(setun_mlx_stream *stream, setun_mlx_array *const *arrays, int count, bool wait);
    setun_status (*wait)(setun_mlx_array *array);
    /* Evaluates, makes row-major, copies to out; bytes must be exactly the values'. */
    setun_status (*read)(setun_mlx_stream *stream, setun_mlx_array *array, void *out, size_t bytes);
    /* The values' own memory, where the host may read it (CPU and Metal, evaluated and row-major). CUDA: UNSUPPORTED. */
    setun_status (*array_data)(setun_mlx_array *array, const void **out);
    /* mlx::core::array *, as mlx-c's mlx_array.ctx: another reference to theirs; and a borrowed pointer to ours. */
    setun_status (*array_from_mlx)(const void *mlx_array, setun_mlx_array **out);
    setun_status (*array_to_mlx)(setun_mlx_array *array, void **out);

    /* Host memory that arrays are views of: base[0..bytes) must stay readable until done(user) is called, once the region's handle
     * and all its arrays are gone (on any thread). Metal: base and bytes are multiples of the page size. */
    setun_status (*region_create)(setun_mlx_stream *stream, void *base, size_t bytes, void (*done)(void *user), void *user, setun_mlx_region **out);
    void (*region_release)(setun_mlx_region *region);
    /* strides in elements, NULL: row-major. *out_shared: the array is that memory (CPU, Metal); false: it was copied to the device
     * (CUDA), or MLX's way to share failed its self-test. Never written to. */
    setun_status (*array_wrap)(setun_mlx_region *region, uint64_t offset, const setun_mlx_spec *spec, const int64_t *strides, setun_mlx_array **out, bool *out_shared);
    /* What DLPack calls the memory of an evaluated array: 1 host, 2 CUDA, 13 CUDA managed, 8 Metal (the pointer is the buffer object). */
    setun_status (*array_device_pointer)(setun_mlx_array *array, int *out_dlpack_device, int *out_device_index, void **out_pointer, uint64_t *out_byte_offset);

    /* operations and kernels */
    setun_status (*op)(setun_mlx_stream *stream, const setun_mlx_op_request *request, setun_mlx_array **outputs, int output_count);
    setun_status (*kernel_create)(const setun_mlx_kernel_options *options, setun_mlx_kernel **out); /* copies all texts */
    void (*kernel_release)(setun_mlx_kernel *kernel);
    setun_status (*kernel_call)(setun_mlx_stream *stream, setun_mlx_kernel *kernel, const setun_mlx_call *call, setun_mlx_array **outputs);

    /* graphs */
    setun_status (*compile_set)(bool on);         /* default: on where the device compiles */
    bool (*compile_get)(setun_mlx_stream *stream);/* will functions of this stream be compiled? */
    setun_status (*function_create)(setun_mlx_stream *stream, setun_mlx_build_fn build, void *user, bool any_shape, setun_mlx_function **out);
    void (*function_release)(setun_mlx_function *function);
    setun_status (*function_call)(setun_mlx_function *function, setun_mlx_array *const *inputs, int input_count, setun_mlx_array **outputs, int output_count);
} setun_mlx_table;

/* The only exported function. NULL when the bridge has another ABI. */
typedef const setun_mlx_table *(*setun_mlx_bridge_fn)(int abi);

#ifdef __cplusplus
}
#endif
#endif
