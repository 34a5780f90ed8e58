/* Private to loader/: what is done to each sample: outputs checked against the file, each with its decoder, and their
 * execution on a few samples of a batch by one thread. */
#ifndef CGXFFCV_LOADER_PIPELINE_H
#define CGXFFCV_LOADER_PIPELINE_H

#include "loader/decoders/decoder.h"

typedef struct Pipeline {
    const LoaderSource *source; /* borrowed */
    uint64_t seed;
    size_t count;
    DecoderOutput *outputs; /* owned */
    size_t scratch_bytes;
    bool any_steps;
    atomic_uint_fast64_t *blanked; /* owned; see DecoderChunk */
    size_t kept_bytes;             /* of decoded values that are kept, in total */
} Pipeline;

/* `in_use` lists the samples in use. */
Status loader_pipeline_init(Pipeline *pipeline, const LoaderSource *source, const LoaderConfig *config,
                            const Traversal *in_use);
void loader_pipeline_fini(Pipeline *pipeline);

Status loader_pipeline_scratch_init(const Pipeline *pipeline, DecoderScratch *scratch);
void loader_pipeline_scratch_fini(DecoderScratch *scratch);

/* The bytes that one thread's scratch takes now, without what libjpeg-turbo holds while it decodes. */
size_t loader_pipeline_scratch_bytes(const DecoderScratch *scratch);

/* How the epoch's random choices are made. */
typedef struct PipelineDraws {
    uint32_t epoch;
    bool evaluate;
} PipelineDraws;

/* Makes samples [first, first + count) of the batch from its ids; count at most DECODER_MAX_CHUNK. The first sample
 * that fails ends the run; scratch->failed_at is its position. */
Status loader_pipeline_run(const Pipeline *pipeline, DecoderScratch *scratch, PipelineDraws draws, LoaderBatch *batch,
                           size_t first, size_t count);

/* The first makes room for the decoded values worth keeping; the second decodes those of one sample for all outputs. */
Status loader_pipeline_reserve(Pipeline *pipeline, const Traversal *in_use);
Status loader_pipeline_keep(const Pipeline *pipeline, DecoderScratch *scratch, uint64_t sample);

/* The number of samples that makes a chunk take some tens of microseconds. */
size_t loader_pipeline_chunk(const Pipeline *pipeline, size_t batch_size, int workers);

#endif
