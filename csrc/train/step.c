/* The sequence of one step, and of many; averaging after steps. */
#include "train/step.h"

#define CHECK_EVERY 8

_Static_assert(STEP_MANY % CHECK_EVERY == 0, "work between steps must fall between graphs");

Status train_step_save_statistics(Trainer *trainer) {
    return trainer_copy(trainer, trainer->backup, nn_model_statistic_data(trainer->model),
                        nn_model_statistic_elems(trainer->model));
}

/* ---- averaging ---- */

/* The first average is the state before the first step. */
static Status begin_averaging(Trainer *trainer) {
    NnModel *model = trainer->model;
    size_t parameters = nn_model_parameter_elems(model);
    TRY(trainer_copy(trainer, trainer->slow, nn_model_parameter_data(model), parameters));
    return trainer_copy(trainer, trainer->slow + parameters, nn_model_statistic_data(model),
                        nn_model_statistic_elems(model));
}

static Status update_average(Trainer *trainer, float keep) {
    NnModel *model = trainer->model;
    size_t parameters = nn_model_parameter_elems(model), statistics = nn_model_statistic_elems(model);
    TRY(optim_lerp(trainer->optim, trainer->slow, nn_model_parameter_data(model), parameters, keep));
    TRY(optim_lerp(trainer->optim, trainer->slow + parameters, nn_model_statistic_data(model), statistics, keep));
    return train_step_save_statistics(trainer);
}

/* Averages if that is due after trainer->step steps. */
static Status average_when_due(Trainer *trainer) {
    const TrainerConfig *config = &trainer->config;
    if (trainer->slow == NULL) return STATUS_OK;
    if (trainer->step % config->lookahead_every == 0) {
        double share = (double)trainer->step / (double)config->steps;
        return update_average(trainer, (float)(config->lookahead_base * share * share * share));
    }
    return trainer->step == config->steps ? update_average(trainer, 1.0f) : STATUS_OK;
}

/* ---- a step ---- */

static Status gradients_complete(void *allreduce, size_t begin, size_t end) {
    return allreduce_told(allreduce, (int64_t)begin, (int64_t)end);
}

static Status exchange_gradients(Trainer *trainer, int first_block) {
    Allreduce *allreduce = trainer->config.allreduce;
    size_t elems = nn_model_gradient_elems(trainer->model, first_block);
    return allreduce_put(allreduce, nn_model_gradient_data(trainer->model), (int64_t)elems,
                         nn_model_stream(trainer->model));
}

static Status put_parts(Trainer *trainer, int number, const StepBatch *batch, bool exchange) {
    const TrainerConfig *config = &trainer->config;
    const TrainerPhase *phase = &config->phases[number];
    const StepBackend *backend = trainer->backend;
    exchange = exchange && config->allreduce != NULL;
    NnStepOptions options = {.label_smoothing = config->label_smoothing,
                             .reduction = config->reduction,
                             .first_block = phase->first_block,
                             .losses = batch->losses,
                             .hook = exchange ? gradients_complete : NULL,
                             .hook_context = config->allreduce,
                             .check = trainer->stream == NULL ? config->check : NULL,
                             .check_context = config->check_context};
    NnImages images = batch->images;
    NnPlan *plan;
    TRY(trainer_plan(trainer, phase->side, &plan));
    if (phase->side < config->side) {
        float *shrunk;
        TRY(backend->shrink(trainer, batch, phase->side, &shrunk));
        images.data = shrunk;
        images.type = PIXELS_F32;
        images.layout = PIXELS_NHWC;
    }
    Status status = nn_plan_step(plan, &images, batch->labels, batch->count, &options);
    ErrorRecord cause = *error_record();
    Status counted = backend->count(trainer, plan); /* even of a step that failed halfway: the totals must be cleared */
    if (status != STATUS_OK) return error_adopt(&cause);
    TRY(counted);
    if (exchange) TRY(exchange_gradients(trainer, phase->first_block));
    TRY(backend->update(trainer, number));
    return backend->close(trainer, batch);
}

Status train_step_put(Trainer *trainer, int phase, const StepBatch *batch, bool exchange) {
    Status status = put_parts(trainer, phase, batch, exchange);
    if (status == STATUS_OK) return STATUS_OK;
    ErrorRecord cause = *error_record();
    (void)trainer_copy(trainer, nn_model_statistic_data(trainer->model), trainer->backup,
                       nn_model_statistic_elems(trainer->model));
    return error_adopt(&cause);
}

/* ---- many ---- */

static int phase_at(const Trainer *trainer, int64_t step) {
    return (int)(trainer_phase(trainer, step) - trainer->config.phases);
}

/* The number of steps that are launched at once after `done` steps of a run. */
static int steps_at_once(const Trainer *trainer, const StepGraphs *graphs, int done, int steps) {
    int phase = phase_at(trainer, trainer->step);
    bool many = graphs != NULL && graphs[phase].many != NULL && done % STEP_MANY == 0 && steps - done >= STEP_MANY;
    return many && phase_at(trainer, trainer->step + STEP_MANY - 1) == phase ? STEP_MANY : 1;
}

static Status next_steps(Trainer *trainer, const StepSource *source, const StepGraphs *graphs, int count) {
    int phase = phase_at(trainer, trainer->step);
    DeviceGraph *one = graphs == NULL ? NULL : graphs[phase].one;
    StepBatch batch;
    if (count == STEP_MANY) return device_graph_launch(graphs[phase].many, trainer->stream);
    if (one == NULL || !source->recordable) TRY(source->next(source->context, &batch));
    return one == NULL ? train_step_put(trainer, phase, &batch, true) : device_graph_launch(one, trainer->stream);
}

static Status put_steps(Trainer *trainer, const StepSource *source, const StepGraphs *graphs, int steps, int *done) {
    const TrainerConfig *config = &trainer->config;
    while (*done < steps) {
        bool due = !source->recordable || *done % CHECK_EVERY == 0;
        if (config->check != NULL && due) TRY(config->check(config->check_context));
        int count = steps_at_once(trainer, graphs, *done, steps);
        bool recorded = graphs != NULL && graphs[phase_at(trainer, trainer->step)].one != NULL;
        TRY(next_steps(trainer, source, graphs, count));
        trainer->step += count;
        *done += count;
        TRY(average_when_due(trainer));
        TRY(trainer->backend->throttle(trainer, count, recorded));
    }
    return STATUS_OK;
}

Status train_steps_run(Trainer *trainer, const StepSource *source, const StepGraphs *graphs, int steps,
                       TrainerStep *out, float *losses, int *done) {
    int64_t first = trainer->step;
    *done = 0;
    if (trainer->config.allreduce != NULL) TRY(allreduce_set_call(trainer->config.allreduce, (uint32_t)first));
    TRY(trainer->backend->begin(trainer, source, steps, out));
    if (trainer->slow != NULL && first == 0) TRY(begin_averaging(trainer));
    TRY(train_step_save_statistics(trainer));
    Status status = put_steps(trainer, source, graphs, steps, done);
    ErrorRecord cause = *error_record();
    Status finished = trainer->backend->finish(trainer, first, *done, out, losses);
    if (finished != STATUS_OK) { /* the device or a rank is lost: it is unknown how many steps were done */
        trainer->step = first;
        *done = 0;
    }
    return status == STATUS_OK ? finished : error_adopt(&cause);
}
