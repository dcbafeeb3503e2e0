/*
 * from_gguf.c - a tokenizer from tokenizer.ggml.* and tokenizer.chat_template. Kinds of vocabulary: gpt2 (byte-level
 * BPE), llama (SentencePiece BPE), t5 (SentencePiece unigram). Everything is copied; nothing points into the file.
 * Caller: open.c. Refuses to guess: an unknown kind or pre-tokeniser is an error that lists the known ones.
 */
#include "text/readers.h"

static setun_status read_string(setun_file *file, const char *key, const char **out, size_t *length)
{
    *out = NULL;
    *length = 0;
    const setun_value *value = setun_file_find_value(file, key);
    if (value && !setun_value_string(value, out, length))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is not a string", setun_file_path(file), key);
    return SETUN_OK;
}

static setun_status read_bool(setun_file *file, const char *key, bool missing, bool *out)
{
    *out = missing;
    const setun_value *value = setun_file_find_value(file, key);
    if (value && !setun_value_bool(value, out))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is not true or false", setun_file_path(file), key);
    return SETUN_OK;
}

/* A token id; -1 where the key is absent or holds the "none" that some writers put there (all bits set). */
static setun_status read_id(setun_file *file, const setun_tokenizer *t, const char *key, int32_t *out)
{
    *out = -1;
    const setun_value *value = setun_file_find_value(file, key);
    if (!value)
        return SETUN_OK;
    int64_t id;
    if (!setun_value_i64(value, &id))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is not an integer", setun_file_path(file), key);
    if (id == -1 || id == UINT32_MAX)
        return SETUN_OK;
    if (id < 0 || id >= t->vocabulary.count)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is %lld, but the vocabulary has %d tokens", setun_file_path(file), key, (long long)id, t->vocabulary.count);
    *out = (int32_t)id;
    return SETUN_OK;
}

/* An array of the vocabulary's size, or NULL where it is absent and may be. */
static setun_status find_array(setun_file *file, const char *key, uint64_t count, const setun_value **out)
{
    *out = setun_file_find_value(file, key);
    if (!*out)
        return SETUN_OK;
    if ((*out)->type != SETUN_VALUE_ARRAY)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is not an array", setun_file_path(file), key);
    if ((*out)->count != count)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %s has %llu entries, but tokenizer.ggml.tokens has %llu", setun_file_path(file), key,
            (unsigned long long)(*out)->count, (unsigned long long)count);
    return SETUN_OK;
}

/* Converters write the spaces of SentencePiece's user-defined pieces as spaces; here, as in all other pieces, they are
 * U+2581. */
static setun_status add_spaced(setun_tokenizer *t, uint64_t id, const char *text, size_t length, float score)
{
    setun_string spelled = {0};
    for (size_t i = 0; i < length; i++)
        setun_string_append(&spelled, text[i] == ' ' ? "\xe2\x96\x81" : text + i, text[i] == ' ' ? 3 : 1);
    setun_status status = spelled.failed ? setun_fail_memory(length) : vocabulary_add(t, id, spelled.data, spelled.length, TOKEN_USER, score);
    setun_string_clear(&spelled);
    return status;
}

static setun_status read_tokens(setun_file *file, setun_tokenizer *t)
{
    const setun_value *tokens = setun_file_find_value(file, "tokenizer.ggml.tokens"), *types, *scores;
    if (!tokens || tokens->type != SETUN_VALUE_ARRAY || tokens->element != SETUN_VALUE_STRING)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.tokens is %s", t->name, tokens ? "not an array of strings" : "missing");
    SETUN_TRY(find_array(file, "tokenizer.ggml.token_type", tokens->count, &types));
    SETUN_TRY(find_array(file, "tokenizer.ggml.scores", tokens->count, &scores));
    if (t->model != MODEL_BPE && !scores)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.scores is missing; SentencePiece vocabularies need it", t->name);
    SETUN_TRY(vocabulary_begin(t, tokens->count));
    for (uint64_t i = 0; i < tokens->count; i++) {
        const char *text;
        size_t length;
        int64_t kind = TOKEN_NORMAL;
        double score = 0;
        if (!setun_value_string_at(tokens, i, &text, &length))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.tokens[%llu] is not readable", t->name, (unsigned long long)i);
        if (types && (!setun_value_i64_at(types, i, &kind) || kind < TOKEN_NORMAL || kind > TOKEN_BYTE))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.token_type[%llu] is not 1 to 6", t->name, (unsigned long long)i);
        if (scores && (!setun_value_f64_at(scores, i, &score) || !(score >= -1e30 && score <= 1e30)))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.scores[%llu] is not a finite number", t->name, (unsigned long long)i);
        if (t->model != MODEL_BPE && kind == TOKEN_USER && length && memchr(text, ' ', length))
            SETUN_TRY(add_spaced(t, i, text, length, (float)score));
        else
            SETUN_TRY(vocabulary_add(t, i, text, length, (token_kind)kind, (float)score));
        if (kind == TOKEN_CONTROL || kind == TOKEN_USER || kind == TOKEN_UNKNOWN)
            SETUN_TRY(added_push(t, (added_token){.id = (int32_t)i, .special = kind != TOKEN_USER}));
    }
    return vocabulary_finish(t);
}

static setun_status read_merges(setun_file *file, setun_tokenizer *t)
{
    const setun_value *merges = setun_file_find_value(file, "tokenizer.ggml.merges");
    if (!merges || merges->type != SETUN_VALUE_ARRAY || merges->element != SETUN_VALUE_STRING)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.merges is %s", t->name, merges ? "not an array of strings" : "missing");
    SETUN_TRY(merges_begin(t, merges->count));
    for (uint64_t i = 0; i < merges->count; i++) {
        const char *text;
        size_t length;
        const char *space = NULL;
        if (setun_value_string_at(merges, i, &text, &length) && length > 2)
            space = memchr(text + 1, ' ', length - 1); /* from the second byte: a piece may itself begin with a space */
        if (!space || space + 1 == text + length)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.merges[%llu] is not two pieces with a space between", t->name, (unsigned long long)i);
        SETUN_TRY(merges_add(t, (int32_t)i, text, (size_t)(space - text), space + 1, length - (size_t)(space + 1 - text)));
    }
    return SETUN_OK;
}

/* Files from before tokenizer.ggml.pre existed, and converters that leave it out. Llama-3's vocabulary names itself. */
static const char *missing_pre(const setun_tokenizer *t)
{
    return t->vocabulary.count >= 128000 && tokenizer_find(t, "<|begin_of_text|>") >= 0 && tokenizer_find(t, "<|eot_id|>") >= 0 ? "llama-bpe" : "default";
}

static setun_status read_bpe(setun_file *file, setun_tokenizer *t, bool *add_bos)
{
    const char *pre;
    size_t length;
    t->byte_level = true;
    SETUN_TRY(read_tokens(file, t));
    SETUN_TRY(read_merges(file, t));
    SETUN_TRY(read_string(file, "tokenizer.ggml.pre", &pre, &length));
    if (!pre) {
        pre = missing_pre(t);
        length = strlen(pre);
    }
    return known_pretokenizer_apply(t, pre, length, add_bos);
}

static setun_status read_sentencepiece(setun_file *file, setun_tokenizer *t)
{
    t->sentencepiece_rules = t->decode_spaces = true;
    SETUN_TRY(read_tokens(file, t));
    for (int i = 0; i < 256; i++)
        t->byte_fallback = t->byte_fallback || t->byte_ids[i] >= 0;
    normalizer_step *step = &t->normalizers[t->normalizer_count++];
    step->kind = NORMALIZE_SENTENCEPIECE;
    step->escape = true;
    SETUN_TRY(read_bool(file, "tokenizer.ggml.add_space_prefix", true, &step->add_prefix));
    SETUN_TRY(read_bool(file, "tokenizer.ggml.remove_extra_whitespaces", false, &step->remove_extra));
    t->decode_strip_space = step->add_prefix;
    const setun_value *map = setun_file_find_value(file, "tokenizer.ggml.precompiled_charsmap");
    if (map) {
        if (map->type != SETUN_VALUE_ARRAY || (map->element != SETUN_VALUE_U8 && map->element != SETUN_VALUE_I8))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tokenizer.ggml.precompiled_charsmap is not an array of bytes", t->name);
        SETUN_TRY(charsmap_load((const char *)map->data, (size_t)map->count, t->name, &step->map));
    }
    if (t->model == MODEL_SENTENCEPIECE_BPE)
        return tokenizer_rank_scores(t);
    return unigram_prepare(t);
}

setun_status tokenizer_from_gguf(setun_file *file, setun_tokenizer *t)
{
    const char *model, *text;
    size_t length;
    bool add_bos = false, add_eos = false;
    SETUN_TRY(read_string(file, "tokenizer.ggml.model", &model, &length));
    if (length == 4 && memcmp(model, "gpt2", 4) == 0) {
        t->model = MODEL_BPE;
        SETUN_TRY(read_bpe(file, t, &add_bos));
    } else if (length == 5 && memcmp(model, "llama", 5) == 0) {
        t->model = MODEL_SENTENCEPIECE_BPE;
        add_bos = true;
        SETUN_TRY(read_sentencepiece(file, t));
    } else if (length == 2 && memcmp(model, "t5", 2) == 0) {
        t->model = MODEL_UNIGRAM;
        add_eos = true;
        SETUN_TRY(read_sentencepiece(file, t));
    } else {
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tokenizer.ggml.model is '%.*s'; known are gpt2 (byte-level BPE), llama (SentencePiece BPE) and t5 (unigram)",
            t->name, length > 80 ? 80 : (int)length, model);
    }
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.bos_token_id", &t->bos));
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.eos_token_id", &t->eos));
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.eot_token_id", &t->eot));
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.padding_token_id", &t->pad));
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.seperator_token_id", &t->separator)); /* the key is spelled so */
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.mask_token_id", &t->mask));
    int32_t unknown;
    SETUN_TRY(read_id(file, t, "tokenizer.ggml.unknown_token_id", &unknown));
    if (t->model != MODEL_BPE) { /* byte-level text has no unknowns */
        for (int32_t i = 0; unknown < 0 && i < t->vocabulary.count; i++)
            if (t->vocabulary.tokens[i].kind == TOKEN_UNKNOWN)
                unknown = i;
    }
    t->unknown = t->model == MODEL_BPE ? -1 : unknown;
    t->unknown_declared = unknown;
    SETUN_TRY(read_bool(file, "tokenizer.ggml.add_bos_token", add_bos, &add_bos));
    SETUN_TRY(read_bool(file, "tokenizer.ggml.add_eos_token", add_eos, &add_eos));
    if (add_bos && t->bos >= 0)
        t->prefix[t->prefix_count++] = t->bos;
    if (add_eos && t->eos >= 0)
        t->suffix[t->suffix_count++] = t->eos;
    SETUN_TRY(read_string(file, "tokenizer.chat_template", &text, &length));
    return text ? tokenizer_set_chat(t, text, length) : SETUN_OK;
}
