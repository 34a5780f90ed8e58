"""The allreduce over shared memory, ranks as threads, against the NumPy simulation byte for byte."""

import gc
import re
import weakref
from contextlib import nullcontext

import _cgxffcv
import numpy as np
import pytest
import quant_model as model
from allreduce_model import Case, simulate
from thread_ranks import all_good, run_ranks

from cgxffcv import allreduce as ar
from cgxffcv import comm, costs

# Rings of more than four ranks are warned about; one test below looks at that.
pytestmark = pytest.mark.filterwarnings("ignore:a ring of:RuntimeWarning")

F = np.float32
SHAPES = [(2, 1), (3, 1), (5, 1), (7, 1), (4, 2), (3, 3), (6, 2), (6, 3)]
ALGORITHMS = ("one_shot", "sra", "ring", "two_level", "exact")


def spec_of(options, bits, bucket):
    return model.complete(
        bits, bucket, options.get("dtype", "float32"), options.get("codec", "maxmin"),
        options.get("rounding", "nearest"), options.get("half_metadata", False), options.get("spikes"),
        options.get("scale") or ("mse" if options.get("error_feedback") else "unbiased"),
    )  # fmt: skip


def buffers_of(size, elems, dtype="float32", seed=0):
    out = []
    for rank in range(size):
        rng = np.random.default_rng(seed * 100 + rank)
        x = rng.standard_normal(elems).astype(F)
        if dtype in ("float32", "float16", "bfloat16"):
            out.append(model.from_float32(x, dtype))
        else:
            out.append((rng.standard_normal(elems) * 1000).astype(dtype))
    return out


def case_of(layers, options, algorithm, nodes, average=True):
    """The simulation's case for a plan's arguments: `layers` are (elems, dims, bits or None, bucket or None)."""
    table = []
    dtype, op = options.get("dtype", "float32"), options.get("op", "average")
    for elems, dims, bits, bucket in layers:
        raw = bits is None and (dims < 2 or elems < options.get("layer_min_size", 1024))
        bits, bucket = bits or options.get("bits", 4), bucket or options.get("bucket_size", 1024)
        raw = raw or bits == 32 or algorithm == "exact" or op in ("min", "max", "prod")
        raw = raw or dtype not in ("float32", "float16", "bfloat16")
        table.append((elems, None if raw else spec_of(options, bits, bucket)))
    return Case(table, dtype, op, algorithm, nodes, options.get("error_feedback", False), options.get("seed", 0))


def plan_of(world, layers, options, algorithm):
    shapes, bits, buckets = [], {"default": options.get("bits", 4)}, {"default": options.get("bucket_size", 1024)}
    for i, (elems, dims, own_bits, own_bucket) in enumerate(layers):
        shapes.append((f"layer{i}", (elems,) + (1,) * (dims - 1)))
        if own_bits:
            bits[f"layer{i}"] = own_bits
        if own_bucket:
            buckets[i] = own_bucket
    rest = {k: v for k, v in options.items() if k not in ("bits", "bucket_size")}
    return ar.AllreducePlan(world, shapes, bits=bits, bucket_size=buckets, algorithm=algorithm, **rest)


def compare(size, nodes, layers, algorithm, runs=1, slot_bytes=None, change=None, **options):
    """Runs a plan `runs` times on fresh data and compares every rank's bytes with the simulation's."""
    elems = sum(layer[0] for layer in layers)
    case = case_of(layers, options, algorithm, nodes)
    inputs = [buffers_of(size, elems, options.get("dtype", "float32"), seed) for seed in range(runs)]
    for number, buffers in enumerate(inputs):
        if change is not None:
            change(number, buffers)
    expected = [simulate(case, buffers) for buffers in inputs]

    def work(world, rank):
        plan = plan_of(world, layers, options, algorithm)
        out = []
        for buffers in inputs:
            x = buffers[rank].copy()
            assert plan.run(x) is x
            ar.check_replicas(world, x)
            out.append(x)
        residual = None if plan.residual is None else plan.residual.copy()
        return out, residual, plan.call

    for rank, (out, residual, call) in enumerate(all_good(run_ranks(size, work, nodes=nodes, slot_bytes=slot_bytes))):
        assert call == runs
        for ours, theirs in zip(out, expected, strict=True):
            assert ours.tobytes() == theirs.tobytes(), (rank, np.flatnonzero(ours != theirs)[:5])
        if case.feedback and size > 1:
            assert residual.tobytes() == case.residual[rank].tobytes()


MIXED = [(3000, 2, None, None), (64, 1, None, None), (5000, 4, None, None), (10, 2, None, None), (1, 1, None, None),
         (4097, 2, 2, 128), (0, 2, None, None), (2048, 1, 8, 100), (3500, 2, 32, None)]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("size", "nodes"), SHAPES)
def test_layers_of_all_kinds(size, nodes, algorithm):
    compare(size, nodes, MIXED, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (5, 1), (6, 2)])
def test_half_types(size, nodes, dtype, algorithm):
    compare(size, nodes, MIXED, algorithm, dtype=dtype)
    compare(size, nodes, MIXED, algorithm, dtype=dtype, op="sum", half_metadata=True)


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (3, 1), (4, 2)])
def test_every_width_codec_and_rounding(size, nodes, algorithm):
    layers = [(6000, 2, None, None), (1500, 2, None, None)]
    for bits in range(1, 9):
        compare(size, nodes, layers, algorithm, bits=bits, bucket_size=384)
    compare(size, nodes, layers, algorithm, runs=2, bits=3, bucket_size=100, rounding="stochastic", seed=9 << 33)
    compare(size, nodes, layers, algorithm, bits=1, codec="sign")
    compare(size, nodes, layers, algorithm, bits=2, codec="maxmin_spikes", bucket_size=256)


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (3, 1), (6, 3)])
def test_rotated_sums(size, nodes, algorithm):
    """Added up as rotated values: padded last buckets beside layers that travel as they are, in every type, with error
    feedback, with many slices."""
    layers = [(6000, 2, None, None), (64, 1, None, None), (1500, 2, 1, 64), (3, 2, 4, None), (2048, 1, 3, 4096)]
    rotated = {"codec": "rotated", "bits": 2, "seed": 9 << 33}
    compare(size, nodes, layers, algorithm, runs=2, **rotated)
    compare(size, nodes, layers, algorithm, runs=3, error_feedback=True, **rotated)
    for dtype in ("float16", "bfloat16"):
        compare(size, nodes, layers, algorithm, dtype=dtype, op="sum", scale="mse", **rotated)
        compare(size, nodes, layers, algorithm, runs=2, dtype=dtype, error_feedback=True, **rotated)
    compare(size, nodes, layers, algorithm, slot_bytes=4096, threads=2, **rotated)


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (5, 1), (4, 2)])
def test_error_feedback(size, nodes, algorithm):
    layers = [(5000, 2, None, None), (30, 1, None, None), (2500, 2, 3, 200)]
    compare(size, nodes, layers, algorithm, runs=3, bits=2, error_feedback=True)
    compare(size, nodes, layers, algorithm, runs=2, error_feedback=True, dtype="bfloat16", half_metadata=True)
    compare(size, nodes, layers, algorithm, runs=2, error_feedback=True, dtype="float16")


@pytest.mark.parametrize(
    ("bits", "codec", "scale", "less"), [(2, "maxmin", "auto", 20), (2, "rotated", "mse", 5), (1, "rotated", "mse", 10)]
)
def test_error_feedback_sums_to_the_truth(bits, codec, scale, less):
    """The mean over many runs of the same gradient approaches it as 1/runs; without feedback it does not move."""
    gradient = buffers_of(2, 4096, seed=5)
    exact = (gradient[0].astype(np.float64) + gradient[1]) / 2

    def work(world, rank):
        distances = []
        for feedback in (False, True):
            plan = ar.AllreducePlan(
                world, [(64, 64)], bits=bits, codec=codec, scale=scale, algorithm="sra", error_feedback=feedback
            )
            total = np.zeros(4096)
            for _ in range(50):
                total += plan.run(gradient[rank].copy())
            distances.append(np.linalg.norm(total / 50 - exact))
        return distances

    for plain, fed in all_good(run_ranks(2, work)):
        assert fed < plain / less


@pytest.mark.parametrize(
    ("dtype", "op"), [(d, op) for d in ar.DTYPES for op in ar.OPS if op != "average" or "int" not in d]
)
def test_exact_operations(dtype, op):
    layers = [(2000, 1, None, None), (1100, 2, 32, None)]
    for algorithm in ALGORITHMS:
        compare(3, 3, layers, algorithm, op=op, dtype=dtype, bits=32)
    compare(4, 2, layers, "two_level", op=op, dtype=dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_not_a_number_reaches_every_rank(algorithm):
    """A NaN or an infinity on one rank makes its bucket NaN everywhere; the other buckets do not notice."""

    def change(number, buffers):
        buffers[1][700] = np.nan
        buffers[2][3000] = np.inf
        buffers[0][5000] = -np.inf
        buffers[2][5000] = np.inf

    layers = [(4096, 2, None, None), (1500, 1, None, None)]
    compare(3, 1, layers, algorithm, change=change)
    if algorithm != "exact":
        compare(3, 1, layers, algorithm, change=change, error_feedback=True, runs=2)

    def work(world, rank):
        buffers = buffers_of(3, 5596)
        change(0, buffers)
        return plan_of(world, layers, {}, algorithm).run(buffers[rank].copy())

    for out in all_good(run_ranks(3, work)):
        if algorithm == "exact":
            assert np.flatnonzero(np.isnan(out)).tolist() == [700, 5000] and np.isinf(out[3000])
        else:
            assert np.isnan(out[:1024]).all() and np.isnan(out[2048:3072]).all() and np.isnan(out[5000])
            assert np.isfinite(out[1024:2048]).all() and np.isfinite(out[3072:4096]).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("size", "nodes", "slot_bytes"), [(2, 1, 4096), (5, 1, 4 << 20), (7, 1, 4 << 20), (6, 2, 4096)]
)
def test_many_slices_and_few_slots(algorithm, size, nodes, slot_bytes):
    """Slots of 4 KiB make many slices; slots of 4 MiB leave each rank fewer slots than there are ranks."""
    elems = 40_000 if slot_bytes == 4096 else 1_200_000
    compare(size, nodes, [(elems, 2, None, None), (3000, 1, None, None)], algorithm, slot_bytes=slot_bytes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_threads_give_the_same_bytes(algorithm):
    compare(2, 1, [(400_000, 2, None, None)], algorithm, threads=3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("elems", (0, 1, 5))
def test_fewer_elements_than_ranks(algorithm, elems):
    compare(3, 1, [(elems, 2, 4, None)], algorithm)
    compare(3, 1, [(elems, 1, None, None)], algorithm)
    compare(3, 1, [], algorithm)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float64"))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (3, 1), (4, 2), (5, 5)])
def test_the_average_of_large_numbers_is_one(size, nodes, algorithm, dtype):
    """Also where their sum is not: in every way to travel, quantised (where quantisation exists) or not."""
    high = 1.6e308 if dtype == "float64" else 3e38
    values = np.array([high, -high, high / 3, -high / 7, 0.0] * 300)
    for bits, feedback in ((32, False), (8, False), (8, True)):

        def work(world, rank, bits=bits, feedback=feedback):
            plan = ar.AllreducePlan(
                world, [("w", (50, 30)), ("bias", (1500,))], bits=bits, dtype=dtype, algorithm=algorithm,
                error_feedback=feedback,
            )  # fmt: skip
            for _ in range(2):
                x = np.tile(values * (1 - rank / 16), 2)
                x = plan.run(model.from_float32(x.astype(F), dtype) if dtype != "float64" else x)
            return x if dtype == "float64" else model.to_float32(x, dtype).astype(np.float64)

        expected = np.tile(values * np.mean([1 - rank / 16 for rank in range(size)]), 2)
        lost = high * (2 / 255 * size if bits == 8 and dtype != "float64" else 0) + np.abs(expected) / 128
        for out in all_good(run_ranks(size, work, nodes=nodes)):
            assert np.isfinite(out).all() and (np.abs(out - expected) <= lost).all(), (bits, feedback)


def test_the_average_of_equal_extremes():
    """The greatest float32 of all, and the smallest normal one times 2^10: to within the roundings of sums, exactly for
    two to four ranks, and never infinite."""
    for size in range(2, 10):
        x = np.array([np.finfo(F).max, np.finfo(F).tiny * 1024, -np.finfo(F).max], F)

        def work(world, rank, x=x):
            return ar.allreduce(x.copy(), world)

        for out in all_good(run_ranks(size, work)):
            assert out.tobytes() == x.tobytes() or size > 4
            np.testing.assert_allclose(out.astype(np.float64), x.astype(np.float64), rtol=size * 2.0**-24)


def test_sums_keep_subnormals_and_overflow():
    def work(world, rank):
        return ar.allreduce(np.array([3e38, 1e-45, 2e-45], F), world, op="sum")

    for out in all_good(run_ranks(2, work)):
        assert out.tolist() == [np.inf, *(np.array([1e-45, 2e-45], F) * 2).tolist()]


def test_one_rank_changes_nothing():
    for op in ("sum", "average"):
        x = buffers_of(1, 5000)[0]
        before = x.copy()
        [plan] = all_good(run_ranks(1, lambda world, rank, op=op: ar.AllreducePlan(world, [5000], op=op)))
        assert plan.wire_bytes == 0
        with pytest.raises(ValueError, match="the communicator is closed"):
            plan.run(x)
        all_good(run_ranks(1, lambda world, rank, x=x: ar.AllreducePlan(world, [5000], op="sum").run(x)))
        assert x.tobytes() == before.tobytes()


def test_odd_addresses():
    def work(world, rank):
        memory = np.zeros(4 * 3001 + 8, np.uint8)
        x = np.frombuffer(memory, F, 3001, 3)
        x[:] = buffers_of(2, 3001)[rank]
        ar.AllreducePlan(world, [(3001, 1)], algorithm="sra").run(x)
        return x.copy()

    expected = simulate(case_of([(3001, 2, None, None)], {}, "sra", 1), buffers_of(2, 3001))
    for out in all_good(run_ranks(2, work)):
        assert out.tobytes() == expected.tobytes()


def test_simple_form_and_bits_of_a_layer():
    def work(world, rank):
        x = buffers_of(2, 600)[rank].reshape(20, 30)
        exact = ar.allreduce(x.copy(), world)
        coarse = ar.allreduce(x.copy(), world, bits=8, algorithm="sra")
        counts = ar.allreduce(np.full(3, rank + 1, np.int64), world, op="sum")
        return exact, coarse, counts

    a, b = buffers_of(2, 600)
    for exact, coarse, counts in all_good(run_ranks(2, work)):
        assert exact.reshape(-1).tobytes() == ((a + b) / F(2)).tobytes()
        assert 0 < np.abs(coarse - exact).max() < 0.05
        assert counts.tolist() == [3, 3, 3]


def test_sub_communicators():
    def work(world, rank):
        with world.split(rank % 2, -rank) as half:
            x = np.full(2000, rank, F)
            ar.AllreducePlan(half, [(2000, 1)], algorithm="sra", op="sum").run(x)
            return half.rank, x[0], float(x.max())

    results = all_good(run_ranks(5, work))
    assert [r[0] for r in results] == [2, 1, 1, 0, 0]
    assert [r[1] for r in results] == [6, 4, 6, 4, 6]


@pytest.mark.parametrize(("codec", "bits", "one"), [("maxmin", 4, 1.57e-2), ("rotated", 3, 0.0357)])
@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "two_level"))
def test_energy_of_the_error(algorithm, codec, bits, one):
    """In units of one quantisation: 1 for one-shot, 2 - 1/N for SRA, 3 - 1/R - 1/M for M nodes of R ranks."""
    size, nodes, n = 4, 2, 1 << 18
    buffers = buffers_of(size, n, seed=3)
    exact = np.mean(np.stack(buffers).astype(np.float64), 0)
    results = all_good(
        run_ranks(
            size,
            lambda world, rank: ar.AllreducePlan(
                world, [(n, 1)], algorithm=algorithm, bits=bits, codec=codec, scale="auto"
            ).run(buffers[rank].copy()),
            nodes=nodes,
        )
    )
    energy = ((results[0] - exact) ** 2).sum() / (exact**2).sum() / one
    expected = {"one_shot": 1, "sra": 2 - 1 / size, "two_level": 3 - 1 / 2 - 1 / nodes}[algorithm]
    assert energy == pytest.approx(expected, rel=0.02)


def test_wire_bytes_are_counted():
    """Against what the algorithms send by the definition, for layers whose chunks are all alike."""
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
    """sra: 1 ms, and at 4 bits 1 + 0.5078125 * 4 = 3.03125 ns an element; plain: 4 bytes of 1 ns, and no latency."""
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
        assert small == "exact" and "plain is the faster here, 400.0 us; 4 bits by sra take 1303.1 us" in why
        assert times == {"sra": 1303.1, "exact": 400.0}
        assert large == "sra" and "by measured costs: the cheapest" in because
        assert more == {"sra": 13125.0, "exact": 16000.0}


def test_where_latency_decides():
    """Up to 32 KiB that a rank sends: twice 4096 float32 with three ranks."""

    def work(world, rank):
        return [ar.AllreducePlan(world, [(elems, 1)], layer_min_size=5000).algorithm for elems in (4096, 4097)]

    assert all_good(run_ranks(3, work)) == [["one_shot", "exact"]] * 3


@pytest.mark.parametrize(
    "lines",
    [b"short", {"tree": (1, 1, 1)}, {"sra": (1, 1)}, {"sra": (-1, 1, 1)}, {"sra": (0, float("nan"), 1)}, {1: ()}],
)
def test_costs_that_are_none_are_refused(lines):
    def work(world, rank):
        costs._remembered[world] = {"host": lines}
        with pytest.raises((ValueError, TypeError), match=r"cost"):
            ar.AllreducePlan(world, [(4096, 1)])

    all_good(run_ranks(2, work))


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
    [{"bits": 3}, {"bucket_size": 512}, {"algorithm": "one_shot"}, {"op": "sum"}, {"seed": 1},
     {"codec": "maxmin_spikes"}, {"codec": "rotated"}, {"rounding": "stochastic"}, {"layers": [(64, 65)]},
     {"dtype": "float16"}, {"call": 1}, {"error_feedback": True}, {"threads": 2},
     {"dtype": "float16", "half_metadata": True}, {"layers": [(32, 128)]},
     {"layers": [(64, 32), (64, 32)]}, {"layers": [("w", (64, 64))]}, {"layers": [4096]}, {"layers": []},
     {"algorithm": "exact", "bits": {0: 4}}],
    ids=str,
)  # fmt: skip
def test_mismatched_calls_fail_on_all_ranks(other):
    """Before any data is touched, naming what differs; and the communicator says so afterwards."""

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
        ([("encoder", (40, 50)), ("head", (40, 50))], [("head", (40, 50)), ("encoder", (40, 50))], 0,
         ("encoder (40, 50)", "head (40, 50)")),
        ([("a", (40, 50)), ("b", (40, 50))], [("a", (40, 50)), ("b", (50, 40))], 1, ("b (40, 50)", "b (50, 40)")),
        ([("a", (64, 32)), ("b", (64, 64))], [("a", (64, 64)), ("b", (64, 32))], 0, ("a (64, 32)", "a (64, 64)")),
        ([("a", 2000), (None, 2000)], [("a", 2000), ("b", 2000)], 1, ("a layer without a name 2000", "b 2000")),
        ([("a", 2000), ("b", 2000)], [("a", 2000), ("b", (2000,))], 1, ("b 2000", "b (2000,)")),
        ([("a", 4000)], [("a", 2000), ("b", 2000)], 0, ("a 4000", "a 2000")),
        ([("a", 4000)], [("a", 4000), ("b", 0)], 1, ("no such layer", "b 0")),
    ],
    ids=str,
)  # fmt: skip
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
        assert f"number {number} is the first: on rank {rank} it is {mine} of " in text or "no such layer" in text
        assert all(word in text for word in (mine, theirs)), text
        assert other == (0 if rank == 1 else 1) and f"on rank {other} it is" in text


def test_bits_that_nobody_uses_are_compared_too():
    """Whether a small call is quantised at all may depend on measured times; whether it is refused does not."""

    def work(world, rank):
        plan = ar.AllreducePlan(world, [100], bits={0: 4 + rank}, algorithm="exact")
        with pytest.raises(_cgxffcv.CommError, match=r"with 4 bits in the table.*|with 5 bits in the table.*"):
            plan.run(np.ones(100, F))

    all_good(run_ranks(2, work))


def test_plans_that_run_in_another_order_are_told_apart():
    """Also where their tables are the same: each plan has a number among those like it."""

    def work(world, rank):
        ar.AllreducePlan(world, [(8, 9)], algorithm="sra")  # of another kind: it does not count
        if rank == 0:
            ar.AllreducePlan(world, [(9, 8)], algorithm="sra")  # nor does it where only one rank makes it
        plans = [ar.AllreducePlan(world, [(64, 64)], algorithm="sra") for _ in range(3)]
        for plan in plans:
            assert (plan.run(np.ones(4096, F)) == 1).all()
        with pytest.raises(_cgxffcv.CommError) as caught:
            plans[2 if rank == 1 else 1].run(np.ones(4096, F))
        return str(caught.value)

    for text in all_good(run_ranks(2, work)):
        assert "run 1 of plan 1 of its kind" in text and "run 1 of plan 2 of its kind" in text
        assert text.endswith("all ranks must make and run their plans in the same order")


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
        ({"bits": 4.7}, TypeError, "bits must be a whole number, not 4.7"),
        ({"bits": {"a": "4"}}, TypeError, "bits must be a whole number, not '4'"),
        ({"bucket_size": 1.5}, TypeError, "bucket_size must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be in 0..2"),
        ({"timeout": -1}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": float("nan")}, ValueError, "timeout must be"),
        ({"timeout": "x"}, TypeError, "timeout must be a number of seconds above 0, or None, not 'x'"),
        ({"average": "no"}, TypeError, "average must be True or False, not 'no'"),
        ({"error_feedback": 1}, TypeError, "error_feedback must be True or False, not 1"),
        ({"device": "cuda"}, TypeError, "device must be a whole number"),
    ],
    ids=str,
)
def test_refusals(options, error, message):
    def work(world, rank):
        given = {"layers": [("a", (4096, 1024))]} | options
        with pytest.raises(error, match=message):
            ar.AllreducePlan(world, given.pop("layers"), **given)

    all_good(run_ranks(1, work))


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


def test_a_residual_goes_on_in_another_plan():
    def work(world, rank):
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

    all_good(run_ranks(2, work))


def test_long_ring_is_warned_about():
    def work(world, rank):
        with pytest.warns(RuntimeWarning, match="a ring of 5 ranks quantises 5 times") if rank == 0 else nullcontext():
            world.barrier()
            return ar.AllreducePlan(world, [4096], algorithm="ring").explain() if rank == 0 else ""

    assert "warning: a ring of 5 ranks" in all_good(run_ranks(5, work))[0]


def test_smallest_slots_take_the_widest_type():
    compare(3, 1, [(5000, 2, None, None)], "sra", slot_bytes=4096, dtype="float64")


def test_refused_buffers_and_nodes():
    def work(world, rank):
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

    all_good(run_ranks(3, work, nodes=2))
