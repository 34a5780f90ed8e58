/* NDArray and TorchTensor fields that hold colour images, uint8 (height, width, 3): each goes through `augment` into
 * the batch. */
#include "base/memory.h"
#include "loader/decoders/pixels.h"

typedef struct ArrayImage {
    Augment *augment; /* owned */
    int32_t height, width;
} ArrayImage;

static const BetonKind kinds[] = {BETON_ARRAY, BETON_TENSOR};

static Status check_shape(const BetonField *about) {
    const uint64_t *shape = about->shape;
    if (about->dtype == BETON_U8 && about->ndim == 3 && shape[2] == AUGMENT_CHANNELS && shape[0] <= UINT16_MAX &&
        shape[1] <= UINT16_MAX) {
        return STATUS_OK;
    }
    FAIL(STATUS_TYPE,
         "operations on images take arrays of uint8 and shape (height, width, 3), which these are not; a callable on "
         "the batch takes any");
}

static Status prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *wish,
                      DecoderOutput *output) {
    ArrayImage *state = NULL;
    const BetonField *about = output->about;
    (void)source, (void)in_use;
    TRY(check_shape(about));
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
