/* The loops of winograd.h for AVX-512 with bfloat16 products. Sixteen channels are a vector (the last may be half
 * full); a tile is transformed column by column into a buffer, then row by row. */
#include "nn/cpu/simd.h"
#include "nn/cpu/winograd.h"

#define MOST 6 /* m + 2 */

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

static inline __mmask16 lane_mask(int lanes) { return (__mmask16)((1u << lanes) - 1); }

static inline ptrdiff_t corner_of(const WinogradMap *map, const Spot *spot) {
    return (((ptrdiff_t)spot->image * map->height + spot->top) * map->width + spot->left) * map->channels;
}

/* The elements of a tile: those within the map, and zeros. */
typedef struct TileSource {
    const uint16_t *at[MOST][MOST];
} TileSource;

static void find_source(const WinogradMap *map, const uint16_t *images, int tile, int extent, TileSource *source) {
    static const uint16_t zeros[WINOGRAD_MOST_CHANNELS];
    Spot spot = find_spot(map, tile, extent);
    const uint16_t *image = images + (size_t)spot.image * (size_t)(map->height * map->width) * (size_t)map->channels;
    for (int i = 0; i < extent; i++) {
        int y = spot.top + i;
        for (int j = 0; j < extent; j++) {
            int x = spot.left + j, within = y >= 0 && x >= 0 && y < map->height && x < map->width;
            source->at[i][j] =
                within ? image + ((size_t)y * (size_t)map->width + (size_t)x) * (size_t)map->channels : zeros;
        }
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

/* values[i][j] = the transformed tile, channels c and on. */
INLINE void transform_tile(int kind, int m, const TileSource *source, int c, __mmask16 mask, Vf values[MOST][MOST]) {
    int extent = extent_of(kind, m);
    Vf half[MOST][MOST];
    for (int j = 0; j < extent; j++) {
        Vf x[MOST], r[MOST];
        for (int i = 0; i < extent; i++) {
            x[i] = bf16_widen((Vh)_mm256_maskz_loadu_epi16(mask, source->at[i][j] + c));
        }
        transform(kind, m, x, r);
        for (int i = 0; i < m + 2; i++) half[i][j] = r[i];
    }
    for (int i = 0; i < m + 2; i++) transform(kind, m, half[i], values[i]);
}

INLINE void input_tiles(int m, const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                        size_t plane) {
    for (int t = 0; t < tiles; t++, to += map->channels) {
        TileSource source;
        find_source(map, images, first + t, m + 2, &source);
        for (int c = 0; c < map->channels; c += LANES) {
            Vf values[MOST][MOST];
            __mmask16 mask = lane_mask(map->channels - c < LANES ? map->channels - c : LANES);
            transform_tile(OF_INPUT, m, &source, c, mask, values);
            uint16_t *at = to + c;
            for (int i = 0; i < m + 2; i++) {
                for (int j = 0; j < m + 2; j++, at += plane) {
                    _mm256_mask_storeu_epi16(at, mask, (__m256i)bf16_narrow(values[i][j]));
                }
            }
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

INLINE void pairs_of_tiles(int kind, int m, const WinogradMap *map, const uint16_t *images, int first, int tiles,
                           uint16_t *to, size_t plane) {
    for (int t = 0; t < tiles; t += 2, to += 2 * map->channels) {
        TileSource low, high;
        int paired = t + 1 < tiles;
        find_source(map, images, first + t, extent_of(kind, m), &low);
        if (paired) find_source(map, images, first + t + 1, extent_of(kind, m), &high);
        for (int c = 0; c < map->channels; c += LANES) {
            Vf below[MOST][MOST], above[MOST][MOST];
            __mmask16 mask = lane_mask(map->channels - c < LANES ? map->channels - c : LANES);
            transform_tile(kind, m, &low, c, mask, below);
            if (paired) {
                transform_tile(kind, m, &high, c, mask, above);
            } else {
                memset(above, 0, sizeof above);
            }
            uint16_t *at = to + 2 * c;
            for (int i = 0; i < m + 2; i++) {
                for (int j = 0; j < m + 2; j++, at += plane) {
                    _mm512_mask_storeu_epi32(at, mask, interleave(below[i][j], above[i][j]));
                }
            }
        }
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

INLINE void output_tile(int m, const WinogradMap *map, const float *from, size_t plane, const Spot *spot, int inside,
                        __mmask16 mask, uint16_t *corner) {
    Vf half[4][MOST];
    for (int j = 0; j < m + 2; j++) {
        Vf x[MOST], r[4];
        for (int i = 0; i < m + 2; i++) x[i] = f32_load(from + (size_t)(i * (m + 2) + j) * plane);
        output_transform(m, x, r);
        for (int i = 0; i < m; i++) half[i][j] = r[i];
    }
    for (int i = 0; i < m; i++) {
        Vf r[4];
        output_transform(m, half[i], r);
        if (!inside && spot->top + i >= map->height) return;
        for (int j = 0; j < m; j++) {
            if (!inside && spot->left + j >= map->width) break;
            ptrdiff_t at = ((ptrdiff_t)i * map->width + j) * map->channels;
            _mm256_mask_storeu_epi16(corner + at, mask, (__m256i)bf16_narrow(r[j]));
        }
    }
}

INLINE void output_tiles(int m, const WinogradMap *map, const float *from, size_t plane, int stride, int first,
                         int tiles, uint16_t *images) {
    for (int t = 0; t < tiles; t++) {
        Spot spot = find_spot(map, first + t, m);
        uint16_t *corner = images + corner_of(map, &spot);
        for (int c = 0; c < map->channels; c += LANES) {
            __mmask16 mask = lane_mask(map->channels - c < LANES ? map->channels - c : LANES);
            const float *tile = from + (size_t)t * (size_t)stride + c;
            if (spot.inside) {
                output_tile(m, map, tile, plane, &spot, 1, mask, corner + c);
            } else {
                output_tile(m, map, tile, plane, &spot, 0, mask, corner + c);
            }
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

INLINE void finish_gradient(int m, const float *sums, size_t plane, int in, int out, float *gradient) {
    for (int i = 0; i < in; i++) {
        for (int o = 0; o < out; o += LANES) {
            int lanes = out - o < LANES ? out - o : LANES;
            Vf half[3][MOST];
            for (int j = 0; j < m + 2; j++) {
                Vf x[MOST], r[3];
                for (int k = 0; k < m + 2; k++) {
                    const float *from = sums + (size_t)(k * (m + 2) + j) * plane;
                    x[k] = f32_load_some(from + (size_t)i * (size_t)out + o, lanes);
                }
                filter_gradient_transform(m, x, r);
                for (int k = 0; k < 3; k++) half[k][j] = r[k];
            }
            for (int k = 0; k < 3; k++) {
                Vf r[3];
                filter_gradient_transform(m, half[k], r);
                for (int l = 0; l < 3; l++) {
                    float values[LANES];
                    f32_store(values, r[l]);
                    for (int v = 0; v < lanes; v++) {
                        gradient[((size_t)(o + v) * 9 + (size_t)(k * 3 + l)) * (size_t)in + (size_t)i] = values[v];
                    }
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
