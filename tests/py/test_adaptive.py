"""Bits for each layer: the losses against float64, the choice against all possible ones, and plans that run with
them."""

import itertools

import _cgxffcv
import numpy as np
import pytest
from thread_ranks import all_good, on_ranks, run_ranks

from cgxffcv.adaptive import AdaptiveBits, Policy
from cgxffcv.allreduce import AllreducePlan, QuantSpec, check_replicas, dequantize, quantize

F = np.float32
SHAPES = [("small", (70, 50)), ("bias", (64,)), ("spiky", (40, 100)), ("large", (90, 90)), ("kept", (64, 64))]
SIZES = [int(np.prod(shape)) for _, shape in SHAPES]
STARTS = np.cumsum([0, *SIZES])


def gradients(rank, scale=1.0):
    """Layers of very different size, one with a heavy tail."""
    rng = np.random.default_rng(rank)
    parts = [rng.standard_normal(n) * s for n, s in zip(SIZES, (0.01, 1, 0.3, 3.0, 0.5), strict=True)]
    parts[2] = 0.3 * rng.standard_t(2, SIZES[2])
    return (np.concatenate(parts) * scale).astype(F)


def layer(x, i):
    return x[STARTS[i] : STARTS[i + 1]]


@pytest.mark.parametrize(
    ("codec", "rounding", "widths"),
    [
        ("maxmin", "nearest", (2, 4, 8)),
        ("maxmin", "stochastic", (3, 5)),
        ("maxmin_spikes", "nearest", (2, 3)),
        ("rotated", "nearest", (1, 2, 3, 4)),
    ],
)
def test_losses_are_those_of_the_quantiser(codec, rounding, widths):
    """Against float64, with the residual added, for each layer at each width; and the bytes on the wire."""

    def work(world, rank):
        options = {"codec": codec, "rounding": rounding, "bucket_size": 256, "seed": 3}
        plan = AllreducePlan(world, SHAPES, bits=2, algorithm="sra", error_feedback=True, **options)
        plan.run(gradients(rank))
        x = gradients(rank + 2)
        return plan.losses(x, widths), x + plan.residual, rank

    for (lost, sizes), x, rank in all_good(run_ranks(2, work)):
        quad = 0
        for i, elems in enumerate(SIZES):
            part = layer(x, i)
            raw = i == 1
            for k, bits in enumerate(() if raw else widths):
                scale = "mse" if codec == "rotated" else "auto"
                spec = QuantSpec(bits, 256, codec=codec, rounding=rounding, scale=scale)
                keys = {"seed": 3, "call": 1, "quad": quad}
                y = dequantize(quantize(part, spec, rank=rank, **keys), elems, spec, **keys)
                expected = ((part.astype(np.float64) - y) ** 2).sum()
                assert lost[i, k] == pytest.approx(expected, rel=1e-12)
                assert sizes[i, k] == spec.wire_bytes(elems)
            energy = 0 if raw else (part.astype(np.float64) ** 2).sum()
            assert lost[i, -1] == pytest.approx(energy, rel=1e-12)
            assert not raw or (lost[i] == 0).all() and (sizes[i] == 0).all()
            bucket = 512 if raw else 256
            quad += -(-elems // bucket) * (bucket // 4)


def test_choice_is_the_best_of_all():
    """Against every choice: never over the budget, and as good as the best one for a slightly smaller budget."""
    rng = np.random.default_rng(0)
    for layers, count in ((1, 3), (3, 4), (5, 3), (6, 2)):
        for _ in range(20):
            lost = np.sort(rng.exponential(size=(layers, count)), 1)[:, ::-1].copy()
            sizes = np.sort(rng.integers(1, 1000, (layers, count)), 1).astype(np.uint64)
            budget = float(lost.min(1).sum() + rng.uniform(0, 1) * (lost.max(1) - lost.min(1)).sum())
            every = [
                (lost[range(layers), c].sum(), int(sizes[range(layers), c].sum()))
                for c in itertools.product(range(count), repeat=layers)
            ]
            chosen = list(_cgxffcv.allreduce_choose_widths(lost, sizes, budget))
            total, size = lost[range(layers), chosen].sum(), int(sizes[range(layers), chosen].sum())
            within = [s for e, s in every if e <= budget * (1 - layers * 2.0**-14)]
            if within:
                assert total <= budget * (1 + 1e-12)
                assert min(s for e, s in every if e <= budget * (1 + 1e-12)) <= size <= min(within)
            elif total > budget:
                assert total == lost.min(1).sum()


def test_choice_at_its_ends():
    lost, sizes = np.array([[4.0, 1.0], [0.0, 0.0]]), np.array([[1, 2], [3, 1]], np.uint64)
    assert _cgxffcv.allreduce_choose_widths(lost, sizes, 0.0) == (1, 0)  # none is within it: the least losses
    assert _cgxffcv.allreduce_choose_widths(lost, sizes, -0.0) == (1, 0)
    assert _cgxffcv.allreduce_choose_widths(lost, sizes, 4.5) == (0, 1)
    assert _cgxffcv.allreduce_choose_widths(np.zeros((0, 2)), np.zeros((0, 2), np.uint64), 1.0) == ()
    many = np.tile([[1.0, 0.25]], (2048, 1))
    chosen = _cgxffcv.allreduce_choose_widths(many, np.tile(np.array([[1, 2]], np.uint64), (2048, 1)), 1024.0)
    assert 650 <= 2048 - sum(chosen) <= 682  # n + (2048 - n) / 4 <= 1024
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be a finite number"):
            _cgxffcv.allreduce_choose_widths(np.array([[wrong]]), np.ones((1, 1), np.uint64), 1.0)
    for budget in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="budget"):
            _cgxffcv.allreduce_choose_widths(lost, sizes, budget)
    with pytest.raises(ValueError, match="the same shape"):
        _cgxffcv.allreduce_choose_widths(lost, sizes[:1], 1.0)
    with pytest.raises(ValueError, match="at most 2048 layers"):
        _cgxffcv.allreduce_choose_widths(np.zeros((2049, 1)), np.zeros((2049, 1), np.uint64), 1.0)


@pytest.mark.parametrize("codec", ("maxmin", "rotated"))
def test_fewer_bytes_for_no_more_error(codec):
    """Compared with the same bits for all; a layer with separate bits keeps them; all ranks make the same choice."""
    size, usual = 3, 4 if codec == "maxmin" else 3
    exact = np.mean([gradients(r).astype(np.float64) for r in range(size)], 0)

    def work(world, rank):
        options = {"codec": codec, "algorithm": "sra", "bucket_size": 256}
        plain = AllreducePlan(world, SHAPES, bits={"default": usual, "kept": 2}, **options)
        plan = AllreducePlan(world, SHAPES, bits={"default": usual, "kept": 2}, **options)
        adaptive = AdaptiveBits(plan, every=2)
        before, after = plain.run(gradients(rank)), adaptive.run(gradients(rank))
        check_replicas(world, after)
        first = adaptive.bits
        adaptive.run(gradients(rank, np.nan))  # nothing is measured in between
        adaptive.run(gradients(rank, np.nan))
        assert adaptive.bits == first and plan.call == 3
        return before, after, first, plain.wire_bytes, plan.wire_bytes

    results = all_good(run_ranks(size, work))
    assert len({bits for _, _, bits, _, _ in results}) == 1
    before, after, bits, _, _ = results[0]
    assert bits[1] == 0 and bits[4] == 2 and bits[0] < usual
    assert sum(r[4] for r in results) < 0.97 * sum(r[3] for r in results)
    lost = [((out[: STARTS[4]] - exact[: STARTS[4]]) ** 2).sum() for out in (before, after)]
    assert lost[1] < 1.15 * lost[0]  # the budget is for what each rank loses; the sum loses a little more


def test_budget_is_a_share_of_the_energy():
    def work(world, rank):
        chosen = []
        for budget in (1.0, 1e-2, 1e-4, 0.0):
            plan = AllreducePlan(world, SHAPES, bits=32, layer_min_size=1, algorithm="sra")
            plan.set_bits([4, 0, 4, 4, 4])
            adaptive = AdaptiveBits(plan, budget=budget)
            adaptive._fixed[:] = False
            adaptive.run(gradients(rank))
            lost, _ = plan.losses(gradients(rank), adaptive.widths)
            columns = [adaptive.widths.index(b) for b in np.delete(adaptive.bits, 1)]
            chosen.append((np.delete(lost, 1, 0)[range(4), columns].sum() / lost[:, -1].sum(), adaptive.bits))
        return chosen

    for chosen in all_good(run_ranks(2, work)):
        assert chosen[0][1] == (2, 0, 2, 2, 2) and chosen[-1][1] == (8, 0, 8, 8, 8)
        for (share, _), budget in zip(chosen[:3], (1.0, 1e-2, 1e-4), strict=True):
            assert share < 1.1 * budget


def test_zeros_tell_nothing():
    """Layers whose gradients are zero on all ranks, as in front of one that begins with zeros, keep their bits; where
    all are, the next run chooses."""

    def work(world, rank):
        adaptive = AdaptiveBits(AllreducePlan(world, SHAPES, algorithm="sra"), every=100)
        adaptive.run(np.zeros(STARTS[-1], F))
        nothing, x = adaptive.bits, gradients(rank)
        layer(x, 0)[:] = 0
        layer(x, 3)[:] = 0 if rank else layer(x, 3)
        adaptive.run(x)
        return nothing, adaptive.bits

    for nothing, bits in all_good(run_ranks(2, work)):
        assert nothing == (0,) * 5 and bits[0] == 0 and min(bits[2:]) >= 2


def test_other_bits_go_on_with_call_and_residual():
    """As if nothing had happened if the bits are the same."""

    def work(world, rank):
        outs = []
        for changes in (False, True):
            plan = AllreducePlan(world, SHAPES, bits=3, algorithm="sra", error_feedback=True, rounding="stochastic")
            for step in range(3):
                outs.append(plan.run(gradients(rank + 10 * step)))
                if changes:
                    plan.set_bits([3, 0, 3, 3, 3])
                    assert plan.layer_bits == (3, 0, 3, 3, 3)
            outs.append(plan.residual.copy())
        with pytest.raises(ValueError, match="one number for each of 5 layers"):
            plan.set_bits([3])
        return outs

    for outs in all_good(run_ranks(2, work)):
        for plain, changed in zip(outs[:4], outs[4:], strict=True):
            assert plain.tobytes() == changed.tobytes()


@on_ranks(2)
def test_refusals(world, rank):
    plan = AllreducePlan(world, SHAPES, algorithm="sra")
    for options, message in (
        ({"every": 0}, "every must be"),
        ({"budget": -1.0}, "budget must be"),
        ({"budget": float("nan")}, "budget must be"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveBits(plan, **options)
    for options, message in (
        ({"every": "5"}, "every must be"),
        ({"every": 2.5}, "every must be"),
        ({"every": True}, "every must be"),
        ({"budget": "1"}, "budget must be"),
        ({"budget": True}, "budget must be"),
        ({"widths": 4}, "widths must be"),
        ({"widths": "248"}, "widths must be"),
        ({"widths": (4.0,)}, "a width must be"),
        ({"widths": (True,)}, "a width must be"),
    ):
        with pytest.raises(TypeError, match=message):
            AdaptiveBits(plan, **options)
    with pytest.raises(ValueError, match="widths must be"):
        AdaptiveBits(plan, widths=(), budget=0.1)
    with pytest.raises(ValueError, match="a width must be in 1..8"):
        AdaptiveBits(plan, widths=(9,)).run(gradients(rank))
    with pytest.raises(ValueError, match="buffer must have the plan's"):
        plan.losses(gradients(rank)[1:], (4,))
    with pytest.raises(ValueError, match="one width"):
        AdaptiveBits(AllreducePlan(world, SHAPES, bits=1, codec="sign", algorithm="sra"))
    with pytest.raises(ValueError, match="budget must be given"):
        AdaptiveBits(AllreducePlan(world, SHAPES, bits=32))
    with pytest.raises(ValueError, match="at most 4|between 1 and 4"):
        AllreducePlan(world, SHAPES, codec="rotated", algorithm="sra").losses(gradients(rank), (5,))


def test_more_layers_than_widths_are_chosen_for_end_in_an_error_on_all_ranks():
    """Also on those that wait for rank 0's choice."""

    def work(world, rank):
        plan = AllreducePlan(world, [8] * 2049, layer_min_size=1, bucket_size=8, algorithm="sra", timeout=60.0)
        with pytest.raises(ValueError, match="at most 2048 layers"):
            AdaptiveBits(plan).run(np.ones(8 * 2049, F))
        return world.allreduce(np.ones(3, F), op="sum").tolist()

    assert all_good(run_ranks(2, work)) == [[2.0] * 3] * 2


def test_numbers_of_numpy_are_numbers():
    policy = Policy.of("maxmin", 4, widths=np.array([2, 4]), every=np.int64(5), budget=F(0.5))
    assert policy == Policy((2, 4), 5, 0.5, 4)
    assert [type(x) for x in (*policy.widths, policy.every, policy.budget)] == [int, int, int, float]


def test_a_choice_that_overflow_has_prevented_is_made_in_the_next_run():
    def work(world, rank):
        adaptive = AdaptiveBits(AllreducePlan(world, SHAPES, bits=4, algorithm="sra"), every=1000)
        adaptive.run(gradients(rank, np.inf))
        before = adaptive.bits
        adaptive.run(gradients(rank))
        chosen = adaptive.bits
        adaptive.run(gradients(rank + 9, 100.0))
        return before, chosen, adaptive.bits

    for before, chosen, later in all_good(run_ranks(2, work)):
        assert before == (0,) * len(SHAPES) and chosen[0] != 0 and later == chosen


@pytest.mark.parametrize("failure", (ValueError("too many"), MemoryError("no room"), RuntimeError("a fault")))
def test_whatever_fails_on_rank_0_is_told_to_all(monkeypatch, failure):
    def fails(*_):
        raise failure

    monkeypatch.setattr(Policy, "choose", fails)

    def work(world, rank):
        adaptive = AdaptiveBits(AllreducePlan(world, SHAPES, bits=4, algorithm="sra", timeout=60.0))
        with pytest.raises(type(failure) if rank == 0 else ValueError, match=str(failure)):
            adaptive.run(gradients(rank))
        return world.allreduce(np.ones(3, F), op="sum").tolist()

    assert all_good(run_ranks(2, work)) == [[2.0] * 3] * 2
