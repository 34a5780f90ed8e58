// rooms: base image, with jpeg
/* Our entropy decoder beside libjpeg-turbo's. The input is read as a program that writes a small sequential JPEG: its
 * size, its sampling, its tables, and a code after the other, so that most streams are sound, and those that are not
 * have a fault in their data. Behind the input's end come random bytes. */
#include "decoders.h"

#define MOST_SIDE 33
#define MOST_BYTES (1 << 17)
#define BLOCK_BYTES 600 /* more than a block takes, its restart marker included */
#define LONGEST 16

typedef struct Input {
    const uint8_t *at, *end;
    uint32_t random;
} Input;

static uint32_t next(Input *input, uint32_t below) {
    if (input->at < input->end) return *input->at++ % below;
    input->random = input->random * 1664525u + 1013904223u;
    return (input->random >> 16) % below;
}

typedef struct Codes {
    uint32_t total;
    uint8_t counts[LONGEST + 1], values[256], length[256];
    uint16_t code[256];
} Codes;

typedef struct Stream {
    uint8_t bytes[MOST_BYTES];
    size_t size;
    uint32_t bits; /* of a byte that is not full: its top ones */
    int count;
} Stream;

static const uint8_t samplings[] = {0x11, 0x22, 0x21, 0x12, 0x41, 0x14, 0x42, 0x24}; /* of the first component */

/* ---- tables ---- */

/* No more codes of a length than there are; all bits 1 is none, except by a chance of 1 in 256. */
static void draw_codes(Codes *codes, Input *input, bool dc) {
    const uint32_t spare = next(input, 256) != 255, style = next(input, 4);
    uint32_t left = 1, code = 0;
    *codes = (Codes){0};
    for (int length = 1; length <= LONGEST; length++) {
        left *= 2;
        code *= 2;
        uint32_t count = next(input, style == 0 ? 2 : style == 1 ? 5 : length > 7 ? 32 : 3);
        if (length == LONGEST && codes->total == 0) count = 1;
        if (count + spare > left) count = left - spare;
        if (codes->total + count > 256) count = 256 - codes->total;
        for (uint32_t i = 0; i < count; i++, code++, codes->total++) {
            codes->code[codes->total] = (uint16_t)code;
            codes->length[codes->total] = (uint8_t)length;
        }
        codes->counts[length] = (uint8_t)(count < 256 ? count : 255);
        left -= count;
    }
    uint32_t value = next(input, 256), step = 2 * next(input, 128) + 1;
    for (uint32_t i = 0; i < codes->total; i++, value += step) codes->values[i] = (uint8_t)(dc ? value & 15 : value);
}

/* ---- the stream ---- */

static void put(Stream *out, uint32_t byte) { out->bytes[out->size++] = (uint8_t)byte; }

static void put_all(Stream *out, const void *bytes, size_t count) {
    memcpy(out->bytes + out->size, bytes, count);
    out->size += count;
}

static void put_codes(Stream *out, const Codes *codes, uint32_t kind, uint32_t which) {
    const uint32_t length = 19 + codes->total;
    const uint8_t head[] = {0xFF, 0xC4, (uint8_t)(length >> 8), (uint8_t)length, (uint8_t)(kind << 4 | which)};
    put_all(out, head, sizeof head);
    put_all(out, codes->counts + 1, LONGEST);
    put_all(out, codes->values, codes->total);
}

static void put_bits(Stream *out, uint32_t bits, int count) {
    for (int i = count - 1; i >= 0; i--) {
        out->bits = out->bits << 1 | (bits >> i & 1);
        if (++out->count < 8) continue;
        put(out, out->bits & 0xFF);
        if ((out->bits & 0xFF) == 0xFF) put(out, 0);
        out->count = 0;
    }
}

static void fill_byte(Stream *out) {
    while (out->count != 0) put_bits(out, 1, 1);
}

/* A code and its value's bits; the symbol. */
static uint32_t put_symbol(Stream *out, Input *input, const Codes *codes) {
    const uint32_t which = next(input, codes->total), symbol = codes->values[which], size = symbol & 15;
    put_bits(out, codes->code[which], codes->length[which]);
    put_bits(out, (next(input, 256) << 8 | next(input, 256)) & ((1u << size) - 1), (int)size);
    return symbol;
}

static void put_block(Stream *out, Input *input, const Codes *dc, const Codes *ac) {
    put_symbol(out, input, dc);
    for (uint32_t k = 1; k < 64;) {
        const uint32_t symbol = put_symbol(out, input, ac);
        if ((symbol & 15) == 0 && symbol >> 4 != 15) return;
        k += (symbol >> 4) + 1;
    }
}

typedef struct Frame {
    uint32_t width, height, components, sampling, restart;
} Frame;

static void put_head(Stream *out, const Frame *frame, uint32_t step) {
    put_all(out, "\xFF\xD8\xFF\xDB\0\x43\0", 7);
    memset(out->bytes + out->size, (int)step, 64);
    out->size += 64;
    const uint8_t head[] = {0xFF,
                            0xC0,
                            0,
                            (uint8_t)(8 + 3 * frame->components),
                            8,
                            0,
                            (uint8_t)frame->height,
                            0,
                            (uint8_t)frame->width,
                            (uint8_t)frame->components};
    put_all(out, head, sizeof head);
    for (uint32_t i = 0; i < frame->components; i++) {
        const uint8_t component[] = {(uint8_t)(i + 1), (uint8_t)(i == 0 ? frame->sampling : 0x11), 0};
        put_all(out, component, sizeof component);
    }
    const uint8_t restart[] = {0xFF, 0xDD, 0, 4, 0, (uint8_t)frame->restart};
    if (frame->restart != 0) put_all(out, restart, sizeof restart);
}

static void put_scan_head(Stream *out, const Frame *frame) {
    const uint8_t head[] = {0xFF, 0xDA, 0, (uint8_t)(6 + 2 * frame->components), (uint8_t)frame->components};
    put_all(out, head, sizeof head);
    for (uint32_t i = 0; i < frame->components; i++) {
        put(out, i + 1);
        put(out, i == 0 ? 0 : 0x11);
    }
    put_all(out, "\0\x3F", 3);
}

static uint32_t divided(uint32_t side, uint32_t by) { return (side + by - 1) / by; }

static void put_scan(Stream *out, Input *input, const Frame *frame, const Codes codes[2][2]) {
    const bool grey = frame->components == 1; /* its blocks come one by one, whatever its sampling */
    const uint32_t across = grey ? 1 : frame->sampling >> 4, down = grey ? 1 : frame->sampling & 15;
    const uint32_t groups = divided(frame->width, 8 * across) * divided(frame->height, 8 * down);
    for (uint32_t group = 0, marker = 0; group < groups; group++) {
        if (frame->restart != 0 && group != 0 && group % frame->restart == 0) {
            fill_byte(out);
            put(out, 0xFF);
            put(out, 0xD0 + marker++ % 8);
        }
        for (uint32_t i = 0; i < across * down + (grey ? 0 : 2); i++) {
            if (out->size + BLOCK_BYTES > MOST_BYTES) WRONG("a stream of %zu bytes", out->size);
            const Codes *pair = codes[i >= across * down];
            put_block(out, input, &pair[0], &pair[1]);
        }
    }
    fill_byte(out);
}

/* One stream of four: bytes of its data changed, taken out or put in. */
static void damage(Stream *out, Input *input, size_t begin) {
    if (next(input, 4) != 0 || out->size == begin) return;
    const size_t room = out->size - begin, at = begin + ((size_t)next(input, 256) << 8 | next(input, 256)) % room;
    switch (next(input, 4)) {
    case 0:
        out->bytes[at] ^= (uint8_t)(1u << next(input, 8));
        return;
    case 1:
        out->bytes[at] = (uint8_t)next(input, 256);
        return;
    case 2:
        out->size = at;
        return;
    default:
        memmove(out->bytes + at + 1, out->bytes + at, out->size - at);
        out->bytes[at] = (uint8_t)next(input, 256);
        out->size++;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Stream out;
    static Codes codes[2][2]; /* of the first component and of the others: DC and AC */
    Input input = {data, data + size, (uint32_t)size};
    const JpegIdct idct = next(&input, 2) ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE;
    Frame frame = {1 + next(&input, MOST_SIDE), 1 + next(&input, MOST_SIDE), next(&input, 4) ? 3 : 1, 0, 0};
    frame.sampling = samplings[next(&input, sizeof samplings)];
    frame.restart = next(&input, 2) ? next(&input, 6) : 0;
    out.size = 0;
    out.count = 0;
    put_head(&out, &frame, 1 + next(&input, 255));
    for (uint32_t which = 0; which < (frame.components == 1 ? 1 : 2); which++) {
        for (uint32_t kind = 0; kind < 2; kind++) {
            draw_codes(&codes[which][kind], &input, kind == 0);
            put_codes(&out, &codes[which][kind], kind, which);
        }
    }
    put_scan_head(&out, &frame);
    const size_t begin = out.size;
    put_scan(&out, &input, &frame, codes);
    damage(&out, &input, begin);
    put_all(&out, "\xFF\xD9", 2);
    uint8_t *exact = malloc(out.size); /* so that reading past its end is noticed */
    memcpy(exact, out.bytes, out.size);
    const JpegInfo info = {frame.width, frame.height, (int)frame.components, false};
    decode_all_ways(exact, out.size, info, idct);
    free(exact);
    return 0;
}
