/* perplexity.c - `setun perplexity`: exp of the mean negative log-likelihood of a text's tokens. */
#include "app.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct score { const int32_t *ids; size_t count; double sum, squares; uint64_t scored; int vocabulary; } score;

static bool on_logits(void *user, size_t index, const float *logits, int vocabulary) {
    score *sc = user;
    if (index + 1 >= sc->count) return true;
    double nll = -(double)setun_logprob_of(logits, vocabulary, sc->ids[index + 1]);
    sc->sum += nll;
    sc->squares += nll * nll;
    sc->scored++;
    return true;
}

int command_perplexity(settings *s) {
    if (s->words.count == 1 && !s->given[OPTION_file]) s->file = s->words.items[0];
    else if (s->words.count || !s->given[OPTION_file]) return usage_error("setun perplexity: give one text file with -f");
    char *text = NULL;
    size_t length = 0, count = 0;
    int32_t *ids = NULL;
    setun_context *context = NULL;
    setun_model *model = NULL;
    setun_session *session = NULL;
    int status = read_text(s->file, &text, &length);
    if (status == EXIT_OK) status = open_context(s, s->threads, &context);
    if (status == EXIT_OK) status = open_model(s, context, &model);
    const setun_tokenizer *tokenizer = model ? setun_model_tokenizer(model) : NULL;
    if (status == EXIT_OK && !tokenizer) status = fail("%s has no tokenizer", model_path(s));
    if (status == EXIT_OK) {
        setun_status code = setun_tokenizer_encode(tokenizer, text, length, 0, &ids, &count);
        if (code != SETUN_OK) status = fail_status(code);
    }
    if (!s->given[OPTION_context]) s->context = 512;
    if (status == EXIT_OK && s->context < 2) status = usage_error("setun perplexity: --context must be 2 or more");
    if (status == EXIT_OK && count < 2) status = fail("%s: %zu tokens are too few to score", s->file, count);
    setun_session_options options = session_options(s);
    options.head = "full"; /* every logit is looked at */
    if (status == EXIT_OK) {
        setun_status code = setun_session_create(model, &options, &session);
        if (code != SETUN_OK) status = fail_status(code);
    }
    score total = {0};
    double start = now_seconds();
    if (status == EXIT_OK) {
        interrupt_session(session);
        size_t piece = (size_t)setun_session_context(session), bos = setun_tokenizer_bos(tokenizer) >= 0 ? 1 : 0;
        int32_t *window = malloc(piece * sizeof *window);
        if (!window) status = fail("out of memory");
        /* Where the tokenizer begins every text with a token, every piece begins with it. */
        int32_t *probe = NULL;
        size_t probe_count = 0;
        if (bos && setun_tokenizer_encode(tokenizer, "a", 1, SETUN_TOKENIZE_ADD_SPECIAL, &probe, &probe_count) == SETUN_OK)
            bos = probe_count && probe[0] == setun_tokenizer_bos(tokenizer);
        setun_free(probe);
        for (size_t at = 0; status == EXIT_OK && at < count;) {
            size_t n = count - at < piece - bos ? count - at : piece - bos;
            if (n + bos < 2) break;
            if (bos) window[0] = setun_tokenizer_bos(tokenizer);
            memcpy(window + bos, ids + at, n * sizeof *window);
            total.ids = window;
            total.count = n + bos;
            setun_status code = setun_session_truncate(session, 0);
            if (code == SETUN_OK) code = setun_session_feed_all(session, window, n + bos, on_logits, &total);
            if (code != SETUN_OK) status = code == SETUN_ERROR_CANCELLED ? EXIT_INTERRUPTED : fail_status(code);
            at += n;
            if (!s->quiet) progress_callback(NULL, "tokens", at, count);
        }
        progress_end();
        interrupt_session(NULL);
        free(window);
    }
    if (status == EXIT_OK) {
        double n = (double)total.scored, mean = total.sum / n, variance = n > 1 ? fmax(0, (total.squares - n * mean * mean) / (n - 1)) : 0;
        double error = sqrt(variance / n), seconds = now_seconds() - start;
        if (s->json) {
            json_t *root = json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:I, s:i, s:f}", "model", model_path(s), "file", s->file, "perplexity", exp(mean), "standard_error", exp(mean) * error,
                "nats_per_token", mean, "bits_per_byte", total.sum / log(2) / (double)length, "tokens", (json_int_t)total.scored, "context", setun_session_context(session), "seconds", seconds);
            json_dumpf(root, stdout, JSON_REAL_PRECISION(8));
            putchar('\n');
            json_decref(root);
        } else
            printf("perplexity %.4f +- %.4f   (%llu tokens scored, context %d, %.4f nats a token, %.4f bits a byte, %.1f tokens/s)\n", exp(mean), exp(mean) * error,
                (unsigned long long)total.scored, setun_session_context(session), mean, total.sum / log(2) / (double)length, n / seconds);
    }
    setun_session_destroy(session);
    setun_free(ids);
    setun_model_close(model);
    setun_context_destroy(context);
    free(text);
    return status;
}
