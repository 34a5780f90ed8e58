/* Private to augment/: chains for images that are not three channels of uint8: one operation after the other, on the
 * values themselves. Draws are those of all images; what an operation makes of uint8 is what it makes of a channel of
 * three. */
#ifndef CGXFFCV_AUGMENT_CPU_GENERAL_H
#define CGXFFCV_AUGMENT_CPU_GENERAL_H

#include "augment/augment.h"

/* Refuses operations that have no meaning for such images. */
Status augment_general_takes(const AugmentOp *op, AugmentFormat format);

typedef struct AugmentGeneral AugmentGeneral;

/* `spec`, which is checked, and `sizes`, those of the image before each operation and of the output, are borrowed until
 * augment_general_destroy. */
Status augment_general_create(const AugmentSpec *spec, const AugmentSize *sizes, AugmentGeneral **out);
void augment_general_destroy(AugmentGeneral *general);

/* Scratch memory of one thread, aligned to 16; it needs no preparation. */
size_t augment_general_scratch_bytes(const AugmentGeneral *general);

bool augment_general_mixes(const AugmentGeneral *general);

/* As augment_begin and augment_run, of whole images. */
void augment_general_begin(const AugmentGeneral *general, const AugmentDrawn *drawn, const AugmentImage *image,
                           void *scratch);
void augment_general_run(const AugmentGeneral *general, const AugmentDrawn *drawn, const AugmentImage *image, void *out,
                         void *scratch);

#endif
