/* Private to augment/: values in the output's type. */
#ifndef CGXFFCV_AUGMENT_CPU_LEVELS_H
#define CGXFFCV_AUGMENT_CPU_LEVELS_H

#include "augment/cpu/rows.h"

/* The bits of `value` in `type`, rounded once (integer types truncate). */
uint32_t augment_bits(double value, ImageType type);

/* The bits of the output for a value of the source. */
uint32_t augment_level(const AugmentSpec *spec, int channel, double level);

/* Fills table, shift, factor and affine from the spec. */
void augment_make_table(AugmentPass *augment);

#endif
