/* The image operations as one type: what ops/table.h lists, for the host and for kernels.
 *
 * A file of ops/ ends in AUGMENT_OP_MOVE(name, Type, ...), or the macro of another phase, where Type holds its
 * parameters, the rest describes it (AugmentEntry), and the phase determines which formulas it has:
 *
 *   all         augment_NAME_draw(op, random, size): what it does to an image of this size; if random is NULL, its
 *               neutral form, for evaluation. Those that are not random (POSITIONAL, VALUE) have
 *               augment_NAME_chosen(op, sample) instead: whether it applies to the sample
 *   MOVE        where pixels come from: mirroring, or a window with a border that is filled
 *   FILL        a hole of one colour
 *   COLOUR      augment_NAME_pixel(op, drawn, pixel): from each pixel alone, and the image's mean grey
 *               (AugmentEntry.mean)
 *   POSITIONAL  augment_NAME_pixel_at(op, at, pixel): from each pixel alone and its row-major index
 *   LOCAL       augment_NAME_taps(op, drawn, weights): from each pixel and its neighbours, summed along the rows and
 *               then along the columns with weights by distance, which add up to AUGMENT_ONE; returns the largest
 *               distance used
 *   WARP        each pixel comes from another place, or is filled: rotated, sheared or shifted; the draw says
 *               everything
 *   BOX         augment_NAME_box(op, drawn, pixel, sums): from each pixel except those at the edges, and the sums of
 *               the 3 x 3 pixels around it
 *   HISTOGRAM   augment_NAME_table(op, drawn, counts, table): the new values of a channel, from its histogram
 *   MIX         augment_NAME_mix(op, drawn, own, previous): from each pixel of a rectangle and the same pixel of the
 *               previous image in the batch, cyclically; at most one in a chain
 *   VALUE       augment_NAME_value(op, label): another label
 *   LABEL       augment_NAME_label(op, drawn, own, previous, to): from the label and the previous one in the batch,
 *               cyclically; comes last */
#ifndef CGXFFCV_AUGMENT_OPERATION_H
#define CGXFFCV_AUGMENT_OPERATION_H

#include "augment/draw.h"
#include "base/status.h"

#include "augment/ops/table.h"

typedef enum AugmentKind {
#define AUGMENT_OPERATION(name, Type, phase, ...) AUGMENT_##name,
#include "augment/ops/table.h"
    AUGMENT_KINDS
} AugmentKind;

/* In the order in which one pass over an image can apply them. */
typedef enum AugmentPhase {
    AUGMENT_MOVE,
    AUGMENT_FILL,
    AUGMENT_COLOUR,
    AUGMENT_POSITIONAL, /* up to HISTOGRAM: among COLOUR, in any order */
    AUGMENT_LOCAL,
    AUGMENT_WARP,
    AUGMENT_BOX,
    AUGMENT_HISTOGRAM,
    AUGMENT_MIX,
    AUGMENT_VALUE,
    AUGMENT_LABEL
} AugmentPhase;

typedef enum ImageType {
    IMAGE_U8,
    IMAGE_F32,
    IMAGE_F16,
    IMAGE_BF16, /* bfloat16, in 16 bits */
    IMAGE_U16,
    IMAGE_TYPES
} ImageType;

/* The format of pixels; all zero: three channels of uint8. */
typedef struct AugmentFormat {
    int32_t channels; /* 1 to AUGMENT_MAX_CHANNELS; 0: 3 */
    ImageType type;   /* IMAGE_U8, IMAGE_U16, IMAGE_F32 */
} AugmentFormat;

typedef struct AugmentOp {
    AugmentKind kind;
    uint32_t draw;   /* from augment_draw_index */
    bool normalized; /* it follows the normalisation: its fill is in normalised units */
    union {
#define AUGMENT_OPERATION(name, Type, phase, ...) Type name;
#include "augment/ops/table.h"
    } as;
} AugmentOp;

/* ---- descriptions ---- */

typedef enum AugmentParameterType {
    AUGMENT_NUMBER,  /* double */
    AUGMENT_FLAG,    /* bool */
    AUGMENT_LIMITS,  /* AugmentLimits */
    AUGMENT_ODD,     /* int32_t */
    AUGMENT_COUNT,   /* int32_t */
    AUGMENT_ROUNDS,  /* int32_t: how often the operation is applied, each time with its own draws */
    AUGMENT_PADDING, /* int32_t: pixels by which a MOVE may reach beyond the image */
    AUGMENT_SIZE,    /* AugmentSize, of 1 to 65,535 */
    AUGMENT_RGB,     /* AugmentFill, not reflecting */
    AUGMENT_BORDER,  /* AugmentFill */
    AUGMENT_WHOLE,   /* int64_t */
    AUGMENT_SAMPLES, /* AugmentSamples */
    AUGMENT_PLANE,   /* AugmentPlane: one value per pixel */
    AUGMENT_IMAGE    /* AugmentPlane: one value per channel of each pixel */
} AugmentParameterType;

typedef struct AugmentParameter {
    const char *name; /* NULL after the last */
    AugmentParameterType type;
    size_t offset;      /* in the operation's Type */
    bool required;      /* has no default */
    double value;       /* the default, of each part */
    double other;       /* the default of the upper limit */
    double least, most; /* the range of NUMBER, LIMITS, ODD, COUNT, ROUNDS */
} AugmentParameter;

/* For AugmentEntry.parameters: AUGMENT_PARAMETER(Type, member, NUMBER, .value = 0.5, .most = 1). */
#define AUGMENT_PARAMETER(Type, member, kind, ...)                                                                     \
    { .name = #member, .type = AUGMENT_##kind, .offset = offsetof(Type, member), __VA_ARGS__ }

#define AUGMENT_MAX_PARAMETERS 8
#define AUGMENT_MAX_PADDING 1024
#define AUGMENT_MAX_RADIUS 15 /* of a LOCAL operation */

/* COLOUR in images of other formats (cpu/general.h): what the drawn factor blends values with. An operation with
 * AUGMENT_NOTHING takes only three channels of uint8 or, if it has `levels`, uint8 with any channels. */
typedef enum AugmentOther {
    AUGMENT_NOTHING,
    AUGMENT_BLACK,
    AUGMENT_MEAN,      /* the image's mean grey: for three channels, or one, which is grey */
    AUGMENT_GREY,      /* the pixel's own grey: for three channels */
    AUGMENT_ROTATE_HUE /* does not blend, but rotates the hue: for three channels */
} AugmentOther;

typedef struct AugmentEntry {
    const char *name; /* in Python */
    const char *doc;  /* NULL: a part of another (`then`), which users do not see */
    AugmentPhase phase;
    uint32_t number; /* identifies its draws: part of what a seed means, must never change */
    int columns;     /* LABEL: number of float32 values that it makes from a label */
    bool mean;       /* COLOUR: the formula needs the image's mean grey */
    bool levels;     /* COLOUR: the formula treats each value alone, in the same way in all channels */
    AugmentOther other;
    /* The part that follows this one, with the same Type, values and number, and so the same draws; 0: none. */
    AugmentKind then;
    /* Fails for parameters that are in their ranges, but do not go together; may be NULL. */
    Status (*check_parameters)(const void *parameters);
    /* Fails for images of a size that the operation does not support; may be NULL. */
    Status (*fits)(const void *parameters, AugmentSize size);
    AugmentParameter parameters[AUGMENT_MAX_PARAMETERS + 1];
} AugmentEntry;

const AugmentEntry *augment_entry(AugmentKind kind);
static inline AugmentPhase augment_phase(const AugmentOp *op) { return augment_entry(op->kind)->phase; }

/* AUGMENT_KINDS if there is none. */
AugmentKind augment_find(const char *name);

/* Fails for parameters that are out of range, and for fills that are not valid pixels of that format. */
Status augment_op_check(const AugmentOp *op, AugmentFormat format);

/* Whether pixels are three channels of uint8. */
bool augment_format_rgb(AugmentFormat format);

/* The operation's parameter of that type; NULL if it has none. augment_op_fill: RGB or BORDER. */
const int32_t *augment_op_padding(const AugmentOp *op);
const int32_t *augment_op_rounds(const AugmentOp *op);
const AugmentFill *augment_op_fill(const AugmentOp *op);

/* ---- formulas ---- */

/* What the operation does to an image of this size; with `evaluate`, its neutral form. */
HOST_DEVICE AugmentDrawn augment_op_draw(const AugmentOp *op, const AugmentKey *key, bool evaluate, AugmentSize size) {
    const AugmentRandom drawn_from = {key, op->draw};
    const AugmentRandom *random = evaluate ? NULL : &drawn_from;
    switch (op->kind) {
#define AUGMENT_CHOSEN(name, ...)                                                                                      \
    case AUGMENT_##name:                                                                                               \
        return augment_amount(augment_##name##_chosen(&op->as.name, key->sample) ? 0 : AUGMENT_ONE, size);
#define AUGMENT_OP_POSITIONAL AUGMENT_CHOSEN
#define AUGMENT_OP_VALUE AUGMENT_CHOSEN
#define AUGMENT_OPERATION(name, ...)                                                                                   \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_draw(&op->as.name, random, size);
#include "augment/ops/table.h"
#undef AUGMENT_CHOSEN
    default:
        return augment_mirror(false, size);
    }
}

HOST_DEVICE AugmentPixel augment_op_pixel(const AugmentOp *op, const AugmentDrawn *drawn, AugmentPixel pixel) {
    switch (op->kind) {
#define AUGMENT_OP_COLOUR(name, ...)                                                                                   \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_pixel(&op->as.name, drawn, pixel);
#include "augment/ops/table.h"
    default:
        return pixel;
    }
}

HOST_DEVICE AugmentPixel augment_op_pixel_at(const AugmentOp *op, size_t at, AugmentPixel pixel) {
    switch (op->kind) {
#define AUGMENT_OP_POSITIONAL(name, ...)                                                                               \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_pixel_at(&op->as.name, at, pixel);
#include "augment/ops/table.h"
    default:
        return pixel;
    }
}

/* Returns the largest distance used, at most AUGMENT_MAX_RADIUS; fills weights[0..] for the distances up to it. */
HOST_DEVICE int32_t augment_op_taps(const AugmentOp *op, const AugmentDrawn *drawn, uint32_t *weights) {
    switch (op->kind) {
#define AUGMENT_OP_LOCAL(name, ...)                                                                                    \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_taps(&op->as.name, drawn, weights);
#include "augment/ops/table.h"
    default:
        weights[0] = AUGMENT_ONE;
        return 0;
    }
}

/* Round sums along a row to 1 / 256, then sums along a column to values; weights are in units of 1 / AUGMENT_ONE. */
HOST_DEVICE uint32_t augment_local_row(uint32_t sum) { return (sum + 128) >> 8; }
HOST_DEVICE uint8_t augment_local_value(uint32_t sum) { return (uint8_t)((sum + (1u << 23)) >> 24); }

/* `sums`: of the pixel and its eight neighbours. */
HOST_DEVICE AugmentPixel augment_op_box(const AugmentOp *op, const AugmentDrawn *drawn, AugmentPixel pixel,
                                        const uint32_t sums[AUGMENT_CHANNELS]) {
    switch (op->kind) {
#define AUGMENT_OP_BOX(name, ...)                                                                                      \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_box(&op->as.name, drawn, pixel, sums);
#include "augment/ops/table.h"
    default:
        return pixel;
    }
}

/* For one channel. */
HOST_DEVICE void augment_op_table(const AugmentOp *op, const AugmentDrawn *drawn, const uint32_t *counts,
                                  uint8_t *table) {
    switch (op->kind) {
#define AUGMENT_OP_HISTOGRAM(name, ...)                                                                                \
    case AUGMENT_##name:                                                                                               \
        augment_##name##_table(&op->as.name, drawn, counts, table);                                                    \
        return;
#include "augment/ops/table.h"
    default:
        return;
    }
}

HOST_DEVICE AugmentPixel augment_op_mix(const AugmentOp *op, const AugmentDrawn *drawn, AugmentPixel own,
                                        AugmentPixel previous) {
    switch (op->kind) {
#define AUGMENT_OP_MIX(name, ...)                                                                                      \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_mix(&op->as.name, drawn, own, previous);
#include "augment/ops/table.h"
    default:
        return own;
    }
}

HOST_DEVICE int64_t augment_op_value(const AugmentOp *op, int64_t label) {
    switch (op->kind) {
#define AUGMENT_OP_VALUE(name, ...)                                                                                    \
    case AUGMENT_##name:                                                                                               \
        return augment_##name##_value(&op->as.name, label);
#include "augment/ops/table.h"
    default:
        return label;
    }
}

/* Writes the entry's columns. */
HOST_DEVICE void augment_op_label(const AugmentOp *op, const AugmentDrawn *drawn, int64_t own, int64_t previous,
                                  float *to) {
    switch (op->kind) {
#define AUGMENT_OP_LABEL(name, ...)                                                                                    \
    case AUGMENT_##name:                                                                                               \
        augment_##name##_label(&op->as.name, drawn, own, previous, to);                                                \
        return;
#include "augment/ops/table.h"
    default:
        return;
    }
}

#endif
