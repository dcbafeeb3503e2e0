/*
 * cuda.h - what the kernels' text means in CUDA C++, for NVRTC through MLX's cuda_kernel and for nvcc. First part of the header text;
 * common.h follows. Groups are one-dimensional, of whole warps. No host headers.
 * __fmul_rn and its kin are never contracted: results are those of the CPU, bit for bit.
 */
#define DOT_FLOAT 0
#define FUNCTION __device__ __forceinline__
#define VIEW auto
#define SHARED(type, name, count) __shared__ type name[count]
#define BARRIER() __syncthreads()
#define SIMD_BARRIER() __syncwarp()
#define UNROLL _Pragma("unroll")
#define thread_index_in_threadgroup threadIdx.x
#define threads_per_threadgroup blockDim
#define threadgroup_position_in_grid blockIdx
#define thread_index_in_simdgroup (threadIdx.x & 31u)
#define simdgroup_index_in_threadgroup (threadIdx.x >> 5)
#define SIMD_SUM_INT(x) __reduce_add_sync(0xffffffffu, x)
#define SIMD_SUM_FLOAT(x) setun_simd_sum(x)
#define SIMD_MAX(x) setun_simd_max(x)
#define SIMD_XOR(x, mask) __shfl_xor_sync(0xffffffffu, x, mask)
#define TO_FLOAT(value) ((float)(value))
#define FROM_FLOAT(type, value) ((type)(value))
#define MATRIX_ELEMENT __half
#define WRITABLE(type, pointer) ((type *)(pointer))
#define FMA(a, b, c) __fmaf_rn(a, b, c)
#define MUL(a, b) __fmul_rn(a, b)
#define ADD(a, b) __fadd_rn(a, b)
#define SUB(a, b) __fsub_rn(a, b)
#define DIV(a, b) __fdiv_rn(a, b)
#define SQRT(a) __fsqrt_rn(a)
#define RINT(a) rintf(a)
#define ABS(a) fabsf(a)
#define BITS_FLOAT(bits) __uint_as_float(bits)
#define FLOAT_BITS(value) __float_as_uint(value)
__device__ __forceinline__ uint32_t load_u32(const uint8_t *p) { return __ldg((const uint32_t *)p); }
__device__ __forceinline__ int load_i32(const int8_t *p) { return *(const int *)p; }
__device__ __forceinline__ int dot4(int a, int b, int sum) { return __dp4a(a, b, sum); }
__device__ __forceinline__ float setun_simd_sum(float x) {
    for (int mask = 16; mask; mask >>= 1) x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, mask));
    return x;
}
__device__ __forceinline__ float setun_simd_max(float x) {
    for (int mask = 16; mask; mask >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
    return x;
}
