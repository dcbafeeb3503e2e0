/*
 * fuzz_model.c - any bytes as a GGUF file, a safetensors file or a folder (folder.h), through the public API as a program would
 * use it: inspect, open, tokenize, chat, make a session, feed, generate, embed, explain. Whatever happens: a refusal has
 * a printable reason and leaves nothing behind, reports are JSON, ids are in range.
 */
#include "base/base.h"
#include "folder.h"
#include <jansson.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[256];

static void remove_file(const char *name) {
    char path[320];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static void clean_up(void) {
    for (int i = 0; i < FOLDER_FILES; i++) remove_file(folder_names[i]);
    remove_file("model.gguf");
    rmdir(folder);
}

static void write_file(const char *name, const uint8_t *data, size_t size, char *path, size_t path_size) {
    snprintf(path, path_size, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f)) abort(); /* the disk is full, say */
}

/* What people are shown must be text: no control characters, no broken UTF-8. */
static void check_printable(const char *text) {
    if (setun_utf8_complete(text, strlen(text)) != strlen(text)) __builtin_trap();
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p < 0x20 || *p == 0x7f) __builtin_trap();
    json_t *json = json_stringn(text, strlen(text)); /* jansson knows UTF-8 */
    if (!json) __builtin_trap();
    json_decref(json);
}

static bool ok(setun_status status) {
    if (status == SETUN_OK) return true;
    if (!*setun_error() || status == SETUN_ERROR_MEMORY || status == SETUN_ERROR_ARGUMENT || status == SETUN_ERROR_STATE) { /* this program makes no mistakes */
        fprintf(stderr, "%s: %s\n", setun_status_name(status), setun_error());
        __builtin_trap();
    }
    check_printable(setun_error());
    return false;
}

static void check_json(const char *text) {
    json_error_t error;
    json_t *json = json_loads(text, JSON_ALLOW_NUL, &error);
    if (!json) __builtin_trap();
    json_decref(json);
}

static void log_line(void *user, setun_log_level level, const char *line) {
    (void)user;
    (void)level;
    check_printable(line);
}

static void use_tokenizer(const setun_tokenizer *t) {
    static const char text[] = "The 3 c\xc3\xa1ts, don't<|im_end|> \xff\xe2\x82 \n\n  sat</s>";
    int vocabulary = setun_tokenizer_vocabulary(t);
    if (vocabulary < 1 || setun_tokenizer_bos(t) >= vocabulary || setun_tokenizer_eos(t) >= vocabulary) __builtin_trap();
    for (int flags = 0; flags < 4; flags++) {
        int32_t *ids = NULL;
        size_t count = 0;
        if (!ok(setun_tokenizer_encode(t, text, sizeof text - 1, flags, &ids, &count))) continue;
        char *back = NULL;
        size_t length = 0;
        for (size_t i = 0; i < count; i++)
            if (ids[i] < 0 || ids[i] >= vocabulary) __builtin_trap();
        if (ok(setun_tokenizer_decode(t, ids, count, true, &back, &length)) && back[length]) __builtin_trap();
        setun_free(back);
        setun_free(ids);
    }
    for (int32_t id = 0; id < vocabulary && id < 1000; id++) {
        const char *bytes;
        size_t length;
        bool special;
        if (ok(setun_tokenizer_piece(t, id, &bytes, &length, &special)) && length && !memchr(bytes, bytes[length - 1], length)) __builtin_trap();
        (void)setun_tokenizer_is_end(t, id);
    }
    const setun_message messages[] = {{"system", "Be <|im_end|> brief"}, {"user", "Hi\n"}, {"assistant", "Hello"}, {"user", ""}};
    for (size_t count = 1; count <= 4; count += 3) {
        int32_t *ids = NULL;
        size_t length = 0;
        char *formatted = NULL;
        if (ok(setun_chat_encode(t, messages, count, true, &ids, &length)))
            for (size_t i = 0; i < length; i++)
                if (ids[i] < 0 || ids[i] >= vocabulary) __builtin_trap();
        (void)ok(setun_chat_format(t, messages, count, false, &formatted, &length));
        setun_free(formatted);
        setun_free(ids);
    }
}

static bool take_event(void *user, const setun_token_event *event) {
    (void)user;
    if (event->length && setun_utf8_complete(event->text, event->length) > event->length) __builtin_trap();
    return true;
}

static void use_session(setun_session *session, const setun_model_info *info) {
    int32_t ids[3] = {0, info->vocabulary - 1, info->vocabulary / 2};
    int vocabulary;
    if (ok(setun_session_feed(session, ids, 3))) {
        if (!setun_session_logits(session, &vocabulary) || vocabulary != info->vocabulary || setun_session_position(session) != 3) __builtin_trap();
        setun_sampler_options how = {.size = sizeof how, .temperature = 0.8f, .top_k = 5, .top_p = 0.9f, .seed = 1};
        setun_sampler *sampler;
        if (ok(setun_sampler_create(&how, vocabulary, &sampler))) {
            setun_generate_options generate = {.size = sizeof generate, .tokens = 2, .token = take_event, .ignore_end = true};
            setun_status status = setun_generate(session, sampler, NULL, 0, &generate, NULL);
            if (status != SETUN_ERROR_ARGUMENT || !strstr(setun_error(), "logit")) (void)ok(status); /* broken weights: logits are no numbers, and it says so */
            setun_sampler_destroy(sampler);
        }
    }
    float *embedding = malloc((size_t)info->width * sizeof *embedding);
    if (embedding) (void)ok(setun_session_embed(session, ids, 3, embedding));
    free(embedding);
}

static void use_model(setun_model *model) {
    setun_model_info info = {.size = sizeof info};
    if (!ok(setun_model_get_info(model, &info)) || info.vocabulary < 1 || info.width < 1 || info.layers < 1) __builtin_trap();
    if (setun_model_tokenizer(model)) use_tokenizer(setun_model_tokenizer(model));
    setun_session_options options = {.size = sizeof options, .context = 8, .batch = 4};
    setun_session *session;
    if (ok(setun_session_create(model, &options, &session))) {
        use_session(session, &info);
        setun_session_destroy(session);
    }
    for (int json = 0; json < 2; json++) {
        setun_explain_options explain = {.size = sizeof explain, .session = options, .json = json};
        char *text;
        if (!ok(setun_model_explain(model, &explain, &text))) continue;
        if (json) check_json(text);
        setun_free(text);
    }
}

static void use(setun_context *context, const char *path, bool folder_or_gguf) {
    char *report = NULL;
    bool deep = ok(setun_file_inspect(context, path, NULL, true, &report));
    if (deep) check_json(report);
    else if (report) __builtin_trap();
    setun_free(report);
    report = NULL;
    if (ok(setun_file_inspect(context, path, NULL, false, &report)) != deep) __builtin_trap();
    setun_free(report);
    setun_model *model;
    if (ok(setun_model_open(context, path, NULL, &model))) {
        if (!deep) __builtin_trap(); /* what can be opened can be inspected */
        use_model(model);
        setun_model_close(model);
    } else if (model) {
        __builtin_trap();
    }
    setun_tokenizer *tokenizer;
    if (!folder_or_gguf) return;
    if (ok(setun_tokenizer_open(path, &tokenizer))) {
        use_tokenizer(tokenizer);
        setun_tokenizer_close(tokenizer);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static setun_context *context;
    char path[320];
    if (!context) {
        const char *temporary = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%s/setun-fuzz-XXXXXX", temporary && *temporary ? temporary : "/tmp");
        setun_context_options options = {.size = sizeof options, .threads = 1, .log = log_line, .log_level = SETUN_LOG_DEBUG};
        if (!mkdtemp(folder) || setun_context_create(&options, &context) != SETUN_OK) abort();
        atexit(clean_up);
        setun_model *none;
        if (setun_model_open(context, folder, NULL, &none) == SETUN_OK) abort(); /* a context keeps a list of devices from its first model on */
    }
    int64_t live = setun_alloc_live();
    folder_part parts[FOLDER_FILES];
    if (folder_unpack(data, size, parts)) {
        for (int i = 0; i < FOLDER_FILES; i++) {
            if (parts[i].data) write_file(folder_names[i], parts[i].data, parts[i].size, path, sizeof path);
            else remove_file(folder_names[i]);
        }
        use(context, folder, true);
    } else if (size >= 4 && !memcmp(data, "GGUF", 4)) {
        write_file("model.gguf", data, size, path, sizeof path);
        use(context, path, true);
    } else {
        for (int i = 0; i < FOLDER_FILES; i++) remove_file(folder_names[i]);
        write_file("model.safetensors", data, size, path, sizeof path);
        use(context, path, false);
    }
    if (setun_alloc_live() != live) __builtin_trap();
    return 0;
}
