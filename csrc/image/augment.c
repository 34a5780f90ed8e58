/* Prepares a spec, and augments one image at a time: draws become one frame (where each output pixel comes from)
 * and a few holes, a kernel converts the rows, and the edges and holes are painted over. Chains that one frame
 * cannot express go through augment_stages.c first. Owns tables, keeps nothing between images. */
#include "image/augment.h"

#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "image/augment_stages.h"
#include "image/augment_table.h"

/* out(y, x) = in(y + y0, x0 + x), or in(y + y0, x0 - x) if mirrored; outside the source `pad` says what. */
typedef struct Frame {
    int32_t y0, x0;
    bool mirror;
    int pad;             /* the operation whose padding shows; -1: none */
    int32_t top, bottom; /* rows [top, bottom) and columns [left, right) come from the source */
    int32_t left, right;
} Frame;

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

static size_t scratch_row_bytes(const Augment *a) {
    return (((size_t)a->out_width + AUGMENT_BLOCK) * AUGMENT_CHANNELS + 63) & ~(size_t)63;
}

size_t augment_scratch_bytes(const Augment *a) {
    return scratch_row_bytes(a) + (a->simple ? 0 : augment_stages_bytes(&a->spec));
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
    int32_t most = UINT16_MAX;
    if (op->kind == AUGMENT_CROP && op->reflect) most = (height < width ? height : width) - 1;
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
    for (int i = 0; i < a->spec.op_count; i++) {
        const AugmentOp *op = &a->spec.ops[i];
        for (int c = 0; c < AUGMENT_CHANNELS; c++) {
            a->fill[i][c] =
                op->normalized ? augment_bits(op->fill[c], a->spec.type) : augment_level(&a->spec, c, op->fill[c]);
            if (!pads(op)) continue;
            for (int32_t x = 0; x < a->out_width; x++) a->fill_row[AUGMENT_CHANNELS * x + c] = (uint8_t)op->fill[c];
        }
    }
}

Status augment_create(const AugmentSpec *spec, Augment **out) {
    Status status = STATUS_OK;
    Augment *a = NULL;
    int32_t height, width;
    TRY(check_spec(spec, &height, &width));
    TRY(memory_calloc(1, sizeof *a, &a));
    a->spec = *spec;
    a->out_height = height;
    a->out_width = width;
    a->simple = is_simple(spec);
    TRY_GOTO(memory_calloc((size_t)width, AUGMENT_CHANNELS, &a->fill_row));
    set_strides(a);
    augment_make_table(a);
    set_fills(a);
    make_shuffles(&a->shuffles);
    a->kernel = choose_kernel(a);
    *out = a;
    a = NULL;
done:
    augment_destroy(a);
    return status;
}

void augment_destroy(Augment *a) {
    if (a == NULL) return;
    memory_free(a->fill_row);
    memory_free(a);
}

/* ---- one image ---- */

static void frame_mirror(Frame *f, int32_t width) {
    f->x0 += f->mirror ? 1 - width : width - 1;
    f->mirror = !f->mirror;
}

/* Which rows and columns of an output of height x width the frame takes from the source. */
static void frame_clip(Frame *f, const AugmentSpec *spec, int32_t height, int32_t width) {
    int32_t first = f->mirror ? f->x0 - spec->width + 1 : -f->x0;
    f->left = first > 0 ? first : 0;
    f->right = first + spec->width < width ? first + spec->width : width;
    f->top = f->y0 < 0 ? -f->y0 : 0;
    f->bottom = spec->height - f->y0 < height ? spec->height - f->y0 : height;
    /* An image moved out entirely leaves an empty range at either end. */
    if (f->left > f->right) f->left = f->right = f->right < 0 ? 0 : f->right;
    if (f->top > f->bottom) f->top = f->bottom = f->bottom < 0 ? 0 : f->bottom;
}

static int make_frame(const Augment *a, CropKey key, bool evaluate, Frame *f, Hole *holes) {
    const AugmentSpec *spec = &a->spec;
    int32_t height = spec->height, width = spec->width;
    int count = 0;
    *f = (Frame){.pad = -1};
    for (int i = 0; i < spec->op_count; i++) {
        AugmentDraw draw = augment_draw(&spec->ops[i], key, evaluate, height, width);
        if (draw.mirror) frame_mirror(f, width);
        if (draw.hole) holes[count++] = (Hole){i, draw.offset.y, draw.offset.x};
        if (!pads(&spec->ops[i])) continue;
        f->pad = i;
        f->y0 += draw.offset.y;
        f->x0 += f->mirror ? -draw.offset.x : draw.offset.x;
        if (spec->ops[i].kind == AUGMENT_CROP) {
            height = spec->ops[i].height;
            width = spec->ops[i].width;
        }
    }
    frame_clip(f, spec, height, width);
    return count;
}

static unsigned char *at(const Augment *a, unsigned char *out, int32_t y, int32_t x) {
    return out + (size_t)y * a->row_stride + (size_t)x * a->pixel_stride;
}

/* Fills a rectangle with one value a channel. */
static void paint(const Augment *a, unsigned char *out, int32_t y, int32_t x, int32_t height, int32_t width,
                  const uint32_t *value) {
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        unsigned char *corner = at(a, out, y, x) + (size_t)c * a->plane_stride;
        for (int32_t i = 0; i < height; i++) {
            unsigned char *row = corner + (size_t)i * a->row_stride;
            for (int32_t j = 0; j < width; j++) {
                augment_store(row + (size_t)j * a->pixel_stride, value[c], a->item_bytes);
            }
        }
    }
}

/* One pixel by table. */
static void put(const Augment *a, unsigned char *to, const uint8_t *pixel) {
    for (int c = 0; c < AUGMENT_CHANNELS; c++) {
        augment_store(to + (size_t)c * a->plane_stride, a->table[c][pixel[c]], a->item_bytes);
    }
}

static void convert_rows(const Augment *a, const uint8_t *source, ptrdiff_t stride, int32_t y, int32_t rows,
                         bool mirror, unsigned char *out) {
    AugmentStrip strip = {.source = source,
                          .source_stride = stride,
                          .rows = (size_t)rows,
                          .width = (size_t)a->out_width,
                          .mirror = mirror,
                          .out = at(a, out, y, 0),
                          .out_stride = a->row_stride,
                          .plane = a->plane_stride};
    if (rows > 0) a->kernel(a, &strip);
}

/* The first source column that an output row reads, in rising order of address. */
static int32_t first_column(const Augment *a, const Frame *f) { return f->mirror ? f->x0 - a->out_width + 1 : f->x0; }

/* Rows [y, y + rows) of the output from source rows [from, from + rows). A window that sticks out on the left or
 * right reads neighbouring rows there, which the edges paint over; where that would leave the image's memory, the
 * row is copied first. */
static void convert_source_rows(const Augment *a, const Frame *f, const uint8_t *pixels, int32_t from, int32_t y,
                                int32_t rows, unsigned char *out, void *scratch) {
    const ptrdiff_t stride = (ptrdiff_t)a->spec.width * AUGMENT_CHANNELS;
    const int32_t first = first_column(a, f);
    const ptrdiff_t total = stride * a->spec.height, begin = (ptrdiff_t)first * AUGMENT_CHANNELS;
    const ptrdiff_t window = (ptrdiff_t)a->out_width * AUGMENT_CHANNELS;
    int32_t done = 0;
    while (done < rows) {
        ptrdiff_t offset = (from + done) * stride + begin;
        if (offset >= 0 && offset + window <= total) {
            int32_t safe = 1;
            while (done + safe < rows && offset + safe * stride + window <= total) safe++;
            convert_rows(a, pixels + offset, stride, y + done, safe, f->mirror, out);
            done += safe;
            continue;
        }
        int32_t low = first < 0 ? 0 : first;
        int32_t high = first + a->out_width < a->spec.width ? first + a->out_width : a->spec.width;
        uint8_t *row = scratch;
        if (low < high) {
            memcpy(row + (low - first) * AUGMENT_CHANNELS, pixels + (from + done) * stride + low * AUGMENT_CHANNELS,
                   (size_t)(high - low) * AUGMENT_CHANNELS);
        }
        convert_rows(a, row, 0, y + done, 1, f->mirror, out);
        done++;
    }
}

static void paint_reflected_edges(const Augment *a, const Frame *f, const uint8_t *pixels, unsigned char *out) {
    for (int32_t y = 0; y < a->out_height; y++) {
        const uint8_t *row = pixels + (ptrdiff_t)crop_reflect(y + f->y0, a->spec.height) * a->spec.width * 3;
        for (int32_t x = 0; x < a->out_width; x++) {
            if (x == f->left) x = f->right;
            if (x >= a->out_width) break;
            int32_t from = crop_reflect(f->mirror ? f->x0 - x : f->x0 + x, a->spec.width);
            put(a, at(a, out, y, x), row + (ptrdiff_t)from * AUGMENT_CHANNELS);
        }
    }
}

static void run_reflected(const Augment *a, const Frame *f, const uint8_t *pixels, unsigned char *out, void *scratch) {
    for (int32_t y = 0; y < f->top; y++) {
        convert_source_rows(a, f, pixels, crop_reflect(y + f->y0, a->spec.height), y, 1, out, scratch);
    }
    convert_source_rows(a, f, pixels, f->top + f->y0, f->top, f->bottom - f->top, out, scratch);
    for (int32_t y = f->bottom; y < a->out_height; y++) {
        convert_source_rows(a, f, pixels, crop_reflect(y + f->y0, a->spec.height), y, 1, out, scratch);
    }
    if (f->left > 0 || f->right < a->out_width) paint_reflected_edges(a, f, pixels, out);
}

static void run_filled(const Augment *a, const Frame *f, const uint8_t *pixels, unsigned char *out, void *scratch) {
    const int32_t height = f->bottom - f->top;
    convert_rows(a, a->fill_row, 0, 0, f->top, false, out);
    convert_source_rows(a, f, pixels, f->top + f->y0, f->top, height, out, scratch);
    convert_rows(a, a->fill_row, 0, f->bottom, a->out_height - f->bottom, false, out);
    if (f->pad < 0) return;
    const uint32_t *fill = a->fill[f->pad];
    if (f->left > 0) paint(a, out, f->top, 0, height, f->left, fill);
    if (f->right < a->out_width) paint(a, out, f->top, f->right, height, a->out_width - f->right, fill);
}

void augment_run(const Augment *a, const uint8_t *pixels, CropKey key, bool evaluate, void *out, void *scratch) {
    Frame frame = {.pad = -1};
    Hole holes[AUGMENT_MAX_OPS];
    int count = 0;
    if (a->simple) {
        count = make_frame(a, key, evaluate, &frame, holes);
        bool reflect = frame.pad >= 0 && a->spec.ops[frame.pad].reflect;
        (reflect ? run_reflected : run_filled)(a, &frame, pixels, out, scratch);
    } else {
        const uint8_t *moved =
            augment_stages(&a->spec, pixels, key, evaluate, (unsigned char *)scratch + scratch_row_bytes(a));
        convert_rows(a, moved, (ptrdiff_t)a->out_width * AUGMENT_CHANNELS, 0, a->out_height, false, out);
        for (int i = 0; i < a->spec.op_count; i++) {
            if (!a->spec.ops[i].normalized) continue;
            AugmentDraw draw = augment_draw(&a->spec.ops[i], key, evaluate, a->out_height, a->out_width);
            if (draw.hole) holes[count++] = (Hole){i, draw.offset.y, draw.offset.x};
        }
    }
    for (int i = 0; i < count; i++) {
        const AugmentOp *op = &a->spec.ops[holes[i].op];
        paint(a, out, holes[i].y, holes[i].x, op->height, op->width, a->fill[holes[i].op]);
    }
}
