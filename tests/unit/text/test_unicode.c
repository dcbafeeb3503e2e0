/* UTF-8 repair, normal forms and lower case against Python's; what is safe to print. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include "golden.h"
#include "text/unicode.h"

static uint32_t fnv(uint32_t h, const char *data, size_t length)
{
    for (size_t i = 0; i < length; i++)
        h = (h ^ (uint8_t)data[i]) * 0x01000193u;
    return h;
}

static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};

static uint32_t add_form(uint32_t h, int form, const char *text, size_t length)
{
    setun_string out = {0};
    assert_int_equal(setun_normal_form_append((setun_normal_form)form, text, length, &out), SETUN_OK);
    h = fnv(h, out.data, out.length);
    setun_string_clear(&out);
    return fnv(h, "", 1);
}

static void every_character(void **state)
{
    (void)state;
    json_t *root;
    assert_int_equal(setun_json_load(GOLDEN "unicode.json", &root), SETUN_OK);
    const json_t *wanted = json_object_get(root, "characters");
    uint32_t hashes[4] = {0x811c9dc5u, 0x811c9dc5u, 0x811c9dc5u, 0x811c9dc5u}, lower = 0x811c9dc5u;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[4];
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        size_t length = setun_utf8_put(c, text), size, bad;
        assert_int_equal(utf8_decode(text, &size), c);
        assert_int_equal(size, length);
        assert_int_equal(setun_utf8_check(text, length, &bad), length);
        for (int form = 0; form < 4; form++)
            hashes[form] = add_form(hashes[form], form, text, length);
        setun_string out = {0};
        setun_lowercase_append(text, length, &out);
        lower = fnv(fnv(lower, out.data, out.length), "", 1);
        setun_string_clear(&out);
    }
    for (int form = 0; form < 4; form++)
        assert_int_equal(hashes[form], json_integer_value(json_object_get(wanted, forms[form])));
    assert_int_equal(lower, json_integer_value(json_object_get(wanted, "lower")));
    json_decref(root);
}

static uint64_t random_state = 1958;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static void random_sequences(void **state)
{
    (void)state;
    static const uint32_t pool[][2] = {{0x41, 0x7a}, {0xc0, 0x17f}, {0x300, 0x34f}, {0x1100, 0x1113}, {0x1161, 0x1176}, {0x11a7, 0x11c3}, {0xac00, 0xac80}, {0x900, 0x97f}, {0x1e00, 0x1eff},
        {0x5b0, 0x5ea}, {0x653, 0x656}, {0x3041, 0x309a}, {0xfb00, 0xfb06}, {0x2460, 0x2480}, {0x1d15e, 0x1d172}, {0x110b9, 0x110ba}};
    json_t *root;
    assert_int_equal(setun_json_load(GOLDEN "unicode.json", &root), SETUN_OK);
    const json_t *wanted = json_object_get(root, "sequences");
    uint32_t hashes[4] = {0x811c9dc5u, 0x811c9dc5u, 0x811c9dc5u, 0x811c9dc5u};
    for (int i = 0; i < 4000; i++) {
        char text[256];
        size_t length = 0;
        for (uint32_t left = 1 + below(60); left > 0; left--) {
            const uint32_t *range = pool[below(sizeof pool / sizeof pool[0])];
            length += setun_utf8_put(range[0] + below(range[1] - range[0] + 1), text + length);
        }
        for (int form = 0; form < 4; form++)
            hashes[form] = add_form(hashes[form], form, text, length);
    }
    for (int form = 0; form < 4; form++)
        assert_int_equal(hashes[form], json_integer_value(json_object_get(wanted, forms[form])));
    json_decref(root);
}

/* Long runs of marks are ordered in linear time, and the same as short ones. */
static void long_runs_of_marks(void **state)
{
    (void)state;
    setun_string text = {0}, out = {0};
    setun_string_puts(&text, "a");
    for (int i = 0; i < 200000; i++)
        setun_string_puts(&text, i % 2 ? "\xcc\xa3" : "\xcc\x81"); /* U+0323 (class 220), U+0301 (230) */
    assert_int_equal(setun_normal_form_append(SETUN_NFD, text.data, text.length, &out), SETUN_OK);
    assert_int_equal(out.length, text.length);
    for (size_t i = 0; i < 200000; i++)
        assert_memory_equal(out.data + 1 + 2 * i, i < 100000 ? "\xcc\xa3" : "\xcc\x81", 2);
    setun_string_clear(&text);
    setun_string_clear(&out);
}

static void repair(void **state)
{
    (void)state;
#define R "\xef\xbf\xbd"
    /* As Python's bytes.decode("utf-8", errors="replace") has them. */
    static const struct { const char *in, *out; } rows[] = {
        {"ok", "ok"}, {"\xff", R}, {"a\xc3", "a" R}, {"\xe2\x82", R}, {"\xe2\x82x", R "x"}, {"\xf0\x9f\x98", R}, {"\xc0\xaf", R R}, {"\xed\xa0\x80", R R R},
        {"\xf4\x90\x80\x80", R R R R}, {"\xe2\x28\xa1", R "(" R}, {"\x80\x80", R R}, {"\xe0\x80\x80", R R R}, {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}, {"\xf0\x9f\xe2\x82\xac", R "\xe2\x82\xac"},
        {"\xf8\x88\x80\x80\x80", R R R R R}, {"\xc3\xc3\xa9", R "\xc3\xa9"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        setun_string out = {0};
        setun_utf8_repair(rows[i].in, strlen(rows[i].in), &out);
        assert_string_equal(out.data, rows[i].out);
        setun_string_clear(&out);
    }
}

static void complete(void **state)
{
    (void)state;
    static const struct { const char *text; size_t safe; } rows[] = {{"", 0}, {"a", 1}, {"\xc3", 0}, {"\xc3\xa9", 2}, {"a\xe2\x82", 1}, {"a\xe2\x82\xac", 4}, {"\xf0\x9f\x98", 0}, {"x\xf0", 1},
        {"x\xf0\x9f", 1}, {"\xf0\x9f\x98\x80", 4}, {"\x80", 1}, {"\xff", 1}, {"\xe2\x28", 2}, {"\xed\xa0", 2}, {"\xe0\x80", 2}, {"a\x80\x80\x80\x80", 5}, {"\xc0", 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(setun_utf8_complete(rows[i].text, strlen(rows[i].text)), rows[i].safe);
    /* Every cut of a valid text: what is safe is valid, and less than a character is held back. */
    const char *text = "aé€😀z";
    for (size_t cut = 0; cut <= strlen(text); cut++) {
        size_t safe = setun_utf8_complete(text, cut);
        assert_true(setun_utf8_valid(text, safe));
        assert_true(cut - safe <= 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_character), cmocka_unit_test(random_sequences), cmocka_unit_test(long_runs_of_marks), cmocka_unit_test(repair), cmocka_unit_test(complete)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
