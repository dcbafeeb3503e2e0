/*
 * test_families.c - small random models of every family against logits that transformers computed in float32
 * (tests/golden/families, made by tools/make_family_models.py). Through the public API only.
 *
 * With activation rounding off the arithmetic is the same up to the order of float sums: relative error <= 1e-5. With it
 * on, the int8 values of an activation may differ by one where the reference lies within float noise of a tie, and such a
 * flip moves the logits by up to about a percent here. The bound is half of what rounding as a whole does to the family's
 * logits (expected.json: "rounding", 4e-3 to 2e-2), so a run that does not round fails; and at least half of the families
 * must have no flip at all (<= 1e-4), so that a systematic difference cannot hide behind the bound.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "setun/setun.h"

#define OFF_BOUND 1e-5
#define ON_SAME 1e-4

static const char *const families[] = {"bitnet_packed", "bitnet_online", "bitnet_1bitllm", "llama_bitnet", "falcon3", "llama_sub_norm", "trilm", "bonsai_mlx", "qwen2_bitnet",
    "embedding_qwen3", "embedding_gemma3", "minicpm4", "rotated"};

typedef struct expected {
    json_t *json;
    float *values;
    size_t count;
    int32_t ids[64];
    size_t tokens;
    int vocabulary;
} expected;

typedef struct state { setun_context *context; int rounded, same; } state;

static void family_path(const char *family, const char *file, char *out, size_t size) { snprintf(out, size, "%s/families/%s%s%s", SETUN_TEST_GOLDEN, family, file[0] ? "/" : "", file); }

static void load_expected(const char *family, expected *e) {
    char path[1024];
    memset(e, 0, sizeof *e);
    family_path(family, "expected.json", path, sizeof path);
    json_error_t error;
    e->json = json_load_file(path, 0, &error);
    if (!e->json) fail_msg("%s: %s", path, error.text);
    json_t *ids = json_object_get(e->json, "ids");
    e->tokens = json_array_size(ids);
    assert_in_range(e->tokens, 1, 64);
    for (size_t i = 0; i < e->tokens; i++) e->ids[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    e->vocabulary = (int)json_integer_value(json_object_get(e->json, "vocabulary"));
    family_path(family, "expected.bin", path, sizeof path);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    struct stat about;
    assert_int_equal(fstat(fileno(f), &about), 0);
    e->count = (size_t)about.st_size / sizeof(float);
    e->values = malloc((size_t)about.st_size);
    assert_non_null(e->values);
    assert_int_equal(fread(e->values, sizeof(float), e->count, f), e->count);
    fclose(f);
}

/* Where a block of the expected numbers begins, or NULL where the family has none. */
static const float *block(const expected *e, const char *name, size_t count) {
    const json_t *b = json_object_get(e->json, name);
    if (!b) return NULL;
    size_t first = (size_t)json_integer_value(json_object_get(b, "offset")) / sizeof(float);
    assert_true(first + count <= e->count);
    return e->values + first;
}

static double relative_error(const float *got, const float *want, size_t count) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    return sqrt(difference / size);
}

static setun_model *open_family(const state *s, const char *family) {
    char path[1024];
    struct stat about;
    setun_model *model;
    family_path(family, "model.gguf", path, sizeof path);
    if (stat(path, &about) != 0) family_path(family, "", path, sizeof path);
    setun_status status = setun_model_open(s->context, path, NULL, &model);
    if (status != SETUN_OK) fail_msg("%s: %s", family, setun_error());
    return model;
}

typedef struct gathered { float *logits; int vocabulary; } gathered;

static bool gather(void *user, size_t index, const float *logits, int vocabulary) {
    gathered *g = user;
    assert_int_equal(vocabulary, g->vocabulary);
    memcpy(g->logits + index * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *logits);
    return true;
}

/* All tokens at once, or one by one: both must give the reference's logits. */
static void compute(setun_model *model, const char *family, const expected *e, bool rounding, bool fusion, bool one_by_one, float *out) {
    setun_session_options options = {.size = sizeof options, .context = 32, .kv_type = "f32", .no_activation_quantisation = !rounding, .no_fusion = !fusion};
    setun_session *session;
    if (setun_session_create(model, &options, &session) != SETUN_OK) fail_msg("%s: %s", family, setun_error());
    gathered g = {out, e->vocabulary};
    for (size_t i = 0; i < e->tokens; i += one_by_one ? 1 : e->tokens) {
        g.logits = out + i * (size_t)e->vocabulary;
        if (setun_session_feed_all(session, e->ids + i, one_by_one ? 1 : e->tokens, gather, &g) != SETUN_OK) fail_msg("%s: %s", family, setun_error());
    }
    setun_session_destroy(session);
}

static void check_family(state *s, const char *family) {
    expected e;
    load_expected(family, &e);
    size_t count = e.tokens * (size_t)e.vocabulary;
    const float *off = block(&e, "off", count), *on = block(&e, "on", count);
    assert_non_null(off);
    setun_model *model = open_family(s, family);
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    assert_int_equal(info.vocabulary, e.vocabulary);
    double on_bound = json_number_value(json_object_get(json_object_get(e.json, "on"), "rounding")) / 2;
    float *got = malloc(count * sizeof *got);
    assert_non_null(got);
    for (int way = 0; way < 4; way++) {
        bool fusion = !(way & 1), one_by_one = way & 2;
        compute(model, family, &e, false, fusion, one_by_one, got);
        double error = relative_error(got, off, count);
        print_message("%-18s rounding off, fusion %s, %s: %.2e\n", family, fusion ? "on " : "off", one_by_one ? "one by one" : "at once   ", error);
        if (!(error <= OFF_BOUND)) fail_msg("%s: relative error %.3e", family, error);
        if (!on) continue;
        compute(model, family, &e, true, fusion, one_by_one, got);
        error = relative_error(got, on, count);
        print_message("%-18s rounding on,  fusion %s, %s: %.2e (rounding itself moves them by %.2e)\n", family, fusion ? "on " : "off", one_by_one ? "one by one" : "at once   ", error,
            json_number_value(json_object_get(json_object_get(e.json, "on"), "rounding")));
        if (!(error <= on_bound)) fail_msg("%s: relative error %.3e with int8 activations", family, error);
        if (way == 0) {
            s->rounded++;
            s->same += error <= ON_SAME;
        }
    }
    const json_t *embedding = json_object_get(e.json, "embedding");
    if (embedding) {
        size_t width = (size_t)json_integer_value(json_object_get(embedding, "width"));
        const float *want = block(&e, "embedding", width);
        assert_int_equal(width, (size_t)info.width);
        setun_session *session;
        setun_session_options options = {.size = sizeof options, .context = 32, .kv_type = "f32"};
        assert_int_equal(setun_session_create(model, &options, &session), SETUN_OK);
        if (setun_session_embed(session, e.ids, e.tokens, got) != SETUN_OK) fail_msg("%s: %s", family, setun_error());
        double error = relative_error(got, want, width);
        print_message("%-18s embedding: %.2e\n", family, error);
        if (!(error <= on_bound)) fail_msg("%s: the embedding differs by %.3e", family, error);
        setun_session_destroy(session);
    }
    free(got);
    free(e.values);
    json_decref(e.json);
    setun_model_close(model);
}

static void test_every_family(void **user) {
    state *s = *user;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) check_family(s, families[i]);
}

static void test_rounding_is_the_same(void **user) {
    state *s = *user;
    print_message("int8 activations without any flipped tie: %d of %d families\n", s->same, s->rounded);
    assert_true(s->rounded >= 9);
    assert_true(2 * s->same >= s->rounded);
}

static int set_up_isa(void **user, const char *isa) {
    static state s;
    memset(&s, 0, sizeof s);
    setun_context_options options = {.size = sizeof options, .threads = 2, .isa = isa};
    *user = &s;
    if (setun_context_create(&options, &s.context) != SETUN_OK) return -1;
    print_message("instructions: %s\n", setun_context_isa(s.context));
    return 0;
}

static int set_up_best(void **user) { return set_up_isa(user, NULL); }
static int set_up_reference(void **user) { return set_up_isa(user, "ref"); }

static int tear_down(void **user) {
    state *s = *user;
    setun_context_destroy(s->context);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_family), cmocka_unit_test(test_rounding_is_the_same)};
    int failed = cmocka_run_group_tests_name("the best instructions", tests, set_up_best, tear_down);
    return failed + cmocka_run_group_tests_name("plain C", tests, set_up_reference, tear_down);
}
