"""tools/repair_wheel.py: what it adds to a wheel in addition to auditwheel's work."""

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
METADATA = b"""Metadata-Version: 2.4
Name: cgxffcv
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Dist: numpy>=2

License-Expression: of the readme
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    text = tmp_path / "licence"
    text.write_bytes(b"do what you like")
    monkeypatch.setattr(repair_wheel, "KNOWN", {"libjpeg": ("libjpeg-turbo", "IJG", ("/nowhere", str(text)))})
    told = {"WHEEL": b"", "RECORD": b"old", "METADATA": METADATA}
    library = {"cgxffcv.libs/libjpeg-0b4c.so.62.3.0": b"code", "_cgxffcv.cpython-313-x86_64-linux-gnu.so": b"module"}
    return {f"{INFO}/{name}": content for name, content in told.items()} | library


def test_a_copied_library_has_its_licence_and_its_line(files):
    made = repair_wheel.complete(files)
    assert made[f"{INFO}/licenses/libjpeg-turbo.txt"] == b"do what you like"
    (component,) = json.loads(made[f"{INFO}/sboms/cgxffcv.cdx.json"])["components"]
    assert (component["name"], component["version"]) == ("libjpeg-turbo", "62.3.0")
    assert component["hashes"][0]["content"] == hashlib.sha256(b"code").hexdigest()
    assert component["licenses"] == [{"expression": "IJG"}]


def test_metadata_names_the_licences(files):
    head, _, text = repair_wheel.complete(files)[f"{INFO}/METADATA"].decode().partition("\n\n")
    assert "License-Expression: Apache-2.0 AND IJG\nLicense-File: LICENSE\n" in head and head.endswith(
        "\nLicense-File: libjpeg-turbo.txt"
    )
    assert text == METADATA.decode().partition("\n\n")[2]


def test_the_runtime_of_cuda_is_told_where_there_are_kernels(files):
    def names(made):
        return [component["name"] for component in json.loads(made[f"{INFO}/sboms/cgxffcv.cdx.json"])["components"]]

    assert names(repair_wheel.complete(dict(files))) == ["libjpeg-turbo"]
    files["_cgxffcv.cpython-313-x86_64-linux-gnu.so"] = b"\0.text\0.nv_fatbin\0"
    assert names(repair_wheel.complete(files)) == ["libjpeg-turbo", "libcudart_static"]


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


def test_the_openmp_runtime_runs_where_the_wheel_does(tmp_path, monkeypatch):
    library = tmp_path / "libgomp.so.1"
    library.write_bytes(b"\x7fELF\0GLIBC_2.4\0GLIBC_2.2.5\0GLIBC_2.17\0")
    monkeypatch.setattr(repair_wheel, "OPENMP_PLACES", ("/nowhere", str(library)))
    assert repair_wheel.openmp("cgxffcv-0.1.0-cp313-cp313-manylinux_2_17_x86_64.whl") == library.read_bytes()
    with pytest.raises(SystemExit, match=r"needs glibc 2\.17, and .* is to run with 2\.5"):
        repair_wheel.openmp("cgxffcv-0.1.0-cp313-cp313-manylinux_2_5_x86_64.whl")
    monkeypatch.setattr(repair_wheel, "OPENMP_PLACES", ("/nowhere",))
    with pytest.raises(SystemExit, match="at none of /nowhere"):
        repair_wheel.openmp("cgxffcv-0.1.0-cp313-cp313-manylinux_2_17_x86_64.whl")
