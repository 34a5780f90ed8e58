/* Which rectangle of an image a crop takes. */
#ifndef CGXFFCV_LOADER_DECODERS_RECTANGLE_H
#define CGXFFCV_LOADER_DECODERS_RECTANGLE_H

#include "loader/decoders/decoder.h"

Status loader_rectangle_check(const LoaderCrop *crop);

/* The central square, whose sides are ratio[0] of the image's shorter side. */
JpegRegion loader_rectangle_central(const LoaderCrop *crop, ImageSize image);

/* The one drawn for the chunk's sample `i`; in evaluation, the largest central one within `ratio`. */
JpegRegion loader_rectangle_random(const DecoderChunk *chunk, const LoaderCrop *crop, size_t i, ImageSize image);

#endif
