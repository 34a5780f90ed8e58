/* Private to loader/: what is done to each sample: outputs checked against the file, and their execution on a few
 * samples of a batch by one thread. */
#ifndef CGXFFCV_LOADER_PLAN_H
#define CGXFFCV_LOADER_PLAN_H

#include "image/jpeg.h"
#include "loader/loader.h"
#include "loader/traversal.h"

#define PLAN_MAX_CHUNK 64 /* samples that one call may take */

typedef struct PlanOutput {
    size_t field; /* in the reader */
    const BetonField *about;
    LoaderDecoder decoder;
    LoaderArray array;
    /* images */
    Augment *augment;       /* owned; NULL if no sample is in use */
    size_t scratch_at;      /* where its part of the thread's scratch memory begins */
    uint32_t height, width; /* of the source */
    bool fast_jpeg;
    int next_view;     /* another output of the same decoded pixels, or -1 */
    bool is_view;      /* reached through next_view of another */
    uint8_t *resident; /* owned by the first output of its views; NULL: read from the file */
} PlanOutput;

typedef struct Plan {
    const BetonReader *reader; /* borrowed */
    uint64_t seed;
    size_t count;
    PlanOutput *outputs; /* owned */
    size_t scratch_bytes;
    size_t pixels_bytes;   /* of the largest image that may have to be decoded */
    size_t resident_bytes; /* held in all */
    uint8_t *in_use;       /* owned: a flag a sample, where resident pixels do not cover the whole file; or NULL */
    bool any_jpeg;
} Plan;

/* One thread's memory. */
typedef struct PlanScratch {
    JpegDecoder *jpeg;      /* owned, made when needed */
    uint8_t *pixels;        /* owned, plan->pixels_bytes, made when needed */
    unsigned char *augment; /* owned, plan->scratch_bytes */
    int64_t decode_ns;      /* spent in the JPEG decoder since it was last set to 0 */
    int64_t failed_at;      /* after a failure: position in the batch */
} PlanScratch;

/* `order` says which samples are in use. */
Status plan_init(Plan *plan, const BetonReader *reader, const LoaderConfig *config, const Traversal *order);
void plan_fini(Plan *plan);

Status plan_scratch_init(const Plan *plan, PlanScratch *scratch);
void plan_scratch_fini(PlanScratch *scratch);

/* The most that one thread's scratch takes. */
size_t plan_scratch_bytes(const Plan *plan);

/* How the epoch's random choices are made. */
typedef struct PlanDraws {
    uint32_t epoch;
    bool evaluate;
} PlanDraws;

/* Makes samples [first, first + count) of the batch from its ids; count at most PLAN_MAX_CHUNK. The first sample that
 * fails ends it, and is scratch->failed_at. */
Status plan_run(const Plan *plan, PlanScratch *scratch, PlanDraws draws, LoaderBatch *batch, size_t first,
                size_t count);

/* Makes room for all pixels; then decodes the image of one sample, for all outputs. */
Status plan_make_resident(Plan *plan, const Traversal *order);
Status plan_fill_resident(const Plan *plan, PlanScratch *scratch, uint64_t sample);

/* Samples that make a chunk of work of some tens of microseconds. */
size_t plan_chunk(const Plan *plan, size_t batch_size, int workers);

/* Asks the system to read the pages of these samples. */
void plan_read_ahead(const Plan *plan, const uint64_t *ids, size_t count);

#endif
