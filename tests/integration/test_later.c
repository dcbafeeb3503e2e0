/*
 * test_later.c - weights that the first run reads in the file and the second packs (backend/cpu/pack_later.c): the same bits as if they had been packed before, for all
 * lengths of the first prompt, threads and sessions that share them; what is told of them; and codes that are none.
 */
#include "unit/model/tiny.h"
#include "backend/cpu/cpu.h"
#include "run/run.h"
#include <pthread.h>

#define EXPECT_OK(call) do { setun_status expect_status_ = (call); if (expect_status_ != SETUN_OK) fail_msg("%s: %s: %s", #call, setun_status_name(expect_status_), setun_error()); } while (0)

enum { PROMPT = 24, TOKENS = 30 };
static int32_t ids[TOKENS];
static tiny file;

static void late(bool on)
{
    setun_force_late_checks(on);
    cpu_force_later(on);
}

static setun_context *context_of(int threads, const char *isa)
{
    setun_context_options options = {.size = sizeof options, .threads = threads, .isa = isa};
    setun_context *context;
    EXPECT_OK(setun_context_create(&options, &context));
    return context;
}

static setun_session *session_of(setun_model *model)
{
    setun_session_options options = {.size = sizeof options, .context = 64};
    setun_session *s;
    EXPECT_OK(setun_session_create(model, &options, &s));
    return s;
}

/* A prompt of `first` tokens, then one after another: the logits after each. */
static void logits_of(setun_session *s, int first, float *out)
{
    for (int done = 0; done < TOKENS;) {
        int count = done ? 1 : first;
        EXPECT_OK(setun_session_feed(s, ids + done, (size_t)count));
        done += count;
        const float *logits = setun_session_logits(s, NULL);
        memcpy(out + (size_t)(done - 1) * TINY_VOCABULARY, logits, TINY_VOCABULARY * sizeof *out);
    }
}

static uint64_t packed_of(const setun_session *s)
{
    setun_session_stats stats = {.size = sizeof stats};
    EXPECT_OK(setun_session_get_stats(s, &stats));
    assert_int_equal(stats.allocations_in_run, 0);
    return stats.packed_bytes;
}

static float expected[PROMPT + 1][TOKENS * TINY_VOCABULARY];
static const int firsts[] = {1, 3, 16, PROMPT};

static int setup(void **state)
{
    (void)state;
    tiny_gguf(&file, "bitnet-b1.58", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
    tiny_write_gguf(&file);
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 7 % TINY_VOCABULARY;
    setun_context *context = context_of(1, NULL);
    setun_model *model;
    EXPECT_OK(setun_model_open(context, file.path, NULL, &model));
    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
        setun_session *s = session_of(model);
        logits_of(s, firsts[i], expected[firsts[i]]);
        setun_session_destroy(s);
    }
    setun_model_close(model);
    setun_context_destroy(context);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    late(false);
    cpu_force_many(0);
    tiny_end(&file);
    return 0;
}

static void expect_same(const float *got, int first, const char *what)
{
    for (int t = first - 1; t < TOKENS; t++)
        if (memcmp(got + t * TINY_VOCABULARY, expected[first] + t * TINY_VOCABULARY, TINY_VOCABULARY * sizeof *got)) fail_msg("%s, first %d tokens: other logits after token %d", what, first, t + 1);
}

static void same_bits(void **state)
{
    (void)state;
    static float got[TOKENS * TINY_VOCABULARY];
    late(true);
    for (int isa = 0; isa < setun_isa_count(); isa++)
        for (size_t i = 0; i < sizeof firsts / sizeof *firsts && setun_isa_available(isa); i++)
            for (int many = 0; many < 2; many++) {
                cpu_force_many(many ? 16 : 0);
                setun_context *context = context_of(1 + (int)i % 3, setun_isa_name(isa));
                setun_model *model;
                EXPECT_OK(setun_model_open(context, file.path, NULL, &model));
                setun_session *s = session_of(model);
                const setun_weight *w = setun_model_find(model, "blk.0.ffn_down.weight");
                const setun_prepared *p = w->prepared;
                assert_true(w->unchecked && p->later && p->waiting && p->data == w->data);
                const uint64_t before = packed_of(s);
                EXPECT_OK(setun_session_feed(s, ids, (size_t)firsts[i]));
                assert_non_null(setun_session_logits(s, NULL));
                assert_true(p->waiting && !atomic_load(&p->unchecked)); /* the head alone packs nothing */
                assert_int_equal(packed_of(s), before);
                EXPECT_OK(setun_session_truncate(s, 0));
                logits_of(s, firsts[i], got);
                expect_same(got, firsts[i], setun_isa_name(isa));
                assert_true(!p->waiting && p->data == p->in_slab && packed_of(s) > before);
                setun_session_destroy(s);
                /* Another session finds them packed. */
                s = session_of(model);
                logits_of(s, firsts[i], got);
                expect_same(got, firsts[i], "another session");
                setun_session_destroy(s);
                setun_model_close(model);
                setun_context_destroy(context);
            }
    cpu_force_many(0);
}

/* The first run itself, and the one that packs. */
static void from_the_start(void **state)
{
    (void)state;
    static float got[TOKENS * TINY_VOCABULARY];
    late(true);
    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
        setun_context *context = context_of(2, NULL);
        setun_model *model;
        EXPECT_OK(setun_model_open(context, file.path, NULL, &model));
        setun_session *s = session_of(model);
        logits_of(s, firsts[i], got);
        expect_same(got, firsts[i], "from the start");
        setun_session_destroy(s);
        setun_model_close(model);
        setun_context_destroy(context);
    }
}

typedef struct user { setun_model *model; int first; float got[TOKENS * TINY_VOCABULARY]; } user;

static void *use(void *argument)
{
    user *u = argument;
    for (int round = 0; round < 3; round++) {
        setun_session_options options = {.size = sizeof options, .context = 64};
        setun_session *s;
        if (setun_session_create(u->model, &options, &s) != SETUN_OK) return u;
        for (int done = 0; done < TOKENS;) {
            int count = done ? 1 : u->first;
            if (setun_session_feed(s, ids + done, (size_t)count) != SETUN_OK) return u;
            done += count;
            memcpy(u->got + (size_t)(done - 1) * TINY_VOCABULARY, setun_session_logits(s, NULL), TINY_VOCABULARY * sizeof *u->got);
        }
        setun_session_stats stats = {.size = sizeof stats};
        if (setun_session_get_stats(s, &stats) != SETUN_OK) return u;
        setun_session_destroy(s);
    }
    return NULL;
}

static void sessions_of_several_threads(void **state)
{
    (void)state;
    static user users[4];
    late(true);
    for (int threads = 1; threads < 4; threads++) {
        setun_context *context = context_of(threads, NULL);
        setun_model *model;
        pthread_t thread[4];
        EXPECT_OK(setun_model_open(context, file.path, NULL, &model));
        for (int i = 0; i < 4; i++) {
            users[i].model = model;
            users[i].first = firsts[i];
            assert_int_equal(pthread_create(&thread[i], NULL, use, &users[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
            void *failed;
            pthread_join(thread[i], &failed);
            assert_null(failed);
            expect_same(users[i].got, firsts[i], "several threads");
        }
        setun_model_close(model);
        setun_context_destroy(context);
    }
}

/* explain tells how they lie in the end, whatever ran before. */
static void explained(void **state)
{
    (void)state;
    late(true);
    setun_context *context = context_of(1, NULL);
    setun_model *model;
    char *text[2];
    setun_explain_options options = {.size = sizeof options, .session = {.size = sizeof options.session, .context = 64}};
    EXPECT_OK(setun_model_open(context, file.path, NULL, &model));
    for (int i = 0; i < 2; i++) EXPECT_OK(setun_model_explain(model, &options, &text[i]));
    assert_non_null(strstr(text[0], "the first run reads the file's rows"));
    assert_null(strstr(text[0], CPU_AS_PACKED)); /* and by which kernel they are multiplied then */
    assert_string_equal(text[0], text[1]);
    setun_free(text[0]);
    setun_free(text[1]);
    setun_model_close(model);
    setun_context_destroy(context);
}

static void broken(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"};
    for (int n = 0; n < 4; n++)
        for (int many = 0; many < 2; many++) {
            tiny t;
            tiny_gguf(&t, "bitnet-b1.58", SETUN_FAMILY_BITNET, SETUN_FORMAT_I2_S);
            tiny_tensor *x = tiny_find(&t, names[n]);
            x->data[32 * (x->shape[1] / 128) * 5 + 7] |= 3; /* row 5, column 96 + 7 */
            tiny_write_gguf(&t);
            cpu_force_many(many ? 16 : 0);
            setun_context *context = context_of(1 + many, NULL);
            setun_model *model;
            late(false);
            assert_int_equal(setun_model_open(context, t.path, NULL, &model), SETUN_ERROR_FORMAT);
            char reason[1024];
            snprintf(reason, sizeof reason, "%s", setun_error());
            late(true);
            EXPECT_OK(setun_model_open(context, t.path, NULL, &model));
            setun_session *s = session_of(model);
            for (int round = 0; round < 3; round++) { /* and stays so */
                assert_int_equal(setun_session_feed(s, ids, round == 1 ? 1 : PROMPT), SETUN_ERROR_FORMAT);
                assert_string_equal(setun_error(), reason);
                assert_int_equal(setun_session_position(s), 0);
                assert_null(setun_session_logits(s, NULL));
            }
            setun_sampler *sampler;
            setun_generate_result result;
            EXPECT_OK(setun_sampler_create(NULL, TINY_VOCABULARY, &sampler));
            assert_int_equal(setun_generate(s, sampler, ids, PROMPT, NULL, &result), SETUN_ERROR_FORMAT);
            setun_sampler_destroy(sampler);
            setun_session_destroy(s);
            char *text;
            setun_explain_options options = {.size = sizeof options, .session = {.size = sizeof options.session, .context = 64}};
            assert_int_equal(setun_model_explain(model, &options, &text), SETUN_ERROR_FORMAT); /* it packs them */
            assert_string_equal(setun_error(), reason);
            setun_model_close(model);
            /* Mapped or packed at once: refused before anything runs. */
            for (int policy = 0; policy < 2; policy++) {
                setun_model_options map = {.size = sizeof map, .weights = policy ? "pack" : "map"};
                assert_int_equal(setun_model_open(context, t.path, &map, &model), SETUN_ERROR_FORMAT);
            }
            /* Checks that are late, and weights that are not. */
            cpu_force_later(false);
            EXPECT_OK(setun_model_open(context, t.path, NULL, &model));
            setun_session_options small = {.size = sizeof small, .context = 64};
            assert_int_equal(setun_session_create(model, &small, &s), SETUN_ERROR_FORMAT);
            assert_non_null(strstr(setun_error(), names[n]));
            setun_model_close(model);
            setun_context_destroy(context);
            tiny_end(&t);
        }
    cpu_force_many(0);
}

/* Trits of a packed file stay where they are, and are checked by the first run too. */
static void packed_file(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.attn_k.weight", "blk.1.ffn_down.weight"};
    static float got[TOKENS * TINY_VOCABULARY];
    char path[160];
    snprintf(path, sizeof path, "%s/packed.gguf", file.folder);
    setun_context *context = context_of(2, NULL);
    setun_convert_options convert = {.size = sizeof convert, .ternary = "packed"};
    EXPECT_OK(setun_convert(context, file.path, path, &convert, NULL));
    late(true);
    for (int turn = 0; turn < 6; turn++) { /* whole, then with a field of 31 in one tensor or the other */
        setun_model *model;
        cpu_force_many(turn % 2 ? 16 : 0);
        if (turn >= 2) {
            setun_file *opened;
            setun_file_options options = {0};
            EXPECT_OK(setun_file_open(path, &options, &opened));
            const setun_file_tensor *t = setun_file_find_tensor(opened, names[turn / 2 - 1]);
            assert_non_null(t);
            assert_int_equal(t->format, SETUN_FORMAT_TRITS);
            const uint64_t at = t->offset + 3 * (uint64_t)setun_trits_triple_bytes(t->shape[1]) + 11;
            setun_file_close(opened);
            FILE *f = fopen(path, "r+b");
            assert_non_null(f);
            assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
            static const uint8_t ones[2] = {0xff, 0xff};
            assert_int_equal(fwrite(ones, 1, 2, f), 2);
            fclose(f);
        }
        if (turn >= 2) {
            late(false);
            assert_int_equal(setun_model_open(context, path, NULL, &model), SETUN_ERROR_FORMAT);
        }
        char reason[1024];
        snprintf(reason, sizeof reason, "%s", setun_error());
        late(true);
        EXPECT_OK(setun_model_open(context, path, NULL, &model));
        setun_session_options options = {.size = sizeof options, .context = 64};
        setun_session *s;
        setun_status status = setun_session_create(model, &options, &s);
        if (turn >= 2 && status == SETUN_ERROR_FORMAT) { /* a machine that reads trits slowly makes 2 bits of them here, and checks them doing so */
            assert_non_null(strstr(setun_error(), names[0]));
            setun_model_close(model);
            continue;
        }
        EXPECT_OK(status);
        const setun_weight *w = setun_model_find(model, names[1]);
        const setun_prepared *p = w->prepared;
        assert_true(w->unchecked);
        if (p->data == w->data) assert_true(atomic_load(&p->unchecked)); /* a machine that reads trits slowly has 2 bits, and has checked them */
        if (turn < 2) {
            logits_of(s, PROMPT, got);
            expect_same(got, PROMPT, "packed");
            assert_true(!atomic_load(&p->unchecked));
        } else
            for (int round = 0; round < 3; round++) {
                assert_int_equal(setun_session_feed(s, ids, round == 1 ? 1 : PROMPT), SETUN_ERROR_FORMAT);
                assert_string_equal(setun_error(), reason);
                assert_non_null(strstr(reason, names[0])); /* the first of the broken */
                assert_int_equal(setun_session_position(s), 0);
            }
        setun_session_destroy(s);
        setun_model_close(model);
        if (turn < 2) continue;
        /* The other uses of such weights. */
        setun_model_options pack = {.size = sizeof pack, .weights = "pack"};
        assert_int_equal(setun_model_open(context, path, &pack, &model), SETUN_ERROR_FORMAT);
        EXPECT_OK(setun_model_open(context, path, NULL, &model));
        setun_session_options floats = {.size = sizeof floats, .context = 64, .no_activation_quantisation = true};
        assert_int_equal(setun_session_create(model, &floats, &s), SETUN_ERROR_FORMAT);
        setun_model_close(model);
    }
    cpu_force_many(0);
    unlink(path);
    setun_context_destroy(context);
}

/* Every allocation of opening, running and packing may fail: then there is an error and no leak, never another result. */
static void allocations_fail(void **state)
{
    (void)state;
    static float got[TOKENS * TINY_VOCABULARY];
    late(true);
    setun_context *context = context_of(2, NULL);
    setun_model *once;
    EXPECT_OK(setun_model_open(context, file.path, NULL, &once)); /* what the context keeps is there then */
    setun_model_close(once);
    int64_t live = setun_alloc_live();
    int failed = 0;
    for (uint64_t n = 1;; n++) {
        setun_model *model = NULL;
        setun_session *s = NULL;
        setun_session_options options = {.size = sizeof options, .context = 64};
        setun_alloc_fail_at(n);
        setun_status status = setun_model_open(context, file.path, NULL, &model);
        if (status == SETUN_OK) status = setun_session_create(model, &options, &s);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            logits_of(s, 16, got);
            expect_same(got, 16, "after all");
        } else {
            assert_int_equal(status, SETUN_ERROR_MEMORY);
            failed++;
        }
        if (s) setun_session_destroy(s);
        if (model) setun_model_close(model);
        assert_int_equal(setun_alloc_live(), live);
        if (status == SETUN_OK) break;
    }
    assert_true(failed > 100);
    setun_context_destroy(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits), cmocka_unit_test(from_the_start), cmocka_unit_test(sessions_of_several_threads), cmocka_unit_test(explained), cmocka_unit_test(broken), cmocka_unit_test(packed_file), cmocka_unit_test(allocations_fail)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
