/* The hash of buffers in device memory, made there: what ranks compare of their replicas. */
#ifndef CGXFFCV_TRAIN_FINGERPRINT_H
#define CGXFFCV_TRAIN_FINGERPRINT_H

#include "device/device.h"

/* On the stream: *sum += the sum over i of mix((first + i) << 32 | bits of values[i]), modulo 2^64, where mix is the
 * finaliser of SplitMix64. The order of a sum of integers changes nothing. mix maps no two words to the same one, so a
 * single other value, at whatever index, always gives another sum. `first`: values before these in the same sum; all
 * together at most 2^32. Device memory throughout. fingerprint.cu; fingerprint_none.c is its twin without CUDA. */
Status train_fingerprint_add(const float *values, size_t count, uint64_t first, uint64_t *sum, DeviceStream *stream);

#endif
