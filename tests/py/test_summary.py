"""How a run of the tests ends: skips by reason, then failures, then pytest's closing line."""

import re

from checkout import ROOT, run_python

TESTS = """
import pytest
@pytest.mark.parametrize("n", range(3))
def test_of_a_gpu(n):
    pytest.skip("no GPU here")
@pytest.mark.skip(reason="by hand")
def test_by_hand(): ...
def test_wrong(): assert 1 == 2
def test_right(): ...
@pytest.fixture
def broken(): raise OSError("no disk")
def test_of_broken(broken): ...
"""


def run(folder, tests):
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "test_it.py").write_text(tests)
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir=.", "."]
    return run_python(*command, status=None, cwd=folder).stdout


def test_failures_come_last(tmp_path):
    out = run(tmp_path, TESTS)
    order = [
        "= skipped =",
        "    3  no GPU here",
        "    1  by hand",
        "= ERRORS =",
        "= FAILURES =",
        "= short test summary info =",
        "FAILED test_it.py::test_wrong",
        "ERROR test_it.py::test_of_broken - OSError: no disk",
    ]
    places = [out.index(text) for text in order]
    assert places == sorted(places), out
    assert "SKIPPED" not in out and out.count("no GPU here") == 1
    assert re.fullmatch(r"=+ 1 failed, 1 passed, 4 skipped, 1 error in .*=+", out.rstrip().splitlines()[-1])


def test_nothing_is_said_of_no_skips(tmp_path):
    out = run(tmp_path, "def test_right(): ...")
    assert "= skipped =" not in out and out.rstrip().splitlines()[-1].strip("= ").startswith("1 passed in")
