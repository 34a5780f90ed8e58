/* Private to augment/: operations that compute a pixel from any of the image's pixels, or from their histogram. */
#ifndef CGXFFCV_AUGMENT_CPU_WHOLE_H
#define CGXFFCV_AUGMENT_CPU_WHOLE_H

#include "augment/operation.h"

/* Scratch memory for WARP and BOX, in bytes, aligned to 4. */
size_t augment_whole_bytes(AugmentSize size);

/* In place. */
void augment_whole_warp(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels,
                        void *scratch);
void augment_whole_box(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels,
                       void *scratch);
void augment_whole_histogram(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels);

#endif
