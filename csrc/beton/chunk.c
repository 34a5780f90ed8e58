/* Packing: u64 count, the records, u64 part sizes, the parts' bytes. */
#include "beton/chunk.h"

#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

const BetonSkip *beton_chunk_skips(const BetonChunk *chunk, size_t *count) {
    *count = chunk->num_skips;
    return chunk->skips;
}

uint64_t beton_chunk_packed_bytes(const BetonChunk *chunk) {
    size_t parts = chunk->count * chunk->schema->num_data_fields;
    uint64_t total = 8 + chunk->count * chunk->schema->record_bytes + 8 * (uint64_t)parts;
    for (size_t i = 0; i < parts; i++) total += chunk->parts[i].size;
    return total;
}

void beton_chunk_pack(const BetonChunk *chunk, unsigned char *out) {
    size_t parts = chunk->count * chunk->schema->num_data_fields;
    size_t records = chunk->count * (size_t)chunk->schema->record_bytes;
    store_u64(out, chunk->count);
    if (records != 0) memcpy(out + 8, chunk->records, records);
    out += 8 + records;
    for (size_t i = 0; i < parts; i++) store_u64(out + 8 * i, chunk->parts[i].size);
    out += 8 * parts;
    for (size_t i = 0; i < parts; i++) {
        if (chunk->parts[i].size != 0) memcpy(out, chunk->parts[i].data, (size_t)chunk->parts[i].size);
        out += chunk->parts[i].size;
    }
}

Status beton_chunk_unpack(const BetonSchema *schema, const unsigned char *bytes, uint64_t size, BetonChunk *chunk) {
    uint64_t count = size >= 8 ? load_u64(bytes) : 0, records = 0, parts = 0, sizes = 0, at = 8;
    bool fits = size >= 8 && checked_mul(count, schema->record_bytes, &records) &&
                checked_mul(count, schema->num_data_fields, &parts) && checked_mul(parts, 8, &sizes) &&
                checked_add(at, records, &at) && checked_add(at, sizes, &at) && at <= size;
    if (!fits) FAIL(STATUS_ARGUMENT, "a packed chunk of %llu bytes is damaged", (unsigned long long)size);
    *chunk = (BetonChunk){.count = (size_t)count, .schema = schema};
    /* the writer only reads the records */
    chunk->records = (unsigned char *)(uintptr_t)(bytes + 8);
    TRY(memory_alloc((size_t)parts + 1, sizeof *chunk->parts, &chunk->parts));
    const unsigned char *part_sizes = bytes + 8 + records;
    for (uint64_t i = 0; i < parts; i++) {
        uint64_t bytes_here = load_u64(part_sizes + 8 * i);
        if (bytes_here > size - at) {
            memory_free(chunk->parts);
            FAIL(STATUS_ARGUMENT, "a packed chunk of %llu bytes is damaged", (unsigned long long)size);
        }
        chunk->parts[i] = (BetonChunkPart){bytes + at, bytes_here};
        at += bytes_here;
    }
    return STATUS_OK;
}
