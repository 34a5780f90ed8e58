// rooms: base augment
/* Which part of its source a drawn chain needs: no other pixel is read, and none of them is too many. */
#include <string.h>

#include "augment/augment.h"
#include "base/memory.h"
#include "check.h"

#define HEIGHT 13
#define WIDTH 24
#define MIRROR                                                                                                         \
    {                                                                                                                  \
        .kind = AUGMENT_flip, .as.flip = { 1 }                                                                         \
    }
#define BLUR                                                                                                           \
    {                                                                                                                  \
        .kind = AUGMENT_blur, .draw = 15, .as.blur = { 5, {1, 1}, 1 }                                                  \
    }
#define TURN                                                                                                           \
    {                                                                                                                  \
        .kind = AUGMENT_vertical, .as.vertical = { 1 }                                                                 \
    }
#define CROP(number, side, padding, reflects)                                                                          \
    {                                                                                                                  \
        .kind = AUGMENT_crop, .draw = number, .as.crop = {                                                             \
            {side, side + 3},                                                                                          \
            padding,                                                                                                   \
            {.colour = {1, 2, 3}, .reflect = reflects}                                                                 \
        }                                                                                                              \
    }
#define HOLE(number)                                                                                                   \
    {                                                                                                                  \
        .kind = AUGMENT_cutout, .draw = number, .as.cutout = { {3, 2}, {.colour = {7, 8, 9}} }                         \
    }
#define SHIFT(number, padding_)                                                                                        \
    {                                                                                                                  \
        .kind = AUGMENT_translate, .draw = number, .as.translate = { padding_, {.colour = {4, 5, 6}} }                 \
    }

typedef struct Chain {
    int count;
    AugmentOp ops[4];
} Chain;

static const Chain chains[] = {{0, {{0}}},
                               {1, {MIRROR}},
                               {2, {CROP(4, 5, 0, false), MIRROR}},
                               {2, {MIRROR, CROP(4, 6, 3, false)}},
                               {1, {CROP(4, 9, 12, true)}},
                               {2, {TURN, CROP(4, 7, 2, false)}},
                               {3, {CROP(4, 8, 4, true), TURN, MIRROR}},
                               {2, {HOLE(5), CROP(4, 5, 0, false)}},
                               {3, {CROP(4, 9, 0, false), BLUR, CROP(68, 5, 0, false)}},
                               {2, {CROP(4, 20, 8, true), HOLE(5)}},
                               {1, {SHIFT(3, 40)}},
                               {4, {SHIFT(3, 5), HOLE(5), CROP(4, 4, 2, true), SHIFT(67, 9)}}};

static uint8_t source[HEIGHT * WIDTH * AUGMENT_CHANNELS];

/* Of uint8 pixels. */
static size_t output_bytes(const Augment *augment) {
    int32_t height, width;
    augment_output_size(augment, &height, &width);
    return (size_t)height * (size_t)width * AUGMENT_CHANNELS;
}

static void run(const Augment *augment, const AugmentDrawn *drawn, AugmentPart part, uint8_t *out) {
    const size_t row = (size_t)part.width * AUGMENT_CHANNELS;
    uint8_t *pixels, *scratch;
    CHECK_OK(memory_alloc((size_t)part.height, row, &pixels)); /* no byte more: AddressSanitizer looks on */
    CHECK_OK(memory_calloc(augment_scratch_bytes(augment) + 1, 1, &scratch));
    augment_scratch_init(augment, scratch);
    for (int32_t y = 0; y < part.height; y++) {
        memcpy(pixels + (size_t)y * row, source + ((part.y + y) * WIDTH + part.x) * AUGMENT_CHANNELS, row);
    }
    augment_run(augment, drawn, &(AugmentImage){pixels, row, part}, NULL, out, scratch);
    memory_free(pixels);
    memory_free(scratch);
}

/* Inverts the red of the source's pixels there; twice: as it was. */
static void invert(AugmentPart part) {
    for (int32_t i = 0; i < part.height * part.width; i++) {
        int32_t y = part.y + i / part.width, x = part.x + i % part.width;
        source[(y * WIDTH + x) * AUGMENT_CHANNELS] ^= 255;
    }
}

/* Whether the rows and columns at the part's edges are shown. */
static void check_edges(const Augment *augment, const AugmentDrawn *drawn, AugmentPart part, const uint8_t *want,
                        uint8_t *out) {
    const AugmentPart whole = {0, 0, HEIGHT, WIDTH};
    const AugmentPart edges[4] = {{part.y, part.x, 1, part.width},
                                  {part.y + part.height - 1, part.x, 1, part.width},
                                  {part.y, part.x, part.height, 1},
                                  {part.y, part.x + part.width - 1, part.height, 1}};
    for (int edge = 0; edge < 4 && part.height > 0; edge++) {
        invert(edges[edge]);
        run(augment, drawn, whole, out);
        CHECK(memcmp(out, want, output_bytes(augment)) != 0);
        invert(edges[edge]);
    }
}

static void test_part(const Chain *chain, uint64_t sample) {
    AugmentSpec spec = {.height = HEIGHT, .width = WIDTH, .op_count = chain->count, .type = IMAGE_U8};
    const AugmentKey key = {.seed = 5, .sample = sample, .epoch = 2};
    AugmentDrawn drawn[AUGMENT_MAX_OPS];
    Augment *augment = NULL;
    uint8_t *want, *got;
    bool holes = false;
    memcpy(spec.ops, chain->ops, sizeof chain->ops);
    for (int i = 0; i < chain->count; i++)
        holes = holes || chain->ops[i].kind == AUGMENT_cutout || chain->ops[i].kind == AUGMENT_blur;
    CHECK_OK(augment_create(&spec, &augment));
    CHECK_OK(memory_alloc(output_bytes(augment), 1, &want));
    CHECK_OK(memory_alloc(output_bytes(augment), 1, &got));
    augment_draw(augment, &key, false, drawn);
    AugmentPart part = augment_part(augment, drawn);
    CHECK(part.y >= 0 && part.x >= 0 && part.y + part.height <= HEIGHT && part.x + part.width <= WIDTH);
    run(augment, drawn, (AugmentPart){0, 0, HEIGHT, WIDTH}, want);
    run(augment, drawn, part, got);
    CHECK(memcmp(got, want, output_bytes(augment)) == 0);
    if (!holes) check_edges(augment, drawn, part, want, got);
    memory_free(want);
    memory_free(got);
    augment_destroy(augment);
}

int main(void) {
    for (size_t i = 0; i < sizeof source; i++) source[i] = (uint8_t)(i * 37 % 127);
    for (size_t c = 0; c < sizeof chains / sizeof *chains; c++) {
        for (uint64_t sample = 0; sample < 50; sample++) test_part(&chains[c], sample);
    }
    return check_result();
}
