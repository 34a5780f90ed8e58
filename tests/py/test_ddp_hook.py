"""The hook for DistributedDataParallel without PyTorch: what a stand-in can show; `make test-torch` shows the rest."""

from checkout import ROOT, run_python

SUPPORT = ROOT / "tests/support"


def test_the_hook_with_a_stand_in_for_torch(tmp_path):
    done = run_python(SUPPORT / "hook_stand_in.py", cwd=tmp_path, folders=[SUPPORT / "fake_torch", SUPPORT])
    assert done.stdout == "all good\n"
