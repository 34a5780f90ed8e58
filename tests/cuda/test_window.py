"""Windows between the GPUs of a host (window_ranks.cu): every rank reaches every other's, or all hear the same reason
why not; and a kernel that waits for a rank ends as every wait does."""

import re
from pathlib import Path

import _cgxffcv
import programs
import pytest
import shared_memory

pytestmark = pytest.mark.medium

PROGRAM = Path(__file__).resolve().parent / "window_ranks.cu"
KINDS = ["peer", "staged", "forwarded"]


def run(built, case, kind, ranks, *settings, **environment):
    """What each rank says, by rank; the one that is lost says nothing."""
    before = shared_memory.files()
    done = programs.run(built(PROGRAM), case, kind, str(ranks), *settings, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not shared_memory.left_since(before)
    said = dict(re.findall(r"^rank (\d): (.*)$", done.stdout, re.M))
    return [said.get(str(rank)) for rank in range(ranks)]


def can(built, kind):
    """On a GPU, peer access between two of them may be missing; ranks that share one always have it."""
    return built.emulated or kind != "peer" or len(_cgxffcv.devices()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ranks", "gpus", "streams"), [(1, 1, "late"), (2, 2, "at once"), (2, 1, "late"), (3, 1, "at once"), (3, 3, "late")]
)
def test_ranks_reach_each_other(built, kind, ranks, gpus, streams):
    """Streams that run at once, of which one comes to wait for a rank that has not begun, and those that run late."""
    said = run(built, "exchange", kind, ranks, CGXFFCV_EMULATED_DEVICES=str(gpus), CGXFFCV_EMULATED_STREAMS=streams)
    if not can(built, kind) and said[0].startswith("no window"):
        pytest.skip(said[0])
    assert said == ["exchanged"] * ranks


def test_what_is_on_its_way_arrives_although_its_sender_comes_to_the_end(built):
    """Between nodes, beside a rank that stands still for longer than the others wait for each other's last words."""
    assert run(built, "paused", "forwarded", 2) == ["exchanged"] * 2


PEER, REGISTER = "CGXFFCV_EMULATED_PEER", "CGXFFCV_EMULATED_REGISTER"
FAULTS = {
    "refused": ("peer", f"{PEER}=refused@1", r"rank 1: its GPU cannot reach rank 0's: .* peer access is not supported"),
    "dropped": ("peer", f"{PEER}=dropped@1", r"rank 0: nothing that rank 1 wrote into its window came within 1.5 s"),
    "partial": ("peer", f"{PEER}=partial@1", r"rank 0: (what|nothing that) rank 1 (wrote|has written) into its window"),
    "switch": ("peer", "CGXFFCV_P2P=0@1", r"rank 1: CGXFFCV_P2P=0$"),
    "memory": ("peer", "CGXFFCV_EMULATED_MEMORY=1000000@1", r"rank 1: \d+ MiB of GPU memory are needed at once"),
    "no GPU": ("peer", "CGXFFCV_EMULATED_DEVICES=0@1", r"rank 1: no GPU: no CUDA device"),
    "no GPU either": ("staged", "CGXFFCV_EMULATED_DEVICES=0@0", r"rank 0: no GPU: no CUDA device"),
    "register": ("staged", f"{REGISTER}=0@1", r"rank 1: cudaHostRegister.* operation not supported"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_any_rank_has_a_veto(built, fault):
    """All ranks have the same reason, and go on without a window."""
    kind, setting, reason = FAULTS[fault]
    ranks = 2 if "window" in reason else 3  # of three that wait for each other any may be late
    if not built.emulated:
        pytest.skip("only the emulator can be another machine")
    said = run(built, "exchange", kind, ranks, setting, CGXFFCV_P2P_TIMEOUT="1.5")
    assert len(set(said)) == 1
    assert re.search(f"^no window: {reason}", said[0]), said


LATE = (
    r"failed in 'sum on GPUs' with 140 of rank 1: rank 0 waited on its GPU for rank 1 to send its share of a sum "
    r"\(tile 3, epoch 4\): it is stopped"
)
LOSSES = {
    "killed": r"failed in 'sum on GPUs' with 141 of rank 1: rank 1 \(process \d+\) died$",
    "stopped": LATE,
    "late": LATE,
    "abort": r"failed in 'sum on GPUs' with 120 of rank 1: .*rank 1 aborted: of its own will",
}


@pytest.mark.parametrize(
    ("loss", "kind"), [(loss, "peer") for loss in LOSSES] + [("killed", "staged"), ("killed", "forwarded")]
)
def test_a_wait_on_a_gpu_ends(built, kind, loss):
    """It names the rank, and the kernel that waited has ended, too."""
    said = run(built, loss, kind, 2)
    if not can(built, kind) and said[0].startswith("no window"):
        pytest.skip(said[0])
    assert re.match(LOSSES[loss], said[0]), said
    assert "still runs" not in said[0]
    assert (said[1] is None) == (loss in ("killed", "stopped"))
