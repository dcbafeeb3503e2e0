/*
 * plan.h - floor 4: everything is decided here, once. A graph is verified, cleaned (dead and common nodes), fused, ordered, and
 * its intermediates laid into one arena by their lifetimes. The result is a frozen tape of steps that backends run and
 * `setun explain` prints. Knows no kernel: a backend fills step->kernel in prepare.
 */
#ifndef SETUN_PLAN_H
#define SETUN_PLAN_H

#include "graph/graph.h"

typedef enum setun_step_kind {
#define SETUN_STEP(e, name) SETUN_STEP_##e,
#include "plan/steps.def"
#undef SETUN_STEP
    SETUN_STEP_COUNT
} setun_step_kind;

/* A value of the tape. Rows are the product of all dims but the last; the first dim may be symbolic.
 * F32/I32: rows * width elements, dense. Q8: see setun_q8_*: int8 rows [rows, stride], then f32 scale[rows], then i32 sum[rows]. */
typedef enum setun_slot_place { SETUN_PLACE_ARENA, SETUN_PLACE_INPUT, SETUN_PLACE_OUTPUT } setun_slot_place;
typedef struct setun_slot {
    setun_dtype dtype;
    setun_shape shape;
    setun_slot_place place;     /* INPUT and OUTPUT slots lie in the arena too, alive for the whole run */
    uint64_t offset, bytes;     /* in the arena, 64-byte aligned; bytes for the maximal run */
    int first_step, last_step;  /* lifetime */
    int alias_of;               /* slot whose memory this one shares on purpose (in place, reshape); -1: none */
    char name[64];              /* inputs and outputs */
} setun_slot;

/* Where a prepared weight's bytes are, for explain. The backend fills one for every weight and bias of a step in prepare. */
typedef enum setun_weight_origin { SETUN_WEIGHT_UNPREPARED, SETUN_WEIGHT_MAPPED, SETUN_WEIGHT_PACKED, SETUN_WEIGHT_COPIED } setun_weight_origin;
typedef struct setun_weight_report {
    setun_weight_origin origin; /* MAPPED: kernels read the file's bytes; PACKED: another layout, in memory; COPIED: the same values, in memory */
    uint64_t bytes;             /* that the kernels read, scales included */
    const char *layout;         /* static text: "packed-2bit", "packed-trits", "q8_0", "f32"; NULL before prepare */
    const char *reason;         /* why this origin and layout; static text or NULL */
} setun_weight_report;

#define SETUN_STEP_WEIGHTS 3
typedef struct setun_step {
    setun_step_kind kind;
    char fused[96];             /* "rms_norm+quantize": the graph operations inside, in order */
    int input[4];               /* slot indices; -1: none. By kind:
                                   EMBEDDING ids | NORM x | QUANTIZE x | LINEAR x | UNARY x | BINARY a, b | SOFTMAX/L2/HADAMARD x
                                   SELECT x, rows | ROPE x, positions | ATTENTION q, k, v, positions(-1 without rope) */
    int output[SETUN_STEP_WEIGHTS]; /* -1: none */
    /* weights; NORM: [0] (or none). EMBEDDING: [0]. LINEAR: weight_count of them. ATTENTION: [0] q norm, [1] k norm. */
    int weight_count;
    const setun_weight *weight[SETUN_STEP_WEIGHTS];
    const setun_weight *bias[SETUN_STEP_WEIGHTS];
    /* whose lock guards the weights' `prepared`. NULL: all belong to the graph's storage, which one thread uses at a time. A
     * step may mix weights of ONE model with weights of the storage; the model's lock then covers both. Who fills
     * weight->prepared also sets model->free_prepared and calls setun_graph_storage_set_free(plan->storage, ..). */
    setun_model *model;
    bool quantized_input;       /* LINEAR: x is q8 (so that `supports` need not look at slots) */
    /* LINEAR epilogue, applied in this order: y = W x + bias; gated: y = act(y0) * y1 (2 weights -> 1 output);
       y *= factor; y += residual */
    bool gated;
    setun_op activation;        /* SILU, RELU2, GELU: gated LINEAR and UNARY; UNARY also SCALE; BINARY: ADD, MULTIPLY */
    int residual;               /* slot or -1 */
    float factor;               /* 1: none. UNARY SCALE; EMBEDDING; LINEAR */
    bool quantize;              /* NORM gives q8 */
    float epsilon; bool one_plus;
    float epsilon_k; bool one_plus_k; bool norm_q, norm_k; /* ATTENTION: epsilon is q's */
    bool has_rope;              /* ATTENTION: rotate q and k (after their norms); ROPE: always */
    setun_rope_spec rope;
    setun_attention_spec attention;
    int heads, kv_heads, head_size; /* ATTENTION, ROPE (heads, head_size) */
    int block; bool inverse; const float *signs; int64_t sign_count; /* HADAMARD */
    /* filled by the backend in prepare */
    const char *kernel;         /* for explain: "ternary_i8[avx512]" */
    void *prepared[SETUN_STEP_WEIGHTS];      /* the weights' prepared forms */
    void *prepared_bias[SETUN_STEP_WEIGHTS]; /* f32 vectors */
    setun_weight_report report[SETUN_STEP_WEIGHTS], bias_report[SETUN_STEP_WEIGHTS];
    void *backend_data;         /* rope tables and the like; freed by the backend's release */
} setun_step;

typedef struct setun_backend setun_backend;

/* How the highest logits of a vocabulary projection are found where only those are wanted (setun_head_request). FULL: by all of them; PROVED: a small copy
 * of the weight says which rows may be among them, and those are computed; SHORTLIST: a smaller one says which probably are. */
typedef enum setun_head_mode { SETUN_HEAD_FULL, SETUN_HEAD_PROVED, SETUN_HEAD_SHORTLIST } setun_head_mode;

typedef struct setun_plan_stats { int graph_nodes, dead_nodes, common_nodes, fused_nodes; uint64_t arena_bytes, arena_bytes_without_reuse; } setun_plan_stats;

struct setun_plan {
    setun_context *context;
    const setun_backend *backend;
    setun_step *steps; int step_count;
    setun_slot *slots; int slot_count;
    uint64_t arena_bytes;
    uint64_t scratch_bytes;     /* backend's working memory, after the slots, set in prepare */
    int tokens_max, outputs_max;
    setun_dtype precision;      /* of activations on devices that offer a choice: 0 (F32), BF16, F16 */
    int cache_layers, cache_kv_heads, cache_head_size; /* what the cached attentions need; layers 0: none */
    struct { setun_head_mode mode; int step, bits; uint64_t bytes; } head; /* mode: what is asked for; the rest is set in prepare. bits 0: there is no small copy */
    setun_plan_stats stats;
    setun_graph_storage *storage;
    /* Set by the backend in prepare: setun_plan_free calls it, as this floor does not know the vtable. Must bear a second call. */
    void (*release)(const setun_backend *backend, struct setun_plan *plan);
    void *owned;                /* plan API state (frame, cache) for plans made by setun_graph_compile */
};

typedef struct setun_plan_options {
    int tokens_max, outputs_max;
    bool no_fusion;
    setun_head_mode head;
    setun_dtype precision;      /* 0: F32 */
    /* The backend's member of this name: asked for every unfused step (false: the plan is refused, naming the step) and
     * before every fusion (false: it stays undone). NULL: everything is supported. */
    bool (*supports)(const setun_backend *backend, const setun_step *step);
} setun_plan_options;
/*
 * What a backend may rely on
 *  - Memory that is written and read by one step, the whole list (alias_of of the output names the input's slot):
 *      UNARY, BINARY    output may be input 0 (BINARY: or input 1, or a + a): element i is written after it was read
 *      NORM f32 -> f32  output may be the input (rms_norm kernels allow it)
 *      LINEAR           output[0] may be the residual's slot, never x: read residual[t][r] before writing out[t][r]
 *    In every other case outputs share no byte with inputs, and outputs of one step share none with each other.
 *  - RESHAPE makes no step: its slot aliases the other. ATTENTION's q, k, v and ROPE's x are [T, heads, head_size] slots, ATTENTION's
 *    output is [T, heads * head_size]; all rows are dense, so [T, heads, d] and [T, heads * d] are the same bytes.
 *  - residual and factor != 1 occur only on a LINEAR with one output (one weight, or gated).
 *  - HADAMARD: y = H(s * x) per block; inverse: y = s * (H x). signs: [width], +1 or -1, or NULL.
 *  - The first dimension of ATTENTION's tensors is SETUN_DIM_TOKENS. Each cache layer is written by one step.
 *  - INPUT slots are never written by a step.
 */
/* Passes in order, each its own function and file: clean (dead, common), fuse, schedule, memory. verify after each. */
setun_status setun_plan_build(const setun_graph *graph, const setun_backend *backend, const setun_plan_options *options, setun_plan **out);
void setun_plan_free(setun_plan *plan); /* NULL is fine */
const char *setun_step_name(setun_step_kind kind);
/* Checks the tape from scratch: kinds, dtypes and shapes of every step, written before read and only once, and (when the arena is
 * laid) that no two slots alive at the same time share a byte except as listed above. */
setun_status setun_plan_verify(const setun_plan *plan);
/* Bytes and numbers of weights by origin [setun_weight_origin]; one that several steps read counts once. */
enum { SETUN_WEIGHT_ORIGINS = 4 };
typedef struct setun_weight_totals { uint64_t bytes[SETUN_WEIGHT_ORIGINS]; int count[SETUN_WEIGHT_ORIGINS]; } setun_weight_totals;
setun_status setun_plan_weights(const setun_plan *plan, setun_weight_totals *out);
int setun_plan_find_slot(const setun_plan *plan, setun_slot_place place, const char *name); /* -1 if absent */
/* Text or JSON. step_seconds: [step_count] or NULL. */
setun_status setun_plan_dump(const setun_plan *plan, bool json, const double *step_seconds, char **out);

/* Resolves a symbolic dim for a run. */
static inline int64_t setun_dim_value(int64_t dim, int tokens, int outputs) { return dim == SETUN_DIM_TOKENS ? tokens : dim == SETUN_DIM_OUTPUTS ? outputs : dim; }
static inline int64_t setun_slot_width(const setun_slot *s) { return s->shape.dim[s->shape.rank - 1]; }
static inline int64_t setun_slot_rows(const setun_slot *s, int tokens, int outputs) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < s->shape.rank; i++) rows *= setun_dim_value(s->shape.dim[i], tokens, outputs);
    return rows;
}
/* Q8 slots: layout for the slot's maximal number of rows, so that offsets do not depend on the run. */
static inline int64_t setun_q8_stride(int64_t width) { return (width + 127) / 128 * 128; } /* bytes of a row; tail zero */
static inline uint64_t setun_q8_scale_offset(int64_t rows_max, int64_t width) { return (uint64_t)rows_max * (uint64_t)setun_q8_stride(width); }
static inline uint64_t setun_q8_sum_offset(int64_t rows_max, int64_t width) { return setun_q8_scale_offset(rows_max, width) + ((uint64_t)rows_max * 4 + 63) / 64 * 64; }
static inline uint64_t setun_q8_bytes(int64_t rows_max, int64_t width) { return setun_q8_sum_offset(rows_max, width) + (uint64_t)rows_max * 4; }

#endif
