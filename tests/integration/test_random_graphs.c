/*
 * test_random_graphs.c - random graphs on the CPU: fused and unfused, one thread and three, plain C and the best kernels, give the
 * same bits, in one run of many tokens and, with a cache, over several runs.
 */
#include "integration/support.h"
#include "unit/plan/random_graph.h"
#include <time.h>

enum { MOST_TOKENS = 23 };

typedef struct variant { const char *isa; int threads; bool no_fusion; } variant;
static const variant variants[] = {{NULL, 3, false}, {NULL, 3, true}, {NULL, 1, false}, {"ref", 1, true}, {"ref", 2, false}};
#define VARIANTS (int)(sizeof variants / sizeof variants[0])

static void bind(setun_plan *plan, const char *name, setun_dtype dtype, int tokens, int64_t width, const void *data) {
    setun_tensor *tensor;
    int64_t shape[2] = {tokens, width};
    EXPECT_OK(setun_tensor_wrap(dtype, dtype == SETUN_I32 ? 1 : 2, shape, (void *)(uintptr_t)data, &tensor));
    EXPECT_OK(setun_plan_set_input(plan, name, tensor));
    setun_tensor_destroy(tensor);
}

/* Runs the graph in the given pieces and hashes the outputs of every run. */
static uint64_t run_graph(setun_context *context, uint64_t seed, int operations, const variant *v, const int *pieces, int piece_count, const float *values, int *out_steps, uint64_t *numbers, uint64_t *finite) {
    setun_graph *g = random_graph(context, &seed, operations, true);
    setun_compile_options options = {.size = sizeof options, .tokens_max = MOST_TOKENS, .no_fusion = v->no_fusion, .cache_tokens = 64};
    setun_plan *plan;
    EXPECT_OK(setun_graph_compile(g, &options, &plan));
    int outputs = g->output_count, position = 0;
    setun_graph_destroy(g);
    *out_steps = plan->step_count;
    uint64_t hash = 14695981039346656037u;
    for (int n = 0; n < piece_count; n++) {
        int32_t positions[MOST_TOKENS];
        for (int i = 0; i < pieces[n]; i++) positions[i] = position + i;
        bind(plan, "positions", SETUN_I32, pieces[n], 1, positions);
        for (int i = 0; i < 3; i++) bind(plan, (const char *[]){"x0", "x1", "x2"}[i], SETUN_F32, pieces[n], random_widths[i], values + 64 * position + i);
        EXPECT_OK(setun_plan_run(plan, pieces[n], 1));
        position += pieces[n];
        for (int i = 0; i < outputs; i++) {
            char name[16];
            snprintf(name, sizeof name, "out%d", i);
            setun_tensor *out;
            EXPECT_OK(setun_plan_get_output(plan, name, &out));
            const uint32_t *bits = setun_tensor_data(out);
            for (size_t j = 0; j < setun_tensor_bytes(out) / 4; j++) {
                hash = (hash ^ bits[j]) * 1099511628211u;
                *numbers += 1;
                *finite += isfinite(((const float *)bits)[j]) && ((const float *)bits)[j] != 0;
            }
            setun_tensor_destroy(out);
        }
    }
    setun_plan_destroy(plan);
    return hash;
}

static void all_variants_agree(void **state) {
    (void)state;
    uint64_t seed = (uint64_t)time(NULL) * 2654435761u + 1;
    const char *given = getenv("SETUN_TEST_SEED");
    if (given) seed = strtoull(given, NULL, 0);
    print_message("seed %llu\n", (unsigned long long)seed);
    setun_context *contexts[VARIANTS];
    for (int i = 0; i < VARIANTS; i++) contexts[i] = test_context(variants[i].threads, variants[i].isa);
    static float values[64 * 64 + 160 * MOST_TOKENS];
    static const int pieces[][4] = {{1}, {MOST_TOKENS}, {5, 1, 1, 9}, {17, 3}};
    static const int piece_counts[] = {1, 1, 4, 2};
    int fused_away = 0;
    uint64_t numbers = 0, finite = 0;
    for (int n = 0; n < 60; n++) {
        uint64_t own = seed + (uint64_t)n * 7919;
        for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) values[i] = (float)((int)(test_random(&own) % 2001) - 1000) / 500;
        int operations = 3 + (int)(test_random(&own) % 30), which = n % 4, steps[VARIANTS];
        uint64_t hash[VARIANTS];
        for (int i = 0; i < VARIANTS; i++) {
            hash[i] = run_graph(contexts[i], own, operations, &variants[i], pieces[which], piece_counts[which], values, &steps[i], &numbers, &finite);
            if (hash[i] != hash[0]) fail_msg("graph %d, %d operations: variant %d differs from variant 0 (seed %llu)", n, operations, i, (unsigned long long)seed);
        }
        fused_away += steps[1] - steps[0];
    }
    print_message("%d steps fused away; %.1f %% of %llu outputs are numbers other than 0\n", fused_away, 100.0 * (double)finite / (double)numbers, (unsigned long long)numbers);
    assert_true(fused_away > 100);
    assert_true(finite > numbers / 2); /* NaN and 0 would agree too easily */
    for (int i = 0; i < VARIANTS; i++) setun_context_destroy(contexts[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_variants_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
