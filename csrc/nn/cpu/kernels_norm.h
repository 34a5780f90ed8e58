/* Statistics, normalisation with activation, and both halves of its gradient, for one storage type. Pixels are
 * processed in strips that stay in the L1 cache while each vector of channels passes over them. */

#ifndef CGXFFCV_NN_CPU_KERNELS_NORM_H
#define CGXFFCV_NN_CPU_KERNELS_NORM_H

static inline size_t strip_pixels(int channels) {
    size_t pixels = 4096 / (size_t)channels;
    return pixels < 16 ? 16 : pixels;
}

INLINE Vf activate(Vf z, Activation activation) {
    if (activation == ACTIVATION_RELU) return vf_max(z, vf_set(0.0f));
    if (activation == ACTIVATION_GELU) return vf_gelu(z);
    if (activation == ACTIVATION_SILU) return vf_silu(z);
    return z;
}

INLINE Vf activation_slope(Vf z, Activation activation) {
    if (activation == ACTIVATION_RELU) return vf_select(z > 0.0f, vf_set(1.0f), vf_set(0.0f));
    if (activation == ACTIVATION_GELU) return vf_gelu_slope(z);
    if (activation == ACTIVATION_SILU) return vf_silu_slope(z);
    return vf_set(1.0f);
}

/* Runs `call` with the activation as a constant, so that the loop of each copy has no branches. */
#define WITH_ACTIVATION(activation, call)                                                                              \
    switch (activation) {                                                                                              \
    case ACTIVATION_NONE:                                                                                              \
        call(ACTIVATION_NONE);                                                                                         \
        break;                                                                                                         \
    case ACTIVATION_RELU:                                                                                              \
        call(ACTIVATION_RELU);                                                                                         \
        break;                                                                                                         \
    case ACTIVATION_GELU:                                                                                              \
        call(ACTIVATION_GELU);                                                                                         \
        break;                                                                                                         \
    case ACTIVATION_SILU:                                                                                              \
        call(ACTIVATION_SILU);                                                                                         \
        break;                                                                                                         \
    }

#endif

/* Sums and sums of squares of (x - origin). */
INLINE void NAME(moments_block)(const STORAGE *input, size_t pixels, size_t channels, const STORAGE *origin, int lanes,
                                float *sums, float *squares) {
    Vf zero = LOAD(origin, lanes), sum[2] = {{0}}, square[2] = {{0}};
    size_t pixel = 0;
    for (; pixel + 2 <= pixels; pixel += 2) {
        for (size_t i = 0; i < 2; i++) {
            FETCH(input + (pixel + i) * channels, 0);
            Vf x = LOAD(input + (pixel + i) * channels, lanes) - zero;
            sum[i] += x;
            square[i] = vf_fma(x, x, square[i]);
        }
    }
    if (pixel < pixels) {
        Vf x = LOAD(input + pixel * channels, lanes) - zero;
        sum[0] += x;
        square[0] = vf_fma(x, x, square[0]);
    }
    f32_store_some(sums, f32_load_some(sums, lanes) + sum[0] + sum[1], lanes);
    f32_store_some(squares, f32_load_some(squares, lanes) + square[0] + square[1], lanes);
}

static void NAME(moments)(const void *input, size_t pixels, int channels, float *mean, float *deviations) {
    const STORAGE *x = input;
    size_t strip = strip_pixels(channels), row = (size_t)channels;
    memset(mean, 0, row * sizeof *mean);
    memset(deviations, 0, row * sizeof *deviations);
    for (size_t first = 0; first < pixels; first += strip) {
        size_t count = pixels - first < strip ? pixels - first : strip;
        for (int c = 0; c < channels; c += LANES) {
            const STORAGE *from = x + first * row + c;
            if (channels - c >= LANES) {
                NAME(moments_block)(from, count, row, x + c, LANES, mean + c, deviations + c);
            } else {
                NAME(moments_block)(from, count, row, x + c, channels - c, mean + c, deviations + c);
            }
        }
    }
    float share = 1.0f / (float)pixels, origin;
    for (int c = 0; c < channels; c++) {
        NAME(to_float)(x + c, 1, &origin);
        deviations[c] -= mean[c] * mean[c] * share;
        mean[c] = origin + mean[c] * share;
    }
}

INLINE void NAME(normalise_block)(const STORAGE *input, size_t pixels, size_t channels, const NormTerms *terms, int c,
                                  int lanes, Activation activation, const STORAGE *residual, ResidualPlace place,
                                  STORAGE *output) {
    Vf mean = f32_load_some(terms->mean + c, lanes), scale = f32_load_some(terms->scale + c, lanes);
    Vf shift = f32_load_some(terms->shift + c, lanes);
    for (size_t at = 0; at < pixels * channels; at += channels) {
        FETCH(input + at, 0);
        FETCH(output + at, 1);
        Vf z = vf_fma(LOAD(input + at, lanes) - mean, scale, shift);
        if (place == RESIDUAL_BEFORE_ACTIVATION) z += LOAD(residual + at, lanes);
        Vf y = activate(z, activation);
        if (place == RESIDUAL_AFTER_ACTIVATION) y += LOAD(residual + at, lanes);
        STORE(output + at, y, lanes);
    }
}

static void NAME(normalise)(const void *input, size_t pixels, int channels, const NormTerms *terms,
                            Activation activation, const void *residual, ResidualPlace place, void *output) {
    size_t strip = strip_pixels(channels), row = (size_t)channels;
    if (residual == NULL) place = RESIDUAL_NONE;
    for (size_t first = 0; first < pixels; first += strip) {
        size_t count = pixels - first < strip ? pixels - first : strip;
        for (int c = 0; c < channels; c += LANES) {
            size_t at = first * row + (size_t)c;
            const STORAGE *from = (const STORAGE *)input + at;
            const STORAGE *added = residual == NULL ? NULL : (const STORAGE *)residual + at;
            STORAGE *to = (STORAGE *)output + at;
            int lanes = channels - c;
#define FULL(a) NAME(normalise_block)(from, count, row, terms, c, LANES, a, added, place, to)
#define PART(a) NAME(normalise_block)(from, count, row, terms, c, lanes, a, added, place, to)
            if (lanes >= LANES) {
                WITH_ACTIVATION(activation, FULL)
            } else {
                WITH_ACTIVATION(activation, PART)
            }
#undef FULL
#undef PART
        }
    }
}

typedef struct NAME(ReduceArrays) {
    const STORAGE *input, *skip, *residual;
    STORAGE *gradient, *dz;
    bool store_sum;
} NAME(ReduceArrays);

INLINE void NAME(reduce_block)(const NAME(ReduceArrays) * arrays, size_t first, size_t pixels, size_t channels,
                               const NormTerms *terms, int c, int lanes, Activation activation, float *sums,
                               float *products) {
    Vf mean = f32_load_some(terms->mean + c, lanes), scale = f32_load_some(terms->scale + c, lanes);
    Vf shift = f32_load_some(terms->shift + c, lanes), sum = {0}, product = {0};
    size_t begin = first * channels + (size_t)c, end = begin + pixels * channels;
    for (size_t at = begin; at < end; at += channels) {
        FETCH(arrays->input + at, 0);
        FETCH(arrays->gradient + at, 0);
        FETCH(arrays->dz + at, 1);
        Vf x = LOAD(arrays->input + at, lanes) - mean, dy = LOAD(arrays->gradient + at, lanes);
        if (arrays->skip != NULL) {
            dy += LOAD(arrays->skip + at, lanes);
            if (arrays->store_sum) STORE(arrays->gradient + at, dy, lanes);
        }
        Vf dz = dy;
        if (activation != ACTIVATION_NONE) {
            Vf z = vf_fma(x, scale, shift);
            if (arrays->residual != NULL) z += LOAD(arrays->residual + at, lanes);
            dz = activation == ACTIVATION_RELU ? vf_select(z > 0.0f, dy, vf_set(0.0f))
                                               : dy * activation_slope(z, activation);
        }
        STORE(arrays->dz + at, dz, lanes);
        sum += dz;
        product = vf_fma(dz, x, product);
    }
    f32_store_some(sums + c, f32_load_some(sums + c, lanes) + sum, lanes);
    f32_store_some(products + c, f32_load_some(products + c, lanes) + product, lanes);
}

static void NAME(reduce)(const void *input, size_t pixels, int channels, const NormTerms *terms, Activation activation,
                         void *gradient, const void *skip, bool store_sum, const void *residual, void *dz, float *sums,
                         float *products) {
    const NAME(ReduceArrays) arrays = {input, skip, residual, gradient, dz, store_sum};
    size_t strip = strip_pixels(channels), row = (size_t)channels;
    for (size_t first = 0; first < pixels; first += strip) {
        size_t count = pixels - first < strip ? pixels - first : strip;
        for (int c = 0; c < channels; c += LANES) {
            int lanes = channels - c;
#define FULL(a) NAME(reduce_block)(&arrays, first, count, row, terms, c, LANES, a, sums, products)
#define PART(a) NAME(reduce_block)(&arrays, first, count, row, terms, c, lanes, a, sums, products)
            if (lanes >= LANES) {
                WITH_ACTIVATION(activation, FULL)
            } else {
                WITH_ACTIVATION(activation, PART)
            }
#undef FULL
#undef PART
        }
    }
}

INLINE void NAME(norm_backward_block)(const STORAGE *input, const STORAGE *dz, size_t pixels, size_t channels,
                                      const NormTerms *terms, int c, int lanes, STORAGE *output) {
    Vf mean = f32_load_some(terms->mean + c, lanes), scale = f32_load_some(terms->scale + c, lanes);
    Vf tilt = f32_load_some(terms->tilt + c, lanes), base = f32_load_some(terms->base + c, lanes);
    for (size_t at = 0; at < pixels * channels; at += channels) {
        FETCH(input + at, 0);
        FETCH(dz + at, 0);
        FETCH(output + at, 1);
        Vf x = LOAD(input + at, lanes) - mean;
        STORE(output + at, vf_fma(scale, LOAD(dz + at, lanes), vf_fma(tilt, x, base)), lanes);
    }
}

static void NAME(norm_backward)(const void *input, const void *dz, size_t pixels, int channels, const NormTerms *terms,
                                void *output) {
    size_t strip = strip_pixels(channels), row = (size_t)channels;
    for (size_t first = 0; first < pixels; first += strip) {
        size_t count = pixels - first < strip ? pixels - first : strip;
        for (int c = 0; c < channels; c += LANES) {
            size_t at = first * row + (size_t)c;
            const STORAGE *x = (const STORAGE *)input + at, *g = (const STORAGE *)dz + at;
            STORAGE *to = (STORAGE *)output + at;
            if (channels - c >= LANES) {
                NAME(norm_backward_block)(x, g, count, row, terms, c, LANES, to);
            } else {
                NAME(norm_backward_block)(x, g, count, row, terms, c, channels - c, to);
            }
        }
    }
}
