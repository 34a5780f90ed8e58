/* The optimizer: checks and copies its description, and dispatches to the implementation for its kind of memory. */
#include "optim/optim.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/names.h"
#include "optim/private.h"

struct Optim {
    OptimSpec spec;
    const OptimTable *table;
    OptimState *state; /* owned */
};

NAMES_DEFINE(optim_rule_name, "sgd", "nesterov", "muon")

static Status check_group(const OptimGroup *group, int index) {
    if (group->rule < OPTIM_SGD || group->rule > OPTIM_MUON) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: unknown rule %d", index, (int)group->rule);
    }
    if (!(group->momentum >= 0 && group->momentum < 1)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: momentum must be in [0, 1), not %g", index, (double)group->momentum);
    }
    if (!(group->decay >= 0) || isinf(group->decay)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: weight decay must be 0 or more, not %g", index,
             (double)group->decay);
    }
    if (group->rule == OPTIM_MUON && (group->iterations < 1 || group->iterations > 20)) {
        FAIL(STATUS_ARGUMENT, "optimizer group %d: Newton-Schulz iterations must be 1 to 20, not %d", index,
             group->iterations);
    }
    return STATUS_OK;
}

static Status check(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count) {
    if (group_count < 1 || tensor_count < 1) {
        FAIL(STATUS_ARGUMENT, "an optimizer needs at least one group and one tensor, not %d and %d", group_count,
             tensor_count);
    }
    if (group_count > OPTIM_MAX_GROUPS) {
        FAIL(STATUS_ARGUMENT, "an optimizer has at most %d groups, not %d", OPTIM_MAX_GROUPS, group_count);
    }
    for (int i = 0; i < group_count; i++) TRY(check_group(&groups[i], i));
    for (int i = 0; i < tensor_count; i++) {
        if (tensors[i].group < 0 || tensors[i].group >= group_count) {
            FAIL(STATUS_ARGUMENT, "optimizer tensor %d: group must be 0 to %d, not %d", i, group_count - 1,
                 tensors[i].group);
        }
        if (tensors[i].rows < 1 || tensors[i].columns < 1 || tensors[i].rows > INT64_MAX / 8 / tensors[i].columns) {
            FAIL(STATUS_ARGUMENT, "optimizer tensor %d: impossible size %lld x %lld", i, (long long)tensors[i].rows,
                 (long long)tensors[i].columns);
        }
    }
    return STATUS_OK;
}

static Status copy_spec(OptimSpec *spec, const OptimGroup *groups, int group_count, const OptimTensor *tensors,
                        int tensor_count) {
    TRY(memory_calloc((size_t)group_count, sizeof *groups, &spec->groups));
    TRY(memory_calloc((size_t)tensor_count, sizeof *tensors, &spec->tensors));
    TRY(memory_calloc((size_t)tensor_count + 1, sizeof *spec->offsets, &spec->offsets));
    spec->group_count = group_count;
    spec->tensor_count = tensor_count;
    memcpy(spec->groups, groups, (size_t)group_count * sizeof *groups);
    memcpy(spec->tensors, tensors, (size_t)tensor_count * sizeof *tensors);
    for (int i = 0; i < tensor_count; i++) spec->offsets[i + 1] = spec->offsets[i] + optim_tensor_elems(&tensors[i]);
    return STATUS_OK;
}

Status optim_create(const OptimGroup *groups, int group_count, const OptimTensor *tensors, int tensor_count, Pool *pool,
                    DeviceStream *stream, Optim **out) {
    Status status = STATUS_OK;
    Optim *optim = NULL;
    TRY(check(groups, group_count, tensors, tensor_count));
    TRY(memory_calloc(1, sizeof *optim, &optim));
    TRY_GOTO(copy_spec(&optim->spec, groups, group_count, tensors, tensor_count));
    if (stream == NULL) {
        TRY_GOTO(optim_host_create(&optim->spec, pool, &optim->table, &optim->state));
    } else {
        TRY_GOTO(optim_cuda_create(&optim->spec, stream, &optim->table, &optim->state));
    }
    *out = optim;
    optim = NULL;
done:
    optim_destroy(optim);
    return status;
}

void optim_destroy(Optim *optim) {
    if (optim == NULL) return;
    if (optim->state != NULL) optim->table->destroy(optim->state);
    memory_free(optim->spec.offsets);
    memory_free(optim->spec.tensors);
    memory_free(optim->spec.groups);
    memory_free(optim);
}

static Status check_rates(const Optim *optim, const OptimRate *rates) {
    for (int i = 0; i < optim->spec.group_count; i++) {
        if (rates[i].active && !isfinite(rates[i].rate)) {
            FAIL(STATUS_ARGUMENT, "the rate of optimizer group %d must be finite, not %g", i, (double)rates[i].rate);
        }
    }
    return STATUS_OK;
}

Status optim_step(Optim *optim, const OptimRate *rates) {
    TRY(check_rates(optim, rates));
    return optim->table->step(optim->state, rates);
}

Status optim_gradients_finite(Optim *optim, const OptimRate *rates, bool *out) {
    return optim->table->gradients_finite(optim->state, rates, out);
}

Status optim_lerp(Optim *optim, float *slow, float *value, size_t elems, float keep) {
    return elems == 0 ? STATUS_OK : optim->table->lerp(optim->state, slow, value, elems, keep);
}

float *optim_momentum(Optim *optim, int64_t *elems) {
    *elems = optim->spec.offsets[optim->spec.tensor_count];
    return optim->table->momentum(optim->state);
}

double optim_step_flops(const Optim *optim) {
    double flops = 0;
    for (int i = 0; i < optim->spec.tensor_count; i++) {
        const OptimTensor *t = &optim->spec.tensors[i];
        const OptimGroup *group = &optim->spec.groups[t->group];
        if (group->rule != OPTIM_MUON) continue;
        double m = (double)(t->rows < t->columns ? t->rows : t->columns), n = (double)optim_tensor_elems(t) / m;
        flops += group->iterations * (m * (m + 1) * n + m * m * (m + 1) + 2 * m * m * n);
    }
    return flops;
}

static Status need_device(const Optim *optim) {
    if (optim->table->step_scheduled != NULL) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "scheduled steps are only for optimizers on a GPU; in host memory use optim_step");
}

Status optim_load_rates(Optim *optim, const OptimRate *rates, int64_t steps) {
    TRY(need_device(optim));
    if (steps < 1 || steps > INT32_MAX) {
        FAIL(STATUS_ARGUMENT, "a table of rates has 1 to %d steps, not %lld", INT32_MAX, (long long)steps);
    }
    for (int64_t i = 0; i < steps; i++) TRY(check_rates(optim, rates + i * optim->spec.group_count));
    return optim->table->load_rates(optim->state, rates, steps);
}

Status optim_check_scheduled(Optim *optim, const int32_t *step, uint32_t *flag) {
    TRY(need_device(optim));
    return optim->table->check_scheduled(optim->state, step, flag);
}

Status optim_step_scheduled(Optim *optim, const int32_t *step, const uint32_t *flag, const bool *enabled) {
    TRY(need_device(optim));
    return optim->table->step_scheduled(optim->state, step, flag, enabled);
}
