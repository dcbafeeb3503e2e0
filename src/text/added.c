/*
 * added.c - added tokens: "<|im_end|>" and the like, cut out of the text before it is normalised or split.
 * The leftmost and then longest one wins. A special one that was not asked for still ends the search for others inside
 * it, as in Hugging Face's encode_special_tokens. Caller: encode.c. Knows nothing of the model behind.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "text/tokenizer.h"

/*
 * A vocabulary whose tokens are nearly all added ones has a trie of hundreds of thousands of nodes, which takes longer to make than all else. The
 * vocabulary's own hash finds them too, by trying their lengths: where these are few, and every token is looked for in the text as it came.
 */
enum { LENGTHS_FROM = 4096, LENGTHS_SUM_MOST = 1024 };

static setun_status build_lengths(setun_tokenizer *t)
{
    added_set *set = &t->added;
    bool there[LENGTHS_SUM_MOST + 1] = {false};
    if (set->count < LENGTHS_FROM || t->sentencepiece_rules)
        return SETUN_OK;
    for (size_t i = 0; i < set->count; i++) {
        const added_token *one = set->items + i;
        const uint32_t length = t->vocabulary.tokens[one->id].length;
        if (one->normalized || length < 1 || length > LENGTHS_SUM_MOST || (i > 0 && one->id <= set->items[i - 1].id))
            return SETUN_OK;
        there[length] = true;
    }
    int sum = 0, count = 0;
    for (int length = 1; length <= LENGTHS_SUM_MOST; length++) {
        count += there[length];
        sum += there[length] ? length : 0;
    }
    if (sum > LENGTHS_SUM_MOST)
        return SETUN_OK;
    set->lengths = setun_alloc((size_t)count * sizeof *set->lengths);
    if (!set->lengths)
        return setun_fail_memory((size_t)count * sizeof *set->lengths);
    for (int length = LENGTHS_SUM_MOST; length > 0; length--)
        if (there[length])
            set->lengths[set->length_count++] = (uint16_t)length;
    for (size_t i = 0; i < set->count; i++)
        set->first_raw[(uint8_t)token_text(&t->vocabulary, set->items[i].id)[0]] = true;
    return SETUN_OK;
}

/* The item with this id, or -1; items are in rising order of ids. */
static int32_t item_of(const added_set *set, int32_t id)
{
    size_t low = 0, high = set->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (set->items[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < set->count && set->items[low].id == id ? (int32_t)low : -1;
}

/* The longest added token that begins the text: its item and length, or -1. */
static int32_t longest_here(const setun_tokenizer *t, bool normalised, const char *text, size_t length, size_t *out_length)
{
    const added_set *set = &t->added;
    int32_t best = -1;
    if (!normalised && set->lengths) {
        for (int i = 0; i < set->length_count && best < 0; i++)
            if (set->lengths[i] <= length) {
                best = item_of(set, vocabulary_find(&t->vocabulary, text, set->lengths[i]));
                *out_length = set->lengths[i];
            }
        return best;
    }
    const trie *tokens = normalised ? &set->normalised : &set->raw;
    uint32_t node = 0;
    for (size_t j = 0; j < length; j++) {
        node = trie_step(tokens, node, (uint8_t)text[j]);
        if (node == TRIE_NONE)
            break;
        if (tokens->values[node] >= 0) {
            best = tokens->values[node];
            *out_length = j + 1;
        }
    }
    return best;
}

setun_status added_build(setun_tokenizer *t)
{
    added_set *set = &t->added;
    SETUN_TRY(build_lengths(t));
    for (size_t i = 0; i < set->count && !set->lengths; i++) {
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
        if (!set->lengths)
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
    const bool *first = normalised ? t->added.first_normalised : t->added.first_raw;
    size_t done = 0; /* text before this was given to fn */
    for (size_t i = 0; i < length;) {
        if (!first[(uint8_t)text[i]]) {
            i++;
            continue;
        }
        size_t found = 0;
        int32_t best = longest_here(t, normalised, text + i, length - i, &found);
        if (best < 0) {
            i++;
            continue;
        }
        const added_token *one = t->added.items + best;
        size_t start = i, end = i + found;
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
