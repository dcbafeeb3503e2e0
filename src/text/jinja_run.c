/*
 * jinja_run.c - runs a chat template: scopes, expressions, statements. Every byte of a text carries a mark: 0 from the
 * template, 1 from a message. Caller: chat.c. Stops a template that runs too long or nests too deep.
 */
#include "text/jinja_value.h"

enum { NESTING_MAX = 100, OUTPUT_MAX = 256 << 20 };

static setun_status evaluate(run *r, const jinja_node *node, value *out);
static setun_status run_body(run *r, const jinja_node *node);

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
            return jinja_fail_at(r, "more than eight arguments");
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
        const value *given = jinja_dict_get(named_arguments, one->text, one->length);
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
        char *copy = jinja_take(r, text.length + 1);
        uint8_t *mask_copy = copy ? jinja_take(r, text.length + 1) : NULL;
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
        if (a->given[0].kind != VALUE_INTEGER || a->given[a->count - 1].kind != VALUE_INTEGER || from < -JINJA_STEPS_MAX || to > JINJA_STEPS_MAX)
            return jinja_fail_at(r, "a range too long");
        SETUN_TRY(jinja_list_of(r, to > from ? (size_t)(to - from) : 0, out));
        for (size_t i = 0; i < out->length; i++)
            out->items[i] = make_integer(from + (int64_t)i);
        return SETUN_OK;
    }
    return jinja_fail_name(r, "the function", name, length);
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
        return jinja_call_method(r, &receiver, node->a->text, node->a->length, &a, out);
    }
    if (callee.kind != VALUE_MACRO)
        return jinja_fail_at(r, "a call of something that is no function");
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
        SETUN_TRY(jinja_list_of(r, count, out));
        count = 0;
        for (const jinja_node *one = node->items; one; one = one->next)
            SETUN_TRY(evaluate(r, one, &out->items[count++]));
        return SETUN_OK;
    }
    case JINJA_DICT: return evaluate_dict(r, node, out);
    case JINJA_ATTRIBUTE:
        SETUN_TRY(evaluate(r, node->a, &a));
        b = make_text(node->text, node->length);
        return jinja_item(r, &a, &b, out);
    case JINJA_ITEM:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate(r, node->b, &b));
        return jinja_item(r, &a, &b, out);
    case JINJA_SLICE: {
        value bounds[3] = {{.kind = VALUE_NONE}, {.kind = VALUE_NONE}, {.kind = VALUE_NONE}};
        const jinja_node *nodes[3] = {node->b, node->c, node->d};
        SETUN_TRY(evaluate(r, node->a, &a));
        for (int i = 0; i < 3; i++)
            if (nodes[i])
                SETUN_TRY(evaluate(r, nodes[i], &bounds[i]));
        return jinja_slice(r, &a, &bounds[0], &bounds[1], &bounds[2], out);
    }
    case JINJA_CALL: return call(r, node, out);
    case JINJA_FILTER:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate_arguments(r, node->items, &given, &b));
        if (b.length)
            return jinja_fail_at(r, "a filter's argument by name");
        return jinja_apply_filter(r, &a, node->text, node->length, &given, out);
    case JINJA_TEST:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate_arguments(r, node->items, &given, &b));
        SETUN_TRY(jinja_apply_test(r, &a, node->text, node->length, &given, &yes));
        *out = make_bool(yes != node->negate);
        return SETUN_OK;
    case JINJA_NOT:
        SETUN_TRY(evaluate(r, node->a, &a));
        *out = make_bool(!jinja_truth(&a));
        return SETUN_OK;
    case JINJA_NEGATE:
        SETUN_TRY(evaluate(r, node->a, &a));
        if (a.kind != VALUE_INTEGER || a.integer == INT64_MIN)
            return jinja_fail_at(r, "minus before something that is no number");
        *out = make_integer(-a.integer);
        return SETUN_OK;
    case JINJA_AND: case JINJA_OR:
        SETUN_TRY(evaluate(r, node->a, out));
        return jinja_truth(out) == (node->kind == JINJA_AND) ? evaluate(r, node->b, out) : SETUN_OK;
    case JINJA_CONDITION:
        SETUN_TRY(evaluate(r, node->b, &b));
        return jinja_truth(&b) ? evaluate(r, node->a, out) : node->c ? evaluate(r, node->c, out) : SETUN_OK;
    case JINJA_BINARY:
        SETUN_TRY(evaluate(r, node->a, &a));
        SETUN_TRY(evaluate(r, node->b, &b));
        return jinja_binary(r, node->operator, &a, &b, out);
    default:
        return jinja_fail_at(r, "a statement where a value belongs");
    }
}

static setun_status step(run *r, const jinja_node *node)
{
    r->line = node->line;
    if (++r->steps > JINJA_STEPS_MAX)
        return jinja_fail_at(r, "the template runs too long");
    if (r->nesting > NESTING_MAX)
        return jinja_fail_at(r, "calls nested too deep");
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
    return r->out->length > OUTPUT_MAX ? jinja_fail_at(r, "more than 256 MiB of text") : SETUN_OK;
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
            return jinja_fail_at(r, "a loop over pairs meets something else");
        SETUN_TRY(bind(r, one->text, one->length, v->items + i));
    }
    return i == v->length ? SETUN_OK : jinja_fail_at(r, "a loop over pairs meets something else");
}

static setun_status keep_filtered(run *r, const jinja_node *node, value *list)
{
    size_t kept = 0;
    value out;
    SETUN_TRY(jinja_list_of(r, list->length, &out));
    for (size_t i = 0; i < list->length; i++) {
        size_t count = r->count, frame = r->frame;
        value yes;
        r->frame = r->count;
        SETUN_TRY(bind_targets(r, node, list->items + i));
        SETUN_TRY(evaluate(r, node->d, &yes));
        r->count = count;
        r->frame = frame;
        if (jinja_truth(&yes))
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
        SETUN_TRY(jinja_dict_list(r, &list, 'k', &list));
    if (list.kind != VALUE_LIST)
        return jinja_fail_at(r, "a loop over something that is no list");
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
        return jinja_fail_at(r, "'set' of a part of something that is no namespace");
    value *dict = space->shared, *found = (value *)jinja_dict_get(dict, target->text, target->length);
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
        SETUN_TRY(jinja_to_text(r, &v, &text));
        return write_out(r, &text);
    case JINJA_IF:
        SETUN_TRY(evaluate(r, node->a, &v));
        return run_body(r, jinja_truth(&v) ? node->b : node->c);
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
        return jinja_fail_at(r, "a value where a statement belongs");
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
    SETUN_TRY(jinja_list_of(r, count, &list));
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
