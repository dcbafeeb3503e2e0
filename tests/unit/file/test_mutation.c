/*
 * Damaged files: every truncation, every flipped bit, extreme numbers at every byte, and random damage. Whatever opens is
 * read to its last byte, in memory that ends at a page that can't be read.
 */
#include "file_test.h"
#include <time.h>

#define GOLDEN SETUN_TEST_GOLDEN "/file/"

static unsigned opened, refused;

static void attempt(const uint8_t *data, size_t count) {
    guarded g = guard(data, count);
    setun_file *file;
    setun_status status = setun_file_open_memory(g.data, count, "damaged", &file);
    if (status == SETUN_OK) {
        touch(file);
        setun_file_close(file);
        opened++;
    } else {
        assert_null(file);
        assert_true(status == SETUN_ERROR_FORMAT || status == SETUN_ERROR_UNSUPPORTED);
        assert_true(strlen(setun_error()) > 10);
        refused++;
    }
    unguard(&g);
}

static void report(const char *name) { print_message("%s: %u opened, %u refused\n", name, opened, refused); }

static void damage_all(const bytes *b, const char *name) {
    int64_t live = setun_alloc_live();
    opened = refused = 0;
    for (size_t n = 0; n < b->length; n++) attempt(b->data, n);
    for (size_t i = 0; i < b->length * 8; i++) {
        b->data[i / 8] ^= (uint8_t)(1u << i % 8);
        attempt(b->data, b->length);
        b->data[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    static const uint64_t extremes[] = {0, 1, UINT64_MAX, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT32_MAX, (uint64_t)1 << 32, UINT64_MAX - 31, (uint64_t)1 << 56, (uint64_t)1 << 61};
    for (size_t at = 0; at + 8 <= b->length; at++) {
        uint64_t kept = setun_load_u64(b->data + at);
        for (size_t k = 0; k < sizeof extremes / sizeof *extremes; k++) {
            memcpy(b->data + at, &extremes[k], 8);
            attempt(b->data, b->length);
        }
        memcpy(b->data + at, &kept, 8);
    }
    assert_true(opened > 0 && refused > 0);
    assert_true(setun_alloc_live() == live);
    report(name);
}

static void small_gguf(bytes *b) {
    static const uint64_t matrix[] = {128, 2}, vector[] = {8};
    gguf_begin(b, 4, 5);
    gguf_key(b, "general.alignment", SETUN_VALUE_U32);
    put_u32(b, 32);
    gguf_key(b, "s", SETUN_VALUE_STRING);
    put_string(b, "text");
    gguf_key(b, "t", SETUN_VALUE_ARRAY);
    put_u32(b, SETUN_VALUE_STRING);
    put_u64(b, 3);
    put_string(b, "a");
    put_string(b, "");
    put_string(b, "ccc");
    gguf_key(b, "i", SETUN_VALUE_ARRAY);
    put_u32(b, SETUN_VALUE_I32);
    put_u64(b, 2);
    put_u64(b, 77);
    gguf_key(b, "b", SETUN_VALUE_BOOL);
    put_u8(b, 1);
    gguf_tensor(b, "i2s", 2, matrix, 36, 0);
    gguf_tensor(b, "q2", 2, matrix, 42, 96);
    gguf_tensor(b, "f", 1, vector, 0, 192);
    gguf_tensor(b, "odd", 1, vector, 38, 224);
    pad_to(b, 32);
    for (int i = 0; i < 256; i++) put_u8(b, (uint8_t)i);
}

static const char small_header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                                   "\"b.\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[24,32]},\"c\":{\"dtype\":\"NEW\",\"shape\":[],\"data_offsets\":[32,40]}}  ";

static void test_gguf(void **state) {
    (void)state;
    bytes b = {0};
    small_gguf(&b);
    damage_all(&b, "gguf");
    bytes_free(&b);
}

static void test_safetensors(void **state) {
    (void)state;
    bytes b = {0};
    safetensors(&b, small_header, 40);
    damage_all(&b, "safetensors");
    bytes_free(&b);
}

static uint64_t random_state;
static uint64_t random_u64(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

static void test_random(void **state) {
    (void)state;
    const char *given = getenv("SETUN_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    print_message("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    random_state = seed * 2 + 1;
    bytes files[3] = {{0}, {0}, read_file(GOLDEN "plain.gguf")};
    small_gguf(&files[0]);
    safetensors(&files[1], small_header, 40);
    opened = refused = 0;
    int64_t live = setun_alloc_live();
    for (int round = 0; round < 30000; round++) {
        const bytes *b = &files[round % 3];
        uint8_t *copy = malloc(b->length);
        memcpy(copy, b->data, b->length);
        for (uint64_t n = 1 + random_u64() % 4; n > 0; n--) {
            size_t at = random_u64() % b->length, other = random_u64() % b->length, length = 1 + random_u64() % 16;
            if (at + length > b->length || other + length > b->length) length = 1;
            switch (random_u64() % 3) {
            case 0: copy[at] = (uint8_t)random_u64(); break;
            case 1: memmove(copy + at, copy + other, length); break;
            default: memset(copy + at, random_u64() % 2 ? 0xff : 0, length);
            }
        }
        attempt(copy, b->length - (random_u64() % 4 ? 0 : random_u64() % b->length));
        free(copy);
    }
    assert_true(setun_alloc_live() == live);
    report("random");
    for (int i = 0; i < 3; i++) bytes_free(&files[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gguf), cmocka_unit_test(test_safetensors), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
