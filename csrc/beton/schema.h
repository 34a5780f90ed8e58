/* A writer's fields, laid out. Private to beton/. */
#ifndef CGXFFCV_BETON_SCHEMA_H
#define CGXFFCV_BETON_SCHEMA_H

#include "beton/field.h"
#include "beton/writer.h"

struct BetonSchema {
    size_t num_fields, num_data_fields;
    uint64_t record_bytes;
    BetonFieldSpec *specs; /* owned */
    BetonField *fields;    /* owned; arguments borrowed from `head` */
    unsigned char *head;   /* owned: the header, unset but for the number of fields, and the descriptors */
    uint64_t head_bytes;
};

/* Where the pointer is in a field's record. */
static inline uint32_t beton_schema_pointer_at(const BetonField *field) {
    if (field->kind == BETON_CUSTOM) return (uint32_t)field->pointer_offset;
    return field->kind == BETON_IMAGE ? BETON_IMAGE_POINTER : 0;
}

#endif
