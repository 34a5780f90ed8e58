/* The CUDA backend's table: every pass once over the whole batch, on the model's stream. */
#include <string.h>

#include "base/memory.h"
#include "nn/cuda/context.h"

static const CudaPass passes[PASS_KINDS] = {
    [PASS_LOAD] = nn_cuda_pass_load,
    [PASS_CONV_FORWARD] = nn_cuda_pass_conv_forward,
    [PASS_CONV_FILTER] = nn_cuda_pass_conv_filter,
    [PASS_CONV_DATA] = nn_cuda_pass_conv_data,
    [PASS_NORM_STATISTICS] = nn_cuda_pass_norm_statistics,
    [PASS_NORM_APPLY] = nn_cuda_pass_norm_apply,
    [PASS_NORM_REDUCE] = nn_cuda_pass_norm_reduce,
    [PASS_NORM_BACKWARD] = nn_cuda_pass_norm_backward,
    [PASS_NORM_RUNNING] = nn_cuda_pass_norm_running,
    [PASS_NORM_EVALUATE] = nn_cuda_pass_norm_evaluate,
    [PASS_HEAD_EVALUATE] = nn_cuda_pass_head_evaluate,
    [PASS_HEAD_TRAIN] = nn_cuda_pass_head_train,
    [PASS_HEAD_CLOSE] = nn_cuda_pass_head_close,
};

/* The convolution that reads the images has its own kernels; sums and gradients of norms and filters are finished where
 * they are computed, so there is nothing to close. */
static CudaPass pass_of(const Pass *pass) {
    if (pass->op == 0 && pass->kind == PASS_CONV_FORWARD) return nn_cuda_pass_stem_forward;
    if (pass->op == 0 && pass->kind == PASS_CONV_FILTER) return nn_cuda_pass_stem_backward;
    return passes[pass->kind];
}

static Status cuda_choose_precision(Precision requested, Precision *out) {
    if (device_count() == 0) FAIL(STATUS_CUDA, "no usable GPU: %s", device_why());
    *out = requested == PRECISION_AUTO ? PRECISION_FLOAT16 : requested;
    return STATUS_OK;
}

static Status cuda_buffer_create(size_t elems, float **out) {
    Status status = STATUS_OK;
    float *buffer = NULL;
    size_t bytes = (elems + 1) * sizeof *buffer;
    TRY(device_alloc(bytes, &buffer));
    TRY_GOTO(device_fill(buffer, 0, bytes, NULL));
    TRY_GOTO(device_stream_synchronize(NULL));
    *out = buffer;
    buffer = NULL;
done:
    device_free(buffer);
    return status;
}

static void cuda_buffer_destroy(float *buffer) { device_free(buffer); }

/* The default stream does not wait for the model's stream, so this waits for the whole device first. */
static Status cuda_copy(void *to, const void *from, size_t bytes) {
    TRY(device_synchronize());
    TRY(device_copy(to, from, bytes, NULL));
    return device_stream_synchronize(NULL);
}

static size_t image_elems(const Context *context) {
    const Op *first = &context->program->ops[0];
    const Tensor *input = &context->program->tensors[first->input];
    int border = 2 * first->node.padding;
    return (size_t)((input->height - border) * (input->width - border) * input->channels);
}

static Status begin_images(Context *context, const Job *job) {
    static const size_t pixel_bytes[] = {[PIXELS_U8] = 1, [PIXELS_F32] = 4, [PIXELS_BF16] = 2};
    if (job->images->on_device) {
        context->images = job->images->data;
        context->labels = job->labels;
        context->losses = job->options == NULL ? NULL : job->options->losses;
        context->logits = job->logits;
        return STATUS_OK;
    }
    size_t bytes = (size_t)job->count * image_elems(context) * pixel_bytes[job->images->type];
    TRY(device_copy(context->host_images, job->images->data, bytes, context->stream));
    context->images = context->host_images;
    context->labels = context->host_labels;
    context->losses = job->options == NULL || job->options->losses == NULL ? NULL : context->host_losses;
    context->logits = context->host_logits;
    if (job->labels == NULL) return STATUS_OK;
    return device_copy(context->host_labels, job->labels, (size_t)job->count * sizeof *job->labels, context->stream);
}

static Status cuda_begin(Context *context, const Job *job) {
    size_t elems = nn_model_parameter_elems(context->model);
    context->gradient_factor = 1;
    TRY(begin_images(context, job));
    if (context->program->precision == PRECISION_FLOAT32) return STATUS_OK;
    return nn_cuda_from_float(nn_model_parameter_data(context->model), elems, context->program->precision,
                              context->filters, context->stream);
}

static Status run_pass(Context *context, const Job *job, int index) {
    const Pass *pass = &context->program->passes[index];
    CudaPass function = pass_of(pass);
    if (function == NULL || !nn_pass_enabled(job, pass)) return STATUS_OK;
    if (context->marks != NULL) TRY(device_event_record(context->marks[0], context->stream));
    TRY(function(context, job, pass->op));
    if (context->marks == NULL) return STATUS_OK;
    float milliseconds = 0;
    TRY(device_event_record(context->marks[1], context->stream));
    TRY(device_event_synchronize(context->marks[1]));
    TRY(device_event_elapsed(context->marks[0], context->marks[1], &milliseconds));
    context->pass_seconds[index] += (double)milliseconds * 1e-3;
    return STATUS_OK;
}

/* Copies the call's results back to the caller's host memory. */
static Status cuda_finish(Context *context, const Job *job) {
    size_t count = (size_t)job->count;
    if (job->images == NULL || job->images->on_device) return STATUS_OK;
    const Op *last = &context->program->ops[context->program->op_count - 1];
    if (job->options != NULL && job->options->losses != NULL) {
        TRY(device_copy(job->options->losses, context->host_losses, count * sizeof(float), context->stream));
    }
    if (job->logits != NULL) {
        size_t bytes = count * (size_t)last->node.out_channels * sizeof(float);
        TRY(device_copy(job->logits, context->host_logits, bytes, context->stream));
    }
    return device_stream_synchronize(context->stream);
}

static Status cuda_run(Context *context, const Job *job, const Phase *phase) {
    const Program *program = context->program;
    for (int i = 0; i < phase->ranged_count; i++) TRY(run_pass(context, job, phase->ranged + i));
    for (int i = 0; i < phase->closing_count; i++) TRY(run_pass(context, job, phase->closing + i));
    return phase == &program->phases[program->phase_count - 1] ? cuda_finish(context, job) : STATUS_OK;
}

static Status cuda_take_totals(Context *context, NnStepTotals *out) {
    TRY(device_copy(out, context->totals, sizeof *out, context->stream));
    TRY(device_fill(context->totals, 0, sizeof *out, context->stream));
    return device_stream_synchronize(context->stream);
}

static void end_profile(Context *context) {
    for (int i = 0; context->marks != NULL && i < 2; i++) device_event_destroy(context->marks[i]);
    memory_free(context->marks);
    memory_free(context->pass_seconds);
    context->marks = NULL;
    context->pass_seconds = NULL;
}

static Status cuda_profile(Context *context, double *seconds) {
    size_t passes_count = (size_t)context->program->pass_count;
    if (seconds != NULL) {
        for (size_t i = 0; i < passes_count; i++) {
            seconds[i] = context->pass_seconds == NULL ? 0 : context->pass_seconds[i];
        }
        end_profile(context);
        return STATUS_OK;
    }
    end_profile(context);
    TRY(memory_calloc(passes_count, sizeof *context->pass_seconds, &context->pass_seconds));
    TRY(memory_calloc(2, sizeof *context->marks, &context->marks));
    for (int i = 0; i < 2; i++) TRY(device_event_create(&context->marks[i]));
    return STATUS_OK;
}

static Status cuda_read_tensor(Context *context, int tensor, int count, float *to) {
    Status status = STATUS_OK;
    const Tensor *t = &context->program->tensors[tensor];
    size_t elems = nn_tensor_elems(t, count);
    float *wide = NULL;
    Precision precision = t->type == TENSOR_STORAGE ? context->program->precision : PRECISION_FLOAT32;
    TRY(device_alloc(elems * sizeof *wide, &wide));
    TRY_GOTO(nn_cuda_to_float(nn_cuda_tensor(context, tensor), elems, precision, 1.0f, wide, context->stream));
    TRY_GOTO(device_copy(to, wide, elems * sizeof *wide, context->stream));
    TRY_GOTO(device_stream_synchronize(context->stream));
done:
    device_free(wide);
    return status;
}

static Status cuda_write_tensor(Context *context, int tensor, int count, const float *from) {
    Status status = STATUS_OK;
    const Tensor *t = &context->program->tensors[tensor];
    size_t elems = nn_tensor_elems(t, count);
    float *wide = NULL;
    TRY(device_alloc(elems * sizeof *wide, &wide));
    TRY_GOTO(device_copy(wide, from, elems * sizeof *wide, context->stream));
    TRY_GOTO(
        nn_cuda_from_float(wide, elems, context->program->precision, nn_cuda_tensor(context, tensor), context->stream));
    TRY_GOTO(device_stream_synchronize(context->stream));
done:
    device_free(wide);
    return status;
}

/* Describes our own kernel for a pass; NULL if it is a cuDNN plan. */
static const char *own_kernel(const OpState *state, PassKind pass) {
    const char *narrow = "channels as rows, wgmma";
    if (pass == PASS_CONV_FORWARD && state->pooled) return "fused with its norm's pool";
    if (pass == PASS_CONV_FILTER && state->pooled_filter) return "fused with its norm's gradient";
    if (pass == PASS_CONV_FORWARD && state->narrow_forward) return narrow;
    return pass == PASS_CONV_DATA && state->narrow_data ? narrow : NULL;
}

static bool cuda_algorithm(const Context *context, const Pass *pass, NnAlgorithm *out) {
    const OpState *state = &context->states[pass->op];
    const char *own = own_kernel(state, pass->kind);
    if (own != NULL) {
        *out = (NnAlgorithm){.name = own, .text = own, .source = ALGORITHM_FIXED};
        return true;
    }
    const CudaConv *conv = pass->kind == PASS_CONV_FORWARD  ? state->forward
                           : pass->kind == PASS_CONV_DATA   ? state->data
                           : pass->kind == PASS_CONV_FILTER ? state->filter
                                                            : NULL;
    if (conv != NULL) nn_cuda_conv_describe(conv, out);
    return conv != NULL;
}

static void cuda_library(const Context *context, NnPlanLibrary *out) { nn_cuda_convs_describe(context->convs, out); }

static size_t cuda_context_bytes(const Context *context) { return context->bytes; }

static void cuda_context_destroy(Context *context) {
    if (context == NULL) return;
    end_profile(context);
    nn_cuda_context_destroy(context);
}

Status nn_ops_cuda(const OpsTable **out) {
    static const OpsTable table = {
        .name = "cuda",
        .recomputes = true,
        .fuses = true,
        .precision = cuda_choose_precision,
        .buffer_create = cuda_buffer_create,
        .buffer_destroy = cuda_buffer_destroy,
        .copy = cuda_copy,
        .context_create = nn_cuda_context_create,
        .context_destroy = cuda_context_destroy,
        .context_bytes = cuda_context_bytes,
        .begin = cuda_begin,
        .run = cuda_run,
        .take_totals = cuda_take_totals,
        .store_totals = nn_cuda_store_totals,
        .profile = cuda_profile,
        .algorithm = cuda_algorithm,
        .library = cuda_library,
        .read = cuda_read_tensor,
        .write = cuda_write_tensor,
    };
    *out = &table;
    return STATUS_OK;
}
