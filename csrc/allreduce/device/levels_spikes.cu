/* Two levels with the codec "spikes". */
#include "allreduce/device/levels.cuh"

extern "C" EXCHANGE_LEVELS(allreduce_levels_spikes) {
    return levels_launch<QUANT_SPIKES>(kernel, plan, levels, round, buffer, stream);
}
