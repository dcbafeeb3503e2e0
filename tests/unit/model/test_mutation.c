/*
 * test_mutation.c - files and configs with random damage, loaded and inspected: a message or a model, never a crash, a hang,
 * a leak or a read out of bounds (the sanitizer builds see those). The seed is printed; SETUN_TEST_SEED sets it.
 */
#include "tiny.h"
#include <time.h>

static uint64_t seed;
static uint64_t next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static char *slurp(const char *path, size_t *length) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    struct stat about;
    assert_int_equal(fstat(fileno(f), &about), 0);
    char *bytes = malloc((size_t)about.st_size + 1);
    assert_non_null(bytes);
    *length = fread(bytes, 1, (size_t)about.st_size, f);
    fclose(f);
    return bytes;
}

static void spill(const char *path, const char *bytes, size_t length) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, length, f), length);
    fclose(f);
}

/* Both must end well; what loads must be whole. */
static void try(const char *path, int *loaded) {
    int64_t live = setun_alloc_live();
    setun_model *m;
    char *json;
    if (setun_model_load(&tiny_context, path, NULL, &m) == SETUN_OK) {
        (*loaded)++;
        assert_int_equal(m->description.h.heads % m->description.h.kv_heads, 0);
        for (int i = 0; i < m->description.h.layers; i++) assert_non_null(m->description.layers[i].weight[SETUN_ROLE_DOWN]);
        setun_model_destroy(m);
    } else {
        assert_true(setun_error()[0] != 0);
    }
    if (setun_file_inspect(&tiny_context, path, NULL, true, &json) == SETUN_OK) {
        json_error_t error;
        json_t *root = json_loads(json, JSON_ALLOW_NUL, &error); /* a damaged name may hold \u0000: valid JSON */
        if (!root) fail_msg("%s in %s", error.text, json);
        json_decref(root);
        setun_free(json);
    }
    assert_int_equal(setun_alloc_live(), live);
}

static void damaged_gguf_files(void **state) {
    (void)state;
    static const setun_format formats[] = {SETUN_FORMAT_I2_S, SETUN_FORMAT_PQ2_0};
    int loaded = 0;
    for (int f = 0; f < 2; f++) {
        tiny t;
        tiny_gguf(&t, f ? "qwen3" : "gemma3", f ? SETUN_FAMILY_QWEN3 : SETUN_FAMILY_GEMMA3, formats[f]);
        tiny_u32(&t, f ? "prism.hadamard.version" : "gemma3.attention.sliding_window", 1);
        tiny_write_gguf(&t);
        size_t length;
        char *good = slurp(t.path, &length), *bad = malloc(length);
        assert_non_null(bad);
        for (int i = 0; i < 400; i++) {
            memcpy(bad, good, length);
            /* mostly in the header, where the numbers are */
            for (int k = 1 + (int)(next() % 3); k > 0; k--) bad[next() % (next() % 8 ? 4600 : length)] = (char)(next() % 4 ? next() : next() % 4);
            spill(t.path, bad, next() % 16 ? length : next() % length);
            try(t.path, &loaded);
        }
        free(good);
        free(bad);
        tiny_end(&t);
    }
    print_message("%d of 800 damaged GGUF files still load\n", loaded);
}

/* Replaces a random member's value by something odd. */
static void damage(json_t *object) {
    size_t n = json_object_size(object), at = n ? next() % n : 0;
    void *i = json_object_iter(object);
    while (i && at--) i = json_object_iter_next(object, i);
    if (!i) return;
    json_t *value = json_object_iter_value(i);
    if (json_is_object(value) && next() % 4) {
        damage(value);
        return;
    }
    static const double reals[] = {0.5, -1, 1e300, 1e-300, 3.0, 4294967296.0};
    static const json_int_t integers[] = {0, 1, -1, 2, 3, 7, 127, 2147483647, -2147483648LL, 4294967296, INT64_MAX, INT64_MIN};
    json_t *odd;
    switch (next() % 7) {
    case 0: odd = json_integer(integers[next() % (sizeof integers / sizeof integers[0])]); break;
    case 1: odd = json_real(reals[next() % (sizeof reals / sizeof reals[0])]); break;
    case 2: odd = json_string(next() % 2 ? "" : "yarn"); break;
    case 3: odd = json_pack("[s,i,n]", "full_attention", 3); break;
    case 4: odd = json_null(); break;
    case 5: odd = json_boolean(next() % 2); break;
    default: odd = json_pack("{s:s, s:f, s:[f]}", "rope_type", "longrope", "factor", 2.0, "short_factor", 1.0); break;
    }
    json_object_iter_set_new(object, i, odd);
}

static void damaged_configs(void **state) {
    (void)state;
    static const struct { const char *architecture; setun_family family; } rows[] = {{"BitNetForCausalLM", SETUN_FAMILY_BITNET}, {"Gemma3TextModel", SETUN_FAMILY_GEMMA3}, {"MiniCPMForCausalLM", SETUN_FAMILY_MINICPM}};
    int loaded = 0;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        tiny t;
        tiny_huggingface(&t, rows[r].architecture, rows[r].family, true);
        json_object_update_new(t.config, json_pack("{s:{s:s, s:f, s:f, s:f, s:i}, s:[s,s], s:f, s:i, s:f, s:i, s:i, s:i}", "rope_parameters", "rope_type", "llama3", "factor", 8.0, "low_freq_factor", 1.0, "high_freq_factor",
            4.0, "original_max_position_embeddings", 32, "layer_types", "full_attention", "full_attention", "rope_theta", 10000.0, "scale_emb", 12, "scale_depth", 1.4, "dim_model_base", 64, "sliding_window", 8,
            "query_pre_attn_scalar", 32));
        if (rows[r].family == SETUN_FAMILY_GEMMA3) json_object_del(t.config, "rope_parameters");
        tiny_write_huggingface(&t);
        setun_model_destroy(tiny_load(&t));
        json_t *good = json_deep_copy(t.config);
        for (int i = 0; i < 200; i++) {
            json_decref(t.config);
            t.config = json_deep_copy(good);
            for (int k = 1 + (int)(next() % 2); k > 0; k--) damage(t.config);
            tiny_write_config(&t);
            try(t.path, &loaded);
        }
        json_decref(good);
        tiny_end(&t);
    }
    print_message("%d of 600 damaged configs still load\n", loaded);
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
    if (!seed) seed = 1;
    print_message("SETUN_TEST_SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(damaged_gguf_files), cmocka_unit_test(damaged_configs)};
    return cmocka_run_group_tests(tests, tiny_context_make, tiny_context_end);
}
