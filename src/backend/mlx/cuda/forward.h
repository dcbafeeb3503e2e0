/*
 * forward.h - what the host must know of forward.cu's kernels: the numbers of a run that they read, grids, shared memory.
 * Caller: the engine, the tests; forward.cu includes it. Plain C and C++, no CUDA. It refuses to know models and plans.
 *
 * A run is rows of one or more sequences, one after another. Its numbers are int32, in device memory (setun_forward_run says where):
 * the sequences, then of each row its id and its sequence, then the attention's work.
 */
#ifndef SETUN_CUDA_FORWARD_H
#define SETUN_CUDA_FORWARD_H

typedef struct setun_forward_sequence {
    int first_row, rows;        /* of the run */
    int position, capacity;     /* place of its first row in the cache; places of the cache */
    unsigned long long keys, values; /* f16 [layers][kv_heads][capacity][head_size] */
} setun_forward_sequence;
/* One block of the prompts' attention: packed rows first .. of a sequence. Packed row p is query head p % group of the kv head, of row p / group. */
typedef struct setun_forward_work { int sequence, first; } setun_forward_work;

enum {
    SETUN_FORWARD_KEYS = 64,            /* keys that a warp multiplies at once */
    SETUN_FORWARD_THREADS = 256,
    SETUN_FORWARD_STAGES = 2,           /* of keys and values in shared memory */
    SETUN_FORWARD_HEADS = 4,            /* query heads that a block of one-row sequences takes */
    SETUN_FORWARD_SINGLE_THREADS = 128,
    SETUN_FORWARD_SPLITS = 16,          /* parts of a context, at most */
    SETUN_FORWARD_HEAD_ROWS = 256,      /* rows of the vocabulary of one turn of a block */
    SETUN_FORWARD_HEAD_CHUNK = 256,     /* columns of the tokens in shared memory at once */
    SETUN_FORWARD_HEAD_TOKENS = 32      /* tokens of a launch, at most; the kernels come for 8 and for so many */
};
/* Packed rows of a block of the prompts' attention, and its shared memory: stages, and for one part the queries. With two `parts` two groups of warps
 * share the keys of fewer rows, which is for short prompts. */
#define SETUN_FORWARD_QUERIES(parts) (128 / (parts))
#define SETUN_FORWARD_ATTENTION_THREADS(parts) (128 * (parts))
#define SETUN_FORWARD_SHARED(size, parts) (SETUN_FORWARD_STAGES * SETUN_FORWARD_KEYS * (parts) * (size) * 4 + ((parts) == 1 ? SETUN_FORWARD_QUERIES(1) * (size) * 2 : 0))
/* Floats of a part of a context: sums, largest score, total; of [sequences][heads][splits] */
#define SETUN_FORWARD_PARTIAL(size) ((size) + 2)
/* Columns of a token as the head reads them: halves high [padded], low [padded]. */
#define SETUN_FORWARD_PADDED(width) (((width) + SETUN_FORWARD_HEAD_CHUNK - 1) / SETUN_FORWARD_HEAD_CHUNK * SETUN_FORWARD_HEAD_CHUNK)
#define SETUN_FORWARD_HEAD_STRIDE (SETUN_FORWARD_HEAD_CHUNK * 2 + 64) /* bytes of a token's chunk in shared memory: no conflicts of banks */
#define SETUN_FORWARD_HEAD_SHARED(tokens) (2 * 2 * (tokens) * SETUN_FORWARD_HEAD_STRIDE)

#endif
