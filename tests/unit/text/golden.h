/* golden.h - reads tests/golden/text: lines and the ids that the references gave for them. */
#ifndef TEST_TEXT_GOLDEN_H
#define TEST_TEXT_GOLDEN_H

#include "text/text.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

#define GOLDEN SETUN_TEST_GOLDEN "/text/"
enum { GOLDEN_WHOLE = 40 };

typedef struct bytes { char *data; size_t length; } bytes;

static inline bytes read_all(const char *path)
{
    bytes out = {NULL, 0};
    FILE *f = fopen(path, "rb");
    if (!f) {
        print_error("%s is missing\n", path);
        return out;
    }
    fseek(f, 0, SEEK_END);
    out.length = (size_t)ftell(f);
    rewind(f);
    out.data = malloc(out.length + 1);
    assert_int_equal(fread(out.data, 1, out.length, f), out.length);
    out.data[out.length] = 0;
    fclose(f);
    return out;
}

static inline uint32_t hash_ids(const int32_t *ids, size_t count)
{
    uint32_t h = 0x811c9dc5u;
    for (size_t i = 0; i < count; i++)
        for (int b = 0; b < 32; b += 8)
            h = (h ^ ((uint32_t)ids[i] >> b & 0xff)) * 0x01000193u;
    return h ? h : 1;
}

/* Every line in both modes; returns how many differ. */
static inline int compare_with_golden(const setun_tokenizer *t, const char *name, int *out_compared)
{
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.ids", name);
    bytes lines = read_all(GOLDEN "lines.bin"), ids = read_all(path);
    assert_non_null(lines.data);
    assert_non_null(ids.data);
    int wrong = 0, compared = 0;
    size_t at = 0, where = 0;
    for (int line = 0; at < lines.length; line++) {
        uint32_t length = setun_load_u32(lines.data + at);
        const char *text = lines.data + at + 4;
        at += 4 + length;
        for (int mode = 0; mode < 2; mode++) {
            assert_true(where + 4 <= ids.length);
            uint32_t wanted = setun_load_u32(ids.data + where);
            where += 4;
            if (!wanted)
                continue;
            const char *whole = NULL;
            size_t whole_count = 0;
            if (line < GOLDEN_WHOLE) {
                whole_count = setun_load_u16(ids.data + where);
                whole = ids.data + where + 2;
                where += 2 + 2 * whole_count;
            }
            int32_t *got;
            size_t count;
            setun_status status = setun_tokenizer_encode(t, text, length, mode ? SETUN_TOKENIZE_ADD_SPECIAL | SETUN_TOKENIZE_PARSE_SPECIAL : 0, &got, &count);
            compared++;
            if (status != SETUN_OK || hash_ids(got, count) != wanted) {
                if (wrong++ < 8) {
                    setun_string shown = {0};
                    setun_string_json(&shown, text, length);
                    print_error("%s line %d mode %d %s: %s\n   got", name, line, mode, shown.data, status ? setun_error() : "");
                    setun_string_clear(&shown);
                    for (size_t i = 0; i < count; i++)
                        print_error(" %d", got[i]);
                    if (whole) {
                        print_error("\nwanted");
                        for (size_t i = 0; i < whole_count; i++)
                            print_error(" %d", setun_load_u16(whole + 2 * i));
                    }
                    print_error("\n");
                }
            }
            setun_free(got);
        }
    }
    assert_int_equal(where, ids.length);
    free(lines.data);
    free(ids.data);
    if (out_compared)
        *out_compared += compared;
    return wrong;
}

#endif
