/* Ids byte for byte as Hugging Face tokenizers and sentencepiece give them, for every family, from JSON and from GGUF. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include "golden.h"
#include <unistd.h>

static void same_as_reference(void **state)
{
    const char *name = *state;
    char path[512];
    setun_tokenizer *t;
    int compared = 0;
    snprintf(path, sizeof path, GOLDEN "%s.%s", name, strncmp(name, "spm_", 4) == 0 ? "gguf" : "json");
    if (setun_tokenizer_open(path, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    int wrong = compare_with_golden(t, name, &compared);
    setun_tokenizer_close(t);
    print_message("%s: %d of %d differ\n", name, wrong, compared);
    assert_true(compared >= 1650);
    assert_int_equal(wrong, 0);
}

/* A tokenizer.json does not say which tokens begin and end a text; its neighbour does. */
static void open_with_names(const char *path, setun_tokenizer **t)
{
    static const char names[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
    json_t *tokenizer, *config;
    setun_status status;
    if (strstr(path, ".gguf")) {
        status = setun_tokenizer_open(path, t);
    } else {
        assert_int_equal(setun_json_load(path, &tokenizer), SETUN_OK);
        assert_int_equal(setun_json_parse(names, sizeof names - 1, "names", &config), SETUN_OK);
        status = setun_tokenizer_from_json(tokenizer, config, NULL, 0, path, t);
        json_decref(tokenizer);
        json_decref(config);
    }
    if (status != SETUN_OK)
        fail_msg("%s", setun_error());
}

/* JSON -> GGUF -> the same ids. */
static void same_through_gguf(void **state)
{
    const char *name = *state;
    char path[512], copy[] = "setun_tokenizer_XXXXXX";
    setun_tokenizer *t;
    setun_gguf_writer *writer;
    snprintf(path, sizeof path, GOLDEN "%s.%s", name, strncmp(name, "spm_", 4) == 0 ? "gguf" : "json");
    int fd = mkstemp(copy);
    assert_true(fd >= 0);
    close(fd);
    open_with_names(path, &t);
    assert_int_equal(setun_gguf_writer_create(copy, true, 0, &writer), SETUN_OK);
    assert_int_equal(setun_gguf_add_string(writer, "general.architecture", "llama", 5), SETUN_OK);
    if (setun_tokenizer_to_gguf(t, writer) != SETUN_OK)
        fail_msg("%s", setun_error());
    assert_int_equal(setun_gguf_begin_data(writer), SETUN_OK);
    assert_int_equal(setun_gguf_commit(writer), SETUN_OK);
    setun_tokenizer_close(t);
    if (setun_tokenizer_open(copy, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    assert_int_equal(compare_with_golden(t, name, NULL), 0);
    setun_tokenizer_close(t);
    remove(copy);
}

static void refused_for_gguf(void **state)
{
    const char *name = *state;
    char path[512], copy[] = "setun_tokenizer_XXXXXX";
    setun_tokenizer *t;
    setun_gguf_writer *writer;
    snprintf(path, sizeof path, GOLDEN "%s.json", name);
    int fd = mkstemp(copy);
    assert_true(fd >= 0);
    close(fd);
    open_with_names(path, &t);
    assert_int_equal(setun_gguf_writer_create(copy, true, 0, &writer), SETUN_OK);
    assert_int_equal(setun_tokenizer_to_gguf(t, writer), SETUN_ERROR_UNSUPPORTED);
    setun_gguf_abort(writer);
    setun_tokenizer_close(t);
    remove(copy);
}

static void the_models_vocabulary(void **state)
{
    (void)state;
    if (access(SETUN_TEST_MODEL, R_OK) != 0) {
        print_message("%s is not there: its vocabulary is not tested\n", SETUN_TEST_MODEL);
        skip();
    }
    setun_tokenizer *t;
    if (setun_tokenizer_open(SETUN_TEST_MODEL, &t) != SETUN_OK)
        fail_msg("%s", setun_error());
    assert_int_equal(setun_tokenizer_vocabulary(t), 49152);
    assert_int_equal(compare_with_golden(t, "smollm2", NULL), 0);

    /* The prompts of the model's references. */
    json_t *root;
    assert_int_equal(setun_json_load(GOLDEN "references_ids.json", &root), SETUN_OK);
    size_t i;
    json_t *one;
    json_array_foreach(root, i, one) {
        const char *prompt = json_string_value(json_object_get(one, "prompt"));
        const json_t *wanted = json_object_get(one, "ids");
        int32_t *ids;
        size_t count;
        assert_int_equal(setun_tokenizer_encode(t, prompt, strlen(prompt), SETUN_TOKENIZE_PARSE_SPECIAL, &ids, &count), SETUN_OK);
        assert_int_equal(count, json_array_size(wanted));
        for (size_t j = 0; j < count; j++)
            assert_int_equal(ids[j], json_integer_value(json_array_get(wanted, j)));
        char *text;
        size_t length;
        assert_int_equal(setun_tokenizer_decode(t, ids, count, true, &text, &length), SETUN_OK);
        assert_int_equal(length, strlen(prompt));
        assert_memory_equal(text, prompt, length);
        setun_free(text);
        setun_free(ids);
    }
    assert_int_equal(i, 6);
    json_decref(root);
    setun_tokenizer_close(t);
}

int main(void)
{
#define SAME(name) {"reference " name, same_as_reference, NULL, NULL, (char *)name}
#define ROUND(name) {"through GGUF " name, same_through_gguf, NULL, NULL, (char *)name}
#define REFUSED(name) {"no GGUF " name, refused_for_gguf, NULL, NULL, (char *)name}
    const struct CMUnitTest tests[] = {
        SAME("llama3"), SAME("gpt2"), SAME("prefixed"), SAME("qwen2"), SAME("falcon"), SAME("smollm"), SAME("gptneox"), SAME("gpt4o"), SAME("lowered"), SAME("nfkc"), SAME("nfd"),
        SAME("spm_llama"), SAME("spm_gemma"), SAME("spm_plain"), SAME("spm_t5"), SAME("spm_unigram_bytes"),
        SAME("llama2"), SAME("llama2_first"), SAME("gemma"), SAME("t5"), SAME("unigram_bytes"),
        ROUND("llama3"), ROUND("gpt2"), ROUND("qwen2"), ROUND("falcon"), ROUND("smollm"), ROUND("gptneox"), ROUND("llama2"),
        ROUND("spm_llama"), ROUND("spm_gemma"), ROUND("spm_plain"), ROUND("spm_t5"), ROUND("spm_unigram_bytes"),
        REFUSED("prefixed"), REFUSED("gpt4o"), REFUSED("lowered"), REFUSED("t5"), REFUSED("gemma"), REFUSED("llama2_first"),
        cmocka_unit_test(the_models_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
