/* The distribution from which operations that mix images of a batch draw. */
#ifndef CGXFFCV_AUGMENT_BETA_H
#define CGXFFCV_AUGMENT_BETA_H

#include <math.h>

#include "augment/draw.h"

/* The random words of the image, or those that its batch shares. */
HOST_DEVICE Philox4 augment_mix_words(const AugmentRandom *random, bool shared) {
    return shared ? augment_batch_words(random) : augment_words(random);
}

/* A Beta(alpha, alpha) variate from the first two words, through Student's t distribution with 2 alpha degrees of
 * freedom (Devroye, "Random variate generation in one line of code", 1996). */
HOST_DEVICE double augment_beta(Philox4 words, double alpha) {
    const double power = pow((words.word[0] + 0.5) * 0x1p-32, 1 / alpha);
    const double cosine = cos(6.283185307179586 * ((words.word[1] + 0.5) * 0x1p-32));
    return 0.5 + 0.5 * cosine / sqrt(power / (1 - power) + cosine * cosine);
}

#endif
