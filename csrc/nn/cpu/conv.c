/* Chooses how a convolution is computed. */
#include "nn/cpu/conv.h"

Status nn_cpu_conv_create(const ConvNeed *need, Conv **out) {
    int tile = nn_cpu_winograd_tile(need);
    if (tile > 0) return nn_cpu_winograd_conv_create(need, tile, out);
    TRY(nn_cpu_dnnl_supported(need->precision));
    return nn_cpu_dnnl_conv_create(need, out);
}

void nn_cpu_conv_destroy(Conv *conv) {
    if (conv != NULL) conv->table->destroy(conv);
}
