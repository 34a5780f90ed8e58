/* Whether this build's kernels run on the thread's device. */
#ifndef CGXFFCV_DEVICE_PROBE_H
#define CGXFFCV_DEVICE_PROBE_H

#include <stdbool.h>

#include "base/status.h"

/* The cudaError_t of looking up a kernel's code for the thread's device; 0 is success. */
int device_probe(void);

/* Whether CGXFFCV_LAUNCH is "plain"; ARGUMENT if it is any other word. */
Status device_probe_launch(bool *plain);

/* Whether kernels may start before the preceding one ends (LAUNCH_AFTER): the thread's device and this build's code for
 * it support waiting inside a kernel, and device_probe_launch does not forbid it. */
bool device_probe_early(void);

/* The compute capabilities this build was made for: "75;80;90". */
const char *device_probe_architectures(void);

#endif
