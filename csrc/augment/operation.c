/* The table of image operations, and checks based on their descriptions. */
#include "augment/operation.h"

#include <math.h>
#include <string.h>

static const AugmentEntry entries[AUGMENT_KINDS] = {
#define AUGMENT_OPERATION(name_, Type, phase_, ...) [AUGMENT_##name_] = {.phase = AUGMENT_##phase_, __VA_ARGS__},
#include "augment/ops/table.h"
};

const AugmentEntry *augment_entry(AugmentKind kind) { return &entries[kind]; }

AugmentKind augment_find(const char *name) {
    int kind = 0;
    while (kind < AUGMENT_KINDS && strcmp(entries[kind].name, name) != 0) kind++;
    return (AugmentKind)kind;
}

static const void *value_of(const AugmentOp *op, const AugmentParameter *parameter) {
    return (const unsigned char *)&op->as + parameter->offset;
}

/* The operation's first parameter of either type. */
static const void *find_value(const AugmentOp *op, AugmentParameterType type, AugmentParameterType other) {
    for (const AugmentParameter *p = entries[op->kind].parameters; p->name != NULL; p++) {
        if (p->type == type || p->type == other) return value_of(op, p);
    }
    return NULL;
}

const int32_t *augment_op_padding(const AugmentOp *op) { return find_value(op, AUGMENT_PADDING, AUGMENT_PADDING); }

const int32_t *augment_op_rounds(const AugmentOp *op) { return find_value(op, AUGMENT_ROUNDS, AUGMENT_ROUNDS); }

const AugmentFill *augment_op_fill(const AugmentOp *op) { return find_value(op, AUGMENT_RGB, AUGMENT_BORDER); }

bool augment_format_rgb(AugmentFormat format) {
    return format.type == IMAGE_U8 && (format.channels == 0 || format.channels == AUGMENT_CHANNELS);
}

static Status check_fill(const char *name, const AugmentFill *fill, bool normalized, AugmentFormat format) {
    const bool whole = !normalized && format.type != IMAGE_F32;
    const int most = format.type == IMAGE_U16 ? UINT16_MAX : UINT8_MAX;
    for (int c = 0; c < AUGMENT_MAX_CHANNELS; c++) {
        double value = fill->colour[c];
        if (whole ? value >= 0 && value <= most && value == floor(value) : isfinite(value)) continue;
        if (!whole) FAIL(STATUS_ARGUMENT, "%s must be finite, not %g", name, value);
        FAIL(STATUS_ARGUMENT, "%s must be whole numbers in 0..%d, not %g", name, most, value);
    }
    return STATUS_OK;
}

static Status check_number(const AugmentParameter *p, double value, double least, double most) {
    if (value >= least && value <= most) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "%s must be in %g..%g, not %.9g", p->name, least, most, value);
}

static Status check_limits(const AugmentParameter *p, const AugmentLimits *limits) {
    TRY(check_number(p, limits->low, p->least, p->most));
    TRY(check_number(p, limits->high, p->least, p->most));
    if (limits->low <= limits->high) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "the limits of %s must be in ascending order, not %g and %g", p->name, limits->low,
         limits->high);
}

static Status check_parameter(const AugmentOp *op, const AugmentParameter *p, AugmentFormat format) {
    const void *value = value_of(op, p);
    switch (p->type) {
    case AUGMENT_NUMBER:
        return check_number(p, *(const double *)value, p->least, p->most);
    case AUGMENT_LIMITS:
        return check_limits(p, value);
    case AUGMENT_ODD:
        TRY(check_number(p, *(const int32_t *)value, p->least, p->most));
        if (*(const int32_t *)value % 2 == 0)
            FAIL(STATUS_ARGUMENT, "%s must be odd, not %d", p->name, *(const int32_t *)value);
        return STATUS_OK;
    case AUGMENT_COUNT:
    case AUGMENT_ROUNDS:
        return check_number(p, *(const int32_t *)value, p->least, p->most);
    case AUGMENT_PADDING:
        return check_number(p, *(const int32_t *)value, 0, AUGMENT_MAX_PADDING);
    case AUGMENT_SIZE:
        TRY(check_number(p, ((const AugmentSize *)value)->height, 1, UINT16_MAX));
        return check_number(p, ((const AugmentSize *)value)->width, 1, UINT16_MAX);
    case AUGMENT_RGB:
    case AUGMENT_BORDER:
        return check_fill(p->name, value, op->normalized, format);
    case AUGMENT_FLAG:
    case AUGMENT_WHOLE:
    case AUGMENT_SAMPLES:
    case AUGMENT_PLANE:
    case AUGMENT_IMAGE:
        return STATUS_OK;
    }
    return STATUS_OK;
}

Status augment_op_check(const AugmentOp *op, AugmentFormat format) {
    if ((unsigned)op->kind >= AUGMENT_KINDS) FAIL(STATUS_ARGUMENT, "unknown image operation %d", (int)op->kind);
    const AugmentEntry *entry = &entries[op->kind];
    for (const AugmentParameter *p = entry->parameters; p->name != NULL; p++) {
        TRY(error_at_operation(check_parameter(op, p, format), entry->name));
    }
    return entry->check_parameters == NULL ? STATUS_OK
                                           : error_at_operation(entry->check_parameters(&op->as), entry->name);
}
