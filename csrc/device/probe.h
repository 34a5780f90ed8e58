/* Whether this build's kernels run on the thread's device. */
#ifndef CGXFFCV_DEVICE_PROBE_H
#define CGXFFCV_DEVICE_PROBE_H

#include <stdbool.h>

/* The cudaError_t of finding a kernel's code for the thread's device; 0 is success. */
int device_probe(void);

/* Whether kernels may start before the one before them ends (LAUNCH_AFTER): the thread's device and the code that this
 * build has for it can wait inside a kernel, and CGXFFCV_LAUNCH is not "plain". */
bool device_probe_early(void);

/* The compute capabilities this build was made for: "75;80;90". */
const char *device_probe_architectures(void);

#endif
