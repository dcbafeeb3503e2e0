/*
 * from_json.c - a tokenizer from Hugging Face's tokenizer.json: model (BPE, Unigram), added tokens, normaliser,
 * pre-tokeniser, decoder, post-processor; and what tokenizer_config.json and generation_config.json say besides.
 * Caller: open.c. Every part that is not known is refused by its type: read otherwise it would give other tokens.
 */
#include "text/readers.h"
#include <math.h>

static const char *string_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static bool flag(const json_t *object, const char *key, bool missing)
{
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : missing;
}

static setun_status unknown_part(const setun_tokenizer *t, const char *part, const char *type)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: %s '%.80s' is not one that Setun knows; a GGUF file of the same model may be used instead", t->name, part, type ? type : "without a type");
}

static bool is(const char *text, const char *other)
{
    return text && strcmp(text, other) == 0;
}

/* ---- normaliser ------------------------------------------------------------------------------------------------------ */

static int base64_digit(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : -1;
}

static setun_status read_base64(const setun_tokenizer *t, const char *text, size_t length, setun_string *out)
{
    uint32_t bits = 0;
    int held = 0;
    while (length && text[length - 1] == '=')
        length--;
    for (size_t i = 0; i < length; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: precompiled_charsmap is not base64 at character %zu", t->name, i);
        bits = bits << 6 | (uint32_t)digit;
        held += 6;
        if (held >= 8) {
            held -= 8;
            char byte = (char)(bits >> held);
            setun_string_append(out, &byte, 1);
        }
    }
    return out->failed ? setun_fail_memory(length) : SETUN_OK;
}

static setun_status copy_text(const json_t *value, char **out, size_t *length)
{
    *length = json_string_length(value);
    *out = setun_strndup(json_string_value(value), *length);
    return *out ? SETUN_OK : setun_fail_memory(*length);
}

static setun_status read_charsmap(setun_tokenizer *t, const json_t *node, normalizer_step *step)
{
    const json_t *map = json_object_get(node, "precompiled_charsmap");
    if (!json_is_string(map)) /* null: nothing is replaced */
        return text_regex_graphemes(&step->regex);
    setun_string bytes = {0};
    setun_status status = read_base64(t, json_string_value(map), json_string_length(map), &bytes);
    if (status == SETUN_OK)
        status = charsmap_load(bytes.data, bytes.length, t->name, &step->map);
    if (status == SETUN_OK)
        status = text_regex_graphemes(&step->regex);
    setun_string_clear(&bytes);
    return status;
}

static setun_status read_normalizer(setun_tokenizer *t, const json_t *node, int depth)
{
    if (!node || json_is_null(node))
        return SETUN_OK;
    const char *type = string_of(node, "type");
    if (depth > 8)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the normaliser is nested too deep", t->name);
    if (is(type, "Sequence")) {
        size_t i;
        json_t *one;
        json_array_foreach(json_object_get(node, "normalizers"), i, one)
            SETUN_TRY(read_normalizer(t, one, depth + 1));
        return SETUN_OK;
    }
    if (t->normalizer_count == TEXT_STEPS_MAX)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the normaliser has more than %d steps", t->name, TEXT_STEPS_MAX);
    normalizer_step *step = &t->normalizers[t->normalizer_count++];
    memset(step, 0, sizeof *step);
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    for (int i = 0; i < 4; i++) {
        if (is(type, forms[i])) {
            step->kind = NORMALIZE_FORM;
            step->form = (setun_normal_form)i;
            return SETUN_OK;
        }
    }
    if (is(type, "Lowercase")) {
        step->kind = NORMALIZE_LOWERCASE;
    } else if (is(type, "StripAccents")) {
        step->kind = NORMALIZE_STRIP_ACCENTS;
    } else if (is(type, "ByteLevel")) {
        step->kind = NORMALIZE_BYTE_LEVEL;
    } else if (is(type, "Strip")) {
        step->kind = NORMALIZE_STRIP;
        step->left = flag(node, "strip_left", true);
        step->right = flag(node, "strip_right", true);
    } else if (is(type, "Prepend")) {
        const json_t *content = json_object_get(node, "prepend");
        if (!json_is_string(content))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: normaliser Prepend without its text", t->name);
        step->kind = NORMALIZE_PREPEND;
        return copy_text(content, &step->content, &step->content_length);
    } else if (is(type, "Replace")) {
        const json_t *pattern = json_object_get(node, "pattern"), *content = json_object_get(node, "content");
        const json_t *literal = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
        if (!json_is_string(content) || (!json_is_string(literal) && !json_is_string(regex)))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: normaliser Replace without its pattern or content", t->name);
        step->kind = json_is_string(literal) ? NORMALIZE_REPLACE : NORMALIZE_REPLACE_REGEX;
        SETUN_TRY(copy_text(content, &step->content, &step->content_length));
        if (json_is_string(literal))
            return copy_text(literal, &step->pattern, &step->pattern_length);
        return text_regex_compile(json_string_value(regex), json_string_length(regex), t->name, &step->regex);
    } else if (is(type, "Precompiled")) {
        step->kind = NORMALIZE_CHARSMAP;
        return read_charsmap(t, node, step);
    } else {
        t->normalizer_count--;
        return unknown_part(t, "the normaliser", type);
    }
    return SETUN_OK;
}

/* ---- pre-tokeniser ------------------------------------------------------------------------------------------------------ */

static setun_status read_behavior(const setun_tokenizer *t, const json_t *node, split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = string_of(node, "behavior");
    for (int i = 0; i < 5; i++) {
        if (is(name, names[i])) {
            *out = (split_behavior)i;
            return SETUN_OK;
        }
    }
    return unknown_part(t, "the split behaviour", name);
}

static setun_status read_pretokenizer(setun_tokenizer *t, const json_t *node, int depth)
{
    if (!node || json_is_null(node))
        return SETUN_OK;
    static const char words[] = "\\w+|[^\\w\\s]+";
    const char *type = string_of(node, "type");
    split_behavior behavior;
    if (depth > 8)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the pre-tokeniser is nested too deep", t->name);
    if (is(type, "Sequence")) {
        size_t i;
        json_t *one;
        json_array_foreach(json_object_get(node, "pretokenizers"), i, one)
            SETUN_TRY(read_pretokenizer(t, one, depth + 1));
        return SETUN_OK;
    }
    if (is(type, "ByteLevel"))
        return pretokenizer_add_byte_level(t, flag(node, "add_prefix_space", true), flag(node, "use_regex", true));
    if (is(type, "Digits"))
        return pretokenizer_add_digits(t, flag(node, "individual_digits", false));
    if (is(type, "Punctuation")) {
        behavior = SPLIT_ISOLATED;
        if (json_object_get(node, "behavior"))
            SETUN_TRY(read_behavior(t, node, &behavior));
        return pretokenizer_add_punctuation(t, behavior);
    }
    if (is(type, "WhitespaceSplit"))
        return pretokenizer_add_split(t, "\\s", 2, SPLIT_REMOVED, false);
    if (is(type, "Whitespace"))
        return pretokenizer_add_split(t, words, sizeof words - 1, SPLIT_REMOVED, true);
    if (is(type, "Split")) {
        const json_t *pattern = json_object_get(node, "pattern"), *literal = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
        SETUN_TRY(read_behavior(t, node, &behavior));
        if (json_is_string(literal))
            return pretokenizer_add_literal(t, json_string_value(literal), json_string_length(literal), behavior, flag(node, "invert", false));
        if (json_is_string(regex))
            return pretokenizer_add_split(t, json_string_value(regex), json_string_length(regex), behavior, flag(node, "invert", false));
        return setun_fail(SETUN_ERROR_FORMAT, "%s: pre-tokeniser Split without its pattern", t->name);
    }
    if (is(type, "Metaspace")) {
        const json_t *replacement = json_object_get(node, "replacement");
        const char *scheme = string_of(node, "prepend_scheme");
        prepend_scheme prepend = flag(node, "add_prefix_space", true) ? PREPEND_ALWAYS : PREPEND_NEVER; /* the older key */
        if (is(scheme, "always"))
            prepend = PREPEND_ALWAYS;
        else if (is(scheme, "first"))
            prepend = PREPEND_FIRST;
        else if (is(scheme, "never"))
            prepend = PREPEND_NEVER;
        else if (scheme)
            return unknown_part(t, "Metaspace's prepend_scheme", scheme);
        if (!json_is_string(replacement) || json_string_length(replacement) == 0)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: pre-tokeniser Metaspace without its replacement", t->name);
        return pretokenizer_add_metaspace(t, json_string_value(replacement), json_string_length(replacement), prepend, flag(node, "split", true));
    }
    return unknown_part(t, "the pre-tokeniser", type);
}

/* ---- decoder -------------------------------------------------------------------------------------------------------------- */

static setun_status read_decoder(setun_tokenizer *t, const json_t *node, int depth)
{
    const char *type = string_of(node, "type");
    if (depth > 8)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the decoder is nested too deep", t->name);
    if (is(type, "Sequence")) {
        size_t i;
        json_t *one;
        json_array_foreach(json_object_get(node, "decoders"), i, one)
            SETUN_TRY(read_decoder(t, one, depth + 1));
        return SETUN_OK;
    }
    if (is(type, "ByteLevel")) {
        t->byte_level = true;
        return SETUN_OK;
    }
    if (is(type, "Fuse"))
        return SETUN_OK;
    if (is(type, "ByteFallback")) {
        t->decode_bytes = true;
        return SETUN_OK;
    }
    if (is(type, "Metaspace") && is(string_of(node, "replacement"), "\xe2\x96\x81")) {
        const char *scheme = string_of(node, "prepend_scheme");
        t->decode_spaces = true;
        t->decode_strip_first = scheme ? !is(scheme, "never") : flag(node, "add_prefix_space", true);
        return SETUN_OK;
    }
    if (is(type, "Replace") && is(string_of(json_object_get(node, "pattern"), "String"), "\xe2\x96\x81") && is(string_of(node, "content"), " ")) {
        t->decode_spaces = true;
        return SETUN_OK;
    }
    if (is(type, "Strip") && is(string_of(node, "content"), " ") && json_integer_value(json_object_get(node, "stop")) == 0) {
        if (json_integer_value(json_object_get(node, "start")) > 1)
            return unknown_part(t, "the decoder's strip of more than one space", type);
        t->decode_strip_space = json_integer_value(json_object_get(node, "start")) == 1;
        return SETUN_OK;
    }
    return unknown_part(t, "the decoder", type);
}

/* ---- vocabulary ----------------------------------------------------------------------------------------------------------- */

static setun_status read_id(const setun_tokenizer *t, const char *text, const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: the id of token '%.80s' is not a number from 0", t->name, text);
    *out = (uint64_t)json_integer_value(value);
    return SETUN_OK;
}

/* The id of a model's own token by its text; false if it is none. */
static bool model_token(const setun_tokenizer *t, const json_t *vocab, const char *text, size_t length, json_int_t *id)
{
    if (json_is_object(vocab)) {
#if JANSSON_VERSION_HEX >= 0x020e00
        const json_t *value = json_object_getn(vocab, text, length);
#else /* before 2.14 keys end at a zero byte; file/json.c refuses texts that contain one */
        char *key = setun_strndup(text, length);
        const json_t *value = key ? json_object_get(vocab, key) : NULL;
        setun_free(key);
#endif
        *id = json_integer_value(value);
        return value != NULL;
    }
    int32_t found = vocabulary_find(&t->vocabulary, text, length);
    *id = found;
    return found >= 0;
}

static setun_status read_model_tokens(setun_tokenizer *t, const json_t *vocab)
{
    if (json_is_object(vocab)) {
        const char *text;
        size_t length;
        json_t *value;
        json_object_keylen_foreach((json_t *)vocab, text, length, value) {
            uint64_t id = 0;
            SETUN_TRY(read_id(t, text, value, &id));
            SETUN_TRY(vocabulary_add(t, id, text, length, TOKEN_NORMAL, 0));
        }
        return SETUN_OK;
    }
    size_t i;
    json_t *one;
    json_array_foreach(vocab, i, one) {
        const json_t *text = json_array_get(one, 0), *score = json_array_get(one, 1);
        double value = json_number_value(score);
        if (json_array_size(one) != 2 || !json_is_string(text) || !json_is_number(score) || !(value >= -1e30 && value <= 1e30))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: model.vocab[%zu] is not a text and a score", t->name, i);
        SETUN_TRY(vocabulary_add(t, i, json_string_value(text), json_string_length(text), TOKEN_NORMAL, (float)value));
    }
    return SETUN_OK;
}

/* How many added tokens bring an id of their own. Unigram's own texts are not indexed before they are read, so its
 * added tokens count by id. */
static setun_status count_tokens(const setun_tokenizer *t, const json_t *vocab, const json_t *added, uint64_t *out)
{
    uint64_t own = json_is_object(vocab) ? json_object_size(vocab) : json_array_size(vocab), count = own;
    size_t i;
    json_t *one;
    json_array_foreach(added, i, one) {
        const json_t *content = json_object_get(one, "content");
        uint64_t id = 0;
        json_int_t model_id;
        if (!json_is_string(content))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: added_tokens[%zu] has no content", t->name, i);
        SETUN_TRY(read_id(t, json_string_value(content), json_object_get(one, "id"), &id));
        bool brought = json_is_object(vocab) ? !model_token(t, vocab, json_string_value(content), json_string_length(content), &model_id) : id >= own;
        count += brought;
    }
    *out = count;
    return SETUN_OK;
}

static setun_status read_added(setun_tokenizer *t, const json_t *vocab, const json_t *added)
{
    size_t i;
    json_t *one;
    json_array_foreach(added, i, one) {
        const json_t *content = json_object_get(one, "content");
        const char *text = json_string_value(content);
        size_t length = json_string_length(content);
        uint64_t id = 0;
        json_int_t model_id;
        SETUN_TRY(read_id(t, text, json_object_get(one, "id"), &id));
        added_token token = {.special = flag(one, "special", false), .single_word = flag(one, "single_word", false), .left_strip = flag(one, "lstrip", false),
            .right_strip = flag(one, "rstrip", false), .normalized = flag(one, "normalized", true)};
        token_kind kind = token.special ? TOKEN_CONTROL : TOKEN_USER;
        if (model_token(t, vocab, text, length, &model_id)) {
            if ((uint64_t)model_id != id)
                return setun_fail(SETUN_ERROR_FORMAT, "%s: added token '%.80s' has id %llu, but the vocabulary gives it %lld", t->name, text, (unsigned long long)id, (long long)model_id);
            t->vocabulary.tokens[id].kind = (uint8_t)kind;
        } else {
            SETUN_TRY(vocabulary_add(t, id, text, length, kind, 0));
        }
        token.id = (int32_t)id;
        if (length)
            SETUN_TRY(added_push(t, token));
    }
    return SETUN_OK;
}

static setun_status read_merge_list(setun_tokenizer *t, const json_t *merges)
{
    size_t i;
    json_t *one;
    if (!json_is_array(merges))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: model.merges is missing", t->name);
    SETUN_TRY(merges_begin(t, json_array_size(merges)));
    json_array_foreach(merges, i, one) {
        if (json_is_string(one)) {
            const char *text = json_string_value(one), *space = strchr(text, ' ');
            if (!space || strchr(space + 1, ' '))
                return setun_fail(SETUN_ERROR_FORMAT, "%s: model.merges[%zu] is not two pieces with a space between", t->name, i);
            SETUN_TRY(merges_add(t, (int32_t)i, text, (size_t)(space - text), space + 1, json_string_length(one) - (size_t)(space + 1 - text)));
            continue;
        }
        const json_t *left = json_array_get(one, 0), *right = json_array_get(one, 1);
        if (json_array_size(one) != 2 || !json_is_string(left) || !json_is_string(right))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: model.merges[%zu] is not two pieces", t->name, i);
        SETUN_TRY(merges_add(t, (int32_t)i, json_string_value(left), json_string_length(left), json_string_value(right), json_string_length(right)));
    }
    return SETUN_OK;
}

static setun_status read_bpe(setun_tokenizer *t, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = string_of(model, affixes[i]);
        if (affix && *affix)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: model.%s is '%.40s'; Setun only knows BPE without it", t->name, affixes[i], affix);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: model.dropout makes tokens random; set it to null", t->name);
    t->ignore_merges = flag(model, "ignore_merges", false);
    t->fuse_unknown = flag(model, "fuse_unk", false);
    t->byte_fallback = flag(model, "byte_fallback", false);
    const char *unknown = string_of(model, "unk_token");
    if (unknown) {
        t->unknown = t->unknown_declared = tokenizer_find(t, unknown);
        if (t->unknown < 0)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: model.unk_token '%.80s' is not in the vocabulary", t->name, unknown);
    }
    return read_merge_list(t, json_object_get(model, "merges"));
}

setun_status unigram_prepare(setun_tokenizer *t)
{
    const vocabulary *v = &t->vocabulary;
    double lowest = INFINITY, best = -INFINITY;
    for (int32_t id = 0; id < v->count; id++) {
        const token *one = v->tokens + id;
        double score = t->scores ? t->scores[id] : (double)one->score;
        bool piece = t->scores ? !isnan(score) : one->kind == TOKEN_NORMAL || one->kind == TOKEN_USER;
        if (piece && one->length)
            SETUN_TRY(trie_add(&t->pieces, token_text(v, id), one->length, id));
        if (t->scores ? !isnan(score) : one->kind == TOKEN_NORMAL) {
            lowest = score < lowest ? score : lowest;
            best = score > best ? score : best;
        }
    }
    t->unknown_score = isinf(lowest) ? 0 : t->scores ? lowest - 10.0 : (double)((float)lowest - 10.0f);
    t->best_score = isinf(best) ? 0 : best;
    return SETUN_OK;
}

static setun_status read_unigram(setun_tokenizer *t, const json_t *model, size_t own)
{
    const json_t *vocab = json_object_get(model, "vocab");
    t->byte_fallback = flag(model, "byte_fallback", false);
    t->scores = setun_alloc((size_t)t->vocabulary.count * sizeof *t->scores);
    if (!t->scores)
        return setun_fail_memory((size_t)t->vocabulary.count * sizeof *t->scores);
    for (size_t i = 0; i < (size_t)t->vocabulary.count; i++)
        t->scores[i] = i < own ? json_number_value(json_array_get(json_array_get(vocab, i), 1)) : NAN;
    const json_t *unknown = json_object_get(model, "unk_id");
    if (json_is_integer(unknown)) {
        if (json_integer_value(unknown) < 0 || (uint64_t)json_integer_value(unknown) >= own)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: model.unk_id is %lld, but the model has %zu pieces", t->name, (long long)json_integer_value(unknown), own);
        t->unknown = t->unknown_declared = (int32_t)json_integer_value(unknown);
    }
    return unigram_prepare(t);
}

/* ---- post-processor: what ADD_SPECIAL puts around a text --------------------------------------------------------------- */

static setun_status put_special(setun_tokenizer *t, const json_t *id, const char *text, bool behind)
{
    int *count = behind ? &t->suffix_count : &t->prefix_count;
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= t->vocabulary.count)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: the post-processor's token '%.80s' has no valid id", t->name, text ? text : "");
    if (*count == TEMPLATE_IDS_MAX)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the post-processor adds more than %d tokens", t->name, TEMPLATE_IDS_MAX);
    (behind ? t->suffix : t->prefix)[(*count)++] = (int32_t)json_integer_value(id);
    return SETUN_OK;
}

static setun_status read_template(setun_tokenizer *t, const json_t *node)
{
    bool behind = false;
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(node, "single"), i, one) {
        if (json_object_get(one, "Sequence")) {
            if (behind)
                return unknown_part(t, "the post-processor's template with two texts", "TemplateProcessing");
            behind = true;
            continue;
        }
        const char *name = string_of(json_object_get(one, "SpecialToken"), "id");
        if (!name)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: the post-processor's template has an unknown part", t->name);
        const json_t *ids = json_object_get(json_object_get(json_object_get(node, "special_tokens"), name), "ids");
        size_t j;
        json_t *id;
        if (!json_is_array(ids))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: the post-processor's token '%.80s' has no ids", t->name, name);
        json_array_foreach(ids, j, id)
            SETUN_TRY(put_special(t, id, name, behind));
    }
    return SETUN_OK;
}

static setun_status read_postprocessor(setun_tokenizer *t, const json_t *node, int depth)
{
    if (!node || json_is_null(node))
        return SETUN_OK;
    const char *type = string_of(node, "type");
    if (depth > 8)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the post-processor is nested too deep", t->name);
    if (is(type, "Sequence")) {
        size_t i;
        json_t *one;
        json_array_foreach(json_object_get(node, "processors"), i, one)
            SETUN_TRY(read_postprocessor(t, one, depth + 1));
        return SETUN_OK;
    }
    if (is(type, "ByteLevel")) /* offsets only */
        return SETUN_OK;
    if (is(type, "TemplateProcessing"))
        return read_template(t, node);
    if (is(type, "BertProcessing") || is(type, "RobertaProcessing")) {
        const json_t *cls = json_object_get(node, "cls"), *sep = json_object_get(node, "sep");
        SETUN_TRY(put_special(t, json_array_get(cls, 1), json_string_value(json_array_get(cls, 0)), false));
        return put_special(t, json_array_get(sep, 1), json_string_value(json_array_get(sep, 0)), true);
    }
    return unknown_part(t, "the post-processor", type);
}

/* ---- the whole file ------------------------------------------------------------------------------------------------------ */

setun_status tokenizer_from_json(const json_t *root, setun_tokenizer *t)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab"), *added = json_object_get(root, "added_tokens");
    const char *type = string_of(model, "type");
    if (!json_is_object(model))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: not a tokenizer.json: it has no object 'model'", t->name);
    if (!type) /* the oldest files leave it out */
        type = json_is_array(vocab) ? "Unigram" : json_object_get(model, "merges") ? "BPE" : NULL;
    bool bpe = is(type, "BPE");
    if (!bpe && !is(type, "Unigram"))
        return unknown_part(t, "the model", type);
    if (bpe ? !json_is_object(vocab) : !json_is_array(vocab))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: model.vocab is missing or of the wrong kind", t->name);
    if (added && !json_is_null(added) && !json_is_array(added))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: added_tokens is not an array", t->name);
    t->model = bpe ? MODEL_BPE : MODEL_UNIGRAM;
    uint64_t count = 0;
    SETUN_TRY(count_tokens(t, vocab, added, &count));
    SETUN_TRY(vocabulary_begin(t, count));
    SETUN_TRY(read_model_tokens(t, vocab));
    SETUN_TRY(read_added(t, vocab, added));
    const json_t *decoder = json_object_get(root, "decoder");
    if (!decoder || json_is_null(decoder))
        return unknown_part(t, "the decoder", "null");
    SETUN_TRY(read_decoder(t, decoder, 0));
    bool decode_bytes = t->decode_bytes;
    t->decode_bytes = decode_bytes || flag(model, "byte_fallback", false); /* so that the byte tokens are found */
    SETUN_TRY(vocabulary_finish(t));
    SETUN_TRY(bpe ? read_bpe(t, model) : read_unigram(t, model, json_array_size(vocab)));
    SETUN_TRY(read_normalizer(t, json_object_get(root, "normalizer"), 0));
    SETUN_TRY(read_pretokenizer(t, json_object_get(root, "pre_tokenizer"), 0));
    return read_postprocessor(t, json_object_get(root, "post_processor"), 0);
}

/* ---- neighbours ------------------------------------------------------------------------------------------------------------ */

/* "<s>" or {"content": "<s>"}; -1 where it is absent or not in the vocabulary. */
static int32_t named_token(const setun_tokenizer *t, const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    const char *text = json_is_object(value) ? string_of(value, "content") : json_string_value(value);
    return text ? tokenizer_find(t, text) : -1;
}

static setun_status apply_added_flag(setun_tokenizer *t, const json_t *config, const char *key, int32_t id, bool behind)
{
    const json_t *value = json_object_get(config, key);
    int32_t *ids = behind ? t->suffix : t->prefix;
    int *count = behind ? &t->suffix_count : &t->prefix_count;
    if (!json_is_boolean(value) || id < 0)
        return SETUN_OK;
    bool there = *count > 0 && ids[behind ? *count - 1 : 0] == id;
    if (json_is_true(value) && !there) {
        if (*count == TEMPLATE_IDS_MAX)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: more than %d tokens are added to a text", t->name, TEMPLATE_IDS_MAX);
        if (!behind)
            memmove(ids + 1, ids, (size_t)*count * sizeof *ids);
        ids[behind ? *count : 0] = id;
        ++*count;
    } else if (json_is_false(value) && there) {
        if (!behind)
            memmove(ids, ids + 1, (size_t)(*count - 1) * sizeof *ids);
        --*count;
    }
    return SETUN_OK;
}

setun_status tokenizer_apply_config(const json_t *config, setun_tokenizer *t)
{
    if (!json_is_object(config))
        return SETUN_OK;
    t->bos = named_token(t, config, "bos_token");
    t->eos = named_token(t, config, "eos_token");
    t->pad = named_token(t, config, "pad_token");
    t->separator = named_token(t, config, "sep_token");
    t->mask = named_token(t, config, "mask_token");
    if (t->unknown_declared < 0)
        t->unknown_declared = named_token(t, config, "unk_token");
    SETUN_TRY(apply_added_flag(t, config, "add_bos_token", t->bos, false));
    SETUN_TRY(apply_added_flag(t, config, "add_eos_token", t->eos, true));
    const json_t *chat = json_object_get(config, "chat_template");
    size_t i;
    json_t *one;
    if (json_is_array(chat)) { /* several by name: the default one counts */
        const json_t *chosen = NULL;
        json_array_foreach(chat, i, one)
            if (is(string_of(one, "name"), "default"))
                chosen = json_object_get(one, "template");
        chat = chosen;
    }
    return json_is_string(chat) ? tokenizer_set_chat(t, json_string_value(chat), json_string_length(chat)) : SETUN_OK;
}

static setun_status add_end(setun_tokenizer *t, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= t->vocabulary.count)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: generation_config.json: eos_token_id is not an id of the vocabulary's %d tokens", t->name, t->vocabulary.count);
    t->ends[json_integer_value(id)] = true;
    return SETUN_OK;
}

setun_status tokenizer_apply_generation(const json_t *generation, setun_tokenizer *t)
{
    const json_t *ids = json_object_get(generation, "eos_token_id");
    size_t i;
    json_t *one;
    if (json_is_integer(ids))
        return add_end(t, ids);
    json_array_foreach(ids, i, one)
        SETUN_TRY(add_end(t, one));
    return SETUN_OK;
}
