/* NDArray and TorchTensor fields that hold colour images, uint8 (height, width, 3): each goes through `augment` into
 * the batch. */
#include <stdio.h>

#include "base/memory.h"
#include "loader/decoders/pixels.h"

typedef struct ArrayImage {
    Augment *augment; /* owned */
    int32_t height, width;
} ArrayImage;

static const BetonKind kinds[] = {BETON_ARRAY, BETON_TENSOR};

/* Names the first step that asks for an image, what the field holds, and what it would take. */
static Status refuse(const BetonField *about, const AugmentSpec *image) {
    char shape[256] = "";
    size_t used = 0;
    for (int i = 0; i < about->ndim && used < sizeof shape; i++) {
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%llu", i == 0 ? "" : ", ",
                                 (unsigned long long)about->shape[i]);
    }
    const char *step =
        image != NULL && image->op_count > 0 ? augment_entry(image->ops[0].kind)->name : "NormalizeImage";
    FAIL(STATUS_TYPE,
         "%s takes images: arrays of uint8 and shape (height, width, 3), not of %s and shape (%s); a callable on the "
         "batch takes any",
         step, beton_dtype_name((int)about->dtype), shape);
}

static bool is_image(const BetonField *about) {
    const uint64_t *shape = about->shape;
    return about->dtype == BETON_U8 && about->ndim == 3 && shape[2] == AUGMENT_CHANNELS && shape[0] <= UINT16_MAX &&
           shape[1] <= UINT16_MAX;
}

static Status prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                      DecoderOutput *output) {
    ArrayImage *state = NULL;
    const BetonField *about = output->about;
    (void)source, (void)in_use;
    if (!is_image(about)) return refuse(about, wish->image);
    TRY(memory_calloc(1, sizeof *state, &state));
    output->state = state;
    state->height = (int32_t)about->shape[0];
    state->width = (int32_t)about->shape[1];
    output->work_bytes = (size_t)about->value_bytes;
    return loader_pixels_prepare(wish->image, (uint32_t)state->height, (uint32_t)state->width, output, &state->augment);
}

static void destroy(DecoderOutput *output) {
    ArrayImage *state = output->state;
    augment_destroy(state->augment);
    memory_free(state);
}

static void init_scratch(const DecoderOutput *output, void *scratch) {
    augment_scratch_init(((const ArrayImage *)output->state)->augment, scratch);
}

static Status decode_chunk(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    const ArrayImage *state = output->state;
    for (size_t i = 0; i < chunk->count; i++) {
        BetonRegion region = {0};
        Status status = loader_source_region(chunk->source, output->field, chunk->ids[i], &region);
        if (status == STATUS_OK && region.size != output->about->value_bytes) status = loader_decoder_fail_changed();
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        const AugmentImage image = {
            region.data, (size_t)state->width * AUGMENT_CHANNELS, {0, 0, state->height, state->width}};
        loader_pixels_augment(chunk, output, state->augment, &image, i, NULL, begin);
    }
    return STATUS_OK;
}

static Status decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    (void)rows;
    return loader_pixels_run(chunk, output, decode_chunk);
}

const DecoderEntry loader_decoder_array_image = {.name = "array_image",
                                                 .what = "the decoder of images in arrays",
                                                 .kinds = kinds,
                                                 .kind_count = 2,
                                                 .prepare = prepare,
                                                 .decode = decode,
                                                 .init_scratch = init_scratch,
                                                 .destroy = destroy};
