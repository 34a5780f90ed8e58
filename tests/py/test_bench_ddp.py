"""`bench ddp` without PyTorch: its arguments, the ranks' environment, and the table."""

import pytest

from cgxffcv.bench import ddp, links
from cgxffcv.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def found_torch(monkeypatch):
    monkeypatch.setattr(ddp.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    "words",
    [
        "--model vgg",
        "--links wire",
        "--ways ours9",
        "--gpus 1",
        "--warmup 2",
        "--codec x",
        "--algorithm x",
        "--budget 0",
    ],
)
def test_wrong_words_are_one_line(words):
    with pytest.raises(UsageError) as caught:
        ddp.main(words.split())
    assert "\n" not in str(caught.value)


def test_pytorch_is_asked_for(monkeypatch):
    monkeypatch.setattr(ddp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs PyTorch: pip install torch torchvision"):
        ddp.main([])


def test_ranks_have_the_environment_of_torchrun(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert ddp.environment("cpu", "sockets", 1, 2, 12345, 3)["CUDA_VISIBLE_DEVICES"] == ""
    environ = ddp.environment("gpu", "sockets", 1, 2, 12345, 3)
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"], environ["MASTER_PORT"]) == (
        "1",
        "2",
        "1",
        "12345",
    )
    assert "OMPI_COMM_WORLD_SIZE" not in environ and environ["CGXFFCV_COMM_NODES"] == "2"
    assert links.variables("any", 2) == {} and environ["NCCL_SHM_DISABLE"] == "1"


def test_the_table_has_a_line_for_each_way():
    row = {
        "model": "gpt2",
        "link": "any",
        "wire_bytes": 5,
        "items_per_second": 7.0,
        "steps_seconds": [0.03, 0.05, 0.04],
    }
    rows = [row | {"way": "floor", "step_seconds": 0.04}, row | {"way": "ours4", "step_seconds": 0.05}]
    rows.append({"way": "plain", "model": "gpt2", "link": "any", "error": "rank 1: no"})
    text = ddp.text(rows, ddp.parse(["--model", "gpt2"])).splitlines()
    assert text[1] == "gpt2, batch 4 per rank, all links"
    assert text[4].split()[-6:] == ["50.00", "10.00", "30.00", "50.00", "7", "0.0000"] and text[5].endswith(
        "rank 1: no"
    )


def test_ways_that_are_left_when_the_budget_is_used_up_are_left_out(monkeypatch):
    """A clock that advances by 40 s at each start of the ranks, which leaves room for two ways."""
    now, limits = [0.0], []

    def run(job, link, ranks, timeout):
        now[0] += 40
        limits.append(timeout)
        return [{"way": way, "step_seconds": 1.0, "replicas_equal": True} for way in job["ways"][:2]]

    monkeypatch.setattr(ddp.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ddp, "run", run)
    options = ddp.parse(["--budget", "60", "--ways", "plain,bf16,ours8,ours4,ours3,ours2", "--timeout", "50"])
    rows = ddp.rows_of(options, "tiny", "any", "cpu", 2, 60.0)
    assert [row["way"] for row in rows] == options.ways and limits == [50, 20]
    assert [row.get("error") for row in rows] == [None] * 4 + ["left out: --budget 60"] * 2


def test_what_went_plain_says_so():
    row = {"model": "gpt2", "link": "any", "wire_bytes": 5, "items_per_second": 7.0, "steps_seconds": [0.03]}
    rows = [row | {"way": "ours4", "step_seconds": 0.05, "went_plain": plain} for plain in (True, False, None)]
    text = ddp.text(rows, ddp.parse(["--model", "gpt2"])).splitlines()
    assert ["(plain)" in line for line in text[3:]] == [True, False, False]
