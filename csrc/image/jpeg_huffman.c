/* Bits come from a 64-bit buffer, which is refilled by whole words, since stuffed bytes have been removed. For most
 * coefficients one look-up of the next bits gives everything: the zeros before it, the size of its value, and the
 * number of bits used. */
#include "image/jpeg_huffman.h"

#include <string.h>

#include "base/bytes.h"

#define LOOKAHEAD JPEG_HUFFMAN_LOOKAHEAD
#define LONGEST JPEG_HUFFMAN_LONGEST
#define MARK 0xFF    /* begins a marker; followed by a stuffed 0, it stands for itself */
#define NO_CODE 1000 /* more coefficients than a block has */

/* An entry's parts: the number of bits of the code and the value together; of the code alone; the symbol's run of
 * zeros; the number of bits of the value. */
#define ENTRY(symbol, length)                                                                                          \
    ((uint32_t)((length) + ((symbol)&15u)) | (uint32_t)(length) << 8 | ((uint32_t)(symbol) >> 4) << 16 |               \
     ((uint32_t)(symbol)&15u) << 24)
#define ALL(entry) ((entry)&0xFF)
#define LENGTH(entry) ((entry) >> 8 & 0xFF)
#define ZEROS(entry) ((entry) >> 16 & 0xFF)
#define SIZE(entry) ((entry) >> 24)

/* The place of coefficient k of the stream's zigzag order in a row-major block. Coefficients past the last, in corrupt
 * streams, go to the last place, as in libjpeg. */
static const uint8_t natural_order[JPEG_HUFFMAN_BLOCK + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

/* ---- tables ---- */

void jpeg_huffman_make(JpegHuffmanTable *table, const uint8_t *counts, const uint8_t *values) {
    uint32_t code = 0, index = 0;
    if (table->made && memcmp(table->counts, counts, sizeof table->counts) == 0 &&
        memcmp(table->values, values, sizeof table->values) == 0) {
        return;
    }
    memcpy(table->counts, counts, sizeof table->counts);
    memcpy(table->values, values, sizeof table->values);
    memset(table->entries, 0, sizeof table->entries);
    for (unsigned length = 1; length <= LONGEST; length++, code <<= 1) {
        table->offset[length] = (int32_t)index - (int32_t)code;
        for (unsigned i = 0; i < counts[length]; i++, code++, index++) {
            if (length > LOOKAHEAD) continue;
            const uint32_t first = code << (LOOKAHEAD - length), last = (code + 1) << (LOOKAHEAD - length);
            for (uint32_t prefix = first; prefix < last; prefix++)
                table->entries[prefix] = ENTRY(values[index], length);
        }
        table->behind[length] = code << (LONGEST - length);
    }
    table->made = true;
}

/* The entry of a code that is too long for the look-up table; 0: there is no such code. */
static __attribute__((noinline)) uint32_t long_entry(uint64_t bits, const JpegHuffmanTable *table) {
    const uint32_t ahead = (uint32_t)(bits >> (64 - LONGEST));
    unsigned length = LOOKAHEAD + 1;
    while (length <= LONGEST && ahead >= table->behind[length]) length++;
    if (length > LONGEST) return 0;
    const int32_t index = (int32_t)(ahead >> (LONGEST - length)) + table->offset[length];
    return ENTRY(table->values[index], length);
}

/* ---- bits ---- */

/* Refills the buffer to at least 57 bits, however many there were; those below `count` are the next byte's first. */
static inline __attribute__((always_inline)) void fill(JpegHuffmanReader *reader) {
    reader->bits |= __builtin_bswap64(load_u64(reader->at)) >> reader->count;
    reader->at += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline __attribute__((always_inline)) void take(JpegHuffmanReader *reader, uint32_t count) {
    reader->bits <<= count;
    reader->count -= (int)count;
}

const uint8_t *jpeg_huffman_begin(JpegHuffmanReader *reader, const uint8_t *at, const uint8_t *end, uint8_t *room) {
    uint8_t *to = room;
    while (at < end) {
        const uint8_t *found = memchr(at, MARK, (size_t)(end - at)), *next = found == NULL ? end : found;
        memcpy(to, at, (size_t)(next - at));
        to += next - at;
        at = next;
        if (end - at < 2 || at[1] != 0) break;
        *to++ = MARK;
        at += 2;
    }
    memset(to, 0, JPEG_HUFFMAN_BEYOND);
    *reader = (JpegHuffmanReader){room, to, 0, 0};
    fill(reader);
    return at;
}

/* The number of bytes of which no bit was consumed; below 0, more was consumed than there was. */
static inline ptrdiff_t untouched(const JpegHuffmanReader *reader) {
    return reader->end - reader->at + (reader->count >> 3);
}

bool jpeg_huffman_ends(const JpegHuffmanReader *reader) { return untouched(reader) == 0; }

/* ---- blocks ---- */

/* The entry of the next bits, or 0. It is looked up before the refill, which then costs no time: of 57 bits, a code and
 * a value leave 26, more than a look-up needs. */
static inline __attribute__((always_inline)) uint32_t look_up(JpegHuffmanReader *reader,
                                                              const JpegHuffmanTable *table) {
    const uint32_t entry = table->entries[reader->bits >> (64 - LOOKAHEAD)];
    fill(reader);
    return entry;
}

/* The value in the bits after the entry's code, of which there is at least one: if the first is 0, it is negative. */
static inline __attribute__((always_inline)) int32_t value_of(uint64_t bits, uint32_t entry) {
    const int32_t value = (int32_t)(bits << LENGTH(entry) >> (64 - SIZE(entry)));
    return value < (1 << SIZE(entry) >> 1) ? value - (1 << SIZE(entry)) + 1 : value;
}

static inline __attribute__((always_inline)) bool add_dc(JpegHuffmanReader *reader, const JpegHuffmanTable *table,
                                                         int32_t *prediction) {
    uint32_t entry = look_up(reader, table);
    const uint64_t bits = reader->bits;
    if (entry == 0) entry = long_entry(bits, table);
    if (entry == 0) return false;
    take(reader, ALL(entry));
    return SIZE(entry) == 0 || !__builtin_add_overflow(*prediction, value_of(bits, entry), prediction);
}

/* Reads the next coefficient, number k or, after zeros, a later one; returns the number to continue with. */
static inline __attribute__((always_inline)) int add_ac(JpegHuffmanReader *reader, const JpegHuffmanTable *table, int k,
                                                        int16_t *block) {
    uint32_t entry = look_up(reader, table);
    const uint64_t bits = reader->bits;
    if (__builtin_expect(SIZE(entry) == 0, 0)) {
        if (entry == 0) entry = long_entry(bits, table);
        if (entry == 0) return NO_CODE;
        if (SIZE(entry) == 0) {
            take(reader, ALL(entry));
            return ZEROS(entry) == 15 ? k + 16 : JPEG_HUFFMAN_BLOCK;
        }
    }
    take(reader, ALL(entry));
    k += (int)ZEROS(entry);
    if (block != NULL) block[natural_order[k]] = (int16_t)value_of(bits, entry);
    return k + 1;
}

static inline __attribute__((always_inline)) bool read_block(JpegHuffmanReader *reader, const JpegHuffmanTable *dc,
                                                             const JpegHuffmanTable *ac, int32_t *prediction,
                                                             int16_t *block) {
    JpegHuffmanReader own = *reader; /* a copy that stays in registers */
    int k = 1;
    if (!add_dc(&own, dc, prediction)) return false;
    if (block != NULL) block[0] = (int16_t)*prediction;
    while (k < JPEG_HUFFMAN_BLOCK) k = add_ac(&own, ac, k, block);
    *reader = own;
    return k != NO_CODE && untouched(&own) >= 0;
}

bool jpeg_huffman_block(JpegHuffmanReader *reader, const JpegHuffmanTable *dc, const JpegHuffmanTable *ac,
                        int32_t *prediction, int16_t *block) {
    return block == NULL ? read_block(reader, dc, ac, prediction, NULL) : read_block(reader, dc, ac, prediction, block);
}
