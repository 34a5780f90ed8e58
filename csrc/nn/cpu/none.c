/* The twin of dnnl.c in a build without oneDNN. */
#include "nn/cpu/conv.h"

Status conv_supported(Precision precision) {
    (void)precision;
    FAIL(STATUS_NOT_BUILT, "this build has no convolutions for the processor, which need oneDNN 3. Run pip install "
                           "onednn-devel-cpu-gomp onednn-cpu-gomp and build again (CGXFFCV_ONEDNN=1 insists on it)");
}

Status conv_create(const ConvShape *shape, ConvDirection direction, Precision precision, const int *images, int count,
                   int threads, Conv **out) {
    (void)shape, (void)direction, (void)images, (void)count, (void)threads, (void)out;
    return conv_supported(precision);
}

void conv_destroy(Conv *conv) { (void)conv; }

size_t conv_scratch_bytes(const Conv *conv) {
    (void)conv;
    return 0;
}

Status conv_pack(Conv *conv, const float *filters, int part, int parts) {
    (void)conv, (void)filters, (void)part, (void)parts;
    return conv_supported(PRECISION_FLOAT32);
}

Status conv_run(Conv *conv, int thread, int images, const void *from, void *to, void *scratch) {
    (void)conv, (void)thread, (void)images, (void)from, (void)to, (void)scratch;
    return conv_supported(PRECISION_FLOAT32);
}

size_t conv_partial_elems(const Conv *conv) {
    (void)conv;
    return 0;
}

Status conv_run_filter(Conv *conv, int thread, int images, const void *input, const void *output_gradient, bool add,
                       float *partial, float *sum, void *scratch) {
    (void)conv, (void)thread, (void)images, (void)input, (void)output_gradient, (void)add;
    (void)partial, (void)sum, (void)scratch;
    return conv_supported(PRECISION_FLOAT32);
}

void conv_unpack(const Conv *conv, const float *partials, int count, size_t stride, float *gradient, int part,
                 int parts) {
    (void)conv, (void)partials, (void)count, (void)stride, (void)gradient, (void)part, (void)parts;
}
