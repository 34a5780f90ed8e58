/* The module's state, and declarations shared by the binding files. Only files of this folder include it. */
#ifndef CGXFFCV_PYTHON_MODULE_H
#define CGXFFCV_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/status.h"

/* Everything the module keeps alive; all owned. */
typedef struct ModuleState {
    PyObject *beton_error, *cuda_error, *comm_error, *comm_timeout, *peer_lost, *not_built_error;
    PyObject *comm_type, *tensor_type, *allreduce_type, *allreduce_run_type;
    PyObject *loader_type, *loader_batch_type;
    PyObject *model_type, *trainer_type;
} ModuleState;

ModuleState *py_module_state(PyObject *module);

/* The state of the module that defined a heap type of ours, or that of an object. */
ModuleState *py_module_state_of_type(PyTypeObject *type);
ModuleState *py_module_state_of(const void *object);

/* Creates a heap type and adds it to the module; `flags` are those that not all types here have. `keep`, in the
 * module's state, gets it, too, unless that is NULL. 0 or -1. */
int py_module_add_type(PyObject *module, const char *name, size_t object_bytes, unsigned long flags, PyType_Slot *slots,
                       PyObject **keep);

/* The last step of freeing an object of such a type. */
void py_module_free_object(void *object);

/* A function for a table of methods, whatever its argument types; the second also says that it takes keywords. */
#define PY_METHOD(function) (PyCFunction)(void (*)(void))(function)
#define PY_KEYWORDS(function) PY_METHOD(function), METH_VARARGS | METH_KEYWORDS

/* Each binding file adds its types and functions; 0, or -1 with an exception set. */
int py_errors_add(PyObject *module);
int py_build_info_add(PyObject *module);
int py_comm_add(PyObject *module);
int py_optimizer_add(PyObject *module);
int py_nn_whiten_add(PyObject *module);
int py_trainer_add(PyObject *module);
int py_device_add(PyObject *module);
int py_reader_add(PyObject *module);
int py_writer_add(PyObject *module);
int py_encoder_add(PyObject *module);
int py_files_add(PyObject *module);
int py_jpeg_add(PyObject *module);
int py_loader_add(PyObject *module);
int py_loader_order_add(PyObject *module);
int py_operations_add(PyObject *module);
int py_quantize_add(PyObject *module);
int py_quantize_device_add(PyObject *module);
int py_nn_add(PyObject *module);
int py_nn_plan_add(PyObject *module);
int py_allreduce_add(PyObject *module);
int py_trial_add(PyObject *module);
int py_allreduce_arrays_add(PyObject *module);
int py_tensor_add(PyObject *module);
int py_stages_add(PyObject *module);
int py_adapt_add(PyObject *module);
int py_runner_add(PyObject *module);
int py_names_add(PyObject *module);

/* errors.c: raises the thread's error record as the Python exception of its code; always NULL. */
PyObject *py_errors_raise(ModuleState *state, Status status);

/* The same unless the status is STATUS_OK: then the result, which is released otherwise; None; or 0 instead of -1. */
PyObject *py_errors_result(ModuleState *state, Status status, PyObject *result);
PyObject *py_errors_none(ModuleState *state, Status status);
int py_errors_check(ModuleState *state, Status status);

/* Sets an exception as PyErr_Format does; -1. A macro, so that the compiler knows that nothing follows. */
#define PY_REFUSE(...) (PyErr_Format(__VA_ARGS__), -1)

/* Called by waits of the core, without the GIL: STATUS_INTERRUPTED if a signal's handler has raised an exception. */
Status py_errors_check_signals(void *context);

#endif
