/*
 * kernel_ladder.c - the ternary kernels of every ISA, rung by rung: first verified against ref, then timed on one thread beside what
 * the machine can do (streaming reads; int8 multiply-adds of that ISA on registers), measured in the same run.
 *   decode: one token, 6912 x 2560, matrices larger than the caches in total, GB of packed weights a second
 *   prompt: 512 tokens, 6912 x 2560, G operations a second (two a multiply-add)
 * Options: --json, --isa NAME (that one only), --seconds S (for each figure, default 0.5). Knows kernels only, no models.
 */
#include "backend/cpu/kernels.h"
#include "ternary/ternary.h"

#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { ROWS = 6912, K = 2560, ROW_BYTES = K / 4, TOKENS = 512, FEW_TOKENS = 32, MATRICES = 24, CHUNK = 96, TRIPLE_BYTES = K / 64 * 40, GROUP = 128, MAX_PASSES = 256 };

static double budget = 0.5;
static bool json;
static volatile uint64_t sink;

static uint8_t *codes;     /* [MATRICES][ROWS][ROW_BYTES] */
static uint8_t *trits;     /* [MATRICES][ROWS / 3][TRIPLE_BYTES]: the same weights */
static int8_t *x_i8;       /* [TOKENS][K] */
static float *x_f32;       /* [TOKENS][K] */
static float *scales;      /* [ROWS][K / GROUP] */
static int32_t *sums;      /* [TOKENS][ROWS] */
static int32_t *many_sums; /* [TOKENS][864 + 16] */
static void *many_scratch;
static float *outputs;     /* [TOKENS][ROWS] */

/* The thread's own time, so that a busy machine disturbs less. */
static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t next_random(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static void *need(size_t bytes) {
    void *p = setun_alloc_aligned(bytes, 4096);
    if (!p) {
        fprintf(stderr, "kernel_ladder: out of memory (%zu MiB)\n", bytes >> 20);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

static void *need_huge(size_t bytes) {
    void *p = setun_alloc_huge(bytes);
    if (p) return p;
    fprintf(stderr, "kernel_ladder: out of memory (%zu MiB)\n", bytes >> 20);
    exit(1);
}

static void fill(void) {
    codes = need_huge((size_t)MATRICES * ROWS * ROW_BYTES); /* as packed weights lie */
    trits = need_huge((size_t)MATRICES * ROWS / 3 * TRIPLE_BYTES);
    x_i8 = need((size_t)TOKENS * K);
    x_f32 = need((size_t)TOKENS * K * 4);
    scales = need((size_t)ROWS * (K / GROUP) * 4);
    sums = need((size_t)TOKENS * ROWS * 4);
    many_sums = need((size_t)TOKENS * (864 + 16) * 4);
    many_scratch = need(setun_many_scratch(K));
    outputs = need((size_t)TOKENS * ROWS * 4);
    uint8_t bytes[81]; /* the 81 bytes without a code 3 */
    for (int i = 0; i < 81; i++) bytes[i] = (uint8_t)(i / 27 << 6 | i / 9 % 3 << 4 | i / 3 % 3 << 2 | i % 3);
    for (size_t i = 0; i < (size_t)MATRICES * ROWS * ROW_BYTES; i++) codes[i] = bytes[next_random() % 81];
    for (size_t r = 0; r < (size_t)MATRICES * ROWS; r += 3)
        (void)setun_pack_trits(codes + r * ROW_BYTES, codes + (r + 1) * ROW_BYTES, codes + (r + 2) * ROW_BYTES, K, trits + r / 3 * TRIPLE_BYTES); /* cannot fail: no code 3 */
    for (size_t i = 0; i < (size_t)TOKENS * K; i++) {
        x_i8[i] = (int8_t)next_random();
        x_f32[i] = (float)(int32_t)next_random() * 0x1p-31f;
    }
    for (size_t i = 0; i < (size_t)ROWS * (K / GROUP); i++) scales[i] = 0.5f + (float)(next_random() % 1000) * 0.001f;
}

/* ---- the machine ---- */

typedef struct rate { double median, best; } rate;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One pass of work; returns how many units it did (it may stop after `limit` seconds). */
typedef double (*pass_fn)(const setun_kernels *table, int pass, double limit);

static rate measure(pass_fn pass, const setun_kernels *table) {
    double rates[MAX_PASSES], spent = 0;
    int n = 0;
    while (n < MAX_PASSES && (n < 1 || spent < budget)) {
        double start = seconds_now(), units = pass(table, n, 4 * budget), took = seconds_now() - start;
        spent += took;
        rates[n++] = units / (took > 1e-9 ? took : 1e-9) * 1e-9;
    }
    qsort(rates, (size_t)n, sizeof *rates, ascending);
    return (rate){rates[n / 2], rates[n - 1]};
}

static double read_pass(const setun_kernels *table, int pass, double limit) {
    (void)table, (void)pass, (void)limit;
    typedef uint64_t words __attribute__((vector_size(64)));
    const words *p = (const words *)(const void *)codes;
    size_t n = (size_t)MATRICES * ROWS * ROW_BYTES / sizeof(words);
    words a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 4 <= n; i += 4) {
        a ^= p[i];
        b ^= p[i + 1];
        c ^= p[i + 2];
        d ^= p[i + 3];
    }
    a ^= b ^ c ^ d;
    sink += a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    return (double)n * sizeof(words);
}

/* Multiply-adds on registers, ten independent chains; returns operations done. What an inner loop with free loads could reach. */
enum { PEAK_STEPS = 1000000, PEAK_CHAINS = 10 };
/* Written out, so that the chains are variables and stay in registers. */
#define EACH_CHAIN(X, a, b) X(0, a, b) X(1, a, b) X(2, a, b) X(3, a, b) X(4, a, b) X(5, a, b) X(6, a, b) X(7, a, b) X(8, a, b) X(9, a, b)
#define PEAK(name, attribute, vector, zero, step, add, to_integer, lanes) \
    attribute static double name(const setun_kernels *table, int pass, double limit) { \
        (void)table, (void)pass, (void)limit; \
        vector u, v; \
        memset(&u, 2, sizeof u); \
        memset(&v, (int)(sink & 1), sizeof v); \
        EACH_CHAIN(DECLARE, vector, zero) \
        for (int s = 0; s < PEAK_STEPS; s++) { EACH_CHAIN(step, , ) } \
        vector total = zero; \
        EACH_CHAIN(ADD, add, ) \
        sink += (uint64_t)to_integer(total); \
        return 2.0 * (lanes) * PEAK_CHAINS * PEAK_STEPS; \
    }
#define DECLARE(i, vector, zero) vector acc##i = zero;
#define ADD(i, add, unused) total = add(total, acc##i);
#if defined(__x86_64__)
#define STEP_AVX2(i, a, b) { \
        __m256i product = _mm256_maddubs_epi16(u, v); \
        __asm__ volatile("" : "+x"(product)); \
        acc##i = _mm256_add_epi16(acc##i, product); \
        __asm__ volatile("" : "+x"(acc##i)); \
    }
#define STEP_AVX512(i, a, b) acc##i = _mm512_dpbusd_epi32(acc##i, u, v); __asm__ volatile("" : "+v"(acc##i));
#define FIRST_LANE(total) _mm_cvtsi128_si32(_mm256_castsi256_si128(total))
PEAK(peak_avx2, __attribute__((target("avx2"))), __m256i, _mm256_setzero_si256(), STEP_AVX2, _mm256_add_epi16, FIRST_LANE, 32)
PEAK(peak_avx512, __attribute__((target("avx512f,avx512vnni"))), __m512i, _mm512_setzero_si512(), STEP_AVX512, _mm512_add_epi32, _mm512_reduce_add_epi32, 64)
#elif defined(__aarch64__)
#define STEP_NEON(i, a, b) acc##i = vmlal_s8(acc##i, vreinterpret_s8_s16(vget_low_s16(u)), vreinterpret_s8_s16(vget_low_s16(v))); __asm__ volatile("" : "+w"(acc##i));
#if defined(__clang__)
#define WITH_DOTPROD __attribute__((target("dotprod")))
#else
#define WITH_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
/* As text: clang's arm_neon.h has the intrinsic only where the whole file is compiled for it. */
#define STEP_DOTPROD(i, a, b) __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc##i) : "w"(u), "w"(v));
PEAK(peak_neon, , int16x8_t, vdupq_n_s16(0), STEP_NEON, vaddq_s16, vaddvq_s16, 8)
PEAK(peak_neon_dotprod, WITH_DOTPROD, int32x4_t, vdupq_n_s32(0), STEP_DOTPROD, vaddq_s32, vaddvq_s32, 16)
#endif

static pass_fn peak_of(const char *isa) {
#if defined(__x86_64__)
    if (!strcmp(isa, "avx2")) return peak_avx2;
    if (!strcmp(isa, "avx512")) return peak_avx512;
#elif defined(__aarch64__)
    if (!strcmp(isa, "neon")) return peak_neon;
    if (!strcmp(isa, "neon_dotprod")) return peak_neon_dotprod;
#endif
    (void)isa;
    return NULL;
}

/* ---- the kernels ---- */

/* Rows in pieces, as threads take them; stops after the limit, so that ref does not take minutes. */
static double decode_pass(const setun_kernels *table, int pass, double limit) {
    double end = seconds_now() + limit;
    int r = 0;
    const uint8_t *matrix = codes + (size_t)(pass % MATRICES) * ROWS * ROW_BYTES;
    for (; r < ROWS && seconds_now() < end; r += CHUNK) table->ternary_i8(matrix + (size_t)r * ROW_BYTES, ROW_BYTES, CHUNK, x_i8, K, 1, K, sums + r, ROWS);
    return (double)r * ROW_BYTES;
}
static double prompt_pass(const setun_kernels *table, int pass, double limit) {
    (void)pass;
    double end = seconds_now() + limit;
    int r = 0;
    for (; r < ROWS && seconds_now() < end; r += CHUNK) table->ternary_i8(codes + (size_t)r * ROW_BYTES, ROW_BYTES, CHUNK, x_i8, K, TOKENS, K, sums + r, ROWS);
    return 2.0 * r * K * TOKENS;
}
/* The same products in large tiles, as a prompt's steps take them. */
static double many_pass(const setun_kernels *table, int pass, double limit) {
    enum { TALL = 864 };
    (void)pass;
    double end = seconds_now() + limit;
    int r = 0;
    for (; r < ROWS && seconds_now() < end; r += TALL) table->ternary_i8_many(codes + (size_t)r * ROW_BYTES, ROW_BYTES, TALL, x_i8, K, TOKENS, K, many_sums, TALL + 16, many_scratch);
    return 2.0 * r * K * TOKENS;
}
static double trits_pass(const setun_kernels *table, int pass, double limit, int tokens) {
    double end = seconds_now() + limit;
    int r = 0;
    const uint8_t *matrix = trits + (size_t)(pass % MATRICES) * ROWS / 3 * TRIPLE_BYTES;
    for (; r < ROWS && seconds_now() < end; r += CHUNK) table->trits_i8(matrix + (size_t)(r / 3) * TRIPLE_BYTES, TRIPLE_BYTES, CHUNK, x_i8, K, tokens, K, sums + r, ROWS);
    return (double)r;
}
static double trits_decode_pass(const setun_kernels *table, int pass, double limit) { return trits_pass(table, pass, limit, 1) / 3 * TRIPLE_BYTES; }
static double trits_few_pass(const setun_kernels *table, int pass, double limit) { return trits_pass(table, pass, limit, 8) * 2.0 * K * 8; }
static double trits_prompt_pass(const setun_kernels *table, int pass, double limit) { return trits_pass(table, pass, limit, TOKENS) * 2.0 * K * TOKENS; }
static double few_pass(const setun_kernels *table, int pass, double limit) {
    double end = seconds_now() + limit;
    int r = 0;
    const uint8_t *matrix = codes + (size_t)(pass % MATRICES) * ROWS * ROW_BYTES;
    for (; r < ROWS && seconds_now() < end; r += CHUNK) table->ternary_i8(matrix + (size_t)r * ROW_BYTES, ROW_BYTES, CHUNK, x_i8, K, 8, K, sums + r, ROWS);
    return 2.0 * r * K * 8;
}
static double float_pass(const setun_kernels *table, int pass, double limit, int tokens, int group) {
    double end = seconds_now() + limit;
    int r = 0;
    const uint8_t *matrix = codes + (size_t)(pass % MATRICES) * ROWS * ROW_BYTES;
    for (; r < ROWS && seconds_now() < end; r += CHUNK)
        table->ternary_f32(matrix + (size_t)r * ROW_BYTES, ROW_BYTES, CHUNK, x_f32, K, tokens, K, group ? scales + (size_t)r * (K / GROUP) : NULL, K / GROUP, group, outputs + r, ROWS);
    return (double)r;
}
static double float_decode_pass(const setun_kernels *table, int pass, double limit) { return float_pass(table, pass, limit, 1, 0) * ROW_BYTES; }
static double float_group_decode_pass(const setun_kernels *table, int pass, double limit) { return float_pass(table, pass, limit, 1, GROUP) * ROW_BYTES; }
static double float_prompt_pass(const setun_kernels *table, int pass, double limit) { return float_pass(table, pass, limit, FEW_TOKENS, 0) * 2.0 * K * FEW_TOKENS; }
static double float_group_prompt_pass(const setun_kernels *table, int pass, double limit) { return float_pass(table, pass, limit, FEW_TOKENS, GROUP) * 2.0 * K * FEW_TOKENS; }
static double quantize_pass(const setun_kernels *table, int pass, double limit) {
    (void)limit;
    float scale;
    int32_t sum;
    for (int t = 0; t < TOKENS; t++) table->quantize_i8(x_f32 + (size_t)((t + pass) % 8) * K, K, K, x_i8, &scale, &sum);
    return (double)TOKENS * K;
}
static double scale_pass(const setun_kernels *table, int pass, double limit) {
    (void)limit;
    for (int t = 0; t < TOKENS; t++) table->scale_sums(sums + (size_t)((t + pass) % 8) * ROWS, ROWS, 1000, 0.01f, NULL, 0.5f, outputs);
    return (double)TOKENS * ROWS;
}

typedef struct rung { const char *name, *unit; pass_fn pass; size_t member; } rung;
#define MEMBER(name) offsetof(setun_kernels, name)
static const rung rungs[] = {
    {"ternary_i8 decode", "GB/s", decode_pass, MEMBER(ternary_i8)},
    {"ternary_i8 prompt", "Gop/s", prompt_pass, MEMBER(ternary_i8)},
    {"ternary_i8 8 tokens", "Gop/s", few_pass, MEMBER(ternary_i8)},
    {"ternary_i8_many prompt", "Gop/s", many_pass, MEMBER(ternary_i8_many)},
    {"trits_i8 decode", "GB/s", trits_decode_pass, MEMBER(trits_i8)},
    {"trits_i8 8 tokens", "Gop/s", trits_few_pass, MEMBER(trits_i8)},
    {"trits_i8 prompt", "Gop/s", trits_prompt_pass, MEMBER(trits_i8)},
    {"ternary_f32 decode", "GB/s", float_decode_pass, MEMBER(ternary_f32)},
    {"ternary_f32 decode, groups of 128", "GB/s", float_group_decode_pass, MEMBER(ternary_f32)},
    {"ternary_f32 32 tokens", "Gop/s", float_prompt_pass, MEMBER(ternary_f32)},
    {"ternary_f32 32 tokens, groups of 128", "Gop/s", float_group_prompt_pass, MEMBER(ternary_f32)},
    {"quantize_i8", "Gvalue/s", quantize_pass, MEMBER(quantize_i8)},
    {"scale_sums", "Gvalue/s", scale_pass, MEMBER(scale_sums)},
};

/* A table without a kernel inherits it, and its figure: only what it brings itself is timed. */
static bool has(const setun_kernels *table, size_t member) {
    void (*entry)(void);
    memcpy(&entry, (const char *)table + member, sizeof entry);
    return entry != NULL;
}

/* A kernel that is wrong is not worth timing. */
static bool verify(const setun_kernels *table) {
    enum { N = 41, T = 23 };
    const setun_kernels *ref = setun_isa_table(0);
    static int32_t want[T * N], got[T * N];
    static float want_f[T * N], got_f[T * N];
    if (table->ternary_i8) {
        ref->ternary_i8(codes, ROW_BYTES, N, x_i8, K, T, K, want, N);
        table->ternary_i8(codes, ROW_BYTES, N, x_i8, K, T, K, got, N);
        if (memcmp(want, got, sizeof want)) return false;
    }
    if (table->trits_i8) {
        ref->ternary_i8(codes, ROW_BYTES, N, x_i8, K, T, K, want, N);
        table->trits_i8(trits, TRIPLE_BYTES, N, x_i8, K, T, K, got, N);
        if (memcmp(want, got, sizeof want)) return false;
    }
    if (table->ternary_i8_many) {
        ref->ternary_i8(codes, ROW_BYTES, N, x_i8, K, T, K, want, N);
        table->ternary_i8_many(codes, ROW_BYTES, N, x_i8, K, T, K, got, N, many_scratch);
        if (memcmp(want, got, sizeof want)) return false;
    }
    for (int group = 0; table->ternary_f32 && group <= GROUP; group += GROUP) {
        ref->ternary_f32(codes, ROW_BYTES, N, x_f32, K, T, K, scales, K / GROUP, group, want_f, N);
        table->ternary_f32(codes, ROW_BYTES, N, x_f32, K, T, K, scales, K / GROUP, group, got_f, N);
        if (memcmp(want_f, got_f, sizeof want_f)) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) json = true;
        else if (!strcmp(argv[i], "--isa") && i + 1 < argc) only = argv[++i];
        else if (!strcmp(argv[i], "--seconds") && i + 1 < argc && atof(argv[i + 1]) > 0) budget = atof(argv[++i]);
        else {
            fprintf(stderr, "usage: bench_kernel_ladder [--json] [--isa NAME] [--seconds S]\n");
            return 2;
        }
    }
    if (only && !setun_kernels_select(only)) {
        fprintf(stderr, "kernel_ladder: %s\n", setun_error());
        return 2;
    }
    fill();
    setun_cpu_features cpu;
    setun_cpu_detect(&cpu);
    rate reads = measure(read_pass, NULL);
    if (json) printf("{\"cpu\":\"%s\",\"shape\":[%d,%d],\"read_gb_per_second\":{\"median\":%.2f,\"best\":%.2f},\"isas\":[", cpu.name, ROWS, K, reads.median, reads.best);
    else printf("%s, one thread, %d x %d; median (best)\n%-14s %-38s %8.2f (%.2f) GB/s\n", cpu.name, ROWS, K, "machine", "streaming reads", reads.median, reads.best);
    int failures = 0, printed = 0;
    for (int i = 0; i < setun_isa_count(); i++) {
        const char *name = setun_isa_name(i);
        const setun_kernels *table = setun_isa_table(i);
        if (!setun_isa_available(i) || (only && strcmp(only, name))) continue;
        bool right = verify(table);
        if (json) printf("%s{\"isa\":\"%s\",\"verified\":%s,\"rungs\":[", printed++ ? "," : "", name, right ? "true" : "false");
        if (!right) {
            failures++;
            if (json) printf("]}");
            else printf("%-14s differs from ref: not timed\n", name);
            continue;
        }
        int count = 0;
        pass_fn peak = peak_of(name);
        if (peak) {
            rate p = measure(peak, NULL);
            if (json) printf("%s{\"name\":\"int8 multiply-add peak\",\"unit\":\"Gop/s\",\"median\":%.3f,\"best\":%.3f}", count++ ? "," : "", p.median, p.best);
            else printf("%-14s %-38s %8.2f (%.2f) Gop/s\n", name, "int8 multiply-adds on registers", p.median, p.best);
        }
        for (size_t k = 0; k < sizeof rungs / sizeof *rungs; k++) {
            if (!has(table, rungs[k].member)) continue;
            rate p = measure(rungs[k].pass, table);
            if (json) printf("%s{\"name\":\"%s\",\"unit\":\"%s\",\"median\":%.3f,\"best\":%.3f}", count++ ? "," : "", rungs[k].name, rungs[k].unit, p.median, p.best);
            else printf("%-14s %-38s %8.2f (%.2f) %s\n", name, rungs[k].name, p.median, p.best, rungs[k].unit);
            fflush(stdout);
        }
        if (json) printf("]}");
    }
    if (json) printf("]}\n");
    setun_free_huge(codes, (size_t)MATRICES * ROWS * ROW_BYTES);
    setun_free_huge(trits, (size_t)MATRICES * ROWS / 3 * TRIPLE_BYTES);
    void *all[] = {many_sums, many_scratch, x_i8, x_f32, scales, sums, outputs};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) setun_free_aligned(all[i]);
    return failures ? 1 : 0;
}
