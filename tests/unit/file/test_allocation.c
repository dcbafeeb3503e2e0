/* Allocation failure: open, use, write and close with the Nth allocation failing, for every N; nothing leaks, nothing crashes. */
#include "file_test.h"

#define GOLDEN SETUN_TEST_GOLDEN "/file/"

static char folder[256], out[320];

static setun_status open_gguf(void) {
    setun_file *file;
    SETUN_TRY(setun_file_open(GOLDEN "plain.gguf", NULL, &file));
    setun_file_close(file);
    return SETUN_OK;
}

static setun_status open_read(void) {
    setun_file *file;
    SETUN_TRY(setun_file_open(GOLDEN "aligned64.gguf", &(setun_file_options){.no_map = true}, &file));
    setun_file_close(file);
    return SETUN_OK;
}

static setun_status open_many(void) { /* the table of names and the blocks grow */
    static bytes b;
    if (!b.length) {
        const uint64_t one = 1;
        char name[32];
        gguf_begin(&b, 200, 0);
        for (unsigned i = 0; i < 200; i++) {
            snprintf(name, sizeof name, "tensor.%u", i);
            gguf_tensor(&b, name, 1, &one, i % 2 ? 0 : 555, i * 32);
        }
        pad_to(&b, 32);
        put_zeros(&b, 200 * 32);
    }
    setun_file *file;
    SETUN_TRY(setun_file_open_memory(b.data, b.length, "many", &file));
    setun_file_close(file);
    return SETUN_OK;
}

static setun_status use_folder(void) {
    setun_file *file;
    const json_t *json;
    const char *text;
    size_t length;
    SETUN_TRY(setun_file_open(GOLDEN "sharded", NULL, &file));
    setun_status status = setun_file_json(file, "config.json", &json);
    if (status == SETUN_OK) status = setun_file_json(file, "tokenizer_config.json", &json);
    if (status == SETUN_OK) status = setun_file_json(file, "absent.json", &json);
    if (status == SETUN_OK) status = setun_file_text(file, "chat_template.jinja", &text, &length);
    setun_file_close(file);
    return status;
}

static setun_status use_plain_folder(void) {
    setun_file *file;
    SETUN_TRY(setun_file_open(folder, NULL, &file));
    setun_file_close(file);
    return SETUN_OK;
}

static setun_status fill_gguf(setun_gguf_writer *w) {
    const char *texts[] = {"one", "two"};
    const size_t lengths[] = {3, 3};
    const int64_t shape[] = {2, 4};
    char name[32];
    for (unsigned i = 0; i < 70; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        SETUN_TRY(setun_gguf_add_strings(w, name, texts, lengths, 2));
        SETUN_TRY(setun_gguf_add_tensor(w, name, SETUN_FORMAT_F32, 2, shape, 32));
    }
    SETUN_TRY(setun_gguf_begin_data(w));
    for (unsigned i = 0; i < 70; i++) SETUN_TRY(setun_gguf_write_tensor(w, "0123456789abcdef0123456789abcdef", 32));
    return SETUN_OK;
}

static setun_status write_gguf(void) {
    setun_gguf_writer *w;
    SETUN_TRY(setun_gguf_writer_create(out, true, 64, &w));
    setun_status status = fill_gguf(w);
    if (status == SETUN_OK) return setun_gguf_commit(w);
    setun_gguf_abort(w);
    return status;
}

static setun_status fill_safetensors(setun_safetensors_writer *w) {
    const int64_t shape[] = {2, 4};
    char name[32];
    SETUN_TRY(setun_safetensors_add_metadata(w, "key", "a text of some length, so that the buffer has to grow at least once, and then once more, and again until the end of it"));
    for (unsigned i = 0; i < 70; i++) {
        snprintf(name, sizeof name, "tensor.%u", i);
        SETUN_TRY(setun_safetensors_add_tensor(w, name, "F32", 2, shape, 32));
    }
    SETUN_TRY(setun_safetensors_begin_data(w));
    for (unsigned i = 0; i < 70; i++) SETUN_TRY(setun_safetensors_write_tensor(w, "0123456789abcdef0123456789abcdef", 32));
    return SETUN_OK;
}

static setun_status write_safetensors(void) {
    setun_safetensors_writer *w;
    SETUN_TRY(setun_safetensors_writer_create(out, true, &w));
    setun_status status = fill_safetensors(w);
    if (status == SETUN_OK) return setun_safetensors_commit(w);
    setun_safetensors_abort(w);
    return status;
}

static void sweep(const char *name, setun_status (*work)(void)) {
    must(work()); /* statics of the work itself */
    int64_t live = setun_alloc_live();
    uint64_t n = 1;
    for (;; n++) {
        setun_alloc_fail_at(n);
        setun_status status = work();
        setun_alloc_fail_at(0);
        assert_true(setun_alloc_live() == live);
        if (status == SETUN_OK) break;
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_non_null(strstr(setun_error(), "memory"));
    }
    assert_true(n > 3);
    print_message("%s: %llu allocations\n", name, (unsigned long long)(n - 1));
}

static void test_sweep(void **state) {
    (void)state;
    make_folder(folder);
    snprintf(out, sizeof out, "%s/x.safetensors", folder);
    sweep("gguf", open_gguf);
    sweep("gguf read", open_read);
    sweep("many", open_many);
    sweep("gguf writer", write_gguf);
    sweep("safetensors writer", write_safetensors);
    sweep("folder", use_folder);
    sweep("plain folder", use_plain_folder);
    /* and with jansson's own allocations failing too; this is the test's process, so its setting may be changed */
    json_set_alloc_funcs(setun_alloc, setun_free);
    sweep("folder with jansson", use_folder);
    sweep("plain folder with jansson", use_plain_folder);
    json_set_alloc_funcs(malloc, free);
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sweep)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
