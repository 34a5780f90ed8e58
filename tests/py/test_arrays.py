"""comm.allreduce over arrays of any framework, with threads as ranks, against NumPy and against plans."""

import array
import ctypes
import gc
import os
import re
import signal
import threading
import warnings
import weakref
from importlib.util import find_spec

import _cgxffcv
import numpy as np
import pytest
from checkout import ROOT, run_python
from foreign_arrays import Dlpack, Forged, Jax, Versioned, address_of
from thread_ranks import all_good, on_ranks, run_ranks

from cgxffcv import allreduce as ar
from cgxffcv import arrays, comm

F = np.float32


def noise(rank, shape=(40, 60), dtype=F):
    return (np.random.default_rng(rank).standard_normal(shape) * 50).astype(dtype)


def ranks(function, size=2, **more):
    return all_good(run_ranks(size, function, **more))


# ---- exact, whatever the type and the framework ----


@pytest.mark.parametrize("dtype", [d for d in ar.DTYPES if d != "bfloat16"])
@on_ranks(3)
def test_exact_in_place_of_every_type(world, rank, dtype):
    ops = {"sum": np.add, "min": np.minimum, "max": np.maximum, "prod": np.multiply}
    inputs = [noise(rank, (7, 5), dtype) for rank in range(3)]
    for op, function in ops.items():
        x = inputs[rank].copy()
        wide = [i.astype(F) if dtype == "float16" else i for i in inputs]
        with np.errstate(over="ignore"):
            expected = function(function(wide[0], wide[1]), wide[2]).astype(dtype)
        assert world.allreduce(x, op=op) is x
        assert x.tobytes() == expected.tobytes(), op


def test_scalars_empty_arrays_and_a_rank_alone():
    def work(world, rank):
        assert world.allreduce(np.array(float(rank))) == (world.size - 1) / 2
        assert world.allreduce(np.zeros((0, 3))).shape == (0, 3)
        assert world.allreduce([]) == [] and world.allreduce({}) == {}
        assert world.allreduce([np.zeros(0, F), np.full(3, rank, F)], op="sum")[1][0] == sum(range(world.size))

    ranks(work, 1)
    ranks(work, 2)


def shown(kind, x):
    return {
        "versioned": lambda: Dlpack(x),
        "old": lambda: Dlpack(x, versioned=False),
        "memoryview": lambda: memoryview(x),
        "tensor": lambda: _cgxffcv.tensor_of_buffer(x),
        "ctypes": lambda: (ctypes.c_float * x.size).from_buffer(x),
        "array": lambda: array.array("f", x.tolist()),
    }[kind]()


@pytest.mark.parametrize("kind", ["versioned", "old", "memoryview", "tensor", "ctypes", "array"])
@on_ranks(2)
def test_other_arrays_are_reduced_where_they_lie(world, rank, kind):
    memory = np.full(12, rank, F)
    x = shown(kind, memory[2:10])
    assert world.allreduce(x, op="sum") is x
    if kind == "array":
        assert x.tolist() == [1.0] * 8
    else:
        assert (memory[2:10] == 1).all() and (memory[[0, 1, 10, 11]] == rank).all()


@on_ranks(2)
def test_bfloat16(world, rank):
    x = np.array([0x3F80, 0x4000 + rank * 0x80], np.uint16)  # 1 and 2 or 4
    y = _cgxffcv.tensor_of_buffer(x.copy(), "bfloat16")
    world.allreduce(x, dtype="bfloat16")
    assert x.tolist() == [0x3F80, 0x4040]  # 1 and 3
    assert world.allreduce(Dlpack(y)) is not None and y.numpy().tolist() == x.tolist()
    z = np.array([1, 2], np.uint16)
    assert world.allreduce(z, op="sum").tolist() == [2, 4]


@on_ranks(2)
def test_arrays_that_never_change_give_new_ones(world, rank):
    x = Jax(np.full((3, 2), rank, F))
    new = world.allreduce(x, op="sum")
    assert isinstance(new, Jax) and (new.numpy() == 1).all() and (x.numpy() == rank).all()
    later = world.allreduce_async({"x": x}, op="sum").wait()["x"]
    assert isinstance(later, Jax) and (later.numpy() == 1).all()
    with pytest.raises(ValueError, match="arrays of jax cannot be changed in place"):
        world.allreduce(x, in_place=True)


@on_ranks(2)
def test_new_arrays_on_request(world, rank):
    x = np.full((2, 3), rank, F)
    x.flags.writeable = False
    new = world.allreduce(x, op="sum", in_place=False)
    assert type(new) is np.ndarray and new.shape == (2, 3) and (new == 1).all() and (x == rank).all()
    pair = world.allreduce((x, Dlpack(x)), op="sum", in_place=False)
    assert isinstance(pair, tuple) and all((item == 1).all() for item in pair)


# ---- several at once ----


@on_ranks(3)
def test_a_dict_is_one_call_by_name_in_any_order(world, rank):
    inputs = [{"w": noise(r), "b": noise(r + 9, 60), "n": np.array([r, 5]), "d": np.array([r / 3])} for r in range(3)]
    own = {name: inputs[rank][name].copy() for name in (reversed(inputs[rank]) if rank else inputs[rank])}
    out = world.allreduce(own, op="sum")
    assert list(out) == list(own) and all(out[name] is own[name] for name in own)
    for name in own:
        assert (own[name] == inputs[0][name] + inputs[1][name] + inputs[2][name]).all(), name
    assert len(world._kept["arrays"].plans) == 3  # one for each type


@on_ranks(2)
def test_several_arrays_give_the_bytes_of_one_plan(world, rank):
    """Those of one dimension stay exact; views that follow each other in memory need no copy."""
    options = {"bits": {"default": 4, "2": 2}, "bucket_size": 256, "rounding": "stochastic", "seed": 3}
    flat = np.concatenate([noise(rank).ravel(), noise(rank + 5, 3000), noise(rank + 7, (30, 50)).ravel()])
    layers = [("0", (40, 60)), ("1", (3000,)), ("2", (30, 50))]
    expected = ar.AllreducePlan(world, layers, algorithm="sra", **options).run(flat.copy())
    views = [flat[:2400].reshape(40, 60), flat[2400:5400], flat[5400:].reshape(30, 50)]
    apart = [view.copy() for view in views]
    world.allreduce(apart, algorithm="sra", **options)
    assert np.concatenate([x.ravel() for x in apart]).tobytes() == expected.tobytes()
    plan = world.allreduce_plans(views, algorithm="sra", **options)[0]
    plan.call = 0
    world.allreduce(views, algorithm="sra", **options)
    assert flat.tobytes() == expected.tobytes()
    assert "quantised: 2 layers" in plan.explain() and plan.wire_bytes < plan.plain_bytes


@on_ranks(4)
def test_groups_of_ranks(world, rank):
    half = world.split(rank % 2, rank)
    x = np.full(5000, rank, F)
    half.allreduce(x, op="sum", bits=8)
    h = half.allreduce_async(x.copy(), op="max")
    assert (x == [2, 4][rank % 2]).all() and (h.wait() == x).all()
    assert (world.allreduce(x) == 3).all()
    half.close()


# ---- what is kept ----


@on_ranks(2)
def test_error_feedback_goes_by_key_not_by_order(world, rank):
    a, b = noise(rank, (50, 50)), noise(rank + 3, (50, 50))
    options = {"error_feedback": True, "algorithm": "sra"}  # "auto" may find that plain is faster
    plans = [ar.AllreducePlan(world, [(2500)], bits={0: 2}, **options) for _ in range(2)]
    options["bits"] = 2
    for step in range(4):
        order = ["a", "b"] if step % 2 else ["b", "a"]
        ours = {key: world.allreduce({"a": a, "b": b}[key].copy(), key=key, **options) for key in order}
        world.allreduce(a.copy(), key="c", **options)
        for key, x, plan in (("a", a, plans[0]), ("b", b, plans[1])):
            assert ours[key].tobytes() == plan.run(x.copy()).tobytes()
    kept = world.allreduce_plans(a, key="a", **options)[0]
    assert kept.call == 4 and kept.residual.tobytes() == plans[0].residual.tobytes()
    with pytest.raises(ValueError, match="key 'a' belongs to other arrays or options: .*shape 2500.*shape 2499"):
        world.allreduce(a.ravel()[1:], key="a", **options)


@on_ranks(2)
def test_only_so_many_plans_are_kept(world, rank):
    for elems in (*range(1, 40), 5, 39):
        assert (world.allreduce(np.full(elems, rank, F), op="sum") == 1).all()
    kept = world._kept["arrays"]
    assert len(kept.plans) == arrays.KEPT_PLANS
    made = kept.made
    world.allreduce(np.ones(39, F), op="sum")
    assert kept.made == made == 40
    if rank == 0:  # a plan that one rank has lost, all make again
        kept.plans.clear()
    assert (world.allreduce(np.full(39, rank, F), op="sum") == 1).all() and kept.made == 41


@on_ranks(2)
def test_plans_made_again_draw_other_random_numbers(world, rank):
    x, drawn = noise(rank, 4000), []
    for _ in range(2):
        drawn.append(world.allreduce(x.copy(), bits=3, rounding="stochastic", algorithm="sra").tobytes())
        world._kept["arrays"].plans.clear()
    assert drawn[0] != drawn[1]


def test_a_closed_communicator_lets_everything_go():
    def work(world, rank):
        world.allreduce_async(noise(rank)).wait()
        plan = world.allreduce_plans(noise(rank))[0]
        half = world.split(0)
        half.allreduce(noise(rank))
        dead = weakref.ref(half)
        half.close()
        with pytest.raises(ValueError, match="the communicator is closed"):
            half.allreduce(noise(rank))
        del half
        world.close()
        with pytest.raises(ValueError, match="the communicator is closed"):
            plan.run(noise(rank).ravel())
        return dead

    for dead in ranks(work):
        gc.collect()
        assert dead() is None


# ---- what is refused ----

REFUSED = [
    (lambda: 3.0, {}, TypeError, "the array: an array is expected .* not float"),
    (lambda: [1.0, 2.0], {}, TypeError, r"arrays\[0\]: an array is expected"),
    (lambda: {"a": "text"}, {}, TypeError, r"arrays\['a'\]: an array is expected .* not str"),
    (lambda: {1: np.ones(2)}, {}, TypeError, "keys of a dict must be strings"),
    (lambda: np.array([object()]), {}, (TypeError, ValueError), "the array: "),
    (lambda: np.ones(3, bool), {}, TypeError, "not of a type that is summed"),
    (lambda: np.ones(3, complex), {}, TypeError, "not of a type that is summed"),
    (lambda: np.ones(3, ">f4"), {}, TypeError, "not of a type that is summed"),
    (lambda: np.ma.masked_array(np.ones(3), [0, 1, 0]), {}, TypeError, "masked"),
    (lambda: np.ones((4, 4), F)[:, ::2], {}, ValueError, "the array is not in C order"),
    (lambda: np.arange(16.0).reshape(4, 4).T, {}, ValueError, "not in C order"),
    (lambda: np.ones(4, F)[::-1], {"in_place": False}, ValueError, "not in C order"),
    (lambda: np.broadcast_to(np.ones(1, F), 4), {}, ValueError, "not in C order"),
    (lambda: memoryview(b"abcd"), {"op": "sum"}, ValueError, "the array is read-only"),
    (lambda: np.ones(3), {"bits": 4}, ValueError, "the array has the dtype float64, which is only sent exactly"),
    (lambda: [np.ones(3, F), np.ones(3, int)], {"bits": 4}, ValueError, "array 1 has the dtype int64"),
    (lambda: np.ones(3, F), {"bits": 4, "op": "max"}, ValueError, "op='max' is never quantised"),
    (lambda: np.ones(3, F), {"bits": 9}, ValueError, "bits must be between 1 and 8"),
    (lambda: np.ones(3, int), {}, ValueError, "an average of int64 is not of type int64"),
    (lambda: np.ones(3, F), {"op": "mean"}, ValueError, "op"),
    (lambda: np.ones(3, F), {"error_feedback": True, "bits": 4}, ValueError, "needs key="),
    (lambda: np.ones(3, F), {"key": 7}, TypeError, "key must be a string"),
    (lambda: np.ones(3, F), {"stream": "fast"}, TypeError, "stream must be a CUDA stream or its address"),
    (lambda: np.ones(3, F), {"device": 0}, TypeError, "takes no 'device'"),
    (lambda: np.ones(3, F), {"nonsense": 0}, TypeError, "takes no 'nonsense'; its options are bucket_size, "),
    (lambda: np.ones(3, F), {"bucketsize": 8}, TypeError, "did you mean bucket_size"),
    (
        lambda: np.ones(3, F),
        {"timeout": "x"},
        TypeError,
        "timeout must be a number of seconds above 0, or None, not 'x'",
    ),
    (lambda: np.ones(3, F), {"timeout": True}, TypeError, "timeout must be .* not True"),
    (lambda: np.ones(3, F), {"timeout": -1}, ValueError, "timeout must be .* not -1"),
    (lambda: np.ones(3, F), {"op": None}, ValueError, "op must be one of sum, average, min, max, prod, not None"),
    (
        lambda: np.ones(3, F),
        {"error_feedback": "no", "key": "k"},
        ValueError,
        "error_feedback must be True, False or one",
    ),
    (lambda: np.ones(3, F), {"half_metadata": 1}, TypeError, "half_metadata must be True or False, not 1"),
    (lambda: np.ones(3, F), {"in_place": "no"}, TypeError, "in_place must be True or False, not 'no'"),
    (lambda: np.ones(3, np.int16), {"dtype": "float32"}, TypeError, "float32"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals_name_what_is_wrong(number):
    make, options, error, words = REFUSED[number]
    with comm.world() as world:
        for call in (world.allreduce, lambda *a, **k: world.allreduce_async(*a, **k).wait()):
            with pytest.raises(error, match=words):
                call(make(), **options)


class Raising:
    def __init__(self, error, where):
        self.error, self.where = error, where

    def __dlpack_device__(self):
        if self.where == "device":
            raise self.error
        return (1, 0)

    def __dlpack__(self, **how):
        raise self.error


@pytest.mark.parametrize("where", ["device", "capsule"])
def test_an_array_that_raises(where):
    class Own(Exception):
        pass

    with comm.world() as world:
        for error in (Own("mine"), KeyError("mine"), MemoryError("mine"), BufferError("mine")):
            with pytest.raises(type(error), match="mine"):
                world.allreduce(Raising(error, where))


MEMORY = np.arange(64, dtype=F)
LIES = [
    ({"data": None, "shape": (3,)}, ValueError, "3 elements claims to be at address 0"),
    ({"shape": (-3,)}, ValueError, "-3 elements in dimension 0"),
    ({"shape": (2, -1, 0)}, ValueError, "-1 elements in dimension 1"),
    ({"shape": (1 << 40, 1 << 40)}, ValueError, "more elements than fit in memory"),
    ({"shape": (1 << 62,)}, ValueError, "more elements than fit in memory"),
    ({"data": (1 << 64) - 8, "shape": (8,)}, ValueError, "more elements than fit in memory"),
    ({"shape": (4,), "byte_offset": (1 << 64) - 1}, ValueError, "beyond the end of memory"),
    ({"shape": (4,), "strides": (-1,)}, ValueError, "not in C order"),
    ({"shape": (4,), "strides": (0,)}, ValueError, "not in C order"),
    ({"shape": (2, 2), "strides": (1, 2)}, ValueError, "not in C order"),
    ({"shape": None, "ndim": 2}, ValueError, "2 dimensions and no shape"),
    ({"shape": (4,), "ndim": -1}, ValueError, "-1 dimensions"),
    ({"shape": (4,), "ndim": 65}, ValueError, "65 dimensions"),
    ({"shape": (4,), "lanes": 4}, TypeError, "4 lanes of 32 bits"),
    ({"shape": (4,), "code": 5, "bits": 64}, TypeError, "kind 5"),
    ({"shape": (4,), "bits": 7}, TypeError, "7 bits"),
    ({"shape": (4,), "device": (10, 0)}, TypeError, "device of type 10"),
    ({"shape": (4,), "kind": Versioned, "major": 2}, BufferError, "DLPack 2.0"),
    ({"shape": (4,), "kind": Versioned, "flags": 1}, ValueError, "read-only"),
]


@pytest.mark.parametrize("number", range(len(LIES)))
def test_capsules_that_lie(number):
    said, error, words = LIES[number]
    forged = Forged(**({"data": MEMORY.ctypes.data} | said))
    with comm.world() as world, pytest.raises(error, match=words):
        world.allreduce(forged)
    assert forged.deleted == 1


def test_capsules_are_used_once_and_given_back_once():
    forged = Forged(MEMORY.ctypes.data, (1, 4, 1), (77, 1, -5), byte_offset=16)
    with comm.world() as world:
        assert world.allreduce(forged) is forged and forged.deleted == 1
    capsule = np.ones(3, F).__dlpack__()
    tensor = _cgxffcv.tensor_of_dlpack(capsule)
    for used in (capsule, object(), None):
        with pytest.raises(TypeError, match="an unused DLPack capsule"):
            _cgxffcv.tensor_of_dlpack(used)
    assert tensor.numpy().tolist() == [1, 1, 1] and tensor.shape == (3,)


def test_a_tensor_is_handed_on():
    x = np.arange(6, dtype=F).reshape(2, 3)
    tensor = _cgxffcv.tensor_of_buffer(x)
    back = np.from_dlpack(tensor)
    assert back.ctypes.data == x.ctypes.data == address_of(tensor) and back.shape == (2, 3)
    copied = tensor.copy()
    capsule = copied.__dlpack__()  # nothing takes the array out of it
    x[:] = 0
    assert copied.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    del capsule
    x.flags.writeable = False
    sealed = _cgxffcv.tensor_of_buffer(x)
    assert not np.from_dlpack(sealed).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        sealed.__dlpack__()
    with pytest.raises(BufferError, match="another device"):
        tensor.__dlpack__(dl_device=(2, 0))
    if not _cgxffcv.devices():
        with pytest.raises((_cgxffcv.NotBuiltError, _cgxffcv.CudaError)):
            tensor.copy(0)


# ---- ranks that differ ----

DIFFERENT = [
    (lambda r: (np.ones(9 + r, F), {}), "array 0 of shape 9.*array 0 of shape 10"),
    (lambda r: (np.ones(9, [F, int][r]), {"op": "sum"}), "array.s. of float32.*array.s. of int64"),
    (lambda r: (np.ones(9, F), {"bits": 3 + r}), "in 3 bits.*in 4 bits"),
    (lambda r: (np.ones(9, F), {"op": ["sum", "max"][r]}), "expected sum of.*has max of"),
    (lambda r: ({"xy"[r]: np.ones(9, F)}, {}), "array x of shape.*array y of shape"),
    (lambda r: ([np.ones(9, F)] * (1 + r), {}), "of 1 array.*of 2 array"),
    (lambda r: (np.ones(9, F), {"seed": r + 1, "bits": 4}), "seed=1.*seed=2"),
    (lambda r: (np.ones(9, F), {"key": "ab"[r]}), "key 'a'.*key 'b'"),
    (lambda r: (np.ones(9, F), {"timeout": 9.0} if r else {}), "array 0 of shape 9.*timeout=9.0"),
]


@pytest.mark.parametrize("number", range(len(DIFFERENT)))
def test_a_difference_is_an_error_on_all_ranks(number):
    make, words = DIFFERENT[number]

    def work(world, rank):
        world.allreduce(np.ones(3, F))
        things, options = make(int(rank == 2))
        for call in (world.allreduce, lambda *a, **k: world.allreduce_async(*a, **k).wait()):
            part = world.split(0)
            with pytest.raises(comm.CommError, match="the ranks disagree") as raised:
                (part.allreduce if call == world.allreduce else call)(things, **options)
            assert raised.value.rank == (0 if rank == 2 else 2) and raised.value.operation == "allreduce"
        return str(raised.value)

    texts = ranks(work, 3)
    assert re.search(words, texts[0]), texts[0]


@on_ranks(2)
def test_all_types_are_compared_before_anything_moves(world, rank):
    x = np.full(9, rank, F)
    for asks in (lambda part, a: part.allreduce(a), lambda part, a: part.allreduce_async(a).wait()):
        with pytest.raises(comm.CommError, match="the ranks disagree"):
            asks(world.split(0), [x, np.ones(9 + rank)])
        assert (x == rank).all()


# ---- in the background ----


@on_ranks(3)
def test_calls_in_the_background_keep_their_order(world, rank):
    xs = [noise(rank + 10 * i, 5000) for i in range(6)]
    sums = [sum(noise(r + 10 * i, 5000).astype(np.float64) for r in range(3)) for i in range(6)]
    handles = [world.allreduce_async(x, op="sum", bits=32 if i % 2 else 8) for i, x in enumerate(xs)]
    world.barrier()  # the communicator is free meanwhile
    kept = [weakref.ref(x) for x in xs]
    del xs
    gc.collect()
    assert all(ref() is not None for ref in kept)  # the handles keep them
    for i in (5, 0, 3, 1, 2, 4):
        out = handles[i].wait()
        assert out is kept[i]() and handles[i].done() and handles[i].wait() is out
        assert np.abs(out - sums[i]).max() < (1e-3 if i % 2 else 8)
    assert handles[0].synchronize() is not None


def test_a_handle_that_nobody_waits_for_lets_its_call_run():
    def work(world, rank):
        x = noise(rank, 5000)
        world.allreduce_async(x, op="sum")
        assert (world.allreduce_async(np.full(3, rank, F), op="sum").wait() == 1).all()
        return x.tobytes()

    a, b = ranks(work)
    assert a == b


def test_failures_in_the_background_are_raised_by_wait():
    def work(world, rank):
        x = np.ones(5, F)
        handle = world.allreduce_async(x, op="sum")
        handle.wait()
        if rank == 1:
            raise RuntimeError("rank 1 has enough")
        handle = world.allreduce_async(x, op="sum")
        with pytest.raises(comm.CommError, match="rank 1 has enough|left"):
            handle.wait()
        assert handle.done()
        lost = world.allreduce_async(x, op="sum")
        while not lost.done():
            pass
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del lost
        assert "that nobody waited for failed" in str(seen[0].message)
        return "seen"

    first, second = run_ranks(2, work)
    assert first == "seen" and "has enough" in str(second)


def test_a_forked_child_is_refused():
    with comm.world() as world:
        handle = world.allreduce_async(np.ones(3, F))
        handle.wait()
        for call in (lambda: world.allreduce_async(np.ones(3, F)), handle.wait):
            child = os.fork()
            if child == 0:
                try:
                    call()
                except comm.CommError as error:
                    os._exit(7 if "forked" in str(error) else 1)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_ctrl_c_ends_a_wait_but_not_the_call():
    fd, gate, seen = comm.segment(2), threading.Event(), []

    def other():
        with comm.attach(fd, 1, 2, 60) as world:
            world.allreduce_async(np.ones(3, F)).wait()
            gate.wait(30)
            seen.append(world.allreduce_async(np.ones(3, F), op="sum").wait().tolist())

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with comm.attach(fd, 0, 2, 60) as world:
            world.allreduce_async(np.ones(3, F)).wait()
            handle = world.allreduce_async(np.ones(3, F), op="sum")
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                handle.wait()
            assert not handle.done()
            gate.set()
            assert handle.wait().tolist() == [2, 2, 2]
            thread.join(60)
    finally:
        os.close(fd)
    assert seen == [[2, 2, 2]]


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_arrays_of_jax():
    assert run_python(ROOT / "tests/support/jax_arrays.py", limit=240).stdout == "all as it should be\n"
