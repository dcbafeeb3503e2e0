/*
 * decode_plan.h - a tape of the plan as the decode kernel's model (decode.h). Caller: the MLX lowering. Needs no CUDA.
 */
#ifndef SETUN_CUDA_DECODE_PLAN_H
#define SETUN_CUDA_DECODE_PLAN_H

#include "backend/mlx/cuda/decode.h"
#include "plan/plan.h"

typedef struct setun_cuda_plan {
    setun_cuda_model model;     /* for setun_cuda_layout and setun_cuda_pack; lives as long as this and the plan's weights */
    const setun_weight *embedding, *head; /* the same weight when they are tied */
    const char *ids, *logits;   /* names of the plan's input and output that the kernel stands for */
    setun_cuda_op *ops;
    double *frequencies;
    float **owned; int owned_count, owned_capacity;
} setun_cuda_plan;

/* The whole tape, embedding to logits, for decoding: one new token a sequence. SETUN_ERROR_UNSUPPORTED, with a message that names the step
 * and what the kernel does not do, where the tape has anything else. */
setun_status setun_cuda_plan_describe(const setun_plan *plan, setun_cuda_plan **out);
void setun_cuda_plan_free(setun_cuda_plan *described); /* NULL is fine */
/* Rows of the embedding or of the head in the kernel's order. mapped: not NULL when the file's bytes are that already (f16, bf16). */
size_t setun_cuda_plan_dense_bytes(const setun_weight *weight);
const uint8_t *setun_cuda_plan_dense_mapped(const setun_weight *weight);
void setun_cuda_plan_dense_pack(const setun_weight *weight, uint8_t *out);

#endif
