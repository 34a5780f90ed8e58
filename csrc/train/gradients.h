/* The exchange of a model's gradients between ranks: what allreduce needs to know of their flat buffer. */
#ifndef CGXFFCV_TRAIN_GRADIENTS_H
#define CGXFFCV_TRAIN_GRADIENTS_H

#include "allreduce/allreduce.h"
#include "nn/model.h"

/* Bits of single layers, in place of the options' (names as in nn's Layer; bits 1..8 or 32). */
typedef struct TrainerLayerBits {
    const char *name; /* borrowed during the call */
    int bits;
    int64_t bucket_size; /* 0: the options' */
} TrainerLayerBits;

/* For the gradients of the blocks from each of `first_blocks` on. `comm` and `model` are borrowed until
 * allreduce_destroy. A name in `bits` that no trained layer has is refused. On the CUDA backend collective, and it
 * overwrites the gradients. */
Status trainer_allreduce_create(Comm *comm, NnModel *model, const AllreduceOptions *options,
                                const TrainerLayerBits *bits, int bits_count, const int *first_blocks, int count,
                                Allreduce **out);

#endif
