/* The end of a step, in one small launch, and the sum over an evaluation's views.
 *
 * train_close_step_kernel is one block of 1,024 threads. Thread t copies elements t, t + 1,024, ... of the running
 * statistics (elems, float32) to the backup or back, and of the losses (batch, float32) to their place among those of
 * the run (steps x batch, float32); thread 0 then writes the step's entry of `skipped` (steps, uint32) and advances the
 * clock. train_add_view_kernel loops over the logits and their sums, both (images, classes), float32, each thread in
 * strides of the grid's size. */
#include "device/kernel.cuh"

extern "C" {
#include "train/step_kernels.h"
}

#define CLOSING_BLOCK 1024
#define VIEW_BLOCK 256

/* One block, so that all threads read the flag and the clock before one thread changes them. */
static __global__ void train_close_step_kernel(TrainStepClosing c) {
    grid_begin();
    const uint32_t skip = *c.flag;
    const int first = c.clock->batch.first, done = c.clock->done, step = c.clock->step;
    float *to = skip ? c.statistics : c.backup;
    const float *from = skip ? c.backup : c.statistics;
    for (size_t i = threadIdx.x; i < c.elems; i += CLOSING_BLOCK) to[i] = from[i];
    for (int i = (int)threadIdx.x; i < c.batch; i += CLOSING_BLOCK) c.all_losses[first + i] = c.losses[i];
    __syncthreads();
    if (threadIdx.x != 0) return;
    c.skipped[done] = skip;
    *c.flag = 0;
    c.clock->batch.first = first + c.batch;
    c.clock->done = done + 1;
    c.clock->step = step + 1;
}

extern "C" Status train_step_close(const TrainStepClosing *closing, DeviceStream *stream) {
    return LAUNCH_AFTER(train_close_step_kernel, 1, CLOSING_BLOCK, 0, stream, *closing);
}

static __global__ void train_add_view_kernel(const float *logits, size_t elems, float weight, bool add, float *sums) {
    grid_begin();
    GRID_LOOP(i, elems) { sums[i] = add ? sums[i] + weight * logits[i] : weight * logits[i]; }
}

extern "C" Status train_add_view(const float *logits, size_t elems, float weight, bool add, float *sums,
                                 DeviceStream *stream) {
    return LAUNCH_AFTER(train_add_view_kernel, ceil_div(elems, VIEW_BLOCK), VIEW_BLOCK, 0, stream, logits, elems,
                        weight, add, sums);
}
