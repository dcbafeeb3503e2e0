/*
 * The common cases of tensors on MLX's CPU; laziness, limits, references to MLX's own arrays, several threads, graphs whose inputs are
 * tensors of a device, a model's weights where the file is mapped.
 */
#include "../integration/tensor_cases.h"
#include <pthread.h>
#include "model/model.h"

static void lazy_until_asked(void **state) {
    (void)state;
    setun_tensor *a, *b;
    ok(setun_tensor_create_on(stream, SETUN_F32, SHAPE(3), (float[]){1, 2, 3}, &a));
    ok(setun_tensor_copy_to(a, stream, SETUN_BF16, &b));
    assert_null(setun_tensor_data(b)); /* nothing computed yet */
    ok(setun_tensor_evaluate(&b, 1, true));
    const uint16_t *x = setun_tensor_data(b);
    assert_non_null(x);
    assert_true(x[0] == 0x3f80 && x[1] == 0x4000 && x[2] == 0x4040);
    setun_tensor_destroy(b);
    ok(setun_tensor_copy_to(a, stream, SETUN_I64, &b)); /* any dtype on MLX */
    int64_t back[3];
    ok(setun_tensor_read(b, back, sizeof back));
    assert_true(back[2] == 3);
    void *theirs;
    setun_tensor *same;
    ok(setun_tensor_to_mlx(b, &theirs));
    ok(setun_tensor_from_mlx(stream, theirs, &same));
    setun_tensor_destroy(b);
    memset(back, 0, sizeof back);
    ok(setun_tensor_read(same, back, sizeof back));
    assert_true(back[1] == 2 && setun_tensor_dtype(same) == SETUN_I64 && setun_tensor_dim(same, 0) == 3);
    setun_tensor_destroy(same);
    setun_tensor_destroy(a);
    fails(setun_tensor_from_mlx(stream, NULL, &same), SETUN_ERROR_ARGUMENT, "mlx_array is NULL");
}

static void devices_and_limits(void **state) {
    (void)state;
    int count;
    const char *name;
    bool found = false;
    ok(setun_context_device_count(context, &count));
    assert_true(count >= 2);
    for (int i = 0; i < count; i++) {
        setun_device_info info = {.size = sizeof info};
        ok(setun_context_device_name(context, i, &name));
        ok(setun_device_get_info(context, name, &info));
        assert_string_equal(info.id, name);
        assert_true(info.optimal_limit_bytes > 0 && *info.name && *info.backend);
        found = found || !strcmp(name, "mlx:cpu");
    }
    assert_true(found);
    uint64_t before, optimal;
    setun_device_info info = {.size = sizeof info};
    setun_device_memory memory = {.size = sizeof memory};
    ok(setun_device_get_info(context, device, &info));
    ok(setun_device_set_limit(context, device, SETUN_LIMIT_MEMORY, SETUN_LIMIT_OPTIMAL, &before));
    ok(setun_device_get_memory(context, device, &memory));
    assert_int_equal(memory.limit_bytes, info.optimal_limit_bytes);
    ok(setun_device_set_limit(context, device, SETUN_LIMIT_MEMORY, before, &optimal));
    assert_int_equal(optimal, info.optimal_limit_bytes);
    ok(setun_device_set_limit(context, device, SETUN_LIMIT_CACHE, 1 << 20, &before));
    ok(setun_device_set_limit(context, device, SETUN_LIMIT_CACHE, before, NULL));
    ok(setun_device_clear_cache(context, device));
    ok(setun_device_get_info(context, device, &info));
    assert_false(info.compiles);
    ok(setun_device_set_compile(context, device, true));
    ok(setun_device_get_info(context, device, &info));
    assert_true(info.compiles);
    ok(setun_device_set_compile(context, device, false));
    ok(setun_context_set_device(context, "mlx:cpu"));
    ok(setun_context_get_device(context, &name));
    assert_string_equal(name, "mlx:cpu");
    setun_stream *s;
    ok(setun_stream_create(context, NULL, &s)); /* the default device */
    assert_string_equal(setun_stream_device(s), "mlx:cpu");
    setun_stream_destroy(s);
    ok(setun_context_set_device(context, "auto"));
    char *json;
    ok(setun_context_describe(context, &json));
    assert_non_null(strstr(json, "\"mlx\": {\"found\": true, \"version\": \"0."));
    assert_non_null(strstr(json, "\"id\": \"mlx:cpu\", \"backend\": \"cpu\""));
    setun_free(json);
}

typedef struct job { int number; char error[256]; } job;
static void *own_stream(void *argument) {
    job *j = argument;
    setun_stream *s;
    if (setun_stream_create(context, device, &s) != SETUN_OK) goto failed;
    for (int round = 0; round < 40; round++) {
        float x[32], y[32];
        for (int i = 0; i < 32; i++) x[i] = (float)(j->number * 100 + round + i);
        setun_tensor *a, *b, *c;
        if (setun_tensor_create_on(s, SETUN_F32, SHAPE(4, 8), x, &a) != SETUN_OK || setun_tensor_copy_to(a, s, SETUN_I32, &b) != SETUN_OK || setun_tensor_copy_to(b, s, SETUN_F32, &c) != SETUN_OK ||
            setun_tensor_read(c, y, sizeof y) != SETUN_OK) goto failed;
        if (memcmp(x, y, sizeof x)) {
            snprintf(j->error, sizeof j->error, "round %d: the values differ", round);
            return NULL;
        }
        setun_tensor_destroy(a);
        setun_tensor_destroy(b);
        setun_tensor_destroy(c);
    }
    setun_stream_destroy(s);
    return NULL;
failed:
    snprintf(j->error, sizeof j->error, "%s", setun_error());
    return NULL;
}

static void four_threads(void **state) {
    (void)state;
    pthread_t threads[4];
    job jobs[4] = {{0}};
    for (int i = 0; i < 4; i++) {
        jobs[i].number = i;
        assert_int_equal(pthread_create(&threads[i], NULL, own_stream, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_string_equal(jobs[i].error, "");
    }
}

/* A tensor of a device as the input of a plan: waited for and copied. */
static void into_a_plan(void **state) {
    (void)state;
    setun_graph *graph;
    setun_plan *plan;
    ok(setun_graph_create(context, &graph));
    setun_node x = setun_graph_input(graph, "x", SETUN_F32, SHAPE(SETUN_DIM_TOKENS, 4));
    ok(setun_graph_output(graph, setun_graph_scale(graph, x, 2.0f), "y"));
    ok(setun_graph_compile(graph, &(setun_compile_options){.size = sizeof(setun_compile_options), .device = "cpu"}, &plan));
    setun_tensor *halves, *full, *y;
    ok(setun_tensor_create_on(stream, SETUN_F16, SHAPE(1, 4), (uint16_t[]){0x3c00, 0x4000, 0x4200, 0xc400}, &halves));
    ok(setun_tensor_copy_to(halves, stream, SETUN_F32, &full)); /* lazy */
    ok(setun_plan_set_input(plan, "x", full));
    ok(setun_plan_run(plan, 1, 1));
    ok(setun_plan_get_output(plan, "y", &y));
    const float *out = setun_tensor_data(y);
    assert_true(out[0] == 2 && out[1] == 4 && out[2] == 6 && out[3] == -8);
    setun_tensor_destroy(halves);
    setun_tensor_destroy(full);
    setun_tensor_destroy(y);
    setun_plan_destroy(plan);
    setun_graph_destroy(graph);
}

/* The weights of the model in the repository, from the mapped file to MLX by pointer. */
static void a_models_weights(void **state) {
    (void)state;
    setun_model *model;
    ok(setun_model_open(context, SETUN_TEST_MODEL, &(setun_model_options){.size = sizeof(setun_model_options), .device = "cpu"}, &model));
    uint64_t shared_bytes = 0, weight_bytes = 0;
    setun_tensor *tensors[512];
    int count = 0;
    for (int i = 0; i < model->weight_count && count < 512; i++) {
        const setun_weight *w = &model->weights[i];
        if (!w->bytes) continue;
        assert_true(w->mapped);
        bool shared;
        ok(setun_tensor_share_on(stream, SETUN_U8, SHAPE((int64_t)w->bytes), (void *)(uintptr_t)w->data, NULL, NULL, &tensors[count], &shared));
        weight_bytes += w->bytes;
        if (shared) {
            assert_ptr_equal(setun_tensor_data(tensors[count]), w->data);
            shared_bytes += w->bytes;
        }
        count++;
    }
    assert_true(count > 200 && weight_bytes > (10 << 20));
    assert_int_equal(shared_bytes, weight_bytes);
    print_message("%d weights, %.1f MiB: %.1f %% by pointer\n", count, (double)weight_bytes / 1048576.0, 100.0 * (double)shared_bytes / (double)weight_bytes);
    for (int i = 0; i < count; i++) setun_tensor_destroy(tensors[i]);
    setun_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {TENSOR_CASES, cmocka_unit_test(lazy_until_asked), cmocka_unit_test(devices_and_limits), cmocka_unit_test(four_threads), cmocka_unit_test(into_a_plan), cmocka_unit_test(a_models_weights)};
    if (!getenv("SETUN_MLX_BRIDGE")) return 77;
    device = "mlx:cpu";
    if (setun_context_create(NULL, &context) != SETUN_OK || setun_stream_create(context, device, &stream) != SETUN_OK) {
        fprintf(stderr, "%s\n", setun_error());
        return 1;
    }
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    setun_stream_destroy(stream);
    setun_context_destroy(context);
    return status;
}
