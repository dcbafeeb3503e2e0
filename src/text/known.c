/*
 * known.c - the pre-tokenisers that GGUF files call by name (tokenizer.ggml.pre), written as the same steps that the
 * families' tokenizer.json spells out. A name that is not here is refused: another cut of the text gives other tokens,
 * and a model fed with them is quietly worse. Caller: from_gguf.c, to_gguf.c.
 */
#include "text/tokenizer.h"

#define LLAMA3 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define QWEN2 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef enum known_cut { CUT_GPT2, CUT_DIGITS_GPT2, CUT_LLAMA3, CUT_QWEN2, CUT_FALCON, CUT_DEFAULT } known_cut;

static const struct known_pretokenizer {
    const char *name;
    known_cut cut;
    bool ignore_merges; /* a span that is a token as a whole is that token */
    bool nfc;           /* the family's normaliser, which GGUF has no key for */
    bool add_bos;       /* where the file does not say */
} known[] = {
    {"llama-bpe", CUT_LLAMA3, true, false, true}, /* the first name of each kind is the one written */
    {"llama3", CUT_LLAMA3, true, false, true},
    {"llama-v3", CUT_LLAMA3, true, false, true},
    {"falcon3", CUT_LLAMA3, true, false, true},
    {"falcon-h1", CUT_LLAMA3, true, false, true},
    {"gpt-2", CUT_GPT2, false, false, false},
    {"phi-2", CUT_GPT2, false, false, false},
    {"olmo", CUT_GPT2, false, true, false}, /* GPT-NeoX's vocabulary goes by this name and the next two */
    {"mpt", CUT_GPT2, false, true, false},
    {"gpt-neox", CUT_GPT2, false, true, false},
    {"qwen2", CUT_QWEN2, false, true, false},
    {"deepseek-r1-qwen", CUT_QWEN2, false, false, false},
    {"smollm", CUT_DIGITS_GPT2, false, false, false},
    {"starcoder", CUT_DIGITS_GPT2, false, false, false},
    {"refact", CUT_DIGITS_GPT2, false, false, false},
    {"command-r", CUT_DIGITS_GPT2, false, false, false},
    {"falcon", CUT_FALCON, false, false, false},
    {"default", CUT_DEFAULT, false, false, false},
};

static setun_status add_nfc(setun_tokenizer *t)
{
    normalizer_step *step = &t->normalizers[t->normalizer_count++];
    memset(step, 0, sizeof *step);
    step->kind = NORMALIZE_FORM;
    step->form = SETUN_NFC;
    return SETUN_OK;
}

static setun_status apply_cut(setun_tokenizer *t, known_cut cut)
{
    static const char three_digits[] = "[0-9][0-9][0-9]", digits[] = "\\p{N}+", default_punctuation[] = "[\\p{P}\\$\\+<=>\\^~\\|]+",
        default_words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";
    switch (cut) {
    case CUT_GPT2:
        return pretokenizer_add_byte_level(t, false, true);
    case CUT_DIGITS_GPT2:
        SETUN_TRY(pretokenizer_add_digits(t, true));
        return pretokenizer_add_byte_level(t, false, true);
    case CUT_LLAMA3:
        SETUN_TRY(pretokenizer_add_split(t, LLAMA3, sizeof LLAMA3 - 1, SPLIT_ISOLATED, false));
        return pretokenizer_add_byte_level(t, false, false);
    case CUT_QWEN2:
        SETUN_TRY(pretokenizer_add_split(t, QWEN2, sizeof QWEN2 - 1, SPLIT_ISOLATED, false));
        return pretokenizer_add_byte_level(t, false, false);
    case CUT_FALCON: /* digits are looked for after the bytes were spelled out, as the family's file has it */
        SETUN_TRY(pretokenizer_add_punctuation(t, SPLIT_CONTIGUOUS));
        SETUN_TRY(pretokenizer_add_byte_level(t, false, true));
        SETUN_TRY(pretokenizer_add_digits(t, false));
        return pretokenizer_add_split(t, three_digits, sizeof three_digits - 1, SPLIT_ISOLATED, false);
    case CUT_DEFAULT:
        SETUN_TRY(pretokenizer_add_split(t, default_punctuation, sizeof default_punctuation - 1, SPLIT_ISOLATED, false));
        SETUN_TRY(pretokenizer_add_split(t, default_words, sizeof default_words - 1, SPLIT_ISOLATED, false));
        SETUN_TRY(pretokenizer_add_split(t, digits, sizeof digits - 1, SPLIT_ISOLATED, false));
        SETUN_TRY(pretokenizer_add_split(t, three_digits, sizeof three_digits - 1, SPLIT_ISOLATED, false));
        return pretokenizer_add_byte_level(t, false, false);
    }
    return SETUN_OK;
}

setun_status known_pretokenizer_apply(setun_tokenizer *t, const char *pre, size_t length, bool *out_add_bos)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].name) != length || memcmp(known[i].name, pre, length) != 0)
            continue;
        t->pre = known[i].name;
        t->ignore_merges = known[i].ignore_merges;
        *out_add_bos = known[i].add_bos;
        if (known[i].nfc)
            SETUN_TRY(add_nfc(t));
        return apply_cut(t, known[i].cut);
    }
    setun_string names = {0};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        setun_string_printf(&names, "%s%s", i ? ", " : "", known[i].name);
    setun_status status = setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: tokenizer.ggml.pre is '%.*s', which Setun does not know; known are %s. Use the model's tokenizer.json instead",
        t->name, length > 80 ? 80 : (int)length, pre, names.failed ? "few" : names.data);
    setun_string_clear(&names);
    return status;
}

/* Two pre-tokenisers are the same when their steps are, and the normaliser and ignore_merges with them. */
static bool same_steps(const setun_tokenizer *a, const setun_tokenizer *b)
{
    if (a->pretokenizer_count != b->pretokenizer_count || a->normalizer_count != b->normalizer_count || a->ignore_merges != b->ignore_merges)
        return false;
    for (int i = 0; i < a->normalizer_count; i++)
        if (a->normalizers[i].kind != NORMALIZE_FORM || b->normalizers[i].kind != NORMALIZE_FORM || a->normalizers[i].form != b->normalizers[i].form)
            return false;
    for (int i = 0; i < a->pretokenizer_count; i++) {
        const pretokenizer_step *x = a->pretokenizers + i, *y = b->pretokenizers + i;
        if (x->kind != y->kind || x->behavior != y->behavior || x->invert != y->invert || x->scheme != y->scheme || x->pattern_length != y->pattern_length ||
            (x->pattern_length && memcmp(x->pattern, y->pattern, x->pattern_length) != 0))
            return false;
    }
    return true;
}

setun_status known_pretokenizer_name(const setun_tokenizer *t, const char **out)
{
    *out = NULL;
    for (size_t i = 0; i < sizeof known / sizeof known[0] && !*out; i++) {
        setun_tokenizer *other;
        bool add_bos;
        SETUN_TRY(tokenizer_create(t->name, &other));
        setun_status status = known_pretokenizer_apply(other, known[i].name, strlen(known[i].name), &add_bos);
        if (status == SETUN_OK && same_steps(t, other))
            *out = known[i].name;
        setun_tokenizer_destroy(other);
        SETUN_TRY(status);
    }
    return SETUN_OK;
}
