/* Tensors in device memory with the codec "sign". */
#include "quant/cuda/quantize.cuh"

extern "C" Status quant_launch_sign(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    return quant_launch<QUANT_SIGN>(batch, encode, stream);
}
