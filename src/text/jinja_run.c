/*
 * jinja_run.c - runs a chat template: values, scopes, operators, the methods, filters and tests that templates use.
 * Every byte of a text carries a mark: 0 from the template, 1 from a message. Caller: chat.c.
 * Refuses what it does not know by its name, and stops a template that runs too long.
 */
#include "text/jinja.h"
#include <inttypes.h>
#include <math.h>

enum { STEPS_MAX = 4000000, NESTING_MAX = 100, OUTPUT_MAX = 256 << 20 };

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

typedef struct run {
    jinja_arena arena;
    binding *bindings; size_t count, capacity, frame; /* frame: where the innermost scope begins */
    uint64_t steps;
    int nesting, line;
    bool breaking, continuing;
    setun_status memory;      /* why take() gave nothing */
    setun_string *out, *mask;
} run;

static setun_status fail_at(const run *r, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: %s", r->line, what);
}

static setun_status fail_name(const run *r, const char *what, const char *name, size_t length)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: %s '%.*s' is not known", r->line, what, length > 60 ? 60 : (int)length, name);
}

static void *take(run *r, size_t bytes)
{
    void *memory = jinja_alloc(&r->arena, bytes);
    if (!memory)
        r->memory = jinja_no_memory(&r->arena, bytes);
    return memory;
}
#define TAKE(r, variable, bytes) do { (variable) = take(r, bytes); if (!(variable)) return (r)->memory; } while (0)

/* ---- values ---------------------------------------------------------------------------------------------------------- */

static value make_bool(bool b) { return (value){.kind = VALUE_BOOL, .integer = b}; }
static value make_integer(int64_t i) { return (value){.kind = VALUE_INTEGER, .integer = i}; }
static value make_text(const char *text, size_t length) { return (value){.kind = VALUE_TEXT, .text = text, .length = length}; }
static value part(const value *text, size_t start, size_t end) { return (value){.kind = VALUE_TEXT, .text = text->text + start, .mask = text->mask ? text->mask + start : NULL, .length = end - start}; }

static const value *contents(const value *v) { return v->shared ? v->shared : v; }

static bool truth(const value *v)
{
    switch (v->kind) {
    case VALUE_UNDEFINED: case VALUE_NONE: return false;
    case VALUE_BOOL: case VALUE_INTEGER: return v->integer != 0;
    case VALUE_REAL: return v->real != 0;
    case VALUE_TEXT: case VALUE_LIST: return v->length != 0;
    case VALUE_DICT: return v->shared || v->length != 0;
    default: return true;
    }
}

static bool is_number(const value *v) { return v->kind == VALUE_BOOL || v->kind == VALUE_INTEGER || v->kind == VALUE_REAL; }
static double number(const value *v) { return v->kind == VALUE_REAL ? v->real : (double)v->integer; }

static bool equal(const value *a, const value *b, int depth)
{
    if (depth > 16)
        return false;
    if (is_number(a) && is_number(b))
        return number(a) == number(b);
    if (a->kind != b->kind)
        return false;
    if (a->kind == VALUE_TEXT)
        return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
    if (a->kind == VALUE_LIST) {
        if (a->length != b->length)
            return false;
        for (size_t i = 0; i < a->length; i++)
            if (!equal(a->items + i, b->items + i, depth + 1))
                return false;
        return true;
    }
    return a->kind == VALUE_NONE || a->kind == VALUE_UNDEFINED;
}

static const value *dict_get(const value *dict, const char *name, size_t length)
{
    dict = contents(dict);
    for (size_t i = 0; i < dict->length; i++) {
        const value *key = dict->items + 2 * i;
        if (key->kind == VALUE_TEXT && key->length == length && memcmp(key->text, name, length) == 0)
            return key + 1;
    }
    return NULL;
}

static bool named(const char *text, size_t length, const char *name)
{
    return strlen(name) == length && memcmp(text, name, length) == 0;
}

/* What a value looks like in the output. */
static setun_status to_text(run *r, const value *v, value *out)
{
    char number_text[40];
    switch (v->kind) {
    case VALUE_TEXT: *out = *v; return SETUN_OK;
    case VALUE_UNDEFINED: *out = make_text("", 0); return SETUN_OK;
    case VALUE_NONE: *out = make_text("None", 4); return SETUN_OK;
    case VALUE_BOOL: *out = v->integer ? make_text("True", 4) : make_text("False", 5); return SETUN_OK;
    case VALUE_INTEGER: {
        int length = snprintf(number_text, sizeof number_text, "%" PRId64, v->integer);
        char *copy;
        TAKE(r, copy, (size_t)length);
        memcpy(copy, number_text, (size_t)length);
        *out = make_text(copy, (size_t)length);
        return SETUN_OK;
    }
    default: return fail_at(r, "a list, object or fraction is written out, which only Python does the same way");
    }
}

static setun_status join_texts(run *r, const value *a, const value *b, value *out)
{
    if (!a->length || !b->length) {
        *out = a->length ? *a : *b;
        return SETUN_OK;
    }
    char *text;
    uint8_t *mask = NULL;
    TAKE(r, text, a->length + b->length);
    memcpy(text, a->text, a->length);
    memcpy(text + a->length, b->text, b->length);
    if (a->mask || b->mask) {
        TAKE(r, mask, a->length + b->length);
        if (a->mask)
            memcpy(mask, a->mask, a->length);
        if (b->mask)
            memcpy(mask + a->length, b->mask, b->length);
    }
    *out = (value){.kind = VALUE_TEXT, .text = text, .mask = mask, .length = a->length + b->length};
    return SETUN_OK;
}

static setun_status list_of(run *r, size_t count, value *out)
{
    *out = (value){.kind = VALUE_LIST, .length = count};
    if (count > STEPS_MAX)
        return fail_at(r, "a list too long");
    TAKE(r, out->items, (count + 1) * sizeof(value));
    return SETUN_OK;
}

/* ---- scopes ---------------------------------------------------------------------------------------------------------- */

static value *find_binding(run *r, const char *name, size_t length, size_t from)
{
    for (size_t i = r->count; i-- > from;)
        if (r->bindings[i].length == length && memcmp(r->bindings[i].name, name, length) == 0)
            return &r->bindings[i].value;
    return NULL;
}

static setun_status bind(run *r, const char *name, size_t length, const value *v)
{
    value *there = find_binding(r, name, length, r->frame);
    if (there) {
        *there = *v;
        return SETUN_OK;
    }
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? r->capacity * 2 : 32;
        binding *grown = setun_realloc(r->bindings, capacity * sizeof *grown);
        if (!grown)
            return setun_fail_memory(capacity * sizeof *grown);
        r->bindings = grown;
        r->capacity = capacity;
    }
    r->bindings[r->count++] = (binding){name, length, *v};
    return SETUN_OK;
}

/* ---- methods, filters, tests -------------------------------------------------------------------------------------------- */

static setun_status evaluate(run *r, const jinja_node *node, value *out);
static setun_status run_body(run *r, const jinja_node *node);

static bool in_set(uint32_t c, const value *set)
{
    if (!set)
        return setun_is_space(c) || (c >= 0x1c && c <= 0x1f); /* Python's idea of white space */
    for (size_t i = 0, size; i < set->length; i += size)
        if (utf8_decode(set->text + i, &size) == c)
            return true;
    return false;
}

static value strip(const value *text, const value *set, bool left, bool right)
{
    size_t start = 0, end = text->length, size;
    while (left && start < end && in_set(utf8_decode(text->text + start, &size), set))
        start += size;
    while (right && end > start) {
        size_t before = end - 1;
        while (before > start && ((uint8_t)text->text[before] & 0xc0) == 0x80)
            before--;
        if (!in_set(utf8_decode(text->text + before, &size), set))
            break;
        end = before;
    }
    return part(text, start, end);
}

static size_t find_text(const value *text, const value *wanted, size_t from)
{
    for (size_t i = from; i + wanted->length <= text->length; i++)
        if (memcmp(text->text + i, wanted->text, wanted->length) == 0)
            return i;
    return SIZE_MAX;
}

/* upper, lower, capitalize, title: letters outside ASCII are refused, for Python's rules there are its own. */
static setun_status change_case(run *r, const value *text, char how, value *out)
{
    char *copy;
    TAKE(r, copy, text->length);
    bool word = false;
    for (size_t i = 0; i < text->length; i++) {
        char c = text->text[i];
        if ((uint8_t)c >= 0x80)
            return fail_at(r, "the case of letters outside ASCII is changed");
        bool upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z';
        bool raise = how == 'u' || (how == 'c' && i == 0) || (how == 't' && !word);
        copy[i] = raise && lower ? (char)(c - 32) : !raise && upper ? (char)(c + 32) : c;
        word = upper || lower;
    }
    *out = *text;
    out->text = copy;
    return SETUN_OK;
}

static setun_status split_text(run *r, const value *text, const value *by, int64_t most, value *out)
{
    size_t count = 1, from = 0, at;
    if (by && !by->length)
        return fail_at(r, "split by an empty text");
    if (!by)
        return fail_at(r, "split by white space");
    for (from = 0; (most < 0 || (int64_t)count <= most) && (at = find_text(text, by, from)) != SIZE_MAX; from = at + by->length)
        count++;
    SETUN_TRY(list_of(r, count, out));
    from = 0;
    for (size_t i = 0; i + 1 < count; i++) {
        at = find_text(text, by, from);
        out->items[i] = part(text, from, at);
        from = at + by->length;
    }
    out->items[count - 1] = part(text, from, text->length);
    return SETUN_OK;
}

static setun_status replace_text(run *r, const value *text, const value *old, const value *new, value *out)
{
    *out = make_text("", 0);
    if (!old->length)
        return fail_at(r, "replace of an empty text");
    size_t from = 0, at;
    while ((at = find_text(text, old, from)) != SIZE_MAX) {
        value before = part(text, from, at);
        SETUN_TRY(join_texts(r, out, &before, out));
        SETUN_TRY(join_texts(r, out, new, out));
        from = at + old->length;
    }
    value rest = part(text, from, text->length);
    return join_texts(r, out, &rest, out);
}

static setun_status dict_list(run *r, const value *dict, char what, value *out)
{
    dict = contents(dict);
    SETUN_TRY(list_of(r, dict->length, out));
    for (size_t i = 0; i < dict->length; i++) {
        if (what == 'i') {
            SETUN_TRY(list_of(r, 2, out->items + i));
            memcpy(out->items[i].items, dict->items + 2 * i, 2 * sizeof(value));
        } else {
            out->items[i] = dict->items[2 * i + (what == 'v')];
        }
    }
    return SETUN_OK;
}

typedef struct arguments { value given[8]; int count; const value *named; size_t named_count; } arguments;

static setun_status call_method(run *r, const value *receiver, const char *name, size_t length, const arguments *a, value *out)
{
    const value *first = a->count > 0 ? &a->given[0] : NULL, *second = a->count > 1 ? &a->given[1] : NULL;
    bool text_argument = first && first->kind == VALUE_TEXT;
    if (receiver->kind == VALUE_TEXT) {
        if (named(name, length, "strip") || named(name, length, "lstrip") || named(name, length, "rstrip")) {
            if (first && !text_argument)
                return fail_at(r, "strip of something that is no text");
            *out = strip(receiver, first, name[0] != 'r', name[0] != 'l');
            return SETUN_OK;
        }
        if ((named(name, length, "startswith") || named(name, length, "endswith")) && text_argument) {
            bool fits = first->length <= receiver->length;
            *out = make_bool(fits && memcmp(receiver->text + (name[0] == 's' ? 0 : receiver->length - first->length), first->text, first->length) == 0);
            return SETUN_OK;
        }
        if (named(name, length, "split"))
            return split_text(r, receiver, text_argument ? first : NULL, second && second->kind == VALUE_INTEGER ? second->integer : -1, out);
        if (named(name, length, "replace") && text_argument && second && second->kind == VALUE_TEXT)
            return replace_text(r, receiver, first, second, out);
        if (named(name, length, "upper") || named(name, length, "lower") || named(name, length, "capitalize") || named(name, length, "title"))
            return change_case(r, receiver, name[0], out);
    }
    if (receiver->kind == VALUE_DICT) {
        if (named(name, length, "get") && text_argument) {
            const value *found = dict_get(receiver, first->text, first->length);
            *out = found ? *found : second ? *second : (value){.kind = VALUE_NONE};
            return SETUN_OK;
        }
        if (named(name, length, "items") || named(name, length, "keys") || named(name, length, "values"))
            return dict_list(r, receiver, name[0], out);
    }
    return fail_name(r, "the method", name, length);
}

static setun_status apply_filter(run *r, const value *v, const char *name, size_t length, const arguments *a, value *out)
{
    const value *first = a->count > 0 ? &a->given[0] : NULL;
    if (named(name, length, "trim") || named(name, length, "upper") || named(name, length, "lower") || named(name, length, "capitalize") || named(name, length, "title")) {
        value text;
        SETUN_TRY(to_text(r, v, &text));
        if (name[0] != 't' || name[1] == 'i')
            return change_case(r, &text, name[0], out);
        *out = strip(&text, first && first->kind == VALUE_TEXT ? first : NULL, true, true);
        return SETUN_OK;
    }
    if (named(name, length, "string"))
        return to_text(r, v, out);
    if (named(name, length, "safe")) {
        *out = *v;
        return SETUN_OK;
    }
    if (named(name, length, "default") || named(name, length, "d")) {
        bool missing = v->kind == VALUE_UNDEFINED || (a->count > 1 && truth(&a->given[1]) && !truth(v));
        *out = !missing ? *v : first ? *first : make_text("", 0);
        return SETUN_OK;
    }
    if (named(name, length, "length") || named(name, length, "count")) {
        if (v->kind == VALUE_TEXT) {
            int64_t characters = 0;
            for (size_t i = 0; i < v->length; i += utf8_size(v->text[i]))
                characters++;
            *out = make_integer(characters);
            return SETUN_OK;
        }
        if (v->kind == VALUE_LIST || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED) {
            *out = make_integer((int64_t)contents(v)->length);
            return SETUN_OK;
        }
    }
    if ((named(name, length, "first") || named(name, length, "last")) && v->kind == VALUE_LIST) {
        *out = v->length ? v->items[name[0] == 'f' ? 0 : v->length - 1] : (value){0};
        return SETUN_OK;
    }
    if (named(name, length, "list") && v->kind == VALUE_LIST) {
        *out = *v;
        return SETUN_OK;
    }
    if (named(name, length, "items") && v->kind == VALUE_DICT)
        return dict_list(r, v, 'i', out);
    if (named(name, length, "replace") && v->kind == VALUE_TEXT && a->count == 2 && first->kind == VALUE_TEXT && a->given[1].kind == VALUE_TEXT)
        return replace_text(r, v, first, &a->given[1], out);
    if (named(name, length, "join") && v->kind == VALUE_LIST && (!first || first->kind == VALUE_TEXT)) {
        *out = make_text("", 0);
        for (size_t i = 0; i < v->length; i++) {
            value one;
            SETUN_TRY(to_text(r, v->items + i, &one));
            if (i && first)
                SETUN_TRY(join_texts(r, out, first, out));
            SETUN_TRY(join_texts(r, out, &one, out));
        }
        return SETUN_OK;
    }
    return fail_name(r, "the filter", name, length);
}

static setun_status apply_test(run *r, const value *v, const char *name, size_t length, const arguments *a, bool *out)
{
    const value *first = a->count > 0 ? &a->given[0] : NULL;
    if (named(name, length, "defined")) *out = v->kind != VALUE_UNDEFINED;
    else if (named(name, length, "undefined")) *out = v->kind == VALUE_UNDEFINED;
    else if (named(name, length, "none")) *out = v->kind == VALUE_NONE;
    else if (named(name, length, "string")) *out = v->kind == VALUE_TEXT;
    else if (named(name, length, "mapping")) *out = v->kind == VALUE_DICT;
    else if (named(name, length, "number")) *out = is_number(v);
    else if (named(name, length, "integer")) *out = v->kind == VALUE_INTEGER;
    else if (named(name, length, "float")) *out = v->kind == VALUE_REAL;
    else if (named(name, length, "boolean")) *out = v->kind == VALUE_BOOL;
    else if (named(name, length, "true")) *out = v->kind == VALUE_BOOL && v->integer;
    else if (named(name, length, "false")) *out = v->kind == VALUE_BOOL && !v->integer;
    else if (named(name, length, "iterable")) *out = v->kind == VALUE_TEXT || v->kind == VALUE_LIST || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED;
    else if (named(name, length, "sequence")) *out = v->kind == VALUE_TEXT || v->kind == VALUE_LIST || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED;
    else if (named(name, length, "callable")) *out = v->kind == VALUE_MACRO || v->kind == VALUE_METHOD;
    else if ((named(name, length, "odd") || named(name, length, "even")) && v->kind == VALUE_INTEGER) *out = (v->integer % 2 != 0) == (name[0] == 'o');
    else if (named(name, length, "divisibleby") && v->kind == VALUE_INTEGER && first && first->kind == VALUE_INTEGER && first->integer > 0) *out = v->integer % first->integer == 0;
    else if ((named(name, length, "eq") || named(name, length, "equalto")) && first) *out = equal(v, first, 0);
    else if (named(name, length, "ne") && first) *out = !equal(v, first, 0);
    else return fail_name(r, "the test", name, length);
    return SETUN_OK;
}

/* ---- operators ------------------------------------------------------------------------------------------------------------ */

static setun_status contains(run *r, const value *needle, const value *in, bool *out)
{
    *out = false;
    if (in->kind == VALUE_TEXT && needle->kind == VALUE_TEXT) {
        *out = find_text(in, needle, 0) != SIZE_MAX;
    } else if (in->kind == VALUE_LIST) {
        for (size_t i = 0; i < in->length && !*out; i++)
            *out = equal(in->items + i, needle, 0);
    } else if (in->kind == VALUE_DICT) {
        *out = needle->kind == VALUE_TEXT && dict_get(in, needle->text, needle->length);
    } else if (in->kind != VALUE_UNDEFINED) {
        return fail_at(r, "'in' on something that holds nothing");
    }
    return SETUN_OK;
}

static int64_t floor_divide(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return a % b != 0 && (a % b < 0) != (b < 0) ? q - 1 : q;
}

static setun_status arithmetic(run *r, jinja_operator operator, const value *a, const value *b, value *out)
{
    if (operator == JINJA_ADD && a->kind == VALUE_TEXT && b->kind == VALUE_TEXT)
        return join_texts(r, a, b, out);
    if (operator == JINJA_ADD && a->kind == VALUE_LIST && b->kind == VALUE_LIST) {
        SETUN_TRY(list_of(r, a->length + b->length, out));
        memcpy(out->items, a->items, a->length * sizeof(value));
        memcpy(out->items + a->length, b->items, b->length * sizeof(value));
        return SETUN_OK;
    }
    bool whole = (a->kind == VALUE_INTEGER || a->kind == VALUE_BOOL) && (b->kind == VALUE_INTEGER || b->kind == VALUE_BOOL);
    int64_t result = 0;
    bool overflow = false, divides = operator == JINJA_FLOOR_DIVIDE || operator == JINJA_MODULO;
    if (!whole || (divides && (b->integer == 0 || b->integer == -1)))
        return fail_at(r, "an operator between values that it is not for");
    switch (operator) {
    case JINJA_ADD: overflow = __builtin_add_overflow(a->integer, b->integer, &result); break;
    case JINJA_SUBTRACT: overflow = __builtin_sub_overflow(a->integer, b->integer, &result); break;
    case JINJA_MULTIPLY: overflow = __builtin_mul_overflow(a->integer, b->integer, &result); break;
    case JINJA_FLOOR_DIVIDE: result = floor_divide(a->integer, b->integer); break;
    case JINJA_MODULO: result = a->integer - floor_divide(a->integer, b->integer) * b->integer; break;
    default: return fail_at(r, "division or a power");
    }
    if (overflow)
        return fail_at(r, "a number too large");
    *out = make_integer(result);
    return SETUN_OK;
}

static setun_status binary(run *r, jinja_operator operator, const value *a, const value *b, value *out)
{
    bool yes = false;
    switch (operator) {
    case JINJA_EQUAL: case JINJA_UNEQUAL:
        *out = make_bool(equal(a, b, 0) == (operator == JINJA_EQUAL));
        return SETUN_OK;
    case JINJA_IN: case JINJA_NOT_IN:
        SETUN_TRY(contains(r, a, b, &yes));
        *out = make_bool(yes == (operator == JINJA_IN));
        return SETUN_OK;
    case JINJA_LESS: case JINJA_LESS_EQUAL: case JINJA_GREATER: case JINJA_GREATER_EQUAL: {
        if (!is_number(a) || !is_number(b))
            return fail_at(r, "an order between values that are no numbers");
        double x = number(a), y = number(b);
        *out = make_bool(operator == JINJA_LESS ? x < y : operator == JINJA_LESS_EQUAL ? x <= y : operator == JINJA_GREATER ? x > y : x >= y);
        return SETUN_OK;
    }
    case JINJA_CONCATENATE: {
        value x, y;
        SETUN_TRY(to_text(r, a, &x));
        SETUN_TRY(to_text(r, b, &y));
        return join_texts(r, &x, &y, out);
    }
    default:
        return arithmetic(r, operator, a, b, out);
    }
}

/* Where the i-th character of a text begins. */
static size_t character_at(const value *text, size_t index)
{
    size_t at = 0;
    while (index-- && at < text->length)
        at += utf8_size(text->text[at]);
    return at;
}

static int64_t count_of(const value *v)
{
    if (v->kind != VALUE_TEXT)
        return (int64_t)v->length;
    int64_t count = 0;
    for (size_t i = 0; i < v->length; i += utf8_size(v->text[i]))
        count++;
    return count;
}

static setun_status slice(run *r, const value *of, const value *from, const value *to, const value *by, value *out)
{
    const value *bounds[3] = {from, to, by};
    for (int i = 0; i < 3; i++)
        if (bounds[i]->kind != VALUE_NONE && bounds[i]->kind != VALUE_INTEGER)
            return fail_at(r, "a slice by something that is no number");
    int64_t count = count_of(of), step = by->kind == VALUE_INTEGER ? by->integer : 1;
    if ((of->kind != VALUE_TEXT && of->kind != VALUE_LIST) || (step != 1 && step != -1) || (of->kind == VALUE_TEXT && step != 1))
        return fail_at(r, "a rare slice");
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
    int64_t start = step > 0 ? low : high, stop = step > 0 ? high : low;
    for (int i = 0; i < 2; i++) {
        if (bounds[i]->kind != VALUE_INTEGER)
            continue;
        int64_t at = bounds[i]->integer < 0 ? (bounds[i]->integer < -count ? -1 : bounds[i]->integer + count) : bounds[i]->integer;
        at = at < low ? low : at > high ? high : at;
        *(i ? &stop : &start) = at;
    }
    int64_t kept = step > 0 ? stop - start : start - stop;
    if (kept < 0)
        kept = 0;
    if (of->kind == VALUE_TEXT) {
        size_t begin = character_at(of, (size_t)start);
        *out = part(of, begin, kept ? character_at(of, (size_t)(start + kept)) : begin);
        return SETUN_OK;
    }
    SETUN_TRY(list_of(r, (size_t)kept, out));
    for (int64_t i = 0; i < kept; i++)
        out->items[i] = of->items[start + i * step];
    return SETUN_OK;
}

static setun_status item(run *r, const value *of, const value *key, value *out)
{
    *out = (value){0};
    if (of->kind == VALUE_DICT && key->kind == VALUE_TEXT) {
        const value *found = dict_get(of, key->text, key->length);
        if (found)
            *out = *found;
        return SETUN_OK;
    }
    if ((of->kind == VALUE_LIST || of->kind == VALUE_TEXT) && key->kind == VALUE_INTEGER) {
        int64_t count = count_of(of), at = key->integer < 0 ? key->integer + count : key->integer;
        if (at < 0 || at >= count)
            return SETUN_OK;
        if (of->kind == VALUE_LIST) {
            *out = of->items[at];
        } else {
            size_t begin = character_at(of, (size_t)at);
            *out = part(of, begin, begin + utf8_size(of->text[begin]));
        }
        return SETUN_OK;
    }
    if (of->kind == VALUE_UNDEFINED)
        return fail_at(r, "a part of something that is not defined");
    return SETUN_OK; /* Jinja: undefined */
}

/* ---- evaluation ----------------------------------------------------------------------------------------------------------- */

static setun_status evaluate_arguments(run *r, const jinja_node *node, arguments *out, value *dict)
{
    out->count = 0;
    size_t keywords = 0;
    for (const jinja_node *one = node; one; one = one->next)
        keywords += one->kind == JINJA_KEYWORD;
    *dict = (value){.kind = VALUE_DICT, .length = keywords};
    TAKE(r, dict->items, (2 * keywords + 1) * sizeof(value));
    keywords = 0;
    for (; node; node = node->next) {
        if (node->kind == JINJA_KEYWORD) {
            dict->items[2 * keywords] = make_text(node->text, node->length);
            SETUN_TRY(evaluate(r, node->a, &dict->items[2 * keywords++ + 1]));
        } else if (out->count == 8) {
            return fail_at(r, "more than eight arguments");
        } else {
            SETUN_TRY(evaluate(r, node, &out->given[out->count++]));
        }
    }
    return SETUN_OK;
}

static setun_status call_macro(run *r, const jinja_node *macro, const arguments *a, const value *named_arguments, value *out)
{
    size_t count = r->count, frame = r->frame;
    setun_string text = {0}, mask = {0}, *saved_out = r->out, *saved_mask = r->mask;
    setun_status status = SETUN_OK;
    int index = 0;
    r->frame = r->count;
    for (const jinja_node *one = macro->items; one && status == SETUN_OK; one = one->next, index++) {
        value v = {0};
        const value *given = dict_get(named_arguments, one->text, one->length);
        if (index < a->count)
            v = a->given[index];
        else if (given)
            v = *given;
        else if (one->kind == JINJA_KEYWORD)
            status = evaluate(r, one->a, &v);
        if (status == SETUN_OK)
            status = bind(r, one->text, one->length, &v);
    }
    r->out = &text;
    r->mask = &mask;
    if (status == SETUN_OK)
        status = run_body(r, macro->b);
    r->out = saved_out;
    r->mask = saved_mask;
    r->count = count;
    r->frame = frame;
    if (status == SETUN_OK && (text.failed || mask.failed))
        status = setun_fail_memory(text.length);
    if (status == SETUN_OK) {
        char *copy = take(r, text.length + 1);
        uint8_t *mask_copy = copy ? take(r, text.length + 1) : NULL;
        if (!mask_copy) {
            status = r->memory;
        } else if (text.length) {
            memcpy(copy, text.data, text.length);
            memcpy(mask_copy, mask.data, text.length);
        }
        *out = (value){.kind = VALUE_TEXT, .text = copy, .mask = mask_copy, .length = text.length};
    }
    setun_string_clear(&text);
    setun_string_clear(&mask);
    return status;
}

static setun_status call_function(run *r, const char *name, size_t length, const arguments *a, const value *keywords, value *out)
{
    if (named(name, length, "namespace") || named(name, length, "dict")) {
        *out = *keywords;
        if (name[0] == 'n') {
            TAKE(r, out->shared, sizeof(value));
            *out->shared = *keywords;
        }
        return SETUN_OK;
    }
    if (named(name, length, "raise_exception"))
        return setun_fail(SETUN_ERROR_ARGUMENT, "the chat template refuses these messages: %.*s",
            a->count && a->given[0].kind == VALUE_TEXT ? (a->given[0].length > 300 ? 300 : (int)a->given[0].length) : 0, a->count && a->given[0].kind == VALUE_TEXT ? a->given[0].text : "");
    if (named(name, length, "range") && a->count >= 1 && a->count <= 2) {
        int64_t from = a->count == 2 ? a->given[0].integer : 0, to = a->given[a->count - 1].integer;
        if (a->given[0].kind != VALUE_INTEGER || a->given[a->count - 1].kind != VALUE_INTEGER || from < -STEPS_MAX || to > STEPS_MAX)
            return fail_at(r, "a range too long");
        SETUN_TRY(list_of(r, to > from ? (size_t)(to - from) : 0, out));
        for (size_t i = 0; i < out->length; i++)
            out->items[i] = make_integer(from + (int64_t)i);
        return SETUN_OK;
    }
    return fail_name(r, "the function", name, length);
}

static setun_status call(run *r, const jinja_node *node, value *out)
{
    arguments a = {.count = 0};
    value keywords, callee = {0};
    SETUN_TRY(evaluate_arguments(r, node->items, &a, &keywords));
    if (node->a->kind == JINJA_NAME) {
        value *bound = find_binding(r, node->a->text, node->a->length, 0);
        if (!bound)
            return call_function(r, node->a->text, node->a->length, &a, &keywords, out);
        callee = *bound;
    } else if (node->a->kind == JINJA_ATTRIBUTE) {
        value receiver;
        SETUN_TRY(evaluate(r, node->a->a, &receiver));
        return call_method(r, &receiver, node->a->text, node->a->length, &a, out);
    }
    if (callee.kind != VALUE_MACRO)
        return fail_at(r, "a call of something that is no function");
    return call_macro(r, callee.macro, &a, &keywords, out);
}

static setun_status evaluate_dict(run *r, const jinja_node *node, value *out)
{
    size_t count = 0;
    for (const jinja_node *one = node->items; one; one = one->next)
        count++;
    *out = (value){.kind = VALUE_DICT, .length = count};
    TAKE(r, out->items, (2 * count + 1) * sizeof(value));
    count = 0;
    for (const jinja_node *one = node->items; one; one = one->next, count++) {
        SETUN_TRY(evaluate(r, one->b, &out->items[2 * count]));
        SETUN_TRY(evaluate(r, one->a, &out->items[2 * count + 1]));
    }
    return SETUN_OK;
}

static setun_status evaluate_inner(run *r, const jinja_node *node, value *out)
{
    value a, b;
    arguments given = {.count = 0};
    bool yes = false;
    *out = (value){0};
    switch (node->kind) {
    case JINJA_STRING: *out = make_text(node->text, node->length); return SETUN_OK;
    case JINJA_INTEGER: *out = make_integer(node->integer); return SETUN_OK;
    case JINJA_REAL: *out = (value){.kind = VALUE_REAL, .real = node->real}; return SETUN_OK;
    case JINJA_TRUE: case JINJA_FALSE: *out = make_bool(node->kind == JINJA_TRUE); return SETUN_OK;
    case JINJA_NONE: out->kind = VALUE_NONE; return SETUN_OK;
    case JINJA_NAME: {
        value *bound = find_binding(r, node->text, node->length, 0);
        if (bound)
            *out = *bound;
        return SETUN_OK;
    }
    case JINJA_LIST: {
        size_t count = 0;
        for (const jinja_node *one = node->items; one; one = one->next)
            count++;
        SETUN_TRY(list_of(r, count, out));
        count = 0;
        for (const jinja_node *one = node->items; one; one = one->next)
            SETUN_TRY(evaluate(r, one, &out->items[count++]));
        return SETUN_OK;
    }
    case JINJA_DICT: return evaluate_dict(r, node, out);
    case JINJA_ATTRIBUTE:
        SETUN_TRY(evaluate(r, node->a, &a));
        b = make_text(node->text, node->length);
        return item(r, &a, &b, out);
    case JINJA_ITEM:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate(r, node->b, &b));
        return item(r, &a, &b, out);
    case JINJA_SLICE: {
        value bounds[3] = {{.kind = VALUE_NONE}, {.kind = VALUE_NONE}, {.kind = VALUE_NONE}};
        const jinja_node *nodes[3] = {node->b, node->c, node->d};
        SETUN_TRY(evaluate(r, node->a, &a));
        for (int i = 0; i < 3; i++)
            if (nodes[i])
                SETUN_TRY(evaluate(r, nodes[i], &bounds[i]));
        return slice(r, &a, &bounds[0], &bounds[1], &bounds[2], out);
    }
    case JINJA_CALL: return call(r, node, out);
    case JINJA_FILTER:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate_arguments(r, node->items, &given, &b));
        if (b.length)
            return fail_at(r, "a filter's argument by name");
        return apply_filter(r, &a, node->text, node->length, &given, out);
    case JINJA_TEST:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate_arguments(r, node->items, &given, &b));
        SETUN_TRY(apply_test(r, &a, node->text, node->length, &given, &yes));
        *out = make_bool(yes != node->negate);
        return SETUN_OK;
    case JINJA_NOT:
        SETUN_TRY(evaluate(r, node->a, &a));
        *out = make_bool(!truth(&a));
        return SETUN_OK;
    case JINJA_NEGATE:
        SETUN_TRY(evaluate(r, node->a, &a));
        if (a.kind != VALUE_INTEGER || a.integer == INT64_MIN)
            return fail_at(r, "minus before something that is no number");
        *out = make_integer(-a.integer);
        return SETUN_OK;
    case JINJA_AND: case JINJA_OR:
        SETUN_TRY(evaluate(r, node->a, out));
        return truth(out) == (node->kind == JINJA_AND) ? evaluate(r, node->b, out) : SETUN_OK;
    case JINJA_CONDITION:
        SETUN_TRY(evaluate(r, node->b, &b));
        return truth(&b) ? evaluate(r, node->a, out) : node->c ? evaluate(r, node->c, out) : SETUN_OK;
    case JINJA_BINARY:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate(r, node->b, &b));
        return binary(r, node->operator, &a, &b, out);
    default:
        return fail_at(r, "a statement where a value belongs");
    }
}

static setun_status step(run *r, const jinja_node *node)
{
    r->line = node->line;
    if (++r->steps > STEPS_MAX)
        return fail_at(r, "the template runs too long");
    if (r->nesting > NESTING_MAX)
        return fail_at(r, "calls nested too deep");
    return SETUN_OK;
}

static setun_status evaluate(run *r, const jinja_node *node, value *out)
{
    SETUN_TRY(step(r, node));
    r->nesting++;
    setun_status status = evaluate_inner(r, node, out);
    r->nesting--;
    return status;
}

/* ---- statements --------------------------------------------------------------------------------------------------------------- */

static setun_status write_out(run *r, const value *text)
{
    static const char zeros[64] = {0};
    setun_string_append(r->out, text->text, text->length);
    if (text->mask) {
        setun_string_append(r->mask, (const char *)text->mask, text->length);
    } else {
        for (size_t i = 0; i < text->length; i += sizeof zeros)
            setun_string_append(r->mask, zeros, text->length - i < sizeof zeros ? text->length - i : sizeof zeros);
    }
    if (r->out->failed || r->mask->failed)
        return setun_fail_memory(text->length);
    return r->out->length > OUTPUT_MAX ? fail_at(r, "more than 256 MiB of text") : SETUN_OK;
}

static setun_status loop_value(run *r, const value *list, size_t index, value *out)
{
    static const char *const names[] = {"index", "index0", "revindex", "revindex0", "length", "first", "last", "previtem", "nextitem"};
    enum { COUNT = sizeof names / sizeof names[0] };
    size_t count = list->length;
    *out = (value){.kind = VALUE_DICT, .length = COUNT};
    TAKE(r, out->items, 2 * COUNT * sizeof(value));
    value values[COUNT] = {make_integer((int64_t)index + 1), make_integer((int64_t)index), make_integer((int64_t)(count - index)), make_integer((int64_t)(count - index - 1)),
        make_integer((int64_t)count), make_bool(index == 0), make_bool(index + 1 == count), index ? list->items[index - 1] : (value){0}, index + 1 < count ? list->items[index + 1] : (value){0}};
    for (size_t i = 0; i < COUNT; i++) {
        out->items[2 * i] = make_text(names[i], strlen(names[i]));
        out->items[2 * i + 1] = values[i];
    }
    return SETUN_OK;
}

static setun_status bind_targets(run *r, const jinja_node *node, const value *v)
{
    if (!node->items->next)
        return bind(r, node->items->text, node->items->length, v);
    size_t i = 0;
    for (const jinja_node *one = node->items; one; one = one->next, i++) {
        if (v->kind != VALUE_LIST || i >= v->length)
            return fail_at(r, "a loop over pairs meets something else");
        SETUN_TRY(bind(r, one->text, one->length, v->items + i));
    }
    return i == v->length ? SETUN_OK : fail_at(r, "a loop over pairs meets something else");
}

static setun_status keep_filtered(run *r, const jinja_node *node, value *list)
{
    size_t kept = 0;
    value out;
    SETUN_TRY(list_of(r, list->length, &out));
    for (size_t i = 0; i < list->length; i++) {
        size_t count = r->count, frame = r->frame;
        value yes;
        r->frame = r->count;
        SETUN_TRY(bind_targets(r, node, list->items + i));
        SETUN_TRY(evaluate(r, node->d, &yes));
        r->count = count;
        r->frame = frame;
        if (truth(&yes))
            out.items[kept++] = list->items[i];
    }
    out.length = kept;
    *list = out;
    return SETUN_OK;
}

static setun_status run_for(run *r, const jinja_node *node)
{
    value list;
    SETUN_TRY(evaluate(r, node->a, &list));
    if (list.kind == VALUE_UNDEFINED)
        list = (value){.kind = VALUE_LIST};
    if (list.kind == VALUE_DICT)
        SETUN_TRY(dict_list(r, &list, 'k', &list));
    if (list.kind != VALUE_LIST)
        return fail_at(r, "a loop over something that is no list");
    if (node->d)
        SETUN_TRY(keep_filtered(r, node, &list));
    for (size_t i = 0; i < list.length; i++) {
        size_t count = r->count, frame = r->frame;
        value loop;
        SETUN_TRY(loop_value(r, &list, i, &loop));
        r->frame = r->count; /* what the body sets is forgotten after each turn */
        SETUN_TRY(bind(r, "loop", 4, &loop));
        SETUN_TRY(bind_targets(r, node, list.items + i));
        SETUN_TRY(run_body(r, node->b));
        r->count = count;
        r->frame = frame;
        r->continuing = false;
        if (r->breaking)
            break;
    }
    r->breaking = false;
    return list.length == 0 && node->c ? run_body(r, node->c) : SETUN_OK;
}

static setun_status assign(run *r, const jinja_node *target, const value *v)
{
    if (target->kind == JINJA_NAME)
        return bind(r, target->text, target->length, v);
    value *space = find_binding(r, target->a->text, target->a->length, 0);
    if (!space || !space->shared)
        return fail_at(r, "'set' of a part of something that is no namespace");
    value *dict = space->shared, *found = (value *)dict_get(dict, target->text, target->length);
    if (!found) {
        value *items;
        TAKE(r, items, 2 * (dict->length + 1) * sizeof(value));
        memcpy(items, dict->items, 2 * dict->length * sizeof(value));
        items[2 * dict->length] = make_text(target->text, target->length);
        found = &items[2 * dict->length + 1];
        dict->items = items;
        dict->length++;
    }
    *found = *v;
    return SETUN_OK;
}

static setun_status run_statement(run *r, const jinja_node *node)
{
    value v, text;
    switch (node->kind) {
    case JINJA_TEXT:
        text = make_text(node->text, node->length);
        return write_out(r, &text);
    case JINJA_OUTPUT:
        SETUN_TRY(evaluate(r, node->a, &v));
        SETUN_TRY(to_text(r, &v, &text));
        return write_out(r, &text);
    case JINJA_IF:
        SETUN_TRY(evaluate(r, node->a, &v));
        return run_body(r, truth(&v) ? node->b : node->c);
    case JINJA_FOR: return run_for(r, node);
    case JINJA_GROUP: return run_body(r, node->b);
    case JINJA_SET:
        SETUN_TRY(evaluate(r, node->b, &v));
        return assign(r, node->a, &v);
    case JINJA_SET_BLOCK: {
        jinja_node macro = *node;
        arguments none = {.count = 0};
        value empty = {.kind = VALUE_DICT};
        macro.items = NULL;
        SETUN_TRY(call_macro(r, &macro, &none, &empty, &v));
        return assign(r, node->a, &v);
    }
    case JINJA_MACRO:
        v = (value){.kind = VALUE_MACRO, .macro = node};
        return bind(r, node->text, node->length, &v);
    case JINJA_BREAK: case JINJA_CONTINUE:
        r->breaking = node->kind == JINJA_BREAK;
        r->continuing = node->kind == JINJA_CONTINUE;
        return SETUN_OK;
    default:
        return fail_at(r, "a value where a statement belongs");
    }
}

static setun_status run_body(run *r, const jinja_node *node)
{
    setun_status status = SETUN_OK;
    r->nesting++;
    for (; node && status == SETUN_OK && !r->breaking && !r->continuing; node = node->next) {
        status = step(r, node);
        if (status == SETUN_OK)
            status = run_statement(r, node);
    }
    r->nesting--;
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------------- */

static setun_status bind_text(run *r, const char *name, value v)
{
    return bind(r, name, strlen(name), &v);
}

static setun_status bind_inputs(run *r, const jinja_message *messages, size_t count, bool add_generation_prompt, const jinja_variable *variables, size_t variable_count)
{
    value list, none = {.kind = VALUE_NONE};
    SETUN_TRY(list_of(r, count, &list));
    for (size_t i = 0; i < count; i++) {
        uint8_t *mask;
        value *dict = list.items + i;
        *dict = (value){.kind = VALUE_DICT, .length = 2};
        TAKE(r, dict->items, 4 * sizeof(value));
        TAKE(r, mask, messages[i].content_length + 1);
        memset(mask, 1, messages[i].content_length);
        dict->items[0] = make_text("role", 4);
        dict->items[1] = make_text(messages[i].role, strlen(messages[i].role));
        dict->items[2] = make_text("content", 7);
        dict->items[3] = make_text(messages[i].content, messages[i].content_length);
        dict->items[3].mask = mask;
    }
    SETUN_TRY(bind_text(r, "messages", list));
    SETUN_TRY(bind_text(r, "add_generation_prompt", make_bool(add_generation_prompt)));
    SETUN_TRY(bind_text(r, "tools", none)); /* transformers passes these two as None */
    SETUN_TRY(bind_text(r, "documents", none));
    for (size_t i = 0; i < variable_count; i++)
        if (variables[i].text)
            SETUN_TRY(bind_text(r, variables[i].name, make_text(variables[i].text, strlen(variables[i].text))));
    return SETUN_OK;
}

setun_status jinja_run(const jinja_template *template, const jinja_message *messages, size_t count, bool add_generation_prompt, const jinja_variable *variables, size_t variable_count,
    setun_string *out, setun_string *mask)
{
    run r = {.out = out, .mask = mask};
    setun_status status = bind_inputs(&r, messages, count, add_generation_prompt, variables, variable_count);
    if (status == SETUN_OK)
        status = run_body(&r, template->body);
    jinja_arena_clear(&r.arena);
    setun_free(r.bindings);
    return status;
}
