"""The law of the rooms: which folder of csrc/ may include which, and which file may see which library."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)

# Everything may include base; nothing else may be included than what stands here.
MAY_INCLUDE = {
    "base": set(),
    "device": set(),
    "beton": {"image"},
    "image": set(),
    "comm": {"device"},
    "quant": set(),
    "allreduce": {"device", "comm", "quant"},
    "optim": {"device"},
    "augment": {"device"},
    "nn": {"device"},
    "loader": {"device", "beton", "image", "augment"},
    "train": {"device", "augment", "loader", "allreduce", "optim", "nn"},
    "python": {"device", "beton", "image", "augment", "loader", "comm", "quant", "allreduce", "optim", "nn", "train"},
}
# What other folders may include of a folder; base, which everything may include, has no private headers.
SEAMS = {
    "device": {"device.h", "kernel.cuh", "mma.cuh", "wgmma.cuh"},
    "beton": {"reader.h", "writer.h"},
    "image": {"jpeg.h", "resize.h"},
    "augment": {"augment.h", "draw.h", "operation.h", "gather.h", "triangle.h"},
    "loader": {"loader.h", "order.h", "feed.h"},
    "comm": {"comm.h"},
    "quant": {"quantize.h"},
    "allreduce": {"allreduce.h"},
    "optim": {"optim.h"},
    "nn": {"model.h", "whiten.h"},
    "train": {"gradients.h", "resident.h", "schedule.h", "trainer.h"},
}
# header: the files that may include it ("*" is one path component)
ONLY_IN = {
    "Python.h": ["python/module.h"],
    "numpy/arrayobject.h": ["python/array.c"],
    "numpy/ndarraytypes.h": [],
    "mpi.h": ["comm/mpi.c"],
    "cudnn.h": ["nn/cuda/conv/cudnn.c", "nn/cuda/conv/cudnn_graph.c", "nn/cuda/conv/cudnn_graph.h"],
    "cublasLt.h": ["optim/cuda/cublas.c"],
    "cublas_v2.h": [],
    "oneapi/dnnl/dnnl.h": ["nn/cpu/dnnl.c"],
    "turbojpeg.h": ["image/jpeg.c"],
    "nccl.h": ["comm/nccl.c"],
}
ALLOCATION = re.compile(r"\b(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup)\s*\(")


def sources():
    return sorted(p for p in CSRC.rglob("*") if p.suffix in {".c", ".h", ".cu", ".cuh"})


def includes(path):
    return [(quote == '"', name) for quote, name in INCLUDE.findall(path.read_text())]


def code(path):
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


def test_there_are_sources():
    assert len(sources()) > 10


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(CSRC)))
def test_file_obeys(path):
    relative = path.relative_to(CSRC)
    room = relative.parts[0]
    assert room in MAY_INCLUDE, f"{relative}: {room} is no room"
    for own, name in includes(path):
        if not own:
            allowed = ONLY_IN.get(name)
            assert allowed is None or str(relative) in allowed, f"{relative} may not include <{name}>"
            continue
        target = Path(name)
        assert (CSRC / target).is_file(), f'{relative}: "{name}" is not a path from csrc/'
        if target.parts[0] in (room, "base"):
            continue
        assert target.parts[0] in MAY_INCLUDE[room], f"{relative} may not include {name}: the law of the rooms"
        rest = "/".join(target.parts[1:])
        assert rest in SEAMS[target.parts[0]], f"{relative}: {name} is private to {target.parts[0]}/"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(CSRC)))
def test_file_is_small_and_allocates_through_base(path):
    relative = path.relative_to(CSRC)
    assert len(path.read_text().splitlines()) <= 600, f"{relative} is too long: split it"
    if relative.parts[0] != "base":
        found = ALLOCATION.search(code(path))
        assert found is None, f"{relative} calls {found.group(1)}(): use base/memory.h"
