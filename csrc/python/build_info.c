/* What this build holds and what this processor can do. */
#include "python/module.h"

#include "base/cpu.h"
#include "comm/comm.h"
#include "device/device.h"

static PyObject *build_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    const CpuFeatures *cpu = cpu_features();
    return Py_BuildValue("{sN sN sN sN sN ss s{sN sN sN sN} ss si}", "cuda", PyBool_FromLong(CGXFFCV_WITH_CUDA), "mpi",
                         PyBool_FromLong(CGXFFCV_WITH_MPI), "nccl", PyBool_FromLong(CGXFFCV_WITH_NCCL), "onednn",
                         PyBool_FromLong(CGXFFCV_WITH_ONEDNN), "jpeg", PyBool_FromLong(CGXFFCV_WITH_JPEG),
                         "cuda_architectures", device_architectures(), "cpu", "avx2", PyBool_FromLong(cpu->avx2),
                         "avx512", PyBool_FromLong(cpu->avx512), "avx512_bf16", PyBool_FromLong(cpu->avx512_bf16),
                         "amx_bf16", PyBool_FromLong(cpu->amx_bf16), "compiler", __VERSION__, "cpus", cpu_count());
}

static PyObject *nccl_version(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    int version;
    Py_BEGIN_ALLOW_THREADS; /* it may load a large library */
    version = comm_nccl_version();
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(version);
}

static PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info()\n--\n\nThe optional parts of this build, the compiler, and the processor's features, as a dict."},
    {"nccl_version", nccl_version, METH_NOARGS,
     "nccl_version()\n--\n\nThe version of the NCCL library that sums between GPUs would go through: 22809 is 2.28.9; "
     "0 without one."},
    {NULL, NULL, 0, NULL},
};

int py_build_info_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
