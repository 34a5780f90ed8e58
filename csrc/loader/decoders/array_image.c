/* NDArray and TorchTensor fields that hold images, (height, width) or (height, width, channels) of uint8, uint16 or
 * float32: each goes through `augment` into the batch. */
#include <stdio.h>

#include "base/memory.h"
#include "loader/decoders/pixels.h"
#include "loader/decoders/rectangle.h"

typedef struct ArrayImage {
    Augment *augment; /* owned */
    AugmentFormat format;
    int32_t height, width;
    size_t pixel_bytes, row_bytes;
    bool crops;
    LoaderCrop crop;
    size_t pixels_at; /* where the resampled rectangle is in the output's scratch memory */
} ArrayImage;

static const BetonKind kinds[] = {BETON_ARRAY, BETON_TENSOR};

/* Names the first step that needs an image, what the field holds, and what the step takes. */
static Status refuse(const BetonField *field, const AugmentSpec *image, const LoaderCrop *crop) {
    char shape[256] = "";
    size_t used = 0;
    for (int i = 0; i < field->ndim && used < sizeof shape; i++) {
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%llu", i == 0 ? "" : ", ",
                                 (unsigned long long)field->shape[i]);
    }
    const char *step = crop != NULL                           ? "RandomResizedCrop"
                       : image != NULL && image->op_count > 0 ? augment_entry(image->ops[0].kind)->name
                                                              : "NormalizeImage";
    FAIL(STATUS_TYPE,
         "%s takes images: arrays of uint8, uint16 or float32 with shape (height, width) or (height, width, 1 to %d), "
         "not of %s with shape (%s); a callable on the batch takes any array",
         step, AUGMENT_MAX_CHANNELS, beton_dtype_name((int)field->dtype), shape);
}

static bool type_of(BetonDtype dtype, ImageType *out) {
    *out = dtype == BETON_F32 ? IMAGE_F32 : dtype == BETON_U16 ? IMAGE_U16 : IMAGE_U8;
    return dtype == BETON_F32 || dtype == BETON_U16 || dtype == BETON_U8;
}

static bool is_image(const BetonField *field, AugmentFormat *out) {
    const uint64_t *shape = field->shape, channels = field->ndim == 3 ? shape[2] : 1;
    if ((field->ndim != 2 && field->ndim != 3) || channels < 1 || channels > AUGMENT_MAX_CHANNELS) return false;
    out->channels = (int32_t)channels;
    return type_of(field->dtype, &out->type) && shape[0] <= UINT16_MAX && shape[1] <= UINT16_MAX;
}

/* The output has as many dimensions as the field, unless its channels come first. */
static void drop_channel(const BetonField *field, const LoaderOutput *request, DecoderOutput *output) {
    const LoaderArray array = output->array;
    if (field->ndim == 3 || (request->image != NULL && request->image->layout == IMAGE_CHW)) return;
    loader_decoder_set_array(output, array.dtype, 2, array.shape);
    output->array.bfloat16 = array.bfloat16;
}

static Status array_image_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                                  DecoderOutput *output) {
    ArrayImage *state = NULL;
    const BetonField *field = output->field_info;
    (void)source, (void)in_use;
    AugmentFormat format;
    if (!is_image(field, &format)) return refuse(field, request->image, request->crop);
    TRY(memory_calloc(1, sizeof *state, &state));
    output->state = state;
    state->format = format;
    state->height = (int32_t)field->shape[0];
    state->width = (int32_t)field->shape[1];
    output->work_bytes = (size_t)field->value_bytes;
    state->pixel_bytes = (size_t)format.channels * augment_type_bytes(format.type);
    state->row_bytes = (size_t)state->width * state->pixel_bytes;
    uint32_t height = (uint32_t)state->height, width = (uint32_t)state->width;
    if (request->crop != NULL) {
        TRY(loader_rectangle_check(request->crop));
        state->crops = true;
        state->crop = *request->crop;
        height = request->crop->height;
        width = request->crop->width;
        output->work_bytes *= 16;
    }
    TRY(loader_pixels_prepare(request, format, height, width, output, &state->augment));
    drop_channel(field, request, output);
    state->pixels_at = (output->scratch_bytes + 63) & ~(size_t)63;
    if (state->crops) output->scratch_bytes = state->pixels_at + (size_t)height * width * state->pixel_bytes;
    return STATUS_OK;
}

/* Resamples the rectangle of the value at `pixels` into the thread's memory. */
static Status resample_array(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const uint8_t *pixels,
                             AugmentImage *out) {
    const ArrayImage *state = output->state;
    const ImageSize whole = {(uint32_t)state->width, (uint32_t)state->height};
    const ImageSize to = {state->crop.width, state->crop.height};
    const JpegRegion cut = loader_rectangle_random(chunk, &state->crop, i, whole);
    const ImageSize from = {cut.width, cut.height};
    uint8_t *made = chunk->scratch->own + output->scratch_at + state->pixels_at;
    *out = (AugmentImage){made, to.width * state->pixel_bytes, {0, 0, (int32_t)to.height, (int32_t)to.width}};
    pixels += cut.y * state->row_bytes + cut.x * state->pixel_bytes;
    if (!augment_format_rgb(state->format)) {
        const ResizeValue type = state->format.type == IMAGE_U16   ? RESIZE_U16
                                 : state->format.type == IMAGE_F32 ? RESIZE_F32
                                                                   : RESIZE_U8;
        const ResizeImage image = {type, (uint32_t)augment_channels(state->format), from, pixels, state->row_bytes};
        return resize_general(&image, state->crop.filter, to, made);
    }
    Resizer *resizer;
    TRY(loader_decoder_resizer(chunk, output, &resizer));
    TRY(resizer_begin(resizer, state->crop.filter, from, to, made, out->stride));
    resizer_push(resizer, pixels, state->row_bytes, from.height);
    return STATUS_OK;
}

static void array_image_destroy(DecoderOutput *output) {
    ArrayImage *state = output->state;
    augment_destroy(state->augment);
    memory_free(state);
}

static void array_image_init_scratch(const DecoderOutput *output, void *scratch) {
    augment_scratch_init(((const ArrayImage *)output->state)->augment, scratch);
}

static Status array_image_decode_chunk(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    const ArrayImage *state = output->state;
    for (size_t i = 0; i < chunk->count; i++) {
        BetonRegion region = {0};
        Status status = loader_source_region(chunk->source, output->field, chunk->ids[i], &region);
        if (status == STATUS_OK && region.size != output->field_info->value_bytes)
            status = loader_decoder_fail_changed();
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        AugmentImage image = {region.data, state->row_bytes, {0, 0, state->height, state->width}};
        if (state->crops) {
            const int64_t start = clock_now_ns();
            status = resample_array(chunk, output, i, region.data, &image);
            loader_decoder_spent(&chunk->scratch->times.resample_ns, start);
            TRY(loader_decoder_fail(chunk, output, i, "resize", status));
        }
        loader_pixels_augment(chunk, output, state->augment, &image, i, NULL, begin);
    }
    return STATUS_OK;
}

static Status array_image_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    (void)rows;
    return loader_pixels_run(chunk, output, array_image_decode_chunk);
}

const DecoderEntry loader_decoder_array_image = {.name = "array_image",
                                                 .what = "the decoder of images in arrays",
                                                 .kinds = kinds,
                                                 .kind_count = 2,
                                                 .prepare = array_image_prepare,
                                                 .decode = array_image_decode,
                                                 .init_scratch = array_image_init_scratch,
                                                 .destroy = array_image_destroy};
