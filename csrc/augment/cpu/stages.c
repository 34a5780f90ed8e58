/* One operation after the other on uint8 pixels, in two scratch images: for chains that one pass cannot express. */
#include "augment/cpu/stages.h"

#include <string.h>

AugmentDraw augment_draw(const AugmentOp *op, CropKey key, bool evaluate, int32_t height, int32_t width) {
    AugmentDraw draw = {0};
    switch (op->kind) {
    case AUGMENT_FLIP:
        draw.mirror = !evaluate && crop_flip(key, op->draw, op->probability);
        break;
    case AUGMENT_ALTERNATE:
        draw.mirror = !evaluate && crop_alternate(key, op->draw);
        break;
    case AUGMENT_TRANSLATE:
        if (!evaluate) draw.offset = crop_translate(key, op->draw, op->padding);
        break;
    case AUGMENT_CROP: {
        int32_t rows = height + 2 * op->padding, columns = width + 2 * op->padding;
        draw.offset = evaluate ? (CropOffset){(rows - op->height) / 2, (columns - op->width) / 2}
                               : crop_window(key, op->draw, rows, columns, op->height, op->width);
        draw.offset.y -= op->padding;
        draw.offset.x -= op->padding;
        break;
    }
    case AUGMENT_CUTOUT:
        draw.hole = !evaluate;
        if (!evaluate) draw.offset = crop_window(key, op->draw, height, width, op->height, op->width);
        break;
    }
    return draw;
}

const char *augment_kind_name(AugmentKind kind) {
    switch (kind) {
    case AUGMENT_FLIP:
        return "RandomHorizontalFlip";
    case AUGMENT_ALTERNATE:
        return "AlternatingFlip";
    case AUGMENT_TRANSLATE:
        return "RandomTranslate";
    case AUGMENT_CROP:
        return "RandomCrop";
    case AUGMENT_CUTOUT:
        return "Cutout";
    }
    return "unknown operation";
}

typedef struct Stage {
    const uint8_t *pixels;
    int32_t height, width;
} Stage;

static void set_pixel(uint8_t *to, const double *fill) {
    for (int c = 0; c < AUGMENT_CHANNELS; c++) to[c] = (uint8_t)fill[c];
}

/* Moves the image so that out(y, x) = in(y + dy, x + dx). */
static Stage shift(Stage in, const AugmentOp *op, CropOffset by, uint8_t *out) {
    bool crop = op->kind == AUGMENT_CROP, reflect = crop && op->reflect;
    Stage result = {out, crop ? op->height : in.height, crop ? op->width : in.width};
    for (int32_t y = 0; y < result.height; y++) {
        int32_t row = reflect ? crop_reflect(y + by.y, in.height) : y + by.y;
        for (int32_t x = 0; x < result.width; x++) {
            int32_t column = reflect ? crop_reflect(x + by.x, in.width) : x + by.x;
            uint8_t *to = out + ((ptrdiff_t)y * result.width + x) * AUGMENT_CHANNELS;
            if (row < 0 || row >= in.height || column < 0 || column >= in.width) {
                set_pixel(to, op->fill);
            } else {
                memcpy(to, in.pixels + ((ptrdiff_t)row * in.width + column) * AUGMENT_CHANNELS, AUGMENT_CHANNELS);
            }
        }
    }
    return result;
}

static Stage mirror(Stage in, uint8_t *out) {
    for (int32_t y = 0; y < in.height; y++) {
        for (int32_t x = 0; x < in.width; x++) {
            const uint8_t *from = in.pixels + ((ptrdiff_t)y * in.width + in.width - 1 - x) * AUGMENT_CHANNELS;
            memcpy(out + ((ptrdiff_t)y * in.width + x) * AUGMENT_CHANNELS, from, AUGMENT_CHANNELS);
        }
    }
    return (Stage){out, in.height, in.width};
}

static Stage punch(Stage in, const AugmentOp *op, CropOffset corner, uint8_t *out) {
    memcpy(out, in.pixels, (size_t)in.height * (size_t)in.width * AUGMENT_CHANNELS);
    for (int32_t y = corner.y; y < corner.y + op->height; y++) {
        for (int32_t x = corner.x; x < corner.x + op->width; x++) {
            set_pixel(out + ((ptrdiff_t)y * in.width + x) * AUGMENT_CHANNELS, op->fill);
        }
    }
    return (Stage){out, in.height, in.width};
}

/* The largest image between two operations. */
static size_t largest(const AugmentSpec *spec) {
    size_t most = (size_t)spec->height * (size_t)spec->width;
    for (int i = 0; i < spec->op_count; i++) {
        if (spec->ops[i].kind != AUGMENT_CROP) continue;
        size_t area = (size_t)spec->ops[i].height * (size_t)spec->ops[i].width;
        if (area > most) most = area;
    }
    return most * AUGMENT_CHANNELS;
}

size_t augment_stages_bytes(const AugmentSpec *spec) { return 2 * largest(spec); }

const uint8_t *augment_stages(const AugmentSpec *spec, const uint8_t *pixels, CropKey key, bool evaluate,
                              void *scratch) {
    Stage now = {pixels, spec->height, spec->width};
    uint8_t *halves[2] = {scratch, (uint8_t *)scratch + largest(spec)};
    int next = 0;
    for (int i = 0; i < spec->op_count && !spec->ops[i].normalized; i++) {
        const AugmentOp *op = &spec->ops[i];
        AugmentDraw draw = augment_draw(op, key, evaluate, now.height, now.width);
        if (op->kind == AUGMENT_TRANSLATE || op->kind == AUGMENT_CROP) {
            now = shift(now, op, draw.offset, halves[next]);
        } else if (draw.hole) {
            now = punch(now, op, draw.offset, halves[next]);
        } else if (draw.mirror) {
            now = mirror(now, halves[next]);
        } else {
            continue;
        }
        next ^= 1;
    }
    return now.pixels;
}
