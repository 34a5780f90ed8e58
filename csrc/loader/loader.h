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
 * Only one thread at a time may drive a loader (create, begin, next, stop, gather, destroy); any thread may release
 * batches at any time, even after loader_destroy. Everything random is a pure function of (seed, epoch, sample index in
 * the file, operation): neither the number of workers, ranks or batches nor stopping and resuming changes a pixel.
 * (Only operations that mix images also depend on this rank's batch: a sample's partner is the one before it there.) */
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

/* An epoch's order is one permutation of the samples in use, shared by all ranks. Global batch g is its slice [g *
 * batch_size * world_size, (g + 1) * batch_size * world_size), of which rank r takes the r-th part: together the ranks
 * see what a single rank would see whose batches are world_size times as large. */
typedef enum LoaderOrder {
    LOADER_SEQUENTIAL,
    LOADER_RANDOM,      /* a permutation drawn from (seed, epoch) */
    LOADER_QUASI_RANDOM /* pages in random order, samples shuffled within windows of `window_pages` pages */
} LoaderOrder;

/* "sequential", "random", "quasi_random"; NULL for any other number. */
const char *loader_order_name(int order);

/* One constant for each entry of the table of decoders, which says what each produces. */
#define X(constant, entry) constant,
typedef enum LoaderDecoder { LOADER_DECODERS(X) LOADER_DECODER_COUNT } LoaderDecoder;
#undef X

/* Its name in Python; NULL past the last. */
const char *loader_decoder_name(int decoder);

/* Fills one row, zeroed beforehand, from the sample's record and data (NULL, 0 if the field has none); any return value
 * but 0 is a failure. Called from any number of threads at the same time. */
typedef int32_t (*LoaderRow)(void *row, const void *record, const void *data, uint64_t size, uint64_t sample);

typedef struct LoaderFunction {
    LoaderRow call;
    BetonDtype dtype; /* of the rows */
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS];
} LoaderFunction;

/* Fills one row, zeroed beforehand, from the sample's row so far; otherwise as LoaderRow. */
typedef int32_t (*LoaderMap)(void *to, const void *from, uint64_t sample);

typedef struct LoaderStep {
    LoaderMap call;
    bool same;        /* its rows have the type and shape of its input */
    BetonDtype dtype; /* otherwise: of its rows */
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS];
} LoaderStep;

typedef struct LoaderCrop {
    uint32_t height, width; /* of the result */
    double scale[2];        /* RANDOM: smallest and largest share of the image's area */
    double ratio[2]; /* RANDOM: smallest and largest width / height. CENTER: [0]: the square's share of the shorter
                      * side */
    ResizeFilter filter;
    bool shrinks;  /* decode a JPEG at half its size or less where the rectangle is large enough */
    uint32_t list; /* the number of its list of draws, as in augment_draw_index */
} LoaderCrop;

/* One array of a batch. */
typedef struct LoaderOutput {
    const char *field; /* borrowed during loader_create */
    LoaderDecoder decoder;
    bool fast_jpeg; /* IMAGE: the fast inverse DCT, like FFCV, instead of the accurate one */
    /* Images: what to do with the pixels; height and width are the file's or the crop's. Borrowed during loader_create;
     * what its operations borrow must live until loader_destroy. NULL: uint8, HWC, unchanged. */
    const AugmentSpec *image;
    const AugmentOp *labels; /* INT: operations on labels, in order; borrowed likewise, what they borrow until
                              * loader_destroy */
    int label_count;
    const LoaderFunction *function; /* FUNCTION: borrowed during loader_create */
    const LoaderCrop *crop;         /* CENTER_CROP, RANDOM_CROP, or a random one of ARRAY_IMAGE; borrowed during
                                     * loader_create */
    const LoaderStep *steps;        /* the user's functions after the decoder; borrowed during loader_create */
    int step_count;
    /* The array goes to LoaderConfig.device. The first `front` operations of `image` run before the move. The rest, and
     * what follows them, run on the GPU if `process_on_device` and it can do all of it (see loader_moved), otherwise
     * before the move, too. */
    bool moves, process_on_device;
    int front;
    bool only_if_processed; /* the array stays in host memory if nothing is done on the GPU */
} LoaderOutput;

typedef struct LoaderConfig {
    const char *path;          /* the loader opens this file and owns the reader ... */
    const BetonReader *reader; /* ... unless this is given: borrowed until loader_destroy */
    const LoaderOutput *outputs;
    size_t output_count;
    size_t batch_size; /* of this rank */
    size_t world_size, rank;
    int workers;          /* threads; below 1: one per processor */
    size_t batches_ahead; /* batches being made or waiting; 0: 3, or fewer if they are large */
    LoaderOrder order;
    size_t window_pages; /* of LOADER_QUASI_RANDOM, at least 1 */
    uint64_t seed;
    bool drop_last; /* drop the last global batch if incomplete; otherwise the ranks share it evenly, to within one */
    /* The samples in use, in the order that LOADER_SEQUENTIAL gives; borrowed during loader_create. NULL: all. */
    const uint64_t *indices;
    size_t index_count;
    /* Decode the JPEG images once (in loader_create, in parallel) and keep the pixels. Fields that hold only raw images
     * are read from the file's mapping in any case. */
    bool resident;
    /* For data larger than memory: the threads read their samples into private buffers, and each batch's pages are
     * requested before they are needed. */
    bool read_ahead;
    bool blank_damaged; /* damaged JPEG images come out black and are counted; otherwise they end the pass */
    /* Damaged samples are left out of their batches, which become shorter, and are counted. Otherwise a batch is what
     * it would be without them; a batch that is left empty is delivered, too. */
    bool skip_damaged;
    /* Batches are in page-locked memory, from which GPU `page_locker` can copy while it works. */
    bool page_locked;
    int page_locker;
    int device; /* of the outputs that move */
} LoaderConfig;

/* Sequential, one rank, as many batches ahead as fit, drop_last, window of 8 pages; the rest zero. */
LoaderConfig loader_config_default(void);

/* Checks the configuration against the file: fields and their kinds, indices, image sizes. Starts no thread unless
 * `resident`. */
Status loader_create(const LoaderConfig *config, Loader **out);

/* Sets the seed of orders and augmentation; ends the current pass. */
void loader_reseed(Loader *loader, uint64_t seed);

/* Stops and joins the workers. Batches still held stay valid. NULL does nothing. */
void loader_destroy(Loader *loader);

/* One output of a batch as the caller gets it: [count] + shape, C order. With bfloat16, dtype is BETON_U16. */
typedef struct LoaderArray {
    BetonDtype dtype;
    int ndim;
    uint64_t shape[LOADER_MAX_DIMS]; /* of one sample; images as laid out: HWC or CHW */
    size_t sample_bytes;
    bool bfloat16;
} LoaderArray;

size_t loader_outputs(const Loader *loader);
const LoaderArray *loader_array(const Loader *loader, size_t output);

uint64_t loader_samples(const Loader *loader); /* in use */

/* The number of batches in a pass over `samples` samples in total, on this rank (the same on every rank). */
uint64_t loader_batches_of(const Loader *loader, uint64_t samples);

/* Writes the samples of the whole epoch (all ranks) in order: loader_samples numbers into `out`. */
Status loader_order(const Loader *loader, uint32_t epoch, uint64_t *out);

typedef struct LoaderPass {
    uint32_t epoch;
    uint64_t first_batch;  /* to resume: earlier batches are not made */
    bool evaluate;         /* every random operation is neutral: no flip, no shift, the central crop, no hole */
    bool sequential;       /* in the order of `indices`, whatever order is configured */
    const uint64_t *order; /* borrowed during loader_begin: the epoch's samples, for all ranks; NULL: as configured */
    uint64_t order_count;
} LoaderPass;

/* Starts a pass, after stopping the current one. The first pass starts the workers. */
Status loader_begin(Loader *loader, const LoaderPass *pass);

/* How an output gets to a GPU. */
typedef enum LoaderMoved {
    LOADER_STAYS,
    LOADER_MOVED,    /* as the threads made it */
    LOADER_PROCESSED /* what follows the move is done on the GPU */
} LoaderMoved;

/* *why: the reason why work requested on the GPU is not done there, or NULL; borrowed until loader_destroy. */
LoaderMoved loader_moved(const Loader *loader, size_t output, const char **why);

/* A batch's arrays in device memory. The memory is reused once nobody holds them and all work queued on any stream of
 * the device before the last release is done. If every read was announced (loader_upload_read), no other streams are
 * waited for. */
typedef struct LoaderUpload {
    void *const *arrays; /* one per output, 256-byte aligned; meaningless for those that do not move */
    DeviceEvent *ready;  /* once it has occurred, they are complete */
} LoaderUpload;

/* As with batches, even after loader_destroy. */
void loader_upload_retain(LoaderUpload *upload);
void loader_upload_release(LoaderUpload *upload); /* NULL does nothing */

/* Announces that the caller, on the upload's GPU, has queued everything that reads one of its arrays on the stream.
 * Once that is said of each array, the memory is reused without waiting for other streams. */
Status loader_upload_read(LoaderUpload *upload, DeviceStream *stream);

typedef struct LoaderBatch {
    uint64_t index; /* within the epoch, on this rank */
    uint32_t epoch;
    size_t count;        /* samples: batch_size except in the last batch, where even 0 is possible (drop_last false) */
    const uint64_t *ids; /* their indices in the file */
    void *const *arrays; /* one per output, 64-byte aligned; for an output processed on a GPU, the input to that */
    size_t array_count;
    LoaderUpload *upload; /* a reference owned by the batch; NULL if no output moves or there are no samples */
} LoaderBatch;

/* Called about 20 times per second while a caller waits; a failure ends the wait and is passed on. May be NULL. */
typedef Status (*LoaderPoll)(void *context);

/* Waits for the next batch of the pass, in order; NULL at its end, or when no pass is in progress. It is the
 * caller's until its release. A failing sample ends the pass: the error names sample, field and operation, and comes
 * after all earlier batches. */
Status loader_next(Loader *loader, LoaderPoll poll, void *context, LoaderBatch **out);

/* Ends the pass; afterwards no worker touches it. */
void loader_stop(Loader *loader);

void loader_batch_release(LoaderBatch *batch); /* NULL does nothing */

/* Makes one batch of any samples now; the current pass, if any, waits meanwhile. */
Status loader_gather(Loader *loader, const uint64_t *ids, size_t count, uint32_t epoch, bool evaluate,
                     LoaderBatch **out);

/* The values of a field of bytes (Bytes, JSON, the data of a custom field), each at its own length, read by the calling
 * thread even during a pass: the value of ids[i] spans offsets[i] to offsets[i + 1]; offsets has count + 1 entries.
 * loader_place computes the offsets, loader_read copies the bytes. */
Status loader_place(const Loader *loader, const char *field, const uint64_t *ids, size_t count, int64_t *offsets);
Status loader_read(const Loader *loader, const char *field, const uint64_t *ids, size_t count, const int64_t *offsets,
                   unsigned char *out);

/* The next batch that loader_next would return: what a checkpoint stores. At the end of a pass (and after it), the
 * first of the next epoch; LOADER_NO_BATCH if there has been no pass. */
typedef struct LoaderPosition {
    uint32_t epoch;
    uint64_t batch;
} LoaderPosition;

LoaderPosition loader_position(const Loader *loader);

/* Whether a pass is under way: begun, and neither stopped nor failed. */
bool loader_active(const Loader *loader);

typedef struct LoaderStats {
    uint64_t batches, samples;              /* delivered to the caller */
    int64_t wait_ns;                        /* time the caller waited for batches */
    int64_t work_ns;                        /* time all workers spent decoding and augmenting */
    int64_t decode_ns;                      /* of it: in the JPEG decoder ... */
    int64_t resample_ns;                    /* ... cropping and resampling images ... */
    int64_t augment_ns;                     /* ... the rest of the image work: operations, conversion */
    int64_t idle_ns;                        /* time all workers waited for room or work during passes */
    uint64_t blanked;                       /* damaged images that came out black (blank_damaged), counted each time */
    uint64_t skipped;                       /* damaged samples that were left out (skip_damaged), counted each time */
    int workers;                            /* threads running now */
    size_t batches_ahead;                   /* as configured, or chosen */
    size_t slots, slots_held;               /* batch buffers that exist; of them, held by callers */
    size_t slot_bytes;                      /* one buffer */
    size_t memory_bytes, memory_peak_bytes; /* buffers, scratch, orders, resident pixels */
    size_t uploads, uploads_held;           /* buffers in device memory that exist; of them, held by callers */
    size_t device_bytes;                    /* these buffers and the GPU's scratch memory */
} LoaderStats;

void loader_stats(const Loader *loader, LoaderStats *out);

#endif
