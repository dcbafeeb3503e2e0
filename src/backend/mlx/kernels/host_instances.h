/*
 * host_instances.h - macros that make C functions of kernels' text; for host_instances*.c, which define DOT_FLOAT first.
 */
#ifndef SETUN_HOST_INSTANCES_H
#define SETUN_HOST_INSTANCES_H

#include "backend/mlx/kernels/host.h"
#include "backend/mlx/kernels/common.h"
#include "backend/mlx/kernels.h"

#define SETUN_GPU_KERNEL(name, grid)
#include "backend/mlx/kernels/kernels.def"
#undef SETUN_GPU_KERNEL

#define HOST_JOIN_(a, b, c, d) a##b##c##d
#define HOST_JOIN(a, b, c, d) HOST_JOIN_(a, b, c, d)
#define HOST_FUNCTION(kernel, first, second) HOST_FUNCTION_(kernel, first, second)
#define HOST_FUNCTION_(kernel, first, second) kernel##_##first##_##second
#define HOST_TABLE(kernel) HOST_JOIN(kernel, _, table, )
#define HOST_TYPE(type) HOST_JOIN(host_type_, type, , )
typedef float host_type_f32;
typedef host_half host_type_f16;
typedef host_bfloat host_type_bf16;

#define HOST_SIGNATURE(kernel) HOST_JOIN(SETUN_GPU_SIGNATURE_, kernel, , )(HOST_READ_TYPE, HOST_READ_NUMBER, HOST_READ_FLAG, HOST_READ_INPUT, HOST_READ_OUTPUT)
#define HOST_READ_TYPE(n) next_value++;
#define HOST_READ_NUMBER(n) const int n = *next_value++;
#define HOST_READ_FLAG(n) const bool n = *next_value++ != 0;
#define HOST_READ_INPUT(type, n) const type *const n __attribute__((unused)) = *next_input++;
#define HOST_READ_OUTPUT(type, n) type *const n __attribute__((unused)) = *next_output++;

#endif
