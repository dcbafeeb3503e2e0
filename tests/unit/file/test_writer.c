/* The writers: byte for byte what the reference package writes, read back unchanged, and refusing calls out of order. */
#include "file_test.h"

#define GOLDEN SETUN_TEST_GOLDEN "/file/"

static char folder[256], path[320];

static int setup(void **state) {
    (void)state;
    make_folder(folder);
    snprintf(path, sizeof path, "%s/out", folder);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    remove_folder(folder);
    return 0;
}

static void refused(setun_status got, setun_status want, const char *words) {
    if (got != want || !strstr(setun_error(), words)) fail_msg("expected %s with \"%s\", got %s: %s", setun_status_name(want), words, setun_status_name(got), setun_error());
}

static int files_in_folder(void) {
    char command[512];
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", folder);
    FILE *f = popen(command, "r");
    int count = -1;
    assert_int_equal(fscanf(f, "%d", &count), 1);
    pclose(f);
    return count;
}

/* Writes everything of one GGUF file into another, in pieces of `piece` bytes. */
static void copy_gguf(const char *from, uint32_t alignment, size_t piece) {
    setun_file *file = must_open(from, NULL);
    setun_gguf_writer *w;
    must(setun_gguf_writer_create(path, true, alignment, &w));
    for (int i = 0; i < setun_file_value_count(file); i++) must(setun_gguf_copy_value(w, setun_file_value_at(file, i)));
    for (int i = 0; i < setun_file_tensor_count(file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(file, i);
        must(setun_gguf_add_tensor(w, t->name, t->format, t->rank, t->shape, t->bytes));
    }
    must(setun_gguf_begin_data(w));
    for (int i = 0; i < setun_file_tensor_count(file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(file, i);
        for (uint64_t at = 0; at < t->bytes; at += piece) must(setun_gguf_write_tensor(w, t->data + at, t->bytes - at < piece ? t->bytes - at : piece));
    }
    must(setun_gguf_commit(w));
    setun_file_close(file);
}

static void test_gguf_same_bytes(void **state) {
    (void)state;
    static const size_t pieces[] = {1, 7, 1 << 20};
    for (int i = 0; i < 3; i++) {
        copy_gguf(GOLDEN "plain.gguf", 0, pieces[i]);
        bytes want = read_file(GOLDEN "plain.gguf"), got = read_file(path);
        assert_int_equal(got.length, want.length);
        assert_memory_equal(got.data, want.data, want.length);
        bytes_free(&want);
        bytes_free(&got);
    }
}

static void test_gguf_alignment(void **state) {
    (void)state;
    copy_gguf(GOLDEN "aligned64.gguf", 4096, 1 << 20);
    setun_file *a = must_open(GOLDEN "aligned64.gguf", NULL), *b = must_open(path, NULL);
    int64_t alignment;
    assert_true(setun_value_i64(setun_file_find_value(b, "general.alignment"), &alignment) && alignment == 4096);
    assert_int_equal(setun_file_value_count(a), setun_file_value_count(b));
    for (int i = 0; i < setun_file_tensor_count(a); i++) {
        const setun_file_tensor *x = setun_file_tensor_at(a, i), *y = setun_file_tensor_at(b, i);
        assert_string_equal(x->name, y->name);
        assert_int_equal(y->offset % 4096, 0);
        assert_int_equal(x->bytes, y->bytes);
        assert_memory_equal(x->data, y->data, x->bytes);
    }
    setun_file_close(a);
    setun_file_close(b);
}

static void test_gguf_values(void **state) {
    (void)state;
    setun_gguf_writer *w;
    must(setun_gguf_writer_create(path, false, 0, &w));
    must(setun_gguf_add_string(w, "string", "a\0b", 3));
    must(setun_gguf_add_u32(w, "u32", UINT32_MAX));
    must(setun_gguf_add_f32(w, "f32", -0.5f));
    must(setun_gguf_add_bool(w, "yes", true));
    must(setun_gguf_add_bool(w, "no", false));
    const char *texts[] = {"x", "", "три"};
    size_t lengths[] = {1, 0, 6};
    must(setun_gguf_add_strings(w, "strings", texts, lengths, 3));
    must(setun_gguf_add_strings(w, "no strings", NULL, NULL, 0));
    must(setun_gguf_add_i32s(w, "i32s", (const int32_t[]){-1, 2}, 2));
    must(setun_gguf_add_f32s(w, "f32s", (const float[]){1.5f}, 1));
    must(setun_gguf_begin_data(w));
    must(setun_gguf_commit(w));
    setun_file *file = must_open(path, NULL);
    const char *text;
    size_t length;
    int64_t i;
    double d;
    bool b;
    assert_true(setun_value_string(setun_file_find_value(file, "string"), &text, &length) && length == 3 && !memcmp(text, "a\0b", 3));
    assert_true(setun_value_i64(setun_file_find_value(file, "u32"), &i) && i == UINT32_MAX);
    assert_true(setun_value_f64(setun_file_find_value(file, "f32"), &d) && d == -0.5);
    assert_true(setun_value_bool(setun_file_find_value(file, "yes"), &b) && b);
    assert_true(setun_value_bool(setun_file_find_value(file, "no"), &b) && !b);
    const setun_value *v = setun_file_find_value(file, "strings");
    for (uint64_t k = 0; k < 3; k++) assert_true(setun_value_string_at(v, k, &text, &length) && length == lengths[k] && !memcmp(text, texts[k], length));
    assert_int_equal(setun_file_find_value(file, "no strings")->count, 0);
    assert_true(setun_value_i64_at(setun_file_find_value(file, "i32s"), 0, &i) && i == -1);
    assert_true(setun_value_f64_at(setun_file_find_value(file, "f32s"), 0, &d) && d == 1.5);
    setun_file_close(file);
}

static void test_gguf_refusals(void **state) {
    (void)state;
    setun_gguf_writer *w;
    const int64_t shape[] = {2, 4}, odd[] = {2, 33}, zero[] = {0}, huge[] = {INT64_MAX, 4}, five[] = {1, 1, 1, 1, 1};
    uint8_t data[64] = {0};
    refused(setun_gguf_writer_create(path, false, 33, &w), SETUN_ERROR_ARGUMENT, "alignment 33");
    assert_null(w);
    must(setun_gguf_writer_create(path, false, 0, &w));
    refused(setun_gguf_add_u32(w, "", 1), SETUN_ERROR_ARGUMENT, "is empty");
    refused(setun_gguf_add_u32(w, "general.alignment", 32), SETUN_ERROR_ARGUMENT, "general.alignment");
    must(setun_gguf_add_u32(w, "key", 1));
    refused(setun_gguf_add_f32(w, "key", 1), SETUN_ERROR_ARGUMENT, "'key' is added twice");
    refused(setun_gguf_write_tensor(w, data, 4), SETUN_ERROR_STATE, "before the header");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 2, shape, 31), SETUN_ERROR_ARGUMENT, "need 32");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_Q8_0, 2, odd, 70), SETUN_ERROR_FORMAT, "tensor 't': format q8_0");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_HF_2BIT, 2, shape, 2), SETUN_ERROR_ARGUMENT, "no type for format hf");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_TL1, 2, shape, 2), SETUN_ERROR_ARGUMENT, "no type for format tl1");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 1, zero, 0), SETUN_ERROR_ARGUMENT, "can't have 0");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 2, huge, 0), SETUN_ERROR_ARGUMENT, "can't have");
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 5, five, 4), SETUN_ERROR_ARGUMENT, "5 dimensions");
    refused(setun_gguf_add_tensor(w, "\n", SETUN_FORMAT_F32, 2, shape, 32), SETUN_ERROR_ARGUMENT, "control character");
    must(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 2, shape, 32));
    refused(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 2, shape, 32), SETUN_ERROR_ARGUMENT, "'t' is declared twice");
    must(setun_gguf_add_tensor(w, "u", SETUN_FORMAT_F32, 0, NULL, 4));
    must(setun_gguf_begin_data(w));
    refused(setun_gguf_begin_data(w), SETUN_ERROR_STATE, "already");
    refused(setun_gguf_add_u32(w, "late", 1), SETUN_ERROR_STATE, "after the header");
    refused(setun_gguf_add_tensor(w, "late", SETUN_FORMAT_F32, 2, shape, 32), SETUN_ERROR_STATE, "after the header");
    must(setun_gguf_write_tensor(w, data, 30));
    refused(setun_gguf_write_tensor(w, data, 3), SETUN_ERROR_ARGUMENT, "declared with 32 bytes, 3 come after the first 30");
    must(setun_gguf_write_tensor(w, data, 2));
    must(setun_gguf_write_tensor(w, data, 4));
    refused(setun_gguf_write_tensor(w, data, 1), SETUN_ERROR_STATE, "after the last");
    must(setun_gguf_commit(w));
    assert_int_equal(files_in_folder(), 1);
    setun_file *file = must_open(path, NULL); /* what was refused left no trace */
    assert_int_equal(setun_file_tensor_count(file), 2);
    assert_int_equal(setun_file_value_count(file), 1);
    setun_file_close(file);

    refused(setun_gguf_writer_create(path, false, 0, &w), SETUN_ERROR_IO, "exists already");
    bytes before = read_file(path);
    must(setun_gguf_writer_create(path, true, 0, &w));
    must(setun_gguf_add_tensor(w, "t", SETUN_FORMAT_F32, 2, shape, 32));
    must(setun_gguf_begin_data(w));
    must(setun_gguf_write_tensor(w, data, 31));
    refused(setun_gguf_commit(w), SETUN_ERROR_STATE, "'t' has 31 of its 32 bytes");
    must(setun_gguf_writer_create(path, true, 0, &w));
    refused(setun_gguf_commit(w), SETUN_ERROR_STATE, "header was not written");
    must(setun_gguf_writer_create(path, true, 0, &w));
    setun_gguf_abort(w);
    setun_gguf_abort(NULL);
    bytes after = read_file(path); /* the old file is untouched, no temporary is left */
    assert_int_equal(after.length, before.length);
    assert_memory_equal(after.data, before.data, before.length);
    assert_int_equal(files_in_folder(), 1);
    bytes_free(&before);
    bytes_free(&after);
}

static void test_safetensors(void **state) {
    (void)state;
    setun_file *from = must_open(GOLDEN "types.safetensors", NULL);
    setun_safetensors_writer *w;
    must(setun_safetensors_writer_create(path, false, &w));
    must(setun_safetensors_add_metadata(w, "note", "\"тест\"\n"));
    for (int i = 0; i < setun_file_tensor_count(from); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(from, i);
        must(setun_safetensors_add_tensor(w, t->name, t->type_name, t->rank, t->shape, t->bytes));
    }
    must(setun_safetensors_begin_data(w));
    for (int i = 0; i < setun_file_tensor_count(from); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(from, i);
        for (uint64_t at = 0; at < t->bytes; at += 5) must(setun_safetensors_write_tensor(w, t->data + at, t->bytes - at < 5 ? t->bytes - at : 5));
    }
    must(setun_safetensors_commit(w));
    setun_file *to = must_open(path, NULL);
    assert_int_equal(setun_file_tensor_count(to), setun_file_tensor_count(from));
    uint64_t data = 0;
    for (int i = 0; i < setun_file_tensor_count(from); i++) {
        const setun_file_tensor *a = setun_file_tensor_at(from, i), *b = setun_file_tensor_at(to, i);
        assert_string_equal(a->name, b->name);
        assert_string_equal(a->type_name, b->type_name);
        assert_int_equal(a->rank, b->rank);
        assert_memory_equal(a->shape, b->shape, sizeof a->shape);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(a->data, b->data, a->bytes);
        if (i == 0) assert_int_equal(b->offset % 8, 0);
        data += b->bytes;
    }
    bytes raw = read_file(path);
    json_t *header;
    uint64_t length = setun_load_u64(raw.data);
    assert_int_equal(8 + length + data, raw.length); /* no gaps: the reference reader refuses them */
    must(setun_json_parse((const char *)raw.data + 8, (size_t)length, "header", &header));
    assert_string_equal(json_string_value(json_object_get(json_object_get(header, "__metadata__"), "format")), "pt");
    assert_string_equal(json_string_value(json_object_get(json_object_get(header, "__metadata__"), "note")), "\"тест\"\n");
    json_decref(header);
    bytes_free(&raw);
    setun_file_close(from);
    setun_file_close(to);
}

static void test_safetensors_refusals(void **state) {
    (void)state;
    setun_safetensors_writer *w;
    const int64_t shape[] = {2, 4};
    uint8_t data[64] = {0};
    must(setun_safetensors_writer_create(path, false, &w));
    refused(setun_safetensors_add_tensor(w, "t", "F33", 2, shape, 32), SETUN_ERROR_ARGUMENT, "no dtype 'F33'");
    refused(setun_safetensors_add_tensor(w, "t", "F32", 2, shape, 33), SETUN_ERROR_ARGUMENT, "need 32");
    refused(setun_safetensors_add_tensor(w, "__metadata__", "F32", 2, shape, 32), SETUN_ERROR_ARGUMENT, "__metadata__");
    refused(setun_safetensors_add_metadata(w, "format", "x"), SETUN_ERROR_ARGUMENT, "format");
    must(setun_safetensors_add_tensor(w, "t", "F32", 2, shape, 32));
    refused(setun_safetensors_add_tensor(w, "t", "F32", 2, shape, 32), SETUN_ERROR_ARGUMENT, "declared twice");
    refused(setun_safetensors_write_tensor(w, data, 1), SETUN_ERROR_STATE, "before the header");
    must(setun_safetensors_begin_data(w));
    refused(setun_safetensors_begin_data(w), SETUN_ERROR_STATE, "already");
    refused(setun_safetensors_add_metadata(w, "late", "x"), SETUN_ERROR_STATE, "after the header");
    must(setun_safetensors_write_tensor(w, data, 31));
    refused(setun_safetensors_commit(w), SETUN_ERROR_STATE, "31 of its 32");
    assert_int_equal(files_in_folder(), 0);
    must(setun_safetensors_writer_create(path, false, &w));
    setun_safetensors_abort(w);
    setun_safetensors_abort(NULL);
    assert_int_equal(files_in_folder(), 0);
    refused(setun_safetensors_writer_create("/nowhere/at/all", false, &w), SETUN_ERROR_IO, "/nowhere/at/all");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_gguf_same_bytes), TEST(test_gguf_alignment), TEST(test_gguf_values), TEST(test_gguf_refusals), TEST(test_safetensors), TEST(test_safetensors_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
