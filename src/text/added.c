/*
 * added.c - added tokens: "<|im_end|>" and the like, cut out of the text before it is normalised or split.
 * The leftmost and then longest one wins. A special one that was not asked for still ends the search for others inside
 * it, as in Hugging Face's encode_special_tokens. Caller: encode.c. Knows nothing of the model behind.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "text/tokenizer.h"

setun_status added_build(setun_tokenizer *t)
{
    added_set *set = &t->added;
    for (size_t i = 0; i < set->count; i++) {
        const added_token *one = set->items + i;
        const char *text = token_text(&t->vocabulary, one->id);
        size_t length = t->vocabulary.tokens[one->id].length;
        if (length == 0)
            continue;
        if (length > 4096)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: added token %d is %zu bytes long; at most 4096 are taken", t->name, one->id, length);
        if (t->sentencepiece_rules && t->vocabulary.tokens[one->id].kind == TOKEN_USER && length >= 3 && memmem(text, length, "\xe2\x96\x81", 3)) {
            /* A piece with spaces can only be seen once spaces are U+2581. Unigram's lattice holds it anyway. */
            if (t->model != MODEL_UNIGRAM)
                SETUN_TRY(trie_add(&set->normalised, text, length, (int32_t)i));
            continue;
        }
        if (!one->normalized) {
            SETUN_TRY(trie_add(&set->raw, text, length, (int32_t)i));
            continue;
        }
        scratch s = {0};
        setun_string_append(&s.text, text, length);
        setun_status status = text_match_create(&s.match);
        if (status == SETUN_OK && s.text.failed)
            status = setun_fail_memory(length);
        if (status == SETUN_OK)
            status = normalizer_run(t, &s);
        /* A special token that the normaliser leaves alone is looked for in the text as it came, where it is still known
         * which bytes a user wrote. */
        bool same = status == SETUN_OK && s.text.length == length && memcmp(s.text.data, text, length) == 0;
        if (status == SETUN_OK && s.text.length)
            status = trie_add(same && one->special ? &set->raw : &set->normalised, s.text.data, s.text.length, (int32_t)i);
        text_match_clear(&s.match);
        setun_string_clear(&s.text);
        setun_string_clear(&s.other);
        SETUN_TRY(status);
    }
    for (int byte = 0; byte < 256; byte++) {
        set->first_raw[byte] = set->raw.nodes && trie_step(&set->raw, 0, (uint8_t)byte) != TRIE_NONE;
        set->first_normalised[byte] = set->normalised.nodes && trie_step(&set->normalised, 0, (uint8_t)byte) != TRIE_NONE;
    }
    return SETUN_OK;
}

static bool word_before(const char *text, size_t at)
{
    if (at == 0)
        return false;
    size_t start = at - 1, size;
    while (start > 0 && ((uint8_t)text[start] & 0xc0) == 0x80)
        start--;
    return setun_is_word(utf8_decode(text + start, &size));
}

static bool word_after(const char *text, size_t length, size_t at)
{
    size_t size;
    return at < length && setun_is_word(utf8_decode(text + at, &size));
}

setun_status added_cut(const setun_tokenizer *t, bool normalised, const char *text, size_t length, bool parse_special, const uint8_t *untrusted, added_fn fn, void *user)
{
    const trie *tokens = normalised ? &t->added.normalised : &t->added.raw;
    const bool *first = normalised ? t->added.first_normalised : t->added.first_raw;
    size_t done = 0; /* text before this was given to fn */
    for (size_t i = 0; tokens->nodes && i < length;) {
        if (!first[(uint8_t)text[i]]) {
            i++;
            continue;
        }
        int32_t best = -1;
        size_t end = i;
        uint32_t node = 0;
        for (size_t j = i; j < length; j++) {
            node = trie_step(tokens, node, (uint8_t)text[j]);
            if (node == TRIE_NONE)
                break;
            if (tokens->values[node] >= 0) {
                best = tokens->values[node];
                end = j + 1;
            }
        }
        if (best < 0) {
            i++;
            continue;
        }
        const added_token *one = t->added.items + best;
        size_t start = i;
        i = end;
        if (one->special && (!parse_special || (untrusted && memchr(untrusted + start, 1, end - start))))
            continue;
        if (one->single_word && (word_before(text, start) || word_after(text, length, end)))
            continue;
        if (one->left_strip) {
            while (start > done) {
                size_t before = start - 1, size;
                while (before > done && ((uint8_t)text[before] & 0xc0) == 0x80)
                    before--;
                if (!setun_is_space(utf8_decode(text + before, &size)))
                    break;
                start = before;
            }
        }
        if (one->right_strip) {
            size_t size;
            while (end < length && setun_is_space(utf8_decode(text + end, &size)))
                end += size;
        }
        if (start > done)
            SETUN_TRY(fn(user, -1, done, start));
        SETUN_TRY(fn(user, one->id, start, end));
        done = end;
        if (i < end)
            i = end;
    }
    return done < length ? fn(user, -1, done, length) : SETUN_OK;
}
