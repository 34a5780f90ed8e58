/* Kernels for AVX2 and F16C: 16 values are converted in two vectors of float32, or four of float64 if that is exact. */
#if defined(__x86_64__)

#include <immintrin.h>

typedef struct Constants {
    __m256 shift[3][2], factor[3][2];
    __m256d wide_shift[3][4], wide_factor[3][4];
} Constants;

#include "augment/cpu/rows_vector.h"

INLINE Constants constants_f16(const AugmentPass *a, ImageLayout layout) {
    Constants k = {0};
    for (int which = 0; which < 3; which++) {
        _Alignas(32) float shift[16], factor[16];
        for (int lane = 0; lane < 16; lane++) {
            shift[lane] = (float)a->shift[channel_of(which, lane, layout)];
            factor[lane] = (float)a->factor[channel_of(which, lane, layout)];
        }
        for (int half = 0; half < 2; half++) {
            k.shift[which][half] = _mm256_load_ps(shift + 8 * half);
            k.factor[which][half] = _mm256_load_ps(factor + 8 * half);
        }
    }
    return k;
}

INLINE Constants constants_bf16(const AugmentPass *a, ImageLayout layout) { return constants_f16(a, layout); }

INLINE Constants constants_f32(const AugmentPass *a, ImageLayout layout) {
    Constants k = {0};
    for (int which = 0; which < 3; which++) {
        _Alignas(32) double shift[16], factor[16];
        for (int lane = 0; lane < 16; lane++) {
            shift[lane] = a->shift[channel_of(which, lane, layout)];
            factor[lane] = a->factor[channel_of(which, lane, layout)];
        }
        for (int quarter = 0; quarter < 4; quarter++) {
            k.wide_shift[which][quarter] = _mm256_load_pd(shift + 4 * quarter);
            k.wide_factor[which][quarter] = _mm256_load_pd(factor + 4 * quarter);
        }
    }
    return k;
}

INLINE __m256 affine(__m128i values, Constants k, int which, int half) {
    __m256i eight = _mm256_cvtepu8_epi32(half == 0 ? values : _mm_srli_si128(values, 8));
    return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(eight), k.shift[which][half]), k.factor[which][half]);
}

INLINE void put_f16(void *out, __m128i values, Constants k, int which) {
    for (int half = 0; half < 2; half++) {
        __m128i eight = _mm256_cvtps_ph(affine(values, k, which, half), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)out + half, eight);
    }
}

INLINE __m256i bfloat16_bits(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
}

INLINE void put_bf16(void *out, __m128i values, Constants k, int which) {
    __m256i first = bfloat16_bits(affine(values, k, which, 0)), second = bfloat16_bits(affine(values, k, which, 1));
    __m256i mixed = _mm256_packus_epi32(first, second);
    _mm256_storeu_si256(out, _mm256_permute4x64_epi64(mixed, 0xD8));
}

INLINE void put_f32(void *out, __m128i values, Constants k, int which) {
    for (int half = 0; half < 2; half++) {
        __m256i eight = _mm256_cvtepu8_epi32(half == 0 ? values : _mm_srli_si128(values, 8));
        for (int q = 0; q < 2; q++) {
            __m128i four = q == 0 ? _mm256_castsi256_si128(eight) : _mm256_extracti128_si256(eight, 1);
            __m256d wide = _mm256_sub_pd(_mm256_cvtepi32_pd(four), k.wide_shift[which][2 * half + q]);
            __m256d scaled = _mm256_mul_pd(wide, k.wide_factor[which][2 * half + q]);
            _mm_storeu_ps((float *)out + 8 * half + 4 * q, _mm256_cvtpd_ps(scaled));
        }
    }
}

DEFINE_KERNELS(augment_kernels_avx2)

#else
typedef int AugmentAvx2Unused;
#endif
