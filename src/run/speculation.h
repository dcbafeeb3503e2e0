/*
 * speculation.h - prompt lookup inside a generation; see speculation.c. Caller: generate.c.
 */
#ifndef SETUN_SPECULATION_H
#define SETUN_SPECULATION_H

#include "run/run.h"

enum { SETUN_SPECULATION_MOST = SETUN_SESSION_OUTPUTS - 1 };

typedef struct setun_speculation {
    int most;                   /* tokens proposed at once; 0: off */
    int32_t *history; size_t count, room; /* the prompt and what was picked */
    int32_t draft[SETUN_SPECULATION_MOST];
    int rows, row;              /* of the last run: rows with logits, the one that is next. rows 0: one token at a time */
    int64_t drafted, accepted;
} setun_speculation;

setun_status setun_speculation_begin(setun_speculation *p, const setun_session *s, const int32_t *prompt, size_t count, int most);
void setun_speculation_end(setun_speculation *p, setun_session *s);
/* As setun_session_feed of one token, and what is likely to come after it. all_logits: they will be looked at. */
setun_status setun_speculation_feed(setun_speculation *p, setun_session *s, setun_sampler *sampler, int32_t id, bool all_logits);
setun_status setun_speculation_pick(setun_speculation *p, setun_session *s, setun_sampler *sampler, int32_t *out_id);

#endif
