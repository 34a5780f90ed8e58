/* What this build contains and what this processor can do; which libraries it has opened, and where it looks for
 * them. */
#include "python/arguments.h"

#include "base/cpu.h"
#include "base/library.h"
#include "comm/comm.h"
#include "device/device.h"
#include "nn/libraries.h"

#define FOLDERS_MAX 256

static PyObject *build_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    const CpuFeatures *cpu = cpu_features();
    return Py_BuildValue("{sN sN sN sN sN ss s{sN sN sN sN} ss si}", "cuda", PyBool_FromLong(CGXFFCV_WITH_CUDA), "mpi",
                         PyBool_FromLong(CGXFFCV_WITH_MPI), "nccl", PyBool_FromLong(CGXFFCV_WITH_NCCL), "onednn",
                         PyBool_FromLong(CGXFFCV_WITH_ONEDNN), "jpeg", PyBool_FromLong(CGXFFCV_WITH_JPEG),
                         "cuda_architectures", device_architectures(), "cpu", "avx2", PyBool_FromLong(cpu->avx2),
                         "avx512", PyBool_FromLong(cpu->avx512), "avx512_bf16", PyBool_FromLong(cpu->avx512_bf16),
                         "amx_bf16", PyBool_FromLong(cpu->amx_bf16), "compiler", __VERSION__, "cpus", cpu_count());
}

static PyObject *nccl_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    int version;
    Py_BEGIN_ALLOW_THREADS; /* it may load a large library */
    version = comm_nccl_version();
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(version);
}

static PyObject *cudnn_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    int version;
    Py_BEGIN_ALLOW_THREADS;
    version = nn_cudnn_version();
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(version);
}

static PyObject *mpi_library(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"open", NULL};
    int open = 0;
    CommMpiName name;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:mpi_library", names, &open)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = comm_mpi_name(open, &name);
    Py_END_ALLOW_THREADS;
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    if (name.family == NULL) Py_RETURN_NONE;
    return Py_BuildValue("{ss sO& ss}", "family", name.family, "path", PyUnicode_DecodeFSDefault, name.path, "version",
                         name.version);
}

/* Libraries are looked for where Python looks for packages at the time of the import. Entries that are not text hold no
 * packages. */
static int take_folders(void) {
    PyObject *path = PySys_GetObject("path"); /* borrowed */
    const char *folders[FOLDERS_MAX];
    int count = 0;
    PyObject *entries = path == NULL ? NULL : py_arguments_tuple(path, "entries of sys.path", 0, FOLDERS_MAX);
    for (Py_ssize_t i = 0; entries != NULL && i < PyTuple_GET_SIZE(entries); i++) {
        PyObject *entry = PyTuple_GET_ITEM(entries, i);
        const char *folder = PyUnicode_Check(entry) ? PyUnicode_AsUTF8(entry) : NULL;
        if (folder != NULL && folder[0] == '/') folders[count++] = folder;
    }
    PyErr_Clear();
    Status status = library_set_folders(folders, count);
    Py_XDECREF(entries);
    if (status == STATUS_OK) return 0;
    PyErr_NoMemory();
    return -1;
}

static PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info()\n--\n\nThe optional parts of this build, the compiler, and the processor's features, as a dict."},
    {"nccl_version", nccl_version, METH_NOARGS,
     "nccl_version()\n--\n\n"
     "The version of the NCCL library that sums between GPUs would use: 22809 is 2.28.9; 0 without one."},
    {"cudnn_version", cudnn_version, METH_NOARGS,
     "cudnn_version()\n--\n\n"
     "The version of the cuDNN library that convolutions on GPUs would use: 91300 is 9.13.0; 0 without one."},
    {"mpi_library", PY_KEYWORDS(mpi_library),
     "mpi_library(open=False)\n--\n\n"
     "The MPI library that this process has opened, as a dict of family ('Open MPI'), path and version; None if it\n"
     "has not opened one, as before ranks meet. With open=True, opens the one that ranks started from here would use;\n"
     "NotBuiltError if there is none, CommError if it is unusable."},
    {NULL, NULL, 0, NULL},
};

int py_build_info_add(PyObject *module) { return take_folders() < 0 ? -1 : PyModule_AddFunctions(module, functions); }
