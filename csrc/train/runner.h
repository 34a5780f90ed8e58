/* Training and evaluation, many steps per call, on a loader's batches or on data sets in a GPU's memory. On a GPU a
 * step is recorded once per phase as a graph, which reads its step number, its rates and its images' positions from
 * device memory; results are read back once per run. Sets and loaders give the same bytes. For a trainer on the CPU,
 * the loader augments; the functions on sets are refused there.
 *
 *   train_runner_create -> train_runner_begin_load, train_runner_put ... for each set that fits -> train_runner_whiten
 *   -> train_runner_run ... -> train_runner_evaluate; train_runner_restart begins another training run */
#ifndef CGXFFCV_TRAIN_RUNNER_H
#define CGXFFCV_TRAIN_RUNNER_H

#include "augment/gather.h"
#include "loader/loader.h"
#include "train/trainer.h"

/* TRAIN_SET_SAMPLE: some training images, for the whitening, where not all of them fit. */
typedef enum TrainSet { TRAIN_SET_TRAINING, TRAIN_SET_TEST, TRAIN_SET_SAMPLE, TRAIN_SETS } TrainSet;

typedef struct TrainRunnerConfig {
    AugmentOp ops[GATHER_MAX_OPS]; /* for training, on a GPU */
    int op_count;
    uint64_t seed; /* of the augmentation */
    float mean[3], std[3];
    bool graphs; /* false: the kernels of every step are launched one by one; the same bytes, slower */
} TrainRunnerConfig;

typedef struct TrainRunner TrainRunner;

/* The trainer is borrowed until train_runner_destroy. */
Status train_runner_create(Trainer *trainer, const TrainRunnerConfig *config, TrainRunner **out);
void train_runner_destroy(TrainRunner *runner); /* NULL does nothing */

/* Allocates device memory for a set of `count` images, freeing the previous one. STATUS_MEMORY if it does not fit. */
Status train_runner_begin_load(TrainRunner *runner, TrainSet which, int64_t count);

/* Uploads the next `count` images (count, side, side, 3) of the set, their labels and sample numbers. Labels must be
 * class numbers. */
Status train_runner_put(TrainRunner *runner, TrainSet which, const uint8_t *images, const int64_t *labels,
                        const int64_t *ids, int64_t count);

/* Frees the set's memory. */
Status train_runner_drop(TrainRunner *runner, TrainSet which);

/* Computes the whitening filters (nn/whiten.h) of the set's first `count` images into the model's frozen layer. */
Status train_runner_whiten(TrainRunner *runner, TrainSet which, int64_t count, double epsilon);

/* Where images come from: positions in a set, or batches of a loader's current pass over its data, which must give
 * uint8 images (side, side, 3) and int64 labels. For a trainer on a GPU the loader must be page_locked for that device,
 * and must not augment. The loader is borrowed during the call, and only the batches that are needed are taken. */
typedef struct TrainBatches {
    const int32_t *positions;
    Loader *loader; /* NULL: use the positions */
} TrainBatches;

/* Takes `steps` steps on the images positions[0], positions[1], ... of the training set (positions, not sample numbers;
 * this rank's, steps x batch of them, at most as many as the set has), or on that many batches of a loader, each of the
 * trainer's batch size. Waits for the last. `out` has one entry per step, `losses` (NULL: not wanted) one per image. On
 * a GPU the first run also makes plans and records the steps of all phases to come, before its clock starts.
 *
 * The trainer's check is called now and then. After a failure, the loader's included, the trainer has taken a whole
 * number of steps, and the results of *done steps are in `out` and `losses`; if the device or a rank is lost, *done is
 * 0 and the trainer's step number is as before. */
Status train_runner_run(TrainRunner *runner, const TrainBatches *source, int steps, uint32_t epoch, TrainerStep *out,
                        float *losses, int *done);

/* Begins another training run (whose parameters the caller has set): step 0, momentum zero. Graphs, plans and data are
 * kept. On the CPU the seed is ignored, since the loader makes the draws. */
Status train_runner_restart(TrainRunner *runner, uint64_t seed);

/* Gives in `logits` (count, classes), in host memory, the weighted sum of the views' logits of images positions[i] of a
 * set (NULL: the first `count`). */
Status train_runner_evaluate(TrainRunner *runner, TrainSet which, const int32_t *positions, int64_t count,
                             const TrainerView *views, int view_count, float *logits);

/* The same for `count` images that come from a loader in batches of at most the trainer's test batch; `labels` receives
 * their labels. */
Status train_runner_evaluate_fed(TrainRunner *runner, Loader *loader, int64_t count, const TrainerView *views,
                                 int view_count, float *logits, int64_t *labels);

/* The batch that a step of this epoch would see, in host memory: `count` images, at most the trainer's batch size (with
 * a loader, exactly that), augmented, at the trainer's side. For tests. */
Status train_runner_preview(TrainRunner *runner, const TrainBatches *source, int count, uint32_t epoch, uint8_t *images,
                            int64_t *labels);

/* Seconds that the stream was busy with runs and evaluations (measured by events), plus seconds of whitening, since the
 * last call. */
Status train_runner_take_seconds(TrainRunner *runner, double *out);

/* Graphs recorded so far. */
int train_runner_graphs(const TrainRunner *runner);

#endif
