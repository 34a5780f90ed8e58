"""For tests/py/test_ddp_rules.py: what a state makes of its model's parameters, and how ranks meet, under the stand-in
for PyTorch; ddp_rules_stand_in.py NAME runs one of the checks."""

import copy
import os
import pickle
import sys
import time
import types

import numpy as np
from thread_ranks import on_threads
from torch import _hooks
from torch import distributed as dist

from cgxffcv.comm import CommTimeout
from cgxffcv.interop.ddp import rendezvous
from cgxffcv.interop.ddp.buckets import PlainBucket
from cgxffcv.interop.ddp.layout import Layout, Names, Rules
from cgxffcv.interop.ddp.settings import PerLayer, check_bits, check_bucket_size
from cgxffcv.interop.torch import CGXState, cgx_hook


def refused(error, words, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as caught:
        assert words in str(caught), caught
        return caught
    raise AssertionError(f"{error.__name__} expected: {words}")


def groups(size):
    store = _hooks.Store()
    return [dist.ProcessGroup(rank, size, store) for rank in range(size)]


def on_ranks(size, function):
    those = groups(size)
    return on_threads(size, lambda rank: function(those[rank]))


def bucket_of(parameters, last=True):
    return dist.GradBucket(parameters, {p: np.ones(p.shape, np.float32) for p in parameters}, last)


def layout_of(parameters):
    return Layout.of(tuple(map(id, parameters)), bucket_of(parameters))


# ---- the checks ----


class Module:
    """Of parameters by names; `wrap` are attributes of what is around another one."""

    def __init__(self, named=(), **wrap):
        vars(self).update(wrap, named=named)

    def named_parameters(self):
        return list(self.named)


def names():
    """Those of the user's own module, whatever DistributedDataParallel and torch.compile put around it, or of pairs;
    also where a child of it is called module."""
    given = {"module.a.weight": "module.a.weight", "c._orig_mod.d": "c.d", "e": "e"}
    parameters = [_hooks.Parameter(2) for _ in given]
    pairs = list(zip(given, parameters, strict=True))
    own = Module(pairs)
    around = Module(_orig_mod=Module(module=Module(_orig_mod=own), register_comm_hook=None))
    for known in (Names(pairs), Names(own), Names(around), pickle.loads(pickle.dumps(Names(own)))):
        assert known.all() == list(given.values())
    known = Names(around)
    assert [known.of(id(p)) for p in parameters] == list(given.values()) and known.of(0) is None
    copied, theirs = copy.deepcopy((known, parameters))
    assert [copied.of(id(p)) for p in theirs] == list(given.values()) and copied.of(id(parameters[0])) is None


def spans():
    """Where each parameter is in the flat buffer."""
    parameters = [_hooks.Parameter(3, 4), _hooks.Parameter(5), _hooks.Parameter(2, 2)]
    layout = layout_of(parameters)
    assert list(layout.spans()) == [
        (id(p), at, n) for p, at, n in zip(parameters, (0, 12, 17), (12, 5, 4), strict=True)
    ]
    assert layout.elems == 21 and layout.dtype == "float32"


def table():
    """Patterns leave small layers and those of one dimension exact; names do not; 32 bits apply to all."""
    shapes = {"edge": (8, 8), "below": (9, 7), "flat": (100,), "named": (2, 2), "plain": (3, 3), "none": (50, 50)}
    parameters = {name: _hooks.Parameter(*shape) for name, shape in shapes.items()}
    bits = PerLayer("bits", {"default": 4, "[ebf]*": 2, "named": 3, "pl*": 32}, 32, check_bits)
    sizes = PerLayer("bucket_size", {"edge": 128}, 512, check_bucket_size)
    made = Rules(Names(parameters.items()), bits, sizes, 64).table(layout_of(list(parameters.values())))
    assert made == {
        "layers": list(shapes.items()),
        "bits": {"default": 4, 0: 2, 3: 3, 4: 32},
        "bucket_size": {"default": 512, 0: 128},
        "layer_min_size": 64,
    }, made


def plain_bytes():
    """The bytes of a ring: every rank sends all parts but one twice."""
    bucket = PlainBucket(layout_of([_hooks.Parameter(6, 4)]), groups(4)[0])
    assert bucket.wire_bytes == 2 * 3 * 24 * 4 // 4 and "24 elements of float32" in bucket.explain()


def rebuilt():
    """Buckets that are made again replace the old ones, and the last one of a backward pass is complete."""

    def work(group):
        one, two = _hooks.Parameter(64, 64), _hooks.Parameter(64, 64)
        state = CGXState(group, compression_params={"bits": 4})
        cgx_hook(state, bucket_of([one, two])).wait()
        whole = state.wire_bytes
        cgx_hook(state, bucket_of([two], last=False))
        last = cgx_hook(state, bucket_of([one]))
        assert last._done.is_set()
        return whole, state.wire_bytes, len(state.explain().strip().split("algorithm:"))

    for whole, apart, parts in on_ranks(2, work):
        assert whole == apart > 0 and parts == 3, (whole, apart, parts)


def by_name_without_a_model():
    refused(ValueError, "needs the model that has the names", CGXState, compression_params={"bits": {"a": 4}})
    CGXState(compression_params={"bits": {"default": 4}})


def sparse():
    """Gradients that are not arrays in memory are handled as they were without the hook."""
    seen = []
    vars(sys.modules["torch.distributed.algorithms.ddp_comm_hooks.default_hooks"])["allreduce_hook"] = (
        lambda group, bucket: seen.append(bucket)
    )
    bucket = bucket_of([_hooks.Parameter(4, 4)])
    bucket.buffer().layout = "sparse_coo"
    cgx_hook(CGXState(groups(1)[0]), bucket)
    assert seen == [bucket]


def strangers():
    """What others than DistributedDataParallel hand to a hook, and what was registered in a state's place."""
    bucket, state = bucket_of([_hooks.Parameter(4, 4)]), CGXState(groups(1)[0])
    for wrong in (None, groups(1)[0]):
        refused(TypeError, f"must be a CGXState, not {type(wrong).__name__}", cgx_hook, wrong, bucket)
    for others in ((bucket.buffer(),), (bucket.buffer(), bucket.buffer()), ((bucket.buffer(), None),)):
        refused(TypeError, "a bucket of DistributedDataParallel is expected, not ", cgx_hook, state, *others)


def nothing_inside():
    """CGX_INTRA_COMPRESS=0 inside a host: nothing is compressed. Between hosts it is."""
    made, state_module = [], sys.modules["cgxffcv.interop.ddp.state"]
    state_module.Buckets = lambda group, place, rules, *_: (
        made.append(rules.bits.default) or types.SimpleNamespace(recurring={})
    )
    os.environ["CGX_INTRA_COMPRESS"] = "0"
    for nodes in ([0, 0], [0, 1]):
        state_module.rendezvous.join = lambda *_, at=nodes: rendezvous.GroupPlace(0, 2, at, "", None, None)
        CGXState(groups(2)[0], compression_params={"bits": 4})._join()
    assert made == [32, 4]


def meeting():
    """The ranks that did not come are named at the deadline."""
    first = groups(3)[0]
    began = time.monotonic()
    error = refused(CommTimeout, "ranks 1, 2 of the process group", rendezvous.Meeting(first, 0.2).gather, "x", 1)
    assert error.rank == 1 and time.monotonic() - began >= 0.2


def unanswered():
    """A store that does not answer, as of a host behind a link that is down: the deadline is the meeting's."""
    group = groups(2)[0]
    alone = rendezvous.Meeting(group, 0.3)
    group.store.check = lambda keys: time.sleep(60)
    began = time.monotonic()
    refused(CommTimeout, "store has not answered within 0.3 s (x): its host is down, or out", alone.gather, "x", 1)
    assert time.monotonic() - began < 10


def joined():
    """Joined through memory on one host, but not on several; and not at all if the settings differ."""
    for place in on_ranks(2, lambda group: rendezvous.join(group, 20, {"a": 1}, True)):
        assert place.nodes == [0, 0] and place.node_count == 1 and place.comm is not None and place.reason == ""
    os.environ["CGXFFCV_COMM_NODES"] = "2"
    for place in on_ranks(4, lambda group: rendezvous.join(group, 20, {}, True)):
        assert place.nodes == [0, 0, 1, 1] and place.comm is None and place.reason == "the ranks are on 2 nodes"
    for text in ("0", "5", "x", "-1"):
        os.environ["CGXFFCV_COMM_NODES"] = text
        for error in on_ranks(4, lambda group: rendezvous.join(group, 20, {}, True)):
            assert isinstance(error, ValueError) and "1..4 is expected" in str(error)


def unopened():
    """If one rank cannot open the memory, all learn of it, and no descriptor stays open."""
    rendezvous._open = lambda pid, fd: (-1, "cannot open it")
    before = len(os.listdir("/proc/self/fd"))
    for place in on_ranks(3, lambda group: rendezvous.join(group, 20, {}, True)):
        assert place.comm is None and place.reason == "rank 1 cannot open it", place
    assert len(os.listdir("/proc/self/fd")) == before


def host():
    """A host is identified by the boot, the process namespace and the user."""
    boot, namespace, user = rendezvous.host_name().split()
    assert len(boot) == 36 and namespace == os.readlink("/proc/self/ns/pid") and int(user) == os.geteuid()


def timeouts():
    os.environ.pop("CGXFFCV_COMM_TIMEOUT", None)
    assert (rendezvous.timeout_of(None), rendezvous.timeout_of(2)) == (300.0, 2.0)
    os.environ["CGXFFCV_COMM_TIMEOUT"] = " 7 "
    assert rendezvous.timeout_of(None) == 7.0
    for value in (0, -1, float("nan"), "soon", True):
        refused(ValueError, "seconds above 0", rendezvous.timeout_of, value)


CHECKS = {
    check.__name__: check
    for check in (
        *(names, spans, table, plain_bytes, rebuilt, by_name_without_a_model, sparse, strangers, nothing_inside),
        *(meeting, unanswered, joined, unopened, host, timeouts),
    )
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or CHECKS:
        CHECKS[wanted]()
        print(wanted, flush=True)
