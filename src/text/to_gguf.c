/*
 * to_gguf.c - a tokenizer as tokenizer.ggml.* and tokenizer.chat_template. GGUF has words for byte-level BPE with a
 * pre-tokeniser that has a name, and for SentencePiece vocabularies; what would be read back as something else is
 * refused. Caller: convert. Knows nothing of weights.
 */
#include "text/readers.h"
#include <stdlib.h>

static setun_status no_word(const setun_tokenizer *t, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: GGUF has no word for %s; write safetensors and keep tokenizer.json beside it", t->name, what);
}

static setun_status write_tokens(const setun_tokenizer *t, const float *scores, setun_gguf_writer *writer)
{
    const vocabulary *v = &t->vocabulary;
    size_t count = (size_t)v->count;
    const char **texts = setun_alloc(count * sizeof *texts);
    size_t *lengths = setun_alloc(count * sizeof *lengths);
    int32_t *kinds = setun_alloc(count * sizeof *kinds);
    setun_status status = texts && lengths && kinds ? SETUN_OK : setun_fail_memory(count * sizeof *texts);
    for (int32_t i = 0; i < v->count && status == SETUN_OK; i++) {
        /* GGUF spells the spaces of user-defined pieces as spaces. */
        bool spaced = t->sentencepiece_rules && v->tokens[i].kind == TOKEN_USER;
        texts[i] = spaced ? token_piece(v, i) : token_text(v, i);
        lengths[i] = spaced ? v->tokens[i].piece_length : v->tokens[i].length;
        kinds[i] = v->tokens[i].kind;
    }
    if (status == SETUN_OK)
        status = setun_gguf_add_strings(writer, "tokenizer.ggml.tokens", texts, lengths, count);
    if (status == SETUN_OK && scores)
        status = setun_gguf_add_f32s(writer, "tokenizer.ggml.scores", scores, count);
    if (status == SETUN_OK)
        status = setun_gguf_add_i32s(writer, "tokenizer.ggml.token_type", kinds, count);
    setun_free(texts);
    setun_free(lengths);
    setun_free(kinds);
    return status;
}

/* ---- merges in their order ------------------------------------------------------------------------------------------- */

static int by_rank(const void *a, const void *b)
{
    int32_t x = ((const merge_entry *)a)->rank, y = ((const merge_entry *)b)->rank;
    return x < y ? -1 : x > y;
}

setun_status merges_in_order(const setun_tokenizer *t, merge_entry **out)
{
    const merge_table *m = &t->merges;
    size_t count = 0;
    *out = setun_alloc(((size_t)m->count + 1) * sizeof **out);
    if (!*out)
        return setun_fail_memory((size_t)m->count * sizeof **out);
    for (uint64_t i = 0; i < m->slots; i++)
        if (m->entries[i].rank >= 0)
            (*out)[count++] = m->entries[i];
    qsort(*out, count, sizeof **out, by_rank);
    return SETUN_OK;
}

static setun_status write_merges(const setun_tokenizer *t, setun_gguf_writer *writer)
{
    const vocabulary *v = &t->vocabulary;
    size_t count = (size_t)t->merges.count;
    merge_entry *merges = NULL;
    setun_string all = {0};
    SETUN_TRY(merges_in_order(t, &merges));
    const char **texts = setun_alloc((count + 1) * sizeof *texts);
    size_t *lengths = setun_alloc((count + 1) * sizeof *lengths);
    setun_status status = texts && lengths ? SETUN_OK : setun_fail_memory(count * sizeof *texts);
    for (size_t i = 0; i < count && status == SETUN_OK; i++) {
        int32_t left = (int32_t)(merges[i].pair >> 32), right = (int32_t)(uint32_t)merges[i].pair;
        size_t start = all.length;
        if (memchr(token_text(v, left), ' ', v->tokens[left].length) || memchr(token_text(v, right), ' ', v->tokens[right].length))
            status = no_word(t, "merges of pieces with a space in them");
        setun_string_append(&all, token_text(v, left), v->tokens[left].length);
        setun_string_append(&all, " ", 1);
        setun_string_append(&all, token_text(v, right), v->tokens[right].length);
        lengths[i] = all.length - start;
    }
    if (status == SETUN_OK && all.failed)
        status = setun_fail_memory(all.length);
    for (size_t i = 0, at = 0; i < count && status == SETUN_OK; at += lengths[i++])
        texts[i] = all.data + at;
    if (status == SETUN_OK)
        status = setun_gguf_add_strings(writer, "tokenizer.ggml.merges", texts, lengths, count);
    setun_free(merges);
    setun_free(texts);
    setun_free(lengths);
    setun_string_clear(&all);
    return status;
}

/* ---- byte-level BPE ----------------------------------------------------------------------------------------------------- */

static setun_status write_byte_level(const setun_tokenizer *t, setun_gguf_writer *writer)
{
    const char *pre = t->pre;
    if (!pre)
        SETUN_TRY(known_pretokenizer_name(t, &pre));
    if (!pre)
        return no_word(t, "this pre-tokeniser and normaliser");
    for (int byte = 0; byte < 256; byte++)
        if (t->unknown >= 0 && t->characters[byte_to_character((uint8_t)byte)] < 0)
            return no_word(t, "byte-level BPE with an unknown token that can occur");
    SETUN_TRY(setun_gguf_add_string(writer, "tokenizer.ggml.model", "gpt2", 4));
    SETUN_TRY(setun_gguf_add_string(writer, "tokenizer.ggml.pre", pre, strlen(pre)));
    SETUN_TRY(write_tokens(t, NULL, writer));
    return write_merges(t, writer);
}

/* ---- SentencePiece -------------------------------------------------------------------------------------------------------- */

static setun_status write_sentencepiece(const setun_tokenizer *t, setun_gguf_writer *writer)
{
    const normalizer_step *step = &t->normalizers[0];
    bool unigram = t->model == MODEL_UNIGRAM;
    float *scores = setun_alloc((size_t)t->vocabulary.count * sizeof *scores);
    if (!scores)
        return setun_fail_memory((size_t)t->vocabulary.count * sizeof *scores);
    for (int32_t i = 0; i < t->vocabulary.count; i++)
        scores[i] = t->vocabulary.tokens[i].score;
    setun_status status = setun_gguf_add_string(writer, "tokenizer.ggml.model", unigram ? "t5" : "llama", unigram ? 2 : 5);
    if (status == SETUN_OK)
        status = setun_gguf_add_string(writer, "tokenizer.ggml.pre", "default", 7);
    if (status == SETUN_OK)
        status = write_tokens(t, scores, writer);
    setun_free(scores);
    SETUN_TRY(status);
    SETUN_TRY(setun_gguf_add_bool(writer, "tokenizer.ggml.add_space_prefix", step->add_prefix));
    SETUN_TRY(setun_gguf_add_bool(writer, "tokenizer.ggml.remove_extra_whitespaces", step->remove_extra));
    if (!step->map.unit_count)
        return SETUN_OK;
    setun_string bytes = {0};
    uint32_t trie_bytes = (uint32_t)(4 * step->map.unit_count);
    setun_string_append(&bytes, (const char *)&trie_bytes, 4);
    setun_string_append(&bytes, (const char *)step->map.units, trie_bytes);
    setun_string_append(&bytes, step->map.texts, step->map.texts_length);
    setun_value value = {.key = "tokenizer.ggml.precompiled_charsmap", .type = SETUN_VALUE_ARRAY, .element = SETUN_VALUE_U8, .count = bytes.length, .data = (const uint8_t *)bytes.data};
    status = bytes.failed ? setun_fail_memory(trie_bytes) : setun_gguf_copy_value(writer, &value);
    setun_string_clear(&bytes);
    return status;
}

static bool replaces_spaces(const normalizer_step *step)
{
    return step->kind == NORMALIZE_REPLACE && step->pattern_length == 1 && step->pattern[0] == ' ' && step->content_length == 3 && memcmp(step->content, "\xe2\x96\x81", 3) == 0;
}

/* Do these steps mean what SentencePiece does to spaces? *prefix: with a space in front of each section. */
static bool sentencepiece_steps(const setun_tokenizer *t, bool *prefix)
{
    const normalizer_step *steps = t->normalizers;
    const pretokenizer_step *cuts = t->pretokenizers;
    *prefix = false;
    if (t->normalizer_count == 0 && t->pretokenizer_count == 1 && cuts[0].kind == PRETOKENIZE_METASPACE && strcmp(cuts[0].pattern, "\xe2\x96\x81") == 0) {
        *prefix = cuts[0].scheme == PREPEND_ALWAYS;
        return cuts[0].scheme != PREPEND_FIRST;
    }
    /* A split at spaces cuts nothing: the normaliser has left none. */
    if (t->pretokenizer_count > 1 || (t->pretokenizer_count == 1 && !(cuts[0].kind == PRETOKENIZE_LITERAL && strcmp(cuts[0].pattern, " ") == 0)))
        return false;
    if (t->normalizer_count == 1)
        return replaces_spaces(&steps[0]);
    *prefix = t->normalizer_count == 2 && steps[0].kind == NORMALIZE_PREPEND && steps[0].content_length == 3 && memcmp(steps[0].content, "\xe2\x96\x81", 3) == 0;
    return *prefix && replaces_spaces(&steps[1]);
}

/* Ranked pairs say the same as scores when all merges that make one piece stand together, and every way to cut a piece
 * into two pieces is a merge. Then a piece's score is minus its place. */
static setun_status scores_from_merges(const setun_tokenizer *t, float *scores)
{
    const vocabulary *v = &t->vocabulary;
    merge_entry *merges = NULL;
    SETUN_TRY(merges_in_order(t, &merges));
    int32_t last = -1, place = 0;
    bool same = true;
    for (int32_t i = 0; i < v->count; i++)
        scores[i] = 1;
    for (int32_t i = 0; i < t->merges.count && same; i++) {
        if (merges[i].id == last)
            continue;
        same = scores[merges[i].id] > 0;
        last = merges[i].id;
        scores[last] = (float)-place++;
    }
    setun_free(merges);
    same = same && place < 1 << 24; /* floats count so far */
    for (int32_t id = 0; id < v->count && same; id++) {
        const char *text = token_text(v, id);
        size_t length = v->tokens[id].length;
        if (v->tokens[id].kind != TOKEN_NORMAL)
            continue;
        for (size_t cut = length ? utf8_size(text[0]) : 0; cut < length && same; cut += utf8_size(text[cut])) {
            int32_t left = vocabulary_find(v, text, cut), right = vocabulary_find(v, text + cut, length - cut);
            if (left >= 0 && right >= 0 && v->tokens[left].kind == TOKEN_NORMAL && v->tokens[right].kind == TOKEN_NORMAL)
                same = merge_find(&t->merges, left, right) != NULL;
        }
    }
    for (int32_t i = 0; i < v->count; i++)
        if (scores[i] > 0)
            scores[i] = (float)-place; /* made by no merge: characters, bytes, control tokens */
    return same ? SETUN_OK : no_word(t, "merges that are not SentencePiece's");
}

static setun_status write_ranked_sentencepiece(const setun_tokenizer *t, setun_gguf_writer *writer)
{
    bool prefix;
    if (!sentencepiece_steps(t, &prefix))
        return no_word(t, "this normaliser and pre-tokeniser");
    for (size_t i = 0; i < t->added.count; i++)
        if (prefix && !t->added.items[i].special)
            return no_word(t, "a space in front of the text behind an added token");
    if (t->ignore_merges || (!t->fuse_unknown && !t->byte_fallback))
        return no_word(t, "ignore_merges or unknowns that stay apart");
    float *scores = setun_alloc((size_t)t->vocabulary.count * sizeof *scores);
    if (!scores)
        return setun_fail_memory((size_t)t->vocabulary.count * sizeof *scores);
    setun_status status = scores_from_merges(t, scores);
    if (status == SETUN_OK)
        status = setun_gguf_add_string(writer, "tokenizer.ggml.model", "llama", 5);
    if (status == SETUN_OK)
        status = setun_gguf_add_string(writer, "tokenizer.ggml.pre", "default", 7);
    if (status == SETUN_OK)
        status = write_tokens(t, scores, writer);
    setun_free(scores);
    SETUN_TRY(status);
    return setun_gguf_add_bool(writer, "tokenizer.ggml.add_space_prefix", prefix);
}

/* ---- all -------------------------------------------------------------------------------------------------------------------- */

static setun_status check_added(const setun_tokenizer *t)
{
    for (size_t i = 0; i < t->added.count; i++) {
        const added_token *one = t->added.items + i;
        if (one->single_word || one->left_strip || one->right_strip)
            return no_word(t, "added tokens that take the spaces beside them or only match whole words");
        bool ascii = true;
        for (uint32_t j = 0; j < t->vocabulary.tokens[one->id].length; j++)
            ascii = ascii && (uint8_t)token_text(&t->vocabulary, one->id)[j] < 0x80;
        if (one->normalized && !ascii && t->normalizer_count)
            return no_word(t, "added tokens that are looked for in the normalised text");
    }
    return SETUN_OK;
}

static setun_status write_id(setun_gguf_writer *writer, const char *key, int32_t id)
{
    return id < 0 ? SETUN_OK : setun_gguf_add_u32(writer, key, (uint32_t)id);
}

setun_status setun_tokenizer_to_gguf(const setun_tokenizer *t, setun_gguf_writer *writer)
{
    SETUN_TRY(check_added(t));
    bool bos = t->prefix_count == 1 && t->prefix[0] == t->bos, eos = t->suffix_count == 1 && t->suffix[0] == t->eos;
    if ((t->prefix_count && !bos) || (t->suffix_count && !eos))
        return no_word(t, "other tokens around a text than its begin and end");
    if (t->sentencepiece_rules)
        SETUN_TRY(write_sentencepiece(t, writer));
    else if (t->model == MODEL_UNIGRAM)
        return no_word(t, "a unigram model with Hugging Face's normaliser");
    else if (t->byte_level)
        SETUN_TRY(write_byte_level(t, writer));
    else
        SETUN_TRY(write_ranked_sentencepiece(t, writer));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.bos_token_id", t->bos));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.eos_token_id", t->eos));
    int32_t other = t->eot;
    for (int32_t i = 0; i < t->vocabulary.count; i++) {
        if (!t->ends[i] || i == t->eos || i == other || tokenizer_is_known_end(t, i))
            continue;
        if (other >= 0)
            return no_word(t, "several unusual end tokens");
        other = i;
    }
    SETUN_TRY(write_id(writer, "tokenizer.ggml.eot_token_id", other));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.unknown_token_id", t->unknown_declared));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.padding_token_id", t->pad));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.seperator_token_id", t->separator));
    SETUN_TRY(write_id(writer, "tokenizer.ggml.mask_token_id", t->mask));
    SETUN_TRY(setun_gguf_add_bool(writer, "tokenizer.ggml.add_bos_token", bos));
    SETUN_TRY(setun_gguf_add_bool(writer, "tokenizer.ggml.add_eos_token", eos));
    return t->chat_text ? setun_gguf_add_string(writer, "tokenizer.chat_template", t->chat_text, t->chat_length) : SETUN_OK;
}
