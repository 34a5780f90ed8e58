/* The convolution that reads the images, with its bias and activation, for one storage type of the output. There are
 * few input channels, so each output is a short sum and float32 arithmetic costs little. A row of results is computed
 * in float32 (out_width x out_channels, dense), then activated and narrowed; the backward pass recomputes the row. */

#define STEM_TILE 6

#ifndef CGXFFCV_NN_CPU_KERNELS_STEM_H
#define CGXFFCV_NN_CPU_KERNELS_STEM_H

static inline int stem_rounded(const StemShape *shape) {
    return (shape->out_channels + KERNELS_ROUND - 1) / KERNELS_ROUND * KERNELS_ROUND;
}

/* `pixels` outputs by `vectors` vectors of channels; the last store may overrun into what is written next. */
INLINE void stem_tile(const StemShape *shape, const float *input, const float *weights, const float *bias, int pixels,
                      int vectors, float *row) {
    int run = shape->kernel * shape->input.channels, rounded = stem_rounded(shape);
    int step = shape->stride * shape->input.channels, input_row = shape->input.width * shape->input.channels;
    Vf sum[STEM_TILE][2];
    for (int v = 0; v < vectors; v++) {
        Vf start = bias == NULL ? vf_set(0.0f) : f32_load(bias + v * LANES);
        for (int p = 0; p < pixels; p++) sum[p][v] = start;
    }
    for (int ky = 0; ky < shape->kernel; ky++) {
        for (int j = 0; j < run; j++) {
            const float *x = input + ky * input_row + j, *w = weights + (ky * run + j) * rounded;
            Vf w0 = f32_load(w), w1 = vectors > 1 ? f32_load(w + LANES) : w0;
            for (int p = 0; p < pixels; p++) {
                Vf value = vf_set(x[p * step]);
                sum[p][0] = vf_fma(value, w0, sum[p][0]);
                if (vectors > 1) sum[p][1] = vf_fma(value, w1, sum[p][1]);
            }
        }
    }
    for (int p = 0; p < pixels; p++) {
        for (int v = 0; v < vectors; v++) f32_store(row + p * shape->out_channels + v * LANES, sum[p][v]);
    }
}

/* All channels of `pixels` outputs; a store may overrun into the next pixel, which is written later. */
INLINE void stem_tiles(const StemShape *shape, const float *input, const float *weights, const float *bias, int pixels,
                       float *row) {
    for (int c = 0; c < shape->out_channels; c += 2 * LANES) {
        const float *start = bias == NULL ? NULL : bias + c;
        if (shape->out_channels - c > LANES) {
            stem_tile(shape, input, weights + c, start, pixels, 2, row + c);
        } else {
            stem_tile(shape, input, weights + c, start, pixels, 1, row + c);
        }
    }
}

/* One row of pre-activations. If the channels do not fill whole vectors, stores overrun, and only tiles of one pixel
 * are correct. */
static inline void stem_row(const StemShape *shape, const float *input, const float *weights, const float *bias,
                            float *row) {
    int step = shape->stride * shape->input.channels, width = shape->out_width;
    bool tiles = shape->out_channels <= 2 * LANES || shape->out_channels % LANES == 0;
    int x = 0;
    while (x < width) {
        if (tiles && width >= STEM_TILE) {
            if (x + STEM_TILE > width) x = width - STEM_TILE;
            stem_tiles(shape, input + x * step, weights, bias, STEM_TILE, row + x * shape->out_channels);
            x += STEM_TILE;
        } else {
            stem_tiles(shape, input + x * step, weights, bias, 1, row + x * shape->out_channels);
            x++;
        }
    }
}

/* weight_gradient (run x rounded) += sum over the row of input x dz. */
INLINE void stem_weight_block(const StemShape *shape, const float *input, const float *dz, int taps, int lanes,
                              float *weight_gradient) {
    int step = shape->stride * shape->input.channels, rounded = stem_rounded(shape);
    Vf sum[3];
    for (int t = 0; t < taps; t++) sum[t] = f32_load(weight_gradient + t * rounded);
    for (int x = 0; x < shape->out_width; x++) {
        Vf d = f32_load_some(dz + x * shape->out_channels, lanes);
        for (int t = 0; t < taps; t++) sum[t] = vf_fma(vf_set(input[x * step + t]), d, sum[t]);
    }
    for (int t = 0; t < taps; t++) f32_store(weight_gradient + t * rounded, sum[t]);
}

static inline void stem_weight_row(const StemShape *shape, const float *input, const float *dz,
                                   float *weight_gradient) {
    int run = shape->kernel * shape->input.channels, rounded = stem_rounded(shape);
    for (int ky = 0; ky < shape->kernel; ky++) {
        const float *x = input + ky * shape->input.width * shape->input.channels;
        for (int c = 0; c < shape->out_channels; c += LANES) {
            int lanes = shape->out_channels - c < LANES ? shape->out_channels - c : LANES, j = 0;
            float *to = weight_gradient + ky * run * rounded + c;
            for (; j + 3 <= run; j += 3) stem_weight_block(shape, x + j, dz + c, 3, lanes, to + j * rounded);
            for (; j < run; j++) stem_weight_block(shape, x + j, dz + c, 1, lanes, to + j * rounded);
        }
    }
}

static inline void stem_bias_row(const StemShape *shape, const float *dz, float *bias_gradient) {
    for (int c = 0; c < shape->out_channels; c += LANES) {
        int lanes = shape->out_channels - c < LANES ? shape->out_channels - c : LANES;
        Vf sum = f32_load(bias_gradient + c);
        for (int x = 0; x < shape->out_width; x++) sum += f32_load_some(dz + x * shape->out_channels + c, lanes);
        f32_store(bias_gradient + c, sum);
    }
}

#endif

INLINE void NAME(stem_activate)(const float *row, size_t elems, Activation activation, STORAGE *output) {
    size_t i = 0;
    for (; i + LANES <= elems; i += LANES) STORE(output + i, activate(f32_load(row + i), activation), LANES);
    int rest = (int)(elems - i);
    if (rest > 0) STORE(output + i, activate(f32_load_some(row + i, rest), activation), rest);
}

static void NAME(stem_forward)(const StemShape *shape, const float *input, const float *weights, const float *bias,
                               float *row, void *output) {
    size_t elems = (size_t)shape->out_width * (size_t)shape->out_channels;
    size_t input_row = (size_t)shape->input.width * (size_t)shape->input.channels;
    STORAGE *to = output;
    for (int image = 0; image < shape->input.images; image++) {
        const float *from = input + (size_t)image * (size_t)shape->input.height * input_row;
        for (int y = 0; y < shape->out_height; y++, to += elems) {
            stem_row(shape, from + (size_t)(y * shape->stride) * input_row, weights, bias, row);
#define ACTIVATE(a) NAME(stem_activate)(row, elems, a, to)
            WITH_ACTIVATION(shape->activation, ACTIVATE)
#undef ACTIVATE
        }
    }
}

/* row = gradient * activation'(row) */
INLINE void NAME(stem_slope)(const STORAGE *gradient, size_t elems, Activation activation, float *row) {
    for (size_t i = 0; i < elems; i += LANES) {
        int lanes = elems - i < LANES ? (int)(elems - i) : LANES;
        Vf slope = activation_slope(f32_load_some(row + i, lanes), activation);
        f32_store_some(row + i, LOAD(gradient + i, lanes) * slope, lanes);
    }
}

static void NAME(stem_backward)(const StemShape *shape, const float *input, const float *weights, const float *bias,
                                const void *gradient, float *row, float *weight_gradient, float *bias_gradient) {
    size_t elems = (size_t)shape->out_width * (size_t)shape->out_channels;
    size_t input_row = (size_t)shape->input.width * (size_t)shape->input.channels;
    const STORAGE *dy = gradient;
    for (int image = 0; image < shape->input.images; image++) {
        const float *from = input + (size_t)image * (size_t)shape->input.height * input_row;
        for (int y = 0; y < shape->out_height; y++, dy += elems) {
            const float *rows = from + (size_t)(y * shape->stride) * input_row;
            if (shape->activation != ACTIVATION_NONE) stem_row(shape, rows, weights, bias, row);
#define SLOPE(a) NAME(stem_slope)(dy, elems, a, row)
            WITH_ACTIVATION(shape->activation, SLOPE)
#undef SLOPE
            if (bias_gradient != NULL) stem_bias_row(shape, row, bias_gradient);
            if (weight_gradient != NULL) stem_weight_row(shape, rows, row, weight_gradient);
        }
    }
}
