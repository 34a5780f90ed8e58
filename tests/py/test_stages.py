"""An allreduce whose messages are moved by the caller: all ranks in one process, against the byte-level model."""

import numpy as np
import pytest
from allreduce_model import Case, simulate
from quant_model import complete, from_float32

from cgxffcv import allreduce, comm

LAYERS = [(20_000, 2), (100, 1), (3000, 2), (7, 2), (5000, 1), (70_000, 2)]
ELEMS = sum(n for n, _ in LAYERS)


def make(nodes, **options):
    """A plan for each rank."""
    shapes = [(n,) + (1,) * (d - 1) for n, d in LAYERS]
    worlds = [comm.apart(rank, nodes) for rank in range(len(nodes))]
    return worlds, [allreduce.AllreducePlan(world, shapes, bits=3, bucket_size=512, **options) for world in worlds]


def exchange(plans, groups, stage, buffers):
    """A stage's all-to-all within each group of ranks."""
    sent = {}
    for rank, plan in enumerate(plans):
        me, sizes, _, _ = plan.stage_messages(stage)
        messages = np.empty(sum(sizes), np.uint8)
        plan.stage_encode(stage, buffers[rank], messages)
        ends = np.cumsum(sizes)
        sent[rank] = [messages[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        assert sizes[me] == 0
    results = []
    for rank, plan in enumerate(plans):
        me, _, each, result = plan.stage_messages(stage)
        group = next(g for g in groups if rank in g)
        received = [sent[other][me] for other in group if other != rank]
        assert group[me] == rank and all(len(r) == each for r in received)
        out = np.full(result, 255, np.uint8)
        plan.stage_reduce(stage, buffers[rank], np.concatenate(received), out)
        results.append(out)
    return results


def run(plans, nodes, buffers, algorithm):
    """What every rank's buffer holds in the end."""
    everyone = [list(range(len(nodes)))]
    if algorithm == "one_shot":
        messages = [np.empty(plan.stage_messages("across")[1][0], np.uint8) for plan in plans]
        for plan, buffer, message in zip(plans, buffers, messages, strict=True):
            plan.stage_encode("across", buffer, message)
        gathered = [np.concatenate(messages)] * len(plans)
    else:
        across, inside = everyone, []
        if algorithm == "two_level":
            inside = [[r for r, n in enumerate(nodes) if n == node] for node in sorted(set(nodes))]
            across = [list(seats) for seats in zip(*inside, strict=True)]
            assert [len(r) for r in exchange(plans, inside, "inside", buffers)] == [0] * len(plans)
        results = exchange(plans, across, "across", buffers)
        gathered = [np.concatenate([results[r] for r in next(g for g in across if rank in g)]) for rank in everyone[0]]
        if inside:
            gathered = [np.concatenate([gathered[r] for r in next(g for g in inside if k in g)]) for k in everyone[0]]
    for plan, buffer, all_bytes in zip(plans, buffers, gathered, strict=True):
        plan.stage_finish(buffer, all_bytes)
    return buffers


@pytest.mark.parametrize(
    ("nodes", "algorithm", "codec"),
    [
        ([0, 1], "one_shot", "maxmin"),
        ([0, 1, 2], "sra", "maxmin"),
        ([0, 0, 1, 1, 2, 2], "two_level", "maxmin"),
        ([0, 1, 0], "exact", "maxmin"),
        ([0, 1], "one_shot", "rotated"),
        ([0, 0, 1, 1], "two_level", "rotated"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("feedback", [False, True, "int8"])
def test_stages_give_the_models_bytes(nodes, algorithm, codec, dtype, feedback):
    feedback = feedback if algorithm != "exact" else False
    rounding = "nearest" if codec == "rotated" else "stochastic"
    common = {"dtype": dtype, "codec": codec, "rounding": rounding}
    _, plans = make(nodes, algorithm=algorithm, error_feedback=feedback, seed=9, **common)
    specs = [
        None
        if d < 2 or n < 1024 or algorithm == "exact"
        else complete(3, 512, scale="mse" if feedback else "unbiased", **common)
        for n, d in LAYERS
    ]
    case = Case(
        [(n, spec) for (n, _), spec in zip(LAYERS, specs, strict=True)],
        dtype,
        "average",
        algorithm,
        len(set(nodes)),
        feedback,
        seed=9,
    )
    for step in range(2):
        random = np.random.default_rng(step)
        buffers = [from_float32(random.standard_normal(ELEMS).astype(np.float32), dtype) for _ in nodes]
        buffers[1][3000] = from_float32(np.array([np.nan], np.float32), dtype)[0]
        expected = simulate(case, buffers)
        for found in run(plans, nodes, [b.copy() for b in buffers], algorithm):
            assert found.tobytes() == expected.tobytes()
    for rank, plan in enumerate(plans if feedback else ()):
        assert plan.residual.tobytes() == case.residual[rank].tobytes()


def test_a_rank_in_another_run_is_named():
    _, plans = make([0, 1, 2], algorithm="sra")
    buffers = [np.ones(ELEMS, np.float32) for _ in plans]
    plans[1].call = 7
    with pytest.raises(comm.CommError, match=r"rank 0 expected run 0 of .*; rank 1 has run 7 of") as caught:
        exchange(plans, [[0, 1, 2]], "across", buffers)
    assert caught.value.rank == 1
    _, shots = make([0, 1], algorithm="one_shot")
    other = make([0, 1], algorithm="one_shot", seed=1)[1][1]
    messages = [np.empty(shots[0].stage_messages("across")[1][0], np.uint8) for _ in range(2)]
    shots[0].stage_encode("across", buffers[0], messages[0])
    other.stage_encode("across", buffers[1], messages[1])
    with pytest.raises(comm.CommError, match="seed 1"):
        shots[0].stage_finish(buffers[0], np.concatenate(messages))


def test_what_does_not_fit_is_refused():
    worlds, plans = make([0, 1], algorithm="sra")
    buffer, plan = np.ones(ELEMS, np.float32), plans[0]
    _, sizes, each, result = plan.stage_messages("across")
    out = np.empty(sum(sizes), np.uint8)
    with pytest.raises(ValueError, match="stage must be inside or across, not 'over'"):
        plan.stage_messages("over")
    assert plan.stage_messages("inside") == (0, (), 0, 0)
    with pytest.raises(ValueError, match="only two_level has a stage inside nodes"):
        plan.stage_encode("inside", buffer, out[:0])
    with pytest.raises(ValueError, match=f"messages must have {sum(sizes)} bytes, not {sum(sizes) - 1}"):
        plan.stage_encode("across", buffer, out[1:])
    with pytest.raises(ValueError, match=f"buffer must have the plan's {ELEMS} elements"):
        plan.stage_encode("across", buffer[1:], out)
    with pytest.raises(ValueError, match=f"result must have {result} bytes, not 0"):
        plan.stage_reduce("across", buffer, np.empty(each, np.uint8), out[:0])
    with pytest.raises(ValueError, match=f"gathered must have {2 * result} bytes"):
        plan.stage_finish(buffer, out)
    with pytest.raises(ValueError, match="cannot be moved by its caller: use sra or one_shot"):
        make([0, 1], algorithm="ring")[1][0].stage_messages("across")
    with pytest.raises(comm.CommError, match="allreduce: this communicator has no connection to its other ranks"):
        plan.run(buffer)
    with pytest.raises(comm.CommError, match="no connection to its other ranks"):
        worlds[0].barrier()
    for rank, nodes in ((2, [0, 1]), (-1, [0, 1]), (0, [0])):
        with pytest.raises(ValueError):
            comm.apart(rank, nodes)


# ---- what no encoder writes ----


def results_of(**options):
    """Plans of two ranks over 999 elements in buckets of 256, then 5 that are not quantised; and the two results."""
    worlds = [comm.apart(rank, [0, 1]) for rank in range(2)]
    layers = {"layers": [(999, 1), (5,)], "bucket_size": 256, "layer_min_size": 10} | options
    plans = [allreduce.AllreducePlan(world, **layers, algorithm="sra") for world in worlds]
    buffers = [np.random.default_rng(rank).standard_normal(1004).astype(np.float32) for rank in range(2)]
    if plans[0].dtype != "float32":
        buffers = [from_float32(buffer, plans[0].dtype) for buffer in buffers]
    return plans, buffers, exchange(plans, [[0, 1]], "across", buffers)


def refusal(options, at, value, words):
    """Rank 1's result with something in place of its bytes from `at` on."""
    plans, buffers, results = results_of(**options)
    bad = results[1].copy()
    value = np.atleast_1d(value).view(np.uint8)
    bad[at : at + len(value)] = value
    before = buffers[0].copy()
    with pytest.raises(comm.CommError, match=f"what came from rank 1 cannot be what it wrote: .*{words}") as caught:
        plans[0].stage_finish(buffers[0], np.concatenate([results[0], bad]))
    assert caught.value.rank == 1 and buffers[0].tobytes() == before.tobytes()
    plans[1].stage_finish(buffers[1], np.concatenate(results))


F32, U32, RANGE = np.float32, np.uint32, "bucket 0 has a range that no encoder writes"
# Rank 1's result: buckets of 256 and 231 elements, 3 bits: ranges of 8 bytes each, codes from 16 on, 96 and 87 bytes;
# from 208 on 20 bytes that are sent uncompressed, in 32.


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, F32(-1), RANGE),
        (0, F32(np.inf), RANGE),
        (0, F32(1e-40), RANGE),
        (0, F32(2.0**125), RANGE),
        (4, F32(-0.0), RANGE),
        (4, F32(2.0**125), RANGE),
        (0, U32(0x7FC00000), RANGE),
        (0, np.array([0x7FC00001] * 2, U32), RANGE),
        (0, F32(0), "bucket 0 has codes"),
        (0, np.array([0x7FC00000] * 2, U32), "bucket 0 has codes"),
        (8, F32(-1), "bucket 1 has a range"),
        (16 + 96 + 86, np.uint8(0xFF), "bucket 1 has codes"),
        (207, np.uint8(1), "its padding is not zero"),
        (239, np.uint8(1), "its padding is not zero"),
    ],
)
def test_what_maxmin_never_writes_is_refused(at, value, words):
    refusal({"bits": 3}, at, value, words)


@pytest.mark.parametrize(
    ("options", "at", "value"),
    [
        ({"dtype": "float16", "half_metadata": True, "bits": 4}, 0, np.array([1, -1], np.float16)),
        ({"dtype": "bfloat16", "half_metadata": True, "bits": 4}, 0, np.array([0x8000, 0x3F80], np.uint16)),
        ({"bits": 1, "codec": "sign"}, 0, F32(-1)),
        ({"bits": 1, "codec": "sign"}, 0, U32(0x7F800001)),
        ({"bits": 2, "codec": "rotated"}, 0, F32(-1)),
        ({"bits": 2, "codec": "rotated", "scale": "mse"}, 0, F32(1e-35)),
        ({"bits": 2, "codec": "maxmin_spikes", "spikes": 2}, 16, np.array([9, 0x3F80, 9, 0x3F80], np.uint16)),
        ({"bits": 2, "codec": "maxmin_spikes", "spikes": 2}, 16, np.array([9, 0x7F80], np.uint16)),
        ({"bits": 2, "codec": "maxmin_spikes", "spikes": 2}, 20, np.array([256, 0x3F80], np.uint16)),
    ],
)
def test_what_other_codecs_never_write_is_refused(options, at, value):
    refusal(options, at, value, RANGE)


def test_a_term_that_nobody_writes_is_refused():
    plans, buffers, _ = results_of(bits=3)
    _, _, each, result = plans[0].stage_messages("across")
    messages = np.empty(each, np.uint8)
    plans[1].stage_encode("across", buffers[1], messages)
    messages[96:100] = np.atleast_1d(F32(np.nan)).view(np.uint8)
    with pytest.raises(comm.CommError, match="what came from rank 1 cannot be what it wrote: .*a range") as caught:
        plans[0].stage_reduce("across", buffers[0], messages, np.empty(result, np.uint8))
    assert caught.value.rank == 1
