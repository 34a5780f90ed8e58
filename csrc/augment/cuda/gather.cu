/* Batches from a data set in device memory. A thread makes 16 neighbouring pixels of an image: it walks from each
 * pixel's place in the result back through the operations to its place in the source, or to the colour that one of them
 * filled it with. An operation that needs more than one pixel (of the previous image, or of the neighbourhood) is a
 * barrier: below it, the walk continues once for each of them. The draws are made once per image and operation, by the
 * functions that the CPU's augmentation uses; mean greys, and the tables of operations that count values, are computed
 * by all threads of a block together.
 *
 * Block x of augment_gather_kernel: images block_images x to block_images (x + 1) - 1 of the batch; thread t: the units
 * t, t + BLOCK, ... of these images, each PIXELS pixels. Block x of augment_copy_image_kernel: image x of the result.
 * Buffers: the set's images (count, height, width, 3), uint8, labels and ids (count), int64; order and places, int32,
 * indices of images in the set; the result (images, height, width, 3), uint8, and its labels (images), int64. Shared
 * memory: `Shared` and, if values are counted, counts [3][256], uint32, and tables [slot][table][3][256], uint8. */
#include "device/kernel.cuh"

extern "C" {
#include "augment/gather.h"
}

#define BLOCK 256
#define BLOCK_IMAGES 4 /* at most */
#define CHANNELS 3
#define BYTES_16 16
#define BARRIERS 3 /* at most */
#define TAPS (AUGMENT_MAX_RADIUS + 1)
#define TABLE (CHANNELS * AUGMENT_LEVELS)
#define TABLES 4   /* per image, at most */
#define PLAIN (-1) /* value of LEVELS: no barriers, and only moves and fills */

/* An operation in the form that the kernel uses. */
struct Op {
    AugmentOp op;
    AugmentPhase phase;
    bool mean;       /* it needs the image's mean grey */
    bool reflect;    /* moves mirror the image at its edges */
    uint32_t colour; /* of filled pixels: three bytes */
    int table;       /* the index of its tables, if it counts values */
};

struct Ops {
    Op op[GATHER_MAX_OPS];
    int count;
    int mixing;            /* the operation that mixes; GATHER_MAX_OPS: none */
    int barrier[BARRIERS]; /* operations that need more than one pixel, in order */
    int levels;            /* the number of barriers, or PLAIN */
    int tables;            /* the number of operations that count values */
};

/* An image of the set, its draws, the weights of its filters (TAPS per barrier), and the TABLE values of each operation
 * that counts. */
struct Sample {
    const uint8_t *image;
    const AugmentDrawn *drawn;
    const uint32_t *taps;
    const uint8_t *tables;
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

/* Walks from a pixel of the result of operation end - 1 back to its place in the input of operation `first`, and
 * returns first - 1; or returns the operation that filled the pixel. */
template <int LEVELS>
static __device__ __forceinline__ int walk_back(const Ops &ops, const AugmentDrawn *drawn, int first, int end,
                                                int height, int width, int *row, int *column) {
    int i = end - 1, y = *row, x = *column;
    for (; i >= first; i--) {
        const Op &op = ops.op[i];
        const AugmentDrawn &by = drawn[i];
        if (op.phase == AUGMENT_FILL) {
            if (by.acts && y >= by.y && y < by.y + by.height && x >= by.x && x < by.x + by.width) break;
        } else if (LEVELS != PLAIN && op.phase == AUGMENT_WARP) {
            const AugmentSize size = {height, width};
            if (by.acts && !augment_warp(&by, size, &y, &x)) break;
        } else if (op.phase != AUGMENT_MOVE) {
            continue;
        } else {
            x = by.acts ? width - 1 - x : x + by.x;
            y = by.flips_vertically ? height - 1 - y : y + by.y;
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

static __device__ NOT_INLINE uint32_t change_colour(const Op &op, const AugmentDrawn &drawn, uint32_t colour) {
    return packed(augment_op_pixel(&op.op, &drawn, unpacked(colour)));
}

static __device__ NOT_INLINE uint32_t look_up(const uint8_t *tables, uint32_t colour) {
    AugmentPixel pixel = unpacked(colour);
    for (int c = 0; c < CHANNELS; c++) pixel.value[c] = tables[c * AUGMENT_LEVELS + pixel.value[c]];
    return packed(pixel);
}

/* Applies operations [first, end) to a colour. */
template <int LEVELS>
static __device__ __forceinline__ uint32_t change(const Ops &ops, const Sample &of, int first, int end,
                                                  uint32_t colour) {
    for (int i = first; LEVELS != PLAIN && i < end; i++) {
        const Op &op = ops.op[i];
        if (!of.drawn[i].acts) continue;
        if (op.phase == AUGMENT_COLOUR) colour = change_colour(op, of.drawn[i], colour);
        if (op.phase == AUGMENT_HISTOGRAM) colour = look_up(of.tables + op.table * TABLE, colour);
    }
    return colour;
}

/* The three bytes of pixel (y, x) in the result of operations [0, end), LEVELS of which are barriers. */
template <int LEVELS>
static __device__ __forceinline__ uint32_t compute_pixel(const Ops &ops, const Pair &pair, const Sample &of, int end,
                                                         int y, int x);

/* The weighted sum of a pixel and its neighbours (LOCAL). */
template <int LEVELS>
static __device__ NOT_INLINE uint32_t compute_filter(const Ops &ops, const Pair &pair, const Sample &of, int barrier,
                                                     int y, int x) {
    const int op = ops.barrier[barrier], radius = of.drawn[op].width;
    const uint32_t *weights = of.taps + barrier * TAPS;
    uint32_t sums[CHANNELS] = {0};
    for (int dy = -radius; dy <= radius; dy++) {
        uint32_t row[CHANNELS] = {0};
        for (int dx = -radius; dx <= radius; dx++) {
            const AugmentPixel pixel = unpacked(compute_pixel<LEVELS>(
                ops, pair, of, op, augment_reflect(y + dy, pair.height), augment_reflect(x + dx, pair.width)));
            for (int c = 0; c < CHANNELS; c++) row[c] += weights[dx < 0 ? -dx : dx] * pixel.value[c];
        }
        for (int c = 0; c < CHANNELS; c++) sums[c] += weights[dy < 0 ? -dy : dy] * augment_local_row(row[c]);
    }
    AugmentPixel out;
    for (int c = 0; c < CHANNELS; c++) out.value[c] = augment_local_value(sums[c]);
    return packed(out);
}

/* The result from a pixel and the sums of the 3 x 3 pixels around it (BOX). */
template <int LEVELS>
static __device__ NOT_INLINE uint32_t compute_box(const Ops &ops, const Pair &pair, const Sample &of, int op, int y,
                                                  int x) {
    AugmentPixel own = unpacked(compute_pixel<LEVELS>(ops, pair, of, op, y, x));
    uint32_t sums[CHANNELS] = {own.value[0], own.value[1], own.value[2]};
    if (y == 0 || x == 0 || y == pair.height - 1 || x == pair.width - 1) return packed(own);
    for (int i = 0; i < 9; i++) {
        if (i == 4) continue;
        const AugmentPixel pixel = unpacked(compute_pixel<LEVELS>(ops, pair, of, op, y + i / 3 - 1, x + i % 3 - 1));
        for (int c = 0; c < CHANNELS; c++) sums[c] += pixel.value[c];
    }
    return packed(augment_op_box(&ops.op[op].op, &of.drawn[op], own, sums));
}

/* The result of barrier `barrier` at pixel (y, x), with LEVELS others below it. */
template <int LEVELS>
static __device__ NOT_INLINE uint32_t compute_barrier(const Ops &ops, const Pair &pair, const Sample &of, int barrier,
                                                      int y, int x) {
    const int op = ops.barrier[barrier];
    const AugmentDrawn &by = of.drawn[op];
    if (by.acts && ops.op[op].phase == AUGMENT_LOCAL) return compute_filter<LEVELS>(ops, pair, of, barrier, y, x);
    if (by.acts && ops.op[op].phase == AUGMENT_BOX) return compute_box<LEVELS>(ops, pair, of, op, y, x);
    const uint32_t colour = compute_pixel<LEVELS>(ops, pair, of, op, y, x);
    if (!by.acts || y < by.y || y >= by.y + by.height || x < by.x || x >= by.x + by.width) return colour;
    const uint32_t other = compute_pixel<LEVELS>(ops, pair, pair.previous, op, y, x);
    return packed(augment_op_mix(&ops.op[op].op, &by, unpacked(colour), unpacked(other)));
}

template <int LEVELS>
static __device__ __forceinline__ uint32_t compute_pixel(const Ops &ops, const Pair &pair, const Sample &of, int end,
                                                         int y, int x) {
    const int first = LEVELS > 0 ? ops.barrier[LEVELS > 0 ? LEVELS - 1 : 0] + 1 : 0;
    const int filled = walk_back<LEVELS>(ops, of.drawn, first, end, pair.height, pair.width, &y, &x);
    if (filled >= first) return change<LEVELS>(ops, of, filled + 1, end, ops.op[filled].colour);
    uint32_t colour;
    if constexpr (LEVELS > 0) {
        colour = compute_barrier<LEVELS - 1>(ops, pair, of, LEVELS - 1, y, x);
    } else {
        const uint8_t *from = of.image + (y * pair.width + x) * CHANNELS;
        colour = (uint32_t)__ldg(from) | (uint32_t)__ldg(from + 1) << 8 | (uint32_t)__ldg(from + 2) << 16;
    }
    return change<LEVELS>(ops, of, first, end, colour);
}

/* Calls `compute_pixel` with the number of barriers before operation `end`. */
static __device__ uint32_t compute_pixel_before(const Ops &ops, const Pair &pair, const Sample &of, int end, int y,
                                                int x) {
    int below = 0;
    while (below < ops.levels && ops.barrier[below] < end) below++;
    if (below == 0) return compute_pixel<0>(ops, pair, of, end, y, x);
    if (below == 1) return compute_pixel<1>(ops, pair, of, end, y, x);
    return below == 2 ? compute_pixel<2>(ops, pair, of, end, y, x) : compute_pixel<3>(ops, pair, of, end, y, x);
}

/* Makes PIXELS neighbouring pixels starting at `first`. */
template <int PIXELS, int LEVELS>
static __device__ void make_pixels(const Pair &pair, const Ops &ops, int first, uint8_t *to) {
    uint32_t words[PIXELS * CHANNELS / 4 + 1] = {0};
    int y = first / pair.width, x = first - y * pair.width;
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
        uint32_t colour = compute_pixel<LEVELS>(ops, pair, pair.own, ops.count, y, x);
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

/* A block's shared memory, with slots for its images; slot 0 is the image before the first, if images are mixed. */
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
    to->flips_vertically = drawn.flips_vertically;
    to->y = drawn.y;
    to->x = drawn.x;
    to->height = drawn.height;
    to->width = drawn.width;
    to->amount = drawn.amount;
    to->variant = drawn.variant;
    for (int i = 0; i < 4; i++) to->matrix[i] = drawn.matrix[i];
    if (ops.op[op].phase != AUGMENT_LOCAL || !drawn.acts) return;
    int barrier = 0;
    while (ops.barrier[barrier] != op) barrier++;
    to->width = augment_op_taps(&ops.op[op].op, &drawn, shared->taps + (slot * BARRIERS + barrier) * TAPS);
}

/* If values are counted, dynamic shared memory contains the counts of one image and then all tables, slot by slot. */
static __device__ uint32_t *counts_of(void) {
    DYNAMIC_SHARED(uint32_t, counts);
    return counts;
}

static __device__ uint8_t *tables_of(const Ops &ops, int slot) {
    return (uint8_t *)(counts_of() + TABLE) + slot * ops.tables * TABLE;
}

static size_t tables_bytes(int tables) {
    return tables == 0 ? 0 : TABLE * sizeof(uint32_t) + (size_t)((BLOCK_IMAGES + 1) * tables * TABLE);
}

static __device__ Pair pair_of(const GatherSet &set, const Ops &ops, const Shared &shared, int slot) {
    const size_t bytes = (size_t)(set.height * set.width * CHANNELS);
    const int before = ops.mixing < ops.count && slot > 0 ? slot - 1 : slot;
    const Sample own = {set.images + (size_t)shared.place[slot] * bytes, shared.drawn + slot * ops.count,
                        shared.taps + slot * BARRIERS * TAPS, tables_of(ops, slot)};
    const Sample previous = {set.images + (size_t)shared.place[before] * bytes, shared.drawn + before * ops.count,
                             shared.taps + before * BARRIERS * TAPS, tables_of(ops, before)};
    const Pair pair = {own, previous, set.height, set.width};
    return pair;
}

/* Computes the mean greys that operation `op` needs, for the images in slots [first, last]. */
static __device__ void measure(const GatherSet &set, const Ops &ops, int op, int first, int last, Shared *shared) {
    const int pixels = set.height * set.width;
    for (int slot = first + (int)threadIdx.x; slot <= last; slot += BLOCK) shared->greys[slot] = 0;
    __syncthreads();
    for (int slot = first; slot <= last; slot++) {
        if (!shared->drawn[slot * ops.count + op].acts) continue;
        const Pair pair = pair_of(set, ops, *shared, slot);
        unsigned long long sum = 0;
        for (int i = (int)threadIdx.x; i < pixels; i += BLOCK) {
            sum += augment_grey(unpacked(compute_pixel_before(ops, pair, pair.own, op, i / set.width, i % set.width)));
        }
        if (sum != 0) atomicAdd(&shared->greys[slot], sum);
    }
    __syncthreads();
    for (int slot = first + (int)threadIdx.x; slot <= last; slot += BLOCK) {
        shared->drawn[slot * ops.count + op].mean = (uint32_t)(shared->greys[slot] * AUGMENT_ONE / (uint64_t)pixels);
    }
    __syncthreads();
}

/* Computes the tables of operation `op`, which counts values, for the images in slots [first, last]. */
static __device__ void count(const GatherSet &set, const Ops &ops, int op, int first, int last, Shared *shared) {
    const int pixels = set.height * set.width;
    uint32_t *counts = counts_of();
    for (int slot = first; slot <= last; slot++) {
        const AugmentDrawn *drawn = &shared->drawn[slot * ops.count + op];
        if (!drawn->acts) continue;
        const Pair pair = pair_of(set, ops, *shared, slot);
        for (int i = (int)threadIdx.x; i < TABLE; i += BLOCK) counts[i] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < pixels; i += BLOCK) {
            const AugmentPixel pixel =
                unpacked(compute_pixel_before(ops, pair, pair.own, op, i / set.width, i % set.width));
            for (int c = 0; c < CHANNELS; c++) atomicAdd(&counts[c * AUGMENT_LEVELS + pixel.value[c]], 1u);
        }
        __syncthreads();
        if (threadIdx.x < CHANNELS) {
            const int at = (int)threadIdx.x * AUGMENT_LEVELS;
            augment_op_table(&ops.op[op].op, drawn, counts + at, tables_of(ops, slot) + ops.op[op].table * TABLE + at);
        }
        __syncthreads();
    }
}

/* How many blocks should be resident per multiprocessor, given their registers: capability 7.5 has fewer threads. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define GATHER_NEIGHBOURS (1024 / BLOCK)
#else
#define GATHER_NEIGHBOURS (1536 / BLOCK)
#endif

/* The images of a block share its threads; each image's draws are made by as many threads as there are operations. If
 * images are mixed, a block also has the image before its first, in slot 0; its own are in slots 1 and up. */
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
        const int from = op < ops.mixing ? skipped : 1;
        if (ops.op[op].mean) measure(set, ops, op, from, here, &shared);
        if (ops.op[op].phase == AUGMENT_HISTOGRAM) count(set, ops, op, from, here, &shared);
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
    Op out = {*op, entry->phase, entry->mean, false, 0, 0};
    const AugmentFill *fill = augment_op_fill(op);
    if (fill == NULL) return out;
    out.reflect = fill->reflect;
    for (int c = 0; c < CHANNELS; c++) out.colour |= (uint32_t)(uint8_t)fill->colour[c] << (8 * c);
    return out;
}

static bool is_barrier(AugmentPhase phase) {
    return phase == AUGMENT_LOCAL || phase == AUGMENT_BOX || phase == AUGMENT_MIX;
}

static Status check_op(const AugmentOp *op, AugmentSize size) {
    const AugmentKey key = {};
    const AugmentDrawn drawn = augment_op_draw(op, &key, true, size);
    if (op->normalized) FAIL(STATUS_ARGUMENT, "on the GPU, nothing can be filled after the normalisation");
    const AugmentEntry *entry = augment_entry(op->kind);
    if (entry->phase == AUGMENT_POSITIONAL) FAIL(STATUS_ARGUMENT, "%s cannot be done on the GPU", entry->name);
    if (entry->phase != AUGMENT_MOVE) return STATUS_OK;
    if (drawn.height == size.height && drawn.width == size.width) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a crop on the GPU keeps the size %d x %d; it cannot give %d x %d", size.height, size.width,
         drawn.height, drawn.width);
}

extern "C" Status augment_gather_check(const AugmentOp *ops, int op_count, int height, int width) {
    AugmentSpec spec = {};
    Augment *augment = NULL;
    int barriers = 0, tables = 0;
    if (op_count < 0 || op_count > GATHER_MAX_OPS) {
        FAIL(STATUS_ARGUMENT, "at most %d image operations can be done on the GPU, not %d", GATHER_MAX_OPS, op_count);
    }
    spec.height = height;
    spec.width = width;
    spec.op_count = op_count;
    for (int i = 0; i < op_count; i++) spec.ops[i] = ops[i];
    TRY(augment_create(&spec, &augment));
    augment_destroy(augment);
    if ((int64_t)height * width * CHANNELS > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "images of %d x %d are too large for operations on the GPU", height, width);
    }
    for (int i = 0; i < op_count; i++) {
        const AugmentSize size = {height, width};
        TRY(check_op(&ops[i], size));
        barriers += is_barrier(augment_entry(ops[i].kind)->phase);
        tables += augment_entry(ops[i].kind)->phase == AUGMENT_HISTOGRAM;
    }
    if (tables > TABLES) {
        FAIL(STATUS_ARGUMENT, "on the GPU, at most %d operations may count an image's values, not %d", TABLES, tables);
    }
    if (barriers <= BARRIERS) return STATUS_OK;
    FAIL(STATUS_ARGUMENT,
         "on the GPU, at most %d operations may mix, blur or sharpen images, as each round of RandAugment does, not %d",
         BARRIERS, barriers);
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
        if (phase == AUGMENT_HISTOGRAM) taken.op[i].table = taken.tables++;
        colours = colours || phase == AUGMENT_COLOUR || phase == AUGMENT_WARP || phase == AUGMENT_HISTOGRAM;
    }
    if (!colours && taken.levels == 0) taken.levels = PLAIN;
    return taken;
}

typedef void (*GatherKernel)(GatherSet, const int32_t *, const GatherClock *, int, Ops, int, uint8_t *, int64_t *);

template <int PIXELS> static GatherKernel gather_kernel(int levels) {
    if (levels == PLAIN) return augment_gather_kernel<PIXELS, PLAIN>;
    if (levels == 0) return augment_gather_kernel<PIXELS, 0>;
    if (levels == 1) return augment_gather_kernel<PIXELS, 1>;
    return levels == 2 ? augment_gather_kernel<PIXELS, 2> : augment_gather_kernel<PIXELS, 3>;
}

extern "C" Status augment_gather_batch(const GatherSet *set, const int32_t *order, const GatherClock *clock, int batch,
                                       const AugmentOp *ops, int op_count, uint8_t *to, int64_t *to_labels,
                                       DeviceStream *stream) {
    const Ops taken = make_ops(ops, op_count);
    int pixels = set->height * set->width;
    bool wide = pixels % BYTES_16 == 0;
    int units = wide ? pixels / BYTES_16 : pixels;
    int block_images = units <= BLOCK / BLOCK_IMAGES ? BLOCK_IMAGES : units < BLOCK ? BLOCK / units : 1;
    const unsigned blocks = (unsigned)ceil_div((size_t)batch, (size_t)block_images);
    const GatherKernel kernel = wide ? gather_kernel<BYTES_16>(taken.levels) : gather_kernel<1>(taken.levels);
    return LAUNCH_AFTER(kernel, blocks, BLOCK, tables_bytes(taken.tables), stream, *set, order, clock, batch, taken,
                        block_images, to, to_labels);
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
