/* Opens cuDNN. The wheels nvidia-cudnn-cu12 and -cu13 install theirs in the same place, so the library is asked which
 * CUDA it was built for. */
#include "nn/cuda/conv/cudnn_library.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>

#include "nn/libraries.h"

#define REMEDY "pip install 'cgxffcv[cuda13]', or apt install libcudnn9-cuda-13"

NnCudnn nn_cudnn;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char load_why[LIBRARY_WHY_BYTES]; /* why it is not loaded; "" if it is */
static int version;

static void cudnn_find_all(void *library, const char *path) {
#define NN_CUDNN_FIND(name)                                                                                            \
    if (load_why[0] == '\0' && !library_function(library, #name, &nn_cudnn.name)) {                                    \
        snprintf(load_why, sizeof load_why, "%.300s has no " #name ": " REMEDY, path);                                 \
    }
    NN_CUDNN_CALLS(NN_CUDNN_FIND)
#undef NN_CUDNN_FIND
}

static void cudnn_load(void) {
    static const LibraryRequest request = {.variable = "CGXFFCV_CUDNN_LIBRARY",
                                           .package = "nvidia/cudnn/lib/libcudnn.so.9",
                                           .name = "libcudnn.so.9",
                                           .remedy = REMEDY};
    char path[LIBRARY_PATH_BYTES];
    void *library = library_open(&request, load_why);
    if (library == NULL) return;
    library_path(library, path);
    cudnn_find_all(library, path);
    if (load_why[0] != '\0') return;
    int found = (int)nn_cudnn.cudnnGetVersion(), cuda = (int)nn_cudnn.cudnnGetCudartVersion();
    if (found / 10000 != CUDNN_MAJOR || cuda / 1000 != CUDART_VERSION / 1000) {
        snprintf(load_why, sizeof load_why,
                 "%.300s is cuDNN %d for CUDA %d, but this build needs cuDNN %d for CUDA %d: " REMEDY
                 " (first pip uninstall the one for another CUDA)",
                 path, found / 10000, cuda / 1000, CUDNN_MAJOR, CUDART_VERSION / 1000);
        return;
    }
    version = found;
}

Status nn_cudnn_open(void) {
    pthread_once(&once, cudnn_load);
    if (load_why[0] != '\0') FAIL(STATUS_NOT_BUILT, "convolutions on GPUs need cuDNN: %s", load_why);
    return STATUS_OK;
}

int nn_cudnn_version(void) {
    pthread_once(&once, cudnn_load);
    return version;
}
