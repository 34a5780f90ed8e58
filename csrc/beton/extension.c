/* Building the block's header, finding and checking a block. */
#include "beton/extension.h"

#include <string.h>

#include "base/checked.h"
#include "base/hash.h"
#include "base/memory.h"

#define LLU(x) ((unsigned long long)(x))

/* Chained: each part's checksum is the next one's seed. */
static uint64_t content_checksum(const ExtensionContent *content) {
    uint64_t h = hash_bytes(content->head, (size_t)content->head_bytes, 0);
    h = hash_bytes(content->records, (size_t)content->record_bytes, h);
    return hash_bytes(content->table, (size_t)content->table_bytes, h);
}

void beton_extension_build(const ExtensionContent *content, const uint64_t *regions, uint64_t num_regions,
                           unsigned char *header) {
    memset(header, 0, EXTENSION_HEADER_BYTES);
    memcpy(header, EXTENSION_MAGIC, EXTENSION_MAGIC_BYTES);
    store_u32(header + EXTENSION_AT_VERSION, EXTENSION_VERSION);
    store_u64(header + EXTENSION_AT_NUM_REGIONS, num_regions);
    store_u64(header + EXTENSION_AT_METADATA, content_checksum(content));
    store_u64(header + EXTENSION_AT_REGIONS, hash_bytes(regions, (size_t)num_regions * 8, 0));
    store_u64(header + EXTENSION_AT_SELF, hash_bytes(header, EXTENSION_AT_SELF, 0));
}

static Status check_metadata(const BetonReader *reader, const unsigned char *block) {
    unsigned char *head = NULL;
    TRY(memory_alloc((size_t)reader->metadata, 1, &head));
    memcpy(head, reader->map, (size_t)reader->metadata);
    uint64_t at = (uint64_t)(block - reader->map);
    if (at < reader->metadata) memset(head + at, 0, EXTENSION_HEADER_BYTES);
    ExtensionContent content = {.head = head,
                                .head_bytes = reader->metadata,
                                .records = reader->map + reader->metadata,
                                .record_bytes = reader->metadata_end - reader->metadata,
                                .table = reader->map + reader->table,
                                .table_bytes = reader->num_entries * BETON_ENTRY_BYTES};
    uint64_t found = content_checksum(&content), wanted = load_u64(block + EXTENSION_AT_METADATA);
    memory_free(head);
    if (found == wanted) return STATUS_OK;
    FAIL(STATUS_FORMAT,
         "header, field descriptors, records or allocation table are damaged: their checksum is "
         "%016llx, not %016llx",
         LLU(found), LLU(wanted));
}

/* Checks a block whose magic number was found; there are `room` bytes for it. */
static Status check_block(BetonReader *reader, const unsigned char *block, uint64_t room, uint64_t num_regions) {
    uint64_t size, count = load_u64(block + EXTENSION_AT_NUM_REGIONS);
    if (load_u64(block + EXTENSION_AT_SELF) != hash_bytes(block, EXTENSION_AT_SELF, 0)) {
        FAIL(STATUS_FORMAT, "the extension block is damaged: its own checksum is wrong");
    }
    uint32_t version = load_u32(block + EXTENSION_AT_VERSION);
    if (version != EXTENSION_VERSION) return STATUS_OK; /* from a later writer: its meaning is unknown */
    if (count != num_regions || !checked_mul(count, 8, &size) || size > room - EXTENSION_HEADER_BYTES) {
        FAIL(STATUS_FORMAT, "the extension block has checksums of %llu regions, not of %llu", LLU(count),
             LLU(num_regions));
    }
    const unsigned char *regions = block + EXTENSION_HEADER_BYTES;
    if (load_u64(block + EXTENSION_AT_REGIONS) != hash_bytes(regions, (size_t)size, 0)) {
        FAIL(STATUS_FORMAT, "the extension block is damaged: the checksum of its checksums is wrong");
    }
    TRY(check_metadata(reader, block));
    reader->extension = block;
    reader->checksums = regions;
    return STATUS_OK;
}

static bool has_magic(const unsigned char *at) { return memcmp(at, EXTENSION_MAGIC, EXTENSION_MAGIC_BYTES) == 0; }

Status beton_extension_open(BetonReader *reader) {
    uint64_t begin;
    const unsigned char *arguments = reader->fields[0].arguments + EXTENSION_IN_ARGUMENTS;
    bool in_gap = checked_round_up(reader->metadata_end, EXTENSION_ALIGNMENT, &begin) &&
                  checked_within(begin, EXTENSION_HEADER_BYTES, reader->table) && has_magic(reader->map + begin);
    Status status = STATUS_OK;
    if (in_gap) {
        const unsigned char *block = reader->map + begin;
        status = check_block(reader, block, reader->table - begin, reader->num_entries);
        return error_at_offset(status, (int64_t)begin);
    }
    if (beton_extension_fits_arguments(reader->fields[0].kind) && has_magic(arguments)) {
        status = check_block(reader, arguments, EXTENSION_HEADER_BYTES, 0);
        return error_at_offset(status, arguments - reader->map);
    }
    return STATUS_OK;
}
