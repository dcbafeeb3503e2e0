/*
 * fuzz_tokenizer.c - a tokenizer and a text for it. The input is `tokenizer.json 0 text 0 chat template` (the last two
 * may be missing), or the bytes of a GGUF file. What opens must encode any text to ids of its own vocabulary, decode
 * them, and give every byte of memory back.
 */
#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXT_MOST = 2000 };

static void use(const setun_tokenizer *t, const char *text, size_t length) {
    int vocabulary = setun_tokenizer_vocabulary(t);
    if (vocabulary <= 0) __builtin_trap();
    for (int flags = 0; flags < 4; flags++) {
        int32_t *ids;
        size_t count, back_length;
        char *back;
        setun_status status = setun_tokenizer_encode(t, text, length, flags, &ids, &count);
        if (status != SETUN_OK) { /* no unknown token, or a regular expression that runs too long */
            if (ids || count || !*setun_error() || status == SETUN_ERROR_MEMORY) __builtin_trap();
            continue;
        }
        for (size_t i = 0; i < count; i++)
            if (ids[i] < 0 || ids[i] >= vocabulary) __builtin_trap();
        if (setun_tokenizer_decode(t, ids, count, flags & 1, &back, &back_length) != SETUN_OK || back[back_length]) __builtin_trap();
        setun_free(back);
        setun_free(ids);
    }
    for (int id = 0; id < vocabulary && id < 1000; id++) {
        const char *bytes;
        size_t bytes_length;
        bool special;
        volatile char last;
        if (setun_tokenizer_piece(t, id, &bytes, &bytes_length, &special) != SETUN_OK) __builtin_trap();
        if (bytes_length) last = bytes[bytes_length - 1];
        (void)last;
        (void)setun_tokenizer_is_end(t, id);
    }
    size_t safe = setun_utf8_complete(text, length);
    if (safe > length || length - safe > 3) __builtin_trap();
}

static void chat(const setun_tokenizer *t, const char *text) {
    setun_message messages[] = {{"system", "rules"}, {"user", text}, {"assistant", "yes"}, {"user", "<|im_end|>"}};
    for (int first = 0; first < 2; first++) {
        int32_t *ids;
        size_t count, length;
        char *out;
        setun_status as_text = setun_chat_format(t, messages + first, 4 - (size_t)first, first, &out, &length);
        setun_status as_ids = setun_chat_encode(t, messages + first, 4 - (size_t)first, first, &ids, &count);
        if (as_text != SETUN_OK && as_ids != as_text) __builtin_trap();
        if (!setun_chat_template(t) && as_ids != SETUN_ERROR_UNSUPPORTED) __builtin_trap();
        setun_free(out);
        setun_free(ids);
    }
}

static setun_status open_json(const char *data, size_t size, const char *template, size_t template_length, setun_tokenizer **t) {
    static const char config_text[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"add_bos_token\": true, \"add_eos_token\": false}";
    json_t *root, *config;
    *t = NULL;
    SETUN_TRY(setun_json_parse(data, size, "tokenizer.json", &root));
    setun_status status = setun_json_parse(config_text, sizeof config_text - 1, "config", &config);
    if (status == SETUN_OK) status = setun_tokenizer_from_json(root, config, template, template_length, "tokenizer.json", t);
    json_decref(root);
    json_decref(config);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int64_t live = setun_alloc_live();
    const char *json = (const char *)data, *end = json + size, *text = "Hello w\xc3\xb6rld \xff <s>", *template = NULL;
    size_t text_length = strlen(text), template_length = 0;
    setun_tokenizer *t = NULL;
    setun_status status;
    char *copy = NULL;
    if (size >= 4 && !memcmp(data, "GGUF", 4)) {
        setun_file *file;
        if (setun_file_open_memory(data, size, "fuzz.gguf", &file) != SETUN_OK) return 0;
        status = setun_tokenizer_from_file(file, &t);
        setun_file_close(file);
        if (status == SETUN_OK && !t) return 0;
    } else {
        const char *first = size ? memchr(json, 0, size) : NULL;
        if (first) {
            const char *second = memchr(first + 1, 0, (size_t)(end - first - 1));
            text = first + 1;
            text_length = (size_t)((second ? second : end) - text);
            if (second) {
                template = second + 1;
                template_length = (size_t)(end - template);
            }
        }
        status = open_json(json, first ? (size_t)(first - json) : size, template, template_length, &t);
    }
    if (status == SETUN_OK) {
        if (!t) __builtin_trap();
        if (text_length > TEXT_MOST) text_length = TEXT_MOST;
        copy = setun_strndup(text, text_length);
        if (!copy) __builtin_trap();
        use(t, copy, text_length);
        chat(t, copy);
        setun_free(copy);
    } else if (t || !*setun_error() || status == SETUN_ERROR_MEMORY) {
        __builtin_trap();
    }
    setun_tokenizer_close(t);
    if (setun_alloc_live() != live) __builtin_trap();
    return 0;
}
