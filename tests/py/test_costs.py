"""Cost lines: saved in a file for exactly these ranks, read by rank 0 for all, and not trusted if they are damaged."""

import json
import re
import sys

import _cgxffcv
import pytest
from checkout import run_command
from ranks import environment, mpirun, needs_mpirun
from thread_ranks import all_good, on_ranks, run_ranks

from cgxffcv import costs
from cgxffcv.errors import UserError

ANY = 1e9  # a spread that no busy machine exceeds
LINES = {"sra": (1e-5, 1e-10, 2e-10), "exact": (2e-5, 0.0, 3e-10)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CGXFFCV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def the_file(folder):
    [path] = folder.glob("costs-*.json")
    return path


def calibrate(size=2, nodes=1):
    return all_good(run_ranks(size, lambda world, rank: costs.calibrate(world, None, (256, 4096), 1, ANY), nodes=nodes))


def kept(size=2, nodes=1):
    return all_good(run_ranks(size, lambda world, rank: costs.kept(world), nodes=nodes))


def test_what_is_measured_is_kept_for_all_ranks(folder):
    measured = calibrate()
    assert measured[0] == measured[1] and set(measured[0][0]) == {"one_shot", "sra", "exact"}
    assert measured[0][1] == the_file(folder)
    assert kept() == [measured[0][0]] * 2
    assert all_good(run_ranks(2, lambda world, rank: costs.of(world))) == [measured[0][0]] * 2


def test_other_ranks_nodes_links_and_sites_have_their_own(folder, monkeypatch):
    calibrate()
    assert kept(3) == [None] * 3 and kept(2, nodes=2) == [None] * 2
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert kept() == [None] * 2
    assert set(calibrate(4, nodes=2)[0][0]) == {"one_shot", "sra", "two_level", "exact"}


def damage_cases():
    def changed(change):
        def damage(path):
            held = json.loads(path.read_text())
            change(held)
            path.write_text(json.dumps(held))

        return damage

    return {
        "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
        "bytes": lambda path: path.write_bytes(bytes(range(256))),
        "empty": lambda path: path.write_text(""),
        "deep": lambda path: path.write_text("[" * 100_000),
        "a list": lambda path: path.write_text("[]"),
        "format": changed(lambda held: held.update(format=costs.FORMAT - 1)),
        "elsewhere": changed(lambda held: held["about"]["ranks"][1].update(processor="another")),
        "no lines": changed(lambda held: held.update(lines={})),
        "unknown": changed(lambda held: held.update(lines={"tree": [1, 1, 1]})),
        "negative": changed(lambda held: held.update(lines={"sra": [-1, 1, 1]})),
        "not finite": changed(lambda held: held.update(lines={"sra": [float("inf"), 1, 1]})),
        "too large": changed(lambda held: held.update(lines={"sra": [10**400, 1, 1]})),
        "endless": changed(lambda held: held.update(lines={"sra": [1e308, 1e308, 1e308]})),
        "text": changed(lambda held: held.update(lines={"sra": ["1", 1, 1]})),
    }


@pytest.mark.parametrize("case", damage_cases())
def test_damaged_and_foreign_files_are_not_used(folder, case):
    calibrate()
    damage_cases()[case](the_file(folder))
    with pytest.warns(RuntimeWarning, match=r"costs-.*json: not used: .*cgxffcv calibrate"):
        assert kept() == [None] * 2


def test_the_file_of_rank_0_counts(monkeypatch):
    """The other ranks need not have it."""
    read = []
    monkeypatch.setattr(costs, "_read", lambda about: read.append(about) or LINES)
    assert kept(3) == [LINES] * 3 and len(read) == 1 and len(read[0]["ranks"]) == 3


@pytest.mark.parametrize("factors, calls", [((1, 1.9), 2), ((9, 1, 3, 4), 4), ((1, 3, 1, 3), None)])
def test_only_what_a_second_measurement_confirms_is_kept(folder, monkeypatch, factors, calls):
    """Until two in succession agree: a busy machine gives other lines each time."""
    measured = {0: [], 1: []}

    def measure(world, *how):
        measured[world.rank].append(how)
        factor = factors[len(measured[world.rank]) - 1]
        return {name: tuple(factor * x for x in line) for name, line in LINES.items()}

    monkeypatch.setattr(costs._cgxffcv, "allreduce_measure", measure)
    found = run_ranks(2, lambda world, rank: costs.calibrate(world, None, (256, 4096)))
    assert len(measured[0]) == len(measured[1]) == (calls or 1 + costs.TRIES)
    if calls is None:
        said = r"nothing was saved: .* still differ by a factor of 3\.0.*something else is running"
        assert all(isinstance(error, UserError) and re.search(said, str(error)) for error in found)
        assert not folder.exists()
    else:
        assert all_good(found)[0][0]["sra"][0] == pytest.approx(factors[calls - 1] * LINES["sra"][0])
        assert kept() == [found[0][0]] * 2


@on_ranks(2)
def test_sizes_and_repeats_are_checked(world, rank):
    for site, sizes, repeats in (
        ("host", (), 1),
        ("host", (0,), 1),
        ("host", (5, 5), 1),
        ("host", range(1, 10), 1),
        ("host", (5,), 0),
        ("mpi", (5,), 1),
        ("disk", (5,), 1),
    ):
        with pytest.raises(ValueError, match=r"sizes|repeats|rival|site|costs are measured for"):
            _cgxffcv.allreduce_measure(world, site, sizes, repeats)


# ---- the command ----


def calibrated(*words, ranks=2, status=0):
    before = mpirun(ranks, False) if ranks else []
    command = [*before, sys.executable, "-m", "cgxffcv", "calibrate", "--device", "cpu", "--spread", str(ANY), *words]
    return run_command(*command, status=status, env=environment())


@needs_mpirun
def test_the_command_shows_what_it_keeps(folder):
    done = calibrated("--sizes", "4096", "256", "--repeats", "2", "--bits", "2")
    held = json.loads(the_file(folder).read_text())
    assert "microseconds at 2 bits" in done.stdout and f"saved in {the_file(folder)}" in done.stdout
    latency, element, byte = held["lines"]["sra"]
    least = min(1e6 * (latency + 1024 * (element + (0.25 + 8 / 1024) * byte)), 1e9)
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["0.004"])
    assert f"{least:.1f}" in row.split()


@needs_mpirun
def test_the_command_fails_where_measurements_differ(folder):
    """No two of them are equal to the last digit."""
    done = calibrated("--sizes", "4096", "256", "--repeats", "1", "--spread", "1", status=1)
    assert done.stderr.count("cgxffcv calibrate: error: nothing was saved: two measurements of ") == 1
    assert "Traceback" not in done.stderr and "saved in" not in done.stdout and not folder.exists()


@needs_mpirun
def test_a_line_takes_more_than_one_size(folder):
    done = calibrated("--sizes", "100", "100", status=2)
    assert "--sizes: expected 2 to 8 different ones" in done.stderr and not folder.exists()


def test_alone_there_is_nothing_to_measure():
    done = calibrated(ranks=0, status=2)
    assert "there is only one rank" in done.stderr and done.stderr.count("\n") == 1
