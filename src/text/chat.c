/*
 * chat.c - messages as text and as ids, by the chat template that the model's file brings. The template itself is run
 * (jinja.h), so a near miss of a known one gives its own text and not its neighbour's; what the language part lacks
 * makes the template unknown, and an unknown one is refused. Only the template's own bytes can become special tokens.
 * Caller: the API. Knows nothing of sessions.
 */
#include "text/jinja.h"
#include "text/tokenizer.h"

enum { MESSAGES_MAX = 100000 };

void chat_clear(setun_tokenizer *t)
{
    if (t->chat) {
        jinja_arena_clear(&t->chat->arena);
        setun_free(t->chat);
    }
    setun_free(t->chat_text);
    setun_free(t->chat_reason);
}

static char *special_text(const setun_tokenizer *t, int32_t id)
{
    return id < 0 ? NULL : setun_strndup(token_text(&t->vocabulary, id), t->vocabulary.tokens[id].length);
}

/* Runs the template; out and mask are the caller's to clear. */
static setun_status render(const setun_tokenizer *t, const jinja_message *messages, size_t count, bool add_generation_prompt, setun_string *out, setun_string *mask)
{
    const struct { const char *name; int32_t id; } tokens[] = {{"bos_token", t->bos}, {"eos_token", t->eos}, {"unk_token", t->unknown_declared}, {"pad_token", t->pad},
        {"sep_token", t->separator}, {"mask_token", t->mask}};
    enum { COUNT = sizeof tokens / sizeof tokens[0] };
    jinja_variable variables[COUNT];
    char *texts[COUNT];
    setun_status status = SETUN_OK;
    for (size_t i = 0; i < COUNT; i++) {
        texts[i] = special_text(t, tokens[i].id);
        if (!texts[i] && tokens[i].id >= 0)
            status = setun_fail_memory(0);
        variables[i] = (jinja_variable){tokens[i].name, texts[i]};
    }
    if (status == SETUN_OK)
        status = jinja_run(t->chat, messages, count, add_generation_prompt, variables, COUNT, out, mask);
    for (size_t i = 0; i < COUNT; i++)
        setun_free(texts[i]);
    return status;
}

/* Families by what they write around a message, so that a person can be told which one it is. */
static const struct { const char *sign, *name; } families[] = {
    {"<|im_start|>user\nQUESTION<|im_end|>", "chatml"},
    {"<|start_header_id|>user<|end_header_id|>\n\nQUESTION<|eot_id|>", "llama3"},
    {"[INST] QUESTION [/INST]", "llama2"},
    {"User: QUESTION<|eot_id|>", "bitnet"},
    {"<start_of_turn>user\nQUESTION<end_of_turn>", "gemma"},
    {"<|user|>\nQUESTION</s>", "zephyr"},
    {"<|user|>\nQUESTION<|endoftext|>", "zephyr"},
    {"<|user|>\nQUESTION\n<|assistant|>", "falcon3"},
    {"<\xe7\x94\xa8\xe6\x88\xb7>QUESTION<AI>", "minicpm"},
};

static const char *family_of(const setun_tokenizer *t, const char *text)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (!strstr(text, families[i].sign))
            continue;
        bool thinks = i == 0 && strstr(t->chat_text, "enable_thinking") != NULL;
        return thinks ? "qwen3" : families[i].name;
    }
    return "jinja"; /* no family's, but its file says all there is to know */
}

/* A template that Setun cannot run is no error of the file: the tokenizer works, and chatting says why it does not. */
static setun_status keep_reason(setun_tokenizer *t, setun_status status)
{
    if (status == SETUN_ERROR_MEMORY)
        return status;
    if (t->chat) {
        jinja_arena_clear(&t->chat->arena);
        setun_free(t->chat);
        t->chat = NULL;
    }
    t->chat_reason = setun_strdup(setun_error());
    return t->chat_reason ? SETUN_OK : setun_fail_memory(0);
}

setun_status chat_recognise(setun_tokenizer *t)
{
    if (!t->chat_text)
        return SETUN_OK;
    t->chat = setun_calloc(1, sizeof *t->chat);
    if (!t->chat)
        return setun_fail_memory(sizeof *t->chat);
    setun_status status = jinja_parse(t->chat_text, t->chat_length, t->chat);
    if (status != SETUN_OK)
        return keep_reason(t, status);
    /* The template is tried on conversations, so that what it lacks is known when the model is opened. One may refuse
     * a conversation (raise_exception) and still be good for another. */
    static const jinja_message probe[] = {{"system", "RULE", 4}, {"user", "QUESTION", 8}, {"assistant", "ANSWER", 6}, {"user", "QUESTION", 8}};
    static const struct { int first, count; } probes[] = {{1, 3}, {1, 1}, {0, 2}};
    for (size_t i = 0; i < sizeof probes / sizeof probes[0]; i++) {
        setun_string text = {0}, mask = {0};
        status = render(t, probe + probes[i].first, (size_t)probes[i].count, true, &text, &mask);
        if (status == SETUN_OK && (!text.data || !strstr(text.data, "QUESTION")))
            status = setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template: it does not write the messages");
        if (status == SETUN_OK)
            t->chat_name = family_of(t, text.data);
        setun_string_clear(&text);
        setun_string_clear(&mask);
        if (status != SETUN_ERROR_ARGUMENT)
            break;
    }
    return status == SETUN_OK ? SETUN_OK : keep_reason(t, status);
}

const char *setun_chat_template(const setun_tokenizer *t)
{
    return t && t->chat ? t->chat_name : NULL;
}

/* ---- messages ------------------------------------------------------------------------------------------------------ */

static setun_status check(const setun_tokenizer *t, const setun_message *messages, size_t count)
{
    if (!t || (!messages && count))
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat: a NULL argument");
    if (!t->chat && !t->chat_text)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the model brings no chat template; write the prompt in full (--raw)", t->name);
    if (!t->chat)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the model's chat template is not one that Setun knows (%s); write the prompt in full (--raw)", t->name, t->chat_reason);
    if (count == 0 || count > MESSAGES_MAX)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat: %zu messages; 1 to %d are taken", count, MESSAGES_MAX);
    for (size_t i = 0; i < count; i++) {
        const char *role = messages[i].role;
        if (!role || !messages[i].content)
            return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat: message %zu has no role or no content", i);
        if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
            return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat: message %zu has the role '%.40s'; known are system, user, assistant", i, role);
    }
    return SETUN_OK;
}

static setun_status render_messages(const setun_tokenizer *t, const setun_message *messages, size_t count, bool add_generation_prompt, setun_string *out, setun_string *mask)
{
    SETUN_TRY(check(t, messages, count));
    setun_status status = SETUN_OK;
    jinja_message *given = setun_calloc(count, sizeof *given);
    setun_string *repaired = setun_calloc(count, sizeof *repaired);
    if (!given || !repaired)
        status = setun_fail_memory(count * sizeof *given);
    for (size_t i = 0; i < count && status == SETUN_OK; i++) {
        size_t length = strlen(messages[i].content);
        given[i] = (jinja_message){messages[i].role, messages[i].content, length};
        if (length == 0 || setun_utf8_valid(messages[i].content, length))
            continue;
        setun_utf8_repair(messages[i].content, length, &repaired[i]);
        if (repaired[i].failed)
            status = setun_fail_memory(length);
        given[i].content = repaired[i].data;
        given[i].content_length = repaired[i].length;
    }
    if (status == SETUN_OK)
        status = render(t, given, count, add_generation_prompt, out, mask);
    for (size_t i = 0; repaired && i < count; i++)
        setun_string_clear(&repaired[i]);
    setun_free(repaired);
    setun_free(given);
    return status;
}

setun_status setun_chat_encode(const setun_tokenizer *t, const setun_message *messages, size_t count, bool add_generation_prompt, int32_t **out_ids, size_t *out_count)
{
    if (out_ids)
        *out_ids = NULL;
    if (out_count)
        *out_count = 0;
    if (!out_ids || !out_count)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat_encode: a NULL argument");
    setun_string text = {0}, mask = {0};
    setun_status status = render_messages(t, messages, count, add_generation_prompt, &text, &mask);
    if (status == SETUN_OK)
        status = tokenizer_encode_marked(t, text.data ? text.data : "", text.length, (const uint8_t *)mask.data, out_ids, out_count);
    setun_string_clear(&text);
    setun_string_clear(&mask);
    return status;
}

setun_status setun_chat_format(const setun_tokenizer *t, const setun_message *messages, size_t count, bool add_generation_prompt, char **out_text, size_t *out_length)
{
    if (out_text)
        *out_text = NULL;
    if (out_length)
        *out_length = 0;
    if (!out_text)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_chat_format: a NULL argument");
    setun_string text = {0}, mask = {0};
    setun_status status = render_messages(t, messages, count, add_generation_prompt, &text, &mask);
    setun_string_clear(&mask);
    if (status == SETUN_OK)
        return setun_string_take(&text, out_text, out_length);
    setun_string_clear(&text);
    return status;
}
