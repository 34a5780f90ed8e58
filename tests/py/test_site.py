"""The site of the documentation builds without a warning, and its reference has every public name."""

import importlib
import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from checkout import ROOT, environ

import cgxffcv

INTERNAL = {"app", "bench", "files"}  # commands, and what the modules share
DEEPER = ["cgxffcv.fields.decoders", "cgxffcv.interop.torch", "cgxffcv.nn.export", "cgxffcv.pipeline.operation"]
needs_sphinx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="Sphinx, myst-parser and furo are not installed: pip install 'cgxffcv[site]'",
)


def public_names():
    inner = [f"cgxffcv.{module.name}" for module in pkgutil.iter_modules(cgxffcv.__path__) if module.name[0] != "_"]
    modules = ["cgxffcv", *(name for name in inner if name.split(".")[1] not in INTERNAL), *DEEPER]
    found = {name: getattr(importlib.import_module(name), "__all__", ()) for name in modules}
    return {f"{module}.{name}" for module, names in found.items() for name in names}


@pytest.mark.medium
@needs_sphinx
def test_the_site_builds_and_has_every_public_name(tmp_path):
    from sphinx.util.inventory import InventoryFile

    # as `make site`, which writes into build/
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-c", "docs/site"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ".", tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
        env=environ(),
    )
    assert done.returncode == 0, done.stderr
    inventory = InventoryFile.loads((tmp_path / "site" / "objects.inv").read_bytes(), uri="")
    known = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    assert public_names() - known == set()
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]
    assert {path.stem for path in sources} | {"index"} <= pages
