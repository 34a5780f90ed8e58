"""The shipped CIFAR-10 sample: what it holds, compared with the official files, and the effect of damage."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cgxffcv.cifar import sample

UNPACK = Path(__file__).resolve().parents[3] / "shared/data/cifar10/unpack.py"
# SHA-256 of the chosen records (label byte, 3,072 pixel bytes) cut from the official binary files:
# the first 500 of each class of data_batch_1..5 and the first 100 of test_batch, in file order.
RECORDS_SHA256 = "08e2389c13ca02f328a19fe29df007e4358a5ad785a5db8677b87cd815c7d183"


@pytest.fixture(scope="module")
def loaded():
    return sample.load()


def test_counts_and_shapes(loaded):
    images, labels = loaded
    assert images.shape == (6000, 3, 32, 32) and images.dtype == np.uint8
    assert labels.shape == (6000,) and labels.dtype == np.uint8
    assert np.bincount(labels[:5000]).tolist() == [500] * 10
    assert np.bincount(labels[5000:]).tolist() == [100] * 10


def test_records_are_the_official_ones(loaded):
    images, labels = loaded
    records = np.concatenate([labels[:, None], images.reshape(6000, 3072)], axis=1)
    assert hashlib.sha256(records.tobytes()).hexdigest() == RECORDS_SHA256


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The official binary files: named by CGXFFCV_TEST_CIFAR, or unpacked from the data next to the checkout."""
    if named := os.environ.get("CGXFFCV_TEST_CIFAR"):
        return Path(named)
    if not UNPACK.exists():
        pytest.skip("neither CGXFFCV_TEST_CIFAR (a cifar-10-batches-bin) nor ../shared/data/cifar10 is there")
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, str(UNPACK), str(folder)], check=True, timeout=120)
    return folder / "cifar-10-batches-bin"


@pytest.mark.medium
def test_against_the_official_files(loaded, official):
    images, labels = loaded
    for files, begin, end, count in (
        ([f"data_batch_{i}.bin" for i in range(1, 6)], 0, 5000, 500),
        (["test_batch.bin"], 5000, 6000, 100),
    ):
        records = b"".join((official / name).read_bytes() for name in files)
        seen, at = [0] * 10, begin
        for offset in range(0, len(records), 3073):
            label = records[offset]
            seen[label] += 1
            if seen[label] <= count:
                assert labels[at] == label
                assert images[at].tobytes() == records[offset + 1 : offset + 3073]
                at += 1
        assert at == end


def test_size_of_the_file():
    assert sample.PATH.stat().st_size <= 10_000_000


@pytest.mark.parametrize("at", [1, 3_000_000, -3_000_000])
def test_damage_is_refused(tmp_path, at):
    data = bytearray(sample.PATH.read_bytes())
    data[at] ^= 0x10
    path = tmp_path / "sample.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="sample"):
        sample.load(path)


def test_truncation_is_refused(tmp_path):
    path = tmp_path / "sample.npz"
    path.write_bytes(sample.PATH.read_bytes()[:5_000_000])
    with pytest.raises(ValueError, match="not the shipped CIFAR-10 sample"):
        sample.load(path)
