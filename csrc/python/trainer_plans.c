/* What a run records of its plans: how each convolution is computed, and by which library. */
#include "python/results.h"
#include "python/trainer.h"

static PyObject *algorithm_tuple(const TrainerObject *self, const NnPlan *plan, int side, const NnPassAlgorithm *pass) {
    static const char *const sources[] = {
        [ALGORITHM_FIXED] = "fixed", [ALGORITHM_TIMED] = "timed", [ALGORITHM_CACHED] = "cached"};
    const NnAlgorithm *a = &pass->algorithm;
    PyObject *milliseconds = a->milliseconds > 0 ? PyFloat_FromDouble(a->milliseconds) : Py_NewRef(Py_None);
    return Py_BuildValue("ssiiNssNn", nn_model_desc(self->model)->nodes[pass->node].name, pass->pass, side,
                         nn_plan_batch(plan), PyBool_FromLong(pass->evaluation), a->name, sources[a->source],
                         milliseconds, (Py_ssize_t)a->workspace_bytes);
}

/* Appends the plan's. */
static PyObject *append_plan(const TrainerObject *self, const NnPlan *plan, int side, NnPassAlgorithm *room,
                             PyObject *list) {
    int count = 0;
    nn_plan_algorithms(plan, room, &count);
    for (int i = 0; list != NULL && i < count; i++) {
        list = py_results_append(list, algorithm_tuple(self, plan, side, &room[i]));
    }
    return list;
}

PyObject *py_trainer_algorithms(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    const NnPlan *plan;
    int side;
    NnPassAlgorithm *room = PyMem_Calloc(NN_MAX_PASSES, sizeof *room);
    if (room == NULL) return PyErr_NoMemory();
    if (py_trainer_enter(self) < 0) {
        PyMem_Free(room);
        return NULL;
    }
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && (plan = trainer_plan_at(self->trainer, i, &side)) != NULL; i++) {
        list = append_plan(self, plan, side, room, list);
    }
    py_trainer_leave(self);
    PyMem_Free(room);
    return list;
}

PyObject *py_trainer_library(TrainerObject *self, PyObject *Py_UNUSED(unused)) {
    NnPlanLibrary library;
    int side;
    if (py_trainer_ready(self) < 0) return NULL;
    const NnPlan *plan = trainer_plan_at(self->trainer, 0, &side);
    if (plan == NULL) Py_RETURN_NONE;
    nn_plan_library(plan, &library);
    return Py_BuildValue("sss", library.name, library.cache, library.note);
}
