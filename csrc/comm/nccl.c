/* Sums of device memory through NCCL, whose library is loaded when several ranks want it. Every call is non-blocking
 * and polled, so that each wait has the communicator's deadline and notices abort, lost ranks and signals. */
#include "comm/internal.h"

#include <nccl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/environment.h"
#include "base/library.h"
#include "base/memory.h"

#define SWITCH_VARIABLE "CGXFFCV_COMM_NCCL"
#define LIBRARY_VARIABLE "CGXFFCV_NCCL_LIBRARY"
#define OLDEST_VERSION 21400 /* the first whose calls need not block */
#define FINALIZE_S 5.0
#define ABORT_S 0.5 /* how long a failure waits for its own cleanup */
#define PATIENT_BEATS 10

/* Its functions, found by name. */
typedef struct Nccl {
    void *library;
    int version;
    __typeof__(ncclGetVersion) *get_version;
    __typeof__(ncclGetUniqueId) *get_unique_id;
    __typeof__(ncclCommInitRankConfig) *comm_init;
    __typeof__(ncclCommFinalize) *comm_finalize;
    __typeof__(ncclCommDestroy) *comm_destroy;
    __typeof__(ncclCommAbort) *comm_abort;
    __typeof__(ncclCommGetAsyncError) *async_error;
    __typeof__(ncclGetErrorString) *error_string;
    __typeof__(ncclGetLastError) *last_error;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
} Nccl;

struct CommDevice {
    Comm *comm;             /* borrowed */
    int gpu;                /* the calling thread's when it was made */
    uint32_t number;        /* among those of the communicator, from 1 on */
    int users;              /* that have created it and not destroyed it; under `lock` */
    CommDevice *next;       /* in `devices` */
    DeviceEvent *ran;       /* owned: recorded after the sum that was enqueued last */
    pthread_mutex_t busy;   /* around all use of what follows */
    ncclComm_t nccl;        /* owned; NULL once aborted */
    pthread_t abort_thread; /* the thread that ends it, if `aborting` */
    bool aborting;
    CommGuard guard;
    int failures; /* consecutive beats on which NCCL reported one while no rank was known to be lost */
    char name[32];
};

/* What a rank sends the others before they decide. */
typedef struct Offer {
    int32_t version;       /* 0: it cannot */
    uint32_t number;       /* of the connection it has already; 0: none */
    unsigned char gpu[16]; /* unique */
    char why[COMM_WHY_BYTES - 32];
} Offer;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CommDevice *devices; /* of this process, under the lock */
static Nccl nccl;
static char load_why[COMM_WHY_BYTES - 32];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- the library ---- */

static bool find(const char *name, void *out) {
    if (library_function(nccl.library, name, out)) return true;
    snprintf(load_why, sizeof load_why, "the NCCL library has no %s", name);
    return false;
}

static bool find_all(void) {
    return find("ncclGetVersion", &nccl.get_version) && find("ncclGetUniqueId", &nccl.get_unique_id) &&
           find("ncclCommInitRankConfig", &nccl.comm_init) && find("ncclCommFinalize", &nccl.comm_finalize) &&
           find("ncclCommDestroy", &nccl.comm_destroy) && find("ncclCommAbort", &nccl.comm_abort) &&
           find("ncclCommGetAsyncError", &nccl.async_error) && find("ncclGetErrorString", &nccl.error_string) &&
           find("ncclGetLastError", &nccl.last_error) && find("ncclAllReduce", &nccl.all_reduce) &&
           find("ncclGroupStart", &nccl.group_start) && find("ncclGroupEnd", &nccl.group_end);
}

static void nccl_load(void) {
    static const LibraryRequest request = {.variable = LIBRARY_VARIABLE,
                                           .package = "nvidia/nccl/lib/libnccl.so.2",
                                           .name = "libnccl.so.2",
                                           .remedy = "apt install libnccl2, or pip install 'cgxffcv[cuda13]'"};
    char why[LIBRARY_WHY_BYTES], path[LIBRARY_PATH_BYTES];
    int version = 0;
    nccl.library = library_open(&request, why);
    if (nccl.library != NULL) library_path(nccl.library, path);
    if (nccl.library == NULL) {
        snprintf(load_why, sizeof load_why, "%.*s", (int)sizeof load_why - 1, why);
    } else if (find_all() && nccl.get_version(&version) != ncclSuccess) {
        snprintf(load_why, sizeof load_why, "%.150s does not report its version", path);
    } else if (version > 0 && version < OLDEST_VERSION) {
        snprintf(load_why, sizeof load_why, "NCCL is too old (%d); 2.14 or newer is needed", version);
    } else {
        nccl.version = version;
    }
}

int comm_nccl_version(void) {
    pthread_once(&once, nccl_load);
    return nccl.version;
}

/* ---- failures ---- */

static Status nccl_fail(ncclResult_t result, const char *what, ncclComm_t comm) {
    const char *detail = nccl.last_error(comm);
    FAIL(
        STATUS_TRANSPORT,
        "NCCL: %s: %s%s%s. NCCL_DEBUG=WARN in the environment shows more; CGXFFCV_COMM_NCCL=0 goes through host memory "
        "instead",
        what, nccl.error_string(result), detail == NULL || *detail == '\0' ? "" : ": ", detail == NULL ? "" : detail);
}

/* Polls until the operation that was started is complete. */
static Status await_completion(CommDevice *device, ncclResult_t result, const char *what) {
    int64_t since_ns = clock_now_ns();
    while (result == ncclInProgress) {
        TRY(comm_progress(device->comm));
        ncclResult_t asked = nccl.async_error(device->nccl, &result);
        if (asked != ncclSuccess) result = asked;
        if (result == ncclInProgress) comm_poll_pause(since_ns);
    }
    return result == ncclSuccess ? STATUS_OK : comm_poll_blame(device->comm, nccl_fail(result, what, device->nccl));
}

static void *abort_nccl(void *comm) {
    (void)nccl.comm_abort(comm);
    return NULL;
}

/* Waits for the thread that ends NCCL; false if it has not finished within the time. */
static bool await_abort(CommDevice *device, double seconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    int64_t ns = deadline.tv_nsec + (int64_t)(seconds * 1e9);
    deadline.tv_sec += (time_t)(ns / 1000000000);
    deadline.tv_nsec = (long)(ns % 1000000000);
    if (device->aborting && pthread_timedjoin_np(device->abort_thread, NULL, &deadline) == 0) device->aborting = false;
    return !device->aborting;
}

/* Ends what hangs on the device. NCCL does that at once, but its call returns only when no captured graph holds a sum
 * any more, and the caller destroys its graphs after it has seen the failure: so a thread makes the call. */
static void start_abort(CommDevice *device) {
    if (device->nccl == NULL) return;
    device->aborting = pthread_create(&device->abort_thread, NULL, abort_nccl, device->nccl) == 0;
    if (!device->aborting) (void)nccl.comm_abort(device->nccl);
    device->nccl = NULL;
}

/* Ends NCCL after a failure; the error record stays as it is. */
static Status give_up(CommDevice *device, Status status) {
    ErrorRecord cause = *error_record();
    start_abort(device);
    (void)await_abort(device, ABORT_S);
    (void)cudaGetLastError();
    return status == STATUS_OK ? status : error_adopt(&cause);
}

/* Asks what has become of the sums. */
static ncclResult_t query_error(const CommDevice *device) {
    ncclResult_t result = ncclSuccess, asked = nccl.async_error(device->nccl, &result);
    return asked != ncclSuccess ? asked : result;
}

static bool is_failure(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }

/* Otherwise a sum would never end, nor a wait for it through CUDA. A thread inside one of our calls notices by itself.
 * A failure of NCCL may be due to a rank that is soon found to be lost, so it gets some beats first. */
static void nccl_beat(void *context, bool lost) {
    CommDevice *device = context;
    if (pthread_mutex_trylock(&device->busy) != 0) return;
    bool failed = !lost && device->nccl != NULL && is_failure(query_error(device));
    device->failures = failed ? device->failures + 1 : 0;
    if (device->failures == PATIENT_BEATS) {
        AbortRecord record = {.code = STATUS_TRANSPORT, .rank = device->comm->rank};
        snprintf(record.message, sizeof record.message, "rank %d: NCCL failed during a sum", device->comm->rank);
        comm_segment_abort(&device->comm->segment, &record);
        lost = true;
    }
    if (lost) start_abort(device);
    pthread_mutex_unlock(&device->busy);
}

static void nccl_release(CommDevice *device) {
    bool mine = device->comm->owner_pid == (int)getpid(); /* a forked child has none of the threads */
    if (mine && !await_abort(device, FINALIZE_S)) (void)pthread_detach(device->abort_thread);
    if (mine) device_event_destroy(device->ran);
    pthread_mutex_destroy(&device->busy);
    memory_free(device);
}

static Status check_alive(const CommDevice *device) {
    if (device->nccl == NULL) FAIL(STATUS_TRANSPORT, "NCCL was ended by an earlier failure: make a new communicator");
    return STATUS_OK;
}

/* ---- connecting ---- */

static Offer make_offer(void) {
    Offer offer = {0};
    struct cudaDeviceProp properties;
    int index;
    bool wanted = true;
    if (environment_switch(SWITCH_VARIABLE, &wanted) != STATUS_OK) {
        snprintf(offer.why, sizeof offer.why, "%.*s", (int)sizeof offer.why - 1, error_record()->message);
    } else if (!wanted) {
        snprintf(offer.why, sizeof offer.why, SWITCH_VARIABLE "=0");
    } else if (comm_nccl_version() == 0) {
        snprintf(offer.why, sizeof offer.why, "%s", load_why);
    } else if (cudaGetDevice(&index) != cudaSuccess || cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
        snprintf(offer.why, sizeof offer.why, "no GPU is selected (%s)", cudaGetErrorString(cudaGetLastError()));
    } else {
        memcpy(offer.gpu, &properties.uuid, sizeof offer.gpu);
        offer.version = nccl.version;
    }
    return offer;
}

/* The first reason not to use NCCL, or "". */
static void check_offers(const Offer *offers, int size, char *why) {
    why[0] = '\0';
    for (int a = 0; a < size && why[0] == '\0'; a++) {
        if (offers[a].version == 0) {
            snprintf(why, COMM_WHY_BYTES, "rank %d: %s", a, offers[a].why);
        } else if (offers[a].version != offers[0].version) {
            snprintf(why, COMM_WHY_BYTES, "ranks 0 and %d have different versions of NCCL (%d and %d)", a,
                     offers[0].version, offers[a].version);
        }
        for (int b = 0; b < a && why[0] == '\0'; b++) {
            if (memcmp(offers[a].gpu, offers[b].gpu, sizeof offers[a].gpu) != 0) continue;
            snprintf(why, COMM_WHY_BYTES, "ranks %d and %d share one GPU, which NCCL refuses", b, a);
        }
    }
}

/* Gives all ranks rank 0's id, or its failure. */
static Status share_id(Comm *comm, ncclUniqueId *id) {
    struct {
        ncclUniqueId id;
        int32_t result;
    } message = {0};
    if (comm->rank == 0) message.result = (int32_t)nccl.get_unique_id(&message.id);
    TRY(comm_broadcast(comm, 0, &message, sizeof message));
    *id = message.id;
    return message.result == ncclSuccess ? STATUS_OK : nccl_fail((ncclResult_t)message.result, "no identifier", NULL);
}

static Status connect(CommDevice *device) {
    Comm *comm = device->comm;
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    TRY(share_id(comm, &id));
    Status status =
        await_completion(device, nccl.comm_init(&device->nccl, comm->size, id, comm->rank, &config), "connecting");
    return status == STATUS_OK ? comm_barrier(comm) : give_up(device, status);
}

/* The communicator's newest connection that works, with one user more; NULL if there is none. */
static CommDevice *share_newest(const Comm *comm) {
    CommDevice *newest = NULL;
    int gpu = -1;
    if (cudaGetDevice(&gpu) != cudaSuccess) return NULL;
    pthread_mutex_lock(&lock);
    for (CommDevice *device = devices; device != NULL; device = device->next) {
        bool fits = device->comm == comm && device->gpu == gpu && device->nccl != NULL;
        if (fits && (newest == NULL || device->number > newest->number)) newest = device;
    }
    if (newest != NULL) newest->users++;
    pthread_mutex_unlock(&lock);
    return newest;
}

static Status nccl_connect(Comm *comm, uint32_t number, CommDevice **out) {
    Status status = STATUS_OK;
    CommDevice *device = NULL;
    TRY(memory_calloc(1, sizeof *device, &device));
    device->comm = comm;
    device->number = number;
    device->users = 1;
    device->guard = (CommGuard){.comm = comm, .beat = nccl_beat, .context = device};
    pthread_mutex_init(&device->busy, NULL);
    snprintf(device->name, sizeof device->name, "NCCL %d.%d.%d", nccl.version / 10000, nccl.version / 100 % 100,
             nccl.version % 100);
    TRY_GOTO(device_current(&device->gpu));
    TRY_GOTO(device_event_create(&device->ran));
    TRY_GOTO(connect(device));
    comm_watch_guard(&device->guard);
    pthread_mutex_lock(&lock);
    device->next = devices;
    devices = device;
    pthread_mutex_unlock(&lock);
    *out = device;
    device = NULL;
done:
    if (device != NULL) {
        (void)give_up(device, STATUS_OK);
        nccl_release(device);
    }
    return status;
}

/* Shares a connection if all ranks have the same one already: they need not have dropped theirs at the same time. */
static Status nccl_create(Comm *comm, CommDevice **out, char *why) {
    Status status = STATUS_OK;
    CommDevice *shared = share_newest(comm);
    Offer mine = make_offer(), *offers = NULL;
    bool same = shared != NULL;
    uint32_t greatest = 0;
    *out = NULL;
    mine.number = shared == NULL ? 0 : shared->number;
    TRY_GOTO(memory_calloc((size_t)comm->size, sizeof *offers, &offers));
    TRY_GOTO(comm_allgather(comm, &mine, sizeof mine, offers));
    check_offers(offers, comm->size, why);
    for (int r = 0; r < comm->size; r++) {
        same = same && offers[r].number == mine.number;
        if (offers[r].number > greatest) greatest = offers[r].number;
    }
    if (why[0] != '\0') goto done;
    if (!same) TRY_GOTO(nccl_connect(comm, greatest + 1, out));
    if (same) {
        *out = shared;
        shared = NULL;
    }
done:
    memory_free(offers);
    comm_device_destroy(shared);
    return status;
}

Status comm_device_create(Comm *comm, CommDevice **out, char *why) {
    TRY(comm_begin(comm, "start of NCCL", 0));
    return comm_end(comm, nccl_create(comm, out, why));
}

/* All ranks finalise together; a rank that is alone does not wait long. */
static bool nccl_finalize(CommDevice *device) {
    int64_t deadline_ns = clock_deadline_ns(FINALIZE_S), since_ns = clock_now_ns();
    ncclResult_t result = nccl.comm_finalize(device->nccl);
    while (result == ncclInProgress && !clock_expired(deadline_ns)) {
        if (nccl.async_error(device->nccl, &result) != ncclSuccess) return false;
        if (comm_broken(device->comm, NULL)) return false;
        if (result == ncclInProgress) comm_poll_pause(since_ns);
    }
    return result == ncclSuccess;
}

/* Drops one user; true if it was the last: then the connection is no longer in the list. */
static bool nccl_forget(CommDevice *device) {
    pthread_mutex_lock(&lock);
    bool last = --device->users == 0;
    CommDevice **link = &devices;
    while (last && *link != NULL && *link != device) link = &(*link)->next;
    if (last && *link != NULL) *link = device->next;
    pthread_mutex_unlock(&lock);
    return last;
}

void comm_device_destroy(CommDevice *device) {
    if (device == NULL || !nccl_forget(device)) return;
    comm_watch_unguard(&device->guard);
    if (device->nccl != NULL && device->comm->owner_pid == (int)getpid()) {
        bool quiet = !comm_broken(device->comm, NULL) && nccl_finalize(device);
        if (quiet) {
            (void)nccl.comm_destroy(device->nccl);
        } else {
            (void)give_up(device, STATUS_OK);
        }
    }
    nccl_release(device);
}

const char *comm_device_name(const CommDevice *device) { return device->name; }

/* ---- sums ---- */

static ncclDataType_t nccl_type(CommType type) {
    return type == COMM_F32 ? ncclFloat32 : type == COMM_F16 ? ncclFloat16 : ncclBfloat16;
}

static ncclResult_t nccl_put(CommDevice *device, const CommPiece *pieces, int count, CommType type, ncclRedOp_t op,
                             cudaStream_t stream) {
    ncclResult_t result = nccl.group_start();
    for (int i = 0; i < count && (result == ncclSuccess || result == ncclInProgress); i++) {
        if (pieces[i].elems == 0) continue;
        result = nccl.all_reduce(pieces[i].data, pieces[i].data, (size_t)pieces[i].elems, nccl_type(type), op,
                                 device->nccl, stream);
    }
    ncclResult_t ended = nccl.group_end();
    return result == ncclSuccess || result == ncclInProgress ? ended : result;
}

static Status nccl_allreduce(CommDevice *device, const CommPiece *pieces, int count, CommType type, bool average,
                             DeviceStream *stream) {
    bool capturing;
    TRY(check_alive(device));
    TRY(device_capturing(stream, &capturing));
    if (!capturing) TRY(device_stream_wait(stream, device->ran));
    ncclResult_t result = nccl_put(device, pieces, count, type, average ? ncclAvg : ncclSum, (cudaStream_t)stream);
    TRY(await_completion(device, result, "a sum over all ranks"));
    return capturing ? STATUS_OK : device_event_record(device->ran, stream);
}

/* The other ranks are notified of a failure first. */
static Status nccl_end(CommDevice *device, Status status) {
    status = comm_end(device->comm, status);
    if (status != STATUS_OK) status = give_up(device, status);
    pthread_mutex_unlock(&device->busy);
    return status;
}

/* If the communicator has failed in the meantime, earlier sums would hang on their streams for ever: ends them. */
static Status nccl_begin(CommDevice *device) {
    Status status = comm_begin(device->comm, "sum on GPUs", 0);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&device->busy);
        return status;
    }
    if (!comm_broken(device->comm, NULL) || pthread_mutex_trylock(&device->busy) != 0) return status;
    status = give_up(device, status);
    pthread_mutex_unlock(&device->busy);
    return status;
}

Status comm_device_allreduce(CommDevice *device, const CommPiece *pieces, int count, CommType type, bool average,
                             DeviceStream *stream) {
    TRY(nccl_begin(device));
    return nccl_end(device, nccl_allreduce(device, pieces, count, type, average, stream));
}

static Status check_sums(void *context) {
    const CommDevice *device = context;
    TRY(check_alive(device));
    ncclResult_t result = query_error(device);
    return is_failure(result) ? nccl_fail(result, "a sum failed", device->nccl) : STATUS_OK;
}

Status comm_device_wait(CommDevice *device, DeviceStream *stream, DeviceEvent *event) {
    TRY(nccl_begin(device));
    Status status = comm_poll_device(device->comm, stream, event, check_sums, device);
    /* A sum that was stopped before this wait began counts as done, too. */
    if (status == STATUS_OK) status = comm_poll_blame(device->comm, check_sums(device));
    return nccl_end(device, status);
}
