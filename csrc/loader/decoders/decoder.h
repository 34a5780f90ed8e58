/* How the values of a field become rows of a batch. Each entry has its own file and a line in table.h. Private to
 * loader/. */
#ifndef CGXFFCV_LOADER_DECODERS_DECODER_H
#define CGXFFCV_LOADER_DECODERS_DECODER_H

#include <stdatomic.h>

#include "base/clock.h"
#include "image/jpeg.h"
#include "image/resize.h"
#include "loader/loader.h"
#include "loader/source.h"
#include "loader/traversal.h"

#define DECODER_MAX_CHUNK 64 /* samples that one call may take */

typedef struct DecoderEntry DecoderEntry;

/* A user's function, and the size of the rows that it makes. */
typedef struct DecoderStep {
    LoaderMap call;
    size_t row_bytes;
} DecoderStep;

/* One array of a batch, and how it is made. */
typedef struct DecoderOutput {
    size_t field;                 /* in the reader */
    const BetonField *field_info; /* borrowed from the reader */
    const DecoderEntry *decoder;
    /* Filled in by `prepare`: */
    LoaderArray array;        /* as made by the decoder */
    void *state;              /* owned: the decoder's own data about this output */
    size_t scratch_bytes;     /* memory for this output alone, in each thread */
    size_t work_bytes;        /* what a sample costs besides writing its row, as bytes that could be copied meanwhile */
    bool mixes;               /* a chunk also needs the sample before its first */
    AugmentSpec *device_spec; /* owned: a GPU's work on `array`, three channels of uint8; or NULL */
    LoaderArray processed;    /* ... and its result */
    char why[STATUS_MESSAGE_BYTES]; /* why `device_spec` is NULL though it was requested; or "" */
    /* Filled in by the pipeline: */
    LoaderArray result; /* of the batch: `array`, or what the steps make of it */
    LoaderMoved moved;
    int step_count;
    DecoderStep steps[LOADER_MAX_STEPS]; /* steps.h */
    size_t scratch_at;                   /* where its memory begins in the thread's */
    int next_view;                       /* another output of the same decoded values, or -1 */
    int companion;                       /* an output of another decoder, decoded along with this one's values, or -1 */
    bool is_view;                        /* reached through next_view or companion of another */
    size_t kept_bytes;                   /* held by `reserve` */
} DecoderOutput;

/* Where a thread's time went. Nothing is measured twice, and reading the clock is cheap compared to an image. */
typedef struct DecoderTimes {
    int64_t decode_ns;   /* in the JPEG decoder */
    int64_t resample_ns; /* cropping and resampling */
    int64_t augment_ns;  /* the rest of what images need: operations, conversion, into the batch */
} DecoderTimes;

/* One thread's memory. */
typedef struct DecoderScratch {
    JpegDecoder *jpeg;  /* owned, made when needed */
    Resizer **resizers; /* owned: one per output, each made when needed */
    size_t outputs;
    uint8_t *buffer; /* owned, see loader_decoder_buffer */
    size_t buffer_bytes;
    unsigned char *own; /* owned: the outputs' scratch_bytes */
    size_t own_bytes;
    unsigned char *staged; /* owned: rows on which steps work, see steps.h */
    size_t staged_bytes;
    void **arrays;          /* owned: where decoders write instead of the batch's arrays, one per output */
    ReadBuffer read_buffer; /* owned: bytes of the samples of the chunk, if the source reads */
    DecoderTimes times;     /* since they were last set to 0 */
    int64_t failed_at;      /* after a failure: position in the batch */
} DecoderScratch;

/* Some samples of one batch, in one thread. */
typedef struct DecoderChunk {
    const LoaderSource *source;
    const DecoderOutput *outputs; /* all of the pipeline */
    DecoderScratch *scratch;
    uint64_t seed;
    uint32_t epoch;
    bool evaluate;
    const uint64_t *ids;           /* from the chunk's first sample on */
    uint64_t before;               /* the sample before it in the batch, cyclic ... */
    size_t before_first;           /* ... and its position there */
    uint64_t batch;                /* the batch's first sample */
    size_t first, count;           /* in the batch; at most DECODER_MAX_CHUNK */
    void *const *arrays;           /* the batch's, one per output */
    atomic_uint_fast64_t *blanked; /* NULL: a damaged image is a failure; otherwise its pixels are 0, and it is
                                    * counted */
} DecoderChunk;

struct DecoderEntry {
    const char *name;       /* its name in Python */
    const char *what;       /* in messages */
    const BetonKind *kinds; /* of the fields that it reads ... */
    size_t kind_count;      /* ... and their number */

    /* Sets the output's shape and type, cost and state, from the file and the requested output. `in_use` lists the
     * samples that matter. Runs between loader_source_enter and loader_source_leave. */
    Status (*prepare)(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                      DecoderOutput *output);

    /* Makes the chunk's rows, the first of which is at `rows`, and those of all further views. A failure is reported
     * through loader_decoder_fail. */
    Status (*decode)(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows);

    /* Optional: whether `other`, of the same field and `decode`, differs only in what is done after decoding. */
    bool (*same_values)(const DecoderOutput *output, const DecoderOutput *other);

    /* Optional: whether `decode` can also make the rows of `other`, of the same field and another decoder, and of its
     * views. If so, `other` may become the output's `companion`. */
    bool (*decodes_companion)(const DecoderOutput *output, const DecoderOutput *other);

    /* Optional: initialises a thread's scratch_bytes. */
    void (*init_scratch)(const DecoderOutput *output, void *scratch);

    /* Optional: makes room for the decoded values of all samples, if that saves work later, and sets kept_bytes; all
     * views of the output are in `outputs`. `keep` then decodes the chunk's only sample into it. */
    Status (*reserve)(const LoaderSource *source, const Traversal *in_use, DecoderOutput *outputs,
                      DecoderOutput *output);
    Status (*keep)(const DecoderChunk *chunk, const DecoderOutput *output);

    void (*destroy)(DecoderOutput *output); /* optional: frees `state` */
};

#define X(constant, entry) extern const DecoderEntry entry;
LOADER_DECODERS(X)
#undef X

/* NULL if there is none. */
const DecoderEntry *loader_decoder_entry(LoaderDecoder decoder);

/* ---- shared by the entries ---- */

LoaderArray loader_decoder_array_of(BetonDtype dtype, int ndim, const uint64_t *shape);

/* Refuses rows of a requested shape that this machine's memory could not hold. */
Status loader_decoder_check_rows(BetonDtype dtype, int ndim, const uint64_t *shape);

void loader_decoder_set_array(DecoderOutput *output, BetonDtype dtype, int ndim, const uint64_t *shape);

/* The thread's buffer for one value, with room for `bytes` bytes; its previous contents are lost. */
Status loader_decoder_buffer(DecoderScratch *scratch, size_t bytes, uint8_t **out);

/* Adds the time since `start` to one of the thread's times. */
static inline void loader_decoder_spent(int64_t *time, int64_t start) { *time += clock_now_ns() - start; }

/* The thread's resizer of this output. */
Status loader_decoder_resizer(const DecoderChunk *chunk, const DecoderOutput *output, Resizer **out);

/* Adds to a failure what is known about the chunk's sample `i`; STATUS_OK passes through. */
Status loader_decoder_fail(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const char *operation,
                           Status status);

/* Fails because a value is no longer what it was when the file was opened. */
Status loader_decoder_fail_changed(void);

#endif
