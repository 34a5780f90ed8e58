/* Images of one size: raw ones straight from the file, JPEG ones decoded into the thread's buffer, or all decoded once
 * and kept; each pixel then goes through `augment` into the batch. */
#include "loader/decoders/image.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

typedef struct ImageState {
    Augment *augment; /* owned; NULL if no sample is in use */
    uint32_t height, width;
    bool fast_jpeg;
    const uint8_t *kept;            /* the pixels of all samples; NULL: read from the file */
    const uint8_t *in_use;          /* a flag per sample, if `kept` does not cover the whole file; or NULL */
    uint8_t *own_kept, *own_in_use; /* owned, by the first of its views */
} ImageState;

static const BetonKind kinds[] = {BETON_IMAGE};

static size_t pixel_bytes(const ImageState *state) { return (size_t)state->height * state->width * AUGMENT_CHANNELS; }

/* ---- what the file holds ---- */

/* Finds the one size of the images in use. */
static Status find_size(const LoaderSource *source, const Traversal *in_use, const DecoderOutput *output) {
    ImageState *state = output->state;
    const BetonField *field = output->field_info;
    state->height = field->max_height;
    state->width = field->max_width;
    if (field->min_height == field->max_height && field->min_width == field->max_width) return STATUS_OK;
    for (uint64_t i = 0; i < in_use->count; i++) {
        uint64_t sample = in_use->samples == NULL ? i : in_use->samples[i];
        BetonImage image;
        TRY(loader_source_image(source, output->field, sample, &image));
        if (i == 0) {
            state->height = image.height;
            state->width = image.width;
        }
        if (image.height == state->height && image.width == state->width) continue;
        Status status =
            error_fail(STATUS_TYPE,
                       "the image is %ux%u (height x width), but the first in use is %ux%u: this decoder needs images "
                       "of one size; choose samples of one size with indices, or write the file with one size",
                       image.height, image.width, state->height, state->width);
        error_at_sample(status, (int64_t)sample);
        return error_at_path(error_at_field(status, field->name), beton_reader_path_of(source->reader, sample));
    }
    return STATUS_OK;
}

static Status image_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                            DecoderOutput *output) {
    ImageState *state = NULL;
    TRY(memory_calloc(1, sizeof *state, &state));
    output->state = state;
    state->fast_jpeg = request->fast_jpeg;
    TRY(find_size(source, in_use, output));
    bool jpeg = output->field_info->num_jpeg > 0, any = in_use->count > 0;
    /* Decoding takes memory of the size stated by the records, which nothing else in the file bounds. */
    if (jpeg && any) {
        TRY(error_at_path(jpeg_check_pixels(state->width, state->height), beton_reader_path(source->reader)));
    }
    output->work_bytes = (jpeg ? 16 : 1) * pixel_bytes(state); /* decoding costs ten times a copy */
    if (any) return loader_pixels_prepare(request, PIXELS_RGB, state->height, state->width, output, &state->augment);
    loader_pixels_prepare_none(request, output);
    return STATUS_OK;
}

static void image_destroy(DecoderOutput *output) {
    ImageState *state = output->state;
    augment_destroy(state->augment);
    memory_free(state->own_kept);
    memory_free(state->own_in_use);
    memory_free(state);
}

static bool same_values(const DecoderOutput *output, const DecoderOutput *other) {
    const ImageState *a = output->state, *b = other->state;
    return a->fast_jpeg == b->fast_jpeg;
}

static void image_init_scratch(const DecoderOutput *output, void *scratch) {
    const ImageState *state = output->state;
    if (state->augment != NULL) augment_scratch_init(state->augment, scratch);
}

/* ---- pixels ---- */

static Status check_size(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image) {
    const ImageState *state = output->state;
    if (image->height == state->height && image->width == state->width) return STATUS_OK;
    Status status =
        error_fail(STATUS_ARGUMENT, "the image is %ux%u (height x width), but the loader's images are %ux%u",
                   image->height, image->width, state->height, state->width);
    return loader_decoder_fail(chunk, output, i, "read", status);
}

static Status read_image(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, BetonImage *image) {
    TRY(loader_pixels_read(chunk, output, i, image));
    return check_size(chunk, output, i, image);
}

/* Augments the image for all its views; or, before a chunk's first image, for the views that mix the two. */
void loader_image_augment(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const AugmentImage *image,
                          const uint8_t *next, bool begin) {
    for (;; output = &chunk->outputs[output->next_view]) {
        const ImageState *state = output->state;
        loader_pixels_augment(chunk, output, state->augment, image, i, next, begin);
        if (output->next_view < 0) return;
    }
}

/* The part that all views together read. */
static AugmentPart part_of_views(const DecoderChunk *chunk, const DecoderOutput *output, size_t i) {
    AugmentPart all = {0, 0, 0, 0};
    for (;; output = &chunk->outputs[output->next_view]) {
        const AugmentPart part = loader_pixels_part(chunk, ((const ImageState *)output->state)->augment, i);
        all = augment_part_join(all, part);
        if (output->next_view < 0) return all;
    }
}

static Status decode_from_file(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    const ImageState *state = output->state;
    BetonImage images[DECODER_MAX_CHUNK];
    for (size_t i = 0; i < chunk->count; i++) TRY(read_image(chunk, output, i, &images[i]));
    for (size_t i = 0; i < chunk->count; i++) {
        AugmentImage image;
        AugmentPart part = {0, 0, 0, 0};
        bool next_raw = i + 1 < chunk->count && images[i + 1].mode == BETON_IMAGE_RAW;
        if (images[i].mode == BETON_IMAGE_JPEG) part = part_of_views(chunk, output, i);
        TRY(loader_pixels_find(chunk, output, i, &images[i], state->fast_jpeg, part, &image));
        loader_image_augment(chunk, output, i, &image, next_raw ? images[i + 1].region.data : NULL, begin);
    }
    return STATUS_OK;
}

static Status decode_kept(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    const ImageState *state = output->state;
    for (size_t i = 0; i < chunk->count; i++) {
        if (state->in_use != NULL && state->in_use[chunk->ids[i]] == 0) {
            Status status = error_fail(STATUS_INDEX, "the sample is not in use (indices), so it is not in memory");
            return loader_decoder_fail(chunk, output, i, "read", status);
        }
        const uint8_t *pixels = state->kept + chunk->ids[i] * pixel_bytes(state);
        const uint8_t *next = i + 1 < chunk->count ? state->kept + chunk->ids[i + 1] * pixel_bytes(state) : NULL;
        const AugmentImage image = {
            pixels, (size_t)state->width * AUGMENT_CHANNELS, {0, 0, (int32_t)state->height, (int32_t)state->width}};
        loader_image_augment(chunk, output, i, &image, next, begin);
    }
    return STATUS_OK;
}

static Status image_decode_chunk(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    const ImageState *state = output->state;
    return state->kept == NULL ? decode_from_file(chunk, output, begin) : decode_kept(chunk, output, begin);
}

static Status image_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    const ImageState *state = output->state;
    (void)rows;
    if (state->augment == NULL) {
        Status status = error_fail(STATUS_ARGUMENT, "this loader has no samples in use");
        return loader_decoder_fail(chunk, output, 0, "read", status);
    }
    return loader_pixels_run(chunk, output, image_decode_chunk);
}

/* ---- together with crops ---- */

bool loader_image_is(const DecoderOutput *output, bool fast_jpeg) {
    if (output->decoder != &loader_decoder_image) return false;
    const ImageState *state = output->state;
    return state->fast_jpeg == fast_jpeg && state->augment != NULL;
}

Status loader_image_part(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                         AugmentPart *out) {
    TRY(check_size(chunk, output, i, image));
    *out = part_of_views(chunk, output, i);
    return STATUS_OK;
}

/* ---- resident pixels ---- */

static Status mark_in_use(const LoaderSource *source, const Traversal *in_use, ImageState *state) {
    if (in_use->samples == NULL) return STATUS_OK;
    TRY(memory_calloc((size_t)beton_reader_num_samples(source->reader), 1, &state->own_in_use));
    for (uint64_t i = 0; i < in_use->count; i++) state->own_in_use[in_use->samples[i]] = 1;
    return STATUS_OK;
}

/* Raw images alone need not be kept: their pixels are in the file as they are. */
static Status image_reserve(const LoaderSource *source, const Traversal *in_use, DecoderOutput *outputs,
                            DecoderOutput *output) {
    ImageState *state = output->state;
    uint64_t bytes;
    if (output->field_info->num_jpeg == 0) return STATUS_OK;
    if (!checked_mul(beton_reader_num_samples(source->reader), pixel_bytes(state), &bytes) ||
        bytes > memory_of_machine()) {
        FAIL(STATUS_MEMORY, "the images do not fit in this machine's memory of %llu bytes (resident)",
             (unsigned long long)memory_of_machine());
    }
    TRY(memory_calloc((size_t)bytes, 1, &state->own_kept));
    TRY(mark_in_use(source, in_use, state));
    output->kept_bytes = (size_t)bytes;
    for (DecoderOutput *view = output;; view = &outputs[view->next_view]) {
        ((ImageState *)view->state)->kept = state->own_kept;
        ((ImageState *)view->state)->in_use = state->own_in_use;
        if (view->next_view < 0) return STATUS_OK;
    }
}

static Status keep(const DecoderChunk *chunk, const DecoderOutput *output) {
    const ImageState *state = output->state;
    uint8_t *to = state->own_kept + chunk->ids[0] * pixel_bytes(state);
    BetonImage image;
    TRY(read_image(chunk, output, 0, &image));
    if (image.mode == BETON_IMAGE_JPEG) {
        return loader_pixels_decode(chunk, output, 0, &image, state->fast_jpeg, to);
    }
    memcpy(to, image.region.data, pixel_bytes(state));
    return STATUS_OK;
}

const DecoderEntry loader_decoder_image = {.name = "image",
                                           .what = "the image decoder",
                                           .kinds = kinds,
                                           .kind_count = 1,
                                           .prepare = image_prepare,
                                           .decode = image_decode,
                                           .same_values = same_values,
                                           .init_scratch = image_init_scratch,
                                           .reserve = image_reserve,
                                           .keep = keep,
                                           .destroy = image_destroy};
