/* The whitening filters of the first convolution (airbench): eigenvectors of the second moments of image patches,
 * each divided by the root of its eigenvalue, and their negatives. */
#ifndef CGXFFCV_NN_WHITEN_H
#define CGXFFCV_NN_WHITEN_H

#include <stdint.h>

#include "base/status.h"

/* Patches are 2 x 2 over 3 channels; a patch's elements are ordered (channel, row, column). */
#define NN_WHITEN_PATCH 12
#define NN_WHITEN_FILTERS (2 * NN_WHITEN_PATCH)

/* Eigenvalues (descending) and eigenvectors (rows of `vectors`; unit length, the component of largest magnitude
 * positive) of a symmetric n x n matrix by cyclic Jacobi rotations; `matrix` is destroyed. n is at most 64. */
Status nn_whiten_eigen(double *matrix, int n, double *values, double *vectors);

/* An eigenvalue below this share of the largest is a rounding error: the images have no variation in its direction. */
#define NN_WHITEN_DEAD 1e-6

/* 24 filters of 12: vector / sqrt(value + epsilon) in descending order of the eigenvalues, then their negatives. In a
 * direction without variation (8 of 12 for grey images), a filter would only amplify rounding errors, which a norm
 * after it would make as large as the image: the other filters are repeated there, in turn. */
Status nn_whiten_filters(const double moments[NN_WHITEN_PATCH * NN_WHITEN_PATCH], double epsilon,
                         float filters[NN_WHITEN_FILTERS * NN_WHITEN_PATCH]);

#endif
