/* Private to augment/: the prepared form of a spec, and the kernels' contract. A kernel turns strips of pixel rows
 * (uint8, interleaved) into rows of the output: mirrored or not, converted, in either layout. Its results equal the
 * table's, with every instruction set. */
#ifndef CGXFFCV_AUGMENT_CPU_ROWS_H
#define CGXFFCV_AUGMENT_CPU_ROWS_H

#include "augment/augment.h"
#include "base/bytes.h"

#define AUGMENT_LEVELS 256
#define AUGMENT_BLOCK 16 /* pixels that a vector kernel processes at once */

/* Rows of one image. Row r reads width * 3 bytes at source + r * source_stride, in ascending order of address even if
 * `mirror` reverses them. The stride is negative if the image is flipped vertically. */
typedef struct AugmentStrip {
    const uint8_t *source;
    ptrdiff_t source_stride;
    size_t rows, width;
    bool mirror;
    unsigned char *out;  /* first element of the first row, channel 0 */
    size_t out_stride;   /* bytes from row to row */
    size_t plane;        /* bytes from channel to channel (CHW) */
    const uint8_t *next; /* NULL, or rows * next_stride bytes that will be read soon */
    size_t next_stride;
} AugmentStrip;

typedef struct AugmentPass AugmentPass;
typedef void (*AugmentKernel)(const AugmentPass *pass, const AugmentStrip *strip);

/* pshufb patterns for a block of 48 bytes in three vectors; the first index of `planes` is whether to mirror. */
typedef struct AugmentShuffles {
    _Alignas(16) uint8_t planes[2][AUGMENT_CHANNELS][3][16]; /* channel from vector: 16 values of one channel */
    uint8_t mirror[3][3][16];                                /* vector from vector: the pixels in reverse */
} AugmentShuffles;

/* One pass over an image, prepared: where its pixels come from, the colour of each hole, the conversion. */
struct AugmentPass {
    AugmentSpec spec; /* this part of the chain, and its output's format */
    int moves;        /* the first of its operations; the others fill holes */
    int32_t out_height, out_width;
    size_t item_bytes, pixel_stride, row_stride, plane_stride; /* of the output, in bytes */
    size_t next_stride; /* bytes of a source per row of the output, as in AugmentStrip */
    bool affine; /* (v - shift) * factor, in float32 (float64 for IMAGE_F32), equals the table for all 256 levels */
    double shift[AUGMENT_CHANNELS], factor[AUGMENT_CHANNELS];
    /* The output for each level; 16-bit types and uint8 use the low bits. */
    uint32_t table[AUGMENT_CHANNELS][AUGMENT_LEVELS];
    uint32_t fill[AUGMENT_MAX_OPS][AUGMENT_CHANNELS]; /* of each operation, in the output's type */
    int pad;                                          /* the operation that pads; -1: none */
    int32_t margin;                                   /* its padding ... */
    bool reflect;                                     /* ... and whether that mirrors the image */
    AugmentShuffles shuffles;
    AugmentKernel kernel; /* for the best instruction set */
};

/* One kernel for each type and layout: [type][layout]. The vector ones need `affine` for all but IMAGE_U8. */
extern const AugmentKernel augment_kernels_scalar[IMAGE_TYPES][2];
#if defined(__x86_64__)
extern const AugmentKernel augment_kernels_avx2[IMAGE_TYPES][2];
extern const AugmentKernel augment_kernels_avx512[IMAGE_TYPES][2];
#endif

static inline void augment_store(unsigned char *out, uint32_t value, size_t item_bytes) {
    if (item_bytes == 1) {
        *out = (unsigned char)value;
    } else if (item_bytes == 2) {
        store_u16(out, (uint16_t)value);
    } else {
        store_u32(out, value);
    }
}

/* Converts pixels [first, last) of one row by table: all of the scalar kernels, and the narrow rows of the vector
 * kernels. Inlined with constant type and layout. */
static inline __attribute__((always_inline)) void augment_row_by_table(const AugmentPass *a, const AugmentStrip *s,
                                                                       size_t row, size_t first, size_t last,
                                                                       size_t item_bytes, ImageLayout layout) {
    const uint8_t *source = s->source + (ptrdiff_t)row * s->source_stride;
    unsigned char *out = s->out + row * s->out_stride;
    size_t channel_step = layout == IMAGE_HWC ? item_bytes : s->plane;
    size_t pixel_step = layout == IMAGE_HWC ? item_bytes * AUGMENT_CHANNELS : item_bytes;
    for (size_t x = first; x < last; x++) {
        const uint8_t *pixel = source + AUGMENT_CHANNELS * (s->mirror ? s->width - 1 - x : x);
        unsigned char *to = out + x * pixel_step;
        augment_store(to, a->table[0][pixel[0]], item_bytes);
        augment_store(to + channel_step, a->table[1][pixel[1]], item_bytes);
        augment_store(to + 2 * channel_step, a->table[2][pixel[2]], item_bytes);
    }
}

#endif
