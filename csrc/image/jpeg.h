/* JPEG through libjpeg-turbo. A decoder or encoder is used by one thread at a time. Pixels are 8-bit RGB, row-major,
 * `stride` bytes from row to row. Data that is not a JPEG, is truncated or corrupt (a libjpeg warning counts), or does
 * not have 1 or 3 components is STATUS_FORMAT. Without libjpeg-turbo (jpeg_none.c), decoding and encoding are
 * STATUS_NOT_BUILT. */
#ifndef CGXFFCV_IMAGE_JPEG_H
#define CGXFFCV_IMAGE_JPEG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define JPEG_MAX_SIDE 65500                     /* libjpeg's limit */
#define JPEG_DEFAULT_PIXELS UINT64_C(178956970) /* Pillow's limit: half a GiB of pixels of 3 bytes */
#define JPEG_LIMIT_VARIABLE "CGXFFCV_MAX_IMAGE_PIXELS"
#define JPEG_SCANS 16 /* an image of the largest size may have this many scans, a smaller one more; 10 are usual */

typedef struct JpegInfo {
    uint32_t width, height;
    int components; /* 1 grayscale, 3 colour */
    bool progressive;
} JpegInfo;

typedef enum JpegIdct {
    JPEG_IDCT_ACCURATE,
    JPEG_IDCT_FAST /* what FFCV uses: needed to get exactly its pixels */
} JpegIdct;

typedef struct JpegDecoder JpegDecoder;
typedef struct JpegEncoder JpegEncoder;

/* Reads the markers up to the frame header; fails where jpeg_decode would fail because of it. That includes images over
 * the pixel limit: a stream of 100 bytes can ask for gigabytes. */
Status jpeg_parse_header(const void *data, size_t size, JpegInfo *out);

/* The largest number of pixels in an image, for the whole process: initially the value of JPEG_LIMIT_VARIABLE, by
 * default JPEG_DEFAULT_PIXELS; 0 is no limit. jpeg_limit_get fails if the variable is not a number. */
Status jpeg_limit_get(uint64_t *pixels);
void jpeg_limit_set(uint64_t pixels);

/* Call before allocating memory for an image whose size comes from outside; STATUS_FORMAT above the limit. */
Status jpeg_check_pixels(uint64_t width, uint64_t height);

/* Each scan of a stream covers all of its pixels: STATUS_FORMAT if pixels times scans is more than JPEG_SCANS times the
 * limit, which only maliciously crafted streams reach. */
Status jpeg_check_scans(const void *data, size_t size, JpegInfo info);

/* Whether the stream has an end marker anywhere: a cheap test for truncation. */
bool jpeg_has_end(const void *data, size_t size);

Status jpeg_decoder_create(JpegDecoder **out);
void jpeg_decoder_destroy(JpegDecoder *decoder); /* does nothing if NULL */

/* The memory that it keeps between images, in bytes. */
size_t jpeg_decoder_bytes(const JpegDecoder *decoder);

/* From now on the library also does the entropy decoding; the pixels are the same. */
void jpeg_decoder_leave_to_library(JpegDecoder *decoder);

/* Decodes the whole image, which must be exactly `width` x `height`, into `rgb`. On failure some of the pixels may have
 * been written. */
Status jpeg_decode(JpegDecoder *decoder, const void *data, size_t size, JpegIdct idct, uint32_t width, uint32_t height,
                   uint8_t *rgb, size_t stride);

typedef struct JpegRegion {
    uint32_t y, x, height, width;
} JpegRegion;

typedef struct JpegRequest {
    JpegIdct idct;
    uint32_t width, height; /* the stream must be of exactly this size */
    uint32_t shrink;        /* reduces each side by 1, 2, 4 or 8, using only the low frequencies of each block */
    JpegRegion region;      /* of the output of jpeg_shrunk(width, shrink) x jpeg_shrunk(height, shrink) pixels */
} JpegRequest;

static inline uint32_t jpeg_shrunk(uint32_t side, uint32_t shrink) { return (side + shrink - 1) / shrink; }

/* Receives the next `count` rows of a region, in order from its first row. */
typedef void (*JpegTake)(void *context, const uint8_t *rgb, size_t stride, uint32_t count);

/* Decodes a region, and passes its rows to `take`, a few at a time: with `shrink` 1, the pixels that jpeg_decode gives.
 * Data after the region's last row is not read, except to find the end marker, so damage there goes unnoticed. On
 * failure some of the rows may already have been passed on. */
Status jpeg_decode_region(JpegDecoder *decoder, const void *data, size_t size, const JpegRequest *request,
                          JpegTake take, void *context);

Status jpeg_encoder_create(JpegEncoder **out);
void jpeg_encoder_destroy(JpegEncoder *encoder); /* does nothing if NULL */

/* Baseline 4:2:0 at `quality` 1..100. *data is borrowed from the encoder until its next call. */
Status jpeg_encode(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, uint32_t width, uint32_t height,
                   int quality, const uint8_t **data, size_t *size);

#endif
