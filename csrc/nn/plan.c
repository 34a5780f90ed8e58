/* A plan: the programs of one image size and their contexts, and the loop over their phases. */
#include <limits.h>

#include "base/memory.h"
#include "nn/private.h"

struct NnPlan {
    NnModel *model; /* borrowed until nn_plan_destroy */
    NnPlanOptions options;
    Program training, evaluation; /* embedded; evaluation always, training if requested */
    Context *train, *evaluate;    /* owned; train may be NULL, evaluate until it is first needed */
    bool profiled;                /* between nn_plan_profile_begin and nn_plan_profile_end */
    int count;                    /* images of the last forward pass */
};

/* For a training plan, this waits for the first evaluation: most of them never evaluate. */
static Status need_evaluation(NnPlan *plan) {
    const OpsTable *table = plan->model->table;
    if (plan->evaluate != NULL) return STATUS_OK;
    TRY(table->context_create(plan->model, &plan->evaluation, &plan->evaluate));
    return plan->profiled ? table->profile(plan->evaluate, NULL) : STATUS_OK;
}

Status nn_plan_create(NnModel *model, const NnPlanOptions *options, NnPlan **out) {
    Status status = STATUS_OK;
    NnPlan *plan = NULL;
    TRY(memory_calloc(1, sizeof *plan, &plan));
    plan->model = model;
    plan->options = *options;
    NnPlanOptions evaluation = *options;
    evaluation.keep_all = false;
    TRY_GOTO(nn_program_init(&plan->evaluation, model, &evaluation, false));
    if (options->training) {
        TRY_GOTO(nn_program_init(&plan->training, model, options, true));
        TRY_GOTO(model->table->context_create(model, &plan->training, &plan->train));
    } else {
        TRY_GOTO(need_evaluation(plan));
    }
    *out = plan;
    plan = NULL;
done:
    nn_plan_destroy(plan);
    return status;
}

void nn_plan_destroy(NnPlan *plan) {
    if (plan == NULL) return;
    plan->model->table->context_destroy(plan->train);
    plan->model->table->context_destroy(plan->evaluate);
    nn_program_fini(&plan->training);
    nn_program_fini(&plan->evaluation);
    memory_free(plan);
}

size_t nn_plan_arena_bytes(const NnPlan *plan) {
    size_t bytes = plan->evaluate == NULL ? 0 : plan->model->table->context_bytes(plan->evaluate);
    return plan->train == NULL ? bytes : bytes + plan->model->table->context_bytes(plan->train);
}

static Status check_training(const NnPlan *plan) {
    if (plan->train != NULL) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "this plan was made for evaluation only: make it with training = true");
}

static const NnNodeDesc *head_of(const NnPlan *plan) {
    const NnNodeDesc *last = &plan->model->desc.nodes[plan->model->desc.count - 1];
    return last->kind == NODE_HEAD ? last : NULL;
}

static Status check_head(const NnPlan *plan) {
    if (head_of(plan) != NULL) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "this network ends in node \"%s\", not in a head: it has no loss and no logits",
         plan->model->desc.nodes[plan->model->desc.count - 1].name);
}

static Status check_images(const NnPlan *plan, const NnImages *images, int count) {
    if (count < 1 || count > plan->options.batch) {
        FAIL(STATUS_ARGUMENT, "a batch of %d images, but this plan takes 1..%d", count, plan->options.batch);
    }
    if (images->shift_y < -4 || images->shift_y > 4 || images->shift_x < -4 || images->shift_x > 4 ||
        (images->shift_y != 0 && plan->options.height < 5) || (images->shift_x != 0 && plan->options.width < 5)) {
        FAIL(STATUS_ARGUMENT,
             "a shift of (%d, %d) pixels: it must be within -4..4, and images at least 5 pixels in that direction",
             images->shift_y, images->shift_x);
    }
    for (int c = 0; images->type == PIXELS_U8 && c < plan->model->desc.image_channels; c++) {
        if (!(images->std[c] > 0)) {
            FAIL(STATUS_ARGUMENT, "std[%d] is %g, but must be positive", c, (double)images->std[c]);
        }
    }
    return STATUS_OK;
}

static Status check_step(const NnPlan *plan, const int64_t *labels, int count, const NnStepOptions *options) {
    int classes = head_of(plan)->out_channels;
    if (!(options->label_smoothing >= 0 && options->label_smoothing <= 1)) {
        FAIL(STATUS_ARGUMENT, "label_smoothing is %g, but must be within 0..1", options->label_smoothing);
    }
    for (int i = 0; labels != NULL && i < count; i++) {
        if (labels[i] < 0 || labels[i] >= classes) {
            return error_at_sample(error_fail(STATUS_ARGUMENT,
                                              "label %lld of image %d of the batch is not within 0..%d",
                                              (long long)labels[i], i, classes - 1),
                                   i);
        }
    }
    return STATUS_OK;
}

/* Runs the phases of one half, and calls the hook for each new range of complete gradients. */
static Status run_phases(NnPlan *plan, const Job *job, bool backward) {
    const OpsTable *table = plan->model->table;
    const NnStepOptions *options = job->options;
    size_t reported = 0, wanted = nn_model_gradient_elems(plan->model, options->first_block);
    for (int i = 0; i < plan->training.phase_count; i++) {
        const Phase *phase = &plan->training.phases[i];
        if (phase->backward != backward) continue;
        if (options->check != NULL) TRY(options->check(options->check_context));
        TRY(table->run(plan->train, job, phase));
        size_t complete = phase->gradient_end < wanted ? phase->gradient_end : wanted;
        if (options->hook == NULL || complete <= reported) continue;
        TRY(options->hook(options->hook_context, reported, complete));
        reported = complete;
    }
    return STATUS_OK;
}

Status nn_plan_step(NnPlan *plan, const NnImages *images, const int64_t *labels, int count,
                    const NnStepOptions *options) {
    TRY(check_training(plan));
    TRY(check_head(plan));
    TRY(check_images(plan, images, count));
    TRY(check_step(plan, images->on_device ? NULL : labels, count, options));
    const Job job = {.images = images, .labels = labels, .count = count, .options = options};
    plan->count = count;
    TRY(plan->model->table->begin(plan->train, &job));
    TRY(run_phases(plan, &job, false));
    return run_phases(plan, &job, true);
}

Status nn_plan_take_totals(NnPlan *plan, NnStepTotals *out) {
    TRY(check_training(plan));
    return plan->model->table->take_totals(plan->train, out);
}

Status nn_plan_store_totals(NnPlan *plan, NnStepTotals *to, const int32_t *index) {
    TRY(check_training(plan));
    if (plan->model->table->store_totals == NULL) FAIL(STATUS_ARGUMENT, "totals can be stored only on a GPU");
    return plan->model->table->store_totals(plan->train, to, index);
}

Status nn_plan_evaluate(NnPlan *plan, const NnImages *images, int count, float *logits) {
    TRY(check_head(plan));
    TRY(check_images(plan, images, count));
    TRY(need_evaluation(plan));
    const Job job = {.images = images, .count = count, .logits = logits};
    TRY(plan->model->table->begin(plan->evaluate, &job));
    for (int i = 0; i < plan->evaluation.phase_count; i++) {
        TRY(plan->model->table->run(plan->evaluate, &job, &plan->evaluation.phases[i]));
    }
    return STATUS_OK;
}

static Status check_kept(const NnPlan *plan) {
    TRY(check_training(plan));
    if (plan->options.keep_all) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "this plan does not keep its intermediate tensors: make it with keep_all = true");
}

Status nn_plan_forward(NnPlan *plan, const NnImages *images, int count) {
    static const NnStepOptions options = {0};
    TRY(check_kept(plan));
    TRY(check_images(plan, images, count));
    if (head_of(plan) != NULL) FAIL(STATUS_ARGUMENT, "this network has a head: use plan_step");
    const Job job = {.images = images, .count = count, .options = &options};
    plan->count = count;
    TRY(plan->model->table->begin(plan->train, &job));
    return run_phases(plan, &job, false);
}

Status nn_plan_backward(NnPlan *plan, const float *output_gradient, int count, int first_block) {
    const NnStepOptions options = {.first_block = first_block};
    TRY(check_kept(plan));
    if (head_of(plan) != NULL) FAIL(STATUS_ARGUMENT, "this network has a head: use plan_step");
    if (plan->count == 0 || plan->count != count) {
        FAIL(STATUS_ARGUMENT, "a gradient of %d images, but the last forward pass had %d", count, plan->count);
    }
    const Job job = {.count = plan->count, .options = &options};
    const Op *last = &plan->training.ops[plan->training.op_count - 1];
    TRY(plan->model->table->write(plan->train, last->output_gradient, plan->count, output_gradient));
    return run_phases(plan, &job, true);
}

Status nn_plan_profile_begin(NnPlan *plan) {
    if (plan->train != NULL) TRY(plan->model->table->profile(plan->train, NULL));
    if (plan->evaluate != NULL) TRY(plan->model->table->profile(plan->evaluate, NULL));
    plan->profiled = true;
    return STATUS_OK;
}

static Status read_profile(const NnPlan *plan, const Program *program, Context *context, NnPassTime *times,
                           int *count) {
    double seconds[NN_MAX_PASSES];
    TRY(plan->model->table->profile(context, seconds));
    for (int i = 0; i < program->pass_count && *count < NN_MAX_PASSES; i++) {
        const Pass *pass = &program->passes[i];
        times[(*count)++] = (NnPassTime){nn_pass_name(pass->kind), pass->op, seconds[i]};
    }
    return STATUS_OK;
}

Status nn_plan_profile_end(NnPlan *plan, NnPassTime *times, int *count) {
    *count = 0;
    plan->profiled = false;
    if (plan->train != NULL) TRY(read_profile(plan, &plan->training, plan->train, times, count));
    return plan->evaluate == NULL ? STATUS_OK : read_profile(plan, &plan->evaluation, plan->evaluate, times, count);
}

static void read_algorithms(const NnPlan *plan, const Program *program, const Context *context, NnPassAlgorithm *to,
                            int *count) {
    for (int i = 0; i < program->pass_count && *count < NN_MAX_PASSES; i++) {
        const Pass *pass = &program->passes[i];
        NnAlgorithm algorithm = {0};
        if (!plan->model->table->algorithm(context, pass, &algorithm)) continue;
        to[(*count)++] = (NnPassAlgorithm){nn_pass_name(pass->kind), pass->op, context == plan->evaluate, algorithm};
    }
}

void nn_plan_algorithms(const NnPlan *plan, NnPassAlgorithm *algorithms, int *count) {
    *count = 0;
    if (plan->train != NULL) read_algorithms(plan, &plan->training, plan->train, algorithms, count);
    if (plan->evaluate != NULL) read_algorithms(plan, &plan->evaluation, plan->evaluate, algorithms, count);
}

void nn_plan_library(const NnPlan *plan, NnPlanLibrary *out) {
    *out = (NnPlanLibrary){0};
    plan->model->table->library(plan->train == NULL ? plan->evaluate : plan->train, out);
}

int nn_plan_batch(const NnPlan *plan) { return plan->options.batch; }

static Status find_tensor(const NnPlan *plan, int node, NnPlanTensor tensor, int *out) {
    const Program *program = plan->train == NULL ? &plan->evaluation : &plan->training;
    if (node < -1 || node >= program->op_count) {
        FAIL(STATUS_INDEX, "there is no node %d: nodes are -1 (the images) .. %d", node, program->op_count - 1);
    }
    const Op *op = &program->ops[node < 0 ? 0 : node];
    int found = node < 0 && tensor == TENSOR_OUTPUT ? op->input
                : node < 0                          ? -1
                : tensor == TENSOR_OUTPUT           ? op->output
                                                    : op->output_gradient;
    if (found < 0) FAIL(STATUS_ARGUMENT, "node %d has no such tensor", node);
    *out = found;
    return STATUS_OK;
}

int nn_plan_count(const NnPlan *plan) { return plan->count; }

Status nn_plan_shape(const NnPlan *plan, int node, int64_t shape[3]) {
    const Program *program = plan->train == NULL ? &plan->evaluation : &plan->training;
    int found = -1;
    TRY(find_tensor(plan, node, TENSOR_OUTPUT, &found));
    shape[0] = program->tensors[found].height;
    shape[1] = program->tensors[found].width;
    shape[2] = program->tensors[found].channels;
    return STATUS_OK;
}

Status nn_plan_read(NnPlan *plan, int node, NnPlanTensor tensor, float *to) {
    int found = -1;
    TRY(check_kept(plan));
    if (plan->count == 0) FAIL(STATUS_ARGUMENT, "nothing to read yet: call plan_forward or plan_step first");
    TRY(find_tensor(plan, node, tensor, &found));
    return plan->model->table->read(plan->train, found, plan->count, to);
}
