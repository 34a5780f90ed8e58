/* RGB images: mode, width, height, pointer in 13 packed bytes; a raw image's size follows from them, a JPEG's stands
 * in the allocation table alone. */
#include "beton/field.h"

static Status locate(const BetonField *field, const unsigned char *record, FieldLocation *out) {
    (void)field;
    unsigned mode = record[0];
    uint64_t width = load_u16(record + BETON_IMAGE_WIDTH), height = load_u16(record + BETON_IMAGE_HEIGHT);
    if (mode != BETON_IMAGE_RAW && mode != BETON_IMAGE_JPEG) {
        FAIL(STATUS_FORMAT, "image mode %u is neither 0 (JPEG) nor 1 (raw)", mode);
    }
    if (width == 0 || height == 0) {
        FAIL(STATUS_FORMAT, "an image of %u x %u pixels has no pixels", (unsigned)width, (unsigned)height);
    }
    *out = (FieldLocation){.pointer = load_u64(record + BETON_IMAGE_POINTER),
                           .size = width * height * 3,
                           .size_known = mode == BETON_IMAGE_RAW};
    return STATUS_OK;
}

const FieldKind field_kind_image = {
    .name = "image", .record_bytes = 13, .record_alignment = 1, .has_data = true, .locate = locate};
