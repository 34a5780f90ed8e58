/* Private to augment/: one pass over an image, which consists of one frame and some holes: moves, at most one of which
 * pads, then fills. */
#ifndef CGXFFCV_AUGMENT_CPU_PASS_H
#define CGXFFCV_AUGMENT_CPU_PASS_H

#include "augment/cpu/rows.h"

/* `spec` has the pass's own operations and the size of its source; `out` is the size of its output. */
void augment_pass_init(AugmentPass *pass, const AugmentSpec *spec, AugmentSize out);

/* Scratch memory of one thread, like augment_scratch_bytes and augment_scratch_init. */
size_t augment_pass_scratch_bytes(const AugmentPass *pass);
void augment_pass_scratch_init(const AugmentPass *pass, void *scratch);

/* Like augment_run; `drawn` has one entry for each of the pass's operations. */
void augment_pass_run(const AugmentPass *pass, const AugmentDrawn *drawn, const AugmentImage *image,
                      const uint8_t *next, void *out, void *scratch);

#endif
