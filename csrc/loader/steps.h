/* Private to loader/: the user's C functions, called on each sample's row after its decoder. The decoders write a
 * chunk's rows into the thread's memory, and the functions make the batch's rows from them. */
#ifndef CGXFFCV_LOADER_STEPS_H
#define CGXFFCV_LOADER_STEPS_H

#include "loader/decoders/decoder.h"

/* Fills in the output's steps and result; `array` is already set. */
Status loader_steps_prepare(const LoaderOutput *request, DecoderOutput *output);

/* Makes the chunk's decoders write where the functions will read. */
Status loader_steps_stage(DecoderChunk *chunk, size_t outputs);

/* Calls the functions of all outputs on the chunk's rows, and writes into the batch's arrays. */
Status loader_steps_run(const DecoderChunk *chunk, size_t outputs, void *const *arrays);

#endif
