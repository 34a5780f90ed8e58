/* Writing .beton files: a schema says what the fields are, an encoder turns values into encoded chunks (in threads, or
 * in another process), a writer places chunks in order and makes the file appear whole or not at all. The bytes depend
 * only on the samples and their order, never on chunk sizes or the number of threads or processes. */
#ifndef CGXFFCV_BETON_WRITER_H
#define CGXFFCV_BETON_WRITER_H

#include "beton/reader.h"

#define BETON_MIN_PAGE_BYTES (UINT64_C(2) << 20)
#define BETON_MAX_PAGE_BYTES (UINT64_C(1) << 30)

typedef enum BetonWriteMode {
    BETON_WRITE_RAW,
    BETON_WRITE_JPEG,
    BETON_WRITE_PROPORTION, /* JPEG with compress_probability, drawn from (seed, sample index, field index) */
    BETON_WRITE_SMART,      /* JPEG if height * width * 3 exceeds smart_threshold */
    BETON_WRITE_GIVEN       /* JPEG if given as JPEG */
} BetonWriteMode;

/* "raw", "jpg", "proportion", "smart", "given"; NULL for any other number. */
const char *beton_write_mode_name(int mode);

typedef struct BetonFieldSpec {
    BetonKind kind;
    char name[BETON_NAME_BYTES];
    /* images */
    BetonWriteMode write_mode;
    uint32_t max_resolution; /* the longer side is reduced to it; 0: no limit */
    int64_t smart_threshold; /* bytes; -1: never JPEG */
    int jpeg_quality;        /* 1..100 */
    double compress_probability;
    /* arrays and tensors */
    BetonDtype dtype;
    int ndim;
    uint64_t shape[BETON_MAX_DIMS];
    /* custom fields (its name is not used) */
    BetonCustom custom;
    unsigned char arguments[BETON_ARGUMENT_BYTES];
} BetonFieldSpec;

typedef struct BetonSchema BetonSchema;

/* Checks names (printable ASCII, 1 to 16 bytes, unique), shapes, modes; copies the specs. */
Status beton_schema_create(const BetonFieldSpec *fields, size_t num_fields, BetonSchema **out);
void beton_schema_destroy(BetonSchema *schema); /* does nothing if NULL */

typedef enum BetonSource {
    BETON_SOURCE_SCALAR, /* integer or number */
    BETON_SOURCE_BYTES,  /* data, size: bytes, JSON text with its NUL, an array's elements */
    BETON_SOURCE_PIXELS, /* data, width, height, stride: RGB */
    BETON_SOURCE_JPEG,   /* data, size: a JPEG stream, stored unchanged where the write mode allows */
    BETON_SOURCE_BAD     /* none: the sample is refused; data: the reason, a string; integer: the index of the field
                          * to blame, or -1 */
} BetonSource;

/* One value of one sample; pointers are borrowed until the chunk made from it has been appended. */
typedef struct BetonValue {
    BetonSource source;
    int64_t integer;
    double number;
    const void *data;
    uint64_t size;
    uint32_t width, height;
    size_t stride;
    const unsigned char *record; /* custom fields: its record, with any pointer */
} BetonValue;

/* A sample that was left out, or at which the encoder stopped. */
typedef struct BetonSkip {
    uint64_t index;
    char field[BETON_NAME_BYTES];
    char reason[STATUS_MESSAGE_BYTES];
} BetonSkip;

typedef struct BetonEncoder BetonEncoder;
typedef struct BetonChunk BetonChunk;

/* `schema` is borrowed until beton_encoder_destroy. With `skip_bad` samples that cannot be encoded are left out of the
 * chunk; otherwise the first of them (by index) fails the run. */
Status beton_encoder_create(const BetonSchema *schema, uint64_t seed, int threads, bool skip_bad, BetonEncoder **out);
void beton_encoder_destroy(BetonEncoder *encoder); /* does nothing if NULL */

/* Encodes samples first_index, first_index + 1... from `values`, `count` rows of num_fields. The chunk is borrowed from
 * the encoder until its next run. */
Status beton_encoder_run(BetonEncoder *encoder, uint64_t first_index, const BetonValue *values, size_t count,
                         const BetonChunk **out);

/* The samples left out of the chunk, by index. */
const BetonSkip *beton_chunk_skips(const BetonChunk *chunk, size_t *count);

/* A chunk as bytes, for transfer between processes of the same program. */
uint64_t beton_chunk_packed_bytes(const BetonChunk *chunk);
void beton_chunk_pack(const BetonChunk *chunk, unsigned char *out);

typedef struct BetonWriterOptions {
    uint64_t page_size;        /* a power of two, BETON_MIN_PAGE_BYTES to BETON_MAX_PAGE_BYTES */
    bool small_pages;          /* allows page sizes from 1 byte (for tests) */
    bool checksums;            /* adds the extension block */
    bool durable;              /* syncs before the file appears */
    uint64_t expected_samples; /* a hint: the data is copied once at the end if it was wrong by more than a page */
    int threads;               /* for checksums */
} BetonWriterOptions;

typedef struct BetonWriterResult {
    uint64_t num_samples, num_bytes, page_size;
    int unsynced; /* as returned by atomic_file_commit */
} BetonWriterResult;

typedef struct BetonWriter BetonWriter;

/* `schema` is borrowed until commit or abort. */
Status beton_writer_create(const char *path, const BetonSchema *schema, const BetonWriterOptions *options,
                           BetonWriter **out);

/* Appends the samples of a chunk made with the writer's own schema. After a failure, only abort may be called. */
Status beton_writer_append(BetonWriter *writer, const BetonChunk *chunk);
Status beton_writer_append_packed(BetonWriter *writer, const unsigned char *bytes, uint64_t size);

/* Completes the file and moves it into place; the handle is gone afterwards, even on failure. */
Status beton_writer_commit(BetonWriter *writer, BetonWriterResult *out);

/* Leaves no file; does nothing if NULL. */
void beton_writer_abort(BetonWriter *writer);

#endif
