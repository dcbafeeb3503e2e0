/*
 * run.h - floor 6: sessions, sampling, generation. Drives plans; knows nothing of kernels.
 */
#ifndef SETUN_RUN_H
#define SETUN_RUN_H

#include "backend/backend.h"

/* What the logits' slot holds, where a session has logits at all. SOME: those that the last pick needed. HIDDEN: none yet. In both the head's input
 * is in the arena. LOST: a run that failed has overwritten that input; the last token is to be run again. */
typedef enum setun_logits_state { SETUN_LOGITS_ALL, SETUN_LOGITS_SOME, SETUN_LOGITS_HIDDEN, SETUN_LOGITS_LOST } setun_logits_state;

struct setun_session {
    setun_model *model;
    setun_plan *plan;
    setun_frame frame;
    setun_kv_cache cache;
    setun_session_options options; /* resolved */
    int slot_tokens, slot_positions, slot_outputs, slot_logits;
    bool has_logits;            /* after the last token fed: in the slot, or to be had (head.c) */
    setun_logits_state logits_state;
    const float *logits;
    int32_t last_id;            /* the token they come after */
    int64_t picks;              /* tokens picked by setun_session_pick */
    atomic_bool cancel;
    uint64_t allocations_in_run;
    setun_plan *embedding_plan; setun_frame embedding_frame; /* made on the first setun_session_embed */
    int vocabulary;
    int graph_nodes;            /* before planning, for explain */
};

/* Rows of logits that one run can give (setun_session_feed_all): bounds the arena where vocabularies are large. */
enum { SETUN_SESSION_OUTPUTS = 32 };

/* A plan of the model's transformer for these (resolved) options, ready to run. For sessions and explain. */
setun_status setun_session_plan(setun_model *model, const setun_session_options *options, bool embedding, setun_plan **out, int *out_graph_nodes);
/* Defaults filled in and checked. */
setun_status setun_session_resolve(const setun_model *model, const setun_session_options *given, setun_session_options *out);
/* Writes the run's inputs: ids and their positions from first_position on, and which rows give outputs (the last `outputs`). */
void setun_session_bind(setun_frame *frame, int slot_tokens, int slot_positions, int slot_outputs, const int32_t *ids, int count, int first_position, int outputs);
/* backend->run and what is counted about it. */
setun_status setun_session_run(setun_session *s, setun_frame *frame);
/* "proved" (NULL too), "full", "shortlist" */
setun_status setun_head_mode_of(const char *name, setun_head_mode *out);
const char *setun_head_mode_name(setun_head_mode mode);
/* Which logits the next pick can depend on: true and a request, whose rows stay the sampler's; false: all of them. */
bool setun_sampler_request(setun_sampler *sampler, setun_head_request *out);
int setun_sampler_vocabulary(const setun_sampler *sampler);
/* Ends plans made by setun_graph_compile and by sessions alike. */
/* "f32", "bf16", "f16"; refused where the backend computes in f32 alone. NULL: f32. */
setun_status setun_precision_of(const char *name, const setun_backend *backend, setun_dtype *out);
setun_status setun_kv_type(const char *name, setun_dtype *out);
/* Counts the bytes that prepared weights of the model own. */
uint64_t setun_model_packed_bytes(setun_model *model);

/* Ids that the model has, no more than fit. */
setun_status setun_session_check_ids(const setun_session *s, const int32_t *ids, size_t count);

/* exp(x) for x <= 0 by one fixed polynomial in double: a text sampled with one seed is the same wherever it is sampled. */
double setun_exp_nonpositive(double x);
/* log(sum(exp(logits))), in double; NAN where a logit is NaN or +infinity, or all are -infinity. */
double setun_log_sum_exp(const float *logits, int vocabulary);

/* ---- the text of an answer: held back while it may be part of a stop string or of a UTF-8 sequence (stop.c) ---- */
typedef struct setun_stop {
    const char *const *stop;
    size_t stop_count;
    setun_string pending;       /* not shown yet */
    size_t shown;               /* bytes at the front of pending that the last call gave out */
    bool found;
} setun_stop;
/* Adds a token's bytes. *out, *out_length: what may be shown now (valid until the next call). `last`: nothing comes after, so
 * nothing is held back. found is set when a stop string is complete; the text then ends before it. */
setun_status setun_stop_push(setun_stop *s, const char *bytes, size_t length, bool last, const char **out, size_t *out_length);
void setun_stop_clear(setun_stop *s);

#endif
