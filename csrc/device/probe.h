/* Whether this build's kernels run on the thread's device. */
#ifndef CGXFFCV_DEVICE_PROBE_H
#define CGXFFCV_DEVICE_PROBE_H

/* The cudaError_t of finding a kernel's code for the thread's device; 0 is success. */
int device_probe(void);

/* The compute capabilities this build was made for: "75;80;90". */
const char *device_probe_architectures(void);

#endif
