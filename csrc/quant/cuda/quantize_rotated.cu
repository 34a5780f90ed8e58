/* Tensors in device memory with the codec "rotated". */
#include "quant/cuda/quantize.cuh"

extern "C" Status quant_launch_rotated(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    return quant_launch<QUANT_ROTATED>(batch, encode, stream);
}
