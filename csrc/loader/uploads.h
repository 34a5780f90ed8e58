/* Private to loader/: the arrays of batches that go to a GPU. A thread that has finished a batch queues its copies, and
 * the GPU's work on its images, on the pool's own stream, and goes on; so batches are on their way as soon as they are
 * made, alongside whatever the program does on the GPU. */
#ifndef CGXFFCV_LOADER_UPLOADS_H
#define CGXFFCV_LOADER_UPLOADS_H

#include "loader/loader.h"

/* A pool of device memory for batches; lives until its owner and the last batch have released it. */
typedef struct Uploads Uploads;

/* What happens to an output on its way. */
typedef struct UploadsArray {
    bool moves;
    size_t host_bytes, bytes;       /* of a sample in host memory and in device memory; equal without `device_spec` */
    const AugmentSpec *device_spec; /* the GPU's work on images (height, width, 3) of uint8; borrowed during
                                     * loader_uploads_create, what its operations borrow until the end. NULL: none */
} UploadsArray;

typedef struct UploadsConfig {
    int device;
    size_t batch_size; /* samples that a buffer has room for; larger batches get buffers of their own */
    size_t arrays;
    const UploadsArray *array; /* borrowed during loader_uploads_create */
    size_t spare;              /* at most this many unused buffers are kept */
} UploadsConfig;

typedef struct UploadsStats {
    size_t live, held; /* buffers that exist; of them, held by callers */
    size_t bytes;      /* of them, and of the GPU's scratch memory */
} UploadsStats;

/* Touches no GPU; only the threads do. */
Status loader_uploads_create(const UploadsConfig *config, Uploads **out);

/* The owner's release: unused buffers are freed now, the others as they are released. NULL does nothing. */
void loader_uploads_close(Uploads *uploads);

/* Called first by each thread that works with them, or with memory that they copy from. */
void loader_uploads_enter(const Uploads *uploads);

/* What the GPU's random choices depend on. */
typedef struct UploadsDraws {
    uint64_t seed;
    uint32_t epoch;
    bool evaluate;
} UploadsDraws;

/* Starts the upload of a complete batch of at least one sample and sets batch->upload; its slot is not written again
 * before the copies are done. The calling thread's device becomes the pool's. */
Status loader_uploads_begin(Uploads *uploads, UploadsDraws draws, LoaderBatch *batch);

UploadsStats loader_uploads_stats(Uploads *uploads);

#endif
