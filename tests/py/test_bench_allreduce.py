"""`bench allreduce`: its arguments, its sizes, and the bounds that results must keep to."""

import json

import numpy as np
import pytest
from thread_ranks import all_good, run_ranks

from cgxffcv import allreduce as ar
from cgxffcv.bench import allreduce as bench
from cgxffcv.bench import allreduce_bounds as bounds
from cgxffcv.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:a ring of:RuntimeWarning")
QUICK = ["-n", "1", "-w", "0", "--rounds", "1", "--no-rival"]


def options_of(**given):
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return bench.parse(["-b", "20000", "-e", "20000", *words])


def result_of(options, size, nodes=1, count=5000):
    """The result of one run, what the plan did, and how the bounds judge it."""

    def work(world, rank):
        trial = bench.trial_of(world, "host", options, count)
        x = np.empty(count, bounds.block_of(rank, options.dtype).dtype)
        trial.fill(bounds.block_of(rank, options.dtype))
        trial.time(count, 1, False)
        trial.read(x)
        ar.check_replicas(world, x)
        return x, bench.reduction_of(world, options, trial.plan()["algorithm"])

    x, reduction = all_good(run_ranks(size, work, nodes=nodes))[0]
    return x, reduction, bounds.count_wrong(x, reduction)


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
@pytest.mark.parametrize(
    ("codec", "bucket_size"), [(codec, size) for codec in ar.CODECS for size in (512, 1000) if codec != "rotated"]
)
def test_every_codec_is_within_its_bound_which_is_not_wide(bucket_size, codec, algorithm):
    for dtype, rounding in (("float32", "nearest"), ("float32", "stochastic"), ("bfloat16", "nearest")):
        for bits in (1,) if codec == "sign" else (2, 8):
            options = options_of(
                codec=codec, algorithm=algorithm, bucket_size=bucket_size, dtype=dtype, rounding=rounding, bits=bits
            )
            x, reduction, (wrong, energy) = result_of(options, 4, 2)
            assert wrong == 0 and 0 < energy < 10, (dtype, rounding, bits)
            bound = bounds.bound_of(reduction)[: x.size]
            lost = np.abs(bounds.widened(x, dtype) - bounds.exact_of(reduction)[: x.size])
            assert bound.max() < 20 * lost.max(), (dtype, rounding, bits)


@pytest.mark.parametrize("algorithm", ("one_shot", "sra", "ring", "two_level"))
def test_rotated_is_within_its_bound_which_is_not_wide(algorithm):
    for bits, bucket_size, dtype in (
        (1, 1024, "float32"),
        (2, 64, "bfloat16"),
        (3, 512, "float32"),
        (4, 4096, "float16"),
    ):
        options = options_of(codec="rotated", algorithm=algorithm, bucket_size=bucket_size, dtype=dtype, bits=bits)
        x, reduction, (wrong, energy) = result_of(options, 4, 2)
        assert wrong == 0 and 0 < energy < 6, (bits, energy)
        lost = np.abs(bounds.widened(x, dtype) - bounds.exact_of(reduction)[: x.size])
        assert bounds.bound_of(reduction)[: x.size].max() < 20 * lost.max(), bits


@pytest.mark.parametrize("dtype", ar.DTYPES)
def test_every_type_and_operation(dtype):
    for op in ar.OPS if dtype in bounds.FLOATS else (op for op in ar.OPS if op != "average"):
        for algorithm in ("exact", "ring", "one_shot"):
            options = options_of(dtype=dtype, op=op, algorithm=algorithm, bits=32)
            x, reduction, (wrong, energy) = result_of(options, 3)
            assert wrong == 0 and energy < 1e-4, (op, algorithm)
            x[7] = 0 if x[7] else 1
            assert bounds.count_wrong(x, reduction)[0] == 1


def test_half_metadata_is_within_its_bound():
    options = bench.parse(["--half-metadata", "-d", "float16", "--bits", "8", "--algorithm", "sra"])
    assert result_of(options, 3)[2][0] == 0


def test_what_travels_exactly_is_held_to_its_roundings():
    """Nothing is quantised: float32 averages within 2^-22 N of the mean magnitude."""
    for size in (2, 5):
        reduction = bounds.Reduction("float32", "average", size, "exact", False)
        blocks = [np.abs(bounds.block_of(rank, "float32").astype(np.float64)) for rank in range(size)]
        assert (bounds.bound_of(reduction) <= size * 2.0**-22 * np.mean(blocks, axis=0) + 2.0**-126).all()
        x = bounds.exact_of(reduction).astype(np.float32)
        assert bounds.count_wrong(x, reduction)[0] == 0
        x[3] *= np.float32(1 + size * 2.0**-21)
        assert bounds.count_wrong(x, reduction)[0] == 1


def test_a_wrong_unit_is_seen():
    options = options_of(codec="maxmin", algorithm="sra", bits=4)
    x, reduction, _ = result_of(options, 2)
    x[100] += bounds.bound_of(reduction)[100] * 2.1
    assert bounds.count_wrong(x, reduction)[0] == 1
    x[101] = np.nan
    assert bounds.count_wrong(x, reduction)[0] == 2


def test_sizes():
    assert bench.counts_of(bench.parse(["-b", "1", "-e", "64"])) == [1, 4, 16]
    assert bench.counts_of(bench.parse(["-b", "1K", "-e", "4K", "-i", "1K"])) == [256, 512, 768, 1024]
    assert bench.counts_of(bench.parse(["-b", "1", "-e", "2", "-d", "int8", "-f", "2"])) == [1, 2]
    assert bench.counts_of(bench.parse(["-b", "1G"])) == [1 << 28]
    assert bench.counts_of(bench.parse(["--sizes", "26M,1K,1026"])) == [256, 26 << 18]
    assert bench.parse(["-o", "avg"]).op == bench.parse([]).op == "average"
    assert bench.parse(["-d", "int32"]).op == "sum" and bench.parse(["--codec", "sign"]).bits == 1


def test_the_smallest_size_runs(tmp_path):
    out = tmp_path / "out.json"
    assert bench.main(["-b", "1", "-e", "1", "-o", "max", "-d", "uint8", "--json", str(out), *QUICK]) == 0
    [row] = json.loads(out.read_text())["rows"]
    assert (row["count"], row["size"], row["type"], row["redop"], row["wrong"]) == (1, 1, "uint8", "max", 0)


WRONG_WORDS = (
    "-b 0, -b x, -b 1T, -b 1e99, -b -4, -b 8K -e 4K, -i 0, -f 1, -f nan, --bits 9, --bits 0, --codec sign --bits 4, "
    "-d complex64, -o xor, -d int32 -o average, --half-metadata, --threads 0, --rounds 0, -n -1, -w -1, --nodes 0, "
    "--nodes 7, --bucket-size 0, --bucket-size 99999999"
).split(", ")


@pytest.mark.parametrize("words", WRONG_WORDS)
def test_wrong_words_are_one_line(words, capsys):
    with pytest.raises(UsageError) as caught:
        bench.main([*words.split(), *QUICK])
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
