/* What every algorithm does with slices: naming, checking, sending to a group; and the agreement before a run. */
#include <stdio.h>
#include <string.h>

#include "allreduce/internal.h"
#include "base/hash.h"
#include "base/memory.h"

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

/* ---- agreement ---- */

#define AGREEMENT_MAGIC 0x41584743u /* "CGXA" */
#define AGREEMENT_VERSION 2
#define LAYER_TEXT_BYTES 128

static Agreement agreement_of(const AllreducePlan *plan) {
    const AllreduceOptions *options = &plan->options;
    return (Agreement){
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
        .layers_hash = plan->count == 0 ? 0 : plan->layers[plan->count - 1].hash,
        .seed = options->seed,
        .codec = (uint32_t)options->codec,
        .rounding = (uint32_t)options->rounding,
        .half_metadata = options->half_metadata,
        .feedback = options->error_feedback,
        .slot_bytes = (uint32_t)comm_slot_bytes(plan->comm),
        .threads = (uint32_t)options->threads,
        .number = plan->number,
    };
}

Status transfer_number(AllreducePlan *plan) {
    Agreement mine = agreement_of(plan);
    return comm_number(plan->comm, hash_bytes(&mine, sizeof mine, 0), &plan->number);
}

/* What another rank says may be anything. */
static const char *spell(const char *name) { return name == NULL ? "?" : name; }

static void describe(const Agreement *a, char *text, size_t text_bytes) {
    if (a->magic != AGREEMENT_MAGIC || a->version != AGREEMENT_VERSION) {
        snprintf(text, text_bytes, "another version of the library");
        return;
    }
    snprintf(text, text_bytes,
             "run %u of plan %u of its kind: %s of %lld %s in %u layers, %u bits, buckets of %lld, %s, codec %u, "
             "rounding %u, seed %llu, %u threads%s%s",
             a->call, a->number, spell(allreduce_op_name((int)a->op)), (long long)a->elems,
             spell(allreduce_type_name((int)a->type)), a->layers, a->bits, (long long)a->bucket_size,
             spell(allreduce_algorithm_name((int)a->algorithm)), a->codec, a->rounding, (unsigned long long)a->seed,
             a->threads, a->half_metadata != 0 ? ", 16-bit metadata" : "", a->feedback != 0 ? ", error feedback" : "");
}

static void describe_layer(const AllreducePlan *plan, int64_t index, char text[LAYER_TEXT_BYTES]) {
    if (index >= plan->count) {
        snprintf(text, LAYER_TEXT_BYTES, "no such layer");
        return;
    }
    const Layer *layer = &plan->layers[index];
    int used = snprintf(text, LAYER_TEXT_BYTES, "%.48s %.32s of %lld elements, ",
                        layer->name == NULL ? "a layer without a name" : layer->name,
                        layer->shape == NULL ? "" : layer->shape, (long long)layer->elems);
    if (layer->raw && layer->own_bits == 0) {
        snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "not quantised");
    } else if (layer->raw) {
        snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "not quantised, with %d bits in the table",
                 layer->own_bits);
    } else {
        snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "%d bits, buckets of %lld", layer->spec.bits,
                 (long long)layer->spec.bucket_size);
    }
}

/* The first layer that is not the same on all ranks, from everyone's hashes. */
static Status find_layer(const AllreducePlan *plan, int64_t most, uint64_t *all, int64_t *first) {
    Status status = STATUS_OK;
    uint64_t *mine = NULL;
    TRY(memory_calloc((size_t)most, sizeof *mine, &mine));
    for (int i = 0; i < plan->count; i++) mine[i] = plan->layers[i].hash;
    TRY_GOTO(comm_allgather(plan->comm, mine, (size_t)most * sizeof *mine, all));
    *first = most;
    for (int64_t i = 0; i < most && *first == most; i++) {
        for (int r = 1; r < comm_size(plan->comm); r++) {
            if (all[(int64_t)r * most + i] != all[i]) *first = i;
        }
    }
done:
    memory_free(mine);
    return status;
}

/* Everyone tells its layer; the message sets this rank's beside that of the first rank with another one. */
static Status fail_at_layer(const AllreducePlan *plan, int64_t index, int64_t most, const uint64_t *all) {
    Status status = STATUS_OK;
    char mine[LAYER_TEXT_BYTES] = "", *texts = NULL;
    int me = comm_rank(plan->comm), other = 0;
    TRY(memory_calloc((size_t)comm_size(plan->comm), sizeof mine, &texts));
    describe_layer(plan, index, mine);
    TRY_GOTO(comm_allgather(plan->comm, mine, sizeof mine, texts));
    while (all[(int64_t)other * most + index] == all[(int64_t)me * most + index]) other++;
    status = error_at_rank(error_fail(STATUS_TRANSPORT,
                                      "the ranks have different layers, of which number %lld is the first: on rank %d "
                                      "it is %s; on rank %d it is %.*s (run %u of the plan)",
                                      (long long)index, me, mine, other, LAYER_TEXT_BYTES - 1,
                                      texts + (size_t)other * sizeof mine, plan->call),
                           other);
done:
    memory_free(texts);
    return status;
}

/* All ranks come here with the same headers, of which some have other layers than others. */
static Status fail_layers(const AllreducePlan *plan) {
    Status status = STATUS_OK;
    uint64_t *all = NULL;
    int64_t most = 0, first = 0;
    for (int r = 0; r < comm_size(plan->comm); r++) {
        if (plan->agreements[r].layers > most) most = plan->agreements[r].layers;
    }
    TRY(memory_calloc((size_t)(most * comm_size(plan->comm)), sizeof *all, &all));
    TRY_GOTO(find_layer(plan, most, all, &first));
    status = fail_at_layer(plan, first, most, all);
done:
    memory_free(all);
    return status;
}

static Status fail_disagreement(const AllreducePlan *plan, int rank) {
    const Agreement *all = plan->agreements, *mine = &all[comm_rank(plan->comm)];
    bool same_version = true, same_layers = true;
    for (int r = 1; r < comm_size(plan->comm); r++) {
        same_version = same_version && all[r].magic == all[0].magic && all[r].version == all[0].version;
        same_layers = same_layers && all[r].layers_hash == all[0].layers_hash;
    }
    if (same_version && !same_layers) return fail_layers(plan);
    char expected[320], got[320];
    describe(mine, expected, sizeof expected);
    describe(&all[rank], got, sizeof got);
    bool order = same_version && all[rank].number != mine->number;
    Status status =
        error_fail(STATUS_TRANSPORT, "the ranks disagree: rank %d expected %s; rank %d has %s%s", comm_rank(plan->comm),
                   expected, rank, got, order ? ": all ranks must make and run their plans in the same order" : "");
    return error_at_rank(status, rank);
}

Status transfer_agree(const AllreducePlan *plan) {
    Agreement mine = agreement_of(plan);
    TRY(comm_allgather(plan->comm, &mine, sizeof mine, plan->agreements));
    for (int rank = 0; rank < comm_size(plan->comm); rank++) {
        if (memcmp(&mine, &plan->agreements[rank], sizeof mine) != 0) return fail_disagreement(plan, rank);
    }
    return STATUS_OK;
}
