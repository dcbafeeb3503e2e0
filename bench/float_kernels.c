/*
 * float_kernels.c - times the float kernels of every ISA this machine has, one thread: dense products with weights that don't
 * fit the cache (GB/s of weights, one token) and that do (GFLOP/s, 32 tokens), attention of 20 query heads over 5 kv heads of
 * 128 (microseconds a layer), the row kernels (ns a row). Arguments: part of an ISA's name to time only that one.
 */
#include "backend/cpu/isa.h"

#include <stdlib.h>
#include <time.h>

typedef void (*dense_fn)(const uint8_t *w, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, float *out, size_t out_stride);

enum { K = 2560, TOKENS = 32, HEADS = 20, KV_HEADS = 5, HEAD_SIZE = 128, LAYERS = 8, MAX_DEPTH = 2048, MAX_QUERIES = 32 };

static void *need(size_t bytes) {
    void *p = setun_alloc_aligned(bytes, 64);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

static uint32_t next(void) {
    static uint32_t state = 1;
    return state = state * 1664525u + 1013904223u;
}
static float uniform(void) { return (float)(int32_t)next() * 0x1p-31f; }

/* The thread's own time, so that a busy machine disturbs less. */
static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of a few runs of `body`, in seconds, for about 0.15 s at least. */
#define BEST(seconds, ...) \
    do { \
        seconds = 1e30; \
        double spent_ = 0; \
        for (int run_ = 0; run_ < 3 || (spent_ < 0.15 && run_ < 1000); run_++) { \
            double start_ = thread_seconds(); \
            __VA_ARGS__; \
            double took_ = thread_seconds() - start_; \
            spent_ += took_; \
            if (took_ < seconds) seconds = took_; \
        } \
    } while (0)

static uint8_t *weights;
static const size_t weight_bytes = 96u << 20;
static float *x, *y;
static volatile float sink;

static void time_dense(const char *isa, const char *name, dense_fn dense, size_t row_bytes) {
    if (!dense) return;
    double decode, cached, prompt;
    int rows = (int)(weight_bytes / row_bytes), few = 64;
    BEST(decode, dense(weights, row_bytes, rows, x, K, 1, K, y, (size_t)rows));
    BEST(cached, dense(weights, row_bytes, few, x, K, 1, K, y, (size_t)few));
    BEST(prompt, dense(weights, row_bytes, few, x, K, TOKENS, K, y, (size_t)few));
    sink = y[0];
    printf("%-8s dense_%-6s 1 token: %6.2f GB/s %6.2f G weights/s (cached %6.2f, %6.2f)   %d tokens: %6.1f GFLOP/s\n", isa, name, (double)row_bytes * rows / decode * 1e-9,
           (double)K * rows / decode * 1e-9, (double)row_bytes * few / cached * 1e-9, (double)K * few / cached * 1e-9, TOKENS, 2.0 * K * few * TOKENS / prompt * 1e-9);
}

/* Weights that are finite in every format: the high byte of each pair keeps the exponent small. */
static void fill_weights(void) {
    for (size_t i = 0; i + 2 <= weight_bytes; i += 2) {
        uint16_t v = (uint16_t)(next() >> 16 & 0x8fff) | 0x2000;
        memcpy(weights + i, &v, 2);
    }
}

static void time_attention(const char *isa, const setun_kernels *k, const uint8_t *cache, float *scratch, setun_dtype type, int depth, int queries) {
    /* as in a cache: ranges of 256 keys, in them the layers and heads, each keys, values, factors */
    size_t element = type == SETUN_F32 ? 4 : type == SETUN_F16 ? 2 : 1, half = SETUN_ATTENTION_RANGE * HEAD_SIZE * element, scales = type == SETUN_I8 ? SETUN_ATTENTION_RANGE * sizeof(float) : 0;
    size_t head_bytes = 2 * (half + scales), range_bytes = head_bytes * KV_HEADS * LAYERS;
    double seconds;
    BEST(seconds, for (int layer = 0; layer < LAYERS; layer++) for (int h = 0; h < KV_HEADS; h++) {
        const uint8_t *keys = cache + (size_t)(layer * KV_HEADS + h) * head_bytes;
        setun_attention_args args = {.q = x + h * (HEADS / KV_HEADS) * HEAD_SIZE, .q_stride = HEADS * HEAD_SIZE, .queries = queries, .group = HEADS / KV_HEADS, .head_size = HEAD_SIZE,
                                     .type = type, .k = keys, .v = keys + half, .k_scales = (const float *)(const void *)(keys + 2 * half),
                                     .v_scales = (const float *)(const void *)(keys + 2 * half + scales), .range_stride = range_bytes, .first = depth - 1, .scale = 0.088f,
                                     .out = y + h * (HEADS / KV_HEADS) * HEAD_SIZE, .out_stride = HEADS * HEAD_SIZE, .scratch = scratch};
        k->attention(&args);
    });
    sink = y[0];
    double pairs = 0;
    for (int i = 0; i < queries; i++) pairs += depth + i;
    printf("%-8s attention %s depth %4d queries %2d: %8.1f us a layer, %6.1f GFLOP/s, %5.1f GB/s\n", isa, type == SETUN_F16 ? "f16" : type == SETUN_I8 ? "i8 " : "f32", depth, queries,
           seconds / LAYERS * 1e6, pairs * HEADS * HEAD_SIZE * 4 * LAYERS / seconds * 1e-9, (double)(depth + queries - 1) * KV_HEADS * HEAD_SIZE * (double)(2 * element) * LAYERS / seconds * 1e-9);
}

static void time_rows(const char *isa, const setun_kernels *k) {
    double seconds;
    printf("%-8s ns a row of %d:", isa, K);
#define ROW(name, call) if (k->name) { BEST(seconds, for (int i = 0; i < 100; i++) call); printf(" " #name " %.0f", seconds * 1e7); }
    ROW(rms_norm, k->rms_norm(x, x + K, 0, K, 1e-5f, y))
    ROW(silu_mul, k->silu_mul(x, x + K, K, y))
    ROW(gelu_mul, k->gelu_mul(x, x + K, K, y))
    ROW(relu2_mul, k->relu2_mul(x, x + K, K, y))
    ROW(add, k->add(x, x + K, K, y))
    ROW(softmax, k->softmax(x, K, y))
    ROW(rope, (memcpy(y, x, K * 4), k->rope(y, HEADS, HEAD_SIZE, HEAD_SIZE, x, x + 64, false)))
    ROW(hadamard, (memcpy(y, x, 2048 * 4), k->hadamard(y, 2048)))
    ROW(f32_to_f16, k->f32_to_f16(x, K, (uint16_t *)(void *)y))
    printf("\n");
}

int main(int argc, char **argv) {
    size_t cache_bytes = (size_t)LAYERS * KV_HEADS * 2 * ((MAX_DEPTH + MAX_QUERIES) / SETUN_ATTENTION_RANGE + 1) * SETUN_ATTENTION_RANGE * (HEAD_SIZE + 1) * 4;
    weights = need(weight_bytes);
    uint8_t *cache = need(cache_bytes);
    x = need(sizeof(float) * K * (TOKENS + 2));
    y = need(sizeof(float) * (weight_bytes / 1024 + K * (TOKENS + 2)));
    float *scratch = need(setun_attention_scratch_floats(HEADS / KV_HEADS, HEAD_SIZE) * sizeof(float));
    for (int i = 0; i < K * (TOKENS + 2); i++) x[i] = uniform();
    fill_weights();
    setun_cpu_features features;
    setun_cpu_detect(&features);
    printf("%s, one thread\n", features.name);
    for (int i = 0; i < setun_isa_count(); i++) {
        const char *isa = setun_isa_name(i);
        const setun_kernels *k = setun_isa_table(i);
        if (!setun_isa_available(i) || (argc > 1 ? !strstr(isa, argv[1]) : i == 0)) continue;
        time_dense(isa, "f32", k->dense_f32, K * 4);
        time_dense(isa, "f16", k->dense_f16, K * 2);
        time_dense(isa, "bf16", k->dense_bf16, K * 2);
        time_dense(isa, "q8_0", k->dense_q8_0, K / 32 * 34);
        time_dense(isa, "q6_k", k->dense_q6_k, K / 256 * 210);
        for (int t = 0; t < 3 && k->attention; t++) {
            static const setun_dtype types[] = {SETUN_F16, SETUN_I8, SETUN_F32};
            /* Bytes that are small numbers in every type, factors included: 0.0xx as f16 or f32. */
            for (size_t j = 0; j < cache_bytes; j += 4) {
                uint32_t v = types[t] == SETUN_F16 ? (next() & 0x0fff0fffu) | 0x28002000u : 0x3c000000u | (next() & 0x7fffffu);
                memcpy(cache + j, &v, 4);
            }
            time_attention(isa, k, cache, scratch, types[t], 128, 1);
            time_attention(isa, k, cache, scratch, types[t], 2048, 1);
            time_attention(isa, k, cache, scratch, types[t], 128, 32);
            time_attention(isa, k, cache, scratch, types[t], 2048, 32);
        }
        time_rows(isa, k);
    }
    setun_free_aligned(weights);
    setun_free_aligned(cache);
    setun_free_aligned(x);
    setun_free_aligned(y);
    setun_free_aligned(scratch);
    return 0;
}
