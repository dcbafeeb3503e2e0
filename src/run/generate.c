/*
 * generate.c - prompt in, tokens and text out, until something ends it.
 * Caller: the program, users. Drives a session and a sampler; knows no plan.
 *
 * What a sampled token goes through: end token? -> text, stop strings -> the callback -> fed to the session. So when generation ends,
 * the context holds the prompt and every token that the callback saw, except the one at which a stop string, the callback, cancel, a full
 * context or (with leave_last) the number of tokens ended it. The end token is neither shown nor fed.
 */
#include "run/speculation.h"
#include <math.h>

typedef struct answer {
    setun_session *session;
    setun_sampler *sampler;
    const setun_tokenizer *tokenizer;
    const setun_generate_options *o;
    setun_stop stop;
    setun_logprob *top;         /* [o->logprobs] */
    setun_speculation speculation;
    setun_generate_result result;
} answer;

static setun_status check(setun_session *session, setun_sampler *sampler, const int32_t *prompt, size_t count, const setun_generate_options *o)
{
    if (!session || !sampler) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: %s is NULL", session ? "sampler" : "session");
    if (count > 0 && !prompt) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: prompt is NULL");
    if (count == 0 && !session->has_logits) return setun_fail(SETUN_ERROR_STATE, "setun_generate: no prompt, and the session has no logits to go on from; feed at least one token");
    if (o->lookup < 0 || o->lookup > SETUN_SPECULATION_MOST) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: lookup of %d tokens; 0 (off) to %d", o->lookup, SETUN_SPECULATION_MOST);
    if (o->tokens < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: %d tokens", o->tokens);
    if (o->logprobs < 0 || o->logprobs > session->vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: logprobs %d of a vocabulary of %d", o->logprobs, session->vocabulary);
    if (o->stop_count > 0 && !o->stop) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: stop is NULL and stop_count %zu", o->stop_count);
    for (size_t i = 0; i < o->stop_count; i++)
        if (!o->stop[i] || !*o->stop[i]) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_generate: stop string %zu is empty", i);
    return SETUN_OK;
}

/* Shows what became safe to show. *go_on = false: the callback asked to stop. */
static setun_status show(answer *a, int32_t id, const char *bytes, size_t length, bool last, bool *go_on)
{
    setun_token_event event = {.id = id};
    SETUN_TRY(setun_stop_push(&a->stop, bytes, length, last, &event.text, &event.length));
    *go_on = true;
    if (!a->o->token) return SETUN_OK;
    if (a->o->logprobs > 0) {
        const float *logits = setun_session_logits(a->session, NULL);
        SETUN_TRY(setun_logprobs(logits, a->session->vocabulary, a->o->logprobs, a->top));
        /* The first of the list gives the normaliser: no second pass over the vocabulary. */
        event.logprob = (float)((double)logits[id] - ((double)logits[a->top[0].id] - (double)a->top[0].logprob));
        event.top = a->top;
    }
    *go_on = a->o->token(a->o->token_user, &event);
    return SETUN_OK;
}

static setun_status piece_of(const answer *a, int32_t id, const char **bytes, size_t *length)
{
    *bytes = "";
    *length = 0;
    if (!a->tokenizer) return SETUN_OK; /* a file without one: ids only */
    if (id >= setun_tokenizer_vocabulary(a->tokenizer)) return SETUN_OK; /* padding rows of the embedding have no text */
    bool special;
    SETUN_TRY(setun_tokenizer_piece(a->tokenizer, id, bytes, length, &special));
    if (special && !a->o->keep_special) *length = 0;
    return SETUN_OK;
}

static setun_status go(answer *a)
{
    const setun_generate_options *o = a->o;
    for (;;) {
        int32_t id;
        if (o->logprobs > 0) (void)setun_session_logits(a->session, NULL); /* all are wanted: the pick then uses them */
        SETUN_TRY(setun_speculation_pick(&a->speculation, a->session, a->sampler, &id));
        bool go_on;
        if (!o->ignore_end && a->tokenizer && setun_tokenizer_is_end(a->tokenizer, id)) {
            a->result.finish = SETUN_FINISH_END;
            /* Text that was held back for a stop string that never came. */
            if (a->stop.pending.length > a->stop.shown) SETUN_TRY(show(a, id, "", 0, true, &go_on));
            return SETUN_OK;
        }
        SETUN_TRY(setun_sampler_accept(a->sampler, id));
        const char *bytes;
        size_t length;
        SETUN_TRY(piece_of(a, id, &bytes, &length));
        int number = a->result.generated_tokens + 1;
        bool full = setun_session_position(a->session) >= setun_session_context(a->session), enough = o->tokens > 0 && number >= o->tokens;
        SETUN_TRY(show(a, id, bytes, length, full || enough, &go_on));
        a->result.generated_tokens = number;
        if (a->stop.found) a->result.finish = SETUN_FINISH_STOP;
        else if (!go_on) a->result.finish = SETUN_FINISH_CANCELLED;
        else if (full) a->result.finish = SETUN_FINISH_CONTEXT;
        else if (enough && o->leave_last) a->result.finish = SETUN_FINISH_LENGTH;
        if (a->result.finish) return SETUN_OK;
        setun_status status = a->speculation.most ? setun_speculation_feed(&a->speculation, a->session, a->sampler, id, o->logprobs > 0) : setun_session_feed(a->session, &id, 1);
        if (status == SETUN_ERROR_CANCELLED) {
            a->result.finish = SETUN_FINISH_CANCELLED;
            return SETUN_OK;
        }
        SETUN_TRY(status);
        if (enough) {
            a->result.finish = SETUN_FINISH_LENGTH;
            return SETUN_OK;
        }
    }
}

setun_status setun_generate(setun_session *session, setun_sampler *sampler, const int32_t *prompt, size_t count, const setun_generate_options *options, setun_generate_result *out)
{
    size_t out_size = out ? (out->size && out->size < sizeof *out ? out->size : sizeof *out) : 0;
    if (out) {
        memset(out, 0, out_size);
        out->size = out_size;
    }
    SETUN_OPTIONS(setun_generate_options, o, options);
    SETUN_TRY(check(session, sampler, prompt, count, &o));
    answer a = {.session = session, .sampler = sampler, .tokenizer = setun_model_tokenizer(session->model), .o = &o, .stop = {.stop = o.stop, .stop_count = o.stop_count}};
    if (o.logprobs > 0) {
        a.top = setun_calloc((size_t)o.logprobs, sizeof *a.top);
        if (!a.top) return setun_fail_memory((size_t)o.logprobs * sizeof *a.top);
    }
    double start = setun_seconds(), prompt_done = start;
    setun_status status = count > 0 ? setun_session_feed(session, prompt, count) : SETUN_OK;
    prompt_done = setun_seconds();
    if (status == SETUN_ERROR_CANCELLED) {
        a.result.finish = SETUN_FINISH_CANCELLED;
        status = SETUN_OK;
    } else if (status == SETUN_OK) {
        a.result.prompt_tokens = (int)count;
        /* Penalties look at the prompt too, as users of llama.cpp expect. */
        for (size_t i = 0; i < count && status == SETUN_OK; i++)
            if (prompt[i] < session->vocabulary) status = setun_sampler_accept(sampler, prompt[i]);
        if (status == SETUN_OK) status = setun_speculation_begin(&a.speculation, session, prompt, count, o.lookup);
        if (status == SETUN_OK) status = go(&a);
        a.result.drafted_tokens = (int)a.speculation.drafted;
        a.result.accepted_tokens = (int)a.speculation.accepted;
        setun_speculation_end(&a.speculation, session);
    }
    a.result.prompt_seconds = prompt_done - start;
    a.result.generate_seconds = setun_seconds() - prompt_done;
    setun_stop_clear(&a.stop);
    setun_free(a.top);
    if (status == SETUN_OK && out) {
        a.result.size = out_size;
        memcpy(out, &a.result, out_size);
    }
    return status;
}
