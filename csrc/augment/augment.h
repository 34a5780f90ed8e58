/* Augmentation of one uint8 image on the CPU in one pass: flips, translation, crop, cutout, normalisation,
 * conversion and layout, from the source pixels straight to their place in a batch. */
#ifndef CGXFFCV_AUGMENT_AUGMENT_H
#define CGXFFCV_AUGMENT_AUGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "augment/draw.h"
#include "base/status.h"

#define AUGMENT_MAX_OPS 16
#define AUGMENT_CHANNELS 3
#define AUGMENT_MAX_PADDING 1024

typedef enum ImageType {
    IMAGE_U8,
    IMAGE_F32,
    IMAGE_F16,
    IMAGE_BF16, /* bfloat16, in 16 bits */
    IMAGE_TYPES
} ImageType;

typedef enum ImageLayout { IMAGE_HWC, IMAGE_CHW } ImageLayout;

typedef enum AugmentKind {
    AUGMENT_FLIP = CROP_DRAW_FLIP,           /* mirrors left to right with `probability` */
    AUGMENT_ALTERNATE = CROP_DRAW_ALTERNATE, /* the alternating flip */
    AUGMENT_TRANSLATE = CROP_DRAW_TRANSLATE, /* moves by -padding..padding; uncovered pixels are filled */
    AUGMENT_CROP = CROP_DRAW_WINDOW,         /* pads by `padding`, then cuts height x width out */
    AUGMENT_CUTOUT = CROP_DRAW_CUTOUT        /* fills a height x width hole, fully inside */
} AugmentKind;

/* Fields that a kind does not name are ignored. */
typedef struct AugmentOp {
    AugmentKind kind;
    uint32_t draw; /* from crop_draw_index */
    float probability;
    int32_t padding;
    int32_t height, width;
    bool reflect;    /* CROP: the padding mirrors the image, edge pixel not repeated */
    bool normalized; /* CUTOUT: `fill` is in units of the normalised image, not of 0..255 */
    double fill[AUGMENT_CHANNELS];
} AugmentOp;

typedef struct AugmentSpec {
    int32_t height, width; /* of the source, HWC, 3 channels */
    int op_count;
    AugmentOp ops[AUGMENT_MAX_OPS]; /* in the order of their effect */
    bool normalize;                 /* value = (v - mean) / std in float64, rounded once to `normalized_type` */
    double mean[AUGMENT_CHANNELS], std[AUGMENT_CHANNELS];
    ImageType normalized_type; /* read only if `normalize` */
    ImageType type;            /* of the output; a second rounding only where it is narrower */
    ImageLayout layout;
} AugmentSpec;

typedef struct Augment Augment;

/* Checks the spec and prepares tables; the result is immutable, for any number of threads. */
Status augment_create(const AugmentSpec *spec, Augment **out);
void augment_destroy(Augment *augment);

size_t image_type_bytes(ImageType type);
void augment_output_size(const Augment *augment, int32_t *height, int32_t *width);
size_t augment_output_bytes(const Augment *augment);

/* Scratch memory that one thread needs for this Augment alone, in bytes; may be 0. Prepared once. */
size_t augment_scratch_bytes(const Augment *augment);
void augment_scratch_init(const Augment *augment, void *scratch);

/* Writes augment_output_bytes to `out`, from height * width * 3 bytes of `pixels`. `next` may be the pixels of the
 * image that comes next, to be fetched into the cache meanwhile, or NULL. With `evaluate`, random choices are neutral:
 * no flip, no shift, the central crop, no hole. Cannot fail. */
void augment_run(const Augment *augment, const uint8_t *pixels, const uint8_t *next, CropKey key, bool evaluate,
                 void *out, void *scratch);

#endif
