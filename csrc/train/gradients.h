/* The exchange of a model's gradients between ranks: what allreduce needs to know about their flat buffer. */
#ifndef CGXFFCV_TRAIN_GRADIENTS_H
#define CGXFFCV_TRAIN_GRADIENTS_H

#include "allreduce/allreduce.h"
#include "nn/model.h"

/* Bits of a single layer, overriding the options' (the name as in NnLayer; bits 1..8 or 32). */
typedef struct TrainerLayerBits {
    const char *name; /* borrowed during the call */
    int bits;
    int64_t bucket_size; /* 0: the options' */
} TrainerLayerBits;

/* Creates the allreduce of the gradients, which can start from each of the blocks in `first_blocks`. `comm` and `model`
 * are borrowed until allreduce_destroy. A name in `bits` that no trained layer has is an error. On the CUDA backend
 * this is collective, and it overwrites the gradients. */
Status trainer_allreduce_create(Comm *comm, NnModel *model, const AllreduceOptions *options,
                                const TrainerLayerBits *bits, int bits_count, const int *first_blocks, int count,
                                Allreduce **out);

#endif
