/* mmap and munmap for the fuzz targets (linked with -Wl,--wrap): what lies between a file's end and the end of its last
 * memory page is poisoned, so that reading it is an error, too, and not a zero. */
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

void *__real_mmap(void *at, size_t size, int protection, int flags, int descriptor, off_t offset);
int __real_munmap(void *at, size_t size);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int descriptor, off_t offset);
int __wrap_munmap(void *at, size_t size);

static size_t tail_of(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (page - size % page) % page;
}

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int descriptor, off_t offset) {
    void *map = __real_mmap(at, size, protection, flags, descriptor, offset);
    if (map != MAP_FAILED && descriptor >= 0) ASAN_POISON_MEMORY_REGION((char *)map + size, tail_of(size));
    return map;
}

int __wrap_munmap(void *at, size_t size) {
    ASAN_UNPOISON_MEMORY_REGION((char *)at + size, tail_of(size));
    return __real_munmap(at, size);
}
