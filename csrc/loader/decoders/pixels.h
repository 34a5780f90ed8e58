/* What the decoders of images share: from a stored image to pixels, and the chain of operations behind them. */
#ifndef CGXFFCV_LOADER_DECODERS_PIXELS_H
#define CGXFFCV_LOADER_DECODERS_PIXELS_H

#include "augment/augment.h"
#include "loader/decoders/decoder.h"

#define PIXELS_RGB ((AugmentFormat){AUGMENT_CHANNELS, IMAGE_U8})

/* Makes the chain for images of this format and size, and says what the output is: its array, and the scratch memory of
 * the chain. What the wish leaves to a GPU that can do it is no part of the chain, but output->behind. */
Status loader_pixels_prepare(const LoaderOutput *wish, AugmentFormat format, uint32_t height, uint32_t width,
                             DecoderOutput *output, Augment **out);

/* The output's array where no sample is in use, so that there is no size. */
void loader_pixels_prepare_none(const LoaderOutput *wish, DecoderOutput *output);

/* The stored image of the chunk's sample `i`; a raw one has all its pixels. */
Status loader_pixels_read(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, BetonImage *image);

/* Decodes it, a JPEG, into `pixels`, row after row; a damaged one as the chunk says. */
Status loader_pixels_decode(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            bool fast, uint8_t *pixels);

/* Decodes a region of it, a JPEG, as jpeg_decode_region does. `blank`: it is damaged, and to be black; how many rows
 * have come is not known. */
Status loader_pixels_stream(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            const JpegWish *wish, JpegTake take, void *context, bool *blank);

/* Where the part of it, or more, is or is to be decoded: in the file, or, of a JPEG, in *buffer, which is the thread's;
 * else NULL. */
Status loader_pixels_room(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          AugmentPart part, uint8_t **buffer, AugmentImage *out);

/* The part of it, at least: in the file, or decoded into the thread's buffer. */
Status loader_pixels_find(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          bool fast, AugmentPart part, AugmentImage *out);

/* The part of the chunk's sample `i` that loader_pixels_augment will look at, 0 x 0 if none. */
AugmentPart loader_pixels_part(const DecoderChunk *chunk, const Augment *augment, size_t i);

/* augment_only_mirrors for the chunk's sample `i`. */
bool loader_pixels_only_mirrors(const DecoderChunk *chunk, const Augment *augment, size_t i, bool *mirrored);

/* The output's row of the chunk's sample `i`. */
unsigned char *loader_pixels_row(const DecoderChunk *chunk, const DecoderOutput *output, size_t i);

/* Draws for the chunk's sample `i` and performs what was drawn, on pixels of the size that the chain was made for, into
 * the output's row. `next` as in augment_run. `begin`: nothing but what mixing the chunk's first sample with this one
 * needs, which comes before it. */
void loader_pixels_augment(const DecoderChunk *chunk, const DecoderOutput *output, const Augment *augment,
                           const AugmentImage *image, size_t i, const uint8_t *next, bool begin);

/* Decodes the chunk; if a view of the output mixes, the sample before its first comes before it, as a chunk of its own
 * (`begin`). */
typedef Status (*PixelsDecode)(const DecoderChunk *chunk, const DecoderOutput *output, bool begin);
Status loader_pixels_run(const DecoderChunk *chunk, const DecoderOutput *output, PixelsDecode decode);

#endif
