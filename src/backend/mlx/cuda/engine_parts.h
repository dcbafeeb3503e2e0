/*
 * engine_parts.h - inside the engine: what engine.c (binding, runs), engine_rows.c (runs over rows) and engine_model.c (a model's memory on the device) share.
 */
#ifndef SETUN_CUDA_ENGINE_PARTS_H
#define SETUN_CUDA_ENGINE_PARTS_H

#include "backend/mlx/cuda/decode_plan.h"
#include "backend/mlx/cuda/driver.h"
#include "backend/mlx/cuda/engine.h"
#include "backend/mlx/cuda/forward.h"
#include "backend/mlx/cuda/prompt.h"
#include <pthread.h>

/* One op of the tape as the prompt path has it. */
typedef struct engine_op {
    setun_cuda_pointer words, scales, bias, norm;
    int rows, columns, outputs, flags; /* packed rows; width of a token's output; of the product */
} engine_op;

/* The launches of a run over rows that comes again and again, as one launch. Its numbers lie where the run before had them. */
enum { ENGINE_GRAPHS = 16 };
typedef struct engine_graph { int sequences, outputs, splits; uint64_t used; setun_cuda_graph graph; } engine_graph; /* graph NULL: seen once */

/* A model on the device, for both paths. */
typedef struct engine_model {
    struct engine_model *next;
    int references;
    const void *key[4];
    setun_cuda_plan *described; /* ops, sizes; its weights are not read after packing */
    setun_cuda_header *table[2]; /* for one sequence and for SETUN_CUDA_TOKENS */
    setun_cuda_pointer device_table[2], state[2], weights, head, embedding, head_norm, cosines, sines, run, chosen;
    engine_op *ops;
    int rotations;              /* rows of cosines and sines */
    int tokens, widest;         /* that the buffers below are for; widest output of an op */
    int heads, kv_heads;        /* of every attention */
    setun_cuda_pointer x[2], wide[2], q8, scale, sum, query;
    setun_cuda_pointer numbers, normed; int numbers_most, normed_rows; /* ints of a run over rows (forward.h); what the head reads */
    int *numbers_host;          /* pinned */
    setun_cuda_pointer partial, counters; size_t partial_bytes; int counter_words; /* of contexts in parts */
    engine_graph graphs[ENGINE_GRAPHS]; uint64_t graph_clock;
    setun_cuda_pointer logits;
    int logit_rows;
    int *run_host;              /* pinned */
    float *logits_host;         /* pinned [logit_rows][vocabulary], then the state's status */
} engine_model;

struct setun_cuda_engine {
    setun_context *context;
    setun_cuda_driver *driver;
    void *binaries[2];
    engine_model *models;
    pthread_mutex_t lock;
    setun_cuda_function decode[2], embed, norm, rope, quantize;
    int rows_from;              /* sequences of a batch that takes engine_rows.c */
};

struct setun_cuda_binding {
    setun_cuda_engine *engine;
    engine_model *model;
    int ids, positions, rows, logits; /* slots; rows -1: every token's */
    setun_cuda_counters counters;
};

/* engine_model.c; the engine's lock is held and its device entered */
setun_status engine_model_get(setun_cuda_engine *engine, setun_cuda_plan *described, engine_model **out); /* takes `described`, whatever it returns */
void engine_model_drop(setun_cuda_engine *engine, engine_model *model);
/* Buffers for so many; what grows moves, and graphs that name it are dropped. */
setun_status engine_model_tokens(setun_cuda_engine *engine, engine_model *model, int tokens);
setun_status engine_model_rotations(setun_cuda_engine *engine, engine_model *model, int positions);
setun_status engine_model_logits(setun_cuda_engine *engine, engine_model *model, int rows);
setun_status engine_model_numbers(setun_cuda_engine *engine, engine_model *model, int ints, int outputs);
setun_status engine_model_parts(setun_cuda_engine *engine, engine_model *model, int singles, int splits);

/* engine.c: a cache's memory on the device, made when it is first asked for */
typedef struct device_cache { setun_cuda_engine *engine; setun_cuda_pointer memory; size_t half; } device_cache; /* half: bytes of the keys */
setun_status engine_cache(setun_cuda_engine *engine, setun_kv_cache *cache, device_cache **out);

/* engine_rows.c: all rows of the run, through every op; the logits of `outputs` rows (NULL: all, in order) are the first of model->logits */
setun_status engine_run_rows(setun_cuda_binding *binding, setun_frame *frame, const setun_sequence *sequences, int count, const int32_t *rows, int outputs);

#endif
