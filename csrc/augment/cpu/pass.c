/* One pass over one image: the draws become one frame (where each output pixel comes from) and a few holes; a kernel
 * converts the rows (from a padded copy if padding can be visible), then the holes are filled. Keeps nothing between
 * images. */
#include "augment/cpu/pass.h"

#include <string.h>

#include "augment/cpu/levels.h"
#include "base/cpu.h"

/* out(y, x) = in(y0 + y, x0 + x), or in(..., x0 - x) if mirrored, or in(y0 - y, ...) if turned upside down. */
typedef struct Frame {
    int32_t y0, x0;
    bool mirror, upside_down;
} Frame;

/* The padded image, in scratch memory. */
static size_t padded_stride(const AugmentPass *a) {
    return ((size_t)a->spec.width + 2 * (size_t)a->margin) * AUGMENT_CHANNELS;
}

static size_t padded_rows(const AugmentPass *a) { return (size_t)a->spec.height + 2 * (size_t)a->margin; }

size_t augment_pass_scratch_bytes(const AugmentPass *a) { return a->pad < 0 ? 0 : padded_stride(a) * padded_rows(a); }

void augment_pass_scratch_init(const AugmentPass *a, void *scratch) {
    uint8_t *pixel = scratch;
    for (size_t i = 0; i < augment_pass_scratch_bytes(a); i++) {
        pixel[i] = (uint8_t)augment_op_fill(&a->spec.ops[a->pad])->colour[i % AUGMENT_CHANNELS];
    }
}

/* ---- preparation ---- */

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

static AugmentKernel choose_kernel(const AugmentPass *a) {
    ImageType type = a->spec.type;
    ImageLayout layout = a->spec.layout;
#if defined(__x86_64__)
    bool vector = type == IMAGE_U8 || a->affine;
    if (vector && cpu_features()->avx512) return augment_kernels_avx512[type][layout];
    if (vector && cpu_features()->avx2) return augment_kernels_avx2[type][layout];
#endif
    return augment_kernels_scalar[type][layout];
}

static void set_strides(AugmentPass *a) {
    size_t height = (size_t)a->out_height, width = (size_t)a->out_width, item = augment_type_bytes(a->spec.type);
    bool chw = a->spec.layout == IMAGE_CHW;
    a->item_bytes = item;
    a->pixel_stride = chw ? item : item * AUGMENT_CHANNELS;
    a->row_stride = a->pixel_stride * width;
    a->plane_stride = chw ? item * width * height : item;
    a->next_stride = (size_t)a->spec.height * (size_t)a->spec.width * AUGMENT_CHANNELS / height;
}

static void set_fills(AugmentPass *a) {
    a->pad = -1;
    for (int i = 0; i < a->spec.op_count; i++) {
        const AugmentOp *op = &a->spec.ops[i];
        const AugmentFill *fill = augment_op_fill(op);
        const int32_t *padding = augment_op_padding(op);
        for (int c = 0; fill != NULL && c < AUGMENT_CHANNELS; c++) {
            a->fill[i][c] = op->normalized ? augment_bits(fill->colour[c], a->spec.type)
                                           : augment_level(&a->spec, c, fill->colour[c]);
        }
        if (padding == NULL || *padding == 0) continue;
        a->pad = i;
        a->margin = *padding;
        a->reflect = fill != NULL && fill->reflect;
    }
}

void augment_pass_init(AugmentPass *a, const AugmentSpec *spec, AugmentSize out) {
    a->spec = *spec;
    a->out_height = out.height;
    a->out_width = out.width;
    while (a->moves < spec->op_count && augment_entry(spec->ops[a->moves].kind)->phase == AUGMENT_MOVE) a->moves++;
    set_strides(a);
    augment_make_table(a);
    set_fills(a);
    make_shuffles(&a->shuffles);
    a->kernel = choose_kernel(a);
}

/* ---- one image ---- */

static void reverse(int32_t *origin, bool *reversed, int32_t size) {
    *origin += *reversed ? 1 - size : size - 1;
    *reversed = !*reversed;
}

static Frame make_frame(const AugmentPass *a, const AugmentDrawn *drawn) {
    Frame f = {0};
    for (int i = 0; i < a->moves; i++) {
        if (drawn[i].acts) reverse(&f.x0, &f.mirror, drawn[i].width);
        if (drawn[i].flips_vertically) reverse(&f.y0, &f.upside_down, drawn[i].height);
        f.y0 += f.upside_down ? -drawn[i].y : drawn[i].y;
        f.x0 += f.mirror ? -drawn[i].x : drawn[i].x;
    }
    return f;
}

static unsigned char *at(const AugmentPass *a, unsigned char *out, int32_t y, int32_t x) {
    return out + (size_t)y * a->row_stride + (size_t)x * a->pixel_stride;
}

/* Fills a rectangle of a plane with one value; inlined with a constant item size. */
static inline __attribute__((always_inline)) void paint_plane(unsigned char *to, size_t stride, AugmentPart r,
                                                              uint32_t value, size_t item_bytes) {
    const uint64_t repeat = item_bytes == 1   ? 0x0101010101010101u
                            : item_bytes == 2 ? 0x0001000100010001u
                                              : 0x0000000100000001u;
    const uint64_t pattern = repeat * value;
    const size_t count = (size_t)r.width, bytes = count * item_bytes;
    for (int32_t row = 0; row < r.height; row++, to += stride) {
        if (bytes < sizeof pattern) {
            for (size_t i = 0; i < count; i++) augment_store(to + i * item_bytes, value, item_bytes);
            continue;
        }
        for (size_t i = 0; i < bytes - sizeof pattern; i += sizeof pattern) store_u64(to + i, pattern);
        store_u64(to + bytes - sizeof pattern, pattern);
    }
}

static inline __attribute__((always_inline)) void paint_as(const AugmentPass *a, unsigned char *corner, AugmentPart r,
                                                           const uint32_t *value, size_t item_bytes) {
    for (int c = 0; a->spec.layout == IMAGE_CHW && c < AUGMENT_CHANNELS; c++) {
        paint_plane(corner + (size_t)c * a->plane_stride, a->row_stride, r, value[c], item_bytes);
    }
    for (int32_t i = 0; a->spec.layout == IMAGE_HWC && i < r.height; i++, corner += a->row_stride) {
        unsigned char *to = corner;
        for (int32_t j = 0; j < r.width; j++, to += AUGMENT_CHANNELS * item_bytes) {
            for (size_t c = 0; c < AUGMENT_CHANNELS; c++) augment_store(to + c * item_bytes, value[c], item_bytes);
        }
    }
}

/* Fills a rectangle with one value per channel. */
static void paint(const AugmentPass *a, unsigned char *out, AugmentPart r, const uint32_t *value) {
    unsigned char *corner = at(a, out, r.y, r.x);
    if (a->item_bytes == 1) {
        paint_as(a, corner, r, value, 1);
    } else if (a->item_bytes == 2) {
        paint_as(a, corner, r, value, 2);
    } else {
        paint_as(a, corner, r, value, 4);
    }
}

static void convert(const AugmentPass *a, const uint8_t *source, ptrdiff_t stride, bool mirror, const uint8_t *next,
                    unsigned char *out) {
    AugmentStrip strip = {.source = source,
                          .source_stride = stride,
                          .rows = (size_t)a->out_height,
                          .width = (size_t)a->out_width,
                          .mirror = mirror,
                          .out = out,
                          .out_stride = a->row_stride,
                          .plane = a->plane_stride,
                          .next = next,
                          .next_stride = a->next_stride};
    a->kernel(a, &strip);
}

/* Copies rows, which are short, without function calls. */
static inline void copy_rows(uint8_t *to, size_t stride, const uint8_t *from, size_t from_stride, size_t bytes,
                             int32_t rows) {
    enum { STEP = 32 };
    for (; rows > 0; rows--, to += stride, from += from_stride) {
        if (bytes < STEP) {
            memcpy(to, from, bytes);
            continue;
        }
        for (size_t i = 0; i < bytes - STEP; i += STEP) memcpy(to + i, from + i, STEP);
        memcpy(to + bytes - STEP, from + bytes - STEP, STEP);
    }
}

static void reflect_sides(uint8_t *row, int32_t width, int32_t margin) {
    for (int32_t i = 1; i <= margin; i++) {
        memcpy(row - AUGMENT_CHANNELS * i, row + AUGMENT_CHANNELS * i, AUGMENT_CHANNELS);
        memcpy(row + AUGMENT_CHANNELS * (width - 1 + i), row + AUGMENT_CHANNELS * (width - 1 - i), AUGMENT_CHANNELS);
    }
}

/* Copies what the frame needs into the padded image, which already has its fill; returns the address of in(0, 0). */
static const uint8_t *pad_rows(const AugmentPass *a, const Frame *f, const AugmentImage *image, uint8_t *scratch) {
    const AugmentPart part = image->part;
    const size_t row_bytes = (size_t)part.width * AUGMENT_CHANNELS, stride = padded_stride(a);
    uint8_t *origin = scratch + (size_t)a->margin * (stride + AUGMENT_CHANNELS), *left = origin;
    int32_t y = f->upside_down ? f->y0 - a->out_height + 1 : f->y0, end = y + a->out_height;
    left += part.x * AUGMENT_CHANNELS;
    if (!a->reflect) {
        if (y < part.y) y = part.y;
        if (end > part.y + part.height) end = part.y + part.height;
        if (y >= end) return origin;
        copy_rows(left + y * (ptrdiff_t)stride, stride, image->pixels + (size_t)(y - part.y) * image->stride,
                  image->stride, row_bytes, end - y);
        return origin;
    }
    for (; y < end; y++) {
        const int32_t line = augment_reflect(y, a->spec.height) - part.y;
        if (line < 0 || line >= part.height) continue;
        copy_rows(left + y * (ptrdiff_t)stride, stride, image->pixels + (size_t)line * image->stride, image->stride,
                  row_bytes, 1);
        reflect_sides(origin + y * (ptrdiff_t)stride, a->spec.width, a->margin);
    }
    return origin;
}

static void run_frame(const AugmentPass *a, const Frame *f, const AugmentImage *image, const uint8_t *next,
                      unsigned char *out, uint8_t *scratch) {
    size_t stride = image->stride;
    const uint8_t *origin = image->pixels;
    int32_t y = f->y0 - image->part.y, x = (f->mirror ? f->x0 - a->out_width + 1 : f->x0) - image->part.x;
    if (a->pad >= 0) {
        stride = padded_stride(a);
        origin = pad_rows(a, f, image, scratch);
        y += image->part.y;
        x += image->part.x;
    }
    const uint8_t *source = origin + y * (ptrdiff_t)stride + (ptrdiff_t)x * AUGMENT_CHANNELS;
    convert(a, source, f->upside_down ? -(ptrdiff_t)stride : (ptrdiff_t)stride, f->mirror, next, out);
}

void augment_pass_run(const AugmentPass *a, const AugmentDrawn *drawn, const AugmentImage *image, const uint8_t *next,
                      void *out, void *scratch) {
    Frame frame = make_frame(a, drawn);
    run_frame(a, &frame, image, next, out, scratch);
    for (int i = a->moves; i < a->spec.op_count; i++) {
        const AugmentDrawn *hole = &drawn[i];
        if (hole->acts) paint(a, out, (AugmentPart){hole->y, hole->x, hole->height, hole->width}, a->fill[i]);
    }
}
