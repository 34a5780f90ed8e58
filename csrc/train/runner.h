/* Training and testing, many steps at a time, on the batches of a loader, or on data sets in a GPU's memory. On a GPU
 * steps are recorded once in each phase as a graph, which reads its step number, its rates and its images' positions
 * from device memory; sums are read back once a run. Sets and loaders give the same bytes. For a trainer on the CPU,
 * the loader augments; what is said of sets is refused there.
 *
 *   train_runner_create -> train_runner_begin_load, train_runner_put ... for each set that fits -> train_runner_whiten
 *   -> train_runner_run ... -> train_runner_evaluate; train_runner_restart begins the next training */
#ifndef CGXFFCV_TRAIN_RUNNER_H
#define CGXFFCV_TRAIN_RUNNER_H

#include "augment/gather.h"
#include "loader/loader.h"
#include "train/trainer.h"

/* TRAIN_SET_SAMPLE: some training images, for the whitening, where not all of them fit. */
typedef enum TrainSet { TRAIN_SET_TRAINING, TRAIN_SET_TEST, TRAIN_SET_SAMPLE, TRAIN_SETS } TrainSet;

typedef struct TrainRunnerConfig {
    AugmentOp ops[GATHER_MAX_OPS]; /* of training, on a GPU */
    int op_count;
    uint64_t seed; /* of the augmentation */
    float mean[3], std[3];
    bool graphs; /* false: every step is put on the stream one by one; the same bytes, slower */
} TrainRunnerConfig;

typedef struct TrainRunner TrainRunner;

/* The trainer is borrowed until train_runner_destroy. */
Status train_runner_create(Trainer *trainer, const TrainRunnerConfig *config, TrainRunner **out);
void train_runner_destroy(TrainRunner *runner); /* NULL does nothing */

/* Makes room for a set of `count` images on the device, in place of what was there. STATUS_MEMORY if it does not
 * fit. */
Status train_runner_begin_load(TrainRunner *runner, TrainSet which, int64_t count);

/* The next `count` images (count, side, side, 3) of the set, their labels and sample numbers. Refuses labels outside
 * the classes. */
Status train_runner_put(TrainRunner *runner, TrainSet which, const uint8_t *images, const int64_t *labels,
                        const int64_t *ids, int64_t count);

/* Frees the set's memory. */
Status train_runner_drop(TrainRunner *runner, TrainSet which);

/* The whitening filters (nn/whiten.h) of the set's first `count` images, into the model's frozen layer. */
Status train_runner_whiten(TrainRunner *runner, TrainSet which, int64_t count, double epsilon);

/* Where images come from: from positions of a set, or in batches from the pass of a loader that is under way, which
 * must give uint8 images (side, side, 3) and int64 labels. For a trainer on a GPU it must be one of that device
 * (page_locked), and its images not augmented. The loader is borrowed during the call, and only the batches that are
 * needed are taken. */
typedef struct TrainBatches {
    const int32_t *positions;
    Loader *loader; /* NULL: the positions */
} TrainBatches;

/* On a GPU the first run also makes plans and records the steps of all phases to come, before its clock begins.
 *
 * `steps` steps on the images positions[0], positions[1], ... of the training set (positions, not sample numbers; steps
 * x batch of them, this rank's, at most as many as the set has), or on as many batches of a loader, each of the
 * trainer's size. Waits for the last. `out` has an entry for each step, `losses` (NULL: not wanted) one for each image.
 * The trainer's check is called now and then; a failure, also of the loader, leaves the trainer after a whole number of
 * steps, and *done of them in `out` and `losses`: none, and the trainer's step as before, where the device or a rank
 * was lost. */
Status train_runner_run(TrainRunner *runner, const TrainBatches *source, int steps, uint32_t epoch, TrainerStep *out,
                        float *losses, int *done);

/* Begins again with other parameters (which the caller has set): step 0, momenta zero. Graphs, plans and data stay. On
 * the CPU the seed says nothing: draws are the loader's. */
Status train_runner_restart(TrainRunner *runner, uint64_t seed);

/* The weighted sum of the views' logits of images positions[i] of a set (NULL: the first `count`): (count, classes),
 * host. */
Status train_runner_evaluate(TrainRunner *runner, TrainSet which, const int32_t *positions, int64_t count,
                             const TrainerView *views, int view_count, float *logits);

/* The same of `count` images that come from a loader in batches of at most the trainer's test batch; `labels` gets
 * theirs. */
Status train_runner_evaluate_fed(TrainRunner *runner, Loader *loader, int64_t count, const TrainerView *views,
                                 int view_count, float *logits, int64_t *labels);

/* The batch that a step with this epoch would see (host memory): `count` images, at most the trainer's batch (of a
 * loader exactly so many), augmented, at the training's side. For tests. */
Status train_runner_look(TrainRunner *runner, const TrainBatches *source, int count, uint32_t epoch, uint8_t *images,
                         int64_t *labels);

/* Seconds that the stream was busy with runs and evaluations (by events), and seconds of whitening, since this was last
 * called. */
Status train_runner_take_seconds(TrainRunner *runner, double *out);

/* Graphs recorded so far. */
int train_runner_graphs(const TrainRunner *runner);

#endif
