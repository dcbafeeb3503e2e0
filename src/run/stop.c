/*
 * stop.c - the text of an answer as it may be shown: never part of a stop string, never half a UTF-8 sequence.
 * Caller: generate.c. Knows bytes only.
 */
#include "run/run.h"

static size_t length_of(const setun_stop *s, size_t i) { return s->stop[i] ? strlen(s->stop[i]) : 0; }

/* First place where a stop string is complete; the earliest start wins, then the first in the list. SIZE_MAX: none. */
static size_t first_match(const setun_stop *s)
{
    for (size_t at = 0; at < s->pending.length; at++)
        for (size_t i = 0; i < s->stop_count; i++) {
            size_t n = length_of(s, i);
            if (n > 0 && n <= s->pending.length - at && memcmp(s->pending.data + at, s->stop[i], n) == 0) return at;
        }
    return SIZE_MAX;
}

/* Bytes at the front that no stop string can reach back into: up to the longest tail that begins one. */
static size_t free_of_stops(const setun_stop *s)
{
    for (size_t at = 0; at < s->pending.length; at++) {
        size_t tail = s->pending.length - at;
        for (size_t i = 0; i < s->stop_count; i++)
            if (tail < length_of(s, i) && memcmp(s->pending.data + at, s->stop[i], tail) == 0) return at;
    }
    return s->pending.length;
}

setun_status setun_stop_push(setun_stop *s, const char *bytes, size_t length, bool last, const char **out, size_t *out_length)
{
    *out = "";
    *out_length = 0;
    if (s->shown > 0) {
        memmove(s->pending.data, s->pending.data + s->shown, s->pending.length - s->shown);
        s->pending.length -= s->shown;
        s->shown = 0;
    }
    setun_string_append(&s->pending, bytes, length);
    if (s->pending.failed) return setun_fail_memory(s->pending.length + length);
    size_t match = first_match(s);
    if (match != SIZE_MAX) {
        s->found = true;
        s->shown = match;
    } else if (last) {
        s->shown = s->pending.length;
    } else {
        s->shown = setun_utf8_complete(s->pending.data ? s->pending.data : "", free_of_stops(s));
    }
    if (s->shown > 0) *out = s->pending.data;
    *out_length = s->shown;
    return SETUN_OK;
}

void setun_stop_clear(setun_stop *s) { setun_string_clear(&s->pending); }
