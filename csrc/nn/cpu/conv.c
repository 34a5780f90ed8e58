/* Chooses how a convolution is computed. */
#include "nn/cpu/conv.h"

Status conv_create(const ConvNeed *need, Conv **out) {
    int tile = winograd_tile(need);
    if (tile > 0) return winograd_conv_create(need, tile, out);
    TRY(dnnl_supported(need->precision));
    return dnnl_conv_create(need, out);
}

void conv_destroy(Conv *conv) {
    if (conv != NULL) conv->table->destroy(conv);
}
