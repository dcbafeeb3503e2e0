/*
 * chat.c - chat templates. Caller: the API.
 */
#include "text/tokenizer.h"

setun_status chat_recognise(setun_tokenizer *t)
{
    (void)t;
    return SETUN_OK;
}

const char *setun_chat_template(const setun_tokenizer *t)
{
    (void)t;
    return NULL;
}

static setun_status unknown_template(void)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "the model has no chat template that Setun knows; write the prompt in full (--raw)");
}

setun_status setun_chat_encode(const setun_tokenizer *t, const setun_message *messages, size_t count, bool add_generation_prompt, int32_t **out_ids, size_t *out_count)
{
    (void)t; (void)messages; (void)count; (void)add_generation_prompt;
    *out_ids = NULL;
    *out_count = 0;
    return unknown_template();
}

setun_status setun_chat_format(const setun_tokenizer *t, const setun_message *messages, size_t count, bool add_generation_prompt, char **out_text, size_t *out_length)
{
    (void)t; (void)messages; (void)count; (void)add_generation_prompt;
    *out_text = NULL;
    if (out_length)
        *out_length = 0;
    return unknown_template();
}
