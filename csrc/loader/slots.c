/* Batch buffers: one allocation each, arrays and ids at 64-byte boundaries. A buffer returns to the free list when any
 * thread releases its batch. Knows nothing of the contents. */
#include "loader/slots.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"
#include "device/device.h"
#include "loader/device_thread.h"

typedef struct Slot {
    LoaderBatch batch; /* first: a batch's pointer is also its slot's */
    Slots *pool;       /* counted in pool->references */
    size_t capacity, bytes;
    bool held;
    DeviceEvent *copied;   /* owned; NULL before the first copy to a GPU */
    atomic_bool copying;   /* one may be in progress */
    uint64_t *ids;         /* within memory */
    uint64_t *copy_ids;    /* likewise: the ids to copy from, since a batch gets its ids before the wait */
    unsigned char *memory; /* owned */
    struct Slot *next;
    void *arrays[];
} Slot;

struct Slots {
    pthread_mutex_t mutex;
    size_t references; /* the owner and every live slot outside the free list */
    bool closed;
    size_t batch_size, arrays, id_arrays, spare, free_count;
    bool page_locked;
    int device;
    size_t *sample_bytes; /* owned, `arrays` */
    size_t batch_bytes;
    Slot *free; /* owned list */
    SlotsStats stats;
};

/* The size of a buffer for `samples`, and the offsets of its arrays + id_arrays, if not NULL. */
static Status slots_measure(const Slots *slots, size_t samples, size_t *offsets, size_t *bytes) {
    uint64_t total = 0;
    for (size_t i = 0; i < slots->arrays + slots->id_arrays; i++) {
        uint64_t size, sample = i < slots->arrays ? slots->sample_bytes[i] : sizeof(uint64_t);
        if (offsets != NULL) offsets[i] = (size_t)total;
        if (!checked_mul(sample, samples, &size) || !checked_add(total, size, &size) ||
            !checked_round_up(size, MEMORY_ALIGNMENT, &total) || total > memory_of_machine()) {
            FAIL(STATUS_MEMORY,
                 "a batch of %zu samples, one output of which takes %llu bytes per sample, does not fit in this "
                 "machine's memory of %llu bytes: make batch_size smaller",
                 samples, (unsigned long long)sample, (unsigned long long)memory_of_machine());
        }
    }
    *bytes = (size_t)total;
    return STATUS_OK;
}

Status loader_slots_create(const SlotsConfig *config, Slots **out) {
    Status status = STATUS_OK;
    Slots *slots = NULL;
    TRY(memory_calloc(1, sizeof *slots, &slots));
    pthread_mutex_init(&slots->mutex, NULL);
    slots->references = 1;
    slots->batch_size = config->batch_size;
    slots->arrays = config->arrays;
    slots->id_arrays = config->moves ? 2 : 1;
    slots->spare = config->spare;
    slots->page_locked = config->page_locked;
    slots->device = config->device;
    TRY_GOTO(memory_alloc(config->arrays, sizeof *slots->sample_bytes, &slots->sample_bytes));
    for (size_t i = 0; i < config->arrays; i++) slots->sample_bytes[i] = config->sample_bytes[i];
    TRY_GOTO(slots_measure(slots, config->batch_size, NULL, &slots->batch_bytes));
    *out = slots;
    slots = NULL;
done:
    loader_slots_close(slots);
    return status;
}

typedef struct Pages {
    int device;
    size_t bytes;
    unsigned char *memory;
} Pages;

static Status lock_pages(void *context) {
    Pages *pages = context;
    TRY(device_select(pages->device));
    return device_host_alloc(pages->bytes, &pages->memory);
}

static Status alloc_memory(const Slots *slots, size_t bytes, unsigned char **out) {
    if (!slots->page_locked) return memory_alloc(bytes, 1, out);
    Pages pages = {.device = slots->device, .bytes = bytes};
    TRY(loader_device_thread_run(slots->device, lock_pages, &pages));
    *out = pages.memory;
    return STATUS_OK;
}

/* A GPU that fails copies nothing any more. */
static void await_copy(Slot *slot) {
    if (!atomic_load(&slot->copying)) return; /* a store would take the cache line away from the other threads */
    (void)device_event_synchronize(slot->copied);
    atomic_store(&slot->copying, false);
}

static void destroy_slot(Slot *slot, bool page_locked) {
    if (slot == NULL) return;
    await_copy(slot);
    device_event_destroy(slot->copied);
    if (page_locked) {
        device_host_free(slot->memory);
    } else {
        memory_free(slot->memory);
    }
    memory_free(slot);
}

/* Called with the mutex held, which it releases; the pool is freed with its last reference. */
static void unlock_and_unref(Slots *slots) {
    bool last = --slots->references == 0;
    pthread_mutex_unlock(&slots->mutex);
    if (!last) return;
    pthread_mutex_destroy(&slots->mutex);
    memory_free(slots->sample_bytes);
    memory_free(slots);
}

static void forget(Slots *slots, Slot *slot) {
    slots->stats.live--;
    slots->stats.bytes -= slot->bytes;
}

void loader_slots_close(Slots *slots) {
    if (slots == NULL) return;
    pthread_mutex_lock(&slots->mutex);
    slots->closed = true;
    Slot *list = slots->free;
    slots->free = NULL;
    slots->free_count = 0;
    for (Slot *slot = list; slot != NULL; slot = slot->next) forget(slots, slot);
    bool page_locked = slots->page_locked;
    unlock_and_unref(slots);
    while (list != NULL) {
        Slot *next = list->next;
        destroy_slot(list, page_locked);
        list = next;
    }
}

static Status create_slot(Slots *slots, size_t samples, Slot **out) {
    Status status = STATUS_OK;
    Slot *slot = NULL;
    size_t *offsets = NULL, bytes = 0;
    TRY_GOTO(memory_alloc(slots->arrays + slots->id_arrays, sizeof *offsets, &offsets));
    TRY_GOTO(slots_measure(slots, samples, offsets, &bytes));
    TRY_GOTO(memory_calloc(1, sizeof *slot + slots->arrays * sizeof slot->arrays[0], &slot));
    TRY_GOTO(alloc_memory(slots, bytes, &slot->memory));
    for (size_t i = 0; i < slots->arrays; i++) slot->arrays[i] = slot->memory + offsets[i];
    slot->ids = (uint64_t *)(void *)(slot->memory + offsets[slots->arrays]);
    slot->copy_ids = slot->ids;
    if (slots->id_arrays > 1) slot->copy_ids = (uint64_t *)(void *)(slot->memory + offsets[slots->arrays + 1]);
    slot->pool = slots;
    slot->capacity = samples;
    slot->bytes = bytes;
    *out = slot;
    slot = NULL;
done:
    memory_free(offsets);
    destroy_slot(slot, slots->page_locked);
    return status;
}

static Slot *take_free(Slots *slots, size_t samples) {
    Slot *slot = slots->free;
    if (slot == NULL || samples > slots->batch_size) return NULL;
    slots->free = slot->next;
    slots->free_count--;
    return slot;
}

/* The newest goes first, as its memory is in the caches; one that a GPU copies from goes last: it may still do so. */
static void put_free(Slots *slots, Slot *slot) {
    Slot **at = &slots->free;
    while (slot->copied != NULL && *at != NULL) at = &(*at)->next;
    slot->next = *at;
    *at = slot;
    slots->free_count++;
}

Status loader_slots_take(Slots *slots, size_t samples, LoaderBatch **out) {
    pthread_mutex_lock(&slots->mutex);
    Slot *slot = take_free(slots, samples);
    if (slot == NULL) {
        size_t capacity = samples < slots->batch_size ? slots->batch_size : samples;
        Status status = create_slot(slots, capacity, &slot);
        if (status != STATUS_OK) {
            pthread_mutex_unlock(&slots->mutex);
            return status;
        }
        slots->stats.live++;
        slots->stats.bytes += slot->bytes;
        if (slots->stats.bytes > slots->stats.peak_bytes) slots->stats.peak_bytes = slots->stats.bytes;
    }
    slots->references++;
    pthread_mutex_unlock(&slots->mutex);
    slot->batch =
        (LoaderBatch){.count = samples, .ids = slot->ids, .arrays = slot->arrays, .array_count = slots->arrays};
    *out = &slot->batch;
    return STATUS_OK;
}

uint64_t *loader_slots_ids(LoaderBatch *batch) { return ((Slot *)(void *)batch)->ids; }

void loader_slots_await(LoaderBatch *batch) { await_copy((Slot *)(void *)batch); }

const uint64_t *loader_slots_copy_ids(LoaderBatch *batch) {
    Slot *slot = (Slot *)(void *)batch;
    memmove(slot->copy_ids, slot->ids, batch->count * sizeof *slot->ids);
    return slot->copy_ids;
}

Status loader_slots_copy_event(LoaderBatch *batch, DeviceEvent **out) {
    Slot *slot = (Slot *)(void *)batch;
    if (slot->copied == NULL) TRY(device_event_create(&slot->copied));
    atomic_store(&slot->copying, true);
    *out = slot->copied;
    return STATUS_OK;
}

void loader_slots_hand_over(LoaderBatch *batch) {
    Slot *slot = (Slot *)(void *)batch;
    pthread_mutex_lock(&slot->pool->mutex);
    slot->held = true;
    slot->pool->stats.held++;
    pthread_mutex_unlock(&slot->pool->mutex);
}

void loader_batch_release(LoaderBatch *batch) {
    if (batch == NULL) return;
    Slot *slot = (Slot *)(void *)batch;
    Slots *slots = slot->pool;
    loader_upload_release(slot->batch.upload);
    slot->batch.upload = NULL;
    pthread_mutex_lock(&slots->mutex);
    if (slot->held) slots->stats.held--;
    slot->held = false;
    bool keep = !slots->closed && slot->capacity == slots->batch_size && slots->free_count < slots->spare;
    if (keep) {
        put_free(slots, slot);
    } else {
        forget(slots, slot);
    }
    bool page_locked = slots->page_locked;
    unlock_and_unref(slots);
    if (!keep) destroy_slot(slot, page_locked);
}

size_t loader_slots_batch_bytes(const Slots *slots) { return slots->batch_bytes; }

SlotsStats loader_slots_stats(Slots *slots) {
    pthread_mutex_lock(&slots->mutex);
    SlotsStats stats = slots->stats;
    pthread_mutex_unlock(&slots->mutex);
    return stats;
}
