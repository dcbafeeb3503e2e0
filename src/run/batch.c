/*
 * batch.c - several sessions of one model in one run: the weights are read once for all their tokens.
 * Caller: users of setun_session_feed_batch. Runs the first session's plan over rows of all of them, each attending to its own cache; what a
 * session gets has the same bits as if it had been fed alone. Knows no kernel.
 *
 * All or nothing: no cache grows and no logits change unless every run succeeded. So only the last run gives logits: runs before it,
 * where the tokens are more than a run takes, leave every session at least its last token.
 */
#include "run/run.h"

enum { MOST = SETUN_SESSION_OUTPUTS };

typedef struct batch {
    setun_session *const *sessions;
    const int32_t *const *ids;
    const size_t *counts;
    int n;
    size_t left;                /* tokens not run yet */
    size_t done[MOST];
    int start[MOST];            /* the caches' lengths before */
} batch;

static setun_status check(const batch *b)
{
    const setun_session *first = b->sessions[0];
    for (int i = 0; i < b->n; i++) {
        const setun_session *s = b->sessions[i];
        if (!s) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: session %d is NULL", i);
        if (s->model != first->model) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: sessions 0 and %d are of different models", i);
        if (s->plan->backend != first->plan->backend) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: sessions 0 and %d run on different devices", i);
        if (s->options.no_fusion != first->options.no_fusion || s->options.no_activation_quantisation != first->options.no_activation_quantisation)
            return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: sessions 0 and %d differ in no_fusion or no_activation_quantisation, so one plan cannot run both", i);
        for (int j = 0; j < i; j++)
            if (b->sessions[j] == s) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: sessions %d and %d are the same", j, i);
        if (b->counts[i] == 0) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: session %d has no tokens to feed; leave it out", i);
        setun_status status = setun_session_check_ids(s, b->ids[i], b->counts[i]);
        if (status != SETUN_OK) return setun_fail_prefix(status, "session %d", i);
    }
    if (b->n > first->options.batch)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: %d sessions; the first one's batch, %d, is the most tokens of a run", b->n, first->options.batch);
    return SETUN_OK;
}

/* One run over up to the plan's tokens. The last one gives a row of logits for each session, in their order. */
static setun_status run(batch *b, setun_sequence *sequences)
{
    setun_session *first = b->sessions[0];
    setun_frame *frame = &first->frame;
    int32_t *tokens = setun_frame_slot(frame, first->slot_tokens), *positions = setun_frame_slot(frame, first->slot_positions), *rows = setun_frame_slot(frame, first->slot_outputs);
    size_t room = (size_t)first->options.batch;
    bool last = b->left <= room;
    int row = 0, used = 0;
    for (int i = 0; i < b->n; i++) {
        setun_session *s = b->sessions[i];
        size_t take = b->counts[i] - b->done[i] - (last ? 0 : 1);
        if (take > room - (size_t)row) take = room - (size_t)row;
        if (take == 0) continue;
        sequences[used++] = (setun_sequence){.cache = &s->cache, .first_row = row, .rows = (int)take};
        memcpy(tokens + row, b->ids[i] + b->done[i], take * sizeof *tokens);
        for (size_t t = 0; t < take; t++) positions[row + (int)t] = s->cache.length + (int)t;
        row += (int)take;
        if (last) rows[i] = row - 1;
    }
    frame->tokens = row;
    frame->outputs = last ? b->n : 0;
    frame->sequences = sequences;
    frame->sequence_count = used;
    setun_status status = setun_session_run(first, frame);
    frame->sequences = NULL;
    frame->sequence_count = 0;
    SETUN_TRY(status);
    for (int i = 0, next = 0; i < b->n; i++) {
        if (next == used || sequences[next].cache != &b->sessions[i]->cache) continue;
        int took = sequences[next++].rows;
        b->sessions[i]->cache.length += took;
        b->done[i] += (size_t)took;
        b->left -= (size_t)took;
    }
    return SETUN_OK;
}

setun_status setun_session_feed_batch(setun_session *const *sessions, const int32_t *const *ids, const size_t *counts, size_t n)
{
    if (!sessions || !ids || !counts) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: %s is NULL", !sessions ? "sessions" : !ids ? "ids" : "counts");
    if (n == 0) return SETUN_OK;
    if (n > MOST) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_feed_batch: %zu sessions; at most %d in one call", n, MOST);
    batch b = {.sessions = sessions, .ids = ids, .counts = counts, .n = (int)n};
    SETUN_TRY(check(&b));
    for (int i = 0; i < b.n; i++)
        if (atomic_exchange(&sessions[i]->cancel, false)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    for (int i = 0; i < b.n; i++) {
        b.start[i] = sessions[i]->cache.length;
        b.left += counts[i];
    }
    setun_sequence sequences[MOST];
    while (b.left > 0) {
        setun_status status = run(&b, sequences);
        if (status == SETUN_OK) continue;
        for (int i = 0; i < b.n; i++) sessions[i]->cache.length = b.start[i];
        if (status == SETUN_ERROR_CANCELLED) atomic_store(&sessions[0]->cancel, false);
        return status;
    }
    /* Row 0 is the first session's own; the others take copies into the memory of theirs. */
    const float *logits = setun_frame_slot(&sessions[0]->frame, sessions[0]->slot_logits);
    for (int i = 0; i < b.n; i++) {
        setun_session *s = sessions[i];
        float *own = setun_frame_slot(&s->frame, s->slot_logits);
        if (i > 0) memcpy(own, logits + (size_t)i * (size_t)s->vocabulary, (size_t)s->vocabulary * sizeof *own);
        s->logits = own;
        s->has_logits = true;
    }
    return SETUN_OK;
}
