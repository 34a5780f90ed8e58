"""Forked workers together with libraries that have threads, and writers in processes that may not fork."""

import multiprocessing
import os
import subprocess

import numpy as np
import pytest
from checkout import run_python

from cgxffcv import DatasetWriter, Reader
from cgxffcv.fields import FloatField, IntField

OPENMP = """
int team(void) {
    int count = 0;
    #pragma omp parallel reduction(+ : count)
    count++;
    return count;
}
"""

WITH_OPENMP = """
import ctypes, sys
import numpy as np
from cgxffcv import DatasetWriter
from cgxffcv.fields import IntField
team = ctypes.CDLL(sys.argv[2]).team
assert team() > 1
class Teams:
    def __len__(self):
        return 20
    def __getitem__(self, i):
        return (team(),)
DatasetWriter(sys.argv[1], {"n": IntField()}, num_workers=2).from_indexed_dataset(Teams(), chunksize=5)
assert team() > 1
"""

WITH_TORCH = """
import sys
import torch
from cgxffcv import DatasetWriter
from cgxffcv.fields import FloatField, IntField
torch.set_num_threads(2)
torch.ones(600, 600) @ torch.ones(600, 600)
class Products:
    def __len__(self):
        return 20
    def __getitem__(self, i):
        product = torch.ones(600, 600) @ torch.ones(600, 600)
        return torch.get_num_threads(), (product.sum() / 600 ** 3).item()
fields = {"n": IntField(), "x": FloatField()}
DatasetWriter(sys.argv[1], fields, num_workers=2).from_indexed_dataset(Products(), chunksize=5)
assert torch.get_num_threads() == 2
"""


def run(code, *arguments):
    run_python("-c", code, *arguments, OMP_NUM_THREADS=2)
    with Reader(arguments[0]) as reader:
        return reader.column("n").tolist()


def test_a_data_set_that_uses_openmp_after_its_parent_did(tmp_path):
    """A fork copies the thread team of GNU's OpenMP, but not the threads: waiting for them would never end."""
    source, library = tmp_path / "team.c", tmp_path / "libteam.so"
    source.write_text(OPENMP)
    subprocess.run(["gcc", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert run(WITH_OPENMP, tmp_path / "x.beton", library) == [1] * 20


def test_a_data_set_that_uses_torch_after_its_parent_did(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    assert run(WITH_TORCH, tmp_path / "x.beton") == [1] * 20


class Variables:
    """Variables that a library loaded later by a worker will read."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return int(os.environ.get("OMP_NUM_THREADS", 0)), int(os.environ.get("OPENBLAS_NUM_THREADS", 0))


def test_libraries_that_a_worker_loads_itself_use_one_thread_too(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    fields = {"omp": IntField(), "blas": IntField()}
    DatasetWriter(tmp_path / "x", fields, num_workers=2).from_indexed_dataset(Variables(), chunksize=5)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    with Reader(tmp_path / "x") as reader:
        assert reader.column("omp").tolist() == reader.column("blas").tolist() == [1] * 20


class Numbers:
    def __init__(self, count=500):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return i, np.random.random()


def convert(path, kind):
    writer = DatasetWriter(path, {"n": IntField(), "x": FloatField()}, num_workers=2, worker_kind=kind)
    return writer.from_indexed_dataset(Numbers()).num_samples


@pytest.mark.parametrize("kind", ["auto", "process", "thread"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_writer_in_a_worker_of_a_pool(tmp_path, start, kind):
    """Such a process may not have children: the samples are made in the process itself, and the file is the same."""
    paths = [tmp_path / f"{i}.beton" for i in range(3)]
    with multiprocessing.get_context(start).Pool(2) as pool:
        jobs = [pool.apply_async(convert, (path, kind)) for path in paths]
        assert [job.get(timeout=60) for job in jobs] == [500] * 3
    convert(tmp_path / "here.beton", "process")
    assert {path.read_bytes() for path in paths} == {(tmp_path / "here.beton").read_bytes()}
