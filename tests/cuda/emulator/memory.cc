/* Memory of the emulated devices. It lies in pages that the host can touch only while device work runs: a host access
 * is a segmentation fault, as a GPU would give. It is filled with 0xFF; what lies between its end and the end of its
 * page is compared when it is freed. */
#include "runtime.h"

#include <stdlib.h>
#include <sys/mman.h>

namespace {

const size_t PAGE = 4096, ARENA_BYTES = (size_t)1 << 40;
const unsigned char POISON = 0xff, FENCE = 0xa5;

struct Allocation {
    size_t bytes, pages;
    int device;
};

std::map<char *, Allocation> allocations;
std::map<void *, size_t> pinned;
std::map<int, size_t> used;
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

bool reserve_arena() {
    if (arena != nullptr) return true;
    void *memory = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    arena = (char *)memory;
    return true;
}

} // namespace

Open::Open() {
    if (open_depth++ == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_READ | PROT_WRITE);
}

Open::~Open() {
    if (--open_depth == 0 && arena_used > 0) mprotect(arena, arena_used, PROT_NONE);
}

size_t memory_used(int device) { return used[device]; }

cudaError_t cudaMalloc(void **out, size_t bytes) {
    Locked locked(lock);
    if (forbidden()) return give(cudaErrorStreamCaptureUnsupported);
    size_t pages = bytes / PAGE + 1;
    if (bytes + used[current_device] > memory_total() || !reserve_arena() ||
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
    finish_all(current_device);
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
    if (locked_pages || stream->capture != nullptr || !late()) return give(put(handle, copy_work(to, from, bytes)));
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
