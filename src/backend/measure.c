/*
 * measure.c - what this machine can do, measured now: streaming reads from memory, by the fastest of several ways, and the chosen ternary kernel on data in L1.
 * Caller: `setun doctor`, the benchmarks, which set a model's speed beside these limits. Knows no model.
 */
#include "backend/backend.h"
#include "backend/cpu/kernels.h"

enum { MEASURE_ROWS = 64, MEASURE_TOKENS = 20, MEASURE_COLUMNS = 512 };
static const double PHASE_SECONDS = 0.4;

typedef struct measure_job {
    const setun_kernels *kernels;
    const uint64_t *memory;
    size_t words;               /* of memory; worker i reads its share */
    int way;                    /* of reading */
    int workers;                /* that take part */
    uint8_t *codes;             /* per worker: codes, x, sums */
    size_t stride;
    int repeats;
    atomic_uint_fast64_t sink;  /* keeps the reads alive */
} measure_job;

/* What reads fastest depends on the machine: its own prefetching, or asking for lines into L2 or L1 so many bytes ahead. */
enum { WAYS = 6 };

#define READ(ASK) \
    for (size_t i = first; i + 32 <= last; i += 32) { \
        ASK \
        for (size_t lane = 0; lane < 32; lane++) sums[lane] ^= job->memory[i + lane]; \
    }
#define ASK(bytes, level) \
    for (size_t line = 0; line < 4; line++) __builtin_prefetch((const char *)((uintptr_t)(job->memory + i) + 64 * line + (bytes)), 0, level);

static void read_memory(void *argument, int worker, int workers)
{
    measure_job *job = argument;
    (void)workers;
    if (worker >= job->workers) return;
    size_t first = job->words / (size_t)job->workers * (size_t)worker / 32 * 32, last = worker + 1 == job->workers ? job->words : job->words / (size_t)job->workers * (size_t)(worker + 1) / 32 * 32;
    uint64_t sums[32] = {0};
    switch (job->way) {
    case 0: READ() break;
    case 1: READ(ASK(1024, 2)) break;
    case 2: READ(ASK(2048, 2)) break;
    case 3: READ(ASK(4096, 2)) break;
    case 4: READ(ASK(8192, 2)) break;
    default: READ(ASK(4096, 3)) break;
    }
    uint64_t sum = 0;
    for (size_t lane = 0; lane < 32; lane++) sum ^= sums[lane];
    atomic_fetch_xor(&job->sink, sum);
}

static void multiply(void *argument, int worker, int workers)
{
    measure_job *job = argument;
    (void)workers;
    if (worker >= job->workers) return;
    uint8_t *base = job->codes + (size_t)worker * job->stride;
    size_t codes = (size_t)MEASURE_ROWS * (size_t)setun_packed_row_bytes(MEASURE_COLUMNS), x = (size_t)MEASURE_TOKENS * MEASURE_COLUMNS;
    int32_t *sums = (int32_t *)(void *)(base + codes + x);
    for (int i = 0; i < job->repeats; i++)
        job->kernels->ternary_i8(base, (size_t)setun_packed_row_bytes(MEASURE_COLUMNS), MEASURE_ROWS, (const int8_t *)(base + codes), MEASURE_COLUMNS, MEASURE_TOKENS, MEASURE_COLUMNS, sums, MEASURE_ROWS);
    atomic_fetch_xor(&job->sink, (uint64_t)(uint32_t)sums[0]);
}

/* Best of the passes that fit in PHASE_SECONDS: the machine's limit, not its mood. Units of one pass a second. */
static double best_rate(setun_pool *pool, setun_work_fn fn, measure_job *job, int workers)
{
    job->workers = workers;
    double best = 0.0, end = setun_seconds() + PHASE_SECONDS;
    for (int pass = 0; pass < 2 * WAYS || setun_seconds() < end; pass++) {
        job->way = pass % WAYS;
        double start = setun_seconds();
        if (workers == 1) fn(job, 0, 1);
        else setun_pool_run(pool, fn, job);
        double seconds = setun_seconds() - start;
        if (seconds > 0 && 1.0 / seconds > best) best = 1.0 / seconds;
    }
    return best;
}

setun_status setun_context_measure(setun_context *context, setun_machine_limits *out)
{
    if (!context || !out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_context_measure: %s is NULL", context ? "out" : "context");
    int workers = setun_pool_size(context->pool);
    size_t bytes = (size_t)256 << 20; /* beyond any cache this runs on */
    size_t stride = ((size_t)MEASURE_ROWS * (size_t)setun_packed_row_bytes(MEASURE_COLUMNS) + (size_t)MEASURE_TOKENS * MEASURE_COLUMNS + (size_t)MEASURE_ROWS * MEASURE_TOKENS * 4 + 4095) / 4096 * 4096;
    measure_job job = {.kernels = context->kernels, .words = bytes / 8, .stride = stride, .repeats = 200};
    uint64_t *memory = setun_alloc_huge(bytes); /* as weights lie */
    job.codes = setun_alloc_aligned(stride * (size_t)workers, 4096);
    if (!memory || !job.codes) {
        setun_free_huge(memory, bytes);
        setun_free_aligned(job.codes);
        return setun_fail_memory(bytes);
    }
    atomic_init(&job.sink, 0);
    for (size_t i = 0; i < job.words; i++) memory[i] = i * 0x9e3779b97f4a7c15u; /* touched: real pages */
    memset(job.codes, 0x59, stride * (size_t)workers);
    job.memory = memory;
    double operations = 2.0 * MEASURE_ROWS * MEASURE_TOKENS * MEASURE_COLUMNS * job.repeats;
    setun_machine_limits limits = {.size = sizeof limits};
    limits.read_bytes_per_second_1 = (double)bytes * best_rate(context->pool, read_memory, &job, 1);
    limits.read_bytes_per_second_n = workers == 1 ? limits.read_bytes_per_second_1 : (double)bytes * best_rate(context->pool, read_memory, &job, workers);
    limits.int8_operations_per_second_1 = operations * best_rate(context->pool, multiply, &job, 1);
    limits.int8_operations_per_second_n = workers == 1 ? limits.int8_operations_per_second_1 : operations * workers * best_rate(context->pool, multiply, &job, workers);
    setun_free_huge(memory, bytes);
    setun_free_aligned(job.codes);
    limits.size = out->size && out->size < sizeof limits ? out->size : sizeof limits;
    memcpy(out, &limits, limits.size);
    return SETUN_OK;
}
