/*
 * unigram.c - the best way to cut a span into pieces by the sum of their scores (Viterbi over the text's positions).
 * Two sets of rules: SentencePiece's (GGUF: kinds of pieces, single precision) and Hugging Face's (tokenizer.json:
 * every piece counts, double precision). Caller: encode.c. Knows nothing of files.
 */
#include "text/tokenizer.h"

typedef struct lattice_node { double score; uint32_t start; int32_t id; } lattice_node; /* the best way that ends here; id -1: none yet */

static setun_status emit_bytes_or_unknown(const setun_tokenizer *t, scratch *s, const char *text, size_t length, bool *after_unknown)
{
    bool bytes = t->byte_fallback;
    for (size_t i = 0; i < length; i++)
        bytes = bytes && t->byte_ids[(uint8_t)text[i]] >= 0;
    for (size_t i = 0; bytes && i < length; i++)
        SETUN_TRY(id_list_push(&s->ids, t->byte_ids[(uint8_t)text[i]]));
    if (!bytes) {
        if (t->unknown < 0)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: the text needs an unknown token and the vocabulary has none", t->name);
        if (!*after_unknown)
            SETUN_TRY(id_list_push(&s->ids, t->unknown));
    }
    *after_unknown = !bytes;
    return SETUN_OK;
}

setun_status unigram_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end)
{
    const vocabulary *v = &t->vocabulary;
    const char *text = s->text.data + start;
    size_t length = end - start;
    if (length + 1 > s->lattice_capacity) {
        setun_free(s->lattice);
        s->lattice_capacity = 0;
        s->lattice = setun_alloc((length + 1) * sizeof(lattice_node));
        if (!s->lattice)
            return setun_fail_memory((length + 1) * sizeof(lattice_node));
        s->lattice_capacity = length + 1;
    }
    lattice_node *nodes = s->lattice;
    for (size_t i = 0; i <= length; i++)
        nodes[i] = (lattice_node){0, UINT32_MAX, -1};
    /* A character that no piece covers gets a number of its own, so that it can be told from the piece "<unk>". */
    const int32_t unknown = v->count;
    for (size_t i = 0, size; i < length; i += size) {
        size = utf8_size(text[i]);
        double here = nodes[i].score;
        bool single = false;
        uint32_t node = 0;
        for (size_t j = i; j < length && t->pieces.nodes; j++) {
            node = trie_step(&t->pieces, node, (uint8_t)text[j]);
            if (node == TRIE_NONE)
                break;
            int32_t id = t->pieces.values[node];
            if (id < 0)
                continue;
            size_t piece = j + 1 - i;
            double candidate;
            if (!t->sentencepiece_rules)
                candidate = t->scores[id] + here;
            else if (v->tokens[id].kind == TOKEN_USER) /* always better than its parts */
                candidate = (float)((double)((float)piece * (float)t->best_score) - 0.1) + (float)here;
            else
                candidate = v->tokens[id].score + (float)here;
            if (nodes[j + 1].id < 0 || candidate > nodes[j + 1].score)
                nodes[j + 1] = (lattice_node){candidate, (uint32_t)i, id};
            single = single || piece == size;
        }
        if (!single) {
            double candidate = t->sentencepiece_rules ? (float)t->unknown_score + (float)here : t->unknown_score + here;
            if (nodes[i + size].id < 0 || candidate > nodes[i + size].score)
                nodes[i + size] = (lattice_node){candidate, (uint32_t)i, unknown};
        }
    }
    /* From the end back to the start, then given out in order. */
    s->other_spans.count = 0;
    for (size_t i = length; i > 0; i = nodes[i].start)
        SETUN_TRY(span_list_push(&s->other_spans, nodes[i].start, i));
    bool after_unknown = false;
    for (size_t i = s->other_spans.count; i-- > 0;) {
        text_span one = s->other_spans.items[i];
        int32_t id = nodes[one.end].id;
        bool is_unknown = id == unknown || id == t->unknown;
        if (t->sentencepiece_rules) {
            if (is_unknown) {
                SETUN_TRY(emit_bytes_or_unknown(t, s, text + one.start, one.end - one.start, &after_unknown));
            } else {
                SETUN_TRY(id_list_push(&s->ids, id));
                after_unknown = false;
            }
            continue;
        }
        if (!is_unknown) {
            SETUN_TRY(id_list_push(&s->ids, id));
            continue;
        }
        /* Hugging Face joins unknowns in a row and looks the joined text up once more. */
        uint32_t last = one.end;
        while (i > 0 && (nodes[s->other_spans.items[i - 1].end].id == unknown || nodes[s->other_spans.items[i - 1].end].id == t->unknown))
            last = s->other_spans.items[--i].end;
        id = vocabulary_find(v, text + one.start, last - one.start);
        after_unknown = false;
        if (id >= 0 && t->scores[id] == t->scores[id] /* NaN: an added token, not one of the model's pieces */)
            SETUN_TRY(id_list_push(&s->ids, id));
        else
            SETUN_TRY(emit_bytes_or_unknown(t, s, text + one.start, last - one.start, &after_unknown));
    }
    return SETUN_OK;
}
