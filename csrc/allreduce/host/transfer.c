/* What every algorithm does to transfer slices: tagging, checking, sending to a group. */
#include "allreduce/host/host.h"

uint64_t allreduce_tag(const HostEngine *host, int64_t slice_index) {
    return (uint64_t)host->setup->run->call << 40 ^ (uint64_t)slice_index;
}

Status allreduce_check_slice(const HostEngine *host, const CommSlice *got, const WireSlice *expected,
                             int64_t slice_index) {
    uint64_t tag = allreduce_tag(host, slice_index);
    if (got->tag == tag && got->bytes == expected->bytes) return STATUS_OK;
    return error_at_rank(error_fail(STATUS_TRANSPORT,
                                    "a slice of %zu bytes with the tag %016llx arrived from rank %d, but %u bytes with "
                                    "the tag %016llx were expected",
                                    got->bytes, (unsigned long long)got->tag, got->from, expected->bytes,
                                    (unsigned long long)tag),
                         got->from);
}

Status allreduce_publish_to_group(HostEngine *host, const Group *group, const CommSlot *slot, uint32_t bytes,
                                  uint64_t tag, int lane) {
    int count = 0;
    for (int m = 0; m < group->size; m++) {
        if (m != group->me) host->ranks[count++] = group->rank[m];
    }
    return comm_publish(host->setup->comm, slot, bytes, tag, lane, host->ranks, count);
}
