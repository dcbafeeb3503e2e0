/*
 * jinja_value.h - the values of a running chat template and what can be done with them. Caller: jinja_run.c.
 */
#ifndef SETUN_TEXT_JINJA_VALUE_H
#define SETUN_TEXT_JINJA_VALUE_H

#include "text/jinja.h"

enum { JINJA_STEPS_MAX = 4000000 };

typedef enum value_kind { VALUE_UNDEFINED, VALUE_NONE, VALUE_BOOL, VALUE_INTEGER, VALUE_REAL, VALUE_TEXT, VALUE_LIST, VALUE_DICT, VALUE_MACRO, VALUE_METHOD } value_kind;

typedef struct value {
    value_kind kind;
    bool safe;                /* NAMESPACE: a dict that may be assigned to */
    int64_t integer;          /* BOOL, INTEGER */
    double real;
    const char *text;         /* TEXT; METHOD: its name */
    const uint8_t *mask;      /* TEXT: [length], NULL: all from the template */
    size_t length;            /* TEXT, LIST, DICT: count; METHOD: bytes of its name */
    struct value *items;      /* LIST: [length]; DICT: [2 * length] key, value; METHOD: the receiver */
    struct value *shared;     /* NAMESPACE: its dict, so that copies are one */
    const jinja_node *macro;
} value;

typedef struct binding { const char *name; size_t length; value value; } binding;

typedef struct arguments { value given[8]; int count; } arguments;

typedef struct run {
    jinja_arena arena;
    binding *bindings; size_t count, capacity, frame; /* frame: where the innermost scope begins */
    uint64_t steps;
    int nesting, line;
    bool breaking, continuing;
    setun_status memory;      /* why jinja_take() gave nothing */
    setun_string *out, *mask;
} run;

/* Zeroed memory that goes when the run ends. */
void *jinja_take(run *r, size_t bytes);
#define TAKE(r, variable, bytes) do { (variable) = jinja_take(r, bytes); if (!(variable)) return (r)->memory; } while (0)

static inline value make_bool(bool b) { return (value){.kind = VALUE_BOOL, .integer = b}; }
static inline value make_integer(int64_t i) { return (value){.kind = VALUE_INTEGER, .integer = i}; }
static inline value make_text(const char *text, size_t length) { return (value){.kind = VALUE_TEXT, .text = text, .length = length}; }
static inline value part(const value *text, size_t start, size_t end) { return (value){.kind = VALUE_TEXT, .text = text->text + start, .mask = text->mask ? text->mask + start : NULL, .length = end - start}; }
static inline const value *contents(const value *v) { return v->shared ? v->shared : v; }
static inline bool named(const char *text, size_t length, const char *name)
{
    return strlen(name) == length && memcmp(text, name, length) == 0;
}

setun_status jinja_fail_at(const run *r, const char *what);
setun_status jinja_fail_name(const run *r, const char *what, const char *name, size_t length);
bool jinja_truth(const value *v);
const value *jinja_dict_get(const value *dict, const char *name, size_t length);
setun_status jinja_to_text(run *r, const value *v, value *out); /* what a value looks like in the output */
setun_status jinja_list_of(run *r, size_t count, value *out);
setun_status jinja_dict_list(run *r, const value *dict, char what, value *out); /* 'k'eys, 'v'alues, 'i'tems */
setun_status jinja_call_method(run *r, const value *receiver, const char *name, size_t length, const arguments *a, value *out);
setun_status jinja_apply_filter(run *r, const value *v, const char *name, size_t length, const arguments *a, value *out);
setun_status jinja_apply_test(run *r, const value *v, const char *name, size_t length, const arguments *a, bool *out);
setun_status jinja_binary(run *r, jinja_operator operator, const value *a, const value *b, value *out);
setun_status jinja_slice(run *r, const value *of, const value *from, const value *to, const value *by, value *out);
setun_status jinja_item(run *r, const value *of, const value *key, value *out);

#endif
