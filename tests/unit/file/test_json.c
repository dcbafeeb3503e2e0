/* JSON with limits, and metadata values whose width and type are the writer's choice. */
#include "file_test.h"

static json_t *parse(const char *text) {
    json_t *json;
    if (setun_json_parse(text, strlen(text), "text", &json) != SETUN_OK) fail_msg("%s", setun_error());
    return json;
}

static void refuse(const char *text, size_t length, const char *words) {
    json_t *json = (json_t *)1;
    guarded g = guard(text, length);
    assert_int_equal(setun_json_parse((const char *)g.data, length, "text", &json), SETUN_ERROR_FORMAT);
    assert_null(json);
    if (!strstr(setun_error(), words)) fail_msg("\"%s\" is not in: %s", words, setun_error());
    unguard(&g);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct { const char *text, *words; } cases[] = {
        {"", "text: line 1"}, {"{", "line 1"}, {"{\"a\":}", "line 1, column 6"}, {"{\n  \"a\": tru\n}", "text: line 2"}, {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{} x", "line 1"}, {"[1,]", "line 1"}, {"\"\xff\"", "line 1"}, {"[\"\\ud800\"]", "line 1"}, {"[\"a", "line 1"}, {"[\"a\\", "line 1"}, {"[01]", "line 1"}, {"[1e999]", "line 1"}, {"{\"a\\u0000\":1}", "line 1"},
        {"[NaN]", "line 1"}, {"[-]", "']' where a digit"}, {"[1.]", "line 1, column 4"}, {"[1e+]", "line 1"}, {"[.5]", "'.' where a value"}, {"[+1]", "line 1"}, {"[\"\t\"]", "byte 0x09 inside a string"},
        {"[\"\\x\"]", "no escape"}, {"[\"\\u12g4\"]", "four hexadecimal"}, {"[\"\\udc00\"]", "surrogate"}, {"[\"\\ud800\\u0041\"]", "surrogate"}, {"[\"\\u0000\"]", "\\u0000"},
        {"{\"a\" 1}", "':'"}, {"{1:1}", "a string"}, {"{\"a\":1 \"b\":2}", "',' or '}'"}, {"[1 2]", "',' or ']'"}, {"[tru]", "a value"}, {"\"\xe2\x82", "UTF-8"}, {"[\"\xc0\xaf\"]", "0xc0"}, {"{\"\xc3\xa9\":\n 1,}", "line 2, column 4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refuse(cases[i].text, strlen(cases[i].text), cases[i].words);
    refuse("[1]\0", 4, "line 1");
}

static void test_depth(void **state) {
    (void)state;
    char text[600] = "";
    memset(text, '[', 128);
    memset(text + 128, ']', 128);
    json_decref(parse(text));
    memset(text, '[', 129);
    memset(text + 129, ']', 129);
    refuse(text, 258, "line 1, column 129: JSON nests deeper than 128");
    /* brackets in strings don't count */
    memset(text, 0, sizeof text);
    text[0] = '[', text[1] = '"', text[2] = '\\', text[3] = '"';
    memset(text + 4, '[', 400);
    strcat(text, "\"]");
    json_decref(parse(text));
    char *deep = malloc(1 << 20);
    memset(deep, '[', 1 << 20);
    refuse(deep, 1 << 20, "nests deeper");
    free(deep);
}

static void test_wide_integers(void **state) {
    (void)state;
    json_t *json = parse("[9223372036854775807, -9223372036854775808, 9223372036854775808, -9223372036854775809, 1000000000000000019884624838656, 1e3, 12.5e-1, \"99999999999999999999\", 7]");
    assert_true(json_integer_value(json_array_get(json, 0)) == INT64_MAX);
    assert_true(json_integer_value(json_array_get(json, 1)) == INT64_MIN);
    assert_true(json_real_value(json_array_get(json, 2)) == 0x1p63);
    assert_true(json_real_value(json_array_get(json, 3)) == -0x1p63);
    assert_true(json_real_value(json_array_get(json, 4)) == 1000000000000000019884624838656.0);
    assert_true(json_real_value(json_array_get(json, 5)) == 1000);
    assert_true(json_real_value(json_array_get(json, 6)) == 1.25);
    assert_string_equal(json_string_value(json_array_get(json, 7)), "99999999999999999999");
    assert_int_equal(json_integer_value(json_array_get(json, 8)), 7);
    json_decref(json);
}

static void test_strings(void **state) {
    (void)state;
    json_t *json = parse("[\"\", \"a\\\"\\\\\\/\\b\\f\\n\\r\\t\", \"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\", \"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\", {\"\":\"empty\"}, true, false, null]");
    assert_string_equal(json_string_value(json_array_get(json, 0)), "");
    assert_string_equal(json_string_value(json_array_get(json, 1)), "a\"\\/\b\f\n\r\t");
    assert_string_equal(json_string_value(json_array_get(json, 2)), "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    assert_string_equal(json_string_value(json_array_get(json, 3)), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f");
    assert_string_equal(json_string_value(json_object_get(json_array_get(json, 4), "")), "empty");
    assert_true(json_is_true(json_array_get(json, 5)) && json_is_false(json_array_get(json, 6)) && json_is_null(json_array_get(json, 7)));
    json_decref(json);
    json = parse(" \r\n\t 7 ");
    assert_int_equal(json_integer_value(json), 7);
    json_decref(json);
}

/* The same tree as jansson's own parser makes. */
static void test_against_jansson(void **state) {
    (void)state;
    static const char *const paths[] = {SETUN_TEST_GOLDEN "/file/expected.json", SETUN_TEST_GOLDEN "/file/sharded/model.safetensors.index.json"};
    for (int i = 0; i < 2; i++) {
        json_t *ours, *theirs = json_load_file(paths[i], 0, NULL);
        must(setun_json_load(paths[i], &ours));
        assert_non_null(theirs);
        assert_true(json_equal(ours, theirs));
        json_decref(ours);
        json_decref(theirs);
    }
}

static void test_limits(void **state) {
    (void)state;
    size_t count = ((size_t)1 << 21) + 10;
    char *text = malloc(count * 3 + 2);
    text[0] = '[';
    for (size_t i = 0; i < count; i++) memcpy(text + 1 + i * 3, "[],", 3);
    text[count * 3] = ']';
    json_t *json;
    assert_int_equal(setun_json_parse(text, count * 3 + 1, "text", &json), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "more than 2097152 arrays and objects"));
    free(text);
}

static void test_load(void **state) {
    (void)state;
    json_t *json;
    assert_int_equal(setun_json_load("/nowhere.json", &json), SETUN_ERROR_IO);
    assert_null(json);
    assert_int_equal(setun_json_load("/", &json), SETUN_ERROR_IO);
    char folder[256], path[320];
    make_folder(folder);
    write_file(folder, "a.json", "{\"a\": [1, 2]}\n", 14);
    snprintf(path, sizeof path, "%s/a.json", folder);
    must(setun_json_load(path, &json));
    assert_int_equal(json_array_size(json_object_get(json, "a")), 2);
    json_decref(json);
    snprintf(path, sizeof path, "%s/big.json", folder); /* 256 MiB and a byte, sparse */
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), ((off_t)256 << 20) + 1), 0);
    fclose(f);
    assert_int_equal(setun_json_load(path, &json), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "the limit"));
    remove_folder(folder);
}

/* ---- values ---- */

static setun_value value(setun_value_type type, const void *data) {
    return (setun_value){.key = "the.key", .type = type, .data = data};
}

static void test_values(void **state) {
    (void)state;
    int64_t i;
    double d;
    bool b;
    const char *text;
    size_t length;
    assert_false(setun_value_i64(NULL, &i) || setun_value_f64(NULL, &d) || setun_value_bool(NULL, &b) || setun_value_string(NULL, &text, &length) || setun_value_string_at(NULL, 0, &text, &length) ||
                 setun_value_i64_at(NULL, 0, &i) || setun_value_f64_at(NULL, 0, &d));
    static const struct { float f; bool fits; int64_t i; } floats[] = {{3.0f, true, 3}, {-0x1p63f, true, INT64_MIN}, {0x1p63f, false, 0}, {0.5f, false, 0}, {1e30f, false, 0}, {-0.0f, true, 0}};
    for (size_t k = 0; k < sizeof floats / sizeof *floats; k++) {
        setun_value v = value(SETUN_VALUE_F32, &floats[k].f);
        assert_int_equal(setun_value_i64(&v, &i), floats[k].fits);
        if (floats[k].fits) assert_true(i == floats[k].i);
        else assert_non_null(strstr(setun_error(), "'the.key' (f32) has a value that is not exactly a 64-bit integer"));
    }
    float nan = __builtin_nanf(""), infinity = __builtin_inff();
    setun_value v = value(SETUN_VALUE_F32, &nan);
    assert_false(setun_value_i64(&v, &i));
    v = value(SETUN_VALUE_F32, &infinity);
    assert_false(setun_value_i64(&v, &i));
    static const struct { uint64_t u; bool fits; } wide[] = {{(uint64_t)1 << 53, true}, {((uint64_t)1 << 53) + 1, false}, {UINT64_MAX, false}, {(uint64_t)1 << 63, true}, {0, true}};
    for (size_t k = 0; k < sizeof wide / sizeof *wide; k++) {
        v = value(SETUN_VALUE_U64, &wide[k].u);
        assert_int_equal(setun_value_f64(&v, &d), wide[k].fits);
        if (wide[k].fits) assert_true(d == (double)wide[k].u);
    }
    int64_t low = INT64_MIN, odd = INT64_MIN + 1;
    v = value(SETUN_VALUE_I64, &low);
    assert_true(setun_value_f64(&v, &d) && d == -0x1p63);
    v = value(SETUN_VALUE_I64, &odd);
    assert_false(setun_value_f64(&v, &d));
    uint8_t one = 1;
    v = value(SETUN_VALUE_U8, &one);
    assert_false(setun_value_bool(&v, &b));
    assert_non_null(strstr(setun_error(), "'the.key' has type u8 where a bool is expected"));
    assert_false(setun_value_string(&v, &text, &length));
    assert_false(setun_value_i64_at(&v, 0, &i));
    v = value(SETUN_VALUE_BOOL, &one);
    assert_true(setun_value_bool(&v, &b) && b);
    assert_false(setun_value_i64(&v, &i));
    int16_t shorts[3] = {-5, 6, 7};
    v = (setun_value){.key = "the.key", .type = SETUN_VALUE_ARRAY, .element = SETUN_VALUE_I16, .count = 3, .data = (const uint8_t *)shorts};
    assert_true(setun_value_i64_at(&v, 0, &i) && i == -5);
    assert_true(setun_value_f64_at(&v, 2, &d) && d == 7);
    assert_false(setun_value_i64_at(&v, 3, &i));
    assert_non_null(strstr(setun_error(), "has 3 elements, element 3"));
    assert_false(setun_value_i64(&v, &i));
    assert_non_null(strstr(setun_error(), "is an array of i16"));
    assert_false(setun_value_string_at(&v, 0, &text, &length));
    v.element = SETUN_VALUE_BOOL;
    assert_false(setun_value_f64_at(&v, 0, &d));
    v.element = SETUN_VALUE_F32;
    assert_false(setun_value_i64_at(&v, 0, &i));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_depth), cmocka_unit_test(test_wide_integers), cmocka_unit_test(test_strings), cmocka_unit_test(test_against_jansson), cmocka_unit_test(test_limits), cmocka_unit_test(test_load), cmocka_unit_test(test_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
