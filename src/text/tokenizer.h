/*
 * tokenizer.h - the inside of a tokenizer: vocabulary, added tokens, normaliser, pre-tokeniser, model, decoder.
 * Caller: the files of this room only. Knows nothing of weights or of who asks.
 *
 * The way of a text: repair UTF-8 -> cut out added tokens -> normalise -> cut out normalised added tokens ->
 * pre-tokenise into spans -> byte-pair merges or Viterbi on each span -> ids.
 */
#ifndef SETUN_TEXT_TOKENIZER_H
#define SETUN_TEXT_TOKENIZER_H

#include "text/text.h"
#include "text/unicode.h"

/* Longest text that encode takes and longest intermediate text (a normaliser may lengthen it). */
#define TEXT_INPUT_LIMIT ((size_t)256 << 20)
#define TEXT_BUFFER_LIMIT ((size_t)1 << 30)
#define VOCABULARY_LIMIT (1 << 24)

/* ---- growing array of ids ---- */
typedef struct id_list { int32_t *items; size_t count, capacity; } id_list;
setun_status id_list_push(id_list *list, int32_t id);

/* ---- trie of byte strings, for the longest match and all prefixes of a text ---- */
typedef struct trie {
    uint64_t *keys;       /* (node << 8 | byte) + 1; 0: empty slot */
    uint32_t *children;   /* node that the key leads to */
    uint64_t slots;       /* power of two */
    int32_t *values;      /* [nodes] value of the string that ends here, -1: none */
    uint32_t nodes, capacity;
} trie;
setun_status trie_add(trie *t, const char *text, size_t length, int32_t value); /* a second value for one text replaces it */
void trie_clear(trie *t);
#define TRIE_NONE UINT32_MAX
static inline uint64_t trie_hash(uint64_t key) { key *= 0x9e3779b97f4a7c15u; return key ^ key >> 29; }
/* The root is node 0. */
static inline uint32_t trie_step(const trie *t, uint32_t node, uint8_t byte)
{
    uint64_t key = ((uint64_t)node << 8 | byte) + 1;
    for (uint64_t i = trie_hash(key) & (t->slots - 1);; i = (i + 1) & (t->slots - 1)) {
        if (t->keys[i] == key)
            return t->children[i];
        if (!t->keys[i])
            return TRIE_NONE;
    }
}

/* ---- vocabulary ---- */
typedef enum token_kind { TOKEN_NONE = 0, TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5, TOKEN_BYTE = 6 } token_kind; /* GGUF's numbers */

typedef struct token {
    uint32_t text, length;         /* as the file spells it: offset into vocabulary.texts */
    uint32_t piece, piece_length;  /* the bytes it stands for */
    float score;
    int32_t rank;                  /* scores as an order: 0 is the best; equal scores have equal ranks */
    uint8_t kind;                  /* token_kind */
} token;

typedef struct vocabulary {
    token *tokens;        /* [count] */
    int32_t count;
    uint64_t *slots;      /* by hash of the text: the hash's upper half, then id + 1; 0: empty */
    uint32_t slot_count;  /* power of two */
    uint64_t seed;        /* of the hash; differs between tokenizers: nobody can write a vocabulary whose texts all collide */
    setun_string texts;   /* every text and piece */
    uint32_t longest;     /* bytes of the longest text */
} vocabulary;
static inline const char *token_text(const vocabulary *v, int32_t id) { return v->texts.data + v->tokens[id].text; }
static inline const char *token_piece(const vocabulary *v, int32_t id) { return v->texts.data + v->tokens[id].piece; }
int32_t vocabulary_find(const vocabulary *v, const char *text, size_t length); /* -1: none */

typedef struct merge_entry { uint64_t pair; int32_t rank, id; } merge_entry; /* pair: left << 32 | right */
typedef struct merge_table { merge_entry *entries; uint64_t slots; int32_t count, guess; } merge_table; /* empty: rank -1; guess: of what the next merge makes */
static inline const merge_entry *merge_find(const merge_table *m, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    for (uint64_t i = (hash ^ hash >> 32) & (m->slots - 1);; i = (i + 1) & (m->slots - 1)) {
        const merge_entry *entry = m->entries + i;
        if (entry->rank < 0)
            return NULL;
        if (entry->pair == pair)
            return entry;
    }
}

/* ---- added tokens: found in the text before anything else ---- */
typedef struct added_token {
    int32_t id;
    bool special;         /* only found when asked for */
    bool single_word, left_strip, right_strip, normalized;
} added_token;

typedef struct added_set {
    added_token *items;
    size_t count, capacity;
    trie raw, normalised; /* values are indexes into items */
    bool first_raw[256], first_normalised[256]; /* bytes that begin a token */
    uint16_t *lengths; int length_count; /* instead of the raw trie where it would be large: the tokens' lengths, longest first; the vocabulary's hash has their texts */
} added_set;

/* ---- normaliser ---- */
typedef enum normalizer_kind { NORMALIZE_FORM, NORMALIZE_LOWERCASE, NORMALIZE_STRIP, NORMALIZE_STRIP_ACCENTS, NORMALIZE_REPLACE, NORMALIZE_REPLACE_REGEX,
    NORMALIZE_PREPEND, NORMALIZE_CHARSMAP, NORMALIZE_BYTE_LEVEL, NORMALIZE_SENTENCEPIECE } normalizer_kind;

typedef struct charsmap { uint32_t *units; size_t unit_count; char *texts; size_t texts_length; } charsmap;
struct text_regex;

typedef struct normalizer_step {
    normalizer_kind kind;
    setun_normal_form form;
    bool left, right;            /* STRIP */
    char *pattern; size_t pattern_length;
    char *content; size_t content_length; /* REPLACE, PREPEND */
    struct text_regex *regex;    /* REPLACE_REGEX; graphemes for CHARSMAP */
    charsmap map;                /* CHARSMAP, SENTENCEPIECE (may be empty) */
    bool add_prefix, remove_extra, escape; /* SENTENCEPIECE */
} normalizer_step;

/* ---- pre-tokeniser ---- */
typedef enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_MERGED_WITH_PREVIOUS, SPLIT_MERGED_WITH_NEXT, SPLIT_CONTIGUOUS } split_behavior;
typedef enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } prepend_scheme;
typedef enum pretokenizer_kind { PRETOKENIZE_SPLIT, PRETOKENIZE_LITERAL, PRETOKENIZE_PREFIX_SPACE, PRETOKENIZE_BYTE_LEVEL, PRETOKENIZE_METASPACE } pretokenizer_kind;

typedef struct pretokenizer_step {
    pretokenizer_kind kind;
    split_behavior behavior;
    bool invert;
    prepend_scheme scheme;       /* METASPACE */
    char *pattern;               /* SPLIT: the regular expression as written; LITERAL: the text; METASPACE: the replacement */
    size_t pattern_length;
    struct text_regex *regex;
} pretokenizer_step;

/* ---- regular expressions ---- */
typedef struct text_regex text_regex;
setun_status text_regex_compile(const char *pattern, size_t length, const char *name, text_regex **out);
void text_regex_free(text_regex *regex);
typedef struct text_match { struct pcre2_real_match_data_8 *data; struct pcre2_real_match_context_8 *context; struct pcre2_real_jit_stack_8 *stack; } text_match;
setun_status text_match_create(text_match *match); /* one per thread and call */
void text_match_clear(text_match *match);
setun_status text_regex_graphemes(text_regex **out); /* matches one extended grapheme cluster */
/* Calls fn(user, start, end) for each match, in order; empty matches too, but not right behind another match. */
typedef setun_status (*text_match_fn)(void *user, size_t start, size_t end);
setun_status text_regex_each(const text_regex *regex, text_match *match, const char *text, size_t length, text_match_fn fn, void *user);
/* Next match at or after from; *found false when there is none. An empty match is found too. */
setun_status text_regex_find(const text_regex *regex, text_match *match, const char *text, size_t length, size_t from, bool *found, size_t *start, size_t *end);

/* ---- what one encode call works with ---- */
typedef struct text_span { uint32_t start, end; } text_span;
typedef struct span_list { text_span *items; size_t count, capacity; } span_list;
typedef struct merge_symbol { int32_t id, previous, next; uint32_t start, length; } merge_symbol;
typedef struct merge_candidate { int32_t rank; uint32_t position; int32_t id; uint32_t left_length, right_length; } merge_candidate;
typedef struct scratch {
    setun_string text, other;    /* the section being worked on, and where a step writes its result */
    span_list spans, other_spans, matches;
    bool at_start;               /* the section begins where the whole text begins */
    bool section_begins;         /* SentencePiece: a dummy prefix belongs here */
    bool section_after_space;    /* SentencePiece: what came before ends with a space */
    bool section_ends;           /* SentencePiece: nothing or a control token comes behind */
    text_match match;
    merge_symbol *symbols; size_t symbol_capacity;
    merge_candidate *heap; size_t heap_count, heap_capacity;
    void *lattice; size_t lattice_capacity;
    id_list ids;
    const setun_tokenizer *tokenizer;
    bool parse_special;
    const uint8_t *untrusted;    /* a mark for each byte of the whole text, or NULL */
} scratch;
setun_status span_list_push(span_list *list, size_t start, size_t end);

/* ---- the tokenizer ---- */
typedef enum tokenizer_model { MODEL_BPE, MODEL_SENTENCEPIECE_BPE, MODEL_UNIGRAM } tokenizer_model;

#define TEXT_STEPS_MAX 16
#define TEMPLATE_IDS_MAX 8
struct setun_tokenizer {
    char *name;                  /* of the file, for messages */
    tokenizer_model model;
    vocabulary vocabulary;
    added_set added;
    normalizer_step normalizers[TEXT_STEPS_MAX];
    int normalizer_count;
    pretokenizer_step pretokenizers[TEXT_STEPS_MAX];
    int pretokenizer_count;

    merge_table merges;          /* BPE */
    int32_t *characters;         /* [0x250] BPE: id of each one-character token, -1: none */
    bool ignore_merges, fuse_unknown, byte_fallback;
    int32_t unknown;             /* -1: none */
    int32_t byte_ids[256];       /* "<0x00>" .. "<0xFF>", -1: none */
    trie pieces;                 /* UNIGRAM */
    double *scores;              /* UNIGRAM from tokenizer.json: [vocabulary.count], NaN for added tokens */
    double unknown_score, best_score;
    bool sentencepiece_rules;    /* the vocabulary came with SentencePiece's kinds (GGUF), and its rules apply */

    bool byte_level;             /* pieces are spelled in the byte alphabet */
    bool decode_spaces;          /* U+2581 in a piece stands for a space */
    bool decode_bytes;           /* "<0x41>" stands for a byte */
    bool decode_strip_space;     /* decode drops one space that begins the text */
    bool decode_strip_first;     /* decode drops every space in the first token (Metaspace) */

    int32_t bos, eos, eot, pad, separator, mask;
    int32_t unknown_declared;    /* what the file calls unknown, used or not; -1: none */
    int32_t prefix[TEMPLATE_IDS_MAX], suffix[TEMPLATE_IDS_MAX]; /* ADD_SPECIAL */
    int prefix_count, suffix_count;
    bool *ends;                  /* [vocabulary.count] */

    const char *pre;             /* GGUF's word for the pre-tokeniser, NULL if it has none */
    char *chat_text; size_t chat_length; /* the file's template, NULL: none */
    struct jinja_template *chat; /* NULL: none or unknown */
    const char *chat_name;       /* "chatml", ... */
    char *chat_reason;           /* why it is unknown */
};

/* vocabulary.c: building, in this order: begin, add each, finish. */
setun_status vocabulary_begin(setun_tokenizer *t, uint64_t count);
setun_status vocabulary_add(setun_tokenizer *t, uint64_t id, const char *text, size_t length, token_kind kind, float score);
setun_status vocabulary_finish(setun_tokenizer *t); /* refuses holes and duplicates; fills hash, pieces, byte ids */
setun_status tokenizer_rank_scores(setun_tokenizer *t);
setun_status merges_begin(setun_tokenizer *t, uint64_t count);
setun_status merges_add(setun_tokenizer *t, int32_t rank, const char *left, size_t left_length, const char *right, size_t right_length);
setun_status merges_in_order(const setun_tokenizer *t, merge_entry **out); /* [merges.count] by rank; setun_free */
/* Decides the remaining derived state (tries, end tokens, chat template). Called last by every reader. */
setun_status tokenizer_finish(setun_tokenizer *t);
setun_status tokenizer_create(const char *name, setun_tokenizer **out);
bool tokenizer_is_known_end(const setun_tokenizer *t, int32_t id); /* a control token that ends answers in some family */
int32_t tokenizer_find(const setun_tokenizer *t, const char *text); /* id or -1 */

/* added.c */
setun_status added_push(setun_tokenizer *t, added_token one);
setun_status added_build(setun_tokenizer *t);
/* Cuts text into sections: calls fn(user, id, start, end), id -1 for ordinary text. */
typedef setun_status (*added_fn)(void *user, int32_t id, size_t start, size_t end);
/* untrusted: [length] 1 where a special token may not take part, NULL: nowhere. */
setun_status added_cut(const setun_tokenizer *t, bool normalised, const char *text, size_t length, bool parse_special, const uint8_t *untrusted, added_fn fn, void *user);

/* normalizer.c */
void normalizer_clear(normalizer_step *step);
setun_status normalizer_run(const setun_tokenizer *t, scratch *s); /* s->text in, s->text out */
setun_status charsmap_load(const char *bytes, size_t length, const char *name, charsmap *out);

/* pretokenizer.c */
void pretokenizer_clear(pretokenizer_step *step);
setun_status pretokenizer_run(const setun_tokenizer *t, scratch *s); /* s->text in, s->text and s->spans out */
setun_status pretokenizer_add_split(setun_tokenizer *t, const char *pattern, size_t length, split_behavior behavior, bool invert);
setun_status pretokenizer_add_literal(setun_tokenizer *t, const char *text, size_t length, split_behavior behavior, bool invert);
setun_status pretokenizer_add_byte_level(setun_tokenizer *t, bool prefix_space, bool use_regex);
setun_status pretokenizer_add_metaspace(setun_tokenizer *t, const char *replacement, size_t length, prepend_scheme scheme, bool split);
setun_status pretokenizer_add_digits(setun_tokenizer *t, bool individual);
setun_status pretokenizer_add_punctuation(setun_tokenizer *t, split_behavior behavior);
typedef enum pretokenizer_pattern { PATTERN_OTHER, PATTERN_GPT2, PATTERN_DIGITS, PATTERN_PUNCTUATION } pretokenizer_pattern;
pretokenizer_pattern pretokenizer_known_pattern(const pretokenizer_step *step); /* which of the functions above wrote a SPLIT's expression */
uint32_t byte_to_character(uint8_t byte);
int character_to_byte(uint32_t character); /* -1: outside the byte alphabet */

/* known.c: the pre-tokenisers that GGUF files call by name */
setun_status known_pretokenizer_apply(setun_tokenizer *t, const char *pre, size_t length, bool *out_add_bos);
setun_status known_pretokenizer_name(const setun_tokenizer *t, const char **out); /* the name of t's steps, NULL: none */

/* bpe.c, unigram.c: append the ids of s->text[start, end) to s->ids */
setun_status bpe_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end);
setun_status sentencepiece_bpe_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end);
setun_status unigram_encode(const setun_tokenizer *t, scratch *s, size_t start, size_t end);

/* encode.c: valid UTF-8; special tokens are found except where untrusted is 1 */
setun_status tokenizer_encode_marked(const setun_tokenizer *t, const char *text, size_t length, const uint8_t *untrusted, int32_t **out_ids, size_t *out_count);

/* chat.c */
void chat_clear(setun_tokenizer *t);
setun_status chat_recognise(setun_tokenizer *t);

#endif
