/* Pooling over windows and over whole maps, and the gradients, for one storage type. */

/* One row of windows: `rows` points to its first input row. */
INLINE void NAME(pool_row)(const STORAGE *rows, size_t input_row, int windows, int channels, int pool, int c, int lanes,
                           STORAGE *output, uint8_t *index) {
    for (int w = 0; w < windows; w++) {
        const STORAGE *window = rows + (size_t)(w * pool) * (size_t)channels + c;
        FETCH(output + (size_t)w * (size_t)channels, 1);
        Vf best = LOAD(window, lanes);
        Vi where = {0};
        for (int i = 1; i < pool * pool; i++) {
            size_t at = (size_t)(i / pool) * input_row + (size_t)(i % pool) * (size_t)channels;
            Vf x = LOAD(window + at, lanes);
            Vi larger = x > best;
            best = vf_select(larger, x, best);
            where = (larger & i) | (~larger & where);
        }
        size_t to = (size_t)w * (size_t)channels + (size_t)c;
        STORE(output + to, best, lanes);
        if (index == NULL) continue;
        uint8_t bytes[LANES];
#if defined(__AVX512F__)
        _mm_storeu_si128((__m128i *)bytes, _mm512_cvtepi32_epi8((__m512i)where));
#else
        for (int i = 0; i < LANES; i++) bytes[i] = (uint8_t)where[i];
#endif
        memcpy(index + to, bytes, (size_t)lanes);
    }
}

static void NAME(pool)(const void *input, const Maps *maps, int pool, void *output, uint8_t *index) {
    int rows = maps->height / pool, windows = maps->width / pool, channels = maps->channels;
    size_t input_row = (size_t)maps->width * (size_t)channels, output_row = (size_t)windows * (size_t)channels;
    for (int image = 0; image < maps->images; image++) {
        for (int row = 0; row < rows; row++) {
            const STORAGE *from = (const STORAGE *)input + (size_t)(image * maps->height + row * pool) * input_row;
            size_t at = (size_t)(image * rows + row) * output_row;
            STORAGE *to = (STORAGE *)output + at;
            uint8_t *where = index == NULL ? NULL : index + at;
            for (int c = 0; c < channels; c += LANES) {
                int lanes = channels - c;
                if (lanes < LANES) {
                    NAME(pool_row)(from, input_row, windows, channels, pool, c, lanes, to, where);
                } else if (pool == 2) {
                    NAME(pool_row)(from, input_row, windows, channels, 2, c, LANES, to, where);
                } else {
                    NAME(pool_row)(from, input_row, windows, channels, 3, c, LANES, to, where);
                }
            }
        }
    }
}

INLINE void NAME(unpool_row)(const STORAGE *gradient, const uint8_t *index, size_t output_row, int windows,
                             int channels, int pool, int c, int lanes, STORAGE *rows) {
    for (int w = 0; w < windows; w++) {
        size_t at = (size_t)w * (size_t)channels + (size_t)c;
        FETCH(gradient + at, 0);
        Vf g = LOAD(gradient + at, lanes);
        STORAGE *window = rows + (size_t)(w * pool) * (size_t)channels + c;
        uint8_t bytes[LANES] = {0};
        memcpy(bytes, index + at, (size_t)lanes);
        Vi where;
#if defined(__AVX512F__)
        where = (Vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
#else
        for (int i = 0; i < LANES; i++) where[i] = bytes[i];
#endif
        for (int i = 0; i < pool * pool; i++) {
            size_t to = (size_t)(i / pool) * output_row + (size_t)(i % pool) * (size_t)channels;
            STORE(window + to, vf_select(where == i, g, vf_set(0.0f)), lanes);
        }
    }
}

static void NAME(unpool)(const void *gradient, const uint8_t *index, const Maps *maps, int pool, void *output) {
    int rows = maps->height / pool, windows = maps->width / pool, channels = maps->channels;
    size_t output_row = (size_t)maps->width * (size_t)channels, gradient_row = (size_t)windows * (size_t)channels;
    size_t covered = (size_t)(windows * pool) * (size_t)channels;
    for (int image = 0; image < maps->images; image++) {
        STORAGE *to = (STORAGE *)output + (size_t)image * (size_t)maps->height * output_row;
        for (int row = 0; row < rows; row++) {
            size_t at = (size_t)(image * rows + row) * gradient_row;
            const STORAGE *from = (const STORAGE *)gradient + at;
            STORAGE *window_rows = to + (size_t)(row * pool) * output_row;
            for (int c = 0; c < channels; c += LANES) {
                int lanes = channels - c;
                if (lanes < LANES) {
                    NAME(unpool_row)(from, index + at, output_row, windows, channels, pool, c, lanes, window_rows);
                } else if (pool == 2) {
                    NAME(unpool_row)(from, index + at, output_row, windows, channels, 2, c, LANES, window_rows);
                } else {
                    NAME(unpool_row)(from, index + at, output_row, windows, channels, 3, c, LANES, window_rows);
                }
            }
        }
        for (int row = 0; row < rows * pool; row++) {
            STORAGE *lost = to + (size_t)row * output_row + covered;
            memset(lost, 0, (output_row - covered) * sizeof *lost);
        }
        size_t lost_rows = (size_t)(maps->height - rows * pool);
        memset(to + (size_t)(rows * pool) * output_row, 0, lost_rows * output_row * sizeof *to);
    }
}

static void NAME(global_pool)(const void *input, int pixels, int channels, float *pooled, int32_t *index) {
    for (int c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? channels - c : LANES;
        const STORAGE *from = (const STORAGE *)input + c;
        Vf best = LOAD(from, lanes);
        Vi where = {0};
        for (int pixel = 1; pixel < pixels; pixel++) {
            Vf x = LOAD(from + (size_t)pixel * (size_t)channels, lanes);
            Vi larger = x > best;
            best = vf_select(larger, x, best);
            where = (larger & pixel) | (~larger & where);
        }
        f32_store_some(pooled + c, best, lanes);
        memcpy(index + c, &where, (size_t)lanes * sizeof *index);
    }
}

static void NAME(global_unpool)(const float *gradient, const int32_t *index, int pixels, int channels, void *output) {
    for (int c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? channels - c : LANES;
        Vf g = f32_load_some(gradient + c, lanes);
        Vi where = {0};
        memcpy(&where, index + c, (size_t)lanes * sizeof *index);
        for (int pixel = 0; pixel < pixels; pixel++) {
            STORAGE *to = (STORAGE *)output + (size_t)pixel * (size_t)channels + c;
            STORE(to, vf_select(where == pixel, g, vf_set(0.0f)), lanes);
        }
    }
}

static void NAME(global_average)(const void *input, int pixels, int channels, float *pooled) {
    for (int c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? channels - c : LANES;
        const STORAGE *from = (const STORAGE *)input + c;
        Vf sum = {0};
        for (int pixel = 0; pixel < pixels; pixel++) sum += LOAD(from + (size_t)pixel * (size_t)channels, lanes);
        f32_store_some(pooled + c, sum * vf_set(1.0f / (float)pixels), lanes);
    }
}

static void NAME(global_spread)(const float *gradient, int pixels, int channels, void *output) {
    for (int c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? channels - c : LANES;
        Vf share = f32_load_some(gradient + c, lanes) * vf_set(1.0f / (float)pixels);
        STORAGE *to = (STORAGE *)output + c;
        for (int pixel = 0; pixel < pixels; pixel++) STORE(to + (size_t)pixel * (size_t)channels, share, lanes);
    }
}
