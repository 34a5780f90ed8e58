// rooms: base image, with jpeg
/* A JPEG stream of any bytes: its header read, and what the header says of moderate size decoded both ways. */
#include "decoders.h"

#define MOST_PIXELS (1 << 16)

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
    decode_all_ways(data, size, info, JPEG_IDCT_FAST);
    decode_all_ways(data, size, info, JPEG_IDCT_ACCURATE);
    return 0;
}
