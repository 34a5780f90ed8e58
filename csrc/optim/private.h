/* What the optimizer and its two implementations share: host.c with muon.c, and cuda/. Private to this folder. */
#ifndef CGXFFCV_OPTIM_PRIVATE_H
#define CGXFFCV_OPTIM_PRIVATE_H

#include "optim/optim.h"

/* Elements that one item of an element-wise loop takes. */
#define OPTIM_CHUNK 16384

/* The arguments of optim_create, checked and copied. */
typedef struct OptimSpec {
    OptimGroup *groups;   /* owned, like the other arrays */
    OptimTensor *tensors; /* the memory they point to is borrowed */
    int64_t *offsets;     /* tensor_count + 1: where each tensor's momentum starts */
    int group_count, tensor_count;
} OptimSpec;

/* An implementation's state; each defines its own. */
typedef struct OptimState OptimState;

/* The functions of optim/optim.h, after the checks that both implementations need. */
typedef struct OptimTable {
    void (*destroy)(OptimState *state);
    float *(*momentum)(OptimState *state);
    Status (*step)(OptimState *state, const OptimRate *rates);
    Status (*gradients_finite)(OptimState *state, const OptimRate *rates, bool *out);
    Status (*lerp)(OptimState *state, float *slow, float *value, size_t elems, float keep);
    /* NULL in host memory. */
    Status (*load_rates)(OptimState *state, const OptimRate *rates, int64_t steps);
    Status (*check_scheduled)(OptimState *state, const int32_t *step, uint32_t *flag);
    Status (*step_scheduled)(OptimState *state, const int32_t *step, const uint32_t *flag, const bool *enabled);
} OptimTable;

/* `spec` is borrowed until destroy. */
Status optim_host_create(const OptimSpec *spec, Pool *pool, const OptimTable **table, OptimState **out);
Status optim_cuda_create(const OptimSpec *spec, DeviceStream *stream, const OptimTable **table, OptimState **out);

static inline int64_t optim_tensor_elems(const OptimTensor *tensor) { return tensor->rows * tensor->columns; }

/* The matrices of all Muon groups in host memory, with their scratch memory. */
typedef struct Muon Muon;

/* One matrix of a Muon group. */
typedef struct MuonMatrix {
    float *value;          /* borrowed */
    const float *gradient; /* borrowed */
    float *momentum;       /* borrowed */
    int64_t rows, columns;
    OptimGroup group;
} MuonMatrix;

Status optim_muon_create(const MuonMatrix *matrices, int count, Pool *pool, Muon **out);
void optim_muon_destroy(Muon *muon);

/* `rates` has one entry per matrix. */
Status optim_muon_step(Muon *muon, const OptimRate *rates);

#endif
