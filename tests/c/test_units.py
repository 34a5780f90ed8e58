"""Compiles each test_*.c here with the sources its first line names, under ASan and UBSan, and runs it."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# As in setup.py: what a file may use is in the end of its name.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mbmi2"],
}


_objects = {}  # (source, flags) to its object: many units share their sources


def compile_objects(sources, directory, sanitize=SANITIZE):
    """The sources as objects; each is compiled once a session."""
    result = []
    for source in sources:
        isa = next((flags for suffix, flags in ISA_FLAGS.items() if source.stem.endswith(suffix)), [])
        key = (source, *sanitize)
        if key not in _objects:
            target = directory / f"{len(_objects)}-{source.stem}.o"
            command = ["gcc", *FLAGS, *sanitize, *isa, f"-I{CSRC}", f"-I{HERE}", "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
            _objects[key] = str(target)
        result.append(_objects[key])
    return result


@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.stem)
def test_unit(test, tmp_path, objects):
    first = test.read_text().splitlines()[0]
    assert first.startswith("// sources: "), first
    patterns = first.removeprefix("// sources: ").split()
    sources = [path for pattern in patterns for path in sorted(CSRC.glob(pattern))]
    assert sources, first
    linked = compile_objects([test, *sources], objects)
    program = tmp_path / test.stem
    subprocess.run(["gcc", *FLAGS, *SANITIZE, *linked, "-o", str(program), "-lm"], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout
