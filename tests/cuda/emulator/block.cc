/* Runs a kernel: each thread of a block is a fiber with a small stack of its own. A fiber runs until it waits at a
 * barrier or for its warp; when nobody can go on, the threads have diverged, and that ends the kernel with a report.
 * When all that can go on sleep (__nanosleep), the kernel waits for another process: it goes on when the host asks
 * again. */
#include "machine.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <map>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

enum { MAX_THREADS = 1024, STACK_BYTES = 128 << 10, SHARED_BYTES = 227 << 10, MAX_YIELDS = 10000000 };

/* ---- fibers ------------------------------------------------------------------------------------------------------*/

#if defined(__x86_64__)
typedef struct Context {
    void *stack_pointer;
} Context;

extern "C" void emulator_switch(void **save, void *load);
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");

static void switch_to(Context *from, Context *to) { emulator_switch(&from->stack_pointer, to->stack_pointer); }

/* Six registers, the entry, and its return address, which nothing uses. */
static void prepare(Context *context, char *stack, void (*entry)(void)) {
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES) - 1;
    top[0] = nullptr;
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context->stack_pointer = top;
}
#else
typedef ucontext_t Context;

static void switch_to(Context *from, Context *to) { swapcontext(from, to); }

static void prepare(Context *context, char *stack, void (*entry)(void)) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK_BYTES;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}
#endif

/* ---- a block -----------------------------------------------------------------------------------------------------*/

enum State { READY, AT_BARRIER, AT_WARP, ASLEEP, ENDED };

struct Thread {
    State state;
    Context context;
    uint3 index;
    const char *what; /* AT_WARP: the operation */
    unsigned mask;
    int source, predicate;
    unsigned char value[EMULATED_VALUE_BYTES], result[EMULATED_VALUE_BYTES];
    unsigned ballot;
    bool begun;
};

static Thread threads[MAX_THREADS];
static char *stacks;
static Context scheduler;
static Thread *current;
static int thread_total, at_barrier, barrier_predicates, barrier_result, yields; /* of the block */
static std::vector<int> ready, sleepers;
static size_t next_ready;
static uint32_t warp_syncs[MAX_THREADS / EMULATED_WARP];
static char *dynamic_shared; /* apart from all else */
static size_t dynamic_bytes;
static const char *kernel_name;
static EmulatedCall kernel_call;
static uint3 block_index;
static dim3 block_size, grid_size;
static bool failed;
static uint64_t random_state;

Running running;
thread_local bool running_here;
std::string machine_failure;

uint3 emulator_thread_index(void) { return current->index; }
uint3 emulator_block_index(void) { return block_index; }
dim3 emulator_block_size(void) { return block_size; }
dim3 emulator_grid_size(void) { return grid_size; }
void *emulator_dynamic_shared(void) { return dynamic_shared; }
void emulator_grid_begin(void) { running.begun = current->begun = true; }
void emulator_fence(void) { running.fenced = true; }
int emulator_lane(void) { return running.thread % EMULATED_WARP; }
void emulator_trap(void) { machine_fail("trap"); }

static uint32_t random_below(uint32_t limit) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % limit);
}

template <typename T> static void shuffle(std::vector<T> &values) {
    for (size_t i = values.size(); i > 1; i--) std::swap(values[i - 1], values[random_below((uint32_t)i)]);
}

void machine_fail(const char *format, ...) {
    char text[512], where[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(where, sizeof where, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_name, block_index.x,
             block_index.y, block_index.z, current->index.x, current->index.y, current->index.z);
    machine_failure = std::string(where) + text;
    failed = true;
    switch_to(&current->context, &scheduler);
    abort(); /* a failed kernel's threads are never resumed */
}

static void wait_as(State state) {
    current->state = state;
    switch_to(&current->context, &scheduler);
}

static void release_barrier(void) {
    barrier_result = barrier_predicates;
    at_barrier = barrier_predicates = 0;
    running.epoch++;
    std::vector<int> all(thread_total);
    for (int i = 0; i < thread_total; i++) {
        threads[i].state = READY;
        all[i] = i;
    }
    shuffle(all);
    ready = all;
    next_ready = 0;
}

int emulator_barrier_count(int predicate) {
    at_barrier++;
    barrier_predicates += predicate != 0;
    wait_as(AT_BARRIER);
    return barrier_result;
}

void emulator_barrier(void) { emulator_barrier_count(0); }

void emulator_yield(void) {
    if (++yields > MAX_YIELDS) machine_fail("waits in vain for a barrier in shared memory");
    ready.push_back(running.thread);
    wait_as(READY);
}

/* The kernel goes on without it, and when all its threads sleep, the host goes on without the kernel. */
void emulator_sleep(void) {
    sleepers.push_back(running.thread);
    wait_as(ASLEEP);
}

uint64_t emulator_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static Thread *lane_of(int warp, int lane) {
    int index = warp * EMULATED_WARP + lane;
    return index < thread_total ? &threads[index] : nullptr;
}

/* The lanes of `mask` that exist and have not ended. */
static unsigned live_lanes(int warp, unsigned mask) {
    unsigned live = 0;
    for (int lane = 0; lane < EMULATED_WARP; lane++) {
        Thread *thread = lane_of(warp, lane);
        if ((mask >> lane & 1) && thread != nullptr && thread->state != ENDED) live |= 1u << lane;
    }
    return live;
}

unsigned emulator_live(unsigned mask) { return live_lanes(running.warp, mask); }

/* The last lane to come gives each lane what it asked for. */
static void resolve_warp(int warp, unsigned live, size_t bytes) {
    unsigned ballot = 0;
    for (int lane = 0; lane < EMULATED_WARP; lane++) {
        if ((live >> lane & 1) && lane_of(warp, lane)->predicate) ballot |= 1u << lane;
    }
    for (int lane = 0; lane < EMULATED_WARP; lane++) {
        if (!(live >> lane & 1)) continue;
        Thread *thread = lane_of(warp, lane);
        int source = thread->source;
        if (source < 0 || source >= EMULATED_WARP || !(live >> source & 1)) {
            machine_fail("%s: lane %d asks for the value of lane %d, which takes no part", thread->what, lane, source);
        }
        memcpy(thread->result, lane_of(warp, source)->value, bytes);
        thread->ballot = ballot;
        if (thread == current) continue;
        thread->state = READY;
        ready.push_back(warp * EMULATED_WARP + lane);
    }
    warp_syncs[warp]++;
}

uint32_t emulator_warp(const char *what, unsigned mask, const void *value, size_t bytes, int source, int predicate,
                       void *result) {
    int warp = running.warp, lane = emulator_lane();
    if (!(mask >> lane & 1)) machine_fail("%s: lane %d is not in its own mask %08x", what, lane, mask);
    current->what = what;
    current->mask = mask;
    current->source = source;
    current->predicate = predicate;
    if (bytes > 0) memcpy(current->value, value, bytes);
    unsigned live = live_lanes(warp, mask);
    bool complete = true;
    for (int other = 0; other < EMULATED_WARP; other++) {
        Thread *thread = lane_of(warp, other);
        if (!(live >> other & 1) || other == lane) continue;
        if (thread->state != AT_WARP) {
            complete = false;
        } else if ((thread->what != what && strcmp(thread->what, what) != 0) || thread->mask != mask) {
            machine_fail("%s with mask %08x meets lane %d of its warp at %s with mask %08x", what, mask, other,
                         thread->what, thread->mask);
        }
    }
    if (complete)
        resolve_warp(warp, live, bytes);
    else
        wait_as(AT_WARP);
    if (bytes > 0) memcpy(result, current->result, bytes);
    return current->ballot;
}

static void fiber_main(void) {
    kernel_call.run(kernel_call.arguments.get());
    current->state = ENDED;
    switch_to(&current->context, &scheduler);
    abort();
}

/* ---- all blocks --------------------------------------------------------------------------------------------------*/

static bool make_memory(void) {
    if (stacks != nullptr) return true;
    void *memory = mmap(nullptr, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    void *shared = mmap(nullptr, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return false;
    dynamic_shared = static_cast<char *>(shared);
    stacks = static_cast<char *>(memory);
    for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + (size_t)i * STACK_BYTES, 4096, PROT_NONE);
    return true;
}

static void start_block(void) {
    running.block_epoch = ++running.epoch;
    running.fenced = false;
    at_barrier = barrier_predicates = yields = 0;
    memset(dynamic_shared, 0xff, dynamic_bytes);
    memset(warp_syncs, 0, sizeof warp_syncs);
    ready.resize((size_t)thread_total);
    for (int i = 0; i < thread_total; i++) {
        unsigned n = (unsigned)i;
        threads[i].state = READY;
        threads[i].begun = !kernel_call.early;
        threads[i].index =
            make_uint3(n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y);
        prepare(&threads[i].context, stacks + (size_t)i * STACK_BYTES, fiber_main);
        ready[(size_t)i] = i;
    }
    shuffle(ready);
    next_ready = 0;
}

static void resume(int index) {
    current = &threads[index];
    running.thread = index;
    running.warp = index / EMULATED_WARP;
    running.begun = current->begun;
    running.stack_begin = (uintptr_t)(stacks + (size_t)index * STACK_BYTES);
    running.stack_end = running.stack_begin + STACK_BYTES;
    running.active = running_here = true;
    switch_to(&scheduler, &current->context);
    running.active = running_here = false;
}

static void report_divergence(void) {
    int ended = 0, waiting = 0, warp = 0;
    const Thread *example = nullptr;
    for (int i = 0; i < thread_total; i++) {
        ended += threads[i].state == ENDED;
        waiting += threads[i].state == AT_BARRIER;
        warp += threads[i].state == AT_WARP;
        if (threads[i].state == AT_WARP && example == nullptr) example = &threads[i];
    }
    char text[512];
    int used = snprintf(text, sizeof text,
                        "kernel %s, block (%u, %u, %u): its threads have diverged: of %d, %d wait at __syncthreads, %d "
                        "for their warp, %d have ended",
                        kernel_name, block_index.x, block_index.y, block_index.z, thread_total, waiting, warp, ended);
    if (example != nullptr) {
        snprintf(text + used, sizeof text - (size_t)used, "; thread (%u, %u, %u) waits at %s with mask %08x",
                 example->index.x, example->index.y, example->index.z, example->what, example->mask);
    }
    machine_failure = text;
    failed = true;
}

static void wake(void) {
    ready = sleepers;
    sleepers.clear();
    next_ready = 0;
    for (int index : ready) threads[index].state = READY;
}

/* Whether the block has come to its end; else its threads sleep. */
static bool run_block(void) {
    for (;;) {
        while (next_ready < ready.size() && !failed) resume(ready[next_ready++]);
        if (failed) return true;
        if (!sleepers.empty()) return false;
        if (at_barrier == thread_total) {
            release_barrier();
            continue;
        }
        for (int i = 0; i < thread_total; i++) {
            if (threads[i].state == ENDED) continue;
            report_divergence();
            return true;
        }
        return true;
    }
}

static uint64_t seed(void) {
    const char *text = getenv("CGXFFCV_EMULATED_SEED");
    return text == nullptr ? 1 : strtoull(text, nullptr, 0);
}

/* The kernel that is under way: one at a time, also while its threads sleep. */
struct Grid {
    std::vector<uint32_t> order; /* of the blocks */
    size_t next;
    bool in_block, sleeps;
    size_t shared_bytes;
};
static Grid grid;
/* Of kernels that came to their end while the host asked for another one, by their arguments. */
static std::map<void *, cudaError_t> results;

static void run_blocks(void) {
    for (; grid.next < grid.order.size() && !failed; grid.next++) {
        uint32_t number = grid.order[grid.next];
        block_index =
            make_uint3(number % grid_size.x, number / grid_size.x % grid_size.y, number / grid_size.x / grid_size.y);
        if (grid.in_block)
            wake();
        else
            start_block();
        grid.in_block = !run_block();
        if (grid.in_block) return;
    }
}

static cudaError_t go_on(void) {
    run_blocks();
    grid.sleeps = grid.in_block;
    if (grid.sleeps) return cudaErrorNotReady;
    if (grid.shared_bytes > 0) check_remove(dynamic_shared);
    running.epoch++;
    kernel_call.arguments.reset();
    if (!failed) return cudaSuccess;
    fprintf(stderr, "emulator: %s\n", machine_failure.c_str());
    return cudaErrorLaunchFailure;
}

/* What sleeps goes first. Whether the call has been answered by that. */
static bool finish_sleeper(const EmulatedCall &call, cudaError_t *result) {
    void *which = call.arguments.get(), *sleeper = kernel_call.arguments.get();
    if (grid.sleeps) {
        *result = go_on();
        if (*result == cudaErrorNotReady || sleeper == which) return true;
        results[sleeper] = *result;
    }
    auto found = results.find(which);
    if (found == results.end()) return false;
    *result = found->second;
    results.erase(found);
    return true;
}

cudaError_t machine_run(const char *name, const EmulatedCall &call, dim3 grid_shape, dim3 block, size_t shared_bytes,
                        int device) {
    static uint64_t launches;
    cudaError_t result;
    if (!make_memory()) return cudaErrorMemoryAllocation;
    if (finish_sleeper(call, &result)) return result;
    kernel_name = name;
    kernel_call = call;
    running.arguments_begin = (uintptr_t)call.arguments.get();
    running.arguments_end = running.arguments_begin + call.bytes;
    grid_size = grid_shape;
    block_size = block;
    thread_total = (int)(block.x * block.y * block.z);
    random_state = seed() * 0x9e3779b97f4a7c15u + launches++;
    dynamic_bytes = shared_bytes;
    failed = false;
    sleepers.clear();
    running.launch_epoch = running.epoch + 1;
    running.warp_syncs = warp_syncs;
    running.device = device;
    if (shared_bytes > 0) check_add(REGION_DYNAMIC_SHARED, dynamic_shared, shared_bytes, device);
    size_t blocks = (size_t)grid_shape.x * grid_shape.y * grid_shape.z;
    grid = Grid{std::vector<uint32_t>(blocks), 0, false, false, shared_bytes};
    for (size_t i = 0; i < blocks; i++) grid.order[i] = (uint32_t)i;
    shuffle(grid.order);
    return go_on();
}
