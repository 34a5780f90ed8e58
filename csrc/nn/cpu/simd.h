/* Vectors of LANES floats for one instruction set, chosen by the compiler flags of the file that includes this: 16
 * lanes with AVX-512, 8 with AVX2, else 4. Activations are loaded from and stored to float32 or bfloat16 (uint16_t,
 * rounded to nearest even). A partial vector has the last channels of a row; its other lanes read as zero. */
#ifndef CGXFFCV_NN_CPU_SIMD_H
#define CGXFFCV_NN_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif

/* Prefetches what is FETCH_ELEMS activations ahead: neighbouring pixels of a channel are too far apart for the hardware
 * prefetcher to recognise the sequential access. */
#define FETCH_ELEMS 4096
#define FETCH(pointer, write) __builtin_prefetch((const char *)((pointer) + FETCH_ELEMS), write, 3)

typedef float Vf __attribute__((vector_size(LANES * 4)));
typedef int32_t Vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t Vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t Vh __attribute__((vector_size(LANES * 2)));

INLINE Vf vf_set(float x) { return x - (Vf){0}; }

INLINE Vf vf_fma(Vf a, Vf b, Vf c) {
#if defined(__AVX512F__)
    return (Vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Lanes of `a` where the mask (all ones or zero) is set, else of `b`. */
INLINE Vf vf_select(Vi mask, Vf a, Vf b) { return (Vf)((mask & (Vi)a) | (~mask & (Vi)b)); }

/* NaN in `a` gives `b`, like the machine instruction. */
INLINE Vf vf_max(Vf a, Vf b) {
#if defined(__AVX512F__)
    return (Vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

INLINE Vf vf_min(Vf a, Vf b) {
#if defined(__AVX512F__)
    return (Vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vf_select(a < b, a, b);
#endif
}

INLINE Vf vf_abs(Vf a) { return (Vf)((Vi)a & 0x7fffffff); }

INLINE float vf_sum(Vf a) {
    float lanes[LANES], sum = 0;
    memcpy(lanes, &a, sizeof lanes);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

INLINE Vf f32_load(const float *from) {
    Vf value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void f32_store(float *to, Vf value) { memcpy(to, &value, sizeof value); }

INLINE Vf f32_load_some(const float *from, int lanes) {
    if (lanes == LANES) return f32_load(from);
#if defined(__AVX512F__)
    return (Vf)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), from);
#else
    Vf value = {0};
    memcpy(&value, from, (size_t)lanes * sizeof *from);
    return value;
#endif
}

INLINE void f32_store_some(float *to, Vf value, int lanes) {
    if (lanes == LANES) {
        f32_store(to, value);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << lanes) - 1), (__m512)value);
#else
    memcpy(to, &value, (size_t)lanes * sizeof *to);
#endif
}

INLINE Vf bf16_widen(Vh half) {
#if defined(__AVX512F__)
    return (Vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
    return (Vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
    return (Vf)(__builtin_convertvector(half, Vu) << 16);
#endif
}

INLINE Vh bf16_narrow(Vf value) {
#if defined(__AVX512BF16__)
    return (Vh)_mm512_cvtneps_pbh((__m512)value);
#else
    Vu bits = (Vu)value, odd = (bits >> 16) & 1;
    Vu rounded = (bits + 0x7fff + odd) >> 16;
    Vu quiet = (bits >> 16) | 0x40, nan = (Vu)(value != value);
    rounded = (nan & quiet) | (~nan & rounded);
#if defined(__AVX512F__)
    return (Vh)_mm512_cvtepi32_epi16((__m512i)rounded);
#else
    return __builtin_convertvector(rounded, Vh);
#endif
#endif
}

INLINE Vf bf16_load_some(const uint16_t *from, int lanes) {
    Vh half = {0};
#if defined(__AVX512F__)
    if (lanes != LANES) return bf16_widen((Vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << lanes) - 1), from));
#endif
    memcpy(&half, from, (size_t)lanes * sizeof *from);
    return bf16_widen(half);
}

INLINE void bf16_store_some(uint16_t *to, Vf value, int lanes) {
    Vh half = bf16_narrow(value);
#if defined(__AVX512F__)
    if (lanes != LANES) {
        _mm256_mask_storeu_epi16(to, (__mmask16)((1u << lanes) - 1), (__m256i)half);
        return;
    }
#endif
    memcpy(to, &half, (size_t)lanes * sizeof *to);
}

#endif
