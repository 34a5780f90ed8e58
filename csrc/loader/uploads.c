/* Buffers in device memory, one allocation each. If a holder has said on which stream it reads all of a buffer
 * (loader_upload_read), the next batch's copy waits for that on the GPU, and no thread waits for anything. All other
 * buffers are retired when they are released: work that reads them may still be queued on the GPU, on streams unknown
 * here, so they become free only after a wait for the whole device. One of the threads does that, for all retired ones
 * at once, when no free one is left. The GPU's scratch memory is one block, used by one batch after another in stream
 * order. */
#include "loader/uploads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "augment/convert.h"
#include "augment/gather.h"
#include "base/checked.h"
#include "base/memory.h"
#include "loader/device_thread.h"
#include "loader/slots.h"

#define ALIGNMENT 256

typedef struct Upload {
    LoaderUpload open; /* first: its pointer is also the upload's */
    Uploads *pool;     /* counted in pool->references */
    atomic_size_t references;
    atomic_bool given; /* a caller has held it */
    size_t capacity, bytes;
    unsigned char *memory; /* owned, device */
    DeviceEvent *ready;    /* owned */
    DeviceEvent *read;     /* owned; NULL at first: after the last announced read, */
    DeviceStream *reader;  /* on this stream */
    size_t reads;          /* reads announced so far */
    bool elsewhere;        /* not all of them on that stream */
    struct Upload *next;
    void *arrays[];
} Upload;

/* What is done to an output. */
typedef struct UploadsWork {
    UploadsArray array;
    AugmentSpec device_spec; /* if `processes` */
    bool processes, converts;
    size_t item_bytes;
    uint32_t table[AUGMENT_TABLE_VALUES]; /* if it converts: room for values of any type */
} UploadsWork;

/* The GPU's scratch memory, and what is where in it. */
typedef struct UploadsScratch {
    unsigned char *memory; /* owned, device; NULL at first */
    size_t capacity, bytes;
    uint8_t *raw, *changed; /* images: as copied, and after their operations */
    int64_t *ids, *labels;  /* labels: never used */
    int32_t *order;         /* 0, 1, 2... */
    GatherClock *clock;
    unsigned char *tables;   /* one per output, each of the size of UploadsWork.table */
    GatherClock *host_clock; /* owned, page-locked: what *clock is set to, if `timed` */
    bool timed;
} UploadsScratch;

struct Uploads {
    pthread_mutex_t putting; /* one batch at a time queues its copies and kernels; taken before `mutex` */
    pthread_mutex_t mutex;
    size_t references; /* the owner and every live upload outside the lists */
    bool closed;
    int device;
    size_t batch_size, spare;
    size_t arrays, moving; /* per batch; of them, those that move */
    size_t unused;         /* buffers in both lists */
    UploadsWork *work;     /* owned, `arrays` */
    bool processes;
    DeviceStream *stream; /* owned; NULL before the first batch */
    UploadsScratch scratch;
    Upload *free, *retired; /* owned lists */
    UploadsStats stats;
};

/* ---- creation ---- */

static Status make_work(UploadsWork *work, const UploadsArray *array) {
    *work = (UploadsWork){.array = *array, .processes = array->device_spec != NULL};
    work->array.device_spec = NULL;
    if (!work->processes) return STATUS_OK;
    const AugmentSpec *spec = &work->device_spec;
    work->device_spec = *array->device_spec;
    work->converts = spec->normalize || spec->type != IMAGE_U8 || spec->layout != IMAGE_HWC;
    work->item_bytes = augment_type_bytes(spec->type);
    return work->converts ? augment_convert_table(spec, work->table) : STATUS_OK;
}

Status loader_uploads_create(const UploadsConfig *config, Uploads **out) {
    Status status = STATUS_OK;
    Uploads *uploads = NULL;
    TRY(memory_calloc(1, sizeof *uploads, &uploads));
    pthread_mutex_init(&uploads->putting, NULL);
    pthread_mutex_init(&uploads->mutex, NULL);
    uploads->references = 1;
    uploads->device = config->device;
    uploads->batch_size = config->batch_size;
    uploads->spare = config->spare;
    TRY_GOTO(memory_calloc(config->arrays, sizeof *uploads->work, &uploads->work));
    uploads->arrays = config->arrays;
    for (size_t i = 0; i < config->arrays; i++) {
        TRY_GOTO(make_work(&uploads->work[i], &config->array[i]));
        uploads->moving += config->array[i].moves;
        uploads->processes = uploads->processes || uploads->work[i].processes;
    }
    *out = uploads;
    uploads = NULL;
done:
    loader_uploads_close(uploads);
    return status;
}

static void destroy_upload(Upload *upload) {
    if (upload == NULL) return;
    device_free(upload->memory); /* waits for the work that uses it */
    device_event_destroy(upload->ready);
    device_event_destroy(upload->read);
    memory_free(upload);
}

static Status destroy_list(void *context) {
    Upload *list = context;
    while (list != NULL) {
        Upload *next = list->next;
        destroy_upload(list);
        list = next;
    }
    return STATUS_OK;
}

static Status destroy_work(void *context) {
    Uploads *uploads = context;
    device_free(uploads->scratch.memory);
    device_host_free(uploads->scratch.host_clock);
    device_stream_destroy(uploads->stream);
    return STATUS_OK;
}

/* Frees GPU resources, whichever thread released them. */
static void free_on_device_thread(int device, LoaderDeviceWork destroy, void *what) {
    if (what != NULL && loader_device_thread_run(device, destroy, what) != STATUS_OK) (void)destroy(what);
}

/* Called with the mutex held, which it releases; the pool is freed with its last reference. */
static void unlock_and_unref(Uploads *uploads) {
    bool last = --uploads->references == 0;
    pthread_mutex_unlock(&uploads->mutex);
    if (!last) return;
    if (uploads->stream != NULL) free_on_device_thread(uploads->device, destroy_work, uploads);
    pthread_mutex_destroy(&uploads->mutex);
    pthread_mutex_destroy(&uploads->putting);
    memory_free(uploads->work);
    memory_free(uploads);
}

static void forget(Uploads *uploads, const Upload *upload) {
    uploads->stats.live--;
    uploads->stats.bytes -= upload->bytes;
}

void loader_uploads_close(Uploads *uploads) {
    if (uploads == NULL) return;
    pthread_mutex_lock(&uploads->mutex);
    uploads->closed = true;
    Upload *lists[] = {uploads->free, uploads->retired};
    uploads->free = uploads->retired = NULL;
    uploads->unused = 0;
    for (int i = 0; i < 2; i++) {
        for (Upload *upload = lists[i]; upload != NULL; upload = upload->next) forget(uploads, upload);
    }
    const int device = uploads->device;
    unlock_and_unref(uploads);
    for (int i = 0; i < 2; i++) free_on_device_thread(device, destroy_list, lists[i]);
}

void loader_uploads_enter(const Uploads *uploads) { loader_device_thread_enter(uploads->device); }

UploadsStats loader_uploads_stats(Uploads *uploads) {
    pthread_mutex_lock(&uploads->mutex);
    UploadsStats stats = uploads->stats;
    pthread_mutex_unlock(&uploads->mutex);
    return stats;
}

/* ---- buffers ---- */

/* Adds room for `count` values of `bytes` bytes each; *at is where it begins. */
static Status add_room(size_t count, size_t bytes, size_t *at, size_t *total) {
    uint64_t size, sum, rounded;
    *at = *total;
    if (!checked_mul(count, bytes, &size) || !checked_add(*total, size, &sum) ||
        !checked_round_up(sum, ALIGNMENT, &rounded) || rounded > SIZE_MAX / 2) {
        FAIL(STATUS_MEMORY,
             "a batch of %zu samples, each of which takes %zu bytes, does not fit on any GPU: make batch_size smaller",
             count, bytes);
    }
    *total = (size_t)rounded;
    return STATUS_OK;
}

static Status create_upload(Uploads *uploads, size_t samples, Upload **out) {
    Status status = STATUS_OK;
    Upload *upload = NULL;
    size_t *offsets = NULL, bytes = 0;
    TRY_GOTO(memory_calloc(uploads->arrays, sizeof *offsets, &offsets));
    for (size_t i = 0; i < uploads->arrays; i++) {
        const UploadsArray *array = &uploads->work[i].array;
        TRY_GOTO(add_room(samples, array->moves ? array->bytes : 0, &offsets[i], &bytes));
    }
    TRY_GOTO(memory_calloc(1, sizeof *upload + uploads->arrays * sizeof upload->arrays[0], &upload));
    TRY_GOTO(device_alloc(bytes, &upload->memory));
    TRY_GOTO(device_event_create(&upload->ready));
    for (size_t i = 0; i < uploads->arrays; i++) upload->arrays[i] = upload->memory + offsets[i];
    upload->pool = uploads;
    upload->capacity = samples;
    upload->bytes = bytes;
    *out = upload;
    upload = NULL;
done:
    memory_free(offsets);
    destroy_upload(upload);
    return status;
}

static Upload *take_free(Uploads *uploads) {
    Upload *upload = uploads->free;
    if (upload == NULL) return NULL;
    uploads->free = upload->next;
    uploads->unused--;
    return upload;
}

/* All work queued before they were retired is done once the device is idle. */
static Status renew_retired(Uploads *uploads) {
    Upload *list = uploads->retired, *last = list;
    uploads->retired = NULL;
    pthread_mutex_unlock(&uploads->mutex);
    Status status = device_synchronize();
    pthread_mutex_lock(&uploads->mutex);
    while (last->next != NULL) last = last->next;
    Upload **to = status == STATUS_OK ? &uploads->free : &uploads->retired;
    last->next = *to;
    *to = list;
    return status;
}

/* A buffer to reuse, or NULL. */
static Status take_used(Uploads *uploads, Upload **out) {
    Status status = STATUS_OK;
    pthread_mutex_lock(&uploads->mutex);
    bool enough = uploads->stats.live >= uploads->spare;
    if (uploads->free == NULL && uploads->retired != NULL && enough) status = renew_retired(uploads);
    *out = take_free(uploads);
    pthread_mutex_unlock(&uploads->mutex);
    return status;
}

/* A new buffer; if there is no memory for it, a retired one. */
static Status make_upload(Uploads *uploads, size_t samples, bool *fresh, Upload **out) {
    const bool usual = samples <= uploads->batch_size;
    Status status = create_upload(uploads, usual ? uploads->batch_size : samples, out);
    *fresh = status == STATUS_OK;
    if (status != STATUS_MEMORY || !usual) return status;
    ErrorRecord cause = *error_record();
    pthread_mutex_lock(&uploads->mutex);
    if (uploads->retired != NULL) status = renew_retired(uploads);
    *out = take_free(uploads);
    pthread_mutex_unlock(&uploads->mutex);
    return *out != NULL ? STATUS_OK : error_adopt(&cause);
}

static Status take_upload(Uploads *uploads, size_t samples, Upload **out) {
    Upload *upload = NULL;
    bool fresh = false;
    if (samples <= uploads->batch_size) TRY(take_used(uploads, &upload));
    if (upload == NULL) TRY(make_upload(uploads, samples, &fresh, &upload));
    pthread_mutex_lock(&uploads->mutex);
    uploads->references++;
    uploads->stats.live += fresh;
    uploads->stats.bytes += fresh ? upload->bytes : 0;
    pthread_mutex_unlock(&uploads->mutex);
    atomic_store(&upload->references, 1);
    atomic_store(&upload->given, false);
    upload->open = (LoaderUpload){upload->arrays, upload->ready};
    *out = upload;
    return STATUS_OK;
}

void loader_upload_retain(LoaderUpload *open) {
    Upload *upload = (Upload *)(void *)open;
    if (!atomic_exchange(&upload->given, true)) {
        pthread_mutex_lock(&upload->pool->mutex);
        upload->pool->stats.held++;
        pthread_mutex_unlock(&upload->pool->mutex);
    }
    atomic_fetch_add(&upload->references, 1);
}

static Status upload_read(Upload *upload, DeviceStream *stream) {
    bool capturing;
    TRY(device_capturing(stream, &capturing));
    if (capturing) FAIL(STATUS_ARGUMENT, "a batch cannot be taken on a stream that is capturing a graph");
    if (upload->read == NULL) TRY(device_event_create(&upload->read));
    TRY(device_event_record(upload->read, stream));
    upload->elsewhere = upload->elsewhere || (upload->reads > 0 && upload->reader != stream);
    upload->reader = stream;
    upload->reads++;
    return STATUS_OK;
}

Status loader_upload_read(LoaderUpload *open, DeviceStream *stream) {
    Upload *upload = (Upload *)(void *)open;
    pthread_mutex_lock(&upload->pool->mutex);
    Status status = upload_read(upload, stream);
    pthread_mutex_unlock(&upload->pool->mutex);
    return status;
}

/* Called before it is written again. */
static Status await_readers(const Uploads *uploads, Upload *upload) {
    if (upload->reads > 0) TRY(device_stream_wait(uploads->stream, upload->read));
    upload->reads = 0;
    upload->elsewhere = false;
    return STATUS_OK;
}

/* Whether stream order alone makes it free: no caller has held it, or all of it was read on one stream. */
static bool is_free(const Upload *upload) {
    const bool read = upload->reads == upload->pool->moving && !upload->elsewhere;
    return !atomic_load(&upload->given) || read;
}

void loader_upload_release(LoaderUpload *open) {
    if (open == NULL) return;
    Upload *upload = (Upload *)(void *)open;
    if (atomic_fetch_sub(&upload->references, 1) != 1) return;
    Uploads *uploads = upload->pool;
    pthread_mutex_lock(&uploads->mutex);
    uploads->stats.held -= atomic_load(&upload->given);
    bool keep = !uploads->closed && upload->capacity == uploads->batch_size && uploads->unused < uploads->spare;
    if (keep) {
        Upload **list = is_free(upload) ? &uploads->free : &uploads->retired;
        upload->next = *list;
        *list = upload;
        uploads->unused++;
    } else {
        forget(uploads, upload);
    }
    const int device = uploads->device;
    if (!keep) upload->next = NULL;
    unlock_and_unref(uploads);
    if (!keep) free_on_device_thread(device, destroy_list, upload);
}

/* ---- scratch memory of the GPU ---- */

/* The size of the largest image that operations or a conversion work on. */
static size_t widest(const Uploads *uploads) {
    size_t bytes = 0;
    for (size_t i = 0; i < uploads->arrays; i++) {
        const UploadsWork *work = &uploads->work[i];
        if (work->processes && work->array.host_bytes > bytes) bytes = work->array.host_bytes;
    }
    return bytes;
}

static Status place_scratch(const Uploads *uploads, size_t samples, size_t at[7], size_t *bytes) {
    const size_t image = widest(uploads), tables = uploads->arrays;
    const size_t sizes[7][2] = {{samples, image},
                                {samples, image},
                                {samples, sizeof(int64_t)},
                                {samples, sizeof(int64_t)},
                                {samples, sizeof(int32_t)},
                                {1, sizeof(GatherClock)},
                                {tables, sizeof uploads->work->table}};
    *bytes = 0;
    for (int i = 0; i < 7; i++) TRY(add_room(sizes[i][0], sizes[i][1], &at[i], bytes));
    return STATUS_OK;
}

static unsigned char *table_of(const Uploads *uploads, size_t output) {
    return uploads->scratch.tables + output * sizeof uploads->work->table;
}

static Status fill_scratch(Uploads *uploads, size_t samples) {
    Status status = STATUS_OK;
    int32_t *order = NULL;
    TRY_GOTO(memory_alloc(samples, sizeof *order, &order));
    for (size_t i = 0; i < samples; i++) order[i] = (int32_t)i;
    TRY_GOTO(device_copy(uploads->scratch.order, order, samples * sizeof *order, uploads->stream));
    for (size_t i = 0; i < uploads->arrays; i++) {
        const UploadsWork *work = &uploads->work[i];
        const size_t bytes = AUGMENT_TABLE_VALUES * work->item_bytes;
        if (work->converts) TRY_GOTO(device_copy(table_of(uploads, i), work->table, bytes, uploads->stream));
    }
    TRY_GOTO(device_stream_synchronize(uploads->stream)); /* the copy reads `order` */
done:
    memory_free(order);
    return status;
}

static void count_scratch(Uploads *uploads, size_t bytes) {
    pthread_mutex_lock(&uploads->mutex);
    uploads->stats.bytes += bytes;
    uploads->stats.bytes -= uploads->scratch.bytes;
    uploads->scratch.bytes = bytes;
    pthread_mutex_unlock(&uploads->mutex);
}

static Status reserve_scratch(Uploads *uploads, size_t samples) {
    UploadsScratch *scratch = &uploads->scratch;
    size_t at[7], bytes;
    bool fits = samples == scratch->capacity || (samples < scratch->capacity && samples > uploads->batch_size);
    if (scratch->memory != NULL && fits) return STATUS_OK; /* what a larger batch needed is not kept */
    if (samples > INT32_MAX) FAIL(STATUS_ARGUMENT, "a GPU cannot work on %zu images at once", samples);
    TRY(place_scratch(uploads, samples, at, &bytes));
    device_free(scratch->memory);
    count_scratch(uploads, 0);
    *scratch = (UploadsScratch){.host_clock = scratch->host_clock};
    TRY(device_alloc(bytes, &scratch->memory));
    count_scratch(uploads, bytes);
    scratch->raw = scratch->memory + at[0];
    scratch->changed = scratch->memory + at[1];
    scratch->ids = (int64_t *)(void *)(scratch->memory + at[2]);
    scratch->labels = (int64_t *)(void *)(scratch->memory + at[3]);
    scratch->order = (int32_t *)(void *)(scratch->memory + at[4]);
    scratch->clock = (GatherClock *)(void *)(scratch->memory + at[5]);
    scratch->tables = scratch->memory + at[6];
    TRY(fill_scratch(uploads, samples));
    scratch->capacity = samples;
    return STATUS_OK;
}

static Status set_clock(Uploads *uploads, UploadsDraws draws) {
    UploadsScratch *scratch = &uploads->scratch;
    GatherClock *host_clock = scratch->host_clock;
    if (scratch->timed && draws.seed == host_clock->seed && draws.epoch == host_clock->epoch) return STATUS_OK;
    if (host_clock == NULL) TRY(device_host_alloc(sizeof *host_clock, &scratch->host_clock));
    TRY(device_stream_synchronize(uploads->stream)); /* a copy may still be reading it */
    *scratch->host_clock = (GatherClock){draws.seed, draws.epoch, 0};
    scratch->timed = true;
    return device_copy(scratch->clock, scratch->host_clock, sizeof *scratch->host_clock, uploads->stream);
}

/* ---- a batch ---- */

static Status put_image(Uploads *uploads, const UploadsWork *work, size_t output, UploadsDraws draws,
                        const LoaderBatch *batch, uint8_t *to) {
    const UploadsScratch *scratch = &uploads->scratch;
    const AugmentSpec *spec = &work->device_spec;
    DeviceStream *stream = uploads->stream;
    const int count = (int)batch->count;
    const bool acts = spec->op_count > 0 && !draws.evaluate; /* otherwise all operations are neutral */
    uint8_t *now = acts || work->converts ? scratch->raw : to;
    TRY(device_copy(now, batch->arrays[output], batch->count * work->array.host_bytes, stream));
    if (acts) {
        const GatherSet set = {now, scratch->ids, scratch->ids, count, spec->height, spec->width};
        now = work->converts ? scratch->changed : to;
        TRY(augment_gather_batch(&set, scratch->order, scratch->clock, count, spec->ops, spec->op_count, now,
                                 scratch->labels, stream));
    }
    if (!work->converts) return STATUS_OK;
    return augment_convert_batch(now, count, spec->height, spec->width, table_of(uploads, output), work->item_bytes,
                                 spec->layout, to, stream);
}

static Status put_batch(Uploads *uploads, UploadsDraws draws, LoaderBatch *batch, Upload *upload) {
    DeviceEvent *copied;
    DeviceStream *stream = uploads->stream;
    if (uploads->processes) {
        const size_t room = batch->count < uploads->batch_size ? uploads->batch_size : batch->count;
        TRY(reserve_scratch(uploads, room));
        TRY(set_clock(uploads, draws));
        const uint64_t *ids = loader_slots_copy_ids(batch);
        TRY(device_copy(uploads->scratch.ids, ids, batch->count * sizeof *ids, stream));
    }
    for (size_t i = 0; i < uploads->arrays; i++) {
        const UploadsWork *work = &uploads->work[i];
        if (work->processes) {
            TRY(put_image(uploads, work, i, draws, batch, upload->arrays[i]));
        } else if (work->array.moves) {
            TRY(device_copy(upload->arrays[i], batch->arrays[i], batch->count * work->array.bytes, stream));
        }
    }
    TRY(loader_slots_copy_event(batch, &copied));
    TRY(device_event_record(copied, stream));
    return device_event_record(upload->ready, stream);
}

static Status begin_upload(Uploads *uploads, UploadsDraws draws, LoaderBatch *batch) {
    Upload *upload = NULL;
    TRY(device_select(uploads->device));
    if (uploads->stream == NULL) TRY(device_stream_create(&uploads->stream));
    TRY(take_upload(uploads, batch->count, &upload));
    Status status = await_readers(uploads, upload);
    if (status == STATUS_OK) status = put_batch(uploads, draws, batch, upload);
    if (status == STATUS_OK) {
        batch->upload = &upload->open;
        return STATUS_OK;
    }
    ErrorRecord cause = *error_record();
    (void)device_stream_synchronize(uploads->stream); /* it may still be reading the batch */
    loader_upload_release(&upload->open);
    return error_adopt(&cause);
}

Status loader_uploads_begin(Uploads *uploads, UploadsDraws draws, LoaderBatch *batch) {
    pthread_mutex_lock(&uploads->putting);
    Status status = begin_upload(uploads, draws, batch);
    pthread_mutex_unlock(&uploads->putting);
    return status;
}
