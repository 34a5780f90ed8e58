"""comm.allreduce over arrays on GPUs: the bytes of the same calls in host memory; and arrays with false
descriptions."""

import _cgxffcv
import numpy as np
import pytest
from foreign_arrays import CudaArray, Forged, address_of
from gpus import EMULATED, NCCL, needs_gpu
from ranks import Launch, start

from cgxffcv import comm

pytestmark = needs_gpu
F = np.float32


def launch(out, case, *arguments, size=2, **variables):
    variables = {"CGXFFCV_EMULATED_DEVICES": size, **variables}
    if EMULATED:
        variables["CGXFFCV_NCCL_LIBRARY"] = _cgxffcv.__file__
    return start(Launch("shm", size), out, case, *arguments, script="worker_arrays.py", **variables)


def run(out, case, *arguments, limit=120, without=(), **more):
    job = launch(out, case, *arguments, **more)
    results = job.wait(limit)
    assert all(result is not None or rank in without for rank, result in enumerate(results)), job.text()
    return results


@pytest.mark.parametrize("streams, nccl", [("", False), ("late", True)])
def test_the_bytes_of_host_memory(tmp_path, streams, nccl):
    variables = {"CGXFFCV_COMM_WINDOW_KIB": 256} | ({"CGXFFCV_COMM_EXACT_KIB": 0} if nccl else {})
    for values in run(tmp_path / "out", "gpu", limit=240, CGXFFCV_EMULATED_STREAMS=streams, **variables):
        texts = values["explained"]
        by_nccl = nccl and NCCL
        assert texts["float32 average 32"].startswith("on the GPUs by NCCL" if by_nccl else "on the GPUs by kernels")
        for name in ("float64 average 32", "int64 sum 32", "uint8 max 32", "float32 prod 32"):
            sums = "average" in name or "sum" in name
            why = "numbers other than float32, float16 and bfloat16" if sums else "operations other than sums"
            assert texts[name].startswith(f"from the GPU through host memory ({why}"), texts[name]


def test_ranks_that_ask_for_different_things(tmp_path):
    for rank, values in enumerate(run(tmp_path / "out", "differ")):
        for name, words in (("first", "on a GPU"), ("second", "average of")):
            assert values[name]["type"] == "CommError" and values[name]["rank"] == 1 - rank, values
            assert "the ranks disagree" in values[name]["text"] and words in values[name]["text"], values


def test_a_rank_that_dies(tmp_path):
    first = run(tmp_path / "out", "killed_on_gpu", 1, without=(1,), CGXFFCV_EMULATED_STREAMS="late")[0]
    assert first["type"] == "PeerLost" and first["rank"] == 1, first


# ---- descriptions of arrays ----


@pytest.fixture
def memory():
    return _cgxffcv.tensor_of_buffer(np.arange(24, dtype=F)).copy(0)


LIES = [
    ({"data": (0, False)}, ValueError, "claims to be at address 0"),
    ({"data": (4096, False)}, ValueError, "no GPU has memory"),
    ({"data": 4096}, ValueError, "a pair of an address and a bool"),
    ({"data": ("x", False)}, TypeError, "address must be a whole number"),
    ({"data": (-1, False)}, ValueError, "address"),
    ({"shape": (1 << 40,)}, ValueError, "no GPU has memory"),
    ({"shape": (1 << 62,)}, ValueError, "more elements than fit in memory"),
    ({"shape": (-4,)}, ValueError, "-4 elements"),
    ({"shape": 4}, TypeError, "dimensions"),
    ({"shape": (2.5,)}, TypeError, "shape or stride must be a whole number"),
    ({"strides": (-4,)}, ValueError, "not in C order"),
    ({"strides": (8,)}, ValueError, "not in C order"),
    ({"strides": (4, 4)}, ValueError, "strides"),
    ({"typestr": ">f4"}, TypeError, "not of a type"),
    ({"typestr": "<c8"}, TypeError, "not of a type"),
    ({"typestr": "what"}, TypeError, "what"),
    ({"mask": 3}, TypeError, "a mask"),
    ({"stream": 0}, ValueError, "stream=0"),
    ({"stream": "x"}, ValueError, "stream='x'"),
    ({"data": None, "version": None}, ValueError, "a pair"),
]


@pytest.mark.parametrize("number", range(len(LIES)))
def test_interfaces_that_lie(number):
    said, error, words = LIES[number]
    with comm.world() as world, pytest.raises(error, match=words):
        world.allreduce(CudaArray(np.ones(24, F), **said))


def test_a_dtype_says_only_what_an_interface_cannot():
    """Elements that are declared wider would reach beyond the array's end."""
    with comm.world() as world:
        for kind, dtype in ((F, "float64"), (np.uint16, "float32"), (np.uint16, "float16")):
            with pytest.raises(TypeError, match=f"is not one of {dtype}"):
                world.allreduce(CudaArray(np.ones(24, kind)), dtype=dtype)
        for typestr in ("<u2", "<V2"):
            x = CudaArray(np.full(24, 0x3F80, np.uint16), typestr=typestr)
            assert world.allreduce(x, op="sum", dtype="bfloat16") is x and (x.numpy() == 0x3F80).all()


def test_interfaces_of_all_versions(memory):
    with comm.world() as world:
        for said in ({}, {"strides": None}, {"strides": (4,)}, {"version": 2, "stream": None}, {"stream": 1}):
            x = CudaArray(np.arange(24, dtype=F), **said)
            assert world.allreduce(x, op="sum") is x and x.numpy().tolist() == list(range(24))
        with pytest.raises(ValueError, match="lacks typestr"):
            del x.said["typestr"]
            world.allreduce(x)
        sealed = CudaArray(np.ones(24, F))
        sealed.said["data"] = (sealed.said["data"][0], True)
        with pytest.raises(ValueError, match="read-only"):
            world.allreduce(sealed)
        assert world.allreduce(CudaArray(np.ones(24, F), shape=(0, 7), data=(0, False))) is not None


def test_capsules_that_lie_of_gpus(memory):
    at = address_of(memory)
    lies = [
        ({"device": (2, 7)}, "claims to be on GPU 7 at"),
        ({"device": (2, -1)}, "claims to be on GPU -1"),
        ({"device": (13, 1)}, "claims to be on GPU 1"),
        ({"data": 1 << 20, "device": (2, 0)}, "no GPU has memory"),
        ({"data": None, "device": (2, 0)}, "address 0"),
        ({"shape": (1 << 30,), "device": (2, 0)}, "no GPU has memory"),
        ({"byte_offset": 2, "shape": (2,), "device": (2, 0)}, "must begin at a multiple"),
    ]
    with comm.world() as world:
        for said, words in lies:
            forged = Forged(**({"data": at, "shape": (24,)} | said))
            with pytest.raises(ValueError, match=words):
                world.allreduce(forged)
            assert forged.deleted == 1
        for device in ((2, 0), (13, 0)):
            assert world.allreduce(Forged(at, (4,), byte_offset=16, device=device)) is not None
        moved = Forged(at, (24,), device=(2, 0))
        moved.device = (1, 0)  # not what its capsule says
        with pytest.raises(ValueError, match="which is not where its capsule is"):
            world.allreduce(moved)


def test_a_closed_communicator_ends_plans_on_gpus(memory):
    with comm.world() as world:
        plan = world.allreduce_plans(memory)[0]
        assert plan.elems == 24
    for use in (plan.explain, lambda: plan.elems, lambda: plan.run(memory), lambda: plan.call):
        with pytest.raises(ValueError, match="the communicator is closed"):
            use()
