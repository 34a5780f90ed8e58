// rooms: base loader
/* The feed over a device and a loader made for the test. Streams run as late as anyone lets them, at once, or some of
 * their work at every call; a buffer that goes back to the loader is scribbled on at once. So a slot that is filled
 * while it is read, or a buffer that is given back while it is copied, shows in what the reader has seen. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "loader/feed.h"

#define SIDE 2
#define BYTES (SIDE * SIDE * 3)
#define ROOM 3 /* images of a batch */
#define CLASSES 10
#define BATCHES 40
#define MOST_WORK 512
#define NONE 99

/* ---- the device ---- */

typedef enum { LATE, EAGER, MIXED } Pace;
typedef enum { COPY, FILL, RECORD, WAIT } Kind;

typedef struct Work {
    Kind kind;
    void *to;
    const void *from;
    size_t bytes;
    DeviceStream *stream; /* WAIT: until it has done `position` */
    int position;
} Work;

struct DeviceStream {
    Work work[MOST_WORK];
    int put, done;
    DeviceStream *next;
};

struct DeviceEvent {
    DeviceStream *stream; /* NULL: never recorded */
    int position;
};

static DeviceStream *streams;
static Pace pace;
static uint32_t random_state;
static int copies_until_failure, live; /* device objects and memory */

static uint32_t draw(uint32_t below) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % below;
}

/* Does one thing of the stream; false if it has to wait or has nothing to do. */
static bool advance(DeviceStream *stream) {
    if (stream->done == stream->put) return false;
    const Work *work = &stream->work[stream->done];
    if (work->kind == WAIT && work->stream->done < work->position) return false;
    if (work->kind == COPY) memcpy(work->to, work->from, work->bytes);
    if (work->kind == FILL) memset(work->to, 0, work->bytes);
    stream->done++;
    return true;
}

static void advance_any(int times) {
    for (int i = 0; i < times; i++) {
        int skip = (int)draw(4);
        for (DeviceStream *stream = streams; stream != NULL; stream = stream->next) {
            if (skip-- <= 0 && advance(stream)) break;
        }
    }
}

static void finish(DeviceStream *stream) {
    for (int i = 0; stream->done < stream->put && i < 100000; i++) {
        if (!advance(stream)) advance_any(1);
    }
    CHECK(stream->done == stream->put); /* else it waits for what never comes */
}

static Status put(DeviceStream *stream, Work work) {
    if (stream->put == MOST_WORK) FAIL(STATUS_MEMORY, "too much work for the test");
    stream->work[stream->put++] = work;
    if (pace == EAGER) finish(stream);
    if (pace == MIXED) advance_any((int)draw(6));
    return STATUS_OK;
}

Status device_alloc(size_t bytes, void *out) {
    void *memory = malloc(bytes);
    memset(memory, 0xff, bytes);
    memcpy(out, &memory, sizeof memory);
    live++;
    return STATUS_OK;
}

void device_free(void *memory) {
    live -= memory != NULL;
    free(memory);
}

Status device_stream_create(DeviceStream **out) {
    *out = calloc(1, sizeof **out);
    (*out)->next = streams;
    streams = *out;
    live++;
    return STATUS_OK;
}

void device_stream_destroy(DeviceStream *stream) {
    DeviceStream **link = &streams;
    while (*link != stream) link = &(*link)->next;
    *link = stream->next;
    free(stream);
    live--;
}

Status device_stream_synchronize(DeviceStream *stream) {
    finish(stream);
    return STATUS_OK;
}

Status device_copy(void *to, const void *from, size_t bytes, DeviceStream *stream) {
    if (copies_until_failure-- == 0) FAIL(STATUS_CUDA, "the device is lost");
    return put(stream, (Work){.kind = COPY, .to = to, .from = from, .bytes = bytes});
}

Status device_fill(void *to, int byte, size_t bytes, DeviceStream *stream) {
    CHECK(byte == 0);
    return put(stream, (Work){.kind = FILL, .to = to, .bytes = bytes});
}

Status device_event_create(DeviceEvent **out) {
    *out = calloc(1, sizeof **out);
    live++;
    return STATUS_OK;
}

void device_event_destroy(DeviceEvent *event) {
    live -= event != NULL;
    free(event);
}

Status device_event_record(DeviceEvent *event, DeviceStream *stream) {
    TRY(put(stream, (Work){.kind = RECORD}));
    *event = (DeviceEvent){stream, stream->put};
    return STATUS_OK;
}

Status device_stream_wait(DeviceStream *stream, DeviceEvent *event) {
    if (event->stream == NULL) return STATUS_OK;
    return put(stream, (Work){.kind = WAIT, .stream = event->stream, .position = event->position});
}

/* ---- the loader ---- */

typedef struct Buffer {
    LoaderBatch batch;
    uint8_t images[ROOM * BYTES];
    int64_t labels[ROOM];
    uint64_t ids[ROOM];
    void *arrays[2];
    bool out;
} Buffer;

struct Loader {
    Buffer buffers[2];
    int given, batches, fails_at, count;
    int64_t bad_label; /* at batch 3; NONE: none */
    LoaderArray images, labels;
    size_t outputs;
    LoaderMoved moved; /* of the labels */
};

static int held; /* buffers in the feed's hands */

static Loader new_loader(void) {
    return (Loader){.batches = BATCHES,
                    .fails_at = -1,
                    .count = ROOM,
                    .bad_label = NONE,
                    .images = {.dtype = BETON_U8, .ndim = 3, .shape = {SIDE, SIDE, 3}, .sample_bytes = BYTES},
                    .labels = {.dtype = BETON_I64, .ndim = 1, .shape = {1}, .sample_bytes = sizeof(int64_t)},
                    .outputs = 2};
}

static uint8_t pixel(int batch, int i) { return (uint8_t)(batch * 7 + i); }

static void fill(Buffer *buffer, int batch, int count) {
    for (int i = 0; i < count * BYTES; i++) buffer->images[i] = pixel(batch, i);
    for (int i = 0; i < count; i++) {
        buffer->labels[i] = (batch + i) % CLASSES;
        buffer->ids[i] = (uint64_t)(batch * ROOM + i);
    }
}

size_t loader_outputs(const Loader *loader) { return loader->outputs; }

const LoaderArray *loader_array(const Loader *loader, size_t output) {
    return output == 0 ? &loader->images : &loader->labels;
}

LoaderMoved loader_moved(const Loader *loader, size_t output, const char **why) {
    *why = NULL;
    return output == 0 ? LOADER_STAYS : loader->moved;
}

Status loader_next(Loader *loader, LoaderPoll poll, void *context, LoaderBatch **out) {
    *out = NULL;
    if (poll != NULL) TRY(poll(context));
    if (loader->given == loader->fails_at) FAIL(STATUS_FORMAT, "an unreadable image");
    if (loader->given == loader->batches) return STATUS_OK;
    Buffer *buffer = loader->buffers[0].out ? &loader->buffers[1] : &loader->buffers[0];
    if (buffer->out) FAIL(STATUS_MEMORY, "two buffers are held at once");
    fill(buffer, loader->given, loader->count);
    if (loader->bad_label != NONE && loader->given == 3) buffer->labels[1] = loader->bad_label;
    buffer->arrays[0] = buffer->images;
    buffer->arrays[1] = buffer->labels;
    buffer->out = true;
    buffer->batch = (LoaderBatch){.index = (uint64_t)loader->given++,
                                  .count = (size_t)loader->count,
                                  .ids = buffer->ids,
                                  .arrays = buffer->arrays,
                                  .array_count = 2};
    held++;
    *out = &buffer->batch;
    return STATUS_OK;
}

void loader_batch_release(LoaderBatch *batch) {
    Buffer *buffer = (Buffer *)(void *)batch;
    if (batch == NULL) return;
    CHECK(buffer->out);
    buffer->out = false;
    memset(buffer->images, 0xee, sizeof buffer->images);
    memset(buffer->labels, 0xee, sizeof buffer->labels);
    memset(buffer->ids, 0xee, sizeof buffer->ids);
    held--;
}

/* ---- the tests ---- */

static int waits_until_failure, polls;

static Status wait_for(void *context, DeviceStream *stream) {
    CHECK(context == &polls);
    if (waits_until_failure-- == 0) FAIL(STATUS_PEER_LOST, "a rank is lost");
    return device_stream_synchronize(stream);
}

static Status count_poll(void *context) {
    (*(int *)context)++;
    return STATUS_OK;
}

static LoaderFeed *start(DeviceStream *reader) {
    LoaderFeedConfig config = {.batch = ROOM,
                               .side = SIDE,
                               .classes = CLASSES,
                               .reader = reader,
                               .wait = wait_for,
                               .poll = count_poll,
                               .wait_context = &polls,
                               .poll_context = &polls};
    LoaderFeed *feed = NULL;
    copies_until_failure = waits_until_failure = -1;
    CHECK_OK(loader_feed_create(&config, &feed));
    return feed;
}

/* What the reader has seen of one batch. */
typedef struct Seen {
    uint8_t images[ROOM * BYTES];
    int64_t labels[ROOM], ids[ROOM];
} Seen;

static Status look(const LoaderFeedBatch *batch, DeviceStream *reader, Seen *seen) {
    size_t count = (size_t)batch->count;
    TRY(put(reader, (Work){.kind = COPY, .to = seen->images, .from = batch->images, .bytes = count * BYTES}));
    TRY(put(reader, (Work){.kind = COPY, .to = seen->labels, .from = batch->labels, .bytes = count * 8}));
    return put(reader, (Work){.kind = COPY, .to = seen->ids, .from = batch->ids, .bytes = count * 8});
}

static bool as_given(const Seen *seen, int batch, int count) {
    Buffer expected;
    fill(&expected, batch, count);
    return memcmp(seen->images, expected.images, (size_t)count * BYTES) == 0 &&
           memcmp(seen->labels, expected.labels, (size_t)count * 8) == 0 &&
           memcmp(seen->ids, expected.ids, (size_t)count * 8) == 0;
}

/* Passes over some batches, the device as `pace` says; the work that a step has besides reading keeps it busy. */
static void test_all_batches(Pace chosen, uint32_t seed, int count) {
    static Seen seen[BATCHES];
    static uint8_t busy[64];
    DeviceStream *reader = NULL;
    LoaderFeedBatch batch;
    pace = chosen;
    random_state = seed;
    CHECK_OK(device_stream_create(&reader));
    LoaderFeed *feed = start(reader);
    Loader loader = new_loader();
    loader.count = count;
    memset(seen, 0, sizeof seen);
    CHECK_OK(loader_feed_check(&loader, SIDE));
    CHECK_OK(loader_feed_blank(feed, &batch)); /* nobody waits for it here */
    for (int i = 0; i < BATCHES; i++) {
        CHECK_OK(loader_feed_next(feed, &loader, &batch));
        CHECK(batch.count == count && batch.host_labels[0] == i % CLASSES);
        CHECK_OK(look(&batch, reader, &seen[i]));
        CHECK_OK(loader_feed_free(feed));
        for (int k = 0; k < (int)draw(4); k++) {
            CHECK_OK(put(reader, (Work){.kind = FILL, .to = busy, .bytes = sizeof busy}));
        }
        CHECK(held <= 1);
    }
    CHECK_OK(loader_feed_next(feed, &loader, &batch));
    CHECK(batch.count == 0);
    CHECK_OK(loader_feed_settle(feed));
    CHECK(held == 0);
    finish(reader);
    for (int i = 0; i < BATCHES; i++) CHECK(as_given(&seen[i], i, count));
    loader_feed_destroy(feed);
    device_stream_destroy(reader);
    CHECK(live == 0);
}

static void test_blank(void) {
    Seen seen;
    DeviceStream *reader = NULL;
    LoaderFeedBatch batch;
    pace = LATE;
    CHECK_OK(device_stream_create(&reader));
    LoaderFeed *feed = start(reader);
    CHECK_OK(loader_feed_blank(feed, &batch));
    CHECK(batch.count == ROOM);
    CHECK_OK(look(&batch, reader, &seen));
    finish(reader);
    for (int i = 0; i < ROOM * BYTES; i++) CHECK(seen.images[i] == 0);
    for (int i = 0; i < ROOM; i++) CHECK(seen.labels[i] == 0 && seen.ids[i] == 0);
    loader_feed_destroy(feed);
    device_stream_destroy(reader);
}

/* Takes batches until something fails, at batch `at`; afterwards nothing is held, and what came before is whole. */
static void test_failure(Pace chosen, Loader loader, int copies, int waits, Status expected, int at) {
    static Seen seen[BATCHES];
    DeviceStream *reader = NULL;
    LoaderFeedBatch batch;
    Status status = STATUS_OK;
    int taken = 0;
    pace = chosen;
    CHECK_OK(device_stream_create(&reader));
    LoaderFeed *feed = start(reader);
    copies_until_failure = copies;
    waits_until_failure = waits;
    for (; taken < BATCHES; taken++) {
        status = loader_feed_next(feed, &loader, &batch);
        if (status != STATUS_OK) break;
        CHECK_OK(look(&batch, reader, &seen[taken]));
        CHECK_OK(loader_feed_free(feed));
    }
    CHECK(status == expected && taken == at);
    (void)loader_feed_settle(feed);
    CHECK(held == 0);
    finish(reader);
    for (int i = 0; i < taken; i++) CHECK(as_given(&seen[i], i, ROOM));
    loader_feed_destroy(feed);
    device_stream_destroy(reader);
    CHECK(live == 0);
}

static void test_failures(void) {
    for (Pace chosen = LATE; chosen <= MIXED; chosen++) {
        Loader loader = new_loader();
        loader.fails_at = 5;
        test_failure(chosen, loader, -1, -1, STATUS_FORMAT, 5);
        for (int64_t label = -1; label <= CLASSES; label += CLASSES + 1) {
            loader = new_loader();
            loader.bad_label = label;
            test_failure(chosen, loader, -1, -1, STATUS_ARGUMENT, 3);
        }
        test_failure(chosen, new_loader(), 3 * 4 + 1, -1, STATUS_CUDA, 4);
        test_failure(chosen, new_loader(), -1, 6, STATUS_PEER_LOST, 7);
    }
}

static void test_refusals(void) {
    DeviceStream *reader = NULL;
    LoaderFeedBatch batch;
    pace = EAGER;
    CHECK_OK(device_stream_create(&reader));
    LoaderFeed *feed = start(reader);
    Loader loader = new_loader();
    loader.outputs = 1;
    CHECK(loader_feed_check(&loader, SIDE) == STATUS_ARGUMENT);
    loader = new_loader();
    loader.moved = LOADER_MOVED;
    CHECK(loader_feed_check(&loader, SIDE) == STATUS_ARGUMENT);
    loader = new_loader();
    loader.images.shape[1] = SIDE + 1;
    CHECK(loader_feed_check(&loader, SIDE) == STATUS_ARGUMENT);
    loader = new_loader();
    loader.labels.dtype = BETON_F64;
    CHECK(loader_feed_check(&loader, SIDE) == STATUS_ARGUMENT);
    loader = new_loader();
    CHECK_OK(loader_feed_next(feed, &loader, &batch));
    CHECK(polls > 0);
    loader_feed_destroy(feed); /* with a batch in hand */
    CHECK(held == 0);
    device_stream_destroy(reader);
}

int main(void) {
    for (int count = 1; count <= ROOM; count += ROOM - 1) {
        test_all_batches(LATE, 1, count);
        test_all_batches(EAGER, 1, count);
        for (uint32_t seed = 1; seed <= 200; seed++) test_all_batches(MIXED, seed, count);
    }
    test_blank();
    test_failures();
    test_refusals();
    return check_result();
}
