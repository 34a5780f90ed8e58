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
    atomic_uint_fast64_t *blanked; /* owned; what DecoderChunk says of it */
    size_t kept_bytes;             /* of decoded values that stay, in all */
} Pipeline;

/* `in_use` says which samples are. */
Status loader_pipeline_init(Pipeline *pipeline, const LoaderSource *source, const LoaderConfig *config,
                            const Traversal *in_use);
void loader_pipeline_fini(Pipeline *pipeline);

Status loader_pipeline_scratch_init(const Pipeline *pipeline, DecoderScratch *scratch);
void loader_pipeline_scratch_fini(DecoderScratch *scratch);

/* What one thread's scratch takes now, beside what libjpeg-turbo holds while it decodes. */
size_t loader_pipeline_scratch_bytes(const DecoderScratch *scratch);

/* How the epoch's random choices are made. */
typedef struct PipelineDraws {
    uint32_t epoch;
    bool evaluate;
} PipelineDraws;

/* Makes samples [first, first + count) of the batch from its ids; count at most DECODER_MAX_CHUNK. The first sample
 * that fails ends it, and is scratch->failed_at. */
Status loader_pipeline_run(const Pipeline *pipeline, DecoderScratch *scratch, PipelineDraws draws, LoaderBatch *batch,
                           size_t first, size_t count);

/* Makes room for the decoded values that are worth keeping; then decodes those of one sample, for all outputs. */
Status loader_pipeline_reserve(Pipeline *pipeline, const Traversal *in_use);
Status loader_pipeline_keep(const Pipeline *pipeline, DecoderScratch *scratch, uint64_t sample);

/* Samples that make a chunk of work of some tens of microseconds. */
size_t loader_pipeline_chunk(const Pipeline *pipeline, size_t batch_size, int workers);

#endif
