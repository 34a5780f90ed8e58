/* Kernels on float32 only: the linear layer of one image, sums of partial gradients. */

static void linear(const float *pooled, int channels, const float *weights, int classes, float scale, float *logits) {
    for (int k = 0; k < classes; k++) {
        const float *row = weights + (size_t)k * (size_t)channels;
        Vf sum = {0};
        for (int c = 0; c < channels; c += LANES) {
            int lanes = channels - c < LANES ? channels - c : LANES;
            sum = vf_fma(f32_load_some(row + c, lanes), f32_load_some(pooled + c, lanes), sum);
        }
        logits[k] = vf_sum(sum) * scale;
    }
}

static void linear_backward(const float *pooled, int channels, const float *weights, int classes, float scale,
                            const float *logits_gradient, float *pooled_gradient, float *weight_gradient) {
    for (int c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? channels - c : LANES;
        Vf x = f32_load_some(pooled + c, lanes), sum = {0};
        for (int k = 0; k < classes; k++) {
            size_t at = (size_t)k * (size_t)channels + (size_t)c;
            Vf g = vf_set(logits_gradient[k] * scale);
            sum = vf_fma(g, f32_load_some(weights + at, lanes), sum);
            f32_store_some(weight_gradient + at, vf_fma(g, x, f32_load_some(weight_gradient + at, lanes)), lanes);
        }
        f32_store_some(pooled_gradient + c, sum, lanes);
    }
}

static void gather_sum(const float *from, size_t count, size_t stride, const int32_t *map, size_t elems, float *to) {
    for (size_t i = 0; i < elems; i += LANES) {
        int lanes = elems - i < LANES ? (int)(elems - i) : LANES;
        float sums[LANES] = {0};
        for (size_t k = 0; k < count; k++) {
            for (int j = 0; j < lanes; j++) sums[j] += from[k * stride + (size_t)map[i + (size_t)j]];
        }
        memcpy(to + i, sums, (size_t)lanes * sizeof *to);
    }
}

static void sum_floats(const float *from, size_t count, size_t stride, size_t elems, float *to) {
    for (size_t i = 0; i < elems; i += LANES) {
        int lanes = elems - i < LANES ? (int)(elems - i) : LANES;
        Vf sum = {0};
        for (size_t k = 0; k < count; k++) sum += f32_load_some(from + k * stride + i, lanes);
        f32_store_some(to + i, sum, lanes);
    }
}

static void add_floats(const float *from, size_t elems, float *to) {
    for (size_t i = 0; i < elems; i += LANES) {
        int lanes = elems - i < LANES ? (int)(elems - i) : LANES;
        f32_store_some(to + i, f32_load_some(to + i, lanes) + f32_load_some(from + i, lanes), lanes);
    }
}
