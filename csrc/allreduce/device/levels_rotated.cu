/* Two levels with the codec "rotated". */
#include "allreduce/device/levels.cuh"

extern "C" EXCHANGE_LEVELS(allreduce_levels_rotated) {
    return levels_launch<QUANT_ROTATED>(kernel, plan, levels, round, buffer, stream);
}
