/* Reading .beton files: one open file is an immutable view that has been validated as a whole (header, descriptors,
 * records, allocation table); values are then fetched in O(1), by any number of threads concurrently, without locks.
 * Data pages are touched only when a value's bytes are. Every failure caused by the file is STATUS_FORMAT with path,
 * offset, field and sample in the error record; every later access stays inside the mapping even if another process
 * rewrites the file in place. */
#ifndef CGXFFCV_BETON_READER_H
#define CGXFFCV_BETON_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/guard.h"
#include "base/status.h"

#define BETON_NAME_BYTES 17 /* 16 and a terminator */
#define BETON_MAX_DIMS 32
#define BETON_ARGUMENT_BYTES 1024

typedef struct BetonReader BetonReader;

/* The numbers are those of the file format. */
typedef enum BetonKind {
    BETON_FLOAT = 0,  /* double */
    BETON_INT = 1,    /* int64 */
    BETON_IMAGE = 2,  /* RGB, JPEG or raw */
    BETON_BYTES = 3,  /* any length */
    BETON_ARRAY = 4,  /* fixed dtype and shape */
    BETON_JSON = 5,   /* text and one NUL */
    BETON_TENSOR = 6, /* as BETON_ARRAY; Python returns a torch tensor */
    BETON_CUSTOM = 255
} BetonKind;

typedef enum BetonDtype {
    BETON_BOOL,
    BETON_I8,
    BETON_U8,
    BETON_I16,
    BETON_U16,
    BETON_I32,
    BETON_U32,
    BETON_I64,
    BETON_U64,
    BETON_F16,
    BETON_F32,
    BETON_F64,
    BETON_C64,
    BETON_C128,
    BETON_DTYPES
} BetonDtype;

typedef enum BetonImageMode { BETON_IMAGE_JPEG = 0, BETON_IMAGE_RAW = 1 } BetonImageMode;

/* One field of an open file. The extremes are over all samples, and 0 when there are none. */
typedef struct BetonField {
    BetonKind kind;
    char name[BETON_NAME_BYTES];
    uint32_t record_offset, record_bytes, record_alignment;
    bool has_data;     /* whether its values are in the data pages */
    size_t data_index; /* its position among the fields that have data */
    /* arrays and tensors */
    BetonDtype dtype;
    int ndim;
    uint64_t shape[BETON_MAX_DIMS];
    uint64_t value_bytes; /* itemsize * prod(shape) */
    /* fields with data: the smallest and largest region */
    uint64_t min_bytes, max_bytes;
    /* images */
    uint32_t min_width, max_width, min_height, max_height;
    uint64_t num_jpeg, num_raw;
    /* custom fields: where the record keeps pointer and size; -1 where it does not */
    int64_t pointer_offset, size_offset;
    /* BETON_ARGUMENT_BYTES, borrowed from the reader's mapping: to be read between beton_reader_enter and _leave */
    const unsigned char *arguments;
} BetonField;

/* What the file itself does not say about a field of kind BETON_CUSTOM. */
typedef struct BetonCustom {
    char name[BETON_NAME_BYTES];
    uint32_t record_bytes, record_alignment; /* at least 1; a power of two */
    int64_t pointer_offset;                  /* of the u64 file offset of the data; -1: the field has no data */
    int64_t size_offset;                     /* of the u64 size of the data; -1: only the allocation table has it */
} BetonCustom;

/* A value's bytes. */
typedef struct BetonRegion {
    const unsigned char *data; /* borrowed from the reader's mapping until beton_reader_close; NULL if size is 0 */
    uint64_t size;
    uint64_t offset; /* of the data in the file; 0 if size is 0 */
} BetonRegion;

typedef struct BetonImage {
    BetonRegion region; /* a JPEG stream, or height * width * 3 bytes RGB */
    BetonImageMode mode;
    uint32_t width, height;
} BetonImage;

/* Half-open range of bytes of the file. */
typedef struct BetonSpan {
    uint64_t begin, end;
} BetonSpan;

/* A column of records: the value of sample i begins at data + i * stride, at any alignment. */
typedef struct BetonColumn {
    const unsigned char *data; /* borrowed from the reader's mapping until beton_reader_close */
    size_t stride;
} BetonColumn;

/* Maps and validates the whole file. `custom` (may be NULL when `num_custom` is 0) describes its fields of kind
 * BETON_CUSTOM. */
Status beton_reader_open(const char *path, const BetonCustom *custom, size_t num_custom, BetonReader **out);

/* Opens several files with the same fields as one: their samples are numbered consecutively, also in errors; offsets
 * continue from file to file, and pages are as large as the largest of any file. Everything works on it except
 * beton_reader_column, _ints, _floats, _data_span, _has_checksums and _verify. */
Status beton_reader_open_set(const char *const *paths, size_t count, const BetonCustom *custom, size_t num_custom,
                             BetonReader **out);

/* Does nothing if NULL; no other thread may still be using the reader. */
void beton_reader_close(BetonReader *reader);

const char *beton_reader_path(const BetonReader *reader);

/* The number of files that it reads, and the number of a file's first sample. */
size_t beton_reader_num_files(const BetonReader *reader);
uint64_t beton_reader_first_sample(const BetonReader *reader, size_t file);

/* The path of the file that has the sample. */
const char *beton_reader_path_of(const BetonReader *reader, uint64_t sample);
uint64_t beton_reader_num_samples(const BetonReader *reader);
size_t beton_reader_num_fields(const BetonReader *reader);
const BetonField *beton_reader_field(const BetonReader *reader, size_t field);

/* The field's index, or -1. */
int64_t beton_reader_find_field(const BetonReader *reader, const char *name);

/* Single values. `sample` and `field` are checked (STATUS_INDEX, STATUS_TYPE for a field of another kind). */
Status beton_reader_int(const BetonReader *reader, size_t field, uint64_t sample, int64_t *out);
Status beton_reader_float(const BetonReader *reader, size_t field, uint64_t sample, double *out);
Status beton_reader_image(const BetonReader *reader, size_t field, uint64_t sample, BetonImage *out);

/* The bytes of a value of any field that has data; for JSON without the NUL (a missing NUL is STATUS_FORMAT). */
Status beton_reader_region(const BetonReader *reader, size_t field, uint64_t sample, BetonRegion *out);

/* The record of a value of any field; borrowed from the reader's mapping until beton_reader_close. */
Status beton_reader_record_of(const BetonReader *reader, size_t field, uint64_t sample, const unsigned char **out);

/* The records of any field. */
Status beton_reader_column(const BetonReader *reader, size_t field, BetonColumn *out);

/* Int or Float values of samples [first, first + count) as int64 or double. */
Status beton_reader_ints(const BetonReader *reader, size_t field, uint64_t first, uint64_t count, int64_t *out);
Status beton_reader_floats(const BetonReader *reader, size_t field, uint64_t first, uint64_t count, double *out);

/* Pages: page p is [p * page_size, (p + 1) * page_size) of the file, cut at the end of the data. */
uint64_t beton_reader_page_size(const BetonReader *reader);

/* The data pages: from the first to the allocation table. */
BetonSpan beton_reader_data_span(const BetonReader *reader);

/* From the first byte to past the last byte of the sample's data (in files of ours and of FFCV's within one page, but
 * any number is legal); begin == end if it has none. */
Status beton_reader_sample_span(const BetonReader *reader, uint64_t sample, BetonSpan *out);

/* Starts reading the span ahead, widened to whole memory pages, without waiting. Only a hint: what the system refuses
 * is ignored. */
void beton_reader_read_ahead(const BetonReader *reader, BetonSpan span);

/* Reads bytes of the file into the caller's memory, without touching the mapping; STATUS_FORMAT if the file has become
 * shorter. */
Status beton_reader_copy(const BetonReader *reader, BetonSpan span, void *to);

/* Checks that the file still has all its bytes (STATUS_FORMAT). One system call. Called after bytes were read, it shows
 * whether they were the file's: missing bytes of a file's last memory page read as zeros. */
Status beton_reader_check_length(const BetonReader *reader);

/* For a file that was once complete: adds to a STATUS_FORMAT that writing it again fixes it. Others pass through. */
Status beton_damaged(Status status);

/* The same for a stored JPEG stream: the file may hold exactly what was given to its writer. */
Status beton_damaged_image(Status status);

/* Called around everything that touches mapped bytes, in the same thread: pages that are cut off meanwhile read as
 * zeros instead of killing the process, and leaving then gives STATUS_FORMAT, whatever `status` is; otherwise
 * `status`. */
void beton_reader_enter(const BetonReader *reader, Guard *guard);
Status beton_reader_leave(const BetonReader *reader, const Guard *guard, Status status);

/* Whether the file carries checksums of its data (those of its metadata are checked when it is opened). */
bool beton_reader_has_checksums(const BetonReader *reader);

typedef struct BetonVerifyOptions {
    int threads;
    bool decode_jpeg;    /* decode every JPEG instead of comparing its header with the record */
    size_t max_problems; /* how many to keep; all are counted */
} BetonVerifyOptions;

typedef struct BetonProblem {
    uint64_t sample;
    int64_t offset; /* -1: unknown */
    char field[BETON_NAME_BYTES];
    char reason[STATUS_MESSAGE_BYTES];
} BetonProblem;

typedef struct BetonVerifyReport {
    uint64_t num_regions, num_bytes, num_jpeg, num_problems; /* what was checked, and problems found */
    BetonProblem *problems;                                  /* owned, by sample and field */
    size_t kept;
} BetonVerifyReport;

/* Reads all data of samples [first, last): checksums where the file has them, JPEG streams, the end of JSON text. What
 * it finds is in the report, not in the status. */
Status beton_reader_verify(const BetonReader *reader, uint64_t first, uint64_t last, const BetonVerifyOptions *options,
                           BetonVerifyReport *out);
void beton_verify_report_fini(BetonVerifyReport *report);

/* The dtype's size, and its name in NumPy; NULL for any other number. */
size_t beton_dtype_bytes(BetonDtype dtype);
const char *beton_dtype_name(int dtype);

/* "int", "image"... */
const char *beton_kind_name(BetonKind kind);

#endif
