/*
 * thread.c - the worker pool. Workers spin a little, then sleep on a condition, so that a barrier inside a running
 * tape costs about a microsecond and an idle pool costs nothing. Caller: backends, probe, measure.
 */
#define _GNU_SOURCE
#include "base/thread.h"
#include <pthread.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

/* How long to spin before sleeping: a worker whose partner was taken off its CPU only wastes its own, so a wait that ended
 * in sleep halves the next spins and one that did not lets them grow back. */
#define SPINS_MOST 20000
#define SPINS_LEAST 100

typedef struct worker { struct setun_pool *pool; int index; pthread_t thread; } worker;

struct setun_pool {
    int threads;
    atomic_int spins;
    bool pin;
    pthread_mutex_t lock;       /* guards sleeping; the counters are atomic */
    pthread_cond_t wake;
    pthread_mutex_t run_lock;   /* one setun_pool_run at a time */
    _Alignas(64) atomic_uint generation; /* counts runs */
    _Alignas(64) atomic_int arrived;     /* at the barrier */
    _Alignas(64) atomic_uint phase;      /* counts barriers passed */
    _Alignas(64) atomic_int running;     /* workers still inside the current run */
    atomic_int sleepers;
    atomic_bool stop;
    setun_work_fn fn;
    void *argument;
    worker *workers;            /* [threads]; 0 is the caller */
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits until *word differs from old. */
static void wait_change(setun_pool *pool, atomic_uint *word, unsigned old) {
    int spins = atomic_load_explicit(&pool->spins, memory_order_relaxed);
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) {
            if (spins < SPINS_MOST && i > SPINS_LEAST / 2) atomic_store_explicit(&pool->spins, spins + spins / 4 + 1, memory_order_relaxed);
            return;
        }
        relax();
    }
    /* the wait between two runs is long by nature and says nothing */
    if (word == &pool->phase && spins > SPINS_LEAST) atomic_store_explicit(&pool->spins, spins / 2 > SPINS_LEAST ? spins / 2 : SPINS_LEAST, memory_order_relaxed);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(word) == old) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void change(setun_pool *pool, atomic_uint *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

void setun_pool_barrier(setun_pool *pool) {
    if (pool->threads == 1) return;
    unsigned phase = atomic_load(&pool->phase);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == pool->threads) {
        atomic_store(&pool->arrived, 0);
        change(pool, &pool->phase);
    } else wait_change(pool, &pool->phase, phase);
}

static void pin_to(int index) {
#ifdef __linux__
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    int cpus = CPU_COUNT(&allowed);
    if (cpus < 1) return;
    index %= cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && index-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(pthread_self(), sizeof one, &one);
            return;
        }
#else
    (void)index; /* macOS has no pinning; its scheduler decides */
#endif
}

static void *worker_main(void *argument) {
    worker *self = argument;
    setun_pool *pool = self->pool;
    if (pool->pin) pin_to(self->index);
    for (unsigned seen = 0;;) {
        wait_change(pool, &pool->generation, seen);
        seen = atomic_load(&pool->generation);
        if (atomic_load(&pool->stop)) return NULL;
        pool->fn(pool->argument, self->index, pool->threads);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

setun_status setun_pool_create(int threads, bool pin, setun_pool **out) {
    *out = NULL;
    if (threads < 1 || threads > 1024) return setun_fail(SETUN_ERROR_ARGUMENT, "threads: %d is not between 1 and 1024", threads);
    setun_pool *pool = setun_alloc_aligned(sizeof *pool, 64);
    if (!pool) return SETUN_ERROR_MEMORY;
    memset(pool, 0, sizeof *pool);
    pool->workers = setun_calloc((size_t)threads, sizeof *pool->workers);
    if (!pool->workers) {
        setun_free_aligned(pool);
        return SETUN_ERROR_MEMORY;
    }
    atomic_init(&pool->spins, threads <= setun_cpu_count() ? SPINS_MOST : SPINS_LEAST);
    pool->pin = pin;
    pool->threads = 1;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_init(&pool->run_lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 1; i < threads; i++) {
        pool->workers[i] = (worker){pool, i, 0};
        int error = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
        if (error) {
            setun_pool_destroy(pool);
            return setun_fail(SETUN_ERROR_MEMORY, "cannot start thread %d of %d: %s; ask for fewer threads", i + 1, threads, strerror(error));
        }
        pool->threads = i + 1; /* no worker reads it before the first run, which comes after this loop */
    }
    if (pin) pin_to(0); /* last: threads inherit the affinity of who makes them */
    *out = pool;
    return SETUN_OK;
}

void setun_pool_destroy(setun_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    change(pool, &pool->generation);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->run_lock);
    pthread_mutex_destroy(&pool->lock);
    setun_free(pool->workers);
    setun_free_aligned(pool);
}

int setun_pool_size(const setun_pool *pool) { return pool->threads; }

void setun_pool_run(setun_pool *pool, setun_work_fn fn, void *argument) {
    pthread_mutex_lock(&pool->run_lock);
    pool->fn = fn;
    pool->argument = argument;
    atomic_store(&pool->running, pool->threads - 1);
    if (pool->threads > 1) change(pool, &pool->generation);
    fn(argument, 0, pool->threads);
    for (int spins = 0; atomic_load_explicit(&pool->running, memory_order_acquire); spins++) {
        if (spins < SPINS_MOST) relax();
        else usleep(20); /* a straggler; rare and short */
    }
    pthread_mutex_unlock(&pool->run_lock);
}

typedef struct range_job { setun_range_fn fn; void *argument; int64_t count, grain; atomic_int_fast64_t next; } range_job;

static void range_worker(void *argument, int index, int workers) {
    (void)workers;
    range_job *job = argument;
    for (;;) {
        int64_t first = atomic_fetch_add(&job->next, job->grain);
        if (first >= job->count) return;
        int64_t last = first + job->grain < job->count ? first + job->grain : job->count;
        job->fn(job->argument, first, last, index);
    }
}

void setun_pool_for(setun_pool *pool, int64_t count, int64_t grain, setun_range_fn fn, void *argument) {
    if (count <= 0) return;
    range_job job = {.fn = fn, .argument = argument, .count = count, .grain = grain < 1 ? 1 : grain};
    atomic_init(&job.next, 0);
    if (count <= job.grain) fn(argument, 0, count, 0);
    else setun_pool_run(pool, range_worker, &job);
}

#ifdef __linux__
/* CPU time the container may use, in CPUs, rounded up; 0 if unlimited. cgroup v2, then v1. */
static int cgroup_cpus(void) {
    long long quota = -1, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2) quota = -1; /* "max 100000" */
        fclose(f);
    } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
        if (fscanf(f, "%lld", &quota) != 1) quota = -1;
        fclose(f);
        if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
            if (fscanf(f, "%lld", &period) != 1) period = 0;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}
#endif

int setun_cpu_count(void) {
    int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) cpus = CPU_COUNT(&allowed);
    int quota = cgroup_cpus();
    if (quota > 0 && quota < cpus) cpus = quota;
#endif
    return cpus < 1 ? 1 : cpus > 1024 ? 1024 : cpus;
}
