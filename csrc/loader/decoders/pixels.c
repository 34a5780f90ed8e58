#include "loader/decoders/pixels.h"

#include <stdio.h>
#include <string.h>

#include "augment/gather.h"
#include "base/memory.h"
#include "device/device.h"

static BetonDtype dtype_of(ImageType type) {
    switch (type) {
    case IMAGE_F32:
        return BETON_F32;
    case IMAGE_F16:
        return BETON_F16;
    case IMAGE_BF16:
    case IMAGE_U16:
        return BETON_U16;
    default:
        return BETON_U8;
    }
}

static const AugmentSpec unchanged = {.type = IMAGE_U8, .layout = IMAGE_HWC};

static LoaderArray array_of(const AugmentSpec *spec, int32_t height, int32_t width) {
    const uint64_t h = (uint64_t)height, w = (uint64_t)width, channels = (uint64_t)augment_channels(spec->format);
    const uint64_t hwc[] = {h, w, channels}, chw[] = {channels, h, w};
    LoaderArray array = loader_decoder_array_of(dtype_of(spec->type), 3, spec->layout == IMAGE_CHW ? chw : hwc);
    array.bfloat16 = spec->type == IMAGE_BF16;
    return array;
}

/* Splits a chain at the move to a GPU; fails if a GPU cannot do the second part on the result of the first. */
static Status split(const AugmentSpec *whole, int at, AugmentSpec *front, AugmentSpec *device_spec) {
    Augment *before = NULL;
    if (!augment_format_rgb(whole->format)) {
        FAIL(STATUS_ARGUMENT, "a GPU works only on images with three channels of uint8");
    }
    *front = *device_spec = *whole;
    front->op_count = at;
    front->normalize = false;
    front->type = IMAGE_U8;
    front->layout = IMAGE_HWC;
    TRY(augment_create(front, &before));
    augment_output_size(before, &device_spec->height, &device_spec->width);
    augment_destroy(before);
    device_spec->op_count = whole->op_count - at;
    memmove(device_spec->ops, device_spec->ops + at, (size_t)device_spec->op_count * sizeof *device_spec->ops);
    return augment_gather_check(device_spec->ops, device_spec->op_count, device_spec->height, device_spec->width);
}

/* Leaves work to a GPU if it can do it, and otherwise notes why not. */
static Status leave_to_device(const LoaderOutput *request, AugmentSpec *spec, DecoderOutput *output) {
    AugmentSpec front;
    if (device_count() == 0) {
        snprintf(output->why, sizeof output->why, "%s", device_why());
        return STATUS_OK;
    }
    TRY(memory_alloc(1, sizeof *output->device_spec, &output->device_spec));
    Status status = split(spec, request->front, &front, output->device_spec);
    if (status == STATUS_OK) {
        output->processed = array_of(output->device_spec, output->device_spec->height, output->device_spec->width);
        *spec = front;
        return STATUS_OK;
    }
    memory_free(output->device_spec);
    output->device_spec = NULL;
    memcpy(output->why, error_record()->message, sizeof output->why);
    return status == STATUS_MEMORY ? status : STATUS_OK;
}

Status loader_pixels_prepare(const LoaderOutput *request, AugmentFormat format, uint32_t height, uint32_t width,
                             DecoderOutput *output, Augment **out) {
    AugmentSpec spec = request->image == NULL ? unchanged : *request->image;
    Augment *whole = NULL;
    int32_t out_height, out_width;
    spec.format = format;
    spec.height = (int32_t)height;
    spec.width = (int32_t)width;
    if (request->moves && request->process_on_device) {
        TRY(augment_create(&spec, &whole)); /* errors in it are reported here, wherever it is done */
        augment_destroy(whole);
        TRY(leave_to_device(request, &spec, output));
    }
    TRY(augment_create(&spec, out));
    augment_output_size(*out, &out_height, &out_width);
    output->scratch_bytes = augment_scratch_bytes(*out);
    output->mixes = augment_mixes(*out);
    output->array = array_of(&spec, out_height, out_width);
    return STATUS_OK;
}

void loader_pixels_prepare_none(const LoaderOutput *request, DecoderOutput *output) {
    output->array = array_of(request->image == NULL ? &unchanged : request->image, 0, 0);
}

Status loader_pixels_read(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, BetonImage *image) {
    Status status = loader_source_image(chunk->source, output->field, chunk->ids[i], image);
    if (status == STATUS_OK && image->mode == BETON_IMAGE_RAW &&
        image->region.size < (uint64_t)image->height * image->width * AUGMENT_CHANNELS) {
        status = loader_decoder_fail_changed();
    }
    return loader_decoder_fail(chunk, output, i, "read", status);
}

/* A damaged image is a failure, or counted as blank. */
static Status after_decoding(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, Status status,
                             bool *blank) {
    *blank = status == STATUS_FORMAT && chunk->blanked != NULL;
    if (!*blank) return loader_decoder_fail(chunk, output, i, "decode", beton_damaged_image(status));
    atomic_fetch_add_explicit(chunk->blanked, 1, memory_order_relaxed);
    return STATUS_OK;
}

Status loader_pixels_decode(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            bool fast, uint8_t *pixels) {
    DecoderScratch *scratch = chunk->scratch;
    if (scratch->jpeg == NULL) TRY(jpeg_decoder_create(&scratch->jpeg));
    const int64_t start = clock_now_ns();
    Status status = jpeg_decode(scratch->jpeg, image->region.data, (size_t)image->region.size,
                                fast ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, image->width, image->height, pixels,
                                (size_t)image->width * AUGMENT_CHANNELS);
    loader_decoder_spent(&scratch->times.decode_ns, start);
    bool blank = false;
    TRY(after_decoding(chunk, output, i, status, &blank));
    if (blank) memset(pixels, 0, (size_t)image->height * image->width * AUGMENT_CHANNELS);
    return STATUS_OK;
}

Status loader_pixels_stream(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            const JpegRequest *request, JpegTake take, void *context, bool *blank) {
    DecoderScratch *scratch = chunk->scratch;
    if (scratch->jpeg == NULL) TRY(jpeg_decoder_create(&scratch->jpeg));
    const int64_t start = clock_now_ns(), others = scratch->times.resample_ns;
    Status status =
        jpeg_decode_region(scratch->jpeg, image->region.data, (size_t)image->region.size, request, take, context);
    loader_decoder_spent(&scratch->times.decode_ns, start + scratch->times.resample_ns - others);
    return after_decoding(chunk, output, i, status, blank);
}

typedef struct Copy {
    uint8_t *to;
    size_t row_bytes;
} Copy;

static void pixels_copy_rows(void *context, const uint8_t *rgb, size_t stride, uint32_t count) {
    Copy *copy = context;
    for (uint32_t y = 0; y < count; y++, copy->to += copy->row_bytes) {
        memcpy(copy->to, rgb + y * stride, copy->row_bytes);
    }
}

Status loader_pixels_room(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          AugmentPart part, uint8_t **buffer, AugmentImage *out) {
    const AugmentPart all = {0, 0, (int32_t)image->height, (int32_t)image->width};
    *buffer = NULL;
    *out = (AugmentImage){image->region.data, (size_t)image->width * AUGMENT_CHANNELS, all};
    if (image->mode == BETON_IMAGE_RAW) return STATUS_OK;
    if (part.height == 0 || part.width == 0) part = (AugmentPart){0, 0, 1, 1};
    const size_t row_bytes = (size_t)part.width * AUGMENT_CHANNELS;
    TRY(loader_decoder_fail(chunk, output, i, "decode", jpeg_check_pixels(image->width, image->height)));
    TRY(loader_decoder_buffer(chunk->scratch, row_bytes * (size_t)part.height, buffer));
    *out = (AugmentImage){*buffer, row_bytes, part};
    return STATUS_OK;
}

Status loader_pixels_find(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          bool fast, AugmentPart part, AugmentImage *out) {
    uint8_t *buffer = NULL;
    TRY(loader_pixels_room(chunk, output, i, image, part, &buffer, out));
    if (buffer == NULL) return STATUS_OK;
    part = out->part;
    if ((uint32_t)part.height == image->height && (uint32_t)part.width == image->width) {
        return loader_pixels_decode(chunk, output, i, image, fast, buffer);
    }
    const size_t row_bytes = out->stride;
    const JpegRegion region = {(uint32_t)part.y, (uint32_t)part.x, (uint32_t)part.height, (uint32_t)part.width};
    const JpegRequest request = {fast ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, image->width, image->height, 1, region};
    bool blank = false;
    TRY(loader_pixels_stream(chunk, output, i, image, &request, pixels_copy_rows, &(Copy){buffer, row_bytes}, &blank));
    if (blank) memset(buffer, 0, row_bytes * (size_t)part.height);
    return STATUS_OK;
}

static AugmentKey key_of(const DecoderChunk *chunk, size_t i) {
    return (AugmentKey){chunk->seed, chunk->ids[i], chunk->batch, chunk->epoch};
}

AugmentPart loader_pixels_part(const DecoderChunk *chunk, const Augment *augment, size_t i) {
    const AugmentKey key = key_of(chunk, i);
    AugmentDrawn drawn[AUGMENT_MAX_OPS];
    augment_draw(augment, &key, chunk->evaluate, drawn);
    return augment_part(augment, drawn);
}

bool loader_pixels_only_mirrors(const DecoderChunk *chunk, const Augment *augment, size_t i, bool *mirrored) {
    const AugmentKey key = key_of(chunk, i);
    AugmentDrawn drawn[AUGMENT_MAX_OPS];
    augment_draw(augment, &key, chunk->evaluate, drawn);
    return augment_only_mirrors(augment, drawn, mirrored);
}

unsigned char *loader_pixels_row(const DecoderChunk *chunk, const DecoderOutput *output, size_t i) {
    unsigned char *rows = chunk->arrays[output - chunk->outputs];
    return rows + (chunk->first + i) * output->array.sample_bytes;
}

void loader_pixels_augment(const DecoderChunk *chunk, const DecoderOutput *output, const Augment *augment,
                           const AugmentImage *image, size_t i, const uint8_t *next, bool begin) {
    const AugmentKey key = key_of(chunk, i);
    unsigned char *to = loader_pixels_row(chunk, output, i);
    void *scratch = chunk->scratch->own + output->scratch_at;
    AugmentDrawn drawn[AUGMENT_MAX_OPS];
    augment_draw(augment, &key, chunk->evaluate, drawn);
    if (!begin) {
        augment_run(augment, drawn, image, next, to, scratch);
    } else if (augment_mixes(augment)) {
        augment_begin(augment, drawn, image, scratch);
    }
}

/* Whether an output (-1: none) or one of its views mixes. */
static bool any_mixes(const DecoderChunk *chunk, int output) {
    while (output >= 0 && !chunk->outputs[output].mixes) output = chunk->outputs[output].next_view;
    return output >= 0;
}

static Status run_chunks(const DecoderChunk *chunk, const DecoderOutput *output, PixelsDecode decode) {
    const bool mixes = any_mixes(chunk, (int)(output - chunk->outputs)) || any_mixes(chunk, output->companion);
    if (chunk->evaluate || !mixes) return decode(chunk, output, false);
    DecoderChunk before = *chunk;
    atomic_uint_fast64_t uncounted = 0; /* its own chunk counts it */
    if (chunk->blanked != NULL) before.blanked = &uncounted;
    before.ids = &chunk->before;
    before.first = chunk->before_first;
    before.count = 1;
    Status status = decode(&before, output, true);
    if (status == STATUS_OK) return decode(chunk, output, false);
    if (before.first < chunk->first) return status;
    /* It is the batch's last, and of several bad samples the first is reported. */
    const ErrorRecord cause = *error_record();
    TRY(decode(chunk, output, false));
    chunk->scratch->failed_at = (int64_t)before.first;
    return error_adopt(&cause);
}

static int64_t measured_ns(const DecoderTimes *times) { return times->decode_ns + times->resample_ns; }

Status loader_pixels_run(const DecoderChunk *chunk, const DecoderOutput *output, PixelsDecode decode) {
    DecoderTimes *times = &chunk->scratch->times;
    const int64_t start = clock_now_ns(), others = measured_ns(times);
    Status status = run_chunks(chunk, output, decode);
    loader_decoder_spent(&times->augment_ns, start + measured_ns(times) - others);
    return status;
}
