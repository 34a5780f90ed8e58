/* Chains for images with any channels and values: an image is copied to scratch memory, changed there by one operation
 * after another, and converted as it is written to the output. */
#include "augment/cpu/general.h"

#include <string.h>

#include "augment/cpu/levels.h"
#include "augment/cpu/values.h"
#include "base/memory.h"

#define ALIGNMENT 16

/* Scratch memory contains two images, the previous one in the batch (if images are mixed), and what a blur needs. */
struct AugmentGeneral {
    const AugmentSpec *spec;  /* borrowed */
    const AugmentSize *sizes; /* borrowed */
    const AugmentValueKernels *kernels;
    int32_t channels;
    size_t value_bytes, pixel_bytes, image_bytes; /* of the source's type; image_bytes of the largest */
    int mixing;                                   /* the operation that mixes; -1: none */
    size_t blur_at, scratch_bytes;
    uint32_t fill[AUGMENT_MAX_OPS][AUGMENT_MAX_CHANNELS]; /* bits: of the source's type, or of the output's */
    uint32_t level[AUGMENT_MAX_CHANNELS][AUGMENT_LEVELS]; /* IMAGE_U8: bits of the output for each value */
};

/* An image in scratch memory, and room for another one. */
typedef struct Work {
    uint8_t *now, *other;
    AugmentSize size;
} Work;

/* ---- supported formats ---- */

static Status refuse(AugmentFormat format, const char *what) {
    const int32_t channels = augment_channels(format);
    FAIL(STATUS_TYPE, "takes images of %s, not of %d %s of %s", what, channels, channels == 1 ? "channel" : "channels",
         augment_type_name((int)format.type));
}

static Status takes_colour(const AugmentEntry *entry, AugmentFormat format) {
    const int32_t channels = augment_channels(format);
    switch (entry->other) {
    case AUGMENT_BLACK:
        return STATUS_OK;
    case AUGMENT_MEAN:
        return channels == 1 || channels == AUGMENT_CHANNELS ? STATUS_OK : refuse(format, "1 or 3 channels");
    case AUGMENT_GREY:
    case AUGMENT_ROTATE_HUE:
        return channels == AUGMENT_CHANNELS ? STATUS_OK : refuse(format, "3 channels");
    case AUGMENT_NOTHING:
        break;
    }
    if (!entry->levels) return refuse(format, "3 channels of uint8");
    return format.type == IMAGE_U8 ? STATUS_OK : refuse(format, "uint8");
}

Status augment_general_takes(const AugmentOp *op, AugmentFormat format) {
    const AugmentEntry *entry = augment_entry(op->kind);
    switch (entry->phase) {
    case AUGMENT_MOVE:
    case AUGMENT_FILL:
    case AUGMENT_LOCAL:
    case AUGMENT_MIX:
        return STATUS_OK;
    case AUGMENT_COLOUR:
        return takes_colour(entry, format);
    default:
        return refuse(format, "3 channels of uint8");
    }
}

/* ---- creation ---- */

static size_t rounded_up(size_t bytes) { return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1); }

static size_t bytes_of(const AugmentGeneral *g, AugmentSize size) {
    return (size_t)size.height * (size_t)size.width * g->pixel_bytes;
}

static void place_scratch(AugmentGeneral *g) {
    size_t blur = 0;
    g->mixing = -1;
    for (int i = 0; i <= g->spec->op_count; i++) {
        if (bytes_of(g, g->sizes[i]) > g->image_bytes) g->image_bytes = bytes_of(g, g->sizes[i]);
        if (i == g->spec->op_count) break;
        const AugmentPhase phase = augment_phase(&g->spec->ops[i]);
        if (phase == AUGMENT_MIX) g->mixing = i;
        const size_t needed = augment_values_blur_bytes((size_t)g->sizes[i].width * (size_t)g->channels);
        if (phase == AUGMENT_LOCAL && needed > blur) blur = needed;
    }
    g->image_bytes = rounded_up(g->image_bytes);
    g->blur_at = (g->mixing >= 0 ? 3 : 2) * g->image_bytes;
    g->scratch_bytes = g->blur_at + blur;
}

static void set_values(AugmentGeneral *g) {
    const AugmentSpec *spec = g->spec;
    for (int i = 0; i < spec->op_count; i++) {
        const AugmentFill *fill = augment_op_fill(&spec->ops[i]);
        const ImageType type = spec->ops[i].normalized ? spec->type : spec->format.type;
        for (int c = 0; fill != NULL && c < g->channels; c++) g->fill[i][c] = augment_bits(fill->colour[c], type);
    }
    for (int c = 0; spec->format.type == IMAGE_U8 && c < g->channels; c++) {
        for (int v = 0; v < AUGMENT_LEVELS; v++) g->level[c][v] = augment_level(spec, c, v);
    }
}

Status augment_general_create(const AugmentSpec *spec, const AugmentSize *sizes, AugmentGeneral **out) {
    AugmentGeneral *g;
    TRY(memory_calloc(1, sizeof *g, &g));
    g->spec = spec;
    g->sizes = sizes;
    g->kernels = augment_value_kernels(spec->format.type);
    g->channels = augment_channels(spec->format);
    g->value_bytes = augment_type_bytes(spec->format.type);
    g->pixel_bytes = g->value_bytes * (size_t)g->channels;
    place_scratch(g);
    set_values(g);
    *out = g;
    return STATUS_OK;
}

void augment_general_destroy(AugmentGeneral *general) { memory_free(general); }

size_t augment_general_scratch_bytes(const AugmentGeneral *g) { return g->scratch_bytes + ALIGNMENT; }

bool augment_general_mixes(const AugmentGeneral *g) { return g->mixing >= 0; }

/* ---- moves and fills ---- */

static void store_pixel(const AugmentGeneral *g, uint8_t *to, const uint32_t *bits) {
    for (int32_t c = 0; c < g->channels; c++, to += g->value_bytes) augment_store(to, bits[c], g->value_bytes);
}

/* Makes pixels [first, last) of a row of the result, which all come from one row of the source. */
static void move_row(const AugmentGeneral *g, const AugmentDrawn *by, const uint8_t *row, int32_t width, int32_t first,
                     int32_t last, uint8_t *to) {
    const size_t bytes = g->pixel_bytes;
    to += (size_t)first * bytes;
    if (!by->acts) {
        memcpy(to, row + (size_t)(first + by->x) * bytes, (size_t)(last - first) * bytes);
        return;
    }
    for (int32_t x = first; x < last; x++, to += bytes) memcpy(to, row + (size_t)(width - 1 - x) * bytes, bytes);
}

/* Makes the pixels outside the source: mirrored, or filled. */
static void pad_row(const AugmentGeneral *g, int op, const AugmentDrawn *by, const uint8_t *row, int32_t width,
                    int32_t first, int32_t last, uint8_t *to) {
    const AugmentFill *fill = augment_op_fill(&g->spec->ops[op]);
    const bool reflect = fill != NULL && fill->reflect;
    for (int32_t x = first; x < last; x++) {
        uint8_t *pixel = to + (size_t)x * g->pixel_bytes;
        if (reflect && row != NULL) {
            memcpy(pixel, row + (size_t)augment_reflect(x + by->x, width) * g->pixel_bytes, g->pixel_bytes);
        } else {
            store_pixel(g, pixel, g->fill[op]);
        }
    }
}

static int32_t within(int32_t value, int32_t least, int32_t most) {
    return value < least ? least : value < most ? value : most;
}

static void move(const AugmentGeneral *g, int op, const AugmentDrawn *by, Work *work) {
    const AugmentFill *fill = augment_op_fill(&g->spec->ops[op]);
    const AugmentSize from = work->size, size = g->sizes[op + 1];
    const size_t stride = (size_t)from.width * g->pixel_bytes;
    const int32_t first = within(-by->x, 0, size.width), last = within(from.width - by->x, first, size.width);
    for (int32_t y = 0; y < size.height; y++) {
        uint8_t *to = work->other + (size_t)y * (size_t)size.width * g->pixel_bytes;
        int32_t line = by->flips_vertically ? from.height - 1 - y : y + by->y;
        if (fill != NULL && fill->reflect) line = augment_reflect(line, from.height);
        const uint8_t *row = line < 0 || line >= from.height ? NULL : work->now + (size_t)line * stride;
        if (row != NULL) move_row(g, by, row, from.width, first, last, to);
        pad_row(g, op, by, row, from.width, 0, row != NULL ? first : size.width, to);
        if (row != NULL) pad_row(g, op, by, row, from.width, last, size.width, to);
    }
    uint8_t *before = work->now;
    *work = (Work){work->other, before, size};
}

static void fill(const AugmentGeneral *g, int op, const AugmentDrawn *hole, Work *work) {
    for (int32_t y = hole->y; y < hole->y + hole->height; y++) {
        uint8_t *to = work->now + ((size_t)y * (size_t)work->size.width + (size_t)hole->x) * g->pixel_bytes;
        for (int32_t x = 0; x < hole->width; x++, to += g->pixel_bytes) store_pixel(g, to, g->fill[op]);
    }
}

/* ---- values ---- */

static AugmentValues values_of(const AugmentGeneral *g, const Work *work) {
    return (AugmentValues){work->now, (size_t)work->size.height * (size_t)work->size.width, g->channels};
}

/* An operation that treats each uint8 value alone is evaluated once for all of them. */
static void change_levels(const AugmentOp *op, const AugmentDrawn *drawn, const AugmentValues *image) {
    uint8_t table[AUGMENT_LEVELS], *values = image->data;
    for (int v = 0; v < AUGMENT_LEVELS; v++) {
        table[v] = augment_op_pixel(op, drawn, (AugmentPixel){{(uint8_t)v, (uint8_t)v, (uint8_t)v}}).value[0];
    }
    for (size_t i = 0; i < image->pixels * (size_t)image->channels; i++) values[i] = table[values[i]];
}

static void change(const AugmentGeneral *g, int op, const AugmentDrawn *drawn, Work *work, uint8_t *scratch) {
    const AugmentOp *it = &g->spec->ops[op];
    const AugmentEntry *entry = augment_entry(it->kind);
    const AugmentValues image = values_of(g, work);
    if (entry->phase == AUGMENT_LOCAL) {
        uint32_t weights[AUGMENT_MAX_RADIUS + 1];
        const int32_t radius = augment_op_taps(it, drawn, weights);
        g->kernels->blur(&image, work->size, weights, radius, scratch + g->blur_at);
    } else if (entry->other == AUGMENT_NOTHING) {
        change_levels(it, drawn, &image);
    } else {
        g->kernels->colour(entry->other, drawn->amount, &image);
    }
}

/* Runs operations [first, end), none of which mixes. */
static void run_ops(const AugmentGeneral *g, const AugmentDrawn *drawn, int first, int end, Work *work,
                    uint8_t *scratch) {
    for (int i = first; i < end && !g->spec->ops[i].normalized; i++) {
        const AugmentPhase phase = augment_phase(&g->spec->ops[i]);
        if (phase == AUGMENT_MOVE) {
            move(g, i, &drawn[i], work);
        } else if (drawn[i].acts && phase == AUGMENT_FILL) {
            fill(g, i, &drawn[i], work);
        } else if (drawn[i].acts) {
            change(g, i, &drawn[i], work, scratch);
        }
    }
}

/* ---- mixing ---- */

static uint8_t *aligned(void *scratch) {
    return (uint8_t *)(((uintptr_t)scratch + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

static Work work_on(const AugmentGeneral *g, const AugmentImage *image, uint8_t *scratch) {
    const Work work = {scratch, scratch + g->image_bytes, g->sizes[0]};
    const size_t row = (size_t)work.size.width * g->pixel_bytes;
    for (int32_t y = 0; y < work.size.height; y++) {
        memcpy(work.now + (size_t)y * row, image->pixels + (size_t)y * image->stride, row);
    }
    return work;
}

/* Mixes the drawn rectangle of the image with the same rectangle of the previous one, which this one then replaces. */
static void mix(const AugmentGeneral *g, const AugmentDrawn *drawn, Work *work, uint8_t *before) {
    const size_t bytes = bytes_of(g, work->size), row = (size_t)work->size.width * g->pixel_bytes;
    memcpy(work->other, work->now, bytes);
    for (int32_t y = drawn->y; drawn->acts && y < drawn->y + drawn->height; y++) {
        const size_t at = (size_t)y * row + (size_t)drawn->x * g->pixel_bytes;
        const size_t values = (size_t)drawn->width * (size_t)g->channels;
        if (drawn->amount == 0) { /* nothing of its own pixels is kept */
            memcpy(work->other + at, before + at, values * g->value_bytes);
        } else {
            g->kernels->mix(drawn->amount, work->now + at, before + at, values, work->other + at);
        }
    }
    memcpy(before, work->now, bytes);
    *work = (Work){work->other, work->now, work->size};
}

void augment_general_begin(const AugmentGeneral *g, const AugmentDrawn *drawn, const AugmentImage *image,
                           void *scratch) {
    uint8_t *own = aligned(scratch);
    Work work = work_on(g, image, own);
    run_ops(g, drawn, 0, g->mixing, &work, own);
    memcpy(own + 2 * g->image_bytes, work.now, bytes_of(g, work.size));
}

/* ---- the output ---- */

typedef struct Output {
    unsigned char *first;
    size_t value_bytes, row, pixel, channel; /* bytes from one to the next */
} Output;

static Output output_of(const AugmentGeneral *g, AugmentSize size, void *out) {
    const size_t bytes = augment_type_bytes(g->spec->type), channels = (size_t)g->channels;
    const size_t height = (size_t)size.height, width = (size_t)size.width;
    if (g->spec->layout == IMAGE_CHW) return (Output){out, bytes, bytes * width, bytes, bytes * width * height};
    return (Output){out, bytes, bytes * width * channels, bytes * channels, bytes};
}

static uint32_t converted(const AugmentGeneral *g, int32_t channel, const uint8_t *value) {
    if (g->spec->format.type == IMAGE_U8) return g->level[channel][*value];
    return augment_level(g->spec, channel, g->kernels->load(value));
}

static void convert(const AugmentGeneral *g, const Work *work, const Output *to) {
    const uint8_t *value = work->now;
    for (int32_t y = 0; y < work->size.height; y++) {
        unsigned char *pixel = to->first + (size_t)y * to->row;
        for (int32_t x = 0; x < work->size.width; x++, pixel += to->pixel) {
            for (int32_t c = 0; c < g->channels; c++, value += g->value_bytes) {
                augment_store(pixel + (size_t)c * to->channel, converted(g, c, value), to->value_bytes);
            }
        }
    }
}

static void fill_output(const AugmentGeneral *g, int op, const AugmentDrawn *hole, const Output *to) {
    for (int32_t y = hole->y; y < hole->y + hole->height; y++) {
        unsigned char *pixel = to->first + (size_t)y * to->row + (size_t)hole->x * to->pixel;
        for (int32_t x = 0; x < hole->width; x++, pixel += to->pixel) {
            for (int32_t c = 0; c < g->channels; c++) {
                augment_store(pixel + (size_t)c * to->channel, g->fill[op][c], to->value_bytes);
            }
        }
    }
}

void augment_general_run(const AugmentGeneral *g, const AugmentDrawn *drawn, const AugmentImage *image, void *out,
                         void *scratch) {
    const int count = g->spec->op_count, first = g->mixing < 0 ? count : g->mixing;
    uint8_t *own = aligned(scratch);
    Work work = work_on(g, image, own);
    run_ops(g, drawn, 0, first, &work, own);
    if (g->mixing >= 0) {
        mix(g, &drawn[g->mixing], &work, own + 2 * g->image_bytes);
        run_ops(g, drawn, g->mixing + 1, count, &work, own);
    }
    const Output to = output_of(g, work.size, out);
    if (g->spec->layout == IMAGE_HWC && !g->spec->normalize && g->spec->type == g->spec->format.type) {
        memcpy(to.first, work.now, bytes_of(g, work.size));
    } else {
        convert(g, &work, &to);
    }
    for (int i = 0; i < count; i++) {
        if (g->spec->ops[i].normalized && drawn[i].acts) fill_output(g, i, &drawn[i], &to);
    }
}
