/* Pure functions of the step number, so that a resumed run continues exactly. */
#include "train/schedule.h"

#include <math.h>

#include "base/names.h"

NAMES_DEFINE(train_schedule_project_name, "never", "always", "thinning")

Status train_schedule_check(const Schedule *schedule) {
    if (!isfinite(schedule->base)) FAIL(STATUS_ARGUMENT, "the base rate must be finite, not %g", schedule->base);
    if (schedule->count < 0 || schedule->count > SCHEDULE_MAX_POINTS) {
        FAIL(STATUS_ARGUMENT, "a schedule has at most %d points, not %d", SCHEDULE_MAX_POINTS, schedule->count);
    }
    for (int i = 0; i < schedule->count; i++) {
        const SchedulePoint *p = &schedule->points[i];
        if (!isfinite(p->step) || !isfinite(p->factor)) {
            FAIL(STATUS_ARGUMENT, "point %d of a schedule is not finite: (%g, %g)", i, p->step, p->factor);
        }
        if (i > 0 && p->step < p[-1].step) {
            FAIL(STATUS_ARGUMENT, "the points of a schedule must be in order of their steps: %g follows %g", p->step,
                 p[-1].step);
        }
    }
    return STATUS_OK;
}

double train_schedule_rate(const Schedule *schedule, int64_t step) {
    const SchedulePoint *points = schedule->points;
    double t = (double)step;
    int next = 0;
    while (next < schedule->count && points[next].step <= t) next++;
    if (schedule->count == 0) return schedule->base;
    if (next == 0) return schedule->base * points[0].factor;
    if (next == schedule->count) return schedule->base * points[next - 1].factor;
    const SchedulePoint *a = &points[next - 1], *b = &points[next];
    double share = (t - a->step) / (b->step - a->step);
    return schedule->base * (a->factor * (1 - share) + b->factor * share);
}

int train_schedule_projects(ScheduleProject rule, int64_t step, int64_t steps) {
    if (rule != SCHEDULE_PROJECT_THINNING) return rule == SCHEDULE_PROJECT_ALWAYS;
    int64_t last = 0;
    for (int64_t k = 1; k <= step + 1; k++) {
        if (k - last < 2 + 15 * k / steps) continue;
        last = k;
    }
    return last == step + 1;
}
