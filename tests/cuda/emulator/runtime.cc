/* The CUDA runtime's functions that the project calls, on the host: devices, launches, errors. CGXFFCV_EMULATED_DEVICES
 * (1), _MEMORY (bytes of one device), _FAULT (no_driver, old_driver, old_gpu, no_code, and busy: all devices but the
 * first) and _LOST (after so many more works on streams) make other machines of this one. */
#include "runtime.h"

#include <stdlib.h>

static const int VERSION = 13000, OLD_VERSION = 11040, MULTIPROCESSORS = 4;
static const size_t SHARED_OPT_IN = 227 << 10;

std::recursive_mutex lock;
thread_local int current_device;
static thread_local cudaError_t last_error;

cudaError_t give(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

static bool fault(const char *name) {
    const char *text = getenv("CGXFFCV_EMULATED_FAULT");
    return text != nullptr && strcmp(text, name) == 0;
}

static size_t number(const char *variable, size_t otherwise) {
    const char *text = getenv(variable);
    return text == nullptr ? otherwise : strtoull(text, nullptr, 0);
}

static int device_total() { return (int)number("CGXFFCV_EMULATED_DEVICES", 1); }
size_t memory_total() { return number("CGXFFCV_EMULATED_MEMORY", (size_t)4 << 30); }

bool lost(int works) {
    static size_t left;
    static bool counting;
    bool wanted = getenv("CGXFFCV_EMULATED_LOST") != nullptr;
    if (wanted && !counting) left = number("CGXFFCV_EMULATED_LOST", 0);
    counting = wanted;
    if (wanted && left > 0) left -= (size_t)works;
    return wanted && left == 0;
}

/* ---- kernels -----------------------------------------------------------------------------------------------------*/

static bool valid_shape(dim3 grid, dim3 block, size_t shared_bytes) {
    size_t threads = (size_t)block.x * block.y * block.z;
    return threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 &&
           grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && shared_bytes <= SHARED_OPT_IN;
}

cudaError_t emulator_launch(const char *name, void (*run)(void *), bool early, const void *arguments, size_t bytes,
                            dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    Locked locked(lock);
    if (!valid_shape(grid, block, shared_bytes)) return give(cudaErrorInvalidConfiguration);
    EmulatedCall call = {std::shared_ptr<void>(malloc(bytes), free), bytes, run, early};
    memcpy(call.arguments.get(), arguments, bytes);
    int device = current_device;
    return give(put(stream, [=]() { return machine_run(name, call, grid, block, shared_bytes, device); }));
}

cudaError_t machine_submit(const char *name, cudaStream_t stream, std::function<cudaError_t()> work,
                           std::initializer_list<Operand> operands) {
    Locked locked(lock);
    std::vector<Operand> all(operands);
    return give(put(stream, [=]() {
        for (const Operand &operand : all) {
            RegionKind kind;
            int device;
            bool known = check_known(operand.begin, operand.bytes, &kind, &device);
            if (known && (operand.output || check_initialised(operand.begin, operand.bytes))) continue;
            machine_failure = std::string(name) + (known ? " reads what nothing has written"
                                                         : " gets memory that is not (wholly) the device's");
            fprintf(stderr, "emulator: %s\n", machine_failure.c_str());
            return cudaErrorLaunchFailure;
        }
        cudaError_t error = work();
        for (const Operand &operand : all) {
            if (operand.output && error == cudaSuccess) check_written(operand.begin, operand.bytes);
        }
        return error;
    }));
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *) {
    *attributes = {};
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->sharedSizeBytes = 48 << 10; /* at most: all that there is without asking */
    return give(fault("no_code") ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}

cudaError_t cudaFuncSetAttribute(const void *, enum cudaFuncAttribute, int) { return cudaSuccess; }

/* ---- devices -----------------------------------------------------------------------------------------------------*/

cudaError_t cudaDriverGetVersion(int *version) {
    *version = fault("no_driver") ? 0 : fault("old_driver") ? OLD_VERSION : VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (fault("no_driver") || fault("old_driver")) return give(cudaErrorInsufficientDriver);
    *count = device_total();
    return give(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_total()) return give(cudaErrorInvalidDevice);
    if (device > 0 && fault("busy")) return give(cudaErrorDevicesUnavailable);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    if (device < 0 || device >= device_total()) return give(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = fault("old_gpu") ? 6 : 9;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = fault("old_gpu") ? 1 : 0;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = MULTIPROCESSORS;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)SHARED_OPT_IN;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        break;
    case cudaDevAttrWarpSize:
        *value = EMULATED_WARP;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 1 << 20;
        break;
    default:
        return give(cudaErrorNotSupported);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    *properties = {};
    cudaError_t error = cudaDeviceGetAttribute(&properties->major, cudaDevAttrComputeCapabilityMajor, device);
    if (error != cudaSuccess) return error;
    cudaDeviceGetAttribute(&properties->minor, cudaDevAttrComputeCapabilityMinor, device);
    snprintf(properties->name, sizeof properties->name, "emulated device");
    properties->uuid.bytes[0] = (char)(device + 1);
    properties->totalGlobalMem = memory_total();
    properties->multiProcessorCount = MULTIPROCESSORS;
    properties->warpSize = EMULATED_WARP;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = SHARED_OPT_IN;
    properties->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    Locked locked(lock);
    *total = memory_total();
    *free_bytes = *total - memory_used(current_device);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    Locked locked(lock);
    return give(forbidden() ? cudaErrorStreamCaptureUnsupported : finish_all(current_device));
}

/* ---- errors ------------------------------------------------------------------------------------------------------*/

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

#define ERRORS(ENTRY)                                                                                                  \
    ENTRY(cudaSuccess, "no error")                                                                                     \
    ENTRY(cudaErrorInvalidValue, "invalid argument")                                                                   \
    ENTRY(cudaErrorMemoryAllocation, "out of memory")                                                                  \
    ENTRY(cudaErrorInvalidConfiguration, "invalid configuration argument")                                             \
    ENTRY(cudaErrorInvalidDevice, "invalid device ordinal")                                                            \
    ENTRY(cudaErrorNoDevice, "no CUDA-capable device is detected")                                                     \
    ENTRY(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                 \
    ENTRY(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                   \
    ENTRY(cudaErrorDeviceUninitialized, "invalid device context")                                                      \
    ENTRY(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed")                                           \
    ENTRY(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices")                    \
    ENTRY(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped")         \
    ENTRY(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region")               \
    ENTRY(cudaErrorNotSupported, "operation not supported")                                                            \
    ENTRY(cudaErrorNotReady, "device not ready")                                                                       \
    ENTRY(cudaErrorIllegalState, "the operation cannot be performed in the present state")                             \
    ENTRY(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")                 \
    ENTRY(cudaErrorLaunchFailure, "unspecified launch failure")                                                        \
    ENTRY(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream")           \
    ENTRY(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                       \
    ENTRY(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")                \
    ENTRY(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences")              \
    ENTRY(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream")                                 \
    ENTRY(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                                        \
    ENTRY(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define NAME(code, text)                                                                                               \
    case code:                                                                                                         \
        return #code;
        ERRORS(NAME)
    default:
        return "an error the emulator does not know";
    }
}

/* With what the kernel did, where a real device knows only that it failed. */
const char *cudaGetErrorString(cudaError_t error) {
    static thread_local std::string text;
    if (error == cudaErrorLaunchFailure) {
        text = "unspecified launch failure: " + machine_failure;
        return text.c_str();
    }
    switch (error) {
#define TEXT(code, text)                                                                                               \
    case code:                                                                                                         \
        return text;
        ERRORS(TEXT)
    default:
        return "an error the emulator does not know";
    }
}
