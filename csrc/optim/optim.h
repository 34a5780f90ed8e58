/* Optimizers over a model's parameters, in host memory or on a GPU: SGD in the two forms that the recipes use, and
 * Muon. The learning rates are passed with every step, or all before the first one; the only state that an optimizer
 * keeps between steps is its momentum buffers. */
#ifndef CGXFFCV_OPTIM_OPTIM_H
#define CGXFFCV_OPTIM_OPTIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "device/device.h"

#define OPTIM_MAX_GROUPS 64

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

/* "sgd", "nesterov", "muon"; NULL if no rule has that number. */
const char *optim_rule_name(int rule);

typedef struct OptimGroup {
    OptimRule rule;
    float momentum;
    float decay;
    /* Muon only: */
    int iterations;
    float a, b, c;
    float epsilon;
} OptimGroup;

/* One parameter tensor, row-major; `rows` is the number of output channels, `columns` the product of the rest. */
typedef struct OptimTensor {
    float *value;          /* borrowed until optim_destroy */
    const float *gradient; /* borrowed until optim_destroy */
    int64_t rows, columns;
    int group;
} OptimTensor;

/* What one step does to one group. */
typedef struct OptimRate {
    float rate;
    bool active;  /* false: the group's tensors and momentum buffers are not touched */
    bool project; /* Muon: scale each matrix to the norm sqrt(rows) before the update */
} OptimRate;

typedef struct Optim Optim;

/* If `stream` is NULL, the tensors are in host memory and `pool` runs the steps. Otherwise the tensors and the momentum
 * buffers are in memory of the stream's device; steps are enqueued on the stream; Muon's iterations multiply in float16
 * and add in float32. `pool` and `stream` are borrowed until optim_destroy. The momentum starts at 0. */
Status optim_create(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count, Pool *pool,
                    DeviceStream *stream, Optim **out);
void optim_destroy(Optim *optim);

/* Applies one step to all tensors; `rates` has one entry per group. The number of threads does not affect results. */
Status optim_step(Optim *optim, const OptimRate *rates);

/* Whether every gradient of the groups active in `rates` (NULL: of all groups) is finite. Waits for the stream. */
Status optim_gradients_finite(Optim *optim, const OptimRate *rates, bool *out);

/* slow = value = keep * slow + (1 - keep) * value over `elems` floats, in the optimizer's memory and on its stream. */
Status optim_lerp(Optim *optim, float *slow, float *value, size_t elems, float keep);

/* The momentum buffers, concatenated in the tensors' order; borrowed until optim_destroy. */
float *optim_momentum(Optim *optim, int64_t *elems);

/* Multiplications and additions of one step's matrix products, each counted as one operation; symmetric products count
 * half. */
double optim_step_flops(const Optim *optim);

/* On a GPU only, for steps that are recorded once and replayed (device_capture_begin).
 *
 * Copies the rates of all steps of a run, (steps, groups), to device memory. Not allowed while a recorded step may
 * still be replayed: it uses the table from when it was recorded. */
Status optim_load_rates(Optim *optim, const OptimRate *rates, int64_t steps);

/* Sets *flag (device memory) to 1 if any gradient of a group that is active in row *step is not finite. */
Status optim_check_scheduled(Optim *optim, const int32_t *step, uint32_t *flag);

/* One step with the rates of row *step (device memory, read when the kernels run). Nothing is changed if *flag is not 0
 * or the table has no such row, nor in groups that are not active there. `enabled` says for each group whether it may
 * be active in any of the steps that will be replayed; the others cost nothing and are not touched. */
Status optim_step_scheduled(Optim *optim, const int32_t *step, const uint32_t *flag, const bool *enabled);

#endif
