/* Convolutions through cuDNN's graph API; this file and cudnn_graph.c are the only ones that call cuDNN. A convolution
 * is a graph of one operation; the heuristics propose engines with settings (knobs), each is timed, and the fastest is
 * cached as its number and knobs, from which a later process builds the same plan without heuristics and timing. Owns
 * one library handle per device, kept until the process ends: creating one loads libraries of hundreds of megabytes. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "nn/cuda/conv/cudnn_graph.h"

#define MAX_DEVICES 64
#define MAX_CONFIGS 64          /* proposals considered per heuristic */
#define MAX_TIMED 16            /* candidates timed per convolution */
#define FIRST_TIMED 8           /* the most promising ones, before one of each other engine */
#define DROP_ABOVE 2.0f         /* times the best: not worth more runs */
#define COMPILED_MUST_GAIN 0.97 /* of the time of the best that need not be compiled in every process */
#define MAX_COMPILED 2          /* candidates per convolution that must be compiled before they run */
#define COMPILE_SECONDS 0.5     /* what a process may spend on compiling candidates, as long as there are others */
#define SHORT_RUN_MS 0.1f
#define SMALL_VALUES 0x2c /* gives small numbers in all three types, whose products do not overflow */

typedef struct Library {
    pthread_mutex_t lock; /* protects the handle and everything else here */
    cudnnHandle_t handle;
    DeviceStream *stream; /* the handle's stream, */
    bool stream_set;      /* if this is true */
    ConvPlans *plans;
    double compile_seconds;
} Library;

struct CudaConvs {
    Library *library; /* borrowed; lives as long as the process */
    DeviceStream *stream;
};

struct CudaConv {
    CudaConvs *convs; /* borrowed */
    CudaConvPass pass;
    Graph graph;
    Candidate chosen;
    NnAlgorithmSource source;
    Descriptor pack; /* for these operands and workspace */
    void *operands[OPERANDS], *workspace;
    char text[CONV_PLANS_VALUE_BYTES + 96];
};

/* ---- timing ---- */

/* Memory to run candidates on, and the events that time them. */
typedef struct Bench {
    char *memory, *workspace; /* owned, device */
    void *operands[OPERANDS];
    int64_t workspace_bytes;
    DeviceEvent *begin, *end; /* owned */
} Bench;

static void bench_fini(Bench *bench) {
    device_event_destroy(bench->end);
    device_event_destroy(bench->begin);
    device_free(bench->workspace);
    device_free(bench->memory);
    *bench = (Bench){0};
}

static Status bench_init(const CudaConvs *convs, const CudaConvShape *s, Bench *bench) {
    Status status = STATUS_OK;
    const size_t alignment = 1024, type_bytes = s->precision == PRECISION_FLOAT32 ? 4 : 2;
    size_t offsets[OPERANDS], bytes = 0;
    const size_t elems[OPERANDS] = {
        [X] = (size_t)s->images * (size_t)s->in_height * (size_t)s->in_width * (size_t)s->in_channels,
        [W] = (size_t)s->out_channels * (size_t)s->kernel * (size_t)s->kernel * (size_t)s->in_channels,
        [Y] = (size_t)s->images * (size_t)s->out_height * (size_t)s->out_width * (size_t)s->out_channels,
    };
    *bench = (Bench){0};
    for (int i = 0; i < OPERANDS; i++) {
        offsets[i] = bytes;
        bytes += (elems[i] * type_bytes + alignment - 1) / alignment * alignment;
    }
    TRY_GOTO(device_alloc(bytes, &bench->memory));
    TRY_GOTO(device_fill(bench->memory, SMALL_VALUES, bytes, convs->stream));
    for (int i = 0; i < OPERANDS; i++) bench->operands[i] = bench->memory + offsets[i];
    TRY_GOTO(device_event_create(&bench->begin));
    TRY_GOTO(device_event_create(&bench->end));
done:
    if (status != STATUS_OK) bench_fini(bench);
    return status;
}

static Status bench_workspace(Bench *bench, int64_t bytes) {
    if (bytes <= bench->workspace_bytes) return STATUS_OK;
    device_free(bench->workspace);
    bench->workspace = NULL;
    bench->workspace_bytes = 0;
    TRY(device_alloc((size_t)bytes, &bench->workspace));
    bench->workspace_bytes = bytes;
    return STATUS_OK;
}

static Status make_pack(void *const operands[OPERANDS], void *workspace, Descriptor *out) {
    const int64_t ids[OPERANDS] = {OPERAND_ID(X), OPERAND_ID(W), OPERAND_ID(Y)};
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, out));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, OPERANDS, ids));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, OPERANDS, operands));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace));
    return nn_cuda_descriptor_finalize(*out, "naming the operands");
}

static Status execute(Library *library, DeviceStream *stream, Descriptor plan, Descriptor pack) {
    if (!library->stream_set || library->stream != stream) {
        TRY_CUDNN(nn_cudnn.cudnnSetStream(library->handle, (cudaStream_t)stream), "choosing the stream");
        library->stream = stream;
        library->stream_set = true;
    }
    TRY_CUDNN(nn_cudnn.cudnnBackendExecute(library->handle, plan, pack), "running a convolution");
    return STATUS_OK;
}

static Status time_runs(CudaConvs *convs, const Bench *bench, const Candidate *candidate, Descriptor pack, int runs,
                        float *milliseconds) {
    TRY(device_event_record(bench->begin, convs->stream));
    for (int i = 0; i < runs; i++) TRY(execute(convs->library, convs->stream, candidate->plan, pack));
    TRY(device_event_record(bench->end, convs->stream));
    TRY(device_event_synchronize(bench->end));
    TRY(device_event_elapsed(bench->begin, bench->end, milliseconds));
    *milliseconds /= (float)runs;
    return STATUS_OK;
}

static float median_of_three(const float v[3]) {
    float low = v[0] < v[1] ? v[0] : v[1], high = v[0] < v[1] ? v[1] : v[0];
    return v[2] < low ? low : v[2] > high ? high : v[2];
}

/* Checks that the candidate can be part of a recorded step: an engine that allocates or waits cannot. */
static Status record_once(CudaConvs *convs, const Candidate *candidate, Descriptor pack) {
    DeviceGraph *graph = NULL;
    TRY(device_capture_begin(convs->stream));
    Status status = execute(convs->library, convs->stream, candidate->plan, pack);
    TRY(device_capture_end(convs->stream, status, &graph));
    device_graph_destroy(graph);
    return STATUS_OK;
}

/* Runs the candidate until its time is known, or known to be far above `best` (0: none yet). A failure is the
 * candidate's own, unless the stream has failed, which the next use of the stream will show. */
static Status time_candidate(CudaConvs *convs, Bench *bench, Candidate *candidate, float best) {
    Status status = STATUS_OK;
    Descriptor pack = NULL;
    float times[3] = {0};
    TRY_GOTO(bench_workspace(bench, candidate->workspace_bytes));
    TRY_GOTO(make_pack(bench->operands, bench->workspace, &pack));
    TRY_GOTO(time_runs(convs, bench, candidate, pack, 1, &times[0])); /* loads the kernels */
    TRY_GOTO(record_once(convs, candidate, pack));
    TRY_GOTO(time_runs(convs, bench, candidate, pack, 1, &times[0]));
    candidate->milliseconds = times[0];
    if (best > 0 && times[0] > DROP_ABOVE * best) goto done;
    int runs = times[0] < SHORT_RUN_MS ? 4 : 1;
    for (int i = 0; i < 3; i++) TRY_GOTO(time_runs(convs, bench, candidate, pack, runs, &times[i]));
    candidate->milliseconds = median_of_three(times);
done:
    nn_cuda_descriptor_destroy(&pack);
    return status;
}

/* ---- search ---- */

typedef struct Search {
    CudaConvs *convs;
    const CudaConvShape *shape;
    const Graph *graph;
    const char *key;
    Bench bench; /* without memory: nothing is timed, the first candidate that can be built is used */
    Candidate list[MAX_CONFIGS], ready, compiled; /* the fastest of those that need no compilation, and of the others */
    int count, tried, timed;
    int64_t engines[2 * MAX_CONFIGS]; /* that have been tried */
    int engine_count;
} Search;

/* Makes the proposal a candidate unless it may not be used or is already known; takes ownership of `config`. */
static void add_proposal(Search *search, Descriptor config) {
    Candidate *candidate = &search->list[search->count];
    bool usable = false;
    *candidate = (Candidate){.config = config};
    Status status = nn_cuda_descriptor_create(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &candidate->engine);
    if (status == STATUS_OK) {
        status = nn_cuda_descriptor_get_one(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                            &candidate->engine);
    }
    if (status == STATUS_OK) status = nn_cuda_candidate_examine(search->shape, candidate, &usable);
    if (status == STATUS_OK && usable) status = nn_cuda_candidate_format(candidate);
    for (int i = 0; i < search->count; i++) {
        if (strcmp(search->list[i].text, candidate->text) == 0) usable = false;
    }
    if (status == STATUS_OK && usable) {
        search->count++;
    } else {
        nn_cuda_candidate_fini(candidate);
    }
}

/* Adds a heuristic's proposals, the most promising first. */
static Status propose(Search *search, cudnnBackendHeurMode_t mode) {
    Status status = STATUS_OK;
    Descriptor heuristic = NULL, configs[MAX_CONFIGS] = {0};
    int64_t there = 0, count = 0;
    TRY_GOTO(nn_cuda_descriptor_create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristic));
    TRY_GOTO(nn_cuda_descriptor_set(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                    &search->graph->graph));
    TRY_GOTO(nn_cuda_descriptor_set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode));
    TRY_GOTO(nn_cuda_descriptor_finalize(heuristic, "asking for engines"));
    cudnnStatus_t error = nn_cudnn.cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &there, NULL);
    if (error != CUDNN_STATUS_SUCCESS) {
        status = nn_cuda_conv_failed(error, "counting engines");
        goto done;
    }
    int64_t room = there < MAX_CONFIGS ? there : MAX_CONFIGS;
    for (int64_t i = 0; i < room; i++) {
        TRY_GOTO(nn_cuda_descriptor_create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[i]));
    }
    if (room > 0) {
        TRY_GOTO(nn_cuda_descriptor_get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, room,
                                        &count, configs));
    }
    for (int64_t i = 0; i < count && search->count < MAX_CONFIGS; i++) {
        add_proposal(search, configs[i]);
        configs[i] = NULL;
    }
done:
    for (int i = 0; i < MAX_CONFIGS; i++) nn_cuda_descriptor_destroy(&configs[i]);
    nn_cuda_descriptor_destroy(&heuristic);
    return status;
}

/* The shortest time so far; 0 if there is none. */
static float least_time(const Search *search) {
    const Candidate *ready = &search->ready, *compiled = &search->compiled;
    if (ready->plan == NULL) return compiled->plan == NULL ? 0 : compiled->milliseconds;
    if (compiled->plan == NULL) return ready->milliseconds;
    return ready->milliseconds < compiled->milliseconds ? ready->milliseconds : compiled->milliseconds;
}

/* Builds and times one candidate, and keeps it if it is the fastest of its kind. Candidates that do not work are
 * skipped; a failure is the device's. */
static Status try_candidate(Search *search, Candidate *candidate) {
    CudaConvs *convs = search->convs;
    Candidate *best = candidate->compiled ? &search->compiled : &search->ready;
    double begin = clock_now_seconds();
    Status built = nn_cuda_candidate_build(convs->library->handle, candidate);
    if (candidate->compiled) convs->library->compile_seconds += clock_now_seconds() - begin;
    if (built != STATUS_OK) return STATUS_OK;
    if (search->bench.memory != NULL) {
        Status timed = time_candidate(convs, &search->bench, candidate, least_time(search));
        TRY(device_stream_synchronize(convs->stream));
        if (timed != STATUS_OK) return STATUS_OK;
        search->timed++;
    }
    if (best->plan == NULL || candidate->milliseconds < best->milliseconds) {
        nn_cuda_candidate_fini(best);
        *best = *candidate;
        *candidate = (Candidate){0};
    }
    return STATUS_OK;
}

static bool engine_was_tried(const Search *search, int64_t index) {
    for (int i = 0; i < search->engine_count; i++) {
        if (search->engines[i] == index) return true;
    }
    return false;
}

/* Compilation is slow: only a few candidates are compiled, unless there are no others. */
static bool has_enough(const Search *search, bool compiled, int tried) {
    if (search->ready.plan == NULL && search->compiled.plan == NULL) return false;
    if (search->bench.memory == NULL || tried >= (compiled ? MAX_COMPILED : MAX_TIMED)) return true;
    return compiled && search->convs->library->compile_seconds > COMPILE_SECONDS;
}

/* The heuristics tend to propose the same engine many times before another: tries the first few and the best of each
 * engine, then the others. */
static Status try_all(Search *search, bool compiled) {
    int tried = 0;
    for (int round = 0; round < 2; round++) {
        for (int i = search->tried; i < search->count && !has_enough(search, compiled, tried); i++) {
            Candidate *candidate = &search->list[i];
            if (candidate->compiled != compiled || candidate->config == NULL) continue;
            bool known = engine_was_tried(search, candidate->index);
            if (round == 0 && known && i - search->tried >= FIRST_TIMED) continue;
            if (!known) search->engines[search->engine_count++] = candidate->index;
            int before = search->timed;
            TRY(try_candidate(search, candidate));
            tried += search->timed - before;
            nn_cuda_candidate_fini(candidate);
        }
    }
    return STATUS_OK;
}

static Status try_proposals(Search *search) {
    TRY(try_all(search, false));
    TRY(try_all(search, true));
    search->tried = search->count;
    return STATUS_OK;
}

/* The fastest of the heuristics' proposals; one that must be compiled in every process must be worth that. */
static Status find_fastest(Search *search, Candidate *out) {
    (void)propose(search, CUDNN_HEUR_MODE_A);
    if (search->count < MAX_TIMED) (void)propose(search, CUDNN_HEUR_MODE_B);
    TRY(try_proposals(search));
    if (search->ready.plan == NULL && search->compiled.plan == NULL) {
        search->count = search->tried = 0; /* none of them worked */
        (void)propose(search, CUDNN_HEUR_MODE_FALLBACK);
        TRY(try_proposals(search));
    }
    Candidate *ready = &search->ready, *compiled = &search->compiled;
    if (ready->plan == NULL && compiled->plan == NULL) {
        char why[STATUS_MESSAGE_BYTES / 2];
        snprintf(why, sizeof why, "%.*s", (int)sizeof why - 1, error_record()->message);
        FAIL(STATUS_LIBRARY, "cuDNN %zu has no usable engine for the convolution \"%s\"; last error: %s",
             nn_cudnn.cudnnGetVersion(), search->key, why);
    }
    bool worth = ready->plan == NULL ||
                 (compiled->plan != NULL && compiled->milliseconds < COMPILED_MUST_GAIN * ready->milliseconds);
    Candidate *chosen = worth ? compiled : ready;
    *out = *chosen;
    *chosen = (Candidate){0};
    return STATUS_OK;
}

static void conv_describe(CudaConv *conv, NnAlgorithmSource source, const char *how) {
    const Candidate *chosen = &conv->chosen;
    conv->source = source;
    snprintf(conv->text, sizeof conv->text, "%s, %.4f ms, workspace %.1f MiB%s, %s", chosen->text,
             (double)chosen->milliseconds, (double)chosen->workspace_bytes / (1 << 20),
             chosen->compiled ? ", compiled" : "", how);
}

static Status search_plan(CudaConv *conv, const CudaConvShape *shape, const char *key) {
    Status status = STATUS_OK;
    Search *search = NULL;
    char value[CONV_PLANS_VALUE_BYTES], how[32];
    TRY(memory_calloc(1, sizeof *search, &search));
    search->convs = conv->convs;
    search->shape = shape;
    search->graph = &conv->graph;
    search->key = key;
    status = bench_init(conv->convs, shape, &search->bench);
    if (status != STATUS_OK && status != STATUS_MEMORY) goto done;
    TRY_GOTO(find_fastest(search, &conv->chosen));
    const Candidate *chosen = &conv->chosen;
    snprintf(how, sizeof how, "fastest of %d", search->timed);
    conv_describe(conv, search->timed == 0 ? ALGORITHM_FIXED : ALGORITHM_TIMED, how);
    if (search->timed == 0) goto done;
    int length = snprintf(value, sizeof value, "%s ns %.0f", chosen->text, (double)chosen->milliseconds * 1e6);
    if (length < (int)sizeof value) status = nn_cuda_plans_store(conv->convs->library->plans, key, value);
done:
    for (int i = 0; i < search->count; i++) nn_cuda_candidate_fini(&search->list[i]);
    nn_cuda_candidate_fini(&search->ready);
    nn_cuda_candidate_fini(&search->compiled);
    bench_fini(&search->bench);
    memory_free(search);
    return status;
}

/* Builds a plan that was found before, and runs it once, to check that it works and to load its kernels now and not in
 * the first step, which may be recorded. */
static Status reuse_plan(CudaConv *conv, const CudaConvShape *shape, const char *value, bool own) {
    Status status = STATUS_OK;
    Descriptor pack = NULL;
    Candidate *chosen = &conv->chosen;
    Bench bench = {0};
    bool usable = false;
    float milliseconds = 0;
    TRY_GOTO(nn_cuda_candidate_restore(&conv->graph, value, chosen));
    TRY_GOTO(nn_cuda_candidate_examine(shape, chosen, &usable));
    if (!usable) FAIL_GOTO(STATUS_FORMAT, "the plan \"%s\" may not be used for this convolution", value);
    TRY_GOTO(nn_cuda_candidate_format(chosen));
    TRY_GOTO(nn_cuda_candidate_build(conv->convs->library->handle, chosen));
    status = bench_init(conv->convs, shape, &bench);
    if (status == STATUS_OK) status = bench_workspace(&bench, chosen->workspace_bytes);
    if (status == STATUS_OK) {
        TRY_GOTO(make_pack(bench.operands, bench.workspace, &pack));
        TRY_GOTO(time_runs(conv->convs, &bench, chosen, pack, 1, &milliseconds));
    } else if (status == STATUS_MEMORY) { /* no memory to try it in */
        status = STATUS_OK;
    } else {
        goto done;
    }
    conv_describe(conv, own ? ALGORITHM_TIMED : ALGORITHM_CACHED, "remembered");
done:
    nn_cuda_descriptor_destroy(&pack);
    bench_fini(&bench);
    if (status != STATUS_OK) nn_cuda_candidate_fini(chosen);
    return status;
}

/* ---- the interface ---- */

static Status library_init(int device, Library *library) {
    Status status = STATUS_OK;
    DeviceInfo info;
    char name[DEVICE_NAME_BYTES + 16], version[32];
    TRY(nn_cudnn_open());
    TRY(device_describe(device, &info));
    snprintf(name, sizeof name, "%s sm_%d%d", info.name, info.major, info.minor);
    snprintf(version, sizeof version, "cuDNN %zu", nn_cudnn.cudnnGetVersion());
    TRY_PTHREAD(pthread_mutex_init(&library->lock, NULL));
    TRY_GOTO(nn_cuda_plans_open(name, version, &library->plans));
    cudnnStatus_t error = nn_cudnn.cudnnCreate(&library->handle);
    if (error != CUDNN_STATUS_SUCCESS) {
        library->handle = NULL;
        status = nn_cuda_conv_failed(error, "starting the library");
    }
done:
    if (status == STATUS_OK) return STATUS_OK;
    nn_cuda_plans_close(library->plans);
    pthread_mutex_destroy(&library->lock);
    *library = (Library){0};
    return status;
}

/* The library of the calling thread's device. */
static Status library_of_device(Library **out) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static Library libraries[MAX_DEVICES];
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) FAIL(STATUS_CUDA, "cudaGetDevice: %s", cudaGetErrorString(error));
    if (device < 0 || device >= MAX_DEVICES) FAIL(STATUS_CUDA, "device %d is above %d", device, MAX_DEVICES - 1);
    pthread_mutex_lock(&lock);
    Status status = libraries[device].handle == NULL ? library_init(device, &libraries[device]) : STATUS_OK;
    pthread_mutex_unlock(&lock);
    if (status == STATUS_OK) *out = &libraries[device];
    return status;
}

Status nn_cuda_convs_create(DeviceStream *stream, CudaConvs **out) {
    Library *library = NULL;
    CudaConvs *convs = NULL;
    TRY(library_of_device(&library));
    TRY(memory_calloc(1, sizeof *convs, &convs));
    *convs = (CudaConvs){.library = library, .stream = stream};
    *out = convs;
    return STATUS_OK;
}

void nn_cuda_convs_destroy(CudaConvs *convs) {
    if (convs == NULL) return;
    /* A later stream may have the same address: the handle's stream must then be set again. */
    pthread_mutex_lock(&convs->library->lock);
    convs->library->stream_set = false;
    pthread_mutex_unlock(&convs->library->lock);
    memory_free(convs);
}

void nn_cuda_convs_describe(const CudaConvs *convs, NnPlanLibrary *out) {
    size_t version = nn_cudnn.cudnnGetVersion();
    ConvPlansReport report;
    nn_cuda_plans_report(convs->library->plans, &report);
    snprintf(out->name, sizeof out->name, "cuDNN %zu.%zu.%zu", version / 10000, version % 10000 / 100, version % 100);
    snprintf(out->cache, sizeof out->cache, "%s", report.path);
    snprintf(out->note, sizeof out->note, "%s", report.note);
}

static void make_key(const CudaConvShape *s, char key[CONV_PLANS_KEY_BYTES]) {
    static const char *const passes[] = {
        [CUDA_CONV_FORWARD] = "forward", [CUDA_CONV_DATA] = "data", [CUDA_CONV_FILTER] = "filter"};
    static const char *const precisions[] = {[PRECISION_AUTO] = "auto",
                                             [PRECISION_FLOAT32] = "float32",
                                             [PRECISION_BFLOAT16] = "bfloat16",
                                             [PRECISION_FLOAT16] = "float16"};
    snprintf(key, CONV_PLANS_KEY_BYTES, "%s %s%s n%d in %dx%dx%d out %dx%dx%d kernel %d stride %d padding %d",
             passes[s->pass], precisions[s->precision], s->deterministic ? " deterministic" : "", s->images,
             s->in_height, s->in_width, s->in_channels, s->out_height, s->out_width, s->out_channels, s->kernel,
             s->stride, s->padding);
}

static Status check_shape(const CudaConvs *convs, const CudaConvShape *s) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaError_t error = cudaStreamIsCapturing((cudaStream_t)convs->stream, &capture);
    if (error != cudaSuccess) FAIL(STATUS_CUDA, "cudaStreamIsCapturing: %s", cudaGetErrorString(error));
    if (capture != cudaStreamCaptureStatusNone) {
        FAIL(STATUS_CUDA, "a convolution cannot be created while a step is being recorded");
    }
    int height = (s->in_height + 2 * s->padding - s->kernel) / s->stride + 1;
    int width = (s->in_width + 2 * s->padding - s->kernel) / s->stride + 1;
    if (s->images < 1 || s->in_channels < 1 || s->out_channels < 1 || s->out_height != height ||
        s->out_width != width) {
        FAIL(STATUS_ARGUMENT, "impossible convolution of %d images of %d x %d x %d to %d x %d x %d by kernels of %d",
             s->images, s->in_height, s->in_width, s->in_channels, s->out_height, s->out_width, s->out_channels,
             s->kernel);
    }
    return STATUS_OK;
}

Status nn_cuda_conv_create(CudaConvs *convs, const CudaConvShape *shape, CudaConv **out) {
    Status status = STATUS_OK;
    CudaConv *conv = NULL;
    Library *library = convs->library;
    char key[CONV_PLANS_KEY_BYTES], value[CONV_PLANS_VALUE_BYTES];
    TRY(check_shape(convs, shape));
    make_key(shape, key);
    pthread_mutex_lock(&library->lock);
    TRY_GOTO(memory_calloc(1, sizeof *conv, &conv));
    conv->convs = convs;
    conv->pass = shape->pass;
    TRY_GOTO(nn_cuda_conv_graph_init(library->handle, shape, &conv->graph));
    bool own = false, known = nn_cuda_plans_find(library->plans, key, value, &own);
    if (known) known = reuse_plan(conv, shape, value, own) == STATUS_OK;
    if (!known) TRY_GOTO(search_plan(conv, shape, key));
    *out = conv;
    conv = NULL;
done:
    pthread_mutex_unlock(&library->lock);
    nn_cuda_conv_destroy(conv);
    return status;
}

void nn_cuda_conv_destroy(CudaConv *conv) {
    if (conv == NULL) return;
    nn_cuda_descriptor_destroy(&conv->pack);
    nn_cuda_candidate_fini(&conv->chosen);
    nn_cuda_conv_graph_fini(&conv->graph);
    memory_free(conv);
}

size_t nn_cuda_conv_workspace_bytes(const CudaConv *conv) { return (size_t)conv->chosen.workspace_bytes; }

void nn_cuda_conv_describe(const CudaConv *conv, NnAlgorithm *out) {
    const Candidate *chosen = &conv->chosen;
    *out = (NnAlgorithm){.name = chosen->text,
                         .text = conv->text,
                         .source = conv->source,
                         .milliseconds = (double)chosen->milliseconds,
                         .workspace_bytes = (size_t)chosen->workspace_bytes};
}

/* Makes the variant pack for the operands, unless they are still those of the last run. */
static Status bind_operands(CudaConv *conv, void *const operands[OPERANDS], void *workspace) {
    if (conv->pack != NULL && conv->workspace == workspace &&
        memcmp(conv->operands, operands, sizeof conv->operands) == 0) {
        return STATUS_OK;
    }
    for (int i = 0; i < OPERANDS; i++) {
        if ((uintptr_t)operands[i] % CONV_POINTER_ALIGNMENT == 0) continue;
        FAIL(STATUS_ARGUMENT, "operand %d of a convolution is not aligned to %d bytes", i, CONV_POINTER_ALIGNMENT);
    }
    nn_cuda_descriptor_destroy(&conv->pack);
    Status status = make_pack(operands, workspace, &conv->pack);
    if (status != STATUS_OK) nn_cuda_descriptor_destroy(&conv->pack);
    TRY(status);
    memcpy(conv->operands, operands, sizeof conv->operands);
    conv->workspace = workspace;
    return STATUS_OK;
}

Status nn_cuda_conv_run(CudaConv *conv, const void *a, const void *b, void *to, void *workspace) {
    static const int places[][OPERANDS] = {
        [CUDA_CONV_FORWARD] = {X, W, Y}, [CUDA_CONV_DATA] = {Y, W, X}, [CUDA_CONV_FILTER] = {X, Y, W}};
    Library *library = conv->convs->library;
    void *operands[OPERANDS];
    operands[places[conv->pass][0]] = (void *)a;
    operands[places[conv->pass][1]] = (void *)b;
    operands[places[conv->pass][2]] = to;
    pthread_mutex_lock(&library->lock);
    Status status = bind_operands(conv, operands, workspace);
    if (status == STATUS_OK) status = execute(library, conv->convs->stream, conv->chosen.plan, conv->pack);
    pthread_mutex_unlock(&library->lock);
    return status;
}
