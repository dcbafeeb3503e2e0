/*
 * json.c - JSON with limits: size, depth, duplicate keys, and messages that say line and column.
 * Callers: safetensors headers, config.json, tokenizer.json, requests of the server. Parsing itself is jansson's.
 *
 * jansson allocates with malloc: its allocator is one setting for the whole process, which a library must not change under
 * the program that uses it. Tests that count or fail allocations set it themselves (json_set_alloc_funcs).
 */
#include "file/file_internal.h"
#include <inttypes.h>

#define JSON_BYTES_MAX ((uint64_t)256 << 20)
#define JSON_DEPTH_MAX 128 /* tokenizer.json nests about 10 deep; every level costs the parser a stack frame */

static bool wider_than_i64(const char *digits, size_t count, bool negative) {
    while (count > 1 && *digits == '0') digits++, count--;
    if (count != 19) return count > 19;
    return memcmp(digits, negative ? "9223372036854775808" : "9223372036854775807", 19) > 0;
}

/* Where byte `at` lies, as people count: from 1. */
static void locate(const char *text, size_t at, int *line, int *column) {
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n') { ++*line; *column = 1; }
        else if (((unsigned char)text[i] & 0xc0) != 0x80) ++*column;
    }
}

/*
 * One pass before the parser: nesting depth, and integers that no 64-bit integer holds. Published tokenizer_config.json
 * files say "model_max_length": 1000000000000000019884624838656; such a number becomes a real by ".0" after it, in a
 * copy that is only made when there is one.
 */
static setun_status scan(const char *text, size_t length, const char *name, setun_string *copy, bool *copied) {
    size_t done = 0;
    int depth = 0, line, column;
    *copied = false;
    for (size_t i = 0; i < length;) {
        char c = text[i];
        if (c == '"') {
            for (i++; i < length && text[i] != '"'; i++)
                if (text[i] == '\\') i++;
            i++;
        } else if (c == '[' || c == '{') {
            if (++depth > JSON_DEPTH_MAX) {
                locate(text, i, &line, &column);
                return setun_fail(SETUN_ERROR_FORMAT, "%s: line %d, column %d: JSON nests deeper than %d levels", name, line, column, JSON_DEPTH_MAX);
            }
            i++;
        } else if (c == ']' || c == '}') {
            depth--;
            i++;
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            size_t digits = i + (c == '-'), end = digits;
            while (end < length && text[end] >= '0' && text[end] <= '9') end++;
            bool real = end < length && (text[end] == '.' || text[end] == 'e' || text[end] == 'E');
            if (!real && wider_than_i64(text + digits, end - digits, c == '-')) {
                setun_string_append(copy, text + done, end - done);
                setun_string_append(copy, ".0", 2);
                done = end;
                *copied = true;
            }
            i = end;
            while (real && i < length && (text[i] == '.' || text[i] == 'e' || text[i] == 'E' || text[i] == '+' || text[i] == '-' || (text[i] >= '0' && text[i] <= '9'))) i++;
        } else {
            i++;
        }
    }
    if (*copied) setun_string_append(copy, text + done, length - done);
    return SETUN_OK;
}

setun_status setun_json_parse(const char *text, size_t length, const char *name, json_t **out) {
    *out = NULL;
    if (length > JSON_BYTES_MAX)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: has %zu bytes of JSON, the limit is %" PRIu64, name, length, JSON_BYTES_MAX);
    setun_string copy = {0};
    bool copied;
    setun_status status = scan(text, length, name, &copy, &copied);
    if (status == SETUN_OK && copy.failed) status = setun_fail_memory(length);
    if (status != SETUN_OK) {
        setun_string_clear(&copy);
        return status;
    }
    json_error_t error = {0};
    *out = json_loadb(copied ? copy.data : text, copied ? copy.length : length, JSON_REJECT_DUPLICATES, &error);
    setun_string_clear(&copy);
    if (*out) return SETUN_OK;
    /* where jansson runs out of memory it often has no message at all */
    if (json_error_code(&error) == json_error_out_of_memory || !error.text[0]) return setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory while parsing JSON", name);
    return setun_fail(SETUN_ERROR_FORMAT, "%s: line %d, column %d: %s", name, error.line > 0 ? error.line : 1, error.column, error.text);
}

setun_status setun_json_load(const char *path, json_t **out) {
    *out = NULL;
    bool there;
    char *text;
    size_t length;
    SETUN_TRY(setun_read_whole(path, JSON_BYTES_MAX, &there, &text, &length));
    if (!there) return setun_fail(SETUN_ERROR_IO, "%s: there is no such file", path);
    setun_status status = setun_json_parse(text, length, path, out);
    setun_free(text);
    return status;
}
