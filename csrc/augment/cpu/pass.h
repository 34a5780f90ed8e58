/* Private to augment/: one pass over an image, which one frame and some holes express: moves, at most one of which
 * shows what lies around the image, then fills. */
#ifndef CGXFFCV_AUGMENT_CPU_PASS_H
#define CGXFFCV_AUGMENT_CPU_PASS_H

#include "augment/cpu/rows.h"

/* `spec` has the pass's own operations and the size of its source; `out` is the size of what it gives. */
void augment_pass_init(AugmentPass *pass, const AugmentSpec *spec, AugmentSize out);

/* Scratch memory of one thread, as augment_scratch_bytes and augment_scratch_init have it. */
size_t augment_pass_scratch_bytes(const AugmentPass *pass);
void augment_pass_scratch_init(const AugmentPass *pass, void *scratch);

/* As augment_run; `drawn` has an entry for each of the pass's operations. */
void augment_pass_run(const AugmentPass *pass, const AugmentDrawn *drawn, const AugmentImage *image,
                      const uint8_t *next, void *out, void *scratch);

#endif
