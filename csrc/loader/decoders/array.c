/* NDArray and TorchTensor fields: values of one dtype and shape, copied. */
#include <string.h>

#include "loader/decoders/decoder.h"

static const BetonKind kinds[] = {BETON_ARRAY, BETON_TENSOR};

static Status array_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                            DecoderOutput *output) {
    (void)source, (void)in_use, (void)request;
    loader_decoder_set_array(output, output->field_info->dtype, output->field_info->ndim, output->field_info->shape);
    return STATUS_OK;
}

static Status array_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    const size_t width = output->array.sample_bytes;
    for (size_t i = 0; i < chunk->count; i++) {
        BetonRegion region = {0};
        Status status = loader_source_region(chunk->source, output->field, chunk->ids[i], &region);
        if (status == STATUS_OK && region.size != width) status = loader_decoder_fail_changed();
        TRY(loader_decoder_fail(chunk, output, i, "read", status));
        if (width > 0) memcpy(rows + i * width, region.data, width);
    }
    return STATUS_OK;
}

const DecoderEntry loader_decoder_array = {.name = "array",
                                           .what = "the decoder of arrays",
                                           .kinds = kinds,
                                           .kind_count = 2,
                                           .prepare = array_prepare,
                                           .decode = array_decode};
