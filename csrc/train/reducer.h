/* The exchange of a model's gradients between ranks: one allreduce plan for each set of trained blocks.
 *
 * On the CUDA backend uncompressed gradients are summed on the GPUs by NCCL where it can be used: in pieces of a few
 * megabytes, on a stream of their own, behind backward. Otherwise, and compressed ones always, they go through
 * page-locked host memory and the plans there. */
#ifndef CGXFFCV_TRAIN_REDUCER_H
#define CGXFFCV_TRAIN_REDUCER_H

#include <stdint.h>

#include "allreduce/allreduce.h"
#include "nn/model.h"
#include "train/trainer.h"

#define REDUCER_MAX_PLANS 8

typedef struct Reducer Reducer;

/* Bits of single layers, in place of the options' (names as in Layer; bits 1..8 or 32). */
typedef struct ReducerLayer {
    const char *name; /* borrowed during reducer_create */
    int bits;
    int64_t bucket_size; /* 0: the options' */
} ReducerLayer;

/* Plans for gradients of the blocks from each of `first_blocks` on. `comm` and `model` are borrowed until
 * reducer_destroy. A name in `layers` that no trained layer has is refused. On the CUDA backend collective, and it uses
 * the gradient buffer. */
Status reducer_create(Comm *comm, NnModel *model, const AllreduceOptions *options, const ReducerLayer *layers,
                      int layer_count, const int *first_blocks, int count, Reducer **out);
void reducer_destroy(Reducer *reducer);

/* Sets the members of the configuration that say how gradients are exchanged. */
void reducer_configure(Reducer *reducer, TrainerConfig *config);

/* A TrainerReduce. */
Status reducer_run(void *reducer, int64_t step, float *gradients, size_t elems);

/* Bytes that this rank sends in a step with so many gradient elements, and what they would be uncompressed. */
uint64_t reducer_wire_bytes(const Reducer *reducer, size_t elems);
uint64_t reducer_plain_bytes(const Reducer *reducer, size_t elems);

/* How gradients travel, several lines; as allreduce_explain. */
size_t reducer_explain(const Reducer *reducer, char *text, size_t bytes);

/* What quantisation has lost so far and error feedback will add (this rank's own); NULL without error feedback. */
float *reducer_residual(Reducer *reducer, size_t *elems);

/* Takes up a residual that a reducer of the same network gave, perhaps with fewer blocks trained. */
Status reducer_restore(Reducer *reducer, const float *residual, size_t elems);

#endif
