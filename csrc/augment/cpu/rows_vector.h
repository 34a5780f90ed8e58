/* Private to rows_avx2.c and rows_avx512.c. They define, before they include it,
 *   Constants                          what a strip keeps in registers
 * and, before they use DEFINE_KERNELS, for all types except uint8
 *   constants_TYPE(augment, layout)    prepares the constants
 *   put_TYPE(out, values, k, which)    converts 16 uint8 values with constant set `which` and stores them
 * A block is 16 pixels. HWC: three vectors in the order of the output, whose values cycle through the channels.
 * CHW: one vector per channel. The last block of a row overlaps its neighbour instead of running past the end. */
#ifndef CGXFFCV_AUGMENT_CPU_ROWS_VECTOR_H
#define CGXFFCV_AUGMENT_CPU_ROWS_VECTOR_H

#include <immintrin.h>

#include "augment/cpu/rows.h"

#define INLINE static inline __attribute__((always_inline))

/* The channel of lane `lane` in constant set `which`. */
INLINE int channel_of(int which, int lane, ImageLayout layout) {
    return layout == IMAGE_CHW ? which : (AUGMENT_BLOCK * which + lane) % AUGMENT_CHANNELS;
}

INLINE Constants constants_u8(const AugmentPass *a, ImageLayout layout) {
    (void)a;
    (void)layout;
    return (Constants){0};
}

INLINE void put_u8(void *out, __m128i values, Constants k, int which) {
    (void)k;
    (void)which;
    _mm_storeu_si128(out, values);
}

typedef struct Block {
    __m128i v[3];
} Block;

INLINE Block block_load(const uint8_t *from) {
    Block b = {{_mm_loadu_si128((const __m128i *)from), _mm_loadu_si128((const __m128i *)(from + 16)),
                _mm_loadu_si128((const __m128i *)(from + 32))}};
    return b;
}

INLINE __m128i gather(Block b, const uint8_t pattern[3][16]) {
    __m128i p0 = _mm_load_si128((const __m128i *)pattern[0]);
    __m128i p1 = _mm_load_si128((const __m128i *)pattern[1]);
    __m128i p2 = _mm_load_si128((const __m128i *)pattern[2]);
    return _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(b.v[0], p0), _mm_shuffle_epi8(b.v[1], p1)),
                        _mm_shuffle_epi8(b.v[2], p2));
}

INLINE Block block_planes(Block b, const AugmentShuffles *shuffles, bool mirror) {
    Block out;
    for (int c = 0; c < 3; c++) out.v[c] = gather(b, shuffles->planes[mirror][c]);
    return out;
}

INLINE Block block_mirror(Block b, const AugmentShuffles *shuffles) {
    Block out;
    for (int i = 0; i < 3; i++) out.v[i] = gather(b, shuffles->mirror[i]);
    return out;
}

/* Prefetches a row of the next image: its cache lines arrive while this one is converted. */
INLINE void prefetch_row(const AugmentStrip *s, size_t row) {
    const size_t line = 64;
    if (s->next == NULL) return;
    for (size_t i = 0; i < s->next_stride; i += line) __builtin_prefetch(s->next + row * s->next_stride + i, 0, 3);
}

/* Where the 16 pixels that end up at x in the output begin in the source row. */
INLINE const uint8_t *block_source(const uint8_t *row, size_t width, size_t x, bool mirror) {
    return row + AUGMENT_CHANNELS * (mirror ? width - AUGMENT_BLOCK - x : x);
}

#define DEFINE_STRIP(suffix, type_name, item_bytes, layout_, mirror_)                                                  \
    INLINE void strip_##suffix(const AugmentPass *a, const AugmentStrip *s) {                                          \
        const Constants k = constants_##type_name(a, layout_);                                                         \
        for (size_t row = 0; row < s->rows; row++) {                                                                   \
            const uint8_t *source = s->source + (ptrdiff_t)row * s->source_stride;                                     \
            unsigned char *out = s->out + row * s->out_stride;                                                         \
            prefetch_row(s, row);                                                                                      \
            for (size_t next = 0; next < s->width; next += AUGMENT_BLOCK) {                                            \
                size_t x = next + AUGMENT_BLOCK <= s->width ? next : s->width - AUGMENT_BLOCK;                         \
                Block b = block_load(block_source(source, s->width, x, mirror_));                                      \
                if ((layout_) == IMAGE_CHW) {                                                                          \
                    b = block_planes(b, &a->shuffles, mirror_);                                                        \
                    unsigned char *to = out + x * (item_bytes);                                                        \
                    put_##type_name(to, b.v[0], k, 0);                                                                 \
                    put_##type_name(to + s->plane, b.v[1], k, 1);                                                      \
                    put_##type_name(to + 2 * s->plane, b.v[2], k, 2);                                                  \
                } else {                                                                                               \
                    if (mirror_) b = block_mirror(b, &a->shuffles);                                                    \
                    unsigned char *to = out + x * (item_bytes)*AUGMENT_CHANNELS;                                       \
                    put_##type_name(to, b.v[0], k, 0);                                                                 \
                    put_##type_name(to + 16 * (item_bytes), b.v[1], k, 1);                                             \
                    put_##type_name(to + 32 * (item_bytes), b.v[2], k, 2);                                             \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

/* The kernel of a type and layout: rows narrower than a block are converted by table. */
#define DEFINE_KERNEL(type_name, item_bytes, layout_name, layout_)                                                     \
    DEFINE_STRIP(type_name##_##layout_name##_forward, type_name, item_bytes, layout_, false)                           \
    DEFINE_STRIP(type_name##_##layout_name##_mirror, type_name, item_bytes, layout_, true)                             \
    static void kernel_##type_name##_##layout_name(const AugmentPass *a, const AugmentStrip *s) {                      \
        if (s->width < AUGMENT_BLOCK) {                                                                                \
            for (size_t row = 0; row < s->rows; row++) {                                                               \
                augment_row_by_table(a, s, row, 0, s->width, item_bytes, layout_);                                     \
            }                                                                                                          \
        } else if (s->mirror) {                                                                                        \
            strip_##type_name##_##layout_name##_mirror(a, s);                                                          \
        } else {                                                                                                       \
            strip_##type_name##_##layout_name##_forward(a, s);                                                         \
        }                                                                                                              \
    }

#define DEFINE_KERNELS(table)                                                                                          \
    DEFINE_KERNEL(u8, 1, hwc, IMAGE_HWC)                                                                               \
    DEFINE_KERNEL(u8, 1, chw, IMAGE_CHW)                                                                               \
    DEFINE_KERNEL(f32, 4, hwc, IMAGE_HWC)                                                                              \
    DEFINE_KERNEL(f32, 4, chw, IMAGE_CHW)                                                                              \
    DEFINE_KERNEL(f16, 2, hwc, IMAGE_HWC)                                                                              \
    DEFINE_KERNEL(f16, 2, chw, IMAGE_CHW)                                                                              \
    DEFINE_KERNEL(bf16, 2, hwc, IMAGE_HWC)                                                                             \
    DEFINE_KERNEL(bf16, 2, chw, IMAGE_CHW)                                                                             \
    const AugmentKernel table[IMAGE_TYPES][2] = {                                                                      \
        [IMAGE_U8] = {kernel_u8_hwc, kernel_u8_chw},                                                                   \
        [IMAGE_F32] = {kernel_f32_hwc, kernel_f32_chw},                                                                \
        [IMAGE_F16] = {kernel_f16_hwc, kernel_f16_chw},                                                                \
        [IMAGE_BF16] = {kernel_bf16_hwc, kernel_bf16_chw},                                                             \
    };

#endif
