/* The device interface on top of the CUDA runtime. Owns nothing but what its handles refer to. */
#include "device/device.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "device/probe.h"

#define OLDEST_MAJOR 7
#define OLDEST_MINOR 5

static int count;
static char why[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What the user can do about it; "" where the error's own text says enough. */
static const char *remedy(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation:
        return ": use a smaller batch or another GPU (nvidia-smi shows which processes use its memory)";
    case cudaErrorDevicesUnavailable:
        return ": another process holds the GPU exclusively (see nvidia-smi)";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorMisalignedAddress:
    case cudaErrorAssert:
        return ": a kernel failed, and this process can no longer use the GPU; restart it";
    case cudaErrorECCUncorrectable:
        return ": the GPU's memory is faulty, use another GPU";
    case cudaErrorNoKernelImageForDevice:
        return ": rebuild with CGXFFCV_CUDA_ARCH set to this GPU's compute capability";
    default:
        return "";
    }
}

static Status cuda_fail(cudaError_t error, const char *what) {
    Status code = error == cudaErrorMemoryAllocation ? STATUS_MEMORY : STATUS_CUDA;
    (void)cudaGetLastError();
    return error_fail(code, "%s: %s (%s)%s", what, cudaGetErrorString(error), cudaGetErrorName(error), remedy(error));
}

#define TRY_CUDA(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t try_cuda_ = (call);                                                                                \
        if (try_cuda_ != cudaSuccess) return cuda_fail(try_cuda_, #call);                                              \
    } while (0)

static void probe(void) {
    int driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return;
    (void)cudaGetLastError();
    count = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0) {
        snprintf(why, sizeof why, "this build has CUDA, but no NVIDIA driver is loaded: install one for CUDA %d.%d",
                 runtime / 1000, runtime % 1000 / 10);
    } else if (error == cudaErrorInsufficientDriver) {
        snprintf(why, sizeof why, "the NVIDIA driver supports CUDA %d.%d; this build needs %d.%d: update the driver",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    } else {
        snprintf(why, sizeof why, "no CUDA device: %s; check nvidia-smi and the variable CUDA_VISIBLE_DEVICES",
                 cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
    }
}

int device_count(void) {
    pthread_once(&once, probe);
    return count;
}

const char *device_why(void) {
    pthread_once(&once, probe);
    return why;
}

const char *device_architectures(void) { return device_probe_architectures(); }

static Status check_index(int index) {
    if (device_count() == 0) FAIL(STATUS_CUDA, "no usable GPU: %s", device_why());
    if (index < 0 || index >= count) {
        FAIL(STATUS_ARGUMENT, "there is no GPU %d: this process sees %d (numbered from 0)", index, count);
    }
    return STATUS_OK;
}

Status device_describe(int index, DeviceInfo *out) {
    struct cudaDeviceProp properties;
    DeviceInfo info = {0};
    TRY(check_index(index));
    TRY_CUDA(cudaGetDeviceProperties(&properties, index));
    snprintf(info.name, sizeof info.name, "%s", properties.name);
    snprintf(info.bus, sizeof info.bus, "%04x:%02x:%02x", (unsigned)properties.pciDomainID,
             (unsigned)properties.pciBusID, (unsigned)properties.pciDeviceID);
    info.memory_bytes = properties.totalGlobalMem;
    info.major = properties.major;
    info.minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.shared_bytes = properties.sharedMemPerBlockOptin;
    TRY_CUDA(cudaDriverGetVersion(&info.driver_version));
    TRY_CUDA(cudaRuntimeGetVersion(&info.runtime_version));
    *out = info;
    return STATUS_OK;
}

Status device_free_memory(size_t *out) {
    size_t free_bytes = 0, total = 0;
    TRY_CUDA(cudaMemGetInfo(&free_bytes, &total));
    *out = free_bytes;
    return STATUS_OK;
}

static Status check_code(int index) {
    int major = 0, minor = 0;
    TRY_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    TRY_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    if (major < OLDEST_MAJOR || (major == OLDEST_MAJOR && minor < OLDEST_MINOR)) {
        FAIL(STATUS_CUDA, "GPU %d has compute capability %d.%d; this library needs %d.%d or newer", index, major, minor,
             OLDEST_MAJOR, OLDEST_MINOR);
    }
    cudaError_t error = (cudaError_t)device_probe();
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
        error == cudaErrorUnsupportedPtxVersion) {
        (void)cudaGetLastError();
        FAIL(STATUS_CUDA,
             "GPU %d has compute capability %d.%d, and this build's code (for %s) does not run on it: rebuild with "
             "CGXFFCV_CUDA_ARCH=%d%d",
             index, major, minor, device_probe_architectures(), major, minor);
    }
    TRY_CUDA(error);
    return STATUS_OK;
}

Status device_select(int index) {
    static _Atomic uint64_t checked; /* one bit per device */
    int before = 0;
    TRY(check_index(index));
    TRY_CUDA(cudaGetDevice(&before));
    TRY_CUDA(cudaSetDevice(index));
    uint64_t bit = index < 64 ? (uint64_t)1 << index : 0;
    if ((checked & bit) != 0) return STATUS_OK;
    bool plain; /* read when kernels are launched, which cannot refuse it */
    Status status = device_probe_launch(&plain);
    if (status == STATUS_OK) status = check_code(index);
    if (status == STATUS_OK)
        checked |= bit;
    else if (before != index)
        (void)cudaSetDevice(before);
    return status;
}

Status device_current(int *out) {
    TRY(check_index(0));
    TRY_CUDA(cudaGetDevice(out));
    return STATUS_OK;
}

Status device_locate(const void *address, int *out) {
    struct cudaPointerAttributes attributes;
    TRY(check_index(0));
    TRY_CUDA(cudaPointerGetAttributes(&attributes, address));
    bool there = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    *out = there ? attributes.device : -1;
    return STATUS_OK;
}

Status device_alloc(size_t bytes, void *out) {
    void *pointer = NULL;
    cudaError_t error = cudaMalloc(&pointer, bytes == 0 ? 1 : bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&free_bytes, &total);
        FAIL(STATUS_MEMORY, "cannot allocate %zu MiB of GPU memory: %zu of %zu MiB are free%s", (bytes >> 20) + 1,
             free_bytes >> 20, total >> 20, remedy(error));
    }
    TRY_CUDA(error);
    memcpy(out, &pointer, sizeof pointer);
    return STATUS_OK;
}

/* cudaFree(NULL) would set up the device. */
void device_free(void *pointer) {
    if (pointer != NULL) (void)cudaFree(pointer);
}

Status device_host_alloc(size_t bytes, void *out) {
    void *pointer = NULL;
    cudaError_t error = cudaHostAlloc(&pointer, bytes == 0 ? 1 : bytes, cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        FAIL(STATUS_MEMORY, "cannot allocate %zu MiB of page-locked memory: check `ulimit -l` and the free memory",
             (bytes >> 20) + 1);
    }
    TRY_CUDA(error);
    memcpy(out, &pointer, sizeof pointer);
    return STATUS_OK;
}

void device_host_free(void *pointer) {
    if (pointer != NULL) (void)cudaFreeHost(pointer);
}

Status device_host_register(void *memory, size_t bytes, void *out) {
    void *mapped = NULL;
    TRY_CUDA(cudaHostRegister(memory, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
    cudaError_t error = cudaHostGetDevicePointer(&mapped, memory, 0);
    if (error != cudaSuccess) {
        (void)cudaHostUnregister(memory);
        return cuda_fail(error, "cudaHostGetDevicePointer");
    }
    memcpy(out, &mapped, sizeof mapped);
    return STATUS_OK;
}

void device_host_unregister(void *memory) {
    if (memory != NULL) (void)cudaHostUnregister(memory);
}

Status device_share(void *memory, unsigned char handle[DEVICE_HANDLE_BYTES]) {
    cudaIpcMemHandle_t made;
    _Static_assert(sizeof made == DEVICE_HANDLE_BYTES, "the size of a handle");
    TRY_CUDA(cudaIpcGetMemHandle(&made, memory));
    memcpy(handle, &made, sizeof made);
    return STATUS_OK;
}

Status device_shared_open(const unsigned char handle[DEVICE_HANDLE_BYTES], void *out) {
    cudaIpcMemHandle_t given;
    void *memory = NULL;
    memcpy(&given, handle, sizeof given);
    TRY_CUDA(cudaIpcOpenMemHandle(&memory, given, cudaIpcMemLazyEnablePeerAccess));
    memcpy(out, &memory, sizeof memory);
    return STATUS_OK;
}

void device_shared_close(void *memory) {
    if (memory != NULL) (void)cudaIpcCloseMemHandle(memory);
}

Status device_stream_create(DeviceStream **out) {
    cudaStream_t stream;
    TRY_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    *out = (DeviceStream *)stream;
    return STATUS_OK;
}

void device_stream_destroy(DeviceStream *stream) {
    if (stream != NULL) (void)cudaStreamDestroy((cudaStream_t)stream);
}

Status device_stream_synchronize(DeviceStream *stream) {
    TRY_CUDA(cudaStreamSynchronize((cudaStream_t)stream));
    return STATUS_OK;
}

Status device_synchronize(void) {
    TRY_CUDA(cudaDeviceSynchronize());
    return STATUS_OK;
}

/* Clears cudaErrorNotReady, so that no later call reports it as its own error. */
Status device_query(DeviceStream *stream, DeviceEvent *event, bool *done) {
    cudaError_t error = event == NULL ? cudaStreamQuery((cudaStream_t)stream) : cudaEventQuery((cudaEvent_t)event);
    *done = error == cudaSuccess;
    if (error == cudaSuccess) return STATUS_OK;
    (void)cudaGetLastError();
    return error == cudaErrorNotReady ? STATUS_OK : cuda_fail(error, "the GPU failed");
}

Status device_capturing(DeviceStream *stream, bool *out) {
    enum cudaStreamCaptureStatus capture;
    TRY_CUDA(cudaStreamIsCapturing((cudaStream_t)stream, &capture));
    *out = capture != cudaStreamCaptureStatusNone;
    return STATUS_OK;
}

void device_relax_capture(void) {
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) (void)cudaGetLastError();
}

Status device_copy(void *to, const void *from, size_t bytes, DeviceStream *stream) {
    if (bytes == 0) return STATUS_OK;
    TRY_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
    return STATUS_OK;
}

Status device_fill(void *to, int byte, size_t bytes, DeviceStream *stream) {
    if (bytes == 0) return STATUS_OK;
    TRY_CUDA(cudaMemsetAsync(to, byte, bytes, (cudaStream_t)stream));
    return STATUS_OK;
}

Status device_event_create(DeviceEvent **out) {
    cudaEvent_t event;
    TRY_CUDA(cudaEventCreate(&event));
    *out = (DeviceEvent *)event;
    return STATUS_OK;
}

void device_event_destroy(DeviceEvent *event) {
    if (event != NULL) (void)cudaEventDestroy((cudaEvent_t)event);
}

Status device_event_record(DeviceEvent *event, DeviceStream *stream) {
    TRY_CUDA(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
    return STATUS_OK;
}

Status device_event_synchronize(DeviceEvent *event) {
    TRY_CUDA(cudaEventSynchronize((cudaEvent_t)event));
    return STATUS_OK;
}

Status device_stream_wait(DeviceStream *stream, DeviceEvent *event) {
    TRY_CUDA(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
    return STATUS_OK;
}

Status device_event_elapsed(DeviceEvent *begin, DeviceEvent *end, float *out_ms) {
    TRY_CUDA(cudaEventElapsedTime(out_ms, (cudaEvent_t)begin, (cudaEvent_t)end));
    return STATUS_OK;
}

Status device_capture_begin(DeviceStream *stream) {
    TRY_CUDA(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
    return STATUS_OK;
}

Status device_capture_end(DeviceStream *stream, Status recorded, DeviceGraph **out) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    if (recorded != STATUS_OK) {
        bool whole = cudaStreamEndCapture((cudaStream_t)stream, &graph) == cudaSuccess;
        (void)(whole ? cudaGraphDestroy(graph) : cudaGetLastError());
        return recorded;
    }
    TRY_CUDA(cudaStreamEndCapture((cudaStream_t)stream, &graph));
    cudaError_t error = cudaGraphInstantiate(&ready, graph, 0);
    (void)cudaGraphDestroy(graph);
    TRY_CUDA(error);
    error = cudaGraphUpload(ready, (cudaStream_t)stream);
    if (error != cudaSuccess) {
        (void)cudaGraphExecDestroy(ready);
        return cuda_fail(error, "cudaGraphUpload");
    }
    *out = (DeviceGraph *)ready;
    return STATUS_OK;
}

Status device_graph_launch(DeviceGraph *graph, DeviceStream *stream) {
    TRY_CUDA(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
    return STATUS_OK;
}

void device_graph_destroy(DeviceGraph *graph) {
    if (graph != NULL) (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}
