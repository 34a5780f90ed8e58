/* GPUs: memory, pinned host memory, streams, events, graphs. In a build with CUDA a DeviceStream is a cudaStream_t.
 * cuda.c implements this over the CUDA runtime; none.c replaces it in a build without CUDA: device_count gives 0
 * and everything else fails with STATUS_NOT_BUILT. */
#ifndef CGXFFCV_DEVICE_DEVICE_H
#define CGXFFCV_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct DeviceStream DeviceStream;
typedef struct DeviceEvent DeviceEvent;
typedef struct DeviceGraph DeviceGraph; /* recorded work, ready to be launched */

#define DEVICE_NAME_BYTES 256

/* The remedy in the messages of a build without CUDA. */
#define DEVICE_CUDA_REMEDY                                                                                             \
    "Install the CUDA toolkit 13 and cuDNN 9 (apt install cuda-toolkit-13-0 libcudnn9-dev-cuda-13), then build again " \
    "with CGXFFCV_CUDA=1"

typedef struct DeviceInfo {
    char name[DEVICE_NAME_BYTES];
    char bus[32];     /* its PCI address: "0000:1b:00" */
    int major, minor; /* compute capability */
    int multiprocessors;
    size_t memory_bytes;
    size_t shared_bytes;                 /* shared memory that one block may opt in to */
    int driver_version, runtime_version; /* 13000 is 13.0 */
} DeviceInfo;

/* The number of usable devices; 0 without CUDA, without a driver, or with one too old (device_why says which). */
int device_count(void);

/* Why device_count is 0, with the remedy; "" if it is not. Valid for the life of the process. */
const char *device_why(void);

/* The compute capabilities that this build has code for: "75;80;86;90"; "" without CUDA. */
const char *device_architectures(void);

/* Does not initialise the device: it takes no memory there and works while another process holds it exclusively. */
Status device_describe(int index, DeviceInfo *out);

/* The free memory of the calling thread's device, in bytes; initialises the device for this process. */
Status device_free_memory(size_t *out);

/* Makes `index` the calling thread's device; fails unless this build has code for its compute capability. */
Status device_select(int index);

/* The calling thread's device. */
Status device_current(int *out);

/* The device whose memory is at that address; -1 for host memory and for an address that is not mapped. */
Status device_locate(const void *address, int *out);

/* Device memory, at least 256-byte aligned; contents unspecified. Freeing NULL does nothing. */
Status device_alloc(size_t bytes, void *out);
void device_free(void *pointer);

/* Page-locked host memory that the device can read and write in place. */
Status device_host_alloc(size_t bytes, void *out);
void device_host_free(void *pointer);

/* Page-locks whole pages of host memory, mapped files too; *out is their address on the device. Must be undone before
 * they are unmapped. Unregistering NULL does nothing. */
Status device_host_register(void *memory, size_t bytes, void *out);
void device_host_unregister(void *memory);

/* Shares memory of device_alloc with other processes of this host, whichever device they use (peer access is enabled
 * where possible): the owner fills a handle; each other process opens it, and closes it before the owner frees. If the
 * size is not a multiple of the unit, whatever else is in the last unit is shared, too. Closing NULL does nothing. */
#define DEVICE_HANDLE_BYTES 64
#define DEVICE_SHARED_UNIT ((size_t)2 << 20)
Status device_share(void *memory, unsigned char handle[DEVICE_HANDLE_BYTES]);
Status device_shared_open(const unsigned char handle[DEVICE_HANDLE_BYTES], void *out);
void device_shared_close(void *memory);

Status device_stream_create(DeviceStream **out);
void device_stream_destroy(DeviceStream *stream);
Status device_stream_synchronize(DeviceStream *stream); /* NULL: the default stream, which waits for no other */
Status device_synchronize(void);                        /* all streams */

/* Whether the stream has finished all of its work or, with `event` not NULL, the work before the event. */
Status device_query(DeviceStream *stream, DeviceEvent *event, bool *done);

/* Whether the stream is being captured. */
Status device_capturing(DeviceStream *stream, bool *out);

/* Copies between any two of host and device; asynchronous where the host side is page-locked. */
Status device_copy(void *to, const void *from, size_t bytes, DeviceStream *stream);
Status device_fill(void *to, int byte, size_t bytes, DeviceStream *stream);

Status device_event_create(DeviceEvent **out);
void device_event_destroy(DeviceEvent *event);
Status device_event_record(DeviceEvent *event, DeviceStream *stream);
Status device_event_synchronize(DeviceEvent *event);

/* Later work of `stream` waits for the event. */
Status device_stream_wait(DeviceStream *stream, DeviceEvent *event);

/* From now on this thread's calls do not disturb a stream that another thread captures, except for calls that wait for
 * the whole device. */
void device_relax_capture(void);

/* Milliseconds between two recorded, completed events. */
Status device_event_elapsed(DeviceEvent *begin, DeviceEvent *end, float *out_ms);

/* Records what this thread puts on the stream (and on streams that wait for its events) instead of running it. Between
 * begin and end nothing may be allocated or waited for. `recorded` is how what came in between went: after a failure
 * end fails as well, with that one if it is given, and the stream is usable again. */
Status device_capture_begin(DeviceStream *stream);
Status device_capture_end(DeviceStream *stream, Status recorded, DeviceGraph **out);
Status device_graph_launch(DeviceGraph *graph, DeviceStream *stream);
void device_graph_destroy(DeviceGraph *graph);

#endif
