/* Converts uint8 pixels by a table of all their values. Block: BLOCK threads, with the table in shared memory; a thread
 * makes groups of PACK neighbouring values of the result, in a grid-stride loop over the groups.
 * Buffers: images (count, height, width, 3), uint8; table (3, 256), T; the result (count, height, width, 3) or, if
 * PLANAR, (count, 3, height, width), T, where the PACK values are in one plane. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/convert.h"
}

#define BLOCK 256
#define CHANNELS AUGMENT_CHANNELS
#define LEVELS AUGMENT_LEVELS
#define TURNS 8 /* groups per thread if there are enough, to make loading the table worthwhile */

template <typename T, int PACK> struct alignas(sizeof(T) * PACK) Packed { T value[PACK]; };

template <typename T, int PACK, bool PLANAR>
static __global__ void __launch_bounds__(BLOCK)
    augment_convert_kernel(const uint8_t *images, size_t groups, size_t pixels, const T *table, T *to) {
    grid_begin();
    __shared__ T values[CHANNELS * LEVELS];
    for (int i = (int)threadIdx.x; i < CHANNELS * LEVELS; i += BLOCK) values[i] = table[i];
    __syncthreads();
    const size_t stride = (size_t)gridDim.x * BLOCK;
    for (size_t group = (size_t)blockIdx.x * BLOCK + threadIdx.x; group < groups; group += stride) {
        const size_t first = group * PACK;
        Packed<T, PACK> out;
        if (PLANAR) {
            const size_t plane = first / pixels, image = plane / CHANNELS, channel = plane - image * CHANNELS;
            const uint8_t *from = images + (image * pixels + first - plane * pixels) * CHANNELS + channel;
#pragma unroll
            for (int i = 0; i < PACK; i++) out.value[i] = values[channel * LEVELS + __ldg(from + i * CHANNELS)];
        } else {
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                out.value[i] = values[(first + i) % CHANNELS * LEVELS + __ldg(images + first + i)];
            }
        }
        *reinterpret_cast<Packed<T, PACK> *>(to + first) = out;
    }
}

template <typename T, int PACK>
static Status convert(const uint8_t *images, size_t values, size_t pixels, const void *table, ImageLayout layout,
                      void *to, DeviceStream *stream) {
    const size_t groups = values / PACK;
    const unsigned blocks = (unsigned)ceil_div(groups, (size_t)BLOCK * TURNS);
    if (layout == IMAGE_CHW) {
        return LAUNCH_AFTER((augment_convert_kernel<T, PACK, true>), blocks, BLOCK, 0, stream, images, groups, pixels,
                            (const T *)table, (T *)to);
    }
    return LAUNCH_AFTER((augment_convert_kernel<T, PACK, false>), blocks, BLOCK, 0, stream, images, groups, pixels,
                        (const T *)table, (T *)to);
}

template <typename T>
static Status convert_packed(const uint8_t *images, size_t values, size_t pixels, const void *table, ImageLayout layout,
                             void *to, DeviceStream *stream) {
    if (pixels % 4 == 0) return convert<T, 4>(images, values, pixels, table, layout, to, stream);
    return convert<T, 1>(images, values, pixels, table, layout, to, stream);
}

extern "C" Status augment_convert_batch(const uint8_t *images, int count, int height, int width, const void *table,
                                        size_t item_bytes, ImageLayout layout, void *to, DeviceStream *stream) {
    const size_t pixels = (size_t)height * (size_t)width, values = (size_t)count * pixels * CHANNELS;
    if (item_bytes == 1) return convert_packed<uint8_t>(images, values, pixels, table, layout, to, stream);
    if (item_bytes == 2) return convert_packed<uint16_t>(images, values, pixels, table, layout, to, stream);
    return convert_packed<uint32_t>(images, values, pixels, table, layout, to, stream);
}
