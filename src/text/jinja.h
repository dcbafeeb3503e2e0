/*
 * jinja.h - the part of the Jinja language that chat templates are written in. A template is parsed once and run on
 * messages; every byte of the result knows whether the template or a message wrote it, so that what users write is
 * never taken for a special token. What the language part lacks is an error that names it: nothing is guessed.
 * Caller: chat.c. Knows nothing of tokens.
 */
#ifndef SETUN_TEXT_JINJA_H
#define SETUN_TEXT_JINJA_H

#include "text/unicode.h"

/* ---- memory that goes all at once ---- */
typedef struct jinja_chunk { struct jinja_chunk *next; size_t used, size; } jinja_chunk;
typedef struct jinja_arena { jinja_chunk *chunks; size_t total; } jinja_arena;
void *jinja_alloc(jinja_arena *arena, size_t bytes); /* zeroed; NULL: no memory, or more than a template may use */
void jinja_arena_clear(jinja_arena *arena);
setun_status jinja_no_memory(const jinja_arena *arena, size_t bytes);

/* ---- the template as a tree ---- */
typedef enum jinja_kind {
    /* statements */
    JINJA_TEXT, JINJA_OUTPUT, JINJA_IF, JINJA_FOR, JINJA_SET, JINJA_SET_BLOCK, JINJA_MACRO, JINJA_BREAK, JINJA_CONTINUE, JINJA_GROUP,
    /* expressions */
    JINJA_STRING, JINJA_INTEGER, JINJA_REAL, JINJA_TRUE, JINJA_FALSE, JINJA_NONE, JINJA_NAME, JINJA_LIST, JINJA_DICT, JINJA_ATTRIBUTE, JINJA_ITEM,
    JINJA_SLICE, JINJA_CALL, JINJA_FILTER, JINJA_TEST, JINJA_KEYWORD, JINJA_NOT, JINJA_NEGATE, JINJA_AND, JINJA_OR, JINJA_CONDITION, JINJA_BINARY
} jinja_kind;
typedef enum jinja_operator { JINJA_ADD = 1, JINJA_SUBTRACT, JINJA_MULTIPLY, JINJA_DIVIDE, JINJA_FLOOR_DIVIDE, JINJA_MODULO, JINJA_POWER, JINJA_CONCATENATE, JINJA_EQUAL, JINJA_UNEQUAL,
    JINJA_LESS, JINJA_LESS_EQUAL, JINJA_GREATER, JINJA_GREATER_EQUAL, JINJA_IN, JINJA_NOT_IN } jinja_operator;

typedef struct jinja_node {
    jinja_kind kind;
    jinja_operator operator;
    bool negate;              /* TEST */
    const char *text;         /* TEXT, STRING, names */
    size_t length;
    int64_t integer;
    double real;
    struct jinja_node *a, *b, *c, *d; /* IF: condition, body, else. FOR: sequence, body, else, filter. SLICE: of, from, to, step */
    struct jinja_node *items; /* arguments, elements, targets, parameters: a list by next */
    struct jinja_node *next;
    int line;
} jinja_node;

typedef struct jinja_template { jinja_arena arena; jinja_node *body; } jinja_template;
setun_status jinja_parse(const char *text, size_t length, jinja_template *out); /* on failure out holds nothing */

/* ---- running ---- */
typedef struct jinja_variable { const char *name; const char *text; } jinja_variable; /* text NULL: not defined */
typedef struct jinja_message { const char *role, *content; size_t content_length; } jinja_message;
/* Appends the text to out and to mask, one byte each: 1 where a message wrote it. */
setun_status jinja_run(const jinja_template *template, const jinja_message *messages, size_t count, bool add_generation_prompt, const jinja_variable *variables, size_t variable_count,
    setun_string *out, setun_string *mask);

#endif
