/*
 * test_weights.c - where weights lie does not matter: mapped, packed at two bits, as trits, from a file that Setun packed; on every ISA and with
 * any number of threads the logits are the same bits. And what a broken packed file is answered.
 */
#include "integration/support.h"

#include "backend/cpu/kernels.h"
#include <string.h>

enum { TOKENS = 11 };
static const int32_t ids[TOKENS] = {1, 504, 2365, 282, 4649, 314, 260, 28, 90, 1000, 7};
static float *expected;
static int vocabulary;
static char folder[64], packed[96], broken[96];

static setun_status open_with(setun_context *context, const char *path, const char *weights, setun_model **out)
{
    setun_model_options options = {.size = sizeof options, .weights = weights};
    return setun_model_open(context, path, &options, out);
}

/* A prompt of ten tokens, then one: both the kernels for prompts and those for one token. */
static void logits_of(setun_model *model, bool floats, float *out)
{
    setun_session_options options = {.size = sizeof options, .context = 32, .no_activation_quantisation = floats};
    setun_session *s;
    EXPECT_OK(setun_session_create(model, &options, &s));
    EXPECT_OK(setun_session_feed(s, ids, TOKENS - 1));
    EXPECT_OK(setun_session_feed(s, ids + TOKENS - 1, 1));
    const float *logits = setun_session_logits(s, &vocabulary);
    assert_non_null(logits);
    memcpy(out, logits, (size_t)vocabulary * sizeof *out);
    setun_session_destroy(s);
}

static void expect_same(const char *path, const char *weights, int threads, const char *isa)
{
    setun_context *context = test_context(threads, isa);
    setun_model *model;
    EXPECT_OK(open_with(context, path, weights, &model));
    float *got = malloc((size_t)vocabulary * sizeof *got);
    logits_of(model, false, got);
    if (memcmp(got, expected, (size_t)vocabulary * sizeof *got)) fail_msg("%s, weights %s, %d threads, isa %s: other logits", path, weights, threads, isa ? isa : "best");
    free(got);
    setun_model_close(model);
    setun_context_destroy(context);
}

static int setup(void **state)
{
    (void)state;
    setun_context *context = test_context(1, NULL);
    setun_model *model;
    EXPECT_OK(open_with(context, SETUN_TEST_MODEL, "map", &model));
    setun_model_info info = {.size = sizeof info};
    EXPECT_OK(setun_model_get_info(model, &info));
    expected = malloc((size_t)info.vocabulary * sizeof *expected);
    logits_of(model, false, expected);
    setun_model_close(model);
    strcpy(folder, "/tmp/setun-weights-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(packed, sizeof packed, "%s/packed.gguf", folder);
    snprintf(broken, sizeof broken, "%s/broken.gguf", folder);
    setun_convert_options options = {.size = sizeof options, .ternary = "packed"};
    char *report;
    EXPECT_OK(setun_convert(context, SETUN_TEST_MODEL, packed, &options, &report));
    json_t *root = json_loads(report, 0, NULL);
    assert_true(json_is_true(json_object_get(root, "exact")));
    json_decref(root);
    setun_free(report);
    setun_context_destroy(context);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(expected);
    unlink(packed);
    unlink(broken);
    return rmdir(folder);
}

static void ways_do_not_matter(void **state)
{
    (void)state;
    static const char *const ways[] = {"auto", "map", "pack"};
    for (int f = 0; f < 2; f++)
        for (int w = 0; w < 3; w++)
            for (int i = 1; i < setun_isa_count(); i++) /* ref takes long; it agrees by the tests of kernels */
                if (setun_isa_available(i)) expect_same(f ? packed : SETUN_TEST_MODEL, ways[w], 1 + (w + i) % 3, setun_isa_name(i));
}

/* Weights of one model in a form that only int8 inputs can use, and then as floats want them; and the other way round. */
static void int8_and_float_inputs_of_one_model(void **state)
{
    (void)state;
    for (int order = 0; order < 2; order++) {
        setun_context *context = test_context(1, NULL);
        setun_model *fresh, *model;
        EXPECT_OK(open_with(context, packed, "auto", &fresh));
        EXPECT_OK(open_with(context, packed, "auto", &model));
        float *floats = malloc((size_t)vocabulary * sizeof *floats), *got = malloc((size_t)vocabulary * sizeof *got);
        logits_of(fresh, true, floats);
        assert_true(memcmp(floats, expected, (size_t)vocabulary * sizeof *got) != 0);
        for (int i = 0; i < 3; i++) {
            logits_of(model, (i + order) % 2, got);
            assert_memory_equal(got, (i + order) % 2 ? floats : expected, (size_t)vocabulary * sizeof *got);
        }
        free(floats);
        free(got);
        setun_model_close(fresh);
        setun_model_close(model);
        setun_context_destroy(context);
    }
}

static json_t *explained(const char *path, const char *weights)
{
    setun_context *context = test_context(1, NULL);
    setun_model *model;
    EXPECT_OK(open_with(context, path, weights, &model));
    setun_explain_options options = {.size = sizeof options, .json = true, .session = {.size = sizeof options.session, .context = 32}};
    char *text;
    EXPECT_OK(setun_model_explain(model, &options, &text));
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    setun_free(text);
    setun_model_close(model);
    setun_context_destroy(context);
    return root;
}

/* The origin of a projection's weight; its layout must fit, and a reason be given. */
static const char *origin_of(const json_t *root, const char *name, const char **layout)
{
    size_t i, j;
    json_t *step, *weight;
    json_array_foreach(json_object_get(json_object_get(root, "plan"), "steps"), i, step)
        json_array_foreach(json_object_get(step, "weights"), j, weight)
            if (!strcmp(json_string_value(json_object_get(weight, "name")), name)) {
                assert_true(json_string_length(json_object_get(weight, "reason")) > 5);
                *layout = json_string_value(json_object_get(weight, "layout"));
                return json_string_value(json_object_get(weight, "origin"));
            }
    fail_msg("no weight '%s'", name);
    return NULL;
}

static void explain_says_where_and_why(void **state)
{
    (void)state;
    const char *layout, *name = "blk.3.ffn_down.weight";
    json_t *root = explained(SETUN_TEST_MODEL, "auto");
    assert_string_equal(origin_of(root, name, &layout), "packed");
    assert_true(!strcmp(layout, "packed-2bit") || !strcmp(layout, "packed-trits"));
    json_decref(root);
    root = explained(packed, "auto"); /* used as it lies wherever the machine reads trits well */
    const char *origin = origin_of(root, name, &layout);
    assert_string_equal(origin, strcmp(layout, "packed-trits") ? "packed" : "mapped");
    bool reads_trits = strcmp(layout, "packed-trits") == 0;
    json_decref(root);
    root = explained(packed, "pack");
    assert_string_equal(origin_of(root, name, &layout), reads_trits ? "copied" : "packed");
    json_decref(root);
}

/* Ten tokens, picked by way of the head's small copy; what the session then counts. */
static void picked(const char *path, int32_t out[10], setun_session_stats *stats)
{
    setun_context *context = test_context(2, NULL);
    setun_model *model;
    EXPECT_OK(open_with(context, path, NULL, &model));
    setun_session_options options = {.size = sizeof options, .context = 32};
    setun_session *s;
    setun_sampler *sampler;
    EXPECT_OK(setun_session_create(model, &options, &s));
    EXPECT_OK(setun_sampler_create(NULL, vocabulary, &sampler));
    EXPECT_OK(setun_session_feed(s, ids, TOKENS));
    for (int i = 0; i < 10; i++) {
        EXPECT_OK(setun_session_pick(s, sampler, &out[i]));
        EXPECT_OK(setun_session_feed(s, &out[i], 1));
    }
    *stats = (setun_session_stats){.size = sizeof *stats};
    EXPECT_OK(setun_session_get_stats(s, stats));
    setun_sampler_destroy(sampler);
    setun_session_destroy(s);
    setun_model_close(model);
    setun_context_destroy(context);
}

static bool has_planes(const char *path)
{
    setun_file *file;
    EXPECT_OK(setun_file_open(path, NULL, &file));
    int count = 0;
    for (int i = 0; i < setun_file_tensor_count(file); i++) count += setun_is_shortlist_name(setun_file_tensor_at(file, i)->name);
    setun_file_close(file);
    assert_true(count == 0 || count == 3);
    return count == 3;
}

static void the_heads_copy_is_in_the_file(void **state)
{
    (void)state;
    int32_t plain[10], from_file[10];
    setun_session_stats made, found;
    assert_true(has_planes(packed) && !has_planes(SETUN_TEST_MODEL));
    picked(SETUN_TEST_MODEL, plain, &made);
    picked(packed, from_file, &found);
    assert_memory_equal(plain, from_file, sizeof plain);
    assert_true(made.head_scored > 0 && made.head_scored == found.head_scored && made.head_rescored == found.head_rescored && made.head_bytes == found.head_bytes);
    assert_true(made.packed_bytes > made.head_bytes && found.packed_bytes + found.head_bytes / 2 < made.packed_bytes);
    /* other files don't get it, nor does one whose head is not these bytes */
    setun_context *context = test_context(1, NULL);
    setun_convert_options options = {.size = sizeof options, .ternary = "iq1_bn", .force = true};
    EXPECT_OK(setun_convert(context, packed, broken, &options, NULL));
    assert_false(has_planes(broken));
    options.ternary = "packed";
    options.embedding = "f16";
    EXPECT_OK(setun_convert(context, SETUN_TEST_MODEL, broken, &options, NULL));
    assert_false(has_planes(broken));
    options.embedding = NULL;
    EXPECT_OK(setun_convert(context, packed, broken, &options, NULL)); /* packed once more: the same file */
    assert_true(has_planes(broken));
    picked(broken, from_file, &found);
    assert_memory_equal(plain, from_file, sizeof plain);
    setun_context_destroy(context);
}

/* The packed file with `count` bytes at `at` replaced. */
static void break_at(long at, const void *bytes, size_t count)
{
    FILE *in = fopen(packed, "rb"), *out = fopen(broken, "wb");
    assert_true(in && out);
    static char buffer[1 << 16];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in)) > 0;) assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    assert_int_equal(fseek(out, at, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, count, out), count);
    fclose(out);
}

/* A file whose copy of the head has the bounds of an older layout: it is not used, the same tokens are picked. */
static void an_older_copy(void **state)
{
    (void)state;
    setun_file *file;
    EXPECT_OK(setun_file_open(packed, NULL, &file));
    const setun_file_tensor *bounds = setun_file_find_tensor(file, SETUN_SHORTLIST_SCALES);
    assert_non_null(bounds);
    const uint64_t bytes = bounds->bytes, older = bytes - 2 * (((uint64_t)vocabulary * 4 + 63) / 64 * 64);
    const uint8_t *begin = bounds->data - bounds->offset;
    long at = -1; /* of the tensor's dimension: its header has the name, how many there are, then each */
    for (long i = 0; at < 0 && i < (long)bounds->offset; i++)
        if (!memcmp(begin + i, SETUN_SHORTLIST_SCALES, strlen(SETUN_SHORTLIST_SCALES))) at = i + (long)strlen(SETUN_SHORTLIST_SCALES) + 4;
    assert_true(at > 0 && !memcmp(begin + at, &bytes, 8));
    setun_file_close(file);
    uint8_t value[8];
    for (int i = 0; i < 8; i++) value[i] = (uint8_t)(older >> 8 * i);
    break_at(at, value, 8);
    int32_t plain[10], without[10];
    setun_session_stats made, found;
    picked(packed, plain, &found);
    picked(broken, without, &made);
    assert_memory_equal(plain, without, sizeof plain);
    assert_true(made.packed_bytes > found.packed_bytes + made.head_bytes / 2); /* made anew, in memory */
}

static void broken_files(void **state)
{
    (void)state;
    setun_context *context = test_context(1, NULL);
    setun_file *file;
    setun_model *model = NULL;
    EXPECT_OK(setun_file_open(packed, NULL, &file));
    const setun_file_tensor *t = setun_file_find_tensor(file, "blk.7.attn_k.weight");
    const setun_file_tensor *bounds = setun_file_find_tensor(file, SETUN_SHORTLIST_SCALES);
    const setun_value *version = setun_file_find_value(file, SETUN_PACKED_KEY);
    assert_true(t && bounds && version && t->format == SETUN_FORMAT_TRITS && t->offset % 64 == 0);
    assert_int_equal(setun_load_u32(version->data), SETUN_PACKED_VERSION);
    const long codes = (long)t->offset, at = (long)(version->data - (t->data - t->offset)), scales = codes + (long)(setun_trits_triples(t->shape[0]) * setun_trits_triple_bytes(t->shape[1]));
    const long last_norm = (long)(bounds->offset + bounds->bytes - 64);
    setun_file_close(file);
    break_at(codes + 640, (const uint8_t[]){0xff}, 1); /* the first triple but one */
    assert_int_equal(open_with(context, broken, "map", &model), SETUN_ERROR_FORMAT);
    assert_null(model);
    assert_non_null(strstr(setun_error(), "blk.7.attn_k.weight"));
    /* a large file's codes are checked by the first run, or before */
    EXPECT_OK(open_with(context, broken, NULL, &model));
    setun_session *s = NULL;
    setun_session_options options = {.size = sizeof options, .context = 32};
    setun_status status = setun_session_create(model, &options, &s);
    if (status == SETUN_OK) status = setun_session_feed(s, ids, TOKENS);
    assert_int_equal(status, SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "blk.7.attn_k.weight"));
    if (s) setun_session_destroy(s);
    setun_model_close(model);
    s = NULL;
    model = NULL;
    break_at(scales + 8, (const uint8_t[]){0, 0, 0x80, 0xbf}, 4); /* -1 */
    assert_int_equal(open_with(context, broken, NULL, &model), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "row 2"));
    break_at(at, (const uint8_t[]){2, 0, 0, 0}, 4);
    assert_int_equal(open_with(context, broken, NULL, &model), SETUN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(setun_error(), "version 2"));
    break_at(last_norm, (const uint8_t[]){0, 0, 0xc0, 0xff}, 4); /* a NaN: found when a session wants the copy */
    EXPECT_OK(open_with(context, broken, NULL, &model));
    assert_int_equal(setun_session_create(model, &options, &s), SETUN_ERROR_FORMAT);
    assert_null(s);
    assert_non_null(strstr(setun_error(), SETUN_SHORTLIST_SCALES));
    setun_model_close(model);
    assert_int_equal(open_with(context, packed, "elsewhere", &model), SETUN_ERROR_ARGUMENT);
    assert_non_null(strstr(setun_error(), "auto, map, pack"));
    setun_context_destroy(context);
}

/* Whatever allocation fails while the weights are packed: an error, and nothing is left behind. */
static void failing_allocations(void **state)
{
    (void)state;
    setun_context *context = test_context(1, NULL);
    setun_session_options options = {.size = sizeof options, .context = 32};
    setun_model *model;
    EXPECT_OK(open_with(context, SETUN_TEST_MODEL, "pack", &model));
    setun_session *s = NULL;
    uint64_t before = setun_alloc_count();
    EXPECT_OK(setun_session_create(model, &options, &s));
    uint64_t needed = setun_alloc_count() - before;
    setun_session_destroy(s);
    setun_model_close(model);
    for (uint64_t n = 1; n < needed; n += 1 + n / 3) {
        int64_t live = setun_alloc_live();
        EXPECT_OK(open_with(context, SETUN_TEST_MODEL, "pack", &model));
        setun_alloc_fail_at(n);
        setun_status status = setun_session_create(model, &options, &s);
        setun_alloc_fail_at(0);
        assert_int_equal(status, SETUN_ERROR_MEMORY);
        assert_null(s);
        EXPECT_OK(setun_session_create(model, &options, &s)); /* what was packed before it failed is there; the rest is packed now */
        setun_session_destroy(s);
        setun_model_close(model);
        assert_int_equal(setun_alloc_live(), live);
    }
    setun_context_destroy(context);
}

int main(void)
{
    if (!test_model_exists()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ways_do_not_matter), cmocka_unit_test(int8_and_float_inputs_of_one_model), cmocka_unit_test(explain_says_where_and_why),
        cmocka_unit_test(the_heads_copy_is_in_the_file),
        cmocka_unit_test(an_older_copy), cmocka_unit_test(broken_files), cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
