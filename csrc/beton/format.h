/* The numbers of the .beton format, version 2 (docs/FORMAT.md), shared by reader and writer. */
#ifndef CGXFFCV_BETON_FORMAT_H
#define CGXFFCV_BETON_FORMAT_H

#include <stdint.h>

#include "base/bytes.h"

#define BETON_VERSION 2

#define BETON_HEADER_BYTES 24
#define BETON_HEADER_VERSION 0
#define BETON_HEADER_NUM_FIELDS 2
#define BETON_HEADER_PAGE_SIZE 4
#define BETON_HEADER_NUM_SAMPLES 8
#define BETON_HEADER_TABLE 16

#define BETON_DESCRIPTOR_BYTES 1041
#define BETON_DESCRIPTOR_NAME 1
#define BETON_DESCRIPTOR_NAME_BYTES 16
#define BETON_DESCRIPTOR_ARGUMENTS 17

/* Arguments of arrays and tensors. */
#define BETON_ARRAY_TEXT_BYTES 256
#define BETON_ARRAY_TEXT 264
#define BETON_ARRAY_TEXT_MAX 760

#define BETON_IMAGE_WIDTH 1
#define BETON_IMAGE_HEIGHT 3
#define BETON_IMAGE_POINTER 5

typedef struct BetonEntry {
    uint64_t sample, pointer, size;
} BetonEntry;

#define BETON_ENTRY_BYTES 24

static inline BetonEntry beton_entry_load(const unsigned char *table, uint64_t index) {
    const unsigned char *at = table + index * BETON_ENTRY_BYTES;
    return (BetonEntry){load_u64(at), load_u64(at + 8), load_u64(at + 16)};
}

#endif
