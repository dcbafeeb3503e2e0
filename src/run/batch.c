/*
 * batch.c - several sessions of one model in one run: the weights are read once for all their tokens.
 * Callers: users of setun_session_feed_batch and setun_session_pick_batch. Runs the first session's plan over rows of all of them, each attending to
 * its own cache; what a session gets has the same bits as if it had been fed alone. Knows no kernel.
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
    bool later;                 /* the head waits until somebody asks, see head.c */
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
    frame->head.top = b->later ? -1 : 0;
    setun_status status = setun_session_run(first, frame);
    frame->sequences = NULL;
    frame->sequence_count = 0;
    frame->head.top = 0;
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

static float *head_input(setun_session *s) { return setun_frame_slot(&s->frame, s->plan->steps[s->plan->head.step].input[0]); }
static size_t head_width(const setun_session *s) { return (size_t)setun_slot_width(&s->plan->slots[s->plan->steps[s->plan->head.step].input[0]]); }

/* Row 0 of the first frame is the first session's own; the others take copies of theirs into their frames: of the logits, or of what the head makes
 * them from. */
static void hand_out(const batch *b)
{
    setun_session *first = b->sessions[0];
    const float *logits = setun_frame_slot(&first->frame, first->slot_logits);
    for (int i = 0; i < b->n; i++) {
        setun_session *s = b->sessions[i];
        float *own = setun_frame_slot(&s->frame, s->slot_logits);
        if (i > 0 && b->later) memcpy(head_input(s), head_input(first) + (size_t)i * head_width(first), head_width(first) * sizeof(float));
        else if (i > 0) memcpy(own, logits + (size_t)i * (size_t)s->vocabulary, (size_t)s->vocabulary * sizeof *own);
        s->logits = own;
        s->logits_state = b->later ? SETUN_LOGITS_HIDDEN : SETUN_LOGITS_ALL;
        s->last_id = b->ids[i][b->counts[i] - 1];
        s->has_logits = true;
        s->frame.tokens = s->frame.outputs = 1; /* as the head will find it */
    }
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
    b.later = true;
    for (int i = 0; i < b.n; i++) b.later = b.later && sessions[i]->plan->head.bits > 0;
    setun_sequence sequences[MOST];
    while (b.left > 0) {
        setun_status status = run(&b, sequences);
        if (status == SETUN_OK) continue;
        for (int i = 0; i < b.n; i++) sessions[i]->cache.length = b.start[i];
        if (sessions[0]->logits_state != SETUN_LOGITS_ALL) sessions[0]->logits_state = SETUN_LOGITS_LOST; /* made again when looked at */
        if (status == SETUN_ERROR_CANCELLED) atomic_store(&sessions[0]->cancel, false);
        return status;
    }
    hand_out(&b);
    return SETUN_OK;
}

/* ---- picks ---- */

enum { MOST_ROWS = 4096 };

/* Adds rising rows to rising rows. False: no room. */
static bool add_rows(int32_t *rows, int *count, const int32_t *more, int more_count)
{
    int32_t both[MOST_ROWS];
    int n = 0, i = 0, j = 0;
    while (i < *count || j < more_count) {
        if (n == MOST_ROWS) return false;
        int32_t next = j == more_count || (i < *count && rows[i] <= more[j]) ? rows[i] : more[j];
        if (i < *count && rows[i] == next) i++;
        if (j < more_count && more[j] == next) j++;
        both[n++] = next;
    }
    memcpy(rows, both, (size_t)n * sizeof *rows);
    *count = n;
    return true;
}

/* Can this session's pick share a run of the head with the first one's? Its request then joins theirs; more logits than a sampler asked for
 * don't change what it picks. */
static bool joins(setun_session *s, setun_session *first, setun_sampler *sampler, setun_head_request *all, int32_t *rows)
{
    setun_head_request request;
    if (s->logits_state == SETUN_LOGITS_ALL || s->logits_state == SETUN_LOGITS_LOST || s->model != first->model || s->plan->head.bits == 0 || s->plan->head.bits != first->plan->head.bits ||
        !setun_sampler_request(sampler, &request) || !add_rows(rows, &all->row_count, request.rows, request.row_count))
        return false;
    if (request.top > all->top) all->top = request.top;
    if (request.margin > all->margin) all->margin = request.margin;
    return true;
}

setun_status setun_session_pick_batch(setun_session *const *sessions, setun_sampler *const *samplers, size_t n, int32_t *out_ids)
{
    if (!sessions || !samplers || !out_ids) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick_batch: %s is NULL", !sessions ? "sessions" : !samplers ? "samplers" : "out_ids");
    if (n > MOST) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick_batch: %zu sessions; at most %d in one call", n, MOST);
    for (size_t i = 0; i < n; i++) {
        const setun_session *s = sessions[i];
        if (!s || !samplers[i]) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick_batch: %s %zu is NULL", !s ? "session" : "sampler", i);
        if (!s->has_logits) return setun_fail(SETUN_ERROR_STATE, "setun_session_pick_batch: session %zu has no logits to pick from; feed at least one token", i);
        if (setun_sampler_vocabulary(samplers[i]) != s->vocabulary)
            return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick_batch: sampler %zu was made for a vocabulary of %d, the session has %d", i, setun_sampler_vocabulary(samplers[i]), s->vocabulary);
        for (size_t j = 0; j < i; j++)
            if (sessions[j] == s || samplers[j] == samplers[i]) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_session_pick_batch: %s %zu and %zu are the same", sessions[j] == s ? "sessions" : "samplers", j, i);
    }
    int32_t rows[MOST_ROWS];
    setun_head_request all = {.top = 0, .rows = rows};
    int row_of[MOST], used = 0;
    setun_session *first = NULL;
    for (size_t i = 0; i < n; i++) {
        bool with = (!first || used < first->plan->outputs_max) && joins(sessions[i], first ? first : sessions[i], samplers[i], &all, rows);
        row_of[i] = with ? used++ : -1;
        if (with && !first) first = sessions[i];
    }
    if (used > 1) {
        setun_frame *frame = &first->frame;
        for (size_t i = 0; i < n; i++)
            if (row_of[i] > 0) memcpy(head_input(first) + (size_t)row_of[i] * head_width(first), head_input(sessions[i]), head_width(first) * sizeof(float));
        atomic_bool *cancel = frame->cancel;
        frame->cancel = NULL;
        frame->head = all;
        frame->first_step = first->plan->head.step;
        frame->tokens = frame->outputs = used;
        setun_status status = setun_session_run(first, frame);
        frame->tokens = frame->outputs = 1;
        frame->first_step = 0;
        frame->head = (setun_head_request){.top = 0};
        frame->cancel = cancel;
        SETUN_TRY(status);
        first->logits_state = SETUN_LOGITS_SOME;
        first->logits = setun_frame_slot(frame, first->slot_logits);
    }
    for (size_t i = 0; i < n; i++) {
        if (used > 1 && row_of[i] >= 0) {
            sessions[i]->picks++;
            SETUN_TRY(setun_sampler_pick(samplers[i], first->logits + (size_t)row_of[i] * (size_t)first->vocabulary, &out_ids[i]));
        } else SETUN_TRY(setun_session_pick(sessions[i], samplers[i], &out_ids[i]));
    }
    return SETUN_OK;
}
