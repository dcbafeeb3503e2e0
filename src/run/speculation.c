/*
 * speculation.c - prompt lookup (Saxena 2023; the draft of "assisted generation" without a second model): where the last tokens occurred before, what
 * followed them there is fed along with the next token in one run, and kept as far as the sampler picks the same. Weights are read once for
 * all of them. Rows of a run do not depend on each other's number (backend/cpu/kernels.h), so the picks, and with them the text, are
 * those of one token at a time, for every sampler. Caller: generate.c. Knows sessions and their heads; refuses to know text.
 */
#include "run/speculation.h"

/* Earlier tokens that must agree before what followed them is proposed: three, or two where three never agreed. */
enum { LONG_MATCH = 3, SHORT_MATCH = 2 };

setun_status setun_speculation_begin(setun_speculation *p, const setun_session *s, const int32_t *prompt, size_t count, int most)
{
    *p = (setun_speculation){.most = most};
    if (most <= 0) return SETUN_OK;
    if (p->most > SETUN_SPECULATION_MOST) p->most = SETUN_SPECULATION_MOST;
    if (p->most > s->options.batch - 1) p->most = s->options.batch - 1;
    size_t room = count + (size_t)(s->options.context - s->cache.length) + 1;
    p->history = setun_alloc(room * sizeof *p->history);
    if (!p->history) return setun_fail_memory(room * sizeof *p->history);
    if (count) memcpy(p->history, prompt, count * sizeof *prompt);
    p->count = count;
    p->room = room;
    return SETUN_OK;
}

void setun_speculation_end(setun_speculation *p, setun_session *s)
{
    /* The session's last run had other rows: whoever looks at the logits now has the last token run again. */
    if (p->rows) {
        s->logits_state = SETUN_LOGITS_LOST;
        s->logits = setun_frame_slot(&s->frame, s->slot_logits); /* where that run will put them */
    }
    setun_free(p->history);
    *p = (setun_speculation){0};
}

/* What followed the last `match` tokens where they stood last before; how many tokens. */
static int follow(const setun_speculation *p, size_t match, int most, int32_t *out)
{
    if (p->count <= match) return 0;
    const int32_t *last = p->history + p->count - match;
    for (size_t at = p->count - match; at-- > 0;)
        if (memcmp(p->history + at, last, match * sizeof *last) == 0) {
            int n = 0;
            for (size_t i = at + match; i < p->count && n < most; i++) out[n++] = p->history[i];
            return n;
        }
    return 0;
}

setun_status setun_speculation_feed(setun_speculation *p, setun_session *s, setun_sampler *sampler, int32_t id, bool all_logits)
{
    if (p->count < p->room) p->history[p->count++] = id;
    if (p->row + 1 < p->rows && id == p->draft[p->row]) { /* fed already, and it was right */
        p->row++;
        p->accepted++;
        s->cache.length++;
        s->last_id = id;
        s->logits += s->vocabulary;
        return SETUN_OK;
    }
    int free_tokens = s->options.context - s->cache.length - 1, most = p->most < free_tokens ? p->most : free_tokens;
    int drafted = most > 0 ? follow(p, LONG_MATCH, most, p->draft) : 0;
    if (!drafted && most > 0) drafted = follow(p, SHORT_MATCH, most, p->draft);
    p->rows = p->row = 0;
    if (!drafted) return setun_session_feed(s, &id, 1);
    int32_t ids[SETUN_SPECULATION_MOST + 1] = {id};
    memcpy(ids + 1, p->draft, (size_t)drafted * sizeof *ids);
    SETUN_TRY(setun_session_check_ids(s, ids, (size_t)drafted + 1));
    if (atomic_exchange(&s->cancel, false)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
    setun_head_request request = {.top = 0};
    /* Rows that penalties touch change with every pick: then all logits. */
    bool few = !all_logits && s->plan->head.bits > 0 && setun_sampler_vocabulary(sampler) == s->vocabulary && setun_sampler_request(sampler, &request) && request.row_count == 0;
    if (!few) request = (setun_head_request){.top = 0};
    setun_session_bind(&s->frame, s->slot_tokens, s->slot_positions, s->slot_outputs, ids, drafted + 1, s->cache.length, drafted + 1);
    s->frame.head = request;
    setun_status status = setun_session_run(s, &s->frame);
    s->frame.head = (setun_head_request){.top = 0};
    if (status != SETUN_OK) {
        s->logits_state = SETUN_LOGITS_LOST;
        if (status == SETUN_ERROR_CANCELLED) atomic_store(&s->cancel, false);
        return status;
    }
    p->rows = drafted + 1;
    p->drafted += drafted;
    s->cache.length++;
    s->last_id = id;
    s->logits = setun_frame_slot(&s->frame, s->slot_logits);
    s->has_logits = true;
    s->logits_state = few ? SETUN_LOGITS_SOME : SETUN_LOGITS_ALL;
    return SETUN_OK;
}

setun_status setun_speculation_pick(setun_speculation *p, setun_session *s, setun_sampler *sampler, int32_t *out_id)
{
    if (!p->rows) return setun_session_pick(s, sampler, out_id);
    s->picks++;
    return setun_sampler_pick(sampler, s->logits, out_id);
}
