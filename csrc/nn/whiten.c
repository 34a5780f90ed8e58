/* Patch moments, summed image group by image group in a fixed order, and the Jacobi eigensolver. Owns nothing that
 * outlives a call. */
#include "nn/whiten.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/memory.h"

/* Images in an item of the parallel loop; a group's sums are added in the groups' order. */
#define GROUP_IMAGES 64
#define PATCH NN_WHITEN_PATCH
#define MAX_SWEEPS 60
#define MAX_SIZE 64

typedef struct Moments {
    const float *images; /* borrowed */
    int64_t count, height, width;
    const int64_t *strides; /* borrowed */
    double *sums;           /* owned by nn_whiten_moments: 12 x 12 for each group, upper triangles */
    float *rows;            /* owned by nn_whiten_moments: for each thread 12 rows of width - 1 */
} Moments;

/* Adds the outer products of one row of patches: row e of `rows` holds element e of each of them. */
static void add_row(const float *rows, int64_t patches, double *sums) {
    for (int i = 0; i < PATCH; i++) {
        for (int j = i; j < PATCH; j++) {
            const float *a = rows + i * patches, *b = rows + j * patches;
            float part[8] = {0};
            int64_t k = 0;
            for (; k + 8 <= patches; k += 8) {
                for (int lane = 0; lane < 8; lane++) part[lane] += a[k + lane] * b[k + lane];
            }
            for (; k < patches; k++) part[k % 8] += a[k] * b[k];
            sums[i * PATCH + j] += (double)((part[0] + part[4]) + (part[1] + part[5])) +
                                   (double)((part[2] + part[6]) + (part[3] + part[7]));
        }
    }
}

static Status moments_group(void *context, size_t item, int thread) {
    const Moments *m = context;
    int64_t patches = m->width - 1, first = (int64_t)item * GROUP_IMAGES;
    int64_t end = first + GROUP_IMAGES < m->count ? first + GROUP_IMAGES : m->count;
    float *rows = m->rows + (int64_t)thread * PATCH * patches;
    double *sums = m->sums + item * PATCH * PATCH;
    for (int64_t image = first; image < end; image++) {
        for (int64_t y = 0; y + 1 < m->height; y++) {
            for (int e = 0; e < PATCH; e++) {
                const float *from = m->images + image * m->strides[0] + e / 4 * m->strides[1] +
                                    (y + e / 2 % 2) * m->strides[2] + e % 2 * m->strides[3];
                for (int64_t x = 0; x < patches; x++) rows[e * patches + x] = from[x * m->strides[3]];
            }
            add_row(rows, patches, sums);
        }
    }
    return STATUS_OK;
}

Status nn_whiten_moments(const float *images, int64_t count, int64_t height, int64_t width, const int64_t strides[4],
                         Pool *pool, double moments[PATCH * PATCH]) {
    Status status = STATUS_OK;
    if (count < 1 || height < 2 || width < 2) {
        FAIL(STATUS_ARGUMENT, "whitening needs at least one image of 2 x 2 pixels, not %lld of %lld x %lld",
             (long long)count, (long long)height, (long long)width);
    }
    size_t groups = (size_t)((count + GROUP_IMAGES - 1) / GROUP_IMAGES);
    Moments m = {.images = images, .count = count, .height = height, .width = width, .strides = strides};
    TRY_GOTO(memory_calloc(groups * PATCH * PATCH, sizeof(double), &m.sums));
    TRY_GOTO(memory_alloc((size_t)pool_threads(pool) * PATCH * (size_t)(width - 1), sizeof(float), &m.rows));
    TRY_GOTO(pool_run(pool, groups, moments_group, &m));
    for (size_t g = 1; g < groups; g++) {
        for (int e = 0; e < PATCH * PATCH; e++) m.sums[e] += m.sums[g * PATCH * PATCH + (size_t)e];
    }
    double patches = (double)count * (double)(height - 1) * (double)(width - 1);
    for (int i = 0; i < PATCH; i++) {
        for (int j = i; j < PATCH; j++) {
            moments[i * PATCH + j] = moments[j * PATCH + i] = m.sums[i * PATCH + j] / patches;
        }
    }
done:
    memory_free(m.rows);
    memory_free(m.sums);
    return status;
}

/* One rotation in the plane (p, q) that brings matrix[p][q] to zero (Golub and Van Loan, section 8.5). */
static void rotate(double *matrix, double *vectors, int n, int p, int q) {
    double apq = matrix[p * n + q];
    double theta = (matrix[q * n + q] - matrix[p * n + p]) / (2 * apq);
    double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    for (int k = 0; k < n; k++) {
        double kp = matrix[k * n + p], kq = matrix[k * n + q];
        matrix[k * n + p] = c * kp - s * kq;
        matrix[k * n + q] = s * kp + c * kq;
    }
    for (int k = 0; k < n; k++) {
        double pk = matrix[p * n + k], qk = matrix[q * n + k];
        matrix[p * n + k] = c * pk - s * qk;
        matrix[q * n + k] = s * pk + c * qk;
        double vp = vectors[p * n + k], vq = vectors[q * n + k];
        vectors[p * n + k] = c * vp - s * vq;
        vectors[q * n + k] = s * vp + c * vq;
    }
    matrix[p * n + q] = matrix[q * n + p] = 0;
}

/* One sweep over all planes; gives false when every element beside the diagonal was negligible. */
static bool sweep(double *matrix, double *vectors, int n, double negligible) {
    bool rotated = false;
    for (int p = 0; p < n; p++) {
        for (int q = p + 1; q < n; q++) {
            if (fabs(matrix[p * n + q]) <= negligible) continue;
            rotate(matrix, vectors, n, p, q);
            rotated = true;
        }
    }
    return rotated;
}

static void swap_rows(double *vectors, int n, int a, int b) {
    for (int k = 0; k < n; k++) {
        double kept = vectors[a * n + k];
        vectors[a * n + k] = vectors[b * n + k];
        vectors[b * n + k] = kept;
    }
}

static void fix_sign(double *vector, int n) {
    int largest = 0;
    for (int k = 1; k < n; k++) {
        if (fabs(vector[k]) > fabs(vector[largest])) largest = k;
    }
    if (vector[largest] >= 0) return;
    for (int k = 0; k < n; k++) vector[k] = -vector[k];
}

Status nn_whiten_eigen(double *matrix, int n, double *values, double *vectors) {
    if (n < 1 || n > MAX_SIZE) FAIL(STATUS_ARGUMENT, "the matrix must have 1 to %d rows, not %d", MAX_SIZE, n);
    double squares = 0;
    for (int i = 0; i < n * n; i++) {
        if (!isfinite(matrix[i])) FAIL(STATUS_ARGUMENT, "element %d of the matrix is not finite", i);
        squares += matrix[i] * matrix[i];
    }
    memset(vectors, 0, (size_t)n * (size_t)n * sizeof *vectors);
    for (int i = 0; i < n; i++) vectors[i * n + i] = 1;
    int sweeps = 0;
    while (sweeps < MAX_SWEEPS && sweep(matrix, vectors, n, 0.25 * DBL_EPSILON * sqrt(squares))) sweeps++;
    if (sweeps == MAX_SWEEPS) FAIL(STATUS_ARGUMENT, "the eigenvalues did not converge: is the matrix symmetric?");
    for (int i = 0; i < n; i++) values[i] = matrix[i * n + i];
    for (int i = 0; i < n; i++) {
        int largest = i;
        for (int j = i + 1; j < n; j++) largest = values[j] > values[largest] ? j : largest;
        double kept = values[i];
        values[i] = values[largest];
        values[largest] = kept;
        swap_rows(vectors, n, i, largest);
        fix_sign(vectors + i * n, n);
    }
    return STATUS_OK;
}

Status nn_whiten_filters(const double moments[PATCH * PATCH], double epsilon,
                         float filters[NN_WHITEN_FILTERS * PATCH]) {
    double matrix[PATCH * PATCH], values[PATCH], vectors[PATCH * PATCH];
    memcpy(matrix, moments, sizeof matrix);
    TRY(nn_whiten_eigen(matrix, PATCH, values, vectors));
    if (!(values[PATCH - 1] + epsilon > 0)) {
        FAIL(STATUS_ARGUMENT, "whitening: the smallest eigenvalue %g plus epsilon %g must be positive",
             values[PATCH - 1], epsilon);
    }
    for (int i = 0; i < PATCH; i++) {
        double scale = 1 / sqrt(values[i] + epsilon);
        for (int k = 0; k < PATCH; k++) {
            filters[i * PATCH + k] = (float)(vectors[i * PATCH + k] * scale);
            filters[(PATCH + i) * PATCH + k] = -filters[i * PATCH + k];
        }
    }
    return STATUS_OK;
}
