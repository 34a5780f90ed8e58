/* What the ranks compare before any data of a buffer moves, and how a difference is reported. */
#include <stdio.h>
#include <string.h>

#include "allreduce/engine.h"
#include "base/hash.h"
#include "base/memory.h"

#define HEADER_MAGIC 0x41584743u /* "CGXA" */
#define HEADER_VERSION 3
#define LAYER_TEXT_BYTES 256

AllreduceHeader allreduce_header(const AllreduceSetup *setup, const AllreduceExtent *extent) {
    const AllreduceOptions *options = &setup->options;
    const WireMap *map = extent->map;
    return (AllreduceHeader){
        .magic = HEADER_MAGIC,
        .version = HEADER_VERSION,
        .call = setup->next,
        .op = (uint32_t)options->op,
        .type = (uint32_t)options->type,
        .algorithm = (uint32_t)extent->algorithm,
        .elems = map->elems,
        .bits = (uint32_t)options->bits,
        .layers = (uint32_t)map->layers,
        .bucket_size = options->bucket_size,
        .layers_hash = map->layers == 0 ? 0 : wire_layer(map, map->layers - 1)->hash,
        .seed = options->seed,
        .codec = (uint32_t)options->codec,
        .rounding = (uint32_t)options->rounding,
        .half_metadata = options->half_metadata,
        .feedback = (uint32_t)extent->feedback,
        .slot_bytes = (uint32_t)comm_slot_bytes(setup->comm),
        .threads = (uint32_t)options->threads,
        .number = extent->number,
    };
}

Status allreduce_number(const AllreduceSetup *setup, AllreduceExtent *extent) {
    AllreduceHeader mine = allreduce_header(setup, extent);
    return comm_number(setup->comm, hash_bytes(&mine, sizeof mine, 0), &extent->number);
}

/* What another rank sends may be anything. */
static const char *header_name(const char *name) { return name == NULL ? "?" : name; }

static void header_describe(const AllreduceHeader *a, char *text, size_t text_bytes) {
    if (a->magic != HEADER_MAGIC || a->version != HEADER_VERSION) {
        snprintf(text, text_bytes, "a different version of the library");
        return;
    }
    snprintf(text, text_bytes,
             "run %u of plan %u of its kind: %s of %lld %s in %u layers, %u bits, buckets of %lld, %s, codec %u, "
             "rounding %u, seed %llu, %u threads%s%s",
             a->call, a->number, header_name(allreduce_op_name((int)a->op)), (long long)a->elems,
             header_name(allreduce_type_name((int)a->type)), a->layers, a->bits, (long long)a->bucket_size,
             header_name(allreduce_algorithm_name((int)a->algorithm)), a->codec, a->rounding,
             (unsigned long long)a->seed, a->threads, a->half_metadata != 0 ? ", 16-bit metadata" : "",
             a->feedback == ALLREDUCE_NO_FEEDBACK   ? ""
             : a->feedback == ALLREDUCE_FEEDBACK_I8 ? ", error feedback in 8 bits"
                                                    : ", error feedback");
}

static void describe_layer(const AllreduceSetup *setup, const WireMap *map, int64_t index,
                           char text[LAYER_TEXT_BYTES]) {
    if (index >= map->layers) {
        snprintf(text, LAYER_TEXT_BYTES, "no such layer");
        return;
    }
    const WireLayer *layer = wire_layer(map, (int)index);
    const AllreduceLayer *named = &setup->layers[index];
    int used = snprintf(text, LAYER_TEXT_BYTES, "%.48s %.32s of %lld elements, ",
                        named->name == NULL ? "an unnamed layer" : named->name,
                        named->shape == NULL ? "" : named->shape, (long long)layer->elems);
    if (layer->raw && layer->own_bits == 0) {
        snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "not quantised");
    } else if (layer->raw) {
        snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "not quantised, with %d bits in the table",
                 layer->own_bits);
    } else {
        const QuantSpec *spec = &layer->spec;
        used += snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), "%d bits, buckets of %lld, %s to %s",
                         spec->bits, (long long)spec->bucket_size, quantize_codec_name((int)spec->codec),
                         quantize_rounding_name((int)spec->rounding));
        if (spec->scale != QUANT_SCALE_AUTO) {
            const char *scale = quantize_scale_name((int)spec->scale);
            used += snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), ", scale %s", scale);
        }
        if (spec->spikes > 0) snprintf(text + used, (size_t)(LAYER_TEXT_BYTES - used), ", %d spikes", spec->spikes);
    }
}

/* The first layer that is not the same on all ranks, from everyone's hashes. */
static Status find_layer(const AllreduceSetup *setup, const WireMap *map, int64_t most, uint64_t *all, int64_t *first) {
    Status status = STATUS_OK;
    uint64_t *mine = NULL;
    TRY(memory_calloc((size_t)most, sizeof *mine, &mine));
    for (int i = 0; i < map->layers; i++) mine[i] = wire_layer(map, i)->hash;
    TRY_GOTO(comm_allgather(setup->comm, mine, (size_t)most * sizeof *mine, all));
    *first = most;
    for (int64_t i = 0; i < most && *first == most; i++) {
        for (int r = 1; r < comm_size(setup->comm); r++) {
            if (all[(int64_t)r * most + i] != all[i]) *first = i;
        }
    }
done:
    memory_free(mine);
    return status;
}

/* Everyone sends its layer; the message shows this rank's next to that of the first rank with a different one. */
static Status fail_at_layer(const AllreduceSetup *setup, const WireMap *map, int64_t index, int64_t most,
                            const uint64_t *all) {
    Status status = STATUS_OK;
    char mine[LAYER_TEXT_BYTES] = "", *texts = NULL;
    int me = comm_rank(setup->comm), other = 0;
    TRY(memory_calloc((size_t)comm_size(setup->comm), sizeof mine, &texts));
    describe_layer(setup, map, index, mine);
    TRY_GOTO(comm_allgather(setup->comm, mine, sizeof mine, texts));
    while (all[(int64_t)other * most + index] == all[(int64_t)me * most + index]) other++;
    status = error_at_rank(error_fail(STATUS_TRANSPORT,
                                      "the ranks have different layers; the first that differs is number %lld: on rank "
                                      "%d it is %s; on rank %d it is %.*s (run %u of the plan)",
                                      (long long)index, me, mine, other, LAYER_TEXT_BYTES - 1,
                                      texts + (size_t)other * sizeof mine, setup->next),
                           other);
done:
    memory_free(texts);
    return status;
}

/* All ranks call this with the same headers, which do not all have the same layers. */
static Status fail_layers(const AllreduceSetup *setup, const WireMap *map, const AllreduceHeader *headers) {
    Status status = STATUS_OK;
    uint64_t *all = NULL;
    int64_t most = 0, first = 0;
    for (int r = 0; r < comm_size(setup->comm); r++) {
        if (headers[r].layers > most) most = headers[r].layers;
    }
    TRY(memory_calloc((size_t)(most * comm_size(setup->comm)), sizeof *all, &all));
    TRY_GOTO(find_layer(setup, map, most, all, &first));
    status = fail_at_layer(setup, map, first, most, all);
done:
    memory_free(all);
    return status;
}

static Status fail_difference(const AllreduceSetup *setup, const AllreduceHeader *mine, const AllreduceHeader *other,
                              int rank) {
    char expected[320], got[320];
    header_describe(mine, expected, sizeof expected);
    header_describe(other, got, sizeof got);
    bool same_version = other->magic == mine->magic && other->version == mine->version;
    bool order = same_version && other->number != mine->number;
    Status status = error_fail(STATUS_TRANSPORT, "the ranks disagree: rank %d expected %s; rank %d has %s%s",
                               comm_rank(setup->comm), expected, rank, got,
                               order ? ": all ranks must create and run their plans in the same order" : "");
    return error_at_rank(status, rank);
}

static Status fail_disagreement(const AllreduceSetup *setup, const WireMap *map, const AllreduceHeader *all, int rank) {
    const AllreduceHeader *mine = &all[comm_rank(setup->comm)];
    bool same_version = true, same_layers = true;
    for (int r = 1; r < comm_size(setup->comm); r++) {
        same_version = same_version && all[r].magic == all[0].magic && all[r].version == all[0].version;
        same_layers = same_layers && all[r].layers_hash == all[0].layers_hash;
    }
    if (same_version && !same_layers) return fail_layers(setup, map, all);
    return fail_difference(setup, mine, &all[rank], rank);
}

Status allreduce_check_header(const AllreduceSetup *setup, const AllreduceExtent *extent, const void *theirs,
                              int rank) {
    AllreduceHeader mine = allreduce_header(setup, extent), other;
    memcpy(&other, theirs, sizeof other);
    return memcmp(&mine, &other, sizeof mine) == 0 ? STATUS_OK : fail_difference(setup, &mine, &other, rank);
}

Status allreduce_agree(const AllreduceSetup *setup, const AllreduceExtent *extent, AllreduceHeader *room) {
    AllreduceHeader mine = allreduce_header(setup, extent);
    TRY(comm_allgather(setup->comm, &mine, sizeof mine, room));
    for (int rank = 0; rank < comm_size(setup->comm); rank++) {
        if (memcmp(&mine, &room[rank], sizeof mine) != 0) return fail_disagreement(setup, extent->map, room, rank);
    }
    return STATUS_OK;
}

Status allreduce_compare(const AllreduceSetup *setup, const AllreduceExtent *extents, int count) {
    Status status = STATUS_OK;
    AllreduceHeader *room = NULL;
    TRY(memory_calloc((size_t)comm_size(setup->comm), sizeof *room, &room));
    TRY_GOTO(comm_begin(setup->comm, "allreduce", setup->options.timeout_s));
    for (int i = 0; i < count && status == STATUS_OK; i++) status = allreduce_agree(setup, &extents[i], room);
    status = comm_end(setup->comm, status);
done:
    memory_free(room);
    return status;
}

Status allreduce_check_replicas(Comm *comm, const void *data, size_t bytes) {
    struct {
        uint64_t bytes, hash;
    } mine = {bytes, hash_bytes(data, bytes, 0)};
    TRY(comm_begin(comm, "check of replicas", 0));
    return comm_end(comm, comm_agree(comm, &mine, sizeof mine));
}
