"""Allreduce of arrays as they are: `comm.allreduce(x)` for NumPy, PyTorch, CuPy, JAX and others, on CPUs and GPUs.

    from cgxffcv import comm

    with comm.world() as world:
        world.allreduce(gradient)                                # the exact average, in place
        world.allreduce({"w": w, "b": b}, bits=4)                # several arrays as one call, in 4 bits
        handle = world.allreduce_async(gradient, op="sum")       # in the background
        handle.wait()

A communicator caches its plans by the arguments of the call: the same call finds its plan again. Before each call the
ranks compare their arguments, so that a difference is an error on all of them.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import _cgxffcv

from cgxffcv import tensors
from cgxffcv.allreduce import (
    OPS,
    QUANTIZED_DTYPES,
    UNCOMPRESSED,
    AllreducePlan,
    check_switch,
    check_timeout,
    dtype_name,
    feedback_of,
)
from cgxffcv.nearest import suggest
from cgxffcv.tensors import Taken

__all__ = ["Handle", "plans", "reduce", "reduce_async"]

KEPT_PLANS = 32  # of calls without a key; the least recently used one is dropped first


# ---- the arguments of a call ----


@dataclass(frozen=True)
class Group:
    """The arrays of a call that one plan reduces: those of one type on one device."""

    dtype: str
    device: int
    names: tuple[str | None, ...]
    taken: tuple[Taken, ...]

    def layers(self) -> list[tuple[str | None, Any]]:
        """A single array is quantised whatever its shape: as one layer without dimensions."""
        if self.names == (None,):
            count = 1
            for size in self.taken[0].tensor.shape:
                count *= size
            return [(None, count)]
        return [(name, tuple(taken.tensor.shape)) for name, taken in zip(self.names, self.taken, strict=True)]

    def tensors(self) -> list[_cgxffcv.Tensor]:
        return [taken.tensor for taken in self.taken]

    @property
    def stream(self) -> int:
        return self.taken[0].stream


@dataclass(frozen=True)
class CallOptions:
    """How arrays are to be reduced: the arguments of a call."""

    op: str
    bits: int | Mapping
    key: str | None
    options: dict[str, Any]

    def text(self, group: Group) -> str:
        """What the ranks compare, item by item."""
        place = "in host memory" if group.device < 0 else "on a GPU"
        items = [f"{self.op} of {len(group.names)} array(s) of {group.dtype} {place} in {self.bits} bits"]
        items += [f"key {self.key!r}"] if self.key is not None else []
        items += [f"{name}={value!r}" for name, value in sorted(self.options.items())]
        items += [f"array {name or number} of shape {shape}" for number, (name, shape) in enumerate(group.layers())]
        return "; ".join(item.replace("; ", ";") for item in items)

    def make(self, comm: _cgxffcv.Comm, group: Group) -> AllreducePlan:
        single = group.names == (None,) and isinstance(self.bits, int)
        bits = {"default": self.bits, 0: self.bits} if single else self.bits
        device = None if group.device < 0 else group.device
        return AllreducePlan(
            comm, group.layers(), op=self.op, bits=bits, dtype=group.dtype, device=device, compare=False, **self.options
        )


def _widths(bits: int | Mapping) -> Iterator[Any]:
    return iter(bits.values() if isinstance(bits, Mapping) else [bits])


@functools.cache
def _known_options() -> tuple[str, ...]:
    """The options of AllreducePlan that a call may also have."""
    given = inspect.signature(AllreducePlan.__init__).parameters
    decided = ("bits", "dtype", "op", "average", "device", "compare")  # given by the arrays, or in another way
    return tuple(name for name, it in given.items() if it.kind is it.KEYWORD_ONLY and name not in decided)


def _check_options(options: dict[str, Any]) -> None:
    known = _known_options()
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"allreduce() takes no {name!r}{suggest(name, known)}; its options are {', '.join(known)}")
        if name == "half_metadata":
            check_switch(name, value)
    check_timeout(options.get("timeout"))


def _call_options(op: str, bits: int | Mapping, key: object, options: dict[str, Any]) -> CallOptions:
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, not {op!r}")
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be a string, not {key!r}")
    _check_options(options)
    if "error_feedback" in options:
        options = options | {"error_feedback": feedback_of(options["error_feedback"])}
    if options.get("error_feedback") and key is None:
        raise ValueError("error_feedback needs key=...: what was lost is kept under that name, and added")
    if isinstance(bits, Mapping):
        bits = dict(sorted(bits.items(), key=repr))
    return CallOptions(op, bits, key, options)


def _check_bits(call: CallOptions, group: Group, name: str) -> None:
    if all(width == UNCOMPRESSED for width in _widths(call.bits)):
        return
    if group.dtype not in QUANTIZED_DTYPES:
        raise ValueError(
            f"{name} has the dtype {group.dtype}, which is only sent exactly: only {', '.join(QUANTIZED_DTYPES)} are "
            f"quantised. Give bits={UNCOMPRESSED}, or convert it first"
        )
    if call.op not in ("sum", "average"):
        raise ValueError(f"op={call.op!r} is never quantised: give bits={UNCOMPRESSED}")


# ---- arrays in and out ----


@dataclass
class Collected:
    """The arrays of a call, grouped; `used` has, for each name, the array passed in or the copy that is reduced."""

    arrays: Any
    names: list[str | None]
    used: list[Any]
    groups: list[Group]

    def result(self) -> Any:
        """The results after the run, in a container like the one passed in."""
        given = [tensors.give(used) if isinstance(used, Taken) else used for used in self.used]
        if isinstance(self.arrays, Mapping):
            by_name = dict(zip(self.names, given, strict=True))
            return {name: by_name[name] for name in self.arrays}
        if isinstance(self.arrays, (list, tuple)):
            return given if isinstance(self.arrays, list) else tuple(given)
        return given[0]


def _leaves(arrays: Any) -> tuple[list[str | None], list[Any]]:
    """Names and arrays; those of a dict in the order of their names, which is the same on all ranks."""
    if isinstance(arrays, Mapping):
        if not all(isinstance(name, str) for name in arrays):
            raise TypeError("arrays: the keys of a dict must be strings, the names of its arrays")
        names = sorted(arrays)
        return list(names), [arrays[name] for name in names]
    if isinstance(arrays, (list, tuple)):
        return [str(number) for number in range(len(arrays))], list(arrays)
    return [None], [arrays]


def _in_place(taken: Taken, argument: str, in_place: bool | None) -> Taken:
    """The array itself, or a copy if it is not to be changed; ValueError if neither is what the caller asked for."""
    if not taken.tensor.contiguous:
        raise ValueError(f"{argument} is not in C order: pass a contiguous copy (numpy.ascontiguousarray makes one)")
    if in_place is False or (in_place is None and not taken.mutable):
        return tensors.copy(taken)
    if not taken.mutable:
        raise ValueError(f"{argument}: arrays of {taken.framework} cannot be changed in place")
    if not taken.tensor.writable:
        raise ValueError(f"{argument} is read-only: pass a copy, or in_place=False for a new array")
    return taken


def _collect(arrays: Any, call: CallOptions, dtype: object, stream: object, in_place: bool | None) -> Collected:
    names, items = _leaves(arrays)
    if in_place is not None:
        check_switch("in_place", in_place)
    wanted = None if dtype is None else dtype_name(dtype)
    groups: dict[tuple[int, str], tuple[list, list]] = {}
    kept = []
    for name, item in zip(names, items, strict=True):
        argument = (
            "the array" if name is None else f"arrays[{name if isinstance(arrays, (list, tuple)) else repr(name)}]"
        )
        taken = tensors.take(item, argument, wanted, stream)
        used = _in_place(taken, argument, in_place)
        kept.append(item if used is taken else used)
        listed = groups.setdefault((used.tensor.device, used.tensor.dtype), ([], []))
        listed[0].append(name)
        listed[1].append(used)
    made = []
    for (device, kind), (own, used) in groups.items():
        made.append(Group(kind, device, tuple(own), tuple(used)))
        _check_bits(call, made[-1], "the array" if own[0] is None else f"array {own[0]}")
    return Collected(arrays, names, kept, made)


# ---- plans that are kept ----


@dataclass
class Entry:
    plan: AllreducePlan
    number: int  # the same on all ranks


@dataclass
class PlanCache:
    """What a communicator remembers of the calls so far."""

    plans: OrderedDict[Hashable, Entry] = field(default_factory=OrderedDict)
    keyed: dict[Hashable, tuple[str, Entry]] = field(default_factory=dict)
    made: int = 0
    calls: int = 0

    def find(self, group: Group, key: str | None, text: str) -> Entry | None:
        if key is None:
            entry = self.plans.get((text, group.device))
            if entry is not None:
                self.plans.move_to_end((text, group.device))
            return entry
        known = self.keyed.get((key, group.dtype, group.device))
        if known is not None and known[0] != text:
            raise ValueError(f"key {key!r} belongs to other arrays or options: {known[0]!r}, not {text!r}")
        return None if known is None else known[1]

    def put(self, group: Group, key: str | None, text: str, entry: Entry) -> None:
        if key is not None:
            self.keyed[key, group.dtype, group.device] = (text, entry)
            return
        self.plans[text, group.device] = entry
        while len(self.plans) > KEPT_PLANS:
            self.plans.popitem(last=False)


def _cache_of(comm: _cgxffcv.Comm) -> PlanCache:
    return comm._kept.setdefault("arrays", PlanCache())


def _plan(comm: _cgxffcv.Comm, call: CallOptions, group: Group) -> AllreducePlan:
    """The plan for a group, found or made, the same on all ranks. Collective."""
    cache = _cache_of(comm)
    text = call.text(group)
    entry = cache.find(group, call.key, text)
    number = 0 if entry is None else entry.number
    same, made = _cgxffcv.allreduce_compare_calls(comm, text, number, cache.made, call.options.get("timeout"))
    cache.made = made
    if entry is None or not same:
        cache.made = made + 1
        entry = Entry(call.make(comm, group), cache.made)
        if call.key is None:
            entry.plan.call = cache.calls & 0xFFFFFFFF  # random numbers that no earlier plan has drawn
        cache.put(group, call.key, text, entry)
    cache.calls += 1
    return entry.plan


# ---- calls ----


def reduce(
    comm: _cgxffcv.Comm,
    arrays: Any,
    op: str = "average",
    bits: int | Mapping = UNCOMPRESSED,
    *,
    dtype: object = None,
    key: str | None = None,
    in_place: bool | None = None,
    stream: object = None,
    **options: Any,
) -> Any:
    """`comm.allreduce(arrays, ...)`: reduces an array, or a list, tuple or dict of arrays as one call, over all ranks,
    and returns the results, in a container like the one passed in. Collective.

    arrays: of NumPy, PyTorch, CuPy, JAX, or anything with DLPack, the CUDA array interface or the buffer protocol, in
    C order. They are reduced in place, and returned; those that can never be changed (JAX) give new ones. in_place:
    True refuses the latter; False always gives new arrays, made by the framework's `from_dlpack`. Read-only arrays are
    refused without in_place=False. A dict's keys are names; its order does not matter.

    op: "sum", "average", "min", "max", "prod"; bits: 32 (exact), or 1 to 8, also by name or index in a list or dict
    ("default" for the others). A single array is quantised whatever its shape; of several, those of one dimension or
    with fewer than `layer_min_size` elements only where `bits` names them. Types other than float32, float16 and
    bfloat16, and operations other than "sum" and "average", must be exact. dtype: names bfloat16 that is kept as
    uint16.

    key: a name for what is kept between calls: with error_feedback=True what quantisation lost, which is added at the
    next call with that key; it belongs to these arrays and options only. options: AllreducePlan's (bucket_size, codec,
    rounding, algorithm, error_feedback, seed, threads, timeout, ...).

    Arrays on a GPU are ordered on `stream` (PyTorch's, CuPy's, or an address), by default on the stream that their
    framework uses: the call may return before the sums are complete, and work put on that stream later sees them.

    Raises TypeError or ValueError that names the array or option; CommError on all ranks if their arguments differ,
    before anything is sent; PeerLost, CommTimeout. After one of these the contents of the arrays are unspecified.
    """
    call = _call_options(op, bits, key, options)
    collected = _collect(arrays, call, dtype, stream, in_place)
    made = [_plan(comm, call, group) for group in collected.groups]  # all are compared before the first one runs
    for plan, group in zip(made, collected.groups, strict=True):
        plan._plan.put(group.tensors(), group.stream)
    return collected.result()


def plans(
    comm: _cgxffcv.Comm,
    arrays: Any,
    op: str = "average",
    bits: int | Mapping = UNCOMPRESSED,
    *,
    dtype: object = None,
    key: str | None = None,
    **options: Any,
) -> list[AllreducePlan]:
    """`comm.allreduce_plans(arrays, ...)`: the plans of that call, made if necessary, with their `explain()`,
    `wire_bytes`, and `residual` and `call`, which are all that is kept under a key. One for each dtype and device.
    Changes no array. Collective."""
    call = _call_options(op, bits, key, options)
    collected = _collect(arrays, call, dtype, None, None)
    return [_plan(comm, call, group) for group in collected.groups]


# ---- in the background ----


class Background:
    """A thread that carries out the calls of a communicator in order, over a separate communicator, so that the
    caller's is free meanwhile."""

    def __init__(self, comm: _cgxffcv.Comm) -> None:
        self.owner, self.process = weakref.ref(comm), os.getpid()
        self.comm = comm.split(0, comm.rank)
        comm._kept["aside"] = self.comm  # aborting one aborts the other
        self.pool = ThreadPoolExecutor(1, "cgxffcv-allreduce")

    def carry_out(self, call: CallOptions, groups: list[Group], runs: list[_cgxffcv.AllreduceRun]) -> None:
        try:
            made = []
            for group in groups:
                if group.device >= 0:
                    _cgxffcv.select_device(group.device)  # no other GPU is ever set up on this thread
                made.append(_plan(self.comm, call, group))
            for plan, run in zip(made, runs, strict=True):
                run.run(plan._plan)
        except _cgxffcv.CommError as error:
            owner = self.owner()
            if owner is not None and not owner.closed:
                owner.abort(f"in the background: {error}")
            raise

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.pool.shutdown(wait=False)


class Handle:
    """A call in the background. It keeps the arrays alive; they must not be touched before `wait`."""

    def __init__(self, background: Background, call: CallOptions, collected: Collected, stream: object) -> None:
        runs = [_cgxffcv.allreduce_begin(group.tensors(), group.stream) for group in collected.groups]
        self._collected, self._runs, self._stream, self._pool = collected, runs, stream, background.pool
        self._process = background.process
        self._future = background.pool.submit(background.carry_out, call, collected.groups, runs)
        self._waited = False

    def done(self) -> bool:
        """True if the results are complete or the call has failed."""
        if not self._future.done():
            return False
        return self._future.exception() is not None or all(run.done for run in self._runs)

    def wait(self, stream: object = None) -> Any:
        """Waits for the call and returns what `comm.allreduce` would have; raises what it would have raised. Ctrl-C
        ends the wait, not the call. For arrays on a GPU it may return before the sums are complete: work put later on
        `stream` (by default the call's, else the one that the framework uses now) sees them."""
        if self._process != os.getpid():  # the thread that carries it out is not in this process
            raise _cgxffcv.CommError(f"allreduce: this call belongs to process {self._process}, which forked this one")
        try:
            self._future.result()
        finally:
            self._waited = self._future.done()
        chosen = stream if stream is not None else self._stream
        for group, run in zip(self._collected.groups, self._runs, strict=True):
            if group.device >= 0:
                framework = group.taken[0].framework
                current = tensors.current_stream(framework, group.device)
                run.order(current if chosen is None else tensors.stream_number(chosen))
        return self._collected.result()

    def synchronize(self) -> Any:
        """Like wait(), and also waits until a GPU has the sums, with the communicator's timeout."""
        result = self.wait()
        for run in self._runs:
            self._pool.submit(run.wait).result()
        return result

    def __del__(self) -> None:
        future = getattr(self, "_future", None)
        if future is not None and not self._waited and self._process == os.getpid():
            future.add_done_callback(_warn_of_failure)  # at once, or when the call ends


def _warn_of_failure(future: Future) -> None:
    if not future.cancelled() and future.exception() is not None:
        message = f"an allreduce that nobody waited for failed: {future.exception()}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def reduce_async(
    comm: _cgxffcv.Comm,
    arrays: Any,
    op: str = "average",
    bits: int | Mapping = UNCOMPRESSED,
    *,
    dtype: object = None,
    key: str | None = None,
    in_place: bool | None = None,
    stream: object = None,
    **options: Any,
) -> Handle:
    """`comm.allreduce_async(arrays, ...)`: like `reduce`, in the background: calls are carried out in order, on a
    thread of the communicator and, for arrays on a GPU, on a separate stream, after the work that is on the caller's
    stream now. Collective; the first call on a communicator splits it. Errors in the arguments are raised here, others
    by the handle's wait(); if ranks differ or one is lost, `comm` is broken, too. Keys are separate from those of
    `reduce`."""
    call = _call_options(op, bits, key, options)
    collected = _collect(arrays, call, dtype, stream, in_place)
    background = comm._kept.get("background")
    if background is None or background.process != os.getpid():  # a forked child has no thread; the split says so
        background = comm._kept["background"] = Background(comm)
    return Handle(background, call, collected, stream)
