/*
 * engine.h - plans on NVIDIA GPUs by kernels of our own, where a tape is one that they know (decode_plan.h): one new token of one sequence by decode.cu's
 * single launch; prompts, and any number of sequences with any number of rows each, by prompt.cu's products and forward.cu. One wait for the device a run.
 * Caller: the MLX lowering, which runs everything else. Knows plans, frames and caches; knows no MLX.
 *
 * Weights are laid out once for a model and shared by its plans. Keys and values lie in device memory of the engine's, in setun_kv_cache.device:
 * a cache that this engine has filled is only ever run by it.
 */
#ifndef SETUN_CUDA_ENGINE_H
#define SETUN_CUDA_ENGINE_H

#include "backend/backend.h"

typedef struct setun_cuda_engine setun_cuda_engine;   /* one device's */
typedef struct setun_cuda_binding setun_cuda_binding; /* one plan's */
typedef struct setun_cuda_counters { uint64_t runs, decode_launches, prompt_launches, graph_launches, synchronisations, tokens; } setun_cuda_counters;

/* folder: where setun_cuda_decode.fatbin and setun_cuda_prompt.fatbin lie. driver: NULL, or another library than the system's.
 * UNSUPPORTED with the reason: no driver, no such file, a GPU older than sm_80. */
setun_status setun_cuda_engine_open(setun_context *context, const char *driver, const char *folder, int device, setun_cuda_engine **out);
void setun_cuda_engine_close(setun_cuda_engine *engine); /* NULL is fine; after its bindings and caches */

/* Reads the plan and lays its weights out on the device, unless a plan over the same weights did. UNSUPPORTED says which step is not one of the kernels'. */
setun_status setun_cuda_engine_bind(setun_cuda_engine *engine, const setun_plan *plan, setun_cuda_binding **out);
void setun_cuda_engine_unbind(setun_cuda_binding *binding); /* NULL is fine */
/* May this run be the engine's? Its caches are f16 and not another's, positions are places, nothing measures single steps. */
bool setun_cuda_engine_takes(const setun_cuda_binding *binding, const setun_frame *frame);
bool setun_cuda_engine_owns(const setun_kv_cache *cache);
/* The frame was checked by the lowering. */
setun_status setun_cuda_engine_run(setun_cuda_binding *binding, setun_frame *frame);
/* Batches of at least so many sequences, one token each, take the kernels for rows; 0: as measured. For the bench. */
void setun_cuda_engine_rows_from(setun_cuda_engine *engine, int sequences);
void setun_cuda_engine_count(const setun_cuda_binding *binding, setun_cuda_counters *out);

#endif
