/* What every algorithm does with slices: naming, checking, sending to a group; and the agreement before a run. */
#include <stdio.h>
#include <string.h>

#include "allreduce/internal.h"

uint64_t transfer_tag(const AllreducePlan *plan, int64_t slice_index) {
    return (uint64_t)plan->call << 40 ^ (uint64_t)slice_index;
}

Status transfer_check(const AllreducePlan *plan, const CommSlice *got, const Slice *expected, int64_t slice_index) {
    uint64_t tag = transfer_tag(plan, slice_index);
    if (got->tag == tag && got->bytes == expected->bytes) return STATUS_OK;
    return error_at_rank(error_fail(STATUS_TRANSPORT,
                                    "a slice of %zu bytes with the tag %016llx came from rank %d where %u bytes with "
                                    "the tag %016llx were expected",
                                    got->bytes, (unsigned long long)got->tag, got->from, expected->bytes,
                                    (unsigned long long)tag),
                         got->from);
}

Status transfer_publish_to_group(AllreducePlan *plan, const Group *group, const CommSlot *slot, uint32_t bytes,
                                 uint64_t tag, int lane) {
    int count = 0;
    for (int m = 0; m < group->size; m++) {
        if (m != group->me) plan->ranks[count++] = group->rank[m];
    }
    return comm_publish(plan->comm, slot, bytes, tag, lane, plan->ranks, count);
}

#define AGREEMENT_MAGIC 0x41584743u /* "CGXA" */
#define AGREEMENT_VERSION 1

/* Sent before every run; docs/WIRE.md. No padding: it is compared byte by byte. */
typedef struct Agreement {
    uint32_t magic, version;
    uint32_t call, op, type, algorithm;
    int64_t elems;
    uint32_t bits, layers;
    int64_t bucket_size;
    uint64_t layers_hash, seed;
    uint32_t codec, rounding, half_metadata, feedback;
    uint32_t slot_bytes, threads;
} Agreement;

static void describe(const void *header, size_t bytes, char *text, size_t text_bytes) {
    Agreement a;
    if (bytes != sizeof a) {
        snprintf(text, text_bytes, "another operation");
        return;
    }
    memcpy(&a, header, sizeof a);
    if (a.magic != AGREEMENT_MAGIC || a.version != AGREEMENT_VERSION) {
        snprintf(text, text_bytes, "another operation, or another version of the library");
        return;
    }
    snprintf(text, text_bytes,
             "run %u: %s of %lld %s in %u layers (table %016llx), %u bits, buckets of %lld, %s, codec %u, rounding %u, "
             "seed %llu, %u threads%s%s",
             a.call, allreduce_op_name((AllreduceOp)a.op), (long long)a.elems,
             allreduce_type_name((AllreduceType)a.type), a.layers, (unsigned long long)a.layers_hash, a.bits,
             (long long)a.bucket_size, allreduce_algorithm_name((AllreduceAlgorithm)a.algorithm), a.codec, a.rounding,
             (unsigned long long)a.seed, a.threads, a.half_metadata != 0 ? ", 16-bit metadata" : "",
             a.feedback != 0 ? ", error feedback" : "");
}

Status transfer_agree(const AllreducePlan *plan) {
    const AllreduceOptions *options = &plan->options;
    Agreement mine = {
        .magic = AGREEMENT_MAGIC,
        .version = AGREEMENT_VERSION,
        .call = plan->call,
        .op = (uint32_t)options->op,
        .type = (uint32_t)options->type,
        .algorithm = (uint32_t)plan->algorithm,
        .elems = plan->elems,
        .bits = (uint32_t)options->bits,
        .layers = (uint32_t)plan->count,
        .bucket_size = options->bucket_size,
        .layers_hash = plan->layers_hash,
        .seed = options->seed,
        .codec = (uint32_t)options->codec,
        .rounding = (uint32_t)options->rounding,
        .half_metadata = options->half_metadata,
        .feedback = options->error_feedback,
        .slot_bytes = (uint32_t)comm_slot_bytes(plan->comm),
        .threads = (uint32_t)options->threads,
    };
    return comm_agree(plan->comm, &mine, sizeof mine, describe);
}
