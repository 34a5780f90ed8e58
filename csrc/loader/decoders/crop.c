/* A random or central rectangle of each image, resampled to one size and passed through `augment` into the batch.
 * Images may have any size: of JPEGs only the rectangle is decoded, and its rows are resampled as they arrive. Outputs
 * that also want the whole images (image.c) get copies of these rows. */
#include <string.h>

#include "base/memory.h"
#include "loader/decoders/image.h"
#include "loader/decoders/rectangle.h"

typedef struct CropState {
    LoaderCrop crop;
    Augment *augment; /* owned */
    bool fast_jpeg;
    size_t cut_at, pixels_at; /* where the cut and the resampled image are in the output's scratch memory */
} CropState;

/* What is cut out of one image for one output; in the output's scratch memory, while the image is being processed. */
typedef struct Cut {
    uint32_t shrink;  /* by which decoding shrinks the image */
    JpegRegion from;  /* of the pixels that are decoded */
    Resizer *resizer; /* borrowed from the thread */
    bool straight;    /* resampled into the batch: what follows would only mirror it, if anything, which is done on the
                       * way */
    uint8_t *to;      /* the resampled image */
} Cut;

static const BetonKind kinds[] = {BETON_IMAGE};

/* ---- rectangles ---- */

static JpegRegion rectangle_of(const DecoderChunk *chunk, const DecoderOutput *output, size_t i,
                               const BetonImage *image) {
    const CropState *state = output->state;
    const ImageSize size = {image->width, image->height};
    const bool central = output->decoder == &loader_decoder_center_crop;
    return central ? loader_rectangle_central(&state->crop, size)
                   : loader_rectangle_random(chunk, &state->crop, i, size);
}

/* ---- the decoders ---- */

static Status crop_prepare(const LoaderSource *source, const Traversal *in_use, const LoaderOutput *request,
                           DecoderOutput *output) {
    const LoaderCrop *crop = request->crop;
    const BetonField *field = output->field_info;
    CropState *state = NULL;
    (void)source, (void)in_use;
    TRY(loader_rectangle_check(crop));
    TRY(memory_calloc(1, sizeof *state, &state));
    output->state = state;
    state->crop = *crop;
    state->fast_jpeg = request->fast_jpeg;
    TRY(loader_pixels_prepare(request, PIXELS_RGB, crop->height, crop->width, output, &state->augment));
    state->cut_at = (output->scratch_bytes + 63) & ~(size_t)63;
    state->pixels_at = state->cut_at + ((sizeof(Cut) + 63) & ~(size_t)63);
    output->scratch_bytes = state->pixels_at + (size_t)crop->height * crop->width * AUGMENT_CHANNELS;
    output->work_bytes = 16 * (size_t)field->max_height * field->max_width * AUGMENT_CHANNELS;
    return STATUS_OK;
}

static void crop_destroy(DecoderOutput *output) {
    CropState *state = output->state;
    augment_destroy(state->augment);
    memory_free(state);
}

static bool same_values(const DecoderOutput *output, const DecoderOutput *other) {
    const CropState *a = output->state, *b = other->state;
    return a->fast_jpeg == b->fast_jpeg && !a->crop.shrinks && !b->crop.shrinks; /* which depends on the rectangle */
}

static bool decodes_companion(const DecoderOutput *output, const DecoderOutput *other) {
    const CropState *state = output->state;
    return !state->crop.shrinks && loader_image_is(other, state->fast_jpeg);
}

static void crop_init_scratch(const DecoderOutput *output, void *scratch) {
    const CropState *state = output->state;
    augment_scratch_init(state->augment, scratch);
}

/* ---- one image ---- */

static uint8_t *scratch_of(const DecoderChunk *chunk, const DecoderOutput *output) {
    return chunk->scratch->own + output->scratch_at;
}

static Cut *cut_of(const DecoderChunk *chunk, const DecoderOutput *output) {
    const CropState *state = output->state;
    return (Cut *)(void *)(scratch_of(chunk, output) + state->cut_at);
}

static uint8_t *resampled(const DecoderChunk *chunk, const DecoderOutput *output) {
    const CropState *state = output->state;
    return scratch_of(chunk, output) + state->pixels_at;
}

static const DecoderOutput *next_view(const DecoderChunk *chunk, const DecoderOutput *output) {
    return output->next_view < 0 ? NULL : &chunk->outputs[output->next_view];
}

static const DecoderOutput *companion_of(const DecoderChunk *chunk, const DecoderOutput *output) {
    return output->companion < 0 ? NULL : &chunk->outputs[output->companion];
}

/* How far the image can be shrunk while decoding without becoming smaller than the result. */
static uint32_t choose_shrink(const LoaderCrop *crop, const BetonImage *image, const JpegRegion *from) {
    uint32_t shrink = image->mode == BETON_IMAGE_JPEG && crop->shrinks ? 8 : 1;
    while (shrink > 1 && (from->height / shrink < crop->height || from->width / shrink < crop->width)) shrink /= 2;
    return shrink;
}

static Status begin_cut(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                        bool begin) {
    const CropState *state = output->state;
    const ImageSize to = {state->crop.width, state->crop.height};
    const JpegRegion from = rectangle_of(chunk, output, i, image);
    Cut *cut = cut_of(chunk, output);
    const uint32_t shrink = choose_shrink(&state->crop, image, &from);
    const ResizeGrid grid = {shrink, from.x % shrink, from.y % shrink};
    cut->shrink = shrink;
    cut->from = (JpegRegion){from.y / shrink, from.x / shrink, jpeg_shrunk(grid.y + from.height, shrink),
                             jpeg_shrunk(grid.x + from.width, shrink)};
    bool mirrored = false;
    cut->straight = !begin && loader_pixels_only_mirrors(chunk, state->augment, i, &mirrored);
    cut->to = cut->straight ? loader_pixels_row(chunk, output, i) : resampled(chunk, output);
    TRY(loader_decoder_resizer(chunk, output, &cut->resizer));
    return resizer_begin_reduced(cut->resizer, state->crop.filter, grid, (ImageSize){from.width, from.height}, to,
                                 cut->straight && mirrored, cut->to, (size_t)to.width * AUGMENT_CHANNELS);
}

static JpegRegion join(JpegRegion one, JpegRegion other) {
    const uint32_t bottom = one.y + one.height, other_bottom = other.y + other.height;
    const uint32_t right = one.x + one.width, other_right = other.x + other.width;
    JpegRegion both = {one.y < other.y ? one.y : other.y, one.x < other.x ? one.x : other.x, 0, 0};
    both.height = (bottom > other_bottom ? bottom : other_bottom) - both.y;
    both.width = (right > other_right ? right : other_right) - both.x;
    return both;
}

/* A region's rows on their way to the cuts of all views, and to the whole image, if that is wanted. */
typedef struct Rows {
    const DecoderChunk *chunk;
    const DecoderOutput *first;
    JpegRegion region;
    uint32_t y;       /* of the image: the next row */
    JpegRegion whole; /* what is wanted unchanged ... */
    uint8_t *to;      /* ... and where its next row goes; NULL: nothing, or it is in the file */
} Rows;

/* How many of the next `count` rows belong to the part; moves *rgb to the first of its pixels. */
static uint32_t rows_of(const Rows *rows, const JpegRegion *part, size_t stride, uint32_t count, const uint8_t **rgb) {
    const uint32_t end = rows->y + count, bottom = part->y + part->height;
    const uint32_t from = part->y > rows->y ? part->y : rows->y, until = bottom < end ? bottom : end;
    if (from >= until) return 0;
    *rgb += (size_t)(from - rows->y) * stride + (size_t)(part->x - rows->region.x) * AUGMENT_CHANNELS;
    return until - from;
}

static void copy_whole(Rows *rows, const uint8_t *rgb, size_t stride, uint32_t count) {
    const size_t bytes = (size_t)rows->whole.width * AUGMENT_CHANNELS;
    count = rows_of(rows, &rows->whole, stride, count, &rgb);
    for (uint32_t y = 0; y < count; y++, rows->to += bytes) memcpy(rows->to, rgb + y * stride, bytes);
}

static void crop_take(void *context, const uint8_t *rgb, size_t stride, uint32_t count) {
    Rows *rows = context;
    const int64_t start = clock_now_ns();
    for (const DecoderOutput *view = rows->first; view != NULL; view = next_view(rows->chunk, view)) {
        const Cut *cut = cut_of(rows->chunk, view);
        const uint8_t *pixels = rgb;
        const uint32_t taken = rows_of(rows, &cut->from, stride, count, &pixels);
        if (taken > 0) resizer_push(cut->resizer, pixels, stride, taken);
    }
    if (rows->to != NULL) copy_whole(rows, rgb, stride, count);
    rows->y += count;
    loader_decoder_spent(&rows->chunk->scratch->times.resample_ns, start);
}

/* Makes room for the whole image, if that is wanted. */
static Status begin_whole(Rows *rows, size_t i, const BetonImage *image, AugmentImage *whole) {
    const DecoderOutput *output = companion_of(rows->chunk, rows->first);
    AugmentPart part;
    if (output == NULL) return STATUS_OK;
    TRY(loader_image_part(rows->chunk, output, i, image, &part));
    TRY(loader_pixels_room(rows->chunk, output, i, image, part, &rows->to, whole));
    part = whole->part;
    rows->whole = (JpegRegion){(uint32_t)part.y, (uint32_t)part.x, (uint32_t)part.height, (uint32_t)part.width};
    if (rows->to != NULL) rows->region = join(rows->region, rows->whole);
    return STATUS_OK;
}

static void make_blank(const Rows *rows, uint8_t *whole) {
    for (const DecoderOutput *view = rows->first; view != NULL; view = next_view(rows->chunk, view)) {
        const LoaderCrop *crop = &((const CropState *)view->state)->crop;
        memset(cut_of(rows->chunk, view)->to, 0, (size_t)crop->height * crop->width * AUGMENT_CHANNELS);
    }
    if (whole != NULL) memset(whole, 0, (size_t)rows->whole.height * rows->whole.width * AUGMENT_CHANNELS);
}

/* Reads the image once for all its views, and for the whole image, if that is wanted. */
static Status resample(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, const BetonImage *image,
                       AugmentImage *whole) {
    const CropState *state = output->state;
    Rows rows = {.chunk = chunk, .first = output, .region = cut_of(chunk, output)->from};
    for (const DecoderOutput *view = output; view != NULL; view = next_view(chunk, view)) {
        rows.region = join(rows.region, cut_of(chunk, view)->from);
    }
    TRY(begin_whole(&rows, i, image, whole));
    rows.y = rows.region.y;
    if (image->mode == BETON_IMAGE_RAW) {
        const size_t stride = (size_t)image->width * AUGMENT_CHANNELS;
        crop_take(&rows,
                  (const uint8_t *)image->region.data + rows.y * stride + (size_t)rows.region.x * AUGMENT_CHANNELS,
                  stride, rows.region.height);
        return STATUS_OK;
    }
    const JpegRequest request = {state->fast_jpeg ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, image->width, image->height,
                                 cut_of(chunk, output)->shrink, rows.region};
    uint8_t *copied = rows.to;
    bool blank = false;
    TRY(loader_pixels_stream(chunk, output, i, image, &request, crop_take, &rows, &blank));
    if (blank) make_blank(&rows, copied);
    return STATUS_OK;
}

/* `begin` as in loader_pixels_augment. */
static Status decode_one(const DecoderChunk *chunk, const DecoderOutput *output, size_t i, bool begin) {
    const DecoderOutput *other = companion_of(chunk, output);
    AugmentImage whole = {0};
    BetonImage image;
    TRY(loader_pixels_read(chunk, output, i, &image));
    if (image.height < 1 || image.width < 1) {
        return loader_decoder_fail(chunk, output, i, "decode", error_fail(STATUS_FORMAT, "the image has no pixels"));
    }
    const int64_t start = clock_now_ns();
    for (const DecoderOutput *view = output; view != NULL; view = next_view(chunk, view)) {
        TRY(loader_decoder_fail(chunk, view, i, "resize", begin_cut(chunk, view, i, &image, begin)));
    }
    loader_decoder_spent(&chunk->scratch->times.resample_ns, start);
    TRY(resample(chunk, output, i, &image, &whole));
    for (const DecoderOutput *view = output; view != NULL; view = next_view(chunk, view)) {
        const CropState *state = view->state;
        const Cut *cut = cut_of(chunk, view);
        const int32_t height = (int32_t)state->crop.height, width = (int32_t)state->crop.width;
        const AugmentImage pixels = {cut->to, (size_t)width * AUGMENT_CHANNELS, {0, 0, height, width}};
        if (cut->straight) continue;
        loader_pixels_augment(chunk, view, state->augment, &pixels, i, NULL, begin);
    }
    if (other != NULL) loader_image_augment(chunk, other, i, &whole, NULL, begin);
    return STATUS_OK;
}

static Status crop_decode_chunk(const DecoderChunk *chunk, const DecoderOutput *output, bool begin) {
    for (size_t i = 0; i < chunk->count; i++) TRY(decode_one(chunk, output, i, begin));
    return STATUS_OK;
}

static Status crop_decode(const DecoderChunk *chunk, const DecoderOutput *output, unsigned char *rows) {
    (void)rows;
    return loader_pixels_run(chunk, output, crop_decode_chunk);
}

static Status crop_reserve(const LoaderSource *source, const Traversal *in_use, DecoderOutput *outputs,
                           DecoderOutput *output) {
    (void)source, (void)in_use, (void)outputs, (void)output;
    FAIL(STATUS_ARGUMENT, "a loader that crops while decoding cannot keep the pixels (resident)");
}

#define ENTRY(entry, text, words)                                                                                      \
    const DecoderEntry entry = {.name = (text),                                                                        \
                                .what = (words),                                                                       \
                                .kinds = kinds,                                                                        \
                                .kind_count = 1,                                                                       \
                                .prepare = crop_prepare,                                                               \
                                .decode = crop_decode,                                                                 \
                                .same_values = same_values,                                                            \
                                .decodes_companion = decodes_companion,                                                \
                                .init_scratch = crop_init_scratch,                                                     \
                                .reserve = crop_reserve,                                                               \
                                .destroy = crop_destroy}

ENTRY(loader_decoder_center_crop, "center_crop", "the decoder of central crops");
ENTRY(loader_decoder_random_crop, "random_resized_crop", "the decoder of random crops");
