"""Runs a notebook from its first cell to its last, in a kernel if nbclient is installed, else as a script."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

from checkout import environ, run_python

HAS_KERNEL = all(find_spec(name) is not None for name in ("nbclient", "ipykernel"))

# What the notebooks use of IPython, for when it is not installed. A value is asked for what a notebook would show.
STAND_IN = """
class HTML:
    def __init__(self, data):
        self._data = data
    def _repr_html_(self):
        return self._data
class Handle:
    def update(self, value):
        display(value)
def display(value, display_id=None):
    print(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    return Handle()
"""


def cells(path):
    notebook = json.loads(Path(path).read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _as_script(code):
    """A cell whose last value is displayed."""
    tree = ast.parse(code)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1].value = ast.Call(ast.Name("display"), [tree.body[-1].value], [])
    return ast.unparse(ast.fix_missing_locations(tree))


def _in_kernel(path, folder, limit):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=limit, resources={"metadata": {"path": str(folder)}}).execute(
        env=environ()
    )
    told = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        told += [output["text"]] if output.output_type == "stream" else output["data"].values()
    return "\n".join(told)


def execute(path, folder, limit=240):
    """Everything that the notebook shows, as one text; folder: an empty one to work in. Fails if a cell does."""
    if HAS_KERNEL:
        return _in_kernel(path, folder, limit)
    (folder / "IPython").mkdir()
    (folder / "IPython/__init__.py").touch()
    (folder / "IPython/display.py").write_text(STAND_IN)
    script = folder / "notebook.py"
    script.write_text("\n".join(["from IPython.display import display", *map(_as_script, cells(path))]))
    return run_python(script, limit=limit, folders=[folder]).stdout
