"""Plans of allreduces: what they count, choose and explain, what they refuse, and the errors of ranks that do not
agree. Ranks are threads."""

import gc
import re
import weakref
from contextlib import nullcontext

import _cgxffcv
import numpy as np
import pytest
from thread_ranks import all_good, on_ranks, run_ranks

from cgxffcv import allreduce as ar
from cgxffcv import comm, costs

# Rings of more than four ranks give a warning, which one test below checks.
pytestmark = pytest.mark.filterwarnings("ignore:a ring of:RuntimeWarning")

F = np.float32
ALGORITHMS = ("one_shot", "sra", "ring", "two_level", "exact")


def test_a_notebook_shows_a_plan_as_a_table():
    def work(world, rank):
        return ar.AllreducePlan(world, [("a<b", (64, 64))], algorithm="sra")._repr_html_()

    shown = all_good(run_ranks(2, work))[0]
    assert "<caption>AllreducePlan of 4,096 elements</caption>" in shown
    assert re.search(r"<th[^>]*>layers</th><td[^>]*> *1, 4096 elements of float32", shown)


def test_wire_bytes_are_counted():
    """Against what the algorithms send by definition, for layers whose chunks are all alike."""
    n, size = 6 * 12 * 1024, 6
    piece = 12 * (512 + 8)

    def work(world, rank):
        counts = {}
        for algorithm in ALGORITHMS:
            plan = ar.AllreducePlan(world, [(n, 1)], algorithm=algorithm)
            counts[algorithm] = (plan.wire_bytes, plan.plain_bytes)
        return counts

    for counts in all_good(run_ranks(size, work, nodes=2)):
        assert counts["one_shot"] == (6 * piece * 5, n * 4 * 5)
        assert counts["sra"] == (5 * piece * 2, n * 4 * 5 // 3)
        assert counts["ring"] == (5 * piece * 2, n * 4 * 5 // 3)
        assert counts["two_level"] == ((4 + 1 + 1 + 4) * piece, (4 + 1 + 1 + 4) * n // 6 * 4)
        assert counts["exact"] == (n * 4 * 5 // 3, n * 4 * 5 // 3)


def test_wire_bytes_of_a_ring_with_unequal_chunks():
    """Chunks of 1, 2 and 2 buckets, the last one short."""
    chunks = [ar.QuantSpec(bits=4).wire_bytes(elems) for elems in (1024, 2048, 1500)]

    def work(world, rank):
        return ar.AllreducePlan(world, [(1024 + 2048 + 1500, 1)], algorithm="ring").wire_bytes

    for rank, counted in enumerate(all_good(run_ranks(3, work))):
        terms = [rank, rank - 1]  # the chunk that goes out at each hop
        results = [rank + 1, rank]
        assert counted == sum(chunks[chunk % 3] for chunk in terms + results)


def test_costs_predict_by_lines_and_plain_is_sent_where_it_is_faster():
    """sra: 1 ms, and at 4 bits 1 + 0.5078125 * 4 = 3.03125 ns per element; plain: 4 bytes of 1 ns, and no latency."""
    lines = {"sra": (1e-3, 1e-9, 4e-9), "exact": (0.0, 0.0, 1e-9)}

    def work(world, rank):
        costs._remembered[world] = {"host": lines}
        chosen = []
        for elems in (100_000, 4_000_000):
            plan = ar.AllreducePlan(world, [(elems, 1)], layer_min_size=1)
            predicted = dict(re.findall(r"predicted: (\w+) +([.0-9]+) us", plan.explain()))
            chosen.append((plan.algorithm, plan.explain().splitlines()[0], {n: float(v) for n, v in predicted.items()}))
            exact = ar.AllreducePlan(world, [(elems, 1)], layer_min_size=elems + 1)
            assert "by measured costs" not in exact.explain(), "they were measured with quantised layers"
        return chosen

    for (small, why, times), (large, because, more) in all_good(run_ranks(2, work)):
        assert small == "exact" and "plain is faster here, 400.0 us; 4 bits with sra would take 1303.1 us" in why
        assert times == {"sra": 1303.1, "exact": 400.0}
        assert large == "sra" and "by measured costs: the cheapest" in because
        assert more == {"sra": 13125.0, "exact": 16000.0}


def test_where_latency_decides():
    """Up to 32 KiB sent by a rank: twice 4096 float32 with three ranks."""

    def work(world, rank):
        return [ar.AllreducePlan(world, [(elems, 1)], layer_min_size=5000).algorithm for elems in (4096, 4097)]

    assert all_good(run_ranks(3, work)) == [["one_shot", "exact"]] * 3


@pytest.mark.parametrize(
    "lines",
    [b"short", {"tree": (1, 1, 1)}, {"sra": (1, 1)}, {"sra": (-1, 1, 1)}, {"sra": (0, float("nan"), 1)}, {1: ()}],
)
@on_ranks(2)
def test_costs_that_are_none_are_refused(world, rank, lines):
    costs._remembered[world] = {"host": lines}
    with pytest.raises((ValueError, TypeError), match=r"cost"):
        ar.AllreducePlan(world, [(4096, 1)])


def test_explain_and_automatic_choice():
    def work(world, rank):
        plan = ar.AllreducePlan(world, [("conv.weight", (64, 64)), ("conv.bias", (64,))], bits={"conv.weight": 2})
        lines = costs.of(world)
        assert costs.of(world) is lines
        return plan.algorithm, plan.explain(), lines

    results = all_good(run_ranks(3, work))
    assert len({(a, repr(t)) for a, _, t in results}) == 1
    algorithm, text, lines = results[0]
    assert algorithm in ("one_shot", "sra", "exact") and set(lines) == {"one_shot", "sra", "exact"}
    assert f"algorithm: {algorithm} (by measured costs" in text and "predicted: sra" in text
    assert "3 on 1 node" in text
    for line in lines.values():
        assert len(line) == 3 and min(line) >= 0 and sum(line) > 0


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 3},
        {"bucket_size": 512},
        {"algorithm": "one_shot"},
        {"op": "sum"},
        {"seed": 1},
        {"codec": "maxmin_spikes"},
        {"codec": "rotated"},
        {"rounding": "stochastic"},
        {"layers": [(64, 65)]},
        {"dtype": "float16"},
        {"call": 1},
        {"error_feedback": True},
        {"error_feedback": "int8"},
        {"threads": 2},
        {"dtype": "float16", "half_metadata": True},
        {"layers": [(32, 128)]},
        {"layers": [(64, 32), (64, 32)]},
        {"layers": [("w", (64, 64))]},
        {"layers": [4096]},
        {"layers": []},
        {"algorithm": "exact", "bits": {0: 4}},
    ],
    ids=str,
)
def test_mismatched_calls_fail_on_all_ranks(other):
    """Before any data are touched, naming what differs; and later calls of the communicator repeat it."""

    def work(world, rank):
        options = {"layers": [(64, 64)], "algorithm": "sra"} | (other if rank == 1 else {})
        layers, call = options.pop("layers"), options.pop("call", 0)
        plan = ar.AllreducePlan(world, layers, **options)
        plan.call = call
        x = np.ones(plan.elems, options.get("dtype", "float32"))
        with pytest.raises(_cgxffcv.CommError) as caught:
            plan.run(x)
        assert (x == 1).all()
        with pytest.raises(_cgxffcv.CommError):
            plan.run(x)
        return str(caught.value)

    for text in all_good(run_ranks(3, work)):
        assert text.startswith("allreduce:") and "run " in text


@pytest.mark.parametrize(
    ("first", "second", "number", "words"),
    [
        (
            [("encoder", (40, 50)), ("head", (40, 50))],
            [("head", (40, 50)), ("encoder", (40, 50))],
            0,
            ("encoder (40, 50)", "head (40, 50)"),
        ),
        ([("a", (40, 50)), ("b", (40, 50))], [("a", (40, 50)), ("b", (50, 40))], 1, ("b (40, 50)", "b (50, 40)")),
        ([("a", (64, 32)), ("b", (64, 64))], [("a", (64, 64)), ("b", (64, 32))], 0, ("a (64, 32)", "a (64, 64)")),
        ([("a", 2000), (None, 2000)], [("a", 2000), ("b", 2000)], 1, ("an unnamed layer 2000", "b 2000")),
        ([("a", 2000), ("b", 2000)], [("a", 2000), ("b", (2000,))], 1, ("b 2000", "b (2000,)")),
        ([("a", 4000)], [("a", 2000), ("b", 2000)], 0, ("a 4000", "a 2000")),
        ([("a", 4000)], [("a", 4000), ("b", 0)], 1, ("no such layer", "b 0")),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", ("one_shot", "exact"))
def test_other_layers_are_named_on_both_sides(algorithm, first, second, number, words):
    """Layers of equal sizes with other names, shapes or order are not averaged with each other."""
    nodes = 3 if algorithm == "exact" else 1

    def work(world, rank):
        plan = ar.AllreducePlan(world, second if rank == 1 else first, algorithm=algorithm)
        x = np.full(plan.elems, rank, F)
        with pytest.raises(_cgxffcv.CommError) as caught:
            plan.run(x)
        assert (x == rank).all()
        return str(caught.value), caught.value.rank

    for rank, (text, other) in enumerate(all_good(run_ranks(3, work, nodes=nodes))):
        mine, theirs = words if rank != 1 else words[::-1]
        assert f"number {number}: on rank {rank} it is {mine} of " in text or "no such layer" in text
        assert all(word in text for word in (mine, theirs)), text
        assert other == (0 if rank == 1 else 1) and f"on rank {other} it is" in text


@on_ranks(2)
def test_bits_that_nobody_uses_are_compared_too(world, rank):
    """Whether a small call is quantised at all may depend on measured times; whether it is refused does not."""
    plan = ar.AllreducePlan(world, [100], bits={0: 4 + rank}, algorithm="exact")
    with pytest.raises(_cgxffcv.CommError, match=r"with 4 bits in the table.*|with 5 bits in the table.*"):
        plan.run(np.ones(100, F))


def test_plans_that_run_in_another_order_are_told_apart():
    """Also if their tables are the same: each plan has a number among those like it."""

    def work(world, rank):
        ar.AllreducePlan(world, [(8, 9)], algorithm="sra")  # of another kind: it does not count
        if rank == 0:
            ar.AllreducePlan(world, [(9, 8)], algorithm="sra")  # nor does it if only one rank makes it
        plans = [ar.AllreducePlan(world, [(64, 64)], algorithm="sra") for _ in range(3)]
        for plan in plans:
            assert (plan.run(np.ones(4096, F)) == 1).all()
        with pytest.raises(_cgxffcv.CommError) as caught:
            plans[2 if rank == 1 else 1].run(np.ones(4096, F))
        return str(caught.value)

    for text in all_good(run_ranks(2, work)):
        assert "run 1 of plan 1 of its kind" in text and "run 1 of plan 2 of its kind" in text
        assert text.endswith("all ranks must create and run their plans in the same order")


def test_two_level_names_two_nodes():
    def work(world, rank):
        with pytest.raises(ValueError, match="two_level") as caught:
            ar.AllreducePlan(world, [("w", (64, 64))], algorithm="two_level")
        return str(caught.value)

    assert len(texts := set(all_good(run_ranks(3, work, nodes=2)))) == 1
    assert "node 0 has 2, node 1 has 1" in texts.pop()
    for text in all_good(run_ranks(5, work, nodes=3)):
        assert "node 0 has 2, node 2 has 1" in text


def test_replicas_that_differ_are_seen():
    def work(world, rank):
        ar.check_replicas(world, np.arange(10))
        ar.check_replicas(world, np.arange(10) + (rank == 1))

    for result in run_ranks(2, work):
        assert isinstance(result, _cgxffcv.CommError)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": 9}, ValueError, "bits must be between 1 and 8, or 32"),
        ({"bits": {"x": 4}}, ValueError, "bits names a layer 'x'"),
        ({"bits": {5: 4}}, ValueError, "bits names a layer 5"),
        ({"bits": {"a": 9}}, ValueError, r"layer 0 \(a\): bits must be"),
        ({"bucket_size": 0}, ValueError, "bucket_size must be at least 1"),
        ({"bucket_size": 1 << 22}, ValueError, "a slot of this communicator holds"),
        ({"layer_min_size": -1}, ValueError, "layer_min_size"),
        ({"dtype": "complex64"}, ValueError, "dtype must be one of"),
        ({"dtype": "int32"}, ValueError, "an average of int32"),
        ({"algorithm": "tree"}, ValueError, "algorithm must be one of"),
        ({"op": "xor"}, ValueError, "op must be one of"),
        ({"codec": "sign"}, ValueError, "bits must be 1 with the codec sign"),
        ({"half_metadata": True}, ValueError, "16-bit metadata needs"),
        ({"threads": 0}, ValueError, "threads must be between"),
        ({"layers": [("a", 5), ("a", 6)]}, ValueError, "two layers have the name 'a'"),
        ({"layers": [-5]}, ValueError, "has -5 elements"),
        ({"layers": [(-2, -3)]}, ValueError, "a layer's shape must be in 0..2"),
        ({"layers": [3.7]}, TypeError, "a layer's shape must be a whole number, not 3.7"),
        ({"layers": [("a", "b")]}, TypeError, "the shape of layer 'a' must be a whole number, not 'b'"),
        ({"bits": True}, TypeError, "bits must be a whole number, not True"),
        ({"bits": 4.7}, TypeError, "bits must be a whole number, not 4.7"),
        ({"bits": {"a": "4"}}, TypeError, "bits must be a whole number, not '4'"),
        ({"bucket_size": 1.5}, TypeError, "bucket_size must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be in 0..2"),
        ({"timeout": -1}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": float("nan")}, ValueError, "timeout must be"),
        ({"timeout": "x"}, TypeError, "timeout must be a number of seconds above 0, or None, not 'x'"),
        ({"average": "no"}, TypeError, "average must be True or False, not 'no'"),
        ({"error_feedback": 1}, TypeError, "error_feedback must be True, False or one of none, float32, int8, not 1"),
        ({"error_feedback": "int4"}, ValueError, "error_feedback must be True, False or one of"),
        ({"device": "cuda"}, TypeError, "device must be a whole number"),
    ],
    ids=str,
)
@on_ranks(1)
def test_refusals(world, rank, options, error, message):
    given = {"layers": [("a", (4096, 1024))]} | options
    with pytest.raises(error, match=message):
        ar.AllreducePlan(world, given.pop("layers"), **given)


def test_a_plan_of_no_communicator():
    for given in (None, 3, "world"):
        with pytest.raises(TypeError, match="comm must be a cgxffcv.comm.Comm, not "):
            ar.AllreducePlan(given, [10])


def test_plans_in_cycles_are_collected():
    with comm.world() as world:
        plan = ar.AllreducePlan(world, [1000], error_feedback=True)
        plan.itself = plan
        cycle = type("Cycle", (), {})()
        cycle.plan, cycle.itself = ar.AllreducePlan(world, [10])._plan, cycle
        left = weakref.ref(plan), weakref.ref(cycle)
        del plan, cycle
        gc.collect()
        assert [ref() for ref in left] == [None, None]


@on_ranks(2)
def test_a_residual_goes_on_in_another_plan(world, rank):
    one, other = (ar.AllreducePlan(world, [4096], bits=2, algorithm="sra", error_feedback=True) for _ in range(2))
    x = np.random.default_rng(rank).standard_normal(4096).astype(F)
    one.run(x.copy())
    assert one.feeds_back and np.abs(one.residual).max() > 0
    other.restore(one.residual)
    other.call = one.call
    assert one.run(x.copy()).tobytes() == other.run(x.copy()).tobytes()
    for wrong, words in ((np.zeros(5, F), "the plan's 4096 elements, not 5"), (np.zeros(4096), "float32")):
        with pytest.raises((ValueError, TypeError), match=words):
            other.restore(wrong)
    exact = ar.AllreducePlan(world, [4096], bits=32)
    assert not exact.feeds_back
    with pytest.raises(ValueError, match="keeps no residual"):
        exact.restore(np.zeros(4096, F))


@on_ranks(2)
def test_a_residual_of_8_bits_goes_on_in_another_plan(world, rank):
    """It is passed from plan to plan in float32, for all layers or some of them, and becomes the same bytes again; a
    float32 residual is rounded."""
    layers = [("a", (50, 60)), ("bias", (70,)), ("b", (33, 40)), ("c", (80, 90))]
    options = {"bits": 2, "bucket_size": {"default": 512, "b": 100}, "algorithm": "sra"}

    def plan(layers, feedback="int8"):
        return ar.AllreducePlan(world, layers, error_feedback=feedback, **options)

    one, other, whole = plan(layers), plan(layers), plan(layers, True)
    x = np.random.default_rng(rank).standard_normal(one.elems).astype(F)
    for _ in range(2):
        one.run(x.copy())
    whole.run(x.copy())
    kept = one.residual
    assert one.feeds_back and np.abs(kept).max() > 0 and kept is not one.residual
    other.restore(kept)
    other.call = one.call
    assert other.residual.tobytes() == kept.tobytes()
    assert one.run(x.copy()).tobytes() == other.run(x.copy()).tobytes()
    assert one.residual.tobytes() == other.residual.tobytes()

    part = plan(layers[2:])
    part.restore(kept[3070:])
    assert part.residual.tobytes() == kept[3070:].tobytes()
    other.restore(whole.residual)
    off = np.abs(other.residual - whole.residual)
    assert 0 < off.max() <= np.abs(whole.residual).max() / 127
    assert (other.residual[3000:3070] == 0).all()
    for wrong, words in (
        (kept[1:], "elements, not"),
        (kept.astype(float), "float32"),
        (kept + F(np.inf), "element 0 of"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            other.restore(wrong)


def test_the_memory_of_residuals_is_told():
    """A byte for each element, and one for each bucket."""

    def work(world, rank):
        plans = [
            ar.AllreducePlan(world, [5000, (500,)], algorithm="sra", error_feedback=f) for f in (False, True, "int8")
        ]
        return ["".join(line for line in p.explain().splitlines() if line.startswith("residual")) for p in plans]

    expected = ["", "residual: float32, 22000 bytes", "residual: int8, 5506 bytes"]
    assert all_good(run_ranks(2, work)) == [expected] * 2


def test_long_ring_is_warned_about():
    def work(world, rank):
        with pytest.warns(RuntimeWarning, match="a ring of 5 ranks quantises 5 times") if rank == 0 else nullcontext():
            world.barrier()
            return ar.AllreducePlan(world, [4096], algorithm="ring").explain() if rank == 0 else ""

    assert "warning: a ring of 5 ranks" in all_good(run_ranks(5, work))[0]


@on_ranks(3, nodes=2)
def test_refused_buffers_and_nodes(world, rank):
    plan = ar.AllreducePlan(world, [100], algorithm="sra")
    with pytest.raises(ValueError, match="the plan's 100 elements, not 99"):
        plan.run(np.zeros(99, F))
    with pytest.raises(TypeError, match="float32"):
        plan.run(np.zeros(100))
    with pytest.raises(TypeError, match="writable"):
        plan.run(np.broadcast_to(F(1), 100))
    with pytest.raises(ValueError, match="two_level needs the same number of ranks"):
        ar.AllreducePlan(world, [100], algorithm="two_level")
    with pytest.raises(TypeError, match="comm must be"):
        ar.AllreducePlan(None, [100], algorithm="sra")
