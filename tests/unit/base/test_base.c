/* test_base.c - status, strings, half floats, the allocator door, the whole-file writer. */
#include "base/base.h"
#include <setjmp.h>
#include <stdlib.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static void errors_keep_their_message(void **state) {
    (void)state;
    assert_int_equal(setun_fail(SETUN_ERROR_FORMAT, "file %s: bad\x1b[31m", "a"), SETUN_ERROR_FORMAT);
    assert_string_equal(setun_error(), "file a: bad?[31m"); /* no escape reaches a terminal */
    assert_int_equal(setun_fail_prefix(SETUN_ERROR_FORMAT, "model %d", 7), SETUN_ERROR_FORMAT);
    assert_string_equal(setun_error(), "model 7: file a: bad?[31m");
    char longest[3000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    setun_fail(SETUN_ERROR_IO, "%s", longest);
    assert_true(strlen(setun_error()) > 900 && strlen(setun_error()) < 1100);
    setun_fail_prefix(SETUN_ERROR_IO, "%s", longest);
    assert_string_equal(setun_status_name(SETUN_ERROR_STATE), "SETUN_ERROR_STATE");
}

static void half_floats_round_to_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) { /* every f16 and bf16 survives the way there and back */
        float f = setun_f16_to_f32((uint16_t)h);
        if (isnan(f)) { assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff)); continue; }
        assert_int_equal(setun_f32_to_f16(f), h);
        float b = setun_bf16_to_f32((uint16_t)h);
        if (!isnan(b)) assert_int_equal(setun_f32_to_bf16(b), h);
    }
    for (uint32_t h = 0; h < 0x7bff; h++) { /* between two neighbours: the tie goes to the even one, the rest to the nearer */
        float a = setun_f16_to_f32((uint16_t)h), b = setun_f16_to_f32((uint16_t)(h + 1)), middle = a + (b - a) / 2;
        assert_int_equal(setun_f32_to_f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(setun_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(setun_f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
    }
    assert_int_equal(setun_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(setun_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(setun_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(setun_f32_to_bf16(1.00390625f), 0x3f80); /* 1 + 2^-8: the tie goes to even */
}

static void strings_grow_and_fail_once(void **state) {
    (void)state;
    setun_string s = {0};
    for (int i = 0; i < 1000; i++) setun_string_printf(&s, "%d,", i);
    setun_string_json(&s, "a\"\\\n\x01\xff\xc3\xa9", 8);
    char *text;
    size_t length;
    assert_int_equal(setun_string_take(&s, &text, &length), SETUN_OK);
    assert_int_equal(length, strlen(text));
    assert_non_null(strstr(text, "999,\"a\\\"\\\\\\n\\u0001\xef\xbf\xbd\xc3\xa9\""));
    setun_free(text);
    setun_alloc_fail_at(2);
    for (int i = 0; i < 1000; i++) setun_string_puts(&s, "0123456789");
    assert_int_equal(setun_string_take(&s, &text, NULL), SETUN_ERROR_MEMORY);
    assert_null(text);
    setun_alloc_fail_at(0);
}

static void allocator_counts_and_fails(void **state) {
    (void)state;
    int64_t live = setun_alloc_live();
    uint64_t count = setun_alloc_count();
    void *a = setun_alloc(0), *b = setun_calloc(3, 5), *c = setun_alloc_aligned(100, 64);
    assert_true(a && b && c && (uintptr_t)c % 64 == 0);
    assert_int_equal(setun_alloc_live(), live + 3);
    assert_int_equal(setun_alloc_count(), count + 3);
    assert_null(setun_calloc(SIZE_MAX / 2, 4));
    setun_alloc_fail_at(1);
    assert_null(setun_alloc(8));
    assert_null(setun_realloc(a, 16)); /* the old block stays */
    setun_alloc_fail_at(0);
    setun_free(a);
    setun_free(b);
    setun_free_aligned(c);
    setun_free(NULL);
    assert_int_equal(setun_alloc_live(), live);
}

static void huge_blocks_are_zeroed_aligned_and_counted(void **state) {
    (void)state;
    int64_t live = setun_alloc_live();
    const size_t sizes[] = {0, 1, SETUN_HUGE_PAGE - 1, SETUN_HUGE_PAGE, SETUN_HUGE_PAGE + 1, 5 * SETUN_HUGE_PAGE + 77};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *memory = setun_alloc_huge(sizes[i]);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % SETUN_HUGE_PAGE, 0);
        assert_int_equal(setun_alloc_live(), live + 1);
        for (size_t at = 0; at < sizes[i]; at += 4093) assert_int_equal(memory[at], 0);
        if (sizes[i]) memory[sizes[i] - 1] = 1;
        setun_free_huge(memory, sizes[i]);
        assert_int_equal(setun_alloc_live(), live);
    }
    setun_free_huge(NULL, 5);
    assert_int_equal(setun_alloc_live(), live);
    setun_alloc_fail_at(1);
    assert_null(setun_alloc_huge(100));
    assert_non_null(strstr(setun_error(), "out of memory"));
    setun_alloc_fail_at(0);
    assert_null(setun_alloc_huge(SIZE_MAX - 5));
    assert_null(setun_alloc_huge(SIZE_MAX / 2)); /* the system has no such room */
    assert_int_equal(setun_alloc_live(), live);
}

static void writer_is_all_or_nothing(void **state) {
    (void)state;
    char folder[] = "/tmp/setun-test-XXXXXX", path[64], line[16] = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
    setun_writer *w;
    assert_int_equal(setun_writer_open(path, false, &w), SETUN_OK);
    assert_int_equal(setun_writer_write(w, "abc", 3), SETUN_OK);
    assert_int_equal(setun_writer_pad(w, 8), SETUN_OK);
    assert_int_equal(setun_writer_position(w), 8);
    assert_int_not_equal(access(path, F_OK), 0); /* not there yet */
    assert_int_equal(setun_writer_commit(w), SETUN_OK);
    FILE *f = fopen(path, "rb");
    assert_int_equal(fread(line, 1, sizeof line, f), 8);
    fclose(f);
    assert_memory_equal(line, "abc\0\0\0\0\0", 8);
    assert_int_equal(setun_writer_open(path, false, &w), SETUN_ERROR_IO); /* exists */
    assert_int_equal(setun_writer_open(path, true, &w), SETUN_OK);
    setun_writer_write(w, "zzz", 3);
    setun_writer_abort(w);
    f = fopen(path, "rb");
    assert_int_equal(fgetc(f), 'a'); /* the old file is untouched */
    fclose(f);
    char *big = setun_calloc(1, 3 << 20);
    assert_int_equal(setun_writer_open(path, true, &w), SETUN_OK);
    assert_int_equal(setun_writer_write(w, "x", 1), SETUN_OK);
    assert_int_equal(setun_writer_write(w, big, 3 << 20), SETUN_OK);
    assert_int_equal(setun_writer_commit(w), SETUN_OK);
    setun_free(big);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, (3 << 20) + 1);
    unlink(path);
    assert_int_equal(rmdir(folder), 0); /* no temporary was left */
    assert_int_equal(setun_writer_open("/nonexistent-folder/x", false, &w), SETUN_ERROR_IO);
    assert_non_null(strstr(setun_error(), "/nonexistent-folder/x"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_keep_their_message), cmocka_unit_test(half_floats_round_to_even), cmocka_unit_test(strings_grow_and_fail_once),
        cmocka_unit_test(allocator_counts_and_fails), cmocka_unit_test(huge_blocks_are_zeroed_aligned_and_counted),
        cmocka_unit_test(writer_is_all_or_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
