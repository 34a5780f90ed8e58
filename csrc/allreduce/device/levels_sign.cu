/* Two levels with the codec "sign". */
#include "allreduce/device/levels.cuh"

extern "C" EXCHANGE_LEVELS(allreduce_levels_sign) {
    return levels_launch<QUANT_SIGN>(kernel, plan, levels, round, buffer, stream);
}
