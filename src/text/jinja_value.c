/*
 * jinja_value.c - values of a running chat template: texts with their marks, lists, objects; the methods, filters, tests
 * and operators that templates use. Caller: jinja_run.c. Refuses what it does not know by its name.
 */
#include "text/jinja_value.h"
#include <inttypes.h>

setun_status jinja_fail_at(const run *r, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: %s", r->line, what);
}

setun_status jinja_fail_name(const run *r, const char *what, const char *name, size_t length)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "chat template, line %d: %s '%.*s' is not known", r->line, what, length > 60 ? 60 : (int)length, name);
}

void *jinja_take(run *r, size_t bytes)
{
    void *memory = jinja_alloc(&r->arena, bytes);
    if (!memory)
        r->memory = jinja_no_memory(&r->arena, bytes);
    return memory;
}
/* ---- values ---------------------------------------------------------------------------------------------------------- */



bool jinja_truth(const value *v)
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

const value *jinja_dict_get(const value *dict, const char *name, size_t length)
{
    dict = contents(dict);
    for (size_t i = 0; i < dict->length; i++) {
        const value *key = dict->items + 2 * i;
        if (key->kind == VALUE_TEXT && key->length == length && memcmp(key->text, name, length) == 0)
            return key + 1;
    }
    return NULL;
}

/* What a value looks like in the output. */
setun_status jinja_to_text(run *r, const value *v, value *out)
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
    default: return jinja_fail_at(r, "a list, object or fraction is written out, which only Python does the same way");
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

setun_status jinja_list_of(run *r, size_t count, value *out)
{
    *out = (value){.kind = VALUE_LIST, .length = count};
    if (count > JINJA_STEPS_MAX)
        return jinja_fail_at(r, "a list too long");
    TAKE(r, out->items, (count + 1) * sizeof(value));
    return SETUN_OK;
}

/* ---- methods, filters, tests -------------------------------------------------------------------------------------------- */

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
            return jinja_fail_at(r, "the case of letters outside ASCII is changed");
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
        return jinja_fail_at(r, "split by an empty text");
    if (!by)
        return jinja_fail_at(r, "split by white space");
    for (from = 0; (most < 0 || (int64_t)count <= most) && (at = find_text(text, by, from)) != SIZE_MAX; from = at + by->length)
        count++;
    SETUN_TRY(jinja_list_of(r, count, out));
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
        return jinja_fail_at(r, "replace of an empty text");
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

setun_status jinja_dict_list(run *r, const value *dict, char what, value *out)
{
    dict = contents(dict);
    SETUN_TRY(jinja_list_of(r, dict->length, out));
    for (size_t i = 0; i < dict->length; i++) {
        if (what == 'i') {
            SETUN_TRY(jinja_list_of(r, 2, out->items + i));
            memcpy(out->items[i].items, dict->items + 2 * i, 2 * sizeof(value));
        } else {
            out->items[i] = dict->items[2 * i + (what == 'v')];
        }
    }
    return SETUN_OK;
}

setun_status jinja_call_method(run *r, const value *receiver, const char *name, size_t length, const arguments *a, value *out)
{
    const value *first = a->count > 0 ? &a->given[0] : NULL, *second = a->count > 1 ? &a->given[1] : NULL;
    bool text_argument = first && first->kind == VALUE_TEXT;
    if (receiver->kind == VALUE_TEXT) {
        if (named(name, length, "strip") || named(name, length, "lstrip") || named(name, length, "rstrip")) {
            if (first && !text_argument)
                return jinja_fail_at(r, "strip of something that is no text");
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
            const value *found = jinja_dict_get(receiver, first->text, first->length);
            *out = found ? *found : second ? *second : (value){.kind = VALUE_NONE};
            return SETUN_OK;
        }
        if (named(name, length, "items") || named(name, length, "keys") || named(name, length, "values"))
            return jinja_dict_list(r, receiver, name[0], out);
    }
    return jinja_fail_name(r, "the method", name, length);
}

setun_status jinja_apply_filter(run *r, const value *v, const char *name, size_t length, const arguments *a, value *out)
{
    const value *first = a->count > 0 ? &a->given[0] : NULL;
    if (named(name, length, "trim") || named(name, length, "upper") || named(name, length, "lower") || named(name, length, "capitalize") || named(name, length, "title")) {
        value text;
        SETUN_TRY(jinja_to_text(r, v, &text));
        if (name[0] != 't' || name[1] == 'i')
            return change_case(r, &text, name[0], out);
        *out = strip(&text, first && first->kind == VALUE_TEXT ? first : NULL, true, true);
        return SETUN_OK;
    }
    if (named(name, length, "string"))
        return jinja_to_text(r, v, out);
    if (named(name, length, "safe")) {
        *out = *v;
        return SETUN_OK;
    }
    if (named(name, length, "default") || named(name, length, "d")) {
        bool missing = v->kind == VALUE_UNDEFINED || (a->count > 1 && jinja_truth(&a->given[1]) && !jinja_truth(v));
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
        return jinja_dict_list(r, v, 'i', out);
    if (named(name, length, "replace") && v->kind == VALUE_TEXT && a->count == 2 && first->kind == VALUE_TEXT && a->given[1].kind == VALUE_TEXT)
        return replace_text(r, v, first, &a->given[1], out);
    if (named(name, length, "join") && v->kind == VALUE_LIST && (!first || first->kind == VALUE_TEXT)) {
        *out = make_text("", 0);
        for (size_t i = 0; i < v->length; i++) {
            value one;
            SETUN_TRY(jinja_to_text(r, v->items + i, &one));
            if (i && first)
                SETUN_TRY(join_texts(r, out, first, out));
            SETUN_TRY(join_texts(r, out, &one, out));
        }
        return SETUN_OK;
    }
    return jinja_fail_name(r, "the filter", name, length);
}

setun_status jinja_apply_test(run *r, const value *v, const char *name, size_t length, const arguments *a, bool *out)
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
    else return jinja_fail_name(r, "the test", name, length);
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
        *out = needle->kind == VALUE_TEXT && jinja_dict_get(in, needle->text, needle->length);
    } else if (in->kind != VALUE_UNDEFINED) {
        return jinja_fail_at(r, "'in' on something that holds nothing");
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
        SETUN_TRY(jinja_list_of(r, a->length + b->length, out));
        memcpy(out->items, a->items, a->length * sizeof(value));
        memcpy(out->items + a->length, b->items, b->length * sizeof(value));
        return SETUN_OK;
    }
    bool whole = (a->kind == VALUE_INTEGER || a->kind == VALUE_BOOL) && (b->kind == VALUE_INTEGER || b->kind == VALUE_BOOL);
    int64_t result = 0;
    bool overflow = false, divides = operator == JINJA_FLOOR_DIVIDE || operator == JINJA_MODULO;
    if (!whole || (divides && (b->integer == 0 || b->integer == -1)))
        return jinja_fail_at(r, "an operator between values that it is not for");
    switch (operator) {
    case JINJA_ADD: overflow = __builtin_add_overflow(a->integer, b->integer, &result); break;
    case JINJA_SUBTRACT: overflow = __builtin_sub_overflow(a->integer, b->integer, &result); break;
    case JINJA_MULTIPLY: overflow = __builtin_mul_overflow(a->integer, b->integer, &result); break;
    case JINJA_FLOOR_DIVIDE: result = floor_divide(a->integer, b->integer); break;
    case JINJA_MODULO: result = a->integer - floor_divide(a->integer, b->integer) * b->integer; break;
    default: return jinja_fail_at(r, "division or a power");
    }
    if (overflow)
        return jinja_fail_at(r, "a number too large");
    *out = make_integer(result);
    return SETUN_OK;
}

setun_status jinja_binary(run *r, jinja_operator operator, const value *a, const value *b, value *out)
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
            return jinja_fail_at(r, "an order between values that are no numbers");
        double x = number(a), y = number(b);
        *out = make_bool(operator == JINJA_LESS ? x < y : operator == JINJA_LESS_EQUAL ? x <= y : operator == JINJA_GREATER ? x > y : x >= y);
        return SETUN_OK;
    }
    case JINJA_CONCATENATE: {
        value x, y;
        SETUN_TRY(jinja_to_text(r, a, &x));
        SETUN_TRY(jinja_to_text(r, b, &y));
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

setun_status jinja_slice(run *r, const value *of, const value *from, const value *to, const value *by, value *out)
{
    const value *bounds[3] = {from, to, by};
    for (int i = 0; i < 3; i++)
        if (bounds[i]->kind != VALUE_NONE && bounds[i]->kind != VALUE_INTEGER)
            return jinja_fail_at(r, "a slice by something that is no number");
    int64_t count = count_of(of), step = by->kind == VALUE_INTEGER ? by->integer : 1;
    if ((of->kind != VALUE_TEXT && of->kind != VALUE_LIST) || (step != 1 && step != -1) || (of->kind == VALUE_TEXT && step != 1))
        return jinja_fail_at(r, "a rare slice");
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
    SETUN_TRY(jinja_list_of(r, (size_t)kept, out));
    for (int64_t i = 0; i < kept; i++)
        out->items[i] = of->items[start + i * step];
    return SETUN_OK;
}

setun_status jinja_item(run *r, const value *of, const value *key, value *out)
{
    *out = (value){0};
    if (of->kind == VALUE_DICT && key->kind == VALUE_TEXT) {
        const value *found = jinja_dict_get(of, key->text, key->length);
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
        return jinja_fail_at(r, "a part of something that is not defined");
    return SETUN_OK; /* Jinja: undefined */
}

