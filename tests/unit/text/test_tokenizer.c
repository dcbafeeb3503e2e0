/* Decoding, end tokens, what is added around a text, files that are wrong, allocations that fail, long texts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include "golden.h"
#include <unistd.h>

static setun_tokenizer *open_golden(const char *name)
{
    char path[512];
    setun_tokenizer *t;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    if (setun_tokenizer_open(path, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    return t;
}

/* ---- decoding ---- */

/* Byte-level and byte-fallback vocabularies give every text back (what was not UTF-8 as U+FFFD). */
static void every_line_comes_back(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.json", "gpt2.json", "falcon.json", "smollm.json", "gpt4o.json", "llama2.json", "gemma.json", "spm_llama.gguf", "spm_gemma.gguf"};
    bytes lines = read_all(GOLDEN "lines.bin");
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        setun_tokenizer *t = open_golden(names[n]);
        bool spaced = strstr(names[n], "llama2") || strstr(names[n], "spm_") || strstr(names[n], "gemma");
        for (size_t at = 0; at < lines.length;) {
            size_t length = setun_load_u32(lines.data + at), count, back_length;
            const char *text = lines.data + at + 4;
            at += 4 + length;
            int32_t *ids;
            char *back;
            /* Behind a special token SentencePiece vocabularies put a space of their own in front. */
            if (spaced && memchr(text, '<', length))
                continue;
            assert_int_equal(setun_tokenizer_encode(t, text, length, SETUN_TOKENIZE_PARSE_SPECIAL, &ids, &count), SETUN_OK);
            assert_int_equal(setun_tokenizer_decode(t, ids, count, true, &back, &back_length), SETUN_OK);
            assert_int_equal(back[back_length], 0);
            char *again;
            size_t again_length;
            int32_t *ids_again;
            size_t count_again;
            /* Decoding what was decoded and encoded again changes nothing more. */
            assert_int_equal(setun_tokenizer_encode(t, back, back_length, SETUN_TOKENIZE_PARSE_SPECIAL, &ids_again, &count_again), SETUN_OK);
            assert_int_equal(setun_tokenizer_decode(t, ids_again, count_again, true, &again, &again_length), SETUN_OK);
            assert_int_equal(back_length, again_length);
            assert_memory_equal(back, again, back_length);
            bool ascii = true;
            for (size_t i = 0; i < length; i++)
                ascii = ascii && (uint8_t)text[i] < 0x80;
            if (ascii) { /* else bytes that are no UTF-8 come back as U+FFFD, and U+2581 as a space */
                assert_int_equal(back_length, length);
                assert_memory_equal(back, text, length);
            }
            setun_free(ids);
            setun_free(ids_again);
            setun_free(back);
            setun_free(again);
        }
        setun_tokenizer_close(t);
    }
    free(lines.data);
}

static void pieces(void **state)
{
    (void)state;
    setun_tokenizer *t = open_golden("gpt2.json");
    const char *text;
    size_t length;
    bool special;
    assert_int_equal(setun_tokenizer_piece(t, 2, &text, &length, &special), SETUN_OK);
    assert_true(special);
    assert_int_equal(length, 10);
    assert_memory_equal(text, "<|im_end|>", 10);
    int bytes_seen = 0;
    for (int id = 0; id < setun_tokenizer_vocabulary(t); id++) {
        assert_int_equal(setun_tokenizer_piece(t, id, &text, &length, &special), SETUN_OK);
        bytes_seen += length == 1;
    }
    assert_int_equal(bytes_seen, 256);
    assert_int_equal(setun_tokenizer_piece(t, -1, &text, &length, NULL), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tokenizer_piece(t, setun_tokenizer_vocabulary(t), &text, &length, NULL), SETUN_ERROR_ARGUMENT);
    int32_t wrong[] = {1, 1 << 30};
    char *back;
    assert_int_equal(setun_tokenizer_decode(t, wrong, 2, true, &back, &length), SETUN_ERROR_ARGUMENT);
    assert_null(back);
    int32_t ids[] = {1, 2, 5};
    assert_int_equal(setun_tokenizer_decode(t, ids, 3, false, &back, &length), SETUN_OK);
    assert_int_equal(length, 1); /* special ones are skipped */
    setun_free(back);
    setun_tokenizer_close(t);
}

static void end_tokens(void **state)
{
    (void)state;
    static const char generation_text[] = "{\"eos_token_id\": [2, 9]}", config_text[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_eos_token\": true, \"add_bos_token\": true}";
    json_t *root, *generation, *config;
    assert_int_equal(setun_json_load(GOLDEN "gpt2.json", &root), SETUN_OK);
    assert_int_equal(setun_json_parse(generation_text, sizeof generation_text - 1, "g", &generation), SETUN_OK);
    assert_int_equal(setun_json_parse(config_text, sizeof config_text - 1, "c", &config), SETUN_OK);
    setun_tokenizer_parts parts = {.tokenizer = root, .config = config, .generation = generation, .name = "gpt2"};
    setun_tokenizer *t;
    assert_int_equal(setun_tokenizer_from_parts(&parts, &t), SETUN_OK);
    assert_int_equal(setun_tokenizer_bos(t), 3);
    assert_int_equal(setun_tokenizer_eos(t), 4);
    static const bool ends[] = {true /* endoftext */, false, true /* im_end */, false, true /* eos */, false, false, false, false, true /* generation_config */, false};
    for (int i = 0; i < 11; i++)
        assert_int_equal(setun_tokenizer_is_end(t, i), ends[i]);
    assert_false(setun_tokenizer_is_end(t, -1));
    assert_false(setun_tokenizer_is_end(t, 1 << 20));
    int32_t *ids;
    size_t count;
    assert_int_equal(setun_tokenizer_encode(t, "", 0, SETUN_TOKENIZE_ADD_SPECIAL, &ids, &count), SETUN_OK);
    assert_int_equal(count, 2);
    assert_int_equal(ids[0], 3);
    assert_int_equal(ids[1], 4);
    setun_free(ids);
    assert_int_equal(setun_tokenizer_encode(t, NULL, 0, 0, &ids, &count), SETUN_OK);
    assert_non_null(ids);
    assert_int_equal(count, 0);
    setun_free(ids);
    assert_int_equal(setun_tokenizer_encode(t, NULL, 3, 0, &ids, &count), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tokenizer_encode(t, "x", 1, 64, &ids, &count), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_tokenizer_vocabulary(NULL), 0);
    assert_int_equal(setun_tokenizer_bos(NULL), -1);
    setun_tokenizer_close(t);
    setun_tokenizer_close(NULL);
    json_decref(root);
    json_decref(generation);
    json_decref(config);
}

/* ---- wrong files: a tokenizer.json with one thing changed, and a word that the message must have ---- */

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define REST "\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\"}"
#define BPE(vocab, merges) "{\"model\":{\"type\":\"BPE\"," vocab ",\"merges\":" merges "}," REST "}"

static void wrong_json(void **state)
{
    (void)state;
    static const struct { const char *text; setun_status status; const char *word; } rows[] = {
        {BPE(VOCAB, "[\"a b\"]"), SETUN_OK, ""},
        {BPE(VOCAB, "[[\"a\",\"b\"]]"), SETUN_OK, ""},
        {"{}", SETUN_ERROR_FORMAT, "model"},
        {"[]", SETUN_ERROR_FORMAT, "model"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", SETUN_ERROR_UNSUPPORTED, "WordPiece"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", SETUN_ERROR_FORMAT, "vocab"},
        {BPE("\"vocab\":{}", "[]"), SETUN_ERROR_FORMAT, "empty"},
        {BPE("\"vocab\":{\"a\":0,\"b\":1,\"ab\":3}", "[]"), SETUN_ERROR_FORMAT, "'ab' has id 3"},
        {BPE("\"vocab\":{\"a\":0,\"b\":1,\"ab\":1}", "[]"), SETUN_ERROR_FORMAT, "two tokens have id 1"},
        {BPE("\"vocab\":{\"a\":0,\"b\":-1}", "[]"), SETUN_ERROR_FORMAT, "'b'"},
        {BPE("\"vocab\":{\"a\":0,\"b\":4611686018427387904}", "[]"), SETUN_ERROR_FORMAT, "'b'"},
        {BPE("\"vocab\":{\"a\":0,\"b\":1.5}", "[]"), SETUN_ERROR_FORMAT, "'b'"},
        {BPE("\"vocab\":{\"a\":0,\"b\":\"x\"}", "[]"), SETUN_ERROR_FORMAT, "'b'"},
        {BPE(VOCAB, "[\"a c\"]"), SETUN_ERROR_FORMAT, "'c'"},
        {BPE(VOCAB, "[\"b a\"]"), SETUN_ERROR_FORMAT, "'ba'"},
        {BPE(VOCAB, "[\"ab\"]"), SETUN_ERROR_FORMAT, "merges[0]"},
        {BPE(VOCAB, "[\"a b \"]"), SETUN_ERROR_FORMAT, "merges[0]"},
        {BPE(VOCAB, "[[\"a\"]]"), SETUN_ERROR_FORMAT, "merges[0]"},
        {BPE(VOCAB, "[7]"), SETUN_ERROR_FORMAT, "merges[0]"},
        {BPE(VOCAB, "7"), SETUN_ERROR_FORMAT, "merges"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[],\"unk_token\":\"z\"}," REST "}", SETUN_ERROR_FORMAT, "'z'"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[],\"dropout\":0.1}," REST "}", SETUN_ERROR_UNSUPPORTED, "dropout"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\"}," REST "}", SETUN_ERROR_UNSUPPORTED, "</w>"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}}", SETUN_ERROR_UNSUPPORTED, "decoder"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]},\"decoder\":{\"type\":\"CTC\"}}", SETUN_ERROR_UNSUPPORTED, "CTC"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"a\"}],\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "'a' has id 1"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"<x>\"}],\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "'<x>' has id 9"},
        {"{\"added_tokens\":[{\"id\":3}],\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "added_tokens[0]"},
        {"{\"added_tokens\":7,\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "added_tokens"},
        {"{\"normalizer\":{\"type\":\"BertNormalizer\"},\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_UNSUPPORTED, "BertNormalizer"},
        {"{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"////\"},\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "charsmap"},
        {"{\"post_processor\":{\"type\":\"Odd\"},\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_UNSUPPORTED, "Odd"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"x\",99],\"cls\":[\"y\",0]},\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]}," REST "}", SETUN_ERROR_FORMAT, "'x'"},
        {"{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}}", SETUN_ERROR_UNSUPPORTED, "UnicodeScripts"},
#define SPLIT(regex) "{\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[]},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"}}"
        {SPLIT("("), SETUN_ERROR_FORMAT, "regular expression"},
        {SPLIT("[[:alpha:]&&[a]]"), SETUN_ERROR_UNSUPPORTED, "class"},
        {SPLIT("\\\\bx"), SETUN_ERROR_UNSUPPORTED, "word boundary"},
        {SPLIT("(*LIMIT_MATCH=1)x"), SETUN_ERROR_UNSUPPORTED, "(*"},
        {SPLIT("a{2}+"), SETUN_ERROR_UNSUPPORTED, "counted repeat"},
        {SPLIT("(?P<x>a)"), SETUN_ERROR_UNSUPPORTED, "group"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1],[\"b\"]]},\"decoder\":{\"type\":\"Fuse\"}}", SETUN_ERROR_FORMAT, "vocab[1]"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1],[\"a\",-2]]},\"decoder\":{\"type\":\"Fuse\"}}", SETUN_ERROR_FORMAT, "occurs twice"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":5,\"vocab\":[[\"a\",-1]]},\"decoder\":{\"type\":\"Fuse\"}}", SETUN_ERROR_FORMAT, "unk_id"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_t *root;
        setun_tokenizer *t;
        if (setun_json_parse(rows[i].text, strlen(rows[i].text), "rows", &root) != SETUN_OK)
            fail_msg("row %zu: %s", i, setun_error());
        setun_status status = setun_tokenizer_from_json(root, NULL, NULL, 0, "rows", &t);
        if (status != rows[i].status || (status != SETUN_OK && !strstr(setun_error(), rows[i].word)))
            fail_msg("row %zu (%s): %s '%s'", i, rows[i].word, setun_status_name(status), setun_error());
        assert_true((status == SETUN_OK) == (t != NULL));
        setun_tokenizer_close(t);
        json_decref(root);
    }
}

/* GGUF: written with one thing wrong. */
typedef struct gguf_case { const char *model, *pre, *tokens[6]; int32_t kinds[6]; int kind_count; const char *merges[3]; int eos; setun_status status; const char *word; } gguf_case;

static void wrong_gguf(void **state)
{
    (void)state;
    static const gguf_case rows[] = {
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 1}, 3, {"a b"}, 2, SETUN_OK, ""},
        {"gpt2", "made-up", {"a", "b", "ab"}, {1, 1, 1}, 3, {"a b"}, 2, SETUN_ERROR_UNSUPPORTED, "llama-bpe"},
        {"bert", "gpt-2", {"a", "b", "ab"}, {1, 1, 1}, 3, {"a b"}, 2, SETUN_ERROR_UNSUPPORTED, "bert"},
        {"gpt2", "gpt-2", {"a", "b", "a"}, {1, 1, 1}, 3, {"a b"}, 2, SETUN_ERROR_FORMAT, "'a' occurs twice"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 1}, 3, {"a c"}, 2, SETUN_ERROR_FORMAT, "'c'"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 1}, 3, {"ab"}, 2, SETUN_ERROR_FORMAT, "merges[0]"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 9}, 3, {"a b"}, 2, SETUN_ERROR_FORMAT, "token_type[2]"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1}, 2, {"a b"}, 2, SETUN_ERROR_FORMAT, "token_type has 2"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 1}, 3, {"a b"}, 3, SETUN_ERROR_FORMAT, "eos_token_id is 3"},
        {"gpt2", "gpt-2", {"a", "b", "\xff"}, {1, 1, 1}, 3, {"a b"}, 2, SETUN_ERROR_FORMAT, "UTF-8"},
        {"llama", "default", {"a", "b", "ab"}, {1, 1, 1}, 3, {0}, 2, SETUN_ERROR_FORMAT, "scores"},
        {"gpt2", "gpt-2", {"a", "b", "ab"}, {1, 1, 6}, 3, {"a b"}, 2, SETUN_ERROR_FORMAT, "byte"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const gguf_case *row = rows + i;
        char path[] = "setun_wrong_XXXXXX";
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
        setun_gguf_writer *w;
        size_t lengths[6], count = 0, merges = 0, merge_lengths[3];
        while (count < 6 && row->tokens[count]) {
            lengths[count] = strlen(row->tokens[count]);
            count++;
        }
        while (merges < 3 && row->merges[merges]) {
            merge_lengths[merges] = strlen(row->merges[merges]);
            merges++;
        }
        assert_int_equal(setun_gguf_writer_create(path, true, 0, &w), SETUN_OK);
        assert_int_equal(setun_gguf_add_string(w, "tokenizer.ggml.model", row->model, strlen(row->model)), SETUN_OK);
        assert_int_equal(setun_gguf_add_string(w, "tokenizer.ggml.pre", row->pre, strlen(row->pre)), SETUN_OK);
        assert_int_equal(setun_gguf_add_strings(w, "tokenizer.ggml.tokens", row->tokens, lengths, count), SETUN_OK);
        assert_int_equal(setun_gguf_add_i32s(w, "tokenizer.ggml.token_type", row->kinds, (uint64_t)row->kind_count), SETUN_OK);
        if (merges)
            assert_int_equal(setun_gguf_add_strings(w, "tokenizer.ggml.merges", row->merges, merge_lengths, merges), SETUN_OK);
        assert_int_equal(setun_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)row->eos), SETUN_OK);
        assert_int_equal(setun_gguf_begin_data(w), SETUN_OK);
        assert_int_equal(setun_gguf_commit(w), SETUN_OK);
        setun_tokenizer *t;
        setun_status status = setun_tokenizer_open(path, &t);
        if (status != row->status || (status != SETUN_OK && !strstr(setun_error(), row->word)))
            fail_msg("row %zu (%s): %s '%s'", i, row->word, setun_status_name(status), setun_error());
        setun_tokenizer_close(t);
        remove(path);
    }
    setun_tokenizer *t;
    assert_int_equal(setun_tokenizer_open("no/such/file", &t), SETUN_ERROR_IO);
    assert_null(t);
    assert_int_equal(setun_tokenizer_open(SETUN_TEST_SOURCE "/src", &t), SETUN_ERROR_IO);
    assert_non_null(strstr(setun_error(), "tokenizer.json"));
    assert_int_equal(setun_tokenizer_open(NULL, &t), SETUN_ERROR_ARGUMENT);
}

/* ---- memory ---- */

static void work(const char *path, setun_status *status)
{
    setun_tokenizer *t;
    static const char text[] = "Hello <|im_end|> w\xc3\xb6rld\xff e\xcc\x81 1234 ternary ternary ternary aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    *status = setun_tokenizer_open(path, &t);
    if (*status != SETUN_OK) {
        assert_null(t);
        return;
    }
    int32_t *ids;
    size_t count, length;
    *status = setun_tokenizer_encode(t, text, sizeof text - 1, 3, &ids, &count);
    if (*status == SETUN_OK) {
        char *back;
        *status = setun_tokenizer_decode(t, ids, count, true, &back, &length);
        setun_free(back);
        setun_free(ids);
    }
    if (*status == SETUN_OK && setun_chat_template(t)) {
        setun_message messages[] = {{"system", "be"}, {"user", "hi \xff"}};
        *status = setun_chat_encode(t, messages, 2, true, &ids, &count);
        setun_free(ids);
    }
    setun_tokenizer_close(t);
}

/* The n-th allocation and all after it fail: an error, nothing kept. Fine steps first, coarse ones over the long middle. */
static void allocations_fail(void **state)
{
    const char *name = *state;
    char path[512];
    setun_status status;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    uint64_t before = setun_alloc_count();
    int64_t live = setun_alloc_live();
    work(path, &status);
    assert_int_equal(status, SETUN_OK);
    assert_int_equal(setun_alloc_live(), live);
    uint64_t total = setun_alloc_count() - before, tried = 0;
    uint64_t stride = total > 4000 ? total / 2000 : 1;
    for (uint64_t n = 1; n <= total; n += n < 300 || n + 400 > total ? 1 : stride) {
        setun_alloc_fail_at(n);
        work(path, &status);
        setun_alloc_fail_at(0);
        tried++;
        /* The regular expressions' compiled machine code is optional, so some failures only make it slower. */
        if (status != SETUN_OK && status != SETUN_ERROR_MEMORY)
            fail_msg("%s: allocation %llu of %llu: %s '%s'", name, (unsigned long long)n, (unsigned long long)total, setun_status_name(status), setun_error());
        if (setun_alloc_live() != live)
            fail_msg("%s: allocation %llu of %llu leaves %lld behind", name, (unsigned long long)n, (unsigned long long)total, (long long)(setun_alloc_live() - live));
    }
    print_message("%s: %llu allocations, %llu tried\n", name, (unsigned long long)total, (unsigned long long)tried);
}

/* ---- long texts ---- */

static void long_texts(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.json", "llama2.json", "spm_llama.gguf", "spm_t5.gguf", "qwen2.json", "t5.json", "gemma.json"};
    enum { LENGTH = 1 << 20 };
    char *text = malloc(LENGTH);
    for (int shape = 0; shape < 4; shape++) {
        /* one word, one space, spaces and letters, digits and newlines */
        for (int i = 0; i < LENGTH; i++)
            text[i] = shape == 0 ? (char)('a' + i % 7 % 3) : shape == 1 ? ' ' : shape == 2 ? (i % 5 ? 'e' : ' ') : (i % 90 == 89 ? '\n' : (char)('0' + i % 10));
        for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
            setun_tokenizer *t = open_golden(names[n]);
            int32_t *ids;
            size_t count, length;
            char *back;
            double start = setun_seconds();
            assert_int_equal(setun_tokenizer_encode(t, text, LENGTH, 0, &ids, &count), SETUN_OK);
            double seconds = setun_seconds() - start;
            if (seconds > 20) /* quadratic would be hours */
                fail_msg("%s: shape %d takes %.1f s", names[n], shape, seconds);
            assert_int_equal(setun_tokenizer_decode(t, ids, count, true, &back, &length), SETUN_OK);
            if (strcmp(names[n], "t5.json") != 0 && strcmp(names[n], "spm_t5.gguf") != 0) {
                assert_int_equal(length, LENGTH);
                assert_memory_equal(back, text, LENGTH);
            }
            setun_free(back);
            setun_free(ids);
            setun_tokenizer_close(t);
        }
    }
    free(text);
}

int main(void)
{
#define FAILS(name) {"allocations fail " name, allocations_fail, NULL, NULL, (char *)name}
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_comes_back), cmocka_unit_test(pieces), cmocka_unit_test(end_tokens), cmocka_unit_test(wrong_json), cmocka_unit_test(wrong_gguf),
        FAILS("qwen2.json"), FAILS("t5.json"), FAILS("spm_gemma.gguf"), FAILS("prefixed.json"), cmocka_unit_test(long_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
