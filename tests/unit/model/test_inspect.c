/* test_inspect.c - inspecting: good files, refused files, and that the JSON is JSON whatever is in them. */
#include "tiny.h"

static json_t *inspect(const tiny *t, bool deep) {
    char *text;
    if (setun_file_inspect(&tiny_context, t->path, NULL, deep, &text) != SETUN_OK) fail_msg("%s", setun_error());
    json_error_t error;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("%s at %d in %s", error.text, error.position, text);
    setun_free(text);
    return root;
}

static const json_t *tensor_named(const json_t *root, const char *name) {
    size_t i;
    json_t *t;
    json_array_foreach(json_object_get(root, "tensors"), i, t)
        if (strcmp(json_string_value(json_object_get(t, "name")), name) == 0) return t;
    return NULL;
}

static void good_files_are_described(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_write_gguf(&t);
    for (int deep = 0; deep < 2; deep++) {
        json_t *root = inspect(&t, deep);
        assert_string_equal(json_string_value(json_object_get(root, "container")), "gguf");
        assert_string_equal(json_string_value(json_object_get(root, "architecture")), "bitnet");
        assert_int_equal(json_array_size(json_object_get(root, "problems")), 0);
        assert_int_equal(json_array_size(json_object_get(root, "tensors")), t.tensor_count);
        assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "metadata"), "bitnet.block_count")), 2);
        assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "model"), "layers")), 2);
        const json_t *q = tensor_named(root, "blk.0.attn_q.weight");
        assert_string_equal(json_string_value(json_object_get(q, "format")), "i2_s");
        assert_true(json_is_true(json_object_get(q, "supported")));
        assert_int_equal(!!json_object_get(q, "zero_share"), deep);
        if (deep) {
            assert_true(json_number_value(json_object_get(q, "scale")) == 0.0625);
            double zeros = json_number_value(json_object_get(q, "zero_share"));
            assert_true(zeros > 0.25 && zeros < 0.42);
            assert_true(json_is_false(json_object_get(tensor_named(root, "token_embd.weight"), "ternary")));
        }
        double share = json_number_value(json_object_get(json_object_get(root, "totals"), "ternary_share"));
        assert_true(share > 0.97 && share < 1);
        json_decref(root);
    }
    tiny_end(&t);
    tiny_huggingface(&t, "LlamaForCausalLM", SETUN_FAMILY_LLAMA, true);
    tiny_write_huggingface(&t);
    json_t *root = inspect(&t, true);
    const json_t *q = tensor_named(root, "model.layers.0.self_attn.q_proj.weight"), *shape = json_object_get(q, "shape");
    assert_int_equal(json_integer_value(json_array_get(shape, 0)), TINY_WIDTH); /* of the weights, not of the bytes */
    assert_true(json_number_value(json_object_get(q, "bits_per_weight")) == 2);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "metadata"), "hidden_size")), TINY_WIDTH);
    json_decref(root);
    tiny_end(&t);
}

static void refused_files_say_why(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_find(&t, "blk.0.attn_q.weight")->data[7] = 0xff; /* code 3 */
    tiny_find(&t, "blk.1.attn_norm.weight")->left_out = true;
    tiny_add(&t, "blk.0.attn_k.weight", SETUN_FORMAT_I32, "I32", 2, 64, TINY_WIDTH, 64 * TINY_WIDTH * 4);
    tiny_write_gguf(&t);
    json_t *root = inspect(&t, true);
    assert_true(json_is_null(json_object_get(root, "model")));
    const json_t *q = tensor_named(root, "blk.0.attn_q.weight"), *k = tensor_named(root, "blk.0.attn_k.weight");
    assert_true(json_is_false(json_object_get(q, "supported")));
    assert_non_null(strstr(json_string_value(json_object_get(q, "reason")), "3"));
    assert_true(json_is_false(json_object_get(k, "supported")));
    assert_non_null(strstr(json_string_value(json_object_get(k, "reason")), "integers"));
    assert_in_range(json_array_size(json_object_get(root, "problems")), 2, 3);
    json_decref(root);
    /* nothing that Setun knows at all, and values that JSON has no words for */
    tiny_text(&t, "general.architecture", "mystery");
    tiny_f32(&t, "odd.number", NAN);
    tiny_text(&t, "odd.text", "\xff\"\\\n");
    int32_t many[64];
    for (int i = 0; i < 64; i++) many[i] = i;
    tiny_integers(&t, "odd.list", 64, many);
    tiny_write_gguf(&t);
    root = inspect(&t, false);
    assert_string_equal(json_string_value(json_object_get(root, "architecture")), "mystery");
    assert_true(json_is_null(json_object_get(json_object_get(root, "metadata"), "odd.number")));
    assert_int_equal(json_array_size(json_object_get(json_object_get(root, "metadata"), "odd.list")), 64);
    assert_non_null(strstr(json_string_value(json_array_get(json_object_get(root, "problems"), 0)), "mystery"));
    json_decref(root);
    tiny_end(&t);
    char *text;
    assert_int_equal(setun_file_inspect(&tiny_context, "/nonexistent", NULL, false, &text), SETUN_ERROR_IO);
    assert_null(text);
    assert_int_equal(setun_file_inspect(NULL, "x", NULL, false, &text), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_file_inspect(&tiny_context, NULL, NULL, false, &text), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_file_inspect(&tiny_context, "x", NULL, false, NULL), SETUN_ERROR_ARGUMENT);
}

static void long_lists_are_cut(void **state) {
    (void)state;
    char path[1024];
    snprintf(path, sizeof path, "%s/families/rotated/model.gguf", SETUN_TEST_GOLDEN);
    char *text;
    assert_int_equal(setun_file_inspect(&tiny_context, path, NULL, true, &text), SETUN_OK);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    setun_free(text);
    const json_t *signs = json_object_get(json_object_get(root, "metadata"), "prism.hadamard.sign_values");
    assert_int_equal(json_integer_value(json_object_get(signs, "count")), 144);
    assert_int_equal(json_array_size(json_object_get(signs, "first")), 8);
    assert_true(json_is_true(json_object_get(json_object_get(root, "model"), "rotated")));
    json_decref(root);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    tiny t;
    tiny_gguf(&t, "bitnet", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_find(&t, "blk.0.attn_q.weight")->data[7] = 0xff;
    tiny_write_gguf(&t);
    int64_t live = setun_alloc_live();
    for (uint64_t n = 1;; n++) {
        char *text;
        setun_alloc_fail_at(n);
        setun_status status = setun_file_inspect(&tiny_context, t.path, NULL, true, &text);
        setun_alloc_fail_at(0);
        setun_free(text);
        if (setun_alloc_live() != live) fail_msg("allocation %llu leaks", (unsigned long long)n);
        if (status == SETUN_OK) break;
        if (status != SETUN_ERROR_MEMORY) fail_msg("allocation %llu: %s", (unsigned long long)n, setun_error());
    }
    tiny_end(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(good_files_are_described), cmocka_unit_test(refused_files_say_why), cmocka_unit_test(long_lists_are_cut), cmocka_unit_test(every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, tiny_context_make, tiny_context_end);
}
