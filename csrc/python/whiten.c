/* The whitening of images as functions on NumPy arrays. */
#include "nn/whiten.h"
#include "augment/moments.h"

#include "python/array.h"

static Status moments_of(const ArrayView *images, int threads, double *moments) {
    Status status = STATUS_OK;
    Pool *pool = NULL;
    int64_t height = images->shape[2], width = images->shape[3];
    const int64_t strides[4] = {3 * height * width, height * width, width, 1};
    TRY_GOTO(pool_create(threads, &pool));
    TRY_GOTO(augment_moments(images->data, images->shape[0], height, width, strides, pool, moments));
done:
    pool_destroy(pool);
    return status;
}

static PyObject *patch_moments(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"images", "threads", NULL};
    PyObject *images_in;
    int threads = 1;
    ArrayView images;
    const int64_t shape[2] = {NN_WHITEN_PATCH, NN_WHITEN_PATCH};
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|i", names, &images_in, &threads)) return NULL;
    if (py_array_acquire(images_in, "images", 1u << ARRAY_F32, 4, false, &images) < 0) return NULL;
    PyObject *out = NULL;
    if (images.shape[1] != 3) {
        PyErr_Format(PyExc_ValueError, "images must have 3 channels (N, 3, height, width), not %lld",
                     (long long)images.shape[1]);
        goto done;
    }
    out = py_array_new(ARRAY_F64, 2, shape);
    if (out == NULL) goto done;
    double *moments = py_array_data(out);
    Py_BEGIN_ALLOW_THREADS;
    status = moments_of(&images, threads, moments);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) {
        Py_CLEAR(out);
        py_errors_raise(py_module_state(module), status);
    }
done:
    py_array_release(&images);
    return out;
}

static PyObject *whitening_filters(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"moments", "epsilon", NULL};
    PyObject *moments_in;
    double epsilon = 5e-4;
    ArrayView moments;
    const int64_t shape[4] = {NN_WHITEN_FILTERS, 3, 2, 2};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|d", names, &moments_in, &epsilon)) return NULL;
    if (py_array_acquire(moments_in, "moments", 1u << ARRAY_F64, 2, false, &moments) < 0) return NULL;
    PyObject *out = NULL;
    if (moments.shape[0] != NN_WHITEN_PATCH || moments.shape[1] != NN_WHITEN_PATCH) {
        PyErr_SetString(PyExc_ValueError, "moments must be 12 x 12");
        goto done;
    }
    out = py_array_new(ARRAY_F32, 4, shape);
    if (out == NULL) goto done;
    Status status = nn_whiten_filters(moments.data, epsilon, py_array_data(out));
    if (status != STATUS_OK) {
        Py_CLEAR(out);
        py_errors_raise(py_module_state(module), status);
    }
done:
    py_array_release(&moments);
    return out;
}

static PyMethodDef functions[] = {
    {"patch_moments", PY_KEYWORDS(patch_moments),
     "patch_moments(images, threads=1)\n--\n\nMean outer product of all 2 x 2 patches: (N, 3, H, W) float32 to "
     "(12, 12) float64."},
    {"whitening_filters", PY_KEYWORDS(whitening_filters),
     "whitening_filters(moments, epsilon=5e-4)\n--\n\nThe 24 whitening filters, (24, 3, 2, 2) float32."},
    {NULL, NULL, 0, NULL},
};

int py_nn_whiten_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
