/*
 * decode_device.h - the instructions of decode.cu and forward.cu that C++ has no words for, as PTX. tests/cuda/emulated.hh has the same
 * functions for the host, where a block's threads are fibers. Callers: those two alone.
 */
#ifndef SETUN_CUDA_DECODE_DEVICE_H
#define SETUN_CUDA_DECODE_DEVICE_H

/* The ring is filled by the bulk copy engine where there is one. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && !defined(SETUN_CUDA_PLAIN_COPY)
#define SETUN_CUDA_BULK 1
#else
#define SETUN_CUDA_BULK 0
#endif

#define SETUN_CUDA_SHARED(type, name) __shared__ type name
#define SETUN_CUDA_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]
/* In every loop that waits for another thread. */
#ifdef SETUN_CUDA_BACKOFF
#define SETUN_CUDA_PAUSE() __nanosleep(SETUN_CUDA_BACKOFF)
#else
#define SETUN_CUDA_PAUSE() ((void)0)
#endif

static __device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
/* Barrier ID of a block for so many threads, whole warps: to wait there, or only to be counted. Lanes that waited for words of their own come
 * together first. */
template <int ID, int THREADS> static __device__ __forceinline__ void named_wait()
{
    __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
template <int ID, int THREADS> static __device__ __forceinline__ void named_arrive()
{
    __syncwarp();
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
/* Shared memory by its address: shorter than through pointers. */
static __device__ __forceinline__ u32 shared_word(u32 address)
{
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}
static __device__ __forceinline__ uint2 shared_pair(u32 address)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}
static __device__ __forceinline__ uint4 shared_quad(u32 address)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}
static __device__ __forceinline__ void shared_store(u32 address, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory"); }

static __device__ __forceinline__ void barrier_init(u32 address, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(count) : "memory"); }
static __device__ __forceinline__ void barrier_arrive(u32 address, u32 count)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(address), "r"(count) : "memory");
#else
    u64 state;
#pragma unroll 1
    for (u32 i = 0; i < count; i++) asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(address) : "memory");
#endif
}
static __device__ __forceinline__ void barrier_wait(u32 address, u32 parity)
{
    u32 done;
#pragma unroll 1
    for (u32 spins = 0; spins < SETUN_CUDA_SPIN_LIMIT << 2; spins++) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(address), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(address), "r"(parity) : "memory");
#endif
        if (done) break;
    }
}

static __device__ __forceinline__ uint4 load_words(const u32 *p)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
/* c + the four products of a's unsigned and b's signed bytes */
static __device__ __forceinline__ int dot(u32 a, u32 b, int c)
{
    int r;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
static __device__ __forceinline__ u32 load_word(const u32 *p)
{
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ void store_word(u32 *p, u32 v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
static __device__ __forceinline__ u64 load_long(const u64 *p)
{
    u64 v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ void store_long(u64 *p, u64 v) { asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }

static __device__ __forceinline__ float f16_float(u32 bits) /* the low half */
{
    float f;
    asm("{ .reg .b16 h, x; mov.b32 {h, x}, %1; cvt.f32.f16 %0, h; }" : "=f"(f) : "r"(bits));
    return f;
}
static __device__ __forceinline__ u32 f16_pair(float low, float high)
{
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
static __device__ __forceinline__ float low_half(u32 w, bool f16) { return f16 ? f16_float(w) : __uint_as_float(w << 16); }
static __device__ __forceinline__ float high_half(u32 w, bool f16) { return f16 ? f16_float(w >> 16) : __uint_as_float(w & 0xffff0000u); }

/* Bytes (16s) of global memory into the ring, told to the barrier `full`; the whole warp. */
static __device__ __forceinline__ void copy_to_shared(u32 to, const u8 *from, u32 bytes, u32 full)
{
#if SETUN_CUDA_BULK
    if (LANE == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
        u64 policy; /* weights are read once a token: they must not push out what is small and read by all */
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(full), "l"(policy) : "memory");
    }
    __syncwarp();
#else
#pragma unroll 1
    for (u32 i = (u32)LANE * 16; i < bytes; i += 512) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
#endif
}
static __device__ __forceinline__ void copies_see_barriers()
{
#if SETUN_CUDA_BULK
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
}
static __device__ __forceinline__ void prefetch_to_l2(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* acc[16 rows, 8 tokens] += codes u8 [16, 32] x q s8 [32, 8]: sums stay below 2 * 4 * 128 * 65536 = 2^26. */
static __device__ __forceinline__ void multiply(int *acc, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* acc[16, 8] += f16 [16, 16] x f16 [16, 8] */
static __device__ __forceinline__ void multiply_f16(float *acc, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif
