/*
 * kernel_text.h - the texts of this folder as the build embeds them (cmake/embed_text.cmake). Callers: kernel_table.c.
 */
#ifndef SETUN_KERNEL_TEXT_H
#define SETUN_KERNEL_TEXT_H

extern const char setun_text_metal_header[], setun_text_cuda_header[]; /* metal.h or cuda.h, then common.h */
#define SETUN_GPU_KERNEL(name, grid) extern const char setun_text_##name##_kernel[];
#include "backend/mlx/kernels/kernels.def"
#undef SETUN_GPU_KERNEL

#endif
