/* The twin of a build without MPI: one rank, or ranks of one host that the caller started itself. */
#include "comm/net.h"

int net_running_size(void) { return 0; }

static Status not_built(void) {
    FAIL(STATUS_NOT_BUILT, "mpirun started several ranks, but this build of cgxffcv has no MPI: apt install "
                           "libopenmpi-dev openmpi-bin, then build again with CGXFFCV_MPI=1");
}

Status net_create_world(int64_t deadline_ns, const CommHooks *hooks, Net **out, int *rank, int *size) {
    (void)deadline_ns, (void)hooks, (void)out, (void)rank, (void)size;
    return not_built();
}

Status net_gather(Net *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns, const CommHooks *hooks) {
    (void)world, (void)mine, (void)bytes, (void)all, (void)deadline_ns, (void)hooks;
    return not_built();
}

Status net_create(Net *world, uint32_t id, int rank, int size, const int *world_rank_of, size_t slot_bytes, Net **out) {
    (void)world, (void)id, (void)rank, (void)size, (void)world_rank_of, (void)slot_bytes, (void)out;
    return not_built();
}

bool net_destroy(Net *net, const bool *skip) {
    (void)net, (void)skip;
    return true;
}

Status net_send(Net *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers) {
    (void)net, (void)to, (void)channel, (void)frame, (void)bytes, (void)readers;
    return not_built();
}

Status net_post(Net *net, int to, int channel, const void *frame, size_t bytes) {
    (void)net, (void)to, (void)channel, (void)frame, (void)bytes;
    return not_built();
}

Status net_progress(Net *net) {
    (void)net;
    return not_built();
}

uint32_t net_events(const Net *net) {
    (void)net;
    return 0;
}

Status net_take(Net *net, int from, int channel, NetFrame *out) {
    (void)net, (void)from, (void)channel, (void)out;
    return not_built();
}

void net_release(Net *net, int from, int channel, int window) { (void)net, (void)from, (void)channel, (void)window; }

void net_flush(Net *net, double seconds) { (void)net, (void)seconds; }

int net_held(const Net *net, int from, int channel) {
    (void)net, (void)from, (void)channel;
    return 0;
}

int net_sending_to(const Net *net, int to) {
    (void)net, (void)to;
    return 0;
}

void net_abort(Net *net, const AbortRecord *record, const bool *skip) { (void)net, (void)record, (void)skip; }

const AbortRecord *net_aborted(const Net *net) {
    (void)net;
    return NULL;
}

bool net_has_left(const Net *net, int rank) {
    (void)net, (void)rank;
    return false;
}

Status net_world_allreduce(Net *world, float *data, int64_t elems) {
    (void)world, (void)data, (void)elems;
    return not_built();
}

void net_finalize(bool after_failure) { (void)after_failure; }
