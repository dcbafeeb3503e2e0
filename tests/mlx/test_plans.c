/*
 * test_plans.c - plans on MLX against the same plans on the CPU backend: small models of every family, fused and not, a prompt at once and
 * token by token. The kernels' order of sums is the CPU's, so the logits are compared with memcmp where every step has such a kernel, and
 * else within a stated bound. Several sequences in one step, 16-bit activations and what happens where f16 overflows come after.
 */
#include "mlx_test.h"

#include <stdio.h>
#include <sys/stat.h>

static const char *const families[] = {"bitnet_packed", "bitnet_online", "bitnet_1bitllm", "llama_bitnet", "falcon3", "llama_sub_norm", "trilm", "bonsai_mlx", "qwen2_bitnet", "minicpm4", "rotated"};

static setun_model *open_on(const char *family, const char *device) {
    char path[1024];
    struct stat about;
    snprintf(path, sizeof path, "%s/families/%s/model.gguf", SETUN_TEST_GOLDEN, family);
    if (stat(path, &about) != 0) snprintf(path, sizeof path, "%s/families/%s", SETUN_TEST_GOLDEN, family);
    setun_model_options o = {.size = sizeof o, .device = device};
    setun_model *model;
    if (setun_model_open(context, path, &o, &model) != SETUN_OK) fail_msg("%s on %s: %s", family, device, setun_error());
    return model;
}

static int vocabulary_of(const setun_model *model) {
    setun_model_info info = {.size = sizeof info};
    assert_int_equal(setun_model_get_info(model, &info), SETUN_OK);
    return info.vocabulary;
}

typedef struct gathered { float *logits; int vocabulary; } gathered;
static bool gather(void *user, size_t index, const float *logits, int vocabulary) {
    gathered *g = user;
    memcpy(g->logits + index * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *logits);
    return true;
}

enum { TOKENS = 11 };
static void compute(setun_model *model, const char *what, bool fusion, bool one_by_one, const char *precision, float *out) {
    setun_session_options o = {.size = sizeof o, .context = 32, .no_fusion = !fusion, .precision = precision};
    setun_session *session;
    if (setun_session_create(model, &o, &session) != SETUN_OK) fail_msg("%s: %s", what, setun_error());
    int vocabulary = vocabulary_of(model);
    for (int i = 0; i < TOKENS; i += one_by_one ? 1 : TOKENS) {
        int32_t ids[TOKENS];
        for (int j = 0; j < TOKENS; j++) ids[j] = (i + j) * 37 % vocabulary;
        gathered g = {out + (size_t)i * (size_t)vocabulary, vocabulary};
        if (setun_session_feed_all(session, ids, one_by_one ? 1 : TOKENS, gather, &g) != SETUN_OK) fail_msg("%s: %s", what, setun_error());
    }
    setun_session_destroy(session);
}

static double relative_error(const float *got, const float *want, size_t count) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    return sqrt(difference / size);
}

static void families_equal_the_cpu(void **state) {
    (void)state;
    int exact = 0;
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        setun_model *cpu = open_on(families[f], "cpu"), *mlx = open_on(families[f], "mlx:cpu");
        size_t count = TOKENS * (size_t)vocabulary_of(cpu);
        float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
        assert_true(want && got);
        compute(cpu, families[f], true, false, NULL, want);
        for (int way = 0; way < 4; way++) {
            memset(got, 0xff, count * sizeof *got);
            compute(mlx, families[f], !(way & 1), way & 2, NULL, got);
            bool same = memcmp(got, want, count * sizeof *got) == 0;
            double error = relative_error(got, want, count);
            print_message("%-16s fusion %s, %s: %s %.2e\n", families[f], way & 1 ? "off" : "on ", way & 2 ? "one by one" : "at once   ", same ? "the same bits" : "error", error);
            /* bonsai_mlx: groups of scales under floats; the others have a kernel in the CPU's order for every step */
            if (!(error <= 2e-6)) fail_msg("%s: relative error %.3e", families[f], error);
            exact += same;
        }
        free(want);
        free(got);
        setun_model_close(cpu);
        setun_model_close(mlx);
    }
    assert_true(exact >= 4 * 9);
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(families_equal_the_cpu)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return failed;
}
