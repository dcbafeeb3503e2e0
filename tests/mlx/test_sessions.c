/*
 * test_sessions.c - plans on MLX from several threads at once: sessions of one model, each made, fed and destroyed on another thread than the last, on the
 * streams that the backend hands out in turn; built and compiled; one of them cancelled while the others run. Every token's logits are those of a
 * session alone, each run waits once, and neither threads nor streams of MLX are left behind.
 */
#include "mlx_test.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>

enum { THREADS = 5, TOKENS = 12, PROMPT = 4, ROUNDS = 3 };
static setun_model *model;
static int vocabulary;
static float *want[THREADS];
static atomic_int inside, most; /* threads that feed, at the same time */

typedef struct job { int number; bool given; setun_session *session; char error[256]; float *got; } job;

static int32_t token(int number, int i) { return (number * 53 + i * 37 + 5) % vocabulary; }

#define try(call) do { if ((call) != SETUN_OK) { snprintf(j->error, sizeof j->error, "%s: %s", #call, setun_error()); return NULL; } } while (0)
static void *decode(void *argument) {
    job *j = argument;
    setun_session_options o = {.size = sizeof o, .context = 24 + 3 * j->number};
    int32_t ids[PROMPT];
    if (!j->session) try(setun_session_create(model, &o, &j->session));
    else try(setun_session_truncate(j->session, 0)); /* made on another thread */
    for (int i = 0; i < PROMPT; i++) ids[i] = token(j->number, i);
    for (int i = 0; i < TOKENS; i++) {
        int now = atomic_fetch_add(&inside, 1) + 1, seen = atomic_load(&most);
        while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now)) {}
        try(setun_session_feed(j->session, ids, i ? 1 : PROMPT));
        atomic_fetch_sub(&inside, 1);
        const float *logits = setun_session_logits(j->session, NULL);
        if (j->got) memcpy(j->got + (size_t)i * (size_t)vocabulary, logits, (size_t)vocabulary * sizeof *logits);
        else if (memcmp(logits, want[j->number] + (size_t)i * (size_t)vocabulary, (size_t)vocabulary * sizeof *logits)) {
            snprintf(j->error, sizeof j->error, "session %d, token %d: other logits than alone", j->number, i);
            return NULL;
        }
        ids[0] = token(j->number, PROMPT + i);
    }
    setun_session_stats stats = {.size = sizeof stats};
    try(setun_session_get_stats(j->session, &stats));
    if (stats.device_synchronisations != stats.device_runs) snprintf(j->error, sizeof j->error, "%d waits in %d runs", (int)stats.device_synchronisations, (int)stats.device_runs);
    if (!j->given) {
        setun_session_destroy(j->session);
        j->session = NULL;
    }
    return NULL;
}

static int threads_of_the_process(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static int open_all(void **state) {
    (void)state;
    char path[1024];
    struct stat about;
    snprintf(path, sizeof path, "%s/families/bitnet_packed/model.gguf", SETUN_TEST_GOLDEN);
    if (stat(path, &about) != 0) snprintf(path, sizeof path, "%s/families/bitnet_packed", SETUN_TEST_GOLDEN);
    setun_model_options o = {.size = sizeof o, .device = "mlx:cpu"};
    setun_model_info info = {.size = sizeof info};
    if (setun_model_open(context, path, &o, &model) != SETUN_OK || setun_model_get_info(model, &info) != SETUN_OK) return 1;
    vocabulary = info.vocabulary;
    for (int i = 0; i < THREADS; i++) { /* each alone */
        want[i] = malloc((size_t)TOKENS * (size_t)vocabulary * sizeof(float));
        job j = {.number = i, .got = want[i]};
        if (!want[i]) return 1;
        decode(&j);
        if (*j.error) {
            fprintf(stderr, "%s\n", j.error);
            return 1;
        }
    }
    return 0;
}
static int close_all(void **state) {
    (void)state;
    setun_model_close(model);
    for (int i = 0; i < THREADS; i++) free(want[i]);
    return 0;
}

static void at_once(void **state) {
    (void)state;
    int before = 0;
    setun_session *kept = NULL;
    for (int compiled = 0; compiled < 2; compiled++) {
        assert_int_equal(setun_device_set_compile(context, "mlx:cpu", compiled), SETUN_OK);
        for (int round = 0; round < ROUNDS; round++) {
            pthread_t threads[THREADS];
            job jobs[THREADS] = {0};
            if (compiled == 0 && round == 1) before = threads_of_the_process(); /* all streams are open by now */
            for (int i = 0; i < THREADS; i++) jobs[i].number = i;
            jobs[1].given = true; /* a session that goes from thread to thread */
            jobs[1].session = kept;
            for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, decode, &jobs[i]), 0);
            for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
            for (int i = 0; i < THREADS; i++)
                if (*jobs[i].error) fail_msg("compile %s, round %d: %s", compiled ? "on" : "off", round, jobs[i].error);
            kept = jobs[1].session;
        }
    }
    setun_session_destroy(kept);
    assert_int_equal(setun_device_set_compile(context, "mlx:cpu", false), SETUN_OK);
    assert_true(atomic_load(&most) > 1); /* they did meet */
    int after = threads_of_the_process();
    if (before != after) fail_msg("%d threads before, %d after", before, after);
    setun_mlx_counters c;
    t->counters(&c);
    assert_int_equal(c.functions, 0);
    assert_true(c.streams <= 7); /* the device's four, the test's, the first one's trial */
}

/* One session is cancelled again and again; the others see nothing of it. */
static atomic_bool over;
static void *cancelled(void *argument) {
    job *j = argument;
    int32_t ids[PROMPT] = {1, 2, 3, 4};
    int stopped = 0;
    while (!atomic_load(&over) || stopped == 0) {
        setun_session_cancel(j->session);
        setun_status status = setun_session_feed(j->session, ids, PROMPT);
        stopped += status == SETUN_ERROR_CANCELLED;
        if (status != SETUN_OK && status != SETUN_ERROR_CANCELLED) try(status);
        try(setun_session_truncate(j->session, 0));
    }
    return NULL;
}

static void one_is_cancelled(void **state) {
    (void)state;
    pthread_t threads[3], other;
    job jobs[3] = {{.number = 0}, {.number = 2}, {.number = 4}}, bad = {.number = 1};
    setun_session_options o = {.size = sizeof o, .context = 24};
    assert_int_equal(setun_session_create(model, &o, &bad.session), SETUN_OK);
    assert_int_equal(pthread_create(&other, NULL, cancelled, &bad), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, decode, &jobs[i]), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    atomic_store(&over, true);
    assert_int_equal(pthread_join(other, NULL), 0);
    for (int i = 0; i < 3; i++)
        if (*jobs[i].error) fail_msg("%s", jobs[i].error);
    assert_string_equal(bad.error, "");
    bad.given = false; /* and it is whole afterwards */
    decode(&bad);
    assert_string_equal(bad.error, "");
}

int main(void) {
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(at_once), cmocka_unit_test(one_is_cancelled)};
    int failed = cmocka_run_group_tests(tests, open_all, close_all);
    close_mlx();
    return failed;
}
