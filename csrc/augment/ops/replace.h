#ifndef CGXFFCV_AUGMENT_OPS_REPLACE_H
#define CGXFFCV_AUGMENT_OPS_REPLACE_H

#include "augment/draw.h"

typedef struct AugmentReplace {
    AugmentSamples indices;
    int64_t new_label;
} AugmentReplace;

HOST_DEVICE bool augment_replace_chosen(const AugmentReplace *op, uint64_t sample) {
    return augment_samples_contain(&op->indices, sample);
}

HOST_DEVICE int64_t augment_replace_value(const AugmentReplace *op, int64_t label) {
    (void)label;
    return op->new_label;
}

#endif

AUGMENT_OP_VALUE(replace, AugmentReplace, .name = "ReplaceLabel", .number = 18,
                 .doc =
                     "Gives the samples with these `indices` in the file the label `new_label`, in every epoch and in\n"
                     "evaluation.",
                 .parameters = {AUGMENT_PARAMETER(AugmentReplace, indices, SAMPLES, .required = true),
                                AUGMENT_PARAMETER(AugmentReplace, new_label, WHOLE, .required = true)})
