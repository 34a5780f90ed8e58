/* Opens cuDNN as the first convolution does, and prints its version, or why there is none. */
#include <stdio.h>

#include "nn/cuda/conv/cudnn_library.h"
#include "nn/libraries.h"

int main(void) {
    Status status = nn_cudnn_open();
    printf("%d %s\n", nn_cudnn_version(), status == STATUS_OK ? "" : error_record()->message);
    return (int)status;
}
