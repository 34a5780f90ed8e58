/* The markers of a JPEG stream up to its frame header, from ITU-T T.81 annex B, and the pixel limit; needs no
 * library. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/jpeg.h"

#define MARKER_SOI 0xD8
#define MARKER_RST0 0xD0 /* to RST7: no segment follows */
#define MARKER_EOI 0xD9
#define MARKER_SOS 0xDA
#define MARKER_SOF0 0xC0
#define MARKER_SOF2 0xC2 /* progressive */
#define MARKER_DHT 0xC4
#define MARKER_JPG 0xC8
#define MARKER_SOF9 0xC9 /* from here on with arithmetic coding, which not every build of libjpeg-turbo supports */
#define MARKER_DAC 0xCC
#define MARKER_SOF15 0xCF
#define DECODERS_SCANS 500 /* the decoder refuses more (MAX_SCANS in jpeg.c) */
#define FRAME_BYTES 8      /* length, precision, height, width, components */

static _Atomic uint64_t max_pixels = JPEG_DEFAULT_PIXELS;
static char not_a_number[64]; /* the variable's value, if it is not a number */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_variable(void) {
    const char *text = getenv(JPEG_LIMIT_VARIABLE);
    char *end = NULL;
    if (text == NULL || text[0] == '\0') return;
    errno = 0;
    unsigned long long pixels = strtoull(text, &end, 10);
    bool number = text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
    if (number)
        atomic_store(&max_pixels, pixels);
    else
        snprintf(not_a_number, sizeof not_a_number, "%s", text);
}

Status jpeg_limit_get(uint64_t *pixels) {
    pthread_once(&once, read_variable);
    if (not_a_number[0] != '\0') {
        FAIL(STATUS_ARGUMENT, "%s is '%s'; expected a whole number of pixels (0: no limit)", JPEG_LIMIT_VARIABLE,
             not_a_number);
    }
    *pixels = atomic_load(&max_pixels);
    return STATUS_OK;
}

void jpeg_limit_set(uint64_t pixels) {
    pthread_once(&once, read_variable);
    not_a_number[0] = '\0';
    atomic_store(&max_pixels, pixels);
}

Status jpeg_check_pixels(uint64_t width, uint64_t height) {
    uint64_t limit = 0;
    TRY(jpeg_limit_get(&limit));
    if (limit == 0 || width == 0 || height <= limit / width) return STATUS_OK;
    FAIL(STATUS_FORMAT,
         "an image of %llu x %llu pixels is over the limit of %llu pixels in total; if you trust it, set %s or call "
         "cgxffcv.set_max_image_pixels",
         (unsigned long long)width, (unsigned long long)height, (unsigned long long)limit, JPEG_LIMIT_VARIABLE);
}

Status jpeg_check_scans(const void *data, size_t size, JpegInfo info) {
    const unsigned char *bytes = data, *end = bytes + size, *at = bytes;
    uint64_t limit = 0, pixels = (uint64_t)info.width * info.height, scans = 0;
    TRY(jpeg_limit_get(&limit));
    uint64_t most = limit == 0 || limit > UINT64_MAX / JPEG_SCANS ? UINT64_MAX : limit * JPEG_SCANS;
    if (pixels <= most / DECODERS_SCANS) return STATUS_OK;
    while (at < end && (at = memchr(at, 0xFF, (size_t)(end - at))) != NULL) {
        at++;
        scans += at < end && *at == MARKER_SOS;
    }
    if (scans <= most / pixels) return STATUS_OK;
    FAIL(STATUS_FORMAT, "JPEG of %u x %u pixels in %llu scans, which would take minutes to decode", info.width,
         info.height, (unsigned long long)scans);
}

static unsigned be16(const unsigned char *at) { return (unsigned)at[0] << 8 | at[1]; }

static bool is_frame(unsigned marker) {
    return marker >= MARKER_SOF0 && marker <= MARKER_SOF15 && marker != MARKER_DHT && marker != MARKER_JPG &&
           marker != MARKER_DAC;
}

static Status parse_frame(const unsigned char *body, size_t left, unsigned marker, JpegInfo *out) {
    if (marker > MARKER_SOF2) {
        FAIL(STATUS_FORMAT, "JPEG of an unsupported kind (frame marker 0x%02X: %s)", marker,
             marker < MARKER_SOF9 ? "lossless or hierarchical" : "arithmetic coding");
    }
    if (left < FRAME_BYTES || be16(body) < FRAME_BYTES) FAIL(STATUS_FORMAT, "JPEG data that ends inside its header");
    unsigned precision = body[2], height = be16(body + 3), width = be16(body + 5), components = body[7];
    if (precision != 8) FAIL(STATUS_FORMAT, "JPEG of %u bits per sample; only 8 are supported", precision);
    if (width == 0 || height == 0 || width > JPEG_MAX_SIDE || height > JPEG_MAX_SIDE) {
        FAIL(STATUS_FORMAT, "JPEG of %u x %u pixels; sides are 1 to %d", width, height, JPEG_MAX_SIDE);
    }
    TRY(jpeg_check_pixels(width, height));
    if (components != 1 && components != 3) {
        FAIL(STATUS_FORMAT, "JPEG with %u components (CMYK or YCCK?); only 1 and 3 are supported: convert it to RGB",
             components);
    }
    *out = (JpegInfo){width, height, (int)components, marker == MARKER_SOF2};
    return STATUS_OK;
}

Status jpeg_parse_header(const void *data, size_t size, JpegInfo *out) {
    const unsigned char *bytes = data;
    if (size < 2 || bytes[0] != 0xFF || bytes[1] != MARKER_SOI) FAIL(STATUS_FORMAT, "not JPEG data");
    size_t at = 2;
    for (;;) {
        if (at >= size) break;
        if (bytes[at] != 0xFF) FAIL(STATUS_FORMAT, "corrupt JPEG data: no marker at byte %zu", at);
        while (at < size && bytes[at] == 0xFF) at++;
        if (at >= size) break;
        unsigned marker = bytes[at++];
        if ((marker >= MARKER_RST0 && marker <= MARKER_SOS) || marker < MARKER_SOF0) {
            FAIL(STATUS_FORMAT, "corrupt JPEG data: marker 0x%02X before the frame header", marker);
        }
        if (is_frame(marker)) return parse_frame(bytes + at, size - at, marker, out);
        if (size - at < 2) break;
        size_t length = be16(bytes + at);
        if (length < 2 || length > size - at) FAIL(STATUS_FORMAT, "corrupt JPEG data: a segment of %zu bytes", length);
        at += length;
    }
    FAIL(STATUS_FORMAT, "JPEG data that ends inside its header");
}

bool jpeg_has_end(const void *data, size_t size) {
    const unsigned char *bytes = data;
    for (size_t i = size; i >= 2; i--) {
        if (bytes[i - 2] == 0xFF && bytes[i - 1] == MARKER_EOI) return true;
    }
    return false;
}
