/* The whitening filters of a set in device memory. */
#include "augment/moments.h"
#include "base/clock.h"
#include "nn/whiten.h"
#include "train/runner_private.h"
#include "train/step_stream.h"

#define PATCH NN_WHITEN_PATCH

/* From sums of products and sums of bytes to the second moments of normalised pixels. */
static void normalise_moments(const TrainRunner *r, const double *sums, double patches, double *moments) {
    const double *bytes = sums + PATCH * (PATCH + 1) / 2;
    for (int i = 0, at = 0; i < PATCH; i++) {
        for (int j = i; j < PATCH; j++, at++) {
            double mi = (double)r->config.mean[i / 4], mj = (double)r->config.mean[j / 4];
            double scale = (double)r->config.std[i / 4] * (double)r->config.std[j / 4];
            double sum = sums[at] - mi * bytes[j] - mj * bytes[i] + patches * mi * mj;
            moments[i * PATCH + j] = moments[j * PATCH + i] = sum / scale / patches;
        }
    }
}

/* Allocates memory for the moments and measures once as a warm-up, before the clock starts. */
static Status prepare_moments(TrainRunner *r, const GatherSet *set) {
    const size_t bytes = (size_t)AUGMENT_MOMENT_PARTS * AUGMENT_MOMENTS * sizeof(uint64_t);
    int used;
    if (r->host_moments != NULL) return STATUS_OK;
    if (r->moments == NULL) TRY(device_alloc(bytes, &r->moments));
    TRY(augment_moments_on_device(set, 1, r->moments, &used, r->stream));
    TRY(device_stream_synchronize(r->stream));
    return device_host_alloc(bytes, &r->host_moments);
}

static Status measure_moments(TrainRunner *r, const GatherSet *set, int64_t count, double *moments) {
    uint64_t total[AUGMENT_MOMENTS] = {0};
    double sums[AUGMENT_MOMENTS];
    int used;
    TRY(augment_moments_on_device(set, count, r->moments, &used, r->stream));
    TRY(device_copy(r->host_moments, r->moments, (size_t)used * AUGMENT_MOMENTS * sizeof *total, r->stream));
    TRY(device_stream_synchronize(r->stream));
    for (int i = 0; i < used * AUGMENT_MOMENTS; i++) total[i % AUGMENT_MOMENTS] += r->host_moments[i];
    for (int i = 0; i < AUGMENT_MOMENTS; i++) sums[i] = (double)total[i];
    normalise_moments(r, sums, (double)(count * (set->height - 1) * (set->width - 1)), moments);
    return STATUS_OK;
}

/* Finds the frozen layer; its filters are (row, column, channel), those of whiten.h (channel, row, column). */
static Status find_frozen(const TrainRunner *r, const NnLayer **out) {
    int count;
    const NnLayer *layers = nn_model_layers(r->model, &count);
    for (int i = 0; i < count; i++) {
        if (layers[i].trained || layers[i].elems != (size_t)NN_WHITEN_FILTERS * PATCH || layers[i].ndim != 4) continue;
        *out = &layers[i];
        return STATUS_OK;
    }
    FAIL(STATUS_ARGUMENT, "this network has no whitening layer");
}

Status train_runner_whiten(TrainRunner *r, TrainSet which, int64_t count, double epsilon) {
    GatherSet set;
    const NnLayer *layer = NULL;
    double moments[PATCH * PATCH];
    float filters[NN_WHITEN_FILTERS * PATCH], reordered[NN_WHITEN_FILTERS * PATCH];
    TRY(train_runner_need(r, which, &set));
    TRY(find_frozen(r, &layer));
    TRY(prepare_moments(r, &set));
    double begin = clock_now_seconds();
    TRY(measure_moments(r, &set, count, moments));
    TRY(nn_whiten_filters(moments, epsilon, filters));
    for (int i = 0; i < NN_WHITEN_FILTERS * PATCH; i++) {
        int filter = i / PATCH, channel = i / 4 % 3, corner = i % 4;
        reordered[filter * PATCH + corner * 3 + channel] = filters[i];
    }
    TRY(nn_model_write(r->model, nn_model_parameter_data(r->model), layer->offset, reordered,
                       NN_WHITEN_FILTERS * PATCH));
    r->trainer->on_stream->seconds += clock_now_seconds() - begin;
    return STATUS_OK;
}
