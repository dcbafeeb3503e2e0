/* GGUF: files of the reference package read right; every kind of corruption refused with a message that names the field. */
#include "file_test.h"

#define GOLDEN SETUN_TEST_GOLDEN "/file/"
#define DIMENSIONS(...) (const uint64_t[]){__VA_ARGS__}

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
        if (json_object_get(want, "offset")) assert_int_equal(t->offset, json_integer_value(json_object_get(want, "offset")));
        assert_int_equal(t->bytes, json_integer_value(json_object_get(want, "bytes")));
        char hash[32];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv(t->data, t->bytes));
        assert_string_equal(hash, json_string_value(json_object_get(want, "fnv")));
    }
}

static void check_values(const setun_file *file) {
    int64_t integer;
    double real;
    bool truth;
    const char *text;
    size_t length;
#define INTEGER(key, value) assert_true(setun_value_i64(setun_file_find_value(file, key), &integer)); assert_true(integer == (value))
    INTEGER("test.u8", 200);
    INTEGER("test.i8", -100);
    INTEGER("test.u16", 60000);
    INTEGER("test.i16", -30000);
    INTEGER("test.u32", 4000000000);
    INTEGER("test.i32", -2000000000);
    INTEGER("test.i64", INT64_MIN);
    assert_false(setun_value_i64(setun_file_find_value(file, "test.u64"), &integer)); /* 2^64 - 1 */
    assert_non_null(strstr(setun_error(), "test.u64"));
    assert_true(setun_value_f64(setun_file_find_value(file, "test.f32"), &real) && real == 0.5);
    assert_true(setun_value_f64(setun_file_find_value(file, "test.f64"), &real) && real == 1e300);
    assert_true(setun_value_bool(setun_file_find_value(file, "test.true"), &truth) && truth);
    assert_true(setun_value_bool(setun_file_find_value(file, "test.false"), &truth) && !truth);
    assert_true(setun_value_string(setun_file_find_value(file, "test.string"), &text, &length));
    assert_int_equal(length, strlen("Сетунь ±1"));
    assert_memory_equal(text, "Сетунь ±1", length);
    const setun_value *strings = setun_file_find_value(file, "test.strings");
    static const char *const want[] = {"", "a", "три", "\n"};
    assert_int_equal(strings->count, 4);
    for (uint64_t i = 0; i < 4; i++) {
        assert_true(setun_value_string_at(strings, i, &text, &length));
        assert_int_equal(length, strlen(want[i]));
        assert_memory_equal(text, want[i], length);
    }
    const setun_value *ints = setun_file_find_value(file, "test.ints"), *floats = setun_file_find_value(file, "test.floats"), *bools = setun_file_find_value(file, "test.bools");
    assert_true(setun_value_i64_at(ints, 1, &integer) && integer == -2);
    assert_true(setun_value_f64_at(floats, 1, &real) && real == -1.5);
    assert_true(setun_value_i64_at(bools, 0, &integer) && integer == 1);
    assert_true(setun_value_i64_at(bools, 1, &integer) && integer == 0);
    assert_null(setun_file_find_value(file, "test.absent"));
    assert_null(setun_file_find_tensor(file, "absent"));
}

static void test_golden(void **state) {
    (void)state;
    json_t *expected;
    must(setun_json_load(GOLDEN "expected.json", &expected));
    static const char *const names[] = {"plain.gguf", "aligned64.gguf"};
    for (int i = 0; i < 2; i++) {
        for (int no_map = 0; no_map < 2; no_map++) {
            char path[1024];
            snprintf(path, sizeof path, GOLDEN "%s", names[i]);
            setun_file *file = must_open(path, &(setun_file_options){.no_map = no_map});
            assert_int_equal(setun_file_container(file), SETUN_GGUF);
            assert_string_equal(setun_file_path(file), path);
            assert_int_equal(setun_file_shard_count(file), 1);
            assert_string_equal(setun_file_shard_path(file, 0), path);
            assert_int_equal(setun_file_bytes(file), setun_file_shard_bytes(file, 0));
            compare_with(file, json_object_get(expected, names[i]));
            check_values(file);
            const setun_file_tensor *t = setun_file_tensor_at(file, 0);
            assert_true(setun_file_is_mapped(file, t->data) == !no_map);
            assert_false(setun_file_is_mapped(file, &file));
            assert_false(setun_file_is_mapped(file, t->data - t->offset + setun_file_bytes(file)));
            setun_file_will_need(file, t->data, SIZE_MAX);
            setun_file_will_need(file, &file, 1);
            setun_file_will_need(file, NULL, 1);
            uint8_t *before = malloc(t->bytes); /* pages that were given back are read again, the same */
            memcpy(before, t->data, t->bytes);
            setun_file_drop(file, t->data, t->bytes);
            assert_memory_equal(t->data, before, t->bytes);
            setun_file_drop(file, t->data, SIZE_MAX);
            setun_file_drop(file, &file, 1);
            setun_file_drop(file, NULL, 1);
            compare_with(file, json_object_get(expected, names[i]));
            free(before);
            const json_t *beside = (const json_t *)1;
            must(setun_file_json(file, "config.json", &beside)); /* nothing lies beside a GGUF file */
            assert_null(beside);
            setun_file_close(file);
        }
    }
    json_decref(expected);
}

static void test_version_2(void **state) {
    (void)state;
    bytes b = read_file(GOLDEN "plain.gguf");
    setun_file *file;
    b.data[4] = 2; /* the same layout */
    must(setun_file_open_memory(b.data, b.length, "v2", &file));
    check_values(file);
    setun_file_close(file);
    b.data[4] = 1;
    expect_refusal(b.data, b.length, SETUN_ERROR_UNSUPPORTED, "version at byte 4 is 1");
    b.data[4] = 4;
    expect_refusal(b.data, b.length, SETUN_ERROR_UNSUPPORTED, "version at byte 4 is 4");
    b.data[4] = 0, b.data[7] = 3;
    expect_refusal(b.data, b.length, SETUN_ERROR_UNSUPPORTED, "big-endian");
    b.data[7] = 0;
    expect_refusal(b.data, b.length, SETUN_ERROR_UNSUPPORTED, "version at byte 4 is 0");
    bytes_free(&b);
}

/* ---- corruption: what is built, and which words the refusal must have ---- */

static void no_magic(bytes *b) { put_text(b, "not a model at all"); }
static void lfs(bytes *b) { put_text(b, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"); }
static void zip(bytes *b) { put(b, "PK\x03\x04 and more of it", 16); }
static void only_magic(bytes *b) { put_text(b, "GGUF"); }
static void no_counts(bytes *b) { put_text(b, "GGUF"); put_u32(b, 3); put_u32(b, 0); }
static void many_tensors(bytes *b) { gguf_begin(b, UINT64_MAX, 0); put_zeros(b, 100); }
static void many_tensors_31_bits(bytes *b) { gguf_begin(b, 0x7fffffff, 0); put_zeros(b, 100); }
static void many_values(bytes *b) { gguf_begin(b, 0, UINT64_MAX / 2); put_zeros(b, 100); }
static void key_beyond_end(bytes *b) { gguf_begin(b, 0, 1); put_u64(b, 1000); put_text(b, "key"); put_zeros(b, 20); }
static void key_length_overflow(bytes *b) { gguf_begin(b, 0, 1); put_u64(b, UINT64_MAX - 20); put_zeros(b, 40); }
static void key_empty(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_not_utf8(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xc3(", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_overlong(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xc0\xaf", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_overlong_3(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xe0\x80\xaf", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_overlong_4(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xf0\x80\x80\xaf", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_beyond_unicode(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xf4\x90\x80\x80", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_surrogate(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xed\xa0\x80", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_cut(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\xe2\x82", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_control(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "k\x1b[31m", SETUN_VALUE_U8); put_zeros(b, 9); }
static void key_zero(bytes *b) { gguf_begin(b, 0, 1); put_u64(b, 3); put(b, "a\0b", 3); put_u32(b, 0); put_zeros(b, 9); }
static void key_twice(bytes *b) { gguf_begin(b, 0, 2); gguf_key(b, "twice", SETUN_VALUE_U8); put_u8(b, 1); gguf_key(b, "twice", SETUN_VALUE_U8); put_u8(b, 1); put_zeros(b, 8); }
static void key_long(bytes *b) { gguf_begin(b, 0, 1); put_u64(b, 70000); for (int i = 0; i < 70000; i++) put_u8(b, 'k'); put_zeros(b, 30); }
static void type_unknown(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", 13); put_zeros(b, 9); }
static void value_cut(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_U64); put_u32(b, 0); }
static void string_cut(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_STRING); put_u64(b, 5); put_text(b, "four"); }
static void bool_two(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_BOOL); put_u8(b, 2); put_zeros(b, 8); }
static void bools_two(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, SETUN_VALUE_BOOL); put_u64(b, 2); put_u8(b, 1); put_u8(b, 255); }
static void array_of_arrays(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, SETUN_VALUE_ARRAY); put_u64(b, 1); put_zeros(b, 20); }
static void array_unknown(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, 99); put_u64(b, 1); put_zeros(b, 20); }
static void array_count(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, SETUN_VALUE_F64); put_u64(b, (uint64_t)1 << 61); put_zeros(b, 20); }
static void array_strings_count(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, SETUN_VALUE_STRING); put_u64(b, (uint64_t)1 << 61); put_zeros(b, 20); }
static void array_string_cut(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "key", SETUN_VALUE_ARRAY); put_u32(b, SETUN_VALUE_STRING); put_u64(b, 2); put_string(b, "one"); put_u64(b, 3); put_text(b, "tw"); }
static void with_alignment(bytes *b, uint32_t alignment) { gguf_begin(b, 0, 1); gguf_key(b, "general.alignment", SETUN_VALUE_U32); put_u32(b, alignment); }
static void alignment_zero(bytes *b) { with_alignment(b, 0); }
static void alignment_odd(bytes *b) { with_alignment(b, 48); }
static void alignment_small(bytes *b) { with_alignment(b, 4); }
static void alignment_large(bytes *b) { with_alignment(b, 1u << 21); }
static void alignment_type(bytes *b) { gguf_begin(b, 0, 1); gguf_key(b, "general.alignment", SETUN_VALUE_STRING); put_string(b, "32"); }

static void one_tensor(bytes *b, uint32_t rank, const uint64_t *dimensions, uint32_t type, uint64_t offset, size_t data) {
    gguf_begin(b, 1, 0);
    gguf_tensor(b, "weight", rank, dimensions, type, offset);
    pad_to(b, 32);
    put_zeros(b, data);
}
static void tensor_name_empty(bytes *b) { gguf_begin(b, 1, 0); gguf_tensor(b, "", 1, DIMENSIONS(1), 0, 0); pad_to(b, 32); put_zeros(b, 32); }
static void tensor_name_bad(bytes *b) { gguf_begin(b, 1, 0); gguf_tensor(b, "\xff", 1, DIMENSIONS(1), 0, 0); pad_to(b, 32); put_zeros(b, 32); }
static void tensor_rank(bytes *b) { one_tensor(b, 5, DIMENSIONS(1, 1, 1, 1, 1), 0, 0, 32); }
static void tensor_rank_huge(bytes *b) { gguf_begin(b, 1, 0); put_string(b, "weight"); put_u32(b, UINT32_MAX); put_zeros(b, 64); }
static void tensor_zero(bytes *b) { one_tensor(b, 2, DIMENSIONS(4, 0), 0, 0, 32); }
static void tensor_overflow(bytes *b) { one_tensor(b, 2, DIMENSIONS((uint64_t)1 << 33, (uint64_t)1 << 33), 0, 0, 32); }
static void tensor_negative(bytes *b) { one_tensor(b, 1, DIMENSIONS(UINT64_MAX), 0, 0, 32); }
static void tensor_overflow_exact(bytes *b) { one_tensor(b, 4, DIMENSIONS(65536, 65536, 65536, 65536), 0, 0, 32); }
static void tensor_misaligned(bytes *b) { one_tensor(b, 1, DIMENSIONS(4), 0, 16, 64); }
static void tensor_beyond(bytes *b) { one_tensor(b, 1, DIMENSIONS(4), 0, 1024, 64); }
static void tensor_offset_huge(bytes *b) { one_tensor(b, 1, DIMENSIONS(4), 0, UINT64_MAX - 31, 64); }
static void tensor_truncated(bytes *b) { one_tensor(b, 1, DIMENSIONS(64), 0, 0, 255); }
static void tensor_no_data(bytes *b) { gguf_begin(b, 1, 0); gguf_tensor(b, "weight", 1, DIMENSIONS(4), 0, 0); }
static void tensor_blocks(bytes *b) { one_tensor(b, 2, DIMENSIONS(33, 2), 8, 0, 4096); }
static void tensor_unknown_empty(bytes *b) { one_tensor(b, 1, DIMENSIONS(4), 200, 0, 0); }
static void i2s_short(bytes *b) { one_tensor(b, 2, DIMENSIONS(128, 4), 36, 0, 128 + 31); }
static void two(bytes *b, const char *second, uint64_t offset, uint64_t offset2, size_t data) {
    gguf_begin(b, 2, 0);
    gguf_tensor(b, "first", 1, DIMENSIONS(16), 0, offset);
    gguf_tensor(b, second, 1, DIMENSIONS(16), 0, offset2);
    pad_to(b, 32);
    put_zeros(b, data);
}
static void two_same_name(bytes *b) { two(b, "first", 0, 64, 128); }
static void two_overlap(bytes *b) { two(b, "second", 0, 32, 128); }
static void two_overlap_backwards(bytes *b) { two(b, "second", 32, 0, 128); }
static void two_same_offset(bytes *b) { two(b, "second", 0, 0, 128); }
static void two_cut_in_second(bytes *b) { two(b, "second", 0, 64, 100); }
static void two_cut_in_first(bytes *b) { two(b, "second", 0, 64, 40); }

static const struct { void (*build)(bytes *b); setun_status status; const char *words; } corruptions[] = {
    {no_magic, SETUN_ERROR_FORMAT, "neither GGUF nor safetensors"},
    {lfs, SETUN_ERROR_FORMAT, "git lfs pull"},
    {zip, SETUN_ERROR_FORMAT, "PyTorch checkpoint"},
    {only_magic, SETUN_ERROR_FORMAT, "version at byte 4"},
    {no_counts, SETUN_ERROR_FORMAT, "tensor count at byte 8"},
    {many_tensors, SETUN_ERROR_FORMAT, "tensor count at byte 8 is 18446744073709551615"},
    {many_tensors_31_bits, SETUN_ERROR_FORMAT, "tensor count at byte 8"},
    {many_values, SETUN_ERROR_FORMAT, "metadata value count at byte 16"},
    {key_beyond_end, SETUN_ERROR_FORMAT, "metadata value 0: key at byte 32 needs 1000 bytes"},
    {key_length_overflow, SETUN_ERROR_FORMAT, "metadata value 0: key at byte 32"},
    {key_empty, SETUN_ERROR_FORMAT, "key at byte 24 is empty"},
    {key_not_utf8, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_overlong, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_overlong_3, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_overlong_4, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_beyond_unicode, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_surrogate, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_cut, SETUN_ERROR_FORMAT, "key at byte 24 is not valid UTF-8"},
    {key_control, SETUN_ERROR_FORMAT, "key at byte 24 has a control character"},
    {key_zero, SETUN_ERROR_FORMAT, "key at byte 24 has a control character"},
    {key_twice, SETUN_ERROR_FORMAT, "'twice': key at byte 42 is also the key of value 0"},
    {key_long, SETUN_ERROR_FORMAT, "longer than 65535"},
    {type_unknown, SETUN_ERROR_FORMAT, "'key': value type at byte 35 is 13"},
    {value_cut, SETUN_ERROR_FORMAT, "'key': value at byte 39 needs 8 bytes"},
    {string_cut, SETUN_ERROR_FORMAT, "'key': string at byte 47 needs 5 bytes"},
    {bool_two, SETUN_ERROR_FORMAT, "bool at byte 39 is 2"},
    {bools_two, SETUN_ERROR_FORMAT, "bool at byte 52 is 255"},
    {array_of_arrays, SETUN_ERROR_UNSUPPORTED, "arrays of arrays"},
    {array_unknown, SETUN_ERROR_FORMAT, "array element type at byte 39 is 99"},
    {array_count, SETUN_ERROR_FORMAT, "array count at byte 43"},
    {array_strings_count, SETUN_ERROR_FORMAT, "array count at byte 43"},
    {array_string_cut, SETUN_ERROR_FORMAT, "string in an array at byte 70"},
    {alignment_zero, SETUN_ERROR_FORMAT, "general.alignment at byte 53 is 0"},
    {alignment_odd, SETUN_ERROR_FORMAT, "general.alignment at byte 53 is 48"},
    {alignment_small, SETUN_ERROR_FORMAT, "general.alignment at byte 53 is 4"},
    {alignment_large, SETUN_ERROR_FORMAT, "general.alignment at byte 53 is 2097152"},
    {alignment_type, SETUN_ERROR_FORMAT, "has type string where u32"},
    {tensor_name_empty, SETUN_ERROR_FORMAT, "tensor 0: name at byte 24 is empty"},
    {tensor_name_bad, SETUN_ERROR_FORMAT, "tensor 0: name at byte 24 is not valid UTF-8"},
    {tensor_rank, SETUN_ERROR_FORMAT, "'weight': number of dimensions at byte 38 is 5"},
    {tensor_rank_huge, SETUN_ERROR_FORMAT, "number of dimensions at byte 38"},
    {tensor_zero, SETUN_ERROR_FORMAT, "dimension at byte 50 is 0"},
    {tensor_overflow, SETUN_ERROR_FORMAT, "dimension at byte 50 is 8589934592"},
    {tensor_negative, SETUN_ERROR_FORMAT, "dimension at byte 42"},
    {tensor_overflow_exact, SETUN_ERROR_FORMAT, "dimension at byte 66"},
    {tensor_misaligned, SETUN_ERROR_FORMAT, "offset at byte 54 is 16, not a multiple of the alignment 32"},
    {tensor_beyond, SETUN_ERROR_FORMAT, "offset at byte 64 + 1024 lies past"},
    {tensor_offset_huge, SETUN_ERROR_FORMAT, "lies past the file's end"},
    {tensor_truncated, SETUN_ERROR_FORMAT, "data at byte 64 needs 256 bytes (f32), the file ends after 255"},
    {tensor_no_data, SETUN_ERROR_FORMAT, "tensor data at byte 64 lies past"},
    {tensor_blocks, SETUN_ERROR_FORMAT, "tensor 0 'weight': format q8_0 needs row lengths in multiples of 32"},
    {tensor_unknown_empty, SETUN_ERROR_FORMAT, "data at byte 64 has no room"},
    {i2s_short, SETUN_ERROR_FORMAT, "needs 160 bytes (i2_s)"},
    {two_same_name, SETUN_ERROR_FORMAT, "tensor name 'first' occurs twice"},
    {two_overlap, SETUN_ERROR_FORMAT, "'first': data at byte 128 needs 64 bytes (f32) and overlaps tensor 'second'"},
    {two_overlap_backwards, SETUN_ERROR_FORMAT, "'second': data at byte 128 needs 64 bytes (f32) and overlaps tensor 'first'"},
    {two_same_offset, SETUN_ERROR_FORMAT, "overlaps tensor"},
    {two_cut_in_second, SETUN_ERROR_FORMAT, "'second': data at byte 192 needs 64 bytes"},
    {two_cut_in_first, SETUN_ERROR_FORMAT, "'second': offset at byte 128 + 64 lies past the file's end at byte 168"},
};

static void test_corruption(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof corruptions / sizeof *corruptions; i++) {
        bytes b = {0};
        corruptions[i].build(&b);
        expect_refusal(b.data, b.length, corruptions[i].status, corruptions[i].words);
        bytes_free(&b);
    }
    expect_refusal("", 0, SETUN_ERROR_FORMAT, "is empty");
}

/* ---- what is unusual and right ---- */

static setun_file *open_bytes(const bytes *b) {
    setun_file *file;
    if (setun_file_open_memory(b->data, b->length, "test.gguf", &file) != SETUN_OK) fail_msg("%s", setun_error());
    touch(file);
    return file;
}

static void test_unusual(void **state) {
    (void)state;
    bytes b = {0};
    gguf_begin(&b, 0, 0); /* nothing in it, and no padding */
    setun_file *file = open_bytes(&b);
    assert_int_equal(setun_file_tensor_count(file), 0);
    assert_null(setun_file_tensor_at(file, 0));
    assert_null(setun_file_value_at(file, -1));
    setun_file_close(file);
    bytes_free(&b);

    gguf_begin(&b, 3, 2); /* out of order, with a hole, a scalar, an alignment of 8, an empty array */
    gguf_key(&b, "general.alignment", SETUN_VALUE_U32);
    put_u32(&b, 8);
    gguf_key(&b, "empty", SETUN_VALUE_ARRAY);
    put_u32(&b, SETUN_VALUE_STRING);
    put_u64(&b, 0);
    gguf_tensor(&b, "last", 4, DIMENSIONS(2, 3, 4, 5), 0, 64);
    gguf_tensor(&b, "scalar", 0, NULL, 0, 8);
    gguf_tensor(&b, "first", 1, DIMENSIONS(1), 24, 0);
    pad_to(&b, 8);
    size_t data = b.length;
    put_zeros(&b, 64 + 480);
    file = open_bytes(&b);
    const setun_file_tensor *t = setun_file_find_tensor(file, "last");
    assert_int_equal(t->rank, 4);
    assert_int_equal(t->shape[0], 5);
    assert_int_equal(t->shape[3], 2);
    assert_int_equal(t->offset, data + 64);
    assert_ptr_equal(t->data, b.data + data + 64);
    assert_int_equal(t->bytes, 480);
    t = setun_file_find_tensor(file, "scalar");
    assert_int_equal(t->rank, 0);
    assert_int_equal(t->bytes, 4);
    t = setun_file_find_tensor(file, "first");
    assert_int_equal(t->format, SETUN_FORMAT_I8);
    assert_int_equal(t->bytes, 1);
    setun_file_close(file);
    bytes_free(&b);
}

static void test_refused_types_open(void **state) {
    (void)state;
    static const struct { uint32_t id; setun_format format; const char *name; } types[] = {
        {38, SETUN_FORMAT_TL1, "tl1"}, {39, SETUN_FORMAT_TL2, "tl2"}, {13, SETUN_FORMAT_UNKNOWN, "q5_k"}, {777, SETUN_FORMAT_UNKNOWN, "type 777"},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        bytes b = {0};
        gguf_begin(&b, 2, 0);
        gguf_tensor(&b, "odd", 2, DIMENSIONS(256, 2), types[i].id, 0);
        gguf_tensor(&b, "known", 1, DIMENSIONS(4), 0, 96);
        pad_to(&b, 32);
        put_zeros(&b, 112);
        setun_file *file = open_bytes(&b);
        const setun_file_tensor *t = setun_file_find_tensor(file, "odd");
        assert_int_equal(t->format, types[i].format);
        assert_int_equal(setun_format_get_kind(t->format), SETUN_KIND_REFUSED);
        assert_int_equal(t->type_id, types[i].id);
        assert_string_equal(t->type_name, types[i].name);
        assert_int_equal(t->bytes, 96); /* up to the next tensor */
        assert_int_equal(setun_file_find_tensor(file, "known")->bytes, 16);
        setun_file_close(file);
        bytes_free(&b);
    }
    bytes b = {0}; /* 39 with 17 bytes a 32 weights is MXFP4 */
    one_tensor(&b, 2, DIMENSIONS(256, 2), 39, 0, 272);
    setun_file *file = open_bytes(&b);
    assert_string_equal(setun_file_tensor_at(file, 0)->type_name, "mxfp4");
    assert_int_equal(setun_file_tensor_at(file, 0)->format, SETUN_FORMAT_UNKNOWN);
    setun_file_close(file);
    bytes_free(&b);
}

/* Two tensors of type 42 with these bytes between them: what is the first taken for? */
static setun_format type_42(uint64_t columns, uint64_t rows, uint64_t span, uint64_t last_rows, size_t last_bytes, setun_format *last) {
    bytes b = {0};
    gguf_begin(&b, 2, 0);
    gguf_tensor(&b, "a", 2, DIMENSIONS(columns, rows), 42, 0);
    gguf_tensor(&b, "b", 2, DIMENSIONS(columns, last_rows), 42, span);
    pad_to(&b, 32);
    put_zeros(&b, span + last_bytes);
    setun_file *file = open_bytes(&b);
    setun_format format = setun_file_find_tensor(file, "a")->format;
    *last = setun_file_find_tensor(file, "b")->format;
    setun_file_close(file);
    bytes_free(&b);
    return format;
}

static void test_type_42(void **state) {
    (void)state;
    setun_format last;
    /* 128 x 32 weights: Q2_0 1152 bytes, PQ2_0 1088; 128 x 1: 36 and 34 bytes, both padded to 64 */
    assert_int_equal(type_42(128, 32, 1152, 1, 64, &last), SETUN_FORMAT_Q2_0);
    assert_int_equal(last, SETUN_FORMAT_Q2_0);
    assert_int_equal(type_42(128, 32, 1088, 1, 64, &last), SETUN_FORMAT_PQ2_0);
    assert_int_equal(last, SETUN_FORMAT_PQ2_0); /* alone it could be both: what the file's others are */
    assert_int_equal(type_42(128, 32, 1152, 1, 36, &last), SETUN_FORMAT_Q2_0);
    assert_int_equal(last, SETUN_FORMAT_Q2_0);
    assert_int_equal(type_42(128, 1, 64, 1, 34, &last), SETUN_FORMAT_PQ2_0); /* the last one isn't padded: it tells */
    assert_int_equal(last, SETUN_FORMAT_PQ2_0);
    assert_int_equal(type_42(64, 3, 64, 1, 32, &last), SETUN_FORMAT_Q2_0); /* rows that PQ2_0 can't have */
    assert_int_equal(last, SETUN_FORMAT_Q2_0);
}

static void test_i2s_layouts(void **state) {
    (void)state;
    bytes b = {0};
    one_tensor(&b, 2, DIMENSIONS(128, 4), 36, 0, 160 + 64); /* more padding than needed */
    char folder[256], path[320];
    make_folder(folder);
    write_file(folder, "i2s.gguf", b.data, b.length);
    snprintf(path, sizeof path, "%s/i2s.gguf", folder);
    static const struct { const char *layout; setun_format format; } layouts[] = {
        {NULL, SETUN_FORMAT_I2_S}, {"128x32", SETUN_FORMAT_I2_S}, {"64x16", SETUN_FORMAT_I2_S_64}, {"row4", SETUN_FORMAT_I2_S_ROW4},
    };
    for (size_t i = 0; i < 4; i++) {
        setun_file *file = must_open(path, &(setun_file_options){.i2s_layout = layouts[i].layout});
        assert_int_equal(setun_file_tensor_at(file, 0)->format, layouts[i].format);
        assert_int_equal(setun_file_tensor_at(file, 0)->type_id, 36);
        assert_int_equal(setun_file_tensor_at(file, 0)->bytes, 160);
        setun_file_close(file);
    }
    setun_file *file;
    assert_int_equal(setun_file_open(path, &(setun_file_options){.i2s_layout = "row5"}, &file), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "128x32, 64x16, row4"));
    remove_folder(folder);
    bytes_free(&b);
}

static bool stop(void *user, const char *what, uint64_t done, uint64_t total) {
    assert_string_equal(what, "bytes");
    assert_true(done > 0 && done <= total);
    ++*(int *)user;
    return false;
}

static void test_paths(void **state) {
    (void)state;
    setun_file *file = (setun_file *)1;
    assert_int_equal(setun_file_open("/nowhere/at.all", NULL, &file), SETUN_ERROR_IO);
    assert_null(file);
    assert_non_null(strstr(setun_error(), "/nowhere/at.all"));
    assert_int_equal(setun_file_open("/dev/null", NULL, &file), SETUN_ERROR_IO);
    assert_int_equal(setun_file_open("", NULL, &file), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_file_open(NULL, NULL, &file), SETUN_ERROR_ARGUMENT);
    int calls = 0;
    assert_int_equal(setun_file_open(GOLDEN "plain.gguf", &(setun_file_options){.no_map = true, .progress = stop, .progress_user = &calls}, &file), SETUN_ERROR_CANCELLED);
    assert_int_equal(calls, 1);
    char folder[256], path[320];
    make_folder(folder);
    write_file(folder, "empty.gguf", "", 0);
    snprintf(path, sizeof path, "%s/empty.gguf", folder);
    assert_int_equal(setun_file_open(path, NULL, &file), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "is empty"));
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0); /* opening it must not wait for a writer */
    assert_int_equal(setun_file_open(path, NULL, &file), SETUN_ERROR_IO);
    remove_folder(folder);
    setun_file_close(NULL);
}

/* A vocabulary: an array too large for a shared block of memory, and keys after it that still go into one. */
static void test_long_array(void **state) {
    (void)state;
    bytes b = {0};
    char text[32];
    gguf_begin(&b, 0, 3);
    gguf_key(&b, "before", SETUN_VALUE_U8);
    put_u8(&b, 1);
    gguf_key(&b, "tokens", SETUN_VALUE_ARRAY);
    put_u32(&b, SETUN_VALUE_STRING);
    put_u64(&b, 20000);
    for (unsigned i = 0; i < 20000; i++) {
        snprintf(text, sizeof text, "token %u", i);
        put_string(&b, text);
    }
    gguf_key(&b, "after", SETUN_VALUE_U8);
    put_u8(&b, 2);
    setun_file *file = open_bytes(&b);
    const setun_value *v = setun_file_find_value(file, "tokens");
    for (unsigned i = 0; i < 20000; i += 777) {
        const char *got;
        size_t length;
        snprintf(text, sizeof text, "token %u", i);
        assert_true(setun_value_string_at(v, i, &got, &length) && length == strlen(text) && !memcmp(got, text, length));
    }
    assert_string_equal(setun_file_value_at(file, 0)->key, "before");
    assert_string_equal(setun_file_value_at(file, 2)->key, "after");
    setun_file_close(file);
    bytes_free(&b);
}

/* A thousand tensors: the table of names grows, and finds each. */
static void test_many(void **state) {
    (void)state;
    bytes b = {0};
    gguf_begin(&b, 1000, 0);
    char name[32];
    for (uint64_t i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "blk.%u.weight", (unsigned)i);
        gguf_tensor(&b, name, 1, DIMENSIONS(8), 0, (999 - i) * 32);
    }
    pad_to(&b, 32);
    size_t data = b.length;
    put_zeros(&b, 32000);
    setun_file *file = open_bytes(&b);
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "blk.%u.weight", i);
        const setun_file_tensor *t = setun_file_find_tensor(file, name);
        assert_non_null(t);
        assert_int_equal(t->offset, data + (999 - i) * 32);
    }
    assert_null(setun_file_find_tensor(file, "blk.1000.weight"));
    setun_file_close(file);
    bytes_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_version_2), cmocka_unit_test(test_corruption), cmocka_unit_test(test_unusual),
        cmocka_unit_test(test_refused_types_open), cmocka_unit_test(test_type_42), cmocka_unit_test(test_i2s_layouts), cmocka_unit_test(test_paths), cmocka_unit_test(test_long_array), cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
