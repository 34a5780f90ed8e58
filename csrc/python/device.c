/* The GPUs of this process. */
#include "device/device.h"
#include "python/arguments.h"
#include "python/results.h"

static PyObject *devices(PyObject *module, PyObject *Py_UNUSED(unused)) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < device_count(); i++) {
        DeviceInfo info;
        Status status = device_describe(i, &info);
        if (status != STATUS_OK) {
            Py_DECREF(list);
            return py_errors_raise(py_module_state(module), status);
        }
        list = py_results_append(list, Py_BuildValue("{ss ss s(ii) si sn si si}", "name", info.name, "bus", info.bus,
                                                     "compute_capability", info.major, info.minor, "multiprocessors",
                                                     info.multiprocessors, "memory_bytes",
                                                     (Py_ssize_t)info.memory_bytes, "driver_version",
                                                     info.driver_version, "runtime_version", info.runtime_version));
    }
    return list;
}

static PyObject *why_no_device(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    return PyUnicode_FromString(device_why());
}

static PyObject *select_device(PyObject *module, PyObject *argument) {
    uint64_t index;
    Status status;
    if (py_arguments_whole(argument, "index", INT64_MIN, INT64_MAX, &index) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = device_select(index > INT32_MAX ? -1 : (int)index);
    Py_END_ALLOW_THREADS;
    return py_errors_none(py_module_state(module), status);
}

static PyObject *free_memory(PyObject *module, PyObject *Py_UNUSED(unused)) {
    size_t bytes = 0;
    Status status;
    Py_BEGIN_ALLOW_THREADS;
    status = device_free_memory(&bytes);
    Py_END_ALLOW_THREADS;
    return status == STATUS_OK ? PyLong_FromSize_t(bytes) : py_errors_raise(py_module_state(module), status);
}

static PyMethodDef functions[] = {
    {"devices", devices, METH_NOARGS,
     "devices()\n--\n\n"
     "The GPUs of this process, a list of dicts (name, bus, compute_capability, multiprocessors,\n"
     "memory_bytes, driver_version, runtime_version); empty if there are none. Initialises none of them."},
    {"why_no_device", why_no_device, METH_NOARGS,
     "why_no_device()\n--\n\nWhy devices() is empty, with the remedy; '' if it is not."},
    {"select_device", select_device, METH_O,
     "select_device(index)\n--\n\n"
     "Makes it the calling thread's GPU. ValueError if there is no such GPU, CudaError if this build cannot use it."},
    {"device_free_memory", free_memory, METH_NOARGS,
     "device_free_memory()\n--\n\nThe free memory of the calling thread's GPU, in bytes."},
    {NULL, NULL, 0, NULL},
};

int py_device_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
