/* Runs in stages on the CPU: what one_shot, sra and two_level do with each slice, with messages that the caller
 * moves. */
#include <string.h>

#include "allreduce/host/host.h"

/* A stage under way. */
typedef struct Stage {
    HostEngine *host;
    AllreduceStage number;
    uint8_t *buffer;
    AllreduceMessages messages;
    Summands x; /* what this rank adds: the buffer, or the node's sums, from value x_first on */
    int64_t x_first;
    bool feedback;
} Stage;

static bool has_levels(const HostEngine *host) { return host->extent->algorithm == ALLREDUCE_TWO_LEVEL; }

static WireChunk chunk_of(const Stage *stage, int member) {
    return allreduce_stage_chunk(stage->host->setup, stage->host->extent, stage->number, member);
}

/* Where the node's sums of this rank's shard are: in the buffer itself, or in memory allocated for the shard. */
static uint8_t *sums_of(const HostEngine *host, uint8_t *buffer, int64_t *first) {
    *first = 0;
    if (host->partial[0] == NULL) return buffer;
    *first =
        allreduce_map_shard(host->map, comm_local_rank(host->setup->comm), comm_nodes(host->setup->comm)).first_value;
    return (uint8_t *)host->partial[0];
}

static Stage stage_begin(HostEngine *host, const AllreduceExtent *extent, AllreduceStage number, void *buffer) {
    host->extent = extent;
    host->map = extent->map;
    Stage stage = {.host = host,
                   .number = number,
                   .buffer = buffer,
                   .messages = allreduce_stage_measure(host->setup, extent, number),
                   .x = {buffer, extent->map->type, true},
                   .feedback = extent->feedback};
    if (has_levels(host) && number == ALLREDUCE_ACROSS) {
        stage.x = (Summands){sums_of(host, buffer, &stage.x_first), extent->map->wide_type, false};
    }
    return stage;
}

static Summands summands(const Stage *stage, const WireSlice *slice) {
    Summands from = stage->x;
    int64_t at = from.fresh ? slice->first : slice->first_value - stage->x_first;
    from.x = (const uint8_t *)from.x + at * (int64_t)allreduce_type_bytes(from.type);
    return from;
}

/* ---- encoding ---- */

static Status encode_message(const Stage *stage, int member, uint8_t *to) {
    HostEngine *host = stage->host;
    AllreduceHeader header = allreduce_header(host->setup, host->extent);
    WireChunk chunk = chunk_of(stage, member);
    uint8_t *pieces = to + sizeof header;
    memcpy(to, &header, sizeof header);
    for (int64_t s = 0; s < chunk.slices; s++) {
        const WireSlice *slice = wire_slice(host->map, chunk.slice + s);
        uint64_t at = slice->at - wire_slice(host->map, chunk.slice)->at;
        TRY(allreduce_encode_term(host, slice, summands(stage, slice), stage->feedback, pieces + at));
    }
    return STATUS_OK;
}

static Status stage_encode(void *state, const AllreduceExtent *extent, AllreduceStage number, const void *buffer,
                           void *messages) {
    Stage stage = stage_begin(state, extent, number, (void *)(uintptr_t)buffer);
    uint8_t *to = messages;
    if (extent->algorithm == ALLREDUCE_ONE_SHOT) return encode_message(&stage, 0, to);
    for (int m = 0; m < stage.messages.members; m++) {
        if (m == stage.messages.me) continue;
        TRY(encode_message(&stage, m, to));
        to += allreduce_stage_message(stage.host->setup, extent, number, m);
    }
    return STATUS_OK;
}

/* ---- reducing ---- */

/* Attributes the error just recorded to this rank. */
static Status blame(int rank) {
    ErrorRecord found = *error_record();
    Status status =
        error_fail(STATUS_TRANSPORT, "what came from rank %d cannot be what it wrote: %.200s", rank, found.message);
    return error_at_rank(status, rank);
}

/* Checks the slices of a chunk, from the rank whose message or result they are, before any of them is decoded. */
static Status inspect_chunk(const Stage *stage, const WireChunk *chunk, const uint8_t *from, int rank) {
    const WireMap *map = stage->host->map;
    for (int64_t s = 0; s < chunk->slices; s++) {
        const WireSlice *slice = wire_slice(map, chunk->slice + s);
        uint64_t at = slice->at - wire_slice(map, chunk->slice)->at;
        if (allreduce_inspect(stage->host, slice, from + at) != STATUS_OK) return blame(rank);
    }
    return STATUS_OK;
}

/* Checks a member's message for this rank. */
static Status check_message(const Stage *stage, int member, const uint8_t *message) {
    const AllreduceSetup *setup = stage->host->setup;
    int rank = allreduce_stage_rank(setup, stage->host->extent, stage->number, member);
    WireChunk chunk = chunk_of(stage, stage->messages.me);
    TRY(allreduce_check_header(setup, stage->host->extent, message, rank));
    return inspect_chunk(stage, &chunk, message + sizeof(AllreduceHeader), rank);
}

/* A node's sums are quantised later, and their residual is added then. */
static Status add_own(const Stage *stage, const WireSlice *slice, Summands *sum) {
    HostEngine *host = stage->host;
    Summands own = summands(stage, slice);
    bool feedback = stage->feedback && stage->number == ALLREDUCE_ACROSS;
    bool alone = stage->messages.members == 1;
    if (sum->x == NULL && !feedback && !alone && allreduce_is_sum(host, own)) {
        *sum = own; /* the next addition reads it in place */
        return STATUS_OK;
    }
    TRY(allreduce_add_own(host, slice, own, feedback, sum->x, host->sum));
    *sum = (Summands){host->sum, host->map->wide_type, false};
    return STATUS_OK;
}

/* Adds up a slice of this rank's chunk in rank order; `offset` is the slice's offset in each message. */
static Status add_all(const Stage *stage, const WireSlice *slice, const uint8_t *messages, uint64_t offset) {
    HostEngine *host = stage->host;
    Summands sum = {0};
    const uint8_t *message = messages;
    for (int m = 0; m < stage->messages.members; m++) {
        if (m == stage->messages.me) {
            TRY(add_own(stage, slice, &sum));
            continue;
        }
        TRY(allreduce_add_term(host, slice, message + offset, sum, host->sum));
        sum = (Summands){host->sum, host->map->wide_type, false};
        message += stage->messages.from_each;
    }
    return STATUS_OK;
}

static Status reduce_slice(const Stage *stage, const WireSlice *slice, const uint8_t *messages, uint64_t at,
                           uint8_t *result) {
    HostEngine *host = stage->host;
    TRY(add_all(stage, slice, messages, sizeof(AllreduceHeader) + at));
    if (stage->number == ALLREDUCE_ACROSS) {
        return allreduce_encode_result(host, slice, host->sum, stage->feedback, result + at);
    }
    int64_t first;
    size_t item = allreduce_type_bytes(host->map->wide_type);
    uint8_t *sums = sums_of(host, stage->buffer, &first);
    memcpy(sums + (slice->first_value - first) * (int64_t)item, host->sum, (size_t)slice->values * item);
    return STATUS_OK;
}

static Status stage_reduce(void *state, const AllreduceExtent *extent, AllreduceStage number, void *buffer,
                           const void *messages, void *result) {
    Stage stage = stage_begin(state, extent, number, buffer);
    const uint8_t *message = messages;
    for (int m = 0; m < stage.messages.members; m++) {
        if (m == stage.messages.me) continue;
        TRY(check_message(&stage, m, message));
        message += stage.messages.from_each;
    }
    WireChunk chunk = chunk_of(&stage, stage.messages.me);
    for (int64_t s = 0; s < chunk.slices; s++) {
        const WireSlice *slice = wire_slice(stage.host->map, chunk.slice + s);
        uint64_t at = slice->at - wire_slice(stage.host->map, chunk.slice)->at;
        TRY(reduce_slice(&stage, slice, messages, at, result));
    }
    if (number == ALLREDUCE_ACROSS) memset((uint8_t *)result + chunk.bytes, 0, stage.messages.result - chunk.bytes);
    return STATUS_OK;
}

/* ---- finishing ---- */

/* Adds one-shot's terms of all ranks for a slice, in rank order. */
static Status add_terms(const Stage *stage, const WireSlice *slice, const uint8_t *messages) {
    HostEngine *host = stage->host;
    uint8_t *to = host_elements(host, stage->buffer, slice);
    void *sum = wire_sums_in_place(host->map) ? (void *)to : host->sum;
    int last = stage->messages.members - 1;
    for (int m = 0; m <= last; m++) {
        const uint8_t *term = messages + (uint64_t)m * stage->messages.from_each + sizeof(AllreduceHeader) + slice->at;
        const void *before = m == 0 ? NULL : sum;
        if (m == last) return allreduce_add_last(host, slice, term, before, to);
        TRY(allreduce_add_term(host, slice, term, (Summands){before, host->map->wide_type, false}, sum));
    }
    return STATUS_OK;
}

static Status finish_one_shot(const Stage *stage, const uint8_t *messages) {
    for (int m = 0; m < stage->messages.members; m++) {
        TRY(check_message(stage, m, messages + (uint64_t)m * stage->messages.from_each));
    }
    for (int64_t s = 0; s < stage->host->map->slices; s++) {
        TRY(add_terms(stage, wire_slice(stage->host->map, s), messages));
    }
    return STATUS_OK;
}

/* The rank that owns a chunk's sum. */
static int owner_of(const HostEngine *host, int chunk) {
    const Comm *comm = host->setup->comm;
    if (!has_levels(host)) return chunk;
    return comm_rank_at(comm, chunk % comm_nodes(comm), chunk / comm_nodes(comm));
}

static Status check_results(const Stage *stage, const uint8_t *gathered) {
    const HostEngine *host = stage->host;
    for (int c = 0; c < host->map->chunks; c++) {
        const WireChunk *chunk = wire_chunk(host->map, c);
        const uint8_t *result = gathered + (uint64_t)c * stage->messages.result;
        TRY(inspect_chunk(stage, chunk, result, owner_of(host, c)));
        if (allreduce_inspect_padding(result + chunk->bytes, stage->messages.result - chunk->bytes) != STATUS_OK) {
            return blame(owner_of(host, c));
        }
    }
    return STATUS_OK;
}

static Status stage_finish(void *state, const AllreduceExtent *extent, void *buffer, const void *gathered) {
    Stage stage = stage_begin(state, extent, ALLREDUCE_ACROSS, buffer);
    HostEngine *host = stage.host;
    if (extent->algorithm == ALLREDUCE_ONE_SHOT) return finish_one_shot(&stage, gathered);
    TRY(check_results(&stage, gathered));
    for (int c = 0; c < host->map->chunks; c++) {
        const WireChunk *chunk = wire_chunk(host->map, c);
        const uint8_t *result = (const uint8_t *)gathered + (uint64_t)c * stage.messages.result;
        for (int64_t s = 0; s < chunk->slices; s++) {
            const WireSlice *slice = wire_slice(host->map, chunk->slice + s);
            uint64_t at = slice->at - wire_slice(host->map, chunk->slice)->at;
            uint8_t *to = host_elements(host, stage.buffer, slice);
            TRY(allreduce_decode_result(host, slice, result + at, to));
        }
    }
    return STATUS_OK;
}

const AllreduceStages allreduce_host_stages = {.encode = stage_encode, .reduce = stage_reduce, .finish = stage_finish};
