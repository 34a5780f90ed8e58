/* The controls of the library that pretends to be CUDA and NCCL. */
#ifndef CGXFFCV_TESTS_NCCL_FAKE_H
#define CGXFFCV_TESTS_NCCL_FAKE_H

#include <cuda_runtime.h>
#include <stdatomic.h>

enum { FAKE_RANKS = 4 };

typedef enum FakeFault {
    FAKE_WELL,
    FAKE_INIT_FAILS, /* connecting is refused */
    FAKE_INIT_HANGS, /* and never ends */
    FAKE_SUM_FAILS,  /* an error is found while a sum runs */
    FAKE_GPU_LOST,   /* the stream is found dead */
    FAKE_NO_ID       /* no identifier can be made */
} FakeFault;

/* What happens to one rank; set while no rank runs. */
extern FakeFault fake_fault;
extern int fake_fault_rank;
extern int fake_version;
/* Graphs hold sums: no communicator is let go. */
extern atomic_bool fake_graphs;
/* NCCL communicators that were neither destroyed nor aborted; calls of each since the last fake_reset. */
extern int fake_open, fake_destroyed, fake_aborted;

void fake_reset(void);

/* The calling thread's rank and GPU (-1: none). */
void fake_thread(int rank, int gpu);
cudaStream_t fake_stream_create(void);
void fake_stream_destroy(cudaStream_t stream);

#endif
