/* Stands in for dnnl.c in a build without oneDNN. */
#include "nn/cpu/conv.h"

Status nn_cpu_dnnl_supported(Precision precision) {
    (void)precision;
    FAIL(STATUS_NOT_BUILT, "this build has no convolutions on CPUs, which need oneDNN 3. Run pip install "
                           "onednn-devel-cpu-gomp onednn-cpu-gomp and build again (CGXFFCV_ONEDNN=1 requires it)");
}

const char *nn_cpu_dnnl_name(void) { return ""; }

Status nn_cpu_dnnl_conv_create(const ConvNeed *need, Conv **out) {
    (void)out;
    return nn_cpu_dnnl_supported(need->precision);
}
