/* A tokenizer as tokenizer.json and tokenizer_config.json: read back, it gives the references' ids, the same pieces and ends. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include "golden.h"
#include <unistd.h>

static setun_tokenizer *open_path(const char *path)
{
    setun_tokenizer *t;
    if (setun_tokenizer_open(path, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    return t;
}

static setun_tokenizer *open_golden(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    return open_path(path);
}

static setun_tokenizer *read_back(const char *tokenizer, const char *config)
{
    json_t *root = NULL, *neighbour = NULL;
    setun_tokenizer *t;
    if (setun_json_parse(tokenizer, strlen(tokenizer), "written", &root) != SETUN_OK || setun_json_parse(config, strlen(config), "written config", &neighbour) != SETUN_OK)
        fail_msg("%s", setun_error());
    if (setun_tokenizer_from_json(root, neighbour, NULL, 0, "written", &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    json_decref(root);
    json_decref(neighbour);
    return t;
}

static void same_answers(const setun_tokenizer *a, const setun_tokenizer *b)
{
    assert_int_equal(setun_tokenizer_vocabulary(a), setun_tokenizer_vocabulary(b));
    assert_int_equal(setun_tokenizer_bos(a), setun_tokenizer_bos(b));
    assert_int_equal(setun_tokenizer_eos(a), setun_tokenizer_eos(b));
    for (int32_t id = 0; id < setun_tokenizer_vocabulary(a); id++) {
        const char *x, *y;
        size_t x_length, y_length;
        bool x_special, y_special;
        assert_int_equal(setun_tokenizer_piece(a, id, &x, &x_length, &x_special), SETUN_OK);
        assert_int_equal(setun_tokenizer_piece(b, id, &y, &y_length, &y_special), SETUN_OK);
        assert_int_equal(x_length, y_length);
        assert_memory_equal(x, y, x_length);
        assert_int_equal(x_special, y_special);
        assert_int_equal(setun_tokenizer_is_end(a, id), setun_tokenizer_is_end(b, id));
    }
    const char *x = setun_chat_template(a), *y = setun_chat_template(b);
    assert_int_equal(x != NULL, y != NULL);
    if (x)
        assert_string_equal(x, y);
    bytes lines = read_all(GOLDEN "lines.bin");
    for (size_t at = 0; at < lines.length;) {
        size_t length = setun_load_u32(lines.data + at), count, x_length, y_length;
        int32_t *ids;
        char *from_a, *from_b;
        assert_int_equal(setun_tokenizer_encode(a, lines.data + at + 4, length, 0, &ids, &count), SETUN_OK);
        assert_int_equal(setun_tokenizer_decode(a, ids, count, true, &from_a, &x_length), SETUN_OK);
        assert_int_equal(setun_tokenizer_decode(b, ids, count, true, &from_b, &y_length), SETUN_OK);
        assert_int_equal(x_length, y_length);
        assert_memory_equal(from_a, from_b, x_length);
        setun_free(ids);
        setun_free(from_a);
        setun_free(from_b);
        at += 4 + length;
    }
    free(lines.data);
}

/* Closes t. */
static void through_json(setun_tokenizer *t, const char *golden)
{
    char *tokenizer, *config, *tokenizer_again, *config_again;
    if (setun_tokenizer_to_json(t, &tokenizer, &config) != SETUN_OK)
        fail_msg("%s", setun_error());
    setun_tokenizer *back = read_back(tokenizer, config);
    int compared = 0;
    assert_int_equal(compare_with_golden(back, golden, &compared), 0);
    assert_true(compared >= 1500);
    same_answers(t, back);
    /* Nothing changes when it is written once more. */
    assert_int_equal(setun_tokenizer_to_json(back, &tokenizer_again, &config_again), SETUN_OK);
    assert_string_equal(tokenizer, tokenizer_again);
    assert_string_equal(config, config_again);
    setun_free(tokenizer);
    setun_free(config);
    setun_free(tokenizer_again);
    setun_free(config_again);
    setun_tokenizer_close(back);
    setun_tokenizer_close(t);
}

static void from_json(void **state)
{
    char name[64];
    snprintf(name, sizeof name, "%s.json", (const char *)*state);
    through_json(open_golden(name), *state);
}

/* JSON -> GGUF -> JSON: the steps come from the name that GGUF gives the pre-tokeniser. */
static void from_gguf(void **state)
{
    static const char names[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"pad_token\": \"<|endoftext|>\", \"chat_template\": \"{% for m in messages %}<|im_start|>{{ m['role'] }}\\n{{ m['content'] }}<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}\"}";
    char path[512], copy[] = "setun_tokenizer_XXXXXX";
    json_t *root, *config;
    setun_tokenizer *t;
    setun_gguf_writer *writer;
    snprintf(path, sizeof path, GOLDEN "%s.json", (const char *)*state);
    assert_int_equal(setun_json_load(path, &root), SETUN_OK);
    assert_int_equal(setun_json_parse(names, sizeof names - 1, "names", &config), SETUN_OK);
    assert_int_equal(setun_tokenizer_from_json(root, config, NULL, 0, path, &t), SETUN_OK);
    json_decref(root);
    json_decref(config);
    int fd = mkstemp(copy);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(setun_gguf_writer_create(copy, true, 0, &writer), SETUN_OK);
    assert_int_equal(setun_gguf_add_string(writer, "general.architecture", "llama", 5), SETUN_OK);
    assert_int_equal(setun_tokenizer_to_gguf(t, writer), SETUN_OK);
    assert_int_equal(setun_gguf_begin_data(writer), SETUN_OK);
    assert_int_equal(setun_gguf_commit(writer), SETUN_OK);
    setun_tokenizer_close(t);
    t = open_path(copy);
    remove(copy);
    assert_non_null(setun_chat_template(t));
    through_json(t, *state);
}

static void the_models_vocabulary(void **state)
{
    (void)state;
    if (access(SETUN_TEST_MODEL, R_OK) != 0) {
        print_message("%s is not there: its vocabulary is not tested\n", SETUN_TEST_MODEL);
        skip();
    }
    through_json(open_path(SETUN_TEST_MODEL), "smollm2");
}

/* The words that other readers look for. */
static void spelled_as_others_read_it(void **state)
{
    (void)state;
    static const struct { const char *name, *word; } rows[] = {
        {"smollm.json", "{\"type\": \"Digits\", \"individual_digits\": true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}]"},
        {"falcon.json", "{\"type\": \"Punctuation\", \"behavior\": \"Contiguous\"}, {\"type\": \"ByteLevel\", "}, {"falcon.json", "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[0-9][0-9][0-9]\"}, "},
        {"falcon.json", "{\"type\": \"Digits\", \"individual_digits\": false}"}, {"prefixed.json", "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, "},
        {"qwen2.json", "\"normalizer\": {\"type\": \"NFC\"},"}, {"llama3.json", "\"ignore_merges\": true"}, {"gpt2.json", "\"post_processor\": null"},
        {"llama3.json", "\"single\": [{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]"},
        {"llama3.json", "\"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [3], \"tokens\": [\"<s>\"]}}"},
        {"gpt4o.json", "{\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}, {\"SpecialToken\": {\"id\": \"</s>\", \"type_id\": 1}}]"},
        {"llama2.json", "{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]"},
        {"llama2_first.json", "\"prepend_scheme\": \"first\""}, {"qwen2.json", "\"content\": \"<think>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": false}"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        setun_tokenizer *t = open_golden(rows[i].name);
        char *tokenizer, *config;
        assert_int_equal(setun_tokenizer_to_json(t, &tokenizer, &config), SETUN_OK);
        if (!strstr(tokenizer, rows[i].word))
            fail_msg("%s: no %s in %.3000s", rows[i].name, rows[i].word, tokenizer);
        setun_free(tokenizer);
        setun_free(config);
        setun_tokenizer_close(t);
    }
}

static void refused(void **state)
{
    (void)state;
    static const struct { const char *name, *word; } rows[] = {
        {"spm_llama.gguf", "SentencePiece"}, {"spm_gemma.gguf", "SentencePiece"}, {"spm_t5.gguf", "unigram"}, {"t5.json", "unigram"}, {"unigram_bytes.json", "unigram"}, {"lowered.json", "regular expression"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        setun_tokenizer *t = open_golden(rows[i].name);
        char *tokenizer = (char *)rows, *config = (char *)rows;
        assert_int_equal(setun_tokenizer_to_json(t, &tokenizer, &config), SETUN_ERROR_UNSUPPORTED);
        assert_null(tokenizer);
        assert_null(config);
        assert_non_null(strstr(setun_error(), rows[i].word));
        assert_non_null(strstr(setun_error(), rows[i].name));
        setun_tokenizer_close(t);
    }
}

/* The n-th allocation fails, alone or with all after it: an error and nothing kept. */
static void allocations_fail(void **state)
{
    setun_tokenizer *t = open_golden(*state);
    char *tokenizer, *config;
    uint64_t before = setun_alloc_count();
    assert_int_equal(setun_tokenizer_to_json(t, &tokenizer, &config), SETUN_OK);
    uint64_t total = setun_alloc_count() - before;
    setun_free(tokenizer);
    setun_free(config);
    assert_true(total > 5);
    int64_t live = setun_alloc_live();
    for (uint64_t n = 1; n <= total; n++)
        for (int alone = 0; alone < 2; alone++) {
            if (alone)
                setun_alloc_fail_once(n);
            else
                setun_alloc_fail_at(n);
            setun_status status = setun_tokenizer_to_json(t, &tokenizer, &config);
            setun_alloc_fail_once(0);
            setun_alloc_fail_at(0);
            if (status != SETUN_ERROR_MEMORY)
                fail_msg("allocation %llu of %llu: %s", (unsigned long long)n, (unsigned long long)total, setun_status_name(status));
            assert_null(tokenizer);
            assert_null(config);
            assert_int_equal(setun_alloc_live(), live);
        }
    print_message("%s: %llu allocations\n", (const char *)*state, (unsigned long long)total);
    setun_tokenizer_close(t);
}

int main(void)
{
#define JSON(name) {"JSON -> JSON " name, from_json, NULL, NULL, (char *)name}
#define GGUF(name) {"GGUF -> JSON " name, from_gguf, NULL, NULL, (char *)name}
#define FAILS(name) {"allocations fail " name, allocations_fail, NULL, NULL, (char *)name}
    const struct CMUnitTest tests[] = {
        JSON("llama3"), JSON("gpt2"), JSON("prefixed"), JSON("qwen2"), JSON("falcon"), JSON("smollm"), JSON("gptneox"), JSON("gpt4o"), JSON("nfkc"), JSON("nfd"),
        JSON("llama2"), JSON("llama2_first"), JSON("gemma"),
        GGUF("llama3"), GGUF("gpt2"), GGUF("qwen2"), GGUF("falcon"), GGUF("smollm"), GGUF("gptneox"),
        cmocka_unit_test(the_models_vocabulary), cmocka_unit_test(spelled_as_others_read_it), cmocka_unit_test(refused), FAILS("gpt4o.json"), FAILS("llama2_first.json"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
