/* string.c - a growing byte string with sticky failure: append freely, check once in setun_string_take. */
#include "base/base.h"
#include <locale.h>
#include <pthread.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

/* A program around the library may write numbers with a comma; reports are JSON, which has points only. */
static locale_t plain_locale;
static pthread_once_t plain_locale_once = PTHREAD_ONCE_INIT;
static void make_plain_locale(void) { plain_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); }

static bool reserve(setun_string *s, size_t more) {
    if (s->failed) return false;
    if (more > SIZE_MAX / 2 - s->length - 1) { s->failed = true; return false; }
    size_t need = s->length + more + 1;
    if (need <= s->capacity) return true;
    size_t capacity = s->capacity ? s->capacity : 128;
    while (capacity < need) capacity *= 2;
    char *data = setun_realloc(s->data, capacity);
    if (!data) { s->failed = true; return false; }
    s->data = data;
    s->capacity = capacity;
    return true;
}

void setun_string_append(setun_string *s, const char *bytes, size_t length) {
    if (!reserve(s, length)) return;
    if (length) memcpy(s->data + s->length, bytes, length);
    s->length += length;
    s->data[s->length] = 0;
}

void setun_string_puts(setun_string *s, const char *text) { setun_string_append(s, text, strlen(text)); }

void setun_string_printf(setun_string *s, const char *format, ...) {
    va_list arguments, again;
    pthread_once(&plain_locale_once, make_plain_locale);
    locale_t before = plain_locale ? uselocale(plain_locale) : (locale_t)0; /* this thread's */
    va_start(arguments, format);
    va_copy(again, arguments);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (n < 0) s->failed = true;
    else if (reserve(s, (size_t)n)) {
        vsnprintf(s->data + s->length, (size_t)n + 1, format, again);
        s->length += (size_t)n;
    }
    va_end(again);
    if (before) uselocale(before);
}

/* Length of the valid UTF-8 sequence at p, 0 if there is none. Overlong forms and surrogates are invalid. */
static int utf8_sequence(const unsigned char *p, size_t left) {
    if (p[0] < 0x80) return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf && left >= 2 && (p[1] & 0xc0) == 0x80) return 2;
    if ((p[0] & 0xf0) == 0xe0 && left >= 3 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80 &&
        !(p[0] == 0xe0 && p[1] < 0xa0) && !(p[0] == 0xed && p[1] > 0x9f)) return 3;
    if (p[0] >= 0xf0 && p[0] <= 0xf4 && left >= 4 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80 && (p[3] & 0xc0) == 0x80 &&
        !(p[0] == 0xf0 && p[1] < 0x90) && !(p[0] == 0xf4 && p[1] > 0x8f)) return 4;
    return 0;
}

void setun_string_json(setun_string *s, const char *text, size_t length) {
    setun_string_append(s, "\"", 1);
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)text[i];
        int n = utf8_sequence((const unsigned char *)text + i, length - i);
        if (c == '"' || c == '\\') { char escaped[2] = {'\\', (char)c}; setun_string_append(s, escaped, 2); i++; }
        else if (c == '\n') { setun_string_puts(s, "\\n"); i++; }
        else if (c == '\t') { setun_string_puts(s, "\\t"); i++; }
        else if (c < 0x20 || c == 0x7f) { setun_string_printf(s, "\\u%04x", c); i++; }
        else if (!n) { setun_string_puts(s, "\xef\xbf\xbd"); i++; }
        else { setun_string_append(s, text + i, (size_t)n); i += (size_t)n; }
    }
    setun_string_append(s, "\"", 1);
}

setun_status setun_string_take(setun_string *s, char **out, size_t *out_length) {
    setun_string_append(s, "", 0);
    if (s->failed) {
        setun_string_clear(s);
        *out = NULL;
        if (out_length) *out_length = 0;
        return setun_fail(SETUN_ERROR_MEMORY, "out of memory while building a text");
    }
    *out = s->data;
    if (out_length) *out_length = s->length;
    memset(s, 0, sizeof *s);
    return SETUN_OK;
}

void setun_string_clear(setun_string *s) {
    setun_free(s->data);
    memset(s, 0, sizeof *s);
}
