/* Places chunks and completes the file. Regions are written as they come, at offsets counted from the first data page;
 * records, table and checksums are kept in memory and written at the end, when the number of samples is known. If that
 * number, or a page size that had to grow, puts the first page somewhere other than expected, the data is copied into a
 * second file in its final order. */
#include "beton/writer.h"

#include <string.h>

#include "base/checked.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/pool.h"
#include "beton/chunk.h"
#include "beton/extension.h"
#include "beton/sink.h"

#define COPY_BYTES ((uint64_t)8 << 20)

struct BetonWriter {
    const BetonSchema *schema; /* borrowed until commit or abort */
    BetonWriterOptions options;
    AtomicFile *file; /* owned */
    Sink sink;
    Pool *pool;         /* owned; for checksums */
    uint64_t page_size; /* grows when a sample needs it */
    bool page_grew;
    uint64_t base;   /* where the data goes for now */
    uint64_t cursor; /* from base: the end of the last region */
    uint64_t num_samples, capacity;
    unsigned char *records; /* owned, capacity * record_bytes */
    BetonEntry *entries;    /* owned, capacity * num_data_fields; pointers count from base */
    uint64_t *checksums;    /* owned, as entries; NULL without options.checksums */
};

/* Where everything is in a file of that many samples. */
typedef struct FileLayout {
    uint64_t metadata_end, block, data, table, size;
} FileLayout;

static Status lay_out(const BetonWriter *writer, uint64_t num_samples, uint64_t data_bytes, FileLayout *out) {
    uint64_t records, regions, table_bytes, data_end, end;
    FileLayout layout;
    bool fits = checked_mul(num_samples, writer->schema->record_bytes, &records) &&
                checked_mul(num_samples, writer->schema->num_data_fields, &regions) &&
                checked_mul(regions, BETON_ENTRY_BYTES, &table_bytes) &&
                checked_add(writer->schema->head_bytes, records, &layout.metadata_end) &&
                checked_round_up(layout.metadata_end, EXTENSION_ALIGNMENT, &layout.block);
    end = layout.metadata_end;
    if (fits && writer->options.checksums) fits = checked_add(layout.block, beton_extension_bytes(regions), &end);
    fits = fits && checked_round_up(end, writer->page_size, &layout.data) &&
           checked_round_up(data_bytes, writer->page_size, &data_end) && checked_add(layout.data, data_end, &data_end);
    layout.table = data_bytes == 0 ? layout.metadata_end : data_end;
    fits = fits && checked_add(layout.table, table_bytes, &layout.size) && layout.size <= INT64_MAX;
    if (!fits) FAIL(STATUS_ARGUMENT, "%llu samples do not fit in a file", (unsigned long long)num_samples);
    *out = layout;
    return STATUS_OK;
}

static Status check_options(const BetonWriterOptions *options) {
    uint64_t size = options->page_size, least = options->small_pages ? 1 : BETON_MIN_PAGE_BYTES;
    if (!is_power_of_two(size) || size < least || size > BETON_MAX_PAGE_BYTES) {
        FAIL(STATUS_ARGUMENT, "page_size must be a power of two from %llu to %llu, not %llu", (unsigned long long)least,
             (unsigned long long)BETON_MAX_PAGE_BYTES, (unsigned long long)size);
    }
    return STATUS_OK;
}

static Status writer_reserve(BetonWriter *writer, uint64_t samples) {
    if (samples <= writer->capacity) return STATUS_OK;
    uint64_t grown = writer->capacity * 2 > samples ? writer->capacity * 2 : samples;
    size_t record = (size_t)writer->schema->record_bytes, parts = writer->schema->num_data_fields;
    size_t entry = parts * sizeof *writer->entries, sum = parts * sizeof *writer->checksums;
    size_t old = (size_t)writer->num_samples, fresh;
    if (__builtin_mul_overflow((size_t)grown, record + entry + sum, &fresh)) {
        FAIL(STATUS_MEMORY, "%llu samples do not fit in memory", (unsigned long long)grown);
    }
    TRY(memory_resize(&writer->records, old * record, (size_t)grown * record));
    TRY(memory_resize(&writer->entries, old * entry, (size_t)grown * entry + 1));
    if (writer->options.checksums) TRY(memory_resize(&writer->checksums, old * sum, (size_t)grown * sum + 1));
    writer->capacity = grown;
    return STATUS_OK;
}

static void release(BetonWriter *writer) {
    beton_sink_fini(&writer->sink);
    atomic_file_abort(writer->file);
    pool_destroy(writer->pool);
    memory_free(writer->records);
    memory_free(writer->entries);
    memory_free(writer->checksums);
    memory_free(writer);
}

void beton_writer_abort(BetonWriter *writer) {
    if (writer != NULL) release(writer);
}

Status beton_writer_create(const char *path, const BetonSchema *schema, const BetonWriterOptions *options,
                           BetonWriter **out) {
    Status status = STATUS_OK;
    BetonWriter *writer = NULL;
    FileLayout layout;
    TRY(check_options(options));
    TRY(memory_calloc(1, sizeof *writer, &writer));
    writer->schema = schema;
    writer->options = *options;
    writer->page_size = options->page_size;
    TRY_GOTO(lay_out(writer, options->expected_samples, 0, &layout));
    writer->base = layout.data;
    if (options->checksums) TRY_GOTO(pool_create(options->threads, &writer->pool));
    TRY_GOTO(writer_reserve(writer, options->expected_samples));
    TRY_GOTO(atomic_file_create(path, &writer->file));
    TRY_GOTO(beton_sink_init(&writer->sink, writer->file, options->durable));
    *out = writer;
    writer = NULL;
done:
    beton_writer_abort(writer);
    return status;
}

typedef struct ChecksumLoop {
    const BetonChunkPart *parts; /* borrowed */
    uint64_t *out;               /* borrowed */
    size_t count;
} ChecksumLoop;

#define CHECKSUM_BATCH 64

static Status checksum_batch(void *context, size_t item, int thread) {
    const ChecksumLoop *loop = context;
    (void)thread;
    size_t end = (item + 1) * CHECKSUM_BATCH < loop->count ? (item + 1) * CHECKSUM_BATCH : loop->count;
    for (size_t i = item * CHECKSUM_BATCH; i < end; i++) {
        loop->out[i] = hash_bytes(loop->parts[i].data, (size_t)loop->parts[i].size, 0);
    }
    return STATUS_OK;
}

static uint64_t stored_bytes(const BetonChunkPart *part) { return part->size == 0 ? 1 : part->size; }

/* A sample's regions are in one page; the page size grows if even an empty page is too small. */
static void find_room(BetonWriter *writer, uint64_t total) {
    while (total > writer->page_size) {
        writer->page_size *= 2;
        writer->page_grew = true;
    }
    uint64_t mask = writer->page_size - 1;
    if ((writer->cursor & mask) + total > writer->page_size) writer->cursor = (writer->cursor + mask) & ~mask;
}

static Status place_sample(BetonWriter *writer, const BetonChunkPart *parts, BetonEntry *entries) {
    static const unsigned char reserved = 0;
    size_t count = writer->schema->num_data_fields;
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) total += stored_bytes(&parts[i]);
    if (total > BETON_MAX_PAGE_BYTES) {
        Status status = error_fail(STATUS_ARGUMENT, "the sample's %llu bytes are over the limit of 1 GiB",
                                   (unsigned long long)total);
        return error_at_sample(status, (int64_t)writer->num_samples);
    }
    find_room(writer, total);
    for (size_t i = 0; i < count; i++) {
        uint64_t size = stored_bytes(&parts[i]);
        const unsigned char *data = parts[i].size == 0 ? &reserved : parts[i].data;
        TRY(beton_sink_put(&writer->sink, data, size, writer->base + writer->cursor));
        entries[i] = (BetonEntry){writer->num_samples, writer->cursor, size};
        writer->cursor += size;
    }
    return STATUS_OK;
}

Status beton_writer_append(BetonWriter *writer, const BetonChunk *chunk) {
    const BetonSchema *schema = writer->schema;
    size_t parts = schema->num_data_fields, record = (size_t)schema->record_bytes;
    if (chunk->count == 0) return STATUS_OK;
    TRY(writer_reserve(writer, writer->num_samples + chunk->count));
    if (writer->options.checksums && parts != 0) {
        ChecksumLoop loop = {chunk->parts, writer->checksums + writer->num_samples * parts, chunk->count * parts};
        size_t items = (loop.count + CHECKSUM_BATCH - 1) / CHECKSUM_BATCH;
        TRY(pool_run(writer->pool, items, checksum_batch, &loop));
    }
    memcpy(writer->records + writer->num_samples * record, chunk->records, chunk->count * record);
    for (size_t i = 0; i < chunk->count; i++) {
        TRY(place_sample(writer, chunk->parts + i * parts, writer->entries + writer->num_samples * parts));
        writer->num_samples++;
    }
    return beton_sink_settle(&writer->sink);
}

Status beton_writer_append_packed(BetonWriter *writer, const unsigned char *bytes, uint64_t size) {
    BetonChunk chunk;
    TRY(beton_chunk_unpack(writer->schema, bytes, size, &chunk));
    Status status = beton_writer_append(writer, &chunk);
    memory_free(chunk.parts);
    return status;
}

static Status copy_run(const AtomicFile *from, uint64_t source, AtomicFile *to, uint64_t target, uint64_t size,
                       unsigned char *buffer) {
    while (size > 0) {
        size_t step = (size_t)(size < COPY_BYTES ? size : COPY_BYTES);
        TRY(atomic_file_read_at(from, buffer, step, source));
        TRY(atomic_file_write_at(to, buffer, step, target));
        source += step;
        target += step;
        size -= step;
    }
    return STATUS_OK;
}

/* Gives all samples their places in pages of the final size. */
static void place_again(BetonWriter *writer, BetonEntry *placed) {
    size_t parts = writer->schema->num_data_fields;
    writer->cursor = 0;
    for (uint64_t sample = 0; sample < writer->num_samples; sample++) {
        const BetonEntry *old = writer->entries + sample * parts;
        uint64_t total = 0;
        for (size_t i = 0; i < parts; i++) total += old[i].size;
        find_room(writer, total);
        for (size_t i = 0; i < parts; i++) {
            placed[sample * parts + i] = (BetonEntry){sample, writer->cursor, old[i].size};
            writer->cursor += old[i].size;
        }
    }
}

/* Copies the regions to where `placed` has them, in runs that stay contiguous. */
static Status copy_regions(const BetonWriter *writer, const BetonEntry *placed, AtomicFile *to, uint64_t data,
                           unsigned char *buffer) {
    uint64_t count = writer->num_samples * writer->schema->num_data_fields;
    for (uint64_t i = 0, next; i < count; i = next) {
        uint64_t size = placed[i].size;
        for (next = i + 1; next < count; next++) {
            bool together = writer->entries[next].pointer == writer->entries[i].pointer + size &&
                            placed[next].pointer == placed[i].pointer + size;
            if (!together) break;
            size += placed[next].size;
        }
        TRY(copy_run(writer->file, writer->base + writer->entries[i].pointer, to, data + placed[i].pointer, size,
                     buffer));
    }
    return STATUS_OK;
}

/* Moves the data into a second file, in which it begins at layout->data. */
static Status relocate(BetonWriter *writer, FileLayout *layout) {
    Status status = STATUS_OK;
    AtomicFile *file = NULL;
    BetonEntry *placed = NULL;
    unsigned char *buffer = NULL;
    size_t count = (size_t)writer->num_samples * writer->schema->num_data_fields;
    TRY_GOTO(memory_alloc(count + 1, sizeof *placed, &placed));
    TRY_GOTO(memory_alloc((size_t)COPY_BYTES, 1, &buffer));
    TRY_GOTO(atomic_file_create_again(writer->file, &file));
    place_again(writer, placed);
    TRY_GOTO(lay_out(writer, writer->num_samples, writer->cursor, layout));
    TRY_GOTO(copy_regions(writer, placed, file, layout->data, buffer));
    memcpy(writer->entries, placed, count * sizeof *placed);
    atomic_file_abort(writer->file);
    writer->file = file;
    file = NULL;
done:
    atomic_file_abort(file);
    memory_free(buffer);
    memory_free(placed);
    return status;
}

/* Makes the pointers in table and records relative to the start of the file. */
static void set_pointers(BetonWriter *writer, uint64_t data) {
    const BetonSchema *schema = writer->schema;
    BetonEntry *entry = writer->entries;
    for (uint64_t sample = 0; sample < writer->num_samples; sample++) {
        unsigned char *record = writer->records + sample * schema->record_bytes;
        for (size_t i = 0; i < schema->num_fields; i++) {
            const BetonField *field = &schema->fields[i];
            if (!field->has_data) continue;
            entry->pointer += data;
            store_u64(record + field->record_offset + beton_schema_pointer_at(field), entry->pointer);
            entry++;
        }
    }
}

static Status write_block(BetonWriter *writer, const FileLayout *layout, const ExtensionContent *content,
                          unsigned char *head) {
    unsigned char header[EXTENSION_HEADER_BYTES];
    uint64_t regions = writer->num_samples * writer->schema->num_data_fields;
    beton_extension_build(content, writer->checksums, regions, header);
    if (layout->table != layout->metadata_end) {
        TRY(atomic_file_write_at(writer->file, header, sizeof header, layout->block));
        return atomic_file_write_at(writer->file, writer->checksums, (size_t)regions * 8,
                                    layout->block + sizeof header);
    }
    memcpy(head + BETON_HEADER_BYTES + BETON_DESCRIPTOR_ARGUMENTS + EXTENSION_IN_ARGUMENTS, header, sizeof header);
    return STATUS_OK;
}

static Status write_metadata(BetonWriter *writer, const FileLayout *layout) {
    const BetonSchema *schema = writer->schema;
    Status status = STATUS_OK;
    unsigned char *head = NULL;
    ExtensionContent content = {.head_bytes = schema->head_bytes,
                                .records = writer->records,
                                .record_bytes = writer->num_samples * schema->record_bytes,
                                .table = (const unsigned char *)writer->entries,
                                .table_bytes = layout->size - layout->table};
    TRY(memory_alloc((size_t)schema->head_bytes, 1, &head));
    memcpy(head, schema->head, (size_t)schema->head_bytes);
    store_u32(head + BETON_HEADER_PAGE_SIZE, (uint32_t)writer->page_size);
    store_u64(head + BETON_HEADER_NUM_SAMPLES, writer->num_samples);
    store_u64(head + BETON_HEADER_TABLE, layout->table);
    content.head = head;
    bool has_room = layout->table != layout->metadata_end || beton_extension_fits_arguments(schema->fields[0].kind);
    if (writer->options.checksums && has_room) TRY_GOTO(write_block(writer, layout, &content, head));
    TRY_GOTO(atomic_file_truncate(writer->file, layout->size));
    TRY_GOTO(atomic_file_write_at(writer->file, content.records, (size_t)content.record_bytes, content.head_bytes));
    TRY_GOTO(atomic_file_write_at(writer->file, content.table, (size_t)content.table_bytes, layout->table));
    TRY_GOTO(atomic_file_write_at(writer->file, head, (size_t)content.head_bytes, 0));
done:
    memory_free(head);
    return status;
}

Status beton_writer_commit(BetonWriter *writer, BetonWriterResult *out) {
    Status status = STATUS_OK;
    FileLayout layout;
    int unsynced = 0;
    TRY_GOTO(beton_sink_flush(&writer->sink));
    TRY_GOTO(lay_out(writer, writer->num_samples, writer->cursor, &layout));
    if (writer->cursor != 0 && (layout.data != writer->base || writer->page_grew)) {
        TRY_GOTO(relocate(writer, &layout));
    }
    set_pointers(writer, layout.data);
    TRY_GOTO(write_metadata(writer, &layout));
    AtomicFile *file = writer->file;
    writer->file = NULL;
    TRY_GOTO(writer->options.durable ? atomic_file_commit(file, &unsynced) : atomic_file_commit_unsynced(file));
    *out = (BetonWriterResult){writer->num_samples, layout.size, writer->page_size, unsynced};
done:
    release(writer);
    return status;
}
