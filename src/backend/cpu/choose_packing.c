/*
 * choose_packing.c - two bits or trits, by what reading costs on this machine with these threads, measured once a process for each table
 * of kernels and number of threads. A token of a large model streams weights from memory, so that is what is timed; a model that fits the
 * caches is timed there. Results do not depend on the choice. Caller: prepare_ternary.c.
 */
#include "backend/cpu/cpu.h"
#include <pthread.h>

enum { COLUMNS = 2560, CHUNK_ROWS = 96, ROW_BYTES = COLUMNS / 4, TRIPLE_BYTES = COLUMNS / 64 * 40, KNOWN = 16 };
static const size_t STREAM_BYTES = (size_t)48 << 20; /* more than most caches hold */
static const uint64_t LARGE_MODEL = (uint64_t)48 << 20;

typedef struct trial {
    const setun_kernels *kernels;
    uint8_t *weights;
    int64_t chunks;
    setun_packing packing;
    _Alignas(64) int8_t x[COLUMNS];
} trial;

static void touch(void *argument, int64_t first, int64_t last, int worker)
{
    (void)worker;
    memset((uint8_t *)argument + first, 0, (size_t)(last - first)); /* code 0 in both packings */
}

static void multiply(const trial *t, int64_t chunk)
{
    int32_t sums[CHUNK_ROWS];
    if (t->packing == SETUN_PACKING_TRITS)
        t->kernels->trits_i8(t->weights + chunk * (CHUNK_ROWS / 3 * TRIPLE_BYTES), TRIPLE_BYTES, CHUNK_ROWS, t->x, COLUMNS, 1, COLUMNS, sums, CHUNK_ROWS);
    else
        t->kernels->ternary_i8(t->weights + chunk * (CHUNK_ROWS * ROW_BYTES), ROW_BYTES, CHUNK_ROWS, t->x, COLUMNS, 1, COLUMNS, sums, CHUNK_ROWS);
}

static void stream(void *argument, int worker, int workers)
{
    const trial *t = argument;
    const int64_t last = t->chunks * (worker + 1) / workers; /* a range each, as steps have it */
    for (int64_t chunk = t->chunks * worker / workers; chunk < last; chunk++) multiply(t, chunk);
}

/* Seconds of `packing` for one chunk that stays in the cache: the best of a few. */
static double cached_seconds(trial *t, setun_packing packing)
{
    double best = 1e9;
    t->packing = packing;
    for (int i = 0; i < 12; i++) {
        double start = setun_seconds();
        for (int j = 0; j < 4; j++) multiply(t, 0);
        double seconds = setun_seconds() - start;
        if (seconds < best) best = seconds;
    }
    return best;
}

static double streamed_seconds(setun_pool *pool, trial *t, setun_packing packing)
{
    t->packing = packing;
    double start = setun_seconds();
    setun_pool_run(pool, stream, t);
    return setun_seconds() - start;
}

typedef enum use { USE_CACHED, USE_STREAMED, USE_PACKED } use;

static setun_status measure(setun_context *context, use kind, void *memory, size_t memory_bytes, setun_packing *out)
{
    const bool large = kind == USE_STREAMED;
    size_t bytes = large ? STREAM_BYTES : (size_t)CHUNK_ROWS * ROW_BYTES;
    trial here, *const t = &here;
    uint8_t *own = memory && memory_bytes >= bytes ? NULL : setun_alloc_huge(bytes), *weights = own ? own : memory;
    if (!own && !(memory && memory_bytes >= bytes)) return setun_fail_memory(bytes);
    *t = (trial){.kernels = context->kernels, .weights = weights, .chunks = (int64_t)(bytes / (CHUNK_ROWS * ROW_BYTES))};
    memset(weights, 0, (size_t)CHUNK_ROWS * ROW_BYTES);
    double two = cached_seconds(t, SETUN_PACKING_2BIT), trits = cached_seconds(t, SETUN_PACKING_TRITS);
    *out = SETUN_PACKING_2BIT;
    if (!large) *out = trits < (kind == USE_PACKED ? 2.0 : 1.0) * two ? SETUN_PACKING_TRITS : SETUN_PACKING_2BIT;
    else if (trits < 1.5 * two) { /* slower than that no memory makes it good */
        setun_pool_for(context->pool, (int64_t)bytes, (int64_t)SETUN_HUGE_PAGE, touch, weights);
        two = trits = 1e9;
        /* Others disturb: the best of several, and more of them while the two are close. */
        for (int i = 0; i < 3 || (i < 12 && trits > 0.92 * two && two > 0.92 * trits); i++) {
            double a = streamed_seconds(context->pool, t, SETUN_PACKING_2BIT), b = streamed_seconds(context->pool, t, SETUN_PACKING_TRITS);
            if (a < two) two = a;
            if (b < trits) trits = b;
        }
        if (trits < 1.03 * two) *out = SETUN_PACKING_TRITS; /* they take less memory, too */
    }
    setun_free_huge(own, bytes);
    return SETUN_OK;
}

bool cpu_is_streamed(uint64_t ternary_bytes) { return ternary_bytes >= LARGE_MODEL; }

setun_status cpu_choose_packing(setun_context *context, uint64_t ternary_bytes, void *memory, size_t bytes, setun_packing *out)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct { const setun_kernels *kernels; int threads; use kind; setun_packing packing; } known[KNOWN];
    static int count;
    use kind = ternary_bytes == CPU_PACKED_ALREADY ? USE_PACKED : ternary_bytes >= LARGE_MODEL ? USE_STREAMED : USE_CACHED;
    int threads = setun_pool_size(context->pool), i = 0;
    *out = SETUN_PACKING_2BIT;
    if (!strcmp(context->kernels->trits_i8_isa, "ref")) return SETUN_OK;
    pthread_mutex_lock(&lock);
    while (i < count && (known[i].kernels != context->kernels || known[i].threads != threads || known[i].kind != kind)) i++;
    setun_status status = SETUN_OK;
    if (i < count) *out = known[i].packing;
    else {
        status = measure(context, kind, memory, bytes, out);
        if (status == SETUN_OK && count < KNOWN) {
            known[count].kernels = context->kernels;
            known[count].threads = threads;
            known[count].kind = kind;
            known[count++].packing = *out;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}
