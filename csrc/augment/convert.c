/* The table of a conversion: the result of the CPU's chain for an image that has each value once. */
#include "augment/convert.h"

#include "base/memory.h"

Status augment_convert_table(const AugmentSpec *spec, void *table) {
    AugmentSpec only = *spec;
    Augment *augment = NULL;
    void *scratch = NULL;
    uint8_t levels[AUGMENT_LEVELS][AUGMENT_CHANNELS];
    only.op_count = 0;
    only.format = (AugmentFormat){0};
    only.height = 1;
    only.width = AUGMENT_LEVELS;
    only.layout = IMAGE_CHW;
    for (int v = 0; v < AUGMENT_LEVELS; v++) {
        for (int c = 0; c < AUGMENT_CHANNELS; c++) levels[v][c] = (uint8_t)v;
    }
    Status status = STATUS_OK;
    TRY_GOTO(augment_create(&only, &augment));
    TRY_GOTO(memory_calloc(augment_scratch_bytes(augment), 1, &scratch));
    augment_scratch_init(augment, scratch);
    const AugmentImage image = {levels[0], sizeof levels, {0, 0, 1, AUGMENT_LEVELS}};
    AugmentDrawn none = {0};
    augment_run(augment, &none, &image, NULL, table, scratch);
done:
    memory_free(scratch);
    augment_destroy(augment);
    return status;
}
