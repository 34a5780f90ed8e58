/* The CUDA runtime's functions that the project calls, on the host: streams run what is put on them at once, captures
 * keep it for the graph's launches.
 *
 * Device memory lies in pages that the host can touch only while device work runs: a host access is a segmentation
 * fault, as a GPU would give. It is filled with 0xFF; what lies between its end and the end of its page is compared
 * when it is freed. CGXFFCV_EMULATED_DEVICES (1), _MEMORY (bytes of one device) and _FAULT (no_driver, old_driver,
 * old_gpu, no_code) make other machines of this one. */
#include "machine.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <map>
#include <mutex>
#include <set>
#include <vector>

typedef std::function<cudaError_t()> Work;

namespace {

const size_t PAGE = 4096, ARENA_BYTES = (size_t)1 << 40;
const unsigned char POISON = 0xff, FENCE = 0xa5;
const int VERSION = 13000, OLD_VERSION = 11040, MULTIPROCESSORS = 4;
const size_t SHARED_OPT_IN = 227 << 10;

struct Stream;

struct Graph {
    std::vector<Work> work;
    Stream *origin;
    std::set<Stream *> joined;
    bool broken;
    int device;
};

struct Stream {
    int device;
    Graph *capture;
    uint64_t put;    /* works of this capture */
    uint64_t waited; /* of them, the origin waits for these */
};

struct Event {
    int device;
    bool recorded;
    double milliseconds;
    Graph *capture;
    Stream *stream;
    uint64_t put;
};

struct Allocation {
    size_t bytes, pages;
    int device;
};

std::recursive_mutex lock;
std::map<char *, Allocation> allocations;
std::map<void *, size_t> pinned;
std::set<Stream *> streams;
std::map<int, size_t> used;
char *arena;
size_t arena_used;
int open_depth;
thread_local int current_device;
thread_local cudaError_t last_error;
thread_local std::vector<Graph *> captures; /* begun by this thread */

typedef std::lock_guard<std::recursive_mutex> Locked;

cudaError_t give(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

bool fault(const char *name) {
    const char *text = getenv("CGXFFCV_EMULATED_FAULT");
    return text != nullptr && strcmp(text, name) == 0;
}

size_t number(const char *variable, size_t otherwise) {
    const char *text = getenv(variable);
    return text == nullptr ? otherwise : strtoull(text, nullptr, 0);
}

int device_total() { return (int)number("CGXFFCV_EMULATED_DEVICES", 1); }
size_t memory_total() { return number("CGXFFCV_EMULATED_MEMORY", (size_t)4 << 30); }

/* Device memory is accessible while one of these lives. */
struct Open {
    Open() {
        if (open_depth++ == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_READ | PROT_WRITE);
    }
    ~Open() {
        if (--open_depth == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_NONE);
    }
};

bool in_arena(const void *pointer) {
    return arena != nullptr && (const char *)pointer >= arena && (const char *)pointer < arena + ARENA_BYTES;
}

/* Calls that a capturing thread may not make break its captures. */
bool forbidden() {
    for (Graph *graph : captures) graph->broken = true;
    return !captures.empty();
}

Stream *stream_of(cudaStream_t handle) {
    static std::map<int, Stream> defaults;
    if ((uintptr_t)handle <= 2) {
        Stream *stream = &defaults[current_device];
        stream->device = current_device;
        return stream;
    }
    Stream *stream = (Stream *)handle;
    return streams.count(stream) ? stream : nullptr;
}

cudaError_t put(cudaStream_t handle, Work work) {
    Stream *stream = stream_of(handle);
    if (stream == nullptr || stream->device != current_device) return cudaErrorInvalidResourceHandle;
    if (stream->capture == nullptr) {
        Open open;
        return work();
    }
    stream->put++;
    stream->capture->work.push_back(work);
    return cudaSuccess;
}

/* Memory that a copy may touch: of the host, or wholly inside one allocation of the device. */
bool copyable(const void *begin, size_t bytes) {
    RegionKind kind;
    int device;
    return begin != nullptr && (!in_arena(begin) || check_known(begin, bytes, &kind, &device));
}

void copy_now(char *to, const char *from, size_t bytes) {
    memmove(to, from, bytes);
    if (!in_arena(from) || check_initialised(from, bytes)) {
        check_written(to, bytes);
        return;
    }
    for (size_t i = 0; in_arena(to) && i < bytes; i++) {
        if (check_initialised(from + i, 1)) check_written(to + i, 1);
    }
}

Work copy_work(void *to, const void *from, size_t bytes) {
    return [=]() {
        if (!copyable(to, bytes) || !copyable(from, bytes)) return cudaErrorInvalidValue;
        copy_now((char *)to, (const char *)from, bytes);
        return cudaSuccess;
    };
}

double now() {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

bool reserve_arena() {
    if (arena != nullptr) return true;
    void *memory = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    arena = (char *)memory;
    return true;
}

} // namespace

/* ---- kernels -----------------------------------------------------------------------------------------------------*/

static bool valid_shape(dim3 grid, dim3 block, size_t shared_bytes) {
    size_t threads = (size_t)block.x * block.y * block.z;
    return threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 &&
           grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && shared_bytes <= SHARED_OPT_IN;
}

cudaError_t emulator_launch(const char *name, void (*run)(void *), const void *arguments, size_t bytes, dim3 grid,
                            dim3 block, size_t shared_bytes, cudaStream_t stream) {
    Locked locked(lock);
    if (!valid_shape(grid, block, shared_bytes)) return give(cudaErrorInvalidConfiguration);
    EmulatedCall call = {std::shared_ptr<void>(malloc(bytes), free), bytes, run};
    memcpy(call.arguments.get(), arguments, bytes);
    int device = current_device;
    return give(put(stream, [=]() { return machine_run(name, call, grid, block, shared_bytes, device); }));
}

cudaError_t machine_submit(const char *name, cudaStream_t stream, std::function<void()> work,
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
        work();
        for (const Operand &operand : all) {
            if (operand.output) check_written(operand.begin, operand.bytes);
        }
        return cudaSuccess;
    }));
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *) {
    *attributes = {};
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
    *free_bytes = *total - used[current_device];
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    Locked locked(lock);
    return give(forbidden() ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return cudaSuccess;
}

/* ---- memory ------------------------------------------------------------------------------------------------------*/

cudaError_t cudaMalloc(void **out, size_t bytes) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    size_t pages = bytes / PAGE + 1;
    if (bytes > memory_total() - used[current_device] || !reserve_arena() ||
        pages > (ARENA_BYTES - arena_used) / PAGE - 1) {
        return give(cudaErrorMemoryAllocation);
    }
    char *memory = arena + arena_used;
    arena_used += (pages + 1) * PAGE; /* one page apart */
    {
        Open open;
        memset(memory, POISON, bytes);
        memset(memory + bytes, FENCE, pages * PAGE - bytes);
    }
    used[current_device] += bytes;
    allocations[memory] = Allocation{bytes, pages, current_device};
    check_add(REGION_DEVICE, memory, bytes, current_device);
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    if (pointer == nullptr) return cudaSuccess;
    auto found = allocations.find((char *)pointer);
    if (found == allocations.end()) {
        fprintf(stderr, "emulator: cudaFree of %p, which is no live allocation\n", pointer);
        abort();
    }
    Allocation allocation = found->second;
    char *memory = found->first;
    {
        Open open;
        for (size_t i = allocation.bytes; i < allocation.pages * PAGE; i++) {
            if ((unsigned char)memory[i] == FENCE) continue;
            fprintf(stderr, "emulator: byte %zu of an allocation of %zu has been written\n", i, allocation.bytes);
            abort();
        }
    }
    madvise(memory, allocation.pages * PAGE, MADV_DONTNEED);
    used[allocation.device] -= allocation.bytes;
    allocations.erase(found);
    check_remove(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    void *memory = nullptr;
    if (posix_memalign(&memory, PAGE, bytes) != 0) return give(cudaErrorMemoryAllocation);
    memset(memory, POISON, bytes);
    pinned[memory] = bytes;
    check_add(REGION_PINNED, memory, bytes, current_device);
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }

cudaError_t cudaFreeHost(void *pointer) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    if (pointer == nullptr) return cudaSuccess;
    if (pinned.erase(pointer) == 0) return give(cudaErrorInvalidValue);
    check_remove(pointer);
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *pointer, unsigned) {
    *out = pointer;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    Locked locked(lock);
    RegionKind kind;
    int device = -2;
    *attributes = {};
    bool known = check_known(pointer, 1, &kind, &device);
    attributes->type = !known                  ? cudaMemoryTypeUnregistered
                       : kind == REGION_DEVICE ? cudaMemoryTypeDevice
                                               : cudaMemoryTypeHost;
    attributes->device = device;
    attributes->devicePointer = known ? const_cast<void *>(pointer) : nullptr;
    attributes->hostPointer = attributes->type == cudaMemoryTypeDevice ? nullptr : const_cast<void *>(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind, cudaStream_t stream) {
    Locked locked(lock);
    if (bytes == 0) return cudaSuccess;
    return give(put(stream, copy_work(to, from, bytes)));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind, cudaStream_t stream) {
    Locked locked(lock);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error =
            put(stream, copy_work((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width));
        if (error != cudaSuccess) return give(error);
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream) {
    Locked locked(lock);
    return give(put(stream, [=]() {
        RegionKind kind;
        int device;
        if (!check_known(to, bytes, &kind, &device)) return cudaErrorInvalidValue;
        memset(to, byte, bytes);
        check_written(to, bytes);
        return cudaSuccess;
    }));
}

cudaError_t cudaMemset(void *to, int byte, size_t bytes) { return cudaMemsetAsync(to, byte, bytes, nullptr); }

/* ---- streams, events ---------------------------------------------------------------------------------------------*/

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    Locked locked(lock);
    Stream *stream = new Stream{};
    stream->device = current_device;
    streams.insert(stream);
    *out = (cudaStream_t)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    return cudaStreamCreateWithFlags(out, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr || streams.erase(stream) == 0) return give(cudaErrorInvalidResourceHandle);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if (stream->capture == nullptr) return cudaSuccess;
    stream->capture->broken = true;
    return give(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamQuery(cudaStream_t handle) { return cudaStreamSynchronize(handle); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    Event *event = new Event{};
    event->device = current_device;
    *out = (cudaEvent_t)event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    delete (Event *)handle;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    Locked locked(lock);
    Event *event = (Event *)handle;
    Stream *stream = stream_of(stream_handle);
    if (stream == nullptr || stream->device != event->device) return give(cudaErrorInvalidResourceHandle);
    event->capture = stream->capture;
    event->stream = stream;
    event->put = stream->put;
    if (stream->capture != nullptr) return cudaSuccess;
    event->recorded = true;
    event->milliseconds = now();
    return cudaSuccess;
}

static cudaError_t usable(Event *event) {
    if (event->capture == nullptr) return cudaSuccess;
    event->capture->broken = true;
    return cudaErrorCapturedEvent;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    Locked locked(lock);
    return give(usable((Event *)handle));
}

cudaError_t cudaEventQuery(cudaEvent_t handle) { return cudaEventSynchronize(handle); }

cudaError_t cudaEventElapsedTime(float *out, cudaEvent_t begin, cudaEvent_t end) {
    Event *first = (Event *)begin, *last = (Event *)end;
    if (!first->recorded || !last->recorded) return give(cudaErrorInvalidResourceHandle);
    *out = (float)(last->milliseconds - first->milliseconds);
    return cudaSuccess;
}

/* A wait for an event of a capture joins the stream to it. */
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    Event *event = (Event *)event_handle;
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if (stream->capture != nullptr && event->capture == nullptr) {
        if (!event->recorded) return cudaSuccess;
        stream->capture->broken = true;
        return give(cudaErrorStreamCaptureIsolation);
    }
    if (event->capture == nullptr) return cudaSuccess;
    if (stream->capture == nullptr) {
        stream->capture = event->capture;
        stream->put = stream->waited = 0;
        stream->capture->joined.insert(stream);
    }
    if (stream->capture != event->capture) return give(cudaErrorStreamCaptureMerge);
    if (event->stream != stream && event->put > event->stream->waited) event->stream->waited = event->put;
    stream->put++;
    return cudaSuccess;
}

/* ---- capture, graphs ---------------------------------------------------------------------------------------------*/

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if ((uintptr_t)handle <= 2) return give(cudaErrorStreamCaptureUnsupported);
    if (stream->capture != nullptr) return give(cudaErrorIllegalState);
    stream->capture = new Graph{};
    stream->capture->origin = stream;
    stream->capture->device = stream->device;
    captures.push_back(stream->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    *out = nullptr;
    if (stream == nullptr || stream->capture == nullptr) return give(cudaErrorIllegalState);
    Graph *graph = stream->capture;
    if (graph->origin != stream) return give(cudaErrorStreamCaptureUnmatched);
    bool unjoined = false;
    for (Stream *joined : graph->joined) {
        unjoined = unjoined || joined->waited < joined->put;
        joined->capture = nullptr;
    }
    stream->capture = nullptr;
    stream->put = stream->waited = 0;
    for (size_t i = 0; i < captures.size(); i++) {
        if (captures[i] == graph) captures.erase(captures.begin() + (long)i);
    }
    if (graph->broken || unjoined) {
        bool broken = graph->broken;
        delete graph;
        return give(broken ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    }
    *out = (cudaGraph_t)graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *out) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    *out = stream->capture == nullptr ? cudaStreamCaptureStatusNone
           : stream->capture->broken  ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    *out = (cudaGraphExec_t) new Graph(*(Graph *)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
    *count = ((Graph *)graph)->work.size();
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
    Locked locked(lock);
    Open open;
    for (const Work &work : ((Graph *)handle)->work) {
        cudaError_t error = put(stream, work);
        if (error != cudaSuccess) return give(error);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete (Graph *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete (Graph *)graph;
    return cudaSuccess;
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
    ENTRY(cudaErrorNotSupported, "operation not supported")                                                            \
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
