/* Batches from a resident data set. A thread makes 16 neighbouring pixels of an image: it walks from each pixel's place
 * in the result back through the operations to its place in the source, or to the colour that one of them filled it
 * with. An operation that needs more than one pixel (of the image before, or of the neighbourhood) is a barrier: the
 * walk is taken up below it once for each of them. The draws are made once for each image and operation, by the
 * functions that the CPU's augmentation uses, and the mean greys by a block's threads together. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/gather.h"
}

#define BLOCK 256
#define BLOCK_IMAGES 4 /* at most */
#define CHANNELS 3
#define BYTES_16 16
#define BARRIERS 2 /* at most */
#define TAPS (AUGMENT_MAX_RADIUS + 1)
#define PLAIN (-1) /* of LEVELS: no barrier, and no colour is changed */

/* An operation as the kernel takes it. */
struct Op {
    AugmentOp op;
    AugmentPhase phase;
    bool mean;       /* it asks for the image's mean grey */
    bool reflect;    /* of moved pixels */
    uint32_t colour; /* of those that are filled: three bytes */
};

struct Ops {
    Op op[GATHER_MAX_OPS];
    int count;
    int mixing;            /* the operation that mixes; GATHER_MAX_OPS: none does */
    int barrier[BARRIERS]; /* operations that need more than one pixel, in order */
    int levels;            /* so many are there; or PLAIN */
};

/* An image of the set, what was drawn for it, and the weights of its filters, TAPS for each barrier. */
struct Sample {
    const uint8_t *image;
    const AugmentDrawn *drawn;
    const uint32_t *taps;
};

/* Two images that may be mixed, and their size. */
struct Pair {
    Sample own, previous;
    int height, width;
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
        } else {
            x = by.acts ? width - 1 - x : x + by.x;
            y = by.turns ? height - 1 - y : y + by.y;
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

static __device__ __attribute__((noinline)) uint32_t change_colour(const Op &op, const AugmentDrawn &drawn,
                                                                   uint32_t colour) {
    return packed(augment_op_pixel(&op.op, &drawn, unpacked(colour)));
}

/* What operations [first, end) make of a colour. */
template <int LEVELS>
static __device__ __forceinline__ uint32_t change(const Ops &ops, const AugmentDrawn *drawn, int first, int end,
                                                  uint32_t colour) {
    for (int i = first; LEVELS != PLAIN && i < end; i++) {
        if (ops.op[i].phase != AUGMENT_COLOUR || !drawn[i].acts) continue;
        colour = change_colour(ops.op[i], drawn[i], colour);
    }
    return colour;
}

/* The three bytes of pixel (y, x) of what operations [0, end) make of an image, LEVELS of which are barriers. */
template <int LEVELS>
static __device__ __forceinline__ uint32_t look(const Ops &ops, const Pair &pair, const Sample &of, int end, int y,
                                                int x);

/* A pixel and its neighbours, summed. */
template <int LEVELS>
static __device__ __attribute__((noinline)) uint32_t look_around(const Ops &ops, const Pair &pair, const Sample &of,
                                                                 int barrier, int y, int x) {
    const int op = ops.barrier[barrier], radius = of.drawn[op].width;
    const uint32_t *weights = of.taps + barrier * TAPS;
    uint32_t sums[CHANNELS] = {0};
    for (int dy = -radius; dy <= radius; dy++) {
        uint32_t row[CHANNELS] = {0};
        for (int dx = -radius; dx <= radius; dx++) {
            const AugmentPixel pixel = unpacked(look<LEVELS>(ops, pair, of, op, augment_reflect(y + dy, pair.height),
                                                             augment_reflect(x + dx, pair.width)));
            for (int c = 0; c < CHANNELS; c++) row[c] += weights[dx < 0 ? -dx : dx] * pixel.value[c];
        }
        for (int c = 0; c < CHANNELS; c++) sums[c] += weights[dy < 0 ? -dy : dy] * augment_local_row(row[c]);
    }
    AugmentPixel out;
    for (int c = 0; c < CHANNELS; c++) out.value[c] = augment_local_value(sums[c]);
    return packed(out);
}

/* What barrier `barrier` makes of pixel (y, x), with LEVELS others below it. */
template <int LEVELS>
static __device__ __attribute__((noinline)) uint32_t look_through(const Ops &ops, const Pair &pair, const Sample &of,
                                                                  int barrier, int y, int x) {
    const int op = ops.barrier[barrier];
    const AugmentDrawn &by = of.drawn[op];
    if (by.acts && ops.op[op].phase == AUGMENT_LOCAL) return look_around<LEVELS>(ops, pair, of, barrier, y, x);
    const uint32_t colour = look<LEVELS>(ops, pair, of, op, y, x);
    if (!by.acts || y < by.y || y >= by.y + by.height || x < by.x || x >= by.x + by.width) return colour;
    const uint32_t other = look<LEVELS>(ops, pair, pair.previous, op, y, x);
    return packed(augment_op_mix(&ops.op[op].op, &by, unpacked(colour), unpacked(other)));
}

template <int LEVELS>
static __device__ __forceinline__ uint32_t look(const Ops &ops, const Pair &pair, const Sample &of, int end, int y,
                                                int x) {
    const int first = LEVELS > 0 ? ops.barrier[LEVELS > 0 ? LEVELS - 1 : 0] + 1 : 0;
    const int filled = walk_back(ops, of.drawn, first, end, pair.height, pair.width, &y, &x);
    if (filled >= first) return change<LEVELS>(ops, of.drawn, filled + 1, end, ops.op[filled].colour);
    uint32_t colour;
    if constexpr (LEVELS > 0) {
        colour = look_through<LEVELS - 1>(ops, pair, of, LEVELS - 1, y, x);
    } else {
        const uint8_t *from = of.image + (y * pair.width + x) * CHANNELS;
        colour = (uint32_t)__ldg(from) | (uint32_t)__ldg(from + 1) << 8 | (uint32_t)__ldg(from + 2) << 16;
    }
    return change<LEVELS>(ops, of.drawn, first, end, colour);
}

/* Of so many levels as are before operation `end`. */
static __device__ uint32_t look_before(const Ops &ops, const Pair &pair, const Sample &of, int end, int y, int x) {
    int below = 0;
    while (below < ops.levels && ops.barrier[below] < end) below++;
    if (below == 0) return look<0>(ops, pair, of, end, y, x);
    return below == 1 ? look<1>(ops, pair, of, end, y, x) : look<2>(ops, pair, of, end, y, x);
}

/* PIXELS neighbouring pixels from `first` on. */
template <int PIXELS, int LEVELS>
static __device__ void make_pixels(const Pair &pair, const Ops &ops, int first, uint8_t *to) {
    uint32_t words[PIXELS * CHANNELS / 4 + 1] = {0};
    int y = first / pair.width, x = first - y * pair.width;
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
        uint32_t colour = look<LEVELS>(ops, pair, pair.own, ops.count, y, x);
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            int byte = i * CHANNELS + c;
            words[byte / 4] |= (colour >> (8 * c) & 255u) << (byte % 4 * 8);
        }
        if (++x == pair.width) {
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

/* What the images of a block share. Slot 0 is the image before the block's first, if images are mixed. */
struct Shared {
    AugmentDrawn drawn[(BLOCK_IMAGES + 1) * GATHER_MAX_OPS];
    uint32_t taps[(BLOCK_IMAGES + 1) * BARRIERS * TAPS];
    unsigned long long greys[BLOCK_IMAGES + 1]; /* sums, of one operation at a time */
    int place[BLOCK_IMAGES + 1];
};

static __device__ void draw(const GatherSet &set, const Ops &ops, const GatherClock *clock, int batch_id, int slot,
                            int op, Shared *shared) {
    const AugmentKey key = {clock->seed, (uint64_t)set.ids[shared->place[slot]], (uint64_t)set.ids[batch_id],
                            clock->epoch};
    const AugmentSize size = {set.height, set.width};
    const AugmentDrawn drawn = augment_op_draw(&ops.op[op].op, &key, false, size);
    AugmentDrawn *to = &shared->drawn[slot * ops.count + op];
    to->acts = drawn.acts;
    to->turns = drawn.turns;
    to->y = drawn.y;
    to->x = drawn.x;
    to->height = drawn.height;
    to->width = drawn.width;
    to->amount = drawn.amount;
    if (ops.op[op].phase != AUGMENT_LOCAL || !drawn.acts) return;
    const int barrier = ops.barrier[0] == op ? 0 : 1;
    to->width = augment_op_taps(&ops.op[op].op, &drawn, shared->taps + (slot * BARRIERS + barrier) * TAPS);
}

static __device__ Pair pair_of(const GatherSet &set, const Ops &ops, const Shared &shared, int slot) {
    const size_t bytes = (size_t)(set.height * set.width * CHANNELS);
    const int before = ops.mixing < ops.count && slot > 0 ? slot - 1 : slot;
    const Sample own = {set.images + (size_t)shared.place[slot] * bytes, shared.drawn + slot * ops.count,
                        shared.taps + slot * BARRIERS * TAPS};
    const Sample previous = {set.images + (size_t)shared.place[before] * bytes, shared.drawn + before * ops.count,
                             shared.taps + before * BARRIERS * TAPS};
    const Pair pair = {own, previous, set.height, set.width};
    return pair;
}

/* The mean greys that operation `op` asks for, of the images in slots [first, last]. */
static __device__ void measure(const GatherSet &set, const Ops &ops, int op, int first, int last, Shared *shared) {
    const int pixels = set.height * set.width;
    for (int slot = first + (int)threadIdx.x; slot <= last; slot += BLOCK) shared->greys[slot] = 0;
    __syncthreads();
    for (int slot = first; slot <= last; slot++) {
        if (!shared->drawn[slot * ops.count + op].acts) continue;
        const Pair pair = pair_of(set, ops, *shared, slot);
        unsigned long long sum = 0;
        for (int i = (int)threadIdx.x; i < pixels; i += BLOCK) {
            sum += augment_grey(unpacked(look_before(ops, pair, pair.own, op, i / set.width, i % set.width)));
        }
        if (sum != 0) atomicAdd(&shared->greys[slot], sum);
    }
    __syncthreads();
    for (int slot = first + (int)threadIdx.x; slot <= last; slot += BLOCK) {
        shared->drawn[slot * ops.count + op].mean = (uint32_t)(shared->greys[slot] * AUGMENT_ONE / (uint64_t)pixels);
    }
    __syncthreads();
}

/* How many blocks shall find room beside each other, by their registers: GPUs of capability 7.5 take fewer threads. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define GATHER_NEIGHBOURS (1024 / BLOCK)
#else
#define GATHER_NEIGHBOURS (1536 / BLOCK)
#endif

/* The images of a block share its threads; each image's draws are made by as many threads as there are operations. If
 * images are mixed, a block also has the image before its first: slot 0 in what it shares, its own are from 1 on. */
template <int PIXELS, int LEVELS>
static __global__ void __launch_bounds__(BLOCK, GATHER_NEIGHBOURS)
    augment_gather_kernel(GatherSet set, const int32_t *order, const GatherClock *clock, int batch,
                          const __grid_constant__ Ops ops, int block_images, uint8_t *to, int64_t *to_labels) {
    grid_begin();
    __shared__ Shared shared;
    const int pixels = set.height * set.width, units = pixels / PIXELS;
    const int start = (int)blockIdx.x * block_images;
    const int here = min(block_images, batch - start), skipped = ops.mixing < ops.count ? 0 : 1;
    const int32_t *ordered = order + clock->first;
    for (int i = (int)threadIdx.x + skipped; i <= here; i += BLOCK) {
        shared.place[i] = ordered[i > 0 ? start + i - 1 : start > 0 ? start - 1 : batch - 1];
        if (i > 0) to_labels[start + i - 1] = set.labels[shared.place[i]];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x + skipped * ops.count; i < (here + 1) * ops.count; i += BLOCK) {
        const int slot = i / ops.count;
        draw(set, ops, clock, ordered[0], slot, i - slot * ops.count, &shared);
    }
    __syncthreads();
    for (int op = 0; LEVELS != PLAIN && op < ops.count; op++) {
        if (ops.op[op].mean) measure(set, ops, op, op < ops.mixing ? skipped : 1, here, &shared);
    }
    for (int i = (int)threadIdx.x; i < here * units; i += BLOCK) {
        const int image = i / units, unit = i - image * units;
        const size_t first = (size_t)unit * PIXELS;
        uint8_t *out = to + ((size_t)(start + image) * (size_t)pixels + first) * CHANNELS;
        make_pixels<PIXELS, LEVELS>(pair_of(set, ops, shared, image + 1), ops, (int)first, out);
    }
}

static Op make_op(const AugmentOp *op) {
    const AugmentEntry *entry = augment_entry(op->kind);
    Op out = {*op, entry->phase, entry->mean, false, 0};
    const AugmentFill *fill = augment_op_fill(op);
    if (fill == NULL) return out;
    out.reflect = fill->reflect;
    for (int c = 0; c < CHANNELS; c++) out.colour |= (uint32_t)(uint8_t)fill->colour[c] << (8 * c);
    return out;
}

static bool is_barrier(AugmentPhase phase) { return phase == AUGMENT_LOCAL || phase == AUGMENT_MIX; }

static Status check_op(const AugmentOp *op, AugmentSize size) {
    const AugmentKey key = {};
    const AugmentDrawn drawn = augment_op_draw(op, &key, true, size);
    if (op->normalized) FAIL(STATUS_ARGUMENT, "on the GPU nothing can be filled after the normalisation");
    const AugmentEntry *entry = augment_entry(op->kind);
    if (entry->phase == AUGMENT_PLACED) FAIL(STATUS_ARGUMENT, "%s cannot be done on the GPU", entry->name);
    if (entry->phase != AUGMENT_MOVE) return STATUS_OK;
    if (drawn.height == size.height && drawn.width == size.width) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a crop on the GPU keeps the size %d x %d, it cannot give %d x %d", size.height, size.width,
         drawn.height, drawn.width);
}

extern "C" Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width) {
    AugmentSpec spec = {};
    Augment *augment = NULL;
    int barriers = 0;
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
        const AugmentSize size = {height, width};
        TRY(check_op(&ops[i], size));
        barriers += is_barrier(augment_entry(ops[i].kind)->phase);
    }
    if (barriers <= BARRIERS) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "on the GPU at most %d operations may mix or blur images, not %d", BARRIERS, barriers);
}

static Ops make_ops(const AugmentOp *ops, int op_count) {
    Ops taken = {};
    bool colours = false;
    taken.count = op_count;
    taken.mixing = GATHER_MAX_OPS;
    for (int i = 0; i < op_count; i++) {
        taken.op[i] = make_op(&ops[i]);
        const AugmentPhase phase = taken.op[i].phase;
        if (phase == AUGMENT_MIX) taken.mixing = i;
        if (is_barrier(phase)) taken.barrier[taken.levels++] = i;
        colours = colours || phase == AUGMENT_COLOUR;
    }
    if (!colours && taken.levels == 0) taken.levels = PLAIN;
    return taken;
}

typedef void (*GatherKernel)(GatherSet, const int32_t *, const GatherClock *, int, Ops, int, uint8_t *, int64_t *);

template <int PIXELS> static GatherKernel gather_kernel(int levels) {
    if (levels == PLAIN) return augment_gather_kernel<PIXELS, PLAIN>;
    if (levels == 0) return augment_gather_kernel<PIXELS, 0>;
    return levels == 1 ? augment_gather_kernel<PIXELS, 1> : augment_gather_kernel<PIXELS, 2>;
}

extern "C" Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                                       const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels,
                                       DeviceStream *stream) {
    const Ops taken = make_ops(ops, op_count);
    int pixels = set->height * set->width;
    bool wide = pixels % BYTES_16 == 0;
    int units = wide ? pixels / BYTES_16 : pixels;
    int block_images = units * BLOCK_IMAGES <= BLOCK ? BLOCK_IMAGES : units < BLOCK ? BLOCK / units : 1;
    const unsigned blocks = (unsigned)ceil_div((size_t)batch, (size_t)block_images);
    const GatherKernel kernel = wide ? gather_kernel<BYTES_16>(taken.levels) : gather_kernel<1>(taken.levels);
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
