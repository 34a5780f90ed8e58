/* The table of decoders: one line each, the constant that LoaderOutput names it by, and its entry (decoder.h). */
#ifndef CGXFFCV_LOADER_DECODERS_TABLE_H
#define CGXFFCV_LOADER_DECODERS_TABLE_H

#define LOADER_DECODERS(X)                                                                                             \
    X(LOADER_INT, loader_decoder_int)             /* int64, shape (1) */                                               \
    X(LOADER_FLOAT, loader_decoder_float)         /* float64, shape (1) */                                             \
    X(LOADER_ARRAY, loader_decoder_array)         /* array and tensor fields: their dtype and shape */                 \
    X(LOADER_BYTES, loader_decoder_bytes)         /* uint8, as wide as the file's longest value, padded with zeros */  \
    X(LOADER_BYTE_SIZE, loader_decoder_byte_size) /* int64, shape (1): the length of a value */                        \
    X(LOADER_IMAGE, loader_decoder_image)         /* images of one size, raw or JPEG, through `augment` */             \
    X(LOADER_RECORD, loader_decoder_record)       /* uint8: the records of custom fields */                            \
    X(LOADER_FUNCTION, loader_decoder_function)   /* rows that a user's C function makes */                            \
    X(LOADER_CENTER_CROP, loader_decoder_center_crop) /* central squares of images, resampled to one size */           \
    X(LOADER_RANDOM_CROP, loader_decoder_random_crop) /* random rectangles of images, resampled to one size */         \
    X(LOADER_ARRAY_IMAGE, loader_decoder_array_image) /* images in arrays, through `augment` */

#endif
