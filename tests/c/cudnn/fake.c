/* Stands in for a libcudnn of VERSION for CUDA of CUDA_VERSION_SAID; without FUNCTIONS, for one that lacks the rest. */
#include <stddef.h>

size_t cudnnGetVersion(void) { return VERSION; }
size_t cudnnGetCudartVersion(void) { return CUDA_VERSION_SAID; }

#ifdef FUNCTIONS
#define STUB(name)                                                                                                     \
    int name(void) { return 0; }
STUB(cudnnGetErrorString)
STUB(cudnnGetLastErrorString)
STUB(cudnnCreate)
STUB(cudnnSetStream)
STUB(cudnnBackendCreateDescriptor)
STUB(cudnnBackendDestroyDescriptor)
STUB(cudnnBackendFinalize)
STUB(cudnnBackendGetAttribute)
STUB(cudnnBackendSetAttribute)
STUB(cudnnBackendExecute)
#endif
