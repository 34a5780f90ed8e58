/* The device interface of a build without CUDA. */
#include "device/device.h"

#define WHY "this build has no CUDA"

static Status device_absent(void) { return error_fail(STATUS_NOT_BUILT, WHY ". " DEVICE_CUDA_REMEDY); }

int device_count(void) { return 0; }
const char *device_why(void) { return WHY ". " DEVICE_CUDA_REMEDY; }

const char *device_architectures(void) { return ""; }

Status device_describe(int index, DeviceInfo *out) {
    (void)index, (void)out;
    return device_absent();
}

Status device_free_memory(size_t *out) {
    (void)out;
    return device_absent();
}

Status device_select(int index) {
    (void)index;
    return device_absent();
}

Status device_current(int *out) {
    (void)out;
    return device_absent();
}

Status device_locate(const void *address, int *out) {
    (void)address, (void)out;
    return device_absent();
}

Status device_alloc(size_t bytes, void *out) {
    (void)bytes, (void)out;
    return device_absent();
}

void device_free(void *pointer) { (void)pointer; }

Status device_host_alloc(size_t bytes, void *out) {
    (void)bytes, (void)out;
    return device_absent();
}

void device_host_free(void *pointer) { (void)pointer; }

Status device_host_register(void *memory, size_t bytes, void *out) {
    (void)memory, (void)bytes, (void)out;
    return device_absent();
}

void device_host_unregister(void *memory) { (void)memory; }

Status device_share(void *memory, unsigned char handle[DEVICE_HANDLE_BYTES]) {
    (void)memory, (void)handle;
    return device_absent();
}

Status device_shared_open(const unsigned char handle[DEVICE_HANDLE_BYTES], void *out) {
    (void)handle, (void)out;
    return device_absent();
}

void device_shared_close(void *memory) { (void)memory; }

Status device_query(DeviceStream *stream, DeviceEvent *event, bool *done) {
    (void)stream, (void)event, (void)done;
    return device_absent();
}

Status device_stream_create(DeviceStream **out) {
    (void)out;
    return device_absent();
}

void device_stream_destroy(DeviceStream *stream) { (void)stream; }

Status device_stream_synchronize(DeviceStream *stream) {
    (void)stream;
    return device_absent();
}

Status device_capturing(DeviceStream *stream, bool *out) {
    (void)stream, (void)out;
    return device_absent();
}

void device_relax_capture(void) {}

Status device_copy(void *to, const void *from, size_t bytes, DeviceStream *stream) {
    (void)to, (void)from, (void)bytes, (void)stream;
    return device_absent();
}

Status device_fill(void *to, int byte, size_t bytes, DeviceStream *stream) {
    (void)to, (void)byte, (void)bytes, (void)stream;
    return device_absent();
}

Status device_event_create(DeviceEvent **out) {
    (void)out;
    return device_absent();
}

void device_event_destroy(DeviceEvent *event) { (void)event; }

Status device_event_record(DeviceEvent *event, DeviceStream *stream) {
    (void)event, (void)stream;
    return device_absent();
}

Status device_event_synchronize(DeviceEvent *event) {
    (void)event;
    return device_absent();
}

Status device_stream_wait(DeviceStream *stream, DeviceEvent *event) {
    (void)stream, (void)event;
    return device_absent();
}

Status device_event_elapsed(DeviceEvent *begin, DeviceEvent *end, float *out_ms) {
    (void)begin, (void)end, (void)out_ms;
    return device_absent();
}

Status device_capture_begin(DeviceStream *stream) {
    (void)stream;
    return device_absent();
}

Status device_capture_end(DeviceStream *stream, DeviceGraph **out) {
    (void)stream, (void)out;
    return device_absent();
}

Status device_graph_launch(DeviceGraph *graph, DeviceStream *stream) {
    (void)graph, (void)stream;
    return device_absent();
}

void device_graph_destroy(DeviceGraph *graph) { (void)graph; }

Status device_synchronize(void) { return device_absent(); }
