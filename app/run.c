/* run.c - `setun run`: one prompt in, one answer out, streamed. */
#include "app.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct sink {
    bool json, broken;
    json_t *tokens;
    char *text;
    size_t length, capacity;
    const setun_tokenizer *tokenizer;
    int logprobs;
} sink;

/* Text for JSON: bytes of a lone token may not be UTF-8; then the id is all there is. */
static json_t *token_text(const setun_tokenizer *tokenizer, int32_t id) {
    const char *bytes;
    size_t length;
    bool special;
    if (setun_tokenizer_piece(tokenizer, id, &bytes, &length, &special) != SETUN_OK) return json_null();
    json_t *text = json_stringn(bytes, length);
    return text ? text : json_null();
}

static bool on_token(void *user, const setun_token_event *event) {
    sink *out = user;
    if (!out->json) {
        if (event->length && !print_bytes(stdout, event->text, event->length)) out->broken = true;
        return !out->broken;
    }
    if (out->length + event->length + 1 > out->capacity) {
        size_t capacity = (out->length + event->length + 1) * 2;
        char *bigger = realloc(out->text, capacity);
        if (!bigger) return !(out->broken = true);
        out->text = bigger;
        out->capacity = capacity;
    }
    if (event->length) memcpy(out->text + out->length, event->text, event->length);
    out->length += event->length;
    json_t *token = json_pack("{s:i, s:o}", "id", (int)event->id, "text", token_text(out->tokenizer, event->id));
    if (out->logprobs) {
        json_object_set_new(token, "logprob", json_real(event->logprob));
        json_t *top = json_array();
        for (int i = 0; i < out->logprobs; i++)
            json_array_append_new(top, json_pack("{s:i, s:o, s:f}", "id", (int)event->top[i].id, "text", token_text(out->tokenizer, event->top[i].id), "logprob", (double)event->top[i].logprob));
        json_object_set_new(token, "top", top);
    }
    json_array_append_new(out->tokens, token);
    return true;
}

static const char *finish_name(setun_finish finish) {
    switch (finish) {
    case SETUN_FINISH_END: return "end";
    case SETUN_FINISH_LENGTH: return "length";
    case SETUN_FINISH_STOP: return "stop";
    case SETUN_FINISH_CONTEXT: return "context";
    case SETUN_FINISH_CANCELLED: return "cancelled";
    }
    return "?";
}

static int encode_prompt(const settings *s, setun_model *model, const char *text, size_t length, int32_t **ids, size_t *count) {
    const setun_tokenizer *tokenizer = setun_model_tokenizer(model);
    if (!tokenizer) return fail("%s has no tokenizer: Setun cannot turn text into its tokens; use a file that carries one", model_path(s));
    bool chat = !s->raw && setun_chat_template(tokenizer);
    if (s->given[OPTION_system] && !chat) return usage_error("setun run: --system needs a chat template%s", s->raw ? ", and --raw turns it off" : ", and this model has none that Setun knows");
    setun_status status;
    if (chat) {
        if (strlen(text) != length) return fail("the prompt contains a zero byte; --raw takes it");
        setun_message messages[2] = {{"system", s->system}, {"user", text}};
        int first = s->given[OPTION_system] ? 0 : 1;
        status = setun_chat_encode(tokenizer, messages + first, (size_t)(2 - first), true, ids, count);
    } else {
        if (!s->raw && !s->quiet) fprintf(stderr, "setun: this model has no chat template that Setun knows: continuing the text as it is (--raw)\n");
        status = setun_tokenizer_encode(tokenizer, text, length, SETUN_TOKENIZE_ADD_SPECIAL | (s->raw ? SETUN_TOKENIZE_PARSE_SPECIAL : 0), ids, count);
    }
    return status == SETUN_OK ? EXIT_OK : fail_status(status);
}

int command_run(settings *s) {
    setun_context *context = NULL;
    setun_model *model = NULL;
    setun_session *session = NULL;
    setun_sampler *sampler = NULL;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t length = 0, count = 0;
    sink out = {.json = s->json, .logprobs = s->logprobs};
    if (!s->given[OPTION_prompt] && !s->given[OPTION_file] && !s->words.count && isatty(STDIN_FILENO))
        return usage_error("setun run: no prompt; give one as words, with --prompt or --file, or pipe it in. `setun chat` talks");
    int status = input_text(s, "run", "prompt", &text, &length);
    if (status == EXIT_OK && s->logprobs > 100) status = usage_error("setun run: --logprobs: at most 100");
    if (status == EXIT_OK) status = open_context(s, s->threads, &context);
    if (status == EXIT_OK) status = open_model(s, context, &model);
    if (status == EXIT_OK) status = encode_prompt(s, model, text, length, &ids, &count);
    setun_session_options options = session_options(s);
    setun_model_info info = {.size = sizeof info};
    setun_status code = SETUN_OK;
    if (status == EXIT_OK && (code = setun_session_create(model, &options, &session)) == SETUN_OK) code = setun_model_get_info(model, &info);
    if (code != SETUN_OK) status = fail_status(code);
    if (status == EXIT_OK) status = make_sampler(s, info.vocabulary, &sampler);
    if (status == EXIT_OK && !count) status = fail("the prompt is empty: there is nothing to continue");
    if (status == EXIT_OK) {
        out.tokens = json_array();
        out.tokenizer = setun_model_tokenizer(model);
        setun_generate_options generate = {.size = sizeof generate, .tokens = s->tokens, .stop = s->stop.items, .stop_count = s->stop.count,
            .logprobs = s->json ? s->logprobs : 0, .lookup = s->lookup, .ignore_end = s->ignore_end, .leave_last = true, .token = on_token, .token_user = &out};
        setun_generate_result result = {.size = sizeof result};
        interrupt_session(session);
        code = setun_generate(session, sampler, ids, count, &generate, &result);
        interrupt_session(NULL);
        if (code == SETUN_ERROR_CANCELLED || (code == SETUN_OK && result.finish == SETUN_FINISH_CANCELLED)) status = out.broken ? EXIT_FAILED : EXIT_INTERRUPTED;
        else if (code != SETUN_OK) status = fail_status(code);
        if (!s->json) {
            if (!out.broken) print_bytes(stdout, "\n", 1);
            if (status == EXIT_OK && result.finish == SETUN_FINISH_CONTEXT) fprintf(stderr, "setun: the context of %d tokens is full; -c makes it larger\n", setun_session_context(session));
            if (status == EXIT_OK && !s->quiet && (s->verbose || isatty(STDERR_FILENO)))
                fprintf(stderr, "\n[%d prompt tokens in %.2f s: %.1f/s; %d tokens in %.2f s: %.1f/s; %s]\n", result.prompt_tokens, result.prompt_seconds,
                    result.prompt_tokens / (result.prompt_seconds > 0 ? result.prompt_seconds : 1), result.generated_tokens, result.generate_seconds,
                    result.generated_tokens / (result.generate_seconds > 0 ? result.generate_seconds : 1), finish_name(result.finish));
        } else if (status == EXIT_OK) {
            json_t *string = json_stringn(out.text ? out.text : "", out.length);
            json_t *root = json_pack("{s:s, s:o, s:s, s:i, s:i, s:f, s:f, s:i, s:i, s:O}", "model", model_path(s), "text", string ? string : json_null(), "finish", finish_name(result.finish),
                "prompt_tokens", result.prompt_tokens, "generated_tokens", result.generated_tokens, "prompt_seconds", result.prompt_seconds,
                "generate_seconds", result.generate_seconds, "drafted_tokens", result.drafted_tokens, "accepted_tokens", result.accepted_tokens, "tokens", out.tokens);
            json_dumpf(root, stdout, JSON_REAL_PRECISION(7));
            putchar('\n');
            json_decref(root);
        }
    }
    json_decref(out.tokens);
    free(out.text);
    setun_sampler_destroy(sampler);
    setun_session_destroy(session);
    setun_free(ids);
    setun_model_close(model);
    setun_context_destroy(context);
    free(text);
    return status;
}
