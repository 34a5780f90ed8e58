/* Sums of gradients in device memory: by NCCL on a stream behind backward, or through page-locked host memory. Private
 * to train/reducer.c. */
#ifndef CGXFFCV_TRAIN_DEVICE_SUM_H
#define CGXFFCV_TRAIN_DEVICE_SUM_H

#include "allreduce/allreduce.h"
#include "nn/model.h"

typedef struct DeviceSum DeviceSum;

/* `exact`: nothing is quantised, so NCCL may do it. `elems`: the lengths that will be summed; the first is the longest.
 * Collective; makes every sum once, on whatever the gradient buffer holds, so that a step finds all connections made.
 */
Status device_sum_create(Comm *comm, NnModel *model, bool exact, bool average, const size_t *elems, int count,
                         DeviceSum **out);
void device_sum_destroy(DeviceSum *sum); /* NULL is fine */

/* Whether NCCL does it; then _told and _run can be recorded in a graph. Else only _through_host may be used. */
bool device_sum_on_gpu(const DeviceSum *sum);

/* The gradients [begin, end) are complete; a GradientHook's arguments. */
Status device_sum_told(DeviceSum *sum, size_t begin, size_t end);
/* Sums what has not been, and makes the model's stream wait for all of it. */
Status device_sum_run(DeviceSum *sum, size_t elems);

Status device_sum_through_host(DeviceSum *sum, AllreducePlan *plan, float *gradients);

Status device_sum_wait(DeviceSum *sum, DeviceStream *stream, DeviceEvent *event);

/* As allreduce_explain. */
size_t device_sum_explain(const DeviceSum *sum, char *text, size_t bytes);

#endif
