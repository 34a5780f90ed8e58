/* Batch norm with its pool, activation and residual. Sums over pixels are float32 within a group of images and double
 * across groups; means and deviations of groups and chunks are combined by Chan's formula, without cancellation. */
#include <math.h>

#include "base/checked.h"
#include "nn/cpu/context.h"

/* Per chunk: the number of pixels, then two rows over the channels (forward: mean and squared deviations; backward:
 * sums of dz and of dz (x - mean)). */
static double *chunk_sums(const OpState *state, int chunk, int channels) {
    return state->doubles + (size_t)chunk * (1 + 2 * (size_t)channels);
}

static int channels_of(const Context *context, int op) {
    return context->program->tensors[context->program->ops[op].saved].channels;
}

Status nn_cpu_norm_op_create(Context *context, int op) {
    const Op *o = &context->program->ops[op];
    OpState *state = &context->states[op];
    size_t channels = (size_t)channels_of(context, op);
    size_t room = round_up(channels, KERNELS_ROUND);
    TRY(nn_cpu_context_alloc(context, 6 * room, sizeof(float), &state->floats));
    state->terms = (NormTerms){.mean = state->floats,
                               .scale = state->floats + room,
                               .shift = state->floats + 2 * room,
                               .tilt = state->floats + 3 * room,
                               .base = state->floats + 4 * room};
    state->deviation = state->floats + 5 * room;
    size_t sums = 2 * room * sizeof(float), image = context->program->tensors[o->input].image_bytes;
    size_t row = sums + (o->node.pool_place == POOL_NONE ? 0 : image);
    if (row > context->row_bytes) context->row_bytes = row;
    return nn_cpu_context_alloc(context, (size_t)context->chunks * (1 + 2 * channels), sizeof(double), &state->doubles);
}

/* Adds the group's statistics to its chunk's. */
static void norm_merge(double *to, bool begins, double count, size_t channels, const float *mean,
                       const float *deviations) {
    double before = begins ? 0 : to[0], total = before + count;
    double *means = to + 1, *squares = to + 1 + channels;
    for (size_t c = 0; c < channels; c++) {
        double old_mean = begins ? (double)mean[c] : means[c], old_square = begins ? 0 : squares[c];
        double apart = (double)mean[c] - old_mean;
        means[c] = old_mean + apart * count / total;
        squares[c] = old_square + (double)deviations[c] + apart * apart * before * count / total;
    }
    to[0] = total;
}

Status nn_cpu_pass_norm_statistics(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const OpState *state = &group->context->states[op];
    const Kernels *kernels = group->context->kernels;
    Maps input = nn_cpu_group_maps(group, o->input), saved = nn_cpu_group_maps(group, o->saved);
    size_t pixels = maps_pixels(&saved), channels = (size_t)saved.channels;
    float *mean = nn_cpu_group_row_scratch(group), *deviations = mean + channels;
    if (o->node.pool_place == POOL_BEFORE_NORM) {
        kernels->pool(nn_cpu_group_tensor(group, o->input), &input, o->node.pool, nn_cpu_group_tensor(group, o->saved),
                      nn_cpu_group_tensor(group, o->index));
    }
    kernels->moments(nn_cpu_group_tensor(group, o->saved), pixels, saved.channels, mean, deviations);
    norm_merge(chunk_sums(state, group->chunk, saved.channels), group->begins, (double)pixels, channels, mean,
               deviations);
    return STATUS_OK;
}

/* z = (x - mean) scale gamma + beta */
static void set_terms(const Context *context, int op, size_t c, double mean, double variance) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    const float *parameters = nn_model_parameter_data(context->model);
    double deviation = 1.0 / sqrt(variance + o->node.eps);
    double gamma = o->scale == SIZE_MAX ? 1.0 : (double)parameters[o->scale + c];
    state->deviation[c] = (float)deviation;
    state->terms.mean[c] = (float)mean;
    state->terms.scale[c] = (float)(gamma * deviation);
    state->terms.shift[c] = parameters[o->bias + c];
}

Status nn_cpu_close_norm(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    int chunks = nn_cpu_context_chunks(job->count), channels = channels_of(context, op);
    float *statistics = nn_model_statistic_data(context->model);
    for (int c = 0; c < channels; c++) {
        double count = 0, mean = 0, squares = 0;
        for (int k = 0; k < chunks; k++) {
            const double *sums = chunk_sums(state, k, channels);
            double total = count + sums[0], apart = sums[1 + c] - mean;
            squares += sums[1 + channels + c] + apart * apart * count * sums[0] / total;
            mean += apart * sums[0] / total;
            count = total;
        }
        double variance = squares / count, unbiased = count > 1 ? squares / (count - 1) : variance;
        set_terms(context, op, (size_t)c, mean, variance);
        float *running = statistics + c;
        running[o->mean] = (float)(o->node.keep * (double)running[o->mean] + (1 - o->node.keep) * mean);
        running[o->variance] = (float)(o->node.keep * (double)running[o->variance] + (1 - o->node.keep) * unbiased);
    }
    return STATUS_OK;
}

Status nn_cpu_close_norm_running(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const float *statistics = nn_model_statistic_data(context->model);
    (void)job;
    for (int c = 0; c < channels_of(context, op); c++) {
        set_terms(context, op, (size_t)c, (double)statistics[o->mean + (size_t)c],
                  (double)statistics[o->variance + (size_t)c]);
    }
    return STATUS_OK;
}

static size_t norm_bytes_of(const Group *group, int tensor) {
    return group->context->program->tensors[tensor].image_bytes;
}

/* Normalises, activates, then pools, image by image. */
static void apply_then_pool(const Group *group, int op, uint8_t *index) {
    const Op *o = &group->context->program->ops[op];
    const Kernels *kernels = group->context->kernels;
    Maps maps = nn_cpu_group_maps(group, o->input);
    const char *from = nn_cpu_group_tensor(group, o->input);
    char *to = nn_cpu_group_tensor(group, o->output), *full = nn_cpu_group_row_scratch(group);
    size_t pooled = (size_t)((maps.height / o->node.pool) * (maps.width / o->node.pool)) * (size_t)maps.channels;
    maps.images = 1;
    for (int i = 0; i < group->count; i++) {
        kernels->normalise(from, maps_pixels(&maps), maps.channels, &group->context->states[op].terms,
                           o->node.activation, NULL, RESIDUAL_NONE, full);
        kernels->pool(full, &maps, o->node.pool, to, index == NULL ? NULL : index + (size_t)i * pooled);
        from += norm_bytes_of(group, o->input);
        to += norm_bytes_of(group, o->output);
    }
}

static void apply(const Group *group, int op, const void *from) {
    const Op *o = &group->context->program->ops[op];
    Maps maps = nn_cpu_group_maps(group, o->output);
    group->context->kernels->normalise(from, maps_pixels(&maps), maps.channels, &group->context->states[op].terms,
                                       o->node.activation,
                                       o->residual < 0 ? NULL : nn_cpu_group_tensor(group, o->residual),
                                       o->node.residual_place, nn_cpu_group_tensor(group, o->output));
}

Status nn_cpu_pass_norm_apply(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    if (o->node.pool_place == POOL_AFTER_ACTIVATION) {
        apply_then_pool(group, op, nn_cpu_group_tensor(group, o->index));
    } else {
        apply(group, op, nn_cpu_group_tensor(group, o->saved));
    }
    return STATUS_OK;
}

Status nn_cpu_pass_norm_evaluate(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const void *from = nn_cpu_group_tensor(group, o->input);
    if (o->node.pool_place == POOL_AFTER_ACTIVATION) {
        apply_then_pool(group, op, NULL);
        return STATUS_OK;
    }
    if (o->node.pool_place == POOL_BEFORE_NORM) {
        Maps maps = nn_cpu_group_maps(group, o->input);
        group->context->kernels->pool(from, &maps, o->node.pool, nn_cpu_group_tensor(group, o->output), NULL);
        from = nn_cpu_group_tensor(group, o->output);
    }
    apply(group, op, from);
    return STATUS_OK;
}

static void add_sums(double *to, bool begins, size_t channels, const float *sums) {
    for (size_t c = 0; c < 2 * channels; c++) to[1 + c] = (begins ? 0 : to[1 + c]) + (double)sums[c];
}

/* With a pool after the activation: the gradient is unpooled to full size image by image. */
static void reduce_pooled(const Group *group, int op, float *sums, char *full) {
    const Op *o = &group->context->program->ops[op];
    const Kernels *kernels = group->context->kernels;
    Maps maps = nn_cpu_group_maps(group, o->saved), pooled = nn_cpu_group_maps(group, o->output);
    char *gradient = nn_cpu_group_tensor(group, o->output_gradient),
         *dz = nn_cpu_group_tensor(group, o->activation_gradient);
    const char *saved = nn_cpu_group_tensor(group, o->saved);
    const uint8_t *index = nn_cpu_group_tensor(group, o->index);
    size_t channels = (size_t)maps.channels;
    if (o->skip_gradient >= 0) {
        kernels->add_maps(nn_cpu_group_tensor(group, o->skip_gradient), maps_pixels(&pooled) * channels, gradient);
    }
    maps.images = 1;
    for (int i = 0; i < group->count; i++) {
        kernels->unpool(gradient, index, &maps, o->node.pool, full);
        kernels->reduce(saved, maps_pixels(&maps), maps.channels, &group->context->states[op].terms, o->node.activation,
                        full, NULL, false, NULL, dz, sums, sums + channels);
        gradient += norm_bytes_of(group, o->output_gradient);
        index += norm_bytes_of(group, o->index);
        saved += norm_bytes_of(group, o->saved);
        dz += norm_bytes_of(group, o->activation_gradient);
    }
}

Status nn_cpu_pass_norm_reduce(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const OpState *state = &group->context->states[op];
    Maps maps = nn_cpu_group_maps(group, o->saved);
    size_t channels = (size_t)maps.channels;
    float *sums = nn_cpu_group_row_scratch(group);
    for (size_t c = 0; c < 2 * channels; c++) sums[c] = 0;
    if (o->node.pool_place == POOL_AFTER_ACTIVATION) {
        reduce_pooled(group, op, sums, (char *)(sums + 2 * channels));
    } else {
        bool before = o->node.residual_place == RESIDUAL_BEFORE_ACTIVATION;
        group->context->kernels->reduce(nn_cpu_group_tensor(group, o->saved), maps_pixels(&maps), maps.channels,
                                        &state->terms, o->node.activation,
                                        nn_cpu_group_tensor(group, o->output_gradient),
                                        o->skip_gradient < 0 ? NULL : nn_cpu_group_tensor(group, o->skip_gradient),
                                        o->add_skip_in_place, before ? nn_cpu_group_tensor(group, o->residual) : NULL,
                                        nn_cpu_group_tensor(group, o->activation_gradient), sums, sums + channels);
    }
    add_sums(chunk_sums(state, group->chunk, maps.channels), group->begins, channels, sums);
    return STATUS_OK;
}

Status nn_cpu_close_norm_backward(Context *context, const Job *job, int op) {
    const Op *o = &context->program->ops[op];
    const OpState *state = &context->states[op];
    const Tensor *saved = &context->program->tensors[o->saved];
    int chunks = nn_cpu_context_chunks(job->count), channels = saved->channels;
    double pixels = (double)job->count * saved->height * saved->width;
    float *gradients = nn_model_gradient_data(context->model);
    for (int c = 0; c < channels; c++) {
        double sum = 0, product = 0, scale = (double)state->terms.scale[c], deviation = (double)state->deviation[c];
        for (int k = 0; k < chunks; k++) {
            sum += chunk_sums(state, k, channels)[1 + c];
            product += chunk_sums(state, k, channels)[1 + channels + c];
        }
        gradients[o->bias + (size_t)c] = (float)sum;
        if (o->scale != SIZE_MAX) gradients[o->scale + (size_t)c] = (float)(product * deviation);
        state->terms.base[c] = (float)(-scale * sum / pixels);
        state->terms.tilt[c] = (float)(-scale * deviation * deviation * product / pixels);
    }
    return STATUS_OK;
}

Status nn_cpu_pass_norm_backward(const Group *group, int op) {
    const Op *o = &group->context->program->ops[op];
    const Kernels *kernels = group->context->kernels;
    const NormTerms *terms = &group->context->states[op].terms;
    Maps saved = nn_cpu_group_maps(group, o->saved), input = nn_cpu_group_maps(group, o->input);
    const char *x = nn_cpu_group_tensor(group, o->saved), *dz = nn_cpu_group_tensor(group, o->activation_gradient);
    char *to = nn_cpu_group_tensor(group, o->input_gradient), *pooled = nn_cpu_group_row_scratch(group);
    if (o->node.pool_place != POOL_BEFORE_NORM) {
        kernels->norm_backward(x, dz, maps_pixels(&saved), saved.channels, terms, to);
        return STATUS_OK;
    }
    const uint8_t *index = nn_cpu_group_tensor(group, o->index);
    saved.images = input.images = 1;
    for (int i = 0; i < group->count; i++) {
        kernels->norm_backward(x, dz, maps_pixels(&saved), saved.channels, terms, pooled);
        kernels->unpool(pooled, index, &input, o->node.pool, to);
        x += norm_bytes_of(group, o->saved);
        dz += norm_bytes_of(group, o->activation_gradient);
        index += norm_bytes_of(group, o->index);
        to += norm_bytes_of(group, o->input_gradient);
    }
    return STATUS_OK;
}
