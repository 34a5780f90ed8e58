/* Chooses the bits of each layer by what quantisation loses of it: measures the loss at every width with the quantiser
 * itself, and finds the widths that send the fewest bytes within a budget. */
#ifndef CGXFFCV_ALLREDUCE_ADAPT_H
#define CGXFFCV_ALLREDUCE_ADAPT_H

#include "allreduce/allreduce.h"

#define ALLREDUCE_MAX_ADAPTED 2048 /* layers among which widths are chosen */

/* What `count` widths would lose of each layer: lost[layer * (count + 1) + i] is ||x - x'||^2 with widths[i], x being
 * this rank's elements with the residual (NULL: none), and lost[layer * (count + 1) + count] is ||x||^2; bytes[layer *
 * count + i] are its bytes on the wire. All 0 for layers that are not quantised. Everything is in host memory. Not
 * collective. */
Status allreduce_losses(const Allreduce *allreduce, const void *buffer, const float *residual, const int *widths,
                        int count, double *lost, uint64_t *bytes);

/* The layers of the longest extent. */
int allreduce_layers(const Allreduce *allreduce);

/* Chooses one of `count` widths for each layer: the fewest bytes in total, with losses that add up to at most `budget`;
 * if none do, the least loss. lost and bytes are [layers][count]. A loss counts as up to 2^-14 of the budget more than
 * it is (with more than 1024 layers: a sixteenth of its share). Fails on losses that are not finite. */
Status allreduce_choose_widths(const double *lost, const uint64_t *bytes, int layers, int count, double budget,
                               int *choice);

#endif
