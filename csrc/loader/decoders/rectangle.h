/* Which rectangle of an image a crop takes. */
#ifndef CGXFFCV_LOADER_DECODERS_RECTANGLE_H
#define CGXFFCV_LOADER_DECODERS_RECTANGLE_H

#include "loader/decoders/decoder.h"

Status loader_rectangle_check(const LoaderCrop *crop);

/* The one in the middle, whose sides are ratio[0] of the image's shorter side. */
JpegRegion loader_rectangle_central(const LoaderCrop *crop, ImageSize image);

/* The one drawn for the chunk's sample `i`; neutral, the largest in the middle within `ratio`. */
JpegRegion loader_rectangle_random(const DecoderChunk *chunk, const LoaderCrop *crop, size_t i, ImageSize image);

#endif
