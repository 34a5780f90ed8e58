/* Streams, events, recorded graphs. A stream runs what is put on it at once, as far as it need not wait for another
 * process; with CGXFFCV_EMULATED_STREAMS=late it runs nothing before somebody waits for it, or asks how far it is,
 * which shows where a wait is missing. A capture keeps the work for the graph's launches, in which the streams that
 * joined it are late in the same way. A late stream takes CGXFFCV_EMULATED_QUEUE launches of graphs (no limit): the
 * next one waits, as long as it takes, as a driver's does. */
#include "runtime.h"

#include <stdlib.h>
#include <time.h>

static std::set<Stream *> streams;
static std::map<int, Stream> default_streams;
static thread_local std::vector<Graph *> captures; /* begun by this thread */

/* ---- queues ------------------------------------------------------------------------------------------------------*/

bool forbidden() {
    for (Graph *graph : captures) graph->broken = true;
    return !captures.empty();
}

bool late() {
    const char *text = getenv("CGXFFCV_EMULATED_STREAMS");
    return text != nullptr && strcmp(text, "late") == 0;
}

static cudaError_t run(const Work &work) { return lost(1) ? cudaErrorLaunchFailure : work(); }

/* Runs what waits in a queue, up to the given position or to a work that is not ready; the first failure. */
static cudaError_t advance(Stream *stream, uint64_t position) {
    cudaError_t first = lost(0) ? cudaErrorLaunchFailure : cudaSuccess;
    if (position > stream->queued) position = stream->queued;
    if (stream->done >= position) return first;
    Open open;
    while (stream->done < position) {
        cudaError_t error = run(stream->queue.front());
        if (error == cudaErrorNotReady) return error;
        stream->queue.pop_front();
        stream->done++;
        if (first == cudaSuccess) first = error;
    }
    return first;
}

/* Until it is ready; a process that waits too long ends. */
template <typename Try> static cudaError_t insist(Try attempt) {
    const struct timespec pause = {0, 20000};
    const time_t begin = time(nullptr);
    for (;;) {
        cudaError_t error = attempt();
        if (error != cudaErrorNotReady) return error;
        if (time(nullptr) - begin > PATIENCE_S) {
            fprintf(stderr, "emulator: a stream waits in vain for other ranks\n");
            abort();
        }
        nanosleep(&pause, nullptr);
    }
}

cudaError_t finish(Stream *stream, uint64_t position) {
    return insist([=]() { return advance(stream, position); });
}

/* What the event stands for, unless its stream is gone (and so done). */
static cudaError_t advance_event(Stream *stream, uint64_t position) {
    bool alive = streams.count(stream) > 0;
    for (auto &other : default_streams) alive = alive || &other.second == stream;
    return alive ? advance(stream, position) : cudaSuccess;
}

cudaError_t finish_all(int device) {
    cudaError_t first = finish(&default_streams[device], default_streams[device].queued);
    for (Stream *stream : streams) {
        cudaError_t error = stream->device == device ? finish(stream, stream->queued) : cudaSuccess;
        if (first == cudaSuccess) first = error;
    }
    return first;
}

Stream *stream_of(cudaStream_t handle) {
    if ((uintptr_t)handle <= 2) {
        Stream *stream = &default_streams[current_device];
        stream->device = current_device;
        return stream;
    }
    Stream *stream = (Stream *)handle;
    return streams.count(stream) ? stream : nullptr;
}

cudaError_t put(cudaStream_t handle, Work work) {
    Stream *stream = stream_of(handle);
    if (stream == nullptr || stream->device != current_device) return cudaErrorInvalidResourceHandle;
    if (stream->capture == nullptr) {
        stream->queue.push_back(work);
        stream->queued++;
        cudaError_t error = late() ? cudaSuccess : advance(stream, stream->queued);
        return error == cudaErrorNotReady ? cudaSuccess : error;
    }
    stream->put++;
    stream->capture->steps.push_back({stream, work, nullptr, 0});
    return cudaSuccess;
}

static double now() {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

/* ---- streams, events ---------------------------------------------------------------------------------------------*/

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    Locked locked(lock);
    Stream *stream = new Stream{};
    stream->device = current_device;
    streams.insert(stream);
    *out = (cudaStream_t)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, 0); }

/* For tests in Python, through ctypes: a stream of the current device; and a copy on its default stream. */
extern "C" __attribute__((visibility("default"))) void *emulated_stream(void) {
    cudaStream_t stream = nullptr;
    return cudaStreamCreate(&stream) == cudaSuccess ? stream : nullptr;
}

extern "C" __attribute__((visibility("default"))) int emulated_copy(void *to, const void *from, size_t bytes) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, nullptr);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr || streams.count(stream) == 0) return give(cudaErrorInvalidResourceHandle);
    finish(stream, stream->queued);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

static cudaError_t query(cudaStream_t handle) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture == nullptr) return advance(stream, stream->queued);
    stream->capture->broken = true;
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) { return give(query(handle)); }

/* Lets go of the lock between two attempts. */
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return give(insist([=]() { return query(handle); }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    Event *event = new Event{};
    event->device = current_device;
    *out = (cudaEvent_t)event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    Locked locked(lock);
    Event *event = (Event *)handle;
    insist([=]() { return advance_event(event->stream, event->position); });
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    Locked locked(lock);
    Event *event = (Event *)handle;
    Stream *stream = stream_of(stream_handle);
    if (stream == nullptr || stream->device != event->device) return give(cudaErrorInvalidResourceHandle);
    event->capture = stream->capture == nullptr ? 0 : stream->capture->number;
    event->stream = stream;
    event->position = 0;
    event->put = stream->put;
    if (stream->capture != nullptr) return cudaSuccess;
    event->recorded = false;
    cudaError_t error = put(stream_handle, [=]() {
        event->recorded = true;
        event->milliseconds = now();
        return cudaSuccess;
    });
    event->position = stream->queued;
    return give(error);
}

/* The capture that the event is part of, while it goes on. */
static Graph *capture_of(const Event *event) {
    for (Stream *stream : streams) {
        if (stream->capture != nullptr && stream->capture->number == event->capture) return stream->capture;
    }
    return nullptr;
}

static cudaError_t query(Event *event) {
    Locked locked(lock);
    if (event->capture == 0) return advance_event(event->stream, event->position);
    if (Graph *graph = capture_of(event)) graph->broken = true;
    return cudaErrorCapturedEvent;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) { return give(query((Event *)handle)); }

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    return give(insist([=]() { return query((Event *)handle); }));
}

cudaError_t cudaEventElapsedTime(float *out, cudaEvent_t begin, cudaEvent_t end) {
    Event *first = (Event *)begin, *last = (Event *)end;
    if (first->stream == nullptr || last->stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if (!first->recorded || !last->recorded) return give(cudaErrorNotReady);
    *out = (float)(last->milliseconds - first->milliseconds);
    return cudaSuccess;
}

/* A wait for an event of a capture joins the stream to it. */
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    Event *event = (Event *)event_handle;
    Graph *capture = capture_of(event);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if (event->capture == 0 && stream->capture == nullptr) {
        Stream *other = event->stream;
        uint64_t position = event->position;
        return give(put(handle, [=]() { return advance_event(other, position); }));
    }
    if (capture == nullptr) {
        if (event->stream == nullptr) return cudaSuccess; /* never recorded */
        if (stream->capture != nullptr) stream->capture->broken = true;
        return give(event->capture == 0 ? cudaErrorStreamCaptureIsolation : cudaErrorCapturedEvent);
    }
    if (stream->capture == nullptr) {
        stream->capture = capture;
        stream->put = stream->waited = 0;
        capture->joined.insert(stream);
    }
    if (stream->capture != capture) return give(cudaErrorStreamCaptureMerge);
    if (event->stream != stream && event->put > event->stream->waited) event->stream->waited = event->put;
    stream->put++;
    capture->steps.push_back({stream, Work(), event->stream, event->put});
    return cudaSuccess;
}

/* ---- capture, graphs ---------------------------------------------------------------------------------------------*/

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    if ((uintptr_t)handle <= 2) return give(cudaErrorStreamCaptureUnsupported);
    if (stream->capture != nullptr) return give(cudaErrorIllegalState);
    static uint64_t number;
    stream->capture = new Graph{};
    stream->capture->number = ++number;
    stream->capture->origin = stream;
    stream->capture->device = stream->device;
    captures.push_back(stream->capture);
    return cudaSuccess;
}

/* Each thread is apart from the others here. */
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    static thread_local enum cudaStreamCaptureMode now = cudaStreamCaptureModeGlobal;
    std::swap(now, *mode);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    *out = nullptr;
    if (stream == nullptr || stream->capture == nullptr) return give(cudaErrorIllegalState);
    Graph *graph = stream->capture;
    if (graph->origin != stream) return give(cudaErrorStreamCaptureUnmatched);
    bool unjoined = false;
    for (Stream *joined : graph->joined) {
        unjoined = unjoined || joined->waited < joined->put;
        joined->capture = nullptr;
    }
    stream->capture = nullptr;
    stream->put = stream->waited = 0;
    for (size_t i = 0; i < captures.size(); i++) {
        if (captures[i] == graph) captures.erase(captures.begin() + (long)i);
    }
    if (graph->broken || unjoined) {
        bool broken = graph->broken;
        delete graph;
        return give(broken ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    }
    *out = (cudaGraph_t)graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *out) {
    Locked locked(lock);
    Stream *stream = stream_of(handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    *out = stream->capture == nullptr ? cudaStreamCaptureStatusNone
           : stream->capture->broken  ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    *out = (cudaGraphExec_t) new Graph(*(Graph *)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
    *count = 0;
    for (const Step &step : ((Graph *)graph)->steps) *count += step.other == nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

/* The steps of each stream, and how many of them are in the order already. */
struct Sequence {
    std::vector<const Step *> steps;
    size_t taken;
};

static void take(std::map<Stream *, Sequence> *sequences, Stream *stream, uint64_t until, std::vector<Work> *order) {
    Sequence &sequence = (*sequences)[stream];
    while (sequence.taken < until && sequence.taken < sequence.steps.size()) {
        const Step &step = *sequence.steps[sequence.taken++];
        if (step.other == nullptr) {
            order->push_back(step.work);
        } else {
            take(sequences, step.other, step.until, order);
        }
    }
}

/* As they were put; with late streams, those of the streams that joined only when they are waited for. */
static std::vector<Work> order_of(const Graph *graph) {
    std::map<Stream *, Sequence> sequences;
    std::vector<Work> order;
    for (const Step &step : graph->steps) {
        sequences[step.stream].steps.push_back(&step);
        if (step.other == nullptr && !late()) order.push_back(step.work);
    }
    if (late()) take(&sequences, graph->origin, graph->steps.size(), &order);
    return order;
}

/* Waits until there is room for another launch. */
static cudaError_t make_room(Stream *stream) {
    const char *text = getenv("CGXFFCV_EMULATED_QUEUE");
    cudaError_t error = cudaSuccess;
    if (text == nullptr || !late()) return error;
    while (stream->launches.size() >= strtoull(text, nullptr, 0) && error == cudaSuccess) {
        error = finish(stream, stream->launches.front());
        stream->launches.pop_front();
    }
    while (!stream->launches.empty() && stream->launches.front() <= stream->done) stream->launches.pop_front();
    return error;
}

static cudaError_t launch(cudaGraphExec_t handle, cudaStream_t stream) {
    for (const Work &work : order_of((Graph *)handle)) {
        cudaError_t error = put(stream, work);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
    Locked locked(lock);
    Open open;
    Stream *stream = stream_of(stream_handle);
    if (stream == nullptr) return give(cudaErrorInvalidResourceHandle);
    cudaError_t error = make_room(stream);
    if (error == cudaSuccess) error = launch(handle, stream_handle);
    if (late()) stream->launches.push_back(stream->queued);
    return give(error);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete (Graph *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete (Graph *)graph;
    return cudaSuccess;
}
