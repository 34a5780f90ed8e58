/* What the optimizer's files for the GPU share: the tables that its kernels read, and their launchers. Private to this
 * folder. */
#ifndef CGXFFCV_OPTIM_CUDA_OPTIM_H
#define CGXFFCV_OPTIM_CUDA_OPTIM_H

#include "optim/cuda/gemm.h"
#include "optim/private.h"

/* Elements that one block works on. */
#define CUDA_OPTIM_CHUNK 4096

static inline int64_t optim_cuda_chunks_of(const OptimTensor *tensor) {
    return (optim_tensor_elems(tensor) + CUDA_OPTIM_CHUNK - 1) / CUDA_OPTIM_CHUNK;
}

/* A run of elements of one tensor: the work of one block. Everything it names is device memory. */
typedef struct CudaOptimChunk {
    float *value;          /* borrowed, like the other pointers */
    const float *gradient; /* may be unaligned, like value and momentum */
    float *momentum;
    float *sums; /* Muon: receives the sums of squares of the update and of the weights; else NULL */
    int32_t elems;
    int32_t group;
} CudaOptimChunk;

/* One matrix of a Muon group. X has the parameter's rows and columns, each padded with zeros to a multiple of
 * CUDA_MUON_PAD; its elements are of CUDA_MUON_TYPE. */
typedef struct CudaMuonMatrix {
    float *value;
    const float *gradient;
    const float *momentum;
    const float *sums; /* two per chunk */
    float *scale;      /* one float: scales the weights before the update */
    void *x;           /* the first X of the iterations */
    const void *last;  /* the last X */
    int64_t rows, columns;
    int64_t row_elems; /* of X: the padded columns */
    int64_t elems;     /* of X */
    int32_t chunk_count;
    int32_t group;
} CudaMuonMatrix;

#define CUDA_MUON_PAD 8
/* X has norm 1 and no singular value above about 1.2, so nothing overflows; of the 16-bit types float16 has the
 * smallest rounding error, and GPUs without bfloat16 have it, too. */
#define CUDA_MUON_TYPE CUDA_GEMM_FLOAT16

/* CUDA_OPTIM_CHUNK elements of X starting at `begin`: the work of one block. */
typedef struct CudaMuonTile {
    int64_t begin;
    int32_t matrix;
} CudaMuonTile;

/* Which rates a launch uses, looked up when its kernel runs. */
typedef struct CudaOptimSchedule {
    const OptimRate *rates; /* device memory: (steps, group_count) */
    const int32_t *step;    /* device memory; NULL: row 0 */
    const uint32_t *flag;   /* device memory; may be NULL; nothing is touched if it is not 0 */
    uint64_t enabled;       /* bit g: group g may be touched */
    int64_t steps;
    int32_t group_count;
} CudaOptimSchedule;

/* All of SGD; for Muon, the momentum and the sums of squares. `groups` is device memory. */
Status optim_cuda_launch_step(const CudaOptimChunk *chunks, int64_t chunk_count, const OptimGroup *groups,
                              CudaOptimSchedule schedule, DeviceStream *stream);

/* Writes 1 to *flag if a gradient of an active group is not finite. */
Status optim_cuda_launch_check(const CudaOptimChunk *chunks, int64_t chunk_count, CudaOptimSchedule schedule,
                               uint32_t *flag, DeviceStream *stream);

Status optim_cuda_launch_lerp(float *slow, float *value, size_t elems, float keep, DeviceStream *stream);

/* X = u / (||u|| + epsilon), with its padding, and the scale of the weights. */
Status optim_cuda_muon_launch_begin(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles, int64_t tile_count,
                                    const OptimGroup *groups, CudaOptimSchedule schedule, DeviceStream *stream);

/* Updates the weights from their scale and the last X. */
Status optim_cuda_muon_launch_end(const CudaMuonMatrix *matrices, const CudaMuonTile *tiles, int64_t tile_count,
                                  const OptimGroup *groups, CudaOptimSchedule schedule, DeviceStream *stream);

/* The matrices of all Muon groups on the GPU, with their scratch memory and side streams. */
typedef struct CudaMuon CudaMuon;

/* `momentum` and `sums` are device memory for all tensors: those of tensor i begin at spec->offsets[i] and
 * first_chunk[i] * 2; `groups` is the copy of spec->groups on the device. All are borrowed until destroy. *out stays
 * NULL without Muon groups. */
Status optim_cuda_muon_create(const OptimSpec *spec, const OptimGroup *groups, float *momentum, float *sums,
                              const int64_t *first_chunk, DeviceStream *stream, CudaMuon **out);
/* Call once the streams have finished. Does nothing if NULL. */
void optim_cuda_muon_destroy(CudaMuon *muon);

/* The rest of a step, after optim_cuda_launch_step. */
Status optim_cuda_muon_step(CudaMuon *muon, CudaOptimSchedule schedule);

#endif
