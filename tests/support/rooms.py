"""The rooms of csrc/: which may include which, which headers they make public, which file may use which library."""

import re

from checkout import CSRC

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)

# Everything may include base; otherwise only what is listed here may be included.
MAY_INCLUDE = {
    "base": set(),
    "device": set(),
    "beton": {"image"},
    "image": set(),
    "comm": {"device"},
    "quant": {"device"},
    "allreduce": {"device", "comm", "quant"},
    "optim": {"device"},
    "augment": {"device"},
    "nn": {"device"},
    "loader": {"device", "beton", "image", "augment"},
    "train": {"device", "augment", "loader", "allreduce", "optim", "nn"},
    "python": {"device", "beton", "image", "augment", "loader", "comm", "quant", "allreduce", "optim", "nn", "train"},
}
# The headers of a folder that other folders may include; base, which everything may include, has no private ones.
SEAMS = {
    "device": {"device.h", "kernel.cuh", "mma.cuh", "signal.cuh", "wgmma.cuh"},
    "beton": {"reader.h", "writer.h"},
    "image": {"jpeg.h", "resize.h"},
    "augment": {"augment.h", "convert.h", "draw.h", "operation.h", "gather.h", "moments.h", "shrink.h"},
    "loader": {"loader.h", "order.h", "feed.h"},
    "comm": {"comm.h", "window.h", "window.cuh"},
    "quant": {
        "quantize.h",
        "device.h",
        "formula.h",
        "residual.h",
        "cuda/warp.cuh",
        "cuda/bucket.cuh",
        "cuda/quads.cuh",
        "cuda/rotated.cuh",
    },
    "allreduce": {"adapt.h", "allreduce.h", "trial.h"},
    "optim": {"optim.h"},
    "nn": {"libraries.h", "model.h", "whiten.h"},
    "train": {"gradients.h", "runner.h", "schedule.h", "trainer.h"},
}
# header: the files that may include it ("*" is one path component)
ONLY_IN = {
    "Python.h": ["python/module.h"],
    "numpy/arrayobject.h": ["python/array.c"],
    "numpy/ndarraytypes.h": [],
    "mpi.h": [],
    "cudnn.h": ["nn/cuda/conv/cudnn_library.h"],
    "cublasLt.h": ["optim/cuda/cublas.c"],
    "cublas_v2.h": [],
    "oneapi/dnnl/dnnl.h": ["nn/cpu/dnnl.c"],
    "jpeglib.h": ["image/jpeg.c"],
    "nccl.h": ["comm/nccl.c"],
}


def sources():
    return sorted(p for p in CSRC.rglob("*") if p.suffix in {".c", ".h", ".cu", ".cuh"})


def includes(path):
    return [(quote == '"', name) for quote, name in INCLUDE.findall(path.read_text())]


def code(path):
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)
