/* Limits of sums on GPUs that environment variables give, each rank its own. */
#include "allreduce/device/state.h"
#include "base/environment.h"

Status allreduce_limit_kib(Comm *comm, const char *variable, int64_t least, int64_t most, int64_t *kib) {
    TRY(comm_begin(comm, "making sums on GPUs", 0));
    return comm_end(comm, environment_whole(variable, "KiB", least, most, kib));
}
