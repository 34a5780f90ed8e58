/* Tensors in device memory to the wire and back, many of them in one launch. A block of WARPS warps takes as many
 * buckets of one run, one a warp; blocks [first_block, first_block of the next item) belong to an item. */
#include "quant/cuda/bucket.cuh"

extern "C" {
#include "base/memory.h"
#include "quant/device.h"
}

#define WARPS 8

struct QuantItem {
    QuantDeviceRun run;
    QuantLayout layout;
    int64_t first_block;
};

struct QuantDeviceBatch {
    QuantItem *items;  /* owned, device memory, [count] */
    uint32_t *damaged; /* owned, page-locked: not 0 if a piece was */
    int count;
    int64_t blocks;
    QuantType type;
    QuantCodec codec;
};

template <QuantType TYPE, QuantCodec CODEC> struct QuantTensor {
    const void *x;
    float scale;

    __device__ __forceinline__ void piece(int64_t first, int count, float (&v)[QUANT_ROWS]) const {
        quant_load_piece<TYPE, quant_lie<CODEC>()>(x, first, count, scale, v);
    }
};

__device__ static __forceinline__ const QuantItem *quant_find_item(const QuantItem *items, int count) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (items[middle].first_block <= (int64_t)blockIdx.x) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return items + low;
}

/* The bucket of this warp. */
struct QuantBucket {
    int64_t number, first, elems; /* elems <= 0: none */
    QuantPlace place;
};

__device__ static __forceinline__ QuantBucket quant_own_bucket(const QuantItem *item) {
    int64_t size = item->run.spec.bucket_size;
    QuantBucket bucket = {};
    bucket.number = ((int64_t)blockIdx.x - item->first_block) * WARPS + threadIdx.x / WARP;
    bucket.first = bucket.number * size;
    int64_t left = item->run.elems - bucket.first;
    bucket.elems = bucket.number >= item->layout.buckets ? 0 : left < size ? left : size;
    uint64_t number = (uint64_t)bucket.number;
    bucket.place.metadata = number * item->layout.metadata;
    bucket.place.spikes = item->layout.spikes_at + number * item->layout.spikes;
    bucket.place.codes = item->layout.codes_at + number * item->layout.codes;
    return bucket;
}

__device__ static __forceinline__ QuantRandom quant_bucket_random(const QuantItem *item, const QuantBucket &bucket) {
    QuantRandom random = item->run.random;
    random.quad += (uint64_t)bucket.number * (uint64_t)((item->run.spec.bucket_size + 3) / 4);
    return random;
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(WARPS *WARP, 3) quant_encode_kernel(const QuantItem *items, int count) {
    __shared__ QuantRoom rooms[WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item(items, count);
    QuantBucket bucket = quant_own_bucket(item);
    if (bucket.elems <= 0) return;
    const QuantSpec spec = item->run.spec;
    QuantRandom random = quant_bucket_random(item, bucket);
    typedef typename QuantElement<TYPE>::Stored Stored;
    QuantTensor<TYPE, CODEC> tensor = {(const Stored *)item->run.x + bucket.first, item->run.scale};
    uint8_t *base = (uint8_t *)item->run.wire;
    QuantSink sink = {&base, 1};
    QuantKeep keep = {nullptr, 1.0f};
    const bool draws = CODEC == QUANT_ROTATED || spec.rounding == QUANT_STOCHASTIC;
    quant_warp_encode<TYPE, CODEC>(tensor, spec, bucket.elems, draws ? &random : nullptr, bucket.place, sink, keep,
                                   &rooms[threadIdx.x / WARP]);
}

/* Rotated values, which leave their domain. */
template <QuantType TYPE, int PIECES>
__device__ __forceinline__ void quant_decode_leaving(const QuantItem *item, const QuantBucket &bucket,
                                                     const QuantRandom &random, QuantRoom *room) {
    QuantValues<PIECES> values;
    quant_decode_values((const uint8_t *)item->run.wire, bucket.place, item->run.spec, bucket.elems, false, values,
                        room);
    quant_leave(values, random, room);
    quant_store_values<TYPE>(item->run.x, bucket.first, bucket.elems, values);
}

template <QuantType TYPE, QuantCodec CODEC>
static __global__ void __launch_bounds__(WARPS *WARP, 3)
    quant_decode_kernel(const QuantItem *items, int count, uint32_t *damaged) {
    __shared__ QuantRoom rooms[WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item(items, count);
    QuantBucket bucket = quant_own_bucket(item);
    if (CODEC == QUANT_ROTATED) {
        if (bucket.elems <= 0) return;
        QuantRandom random = quant_bucket_random(item, bucket);
#define CALL(PIECES) quant_decode_leaving<TYPE, PIECES>(item, bucket, random, &rooms[threadIdx.x / WARP])
        QUANT_BY_PIECES(bucket.elems, CALL)
#undef CALL
        return;
    }
    const QuantSpec spec = item->run.spec;
    float v[QUANT_ROWS];
    for (int64_t first = 0; first < bucket.elems; first += QUANT_PIECE) {
        int piece = quant_piece_count(bucket.elems, first);
        bool sound = quant_warp_decode<CODEC>((const uint8_t *)item->run.wire, bucket.place, spec, bucket.elems, first,
                                              piece, false, v, &rooms[threadIdx.x / WARP]);
        if (!sound) *damaged = 1;
        quant_store_piece<TYPE, quant_lie<CODEC>()>(item->run.x, bucket.first + first, piece, v);
    }
}

/* ---- launches ---- */

template <QuantType TYPE, QuantCodec CODEC>
static Status quant_launch(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    unsigned blocks = (unsigned)batch->blocks;
    if (encode) {
        return LAUNCH_AFTER((quant_encode_kernel<TYPE, CODEC>), blocks, WARPS * WARP, 0, stream, batch->items,
                            batch->count);
    }
    return LAUNCH_AFTER((quant_decode_kernel<TYPE, CODEC>), blocks, WARPS * WARP, 0, stream, batch->items, batch->count,
                        batch->damaged);
}

template <QuantType TYPE>
static Status quant_launch_type(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->codec == QUANT_SIGN) return quant_launch<TYPE, QUANT_SIGN>(batch, encode, stream);
    if (batch->codec == QUANT_SPIKES) return quant_launch<TYPE, QUANT_SPIKES>(batch, encode, stream);
    if (batch->codec == QUANT_ROTATED) return quant_launch<TYPE, QUANT_ROTATED>(batch, encode, stream);
    return quant_launch<TYPE, QUANT_MAXMIN>(batch, encode, stream);
}

static Status quant_launch_any(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->type == QUANT_F16) return quant_launch_type<QUANT_F16>(batch, encode, stream);
    if (batch->type == QUANT_BF16) return quant_launch_type<QUANT_BF16>(batch, encode, stream);
    return quant_launch_type<QUANT_F32>(batch, encode, stream);
}

extern "C" Status quantize_batch_encode(const QuantDeviceBatch *batch, DeviceStream *stream) {
    return quant_launch_any(batch, true, stream);
}

extern "C" Status quantize_batch_decode(const QuantDeviceBatch *batch, DeviceStream *stream) {
    return quant_launch_any(batch, false, stream);
}

extern "C" Status quantize_batch_finish(const QuantDeviceBatch *batch, DeviceStream *stream) {
    TRY(device_stream_synchronize(stream));
    if (*batch->damaged != 0) FAIL(STATUS_TRANSPORT, "a spike's index is beyond its bucket: the message is damaged");
    return STATUS_OK;
}

/* ---- making ---- */

static Status quant_fill_items(const QuantDeviceRun *runs, QuantDeviceBatch *batch, QuantItem *items) {
    for (int i = 0; i < batch->count; i++) {
        TRY(quantize_check(&runs[i].spec));
        if (runs[i].spec.type != batch->type || runs[i].spec.codec != batch->codec) {
            FAIL(STATUS_ARGUMENT, "the runs of a batch have one type and one codec");
        }
        items[i].run = runs[i];
        items[i].layout = quantize_layout(&runs[i].spec, runs[i].elems);
        items[i].first_block = batch->blocks;
        batch->blocks += (items[i].layout.buckets + WARPS - 1) / WARPS;
    }
    if (batch->blocks > INT32_MAX) FAIL(STATUS_ARGUMENT, "too many buckets for one launch");
    return STATUS_OK;
}

static Status quant_fill_batch(const QuantDeviceRun *runs, QuantDeviceBatch *batch) {
    Status status = STATUS_OK;
    QuantItem *items = nullptr;
    size_t bytes = (size_t)batch->count * sizeof *items;
    TRY(memory_calloc((size_t)batch->count, sizeof *items, &items));
    TRY_GOTO(quant_fill_items(runs, batch, items));
    TRY_GOTO(device_alloc(bytes, &batch->items));
    TRY_GOTO(device_host_alloc(sizeof *batch->damaged, &batch->damaged));
    *batch->damaged = 0;
    TRY_GOTO(device_copy(batch->items, items, bytes, nullptr));
    TRY_GOTO(device_stream_synchronize(nullptr));
done:
    memory_free(items);
    return status;
}

extern "C" Status quantize_batch_create(const QuantDeviceRun *runs, int count, QuantDeviceBatch **out) {
    Status status = STATUS_OK;
    QuantDeviceBatch *batch = nullptr;
    if (count < 1) FAIL(STATUS_ARGUMENT, "a batch has at least one run");
    TRY(memory_calloc(1, sizeof *batch, &batch));
    batch->count = count;
    batch->type = runs[0].spec.type;
    batch->codec = runs[0].spec.codec;
    TRY_GOTO(quant_fill_batch(runs, batch));
    *out = batch;
    batch = nullptr;
done:
    quantize_batch_destroy(batch);
    return status;
}

extern "C" void quantize_batch_destroy(QuantDeviceBatch *batch) {
    if (batch == nullptr) return;
    device_host_free(batch->damaged);
    device_free(batch->items);
    memory_free(batch);
}
