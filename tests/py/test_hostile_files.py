"""Files made to do harm, or left by a broken writer: thousands of them, made by rules, each refused with BetonError or
read as an independent model reads it. HOSTILE_FILES=5000 makes and reads that many."""

import json
import lzma
import os
from pathlib import Path

import _cgxffcv
import beton_law
import hostile_files
import hostile_reading
import pytest
from checkout import ROOT, run_python

FILES, PART = int(os.environ.get("HOSTILE_FILES", "400")), 200


@pytest.fixture
def libjpeg():
    if not _cgxffcv.build_info()["jpeg"]:
        pytest.skip("this build has no libjpeg-turbo")


@pytest.mark.parametrize("begin", range(0, FILES, PART))
def test_hostile_files_are_refused_or_read(tmp_path, libjpeg, begin):
    words = hostile_reading.__file__, begin, min(begin + PART, FILES)
    done = run_python(*words, status=None, limit=500, cwd=tmp_path)
    seed = (tmp_path / "seed").read_text()
    assert done.returncode == 0, f"rc {done.returncode}, last seed {seed}\n{done.stdout}\n{done.stderr}"
    counts = json.loads(done.stdout.splitlines()[0])
    assert counts["files"] == sum(counts[name] for name in ("refused at opening", "refused at reading", "read"))
    assert min(counts.values()) > 0


def test_every_rule_is_there():
    made = {hostile_files.hostile_file(seed).rule for seed in range(PART * 2)}
    assert made == set(hostile_files.RULES)


@pytest.mark.parametrize("path", sorted((ROOT / "tests/golden").glob("*.beton.xz")), ids=lambda path: Path(path).name)
def test_the_law_takes_what_ffcv_wrote(path):
    data = lzma.decompress(path.read_bytes())
    assert beton_law.reason_to_refuse(data) is None
    assert beton_law.reason_to_refuse(data[:-24])
