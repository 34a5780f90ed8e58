"""CGXState and cgx_hook: compressed averages of gradients for DistributedDataParallel."""

# Annotations are not postponed here: register_comm_hook compares those of a hook with the types themselves.
import contextlib
import weakref
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from cgxffcv.allreduce import ALGORITHMS, CODECS, ROUNDINGS, UNCOMPRESSED, feedback_of
from cgxffcv.comm import Comm, CommError
from cgxffcv.interop.ddp import rendezvous, settings
from cgxffcv.interop.ddp.backend import refuse_cgx_backend
from cgxffcv.interop.ddp.layout import Names, Rules
from cgxffcv.interop.ddp.memory import Memory
from cgxffcv.interop.ddp.table import Buckets
from cgxffcv.wording import NotebookText


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _leave(comm: Comm) -> None:
    """At once notifies ranks that still wait for one whose state is gone, after an exception."""
    with contextlib.suppress(CommError):
        comm.close()


class CGXState:
    """What `cgx_hook` needs to know and keeps: one for each DistributedDataParallel.

        model = DistributedDataParallel(model)
        state = CGXState(None, layer_min_size=1024, compression_params={"bits": 4, "bucket_size": 1024})
        model.register_comm_hook(state, cgx_hook)

    process_group: that of the model; None for the default one. layer_min_size: layers of fewer elements, and those of
    one dimension (biases, norms), are averaged exactly, in the same call. compression_params: "bits", 1..8 or 32 for
    none, and "bucket_size", the elements that share a range. Both may be mappings from names of parameters and patterns
    of names (with "default") to numbers; then `model` gives the names: a module, or pairs of names and parameters. A
    name takes precedence over a pattern, a later pattern over an earlier one; layers that are exact by the rules above
    stay so under a pattern. Values that are not given come from CGX's environment variables, else they are 32 bits,
    1024 and 1024.

    error_feedback: what quantisation lost is added at the next step; kept in float32 (True) or in 8 bits ("int8").
    codec, rounding, algorithm, seed, threads: those of `cgxffcv.allreduce.AllreducePlan`. timeout: seconds that any
    wait for other ranks may take; default CGXFFCV_COMM_TIMEOUT, else 300.

    adaptive_bits: {"every": 1000, "budget": None, "widths": None}, or some of these: every so many steps, each
    parameter that has no bits by its name or by a pattern gets new ones, chosen by what quantising its gradients loses,
    so that all of them together take the fewest bytes within a budget (cgxffcv.adaptive.AdaptiveBits). Losses are
    measured in a step, on the CPU; bits are chosen by rank 0, and apply from the next step on.

    The ranks find each other in the first call of the hook. All must have the same arguments.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        layer_min_size: int | None = None,
        compression_params: Mapping[str, Any] | None = None,
        *,
        model: Any = None,
        error_feedback: bool | str = False,
        codec: str = "maxmin",
        rounding: str = "nearest",
        algorithm: str | None = None,
        seed: int = 0,
        threads: int = 1,
        timeout: float | None = None,
        adaptive_bits: Mapping[str, Any] | None = None,
    ) -> None:
        self._environment = settings.Environment.read()
        environment, params = self._environment, settings.check_parameters(compression_params)
        least = environment.layer_min_size if layer_min_size is None else settings.check_min_size(layer_min_size)
        bits = settings.PerLayer("bits", params.get("bits"), environment.bits, settings.check_bits)
        sizes = settings.PerLayer(
            "bucket_size", params.get("bucket_size"), environment.bucket_size, settings.check_bucket_size
        )
        self._rules = Rules(Names(model), bits, sizes, least)
        self._check_names(model)
        self.process_group = process_group
        self.timeout = rendezvous.timeout_of(timeout)
        self.options = {
            "error_feedback": feedback_of(error_feedback),
            "codec": _one_of("codec", codec, CODECS),
            "rounding": _one_of("rounding", rounding, ROUNDINGS),
            "algorithm": _one_of("algorithm", algorithm or environment.algorithm, ALGORITHMS),
            "seed": settings.check_seed(seed),
            "threads": settings.check_threads(threads),
        }
        self._policy = settings.adaptive_policy(adaptive_bits, codec, bits.default)
        settings.check_codec(codec, bits, sizes)
        self._begin()

    def _begin(self) -> None:
        self._memory = Memory()
        self._buckets: Buckets | None = None
        self._recurring: dict[int, Any] = {}  # of the buckets, to be looked up first

    def __getstate__(self) -> dict[str, Any]:
        """The settings only: a copy, for example of a model with this hook, starts without buckets. TypeError for a
        process group other than the default one, which cannot be copied; DistributedDataParallel refuses that, too."""
        if self.process_group is not None and self.process_group is not dist.group.WORLD:
            raise TypeError(
                "a CGXState of a process group other than the default one can be neither copied nor pickled: "
                "state_dict() has what a checkpoint needs"
            )
        settings = {
            name: value for name, value in vars(self).items() if name not in ("_memory", "_buckets", "_recurring")
        }
        return settings | {"process_group": None}

    def __setstate__(self, settings: dict[str, Any]) -> None:
        vars(self).update(settings)
        self._begin()

    def _check_names(self, model: Any) -> None:
        for rule in (self._rules.bits, self._rules.bucket_size):
            if rule.own and model is None:
                raise ValueError(f"{rule.argument} of layers by name needs the model that has the names: model=...")
            rule.check_names(self._rules.names.all())

    def _join(self) -> Buckets:
        """Finds the other ranks, in the first call."""
        rules, inside = self._rules, self._environment.compresses_inside
        agreed = {
            "layer_min_size": rules.layer_min_size,
            "bits": {"default": rules.bits.default, **rules.bits.own},
            "bucket_size": {"default": rules.bucket_size.default, **rules.bucket_size.own},
            "CGX_INTRA_COMPRESS": inside,
            "CGX_INNER_COMMUNICATOR_TYPE": self._environment.shares_memory,
            "adaptive_bits": self._policy and {**vars(self._policy), "widths": list(self._policy.widths)},
            **self._memory.shared(),
            **self.options,
        }
        group = self._group()
        place = rendezvous.join(group, self.timeout, agreed, self._environment.shares_memory)
        if not inside and place.node_count == 1:
            plain = settings.PerLayer("bits", UNCOMPRESSED, UNCOMPRESSED, settings.check_bits)
            rules = Rules(rules.names, plain, rules.bucket_size, rules.layer_min_size)
        if place.comm is not None:
            weakref.finalize(self, _leave, place.comm).atexit = False
        self._buckets = Buckets(group, place, rules, self.options, self.timeout, self._memory, self._policy)
        self._recurring = self._buckets.recurring
        return self._buckets

    def _group(self) -> dist.ProcessGroup:
        return self.process_group or dist.group.WORLD

    def reduce(self, bucket: dist.GradBucket) -> torch.futures.Future:
        """What `cgx_hook` does."""
        buffer = bucket.buffer()
        if self._policy is not None and self._buckets is not None and bucket.index() == 0:
            self._buckets.adapt()
        recurring = self._recurring.get(id(buffer))
        if recurring is not None:
            future = recurring.put()
            if future is not None:
                return future
        if buffer.layout is not torch.strided:  # sparse gradients have buckets of their own
            return default_hooks.allreduce_hook(self._group(), bucket)
        buckets = self._buckets or self._join()
        if recurring is None and bucket.index() == 0:
            buckets.begin_step()
        return buckets.put(buffer, bucket)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of what a training needs to resume exactly: the residuals of error feedback, by the names of
        parameters (float32 tensors of their shapes, in host memory), the bits that were chosen for them, the number of
        the next run, which keys random numbers, and what a trial of plain sums has found. Each rank saves its own,
        between two steps. ValueError if there are residuals, or chosen bits, and CGXState was not given the model,
        which has the names."""
        rank, ranks = self._place()
        if self._buckets is not None:
            self._buckets.settle()
        return self._memory.write(self._buckets or (), self._rules.names, rank, ranks)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned on this rank, of as many ranks. All ranks call it, before the first step;
        later it waits for the others. ValueError, and nothing is changed, if it does not fit."""
        rank, ranks = self._place()
        if self._buckets is not None:
            self._buckets.settle()
        recorded = self._buckets is not None and self._buckets.recorded
        self._memory.read(state, self._rules, rank, ranks, adapts=self._policy is not None, recorded=recorded)
        if self._buckets is not None:
            self._buckets.load()

    def _place(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        if not dist.is_initialized():
            raise ValueError("a CGXState holds a rank's own state: call init_process_group first")
        return dist.get_rank(self._group()), dist.get_world_size(self._group())

    @property
    def wire_bytes(self) -> int:
        """Bytes that this rank sends in a step, counted for each receiver; 0 before the first."""
        return sum(bucket.wire_bytes for bucket in self._buckets or ())

    @property
    def plain(self) -> bool | None:
        """True if the first steps have found that plain sums are faster; None until they have decided, and if nothing
        is tried."""
        trial = None if self._buckets is None else self._buckets.trial
        return self._memory.plain if trial is None else trial.decision

    @property
    def adapted_bits(self) -> dict[str, int]:
        """The bits that `adaptive_bits` has chosen, by the names of parameters; the same on all ranks."""
        names = self._rules.names
        return {str(names.of(identity)): bits for identity, bits in self._memory.bits.items() if names.of(identity)}

    def explain(self) -> str:
        """What was chosen for each bucket and why; nothing before the first step."""
        return NotebookText("" if self._buckets is None else self._buckets.explain())


def cgx_hook(state: CGXState, bucket: dist.GradBucket, *_: Any) -> torch.futures.Future[torch.Tensor]:
    """The hook: `model.register_comm_hook(state, cgx_hook)`. The gradients of a bucket become their averages over the
    ranks, the same bytes on all of them. TypeError for what others than DistributedDataParallel hand to a hook."""
    if not isinstance(state, CGXState):
        raise TypeError(
            f"cgx_hook: the state must be a CGXState, not {type(state).__name__}: "
            "model.register_comm_hook(CGXState(...), cgx_hook)"
        )
    if not isinstance(bucket, dist.GradBucket):
        raise TypeError(
            f"cgx_hook: a bucket of DistributedDataParallel is expected, not {type(bucket).__name__}: "
            "FullyShardedDataParallel has none, nor has torch.compile with optimize_ddp='python_reducer'"
        )
    return state.reduce(bucket)


refuse_cgx_backend()
