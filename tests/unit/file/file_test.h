/*
 * file_test.h - what the tests of src/file/ share: files built byte by byte, opened from memory that ends at a page nobody
 * may read, and a walk that touches every byte a file gives out.
 */
#ifndef SETUN_FILE_TEST_H
#define SETUN_FILE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "file/file.h"

/* ---- bytes ---- */
typedef struct bytes { uint8_t *data; size_t length, capacity; } bytes;

static inline void put(bytes *b, const void *data, size_t count) {
    if (b->length + count > b->capacity) {
        b->capacity = (b->length + count) * 2 + 64;
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    if (count) memcpy(b->data + b->length, data, count);
    b->length += count;
}
static inline void put_u8(bytes *b, uint8_t v) { put(b, &v, 1); }
static inline void put_u32(bytes *b, uint32_t v) { put(b, &v, 4); }
static inline void put_u64(bytes *b, uint64_t v) { put(b, &v, 8); }
static inline void put_text(bytes *b, const char *text) { put(b, text, strlen(text)); }
static inline void put_string(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put_text(b, text);
}
static inline void pad_to(bytes *b, size_t alignment) {
    while (b->length % alignment) put_u8(b, 0);
}
static inline void put_zeros(bytes *b, size_t count) {
    for (size_t i = 0; i < count; i++) put_u8(b, 0);
}
static inline void bytes_free(bytes *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* ---- GGUF by hand ---- */
static inline void gguf_begin(bytes *b, uint64_t tensors, uint64_t values) {
    put_text(b, "GGUF");
    put_u32(b, 3);
    put_u64(b, tensors);
    put_u64(b, values);
}
static inline void gguf_key(bytes *b, const char *key, uint32_t type) {
    put_string(b, key);
    put_u32(b, type);
}
static inline void gguf_tensor(bytes *b, const char *name, uint32_t rank, const uint64_t *dimensions /* innermost first */, uint32_t type, uint64_t offset) {
    put_string(b, name);
    put_u32(b, rank);
    for (uint32_t i = 0; i < rank; i++) put_u64(b, dimensions[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

/* ---- safetensors by hand ---- */
static inline void safetensors(bytes *b, const char *header, size_t data) {
    put_u64(b, strlen(header));
    put_text(b, header);
    put_zeros(b, data);
}

/* ---- memory whose next byte can't be read, so that reading past the end is seen without a sanitizer too ---- */
typedef struct guarded { uint8_t *map; size_t map_bytes; uint8_t *data; } guarded;
static inline guarded guard(const void *data, size_t count) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded g;
    g.map_bytes = (count + page - 1) / page * page + page;
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    assert_ptr_not_equal(g.map, MAP_FAILED);
    assert_int_equal(mprotect(g.map + g.map_bytes - page, page, PROT_NONE), 0);
    g.data = g.map + g.map_bytes - page - count;
    if (count) memcpy(g.data, data, count);
    return g;
}
static inline void unguard(guarded *g) { munmap(g->map, g->map_bytes); }

static inline uint64_t fnv(const void *data, uint64_t count) {
    const uint8_t *p = data;
    uint64_t h = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < count; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* Reads everything the file gives out. */
static inline uint64_t touch(setun_file *file) {
    uint64_t sum = 0;
    for (int i = 0; i < setun_file_tensor_count(file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(file, i);
        sum ^= fnv(t->data, t->bytes) ^ fnv(t->name, strlen(t->name)) ^ fnv(t->type_name, strlen(t->type_name));
        assert_ptr_equal(setun_file_find_tensor(file, t->name), t);
    }
    for (int i = 0; i < setun_file_value_count(file); i++) {
        const setun_value *v = setun_file_value_at(file, i);
        const char *text;
        size_t length;
        int64_t integer;
        double real;
        bool truth;
        assert_ptr_equal(setun_file_find_value(file, v->key), v);
        if (setun_value_string(v, &text, &length)) sum ^= fnv(text, length);
        if (setun_value_i64(v, &integer)) sum ^= (uint64_t)integer;
        if (setun_value_f64(v, &real)) sum += real > 1;
        if (setun_value_bool(v, &truth)) sum += truth;
        for (uint64_t k = 0; v->type == SETUN_VALUE_ARRAY && k < v->count; k++) {
            if (setun_value_string_at(v, k, &text, &length)) sum ^= fnv(text, length);
            if (setun_value_i64_at(v, k, &integer)) sum ^= (uint64_t)integer;
            if (setun_value_f64_at(v, k, &real)) sum += real > 1;
        }
    }
    return sum;
}

/* Opens bytes that must be refused; the message must have these words in it. */
static inline void expect_refusal(const void *data, size_t count, setun_status status, const char *words) {
    guarded g = guard(data, count);
    setun_file *file;
    int64_t live = setun_alloc_live();
    setun_status got = setun_file_open_memory(g.data, count, "test.file", &file);
    if (got != status || !strstr(setun_error(), words) || !strstr(setun_error(), "test.file"))
        fail_msg("expected %s with \"%s\", got %s: %s", setun_status_name(status), words, setun_status_name(got), got ? setun_error() : "");
    assert_null(file);
    assert_true(setun_alloc_live() == live);
    unguard(&g);
}

static inline setun_file *must_open(const char *path, const setun_file_options *options) {
    setun_file *file;
    if (setun_file_open(path, options, &file) != SETUN_OK) fail_msg("%s", setun_error());
    return file;
}

static inline void must(setun_status status) {
    if (status != SETUN_OK) fail_msg("%s: %s", setun_status_name(status), setun_error());
}

/* A folder for this test's files; remove_folder empties it (one level deep). */
static inline void make_folder(char path[256]) {
    const char *temporary = getenv("TMPDIR");
    int n = snprintf(path, 256, "%s/setun-test-XXXXXX", temporary ? temporary : P_tmpdir);
    assert_true(n > 0 && n < 256);
    assert_non_null(mkdtemp(path));
}
static inline void write_file(const char *folder, const char *name, const void *data, size_t count) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, count, f), count);
    assert_int_equal(fclose(f), 0);
}
static inline void remove_folder(const char *folder) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}
static inline bytes read_file(const char *path) {
    bytes b = {0};
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is missing", path);
    uint8_t chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;) put(&b, chunk, n);
    fclose(f);
    return b;
}

#endif
