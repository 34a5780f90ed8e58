"""The notebooks of examples/ run from the first cell to the last, and show what they should."""

import json
import re
from importlib.util import find_spec

import notebooks
import pytest
from _cgxffcv import build_info
from checkout import ROOT

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
needs_networks = pytest.mark.skipif(not build_info()["onednn"], reason="this build has no oneDNN")
needs_cloudpickle = pytest.mark.skipif(find_spec("cloudpickle") is None, reason="cloudpickle is not installed")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_small_and_without_outputs(name):
    text = (EXAMPLES / name).read_text()
    kept = json.loads(text)
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert len(text) < 20_000 and kept["cells"][0]["cell_type"] == "markdown"
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text()


@pytest.mark.medium
def test_write_and_browse(tmp_path):
    told = notebooks.execute(EXAMPLES / "write_and_browse.ipynb", tmp_path)
    assert "no problems" in told and "{'name': 'bird', 'index': 123}" in told and "image/png" in told


@pytest.mark.medium
def test_transforms(tmp_path):
    told = notebooks.execute(EXAMPLES / "transforms.ipynb", tmp_path)
    pictures = re.findall(r"base64,([^\"]+)", told)
    # every operation does something; one is shown twice, since the same seed means the same draws
    assert len(pictures) == 28 and len(set(pictures)) == 27 and pictures[4] == pictures[25]


@pytest.mark.medium
@needs_networks
@needs_cloudpickle
def test_bits(tmp_path):
    told = notebooks.execute(EXAMPLES / "bits.ipynb", tmp_path)
    rows = re.findall(r"^ +(\d+) +([\d.]+)% +([\d,]+) ", told, re.M)
    accuracy = {int(bits): float(share) for bits, share, _ in rows}
    sent = [int(count.replace(",", "")) for _, _, count in rows]
    assert list(accuracy) == [32, 8, 4, 2] and all(share > 20 for share in accuracy.values())
    assert sent == sorted(sent, reverse=True) and told.count("<svg") == 2


@pytest.mark.medium
@needs_networks
def test_cifar_training(tmp_path):
    told = notebooks.execute(EXAMPLES / "cifar_training.ipynb", tmp_path)
    # the last value: the resumed trainer gives the same accuracy; and it has learnt something
    assert told.strip().endswith("True") and "<svg" in told
    assert float(re.findall(r"\(60, ([\d.]+)\)", told)[0]) > 0.3


@pytest.mark.medium
@needs_networks
@needs_cloudpickle
def test_launch(tmp_path):
    told = notebooks.execute(EXAMPLES / "launch.ipynb", tmp_path)
    assert "rank 0 of 2 has averaged in 4 bits" in told and "rank 1 of 2 has" not in told
    assert "rank 1 of 2 raised ValueError: this rank has a problem" in told and "step 36 of 36" in told
    one, other = re.search(r"\['([\d.]+)%', '([\d.]+)%'\]", told).groups()
    assert one == other and float(one) > 20


@pytest.mark.medium
def test_from_ffcv(tmp_path):
    told = notebooks.execute(EXAMPLES / "from_ffcv.ipynb", tmp_path)
    assert told.count("float32 (512, 3, 32, 32) (512,)") == 3 and "[True, True, True, True]" in told


@pytest.mark.medium
@needs_cloudpickle
def test_from_torch_cgx(tmp_path):
    told = notebooks.execute(EXAMPLES / "from_torch_cgx.ipynb", tmp_path)
    errors = {bits: float(off) for bits, off in re.findall(r"^(\d+) +[\d,]+ \( *\d+%\)  ([\d.]+)$", told, re.M)}
    assert errors["32"] < 1e-6 < errors["8"] < 0.01 < errors["4"] < 0.16 < errors["2"] < 0.9
    for off, half in re.findall(r"at most ([\d.]+) off, half a level is ([\d.]+)", told):
        assert float(off) <= float(half) + 1e-4
