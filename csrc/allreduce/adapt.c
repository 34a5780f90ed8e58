/* Bits for each layer: measuring, and a knapsack whose size is the budget, divided into bins. */
#include "allreduce/adapt.h"

#include <math.h>
#include <string.h>

#include "allreduce/engine.h"
#include "base/checked.h"
#include "base/memory.h"

#define STEP_ELEMS 65536 /* measured at a time */
#define MIN_BINS 16384
#define BINS_EACH 16
#define NEVER UINT64_MAX

/* ---- measuring ---- */

/* What is needed to measure one layer; room for `step` elements, a whole number of buckets. */
typedef struct Scale {
    QuantSpec spec;
    QuantRandom random;
    int64_t step;
    float *x, *decoded; /* owned */
    void *wire;         /* owned */
} Scale;

static void scale_free(Scale *scale) {
    memory_free(scale->wire);
    memory_free(scale->decoded);
    memory_free(scale->x);
}

/* For layers with up to that many elements per bucket. */
static Status scale_create(int64_t bucket, Scale *out) {
    *out = (Scale){.step = bucket >= STEP_ELEMS ? bucket : (int64_t)round_up(STEP_ELEMS, (uint64_t)bucket)};
    TRY(memory_alloc((size_t)out->step, sizeof *out->x, &out->x));
    TRY(memory_alloc((size_t)out->step, sizeof *out->decoded, &out->decoded));
    return STATUS_OK;
}

/* Adds what the spec loses of scale->x, the layer's elements from `at` on. */
static Status adapt_weigh(Scale *scale, const WireLayer *layer, int64_t at, int64_t elems, double *lost) {
    QuantRandom random = scale->random;
    QuantTarget target = {NULL, 1.0f, 1.0f, QUANT_F32, scale->decoded};
    random.quad = layer->quad + (uint64_t)(at / layer->spec.bucket_size) * wire_bucket_quads(layer);
    QuantInput input = {scale->x, QUANT_F32, elems, 1.0f};
    TRY(quantize(&scale->spec, input, &random, NULL, scale->wire));
    TRY(dequantize(&scale->spec, scale->wire, elems, &target, &random, NULL));
    for (int64_t i = 0; i < elems; i++) {
        double off = (double)scale->x[i] - (double)scale->decoded[i];
        *lost += off * off;
    }
    return STATUS_OK;
}

/* A layer's elements from `at` on, with their residual (NULL: none), as float32. */
static Status adapt_take(Scale *scale, const WireLayer *layer, const void *buffer, const float *residual, int64_t at,
                         int64_t elems) {
    QuantType type = layer->spec.type;
    const uint8_t *x = (const uint8_t *)buffer + (layer->first + at) * (int64_t)quantize_item_bytes(type);
    const float *kept = residual == NULL ? NULL : residual + layer->first + at;
    QuantTarget target = {kept, 1.0f, 1.0f, QUANT_F32, scale->x};
    return quantize_pass((QuantInput){x, type, elems, 1.0f}, &target, NULL);
}

static Status measure_layer(Scale *scale, const WireLayer *layer, const void *buffer, const float *residual,
                            const int *widths, int count, double *lost) {
    for (int64_t at = 0; at < layer->elems; at += scale->step) {
        int64_t elems = layer->elems - at < scale->step ? layer->elems - at : scale->step;
        TRY(adapt_take(scale, layer, buffer, residual, at, elems));
        for (int w = 0; w < count; w++) {
            scale->spec.bits = widths[w];
            TRY(adapt_weigh(scale, layer, at, elems, &lost[w]));
        }
        for (int64_t i = 0; i < elems; i++) lost[count] += (double)scale->x[i] * (double)scale->x[i];
    }
    return STATUS_OK;
}

static Status check_widths(const QuantSpec *spec, const int *widths, int count, uint64_t *most) {
    for (int w = 0; w < count; w++) {
        QuantSpec of = *spec;
        of.bits = widths[w];
        TRY(quantize_check(&of));
        of.half_metadata = false;
        uint64_t bytes = quantize_wire_bytes(&of, spec->bucket_size);
        if (bytes > *most) *most = bytes;
    }
    return STATUS_OK;
}

int allreduce_layers(const Allreduce *allreduce) { return allreduce_setup_of(allreduce)->extents[0].map->layers; }

/* Measures one layer: one row of the table. */
static Status weigh_layer(const AllreduceSetup *setup, const WireLayer *layer, const void *buffer,
                          const float *residual, const int *widths, int count, double *lost, uint64_t *bytes) {
    Status status = STATUS_OK;
    Scale scale = {0};
    uint64_t most = 0;
    TRY(check_widths(&layer->spec, widths, count, &most));
    TRY_GOTO(scale_create(layer->spec.bucket_size, &scale));
    TRY_GOTO(memory_alloc((size_t)(scale.step / layer->spec.bucket_size), most, &scale.wire));
    scale.spec = layer->spec;
    for (int w = 0; w < count; w++) {
        scale.spec.bits = widths[w];
        bytes[w] = quantize_wire_bytes(&scale.spec, layer->elems);
    }
    scale.spec.half_metadata = false; /* changes next to nothing, and x is float32 */
    scale.random = (QuantRandom){setup->options.seed, setup->run->call, (uint32_t)comm_rank(setup->comm), 0};
    TRY_GOTO(measure_layer(&scale, layer, buffer, residual, widths, count, lost));
done:
    scale_free(&scale);
    return status;
}

Status allreduce_losses(const Allreduce *allreduce, const void *buffer, const float *residual, const int *widths,
                        int count, double *lost, uint64_t *bytes) {
    const AllreduceSetup *setup = allreduce_setup_of(allreduce);
    const WireMap *map = setup->extents[0].map;
    memset(lost, 0, (size_t)map->layers * (size_t)(count + 1) * sizeof *lost);
    memset(bytes, 0, (size_t)map->layers * (size_t)count * sizeof *bytes);
    for (int i = 0; i < map->layers; i++) {
        const WireLayer *layer = wire_layer(map, i);
        if (layer->raw || layer->elems == 0) continue;
        TRY(weigh_layer(setup, layer, buffer, residual, widths, count, lost + (int64_t)i * (count + 1),
                        bytes + (int64_t)i * count));
    }
    return STATUS_OK;
}

/* ---- choosing ---- */

/* least[b] is the fewest bytes of the layers so far with losses of at most b bins, choice[layer * (bins + 1) + b] the
 * width of the last of them in that solution. */
typedef struct Knapsack {
    int layers, count, bins;
    double bin;             /* of a loss; 0: no budget */
    uint64_t *least, *next; /* owned, [bins + 1] */
    uint8_t *choice;        /* owned */
} Knapsack;

/* A loss in bins, rounded up; one that exceeds the budget takes more bins than there are. */
static int bins_of(const Knapsack *sack, double lost) {
    if (lost <= 0.0) return 0;
    double bins = ceil(lost / sack->bin);
    return bins >= 0.0 && bins <= (double)sack->bins ? (int)bins : sack->bins + 1;
}

static void put_layer(Knapsack *sack, int layer, const double *lost, const uint64_t *bytes) {
    uint8_t *choice = sack->choice + (int64_t)layer * (sack->bins + 1);
    for (int b = 0; b <= sack->bins; b++) sack->next[b] = NEVER;
    for (int w = 0; w < sack->count; w++) {
        int taken = bins_of(sack, lost[w]);
        for (int b = taken; b <= sack->bins; b++) {
            uint64_t before = sack->least[b - taken];
            if (before == NEVER || before + bytes[w] >= sack->next[b]) continue;
            sack->next[b] = before + bytes[w];
            choice[b] = (uint8_t)w;
        }
    }
    uint64_t *swap = sack->least;
    sack->least = sack->next;
    sack->next = swap;
}

/* Reads the solution, from the last layer back to the first. */
static void read_choices(const Knapsack *sack, const double *lost, int *out) {
    int left = sack->bins;
    for (int i = sack->layers - 1; i >= 0; i--) {
        out[i] = sack->choice[(int64_t)i * (sack->bins + 1) + left];
        left -= bins_of(sack, lost[(int64_t)i * sack->count + out[i]]);
    }
}

static void least_losses(const double *lost, int layers, int count, int *choice) {
    for (int i = 0; i < layers; i++) {
        choice[i] = 0;
        for (int w = 1; w < count; w++) {
            const double *row = lost + (int64_t)i * count;
            if (row[w] < row[choice[i]]) choice[i] = w;
        }
    }
}

static Status check_table(const double *lost, int layers, int count, double budget) {
    if (layers > ALLREDUCE_MAX_ADAPTED) {
        FAIL(STATUS_ARGUMENT, "widths can be chosen for at most %d layers, not %d", ALLREDUCE_MAX_ADAPTED, layers);
    }
    if (count < 1 || count > QUANTIZE_MAX_BITS) {
        FAIL(STATUS_ARGUMENT, "there must be 1 to %d widths, not %d", QUANTIZE_MAX_BITS, count);
    }
    if (!(budget >= 0.0) || isinf(budget))
        FAIL(STATUS_ARGUMENT, "a budget must be a finite number of at least 0, not %g", budget);
    for (int64_t i = 0; i < (int64_t)layers * count; i++) {
        if (!isfinite(lost[i])) FAIL(STATUS_ARGUMENT, "a loss must be a finite number, not %g", lost[i]);
    }
    return STATUS_OK;
}

Status allreduce_choose_widths(const double *lost, const uint64_t *bytes, int layers, int count, double budget,
                               int *choice) {
    Status status = STATUS_OK;
    TRY(check_table(lost, layers, count, budget));
    Knapsack sack = {.layers = layers, .count = count, .bins = layers * BINS_EACH};
    if (sack.bins < MIN_BINS) sack.bins = MIN_BINS;
    sack.bin = fabs(budget) / sack.bins; /* of a negative zero, too */
    size_t states = (size_t)sack.bins + 1;
    TRY_GOTO(memory_calloc(states, sizeof *sack.least, &sack.least));
    TRY_GOTO(memory_calloc(states, sizeof *sack.next, &sack.next));
    TRY_GOTO(memory_alloc(states * (size_t)layers, 1, &sack.choice));
    for (int i = 0; i < layers; i++) put_layer(&sack, i, lost + (int64_t)i * count, bytes + (int64_t)i * count);
    if (sack.least[sack.bins] == NEVER) {
        least_losses(lost, layers, count, choice);
    } else {
        read_choices(&sack, lost, choice);
    }
done:
    memory_free(sack.choice);
    memory_free(sack.next);
    memory_free(sack.least);
    return status;
}
