"""`bench table` and its baseline: figures from the runs' records, failures reported, nothing left behind.

PyTorch is rarely installed in a test; a stand-in (fake_torch) takes its place, in which nothing is learnt.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
from checkout import ROOT, environ, run_command, run_python, wait_until

from cgxffcv import cifar
from cgxffcv.bench import peak, processes, table

SCRIPT = ROOT / "examples" / "vanilla_pytorch.py"
FAKE = ROOT / "tests/support/fake_torch"
needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="needs Pillow")
needs_onednn = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN")


def vanilla(*options, paths=(FAKE,), status=0, **more):
    return run_python(SCRIPT, "--source", "sample", *options, status=status, limit=240, folders=paths, **more)


def bench(*options, cwd, paths=(), status=0):
    command = ["-m", "cgxffcv", "bench", "table", "--source", "sample", *options]
    return run_python(*command, status=status, limit=240, cwd=cwd, folders=paths, MPLBACKEND="agg")


# ---- the baseline ----


@needs_pillow
def test_the_baseline_notes_every_epoch(tmp_path):
    kept = tmp_path / "lines.jsonl"
    done = vanilla("--limit", "100", "--batch-size", "32", "--epochs", "2", "--json", str(kept))
    assert kept.read_text() == done.stdout
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "end"]
    assert (events[0]["parameters"], events[0]["images"], events[0]["ranks"]) == (2_274_880, 100, 1)
    expected = float(np.mean(cifar.from_sample().test_labels[:100] == 0))  # the stand-in says class 0 always
    assert [event["test_accuracy"] for event in events[1:]] == [expected] * 3
    assert 0 <= events[0]["seconds"] <= events[1]["seconds"] <= events[2]["seconds"] <= events[3]["seconds"] < 60


@needs_pillow
def test_the_baseline_as_one_of_two(tmp_path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    small = ("--limit", "101", "--batch-size", "16", "--epochs", "1")
    for launcher in (names, [f"OMPI_COMM_WORLD_{name.removeprefix('WORLD_')}" for name in names]):
        first = vanilla(*small, **dict(zip(launcher, ("0", "2", "0"), strict=True)))
        start, _, end = (json.loads(line) for line in first.stdout.splitlines())
        labels = cifar.from_sample().test_labels[:101:2]  # its share of the test
        assert start["ranks"] == 2 and end["test_accuracy"] == pytest.approx(float(np.mean(labels == 0)))
    second = vanilla(*small, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert second.stdout == ""


@pytest.mark.medium
@needs_pillow
def test_the_baseline_with_pytorch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    small = ("--limit", "256", "--batch-size", "64", "--epochs", "2", "--workers", "1", "--device", "cpu")
    done = vanilla(*small, paths=())
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["parameters"] == 2_274_880 and events[2]["train_loss"] < 2.5


@needs_pillow
@pytest.mark.parametrize(
    "options, message",
    [
        (["--limit", "50"], "50 images are fewer than one batch of 256"),
        (["--device", "cuda"], "PyTorch sees no GPU here"),
        (["--source", "local", "--data-root", "nowhere"], "no CIFAR-10 in nowhere"),
    ],
)
def test_mistakes_of_the_baseline(options, message):
    done = vanilla(*options, status=1)
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_baseline_without_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    done = vanilla(paths=(tmp_path,), status=1)
    assert "pip install torch" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def modules_come_back():
    before = dict(sys.modules)
    yield
    sys.modules.clear()
    sys.modules.update(before)


@needs_pillow
def test_the_small_transforms(monkeypatch, modules_come_back):
    monkeypatch.syspath_prepend(str(FAKE))
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision")]:
        del sys.modules[name]
    sys.modules["torchvision"] = None
    spec = importlib.util.spec_from_file_location("vanilla_pytorch_here", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from PIL import Image

    pixels = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    flips = {module.RandomHorizontalFlip()(image).tobytes() for _ in range(30)}
    assert flips == {pixels.tobytes(), pixels[:, ::-1].tobytes()}
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 32, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    assert {module.RandomCrop(32, padding=2)(image).tobytes() for _ in range(400)} == windows
    augment, plain = module.pipelines()
    expected = (pixels - np.array(module.MEAN)) / module.STD
    np.testing.assert_allclose(plain(image), expected.transpose(2, 0, 1), rtol=0, atol=1e-5)
    fill = (np.array(module.FILL) - module.MEAN) / module.STD
    holes = (np.abs(np.asarray(augment(image)) - fill[:, None, None]) < 1e-5).all(axis=0)
    rows, columns = np.flatnonzero(holes.any(axis=1)), np.flatnonzero(holes.any(axis=0))
    assert holes[rows[0] : rows[0] + 8, columns[0] : columns[0] + 8].all() and 64 <= holes.sum() < 70


# ---- the table ----


@needs_onednn
@needs_pillow
def test_three_rows(tmp_path):
    small = ("--limit", "96", "--batch-size", "32", "--epochs", "2", "--gpus", "1", "--device", "cpu")
    chart = tmp_path / "chart.png"
    drawn = ["--chart", str(chart)] if importlib.util.find_spec("matplotlib") else []
    target = ["--target", "0.01", "--price-per-hour", "36"]
    done = bench(*small, *target, *drawn, "--json", "figures.json", "--keep", "kept", cwd=tmp_path, paths=(FAKE,))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["device"], figures["ranks"], figures["images"]) == ("cpu", 1, 96)
    rows = {row["key"]: row for row in figures["rows"]}
    assert list(rows) == list(table.ROWS) and not any(row["error"] for row in rows.values())
    assert "--quantization-bits 4" in rows["compressed"]["command"]
    assert "quantization" not in rows["plain"]["command"]
    for key, row in rows.items():
        path = tmp_path / "kept" / ("baseline.jsonl" if key == "baseline" else f"{key}/run.jsonl")
        noted = [json.loads(line) for line in path.read_text().splitlines()]
        accuracies = [event["test_accuracy"] for event in noted if event["event"] == "epoch"]
        assert [point["accuracy"] for point in row["points"]] == accuracies and len(accuracies) == 2
        assert 0 < row["startup_seconds"] <= row["points"][0]["seconds"] <= row["seconds"]
        assert row["accuracy"] == accuracies[-1] and row["cost"] == pytest.approx(row["seconds"] / 100)
        assert row["ratio"] == pytest.approx(rows["baseline"]["seconds"] / row["seconds"])
        first = next((p["seconds"] for p in row["points"] if p["accuracy"] >= 0.01), None)
        assert row["target_seconds"] == first
        layers = {plan["layer"] for record in row["plans"] for plan in record["plans"]}
        assert layers == set() if key == "baseline" else len(layers) == 7  # resnet9's without the first, the stem
    assert "1 rank on CPU" in done.stdout and "cost: of the time to the end at 36 per hour" in done.stdout
    assert not drawn or chart.read_bytes().startswith(b"\x89PNG")


@needs_onednn
@needs_pillow
def test_a_row_that_fails_stops_no_other(tmp_path):
    fails = ("--limit", "40", "--batch-size", "64", "--epochs", "1", "--gpus", "1", "--device", "cpu")
    done = bench(*fails, "--json", "figures.json", cwd=tmp_path, paths=(FAKE,), status=1)
    assert "usual PyTorch code: vanilla_pytorch.py: 40 images are fewer than one batch of 64" in done.stdout
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert len(rows) == 3 and all(row["error"] and row["seconds"] is None for row in rows)
    assert "the training set has only 40" in rows[1]["error"]


@needs_onednn
@needs_pillow
def test_several_ranks(tmp_path):
    if shutil.which("mpirun") is None or not _cgxffcv.build_info()["mpi"]:
        pytest.skip("mpirun or a build with MPI is not there")
    small = ("--limit", "64", "--batch-size", "16", "--epochs", "1", "--gpus", "2", "--device", "cpu")
    wanted = ("--rows", "baseline,compressed", "--empty-cache", "--json", "figures.json", "--keep", "kept")
    done = bench(*small, *wanted, cwd=tmp_path, paths=(FAKE,))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    for row, path in zip(rows, ("baseline.jsonl", "compressed/run.jsonl"), strict=True):
        assert row["command"].startswith("mpirun -np 2 ") and row["seconds"] > row["startup_seconds"] > 0
        assert json.loads((tmp_path / "kept" / path).read_text().splitlines()[0])["ranks"] == 2
    assert "2 ranks on CPU" in done.stdout


@needs_onednn
def test_a_time_limit(tmp_path):
    small = ("--limit", "64", "--batch-size", "16", "--epochs", "1000", "--gpus", "1", "--device", "cpu")
    done = bench(*small, "--rows", "plain", "--timeout", "1", cwd=tmp_path, status=1)
    assert "cgxffcv: did not end within 1.0 s (--timeout)" in done.stdout, done.stderr


@needs_onednn
def test_without_pytorch_the_first_row_says_so(tmp_path):
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("PyTorch is installed")
    small = ("--limit", "64", "--batch-size", "32", "--epochs", "1", "--rows", "baseline,plain", "--device", "cpu")
    done = bench(*small, cwd=tmp_path)
    assert "not run: PyTorch is not installed" in done.stdout and "cgxffcv, 4 bits" not in done.stdout


@needs_onednn
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_table_leaves_no_process(tmp_path, number, code):
    words = "cgxffcv bench table --source sample --epochs 500 --rows plain --gpus 1 --device cpu --json t.json --keep k"
    command = [sys.executable, "-m", *words.split()]
    # a shell may have started the tests with an ignored SIGINT
    asked = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until((tmp_path / "k" / "plain" / "run.jsonl").exists, 240, asked)
    asked.send_signal(number)
    out, errors = asked.communicate(timeout=60)
    assert asked.returncode == code, errors
    assert b"cgxffcv: was interrupted" in out
    assert json.loads((tmp_path / "t.json").read_text())["rows"][0]["error"] == "was interrupted"
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not any(str(tmp_path).encode() in words for words in running)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--gpus", "0"], "--gpus: expected a whole number from 1, not '0'"),
        (["--epochs", "0"], "--epochs: expected a whole number from 1, not '0'"),
        (["--rows", "plain,fancy"], "--rows fancy: expected some of baseline, plain, compressed"),
        (["--price-per-hour", "-1"], "--price-per-hour: expected a number from 0, not '-1'"),
        (["--keep", "."], "--keep .: the folder is not empty"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: its folder does not exist"),
    ],
)
def test_mistakes(tmp_path, options, message):
    (tmp_path / "something").touch()
    done = bench(*options, cwd=tmp_path, status=2)
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_without_the_images_it_says_where_others_are(tmp_path):
    done = bench("--source", "local", "--data-root", "nowhere", cwd=tmp_path, status=1)
    assert "no CIFAR-10 in nowhere" in done.stderr and done.stderr.count("\n") == 1
    assert "use --source download to download it, or --source sample to do without it" in done.stderr


def test_the_device(monkeypatch):
    def choose(*words):
        return table.choose_device(table._parser().parse_args(words))

    monkeypatch.setattr(table.machine, "usable_gpus", lambda: (["H100", "H100"], ""))
    assert choose() == ("gpu", 2, "H100", "") and choose("--gpus", "1")[:2] == ("gpu", 1)
    assert choose("--gpus", "4")[3] == "4 ranks share 2 GPUs"
    assert choose("--device", "cpu")[:2] == ("cpu", 1)
    monkeypatch.setattr(table.machine, "usable_gpus", lambda: ([], "no driver: install one"))
    assert choose("--gpus", "3")[:3] == ("cpu", 3, "CPU (--gpus counts ranks here)")
    with pytest.raises(table.UserError, match="--device gpu: no driver: install one"):
        choose("--device", "gpu")


def test_a_chart_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(table.UserError, match="--chart needs matplotlib"):
        table.main(["--chart", str(tmp_path / "x.png")])


# ---- what both use ----


def test_records_are_whole_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    records = table.Records(path)
    assert records.new() == []
    path.write_text('{"event": "start"}\n{"event": "ep')
    assert records.new() == [{"event": "start"}]
    assert records.new() == []
    with open(path, "a") as file:
        file.write('och"}\n')
    assert records.new() == [{"event": "epoch"}]


def test_a_program_ends_with_all_that_it_started():
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with processes.Program(processes.interpreter("-c", code), stdout=subprocess.PIPE, text=True) as program:
        grandchild = int(program.process.stdout.readline())
        session = program.process.pid
        assert set(processes.members(session)) == {session, grandchild}
    wait_until(lambda: processes.members(session) == [], 10)


def test_programs_find_this_package_and_a_cache(tmp_path):
    code = "import cgxffcv, os; print(cgxffcv.__file__, os.environ['CGXFFCV_CACHE'], end='')"
    done = run_command(*processes.interpreter("-c", code), cwd=tmp_path, env=processes.environment(tmp_path / "c"))
    assert done.stdout == f"{ROOT / 'cgxffcv' / '__init__.py'} {tmp_path / 'c'}"
    assert processes.environment().get(processes.CACHE) == os.environ.get(processes.CACHE)


def test_a_peak_that_cannot_be_measured_says_why(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rate, reason = peak.measure("gpu", "float16")
    assert rate is None and "cannot be measured" in reason


def test_no_data_names_the_option_that_table_has(tmp_path):
    done = bench("--source", "local", "--data-root", "nowhere", cwd=tmp_path, status=1)
    assert "no CIFAR-10 in nowhere" in done.stderr and "use --source download" in done.stderr
