/*
 * test_bad_files.c - files that are broken, foreign or absurd, through the public API from end to end: setun_model_open refuses
 * them by name, setun_file_inspect reports the same reason (or refuses the same way), setun_convert refuses and writes
 * nothing, and nobody allocates what only the file's numbers ask for. What each single check of the loader says is in
 * tests/unit/model/test_load.c; small files come from the same maker.
 */
#include "unit/model/tiny.h"
#include <sys/resource.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

static setun_context *context;

static void expect_words(const char *what, const char *text, const char *const *words) {
    for (; *words; words++)
        if (!strstr(text, *words)) fail_msg("%s: '%s' is not in: %s", what, *words, text);
}

/* Everything that takes a path: nothing opens, converts or crashes, and the reason has all the words (NULL ends them). */
static void refuse(const tiny *t, setun_status status, const char *const *words) {
    setun_model *model = (setun_model *)(uintptr_t)1;
    char out_path[160], *report;
    int64_t live = setun_alloc_live();
    setun_status got = setun_model_open(context, t->path, NULL, &model);
    if (got == SETUN_OK) fail_msg("%s: opened, though '%s'", t->path, words[0]);
    if (got != status) fail_msg("%s: %s instead of %s: %s", t->path, setun_status_name(got), setun_status_name(status), setun_error());
    assert_null(model);
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", setun_error());
    assert_non_null(strstr(reason, t->folder));
    expect_words("open", reason, words);

    for (int deep = 0; deep < 2; deep++) {
        if (setun_file_inspect(context, t->path, NULL, deep, &report) != SETUN_OK) {
            assert_null(report);
            assert_string_equal(setun_error(), reason);
            continue;
        }
        json_error_t error;
        json_t *json = json_loads(report, 0, &error);
        if (!json) fail_msg("inspect's JSON: %s in %s", error.text, report);
        bool found = !deep; /* some reasons take reading the weights */
        size_t i;
        const json_t *problem;
        json_array_foreach(json_object_get(json, "problems"), i, problem) {
            bool all = true;
            for (const char *const *w = words; *w; w++) all = all && strstr(json_string_value(problem), *w);
            found = found || all;
        }
        if (!found) fail_msg("'%s' is no problem of: %s", words[0], report);
        json_decref(json);
        setun_free(report);
    }

    snprintf(out_path, sizeof out_path, "%s/converted.gguf", t->folder);
    setun_convert_options options = {.size = sizeof options, .ternary = "q2_0"};
    if (setun_convert(context, t->path, out_path, &options, NULL) == SETUN_OK) fail_msg("%s: converted, though %s", t->path, reason);
    expect_words("convert", setun_error(), words);
    assert_int_not_equal(access(out_path, F_OK), 0);
    assert_int_equal(setun_alloc_live(), live);
}
#define REFUSE(t, status, ...) refuse(t, status, (const char *const[]){__VA_ARGS__, NULL})

static void good(tiny *t) { tiny_gguf(t, "bitnet-b1.58", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S); }

/* Overwrites bytes of the tensor's entry in the GGUF header: `at` counts from the end of its name. */
static void patch_entry(const tiny *t, const char *name, size_t at, const void *bytes, size_t count) {
    FILE *f = fopen(t->path, "r+b");
    assert_non_null(f);
    static char head[32768];
    size_t size = fread(head, 1, sizeof head, f), length = strlen(name);
    for (size_t i = 8; i + length < size; i++)
        if (memcmp(head + i, name, length) == 0 && setun_load_u64(head + i - 8) == length) {
            assert_int_equal(fseek(f, (long)(i + length + at), SEEK_SET), 0);
            assert_int_equal(fwrite(bytes, 1, count, f), count);
            fclose(f);
            return;
        }
    fail_msg("%s is not in the header", name);
}
enum { ENTRY_ROWS = 4 + 8, ENTRY_TYPE = 4 + 16, ENTRY_OFFSET = 4 + 16 + 4 }; /* of a matrix: rank, columns, rows, type, offset */

static void a_good_file_is_good(void **state) {
    (void)state;
    for (int huggingface = 0; huggingface < 2; huggingface++) {
        tiny t;
        if (huggingface) {
            tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
            tiny_write_huggingface(&t);
        } else {
            good(&t);
            tiny_write_gguf(&t);
        }
        setun_model *model;
        if (setun_model_open(context, t.path, NULL, &model) != SETUN_OK) fail_msg("%s", setun_error());
        setun_session *session;
        assert_int_equal(setun_session_create(model, NULL, &session), SETUN_OK);
        assert_int_equal(setun_session_context(session), 64);
        int32_t ids[3] = {1, 2, TINY_VOCABULARY - 1};
        assert_int_equal(setun_session_feed(session, ids, 3), SETUN_OK);
        setun_session_destroy(session);
        setun_model_close(model);
        tiny_end(&t);
    }
}

static void tensors(void **state) {
    (void)state;
    tiny t;
    good(&t);
    tiny_write_gguf(&t);
    uint64_t rows = TINY_FF / 2, offset = 0;
    patch_entry(&t, "blk.1.ffn_gate.weight", ENTRY_ROWS, &rows, 8);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_gate.weight", "[128, 128]", "[256, 128]");
    rows = (uint64_t)1 << 40; /* a shape that the file has no bytes for */
    patch_entry(&t, "blk.1.ffn_gate.weight", ENTRY_ROWS, &rows, 8);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_gate.weight");
    rows = (uint64_t)1 << 62;
    patch_entry(&t, "blk.1.ffn_gate.weight", ENTRY_ROWS, &rows, 8);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_gate.weight", "overflow");
    tiny_write_gguf(&t);
    patch_entry(&t, "blk.1.ffn_gate.weight", ENTRY_OFFSET, &offset, 8); /* two tensors in one place */
    REFUSE(&t, SETUN_ERROR_FORMAT, "overlaps");
    offset = (uint64_t)1 << 50;
    patch_entry(&t, "blk.1.ffn_gate.weight", ENTRY_OFFSET, &offset, 8);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.ffn_gate.weight", "file's end");
    tiny_find(&t, "blk.0.attn_k.weight")->left_out = true;
    tiny_write_gguf(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.0.attn_k.weight", "missing");
    tiny_end(&t);

    tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
    tiny_find(&t, "model.layers.1.mlp.up_proj.weight_scale")->left_out = true;
    tiny_write_huggingface(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "model.layers.1.mlp.up_proj.weight_scale", "missing");
    tiny_find(&t, "model.layers.1.mlp.up_proj.weight_scale")->left_out = false;
    tiny_tensor *x = tiny_find(&t, "model.layers.0.self_attn.q_proj.weight");
    x->shape[0] /= 2;
    x->bytes /= 2;
    tiny_write_huggingface(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "model.layers.0.self_attn.q_proj.weight", "[64, 128]", "[128, 128]");
    tiny_end(&t);
}

static void numbers(void **state) {
    (void)state;
    tiny t;
    good(&t);
    tiny_tensor *x = tiny_find(&t, "blk.1.attn_output.weight");
    float not_a_number = NAN;
    memcpy(x->data + x->bytes - 32, &not_a_number, 4);
    tiny_write_gguf(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.attn_output.weight", "scale");
    x = tiny_ternary(&t, x->name, SETUN_FORMAT_I2_S, TINY_WIDTH, TINY_WIDTH);
    x->data[7] |= 3;
    tiny_write_gguf(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "blk.1.attn_output.weight", "code 3");
    tiny_end(&t);

    tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
    x = tiny_find(&t, "model.layers.0.self_attn.v_proj.weight");
    x->data[5] = 0xff;
    tiny_write_huggingface(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "model.layers.0.self_attn.v_proj.weight", "3");
    x->data[5] = 0;
    x = tiny_find(&t, "model.layers.0.self_attn.v_proj.weight_scale");
    memcpy(x->data, &not_a_number, 4);
    tiny_write_huggingface(&t);
    REFUSE(&t, SETUN_ERROR_FORMAT, "model.layers.0.self_attn.v_proj.weight_scale", "scale");
    tiny_end(&t);
}

static void types(void **state) {
    (void)state;
    static const struct { uint32_t id; const char *word; } rows[] = {{38, "I2_S"}, {39, "I2_S"}, {23, "23"}, {4242, "4242"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        good(&t);
        tiny_write_gguf(&t);
        patch_entry(&t, "blk.0.ffn_up.weight", ENTRY_TYPE, &rows[i].id, 4);
        REFUSE(&t, SETUN_ERROR_UNSUPPORTED, "blk.0.ffn_up.weight", rows[i].word);
        tiny_end(&t);
    }
}

static void split_files(void **state) {
    (void)state;
    tiny t;
    good(&t);
    tiny_u32(&t, "split.count", 1); /* one file that says so */
    tiny_write_gguf(&t);
    setun_model *model;
    assert_int_equal(setun_model_open(context, t.path, NULL, &model), SETUN_OK);
    setun_model_close(model);
    tiny_u32(&t, "split.count", 3);
    tiny_u32(&t, "split.no", 0);
    tiny_write_gguf(&t);
    REFUSE(&t, SETUN_ERROR_UNSUPPORTED, "split.count", "3", "merge");
    tiny_u32(&t, "split.no", 2); /* later parts have no hyper-parameters: that is not what is wrong with them */
    tiny_without_key(&t, "general.architecture");
    tiny_write_gguf(&t);
    REFUSE(&t, SETUN_ERROR_UNSUPPORTED, "split.count", "3", "merge");
    tiny_end(&t);
}

/* ---- numbers that nobody means ---- */

static void absurd_hyper_parameters(void **state) {
    (void)state;
    static const struct { const char *key; uint32_t value; const char *word; } rows[] = {
        {"bitnet-b1.58.block_count", 0, "layers"}, {"bitnet-b1.58.block_count", 1u << 31, "block_count"}, {"bitnet-b1.58.block_count", 4097, "layers"}, {"bitnet-b1.58.block_count", 4096, "blk.2.attn_norm.weight"},
        {"bitnet-b1.58.embedding_length", 0, "width"}, {"bitnet-b1.58.embedding_length", 1u << 31, "embedding_length"}, {"bitnet-b1.58.embedding_length", 1u << 20, "head size"}, {"bitnet-b1.58.embedding_length", 1u << 12, "token_embd.weight"},
        {"bitnet-b1.58.feed_forward_length", 1u << 31, "feed_forward_length"}, {"bitnet-b1.58.feed_forward_length", 1u << 22, "ffn"},
        {"bitnet-b1.58.attention.head_count", 0, "heads"}, {"bitnet-b1.58.attention.head_count", UINT32_MAX, "head_count"}, {"bitnet-b1.58.attention.head_count", 8192, "head"},
        {"bitnet-b1.58.attention.head_count_kv", 3, "4 attention heads"}, {"bitnet-b1.58.attention.key_length", 8192, "attn_q.weight"}, {"bitnet-b1.58.attention.key_length", 31, "31"},
        {"bitnet-b1.58.vocab_size", 1u << 31, "vocab_size"}, {"bitnet-b1.58.vocab_size", 1u << 24, "token_embd.weight"}, {"bitnet-b1.58.vocab_size", (1u << 24) + 1, "vocabulary"},
        {"bitnet-b1.58.context_length", 0, "context"}, {"bitnet-b1.58.context_length", UINT32_MAX, "context_length"}, {"bitnet-b1.58.rope.dimension_count", 1u << 30, "rope"}, {"bitnet-b1.58.rope.dimension_count", 34, "rope"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        good(&t);
        tiny_u32(&t, rows[i].key, rows[i].value);
        tiny_write_gguf(&t);
        REFUSE(&t, SETUN_ERROR_FORMAT, rows[i].word);
        tiny_end(&t);
    }
    static const struct { const char *key; double value; } configs[] = {{"num_hidden_layers", 2147483648.0}, {"num_hidden_layers", 1e6}, {"hidden_size", 2147483648.0}, {"hidden_size", -64}, {"intermediate_size", 4194305.0},
        {"num_attention_heads", 0}, {"num_key_value_heads", 1e9}, {"vocab_size", 2147483648.0}, {"vocab_size", 1e15}, {"max_position_embeddings", 1e12}, {"head_dim", 1e6}, {"rms_norm_eps", -1}, {"rms_norm_eps", 1e300}};
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        tiny t;
        tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
        json_object_set_new(t.config, configs[i].key, json_real(configs[i].value));
        tiny_write_huggingface(&t);
        REFUSE(&t, SETUN_ERROR_FORMAT, "");
        tiny_end(&t);
    }
}

static void a_default_context_is_bounded(void **state) {
    (void)state;
    tiny t;
    good(&t);
    tiny_u32(&t, "bitnet-b1.58.context_length", 1u << 30);
    tiny_write_gguf(&t);
    setun_model *model;
    if (setun_model_open(context, t.path, NULL, &model) != SETUN_OK) fail_msg("%s", setun_error());
    setun_session *session;
    assert_int_equal(setun_session_create(model, NULL, &session), SETUN_OK);
    assert_int_equal(setun_session_context(session), 4096);
    setun_session_stats stats = {.size = sizeof stats};
    assert_int_equal(setun_session_get_stats(session, &stats), SETUN_OK);
    assert_true(stats.kv_bytes == (uint64_t)4096 * TINY_LAYERS * 2 * TINY_KV * TINY_HEAD * 2);
    setun_session_destroy(session);
    setun_model_close(model);
    tiny_end(&t);
}

/* The same files in a process that may not take much more memory than it has: a refusal, and never for want of memory. */
static void small_files_take_little_memory(void **state) {
#ifdef SANITIZED
    (void)state;
    print_message("skipped: sanitizers need the address space\n");
    skip();
#else
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r"); /* without it: a plain gigabyte */
    if (f) {
        if (fscanf(f, "%ld", &pages) != 1) pages = 0;
        fclose(f);
    }
    struct rlimit tight = before;
    tight.rlim_cur = pages ? (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (192u << 20) : (rlim_t)1 << 30;
    if (setrlimit(RLIMIT_AS, &tight)) {
        print_message("skipped: the address space cannot be limited here\n");
        skip();
    }
    void *volatile much = malloc((size_t)1 << 30); /* does the limit hold? volatile: clang would drop the pair */
    free(much);
    assert_null(much);
    a_good_file_is_good(state);
    a_default_context_is_bounded(state);
    absurd_hyper_parameters(state);
    tensors(state);

    /* counts in the header that no file of this size can hold */
    for (size_t at = 8; at <= 16; at += 8) {
        static const uint64_t counts[] = {1u << 20, INT32_MAX, (uint64_t)1 << 40, UINT64_MAX};
        for (size_t i = 0; i < 4; i++) {
            tiny t;
            good(&t);
            tiny_write_gguf(&t);
            f = fopen(t.path, "r+b");
            assert_non_null(f);
            fseek(f, (long)at, SEEK_SET);
            fwrite(&counts[i], 8, 1, f);
            fclose(f);
            REFUSE(&t, SETUN_ERROR_FORMAT, "count");
            tiny_end(&t);
        }
    }

    /* a session that the user asks too much of: out of memory, and everything goes on */
    tiny t;
    good(&t);
    tiny_write_gguf(&t);
    setun_model *model;
    assert_int_equal(setun_model_open(context, t.path, NULL, &model), SETUN_OK);
    int64_t live = setun_alloc_live();
    setun_session *session;
    for (int huge = 1 << 22; huge > 0; huge = huge < 1 << 30 ? huge * 2 : huge == INT32_MAX ? 0 : INT32_MAX) {
        setun_session_options options = {.size = sizeof options, .context = huge};
        setun_status status = setun_session_create(model, &options, &session);
        if (status != SETUN_ERROR_MEMORY) fail_msg("context %d: %s: %s", huge, setun_status_name(status), status ? setun_error() : "");
        assert_null(session);
    }
    assert_true(setun_alloc_live() - live <= 64); /* what the model keeps for its next session */
    assert_int_equal(setun_session_create(model, NULL, &session), SETUN_OK);
    setun_session_destroy(session);
    setun_model_close(model);
    tiny_end(&t);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
#endif
}

/* ---- cut files ---- */

/* Cuts one file at every 64th of its length and gives it back whole. */
static void cut(const tiny *t, const char *name) {
    char path[160];
    struct stat about;
    snprintf(path, sizeof path, "%s/%s", t->folder, name);
    assert_int_equal(stat(path, &about), 0);
    char *whole = malloc((size_t)about.st_size);
    FILE *f = fopen(path, "rb");
    assert_true(whole && f);
    assert_int_equal(fread(whole, 1, (size_t)about.st_size, f), about.st_size);
    fclose(f);
    for (int part = 0; part <= 64; part++) {
        f = fopen(path, "wb");
        assert_non_null(f);
        fwrite(whole, 1, (size_t)(about.st_size * part / 64), f);
        fclose(f);
        if (part < 64) REFUSE(t, SETUN_ERROR_FORMAT, name);
    }
    free(whole);
    setun_model *model;
    assert_int_equal(setun_model_open(context, t->path, NULL, &model), SETUN_OK);
    setun_model_close(model);
}

static void write_text(const tiny *t, const char *name, const char *text) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", t->folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static void remove_text(const tiny *t, const char *name) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", t->folder, name);
    unlink(path);
}

#define TOKENIZER(vocabulary, more) "{\"model\": {\"type\": \"BPE\", \"vocab\": " vocabulary ", \"merges\": []}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"}" more "}"

static void cut_files(void **state) {
    (void)state;
    tiny t;
    good(&t);
    tiny_write_gguf(&t);
    cut(&t, "model.gguf");
    tiny_end(&t);
    tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
    tiny_write_huggingface(&t);
    write_text(&t, "tokenizer.json", TOKENIZER("{\"a\": 0, \"b\": 1, \"c\": 2}", ""));
    cut(&t, "model.safetensors");
    cut(&t, "config.json");
    cut(&t, "tokenizer.json");
    remove_text(&t, "tokenizer.json");
    tiny_end(&t);
}

/* ---- tokenizers ---- */

static void broken_tokenizers(void **state) {
    (void)state;
    static const struct { const char *text; setun_status status; const char *words[3]; } rows[] = {
        {TOKENIZER("{\"a\": 0, \"b\": 1, \"d\": 3}", ""), SETUN_ERROR_FORMAT, {"'d'", "id 3", "missing"}},
        {TOKENIZER("{\"a\": 0, \"b\": 0}", ""), SETUN_ERROR_FORMAT, {"id 0", "'a'", "'b'"}},
        {TOKENIZER("{\"a\": -1}", ""), SETUN_ERROR_FORMAT, {"'a'", "id"}},
        {TOKENIZER("{\"a\": 4294967296}", ""), SETUN_ERROR_FORMAT, {"'a'", "4294967296"}},
        {TOKENIZER("{\"a\": 0}", ", \"added_tokens\": [{\"id\": 2147483647, \"content\": \"<s>\", \"special\": true}]"), SETUN_ERROR_FORMAT, {"<s>", "2147483647"}},
        {TOKENIZER("{\"a\": 0, \"b\": 1}", ", \"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true}]"), SETUN_ERROR_FORMAT, {"id 1", "<s>"}},
        {TOKENIZER("{}", ""), SETUN_ERROR_FORMAT, {"vocabulary"}},
        {TOKENIZER("[1, 2]", ""), SETUN_ERROR_FORMAT, {"vocab"}},
        {"[]", SETUN_ERROR_FORMAT, {"tokenizer.json"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tiny t;
        tiny_huggingface(&t, "BitNetForCausalLM", SETUN_FAMILY_BITNET, true);
        tiny_write_huggingface(&t);
        write_text(&t, "tokenizer.json", rows[i].text);
        REFUSE(&t, rows[i].status, rows[i].words[0], rows[i].words[1], rows[i].words[1] ? rows[i].words[2] : NULL);
        setun_tokenizer *tokenizer;
        assert_int_equal(setun_tokenizer_open(t.folder, &tokenizer), rows[i].status);
        assert_null(tokenizer);
        expect_words("tokenizer", setun_error(), (const char *const[]){rows[i].words[0], rows[i].words[1], NULL});
        remove_text(&t, "tokenizer.json");
        tiny_end(&t);
    }
    /* GGUF: lists that do not go together */
    static const char *const tokens[] = {"<unk>", "a", "b", "ab"};
    static const int32_t kinds[] = {2, 1, 1}, unknown_kind[] = {2, 1, 1, 9};
    for (int way = 0; way < 4; way++) {
        tiny t;
        good(&t);
        tiny_text(&t, "tokenizer.ggml.model", "gpt2");
        tiny_text(&t, "tokenizer.ggml.pre", "gpt-2");
        tiny_strings(&t, "tokenizer.ggml.tokens", 4, tokens);
        static const char *const merges[] = {"a b"}, *const bad_merges[] = {"a c"}, *const twice[] = {"<unk>", "a", "b", "a"};
        tiny_strings(&t, "tokenizer.ggml.merges", 1, merges);
        tiny_integers(&t, "tokenizer.ggml.token_type", 3 + (way != 0), way == 0 ? kinds : unknown_kind);
        const char *word = "tokenizer.ggml.token_type";
        if (way >= 2) tiny_without_key(&t, "tokenizer.ggml.token_type");
        if (way == 2) {
            tiny_strings(&t, "tokenizer.ggml.merges", 1, bad_merges);
            word = "merge";
        }
        if (way == 3) {
            tiny_strings(&t, "tokenizer.ggml.tokens", 4, twice);
            word = "twice";
        }
        tiny_write_gguf(&t);
        REFUSE(&t, SETUN_ERROR_FORMAT, word);
        tiny_end(&t);
    }
}

/* A file's own words can hold anything; what is shown to people must not. */
static void messages_are_printable(void **state) {
    (void)state;
    static const char *const names[] = {"\x1b[2J\x1b[31mred", "bell\a", "c1 \xc2\x9b\x33\x31m", "broken \xff\xfe", "cut \xe2\x82"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        tiny t;
        good(&t);
        tiny_text(&t, "general.architecture", names[i]);
        tiny_write_gguf(&t);
        setun_model *model;
        assert_int_equal(setun_model_open(context, t.path, NULL, &model), SETUN_ERROR_UNSUPPORTED);
        const char *text = setun_error();
        json_t *json = json_string(text); /* NULL where it is no UTF-8 */
        assert_non_null(json);
        json_decref(json);
        for (const unsigned char *p = (const unsigned char *)text; *p; p++) assert_true(*p >= 0x20 && *p != 0x7f && !(p[0] == 0xc2 && p[1] < 0xa0));
        char *report;
        assert_int_equal(setun_file_inspect(context, t.path, NULL, false, &report), SETUN_OK);
        json = json_loads(report, 0, NULL);
        assert_non_null(json);
        for (const unsigned char *p = (const unsigned char *)report; *p; p++) assert_true(*p >= 0x20 || *p == '\n');
        json_decref(json);
        setun_free(report);
        tiny_end(&t);
    }
}

static int set_up(void **state) {
    (void)state;
    setun_context_options options = {.size = sizeof options, .threads = 2};
    return setun_context_create(&options, &context) == SETUN_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    setun_context_destroy(context);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_is_good), cmocka_unit_test(tensors), cmocka_unit_test(numbers), cmocka_unit_test(types), cmocka_unit_test(split_files), cmocka_unit_test(absurd_hyper_parameters),
        cmocka_unit_test(a_default_context_is_bounded), cmocka_unit_test(small_files_take_little_memory), cmocka_unit_test(cut_files), cmocka_unit_test(broken_tokenizers), cmocka_unit_test(messages_are_printable),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
