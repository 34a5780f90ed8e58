/* Private to loader/: the memory of batches, counted by reference. */
#ifndef CGXFFCV_LOADER_SLOTS_H
#define CGXFFCV_LOADER_SLOTS_H

#include "loader/loader.h"

/* Hands out batch buffers and takes them back; lives until its owner and the last batch have let go. */
typedef struct Slots Slots;

typedef struct SlotsStats {
    size_t live, held; /* buffers that exist; of them, in a caller's hands */
    size_t bytes, peak_bytes;
} SlotsStats;

typedef struct SlotsConfig {
    size_t batch_size; /* samples that a buffer has room for; others are made for larger batches */
    size_t arrays;
    const size_t *sample_bytes; /* of each array; borrowed during loader_slots_create */
    size_t spare;               /* at most so many unused buffers are kept */
    bool moves;                 /* a GPU copies from them */
    bool page_locked;           /* memory that `device` can copy from beside its work */
    int device;
} SlotsConfig;

Status loader_slots_create(const SlotsConfig *config, Slots **out);

/* The owner lets go: unused buffers are freed, the others as their batches are released. NULL does nothing. */
void loader_slots_close(Slots *slots);

/* A buffer for `samples` samples with one reference and uninitialised contents; ids are at batch->ids, writable
 * through loader_slots_ids. */
Status loader_slots_take(Slots *slots, size_t samples, LoaderBatch **out);
uint64_t *loader_slots_ids(LoaderBatch *batch);

/* An event, of the calling thread's device, that is recorded once copies from the buffer have been put on a stream: it
 * is not freed before they are done, nor are its arrays written again by those who wait (loader_slots_await). The ids
 * that are copied are a copy of their own. */
Status loader_slots_copy_event(LoaderBatch *batch, DeviceEvent **out);
void loader_slots_await(LoaderBatch *batch);
const uint64_t *loader_slots_moving_ids(LoaderBatch *batch);

/* The batch goes to a caller: it counts as held until it is released. */
void loader_slots_hand_over(LoaderBatch *batch);

size_t loader_slots_batch_bytes(const Slots *slots);
SlotsStats loader_slots_stats(Slots *slots);

#endif
