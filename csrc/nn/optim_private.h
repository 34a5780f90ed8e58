/* What optim.c and muon.c share. Private to this folder. */
#ifndef CGXFFCV_NN_OPTIM_PRIVATE_H
#define CGXFFCV_NN_OPTIM_PRIVATE_H

#include "nn/optim.h"

/* Elements that one item of an element-wise loop takes. */
#define OPTIM_CHUNK 16384

/* The matrices of all Muon groups, with their scratch memory. */
typedef struct Muon Muon;

/* One matrix of a Muon group. */
typedef struct MuonMatrix {
    float *value;          /* borrowed */
    const float *gradient; /* borrowed */
    float *momentum;       /* borrowed */
    int64_t rows, columns;
    OptimGroup group;
} MuonMatrix;

Status muon_create(const MuonMatrix *matrices, int count, Pool *pool, Muon **out);
void muon_destroy(Muon *muon);

/* `rates` has an entry for each matrix. */
Status muon_step(Muon *muon, const OptimRate *rates);

double muon_step_flops(const Muon *muon);

#endif
