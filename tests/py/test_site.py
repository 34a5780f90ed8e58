"""The site of the documentation builds without a warning and has every public name; its tables and bars hold."""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import zlib
from importlib.util import find_spec

import _cgxffcv
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
    """Of the package and of its public modules, with the modules' names."""
    inner = [f"cgxffcv.{module.name}" for module in pkgutil.iter_modules(cgxffcv.__path__) if module.name[0] != "_"]
    modules = ["cgxffcv", *(name for name in inner if name.split(".")[1] not in INTERNAL), *DEEPER]
    found = {name: getattr(importlib.import_module(name), "__all__", ()) for name in modules}
    return {f"{module}.{name}" for module, names in found.items() for name in names}


@pytest.mark.medium
@needs_sphinx
def test_the_site_builds_and_has_every_public_name(tmp_path):
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
    inventory = (tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]  # behind four lines of head
    entries = [line.split() for line in zlib.decompress(inventory).decode().splitlines()]
    known = {entry[0] for entry in entries if entry[1].startswith("py:")}
    assert public_names() - known == set()
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]
    assert {path.stem for path in sources} | {"index"} <= pages


def is_error(value):
    return isinstance(value, type) and issubclass(value, Exception)


def test_each_class_of_error_is_in_the_table():
    names = {f"cgxffcv.errors.{name}" for name in vars(importlib.import_module("cgxffcv.errors"))}
    shown = {}
    names |= public_names() - {"cgxffcv.interop.torch.CGXState", "cgxffcv.interop.torch.cgx_hook"}  # need torch
    for name in sorted(names | {f"_cgxffcv.{name}" for name in dir(_cgxffcv)}):
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last, None)
        if is_error(value):
            public = last if hasattr(cgxffcv, last) else f"{module}.{last}"
            shown[value] = min(shown.get(value, public), public, key=len)
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", (ROOT / "docs/errors.md").read_text(), re.M)
    bases = {name: ", ".join(f"`{base.__name__}`" for base in error.__bases__) for error, name in shown.items()}
    assert len(rows) == len(bases) and dict(rows) == bases


def test_bars_show_what_the_pages_state():
    spec = importlib.util.spec_from_file_location("bars", ROOT / "docs/site/bars.py")
    bars = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bars)
    stated = "".join((ROOT / "docs" / name).read_text() for name in ("BENCHMARKS.md", "PERFORMANCE.md"))
    page = (ROOT / "docs/why-fast.md").read_text()
    assert {path.stem for path in bars.FOLDER.iterdir()} == bars.CHARTS.keys()
    for name, (unit, figures) in bars.CHARTS.items():
        assert (bars.FOLDER / f"{name}.svg").read_text() == bars.draw(unit, figures)
        told = re.search(rf"!\[([^]]+)\]\(bars/{name}\.svg\)", page)[1]
        for figure in figures.values():
            alone = rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)"
            assert re.search(alone, stated) and re.search(alone, told), f"{name}: {figure}"
