/* Private to augment/: chains for images that are not three channels of uint8: one operation after another, on the
 * values themselves. Draws are the same as for other images; for uint8, results are as for a channel of three. */
#ifndef CGXFFCV_AUGMENT_CPU_GENERAL_H
#define CGXFFCV_AUGMENT_CPU_GENERAL_H

#include "augment/augment.h"

/* Fails for operations that have no meaning for such images. */
Status augment_general_takes(const AugmentOp *op, AugmentFormat format);

typedef struct AugmentGeneral AugmentGeneral;

/* `spec`, which has been checked, and `sizes` (of the image before each operation, and of the output) are borrowed
 * until augment_general_destroy. */
Status augment_general_create(const AugmentSpec *spec, const AugmentSize *sizes, AugmentGeneral **out);
void augment_general_destroy(AugmentGeneral *general);

/* Scratch memory of one thread, in bytes; it needs neither alignment nor initialisation. */
size_t augment_general_scratch_bytes(const AugmentGeneral *general);

bool augment_general_mixes(const AugmentGeneral *general);

/* Like augment_begin and augment_run, on whole images. */
void augment_general_begin(const AugmentGeneral *general, const AugmentDrawn *drawn, const AugmentImage *image,
                           void *scratch);
void augment_general_run(const AugmentGeneral *general, const AugmentDrawn *drawn, const AugmentImage *image, void *out,
                         void *scratch);

#endif
