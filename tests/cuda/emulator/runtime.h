/* Shared by the files that stand in for the CUDA runtime: runtime.cc (devices, launches, errors), memory.cc,
 * streams.cc. Whatever they export to the project takes the lock. */
#ifndef CGXFFCV_EMULATOR_RUNTIME_H
#define CGXFFCV_EMULATOR_RUNTIME_H

#include "machine.h"

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

typedef std::function<cudaError_t()> Work; /* cudaErrorNotReady: it cannot go on yet, and is to be called again */
typedef std::lock_guard<std::recursive_mutex> Locked;

struct Stream;

/* Of a capture: a work, or a wait for another stream's first `until` steps. */
struct Step {
    Stream *stream;
    Work work;
    Stream *other; /* NULL: a work */
    uint64_t until;
};

struct Graph {
    std::vector<Step> steps;
    uint64_t number; /* of the capture */
    Stream *origin;
    std::set<Stream *> joined;
    bool broken;
    int device;
};

struct Stream {
    int device;
    Graph *capture;
    uint64_t put;    /* steps of this capture */
    uint64_t waited; /* of them, the origin waits for these */
    std::deque<Work> queue;
    uint64_t queued, done;         /* works ever put on the queue, and run */
    std::deque<uint64_t> launches; /* of graphs: `queued` behind each that may not be done */
};

struct Event {
    int device;
    bool recorded;
    double milliseconds;
    uint64_t capture; /* in which it was recorded last; 0: none */
    Stream *stream;
    uint64_t put;
    uint64_t position; /* of its record in the stream's queue */
};

extern std::recursive_mutex lock;
extern thread_local int current_device;

/* Remembers a failure for cudaGetLastError; gives it back. */
cudaError_t give(cudaError_t error);

/* Calls that a capturing thread may not make break its captures. */
bool forbidden();

/* CGXFFCV_EMULATED_LOST: whether the device is lost after so many more works (0 or 1); from then on it stays so, until
 * the variable is gone. */
bool lost(int works);

size_t memory_total();
size_t memory_used(int device);

/* Device memory is accessible to the host while one of these lives. */
struct Open {
    Open();
    ~Open();
};

/* CGXFFCV_EMULATED_STREAMS=late. */
bool late();
Stream *stream_of(cudaStream_t handle); /* NULL if there is none such */
cudaError_t put(cudaStream_t handle, Work work);

const int PATIENCE_S = 60; /* with other ranks */

/* Runs what waits in a queue, up to the given position; the first failure. */
cudaError_t finish(Stream *stream, uint64_t position);
cudaError_t finish_all(int device);

#endif
