/*
 * decode.h - one decode step of a whole model as one CUDA kernel: the table that the kernel walks, shared by the C that makes
 * it (decode_layout.c, decode_plan.c) and the device text (decode.cu), so it is C, C++ and NVRTC text without headers.
 * Caller: the MLX lowering, bench/cuda_decode.cu. Knows no MLX.
 *
 * How the kernel works. `grid` blocks, one on each multiprocessor, all resident; block b owns some 16-row tiles of every linear step.
 * Its tiles lie one after another in the weights, in the order of the steps (the block's stream), so one warp can copy the stream into a ring in
 * shared memory as far ahead as the ring is long, whatever the others wait for. Steps exchange vectors through L2 without
 * barriers: a vector is written as 32-bit words whose two lowest bits are a sequence number and the rest a float rounded to 22
 * significant bits, and a reader loads a word until it has the number it expects. The residual stream stays in the shared
 * memory of who owns its rows, unrounded.
 *
 * One run on a device at a time: two kernels that wait for their own blocks could each hold half of the multiprocessors.
 * setun_cuda_decode_one (one sequence) goes further: whoever writes a vector multiplies it with the weights of the norm that its reader
 * applies, and adds two words, the largest weighted magnitude of its rows and the sum of their unweighted squares. So a
 * reader knows the norm's and the rounding's factor from those few words.
 *
 * Waiting is bounded (SETUN_CUDA_SPIN_LIMIT), then the run ends with status 1 and the state must be zeroed.
 */
#ifndef SETUN_CUDA_DECODE_H
#define SETUN_CUDA_DECODE_H

enum {
    SETUN_CUDA_WARPS = 8,                   /* of setun_cuda_decode_many: that compute, so that each thread has 168 registers; one more copies */
    SETUN_CUDA_ONE_WARPS = 16,              /* of setun_cuda_decode_one: that compute; one more sums and finishes, one copies (decode_one.inc) */
    SETUN_CUDA_THREADS = (SETUN_CUDA_WARPS + 1) * 32,
    SETUN_CUDA_ONE_THREADS = (SETUN_CUDA_ONE_WARPS + 2) * 32,
    SETUN_CUDA_TILE_ROWS = 16,
    SETUN_CUDA_UNIT_BYTES = 512,            /* 16 rows x 128 columns at 2 bits */
    SETUN_CUDA_UNIT_COLUMNS = 128,
    SETUN_CUDA_STAGE_UNITS = 40,            /* of the ring */
    SETUN_CUDA_STAGE_BYTES = SETUN_CUDA_STAGE_UNITS * SETUN_CUDA_UNIT_BYTES,
    SETUN_CUDA_GROUP = 8,                   /* tokens that one product takes */
    SETUN_CUDA_TOKENS = 32,                 /* sequences of a run, at most */
    SETUN_CUDA_ONE_KEEP = 8,                /* pieces of 128 columns that a warp of setun_cuda_decode_one keeps in registers */
    SETUN_CUDA_ONE_COLUMNS = SETUN_CUDA_ONE_KEEP * SETUN_CUDA_ONE_WARPS * 128, /* so rows of at most this length; longer ones take _many */
    SETUN_CUDA_TILES = 8,                   /* tiles of a block that are multiplied between two waits */
    SETUN_CUDA_WARP_TILES = 4,              /* of those, a warp's */
    SETUN_CUDA_CHUNK = 256,                 /* keys of one turn of the attention */
    SETUN_CUDA_HEADS = 4,                   /* query heads that one block takes over one kv head */
    SETUN_CUDA_SPLITS = 16                  /* parts of a context, at most */
};
enum { SETUN_CUDA_LINEAR = 1, SETUN_CUDA_ATTENTION = 2 };
enum { SETUN_CUDA_ACT_NONE, SETUN_CUDA_ACT_SILU, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_ACT_GELU };
/* Dense rows of the embedding and of the head. Q8: a row is `columns` int8, then columns/32 f16 scales, padded to 16 bytes. */
enum { SETUN_CUDA_BF16, SETUN_CUDA_F16, SETUN_CUDA_Q8 };
enum { SETUN_CUDA_WANT_LOGITS = 1 };        /* flags of a run */

/* The table: header, steps, then the blocks' streams and work. Offsets of vectors are in words from state + vectors. */
typedef struct setun_cuda_header {
    int magic, bytes;                       /* of the table */
    int grid, tokens_max, steps, width, vocabulary;
    int stages, shared_bytes;               /* ring; dynamic shared memory */
    int scratch_bytes;                      /* of the shared memory: what steps use one after another */
    int floats;                             /* in the weights: offset of the f32 section, in units of 16 bytes */
    int state_bytes, best, vectors;         /* state: best is the byte offset of u64 [tokens_max][grid], vectors of the words */
    int first_step, first_streams, first_work; /* ints from the table's start */
    int embedding_format, embedding_row_bytes; float embedding_factor;
    int head_format, head_row_bytes, head_rows_per_stage, head_batch; /* rows a warp takes at once: 4, 2 or 1 */
    int head_norm; float head_epsilon, head_factor; /* norm: f32 offset, -1: none */
    int head_in, head_uses, head_use, head_stride;
    int rope_frequencies; float rope_magnitude; int rope_interleaved; /* f64 [half] as pairs of ints, in the f32 section */
    int head_size, kv_heads, cache_layers;
    int owned;                              /* rows of the residual stream that one block owns, at most */
    int embedded;                           /* vector of the tokens' embedding rows [tokens_max][width] */
    int many;                               /* 1: launch setun_cuda_decode_many, 0: setun_cuda_decode_one */
    int residual_step;                      /* a step with a residual sum: its tiles say which rows a block owns */
    int threads;                            /* of a block */
    int first_norm;                         /* decode_one: f32 offset of the first step's norm, -1: none */
    int embedded_sums, head_sums, head_sum_count, sums_stride; /* decode_one: where the maxima of the embedding and of the head's input begin; from a maximum to its sum */
    int parts_bytes, rounded_bytes;         /* decode_one: shared memory of the warps' sums; of a step's rounded input */
} setun_cuda_header;

typedef struct setun_cuda_step {
    int kind;
    int in, in_stride, in_uses, in_use;     /* A vector is written `uses` times a token, this is number `use` */
    int out, out_stride, out_uses, out_use;
    int columns, blocks;                    /* LINEAR: input width; units across */
    int rows;                               /* LINEAR: outputs (padding of each weight to whole tiles included, last padding excluded) */
    int norm; float epsilon;                /* f32 offset of the norm's weights; -1: none (epsilon < 0: no norm at all) */
    int scales, bias;                       /* f32 offsets [tiles * 16] in the order of tiles; bias -1: none */
    int gated, activation, residual; float factor;
    int heads, kv_heads, q, k, v;           /* ATTENTION: words of the input vector where these begin */
    int layer, window; float scale;
    int partial;                            /* word where the parts of a split context begin, u64 [tokens_max][heads][SPLITS][head_size + 2]: float, count */
    int most;                               /* LINEAR: tiles at once: they fit in the ring */
    int out_norm;                           /* decode_one: f32 offset of the reader's norm, -1: none */
    int in_sums, in_sum_count, out_sums;    /* decode_one: words where the maxima begin (out_sums -1: no reader wants them); their number */
} setun_cuda_step;
enum { SETUN_CUDA_STEP_INTS = sizeof(setun_cuda_step) / 4 };

typedef struct setun_cuda_work { int tile, tiles, unit, split, part, reserved; } setun_cuda_work; /* of one block in one step; unit in its stream; split: log2 of the warps that share the columns; part: number among the blocks with tiles */
enum { SETUN_CUDA_WORK_INTS = 6 };
typedef struct setun_cuda_stream { int unit, units, head_row, head_rows; } setun_cuda_stream; /* unit: from the weights' start */

/* A run's numbers: ints. Header, then ids [steps][tokens] (below 0: the token that the step before chose; the first step's are
 * given), positions [tokens], capacity [tokens] of the caches, and for each token two 64-bit byte offsets from `cache`, as
 * low and high ints: keys and values, f16 [layers][kv_heads][capacity][head_size]. */
typedef struct setun_cuda_run { int tokens, steps, flags, reserved; } setun_cuda_run;
enum { SETUN_CUDA_RUN_INTS = 4 };

/* state: zeroed once, then kept from run to run */
typedef struct setun_cuda_state { unsigned status, reserved[31]; unsigned counter[SETUN_CUDA_TOKENS]; } setun_cuda_state; /* counter: steps that row t took part in */

/* Dynamic shared memory: ring, scratch, then these, in this order. The block's own numbers and a copy of the header stand beside it. */
enum { SETUN_CUDA_STATIC_SHARED = 1024 };
#ifdef __CUDACC__
#define SETUN_CUDA_BOTH static __host__ __device__ __forceinline__
#else
#define SETUN_CUDA_BOTH static inline
#endif
typedef struct setun_cuda_shared { int barriers, steps, reduce, small, rope, residual, parts, rounded, factors, end; } setun_cuda_shared; /* byte offsets; the last three: decode_one */
SETUN_CUDA_BOTH setun_cuda_shared setun_cuda_shared_of(const setun_cuda_header *h)
{
    setun_cuda_shared s;
    s.barriers = h->stages * SETUN_CUDA_STAGE_BYTES + h->scratch_bytes;
    s.steps = s.barriers + 2 * 8 * h->stages;
    s.steps = (s.steps + 15) / 16 * 16;
    s.reduce = (s.steps + (h->many ? 2 : h->steps) * 4 * (SETUN_CUDA_STEP_INTS + SETUN_CUDA_WORK_INTS) + 15) / 16 * 16; /* decode_one has all of them there */
    s.small = s.reduce + SETUN_CUDA_ONE_WARPS * 8;
    s.rope = s.small + 4 * (SETUN_CUDA_GROUP + SETUN_CUDA_WARPS + 3 * SETUN_CUDA_TOKENS + 4 * SETUN_CUDA_HEADS + 16);
    s.residual = s.rope + h->tokens_max * h->head_size * 4;
    s.parts = (s.residual + h->tokens_max * h->owned * 4 + 127) / 128 * 128;
    s.rounded = s.parts + h->parts_bytes;
    s.factors = s.rounded + h->rounded_bytes;
    s.end = h->many ? s.parts : s.factors + 160 + SETUN_CUDA_ONE_WARPS * 32;
    return s;
}
/* Bytes between the tokens of the rounded input: rows of a token start eight banks apart. */
SETUN_CUDA_BOTH int setun_cuda_x_stride(int blocks) { return blocks * SETUN_CUDA_UNIT_COLUMNS + 32; }

#ifndef __CUDACC_RTC__
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
/* What the table is made from: a model as this kernel sees it. */
typedef struct setun_cuda_matrix {
    int64_t rows, columns;
    float scale; const float *row_scales;   /* row_scales NULL: one for all */
    const float *bias;                      /* NULL: none */
    void *source;                           /* for `codes` */
} setun_cuda_matrix;
typedef struct setun_cuda_op {
    int kind;
    bool normed; const float *norm; float epsilon; /* LINEAR: an RMSNorm before the rounding; norm NULL: no weights */
    int matrix_count; setun_cuda_matrix matrix[3]; /* concatenated; or gate and up */
    bool gated, residual; int activation; float factor;
    int heads, kv_heads, layer, window; float scale; /* ATTENTION */
} setun_cuda_op;
typedef struct setun_cuda_model {
    const setun_cuda_op *ops; int op_count; /* LINEAR q,k,v | ATTENTION | LINEAR + residual | LINEAR gated (or not) | LINEAR + residual | ... */
    int width, vocabulary, head_size, kv_heads, layers;
    int embedding_format, head_format; float embedding_factor, head_factor;
    bool head_normed; const float *head_norm; float head_epsilon;
    const double *rope_frequencies; float rope_magnitude; bool rope_interleaved; /* [head_size/2] */
    /* codes (value + 1) of rows row .. row+rows-1, [rows, columns]; false: they could not be read */
    bool (*codes)(void *source, int64_t row, int64_t rows, uint8_t *codes);
} setun_cuda_model;
typedef struct setun_cuda_limits { int multiprocessors, shared_bytes; } setun_cuda_limits; /* shared memory that one block may have */

/* The table for runs of at most tokens_max sequences, and the bytes of weights it wants. Tables for other tokens_max over the
 * same model and limits use the same weights. On refusal *why says what the kernel cannot do (static text), and *table is NULL.
 * Free with setun_cuda_table_free. */
bool setun_cuda_layout(const setun_cuda_model *model, const setun_cuda_limits *limits, int tokens_max, setun_cuda_header **table, size_t *weight_bytes, const char **why);
void setun_cuda_table_free(setun_cuda_header *table);
/* Fills the weights. False: out of memory, or codes said so. */
bool setun_cuda_pack(const setun_cuda_model *model, const setun_cuda_header *table, uint8_t *weights);
/* The same in parts, which several threads may pack at once: each op, and what belongs to none. */
bool setun_cuda_pack_op(const setun_cuda_model *model, const setun_cuda_header *table, int op, uint8_t *weights);
void setun_cuda_pack_rest(const setun_cuda_model *model, const setun_cuda_header *table, uint8_t *weights);
int setun_cuda_dense_row_bytes(int format, int columns);
/* One row of Q8_0 blocks into the kernel's order. */
void setun_cuda_pack_q8(const uint8_t *blocks, int columns, uint8_t *row);
static inline size_t setun_cuda_run_ints(int tokens, int steps) { return SETUN_CUDA_RUN_INTS + (size_t)steps * (size_t)tokens + 6 * (size_t)tokens; }
#ifdef __cplusplus
}
#endif
#endif
#endif
