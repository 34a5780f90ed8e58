/* Shared by the quantiser's binding files. */
#ifndef CGXFFCV_PYTHON_QUANTIZE_H
#define CGXFFCV_PYTHON_QUANTIZE_H

#include "python/array.h"
#include "quant/quantize.h"

/* From a dict with the members of cgxffcv.allreduce.QuantSpec, checked; 0, or -1 with an exception. */
int py_quant_spec_parse(PyObject *module, PyObject *dict, QuantSpec *spec);

/* From a dict with seed, call, rank and quad; the same. */
int py_quant_random_parse(PyObject *dict, QuantRandom *random);

/* The array types that may hold elements of `type` (bfloat16 travels as uint16). */
unsigned py_quant_type_mask(QuantType type);

#endif
