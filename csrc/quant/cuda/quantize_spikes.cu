/* Tensors in device memory with the codec "maxmin_spikes". */
#include "quant/cuda/quantize.cuh"

extern "C" Status quant_launch_spikes(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    return quant_launch<QUANT_SPIKES>(batch, encode, stream);
}
