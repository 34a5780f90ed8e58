/* What the field kinds' encoders work with. Private to beton/. */
#ifndef CGXFFCV_BETON_ENCODE_H
#define CGXFFCV_BETON_ENCODE_H

#include "beton/arena.h"
#include "beton/schema.h"
#include "image/jpeg.h"
#include "image/resize.h"

/* One thread's tools, and the value it is encoding. */
typedef struct EncodeJob {
    Arena arena;          /* what a part may point into until the encoder's next run */
    Arena scratch;        /* what is needed only for the current value */
    JpegDecoder *decoder; /* owned, made at first use */
    JpegEncoder *encoder; /* owned, made at first use */
    Resizer *resizer;     /* owned, made at first use */
    uint64_t seed, sample;
    uint32_t field;
} EncodeJob;

/* A future region: borrowed from the caller's value or from the job's arena. */
typedef struct BetonChunkPart {
    const unsigned char *data;
    uint64_t size;
} BetonChunkPart;

struct BetonChunk {
    size_t count;
    const BetonSchema *schema; /* borrowed */
    unsigned char *records;    /* count * record_bytes; pointers not set */
    BetonChunkPart *parts;     /* count * num_data_fields */
    BetonSkip *skips;          /* num_skips, by index */
    size_t num_skips;
};

#endif
