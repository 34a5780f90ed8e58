/* A buffer, what sums it over the ranks, and how long that takes: the basis of benchmarks and of the measurement of
 * costs. All ranks make the same calls in the same order. */
#ifndef CGXFFCV_ALLREDUCE_TRIAL_H
#define CGXFFCV_ALLREDUCE_TRIAL_H

#include "allreduce/allreduce.h"

typedef enum AllreduceSite {
    TRIAL_HOST = 0,   /* the buffer in host memory, summed by an Allreduce */
    TRIAL_DEVICE = 1, /* in the memory of the selected GPU */
    TRIAL_MPI = 2,    /* by MPI_Allreduce, float32 in host memory */
    TRIAL_NCCL = 3    /* by NCCL, float32, float16 or bfloat16 in the memory of the selected GPU */
} AllreduceSite;

typedef struct AllreduceTrial AllreduceTrial;

/* A buffer of `elems` elements of options->type, one layer with options->bits. Collective. NOT_BUILT on all ranks if
 * there is nothing to sum it with: no MPI, no NCCL, two ranks on one GPU. */
Status allreduce_trial_create(Comm *comm, AllreduceSite site, int64_t elems, const AllreduceOptions *options,
                              AllreduceTrial **out);

/* Call before comm_destroy. Does nothing if NULL. */
void allreduce_trial_destroy(AllreduceTrial *trial);

/* Fills the buffer by repeating a block; reads its first `bytes` into `out`. */
Status allreduce_trial_fill(AllreduceTrial *trial, const void *block, size_t bytes);
Status allreduce_trial_read(AllreduceTrial *trial, void *out, size_t bytes);

/* Sums the first `elems` elements (with an Allreduce: all) `runs` times, one after the other; *seconds is the time of
 * one run on the slowest rank. On a GPU it is the time between two events, of runs captured in graphs if `record` asks
 * for that and it is possible. */
Status allreduce_trial_time(AllreduceTrial *trial, int64_t elems, int runs, bool record, double *seconds);

/* Measures the algorithms in host memory or on the GPUs (TRIAL_HOST, TRIAL_DEVICE), each at these numbers of elements
 * (ascending, float32), the best of `repeats` times; collective. All ranks get rank 0's lines. */
#define TRIAL_MOST_SIZES 8
Status allreduce_measure(Comm *comm, AllreduceSite site, const int64_t *elems, int count, int repeats,
                         AllreduceCosts *out);

/* NULL if MPI or NCCL sums. */
const Allreduce *allreduce_trial_of(const AllreduceTrial *trial);

const char *allreduce_site_name(int site);

#endif
