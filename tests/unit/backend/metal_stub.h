/*
 * metal_stub.h - enough of the Metal Shading Language for clang to read the kernels' text as C++: address spaces that do not mix, vector
 * types, the library's functions as declarations. Test only; computes nothing. Included by the file that test_gpu_text.c writes.
 * half and bfloat are clang's storage type: conversions are checked, arithmetic on them is not used by the kernels.
 */
#pragma once
typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef int int32_t;
typedef unsigned int uint32_t, uint;
typedef unsigned short ushort;
typedef long int64_t;
typedef unsigned long size_t;
typedef __fp16 half;
typedef half float16_t, bfloat16_t;
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup static __attribute__((address_space(3))) /* only where an array is declared */
typedef unsigned long ulong;
struct ulong2 { ulong x, y; explicit ulong2(ulong v) : x(v), y(v) {} };
struct uint3 { uint x, y, z; };
struct char4 { signed char v[4]; signed char operator[](int i) const { return v[i]; } };
template <typename T, typename F> T as_type(F from) { static_assert(sizeof(T) == sizeof(F), "as_type"); return __builtin_bit_cast(T, from); }
namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
float simd_sum(float);
int simd_sum(int);
float simd_max(float);
float simd_shuffle_xor(float, ushort);
float fma(float, float, float);
float rint(float);
float fabs(float);
namespace precise { float sqrt(float); }
template <typename T> struct simdgroup_matrix { T v[64]; simdgroup_matrix() = default; explicit simdgroup_matrix(float) {} };
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<float> simdgroup_float8x8;
template <typename T> void simdgroup_load(simdgroup_matrix<T> &, const __attribute__((address_space(3))) T *, ulong stride, ulong2 origin = ulong2(0), bool transpose = false);
template <typename T> void simdgroup_store(simdgroup_matrix<T>, __attribute__((address_space(3))) T *, ulong stride, ulong2 origin = ulong2(0), bool transpose = false);
void simdgroup_multiply_accumulate(simdgroup_float8x8 &, simdgroup_half8x8, simdgroup_half8x8, simdgroup_float8x8);
}
