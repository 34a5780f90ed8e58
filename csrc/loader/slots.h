/* Private to loader/: the memory of batches. */
#ifndef CGXFFCV_LOADER_SLOTS_H
#define CGXFFCV_LOADER_SLOTS_H

#include "loader/loader.h"

/* A pool of batch buffers; lives until its owner and the last batch have released it. */
typedef struct Slots Slots;

typedef struct SlotsStats {
    size_t live, held; /* buffers that exist; of them, held by callers */
    size_t bytes, peak_bytes;
} SlotsStats;

typedef struct SlotsConfig {
    size_t batch_size; /* samples that a buffer has room for; larger batches get buffers of their own */
    size_t arrays;
    const size_t *sample_bytes; /* of each array; borrowed during loader_slots_create */
    size_t spare;               /* at most this many unused buffers are kept */
    bool moves;                 /* a GPU copies from them */
    bool page_locked;           /* memory that `device` can copy from while it works */
    int device;
} SlotsConfig;

Status loader_slots_create(const SlotsConfig *config, Slots **out);

/* The owner's release: unused buffers are freed now, the others as their batches are released. NULL does nothing. */
void loader_slots_close(Slots *slots);

/* A buffer for `samples` samples with one reference and uninitialised contents; ids are at batch->ids, writable
 * through loader_slots_ids. */
Status loader_slots_take(Slots *slots, size_t samples, LoaderBatch **out);
uint64_t *loader_slots_ids(LoaderBatch *batch);

/* An event of the calling thread's device, to be recorded once copies from the buffer are queued on a stream. Until
 * they are done, the buffer is not freed, and loader_slots_await does not return, so that its arrays are not
 * overwritten. Ids are copied from an array of their own, loader_slots_copy_ids. */
Status loader_slots_copy_event(LoaderBatch *batch, DeviceEvent **out);
void loader_slots_await(LoaderBatch *batch);
const uint64_t *loader_slots_copy_ids(LoaderBatch *batch);

/* The batch goes to a caller: it counts as held until it is released. */
void loader_slots_hand_over(LoaderBatch *batch);

size_t loader_slots_batch_bytes(const Slots *slots);
SlotsStats loader_slots_stats(Slots *slots);

#endif
