/* A chain of operations: checked, split into passes that each consist of one frame and some holes, drawn for each
 * sample. Images between passes are uint8, in scratch memory. Owns the passes, keeps nothing between images. */
#include <math.h>
#include <string.h>

#include "augment/cpu/filter.h"
#include "augment/cpu/general.h"
#include "augment/cpu/pass.h"
#include "augment/cpu/whole.h"
#include "base/memory.h"

#define MAX_PASSES (AUGMENT_MAX_OPS + 1)

struct Augment {
    AugmentSpec spec;
    AugmentSize sizes[AUGMENT_MAX_OPS + 1]; /* of the image before each operation, and of the output */
    int count, mixing;                      /* passes, and the one whose result is mixed; -1: none */
    int first[MAX_PASSES + 1];              /* first operation of each pass, which ends where the next begins */
    size_t scratch_at[MAX_PASSES];
    AugmentPass *passes; /* owned: `count` */
    size_t image_bytes;  /* of the largest image between two passes */
    size_t rows_at;      /* offset in scratch memory of what an operation after moves and fills needs */
    size_t scratch_bytes;
    AugmentGeneral *general; /* owned: does everything instead, if the source is not three channels of uint8 */
};

size_t augment_type_bytes(ImageType type) { return type == IMAGE_U8 ? 1 : type == IMAGE_F32 ? 4 : 2; }

int32_t augment_channels(AugmentFormat format) { return format.channels == 0 ? AUGMENT_CHANNELS : format.channels; }

void augment_output_size(const Augment *a, int32_t *height, int32_t *width) {
    *height = a->sizes[a->spec.op_count].height;
    *width = a->sizes[a->spec.op_count].width;
}

static size_t chain_image_bytes(AugmentSize size) {
    return (size_t)size.height * (size_t)size.width * AUGMENT_CHANNELS;
}

/* Scratch memory contains the images between passes; for a chain that mixes, the last two images before mixing, and
 * which of them is older; then each pass's own scratch memory, and that of one operation after moves and fills. */
size_t augment_scratch_bytes(const Augment *a) { return a->scratch_bytes; }

void augment_scratch_init(const Augment *a, void *scratch) {
    for (int i = 0; i < a->count; i++) {
        augment_pass_scratch_init(&a->passes[i], (uint8_t *)scratch + a->scratch_at[i]);
    }
}

bool augment_mixes(const Augment *a) {
    return a->mixing >= 0 || (a->general != NULL && augment_general_mixes(a->general));
}

/* ---- checks ---- */

/* Checks that there is one number per channel, or one for all (`count` 0). */
static Status check_count(const char *name, int count, int32_t channels) {
    if (count == 0 || count == channels) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "%s must be one number, or one per channel, for images of %d %s, not %d numbers", name,
         channels, channels == 1 ? "channel" : "channels", count);
}

/* Checks an operation on images of *size and updates the size. */
static Status check_op(const AugmentOp *op, AugmentFormat format, AugmentSize *size) {
    static const AugmentKey key = {0};
    TRY(augment_op_check(op, format));
    const AugmentEntry *entry = augment_entry(op->kind);
    const AugmentFill *fill = augment_op_fill(op);
    if (fill != NULL) {
        TRY(error_at_operation(check_count("fill", fill->count, augment_channels(format)), entry->name));
    }
    if (!augment_format_rgb(format)) TRY(error_at_operation(augment_general_takes(op, format), entry->name));
    if (entry->fits != NULL) TRY(error_at_operation(entry->fits(&op->as, *size), entry->name));
    if (entry->phase != AUGMENT_MOVE) return STATUS_OK;
    AugmentDrawn neutral = augment_op_draw(op, &key, true, *size);
    *size = (AugmentSize){neutral.height, neutral.width};
    return STATUS_OK;
}

static Status check_ops(const AugmentSpec *spec, AugmentSize *sizes) {
    bool normalized = false, mixes = false;
    for (int i = 0; i < spec->op_count; i++) {
        const AugmentOp *op = &spec->ops[i];
        sizes[i + 1] = sizes[i];
        TRY(check_op(op, spec->format, &sizes[i + 1]));
        if (augment_phase(op) > AUGMENT_MIX) FAIL(STATUS_ARGUMENT, "%s is for labels", augment_entry(op->kind)->name);
        if (mixes && augment_phase(op) == AUGMENT_MIX) FAIL(STATUS_ARGUMENT, "images can be mixed only once");
        mixes = mixes || augment_phase(op) == AUGMENT_MIX;
        if (normalized && !op->normalized) FAIL(STATUS_ARGUMENT, "operations after the normalisation must come last");
        normalized = op->normalized;
        if (normalized && augment_phase(op) != AUGMENT_FILL)
            FAIL(STATUS_ARGUMENT, "only fills may follow the normalisation");
    }
    return STATUS_OK;
}

static bool is_whole(ImageType type) { return type == IMAGE_U8 || type == IMAGE_U16; }

static Status check_normalization(const AugmentSpec *spec) {
    const int32_t channels = augment_channels(spec->format);
    if (is_whole(spec->type) || is_whole(spec->normalized_type)) {
        FAIL(STATUS_ARGUMENT, "a normalised image must be float32, float16 or bfloat16, not %s",
             augment_type_name((int)(is_whole(spec->type) ? spec->type : spec->normalized_type)));
    }
    TRY(error_at_operation(check_count("mean", spec->mean.count, channels), "NormalizeImage"));
    TRY(error_at_operation(check_count("std", spec->std.count, channels), "NormalizeImage"));
    for (int c = 0; c < channels; c++) {
        const double mean = spec->mean.value[c], std = spec->std.value[c];
        if (isfinite(mean) && std > 0 && isfinite(std)) continue;
        FAIL(STATUS_ARGUMENT, "mean must be finite and std above 0, not %g and %g", mean, std);
    }
    return STATUS_OK;
}

static Status check_types(const AugmentSpec *spec) {
    const AugmentFormat format = spec->format;
    if ((unsigned)spec->type >= IMAGE_TYPES || (unsigned)spec->normalized_type >= IMAGE_TYPES) {
        FAIL(STATUS_ARGUMENT, "unknown image type %d or %d", (int)spec->type, (int)spec->normalized_type);
    }
    if (format.channels < 0 || format.channels > AUGMENT_MAX_CHANNELS ||
        (!is_whole(format.type) && format.type != IMAGE_F32)) {
        FAIL(STATUS_ARGUMENT, "images have 1 to %d channels of uint8, uint16 or float32, not %d of %s",
             AUGMENT_MAX_CHANNELS, format.channels, augment_type_name((int)format.type));
    }
    if (is_whole(spec->type) && spec->type != format.type) {
        FAIL(STATUS_ARGUMENT, "images of %s can be converted to floats, not to %s", augment_type_name((int)format.type),
             augment_type_name((int)spec->type));
    }
    return spec->normalize ? check_normalization(spec) : STATUS_OK;
}

static Status check_spec(const AugmentSpec *spec, AugmentSize *sizes) {
    const int32_t height = spec->height, width = spec->width;
    sizes[0] = (AugmentSize){height, width};
    if (height < 1 || width < 1 || height > UINT16_MAX || width > UINT16_MAX) {
        FAIL(STATUS_ARGUMENT, "an image must be 1x1 to 65535x65535, not %dx%d", height, width);
    }
    if (spec->op_count < 0 || spec->op_count > AUGMENT_MAX_OPS) {
        FAIL(STATUS_ARGUMENT, "a pipeline has at most %d image operations, not %d", AUGMENT_MAX_OPS, spec->op_count);
    }
    TRY(check_types(spec));
    return check_ops(spec, sizes);
}

/* ---- passes ---- */

/* The operation's place in a pass, in which moves come first; colours and filters share one. */
static AugmentPhase phase_in_pass(const AugmentOp *op) {
    const AugmentPhase phase = augment_phase(op);
    return phase > AUGMENT_COLOUR && phase < AUGMENT_MIX ? AUGMENT_COLOUR : phase;
}

/* In a pass moves come before fills, fills before colours and filters, and mixing last; at most one of the moves pads.
 * The last pass converts, and only fills follow that. */
static void chain_cut(Augment *a) {
    bool padded = false;
    AugmentPhase before = AUGMENT_MOVE;
    a->count = 1;
    a->mixing = -1;
    for (int i = 0; i < a->spec.op_count; i++) {
        bool pads = augment_op_padding(&a->spec.ops[i]) != NULL;
        AugmentPhase phase = phase_in_pass(&a->spec.ops[i]);
        if (phase < before || (pads && padded)) {
            a->first[a->count++] = i;
            padded = false;
        }
        if (phase == AUGMENT_MIX) a->mixing = a->count - 1;
        padded = padded || pads;
        before = phase;
    }
    if (before > AUGMENT_FILL) a->first[a->count++] = a->spec.op_count;
    a->first[a->count] = a->spec.op_count;
}

static void make_pass(Augment *a, int index) {
    const int first = a->first[index], end = a->first[index + 1];
    const bool last = index == a->count - 1;
    AugmentSpec part = {.type = IMAGE_U8, .layout = IMAGE_HWC};
    if (last) part = a->spec;
    part.height = a->sizes[first].height;
    part.width = a->sizes[first].width;
    part.op_count = 0;
    for (int i = first; i < end && augment_phase(&a->spec.ops[i]) <= AUGMENT_FILL; i++) {
        part.ops[part.op_count++] = a->spec.ops[i];
    }
    augment_pass_init(&a->passes[index], &part, a->sizes[end]);
    if (!last && chain_image_bytes(a->sizes[end]) > a->image_bytes) a->image_bytes = chain_image_bytes(a->sizes[end]);
}

static size_t kept_bytes(const Augment *a) {
    return a->mixing < 0 ? 0 : chain_image_bytes(a->sizes[a->first[a->mixing + 1]]);
}

static size_t working_bytes(AugmentPhase phase, AugmentSize size) {
    if (phase == AUGMENT_LOCAL) return augment_filter_bytes(size.width);
    return phase == AUGMENT_WARP || phase == AUGMENT_BOX ? augment_whole_bytes(size) : 0;
}

static void place_scratch(Augment *a) {
    a->scratch_bytes = 2 * a->image_bytes + 2 * kept_bytes(a) + (a->mixing >= 0);
    for (int i = 0; i < a->count; i++) {
        a->scratch_at[i] = a->scratch_bytes;
        a->scratch_bytes += augment_pass_scratch_bytes(&a->passes[i]);
    }
    a->rows_at = (a->scratch_bytes + 3) & ~(size_t)3;
    for (int i = 0; i < a->spec.op_count; i++) {
        const size_t end = a->rows_at + working_bytes(augment_phase(&a->spec.ops[i]), a->sizes[i]);
        if (end > a->scratch_bytes) a->scratch_bytes = end;
    }
}

Status augment_create(const AugmentSpec *spec, Augment **out) {
    Status status = STATUS_OK;
    Augment *a = NULL;
    TRY(memory_calloc(1, sizeof *a, &a));
    TRY_GOTO(check_spec(spec, a->sizes));
    a->spec = *spec;
    if (augment_format_rgb(spec->format)) {
        chain_cut(a);
        TRY_GOTO(memory_calloc((size_t)a->count, sizeof *a->passes, &a->passes));
        for (int i = 0; i < a->count; i++) make_pass(a, i);
        place_scratch(a);
    } else {
        a->mixing = -1;
        TRY_GOTO(augment_general_create(&a->spec, a->sizes, &a->general));
        a->scratch_bytes = augment_general_scratch_bytes(a->general);
    }
    *out = a;
    a = NULL;
done:
    augment_destroy(a);
    return status;
}

void augment_destroy(Augment *a) {
    if (a == NULL) return;
    augment_general_destroy(a->general);
    memory_free(a->passes);
    memory_free(a);
}

/* ---- one sample ---- */

void augment_draw(const Augment *a, const AugmentKey *key, bool evaluate, AugmentDrawn *drawn) {
    for (int i = 0; i < a->spec.op_count; i++) {
        drawn[i] = augment_op_draw(&a->spec.ops[i], key, evaluate, a->sizes[i]);
    }
}

/* Replaces a window along one axis by the range of the `size` pixels that it uses. */
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

/* Only the first pass may leave out pixels: it makes the whole image that the others begin with. */
AugmentPart augment_part(const Augment *a, const AugmentDrawn *drawn) {
    if (a->general != NULL) return (AugmentPart){0, 0, a->spec.height, a->spec.width};
    const AugmentSize *size = &a->sizes[a->first[1]];
    AugmentPart part = {0, 0, size->height, size->width};
    for (int i = a->first[1] - 1; i >= 0; i--) {
        const AugmentOp *op = &a->spec.ops[i];
        size = &a->sizes[i];
        if (augment_phase(op) != AUGMENT_MOVE) continue;
        if (drawn[i].acts) part.x = size->width - part.x - part.width;
        if (drawn[i].flips_vertically) part.y = size->height - part.y - part.height;
        const AugmentFill *fill = augment_op_fill(op);
        part.y += drawn[i].y;
        part.x += drawn[i].x;
        reach(&part.y, &part.height, size->height, fill != NULL && fill->reflect);
        reach(&part.x, &part.width, size->width, fill != NULL && fill->reflect);
        if (part.height == 0 || part.width == 0) return (AugmentPart){0, 0, 0, 0};
    }
    return part;
}

static bool same_size(AugmentSize one, AugmentSize other) {
    return one.height == other.height && one.width == other.width;
}

bool augment_only_mirrors(const Augment *a, const AugmentDrawn *drawn, bool *mirrored) {
    const AugmentSpec *spec = &a->spec;
    *mirrored = false;
    if (spec->normalize || spec->type != spec->format.type || spec->layout != IMAGE_HWC || augment_mixes(a)) {
        return false;
    }
    for (int i = 0; i < spec->op_count; i++) {
        const bool moves = augment_phase(&spec->ops[i]) == AUGMENT_MOVE;
        if (moves ? drawn[i].flips_vertically || drawn[i].y != 0 || drawn[i].x != 0 : drawn[i].acts) return false;
        if (!same_size(a->sizes[i], a->sizes[i + 1])) return false;
        *mirrored ^= drawn[i].acts;
    }
    return true;
}

AugmentPart augment_part_join(AugmentPart one, AugmentPart other) {
    if (one.height == 0 || one.width == 0) return other;
    if (other.height == 0 || other.width == 0) return one;
    const int32_t y = one.y < other.y ? one.y : other.y, x = one.x < other.x ? one.x : other.x;
    const int32_t bottom = one.y + one.height, other_bottom = other.y + other.height;
    const int32_t right = one.x + one.width, other_right = other.x + other.width;
    return (AugmentPart){y, x, (bottom > other_bottom ? bottom : other_bottom) - y,
                         (right > other_right ? right : other_right) - x};
}

static AugmentImage whole(const uint8_t *pixels, AugmentSize size) {
    return (AugmentImage){pixels, (size_t)size.width * AUGMENT_CHANNELS, {0, 0, size.height, size.width}};
}

static uint32_t mean_grey(const AugmentPixel *pixels, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += augment_grey(pixels[i]);
    return (uint32_t)(sum * AUGMENT_ONE / count);
}

/* An operation that treats each value alone, in the same way in all channels, is evaluated once for all 256 values. */
static void change_levels(const AugmentOp *op, const AugmentDrawn *drawn, uint8_t *values, size_t count) {
    uint8_t table[UINT8_MAX + 1];
    for (int v = 0; v <= UINT8_MAX; v++) {
        table[v] = augment_op_pixel(op, drawn, (AugmentPixel){{(uint8_t)v, (uint8_t)v, (uint8_t)v}}).value[0];
    }
    for (size_t i = 0; i < count; i++) values[i] = table[values[i]];
}

static void change_pixels(const AugmentOp *op, const AugmentDrawn *drawn, AugmentPixel *pixels, size_t count) {
    switch (op->kind) {
#define AUGMENT_OP_COLOUR(name, ...)                                                                                   \
    case AUGMENT_##name:                                                                                               \
        for (size_t i = 0; i < count; i++) pixels[i] = augment_##name##_pixel(&op->as.name, drawn, pixels[i]);         \
        break;
#include "augment/ops/table.h"
    default:
        break;
    }
}

static void change_colours(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, AugmentPixel *pixels) {
    const size_t count = (size_t)size.height * (size_t)size.width;
    const AugmentEntry *entry = augment_entry(op->kind);
    AugmentDrawn now = *drawn;
    if (entry->mean) now.mean = mean_grey(pixels, count);
    if (entry->levels) {
        change_levels(op, &now, pixels->value, count * AUGMENT_CHANNELS);
    } else {
        change_pixels(op, &now, pixels, count);
    }
}

static void change_positional(const AugmentOp *op, AugmentSize size, AugmentPixel *pixels) {
    const size_t count = (size_t)size.height * (size_t)size.width;
    for (size_t i = 0; i < count; i++) pixels[i] = augment_op_pixel_at(op, i, pixels[i]);
}

/* Applies an operation that comes after moves and fills, except mixing. */
static void change(const Augment *a, int op, const AugmentDrawn *drawn, uint8_t *pixels, uint8_t *scratch) {
    const AugmentOp *it = &a->spec.ops[op];
    const AugmentSize size = a->sizes[op];
    AugmentPixel *image = (AugmentPixel *)pixels;
    if (!drawn->acts) return;
    switch (augment_phase(it)) {
    case AUGMENT_COLOUR:
        change_colours(it, drawn, size, image);
        break;
    case AUGMENT_POSITIONAL:
        change_positional(it, size, image);
        break;
    case AUGMENT_LOCAL:
        augment_filter(it, drawn, size, pixels, scratch + a->rows_at);
        break;
    case AUGMENT_WARP:
        augment_whole_warp(it, drawn, size, image, scratch + a->rows_at);
        break;
    case AUGMENT_BOX:
        augment_whole_box(it, drawn, size, image, scratch + a->rows_at);
        break;
    case AUGMENT_HISTOGRAM:
        augment_whole_histogram(it, drawn, size, image);
        break;
    default:
        break;
    }
}

/* Runs passes [first, end), the last of which writes to `out`. */
static void run_passes(const Augment *a, const AugmentDrawn *drawn, AugmentImage now, int first, int end,
                       const uint8_t *next, void *out, uint8_t *scratch) {
    for (int i = first; i < end; i++) {
        const int begin = a->first[i], after = a->first[i + 1];
        uint8_t *to = i == end - 1 ? out : scratch + (size_t)(i % 2) * a->image_bytes;
        augment_pass_run(&a->passes[i], drawn + begin, &now, i == 0 ? next : NULL, to, scratch + a->scratch_at[i]);
        for (int k = begin + a->passes[i].spec.op_count; k < after; k++) change(a, k, &drawn[k], to, scratch);
        now = whole(to, a->sizes[after]);
    }
}

/* Makes the image that is to be mixed, in place of the older of the two that are kept. */
static uint8_t *run_until_mixed(const Augment *a, const AugmentDrawn *drawn, const AugmentImage *image,
                                const uint8_t *next, uint8_t *scratch) {
    uint8_t *kept = scratch + 2 * a->image_bytes, *older = kept + 2 * kept_bytes(a);
    uint8_t *to = kept + *older * kept_bytes(a);
    run_passes(a, drawn, *image, 0, a->mixing + 1, next, to, scratch);
    *older ^= 1;
    return to;
}

void augment_begin(const Augment *a, const AugmentDrawn *drawn, const AugmentImage *image, void *scratch) {
    if (a->general != NULL) {
        augment_general_begin(a->general, drawn, image, scratch);
        return;
    }
    (void)run_until_mixed(a, drawn, image, NULL, scratch);
}

/* Writes `own` to `to`, with its drawn rectangle mixed. */
static void mix(const AugmentOp *op, const AugmentDrawn *drawn, AugmentSize size, const uint8_t *own,
                const uint8_t *previous, uint8_t *to) {
    const size_t row = (size_t)size.width * AUGMENT_CHANNELS;
    const size_t first = (size_t)drawn->y * row + (size_t)drawn->x * AUGMENT_CHANNELS;
    const bool all = drawn->height == size.height && drawn->width == size.width;
    if (!all) memcpy(to, own, (size_t)size.height * row);
    for (size_t y = 0; y < (size_t)drawn->height; y++) {
        const AugmentPixel *from = (const AugmentPixel *)(own + first + y * row);
        const AugmentPixel *other = (const AugmentPixel *)(previous + first + y * row);
        AugmentPixel *out = (AugmentPixel *)(to + first + y * row);
        for (int32_t x = 0; x < drawn->width; x++) out[x] = augment_op_mix(op, drawn, from[x], other[x]);
    }
}

void augment_run(const Augment *a, const AugmentDrawn *drawn, const AugmentImage *image, const uint8_t *next, void *out,
                 void *scratch) {
    if (a->count == 1) { /* most chains have only one pass */
        augment_pass_run(a->passes, drawn, image, next, out, scratch);
        return;
    }
    if (a->general != NULL) {
        augment_general_run(a->general, drawn, image, out, scratch);
        return;
    }
    if (a->mixing < 0) {
        run_passes(a, drawn, *image, 0, a->count, next, out, scratch);
        return;
    }
    const int op = a->first[a->mixing + 1] - 1;
    const AugmentSize size = a->sizes[op];
    const uint8_t *own = run_until_mixed(a, drawn, image, next, scratch);
    const uint8_t *kept = (uint8_t *)scratch + 2 * a->image_bytes, *previous = kept + (own == kept ? kept_bytes(a) : 0);
    uint8_t *mixed = (uint8_t *)scratch + (size_t)(a->mixing % 2) * a->image_bytes;
    if (drawn[op].acts) {
        mix(&a->spec.ops[op], &drawn[op], size, own, previous, mixed);
        own = mixed;
    }
    run_passes(a, drawn, whole(own, size), a->mixing + 1, a->count, NULL, out, scratch);
}
