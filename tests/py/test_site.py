"""The documentation's site builds without a warning and has every public name; its tables and bars are right."""

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import zlib
from importlib.util import find_spec

import _cgxffcv
import pytest
from checkout import ROOT, run_python

import cgxffcv

INTERNAL = {"app", "bench", "files"}  # commands, and what modules share
DEEPER = ["cgxffcv.fields.decoders", "cgxffcv.interop.torch", "cgxffcv.nn.export", "cgxffcv.pipeline.operation"]
NEED_TORCH = {"cgxffcv.interop.torch.CGXState", "cgxffcv.interop.torch.cgx_hook"}
needs_sphinx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="Sphinx, myst-parser and furo are not installed: pip install 'cgxffcv[site]'",
)


def public_names():
    """Names of the package and of its public modules, with the modules' names."""
    inner = [f"cgxffcv.{module.name}" for module in pkgutil.iter_modules(cgxffcv.__path__) if module.name[0] != "_"]
    modules = ["cgxffcv", *(name for name in inner if name.split(".")[1] not in INTERNAL), *DEEPER]
    found = {name: getattr(importlib.import_module(name), "__all__", ()) for name in modules}
    return {f"{module}.{name}" for module, names in found.items() for name in names}


@pytest.mark.medium
@needs_sphinx
def test_the_site_builds_and_has_every_public_name(tmp_path):
    # like `make site`, which writes into build/, but without the notebooks, which have a separate test
    command = ["-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-c", "docs/site"]
    command += ["-D", "run_notebooks=0"]
    run_python(*command, "-d", tmp_path / "doctrees", ".", tmp_path / "site", limit=500, cwd=ROOT)
    inventory = (tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]  # after four header lines
    entries = [line.split() for line in zlib.decompress(inventory).decode().splitlines()]
    known = {entry[0] for entry in entries if entry[1].startswith("py:")}
    assert public_names() - known == set()
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]
    assert {path.stem for path in sources} | {"index"} <= pages


def load_from_site(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/site/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CELLS = [
    ("markdown", "# Title"),
    ("code", "import os, sys\nprint('a < b', os.listdir())\nprint('progress', file=sys.stderr)"),
    ("code", "display({'text/plain': 'a bar', 'application/vnd.jupyter.widget-view+json': {}}, raw=True)"),
    ("code", "class Shown:\n    def _repr_html_(self):\n        return '<b>bold</b>'\nShown()"),
]


@pytest.mark.medium
@needs_sphinx
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("nbclient", "ipykernel")), reason="nbclient, ipykernel are not installed"
)
def test_a_page_of_a_notebook_has_what_its_cells_show():
    cells = [{"cell_type": kind, "metadata": {}, "source": text} for kind, text in CELLS]
    cells = [cell | ({"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}) for cell in cells]
    conf = load_from_site("conf")
    made = conf.run_notebook(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    page = "\n\n".join(map(conf.cell_as_page, made))
    assert page.startswith("# Title\n\n```python\nimport os") and "progress\n" not in page
    assert "a bar</pre>" not in page
    assert "<pre>a &lt; b []\n</pre>" in page and "<div><b>bold</b></div>" in page


def undocumented(name, value):
    """It, or its class's methods and properties, without a docstring of their own or of a base."""
    if isinstance(value, type):
        members = {key: part for key, part in vars(value).items() if not key.startswith("_")}
        parts = {f"{name}.{key}": part for key, part in members.items() if callable(part) or isinstance(part, property)}
        parts = {
            key: part for key, part in parts.items() if inspect.getdoc(getattr(value, key.rpartition(".")[2])) is None
        }
        return [*parts, *([] if vars(value).get("__doc__") else [name])]
    return [name] if callable(value) and not inspect.getdoc(value) else []


def test_every_public_name_is_explained():
    lacking = []
    for name in sorted(public_names() - NEED_TORCH):
        module, _, last = name.rpartition(".")
        lacking += undocumented(name, getattr(importlib.import_module(module), last))
    assert lacking == []


def is_error(value):
    return isinstance(value, type) and issubclass(value, Exception)


def test_each_class_of_error_is_in_the_table():
    names = {f"cgxffcv.errors.{name}" for name in vars(importlib.import_module("cgxffcv.errors"))}
    shown = {}
    names |= public_names() - NEED_TORCH
    for name in sorted(names | {f"_cgxffcv.{name}" for name in dir(_cgxffcv)}):
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last, None)
        if is_error(value):
            public = last if hasattr(cgxffcv, last) else f"{module}.{last}"
            shown[value] = min(shown.get(value, public), public, key=len)
    row = r"^\| `(\w+)`(?: in `([\w.]+)`)? \| (.+?) \|"
    found = re.findall(row, (ROOT / "docs/errors.md").read_text(), re.M)
    rows = [(f"{module}.{name}".lstrip("."), is_a) for name, module, is_a in found]
    bases = {name: ", ".join(f"`{base.__name__}`" for base in error.__bases__) for error, name in shown.items()}
    assert len(rows) == len(bases) and dict(rows) == bases


def test_bars_show_what_the_pages_state():
    bars = load_from_site("bars")
    stated = "".join((ROOT / "docs" / name).read_text() for name in ("BENCHMARKS.md", "PERFORMANCE.md"))
    page = (ROOT / "docs/why-fast.md").read_text()
    assert {path.stem for path in bars.FOLDER.iterdir()} == bars.CHARTS.keys()
    for name, (unit, figures) in bars.CHARTS.items():
        assert (bars.FOLDER / f"{name}.svg").read_text() == bars.draw(unit, figures)
        told = re.search(rf"!\[([^]]+)\]\(bars/{name}\.svg\)", page)[1]
        for figure in figures.values():
            alone = rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)"
            assert re.search(alone, stated) and re.search(alone, told), f"{name}: {figure}"
