/* CUDA and NCCL for threads as ranks, as far as comm/nccl.c calls them. Device memory is host memory. A sum runs when
 * the last rank has put it on its stream; a stream is idle when its last sum is done or its communicator aborted. */
#include "fake.h"

#include <nccl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { MAX_SUMS = 256 };

typedef struct Post {
    float *data;
    size_t elems;
    ncclRedOp_t op;
} Post;

/* What the ranks with one identifier share. */
typedef struct World {
    uint64_t id;
    int size, joined, finalized;
    int posts[MAX_SUMS]; /* ranks that have put the sum */
    Post post[MAX_SUMS][FAKE_RANKS];
    bool done[MAX_SUMS], gone[FAKE_RANKS];
    struct World *next;
} World;

struct ncclComm {
    World *world;
    int rank, sums;
    bool joined, finalizing;
};

struct CUstream_st {
    World *world; /* of the last sum; NULL: none */
    int sum;
};

EXPORT FakeFault fake_fault;
EXPORT atomic_bool fake_graphs;
EXPORT int fake_fault_rank, fake_version = 22809, fake_open, fake_destroyed, fake_aborted;
static _Thread_local int thread_rank, thread_gpu;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static World *worlds;
static uint64_t next_id = 1;

static bool faulty(FakeFault fault) { return fake_fault == fault && thread_rank == fake_fault_rank; }

EXPORT void fake_reset(void) {
    fake_fault = FAKE_WELL;
    fake_graphs = false;
    fake_version = 22809;
    fake_open = fake_destroyed = fake_aborted = 0;
    while (worlds != NULL) {
        World *next = worlds->next;
        free(worlds);
        worlds = next;
    }
}

EXPORT void fake_thread(int rank, int gpu) {
    thread_rank = rank;
    thread_gpu = gpu;
}

EXPORT cudaStream_t fake_stream_create(void) { return calloc(1, sizeof(struct CUstream_st)); }
EXPORT void fake_stream_destroy(cudaStream_t stream) { free(stream); }

/* ---- CUDA ---- */

EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = thread_gpu;
    return thread_gpu < 0 ? cudaErrorNoDevice : cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    properties->uuid.bytes[0] = (char)(device + 1);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetLastError(void) { return thread_gpu < 0 ? cudaErrorNoDevice : cudaSuccess; }
EXPORT const char *cudaGetErrorString(cudaError_t error) { return error == cudaErrorNoDevice ? "no device" : "lost"; }
EXPORT const char *cudaGetErrorName(cudaError_t error) { return error == cudaErrorNoDevice ? "None" : "Lost"; }

EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (faulty(FAKE_GPU_LOST)) return cudaErrorLaunchFailure;
    pthread_mutex_lock(&lock);
    const World *world = stream->world;
    bool busy = world != NULL && !world->done[stream->sum] && !world->gone[thread_rank];
    pthread_mutex_unlock(&lock);
    return busy ? cudaErrorNotReady : cudaSuccess;
}

/* Events are streams: whatever was put there. */
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaStreamQuery((cudaStream_t)(void *)event); }

/* ---- NCCL ---- */

EXPORT ncclResult_t ncclGetVersion(int *version) {
    *version = fake_version;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    if (faulty(FAKE_NO_ID)) return ncclSystemError;
    memset(id, 0, sizeof *id);
    pthread_mutex_lock(&lock);
    memcpy(id->internal, &next_id, sizeof next_id);
    next_id++;
    pthread_mutex_unlock(&lock);
    return ncclSuccess;
}

static World *world_of(uint64_t id, int size) {
    for (World *world = worlds; world != NULL; world = world->next) {
        if (world->id == id) return world;
    }
    World *world = calloc(1, sizeof *world);
    world->id = id;
    world->size = size;
    world->next = worlds;
    worlds = world;
    return world;
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                           ncclConfig_t *config) {
    uint64_t number;
    *comm = NULL;
    if (config->blocking != 0 || rank != thread_rank || ranks > FAKE_RANKS) return ncclInvalidArgument;
    if (faulty(FAKE_INIT_FAILS)) return ncclSystemError;
    memcpy(&number, id.internal, sizeof number);
    pthread_mutex_lock(&lock);
    *comm = calloc(1, sizeof **comm);
    (*comm)->world = world_of(number, ranks);
    (*comm)->rank = rank;
    (*comm)->world->joined += !faulty(FAKE_INIT_HANGS);
    fake_open++;
    pthread_mutex_unlock(&lock);
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    pthread_mutex_lock(&lock);
    World *world = comm->world;
    *result = world->joined < world->size || (comm->finalizing && world->finalized < world->size) ? ncclInProgress
                                                                                                  : ncclSuccess;
    if (comm->sums > 0 && faulty(FAKE_SUM_FAILS)) *result = ncclRemoteError;
    pthread_mutex_unlock(&lock);
    return ncclSuccess;
}

static void sum(World *world, int index) {
    for (size_t i = 0; i < world->post[index][0].elems; i++) {
        bool average = world->post[index][0].op == ncclAvg; /* scales before it adds, as NCCL does */
        float total = 0, scale = average ? 0x1p-10f : 1.0f;
        for (int rank = 0; rank < world->size; rank++) total += world->post[index][rank].data[i] * scale;
        if (average) total /= (float)world->size * scale;
        for (int rank = 0; rank < world->size; rank++) world->post[index][rank].data[i] = total;
    }
    world->done[index] = true;
}

EXPORT ncclResult_t ncclAllReduce(const void *from, void *to, size_t elems, ncclDataType_t type, ncclRedOp_t op,
                                  ncclComm_t comm, cudaStream_t stream) {
    if (from != to || type != ncclFloat32 || (op != ncclSum && op != ncclAvg)) return ncclInvalidArgument;
    pthread_mutex_lock(&lock);
    World *world = comm->world;
    int index = comm->sums++;
    world->post[index][comm->rank] = (Post){.data = to, .elems = elems, .op = op};
    stream->world = world;
    stream->sum = index;
    bool hangs = fake_fault == FAKE_SUM_FAILS || fake_fault == FAKE_GPU_LOST;
    if (++world->posts[index] == world->size && !hangs) sum(world, index);
    pthread_mutex_unlock(&lock);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
EXPORT ncclResult_t ncclGroupEnd(void) { return ncclSuccess; }

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    pthread_mutex_lock(&lock);
    comm->world->finalized++;
    comm->finalizing = true;
    pthread_mutex_unlock(&lock);
    return ncclInProgress;
}

static ncclResult_t release(ncclComm_t comm, int *count) {
    pthread_mutex_lock(&lock);
    comm->world->gone[comm->rank] = true;
    pthread_mutex_unlock(&lock);
    while (fake_graphs) usleep(1000);
    pthread_mutex_lock(&lock);
    (*count)++;
    fake_open--;
    pthread_mutex_unlock(&lock);
    free(comm);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) { return release(comm, &fake_destroyed); }
EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm) { return release(comm, &fake_aborted); }
EXPORT const char *ncclGetErrorString(ncclResult_t result) { return result == ncclSystemError ? "system" : "remote"; }

EXPORT const char *ncclGetLastError(ncclComm_t comm) {
    (void)comm;
    return "the cable is out";
}
