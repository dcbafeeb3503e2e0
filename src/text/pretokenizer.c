/*
 * pretokenizer.c - cuts a text into spans inside which the model works: regular expressions, literal splits, the byte
 * alphabet, Metaspace. Steps run in order, each on every span alone, as Hugging Face's Sequence does.
 * Caller: encode.c, the readers. Knows nothing of tokens.
 */
#include "text/tokenizer.h"

/* GPT-2's expression, which ByteLevel with use_regex means. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char digits_pattern[] = "\\p{N}";
static const char punctuation_pattern[] = "[\\p{P}$+<=>^`|~]";

void pretokenizer_clear(pretokenizer_step *step)
{
    setun_free(step->pattern);
    text_regex_free(step->regex);
    memset(step, 0, sizeof *step);
}

/* ---- the byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order ---------- */

static bool prints_as_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

uint32_t byte_to_character(uint8_t byte)
{
    if (prints_as_itself(byte))
        return byte;
    return byte <= 0x20 ? 0x100u + byte : byte <= 0xa0 ? 0x100u + 0x21 + (byte - 0x7fu) : 0x143;
}

int character_to_byte(uint32_t c)
{
    if (c < 0x100)
        return prints_as_itself(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

/* ---- building ------------------------------------------------------------------------------------------------------ */

static setun_status new_step(setun_tokenizer *t, pretokenizer_kind kind, const char *pattern, size_t length, pretokenizer_step **out)
{
    if (t->pretokenizer_count == TEXT_STEPS_MAX)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the pre-tokeniser has more than %d steps", t->name, TEXT_STEPS_MAX);
    pretokenizer_step *step = &t->pretokenizers[t->pretokenizer_count];
    memset(step, 0, sizeof *step);
    step->kind = kind;
    if (pattern) {
        step->pattern = setun_strndup(pattern, length);
        if (!step->pattern)
            return setun_fail_memory(length);
        step->pattern_length = length;
    }
    t->pretokenizer_count++;
    *out = step;
    return SETUN_OK;
}

setun_status pretokenizer_add_split(setun_tokenizer *t, const char *pattern, size_t length, split_behavior behavior, bool invert)
{
    pretokenizer_step *step = NULL;
    SETUN_TRY(new_step(t, PRETOKENIZE_SPLIT, pattern, length, &step));
    step->behavior = behavior;
    step->invert = invert;
    return text_regex_compile(pattern, length, t->name, &step->regex);
}

setun_status pretokenizer_add_literal(setun_tokenizer *t, const char *text, size_t length, split_behavior behavior, bool invert)
{
    pretokenizer_step *step = NULL;
    SETUN_TRY(new_step(t, PRETOKENIZE_LITERAL, text, length, &step));
    step->behavior = behavior;
    step->invert = invert;
    return SETUN_OK;
}

setun_status pretokenizer_add_byte_level(setun_tokenizer *t, bool prefix_space, bool use_regex)
{
    pretokenizer_step *step = NULL;
    if (prefix_space)
        SETUN_TRY(new_step(t, PRETOKENIZE_PREFIX_SPACE, NULL, 0, &step));
    if (use_regex)
        SETUN_TRY(pretokenizer_add_split(t, gpt2_pattern, sizeof gpt2_pattern - 1, SPLIT_ISOLATED, false));
    return new_step(t, PRETOKENIZE_BYTE_LEVEL, NULL, 0, &step);
}

setun_status pretokenizer_add_metaspace(setun_tokenizer *t, const char *replacement, size_t length, prepend_scheme scheme, bool split)
{
    pretokenizer_step *step = NULL;
    SETUN_TRY(new_step(t, PRETOKENIZE_METASPACE, replacement, length, &step));
    step->scheme = scheme;
    if (!split)
        return SETUN_OK;
    return pretokenizer_add_literal(t, replacement, length, SPLIT_MERGED_WITH_NEXT, false);
}

setun_status pretokenizer_add_digits(setun_tokenizer *t, bool individual)
{
    return pretokenizer_add_split(t, digits_pattern, sizeof digits_pattern - 1, individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false);
}

setun_status pretokenizer_add_punctuation(setun_tokenizer *t, split_behavior behavior)
{
    return pretokenizer_add_split(t, punctuation_pattern, sizeof punctuation_pattern - 1, behavior, false);
}

pretokenizer_pattern pretokenizer_known_pattern(const pretokenizer_step *step)
{
    if (step->kind != PRETOKENIZE_SPLIT)
        return PATTERN_OTHER;
    return strcmp(step->pattern, gpt2_pattern) == 0 ? PATTERN_GPT2 : strcmp(step->pattern, digits_pattern) == 0 ? PATTERN_DIGITS
        : strcmp(step->pattern, punctuation_pattern) == 0 ? PATTERN_PUNCTUATION : PATTERN_OTHER;
}

/* ---- splitting ----------------------------------------------------------------------------------------------------- */

/* Matches are gathered as spans; the high bit of start marks what the expression matched. */
#define MATCHED 0x80000000u

typedef struct split_work { span_list *list; size_t base, done; bool invert; } split_work;

static setun_status add_match(void *user, size_t start, size_t end)
{
    split_work *work = user;
    if (start > work->done)
        SETUN_TRY(span_list_push(work->list, (work->base + work->done) | (work->invert ? MATCHED : 0), work->base + start));
    work->done = end;
    return span_list_push(work->list, (work->base + start) | (work->invert ? 0 : MATCHED), work->base + end);
}

static setun_status find_literal(const pretokenizer_step *step, const char *text, size_t length, split_work *work)
{
    size_t from = 0;
    while (step->pattern_length && length - from >= step->pattern_length) {
        const char *at = memchr(text + from, step->pattern[0], length - from);
        if (!at || (size_t)(text + length - at) < step->pattern_length)
            break;
        size_t start = (size_t)(at - text);
        if (memcmp(at, step->pattern, step->pattern_length) != 0) {
            from = start + 1;
            continue;
        }
        from = start + step->pattern_length;
        SETUN_TRY(add_match(work, start, from));
    }
    return SETUN_OK;
}

/* What becomes of matches and of the text between them. */
static setun_status apply_behavior(split_behavior behavior, text_span *matches, size_t count, span_list *out)
{
    bool previous = false;
    if (behavior == SPLIT_MERGED_WITH_NEXT) {
        /* A match joins the piece behind it; seen from the end, so that of several matches in a row the last one joins
         * and the others stand alone. Written from the back into place, then given out in order. */
        size_t write = count;
        for (size_t i = count; i-- > 0;) {
            bool is_match = matches[i].start & MATCHED;
            text_span one = {matches[i].start & ~MATCHED, matches[i].end};
            if (is_match && !previous && write < count)
                matches[write].start = one.start;
            else
                matches[--write] = one;
            previous = is_match;
        }
        for (size_t i = write; i < count; i++)
            if (matches[i].end > matches[i].start)
                SETUN_TRY(span_list_push(out, matches[i].start, matches[i].end));
        return SETUN_OK;
    }
    size_t first = out->count;
    for (size_t i = 0; i < count; i++) {
        bool is_match = matches[i].start & MATCHED;
        size_t start = matches[i].start & ~MATCHED, end = matches[i].end;
        bool join = false;
        if (behavior == SPLIT_REMOVED && is_match)
            continue;
        if (behavior == SPLIT_MERGED_WITH_PREVIOUS)
            join = is_match && !previous;
        else if (behavior == SPLIT_CONTIGUOUS)
            join = is_match == previous;
        if (join && out->count > first)
            out->items[out->count - 1].end = (uint32_t)end;
        else if (end > start)
            SETUN_TRY(span_list_push(out, start, end));
        previous = is_match;
    }
    return SETUN_OK;
}

static setun_status split(const pretokenizer_step *step, scratch *s)
{
    for (size_t i = 0; i < s->spans.count; i++) {
        size_t start = s->spans.items[i].start, length = s->spans.items[i].end - start;
        const char *text = s->text.data + start;
        split_work work = {&s->matches, start, 0, step->invert};
        s->matches.count = 0;
        if (step->kind == PRETOKENIZE_LITERAL)
            SETUN_TRY(find_literal(step, text, length, &work));
        else
            SETUN_TRY(text_regex_each(step->regex, &s->match, text, length, add_match, &work));
        if (work.done < length)
            SETUN_TRY(span_list_push(&s->matches, (start + work.done) | (step->invert ? MATCHED : 0), start + length));
        SETUN_TRY(apply_behavior(step->behavior, s->matches.items, s->matches.count, &s->other_spans));
    }
    return SETUN_OK;
}

/* ---- steps that rewrite the text: each span is written anew into s->other ------------------------------------------ */

static setun_status rewrite(const pretokenizer_step *step, scratch *s)
{
    setun_string *out = &s->other;
    out->length = 0;
    for (size_t i = 0; i < s->spans.count; i++) {
        const char *text = s->text.data + s->spans.items[i].start;
        size_t length = s->spans.items[i].end - s->spans.items[i].start, begin = out->length;
        switch (step->kind) {
        case PRETOKENIZE_PREFIX_SPACE:
            if (text[0] != ' ')
                setun_string_append(out, " ", 1);
            setun_string_append(out, text, length);
            break;
        case PRETOKENIZE_BYTE_LEVEL:
            for (size_t j = 0; j < length; j++) {
                char bytes[4];
                uint8_t byte = (uint8_t)text[j];
                if (prints_as_itself(byte) && byte < 0x80)
                    setun_string_append(out, text + j, 1);
                else
                    setun_string_append(out, bytes, setun_utf8_put(byte_to_character(byte), bytes));
            }
            break;
        default: { /* METASPACE */
            bool prefixed = text[0] == ' ' || (length >= step->pattern_length && memcmp(text, step->pattern, step->pattern_length) == 0);
            if (!prefixed && (step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && s->at_start && i == 0 && s->spans.items[0].start == 0)))
                setun_string_append(out, step->pattern, step->pattern_length);
            for (size_t j = 0; j < length; j++) {
                if (text[j] == ' ')
                    setun_string_append(out, step->pattern, step->pattern_length);
                else
                    setun_string_append(out, text + j, 1);
            }
        }
        }
        if (out->failed)
            return setun_fail_memory(out->length);
        if (out->length > TEXT_BUFFER_LIMIT)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "the pre-tokeniser makes the text longer than 1 GiB");
        SETUN_TRY(span_list_push(&s->other_spans, begin, out->length));
    }
    setun_string swapped = s->text;
    s->text = s->other;
    s->other = swapped;
    return SETUN_OK;
}

setun_status pretokenizer_run(const setun_tokenizer *t, scratch *s)
{
    s->spans.count = 0;
    if (s->text.length == 0)
        return SETUN_OK;
    SETUN_TRY(span_list_push(&s->spans, 0, s->text.length));
    for (int i = 0; i < t->pretokenizer_count; i++) {
        const pretokenizer_step *step = &t->pretokenizers[i];
        s->other_spans.count = 0;
        SETUN_TRY(step->kind == PRETOKENIZE_SPLIT || step->kind == PRETOKENIZE_LITERAL ? split(step, s) : rewrite(step, s));
        span_list swapped = s->spans;
        s->spans = s->other_spans;
        s->other_spans = swapped;
    }
    return SETUN_OK;
}
