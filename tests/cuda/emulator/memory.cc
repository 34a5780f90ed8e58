/* Memory of the emulated devices. It lies in pages that the host can touch only while device work runs: a host access
 * is a segmentation fault, as a GPU would give. It is filled with 0xFF; what lies between its end and the end of its
 * page is compared when it is freed.
 *
 * What is shared with other processes moves into a memfd, which they open by way of /proc. CGXFFCV_EMULATED_PEER makes
 * poor machines: refused (no device can reach another's memory), dropped (what is written there goes nowhere), partial
 * (so does what is written behind the first page); CGXFFCV_EMULATED_REGISTER=0 one that cannot lock pages. */
#include "runtime.h"

#include <atomic>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

const size_t PAGE = 4096, ARENA_BYTES = (size_t)1 << 40;
const unsigned char POISON = 0xff, FENCE = 0xa5;

struct Allocation {
    size_t bytes, pages;
    int device;
    int fd; /* -1, or where it is shared with other processes */
};

/* What a process tells another of an allocation. */
struct Handle {
    uint64_t bytes;
    int32_t process, fd;
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t), "too large");

std::map<char *, Allocation> allocations;
std::map<char *, size_t> opened; /* of other processes: pages */
std::map<void *, size_t> pinned, registered;
std::map<int, size_t> used;
std::atomic<long> allocated; /* calls of cudaMalloc and cudaHostAlloc until now */
char *arena;
size_t arena_used;
int open_depth;

bool in_arena(const void *pointer) {
    return arena != nullptr && (const char *)pointer >= arena && (const char *)pointer < arena + ARENA_BYTES;
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

/* That many pages at an address of their own, one page apart; NULL if there are none left. */
char *take_pages(size_t pages) {
    if (arena == nullptr) {
        void *memory = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return nullptr;
        arena = (char *)memory;
    }
    if (pages > (ARENA_BYTES - arena_used) / PAGE - 1) return nullptr;
    char *taken = arena + arena_used;
    arena_used += (pages + 1) * PAGE;
    return taken;
}

int protection() { return open_depth > 0 ? PROT_READ | PROT_WRITE : PROT_NONE; }

void empty_pages(char *memory, size_t pages) {
    mmap(memory, pages * PAGE, protection(), MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

bool file_pages(char *memory, size_t pages, int fd, size_t first, int how) {
    return pages == 0 ||
           mmap(memory, pages * PAGE, protection(), how | MAP_FIXED, fd, (off_t)(first * PAGE)) != MAP_FAILED;
}

bool poor(const char *variable, const char *how) {
    const char *text = getenv(variable);
    return text != nullptr && strcmp(text, how) == 0;
}

} // namespace

Open::Open() {
    if (open_depth++ == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_READ | PROT_WRITE);
}

Open::~Open() {
    if (--open_depth == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_NONE);
}

/* For tests in Python, through ctypes. */
extern "C" __attribute__((visibility("default"))) long emulated_allocations(void) { return allocated; }

size_t memory_used(int device) { return used[device]; }

cudaError_t cudaMalloc(void **out, size_t bytes) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    size_t pages = bytes / PAGE + 1;
    if (bytes + used[current_device] > memory_total()) return give(cudaErrorMemoryAllocation);
    char *memory = take_pages(pages);
    if (memory == nullptr) return give(cudaErrorMemoryAllocation);
    {
        Open open;
        memset(memory, POISON, bytes);
        memset(memory + bytes, FENCE, pages * PAGE - bytes);
    }
    allocated++;
    used[current_device] += bytes;
    allocations[memory] = Allocation{bytes, pages, current_device, -1};
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
    finish_all(allocation.device);
    char *memory = found->first;
    {
        Open open;
        for (size_t i = allocation.bytes; i < allocation.pages * PAGE; i++) {
            if ((unsigned char)memory[i] == FENCE) continue;
            fprintf(stderr, "emulator: byte %zu of an allocation of %zu has been written\n", i, allocation.bytes);
            abort();
        }
    }
    empty_pages(memory, allocation.pages);
    if (allocation.fd >= 0) close(allocation.fd);
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
    allocated++;
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
    finish_all(current_device);
    if (pinned.erase(pointer) == 0) return give(cudaErrorInvalidValue);
    check_remove(pointer);
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    if (poor("CGXFFCV_EMULATED_REGISTER", "0")) return give(cudaErrorNotSupported);
    if (memory == nullptr || (uintptr_t)memory % PAGE != 0) return give(cudaErrorInvalidValue);
    if (registered.count(memory) > 0) return give(cudaErrorHostMemoryAlreadyRegistered);
    registered[memory] = bytes;
    check_add(REGION_PINNED, memory, bytes, current_device);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    finish_all(current_device);
    if (registered.erase(memory) == 0) return give(cudaErrorHostMemoryNotRegistered);
    check_remove(memory);
    return cudaSuccess;
}

/* ---- memory that processes share ---------------------------------------------------------------------------------*/

/* Moves it into a file. */
static bool make_shareable(char *memory, Allocation *allocation) {
    size_t bytes = allocation->pages * PAGE;
    int fd = memfd_create("emulated device", MFD_CLOEXEC);
    if (fd < 0) return false;
    Open open;
    bool moved = ftruncate(fd, (off_t)bytes) == 0 && pwrite(fd, memory, bytes, 0) == (ssize_t)bytes &&
                 file_pages(memory, allocation->pages, fd, 0, MAP_SHARED);
    if (!moved) {
        close(fd);
        return false;
    }
    allocation->fd = fd;
    check_remove(memory);
    check_add(REGION_SHARED, memory, allocation->bytes, allocation->device);
    return true;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *pointer) {
    Locked locked(lock);
    auto found = allocations.find((char *)pointer);
    if (found == allocations.end()) return give(cudaErrorInvalidValue);
    Allocation *allocation = &found->second;
    if (allocation->fd < 0 && !make_shareable(found->first, allocation)) return give(cudaErrorMemoryAllocation);
    Handle handle = {allocation->bytes, (int32_t)getpid(), allocation->fd};
    memset(out, 0, sizeof *out);
    memcpy(out, &handle, sizeof handle);
    return cudaSuccess;
}

static bool open_pages(char *memory, size_t pages, int fd) {
    size_t sound = poor("CGXFFCV_EMULATED_PEER", "dropped") ? 0 : poor("CGXFFCV_EMULATED_PEER", "partial") ? 1 : pages;
    return file_pages(memory, sound, fd, 0, MAP_SHARED) &&
           file_pages(memory + sound * PAGE, pages - sound, fd, sound, MAP_PRIVATE);
}

cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t given, unsigned) {
    Locked locked(lock);
    Handle handle;
    char path[64];
    memcpy(&handle, &given, sizeof handle);
    if (handle.process == (int32_t)getpid()) return give(cudaErrorDeviceUninitialized); /* as a driver does */
    if (poor("CGXFFCV_EMULATED_PEER", "refused")) return give(cudaErrorPeerAccessUnsupported);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.process, handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    size_t pages = handle.bytes / PAGE + 1;
    char *memory = fd < 0 ? nullptr : take_pages(pages);
    bool mapped = memory != nullptr && open_pages(memory, pages, fd);
    if (fd >= 0) close(fd);
    if (!mapped) return give(cudaErrorMapBufferObjectFailed);
    opened[memory] = pages;
    check_add(REGION_SHARED, memory, handle.bytes, current_device);
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *pointer) {
    Locked locked(lock);
    auto found = opened.find((char *)pointer);
    if (found == opened.end()) return give(cudaErrorInvalidValue);
    finish_all(current_device);
    empty_pages(found->first, found->second);
    opened.erase(found);
    check_remove(pointer);
    return cudaSuccess;
}

/* ---- host pointers, copies ---------------------------------------------------------------------------------------*/

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
    attributes->type = !known                                           ? cudaMemoryTypeUnregistered
                       : kind == REGION_DEVICE || kind == REGION_SHARED ? cudaMemoryTypeDevice
                                                                        : cudaMemoryTypeHost;
    attributes->device = device;
    attributes->devicePointer = known ? const_cast<void *>(pointer) : nullptr;
    attributes->hostPointer = attributes->type == cudaMemoryTypeDevice ? nullptr : const_cast<void *>(pointer);
    return cudaSuccess;
}

/* Memory of the host that is not page-locked: read before the call returns, or waited for. */
static cudaError_t copy_pageable(void *to, const void *from, size_t bytes, cudaStream_t handle) {
    Stream *stream = stream_of(handle);
    RegionKind kind;
    int device;
    if (!check_known(to, bytes, &kind, &device)) {
        cudaError_t error = put(handle, copy_work(to, from, bytes));
        return error == cudaSuccess ? finish(stream, stream->queued) : error;
    }
    std::shared_ptr<char> copy((char *)malloc(bytes), free);
    memcpy(copy.get(), from, bytes);
    return put(handle, [=]() { return copy_work(to, copy.get(), bytes)(); });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind, cudaStream_t handle) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    RegionKind kind;
    int device;
    if (bytes == 0) return cudaSuccess;
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if (!copyable(to, bytes) || !copyable(from, bytes)) return give(cudaErrorInvalidValue);
    bool locked_pages = check_known(to, bytes, &kind, &device) && check_known(from, bytes, &kind, &device);
    bool prompt = !late() && stream->done == stream->queued;
    if (locked_pages || stream->capture != nullptr || prompt) return give(put(handle, copy_work(to, from, bytes)));
    return give(copy_pageable(to, from, bytes, handle));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    Stream *stream = stream_of(nullptr);
    return error == cudaSuccess ? give(finish(stream, stream->queued)) : error;
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
