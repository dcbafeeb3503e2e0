/*
 * head.c - when a session's logits are computed, and which. Where the plan has a small copy of the vocabulary projection, feeding tokens leaves
 * that step out; its input, the hidden state after the last token, stays in the arena until the next run. Asked for the logits,
 * the step is run for all of them; asked for a token, for those that the sampler can pick from.
 * Callers: users, generate.c. Knows the plan's head and what a sampler wants; knows no bounds.
 */
#include "run/run.h"

setun_status setun_head_mode_of(const char *name, setun_head_mode *out)
{
    if (!name || !strcmp(name, "proved")) *out = SETUN_HEAD_PROVED;
    else if (!strcmp(name, "full")) *out = SETUN_HEAD_FULL;
    else if (!strcmp(name, "shortlist")) *out = SETUN_HEAD_SHORTLIST;
    else return setun_fail(SETUN_ERROR_ARGUMENT, "head '%s' is unknown; choose proved, full or shortlist", name);
    return SETUN_OK;
}

const char *setun_head_mode_name(setun_head_mode mode) { return mode == SETUN_HEAD_PROVED ? "proved" : mode == SETUN_HEAD_SHORTLIST ? "shortlist" : "full"; }

/* Runs the head for this request. It was promised when the token was fed, so nobody cancels it. */
static setun_status run_head(setun_session *s, const setun_head_request *request)
{
    setun_frame *frame = &s->frame;
    atomic_bool *cancel = frame->cancel;
    bool lost = s->logits_state == SETUN_LOGITS_LOST;
    frame->cancel = NULL;
    frame->head = *request;
    if (lost) { /* the last token again: its keys and values are written once more, the same */
        s->cache.length--;
        setun_session_bind(frame, s->slot_tokens, s->slot_positions, s->slot_outputs, &s->last_id, 1, s->cache.length, 1);
    } else frame->first_step = s->plan->head.step;
    setun_status status = setun_session_run(s, frame);
    if (lost) s->cache.length++;
    frame->first_step = 0;
    frame->head = (setun_head_request){.top = 0};
    frame->cancel = cancel;
    if (status == SETUN_OK) s->logits_state = request->top == 0 ? SETUN_LOGITS_ALL : SETUN_LOGITS_SOME;
    return status;
}

const float *setun_session_logits(const setun_session *session, int *out_vocabulary)
{
    if (out_vocabulary) *out_vocabulary = session ? session->vocabulary : 0;
    if (!session || !session->has_logits) return NULL;
    setun_session *s = (setun_session *)session; /* made when first looked at, which can't be seen */
    setun_head_request all = {.top = 0};
    if (s->logits_state != SETUN_LOGITS_ALL && run_head(s, &all) != SETUN_OK) return NULL;
    return s->logits;
}

setun_status setun_session_pick(setun_session *session, setun_sampler *sampler, int32_t *out_id)
{
    if (!session || !sampler || !out_id) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick: %s is NULL", !session ? "session" : !sampler ? "sampler" : "out_id");
    *out_id = -1;
    if (!session->has_logits) return setun_fail(SETUN_ERROR_STATE, "setun_session_pick: the session has no logits to pick from; feed at least one token");
    int known = setun_sampler_vocabulary(sampler);
    if (known > session->vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick: the sampler was made for a vocabulary of %d, the session has %d", known, session->vocabulary);
    session->picks++;
    setun_head_request request;
    /* A sampler of the first tokens only: the best of all may not be among them. */
    if (session->logits_state != SETUN_LOGITS_ALL && known == session->vocabulary && setun_sampler_request(sampler, &request)) SETUN_TRY(run_head(session, &request));
    else if (!setun_session_logits(session, NULL)) return SETUN_ERROR_STATE; /* the message is the run's */
    return setun_sampler_pick(sampler, session->logits, out_id);
}
