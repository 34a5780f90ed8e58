/* Optimizers over a model's parameters: SGD in the two forms that the recipes use, and Muon. The rates come in
 * with every step; what an optimizer keeps between steps is its momentum buffers and nothing else. */
#ifndef CGXFFCV_NN_OPTIM_H
#define CGXFFCV_NN_OPTIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"

typedef enum OptimRule {
    /* g += decay p; v = momentum v + g; p -= rate v */
    OPTIM_SGD = 0,
    /* g += decay p; v = momentum v + g; p -= rate (g + momentum v) */
    OPTIM_NESTEROV = 1,
    /* Muon (Jordan et al. 2024), on matrices: v = momentum v + g; u = g + momentum v; [p *= sqrt(rows) / ||p||];
     * p -= rate NS(u); p *= 1 - rate decay. NS: X = u / (||u|| + epsilon), transposed if it has more rows than
     * columns; `iterations` times A = X X'; X = a X + (b A + c A A) X; transposed back. */
    OPTIM_MUON = 2
} OptimRule;

typedef struct OptimGroup {
    OptimRule rule;
    float momentum;
    float decay;
    /* Muon only: */
    int iterations;
    float a, b, c;
    float epsilon;
} OptimGroup;

/* One parameter tensor; `rows` is the number of output channels, `columns` all the rest, row-major. */
typedef struct OptimTensor {
    float *value;          /* borrowed until optim_destroy */
    const float *gradient; /* borrowed until optim_destroy */
    int64_t rows, columns;
    int group;
} OptimTensor;

/* What one step does to one group. */
typedef struct OptimRate {
    float rate;
    bool active;  /* false: the group's tensors and momenta are not touched at all */
    bool project; /* Muon: scale each matrix to the norm sqrt(rows) before the update */
} OptimRate;

typedef struct Optim Optim;

/* `pool` runs the steps; borrowed until optim_destroy. The momenta start at 0. */
Status optim_create(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count, Pool *pool,
                    Optim **out);
void optim_destroy(Optim *optim);

/* Applies one step to all tensors; `rates` has an entry for each group. The same for any number of threads. */
Status optim_step(Optim *optim, const OptimRate *rates);

/* Whether every gradient of the groups that are active in `rates` (NULL: of all) is finite. */
Status optim_gradients_finite(Optim *optim, const OptimRate *rates, bool *out);

/* The momentum buffers, one after another in the tensors' order: borrowed until optim_destroy. */
float *optim_momentum(Optim *optim, int64_t *elems);

/* Multiplications and additions of one step's matrix products, counted as two operations each pair. */
double optim_step_flops(const Optim *optim);

#endif
