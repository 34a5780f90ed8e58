/* Prepares a spec, and augments one image at a time: draws become one frame (where each output pixel comes from)
 * and a few holes, a kernel converts the rows (from a padded copy where padding can show), holes are painted over.
 * Chains that one frame cannot express go through cpu/stages.c first. Owns tables, keeps nothing between images. */
#include "augment/augment.h"

#include <math.h>
#include <string.h>

#include "augment/cpu/levels.h"
#include "augment/cpu/stages.h"
#include "base/cpu.h"
#include "base/memory.h"

/* out(y, x) = in(y + y0, x0 + x), or in(y + y0, x0 - x) if mirrored. */
typedef struct Frame {
    int32_t y0, x0;
    bool mirror;
} Frame;

typedef struct Rectangle {
    int32_t y, x, height, width;
} Rectangle;

typedef struct Hole {
    int op;
    int32_t y, x;
} Hole;

size_t image_type_bytes(ImageType type) { return type == IMAGE_U8 ? 1 : type == IMAGE_F32 ? 4 : 2; }

void augment_output_size(const Augment *a, int32_t *height, int32_t *width) {
    *height = a->out_height;
    *width = a->out_width;
}

size_t augment_output_bytes(const Augment *a) {
    return (size_t)a->out_height * (size_t)a->out_width * AUGMENT_CHANNELS * a->item_bytes;
}

/* Scratch memory holds the padded image, or the stages. */
static size_t padded_stride(const Augment *a) {
    return ((size_t)a->spec.width + 2 * (size_t)a->margin) * AUGMENT_CHANNELS;
}

static size_t padded_rows(const Augment *a) { return (size_t)a->spec.height + 2 * (size_t)a->margin; }

size_t augment_scratch_bytes(const Augment *a) {
    if (!a->simple) return augment_stages_bytes(&a->spec);
    return a->pad < 0 ? 0 : padded_stride(a) * padded_rows(a);
}

void augment_scratch_init(const Augment *a, void *scratch) {
    uint8_t *pixel = scratch;
    if (!a->simple || a->pad < 0) return;
    for (size_t i = 0; i < augment_scratch_bytes(a); i++) {
        pixel[i] = (uint8_t)a->spec.ops[a->pad].fill[i % AUGMENT_CHANNELS];
    }
}

/* ---- preparing ---- */

static bool pads(const AugmentOp *op) { return op->kind == AUGMENT_TRANSLATE || op->kind == AUGMENT_CROP; }

static Status check_fill(const AugmentOp *op) {
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        bool byte = op->fill[c] >= 0 && op->fill[c] <= 255 && op->fill[c] == floor(op->fill[c]);
        if (!(op->normalized ? isfinite(op->fill[c]) : byte)) {
            FAIL(STATUS_ARGUMENT, "fill must be %s, not %g",
                 op->normalized ? "finite" : "three whole numbers in 0..255", op->fill[c]);
        }
    }
    return STATUS_OK;
}

static Status check_padding(const AugmentOp *op, int32_t height, int32_t width) {
    int32_t most = AUGMENT_MAX_PADDING;
    if (op->kind == AUGMENT_CROP && op->reflect && most >= height) most = height - 1;
    if (op->kind == AUGMENT_CROP && op->reflect && most >= width) most = width - 1;
    if (op->padding >= 0 && op->padding <= most) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "padding must be in 0..%d for images of %dx%d, not %d", most, height, width, op->padding);
}

/* Checks an operation on images of *height x *width and updates the size. */
static Status check_op(const AugmentOp *op, int32_t *height, int32_t *width) {
    TRY(check_fill(op));
    switch (op->kind) {
    case AUGMENT_ALTERNATE:
        return STATUS_OK;
    case AUGMENT_FLIP:
        if (op->probability >= 0 && op->probability <= 1) return STATUS_OK;
        FAIL(STATUS_ARGUMENT, "flip_prob must be in 0..1, not %g", (double)op->probability);
    case AUGMENT_TRANSLATE:
        return check_padding(op, *height, *width);
    case AUGMENT_CROP:
        TRY(check_padding(op, *height, *width));
        if (op->height < 1 || op->width < 1 || op->height > *height + 2 * op->padding ||
            op->width > *width + 2 * op->padding) {
            FAIL(STATUS_ARGUMENT, "a crop of %dx%d does not fit an image of %dx%d padded by %d", op->height, op->width,
                 *height, *width, op->padding);
        }
        *height = op->height;
        *width = op->width;
        return STATUS_OK;
    case AUGMENT_CUTOUT:
        if (op->height >= 1 && op->width >= 1 && op->height <= *height && op->width <= *width) return STATUS_OK;
        FAIL(STATUS_ARGUMENT, "a hole of %dx%d does not fit an image of %dx%d", op->height, op->width, *height, *width);
    }
    FAIL(STATUS_ARGUMENT, "unknown image operation %d", (int)op->kind);
}

static Status check_spec(const AugmentSpec *spec, int32_t *height, int32_t *width) {
    *height = spec->height;
    *width = spec->width;
    if (*height < 1 || *width < 1 || *height > UINT16_MAX || *width > UINT16_MAX) {
        FAIL(STATUS_ARGUMENT, "an image must be 1x1 to 65535x65535, not %dx%d", *height, *width);
    }
    if (spec->op_count < 0 || spec->op_count > AUGMENT_MAX_OPS) {
        FAIL(STATUS_ARGUMENT, "at most %d image operations fit one pipeline, not %d", AUGMENT_MAX_OPS, spec->op_count);
    }
    if ((unsigned)spec->type >= IMAGE_TYPES || (unsigned)spec->normalized_type >= IMAGE_TYPES) {
        FAIL(STATUS_ARGUMENT, "unknown image type %d or %d", (int)spec->type, (int)spec->normalized_type);
    }
    if (spec->normalize && (spec->type == IMAGE_U8 || spec->normalized_type == IMAGE_U8)) {
        FAIL(STATUS_ARGUMENT, "a normalised image must be float32, float16 or bfloat16, not uint8");
    }
    for (int c = 0; spec->normalize && c < AUGMENT_CHANNELS; c++) {
        if (!isfinite(spec->mean[c]) || !(spec->std[c] > 0) || !isfinite(spec->std[c])) {
            FAIL(STATUS_ARGUMENT, "mean must be finite and std above 0, not %g and %g", spec->mean[c], spec->std[c]);
        }
    }
    bool normalized = false;
    for (int i = 0; i < spec->op_count; i++) {
        TRY(error_at_operation(check_op(&spec->ops[i], height, width), augment_kind_name(spec->ops[i].kind)));
        if (normalized && !spec->ops[i].normalized) FAIL(STATUS_ARGUMENT, "operations after normalisation come last");
        normalized = spec->ops[i].normalized;
        if (normalized && spec->ops[i].kind != AUGMENT_CUTOUT) {
            FAIL(STATUS_ARGUMENT, "only a hole can follow normalisation");
        }
    }
    return STATUS_OK;
}

/* Whether one frame and some holes express the chain. */
static bool is_simple(const AugmentSpec *spec) {
    int padding = 0, holes = 0;
    for (int i = 0; i < spec->op_count; i++) {
        const AugmentOp *op = &spec->ops[i];
        if (op->kind == AUGMENT_CUTOUT) {
            holes++;
        } else if (holes > 0) {
            return false;
        }
        padding += pads(op);
    }
    return padding <= 1;
}

static void make_shuffles(AugmentShuffles *s) {
    memset(s, 0x80, sizeof *s); /* which gives zero */
    for (int i = 0; i < AUGMENT_BLOCK; i++) {
        for (int c = 0; c < AUGMENT_CHANNELS; c++) {
            int from = AUGMENT_CHANNELS * i + c, reverse = AUGMENT_CHANNELS * (AUGMENT_BLOCK - 1 - i) + c;
            s->planes[0][c][from / 16][i] = (uint8_t)(from % 16);
            s->planes[1][c][reverse / 16][i] = (uint8_t)(reverse % 16);
            s->mirror[from / 16][reverse / 16][from % 16] = (uint8_t)(reverse % 16);
        }
    }
}

static AugmentKernel choose_kernel(const Augment *a) {
    ImageType type = a->spec.type;
    ImageLayout layout = a->spec.layout;
#if defined(__x86_64__)
    bool vector = type == IMAGE_U8 || a->affine;
    if (vector && cpu_features()->avx512) return augment_kernels_avx512[type][layout];
    if (vector && cpu_features()->avx2) return augment_kernels_avx2[type][layout];
#endif
    return augment_kernels_scalar[type][layout];
}

static void set_strides(Augment *a) {
    size_t height = (size_t)a->out_height, width = (size_t)a->out_width, item = image_type_bytes(a->spec.type);
    bool chw = a->spec.layout == IMAGE_CHW;
    a->item_bytes = item;
    a->pixel_stride = chw ? item : item * AUGMENT_CHANNELS;
    a->row_stride = a->pixel_stride * width;
    a->plane_stride = chw ? item * width * height : item;
}

static void set_fills(Augment *a) {
    a->pad = -1;
    for (int i = 0; i < a->spec.op_count; i++) {
        const AugmentOp *op = &a->spec.ops[i];
        for (int c = 0; c < AUGMENT_CHANNELS; c++) {
            a->fill[i][c] =
                op->normalized ? augment_bits(op->fill[c], a->spec.type) : augment_level(&a->spec, c, op->fill[c]);
        }
        if (!pads(op) || op->padding == 0) continue;
        a->pad = i;
        a->margin = op->padding;
    }
}

Status augment_create(const AugmentSpec *spec, Augment **out) {
    Augment *a = NULL;
    int32_t height, width;
    TRY(check_spec(spec, &height, &width));
    TRY(memory_calloc(1, sizeof *a, &a));
    a->spec = *spec;
    a->out_height = height;
    a->out_width = width;
    a->simple = is_simple(spec);
    set_strides(a);
    augment_make_table(a);
    set_fills(a);
    make_shuffles(&a->shuffles);
    a->kernel = choose_kernel(a);
    *out = a;
    return STATUS_OK;
}

void augment_destroy(Augment *a) { memory_free(a); }

/* ---- one image ---- */

static void frame_mirror(Frame *f, int32_t width) {
    f->x0 += f->mirror ? 1 - width : width - 1;
    f->mirror = !f->mirror;
}

static int make_frame(const Augment *a, CropKey key, bool evaluate, Frame *f, Hole *holes) {
    const AugmentSpec *spec = &a->spec;
    int32_t height = spec->height, width = spec->width;
    int count = 0;
    *f = (Frame){0};
    for (int i = 0; i < spec->op_count; i++) {
        AugmentDraw draw = augment_draw(&spec->ops[i], key, evaluate, height, width);
        if (draw.mirror) frame_mirror(f, width);
        if (draw.hole) holes[count++] = (Hole){i, draw.offset.y, draw.offset.x};
        if (!pads(&spec->ops[i])) continue;
        f->y0 += draw.offset.y;
        f->x0 += f->mirror ? -draw.offset.x : draw.offset.x;
        if (spec->ops[i].kind != AUGMENT_CROP) continue;
        height = spec->ops[i].height;
        width = spec->ops[i].width;
    }
    return count;
}

static unsigned char *at(const Augment *a, unsigned char *out, int32_t y, int32_t x) {
    return out + (size_t)y * a->row_stride + (size_t)x * a->pixel_stride;
}

/* `count` items of one value in a row; inlined with a constant item size. */
static inline __attribute__((always_inline)) void fill_items(unsigned char *to, size_t count, uint32_t value,
                                                             size_t item_bytes) {
    const uint64_t repeat = item_bytes == 1   ? 0x0101010101010101u
                            : item_bytes == 2 ? 0x0001000100010001u
                                              : 0x0000000100000001u;
    const uint64_t pattern = repeat * value;
    const size_t bytes = count * item_bytes;
    if (bytes < sizeof pattern) {
        for (size_t i = 0; i < count; i++) augment_store(to + i * item_bytes, value, item_bytes);
        return;
    }
    for (size_t i = 0; i + sizeof pattern <= bytes; i += sizeof pattern) store_u64(to + i, pattern);
    store_u64(to + bytes - sizeof pattern, pattern);
}

static inline __attribute__((always_inline)) void paint_as(const Augment *a, unsigned char *corner, Rectangle r,
                                                           const uint32_t *value, size_t item_bytes) {
    for (int32_t i = 0; i < r.height; i++, corner += a->row_stride) {
        if (a->spec.layout == IMAGE_CHW) {
            for (int c = 0; c < AUGMENT_CHANNELS; c++) {
                fill_items(corner + (size_t)c * a->plane_stride, (size_t)r.width, value[c], item_bytes);
            }
            continue;
        }
        unsigned char *to = corner;
        for (int32_t j = 0; j < r.width; j++, to += AUGMENT_CHANNELS * item_bytes) {
            for (size_t c = 0; c < AUGMENT_CHANNELS; c++) augment_store(to + c * item_bytes, value[c], item_bytes);
        }
    }
}

/* Fills a rectangle with one value a channel. */
static void paint(const Augment *a, unsigned char *out, Rectangle r, const uint32_t *value) {
    unsigned char *corner = at(a, out, r.y, r.x);
    if (a->item_bytes == 1) {
        paint_as(a, corner, r, value, 1);
    } else if (a->item_bytes == 2) {
        paint_as(a, corner, r, value, 2);
    } else {
        paint_as(a, corner, r, value, 4);
    }
}

static void convert(const Augment *a, const uint8_t *source, size_t stride, bool mirror, const uint8_t *next,
                    unsigned char *out) {
    const size_t next_bytes = (size_t)a->spec.height * (size_t)a->spec.width * AUGMENT_CHANNELS;
    AugmentStrip strip = {.source = source,
                          .source_stride = stride,
                          .rows = (size_t)a->out_height,
                          .width = (size_t)a->out_width,
                          .mirror = mirror,
                          .out = out,
                          .out_stride = a->row_stride,
                          .plane = a->plane_stride,
                          .next = next,
                          .next_stride = next_bytes / (size_t)a->out_height};
    a->kernel(a, &strip);
}

/* A short copy, without a call. */
static inline void copy_row(uint8_t *to, const uint8_t *from, size_t bytes) {
    enum { STEP = 32 };
    if (bytes < STEP) {
        memcpy(to, from, bytes);
        return;
    }
    for (size_t i = 0; i + STEP <= bytes; i += STEP) memcpy(to + i, from + i, STEP);
    memcpy(to + bytes - STEP, from + bytes - STEP, STEP);
}

static void reflect_sides(uint8_t *row, int32_t width, int32_t margin) {
    for (int32_t i = 1; i <= margin; i++) {
        memcpy(row - AUGMENT_CHANNELS * i, row + AUGMENT_CHANNELS * i, AUGMENT_CHANNELS);
        memcpy(row + AUGMENT_CHANNELS * (width - 1 + i), row + AUGMENT_CHANNELS * (width - 1 - i), AUGMENT_CHANNELS);
    }
}

/* Puts the rows that the frame needs into the padded image, whose fill stands there already; the place of in(0, 0). */
static const uint8_t *pad_rows(const Augment *a, const Frame *f, const uint8_t *pixels, uint8_t *scratch) {
    const int32_t height = a->spec.height, width = a->spec.width, margin = a->margin;
    const size_t row_bytes = (size_t)width * AUGMENT_CHANNELS, stride = padded_stride(a);
    const bool reflect = a->spec.ops[a->pad].reflect;
    uint8_t *origin = scratch + (size_t)margin * (stride + AUGMENT_CHANNELS);
    for (int32_t y = f->y0; y < f->y0 + a->out_height; y++) {
        int32_t from = reflect ? crop_reflect(y, height) : y;
        if (from < 0 || from >= height) continue;
        uint8_t *row = origin + y * (ptrdiff_t)stride;
        copy_row(row, pixels + (size_t)from * row_bytes, row_bytes);
        if (reflect) reflect_sides(row, width, margin);
    }
    return origin;
}

static void run_frame(const Augment *a, const Frame *f, const uint8_t *pixels, const uint8_t *next, unsigned char *out,
                      uint8_t *scratch) {
    size_t stride = (size_t)a->spec.width * AUGMENT_CHANNELS;
    const uint8_t *origin = pixels;
    if (a->pad >= 0) {
        stride = padded_stride(a);
        origin = pad_rows(a, f, pixels, scratch);
    }
    int32_t first = f->mirror ? f->x0 - a->out_width + 1 : f->x0;
    convert(a, origin + f->y0 * (ptrdiff_t)stride + (ptrdiff_t)first * AUGMENT_CHANNELS, stride, f->mirror, next, out);
}

void augment_run(const Augment *a, const uint8_t *pixels, const uint8_t *next, CropKey key, bool evaluate, void *out,
                 void *scratch) {
    Frame frame;
    Hole holes[AUGMENT_MAX_OPS];
    int count = 0;
    if (a->simple) {
        count = make_frame(a, key, evaluate, &frame, holes);
        run_frame(a, &frame, pixels, next, out, scratch);
    } else {
        const uint8_t *moved = augment_stages(&a->spec, pixels, key, evaluate, scratch);
        convert(a, moved, (size_t)a->out_width * AUGMENT_CHANNELS, false, next, out);
        for (int i = 0; i < a->spec.op_count; i++) {
            if (!a->spec.ops[i].normalized) continue;
            AugmentDraw draw = augment_draw(&a->spec.ops[i], key, evaluate, a->out_height, a->out_width);
            if (draw.hole) holes[count++] = (Hole){i, draw.offset.y, draw.offset.x};
        }
    }
    for (int i = 0; i < count; i++) {
        const AugmentOp *op = &a->spec.ops[holes[i].op];
        paint(a, out, (Rectangle){holes[i].y, holes[i].x, op->height, op->width}, a->fill[holes[i].op]);
    }
}
