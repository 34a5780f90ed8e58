/* Watches every access of a kernel, by way of the calls that the compiler's thread-sanitizer instrumentation makes
 * (libtsan is not linked): only live memory, aligned, never read before it was written, and no two threads at the same
 * bytes without a barrier in between, one of them writing.
 *
 * A cell stands for 4 bytes and remembers the last writer and the last reader. Blocks are not ordered: what one wrote,
 * another may not touch in the same launch, unless it has used __threadfence. A warp is ordered by its shuffles. */
#include "machine.h"

#include <link.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <vector>

static const size_t WORD = 4;
static const unsigned SEVERAL = 0x8000, MANY = 0xffff, WARP_THREADS = 32;

struct Cell {
    uint32_t write_epoch, read_epoch;
    uint16_t write_thread, read_thread; /* read_thread: MANY, or SEVERAL of one warp */
    uint16_t write_sync, read_sync;     /* how often the warp had met */
    uint8_t write_mask, read_mask, written;
};

struct Region {
    uintptr_t begin, end;
    RegionKind kind;
    int device;
    std::vector<Cell> cells;
};

static std::map<uintptr_t, Region> regions; /* by begin */
static Region *recent;
static uintptr_t image_begin, image_end, static_begin, static_end, relro_begin, relro_end;

extern "C" char __start_emulated_constant[] __attribute__((weak));
extern "C" char __stop_emulated_constant[] __attribute__((weak));

static Check level(void) {
    static int known = -1;
    if (known < 0) {
        const char *text = getenv("CGXFFCV_EMULATED_CHECK");
        known = text == nullptr                ? CHECK_RACES
                : strcmp(text, "nothing") == 0 ? CHECK_NOTHING
                : strcmp(text, "memory") == 0  ? CHECK_MEMORY
                                               : CHECK_RACES;
    }
    return (Check)known;
}

/* Others than kernels write there as well. */
static bool unwatched(RegionKind kind) { return kind == REGION_PINNED || kind == REGION_SHARED; }

void check_add(RegionKind kind, const void *begin, size_t bytes, int device) {
    uintptr_t from = (uintptr_t)begin;
    size_t cells = level() == CHECK_NOTHING || unwatched(kind) ? 0 : (bytes + WORD - 1) / WORD;
    regions[from] = Region{from, from + bytes, kind, device, std::vector<Cell>(cells)};
    recent = nullptr;
}

void check_remove(const void *begin) {
    regions.erase((uintptr_t)begin);
    recent = nullptr;
}

static Region *find(uintptr_t address) {
    if (recent != nullptr && address >= recent->begin && address < recent->end) return recent;
    auto after = regions.upper_bound(address);
    if (after == regions.begin()) return nullptr;
    Region *region = &std::prev(after)->second;
    if (address >= region->end) return nullptr;
    return recent = region;
}

bool check_known(const void *begin, size_t bytes, RegionKind *kind, int *device) {
    Region *region = find((uintptr_t)begin);
    if (region == nullptr || bytes > region->end - (uintptr_t)begin) return false;
    *kind = region->kind;
    *device = region->device;
    return true;
}

/* The bytes of word `word` that lie in [first, last). */
static uint8_t bytes_of_word(size_t word, size_t first, size_t last) {
    size_t from = word * WORD < first ? first - word * WORD : 0;
    size_t to = (word + 1) * WORD > last ? last - word * WORD : WORD;
    return (uint8_t)(((1u << to) - 1u) & ~((1u << from) - 1u));
}

void check_written(const void *begin, size_t bytes) {
    Region *region = find((uintptr_t)begin);
    if (region == nullptr || region->cells.empty() || bytes == 0) return;
    size_t first = (uintptr_t)begin - region->begin, last = first + bytes;
    for (size_t word = first / WORD; word * WORD < last; word++) {
        region->cells[word].written |= bytes_of_word(word, first, last);
    }
}

bool check_initialised(const void *begin, size_t bytes) {
    Region *region = find((uintptr_t)begin);
    if (region == nullptr || region->cells.empty()) return true;
    size_t first = (uintptr_t)begin - region->begin, last = first + bytes;
    for (size_t word = first / WORD; word * WORD < last; word++) {
        uint8_t mask = bytes_of_word(word, first, last);
        if ((region->cells[word].written & mask) != mask) return false;
    }
    return true;
}

/* ---- the module's own memory: static shared variables, constants ------------------------------------------------*/

static int find_image(struct dl_phdr_info *info, size_t, void *) {
    uintptr_t own = (uintptr_t)&regions, low = UINTPTR_MAX, high = 0, from = 0, to = 0, relro_from = 0, relro_to = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + part->p_vaddr, end = begin + part->p_memsz;
        if (part->p_type == PT_GNU_RELRO) relro_from = begin, relro_to = end;
        if (part->p_type != PT_LOAD) continue;
        low = begin < low ? begin : low;
        high = end > high ? end : high;
        if (part->p_flags & PF_W) from = begin, to = end;
    }
    if (own < from || own >= to) return 0;
    image_begin = low, image_end = high, static_begin = from, static_end = to;
    relro_begin = relro_from, relro_end = relro_to;
    return 1;
}

static bool watch_statics(void) {
    dl_iterate_phdr(find_image, nullptr);
    if (static_end == static_begin) return false;
    check_add(REGION_STATIC_SHARED, (const void *)static_begin, static_end - static_begin, -1);
    return true;
}
static bool watching = watch_statics(); /* after `regions` is made */

static bool constant(uintptr_t address) {
    if (address >= relro_begin && address < relro_end) return true;
    if (address >= (uintptr_t)__start_emulated_constant && address < (uintptr_t)__stop_emulated_constant) return true;
    return address >= image_begin && address < image_end && (address < static_begin || address >= static_end);
}

/* ---- accesses ----------------------------------------------------------------------------------------------------*/

enum Access { READS, WRITES, UPDATES }; /* UPDATES: atomically */

struct Checked {
    uintptr_t address;
    size_t bytes;
    Access access;
    const void *code; /* where in the kernel */
    const Region *region;
};

static const char *const VERB[] = {"reads", "writes", "updates"};
static const char *const KIND[] = {"device memory", "page-locked memory", "memory of several processes",
                                   "shared memory", "dynamic shared memory"};

[[noreturn]] static void fail_at(const Checked &at, const char *what) {
    char place[128] = "";
    if (at.region != nullptr && at.region->kind != REGION_STATIC_SHARED) {
        snprintf(place, sizeof place, " (byte %zu of %zu)", (size_t)(at.address - at.region->begin),
                 (size_t)(at.region->end - at.region->begin));
    }
    machine_fail("%s %zu bytes of %s%s: %s [at offset 0x%zx of the module]", VERB[at.access], at.bytes,
                 at.region == nullptr ? "unknown memory" : KIND[at.region->kind], place, what,
                 (size_t)((uintptr_t)at.code - image_begin));
}

[[noreturn]] static void fail_race(const Checked &at, const char *did, unsigned other, bool other_block) {
    char text[160];
    if (other_block) {
        snprintf(text, sizeof text, "another block of the same launch %s it, and nothing orders the two", did);
    } else if (other == MANY || (other & SEVERAL)) {
        snprintf(text, sizeof text, "a race with other threads, which %s it since the last barrier", did);
    } else {
        snprintf(text, sizeof text, "a race with thread %u, which %s it since the last barrier", other, did);
    }
    fail_at(at, text);
}

/* Whether the earlier access in this block's interval came before one of the warp's meetings. */
static bool warp_ordered(unsigned thread, uint16_t sync) {
    if (thread == MANY) return false;
    unsigned warp = (thread & SEVERAL) ? thread & ~(unsigned)SEVERAL : thread / WARP_THREADS;
    return warp == (unsigned)running.warp && sync != (uint16_t)running.warp_syncs[warp];
}

static bool conflicts(uint32_t epoch, unsigned thread, uint16_t sync, bool *other_block) {
    *other_block = epoch < running.block_epoch;
    if (epoch < running.launch_epoch) return false;
    if (*other_block) return !running.fenced;
    return epoch == running.epoch && thread != (unsigned)running.thread && !warp_ordered(thread, sync);
}

static void note_read(Cell *cell, uint8_t mask) {
    unsigned thread = (unsigned)running.thread, warp = (unsigned)running.warp;
    if (cell->read_epoch == running.epoch && (cell->read_mask & mask) && cell->read_thread != thread) {
        unsigned before = cell->read_thread;
        bool same_warp = before != MANY && ((before & SEVERAL) ? before - SEVERAL : before / WARP_THREADS) == warp;
        thread = same_warp ? SEVERAL | warp : MANY;
        mask &= cell->read_mask;
    }
    cell->read_epoch = running.epoch;
    cell->read_thread = (uint16_t)thread;
    cell->read_sync = (uint16_t)running.warp_syncs[warp];
    cell->read_mask = mask;
}

static void note_write(Cell *cell, uint8_t mask) {
    cell->write_epoch = running.epoch;
    cell->write_thread = (uint16_t)running.thread;
    cell->write_sync = (uint16_t)running.warp_syncs[running.warp];
    cell->write_mask = mask;
}

static void check_cell(const Checked &at, Cell *cell, uint8_t mask) {
    bool shared = at.region->kind != REGION_DEVICE, other_block;
    if (shared && cell->write_epoch < running.block_epoch) cell->written = 0;
    if (at.access != WRITES && (cell->written & mask) != mask) {
        fail_at(at, shared ? "this block has not written them" : "nothing has been written there");
    }
    if (level() == CHECK_RACES && at.access != UPDATES) {
        if (shared && cell->write_epoch < running.block_epoch) cell->write_mask = 0;
        if (shared && cell->read_epoch < running.block_epoch) cell->read_mask = 0;
        if ((cell->write_mask & mask) &&
            conflicts(cell->write_epoch, cell->write_thread, cell->write_sync, &other_block)) {
            fail_race(at, "wrote", cell->write_thread, other_block);
        }
        if (at.access == WRITES && (cell->read_mask & mask) &&
            conflicts(cell->read_epoch, cell->read_thread, cell->read_sync, &other_block)) {
            fail_race(at, "read", cell->read_thread, other_block);
        }
    }
    if (at.access == READS) {
        note_read(cell, mask);
        return;
    }
    if (at.access == WRITES)
        note_write(cell, mask);
    else
        cell->write_epoch = running.epoch, cell->write_mask = 0;
    cell->written |= mask;
}

static void check(const void *pointer, size_t bytes, Access access, bool aligned, const void *code) {
    uintptr_t address = (uintptr_t)pointer;
    if (!running.active || !running_here || !watching || level() == CHECK_NOTHING || bytes == 0) return;
    if (address >= running.stack_begin && address < running.stack_end) return;
    if (address >= running.arguments_begin && address < running.arguments_end) return;
    Region *region = find(address);
    Checked at = {address, bytes, access, code, region};
    bool is_static = region == nullptr || region->kind == REGION_STATIC_SHARED;
    if (is_static && constant(address)) {
        if (access == READS) return;
        fail_at(at, "it is constant");
    }
    bool device = region != nullptr && (region->kind == REGION_DEVICE || unwatched(region->kind));
    if (device && !running.begun) fail_at(at, "the kernels before may still run: grid_begin comes first");
    if (region == nullptr) fail_at(at, "it is in no live allocation of the device (a host pointer?)");
    if (bytes > region->end - address) fail_at(at, "the access runs over the end");
    if (aligned && address % bytes != 0) fail_at(at, "the address is not a multiple of the size");
    if (region->kind == REGION_DEVICE && region->device != running.device) fail_at(at, "it belongs to another device");
    if (unwatched(region->kind)) return;
    size_t first = address - region->begin, last = first + bytes;
    for (size_t word = first / WORD; word * WORD < last; word++) {
        check_cell(at, &region->cells[word], bytes_of_word(word, first, last));
    }
}

void emulator_atomic(const void *address, size_t bytes) {
    check(address, bytes, UPDATES, true, __builtin_return_address(0));
}

#define SIZED(bytes)                                                                                                   \
    extern "C" void __tsan_read##bytes(void *p) { check(p, bytes, READS, true, __builtin_return_address(0)); }         \
    extern "C" void __tsan_write##bytes(void *p) { check(p, bytes, WRITES, true, __builtin_return_address(0)); }       \
    extern "C" void __tsan_unaligned_read##bytes(void *p) {                                                            \
        check(p, bytes, READS, false, __builtin_return_address(0));                                                    \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_write##bytes(void *p) {                                                           \
        check(p, bytes, WRITES, false, __builtin_return_address(0));                                                   \
    }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)

extern "C" void __tsan_read_range(void *p, size_t bytes) { check(p, bytes, READS, false, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void *p, size_t bytes) {
    check(p, bytes, WRITES, false, __builtin_return_address(0));
}
extern "C" void __tsan_init(void) {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_vptr_update(void *, void *) {}
