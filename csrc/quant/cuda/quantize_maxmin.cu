/* Tensors in device memory with the codec "maxmin". */
#include "quant/cuda/quantize.cuh"

extern "C" Status quant_launch_maxmin(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    return quant_launch<QUANT_MAXMIN>(batch, encode, stream);
}
