/*
 * forward_device.h - the instructions of forward.cu that C++ has no words for, as PTX. tests/cuda/emulated_forward.hh has the same functions for
 * the host. Caller: forward.cu alone.
 */
#ifndef SETUN_CUDA_FORWARD_DEVICE_H
#define SETUN_CUDA_FORWARD_DEVICE_H

/*
 * Kernels of a run overlap: a launch may begin while the one before still runs, if that one has allowed it. What the launches before wrote may be
 * read after after_previous(), which every thread of every kernel calls.
 */
static __device__ __forceinline__ void after_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void next_may_begin()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* 16 bytes to shared memory in the background; zeros where there is nothing to read. In groups, which end in order. */
static __device__ __forceinline__ void copy_16(u32 to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

/* Four 8 x 8 matrices of halves; lane 8i + r has the address of row r of matrix i. Lane 4g + t gets row g, columns 2t, 2t + 1; transposed: rows 2t, 2t + 1, column g. */
static __device__ __forceinline__ void load_matrices(u32 *r, u32 address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
static __device__ __forceinline__ void load_matrices_transposed(u32 *r, u32 address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
static __device__ __forceinline__ uint4 load_shared(u32 address)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

/* Weights that are read once. */
static __device__ __forceinline__ uint4 stream_16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint2 stream_8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

/* acc[16, 8] += a [16, 16] x b [16, 8] of f16 or bf16 */
template <bool F16> static __device__ __forceinline__ void tensor_product(float *acc, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    if (F16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ u32 halves(float low, float high) /* f16 */
{
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
static __device__ __forceinline__ u32 bf16_halves(float low, float high)
{
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
static __device__ __forceinline__ float2 floats_of(u32 pair) /* f16 */
{
    float2 y;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(y.x), "=f"(y.y) : "r"(pair));
    return y;
}
/* Four int8 as f16, exactly: xor 128 makes them 0..255, 1024 + which is an f16 with that byte last. */
static __device__ __forceinline__ void halves_of_bytes(u32 bytes, u32 *first, u32 *second)
{
    const u32 shifted = bytes ^ 0x80808080u;
    asm("{ .reg .b32 t; prmt.b32 t, %2, 0x64646464, 0x5140; sub.f16x2 %0, t, %3; prmt.b32 t, %2, 0x64646464, 0x5342; sub.f16x2 %1, t, %3; }"
        : "=r"(*first), "=r"(*second) : "r"(shifted), "r"(0x64806480u)); /* 1152 = 1024 + 128 */
}
static __device__ __forceinline__ u32 count_up(u32 *counter) { return atomicAdd(counter, 1u); } /* what it was before */

#endif
