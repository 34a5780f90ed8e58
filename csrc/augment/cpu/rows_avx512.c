/* Kernels for AVX-512: 16 values are converted in one vector of float32, or two of float64 for exact float32. */
#if defined(__x86_64__)

#include <immintrin.h>

typedef struct Constants {
    __m512 shift[3], factor[3];
    __m512d wide_shift[3][2], wide_factor[3][2];
} Constants;

#include "augment/cpu/rows_vector.h"

INLINE Constants constants_f16(const AugmentPass *a, ImageLayout layout) {
    Constants k = {0};
    for (int which = 0; which < 3; which++) {
        _Alignas(64) float shift[16], factor[16];
        for (int lane = 0; lane < 16; lane++) {
            shift[lane] = (float)a->shift[channel_of(which, lane, layout)];
            factor[lane] = (float)a->factor[channel_of(which, lane, layout)];
        }
        k.shift[which] = _mm512_load_ps(shift);
        k.factor[which] = _mm512_load_ps(factor);
    }
    return k;
}

INLINE Constants constants_bf16(const AugmentPass *a, ImageLayout layout) { return constants_f16(a, layout); }

INLINE Constants constants_f32(const AugmentPass *a, ImageLayout layout) {
    Constants k = {0};
    for (int which = 0; which < 3; which++) {
        _Alignas(64) double shift[16], factor[16];
        for (int lane = 0; lane < 16; lane++) {
            shift[lane] = a->shift[channel_of(which, lane, layout)];
            factor[lane] = a->factor[channel_of(which, lane, layout)];
        }
        for (int half = 0; half < 2; half++) {
            k.wide_shift[which][half] = _mm512_load_pd(shift + 8 * half);
            k.wide_factor[which][half] = _mm512_load_pd(factor + 8 * half);
        }
    }
    return k;
}

INLINE __m512 affine(__m128i values, Constants k, int which) {
    __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(values));
    return _mm512_mul_ps(_mm512_sub_ps(wide, k.shift[which]), k.factor[which]);
}

INLINE void put_f16(void *out, __m128i values, Constants k, int which) {
    _mm256_storeu_si256(out, _mm512_cvtps_ph(affine(values, k, which), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

INLINE void put_bf16(void *out, __m128i values, Constants k, int which) {
    __m512i bits = _mm512_castps_si512(affine(values, k, which));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    _mm256_storeu_si256(out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

INLINE void put_f32(void *out, __m128i values, Constants k, int which) {
    for (int half = 0; half < 2; half++) {
        __m256i eight = _mm256_cvtepu8_epi32(half == 0 ? values : _mm_srli_si128(values, 8));
        __m512d wide = _mm512_sub_pd(_mm512_cvtepi32_pd(eight), k.wide_shift[which][half]);
        _mm256_storeu_ps((float *)out + 8 * half, _mm512_cvtpd_ps(_mm512_mul_pd(wide, k.wide_factor[which][half])));
    }
}

DEFINE_KERNELS(augment_kernels_avx512)

#else
typedef int AugmentAvx512Unused;
#endif
