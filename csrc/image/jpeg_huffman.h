/* Private to image/: the entropy decoder of sequential JPEG (ITU-T T.81, annex F), for streams without any fault: of
 * others it says so, and somebody else looks at them again. */
#ifndef CGXFFCV_IMAGE_JPEG_HUFFMAN_H
#define CGXFFCV_IMAGE_JPEG_HUFFMAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JPEG_HUFFMAN_BLOCK 64
#define JPEG_HUFFMAN_LONGEST 16
#define JPEG_HUFFMAN_LOOK 10    /* bits that are looked up at once: with a value's 15 less than half of 57 */
#define JPEG_HUFFMAN_BEYOND 512 /* bytes behind a segment: more than a block can take */

/* A table of the stream, `counts` codes of each length 1 to 16 for `values` in their order; and what follows from
 * it. */
typedef struct JpegHuffmanTable {
    bool made;
    uint8_t counts[JPEG_HUFFMAN_LONGEST + 1];
    uint8_t values[256];
    uint32_t entries[1 << JPEG_HUFFMAN_LOOK]; /* of the next bits; 0: a longer code, or none */
    /* Of each length: what lies behind its last code, at the top of 16 bits, and what to add to a code for its index in
     * `values`. */
    uint32_t behind[JPEG_HUFFMAN_LONGEST + 1];
    int32_t offset[JPEG_HUFFMAN_LONGEST + 1];
} JpegHuffmanTable;

/* Makes the table of these codes, unless it is made already. They must be codes: no more of a length than there are, no
 * symbol of DC above 15. */
void jpeg_huffman_make(JpegHuffmanTable *table, const uint8_t *counts, const uint8_t *values);

/* A restart interval: what lies between two markers of a scan. */
typedef struct JpegHuffmanReader {
    const uint8_t *at, *end; /* borrowed, of the room: the next byte, and the interval's end */
    uint64_t bits;           /* the next bit on top */
    int count;               /* of them */
} JpegHuffmanReader;

/* Copies the interval that begins at `at` into `room`, which has as many bytes as there are until `end`, and
 * JPEG_HUFFMAN_BEYOND. Where it ends: at a marker, or at the stream's end. */
const uint8_t *jpeg_huffman_begin(JpegHuffmanReader *reader, const uint8_t *at, const uint8_t *end, uint8_t *room);

/* The next block's coefficients, in the order of rows, into zeros; NULL throws them away. False is a fault. */
bool jpeg_huffman_block(JpegHuffmanReader *reader, const JpegHuffmanTable *dc, const JpegHuffmanTable *ac,
                        int32_t *prediction, int16_t *block);

/* Whether all bytes of the interval were taken, the last one not necessarily to its end. */
bool jpeg_huffman_ends(const JpegHuffmanReader *reader);

#endif
