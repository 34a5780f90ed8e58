/* Settings of sums on GPUs from environment variables, each rank's own. */
#include "allreduce/device/state.h"
#include "base/environment.h"

#define OPERATION "making sums on GPUs"

Status allreduce_switch(Comm *comm, const char *variable, bool *on) {
    TRY(comm_begin(comm, OPERATION, 0));
    return comm_end(comm, environment_switch(variable, on));
}

Status allreduce_limit_kib(Comm *comm, const char *variable, int64_t least, int64_t most, int64_t *kib) {
    TRY(comm_begin(comm, OPERATION, 0));
    return comm_end(comm, environment_whole(variable, "KiB", least, most, kib));
}
