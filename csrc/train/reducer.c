/* Makes layer tables of the flat gradient buffer. The gaps between layers travel as layers of their own, unquantised,
 * so that they stay zero. Owns its plans; the residual of error feedback moves along when another plan takes over. */
#include "train/reducer.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "train/device_sum.h"

struct Reducer {
    AllreducePlan *plans[REDUCER_MAX_PLANS]; /* owned */
    int count, last;                         /* `last`: the plan that ran last */
    DeviceSum *device;                       /* owned; NULL on the CPU backend */
};

static const ReducerLayer *find_layer(const ReducerLayer *layers, int count, const char *name) {
    for (int i = 0; i < count; i++) {
        if (strcmp(layers[i].name, name) == 0) return &layers[i];
    }
    return NULL;
}

static Status check_names(const NnModel *model, const ReducerLayer *special, int special_count) {
    int count;
    const NnLayer *layers = nn_model_layers(model, &count);
    for (int s = 0; s < special_count; s++) {
        bool known = false;
        for (int i = 0; i < count; i++)
            known = known || (layers[i].trained && !strcmp(layers[i].name, special[s].name));
        if (known) continue;
        FAIL(STATUS_ARGUMENT,
             "bits are given for layer \"%s\", which the network does not have; its first layer is "
             "\"%s\"",
             special[s].name, layers[0].name);
    }
    return STATUS_OK;
}

/* The layers that stand before `end`, and the gaps; the number of entries in `table`. */
static int make_table(const NnModel *model, size_t end, const ReducerLayer *special, int special_count,
                      AllreduceLayer *table) {
    int count, entries = 0;
    const NnLayer *layers = nn_model_layers(model, &count);
    size_t at = 0;
    for (int i = 0; i < count && at < end; i++) {
        const NnLayer *layer = &layers[i];
        if (!layer->trained || layer->offset >= end) continue;
        if (layer->offset > at) {
            table[entries++] = (AllreduceLayer){
                .name = "gap", .elems = (int64_t)(layer->offset - at), .dims = 1, .bits = ALLREDUCE_UNCOMPRESSED};
        }
        const ReducerLayer *own = find_layer(special, special_count, layer->name);
        table[entries++] = (AllreduceLayer){.name = layer->name,
                                            .elems = (int64_t)layer->elems,
                                            .dims = layer->ndim,
                                            .bits = own == NULL ? 0 : own->bits,
                                            .bucket_size = own == NULL ? 0 : own->bucket_size};
        at = layer->offset + layer->elems;
    }
    if (at < end) {
        table[entries++] =
            (AllreduceLayer){.name = "gap", .elems = (int64_t)(end - at), .dims = 1, .bits = ALLREDUCE_UNCOMPRESSED};
    }
    return entries;
}

static bool has_plan(const Reducer *reducer, size_t elems) {
    for (int i = 0; i < reducer->count; i++) {
        if ((size_t)allreduce_elems(reducer->plans[i]) == elems) return true;
    }
    return false;
}

/* Whether nothing is quantised. */
static bool is_exact(const AllreduceOptions *options, const ReducerLayer *layers, int layer_count) {
    if (options->algorithm == ALLREDUCE_EXACT) return true;
    bool exact = options->bits == ALLREDUCE_UNCOMPRESSED;
    for (int i = 0; i < layer_count; i++) exact = exact && layers[i].bits == ALLREDUCE_UNCOMPRESSED;
    return exact;
}

/* What gradients in device memory need besides the plans. */
static Status create_device(Reducer *reducer, Comm *comm, NnModel *model, bool exact, bool average) {
    size_t elems[REDUCER_MAX_PLANS];
    if (strcmp(nn_model_backend(model), "cuda") != 0) return STATUS_OK;
    for (int i = 0; i < reducer->count; i++) elems[i] = (size_t)allreduce_elems(reducer->plans[i]);
    return device_sum_create(comm, model, exact, average, elems, reducer->count, &reducer->device);
}

Status reducer_create(Comm *comm, NnModel *model, const AllreduceOptions *options, const ReducerLayer *layers,
                      int layer_count, const int *first_blocks, int count, Reducer **out) {
    Status status = STATUS_OK;
    Reducer *reducer = NULL;
    AllreduceLayer *table = NULL;
    int model_layer_count;
    (void)nn_model_layers(model, &model_layer_count);
    if (count < 1 || count > REDUCER_MAX_PLANS) {
        FAIL(STATUS_ARGUMENT, "there must be 1 to %d sets of trained blocks, not %d", REDUCER_MAX_PLANS, count);
    }
    TRY(check_names(model, layers, layer_count));
    TRY_GOTO(memory_calloc(1, sizeof *reducer, &reducer));
    TRY_GOTO(memory_calloc(2 * (size_t)model_layer_count + 1, sizeof *table, &table));
    for (int i = 0; i < count; i++) {
        size_t elems = nn_model_gradient_elems(model, first_blocks[i]);
        if (has_plan(reducer, elems)) continue;
        int entries = make_table(model, elems, layers, layer_count, table);
        TRY_GOTO(allreduce_plan_create(comm, table, entries, options, &reducer->plans[reducer->count]));
        reducer->count++;
    }
    bool exact = is_exact(options, layers, layer_count);
    TRY_GOTO(create_device(reducer, comm, model, exact, options->op == ALLREDUCE_AVERAGE));
    *out = reducer;
    reducer = NULL;
done:
    memory_free(table);
    reducer_destroy(reducer);
    return status;
}

void reducer_destroy(Reducer *reducer) {
    if (reducer == NULL) return;
    device_sum_destroy(reducer->device);
    for (int i = 0; i < reducer->count; i++) allreduce_plan_destroy(reducer->plans[i]);
    memory_free(reducer);
}

/* The index of the plan for so many elements, or -1. */
static int plan_for(const Reducer *reducer, size_t elems) {
    for (int i = 0; i < reducer->count; i++) {
        if ((size_t)allreduce_elems(reducer->plans[i]) == elems) return i;
    }
    return -1;
}

static void move_residual(Reducer *reducer, int to) {
    float *old = allreduce_residual(reducer->plans[reducer->last]), *new = allreduce_residual(reducer->plans[to]);
    int64_t a = allreduce_elems(reducer->plans[reducer->last]), b = allreduce_elems(reducer->plans[to]);
    if (old != NULL && new != NULL && to != reducer->last) memcpy(new, old, (size_t)(a < b ? a : b) * sizeof *new);
}

Status reducer_run(void *context, int64_t step, float *gradients, size_t elems) {
    Reducer *reducer = context;
    int plan = plan_for(reducer, elems);
    if (plan < 0) FAIL(STATUS_ARGUMENT, "no plan was made for %zu gradient elements", elems);
    if (reducer->device != NULL && device_sum_on_gpu(reducer->device)) return device_sum_run(reducer->device, elems);
    move_residual(reducer, plan);
    reducer->last = plan;
    allreduce_set_call(reducer->plans[plan], (uint32_t)step);
    if (reducer->device != NULL) return device_sum_through_host(reducer->device, reducer->plans[plan], gradients);
    return allreduce_run(reducer->plans[plan], gradients);
}

static Status told(void *context, size_t begin, size_t end) {
    const Reducer *reducer = context;
    return device_sum_told(reducer->device, begin, end);
}

static Status wait(void *context, DeviceStream *stream, DeviceEvent *event) {
    const Reducer *reducer = context;
    return device_sum_wait(reducer->device, stream, event);
}

void reducer_configure(Reducer *reducer, TrainerConfig *config) {
    config->reduce = reducer_run;
    config->reduce_context = reducer;
    if (reducer->device == NULL) return;
    config->reduce_wait = wait;
    config->reduce_capturable = device_sum_on_gpu(reducer->device);
    if (config->reduce_capturable) config->reduce_hook = told;
}

uint64_t reducer_wire_bytes(const Reducer *reducer, size_t elems) {
    int plan = plan_for(reducer, elems);
    return plan < 0 ? 0 : allreduce_wire_bytes(reducer->plans[plan]);
}

uint64_t reducer_plain_bytes(const Reducer *reducer, size_t elems) {
    int plan = plan_for(reducer, elems);
    return plan < 0 ? 0 : allreduce_plain_bytes(reducer->plans[plan]);
}

size_t reducer_explain(const Reducer *reducer, char *text, size_t bytes) {
    size_t length = 0;
    if (reducer->device != NULL) {
        length = device_sum_explain(reducer->device, text, bytes);
        if (device_sum_on_gpu(reducer->device)) return length;
    }
    size_t used = length < bytes ? length : bytes;
    return length + allreduce_explain(reducer->plans[0], text + used, bytes - used);
}

float *reducer_residual(Reducer *reducer, size_t *elems) {
    *elems = (size_t)allreduce_elems(reducer->plans[reducer->last]);
    return allreduce_residual(reducer->plans[reducer->last]);
}

Status reducer_restore(Reducer *reducer, const float *residual, size_t elems) {
    int plan = plan_for(reducer, elems);
    float *to = plan < 0 ? NULL : allreduce_residual(reducer->plans[plan]);
    if (to == NULL) FAIL(STATUS_ARGUMENT, "this training keeps no residual of %zu elements", elems);
    memcpy(to, residual, elems * sizeof *to);
    reducer->last = plan;
    return STATUS_OK;
}
