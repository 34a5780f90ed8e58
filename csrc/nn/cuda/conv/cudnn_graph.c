/* cuDNN's descriptors for one convolution as a graph of one operation, and the engines with settings (knobs) that the
 * library has for it. */
#include "nn/cuda/conv/cudnn_graph.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKSPACE_BYTES ((int64_t)512 << 20)

/* ---- calls ---- */

Status nn_cuda_conv_failed(cudnnStatus_t error, const char *what) {
    char detail[384] = "";
    nn_cudnn.cudnnGetLastErrorString(detail, sizeof detail);
    detail[sizeof detail - 1] = '\0';
    (void)cudaGetLastError();
    const char *remedy = "";
    if (error == CUDNN_STATUS_NOT_INITIALIZED) {
        remedy = "; is the driver new enough for this CUDA, and is there free GPU memory?";
    } else if (error == CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED || error == CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH) {
        remedy = "; all libcudnn*.so.9 must be installed, in one version (apt install --reinstall libcudnn9-cuda-13)";
    }
    Status code = CUDNN_STATUS_CATEGORY(error) == CUDNN_STATUS_EXECUTION_FAILED ? STATUS_CUDA : STATUS_LIBRARY;
    return error_fail(code, "cuDNN %zu: %s: %s%s%s%s", nn_cudnn.cudnnGetVersion(), what,
                      nn_cudnn.cudnnGetErrorString(error), detail[0] == '\0' ? "" : ": ", detail, remedy);
}

Status nn_cuda_descriptor_create(cudnnBackendDescriptorType_t type, Descriptor *out) {
    Descriptor descriptor = NULL;
    TRY_CUDNN(nn_cudnn.cudnnBackendCreateDescriptor(type, &descriptor), "creating a descriptor");
    *out = descriptor;
    return STATUS_OK;
}

void nn_cuda_descriptor_destroy(Descriptor *descriptor) {
    if (*descriptor != NULL) (void)nn_cudnn.cudnnBackendDestroyDescriptor(*descriptor);
    *descriptor = NULL;
}

Status nn_cuda_descriptor_finalize(Descriptor descriptor, const char *what) {
    TRY_CUDNN(nn_cudnn.cudnnBackendFinalize(descriptor), what);
    return STATUS_OK;
}

Status nn_cuda_descriptor_set(Descriptor descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                              int64_t count, const void *values) {
    cudnnStatus_t error = nn_cudnn.cudnnBackendSetAttribute(descriptor, name, type, count, values);
    if (error == CUDNN_STATUS_SUCCESS) return STATUS_OK;
    char what[48];
    snprintf(what, sizeof what, "setting attribute %d", (int)name);
    return nn_cuda_conv_failed(error, what);
}

Status nn_cuda_descriptor_get(Descriptor descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                              int64_t room, int64_t *count, void *values) {
    int64_t there = -1;
    cudnnStatus_t error = nn_cudnn.cudnnBackendGetAttribute(descriptor, name, type, room, &there, values);
    if (error != CUDNN_STATUS_SUCCESS) {
        char what[48];
        snprintf(what, sizeof what, "getting attribute %d", (int)name);
        return nn_cuda_conv_failed(error, what);
    }
    *count = there > room ? room : there;
    return STATUS_OK;
}

Status nn_cuda_descriptor_get_one(Descriptor descriptor, cudnnBackendAttributeName_t name,
                                  cudnnBackendAttributeType_t type, void *value) {
    int64_t count = 0;
    TRY(nn_cuda_descriptor_get(descriptor, name, type, 1, &count, value));
    if (count == 0) FAIL(STATUS_LIBRARY, "cuDNN %zu: attribute %d has no value", nn_cudnn.cudnnGetVersion(), (int)name);
    return STATUS_OK;
}

/* ---- the operation ---- */

static Status make_tensor(const CudaConvShape *s, int which, Descriptor *out) {
    const int64_t sizes[OPERANDS][4] = {
        [X] = {s->images, s->in_channels, s->in_height, s->in_width},
        [W] = {s->out_channels, s->in_channels, s->kernel, s->kernel},
        [Y] = {s->images, s->out_channels, s->out_height, s->out_width},
    };
    const int64_t *d = sizes[which], strides[4] = {d[1] * d[2] * d[3], 1, d[3] * d[1], d[1]}; /* channels last */
    const int64_t id = OPERAND_ID(which), alignment = CONV_POINTER_ALIGNMENT;
    cudnnDataType_t type = s->precision == PRECISION_FLOAT32    ? CUDNN_DATA_FLOAT
                           : s->precision == PRECISION_BFLOAT16 ? CUDNN_DATA_BFLOAT16
                                                                : CUDNN_DATA_HALF;
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_TENSOR_DESCRIPTOR, out));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, d));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides));
    return nn_cuda_descriptor_finalize(*out, "describing a tensor");
}

static Status make_convolution(const CudaConvShape *s, Descriptor *out) {
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dimensions = 2, ones[2] = {1, 1}, strides[2] = {s->stride, s->stride};
    const int64_t paddings[2] = {s->padding, s->padding};
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, out));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dimensions));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, paddings));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, paddings));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides));
    return nn_cuda_descriptor_finalize(*out, "describing a convolution");
}

static Status make_operation(CudaConvPass pass, Graph *graph) {
    static const struct {
        cudnnBackendDescriptorType_t type;
        cudnnBackendAttributeName_t alpha, beta, convolution, operands[OPERANDS];
    } all[] = {
        [CUDA_CONV_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                               {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y}},
        [CUDA_CONV_DATA] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                            {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY}},
        [CUDA_CONV_FILTER] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                              {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY}},
    };
    const float one = 1, zero = 0;
    TRY(nn_cuda_descriptor_create(all[pass].type, &graph->operation));
    Descriptor operation = graph->operation;
    for (int i = 0; i < OPERANDS; i++) {
        TRY(nn_cuda_descriptor_set(operation, all[pass].operands[i], CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                   &graph->tensors[i]));
    }
    TRY(nn_cuda_descriptor_set(operation, all[pass].convolution, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                               &graph->convolution));
    TRY(nn_cuda_descriptor_set(operation, all[pass].alpha, CUDNN_TYPE_FLOAT, 1, &one));
    TRY(nn_cuda_descriptor_set(operation, all[pass].beta, CUDNN_TYPE_FLOAT, 1, &zero));
    return nn_cuda_descriptor_finalize(operation, "describing the operation");
}

Status nn_cuda_conv_graph_init(cudnnHandle_t handle, const CudaConvShape *shape, Graph *graph) {
    for (int i = 0; i < OPERANDS; i++) TRY(make_tensor(shape, i, &graph->tensors[i]));
    TRY(make_convolution(shape, &graph->convolution));
    TRY(make_operation(shape->pass, graph));
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, &graph->graph));
    TRY(nn_cuda_descriptor_set(graph->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                               &graph->operation));
    TRY(nn_cuda_descriptor_set(graph->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle));
    return nn_cuda_descriptor_finalize(graph->graph, "making the graph of one convolution");
}

void nn_cuda_conv_graph_fini(Graph *graph) {
    nn_cuda_descriptor_destroy(&graph->graph);
    nn_cuda_descriptor_destroy(&graph->operation);
    nn_cuda_descriptor_destroy(&graph->convolution);
    for (int i = 0; i < OPERANDS; i++) nn_cuda_descriptor_destroy(&graph->tensors[i]);
}

/* ---- candidates ---- */

void nn_cuda_candidate_fini(Candidate *candidate) {
    nn_cuda_descriptor_destroy(&candidate->plan);
    nn_cuda_descriptor_destroy(&candidate->config);
    nn_cuda_descriptor_destroy(&candidate->engine);
    *candidate = (Candidate){0};
}

/* Sums must be plain float32 sums of products, of full float32 factors if that is the precision. */
static bool refused(const CudaConvShape *shape, cudnnBackendNumericalNote_t note) {
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP:
        return false;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
        return shape->precision == PRECISION_FLOAT32;
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
        return shape->deterministic;
    default:
        return true; /* inputs or sums of lower precision, transforms, and notes unknown to this file */
    }
}

Status nn_cuda_candidate_examine(const CudaConvShape *shape, Candidate *candidate, bool *usable) {
    cudnnBackendNumericalNote_t numerical[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendBehaviorNote_t behaviour[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    int64_t numerical_count = 0, behaviour_count = 0;
    TRY(nn_cuda_descriptor_get(candidate->engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                               CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &numerical_count, numerical));
    TRY(nn_cuda_descriptor_get(candidate->engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                               CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &behaviour_count, behaviour));
    *usable = true;
    for (int64_t i = 0; i < numerical_count; i++) *usable = *usable && !refused(shape, numerical[i]);
    for (int64_t i = 0; i < behaviour_count; i++) {
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) candidate->compiled = true;
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_FILTER_INT8x32_REORDER) *usable = false;
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_REQUIRES_BIAS_INT8x32_REORDER) *usable = false;
    }
    return STATUS_OK;
}

Status nn_cuda_candidate_build(cudnnHandle_t handle, Candidate *candidate) {
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &candidate->plan));
    TRY(nn_cuda_descriptor_set(candidate->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle));
    TRY(nn_cuda_descriptor_set(candidate->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               1, &candidate->config));
    TRY(nn_cuda_descriptor_finalize(candidate->plan, "making the plan of a convolution"));
    TRY(nn_cuda_descriptor_get_one(candidate->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                   &candidate->workspace_bytes));
    if (candidate->workspace_bytes < 0 || candidate->workspace_bytes > MAX_WORKSPACE_BYTES) {
        FAIL(STATUS_LIBRARY, "a plan needs a workspace of %" PRId64 " bytes", candidate->workspace_bytes);
    }
    return STATUS_OK;
}

Status nn_cuda_candidate_format(Candidate *candidate) {
    Status status = STATUS_OK;
    Descriptor knobs[CUDNN_KNOB_TYPE_COUNTS] = {0};
    int64_t count = 0;
    TRY(nn_cuda_descriptor_get_one(candidate->engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64,
                                   &candidate->index));
    for (int i = 0; i < CUDNN_KNOB_TYPE_COUNTS; i++) {
        TRY_GOTO(nn_cuda_descriptor_create(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, &knobs[i]));
    }
    TRY_GOTO(nn_cuda_descriptor_get(candidate->config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                    CUDNN_KNOB_TYPE_COUNTS, &count, knobs));
    size_t room = sizeof candidate->text;
    size_t used = (size_t)snprintf(candidate->text, room, "engine %" PRId64 " knobs %" PRId64, candidate->index, count);
    for (int64_t i = 0; i < count; i++) {
        cudnnBackendKnobType_t type = CUDNN_KNOB_TYPE_COUNTS;
        int64_t value = 0;
        TRY_GOTO(nn_cuda_descriptor_get_one(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, &type));
        TRY_GOTO(nn_cuda_descriptor_get_one(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, &value));
        used += (size_t)snprintf(candidate->text + used, room - used, " %d=%" PRId64, (int)type, value);
        if (used + 32 > room) FAIL_GOTO(STATUS_LIBRARY, "a plan with too many knobs: %" PRId64, count);
    }
done:
    for (int i = 0; i < CUDNN_KNOB_TYPE_COUNTS; i++) nn_cuda_descriptor_destroy(&knobs[i]);
    return status;
}

/* Parses the word and the number after it; returns false, without advancing, if they are not there. */
static bool candidate_parse(const char **at, const char *word, int64_t least, int64_t most, int64_t *out) {
    size_t length = strlen(word);
    char *end = NULL;
    if (strncmp(*at, word, length) != 0) return false;
    const char *digits = *at + length;
    if (*digits != '-' && (*digits < '0' || *digits > '9')) return false;
    errno = 0;
    long long value = strtoll(digits, &end, 10);
    if (errno != 0 || end == digits || value < least || value > most) return false;
    *out = value;
    *at = end;
    return true;
}

static Status make_knob(int64_t type, int64_t value, Descriptor *out) {
    cudnnBackendKnobType_t knob = (cudnnBackendKnobType_t)type;
    TRY(nn_cuda_descriptor_create(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, out));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &knob));
    TRY(nn_cuda_descriptor_set(*out, CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &value));
    return nn_cuda_descriptor_finalize(*out, "choosing a knob");
}

Status nn_cuda_candidate_restore(const Graph *graph, const char *text, Candidate *candidate) {
    Status status = STATUS_OK;
    Descriptor knobs[CUDNN_KNOB_TYPE_COUNTS] = {0};
    int64_t index = 0, engines = 0, count = 0, nanoseconds = 0;
    const char *at = text;
    TRY(nn_cuda_descriptor_get_one(graph->graph, CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT, CUDNN_TYPE_INT64,
                                   &engines));
    if (!candidate_parse(&at, "engine ", 0, engines - 1, &index) ||
        !candidate_parse(&at, " knobs ", 0, CUDNN_KNOB_TYPE_COUNTS, &count)) {
        FAIL(STATUS_FORMAT, "\"%s\" is not a plan of this library", text);
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t type = 0, value = 0;
        if (!candidate_parse(&at, " ", 0, CUDNN_KNOB_TYPE_COUNTS - 1, &type) ||
            !candidate_parse(&at, "=", INT64_MIN, INT64_MAX, &value)) {
            FAIL_GOTO(STATUS_FORMAT, "\"%s\" is not a plan of this library", text);
        }
        TRY_GOTO(make_knob(type, value, &knobs[i]));
    }
    if (!candidate_parse(&at, " ns ", 0, INT64_C(100000000000), &nanoseconds) || *at != '\0') {
        FAIL_GOTO(STATUS_FORMAT, "\"%s\" is not a plan of this library", text);
    }
    candidate->milliseconds = (float)((double)nanoseconds * 1e-6);
    TRY_GOTO(nn_cuda_descriptor_create(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &candidate->engine));
    TRY_GOTO(nn_cuda_descriptor_set(candidate->engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                    1, &graph->graph));
    TRY_GOTO(nn_cuda_descriptor_set(candidate->engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index));
    TRY_GOTO(nn_cuda_descriptor_finalize(candidate->engine, "making an engine"));
    TRY_GOTO(nn_cuda_descriptor_create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &candidate->config));
    TRY_GOTO(nn_cuda_descriptor_set(candidate->config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                    &candidate->engine));
    if (count > 0) {
        TRY_GOTO(nn_cuda_descriptor_set(candidate->config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                        CUDNN_TYPE_BACKEND_DESCRIPTOR, count, knobs));
    }
    TRY_GOTO(nn_cuda_descriptor_finalize(candidate->config, "configuring an engine"));
done:
    for (int i = 0; i < CUDNN_KNOB_TYPE_COUNTS; i++) nn_cuda_descriptor_destroy(&knobs[i]);
    return status;
}
