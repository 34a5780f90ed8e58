"""The allreduce over shared memory, ranks as threads, against the NumPy simulation byte for byte."""

import numpy as np
import pytest
import quant_model as model
from allreduce_model import Case, simulate
from thread_ranks import all_good, run_ranks

from cgxffcv import allreduce as ar

# Rings of more than four ranks give a warning, which test_allreduce_plans.py tests.
pytestmark = pytest.mark.filterwarnings("ignore:a ring of:RuntimeWarning")

F = np.float32
SHAPES = [(2, 1), (3, 1), (5, 1), (7, 1), (4, 2), (3, 3), (6, 2), (6, 3)]
ALGORITHMS = ("one_shot", "sra", "ring", "two_level", "exact")


def spec_of(options, bits, bucket):
    return model.complete(
        bits,
        bucket,
        options.get("dtype", "float32"),
        options.get("codec", "maxmin"),
        options.get("rounding", "nearest"),
        options.get("half_metadata", False),
        options.get("spikes"),
        options.get("scale") or ("mse" if options.get("error_feedback") else "unbiased"),
    )


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


MIXED = [
    (3000, 2, None, None),
    (64, 1, None, None),
    (5000, 4, None, None),
    (10, 2, None, None),
    (1, 1, None, None),
    (4097, 2, 2, 128),
    (0, 2, None, None),
    (2048, 1, 8, 100),
    (3500, 2, 32, None),
]


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
    """Added up as rotated values: padded last buckets next to layers that are sent uncompressed, in every type, with
    error feedback, with many slices."""
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


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (5, 1), (4, 2)])
def test_error_feedback_in_8_bits(size, nodes, algorithm):
    """Every codec and type, with numbers near both ends of float32's range; buckets of one element, short last buckets,
    many slices."""
    layers = [(5000, 2, None, None), (30, 1, None, None), (2500, 2, 3, 200), (900, 2, 4, 1), (1100, 2, 4, 1 << 20)]
    eight = {"error_feedback": "int8", "layer_min_size": 500}

    def change(number, buffers):
        for buffer in buffers:
            buffer[:512] *= 1e-42
            buffer[512:1024] = 0
            buffer[1024:1536] *= 1e36 if number == 0 else 1e-36
            buffer[1536:2048] *= 1e-30
        buffers[0][3000], buffers[1][6000] = np.inf, np.nan

    compare(size, nodes, layers, algorithm, runs=3, bits=2, bucket_size=512, change=change, **eight)
    compare(size, nodes, layers[:3], algorithm, runs=2, dtype="bfloat16", half_metadata=True, **eight)
    compare(size, nodes, layers, algorithm, runs=2, dtype="float16", op="sum", slot_bytes=4096, threads=2, **eight)
    compare(size, nodes, layers[:3], algorithm, runs=2, bits=3, rounding="stochastic", seed=9 << 33, **eight)
    compare(size, nodes, layers[:3], algorithm, runs=2, bits=2, codec="maxmin_spikes", bucket_size=256, **eight)
    compare(size, nodes, [(5000, 2, 1, 300)], algorithm, runs=2, codec="sign", bits=1, **eight)
    rotated = [(6000, 2, None, None), (64, 1, None, None), (1500, 2, 1, 64), (3, 2, 4, None), (2048, 1, 3, 4096)]
    compare(size, nodes, rotated, algorithm, runs=3, codec="rotated", bits=2, **eight)


@pytest.mark.parametrize(
    ("bits", "codec", "scale", "less"), [(2, "maxmin", "auto", 20), (2, "rotated", "mse", 5), (1, "rotated", "mse", 10)]
)
def test_error_feedback_sums_to_the_truth(bits, codec, scale, less):
    """The mean over many runs of the same gradient approaches it as 1/runs, also with residuals of 8 bits; without
    feedback it does not."""
    gradient = buffers_of(2, 4096, seed=5)
    exact = (gradient[0].astype(np.float64) + gradient[1]) / 2

    def work(world, rank):
        distances = []
        for feedback in (False, True, "int8"):
            plan = ar.AllreducePlan(
                world, [(64, 64)], bits=bits, codec=codec, scale=scale, algorithm="sra", error_feedback=feedback
            )
            total = np.zeros(4096)
            for _ in range(50):
                total += plan.run(gradient[rank].copy())
            distances.append(np.linalg.norm(total / 50 - exact))
        return distances

    for plain, fed, eight in all_good(run_ranks(2, work)):
        assert fed < plain / less and eight < 1.2 * fed


@pytest.mark.parametrize("algorithm", ("one_shot", "sra"))
def test_residuals_of_8_bits_lose_little_over_many_runs(algorithm):
    """The sum of all averages against the exact sum, of gradients that are new at every run: float32 residuals leave
    one run's error, and 8 bits add less than half of that in 300 runs."""
    runs, elems = 300, 2048
    drawn = [np.random.default_rng(rank).standard_normal((runs, elems)).astype(F) for rank in range(2)]
    exact = (drawn[0].astype(np.float64) + drawn[1]).sum(0) / 2

    def work(world, rank):
        distances = []
        for feedback in (True, "int8"):
            plan = ar.AllreducePlan(world, [(32, 64)], bits=2, algorithm=algorithm, error_feedback=feedback)
            total = np.zeros(elems)
            for gradient in drawn[rank]:
                total += plan.run(gradient.copy())
            distances.append(np.linalg.norm(total - exact))
        return distances

    for whole, eight in all_good(run_ranks(2, work)):
        assert eight < 1.5 * whole


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
    """A NaN or an infinity on one rank makes its bucket NaN everywhere; the other buckets are not affected."""

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
    """Also if their sum is infinite: in every way of sending, quantised (where quantisation exists) or not."""
    high = 1.6e308 if dtype == "float64" else 3e38
    values = np.array([high, -high, high / 3, -high / 7, 0.0] * 300)
    for bits, feedback in ((32, False), (8, False), (8, True)):

        def work(world, rank, bits=bits, feedback=feedback):
            plan = ar.AllreducePlan(
                world,
                [("w", (50, 30)), ("bias", (1500,))],
                bits=bits,
                dtype=dtype,
                algorithm=algorithm,
                error_feedback=feedback,
            )
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


def test_smallest_slots_take_the_widest_type():
    compare(3, 1, [(5000, 2, None, None)], "sra", slot_bytes=4096, dtype="float64")
