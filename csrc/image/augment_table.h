/* Private to augment*.c: values of the output's type. */
#ifndef CGXFFCV_IMAGE_AUGMENT_TABLE_H
#define CGXFFCV_IMAGE_AUGMENT_TABLE_H

#include "image/augment_kernel.h"

/* The bits of `value` in `type`, rounded once (uint8 truncates). */
uint32_t augment_bits(double value, ImageType type);

/* The bits of the output for a source level (0..255). */
uint32_t augment_level(const AugmentSpec *spec, int channel, double level);

/* Fills table, shift, factor and affine from the spec. */
void augment_make_table(Augment *augment);

#endif
