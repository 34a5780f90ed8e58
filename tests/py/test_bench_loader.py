"""bench loader on a few images: what it reports, and that it refuses to measure a wrong result."""

import json

import _cgxffcv
import numpy as np
import pytest

from cgxffcv.bench import loader as bench
from cgxffcv.bench import photos, scaling
from cgxffcv.errors import UserError

SMALL = ["--images", "300", "--batch-size", "64", "--epochs", "2", "--writes", "2", "--threads", "1,3"]


def test_the_report(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert bench.main([*SMALL, "--data-root", str(tmp_path), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["data"] == "random pixels" and report["images"] == 300
    assert [row["threads"] for row in report["results"]] == [1, 3]
    assert len(report["writing"]["seconds"]) == 2
    for row in report["results"]:
        assert len(row["images_per_second_all"]) == 2
        assert min(row["images_per_second"], row["copy_images_per_second"], row["cpu_microseconds_per_image"]) > 0
    text = capsys.readouterr().out
    assert "copy limit" in text and f"{report['results'][1]['images_per_second']:,}" in text
    assert bench.main([*SMALL, "--data-root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark"] == "loader"


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
def test_photographs(tmp_path, capsys):
    """Each cell in a separate process; the same pixels with any number of threads."""
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(_cgxffcv.jpeg_encode(rng.integers(0, 256, (40 + i, 50, 3), np.uint8)))
    few = ["--images", "64", "--batch-size", "64", "--epochs", "1", "--writes", "1", "--threads", "1,2"]
    arguments = [*few, "--data-root", str(tmp_path), "--photos", str(tmp_path), "--photo-count", "5", "--json"]
    assert bench.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    rows = report["photographs"]
    assert report["scaling"] == []
    assert [(row["cell"], row["threads"]) for row in rows] == [(name, n) for name in photos.CELLS for n in (1, 2)]
    for row in rows:
        assert min(row["images_per_second"], row["cpu_microseconds_per_image"]) > 0
        assert (row["limit_images_per_second"] is None) == (row["cell"] == "raw256")
    assert len({row["checksum"] for row in rows}) == len(photos.CELLS) - 1  # no image is above 400 pixels
    photos.show(rows)
    assert "antialiased bilinear" in capsys.readouterr().out
    with pytest.raises(UserError, match="no .jpg"):
        photos.write(tmp_path, str(tmp_path / "none"), 5)
    with pytest.raises(UserError, match="raw256 with 2 threads failed"):
        photos.run_cell("raw256", tmp_path / "none", 2, 1)
    path = photos.write(tmp_path, str(tmp_path), 5)["raw256"]
    with photos.Server("raw256", path, 1) as server:
        assert server.answer()["images"] == 5
        server.process.kill()
        server.process.wait()
        server.begin()
        with pytest.raises(UserError, match="raw256 with 1 threads failed"):
            server.answer()
    assert server.process.stdin.closed


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
def test_scaling(tmp_path, capsys):
    """Threads beside as many processes of one thread, and one of these alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    (tmp_path / "a.jpg").write_bytes(_cgxffcv.jpeg_encode(pixels))
    few = ["--images", "64", "--batch-size", "64", "--epochs", "2", "--writes", "1", "--threads", "1,2"]
    few += ["--photos", str(tmp_path), "--photo-count", "5", "--data-root", str(tmp_path), "--processes"]
    out = tmp_path / "out.json"
    assert bench.main([*few, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["scaling"]
    assert [(row["cell"], row["number"]) for row in rows] == [(name, 2) for name in photos.CELLS]
    for row in rows:
        low, high = row["one_images_per_second_range"]
        assert 0 < low <= row["one_images_per_second"] <= high
        assert min(row["threads_of_processes"], *row["work_microseconds_per_image"].values()) > 0
        assert 0 <= row["idle_share"] < 1
    times = rows[0]["processes_images_per_second"] / rows[0]["one_images_per_second"]
    assert f"{rows[0]['processes_images_per_second']:>13,}{times:>7.2f}" in capsys.readouterr().out


class PretendServer:
    """A process with that many threads, each of which works 0.5 s on its 10 images; an epoch takes 1 s with one thread
    and 2 s with more."""

    def __init__(self, name, path, threads):
        self.threads, self.said = threads, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def begin(self):
        assert self.said

    def answer(self):
        if self.said:
            return {"seconds": min(self.threads, 2.0), "work": 0.5 * self.threads}
        self.said = True
        return {"images": 10 * self.threads}


def test_what_scaling_compares(monkeypatch):
    """3 threads give 15 images per second, and 3 processes 3 times what one gives."""
    monkeypatch.setattr(scaling, "Server", PretendServer)
    row = scaling.measure("raw256", None, 3, 2)
    assert [row[f"{who}_images_per_second"] for who in scaling.WHO] == [10, 15, 30]
    assert row["one_images_per_second_range"] == [10, 10] and row["threads_of_processes"] == 0.5
    assert row["idle_share"] == 0.75 and set(row["work_microseconds_per_image"].values()) == {50_000}


def test_a_wrong_result_is_not_measured(tmp_path):
    images, labels, _ = bench.obtain(str(tmp_path), 600)
    bench.write(tmp_path / "x.beton", images, labels, 1)
    bench.check(tmp_path / "x.beton", images, labels)
    images[17, 3, 4, 1] ^= 128
    ids = np.random.default_rng(bench.SEED).permutation(600)[:512]
    assert 17 in ids
    with pytest.raises(UserError, match="differ"):
        bench.check(tmp_path / "x.beton", images, labels)


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--threads", "two"], ["--images", "5"], ["--epochs", "0"]])
def test_mistakes(arguments):
    with pytest.raises(UserError, match="bench loader"):
        bench.main(arguments)
