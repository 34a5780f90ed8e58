"""The hook for DistributedDataParallel on GPUs: what it runs alongside a backward pass is complete at its end and not
before, bit for bit, under the stand-in for PyTorch and with streams that do nothing before something waits for them."""

from pathlib import Path

import pytest
from checkout import ROOT, environ
from gpus import EMULATED
from ranks import Launch, run

pytestmark = pytest.mark.skipif(not EMULATED, reason="the stand-in for PyTorch needs the emulated build")
WORKER = Path(__file__).parent / "worker_hook.py"


def ranks(tmp_path, case, **variables):
    paths = environ(ROOT / "tests/support/fake_torch", ROOT / "tests/mpi", ROOT / "tests/support")["PYTHONPATH"]
    options = {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_DEVICES": 1, "PYTHONPATH": paths, **variables}
    results = run(Launch("torchrun", 2), tmp_path / "out", case, script=WORKER, limit=240, **options)
    return [result["value"] for result in results]


def test_what_is_put_beside_a_backward_pass_is_there_at_its_end(tmp_path):
    ranks(tmp_path, "values")


def test_bits_that_are_chosen_hold_from_the_next_step_on(tmp_path):
    mine, other = ranks(tmp_path, "adapted")
    assert mine == other and all(list(bits) == ["a"] and 4 < bits["a"] < 8 for bits in mine)


def test_plans_of_a_recorded_step_stay(tmp_path):
    """Recorded from the first step on, before a choice was applied, and when the next one is due."""
    mine, other = ranks(tmp_path, "recorded")
    assert mine == other and mine[:2] == [{}, {}] and list(mine[2]) == ["a"]


def test_steps_decide_whether_compression_is_the_faster(tmp_path):
    mine, other = ranks(tmp_path, "trial")
    for case in mine:
        for name in ("ways", "after", "plain"):
            assert mine[case][name] == other[case][name]
    slow, fast = mine["slow"], mine["fast"]
    assert slow["ways"][:-1] == fast["ways"][:-1] and sum(fast["ways"]) == 6
    assert slow["after"] == [2, 2] and slow["plain"] is True and slow["error"] < 1e-6
    assert fast["after"] == [0, 0] and fast["plain"] is False and fast["error"] > 1e-3
    assert "3000.00 ms with compressed sums and 2000.00 ms with plain ones" in slow["text"]
    assert "not compressed" in slow["text"] and "kernels" in fast["text"]
    assert fast["sent"] < slow["sent"] / 2


def test_bits_are_chosen_when_steps_have_decided_for_compression(tmp_path):
    """And before they are tried, in the first; not while they are, nor where sums go plain."""
    mine, other = ranks(tmp_path, "trial_and_bits")
    for case, decided in (("slow", False), ("fast", True)):
        steps = len(mine[case]["ways"])
        assert mine[case]["chosen"] == other[case]["chosen"] == ([1, steps + 1] if decided else [1]), mine[case]
        assert mine[case]["after"] == ([0, 0] if decided else [2, 2]) and mine[case]["plain"] is not decided
