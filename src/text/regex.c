/*
 * regex.c - regular expressions of tokenizers, on PCRE2. Tokenizer files are written for Oniguruma (Ruby syntax); the
 * few places where PCRE2 reads the same text differently are rewritten, or refused where that is not possible.
 * Caller: normalizer.c, pretokenizer.c. Refuses to know what a match is used for.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer.h"
#include <pcre2.h>

struct text_regex { pcre2_code *code; bool jit; };

/* Insides of a class. White_Space: PCRE2's \s has U+180E too, Oniguruma's has not. Word: PCRE2's \w leaves out marks. */
#define SPACES "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACES "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}" \
                   "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORDS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

enum { PATTERN_LIMIT = 1 << 16 };

static void *allocate(PCRE2_SIZE bytes, void *user)
{
    (void)user;
    return setun_alloc(bytes);
}

static void release(void *memory, void *user)
{
    (void)user;
    setun_free(memory);
}

static setun_status refuse(const char *name, const char *pattern, size_t length, const char *what)
{
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: the pre-tokeniser's regular expression '%.*s' has %s, which Setun does not read as Oniguruma does; "
        "use a GGUF file whose tokenizer.ggml.pre names the pre-tokeniser", name, length > 200 ? 200 : (int)length, pattern, what);
}

/* One escape at pattern[*at] == '\\', inside a class or not. */
static setun_status rewrite_escape(const char *pattern, size_t length, size_t *at, bool in_class, const char *name, setun_string *out)
{
    if (*at + 1 >= length)
        return refuse(name, pattern, length, "a backslash at its end");
    char letter = pattern[*at + 1];
    const char *inside = NULL;
    bool negative = false;
    switch (letter) {
    case 's': inside = SPACES; break;
    case 'w': inside = WORDS; break;
    case 'h': inside = "0-9a-fA-F"; break; /* a hexadecimal digit in Ruby, a horizontal space in PCRE2 */
    case 'S': inside = in_class ? NOT_SPACES : SPACES; negative = !in_class; break;
    case 'W': case 'H':
        if (in_class)
            return refuse(name, pattern, length, "\\W or \\H in a class");
        inside = letter == 'W' ? WORDS : "0-9a-fA-F";
        negative = true;
        break;
    case 'b': case 'B':
        if (in_class)
            break; /* a backspace in both */
        return refuse(name, pattern, length, "a word boundary");
    case 'g': case 'k': case 'G': case 'K': case 'R': case 'X': case 'y': case 'Y': case 'O': case 'N': case 'c': case 'C': case 'M': case 'o': case 'E': case 'Q':
        return refuse(name, pattern, length, "a rare escape");
    case 'u': { /* \uHHHH in Ruby is \x{HHHH} in PCRE2 */
        if (*at + 6 > length)
            return refuse(name, pattern, length, "a cut-off \\u");
        setun_string_puts(out, "\\x{");
        setun_string_append(out, pattern + *at + 2, 4);
        setun_string_puts(out, "}");
        *at += 6;
        return SETUN_OK;
    }
    default:
        break;
    }
    if (inside) {
        if (!in_class)
            setun_string_puts(out, negative ? "[^" : "[");
        setun_string_puts(out, inside);
        if (!in_class)
            setun_string_puts(out, "]");
        *at += 2;
        return SETUN_OK;
    }
    if (letter >= '1' && letter <= '9')
        return refuse(name, pattern, length, "a back-reference");
    size_t size = 1 + utf8_size(letter);
    if ((letter == 'p' || letter == 'P' || letter == 'x') && *at + 2 < length && pattern[*at + 2] == '{') {
        const char *close = memchr(pattern + *at, '}', length - *at);
        if (!close)
            return refuse(name, pattern, length, "a brace that is not closed");
        size = (size_t)(close + 1 - (pattern + *at));
    }
    setun_string_append(out, pattern + *at, size);
    *at += size;
    return SETUN_OK;
}

static setun_status rewrite(const char *pattern, size_t length, const char *name, setun_string *out)
{
    bool in_class = false;
    size_t class_start = 0;
    for (size_t i = 0; i < length;) {
        char c = pattern[i];
        if (c == '\\') {
            SETUN_TRY(rewrite_escape(pattern, length, &i, in_class, name, out));
            continue;
        }
        if (in_class) {
            if (c == '[')
                return refuse(name, pattern, length, "a class inside a class");
            if (c == '&' && i + 1 < length && pattern[i + 1] == '&')
                return refuse(name, pattern, length, "an intersection of classes");
            /* "]" right after "[" or "[^" is literal in both. */
            if (c == ']' && i > class_start)
                in_class = false;
        } else if (c == '[') {
            in_class = true;
            class_start = i + 1;
            if (class_start < length && pattern[class_start] == '^')
                class_start++;
            setun_string_append(out, pattern + i, class_start - i);
            i = class_start;
            continue;
        } else if (c == '}' && i + 1 < length && pattern[i + 1] == '+') {
            return refuse(name, pattern, length, "a '+' after a counted repeat"); /* possessive in PCRE2, a repeat in Ruby */
        } else if (c == '(' && i + 1 < length && pattern[i + 1] == '*') {
            return refuse(name, pattern, length, "(*"); /* verbs could switch off limits */
        } else if (c == '(' && i + 2 < length && pattern[i + 1] == '?') {
            char kind = pattern[i + 2];
            bool known = kind == ':' || kind == '=' || kind == '!' || kind == '>' || kind == 'i' ||
                (kind == '<' && i + 3 < length && (pattern[i + 3] == '=' || pattern[i + 3] == '!'));
            if (!known)
                return refuse(name, pattern, length, "a rare kind of group");
            if (kind == 'i' && (i + 3 >= length || (pattern[i + 3] != ':' && pattern[i + 3] != ')')))
                return refuse(name, pattern, length, "a rare option");
        }
        size_t size = utf8_size(c);
        setun_string_append(out, pattern + i, size);
        i += size;
    }
    return SETUN_OK;
}

static setun_status compile(const char *pattern, size_t length, const char *shown, size_t shown_length, const char *name, text_regex **out)
{
    pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    text_regex *regex = context ? setun_calloc(1, sizeof *regex) : NULL;
    setun_status status = SETUN_OK;
    if (!regex) {
        status = setun_fail_memory(sizeof *regex);
    } else {
        int code = 0;
        PCRE2_SIZE offset = 0;
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        /* In Ruby ^ and $ always mean a line. */
        regex->code = pcre2_compile((PCRE2_SPTR)pattern, length, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
        if (!regex->code && code == PCRE2_ERROR_HEAP_FAILED) {
            status = setun_fail_memory(length);
        } else if (!regex->code) {
            PCRE2_UCHAR message[160] = {0};
            pcre2_get_error_message(code, message, sizeof message);
            status = setun_fail(SETUN_ERROR_FORMAT, "%s: regular expression '%.*s': %s", name, shown_length > 200 ? 200 : (int)shown_length, shown, (char *)message);
        } else {
            regex->jit = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0; /* without it the interpreter runs: slower, the same matches */
        }
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    if (status != SETUN_OK) {
        setun_free(regex);
        return status;
    }
    *out = regex;
    return SETUN_OK;
}

setun_status text_regex_compile(const char *pattern, size_t length, const char *name, text_regex **out)
{
    *out = NULL;
    if (length > PATTERN_LIMIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: a regular expression of %zu bytes; at most %d are taken", name, length, PATTERN_LIMIT);
    if (!setun_utf8_valid(pattern, length))
        return setun_fail(SETUN_ERROR_FORMAT, "%s: a regular expression is not valid UTF-8", name);
    setun_string rewritten = {0};
    setun_status status = rewrite(pattern, length, name, &rewritten);
    if (status == SETUN_OK && rewritten.failed)
        status = setun_fail_memory(length);
    if (status == SETUN_OK)
        status = compile(rewritten.data ? rewritten.data : "", rewritten.length, pattern, length, name, out);
    setun_string_clear(&rewritten);
    return status;
}

setun_status text_regex_graphemes(text_regex **out)
{
    *out = NULL;
    return compile("\\X", 2, "\\X", 2, "graphemes", out);
}

void text_regex_free(text_regex *regex)
{
    if (!regex)
        return;
    pcre2_code_free(regex->code);
    setun_free(regex);
}

setun_status text_match_create(text_match *match)
{
    memset(match, 0, sizeof *match);
    pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
    if (general) {
        match->data = pcre2_match_data_create(1, general);
        match->context = pcre2_match_context_create(general);
        match->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, general); /* NULL where there is no JIT */
        pcre2_general_context_free(general);
    }
    if (!match->data || !match->context) {
        text_match_clear(match);
        return setun_fail_memory(0);
    }
    pcre2_set_match_limit(match->context, 10000000); /* a runaway expression ends with an error, not never */
    pcre2_set_heap_limit(match->context, 64 << 10);  /* KiB */
    if (match->stack)
        pcre2_jit_stack_assign(match->context, NULL, match->stack);
    return SETUN_OK;
}

void text_match_clear(text_match *match)
{
    pcre2_match_data_free(match->data);
    pcre2_match_context_free(match->context);
    pcre2_jit_stack_free(match->stack);
    memset(match, 0, sizeof *match);
}

setun_status text_regex_find(const text_regex *regex, text_match *match, const char *text, size_t length, size_t from, bool *found, size_t *start, size_t *end)
{
    /* The text was checked or made by this room, so PCRE2 need not look at it again for every match. */
    int code = regex->jit ? pcre2_jit_match(regex->code, (PCRE2_SPTR)text, length, from, 0, match->data, match->context)
                          : pcre2_match(regex->code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, match->data, match->context);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(regex->code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match->data, match->context);
    *found = code >= 0;
    if (code >= 0) {
        const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(match->data);
        *start = vector[0];
        *end = vector[1];
        if (*end < *start || *start < from) /* \K is refused, so only a look-behind could do this */
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "a regular expression of the tokenizer matches backwards");
        return SETUN_OK;
    }
    if (code == PCRE2_ERROR_NOMATCH)
        return SETUN_OK;
    if (code == PCRE2_ERROR_NOMEMORY)
        return setun_fail_memory(0);
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "a regular expression of the tokenizer takes too long on this text (PCRE2 error %d)", code);
}

setun_status text_regex_each(const text_regex *regex, text_match *match, const char *text, size_t length, text_match_fn fn, void *user)
{
    size_t from = 0, last = SIZE_MAX;
    while (from <= length) {
        bool found;
        size_t start, end;
        SETUN_TRY(text_regex_find(regex, match, text, length, from, &found, &start, &end));
        if (!found)
            break;
        if (start == end && end == last) {
            from += from < length ? utf8_size(text[from]) : 1;
            continue;
        }
        from = last = end;
        SETUN_TRY(fn(user, start, end));
    }
    return SETUN_OK;
}
