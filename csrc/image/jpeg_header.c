/* The markers of a JPEG stream up to its frame header, from ITU-T T.81 annex B; no library needed. */
#include "image/jpeg.h"

#define MARKER_SOI 0xD8
#define MARKER_RST0 0xD0 /* to RST7: no segment follows */
#define MARKER_EOI 0xD9
#define MARKER_SOS 0xDA
#define MARKER_SOF0 0xC0
#define MARKER_SOF2 0xC2 /* progressive */
#define MARKER_DHT 0xC4
#define MARKER_JPG 0xC8
#define MARKER_SOF9 0xC9 /* arithmetic coding, sequential and progressive */
#define MARKER_SOF10 0xCA
#define MARKER_DAC 0xCC
#define MARKER_SOF15 0xCF
#define FRAME_BYTES 8 /* length, precision, height, width, components */

static unsigned be16(const unsigned char *at) { return (unsigned)at[0] << 8 | at[1]; }

static bool is_frame(unsigned marker) {
    return marker >= MARKER_SOF0 && marker <= MARKER_SOF15 && marker != MARKER_DHT && marker != MARKER_JPG &&
           marker != MARKER_DAC;
}

static Status parse_frame(const unsigned char *segment, size_t left, unsigned marker, JpegInfo *out) {
    bool known = (marker >= MARKER_SOF0 && marker <= MARKER_SOF2) || marker == MARKER_SOF9 || marker == MARKER_SOF10;
    if (!known)
        FAIL(STATUS_FORMAT, "JPEG of an unsupported kind (frame marker 0x%02X: lossless or hierarchical)", marker);
    if (left < FRAME_BYTES || be16(segment) < FRAME_BYTES) FAIL(STATUS_FORMAT, "JPEG data that ends in its header");
    unsigned precision = segment[2], height = be16(segment + 3), width = be16(segment + 5), components = segment[7];
    if (precision != 8) FAIL(STATUS_FORMAT, "JPEG of %u bits a sample; only 8 are supported", precision);
    if (width == 0 || height == 0 || width > JPEG_MAX_SIDE || height > JPEG_MAX_SIDE) {
        FAIL(STATUS_FORMAT, "JPEG of %u x %u pixels; sides are 1 to %d", width, height, JPEG_MAX_SIDE);
    }
    if (components != 1 && components != 3) {
        FAIL(STATUS_FORMAT, "JPEG of %u components (CMYK or YCCK?); only 1 and 3 are supported: convert it to RGB",
             components);
    }
    *out = (JpegInfo){width, height, (int)components, marker == MARKER_SOF2 || marker == MARKER_SOF10};
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
    FAIL(STATUS_FORMAT, "JPEG data that ends in its header");
}

bool jpeg_has_end(const void *data, size_t size) {
    const unsigned char *bytes = data;
    for (size_t i = size; i >= 2; i--) {
        if (bytes[i - 2] == 0xFF && bytes[i - 1] == MARKER_EOI) return true;
    }
    return false;
}
