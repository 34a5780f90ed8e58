/* Patch moments, summed by groups of images in a fixed order. Owns nothing that outlives a call. */
#include "augment/moments.h"

#include "base/memory.h"

/* Images per item of the parallel loop; the sums of the groups are added in order. */
#define GROUP_IMAGES 64

typedef struct Moments {
    const float *images; /* borrowed */
    int64_t count, height, width;
    const int64_t *strides; /* borrowed */
    double *sums;           /* owned by augment_moments: 12 x 12 per group, upper triangles */
    float *rows;            /* owned by augment_moments: 12 rows of width - 1 per thread */
} Moments;

/* Adds the outer products of one row of patches: row e of `rows` holds element e of every patch. */
static void add_row(const float *rows, int64_t patches, double *sums) {
    for (int i = 0; i < AUGMENT_PATCH; i++) {
        for (int j = i; j < AUGMENT_PATCH; j++) {
            const float *a = rows + i * patches, *b = rows + j * patches;
            float part[8] = {0};
            int64_t k = 0;
            for (; k + 8 <= patches; k += 8) {
                for (int lane = 0; lane < 8; lane++) part[lane] += a[k + lane] * b[k + lane];
            }
            for (; k < patches; k++) part[k % 8] += a[k] * b[k];
            sums[i * AUGMENT_PATCH + j] += (double)((part[0] + part[4]) + (part[1] + part[5])) +
                                           (double)((part[2] + part[6]) + (part[3] + part[7]));
        }
    }
}

static Status moments_group(void *context, size_t item, int thread) {
    const Moments *m = context;
    int64_t patches = m->width - 1, first = (int64_t)item * GROUP_IMAGES;
    int64_t end = first + GROUP_IMAGES < m->count ? first + GROUP_IMAGES : m->count;
    float *rows = m->rows + (int64_t)thread * AUGMENT_PATCH * patches;
    double *sums = m->sums + item * AUGMENT_PATCH * AUGMENT_PATCH;
    for (int64_t image = first; image < end; image++) {
        for (int64_t y = 0; y + 1 < m->height; y++) {
            for (int e = 0; e < AUGMENT_PATCH; e++) {
                const float *from = m->images + image * m->strides[0] + e / 4 * m->strides[1] +
                                    (y + e / 2 % 2) * m->strides[2] + e % 2 * m->strides[3];
                for (int64_t x = 0; x < patches; x++) rows[e * patches + x] = from[x * m->strides[3]];
            }
            add_row(rows, patches, sums);
        }
    }
    return STATUS_OK;
}

Status augment_moments(const float *images, int64_t count, int64_t height, int64_t width, const int64_t strides[4],
                       Pool *pool, double moments[AUGMENT_PATCH * AUGMENT_PATCH]) {
    Status status = STATUS_OK;
    if (count < 1 || height < 2 || width < 2) {
        FAIL(STATUS_ARGUMENT, "whitening needs at least one image of 2 x 2 pixels, not %lld of %lld x %lld",
             (long long)count, (long long)height, (long long)width);
    }
    size_t groups = (size_t)((count + GROUP_IMAGES - 1) / GROUP_IMAGES);
    Moments m = {.images = images, .count = count, .height = height, .width = width, .strides = strides};
    TRY_GOTO(memory_calloc(groups * AUGMENT_PATCH * AUGMENT_PATCH, sizeof(double), &m.sums));
    TRY_GOTO(memory_alloc((size_t)pool_threads(pool) * AUGMENT_PATCH * (size_t)(width - 1), sizeof(float), &m.rows));
    TRY_GOTO(pool_run(pool, groups, moments_group, &m));
    for (size_t g = 1; g < groups; g++) {
        for (int e = 0; e < AUGMENT_PATCH * AUGMENT_PATCH; e++)
            m.sums[e] += m.sums[g * AUGMENT_PATCH * AUGMENT_PATCH + (size_t)e];
    }
    double patches = (double)count * (double)(height - 1) * (double)(width - 1);
    for (int i = 0; i < AUGMENT_PATCH; i++) {
        for (int j = i; j < AUGMENT_PATCH; j++) {
            moments[i * AUGMENT_PATCH + j] = moments[j * AUGMENT_PATCH + i] = m.sums[i * AUGMENT_PATCH + j] / patches;
        }
    }
done:
    memory_free(m.rows);
    memory_free(m.sums);
    return status;
}
