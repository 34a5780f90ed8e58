// rooms: base beton image, with jpeg
/* What a writer is given: the input is read as a program that makes a schema, options and samples. Whatever is accepted
 * is written, read back and compared with what was given; chunks go directly or packed, as from another process, and
 * the rest of the input goes in as a packed chunk that no process made. */
#include "beton/chunk.h"
#include "fuzz.h"

#include "beton/writer.h"

#define MAX_FIELDS 4
#define MAX_SAMPLES 6
#define MAX_DATA 256 /* bytes of a value */

typedef struct Input {
    const uint8_t *at, *end;
} Input;

/* The next `size` bytes as a number; zeros after the end. */
static uint64_t take(Input *input, int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value = value << 8 | (input->at < input->end ? *input->at++ : 0);
    return value;
}

/* A number that is small most of the time. */
static uint64_t take_size(Input *input, uint64_t most) {
    uint64_t first = take(input, 1);
    return first == 0xFF ? take(input, 8) : first % (most + 1);
}

static void take_spec(Input *input, size_t index, BetonFieldSpec *spec) {
    static const BetonKind kinds[] = {BETON_FLOAT, BETON_INT,  BETON_IMAGE,  BETON_BYTES,
                                      BETON_ARRAY, BETON_JSON, BETON_TENSOR, BETON_CUSTOM};
    unsigned kind = (unsigned)take(input, 1);
    spec->kind = kind < 0xF0 ? kinds[kind % 8] : (BetonKind)kind;
    snprintf(spec->name, sizeof spec->name, "f%u", (unsigned)index % MAX_FIELDS);
    if (take(input, 1) == 0xFF) spec->name[take(input, 1) % BETON_NAME_BYTES] = (char)take(input, 1);
    spec->write_mode = (BetonWriteMode)(take(input, 1) % 6);
    spec->max_resolution = (uint32_t)take_size(input, 40);
    spec->smart_threshold = (int64_t)(take_size(input, 200) - 1);
    spec->jpeg_quality = (int)take(input, 1) % 103;
    spec->compress_probability = (double)take(input, 1) / 200;
    spec->dtype = (BetonDtype)(take(input, 1) % (BETON_DTYPES + 1));
    spec->ndim = (int)(take_size(input, 3) % 40);
    for (int i = 0; i < BETON_MAX_DIMS; i++) spec->shape[i] = i < spec->ndim ? take_size(input, 4) : 0;
    spec->custom.record_bytes = (uint32_t)(take_size(input, 40) & 0xFFFFF);
    spec->custom.record_alignment = (uint32_t)1 << (take(input, 1) % 5);
    spec->custom.pointer_offset = (int64_t)(take_size(input, 33) - 1);
    spec->custom.size_offset = (int64_t)(take_size(input, 33) - 1);
}

/* Memory of exactly the size, so that the sanitizer sees a read beyond it; kept until free_values. */
typedef struct Blocks {
    void *all[MAX_FIELDS * MAX_SAMPLES * 2];
    size_t count;
} Blocks;

static uint8_t *take_block(Input *input, Blocks *blocks, size_t size) {
    uint8_t *block = malloc(size + (size == 0));
    for (size_t i = 0; i < size; i++) block[i] = (uint8_t)take(input, i < 64);
    blocks->all[blocks->count++] = block;
    return block;
}

static void take_pixels(Input *input, Blocks *blocks, BetonValue *value) {
    value->source = BETON_SOURCE_PIXELS;
    value->width = (uint32_t)take(input, 1) % 48;
    value->height = (uint32_t)take(input, 1) % 48;
    value->stride = (size_t)value->width * 3 + take(input, 1) % 8;
    value->data = take_block(input, blocks, value->stride * value->height);
}

/* A value that fits its field in most cases. */
static void take_value(Input *input, Blocks *blocks, const BetonFieldSpec *spec, const BetonField *field,
                       BetonValue *value) {
    unsigned how = (unsigned)take(input, 1);
    *value = (BetonValue){.source = BETON_SOURCE_SCALAR, .integer = (int64_t)take(input, 8)};
    memcpy(&value->number, &value->integer, sizeof value->number);
    if (spec->kind == BETON_IMAGE && how < 200) {
        take_pixels(input, blocks, value);
    } else if (how >= 250) {
        *value = (BetonValue){.source = BETON_SOURCE_BAD, .integer = -1, .data = "the target says so"};
    } else if (field->has_data) {
        bool array = spec->kind == BETON_ARRAY || spec->kind == BETON_TENSOR;
        value->source = how >= 240 ? BETON_SOURCE_JPEG : BETON_SOURCE_BYTES;
        value->size = array && field->value_bytes < MAX_DATA && how < 200 ? field->value_bytes : take(input, 1);
        uint8_t *block = take_block(input, blocks, (size_t)value->size);
        if (spec->kind == BETON_JSON && value->size != 0 && how < 200) block[value->size - 1] = 0;
        value->data = block;
    }
    if (spec->kind == BETON_CUSTOM && how < 240) {
        value->record = take_block(input, blocks, spec->custom.record_bytes);
    }
}

static bool bytes_equal(const void *left, const void *right, uint64_t size) {
    return size == 0 || memcmp(left, right, size) == 0;
}

/* The value as it stands in the file against what was given; images that may be JPEG by their size alone. */
static void compare(const BetonReader *reader, size_t index, uint64_t sample, const BetonValue *given) {
    const BetonField *field = beton_reader_field(reader, index);
    int64_t integer;
    double number;
    BetonImage image;
    BetonRegion region;
    Status status = STATUS_OK;
    bool same = true;
    if (field->kind == BETON_INT) {
        status = beton_reader_int(reader, index, sample, &integer);
        same = integer == given->integer;
    } else if (field->kind == BETON_FLOAT) {
        status = beton_reader_float(reader, index, sample, &number);
        same = memcmp(&number, &given->number, sizeof number) == 0;
    } else if (field->kind == BETON_IMAGE) {
        status = beton_reader_image(reader, index, sample, &image);
        bool plain = image.mode == BETON_IMAGE_RAW && given->source == BETON_SOURCE_PIXELS;
        if (plain && image.width == given->width && image.height == given->height) {
            size_t row = (size_t)image.width * 3;
            for (uint32_t y = 0; y < image.height && same; y++) {
                same = memcmp(image.region.data + y * row, (const uint8_t *)given->data + y * given->stride, row) == 0;
            }
        }
    } else if (field->has_data) {
        status = beton_reader_region(reader, index, sample, &region);
        uint64_t wanted = given->size - (field->kind == BETON_JSON);
        same = region.size == wanted && bytes_equal(region.data, given->data, wanted);
    }
    if (status != STATUS_OK) WRONG("sample %lu field %zu: %s", sample, index, error_record()->message);
    if (!same) WRONG("sample %lu field %zu is not what was given", sample, index);
}

typedef struct Case {
    BetonFieldSpec specs[MAX_FIELDS];
    size_t num_fields, num_samples;
    BetonValue values[MAX_FIELDS * MAX_SAMPLES];
    Blocks blocks;
    bool packed, skip_bad;
    BetonWriterOptions options;
} Case;

static const char *target_path(void) {
    static char path[64];
    if (path[0] == '\0') snprintf(path, sizeof path, "/dev/shm/fuzzed-%d.beton", (int)getpid());
    return path;
}

static void read_back(const Case *one, const BetonSkip *skips, size_t num_skips) {
    BetonCustom customs[MAX_FIELDS];
    size_t num_customs = 0;
    BetonReader *reader = NULL;
    for (size_t i = 0; i < one->num_fields; i++) {
        if (one->specs[i].kind != BETON_CUSTOM) continue;
        customs[num_customs] = one->specs[i].custom;
        memcpy(customs[num_customs++].name, one->specs[i].name, BETON_NAME_BYTES);
    }
    if (beton_reader_open(target_path(), customs, num_customs, &reader) != STATUS_OK) {
        WRONG("a file of ours is refused: %s", error_record()->message);
    }
    uint64_t sample = 0;
    for (size_t i = 0, skip = 0; i < one->num_samples; i++) {
        if (skip < num_skips && skips[skip].index == i) {
            skip++;
            continue;
        }
        for (size_t f = 0; f < one->num_fields; f++) compare(reader, f, sample, &one->values[i * one->num_fields + f]);
        sample++;
    }
    if (beton_reader_num_samples(reader) != sample) WRONG("%lu samples", beton_reader_num_samples(reader));
    beton_reader_close(reader);
}

static Status append(const Case *one, BetonWriter *writer, const BetonChunk *chunk) {
    if (!one->packed) return beton_writer_append(writer, chunk);
    uint64_t size = beton_chunk_packed_bytes(chunk);
    unsigned char *bytes = malloc(size);
    beton_chunk_pack(chunk, bytes);
    Status status = beton_writer_append_packed(writer, bytes, size);
    free(bytes);
    return status;
}

/* What may go wrong with arguments and samples; the machine is in order. */
static bool refused(Status status) {
    if (status == STATUS_OK) return false;
    if (status == STATUS_ARGUMENT || status == STATUS_TYPE || status == STATUS_FORMAT) return true;
    WRONG("status %d: %s", (int)status, error_record()->message);
}

static void write_case(const Case *one, const BetonSchema *schema, BetonEncoder *encoder, Input rest) {
    const BetonChunk *chunk = NULL;
    BetonWriter *writer = NULL;
    BetonWriterResult result;
    size_t num_skips = 0;
    unlink(target_path());
    if (refused(beton_encoder_run(encoder, 0, one->values, one->num_samples, &chunk))) return;
    const BetonSkip *skips = beton_chunk_skips(chunk, &num_skips);
    if (refused(beton_writer_create(target_path(), schema, &one->options, &writer))) return;
    uint64_t size = (uint64_t)(rest.end - rest.at);
    if (size >= 8 && !refused(beton_writer_append_packed(writer, rest.at, size))) { /* samples that nobody knows */
        beton_writer_abort(writer);
        return;
    }
    if (refused(append(one, writer, chunk))) {
        beton_writer_abort(writer);
        return;
    }
    if (refused(beton_writer_commit(writer, &result))) return;
    if (result.num_samples != chunk->count) WRONG("%lu samples in the result", result.num_samples);
    read_back(one, skips, num_skips);
}

static void take_case(Input *input, Case *one) {
    one->num_fields = 1 + take(input, 1) % MAX_FIELDS;
    one->num_samples = take(input, 1) % (MAX_SAMPLES + 1);
    uint64_t bits = take(input, 1);
    one->packed = bits & 1;
    one->skip_bad = bits & 2;
    one->options =
        (BetonWriterOptions){.page_size = bits & 64 ? take_size(input, 16) : (uint64_t)16 << (take(input, 1) % 9),
                             .small_pages = true,
                             .checksums = bits & 4,
                             .expected_samples = take(input, 1) % 9,
                             .threads = 1};
    for (size_t i = 0; i < one->num_fields; i++) take_spec(input, i, &one->specs[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input input = {data, data + size};
    BetonSchema *schema = NULL;
    BetonEncoder *encoder = NULL;
    Case one = {0};
    take_case(&input, &one);
    if (refused(beton_schema_create(one.specs, one.num_fields, &schema))) return 0;
    for (size_t i = 0; i < one.num_fields * one.num_samples; i++) {
        size_t field = i % one.num_fields;
        take_value(&input, &one.blocks, &one.specs[field], &schema->fields[field], &one.values[i]);
    }
    if (!refused(beton_encoder_create(schema, 1, 1, one.skip_bad, &encoder))) {
        write_case(&one, schema, encoder, input);
    }
    beton_encoder_destroy(encoder);
    beton_schema_destroy(schema);
    for (size_t i = 0; i < one.blocks.count; i++) free(one.blocks.all[i]);
    return 0;
}
