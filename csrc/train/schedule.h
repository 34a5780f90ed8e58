/* Learning-rate schedules: a base rate times a piecewise linear factor of the step number. */
#ifndef CGXFFCV_TRAIN_SCHEDULE_H
#define CGXFFCV_TRAIN_SCHEDULE_H

#include <stdint.h>

#include "base/status.h"

/* The factor is linear between points, constant before the first and after the last; of two points at the same step,
 * the later one applies from that step on. */
typedef struct SchedulePoint {
    double step, factor;
} SchedulePoint;

#define SCHEDULE_MAX_POINTS 16

typedef struct Schedule {
    double base;
    SchedulePoint points[SCHEDULE_MAX_POINTS];
    int count;          /* of points; with 0 the factor is 1 */
    int64_t first_step; /* the group is active in steps [first_step, end_step) */
    int64_t end_step;
} Schedule;

/* Fails if points are not finite or not in order. */
Status train_schedule_check(const Schedule *schedule);

/* The learning rate of a step, computed in double precision. */
double train_schedule_rate(const Schedule *schedule, int64_t step);

/* When Muon scales its weights to their norm before the update. */
typedef enum ScheduleProject {
    SCHEDULE_PROJECT_NEVER = 0,
    SCHEDULE_PROJECT_ALWAYS = 1,
    SCHEDULE_PROJECT_THINNING = 2 /* in step k, counted from 1, iff k - last such step >= 2 + int(15 k / steps) */
} ScheduleProject;

/* "never", "always", "thinning"; NULL if there is no such number. */
const char *train_schedule_project_name(int rule);

int train_schedule_projects(ScheduleProject rule, int64_t step, int64_t steps);

#endif
