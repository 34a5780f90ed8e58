/* The convolution that reads the images, forward; and loading the images as float32. The division of work is in
 * stem.cuh; a block computes one tile. In the loading kernel, thread i of the whole grid takes pixels i, i + threads,
 * ... of (images, height + 2 border, width + 2 border, channels). */
#include "nn/cuda/stem/stem.cuh"
#include "nn/cuda/storage.cuh"

extern "C" {
#include "nn/cuda/stem/matrix.h"
}

template <typename T, int KERNEL, int STRIDE, int CHANNELS>
__global__ void __launch_bounds__(THREADS, 2)
    stem_forward_kernel(StemFilters filters, StemSource source, StemShape shape, Tiling t, T *output) {
    grid_begin();
    DYNAMIC_SHARED(float4, patch);
    float *packed = reinterpret_cast<float *>(patch + t.patch_height * t.patch_width);
    const int stride = STRIDE > 0 ? STRIDE : shape.stride;
    const Corner corner = corner_of(t, (int)blockIdx.x);
    const StemPlace place = stem_place_of(t, shape.out_channels);
    stage_filters(filters, t, shape.out_channels, packed);
    stage_patch(source, t, corner, stride, patch);
    __syncthreads();
    int rows = min(t.height, shape.out_height - corner.y);
    if (!place.active || corner.x + place.x >= shape.out_width) return;
    T *to = output + output_at(shape, corner.image, corner.y, corner.x + place.x, place.channel);
    size_t row_elems = (size_t)shape.out_width * (size_t)shape.out_channels;
    for (int first = place.chain * ROWS; first < rows; first += t.chains * ROWS) {
        float sums[ROWS][LANES];
        convolve<KERNEL, STRIDE, CHANNELS>(shape, t, patch + first * stride * t.patch_width + place.x * stride,
                                           packed + place.group * 4, sums);
        DISPATCH_ACTIVATION(shape.activation, A, {
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (first + row >= rows) break;
#pragma unroll
                for (int lane = 0; lane < LANES; lane++) sums[row][lane] = activate<A>(sums[row][lane]);
                store_row(to + (size_t)(first + row) * row_elems, sums[row]);
            }
        });
    }
}

__global__ void stem_load_kernel(StemSource source, size_t pixels, float *to) {
    grid_begin();
    int height = source.height + 2 * source.border, width = source.width + 2 * source.border;
    GRID_LOOP(i, pixels) {
        size_t row = i / (size_t)width, image = row / (size_t)height;
        int x = (int)(i - row * (size_t)width), y = (int)(row - image * (size_t)height);
        float4 pixel = fetch(source, image, y, x);
        for (int channel = 0; channel < source.channels; channel++) {
            to[i * (size_t)source.channels + (size_t)channel] = component(pixel, channel);
        }
    }
}

extern "C" Status nn_cuda_stem_load(const StemSource *source, int images, float *to, DeviceStream *stream) {
    int height = source->height + 2 * source->border, width = source->width + 2 * source->border;
    size_t pixels = (size_t)images * (size_t)height * (size_t)width, blocks = ceil_div(pixels, THREADS);
    if (blocks > 65536) blocks = 65536;
    return LAUNCH_AFTER(stem_load_kernel, (unsigned)blocks, THREADS, 0, stream, *source, pixels, to);
}

extern "C" Status nn_cuda_stem_forward(const StemShape *shape, const StemSource *source, StemFilters filters,
                                       void *output, DeviceStream *stream) {
    if (nn_cuda_stem_matrix_fits(shape)) return nn_cuda_stem_matrix_forward(shape, source, filters, output, stream);
    Tiling t = tile(shape, PATCH_BYTES, THREADS);
    dim3 grid((unsigned)tile_count(&t), (unsigned)t.chunks);
    size_t shared = patch_bytes(&t) + (size_t)filter_elems(t) * sizeof(float);
    DISPATCH_STORAGE(shape->precision, T, {
        DISPATCH_SHAPE(shape, {
            TRY(LAUNCH_AFTER((stem_forward_kernel<T, K, S, C>), grid, block_threads(&t), shared, stream, filters,
                             *source, *shape, t, (T *)output));
        });
    });
    return STATUS_OK;
}
