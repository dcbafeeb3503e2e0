/*
 * host_engine.h - runs a kernel's text on the host: the threads of a group take turns on one thread of the machine, each on a stack of its
 * own, and change over at barriers and simdgroup operations. Callers: host.h's macros (inside kernels) and host_dispatch.c.
 * Knows groups, threads and barriers, and no kernel.
 */
#ifndef SETUN_HOST_ENGINE_H
#define SETUN_HOST_ENGINE_H

#include "base/base.h"

typedef struct setun_host_uint3 { uint32_t x, y, z; } setun_host_uint3;
/* What the running kernel thread may ask for. */
typedef struct setun_host_view { uint32_t thread; setun_host_uint3 group, position; } setun_host_view;
extern _Thread_local const setun_host_view *setun_host_here;

/* The same for every thread of a group: allocated by the first that comes, filled with garbage. Every thread makes the same calls in the same order. */
void *setun_host_shared(size_t bytes, size_t alignment);
/* `line` names the place: threads of a group that wait at different places are an error, as is one that ends while others wait. */
void setun_host_barrier(int line);
void setun_host_simd_barrier(int line);
int setun_host_simd_sum_int(int x, int line);
float setun_host_simd_sum_float(float x, int line); /* in an order that the seed chooses: no kernel may depend on it */
float setun_host_simd_max(float x, int line);
float setun_host_simd_xor(float x, int mask, int line);

typedef void (*setun_host_body)(const void *const *inputs, void *const *outputs, const int32_t *values);
/* grid in threads, whole groups; a group is one-dimensional, a multiple of 32, at most 1024 threads. What a kernel breaks (barriers not met by all,
 * threadgroup memory over 32 KiB or overrun) is SETUN_ERROR_STATE naming the kernel and the line of its text. */
setun_status setun_host_run(const char *name, setun_host_body body, const void *const *inputs, void *const *outputs, const int32_t *values, const int grid[3], const int group[3], uint64_t seed);

/* host_instances*.c: the text for these types (0 f32, 1 f16, 2 bf16; second 0 where there is one); NULL where the kernel has no such form */
setun_host_body setun_host_body_of(int kernel, int first, int second);
setun_host_body setun_host_body_float_dot(int kernel, int first);

#endif
