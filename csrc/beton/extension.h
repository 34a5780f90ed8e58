/* The extension block: checksums in space that the format leaves unused (docs/FORMAT.md, "Extension block"). Private to
 * beton/. */
#ifndef CGXFFCV_BETON_EXTENSION_H
#define CGXFFCV_BETON_EXTENSION_H

#include "beton/reader_private.h"

#define EXTENSION_MAGIC "CGXFFCV1"
#define EXTENSION_MAGIC_BYTES 8
#define EXTENSION_VERSION 1
#define EXTENSION_HEADER_BYTES 64
/* offsets in its header */
#define EXTENSION_AT_VERSION 8
#define EXTENSION_AT_NUM_REGIONS 16
#define EXTENSION_AT_METADATA 24 /* checksum of header, descriptors, records and table */
#define EXTENSION_AT_REGIONS 32  /* checksum of the regions' checksums */
#define EXTENSION_AT_SELF 56     /* checksum of the 56 bytes before it */

#define EXTENSION_ALIGNMENT 8
/* Without data pages, the block's header is in the last argument bytes of the first field, if those are unused. */
#define EXTENSION_IN_ARGUMENTS (BETON_ARGUMENT_BYTES - EXTENSION_HEADER_BYTES)

/* Bytes of a block for this many regions. */
static inline uint64_t beton_extension_bytes(uint64_t num_regions) { return EXTENSION_HEADER_BYTES + 8 * num_regions; }

/* Whether a kind's last argument bytes are unused. */
static inline bool beton_extension_fits_arguments(BetonKind kind) {
    return kind != BETON_ARRAY && kind != BETON_TENSOR && kind != BETON_CUSTOM;
}

/* Parts of the file's fixed content, for its checksum. */
typedef struct ExtensionContent {
    const unsigned char *head; /* header and descriptors; a block inside them counts as zeros */
    uint64_t head_bytes;
    const unsigned char *records;
    uint64_t record_bytes;
    const unsigned char *table;
    uint64_t table_bytes;
} ExtensionContent;

/* Fills EXTENSION_HEADER_BYTES. `regions` may be NULL when there are none. */
void beton_extension_build(const ExtensionContent *content, const uint64_t *regions, uint64_t num_regions,
                           unsigned char *header);

/* Looks for a block in a file whose head has been validated; checks the block itself and the metadata's checksum, sets
 * reader->extension and reader->checksums. A file without a block is valid. */
Status beton_extension_open(BetonReader *reader);

#endif
