/* Stands in for jpeg.c in a build without libjpeg-turbo: says what is missing. */
#include "image/jpeg.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

#define MISSING "this build has no libjpeg-turbo: apt install libjpeg-dev, then rebuild"

Status jpeg_decoder_create(JpegDecoder **out) { FAIL(STATUS_NOT_BUILT, "%s", MISSING); }

void jpeg_decoder_destroy(JpegDecoder *decoder) {}

size_t jpeg_decoder_bytes(const JpegDecoder *decoder) { return 0; }

void jpeg_decoder_leave_to_library(JpegDecoder *decoder) {}

Status jpeg_decode(JpegDecoder *decoder, const void *data, size_t size, JpegIdct idct, uint32_t width, uint32_t height,
                   uint8_t *rgb, size_t stride) {
    FAIL(STATUS_NOT_BUILT, "%s", MISSING);
}

Status jpeg_decode_region(JpegDecoder *decoder, const void *data, size_t size, const JpegRequest *request,
                          JpegTake take, void *context) {
    FAIL(STATUS_NOT_BUILT, "%s", MISSING);
}

Status jpeg_encoder_create(JpegEncoder **out) { FAIL(STATUS_NOT_BUILT, "%s", MISSING); }

void jpeg_encoder_destroy(JpegEncoder *encoder) {}

Status jpeg_encode(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, uint32_t width, uint32_t height,
                   int quality, const uint8_t **data, size_t *size) {
    FAIL(STATUS_NOT_BUILT, "%s", MISSING);
}
