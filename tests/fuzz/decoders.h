/* For the targets of JPEG: what must hold of every stream, whoever made it. It is decoded into exactly the memory that
 * it takes; then a region of it, which has the same pixels, and all of it by libjpeg-turbo's own entropy decoder, with
 * the same answer. */
#ifndef CGXFFCV_TESTS_FUZZ_DECODERS_H
#define CGXFFCV_TESTS_FUZZ_DECODERS_H

#include "fuzz.h"

typedef struct Region {
    JpegRegion at;
    uint32_t row;
    const uint8_t *whole; /* pixels, or NULL */
    size_t stride;
} Region;

static inline void compare_rows(void *context, const uint8_t *rgb, size_t stride, uint32_t count) {
    Region *region = context;
    for (uint32_t i = 0; i < count; i++, region->row++) {
        if (region->row >= region->at.height) WRONG("%u rows of %u", region->row + 1, region->at.height);
        if (region->whole == NULL) continue;
        const uint8_t *want = region->whole + (region->at.y + region->row) * region->stride + region->at.x * 3;
        if (memcmp(want, rgb + i * stride, region->at.width * 3) != 0) WRONG("row %u differs", region->row);
    }
}

/* Somewhere, by the stream's own bytes. */
static inline void decode_region(JpegDecoder *decoder, const uint8_t *data, size_t size, JpegInfo info, JpegIdct idct,
                                 const uint8_t *whole) {
    const uint32_t y = data[size / 2] % info.height, x = data[size - 1] % info.width;
    const JpegRegion at = {y, x, 1 + data[size / 3] % (info.height - y), 1 + data[size / 4] % (info.width - x)};
    const JpegRequest request = {idct, info.width, info.height, 1, at};
    Region region = {at, 0, whole, (size_t)info.width * 3};
    Status status = jpeg_decode_region(decoder, data, size, &request, compare_rows, &region);
    if (status != STATUS_OK) expect_refusal(status);
    if (status == STATUS_OK && region.row != at.height) WRONG("%u rows of %u", region.row, at.height);
    if (status != STATUS_OK && whole != NULL) WRONG("a region of a whole image: %s", error_record()->message);
}

static inline void decode_by_library(const uint8_t *data, size_t size, JpegInfo info, JpegIdct idct, Status own,
                                     const uint8_t *own_pixels) {
    static JpegDecoder *decoder;
    size_t stride = (size_t)info.width * 3;
    if (decoder == NULL) {
        if (jpeg_decoder_create(&decoder) != STATUS_OK) WRONG("%s", error_record()->message);
        jpeg_decoder_leave_to_library(decoder);
    }
    uint8_t *pixels = malloc(stride * info.height);
    Status status = jpeg_decode(decoder, data, size, idct, info.width, info.height, pixels, stride);
    if (status != own) WRONG("status %d, but %d by libjpeg-turbo", (int)own, (int)status);
    if (status == STATUS_OK && memcmp(pixels, own_pixels, stride * info.height) != 0) WRONG("other pixels");
    free(pixels);
}

/* The answer of our own decoder. */
static inline Status decode_all_ways(const uint8_t *data, size_t size, JpegInfo info, JpegIdct idct) {
    static JpegDecoder *decoder;
    size_t stride = (size_t)info.width * 3;
    if (decoder == NULL && jpeg_decoder_create(&decoder) != STATUS_OK) WRONG("%s", error_record()->message);
    uint8_t *pixels = malloc(stride * info.height);
    Status status = jpeg_decode(decoder, data, size, idct, info.width, info.height, pixels, stride);
    if (status != STATUS_OK) expect_refusal(status);
    if (status == STATUS_OK && !jpeg_has_end(data, size)) WRONG("decoded without an end marker");
    decode_region(decoder, data, size, info, idct, status == STATUS_OK ? pixels : NULL);
    decode_by_library(data, size, info, idct, status, pixels);
    free(pixels);
    /* any other size than the stream's own is refused before anything is written */
    if (jpeg_decode(decoder, data, size, idct, info.width + 1, info.height, NULL, stride + 3) != STATUS_FORMAT) {
        WRONG("decoded at another width");
    }
    return status;
}

#endif
