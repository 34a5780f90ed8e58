/* The GPU side of _cgxffcv.Optimizer. One allocation holds all copies, each at a multiple of 64 bytes as in a model's
 * buffers; step number and flag are in device memory, as recorded steps need them. */
#include "python/optimizer_gpu.h"

#include <string.h>

#include "base/memory.h"

#define ALIGNMENT 16 /* elements */

/* A tensor's host and device memory. */
typedef struct Copy {
    float *host_value, *value;
    const float *host_gradient;
    float *gradient;
    size_t bytes;
} Copy;

struct OptimizerGpu {
    DeviceStream *stream; /* owned, like all that follows */
    Copy *copies;         /* the memory they name belongs to `memory` and to the caller */
    int count;
    float *memory;
    int32_t *step;
    uint32_t *flag;
    DeviceGraph *graph; /* NULL: not recorded yet */
    bool enabled[OPTIM_MAX_GROUPS];
};

static size_t room(const OptimTensor *t) {
    return ((size_t)(t->rows * t->columns) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static Status optimizer_allocate(OptimizerGpu *gpu, const OptimTensor *tensors, int count) {
    size_t elems = ALIGNMENT;
    for (int i = 0; i < count; i++) elems += 2 * room(&tensors[i]);
    TRY(device_select(0));
    TRY(device_stream_create(&gpu->stream));
    TRY(device_alloc(elems * sizeof(float), &gpu->memory));
    TRY(device_alloc(sizeof *gpu->step, &gpu->step));
    TRY(device_alloc(sizeof *gpu->flag, &gpu->flag));
    return memory_calloc((size_t)count + 1, sizeof *gpu->copies, &gpu->copies);
}

Status py_optimizer_gpu_create(OptimTensor *tensors, int count, OptimizerGpu **out) {
    Status status = STATUS_OK;
    OptimizerGpu *gpu = NULL;
    TRY(memory_calloc(1, sizeof *gpu, &gpu));
    TRY_GOTO(optimizer_allocate(gpu, tensors, count));
    float *next = gpu->memory;
    for (int i = 0; i < count; i++) {
        OptimTensor *t = &tensors[i];
        gpu->copies[i] = (Copy){.host_value = t->value,
                                .value = next,
                                .host_gradient = t->gradient,
                                .gradient = next + room(t),
                                .bytes = (size_t)(t->rows * t->columns) * sizeof(float)};
        next += 2 * room(t);
        t->value = gpu->copies[i].value;
        t->gradient = gpu->copies[i].gradient;
    }
    gpu->count = count;
    *out = gpu;
    gpu = NULL;
done:
    py_optimizer_gpu_destroy(gpu);
    return status;
}

void py_optimizer_gpu_destroy(OptimizerGpu *gpu) {
    if (gpu == NULL) return;
    device_graph_destroy(gpu->graph);
    memory_free(gpu->copies);
    device_free(gpu->flag);
    device_free(gpu->step);
    device_free(gpu->memory);
    device_stream_destroy(gpu->stream);
    memory_free(gpu);
}

DeviceStream *py_optimizer_gpu_stream(const OptimizerGpu *gpu) { return gpu->stream; }

Status py_optimizer_gpu_enter(OptimizerGpu *gpu) {
    TRY(device_select(0));
    for (int i = 0; i < gpu->count; i++) {
        const Copy *c = &gpu->copies[i];
        TRY(device_copy(c->value, c->host_value, c->bytes, gpu->stream));
        TRY(device_copy(c->gradient, c->host_gradient, c->bytes, gpu->stream));
    }
    return STATUS_OK;
}

Status py_optimizer_gpu_leave(OptimizerGpu *gpu) {
    for (int i = 0; i < gpu->count; i++) {
        const Copy *c = &gpu->copies[i];
        TRY(device_copy(c->host_value, c->value, c->bytes, gpu->stream));
    }
    return device_stream_synchronize(gpu->stream);
}

Status py_optimizer_gpu_read(OptimizerGpu *gpu, const float *from, size_t elems, float *to) {
    TRY(device_select(0));
    TRY(device_copy(to, from, elems * sizeof *to, gpu->stream));
    return device_stream_synchronize(gpu->stream);
}

void py_optimizer_gpu_forget_graph(OptimizerGpu *gpu) {
    device_graph_destroy(gpu->graph);
    gpu->graph = NULL;
}

static Status record(OptimizerGpu *gpu, Optim *optim, const bool *enabled) {
    TRY(device_capture_begin(gpu->stream));
    Status status = optim_check_scheduled(optim, gpu->step, gpu->flag);
    if (status == STATUS_OK) status = optim_step_scheduled(optim, gpu->step, gpu->flag, enabled);
    return device_capture_end(gpu->stream, status, &gpu->graph);
}

Status py_optimizer_gpu_replay(OptimizerGpu *gpu, Optim *optim, int32_t step, const bool *enabled, int groups,
                               uint32_t *flag) {
    size_t enabled_bytes = (size_t)groups * sizeof *enabled;
    if (gpu->graph != NULL && memcmp(gpu->enabled, enabled, enabled_bytes) != 0) py_optimizer_gpu_forget_graph(gpu);
    if (gpu->graph == NULL) {
        memcpy(gpu->enabled, enabled, enabled_bytes);
        TRY(record(gpu, optim, enabled));
    }
    TRY(device_copy(gpu->step, &step, sizeof step, gpu->stream));
    TRY(device_copy(gpu->flag, flag, sizeof *flag, gpu->stream));
    TRY(device_graph_launch(gpu->graph, gpu->stream));
    TRY(device_copy(flag, gpu->flag, sizeof *flag, gpu->stream));
    return device_stream_synchronize(gpu->stream);
}

Status py_optimizer_gpu_lerp(OptimizerGpu *gpu, Optim *optim, float *slow, float *value, size_t elems, float keep) {
    Status status = STATUS_OK;
    float *both = NULL;
    size_t bytes = elems * sizeof *both;
    if (elems == 0) return STATUS_OK;
    TRY(device_select(0));
    TRY(device_alloc(2 * bytes, &both));
    TRY_GOTO(device_copy(both, slow, bytes, gpu->stream));
    TRY_GOTO(device_copy(both + elems, value, bytes, gpu->stream));
    TRY_GOTO(optim_lerp(optim, both, both + elems, elems, keep));
    TRY_GOTO(device_copy(slow, both, bytes, gpu->stream));
    TRY_GOTO(device_copy(value, both + elems, bytes, gpu->stream));
    TRY_GOTO(device_stream_synchronize(gpu->stream));
done:
    device_free(both);
    return status;
}
