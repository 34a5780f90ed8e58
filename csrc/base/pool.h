/* A thread pool for parallel loops: the caller takes part, items are handed out dynamically. In a forked child, which
 * has none of the threads and cannot trust the locks, the caller processes all items and pool_destroy leaves the pool
 * as it is. */
#ifndef CGXFFCV_BASE_POOL_H
#define CGXFFCV_BASE_POOL_H

#include <stddef.h>

#include "base/status.h"

#define POOL_MAX_THREADS 4096 /* asking for more is a mistake that would take all memory */

typedef struct Pool Pool;

/* One item of a loop. `thread` is in [0, pool_threads), constant within a call: an index for scratch memory. */
typedef Status (*PoolTask)(void *context, size_t item, int thread);

/* `threads` (1 to POOL_MAX_THREADS) take part in each loop, the caller included, so `threads` - 1 are started. */
Status pool_create(int threads, Pool **out);
void pool_destroy(Pool *pool);
int pool_threads(const Pool *pool);

/* Runs task(context, item, thread) for each item in [0, items) and waits for all. After the first failure no further
 * items are handed out, and its record becomes the caller's. One loop at a time per pool; starting a loop from inside
 * another of the same pool is an argument error. */
Status pool_run(Pool *pool, size_t items, PoolTask task, void *context);

#endif
