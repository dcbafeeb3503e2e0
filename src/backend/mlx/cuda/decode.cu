/*
 * decode.cu - the kernel of decode.h: every step of a tape, token after token, in one launch.
 * Compiled by nvcc (a fatbin) or NVRTC (this text with decode.h put before it): no headers of the C++ library.
 * It knows the table and nothing of models. Integer sums are exact; floats follow the CPU's formulas in another order.
 */
#ifndef SETUN_CUDA_DECODE_H
#include "decode.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

/* About three seconds of waiting for a word, then the run is given up. */
#ifndef SETUN_CUDA_SPIN_LIMIT
#define SETUN_CUDA_SPIN_LIMIT (1u << 22)
#endif
enum { WARPS = SETUN_CUDA_WARPS, WORKERS = SETUN_CUDA_WARPS * 32, GROUP = SETUN_CUDA_GROUP }; /* where a function does not say otherwise: of decode_many */
#ifdef SETUN_CUDA_PROFILE /* decode_one: clocks inside the last layer's steps [block][step % 5][mark], of the first warp and of the one that finishes */
static __device__ long long sub_marks[132 * 5 * 16];
#define SETUN_CUDA_SUB(kind, i) do { if (LANE == 0 && (WARP == 0 || WARP == SETUN_CUDA_ONE_WARPS)) sub_marks[(blockIdx.x * 5 + (kind)) * 16 + (i)] = clock64(); } while (0)
#define SETUN_CUDA_SUB_OF(kind, i, whose) do { if (LANE == 0 && (whose)) sub_marks[(blockIdx.x * 5 + (kind)) * 16 + (i)] = clock64(); } while (0)
#else
#define SETUN_CUDA_SUB_OF(kind, i, whose) ((void)0)
#define SETUN_CUDA_SUB(kind, i) ((void)0)
#endif
#define TID ((int)threadIdx.x)
#define WARP ((int)((unsigned)threadIdx.x / 32u))
#define LANE ((int)((unsigned)threadIdx.x % 32u))

#ifndef SETUN_CUDA_EMULATED /* on the host: tests/cuda/emulated.hh */
#include "decode_device.h"
#endif

/* Named barriers: of the warps that compute; of decode_one: a step's factors are there, its parts are there, a token begins, a step's input is
 * about to be there. */
enum { MEET = 1, FACTORS = 2, PARTS = 3, BEGIN = 4, SOON = 5 };
template <bool ONE> static __device__ __forceinline__ void meet() { named_wait<MEET, (ONE ? SETUN_CUDA_ONE_WARPS : SETUN_CUDA_WARPS) * 32>(); }
enum { ONE_TOLD = (SETUN_CUDA_ONE_WARPS + 1) * 32 }; /* threads of all these but MEET */

/* ---- one block: what its threads share, in shared memory, as registers are few ---- */

typedef struct block {
    const setun_cuda_header *h;  /* a copy in shared memory */
    int stages;
    const u8 *weights, *head, *embedding;
    const float *floats;
    u8 *cache;
    setun_cuda_state *state;
    u32 *vectors;
    u64 *best;
    const int *ids, *positions, *capacities, *caches; /* of the run */
    float *logits;
    int tokens, steps;
    u8 *ring, *scratch;
    u32 full, empty;            /* barriers of the ring: addresses of the first */
    float2 *reduce;             /* [WARPS] */
    float *x_scale;             /* [GROUP] */
    int *x_sum;                 /* [WARPS] of the rounded input, a warp's part */
    int *id;                    /* [TOKENS] of this step */
    u32 *counter;               /* [TOKENS] steps before this one */
    int *position;              /* [TOKENS] */
    float *soft;                /* [HEADS] correction, [HEADS] sum */
    float *cosines, *sines;     /* [tokens][half] */
    float *residual;            /* [tokens][owned] */
    const int *records;         /* decode_one: all steps with this block's work in them */
    u32 resident, rounded, factors; /* decode_one: shared addresses of the records; of
                                            * the rounded input; of two floats, this step's input to int8 and the norm's factor, and what follows them */
    int splits;                 /* of the contexts, this step */
    volatile u32 seen[32];      /* [stages] the last stage of the head that a warp saw filled, + 1 */
    volatile int dead;          /* waited too long for a word: nobody waits any more */
} block;

/* A warp's place in the ring. Slots and parities run along, as divisions take longer than what they would save. */
typedef struct place {
    u32 stage;                  /* counted from the launch: the section's first */
    int begin;                  /* unit of the ring where the next tiles begin */
    int waited, released;       /* units of the section whose stages were waited for; given back */
    int slot, back;             /* of the next stage to wait for; to give back */
    u32 parity;
} place;

static __device__ __forceinline__ u32 tag_of(const block *b, int token, int uses, int use) { return (b->counter[token] * (u32)uses + (u32)use + 1u) & 3u; }
static __device__ __forceinline__ u32 word_of(float f, u32 tag) { return ((__float_as_uint(f) + 2u) & ~3u) | tag; }
static __device__ __forceinline__ bool fresh(uint4 v, u32 tag) { return (((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) & 3u) == 0; }
static __device__ __forceinline__ float4 floats_of(uint4 v)
{
    return make_float4(__uint_as_float(v.x & ~3u), __uint_as_float(v.y & ~3u), __uint_as_float(v.z & ~3u), __uint_as_float(v.w & ~3u));
}
static __device__ __forceinline__ void give_up(block *b)
{
    b->dead = 1;
    b->state->status = 1;
}
static __device__ __forceinline__ uint4 await_words(block *b, const u32 *p, uint4 v, u32 tag)
{
#pragma unroll 1
    for (u32 spins = 0; !fresh(v, tag) && !b->dead; v = load_words(p)) {
        SETUN_CUDA_PAUSE();
#ifdef SETUN_CUDA_BACKOFF
        __nanosleep(SETUN_CUDA_BACKOFF);
#endif
        if (++spins > SETUN_CUDA_SPIN_LIMIT) give_up(b);
    }
    return v;
}
static __device__ __forceinline__ u64 await_long(block *b, const u64 *p, u64 mask, u64 want)
{
    u64 v = load_long(p);
#pragma unroll 1
    for (u32 spins = 0; (v & mask) != want && !b->dead; v = load_long(p)) {
        SETUN_CUDA_PAUSE();
        if (++spins > SETUN_CUDA_SPIN_LIMIT) give_up(b);
    }
    return v;
}

/* Quad i (4 columns) of a dense row. */
static __device__ __forceinline__ float4 dense_quad(const u8 *row, int format, int columns, int i)
{
    if (format == SETUN_CUDA_Q8) {
        u32 q = __ldg((const u32 *)row + i);
        float d = f16_float(__ldg((const unsigned short *)(row + columns) + i / 8));
        return make_float4(d * (float)(signed char)q, d * (float)(signed char)(q >> 8), d * (float)(signed char)(q >> 16), d * (float)(signed char)(q >> 24));
    }
    uint2 w = __ldg((const uint2 *)row + i);
    bool f16 = format == SETUN_CUDA_F16;
    return make_float4(low_half(w.x, f16), high_half(w.x, f16), low_half(w.y, f16), high_half(w.y, f16));
}
static __device__ __forceinline__ float4 embedding_quad(const block *b, int token, int i)
{
    const setun_cuda_header *h = b->h;
    float4 v = dense_quad(b->embedding + (size_t)b->id[token] * (size_t)h->embedding_row_bytes, h->embedding_format, h->width, i);
    float f = h->embedding_factor;
    return make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
}

/* ---- the input of a step ---- */

typedef struct source { int in, stride, uses, use, columns, norm; float epsilon; } source;

/* Vectors of n tokens from token `first` on, normed; then rounded to int8 (rows of `x_stride` bytes), or as floats in the order in which
 * the head's lanes read them. Threads are shared out evenly among tokens; what a thread cannot keep it reads twice. */
template <bool ROUND>
static __device__ __forceinline__ void take_input(block *b, const source s, int first, int n, int x_stride)
{
    enum { KEEP = 4 };
    const int teams = n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : 8;
    const int size = WORKERS / teams, team = TID / size, at = TID % size, quads = s.columns / 4;
    const bool live = team < n;
    const int token = first + (live ? team : 0);
    const float4 *norm = s.norm >= 0 ? (const float4 *)(b->floats + s.norm) : nullptr;
    const u32 *in = b->vectors + s.in + (size_t)token * s.stride;
    const u32 tag = tag_of(b, token, s.uses, s.use);
    const float4 ones = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    float4 w[KEEP];
    uint4 x[KEEP]; /* as words until they are used */
#pragma unroll
    for (int j = 0; j < KEEP; j++) {
        w[j] = ones;
        x[j] = make_uint4(tag, tag, tag, tag); /* zeros */
        if (j * size >= quads) break; /* the same for all: a short row costs no instructions of a long one's */
        if (live && at + j * size < quads) {
            if (norm) w[j] = __ldg(norm + (at + j * size));
            x[j] = load_words(in + 4 * (at + j * size));
        }
    }
    float sum = 0.0f, most = 0.0f;
    auto count = [&](float4 v, float4 f) {
        sum = fmaf(v.x, v.x, sum), sum = fmaf(v.y, v.y, sum), sum = fmaf(v.z, v.z, sum), sum = fmaf(v.w, v.w, sum);
        most = fmaxf(most, fmaxf(fmaxf(fabsf(v.x * f.x), fabsf(v.y * f.y)), fmaxf(fabsf(v.z * f.z), fabsf(v.w * f.w))));
    };
#pragma unroll 1
    for (u32 spins = 0; !b->dead; spins++) { /* again those that are not there yet, all at once */
        u32 missing = 0;
#pragma unroll
        for (int j = 0; j < KEEP; j++) {
            if (j * size >= quads) break;
            if (!fresh(x[j], tag)) x[j] = load_words(in + 4 * (at + j * size)), missing = 1;
        }
        if (!missing) break;
        SETUN_CUDA_PAUSE();
        if (spins > SETUN_CUDA_SPIN_LIMIT) give_up(b);
    }
#pragma unroll
    for (int j = 0; j < KEEP; j++) {
        if (j * size >= quads) break;
        count(floats_of(x[j]), w[j]);
    }
    if (live)
#pragma unroll 1
        for (int i = at + KEEP * size; i < quads; i += size)
            count(floats_of(await_words(b, in + 4 * i, load_words(in + 4 * i), tag)), norm ? __ldg(norm + i) : ones);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    most = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most)));
    if (LANE == 0) b->reduce[WARP] = make_float2(sum, most);
    meet<false>();
    sum = most = 0.0f;
    const float2 *parts = b->reduce + team * (WARPS / teams);
#pragma unroll 1
    for (int i = 0; i < WARPS / teams; i++) sum += parts[i].x, most = fmaxf(most, parts[i].y);
    const float inverse = s.epsilon >= 0.0f ? rsqrtf(__fdividef(sum, (float)s.columns) + s.epsilon) : 1.0f;
    if (ROUND) {
        const float limit = fmaxf(most * inverse, 1e-5f), scale = __fdividef(127.0f, limit) * inverse;
        int total = 0;
        u32 *q = (u32 *)(b->scratch + team * x_stride);
        if (at == 0) b->x_scale[team] = limit * (1.0f / 127.0f);
        auto put = [&](int i, float4 v, float4 f) {
            int q0 = __float2int_rn(v.x * f.x * scale), q1 = __float2int_rn(v.y * f.y * scale);
            int q2 = __float2int_rn(v.z * f.z * scale), q3 = __float2int_rn(v.w * f.w * scale);
            u32 four = __byte_perm(__byte_perm(q0, q1, 0x0040), __byte_perm(q2, q3, 0x0040), 0x5410);
            q[i] = four;
            total = __dp4a((int)four, 0x01010101, total);
        };
#pragma unroll
        for (int j = 0; j < KEEP; j++) {
            if (j * size >= quads) break;
            if (live && at + j * size < quads) put(at + j * size, floats_of(x[j]), w[j]);
        }
        if (live)
#pragma unroll 1
            for (int i = at + KEEP * size; i < quads; i += size)
                put(i, floats_of(load_words(in + 4 * i)), norm ? __ldg(norm + i) : ones);
        if (live)
#pragma unroll 1
            for (int i = quads + at; i < (x_stride - 32) / 4; i += size) q[i] = 0;
        total = __reduce_add_sync(~0u, total);
        if (LANE == 0) b->x_sum[WARP] = total;
    } else {
        const int ways = b->h->head_format == SETUN_CUDA_Q8 ? 4 : 2;
        float4 *y = (float4 *)(b->scratch + (size_t)team * (size_t)s.columns * 4);
        auto put = [&](int i, float4 v, float4 f) { y[(i & (ways - 1)) * (quads / ways) + i / ways] = make_float4(v.x * inverse * f.x, v.y * inverse * f.y, v.z * inverse * f.z, v.w * inverse * f.w); };
#pragma unroll
        for (int j = 0; j < KEEP; j++) {
            if (j * size >= quads) break;
            if (at + j * size < quads) put(at + j * size, floats_of(x[j]), w[j]);
        }
#pragma unroll 1
        for (int i = at + KEEP * size; i < quads; i += size)
            put(i, live ? floats_of(load_words(in + 4 * i)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f), norm ? __ldg(norm + i) : ones);
    }
    meet<false>();
}

/* ---- linear steps ---- */

static __device__ __forceinline__ void await_stages(u32 full, int stages, place *p, int until) /* every stage with units before `until` */
{
#pragma unroll 1
    while (p->waited < until) {
        barrier_wait(full + 8 * p->slot, p->parity);
        p->waited += SETUN_CUDA_STAGE_UNITS;
        if (++p->slot == stages) p->slot = 0, p->parity ^= 1u;
    }
}
static __device__ __forceinline__ void release_stages(u32 empty, int stages, place *p, int until) /* every stage that ends at or before `until` */
{
#pragma unroll 1
    while (p->released + SETUN_CUDA_STAGE_UNITS <= until) {
        if (LANE == 0) barrier_arrive(empty + 8 * p->back, 1);
        p->released += SETUN_CUDA_STAGE_UNITS;
        if (++p->back == stages) p->back = 0;
    }
}

static __device__ __forceinline__ float exponential(float x) { return exp2f(x * 1.4426950408889634f); }

static __device__ __forceinline__ float activate(int activation, float x)
{
    if (activation == SETUN_CUDA_ACT_RELU2) {
        float r = x < 0.0f ? 0.0f : x;
        return r * r;
    }
    if (activation == SETUN_CUDA_ACT_SILU) return __fdividef(x, 1.0f + exponential(-x));
    if (activation == SETUN_CUDA_ACT_GELU) return __fdividef(x, 1.0f + exponential(fmaf(x * x, -0.07135481627159825f, -1.5957691216057308f) * x));
    return x;
}

/* Products of `tiles` tiles, whose units begin at ring unit `position`, and n tokens. Warps share the columns (`split` ways) and the
 * tiles; sums of a warp go to parts[way][tile][16][tokens]. */
static __device__ __forceinline__ void multiply_tiles(block *b, int tiles, int blocks, int split, int position, int ring_units, int n, int x_stride, int *parts)
{
    enum { MOST = SETUN_CUDA_WARP_TILES };
    const int way = WARP & ((1 << split) - 1), lane_of_tiles = WARP >> split, apart = WARPS >> split, g = LANE >> 2, t = LANE & 3;
    const u8 *x = b->scratch + g * x_stride + 8 * t;
    const bool column = g < n;
    int low[MOST][4], high[MOST][4]; /* high: of fields that stand two bits up, 4 times too large */
#pragma unroll
    for (int j = 0; j < MOST; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) low[j][i] = high[j][i] = 0;
    /* Tiles go two by two, so that one's loads and products hide the other's; the second of a last pair is computed again where it is missing. */
    int at[MOST];
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        int tile = lane_of_tiles + j * apart;
        at[j] = position + (tile < tiles ? tile : 0) * blocks;
    }
    const bool one = lane_of_tiles + apart >= tiles, second = lane_of_tiles + 2 * apart < tiles;
    const u8 *ring = b->ring + LANE * 16;
    auto load = [&](int j, int k) {
        int unit = at[j] + k;
        if (unit >= ring_units) unit -= ring_units;
        return *(const uint4 *)(ring + unit * SETUN_CUDA_UNIT_BYTES);
    };
    auto pair = [&](int j, const uint4 *from, const uint2 *f) {
        uint4 w = from[0], v = from[1];
        multiply(low[j], w.x & 0x03030303u, w.y & 0x03030303u, w.z & 0x03030303u, w.w & 0x03030303u, f[0].x, f[0].y);
        multiply(low[j + 1], v.x & 0x03030303u, v.y & 0x03030303u, v.z & 0x03030303u, v.w & 0x03030303u, f[0].x, f[0].y);
        multiply(high[j], w.x & 0x0c0c0c0cu, w.y & 0x0c0c0c0cu, w.z & 0x0c0c0c0cu, w.w & 0x0c0c0c0cu, f[1].x, f[1].y);
        multiply(high[j + 1], v.x & 0x0c0c0c0cu, v.y & 0x0c0c0c0cu, v.z & 0x0c0c0c0cu, v.w & 0x0c0c0c0cu, f[1].x, f[1].y);
        w.x >>= 4, w.y >>= 4, w.z >>= 4, w.w >>= 4, v.x >>= 4, v.y >>= 4, v.z >>= 4, v.w >>= 4;
        multiply(low[j], w.x & 0x03030303u, w.y & 0x03030303u, w.z & 0x03030303u, w.w & 0x03030303u, f[2].x, f[2].y);
        multiply(low[j + 1], v.x & 0x03030303u, v.y & 0x03030303u, v.z & 0x03030303u, v.w & 0x03030303u, f[2].x, f[2].y);
        multiply(high[j], w.x & 0x0c0c0c0cu, w.y & 0x0c0c0c0cu, w.z & 0x0c0c0c0cu, w.w & 0x0c0c0c0cu, f[3].x, f[3].y);
        multiply(high[j + 1], v.x & 0x0c0c0c0cu, v.y & 0x0c0c0c0cu, v.z & 0x0c0c0c0cu, v.w & 0x0c0c0c0cu, f[3].x, f[3].y);
    };
    auto single = [&](uint4 w, const uint2 *f) {
        multiply(low[0], w.x & 0x03030303u, w.y & 0x03030303u, w.z & 0x03030303u, w.w & 0x03030303u, f[0].x, f[0].y);
        multiply(high[0], w.x & 0x0c0c0c0cu, w.y & 0x0c0c0c0cu, w.z & 0x0c0c0c0cu, w.w & 0x0c0c0c0cu, f[1].x, f[1].y);
        w.x >>= 4, w.y >>= 4, w.z >>= 4, w.w >>= 4;
        multiply(low[1], w.x & 0x03030303u, w.y & 0x03030303u, w.z & 0x03030303u, w.w & 0x03030303u, f[2].x, f[2].y);
        multiply(high[1], w.x & 0x0c0c0c0cu, w.y & 0x0c0c0c0cu, w.z & 0x0c0c0c0cu, w.w & 0x0c0c0c0cu, f[3].x, f[3].y);
    };
    if (one && lane_of_tiles < tiles && way < blocks) { /* a single tile: four chains of products, half the instructions */
#pragma unroll 1
        for (int k = way; k < blocks; k += 1 << split) {
            uint2 f[4];
#pragma unroll
            for (int i = 0; i < 4; i++) f[i] = column ? *(const uint2 *)(x + k * SETUN_CUDA_UNIT_COLUMNS + 96 - 32 * i) : make_uint2(0, 0);
            single(load(0, k), f);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) low[0][i] += low[1][i], high[0][i] += high[1][i];
    } else if (lane_of_tiles < tiles && way < blocks) {
        uint4 w[MOST];
        uint2 f[4];
        auto fetch = [&](int k) {
            w[0] = load(0, k), w[1] = load(1, k);
            if (second) w[2] = load(2, k), w[3] = load(3, k);
#pragma unroll
            for (int i = 0; i < 4; i++) f[i] = column ? *(const uint2 *)(x + k * SETUN_CUDA_UNIT_COLUMNS + 96 - 32 * i) : make_uint2(0, 0);
        };
        fetch(way);
#pragma unroll 1
        for (int k = way; k < blocks;) {
            uint4 v[MOST] = {w[0], w[1], w[2], w[3]};
            uint2 q[4] = {f[0], f[1], f[2], f[3]};
            k += 1 << split;
            if (k < blocks) fetch(k); /* the next are on their way while these are multiplied */
            pair(0, v, q);
            if (second) pair(2, v + 2, q);
        }
    }
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        int tile = lane_of_tiles + j * apart;
        if (tile < tiles) {
            int *out = parts + (way * tiles + tile) * SETUN_CUDA_TILE_ROWS * GROUP;
            *(int2 *)(out + g * GROUP + 2 * t) = make_int2(low[j][0] + (high[j][0] >> 2), low[j][1] + (high[j][1] >> 2));
            *(int2 *)(out + (g + 8) * GROUP + 2 * t) = make_int2(low[j][2] + (high[j][2] >> 2), low[j][3] + (high[j][3] >> 2));
        }
    }
}

static __device__ __forceinline__ void finish_tiles(block *b, const setun_cuda_step *s, int first_tile, int local, int tiles, int split, int first, int n, const int *parts)
{
    const int rows = s->gated ? SETUN_CUDA_TILE_ROWS / 2 : SETUN_CUDA_TILE_ROWS, wide = GROUP, apart = tiles * SETUN_CUDA_TILE_ROWS * wide, teams = n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : 8; /* as take_input has them */
#pragma unroll 1
    for (int e = TID; e < tiles * rows * n; e += WORKERS) {
        const int o = e / n, token = e % n, tile = s->gated ? o / 8 : o / 16, r = s->gated ? o % 8 : o % 16;
        const int row = (first_tile + tile) * SETUN_CUDA_TILE_ROWS + r, index = (first_tile + tile) * rows + r;
        const float x_scale = b->x_scale[token];
        const int *part = parts + (tile * SETUN_CUDA_TILE_ROWS + r) * wide + token;
        float scale = __ldg(b->floats + s->scales + row), bias = s->bias >= 0 ? __ldg(b->floats + s->bias + row) : 0.0f;
        /* codes are value + 1: what the ones give is taken off */
        int ones = 0, sum = 0;
        const int *sums = b->x_sum + token * (WARPS / teams);
#pragma unroll 1
        for (int i = 0; i < WARPS / teams; i++) ones += sums[i];
#pragma unroll 4
        for (int i = 0; i < 1 << split; i++) sum += part[i * apart];
        sum -= ones;
        float y = (float)sum * (x_scale * scale) + bias;
        if (s->gated) {
            scale = __ldg(b->floats + s->scales + row + 8), bias = s->bias >= 0 ? __ldg(b->floats + s->bias + row + 8) : 0.0f;
            sum = -ones;
#pragma unroll 4
            for (int i = 0; i < 1 << split; i++) sum += part[i * apart + 8 * wide];
            y = activate(s->activation, y) * ((float)sum * (x_scale * scale) + bias);
        }
        y *= s->factor;
        const int whole = first + token;
        if (s->residual) {
            float *mine = b->residual + whole * b->h->owned + local * SETUN_CUDA_TILE_ROWS + o;
            y += *mine;
            *mine = y;
        }
        if (index < s->rows) store_word(b->vectors + s->out + (size_t)whole * s->out_stride + index, word_of(y, tag_of(b, whole, s->out_uses, s->out_use)));
    }
}

static __device__ __forceinline__ void linear(block *b, place *p, const setun_cuda_step *s, const setun_cuda_work *w, int *next, int ahead)
{
    const int ring_units = b->stages * SETUN_CUDA_STAGE_UNITS, x_stride = setun_cuda_x_stride(s->blocks), most = s->most;
    int *parts = (int *)(b->scratch + (GROUP * x_stride + 15) / 16 * 16);
    const source from = {s->in, s->in_stride, s->in_uses, s->in_use, s->columns, s->norm, s->epsilon};
    if (w->tiles == 0) { /* nothing to do, and nobody waits for this block */
        meet<false>();
        if (next) *next = ahead;
        meet<false>();
        return;
    }
#pragma unroll 1
    for (int done = 0; done < w->tiles; done += most) {
        const int tiles = w->tiles - done < most ? w->tiles - done : most, unit = w->unit + done * s->blocks, end = unit + tiles * s->blocks;
#pragma unroll 1
        for (int first = 0; first < b->tokens; first += GROUP) {
            const int n = b->tokens - first < GROUP ? b->tokens - first : GROUP;
            take_input<true>(b, from, first, n, x_stride);
            if (next) *next = ahead;
            await_stages(b->full, b->stages, p, end);
            multiply_tiles(b, tiles, s->blocks, w->split, p->begin, ring_units, n, x_stride, parts);
            if (first + GROUP >= b->tokens) {
                __syncwarp();
                release_stages(b->empty, b->stages, p, end);
                p->begin += tiles * s->blocks;
                if (p->begin >= ring_units) p->begin -= ring_units;
            }
            meet<false>();
            finish_tiles(b, s, w->tile + done, done, tiles, w->split, first, n, parts);
        }
    }
}

/* ---- one sequence: sums beside the vectors ---- */

static __device__ __forceinline__ u32 sequence_of(const block *b, int uses, int use) { return (b->counter[0] * (u32)uses + (u32)use + 1u) & 0xffu; }

/* Maximum and sum over the whole warp, then two words, floats of 24 bits with the number that tells readers that these are what they wait for. The
 * maximum goes first: the reader's products wait for it, and only what is done with them for the sum. */
static __device__ __forceinline__ void store_sums(u32 *maxima, int stride, int index, float squares, float largest, u32 sequence)
{
    __syncwarp();
    largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
    if (LANE == 0) store_word(maxima + index, ((__float_as_uint(largest) + 0x80u) & ~0xffu) | sequence);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
    if (LANE == 0) store_word(maxima + stride + index, ((__float_as_uint(squares) + 0x80u) & ~0xffu) | sequence);
}

/* ---- attention ---- */

#include "decode_attention.inc"

/* ---- the head ---- */

/* 4 rows of the ring times TOKENS vectors */
template <int TOKENS>
static __device__ __forceinline__ void head_rows(const block *b, const u8 *rows, float acc[4][TOKENS])
{
    const setun_cuda_header *h = b->h;
    const int width = h->width, bytes = h->head_row_bytes, last = h->head_batch - 1;
    const u8 *row[4];
#pragma unroll
    for (int r = 0; r < 4; r++) row[r] = rows + (r < last ? r : last) * bytes;
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) acc[r][t] = 0.0f;
    if (h->head_format == SETUN_CUDA_Q8) {
#pragma unroll 1
        for (int i = LANE; i < width / 16; i += 32) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                uint4 w = *(const uint4 *)(row[r] + i * 16);
                float d = f16_float(*(const unsigned short *)(row[r] + width + i / 2 * 2)), f[16];
                const u32 word[4] = {w.x ^ 0x80808080u, w.y ^ 0x80808080u, w.z ^ 0x80808080u, w.w ^ 0x80808080u};
#pragma unroll
                for (int j = 0; j < 16; j++) f[j] = __uint_as_float(__byte_perm(word[j / 4], 0x4b000000u, 0x7440 + j % 4)) - 8388736.0f; /* 2^23 + q + 128 */
                if (TOKENS > 1)
#pragma unroll
                    for (int j = 0; j < 16; j++) f[j] *= d; /* one token: its sums are multiplied instead */
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
                    const float4 *x = (const float4 *)(b->scratch + (size_t)t * width * 4);
                    float part = TOKENS > 1 ? acc[r][t] : 0.0f, other = 0.0f;
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        float4 v = x[j * (width / 16) + i];
                        if (TOKENS > 1) {
                            part = fmaf(f[4 * j], v.x, part), part = fmaf(f[4 * j + 1], v.y, part);
                            part = fmaf(f[4 * j + 2], v.z, part), part = fmaf(f[4 * j + 3], v.w, part);
                            continue;
                        }
                        part = fmaf(f[4 * j], v.x, part), other = fmaf(f[4 * j + 1], v.y, other);
                        part = fmaf(f[4 * j + 2], v.z, part), other = fmaf(f[4 * j + 3], v.w, other);
                    }
                    acc[r][t] = TOKENS > 1 ? part : fmaf(d, part + other, acc[r][t]);
                }
            }
        }
        return;
    }
    auto dense = [&](bool f16) {
#pragma unroll 1
        for (int i = LANE; i < width / 8; i += 32) {
            float f[4][8];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                uint4 w = *(const uint4 *)(row[r] + i * 16);
                f[r][0] = low_half(w.x, f16), f[r][1] = high_half(w.x, f16), f[r][2] = low_half(w.y, f16), f[r][3] = high_half(w.y, f16);
                f[r][4] = low_half(w.z, f16), f[r][5] = high_half(w.z, f16), f[r][6] = low_half(w.w, f16), f[r][7] = high_half(w.w, f16);
            }
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 *x = (const float4 *)(b->scratch + (size_t)t * width * 4);
                float4 u = x[i], v = x[width / 8 + i];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    acc[r][t] = fmaf(f[r][0], u.x, acc[r][t]), acc[r][t] = fmaf(f[r][1], u.y, acc[r][t]), acc[r][t] = fmaf(f[r][2], u.z, acc[r][t]);
                    acc[r][t] = fmaf(f[r][3], u.w, acc[r][t]), acc[r][t] = fmaf(f[r][4], v.x, acc[r][t]), acc[r][t] = fmaf(f[r][5], v.y, acc[r][t]);
                    acc[r][t] = fmaf(f[r][6], v.z, acc[r][t]), acc[r][t] = fmaf(f[r][7], v.w, acc[r][t]);
                }
            }
        }
    };
    if (h->head_format == SETUN_CUDA_F16) dense(true);
    else dense(false);
}

static __device__ __forceinline__ u64 rank_of(float f, int row) /* larger is better; of equal values the lower row */
{
    u32 bits = __float_as_uint(f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | (u64)(0xffffffu - (u32)row) << 8;
}

static __device__ __forceinline__ void take_head_input(block *b);

template <bool ONE>
static __device__ __forceinline__ void vocabulary(block *b, u32 begin, const setun_cuda_stream stream) /* begin: the ring's stage where the rows begin */
{
    enum { TOKENS = ONE ? 1 : GROUP, WARPS = ONE ? SETUN_CUDA_ONE_WARPS : SETUN_CUDA_WARPS, WORKERS = WARPS * 32 };
    const setun_cuda_header *h = b->h;
    const int batches = h->head_rows_per_stage / h->head_batch, stages = (stream.head_rows + h->head_rows_per_stage - 1) / h->head_rows_per_stage;
    const source from = {h->head_in, h->head_stride, h->head_uses, h->head_use, h->width, h->head_norm, h->head_epsilon};
    const float factor = h->head_factor;
#pragma unroll 1
    for (int first = 0; first < b->tokens; first += GROUP) {
        const int n = ONE ? 1 : b->tokens - first < GROUP ? b->tokens - first : GROUP;
        if (ONE) take_head_input(b);
        else {
            take_input<false>(b, from, first, n, 0);
            /* take_input fills as many vectors as there are teams */
            int teams = n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : 8;
#pragma unroll 1
            for (int i = teams * h->width + TID; i < GROUP * h->width; i += WORKERS) ((float *)b->scratch)[i] = 0.0f;
            meet<ONE>();
        }
        u64 best[TOKENS];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) best[t] = 0;
#pragma unroll 1
        for (int batch = WARP; batch < stages * batches; batch += WARPS) {
            const u32 stage = begin + (u32)(batch / batches), slot = stage % (u32)b->stages;
            /* A barrier tells only even turns of the ring from odd ones, and this warp skipped some: first the slot's turn before
             * (or a later one, which faster warps of the same stage have seen). */
            if (batch / batches >= b->stages)
#pragma unroll 1
                for (u32 spins = 0; (int)(b->seen[slot] - (stage - (u32)b->stages + 1u)) < 0 && spins < SETUN_CUDA_SPIN_LIMIT << 2; spins++) SETUN_CUDA_PAUSE();
            barrier_wait(b->full + 8 * slot, stage / (u32)b->stages & 1u);
            if (LANE == 0) b->seen[slot] = stage + 1u;
            float acc[4][TOKENS];
            head_rows<TOKENS>(b, b->ring + slot * SETUN_CUDA_STAGE_BYTES + batch % batches * h->head_batch * h->head_row_bytes, acc);
            __syncwarp();
            if (LANE == 0) barrier_arrive(b->empty + 8 * slot, (u32)(WARPS / batches));
            const int r = (LANE & 16 ? 2 : 0) + (LANE & 8 ? 1 : 0), local = batch * h->head_batch + r;
            const bool valid = r < h->head_batch && local < stream.head_rows;
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                float y = sum_four<32>(acc[0][t], acc[1][t], acc[2][t], acc[3][t], LANE) * factor;
                if (valid) {
                    u64 rank = rank_of(y, stream.head_row + local);
                    best[t] = rank > best[t] ? rank : best[t];
                    if (b->logits && (LANE & 7) == 0 && t < n) b->logits[(size_t)(first + t) * h->vocabulary + stream.head_row + local] = y;
                }
            }
        }
        begin += (u32)stages;
        meet<ONE>();
        u64 *ranks = (u64 *)b->scratch;
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            u64 other = __shfl_xor_sync(~0u, best[t], 16);
            best[t] = other > best[t] ? other : best[t];
            other = __shfl_xor_sync(~0u, best[t], 8);
            best[t] = other > best[t] ? other : best[t];
            if (LANE == 0) ranks[WARP * TOKENS + t] = best[t];
        }
        meet<ONE>();
        if (TID < n) {
            u64 top = 0;
#pragma unroll 1
            for (int i = 0; i < WARPS; i++) top = ranks[i * TOKENS + TID] > top ? ranks[i * TOKENS + TID] : top;
            store_long(b->best + (size_t)(first + TID) * gridDim.x + blockIdx.x, top | ((b->counter[first + TID] + 1u) & 0xffu));
        }
        if (first + GROUP < b->tokens) meet<ONE>();
    }
}

/* Where the next step's tiles begin, after a step and its head; groups of sequences go over the head one after another. */
static __device__ __forceinline__ void pass_stages(const block *b, place *p, u32 stages)
{
    p->stage += stages;
    p->slot = p->back = (int)(p->stage % (u32)b->stages);
    p->parity = p->stage / (u32)b->stages & 1u;
    p->begin = p->slot * SETUN_CUDA_STAGE_UNITS;
    p->waited = p->released = 0;
}
static __device__ __forceinline__ u32 head_stages(const block *b, const setun_cuda_stream stream) { return (u32)((stream.head_rows + b->h->head_rows_per_stage - 1) / b->h->head_rows_per_stage); }

/* The token that the step with this count chose for row t; the whole warp, the same answer in every block. */
static __device__ __forceinline__ int chosen(block *b, int t, u32 count)
{
    u64 top = 0;
#pragma unroll 1
    for (int i = LANE; i < (int)gridDim.x; i += 32) {
        u64 v = await_long(b, b->best + (size_t)t * gridDim.x + i, 0xffull, count & 0xffu);
        top = v > top ? v : top;
    }
#pragma unroll
    for (int o = 16; o > 0; o /= 2) {
        u64 other = __shfl_xor_sync(~0u, top, o);
        top = other > top ? other : top;
    }
    return (int)(0xffffffu - (u32)(top >> 8 & 0xffffffu));
}

/* ---- the copying warp ---- */

static __device__ __forceinline__ void copy_stage(const block *b, u32 stage, const u8 *from, u32 bytes)
{
    const u32 slot = stage % (u32)b->stages, full = b->full + 8 * slot, to = shared_address(b->ring + slot * SETUN_CUDA_STAGE_BYTES);
    barrier_wait(b->empty + 8 * slot, (stage / (u32)b->stages & 1u) ^ 1u);
    copy_to_shared(to, from, bytes, full);
}

static __device__ __forceinline__ void copy_stream(const block *b, const setun_cuda_stream stream)
{
    const setun_cuda_header *h = b->h;
    const u8 *tiles = b->weights + (size_t)stream.unit * SETUN_CUDA_UNIT_BYTES, *rows = b->head + (size_t)stream.head_row * (size_t)h->head_row_bytes;
    u32 stage = 0;
#pragma unroll 1
    for (int step = 0; step < b->steps; step++) {
#pragma unroll 1
        for (int u = 0; u < stream.units; u += SETUN_CUDA_STAGE_UNITS, stage++) {
            int units = stream.units - u < SETUN_CUDA_STAGE_UNITS ? stream.units - u : SETUN_CUDA_STAGE_UNITS;
            copy_stage(b, stage, tiles + (size_t)u * SETUN_CUDA_UNIT_BYTES, (u32)(units * SETUN_CUDA_UNIT_BYTES));
        }
#pragma unroll 1
        for (int first = 0; first < b->tokens; first += GROUP)
#pragma unroll 1
            for (int r = 0; r < stream.head_rows; r += h->head_rows_per_stage, stage++) {
                int count = stream.head_rows - r < h->head_rows_per_stage ? stream.head_rows - r : h->head_rows_per_stage;
                copy_stage(b, stage, rows + (size_t)r * (size_t)h->head_row_bytes, (u32)(count * h->head_row_bytes));
            }
    }
}

/* ---- a token ---- */

/* Ids of this step; rotations of its positions; the rows of the residual stream that this block owns. */
template <bool ONE>
static __device__ __forceinline__ void begin_step(block *b, int step, const setun_cuda_work own, int *out_ids)
{
    enum { WARPS = ONE ? SETUN_CUDA_ONE_WARPS : SETUN_CUDA_WARPS, WORKERS = WARPS * 32 };
    const setun_cuda_header *h = b->h;
#pragma unroll 1
    for (int t = WARP; t < b->tokens; t += WARPS) {
        int id = __ldg(b->ids + (size_t)step * b->tokens + t);
        if (step > 0) {
            int best = chosen(b, t, b->counter[t] + 1u);
            if (blockIdx.x == 0 && LANE == 0) out_ids[(size_t)(step - 1) * b->tokens + t] = best;
            if (id < 0) id = best;
        }
        if (id < 0 || id >= h->vocabulary) {
            id = 0;
            if (LANE == 0) b->state->status = 2;
        }
        __syncwarp();
        if (LANE == 0) {
            b->id[t] = id;
            b->position[t] = __ldg(b->positions + t) + step;
            if (step > 0) b->counter[t]++;
        }
    }
    if (ONE) named_wait<BEGIN, ONE_TOLD>();
    else meet<false>();
    int longest = 1;
#pragma unroll 1
    for (int t = 0; t < b->tokens; t++) longest = b->position[t] + 1 > longest ? b->position[t] + 1 : longest;
    int splits = (longest + SETUN_CUDA_CHUNK - 1) / SETUN_CUDA_CHUNK, room = (int)gridDim.x / (b->tokens * h->kv_heads);
    if (room > SETUN_CUDA_SPLITS) room = SETUN_CUDA_SPLITS;
    b->splits = splits < room ? splits : room > 1 ? room : 1;
    const int half = h->head_size / 2;
    const double *frequencies = (const double *)(b->floats + h->rope_frequencies);
#pragma unroll 1
    for (int e = TID; e < b->tokens * half; e += WORKERS) {
        double angle = (double)b->position[e / half] * __ldg(frequencies + e % half);
        angle *= 0.15915494309189533577; /* turns; within half of one a float has enough digits */
        float sine, cosine;
        sincospif(2.0f * (float)(angle - rint(angle)), &sine, &cosine);
        b->cosines[e] = cosine * h->rope_magnitude;
        b->sines[e] = sine * h->rope_magnitude;
    }
    if (ONE) return; /* decode_one.inc: another warp takes the embedding */
    const int quads = own.tiles * SETUN_CUDA_TILE_ROWS / 4;
#pragma unroll 1
    for (int e = TID; e < b->tokens * quads; e += WORKERS) {
        int t = e / quads, i = e % quads, quad = own.tile * (SETUN_CUDA_TILE_ROWS / 4) + i;
        if (quad * 4 < h->width) {
            const float4 v = embedding_quad(b, t, quad);
            const u32 tag = tag_of(b, t, 1, 0);
            u32 *to = b->vectors + h->embedded + (size_t)t * h->width + quad * 4;
            *(float4 *)(b->residual + t * h->owned + i * 4) = v;
            store_word(to, word_of(v.x, tag)), store_word(to + 1, word_of(v.y, tag)), store_word(to + 2, word_of(v.z, tag)), store_word(to + 3, word_of(v.w, tag));
        }
    }
}

#ifdef SETUN_CUDA_PROFILE
#define SETUN_CUDA_MARK(index) do { if (TID == 0 && profile) profile[(size_t)(step * (h->steps + 2) + (index)) * gridDim.x + blockIdx.x] = clock64(); } while (0)
#define SETUN_CUDA_PROFILE_ARGUMENT , long long *profile
#define SETUN_CUDA_PROFILE_STEP(index) do { if (TID == 0 && profile) profile[(size_t)(step * (layers_steps + 2) + (index)) * gridDim.x + blockIdx.x] = clock64(); } while (0)
#define SETUN_CUDA_PROFILE_PASSED , profile
#else
#define SETUN_CUDA_MARK(index) ((void)0)
#define SETUN_CUDA_PROFILE_ARGUMENT
#define SETUN_CUDA_PROFILE_STEP(index) ((void)0)
#define SETUN_CUDA_PROFILE_PASSED
#endif

#include "decode_one.inc"

template <bool ONE>
static __device__ __forceinline__ void decode(const u8 *weights, const u8 *head, const u8 *embedding, const int *table, u8 *cache, u8 *state, const int *run, int *out_ids, float *logits SETUN_CUDA_PROFILE_ARGUMENT)
{
    enum { WARPS = ONE ? SETUN_CUDA_ONE_WARPS : SETUN_CUDA_WARPS, COPIES = ONE ? WARPS + 1 : WARPS, THREADS = ONE ? SETUN_CUDA_ONE_THREADS : SETUN_CUDA_THREADS };
    SETUN_CUDA_DYNAMIC_SHARED(memory);
    SETUN_CUDA_SHARED(block, shared_block);
    SETUN_CUDA_SHARED(setun_cuda_header, shared_header);
    block *b = &shared_block;
    const setun_cuda_header *h = &shared_header;
#pragma unroll 1
    for (int i = TID; i < (int)sizeof(setun_cuda_header) / 4; i += THREADS) ((int *)&shared_header)[i] = __ldg(table + i);
    __syncthreads();
    const setun_cuda_shared at = setun_cuda_shared_of(h);
    const int steps = ((const setun_cuda_run *)run)->steps;
    if (TID == 0) {
        b->h = h;
        b->stages = h->stages;
        b->weights = weights, b->head = head, b->embedding = embedding, b->cache = cache;
        b->floats = (const float *)(weights + (size_t)h->floats * 16);
        b->state = (setun_cuda_state *)state;
        b->vectors = (u32 *)(state + h->vectors);
        b->best = (u64 *)(state + h->best);
        const setun_cuda_run *r = (const setun_cuda_run *)run;
        b->tokens = ONE ? 1 : r->tokens, b->steps = r->steps;
        b->ids = run + SETUN_CUDA_RUN_INTS;
        b->positions = b->ids + b->steps * b->tokens;
        b->capacities = b->positions + b->tokens;
        b->caches = b->capacities + b->tokens;
        b->logits = r->flags & SETUN_CUDA_WANT_LOGITS ? logits : nullptr;
        b->ring = memory;
        b->scratch = memory + h->stages * SETUN_CUDA_STAGE_BYTES;
        b->full = shared_address(memory + at.barriers);
        b->empty = b->full + 8 * h->stages;
        b->reduce = (float2 *)(memory + at.reduce);
        b->x_scale = (float *)(memory + at.small);
        b->x_sum = (int *)(b->x_scale + GROUP);
        b->id = b->x_sum + WARPS;
        b->counter = (u32 *)(b->id + SETUN_CUDA_TOKENS);
        b->position = (int *)(b->counter + SETUN_CUDA_TOKENS);
        b->soft = (float *)(b->position + SETUN_CUDA_TOKENS);
        b->cosines = (float *)(memory + at.rope);
        b->sines = b->cosines + h->tokens_max * (h->head_size / 2);
        b->residual = (float *)(memory + at.residual);
        b->records = (const int *)(memory + at.steps);
        b->resident = shared_address(memory + at.steps);
        b->rounded = shared_address(memory + at.rounded);
        b->factors = shared_address(memory + at.factors);
        if (ONE) lay_hand(b, shared_address(memory + at.parts), shared_address(b->residual));
        b->dead = 0;
        b->splits = 1;
#pragma unroll 1
        for (int i = 0; i < h->stages; i++) {
            barrier_init(b->full + 8 * i, SETUN_CUDA_BULK ? 1 : 32);
            barrier_init(b->empty + 8 * i, WARPS);
            b->seen[i] = 0;
        }
        copies_see_barriers();
    }
    __syncthreads();

    enum { INTS = SETUN_CUDA_STEP_INTS + SETUN_CUDA_WORK_INTS };
    int *buffers = (int *)(memory + at.steps);
    const int *works = table + h->first_work + (int)blockIdx.x * h->steps * SETUN_CUDA_WORK_INTS;
    const setun_cuda_stream stream = *(const setun_cuda_stream *)(table + h->first_streams + (int)blockIdx.x * 4);
    auto table_int = [&](int step) {
        return TID < SETUN_CUDA_STEP_INTS ? __ldg(table + h->first_step + step * SETUN_CUDA_STEP_INTS + TID) : __ldg(works + step * SETUN_CUDA_WORK_INTS + TID - SETUN_CUDA_STEP_INTS);
    };
    if (ONE) {
#pragma unroll 1
        for (int i = TID; i < h->steps * SETUN_CUDA_STEP_INTS; i += THREADS) buffers[i / SETUN_CUDA_STEP_INTS * INTS + i % SETUN_CUDA_STEP_INTS] = __ldg(table + h->first_step + i);
#pragma unroll 1
        for (int i = TID; i < h->steps * SETUN_CUDA_WORK_INTS; i += THREADS) buffers[i / SETUN_CUDA_WORK_INTS * INTS + SETUN_CUDA_STEP_INTS + i % SETUN_CUDA_WORK_INTS] = __ldg(works + i);
    } else if (TID < INTS)
        buffers[TID] = table_int(0);
    if (TID < b->tokens) b->counter[TID] = b->state->counter[TID];
    __syncthreads();
    if (WARP == COPIES) {
        copy_stream(b, stream);
        return;
    }
    if (ONE) {
        if (WARP == WARPS) return sum_and_finish(b, steps);
        work_one(b, stream, steps, out_ids SETUN_CUDA_PROFILE_PASSED);
    } else {
        const setun_cuda_work own = *(const setun_cuda_work *)(works + h->residual_step * SETUN_CUDA_WORK_INTS);
        const u32 tile_stages = (u32)((stream.units + SETUN_CUDA_STAGE_UNITS - 1) / SETUN_CUDA_STAGE_UNITS);
        int turn = 0;
        place at_ring = {0, 0, 0, 0, 0, 0, 0}, *p = &at_ring;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            begin_step<false>(b, step, own, out_ids);
            meet<false>();
#pragma unroll 1
            for (int i = 0; i < h->steps; i++, turn ^= 1) {
                SETUN_CUDA_MARK(i);
                const setun_cuda_step *s = (const setun_cuda_step *)(buffers + turn * INTS);
                const setun_cuda_work *w = (const setun_cuda_work *)(buffers + turn * INTS + SETUN_CUDA_STEP_INTS);
                int *next = TID < INTS ? buffers + (turn ^ 1) * INTS + TID : nullptr, ahead = 0;
                if (next) ahead = table_int(i + 1 < h->steps ? i + 1 : 0);
                if (s->kind == SETUN_CUDA_LINEAR) linear(b, p, s, w, next, ahead);
                else if (h->head_size == 128) attention<128, false>(b, s, next, ahead);
                else attention<64, false>(b, s, next, ahead);
            }
            SETUN_CUDA_MARK(h->steps);
            __syncwarp();
            await_stages(b->full, b->stages, p, stream.units);
            release_stages(b->empty, b->stages, p, (int)tile_stages * SETUN_CUDA_STAGE_UNITS);
            pass_stages(b, p, tile_stages);
            vocabulary<false>(b, p->stage, stream);
            pass_stages(b, p, head_stages(b, stream) * (u32)((b->tokens + GROUP - 1) / GROUP));
            SETUN_CUDA_MARK(h->steps + 1);
        }
    }
    /* Everyone has read the counters when its last word is there. */
    if (blockIdx.x == 0)
#pragma unroll 1
        for (int t = WARP; t < b->tokens; t += WARPS) {
            int best = chosen(b, t, b->counter[t] + 1u);
            if (LANE == 0) {
                out_ids[(size_t)(b->steps - 1) * b->tokens + t] = best;
                b->state->counter[t] = b->counter[t] + 1u;
            }
        }
}

extern "C" __global__ void __launch_bounds__(SETUN_CUDA_ONE_THREADS, 1) setun_cuda_decode_one(const u8 *weights, const u8 *head, const u8 *embedding, const int *table, u8 *cache, u8 *state, const int *run, int *out_ids, float *logits SETUN_CUDA_PROFILE_ARGUMENT)
{
    decode<true>(weights, head, embedding, table, cache, state, run, out_ids, logits SETUN_CUDA_PROFILE_PASSED);
}
extern "C" __global__ void __launch_bounds__(SETUN_CUDA_THREADS, 1) setun_cuda_decode_many(const u8 *weights, const u8 *head, const u8 *embedding, const int *table, u8 *cache, u8 *state, const int *run, int *out_ids, float *logits SETUN_CUDA_PROFILE_ARGUMENT)
{
    decode<false>(weights, head, embedding, table, cache, state, run, out_ids, logits SETUN_CUDA_PROFILE_PASSED);
}
