/* JPEG through libjpeg-turbo. A decoder or encoder belongs to one thread at a time. Pixels are 8-bit RGB, row-major,
 * `stride` bytes from row to row. Data that is no JPEG, truncated or corrupt (a libjpeg warning counts), or not of 1
 * or 3 components, is STATUS_FORMAT. Without libjpeg-turbo (jpeg_none.c) all but jpeg_parse_header is
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
#define JPEG_SCANS 16 /* an image of the largest size may have so many scans, a smaller one more; 10 are usual */

typedef struct JpegInfo {
    uint32_t width, height;
    int components; /* 1 grayscale, 3 colour */
    bool progressive;
} JpegInfo;

typedef enum JpegIdct {
    JPEG_IDCT_ACCURATE,
    JPEG_IDCT_FAST /* what FFCV decodes with: exact equality with it needs this one */
} JpegIdct;

typedef struct JpegDecoder JpegDecoder;
typedef struct JpegEncoder JpegEncoder;

/* Reads the markers up to the frame header; refuses what jpeg_decode would refuse of it, also more pixels than the
 * limit: a stream of 100 bytes can ask for gigabytes. */
Status jpeg_parse_header(const void *data, size_t size, JpegInfo *out);

/* The most pixels of an image, for the whole process: at first what JPEG_LIMIT_VARIABLE says, by default
 * JPEG_DEFAULT_PIXELS; 0 is no limit. jpeg_limit_get fails if the variable says no number. */
Status jpeg_limit_get(uint64_t *pixels);
void jpeg_limit_set(uint64_t pixels);

/* To be asked before memory is taken for an image whose size somebody else has said; STATUS_FORMAT above the limit. */
Status jpeg_check_pixels(uint64_t width, uint64_t height);

/* Each scan of a stream passes over all of its pixels: STATUS_FORMAT if they come to more than JPEG_SCANS times the
 * limit, which only streams reach that were made for it. */
Status jpeg_check_scans(const void *data, size_t size, JpegInfo info);

/* Whether the stream has its end marker, anywhere: the cheap test of a truncated file. */
bool jpeg_has_end(const void *data, size_t size);

Status jpeg_decoder_create(JpegDecoder **out);
void jpeg_decoder_destroy(JpegDecoder *decoder); /* does nothing if NULL */

/* The memory that it holds between images. */
size_t jpeg_decoder_bytes(const JpegDecoder *decoder);

/* From now on the library does its entropy decoding, too, with the same pixels. */
void jpeg_decoder_leave_to_library(JpegDecoder *decoder);

/* Decodes the whole image, which must be of exactly `width` x `height`, into `rgb`. On failure some of the pixels may
 * have been written. */
Status jpeg_decode(JpegDecoder *decoder, const void *data, size_t size, JpegIdct idct, uint32_t width, uint32_t height,
                   uint8_t *rgb, size_t stride);

typedef struct JpegRegion {
    uint32_t y, x, height, width;
} JpegRegion;

typedef struct JpegWish {
    JpegIdct idct;
    uint32_t width, height; /* the stream must be of exactly this size */
    uint32_t shrink;        /* 1, 2, 4 or 8: pixels each way for which one is made, out of a block's low frequencies */
    JpegRegion region;      /* of what is made: of jpeg_shrunk(width, shrink) x jpeg_shrunk(height, shrink) pixels */
} JpegWish;

static inline uint32_t jpeg_shrunk(uint32_t side, uint32_t shrink) { return (side + shrink - 1) / shrink; }

/* Gets the next `count` rows of a region, from its first row on. */
typedef void (*JpegTake)(void *context, const uint8_t *rgb, size_t stride, uint32_t count);

/* Decodes a region, and gives its rows to `take`, some at a time: with `shrink` 1 the pixels that jpeg_decode gives.
 * What the stream holds behind the region's last row is not looked at, but for its end marker, so that damage there
 * goes unnoticed. On failure some of the rows may have been given. */
Status jpeg_decode_region(JpegDecoder *decoder, const void *data, size_t size, const JpegWish *wish, JpegTake take,
                          void *context);

Status jpeg_encoder_create(JpegEncoder **out);
void jpeg_encoder_destroy(JpegEncoder *encoder); /* does nothing if NULL */

/* Baseline 4:2:0 at `quality` 1..100. *data is borrowed from the encoder until its next call. */
Status jpeg_encode(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, uint32_t width, uint32_t height,
                   int quality, const uint8_t **data, size_t *size);

#endif
