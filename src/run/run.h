/*
 * run.h - floor 6: sessions, sampling, generation. Drives plans; knows nothing of kernels.
 */
#ifndef SETUN_RUN_H
#define SETUN_RUN_H

#include "backend/backend.h"

struct setun_session {
    setun_model *model;
    setun_plan *plan;
    setun_frame frame;
    setun_kv_cache cache;
    setun_session_options options; /* resolved */
    int slot_tokens, slot_positions, slot_outputs, slot_logits;
    bool has_logits;
    const float *logits;
    atomic_bool cancel;
    uint64_t allocations_in_run;
    setun_plan *embedding_plan; setun_frame embedding_frame; /* made on the first setun_session_embed */
};

#endif
