/* An optimizer on the GPU over NumPy arrays: device copies of them, and recorded steps. */
#ifndef CGXFFCV_PYTHON_OPTIMIZER_GPU_H
#define CGXFFCV_PYTHON_OPTIMIZER_GPU_H

#include "optim/optim.h"
#include "python/array.h"

typedef struct OptimizerGpu OptimizerGpu;

/* Copies of the tensors' memory on the first GPU; `tensors` come in with host memory and leave with the device's.
 * `tensors` and the host memory are borrowed until destroy. */
Status py_optimizer_gpu_create(OptimTensor *tensors, int count, OptimizerGpu **out);
/* After optim_destroy. NULL does nothing. */
void py_optimizer_gpu_destroy(OptimizerGpu *gpu);
DeviceStream *py_optimizer_gpu_stream(const OptimizerGpu *gpu);

/* Copies values and gradients to the device; copies values back, and waits. */
Status py_optimizer_gpu_enter(OptimizerGpu *gpu);
Status py_optimizer_gpu_leave(OptimizerGpu *gpu);

/* Copies `elems` floats to the host; waits. */
Status py_optimizer_gpu_read(OptimizerGpu *gpu, const float *from, size_t elems, float *to);

/* Runs check and step as a recorded graph, recorded again when `enabled` changes. *flag is set on the device before the
 * step and read back after it. Between enter and leave. */
Status py_optimizer_gpu_replay(OptimizerGpu *gpu, Optim *optim, int32_t step, const bool *enabled, int groups,
                               uint32_t *flag);
/* After optim_load_rates. */
void py_optimizer_gpu_forget_graph(OptimizerGpu *gpu);

/* optim_lerp for host arrays. */
Status py_optimizer_gpu_lerp(OptimizerGpu *gpu, Optim *optim, float *slow, float *value, size_t elems, float keep);

#endif
