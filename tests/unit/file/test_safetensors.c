/* Safetensors: files and folders of the reference package read right; corruption refused with a message that names the field. */
#include "file_test.h"

#define GOLDEN SETUN_TEST_GOLDEN "/file/"

static void compare_with(const setun_file *file, const json_t *tensors) {
    assert_int_equal(setun_file_tensor_count(file), json_array_size(tensors));
    size_t i;
    json_t *want;
    json_array_foreach(tensors, i, want) {
        const char *name = json_string_value(json_object_get(want, "name"));
        const setun_file_tensor *t = setun_file_find_tensor(file, name);
        if (!t) fail_msg("no tensor %s", name);
        assert_string_equal(t->type_name, json_string_value(json_object_get(want, "type")));
        assert_int_equal(t->rank, json_array_size(json_object_get(want, "shape")));
        for (int k = 0; k < t->rank; k++) assert_int_equal(t->shape[k], json_integer_value(json_array_get(json_object_get(want, "shape"), (size_t)k)));
        assert_int_equal(t->bytes, json_integer_value(json_object_get(want, "bytes")));
        char hash[32];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv(t->data, t->bytes));
        assert_string_equal(hash, json_string_value(json_object_get(want, "fnv")));
    }
}

static void test_golden(void **state) {
    (void)state;
    json_t *expected;
    must(setun_json_load(GOLDEN "expected.json", &expected));
    setun_file *file = must_open(GOLDEN "types.safetensors", NULL);
    assert_int_equal(setun_file_container(file), SETUN_SAFETENSORS);
    assert_int_equal(setun_file_value_count(file), 0);
    compare_with(file, json_object_get(expected, "types.safetensors"));
    static const struct { const char *name; setun_format format; } formats[] = {
        {"a.f32", SETUN_FORMAT_F32}, {"a.f16", SETUN_FORMAT_F16}, {"a.bf16", SETUN_FORMAT_BF16}, {"a.f64", SETUN_FORMAT_F64}, {"a.i8", SETUN_FORMAT_I8}, {"a.i16", SETUN_FORMAT_I16},
        {"a.i32", SETUN_FORMAT_I32}, {"a.i64", SETUN_FORMAT_I64}, {"a.u8", SETUN_FORMAT_U8}, {"a.bool", SETUN_FORMAT_U8}, {"a.f8", SETUN_FORMAT_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) assert_int_equal(setun_file_find_tensor(file, formats[i].name)->format, formats[i].format);
    assert_true(setun_file_is_mapped(file, setun_file_find_tensor(file, "a.f32")->data));
    setun_file_close(file);

    for (int no_map = 0; no_map < 2; no_map++) {
        file = must_open(GOLDEN "sharded", &(setun_file_options){.no_map = no_map});
        compare_with(file, json_object_get(expected, "sharded"));
        assert_int_equal(setun_file_shard_count(file), 2);
        const setun_file_tensor *t = setun_file_find_tensor(file, "model.norm.weight");
        assert_string_equal(setun_file_shard_path(file, t->shard), GOLDEN "sharded/model-00002-of-00002.safetensors");
        assert_null(setun_file_shard_path(file, 2));
        assert_null(setun_file_shard_path(file, -1));
        assert_int_equal(setun_file_bytes(file), setun_file_shard_bytes(file, 0) + setun_file_shard_bytes(file, 1));
        assert_true(setun_file_is_mapped(file, t->data) == !no_map);
        setun_file_close(file);
    }
    json_decref(expected);
}

static void test_beside(void **state) {
    (void)state;
    static const char *const paths[] = {GOLDEN "sharded", GOLDEN "sharded/", GOLDEN "sharded/model-00001-of-00002.safetensors"};
    for (int i = 0; i < 3; i++) {
        setun_file *file = must_open(paths[i], NULL);
        const json_t *config, *again, *absent, *tokenizer;
        must(setun_file_json(file, "config.json", &config));
        assert_int_equal(json_integer_value(json_object_get(config, "hidden_size")), 6);
        must(setun_file_json(file, "config.json", &again));
        assert_ptr_equal(config, again);
        must(setun_file_json(file, "generation_config.json", &absent));
        assert_null(absent);
        must(setun_file_json(file, "generation_config.json", &absent));
        assert_null(absent);
        must(setun_file_json(file, "tokenizer_config.json", &tokenizer)); /* an integer that no machine word holds */
        assert_true(json_real_value(json_object_get(tokenizer, "model_max_length")) > 0.9e30);
        const char *text;
        size_t length;
        must(setun_file_text(file, "chat_template.jinja", &text, &length));
        assert_int_equal(length, 14);
        assert_string_equal(text, "{{ messages }}");
        must(setun_file_text(file, "absent.jinja", &text, &length));
        assert_null(text);
        assert_int_equal(length, 0);
        must(setun_file_text(file, "config.json", &text, &length)); /* the same name as text is something else */
        assert_non_null(text);
        assert_int_equal(setun_file_json(file, "../expected.json", &absent), SETUN_ERROR_ARGUMENT);
        setun_file_close(file);
    }
}

#define ENTRY(name, dtype, shape, offsets) "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
static const struct { const char *header; size_t data; setun_status status; const char *words; } corruptions[] = {
    {"{ ", 8, SETUN_ERROR_FORMAT, "line 1, column"},
    {"{]", 8, SETUN_ERROR_FORMAT, "safetensors header (from byte 8): test.file: line 1"},
    {"{\"a\":1}", 8, SETUN_ERROR_FORMAT, "tensor 'a': its header entry is not an object"},
    {"{\"__metadata__\":[]}", 8, SETUN_ERROR_FORMAT, "__metadata__"},
    {"{\"a\":{}}", 8, SETUN_ERROR_FORMAT, "tensor 'a': header field dtype is missing"},
    {"{" ENTRY("a", "7", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field dtype"},
    {"{" ENTRY("a", "\"F3\\u00012\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field dtype has a control character"},
    {"{" ENTRY("a", "\"F32\"", "4", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field shape is not an array"},
    {"{" ENTRY("a", "\"F32\"", "[-1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field shape[0] is not a whole number"},
    {"{" ENTRY("a", "\"F32\"", "[1,1.5]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field shape[1]"},
    {"{" ENTRY("a", "\"F32\"", "[18446744073709551616]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field shape[0]"},
    {"{" ENTRY("a", "\"F32\"", "[4294967296,4294967296]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "header field shape[1] is 4294967296"},
    {"{" ENTRY("a", "\"F32\"", "[0,4294967296,4294967296]", "[0,0]") "}", 8, SETUN_ERROR_FORMAT, "header field shape[2] is 4294967296"},
    {"{" ENTRY("a", "\"F32\"", "[1,1,1,1,1]", "[0,4]") "}", 8, SETUN_ERROR_UNSUPPORTED, "header field shape has 5 dimensions"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "0") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets is not a pair"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[0]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets is not a pair"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[0,4,8]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets is not a pair"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[-4,0]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets is not a pair"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[4,0]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets ends (0) before it begins (4)"},
    {"{" ENTRY("a", "\"F32\"", "[4]", "[0,16]") "}", 8, SETUN_ERROR_FORMAT, "tensor 'a': header field data_offsets ends at byte"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[9223372036854775803,9223372036854775807]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets ends at byte"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[0,5]") "}", 8, SETUN_ERROR_FORMAT, "header field data_offsets spans 5 bytes, but its shape and dtype F32 need 4"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[0,4]") "," ENTRY("a", "\"F32\"", "[1]", "[4,8]") "}", 8, SETUN_ERROR_FORMAT, "duplicate"},
    {"{" ENTRY("a", "\"F32\"", "[1]", "[0,4]") "," ENTRY("b", "\"F32\"", "[1]", "[2,6]") "}", 8, SETUN_ERROR_FORMAT, "tensor 'b': header field data_offsets begins at byte"},
    {"{" ENTRY("b", "\"F32\"", "[1]", "[2,6]") "," ENTRY("a", "\"F32\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "inside tensor 'a'"},
    {"{" ENTRY("", "\"F32\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "the name of header entry 0 is empty"},
    {"{" ENTRY("a\\n", "\"F32\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "has a control character"},
    {"{" ENTRY("a\\u0000b", "\"F32\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "line 1"},
    {"{" ENTRY("a\xff", "\"F32\"", "[1]", "[0,4]") "}", 8, SETUN_ERROR_FORMAT, "line 1"},
};

static void test_corruption(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof corruptions / sizeof *corruptions; i++) {
        bytes b = {0};
        safetensors(&b, corruptions[i].header, corruptions[i].data);
        expect_refusal(b.data, b.length, corruptions[i].status, corruptions[i].words);
        bytes_free(&b);
    }
    bytes b = {0};
    put_u64(&b, 200000000);
    put_text(&b, "{}");
    expect_refusal(b.data, b.length, SETUN_ERROR_FORMAT, "header length at byte 0 is 200000000, the limit is 100000000");
    bytes_free(&b);
    put_u64(&b, 100);
    put_text(&b, "{}");
    expect_refusal(b.data, b.length, SETUN_ERROR_FORMAT, "header length at byte 0 is 100, the file ends after 2");
    bytes_free(&b);
    put_u64(&b, UINT64_MAX);
    put_text(&b, "{}");
    expect_refusal(b.data, b.length, SETUN_ERROR_FORMAT, "neither GGUF nor safetensors");
    bytes_free(&b);
}

static void test_unusual(void **state) {
    (void)state;
    /* a hole, spaces after the header, tensors of no elements, a dtype nobody knows, an unknown field, data after the last */
    bytes b = {0};
    safetensors(&b, "{\"__metadata__\":{\"x\":\"y\"}," ENTRY("late", "\"U8\"", "[2,2]", "[8,12]") "," ENTRY("none", "\"F32\"", "[0,7]", "[10,10]") ","
                "\"new\":{\"more\":1,\"dtype\":\"F4_NEW\",\"shape\":[3],\"data_offsets\":[0,2]}}    ", 16);
    setun_file *file;
    must(setun_file_open_memory(b.data, b.length, "test", &file));
    assert_int_equal(setun_file_tensor_count(file), 3);
    assert_int_equal(setun_file_find_tensor(file, "late")->offset, b.length - 16 + 8);
    assert_int_equal(setun_file_find_tensor(file, "none")->bytes, 0);
    assert_int_equal(setun_file_find_tensor(file, "new")->format, SETUN_FORMAT_UNKNOWN);
    assert_string_equal(setun_file_find_tensor(file, "new")->type_name, "F4_NEW");
    touch(file);
    const json_t *json;
    must(setun_file_json(file, "config.json", &json)); /* memory has no folder */
    assert_null(json);
    setun_file_close(file);
    bytes_free(&b);
    safetensors(&b, "{}", 0);
    must(setun_file_open_memory(b.data, b.length, "test", &file));
    assert_int_equal(setun_file_tensor_count(file), 0);
    setun_file_close(file);
    bytes_free(&b);
}

/* ---- folders ---- */

static void write_shard(const char *folder, const char *name, const char *tensor) {
    char header[256];
    bytes b = {0};
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}", tensor);
    safetensors(&b, header, 8);
    write_file(folder, name, b.data, b.length);
    bytes_free(&b);
}
static void write_text(const char *folder, const char *name, const char *text) { write_file(folder, name, text, strlen(text)); }

static void expect_folder(const char *folder, setun_status status, const char *words) {
    setun_file *file;
    int64_t live = setun_alloc_live();
    setun_status got = setun_file_open(folder, NULL, &file);
    if (got != status || !strstr(setun_error(), words)) fail_msg("expected %s with \"%s\", got %s: %s", setun_status_name(status), words, setun_status_name(got), setun_error());
    assert_true(setun_alloc_live() == live);
}

static void test_folders(void **state) {
    (void)state;
    char folder[256];
    make_folder(folder);
    expect_folder(folder, SETUN_ERROR_IO, "no .safetensors file");
    write_text(folder, "some.gguf", "GGUF");
    expect_folder(folder, SETUN_ERROR_IO, "some.gguf");

    write_shard(folder, "b.safetensors", "second"); /* neither index nor model.safetensors: all there are, by name */
    write_shard(folder, "a.safetensors", "first");
    setun_file *file = must_open(folder, NULL);
    assert_int_equal(setun_file_shard_count(file), 2);
    assert_int_equal(setun_file_find_tensor(file, "first")->shard, 0);
    assert_int_equal(setun_file_find_tensor(file, "second")->shard, 1);
    touch(file);
    setun_file_close(file);
    write_shard(folder, "c.safetensors", "first");
    expect_folder(folder, SETUN_ERROR_FORMAT, "tensor 'first' is also in");

    static const struct { const char *index, *words; } indices[] = {
        {"[]", "weight_map is missing"},
        {"{}", "weight_map is missing"},
        {"{\"weight_map\":{}}", "weight_map is missing, empty"},
        {"{\"weight_map\":{\"first\":1}}", "weight_map gives tensor 'first'"},
        {"{\"weight_map\":{\"first\":\"../a.safetensors\"}}", "not the name of a file in the folder"},
        {"{\"weight_map\":{\"first\":\"..\"}}", "not the name of a file in the folder"},
        {"{\"weight_map\":{\"first\":\"/etc/passwd\"}}", "not the name of a file in the folder"},
        {"{\"weight_map\":{\"first\":\"\"}}", "not the name of a file in the folder"},
        {"{\"weight_map\":{\"first\":\"b.safetensors\"}}", "says that tensor 'first' is in b.safetensors, but it is not there"},
        {"{\"weight_map\":{\"first\":\"b.safetensors\",\"second\":\"a.safetensors\"}}", "but it is elsewhere"},
        {"{\"weight_map\":{\"first\":\"a.safetensors\",\"third\":\"a.safetensors\"}}", "'third' is in a.safetensors, but it is not there"},
        {"{\"weight_map\":{\"first\":\"d.safetensors\"}}", "d.safetensors: cannot open"},
        {"{\"weight_map\":{\"first\":\"some.gguf\"}}", "some.gguf"},
        {"{\"weight_map\":", "index.json: line 1"},
    };
    for (size_t i = 0; i < sizeof indices / sizeof *indices; i++) {
        write_text(folder, "model.safetensors.index.json", indices[i].index);
        expect_folder(folder, strstr(indices[i].words, "cannot open") ? SETUN_ERROR_IO : SETUN_ERROR_FORMAT, indices[i].words);
    }
    write_text(folder, "model.safetensors.index.json", "{\"weight_map\":{\"second\":\"b.safetensors\",\"first\":\"c.safetensors\"}}");
    file = must_open(folder, NULL); /* a.safetensors is not in the index: not read */
    assert_int_equal(setun_file_tensor_count(file), 2);
    setun_file_close(file);

    write_shard(folder, "model.safetensors", "whole"); /* wins over the index */
    file = must_open(folder, NULL);
    assert_int_equal(setun_file_tensor_count(file), 1);
    assert_non_null(setun_file_find_tensor(file, "whole"));

    write_text(folder, "config.json", "{\"a\":1,\n \"a\":2}"); /* there and broken: an error, each time */
    const json_t *config;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(setun_file_json(file, "config.json", &config), SETUN_ERROR_FORMAT);
        assert_null(config);
        assert_non_null(strstr(setun_error(), "config.json: line 2"));
    }
    setun_file_close(file);
    remove_folder(folder);
}

/* Without an index the shards are taken by name, whatever order the filesystem lists them in. */
static void test_shard_order(void **state) {
    (void)state;
    char folder[256], name[32], tensor[32];
    make_folder(folder);
    for (int i = 0; i < 20; i++) {
        int n = i * 7 % 20;
        snprintf(name, sizeof name, "part-%02d.safetensors", n);
        snprintf(tensor, sizeof tensor, "tensor.%d", n);
        write_shard(folder, name, tensor);
    }
    setun_file *file = must_open(folder, NULL);
    assert_int_equal(setun_file_shard_count(file), 20);
    for (int i = 0; i < 20; i++) {
        snprintf(tensor, sizeof tensor, "tensor.%d", i);
        assert_int_equal(setun_file_find_tensor(file, tensor)->shard, i);
    }
    setun_file_close(file);
    remove_folder(folder);
}

static bool count_progress(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)what;
    uint64_t *last = user;
    assert_true(done > last[0] && done <= total);
    assert_true(!last[1] || last[1] == total);
    last[0] = done;
    last[1] = total;
    return true;
}

static void test_progress(void **state) {
    (void)state;
    uint64_t last[2] = {0, 0};
    setun_file *file = must_open(GOLDEN "sharded", &(setun_file_options){.no_map = true, .progress = count_progress, .progress_user = last});
    assert_int_equal(last[0], setun_file_bytes(file));
    assert_int_equal(last[1], setun_file_bytes(file));
    setun_file_close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_beside), cmocka_unit_test(test_corruption), cmocka_unit_test(test_unusual), cmocka_unit_test(test_folders), cmocka_unit_test(test_shard_order), cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
