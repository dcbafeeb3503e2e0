/*
 * vocabulary.c - tokens by id and by text, the merge table, what each token stands for. Refuses holes, duplicates and
 * ids out of range by name. Caller: the readers (from_gguf.c, from_json.c). Knows nothing of file formats.
 */
#include "text/tokenizer.h"
#include <stdlib.h>

setun_status tokenizer_create(const char *name, setun_tokenizer **out)
{
    *out = NULL;
    setun_tokenizer *t = setun_calloc(1, sizeof *t);
    if (!t)
        return setun_fail_memory(sizeof *t);
    t->name = setun_strdup(name ? name : "tokenizer");
    if (!t->name) {
        setun_free(t);
        return setun_fail_memory(0);
    }
    t->unknown = t->unknown_declared = t->bos = t->eos = t->eot = t->pad = t->separator = t->mask = -1;
    for (int i = 0; i < 256; i++)
        t->byte_ids[i] = -1;
    *out = t;
    return SETUN_OK;
}

void setun_tokenizer_destroy(setun_tokenizer *t)
{
    if (!t)
        return;
    setun_free(t->vocabulary.tokens);
    setun_free(t->vocabulary.slots);
    setun_string_clear(&t->vocabulary.texts);
    setun_free(t->added.items);
    setun_free(t->added.lengths);
    trie_clear(&t->added.raw);
    trie_clear(&t->added.normalised);
    for (int i = 0; i < t->normalizer_count; i++)
        normalizer_clear(&t->normalizers[i]);
    for (int i = 0; i < t->pretokenizer_count; i++)
        pretokenizer_clear(&t->pretokenizers[i]);
    setun_free(t->merges.entries);
    setun_free(t->characters);
    trie_clear(&t->pieces);
    setun_free(t->scores);
    setun_free(t->ends);
    chat_clear(t);
    setun_free(t->name);
    setun_free(t);
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_text(const vocabulary *v, const char *text, size_t length)
{
    uint64_t h = v->seed ^ length, key = v->seed | 1;
    while (length >= 8) {
        h = mix(h ^ setun_load_u64(text), key);
        text += 8;
        length -= 8;
    }
    uint64_t tail = 0;
    memcpy(&tail, text, length);
    return mix(mix(h ^ tail, key), 0xd6e8feb86659fd93u);
}

static bool is_text_of(const vocabulary *v, int32_t id, const char *text, size_t length)
{
    return v->tokens[id].length == length && memcmp(token_text(v, id), text, length) == 0;
}

/* The slot with this text, or the empty one where it would go. Other texts are told by their hashes: they are not looked at. */
static uint32_t slot_of(const vocabulary *v, const char *text, size_t length, uint64_t hash)
{
    uint32_t mask = v->slot_count - 1, i = (uint32_t)hash & mask;
    while (v->slots[i] && !(v->slots[i] >> 32 == hash >> 32 && is_text_of(v, (int32_t)(uint32_t)v->slots[i] - 1, text, length)))
        i = (i + 1) & mask;
    return i;
}

int32_t vocabulary_find(const vocabulary *v, const char *text, size_t length)
{
    if (length > v->longest || !v->slot_count)
        return -1;
    return (int32_t)(uint32_t)v->slots[slot_of(v, text, length, hash_text(v, text, length))] - 1;
}

int32_t tokenizer_find(const setun_tokenizer *t, const char *text)
{
    return vocabulary_find(&t->vocabulary, text, strlen(text));
}

setun_status vocabulary_begin(setun_tokenizer *t, uint64_t count)
{
    if (count == 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: the vocabulary is empty", t->name);
    if (count > VOCABULARY_LIMIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: a vocabulary of %llu tokens; at most %d are taken", t->name, (unsigned long long)count, VOCABULARY_LIMIT);
    vocabulary *v = &t->vocabulary;
    v->tokens = setun_calloc((size_t)count, sizeof *v->tokens);
    if (!v->tokens)
        return setun_fail_memory((size_t)count * sizeof *v->tokens);
    v->count = (int32_t)count;
    uint32_t slots = 16;
    while (slots < 2 * (uint32_t)count)
        slots *= 2;
    v->slots = setun_calloc(slots, sizeof *v->slots);
    if (!v->slots)
        return setun_fail_memory(slots * sizeof *v->slots);
    v->slot_count = slots;
    double now = setun_seconds();
    memcpy(&v->seed, &now, sizeof now);
    v->seed = mix(v->seed ^ (uint64_t)(uintptr_t)v->slots, 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)&now);
    return SETUN_OK;
}

setun_status vocabulary_add(setun_tokenizer *t, uint64_t id, const char *text, size_t length, token_kind kind, float score)
{
    vocabulary *v = &t->vocabulary;
    int shown = length > 80 ? 80 : (int)length;
    if (id >= (uint64_t)v->count)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: token '%.*s' has id %llu, but the vocabulary has %d tokens, so a smaller id is missing", t->name, shown, text,
            (unsigned long long)id, v->count);
    token *one = v->tokens + id;
    if (one->kind != TOKEN_NONE)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: two tokens have id %llu: '%.*s' and '%.*s'", t->name, (unsigned long long)id,
            one->length > 80 ? 80 : (int)one->length, token_text(v, (int32_t)id), shown, text);
    if (v->texts.length + length > INT32_MAX)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the vocabulary's texts are longer than 2 GiB in all", t->name);
    uint64_t hash = hash_text(v, text, length);
    uint32_t slot = slot_of(v, text, length, hash);
    if (v->slots[slot])
        return setun_fail(SETUN_ERROR_FORMAT, "%s: token '%.*s' occurs twice in the vocabulary, as id %d and id %llu", t->name, shown, text,
            (int)(uint32_t)v->slots[slot] - 1, (unsigned long long)id);
    size_t offset = v->texts.length;
    setun_string_append(&v->texts, text, length);
    if (v->texts.failed)
        return setun_fail_memory(length);
    *one = (token){.text = (uint32_t)offset, .length = (uint32_t)length, .kind = (uint8_t)kind, .score = score, .rank = -1};
    v->slots[slot] = hash >> 32 << 32 | ((uint32_t)id + 1);
    if (length > v->longest)
        v->longest = (uint32_t)length;
    return SETUN_OK;
}

static int hexadecimal(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0x41>" -> 0x41, else -1. */
static int byte_of(const char *text, size_t length)
{
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int high = hexadecimal(text[3]), low = hexadecimal(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* What a token's text stands for, in at most as many bytes. False: not spelled in the byte alphabet. */
static bool make_piece(const setun_tokenizer *t, const char *text, size_t length, char *out, size_t *out_length)
{
    size_t n = 0;
    for (size_t i = 0, size; i < length; i += size) {
        size = 1;
        if (!t->byte_level) {
            bool space = length - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
            out[n++] = space ? ' ' : text[i];
            size = space ? 3 : 1;
            continue;
        }
        int byte = text[i] > ' ' && text[i] < 0x7f ? text[i] : character_to_byte(utf8_decode(text + i, &size)); /* most are these, as themselves */
        if (byte < 0)
            return false;
        out[n++] = (char)byte;
    }
    *out_length = n;
    return true;
}

/* Appends a token's piece to the texts, where it is another than its text. */
static setun_status add_piece(setun_tokenizer *t, token *one)
{
    vocabulary *v = &t->vocabulary;
    char small[256], *piece = one->length <= sizeof small ? small : setun_alloc(one->length);
    size_t length;
    if (!piece)
        return setun_fail_memory(one->length);
    const char *text = v->texts.data + one->text;
    setun_status status = SETUN_OK;
    if ((t->byte_level || t->decode_spaces) && make_piece(t, text, one->length, piece, &length) && (length != one->length || memcmp(piece, text, length) != 0)) {
        one->piece = (uint32_t)v->texts.length;
        one->piece_length = (uint32_t)length;
        if (v->texts.length + length > INT32_MAX)
            status = setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the vocabulary's texts are longer than 2 GiB in all", t->name);
        else
            setun_string_append(&v->texts, piece, length);
    }
    if (piece != small)
        setun_free(piece);
    return status;
}

setun_status vocabulary_finish(setun_tokenizer *t)
{
    vocabulary *v = &t->vocabulary;
    for (int32_t id = 0; id < v->count; id++) {
        token *one = v->tokens + id;
        const char *text = token_text(v, id);
        if (one->kind == TOKEN_NONE)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: the vocabulary has a hole: no token has id %d of %d", t->name, id, v->count);
        if (!setun_utf8_valid(text, one->length))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: the text of token %d is not valid UTF-8", t->name, id);
        int byte = byte_of(text, one->length);
        if (byte >= 0 && (one->kind == TOKEN_BYTE || (t->decode_bytes && one->kind == TOKEN_NORMAL))) {
            t->byte_ids[byte] = id;
            one->kind = TOKEN_BYTE;
        } else if (one->kind == TOKEN_BYTE) {
            return setun_fail(SETUN_ERROR_FORMAT, "%s: token %d '%.*s' is marked as a byte but is not spelled <0x00> to <0xFF>", t->name, id, one->length > 80 ? 80 : (int)one->length, text);
        }
        one->piece = one->text;
        one->piece_length = one->length;
        if (one->kind == TOKEN_BYTE) {
            char c = (char)byte;
            one->piece = (uint32_t)v->texts.length;
            one->piece_length = 1;
            setun_string_append(&v->texts, &c, 1);
        } else if (one->kind == TOKEN_NORMAL || one->kind == TOKEN_UNUSED || (one->kind == TOKEN_USER && t->sentencepiece_rules)) {
            /* Added tokens are spelled as themselves: only the model's own tokens use the alphabet or U+2581. */
            SETUN_TRY(add_piece(t, one));
        }
        if (v->texts.failed)
            return setun_fail_memory(v->texts.length);
    }
    t->ends = setun_calloc((size_t)v->count, sizeof *t->ends);
    if (!t->ends)
        return setun_fail_memory((size_t)v->count);
    t->characters = setun_alloc(0x250 * sizeof *t->characters);
    if (!t->characters)
        return setun_fail_memory(0x250 * sizeof *t->characters);
    for (uint32_t c = 0; c < 0x250; c++) {
        char bytes[4];
        t->characters[c] = vocabulary_find(v, bytes, setun_utf8_put(c, bytes));
    }
    return SETUN_OK;
}

typedef struct scored { float score; int32_t id; } scored;

static int by_score(const void *a, const void *b)
{
    float x = ((const scored *)a)->score, y = ((const scored *)b)->score;
    return x > y ? -1 : x < y;
}

setun_status tokenizer_rank_scores(setun_tokenizer *t)
{
    vocabulary *v = &t->vocabulary;
    scored *order = setun_alloc((size_t)v->count * sizeof *order);
    if (!order)
        return setun_fail_memory((size_t)v->count * sizeof *order);
    for (int32_t i = 0; i < v->count; i++)
        order[i] = (scored){v->tokens[i].score, i};
    qsort(order, (size_t)v->count, sizeof *order, by_score);
    for (int32_t i = 0, rank = 0; i < v->count; i++) {
        if (i > 0 && order[i].score != order[i - 1].score)
            rank = i;
        v->tokens[order[i].id].rank = rank;
    }
    setun_free(order);
    return SETUN_OK;
}

/* ---- merges ------------------------------------------------------------------------------------------------------ */

setun_status merges_begin(setun_tokenizer *t, uint64_t count)
{
    if (count > VOCABULARY_LIMIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: %llu merges; at most %d are taken", t->name, (unsigned long long)count, VOCABULARY_LIMIT);
    merge_table *m = &t->merges;
    uint64_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    m->entries = setun_alloc((size_t)slots * sizeof *m->entries);
    if (!m->entries)
        return setun_fail_memory((size_t)slots * sizeof *m->entries);
    m->slots = slots;
    for (uint64_t i = 0; i < slots; i++)
        m->entries[i].rank = -1;
    return SETUN_OK;
}

setun_status merges_add(setun_tokenizer *t, int32_t rank, const char *left, size_t left_length, const char *right, size_t right_length)
{
    const vocabulary *v = &t->vocabulary;
    merge_table *m = &t->merges;
    int shown_left = left_length > 60 ? 60 : (int)left_length, shown_right = right_length > 60 ? 60 : (int)right_length;
    int32_t a = vocabulary_find(v, left, left_length), b = vocabulary_find(v, right, right_length), id = -1;
    if (a < 0 || b < 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: merge %d names '%.*s', which is not in the vocabulary", t->name, rank, a < 0 ? shown_left : shown_right, a < 0 ? left : right);
    /* Merges come in the order of what they make, most of them: the last one's token, or the next. */
    for (int32_t guess = m->guess; guess <= m->guess + 1 && guess < v->count && id < 0; guess++)
        if (v->tokens[guess].length == left_length + right_length && memcmp(token_text(v, guess), left, left_length) == 0 && memcmp(token_text(v, guess) + left_length, right, right_length) == 0)
            id = guess;
    if (id < 0 && left_length + right_length <= v->longest) {
        char small[256], *both = left_length + right_length <= sizeof small ? small : setun_alloc(left_length + right_length);
        if (!both)
            return setun_fail_memory(left_length + right_length);
        memcpy(both, left, left_length);
        memcpy(both + left_length, right, right_length);
        id = vocabulary_find(v, both, left_length + right_length);
        if (both != small)
            setun_free(both);
    }
    if (id < 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: merge %d makes '%.*s%.*s', which is not in the vocabulary", t->name, rank, shown_left, left, shown_right, right);
    m->guess = id;
    uint64_t pair = (uint64_t)(uint32_t)a << 32 | (uint32_t)b, hash = pair * 0x9e3779b97f4a7c15u;
    for (uint64_t i = (hash ^ hash >> 32) & (m->slots - 1);; i = (i + 1) & (m->slots - 1)) {
        merge_entry *entry = m->entries + i;
        if (entry->rank >= 0 && entry->pair != pair)
            continue;
        if (entry->rank < 0)
            m->count++;
        *entry = (merge_entry){pair, rank, id}; /* of two equal merges the later one counts, as in Hugging Face's map */
        return SETUN_OK;
    }
}

/* ---- last things --------------------------------------------------------------------------------------------------- */

/* Pieces that end an answer in one family or another. */
static const char *const end_pieces[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<end_of_turn>", "<|eom_id|>", "<eos>", "<|end|>"};

bool tokenizer_is_known_end(const setun_tokenizer *t, int32_t id)
{
    const token *one = t->vocabulary.tokens + id;
    for (size_t i = 0; one->kind == TOKEN_CONTROL && i < sizeof end_pieces / sizeof end_pieces[0]; i++) /* only a control token comes from no text */
        if (strlen(end_pieces[i]) == one->length && memcmp(end_pieces[i], token_text(&t->vocabulary, id), one->length) == 0)
            return true;
    return false;
}

setun_status tokenizer_finish(setun_tokenizer *t)
{
    for (size_t i = 0; i < sizeof end_pieces / sizeof end_pieces[0]; i++) {
        int32_t id = tokenizer_find(t, end_pieces[i]);
        if (id >= 0 && tokenizer_is_known_end(t, id))
            t->ends[id] = true;
    }
    if (t->eos >= 0)
        t->ends[t->eos] = true;
    if (t->eot >= 0)
        t->ends[t->eot] = true;
    SETUN_TRY(added_build(t));
    return chat_recognise(t);
}
