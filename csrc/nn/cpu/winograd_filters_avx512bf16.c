/* Transforms filters into the domain of the products, and their gradients back, for AVX-512 with bfloat16. */
#include "nn/cpu/winograd.h"
#include "nn/cpu/winograd_simd.h"

/* values[i][j] = G g G^T for the input channels from i0 of filter o. */
INLINE void filter_values(int m, const float *filters, int in, int o, int i0, int rotated, Vf values[MOST][MOST]) {
    int lanes = in - i0 < LANES ? in - i0 : LANES;
    Vf half[MOST][3];
    for (int kx = 0; kx < 3; kx++) {
        Vf x[3], r[MOST];
        for (int ky = 0; ky < 3; ky++) {
            int tap = rotated ? 8 - (ky * 3 + kx) : ky * 3 + kx;
            x[ky] = f32_load_some(filters + ((size_t)o * 9 + (size_t)tap) * (size_t)in + i0, lanes);
        }
        filter_transform(m, x, r);
        for (int i = 0; i < m + 2; i++) half[i][kx] = r[i];
    }
    for (int i = 0; i < m + 2; i++) filter_transform(m, half[i], values[i]);
}

/* The offset, in elements, of (depth pair p, column c) in a matrix of `columns` columns. */
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

void nn_cpu_winograd_filters(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                             size_t plane) {
    if (tile == 2) {
        pack_filters(2, filters, in, out, begin, end, to, plane);
    } else {
        pack_filters(4, filters, in, out, begin, end, to, plane);
    }
}

INLINE void pack_rotated(int m, const float *filters, int in, int out, int begin, int end, uint16_t *to, size_t plane) {
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

void nn_cpu_winograd_rotated_filters(int tile, const float *filters, int in, int out, int begin, int end, uint16_t *to,
                                     size_t plane) {
    if (tile == 2) {
        pack_rotated(2, filters, in, out, begin, end, to, plane);
    } else {
        pack_rotated(4, filters, in, out, begin, end, to, plane);
    }
}

/* taps[k][o] = the nine taps of an input channel for 16 output channels; `from` points to the first one's sums. */
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

#define FINISH_DEPTH 16 /* input channels that are transposed together, so that whole cache lines are written */
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

void nn_cpu_winograd_filter_gradient(int tile, const float *sums, size_t plane, int in, int out, float *gradient) {
    if (tile == 2) {
        finish_gradient(2, sums, plane, in, out, gradient);
    } else {
        finish_gradient(4, sums, plane, in, out, gradient);
    }
}
