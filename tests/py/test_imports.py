"""What an import loads: little Python, and no library that can wait until it is needed."""

import json
import os
import shutil
import subprocess

import pytest
from checkout import run_python

from cgxffcv import bundled

# The remaining ones are listed by name, so that a new one is noticed.
LATER = {
    "matplotlib",
    "PIL",
    "torch",
    "jax",
    "cupy",
    "tqdm",
    "yaml",
    "safetensors",
    "asyncio",
    "concurrent",
    "multiprocessing",
    "subprocess",
    "tempfile",
    "unittest",
    "logging",
    "email",
    "http",
    "urllib.request",
    "argparse",
    "importlib.metadata",
    "cgxffcv.app",
    "cgxffcv.bench",
    "cgxffcv.cifar",
}
LIBRARIES = ("libmpi", "libopen-pal", "libnccl", "libcudnn", "libcublas", "libcuda.")

TOLD = """
import json, sys
before = set(sys.modules)
exec(sys.argv[1])
maps = {line.split()[-1].rpartition("/")[2] for line in open("/proc/self/maps") if "/" in line}
print(json.dumps([sorted(set(sys.modules) - before), sorted(maps)]))
"""

in_a_wheel = pytest.mark.skipif(os.path.exists(bundled.PATH), reason="a wheel's library is looked for by ctypes")


def told(code):
    modules, maps = json.loads(run_python("-c", TOLD, code).stdout)
    return set(modules), maps


@in_a_wheel
def test_the_package_alone_is_little_more_than_itself():
    modules, maps = told("import cgxffcv; cgxffcv.__version__; dir(cgxffcv)")
    assert modules <= {"cgxffcv", "cgxffcv.bundled", "__future__"}
    assert not [name for name in maps if name.startswith(("libdnnl", "libjpeg", "_cgxffcv", *LIBRARIES))]


@pytest.mark.parametrize(
    "code, more",
    [
        ("from cgxffcv.loader import Loader, OrderOption", {"cgxffcv.comm", "cgxffcv.nn", "cgxffcv.train"}),
        ("from cgxffcv import comm", {"cgxffcv.loader", "cgxffcv.nn", "cgxffcv.train", "cgxffcv.fields"}),
        ("import cgxffcv.nn", {"cgxffcv.comm", "cgxffcv.loader", "cgxffcv.train"}),
        ("import cgxffcv.train", {"cgxffcv.comm"}),
        ("import _cgxffcv; _cgxffcv.build_info()", {"cgxffcv"}),
    ],
)
def test_a_part_brings_no_other_part(code, more):
    modules, maps = told(code)
    assert not {name for name in modules for later in LATER | more if name == later or name.startswith(f"{later}.")}
    assert not [name for name in maps if name.startswith(LIBRARIES)]


@pytest.mark.parametrize("name", ["libcgxffcvtest.so.1", "libm.so.6"])
def test_the_wheels_library_is_taken_where_the_system_has_none(tmp_path, name):
    """The wheel's own comes first: libm's name, which every system knows, is here that of a library without libm's
    functions."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    path = tmp_path / name
    command = ["gcc", "-shared", "-nostdlib", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(path)]
    subprocess.run(command, input="int cgxffcv_test(void) { return 3; }", text=True, check=True)
    code = f"from cgxffcv import bundled; bundled.provide({str(path)!r}); print(open('/proc/self/maps').read())"
    assert (str(path) in run_python("-c", code).stdout) == (name == "libcgxffcvtest.so.1")


@in_a_wheel
def test_without_a_library_in_the_wheel_nothing_is_loaded():
    code = "import sys; from cgxffcv import bundled; bundled.provide('/nowhere/x.so'); print('ctypes' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"


@pytest.mark.parametrize("limit, warned", [("avx9", True), ("scalar", False), ("", False)])
def test_a_limit_of_the_processor_that_means_nothing_is_said(limit, warned):
    code = "import warnings; warnings.simplefilter('error'); import _cgxffcv"
    done = run_python("-c", code, status=int(warned), CGXFFCV_CPU=limit)
    assert ("CGXFFCV_CPU='avx9' has no effect: scalar, avx2 or avx512 is expected" in done.stderr) == warned
