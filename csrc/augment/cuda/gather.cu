/* Batches from a resident data set. A thread makes 16 neighbouring pixels of an image: it walks from each pixel's place
 * in the result back through the operations to its place in the source, or to the colour that one of them filled it
 * with. The draws are made once for each image and operation, by the functions that the CPU's augmentation uses. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/gather.h"
}

#define BLOCK 256
#define BLOCK_IMAGES 4 /* at most */
#define CHANNELS 3
#define BYTES_16 16

/* An operation as the kernel takes it. */
struct Op {
    AugmentOp op;
    AugmentPhase phase;
    bool reflect;    /* of moved pixels */
    uint32_t colour; /* of those that are filled: three bytes */
};

struct Ops {
    Op op[GATHER_MAX_OPS];
    int count;
    int mixing; /* the operation that mixes; -1: none does */
    bool plain; /* none mixes or changes colours: what the kernels' PLAIN says, too */
};

/* An image of the set, and what was drawn for it. */
struct Sample {
    const uint8_t *image;
    const AugmentDrawn *drawn;
};

static __device__ __forceinline__ AugmentPixel unpacked(uint32_t colour) {
    AugmentPixel pixel = {{(uint8_t)colour, (uint8_t)(colour >> 8), (uint8_t)(colour >> 16)}};
    return pixel;
}

static __device__ __forceinline__ uint32_t packed(AugmentPixel pixel) {
    return (uint32_t)pixel.value[0] | (uint32_t)pixel.value[1] << 8 | (uint32_t)pixel.value[2] << 16;
}

/* From the result of operation end - 1 to where operation `first` finds the pixel, or to the one that has filled it,
 * whose number it gives; else first - 1. */
static __device__ __forceinline__ int walk_back(const Ops &ops, const AugmentDrawn *drawn, int first, int end,
                                                int height, int width, int *row, int *column) {
    int i = end - 1, y = *row, x = *column;
    for (; i >= first; i--) {
        const Op &op = ops.op[i];
        const AugmentDrawn &by = drawn[i];
        if (op.phase == AUGMENT_FILL) {
            if (by.acts && y >= by.y && y < by.y + by.height && x >= by.x && x < by.x + by.width) break;
        } else if (op.phase != AUGMENT_MOVE) {
            continue;
        } else if (by.acts) {
            x = width - 1 - x;
        } else {
            y += by.y;
            x += by.x;
            if (op.reflect) {
                y = augment_reflect(y, height);
                x = augment_reflect(x, width);
            } else if (y < 0 || y >= height || x < 0 || x >= width) {
                break;
            }
        }
    }
    *row = y;
    *column = x;
    return i;
}

/* What operations [first, end) make of a colour. */
template <bool PLAIN>
static __device__ __forceinline__ uint32_t change(const Ops &ops, const AugmentDrawn *drawn, int first, int end,
                                                  uint32_t colour) {
    for (int i = first; !PLAIN && i < end; i++) {
        if (ops.op[i].phase != AUGMENT_COLOUR || !drawn[i].acts) continue;
        colour = packed(augment_op_pixel(&ops.op[i].op, &drawn[i], unpacked(colour)));
    }
    return colour;
}

/* The three bytes of pixel (y, x) of what operations [0, end) make of an image, none of which mixes. */
template <bool PLAIN>
static __device__ __forceinline__ uint32_t look(const Sample &sample, const Ops &ops, int end, int height, int width,
                                                int y, int x) {
    const int filled = walk_back(ops, sample.drawn, 0, end, height, width, &y, &x);
    if (filled >= 0) return change<PLAIN>(ops, sample.drawn, filled + 1, end, ops.op[filled].colour);
    const uint8_t *from = sample.image + (y * width + x) * CHANNELS;
    const uint32_t colour = (uint32_t)__ldg(from) | (uint32_t)__ldg(from + 1) << 8 | (uint32_t)__ldg(from + 2) << 16;
    return change<PLAIN>(ops, sample.drawn, 0, end, colour);
}

/* The same of the whole chain, which may mix the image with the one before it. */
template <bool PLAIN>
static __device__ __forceinline__ uint32_t look_mixed(const Sample &own, const Sample &previous, const Ops &ops,
                                                      int height, int width, int y, int x) {
    if (PLAIN || ops.mixing < 0) return look<PLAIN>(own, ops, ops.count, height, width, y, x);
    const Op &op = ops.op[ops.mixing];
    const int filled = walk_back(ops, own.drawn, ops.mixing + 1, ops.count, height, width, &y, &x);
    if (filled > ops.mixing) return change<PLAIN>(ops, own.drawn, filled + 1, ops.count, ops.op[filled].colour);
    uint32_t colour = look<PLAIN>(own, ops, ops.mixing, height, width, y, x);
    const uint32_t other = look<PLAIN>(previous, ops, ops.mixing, height, width, y, x);
    colour = packed(augment_op_mix(&op.op, &own.drawn[ops.mixing], unpacked(colour), unpacked(other)));
    return change<PLAIN>(ops, own.drawn, ops.mixing + 1, ops.count, colour);
}

/* PIXELS neighbouring pixels from `first` on. */
template <int PIXELS, bool PLAIN>
static __device__ void make_pixels(const Sample &own, const Sample &previous, const Ops &ops, int height, int width,
                                   int first, uint8_t *to) {
    uint32_t words[PIXELS * CHANNELS / 4 + 1] = {0};
    int y = first / width, x = first - y * width;
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
        uint32_t colour = look_mixed<PLAIN>(own, previous, ops, height, width, y, x);
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            int byte = i * CHANNELS + c;
            words[byte / 4] |= (colour >> (8 * c) & 255u) << (byte % 4 * 8);
        }
        if (++x == width) {
            x = 0;
            y++;
        }
    }
    if constexpr (PIXELS == 1) {
        for (int c = 0; c < CHANNELS; c++) to[c] = (uint8_t)(words[0] >> (8 * c));
    } else {
#pragma unroll
        for (int i = 0; i < PIXELS * CHANNELS / BYTES_16; i++) {
            uint4 four = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
            reinterpret_cast<uint4 *>(to)[i] = four;
        }
    }
}

static __device__ void draw(const GatherSet &set, const Ops &ops, const GatherClock *clock, int batch_id, int place,
                            int op, AugmentDrawn *to) {
    const AugmentKey key = {clock->seed, (uint64_t)set.ids[place], (uint64_t)set.ids[batch_id], clock->epoch};
    const AugmentSize size = {set.height, set.width};
    const AugmentDrawn drawn = augment_op_draw(&ops.op[op].op, &key, false, size);
    to->acts = drawn.acts;
    to->y = drawn.y;
    to->x = drawn.x;
    to->height = drawn.height;
    to->width = drawn.width;
    to->amount = drawn.amount;
}

/* How many blocks shall find room beside each other, by their registers: GPUs of capability 7.5 take fewer threads. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define GATHER_NEIGHBOURS (1024 / BLOCK)
#else
#define GATHER_NEIGHBOURS (1536 / BLOCK)
#endif

/* The images of a block share its threads; each image's draws are made by as many threads as there are operations. If
 * images are mixed, a block also has the image before its first: slot 0 in what it shares, its own are from 1 on. */
template <int PIXELS, bool PLAIN>
static __global__ void __launch_bounds__(BLOCK, GATHER_NEIGHBOURS)
    augment_gather_kernel(GatherSet set, const int32_t *order, const GatherClock *clock, int batch, Ops ops,
                          int block_images, uint8_t *to, int64_t *to_labels) {
    grid_begin();
    __shared__ AugmentDrawn drawn[(BLOCK_IMAGES + 1) * GATHER_MAX_OPS];
    __shared__ int place[BLOCK_IMAGES + 1];
    const int pixels = set.height * set.width, units = pixels / PIXELS;
    const int start = (int)blockIdx.x * block_images;
    const int here = min(block_images, batch - start), skipped = ops.mixing < 0 ? 1 : 0;
    const int32_t *ordered = order + clock->first;
    for (int i = (int)threadIdx.x + skipped; i <= here; i += BLOCK) {
        place[i] = ordered[i > 0 ? start + i - 1 : start > 0 ? start - 1 : batch - 1];
        if (i > 0) to_labels[start + i - 1] = set.labels[place[i]];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x + skipped * ops.count; i < (here + 1) * ops.count; i += BLOCK) {
        const int slot = i / ops.count;
        draw(set, ops, clock, ordered[0], place[slot], i - slot * ops.count, &drawn[i]);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < here * units; i += BLOCK) {
        const int image = i / units, unit = i - image * units;
        const size_t bytes = (size_t)(pixels * CHANNELS);
        const Sample own = {set.images + (size_t)place[image + 1] * bytes, drawn + (image + 1) * ops.count};
        const Sample previous = {ops.mixing < 0 ? NULL : set.images + (size_t)place[image] * bytes,
                                 drawn + image * ops.count};
        uint8_t *out = to + ((size_t)(start + image) * (size_t)pixels + (size_t)unit * PIXELS) * CHANNELS;
        make_pixels<PIXELS, PLAIN>(own, previous, ops, set.height, set.width, unit * PIXELS, out);
    }
}

static Op make_op(const AugmentOp *op) {
    Op out = {*op, augment_entry(op->kind)->phase, false, 0};
    const AugmentFill *fill = augment_op_fill(op);
    if (fill == NULL) return out;
    out.reflect = fill->reflect;
    for (int c = 0; c < CHANNELS; c++) out.colour |= (uint32_t)(uint8_t)fill->colour[c] << (8 * c);
    return out;
}

extern "C" Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width) {
    AugmentSpec spec = {};
    Augment *augment = NULL;
    const AugmentKey key = {};
    const AugmentSize size = {height, width};
    if (op_count < 0 || op_count > GATHER_MAX_OPS) {
        FAIL(STATUS_ARGUMENT, "at most %d image operations can be done on the GPU, not %d", GATHER_MAX_OPS, op_count);
    }
    spec.height = height;
    spec.width = width;
    spec.op_count = op_count;
    for (int i = 0; i < op_count; i++) spec.ops[i] = ops[i];
    TRY(augment_create(&spec, &augment));
    augment_destroy(augment);
    for (int i = 0; i < op_count; i++) {
        const AugmentDrawn drawn = augment_op_draw(&ops[i], &key, true, size);
        if (ops[i].normalized) FAIL(STATUS_ARGUMENT, "on the GPU nothing can be filled after the normalisation");
        if (augment_entry(ops[i].kind)->phase != AUGMENT_MOVE) continue;
        if (drawn.height == height && drawn.width == width) continue;
        FAIL(STATUS_ARGUMENT, "a crop on the GPU keeps the size %d x %d, it cannot give %d x %d", height, width,
             drawn.height, drawn.width);
    }
    return STATUS_OK;
}

extern "C" Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                                       const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels,
                                       DeviceStream *stream) {
    Ops taken = {};
    int pixels = set->height * set->width;
    bool wide = pixels % BYTES_16 == 0;
    int units = wide ? pixels / BYTES_16 : pixels;
    int block_images = units * BLOCK_IMAGES <= BLOCK ? BLOCK_IMAGES : units < BLOCK ? BLOCK / units : 1;
    taken.count = op_count;
    taken.mixing = -1;
    taken.plain = true;
    for (int i = 0; i < op_count; i++) {
        taken.op[i] = make_op(&ops[i]);
        if (taken.op[i].phase == AUGMENT_MIX) taken.mixing = i;
        if (taken.op[i].phase > AUGMENT_FILL) taken.plain = false;
    }
    const unsigned blocks = (unsigned)ceil_div((size_t)batch, (size_t)block_images);
    const auto kernel =
        wide ? (taken.plain ? augment_gather_kernel<BYTES_16, true> : augment_gather_kernel<BYTES_16, false>)
             : (taken.plain ? augment_gather_kernel<1, true> : augment_gather_kernel<1, false>);
    return LAUNCH_AFTER(kernel, blocks, BLOCK, 0, stream, *set, order, clock, batch, taken, block_images, to,
                        to_labels);
}

/* Copies image places[blockIdx.x] in units of T. */
template <typename T>
static __global__ void augment_copy_image_kernel(const uint8_t *images, const int32_t *places, size_t image_bytes,
                                                 uint8_t *to) {
    grid_begin();
    const T *from = reinterpret_cast<const T *>(images + (size_t)places[blockIdx.x] * image_bytes);
    T *out = reinterpret_cast<T *>(to + (size_t)blockIdx.x * image_bytes);
    for (size_t i = threadIdx.x; i < image_bytes / sizeof(T); i += blockDim.x) out[i] = from[i];
}

extern "C" Status augment_gather_plain(const GatherSet *set, const int32_t *places, int count, uint8_t *to,
                                       DeviceStream *stream) {
    size_t bytes = (size_t)set->height * (size_t)set->width * CHANNELS;
    if (bytes % BYTES_16 == 0) {
        return LAUNCH_AFTER(augment_copy_image_kernel<uint4>, (unsigned)count, 192, 0, stream, set->images, places,
                            bytes, to);
    }
    return LAUNCH_AFTER(augment_copy_image_kernel<uint8_t>, (unsigned)count, 192, 0, stream, set->images, places, bytes,
                        to);
}
