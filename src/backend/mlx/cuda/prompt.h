/*
 * prompt.h - what the host must know of the CUDA kernels for prompts (prompt.cu): the layouts they read, how rows get there, and
 * which kernel, grid and shared memory a product takes. Caller: the lowering, the tests and the bench; prompt.cu itself includes it.
 * Plain C and C++, no CUDA, no allocation. It refuses to know MLX, the graph and the model.
 */
#ifndef SETUN_CUDA_PROMPT_H
#define SETUN_CUDA_PROMPT_H

#ifdef __CUDACC_RTC__ /* has no headers and no host */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define SETUN_PROMPT_BOTH static inline __device__
#else
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __CUDACC__
#define SETUN_PROMPT_BOTH static inline __host__ __device__
#else
#define SETUN_PROMPT_BOTH static inline
#endif
#endif

/*
 * Columns come in blocks of 128; columns past the last are code 1 (weights) and 0 (activations), so they add nothing.
 *
 * Weights. A tile is 256 packed rows x 1 block = 8192 bytes, one copy; tiles of one 256 rows lie one after the other, block by block:
 *     uint32 words[ceil(rows / 256)][blocks][slab 16][lane 32][4]
 * Each word is 4 bytes of a row in the packed form of ternary.h (its byte p of 32 holds weights p, 32+p, 64+p, 96+p in bits 7-6 .. 1-0),
 * unchanged: packing moves words, it never touches bits. Lane l of slab s has, of rows 256*tile + 16*s + 2*(l/4) (+1):
 *     word 0: bytes 4*(l%4) .. +3 of the even row    word 2: bytes 16 + 4*(l%4) .. +3 of the even row
 *     word 1: the same of the odd row                word 3: the same of the odd row
 * so that (word >> (6 - 2*i)) & 0x03030303, i = 0..3, are the four A registers of the i-th product of 32 columns of both
 * mma.m16n8k32 and wgmma.m64nNk32, if the even row sits in row l/4 of a fragment and the odd one in row l/4 + 8.
 *
 * Gated pairs: packed row 2i is gate's row i, 2i+1 is up's, so one thread ends up with both.
 *
 * Activations. int8, tokens in groups of 8:
 *     int8 x[blocks][groups][token 8][128], where 16-byte piece c of a token's 128 is stored at piece c ^ (token % 8)
 * which is wgmma's 128-byte swizzle; n tokens of a block are one contiguous copy. Then f32 scale[tokens], i32 sum[tokens].
 */
#define SETUN_PROMPT_CODE_ONE 0x55555555u /* sixteen weights of value 0 */

SETUN_PROMPT_BOTH int64_t setun_prompt_blocks(int64_t columns) { return (columns + 127) / 128; }
SETUN_PROMPT_BOTH int64_t setun_prompt_groups(int64_t tokens) { return (tokens + 7) / 8; }
SETUN_PROMPT_BOTH uint64_t setun_prompt_weight_words(int64_t rows, int64_t columns) { return (uint64_t)((rows + 255) / 256) * (uint64_t)setun_prompt_blocks(columns) * 2048u; }
SETUN_PROMPT_BOTH uint64_t setun_prompt_activation_bytes(int64_t tokens, int64_t columns) { return (uint64_t)setun_prompt_blocks(columns) * (uint64_t)setun_prompt_groups(tokens) * 1024u; }

/* Where word q (0..7) of the 32 bytes of block b of a packed row goes. */
SETUN_PROMPT_BOTH uint64_t setun_prompt_word_index(int64_t row, int64_t blocks, int64_t b, int q)
{
    int within = (int)(row % 256), slab = within / 16, lane = within % 16 / 2 * 4 + q % 4, word = q / 4 * 2 + within % 2;
    return ((((uint64_t)(row / 256) * (uint64_t)blocks + (uint64_t)b) * 16 + (uint64_t)slab) * 32 + (uint64_t)lane) * 4 + (uint64_t)word;
}

/* Where column k of a token's int8 row goes; groups is setun_prompt_groups of all tokens. */
SETUN_PROMPT_BOTH uint64_t setun_prompt_activation_index(int64_t token, int64_t groups, int64_t k)
{
    int64_t piece = k % 128 / 16 ^ token % 8;
    return (uint64_t)((k / 128 * groups + token / 8) * 1024 + token % 8 * 128 + piece * 16 + k % 16);
}

#ifndef __CUDACC_RTC__
/* Before the first setun_prompt_pack: rows that nobody packs are zeros. */
static inline void setun_prompt_pack_begin(uint32_t *words, int64_t rows, int64_t columns)
{
    uint64_t count = setun_prompt_weight_words(rows, columns);
    for (uint64_t i = 0; i < count; i++) words[i] = SETUN_PROMPT_CODE_ONE;
}

/* Rows in the packed form (row_bytes apart, any alignment) become packed rows first, first + step, ..; step 2 for gated pairs. */
static inline void setun_prompt_pack(const uint8_t *codes, size_t row_bytes, int64_t rows, int64_t columns, int64_t first, int64_t step, uint32_t *words)
{
    int64_t blocks = setun_prompt_blocks(columns);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < blocks; b++)
            for (int q = 0; q < 8; q++) memcpy(&words[setun_prompt_word_index(first + r * step, blocks, b, q)], codes + (size_t)r * row_bytes + (size_t)b * 32 + (size_t)q * 4, 4);
}

#endif

/* Flags of a product. */
enum {
    SETUN_PROMPT_BF16 = 1,      /* out and residual are bf16, else f32 */
    SETUN_PROMPT_GATED = 2,     /* rows are gated pairs; out has rows / 2 columns */
    SETUN_PROMPT_SILU = 4,      /* of gate; neither SILU nor GELU: relu2 */
    SETUN_PROMPT_GELU = 8,
    SETUN_PROMPT_BIAS = 16,     /* f32 [rows] */
    SETUN_PROMPT_RESIDUAL = 32, /* [tokens, out columns]; never out itself */
    SETUN_PROMPT_SUMS = 64      /* out is i32 [tokens, rows]: sum - x_sum, nothing else is done */
};
/* Flags of the quantiser and of the rope kernel. */
enum {
    SETUN_PROMPT_IN_BF16 = 1,   /* x, qkv */
    SETUN_PROMPT_NORM = 2,      /* rms_norm before it */
    SETUN_PROMPT_ONE_PLUS = 4,  /* norm weight + 1 */
    SETUN_PROMPT_WEIGHT = 8,    /* there is a norm weight */
    SETUN_PROMPT_OUT_BF16 = 16, /* q, k, v */
    SETUN_PROMPT_OUT_F16 = 32,
    SETUN_PROMPT_INTERLEAVED = 64
};

/*
 * Kernels, all extern "C", arguments in this order (inputs, outputs, scalars: as MLX passes them):
 * Pointers are 16-byte aligned (whole arrays of MLX are).
 *   products (setun_prompt_choose names one; unused inputs may be any pointer)
 *     const uint32 *words, const float *weight_scale [packed rows], const int8 *x, const float *x_scale, const int32 *x_sum,
 *     const float *bias, const void *residual, void *out, int rows, int blocks, int tokens, int flags, float factor
 *     y = (sum - x_sum) * (x_scale * weight_scale) + bias; gated: act(y0) * y1; y *= factor; y += residual, each rounded once, as on the CPU
 *   setun_prompt_quantize, or what setun_prompt_quantize_kernel names: grid setun_prompt_groups(tokens) * 8 blocks of SETUN_PROMPT_QUANTIZE_THREADS, shared setun_prompt_quantize_shared(columns)
 *     const void *x [tokens, columns], const float *norm_weight [columns], int8 *q, float *scale, int32 *sum, int columns, int tokens, int flags, float epsilon
 *     q, scale and sum (padded to whole groups) are the CPU's bit for bit, for the same f32 x: same order of additions, same roundings
 *   setun_prompt_pack_rows: one thread for 4 words: grid setun_prompt_weight_words / 4 threads in blocks of 256
 *     const uint32 *codes0, *codes1, *codes2 (packed rows, blocks * 8 words each), uint32 *words, int rows0, rows1, rows2, int blocks, int gated
 *     plain: rows of 0, then 1, then 2. gated: row 2i from codes0, 2i+1 from codes1, rows2 0
 *   setun_prompt_rope: grid tokens * (heads + 2 kv_heads) blocks of 128 threads
 *     const void *qkv [tokens, (heads + 2 kv_heads) * head_size], const float *cos, *sin [positions, rotary / 2], const int32 *positions,
 *     void *k, void *v [kv_heads, capacity, head_size], void *q [heads, tokens, head_size],
 *     int tokens, heads, kv_heads, head_size, rotary, capacity, first, flags
 *     k and v are written at rows first .. first + tokens - 1. They stand among the inputs, because a cache is changed in place: whoever
 *     reads it must take q from this call, which orders the two.
 */
#define SETUN_PROMPT_QUANTIZE_THREADS 128
/* x itself as f32, then what the reductions exchange */
SETUN_PROMPT_BOTH int setun_prompt_quantize_shared(int64_t columns) { return (int)(setun_prompt_blocks(columns) * 128 * 4 + 512); }
#define SETUN_PROMPT_QUANTIZE_COLUMNS_MAX 24576 /* 96 KiB of shared memory, which every GPU since sm_80 has */

/* The products for Hopper: 256 rows x N tokens a thread block, two warpgroups computing, one loading. One row each: N. */
#define SETUN_PROMPT_WGMMA_LIST(X) X(32) X(48) X(64) X(80) X(96) X(128) X(160)
#define SETUN_PROMPT_WGMMA_THREADS 384
#define SETUN_PROMPT_CONTROL_BYTES 9472 /* barriers; scales and sums of tokens, scales and biases of rows, twice for each half */
#define SETUN_PROMPT_STAGE_BYTES(n) ((n) * 128 + 8192) /* one block of columns of a tile: activations, weights */
#define SETUN_PROMPT_STAGED_TOKENS(n) ((n) <= 64 ? (n) : (n) <= 128 ? (n) / 2 : (n) / 4)
#define SETUN_PROMPT_STAGED_BYTES(n) (8 * SETUN_PROMPT_STAGED_TOKENS(n) * 80) /* sums on their way out, 8 warps x 16 rows */
#define SETUN_PROMPT_STAGES_MOST(n) ((227 * 1024 - 1024 - SETUN_PROMPT_CONTROL_BYTES - SETUN_PROMPT_STAGED_BYTES(n)) / SETUN_PROMPT_STAGE_BYTES(n))
#define SETUN_PROMPT_STAGES(n) (SETUN_PROMPT_STAGES_MOST(n) < 12 ? SETUN_PROMPT_STAGES_MOST(n) : 12)
#define SETUN_PROMPT_WGMMA_SHARED(n) (1024 + SETUN_PROMPT_CONTROL_BYTES + SETUN_PROMPT_STAGED_BYTES(n) + SETUN_PROMPT_STAGES(n) * SETUN_PROMPT_STAGE_BYTES(n))

/* The products for every GPU from sm_80: 8 warps share the columns of 16 * S rows x N tokens. One row each: S, N. */
#define SETUN_PROMPT_MMA_LIST(X) X(1, 8) X(2, 8) X(1, 16) X(2, 16) X(2, 32) X(4, 32) X(4, 64)
#define SETUN_PROMPT_MMA_THREADS 256
SETUN_PROMPT_BOTH int setun_prompt_mma_shared(int slabs, int n) { return (16 * slabs + 4) * n * 4; }

#ifndef __CUDACC_RTC__
/* Which of the kernels that round rows: setun_prompt_quantize takes any row, the others keep short ones in registers. */
static inline const char *setun_prompt_quantize_kernel(int64_t columns)
{
    int64_t fours = (columns + 4 * SETUN_PROMPT_QUANTIZE_THREADS - 1) / (4 * SETUN_PROMPT_QUANTIZE_THREADS);
    return fours <= 2 ? "setun_prompt_quantize_2" : fours <= 5 ? "setun_prompt_quantize_5" : fours <= 8 ? "setun_prompt_quantize_8" : fours <= 14 ? "setun_prompt_quantize_14" : "setun_prompt_quantize";
}

typedef struct setun_prompt_launch {
    const char *kernel;                /* NULL: too large for any (columns >= 2^23, or tokens * rows >= 2^31) */
    int blocks, threads, shared_bytes; /* MLX counts threads: its grid is blocks * threads. shared_bytes is the same in every launch of a kernel */
    double cost;                       /* estimated microseconds on an H200; compares kernels of one product, nothing else */
} setun_prompt_launch;

/*
 * The fastest kernel for a product. multiprocessors: of the device; hopper: compute capability 9.0 exactly (the wgmma kernels are in no other
 * machine code). The costs are least-squares fits to 8 .. 2048 tokens of the four shapes of a 2B model on an H200 (bench/cuda_prompt.cu time);
 * there the choice is within 4 % of the best kernel.
 */
static inline setun_prompt_launch setun_prompt_choose(int64_t rows, int64_t columns, int64_t tokens, int multiprocessors, int hopper)
{
#define ROW(n) {"setun_prompt_wgmma_" #n, n, SETUN_PROMPT_WGMMA_SHARED(n)},
    static const struct { const char *name; int n, shared; } wide[] = {SETUN_PROMPT_WGMMA_LIST(ROW)};
#undef ROW
#define ROW(s, n) {"setun_prompt_mma_" #s "x" #n, s, n},
    static const struct { const char *name; int slabs, n; } narrow[] = {SETUN_PROMPT_MMA_LIST(ROW)};
#undef ROW
    setun_prompt_launch best = {NULL, 0, 0, 0, 0};
    if (rows < 1 || columns < 1 || tokens < 1 || columns >= 1 << 23 || rows >= INT32_MAX / tokens) return best;
    double blocks = (double)setun_prompt_blocks(columns), per_block, cost;
    if (multiprocessors < 1) multiprocessors = 1;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0] && hopper && columns < 1 << 17; i++) {
        int n = wide[i].n;
        int64_t tiles = (rows + 255) / 256 * ((tokens + n - 1) / n), waves = (tiles + multiprocessors - 1) / multiprocessors;
        per_block = 0.0024 * n + 0.2011 > 0.0048 * n ? 0.0024 * n + 0.2011 : 0.0048 * n; /* loads and unpacking, or the tensor cores */
        cost = 2.26 + (double)waves * (0.222 + 0.0337 * n + blocks * per_block);
        if (best.kernel && cost >= best.cost) continue;
        best.kernel = wide[i].name, best.cost = cost, best.shared_bytes = wide[i].shared;
        best.blocks = (int)(tiles < multiprocessors ? tiles : multiprocessors), best.threads = SETUN_PROMPT_WGMMA_THREADS;
    }
    for (size_t i = 0; i < sizeof narrow / sizeof narrow[0]; i++) {
        int s = narrow[i].slabs, n = narrow[i].n, resident = n == 8 ? 2 * s : n == 16 ? 5 - s : s == 2 ? 2 : 1; /* on one multiprocessor, by their registers */
        int64_t tiles = (rows + 16 * s - 1) / (16 * s) * ((tokens + n - 1) / n), waves = (tiles + (int64_t)multiprocessors * resident - 1) / ((int64_t)multiprocessors * resident);
        int64_t turns = ((int64_t)blocks + 7) / 8, trips = s == 1 ? (turns + 3) / 4 : (turns + 1) / 2;
        cost = 2.12 + (double)waves * (0.0085 * s * n + 0.22 * (double)trips + (double)turns * (0.478 + 0.01406 * n)) + (double)tiles / multiprocessors * (0.139 + blocks * (0.00927 * s + 0.0001 * s * n));
        if (best.kernel && cost >= best.cost) continue;
        best.kernel = narrow[i].name, best.cost = cost, best.shared_bytes = setun_prompt_mma_shared(s, n);
        best.blocks = (int)tiles, best.threads = SETUN_PROMPT_MMA_THREADS;
    }
    return best;
}
#endif

#endif
