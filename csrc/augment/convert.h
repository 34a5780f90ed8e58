/* What follows a chain of operations, for batches in device memory: normalisation, another type, another layout. uint8
 * has 256 values per channel, so the CPU makes a table of them, and a kernel looks pixels up in it: the results are
 * bitwise the same as on the CPU. */
#ifndef CGXFFCV_AUGMENT_CONVERT_H
#define CGXFFCV_AUGMENT_CONVERT_H

#include "augment/augment.h"
#include "device/device.h"

#define AUGMENT_TABLE_VALUES (AUGMENT_CHANNELS * AUGMENT_LEVELS)

/* Fills `table` (3, 256) of spec->type with the result for each value of each channel of uint8. Only the spec's
 * normalisation and types are used. */
Status augment_convert_table(const AugmentSpec *spec, void *table);

/* Fills `to`, (count, height, width, 3) or (count, 3, height, width), aligned to 16 bytes, from images (count, height,
 * width, 3) and a table of items of `item_bytes` (1, 2, 4), all in device memory. Only enqueues work on the stream. */
Status augment_convert_batch(const uint8_t *images, int count, int height, int width, const void *table,
                             size_t item_bytes, ImageLayout layout, void *to, DeviceStream *stream);

#endif
