/*
 * host.h - what the kernels' text means on the host: macros over the engine of host_engine.c, which runs the threads of a group one at a
 * time. Included by host_instances.c only; C11.
 */
#ifndef SETUN_HOST_H
#define SETUN_HOST_H

#include "backend/mlx/kernels/host_engine.h"
#include <math.h>

typedef struct host_half { uint16_t bits; } host_half;
typedef struct host_bfloat { uint16_t bits; } host_bfloat;

static inline float host_float_of_float(float v) { return v; }
static inline float host_float_of_half(host_half v) { return setun_f16_to_f32(v.bits); }
static inline float host_float_of_bfloat(host_bfloat v) { return setun_bf16_to_f32(v.bits); }
static inline host_half host_half_of(float v) { return (host_half){setun_f32_to_f16(v)}; }
static inline host_bfloat host_bfloat_of(float v) { return (host_bfloat){setun_f32_to_bf16(v)}; }

#define FUNCTION static inline __attribute__((unused))
#define VIEW __auto_type
#define UNROLL
#define SHARED(type, name, count) type *const name = setun_host_shared(sizeof(type) * (size_t)(count), _Alignof(type))
#define BARRIER() setun_host_barrier(__LINE__)
#define SIMD_BARRIER() setun_host_simd_barrier(__LINE__)
#define SIMD_SUM_INT(x) setun_host_simd_sum_int(x, __LINE__)
#define SIMD_SUM_FLOAT(x) setun_host_simd_sum_float(x, __LINE__)
#define SIMD_MAX(x) setun_host_simd_max(x, __LINE__)
#define SIMD_XOR(x, mask) setun_host_simd_xor(x, mask, __LINE__)
#define thread_index_in_threadgroup (setun_host_here->thread)
#define threads_per_threadgroup (setun_host_here->group)
#define threadgroup_position_in_grid (setun_host_here->position)
#define thread_index_in_simdgroup (setun_host_here->thread % 32u)
#define simdgroup_index_in_threadgroup (setun_host_here->thread / 32u)
#define TO_FLOAT(value) _Generic((value), float: host_float_of_float, host_half: host_float_of_half, host_bfloat: host_float_of_bfloat)(value)
#define FROM_FLOAT(type, value) _Generic((type){0}, float: host_float_of_float, host_half: host_half_of, host_bfloat: host_bfloat_of)(value)
#define MATRIX_ELEMENT host_half
#define WRITABLE(type, pointer) ((type *)(uintptr_t)(pointer))
#define FMA(a, b, c) fmaf(a, b, c)
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define DIV(a, b) ((a) / (b))
#define SQRT(a) sqrtf(a)
#define RINT(a) rintf(a)
#define ABS(a) fabsf(a)
static inline float host_bits_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t host_float_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
#define BITS_FLOAT(bits) host_bits_float(bits)
#define FLOAT_BITS(value) host_float_bits(value)
/* The real access, so that a sanitizer sees its alignment. */
typedef uint32_t __attribute__((may_alias)) host_word;
static inline uint32_t load_u32(const uint8_t *p) { return *(const host_word *)(const void *)p; }
static inline int load_i32(const int8_t *p) { return (int)*(const host_word *)(const void *)p; }
static inline __attribute__((unused)) int dot4(int a, int b, int sum)
{
    for (int i = 0; i < 4; i++) sum += (int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i);
    return sum;
}

#endif
