/* Resampling for AVX-512. Sixteen neighbouring values of an output row, whatever their pixels and channels, are picked
 * out of a window of the row of sums, tap after tap, unless the image is reduced so far that they do not fit into a
 * window. Where few averages can be close to where rounding changes, they are computed in float32, which takes half the
 * time, and those few once more in float64. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "image/resize_template.h"

#define LANES 16
#define NARROW 32 /* sums in a window: two registers, or four */
#define WIDE 64
#define MOST_TAPS 8 /* with more, float32 would be less exact than CLOSE */
/* To where rounding changes. The error is below 256 * (taps + 2) * 2^-24: sums and weights are exact in float32. */
#define CLOSE 0x1p-12f

/* The kernels' layout of an axis: weights[(block * taps + tap) * LANES + lane], first_index[block * LANES + lane] in
 * the window, which begins at sums[window[block]]. Weights are in float32 if `quick`. */
typedef struct Lanes {
    double *weights;
    float *quick_weights;
    int32_t *first_index;
    uint32_t *window;
    bool wide, quick;
} Lanes;

static size_t blocks_of(const ResizeAxis *axis) { return ((size_t)axis->to * RESIZE_CHANNELS + LANES - 1) / LANES; }

/* The first source pixel of a block of lanes, and its distance to the first source pixel of the block's last pixel. */
static uint32_t block_begin(const ResizeAxis *axis, size_t block, uint32_t *pixels) {
    const size_t count = (size_t)axis->to * RESIZE_CHANNELS, end = (block + 1) * LANES;
    const uint32_t one = axis->first[block * LANES / RESIZE_CHANNELS];
    const uint32_t other = axis->first[((end < count ? end : count) - 1) / RESIZE_CHANNELS];
    *pixels = one < other ? other - one : one - other;
    return one < other ? one : other;
}

/* The size that the windows need to have, in sums. */
static uint64_t widest(const ResizeAxis *axis) {
    uint64_t most = 0;
    uint32_t pixels;
    for (size_t block = 0; block < blocks_of(axis); block++) {
        (void)block_begin(axis, block, &pixels);
        if (pixels > most) most = pixels;
    }
    return (most + axis->taps) * RESIZE_CHANNELS;
}

static size_t lanes_bytes(const ResizeAxis *axis) {
    const size_t lanes = blocks_of(axis) * LANES;
    if (widest(axis) > WIDE) return 0;
    return sizeof(double) * LANES + lanes * (axis->taps * sizeof(double) + 2 * sizeof(int32_t));
}

/* The first LANES doubles hold what all blocks have in common. */
static Lanes lanes_at(const ResizeColumns *columns) {
    const size_t lanes = blocks_of(&columns->axis) * LANES;
    Lanes found = {.weights = (double *)columns->lanes + LANES,
                   .wide = *(const double *)columns->lanes != 0,
                   .quick = columns->exact && columns->spread && columns->axis.taps <= MOST_TAPS};
    found.quick_weights = (float *)(void *)found.weights;
    found.first_index = (int32_t *)(void *)(found.weights + lanes * columns->axis.taps);
    found.window = (uint32_t *)(found.first_index + lanes);
    return found;
}

static void make_lanes(const ResizeColumns *columns) {
    const ResizeAxis *axis = &columns->axis;
    const size_t count = (size_t)axis->to * RESIZE_CHANNELS, taps = axis->taps;
    *(double *)columns->lanes = widest(axis) > NARROW;
    const Lanes lanes = lanes_at(columns);
    uint32_t window = 0, pixels;
    for (size_t i = 0; i < blocks_of(axis) * LANES; i++) {
        const size_t block = i / LANES, lane = i % LANES, x = i / RESIZE_CHANNELS;
        if (lane == 0) window = block_begin(axis, block, &pixels) * RESIZE_CHANNELS;
        const size_t at = block * taps * LANES + lane;
        const bool inside = i < count;
        lanes.window[block] = window;
        lanes.first_index[i] = inside ? (int32_t)(axis->first[x] * RESIZE_CHANNELS + i % RESIZE_CHANNELS - window) : 0;
        for (size_t k = 0; k < taps; k++) {
            const double weight = inside ? axis->weights[x * taps + k] : 0;
            if (lanes.quick)
                lanes.quick_weights[at + k * LANES] = (float)weight;
            else
                lanes.weights[at + k * LANES] = weight;
        }
    }
}

INLINE __m512 pick(const __m512 *window, __m512i index, bool wide) {
    const __m512 low = _mm512_permutex2var_ps(window[0], index, window[1]);
    if (!wide) return low;
    const __m512 high = _mm512_permutex2var_ps(window[2], index, window[3]);
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(index, _mm512_set1_epi32(NARROW)), low, high);
}

/* The first `count` of them; a masked store would take longer on some processors. */
INLINE void store_bytes(uint8_t *out, size_t count, __m512i values) {
    const __m128i bytes = _mm512_cvtepi32_epi8(values);
    if (count >= LANES)
        _mm_storeu_si128((__m128i *)(void *)out, bytes);
    else
        _mm_mask_storeu_epi8(out, (__mmask16)((1u << count) - 1), bytes);
}

/* Where nothing is rounded, a fused multiply-add gives the same. */
INLINE __m512d add_product(__m512d total, __m256 sums, const double *weights, bool first, bool exact) {
    const __m512d wide = _mm512_cvtps_pd(sums), weight = _mm512_loadu_pd(weights);
    if (first) return _mm512_mul_pd(wide, weight);
    return exact ? _mm512_fmadd_pd(wide, weight, total) : _mm512_add_pd(total, _mm512_mul_pd(wide, weight));
}

INLINE void sum_lanes(const float *sums, const ResizeColumns *columns, uint32_t taps, bool wide, bool exact,
                      uint8_t *out) {
    const Lanes lanes = lanes_at(columns);
    const size_t count = (size_t)columns->axis.to * RESIZE_CHANNELS;
    const __m512d factor = _mm512_set1_pd(columns->factor), half = _mm512_set1_pd(columns->half);
    const double *weight = lanes.weights;
    for (size_t i = 0; i < count; i += LANES) {
        const float *from = sums + lanes.window[i / LANES];
        __m512i index = _mm512_loadu_si512(lanes.first_index + i);
        __m512 window[4];
        __m512d low = _mm512_setzero_pd(), high = low;
        for (int part = 0; part < (wide ? 4 : 2); part++) window[part] = _mm512_loadu_ps(from + part * LANES);
        for (uint32_t k = 0; k < taps; k++, weight += LANES) {
            const __m512 picked = pick(window, index, wide);
            low = add_product(low, _mm512_castps512_ps256(picked), weight, k == 0, exact);
            high = add_product(high, _mm512_extractf32x8_ps(picked, 1), weight + LANES / 2, k == 0, exact);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(RESIZE_CHANNELS));
        }
        low = _mm512_add_pd(_mm512_mul_pd(low, factor), half);
        high = _mm512_add_pd(_mm512_mul_pd(high, factor), half);
        const __m512i both =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epi32(low)), _mm512_cvttpd_epi32(high), 1);
        store_bytes(out + i, count - i, both);
    }
}

/* The values of the block of lanes at `i` that `which` names. */
static __attribute__((noinline)) void settle_lanes(const float *sums, const ResizeColumns *columns, size_t i,
                                                   uint32_t which, uint8_t *out) {
    const ResizeAxis *axis = &columns->axis;
    for (; which != 0; which &= which - 1) {
        const size_t at = i + (size_t)__builtin_ctz(which), x = at / RESIZE_CHANNELS;
        const float *from = sums + (size_t)axis->first[x] * RESIZE_CHANNELS + at % RESIZE_CHANNELS;
        double total = 0;
        for (size_t k = 0; k < axis->count[x]; k++) {
            total += axis->weights[x * axis->taps + k] * (double)from[k * RESIZE_CHANNELS];
        }
        out[at] = (uint8_t)(int32_t)(total * columns->factor + columns->half);
    }
}

INLINE void sum_quick_lanes(const float *sums, const ResizeColumns *columns, uint32_t taps, bool wide, uint8_t *out) {
    const Lanes lanes = lanes_at(columns);
    const size_t count = (size_t)columns->axis.to * RESIZE_CHANNELS;
    const __m512 factor = _mm512_set1_ps((float)columns->factor), half = _mm512_set1_ps((float)columns->half);
    const float *weight = lanes.quick_weights;
    for (size_t i = 0; i < count; i += LANES) {
        const float *from = sums + lanes.window[i / LANES];
        __m512i index = _mm512_loadu_si512(lanes.first_index + i);
        __m512 window[4], total = _mm512_setzero_ps();
        for (int part = 0; part < (wide ? 4 : 2); part++) window[part] = _mm512_loadu_ps(from + part * LANES);
        for (uint32_t k = 0; k < taps; k++, weight += LANES) {
            total = _mm512_fmadd_ps(pick(window, index, wide), _mm512_loadu_ps(weight), total);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(RESIZE_CHANNELS));
        }
        total = _mm512_fmadd_ps(total, factor, half);
        const __m512 beyond = _mm512_abs_ps(_mm512_reduce_ps(total, _MM_FROUND_TO_NEAREST_INT));
        const __mmask16 close = _mm512_cmp_ps_mask(beyond, _mm512_set1_ps(CLOSE), _CMP_LT_OQ);
        store_bytes(out + i, count - i, _mm512_cvttps_epi32(total));
        if (close != 0) settle_lanes(sums, columns, i, close, out);
    }
}

typedef enum Arithmetic { ROUNDED, EXACT, QUICK } Arithmetic;

INLINE void sum_these_lanes(const float *sums, const ResizeColumns *columns, uint32_t taps, bool wide, Arithmetic how,
                            uint8_t *out) {
    if (how == QUICK)
        sum_quick_lanes(sums, columns, taps, wide, out);
    else
        sum_lanes(sums, columns, taps, wide, how == EXACT, out);
}

/* The loops of the usual numbers of taps are unrolled. */
INLINE void sum_some_lanes(const float *sums, const ResizeColumns *columns, bool wide, Arithmetic how, uint8_t *out) {
    switch (columns->axis.taps) {
    case 2:
        sum_these_lanes(sums, columns, 2, wide, how, out);
        break;
    case 3:
        sum_these_lanes(sums, columns, 3, wide, how, out);
        break;
    case 4:
        sum_these_lanes(sums, columns, 4, wide, how, out);
        break;
    default:
        sum_these_lanes(sums, columns, columns->axis.taps, wide, how, out);
        break;
    }
}

INLINE void sum_all_lanes(const float *sums, const ResizeColumns *columns, Arithmetic how, uint8_t *out) {
    if (lanes_at(columns).wide)
        sum_some_lanes(sums, columns, true, how, out);
    else
        sum_some_lanes(sums, columns, false, how, out);
}

static void sum_any_columns(const float *sums, const ResizeColumns *columns, uint8_t *out) {
    if (columns->lanes == NULL)
        sum_columns(sums, columns, out);
    else if (lanes_at(columns).quick)
        sum_all_lanes(sums, columns, QUICK, out);
    else if (columns->exact)
        sum_all_lanes(sums, columns, EXACT, out);
    else
        sum_all_lanes(sums, columns, ROUNDED, out);
}

const ResizeKernels resize_kernels_avx512 = {sum_rows, sum_any_columns, lanes_bytes, make_lanes};

#endif
