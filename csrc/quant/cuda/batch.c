/* Batches of runs in device memory: made once, launched by the codec's own kernels. */
#include "quant/cuda/batch.h"

#include "base/memory.h"

#define X(number, word) [number] = quant_launch_##word,
static Status (*const launchers[QUANT_CODEC_COUNT])(const QuantDeviceBatch *batch, bool encode,
                                                    DeviceStream *stream) = {QUANT_CODECS(X)};
#undef X

Status quantize_batch_encode(const QuantDeviceBatch *batch, DeviceStream *stream) {
    return launchers[batch->codec](batch, true, stream);
}

Status quantize_batch_decode(const QuantDeviceBatch *batch, DeviceStream *stream) {
    return launchers[batch->codec](batch, false, stream);
}

Status quantize_batch_finish(const QuantDeviceBatch *batch, DeviceStream *stream) {
    TRY(device_stream_synchronize(stream));
    if (*batch->damaged != 0) FAIL(STATUS_TRANSPORT, "a spike's index is beyond its bucket: the message is damaged");
    return STATUS_OK;
}

/* ---- making ---- */

static int64_t quant_blocks(int64_t warps) { return (warps + QUANT_WARPS - 1) / QUANT_WARPS; }

/* Whole pieces of whole buckets go a quick way (pieces.cuh), where buckets have 2^shift elements, half a group at least
 * and what a block takes at most: shift, else 0. */
static int quant_quick_shift(const QuantSpec *spec) {
    if (spec->half_metadata) return 0;
    for (int shift = 6; spec->bucket_size >> shift != 0 && 1 << shift <= QUANT_WARPS * QUANT_PIECE; shift++) {
        if (spec->bucket_size == 1 << shift) return shift;
    }
    return 0;
}

static void quant_place_item(QuantDeviceBatch *batch, QuantItem *item) {
    const QuantSpec *spec = &item->run.spec;
    const int64_t whole = spec->bucket_size > QUANT_PIECE ? spec->bucket_size : QUANT_PIECE;
    item->layout = quantize_layout(spec, item->run.elems);
    item->shift = quant_quick_shift(spec);
    item->pieces = item->shift == 0 ? 0 : item->run.elems / whole * (whole / QUANT_PIECE);
    item->skipped = item->pieces * QUANT_PIECE / spec->bucket_size;
    item->first_quick = batch->quick_blocks;
    item->first_block = batch->blocks;
    if (item->pieces > 0) batch->shifts |= 1u << item->shift;
    batch->quick_blocks += quant_blocks(item->pieces);
    batch->blocks += quant_blocks(item->layout.buckets - item->skipped);
}

static Status quant_fill_items(const QuantDeviceRun *runs, QuantDeviceBatch *batch, QuantItem *items) {
    for (int i = 0; i < batch->count; i++) {
        TRY(quantize_check(&runs[i].spec));
        if (runs[i].spec.type != batch->type || runs[i].spec.codec != batch->codec) {
            FAIL(STATUS_ARGUMENT, "the runs of a batch have one type and one codec");
        }
        batch->draws = batch->draws || runs[i].spec.rounding == QUANT_STOCHASTIC;
        items[i].run = runs[i];
        quant_place_item(batch, &items[i]);
    }
    if (batch->blocks > INT32_MAX || batch->quick_blocks > INT32_MAX)
        FAIL(STATUS_ARGUMENT, "too many buckets for one launch");
    return STATUS_OK;
}

static Status quant_fill_batch(const QuantDeviceRun *runs, QuantDeviceBatch *batch) {
    Status status = STATUS_OK;
    QuantItem *items = NULL;
    size_t bytes = (size_t)batch->count * sizeof *items;
    TRY(memory_calloc((size_t)batch->count, sizeof *items, &items));
    TRY_GOTO(quant_fill_items(runs, batch, items));
    TRY_GOTO(device_alloc(bytes, &batch->items));
    TRY_GOTO(device_host_alloc(sizeof *batch->damaged, &batch->damaged));
    *batch->damaged = 0;
    TRY_GOTO(device_copy(batch->items, items, bytes, NULL));
    TRY_GOTO(device_stream_synchronize(NULL));
done:
    memory_free(items);
    return status;
}

Status quantize_batch_create(const QuantDeviceRun *runs, int count, QuantDeviceBatch **out) {
    Status status = STATUS_OK;
    QuantDeviceBatch *batch = NULL;
    if (count < 1) FAIL(STATUS_ARGUMENT, "a batch has at least one run");
    TRY(memory_calloc(1, sizeof *batch, &batch));
    batch->count = count;
    batch->type = runs[0].spec.type;
    batch->codec = runs[0].spec.codec;
    TRY_GOTO(quant_fill_batch(runs, batch));
    *out = batch;
    batch = NULL;
done:
    quantize_batch_destroy(batch);
    return status;
}

void quantize_batch_destroy(QuantDeviceBatch *batch) {
    if (batch == NULL) return;
    device_host_free(batch->damaged);
    device_free(batch->items);
    memory_free(batch);
}
