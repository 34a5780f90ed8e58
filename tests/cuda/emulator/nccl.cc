/* NCCL for emulated GPUs: sums between processes through a file that they all map, when the stream's work runs. Its
 * functions are visible, and CGXFFCV_NCCL_LIBRARY names the extension module itself, so that comm/nccl.c finds them as
 * it finds NCCL's. Who waits too long for the others ends the process. */
#if __has_include(<nccl.h>)
#include "machine.h"

#include <fcntl.h>
#include <nccl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#define VISIBLE extern "C" __attribute__((visibility("default")))

namespace {

const int MOST_RANKS = 8, CHUNK = 1 << 14, PATIENCE_S = 60;

struct Shared {
    std::atomic<int> joined, left;
    std::atomic<int> arrived, round; /* of the barrier */
    float data[MOST_RANKS][CHUNK];
};

void rest() {
    struct timespec time = {0, 20000};
    nanosleep(&time, nullptr);
}

} // namespace

struct ncclComm {
    Shared *shared;
    int rank, size;
    bool leaving;
};

static void barrier(ncclComm *comm) {
    Shared *s = comm->shared;
    int round = s->round.load();
    if (s->arrived.fetch_add(1) + 1 == comm->size) {
        s->arrived = 0;
        s->round = round + 1;
        return;
    }
    time_t begin = time(nullptr);
    while (s->round.load() == round) {
        if (time(nullptr) - begin > PATIENCE_S) {
            fprintf(stderr, "emulated NCCL: rank %d waits in vain for the others\n", comm->rank);
            abort();
        }
        rest();
    }
}

/* In the order of the ranks, so that all have the same bytes. */
static void reduce(ncclComm *comm, float *data, size_t elems, bool average) {
    for (size_t at = 0; at < elems; at += CHUNK) {
        size_t count = elems - at < (size_t)CHUNK ? elems - at : (size_t)CHUNK;
        memcpy(comm->shared->data[comm->rank], data + at, count * sizeof *data);
        barrier(comm);
        for (size_t i = 0; i < count; i++) {
            float sum = 0, scale = average ? 0x1p-10f : 1.0f; /* scales before it adds, as NCCL does */
            for (int rank = 0; rank < comm->size; rank++) sum += comm->shared->data[rank][i] * scale;
            data[at + i] = average ? sum / ((float)comm->size * scale) : sum;
        }
        barrier(comm);
    }
}

VISIBLE ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/dev/shm/cgxffcv-emulated-XXXXXX");
    int fd = mkstemp(id->internal);
    if (fd < 0 || ftruncate(fd, sizeof(Shared)) != 0) return ncclSystemError;
    close(fd);
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank, ncclConfig_t *) {
    int fd = open(id.internal, O_RDWR);
    if (fd < 0 || size > MOST_RANKS) return ncclSystemError;
    void *memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return ncclSystemError;
    *out = new ncclComm{(Shared *)memory, rank, size, false};
    if ((*out)->shared->joined.fetch_add(1) + 1 == size) unlink(id.internal);
    return ncclInProgress;
}

VISIBLE ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    const Shared *s = comm->shared;
    bool waiting = s->joined < comm->size || (comm->leaving && s->left < comm->size);
    *result = waiting ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    comm->leaving = true;
    comm->shared->left++;
    return ncclInProgress;
}

VISIBLE ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    munmap(comm->shared, sizeof *comm->shared);
    delete comm;
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }
VISIBLE const char *ncclGetErrorString(ncclResult_t) { return "failed"; }
VISIBLE const char *ncclGetLastError(ncclComm_t) { return ""; }
VISIBLE ncclResult_t ncclGroupStart() { return ncclSuccess; }
VISIBLE ncclResult_t ncclGroupEnd() { return ncclSuccess; }

VISIBLE ncclResult_t ncclAllReduce(const void *from, void *to, size_t elems, ncclDataType_t type, ncclRedOp_t op,
                                   ncclComm_t comm, cudaStream_t stream) {
    if (from != to || type != ncclFloat32 || (op != ncclSum && op != ncclAvg)) return ncclInvalidArgument;
    auto work = [=]() { reduce(comm, (float *)to, elems, op == ncclAvg); };
    size_t bytes = elems * sizeof(float);
    cudaError_t error = machine_submit("NCCL sum", stream, work, {{to, bytes, false}, {to, bytes, true}});
    return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
#endif
