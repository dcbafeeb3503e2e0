/*
 * metal.h - what the kernels' text means in the Metal Shading Language. First part of the header text given to MLX's metal_kernel;
 * common.h follows. Metal's own names of positions (thread_index_in_threadgroup, ..) stand in the kernels' text itself, because
 * MLX looks for them there to make the signature; cuda.h and host.h define them.
 * Inputs of fewer than 8 elements come in `constant` space, others in `device`: VIEW takes either.
 * Products and sums are written MUL, ADD, FMA and never contracted: results are those of the CPU, bit for bit.
 */
#include <metal_simdgroup_matrix>
#pragma METAL fp contract(off)
#define DOT_FLOAT 1 /* no dot product of bytes: float sums of small integers are exact and run at full rate */
#define FUNCTION inline
#define VIEW auto
#define SHARED(type, name, count) threadgroup type name[count]
#define BARRIER() threadgroup_barrier(metal::mem_flags::mem_threadgroup)
#define SIMD_BARRIER() simdgroup_barrier(metal::mem_flags::mem_threadgroup)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SIMD_SUM_INT(x) metal::simd_sum(x)
#define SIMD_SUM_FLOAT(x) metal::simd_sum(x)
#define SIMD_MAX(x) metal::simd_max(x)
#define SIMD_XOR(x, mask) metal::simd_shuffle_xor(x, (ushort)(mask))
#define TO_FLOAT(value) float(value)
#define FROM_FLOAT(type, value) type(value)
#define WRITABLE(type, pointer) ((device type *)(pointer))
/* Also under relaxed compilers a product with -0 added keeps its own rounding. */
#define FMA(a, b, c) metal::fma(a, b, c)
#define MUL(a, b) metal::fma(a, b, -0.0f)
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define DIV(a, b) ((a) / (b))
#define SQRT(a) metal::precise::sqrt(a)
#define RINT(a) metal::rint(a)
#define ABS(a) metal::fabs(a)
#define BITS_FLOAT(bits) as_type<float>((uint)(bits))
#define FLOAT_BITS(value) as_type<uint>(value)
inline uint load_u32(const device uint8_t *p) { return *(const device uint *)p; }
inline uint load_u32(const constant uint8_t *p) { return *(const constant uint *)p; }
inline int load_i32(const device int8_t *p) { return *(const device int *)p; }
inline int load_i32(const constant int8_t *p) { return *(const constant int *)p; }
inline int dot4(int a, int b, int sum) {
    char4 x = as_type<char4>(a), y = as_type<char4>(b);
    return sum + (int)x[0] * (int)y[0] + (int)x[1] * (int)y[1] + (int)x[2] * (int)y[2] + (int)x[3] * (int)y[3];
}
/* Matrices of 8 x 8 that a simdgroup holds together: f16 inputs, f32 sums. `at`: the first element's index in a threadgroup array. */
#define MATRIX_ELEMENT half
#define MATRIX_INPUT metal::simdgroup_half8x8
#define MATRIX_SUM metal::simdgroup_float8x8
#define MATRIX_ZERO metal::simdgroup_float8x8(0.0f)
#define MATRIX_LOAD(m, array, at, stride) metal::simdgroup_load(m, (array) + (at), stride)
#define MATRIX_LOAD_TRANSPOSED(m, array, at, stride) metal::simdgroup_load(m, (array) + (at), stride, ulong2(0), true)
#define MATRIX_MULTIPLY_ADD(sum, a, b) metal::simdgroup_multiply_accumulate(sum, a, b, sum)
#define MATRIX_STORE(m, array, at, stride) metal::simdgroup_store(m, (array) + (at), stride)
