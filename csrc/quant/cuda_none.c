/* The stub for a build without CUDA. */
#include "quant/device.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

static Status quant_absent(void) { FAIL(STATUS_NOT_BUILT, "this build has no CUDA. " DEVICE_CUDA_REMEDY); }

Status quantize_batch_create(const QuantDeviceRun *runs, int count, QuantDeviceBatch **out) { return quant_absent(); }

void quantize_batch_destroy(QuantDeviceBatch *batch) {}

Status quantize_batch_encode(const QuantDeviceBatch *batch, DeviceStream *stream) { return quant_absent(); }

Status quantize_batch_decode(const QuantDeviceBatch *batch, DeviceStream *stream) { return quant_absent(); }

Status quantize_batch_finish(const QuantDeviceBatch *batch, DeviceStream *stream) { return quant_absent(); }
