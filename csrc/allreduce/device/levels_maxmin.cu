/* Two levels with the codec "maxmin". */
#include "allreduce/device/levels.cuh"

extern "C" EXCHANGE_LEVELS(allreduce_levels_maxmin) {
    return levels_launch<QUANT_MAXMIN>(kernel, plan, levels, round, buffer, stream);
}
