/* What a Trainer is made of, parsed from dicts that cgxffcv/train/trainer.py makes. */
#include "python/allreduce.h"
#include "python/arguments.h"
#include "python/spec.h"
#include "python/train.h"
#include "python/trainer.h"

static int parse_point(PyObject *item, void *out) {
    SchedulePoint *point = out;
    return py_arguments_unpack(item, "dd;a point must be a tuple (step, factor)", &point->step, &point->factor);
}

static int parse_points(PyObject *value, void *out) {
    Schedule *schedule = out;
    schedule->count = py_arguments_fill(value, "points of a schedule", 0, SCHEDULE_MAX_POINTS, parse_point,
                                        schedule->points, sizeof *schedule->points);
    return schedule->count < 0 ? -1 : 0;
}

static int parse_layer_kind(PyObject *item, void *out) {
    *(int *)out = py_spec_name(item, "a kind of layers", nn_layer_kind_name);
    return *(int *)out < 0 ? -1 : 0;
}

static int parse_kinds(PyObject *value, void *out) {
    int kinds[TRAINER_MAX_KINDS];
    int count =
        py_arguments_fill(value, "kinds of layers", 0, TRAINER_MAX_KINDS, parse_layer_kind, kinds, sizeof *kinds);
    unsigned mask = 0;
    for (int i = 0; i < count; i++) mask |= 1u << kinds[i];
    *(unsigned *)out = mask;
    return count < 0 ? -1 : 0;
}

static const SpecTable group_table = {
    "group",
    {SPEC_PARSE(TrainerGroup, rule, py_train_parse_rule), SPEC_KEY(TrainerGroup, schedule.base, "base"),
     SPEC_PARSE_KEY(TrainerGroup, schedule, "points", parse_points),
     SPEC_KEY(TrainerGroup, schedule.first_step, "first_step"), SPEC_KEY(TrainerGroup, schedule.end_step, "end_step"),
     SPEC_PARSE(TrainerGroup, kinds, parse_kinds), SPEC_MEMBER(TrainerGroup, first_block),
     SPEC_MEMBER(TrainerGroup, end_block)}};

static const SpecTable phase_table = {
    "phase",
    {SPEC_MEMBER(TrainerPhase, first_step), SPEC_MEMBER(TrainerPhase, side), SPEC_MEMBER(TrainerPhase, first_block)}};

static int parse_group(PyObject *item, void *group) { return py_spec_fill(&group_table, item, NULL, group); }
static int parse_phase(PyObject *item, void *phase) { return py_spec_fill(&phase_table, item, NULL, phase); }

static int parse_groups(PyObject *value, void *out) {
    TrainerConfig *config = &((TrainerSettings *)out)->config;
    config->group_count =
        py_arguments_fill(value, "groups", 1, TRAINER_MAX_GROUPS, parse_group, config->groups, sizeof *config->groups);
    return config->group_count < 0 ? -1 : 0;
}

static int parse_phases(PyObject *value, void *out) {
    TrainerConfig *config = &((TrainerSettings *)out)->config;
    config->phase_count =
        py_arguments_fill(value, "phases", 0, TRAINER_MAX_PHASES, parse_phase, config->phases, sizeof *config->phases);
    return config->phase_count < 0 ? -1 : 0;
}

static int parse_mean(PyObject *value, void *mean) { return py_arguments_floats(value, "values of mean", 3, mean); }
static int parse_std(PyObject *value, void *std) { return py_arguments_floats(value, "values of std", 3, std); }

#define CONFIG(member) SPEC_KEY(TrainerSettings, config.member, #member)

static const SpecTable settings_table = {
    "Trainer",
    {SPEC_WHOLE("groups", parse_groups), SPEC_WHOLE("phases", parse_phases), CONFIG(steps), CONFIG(side), CONFIG(batch),
     CONFIG(test_batch), SPEC_PARSE(TrainerSettings, mean, parse_mean), SPEC_PARSE(TrainerSettings, std, parse_std),
     CONFIG(label_smoothing), SPEC_ENUM_KEY(TrainerSettings, config.reduction, "loss", nn_reduction_name),
     SPEC_ENUM_KEY(TrainerSettings, config.project, "project", train_schedule_project_name), CONFIG(lookahead_every),
     CONFIG(lookahead_base)}};

int py_trainer_parse_settings(PyObject *keywords, TrainerSettings *out) {
    *out = (TrainerSettings){0};
    return py_spec_fill(&settings_table, keywords, NULL, out);
}

/* Pairs (layer name, bits). */
static int parse_layer_bits(PyObject *value, void *out) {
    TrainerReduction *reduction = out;
    PyObject *tuple = py_arguments_tuple(value, "layers with bits of their own", 0, TRAINER_MAX_LAYER_BITS);
    if (tuple == NULL) return -1;
    int result = PyList_Append(reduction->keep, tuple);
    reduction->layer_count = (int)PyTuple_GET_SIZE(tuple);
    for (int i = 0; i < reduction->layer_count && result == 0; i++) {
        reduction->layers[i].bucket_size = 0;
        result = py_arguments_unpack(PyTuple_GET_ITEM(tuple, i), "si;a layer must be a tuple (name, bits)",
                                     &reduction->layers[i].name, &reduction->layers[i].bits);
    }
    Py_DECREF(tuple);
    return result;
}

static int parse_costs(PyObject *object, void *out) {
    TrainerReduction *reduction = out;
    int given = py_allreduce_parse_costs(object, &reduction->costs);
    if (given > 0) reduction->options.costs = &reduction->costs;
    return given < 0 ? -1 : 0;
}

#define OPTION(member) SPEC_KEY(TrainerReduction, options.member, #member)
#define CHOICE(member, names) SPEC_ENUM_KEY(TrainerReduction, options.member, #member, names)

static const SpecTable reduction_table = {
    "reduction",
    {OPTION(bits), OPTION(bucket_size), OPTION(layer_min_size), CHOICE(algorithm, allreduce_algorithm_name),
     CHOICE(codec, quantize_codec_name), CHOICE(rounding, quantize_rounding_name),
     SPEC_PARSE_KEY(TrainerReduction, options.error_feedback, "error_feedback", py_allreduce_parse_feedback),
     OPTION(seed), OPTION(threads), SPEC_WHOLE("layers", parse_layer_bits), SPEC_WHOLE("costs", parse_costs)}};

int py_trainer_parse_reduction(PyObject *dict, TrainerReduction *out) {
    out->options = allreduce_defaults();
    return py_spec_fill(&reduction_table, dict, out->keep, out);
}
