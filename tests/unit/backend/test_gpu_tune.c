/*
 * test_gpu_tune.c - the search of `setun tune` over invented times: it finds the fastest values, leaves alone what noise would change, tries nothing
 * that breaks a rule, and ends on an error or when asked to. And the calls it times: every kernel's case runs in the host form, and group
 * sizes and tiles change no bit of what the kernels write.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "backend/mlx/cases.h"
#include "backend/mlx/tune.h"

static int field_of(const char *name)
{
    for (int i = 0; i < setun_tuning_field_count(); i++)
        if (!strcmp(setun_tuning_field_name(i), name)) return i;
    fail_msg("no field %s", name);
    return -1;
}

/* Seconds grow with the distance of every field from the wanted one, in powers of two. */
typedef struct invented { setun_tuning wanted; double noise; int calls, fail_at; uint64_t state; } invented;
static setun_status cost(void *user, int group, const setun_tuning *values, double *out)
{
    invented *v = user;
    (void)group;
    if (++v->calls == v->fail_at) return setun_fail(SETUN_ERROR_DEVICE, "the device is gone");
    setun_tuning legal;
    memcpy(&legal, values, sizeof legal);
    for (int f = 0; f < setun_tuning_field_count(); f++) assert_int_equal(setun_tuning_set(&legal, f, setun_tuning_get(values, f)), SETUN_OK); /* in range and by the rules */
    double sum = 1;
    for (int f = 0; f < setun_tuning_field_count(); f++) sum += fabs(log2((double)setun_tuning_get(values, f) / setun_tuning_get(&v->wanted, f)));
    v->state = v->state * 6364136223846793005ull + 1442695040888963407ull;
    *out = sum * (1 + v->noise * ((double)(v->state >> 40) / 16777216.0 - 0.5));
    return SETUN_OK;
}

static void finds_the_fastest(void **unused)
{
    (void)unused;
    invented v = {.state = 1};
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_GENERIC, &v.wanted);
    static const struct { const char *name; int value; } wanted[] = {{"norm_threads", 1024}, {"row_threads", 32}, {"matvec_rows", 16}, {"matvec_threads", 256}, {"matvec_token_rows", 16}, {"matvec_tokens", 2},
                                                                     {"matmul_rows", 128}, {"matmul_tokens", 16}, {"matmul_from", 33}, {"matmul_way", 2}, {"team_tokens", 8}, {"attention_heads", 1}, {"attention_split", 4097}};
    /* 16 rows x 4 tokens break the rule that 16 x 2 obey: the two are set together */
    assert_int_equal(setun_tuning_set(&v.wanted, field_of("matvec_tokens"), 2), SETUN_OK);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) assert_int_equal(setun_tuning_set(&v.wanted, field_of(wanted[i].name), wanted[i].value), SETUN_OK);
    setun_tuning got;
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_GENERIC, &got);
    setun_tune_gain gains[32];
    assert_true(setun_tune_group_count() <= 32);
    assert_int_equal(setun_tune_search(&got, cost, &v, NULL, NULL, gains), SETUN_OK);
    for (int f = 0; f < setun_tuning_field_count(); f++)
        if (setun_tuning_get(&got, f) != setun_tuning_get(&v.wanted, f)) fail_msg("%s is %d instead of %d", setun_tuning_field_name(f), setun_tuning_get(&got, f), setun_tuning_get(&v.wanted, f));
    int better = 0;
    for (int g = 0; g < setun_tune_group_count(); g++) {
        assert_non_null(setun_tune_group_name(g));
        assert_true(gains[g].tried > 1 && gains[g].after <= gains[g].before);
        better += gains[g].after < gains[g].before;
    }
    assert_true(better >= 8);
    assert_null(setun_tune_group_name(setun_tune_group_count()));
}

static setun_status flat(void *user, int group, const setun_tuning *values, double *out)
{
    invented *v = user;
    (void)group, (void)values;
    v->state = v->state * 6364136223846793005ull + 1442695040888963407ull;
    *out = 1 + 0.028 * (double)(v->state >> 40) / 16777216.0;
    return SETUN_OK;
}

static void noise_changes_nothing(void **unused)
{
    (void)unused;
    for (uint64_t turn = 1; turn < 50; turn++) {
        invented v = {.state = turn};
        setun_tuning before, got;
        setun_tune_gain gains[32];
        setun_tuning_lookup(NULL, NULL, SETUN_GPU_HOPPER, &before);
        got = before;
        assert_int_equal(setun_tune_search(&got, flat, &v, NULL, NULL, gains), SETUN_OK);
        assert_memory_equal(&got, &before, sizeof got);
    }
}

typedef struct watched { uint64_t last, total, stop_at; } watched;
static bool watch(void *user, const char *what, uint64_t done, uint64_t total)
{
    watched *w = user;
    assert_string_equal(what, "measurements");
    assert_true(done == w->last + 1 && done <= total && (w->total == 0 || w->total == total));
    w->last = done;
    w->total = total;
    return done != w->stop_at;
}

static void ends_early(void **unused)
{
    (void)unused;
    setun_tuning got;
    setun_tune_gain gains[32];
    invented v = {.state = 1, .fail_at = 7};
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_M1, &v.wanted);
    got = v.wanted;
    assert_int_equal(setun_tune_search(&got, cost, &v, NULL, NULL, gains), SETUN_ERROR_DEVICE);
    assert_string_equal(setun_error(), "the device is gone");
    v.fail_at = 0;
    watched w = {0};
    got = v.wanted;
    assert_int_equal(setun_tune_search(&got, cost, &v, watch, &w, gains), SETUN_OK);
    assert_int_equal(w.last, w.total); /* every step was shown, also those that break a rule */
    w = (watched){.stop_at = 5};
    assert_int_equal(setun_tune_search(&got, cost, &v, watch, &w, gains), SETUN_ERROR_CANCELLED);
    assert_int_equal(w.last, 5);
}

/* ---- cases ---- */

static const setun_gpu_case_options small = {.type = SETUN_F32, .columns = 200, .rows = 21, .tokens = 5, .weights = 1, .heads = 6, .kv_heads = 2, .head_size = 32, .length = 300, .seed = 3};

static void expect(const setun_gpu_case_options *o, setun_gpu_case *c, void *outputs[SETUN_GPU_OUTPUTS_MAX], void *written[SETUN_GPU_INPUTS_MAX])
{
    if (setun_gpu_case_make(o, c) != SETUN_OK) fail_msg("%s", setun_error());
    if (setun_gpu_case_expect(c, outputs, written) != SETUN_OK) fail_msg("%s: %s", c->kernel->name, setun_error());
}

static void sizes_change_no_bit(void **unused)
{
    (void)unused;
    int made = 0;
    for (int k = 0; k < SETUN_GPU_KERNEL_COUNT; k++)
        for (int type = 0; type < 3; type++) {
            setun_gpu_case_options o = small;
            setun_gpu_case c, d;
            void *want[SETUN_GPU_OUTPUTS_MAX], *want_written[SETUN_GPU_INPUTS_MAX], *got[SETUN_GPU_OUTPUTS_MAX], *got_written[SETUN_GPU_INPUTS_MAX];
            o.kernel = (setun_gpu_kernel_id)k;
            o.type = (setun_dtype[]){SETUN_F32, SETUN_F16, SETUN_BF16}[type];
            setun_tuning_lookup(NULL, NULL, SETUN_GPU_GENERIC, &o.tuning);
            if (setun_gpu_case_make(&o, &c) == SETUN_ERROR_UNSUPPORTED) {
                assert_true(!strncmp(setun_gpu_kernel_get(o.kernel)->name, "head_", 5));
                continue;
            }
            setun_gpu_case_free(&c);
            expect(&o, &c, want, want_written);
            o.tuning = (setun_tuning){.norm_threads = 64, .row_threads = 96, .element_threads = 32, .matvec_threads = 96, .matvec_rows = 3, .matvec_token_rows = 7, .matvec_tokens = 3, .matmul_from = 2,
                                      .matmul_rows = 16, .matmul_tokens = 16, .matmul_way = 2, .team_threads = 64, .team_rows = 5, .team_tokens = 3, .attention_threads = 96, .attention_heads = 3, .attention_split = 1};
            expect(&o, &d, got, got_written);
            bool varied = false;
            for (int i = 0; i < c.kernel->output_count; i++) {
                size_t bytes = (size_t)c.defined[i] * setun_dtype_bytes(c.output_spec[i].dtype);
                assert_int_equal(c.defined[i], d.defined[i]);
                if (bytes) assert_memory_equal(want[i], got[i], bytes);
                for (size_t b = 1; b < bytes; b++) varied = varied || ((uint8_t *)want[i])[b] != ((uint8_t *)want[i])[0];
                setun_free(want[i]), setun_free(got[i]);
            }
            assert_true(varied); /* numbers, not all the same */
            for (int i = 0; i < c.kernel->input_count; i++) {
                if (c.written[i]) {
                    size_t bytes = (size_t)setun_gpu_spec_bytes(&c.input_spec[i]);
                    assert_memory_equal(want_written[i], got_written[i], bytes);
                    assert_true(memcmp(want_written[i], c.input[i], bytes) != 0); /* it was written to, in the copy */
                }
                setun_free(want_written[i]), setun_free(got_written[i]);
            }
            setun_gpu_case_free(&c);
            setun_gpu_case_free(&d);
            made++;
        }
    assert_true(made >= 3 * 18);
}

static void memory(void **unused)
{
    (void)unused;
    setun_gpu_case_options o = small;
    o.kernel = SETUN_GPU_attention;
    o.append = true;
    o.tokens = 1;
    setun_tuning_lookup(NULL, NULL, SETUN_GPU_GENERIC, &o.tuning);
    int64_t before = setun_alloc_live();
    setun_status status = SETUN_ERROR_MEMORY;
    for (uint64_t n = 1; status != SETUN_OK && n < 60; n++) {
        setun_gpu_case c;
        setun_alloc_fail_at(n);
        status = setun_gpu_case_make(&o, &c);
        setun_alloc_fail_at(0);
        assert_true(status == SETUN_OK || status == SETUN_ERROR_MEMORY);
        if (status == SETUN_OK) setun_gpu_case_free(&c);
        assert_int_equal(setun_alloc_live(), before);
    }
    assert_int_equal(status, SETUN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds_the_fastest), cmocka_unit_test(noise_changes_nothing), cmocka_unit_test(ends_early), cmocka_unit_test(sizes_change_no_bit), cmocka_unit_test(memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
