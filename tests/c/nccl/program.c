/* Sums through NCCL with threads as ranks, over a library that pretends to be CUDA and NCCL: what is summed, when NCCL
 * is not used, and that every failure ends all ranks in time and leaves nothing behind. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "check.h"
#include "comm/internal.h"
#include "comm_ranks.h"
#include "fake.h"

#define ELEMS 1000
#define SOON_S 2.0

static int gpus[FAKE_RANKS]; /* of each rank */

static void choose_gpu(int rank) { fake_thread(rank, gpus[rank]); }

static void run(int size, double timeout_s, Body body) {
    run_ranks(size, &(CommOptions){.timeout_s = timeout_s}, choose_gpu, body);
    CHECK(fake_open == 0);
}

static void each_its_own(void) {
    fake_reset();
    for (int i = 0; i < FAKE_RANKS; i++) gpus[i] = i;
}

/* ---- what is summed ---- */

static float value(int rank, int i) { return (float)(rank + 1) * (float)(i % 97 - 48); }

static void sums_body(Comm *comm) {
    float a[ELEMS], b[7];
    char why[COMM_WHY_BYTES];
    CommDevice *device = NULL;
    cudaStream_t stream = fake_stream_create();
    int size = comm_size(comm), total = size * (size + 1) / 2;
    RANK_CHECK(comm_device_create(comm, &device, why) == STATUS_OK && device != NULL && why[0] == '\0');
    RANK_CHECK(strcmp(comm_device_name(device), "NCCL 2.28.9") == 0);
    for (int round = 0; round < 3; round++) {
        bool average = round == 1, right = true;
        for (int i = 0; i < ELEMS; i++) a[i] = value(comm_rank(comm), i);
        for (int i = 0; i < 7; i++) b[i] = 1;
        const CommPiece pieces[3] = {{a, ELEMS}, {NULL, 0}, {b, 7}};
        RANK_CHECK(comm_device_allreduce(device, pieces, 3, COMM_F32, average, (DeviceStream *)stream) == STATUS_OK);
        DeviceEvent *event = round == 2 ? (DeviceEvent *)stream : NULL;
        RANK_CHECK(comm_device_wait(device, (DeviceStream *)stream, event) == STATUS_OK);
        for (int i = 0; i < ELEMS; i++) {
            float sum = (float)total * (float)(i % 97 - 48);
            right = right && a[i] == (average ? sum / (float)size : sum);
        }
        RANK_CHECK(right);
        RANK_CHECK(b[0] == (average ? 1.0f : (float)size) && b[6] == b[0]);
        RANK_CHECK(comm_barrier(comm) == STATUS_OK);
    }
    comm_device_destroy(device);
    fake_stream_destroy(stream);
}

static void test_sums(void) {
    for (int size = 1; size <= FAKE_RANKS; size++) {
        each_its_own();
        run(size, 30, sums_body);
        CHECK(fake_destroyed == size && fake_aborted == 0);
    }
}

/* ---- when NCCL is not used ---- */

static const char *expected_why;

static void refused_body(Comm *comm) {
    char why[COMM_WHY_BYTES] = "";
    CommDevice *device = (CommDevice *)comm;
    RANK_CHECK(comm_device_create(comm, &device, why) == STATUS_OK && device == NULL);
    RANK_CHECK(strcmp(why, expected_why) == 0);
    RANK_CHECK(comm_barrier(comm) == STATUS_OK);
}

static void test_not_used(void) {
    each_its_own();
    gpus[2] = 0;
    expected_why = "ranks 0 and 2 share one GPU, which NCCL refuses";
    run(3, 30, refused_body);
    each_its_own();
    gpus[1] = -1;
    expected_why = "rank 1: no GPU is selected (no device)";
    run(2, 30, refused_body);
    each_its_own();
    setenv("CGXFFCV_COMM_NCCL", "0", 1);
    expected_why = "rank 0: CGXFFCV_COMM_NCCL=0";
    run(2, 30, refused_body);
    unsetenv("CGXFFCV_COMM_NCCL");
    CHECK(fake_destroyed + fake_aborted == 0);
}

/* ---- failures ---- */

static Status expected_here, expected_elsewhere;
static const char *expected_words;

static void check_failure(const Comm *comm, Status status) {
    bool here = comm_rank(comm) == fake_fault_rank;
    RANK_CHECK(status == (here ? expected_here : expected_elsewhere));
    RANK_CHECK(strstr(error_record()->message, expected_words) != NULL);
}

static void connecting_body(Comm *comm) {
    char why[COMM_WHY_BYTES];
    CommDevice *device = NULL;
    check_failure(comm, comm_device_create(comm, &device, why));
    RANK_CHECK(device == NULL && comm_broken(comm, NULL));
}

static void fault(FakeFault what, int rank, Status here, Status elsewhere, const char *words) {
    each_its_own();
    fake_fault = what;
    fake_fault_rank = rank;
    expected_here = here;
    expected_elsewhere = elsewhere;
    expected_words = words;
}

static void run_in_time(int size, double timeout_s, Body body) {
    double begin = clock_now_seconds();
    run(size, timeout_s, body);
    CHECK(clock_now_seconds() - begin < timeout_s + SOON_S);
}

static void test_connecting_fails(void) {
    fault(FAKE_INIT_FAILS, 1, STATUS_TRANSPORT, STATUS_TRANSPORT, "connecting: system: the cable is out. NCCL_DEBUG");
    run_in_time(3, 30, connecting_body);
    fault(FAKE_NO_ID, 0, STATUS_TRANSPORT, STATUS_TRANSPORT, "no identifier: system");
    run_in_time(3, 30, connecting_body);
    fault(FAKE_INIT_HANGS, 2, STATUS_TIMEOUT, STATUS_TIMEOUT, "within 0.3 s");
    run_in_time(3, 0.3, connecting_body);
}

/* The faulty rank does `differently` in place of the second sum; all others must hear of it. */
static void sum_body_of(Comm *comm, Status (*differently)(CommDevice *device, cudaStream_t stream)) {
    float data[ELEMS] = {0};
    char why[COMM_WHY_BYTES];
    CommDevice *device = NULL;
    cudaStream_t stream = fake_stream_create();
    CommPiece piece = {data, ELEMS};
    bool special = comm_rank(comm) == fake_fault_rank;
    RANK_CHECK(comm_device_create(comm, &device, why) == STATUS_OK && device != NULL);
    Status status;
    if (special && differently != NULL) {
        status = differently(device, stream);
    } else {
        status = comm_device_allreduce(device, &piece, 1, COMM_F32, false, (DeviceStream *)stream);
        DeviceEvent *event = fake_fault_rank == 1 ? (DeviceEvent *)stream : NULL;
        if (status == STATUS_OK) status = comm_device_wait(device, (DeviceStream *)stream, event);
    }
    check_failure(comm, status);
    RANK_CHECK(comm_device_allreduce(device, &piece, 1, COMM_F32, false, (DeviceStream *)stream) == STATUS_TRANSPORT);
    RANK_CHECK(cudaStreamQuery(stream) != cudaErrorNotReady); /* what hung has been ended */
    fake_graphs = false;
    comm_device_destroy(device);
    fake_stream_destroy(stream);
}

static Status only_waits(CommDevice *device, cudaStream_t stream) {
    (void)device, (void)stream;
    usleep(600000);
    return error_fail(STATUS_TIMEOUT, "within 0.3 s");
}

static Comm *comm_of_faulty;

static Status aborts(CommDevice *device, cudaStream_t stream) {
    (void)device, (void)stream;
    usleep(50000);
    comm_abort(comm_of_faulty, "out of coffee");
    return error_fail(STATUS_TRANSPORT, "out of coffee");
}

static void plain_body(Comm *comm) { sum_body_of(comm, NULL); }
static void missing_body(Comm *comm) { sum_body_of(comm, only_waits); }
static void aborting_body(Comm *comm) {
    if (comm_rank(comm) == fake_fault_rank) comm_of_faulty = comm;
    sum_body_of(comm, aborts);
}

static void test_sums_fail(void) {
    fault(FAKE_WELL, 1, STATUS_TIMEOUT, STATUS_TIMEOUT, "within 0.3 s");
    run_in_time(3, 0.3, missing_body);
    fault(FAKE_WELL, 1, STATUS_TIMEOUT, STATUS_TIMEOUT, "within 0.3 s");
    fake_graphs = true;
    run_in_time(2, 0.3, missing_body);
    fault(FAKE_WELL, 1, STATUS_TRANSPORT, STATUS_TRANSPORT, "out of coffee");
    run_in_time(3, 30, aborting_body);
    fault(FAKE_SUM_FAILS, 0, STATUS_TRANSPORT, STATUS_TRANSPORT, "a sum failed: remote: the cable is out");
    run_in_time(2, 30, plain_body);
    fault(FAKE_GPU_LOST, 1, STATUS_CUDA, STATUS_TRANSPORT, "the GPU failed: lost (Lost)");
    run_in_time(4, 30, plain_body);
    CHECK(fake_aborted == 4 && fake_destroyed == 0);
}

/* ---- a rank that dies while the others wait by the means of CUDA ---- */

#define NO_PROCESS 2000000000
static _Atomic int survivors;

/* As of a process that is there no more: no heart beats, and the number is nobody's. */
static void die(Comm *comm) {
    comm_watch_remove(comm);
    atomic_store(&comm_segment_seat(&comm->segment, comm->segment.seat)->pid, NO_PROCESS);
    while (survivors > 0) usleep(10000);
}

static void survive(CommDevice *device, const CommPiece *piece, cudaStream_t stream) {
    double begin = clock_now_seconds();
    RANK_CHECK(comm_device_allreduce(device, piece, 1, COMM_F32, false, (DeviceStream *)stream) == STATUS_OK);
    while (cudaStreamQuery(stream) == cudaErrorNotReady && clock_now_seconds() - begin < 10) usleep(10000);
    RANK_CHECK(cudaStreamQuery(stream) != cudaErrorNotReady);
    RANK_CHECK(comm_device_allreduce(device, piece, 1, COMM_F32, false, (DeviceStream *)stream) == STATUS_PEER_LOST);
    RANK_CHECK(error_record()->rank == fake_fault_rank && strstr(error_record()->message, "died") != NULL);
    RANK_CHECK(comm_device_wait(device, (DeviceStream *)stream, NULL) == STATUS_TRANSPORT);
    RANK_CHECK(strstr(error_record()->message, "the communicator is broken") != NULL);
    survivors--;
}

static void loss_body(Comm *comm) {
    float data[ELEMS] = {0};
    char why[COMM_WHY_BYTES];
    CommDevice *device = NULL;
    cudaStream_t stream = fake_stream_create();
    const CommPiece piece = {data, ELEMS};
    RANK_CHECK(comm_device_create(comm, &device, why) == STATUS_OK && device != NULL);
    if (comm_rank(comm) == fake_fault_rank) {
        die(comm);
    } else {
        survive(device, &piece, stream);
    }
    comm_device_destroy(device);
    fake_stream_destroy(stream);
}

static void test_nobody_waits(void) {
    fault(FAKE_WELL, 1, STATUS_OK, STATUS_OK, "");
    survivors = 2;
    run(3, 30, loss_body);
    CHECK(fake_aborted == 3 && fake_destroyed == 0);
}

int main(void) {
    test_sums();
    test_not_used();
    test_connecting_fails();
    test_sums_fail();
    test_nobody_waits();
    return check_result();
}
