/* NCCL for emulated GPUs: sums between processes through a file that they all map, when the stream's work runs. Its
 * functions are visible, and CGXFFCV_NCCL_LIBRARY names the extension module itself, so that comm/nccl.c finds them as
 * it finds NCCL's. As there, a communicator is not let go while graphs hold its sums, and a rank that has died is an
 * error that can be asked for. */
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
    std::atomic<int> processes[MOST_RANKS];
    float data[MOST_RANKS][CHUNK];
};

/* What the sums that are under way need; lives as long as any of them. */
struct Member {
    Shared *shared;
    int rank, size;
    std::atomic<bool> aborted;
    ~Member() { munmap(shared, sizeof *shared); }
};

/* A sum in the order of the ranks, so that all have the same bytes. Called until it is done. */
struct Sum {
    std::shared_ptr<Member> member;
    std::shared_ptr<int> graph; /* held by what was recorded */
    void *data;
    size_t elems;
    bool halves; /* of the type bfloat16 */
    bool average;
    size_t at; /* done */
    int stage; /* of the chunk: 0 to be given, 1 to be added, 2 added */
    int round;

    float load(size_t i) const {
        if (!halves) return ((const float *)data)[i];
        uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    void store(size_t i, float value) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (halves) ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
        if (!halves) ((float *)data)[i] = value;
    }

    void arrive() {
        Shared *s = member->shared;
        round = s->round.load();
        if (s->arrived.fetch_add(1) + 1 < member->size) return;
        s->arrived = 0;
        s->round = round + 1;
    }

    void add(size_t count) {
        for (size_t i = 0; i < count; i++) {
            float sum = 0, scale = average ? 0x1p-10f : 1.0f; /* scales before it adds, as NCCL does */
            for (int rank = 0; rank < member->size; rank++) sum += member->shared->data[rank][i] * scale;
            store(at + i, average ? sum / ((float)member->size * scale) : sum);
        }
    }

    cudaError_t operator()() {
        while (at < elems && !member->aborted) {
            size_t count = elems - at < (size_t)CHUNK ? elems - at : (size_t)CHUNK;
            if (stage > 0 && member->shared->round.load() == round) return cudaErrorNotReady;
            for (size_t i = 0; stage == 0 && i < count; i++) member->shared->data[member->rank][i] = load(at + i);
            if (stage == 1) add(count);
            if (stage == 2) at += count;
            if (stage < 2) arrive();
            stage = (stage + 1) % 3;
        }
        return cudaSuccess;
    }
};

/* Whether the process is there, and no corpse. */
bool lives(int process) {
    char path[40], text[400] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", process);
    FILE *file = fopen(path, "r");
    if (file == nullptr) return false;
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = 0;
    const char *state = strrchr(text, ')');
    return state != nullptr && state[1] == ' ' && state[2] != 'Z' && state[2] != 'X';
}

} // namespace

struct ncclComm {
    std::shared_ptr<Member> member;
    std::shared_ptr<int> graphs; /* more than one owner while a recorded sum is there */
    bool leaving;
};

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
    Shared *shared = (Shared *)memory;
    shared->processes[rank] = (int)getpid();
    *out = new ncclComm{std::shared_ptr<Member>(new Member{shared, rank, size, {}}), std::make_shared<int>(0), false};
    if (shared->joined.fetch_add(1) + 1 == size) unlink(id.internal);
    return ncclInProgress;
}

VISIBLE ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    const Member &m = *comm->member;
    bool joining = m.shared->joined < m.size;
    *result = joining || (comm->leaving && m.shared->left < m.size) ? ncclInProgress : ncclSuccess;
    for (int rank = 0; rank < m.size && !joining && !comm->leaving; rank++) {
        if (!lives(m.shared->processes[rank])) *result = ncclRemoteError;
    }
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    comm->leaving = true;
    comm->member->shared->left++;
    return ncclInProgress;
}

VISIBLE ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    const struct timespec pause = {0, 20000};
    const time_t begin = time(nullptr);
    while (comm->graphs.use_count() > 1) {
        if (time(nullptr) - begin > PATIENCE_S) {
            fprintf(stderr, "emulated NCCL: rank %d: graphs hold sums for ever\n", comm->member->rank);
            abort();
        }
        nanosleep(&pause, nullptr);
    }
    delete comm;
    return ncclSuccess;
}

VISIBLE ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->member->aborted = true;
    return ncclCommDestroy(comm);
}

VISIBLE const char *ncclGetErrorString(ncclResult_t) { return "failed"; }
VISIBLE const char *ncclGetLastError(ncclComm_t) { return ""; }
VISIBLE ncclResult_t ncclGroupStart() { return ncclSuccess; }
VISIBLE ncclResult_t ncclGroupEnd() { return ncclSuccess; }

VISIBLE ncclResult_t ncclAllReduce(const void *from, void *to, size_t elems, ncclDataType_t type, ncclRedOp_t op,
                                   ncclComm_t comm, cudaStream_t stream) {
    if (from != to || (type != ncclFloat32 && type != ncclBfloat16) || (op != ncclSum && op != ncclAvg))
        return ncclInvalidArgument;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capture) != cudaSuccess) return ncclUnhandledCudaError;
    auto graph = capture == cudaStreamCaptureStatusNone ? nullptr : comm->graphs;
    Sum work = {comm->member, graph, to, elems, type == ncclBfloat16, op == ncclAvg, 0, 0, 0};
    size_t bytes = elems * (type == ncclBfloat16 ? sizeof(uint16_t) : sizeof(float));
    cudaError_t error = machine_submit("NCCL sum", stream, work, {{to, bytes, false}, {to, bytes, true}});
    return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
#endif
