// rooms: base beton image
/* Writer and reader of .beton files against each other: chunks from threads and packed, wrong guesses, pages that grow,
 * damaged chunks, refusals; and the twin of a build without libjpeg-turbo. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/memory.h"
#include "beton/extension.h"
#include "beton/reader.h"
#include "beton/writer.h"
#include "check.h"
#include "image/jpeg.h"
#include "image/resize.h"

#define SAMPLES 500
#define FIELDS 5

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; } /* as malloc does */

static char folder[] = "/tmp/cgxffcv-beton-XXXXXX";
static unsigned char pool_of_bytes[4096];

static BetonFieldSpec spec_of(BetonKind kind, const char *name) {
    BetonFieldSpec spec = {.kind = kind, .smart_threshold = -1, .jpeg_quality = 90};
    snprintf(spec.name, sizeof spec.name, "%s", name);
    return spec;
}

static void make_specs(BetonFieldSpec *specs) {
    specs[0] = spec_of(BETON_IMAGE, "image");
    specs[1] = spec_of(BETON_INT, "label");
    specs[2] = spec_of(BETON_BYTES, "bytes");
    specs[3] = spec_of(BETON_ARRAY, "array");
    specs[3].dtype = BETON_I16;
    specs[3].ndim = 2;
    specs[3].shape[0] = 2;
    specs[3].shape[1] = 3;
    specs[4] = spec_of(BETON_CUSTOM, "custom");
    specs[4].custom = (BetonCustom){.record_bytes = 20, .record_alignment = 4, .pointer_offset = 4, .size_offset = 12};
}

static void make_row(uint64_t sample, BetonValue *row) {
    uint32_t width = 1 + sample % 7, height = 1 + sample % 5;
    row[0] = (BetonValue){.source = BETON_SOURCE_PIXELS,
                          .data = pool_of_bytes + sample % 100,
                          .width = width,
                          .height = height,
                          .stride = sample % 2 ? width * 3 : width * 3 + 4};
    row[1] = (BetonValue){.integer = (int64_t)sample * 7};
    row[2] = (BetonValue){.source = BETON_SOURCE_BYTES, .data = pool_of_bytes + sample, .size = sample % 40};
    row[3] = (BetonValue){.source = BETON_SOURCE_BYTES, .data = pool_of_bytes + sample, .size = 12};
    row[4] = (BetonValue){.source = BETON_SOURCE_BYTES,
                          .data = pool_of_bytes + 2 * sample,
                          .size = sample % 3,
                          .record = pool_of_bytes + sample};
}

typedef struct Recipe {
    uint64_t expected;
    size_t chunk;
    int threads;
    bool packed, checksums;
    uint64_t page;
} Recipe;

static Status append(BetonWriter *writer, const BetonChunk *chunk, bool packed) {
    unsigned char *bytes = NULL;
    if (!packed) return beton_writer_append(writer, chunk);
    uint64_t size = beton_chunk_packed_bytes(chunk);
    TRY(memory_alloc((size_t)size, 1, &bytes));
    beton_chunk_pack(chunk, bytes);
    Status status = beton_writer_append_packed(writer, bytes, size);
    memory_free(bytes);
    return status;
}

static Status write_file(const char *path, Recipe recipe) {
    Status status = STATUS_OK;
    BetonSchema *schema = NULL;
    BetonEncoder *encoder = NULL;
    BetonWriter *writer = NULL;
    BetonFieldSpec specs[FIELDS];
    BetonValue *values = NULL;
    BetonWriterResult result;
    BetonWriterOptions options = {.page_size = recipe.page,
                                  .small_pages = true,
                                  .checksums = recipe.checksums,
                                  .expected_samples = recipe.expected,
                                  .threads = recipe.threads};
    make_specs(specs);
    TRY_GOTO(memory_calloc(recipe.chunk * FIELDS, sizeof *values, &values));
    TRY_GOTO(beton_schema_create(specs, FIELDS, &schema));
    TRY_GOTO(beton_encoder_create(schema, 0, recipe.threads, false, &encoder));
    TRY_GOTO(beton_writer_create(path, schema, &options, &writer));
    for (uint64_t first = 0; first < SAMPLES; first += recipe.chunk) {
        size_t count = SAMPLES - first < recipe.chunk ? SAMPLES - first : recipe.chunk;
        const BetonChunk *chunk;
        for (size_t i = 0; i < count; i++) make_row(first + i, values + i * FIELDS);
        TRY_GOTO(beton_encoder_run(encoder, first, values, count, &chunk));
        TRY_GOTO(append(writer, chunk, recipe.packed));
    }
    BetonWriter *finished = writer;
    writer = NULL;
    TRY_GOTO(beton_writer_commit(finished, &result));
    CHECK(result.num_samples == SAMPLES);
done:
    beton_writer_abort(writer);
    beton_encoder_destroy(encoder);
    beton_schema_destroy(schema);
    memory_free(values);
    return status;
}

static void check_sample(const BetonReader *reader, uint64_t sample) {
    BetonValue row[FIELDS];
    BetonImage image;
    BetonRegion region;
    BetonSpan span;
    int64_t label;
    make_row(sample, row);
    CHECK_OK(beton_reader_image(reader, 0, sample, &image));
    CHECK(image.mode == BETON_IMAGE_RAW && image.width == row[0].width && image.height == row[0].height);
    for (uint32_t y = 0; y < image.height; y++) {
        const unsigned char *line = (const unsigned char *)row[0].data + y * row[0].stride;
        CHECK(memcmp(image.region.data + (size_t)y * image.width * 3, line, (size_t)image.width * 3) == 0);
    }
    CHECK_OK(beton_reader_int(reader, 1, sample, &label));
    CHECK(label == (int64_t)sample * 7);
    for (size_t field = 2; field < FIELDS; field++) {
        CHECK_OK(beton_reader_region(reader, field, sample, &region));
        CHECK(region.size == row[field].size);
        CHECK(region.size == 0 || memcmp(region.data, row[field].data, (size_t)region.size) == 0);
    }
    CHECK_OK(beton_reader_sample_span(reader, sample, &span));
    CHECK(span.begin / beton_reader_page_size(reader) == (span.end - 1) / beton_reader_page_size(reader));
    CHECK(beton_reader_int(reader, 0, sample, &label) == STATUS_TYPE);
    CHECK(beton_reader_region(reader, 1, sample, &region) == STATUS_TYPE);
}

/* What reads as zeros where bytes are missing must not be judged by what the zeros say. */
static void check_cut(const char *path, const BetonReader *reader) {
    Guard guard;
    BetonColumn column;
    struct stat info;
    CHECK_OK(beton_reader_column(reader, 1, &column));
    const volatile unsigned char *last = column.data + (SAMPLES - 1) * column.stride;
    CHECK(stat(path, &info) == 0 && *last != 0);
    beton_reader_enter(reader, &guard);
    CHECK(truncate(path, 100) == 0);
    CHECK(*last == 0);
    CHECK(beton_reader_leave(reader, &guard, error_fail(STATUS_FORMAT, "zeros")) == STATUS_FORMAT);
    CHECK(strstr(error_record()->message, "shorter since it was opened: 100 bytes of") != NULL);
    CHECK(truncate(path, info.st_size) == 0);
    beton_reader_enter(reader, &guard);
    CHECK(beton_reader_leave(reader, &guard, error_fail(STATUS_TYPE, "zeros")) == STATUS_FORMAT);
    CHECK(strstr(error_record()->message, "shorter for a while") != NULL);
}

static void check_file(const char *path, bool checksums) {
    BetonReader *reader = NULL;
    const BetonCustom custom = {
        .name = "custom", .record_bytes = 20, .record_alignment = 4, .pointer_offset = 4, .size_offset = 12};
    BetonVerifyOptions options = {.threads = 3, .max_problems = 5};
    BetonVerifyReport report;
    int64_t labels[SAMPLES], label;
    CHECK(beton_reader_open(path, NULL, 0, &reader) == STATUS_FORMAT);
    CHECK_OK(beton_reader_open(path, &custom, 1, &reader));
    CHECK(beton_reader_num_samples(reader) == SAMPLES && beton_reader_has_checksums(reader) == checksums);
    CHECK(beton_reader_find_field(reader, "array") == 3 && beton_reader_find_field(reader, "none") == -1);
    for (uint64_t sample = 0; sample < SAMPLES; sample++) check_sample(reader, sample);
    CHECK_OK(beton_reader_ints(reader, 1, 0, SAMPLES, labels));
    CHECK(labels[SAMPLES - 1] == (SAMPLES - 1) * 7);
    CHECK(beton_reader_ints(reader, 1, 1, SAMPLES, labels) == STATUS_INDEX);
    CHECK(beton_reader_ints(reader, 1, UINT64_MAX, 2, labels) == STATUS_INDEX);
    CHECK(beton_reader_int(reader, 1, SAMPLES, &label) == STATUS_INDEX);
    CHECK(beton_reader_int(reader, FIELDS, 0, &label) == STATUS_INDEX);
    CHECK_OK(beton_reader_verify(reader, 0, SAMPLES, &options, &report));
    CHECK(report.num_regions == 4 * SAMPLES && report.num_problems == 0);
    beton_verify_report_fini(&report);
    CHECK(beton_reader_verify(reader, 0, SAMPLES + 1, &options, &report) == STATUS_INDEX);
    BetonSpan data = beton_reader_data_span(reader);
    beton_reader_read_ahead(reader, data);
    beton_reader_read_ahead(reader, (BetonSpan){UINT64_MAX - 5, UINT64_MAX});
    check_cut(path, reader);
    beton_reader_close(reader);
}

static uint64_t hash_of_file(const char *path) {
    uint64_t hash = 1;
    FILE *file = fopen(path, "rb");
    for (int byte; file != NULL && (byte = getc(file)) != EOF;) hash = (hash ^ (uint64_t)byte) * 0x100000001B3ULL;
    if (file != NULL) fclose(file);
    return hash;
}

static void test_round_trips(void) {
    char path[64];
    uint64_t hashes[2] = {0, 0};
    const Recipe recipes[] = {
        {SAMPLES, SAMPLES, 1, false, false, 1024}, {SAMPLES, 7, 3, false, false, 1024}, {0, 50, 2, true, false, 1024},
        {90000, 13, 1, true, false, 1024},         {SAMPLES, 64, 2, false, true, 1024}, {0, 1, 2, true, true, 1024},
    };
    snprintf(path, sizeof path, "%s/x.beton", folder);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        CHECK_OK(write_file(path, recipes[i]));
        uint64_t hash = hash_of_file(path), *first = &hashes[recipes[i].checksums];
        if (*first == 0) *first = hash;
        CHECK(hash == *first);
        check_file(path, recipes[i].checksums);
    }
    /* pages of 16 bytes grow until every sample fits, and the data is laid out again */
    CHECK_OK(write_file(path, (Recipe){3, 11, 2, false, false, 16}));
    uint64_t grown = hash_of_file(path);
    check_file(path, false);
    CHECK_OK(write_file(path, (Recipe){SAMPLES, SAMPLES, 1, false, false, 256}));
    CHECK(hash_of_file(path) == grown);
    check_file(path, false);
}

static void test_refusals(void) {
    BetonSchema *schema = NULL;
    BetonFieldSpec specs[FIELDS];
    make_specs(specs);
    CHECK(beton_schema_create(specs, 0, &schema) == STATUS_ARGUMENT);
    CHECK(beton_schema_create(specs, 65536, &schema) == STATUS_ARGUMENT);
    specs[1].name[0] = '\0';
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    memset(specs[1].name, 'x', sizeof specs[1].name);
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    make_specs(specs);
    specs[3].shape[1] = 0;
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    specs[3].shape[1] = UINT64_MAX;
    CHECK(beton_schema_create(specs, FIELDS, &schema) != STATUS_OK);
    make_specs(specs);
    specs[4].custom.pointer_offset = 13;
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    make_specs(specs);
    specs[4].custom.size_offset = 11; /* over the pointer's last byte */
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    make_specs(specs);
    specs[4].custom.record_alignment = 3;
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    for (int i = 0; i < FIELDS; i++) { /* records that end beyond 4 GiB */
        specs[i].kind = BETON_CUSTOM;
        specs[i].custom = (BetonCustom){.record_bytes = UINT32_MAX, .record_alignment = 1, .pointer_offset = -1};
        specs[i].custom.size_offset = -1;
    }
    CHECK(beton_schema_create(specs, FIELDS, &schema) == STATUS_ARGUMENT);
    make_specs(specs);
    BetonWriter *writer = NULL;
    CHECK_OK(beton_schema_create(specs, FIELDS, &schema));
    const uint64_t pages[] = {0, 3, 1 << 20, (UINT64_C(1) << 31), (2 << 20) + 1};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        BetonWriterOptions options = {.page_size = pages[i], .threads = 1};
        CHECK(beton_writer_create("/proc/never", schema, &options, &writer) == STATUS_ARGUMENT);
    }
    BetonWriterOptions huge = {.page_size = 2 << 20, .threads = 1, .expected_samples = UINT64_MAX / 2};
    CHECK(beton_writer_create("/proc/never", schema, &huge, &writer) == STATUS_ARGUMENT);
    huge.expected_samples = UINT64_C(1) << 50;
    CHECK(beton_writer_create("/proc/never", schema, &huge, &writer) == STATUS_MEMORY);
    CHECK(access("/proc/never", F_OK) != 0);
    beton_schema_destroy(schema);
}

/* A packed chunk with any byte of its lengths changed, or cut anywhere, is refused or harmless. */
static void test_damaged_chunks(void) {
    char path[64];
    BetonSchema *schema = NULL;
    BetonEncoder *encoder = NULL;
    BetonFieldSpec specs[FIELDS];
    BetonValue values[3 * FIELDS];
    const BetonChunk *chunk;
    unsigned char *bytes = NULL, *copy = NULL;
    BetonWriterOptions options = {.page_size = 1 << 20, .small_pages = true, .threads = 1};
    snprintf(path, sizeof path, "%s/damaged.beton", folder);
    make_specs(specs);
    CHECK_OK(beton_schema_create(specs, FIELDS, &schema));
    CHECK_OK(beton_encoder_create(schema, 0, 1, false, &encoder));
    for (uint64_t i = 0; i < 3; i++) make_row(i, values + i * FIELDS);
    CHECK_OK(beton_encoder_run(encoder, 0, values, 3, &chunk));
    uint64_t size = beton_chunk_packed_bytes(chunk);
    CHECK_OK(memory_alloc((size_t)size, 1, &bytes));
    beton_chunk_pack(chunk, bytes);
    for (uint64_t at = 0; at < 2 * size; at++) {
        BetonWriter *writer = NULL;
        uint64_t length = at < size ? at : size;
        CHECK_OK(memory_alloc((size_t)length + 1, 1, &copy));
        memcpy(copy, bytes, length);
        if (at >= size) copy[at - size] ^= 0x81;
        CHECK_OK(beton_writer_create(path, schema, &options, &writer));
        Status status = beton_writer_append_packed(writer, copy, length);
        CHECK(status == STATUS_ARGUMENT || at >= size);
        beton_writer_abort(writer);
        memory_free(copy);
    }
    CHECK(access(path, F_OK) != 0);
    memory_free(bytes);
    beton_encoder_destroy(encoder);
    beton_schema_destroy(schema);
}

/* The file's extension block with another number at `at`, and the checksum that then goes with it. */
static void patch_block(const char *path, size_t at, uint64_t add) {
    FILE *file = fopen(path, "r+b");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    size_t size = (size_t)ftell(file);
    unsigned char *bytes = NULL, *block;
    CHECK_OK(memory_alloc(size, 1, &bytes));
    rewind(file);
    CHECK(fread(bytes, 1, size, file) == size);
    block = memmem(bytes, size, EXTENSION_MAGIC, EXTENSION_MAGIC_BYTES);
    CHECK(block != NULL);
    store_u64(block + at, load_u64(block + at) + add);
    store_u64(block + EXTENSION_AT_SELF, hash_bytes(block, EXTENSION_AT_SELF, 0));
    rewind(file);
    CHECK(fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    memory_free(bytes);
}

static void test_extension_blocks(void) {
    char path[64];
    BetonReader *reader = NULL;
    const BetonCustom custom = {
        .name = "custom", .record_bytes = 20, .record_alignment = 4, .pointer_offset = 4, .size_offset = 12};
    snprintf(path, sizeof path, "%s/x.beton", folder);
    CHECK_OK(write_file(path, (Recipe){SAMPLES, 64, 2, false, true, 1024}));
    patch_block(path, EXTENSION_AT_VERSION, 1); /* of a later writer: not used */
    CHECK_OK(beton_reader_open(path, &custom, 1, &reader));
    CHECK(!beton_reader_has_checksums(reader));
    beton_reader_close(reader);
    patch_block(path, EXTENSION_AT_VERSION, UINT64_MAX);
    CHECK_OK(beton_reader_open(path, &custom, 1, &reader));
    CHECK(beton_reader_has_checksums(reader));
    beton_reader_close(reader);
    patch_block(path, EXTENSION_AT_NUM_REGIONS, 1);
    CHECK(beton_reader_open(path, &custom, 1, &reader) == STATUS_FORMAT);
    CHECK(strstr(error_record()->message, "regions") != NULL);
    patch_block(path, EXTENSION_AT_NUM_REGIONS, UINT64_MAX - 1);
    CHECK(beton_reader_open(path, &custom, 1, &reader) == STATUS_FORMAT);
    CHECK(strstr(error_record()->message, "regions") != NULL);
}

static void test_bad_samples(void) {
    BetonSchema *schema = NULL;
    BetonEncoder *encoder = NULL;
    BetonFieldSpec specs[FIELDS];
    BetonValue values[60 * FIELDS];
    const BetonChunk *chunk;
    const BetonSkip *skips;
    size_t count;
    make_specs(specs);
    CHECK_OK(beton_schema_create(specs, FIELDS, &schema));
    for (uint64_t i = 0; i < 60; i++) make_row(i, values + i * FIELDS);
    for (uint64_t i = 10; i < 60; i += 10) values[i * FIELDS + 3].size = 13;
    values[33 * FIELDS] = (BetonValue){.source = BETON_SOURCE_BAD, .data = "no such thing", .integer = -1};
    values[34 * FIELDS] = (BetonValue){.source = BETON_SOURCE_BAD, .data = "nor this", .integer = 2};
    values[35 * FIELDS + 1].source = BETON_SOURCE_BYTES; /* of another type */
    CHECK_OK(beton_encoder_create(schema, 0, 3, false, &encoder));
    CHECK(beton_encoder_run(encoder, 1000, values, 60, &chunk) == STATUS_FORMAT);
    CHECK(error_record()->sample == 1010 && strcmp(error_record()->field, "array") == 0);
    beton_encoder_destroy(encoder);
    CHECK_OK(beton_encoder_create(schema, 0, 3, true, &encoder));
    CHECK_OK(beton_encoder_run(encoder, 1000, values, 60, &chunk));
    skips = beton_chunk_skips(chunk, &count);
    const uint64_t wanted[] = {1010, 1020, 1030, 1033, 1034, 1035, 1040, 1050};
    CHECK(count == 8);
    for (size_t i = 0; i < count && i < 8; i++) CHECK(skips[i].index == wanted[i]);
    CHECK(strcmp(skips[3].field, "") == 0 && strcmp(skips[3].reason, "no such thing") == 0);
    CHECK(strcmp(skips[4].field, "bytes") == 0 && strcmp(skips[4].reason, "nor this") == 0);
    CHECK_OK(beton_encoder_run(encoder, 0, values, 0, &chunk));
    beton_encoder_destroy(encoder);
    beton_schema_destroy(schema);
}

static void test_without_libjpeg(void) {
    JpegDecoder *decoder = NULL;
    JpegEncoder *encoder = NULL;
    CHECK(jpeg_decoder_create(&decoder) == STATUS_NOT_BUILT && jpeg_encoder_create(&encoder) == STATUS_NOT_BUILT);
    CHECK(strstr(error_record()->message, "apt install libjpeg-dev") != NULL);
    jpeg_decoder_destroy(NULL);
    jpeg_encoder_destroy(NULL);
}

/* Strided source and target, nothing written outside. */
static void test_resize_within_larger_images(void) {
    Resizer *resizer = NULL;
    uint8_t from[20 * 40], to[8 * 32], tight[5 * 4 * 3];
    for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)(i * 37);
    memset(to, 0xEE, sizeof to);
    CHECK_OK(resizer_create(&resizer));
    CHECK_OK(resizer_begin(resizer, RESIZE_AREA, (ImageSize){9, 11}, (ImageSize){4, 5}, to + 32 + 3, 32));
    resizer_push(resizer, from + 2 * 40 + 3, 40, 11);
    uint8_t crop[9 * 11 * 3];
    for (size_t y = 0; y < 11; y++) memcpy(crop + y * 27, from + (y + 2) * 40 + 3, 27);
    CHECK_OK(resizer_begin(resizer, RESIZE_AREA, (ImageSize){9, 11}, (ImageSize){4, 5}, tight, 12));
    for (size_t y = 0; y < 11; y++) resizer_push(resizer, crop + y * 27, 27, 1);
    for (size_t i = 0; i < sizeof to; i++) {
        size_t y = i / 32 - 1, x = i % 32 - 3;
        CHECK(to[i] == (y < 5 && x < 12 ? tight[y * 12 + x] : 0xEE));
    }
    CHECK(resizer_begin(resizer, RESIZE_AREA, (ImageSize){0, 1}, (ImageSize){1, 1}, to, 32) == STATUS_ARGUMENT);
    CHECK(resizer_begin(resizer, RESIZE_AREA, (ImageSize){1, 1}, (ImageSize){1, 65536}, to, 32) == STATUS_ARGUMENT);
    resizer_destroy(resizer);
}

int main(void) {
    char command[80];
    CHECK(mkdtemp(folder) != NULL);
    for (size_t i = 0; i < sizeof pool_of_bytes; i++) pool_of_bytes[i] = (unsigned char)(i * 131 + (i >> 5));
    test_round_trips();
    test_refusals();
    test_damaged_chunks();
    test_extension_blocks();
    test_bad_samples();
    test_without_libjpeg();
    test_resize_within_larger_images();
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    return check_result();
}
