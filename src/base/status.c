/* status.c - the thread's last error message, and logging. Called by everything; knows nothing above it. */
#include "base/base.h"
#include <time.h>

#define MESSAGE_BYTES 1024
static _Thread_local char message[MESSAGE_BYTES];

const char *setun_version(void) {
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
    return TEXT(SETUN_VERSION_MAJOR) "." TEXT(SETUN_VERSION_MINOR) "." TEXT(SETUN_VERSION_PATCH);
}

const char *setun_status_name(setun_status status) {
    switch (status) {
    case SETUN_OK: return "SETUN_OK";
    case SETUN_ERROR_ARGUMENT: return "SETUN_ERROR_ARGUMENT";
    case SETUN_ERROR_MEMORY: return "SETUN_ERROR_MEMORY";
    case SETUN_ERROR_IO: return "SETUN_ERROR_IO";
    case SETUN_ERROR_FORMAT: return "SETUN_ERROR_FORMAT";
    case SETUN_ERROR_UNSUPPORTED: return "SETUN_ERROR_UNSUPPORTED";
    case SETUN_ERROR_CONTEXT: return "SETUN_ERROR_CONTEXT";
    case SETUN_ERROR_CANCELLED: return "SETUN_ERROR_CANCELLED";
    case SETUN_ERROR_STATE: return "SETUN_ERROR_STATE";
    case SETUN_ERROR_DEVICE: return "SETUN_ERROR_DEVICE";
    }
    return "SETUN_ERROR_UNKNOWN";
}

const char *setun_error(void) { return message; }

/* Length of the UTF-8 sequence at p, 0 if there is none that a terminal should see. The text ends with a 0, which no sequence contains. */
static size_t printable(const unsigned char *p) {
    if (p[0] < 0x80) return p[0] >= 0x20 && p[0] != 0x7f;
    size_t count = p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : 0;
    for (size_t i = 1; i < count; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xc2 && p[1] < 0xa0) return 0;                                       /* control characters too */
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90)) return 0;    /* longer than needed */
    if ((p[0] == 0xed && p[1] >= 0xa0) || (p[0] == 0xf4 && p[1] >= 0x90)) return 0;  /* surrogates, beyond Unicode */
    return count;
}

/* Bytes from files reach messages: control characters and broken UTF-8 must not reach a terminal. */
static void make_printable(char *text) {
    for (char *p = text; *p;) {
        size_t count = printable((const unsigned char *)p);
        if (!count) *p = *p == '\n' || *p == '\t' ? ' ' : '?';
        p += count ? count : 1;
    }
}

setun_status setun_fail(setun_status status, const char *format, ...) {
    char text[MESSAGE_BYTES]; /* arguments may point into message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_printable(text);
    memcpy(message, text, sizeof message);
    return status;
}

setun_status setun_fail_prefix(setun_status status, const char *format, ...) {
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n < 0) n = 0;
    if ((size_t)n + 3 < sizeof text) snprintf(text + n, sizeof text - (size_t)n, ": %.*s", (int)(sizeof text - (size_t)n - 3), message);
    make_printable(text);
    memcpy(message, text, sizeof message);
    return status;
}

setun_status setun_fail_memory(size_t bytes) {
    return setun_fail(SETUN_ERROR_MEMORY, "out of memory: could not allocate %zu bytes", bytes);
}

void setun_log(const setun_context *context, setun_log_level level, const char *format, ...) {
    if (!context || !context->log || level > context->log_level) return;
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_printable(text);
    context->log(context->log_user, level, text);
}

double setun_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
