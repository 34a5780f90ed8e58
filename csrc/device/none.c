/* The device interface of a build without CUDA. */
#include "device/device.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

#define WHY "this build has no CUDA"

static Status device_absent(void) { return error_fail(STATUS_NOT_BUILT, WHY ". " DEVICE_CUDA_REMEDY); }

int device_count(void) { return 0; }
const char *device_why(void) { return WHY ". " DEVICE_CUDA_REMEDY; }

const char *device_architectures(void) { return ""; }

Status device_describe(int index, DeviceInfo *out) { return device_absent(); }

Status device_free_memory(size_t *out) { return device_absent(); }

Status device_select(int index) { return device_absent(); }

Status device_current(int *out) { return device_absent(); }

Status device_locate(const void *address, int *out) { return device_absent(); }

Status device_alloc(size_t bytes, void *out) { return device_absent(); }

void device_free(void *pointer) {}

Status device_host_alloc(size_t bytes, void *out) { return device_absent(); }

void device_host_free(void *pointer) {}

Status device_host_register(void *memory, size_t bytes, void *out) { return device_absent(); }

void device_host_unregister(void *memory) {}

Status device_share(void *memory, unsigned char handle[DEVICE_HANDLE_BYTES]) { return device_absent(); }

Status device_shared_open(const unsigned char handle[DEVICE_HANDLE_BYTES], void *out) { return device_absent(); }

void device_shared_close(void *memory) {}

Status device_query(DeviceStream *stream, DeviceEvent *event, bool *done) { return device_absent(); }

Status device_stream_create(DeviceStream **out) { return device_absent(); }

void device_stream_destroy(DeviceStream *stream) {}

Status device_stream_synchronize(DeviceStream *stream) { return device_absent(); }

Status device_capturing(DeviceStream *stream, bool *out) { return device_absent(); }

void device_relax_capture(void) {}

Status device_copy(void *to, const void *from, size_t bytes, DeviceStream *stream) { return device_absent(); }

Status device_fill(void *to, int byte, size_t bytes, DeviceStream *stream) { return device_absent(); }

Status device_event_create(DeviceEvent **out) { return device_absent(); }

void device_event_destroy(DeviceEvent *event) {}

Status device_event_record(DeviceEvent *event, DeviceStream *stream) { return device_absent(); }

Status device_event_synchronize(DeviceEvent *event) { return device_absent(); }

Status device_stream_wait(DeviceStream *stream, DeviceEvent *event) { return device_absent(); }

Status device_event_elapsed(DeviceEvent *begin, DeviceEvent *end, float *out_ms) { return device_absent(); }

Status device_capture_begin(DeviceStream *stream) { return device_absent(); }

Status device_capture_end(DeviceStream *stream, Status recorded, DeviceGraph **out) { return device_absent(); }

Status device_graph_launch(DeviceGraph *graph, DeviceStream *stream) { return device_absent(); }

void device_graph_destroy(DeviceGraph *graph) {}

Status device_synchronize(void) { return device_absent(); }
