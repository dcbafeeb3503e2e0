/*
 * bpe.c - byte-pair merges: by a table of ranked pairs (Hugging Face) or by the score of the joined piece (SentencePiece).
 * A short span is merged by scanning, a long one with a heap: O(n log n). Caller: encode.c. Knows nothing of files.
 */
#include "text/tokenizer.h"

enum { SCAN_MAX = 48 }; /* symbols; beyond this a heap is faster */

static setun_status reserve_symbols(scratch *s, size_t count)
{
    if (count <= s->symbol_capacity)
        return SETUN_OK;
    size_t capacity = s->symbol_capacity ? s->symbol_capacity : 256;
    while (capacity < count)
        capacity *= 2;
    setun_free(s->symbols); /* nothing in it outlives a span */
    s->symbol_capacity = 0;
    s->symbols = setun_alloc(capacity * sizeof *s->symbols);
    if (!s->symbols)
        return setun_fail_memory(capacity * sizeof *s->symbols);
    s->symbol_capacity = capacity;
    return SETUN_OK;
}

/* Can left and right become one? Its rank (lower goes first) and id; rank -1: no. */
typedef struct joined { int32_t rank, id; } joined;

static inline joined join(const setun_tokenizer *t, const scratch *s, const merge_symbol *left, const merge_symbol *right)
{
    if (t->model == MODEL_BPE) {
        const merge_entry *entry = merge_find(&t->merges, left->id, right->id);
        return entry ? (joined){entry->rank, entry->id} : (joined){-1, -1};
    }
    const vocabulary *v = &t->vocabulary;
    int32_t id = vocabulary_find(v, s->text.data + left->start, left->length + right->length);
    if (id < 0)
        return (joined){-1, -1};
    /* Control, unknown and byte pieces are never made from text. */
    uint8_t kind = v->tokens[id].kind;
    if (kind != TOKEN_NORMAL && kind != TOKEN_USER && kind != TOKEN_UNUSED)
        return (joined){-1, -1};
    return (joined){v->tokens[id].rank, id};
}

/* ---- few symbols: an array, the best pair by scanning -------------------------------------------------------------- */

static size_t merge_by_scan(const setun_tokenizer *t, scratch *s, size_t count)
{
    merge_symbol *symbols = s->symbols;
    joined pairs[SCAN_MAX]; /* pairs[i]: symbols i and i + 1 */
    for (size_t i = 0; i + 1 < count; i++)
        pairs[i] = join(t, s, symbols + i, symbols + i + 1);
    while (count > 1) {
        size_t best = SIZE_MAX;
        for (size_t i = 0; i + 1 < count; i++)
            if (pairs[i].rank >= 0 && (best == SIZE_MAX || pairs[i].rank < pairs[best].rank))
                best = i;
        if (best == SIZE_MAX)
            break;
        symbols[best].id = pairs[best].id;
        symbols[best].length += symbols[best + 1].length;
        memmove(symbols + best + 1, symbols + best + 2, (count - best - 2) * sizeof *symbols);
        if (best + 2 < count)
            memmove(pairs + best + 1, pairs + best + 2, (count - best - 2) * sizeof *pairs);
        count--;
        if (best > 0)
            pairs[best - 1] = join(t, s, symbols + best - 1, symbols + best);
        if (best + 1 < count)
            pairs[best] = join(t, s, symbols + best, symbols + best + 1);
    }
    return count;
}

/* ---- many: a linked list and a heap of candidates, stale ones skipped ---------------------------------------------- */

static inline bool before(const merge_candidate *a, const merge_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static setun_status heap_push(scratch *s, merge_candidate one)
{
    if (s->heap_count == s->heap_capacity) {
        size_t capacity = s->heap_capacity ? s->heap_capacity * 2 : 1024;
        merge_candidate *grown = setun_realloc(s->heap, capacity * sizeof *grown);
        if (!grown)
            return setun_fail_memory(capacity * sizeof *grown);
        s->heap = grown;
        s->heap_capacity = capacity;
    }
    size_t i = s->heap_count++;
    while (i > 0) {
        size_t parent = (i - 1) / 2;
        if (!before(&one, s->heap + parent))
            break;
        s->heap[i] = s->heap[parent];
        i = parent;
    }
    s->heap[i] = one;
    return SETUN_OK;
}

static merge_candidate heap_pop(scratch *s)
{
    merge_candidate top = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0, count = s->heap_count;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= count)
            break;
        if (child + 1 < count && before(s->heap + child + 1, s->heap + child))
            child++;
        if (!before(s->heap + child, &last))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    if (count)
        s->heap[i] = last;
    return top;
}

static setun_status offer(const setun_tokenizer *t, scratch *s, int32_t left)
{
    merge_symbol *a = s->symbols + left;
    if (a->next < 0)
        return SETUN_OK;
    merge_symbol *b = s->symbols + a->next;
    joined both = join(t, s, a, b);
    if (both.rank < 0)
        return SETUN_OK;
    /* The two lengths identify the pair: symbols only grow. */
    return heap_push(s, (merge_candidate){both.rank, (uint32_t)left, both.id, a->length, b->length});
}

static setun_status merge_by_heap(const setun_tokenizer *t, scratch *s, size_t count)
{
    merge_symbol *symbols = s->symbols;
    s->heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < count; i++)
        SETUN_TRY(offer(t, s, (int32_t)i));
    while (s->heap_count) {
        merge_candidate top = heap_pop(s);
        merge_symbol *left = symbols + top.position;
        if (left->length != top.left_length || left->next < 0 || symbols[left->next].length != top.right_length)
            continue;
        merge_symbol *right = symbols + left->next;
        left->id = top.id;
        left->length += right->length;
        right->length = 0; /* no candidate has this length, so those that name it are stale */
        left->next = right->next;
        if (left->next >= 0)
            symbols[left->next].previous = (int32_t)top.position;
        if (left->previous >= 0)
            SETUN_TRY(offer(t, s, left->previous));
        SETUN_TRY(offer(t, s, (int32_t)top.position));
    }
    return SETUN_OK;
}

/* ---- table merges -------------------------------------------------------------------------------------------------- */

static setun_status emit_merged(const setun_tokenizer *t, scratch *s, size_t count)
{
    if (count <= SCAN_MAX) {
        count = merge_by_scan(t, s, count);
        for (size_t i = 0; i < count; i++)
            SETUN_TRY(id_list_push(&s->ids, s->symbols[i].id));
        return SETUN_OK;
    }
    SETUN_TRY(merge_by_heap(t, s, count));
    for (int32_t i = 0; i >= 0; i = s->symbols[i].next)
        SETUN_TRY(id_list_push(&s->ids, s->symbols[i].id));
    return SETUN_OK;
}

setun_status bpe_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end)
{
    const char *text = s->text.data;
    if (t->ignore_merges) {
        int32_t whole = vocabulary_find(&t->vocabulary, text + start, end - start);
        if (whole >= 0)
            return id_list_push(&s->ids, whole);
    }
    SETUN_TRY(reserve_symbols(s, end - start));
    size_t count = 0;
    bool pending = false; /* an unknown that may still grow */
    merge_symbol unknown = {0};
    for (size_t i = start, size; i < end; i += size) {
        uint32_t c = utf8_decode(text + i, &size);
        int32_t id = c < 0x250 ? t->characters[c] : vocabulary_find(&t->vocabulary, text + i, size);
        if (id >= 0) {
            if (pending)
                s->symbols[count++] = unknown;
            pending = false;
            s->symbols[count++] = (merge_symbol){.id = id, .start = (uint32_t)i, .length = (uint32_t)size};
            continue;
        }
        if (t->byte_fallback) {
            bool all = true;
            for (size_t j = 0; j < size; j++)
                all = all && t->byte_ids[(uint8_t)text[i + j]] >= 0;
            if (all) {
                /* As in Hugging Face, an unknown that waits comes out behind these bytes. */
                for (size_t j = 0; j < size; j++)
                    s->symbols[count++] = (merge_symbol){.id = t->byte_ids[(uint8_t)text[i + j]], .start = (uint32_t)(i + j), .length = 1};
                continue;
            }
        }
        if (t->unknown < 0)
            continue; /* Hugging Face's rule: without an unknown token such a character leaves nothing */
        if (pending && t->fuse_unknown) {
            unknown.length += (uint32_t)size;
        } else {
            if (pending)
                s->symbols[count++] = unknown;
            unknown = (merge_symbol){.id = t->unknown, .start = (uint32_t)i, .length = (uint32_t)size};
            pending = true;
        }
    }
    if (pending)
        s->symbols[count++] = unknown;
    return count ? emit_merged(t, s, count) : SETUN_OK;
}

/* ---- SentencePiece ------------------------------------------------------------------------------------------------- */

setun_status sentencepiece_bpe_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end)
{
    const char *text = s->text.data;
    SETUN_TRY(reserve_symbols(s, end - start));
    size_t count = 0;
    for (size_t i = start, size; i < end; i += size) {
        size = utf8_size(text[i]);
        int32_t id = vocabulary_find(&t->vocabulary, text + i, size);
        if (id >= 0 && t->vocabulary.tokens[id].kind != TOKEN_NORMAL && t->vocabulary.tokens[id].kind != TOKEN_USER && t->vocabulary.tokens[id].kind != TOKEN_UNUSED)
            id = -1;
        s->symbols[count++] = (merge_symbol){.id = id, .previous = -1, .next = -1, .start = (uint32_t)i, .length = (uint32_t)size};
    }
    if (count <= SCAN_MAX) {
        count = merge_by_scan(t, s, count);
        for (size_t i = 0; i < count; i++)
            s->symbols[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    } else {
        SETUN_TRY(merge_by_heap(t, s, count));
    }
    bool after_unknown = false;
    for (int32_t i = count ? 0 : -1; i >= 0; i = s->symbols[i].next) {
        const merge_symbol *one = s->symbols + i;
        if (one->id >= 0) {
            SETUN_TRY(id_list_push(&s->ids, one->id));
            after_unknown = false;
            continue;
        }
        bool bytes = t->byte_fallback;
        for (uint32_t j = 0; j < one->length; j++)
            bytes = bytes && t->byte_ids[(uint8_t)text[one->start + j]] >= 0;
        for (uint32_t j = 0; bytes && j < one->length; j++)
            SETUN_TRY(id_list_push(&s->ids, t->byte_ids[(uint8_t)text[one->start + j]]));
        if (!bytes && !after_unknown && t->unknown >= 0) /* unknowns in a row are one */
            SETUN_TRY(id_list_push(&s->ids, t->unknown));
        after_unknown = !bytes;
    }
    return SETUN_OK;
}
