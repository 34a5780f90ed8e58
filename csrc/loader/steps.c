#include "loader/steps.h"

#include <string.h>

#include "base/memory.h"

static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

Status loader_steps_prepare(const LoaderOutput *request, DecoderOutput *output) {
    output->result = output->array;
    if (request->step_count > LOADER_MAX_STEPS) {
        FAIL(STATUS_ARGUMENT, "a pipeline takes at most %d functions, not %d", LOADER_MAX_STEPS, request->step_count);
    }
    for (int i = 0; i < request->step_count; i++) {
        const LoaderStep *step = &request->steps[i];
        if (step->call == NULL) FAIL(STATUS_ARGUMENT, "a function of a pipeline is a null pointer");
        if (!step->same) {
            TRY(loader_decoder_check_rows(step->dtype, step->ndim, step->shape));
            output->result = loader_decoder_array_of(step->dtype, step->ndim, step->shape);
        }
        output->steps[output->step_count++] = (DecoderStep){step->call, output->result.sample_bytes};
    }
    return STATUS_OK;
}

/* The size of the widest row that one function passes to the next, over all outputs. */
static size_t widest_between(const DecoderOutput *outputs, size_t count) {
    size_t widest = 0;
    for (size_t k = 0; k < count; k++) {
        for (int i = 0; i + 1 < outputs[k].step_count; i++) {
            if (outputs[k].steps[i].row_bytes > widest) widest = outputs[k].steps[i].row_bytes;
        }
    }
    return rounded(widest);
}

static size_t staged_bytes(const DecoderChunk *chunk, const DecoderOutput *output) {
    return output->step_count == 0 ? 0 : rounded(chunk->count * output->array.sample_bytes);
}

Status loader_steps_stage(DecoderChunk *chunk, size_t outputs) {
    DecoderScratch *scratch = chunk->scratch;
    size_t bytes = 2 * widest_between(chunk->outputs, outputs), at = bytes;
    for (size_t k = 0; k < outputs; k++) bytes += staged_bytes(chunk, &chunk->outputs[k]);
    if (scratch->arrays == NULL) TRY(memory_calloc(outputs, sizeof *scratch->arrays, &scratch->arrays));
    TRY(memory_reserve(&scratch->staged, &scratch->staged_bytes, bytes, 1));
    for (size_t k = 0; k < outputs; k++) {
        const DecoderOutput *output = &chunk->outputs[k];
        scratch->arrays[k] = chunk->arrays[k];
        if (output->step_count == 0) continue;
        /* Decoders count rows from the batch's first. */
        const uintptr_t rows = (uintptr_t)(scratch->staged + at);
        scratch->arrays[k] = (void *)(rows - chunk->first * output->array.sample_bytes);
        at += staged_bytes(chunk, output);
    }
    chunk->arrays = scratch->arrays;
    return STATUS_OK;
}

/* Runs the output's functions on the chunk's sample `i`; `between` has room for two rows that they pass on. */
static Status run_row(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const void *from,
                      unsigned char *between, size_t widest, unsigned char *row) {
    for (int k = 0; k < output->step_count; k++) {
        const DecoderStep *step = &output->steps[k];
        unsigned char *to = k + 1 == output->step_count ? row : between + (size_t)(k % 2) * widest;
        memset(to, 0, step->row_bytes);
        const int32_t answer = step->call(to, from, chunk->ids[i]);
        if (answer != 0) {
            Status status = error_fail(STATUS_FORMAT, "the pipeline's C function %d returned %d", k + 1, (int)answer);
            return loader_decoder_fail(chunk, output, i, "function", status);
        }
        from = to;
    }
    return STATUS_OK;
}

Status loader_steps_run(const DecoderChunk *chunk, size_t outputs, void *const *arrays) {
    const size_t widest = widest_between(chunk->outputs, outputs);
    for (size_t k = 0; k < outputs; k++) {
        const DecoderOutput *output = &chunk->outputs[k];
        const uintptr_t from = (uintptr_t)chunk->arrays[k];
        unsigned char *rows = (unsigned char *)arrays[k] + chunk->first * output->result.sample_bytes;
        if (output->step_count == 0) continue;
        for (size_t i = 0; i < chunk->count; i++) {
            const void *row = (const void *)(from + (chunk->first + i) * output->array.sample_bytes);
            unsigned char *to = rows + i * output->result.sample_bytes;
            TRY(run_row(chunk, output, i, row, chunk->scratch->staged, widest, to));
        }
    }
    return STATUS_OK;
}
