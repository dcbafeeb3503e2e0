/*
 * normalizer.c - what a tokenizer does to a text before it splits it: normal forms, replacements, SentencePiece's own
 * rules with their compiled table of characters. Caller: encode.c, added.c. Knows nothing of tokens.
 */
#include "text/tokenizer.h"

void normalizer_clear(normalizer_step *step)
{
    setun_free(step->pattern);
    setun_free(step->content);
    text_regex_free(step->regex);
    setun_free(step->map.units);
    setun_free(step->map.texts);
    memset(step, 0, sizeof *step);
}

/* ---- the compiled table: u32 size of the trie in bytes, the trie (a double array of u32 units), 0-terminated texts ---- */

setun_status charsmap_load(const char *bytes, size_t length, const char *name, charsmap *out)
{
    memset(out, 0, sizeof *out);
    if (length == 0)
        return SETUN_OK;
    if (length < 4)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: precompiled_charsmap has %zu bytes, too few for its header", name, length);
    uint32_t trie_bytes = setun_load_u32(bytes);
    if (trie_bytes > length - 4 || trie_bytes % 4 != 0 || trie_bytes == 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: precompiled_charsmap says its trie has %u bytes of %zu", name, trie_bytes, length - 4);
    size_t texts_length = length - 4 - trie_bytes;
    if (!setun_utf8_valid(bytes + 4 + trie_bytes, texts_length))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: the texts of precompiled_charsmap are not valid UTF-8", name);
    out->units = setun_alloc(trie_bytes);
    out->texts = setun_alloc(texts_length + 1);
    if (!out->units || !out->texts) {
        setun_free(out->units);
        setun_free(out->texts);
        memset(out, 0, sizeof *out);
        return setun_fail_memory(length);
    }
    out->unit_count = trie_bytes / 4;
    for (size_t i = 0; i < out->unit_count; i++)
        out->units[i] = setun_load_u32(bytes + 4 + 4 * i);
    if (texts_length)
        memcpy(out->texts, bytes + 4 + trie_bytes, texts_length);
    out->texts[texts_length] = 0;
    out->texts_length = texts_length;
    return SETUN_OK;
}

/* A unit: bits 7-0 label (bit 31 set: a value and no label), bit 8: a leaf hangs below, bit 9: offset is << 8, 31-10: offset. */
static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* The text that replaces a prefix of text[0, length): the longest such prefix, or the shortest as Hugging Face's reader
 * takes it. Returns the prefix's length, 0 if there is none. */
static size_t charsmap_find(const charsmap *map, const char *text, size_t length, bool longest, const char **out, size_t *out_length)
{
    if (!map->unit_count)
        return 0;
    size_t position = unit_offset(map->units[0]), matched = 0;
    for (size_t i = 0; i < length && text[i]; i++) {
        uint8_t byte = (uint8_t)text[i];
        position ^= byte;
        if (position >= map->unit_count)
            break;
        uint32_t unit = map->units[position];
        if ((unit & (1u << 31 | 0xff)) != byte)
            break;
        position ^= unit_offset(unit);
        if (unit >> 8 & 1) {
            if (position >= map->unit_count)
                break;
            size_t value = map->units[position] & 0x7fffffff;
            /* An index into the middle of a character can only come from a corrupt table: no match. */
            if (value >= map->texts_length || ((uint8_t)map->texts[value] & 0xc0) == 0x80)
                continue;
            *out = map->texts + value;
            *out_length = strlen(*out);
            matched = i + 1;
            if (!longest)
                return matched;
        }
    }
    return matched;
}

typedef struct charsmap_work { const charsmap *map; const char *text; setun_string *out; } charsmap_work;

static setun_status charsmap_grapheme(void *user, size_t start, size_t end)
{
    charsmap_work *work = user;
    const char *replacement;
    size_t replacement_length;
    if (end - start < 6 && charsmap_find(work->map, work->text + start, end - start, false, &replacement, &replacement_length)) {
        setun_string_append(work->out, replacement, replacement_length);
        return SETUN_OK;
    }
    for (size_t i = start, size; i < end; i += size) {
        size = utf8_size(work->text[i]);
        if (charsmap_find(work->map, work->text + i, size, false, &replacement, &replacement_length))
            setun_string_append(work->out, replacement, replacement_length);
        else
            setun_string_append(work->out, work->text + i, size);
    }
    return work->out->length > TEXT_BUFFER_LIMIT ? setun_fail(SETUN_ERROR_UNSUPPORTED, "the normaliser makes the text longer than 1 GiB") : SETUN_OK;
}

/* ---- SentencePiece: table, spaces collapsed, a space in front, U+2581 for every space ------------------------------- */

static setun_status sentencepiece(const normalizer_step *step, const scratch *s, setun_string *out)
{
    const char *text = s->text.data ? s->text.data : "";
    size_t length = s->text.length, i = 0;
    const char *space = step->escape ? "\xe2\x96\x81" : " ";
    size_t space_length = step->escape ? 3 : 1;
    bool after_space = step->remove_extra && (s->section_begins || s->section_after_space);
    const char *part;
    size_t part_length, used;
    size_t begin = out->length;
    if (step->remove_extra && s->section_begins) {
        while (i < length) {
            used = charsmap_find(&step->map, text + i, length - i, true, &part, &part_length);
            if (!used) {
                part = text + i;
                used = part_length = utf8_size(text[i]);
            }
            if (part_length != 1 || part[0] != ' ')
                break;
            i += used;
        }
        if (i == length && length > 0)
            return SETUN_OK;
    }
    if (step->add_prefix && s->section_begins)
        setun_string_append(out, space, space_length);
    while (i < length) {
        used = charsmap_find(&step->map, text + i, length - i, true, &part, &part_length);
        if (!used) {
            part = text + i;
            used = part_length = utf8_size(text[i]);
        }
        i += used;
        while (after_space && part_length && part[0] == ' ') {
            part++;
            part_length--;
        }
        for (size_t j = 0; j < part_length; j++) {
            if (part[j] == ' ')
                setun_string_append(out, space, space_length);
            else
                setun_string_append(out, part + j, 1);
        }
        if (part_length)
            after_space = part[part_length - 1] == ' ';
        if (!step->remove_extra)
            after_space = false;
        if (out->length > TEXT_BUFFER_LIMIT)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "the normaliser makes the text longer than 1 GiB");
    }
    if (step->remove_extra && s->section_ends)
        while (!out->failed && out->length - begin >= space_length && memcmp(out->data + out->length - space_length, space, space_length) == 0)
            out->data[out->length -= space_length] = 0;
    return SETUN_OK;
}

/* ---- the rest ------------------------------------------------------------------------------------------------------ */

static void strip(const normalizer_step *step, const char *text, size_t length, setun_string *out)
{
    size_t start = 0, size;
    while (step->left && start < length && setun_is_space(utf8_decode(text + start, &size)))
        start += size;
    while (step->right && length > start) {
        size_t before = length - 1;
        while (before > start && ((uint8_t)text[before] & 0xc0) == 0x80)
            before--;
        if (!setun_is_space(utf8_decode(text + before, &size)))
            break;
        length = before;
    }
    setun_string_append(out, text + start, length - start);
}

static void strip_accents(const char *text, size_t length, setun_string *out)
{
    for (size_t i = 0, size; i < length; i += size)
        if (!setun_is_mark(utf8_decode(text + i, &size)))
            setun_string_append(out, text + i, size);
}

static setun_status replace(const normalizer_step *step, const char *text, size_t length, setun_string *out)
{
    size_t done = 0;
    while (step->pattern_length && length - done >= step->pattern_length) {
        const char *found = NULL;
        for (const char *at = text + done; (at = memchr(at, step->pattern[0], (size_t)(text + length - at))) != NULL; at++) {
            if ((size_t)(text + length - at) < step->pattern_length)
                break;
            if (memcmp(at, step->pattern, step->pattern_length) == 0) {
                found = at;
                break;
            }
        }
        if (!found)
            break;
        setun_string_append(out, text + done, (size_t)(found - text) - done);
        setun_string_append(out, step->content, step->content_length);
        done = (size_t)(found - text) + step->pattern_length;
        if (out->length > TEXT_BUFFER_LIMIT)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "the normaliser makes the text longer than 1 GiB");
    }
    setun_string_append(out, text + done, length - done);
    return SETUN_OK;
}

typedef struct replace_work { const normalizer_step *step; const char *text; size_t done; setun_string *out; } replace_work;

static setun_status replace_match(void *user, size_t start, size_t end)
{
    replace_work *work = user;
    setun_string_append(work->out, work->text + work->done, start - work->done);
    setun_string_append(work->out, work->step->content, work->step->content_length);
    work->done = end;
    return work->out->length > TEXT_BUFFER_LIMIT ? setun_fail(SETUN_ERROR_UNSUPPORTED, "the normaliser makes the text longer than 1 GiB") : SETUN_OK;
}

static setun_status run_step(const normalizer_step *step, scratch *s)
{
    const char *text = s->text.data ? s->text.data : "";
    size_t length = s->text.length;
    setun_string *out = &s->other;
    switch (step->kind) {
    case NORMALIZE_FORM:
        return setun_normal_form_append(step->form, text, length, out);
    case NORMALIZE_LOWERCASE:
        setun_lowercase_append(text, length, out);
        return SETUN_OK;
    case NORMALIZE_STRIP:
        strip(step, text, length, out);
        return SETUN_OK;
    case NORMALIZE_STRIP_ACCENTS:
        strip_accents(text, length, out);
        return SETUN_OK;
    case NORMALIZE_REPLACE:
        return replace(step, text, length, out);
    case NORMALIZE_REPLACE_REGEX: {
        replace_work work = {step, text, 0, out};
        SETUN_TRY(text_regex_each(step->regex, &s->match, text, length, replace_match, &work));
        setun_string_append(out, text + work.done, length - work.done);
        return SETUN_OK;
    }
    case NORMALIZE_PREPEND:
        if (length)
            setun_string_append(out, step->content, step->content_length);
        setun_string_append(out, text, length);
        return SETUN_OK;
    case NORMALIZE_CHARSMAP: {
        charsmap_work work = {&step->map, text, out};
        return text_regex_each(step->regex, &s->match, text, length, charsmap_grapheme, &work);
    }
    case NORMALIZE_BYTE_LEVEL:
        for (size_t i = 0; i < length; i++) {
            char bytes[4];
            setun_string_append(out, bytes, setun_utf8_put(byte_to_character((uint8_t)text[i]), bytes));
        }
        return SETUN_OK;
    case NORMALIZE_SENTENCEPIECE:
        return sentencepiece(step, s, out);
    }
    return SETUN_OK;
}

setun_status normalizer_run(const setun_tokenizer *t, scratch *s)
{
    for (int i = 0; i < t->normalizer_count; i++) {
        s->other.length = 0;
        SETUN_TRY(run_step(&t->normalizers[i], s));
        if (s->other.failed)
            return setun_fail_memory(s->text.length);
        if (s->other.length > TEXT_BUFFER_LIMIT)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "the normaliser makes the text longer than 1 GiB");
        setun_string swapped = s->text;
        s->text = s->other;
        s->other = swapped;
    }
    return SETUN_OK;
}
