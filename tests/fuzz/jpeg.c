// rooms: base image, with jpeg
/* jpeg FILE...: every truncation of a JPEG stream is refused unless its end marker is still there; every single-bit
 * flip is refused or decoded within the buffer. */
#include "harness.h"

static unsigned long counts[2];

static Status try_decode(JpegDecoder *decoder, const unsigned char *data, size_t size, JpegInfo info, uint8_t *pixels) {
    /* a block of its own, so that reading past the stream's end is noticed */
    unsigned char *copy = malloc(size + (size == 0));
    memcpy(copy, data, size);
    Status status = jpeg_decode(decoder, copy, size, size % 2 ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, info.width,
                                info.height, pixels, (size_t)info.width * 3);
    free(copy);
    if (status != STATUS_OK && status != STATUS_FORMAT) DIE("status %d: %s", (int)status, error_record()->message);
    counts[status != STATUS_OK]++;
    return status;
}

int main(int argc, char **argv) {
    JpegDecoder *decoder = NULL;
    if (jpeg_decoder_create(&decoder) != STATUS_OK) DIE("%s", error_record()->message);
    for (int i = 1; i < argc; i++) {
        Victim victim = victim_load(argv[i]);
        JpegInfo info;
        if (jpeg_parse_header(victim.bytes, victim.size, &info) != STATUS_OK) DIE("%s", error_record()->message);
        uint8_t *pixels = malloc((size_t)info.width * info.height * 3);
        if (try_decode(decoder, victim.bytes, victim.size, info, pixels) != STATUS_OK) DIE("the stream itself");
        for (size_t size = 0; size < victim.size; size++) {
            bool whole = jpeg_has_end(victim.bytes, size);
            Status status = try_decode(decoder, victim.bytes, size, info, pixels);
            if (!whole && status == STATUS_OK) DIE("%s cut to %zu bytes was decoded", argv[i], size);
        }
        for (size_t at = 0; at < victim.size; at++) {
            for (int bit = 0; bit < 8; bit++) {
                victim.bytes[at] ^= (unsigned char)(1u << bit);
                try_decode(decoder, victim.bytes, victim.size, info, pixels);
                victim.bytes[at] ^= (unsigned char)(1u << bit);
            }
        }
        free(pixels);
        free(victim.bytes);
        close(victim.descriptor);
    }
    jpeg_decoder_destroy(decoder);
    printf("%lu decoded, %lu refused\n", counts[0], counts[1]);
    return 0;
}
