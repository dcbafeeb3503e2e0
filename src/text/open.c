/*
 * open.c - finds a tokenizer's parts: a GGUF file, a tokenizer.json with its neighbours, a folder, an opened model file.
 * Caller: the API, model. Knows nothing of how a part is read.
 */
#include "text/readers.h"
#include <errno.h>
#include <sys/stat.h>

setun_status tokenizer_set_chat(setun_tokenizer *t, const char *text, size_t length)
{
    setun_free(t->chat_text);
    t->chat_text = setun_strndup(text, length);
    t->chat_length = length;
    return t->chat_text ? SETUN_OK : setun_fail_memory(length);
}

static setun_status finish(setun_status status, setun_tokenizer *t, setun_tokenizer **out)
{
    if (status == SETUN_OK)
        status = tokenizer_finish(t);
    if (status != SETUN_OK) {
        setun_tokenizer_destroy(t);
        return status;
    }
    *out = t;
    return SETUN_OK;
}

static setun_status build_from_json(const setun_tokenizer_parts *parts, setun_tokenizer *t)
{
    SETUN_TRY(tokenizer_from_json(parts->tokenizer, t));
    SETUN_TRY(tokenizer_apply_config(parts->config, t));
    SETUN_TRY(tokenizer_apply_generation(parts->generation, t));
    return parts->chat_template ? tokenizer_set_chat(t, parts->chat_template, parts->chat_template_length) : SETUN_OK;
}

setun_status setun_tokenizer_from_parts(const setun_tokenizer_parts *parts, setun_tokenizer **out)
{
    *out = NULL;
    if (!parts->tokenizer)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_from_parts: no tokenizer.json");
    setun_tokenizer *t;
    SETUN_TRY(tokenizer_create(parts->name, &t));
    return finish(build_from_json(parts, t), t, out);
}

setun_status setun_tokenizer_from_json(const json_t *tokenizer_json, const json_t *tokenizer_config, const char *chat_template, size_t chat_template_length, const char *name, setun_tokenizer **out)
{
    setun_tokenizer_parts parts = {.tokenizer = tokenizer_json, .config = tokenizer_config, .chat_template = chat_template,
        .chat_template_length = chat_template_length, .name = name};
    return setun_tokenizer_from_parts(&parts, out);
}

setun_status setun_tokenizer_from_file(setun_file *file, setun_tokenizer **out)
{
    *out = NULL;
    if (setun_file_container(file) == SETUN_GGUF) {
        const setun_value *model = setun_file_find_value(file, "tokenizer.ggml.model");
        const char *text;
        size_t length;
        if (!model)
            return SETUN_OK;
        if (setun_value_string(model, &text, &length) && ((length == 4 && memcmp(text, "none", 4) == 0) || (length == 8 && memcmp(text, "no_vocab", 8) == 0)))
            return SETUN_OK;
        setun_tokenizer *t;
        SETUN_TRY(tokenizer_create(setun_file_path(file), &t));
        return finish(tokenizer_from_gguf(file, t), t, out);
    }
    setun_tokenizer_parts parts = {.name = setun_file_path(file)};
    SETUN_TRY(setun_file_json(file, "tokenizer.json", &parts.tokenizer));
    if (!parts.tokenizer)
        return SETUN_OK;
    SETUN_TRY(setun_file_json(file, "tokenizer_config.json", &parts.config));
    SETUN_TRY(setun_file_json(file, "generation_config.json", &parts.generation));
    SETUN_TRY(setun_file_text(file, "chat_template.jinja", &parts.chat_template, &parts.chat_template_length));
    return setun_tokenizer_from_parts(&parts, out);
}

/* ---- by path -------------------------------------------------------------------------------------------------------- */

enum { CHAT_FILE_LIMIT = 1 << 20 };

static char *beside(const char *folder, size_t folder_length, const char *name)
{
    setun_string path = {0};
    setun_string_append(&path, folder, folder_length);
    if (folder_length && folder[folder_length - 1] != '/')
        setun_string_puts(&path, "/");
    setun_string_puts(&path, name);
    char *out;
    return setun_string_take(&path, &out, NULL) == SETUN_OK ? out : NULL;
}

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* A JSON file that may be absent. */
static setun_status load_beside(const char *folder, size_t folder_length, const char *name, json_t **out)
{
    *out = NULL;
    char *path = beside(folder, folder_length, name);
    if (!path)
        return setun_fail_memory(folder_length);
    setun_status status = exists(path) ? setun_json_load(path, out) : SETUN_OK;
    setun_free(path);
    return status;
}

static setun_status load_text(const char *folder, size_t folder_length, const char *name, char **out, size_t *out_length)
{
    *out = NULL;
    *out_length = 0;
    char *path = beside(folder, folder_length, name);
    if (!path)
        return setun_fail_memory(folder_length);
    setun_status status = SETUN_OK;
    FILE *stream = exists(path) ? fopen(path, "rb") : NULL;
    if (stream) {
        char *text = setun_alloc(CHAT_FILE_LIMIT + 1);
        size_t length = text ? fread(text, 1, CHAT_FILE_LIMIT + 1, stream) : 0;
        if (!text)
            status = setun_fail_memory(CHAT_FILE_LIMIT + 1);
        else if (ferror(stream))
            status = setun_fail(SETUN_ERROR_IO, "%s: %s", path, strerror(errno));
        else if (length > CHAT_FILE_LIMIT)
            status = setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: a chat template of more than %d bytes", path, CHAT_FILE_LIMIT);
        if (status == SETUN_OK) {
            *out = text;
            *out_length = length;
        } else {
            setun_free(text);
        }
        fclose(stream);
    }
    setun_free(path);
    return status;
}

static setun_status open_parts(const char *json_path, const char *folder, size_t folder_length, setun_tokenizer **out)
{
    json_t *tokenizer = NULL, *config = NULL, *generation = NULL;
    char *chat = NULL;
    size_t chat_length = 0;
    setun_status status = setun_json_load(json_path, &tokenizer);
    if (status == SETUN_OK)
        status = load_beside(folder, folder_length, "tokenizer_config.json", &config);
    if (status == SETUN_OK)
        status = load_beside(folder, folder_length, "generation_config.json", &generation);
    if (status == SETUN_OK)
        status = load_text(folder, folder_length, "chat_template.jinja", &chat, &chat_length);
    if (status == SETUN_OK) {
        setun_tokenizer_parts parts = {.tokenizer = tokenizer, .config = config, .generation = generation, .chat_template = chat,
            .chat_template_length = chat_length, .name = json_path};
        status = setun_tokenizer_from_parts(&parts, out);
    }
    json_decref(tokenizer);
    json_decref(config);
    json_decref(generation);
    setun_free(chat);
    return status;
}

setun_status setun_tokenizer_open(const char *path, setun_tokenizer **out)
{
    if (out)
        *out = NULL;
    if (!path || !out)
        return setun_fail(SETUN_ERROR_ARGUMENT, "setun_tokenizer_open: a NULL argument");
    struct stat info;
    if (stat(path, &info) != 0)
        return setun_fail(SETUN_ERROR_IO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) {
        char *json_path = beside(path, strlen(path), "tokenizer.json");
        if (!json_path)
            return setun_fail_memory(0);
        setun_status status = exists(json_path) ? open_parts(json_path, path, strlen(path), out)
                                                : setun_fail(SETUN_ERROR_IO, "%s: the folder has no tokenizer.json", path);
        setun_free(json_path);
        return status;
    }
    char magic[4] = {0};
    FILE *stream = fopen(path, "rb");
    if (!stream)
        return setun_fail(SETUN_ERROR_IO, "%s: %s", path, strerror(errno));
    size_t read = fread(magic, 1, 4, stream);
    fclose(stream);
    if (read == 4 && memcmp(magic, "GGUF", 4) == 0) {
        setun_file *file;
        SETUN_TRY(setun_file_open(path, NULL, &file));
        setun_status status = setun_tokenizer_from_file(file, out);
        setun_file_close(file);
        if (status == SETUN_OK && !*out)
            status = setun_fail(SETUN_ERROR_FORMAT, "%s: the file has no tokenizer (tokenizer.ggml.model)", path);
        return status;
    }
    const char *slash = strrchr(path, '/');
    return slash ? open_parts(path, path, (size_t)(slash - path) + 1, out) : open_parts(path, "", 0, out);
}

void setun_tokenizer_close(setun_tokenizer *tokenizer)
{
    setun_tokenizer_destroy(tokenizer);
}
