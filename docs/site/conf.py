"""Sphinx configuration of the site. Its source folder is the checkout, so that every page stays where it is.

`make site` builds it; README.md is the first page. Notebooks are run and shown with their outputs. `-D run_notebooks=0`
skips the run, as the tests do, which run the notebooks separately.
"""

from __future__ import annotations

import html
import json
import logging
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser
from sphinx.ext.autodoc.mock import _MockObject

from cgxffcv import __version__

project = "cgxffcv"
version = release = __version__
html_title = f"cgxffcv {__version__}"
html_theme = "furo"
html_additional_pages = {"index": "start.html"}
templates_path = ["."]
html_static_path: list[str] = []
html_copy_source = False
html_show_copyright = False
highlight_language = "none"  # of blocks that name no language: commands and their output

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/site/api/*.md", "examples/README.md", "examples/*.ipynb"]
# A type named without its module that is public in two modules; a page that skips a level of headings.
suppress_warnings = ["ref.python", "myst.header"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = ["torch"]
_MockObject.__or__ = lambda self, other: self  # "ProcessGroup | None", which modules that torch reads evaluate
# Types of the standard library and of NumPy have no page here, nor do the modules in which public names are defined.
nitpick_ignore_regex = [("py:.*", r".*")]

# The site's navigation: README.md itself has no toctree.
CONTENTS = """
```{toctree}
:hidden:
:caption: Using it

docs/TRAINING
docs/ALLREDUCE
docs/several-hosts
docs/errors
docs/settings
docs/coming-from-ffcv
docs/coming-from-torch_cgx
```

```{toctree}
:hidden:
:caption: Examples
:glob:

examples/README
examples/*
```

```{toctree}
:hidden:
:caption: Reference

docs/site/api/data
docs/site/api/transforms
docs/site/api/allreduce
docs/site/api/training
docs/site/api/top
docs/site/api/core
docs/FORMAT
docs/WIRE
```

```{toctree}
:hidden:
:caption: How it is made

docs/why-fast
docs/DESIGN
docs/BENCHMARKS
docs/PERFORMANCE
CONTRIBUTING
SECURITY
CHANGELOG
```
"""


class NotebookParser(MystParser):
    """Notebooks as pages: text unchanged, code as Python blocks, followed by its outputs."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: Any) -> None:
        run = document.settings.env.config.run_notebooks
        cells = run_notebook(inputstring) if run else json.loads(inputstring)["cells"]
        super().parse("\n\n".join(map(cell_as_page, cells)), document)


def run_notebook(text: str) -> list[dict[str, Any]]:
    """The cells with their outputs, run in order in an empty folder. An error ends the build."""
    import nbclient
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"timeout": 240, "resources": {"metadata": {"path": folder}}, "log": logging.getLogger("nbclient")}
        nbclient.NotebookClient(notebook, **settings).execute(stderr=subprocess.DEVNULL)  # the kernel's own warnings
    return notebook["cells"]


def cell_as_page(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    shown = filter(None, map(_shown, cell["outputs"]))
    return "\n\n".join([f"```python\n{text}\n```", *(f"{FENCE}{{raw}} html\n{page}\n{FENCE}" for page in shown)])


FENCE = "`" * 12
WIDGET = "application/vnd.jupyter.widget-view+json"


def _shown(output: dict[str, Any]) -> str:
    """An output as HTML; progress output, on stderr or as a widget, is left out."""
    if output["output_type"] == "stream":
        found = {"text/plain": output["text"]} if output["name"] == "stdout" else {}
    else:
        found = {} if WIDGET in output["data"] else output["data"]
    kinds = {kind: "".join(value) for kind, value in found.items() if kind.startswith(("text/", "image/png"))}
    if "text/html" in kinds:
        return f"<div>{kinds['text/html']}</div>"
    if "image/png" in kinds:
        return f'<img alt="" src="data:image/png;base64,{kinds["image/png"].strip()}"/>'
    return f"<pre>{html.escape(kinds['text/plain'])}</pre>" if "text/plain" in kinds else ""


# "name: what it is" begins an entry of a docstring, which continues to the next entry or an empty line.
_ENTRY = re.compile(r"\**\w+(, \**\w+)*: ")
_HEADING = re.compile(r"[A-Z][a-z ]+:$")


def _escaped(text: str) -> str:
    """`text` as reStructuredText: text between backquotes becomes code, everything else is escaped."""
    parts = re.split(r"``(.+?)``|`(.+?)`", text)
    plain = [re.sub(r"([*_|\\`])", r"\\\1", part) for part in parts[::3]]
    codes = [f"``{double or single}``" for double, single in zip(parts[1::3], parts[2::3], strict=True)]
    return "".join(sum(zip(plain, [*codes, ""], strict=True), ()))


def _blocks(lines: list[str]) -> Iterator[str]:
    """The paragraphs and entries of a docstring as reStructuredText; text indented after an empty line is code."""
    block: list[str] = []
    code = False
    for line in [*lines, ""]:
        words = line.strip()
        if block and (not words or _ENTRY.match(words) or _HEADING.match(words) or _HEADING.match(block[-1])):
            text = " ".join(block).replace("::", ":")
            entry = _ENTRY.match(text)
            yield f"- **{_escaped(entry[0][:-2])}**: {_escaped(text[entry.end() :])}" if entry else _escaped(text)
            yield ""
            block = []
            code = False
        elif not block and line.startswith("    ") and not _ENTRY.match(words):
            yield from [] if code else ["::", ""]
            code = True
        elif words and not line.startswith("    "):
            code = False
        if code:
            yield line
        elif words:
            block.append(words)


def _write_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = _blocks(lines)


def _add_contents(app: Any, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += CONTENTS


def setup(app: Any) -> None:
    app.add_config_value("run_notebooks", True, "env", bool)
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", _add_contents)
    app.connect("autodoc-process-docstring", _write_docstring)
