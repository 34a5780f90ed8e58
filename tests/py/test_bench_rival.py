"""bench loader --rival ffcv, with a stand-in for FFCV: what it is asked for, the ratio, the message without FFCV."""

import json
import stat
import sys

import _cgxffcv
import numpy as np
import pytest

from cgxffcv.bench import loader as bench
from cgxffcv.bench import photos, rival
from cgxffcv.errors import UserError

# A package that looks like FFCV from outside: it counts through empty batches, and records what it was asked for.
MODULES = {
    "__init__.py": "",
    "loader.py": """
import enum, json, os
OrderOption = enum.Enum("OrderOption", "SEQUENTIAL RANDOM QUASI_RANDOM")
class Loader:
    def __init__(self, path, batch_size, **options):
        asked = {"order": options["order"].name, "batch": batch_size, "drop_last": options["drop_last"]}
        asked |= {"threads": options["num_workers"], "steps": options["pipelines"]["image"]}
        open(os.environ["ASKED"], "a").write(json.dumps(asked) + "\\n")
    def __iter__(self):
        return iter([([0] * 10, None)] * 3)
""",
    "fields/__init__.py": "",
    "fields/decoders.py": "def __getattr__(name): return lambda *a, **k: [name, *map(str, a)]",
    "transforms.py": "def __getattr__(name): return lambda *a, **k: [name, *map(str, a), *map(str, k.values())]",
}


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An interpreter that has this package."""
    for name, text in MODULES.items():
        path = tmp_path / "lib" / "ffcv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    about = tmp_path / "lib" / "ffcv-1.0.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ffcv\nVersion: 1.0.2\n")
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/lib:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return str(path)


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
def test_beside_a_rival(tmp_path, capsys, python):
    rng = np.random.default_rng(0)
    (tmp_path / "a.jpg").write_bytes(_cgxffcv.jpeg_encode(rng.integers(0, 256, (40, 50, 3), np.uint8)))
    few = ["--images", "64", "--batch-size", "64", "--epochs", "2", "--writes", "1", "--threads", "2"]
    few += ["--photos", str(tmp_path), "--photo-count", "5", "--data-root", str(tmp_path)]
    assert bench.main([*few, "--rival", "ffcv", "--rival-python", python, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["cell"]: row for row in report["rival"]["results"]}
    assert report["rival"]["version"] == "1.0.2" and list(rows) == ["cifar", *photos.FOR_RIVALS]
    ours = {row["cell"]: row for row in report["photographs"]} | {"cifar": report["results"][0]}
    for name, row in rows.items():
        assert row["our_images_per_second"] == ours[name]["images_per_second"] and row["threads"] == 2
        assert row["ratio"] == round(row["our_images_per_second"] / row["images_per_second"], 2)
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert len(asked) == 5 and all(each["threads"] == 2 for each in asked)
    (cifar,) = [each for each in asked if each["steps"][0] == ["SimpleRGBImageDecoder"]]
    assert (cifar["order"], cifar["batch"], cifar["drop_last"]) == ("RANDOM", 64, True)
    names = ["RandomHorizontalFlip", "RandomTranslate", "Cutout", "NormalizeImage", "ToTensor", "ToTorchImage"]
    assert [step[0] for step in cifar["steps"][1:]] == names and cifar["steps"][-1][1] == "False"
    central = [each for each in asked if each["steps"][0] == ["CenterCropRGBImageDecoder", "(224, 224)", "0.875"]]
    assert len(central) == 1 and (central[0]["batch"], central[0]["drop_last"]) == (photos.BATCH, False)
    assert [step[0] for step in central[0]["steps"][1:]] == names[3:]
    rest = [[s[0] for s in each["steps"]] for each in asked if each["steps"][0][0].startswith("RandomResized")]
    assert sorted(map(len, rest)) == [3, 5, 5]  # raw images are not normalised
    bench.show(report)
    assert "next to FFCV 1.0.2" in capsys.readouterr().out


def test_what_is_missing_is_said_first(tmp_path, python):
    (tmp_path / "lib" / "ffcv" / "loader.py").write_text("import cv2_that_nobody_has\n")
    with pytest.raises(UserError, match=r"has no working FFCV: .*cv2_that_nobody_has.*; it needs FFCV 1\.0\.2"):
        bench.main(["--rival", "ffcv", "--rival-python", python])
    with pytest.raises(UserError, match="--rival-python /no/such/python: "):
        bench.main(["--rival", "ffcv", "--rival-python", "/no/such/python"])


def test_a_rival_that_fails_says_why(tmp_path, python):
    found = rival.find(python)
    (tmp_path / "lib" / "ffcv" / "transforms.py").write_text("raise RuntimeError('no such luck')\n")
    with pytest.raises(UserError, match="FFCV failed in the cell cifar: RuntimeError: no such luck"):
        found.measure(bench.described(), tmp_path / "x.beton", 1, 1, 64)
