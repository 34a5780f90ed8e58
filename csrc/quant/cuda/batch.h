/* A batch as kernels see it, and who launches them. Private to quant/. */
#ifndef CGXFFCV_QUANT_CUDA_BATCH_H
#define CGXFFCV_QUANT_CUDA_BATCH_H

#include "quant/device.h"

#define QUANT_WARPS 8 /* of a block */

typedef struct QuantItem {
    QuantDeviceRun run;
    QuantLayout layout;
    int shift;                   /* of what goes the quick way: buckets have 2^shift elements */
    int64_t pieces, first_quick; /* that go it, and the first block that takes some */
    int64_t skipped;             /* the buckets in them */
    int64_t first_block;         /* of those that take the buckets behind them */
} QuantItem;

struct QuantDeviceBatch {
    QuantItem *items;  /* owned, device memory, [count] */
    uint32_t *damaged; /* owned, page-locked: not 0 if a piece was */
    int count;
    int64_t quick_blocks, blocks;
    uint32_t shifts; /* bit s: some buckets of 2^s elements go the quick way */
    bool draws;      /* some run is rounded by random numbers */
    QuantType type;
    QuantCodec codec;
};

/* Puts the kernels that encode or decode on the stream, one function for each codec: quant_launch_maxmin and so on. */
#define X(number, word) Status quant_launch_##word(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream);
QUANT_CODECS(X)
#undef X

#endif
