/* Conversions between the storage type and float32, and packing of weights. */

static void NAME(to_float)(const void *from, size_t elems, float *to) {
    size_t i = 0;
    for (; i + LANES <= elems; i += LANES) f32_store(to + i, LOAD((const STORAGE *)from + i, LANES));
    if (i < elems) f32_store_some(to + i, LOAD((const STORAGE *)from + i, (int)(elems - i)), (int)(elems - i));
}

static void NAME(from_float)(const float *from, size_t elems, void *to) {
    size_t i = 0;
    for (; i + LANES <= elems; i += LANES) STORE((STORAGE *)to + i, f32_load(from + i), LANES);
    if (i < elems) STORE((STORAGE *)to + i, f32_load_some(from + i, (int)(elems - i)), (int)(elems - i));
}

static void NAME(add_maps)(const void *from, size_t elems, void *to) {
    const STORAGE *x = from;
    STORAGE *y = to;
    size_t i = 0;
    for (; i + LANES <= elems; i += LANES) STORE(y + i, LOAD(y + i, LANES) + LOAD(x + i, LANES), LANES);
    int rest = (int)(elems - i);
    if (rest > 0) STORE(y + i, LOAD(y + i, rest) + LOAD(x + i, rest), rest);
}

INLINE Vf NAME(gathered)(const float *from, const int32_t *map, int lanes) {
    float values[LANES] = {0};
    for (int i = 0; i < lanes; i++) values[i] = map[i] < 0 ? 0.0f : from[map[i]];
    return f32_load(values);
}

static void NAME(gather)(const float *from, const int32_t *map, size_t elems, void *to) {
    size_t i = 0;
    for (; i + LANES <= elems; i += LANES) {
#if defined(__AVX512F__)
        __m512i at = _mm512_loadu_si512(map + i);
        __mmask16 wanted = _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512());
        STORE((STORAGE *)to + i, (Vf)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), wanted, at, from, 4), LANES);
#else
        STORE((STORAGE *)to + i, NAME(gathered)(from, map + i, LANES), LANES);
#endif
    }
    int rest = (int)(elems - i);
    if (rest > 0) STORE((STORAGE *)to + i, NAME(gathered)(from, map + i, rest), rest);
}
