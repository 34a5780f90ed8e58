/* Whole images of one size, for the decoder of crops: where a field's images are also wanted whole, they are decoded
 * only once. */
#ifndef CGXFFCV_LOADER_DECODERS_IMAGE_H
#define CGXFFCV_LOADER_DECODERS_IMAGE_H

#include "loader/decoders/pixels.h"

/* Whether the output holds whole images, decoded that way. */
bool loader_image_is(const DecoderOutput *output, bool fast_jpeg);

/* The part of a stored image that the output and its views will read, 0 x 0 if none; images of other sizes are
 * refused. */
Status loader_image_part(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                         AugmentPart *out);

/* loader_pixels_augment for the output and its views. */
void loader_image_augment(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const AugmentImage *image,
                          const uint8_t *next, bool begin);

#endif
