/* Shrinks and normalises images: a block processes one image (size, size, 3), bytes; its 256 threads sum along the
 * columns into shared memory (side, size, 3), float32, then along the rows into the result (side, side, 3), float32. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/shrink.h"
#include "augment/triangle.h"
}

#define BLOCK 256
#define CHANNELS 3
#define MAX_WEIGHTS 768

/* Of one axis; both are the same. */
struct Filter {
    int taps;
    int16_t first[AUGMENT_MAX_SHRUNK];
    float weights[MAX_WEIGHTS];
};

struct Affine {
    float scale[CHANNELS], offset[CHANNELS];
};

/* The weights are copied to shared memory, too: as kernel arguments, in constant memory, reads of different weights by
 * a warp's threads would be serialised. */
static __global__ void augment_shrink_kernel(const uint8_t *images, int size, int side, Filter filter, Affine affine,
                                             float *to) {
    grid_begin();
    DYNAMIC_SHARED(float, lines);
    __shared__ float weights[MAX_WEIGHTS];
    __shared__ int first[AUGMENT_MAX_SHRUNK];
    const int columns = size * CHANNELS, taps = filter.taps, thread = (int)threadIdx.x;
    const uint8_t *image = images + (size_t)blockIdx.x * (size_t)(size * columns);
    float *out = to + (size_t)blockIdx.x * (size_t)(side * side * CHANNELS);
    for (int i = thread; i < side * taps; i += BLOCK) weights[i] = filter.weights[i];
    for (int i = thread; i < side; i += BLOCK) first[i] = filter.first[i];
    __syncthreads();
    for (int i = thread; i < side * columns; i += BLOCK) {
        int y = i / columns, column = i - y * columns;
        float sum = 0;
        for (int k = 0; k < taps; k++) {
            float pixel = (float)image[(first[y] + k) * columns + column];
            sum = __fadd_rn(sum, __fmul_rn(weights[y * taps + k], pixel));
        }
        lines[i] = sum;
    }
    __syncthreads();
    for (int i = thread; i < side * side * CHANNELS; i += BLOCK) {
        int c = i % CHANNELS, x = i / CHANNELS % side, y = i / (CHANNELS * side);
        float sum = 0;
        for (int k = 0; k < taps; k++) {
            float value = lines[y * columns + (first[x] + k) * CHANNELS + c];
            sum = __fadd_rn(sum, __fmul_rn(weights[x * taps + k], value));
        }
        out[i] = __fadd_rn(__fmul_rn(sum, affine.scale[c]), affine.offset[c]);
    }
}

extern "C" Status augment_shrink_on_device(const uint8_t *images, int count, int height, int width, int side,
                                           const float mean[3], const float std[3], float *to, DeviceStream *stream) {
    Filter filter = {};
    Affine affine;
    if (height != width || side < 1 || side > height || side > AUGMENT_MAX_SHRUNK) {
        FAIL(STATUS_ARGUMENT,
             "images of %d x %d cannot be shrunk to %d x %d on the GPU: only square images, to sides of at most %d",
             height, width, side, side, AUGMENT_MAX_SHRUNK);
    }
    filter.taps = triangle_taps(height, side);
    if (side * filter.taps > MAX_WEIGHTS) {
        FAIL(STATUS_ARGUMENT, "shrinking %d pixels to %d needs %d weights; on the GPU there can be at most %d", height,
             side, side * filter.taps, MAX_WEIGHTS);
    }
    for (int o = 0; o < side; o++) {
        float *weights = filter.weights + o * filter.taps;
        filter.first[o] = (int16_t)triangle_weights(height, side, o, filter.taps, weights);
    }
    for (int c = 0; c < CHANNELS; c++) {
        affine.scale[c] = 1.0f / std[c];
        affine.offset[c] = -mean[c] / std[c];
    }
    size_t bytes = (size_t)(side * width * CHANNELS) * sizeof(float);
    return LAUNCH_AFTER(augment_shrink_kernel, (unsigned)count, BLOCK, bytes, stream, images, height, side, filter,
                        affine, to);
}
