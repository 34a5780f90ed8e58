/* What the binding files of the allreduce room share. */
#ifndef CGXFFCV_PYTHON_QUANTIZE_H
#define CGXFFCV_PYTHON_QUANTIZE_H

#include "python/array.h"
#include "quant/quantize.h"

/* A tuple (bits, bucket_size, type, codec, rounding, half_metadata, spikes) of numbers, checked; 0 or -1. */
int quant_spec_parse(PyObject *module, PyObject *tuple, QuantSpec *spec);

/* The array types that may hold elements of `type` (bfloat16 travels as uint16). */
unsigned quant_type_mask(QuantType type);

#endif
