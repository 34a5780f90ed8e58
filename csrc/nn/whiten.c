/* The Jacobi eigensolver, and the filters from it. */
#include "nn/whiten.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define PATCH NN_WHITEN_PATCH
#define MAX_SWEEPS 60
#define MAX_SIZE 64

/* One rotation in the plane (p, q) that brings matrix[p][q] to zero (Golub and Van Loan, section 8.5). */
static void whiten_rotate(double *matrix, double *vectors, int n, int p, int q) {
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

/* One sweep over all planes; returns false if every off-diagonal element was negligible. */
static bool sweep(double *matrix, double *vectors, int n, double negligible) {
    bool rotated = false;
    for (int p = 0; p < n; p++) {
        for (int q = p + 1; q < n; q++) {
            if (fabs(matrix[p * n + q]) <= negligible) continue;
            whiten_rotate(matrix, vectors, n, p, q);
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
    int live = 0;
    while (live < PATCH && values[live] > NN_WHITEN_DEAD * values[0]) live++;
    for (int i = 0; i < PATCH; i++) {
        int from = live > 0 ? i % live : i; /* the first `live` filters use their own vectors */
        double scale = 1 / sqrt(values[from] + epsilon);
        for (int k = 0; k < PATCH; k++) {
            filters[i * PATCH + k] = (float)(vectors[from * PATCH + k] * scale);
            filters[(PATCH + i) * PATCH + k] = -filters[i * PATCH + k];
        }
    }
    return STATUS_OK;
}
