/* Between the emulator's own files: block.cc runs kernels, check.cc watches their accesses, runtime.cc is the CUDA
 * runtime. All of it runs under one lock, taken in runtime.cc. */
#ifndef CGXFFCV_EMULATOR_MACHINE_H
#define CGXFFCV_EMULATOR_MACHINE_H

#include "emulator.h"
#include <stdint.h>

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>

enum Check { CHECK_NOTHING, CHECK_MEMORY, CHECK_RACES };

/* A kernel with its arguments; the accesses to them are no accesses of the kernel. */
struct EmulatedCall {
    std::shared_ptr<void> arguments;
    size_t bytes;
    void (*run)(void *arguments);
    bool early;
};

/* Runs all blocks; cudaErrorLaunchFailure, with `machine_failure` set, if a check fails; cudaErrorNotReady if the
 * threads sleep, and it is to be called again. */
cudaError_t machine_run(const char *name, const EmulatedCall &call, dim3 grid, dim3 block, size_t shared_bytes,
                        int device);
extern std::string machine_failure; /* what the last failed kernel did */

/* Ends the kernel from inside one of its threads: prints, remembers, does not return. */
[[noreturn]] void machine_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What check.cc asks about the running thread. */
struct Running {
    bool active;
    uintptr_t stack_begin, stack_end;
    uintptr_t arguments_begin, arguments_end;
    int thread, warp; /* number in the block */
    uint32_t epoch;   /* grows with every barrier */
    uint32_t block_epoch, launch_epoch;
    uint32_t *warp_syncs; /* of each warp of the block */
    bool fenced;          /* the block has used __threadfence */
    bool begun;           /* the thread may touch device memory */
    int device;
};
extern Running running;

/* Whether this thread of the host runs it. Others may meanwhile be in what is watched, too: the host's part of a file
 * with kernels is. */
extern thread_local bool running_here __attribute__((tls_model("initial-exec")));

/* Memory that kernels may touch. SHARED is a device's that other processes write, too. */
enum RegionKind { REGION_DEVICE, REGION_PINNED, REGION_SHARED, REGION_STATIC_SHARED, REGION_DYNAMIC_SHARED };
void check_add(RegionKind kind, const void *begin, size_t bytes, int device);
void check_remove(const void *begin);
/* The region that holds all of these bytes. */
bool check_known(const void *begin, size_t bytes, RegionKind *kind, int *device);
void check_written(const void *begin, size_t bytes); /* from now on they may be read */
/* Whether all of them have been written. */
bool check_initialised(const void *begin, size_t bytes);

/* For stand-ins of libraries (conv.cc, gemm.cc, nccl.cc): queues the work, checks operands when it runs. A work that
 * gives cudaErrorNotReady runs again later. */
struct Operand {
    const void *begin;
    size_t bytes;
    bool output;
};
cudaError_t machine_submit(const char *name, cudaStream_t stream, std::function<cudaError_t()> work,
                           std::initializer_list<Operand> operands);

#endif
