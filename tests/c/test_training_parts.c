// rooms: base device augment optim nn train
/* What a training is made of, each part against its definition: rates, images shrunk, eigenvectors, Muon's step. */
#include <math.h>
#include <string.h>

#include "augment/shrink.h"
#include "check.h"
#include "nn/whiten.h"
#include "odd_gemm.h"
#include "optim/optim.h"
#include "train/schedule.h"

static void test_schedule(void) {
    Schedule s = {.base = 2, .points = {{0, 0}, {4, 1}, {4, 0.5}, {8, 0.25}}, .count = 4};
    CHECK_OK(train_schedule_check(&s));
    const double expected[] = {0, 0.5, 1, 1.5, 1, 0.875, 0.75, 0.625, 0.5, 0.5};
    for (int t = 0; t < 10; t++) CHECK(fabs(train_schedule_rate(&s, t) - expected[t]) < 1e-15);
    /* k from 1, last from 0: project in step k iff k - last >= 2 + int(15 k / 243) */
    int64_t last = 0;
    for (int64_t k = 1; k <= 243; k++) {
        int projects = k - last >= 2 + 15 * k / 243;
        CHECK(train_schedule_projects(SCHEDULE_PROJECT_THINNING, k - 1, 243) == projects);
        if (projects) last = k;
    }
    CHECK(train_schedule_projects(SCHEDULE_PROJECT_ALWAYS, 7, 9) &&
          !train_schedule_projects(SCHEDULE_PROJECT_NEVER, 7, 9));
}

static double triangle(int i, int o, double ratio) {
    double height = 1 - fabs(i + 0.5 - (o + 0.5) * ratio) / ratio;
    return height > 0 ? height : 0;
}

/* Against the definition, in double precision. */
static void test_shrinking(void) {
    uint8_t bytes[2 * 7 * 5 * 3];
    float got[2 * 3 * 3 * 3];
    Pool *pool = NULL;
    CHECK_OK(pool_create(2, &pool));
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 37 + i * i);
    const float mean[3] = {10, 20, 30}, std[3] = {2, 3, 4};
    for (int layout = 0; layout < 2; layout++) {
        const AugmentShrunk images = {bytes, false, layout == 1, mean, std};
        CHECK_OK(augment_shrink(&images, 2, 7, 5, 3, pool, got));
        for (int o = 0; o < 2 * 27; o++) {
            int n = o / 27, y = o / 9 % 3, x = o / 3 % 3, c = o % 3;
            double sum = 0, total = 0;
            for (int i = 0; i < 35; i++) {
                double w = triangle(i / 5, y, 7 / 3.0) * triangle(i % 5, x, 5 / 3.0);
                size_t at = layout == 0 ? (size_t)((n * 35 + i) * 3 + c) : (size_t)((n * 3 + c) * 35 + i);
                sum += w * bytes[at];
                total += w;
            }
            double want = (sum / total - (double)mean[c]) / (double)std[c];
            CHECK(fabs((double)got[o] - want) < 2e-5 * 255);
        }
    }
    const AugmentShrunk images = {bytes, false, false, mean, std};
    CHECK_OK(augment_shrink(&images, 2, 7, 5, 5, pool, (float[2 * 75]){0}));
    CHECK(augment_shrink(&images, 2, 7, 5, 6, pool, got) == STATUS_ARGUMENT);
    pool_destroy(pool);
}

static void test_eigen(void) {
    double matrix[9] = {2, 1, 0, 1, 2, 0, 0, 0, 5}, values[3], vectors[9];
    CHECK_OK(nn_whiten_eigen(matrix, 3, values, vectors));
    CHECK(fabs(values[0] - 5) < 1e-14 && fabs(values[1] - 3) < 1e-14 && fabs(values[2] - 1) < 1e-14);
    CHECK(fabs(vectors[3] - sqrt(0.5)) < 1e-14 && fabs(vectors[4] - sqrt(0.5)) < 1e-14);
    CHECK(nn_whiten_eigen(matrix, 65, values, vectors) == STATUS_ARGUMENT);
}

static void test_muon(void) {
    /* A matrix whose singular vectors are axes: Newton-Schulz acts on each singular value by itself. */
    float w[12] = {0}, g[12] = {0};
    Pool *pool = NULL;
    Optim *optim = NULL;
    OptimGroup group = {.rule = OPTIM_MUON, .iterations = 2, .a = 3.0f, .b = -3.2f, .c = 1.2f, .epsilon = 0};
    for (int tall = 0; tall < 2; tall++) {
        memset(w, 0, sizeof w);
        memset(g, 0, sizeof g);
        int rows = tall ? 4 : 3, columns = tall ? 3 : 4;
        const double singular[3] = {2, 1, 0.5};
        for (int i = 0; i < 3; i++) g[i * columns + i] = (float)singular[i];
        OptimTensor tensor = {.value = w, .gradient = g, .rows = rows, .columns = columns};
        CHECK_OK(pool_create(2, &pool));
        CHECK_OK(optim_create(&group, 1, &tensor, 1, pool, NULL, &optim));
        CHECK_OK(optim_step(optim, &(OptimRate){.rate = 1, .active = true}));
        for (int i = 0; i < 12; i++) {
            double x = i / columns == i % columns ? singular[i % columns] / sqrt(5.25) : 0;
            for (int k = 0; k < 2; k++) x = 3 * x - 3.2 * x * x * x + 1.2 * pow(x, 5);
            CHECK(fabs((double)w[i] + x) < 1e-6);
        }
        optim_destroy(optim);
        pool_destroy(pool);
    }
}

int main(void) {
    test_schedule();
    test_shrinking();
    test_eigen();
    test_muon();
    return check_result();
}
