/* The execution of a plan on some samples of a batch: values are looked up first, then copied, decoded or augmented
 * straight into their place. Runs in worker threads; touches only its scratch and its part of the batch. */
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "loader/plan.h"

/* A chunk of one batch. */
typedef struct Chunk {
    const Plan *plan;
    PlanScratch *scratch;
    PlanDraws draws;
    const uint64_t *ids; /* of the chunk's first sample */
    size_t first, count; /* in the batch */
} Chunk;

Status plan_scratch_init(const Plan *plan, PlanScratch *scratch) {
    *scratch = (PlanScratch){.failed_at = -1};
    TRY(memory_calloc(plan->scratch_bytes, 1, &scratch->augment));
    for (size_t i = 0; i < plan->count; i++) {
        const PlanOutput *output = &plan->outputs[i];
        if (output->augment != NULL) augment_scratch_init(output->augment, scratch->augment + output->scratch_at);
    }
    return STATUS_OK;
}

void plan_scratch_fini(PlanScratch *scratch) {
    if (scratch->jpeg != NULL) jpeg_decoder_destroy(scratch->jpeg);
    memory_free(scratch->pixels);
    memory_free(scratch->augment);
    *scratch = (PlanScratch){.failed_at = -1};
}

size_t plan_scratch_bytes(const Plan *plan) { return plan->scratch_bytes + (plan->any_jpeg ? plan->pixels_bytes : 0); }

/* Adds to a failure what is known here. */
static Status at_sample(const Chunk *chunk, const PlanOutput *output, Status status, size_t i, const char *operation) {
    if (status == STATUS_OK) return status;
    chunk->scratch->failed_at = (int64_t)(chunk->first + i);
    error_at_operation(status, operation);
    error_at_path(status, beton_reader_path(chunk->plan->reader));
    error_at_sample(status, (int64_t)chunk->ids[i]);
    return error_at_field(status, output->about->name);
}

/* ---- images ---- */

static Status decode_jpeg(const Plan *plan, const PlanOutput *output, PlanScratch *scratch, const BetonImage *image,
                          uint8_t *pixels) {
    if (scratch->jpeg == NULL) TRY(jpeg_decoder_create(&scratch->jpeg));
    (void)plan;
    int64_t start = clock_now_ns();
    Status status = jpeg_decode(scratch->jpeg, image->region.data, (size_t)image->region.size,
                                output->fast_jpeg ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, output->width, output->height,
                                pixels, (size_t)output->width * AUGMENT_CHANNELS);
    scratch->decode_ns += clock_now_ns() - start;
    return beton_damaged_image(status);
}

static Status check_image(const PlanOutput *output, const BetonImage *image) {
    if (image->height == output->height && image->width == output->width) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "the image is %ux%u (height x width), but the loader's images are %ux%u", image->height,
         image->width, output->height, output->width);
}

static uint8_t *resident_pixels(const PlanOutput *output, uint64_t sample) {
    return output->resident + sample * output->height * output->width * AUGMENT_CHANNELS;
}

/* The pixels of an image that check_image has passed: in the file, or decoded into scratch memory. */
static Status pixels_of(const Plan *plan, const PlanOutput *output, PlanScratch *scratch, const BetonImage *image,
                        const uint8_t **pixels) {
    size_t bytes = (size_t)output->height * output->width * AUGMENT_CHANNELS;
    if (image->mode == BETON_IMAGE_RAW) {
        if (image->region.size < bytes)
            FAIL(STATUS_FORMAT, "the file has been changed since it was opened; open it again");
        *pixels = image->region.data;
        return STATUS_OK;
    }
    if (scratch->pixels == NULL) TRY(memory_alloc(plan->pixels_bytes, 1, &scratch->pixels));
    *pixels = scratch->pixels;
    return decode_jpeg(plan, output, scratch, image, scratch->pixels);
}

/* The image and all further views of it. */
static void augment_views(const Chunk *chunk, size_t index, const uint8_t *pixels, const uint8_t *next, size_t i,
                          void *const *arrays) {
    const Plan *plan = chunk->plan;
    for (int view = (int)index; view >= 0; view = plan->outputs[view].next_view) {
        const PlanOutput *output = &plan->outputs[view];
        CropKey key = {.seed = plan->seed, .sample = chunk->ids[i], .epoch = chunk->draws.epoch};
        unsigned char *to = (unsigned char *)arrays[view] + (chunk->first + i) * output->array.sample_bytes;
        augment_run(output->augment, pixels, next, key, chunk->draws.evaluate, to,
                    chunk->scratch->augment + output->scratch_at);
    }
}

static Status run_file_images(const Chunk *chunk, size_t index, void *const *arrays) {
    const PlanOutput *output = &chunk->plan->outputs[index];
    BetonImage images[PLAN_MAX_CHUNK];
    for (size_t i = 0; i < chunk->count; i++) {
        Status status = beton_reader_image(chunk->plan->reader, output->field, chunk->ids[i], &images[i]);
        if (status == STATUS_OK) status = check_image(output, &images[i]);
        TRY(at_sample(chunk, output, status, i, "read"));
    }
    for (size_t i = 0; i < chunk->count; i++) {
        const uint8_t *pixels = NULL;
        bool next_raw = i + 1 < chunk->count && images[i + 1].mode == BETON_IMAGE_RAW;
        Status status = pixels_of(chunk->plan, output, chunk->scratch, &images[i], &pixels);
        TRY(at_sample(chunk, output, status, i, "decode"));
        augment_views(chunk, index, pixels, next_raw ? images[i + 1].region.data : NULL, i, arrays);
    }
    return STATUS_OK;
}

static Status run_images(const Chunk *chunk, size_t index, void *const *arrays) {
    const PlanOutput *output = &chunk->plan->outputs[index];
    if (output->augment == NULL) {
        return at_sample(chunk, output, error_fail(STATUS_ARGUMENT, "this loader has no samples in use"), 0, "read");
    }
    if (output->resident == NULL) return run_file_images(chunk, index, arrays);
    for (size_t i = 0; i < chunk->count; i++) {
        if (chunk->plan->in_use != NULL && chunk->plan->in_use[chunk->ids[i]] == 0) {
            Status status = error_fail(STATUS_INDEX, "the sample is not in use (indices), so it is not in memory");
            return at_sample(chunk, output, status, i, "read");
        }
        const uint8_t *next = i + 1 < chunk->count ? resident_pixels(output, chunk->ids[i + 1]) : NULL;
        augment_views(chunk, index, resident_pixels(output, chunk->ids[i]), next, i, arrays);
    }
    return STATUS_OK;
}

static Status fill_resident(const Plan *plan, PlanScratch *scratch, uint64_t sample) {
    Chunk chunk = {.plan = plan, .scratch = scratch, .ids = &sample, .count = 1};
    for (size_t k = 0; k < plan->count; k++) {
        const PlanOutput *output = &plan->outputs[k];
        if (output->resident == NULL || output->is_view) continue;
        BetonImage image;
        uint8_t *to = resident_pixels(output, sample);
        Status status = beton_reader_image(plan->reader, output->field, sample, &image);
        if (status == STATUS_OK) status = check_image(output, &image);
        TRY(at_sample(&chunk, output, status, 0, "read"));
        if (image.mode == BETON_IMAGE_RAW) {
            const uint8_t *pixels = NULL;
            TRY(at_sample(&chunk, output, pixels_of(plan, output, scratch, &image, &pixels), 0, "read"));
            memcpy(to, pixels, (size_t)output->height * output->width * AUGMENT_CHANNELS);
        } else {
            TRY(at_sample(&chunk, output, decode_jpeg(plan, output, scratch, &image, to), 0, "decode"));
        }
    }
    return STATUS_OK;
}

Status plan_fill_resident(const Plan *plan, PlanScratch *scratch, uint64_t sample) {
    Guard guard;
    beton_reader_enter(plan->reader, &guard);
    return beton_reader_leave(plan->reader, &guard, fill_resident(plan, scratch, sample));
}

/* ---- everything else ---- */

static Status run_numbers(const Chunk *chunk, const PlanOutput *output, unsigned char *to) {
    const BetonReader *reader = chunk->plan->reader;
    for (size_t i = 0; i < chunk->count; i++, to += 8) {
        Status status = output->decoder == LOADER_INT
                            ? beton_reader_int(reader, output->field, chunk->ids[i], (int64_t *)(void *)to)
                            : beton_reader_float(reader, output->field, chunk->ids[i], (double *)(void *)to);
        TRY(at_sample(chunk, output, status, i, "read"));
    }
    return STATUS_OK;
}

/* Arrays and bytes: copied, and padded with zeros to the row's width; or only measured. */
static Status run_regions(const Chunk *chunk, const PlanOutput *output, unsigned char *to) {
    const size_t width = output->array.sample_bytes;
    for (size_t i = 0; i < chunk->count; i++, to += width) {
        BetonRegion region = {0};
        Status status = beton_reader_region(chunk->plan->reader, output->field, chunk->ids[i], &region);
        bool short_array = output->decoder == LOADER_ARRAY && region.size != width;
        if (status == STATUS_OK && output->decoder != LOADER_BYTE_SIZE && (region.size > width || short_array)) {
            status = error_fail(STATUS_FORMAT, "the file has been changed since it was opened; open it again");
        }
        TRY(at_sample(chunk, output, status, i, "read"));
        if (output->decoder == LOADER_BYTE_SIZE) {
            *(int64_t *)(void *)to = (int64_t)region.size;
            continue;
        }
        if (region.size > 0) memcpy(to, region.data, (size_t)region.size);
        memset(to + region.size, 0, width - (size_t)region.size);
    }
    return STATUS_OK;
}

static Status run_outputs(const Plan *plan, PlanScratch *scratch, PlanDraws draws, LoaderBatch *batch, size_t first,
                          size_t count) {
    Chunk chunk = {plan, scratch, draws, batch->ids + first, first, count};
    for (size_t k = 0; k < plan->count; k++) {
        const PlanOutput *output = &plan->outputs[k];
        unsigned char *to = (unsigned char *)batch->arrays[k] + first * output->array.sample_bytes;
        switch (output->decoder) {
        case LOADER_IMAGE:
            if (!output->is_view) TRY(run_images(&chunk, k, batch->arrays));
            break;
        case LOADER_INT:
        case LOADER_FLOAT:
            TRY(run_numbers(&chunk, output, to));
            break;
        default:
            TRY(run_regions(&chunk, output, to));
        }
    }
    return STATUS_OK;
}

Status plan_run(const Plan *plan, PlanScratch *scratch, PlanDraws draws, LoaderBatch *batch, size_t first,
                size_t count) {
    Guard guard;
    beton_reader_enter(plan->reader, &guard);
    return beton_reader_leave(plan->reader, &guard, run_outputs(plan, scratch, draws, batch, first, count));
}
