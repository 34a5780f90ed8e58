/* A hash of buffers in device memory, computed there: ranks compare it to check that their replicas are equal. */
#ifndef CGXFFCV_TRAIN_FINGERPRINT_H
#define CGXFFCV_TRAIN_FINGERPRINT_H

#include "device/device.h"

/* On the stream: *sum += the sum over i of mix((first + i) << 32 | bits of values[i]), modulo 2^64, where mix is the
 * finaliser of SplitMix64. Integer addition is associative, so the order does not matter. mix is injective, so changing
 * any single value always changes the sum. `first`: number of values before these in the same sum; at most 2^32 in
 * total. Device memory throughout. In fingerprint.cu, or fingerprint_none.c without CUDA. */
Status train_fingerprint_add(const float *values, size_t count, uint64_t first, uint64_t *sum, DeviceStream *stream);

#endif
