// rooms: base beton image
/* beton FILE strict|lax: every truncation of the file, every single-bit flip of all that is not data, and random
 * damage. Each must give STATUS_FORMAT, at opening or at reading, or a file that reads the same. "lax" is for files
 * without checksums: there a flip may change what the format gives no means to notice (numbers, letters of names, int
 * for float, array for tensor, the length of time that is a dtype of equal size), but nothing else. */
#include "beton/reader.h"
#include "harness.h"

/* All that a file says, in one running hash; FORMAT errors come through. */
typedef struct Digest {
    uint64_t structure; /* counts, sizes, bytes of data */
    uint64_t names, kinds, numbers;
} Digest;

static void mix(uint64_t *hash, const void *bytes, size_t size) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < size; i++) *hash = (*hash ^ at[i]) * 0x100000001B3ULL;
}

static Status digest_image(const BetonReader *reader, size_t field, uint64_t sample, Digest *out) {
    BetonImage image;
    TRY(beton_reader_image(reader, field, sample, &image));
    uint32_t form[] = {image.mode, image.width, image.height};
    uint64_t size = image.region.size;
    mix(&out->structure, form, sizeof form);
    if (image.mode == BETON_IMAGE_JPEG) {
        JpegInfo info;
        TRY(jpeg_parse_header(image.region.data, size, &info));
        if (info.width != image.width || info.height != image.height) {
            FAIL(STATUS_FORMAT, "the record's size is not the stream's");
        }
        /* what a decoder sees: up to the end marker (entropy-coded data has none within) */
        for (size = 2; size <= image.region.size && !jpeg_has_end(image.region.data + size - 2, 2);) size++;
        if (size > image.region.size) FAIL(STATUS_FORMAT, "no end marker");
    }
    mix(&out->structure, image.region.data, size);
    return STATUS_OK;
}

static Status digest_value(const BetonReader *reader, size_t index, uint64_t sample, Digest *out) {
    const BetonField *field = beton_reader_field(reader, index);
    BetonRegion region;
    int64_t integer;
    double number;
    BetonSpan span;
    TRY(beton_reader_sample_span(reader, sample, &span));
    switch (field->kind) {
    case BETON_INT:
        TRY(beton_reader_int(reader, index, sample, &integer));
        mix(&out->numbers, &integer, sizeof integer);
        return STATUS_OK;
    case BETON_FLOAT:
        TRY(beton_reader_float(reader, index, sample, &number));
        mix(&out->numbers, &number, sizeof number);
        return STATUS_OK;
    case BETON_IMAGE:
        return digest_image(reader, index, sample, out);
    default:
        TRY(beton_reader_region(reader, index, sample, &region));
        mix(&out->structure, &region.size, sizeof region.size);
        mix(&out->structure, region.data, region.size);
        return STATUS_OK;
    }
}

static Status digest_of(const BetonReader *reader, Digest *out) {
    uint64_t samples = beton_reader_num_samples(reader);
    *out = (Digest){1, 1, 1, 1};
    mix(&out->structure, &samples, sizeof samples);
    for (size_t i = 0; i < beton_reader_num_fields(reader); i++) {
        const BetonField *field = beton_reader_field(reader, i);
        mix(&out->names, field->name, sizeof field->name);
        mix(&out->kinds, &field->kind, sizeof field->kind);
        mix(&out->kinds, &field->dtype, sizeof field->dtype);
        /* without samples there are no values to change */
        mix(samples != 0 ? &out->structure : &out->kinds, &field->value_bytes, sizeof field->value_bytes);
        mix(samples != 0 ? &out->structure : &out->kinds, &field->has_data, sizeof field->has_data);
        mix(&out->kinds, &field->ndim, sizeof field->ndim);
        mix(&out->kinds, field->shape, sizeof field->shape);
        for (uint64_t s = 0; s < samples; s++) TRY(digest_value(reader, i, s, out));
    }
    return STATUS_OK;
}

typedef enum Verdict { REFUSED, SAME, CHANGED_LOOKS, CHANGED } Verdict;

static Verdict look(const Victim *victim, const Digest *wanted, Digest *found) {
    BetonReader *reader = NULL;
    Status status = beton_reader_open(victim->path, NULL, 0, &reader);
    if (status == STATUS_OK) status = digest_of(reader, found);
    beton_reader_close(reader);
    if (status == STATUS_FORMAT) return REFUSED;
    if (status != STATUS_OK) DIE("status %d: %s", (int)status, error_record()->message);
    if (memcmp(wanted, found, sizeof *wanted) == 0) return SAME;
    return wanted->structure == found->structure ? CHANGED_LOOKS : CHANGED;
}

static unsigned long counts[4];

static void truncate_everywhere(const Victim *victim, const Digest *wanted, size_t table_end) {
    Digest found;
    for (size_t size = victim->size; size-- > 0;) {
        /* data pages in steps; all else byte by byte */
        if (size > 70000 && size + 5000 < victim->size && size % 997 != 0) continue;
        if (ftruncate(victim->descriptor, (off_t)size) != 0) DIE("ftruncate");
        Verdict verdict = look(victim, wanted, &found);
        if (verdict != (size >= table_end ? SAME : REFUSED)) DIE("cut to %zu bytes: verdict %d", size, (int)verdict);
        counts[verdict]++;
    }
    victim_put(victim, victim->bytes, victim->size, 0);
}

static void flip(const Victim *victim, const Digest *wanted, size_t begin, size_t end, bool strict) {
    Digest found;
    for (size_t at = begin; at < end; at++) {
        for (int bit = 0; bit < 8; bit++) {
            unsigned char byte = victim->bytes[at] ^ (unsigned char)(1u << bit);
            victim_put(victim, &byte, 1, at);
            Verdict verdict = look(victim, wanted, &found);
            if (verdict == CHANGED || (strict && verdict == CHANGED_LOOKS))
                DIE("byte %zu bit %d: %d", at, bit, verdict);
            counts[verdict]++;
        }
        victim_put(victim, &victim->bytes[at], 1, at);
    }
}

/* Random bytes at random places of the metadata: anything but a crash. */
static void damage(const Victim *victim, const Digest *wanted, size_t metadata, size_t table) {
    Digest found;
    for (uint32_t round = 0; round < 3000; round++) {
        Philox4 draw = philox_at(7, round, 0, PHILOX_TEST, 0);
        size_t length = 1 + philox_below(draw.word[0], 9);
        size_t room = draw.word[1] % 2 && victim->size > table + length ? victim->size - table : metadata;
        size_t at = (room == metadata ? 0 : table) + philox_below(draw.word[2], (uint32_t)(room - length));
        unsigned char bytes[16];
        for (size_t i = 0; i < length; i++) {
            static const unsigned char extremes[] = {0, 0xFF, 0x80, 0x7F, 1};
            uint32_t word = philox_at(7, round, i, PHILOX_TEST, 1).word[0];
            bytes[i] = draw.word[3] % 3 == 0 ? extremes[word % 5] : (unsigned char)word;
        }
        victim_put(victim, bytes, length, at);
        counts[look(victim, wanted, &found)]++;
        victim_put(victim, victim->bytes + at, length, at);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) DIE("usage: beton FILE strict|lax");
    Victim victim = victim_load(argv[1]);
    BetonReader *reader = NULL;
    Digest wanted;
    if (beton_reader_open(victim.path, NULL, 0, &reader) != STATUS_OK) DIE("%s", error_record()->message);
    if (digest_of(reader, &wanted) != STATUS_OK) DIE("%s", error_record()->message);
    size_t fields = beton_reader_num_fields(reader), data_fields = 0, record = 0;
    uint64_t samples = beton_reader_num_samples(reader);
    for (size_t i = 0; i < fields; i++) data_fields += beton_reader_field(reader, i)->has_data;
    BetonColumn column;
    if (beton_reader_column(reader, 0, &column) == STATUS_OK) record = column.stride;
    size_t metadata = 24 + 1041 * fields + samples * record, table = beton_reader_data_span(reader).end;
    size_t table_end = table + 24 * data_fields * samples;
    beton_reader_close(reader);
    bool strict = strcmp(argv[2], "strict") == 0;
    truncate_everywhere(&victim, &wanted, table_end);
    flip(&victim, &wanted, 0, metadata, strict);
    flip(&victim, &wanted, table, victim.size, strict);
    damage(&victim, &wanted, metadata, table);
    printf("%lu refused, %lu the same, %lu with other numbers or names, %lu changed\n", counts[REFUSED], counts[SAME],
           counts[CHANGED_LOOKS], counts[CHANGED]);
    free(victim.bytes);
    return 0;
}
