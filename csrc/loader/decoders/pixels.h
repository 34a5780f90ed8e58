/* Shared by the decoders of images: from a stored image to pixels, and the chain of operations after that. */
#ifndef CGXFFCV_LOADER_DECODERS_PIXELS_H
#define CGXFFCV_LOADER_DECODERS_PIXELS_H

#include "augment/augment.h"
#include "loader/decoders/decoder.h"

#define PIXELS_RGB ((AugmentFormat){AUGMENT_CHANNELS, IMAGE_U8})

/* Makes the chain for images of this format and size, and sets the output's array and the scratch memory of the chain.
 * What `request` leaves to a GPU, if that can do it, is not part of the chain but goes into output->device_spec. */
Status loader_pixels_prepare(const LoaderOutput *request, AugmentFormat format, uint32_t height, uint32_t width,
                             DecoderOutput *output, Augment **out);

/* Sets the output's array if no sample is in use, and so no size is known. */
void loader_pixels_prepare_none(const LoaderOutput *request, DecoderOutput *output);

/* The stored image of the chunk's sample `i`; a raw one has all its pixels. */
Status loader_pixels_read(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, BetonImage *image);

/* Decodes `image`, a JPEG, into `pixels`, row by row; chunk->blanked says what happens to a damaged one. */
Status loader_pixels_decode(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            bool fast, uint8_t *pixels);

/* Decodes a region of `image`, a JPEG, as jpeg_decode_region does. *blank: it is damaged and is to be black; how many
 * rows have been passed to `take` is unknown. */
Status loader_pixels_stream(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                            const JpegRequest *request, JpegTake take, void *context, bool *blank);

/* Where at least the part of `image` is, or will be: in the file, and *buffer is NULL, or, for a JPEG, in *buffer,
 * which belongs to the thread. */
Status loader_pixels_room(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          AugmentPart part, uint8_t **buffer, AugmentImage *out);

/* At least the part of `image`: in the file, or decoded into the thread's buffer. */
Status loader_pixels_find(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                          bool fast, AugmentPart part, AugmentImage *out);

/* The part of the chunk's sample `i` that loader_pixels_augment will read, 0 x 0 if none. */
AugmentPart loader_pixels_part(const DecoderChunk *chunk, const Augment *augment, size_t i);

/* augment_only_mirrors for the chunk's sample `i`. */
bool loader_pixels_only_mirrors(const DecoderChunk *chunk, const Augment *augment, size_t i, bool *mirrored);

/* The output's row of the chunk's sample `i`. */
unsigned char *loader_pixels_row(const DecoderChunk *chunk, const DecoderOutput *output, size_t i);

/* Draws for the chunk's sample `i` and performs what was drawn, on pixels of the size that the chain was made for, into
 * the output's row. `next` as in augment_run. `begin`: does only what mixing the chunk's first sample with this one,
 * its predecessor, needs. */
void loader_pixels_augment(const DecoderChunk *chunk, const DecoderOutput *output, const Augment *augment,
                           const AugmentImage *image, size_t i, const uint8_t *next, bool begin);

/* Decodes the chunk; if a view of the output mixes, the sample before its first is decoded before it, as a separate
 * chunk (`begin`). */
typedef Status (*PixelsDecode)(const DecoderChunk *chunk, const DecoderOutput *output, bool begin);
Status loader_pixels_run(const DecoderChunk *chunk, const DecoderOutput *output, PixelsDecode decode);

#endif
