"""Windows between the GPUs of a host (window_ranks.cu): every rank reaches every other's, or all get the same reason
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
    """Each rank's output, by rank; the lost one has none."""
    before = shared_memory.files()
    done = programs.run(built(PROGRAM), case, kind, str(ranks), *settings, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not shared_memory.left_since(before)
    said = dict(re.findall(r"^rank (\d): (.*)$", done.stdout, re.M))
    return [said.get(str(rank)) for rank in range(ranks)]


def can(built, kind):
    """Real GPUs may have no peer access to each other; ranks that share one always have it."""
    return built.emulated or kind != "peer" or len(_cgxffcv.devices()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ranks", "gpus", "streams"), [(1, 1, "late"), (2, 2, "at once"), (2, 1, "late"), (3, 1, "at once"), (3, 3, "late")]
)
def test_ranks_reach_each_other(built, kind, ranks, gpus, streams):
    """Streams that run at once, one of which has to wait for a rank that has not begun, and streams that run late."""
    said = run(built, "exchange", kind, ranks, CGXFFCV_EMULATED_DEVICES=str(gpus), CGXFFCV_EMULATED_STREAMS=streams)
    if not can(built, kind) and said[0].startswith("no window"):
        pytest.skip(said[0])
    assert said == ["exchanged"] * ranks


@pytest.mark.parametrize("way", ["peer", "staged"])
@pytest.mark.parametrize(("ranks", "gpus", "streams"), [(3, 1, "late"), (4, 4, "at once"), (5, 2, "late")])
def test_ranks_of_several_nodes_reach_each_other(built, way, ranks, gpus, streams):
    """In place within a node, as on one host, and through boxes between nodes; a rank may be alone on its node."""
    settings = [f"CGXFFCV_P2P=0@{rank}" for rank in range(ranks) if way == "staged"]
    variables = {"CGXFFCV_EMULATED_DEVICES": str(gpus), "CGXFFCV_EMULATED_STREAMS": streams}
    said = run(built, "exchange", "mixed", ranks, *settings, **variables)
    alone = ["exchanged, inside forwarded"] if ranks == 3 else []
    here = f"exchanged, inside {way if can(built, way) else 'staged'}"
    assert sorted(said) == sorted([here] * (ranks - len(alone)) + alone)


def test_nodes_have_ways_of_their_own(built):
    """Ranks 0 and 1 are one node, on which peer memory is switched off."""
    if not built.emulated:
        pytest.skip("only the emulator has so many GPUs for certain")
    said = run(built, "exchange", "mixed", 4, "CGXFFCV_P2P=0@1", CGXFFCV_EMULATED_DEVICES="2")
    assert said == ["exchanged, inside staged"] * 2 + ["exchanged, inside peer"] * 2


def test_what_is_on_its_way_arrives_although_its_sender_comes_to_the_end(built):
    """Between nodes, next to a rank that pauses for longer than the others wait for each other's last messages."""
    assert run(built, "paused", "forwarded", 2) == ["exchanged"] * 2


PEER, REGISTER = "CGXFFCV_EMULATED_PEER", "CGXFFCV_EMULATED_REGISTER"
FAULTS = {
    "refused": ("peer", f"{PEER}=refused@1", r"rank 1: its GPU cannot reach rank 0's: .* peer access is not supported"),
    "dropped": ("peer", f"{PEER}=dropped@1", r"rank 0: nothing that rank 1 wrote into its window arrived within 1.5 s"),
    "partial": ("peer", f"{PEER}=partial@1", r"rank 0: (what|nothing that) rank 1 (wrote|has written) into its window"),
    "switch": ("peer", "CGXFFCV_P2P=0@1", r"rank 1: CGXFFCV_P2P=0$"),
    "memory": ("peer", "CGXFFCV_EMULATED_MEMORY=1000000@1", r"rank 1: cannot allocate \d+ MiB of GPU memory"),
    "no GPU": ("peer", "CGXFFCV_EMULATED_DEVICES=0@1", r"rank 1: no GPU: no CUDA device"),
    "no GPU either": ("staged", "CGXFFCV_EMULATED_DEVICES=0@0", r"rank 0: no GPU: no CUDA device"),
    "inside": ("mixed", f"{REGISTER}=0@3", r"rank 2: among .* node 1, by local_rank, rank 1: cudaHostRegister.*"),
    "register": ("staged", f"{REGISTER}=0@1", r"rank 1: cudaHostRegister.* operation not supported"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_any_rank_has_a_veto(built, fault):
    """All ranks get the same reason, and continue without a window."""
    kind, setting, reason = FAULTS[fault]
    ranks = 4 if kind == "mixed" else 2 if "window" in reason else 3  # of three any one may be late
    if not built.emulated:
        pytest.skip("only the emulator can be another machine")
    no_peers = [f"CGXFFCV_P2P=0@{rank}" for rank in range(ranks) if kind == "mixed"]
    said = run(built, "exchange", kind, ranks, setting, *no_peers, CGXFFCV_P2P_TIMEOUT="1.5")
    assert len(set(said)) == 1
    assert re.search(f"^no window: {reason}", said[0]), said


LATE = (
    r"failed in 'sum on GPUs' with 140 of rank LAST: rank \d waited on its GPU for rank LAST to send its share of "
    r"a sum \(tile 3, epoch 4\): it is stopped"
)
LOSSES = {
    "killed": r"failed in 'sum on GPUs' with 141 of rank LAST: rank LAST \(process \d+\) died$",
    "stopped": LATE,
    "late": LATE,
    "abort": r"failed in 'sum on GPUs' with 120 of rank LAST: .*rank LAST aborted: of its own will",
}


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(loss, kind) for loss in LOSSES for kind in ("peer", "mixed")] + [("killed", "staged"), ("killed", "forwarded")],
)
def test_a_wait_on_a_gpu_ends(built, kind, loss):
    """The error names the rank, which may be on another node, and the kernel that waited has also ended."""
    ranks = 4 if kind == "mixed" else 2
    said = run(built, loss, kind, ranks)
    if not can(built, kind) and said[0].startswith("no window"):
        pytest.skip(said[0])
    for line in said[: ranks - 1]:
        assert re.match(LOSSES[loss].replace("LAST", str(ranks - 1)), line), said
        assert "still runs" not in line
    assert (said[-1] is None) == (loss in ("killed", "stopped"))
