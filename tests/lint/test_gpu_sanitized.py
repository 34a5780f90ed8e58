"""The lists in tools/gpu_sanitized.sh name tests that exist, and find the kernels."""

import re
from pathlib import Path

from checkout import run_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "tools" / "gpu_sanitized.sh").read_text()


def test_named_tests_exist():
    named = re.findall(r'"(test_\w+\.py)::(test_\w+)(?:\[.*\])?"', SCRIPT)
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / "cuda" / file).read_text(), f"{file}::{test}"


def test_kernels_are_found():
    """Each of the script's own patterns finds some."""
    command = re.search(r"for name in \$\((find.*?)\); do", SCRIPT, re.S)[1]
    done = run_command("bash", "-c", command, cwd=ROOT)
    text = "".join(path.read_text() for suffix in ("*.cu", "*.cuh") for path in (ROOT / "csrc").rglob(suffix))
    kernels = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text)
    assert len(kernels) == text.count("__global__") and "train_close_step_kernel" in kernels
    assert done.stdout.split() == sorted(set(kernels))
