"""bench loader on a few images: what it reports, and that it refuses to measure a wrong result."""

import json

import numpy as np
import pytest

from cgxffcv.bench import loader as bench
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
