/* The stub for a build without MPI: one rank, or ranks of one host that the caller started itself. */
#include "comm/net.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a stub uses no arguments */

int comm_net_running_size(void) { return 0; }

static Status not_built(void) {
    FAIL(STATUS_NOT_BUILT, "several ranks need MPI, but this build of cgxffcv has none: rebuild it with "
                           "CGXFFCV_MPI=1");
}

Status comm_mpi_name(bool open, CommMpiName *out) {
    if (open) return not_built();
    *out = (CommMpiName){0};
    return STATUS_OK;
}

Status comm_net_create_world(int64_t deadline_ns, const CommHooks *hooks, CommNetWorld **out, int *rank, int *size) {
    return not_built();
}

Status comm_net_gather(CommNetWorld *world, const void *mine, size_t bytes, void *all, int64_t deadline_ns,
                       const CommHooks *hooks) {
    return not_built();
}

Status comm_net_create(CommNetWorld *world, uint32_t id, int rank, int size, const int *world_rank_of,
                       size_t slot_bytes, CommNet **out) {
    return not_built();
}

bool comm_net_destroy(CommNet *net, const bool *skip) { return true; }

Status comm_net_send(CommNet *net, int to, int channel, const void *frame, size_t bytes, _Atomic uint32_t *readers) {
    return not_built();
}

Status comm_net_post(CommNet *net, int to, int channel, const void *frame, size_t bytes) { return not_built(); }

Status comm_net_progress(CommNet *net) { return not_built(); }

uint32_t comm_net_events(const CommNet *net) { return 0; }

Status comm_net_take(CommNet *net, int from, int channel, CommNetFrame *out) { return not_built(); }

void comm_net_release(CommNet *net, int from, int channel, int number) {}

void comm_net_flush(CommNet *net, double seconds) {}

int comm_net_held(const CommNet *net, int from, int channel) { return 0; }

int comm_net_sending_to(const CommNet *net, int to) { return 0; }

void comm_net_abort(CommNet *net, const AbortRecord *record, const bool *skip) {}

const AbortRecord *comm_net_aborted(const CommNet *net) { return NULL; }

bool comm_net_has_left(const CommNet *net, int rank) { return false; }

Status comm_net_world_allreduce(CommNetWorld *world, float *data, int64_t elems) { return not_built(); }

void comm_net_finalize(bool after_failure) {}
