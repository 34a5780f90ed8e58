/* Training and testing on data sets that lie in the memory of a GPU: whole steps are recorded once in each phase as a
 * graph, which reads its step number, its rates and its images' places from device memory; sums are read back once an
 * epoch. Needs a trainer whose model is on the CUDA backend. */
#ifndef CGXFFCV_TRAIN_RESIDENT_H
#define CGXFFCV_TRAIN_RESIDENT_H

#include "image/gather.h"
#include "train/trainer.h"

typedef enum ResidentSet { RESIDENT_TRAIN, RESIDENT_TEST, RESIDENT_SETS } ResidentSet;

typedef struct ResidentConfig {
    AugmentOp ops[GATHER_MAX_OPS]; /* of training */
    int op_count;
    uint64_t seed; /* of the augmentation */
    float mean[3], std[3];
    bool graphs; /* false: every step is put on the stream anew; the same bytes, slower */
} ResidentConfig;

typedef struct Resident Resident;

/* The trainer is borrowed until resident_destroy. */
Status resident_create(Trainer *trainer, const ResidentConfig *config, Resident **out);
void resident_destroy(Resident *resident); /* NULL is fine */

/* Copies a set to the device: images (count, side, side, 3), labels, sample numbers (NULL: 0, 1, ...). Refuses labels
 * outside the classes. STATUS_MEMORY if it does not fit. */
Status resident_load(Resident *resident, ResidentSet which, const uint8_t *images, const int64_t *labels,
                     const int64_t *ids, int64_t count);

/* `steps` steps on the images order[0], order[1], ... of the training set (places, not sample numbers; steps x batch of
 * them, this rank's). Waits for the last. `out` has an entry for each step, `losses` (NULL: not wanted) one for each
 * image. The trainer's check is called now and then; a failure leaves the trainer after a whole number of steps. */
Status resident_run(Resident *resident, const int32_t *order, int steps, uint32_t epoch, TrainerStep *out,
                    float *losses);

/* Begins anew with other parameters (which the caller has set): step 0, momenta and averages zero. Graphs, plans and
 * data stay. */
Status resident_restart(Resident *resident, uint64_t seed);

/* The weighted sum of the views' logits of images places[i] of a set (NULL: all of it): (count, classes), host. */
Status resident_evaluate(Resident *resident, ResidentSet which, const int32_t *places, int count,
                         const TrainerView *views, int view_count, float *logits);

/* Seconds that the stream was busy with steps and evaluations since this was last called, by events. */
Status resident_take_seconds(Resident *resident, double *out);

#endif
