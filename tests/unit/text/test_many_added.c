/* Vocabularies with few and with very many added tokens: both ways of finding the longest one at a place give what trying all of them gives. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>
#include "text/tokenizer.h"

enum { BYTES = 256, MOST = 6000, TEXT = 3000 };

static uint32_t seed_now = 12345;
static uint32_t next(uint32_t below)
{
    seed_now = seed_now * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)seed_now * below) >> 32);
}

typedef struct words { char text[MOST][24]; int kind[MOST]; int count; } words;

/* Different random words over few letters, so that many begin alike and many are prefixes of others. */
static void make_words(words *w, int count, int longest)
{
    static const char letters[] = "<ab12>";
    w->count = 0;
    while (w->count < count) {
        char *word = w->text[w->count];
        int length = 2 + (int)next((uint32_t)longest - 1);
        for (int i = 0; i < length; i++)
            word[i] = i == 0 && next(4) ? '<' : letters[next(6)];
        word[length] = 0;
        bool there = false;
        for (int i = 0; i < w->count && !there; i++)
            there = strcmp(w->text[i], word) == 0;
        if (!there)
            w->kind[w->count++] = next(3) ? TOKEN_CONTROL : TOKEN_USER;
    }
}

static setun_tokenizer *open_with(const words *w)
{
    static char bytes[BYTES][5];
    static const char *texts[BYTES + 1 + MOST];
    static size_t lengths[BYTES + 1 + MOST];
    static int32_t kinds[BYTES + 1 + MOST];
    for (int i = 0; i < BYTES; i++) {
        bytes[i][setun_utf8_put(byte_to_character((uint8_t)i), bytes[i])] = 0;
        texts[i] = bytes[i];
    }
    char both[10], merge[10];
    snprintf(both, sizeof both, "%s%s", bytes['x'], bytes['y']);
    snprintf(merge, sizeof merge, "%s %s", bytes['x'], bytes['y']);
    texts[BYTES] = both;
    for (int i = 0; i < w->count; i++)
        texts[BYTES + 1 + i] = w->text[i];
    const uint64_t count = (uint64_t)(BYTES + 1 + w->count);
    for (uint64_t i = 0; i < count; i++) {
        lengths[i] = strlen(texts[i]);
        kinds[i] = i <= BYTES ? TOKEN_NORMAL : w->kind[i - BYTES - 1];
    }
    char path[] = "setun_many_added_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    setun_gguf_writer *writer;
    const char *const merges[1] = {merge};
    const size_t merge_length = strlen(merge);
    assert_int_equal(setun_gguf_writer_create(path, true, 0, &writer), SETUN_OK);
    assert_int_equal(setun_gguf_add_string(writer, "tokenizer.ggml.model", "gpt2", 4), SETUN_OK);
    assert_int_equal(setun_gguf_add_string(writer, "tokenizer.ggml.pre", "gpt-2", 5), SETUN_OK);
    assert_int_equal(setun_gguf_add_strings(writer, "tokenizer.ggml.tokens", texts, lengths, count), SETUN_OK);
    assert_int_equal(setun_gguf_add_i32s(writer, "tokenizer.ggml.token_type", kinds, count), SETUN_OK);
    assert_int_equal(setun_gguf_add_strings(writer, "tokenizer.ggml.merges", merges, &merge_length, 1), SETUN_OK);
    assert_int_equal(setun_gguf_begin_data(writer), SETUN_OK);
    assert_int_equal(setun_gguf_commit(writer), SETUN_OK);
    setun_tokenizer *t;
    if (setun_tokenizer_open(path, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    unlink(path);
    return t;
}

/* Every word is tried at every place. A special one that isn't asked for is ordinary text, and so is what is inside it. */
static size_t naive(const words *w, const char *text, size_t length, bool special, int32_t *ids)
{
    size_t count = 0;
    for (size_t i = 0; i < length;) {
        int best = -1;
        size_t best_length = 0;
        for (int j = 0; j < w->count; j++) {
            const size_t n = strlen(w->text[j]);
            if (n > best_length && n <= length - i && memcmp(text + i, w->text[j], n) == 0) {
                best = j;
                best_length = n;
            }
        }
        if (best >= 0 && (special || w->kind[best] == TOKEN_USER)) {
            ids[count++] = BYTES + 1 + best;
            i += best_length;
            continue;
        }
        for (size_t end = i + (best < 0 ? 1 : best_length); i < end; i++)
            ids[count++] = (uint8_t)text[i];
    }
    return count;
}

static void compare(int count, int longest, bool by_length)
{
    static words w;
    static int32_t wanted[TEXT];
    char text[TEXT + 1];
    make_words(&w, count, longest);
    setun_tokenizer *t = open_with(&w);
    assert_int_equal(t->added.lengths != NULL, by_length);
    assert_int_equal(t->added.raw.nodes > 0, !by_length);
    for (int round = 0; round < 6; round++) {
        size_t length = 0;
        while (length < TEXT - 30) {
            if (next(3)) {
                const char *word = w.text[next((uint32_t)w.count)];
                size_t n = 1 + next((uint32_t)strlen(word)); /* whole, or cut off */
                memcpy(text + length, word, n);
                length += n;
            } else
                text[length++] = "<ab12>xz"[next(8)];
        }
        for (int special = 0; special < 2; special++) {
            int32_t *ids;
            size_t got;
            if (setun_tokenizer_encode(t, text, length, special ? SETUN_TOKENIZE_PARSE_SPECIAL : 0, &ids, &got) != SETUN_OK)
                fail_msg("%s", setun_error());
            const size_t want = naive(&w, text, length, special, wanted);
            for (size_t i = 0; i < want && i < got; i++)
                if (ids[i] != wanted[i])
                    fail_msg("%d added tokens, round %d, special %d: id %zu is %d, wanted %d", count, round, special, i, (int)ids[i], (int)wanted[i]);
            assert_int_equal(got, want);
            setun_free(ids);
        }
    }
    setun_tokenizer_close(t);
}

static void few(void **state) { (void)state; compare(300, 9, false); }
static void many(void **state) { (void)state; compare(MOST, 9, true); }
static void just_enough(void **state) { (void)state; compare(4096, 20, true); }
static void just_too_few(void **state) { (void)state; compare(4095, 20, false); }

static void allocations_fail(void **state)
{
    (void)state;
    static words w;
    make_words(&w, 4200, 9);
    setun_tokenizer_close(open_with(&w));
    char path[] = "setun_many_added_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    setun_tokenizer *t = open_with(&w), *again;
    setun_gguf_writer *writer;
    assert_int_equal(setun_gguf_writer_create(path, true, 0, &writer), SETUN_OK);
    assert_int_equal(setun_tokenizer_to_gguf(t, writer), SETUN_OK);
    assert_int_equal(setun_gguf_begin_data(writer), SETUN_OK);
    assert_int_equal(setun_gguf_commit(writer), SETUN_OK);
    setun_tokenizer_close(t);
    uint64_t before = setun_alloc_count();
    assert_int_equal(setun_tokenizer_open(path, &again), SETUN_OK);
    const uint64_t total = setun_alloc_count() - before;
    assert_non_null(again->added.lengths);
    setun_tokenizer_close(again);
    const int64_t live = setun_alloc_live();
    for (uint64_t n = 1; n <= total; n++) {
        setun_alloc_fail_at(n);
        setun_status status = setun_tokenizer_open(path, &again);
        setun_alloc_fail_at(0);
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_int_equal(setun_alloc_live(), live);
    }
    print_message("%llu allocations\n", (unsigned long long)total);
    unlink(path);
}

int main(void)
{
    print_message("seed %u\n", seed_now);
    const struct CMUnitTest tests[] = {cmocka_unit_test(few), cmocka_unit_test(many), cmocka_unit_test(just_enough), cmocka_unit_test(just_too_few), cmocka_unit_test(allocations_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
