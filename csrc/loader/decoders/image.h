/* Whole images of one size, for the decoder of crops: where a file's field is wanted whole as well, its images are
 * decoded once. */
#ifndef CGXFFCV_LOADER_DECODERS_IMAGE_H
#define CGXFFCV_LOADER_DECODERS_IMAGE_H

#include "loader/decoders/pixels.h"

/* Whether the output is of whole images, decoded in that way. */
bool loader_image_is(const DecoderOutput *output, bool fast_jpeg);

/* What the output and its views will look at of a stored image, 0 x 0 if nothing; refused if it is of another size. */
Status loader_image_part(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                         AugmentPart *out);

/* loader_pixels_augment for the output and its views. */
void loader_image_augment(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const AugmentImage *image,
                          const uint8_t *next, bool begin);

#endif
