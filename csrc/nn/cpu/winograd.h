/* 3 x 3 convolutions by minimal filtering (Winograd; Lavin and Gray, arXiv 1509.09308): output tiles of m x m (m = 2 or
 * 4) from input tiles of (m + 2) x (m + 2) by (m + 2)^2 multiplications instead of 9 m^2. Transforms are in float32,
 * the transformed values are rounded to bfloat16, the products are summed in float32. The points are 0, +-1, infinity
 * for m = 2; 0, +-3/4, +-3/2, infinity for m = 4, which give smaller rounding errors than the usual integers.
 *
 * With d an input tile, g a filter, y an output tile, x elementwise:
 *     y = A^T [ (G g G^T) x (B^T d B) ] A,   filter gradient = G^T [ (A dy A^T) x (B^T d B) ] G.
 * These are the loops, compiled for AVX-512 with bfloat16 products and only called if the processor has both
 * (winograd_*_avx512bf16.c); winograd.c builds convolutions from them. */
#ifndef CGXFFCV_NN_CPU_WINOGRAD_H
#define CGXFFCV_NN_CPU_WINOGRAD_H

#include <stddef.h>
#include <stdint.h>

#define WINOGRAD_PANEL 64 /* columns of a product that are computed together */
#define WINOGRAD_ROWS 6   /* rows likewise; blocks of tiles are padded to a multiple */
#define WINOGRAD_FILTER_ROWS 4
#define WINOGRAD_MOST_CHANNELS 2048

/* Tiles are numbered image by image, row by row. */
typedef struct WinogradMap {
    int tile;          /* m */
    int height, width; /* of the map that is read or written */
    int channels;      /* a multiple of 8 */
    int padding;       /* zeros around an input map; 0 for an output map */
    int rows, columns; /* of tiles in an image */
} WinogradMap;

/* to[e * plane + t * channels + c] = element e of the transformed input tile first + t. */
void nn_cpu_winograd_input(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                           size_t plane);
/* The same with pairs of tiles interleaved: to[e * plane + (t / 2 * channels + c) * 2 + t % 2]; an odd last tile is
 * paired with zeros. */
void nn_cpu_winograd_input_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                                 size_t plane);
/* Output gradients A dy A^T, in pairs. */
void nn_cpu_winograd_gradient_pairs(const WinogradMap *map, const uint16_t *images, int first, int tiles, uint16_t *to,
                                    size_t plane);
/* Output tiles first .. first + tiles - 1, from from[e * plane + t * stride + c]. */
void nn_cpu_winograd_output(const WinogradMap *map, const float *from, size_t plane, int stride, int first, int tiles,
                            uint16_t *images);

/* products (rows x columns, `stride` elements from row to row) = values (rows x depth) times filters, in panels of
 * WINOGRAD_PANEL columns, each (depth / 2, columns, 2); rows a multiple of WINOGRAD_ROWS, columns of 16, depth of 2. */
void nn_cpu_winograd_multiply(const uint16_t *values, const uint16_t *filters, int rows, int depth, int columns,
                              float *products, int stride);
/* sums (rows x columns) += left^T right over `pairs` pairs: left (pairs, rows, 2), right (pairs, columns, 2); rows a
 * multiple of WINOGRAD_FILTER_ROWS, columns of 8. `fresh`: = instead of +=. */
void nn_cpu_winograd_accumulate(const uint16_t *left, const uint16_t *right, int pairs, int rows, int columns,
                                float *sums, int fresh);

/* Transforms filters begin .. end - 1 of (out, 3, 3, in) to the form that multiply takes, matrix e at e * plane: depth
 * in, columns out; or, rotated by 180 degrees for the data gradient, depth out, columns in. */
void nn_cpu_winograd_filters(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                             size_t plane);
void nn_cpu_winograd_rotated_filters(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                                     size_t plane);
/* gradient (out, 3, 3, in) = G^T sums G, sums[e * plane + i * out + o]. */
void nn_cpu_winograd_filter_gradient(int tile, const float *sums, size_t plane, int in, int out, float *gradient);

#endif
