/* Private to loader/: GPU work on behalf of one of the program's threads, whose current device stays as it is. */
#ifndef CGXFFCV_LOADER_DEVICE_THREAD_H
#define CGXFFCV_LOADER_DEVICE_THREAD_H

#include "base/status.h"

typedef Status (*LoaderDeviceWork)(void *context);

/* Does the work in a separate thread that has selected the device, and waits for it. Selecting the caller's device
 * again afterwards would initialise GPU 0 for a caller that had chosen none. */
Status loader_device_thread_run(int device, LoaderDeviceWork work, void *context);

/* What each thread of the loader calls first: selects the device, and leaves graph captures of other threads alone. A
 * failure is ignored here; the next call reports it. */
void loader_device_thread_enter(int device);

#endif
