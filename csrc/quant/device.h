/* The quantiser for tensors in device memory; gives the same bytes as quantize.h. In quant/cuda/, or
 * cuda_none.c in a build without CUDA, where everything fails with STATUS_NOT_BUILT. */
#ifndef CGXFFCV_QUANT_DEVICE_H
#define CGXFFCV_QUANT_DEVICE_H

#include "device/device.h"
#include "quant/quantize.h"

/* A tensor and its piece on the wire, both in device memory, borrowed while the batch lives. */
typedef struct QuantDeviceRun {
    QuantSpec spec;
    void *x; /* of the spec's type, aligned to it */
    int64_t elems;
    QuantRandom random;
    void *wire; /* quantize_wire_bytes, at a multiple of QUANTIZE_PIECE_ALIGNMENT; padding is left as it is */
} QuantDeviceRun;

/* Many runs, of one type and codec, in one launch, or a few: whole pieces take a fast path of their own. */
typedef struct QuantDeviceBatch QuantDeviceBatch;

/* STATUS_ARGUMENT if a spec is invalid, or types or codecs differ. */
Status quantize_batch_create(const QuantDeviceRun *runs, int count, QuantDeviceBatch **out);
void quantize_batch_destroy(QuantDeviceBatch *batch);

/* Enqueue the work on the stream: x to wire, and wire to x. */
Status quantize_batch_encode(const QuantDeviceBatch *batch, DeviceStream *stream);
Status quantize_batch_decode(const QuantDeviceBatch *batch, DeviceStream *stream);

/* Waits for the stream; STATUS_TRANSPORT if a piece that was decoded cannot be what a peer wrote. */
Status quantize_batch_finish(const QuantDeviceBatch *batch, DeviceStream *stream);

#endif
