/*
 * json.c - a JSON parser with limits (size, depth, number of values, duplicate keys) and messages that say line and column.
 * Callers: safetensors headers, config.json, tokenizer.json. The tree is jansson's, the parser is not: jansson's own stops
 * the program on an assertion when memory runs out in it, and refuses integers wider than 64 bits, which published
 * tokenizer_config.json files have ("model_max_length": 1000000000000000019884624838656): here they become reals.
 *
 * jansson's tree is allocated with malloc: its allocator is one setting for the whole process, which a library must not
 * change under the program that uses it. Tests that count or fail allocations set it themselves (json_set_alloc_funcs).
 */
#include "file/file_internal.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#define JSON_BYTES_MAX ((uint64_t)256 << 20)
#define JSON_DEPTH_MAX 128 /* tokenizer.json nests about 10 deep; every level costs a stack frame */
/* "{}," is 3 bytes in the file and 250 in memory: without these limits a file of 256 MiB could take 20 GB. The largest
 * tokenizer.json published has 0.5 million containers and 2 million values. */
#define JSON_CONTAINERS_MAX ((uint64_t)1 << 21)
#define JSON_VALUES_MAX ((uint64_t)1 << 24)

typedef struct parser {
    const char *name;
    const uint8_t *start, *at, *end;
    setun_string text; /* the string read last, 0-terminated */
    int depth;
    uint64_t containers, values;
} parser;

static setun_status parse_value(parser *p, json_t **out);

static setun_status refuse(const parser *p, const uint8_t *at, const char *format, ...) __attribute__((format(printf, 3, 4)));
static setun_status refuse(const parser *p, const uint8_t *at, const char *format, ...) {
    char why[300];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    uint64_t line = 1, column = 1; /* as people count: from 1, in characters */
    for (const uint8_t *c = p->start; c < at; c++) {
        if (*c == '\n') { line++; column = 1; }
        else if ((*c & 0xc0) != 0x80) column++;
    }
    return setun_fail(SETUN_ERROR_FORMAT, "%s: line %" PRIu64 ", column %" PRIu64 ": %s", p->name, line, column, why);
}

static setun_status out_of_memory(const parser *p) { return setun_fail(SETUN_ERROR_MEMORY, "%s: out of memory while parsing JSON", p->name); }

static void skip_space(parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\r' || *p->at == '\t')) p->at++;
}

static setun_status expected(const parser *p, const char *what) {
    if (p->at == p->end) return refuse(p, p->at, "the text ends where %s should be", what);
    if (*p->at >= 0x20 && *p->at < 0x7f) return refuse(p, p->at, "'%c' where %s should be", *p->at, what);
    return refuse(p, p->at, "byte 0x%02x where %s should be", *p->at, what);
}

/* ---- strings ---- */

static bool hex4(const parser *p, const uint8_t *at, uint32_t *out) {
    *out = 0;
    if (p->end - at < 4) return false;
    for (int i = 0; i < 4; i++) {
        uint8_t c = at[i];
        uint32_t digit = c >= '0' && c <= '9' ? c - '0' + 0u : c >= 'a' && c <= 'f' ? c - 'a' + 10u : c >= 'A' && c <= 'F' ? c - 'A' + 10u : 16;
        if (digit > 15) return false;
        *out = *out << 4 | digit;
    }
    return true;
}

static void append_code_point(setun_string *s, uint32_t c) {
    char utf8[4];
    size_t n = 0;
    if (c < 0x80) utf8[n++] = (char)c;
    else if (c < 0x800) utf8[n++] = (char)(0xc0 | c >> 6);
    else if (c < 0x10000) {
        utf8[n++] = (char)(0xe0 | c >> 12);
        utf8[n++] = (char)(0x80 | (c >> 6 & 63));
    } else {
        utf8[n++] = (char)(0xf0 | c >> 18);
        utf8[n++] = (char)(0x80 | (c >> 12 & 63));
        utf8[n++] = (char)(0x80 | (c >> 6 & 63));
    }
    if (c >= 0x80) utf8[n++] = (char)(0x80 | (c & 63));
    setun_string_append(s, utf8, n);
}

/* at the backslash */
static setun_status parse_escape(parser *p) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const uint8_t *start = p->at++;
    if (p->at == p->end) return refuse(p, start, "the text ends inside a string");
    uint8_t c = *p->at++;
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple) {
        setun_string_append(&p->text, &to[simple - from], 1);
        return SETUN_OK;
    }
    uint32_t code, low;
    if (c != 'u') return refuse(p, start, "a backslash before a character that is no escape");
    if (!hex4(p, p->at, &code)) return refuse(p, start, "\\u without four hexadecimal digits");
    p->at += 4;
    if (code >= 0xd800 && code < 0xdc00) {
        if (p->end - p->at < 6 || p->at[0] != '\\' || p->at[1] != 'u' || !hex4(p, p->at + 2, &low) || low < 0xdc00 || low > 0xdfff)
            return refuse(p, start, "half of a surrogate pair");
        p->at += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
        return refuse(p, start, "half of a surrogate pair");
    } else if (!code) {
        return refuse(p, start, "\\u0000 in a string is not supported");
    }
    append_code_point(&p->text, code);
    return SETUN_OK;
}

/* Into p->text. */
static setun_status parse_string(parser *p) {
    const uint8_t *start = p->at;
    if (p->at == p->end || *p->at != '"') return expected(p, "a string");
    p->at++;
    p->text.length = 0;
    for (;;) {
        const uint8_t *run = p->at;
        while (p->at < p->end && *p->at >= 0x20 && *p->at < 0x80 && *p->at != '"' && *p->at != '\\') p->at++;
        setun_string_append(&p->text, (const char *)run, (size_t)(p->at - run));
        if (p->at == p->end) return refuse(p, start, "the text ends inside a string that starts here");
        if (*p->at == '"') break;
        if (*p->at == '\\') {
            SETUN_TRY(parse_escape(p));
        } else if (*p->at < 0x20) {
            return refuse(p, p->at, "byte 0x%02x inside a string", *p->at);
        } else {
            unsigned n = setun_utf8_sequence(p->at, (uint64_t)(p->end - p->at));
            if (!n) return refuse(p, p->at, "byte 0x%02x is not valid UTF-8", *p->at);
            setun_string_append(&p->text, (const char *)p->at, n);
            p->at += n;
        }
    }
    p->at++;
    setun_string_append(&p->text, "", 0); /* also where nothing came: the 0 at the end */
    return p->text.failed ? out_of_memory(p) : SETUN_OK;
}

/* ---- numbers ---- */

static bool digit(const parser *p, const uint8_t *at) { return at < p->end && *at >= '0' && *at <= '9'; }

/* strtod reads the decimal point of the process's locale: give it that. */
static bool to_real(const parser *p, const uint8_t *start, double *out) {
    char point[8], small[64];
    size_t length = (size_t)(p->at - start), filled = 0;
    snprintf(point, sizeof point, "%.1f", 0.5); /* "0.5", "0,5" */
    size_t point_length = strlen(point) - 2;
    char *text = length * (point_length + 1) + 1 <= sizeof small ? small : setun_alloc(length * (point_length + 1) + 1);
    if (!text) return false;
    for (size_t i = 0; i < length; i++) {
        if (start[i] == '.') {
            memcpy(text + filled, point + 1, point_length);
            filled += point_length;
        } else {
            text[filled++] = (char)start[i];
        }
    }
    text[filled] = 0;
    *out = strtod(text, NULL);
    if (text != small) setun_free(text);
    return true;
}

static bool to_integer(const parser *p, const uint8_t *start, json_int_t *out) {
    bool negative = *start == '-';
    uint64_t value = 0;
    for (const uint8_t *c = start + negative; c < p->at; c++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(*c - '0'), &value)) return false;
    if (value > (uint64_t)INT64_MAX + negative) return false;
    *out = negative ? (json_int_t)(0 - value) : (json_int_t)value;
    return true;
}

static setun_status parse_number(parser *p, json_t **out) {
    const uint8_t *start = p->at;
    bool integer = true;
    if (*p->at == '-') p->at++;
    if (!digit(p, p->at)) return expected(p, "a digit");
    if (*p->at == '0' && digit(p, p->at + 1)) return refuse(p, start, "a number starts with 0");
    while (digit(p, p->at)) p->at++;
    if (p->at < p->end && *p->at == '.') {
        integer = false;
        p->at++;
        if (!digit(p, p->at)) return expected(p, "a digit");
        while (digit(p, p->at)) p->at++;
    }
    if (p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
        integer = false;
        p->at++;
        if (p->at < p->end && (*p->at == '+' || *p->at == '-')) p->at++;
        if (!digit(p, p->at)) return expected(p, "a digit");
        while (digit(p, p->at)) p->at++;
    }
    json_int_t whole;
    double real;
    if (integer && to_integer(p, start, &whole)) {
        *out = json_integer(whole);
    } else {
        if (!to_real(p, start, &real)) return out_of_memory(p);
        if (!isfinite(real)) return refuse(p, start, "the number is too large");
        *out = json_real(real);
    }
    return *out ? SETUN_OK : out_of_memory(p);
}

/* ---- containers ---- */

static setun_status enter(parser *p) {
    if (++p->depth > JSON_DEPTH_MAX) return refuse(p, p->at, "JSON nests deeper than %d levels", JSON_DEPTH_MAX);
    if (++p->containers > JSON_CONTAINERS_MAX) return refuse(p, p->at, "more than %" PRIu64 " arrays and objects", JSON_CONTAINERS_MAX);
    p->at++;
    skip_space(p);
    return SETUN_OK;
}

/* After an element: true if another follows; *status says what is wrong. */
static bool another(parser *p, uint8_t closing, setun_status *status) {
    skip_space(p);
    if (p->at < p->end && *p->at == ',') {
        p->at++;
        skip_space(p);
        return true;
    }
    if (p->at < p->end && *p->at == closing) p->at++;
    else *status = expected(p, closing == ']' ? "',' or ']'" : "',' or '}'");
    return false;
}

static setun_status parse_array(parser *p, json_t *array) {
    setun_status status = enter(p);
    if (status == SETUN_OK && p->at < p->end && *p->at == ']') {
        p->at++;
    } else {
        while (status == SETUN_OK) {
            json_t *element;
            status = parse_value(p, &element);
            if (status == SETUN_OK && json_array_append_new(array, element)) status = out_of_memory(p);
            if (status != SETUN_OK || !another(p, ']', &status)) break;
        }
    }
    p->depth--;
    return status;
}

static setun_status parse_member(parser *p, json_t *object) {
    const uint8_t *start = p->at;
    SETUN_TRY(parse_string(p));
    if (json_object_get(object, p->text.data)) return refuse(p, start, "duplicate key '%.150s'", p->text.data);
    char *key = setun_strndup(p->text.data, p->text.length);
    if (!key) return out_of_memory(p);
    skip_space(p);
    json_t *value = NULL;
    setun_status status;
    if (p->at < p->end && *p->at == ':') {
        p->at++;
        status = parse_value(p, &value);
    } else {
        status = expected(p, "':'");
    }
    if (status == SETUN_OK && json_object_set_new_nocheck(object, key, value)) status = out_of_memory(p);
    setun_free(key);
    return status;
}

static setun_status parse_object(parser *p, json_t *object) {
    setun_status status = enter(p);
    if (status == SETUN_OK && p->at < p->end && *p->at == '}') {
        p->at++;
    } else {
        while (status == SETUN_OK) {
            status = parse_member(p, object);
            if (status != SETUN_OK || !another(p, '}', &status)) break;
        }
    }
    p->depth--;
    return status;
}

static bool word(parser *p, const char *text) {
    size_t length = strlen(text);
    if ((size_t)(p->end - p->at) < length || memcmp(p->at, text, length)) return false;
    p->at += length;
    return true;
}

static setun_status parse_value(parser *p, json_t **out) {
    *out = NULL;
    skip_space(p);
    if (p->at == p->end) return expected(p, "a value");
    if (++p->values > JSON_VALUES_MAX) return refuse(p, p->at, "more than %" PRIu64 " values", JSON_VALUES_MAX);
    setun_status status = SETUN_OK;
    switch (*p->at) {
    case '{':
        if (!(*out = json_object())) return out_of_memory(p);
        status = parse_object(p, *out);
        break;
    case '[':
        if (!(*out = json_array())) return out_of_memory(p);
        status = parse_array(p, *out);
        break;
    case '"':
        SETUN_TRY(parse_string(p));
        *out = json_stringn_nocheck(p->text.data, p->text.length);
        return *out ? SETUN_OK : out_of_memory(p);
    case '-': case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9':
        return parse_number(p, out);
    default:
        if (word(p, "true")) *out = json_true();
        else if (word(p, "false")) *out = json_false();
        else if (word(p, "null")) *out = json_null();
        else return word(p, "NaN") || word(p, "Infinity") ? refuse(p, p->at, "NaN and Infinity are not JSON") : expected(p, "a value");
    }
    if (status != SETUN_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

setun_status setun_json_parse(const char *text, size_t length, const char *name, json_t **out) {
    *out = NULL;
    if (length > JSON_BYTES_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: has %zu bytes of JSON, the limit is %" PRIu64, name, length, JSON_BYTES_MAX);
    parser p = {.name = name, .start = (const uint8_t *)text, .at = (const uint8_t *)text, .end = (const uint8_t *)text + length};
    setun_status status = parse_value(&p, out);
    if (status == SETUN_OK) {
        skip_space(&p);
        if (p.at != p.end) {
            status = expected(&p, "the end");
            json_decref(*out);
            *out = NULL;
        }
    }
    setun_string_clear(&p.text);
    return status;
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
