/* Whether this build's kernels run on the thread's device. */
#ifndef CGXFFCV_DEVICE_PROBE_H
#define CGXFFCV_DEVICE_PROBE_H

#include <stdbool.h>

/* The cudaError_t of looking up a kernel's code for the thread's device; 0 is success. */
int device_probe(void);

/* Whether kernels may start before the preceding one ends (LAUNCH_AFTER): the thread's device and this build's code for
 * it support waiting inside a kernel, and CGXFFCV_LAUNCH is not "plain". */
bool device_probe_early(void);

/* The compute capabilities this build was made for: "75;80;90". */
const char *device_probe_architectures(void);

#endif
