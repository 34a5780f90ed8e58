/* Pairs outputs with their decoders and runs them on some samples of a batch. Knows nothing of any kind of value. */
#include "loader/pipeline.h"

#include <stdio.h>

#include "base/memory.h"
#include "loader/slots.h"
#include "loader/steps.h"

#define LEAST_FAIR 8 /* samples per chunk, at least, however many workers there are */

/* ---- creation ---- */

static Status find_field(const BetonReader *reader, const char *name, size_t *out) {
    char known[256] = "";
    int64_t found = beton_reader_find_field(reader, name);
    if (found >= 0) {
        *out = (size_t)found;
        return STATUS_OK;
    }
    for (size_t i = 0, used = 0; i < beton_reader_num_fields(reader) && used < sizeof known; i++) {
        used += (size_t)snprintf(known + used, sizeof known - used, "%s'%s'", i == 0 ? "" : ", ",
                                 beton_reader_field(reader, i)->name);
    }
    return error_at_path(error_fail(STATUS_ARGUMENT, "no field is named '%s'; the file has %s", name, known),
                         beton_reader_path(reader));
}

static Status check_kind(const BetonReader *reader, const DecoderEntry *decoder, const BetonField *field) {
    for (size_t i = 0; i < decoder->kind_count; i++) {
        if (decoder->kinds[i] == field->kind) return STATUS_OK;
    }
    Status status = error_fail(STATUS_TYPE, "the field holds %s, which %s cannot read", beton_kind_name(field->kind),
                               decoder->what);
    return error_at_path(error_at_field(status, field->name), beton_reader_path(reader));
}

/* Links the output to an earlier one that decodes the same values. */
static void link_view(Pipeline *pipeline, size_t index) {
    DecoderOutput *own = &pipeline->outputs[index];
    for (size_t i = 0; own->decoder->same_values != NULL && i < index; i++) {
        DecoderOutput *first = &pipeline->outputs[i];
        if (first->decoder->decode != own->decoder->decode || first->field != own->field || first->is_view) continue;
        if (!own->decoder->same_values(first, own)) continue;
        own->next_view = first->next_view;
        first->next_view = (int)index;
        own->is_view = true;
        return;
    }
}

/* Where two decoders read the same values, one of them may do the other's work. */
static void link_companion(Pipeline *pipeline, size_t index) {
    DecoderOutput *own = &pipeline->outputs[index];
    for (size_t i = 0; own->decoder->decodes_companion != NULL && !own->is_view && i < pipeline->count; i++) {
        DecoderOutput *other = &pipeline->outputs[i];
        if (other->is_view || other->field != own->field || !own->decoder->decodes_companion(own, other)) continue;
        own->companion = (int)i;
        other->is_view = true;
        return;
    }
}

static Status prepare_output(Pipeline *pipeline, size_t index, const LoaderOutput *request, const Traversal *in_use) {
    const BetonReader *reader = pipeline->source->reader;
    DecoderOutput *output = &pipeline->outputs[index];
    const DecoderEntry *decoder = loader_decoder_entry(request->decoder);
    if (decoder == NULL) FAIL(STATUS_ARGUMENT, "unknown decoder %d", (int)request->decoder);
    TRY(find_field(reader, request->field, &output->field));
    output->field_info = beton_reader_field(reader, output->field);
    output->next_view = output->companion = -1;
    TRY(check_kind(reader, decoder, output->field_info));
    output->decoder = decoder;
    TRY(error_at_field(decoder->prepare(pipeline->source, in_use, request, output), output->field_info->name));
    TRY(error_at_field(loader_steps_prepare(request, output), output->field_info->name));
    if (output->device_spec != NULL && output->step_count > 0) {
        FAIL(STATUS_ARGUMENT, "an output with C functions cannot also have operations done on a GPU");
    }
    if (request->moves && (output->device_spec != NULL || !request->only_if_processed)) {
        output->moved = output->device_spec != NULL ? LOADER_PROCESSED : LOADER_MOVED;
    }
    pipeline->any_steps = pipeline->any_steps || output->step_count > 0;
    output->scratch_at = pipeline->scratch_bytes;
    pipeline->scratch_bytes += (output->scratch_bytes + 63) & ~(size_t)63;
    link_view(pipeline, index);
    return STATUS_OK;
}

Status loader_pipeline_init(Pipeline *pipeline, const LoaderSource *source, const LoaderConfig *config,
                            const Traversal *in_use) {
    *pipeline = (Pipeline){.source = source, .seed = config->seed};
    TRY(memory_calloc(config->output_count, sizeof *pipeline->outputs, &pipeline->outputs));
    if (config->blank_damaged) TRY(memory_calloc(1, sizeof *pipeline->blanked, &pipeline->blanked));
    for (size_t i = 0; i < config->output_count; i++) {
        pipeline->count++;
        TRY(prepare_output(pipeline, i, &config->outputs[i], in_use));
    }
    for (size_t i = 0; i < pipeline->count; i++) link_companion(pipeline, i);
    return STATUS_OK;
}

void loader_pipeline_fini(Pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->count; i++) {
        DecoderOutput *output = &pipeline->outputs[i];
        if (output->state != NULL) output->decoder->destroy(output);
        memory_free(output->device_spec);
    }
    memory_free(pipeline->outputs);
    memory_free(pipeline->blanked);
    *pipeline = (Pipeline){0};
}

/* ---- a thread's memory ---- */

Status loader_pipeline_scratch_init(const Pipeline *pipeline, DecoderScratch *scratch) {
    Status status = STATUS_OK;
    *scratch = (DecoderScratch){.failed_at = -1};
    TRY_GOTO(memory_calloc(pipeline->count, sizeof *scratch->resizers, &scratch->resizers));
    scratch->outputs = pipeline->count;
    TRY_GOTO(memory_calloc(pipeline->scratch_bytes, 1, &scratch->own));
    scratch->own_bytes = pipeline->scratch_bytes;
    for (size_t i = 0; i < pipeline->count; i++) {
        const DecoderOutput *output = &pipeline->outputs[i];
        if (output->decoder->init_scratch == NULL) continue;
        output->decoder->init_scratch(output, scratch->own + output->scratch_at);
    }
done:
    if (status != STATUS_OK) loader_pipeline_scratch_fini(scratch);
    return status;
}

void loader_pipeline_scratch_fini(DecoderScratch *scratch) {
    if (scratch->jpeg != NULL) jpeg_decoder_destroy(scratch->jpeg);
    for (size_t i = 0; i < scratch->outputs; i++) resizer_destroy(scratch->resizers[i]);
    memory_free(scratch->resizers);
    loader_read_buffer_fini(&scratch->read_buffer);
    memory_free(scratch->buffer);
    memory_free(scratch->own);
    memory_free(scratch->staged);
    memory_free(scratch->arrays);
    *scratch = (DecoderScratch){.failed_at = -1};
}

size_t loader_pipeline_scratch_bytes(const DecoderScratch *scratch) {
    size_t bytes = scratch->own_bytes + scratch->buffer_bytes + scratch->staged_bytes;
    bytes += loader_read_buffer_bytes(&scratch->read_buffer);
    if (scratch->jpeg != NULL) bytes += jpeg_decoder_bytes(scratch->jpeg);
    for (size_t i = 0; i < scratch->outputs; i++) {
        if (scratch->resizers[i] != NULL) bytes += resizer_bytes(scratch->resizers[i]);
    }
    return bytes;
}

/* ---- samples ---- */

/* Adds the value of each field that outputs read. One that cannot be found is left for its decoder to report. */
static Status add_sample(const Pipeline *pipeline, ReadBuffer *buffer, uint64_t sample) {
    for (size_t k = 0; k < pipeline->count; k++) {
        const DecoderOutput *output = &pipeline->outputs[k];
        BetonRegion region = {0};
        if (output->is_view || !output->field_info->has_data) continue;
        if (beton_reader_region(pipeline->source->reader, output->field, sample, &region) != STATUS_OK) continue;
        TRY(loader_read_buffer_add(buffer, &region));
    }
    return STATUS_OK;
}

static Status fill_read_buffer(const Pipeline *pipeline, const DecoderChunk *chunk) {
    ReadBuffer *buffer = &chunk->scratch->read_buffer;
    bool mixes = false;
    loader_read_buffer_clear(buffer);
    for (size_t k = 0; k < pipeline->count; k++) mixes = mixes || pipeline->outputs[k].mixes;
    if (mixes) TRY(add_sample(pipeline, buffer, chunk->before));
    for (size_t i = 0; i < chunk->count; i++) TRY(add_sample(pipeline, buffer, chunk->ids[i]));
    return loader_read_buffer_read(buffer, pipeline->source->reader);
}

/* Runs `work` on the chunk while the file's bytes are accessible. */
static Status with_bytes(const Pipeline *pipeline, DecoderChunk *chunk,
                         Status (*work)(const Pipeline *pipeline, const DecoderChunk *chunk)) {
    LoaderSource source = *pipeline->source;
    Status status = STATUS_OK;
    Guard guard;
    chunk->source = &source;
    chunk->blanked = pipeline->blanked;
    loader_source_enter(&source, &guard);
    if (source.reads) {
        status = fill_read_buffer(pipeline, chunk);
        chunk->scratch->failed_at = (int64_t)chunk->first;
        source.read_buffer = &chunk->scratch->read_buffer;
    }
    if (status == STATUS_OK) status = work(pipeline, chunk);
    return loader_source_leave(&source, &guard, status);
}

static Status decode_outputs(const Pipeline *pipeline, const DecoderChunk *chunk) {
    for (size_t k = 0; k < pipeline->count; k++) {
        const DecoderOutput *output = &pipeline->outputs[k];
        if (output->is_view) continue;
        unsigned char *rows = (unsigned char *)chunk->arrays[k] + chunk->first * output->array.sample_bytes;
        TRY(output->decoder->decode(chunk, output, rows));
    }
    return STATUS_OK;
}

Status loader_pipeline_run(const Pipeline *pipeline, DecoderScratch *scratch, PipelineDraws draws, LoaderBatch *batch,
                           size_t first, size_t count) {
    loader_slots_await(batch);
    DecoderChunk chunk = {.outputs = pipeline->outputs,
                          .scratch = scratch,
                          .seed = pipeline->seed,
                          .epoch = draws.epoch,
                          .evaluate = draws.evaluate,
                          .ids = batch->ids + first,
                          .before = batch->ids[(first > 0 ? first : batch->count) - 1],
                          .before_first = (first > 0 ? first : batch->count) - 1,
                          .batch = batch->ids[0],
                          .first = first,
                          .count = count,
                          .arrays = batch->arrays};
    if (!pipeline->any_steps) return with_bytes(pipeline, &chunk, decode_outputs);
    scratch->failed_at = (int64_t)first;
    TRY(loader_steps_stage(&chunk, pipeline->count));
    TRY(with_bytes(pipeline, &chunk, decode_outputs));
    chunk.source = pipeline->source;
    return loader_steps_run(&chunk, pipeline->count, batch->arrays);
}

Status loader_pipeline_reserve(Pipeline *pipeline, const Traversal *in_use) {
    for (size_t i = 0; i < pipeline->count; i++) {
        DecoderOutput *output = &pipeline->outputs[i];
        if (output->is_view || output->decoder->reserve == NULL) continue;
        TRY(output->decoder->reserve(pipeline->source, in_use, pipeline->outputs, output));
        pipeline->kept_bytes += output->kept_bytes;
    }
    return STATUS_OK;
}

static Status keep_outputs(const Pipeline *pipeline, const DecoderChunk *chunk) {
    for (size_t k = 0; k < pipeline->count; k++) {
        const DecoderOutput *output = &pipeline->outputs[k];
        if (output->kept_bytes > 0) TRY(output->decoder->keep(chunk, output));
    }
    return STATUS_OK;
}

Status loader_pipeline_keep(const Pipeline *pipeline, DecoderScratch *scratch, uint64_t sample) {
    DecoderChunk chunk = {.scratch = scratch, .ids = &sample, .count = 1, .before = sample};
    return with_bytes(pipeline, &chunk, keep_outputs);
}

size_t loader_pipeline_chunk(const Pipeline *pipeline, size_t batch_size, int workers) {
    size_t bytes = 0, least = 1;
    for (size_t i = 0; i < pipeline->count; i++) {
        if (pipeline->outputs[i].work_bytes > bytes) bytes = pipeline->outputs[i].work_bytes;
        if (pipeline->outputs[i].mixes) least = LEAST_FAIR; /* one more image for each chunk should cost little */
    }
    for (size_t i = 0; i < pipeline->count; i++) bytes += pipeline->outputs[i].result.sample_bytes;
    size_t chunk = ((size_t)512 << 10) / (bytes + 64);
    size_t fair = batch_size / (2 * (size_t)workers);
    if (fair < LEAST_FAIR) fair = LEAST_FAIR;
    if (chunk > fair) chunk = fair;
    if (chunk > DECODER_MAX_CHUNK) chunk = DECODER_MAX_CHUNK;
    return chunk < least ? least : chunk;
}
