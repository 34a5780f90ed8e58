"""tools/repair_wheel.py: what a wheel gets besides auditwheel's work."""

import base64
import csv
import hashlib
import importlib.util
import json

import pytest
from checkout import ROOT

spec = importlib.util.spec_from_file_location("repair_wheel", ROOT / "tools/repair_wheel.py")
repair_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repair_wheel)

INFO = "cgxffcv-0.1.0.dist-info"


@pytest.fixture
def files(tmp_path, monkeypatch):
    text = tmp_path / "licence"
    text.write_bytes(b"do what you like")
    monkeypatch.setattr(repair_wheel, "KNOWN", {"libjpeg": ("libjpeg-turbo", "IJG", ("/nowhere", str(text)))})
    return {f"{INFO}/WHEEL": b"", f"{INFO}/RECORD": b"old", "cgxffcv.libs/libjpeg-0b4c.so.62.3.0": b"code"}


def test_a_copied_library_has_its_licence_and_its_line(files):
    made = repair_wheel.complete(files)
    assert made[f"{INFO}/licenses/libjpeg-turbo.txt"] == b"do what you like"
    (component,) = json.loads(made[f"{INFO}/sboms/cgxffcv.cdx.json"])["components"]
    assert (component["name"], component["version"]) == ("libjpeg-turbo", "62.3.0")
    assert component["hashes"][0]["content"] == hashlib.sha256(b"code").hexdigest()
    assert component["licenses"] == [{"expression": "IJG"}]


def test_the_record_has_all_files(files):
    made = repair_wheel.complete(files)
    rows = list(csv.reader(made[f"{INFO}/RECORD"].decode().splitlines()))
    assert {row[0] for row in rows} == set(made) and rows[-1] == [f"{INFO}/RECORD", "", ""]
    for path, digest, size in rows[:-1]:
        expected = base64.urlsafe_b64encode(hashlib.sha256(made[path]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={expected}", len(made[path]))


def test_a_library_without_a_known_licence_ends_it(files):
    files["cgxffcv.libs/libother-1.so"] = b""
    with pytest.raises(SystemExit, match="libother-1.so was copied into the wheel, but its licence is not known"):
        repair_wheel.complete(files)


def test_a_licence_that_is_not_here_ends_it(files, monkeypatch):
    monkeypatch.setattr(repair_wheel, "KNOWN", {"libjpeg": ("libjpeg-turbo", "IJG", ("/nowhere",))})
    with pytest.raises(SystemExit, match="the licence of libjpeg-0b4c.so.62.3.0 is at none of /nowhere"):
        repair_wheel.complete(files)
