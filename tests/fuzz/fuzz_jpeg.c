// rooms: base image, with image/jpeg.c
/* A JPEG stream of any bytes: its header read, and what the header says of moderate size decoded both ways, into
 * exactly the memory that it takes. */
#include "fuzz.h"

#define MOST_PIXELS (1 << 16)

static void decode(const uint8_t *data, size_t size, JpegInfo info, JpegIdct idct) {
    static JpegDecoder *decoder;
    size_t stride = (size_t)info.width * 3;
    if (decoder == NULL && jpeg_decoder_create(&decoder) != STATUS_OK) WRONG("%s", error_record()->message);
    uint8_t *pixels = malloc(stride * info.height);
    Status status = jpeg_decode(decoder, data, size, idct, info.width, info.height, pixels, stride);
    if (status != STATUS_OK) expect_refusal(status);
    if (status == STATUS_OK && !jpeg_has_end(data, size)) WRONG("decoded without an end marker");
    free(pixels);
    /* any other size than the stream's own is refused before anything is written */
    if (jpeg_decode(decoder, data, size, idct, info.width + 1, info.height, NULL, stride + 3) != STATUS_FORMAT) {
        WRONG("decoded at another width");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    JpegInfo info;
    Status status = jpeg_parse_header(data, size, &info);
    if (status != STATUS_OK) {
        expect_refusal(status);
        return 0;
    }
    bool sensible = info.width >= 1 && info.height >= 1 && info.width <= JPEG_MAX_SIDE &&
                    info.height <= JPEG_MAX_SIDE && (info.components == 1 || info.components == 3);
    if (!sensible) WRONG("%u x %u pixels of %d components", info.width, info.height, info.components);
    if ((uint64_t)info.width * info.height > MOST_PIXELS) return 0;
    decode(data, size, info, JPEG_IDCT_FAST);
    decode(data, size, info, JPEG_IDCT_ACCURATE);
    return 0;
}
