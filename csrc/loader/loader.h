/* The loader: turns samples of a .beton file into batches, in worker threads, in a chosen order.
 *
 *     LoaderConfig config = loader_config_default();
 *     config.path = ..., config.outputs = ..., config.output_count = ..., config.batch_size = ...;
 *     TRY(loader_create(&config, &loader));
 *     for each epoch:
 *         TRY_GOTO(loader_begin(loader, &(LoaderPass){.epoch = epoch}));
 *         for (;;) {
 *             LoaderBatch *batch;
 *             TRY_GOTO(loader_next(loader, poll, context, &batch));
 *             if (batch == NULL) break;
 *             ... batch->arrays[k], batch->ids, batch->count ...
 *             loader_batch_release(batch);
 *         }
 *     loader_destroy(loader);
 *
 * One thread at a time drives a loader (create, begin, next, stop, gather, destroy); batches may be released by any
 * thread at any time, also after loader_destroy. Everything random is a pure function of (seed, epoch, sample index in
 * the file, operation): the number of workers, ranks or batches, and stopping and resuming, change no pixel. (What
 * mixes images, and only that, goes by the batch of this rank, too: a sample's partner is the one before it there.) */
#ifndef CGXFFCV_LOADER_LOADER_H
#define CGXFFCV_LOADER_LOADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "augment/augment.h"
#include "base/status.h"
#include "beton/reader.h"
#include "device/device.h"
#include "image/resize.h"
#include "loader/decoders/table.h"

typedef struct Loader Loader;

#define LOADER_MAX_DIMS BETON_MAX_DIMS
#define LOADER_MAX_LABEL_OPS 8
#define LOADER_MAX_STEPS 8
#define LOADER_NO_BATCH UINT64_MAX

/* The order of an epoch is one permutation of the samples in use for all ranks. Global batch g is its slice [g *
 * batch_size * world_size, (g + 1) * batch_size * world_size), of which rank r takes the r-th part: all ranks together
 * see what one rank would see whose batches are world_size times as large. */
typedef enum LoaderOrder {
    LOADER_SEQUENTIAL,
    LOADER_RANDOM,      /* a permutation drawn from (seed, epoch) */
    LOADER_QUASI_RANDOM /* pages in random order, samples shuffled within windows of `window_pages` pages */
} LoaderOrder;

/* "sequential", "random", "quasi_random"; NULL if there is no such number. */
const char *loader_order_name(int order);

/* The constants of the table of decoders, which says what each gives. */
#define X(constant, entry) constant,
typedef enum LoaderDecoder { LOADER_DECODERS(X) LOADER_DECODER_COUNT } LoaderDecoder;
#undef X

/* As Python names it; NULL ends the list. */
const char *loader_decoder_name(int decoder);

/* Makes one row, whose bytes are zero before, from the sample's record and data (NULL, 0 where the field has none);
 * another answer than 0 is a failure. Any number of threads call it at once. */
typedef int32_t (*LoaderRow)(void *row, const void *record, const void *data, uint64_t size, uint64_t sample);

typedef struct LoaderFunction {
    LoaderRow call;
    BetonDtype dtype; /* of the rows */
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS];
} LoaderFunction;

/* Makes one row, whose bytes are zero before, from the sample's row as it is so far; else as LoaderRow. */
typedef int32_t (*LoaderMap)(void *to, const void *from, uint64_t sample);

typedef struct LoaderStep {
    LoaderMap call;
    bool same;        /* its rows are of the type and shape that it gets */
    BetonDtype dtype; /* if not: of its rows */
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS];
} LoaderStep;

typedef struct LoaderCrop {
    uint32_t height, width; /* of the result */
    double scale[2];        /* RANDOM: shares of the image's area, the least and the largest */
    double ratio[2]; /* RANDOM: width over height, as scale. CENTER: [0] is the square's share of the shorter side */
    ResizeFilter filter;
    bool shrinks;  /* a JPEG is decoded at half its size, or less, where the rectangle is large enough */
    uint32_t list; /* the number of its list of draws, as in augment_draw_index */
} LoaderCrop;

/* One array of a batch. */
typedef struct LoaderOutput {
    const char *field; /* borrowed during loader_create */
    LoaderDecoder decoder;
    bool fast_jpeg; /* IMAGE: the fast inverse DCT, as FFCV, instead of the accurate one */
    /* Images: what to do with the pixels; their height and width are the file's, or the crop's. Borrowed during
     * loader_create, but what its operations borrow until loader_destroy. NULL: uint8, HWC, unchanged. */
    const AugmentSpec *image;
    const AugmentOp *labels; /* INT: what is done to labels, in order; borrowed likewise, as what they borrow is until
                              * loader_destroy */
    int label_count;
    const LoaderFunction *function; /* FUNCTION: borrowed during loader_create */
    const LoaderCrop *crop;  /* CENTER_CROP, RANDOM_CROP; ARRAY_IMAGE, if a random rectangle is meant: borrowed during
                              * loader_create */
    const LoaderStep *steps; /* functions of the user's behind the decoder; borrowed during loader_create */
    int step_count;
    /* The array goes to LoaderConfig.device. Of `image`, the first `front` operations are done before; the others and
     * all that is behind them, there, if `works` and a GPU can do them all (loader_moved tells), else before, too. */
    bool moves, works;
    int front;
    bool only_works; /* the array stays in host memory if nothing is done on the GPU */
} LoaderOutput;

typedef struct LoaderConfig {
    const char *path;          /* the loader opens this file and owns the reader ... */
    const BetonReader *reader; /* ... unless this is given: borrowed until loader_destroy */
    const LoaderOutput *outputs;
    size_t output_count;
    size_t batch_size; /* of this rank */
    size_t world_size, rank;
    int workers;          /* threads; below 1: as many as processors */
    size_t batches_ahead; /* batches being made or waiting; 0: 3, or fewer where they are large */
    LoaderOrder order;
    size_t window_pages; /* of LOADER_QUASI_RANDOM, at least 1 */
    uint64_t seed;
    bool drop_last; /* drops the last global batch if incomplete; else its ranks share it evenly, to within one */
    /* The samples in use, in the order that LOADER_SEQUENTIAL gives; borrowed during loader_create. NULL: all. */
    const uint64_t *indices;
    size_t index_count;
    /* Decodes the JPEG images once (in loader_create, in parallel) and keeps the pixels. Fields of raw images alone are
     * read from the file's mapping in any case. */
    bool resident;
    /* For data beyond memory: the threads read their samples into memory of their own, and each batch's pages are asked
     * for before they are needed. */
    bool read_ahead;
    bool blank_damaged; /* damaged JPEG images are black, and counted; else they end the pass */
    /* Samples that are damaged are left out of their batches, which are shorter then, and counted. A batch is what it
     * would be without them; also one of which nothing is left is given. */
    bool skip_damaged;
    /* Batches lie in page-locked memory, from which GPU `page_locker` can copy beside its work. */
    bool page_locked;
    int page_locker;
    int device; /* of outputs that move */
} LoaderConfig;

/* Sequential, one rank, as many batches ahead as fit, drop_last, window of 8 pages; the rest zero. */
LoaderConfig loader_config_default(void);

/* Checks the configuration against the file: fields and their kinds, indices, image sizes. Starts no thread, unless
 * `resident`. */
Status loader_create(const LoaderConfig *config, Loader **out);

/* Another seed for orders and augmentation; ends the pass under way. */
void loader_reseed(Loader *loader, uint64_t seed);

/* Stops and joins the workers. Batches still held stay valid. NULL does nothing. */
void loader_destroy(Loader *loader);

/* One output of a batch, where it is given: [count] + shape, C order. bfloat16 says BETON_U16. */
typedef struct LoaderArray {
    BetonDtype dtype;
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS]; /* of one sample; images as laid out: HWC or CHW */
    size_t sample_bytes;
    bool bfloat16;
} LoaderArray;

size_t loader_outputs(const Loader *loader);
const LoaderArray *loader_array(const Loader *loader, size_t output);

/* Samples in use, and batches of a complete epoch on this rank (the same on every rank). */
uint64_t loader_samples(const Loader *loader);
uint64_t loader_batches(const Loader *loader);

/* The batches of a pass over `samples` samples in all. */
uint64_t loader_batches_of(const Loader *loader, uint64_t samples);

/* The samples of the whole epoch (all ranks) in order: loader_samples numbers into `out`. */
Status loader_order(const Loader *loader, uint32_t epoch, uint64_t *out);

typedef struct LoaderPass {
    uint32_t epoch;
    uint64_t first_batch;  /* resumes: the batches before it are not made */
    bool evaluate;         /* every random operation is neutral: no flip, no shift, the central crop, no hole */
    bool sequential;       /* in order of `indices`, whatever the configured order */
    const uint64_t *order; /* borrowed during loader_begin: the samples of the epoch, for all ranks; NULL: configured */
    uint64_t order_count;
} LoaderPass;

/* Starts a pass; one that is under way is stopped first. The first pass starts the workers. */
Status loader_begin(Loader *loader, const LoaderPass *pass);

/* How an output comes to a GPU. */
typedef enum LoaderMoved {
    LOADER_STAYS,
    LOADER_MOVED, /* as the threads have made it */
    LOADER_WORKED /* what is behind the move is done on the GPU */
} LoaderMoved;

/* *why: why what should be done on the GPU is not, or NULL; borrowed until loader_destroy. */
LoaderMoved loader_moved(const Loader *loader, size_t output, const char **why);

/* The arrays of a batch that lie in device memory, which is used again once nobody holds them and all that was put on
 * any stream of the device before the last one let go is done: of streams that loader_upload_read was told of, without
 * a wait for others. */
typedef struct LoaderUpload {
    void *const *arrays; /* one an output, 256-byte aligned; of those that do not move, nothing */
    DeviceEvent *ready;  /* behind it, on the device, they are there */
} LoaderUpload;

/* As with batches: also after loader_destroy. */
void loader_upload_retain(LoaderUpload *upload);
void loader_upload_release(LoaderUpload *upload); /* NULL does nothing */

/* The caller, on the GPU of the upload, has put all that reads one of its arrays on the stream. Where that is said of
 * each of them, memory is used again without a wait for other streams. */
Status loader_upload_read(LoaderUpload *upload, DeviceStream *stream);

typedef struct LoaderBatch {
    uint64_t index; /* within the epoch, on this rank */
    uint32_t epoch;
    size_t count;        /* samples: batch_size but in the last batch; 0 is possible there (drop_last false) */
    const uint64_t *ids; /* their indices in the file */
    void *const *arrays; /* one an output, 64-byte aligned; one that is worked on by a GPU is what is given to that */
    size_t array_count;
    LoaderUpload *upload; /* the batch's reference; NULL if no output moves, or there are no samples */
} LoaderBatch;

/* Called about 20 times a second while a caller waits; a failure ends the wait and is passed on. It may be NULL. */
typedef Status (*LoaderPoll)(void *context);

/* Waits for the next batch of the pass, in order; NULL at its end, or when no pass is under way. The caller owns one
 * reference to it. A sample that fails ends the pass: the error names sample, field and operation, and comes after all
 * batches before it. */
Status loader_next(Loader *loader, LoaderPoll poll, void *context, LoaderBatch **out);

/* Ends the pass; afterwards no worker touches it. */
void loader_stop(Loader *loader);

void loader_batch_retain(LoaderBatch *batch);
void loader_batch_release(LoaderBatch *batch); /* NULL does nothing */

/* Makes one batch of any samples now; a pass under way waits meanwhile. */
Status loader_gather(Loader *loader, const uint64_t *ids, size_t count, uint32_t epoch, bool evaluate,
                     LoaderBatch **out);

/* The values of a field of bytes (Bytes, JSON, the data of a user's own), each as long as it is, read by the caller's
 * thread beside a pass: that of ids[i] lies from offsets[i] to offsets[i + 1]; offsets has count + 1 entries.
 * loader_place finds the offsets, loader_read the bytes. */
Status loader_place(const Loader *loader, const char *field, const uint64_t *ids, size_t count, int64_t *offsets);
Status loader_read(const Loader *loader, const char *field, const uint64_t *ids, size_t count, const int64_t *offsets,
                   unsigned char *out);

/* The next batch that loader_next would give: what a checkpoint keeps. At the end of a pass (and after it) the first
 * of the next epoch; LOADER_NO_BATCH if there was no pass. */
typedef struct LoaderPosition {
    uint32_t epoch;
    uint64_t batch;
} LoaderPosition;

LoaderPosition loader_position(const Loader *loader);

typedef struct LoaderStats {
    uint64_t batches, samples;              /* given to the caller */
    int64_t wait_ns;                        /* the caller waited for batches */
    int64_t work_ns;                        /* all workers decoded and augmented */
    int64_t decode_ns;                      /* of it, the JPEG decoder ... */
    int64_t resample_ns;                    /* ... cutting and resampling images ... */
    int64_t augment_ns;                     /* ... what else is done to them: operations, conversion */
    int64_t idle_ns;                        /* all workers waited for room or work during passes */
    uint64_t blanked;                       /* damaged images that came out black (blank_damaged), each time */
    uint64_t skipped;                       /* damaged samples that were left out (skip_damaged), each time */
    int workers;                            /* threads running now */
    size_t batches_ahead;                   /* as configured, or chosen */
    size_t slots, slots_held;               /* batch buffers that exist; of them, held by callers */
    size_t slot_bytes;                      /* one buffer */
    size_t memory_bytes, memory_peak_bytes; /* buffers, scratch, orders, resident pixels */
    size_t uploads, uploads_held;           /* buffers in device memory that exist; of them, held by callers */
    size_t device_bytes;                    /* these buffers, and what the GPU works with */
} LoaderStats;

void loader_stats(const Loader *loader, LoaderStats *out);

#endif
