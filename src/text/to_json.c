/*
 * to_json.c - a tokenizer as Hugging Face's tokenizer.json and tokenizer_config.json. What tokenizer.json spells out step by
 * step is written: BPE with merges, its normaliser, pre-tokeniser, decoder, and the tokens around a text. A vocabulary that is ranked
 * by scores (SentencePiece from GGUF, unigram) is refused: other programs would cut texts otherwise than it does.
 * Caller: convert. Knows nothing of weights or of the folder that the texts go to.
 */
#include "text/readers.h"

static setun_status no_word(const setun_tokenizer *t, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: Setun cannot write %s as tokenizer.json; use the tokenizer.json of the model that it was made from", t->name, what);
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static void put_token(const setun_tokenizer *t, int32_t id, setun_string *out)
{
    setun_string_json(out, token_text(&t->vocabulary, id), t->vocabulary.tokens[id].length);
}

/* ---- vocabulary ------------------------------------------------------------------------------------------------------ */

static void put_added(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, "\"added_tokens\": [");
    for (size_t i = 0; i < t->added.count; i++) {
        const added_token *one = t->added.items + i;
        setun_string_printf(out, "%s\n    {\"id\": %d, \"content\": ", i ? "," : "", one->id);
        put_token(t, one->id, out);
        setun_string_printf(out, ", \"single_word\": %s, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": %s, \"special\": %s}", truth(one->single_word), truth(one->left_strip),
            truth(one->right_strip), truth(one->normalized), truth(one->special));
    }
    setun_string_puts(out, "\n  ]");
}

/* Added tokens are in the model's vocabulary too: those that are not get their ids by their place in the list, and a token in the
 * middle would push the ids of all others. */
static setun_status put_model(const setun_tokenizer *t, setun_string *out)
{
    const vocabulary *v = &t->vocabulary;
    merge_entry *merges;
    setun_string_puts(out, "\"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": ");
    if (t->unknown >= 0)
        put_token(t, t->unknown, out);
    else
        setun_string_puts(out, "null");
    setun_string_printf(out, ",\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": %s,\n    \"byte_fallback\": %s,\n    \"ignore_merges\": %s,\n    \"vocab\": {",
        truth(t->fuse_unknown), truth(t->byte_fallback), truth(t->ignore_merges));
    for (int32_t id = 0; id < v->count; id++) {
        setun_string_puts(out, id ? ",\n      " : "\n      ");
        put_token(t, id, out);
        setun_string_printf(out, ": %d", id);
    }
    setun_string_puts(out, "\n    },\n    \"merges\": [");
    SETUN_TRY(merges_in_order(t, &merges));
    for (int32_t i = 0; i < t->merges.count; i++) {
        setun_string_puts(out, i ? ",\n      [" : "\n      [");
        put_token(t, (int32_t)(merges[i].pair >> 32), out);
        setun_string_puts(out, ", ");
        put_token(t, (int32_t)(uint32_t)merges[i].pair, out);
        setun_string_puts(out, "]");
    }
    setun_free(merges);
    setun_string_puts(out, "\n    ]\n  }");
    return SETUN_OK;
}

/* ---- normaliser ------------------------------------------------------------------------------------------------------ */

static setun_status put_normalizer_step(const setun_tokenizer *t, const normalizer_step *step, setun_string *out)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    switch (step->kind) {
    case NORMALIZE_FORM:
        setun_string_printf(out, "{\"type\": \"%s\"}", forms[step->form]);
        return SETUN_OK;
    case NORMALIZE_LOWERCASE:
        setun_string_puts(out, "{\"type\": \"Lowercase\"}");
        return SETUN_OK;
    case NORMALIZE_STRIP:
        setun_string_printf(out, "{\"type\": \"Strip\", \"strip_left\": %s, \"strip_right\": %s}", truth(step->left), truth(step->right));
        return SETUN_OK;
    case NORMALIZE_STRIP_ACCENTS:
        setun_string_puts(out, "{\"type\": \"StripAccents\"}");
        return SETUN_OK;
    case NORMALIZE_BYTE_LEVEL:
        setun_string_puts(out, "{\"type\": \"ByteLevel\"}");
        return SETUN_OK;
    case NORMALIZE_PREPEND:
        setun_string_puts(out, "{\"type\": \"Prepend\", \"prepend\": ");
        setun_string_json(out, step->content, step->content_length);
        setun_string_puts(out, "}");
        return SETUN_OK;
    case NORMALIZE_REPLACE:
        setun_string_puts(out, "{\"type\": \"Replace\", \"pattern\": {\"String\": ");
        setun_string_json(out, step->pattern, step->pattern_length);
        setun_string_puts(out, "}, \"content\": ");
        setun_string_json(out, step->content, step->content_length);
        setun_string_puts(out, "}");
        return SETUN_OK;
    case NORMALIZE_REPLACE_REGEX:
        return no_word(t, "a normaliser that replaces by a regular expression");
    case NORMALIZE_CHARSMAP:
    case NORMALIZE_SENTENCEPIECE:
        break;
    }
    return no_word(t, "SentencePiece's normaliser");
}

static setun_status put_normalizer(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, "\"normalizer\": ");
    if (t->normalizer_count == 0)
        setun_string_puts(out, "null");
    if (t->normalizer_count > 1)
        setun_string_puts(out, "{\"type\": \"Sequence\", \"normalizers\": [");
    for (int i = 0; i < t->normalizer_count; i++) {
        if (i)
            setun_string_puts(out, ", ");
        SETUN_TRY(put_normalizer_step(t, t->normalizers + i, out));
    }
    if (t->normalizer_count > 1)
        setun_string_puts(out, "]}");
    return SETUN_OK;
}

/* ---- pre-tokeniser ----------------------------------------------------------------------------------------------------- */

static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

static void put_split(const pretokenizer_step *step, setun_string *out)
{
    const pretokenizer_pattern known = pretokenizer_known_pattern(step);
    const bool digits = known == PATTERN_DIGITS && !step->invert && (step->behavior == SPLIT_ISOLATED || step->behavior == SPLIT_CONTIGUOUS);
    if (digits) {
        setun_string_printf(out, "{\"type\": \"Digits\", \"individual_digits\": %s}", truth(step->behavior == SPLIT_ISOLATED));
    } else if (known == PATTERN_PUNCTUATION && !step->invert) {
        setun_string_printf(out, "{\"type\": \"Punctuation\", \"behavior\": \"%s\"}", behaviors[step->behavior]);
    } else {
        setun_string_printf(out, "{\"type\": \"Split\", \"pattern\": {\"%s\": ", step->kind == PRETOKENIZE_SPLIT ? "Regex" : "String");
        setun_string_json(out, step->pattern, step->pattern_length);
        setun_string_printf(out, "}, \"behavior\": \"%s\", \"invert\": %s}", behaviors[step->behavior], truth(step->invert));
    }
}

/* ByteLevel is up to three steps here, Metaspace up to two. Returns how many were taken; 0: there is no word for them. */
static int put_pretokenizer_steps(const pretokenizer_step *steps, int count, setun_string *out)
{
    static const char *const schemes[] = {"always", "first", "never"};
    const bool prefix = steps->kind == PRETOKENIZE_PREFIX_SPACE;
    const pretokenizer_step *cut = steps + prefix;
    const bool gpt2 = prefix + 1 < count && pretokenizer_known_pattern(cut) == PATTERN_GPT2 && cut->behavior == SPLIT_ISOLATED && !cut->invert;
    const int last = prefix + gpt2;
    if (last < count && steps[last].kind == PRETOKENIZE_BYTE_LEVEL) {
        setun_string_printf(out, "{\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"trim_offsets\": true, \"use_regex\": %s}", truth(prefix), truth(gpt2));
        return last + 1;
    }
    if (prefix)
        return 0;
    if (steps->kind != PRETOKENIZE_METASPACE) {
        put_split(steps, out);
        return 1;
    }
    const bool split = count > 1 && steps[1].kind == PRETOKENIZE_LITERAL && steps[1].behavior == SPLIT_MERGED_WITH_NEXT && !steps[1].invert &&
        steps[1].pattern_length == steps->pattern_length && memcmp(steps[1].pattern, steps->pattern, steps->pattern_length) == 0;
    setun_string_puts(out, "{\"type\": \"Metaspace\", \"replacement\": ");
    setun_string_json(out, steps->pattern, steps->pattern_length);
    setun_string_printf(out, ", \"prepend_scheme\": \"%s\", \"split\": %s}", schemes[steps->scheme], truth(split));
    return 1 + split;
}

static setun_status put_pretokenizer(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, t->pretokenizer_count ? "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" : "\"pre_tokenizer\": null");
    for (int i = 0; i < t->pretokenizer_count;) {
        if (i)
            setun_string_puts(out, ", ");
        int taken = put_pretokenizer_steps(t->pretokenizers + i, t->pretokenizer_count - i, out);
        if (!taken)
            return no_word(t, "a space in front of the text without the byte alphabet");
        i += taken;
    }
    setun_string_puts(out, t->pretokenizer_count ? "]}" : "");
    return SETUN_OK;
}

/* ---- decoder ------------------------------------------------------------------------------------------------------------ */

static void put_decoder(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, "\"decoder\": ");
    if (t->byte_level) {
        setun_string_puts(out, "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true}");
        return;
    }
    setun_string_puts(out, "{\"type\": \"Sequence\", \"decoders\": [");
    if (t->decode_strip_first)
        setun_string_puts(out, "{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"always\", \"split\": true}, ");
    else if (t->decode_spaces)
        setun_string_puts(out, "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\xe2\x96\x81\"}, \"content\": \" \"}, ");
    if (t->decode_bytes)
        setun_string_puts(out, "{\"type\": \"ByteFallback\"}, ");
    setun_string_puts(out, "{\"type\": \"Fuse\"}");
    if (t->decode_strip_space)
        setun_string_puts(out, ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}");
    setun_string_puts(out, "]}");
}

/* ---- what stands around a text -------------------------------------------------------------------------------------------- */

static void put_around(const setun_tokenizer *t, const char *text, int type, setun_string *out)
{
    for (int i = 0; i < t->prefix_count; i++) {
        setun_string_puts(out, "{\"SpecialToken\": {\"id\": ");
        put_token(t, t->prefix[i], out);
        setun_string_printf(out, ", \"type_id\": %d}}, ", type);
    }
    setun_string_printf(out, "{\"Sequence\": {\"id\": \"%s\", \"type_id\": %d}}", text, type);
    for (int i = 0; i < t->suffix_count; i++) {
        setun_string_puts(out, ", {\"SpecialToken\": {\"id\": ");
        put_token(t, t->suffix[i], out);
        setun_string_printf(out, ", \"type_id\": %d}}", type);
    }
}

static void put_postprocessor(const setun_tokenizer *t, setun_string *out)
{
    int32_t ids[2 * TEMPLATE_IDS_MAX];
    int count = 0;
    setun_string_puts(out, "\"post_processor\": ");
    if (t->prefix_count + t->suffix_count == 0) {
        setun_string_puts(out, "null");
        return;
    }
    for (int i = 0; i < t->prefix_count + t->suffix_count; i++) {
        int32_t id = i < t->prefix_count ? t->prefix[i] : t->suffix[i - t->prefix_count];
        int at = 0;
        while (at < count && ids[at] != id)
            at++;
        ids[at] = id;
        count += at == count;
    }
    setun_string_puts(out, "{\"type\": \"TemplateProcessing\", \"single\": [");
    put_around(t, "A", 0, out);
    setun_string_puts(out, "], \"pair\": [");
    put_around(t, "A", 0, out);
    setun_string_puts(out, ", ");
    put_around(t, "B", 1, out);
    setun_string_puts(out, "], \"special_tokens\": {");
    for (int i = 0; i < count; i++) {
        setun_string_puts(out, i ? ", " : "");
        put_token(t, ids[i], out);
        setun_string_puts(out, ": {\"id\": ");
        put_token(t, ids[i], out);
        setun_string_printf(out, ", \"ids\": [%d], \"tokens\": [", ids[i]);
        put_token(t, ids[i], out);
        setun_string_puts(out, "]}");
    }
    setun_string_puts(out, "}}");
}

/* ---- tokenizer_config.json --------------------------------------------------------------------------------------------------- */

static void put_named(const setun_tokenizer *t, const char *key, int32_t id, setun_string *out)
{
    if (id < 0)
        return;
    setun_string_printf(out, ",\n  \"%s\": ", key);
    put_token(t, id, out);
}

static void put_config(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"clean_up_tokenization_spaces\": false");
    put_named(t, "bos_token", t->bos, out);
    put_named(t, "eos_token", t->eos, out);
    put_named(t, "unk_token", t->unknown_declared, out);
    put_named(t, "pad_token", t->pad, out);
    put_named(t, "sep_token", t->separator, out);
    put_named(t, "mask_token", t->mask, out);
    /* Readers build the template anew from these two, so they are said only where they say all of it. */
    const bool bos = t->prefix_count == 1 && t->prefix[0] == t->bos, eos = t->suffix_count == 1 && t->suffix[0] == t->eos;
    if ((bos || t->prefix_count == 0) && (eos || t->suffix_count == 0))
        setun_string_printf(out, ",\n  \"add_bos_token\": %s,\n  \"add_eos_token\": %s", truth(bos), truth(eos));
    if (t->chat_text) {
        setun_string_puts(out, ",\n  \"chat_template\": ");
        setun_string_json(out, t->chat_text, t->chat_length);
    }
    setun_string_puts(out, "\n}\n");
}

/* ---- both ----------------------------------------------------------------------------------------------------------------------- */

static setun_status check(const setun_tokenizer *t)
{
    if (t->model == MODEL_UNIGRAM)
        return no_word(t, "a unigram vocabulary");
    if (t->model != MODEL_BPE || t->sentencepiece_rules)
        return no_word(t, "a SentencePiece vocabulary, which is ranked by scores,");
    for (int32_t id = 0; id < t->vocabulary.count; id++)
        if (memchr(token_text(&t->vocabulary, id), 0, t->vocabulary.tokens[id].length))
            return no_word(t, "a token with a zero byte");
    if (t->chat_text && memchr(t->chat_text, 0, t->chat_length))
        return no_word(t, "a chat template with a zero byte");
    return SETUN_OK;
}

static setun_status put_tokenizer(const setun_tokenizer *t, setun_string *out)
{
    setun_string_puts(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  ");
    put_added(t, out);
    setun_string_puts(out, ",\n  ");
    SETUN_TRY(put_normalizer(t, out));
    setun_string_puts(out, ",\n  ");
    SETUN_TRY(put_pretokenizer(t, out));
    setun_string_puts(out, ",\n  ");
    put_postprocessor(t, out);
    setun_string_puts(out, ",\n  ");
    put_decoder(t, out);
    setun_string_puts(out, ",\n  ");
    SETUN_TRY(put_model(t, out));
    setun_string_puts(out, "\n}\n");
    return SETUN_OK;
}

setun_status setun_tokenizer_to_json(const setun_tokenizer *t, char **out_tokenizer_json, char **out_tokenizer_config_json)
{
    setun_string tokenizer = {0}, config = {0};
    *out_tokenizer_json = *out_tokenizer_config_json = NULL;
    SETUN_TRY(check(t));
    setun_status status = put_tokenizer(t, &tokenizer);
    if (status == SETUN_OK) {
        put_config(t, &config);
        status = setun_string_take(&config, out_tokenizer_config_json, NULL);
    }
    if (status == SETUN_OK)
        status = setun_string_take(&tokenizer, out_tokenizer_json, NULL);
    if (status != SETUN_OK) {
        setun_free(*out_tokenizer_config_json);
        *out_tokenizer_config_json = NULL;
    }
    setun_string_clear(&tokenizer);
    setun_string_clear(&config);
    return status;
}
