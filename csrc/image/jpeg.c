/* JPEG through TurboJPEG. Each handle owns one TurboJPEG instance; the encoder also owns its output buffer. */
#include "image/jpeg.h"

#include <limits.h>
#include <turbojpeg.h>

#include "base/memory.h"

#define MAX_SCANS_FLAGS TJFLAG_LIMITSCANS /* a small image of thousands of scans would take minutes */

struct JpegDecoder {
    tjhandle handle; /* owned */
};

struct JpegEncoder {
    tjhandle handle;       /* owned */
    unsigned char *buffer; /* owned */
    size_t capacity;
};

Status jpeg_decoder_create(JpegDecoder **out) {
    JpegDecoder *decoder = NULL;
    TRY(memory_calloc(1, sizeof *decoder, &decoder));
    decoder->handle = tjInitDecompress();
    if (decoder->handle == NULL) {
        memory_free(decoder);
        FAIL(STATUS_LIBRARY, "libjpeg-turbo cannot start: %s", tjGetErrorStr2(NULL));
    }
    *out = decoder;
    return STATUS_OK;
}

void jpeg_decoder_destroy(JpegDecoder *decoder) {
    if (decoder == NULL) return;
    tjDestroy(decoder->handle);
    memory_free(decoder);
}

Status jpeg_decode(JpegDecoder *decoder, const void *data, size_t size, JpegIdct idct, uint32_t width, uint32_t height,
                   uint8_t *rgb, size_t stride) {
    JpegInfo info;
    TRY(jpeg_parse_header(data, size, &info));
    if (info.width != width || info.height != height) {
        FAIL(STATUS_FORMAT, "JPEG of %u x %u pixels where %u x %u were expected", info.width, info.height, width,
             height);
    }
    TRY(jpeg_check_scans(data, size, info));
    if (stride < (size_t)width * 3 || stride > INT_MAX) {
        FAIL(STATUS_ARGUMENT, "rows of %u pixels do not fit a stride of %zu bytes", width, stride);
    }
    int flags = TJFLAG_STOPONWARNING | MAX_SCANS_FLAGS | (idct == JPEG_IDCT_FAST ? TJFLAG_FASTDCT : TJFLAG_ACCURATEDCT);
    int result = tjDecompress2(decoder->handle, data, (unsigned long)size, rgb, (int)width, (int)stride, (int)height,
                               TJPF_RGB, flags);
    if (result != 0) FAIL(STATUS_FORMAT, "corrupt JPEG data: %s", tjGetErrorStr2(decoder->handle));
    return STATUS_OK;
}

Status jpeg_encoder_create(JpegEncoder **out) {
    JpegEncoder *encoder = NULL;
    TRY(memory_calloc(1, sizeof *encoder, &encoder));
    encoder->handle = tjInitCompress();
    if (encoder->handle == NULL) {
        memory_free(encoder);
        FAIL(STATUS_LIBRARY, "libjpeg-turbo cannot start: %s", tjGetErrorStr2(NULL));
    }
    *out = encoder;
    return STATUS_OK;
}

void jpeg_encoder_destroy(JpegEncoder *encoder) {
    if (encoder == NULL) return;
    tjDestroy(encoder->handle);
    memory_free(encoder->buffer);
    memory_free(encoder);
}

static Status reserve(JpegEncoder *encoder, size_t bytes) {
    if (bytes <= encoder->capacity) return STATUS_OK;
    memory_free(encoder->buffer);
    encoder->buffer = NULL;
    encoder->capacity = 0;
    TRY(memory_alloc(bytes, 1, &encoder->buffer));
    encoder->capacity = bytes;
    return STATUS_OK;
}

Status jpeg_encode(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, uint32_t width, uint32_t height,
                   int quality, const uint8_t **data, size_t *size) {
    if (width == 0 || height == 0 || width > JPEG_MAX_SIDE || height > JPEG_MAX_SIDE) {
        FAIL(STATUS_ARGUMENT, "an image of %u x %u pixels cannot be a JPEG; sides are 1 to %d", width, height,
             JPEG_MAX_SIDE);
    }
    TRY(jpeg_check_pixels(width, height)); /* what is written here is to be read here, too */
    if (quality < 1 || quality > 100) FAIL(STATUS_ARGUMENT, "JPEG quality %d is not in 1..100", quality);
    if (stride < (size_t)width * 3 || stride > INT_MAX) {
        FAIL(STATUS_ARGUMENT, "rows of %u pixels do not fit a stride of %zu bytes", width, stride);
    }
    unsigned long bound = tjBufSize((int)width, (int)height, TJSAMP_420);
    if (bound == (unsigned long)-1) FAIL(STATUS_LIBRARY, "libjpeg-turbo: %s", tjGetErrorStr2(NULL));
    TRY(reserve(encoder, bound));
    unsigned char *buffer = encoder->buffer;
    if (tjCompress2(encoder->handle, rgb, (int)width, (int)stride, (int)height, TJPF_RGB, &buffer, &bound, TJSAMP_420,
                    quality, TJFLAG_NOREALLOC | TJFLAG_ACCURATEDCT) != 0) {
        FAIL(STATUS_LIBRARY, "JPEG encoding failed: %s", tjGetErrorStr2(encoder->handle));
    }
    *data = buffer;
    *size = bound;
    return STATUS_OK;
}
