/* Private to augment/: operations that compute a pixel from its neighbours. */
#ifndef CGXFFCV_AUGMENT_CPU_FILTER_H
#define CGXFFCV_AUGMENT_CPU_FILTER_H

#include "augment/operation.h"

/* Scratch memory for images of this width, in bytes, aligned to 4. */
size_t augment_filter_bytes(int32_t width);

/* In place; the image, whose sides are larger than the operation's radius, is mirrored at its edges. */
void augment_filter(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, uint8_t *pixels, void *scratch);

#endif
