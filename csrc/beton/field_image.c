/* RGB images: mode, width, height, pointer in 13 packed bytes; a raw image's size follows from them, a JPEG's is only
 * in the allocation table. */
#include <string.h>

#include "base/philox.h"
#include "beton/encode.h"

#define MAX_SIDE 65535

static Status image_locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    (void)field;
    unsigned mode = record[0];
    uint64_t width = load_u16(record + BETON_IMAGE_WIDTH), height = load_u16(record + BETON_IMAGE_HEIGHT);
    if (mode != BETON_IMAGE_RAW && mode != BETON_IMAGE_JPEG) {
        FAIL(STATUS_FORMAT, "image mode %u is neither 0 (JPEG) nor 1 (raw)", mode);
    }
    if (width == 0 || height == 0) {
        FAIL(STATUS_FORMAT, "an image of %u x %u pixels has no pixels", (unsigned)width, (unsigned)height);
    }
    *out = (FieldLocation){.pointer = load_u64(record + BETON_IMAGE_POINTER),
                           .size = width * height * 3,
                           .size_known = mode == BETON_IMAGE_RAW};
    return STATUS_OK;
}

static Status image_describe(const BetonFieldSpec *spec, BetonField *field, unsigned char *arguments) {
    (void)field, (void)arguments;
    if (spec->jpeg_quality < 1 || spec->jpeg_quality > 100) {
        FAIL(STATUS_ARGUMENT, "jpeg_quality must be in 1..100, not %d", spec->jpeg_quality);
    }
    if (!(spec->compress_probability >= 0 && spec->compress_probability <= 1)) {
        FAIL(STATUS_ARGUMENT, "compress_probability must be in 0..1, not %g", spec->compress_probability);
    }
    if (spec->write_mode < BETON_WRITE_RAW || spec->write_mode > BETON_WRITE_GIVEN) {
        FAIL(STATUS_ARGUMENT, "unknown write mode %d", (int)spec->write_mode);
    }
    return STATUS_OK;
}

/* An image being encoded: a JPEG stream, pixels, or both. */
typedef struct Picture {
    ImageSize size;
    const unsigned char *jpeg; /* NULL: none, or no longer usable */
    uint64_t jpeg_bytes;
    const unsigned char *pixels; /* NULL: not decoded */
    size_t stride;
} Picture;

static Status image_take(const BetonValue *value, Picture *picture) {
    *picture = (Picture){0};
    switch (value->source) {
    case BETON_SOURCE_PIXELS:
        *picture = (Picture){.size = {value->width, value->height}, .pixels = value->data, .stride = value->stride};
        if (value->width == 0 || value->height == 0 || value->width > MAX_SIDE || value->height > MAX_SIDE) {
            FAIL(STATUS_ARGUMENT, "an image of %u x %u pixels; sides are 1 to %d", value->width, value->height,
                 MAX_SIDE);
        }
        return STATUS_OK;
    case BETON_SOURCE_JPEG:
        picture->jpeg = value->data;
        picture->jpeg_bytes = value->size;
        break;
    default:
        FAIL(STATUS_TYPE, "an image was expected");
    }
    JpegInfo info;
    TRY(jpeg_parse_header(picture->jpeg, (size_t)picture->jpeg_bytes, &info));
    picture->size = (ImageSize){info.width, info.height};
    return STATUS_OK;
}

/* As FFCV computes it: the long side may come out one pixel short. */
static ImageSize reduced(ImageSize size, uint32_t limit) {
    double longer = size.width > size.height ? size.width : size.height;
    double ratio = limit == 0 ? 1 : (double)limit / longer;
    if (ratio >= 1) return size;
    ImageSize to = {(uint32_t)(ratio * size.width), (uint32_t)(ratio * size.height)};
    return (ImageSize){to.width == 0 ? 1 : to.width, to.height == 0 ? 1 : to.height};
}

static bool wants_jpeg(const EncodeJob *job, const BetonFieldSpec *spec, const Picture *picture, ImageSize size) {
    uint64_t raw = (uint64_t)size.width * size.height * 3;
    switch (spec->write_mode) {
    case BETON_WRITE_JPEG:
        return true;
    case BETON_WRITE_PROPORTION: {
        Philox4 draw = philox_at(job->seed, 0, job->sample, PHILOX_WRITE, job->field);
        return philox_uniform(draw.word[0]) < spec->compress_probability;
    }
    case BETON_WRITE_SMART:
        return spec->smart_threshold >= 0 && raw > (uint64_t)spec->smart_threshold;
    case BETON_WRITE_GIVEN:
        return picture->jpeg != NULL;
    default:
        return false;
    }
}

static Status image_decode(EncodeJob *job, Arena *arena, Picture *picture) {
    unsigned char *pixels;
    size_t stride = (size_t)picture->size.width * 3;
    TRY(beton_arena_alloc(arena, stride * picture->size.height, &pixels));
    if (job->decoder == NULL) TRY(jpeg_decoder_create(&job->decoder));
    TRY(jpeg_decode(job->decoder, picture->jpeg, (size_t)picture->jpeg_bytes, JPEG_IDCT_ACCURATE, picture->size.width,
                    picture->size.height, pixels, stride));
    picture->pixels = pixels;
    picture->stride = stride;
    return STATUS_OK;
}

static Status image_reduce(EncodeJob *job, Arena *arena, ImageSize to, Picture *picture) {
    unsigned char *pixels;
    size_t stride = (size_t)to.width * 3;
    TRY(beton_arena_alloc(arena, stride * to.height, &pixels));
    if (job->resizer == NULL) TRY(resizer_create(&job->resizer));
    TRY(resizer_begin(job->resizer, RESIZE_AREA, picture->size, to, pixels, stride));
    resizer_push(job->resizer, picture->pixels, picture->stride, picture->size.height);
    *picture = (Picture){.size = to, .pixels = pixels, .stride = stride};
    return STATUS_OK;
}

static Status compress(EncodeJob *job, int quality, Picture *picture) {
    const uint8_t *data;
    size_t size;
    unsigned char *copy;
    if (job->encoder == NULL) TRY(jpeg_encoder_create(&job->encoder));
    TRY(jpeg_encode(job->encoder, picture->pixels, picture->stride, picture->size.width, picture->size.height, quality,
                    &data, &size));
    TRY(beton_arena_alloc(&job->arena, size, &copy));
    memcpy(copy, data, size);
    picture->jpeg = copy;
    picture->jpeg_bytes = size;
    return STATUS_OK;
}

static Status make_contiguous(EncodeJob *job, Picture *picture) {
    unsigned char *copy;
    size_t row = (size_t)picture->size.width * 3;
    if (picture->stride == row) return STATUS_OK;
    TRY(beton_arena_alloc(&job->arena, row * picture->size.height, &copy));
    for (uint32_t y = 0; y < picture->size.height; y++) {
        memcpy(copy + y * row, picture->pixels + y * picture->stride, row);
    }
    picture->pixels = copy;
    picture->stride = row;
    return STATUS_OK;
}

static Status image_encode(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                           BetonChunkPart *part) {
    Picture picture;
    TRY(image_take(value, &picture));
    ImageSize to = reduced(picture.size, spec->max_resolution);
    bool resized = to.width != picture.size.width || to.height != picture.size.height;
    bool as_jpeg = wants_jpeg(job, spec, &picture, to);
    if (as_jpeg && picture.jpeg != NULL && !resized) {
        if (!jpeg_has_end(picture.jpeg, (size_t)picture.jpeg_bytes)) {
            FAIL(STATUS_FORMAT, "truncated JPEG data: no end marker in %llu bytes",
                 (unsigned long long)picture.jpeg_bytes);
        }
    } else {
        /* what will not be stored itself goes into memory that is released after the value */
        if (picture.pixels == NULL) TRY(image_decode(job, resized || as_jpeg ? &job->scratch : &job->arena, &picture));
        if (resized) TRY(image_reduce(job, as_jpeg ? &job->scratch : &job->arena, to, &picture));
        if (as_jpeg)
            TRY(compress(job, spec->jpeg_quality, &picture));
        else
            TRY(make_contiguous(job, &picture));
    }
    record[0] = as_jpeg ? BETON_IMAGE_JPEG : BETON_IMAGE_RAW;
    store_u16(record + BETON_IMAGE_WIDTH, (uint16_t)to.width);
    store_u16(record + BETON_IMAGE_HEIGHT, (uint16_t)to.height);
    if (as_jpeg)
        *part = (BetonChunkPart){picture.jpeg, picture.jpeg_bytes};
    else
        *part = (BetonChunkPart){picture.pixels, (uint64_t)to.width * to.height * 3};
    return STATUS_OK;
}

const FieldKind beton_field_kind_image = {.name = "image",
                                          .record_bytes = 13,
                                          .record_alignment = 1,
                                          .has_data = true,
                                          .locate = image_locate,
                                          .describe = image_describe,
                                          .encode = image_encode};
