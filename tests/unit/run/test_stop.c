/*
 * test_stop.c - what may be shown: stop strings across tokens, partial matches that come to nothing, UTF-8 in pieces.
 */
#include "run/run.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

/* Pushes the pieces and joins what was shown after each, with '|' between. */
static void expect(const char *const *stops, size_t stop_count, const char *const *pieces, const char *shown, bool found)
{
    setun_stop s = {.stop = stops, .stop_count = stop_count};
    char all[256] = "";
    for (size_t i = 0; pieces[i]; i++) {
        const char *text;
        size_t length;
        assert_int_equal(setun_stop_push(&s, pieces[i], strlen(pieces[i]), pieces[i + 1] == NULL, &text, &length), SETUN_OK);
        strncat(all, text, length);
        if (s.found) break;
        if (pieces[i + 1]) strcat(all, "|");
    }
    assert_string_equal(all, shown);
    assert_int_equal(s.found, found);
    setun_stop_clear(&s);
}

static void plain(void **state)
{
    (void)state;
    expect(NULL, 0, (const char *const[]){"Hello", " world", "", NULL}, "Hello| world|", false);
}

static void stops(void **state)
{
    (void)state;
    const char *const one[] = {"</s>"};
    expect(one, 1, (const char *const[]){"ab</s>cd", "no", NULL}, "ab", true);
    expect(one, 1, (const char *const[]){"ab<", "/", "s", ">tail", "no", NULL}, "ab|||", true);
    expect(one, 1, (const char *const[]){"ab</", "x", "y", NULL}, "ab|</x|y", false);
    expect(one, 1, (const char *const[]){"a<", "<", "/s>", "no", NULL}, "a|<|", true); /* the second < begins the match */
    expect(one, 1, (const char *const[]){"ab</", NULL}, "ab</", false);               /* at the end nothing is held back */
}

static void several(void **state)
{
    (void)state;
    const char *const list[] = {"aab", "abc", "b"};
    expect(list, 3, (const char *const[]){"xaa", "b", NULL}, "x|", true); /* "aab" starts before "b" */
    const char *const overlapping[] = {"abab", "ba"};
    expect(overlapping, 2, (const char *const[]){"zab", "a", NULL}, "z|a", true); /* "ba" completes first */
    const char *const repeated[] = {"aaab"};
    expect(repeated, 1, (const char *const[]){"aaaa", "b", NULL}, "a|", true);
}

static void utf8(void **state)
{
    (void)state;
    /* U+20AC is E2 82 AC, U+1F98A is F0 9F A6 8A */
    expect(NULL, 0, (const char *const[]){"a\xe2", "\x82", "\xac" "b", NULL}, "a||\xe2\x82\xac" "b", false);
    expect(NULL, 0, (const char *const[]){"\xf0\x9f", "\xa6\x8a", "!", NULL}, "|\xf0\x9f\xa6\x8a|!", false);
    expect(NULL, 0, (const char *const[]){"x\xf0\x9f", NULL}, "x\xf0\x9f", false); /* at the end bytes are bytes */
    const char *const fox[] = {"\xf0\x9f\xa6\x8a"};
    expect(fox, 1, (const char *const[]){"a\xf0\x9f", "\xa6", "\x8a", "no", NULL}, "a||", true);
    expect(fox, 1, (const char *const[]){"a\xf0\x9f", "\xa6\x8b", "b", NULL}, "a|\xf0\x9f\xa6\x8b|b", false);
}

static void allocation_failure(void **state)
{
    (void)state;
    setun_stop s = {0};
    const char *text;
    size_t length;
    int64_t live = setun_alloc_live();
    setun_alloc_fail_at(1);
    setun_status status = setun_stop_push(&s, "abc", 3, false, &text, &length);
    setun_alloc_fail_at(0);
    assert_int_equal(status, SETUN_ERROR_MEMORY);
    assert_int_equal(length, 0);
    setun_stop_clear(&s);
    assert_int_equal(setun_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(plain), cmocka_unit_test(stops), cmocka_unit_test(several), cmocka_unit_test(utf8), cmocka_unit_test(allocation_failure)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
