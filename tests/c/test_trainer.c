// rooms: base device augment optim nn train
/* The trainer over a network made for the test: two layers, whose gradients are the mean pixel of the batch. So every
 * update can be worked out by hand. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "check.h"
#include "odd_gemm.h"
#include "train/step.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* what stands in for a function needs few of its arguments */

/* --- the network ------------------------------------------------------------------------------------------------ */

#define ELEMS 32 /* head 16, filters 16 */

struct NnModel {
    float parameters[ELEMS], gradients[ELEMS], statistics[2];
    Pool *pool;
};

struct NnPlan {
    NnModel *model;
    int side;
    NnStepTotals totals;
};

static const NnLayer layers[2] = {
    {.name = "head.weight",
     .kind = LAYER_LINEAR,
     .node = 1,
     .block = 1,
     .trained = true,
     .ndim = 2,
     .shape = {2, 8},
     .offset = 0,
     .elems = 16},
    {.name = "conv.weight",
     .kind = LAYER_FILTERS,
     .node = 0,
     .block = 0,
     .trained = true,
     .ndim = 4,
     .shape = {4, 1, 1, 4},
     .offset = 16,
     .elems = 16},
};
static const NnModelDesc desc = {
    .image_channels = 3,
    .count = 2,
    .nodes = {{.kind = NODE_CONV, .kernel = 3, .stride = 1, .padding = 1, .out_channels = 8},
              {.kind = NODE_HEAD, .out_channels = 2}},
};
static int plans_made, plans_alive;

const NnModelDesc *nn_model_desc(const NnModel *model) { return &desc; }
Pool *nn_model_pool(const NnModel *model) { return model->pool; }
DeviceStream *nn_model_stream(const NnModel *model) { return NULL; }
const NnLayer *nn_model_layers(const NnModel *model, int *count) {
    *count = 2;
    return layers;
}
float *nn_model_parameter_data(NnModel *model) { return model->parameters; }
float *nn_model_gradient_data(NnModel *model) { return model->gradients; }
float *nn_model_statistic_data(NnModel *model) { return model->statistics; }
size_t nn_model_parameter_elems(const NnModel *model) { return ELEMS; }
size_t nn_model_statistic_elems(const NnModel *model) { return 2; }
Status nn_model_write(NnModel *model, float *buffer, size_t offset, const float *from, size_t elems) {
    memcpy(buffer + offset, from, elems * sizeof *from);
    return STATUS_OK;
}
Status nn_model_read(NnModel *model, const float *buffer, size_t offset, float *to, size_t elems) {
    memcpy(to, buffer + offset, elems * sizeof *to);
    return STATUS_OK;
}
size_t nn_model_gradient_elems(const NnModel *model, int first_block) { return first_block == 0 ? ELEMS : 16; }

Status nn_plan_create(NnModel *model, const NnPlanOptions *options, NnPlan **out) {
    TRY(memory_calloc(1, sizeof **out, out));
    (*out)->model = model;
    (*out)->side = options->height;
    plans_made++;
    plans_alive++;
    return STATUS_OK;
}

void nn_plan_destroy(NnPlan *plan) {
    plans_alive -= plan != NULL;
    memory_free(plan);
}

static float mean_pixel(const NnImages *images, int side, int count) {
    double sum = 0;
    for (int i = 0; i < count * side * side * 3; i++) sum += (double)((const float *)images->data)[i];
    return (float)(sum / (count * side * side * 3));
}

static int checks_until_failure = -1;
static double loss_instead; /* 0: the sum of the pixels' means */

static Status check_fails(void *context) {
    if (checks_until_failure < 0 || checks_until_failure-- > 0) return STATUS_OK;
    FAIL(STATUS_INTERRUPTED, "interrupted");
}

/* Gradients: the mean pixel, the second layer's only when its block is trained; statistics: + 1 and + the mean. */
Status nn_plan_step(NnPlan *plan, const NnImages *images, const int64_t *labels, int count,
                    const NnStepOptions *options) {
    float mean = mean_pixel(images, plan->side, count);
    for (int i = 0; i < (options->first_block == 0 ? ELEMS : 16); i++) plan->model->gradients[i] = mean;
    plan->model->statistics[0] += 1;
    plan->model->statistics[1] += mean;
    plan->totals = (NnStepTotals){loss_instead != 0 ? loss_instead : (double)mean * count, 1, count};
    return options->check == NULL ? STATUS_OK : options->check(options->check_context);
}

Status nn_plan_take_totals(NnPlan *plan, NnStepTotals *out) {
    *out = plan->totals;
    plan->totals = (NnStepTotals){0};
    return STATUS_OK;
}

Status nn_plan_store_totals(NnPlan *plan, NnStepTotals *to, const int32_t *index) {
    to[*index] = plan->totals;
    return STATUS_OK;
}

/* Logits: the first pixel, and a number that names the view. */
Status nn_plan_evaluate(NnPlan *plan, const NnImages *images, int count, float *logits) {
    for (int i = 0; i < count; i++) {
        logits[2 * i] = ((const float *)images->data)[i * plan->side * plan->side * 3];
        logits[2 * i + 1] = (float)(100 * images->mirror + 10 * images->shift_y + images->shift_x);
    }
    return STATUS_OK;
}

/* --- the tests -------------------------------------------------------------------------------------------------- */

static TrainerConfig config_of(void) {
    TrainerConfig config = {.group_count = 2,
                            .phases = {{.first_step = 0, .side = 4, .first_block = 0}},
                            .phase_count = 1,
                            .steps = 10,
                            .side = 4,
                            .batch = 2,
                            .test_batch = 2};
    config.groups[0] = (TrainerGroup){.rule = {.rule = OPTIM_SGD},
                                      .schedule = {.base = 0.5, .end_step = 10},
                                      .kinds = 1u << LAYER_LINEAR,
                                      .end_block = 9,
                                      .first_block = 1};
    config.groups[1] = config.groups[0];
    config.groups[1].kinds = 1u << LAYER_FILTERS;
    config.groups[1].first_block = 0;
    config.groups[1].end_block = 1;
    config.groups[1].schedule.base = 0.25;
    return config;
}

/* Of the current test, between begin and end. */
static NnModel model;
static TrainerConfig config;
static Trainer *trainer;
static TrainerStep out;

static void begin(void) {
    model = (NnModel){0};
    config = config_of();
    CHECK_OK(pool_create(2, &model.pool));
}

static void start(void) { CHECK_OK(trainer_create(&config, &model, &trainer)); }

static void stop(void) {
    trainer_destroy(trainer);
    trainer = NULL;
}

static void end(void) {
    stop();
    pool_destroy(model.pool);
}

static Status next_given(void *context, StepBatch *out) {
    *out = *(const StepBatch *)context;
    return STATUS_OK;
}

static Status step_on(const NnImages *images) {
    static const int64_t labels[2] = {0, 1};
    StepBatch batch = {*images, labels, NULL, 2};
    const StepSource source = {.next = next_given, .context = &batch};
    int done = 0;
    Status status = train_steps_run(trainer, &source, NULL, 1, &out, NULL, &done);
    CHECK(done == (status == STATUS_OK));
    return status;
}

static Status step_with(float pixel) {
    float data[2 * 16 * 3];
    for (int i = 0; i < 96; i++) data[i] = pixel;
    NnImages images = {.data = data, .type = PIXELS_F32, .layout = PIXELS_NHWC};
    return step_on(&images);
}

static void test_steps(void) {
    begin();
    config.groups[1].schedule.end_step = 1;
    start();
    CHECK_OK(step_with(1.0f));
    CHECK(out.step == 0 && out.loss == 2.0 && out.images == 2 && out.correct == 1 && !out.skipped && out.side == 4);
    CHECK(model.parameters[0] == -0.5f && model.parameters[16] == -0.25f);
    CHECK_OK(step_with(2.0f));
    CHECK(model.parameters[0] == -1.5f && model.parameters[16] == -0.25f);
    CHECK(trainer_steps_done(trainer) == 2 && model.statistics[0] == 2);
    for (int i = 2; i < 10; i++) CHECK_OK(step_with(0.0f));
    end();
}

/* Where a phase shrinks the images. */
static void test_images_that_cannot_be_shrunk(void) {
    begin();
    const float data[2 * 16 * 3] = {0};
    const NnImages good = {.data = data, .type = PIXELS_F32, .layout = PIXELS_NHWC};
    NnImages bad[4] = {good, good, good, good};
    bad[0].mirror = true;
    bad[1].shift_y = 1;
    bad[2].shift_x = -1;
    bad[3].type = PIXELS_BF16;
    config.phases[0].side = 2;
    start();
    for (int i = 0; i < 4; i++) {
        CHECK(step_on(&bad[i]) == STATUS_ARGUMENT);
        CHECK(strstr(error_record()->message, "shrunk") != NULL && trainer_steps_done(trainer) == 0);
    }
    CHECK_OK(step_on(&good));
    end();
}

static void test_skipping(void) {
    begin();
    start();
    CHECK_OK(step_with(1.0f));
    NnModel before = model;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        CHECK_OK(step_with(bad[i]));
        CHECK(out.skipped && trainer_steps_done(trainer) == 2 + i);
        CHECK(memcmp(before.parameters, model.parameters, sizeof model.parameters) == 0);
        CHECK(memcmp(before.statistics, model.statistics, sizeof model.statistics) == 0);
    }
    CHECK_OK(step_with(1.0f));
    CHECK(!out.skipped && model.parameters[0] == -1.0f);
    end();
}

/* An exchange that only looks, doubles the gradients, or fails. */
struct Allreduce {
    float first, factor;
    uint32_t call;
    int64_t elems;
    bool fails;
};

Status allreduce_set_call(Allreduce *allreduce, uint32_t call) {
    allreduce->call = call;
    return STATUS_OK;
}

Status allreduce_told(Allreduce *allreduce, int64_t begin, int64_t end) {
    CHECK(begin < end);
    return STATUS_OK;
}

Status allreduce_wait(Allreduce *allreduce, DeviceStream *stream, DeviceEvent *event) {
    return event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event);
}

Status allreduce_put(Allreduce *allreduce, void *buffer, int64_t elems, DeviceStream *stream) {
    float *gradients = buffer;
    if (allreduce->fails) FAIL(STATUS_PEER_LOST, "rank 1 died");
    allreduce->first = gradients[0];
    allreduce->elems = elems;
    for (int64_t i = 0; i < elems; i++) gradients[i] *= allreduce->factor;
    return STATUS_OK;
}

/* Its gradients are finite, so the other ranks would not know: they hear of it through a gradient. */
static void test_a_bad_loss_with_good_gradients(void) {
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        Allreduce exchange = {.factor = 1};
        begin();
        if (i >= 3) config.allreduce = &exchange;
        start();
        loss_instead = bad[i % 3];
        CHECK_OK(step_with(1.0f));
        loss_instead = 0;
        CHECK(out.skipped && model.parameters[0] == 0 && model.statistics[0] == 0);
        CHECK(i < 3 || isnan(exchange.first));
        CHECK_OK(step_with(1.0f));
        CHECK(!out.skipped && model.parameters[0] == -0.5f && (i < 3 || exchange.first == 1.0f));
        end();
    }
}

/* Frozen blocks keep stale gradients: they must not count, even when they are not finite. */
static void test_phases(void) {
    begin();
    config.phase_count = 2;
    config.phases[0] = (TrainerPhase){.first_step = 0, .side = 2, .first_block = 0};
    config.phases[1] = (TrainerPhase){.first_step = 2, .side = 4, .first_block = 1};
    plans_made = 0;
    start();
    CHECK_OK(step_with(1.0f));
    CHECK(out.side == 2);
    CHECK_OK(step_with(NAN));
    CHECK(out.skipped && plans_made == 1);
    CHECK_OK(step_with(1.0f));
    CHECK(!out.skipped && out.side == 4 && plans_made == 2 && plans_alive == 1);
    CHECK(model.parameters[0] == -1.0f && model.parameters[16] == -0.25f);
    CHECK_OK(trainer_set_step(trainer, 1));
    CHECK_OK(step_with(1.0f));
    CHECK(out.side == 2 && model.parameters[16] == -0.5f);
    stop();
    config.phases[1].first_step = 0; /* a phase may have no steps */
    start();
    CHECK_OK(step_with(1.0f));
    CHECK(out.side == 4);
    stop();
    CHECK(plans_alive == 0);
    end();
}

static void test_exchange(void) {
    begin();
    Allreduce exchange = {.factor = 2, .call = 9};
    config.allreduce = &exchange;
    config.phase_count = 2;
    config.phases[1] = (TrainerPhase){.first_step = 1, .side = 4, .first_block = 1};
    start();
    CHECK_OK(step_with(1.0f));
    CHECK(exchange.call == 0 && exchange.elems == ELEMS && model.parameters[0] == -1.0f &&
          model.parameters[16] == -0.5f);
    CHECK_OK(step_with(1.0f));
    CHECK(exchange.call == 1 && exchange.elems == 16 && model.parameters[0] == -2.0f && model.parameters[16] == -0.5f);
    stop();
    exchange.fails = true;
    start();
    CHECK(step_with(1.0f) == STATUS_PEER_LOST);
    CHECK(trainer_steps_done(trainer) == 0);
    end();
}

static void test_interruption(void) {
    begin();
    config.check = check_fails;
    start();
    CHECK_OK(step_with(1.0f));
    NnModel before = model;
    checks_until_failure = 0;
    CHECK(step_with(1.0f) == STATUS_INTERRUPTED);
    CHECK(strcmp(error_record()->message, "interrupted") == 0);
    CHECK(trainer_steps_done(trainer) == 1);
    CHECK(memcmp(before.parameters, model.parameters, sizeof model.parameters) == 0);
    CHECK(memcmp(before.statistics, model.statistics, sizeof model.statistics) == 0);
    CHECK_OK(step_with(1.0f));
    CHECK(out.step == 1 && out.loss == 2.0 && out.images == 2 && model.parameters[0] == -1.0f);
    end();
}

/* slow = d slow + (1 - d) p every 2 steps, d = 0.5 (k / 5)^3; after the last step p = slow. */
static void test_averaging(void) {
    begin();
    config.steps = 5;
    config.lookahead_every = 2;
    config.lookahead_base = 0.5;
    start();
    double p = 0, slow = 0;
    for (int k = 1; k <= 5; k++) {
        CHECK_OK(step_with(1.0f));
        p -= 0.5;
        if (k % 2 == 0) {
            double d = 0.5 * pow(k / 5.0, 3);
            p = slow = d * slow + (1 - d) * p;
        }
        if (k == 5) p = slow;
        CHECK(fabs((double)model.parameters[3] - p) < 1e-6);
    }
    CHECK(model.statistics[0] > 2 && model.statistics[0] < 4);
    size_t elems;
    CHECK(trainer_buffer(trainer, TRAINER_SLOW_PARAMETERS, &elems) != NULL && elems == ELEMS);
    CHECK(trainer_buffer(trainer, TRAINER_SLOW_STATISTICS, &elems) != NULL && elems == 2);
    end();
}

static void test_views(void) {
    begin();
    float data[5 * 48] = {0}, logits[10];
    const TrainerView views[2] = {{1, 2, false, 0.5f}, {-1, 3, true, 0.25f}};
    for (int i = 0; i < 5; i++) data[i * 48] = (float)(i + 1);
    NnImages images = {.data = data, .type = PIXELS_F32, .layout = PIXELS_NHWC};
    start();
    CHECK_OK(trainer_evaluate(trainer, &images, 5, views, 2, logits));
    for (int i = 0; i < 5; i++) {
        CHECK(logits[2 * i] == 0.75f * (float)(i + 1));
        CHECK(logits[2 * i + 1] == 0.5f * 12 + 0.25f * (100 - 10 + 3));
    }
    CHECK_OK(trainer_evaluate(trainer, &images, 0, views, 2, logits));
    end();
}

/* The current settings are refused, for this reason. */
static void check_refused(const char *why) {
    CHECK(trainer_create(&config, &model, &trainer) == STATUS_ARGUMENT && trainer == NULL);
    CHECK(strstr(error_record()->message, why) != NULL);
}

static void test_refusals(void) {
    begin();
    config.group_count = 1;
    check_refused("conv.weight does not belong to any group");
    config = config_of();
    config.groups[1].kinds |= 1u << LAYER_LINEAR;
    config.groups[1].end_block = 2;
    check_refused("belongs to both group 0 and group 1");
    config.phases[0].first_block = 1;
    check_refused("below and above block 1");
    config = config_of();
    config.steps = (int64_t)INT32_MAX + 1;
    check_refused("2147483648 steps are too many");
    config = config_of();
    config.phases[0].side = 5;
    check_refused("");
    config = config_of();
    config.groups[0].schedule = (Schedule){.base = 1, .points = {{5, 1}, {4, 1}}, .count = 2};
    check_refused("");
    config = config_of();
    start();
    CHECK(trainer_set_step(trainer, 11) == STATUS_ARGUMENT);
    end();
}

int main(void) {
    test_steps();
    test_skipping();
    test_a_bad_loss_with_good_gradients();
    test_phases();
    test_exchange();
    test_interruption();
    test_averaging();
    test_views();
    test_refusals();
    test_images_that_cannot_be_shrunk();
    return check_result();
}
