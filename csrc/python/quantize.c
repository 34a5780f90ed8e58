/* The quantiser on arrays. cgxffcv/allreduce.py is its typed surface. */
#include "python/quantize.h"

#include "python/arguments.h"
#include "python/spec.h"

#define BIG_ELEMS 16384 /* from this size on the GIL is released */

unsigned py_quant_type_mask(QuantType type) {
    static const unsigned masks[] = {1u << ARRAY_F32, 1u << ARRAY_F16, 1u << ARRAY_U16};
    return masks[type] | ARRAY_UNALIGNED;
}

/* None: the default for the codec and the bucket size, which are parsed first. */
static int parse_spikes(PyObject *value, void *out) {
    QuantSpec *spec = out;
    uint64_t number = spec->codec == QUANT_SPIKES ? (uint64_t)quantize_default_spikes(spec->bucket_size) : 0;
    if (value != Py_None && py_arguments_whole(value, "spikes", INT32_MIN, INT32_MAX, &number) < 0) return -1;
    spec->spikes = (int)number;
    return 0;
}

static const SpecTable quant_table = {
    "QuantSpec",
    {SPEC_MEMBER(QuantSpec, bits), SPEC_MEMBER(QuantSpec, bucket_size),
     SPEC_ENUM_KEY(QuantSpec, type, "dtype", quantize_type_name), SPEC_ENUM(QuantSpec, codec, quantize_codec_name),
     SPEC_ENUM(QuantSpec, rounding, quantize_rounding_name), SPEC_ENUM(QuantSpec, scale, quantize_scale_name),
     SPEC_MEMBER(QuantSpec, half_metadata), SPEC_WHOLE("spikes", parse_spikes)}};

static const SpecTable random_table = {"quantize",
                                       {SPEC_MEMBER(QuantRandom, seed), SPEC_MEMBER(QuantRandom, call),
                                        SPEC_RANGE(QuantRandom, rank, 0, UINT16_MAX), SPEC_MEMBER(QuantRandom, quad)}};

int py_quant_spec_parse(PyObject *module, PyObject *dict, QuantSpec *spec) {
    if (py_spec_fill(&quant_table, dict, NULL, spec) < 0) return -1;
    Status status = quantize_check(spec);
    return py_errors_check(py_module_state(module), status);
}

int py_quant_random_parse(PyObject *dict, QuantRandom *random) {
    return py_spec_fill(&random_table, dict, NULL, random);
}

/* A run's own type, which need not be the spec's; 0 or -1. */
static int parse_type(PyObject *name, const char *argument, QuantType *type) {
    int number = py_spec_name(name, argument, quantize_type_name);
    *type = (QuantType)number;
    return number < 0 ? -1 : 0;
}

static PyObject *wire_bytes(PyObject *module, PyObject *args) {
    QuantSpec spec;
    PyObject *tuple;
    long long elems;
    if (!PyArg_ParseTuple(args, "OL:quantize_wire_bytes", &tuple, &elems)) return NULL;
    if (py_quant_spec_parse(module, tuple, &spec) < 0) return NULL;
    if (elems < 0 || elems > (1LL << 56))
        return PyErr_Format(PyExc_ValueError, "elems must be in 0..2^56, not %lld", elems);
    return PyLong_FromUnsignedLongLong(quantize_wire_bytes(&spec, elems));
}

/* Work for a pool of threads, done without the GIL if there is much of it. */
typedef struct Job {
    const QuantSpec *spec;
    QuantType type;
    const void *from;
    int64_t elems;
    const QuantRandom *random;
    void *wire;
    const QuantTarget *target; /* NULL: quantise, else dequantise */
} Job;

static Status quantize_run_job(const Job *job, int threads) {
    Status status = STATUS_OK;
    Pool *pool = NULL;
    if (threads > 1) TRY(pool_create(threads, &pool));
    if (job->target == NULL) {
        status =
            quantize(job->spec, (QuantInput){job->from, job->type, job->elems, 1.0f}, job->random, pool, job->wire);
    } else {
        status = dequantize(job->spec, job->wire, job->elems, job->target, job->random, pool);
    }
    pool_destroy(pool);
    return status;
}

static PyObject *finish_job(PyObject *module, const Job *job, int threads) {
    Status status;
    if (threads < 1) return PyErr_Format(PyExc_ValueError, "threads must be at least 1, not %d", threads);
    if (job->elems >= BIG_ELEMS) {
        Py_BEGIN_ALLOW_THREADS;
        status = quantize_run_job(job, threads);
        Py_END_ALLOW_THREADS;
    } else {
        status = quantize_run_job(job, 1);
    }
    return py_errors_none(py_module_state(module), status);
}

static int check_wire(const QuantSpec *spec, int64_t elems, const ArrayView *wire) {
    uint64_t expected = quantize_wire_bytes(spec, elems);
    if ((uint64_t)wire->elems == expected) return 0;
    return PY_REFUSE(PyExc_ValueError, "wire must have %llu bytes for %lld elements, not %lld",
                     (unsigned long long)expected, (long long)elems, (long long)wire->elems);
}

static PyObject *quantize_array(PyObject *module, PyObject *args) {
    PyObject *array, *type_name, *spec_in, *random_in, *wire_array, *result = NULL;
    QuantSpec spec;
    QuantType type;
    ArrayView x, wire;
    int threads;
    QuantRandom random;
    if (!PyArg_ParseTuple(args, "OOOOiO:quantize", &array, &type_name, &spec_in, &random_in, &threads, &wire_array)) {
        return NULL;
    }
    if (parse_type(type_name, "the dtype of array", &type) < 0 || py_quant_spec_parse(module, spec_in, &spec) < 0 ||
        py_quant_random_parse(random_in, &random) < 0) {
        return NULL;
    }
    if (type != spec.type && (type != QUANT_F32 || spec.half_metadata)) {
        return PyErr_Format(PyExc_ValueError,
                            "only float32 sums without 16-bit metadata may differ from the spec's type");
    }
    if (py_array_acquire(array, "array", py_quant_type_mask(type), -1, false, &x) < 0) return NULL;
    if (py_array_acquire(wire_array, "wire", 1u << ARRAY_U8, 1, true, &wire) < 0) {
        py_array_release(&x);
        return NULL;
    }
    if (check_wire(&spec, x.elems, &wire) == 0) {
        Job job = {&spec, type, x.data, x.elems, &random, wire.data, NULL};
        result = finish_job(module, &job, threads);
    }
    py_array_release(&wire);
    py_array_release(&x);
    return result;
}

static int check_accumulate(const QuantSpec *spec, const ArrayView *accumulate, const ArrayView *out) {
    if (quantize_has_domain(spec)) {
        return PY_REFUSE(PyExc_ValueError,
                         "accumulate cannot be used with the codec %s, whose sums are not of elements",
                         quantize_codec_name((int)spec->codec));
    }
    if (accumulate->elems == out->elems) return 0;
    return PY_REFUSE(PyExc_ValueError, "accumulate must have as many elements as out (%lld), not %lld",
                     (long long)out->elems, (long long)accumulate->elems);
}

static PyObject *dequantize_array(PyObject *module, PyObject *args) {
    PyObject *wire_array, *spec_in, *random_in, *out_array, *type_name, *accumulate_array, *result = NULL;
    QuantSpec spec;
    QuantTarget target = {.scale = 1.0f};
    QuantRandom random;
    ArrayView wire, out, accumulate;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOOOfi:dequantize", &wire_array, &spec_in, &random_in, &out_array, &type_name,
                          &accumulate_array, &target.divisor, &threads)) {
        return NULL;
    }
    if (parse_type(type_name, "the dtype of out", &target.type) < 0 ||
        py_quant_spec_parse(module, spec_in, &spec) < 0 || py_spec_fill(&random_table, random_in, NULL, &random) < 0) {
        return NULL;
    }
    if (py_array_acquire(wire_array, "wire", 1u << ARRAY_U8, 1, false, &wire) < 0) return NULL;
    if (py_array_acquire(out_array, "out", py_quant_type_mask(target.type), -1, true, &out) < 0) goto release_wire;
    bool add = accumulate_array != Py_None;
    if (add &&
        py_array_acquire(accumulate_array, "accumulate", py_quant_type_mask(QUANT_F32), -1, false, &accumulate) < 0) {
        goto release_out;
    }
    target.to = out.data;
    if (add) target.accumulate = accumulate.data;
    if (check_wire(&spec, out.elems, &wire) == 0 && (!add || check_accumulate(&spec, &accumulate, &out) == 0)) {
        Job job = {&spec, target.type, NULL, out.elems, &random, wire.data, &target};
        result = finish_job(module, &job, threads);
    }
    if (add) py_array_release(&accumulate);
release_out:
    py_array_release(&out);
release_wire:
    py_array_release(&wire);
    return result;
}

static PyObject *kernels(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z:quantize_kernels", &name)) return NULL;
    if (PyTuple_GET_SIZE(args) == 1 && !quantize_select_kernels(name)) {
        return PyErr_Format(PyExc_ValueError, "this processor has no %s kernels", name);
    }
    return PyUnicode_FromString(quantize_kernels_name());
}

static PyMethodDef functions[] = {
    {"quantize", quantize_array, METH_VARARGS,
     "quantize(array, dtype, spec, random, threads, wire)\n--\n\nSee cgxffcv.allreduce.quantize."},
    {"dequantize", dequantize_array, METH_VARARGS,
     "dequantize(wire, spec, random, out, dtype, accumulate, divisor, threads)\n--\n\nSee "
     "cgxffcv.allreduce.dequantize."},
    {"quantize_wire_bytes", wire_bytes, METH_VARARGS,
     "quantize_wire_bytes(spec, elems)\n--\n\nThe bytes that a run of `elems` elements takes on the wire."},
    {"quantize_kernels", kernels, METH_VARARGS,
     "quantize_kernels([name])\n--\n\n"
     "Returns the kernels in use; with a name ('scalar', 'avx2', 'avx512'; None: the best),\n"
     "switches to those first: for tests and benchmarks, never while another thread quantises."},
    {NULL, NULL, 0, NULL},
};

int py_quantize_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
