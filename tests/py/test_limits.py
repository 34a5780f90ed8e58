"""Processes that may open few files or have little memory: what is refused says which limit it was, and what to do."""

import os
import resource

import _cgxffcv
import pytest
from checkout import run_python

from cgxffcv import DatasetWriter, Reader
from cgxffcv.app import process
from cgxffcv.fields import IntField
from cgxffcv.writer.writer import usual_workers

PROGRAM = """
import os, resource, sys
import cgxffcv
from cgxffcv import DatasetWriter, Loader
from cgxffcv.fields import IntField

def write(workers):
    writer = DatasetWriter("a.beton", {"a": IntField()}, num_workers=workers, durable=False, progress=False)
    writer.from_indexed_dataset([(i,) for i in range(3000)], chunksize=5)

def few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

def load():
    write(1)
    loader = Loader("a.beton", batch_size=8, num_workers=64)
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), now + (100 << 20)))
    list(loader)

try:
    if sys.argv[1] == "write":
        few_files()
        write(64)
    elif sys.argv[1] == "launch":
        few_files()
        cgxffcv.launch(os.getpid, 64)
    else:
        load()
except OSError as error:
    print(type(error).__name__, error)
"""
REFUSALS = {
    "write": "num_workers: 64 processes: this process may not open so many files: raise its limit (ulimit -n), or ask",
    "launch": "launch: 64 ranks: this process may not open so many files: raise its limit (ulimit -n), or ask",
    "load": "of 64 (num_workers asks for fewer; a higher ulimit -u, or limit of a container's processes, allows more)",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_limits_are_named(tmp_path, what):
    assert REFUSALS[what] in run_python("-c", PROGRAM, what, cwd=tmp_path).stdout


@pytest.fixture
def many_cores(monkeypatch):
    info = _cgxffcv.build_info() | {"cpus": 1000}
    monkeypatch.setattr(_cgxffcv, "build_info", lambda: info)


def test_usual_workers_of_a_machine_of_many_cores_are_as_many_as_files_allow(tmp_path, monkeypatch, many_cores):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, before[1]))
    try:
        writer = DatasetWriter(tmp_path / "a.beton", {"a": IntField()}, durable=False, progress=False)
        assert 1 <= writer.num_workers < (opened + 60) / 4
        writer.from_indexed_dataset([(i,) for i in range(300)], chunksize=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [Reader(tmp_path / "a.beton")[i]["a"] for i in range(300)] == list(range(300))


@pytest.mark.parametrize("limit, workers", [(resource.RLIM_INFINITY, 1000), (10, 1), (1064, 250), (10**6, 1000)])
def test_how_many_workers_are_usual(monkeypatch, many_cores, limit, workers):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert usual_workers() == workers


def test_a_lack_of_memory_has_words():
    assert process._message(MemoryError()) == "there is not enough memory"


def test_a_lack_of_threads_is_no_bug():
    code, _, text = process._verdict("prog", RuntimeError("can't start new thread"))
    assert code == 1 and text.startswith("prog: error: no more threads may be started: raise the limit (ulimit -u")
