/* The products of minimal filtering: bfloat16 pairs, float32 sums, for AVX-512. */
#include "nn/cpu/simd.h"
#include "nn/cpu/winograd.h"

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

void nn_cpu_winograd_multiply(const uint16_t *values, const uint16_t *filters, int rows, int depth, int columns,
                              float *products, int stride) {
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

/* `mask`: of the last vector, which may be half full. */
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

void nn_cpu_winograd_accumulate(const uint16_t *left, const uint16_t *right, int pairs, int rows, int columns,
                                float *sums, int fresh) {
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
