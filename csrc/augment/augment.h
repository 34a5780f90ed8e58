/* Augmentation of images on the CPU by a chain of operations (operation.h), with normalisation, conversion and layout
 * in the same pass, from the source pixels straight to their place in a batch. The random choices are drawn first, so
 * what the chain does to a sample, and which part of the source it needs, is known before the sample is decoded.
 *
 *     augment_draw(augment, &key, evaluate, drawn);
 *     part = augment_part(augment, drawn);                     of the source; or use all of it
 *     augment_run(augment, drawn, &image, next, out, scratch); */
#ifndef CGXFFCV_AUGMENT_AUGMENT_H
#define CGXFFCV_AUGMENT_AUGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "augment/operation.h"
#include "base/status.h"

#define AUGMENT_MAX_OPS 32

typedef enum ImageLayout { IMAGE_HWC, IMAGE_CHW } ImageLayout;

/* "float32", "chw"; NULL if there is no such number. */
const char *augment_type_name(int type);
const char *augment_layout_name(int layout);

/* One number per channel. */
typedef struct AugmentChannels {
    double value[AUGMENT_MAX_CHANNELS];
    int count; /* of the numbers; 0: one for each channel, or the same for all */
} AugmentChannels;

typedef struct AugmentSpec {
    int32_t height, width; /* of the source, HWC */
    AugmentFormat format;  /* of its pixels */
    int op_count;
    AugmentOp ops[AUGMENT_MAX_OPS]; /* in the order in which they are applied */
    bool normalize;                 /* value = (v - mean) / std in float64, rounded once to `normalized_type` */
    AugmentChannels mean, std;
    ImageType normalized_type; /* read only if `normalize` */
    ImageType type;            /* of the output: the source's or a float; only a narrower type rounds a second time */
    ImageLayout layout;
} AugmentSpec;

typedef struct AugmentPart {
    int32_t y, x, height, width;
} AugmentPart;

/* Pixels of a source, HWC; pixels outside the part are never read. */
typedef struct AugmentImage {
    const uint8_t *pixels; /* borrowed, not aligned: the part's first row and column */
    size_t stride;         /* bytes from row to row */
    AugmentPart part;
} AugmentImage;

typedef struct Augment Augment;

/* Checks the spec and prepares tables; the result is immutable and may be used by any number of threads. */
Status augment_create(const AugmentSpec *spec, Augment **out);
void augment_destroy(Augment *augment);

size_t augment_type_bytes(ImageType type);
int32_t augment_channels(AugmentFormat format);
void augment_output_size(const Augment *augment, int32_t *height, int32_t *width);

/* Scratch memory that each thread needs for this Augment, in bytes; may be 0. Initialise it once. */
size_t augment_scratch_bytes(const Augment *augment);
void augment_scratch_init(const Augment *augment, void *scratch);

/* Draws the choices for one sample, one entry per operation. With `evaluate`, every operation is neutral: no flip, no
 * shift, the central crop, no hole. */
void augment_draw(const Augment *augment, const AugmentKey *key, bool evaluate, AugmentDrawn *drawn);

/* The smallest part of the source that contains all pixels that the drawn chain uses; 0 x 0 if it uses none. */
AugmentPart augment_part(const Augment *augment, const AugmentDrawn *drawn);

/* The smallest part that contains both; a part of 0 x 0 is empty. */
AugmentPart augment_part_join(AugmentPart one, AugmentPart other);

/* Whether the drawn chain does nothing except perhaps mirror the image left to right: it then need not run, if the
 * decoder can write its pixels straight to the output. */
bool augment_only_mirrors(const Augment *augment, const AugmentDrawn *drawn, bool *mirrored);

/* Whether the chain mixes each image with the previous one in the batch, cyclically. If so, call augment_begin on the
 * image before the first one of augment_run; the others follow in the batch's order, with the same scratch memory. */
bool augment_mixes(const Augment *augment);
void augment_begin(const Augment *augment, const AugmentDrawn *drawn, const AugmentImage *image, void *scratch);

/* Writes the output, in its layout and type, to `out`, from an image that contains at least augment_part. `next`, which
 * may be NULL, is all pixels of the next source, to be prefetched into the cache meanwhile. Cannot fail. */
void augment_run(const Augment *augment, const AugmentDrawn *drawn, const AugmentImage *image, const uint8_t *next,
                 void *out, void *scratch);

#endif
