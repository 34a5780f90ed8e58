/* What mixes neighbours of a batch draws from. */
#ifndef CGXFFCV_AUGMENT_BETA_H
#define CGXFFCV_AUGMENT_BETA_H

#include <math.h>

#include "augment/draw.h"

/* Of the image, or shared by its batch. */
HOST_DEVICE Philox4 augment_mix_words(const AugmentRandom *random, bool shared) {
    return shared ? augment_batch_words(random) : augment_words(random);
}

/* Beta(alpha, alpha) of the first two words, from a point of Student's distribution with 2 alpha degrees of freedom
 * (Devroye, "Random variate generation in one line of code", 1996). */
HOST_DEVICE double augment_beta(Philox4 words, double alpha) {
    const double power = pow((words.word[0] + 0.5) * 0x1p-32, 1 / alpha);
    const double cosine = cos(6.283185307179586 * ((words.word[1] + 0.5) * 0x1p-32));
    return 0.5 + 0.5 * cosine / sqrt(power / (1 - power) + cosine * cosine);
}

#endif
