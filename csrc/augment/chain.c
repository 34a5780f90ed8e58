/* A chain of operations: checked, cut into passes that one frame and some holes express, drawn for each sample. Between
 * passes lie uint8 images in scratch memory. Owns the passes, keeps nothing between images. */
#include <math.h>

#include "augment/cpu/pass.h"
#include "base/memory.h"

struct Augment {
    AugmentSpec spec;
    AugmentSize sizes[AUGMENT_MAX_OPS + 1]; /* of the image before each operation, and of the output */
    int count;
    int first[AUGMENT_MAX_OPS + 1]; /* operation of each pass */
    AugmentPass *passes;            /* owned: `count` */
    size_t image_bytes;             /* of the largest image between two passes */
    size_t scratch_bytes;
};

size_t image_type_bytes(ImageType type) { return type == IMAGE_U8 ? 1 : type == IMAGE_F32 ? 4 : 2; }

void augment_output_size(const Augment *a, int32_t *height, int32_t *width) {
    *height = a->sizes[a->spec.op_count].height;
    *width = a->sizes[a->spec.op_count].width;
}

static size_t image_bytes(AugmentSize size) { return (size_t)size.height * (size_t)size.width * AUGMENT_CHANNELS; }

size_t augment_output_bytes(const Augment *a) {
    return image_bytes(a->sizes[a->spec.op_count]) * image_type_bytes(a->spec.type);
}

/* Scratch memory holds the images between passes, then each pass's own. */
size_t augment_scratch_bytes(const Augment *a) { return a->scratch_bytes; }

void augment_scratch_init(const Augment *a, void *scratch) {
    uint8_t *own = (uint8_t *)scratch + 2 * a->image_bytes;
    for (int i = 0; i < a->count; i++) {
        augment_pass_scratch_init(&a->passes[i], own);
        own += augment_pass_scratch_bytes(&a->passes[i]);
    }
}

/* ---- checks ---- */

static AugmentPhase phase_of(const AugmentOp *op) { return augment_entry(op->kind)->phase; }

/* Checks an operation on images of *size and updates the size. */
static Status check_op(const AugmentOp *op, AugmentSize *size) {
    static const AugmentKey key = {0};
    TRY(augment_op_check(op));
    const AugmentEntry *entry = augment_entry(op->kind);
    if (entry->fits != NULL) TRY(error_at_operation(entry->fits(&op->as, *size), entry->name));
    if (entry->phase != AUGMENT_MOVE) return STATUS_OK;
    AugmentDrawn neutral = augment_op_draw(op, &key, true, *size);
    *size = (AugmentSize){neutral.height, neutral.width};
    return STATUS_OK;
}

static Status check_ops(const AugmentSpec *spec, AugmentSize *sizes) {
    bool normalized = false;
    for (int i = 0; i < spec->op_count; i++) {
        const AugmentOp *op = &spec->ops[i];
        sizes[i + 1] = sizes[i];
        TRY(check_op(op, &sizes[i + 1]));
        if (normalized && !op->normalized) FAIL(STATUS_ARGUMENT, "operations after normalisation come last");
        normalized = op->normalized;
        if (normalized && phase_of(op) != AUGMENT_FILL) FAIL(STATUS_ARGUMENT, "only a hole can follow normalisation");
    }
    return STATUS_OK;
}

static Status check_spec(const AugmentSpec *spec, AugmentSize *sizes) {
    const int32_t height = spec->height, width = spec->width;
    sizes[0] = (AugmentSize){height, width};
    if (height < 1 || width < 1 || height > UINT16_MAX || width > UINT16_MAX) {
        FAIL(STATUS_ARGUMENT, "an image must be 1x1 to 65535x65535, not %dx%d", height, width);
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
    return check_ops(spec, sizes);
}

/* ---- passes ---- */

/* Moves come before fills in a pass, and one of them at most pads. */
static void cut(Augment *a) {
    bool padded = false;
    a->count = 1;
    for (int i = 0; i < a->spec.op_count; i++) {
        bool pads = augment_op_padding(&a->spec.ops[i]) != NULL;
        bool after = i > 0 && phase_of(&a->spec.ops[i]) < phase_of(&a->spec.ops[i - 1]);
        if (after || (pads && padded)) {
            a->first[a->count++] = i;
            padded = false;
        }
        padded = padded || pads;
    }
    a->first[a->count] = a->spec.op_count;
}

static void make_pass(Augment *a, int index) {
    const int first = a->first[index], end = a->first[index + 1];
    const bool last = index == a->count - 1;
    AugmentSpec part = {.type = IMAGE_U8, .layout = IMAGE_HWC};
    if (last) part = a->spec;
    part.height = a->sizes[first].height;
    part.width = a->sizes[first].width;
    part.op_count = end - first;
    for (int i = first; i < end; i++) part.ops[i - first] = a->spec.ops[i];
    augment_pass_init(&a->passes[index], &part, a->sizes[end]);
    if (!last && image_bytes(a->sizes[end]) > a->image_bytes) a->image_bytes = image_bytes(a->sizes[end]);
    a->scratch_bytes += augment_pass_scratch_bytes(&a->passes[index]);
}

Status augment_create(const AugmentSpec *spec, Augment **out) {
    Status status = STATUS_OK;
    Augment *a = NULL;
    TRY(memory_calloc(1, sizeof *a, &a));
    TRY_GOTO(check_spec(spec, a->sizes));
    a->spec = *spec;
    cut(a);
    TRY_GOTO(memory_calloc((size_t)a->count, sizeof *a->passes, &a->passes));
    for (int i = 0; i < a->count; i++) make_pass(a, i);
    a->scratch_bytes += 2 * a->image_bytes;
    *out = a;
    a = NULL;
done:
    augment_destroy(a);
    return status;
}

void augment_destroy(Augment *a) {
    if (a == NULL) return;
    memory_free(a->passes);
    memory_free(a);
}

/* ---- one sample ---- */

void augment_draw(const Augment *a, const AugmentKey *key, bool evaluate, AugmentDrawn *drawn) {
    for (int i = 0; i < a->spec.op_count; i++) {
        drawn[i] = augment_op_draw(&a->spec.ops[i], key, evaluate, a->sizes[i]);
    }
}

/* What a window's indices *first... reach of `size` pixels along one axis. */
static void reach(int32_t *first, int32_t *count, int32_t size, bool reflect) {
    int32_t begin = *first, last = *first + *count - 1, low, high;
    if (reflect) {
        int32_t one = augment_reflect(begin, size), other = augment_reflect(last, size);
        low = begin < 0 && last >= 0 ? 0 : one < other ? one : other;
        high = begin < size && last >= size ? size - 1 : one > other ? one : other;
    } else {
        low = begin < 0 ? 0 : begin;
        high = last < size ? last : size - 1;
    }
    *first = low;
    *count = high < low ? 0 : high - low + 1;
}

AugmentPart augment_part(const Augment *a, const AugmentDrawn *drawn) {
    const AugmentSize *size = &a->sizes[a->spec.op_count];
    AugmentPart part = {0, 0, size->height, size->width};
    for (int i = a->spec.op_count - 1; i >= 0; i--) {
        const AugmentOp *op = &a->spec.ops[i];
        size = &a->sizes[i];
        if (phase_of(op) != AUGMENT_MOVE) continue;
        if (drawn[i].acts) {
            part.x = size->width - part.x - part.width;
            continue;
        }
        const AugmentFill *fill = augment_op_fill(op);
        part.y += drawn[i].y;
        part.x += drawn[i].x;
        reach(&part.y, &part.height, size->height, fill != NULL && fill->reflect);
        reach(&part.x, &part.width, size->width, fill != NULL && fill->reflect);
        if (part.height == 0 || part.width == 0) return (AugmentPart){0, 0, 0, 0};
    }
    return part;
}

void augment_run(const Augment *a, const AugmentDrawn *drawn, const AugmentImage *image, const uint8_t *next, void *out,
                 void *scratch) {
    AugmentImage now = *image;
    uint8_t *own = (uint8_t *)scratch + 2 * a->image_bytes;
    for (int i = 0; i < a->count; i++) {
        const AugmentPass *pass = &a->passes[i];
        const AugmentSize size = a->sizes[a->first[i + 1]];
        uint8_t *to = i == a->count - 1 ? out : (uint8_t *)scratch + (size_t)(i % 2) * a->image_bytes;
        augment_pass_run(pass, drawn + a->first[i], &now, i == 0 ? next : NULL, to, own);
        now = (AugmentImage){to, (size_t)size.width * AUGMENT_CHANNELS, {0, 0, size.height, size.width}};
        own += augment_pass_scratch_bytes(pass);
    }
}
