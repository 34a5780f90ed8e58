/* Transforms tiles of activations into the domain of the products and back, for AVX-512 with bfloat16. A tile is
 * transformed column by column into a buffer, then row by row; its elements go to (m + 2)^2 planes. */
#include "nn/cpu/winograd.h"
#include "nn/cpu/winograd_simd.h"

/* Where a tile is in its map, and whether it is completely inside. */
typedef struct TilePosition {
    int image, top, left;
    int inside;
} TilePosition;

static inline TilePosition locate_tile(const WinogradMap *map, int tile, int extent) {
    int of_image = map->rows * map->columns, rest = tile % of_image;
    TilePosition position = {.image = tile / of_image,
                             .top = rest / map->columns * map->tile - map->padding,
                             .left = rest % map->columns * map->tile - map->padding};
    position.inside = position.top >= 0 && position.left >= 0 && position.top + extent <= map->height &&
                      position.left + extent <= map->width;
    return position;
}

static inline ptrdiff_t corner_of(const WinogradMap *map, const TilePosition *position) {
    return (((ptrdiff_t)position->image * map->height + position->top) * map->width + position->left) * map->channels;
}

/* The elements of a tile: pointers to the first channel, or to zeros for those outside the map. */
typedef struct TileSource {
    const uint16_t *at[MOST][8];
} TileSource;

INLINE __mmask8 within(int first, int size) {
    const __m256i step = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i at = _mm256_add_epi32(_mm256_set1_epi32(first), step);
    return _mm256_cmplt_epu32_mask(at, _mm256_set1_epi32(size));
}

INLINE void find_source(const WinogradMap *map, const uint16_t *images, int tile, int extent, TileSource *source) {
    static const uint16_t zeros[WINOGRAD_MOST_CHANNELS];
    const __m512i step = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    TilePosition position = locate_tile(map, tile, extent);
    const int64_t pixel_bytes = (int64_t)map->channels * 2, row_bytes = pixel_bytes * map->width;
    __mmask8 columns = within(position.left, map->width), rows = within(position.top, map->height);
    __m512i row = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(uintptr_t)images + corner_of(map, &position) * 2),
                                   _mm512_mullo_epi64(step, _mm512_set1_epi64(pixel_bytes)));
    const __m512i none = _mm512_set1_epi64((int64_t)(uintptr_t)zeros);
    UNROLL
    for (int i = 0; i < extent; i++) {
        __mmask8 wanted = (rows >> i & 1) != 0 ? columns : 0;
        _mm512_storeu_si512(source->at[i], _mm512_mask_mov_epi64(none, wanted, row));
        row = _mm512_add_epi64(row, _mm512_set1_epi64(row_bytes));
    }
}

/* The kinds of tiles that are transformed into the products' domain. */
enum { OF_INPUT, OF_GRADIENT };

INLINE void transform(int kind, int m, const Vf *x, Vf *r) {
    if (kind == OF_INPUT) {
        input_transform(m, x, r);
    } else {
        gradient_transform(m, x, r);
    }
}

INLINE int extent_of(int kind, int m) { return kind == OF_INPUT ? m + 2 : m; }

/* Channels c .. c + 15 of one tile or, if `other` is not NULL, c .. c + 7 of each of two. */
INLINE Vf load_channels(const TileSource *source, const TileSource *other, int i, int j, int c) {
    if (other == NULL) return bf16_widen((Vh)_mm256_loadu_si256((const __m256i *)(source->at[i][j] + c)));
    __m128i low = _mm_loadu_si128((const __m128i *)(source->at[i][j] + c));
    __m128i high = _mm_loadu_si128((const __m128i *)(other->at[i][j] + c));
    return bf16_widen((Vh)_mm256_set_m128i(high, low));
}

/* The first half of a transform: half[i] is row i of the input of the second half. */
INLINE void transform_columns(int kind, int m, const TileSource *source, const TileSource *other, int c,
                              Vf half[MOST][MOST]) {
    int extent = extent_of(kind, m);
    UNROLL
    for (int j = 0; j < extent; j++) {
        Vf x[MOST], r[MOST];
        UNROLL
        for (int i = 0; i < extent; i++) x[i] = load_channels(source, other, i, j, c);
        transform(kind, m, x, r);
        UNROLL
        for (int i = 0; i < m + 2; i++) half[i][j] = r[i];
    }
}

/* 32 channels: full cache lines are stored. */
INLINE void input_channels(int m, const TileSource *source, int c, uint16_t *to, size_t plane) {
    Vf low[MOST][MOST], high[MOST][MOST];
    transform_columns(OF_INPUT, m, source, NULL, c, low);
    transform_columns(OF_INPUT, m, source, NULL, c + LANES, high);
    UNROLL
    for (int i = 0; i < m + 2; i++) {
        Vf r[MOST], s[MOST];
        transform(OF_INPUT, m, low[i], r);
        transform(OF_INPUT, m, high[i], s);
        UNROLL
        for (int j = 0; j < m + 2; j++, to += plane) {
            _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)s[j], (__m512)r[j]));
        }
    }
}

/* 16 channels, or 8 of each of two tiles; the second tile's go `apart` elements further (0: not stored). */
INLINE void input_last_channels(int m, const TileSource *source, const TileSource *other, int c, uint16_t *to,
                                size_t plane, int apart) {
    Vf half[MOST][MOST];
    transform_columns(OF_INPUT, m, source, other, c, half);
    for (int i = 0; i < m + 2; i++) {
        Vf r[MOST];
        transform(OF_INPUT, m, half[i], r);
        UNROLL
        for (int j = 0; j < m + 2; j++, to += plane) {
            __m256i values = (__m256i)bf16_narrow(r[j]);
            if (other == NULL) {
                _mm256_storeu_si256((__m256i *)to, values);
            } else {
                if (apart > 0) _mm_storeu_si128((__m128i *)(to + apart), _mm256_extracti128_si256(values, 1));
                _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(values));
            }
        }
    }
}

/* Two tiles at a time, so that half vectors can be paired. */
INLINE void input_tiles(int m, const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                        size_t plane) {
    int channels = map->channels;
    for (int t = 0; t < tiles; t += 2, to += 2 * channels) {
        TileSource sources[2];
        int pair = t + 1 < tiles, c = 0;
        find_source(map, images, first + t, m + 2, &sources[0]);
        find_source(map, images, first + t + pair, m + 2, &sources[1]);
        for (; c + 2 * LANES <= channels; c += 2 * LANES) {
            for (int i = 0; i <= pair; i++) input_channels(m, &sources[i], c, to + i * channels + c, plane);
        }
        for (; c + LANES <= channels; c += LANES) {
            for (int i = 0; i <= pair; i++) {
                input_last_channels(m, &sources[i], NULL, c, to + i * channels + c, plane, 0);
            }
        }
        if (c < channels) {
            input_last_channels(m, &sources[0], &sources[1], c, to + c, plane, pair ? channels : 0);
        }
    }
}

void nn_cpu_winograd_input(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                           size_t plane) {
    if (map->tile == 2) {
        input_tiles(2, map, images, first, tiles, to, plane);
    } else {
        input_tiles(4, map, images, first, tiles, to, plane);
    }
}

/* The two halves of the vector, interleaved lane by lane, as bfloat16. */
INLINE __m256i interleave_halves(Vf both) {
    const __m256i order = _mm256_setr_epi16(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    return _mm256_permutexvar_epi16(order, (__m256i)bf16_narrow(both));
}

INLINE void pair_channels(int kind, int m, const TileSource sources[2], int pair, int c, uint16_t *to, size_t plane) {
    Vf low[MOST][MOST], high[MOST][MOST];
    transform_columns(kind, m, &sources[0], NULL, c, low);
    transform_columns(kind, m, &sources[1], NULL, c, high);
    const Vf none = {0};
    UNROLL
    for (int i = 0; i < m + 2; i++) {
        Vf r[MOST], s[MOST];
        transform(kind, m, low[i], r);
        transform(kind, m, high[i], s);
        UNROLL
        for (int j = 0; j < m + 2; j++, to += plane) _mm512_storeu_si512(to, interleave(r[j], pair ? s[j] : none));
    }
}

INLINE void pair_half_channels(int kind, int m, const TileSource sources[2], int pair, int c, uint16_t *to,
                               size_t plane) {
    Vf half[MOST][MOST];
    __mmask16 wanted = pair ? 0xffff : 0x00ff;
    transform_columns(kind, m, &sources[0], &sources[1], c, half);
    for (int i = 0; i < m + 2; i++) {
        Vf r[MOST];
        transform(kind, m, half[i], r);
        UNROLL
        for (int j = 0; j < m + 2; j++, to += plane) {
            Vf kept = (Vf)_mm512_maskz_mov_ps(wanted, (__m512)r[j]);
            _mm256_storeu_si256((__m256i *)to, interleave_halves(kept));
        }
    }
}

INLINE void pairs_of_tiles(int kind, int m, const WinogradMap *map, const uint16_t *images, int first, int tiles,
                           uint16_t *to, size_t plane) {
    for (int t = 0; t < tiles; t += 2, to += 2 * map->channels) {
        TileSource sources[2];
        int c = 0, pair = t + 1 < tiles;
        find_source(map, images, first + t, extent_of(kind, m), &sources[0]);
        find_source(map, images, first + t + pair, extent_of(kind, m), &sources[1]);
        for (; c + LANES <= map->channels; c += LANES) pair_channels(kind, m, sources, pair, c, to + 2 * c, plane);
        if (c < map->channels) pair_half_channels(kind, m, sources, pair, c, to + 2 * c, plane);
    }
}

void nn_cpu_winograd_input_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                                 size_t plane) {
    if (map->tile == 2) {
        pairs_of_tiles(OF_INPUT, 2, map, images, first, tiles, to, plane);
    } else {
        pairs_of_tiles(OF_INPUT, 4, map, images, first, tiles, to, plane);
    }
}

void nn_cpu_winograd_gradient_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                                    size_t plane) {
    if (map->tile == 2) {
        pairs_of_tiles(OF_GRADIENT, 2, map, images, first, tiles, to, plane);
    } else {
        pairs_of_tiles(OF_GRADIENT, 4, map, images, first, tiles, to, plane);
    }
}

/* Sixteen channels, or the first eight. */
INLINE void store_channels(uint16_t *to, Vf value, int full) {
    __m256i half = (__m256i)bf16_narrow(value);
    if (full) {
        _mm256_storeu_si256((__m256i *)to, half);
    } else {
        _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(half));
    }
}

INLINE void output_tile(int m, const WinogradMap *map, const float *from, size_t plane, const TilePosition *position,
                        int inside, int full, uint16_t *corner) {
    Vf half[4][MOST];
    UNROLL
    for (int j = 0; j < m + 2; j++) {
        Vf x[MOST], r[4];
        UNROLL
        for (int i = 0; i < m + 2; i++) x[i] = f32_load(from + (size_t)(i * (m + 2) + j) * plane);
        output_transform(m, x, r);
        UNROLL
        for (int i = 0; i < m; i++) half[i][j] = r[i];
    }
    UNROLL
    for (int i = 0; i < m; i++) {
        Vf r[4];
        output_transform(m, half[i], r);
        if (!inside && position->top + i >= map->height) return;
        UNROLL
        for (int j = 0; j < m; j++) {
            if (!inside && position->left + j >= map->width) break;
            ptrdiff_t at = ((ptrdiff_t)i * map->width + j) * map->channels;
            store_channels(corner + at, r[j], full);
        }
    }
}

INLINE void output_tiles(int m, const WinogradMap *map, const float *from, size_t plane, int stride, int first,
                         int tiles, uint16_t *images) {
    for (int t = 0; t < tiles; t++) {
        TilePosition position = locate_tile(map, first + t, m);
        uint16_t *corner = images + corner_of(map, &position);
        const float *tile = from + (size_t)t * (size_t)stride;
        int c = 0;
        for (; c + LANES <= map->channels; c += LANES) {
            if (position.inside) {
                output_tile(m, map, tile + c, plane, &position, 1, 1, corner + c);
            } else {
                output_tile(m, map, tile + c, plane, &position, 0, 1, corner + c);
            }
        }
        if (c < map->channels) {
            output_tile(m, map, tile + c, plane, &position, 0, 0, corner + c);
        }
    }
}

void nn_cpu_winograd_output(const WinogradMap *map, const float *from, size_t plane, int stride, int first, int tiles,
                            uint16_t *images) {
    if (map->tile == 2) {
        output_tiles(2, map, from, plane, stride, first, tiles, images);
    } else {
        output_tiles(4, map, from, plane, stride, first, tiles, images);
    }
}
