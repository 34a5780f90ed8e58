/* What differs between the kinds of field: one FieldKind each, one file each. Private to beton/. */
#ifndef CGXFFCV_BETON_FIELD_H
#define CGXFFCV_BETON_FIELD_H

#include "beton/format.h"
#include "beton/reader.h"
#include "beton/writer.h"

typedef struct EncodeJob EncodeJob;
typedef struct BetonChunkPart BetonChunkPart;

/* What a record says about its data. */
typedef struct FieldLocation {
    uint64_t pointer;
    uint64_t size;    /* meaningful if size_known */
    bool size_known;  /* otherwise only the allocation table has it */
    bool may_reserve; /* when empty: a one-byte entry may be its own (a reserved byte) */
} FieldLocation;

typedef struct FieldKind {
    const char *name;
    uint32_t record_bytes, record_alignment; /* 0: given by the caller (custom) */
    bool has_data;
    /* Fills in what the arguments say; NULL if they say nothing. */
    Status (*parse)(const unsigned char *arguments, BetonField *field);
    /* Reads a record; NULL without data. Refuses what no record may contain. */
    Status (*locate)(const BetonField *field, const unsigned char *record, FieldLocation *out);
    /* Checks a writer's spec, completes the field and its zeroed argument bytes; NULL when there is nothing to do. */
    Status (*describe)(const BetonFieldSpec *spec, BetonField *field, unsigned char *arguments);
    /* Fills the zeroed record (all but the pointer) and, for fields with data, the part. */
    Status (*encode)(EncodeJob *job, const BetonFieldSpec *spec, const BetonValue *value, unsigned char *record,
                     BetonChunkPart *part);
} FieldKind;

extern const FieldKind beton_field_kind_float, beton_field_kind_int, beton_field_kind_image, beton_field_kind_bytes,
    beton_field_kind_array, beton_field_kind_json, beton_field_kind_tensor, beton_field_kind_custom;

/* NULL if the format has no such type. */
const FieldKind *beton_field_kind_of(unsigned type_id);

/* field_custom.c: applies the caller's description of a custom field; STATUS_ARGUMENT if it is impossible. */
Status beton_field_set_custom(BetonField *field, const BetonCustom *custom);

/* Section "record" of the format: places the fields in order and computes the record's size. Needs record_bytes and
 * record_alignment of each; false on overflow. */
bool beton_field_layout(BetonField *fields, size_t num_fields, uint64_t *record_bytes);

#endif
