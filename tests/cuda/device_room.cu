/* The device room, on a GPU or emulated: memory, streams, events, recorded graphs, failures (test_device.py). */
#include "device/kernel.cuh"

#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { COUNT = 1000, THREADS = 128, HUGE_SHARED = 64 << 10 };

static __global__ void add(int *values, int count, int amount) {
    GRID_LOOP(i, count) { values[i] += amount; }
}

static __global__ void double_into(const int *from, int *to, int count) {
    GRID_LOOP(i, count) { to[i] = 2 * from[i]; }
}

static __global__ void through_shared(int *values) {
    DYNAMIC_SHARED(int, tile);
    int far = HUGE_SHARED / (int)sizeof(int) - 1 - (int)threadIdx.x;
    tile[far] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = tile[HUGE_SHARED / (int)sizeof(int) - THREADS + (int)threadIdx.x];
}

static bool all_are(const int *values, int count, int step, int offset) {
    for (int i = 0; i < count; i++) {
        if (values[i] != step * i + offset) return false;
    }
    return true;
}

static bool message_has(const char *text) { return strstr(error_record()->message, text) != NULL; }

typedef struct Fixture {
    DeviceStream *stream, *side;
    DeviceEvent *begin, *end;
    int *device, *other, *host;
} Fixture;

static Status set_up(Fixture *f) {
    TRY(device_select(0));
    TRY(device_stream_create(&f->stream));
    TRY(device_stream_create(&f->side));
    TRY(device_event_create(&f->begin));
    TRY(device_event_create(&f->end));
    TRY(device_alloc(COUNT * sizeof(int), &f->device));
    TRY(device_alloc(COUNT * sizeof(int), &f->other));
    return device_host_alloc(COUNT * sizeof(int), &f->host);
}

static void tear_down(Fixture *f) {
    device_event_destroy(f->begin);
    device_event_destroy(f->end);
    device_free(f->device);
    device_free(f->other);
    device_host_free(f->host);
    device_stream_destroy(f->side);
    device_stream_destroy(f->stream);
}

/* The numbers 0, 1, ... in device memory. */
static Status count_up(Fixture *f) {
    for (int i = 0; i < COUNT; i++) f->host[i] = i;
    TRY(device_copy(f->device, f->host, COUNT * sizeof(int), f->stream));
    return device_stream_synchronize(f->stream);
}

static Status fetch(Fixture *f, const int *from) {
    memset(f->host, 0x55, COUNT * sizeof(int));
    TRY(device_copy(f->host, from, COUNT * sizeof(int), f->stream));
    return device_stream_synchronize(f->stream);
}

static void test_copies(Fixture *f) {
    CHECK_OK(count_up(f));
    CHECK_OK(device_copy(f->other, f->device, COUNT * sizeof(int), f->stream));
    CHECK_OK(fetch(f, f->other));
    CHECK(all_are(f->host, COUNT, 1, 0));
    CHECK_OK(device_fill(f->other, 0, COUNT * sizeof(int), f->stream));
    CHECK_OK(fetch(f, f->other));
    CHECK(all_are(f->host, COUNT, 0, 0));
    CHECK_OK(device_copy(f->other, f->device, 0, f->stream));
    CHECK_OK(device_synchronize());
    CHECK((uintptr_t)f->device % 256 == 0 && (uintptr_t)f->other % 256 == 0);
    device_free(NULL);
    device_host_free(NULL);
}

static void test_events(Fixture *f) {
    float milliseconds = -1.0f;
    CHECK_OK(count_up(f));
    CHECK_OK(device_event_record(f->begin, f->stream));
    CHECK_OK(LAUNCH(add, 4, THREADS, 0, f->stream, f->device, COUNT, 5));
    CHECK_OK(device_event_record(f->end, f->stream));
    CHECK_OK(device_stream_wait(f->side, f->end));
    CHECK_OK(LAUNCH(double_into, 4, THREADS, 0, f->side, f->device, f->other, COUNT));
    CHECK_OK(device_stream_synchronize(f->side));
    CHECK_OK(fetch(f, f->other));
    CHECK(all_are(f->host, COUNT, 2, 10));
    CHECK_OK(device_event_synchronize(f->end));
    CHECK_OK(device_event_elapsed(f->begin, f->end, &milliseconds));
    CHECK(milliseconds >= 0.0f);
}

static Status record(Fixture *f) {
    TRY(LAUNCH(add, ceil_div(COUNT, THREADS), THREADS, 0, f->stream, f->device, COUNT, 1));
    TRY(device_event_record(f->begin, f->stream));
    TRY(device_stream_wait(f->side, f->begin));
    TRY(LAUNCH(double_into, 3, THREADS, 0, f->side, f->device, f->other, COUNT));
    TRY(device_event_record(f->end, f->side));
    TRY(device_stream_wait(f->stream, f->end));
    return LAUNCH(add, 1, THREADS, 0, f->stream, f->other, COUNT, 7);
}

static void test_graph(Fixture *f) {
    DeviceGraph *graph = NULL;
    CHECK_OK(count_up(f));
    CHECK_OK(device_capture_begin(f->stream));
    CHECK_OK(record(f));
    CHECK_OK(device_capture_end(f->stream, STATUS_OK, &graph));
    CHECK_OK(fetch(f, f->device));
    CHECK(all_are(f->host, COUNT, 1, 0)); /* recorded, not run */
    for (int i = 0; graph != NULL && i < 3; i++) CHECK_OK(device_graph_launch(graph, f->stream));
    CHECK_OK(fetch(f, f->device));
    CHECK(all_are(f->host, COUNT, 1, 3));
    CHECK_OK(fetch(f, f->other));
    CHECK(all_are(f->host, COUNT, 2, 13));
    device_graph_destroy(graph);
    device_graph_destroy(NULL);
}

/* What may not be done while recording spoils the recording, not the stream. */
static void test_spoiled_graph(Fixture *f) {
    DeviceGraph *graph = NULL;
    void *memory = NULL;
    CHECK_OK(count_up(f));
    CHECK_OK(device_capture_begin(f->stream));
    CHECK_OK(LAUNCH(add, 1, THREADS, 0, f->stream, f->device, COUNT, 1));
    CHECK(device_stream_synchronize(f->stream) == STATUS_CUDA);
    CHECK(device_capture_end(f->stream, STATUS_OK, &graph) == STATUS_CUDA);
    CHECK(graph == NULL);
    CHECK_OK(device_capture_begin(f->stream));
    CHECK(device_alloc(64, &memory) != STATUS_OK);
    CHECK(device_capture_end(f->stream, STATUS_OK, &graph) == STATUS_CUDA);
    CHECK(device_capture_end(f->stream, STATUS_OK, &graph) == STATUS_CUDA);
    CHECK_OK(device_capture_begin(f->stream));
    CHECK(device_capture_end(f->stream, STATUS_PEER_LOST, &graph) == STATUS_PEER_LOST && graph == NULL);
    CHECK_OK(LAUNCH(add, 2, THREADS, 0, f->stream, f->device, COUNT, 2));
    CHECK_OK(fetch(f, f->device));
    CHECK(all_are(f->host, COUNT, 1, 2));
    test_graph(f);
}

static void test_launches(Fixture *f) {
    CHECK_OK(count_up(f));
    CHECK_OK(LAUNCH(add, 0, THREADS, 0, f->stream, f->device, COUNT, 1));
    CHECK(LAUNCH(add, 1, 2048, 0, f->stream, f->device, COUNT, 1) == STATUS_CUDA);
    CHECK(message_has("kernel add") && message_has("block 2048 x 1 x 1"));
    CHECK(LAUNCH(add, 1, THREADS, 1 << 30, f->stream, f->device, COUNT, 1) == STATUS_CUDA);
    CHECK_OK(LAUNCH(through_shared, 1, THREADS, HUGE_SHARED, f->stream, f->device));
    CHECK_OK(fetch(f, f->device));
    CHECK(all_are(f->host, THREADS, -1, THREADS - 1));
    CHECK(f->host[THREADS] == THREADS);
}

static void test_refusals(void) {
    DeviceInfo info;
    void *memory = NULL;
    CHECK_OK(device_describe(0, &info));
    size_t free_bytes = 0;
    CHECK_OK(device_free_memory(&free_bytes));
    CHECK(info.name[0] != '\0' && info.multiprocessors > 0 && free_bytes > 0 && info.memory_bytes >= free_bytes);
    CHECK(device_count() > 0 && device_why()[0] == '\0');
    CHECK(device_select(-1) == STATUS_ARGUMENT);
    CHECK(device_select(device_count()) == STATUS_ARGUMENT);
    CHECK(message_has("there is no GPU"));
    CHECK(device_describe(device_count(), &info) == STATUS_ARGUMENT);
    CHECK(device_alloc((size_t)1 << 46, &memory) == STATUS_MEMORY);
    CHECK(message_has("67108865 MiB") && message_has("smaller batch") && memory == NULL);
    CHECK_OK(device_alloc(0, &memory));
    device_free(memory);
}

/* Reads too early: what the host sees is open on a GPU. */
static Status read_without_waiting(Fixture *f) {
    TRY(set_up(f));
    TRY(count_up(f));
    TRY(LAUNCH(add, 1, THREADS, 0, f->stream, f->device, COUNT, 100));
    TRY(device_event_record(f->end, f->stream));
    TRY(device_copy(f->host, f->device, COUNT * sizeof(int), f->side)); /* does not wait for the event */
    TRY(device_stream_synchronize(f->side));
    printf("%d\n", f->host[0]);
    TRY(device_stream_wait(f->side, f->end));
    TRY(device_copy(f->host, f->device, COUNT * sizeof(int), f->side));
    printf("%d\n", f->host[0]);
    TRY(device_stream_synchronize(f->side));
    printf("%d\n", f->host[0]);
    return STATUS_OK;
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "select") == 0) {
        Status status = device_select(0);
        puts(status == STATUS_OK ? "selected" : error_record()->message);
        return status != STATUS_OK;
    }
    Fixture fixture = {};
    if (count > 1 && strcmp(arguments[1], "early") == 0) return read_without_waiting(&fixture);
    CHECK_OK(set_up(&fixture));
    if (check_failures != 0) return check_result();
    test_copies(&fixture);
    test_events(&fixture);
    test_graph(&fixture);
    test_spoiled_graph(&fixture);
    test_launches(&fixture);
    tear_down(&fixture);
    test_refusals();
    return check_result();
}
