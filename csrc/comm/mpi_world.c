/* The ranks of the whole job, as MPI knows them: initialises MPI, duplicates its world, and finalises it. */
#include "comm/mpi_world.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handlers.h"
#include "base/memory.h"
#include "comm/start.h"

#define MEET_S 0.5

pthread_mutex_t comm_mpi_lock = PTHREAD_MUTEX_INITIALIZER;
/* Duplicates are never freed: MPI would reuse their context number while a late message (from a rank that has left) is
 * still in flight to the old one. */
static CommNetWorld *worlds;
static pid_t initialised_by; /* this process, or the one that forked it, or 0 */
static const CommMpi *mpi;   /* borrowed: set, under the lock, before there is a world */

Status comm_mpi_check(const CommMpi *library, int error, const char *what) {
    if (error == MPI_OK) return STATUS_OK;
    char text[MPI_ERROR_TEXT_BYTES] = "";
    int length = 0;
    library->Error_string(error, text, &length);
    FAIL(STATUS_TRANSPORT, "%s: %.400s", what, text);
}

int comm_mpi_test(const CommMpi *library, void *request, int *finished) {
    return library->Test(request, finished, (void *)library->abi.status_ignore);
}

bool comm_mpi_is_over(const CommMpi *library) {
    int finalized = 0;
    return library == NULL || library->Finalized(&finalized) != MPI_OK || finalized;
}

static void start_mpi(void) {
    int provided;
    Handlers handlers;
    handlers_save(&handlers); /* it opens more libraries */
    const int error = mpi->Init_thread(NULL, NULL, mpi->abi.thread_multiple, &provided);
    handlers_restore(&handlers);
    if (error != MPI_OK) return;
    initialised_by = getpid();
    mpi->Comm_set_errhandler(mpi->abi.comm_world, mpi->abi.errors_return);
    mpi->Comm_set_errhandler(mpi->abi.comm_self, mpi->abi.errors_return);
}

static Status initialise(int64_t deadline_ns, const CommHooks *hooks) {
    int initialised = 0, finalized = 0, provided = 0;
    const CommMpi *open = NULL;
    TRY(comm_mpi_open(&open));
    pthread_mutex_lock(&comm_mpi_lock);
    mpi = open;
    pthread_mutex_unlock(&comm_mpi_lock);
    TRY_MPI(mpi, Initialized, &initialised);
    TRY_MPI(mpi, Finalized, &finalized);
    if (finalized) FAIL(STATUS_TRANSPORT, "MPI has been finalised: no communicator can be made any more");
    if (!initialised) TRY(comm_start_once(start_mpi, "MPI_Init", deadline_ns, hooks));
    TRY_MPI(mpi, Query_thread, &provided);
    if (provided < mpi->abi.thread_serialized) {
        FAIL(STATUS_TRANSPORT,
             "MPI was initialised without thread support (level %d): ask for MPI_THREAD_MULTIPLE, or "
             "let cgxffcv initialise it",
             provided);
    }
    return STATUS_OK;
}

/* Polls one request, letting signals through. */
static Status complete(MpiHandle *request, int64_t deadline_ns, const CommHooks *hooks, const char *what) {
    int finished = 0;
    for (int turn = 1;; turn++) {
        pthread_mutex_lock(&comm_mpi_lock);
        int error = comm_mpi_test(mpi, request, &finished);
        pthread_mutex_unlock(&comm_mpi_lock);
        TRY(comm_mpi_check(mpi, error, what));
        if (finished) return STATUS_OK;
        if (clock_expired(deadline_ns)) {
            FAIL(STATUS_TIMEOUT, "not all ranks reached %s before the deadline: do all of them create it?", what);
        }
        if (turn < 100) {
            sched_yield();
            continue;
        }
        usleep(200);
        if (turn % 100 == 0 && hooks->check != NULL) TRY(hooks->check(hooks->context));
    }
}

Status comm_net_create_world(int64_t deadline_ns, const CommHooks *hooks, CommNetWorld **out, int *rank, int *size) {
    Status status = STATUS_OK;
    CommNetWorld *world = NULL;
    MpiHandle request = 0;
    TRY(initialise(deadline_ns, hooks));
    TRY(memory_calloc(1, sizeof *world, &world));
    world->mpi = mpi;
    TRY_MPI_GOTO(mpi, Comm_rank, mpi->abi.comm_world, &world->rank);
    TRY_MPI_GOTO(mpi, Comm_size, mpi->abi.comm_world, &world->size);
    pthread_mutex_lock(&comm_mpi_lock);
    int error = mpi->Comm_idup(mpi->abi.comm_world, &world->handle, &request);
    pthread_mutex_unlock(&comm_mpi_lock);
    TRY_GOTO(comm_mpi_check(mpi, error, "MPI_Comm_idup"));
    status = complete(&request, deadline_ns, hooks, "the new world communicator");
    if (status != STATUS_OK) {
        world = NULL; /* MPI may still write into it */
        goto done;
    }
    TRY_MPI_GOTO(mpi, Comm_set_errhandler, world->handle, mpi->abi.errors_return);
    *rank = world->rank;
    *size = world->size;
    *out = world;
    pthread_mutex_lock(&comm_mpi_lock);
    world->next = worlds;
    worlds = world;
    pthread_mutex_unlock(&comm_mpi_lock);
    world = NULL;
done:
    memory_free(world);
    return status;
}

Status comm_net_gather(CommNetWorld *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns,
                       const CommHooks *hooks) {
    Status status = STATUS_OK;
    MpiHandle request = 0;
    unsigned char *blocks = NULL; /* owned: rank r's block at r, mine again at the end */
    size_t n = (size_t)world->size;
    TRY(memory_alloc(n + 1, bytes, &blocks));
    memcpy(blocks + n * bytes, mine, bytes);
    pthread_mutex_lock(&comm_mpi_lock);
    int error = mpi->Iallgather(blocks + n * bytes, (int)bytes, mpi->abi.byte, blocks, (int)bytes, mpi->abi.byte,
                                world->handle, &request);
    pthread_mutex_unlock(&comm_mpi_lock);
    TRY_GOTO(comm_mpi_check(mpi, error, "MPI_Iallgather"));
    status = complete(&request, deadline_ns, hooks, "the new world communicator");
    if (status == STATUS_OK) {
        memcpy(all, blocks, n * bytes);
    } else {
        blocks = NULL; /* MPI may still write into them */
    }
done:
    memory_free(blocks);
    return status;
}

Status comm_net_world_allreduce(CommNetWorld *world, float *data, int64_t elems) {
    const int64_t most = INT64_C(1) << 30;
    for (int64_t at = 0; at < elems; at += most) {
        int count = (int)(elems - at < most ? elems - at : most);
        TRY_MPI(mpi, Allreduce, (const void *)mpi->abi.in_place, data + at, count, mpi->abi.float32, mpi->abi.sum,
                world->handle);
    }
    return STATUS_OK;
}

/* Waits until every rank has reached the end of its program; after a failure some may never, and it gives up. */
static bool wait_for_all_ranks(bool after_failure) {
    MpiHandle request = 0;
    int64_t deadline_ns = clock_deadline_ns(after_failure ? MEET_S : 1e9);
    int finished = 0;
    if (mpi->Ibarrier(mpi->abi.comm_world, &request) != MPI_OK) return false;
    while (!clock_expired(deadline_ns)) {
        if (comm_mpi_test(mpi, &request, &finished) != MPI_OK) return false;
        if (finished) return true;
        usleep(500);
    }
    return false;
}

void comm_net_finalize(bool after_failure) {
    if (initialised_by != getpid() || comm_mpi_is_over(mpi)) return;
    if (wait_for_all_ranks(after_failure)) mpi->Finalize();
}
