/* What cudnn.c and cudnn_graph.c share: descriptors, the graph of one convolution, the engines that can run it.
 * Failures of the library include its own message. */
#ifndef CGXFFCV_NN_CUDA_CONV_CUDNN_GRAPH_H
#define CGXFFCV_NN_CUDA_CONV_CUDNN_GRAPH_H

#include "nn/cuda/conv/conv.h"
#include "nn/cuda/conv/cudnn_library.h"
#include "nn/cuda/conv/plans.h"

#define CONV_POINTER_ALIGNMENT 16

typedef cudnnBackendDescriptor_t Descriptor; /* owned where a struct holds it; NULL is none */

enum { X, W, Y, OPERANDS }; /* input, filters, output, or their gradients */
#define OPERAND_ID(which) ((int64_t)(which) + 1)

typedef struct Graph {
    Descriptor tensors[OPERANDS], convolution, operation, graph;
} Graph;

typedef struct Candidate {
    Descriptor config, engine, plan;
    int64_t index; /* of the engine */
    int64_t workspace_bytes;
    bool compiled; /* its plan must be compiled when it is built */
    float milliseconds;
    char text[CONV_PLANS_VALUE_BYTES]; /* engine and knobs */
} Candidate;

Status nn_cuda_conv_failed(cudnnStatus_t error, const char *what);

#define TRY_CUDNN(call, what)                                                                                          \
    do {                                                                                                               \
        cudnnStatus_t try_cudnn_ = (call);                                                                             \
        if (try_cudnn_ != CUDNN_STATUS_SUCCESS) return nn_cuda_conv_failed(try_cudnn_, what);                          \
    } while (0)

Status nn_cuda_descriptor_create(cudnnBackendDescriptorType_t type, Descriptor *out);
void nn_cuda_descriptor_destroy(Descriptor *descriptor); /* leaves NULL */
Status nn_cuda_descriptor_finalize(Descriptor descriptor, const char *what);
Status nn_cuda_descriptor_set(Descriptor descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                              int64_t count, const void *values);

/* Gets up to `room` values; *count is how many were written, negative if the library does not say. If the values are
 * descriptors, `values` must contain created ones. */
Status nn_cuda_descriptor_get(Descriptor descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                              int64_t room, int64_t *count, void *values);
Status nn_cuda_descriptor_get_one(Descriptor descriptor, cudnnBackendAttributeName_t name,
                                  cudnnBackendAttributeType_t type, void *value);

/* After a failure, what has been created stays in the graph, for fini. */
Status nn_cuda_conv_graph_init(cudnnHandle_t handle, const CudaConvShape *shape, Graph *graph);
void nn_cuda_conv_graph_fini(Graph *graph);

void nn_cuda_candidate_fini(Candidate *candidate);
/* Determines from the notes of the candidate's engine whether it may be used, and whether it must be compiled. */
Status nn_cuda_candidate_examine(const CudaConvShape *shape, Candidate *candidate, bool *usable);
/* Builds the plan; compilation happens here. */
Status nn_cuda_candidate_build(cudnnHandle_t handle, Candidate *candidate);
/* Sets index and text: "engine E knobs N", then N times " type=value". */
Status nn_cuda_candidate_format(Candidate *candidate);
/* Restores engine and configuration from such a text followed by " ns T", where T is the time. The text may come from a
 * file, and so may contain anything. */
Status nn_cuda_candidate_restore(const Graph *graph, const char *text, Candidate *candidate);

#endif
