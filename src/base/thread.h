/*
 * thread.h - a pool of workers that runs one function on all of them, with a barrier inside.
 * Made by a context, used by the CPU backend. Results never depend on the number of workers: work is cut into chunks
 * whose results are independent, and chunks are handed out by a counter.
 */
#ifndef SETUN_THREAD_H
#define SETUN_THREAD_H

#include "base/base.h"
#include <stdatomic.h>

typedef struct setun_pool setun_pool;
typedef void (*setun_work_fn)(void *argument, int worker, int workers);

setun_status setun_pool_create(int threads, bool pin, setun_pool **out); /* threads >= 1, the caller counts as worker 0 */
void setun_pool_destroy(setun_pool *pool);
int setun_pool_size(const setun_pool *pool);
/* Runs fn on all workers, returns when all are done. Calls from several threads are serialised by a lock. */
void setun_pool_run(setun_pool *pool, setun_work_fn fn, void *argument);
/* Inside fn: waits until every worker is here. Spins, then sleeps. */
void setun_pool_barrier(setun_pool *pool);
/* Splits 0..count into chunks of at least `grain`, run on all workers. */
typedef void (*setun_range_fn)(void *argument, int64_t first, int64_t last, int worker);
void setun_pool_for(setun_pool *pool, int64_t count, int64_t grain, setun_range_fn fn, void *argument);
int setun_cpu_count(void); /* CPUs this process may use (affinity, cgroup quota) */

#endif
