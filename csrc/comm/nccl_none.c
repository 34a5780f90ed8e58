/* The stub for a build without NCCL: sums of device memory go through the host. */
#include "comm/comm.h"

#include <stdio.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

Status comm_device_create(Comm *comm, CommDevice **out, char *why) {
    snprintf(why, COMM_WHY_BYTES, "this build has no NCCL");
    *out = NULL;
    return STATUS_OK;
}

void comm_device_destroy(CommDevice *device) {}

const char *comm_device_name(const CommDevice *device) { return ""; }

static Status nccl_absent(void) {
    FAIL(STATUS_NOT_BUILT, "this build has no NCCL: apt install libnccl-dev, then rebuild with CGXFFCV_NCCL=1");
}

Status comm_device_allreduce(CommDevice *device, const CommPiece *pieces, int count, CommType type, bool average,
                             DeviceStream *stream) {
    return nccl_absent();
}

Status comm_device_wait(CommDevice *device, DeviceStream *stream, DeviceEvent *event) { return nccl_absent(); }

int comm_nccl_version(void) { return 0; }
