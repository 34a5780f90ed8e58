// rooms: base beton image, with jpeg
/* A .beton file of any bytes: opened, every value fetched and read to its last byte, verified with all JPEG streams
 * decoded. The mutator puts the checksums of the extension block right again, or nothing behind them would be seen. */
#include "beton/extension.h"
#include "beton/reader.h"
#include "fuzz.h"

#define MOST_VALUES 2000
#define MOST_PIXELS (1 << 18) /* of an image that is decoded here: larger ones cost time and show nothing more */

static const BetonCustom customs[] = {
    {"c0", 24, 8, 8, 16}, {"c1", 5, 1, -1, -1}, {"c2", 8, 8, 0, -1}, {"c3", 17, 1, 0, 9}};
#define NUM_CUSTOMS (sizeof customs / sizeof *customs)

static Victim file_of(const uint8_t *data, size_t size) {
    static Victim victim;
    if (victim.path[0] == '\0') {
        victim.descriptor = memfd_create("victim", MFD_CLOEXEC);
        snprintf(victim.path, sizeof victim.path, "/proc/self/fd/%d", victim.descriptor);
    }
    if (ftruncate(victim.descriptor, (off_t)size) != 0) WRONG("ftruncate");
    victim_put(&victim, data, size, 0);
    return victim;
}

static void read_value(const BetonReader *reader, size_t index, uint64_t sample) {
    const BetonField *field = beton_reader_field(reader, index);
    BetonRegion region = {0};
    BetonImage image;
    int64_t integer;
    double number;
    Status status;
    switch (field->kind) {
    case BETON_INT:
        status = beton_reader_ints(reader, index, sample, 1, &integer);
        break;
    case BETON_FLOAT:
        status = beton_reader_floats(reader, index, sample, 1, &number);
        break;
    case BETON_IMAGE:
        status = beton_reader_image(reader, index, sample, &image);
        if (status == STATUS_OK) region = image.region;
        break;
    default:
        if (!field->has_data) return;
        status = beton_reader_region(reader, index, sample, &region);
    }
    if (status != STATUS_OK) {
        expect_refusal(status);
        return;
    }
    if (region.size > field->max_bytes) WRONG("a region of %lu bytes, max_bytes %lu", region.size, field->max_bytes);
    touch(region.data, region.size);
}

static void read_all(const BetonReader *reader) {
    uint64_t samples = beton_reader_num_samples(reader);
    size_t fields = beton_reader_num_fields(reader);
    for (size_t i = 0; i < fields; i++) {
        const BetonField *field = beton_reader_field(reader, i);
        BetonColumn column;
        if (beton_reader_column(reader, i, &column) != STATUS_OK) WRONG("no column of field %zu", i);
        if (beton_reader_find_field(reader, field->name) != (int64_t)i) WRONG("field %zu is not found", i);
        for (uint64_t s = 0; s < samples && s * fields < MOST_VALUES; s++) {
            BetonSpan span;
            touch(column.data + s * column.stride, field->record_bytes);
            read_value(reader, i, s);
            Status status = beton_reader_sample_span(reader, s, &span);
            if (status != STATUS_OK) {
                expect_refusal(status);
                continue;
            }
            if (span.begin > span.end || span.end > reader->size) WRONG("a span of %lu to %lu", span.begin, span.end);
        }
    }
}

static void verify(const BetonReader *reader) {
    BetonVerifyReport report;
    BetonVerifyOptions options = {.threads = 1, .decode_jpeg = true, .max_problems = 3};
    uint64_t samples = beton_reader_num_samples(reader);
    for (size_t i = 0; i < beton_reader_num_fields(reader); i++) {
        const BetonField *field = beton_reader_field(reader, i);
        if ((uint64_t)field->max_width * field->max_height > MOST_PIXELS) options.decode_jpeg = false;
    }
    if (samples * beton_reader_num_fields(reader) > MOST_VALUES) return;
    Status status = beton_reader_verify(reader, 0, samples, &options, &report);
    if (status != STATUS_OK) WRONG("verify: %s", error_record()->message);
    beton_verify_report_fini(&report);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Victim victim = file_of(data, size);
    BetonReader *reader = NULL;
    Status status = beton_reader_open(victim.path, customs, NUM_CUSTOMS, &reader);
    if (status != STATUS_OK) {
        expect_refusal(status);
        return 0;
    }
    read_all(reader);
    verify(reader);
    beton_reader_close(reader);
    return 0;
}

/* Where a block's header stands, or NULL. As beton_extension_open, which would refuse it. */
static unsigned char *find_block(const BetonReader *reader) {
    uint64_t begin = (reader->metadata_end + EXTENSION_ALIGNMENT - 1) / EXTENSION_ALIGNMENT * EXTENSION_ALIGNMENT;
    unsigned char *base = (unsigned char *)(uintptr_t)reader->map;
    unsigned char *arguments = base + BETON_HEADER_BYTES + BETON_DESCRIPTOR_ARGUMENTS + EXTENSION_IN_ARGUMENTS;
    if (begin + EXTENSION_HEADER_BYTES <= reader->table && memcmp(base + begin, EXTENSION_MAGIC, 8) == 0) {
        return base + begin;
    }
    return memcmp(arguments, EXTENSION_MAGIC, 8) == 0 ? arguments : NULL;
}

/* `head` has room for the file's head. */
static void repair_block(const BetonReader *reader, unsigned char *block, unsigned char *head) {
    uint64_t at = (uint64_t)(block - reader->map), count = at < reader->metadata ? 0 : reader->num_entries;
    if (at + beton_extension_bytes(count) > reader->size) return;
    memcpy(head, reader->map, reader->metadata);
    if (at < reader->metadata) memset(head + at, 0, EXTENSION_HEADER_BYTES);
    ExtensionContent content = {head,
                                reader->metadata,
                                reader->map + reader->metadata,
                                reader->metadata_end - reader->metadata,
                                reader->map + reader->table,
                                reader->num_entries * BETON_ENTRY_BYTES};
    uint64_t *regions = malloc(count * 8 + 1);
    memcpy(regions, block + EXTENSION_HEADER_BYTES, count * 8);
    beton_extension_build(&content, regions, count, block);
    free(regions);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (seed % 8 == 0) return size; /* a wrong checksum, too, must be seen to */
    Victim victim = file_of(data, size);
    BetonReader reader = {.path = victim.path, .map = data, .size = size};
    if (beton_reader_validate_head(&reader, customs, NUM_CUSTOMS) == STATUS_OK) {
        unsigned char *block = find_block(&reader), *head = malloc(reader.metadata);
        if (block != NULL) repair_block(&reader, block, head);
        free(head);
    }
    free(reader.fields);
    return size;
}
