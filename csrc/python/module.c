/* _cgxffcv: multi-phase initialisation; each binding file adds its part. */
#include "python/module.h"

#include "base/cpu.h"
#include "python/array.h"

typedef int (*AddPart)(PyObject *module);

static const AddPart parts[] = {
    py_array_add,           py_errors_add,
    py_build_info_add,      py_optimizer_add,
    py_trainer_add,         py_device_add,
    py_reader_add,          py_writer_add,
    py_encoder_add,         py_jpeg_add,
    py_files_add,           py_comm_add,
    py_loader_add,          py_quantize_add,
    py_quantize_device_add, py_nn_add,
    py_nn_plan_add,         py_allreduce_add,
    py_runner_add,          py_loader_order_add,
    py_names_add,           py_operations_add,
    py_nn_whiten_add,       py_trial_add,
    py_tensor_add,          py_allreduce_arrays_add,
    py_stages_add,          py_adapt_add,
};

static int warn_of_settings(void) {
    const char *limit = cpu_unknown_limit();
    if (limit == NULL) return 0;
    return PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                            "CGXFFCV_CPU='%s' has no effect: scalar, avx2 or avx512 is expected", limit);
}

static int module_exec(PyObject *module) {
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i](module) < 0) return -1;
    }
    return warn_of_settings();
}

#define STATE_VISIT_ALL(X)                                                                                             \
    X(beton_error)                                                                                                     \
    X(cuda_error)                                                                                                      \
    X(comm_error)                                                                                                      \
    X(comm_timeout)                                                                                                    \
    X(peer_lost)                                                                                                       \
    X(not_built_error)                                                                                                 \
    X(comm_type)                                                                                                       \
    X(tensor_type)                                                                                                     \
    X(allreduce_type)                                                                                                  \
    X(allreduce_run_type) X(loader_type) X(loader_batch_type) X(model_type) X(trainer_type)

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    ModuleState *state = py_module_state(module);
#define VISIT(name) Py_VISIT(state->name);
    STATE_VISIT_ALL(VISIT)
#undef VISIT
    return 0;
}

static int module_clear(PyObject *module) {
    ModuleState *state = py_module_state(module);
#define CLEAR(name) Py_CLEAR(state->name);
    STATE_VISIT_ALL(CLEAR)
#undef CLEAR
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,         .m_name = "_cgxffcv",    .m_doc = "The C core of cgxffcv. Import cgxffcv instead.",
    .m_size = sizeof(ModuleState), .m_slots = module_slots, .m_traverse = module_traverse,
    .m_clear = module_clear,       .m_free = module_free,
};

ModuleState *py_module_state(PyObject *module) { return PyModule_GetState(module); }

ModuleState *py_module_state_of_type(PyTypeObject *type) { return PyType_GetModuleState(type); }

ModuleState *py_module_state_of(const void *object) {
    return py_module_state_of_type(Py_TYPE((PyObject *)(uintptr_t)object));
}

int py_module_add_type(PyObject *module, const char *name, size_t object_bytes, unsigned long flags, PyType_Slot *slots,
                       PyObject **keep) {
    PyType_Spec spec = {.name = name,
                        .basicsize = (int)object_bytes,
                        .flags = (unsigned)(Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | flags),
                        .slots = slots};
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL) return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    if (keep != NULL) *keep = Py_NewRef(type);
    Py_DECREF(type);
    return result;
}

void py_module_free_object(void *object) {
    PyTypeObject *type = Py_TYPE((PyObject *)object);
    type->tp_free(object);
    Py_DECREF(type);
}

PyMODINIT_FUNC PyInit__cgxffcv(void); /* the one exported name; no header declares it */
PyMODINIT_FUNC PyInit__cgxffcv(void) { return PyModuleDef_Init(&definition); }
