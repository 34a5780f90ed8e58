/* The trainer, and evaluation on batches in host memory. Owns the plans, the optimizer, the averages, and a copy of the
 * running statistics from before the step, in case the step must be undone. */
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "train/fingerprint.h"
#include "train/step_stream.h"

/* Zeroed memory of the model's backend. */
static Status trainer_alloc(const Trainer *trainer, size_t elems, float **out) {
    Status status = STATUS_OK;
    float *memory = NULL;
    if (trainer->stream == NULL) return memory_calloc(elems + 1, sizeof(float), out);
    TRY(device_alloc((elems + 1) * sizeof(float), &memory));
    TRY_GOTO(device_fill(memory, 0, (elems + 1) * sizeof(float), trainer->stream));
    *out = memory;
    memory = NULL;
done:
    device_free(memory);
    return status;
}

void trainer_free(const Trainer *trainer, float *memory) {
    if (trainer->stream == NULL) {
        memory_free(memory);
    } else {
        device_free(memory);
    }
}

Status trainer_copy(const Trainer *trainer, float *to, const float *from, size_t elems) {
    if (trainer->stream != NULL) return device_copy(to, from, elems * sizeof *to, trainer->stream);
    memcpy(to, from, elems * sizeof *to);
    return STATUS_OK;
}

static Status check_phases(const TrainerConfig *config) {
    if (config->phase_count < 1 || config->phase_count > TRAINER_MAX_PHASES || config->phases[0].first_step != 0) {
        FAIL(STATUS_ARGUMENT, "a training run has 1 to %d phases, the first from step 0 on", TRAINER_MAX_PHASES);
    }
    for (int i = 0; i < config->phase_count; i++) {
        const TrainerPhase *p = &config->phases[i];
        if (i > 0 && p->first_step < p[-1].first_step) {
            FAIL(STATUS_ARGUMENT, "phase %d begins with step %lld, before phase %d", i, (long long)p->first_step,
                 i - 1);
        }
        if (p->side < 1 || p->side > config->side) {
            FAIL(STATUS_ARGUMENT, "phase %d: images of %d x %d pixels cannot be made from %d x %d", i, p->side, p->side,
                 config->side, config->side);
        }
        for (int g = 0; g < config->group_count; g++) {
            const TrainerGroup *group = &config->groups[g];
            if (group->first_block < p->first_block && p->first_block < group->end_block) {
                FAIL(STATUS_ARGUMENT, "group %d has blocks below and above block %d, where phase %d freezes", g,
                     p->first_block, i);
            }
        }
    }
    return STATUS_OK;
}

static Status check_config(const TrainerConfig *config) {
    if (config->group_count < 1 || config->group_count > TRAINER_MAX_GROUPS) {
        FAIL(STATUS_ARGUMENT, "a trainer has 1 to %d groups, not %d", TRAINER_MAX_GROUPS, config->group_count);
    }
    if (config->steps < 1 || config->batch < 1 || config->test_batch < 1) {
        FAIL(STATUS_ARGUMENT, "steps, batch and test batch must be at least 1, not %lld, %d and %d",
             (long long)config->steps, config->batch, config->test_batch);
    }
    if (config->steps > INT32_MAX) FAIL(STATUS_ARGUMENT, "%lld steps are too many", (long long)config->steps);
    if (config->lookahead_every < 0 || !(config->lookahead_base >= 0 && config->lookahead_base <= 1)) {
        FAIL(STATUS_ARGUMENT, "averaging every %d steps with base %g: expected 0 or more steps and a base in [0, 1]",
             config->lookahead_every, config->lookahead_base);
    }
    for (int i = 0; i < config->group_count; i++) TRY(train_schedule_check(&config->groups[i].schedule));
    return check_phases(config);
}

static Status find_group(const TrainerConfig *config, const NnLayer *layer, int *out) {
    *out = -1;
    for (int g = 0; g < config->group_count; g++) {
        const TrainerGroup *group = &config->groups[g];
        bool member = (group->kinds & (1u << layer->kind)) != 0 && layer->block >= group->first_block &&
                      layer->block < group->end_block;
        if (!member) continue;
        if (*out >= 0) FAIL(STATUS_ARGUMENT, "layer %s belongs to both group %d and group %d", layer->name, *out, g);
        *out = g;
    }
    if (*out < 0) FAIL(STATUS_ARGUMENT, "layer %s does not belong to any group of the optimizer", layer->name);
    return STATUS_OK;
}

/* Creates the optimizer of the trained layers, in the flat buffer's order. */
static Status create_optimizer(Trainer *trainer) {
    Status status = STATUS_OK;
    OptimTensor *tensors = NULL;
    OptimGroup groups[TRAINER_MAX_GROUPS];
    int layer_count, count = 0;
    const NnLayer *layers = nn_model_layers(trainer->model, &layer_count);
    TRY_GOTO(memory_calloc((size_t)layer_count + 1, sizeof *tensors, &tensors));
    for (int i = 0; i < layer_count; i++) {
        if (!layers[i].trained) continue;
        OptimTensor *tensor = &tensors[count++];
        TRY_GOTO(find_group(&trainer->config, &layers[i], &tensor->group));
        tensor->value = nn_model_parameter_data(trainer->model) + layers[i].offset;
        tensor->gradient = nn_model_gradient_data(trainer->model) + layers[i].offset;
        tensor->rows = layers[i].shape[0];
        tensor->columns = (int64_t)layers[i].elems / layers[i].shape[0];
    }
    for (int g = 0; g < trainer->config.group_count; g++) groups[g] = trainer->config.groups[g].rule;
    TRY_GOTO(optim_create(groups, trainer->config.group_count, tensors, count, nn_model_pool(trainer->model),
                          nn_model_stream(trainer->model), &trainer->optim));
done:
    memory_free(tensors);
    return status;
}

static size_t slow_elems(const Trainer *trainer) {
    return nn_model_parameter_elems(trainer->model) + nn_model_statistic_elems(trainer->model);
}

Status trainer_create(const TrainerConfig *config, NnModel *model, Trainer **out) {
    Status status = STATUS_OK;
    Trainer *trainer = NULL;
    TRY(check_config(config));
    TRY(memory_calloc(1, sizeof *trainer, &trainer));
    trainer->config = *config;
    trainer->model = model;
    trainer->stream = nn_model_stream(model);
    trainer->backend = trainer->stream == NULL ? &train_step_host : &train_step_stream;
    TRY_GOTO(create_optimizer(trainer));
    TRY_GOTO(trainer_alloc(trainer, nn_model_statistic_elems(model), &trainer->backup));
    if (config->lookahead_every > 0) TRY_GOTO(trainer_alloc(trainer, slow_elems(trainer), &trainer->slow));
    if (trainer->stream != NULL) TRY_GOTO(train_stream_create(trainer, &trainer->on_stream));
    *out = trainer;
    trainer = NULL;
done:
    trainer_destroy(trainer);
    return status;
}

static void destroy_plans(Trainer *trainer) {
    for (int i = 0; i < trainer->plan_count; i++) nn_plan_destroy(trainer->plans[i].plan);
    trainer->plan_count = 0;
}

void trainer_destroy(Trainer *trainer) {
    if (trainer == NULL) return;
    if (trainer->stream != NULL) (void)device_stream_synchronize(trainer->stream);
    memory_free(trainer->view_logits);
    trainer_free(trainer, trainer->slow);
    trainer_free(trainer, trainer->backup);
    train_stream_destroy(trainer->on_stream);
    memory_free(trainer->shrunk);
    device_host_free(trainer->host_hash);
    device_free(trainer->hash);
    if (trainer->evaluation_owned) nn_plan_destroy(trainer->evaluation);
    destroy_plans(trainer);
    optim_destroy(trainer->optim);
    memory_free(trainer);
}

const TrainerPhase *trainer_phase(const Trainer *trainer, int64_t step) {
    int phase = 0;
    while (phase + 1 < trainer->config.phase_count && trainer->config.phases[phase + 1].first_step <= step) phase++;
    return &trainer->config.phases[phase];
}

OptimRate trainer_rate(const Trainer *trainer, int group, int64_t step) {
    const TrainerGroup *g = &trainer->config.groups[group];
    bool frozen = g->first_block < trainer_phase(trainer, step)->first_block;
    return (OptimRate){
        .rate = (float)train_schedule_rate(&g->schedule, step),
        .active = !frozen && step >= g->schedule.first_step && step < g->schedule.end_step,
        .project = train_schedule_projects(trainer->config.project, step, trainer->config.steps),
    };
}

Status trainer_plan(Trainer *trainer, int side, NnPlan **out) {
    for (int i = 0; i < trainer->plan_count; i++) {
        if (trainer->plans[i].side != side) continue;
        *out = trainer->plans[i].plan;
        return STATUS_OK;
    }
    if (trainer->stream == NULL) destroy_plans(trainer);
    SidePlan *next = &trainer->plans[trainer->plan_count];
    NnPlanOptions options = {.batch = trainer->config.batch, .height = side, .width = side, .training = true};
    TRY(nn_plan_create(trainer->model, &options, &next->plan));
    next->side = side;
    trainer->plan_count++;
    *out = next->plan;
    return STATUS_OK;
}

const NnPlan *trainer_plan_at(const Trainer *trainer, int index, int *side) {
    if (index < trainer->plan_count) {
        *side = trainer->plans[index].side;
        return trainer->plans[index].plan;
    }
    *side = trainer->config.side;
    return index == trainer->plan_count && trainer->evaluation_owned ? trainer->evaluation : NULL;
}

Status trainer_wait(const Trainer *trainer, DeviceStream *stream, DeviceEvent *event) {
    if (stream == NULL) return STATUS_OK;
    if (trainer->config.allreduce != NULL) return allreduce_wait(trainer->config.allreduce, stream, event);
    return event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event);
}

size_t trainer_classes(const Trainer *trainer) {
    const NnModelDesc *desc = nn_model_desc(trainer->model);
    return (size_t)desc->nodes[desc->count - 1].out_channels;
}

/* On a GPU, where training plans are kept, one of them is reused if it is large enough. */
Status trainer_evaluation_plan(Trainer *trainer, NnPlan **out) {
    const TrainerConfig *config = &trainer->config;
    bool shared = false;
    for (int i = 0; i < config->phase_count && trainer->stream != NULL && config->test_batch <= config->batch; i++) {
        shared = shared || config->phases[i].side == config->side;
    }
    if (trainer->evaluation == NULL && shared) {
        TRY(trainer_plan(trainer, config->side, &trainer->evaluation));
    } else if (trainer->evaluation == NULL) {
        NnPlanOptions options = {.batch = config->test_batch, .height = config->side, .width = config->side};
        TRY(nn_plan_create(trainer->model, &options, &trainer->evaluation));
        trainer->evaluation_owned = true;
    }
    *out = trainer->evaluation;
    return STATUS_OK;
}

static size_t trainer_image_bytes(const Trainer *trainer, PixelType type) {
    size_t pixels = (size_t)trainer->config.side * (size_t)trainer->config.side * 3;
    return pixels * (type == PIXELS_U8 ? 1 : type == PIXELS_BF16 ? 2 : 4);
}

/* At most test_batch images from `first` on. */
static Status evaluate_part(Trainer *trainer, NnPlan *plan, const NnImages *images, int first, int count,
                            const TrainerView *view, size_t classes, float *logits) {
    NnImages seen = *images;
    seen.data = (const uint8_t *)images->data + (size_t)first * trainer_image_bytes(trainer, images->type);
    seen.mirror = view->mirror;
    seen.shift_y = view->dy;
    seen.shift_x = view->dx;
    TRY(nn_plan_evaluate(plan, &seen, count, trainer->view_logits));
    float *to = logits + (size_t)first * classes;
    for (size_t i = 0; i < (size_t)count * classes; i++) to[i] += view->weight * trainer->view_logits[i];
    return STATUS_OK;
}

Status trainer_evaluate(Trainer *trainer, const NnImages *images, int count, const TrainerView *views, int view_count,
                        float *logits) {
    size_t classes = trainer_classes(trainer), room = (size_t)trainer->config.test_batch * classes;
    NnPlan *plan;
    if (count < 0 || view_count < 1) {
        FAIL(STATUS_ARGUMENT, "an evaluation takes 0 or more images and at least one view, not %d and %d", count,
             view_count);
    }
    TRY(trainer_evaluation_plan(trainer, &plan));
    if (trainer->view_logits == NULL) TRY(memory_alloc(room, sizeof(float), &trainer->view_logits));
    memset(logits, 0, (size_t)count * classes * sizeof *logits);
    for (int first = 0; first < count; first += trainer->config.test_batch) {
        int here = count - first < trainer->config.test_batch ? count - first : trainer->config.test_batch;
        for (int v = 0; v < view_count; v++) {
            TRY(evaluate_part(trainer, plan, images, first, here, &views[v], classes, logits));
        }
    }
    return STATUS_OK;
}

int64_t trainer_steps_done(const Trainer *trainer) { return trainer->step; }

Status trainer_set_step(Trainer *trainer, int64_t step) {
    if (step < 0 || step > trainer->config.steps) {
        FAIL(STATUS_ARGUMENT, "step must be 0 to %lld, not %lld", (long long)trainer->config.steps, (long long)step);
    }
    trainer->step = step;
    return STATUS_OK;
}

float *trainer_buffer(Trainer *trainer, TrainerBuffer which, size_t *elems) {
    size_t parameters = nn_model_parameter_elems(trainer->model);
    if (which == TRAINER_MOMENTUM) {
        int64_t momenta;
        float *data = optim_momentum(trainer->optim, &momenta);
        *elems = (size_t)momenta;
        return data;
    }
    *elems = 0;
    if (trainer->slow == NULL) return NULL;
    *elems = which == TRAINER_SLOW_PARAMETERS ? parameters : nn_model_statistic_elems(trainer->model);
    return which == TRAINER_SLOW_PARAMETERS ? trainer->slow : trainer->slow + parameters;
}

/* Only the hash itself is copied back from the GPU. */
static Status hash_on_device(Trainer *trainer, const float *momentum, size_t momenta, uint64_t *out) {
    size_t parameters = nn_model_parameter_elems(trainer->model);
    if (trainer->hash == NULL) TRY(device_alloc(sizeof *trainer->hash, &trainer->hash));
    if (trainer->host_hash == NULL) TRY(device_host_alloc(sizeof *trainer->host_hash, &trainer->host_hash));
    TRY(device_fill(trainer->hash, 0, sizeof *trainer->hash, trainer->stream));
    TRY(train_fingerprint_add(nn_model_parameter_data(trainer->model), parameters, 0, trainer->hash, trainer->stream));
    TRY(train_fingerprint_add(momentum, momenta, parameters, trainer->hash, trainer->stream));
    TRY(device_copy(trainer->host_hash, trainer->hash, sizeof *trainer->hash, trainer->stream));
    TRY(trainer_wait(trainer, trainer->stream, NULL));
    *out = *trainer->host_hash;
    return STATUS_OK;
}

Status trainer_hash(Trainer *trainer, uint64_t *out) {
    size_t momenta, parameters = nn_model_parameter_elems(trainer->model);
    const float *momentum = trainer_buffer(trainer, TRAINER_MOMENTUM, &momenta);
    if (trainer->stream != NULL) return hash_on_device(trainer, momentum, momenta, out);
    uint64_t hash = hash_bytes(nn_model_parameter_data(trainer->model), parameters * sizeof(float), 0);
    *out = hash_bytes(momentum, momenta * sizeof(float), hash);
    return STATUS_OK;
}

double trainer_optimizer_flops(const Trainer *trainer) { return optim_step_flops(trainer->optim); }
