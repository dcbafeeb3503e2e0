/*
 * Several threads at once, each with a stream of its own, on arrays they share: the right numbers, no "no Stream in current thread",
 * no thread of MLX left behind for each thread of ours. Arrays made on one thread are evaluated and released on another.
 */
#include "mlx_test.h"
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 4, ROUNDS = 60, N = 64 };
static float weights[N * N];
static setun_mlx_array *shared_weights;
static setun_mlx_kernel *kernel;

static int doubled(const setun_mlx_host_call *c) {
    const float *x = c->inputs[0];
    float *y = c->outputs[0];
    for (int i = 0; i < N; i++) y[i] = 2 * x[i];
    return 0;
}

#define try(call) do { if ((call) != SETUN_OK) { snprintf(j->error, sizeof j->error, "%s: %s", #call, t->error()); return NULL; } } while (0)
typedef struct job { int number; setun_mlx_stream *stream; setun_mlx_array *lazy, *given; char error[256]; } job;

static setun_status build(void *user, setun_mlx_array *const *inputs, int n, setun_mlx_array **outputs, int output_count) {
    (void)n;
    (void)output_count;
    job *j = user;
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, N);
    setun_mlx_call call = {.inputs = inputs, .input_count = 1, .outputs = &spec, .output_count = 1};
    return t->kernel_call(j->stream, kernel, &call, outputs);
}

static void *work(void *argument) {
    job *j = argument;
    float x[N], y[N];
    setun_mlx_array *in = NULL, *product = NULL, *out = NULL;
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, N);
    setun_mlx_function *f;
    try(t->eval(j->stream, &j->lazy, 1, true)); /* built by the main thread */
    try(t->function_create(j->stream, build, j, false, &f));
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++) x[i] = (float)((i * 7 + j->number * 3 + round) % 11 - 5);
        try(t->array_from_host(j->stream, &spec, x, &in));
        try(op_on(j->stream, SETUN_MLX_OP_MATMUL, ARRAYS(shared_weights, in), (asked){0}, &product));
        try(t->function_call(f, &product, 1, &out, 1));
        try(t->eval(j->stream, (setun_mlx_array *[]){product, out}, 2, true)); /* several at once: MLX joins them on its default stream, which must be ours */
        try(t->read(j->stream, out, y, sizeof y));
        for (int i = 0; i < N; i++) {
            float want = 0;
            for (int k = 0; k < N; k++) want += weights[i * N + k] * x[k];
            if (y[i] != 2 * want) { /* small integers: exact in any order */
                snprintf(j->error, sizeof j->error, "round %d, row %d: %g instead of %g", round, i, y[i], 2 * want);
                return NULL;
            }
        }
        t->array_release(in);
        t->array_release(product);
        if (round + 1 < ROUNDS) t->array_release(out);
    }
    t->function_release(f);
    try(op_on(j->stream, SETUN_MLX_OP_ADD, ARRAYS(out, out), (asked){0}, &j->given)); /* evaluated by the main thread */
    t->array_release(out);
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

static void each_on_its_own_stream(void **state) {
    (void)state;
    for (int i = 0; i < N * N; i++) weights[i] = (float)(i * 5 % 3 - 1);
    shared_weights = make(spec_of(SETUN_F32, 2, N, N), weights);
    setun_mlx_kernel_options o = {.kind = SETUN_MLX_KERNEL_HOST, .name = "doubled", .input_count = 1, .output_count = 1, .host = doubled};
    ok(t->kernel_create(&o, &kernel));
    int before = 0;
    for (int round = 0; round < 3; round++) {
        if (round == 1) before = threads_of_the_process(); /* MLX's streams are made by now */
        for (int compiled = 0; compiled < 2; compiled++) {
            ok(t->compile_set(compiled)); /* the graph is one kernel: nothing that needs a compiler */
            pthread_t threads[THREADS];
            job jobs[THREADS];
            memset(jobs, 0, sizeof jobs);
            for (int i = 0; i < THREADS; i++) {
                jobs[i].number = i;
                ok(t->stream_open(false, 0, &jobs[i].stream));
                ok(op_on(jobs[i].stream, SETUN_MLX_OP_EXP, ARRAYS(shared_weights), (asked){0}, &jobs[i].lazy));
            }
            for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, &jobs[i]), 0);
            for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
            for (int i = 0; i < THREADS; i++) {
                if (*jobs[i].error) fail_msg("thread %d: %s", i, jobs[i].error);
                float value[N];
                ok(t->read(jobs[i].stream, jobs[i].given, value, sizeof value));
                t->array_release(jobs[i].given);
                t->array_release(jobs[i].lazy);
                t->stream_close(jobs[i].stream);
            }
        }
    }
    ok(t->compile_set(false));
    int after = threads_of_the_process();
    if (before != after) fail_msg("%d threads before, %d after 16 of ours came and went", before, after);
    t->kernel_release(kernel);
    t->array_release(shared_weights);
    setun_mlx_counters c;
    t->counters(&c);
    assert_true(c.arrays == 0 && c.functions == 0 && c.kernels == 0);
    assert_true(c.streams <= THREADS + 2);
}

/* A long evaluation does not keep other threads from scheduling: the lock is open while a thread waits. */
static atomic_int slept;
static int sleeper(const setun_mlx_host_call *c) {
    (void)c;
    struct timespec rest = {.tv_nsec = 200000000};
    nanosleep(&rest, NULL);
    atomic_store(&slept, 1);
    return 0;
}
static void *wait_for_it(void *argument) {
    job *j = argument;
    try(t->eval(j->stream, &j->lazy, 1, true));
    return NULL;
}

static void waiting_holds_no_lock(void **state) {
    (void)state;
    setun_mlx_kernel_options o = {.kind = SETUN_MLX_KERNEL_HOST, .name = "sleeper", .output_count = 1, .host = sleeper};
    job j = {0};
    ok(t->kernel_create(&o, &kernel));
    ok(t->stream_open(false, 0, &j.stream));
    setun_mlx_spec spec = spec_of(SETUN_F32, 1, 1);
    setun_mlx_call call = {.outputs = &spec, .output_count = 1};
    ok(t->kernel_call(j.stream, kernel, &call, &j.lazy));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wait_for_it, &j), 0);
    struct timespec rest = {.tv_nsec = 20000000};
    nanosleep(&rest, NULL);
    setun_mlx_array *x = vector(2, 1, 2), *y;
    float back[2];
    ok(op_on(stream, SETUN_MLX_OP_ADD, ARRAYS(x, x), (asked){0}, &y));
    ok(t->read(stream, y, back, sizeof back));
    assert_int_equal(atomic_load(&slept), 0); /* a whole evaluation of ours while the other one waits */
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(j.error, "");
    assert_int_equal(atomic_load(&slept), 1);
    t->array_release(x);
    t->array_release(y);
    t->array_release(j.lazy);
    t->stream_close(j.stream);
    t->kernel_release(kernel);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_on_its_own_stream), cmocka_unit_test(waiting_holds_no_lock)};
    int status = open_mlx();
    if (status) return status;
    status = cmocka_run_group_tests(tests, NULL, NULL);
    close_mlx();
    return status;
}
