/* Augmentation of images on the CPU by a chain of operations (operation.h), normalised, converted and laid out on
 * the way, from the source pixels straight to their place in a batch. A chain is drawn first: what it does to a sample,
 * and which part of the source that needs, is known before anything of the sample is decoded.
 *
 *     augment_draw(augment, &key, evaluate, drawn);
 *     part = augment_part(augment, drawn);                     of the source; or all of it
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

/* One number a channel. */
typedef struct AugmentChannels {
    double value[AUGMENT_MAX_CHANNELS];
    int count; /* of the numbers; 0: as many as there are channels, or all the same */
} AugmentChannels;

typedef struct AugmentSpec {
    int32_t height, width; /* of the source, HWC */
    AugmentFormat format;  /* of its pixels */
    int op_count;
    AugmentOp ops[AUGMENT_MAX_OPS]; /* in the order of their effect */
    bool normalize;                 /* value = (v - mean) / std in float64, rounded once to `normalized_type` */
    AugmentChannels mean, std;
    ImageType normalized_type; /* read only if `normalize` */
    ImageType type;            /* of the output, the source's or a float; a second rounding only where it is narrower */
    ImageLayout layout;
} AugmentSpec;

typedef struct AugmentPart {
    int32_t y, x, height, width;
} AugmentPart;

/* Pixels of a source, HWC; what lies outside the part is never read. */
typedef struct AugmentImage {
    const uint8_t *pixels; /* borrowed, not aligned: of the part's first row and column */
    size_t stride;         /* bytes from row to row */
    AugmentPart part;
} AugmentImage;

typedef struct Augment Augment;

/* Checks the spec and prepares tables; the result is immutable, for any number of threads. */
Status augment_create(const AugmentSpec *spec, Augment **out);
void augment_destroy(Augment *augment);

size_t augment_type_bytes(ImageType type);
int32_t augment_channels(AugmentFormat format);
void augment_output_size(const Augment *augment, int32_t *height, int32_t *width);

/* Scratch memory that one thread needs for this Augment alone, in bytes; may be 0. Prepared once. */
size_t augment_scratch_bytes(const Augment *augment);
void augment_scratch_init(const Augment *augment, void *scratch);

/* Makes the choices for one sample, into an entry for each operation. With `evaluate`, every operation is neutral: no
 * flip, no shift, the central crop, no hole. */
void augment_draw(const Augment *augment, const AugmentKey *key, bool evaluate, AugmentDrawn *drawn);

/* The smallest part of the source that holds all pixels which the drawn chain shows; 0 x 0 if it shows none. */
AugmentPart augment_part(const Augment *augment, const AugmentDrawn *drawn);

/* The smallest part that holds both; one of 0 x 0 holds nothing. */
AugmentPart augment_part_join(AugmentPart one, AugmentPart other);

/* Whether the drawn chain changes nothing but that it mirrors the image left to right, or not even that: it need then
 * not run at all, where whatever makes the pixels can put them into the output. */
bool augment_only_mirrors(const Augment *augment, const AugmentDrawn *drawn, bool *mirrored);

/* Whether the chain mixes each image with the one before it in the batch, cyclic. augment_begin then takes the image
 * before the first that augment_run gets; the others follow in the batch's order, with the same scratch memory. */
bool augment_mixes(const Augment *augment);
void augment_begin(const Augment *augment, const AugmentDrawn *drawn, const AugmentImage *image, void *scratch);

/* Writes the output, in its layout and type, to `out` from an image that holds augment_part at least. `next` may be all
 * pixels of the source that comes next, to be fetched into the cache meanwhile, or NULL. Cannot fail. */
void augment_run(const Augment *augment, const AugmentDrawn *drawn, const AugmentImage *image, const uint8_t *next,
                 void *out, void *scratch);

#endif
