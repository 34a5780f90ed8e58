/* GPUs: memory, pinned host memory, streams, events, graphs. In a build with CUDA a DeviceStream is a cudaStream_t.
 * cuda.c implements this over the CUDA runtime; none.c is its twin in a build without CUDA, where device_count gives 0
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

/* What a build without CUDA says to do. */
#define DEVICE_CUDA_REMEDY                                                                                             \
    "Install the CUDA toolkit 13 and cuDNN 9 (apt install cuda-toolkit-13-0 libcudnn9-dev-cuda-13), then build again " \
    "with CGXFFCV_CUDA=1"

typedef struct DeviceInfo {
    char name[DEVICE_NAME_BYTES];
    char bus[32];     /* where it sits: "0000:1b:00" */
    int major, minor; /* compute capability */
    int multiprocessors;
    size_t memory_bytes;
    size_t l2_bytes, shared_bytes;       /* shared memory that one block may opt in to */
    int driver_version, runtime_version; /* 13000 is 13.0 */
} DeviceInfo;

/* The number of usable devices; 0 without CUDA, without a driver, or with one too old (device_why tells). */
int device_count(void);

/* Why device_count is 0, with the remedy; "" if it is not. Valid for the life of the process. */
const char *device_why(void);

/* The compute capabilities that this build holds code for: "75;80;86;90"; "" without CUDA. */
const char *device_architectures(void);

/* Touches nothing on the device: it takes no memory there and works on one that another process holds. */
Status device_describe(int index, DeviceInfo *out);

/* The memory of the calling thread's device that nobody holds; sets the device up for this process. */
Status device_free_memory(size_t *out);

/* Makes `index` the calling thread's device; refused unless this build holds code for its compute capability. */
Status device_select(int index);

/* The calling thread's device. */
Status device_current(int *out);

/* On which device the memory lies at that address; -1 for the host's and for an address where nothing is. */
Status device_locate(const void *address, int *out);

/* Device memory, at least 256-byte aligned; contents unspecified. Freeing NULL does nothing. */
Status device_alloc(size_t bytes, void *out);
void device_free(void *pointer);

/* Page-locked host memory that the device can read and write in place. */
Status device_host_alloc(size_t bytes, void *out);
void device_host_free(void *pointer);

/* Makes whole pages of host memory, mapped files too, page-locked; *out is where the device finds them. To be undone
 * before they are unmapped. NULL does nothing. */
Status device_host_register(void *memory, size_t bytes, void *out);
void device_host_unregister(void *memory);

/* Memory of device_alloc for other processes of this host, whichever device they use (peer access is set up where the
 * two can have it): its process fills a handle, each of the others opens that, and closes it before the owner frees.
 * Only whole units are shared without showing what else lies in the last one. Closing NULL does nothing. */
#define DEVICE_HANDLE_BYTES 64
#define DEVICE_SHARED_UNIT ((size_t)2 << 20)
Status device_share(void *memory, unsigned char handle[DEVICE_HANDLE_BYTES]);
Status device_shared_open(const unsigned char handle[DEVICE_HANDLE_BYTES], void *out);
void device_shared_close(void *memory);

Status device_stream_create(DeviceStream **out);
void device_stream_destroy(DeviceStream *stream);
Status device_stream_synchronize(DeviceStream *stream); /* NULL: the default stream, which waits for no other */
Status device_synchronize(void);                        /* all streams */

/* Whether the stream has done all that is on it, or what was on it when the event (NULL: none) was recorded. */
Status device_query(DeviceStream *stream, DeviceEvent *event, bool *done);

/* Whether what is put on the stream is being recorded. */
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

/* What this thread does from now on does not disturb a stream that another thread records, but for what would wait for
 * all of the device. */
void device_capture_apart(void);

/* Milliseconds between two recorded, completed events. */
Status device_event_elapsed(DeviceEvent *begin, DeviceEvent *end, float *out_ms);

/* Records what this thread puts on the stream (and on streams that wait for its events) instead of running it. Between
 * begin and end nothing may be allocated or waited for. After a failure in between, end gives a failure, too, and the
 * stream is usable again. */
Status device_capture_begin(DeviceStream *stream);
Status device_capture_end(DeviceStream *stream, DeviceGraph **out);
Status device_graph_launch(DeviceGraph *graph, DeviceStream *stream);
void device_graph_destroy(DeviceGraph *graph);

#endif
