"""Runs read back from their logs, charts, the page about them."""

import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import _cgxffcv
import numpy as np
import pytest
import small_data

from cgxffcv.app import cli, mistakes, page, runs, svg
from cgxffcv.errors import UserError
from cgxffcv.reader import Reader

CONFIG = {"training": {"recipe": "demo", "lr": 0.1}, "compression": {"bits": 4, "algorithm": "sra"}, "data": {}}


def write_log(folder, *, lr=0.1, epochs=3, end=True, ranks=2):
    """A log of `epochs` epochs of 4 steps, one second each."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"training": {"recipe": "demo", "lr": lr}}
    records = [
        {
            "event": "start",
            "time": 100.0,
            "ranks": ranks,
            "version": "0.1.0",
            "config": config,
            "machine": {"processor": "a <fast> one", "gpus": []},
        }
    ]
    for epoch in range(epochs):
        for step in range(4):
            records.append(
                {
                    "event": "step",
                    "time": 101.0 + 4 * epoch + step,
                    "epoch": epoch,
                    "step": 4 * epoch + step,
                    "loss": 2.0 / (1 + epoch),
                    "rate": lr,
                    "seconds": 1.0,
                    "load_seconds": 0.25,
                    "skipped": False,
                    "wire_bytes": 1000,
                }
            )
        records.append(
            {
                "event": "epoch",
                "time": 105.0 + 4 * epoch,
                "epoch": epoch + 1,
                "steps": 4 * epoch + 4,
                "seconds": 4.0,
                "train_loss": 1.5,
                "train_accuracy": 0.3 + 0.1 * epoch,
                "test_loss": 1.2,
                "test_accuracy": 0.4 + 0.1 * epoch,
                "test_seconds": 0.5,
                "wire_bytes": 8000,
                "images_per_second": 100.0,
            }
        )
    if end:
        records.append({"event": "end", "time": 120.0, "seconds": 20.0, "test_accuracy": 0.6, "best_accuracy": 0.6})
    (folder / "run.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_log_is_read(tmp_path):
    run = runs.read(write_log(tmp_path / "a"))
    assert (run.name, run.state, run.seconds, run.wire_bytes) == ("a", "finished", 20.0, 24000)
    assert run.accuracy == pytest.approx(0.6)
    np.testing.assert_allclose(run.curve("test_accuracy"), [(1, 0.4), (2, 0.5), (3, 0.6)])
    shares = run.shares()
    assert shares == {"training steps": 9.0, "waiting for data": 3.0, "tests": 1.5, "everything else": 6.5}
    assert ("sent for gradients", "24.0 kB, in 4 bits per value") in run.summary()
    assert "<caption>a</caption>" in run._repr_html_() and "60.00%" in run._repr_html_()
    assert runs.read(tmp_path / "a" / "run.jsonl").name == "a"


def test_a_run_that_went_on_counts_each_step_once(tmp_path):
    log = write_log(tmp_path / "a", end=False) / "run.jsonl"
    lines = log.read_text().splitlines()
    again = lines[0].replace("100.0", "150.0")
    log.write_text("\n".join([*lines, again, *lines[6:]]) + '\n{"event": "interrupted", "time": 190}\n{"eve')
    run = runs.read(tmp_path / "a")
    assert [step["step"] for step in run.steps] == list(range(12)) and len(run.epochs) == 3
    assert run.state == "interrupted" and run.start["time"] == 100.0
    assert run.seconds == (113 - 100) + (190 - 150)
    end = '{"event": "end", "time": 260, "seconds": 7}'
    log.write_text("\n".join([*lines, again, *lines[6:], again.replace("150.0", "250.0"), end]) + "\n")
    assert runs.read(tmp_path / "a").seconds == (113 - 100) + 0 + 7


def test_bytes_of_a_step_are_those_of_all_steps(tmp_path):
    log = write_log(tmp_path / "a", epochs=2, end=False) / "run.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-1]) + "\n")  # the last epoch has no end
    run = runs.read(tmp_path / "a")
    assert (run.wire_bytes, run.wire_bytes_a_step, len(run.steps)) == (8000, 1000, 8)
    assert "<td>8.0 kB</td><td>1.0 kB per step on rank 0</td>" in page.page([run])


@pytest.mark.parametrize("line", [0, 1, 2, -1])
@pytest.mark.parametrize(
    "change",
    [
        {"time": "x"},
        {"time": -1},
        {"time": float("nan")},
        {"seconds": [1]},
        {"wire_bytes": 1.5},
        {"ranks": True},
        {"ranks": "2"},
        {"epoch": {}},
        {"step": 10**30},
        {"config": []},
        {"config": {"data": 1}},
        {"event": []},
    ],
    ids=str,
)
def test_a_log_with_other_values_is_refused_with_its_line(tmp_path, line, change):
    log = write_log(tmp_path / "a") / "run.jsonl"
    records = [json.loads(text) for text in log.read_text().splitlines()]
    records[line] |= change
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=rf"line {line % len(records) + 1}: not a record of a run \("):
        runs.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "no run has started"),
        ('{"event": "end", "seconds": 1}\n', "no run has started"),
        ('{"event": "end"}\n', "line 1: not a record of a run .no seconds"),
        ('{"event": "start"}', "line 1: not a record of a run .no time"),
        ("[]\n[]\n", "line 1: not a record of a run"),
        ("nonsense\n{}\n", "line 1: not a record of a run"),
    ],
)
def test_logs_that_are_none(tmp_path, text, wanted):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(UserError, match=wanted):
        runs.read(tmp_path)
    for other in ("other", "run.jsonl/best.safetensors"):
        with pytest.raises(UserError, match="no run.jsonl there"):
            runs.read(tmp_path / other)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.37, 0.92, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 12000, [0, 2000, 4000, 6000, 8000, 10000, 12000]),
        (3, 3, [3, 3.5, 4, 4.5, 5, 5.5, 6]),
        (2.302585092994046, 2.3025850929940455, [2, 2.5, 3, 3.5, 4, 4.5, 5]),
        (1e-14, 2e-14, [1e-14, 1.2e-14, 1.4e-14, 1.6e-14, 1.8e-14, 2e-14]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected, rel=1e-6, abs=0 if low else 1e-12)
    assert "polyline" in svg.chart([svg.Curve("a", [(0, low), (1, high)], "#000")], "x", "y")


def test_a_chart_has_the_points_where_they_belong():
    curve = svg.Curve("a < b", [(0, 0.0), (1, 0.5), (2, 1.0), (3, float("nan"))], "#123456")
    drawn = ET.fromstring(svg.chart([curve], "epoch", "share", percent=True))
    name = "{http://www.w3.org/2000/svg}"
    (line,) = drawn.iter(f"{name}polyline")
    points = np.array([[float(v) for v in pair.split(",")] for pair in line.get("points").split()])
    assert len(points) == 3 and np.ptp(np.diff(points, axis=0), axis=0).max() < 0.11  # on one line, evenly
    labels = {text.text: (float(text.get("x")), float(text.get("y"))) for text in drawn.iter(f"{name}text")}
    assert abs(labels["100 %"][1] - 4 - points[2, 1]) < 0.11 and abs(labels["2"][0] - points[2, 0]) < 0.11
    assert [t.text for t in drawn.iter(f"{name}title")][1] == "a < b: 50 % at 1"
    assert svg.chart([svg.Curve("none", [], "#000")], "x", "y") == ""


def test_a_notebooks_chart_keeps_each_name_beside_its_colour():
    curves = [svg.Curve(name, [(0, 0.0), (1, 0.5)], "#123456") for name in ("a < b", "c")]
    names = svg.Figure(curves, "x", "y")._repr_html_().split("</svg>")[1]
    assert names.count('<span style="display: inline-block;') == 2 and "a &lt; b</span>" in names


class Tags(HTMLParser):
    """What is open at the end, and what the page would load."""

    EMPTY = ("meta", "img", "br", "line", "circle", "rect", "polyline")

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def whole(text):
    """Asserts that every tag is closed and that nothing is loaded from elsewhere."""
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and all(value.startswith("data:image/png;base64,") for value in tags.loads)
    assert "<script" not in text
    return tags


def test_the_page_about_several_runs(tmp_path):
    found = [runs.read(write_log(tmp_path / "a")), runs.read(write_log(tmp_path / "b & c", lr=0.2, end=False))]
    text = page.page(found)
    whole(text)
    assert text.count('<svg viewBox="0 0 560 320"') == 4 and "b &amp; c" in text and "a &lt;fast&gt; one" in text
    differences = re.search(r"<h2>What differs</h2>(.*?)</section>", text)[1]
    assert re.findall(r"<tr><th>([^<]+)</th><td>([^<]+)</td><td>([^<]+)</td>", differences) == [
        ("training.lr", "0.1", "0.2")
    ]


def test_runs_have_names_that_tell_them_apart(tmp_path, monkeypatch):
    places = [write_log(tmp_path / place) for place in ("first/cifar", "second/cifar", "third")]
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in runs.read_all([str(place) for place in places[1:]])] == ["cifar", "third"]
    words = ["first/cifar", "second/cifar/run.jsonl", "third"]
    assert [run.name for run in runs.read_all(words)] == ["first/cifar", "second/cifar", "third"]
    monkeypatch.chdir(tmp_path / "third")
    assert {runs.read_all([path])[0].name for path in (".", "run.jsonl")} == {"third"}


def test_each_of_many_runs_has_a_colour_of_its_own(tmp_path):
    text = page.page([runs.read(write_log(tmp_path / str(number), epochs=1)) for number in range(30)])
    shown = re.findall(r'style="--colour:(#[0-9a-f]{6})"', text)
    assert len(set(shown)) == 30 and shown[:8] == list(svg.COLOURS) and svg.colours(2) == list(svg.COLOURS[:2])


def test_confusion_and_mistakes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    worst = [mistakes.Mistake(7, images[0], 0, 1, 0.98), mistakes.Mistake(9, images[1], 1, 0, 0.5)]
    verdicts = mistakes.Verdicts(("ant", "<bee>"), np.array([[8, 2], [1, 9]]), worst, "best.safetensors", 20)
    text = page.page([runs.read(write_log(tmp_path / "a"))], verdicts)
    tags = whole(text)
    assert len(tags.loads) == 2 and "<b>&lt;bee&gt;</b> 98.0%<br>is ant" in text and "85.00%" in text
    assert "2 of 10 images of ant were taken for &lt;bee&gt;" in text and "85.00% on the plain images" in text
    many = np.eye(30, dtype=np.int64) * 5
    many[3, 4] = 2
    names = tuple(f"kind {i}" for i in range(30))
    text = page.page([runs.read(tmp_path / "a")], mistakes.Verdicts(names, many, [], "last.safetensors", 9000))
    assert "on 152 plain images spread over the 9,000 of the test set" in text
    assert "kind 3 taken for kind 4" in text and "<td>kind 5 taken" not in text


def test_of_several_runs_it_is_said_whose_mistakes_are_shown(tmp_path):
    several = [runs.read(write_log(tmp_path / name, epochs=1)) for name in ("a", "b<")]
    verdicts = mistakes.Verdicts(("ant", "bee"), np.array([[8, 2], [1, 9]]), [], "best.safetensors", 20)
    assert "Confusions of best.safetensors: " in page.page(several[:1], verdicts)
    text = page.page(several[::-1], verdicts)
    whole(text)
    assert (
        "Confusions of best.safetensors, b&lt;: accuracy" in text and "<h2>Most confidently wrong, b&lt;</h2>" in text
    )
    assert "<h2>Mistakes, b&lt;</h2>" in page.page(several[::-1], None, "why")


def test_long_names_of_classes_are_cut_beside_the_cells_and_wrapped_below_pictures(tmp_path):
    names = ("ant", "<" + "b" * 40)
    worst = [mistakes.Mistake(7, np.zeros((8, 8, 3), np.uint8), 0, 1, 0.98)]
    verdicts = mistakes.Verdicts(names, np.array([[8, 2], [1, 9]]), worst, "best.safetensors", 20)
    text = page.page([runs.read(write_log(tmp_path / "a", epochs=1))], verdicts)
    whole(text)
    long = f'<th title="&lt;{"b" * 40}">&lt;{"b" * 22}…</th>'
    assert text.count(long) == 2 and text.count('<th title="ant">ant</th>') == 2  # a row and a column
    assert re.search(r"figcaption \{ overflow-wrap: anywhere; \}", text) and f"<b>&lt;{'b' * 40}</b>" in text


def test_one_step_is_no_steps(tmp_path):
    run = runs.read(write_log(tmp_path / "a", epochs=1))
    assert dict(run.summary())["epochs"] == "1, 4 steps"
    run.epochs[-1]["steps"] = 1
    assert dict(run.summary())["epochs"] == "1, 1 step"


@pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")
def test_the_command_after_a_training(tmp_path, capsys, monkeypatch):
    train, test = small_data.make(tmp_path, 200, 60)
    words = ["train", f"--data.train_dataset={train}", f"--data.val_dataset={test}", "--training.recipe=airbench94"]
    words += ["--recipe.widths=16,16,16", "--epochs=2", "--batch-size=50", "--no-cuda", "--training.num_workers=1"]
    words += [f"--log-dir={tmp_path / 'run'}", "--recipe.whiten_images=100"]
    assert cli.run(words) == 0
    assert cli.run(["report", str(tmp_path / "run"), "-o", str(tmp_path / "x.html")]) == 0
    text = (tmp_path / "x.html").read_text()
    whole(text)
    assert "airplane" in text and "Confusions of best.safetensors" in text and "processor" in text
    verdicts = mistakes.judge(tmp_path / "run", test)
    assert verdicts.confusion.sum() == 60 and len(verdicts.worst) == min(24, 60 - np.trace(verdicts.confusion))
    monkeypatch.setattr(mistakes, "MOST_IMAGES", 7)
    few = mistakes.judge(tmp_path / "run", test, most=60)
    assert (few.judged, few.images) == (7, 60)
    chosen = np.linspace(0, 59, 7).astype(int)
    with Reader(test) as file:
        assert few.confusion.sum(axis=1).tolist() == np.bincount(file.column("label")[chosen], minlength=10).tolist()
        for mistake in few.worst:
            assert mistake.number in chosen
            np.testing.assert_array_equal(mistake.image, file.value(mistake.number, "image"))
    (tmp_path / "test.beton").unlink()
    assert cli.run(["report", str(tmp_path / "run"), "-o", str(tmp_path / "x.html")]) == 0
    assert "the test set no longer exists" in (tmp_path / "x.html").read_text()


def test_a_picture_needs_matplotlib(tmp_path):
    write_log(tmp_path / "a")
    words = [
        "report",
        str(tmp_path / "a"),
        "-o",
        str(tmp_path / "x.html"),
        "--png",
        str(tmp_path / "x.png"),
        "--no-images",
    ]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install matplotlib"):
            cli.run(words)
    else:
        assert cli.run(words) == 0 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_a_png_whatever_its_name_and_replaces_no_folder(tmp_path):
    pytest.importorskip("matplotlib")
    run, out = str(write_log(tmp_path / "a")), str(tmp_path / "x.html")
    assert cli.run(["report", run, "-o", out, "--no-images", "--png", str(tmp_path / "x.xyz")]) == 0
    assert (tmp_path / "x.xyz").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match="there is a folder"):
        cli.run(["report", run, "-o", out, "--no-images", "--png", str(tmp_path / "a")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "x.html", "x.xyz"]


def test_a_picture_says_what_its_lines_are(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from cgxffcv.app import picture

    write_log(tmp_path / "a")
    run = runs.read(tmp_path / "a")
    run.epochs[:] = run.epochs[:1]
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    picture.write([run], tmp_path / "a.png")
    accuracy, loss, speed = pyplot.gcf().axes
    (legend,) = pyplot.gcf().legends  # below the panels, where it covers no curve
    assert [text.get_text() for text in legend.get_texts()] == ["a", "test", "training, augmented images"]
    assert legend.get_window_extent().y1 < accuracy.get_window_extent().y0
    assert {line.get_marker() for axes in (loss, speed) for line in axes.get_lines()} == {"o"}  # points, not nothing
    assert all(float(place).is_integer() for place in speed.get_xticks())


def test_the_page_about_a_run_whose_name_is_not_utf8(tmp_path):
    run = tmp_path / os.fsdecode(b"\xff\xfe")
    write_log(run)
    assert cli.run(["report", str(run), "--no-images", "-o", str(tmp_path / "r.html")]) == 0
    assert "\\udcff\\udcfe" in (tmp_path / "r.html").read_text()
