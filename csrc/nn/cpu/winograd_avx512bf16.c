/* The loops of winograd.h for AVX-512 with bfloat16 products. Sixteen channels are a vector (the last may be half
 * full); a tile is transformed column by column into a buffer, then row by row. */
#include "nn/cpu/simd.h"
#include "nn/cpu/winograd.h"

#define MOST 6 /* m + 2 */
#define UNROLL _Pragma("GCC unroll 6")

/* The points of m = 4: +-P and +-Q. */
#define P 0.75f
#define Q 1.5f

INLINE Vf fma_set(float a, Vf b, Vf c) { return vf_fma(vf_set(a), b, c); }

/* r = B^T x */
INLINE void input_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] - x[2];
        r[1] = x[1] + x[2];
        r[2] = x[2] - x[1];
        r[3] = x[1] - x[3];
        return;
    }
    Vf even_q = fma_set(-Q * Q, x[2], x[4]), odd_q = fma_set(-Q * Q, x[1], x[3]);
    Vf even_p = fma_set(-P * P, x[2], x[4]), odd_p = fma_set(-P * P, x[1], x[3]);
    r[0] = fma_set(P * P * Q * Q, x[0], fma_set(-(P * P + Q * Q), x[2], x[4]));
    r[1] = fma_set(P, odd_q, even_q);
    r[2] = fma_set(-P, odd_q, even_q);
    r[3] = fma_set(Q, odd_p, even_p);
    r[4] = fma_set(-Q, odd_p, even_p);
    r[5] = fma_set(P * P * Q * Q, x[1], fma_set(-(P * P + Q * Q), x[3], x[5]));
}

/* r = A^T x */
INLINE void output_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] + x[1] + x[2];
        r[1] = x[1] - x[2] - x[3];
        return;
    }
    Vf sum_p = x[1] + x[2], sum_q = x[3] + x[4], difference_p = x[1] - x[2], difference_q = x[3] - x[4];
    r[0] = x[0] + sum_p + sum_q;
    r[1] = fma_set(Q, difference_q, P * difference_p);
    r[2] = fma_set(Q * Q, sum_q, P * P * sum_p);
    r[3] = fma_set(Q * Q * Q, difference_q, fma_set(P * P * P, difference_p, x[5]));
}

/* r = A x */
INLINE void gradient_transform(int m, const Vf *x, Vf *r) {
    r[0] = x[0];
    if (m == 2) {
        r[1] = x[0] + x[1];
        r[2] = x[0] - x[1];
        r[3] = -x[1];
        return;
    }
    Vf even_p = fma_set(P * P, x[2], x[0]), odd_p = fma_set(P * P, x[3], x[1]);
    Vf even_q = fma_set(Q * Q, x[2], x[0]), odd_q = fma_set(Q * Q, x[3], x[1]);
    r[1] = fma_set(P, odd_p, even_p);
    r[2] = fma_set(-P, odd_p, even_p);
    r[3] = fma_set(Q, odd_q, even_q);
    r[4] = fma_set(-Q, odd_q, even_q);
    r[5] = x[3];
}

/* r = G x; the scale of the rows of B^T is made good here. */
INLINE void filter_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        Vf sum = (x[0] + x[2]) * 0.5f, middle = x[1] * 0.5f;
        r[0] = x[0];
        r[1] = sum + middle;
        r[2] = sum - middle;
        r[3] = x[2];
        return;
    }
    const float p = 1.0f / (2 * P * P * (P * P - Q * Q)), q = 1.0f / (2 * Q * Q * (Q * Q - P * P));
    Vf even_p = fma_set(P * P, x[2], x[0]), even_q = fma_set(Q * Q, x[2], x[0]);
    r[0] = x[0] * (1.0f / (P * P * Q * Q));
    r[1] = fma_set(P, x[1], even_p) * p;
    r[2] = fma_set(-P, x[1], even_p) * p;
    r[3] = fma_set(Q, x[1], even_q) * q;
    r[4] = fma_set(-Q, x[1], even_q) * q;
    r[5] = x[2];
}

/* r = G^T x */
INLINE void filter_gradient_transform(int m, const Vf *x, Vf *r) {
    if (m == 2) {
        r[0] = x[0] + (x[1] + x[2]) * 0.5f;
        r[1] = (x[1] - x[2]) * 0.5f;
        r[2] = (x[1] + x[2]) * 0.5f + x[3];
        return;
    }
    const float p = 1.0f / (2 * P * P * (P * P - Q * Q)), q = 1.0f / (2 * Q * Q * (Q * Q - P * P));
    Vf sum_p = (x[1] + x[2]) * p, sum_q = (x[3] + x[4]) * q;
    Vf difference_p = (x[1] - x[2]) * p, difference_q = (x[3] - x[4]) * q;
    r[0] = fma_set(1.0f / (P * P * Q * Q), x[0], sum_p + sum_q);
    r[1] = fma_set(Q, difference_q, P * difference_p);
    r[2] = fma_set(P * P, sum_p, fma_set(Q * Q, sum_q, x[5]));
}

/* Where a tile lies in its map, and whether all of it does. */
typedef struct Spot {
    int image, top, left;
    int inside;
} Spot;

static inline Spot find_spot(const WinogradMap *map, int tile, int extent) {
    int of_image = map->rows * map->columns, rest = tile % of_image;
    Spot spot = {.image = tile / of_image,
                 .top = rest / map->columns * map->tile - map->padding,
                 .left = rest % map->columns * map->tile - map->padding};
    spot.inside =
        spot.top >= 0 && spot.left >= 0 && spot.top + extent <= map->height && spot.left + extent <= map->width;
    return spot;
}

static inline ptrdiff_t corner_of(const WinogradMap *map, const Spot *spot) {
    return (((ptrdiff_t)spot->image * map->height + spot->top) * map->width + spot->left) * map->channels;
}

/* The elements of a tile: pointers to the first channel of those within the map, and to zeros. */
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
    Spot spot = find_spot(map, tile, extent);
    const int64_t pixel_bytes = (int64_t)map->channels * 2, row_bytes = pixel_bytes * map->width;
    __mmask8 columns = within(spot.left, map->width), rows = within(spot.top, map->height);
    __m512i row = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(uintptr_t)images + corner_of(map, &spot) * 2),
                                   _mm512_mullo_epi64(step, _mm512_set1_epi64(pixel_bytes)));
    const __m512i none = _mm512_set1_epi64((int64_t)(uintptr_t)zeros);
    UNROLL
    for (int i = 0; i < extent; i++) {
        __mmask8 wanted = (rows >> i & 1) != 0 ? columns : 0;
        _mm512_storeu_si512(source->at[i], _mm512_mask_mov_epi64(none, wanted, row));
        row = _mm512_add_epi64(row, _mm512_set1_epi64(row_bytes));
    }
}

/* The kinds of tile that are brought into the product's domain. */
enum { OF_INPUT, OF_GRADIENT };

INLINE void transform(int kind, int m, const Vf *x, Vf *r) {
    if (kind == OF_INPUT) {
        input_transform(m, x, r);
    } else {
        gradient_transform(m, x, r);
    }
}

INLINE int extent_of(int kind, int m) { return kind == OF_INPUT ? m + 2 : m; }

/* Channels c .. c + 15 of one tile, or (`other` not NULL) c .. c + 7 of each of two. */
INLINE Vf load_channels(const TileSource *source, const TileSource *other, int i, int j, int c) {
    if (other == NULL) return bf16_widen((Vh)_mm256_loadu_si256((const __m256i *)(source->at[i][j] + c)));
    __m128i low = _mm_loadu_si128((const __m128i *)(source->at[i][j] + c));
    __m128i high = _mm_loadu_si128((const __m128i *)(other->at[i][j] + c));
    return bf16_widen((Vh)_mm256_set_m128i(high, low));
}

/* The first half of a transform: half[i] is row i of what the second half takes. */
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

/* 16 channels, or 8 of each of two tiles, the other's `apart` elements on (0: not stored). */
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

/* Two tiles at a time, for the sake of half vectors. */
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

static void input(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to, size_t plane) {
    if (map->tile == 2) {
        input_tiles(2, map, images, first, tiles, to, plane);
    } else {
        input_tiles(4, map, images, first, tiles, to, plane);
    }
}

/* (low lane 0, high lane 0, low lane 1, ...) as bfloat16. */
INLINE __m512i interleave(Vf low, Vf high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

/* The two halves of the vector, lane by lane, as bfloat16. */
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

static void input_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                        size_t plane) {
    if (map->tile == 2) {
        pairs_of_tiles(OF_INPUT, 2, map, images, first, tiles, to, plane);
    } else {
        pairs_of_tiles(OF_INPUT, 4, map, images, first, tiles, to, plane);
    }
}

static void gradient_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
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

INLINE void output_tile(int m, const WinogradMap *map, const float *from, size_t plane, const Spot *spot, int inside,
                        int full, uint16_t *corner) {
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
        if (!inside && spot->top + i >= map->height) return;
        UNROLL
        for (int j = 0; j < m; j++) {
            if (!inside && spot->left + j >= map->width) break;
            ptrdiff_t at = ((ptrdiff_t)i * map->width + j) * map->channels;
            store_channels(corner + at, r[j], full);
        }
    }
}

INLINE void output_tiles(int m, const WinogradMap *map, const float *from, size_t plane, int stride, int first,
                         int tiles, uint16_t *images) {
    for (int t = 0; t < tiles; t++) {
        Spot spot = find_spot(map, first + t, m);
        uint16_t *corner = images + corner_of(map, &spot);
        const float *tile = from + (size_t)t * (size_t)stride;
        int c = 0;
        for (; c + LANES <= map->channels; c += LANES) {
            if (spot.inside) {
                output_tile(m, map, tile + c, plane, &spot, 1, 1, corner + c);
            } else {
                output_tile(m, map, tile + c, plane, &spot, 0, 1, corner + c);
            }
        }
        if (c < map->channels) {
            output_tile(m, map, tile + c, plane, &spot, 0, 0, corner + c);
        }
    }
}

static void output(const WinogradMap *map, const float *from, size_t plane, int stride, int first, int tiles,
                   uint16_t *images) {
    if (map->tile == 2) {
        output_tiles(2, map, from, plane, stride, first, tiles, images);
    } else {
        output_tiles(4, map, from, plane, stride, first, tiles, images);
    }
}

INLINE __m512bh load_pairs(const uint16_t *from) { return (__m512bh)_mm512_loadu_si512(from); }

INLINE __m512bh broadcast_pair(const uint16_t *from) {
    int32_t pair;
    memcpy(&pair, from, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* WINOGRAD_ROWS rows by `vectors` vectors of columns. */
INLINE void multiply_block(int vectors, const uint16_t *values, const uint16_t *panel, int depth, float *products,
                           int stride) {
    __m512 sum[WINOGRAD_ROWS][4];
    for (int r = 0; r < WINOGRAD_ROWS; r++) {
        for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_setzero_ps();
    }
    for (int k = 0; k < depth; k += 2, panel += vectors * 2 * LANES) {
        __m512bh filter[4];
        for (int v = 0; v < vectors; v++) filter[v] = load_pairs(panel + v * 2 * LANES);
        for (int r = 0; r < WINOGRAD_ROWS; r++) {
            __m512bh value = broadcast_pair(values + (size_t)r * (size_t)depth + k);
            for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], value, filter[v]);
        }
    }
    for (int r = 0; r < WINOGRAD_ROWS; r++) {
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(products + r * stride + v * LANES, sum[r][v]);
    }
}

INLINE void multiply_panel(int vectors, const uint16_t *values, const uint16_t *panel, int rows, int depth,
                           float *products, int stride) {
    for (int r = 0; r < rows; r += WINOGRAD_ROWS) {
        multiply_block(vectors, values + (size_t)r * (size_t)depth, panel, depth, products + (size_t)r * (size_t)stride,
                       stride);
    }
}

static void multiply(const uint16_t *values, const uint16_t *filters, int rows, int depth, int columns, float *products,
                     int stride) {
    for (int c = 0; c < columns; c += WINOGRAD_PANEL) {
        const uint16_t *panel = filters + (size_t)c * (size_t)depth;
        switch ((columns - c) / LANES) {
        case 1:
            multiply_panel(1, values, panel, rows, depth, products + c, stride);
            break;
        case 2:
            multiply_panel(2, values, panel, rows, depth, products + c, stride);
            break;
        case 3:
            multiply_panel(3, values, panel, rows, depth, products + c, stride);
            break;
        default:
            multiply_panel(4, values, panel, rows, depth, products + c, stride);
            break;
        }
    }
}

static inline __mmask16 lane_mask(int lanes) { return (__mmask16)((1u << lanes) - 1); }

/* The last vector may be half full: its mask. */
INLINE void accumulate_block(int vectors, const uint16_t *left, const uint16_t *right, int pairs, int rows, int columns,
                             __mmask16 mask, float *sums, int fresh) {
    __m512 sum[WINOGRAD_FILTER_ROWS][4];
    for (int r = 0; r < WINOGRAD_FILTER_ROWS; r++) {
        for (int v = 0; v < vectors; v++) {
            __mmask16 wanted = v == vectors - 1 ? mask : 0xffff;
            sum[r][v] = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(wanted, sums + r * columns + v * LANES);
        }
    }
    for (int p = 0; p < pairs; p++, left += 2 * rows, right += 2 * columns) {
        __m512bh gradient[4];
        for (int v = 0; v < vectors - 1; v++) gradient[v] = load_pairs(right + v * 2 * LANES);
        gradient[vectors - 1] = (__m512bh)_mm512_maskz_loadu_epi32(mask, right + (vectors - 1) * 2 * LANES);
        for (int r = 0; r < WINOGRAD_FILTER_ROWS; r++) {
            __m512bh value = broadcast_pair(left + 2 * r);
            for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], value, gradient[v]);
        }
    }
    for (int r = 0; r < WINOGRAD_FILTER_ROWS; r++) {
        for (int v = 0; v < vectors; v++) {
            _mm512_mask_storeu_ps(sums + r * columns + v * LANES, v == vectors - 1 ? mask : 0xffff, sum[r][v]);
        }
    }
}

INLINE void accumulate_panel(int vectors, const uint16_t *left, const uint16_t *right, int pairs, int rows, int columns,
                             __mmask16 mask, float *sums, int fresh) {
    for (int r = 0; r < rows; r += WINOGRAD_FILTER_ROWS) {
        accumulate_block(vectors, left + 2 * r, right, pairs, rows, columns, mask, sums + (size_t)r * (size_t)columns,
                         fresh);
    }
}

static void accumulate(const uint16_t *left, const uint16_t *right, int pairs, int rows, int columns, float *sums,
                       int fresh) {
    for (int c = 0; c < columns; c += WINOGRAD_PANEL) {
        int wide = columns - c < WINOGRAD_PANEL ? columns - c : WINOGRAD_PANEL, vectors = (wide + LANES - 1) / LANES;
        __mmask16 mask = lane_mask(wide - (vectors - 1) * LANES);
        const uint16_t *panel = right + 2 * c;
        switch (vectors) {
        case 1:
            accumulate_panel(1, left, panel, pairs, rows, columns, mask, sums + c, fresh);
            break;
        case 2:
            accumulate_panel(2, left, panel, pairs, rows, columns, mask, sums + c, fresh);
            break;
        case 3:
            accumulate_panel(3, left, panel, pairs, rows, columns, mask, sums + c, fresh);
            break;
        default:
            accumulate_panel(4, left, panel, pairs, rows, columns, mask, sums + c, fresh);
            break;
        }
    }
}

/* values[i][j] = G g G^T for the input channels i0 .. of filter o. */
INLINE void filter_values(int m, const float *filters, int in, int o, int i0, int turned, Vf values[MOST][MOST]) {
    int lanes = in - i0 < LANES ? in - i0 : LANES;
    Vf half[MOST][3];
    for (int kx = 0; kx < 3; kx++) {
        Vf x[3], r[MOST];
        for (int ky = 0; ky < 3; ky++) {
            int tap = turned ? 8 - (ky * 3 + kx) : ky * 3 + kx;
            x[ky] = f32_load_some(filters + ((size_t)o * 9 + (size_t)tap) * (size_t)in + i0, lanes);
        }
        filter_transform(m, x, r);
        for (int i = 0; i < m + 2; i++) half[i][kx] = r[i];
    }
    for (int i = 0; i < m + 2; i++) filter_transform(m, half[i], values[i]);
}

/* Where (depth pair p, column c) of a matrix of `columns` columns lies, in elements. */
static inline size_t panel_at(int depth, int columns, int p, int c) {
    int panel = c / WINOGRAD_PANEL, first = panel * WINOGRAD_PANEL;
    int wide = columns - first < WINOGRAD_PANEL ? columns - first : WINOGRAD_PANEL;
    return (size_t)first * (size_t)depth + ((size_t)p * (size_t)wide + (size_t)(c - first)) * 2;
}

static inline int rounded(int channels) { return (channels + LANES - 1) / LANES * LANES; }

INLINE void pack_filters(int m, const float *filters, int in, int out, int begin, int end, uint16_t *to, size_t plane) {
    for (int o = begin; o < end; o++) {
        for (int i0 = 0; i0 < in; i0 += LANES) {
            Vf values[MOST][MOST];
            filter_values(m, filters, in, o, i0, 0, values);
            for (int e = 0; e < (m + 2) * (m + 2); e++) {
                uint32_t pairs[LANES / 2];
                _mm256_storeu_si256((__m256i *)pairs, (__m256i)bf16_narrow(values[e / (m + 2)][e % (m + 2)]));
                for (int p = 0; p < LANES / 2 && i0 + 2 * p < in; p++) {
                    size_t at = panel_at(in, rounded(out), i0 / 2 + p, o);
                    memcpy(to + (size_t)e * plane + at, &pairs[p], sizeof pairs[p]);
                }
            }
        }
    }
}

static void filters_forward(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                            size_t plane) {
    if (tile == 2) {
        pack_filters(2, filters, in, out, begin, end, to, plane);
    } else {
        pack_filters(4, filters, in, out, begin, end, to, plane);
    }
}

INLINE void pack_turned(int m, const float *filters, int in, int out, int begin, int end, uint16_t *to, size_t plane) {
    for (int o = begin; o < end; o += 2) {
        for (int i0 = 0; i0 < in; i0 += LANES) {
            Vf low[MOST][MOST], high[MOST][MOST];
            filter_values(m, filters, in, o, i0, 1, low);
            filter_values(m, filters, in, o + 1, i0, 1, high);
            for (int e = 0; e < (m + 2) * (m + 2); e++) {
                uint16_t *at = to + (size_t)e * plane + panel_at(out, rounded(in), o / 2, i0);
                _mm512_storeu_si512(at, interleave(low[e / (m + 2)][e % (m + 2)], high[e / (m + 2)][e % (m + 2)]));
            }
        }
    }
}

static void filters_turned(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                           size_t plane) {
    if (tile == 2) {
        pack_turned(2, filters, in, out, begin, end, to, plane);
    } else {
        pack_turned(4, filters, in, out, begin, end, to, plane);
    }
}

/* taps[k][o] = the nine taps of input channel i for 16 output channels; `from` points at the first one's sums. */
INLINE void finish_taps(int m, const float *from, size_t plane, int lanes, float taps[9][LANES]) {
    Vf half[3][MOST];
    UNROLL
    for (int j = 0; j < m + 2; j++) {
        Vf x[MOST], r[3];
        UNROLL
        for (int i = 0; i < m + 2; i++) x[i] = f32_load_some(from + (size_t)(i * (m + 2) + j) * plane, lanes);
        filter_gradient_transform(m, x, r);
        UNROLL
        for (int i = 0; i < 3; i++) half[i][j] = r[i];
    }
    UNROLL
    for (int i = 0; i < 3; i++) {
        Vf r[3];
        filter_gradient_transform(m, half[i], r);
        UNROLL
        for (int j = 0; j < 3; j++) f32_store(taps[i * 3 + j], r[j]);
    }
}

#define FINISH_DEPTH 16 /* input channels that are turned together, so that whole lines are written */
#define FINISH_AHEAD 4

INLINE void finish_gradient(int m, const float *sums, size_t plane, int in, int out, float *gradient) {
    float taps[FINISH_DEPTH][9][LANES];
    for (int o = 0; o < out; o += LANES) {
        int lanes = out - o < LANES ? out - o : LANES;
        for (int first = 0; first < in; first += FINISH_DEPTH) {
            int depth = in - first < FINISH_DEPTH ? in - first : FINISH_DEPTH;
            for (int i = 0; i < depth; i++) {
                const float *from = sums + (size_t)(first + i) * (size_t)out + o;
                for (int e = 0; e < (m + 2) * (m + 2); e++) {
                    _mm_prefetch((const char *)(from + (size_t)e * plane + FINISH_AHEAD * out), _MM_HINT_T0);
                }
                if (lanes == LANES) {
                    finish_taps(m, from, plane, LANES, taps[i]);
                } else {
                    finish_taps(m, from, plane, lanes, taps[i]);
                }
            }
            for (int k = 0; k < lanes; k++) {
                float *to = gradient + (size_t)(o + k) * 9 * (size_t)in + first;
                for (int tap = 0; tap < 9; tap++, to += in) {
                    for (int i = 0; i < depth; i++) to[i] = taps[i][tap][k];
                }
            }
        }
    }
}

static void filter_gradient(int tile, const float *sums, size_t plane, int in, int out, float *gradient) {
    if (tile == 2) {
        finish_gradient(2, sums, plane, in, out, gradient);
    } else {
        finish_gradient(4, sums, plane, in, out, gradient);
    }
}

const WinogradKernels *winograd_kernels_avx512bf16(void) {
    static const WinogradKernels kernels = {
        .input = input,
        .input_pairs = input_pairs,
        .gradient_pairs = gradient_pairs,
        .output = output,
        .multiply = multiply,
        .accumulate = accumulate,
        .filters = filters_forward,
        .turned_filters = filters_turned,
        .filter_gradient = filter_gradient,
    };
    return &kernels;
}
