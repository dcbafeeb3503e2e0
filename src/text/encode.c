/*
 * encode.c - texts to ids and back: the public functions of a tokenizer, and the way a text takes through this room.
 * Text that is not valid UTF-8 is read as if each ill-formed part were U+FFFD (the rule of Unicode D93b, which is what
 * Python's errors="replace" does). Caller: the API, session, chat.c. Knows nothing of files.
 */
#include "text/tokenizer.h"

static setun_status encode_span_list(const setun_tokenizer *t, scratch *s)
{
    size_t count = s->spans.count;
    for (size_t i = 0; i < count; i++) {
        size_t start = s->spans.items[i].start, end = s->spans.items[i].end;
        switch (t->model) {
        case MODEL_BPE: SETUN_TRY(bpe_encode(t, s, start, end)); break;
        case MODEL_SENTENCEPIECE_BPE: SETUN_TRY(sentencepiece_bpe_encode(t, s, start, end)); break;
        case MODEL_UNIGRAM: SETUN_TRY(unigram_encode(t, s, start, end)); break;
        }
    }
    return SETUN_OK;
}

/* One section between added tokens, after the normaliser. */
typedef struct section_work { scratch *s; const char *text; size_t length; bool at_start; } section_work;

static setun_status normalised_section(void *user, int32_t id, size_t start, size_t end)
{
    section_work *work = user;
    scratch *s = work->s;
    if (id >= 0)
        return id_list_push(&s->ids, id);
    s->text.length = 0;
    setun_string_append(&s->text, work->text + start, end - start);
    if (s->text.failed)
        return setun_fail_memory(end - start);
    s->at_start = work->at_start && start == 0;
    SETUN_TRY(pretokenizer_run(s->tokenizer, s));
    return encode_span_list(s->tokenizer, s);
}

static setun_status ordinary_section(scratch *s, const char *text, size_t start, size_t end)
{
    s->text.length = 0;
    setun_string_append(&s->text, text + start, end - start);
    if (s->text.failed)
        return setun_fail_memory(end - start);
    const setun_tokenizer *t = s->tokenizer;
    SETUN_TRY(normalizer_run(t, s));
    s->at_start = start == 0;
    if (!t->added.normalised.nodes) {
        SETUN_TRY(pretokenizer_run(t, s));
        return encode_span_list(t, s);
    }
    /* The steps behind reuse s->text, so the normalised section moves out of their way. */
    setun_string section = s->text;
    memset(&s->text, 0, sizeof s->text);
    section_work work = {s, section.data ? section.data : "", section.length, start == 0};
    /* The normaliser has moved the bytes, so a user's byte anywhere in the section means none of its special tokens. */
    bool trusted = !s->untrusted || !memchr(s->untrusted + start, 1, end - start);
    setun_status status = added_cut(t, true, work.text, work.length, s->parse_special && trusted, NULL, normalised_section, &work);
    setun_string_clear(&section);
    return status;
}

typedef struct text_work { scratch *s; const char *text; size_t length; bool pending; size_t pending_start, pending_end; } text_work;

/* SentencePiece's rules ask what comes behind a section (spaces at its end), so each section waits for the next. */
static setun_status flush_section(text_work *work, bool ends)
{
    if (!work->pending)
        return SETUN_OK;
    work->pending = false;
    scratch *s = work->s;
    s->section_ends = ends;
    size_t before = s->ids.count;
    SETUN_TRY(ordinary_section(s, work->text, work->pending_start, work->pending_end));
    if (s->ids.count > before) /* spaces that were dropped do not count as the beginning */
        s->section_begins = false;
    return SETUN_OK;
}

static setun_status raw_section(void *user, int32_t id, size_t start, size_t end)
{
    text_work *work = user;
    scratch *s = work->s;
    const setun_tokenizer *t = s->tokenizer;
    if (id < 0) {
        work->pending = true;
        work->pending_start = start;
        work->pending_end = end;
        return SETUN_OK;
    }
    bool user_token = t->sentencepiece_rules && t->vocabulary.tokens[id].kind == TOKEN_USER;
    SETUN_TRY(flush_section(work, !user_token));
    if (user_token) {
        /* A user-defined piece is part of the text: the space in front of a text stands before it too. */
        if (s->section_begins && t->normalizer_count && t->normalizers[0].kind == NORMALIZE_SENTENCEPIECE && t->normalizers[0].add_prefix) {
            s->text.length = 0;
            setun_string_puts(&s->text, t->normalizers[0].escape ? "\xe2\x96\x81" : " ");
            if (s->text.failed)
                return setun_fail_memory(3);
            SETUN_TRY(pretokenizer_run(t, s));
            SETUN_TRY(encode_span_list(t, s));
        }
        s->section_begins = false;
        s->section_after_space = work->text[end - 1] == ' ';
    } else {
        s->section_begins = true;
        s->section_after_space = false;
    }
    return id_list_push(&s->ids, id);
}

static void scratch_clear(scratch *s)
{
    setun_string_clear(&s->text);
    setun_string_clear(&s->other);
    setun_free(s->spans.items);
    setun_free(s->other_spans.items);
    setun_free(s->matches.items);
    text_match_clear(&s->match);
    setun_free(s->symbols);
    setun_free(s->heap);
    setun_free(s->lattice);
    setun_free(s->ids.items);
}

static setun_status encode_valid(const setun_tokenizer *t, const char *text, size_t length, scratch *s)
{
    text_work work = {.s = s, .text = text, .length = length};
    s->section_begins = true;
    SETUN_TRY(added_cut(t, false, text, length, s->parse_special, s->untrusted, raw_section, &work));
    return flush_section(&work, true);
}

static setun_status encode_all(const setun_tokenizer *t, scratch *s, const char *text, size_t length, bool add_special, int32_t **out_ids, size_t *out_count)
{
    for (int i = 0; add_special && i < t->prefix_count; i++)
        SETUN_TRY(id_list_push(&s->ids, t->prefix[i]));
    if (length)
        SETUN_TRY(encode_valid(t, text, length, s));
    for (int i = 0; add_special && i < t->suffix_count; i++)
        SETUN_TRY(id_list_push(&s->ids, t->suffix[i]));
    if (!s->ids.items) { /* no ids are an array too */
        s->ids.items = setun_alloc(sizeof *s->ids.items);
        if (!s->ids.items)
            return setun_fail_memory(sizeof *s->ids.items);
    }
    *out_ids = s->ids.items;
    *out_count = s->ids.count;
    s->ids.items = NULL;
    return SETUN_OK;
}

setun_status setun_tokenizer_encode(const setun_tokenizer *t, const char *text, size_t length, int flags, int32_t **out_ids, size_t *out_count)
{
    if (out_ids)
        *out_ids = NULL;
    if (out_count)
        *out_count = 0;
    if (!t || (!text && length) || !out_ids || !out_count)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_encode: a NULL argument");
    if (flags & ~(SETUN_TOKENIZE_ADD_SPECIAL | SETUN_TOKENIZE_PARSE_SPECIAL))
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_encode: unknown flags 0x%x", (unsigned)flags);
    if (length > TEXT_INPUT_LIMIT)
        return setun_fail(SETUN_ERROR_ARGUMENT, "a text of %zu bytes; at most %zu are tokenised at once: cut it into parts", length, TEXT_INPUT_LIMIT);
    scratch s = {.tokenizer = t, .parse_special = flags & SETUN_TOKENIZE_PARSE_SPECIAL};
    setun_string repaired = {0};
    setun_status status = text_match_create(&s.match);
    if (status == SETUN_OK && length && !setun_utf8_valid(text, length)) {
        setun_utf8_repair(text, length, &repaired);
        if (repaired.failed)
            status = setun_fail_memory(length);
        text = repaired.data;
        length = repaired.length;
    }
    if (status == SETUN_OK)
        status = encode_all(t, &s, text, length, flags & SETUN_TOKENIZE_ADD_SPECIAL, out_ids, out_count);
    scratch_clear(&s);
    setun_string_clear(&repaired);
    return status;
}

setun_status tokenizer_encode_marked(const setun_tokenizer *t, const char *text, size_t length, const uint8_t *untrusted, int32_t **out_ids, size_t *out_count)
{
    scratch s = {.tokenizer = t, .parse_special = true, .untrusted = untrusted};
    setun_status status = text_match_create(&s.match);
    if (status == SETUN_OK)
        status = encode_all(t, &s, text, length, false, out_ids, out_count);
    scratch_clear(&s);
    return status;
}

/* ---- back ---------------------------------------------------------------------------------------------------------- */

static setun_status check_id(const setun_tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->vocabulary.count)
        return setun_fail(SETUN_ERROR_ARGUMENT, "token id %d is outside the vocabulary of %d tokens", id, t->vocabulary.count);
    return SETUN_OK;
}

static bool is_special(const setun_tokenizer *t, int32_t id)
{
    return t->vocabulary.tokens[id].kind == TOKEN_CONTROL || t->vocabulary.tokens[id].kind == TOKEN_UNKNOWN;
}

setun_status setun_tokenizer_decode(const setun_tokenizer *t, const int32_t *ids, size_t count, bool keep_special, char **out_text, size_t *out_length)
{
    if (out_text)
        *out_text = NULL;
    if (out_length)
        *out_length = 0;
    if (!t || (!ids && count) || !out_text)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_decode: a NULL argument");
    setun_string text = {0};
    bool first = true;
    for (size_t i = 0; i < count; i++) {
        setun_status status = check_id(t, ids[i]);
        if (status != SETUN_OK) {
            setun_string_clear(&text);
            return status;
        }
        if (is_special(t, ids[i]) && !keep_special)
            continue;
        const token *one = t->vocabulary.tokens + ids[i];
        const char *piece = token_piece(&t->vocabulary, ids[i]);
        size_t length = one->piece_length;
        if (first && t->decode_strip_first && one->kind == TOKEN_NORMAL) {
            for (size_t j = 0; j < length; j++)
                if (piece[j] != ' ')
                    setun_string_append(&text, piece + j, 1);
        } else if (first && t->decode_strip_space && length && piece[0] == ' ') {
            setun_string_append(&text, piece + 1, length - 1);
        } else {
            setun_string_append(&text, piece, length);
        }
        first = first && t->decode_strip_space && !t->decode_strip_first && length == 0;
    }
    return setun_string_take(&text, out_text, out_length);
}

setun_status setun_tokenizer_piece(const setun_tokenizer *t, int32_t id, const char **out_bytes, size_t *out_length, bool *out_special)
{
    if (out_bytes)
        *out_bytes = NULL;
    if (out_length)
        *out_length = 0;
    if (out_special)
        *out_special = false;
    if (!t || !out_bytes || !out_length)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_piece: a NULL argument");
    SETUN_TRY(check_id(t, id));
    *out_bytes = token_piece(&t->vocabulary, id);
    *out_length = t->vocabulary.tokens[id].piece_length;
    if (out_special)
        *out_special = is_special(t, id);
    return SETUN_OK;
}

/* ---- facts --------------------------------------------------------------------------------------------------------- */

int setun_tokenizer_vocabulary(const setun_tokenizer *t)
{
    return t ? t->vocabulary.count : 0;
}

int32_t setun_tokenizer_bos(const setun_tokenizer *t)
{
    return t ? t->bos : -1;
}

int32_t setun_tokenizer_eos(const setun_tokenizer *t)
{
    return t ? t->eos : -1;
}

bool setun_tokenizer_is_end(const setun_tokenizer *t, int32_t id)
{
    return t && id >= 0 && id < t->vocabulary.count && t->ends[id];
}
