/*
 * prompt.cu - ternary products for many tokens on NVIDIA GPUs, and what stands around them: norm + rounding to int8, rotation of
 * q and k with the cache's append, packing. nvcc makes a fatbin of it,
 *     nvcc -std=c++17 -O3 -fatbin -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=[sm_80,compute_80] -o prompt.fatbin prompt.cu
 * or NVRTC, for the device at hand, machine code (it includes nothing but prompt.h, which NVRTC needs as a header by that name); MLX's precompiled
 * kernels load either. The arguments are pointers, ints and floats. Layouts, flags and argument lists are in prompt.h. Caller: the lowering, through the bridge.
 *
 * Every product is exact: codes 0..2 (u8) times int8 summed in int32, minus the token's sum of x; |sum| <= 2 * 128 * columns fits for
 * columns < 2^23, and 64 times as much, which the Hopper kernels sum, for columns < 2^17. What follows is rounded in the CPU's order (scale_sums, *_mul, add), so f32 outputs are the CPU's bits; what is not kept is
 * the payload of a NaN. It refuses to know models, sequences and MLX.
 */
#include "prompt.h"

__device__ __forceinline__ float from_bf16(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }
__device__ __forceinline__ uint16_t to_bf16(float y)
{
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(y));
    return h;
}
__device__ __forceinline__ uint16_t to_f16(float y)
{
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(y));
    return h;
}
__device__ __forceinline__ uint32_t to_bf16_pair(float low, float high)
{
    uint32_t two;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
    return two;
}

/*
 * Launches of one stream may overlap (programmatic dependent launch), where the caller asks for it: the next may begin when all blocks of this one have
 * called next_may_begin, and reads what earlier ones wrote after after_previous. Without such a launch neither does anything.
 */
__device__ __forceinline__ void after_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void next_may_begin()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- after the sums ---- */

struct epilogue {
    const float *weight_scale, *bias;
    const void *residual;
    void *out;
    int rows, tokens, flags;
    float factor;
};

enum kind { KIND_SUMS, KIND_PLAIN, KIND_RELU2, KIND_EXP }; /* KIND_EXP: gated by silu or gelu */

/* exp as the CPU's kernels have it (src/backend/cpu/float_ref.h says why these constants) */
__device__ __forceinline__ float exp_f32(float x)
{
    float t = __fmaf_rn(x, 0x1.715476p+0f, 0x1.8p+23f), n = __fsub_rn(t, 0x1.8p+23f);
    float r = __fmaf_rn(n, 0x1.05c610p-29f, __fmaf_rn(n, -0x1.62e430p-1f, x));
    float p = __fmaf_rn(0x1.6a2256p-10f, r, 0x1.123b02p-7f);
    p = __fmaf_rn(p, r, 0x1.5558f8p-5f);
    p = __fmaf_rn(p, r, 0x1.555490p-3f);
    p = __fmaf_rn(p, r, 0x1.fffffcp-2f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
    if (!(x >= -0x1.5d589ep+6f)) y = 0.0f;
    return x <= 0x1.62e42ep+6f ? y : x * __int_as_float(0x7f800000);
}

template <int KIND> __device__ __forceinline__ float activate(float x, int flags)
{
    if (KIND == KIND_RELU2) {
        float positive = x < 0.0f ? 0.0f : x;
        return __fmul_rn(positive, positive);
    }
    float u = flags & SETUN_PROMPT_GELU ? __fmul_rn(__fmaf_rn(__fmul_rn(x, x), -0.07135481627159825f, -1.5957691216057308f), x) : -x;
    return __fdiv_rn(x, __fadd_rn(1.0f, exp_f32(u)));
}

/*
 * Predicated, by hand: from an if the compiler makes a branch and moves the arithmetic behind it, and then nothing of one iteration overlaps with the
 * next. Words: 1, 2 or 4.
 */
template <int WORDS> __device__ __forceinline__ void load_if(bool valid, uint32_t *bits, const void *from)
{
    if (WORDS == 4)
        asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}" : "+r"(bits[0]), "+r"(bits[1]), "+r"(bits[WORDS > 2 ? 2 : 0]), "+r"(bits[WORDS > 2 ? 3 : 0]) : "l"(from), "r"((int)valid));
    else if (WORDS == 2) asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.global.v2.u32 {%0, %1}, [%2];\n}" : "+r"(bits[0]), "+r"(bits[WORDS > 1]) : "l"(from), "r"((int)valid));
    else asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.global.u32 %0, [%1];\n}" : "+r"(bits[0]) : "l"(from), "r"((int)valid));
}
template <int WORDS> __device__ __forceinline__ void store_if(bool valid, void *to, const uint32_t *bits)
{
    if (WORDS == 4)
        asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p st.global.v4.u32 [%4], {%0, %1, %2, %3};\n}" ::"r"(bits[0]), "r"(bits[1]), "r"(bits[WORDS > 2 ? 2 : 0]), "r"(bits[WORDS > 2 ? 3 : 0]), "l"(to), "r"((int)valid) : "memory");
    else if (WORDS == 2) asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p st.global.v2.u32 [%2], {%0, %1};\n}" ::"r"(bits[0]), "r"(bits[WORDS > 1]), "l"(to), "r"((int)valid) : "memory");
    else asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p st.global.u32 [%1], %0;\n}" ::"r"(bits[0]), "l"(to), "r"((int)valid) : "memory");
}

/*
 * COUNT neighbouring columns as they lie in memory: one vector or, where a row's length forbids that (VECTOR false), the first `count` one
 * by one. Kept as bits until they are used: a bf16 is half the registers of a float.
 */
template <int COUNT, bool BF16, bool VECTOR> struct columns_raw {
    uint32_t bits[VECTOR && BF16 ? COUNT / 2 : COUNT];
    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int c = 0; c < (int)(sizeof bits / 4); c++) bits[c] = VECTOR && BF16 ? 0x80008000u : 0x80000000u;
    }
    __device__ __forceinline__ void load(bool valid, const void *p, uint32_t i, int count)
    {
        if (!VECTOR) {
#pragma unroll
            for (int c = 0; c < COUNT; c++)
                if (valid && c < count) bits[c] = BF16 ? (uint32_t)((const uint16_t *)p)[i + c] << 16 : ((const uint32_t *)p)[i + c];
        } else {
            load_if<sizeof bits / 4>(valid, bits, (const char *)p + (size_t)i * (BF16 ? 2 : 4));
        }
    }
    __device__ __forceinline__ float at(int c) const { return __uint_as_float(!VECTOR || !BF16 ? bits[c] : c % 2 ? bits[c / 2] & 0xffff0000u : bits[c / 2] << 16); }
};
template <int COUNT, bool BF16, bool VECTOR> __device__ __forceinline__ void store_columns(bool valid, void *p, uint32_t i, int count, const float y[4])
{
    uint32_t bits[4];
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        if (!VECTOR && valid && c < count) {
            if (BF16) ((uint16_t *)p)[i + c] = to_bf16(y[c]);
            else ((float *)p)[i + c] = y[c];
        } else if (VECTOR && !BF16) {
            bits[c] = __float_as_uint(y[c]);
        } else if (VECTOR && c % 2 == 0) {
            bits[c / 2] = to_bf16_pair(y[c], y[c + 1]);
        }
    }
    if (VECTOR) store_if<BF16 ? COUNT / 2 : COUNT>(valid, (char *)p + (size_t)i * (BF16 ? 2 : 4), bits);
}

/* What a thread needs of its four packed rows. */
struct row_scales { float4 scale, bias; };
__device__ __forceinline__ float get(const float4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

/* 32 bits: tokens * rows < 2^31 */
template <int KIND> __device__ __forceinline__ uint32_t out_index(const epilogue &e, int row, int token)
{
    return KIND == KIND_PLAIN || KIND == KIND_SUMS ? (uint32_t)token * (uint32_t)e.rows + (uint32_t)row : (uint32_t)token * ((uint32_t)e.rows / 2) + (uint32_t)row / 2;
}

template <int KIND, bool BF16, bool VECTOR> using residual_raw = columns_raw<KIND == KIND_PLAIN ? 4 : 2, BF16, VECTOR>;

/* x + -0 is x for every x: what is not there is -0, so that the hot loop has no branch for it. */
#define NOTHING_ADDED 0x80000000u

/* Apart from finish, so that many loads can be on their way. */
template <int KIND, bool BF16, bool VECTOR> __device__ __forceinline__ void load_residual(const epilogue &e, int row, int token, bool valid, residual_raw<KIND, BF16, VECTOR> &y)
{
    y.load(valid && e.flags & SETUN_PROMPT_RESIDUAL, e.residual, out_index<KIND>(e, row, token), KIND == KIND_PLAIN ? e.rows - row : (e.rows - row) / 2);
}

/* Writes what becomes of four rows' sums for one token. */
template <int KIND, bool BF16, bool VECTOR> __device__ __forceinline__ void finish(const epilogue &e, int row, int token, bool valid, const row_scales &r, int4 sums, float x_scale, int x_sum, const residual_raw<KIND, BF16, VECTOR> &residual)
{
    uint32_t at = out_index<KIND>(e, row, token);
    int sum[4] = {sums.x - x_sum, sums.y - x_sum, sums.z - x_sum, sums.w - x_sum};
    if (KIND == KIND_SUMS) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (valid && row + i < e.rows) ((int *)e.out)[at + i] = sum[i];
        return;
    }
    constexpr int count = KIND == KIND_PLAIN ? 4 : 2;
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = __fadd_rn(__fmul_rn((float)sum[i], __fmul_rn(x_scale, get(r.scale, i))), get(r.bias, i));
#pragma unroll
    for (int i = 0; i < count; i++) {
        if (KIND != KIND_PLAIN) y[i] = __fmul_rn(activate<KIND>(y[2 * i], e.flags), y[2 * i + 1]);
        y[i] = __fadd_rn(__fmul_rn(y[i], e.factor), residual.at(i));
    }
    store_columns<count, BF16, VECTOR>(valid, e.out, at, KIND == KIND_PLAIN ? e.rows - row : (e.rows - row) / 2, y);
}

/* Calls f with the kind, the type and the reach of the output as constants: one branch a tile, not one a number. */
template <int KIND, typename F> __device__ __forceinline__ void dispatch_type(const epilogue &e, const F &f)
{
    if (e.rows % 4) {
        if (e.flags & SETUN_PROMPT_BF16) f.template run<KIND, true, false>();
        else f.template run<KIND, false, false>();
    } else {
        if (e.flags & SETUN_PROMPT_BF16) f.template run<KIND, true, true>();
        else f.template run<KIND, false, true>();
    }
}
template <typename F> __device__ __forceinline__ void dispatch(const epilogue &e, const F &f)
{
    if (e.flags & SETUN_PROMPT_SUMS) f.template run<KIND_SUMS, false, false>();
    else if (!(e.flags & SETUN_PROMPT_GATED)) dispatch_type<KIND_PLAIN>(e, f);
    else if (e.flags & (SETUN_PROMPT_SILU | SETUN_PROMPT_GELU)) dispatch_type<KIND_EXP>(e, f);
    else dispatch_type<KIND_RELU2>(e, f);
}

/*
 * The four A registers of step s (32 columns) of a lane's four words. unpack_high leaves the code in a byte's upper bits, 64 times too large:
 * a shift to the left is a multiplication, on a pipe of its own, and these kernels' pipe for logic is the one that would be full.
 */
__device__ __forceinline__ void unpack_high(const uint4 &w, int s, uint32_t a[4])
{
    a[0] = w.x << (2 * s) & 0xc0c0c0c0u;
    a[1] = w.y << (2 * s) & 0xc0c0c0c0u;
    a[2] = w.z << (2 * s) & 0xc0c0c0c0u;
    a[3] = w.w << (2 * s) & 0xc0c0c0c0u;
}
__device__ __forceinline__ void unpack(const uint4 &w, int s, uint32_t a[4])
{
    a[0] = w.x >> (6 - 2 * s) & 0x03030303u;
    a[1] = w.y >> (6 - 2 * s) & 0x03030303u;
    a[2] = w.z >> (6 - 2 * s) & 0x03030303u;
    a[3] = w.w >> (6 - 2 * s) & 0x03030303u;
}

/* ---- every GPU since sm_80: mma.sync. 16 * S rows x N tokens a block; its 8 warps take every 8th block of columns and add up in shared memory ---- */

__device__ __forceinline__ float4 row_values(const float *p, int row, int rows)
{
    return make_float4(p[row], row + 1 < rows ? p[row + 1] : 0.0f, row + 2 < rows ? p[row + 2] : 0.0f, row + 3 < rows ? p[row + 3] : 0.0f);
}

template <int S, int N> struct mma_finish {
    const epilogue &e;
    const int *sums;
    const float *x_scale;
    const int *x_sum;
    int row0, token0;
    template <int KIND, bool BF16, bool VECTOR> __device__ __forceinline__ void run() const
    {
        for (int i = threadIdx.x; i < N * 4 * S; i += SETUN_PROMPT_MMA_THREADS) {
            int four = i % (4 * S), t = i / (4 * S), row = row0 + 4 * four, token = token0 + t;
            if (token >= e.tokens || row >= e.rows) continue;
            const float nothing = __uint_as_float(NOTHING_ADDED);
            residual_raw<KIND, BF16, VECTOR> residual;
            residual.clear();
            load_residual<KIND, BF16, VECTOR>(e, row, token, true, residual);
            row_scales rows = {row_values(e.weight_scale, row, e.rows), {nothing, nothing, nothing, nothing}};
            if (e.flags & SETUN_PROMPT_BIAS) rows.bias = row_values(e.bias, row, e.rows);
            finish<KIND, BF16, VECTOR>(e, row, token, true, rows, *(const int4 *)(sums + t * (16 * S + 4) + 4 * four), x_scale[token], x_sum[token], residual);
        }
    }
};

template <int S, int TOGETHER> __device__ __forceinline__ void load_slabs(uint4 (&w)[TOGETHER][S], const uint32_t *words, int row_tile, int slabs, int first, int blocks, int lane)
{
#pragma unroll
    for (int c = 0; c < TOGETHER; c++)
#pragma unroll
        for (int s = 0; s < S; s++) {
            int slab = row_tile * S + s, block = first + 8 * c;
            w[c][s] = make_uint4(0, 0, 0, 0);
            if (slab < slabs && block < blocks) w[c][s] = ((const uint4 *)words)[(((size_t)(slab / 16) * blocks + block) * 16 + slab % 16) * 32 + lane];
        }
}

template <int S, int N> __device__ __forceinline__ void product_mma(const uint32_t *words, const int8_t *x, const float *x_scale, const int32_t *x_sum, const epilogue &e, int blocks)
{
    extern __shared__ int sums[]; /* [N][16 * S + 4] */
    constexpr int stride = 16 * S + 4, together = S == 1 ? 4 : 2;
    int row_tiles = (e.rows + 16 * S - 1) / (16 * S), token_tiles = (e.tokens + N - 1) / N;
    int token_tile = blockIdx.x % token_tiles, row_tile = blockIdx.x / token_tiles;
    if (row_tile >= row_tiles) {
        after_previous();
        return;
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, quad = lane % 4;
    int slabs = (e.rows + 255) / 256 * 16, groups = (e.tokens + 7) / 8, group0 = token_tile * (N / 8);
    for (int i = threadIdx.x; i < N * stride; i += SETUN_PROMPT_MMA_THREADS) sums[i] = 0;
    __syncthreads();
    int d[S][N / 8][4];
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) d[s][j][i] = 0;
    /* few tokens: the next turn's weights come while this one's are multiplied; with more there would be too few registers */
    constexpr bool ahead = S * N == 8, gathered = N == 8;
    uint4 w[together][S], later[ahead ? together : 1][S];
    load_slabs<S, together>(w, words, row_tile, slabs, warp, blocks, lane); /* nobody's result: before the wait */
    after_previous();
    next_may_begin();
    for (int first = warp; first < blocks; first += 8 * together) {
        if constexpr (ahead) {
            load_slabs<S, together>(later, words, row_tile, slabs, first + 8 * together, blocks, lane);
        } else if (first != warp) {
            load_slabs<S, together>(w, words, row_tile, slabs, first, blocks, lane);
        }
        uint32_t all[gathered ? together : 1][4][2]; /* of few tokens: all loads of a turn at once, one latency */
#pragma unroll
        for (int c = 0; c < (gathered ? together : 0); c++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int block = first + 8 * c;
                all[gathered ? c : 0][i / 2][i % 2] = 0;
                if (block < blocks) all[gathered ? c : 0][i / 2][i % 2] = *(const uint32_t *)(x + ((size_t)block * groups + group0) * 1024 + g * 128 + quad * 4 + (i ^ g) * 16);
            }
#pragma unroll
        for (int c = 0; c < together; c++) {
            int block = first + 8 * c;
            if (!gathered && block >= blocks) break;
            const int8_t *from = x + ((size_t)block * groups + group0) * 1024 + g * 128 + quad * 4;
#pragma unroll
            for (int step = 0; step < 4; step++) {
                uint32_t a[S][4];
#pragma unroll
                for (int s = 0; s < S; s++) unpack(w[c][s], step, a[s]);
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                    uint32_t b0 = all[gathered ? c : 0][step][0], b1 = all[gathered ? c : 0][step][1];
                    if (!gathered) b0 = b1 = 0;
                    if (!gathered && group0 + j < groups) {
                        b0 = *(const uint32_t *)(from + j * 1024 + ((2 * step) ^ g) * 16);
                        b1 = *(const uint32_t *)(from + j * 1024 + ((2 * step + 1) ^ g) * 16);
                    }
#pragma unroll
                    for (int s = 0; s < S; s++)
                        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                     : "+r"(d[s][j][0]), "+r"(d[s][j][1]), "+r"(d[s][j][2]), "+r"(d[s][j][3])
                                     : "r"(a[s][0]), "r"(a[s][1]), "r"(a[s][2]), "r"(a[s][3]), "r"(b0), "r"(b1));
                }
            }
        }
#pragma unroll
        for (int c = 0; c < (ahead ? together : 0); c++)
#pragma unroll
            for (int s = 0; s < S; s++) w[c][s] = later[ahead ? c : 0][s];
    }
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) atomicAdd(&sums[(8 * j + 2 * quad + i % 2) * stride + 16 * s + 2 * g + i / 2], d[s][j][i]);
    __syncthreads();
    mma_finish<S, N> f = {e, sums, x_scale, x_sum, row_tile * 16 * S, token_tile * N};
    dispatch(e, f);
}

#define PRODUCT_ARGUMENTS \
    const uint32_t *words, const float *weight_scale, const int8_t *x, const float *x_scale, const int32_t *x_sum, const float *bias, const void *residual, void *out, int rows, int blocks, \
        int tokens, int flags, float factor

#define DEFINE_MMA(S, N) \
    extern "C" __global__ void __launch_bounds__(SETUN_PROMPT_MMA_THREADS, N == 8 ? 2 * S : 1) setun_prompt_mma_##S##x##N(PRODUCT_ARGUMENTS) \
    { \
        epilogue e = {weight_scale, bias, residual, out, rows, tokens, flags, factor}; \
        product_mma<S, N>(words, x, x_scale, x_sum, e, blocks); \
    }
SETUN_PROMPT_MMA_LIST(DEFINE_MMA)

/* ---- Hopper: wgmma with A from registers. One warpgroup loads, two compute 128 rows x N tokens each; thread blocks walk the tiles ---- */

#if (!defined(__CUDA_ARCH__) && !defined(__CUDACC_RTC__)) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory"); }
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory"); }
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity)
{
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra.uni over;\nbra.uni again;\nover:\n}" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void bulk_load(uint32_t to, const void *from, int bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
__device__ __forceinline__ uint4 load_words(uint32_t from)
{
    uint4 w;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "r"(from) : "memory");
    return w;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

template <int N> struct wgmma; /* d [64 rows x N tokens] += a (u8, registers) * b (s8, shared memory) over 32 columns */

#define R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R1 R0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R2 R1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define R3 R2 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define R4 R3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define R5 R4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define R6 R5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define R7 R6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define R8 R7 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define R9 R8 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define O(b) "+r"(d[b]), "+r"(d[b + 1]), "+r"(d[b + 2]), "+r"(d[b + 3]), "+r"(d[b + 4]), "+r"(d[b + 5]), "+r"(d[b + 6]), "+r"(d[b + 7])
#define O0 O(0)
#define O1 O0, O(8)
#define O2 O1, O(16)
#define O3 O2, O(24)
#define O4 O3, O(32)
#define O5 O4, O(40)
#define O6 O5, O(48)
#define O7 O6, O(56)
#define O8 O7, O(64)
#define O9 O8, O(72)
#define DEFINE_WGMMA_OPERATION(N, LAST, A0, A1, A2, A3, B) \
    template <> struct wgmma<N> { \
        static __device__ __forceinline__ void run(int (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) \
        { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k32.s32.u8.s8 {" R##LAST "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p;\n}" \
                         : O##LAST : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
    };
DEFINE_WGMMA_OPERATION(32, 1, 16, 17, 18, 19, 20)
DEFINE_WGMMA_OPERATION(48, 2, 24, 25, 26, 27, 28)
DEFINE_WGMMA_OPERATION(64, 3, 32, 33, 34, 35, 36)
DEFINE_WGMMA_OPERATION(80, 4, 40, 41, 42, 43, 44)
DEFINE_WGMMA_OPERATION(96, 5, 48, 49, 50, 51, 52)
DEFINE_WGMMA_OPERATION(128, 7, 64, 65, 66, 67, 68)
DEFINE_WGMMA_OPERATION(160, 9, 80, 81, 82, 83, 84)

/*
 * The sums pass through shared memory, a warp's own part of it, a few tokens of 16 rows at a time: a thread then has four rows of a
 * token, and the code is a short loop where one straight from the registers would be thousands of instructions.
 */
template <int N> struct wgmma_finish {
    static constexpr int part = SETUN_PROMPT_STAGED_TOKENS(N), parts = N / part, stride = 20; /* words a token: no bank conflicts */
    const epilogue &e;
    const int (&d)[2][N / 2];
    int *staged;        /* [part][stride] */
    const int2 *tokens; /* [N] scale's bits, sum */
    const float *rows;  /* of the half's 128 rows: scale [128], bias [128] */
    int row, token;     /* the warp's first; its second 16 rows are 64 further */
    template <int KIND, bool BF16, bool VECTOR> __device__ __forceinline__ void run() const
    {
        int lane = threadIdx.x % 32, four = lane / 8 * 4, mine = threadIdx.x / 32 % 4 * 16 + four;
        /* What models use most is unrolled and free of branches, with a pass's residuals loaded during the one before; the rest is short */
        constexpr bool hot = VECTOR && (KIND == KIND_PLAIN || KIND == KIND_RELU2);
        residual_raw<KIND, BF16, VECTOR> residual[hot ? part / 8 : 1];
#pragma unroll
        for (int i = 0; i < (hot ? part / 8 : 1); i++) {
            int t = token + 8 * i + lane % 8;
            residual[i].clear();
            if (hot) load_residual<KIND, BF16, VECTOR>(e, row + four, t, t < e.tokens && row + four < e.rows, residual[i]);
        }
#pragma unroll 1
        for (int pass = 0; pass < 2 * parts; pass++) {
            int second = pass / parts * 64, t0 = pass % parts * part + lane % 8, r = row + four + second;
            int next_r = row + four + (pass + 1) / parts * 64, next_t = token + (pass + 1) % parts * part + lane % 8, limit = r < e.rows ? e.tokens : 0;
            int next_limit = pass + 1 < 2 * parts && next_r < e.rows ? e.tokens : 0;
            row_scales values = {*(const float4 *)(rows + second + mine), *(const float4 *)(rows + 128 + second + mine)};
            __syncwarp();
#pragma unroll
            for (int c = 0; c < 2 * parts; c++) {
                if (c != pass) continue;
#pragma unroll
                for (int j = 0; j < part / 8; j++) {
                    const int *from = &d[c / parts][(c % parts * part / 8 + j) * 4];
                    int *to = staged + (8 * j + lane % 4 * 2) * stride + lane / 4 * 2;
                    *(int2 *)to = make_int2(from[0] >> 6, from[2] >> 6);
                    *(int2 *)(to + stride) = make_int2(from[1] >> 6, from[3] >> 6);
                }
            }
            __syncwarp();
            const int *from = staged + lane % 8 * stride + four;
            if (hot) {
#pragma unroll
                for (int i = 0; i < part / 8; i++) {
                    int t = t0 + 8 * i;
                    int2 of_token = tokens[t];
                    finish<KIND, BF16, VECTOR>(e, r, token + t, token + t < limit, values, *(const int4 *)(from + 8 * i * stride), __int_as_float(of_token.x), of_token.y, residual[hot ? i : 0]);
                    residual[hot ? i : 0].clear();
                    load_residual<KIND, BF16, VECTOR>(e, next_r, next_t + 8 * i, next_t + 8 * i < next_limit, residual[hot ? i : 0]);
                }
            } else {
#pragma unroll 1
                for (int i = 0; i < part / 8; i++) {
                    int t = t0 + 8 * i;
                    int2 of_token = tokens[t];
                    load_residual<KIND, BF16, VECTOR>(e, r, token + t, token + t < limit, residual[0]);
                    finish<KIND, BF16, VECTOR>(e, r, token + t, token + t < limit, values, *(const int4 *)(from + 8 * i * stride), __int_as_float(of_token.x), of_token.y, residual[0]);
                }
            }
        }
    }
};

template <int N> __device__ __forceinline__ void product_wgmma(const uint32_t *words, const int8_t *x, const float *x_scale, const int32_t *x_sum, const epilogue &e, int blocks)
{
    constexpr int stages = SETUN_PROMPT_STAGES(N), stage_bytes = SETUN_PROMPT_STAGE_BYTES(N), staged_words = SETUN_PROMPT_STAGED_TOKENS(N) * 20;
    extern __shared__ uint8_t raw[];
    uint8_t *shared = raw + (-shared_address(raw) & 1023); /* the swizzle goes by address bits */
    /* stages: x [N tokens][128], swizzled; then the words of a tile */
    int *staged = (int *)(shared + stages * stage_bytes); /* [8 warps][staged_words] */
    uint8_t *control = (uint8_t *)(staged + 8 * staged_words);
    uint32_t full = shared_address(control), empty = full + 128;
    int2 *of_tokens = (int2 *)(control + 256); /* [2 halves][2][160] scale's bits, sum: tiles take turns */
    float *of_rows = (float *)(of_tokens + 4 * 160); /* [2 halves][2][scale 128, bias 128] */
    int row_tiles = (e.rows + 255) / 256, token_tiles = (e.tokens + N - 1) / N, tiles = row_tiles * token_tiles;
    int groups = (e.tokens + 7) / 8, group_of_warps = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 8); /* one arrival a computing warp */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    next_may_begin();
    if (group_of_warps == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            int stage = 0, phase = 0, early = 0;
            if ((int)blockIdx.x < tiles) { /* the first weights are on their way before the launch before has ended */
                int x_bytes = min(N / 8, groups - (int)blockIdx.x % token_tiles * (N / 8)) * 1024;
                for (; early < stages && early < blocks; early++) {
                    barrier_expect(full + 8 * early, x_bytes + 8192);
                    bulk_load(shared_address(shared) + early * stage_bytes + N * 128, (const uint8_t *)words + ((size_t)((int)blockIdx.x / token_tiles) * blocks + early) * 8192, 8192, full + 8 * early);
                }
            }
            after_previous();
            for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                int group = tile % token_tiles * (N / 8);
                int x_bytes = min(N / 8, groups - group) * 1024;
                const uint8_t *from_x = (const uint8_t *)x + (size_t)group * 1024, *from_words = (const uint8_t *)words + (size_t)(tile / token_tiles) * blocks * 8192;
                for (int block = 0; block < blocks; block++) {
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    uint32_t to = shared_address(shared) + stage * stage_bytes, barrier = full + 8 * stage;
                    if (early == 0) barrier_expect(barrier, x_bytes + 8192);
                    bulk_load(to, from_x, x_bytes, barrier);
                    if (early == 0) bulk_load(to + N * 128, from_words, 8192, barrier);
                    else early--;
                    from_x += (size_t)groups * 1024;
                    from_words += 8192;
                    if (++stage == stages) stage = 0, phase ^= 1;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        after_previous();
        /* A registers are kept for four steps, so up to three groups of products wait behind the one that runs */
        int half = group_of_warps - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        int stage = 0, phase = 0, turn = 0;
        uint32_t base = shared_address(shared), my_words = base + N * 128 + half * 4096 + warp * 512 + lane * 16;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
            int token0 = tile % token_tiles * N, row0 = tile / token_tiles * 256 + half * 128;
            int2 my_tokens[2] = {{0, 0}, {0, 0}};
#pragma unroll
            for (int i = 0; i < (N + 127) / 128; i++) {
                int t = thread + 128 * i;
                if (t < N && token0 + t < e.tokens) my_tokens[i] = make_int2(__float_as_int(x_scale[token0 + t]), x_sum[token0 + t]);
            }
            float my_row = 0, my_bias = __uint_as_float(NOTHING_ADDED);
            if (row0 + thread < e.rows) {
                my_row = e.weight_scale[row0 + thread];
                if (e.flags & SETUN_PROMPT_BIAS) my_bias = e.bias[row0 + thread];
            }
            int d[2][N / 2];
#pragma unroll
            for (int i = 0; i < N / 2; i++) d[0][i] = d[1][i] = 0;
            int previous = -1;
            uint32_t a[4][2][4];
            barrier_wait(full + 8 * stage, phase);
            uint4 w0 = load_words(my_words + stage * stage_bytes), w1 = load_words(my_words + stage * stage_bytes + 2048);
            for (int block = 0; block < blocks; block++) {
                /* K-major, 128-byte swizzle, 1024 bytes from one 8 tokens to the next; 32 columns further: 32 bytes */
                uint64_t b = (uint64_t)1 << 62 | (uint64_t)64 << 32 | (uint64_t)1 << 16 | ((base + stage * stage_bytes) & 0x3ffff) >> 4;
                int now = stage;
                if (++stage == stages) stage = 0, phase ^= 1;
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    unpack_high(w0, step, a[step][0]);
                    unpack_high(w1, step, a[step][1]);
                    wgmma_fence();
                    wgmma<N>::run(d[0], a[step][0], b + 2 * step);
                    wgmma<N>::run(d[1], a[step][1], b + 2 * step);
                    wgmma_commit();
                    if (step == 3 && block + 1 < blocks) { /* the next block's words come while products wait in line */
                        barrier_wait(full + 8 * stage, phase);
                        w0 = load_words(my_words + stage * stage_bytes);
                        w1 = load_words(my_words + stage * stage_bytes + 2048);
                    }
                    wgmma_wait<3>();
                    if (step == 2 && previous >= 0 && lane == 0) barrier_arrive(empty + 8 * previous); /* its products are done */
                }
                previous = now;
            }
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(empty + 8 * previous);
            /* The two halves never wait for each other: while one ends a tile, the other keeps the tensor cores busy */
            int2 *tokens = of_tokens + (half * 2 + turn) * 160;
            float *rows = of_rows + (half * 2 + turn) * 256;
#pragma unroll
            for (int i = 0; i < (N + 127) / 128; i++)
                if (thread + 128 * i < N) tokens[thread + 128 * i] = my_tokens[i];
            rows[thread] = my_row;
            rows[128 + thread] = my_bias;
            asm volatile("bar.sync %0, 128;" ::"r"(1 + half) : "memory");
            wgmma_finish<N> f = {e, d, staged + (half * 4 + warp) * staged_words, tokens, rows, row0 + warp * 16, token0};
            dispatch(e, f);
        }
    }
}

#define DEFINE_WGMMA(N) \
    extern "C" __global__ void __launch_bounds__(SETUN_PROMPT_WGMMA_THREADS, 1) setun_prompt_wgmma_##N(PRODUCT_ARGUMENTS) \
    { \
        epilogue e = {weight_scale, bias, residual, out, rows, tokens, flags, factor}; \
        product_wgmma<N>(words, x, x_scale, x_sum, e, blocks); \
    }
SETUN_PROMPT_WGMMA_LIST(DEFINE_WGMMA)

#endif

/* ---- rms_norm + rounding to int8, one thread block a token; tokens past the last write zeros ---- */

/*
 * The order of kernels.h: 64 chains of fma, chain c takes elements c, c + 64, ..; (s0 + s1) + (s2 + s3) of the four sets of 16, then the tree.
 * Threads 0..63 own a chain each: a few hundred dependent fma, less than the reads take. The row stands in shared memory for them, and in
 * registers for everything else, if it is not too long.
 */
__device__ __forceinline__ float inverse_norm(const float *row, float *chains, int thread, int padded, int columns, float epsilon)
{
    if (thread < 64) {
        float s = 0.0f;
#pragma unroll 16
        for (int i = thread; i < padded; i += 64) s = __fmaf_rn(row[i], row[i], s); /* the zeros at the end change nothing */
        chains[thread] = s;
    }
    __syncthreads();
    float s = 0.0f;
    int lane = thread % 16;
    s = __fadd_rn(__fadd_rn(chains[lane], chains[16 + lane]), __fadd_rn(chains[32 + lane], chains[48 + lane]));
#pragma unroll
    for (int distance = 8; distance >= 1; distance /= 2) s = __fadd_rn(s, __shfl_xor_sync(0xffffffffu, s, distance));
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(s, (float)columns), epsilon)));
}

/* Columns i .. i + 3 of a row that begins at `start`; zeros past the last. */
__device__ __forceinline__ float4 load_four(const void *x, size_t start, int i, int columns, int flags)
{
    float4 v = make_float4(0, 0, 0, 0);
    if (columns % 4 == 0) {
        if (i >= columns) return v;
        if (!(flags & SETUN_PROMPT_IN_BF16)) return *(const float4 *)((const float *)x + start + i);
        uint2 four = *(const uint2 *)((const uint16_t *)x + start + i);
        return make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000u), __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xffff0000u));
    }
    float y[4];
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = i + j >= columns ? 0.0f : flags & SETUN_PROMPT_IN_BF16 ? from_bf16(((const uint16_t *)x)[start + i + j]) : ((const float *)x)[start + i + j];
    return make_float4(y[0], y[1], y[2], y[3]);
}
__device__ __forceinline__ float4 times(float4 v, float by) { return make_float4(__fmul_rn(v.x, by), __fmul_rn(v.y, by), __fmul_rn(v.z, by), __fmul_rn(v.w, by)); }
__device__ __forceinline__ float4 times(float4 v, float4 w, float offset)
{
    return make_float4(__fmul_rn(v.x, __fadd_rn(w.x, offset)), __fmul_rn(v.y, __fadd_rn(w.y, offset)), __fmul_rn(v.z, __fadd_rn(w.z, offset)), __fmul_rn(v.w, __fadd_rn(w.w, offset)));
}
__device__ __forceinline__ int warp_sum(int v)
{
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}
/* The largest magnitude; a NaN is passed over. */
__device__ __forceinline__ float most_of_four(float4 v, float most) { return fmaxf(fmaxf(fmaxf(fmaxf(most, fabsf(v.x)), fabsf(v.y)), fabsf(v.z)), fabsf(v.w)); }
/* Four int8 as a word. A NaN becomes -128, nothing else lies outside -127 .. 127; 1.5 * 2^23 is added for its rounding: to the nearest, ties to even, the
 * integer in the lowest bits. */
__device__ __forceinline__ uint32_t rounded_four(float4 v, float factor)
{
    float y[4] = {v.x, v.y, v.z, v.w};
    uint32_t bits[4];
#pragma unroll
    for (int j = 0; j < 4; j++) bits[j] = __float_as_uint(__fadd_rn(fmaxf(__fmul_rn(y[j], factor), -128.0f), 12582912.0f));
    return __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
}

/* Tokens past the last, up to a whole group. */
__device__ __forceinline__ void quantize_nothing(int8_t *q, float *scale, int32_t *sum, int columns)
{
    int token = blockIdx.x, groups = gridDim.x / 8;
    int8_t *to = q + (size_t)(token / 8) * 1024 + token % 8 * 128;
    after_previous(); /* which may still read what is written here */
    next_may_begin();
    for (int i = threadIdx.x; i < (columns + 127) / 128 * 8; i += SETUN_PROMPT_QUANTIZE_THREADS) *(uint4 *)(to + (size_t)(i / 8) * groups * 1024 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
    if (threadIdx.x == 0) scale[token] = 0, sum[token] = 0;
}

/* A row, of which a thread keeps KEEP fours in registers; 0: none, it reads them again from shared memory. */
template <int KEEP> __device__ __forceinline__ void quantize_row(float *row, const void *x, const float *norm_weight, int8_t *q, float *scale, int32_t *sum, int columns, int flags, float epsilon)
{
    constexpr int threads = SETUN_PROMPT_QUANTIZE_THREADS, turn = threads * 4, warps = threads / 32, kept = KEEP > 0 ? KEEP : 1;
    constexpr bool early = KEEP > 0 && KEEP <= 5; /* are there registers for the norm's weights before the row is there? */
    int padded = (columns + 127) / 128 * 128, token = blockIdx.x, thread = threadIdx.x, groups = gridDim.x / 8;
    float *chains = row + padded, *maxima = chains + 64;
    int *sums = (int *)(maxima + warps);
    bool norm = flags & SETUN_PROMPT_NORM, weight = norm && flags & SETUN_PROMPT_WEIGHT;
    size_t start = (size_t)token * columns;
    float4 v[kept], w[early ? kept : 1];
    float most = 0.0f, inverse = 1.0f, offset = flags & SETUN_PROMPT_ONE_PLUS ? 1.0f : 0.0f;
    if (early) {
#pragma unroll
        for (int j = 0; j < kept; j++) {
            w[early ? j : 0] = make_float4(1, 1, 1, 1);
            if (weight && thread * 4 + j * turn < padded) w[early ? j : 0] = load_four(norm_weight, 0, thread * 4 + j * turn, columns, 0);
        }
    }
    after_previous();
    next_may_begin();
    if (KEEP) {
#pragma unroll
        for (int j = 0; j < kept; j++) {
            v[j] = make_float4(0, 0, 0, 0);
            if (thread * 4 + j * turn < padded) v[j] = load_four(x, start, thread * 4 + j * turn, columns, flags);
        }
    } else {
        for (int i = thread * 4; i < padded; i += turn) *(float4 *)(row + i) = load_four(x, start, i, columns, flags);
    }
    if (norm) {
        if (KEEP) {
#pragma unroll
            for (int j = 0; j < kept; j++)
                if (thread * 4 + j * turn < padded) *(float4 *)(row + thread * 4 + j * turn) = v[j];
        }
        __syncthreads();
        inverse = inverse_norm(row, chains, thread, padded, columns, epsilon);
    }
    if (KEEP) {
#pragma unroll
        for (int j = 0; j < kept; j++)
            if (thread * 4 + j * turn < padded) {
                if (norm) v[j] = times(v[j], inverse);
                if (weight) v[j] = times(v[j], early ? w[early ? j : 0] : load_four(norm_weight, 0, thread * 4 + j * turn, columns, 0), offset);
                most = most_of_four(v[j], most);
            }
    } else {
        for (int i = thread * 4; i < padded; i += turn) { /* what this thread wrote itself */
            float4 four = *(const float4 *)(row + i);
            if (norm) four = times(four, inverse);
            if (weight) four = times(four, load_four(norm_weight, 0, i, columns, 0), offset);
            *(float4 *)(row + i) = four;
            most = most_of_four(four, most);
        }
    }
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, distance));
    if (thread % 32 == 0) maxima[thread / 32] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < warps; i++) most = fmaxf(most, maxima[i]);
    most = most > 1e-5f ? most : 1e-5f;
    float factor = __fdiv_rn(127.0f, most);
    int total = 0;
    size_t step = (size_t)groups * (turn / 128) * 1024; /* from a thread's four columns to its next */
    int8_t *to = q + (size_t)(token / 8) * 1024 + token % 8 * 128 + (size_t)(thread / 32) * groups * 1024 + ((thread % 32 / 4) ^ (token % 8)) * 16 + thread % 4 * 4;
    if (KEEP) {
#pragma unroll
        for (int j = 0; j < kept; j++)
            if (thread * 4 + j * turn < padded) {
                uint32_t four = rounded_four(v[j], factor);
                total = __dp4a((int)four, 0x01010101, total);
                *(uint32_t *)(to + j * step) = four;
            }
    } else {
        for (int i = thread * 4; i < padded; i += turn, to += step) {
            uint32_t four = rounded_four(*(const float4 *)(row + i), factor);
            total = __dp4a((int)four, 0x01010101, total);
            *(uint32_t *)to = four;
        }
    }
    total = warp_sum(total);
    if (thread % 32 == 0) sums[thread / 32] = total;
    __syncthreads();
    if (thread == 0) {
        for (int i = 1; i < warps; i++) total += sums[i];
        scale[token] = __fdiv_rn(most, 127.0f);
        sum[token] = total;
    }
}

/* The names end with the fours that a thread keeps: setun_prompt_quantize_kernel chooses. */
#define DEFINE_QUANTIZE(NAME, KEEP) \
    extern "C" __global__ void __launch_bounds__(SETUN_PROMPT_QUANTIZE_THREADS) NAME(const void *x, const float *norm_weight, int8_t *q, float *scale, int32_t *sum, int columns, int tokens, int flags, float epsilon) \
    { \
        extern __shared__ float row[]; /* [blocks * 128], zero past columns; then 64 chains, maxima, sums of the warps */ \
        if (blockIdx.x < tokens) quantize_row<KEEP>(row, x, norm_weight, q, scale, sum, columns, flags, epsilon); \
        else quantize_nothing(q, scale, sum, columns); \
    }
DEFINE_QUANTIZE(setun_prompt_quantize_2, 2)
DEFINE_QUANTIZE(setun_prompt_quantize_5, 5)
DEFINE_QUANTIZE(setun_prompt_quantize_8, 8)
DEFINE_QUANTIZE(setun_prompt_quantize_14, 14)
DEFINE_QUANTIZE(setun_prompt_quantize, 0)

/* ---- packing: once a model ---- */

extern "C" __global__ void __launch_bounds__(256) setun_prompt_pack_rows(const uint32_t *codes0, const uint32_t *codes1, const uint32_t *codes2, uint32_t *words, int rows0, int rows1, int rows2, int blocks, int gated)
{
    int rows = rows0 + rows1 + rows2;
    uint64_t count = setun_prompt_weight_words(rows, (int64_t)blocks * 128) / 4, at = (uint64_t)blockIdx.x * 256 + threadIdx.x; /* in fours */
    if (at >= count) return;
    int lane = (int)(at % 32), slab = (int)(at / 32 % 16), block = (int)(at / 512 % blocks);
    int row = (int)(at / 512 / blocks) * 256 + slab * 16 + lane / 4 * 2;
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int r = row + i % 2;
        out[i] = SETUN_PROMPT_CODE_ONE;
        if (r >= rows) continue;
        const uint32_t *from = codes0;
        if (gated) {
            from = r % 2 ? codes1 : codes0;
            r /= 2;
        } else if (r >= rows0 + rows1) {
            from = codes2;
            r -= rows0 + rows1;
        } else if (r >= rows0) {
            from = codes1;
            r -= rows0;
        }
        out[i] = from[((size_t)r * blocks + block) * 8 + i / 2 * 4 + lane % 4];
    }
    ((uint4 *)words)[at] = make_uint4(out[0], out[1], out[2], out[3]);
}

/* ---- rotation of q and k, and the cache's append: one thread block a head of a token ---- */

__device__ __forceinline__ float load_float(const void *p, size_t i, bool bf16) { return bf16 ? from_bf16(((const uint16_t *)p)[i]) : ((const float *)p)[i]; }
__device__ __forceinline__ void store_float(void *p, size_t i, float y, int flags)
{
    if (flags & SETUN_PROMPT_OUT_BF16) ((uint16_t *)p)[i] = to_bf16(y);
    else if (flags & SETUN_PROMPT_OUT_F16) ((uint16_t *)p)[i] = to_f16(y);
    else ((float *)p)[i] = y;
}

extern "C" __global__ void __launch_bounds__(128) setun_prompt_rope(const void *qkv, const float *cosine, const float *sine, const int32_t *positions, void *k, void *v, void *q, int tokens, int heads, int kv_heads, int head_size, int rotary, int capacity, int first, int flags)
{
    int all = heads + 2 * kv_heads, token = blockIdx.x / all, head = blockIdx.x % all, half = rotary / 2, position = positions[token];
    if (token >= tokens) return;
    bool bf16 = flags & SETUN_PROMPT_IN_BF16, interleaved = flags & SETUN_PROMPT_INTERLEAVED;
    size_t from = (size_t)blockIdx.x * head_size, to;
    void *out = q;
    if (head < heads) {
        to = ((size_t)head * tokens + token) * head_size;
    } else {
        out = head < heads + kv_heads ? k : v;
        to = ((size_t)((head - heads) % kv_heads) * capacity + first + token) * head_size;
    }
    if (head >= heads + kv_heads) half = 0, rotary = 0; /* v is not rotated */
    for (int i = threadIdx.x; i < half; i += 128) {
        int i0 = interleaved ? 2 * i : i, i1 = interleaved ? 2 * i + 1 : i + half;
        float a = load_float(qkv, from + i0, bf16), b = load_float(qkv, from + i1, bf16), c = cosine[(size_t)position * half + i], s = sine[(size_t)position * half + i];
        store_float(out, to + i0, __fmaf_rn(a, c, -__fmul_rn(b, s)), flags);
        store_float(out, to + i1, __fmaf_rn(b, c, __fmul_rn(a, s)), flags);
    }
    for (int i = rotary + threadIdx.x; i < head_size; i += 128) store_float(out, to + i, load_float(qkv, from + i, bf16), flags);
}
