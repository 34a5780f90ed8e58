"""The rules of the package's rooms: a module imports modules of its own room, and of those that come before it."""

import ast
import re

import pytest
from checkout import ROOT

# From the bottom up: folders of cgxffcv, and modules next to them.
FLOORS = (
    "bundled errors nearest wording lengths checked process_info files progress interrupts",
    "device tensors rank_claim costs launch_channel comm allreduce adaptive arrays ranks interop",
    "decoders transforms recipes checkpoint",
    "fields tables sheet classes reader writer beton cifar traversal_order pipeline loader",
    "nn train app bench start __main__",
)
ORDER = " ".join(FLOORS).split()
FILES = sorted((ROOT / "cgxffcv").rglob("*.py"))


def for_types_only(tree):
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(path):
    """The modules of the package that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text())
    for node in set(ast.walk(tree)) - for_types_only(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what they mean"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_rooms_are_all_there():
    rooms = {path.relative_to(ROOT / "cgxffcv").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_downward(path):
    room = path.relative_to(ROOT / "cgxffcv").parts[0].removesuffix(".py")
    for name in imports(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "cgxffcv" and other in ORDER and other != room:
            if room == "__init__":
                assert other == "bundled", f"{path} imports {name}: what cgxffcv offers is imported when it is used"
            else:
                assert ORDER.index(other) < ORDER.index(room), f"{path} may not import {name}: it is above {room}"


def test_modules_are_small():
    long = {str(path.relative_to(ROOT)) for path in FILES if len(path.read_text().splitlines()) > 600}
    assert not long, "too long: split them"


def test_tests_share_through_support():
    """No test module imports another, and none changes where Python looks for modules."""
    tests = ROOT / "tests"
    modules = {path.stem for path in tests.rglob("test_*.py")}
    for path in tests.rglob("*.py"):
        text = path.read_text()
        assert not [name for name in imports(path) if name.split(".")[0] in modules], f"{path} imports a test module"
        assert path.name == "test_python_rooms.py" or "sys.path.insert" not in text, f"{path} changes sys.path"


def test_tests_are_small_and_all_is_laid_out_by_the_formatter():
    paths = [path for path in (ROOT / "tests").rglob("*") if path.suffix in {".py", ".c", ".h", ".cu"}]
    long = {str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > 600}
    assert len(paths) > 200 and not long, "too long: split them by subject"
    paths += [path for folder in ("cgxffcv", "examples", "tools") for path in (ROOT / folder).rglob("*.py")]
    kept = [str(path.relative_to(ROOT)) for path in paths if re.search(r"# *fmt: *(off|skip)", path.read_text())]
    assert not kept, "say it so that it formats well: words as a text that is split, a table, a function"
