/* Private to image/: the entropy decoder of sequential JPEG (ITU-T T.81, annex F), for streams without faults: it
 * reports a fault, and its caller falls back to the library. */
#ifndef CGXFFCV_IMAGE_JPEG_HUFFMAN_H
#define CGXFFCV_IMAGE_JPEG_HUFFMAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JPEG_HUFFMAN_BLOCK 64
#define JPEG_HUFFMAN_LONGEST 16
#define JPEG_HUFFMAN_LOOKAHEAD 10 /* bits that are looked up at once: with a value's 15, less than half of 57 */
#define JPEG_HUFFMAN_BEYOND 512   /* padding bytes after an interval: more than a block can take */

/* A table of the stream, `counts` codes of each length 1 to 16 for `values` in order, and what is derived from it. */
typedef struct JpegHuffmanTable {
    bool made;
    uint8_t counts[JPEG_HUFFMAN_LONGEST + 1];
    uint8_t values[256];
    uint32_t entries[1 << JPEG_HUFFMAN_LOOKAHEAD]; /* indexed by the next bits; 0: a longer code, or none */
    /* For each length: the end of its codes, left-aligned in 16 bits, and what to add to a code to get its index in
     * `values`. */
    uint32_t behind[JPEG_HUFFMAN_LONGEST + 1];
    int32_t offset[JPEG_HUFFMAN_LONGEST + 1];
} JpegHuffmanTable;

/* Builds the table for these codes, unless it already is theirs. They must be valid: no more codes of a length than
 * there can be, no DC symbol above 15. */
void jpeg_huffman_make(JpegHuffmanTable *table, const uint8_t *counts, const uint8_t *values);

/* Reads a restart interval: the data between two markers of a scan. */
typedef struct JpegHuffmanReader {
    const uint8_t *at, *end; /* borrowed, in `room`: the next byte, and the interval's end */
    uint64_t bits;           /* the next bit is the highest */
    int count;               /* of bits that are valid */
} JpegHuffmanReader;

/* Copies the interval that begins at `at` into `room`, which has end - at + JPEG_HUFFMAN_BEYOND bytes, without stuffed
 * bytes. Returns where the interval ends: at a marker, or at `end`. */
const uint8_t *jpeg_huffman_begin(JpegHuffmanReader *reader, const uint8_t *at, const uint8_t *end, uint8_t *room);

/* Stores the next block's coefficients, row by row, in a zeroed `block`; NULL discards them. False is a fault. */
bool jpeg_huffman_block(JpegHuffmanReader *reader, const JpegHuffmanTable *dc, const JpegHuffmanTable *ac,
                        int32_t *prediction, int16_t *block);

/* Whether all bytes of the interval were consumed; bits of the last one may be left. */
bool jpeg_huffman_ends(const JpegHuffmanReader *reader);

#endif
