/* Private to loader/: the arrays of batches that go to a GPU. A thread that has finished a batch puts its copies, and
 * what the GPU does to its images, on a stream of the pool's own, and goes on; so batches are on their way as soon as
 * they are made, beside whatever the program does on the GPU. */
#ifndef CGXFFCV_LOADER_UPLOADS_H
#define CGXFFCV_LOADER_UPLOADS_H

#include "loader/loader.h"

/* Device memory for batches, handed out and taken back; lives until its owner and the last batch have let go. */
typedef struct Uploads Uploads;

/* What an output is on its way. */
typedef struct UploadsArray {
    bool moves;
    size_t host_bytes, bytes;  /* of a sample in host memory and in device memory; equal without `behind` */
    const AugmentSpec *behind; /* what the GPU makes of images (height, width, 3) of uint8; borrowed during
                                * loader_uploads_create, but what its operations borrow until the end. NULL: nothing */
} UploadsArray;

typedef struct UploadsConfig {
    int device;
    size_t batch_size; /* samples that a buffer has room for; others are made for larger batches */
    size_t arrays;
    const UploadsArray *array; /* borrowed during loader_uploads_create */
    size_t spare;              /* at most so many unused buffers are kept */
} UploadsConfig;

typedef struct UploadsStats {
    size_t live, held; /* buffers that exist; of them, in callers' hands */
    size_t bytes;      /* of them, and of what the GPU works with */
} UploadsStats;

/* Touches no GPU: that is for the threads. */
Status loader_uploads_create(const UploadsConfig *config, Uploads **out);

/* The owner lets go: unused buffers are freed, the others as they are released. NULL does nothing. */
void loader_uploads_close(Uploads *uploads);

/* What each thread does first that is to work with them, or with memory that they copy from. */
void loader_uploads_enter(const Uploads *uploads);

/* How the GPU draws. */
typedef struct UploadsDraws {
    uint64_t seed;
    uint32_t epoch;
    bool evaluate;
} UploadsDraws;

/* Puts a whole batch of at least one sample on its way and sets batch->upload; its slot is not written again before the
 * copies are done. The calling thread's device becomes the pool's. */
Status loader_uploads_begin(Uploads *uploads, UploadsDraws draws, LoaderBatch *batch);

UploadsStats loader_uploads_stats(Uploads *uploads);

#endif
