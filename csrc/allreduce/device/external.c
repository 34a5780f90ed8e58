/* Runs on GPUs whose messages the caller moves: the kernels of the exchange in one round, on the caller's memory, which
 * looks to them like this rank's window (rows of terms, then rows of results) and, for what goes to others, like
 * theirs. There are no flags: the collectives that the caller has put on the stream in between take their place. */
#include "allreduce/device/state.h"
#include "base/checked.h"
#include "base/memory.h"

#define ALIGNMENT 256
#define MOST_BYTES (UINT32_MAX - ALIGNMENT) /* of a region: offsets in tiles have 32 bits */

/* ---- making ---- */

static uint64_t largest_share(const DeviceTiles *tiles) {
    uint64_t most = 0;
    for (int i = 0; i < tiles->owners; i++) {
        if (tiles->owned[i] > most) most = tiles->owned[i];
    }
    return round_up(most, ALIGNMENT);
}

Status allreduce_external_create(DeviceEngine *engine, bool *fits) {
    DeviceExternal *external = &engine->external;
    DeviceExtent *own = &engine->extents[0];
    const DeviceRoom room = {MOST_BYTES, UINT32_MAX};
    own->one_shot = engine->setup->extents[0].algorithm == ALLREDUCE_ONE_SHOT;
    TRY(device_alloc(sizeof *external->state, &external->state));
    TRY(device_fill(external->state, 0, sizeof *external->state, NULL));
    TRY(device_host_alloc(sizeof *external->status_words, &external->status_words));
    *external->status_words = (CommWindowStatus){0};
    TRY(allreduce_tiles_create(engine->setup->extents[0].map, own->one_shot, room, &own->tiles));
    *fits = own->tiles.count >= 0 && own->tiles.rounds == 1;
    if (!*fits) return STATUS_OK;
    external->region_bytes = largest_share(&own->tiles);
    return allreduce_device_upload_tiles(own);
}

void allreduce_external_destroy(DeviceEngine *engine) {
    device_free(engine->external.state);
    device_host_free(engine->external.status_words);
}

/* ---- the caller's memory ---- */

static AllreduceSpace space_of(const void *state) {
    const DeviceEngine *engine = state;
    int ranks = comm_size(engine->setup->comm);
    bool one_shot = engine->extents[0].one_shot;
    return (AllreduceSpace){engine->external.region_bytes, one_shot ? ranks : 2 * ranks, one_shot ? 0 : ranks};
}

/* A row of the caller's memory. */
static ExchangeRegion row_at(const DeviceEngine *engine, void *memory, int row, int rank) {
    uint64_t at = (uint64_t)row * engine->external.region_bytes;
    return (ExchangeRegion){.at = (uint8_t *)memory + at, .rank = rank};
}

/* The window has a row of terms from each rank, then one of results. What is for all goes into this rank's own row. */
static Status bind(void *state, void *window, void *outgoing) {
    DeviceEngine *engine = state;
    DeviceExtent *own = &engine->extents[0];
    DeviceExternal *external = &engine->external;
    int ranks = comm_size(engine->setup->comm), me = comm_rank(engine->setup->comm);
    ExchangeWindow *to = &external->window;
    *to = (ExchangeWindow){.region_bytes = external->region_bytes, .owners = ranks, .sinks = 1};
    to->all[0] = row_at(engine, window, own->one_shot ? me : ranks + me, me);
    for (int r = 0; r < ranks; r++) {
        to->to[r] = row_at(engine, outgoing, r, r);
        to->from[r] = row_at(engine, window, r, r);
        to->from[EXCHANGE_RESULTS + r] = row_at(engine, window, ranks + r, r);
    }
    own->plan = allreduce_device_plan(engine, &engine->setup->extents[0], own);
    return STATUS_OK;
}

/* ---- runs ---- */

/* Fails if kernels have found a message so far that no rank can have written. */
static Status check_sound(const DeviceEngine *engine) {
    const CommWindowStatus *status_words = engine->external.status_words;
    if (__atomic_load_n(&status_words->reported, __ATOMIC_ACQUIRE) == 0) return STATUS_OK;
    Status status = error_fail(STATUS_TRANSPORT, "a message from rank %u cannot be what it wrote", status_words->rank);
    return error_at_rank(status, (int)status_words->rank);
}

static Status step(void *state, AllreduceStep number, void *buffer, DeviceStream *stream) {
    static const ExchangeKernel kernels[] = {
        [ALLREDUCE_PUSH] = EXCHANGE_PUSH, [ALLREDUCE_REDUCE] = EXCHANGE_REDUCE, [ALLREDUCE_GATHER] = EXCHANGE_GATHER};
    const DeviceEngine *engine = state;
    const DeviceExtent *own = &engine->extents[0];
    if (engine->external.window.region_bytes == 0) FAIL(STATUS_ARGUMENT, "no memory for messages has been bound yet");
    TRY(check_sound(engine));
    ExchangeRound round = allreduce_device_round(engine, own, 0);
    bool empty = number == ALLREDUCE_REDUCE ? round.own_begin == round.own_end
                                            : round.end - round.begin == round.own_end - round.own_begin;
    if (empty && number != ALLREDUCE_GATHER) return STATUS_OK;
    return allreduce_device_put(engine, own, kernels[number], &round, buffer, stream);
}

Status allreduce_external_wait(const DeviceEngine *engine, DeviceStream *stream, DeviceEvent *event) {
    TRY(event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event));
    return check_sound(engine);
}

const AllreduceExternal allreduce_device_external = {.space = space_of, .bind = bind, .step = step};
