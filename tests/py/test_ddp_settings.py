"""CGXState's arguments, and CGX's environment variables as their defaults; PyTorch is not needed for this."""

import numpy as np
import pytest

from cgxffcv.interop.ddp.settings import (
    Environment,
    PerLayer,
    check_bits,
    check_bucket_size,
    check_codec,
    check_parameters,
    check_seed,
    check_threads,
)

NAMES = ["embed.weight", "blocks.0.attn.weight", "blocks.0.norm.weight", "head.weight", "head.bias"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (
        "COMPRESSION_QUANTIZATION_BITS",
        "COMPRESSION_BUCKET_SIZE",
        "COMPRESSION_MINIMAL_SIZE",
        "INTRA_COMPRESS",
        "COMPRESSION_SKIP_INCOMPLETE_BUCKETS",
        "FUSION_BUFFER_SIZE_MB",
        "INNER_COMMUNICATOR_TYPE",
        "INTRA_BROADCAST",
        "CROSS_COMMUNICATOR_TYPE",
        "INNER_REDUCTION_TYPE",
        "CROSS_REDUCTION_TYPE",
    ):
        monkeypatch.delenv(f"CGX_{name}", raising=False)


def test_without_variables():
    assert Environment.read() == Environment(32, 1024, 1024, "auto", True, True)


def test_variables_are_defaults(monkeypatch):
    for name, value in {
        "COMPRESSION_QUANTIZATION_BITS": "4",
        "COMPRESSION_BUCKET_SIZE": " 512 ",
        "COMPRESSION_MINIMAL_SIZE": "0",
        "INNER_REDUCTION_TYPE": "Ring",
        "CROSS_REDUCTION_TYPE": "SRA",
        "INNER_COMMUNICATOR_TYPE": "nccl",
        "CROSS_COMMUNICATOR_TYPE": "MPI",
        "INTRA_COMPRESS": "0",
        "INTRA_BROADCAST": "1",
        "COMPRESSION_SKIP_INCOMPLETE_BUCKETS": "1",
        "FUSION_BUFFER_SIZE_MB": "64",
    }.items():
        monkeypatch.setenv(f"CGX_{name}", value)
    assert Environment.read() == Environment(4, 512, 0, "ring", False, False)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("COMPRESSION_QUANTIZATION_BITS", "9", "1 to 8, or 32"),
        ("COMPRESSION_QUANTIZATION_BITS", "four", "1 to 8, or 32 for no compression, not 'four'"),
        ("COMPRESSION_BUCKET_SIZE", "0", "at least 1"),
        ("COMPRESSION_MINIMAL_SIZE", "-1", "at least 0, not -1"),
        ("COMPRESSION_SKIP_INCOMPLETE_BUCKETS", "yes", "one of 0, 1"),
        ("FUSION_BUFFER_SIZE_MB", "0", "at least 1"),
        ("INNER_COMMUNICATOR_TYPE", "UCX", "one of SHM, MPI, NCCL"),
        ("CROSS_COMMUNICATOR_TYPE", "SHM", "one of MPI, NCCL"),
        ("INNER_REDUCTION_TYPE", "tree", "one of SRA, RING"),
        ("CROSS_REDUCTION_TYPE", "tree", "one of SRA, RING"),
        ("INTRA_COMPRESS", "2", "one of 0, 1"),
        ("INTRA_BROADCAST", "on", "one of 0, 1"),
    ],
)
def test_variables_that_cannot_be_followed(monkeypatch, name, value, expected):
    monkeypatch.setenv(f"CGX_{name}", value)
    with pytest.raises(ValueError, match=f"CGX_{name} must be .*{expected}"):
        Environment.read()


def test_numbers_of_numpy_are_numbers():
    assert check_bits(np.int64(4)) == 4 and type(check_bucket_size(np.uint16(512))) is int


def test_a_number_is_for_all_layers():
    assert (PerLayer("bits", 3, 32, check_bits).default, PerLayer("bits", None, 32, check_bits).default) == (3, 32)
    assert PerLayer("bits", 3, 32, check_bits).of("head.weight") == (None, False)


def test_names_count_before_patterns_and_later_patterns_before_earlier_ones():
    rules = PerLayer("bits", {"default": 4, "head.weight": 8, "*.weight": 3, "blocks.*": 2}, 32, check_bits)
    rules.check_names(NAMES)
    assert rules.default == 4
    assert [rules.of(name) for name in [*NAMES, None]] == [
        (3, False),
        (2, False),
        (2, False),
        (8, True),
        (None, False),
        (None, False),
    ]
    assert PerLayer("bits", {"*": 2}, 5, check_bits).default == 5


@pytest.mark.parametrize(
    ("error", "value", "expected"),
    [
        (ValueError, 0, "bits must be 1 to 8, or 32 for no compression, not 0"),
        (ValueError, True, "not True"),
        (ValueError, 4.0, "not 4.0"),
        (ValueError, {"head.weight": 9}, "bits of 'head.weight' must be"),
        (TypeError, {3: 4}, "keyed by parameters' names"),
    ],
)
def test_bits_that_are_refused(error, value, expected):
    with pytest.raises(error, match=expected):
        PerLayer("bits", value, 32, check_bits)


def test_names_of_no_parameter():
    for name, hint in (("head.weigth", "did you mean head.weight"), ("heads.*", "'heads.*', which no parameter")):
        with pytest.raises(ValueError, match="bucket_size names .*" + hint.replace("*", r"\*")):
            PerLayer("bucket_size", {name: 64}, 1024, check_bucket_size).check_names(NAMES)


@pytest.mark.parametrize(
    ("codec", "bits", "sizes", "expected"),
    [
        ("sign", 4, 1024, "bits must be 1 with the codec sign, not 4"),
        ("rotated", {"default": 4, "head.*": 5}, 1024, "bits must be .* rotated, not 5"),
        ("rotated", 4, {"head.weight": 100}, "bucket_size must be a power of two .* rotated, not 100"),
    ],
)
def test_bits_that_a_codec_does_not_have(codec, bits, sizes, expected):
    bits = PerLayer("bits", bits, 32, check_bits)
    sizes = PerLayer("bucket_size", sizes, 1024, check_bucket_size)
    with pytest.raises(ValueError, match=expected):
        check_codec(codec, bits, sizes)
    check_codec(codec, PerLayer("bits", 32, 32, check_bits), sizes)
    check_codec("maxmin", bits, sizes)


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "1", None])
def test_seeds_and_threads_that_are_refused(value):
    with pytest.raises(ValueError, match=r"seed must be a number in 0\.\.2\^64-1, not "):
        check_seed(value)
    with pytest.raises(ValueError, match=r"threads must be a number in 1\.\.256, not "):
        check_threads(value)


def test_unknown_compression_params():
    for wrong in (4, "bits", [("bits", 4)]):
        with pytest.raises(TypeError, match="compression_params must be a mapping with bits and bucket_size"):
            check_parameters(wrong)
    assert check_parameters(None) == {} and check_parameters({"bits": 4}) == {"bits": 4}
    with pytest.raises(ValueError, match="compression_params has 'bucketsize'; it may only have bits, bucket_size"):
        check_parameters({"bucketsize": 4})
