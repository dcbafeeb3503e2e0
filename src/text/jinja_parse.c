/*
 * jinja_parse.c - reads a chat template into a tree, with the white space rules that transformers sets: trim_blocks,
 * lstrip_blocks, one newline at the end dropped. Caller: chat.c. Refuses statements that no chat template needs
 * (include, import, extends, call, filter blocks).
 */
#include "text/jinja.h"
#include <stdlib.h>

enum { TEMPLATE_LIMIT = 1 << 20, ARENA_LIMIT = 512 << 20, DEPTH_MAX = 64 };

void *jinja_alloc(jinja_arena *arena, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (bytes > ARENA_LIMIT || arena->total + bytes > ARENA_LIMIT)
        return NULL;
    jinja_chunk *chunk = arena->chunks;
    if (!chunk || chunk->size - chunk->used < bytes) {
        size_t size = bytes > 8192 ? bytes : 8192;
        chunk = setun_alloc(sizeof *chunk + size);
        if (!chunk)
            return NULL;
        *chunk = (jinja_chunk){arena->chunks, 0, size};
        arena->chunks = chunk;
        arena->total += size;
    }
    void *out = (char *)(chunk + 1) + chunk->used;
    chunk->used += bytes;
    memset(out, 0, bytes);
    return out;
}

void jinja_arena_clear(jinja_arena *arena)
{
    for (jinja_chunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        setun_free(chunk);
    }
    memset(arena, 0, sizeof *arena);
}

setun_status jinja_no_memory(const jinja_arena *arena, size_t bytes)
{
    if (arena->total + bytes > ARENA_LIMIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template: more than %d MiB of intermediate text", ARENA_LIMIT >> 20);
    return setun_fail_memory(bytes);
}

/* ---- words -------------------------------------------------------------------------------------------------------- */

typedef enum word_kind { WORD_END, WORD_NAME, WORD_STRING, WORD_INTEGER, WORD_REAL, WORD_SIGN } word_kind;

typedef struct parser {
    const char *text;
    size_t length, at;
    jinja_template *out;
    int depth, line;
    bool trim;               /* the last tag ended with '-': white space behind it goes */
    bool newline;            /* the last tag was a block: one newline behind it goes */
    word_kind word;          /* the current word of a tag */
    const char *start;
    size_t size;
    int64_t integer;
    double real;
} parser;

static setun_status unknown(const parser *p, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: %s", p->line, what);
}

static bool letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

static char peek(const parser *p, size_t ahead)
{
    return p->at + ahead < p->length ? p->text[p->at + ahead] : 0;
}

static int hex_value(char c)
{
    return digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A quoted text, its escapes as in Python. */
static setun_status read_quoted(parser *p)
{
    char quote = p->text[p->at++];
    size_t start = p->at, end = start;
    while (end < p->length && p->text[end] != quote)
        end += p->text[end] == '\\' ? 2 : 1;
    if (end >= p->length)
        return unknown(p, "a text without its closing quote");
    char *out = jinja_alloc(&p->out->arena, end - start + 4);
    if (!out)
        return jinja_no_memory(&p->out->arena, end - start);
    size_t length = 0;
    for (size_t i = start; i < end;) {
        char c = p->text[i];
        if (c == '\n')
            p->line++;
        if (c != '\\') {
            out[length++] = c;
            i++;
            continue;
        }
        char kind = p->text[i + 1];
        int digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
        i += 2;
        switch (kind) {
        case 'n': out[length++] = '\n'; break;
        case 't': out[length++] = '\t'; break;
        case 'r': out[length++] = '\r'; break;
        case '\\': case '\'': case '"': out[length++] = kind; break;
        case '\n': break;
        case 'x': case 'u': case 'U': {
            uint32_t c32 = 0;
            for (int j = 0; j < digits; j++) {
                int value = i + (size_t)j < end ? hex_value(p->text[i + (size_t)j]) : -1;
                if (value < 0)
                    return unknown(p, "a broken escape in a text");
                c32 = c32 << 4 | (uint32_t)value;
            }
            if (c32 > 0x10ffff || (c32 >= 0xd800 && c32 <= 0xdfff))
                return unknown(p, "an escape that is no character");
            i += (size_t)digits;
            length += setun_utf8_put(c32, out + length);
            break;
        }
        case 'a': case 'b': case 'f': case 'v': case 'N': case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7':
            return unknown(p, "a rare escape in a text");
        default: /* Python keeps the backslash of an escape that is none */
            out[length++] = '\\';
            out[length++] = kind;
        }
    }
    p->at = end + 1;
    p->word = WORD_STRING;
    p->start = out;
    p->size = length;
    return SETUN_OK;
}

static setun_status next_word(parser *p)
{
    while (p->at < p->length && (p->text[p->at] == ' ' || p->text[p->at] == '\t' || p->text[p->at] == '\n' || p->text[p->at] == '\r'))
        p->line += p->text[p->at++] == '\n';
    char c = peek(p, 0);
    size_t start = p->at;
    p->start = p->text + start;
    if (p->at >= p->length)
        return unknown(p, "a tag without its end");
    if (c == '\'' || c == '"')
        return read_quoted(p);
    if (letter(c)) {
        while (letter(peek(p, 0)) || digit(peek(p, 0)))
            p->at++;
        p->word = WORD_NAME;
    } else if (digit(c)) {
        while (digit(peek(p, 0)))
            p->at++;
        p->word = WORD_INTEGER;
        if (peek(p, 0) == '.' && digit(peek(p, 1))) {
            p->at++;
            while (digit(peek(p, 0)))
                p->at++;
            p->word = WORD_REAL;
        }
        char number[64] = {0};
        if (p->at - start >= sizeof number || letter(peek(p, 0)))
            return unknown(p, "a rare number");
        memcpy(number, p->text + start, p->at - start);
        p->integer = strtoll(number, NULL, 10);
        p->real = strtod(number, NULL);
    } else {
        static const char *const pairs[] = {"==", "!=", "<=", ">=", "//", "**", "%}", "}}", "-%", "-}", "+%"};
        p->word = WORD_SIGN;
        p->at++;
        for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
            if (c != pairs[i][0] || peek(p, 0) != pairs[i][1])
                continue;
            bool closing = i >= 8; /* "-%}", "-}}", "+%}": only with the last sign are they an end */
            if (closing && peek(p, 1) != '}')
                continue;
            p->at += closing ? 2 : 1;
            break;
        }
    }
    p->size = p->at - start;
    return SETUN_OK;
}

static bool at_sign(const parser *p, const char *sign)
{
    return p->word == WORD_SIGN && p->size == strlen(sign) && memcmp(p->start, sign, p->size) == 0;
}

static bool at_name(const parser *p, const char *name)
{
    return p->word == WORD_NAME && p->size == strlen(name) && memcmp(p->start, name, p->size) == 0;
}

static setun_status expect(parser *p, const char *sign)
{
    if (!at_sign(p, sign))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: '%s' expected before '%.*s'", p->line, sign, p->size > 40 ? 40 : (int)p->size, p->start);
    return next_word(p);
}

static setun_status make(parser *p, jinja_kind kind, jinja_node **out)
{
    *out = jinja_alloc(&p->out->arena, sizeof **out);
    if (!*out)
        return jinja_no_memory(&p->out->arena, sizeof **out);
    (*out)->kind = kind;
    (*out)->line = p->line;
    return SETUN_OK;
}

/* ---- expressions --------------------------------------------------------------------------------------------------- */

static setun_status parse_expression(parser *p, jinja_node **out);

static setun_status parse_arguments(parser *p, const char *close, jinja_node **out)
{
    jinja_node **tail = out;
    while (!at_sign(p, close)) {
        jinja_node *one = NULL;
        SETUN_TRY(parse_expression(p, &one));
        if (at_sign(p, "=")) {
            if (one->kind != JINJA_NAME)
                return unknown(p, "'=' behind something that is no name");
            one->kind = JINJA_KEYWORD;
            SETUN_TRY(next_word(p));
            SETUN_TRY(parse_expression(p, &one->a));
        }
        *tail = one;
        tail = &one->next;
        if (!at_sign(p, ","))
            break;
        SETUN_TRY(next_word(p));
    }
    return expect(p, close);
}

static setun_status parse_dict(parser *p, jinja_node *dict)
{
    jinja_node **tail = &dict->items;
    while (!at_sign(p, "}")) {
        jinja_node *one = NULL;
        SETUN_TRY(make(p, JINJA_KEYWORD, &one));
        SETUN_TRY(parse_expression(p, &one->b));
        SETUN_TRY(expect(p, ":"));
        SETUN_TRY(parse_expression(p, &one->a));
        *tail = one;
        tail = &one->next;
        if (!at_sign(p, ","))
            break;
        SETUN_TRY(next_word(p));
    }
    return expect(p, "}");
}

static setun_status parse_primary(parser *p, jinja_node **out)
{
    static const struct { const char *name; jinja_kind kind; } constants[] = {{"true", JINJA_TRUE}, {"True", JINJA_TRUE}, {"false", JINJA_FALSE}, {"False", JINJA_FALSE},
        {"none", JINJA_NONE}, {"None", JINJA_NONE}};
    SETUN_TRY(make(p, JINJA_NAME, out));
    jinja_node *node = *out;
    node->text = p->start;
    node->length = p->size;
    switch (p->word) {
    case WORD_NAME:
        for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++)
            if (at_name(p, constants[i].name))
                node->kind = constants[i].kind;
        return next_word(p);
    case WORD_INTEGER:
    case WORD_REAL:
        node->kind = p->word == WORD_INTEGER ? JINJA_INTEGER : JINJA_REAL;
        node->integer = p->integer;
        node->real = p->real;
        return next_word(p);
    case WORD_STRING: {
        node->kind = JINJA_STRING;
        SETUN_TRY(next_word(p));
        while (p->word == WORD_STRING) { /* texts side by side are one */
            char *joined = jinja_alloc(&p->out->arena, node->length + p->size + 1);
            if (!joined)
                return jinja_no_memory(&p->out->arena, p->size);
            memcpy(joined, node->text, node->length);
            memcpy(joined + node->length, p->start, p->size);
            node->text = joined;
            node->length += p->size;
            SETUN_TRY(next_word(p));
        }
        return SETUN_OK;
    }
    default:
        break;
    }
    if (at_sign(p, "(")) {
        SETUN_TRY(next_word(p));
        SETUN_TRY(parse_expression(p, out));
        if (at_sign(p, ","))
            return unknown(p, "a tuple");
        return expect(p, ")");
    }
    if (at_sign(p, "[")) {
        node->kind = JINJA_LIST;
        SETUN_TRY(next_word(p));
        return parse_arguments(p, "]", &node->items);
    }
    if (at_sign(p, "{")) {
        node->kind = JINJA_DICT;
        SETUN_TRY(next_word(p));
        return parse_dict(p, node);
    }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: unexpected '%.*s'", p->line, p->size > 40 ? 40 : (int)p->size, p->start);
}

static setun_status parse_subscript(parser *p, jinja_node *node)
{
    node->kind = JINJA_ITEM;
    if (!at_sign(p, ":"))
        SETUN_TRY(parse_expression(p, &node->b));
    if (at_sign(p, ":")) {
        node->kind = JINJA_SLICE;
        SETUN_TRY(next_word(p));
        if (!at_sign(p, ":") && !at_sign(p, "]"))
            SETUN_TRY(parse_expression(p, &node->c));
        if (at_sign(p, ":")) {
            SETUN_TRY(next_word(p));
            if (!at_sign(p, "]"))
                SETUN_TRY(parse_expression(p, &node->d));
        }
    }
    return expect(p, "]");
}

static setun_status parse_postfix(parser *p, jinja_node **out)
{
    for (;;) {
        jinja_node *node = NULL;
        if (at_sign(p, ".")) {
            SETUN_TRY(next_word(p));
            if (p->word != WORD_NAME)
                return unknown(p, "'.' without a name behind it");
            SETUN_TRY(make(p, JINJA_ATTRIBUTE, &node));
            node->a = *out;
            node->text = p->start;
            node->length = p->size;
            SETUN_TRY(next_word(p));
        } else if (at_sign(p, "[")) {
            SETUN_TRY(next_word(p));
            SETUN_TRY(make(p, JINJA_ITEM, &node));
            node->a = *out;
            SETUN_TRY(parse_subscript(p, node));
        } else if (at_sign(p, "(")) {
            SETUN_TRY(next_word(p));
            SETUN_TRY(make(p, JINJA_CALL, &node));
            node->a = *out;
            SETUN_TRY(parse_arguments(p, ")", &node->items));
        } else {
            return SETUN_OK;
        }
        *out = node;
    }
}

static bool starts_argument(const parser *p)
{
    if (p->word == WORD_STRING || p->word == WORD_INTEGER || p->word == WORD_REAL)
        return true;
    if (p->word != WORD_NAME)
        return at_sign(p, "[") || at_sign(p, "{");
    return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and") && !at_name(p, "is") && !at_name(p, "if") && !at_name(p, "in") && !at_name(p, "not");
}

static setun_status parse_filters(parser *p, jinja_node **out)
{
    for (;;) {
        jinja_node *node = NULL;
        bool filter = at_sign(p, "|");
        if (!filter && !at_name(p, "is"))
            return SETUN_OK;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, filter ? JINJA_FILTER : JINJA_TEST, &node));
        if (!filter && at_name(p, "not")) {
            node->negate = true;
            SETUN_TRY(next_word(p));
        }
        if (p->word != WORD_NAME)
            return unknown(p, "a filter or test without a name");
        node->a = *out;
        node->text = p->start;
        node->length = p->size;
        SETUN_TRY(next_word(p));
        if (at_sign(p, "(")) {
            SETUN_TRY(next_word(p));
            SETUN_TRY(parse_arguments(p, ")", &node->items));
        } else if (!filter && starts_argument(p)) {
            SETUN_TRY(parse_primary(p, &node->items));
            SETUN_TRY(parse_postfix(p, &node->items));
        }
        *out = node;
    }
}

static setun_status parse_unary(parser *p, bool filters, jinja_node **out)
{
    if (++p->depth > DEPTH_MAX)
        return unknown(p, "an expression nested too deep");
    if (at_sign(p, "-") || at_sign(p, "+")) {
        bool minus = at_sign(p, "-");
        jinja_node *node = NULL;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, JINJA_NEGATE, &node));
        SETUN_TRY(parse_unary(p, false, &node->a));
        *out = minus ? node : node->a;
    } else {
        SETUN_TRY(parse_primary(p, out));
    }
    SETUN_TRY(parse_postfix(p, out));
    p->depth--;
    return filters ? parse_filters(p, out) : SETUN_OK;
}

/* Levels of two-sided operators, the loosest first: comparison, + -, ~, * / // %, **. */
static const struct { const char *sign; jinja_operator operator; int level; } operators[] = {
    {"==", JINJA_EQUAL, 0}, {"!=", JINJA_UNEQUAL, 0}, {"<", JINJA_LESS, 0}, {"<=", JINJA_LESS_EQUAL, 0}, {">", JINJA_GREATER, 0}, {">=", JINJA_GREATER_EQUAL, 0},
    {"+", JINJA_ADD, 1}, {"-", JINJA_SUBTRACT, 1}, {"~", JINJA_CONCATENATE, 2}, {"*", JINJA_MULTIPLY, 3}, {"/", JINJA_DIVIDE, 3}, {"//", JINJA_FLOOR_DIVIDE, 3},
    {"%", JINJA_MODULO, 3}, {"**", JINJA_POWER, 4},
};

static jinja_operator operator_at(const parser *p, int level)
{
    if (level == 0 && at_name(p, "in"))
        return JINJA_IN;
    for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++)
        if (operators[i].level == level && at_sign(p, operators[i].sign))
            return operators[i].operator;
    return 0;
}

static setun_status parse_level(parser *p, int level, jinja_node **out)
{
    if (level == 5)
        return parse_unary(p, true, out);
    SETUN_TRY(parse_level(p, level + 1, out));
    bool compared = false;
    for (;;) {
        jinja_operator operator = operator_at(p, level);
        if (!operator && level == 0 && at_name(p, "not")) { /* "not in": nothing else may stand here */
            SETUN_TRY(next_word(p));
            if (!at_name(p, "in"))
                return unknown(p, "'not' behind a value");
            operator = JINJA_NOT_IN;
        }
        if (!operator)
            return SETUN_OK;
        if (level == 0 && compared)
            return unknown(p, "a chain of comparisons");
        compared = true;
        jinja_node *node = NULL;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, JINJA_BINARY, &node));
        node->operator = operator;
        node->a = *out;
        SETUN_TRY(parse_level(p, level + 1, &node->b));
        *out = node;
    }
}

static setun_status parse_not(parser *p, jinja_node **out)
{
    if (!at_name(p, "not"))
        return parse_level(p, 0, out);
    if (++p->depth > DEPTH_MAX)
        return unknown(p, "an expression nested too deep");
    SETUN_TRY(next_word(p));
    SETUN_TRY(make(p, JINJA_NOT, out));
    SETUN_TRY(parse_not(p, &(*out)->a));
    p->depth--;
    return SETUN_OK;
}

static setun_status parse_and(parser *p, jinja_node **out)
{
    SETUN_TRY(parse_not(p, out));
    while (at_name(p, "and")) {
        jinja_node *node = NULL;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, JINJA_AND, &node));
        node->a = *out;
        SETUN_TRY(parse_not(p, &node->b));
        *out = node;
    }
    return SETUN_OK;
}

static setun_status parse_or(parser *p, jinja_node **out)
{
    SETUN_TRY(parse_and(p, out));
    while (at_name(p, "or")) {
        jinja_node *node = NULL;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, JINJA_OR, &node));
        node->a = *out;
        SETUN_TRY(parse_and(p, &node->b));
        *out = node;
    }
    return SETUN_OK;
}

static setun_status parse_expression(parser *p, jinja_node **out)
{
    if (++p->depth > DEPTH_MAX)
        return unknown(p, "an expression nested too deep");
    SETUN_TRY(parse_or(p, out));
    while (at_name(p, "if")) {
        jinja_node *node = NULL;
        SETUN_TRY(next_word(p));
        SETUN_TRY(make(p, JINJA_CONDITION, &node));
        node->a = *out;
        SETUN_TRY(parse_or(p, &node->b));
        if (at_name(p, "else")) {
            SETUN_TRY(next_word(p));
            SETUN_TRY(parse_expression(p, &node->c));
        }
        *out = node;
    }
    p->depth--;
    return SETUN_OK;
}

/* ---- statements ------------------------------------------------------------------------------------------------------ */

/* The current word ends a tag: remember what it says about white space. No word is read behind it. */
static setun_status end_tag(parser *p, bool block)
{
    char last = block ? '%' : '}';
    if (p->word != WORD_SIGN || p->size < 2 || p->start[p->size - 1] != '}' || p->start[p->size - 2] != last)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: unexpected '%.*s' in a tag", p->line, p->size > 40 ? 40 : (int)p->size, p->start);
    p->trim = p->start[0] == '-';
    p->newline = block && p->start[0] != '+';
    return SETUN_OK;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

/* Text up to the next tag, with the white space around tags taken off; *tag receives '{', '%' or 0 at the end. */
static setun_status read_text(parser *p, jinja_node **out, char *tag)
{
    *out = NULL;
    size_t start = p->at, at = p->at;
    *tag = 0;
    while (at + 1 < p->length && !(p->text[at] == '{' && (p->text[at + 1] == '{' || p->text[at + 1] == '%' || p->text[at + 1] == '#')))
        at++;
    if (at + 1 >= p->length)
        at = p->length;
    size_t end = at;
    if (at < p->length) {
        *tag = p->text[at + 1];
        char control = at + 2 < p->length ? p->text[at + 2] : 0;
        p->at = at + 2 + (control == '-' || control == '+');
        if (control == '-') {
            while (end > start && is_blank(p->text[end - 1]))
                end--;
        } else if (control != '+' && *tag != '{') { /* lstrip_blocks: blanks between the line's start and a block */
            size_t line = end;
            while (line > start && (p->text[line - 1] == ' ' || p->text[line - 1] == '\t'))
                line--;
            if (line == 0 || (line > start && p->text[line - 1] == '\n') || (line == start && start > 0 && p->text[start - 1] == '\n'))
                end = line;
        }
    } else {
        p->at = p->length;
        if (end > start && p->text[end - 1] == '\n') /* keep_trailing_newline is off */
            end--;
    }
    for (size_t i = start; i < at; i++)
        p->line += p->text[i] == '\n';
    if (p->trim) {
        while (start < end && is_blank(p->text[start]))
            start++;
    } else if (p->newline && start < end && p->text[start] == '\n') {
        start++;
    }
    p->trim = p->newline = false;
    if (start < end) {
        SETUN_TRY(make(p, JINJA_TEXT, out));
        (*out)->text = p->text + start;
        (*out)->length = end - start;
    }
    return SETUN_OK;
}

static setun_status parse_body(parser *p, const char *const *ends, jinja_node **out, const char **ended);

/* Reads a body up to one of ends; the tag's first word is then the current one. */
static setun_status parse_until(parser *p, const char *const *ends, jinja_node **out, const char **ended)
{
    SETUN_TRY(end_tag(p, true));
    return parse_body(p, ends, out, ended);
}

static setun_status parse_if(parser *p, jinja_node *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    const char *ended;
    node->kind = JINJA_IF;
    SETUN_TRY(parse_expression(p, &node->a));
    SETUN_TRY(parse_until(p, ends, &node->b, &ended));
    if (ended == ends[0]) {
        if (++p->depth > DEPTH_MAX)
            return unknown(p, "too many elif");
        SETUN_TRY(make(p, JINJA_IF, &node->c));
        SETUN_TRY(parse_if(p, node->c));
        p->depth--;
    } else if (ended == ends[1]) {
        SETUN_TRY(parse_until(p, last, &node->c, &ended));
    }
    return SETUN_OK;
}

static setun_status parse_for(parser *p, jinja_node *node)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    const char *ended;
    jinja_node **tail = &node->items;
    node->kind = JINJA_FOR;
    for (;;) {
        if (p->word != WORD_NAME)
            return unknown(p, "'for' without a name");
        SETUN_TRY(parse_primary(p, tail));
        tail = &(*tail)->next;
        if (!at_sign(p, ","))
            break;
        SETUN_TRY(next_word(p));
    }
    if (!at_name(p, "in"))
        return unknown(p, "'for' without 'in'");
    SETUN_TRY(next_word(p));
    SETUN_TRY(parse_or(p, &node->a)); /* not a condition: its "if" would be the loop's filter */
    if (at_name(p, "if")) {
        SETUN_TRY(next_word(p));
        SETUN_TRY(parse_expression(p, &node->d));
    }
    if (at_name(p, "recursive"))
        return unknown(p, "a recursive loop");
    SETUN_TRY(parse_until(p, ends, &node->b, &ended));
    return ended == ends[0] ? parse_until(p, last, &node->c, &ended) : SETUN_OK;
}

static setun_status parse_set(parser *p, jinja_node *node)
{
    static const char *const ends[] = {"endset", NULL};
    const char *ended;
    if (p->word != WORD_NAME)
        return unknown(p, "'set' without a name");
    SETUN_TRY(parse_primary(p, &node->a));
    SETUN_TRY(parse_postfix(p, &node->a));
    if (node->a->kind != JINJA_NAME && !(node->a->kind == JINJA_ATTRIBUTE && node->a->a->kind == JINJA_NAME))
        return unknown(p, "'set' of something that is neither a name nor a namespace's");
    if (!at_sign(p, "=")) {
        node->kind = JINJA_SET_BLOCK;
        return parse_until(p, ends, &node->b, &ended);
    }
    node->kind = JINJA_SET;
    SETUN_TRY(next_word(p));
    return parse_expression(p, &node->b);
}

static setun_status parse_macro(parser *p, jinja_node *node)
{
    static const char *const ends[] = {"endmacro", NULL};
    const char *ended;
    node->kind = JINJA_MACRO;
    if (p->word != WORD_NAME)
        return unknown(p, "'macro' without a name");
    node->text = p->start;
    node->length = p->size;
    SETUN_TRY(next_word(p));
    SETUN_TRY(expect(p, "("));
    SETUN_TRY(parse_arguments(p, ")", &node->items));
    for (const jinja_node *one = node->items; one; one = one->next)
        if (one->kind != JINJA_NAME && one->kind != JINJA_KEYWORD)
            return unknown(p, "a macro's parameter that is no name");
    return parse_until(p, ends, &node->b, &ended);
}

static setun_status parse_statement(parser *p, jinja_node **out)
{
    static const char *const generation[] = {"endgeneration", NULL};
    const char *ended;
    jinja_node *node = NULL;
    SETUN_TRY(make(p, JINJA_GROUP, &node));
    *out = node;
    const char *name = p->start;
    size_t size = p->size;
    if (p->word != WORD_NAME)
        return unknown(p, "a block without a name");
    bool is_if = at_name(p, "if"), is_for = at_name(p, "for"), is_set = at_name(p, "set"), is_macro = at_name(p, "macro"), is_break = at_name(p, "break"),
         is_continue = at_name(p, "continue"), is_generation = at_name(p, "generation");
    SETUN_TRY(next_word(p));
    if (is_if)
        SETUN_TRY(parse_if(p, node));
    else if (is_for)
        SETUN_TRY(parse_for(p, node));
    else if (is_set)
        SETUN_TRY(parse_set(p, node));
    else if (is_macro)
        SETUN_TRY(parse_macro(p, node));
    else if (is_break || is_continue)
        node->kind = is_break ? JINJA_BREAK : JINJA_CONTINUE;
    else if (is_generation)
        SETUN_TRY(parse_until(p, generation, &node->b, &ended));
    else
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: the block '%.*s' is not known", p->line, size > 40 ? 40 : (int)size, name);
    return end_tag(p, true);
}

static setun_status parse_body(parser *p, const char *const *ends, jinja_node **out, const char **ended)
{
    jinja_node **tail = out;
    if (++p->depth > DEPTH_MAX)
        return unknown(p, "blocks nested too deep");
    *ended = NULL;
    for (;;) {
        char tag;
        SETUN_TRY(read_text(p, tail, &tag));
        if (*tail)
            tail = &(*tail)->next;
        if (!tag) {
            if (ends)
                return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template: '%s' is missing", ends[0]);
            break;
        }
        if (tag == '#') {
            while (p->at + 1 < p->length && !(p->text[p->at] == '#' && p->text[p->at + 1] == '}'))
                p->line += p->text[p->at++] == '\n';
            if (p->at + 1 >= p->length)
                return unknown(p, "a comment without its end");
            p->trim = p->text[p->at - 1] == '-';
            p->newline = true;
            p->at += 2;
            continue;
        }
        SETUN_TRY(next_word(p));
        if (tag == '{') {
            SETUN_TRY(make(p, JINJA_OUTPUT, tail));
            SETUN_TRY(parse_expression(p, &(*tail)->a));
            SETUN_TRY(end_tag(p, false));
            tail = &(*tail)->next;
            continue;
        }
        for (size_t i = 0; ends && ends[i]; i++)
            if (at_name(p, ends[i]))
                *ended = ends[i];
        if (*ended) {
            SETUN_TRY(next_word(p));
            break;
        }
        SETUN_TRY(parse_statement(p, tail));
        tail = &(*tail)->next;
    }
    p->depth--;
    return SETUN_OK;
}

setun_status jinja_parse(const char *text, size_t length, jinja_template *out)
{
    memset(out, 0, sizeof *out);
    if (length > TEMPLATE_LIMIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template: %zu bytes; at most %d are taken", length, TEMPLATE_LIMIT);
    if (!setun_utf8_valid(text, length))
        return setun_fail(SETUN_ERROR_FORMAT, "chat template: not valid UTF-8");
    if (memchr(text, 0, length))
        return setun_fail(SETUN_ERROR_FORMAT, "chat template: a byte of 0 in it");
    /* The tree points into a copy of its own, with one kind of newline. */
    char *copy = jinja_alloc(&out->arena, length + 1);
    if (!copy)
        return jinja_no_memory(&out->arena, length);
    size_t kept = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\r') {
            copy[kept++] = '\n';
            if (i + 1 < length && text[i + 1] == '\n')
                i++;
        } else {
            copy[kept++] = text[i];
        }
    }
    parser p = {.text = copy, .length = kept, .out = out, .line = 1};
    const char *ended;
    setun_status status = parse_body(&p, NULL, &out->body, &ended);
    if (status != SETUN_OK)
        jinja_arena_clear(&out->arena);
    return status;
}
